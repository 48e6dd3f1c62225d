"""Timing that gives every peer the same machine.

Peers take turns in one process, in blocks, in an order shuffled anew each round. A block starts with a pause,
in which the worker threads of the peer before stop spinning, and an untimed call, which brings the weights
back into cache.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable

import torch

PAUSE_S = 0.02
BLOCK_S = 0.05
SAMPLE_S = 0.002  # calls shorter than this are timed several at once
GEMM_SIZE = 2048


def interleave(
    calls: dict[str, Callable[[], object]], seconds: float, min_rounds: int
) -> dict[str, list[float]]:
    """Samples of the seconds of one call, for each of `calls`: at least `min_rounds`, and `seconds` long."""
    estimates = {name: estimate(call) for name, call in calls.items()}
    repeats = {name: math.ceil(SAMPLE_S / t) for name, t in estimates.items()}
    counts = {name: max(1, int(BLOCK_S / (repeats[name] * t))) for name, t in estimates.items()}
    samples = {name: [] for name in calls}
    order = list(calls)
    shuffle = random.Random(0).shuffle
    end = time.perf_counter() + seconds
    rounds = 0
    gc.disable()
    try:
        while rounds < min_rounds or time.perf_counter() < end:
            shuffle(order)
            for name in order:
                samples[name] += block(calls[name], counts[name], repeats[name])
            rounds += 1
    finally:
        gc.enable()
    return samples


def block(call: Callable[[], object], count: int, repeats: int) -> list[float]:
    time.sleep(PAUSE_S)
    call()
    return [time_calls(call, repeats) for _ in range(count)]


def time_calls(call: Callable[[], object], repeats: int) -> float:
    """Seconds of one call, mean of `repeats`."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def estimate(call: Callable[[], object]) -> float:
    """Seconds of one call, roughly; warms up."""
    call()
    return min(time_calls(call, 1) for _ in range(2))


def gemm_peak() -> float:
    """FLOP/s of the best of ten large float32 matrix products."""
    a, b = torch.randn(2, GEMM_SIZE, GEMM_SIZE)
    out = torch.empty_like(a)
    seconds = min(time_calls(lambda: torch.mm(a, b, out=out), 1) for _ in range(10))
    return 2 * GEMM_SIZE**3 / seconds
