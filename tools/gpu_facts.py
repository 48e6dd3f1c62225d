"""Finds what an engineer needs to know about a GPU, in under a minute: a worker of `gpu_run.run_worker`.

    python tools/gpu_facts.py FACTS.json CONFORMANCE.log UNTIL

The most important facts come first. The program writes each fact as soon as it is known, and stops at UNTIL
(seconds since 1970). The facts that it did not reach are in the file under "left out".
"""

from __future__ import annotations

import contextlib
import csv
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tools.gpu_isolation import lost_context
from tools.gpu_run import LOST, NOT_RUN, beat, read_json, write_whole

# The most important ones first.
CELLS = ("lstm", "gru")
DTYPES = {"bf16": "bfloat16", "tf32": "tf32", "fp16": "float16", "ieee": "float32"}
HIDDEN = (256, 1024, 512, 64, 768)
BATCH = (16, 1, 64)
CUDNN, FASTRNN = "cuDNN", "fastrnn"
KINDS = ("cluster", "grid", "stepwise")  # of plans
PASSES = ("forward", "backward")
STEPS = (128, 512)
TIMES = 5
AHEAD = 400_000  # cycles that the device waits first, so that it never waits for the host
PROFILED = 6  # rows whose kernels are timed
SMI = (
    "driver_version clocks.sm clocks.mem clocks.max.sm clocks.max.mem power.limit temperature.gpu "
    "persistence_mode compute_mode mig.mode.current"
).split()

Facts = dict[str, Callable[[], object]]
Row = tuple[str, str, int, int]  # cell, dtype, H, B


def rows() -> list[Row]:
    """The rows of the table of times. The first rows already have some of every cell, dtype and size."""
    factors = (CELLS, tuple(DTYPES), HIDDEN, BATCH)
    places = sorted(product(*(range(len(values)) for values in factors)), key=sum)
    return [tuple(values[i] for values, i in zip(factors, place, strict=True)) for place in places]


def name_row(row: Row) -> str:
    return "{} {} H{} B{}".format(*row)


def list_facts(conformance: Path) -> Facts:
    facts: Facts = {
        "device": read_device,
        "clocks": read_clocks,
        "versions": read_versions,
        "clusters": read_clusters,
        "rounds": lambda: read_rounds(conformance.read_text()),
        "plans": read_plans,
    }
    for i, row in enumerate(rows()):
        if i == PROFILED:
            facts |= {
                f"kernels {name_row(r)} {library}": partial(time_kernels, r, library)
                for r in rows()[:PROFILED]
                for library in (FASTRNN, CUDNN)
            }
            facts["clocks at work"] = read_clocks
        facts |= {f"step {name_row(row)} {who}": partial(time_row, row, who) for who in (CUDNN, *KINDS)}
    return facts


def read_device() -> dict:
    from benchmarks.cuda import describe_gpu

    return describe_gpu()


def read_clocks() -> dict | str:
    """Clocks and driver, from nvidia-smi."""
    if not shutil.which("nvidia-smi"):
        return "nvidia-smi is not here"
    return parse_smi(output_of("nvidia-smi", f"--query-gpu={','.join(SMI)}", "--format=csv,noheader"))


def parse_smi(text: str) -> dict:
    return dict(zip(SMI, next(csv.reader(text.splitlines(), skipinitialspace=True)), strict=True))


def read_versions() -> dict:
    import torch

    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
    }
    if shutil.which("nvcc"):
        found["nvcc"] = " ".join(re.findall(r"V(\d[\d.]*)", output_of("nvcc", "--version")))
    with contextlib.suppress(ImportError):
        import fastrnn

        found |= {"fastrnn": fastrnn.__version__, "built for": " ".join(fastrnn._C.cuda_archs)}
    return found


def output_of(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout


def read_clusters() -> dict:
    """The number of clusters of each size that the device holds at once, and the limits of blocks."""
    from fastrnn import _C

    return _C.device()


def read_rounds(log: str) -> dict[str, float]:
    """Nanoseconds, from the output of the conformance program."""
    return {
        name: float(number)
        for name, number in re.findall(r"^timing\s+(.+?)\s*:\s*([\d.e+]+)\s*ns", log, re.MULTILINE)
    }


def make_problem(row: Row, T: int, training: bool):
    from benchmarks.problems import Problem, Shape

    cell, dtype, H, B = row
    given = {"training": training, "dtype": DTYPES[dtype], "device": "cuda"}
    return Problem("forward", cell, Shape(T, B, H, H), **given)


def read_plans() -> dict[str, str]:
    """The kinds of plan for forward and backward."""
    from benchmarks.cuda import describe_plans

    return {name_row(row): describe_plans(make_problem(row, STEPS[-1], True)) for row in rows()}


class Layer:
    """The layer of a row, of cuDNN or of fastrnn, with its input."""

    def __init__(self, row: Row, who: str, T: int, training: bool):
        import torch

        import fastrnn
        from benchmarks.cuda import use_products
        from benchmarks.peers import Setup, make_module

        problem = make_problem(row, T, training)
        use_products(problem.dtype)
        setup = Setup.of(problem)
        self.module = make_module(torch.nn if who == CUDNN else fastrnn, problem)
        self.module.load_state_dict(setup.module.state_dict())
        self.module.train(training)
        self.x, self.training = setup.x, training
        self.gradient = torch.ones_like(setup.x)

    def forward(self):
        import torch

        with torch.set_grad_enabled(self.training):
            return self.module(self.x)[0]

    def backward(self, y):
        self.module.zero_grad()
        self.x.grad = None
        y.backward(self.gradient)


@contextlib.contextmanager
def forced_plan(who: str):
    if who in KINDS:
        os.environ["FASTRNN_CUDA_PLAN"] = who
    try:
        yield
    finally:
        os.environ.pop("FASTRNN_CUDA_PLAN", None)


def time_row(row: Row, who: str) -> dict:
    """For forward and backward: microseconds of a step, and of the rest of a call."""
    found = {}
    for name in PASSES:
        try:
            with forced_plan(who):
                found[name] = split_time(*(time_pass(row, who, T, name == "backward") for T in STEPS))
        except RuntimeError as error:
            found[name] = {"error": first_line(error)}
    return found


def split_time(short: float, long: float) -> dict[str, float]:
    step = (long - short) / (STEPS[1] - STEPS[0])
    return {"step_us": round(step, 4), "call_us": round(short - step * STEPS[0], 2)}


def time_pass(row: Row, who: str, T: int, backward: bool) -> float:
    """The median of the microseconds by the clock of the device."""
    import torch

    layer = Layer(row, who, T, training=backward)
    took = []
    for _ in range(1 + TIMES):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        y = layer.forward() if backward else None
        torch.cuda._sleep(AHEAD)
        start.record()
        if backward:
            layer.backward(y)
        else:
            layer.forward()
        end.record()
        torch.cuda.synchronize()
        took.append(1e3 * start.elapsed_time(end))
    return median(took[1:])


def time_kernels(row: Row, who: str) -> list[dict]:
    """The kernels that run on the device in a forward and a backward, the longest first."""
    import torch

    layer = Layer(row, who, STEPS[-1], training=True)
    layer.backward(layer.forward())
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        layer.backward(layer.forward())
        torch.cuda.synchronize()
    events = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    kernels: dict[str, dict] = {}
    for event in events:
        kernel = kernels.setdefault(event.name[:120], {"name": event.name[:120], "count": 0, "us": 0.0})
        kernel["count"] += 1
        kernel["us"] = round(kernel["us"] + event.time_range.elapsed_us(), 2)
    return sorted(kernels.values(), key=lambda kernel: -kernel["us"])[:8]


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]


def add_fact(path: Path, name: str, value: object):
    data = read_json(path)
    data["known"][name] = value
    data["left out"].remove(name)
    write_whole(path, data)


def record_end(path: Path, name: str, status: str, output: str):
    """Records a fact that hung or ended the process."""
    if status != NOT_RUN:
        add_fact(path, name, {"error": f"{status}; the last words: {output.strip()[-300:]}"})


def learn(facts: Facts, path: Path, until: float, lost: Callable[[], str] = lost_context) -> int:
    """Finds the facts and returns the exit status. LOST: the last fact has lost the CUDA context."""
    if not path.is_file():
        write_whole(path, {"known": {}, "left out": list(facts)})
    for name in read_json(path)["left out"]:
        if time.time() > until:
            break
        beat(name)
        try:
            value = facts[name]()
        except Exception as error:
            value = {"error": first_line(error)}
        error = lost()
        if error:
            value = {"error": f"the context is lost: {error.splitlines()[0]}", "found": value}
        add_fact(path, name, value)
        beat()
        if error:
            return LOST
    return 0


if __name__ == "__main__":
    path, conformance, until = sys.argv[1:]
    status = learn(list_facts(Path(conformance)), Path(path), float(until))
    sys.stdout.flush()
    os._exit(status)  # do not wait for what a lost context holds
