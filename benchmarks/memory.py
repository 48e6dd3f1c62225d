"""Peak memory of training.

Each library runs in its own process, because a process has only one peak.
"""

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
    """The bytes that forward and backward need besides weights and input, by library."""
    # A spawned process does not inherit the memory of this one.
    context = multiprocessing.get_context("spawn")
    result = {}
    for library in LIBRARIES:
        with context.Pool(1) as pool:
            result[library] = pool.apply(peak_of_step, (problem, library))
    return result


def peak_of_step(problem: Problem, library: str) -> int:
    """The peak of one training step. It needs a new process."""
    torch.set_num_threads(problem.threads)
    small = Problem(**{**vars(problem), "shape": WARM_UP})
    PEERS[library](Setup.of(small))()  # a library's first call allocates what it keeps
    setup = Setup.of(problem)
    call = PEERS[library](setup)
    gc.collect()
    # Reset the peak, because the import of torch needs more memory than a small problem.
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    call()
    return status("VmHWM") - before


def status(name: str) -> int:
    """The bytes in a line of /proc/self/status."""
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
