"""All that only a GPU can tell, in one command and under nine minutes: builds, checks, and times fastrnn.

    make gpu-check        or        python tools/gpu_check.py [--out FOLDER]

It takes the Python that runs it with the torch that is installed there, and downloads nothing. Every stage
has its share of the time; what one has found is kept if a later one fails. Where there is no GPU it says so
and is done.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 530  # in all
PACKAGES = "torch numpy setuptools pybind11 pytest pytest_benchmark hypothesis rich matplotlib".split()
PROGRAMS = "cmake ninja nvcc".split()
# Of tests/, those that also run on a GPU, beside test_cuda.py; the longest first.
TESTS = (
    "parity numerics sequences gradcheck modules half autograd func interface wrapping ops functional errors "
    "autocast plan stateful storage per_sample empty_sizes"
).split()
SANITIZER_TOOLS = ("memcheck", "racecheck", "initcheck")
LAST_LINES = 25  # of what failed, on the terminal

# Forward and backward by each tier that the device has; run with the sanitizer.
SMALL_CASE = """
import itertools, os, torch, fastrnn
capability = torch.cuda.get_device_capability()
for tier, least in enumerate([(7, 0), (8, 0), (9, 0)]):
    if capability < least:
        continue
    os.environ["FASTRNN_CUDA_TIER"] = str(tier)
    for name, dtype, H in itertools.product(
        ("LSTM", "GRU", "RNN"), (torch.float32, torch.bfloat16), (17, 150)
    ):
        layer = getattr(fastrnn, name)(7, H, bidirectional=True, device="cuda", dtype=dtype)
        x = torch.randn(3, 9, 7, device="cuda", dtype=dtype, requires_grad=True)
        layer(x)[0].sum().backward()
torch.cuda.synchronize()
"""


@dataclass
class Command:
    """One program, or several one after the other, as long as they succeed.

    `missing` says why it cannot run here.
    """

    name: str
    arguments: list[list[str | Path]]
    env: dict[str, str] = field(default_factory=dict)
    missing: str = ""


@dataclass
class Outcome:
    name: str
    status: str
    seconds: float
    output: str = ""

    @property
    def bad(self) -> bool:
        return self.status.startswith(("FAILED", "STOPPED"))


@dataclass
class Stage:
    """Commands that run at the same time, `width` of them.

    seconds: at most; reserved: that the stages before leave for it
    """

    name: str
    seconds: float
    commands: list[Command]
    width: int = 8
    reserved: float = 0.0


def run_command(command: Command, end: float, env: dict[str, str]) -> Outcome:
    start = time.monotonic()
    if command.missing:
        return Outcome(command.name, f"skipped: {command.missing}", 0.0)
    output, status = "", "passed"
    for arguments in command.arguments:
        code, text = run_program(arguments, end, env | command.env)
        output += text
        if code is None:
            status = "STOPPED: no time left"
            break
        if code != 0:
            status = f"FAILED with exit status {code}"
            break
    return Outcome(command.name, status, time.monotonic() - start, output)


def run_program(arguments: list[str | Path], end: float, env: dict[str, str]) -> tuple[int | None, str]:
    """Exit status, None if it had to be stopped, and output. It is interrupted first: pytest then still
    writes what it has."""
    if time.monotonic() >= end:
        return None, ""
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        print("$", *arguments, file=log, flush=True)
        process = subprocess.Popen(
            arguments, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        code = None
        for stop, patience in ((None, end - time.monotonic()), (signal.SIGINT, 15), (signal.SIGKILL, 15)):
            if stop:
                os.killpg(process.pid, stop)
            try:
                status = process.wait(max(0.0, patience))
                code = None if stop else status
                break
            except subprocess.TimeoutExpired:
                continue
        log.seek(0)
        return code, log.read()


def run_stages(stages: list[Stage], seconds: float, folder: Path, env: dict[str, str]) -> list[Outcome]:
    """Writes `log.txt`, all that was printed, and `summary.txt`."""
    # What a shell runs in the background ignores interrupts, and so would the programs.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    deadline = time.monotonic() + seconds
    outcomes = []
    with open(folder / "log.txt", "w") as log:
        for i, stage in enumerate(stages):
            print(f"==> {stage.name}", flush=True)
            reserved = sum(later.reserved for later in stages[i + 1 :])
            end = min(deadline - reserved, time.monotonic() + stage.seconds)
            with ThreadPoolExecutor(stage.width) as pool:
                running = [pool.submit(run_command, command, end, env) for command in stage.commands]
            found = [future.result() for future in running]
            for outcome in found:
                print(f"==> {stage.name}: {outcome.name}\n{outcome.output}", file=log, flush=True)
                print(f"    {outcome.name}: {outcome.status} ({outcome.seconds:.0f} s)", flush=True)
                if outcome.bad:
                    print(*outcome.output.splitlines()[-LAST_LINES:], sep="\n", flush=True)
            outcomes += found
    lines = [f"{outcome.name:32}{outcome.seconds:6.0f} s  {outcome.status}" for outcome in outcomes]
    (folder / "summary.txt").write_text("\n".join(lines) + "\n")
    print("", *lines, sep="\n")
    return outcomes


def pytest_command(name: str) -> Command:
    options = ["-q", "-m", "cuda", "-p", "no:cacheprovider", "--durations=5", "--durations-min=5"]
    return Command(f"tests/{name}.py", [[sys.executable, "-m", "pytest", *options, f"tests/{name}.py"]])


def sanitizer_command(tool: str) -> Command:
    program = find_sanitizer()
    arguments = [program or "compute-sanitizer", f"--tool={tool}", "--error-exitcode=1", "--print-limit=20"]
    if tool != "initcheck":  # which has to see what other kernels have written
        arguments.append("--kernel-name=kns=fastrnn")
    arguments += [sys.executable, "-c", SMALL_CASE]
    # Each tensor a piece of memory of its own, so that nothing lies beside it unnoticed.
    env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return Command(tool, [arguments], env, "" if program else "compute-sanitizer is not here")


def find_sanitizer() -> str | None:
    toolkit = Path(shutil.which("nvcc")).resolve().parent.parent
    places = [os.environ["PATH"], toolkit / "bin", toolkit / "compute-sanitizer"]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(map(str, places)))


def make_stages(folder: Path, scratch: Path, arch: str) -> list[Stage]:
    conformance = scratch / "conformance"
    compile_conformance = ["nvcc", "-std=c++20", "-O2", f"-arch=sm_{arch.replace('.', '')}", "-Icsrc"]
    compile_conformance += ["-Itests/csrc", "-o", conformance, "tests/csrc/conformance.cu"]
    json = folder / "gpu.json"
    results = [f"--json={json}", f"--plots={folder}"]
    return [
        Stage(
            "build, and the primitives of the kernels",
            180,
            [
                Command(
                    "build",
                    [[sys.executable, "setup.py", "build_ext", "--inplace"]],
                    {"FASTRNN_CUDA": "1", "TORCH_CUDA_ARCH_LIST": arch},
                ),
                Command("conformance", [compile_conformance, [conformance], [conformance, "lost_signal"]]),
            ],
        ),
        # Alone, because it looks at the device's memory and at who waits for whom.
        Stage("what only a GPU shows", 100, [pytest_command("test_cuda")]),
        # A process for each file, so that what a kernel that fails leaves behind stays in it.
        Stage("the other tests", 130, [pytest_command(f"test_{name}") for name in TESTS], width=4),
        Stage("compute-sanitizer", 60, [sanitizer_command(tool) for tool in SANITIZER_TOOLS]),
        Stage(
            "benchmarks",
            270,
            [Command("benchmarks", [[sys.executable, "-m", "benchmarks", "--device=cuda", *results]])],
            reserved=120,
        ),
        # Again, for a run that was stopped before it wrote its report.
        Stage(
            "report",
            20,
            [Command("report", [[sys.executable, "-m", "benchmarks.report", json, f"--plots={folder}"]])],
            reserved=20,
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tools/gpu_check.py", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=ROOT / "out/gpu-check", help="where results go (%(default)s)"
    )
    folder = parser.parse_args().out.resolve()

    if not torch.cuda.is_available():
        print("no GPU: nothing is checked")
        return 0
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    # What was installed with this Python is beside it.
    places = [str(Path(sys.executable).parent), os.environ["PATH"], "/usr/local/cuda/bin"]
    os.environ["PATH"] = os.pathsep.join(places)
    missing += [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        sys.exit(f"error: not here: {', '.join(missing)}")
    major, minor = torch.cuda.get_device_capability()
    folder.mkdir(parents=True, exist_ok=True)
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    env = os.environ | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "4"}
    with tempfile.TemporaryDirectory() as scratch:
        stages = make_stages(folder, Path(scratch), f"{major}.{minor}" + "a" * (major == 9))
        outcomes = run_stages(stages, SECONDS, folder, env)
    return int(any(outcome.bad for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
