"""Keep a run: put it into the small file of its machine, and write the machine's report and pictures again.

Example:
  python -m benchmarks.keep out/benchmark.json benchmarks/results/my-pc.json --name avx512 --title AVX-512
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .report import write_report
from .results import compact, read_runs, write_runs


def keep(data: dict, path: Path, name: str, title: str) -> list[Path]:
    """Put a run into the file at `path`. It replaces the run of the same name.

    Returns: the paths of the files written.
    """
    runs = {run["name"]: run for run in read_runs(path)} if path.exists() else {}
    runs[name] = {"name": name, "title": title, **compact(data)}
    write_runs(list(runs.values()), path)
    return [path, *write_report(list(runs.values()), path)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.keep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run", type=Path, help="the JSON of `python -m benchmarks` or `python -m benchmarks.paths`")
    add("machine", type=Path, help="the file of the machine, new or old")
    add("--name", required=True, help="name of the run; its pictures get it, too")
    add("--title", required=True, help="title of the run's section in the report")
    args = parser.parse_args()
    (data,) = read_runs(args.run)
    for written in keep(data, args.machine, args.name, args.title):
        print(written)
