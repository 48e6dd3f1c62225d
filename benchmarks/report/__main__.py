"""Write Markdown and plots from the JSON of a run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from . import write_report

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("json", type=Path, help="what `python -m benchmarks --json` wrote")
    parser.add_argument(
        "--plots", type=Path, metavar="FOLDER", help="where plots go (the folder of the JSON)"
    )
    args = parser.parse_args()
    for written in write_report(json.loads(args.json.read_text()), args.json, args.plots or args.json.parent):
        print(written)
