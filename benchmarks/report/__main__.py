"""Write the report of a run, or of all the runs of a machine, from its JSON."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..results import read_runs
from . import write_report

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("json", type=Path, help="out/benchmark.json, or a file in benchmarks/results")
    parser.add_argument(
        "--plots", type=Path, metavar="FOLDER", help="where the plots go (default: the folder of the JSON)"
    )
    args = parser.parse_args()
    for written in write_report(read_runs(args.json), args.json, args.plots):
        print(written)
