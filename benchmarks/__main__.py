"""Time fastrnn and its peers. They take turns in one process, with the same number of threads."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cpuinfo import get_cpu_info
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fastrnn.plan import core_round_trip

from . import cuda
from .contention import contended_times
from .limits import measure_limits
from .memory import peak_memory
from .onnx_peer import VERSION
from .peers import PEERS, find_missing, make_calls
from .problems import (
    CELLS,
    CONTENTION,
    DEFAULT_CELLS,
    MEMORY,
    MODES,
    ONE,
    Problem,
    Shape,
    cores,
    modes_of,
    select,
)
from .report import print_report, write_report
from .timing import interleave

QUICK_SECONDS = 0.5
MEMORY_SECONDS, CONTENTION_SECONDS = 5.0, 12.0  # approximate, for the progress bar


class Run:
    """The pytest plugin of one run. It gives `bench_modules.py` its problems and samples."""

    def __init__(self, args: argparse.Namespace, progress: Progress):
        self.quick, self.threads, self.device = args.quick, args.threads, args.device
        self.flush_l2 = args.flush_l2
        self.problems = select(
            args.cells, args.shapes, args.modes, args.quick, threads=args.threads, device=args.device
        )
        given = {"threads": args.threads, "device": args.device}
        self.memory_problems = [
            Problem("training", cell, shape, training=True, **given)
            for cell in args.cells
            for shape in args.shapes or (ONE if args.quick else MEMORY)
            if "training" in args.modes
        ]
        self.contention_problems = [
            Problem("oversubscribed", cell, shape, **given)
            for cell in args.cells
            for shape in args.shapes or (ONE if args.quick else CONTENTION)
            if "oversubscribed" in args.modes
        ]
        self.min_rounds = 2 if args.quick else 3 if args.device == "cuda" else 5
        self.progress = progress
        seconds = sum(map(self.seconds, self.problems))
        seconds += MEMORY_SECONDS * len(self.memory_problems) + CONTENTION_SECONDS * len(
            self.contention_problems
        )
        self.task = progress.add_task("limits of the machine", total=seconds)
        self.limits = self.measure_limits()
        self.missing = find_missing(args.quick, args.device)
        self.measured: Problem | None = None
        self.times: dict[str, list[float]] = {}
        self.refusals: list[dict] = []
        self.round_trips: dict[str, float] = {}  # seconds, of problems that several threads run

    def seconds(self, problem: Problem) -> float:
        seconds = MODES[problem.mode].seconds
        return min(seconds, QUICK_SECONDS) if self.quick else seconds

    def measure_limits(self) -> dict:
        return (cuda.measure_limits if self.device == "cuda" else measure_limits)(self.problems)

    def pytest_generate_tests(self, metafunc):
        metafunc.parametrize("problem", self.problems, ids=lambda problem: problem.name)
        metafunc.parametrize("peer", [name for name in PEERS if name not in self.missing])

    @pytest.fixture
    def samples(self, problem, peer):
        """The samples of all peers. The tests of one problem follow each other and share them."""
        if self.measured != problem:
            self.measured, self.times = problem, {}  # they stay empty if `measure` raises
            self.times = self.measure(problem)
        if peer not in self.times:
            pytest.skip(f"{peer} does not support {problem.name}")
        return self.times

    def measure(self, problem: Problem) -> dict[str, list[float]]:
        self.progress.update(self.task, description=problem.name, refresh=True)
        torch.set_num_threads(problem.threads)
        if problem.device == "cuda":
            torch.cuda.empty_cache()  # so that the previous problem leaves no memory in use
            cuda.use_products(problem.dtype)
        calls, refusals = make_calls(problem, self.missing)
        self.refusals += [
            {"problem": problem.to_json(), "peer": peer, "reason": reason}
            for peer, reason in refusals.items()
        ]
        with torch.set_grad_enabled(problem.training):
            if problem.device == "cuda":
                times = cuda.interleave(calls, self.seconds(problem), self.min_rounds, self.flush_l2)
            else:
                times = interleave(calls, torch.cpu.synchronize, self.seconds(problem), self.min_rounds)
                if problem.threads > 1 and (found := core_round_trip()) is not None:
                    self.round_trips[problem.name] = found
        self.progress.update(self.task, advance=self.seconds(problem), refresh=True)
        return times

    def measure_memory(self, problem: Problem) -> dict:
        self.progress.update(self.task, description=f"memory of {problem.name}", refresh=True)
        bytes_of = peak_memory(problem)
        self.progress.update(self.task, advance=MEMORY_SECONDS, refresh=True)
        return {"problem": problem.to_json(), "bytes": bytes_of}

    def measure_contention(self, problem: Problem) -> dict:
        self.progress.update(self.task, description=f"two processes of {problem.name}", refresh=True)
        seconds_of = contended_times(problem)
        self.progress.update(self.task, advance=CONTENTION_SECONDS, refresh=True)
        return {"problem": problem.to_json(), "seconds": seconds_of}

    def pytest_report_teststatus(self, report):
        return None if report.failed else (report.outcome, "", "")

    def pytest_benchmark_update_machine_info(self, machine_info):
        del machine_info["node"]  # the host name is private
        machine_info.update(describe_machine(self.threads))
        if self.device == "cuda":
            machine_info["gpu"] = cuda.describe_device(self.flush_l2)

    def pytest_benchmark_update_json(self, output_json):
        again = self.measure_limits()  # noise only lowers a limit, so the higher value counts
        output_json.update(
            limits={
                threads: limits.best(again[threads]).to_json() for threads, limits in self.limits.items()
            },
            memory=[self.measure_memory(problem) for problem in self.memory_problems],
            contention=[self.measure_contention(problem) for problem in self.contention_problems],
            missing=self.missing,
            refusals=self.refusals,
            round_trips=self.round_trips,
            plans={p.name: cuda.describe_plans(p) for p in self.problems if p.device == "cuda"},
        )
        for benchmark in output_json["benchmarks"]:
            # extra_info has the problem and the peer; the statistics are enough to compare runs.
            del benchmark["params"], benchmark["options"], benchmark["stats"]["data"]


def describe_machine(threads: int) -> dict:
    environment = subprocess.run(
        [sys.executable, "-m", "fastrnn"], check=True, capture_output=True, text=True
    ).stdout
    return {
        "cpu": get_cpu_info().get("brand_raw", "unknown CPU"),
        "cores": cores(),
        "threads": threads,
        "torch": torch.__version__,
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "onnxruntime": VERSION,
        "fastrnn": dict(re.split(" {2,}", line, maxsplit=1) for line in environment.splitlines()),
    }


def shape(text: str) -> Shape:
    try:
        return Shape.parse(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: expected four positive sizes T,B,I,H") from None


def threads(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a positive number")
    return int(text)


def device(text: str) -> str:
    if text == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("cuda: torch sees no CUDA device here")
    return text


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="Other options go to pytest: --benchmark-compare=JSON compares this run with an earlier one. "
        "`python -m benchmarks.keep` adds the run to the results in the repository. "
        "`python -m benchmarks --workloads` trains the programs of examples/ instead, "
        "`--models` times published models that are installed, `--inference` short calls of frozen layers; "
        "these have other options.",
    )
    add = parser.add_argument
    add("--cells", nargs="+", choices=CELLS, default=DEFAULT_CELLS, metavar="CELL", help=", ".join(CELLS))
    add("--shapes", nargs="+", type=shape, metavar="T,B,I,H", help="replace the shapes of the modes")
    add("--modes", nargs="+", choices=MODES, metavar="MODE", help="; ".join(MODES))
    add(
        "--threads",
        type=threads,
        default=torch.get_num_threads(),
        help="number of threads of each peer (default: %(default)s)",
    )
    add(
        "--device",
        type=device,
        choices=("cpu", "cuda"),
        default="cpu",
        help="cpu or cuda (default: %(default)s)",
    )
    add("--quick", action="store_true", help="few shapes and short measurements: under two minutes")
    add("--flush-l2", action="store_true", help="empty the L2 cache of the GPU before each timed call")
    add("--json", type=Path, default=Path("out/benchmark.json"), help="results; the report goes beside them")
    add("--plots", type=Path, metavar="FOLDER", help="where the plots go (default: the folder of --json)")
    args, pytest_args = parser.parse_known_args()
    known = modes_of(args.device)
    args.modes = args.modes or known
    if others := [mode for mode in args.modes if mode not in known]:
        parser.error(f"--modes: {', '.join(others)}: not on {args.device}; its modes are {'; '.join(known)}")
    return args, pytest_args


def main() -> int:
    if sys.argv[1:2] == ["--inference"]:
        from .inference import main as time_inference

        return time_inference(sys.argv[2:])
    if sys.argv[1:2] == ["--workloads"]:
        from .workloads import main as train_workloads

        return train_workloads(sys.argv[2:])
    if sys.argv[1:2] == ["--models"]:
        from .models import main as time_models

        return time_models(sys.argv[2:])
    args, pytest_args = parse_arguments()
    console = Console(width=None if sys.stdout.isatty() else 160)
    torch.set_num_threads(args.threads)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    columns = (BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    # Update the bar only between measurements: a thread that draws would disturb them.
    with Progress(*columns, console=console, auto_refresh=False, speed_estimate_period=300) as progress:
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
            plugins=[Run(args, progress)],
        )
    if status == 0:
        data = json.loads(args.json.read_text())
        print_report(data, console)
        for path in (args.json, *write_report([data], args.json, args.plots)):
            console.print(path)
    return status


if __name__ == "__main__":
    sys.exit(main())
