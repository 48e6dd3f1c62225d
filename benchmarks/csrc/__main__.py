"""Time the parts of the CPU kernels: matrix products, cells, barriers, and a cache line between two cores.

A C++ program times them, with the instruction set that fastrnn chooses or that FASTRNN_CPU_ISA names. A time
is the CPU time of the fastest sample; with several threads it is the real time. A cell's time is that of a
vector of units. "of peak" compares a rate with that of multiply-adds in registers, measured in the same run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch

from ..__main__ import describe_machine

SOURCES = Path(__file__).parent
FOLDER = SOURCES.parents[1] / "build" / "benchmarks-csrc"


def build(isa: str, folder: Path) -> Path:
    """Build the program for an instruction set, with the flags of the extension. Returns its path."""
    target = f"micro_{isa}"
    for command in (["cmake", "-S", SOURCES, "-B", folder], ["cmake", "--build", folder, "--target", target]):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            sys.exit(done.stdout)
    return folder / target


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.csrc",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("filter", nargs="?", default="", help="run only the benchmarks whose names contain this text")
    add("--seconds", type=float, default=0.1, help="for each benchmark (default: %(default)s)")
    args = parser.parse_args()
    machine = describe_machine(torch.get_num_threads())
    isa = machine["fastrnn"]["CPU ISA chosen"]
    print(f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads; {isa}", flush=True)
    return subprocess.run([build(isa, FOLDER), str(args.seconds), args.filter]).returncode


if __name__ == "__main__":
    sys.exit(main())
