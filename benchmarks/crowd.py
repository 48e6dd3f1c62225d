"""Two processes at once, each with all the threads that it was given: what other programs do to a call."""

from __future__ import annotations

import multiprocessing
import time

import torch

from .peers import FASTRNN, PEERS, TORCH, Setup
from .problems import Problem

LIBRARIES = (TORCH, FASTRNN)
SECONDS = 1.0  # of each measurement
PATIENCE = 120.0  # seconds until a process that has failed is given up


def crowded_times(problem: Problem) -> dict[str, dict[str, float]]:
    """Seconds of a call by library: of one process alone, and of the slower of two at once."""
    context = multiprocessing.get_context("spawn")
    meet = context.Barrier(2)
    with context.Pool(2, initializer=keep, initargs=(meet,)) as pool:
        first, second = pool.starmap(measure, [(problem, True), (problem, False)], chunksize=1)
    return {
        library: {"alone": first[library][0], "two": max(first[library][1], second[library][1])}
        for library in LIBRARIES
    }


def keep(meet: multiprocessing.Barrier):
    """A barrier travels to a process only when that starts."""
    measure.meet = meet


def measure(problem: Problem, first: bool) -> dict[str, tuple[float, float]]:
    """To run in two processes, of which the first measures alone before both do."""
    torch.set_num_threads(problem.threads)
    setup = Setup.of(problem)
    result = {}
    with torch.set_grad_enabled(problem.training):
        for library in LIBRARIES:
            call = PEERS[library](setup)
            call()
            measure.meet.wait(PATIENCE)
            alone = mean_time(call) if first else 0.0
            measure.meet.wait(PATIENCE)
            result[library] = alone, mean_time(call)
    return result


def mean_time(call) -> float:
    """Not the median: calls that wait for a core are few and long."""
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        call()
        count += 1
    return (time.perf_counter() - start) / count
