"""Builds, tests and times fastrnn on a GPU, and writes a report.

    make gpu-check        or        python tools/gpu_check.py [--stages STAGES] [--out FOLDER]

It uses the Python that runs it, with the torch that is installed there, and downloads nothing. One call takes
less than ten minutes. Several calls, each with some of the stages, write one report if they use the same
folder. Read `report.md` first; it is made from the other files. Without a GPU the check says so and ends.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tools import gpu_facts, gpu_report
from tools.gpu_isolation import JOURNAL, SHARD
from tools.gpu_run import (
    BENCHMARKS,
    FACTS,
    HUNG,
    NO_TIME,
    NOT_RUN,
    ROOT,
    TESTS,
    WELL,
    Journal,
    Outcome,
    Results,
    read_json,
    run_program,
    run_worker,
    stop_all,
    write_whole,
)

SECONDS = 540  # of a whole call
SCRATCH = ROOT / "build/gpu-check"  # kept for the next call
CONFORMANCE = SCRATCH / "conformance"
LAST_LINES = 25  # of a failure, on the terminal
FACT_SECONDS, TEST_SECONDS, MODE_SECONDS = 20, 60, 90  # after which an item hangs
SHARD_TESTS = 250  # about, of a process
WIDTH = 8  # programs at the same time
SANITIZER_TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
# Seconds that a kernel waits for another block: few, because the other block may never come.
WAIT = "FASTRNN_CUDA_WAIT_SECONDS"
TESTS_FAILED, NO_TESTS = 1, 5  # exit statuses of pytest


@dataclass
class Command:
    """Programs that run one after the other. The first failure ends the command.

    needs: packages and programs
    patience: seconds after which a program hangs
    """

    name: str
    arguments: list[list[str | Path]]
    env: dict[str, str] = field(default_factory=dict)
    needs: tuple[str | Path, ...] = ()
    patience: float = math.inf


class Check:
    """One call: runs commands within the time of their stage, and keeps their outcomes."""

    def __init__(self, results: Results, env: dict[str, str], scratch: Path = SCRATCH):
        self.results, self.env, self.scratch = results, env, scratch
        self.stage, self.end = "", 0.0
        self.bad = False
        scratch.mkdir(parents=True, exist_ok=True)

    def log_of(self, name: str) -> Path:
        return self.scratch / f"{name.replace('/', '-')}.log"

    def add(self, outcome: Outcome) -> Outcome:
        self.results.add(self.stage, outcome)
        self.bad |= outcome.bad
        print(f"    {outcome.name}: {outcome.status} ({outcome.seconds:.0f} s)", flush=True)
        if outcome.bad:
            print(*outcome.output.splitlines()[-LAST_LINES:], sep="\n", flush=True)
        return outcome

    def run_command(self, command: Command) -> Outcome:
        output, status = "", "passed"
        start = time.monotonic()
        if hindrance := self.hindrance(command):
            return Outcome(command.name, hindrance)
        for arguments in command.arguments:
            end = min(self.end, start + command.patience)
            code, text = run_program(arguments, self.env | command.env, end, self.log_of(command.name))
            output += text
            if code != 0:
                status = describe_end(HUNG if code == NO_TIME and end < self.end else code)
                break
        self.log_of(command.name).write_text(output)
        return Outcome(command.name, status, time.monotonic() - start, output)

    def run_worker(self, command: Command, record: Callable[[str, str, str], None], well=(0,)) -> Outcome:
        """well: the exit statuses of a worker that has gone through all its items"""
        start = time.monotonic()
        if hindrance := self.hindrance(command):
            return Outcome(command.name, hindrance)
        env, log = self.env | command.env, self.log_of(command.name)
        code, output = run_worker(command.arguments[0], env, self.end, log, command.patience, record)
        status = "passed" if code in well else describe_end(code)
        return Outcome(command.name, status, time.monotonic() - start, output)

    def hindrance(self, command: Command) -> str:
        if missing := [str(name) for name in command.needs if not is_here(name, self.env["PATH"])]:
            return f"skipped: not here: {', '.join(missing)}"
        return f"left out: {NO_TIME}" if time.monotonic() >= self.end else ""

    def run_together(self, commands: list[Command], run: Callable[[Command], Outcome]) -> dict[str, Outcome]:
        with ThreadPoolExecutor(WIDTH) as pool:
            running = [pool.submit(run, command) for command in commands]
            outcomes = [self.add(future.result()) for future in as_completed(running)]
        return {outcome.name: outcome for outcome in outcomes}


def describe_end(code: int | str) -> str:
    if code == NO_TIME:
        return f"STOPPED: {NO_TIME}"
    return "FAILED: hung" if code == HUNG else f"FAILED with exit status {code}"


def is_here(name: str | Path, path: str) -> bool:
    """Whether a package or a program is here."""
    package = isinstance(name, str) and importlib.util.find_spec(name) is not None
    return package or shutil.which(name, path=path) is not None


# ---- the stages: each returns whether the next one may follow ----


def build(check: Check) -> bool:
    """Builds the extension for the device of this machine, and the program that tests the primitives."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    arch = f"{major}.{minor}" + "a" * (major == 9)
    check.results.forget(check.stage)
    CONFORMANCE.unlink(missing_ok=True)
    compile_conformance = ["nvcc", "-std=c++20", "-O2", f"-arch=sm_{arch.replace('.', '')}", "-Icsrc"]
    compile_conformance += ["-Itests/csrc/cuda", "-o", CONFORMANCE, "tests/csrc/cuda/conformance.cu"]
    extension = Command(
        "extension",
        [[sys.executable, "setup.py", "build_ext", "--inplace"]],
        {"FASTRNN_CUDA": "1", "TORCH_CUDA_ARCH_LIST": arch},
        needs=("setuptools", "pybind11", "cmake", "ninja", "nvcc"),
    )
    programs = [compile_conformance, [CONFORMANCE], [CONFORMANCE, "lost_signal"]]
    conformance = Command("conformance", programs, needs=("nvcc",))
    return not check.run_together([extension, conformance], check.run_command)["extension"].bad


def facts(check: Check) -> bool:
    path = check.results.folder / FACTS
    check.results.forget(check.stage, FACTS)
    until = time.time() + check.end - time.monotonic() - 5
    worker = [sys.executable, ROOT / "tools/gpu_facts.py", path, check.log_of("conformance"), str(until)]
    command = Command("facts", [worker], {WAIT: "5"}, patience=FACT_SECONDS)
    check.add(check.run_worker(command, partial(gpu_facts.record_end, path)))
    return True


def tests(check: Check) -> bool:
    journal = Journal(check.results.folder / TESTS)
    check.results.forget(check.stage, TESTS)

    def run(command: Command) -> Outcome:
        return check.run_worker(command, journal.add, well=(0, TESTS_FAILED, NO_TESTS))

    # The tests that look at the whole device come first. Their process also notes the names of all others.
    alone = check.add(run(pytest_command(journal, "alone on the device", "tests", "cuda and alone")))
    found = journal.read().items()
    left = Counter(name.split("::")[0] for name, entry in found if entry["status"] == NOT_RUN)
    commands = []
    for file, count in sorted(left.items(), key=lambda item: ("test_cuda" not in item[0], -item[1])):
        shards = math.ceil(count / SHARD_TESTS)
        for i in range(shards):
            name = Path(file).name + f" {i + 1} of {shards}" * (shards > 1)
            commands.append(pytest_command(journal, name, file, "cuda and not alone", f"{i}/{shards}"))
    check.run_together(commands, run)
    counts = Counter(entry["status"] for entry in journal.read().values())
    if not counts and alone.status == "passed":
        check.add(Outcome("all", "FAILED: there is no test of a GPU; is fastrnn built with CUDA?"))
    elif counts:
        words = ", ".join(f"{count} {status}" for status, count in counts.most_common())
        check.add(Outcome("all", f"{'FAILED' if counts.keys() - WELL else 'passed'}: {words}"))
    return True


def pytest_command(journal: Journal, name: str, tests: str, marks: str, shard: str = "0/1") -> Command:
    options = ["-v", "--tb=short", "-o", f"faulthandler_timeout={TEST_SECONDS * 3 // 4}", "-m", marks]
    options += ["--thorough", "-p", "no:cacheprovider", "-p", "tools.gpu_isolation"]
    options += ["--continue-on-collection-errors"]
    env = {JOURNAL: str(journal.path), SHARD: shard, WAIT: "10"}
    arguments = [sys.executable, "-m", "pytest", *options, tests]
    return Command(name, [arguments], env, needs=("pytest",), patience=TEST_SECONDS)


def benchmarks(check: Check) -> bool:
    """Runs a process for each mode. If that gives no results, it runs one for each shape of the mode."""
    from benchmarks.problems import MODES, modes_of
    from benchmarks.results import merge

    check.results.forget(check.stage, BENCHMARKS)
    found = []

    def measure(name: str, *options: str) -> bool:
        path = check.scratch / "benchmark.json"
        path.unlink(missing_ok=True)
        arguments = [sys.executable, "-m", "benchmarks", "--device=cuda", f"--json={path}", *options]
        needs = ("pytest", "pytest_benchmark", "rich", "matplotlib", "numpy")
        outcome = check.add(check.run_command(Command(name, [arguments], {}, needs, MODE_SECONDS)))
        if path.is_file() and path.stat().st_size:
            found.append(read_json(path))
            write_whole(check.results.folder / BENCHMARKS, merge(found))
            return True
        return not outcome.status.startswith("FAILED")

    for mode in modes_of("cuda"):
        if not measure(mode, "--modes", mode):
            for shape in MODES[mode].shapes:
                measure(f"{mode} {shape}", "--modes", mode, "--shapes", str(shape))
    return True


def sanitizers(check: Check) -> bool:
    """Runs the sanitizers on the primitives of the kernels, without torch."""
    check.results.forget(check.stage)
    commands = []
    for tool in SANITIZER_TOOLS:
        options = [f"--tool={tool}", "--error-exitcode=1", "--print-limit=20"]
        arguments = ["compute-sanitizer", *options, CONFORMANCE, "quick"]
        commands.append(Command(tool, [arguments], needs=("compute-sanitizer", CONFORMANCE)))
    check.run_together(commands, check.run_command)
    return True


@dataclass
class Stage:
    """seconds: the most that it may take; reserved: seconds that the stages before leave for it."""

    run: Callable[[Check], bool]
    seconds: float
    reserved: float


STAGES = {
    "build": Stage(build, 300, 0),
    "facts": Stage(facts, 60, 60),
    "tests": Stage(tests, 480, 120),
    "benchmarks": Stage(benchmarks, 420, 90),
    "sanitizers": Stage(sanitizers, 120, 40),
}
NAMES = (*STAGES, "report")


def run_stages(names: list[str], check: Check, seconds: float = SECONDS):
    deadline = time.monotonic() + seconds
    for i, name in enumerate(names):
        print(f"==> {name}", flush=True)
        stage = STAGES[name]
        reserved = sum(STAGES[later].reserved for later in names[i + 1 :])
        check.stage = name
        check.end = min(deadline - reserved, time.monotonic() + stage.seconds)
        try:
            if not stage.run(check):
                break
        except Exception:
            check.add(Outcome(name, "FAILED: an error of the check itself", 0, traceback.format_exc()))
        finally:
            gpu_report.write_report(check.results.folder)


def stage_names(text: str) -> list[str]:
    names = text.split(",")
    if wrong := [name for name in names if name not in NAMES]:
        raise argparse.ArgumentTypeError(f"{', '.join(map(repr, wrong))}: expected some of {','.join(NAMES)}")
    return [name for name in STAGES if name in names]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python tools/gpu_check.py", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--out", type=Path, default=ROOT / "out/gpu-check", help="folder of the results (%(default)s)")
    add(
        "--stages",
        type=stage_names,
        default=list(STAGES),
        help=f"some of {','.join(NAMES)}, in this order; default: all. The report is always written. "
        "'report' alone writes it again, and needs no GPU",
    )
    add(
        "--seconds",
        type=float,
        default=SECONDS,
        help="of the whole call (%(default)s); what has not begun by then is listed as not run",
    )
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    folder = args.out.resolve()
    if not args.stages:
        if not folder.is_dir():
            sys.exit(f"error: --out: expected a folder with results, got {args.out}")
        print(gpu_report.write_report(folder))
        return 0
    import torch

    if not torch.cuda.is_available():
        print("no GPU: nothing is checked")
        return 0
    # A process in the background of a shell ignores interrupts, and so would the programs that it starts.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, stop_all)
    # Programs that were installed with this Python are in the same folder.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/local/cuda/bin"])
    if nvcc := shutil.which("nvcc", path=path):
        path = os.pathsep.join([path, str(Path(nvcc).resolve().parents[1] / "compute-sanitizer")])
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    env = {"PATH": path, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "2"}
    check = Check(Results(folder), os.environ | env)
    run_stages(args.stages, check, args.seconds)
    print(folder / gpu_report.REPORT)
    return int(check.bad)


if __name__ == "__main__":
    sys.exit(main())
