"""Timing that gives all peers the same conditions.

Peers take turns in one process, in blocks. Each round has a new random order. A block times one peer. It
starts with a pause and an untimed call: in the pause, the worker threads of the previous peer stop spinning;
the call brings the weights back into cache.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable

PAUSE_S = 0.02
PAUSES = 25  # at most; the threads of onnxruntime spin for about two pauses
BLOCK_S = 0.05
SAMPLE_S = 0.002  # a sample of shorter calls times several of them together

Call = Callable[[], object]


def interleave(
    calls: dict[str, Call], synchronize: Call, seconds: float, min_rounds: int
) -> dict[str, list[float]]:
    """For each of `calls`, samples of the seconds that it takes.

    The calls take turns for at least `min_rounds` rounds and at least `seconds`. `synchronize` returns when
    the device has finished.
    """
    estimates = {name: estimate(call, synchronize) for name, call in calls.items()}
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
                samples[name] += block(calls[name], synchronize, counts[name], repeats[name])
            rounds += 1
    finally:
        gc.enable()
    return samples


def block(call: Call, synchronize: Call, count: int, repeats: int) -> list[float]:
    pause()
    call()
    return [time_calls(call, synchronize, repeats) for _ in range(count)]


def pause():
    """Wait until this process uses no CPU time: then the threads of the previous peer are asleep."""
    for _ in range(PAUSES):
        before = time.process_time()
        time.sleep(PAUSE_S)
        if time.process_time() - before < PAUSE_S / 10:
            return


def time_calls(call: Call, synchronize: Call, repeats: int) -> float:
    """Seconds of one call, as the mean of `repeats` calls."""
    synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize()
    return (time.perf_counter() - start) / repeats


def estimate(call: Call, synchronize: Call) -> float:
    """Approximate seconds of one call. The first call warms up."""
    call()
    return min(time_calls(call, synchronize, 1) for _ in range(2))


def quietest_third(samples: list[float]) -> float:
    """The mean of the smallest third of `samples`: the time of a call while nothing else runs."""
    chosen = sorted(samples)[: math.ceil(len(samples) / 3)]
    return sum(chosen) / len(chosen)
