"""Time fastrnn beside torch.nn, interleaved in one process with equal threads."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .peers import PEERS, make_calls
from .problems import CELLS, DEFAULT_CELLS, GRID, MODES, QUICK, STREAMING, Problem, Shape, select
from .report import print_report
from .timing import gemm_peak, interleave


class Run:
    """The pytest plugin of one run: gives `bench_modules.py` its problems and samples."""

    def __init__(self, chosen: list[Problem], seconds: float, min_rounds: int, progress: Progress):
        self.chosen = chosen
        self.seconds = seconds
        self.min_rounds = min_rounds
        self.progress = progress
        self.task = progress.add_task("", total=len(chosen))
        self.gemm_flops_per_s = gemm_peak()
        self.measured: tuple[Problem | None, dict[str, list[float]]] = (None, {})

    def pytest_generate_tests(self, metafunc):
        metafunc.parametrize("problem", self.chosen, ids=lambda problem: problem.name)
        metafunc.parametrize("peer", PEERS)

    @pytest.fixture
    def samples(self, problem):
        """Of all peers. Tests of one problem follow each other and share them."""
        if self.measured[0] != problem:
            self.progress.update(self.task, description=problem.name, refresh=True)
            with torch.set_grad_enabled(problem.mode == "training"):
                self.measured = problem, interleave(make_calls(problem), self.seconds, self.min_rounds)
            self.progress.update(self.task, advance=1, refresh=True)
        return self.measured[1]

    def pytest_report_teststatus(self, report):
        return (report.outcome, "", "") if report.passed else None

    def pytest_benchmark_update_machine_info(self, machine_info):
        del machine_info["node"]  # the name of the machine says nothing about its speed
        machine_info.update(describe_machine(), cpu=machine_info["cpu"].get("brand_raw", "unknown CPU"))

    def pytest_benchmark_update_json(self, output_json):
        output_json["gemm_flops_per_s"] = max(self.gemm_flops_per_s, gemm_peak())  # before and after
        for benchmark in output_json["benchmarks"]:
            del benchmark["stats"]["data"]  # the statistics are enough to compare runs


def describe_machine() -> dict:
    environment = subprocess.run(
        [sys.executable, "-m", "fastrnn"], check=True, capture_output=True, text=True
    ).stdout
    return {
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "fastrnn": dict(re.split(" {2,}", line, maxsplit=1) for line in environment.splitlines()),
    }


def shape(text: str) -> Shape:
    return Shape.parse(text)  # argparse names the function in its error


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="Other options go to pytest: --benchmark-compare=JSON shows an earlier run beside this one.",
    )
    add = parser.add_argument
    add("--cells", nargs="+", choices=CELLS, default=DEFAULT_CELLS, metavar="CELL", help=", ".join(CELLS))
    add("--shapes", nargs="+", type=shape, metavar="T,B,I,H", help="instead of the grid")
    add("--modes", nargs="+", choices=MODES, default=MODES, metavar="MODE", help=", ".join(MODES))
    add("--threads", type=int, default=torch.get_num_threads(), help="of all peers alike (%(default)s)")
    add("--json", type=Path, default=Path("out/benchmark.json"), help="where results go (%(default)s)")
    add("--quick", action="store_true", help="small shapes and short measurements: two minutes")
    return parser.parse_known_args()


def main() -> int:
    args, pytest_args = parse_arguments()
    console = Console(width=None if sys.stdout.isatty() else 120)
    torch.set_num_threads(args.threads)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    shapes = args.shapes or (QUICK if args.quick else (*GRID, *STREAMING))
    seconds, min_rounds = (1.0, 3) if args.quick else (7.0, 7)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    # Refreshed by hand between measurements: a thread that draws would disturb them.
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        chosen = select(args.cells, shapes, args.modes)
        run = Run(chosen, seconds, min_rounds, progress)
        root = Path(__file__).parent.parent
        status = pytest.main(
            [
                f"{root}/benchmarks/bench_modules.py",
                f"--rootdir={root}",
                "--override-ini=addopts=",
                "--override-ini=console_output_style=classic",
                "--quiet",
                "--quiet",
                "--no-header",
                "--capture=no",
                f"--benchmark-json={args.json}",
                *(pytest_args or ["--benchmark-quiet"]),
            ],
            plugins=[run],
        )
    if status == 0:
        print_report(json.loads(args.json.read_text()), console)
        console.print(f"results: {args.json}")
    return status


if __name__ == "__main__":
    sys.exit(main())
