"""Timing on a GPU: events, graphs, the precision of products, and the limits of the device."""

from __future__ import annotations

import gc
import random
import time
from functools import partial

import torch

from fastrnn.plan import make_plans

from .limits import MEMORY, Limits
from .problems import NotSupported, Problem, cores, torch_dtype
from .timing import Call

BLOCK_S = 0.03
MOST_CALLS = 100  # of a block
GEMM_SIZES = (4096, 8192)
COPY_BYTES = 2**30
PLAN_DTYPES = {"float64": "fp64", "float32": "fp32", "tf32": "tf32", "float16": "fp16", "bfloat16": "bf16"}


def use_products(dtype: str):
    """Let matrix products and torch.nn's layers compute float32 in full precision, or in tf32."""
    precision = "tf32" if dtype == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = precision
    torch.backends.cudnn.rnn.fp32_precision = precision


def captured(call: Call) -> Call:
    """A replay of `call` from a CUDA graph."""
    stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):  # a warm-up: the graph must not contain what runs only once
        call()
        call()
    current.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            result = call()
    except RuntimeError as error:
        torch.cuda.set_stream(current)  # a failed capture leaves its own stream
        raise NotSupported(f"cannot be captured in a CUDA graph: {str(error).splitlines()[0]}") from error

    def replay():
        graph.replay()
        return result

    return replay


def interleave(
    calls: dict[str, Call], seconds: float, min_rounds: int, flush_l2: bool
) -> dict[str, list[float]]:
    """For each of `calls`, samples of the seconds that it takes by the device's clock.

    The calls take turns, in blocks that begin with an untimed call, for at least `min_rounds` rounds and at
    least `seconds`. Each round has a new random order.
    """
    flush = flusher() if flush_l2 else None
    counts = {}
    for name, call in calls.items():
        call()
        duration = min(time_calls(call, 2, flush))
        counts[name] = min(MOST_CALLS, max(1, int(BLOCK_S / duration)))
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
                calls[name]()
                samples[name] += time_calls(calls[name], counts[name], flush)
            rounds += 1
    finally:
        gc.enable()
    return samples


def time_calls(call: Call, count: int, flush: Call | None = None) -> list[float]:
    """The seconds of each of `count` calls in a row, from the device's events. If the launch of a call takes
    longer than its work, the time of the launch counts."""
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
    for start, end in events:
        if flush:
            flush()
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in events]


def flusher() -> Call:
    """A call that writes twice as many bytes as the L2 cache holds."""
    size = torch.cuda.get_device_properties().L2_cache_size
    return torch.empty(2 * size, dtype=torch.uint8, device="cuda").zero_


def measure_limits(problems: list[Problem]) -> dict[int, Limits]:
    """Like `limits.measure_limits`. The threads of the CPU make no difference to a GPU."""
    gemm = {dtype: gemm_peak(dtype) for dtype in dict.fromkeys(problem.dtype for problem in problems)}
    limits = Limits(gemm, {}, {MEMORY: copy_bandwidth()})
    return {min(problem.threads, cores()): limits for problem in problems}


def best_time(call: Call) -> float:
    call()
    return min(time_calls(call, 5))


def gemm_peak(dtype: str) -> float:
    """FLOP/s of the fastest of torch's large matrix products, on random numbers."""
    use_products(dtype)
    peak = 0.0
    for n in GEMM_SIZES:
        a, b = torch.randn(2, n, n, device="cuda").to(torch_dtype(dtype))
        peak = max(peak, 2 * n**3 / best_time(partial(torch.mm, a, b, out=torch.empty_like(a))))
    return peak


def copy_bandwidth() -> float:
    """Bytes/s that a copy within the device's memory reads and writes."""
    source, target = torch.randint(256, (2, COPY_BYTES), dtype=torch.uint8, device="cuda")
    return 2 * COPY_BYTES / best_time(lambda: target.copy_(source))


def describe_gpu() -> dict:
    properties = torch.cuda.get_device_properties()
    return {
        "name": properties.name,
        "sms": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
    }


def describe_device(flush_l2: bool) -> dict:
    return describe_gpu() | {
        "l2_state": "flushed before each call" if flush_l2 else "warm",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def describe_plans(problem: Problem) -> str:
    """The kinds of plan on this device: of the forward, and in training of the backward."""
    plans = make_plans(
        problem.cell,
        problem.shape.T,
        problem.shape.B,
        problem.shape.H,
        PLAN_DTYPES[problem.dtype],
        problem.directions,
    )
    passes = ("forward", "backward") if problem.training else ("forward",)
    return "/".join(plans[name]["kind"] for name in passes)
