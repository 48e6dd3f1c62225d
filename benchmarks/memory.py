"""Peak memory of training: a process of its own for each library, as a peak cannot be told apart later."""

from __future__ import annotations

import gc
import multiprocessing
import re
from pathlib import Path

import torch

from .peers import FASTRNN, PEERS, TORCH, Setup
from .problems import Problem, Shape

LIBRARIES = (TORCH, FASTRNN)
WARM_UP = Shape(2, 2, 8, 8)


def peak_memory(problem: Problem) -> dict[str, int]:
    """The bytes that forward and backward need beyond weights and input, by library."""
    # Spawned, so that nothing of this process is in theirs.
    context = multiprocessing.get_context("spawn")
    result = {}
    for library in LIBRARIES:
        with context.Pool(1) as pool:
            result[library] = pool.apply(peak_of_step, (problem, library))
    return result


def peak_of_step(problem: Problem, library: str) -> int:
    """To run in a fresh process."""
    torch.set_num_threads(problem.threads)
    small = Problem(**{**vars(problem), "shape": WARM_UP})
    PEERS[library](Setup.of(small))()  # what libraries set up once is not of the step
    setup = Setup.of(problem)
    call = PEERS[library](setup)
    gc.collect()
    # Starts the high-water mark anew: importing torch needed more for a moment than small problems do.
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    call()
    return status("VmHWM") - before


def status(name: str) -> int:
    """Bytes, of a line of /proc/self/status."""
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
