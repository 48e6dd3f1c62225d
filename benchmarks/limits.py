"""What this machine can do, measured, and the time that a problem cannot go below."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from .problems import Problem, cores
from .timing import Call, time_calls

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
GEMM_SIZES = (1536, 2048)  # which is faster depends on the dtype
MEMORY = "memory"


@dataclass(frozen=True)
class Limits:
    """Of a number of threads, all together.

    Attributes:
        gemm: FLOP/s of matrix products, by dtype
        capacity: bytes of each level, nearest first; memory is the last, and holds everything
        bandwidth: bytes/s read from each level
    """

    gemm: dict[str, float]
    capacity: dict[str, float]
    bandwidth: dict[str, float]

    def level(self, size: int) -> str:
        """The nearest level that holds `size` bytes."""
        return next((level for level, capacity in self.capacity.items() if size <= capacity), MEMORY)

    def seconds(self, problem: Problem) -> float:
        """What `problem` takes at best.

        Of the forward: the input products at the GEMM peak, and the recurrent ones at the GEMM peak or, where
        that takes longer, reading W_hh once a step from the level that holds it. Training has three input
        products, and the recurrent ones of forward and backward; dW_hh is a plain product over all rows.
        """
        peak = self.gemm[problem.dtype]
        gate_rows = problem.directions * problem.gates * problem.shape.H
        recurrent, streamed = self.recurrent(problem), self.streamed(problem)
        total = 0.0
        for I in problem.input_sizes:
            x_gemm = 2 * problem.rows * gate_rows * I / peak
            if problem.training:
                total += 3 * x_gemm + 2 * max(recurrent, streamed) + recurrent
            else:
                total += x_gemm + max(recurrent, streamed)
        return total

    def recurrent(self, problem: Problem) -> float:
        """Seconds of a layer's products with W_hh, at the GEMM peak."""
        gate_rows = problem.directions * problem.gates * problem.shape.H
        return 2 * problem.rows * gate_rows * problem.shape.H / self.gemm[problem.dtype]

    def streamed(self, problem: Problem) -> float:
        """Seconds of reading W_hh once a step, from the level that holds it.

        A GPU can keep it in registers.
        """
        if problem.device == "cuda":
            return 0.0
        size = problem.recurrent_bytes
        return problem.steps * size / self.bandwidth[self.level(size)]

    def best(self, other: Limits) -> Limits:
        """The higher of two measurements."""
        gemm = {dtype: max(self.gemm[dtype], other.gemm[dtype]) for dtype in self.gemm}
        bandwidth = {level: max(self.bandwidth[level], other.bandwidth[level]) for level in self.bandwidth}
        return Limits(gemm, self.capacity, bandwidth)

    def to_json(self) -> dict:
        return asdict(self)


def measure_limits(problems: list[Problem]) -> dict[int, Limits]:
    """By the number of threads, for those of `problems`. More threads than cores cannot do more."""
    dtypes = dict.fromkeys(problem.dtype for problem in problems)
    before = torch.get_num_threads()
    result = {}
    for threads in sorted({min(problem.threads, cores()) for problem in problems}):
        torch.set_num_threads(threads)
        capacity = cache_sizes(threads)
        # Half of a cache, to leave room for what else is in there, and of the last, which cores may share
        # with strangers, a quarter. Memory is what exceeds the last cache by far.
        last = max(capacity.values(), default=2**25)
        sizes = {level: size / (4 if size == last else 2) for level, size in capacity.items()}
        result[threads] = Limits(
            {dtype: gemm_peak(getattr(torch, dtype)) for dtype in dtypes},
            capacity,
            {
                level: read_bandwidth(size / threads, threads)
                for level, size in {**sizes, MEMORY: 4 * last}.items()
            },
        )
    torch.set_num_threads(before)
    return result


def cache_sizes(threads: int) -> dict[str, int]:
    """Bytes of the caches that `threads` threads on neighbouring cores have together, by level."""
    result = {}
    for cache in sorted(CACHES.glob("index*")):
        kind, level, size, shared = (
            (cache / name).read_text().strip() for name in ("type", "level", "size", "shared_cpu_list")
        )
        if kind != "Instruction":
            result[f"L{level}"] = int(size.removesuffix("K")) * 1024 * math.ceil(threads / count_cpus(shared))
    return result


def count_cpus(text: str) -> int:
    """Of a list like 0-3,8-11."""
    ranges = [[int(cpu) for cpu in part.split("-")] for part in text.split(",")]
    return sum(r[-1] - r[0] + 1 for r in ranges)


def best_time(call: Call, repeats: int) -> float:
    call()
    return min(time_calls(call, torch.cpu.synchronize, 1) for _ in range(repeats))


def gemm_peak(dtype: torch.dtype) -> float:
    """FLOP/s of the best of some large matrix products of torch."""
    peak = 0.0
    for n in GEMM_SIZES:
        a, b, out = torch.randn(3, n, n).to(dtype)
        peak = max(peak, 2 * n**3 / best_time(partial(torch.mm, a, b, out=out), 3))
    return peak


def read_bandwidth(size: float, threads: int) -> float:
    """Bytes/s at which `threads` threads together read, each its own `size` bytes again and again.

    A sum along the last dimension is the plainest reader that torch has; each row is summed by one thread. A
    matrix-vector product, nearer to what layers do, comes to half of it here.
    """
    n = int(size) // 4
    passes = math.ceil(2**22 / n)
    rows = torch.ones(threads, 1, n).expand(threads, passes, n)
    out = torch.empty(threads, passes)
    return threads * passes * n * 4 / best_time(lambda: torch.sum(rows, -1, out=out), 30)
