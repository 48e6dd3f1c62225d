"""Contention: two processes at once, each with all the threads that the run was given.

This shows how much a call slows down when another program uses the same cores.
"""

from __future__ import annotations

import multiprocessing
import time

import torch

from .peers import FASTRNN, PEERS, TORCH, Setup
from .problems import Problem
from .timing import Call

LIBRARIES = (TORCH, FASTRNN)
SECONDS = 1.0
BARRIER_TIMEOUT_S = 120.0  # then the other process has failed


def contended_times(problem: Problem, seconds: float = SECONDS) -> dict[str, dict[str, float]]:
    """Seconds of a call, by library: "alone" in one process, "two" in the slower of two at once.

    Each measurement takes `seconds`.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    with context.Pool(2, initializer=set_barrier, initargs=(barrier,)) as pool:
        first, second = pool.starmap(measure, [(problem, seconds, True), (problem, seconds, False)], 1)
    return {
        library: {"alone": first[library][0], "two": max(first[library][1], second[library][1])}
        for library in LIBRARIES
    }


def set_barrier(barrier: multiprocessing.Barrier):
    """A process can receive a barrier only when it starts."""
    measure.barrier = barrier


def measure(problem: Problem, seconds: float, first: bool) -> dict[str, tuple[float, float]]:
    """Runs in both processes. The first measures alone, then both measure at once."""
    torch.set_num_threads(problem.threads)
    setup = Setup.of(problem)
    result = {}
    with torch.set_grad_enabled(problem.training):
        for library in LIBRARIES:
            call = PEERS[library](setup)
            call()
            measure.barrier.wait(BARRIER_TIMEOUT_S)
            alone = mean_time(call, seconds) if first else 0.0
            measure.barrier.wait(BARRIER_TIMEOUT_S)
            result[library] = alone, mean_time(call, seconds)
    return result


def mean_time(call: Call, seconds: float) -> float:
    """The mean and not the median, because the few calls that wait for a core are long."""
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        call()
        count += 1
    return (time.perf_counter() - start) / count
