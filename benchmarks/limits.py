"""The limits of this machine, measured, and the least time that a problem can take."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from .problems import Problem, cores
from .timing import Call, time_calls

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
GEMM_SIZES = (256, 1536, 2048)  # which is fastest depends on the dtype
LONGEST_GEMM_S = 2.0
MEMORY = "memory"


@dataclass(frozen=True)
class Limits:
    """What a number of threads reach together.

    Attributes:
        gemm: FLOP/s of matrix products, by dtype
        capacity: bytes of each level of cache, nearest first
        bandwidth: bytes/s read from each level of cache and from memory
    """

    gemm: dict[str, float]
    capacity: dict[str, float]
    bandwidth: dict[str, float]

    def level(self, size: int) -> str:
        """The nearest level that holds `size` bytes."""
        return next((level for level, capacity in self.capacity.items() if size <= capacity), MEMORY)

    def seconds(self, problem: Problem) -> float:
        """The least time that `problem` can take.

        The forward computes the input products at the GEMM peak. It computes the recurrent products at the
        GEMM peak, or reads W_hh in each step from the level that holds it: the longer time counts. Training
        has three input products, and the recurrent products of the forward and of the backward. dW_hh is one
        product over all rows, at the GEMM peak.
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
        """Seconds of the products of a layer with W_hh, at the GEMM peak."""
        gate_rows = problem.directions * problem.gates * problem.shape.H
        return 2 * problem.rows * gate_rows * problem.shape.H / self.gemm[problem.dtype]

    def streamed(self, problem: Problem) -> float:
        """Seconds of reading W_hh in each step, from the level that holds it.

        0 on a GPU, which can keep W_hh in registers.
        """
        if problem.device == "cuda":
            return 0.0
        size = problem.recurrent_bytes
        return problem.steps * size / self.bandwidth[self.level(size)]

    def best(self, other: Limits) -> Limits:
        """The higher value of two measurements, for each limit."""
        gemm = {dtype: max(self.gemm[dtype], other.gemm[dtype]) for dtype in self.gemm}
        bandwidth = {level: max(self.bandwidth[level], other.bandwidth[level]) for level in self.bandwidth}
        return Limits(gemm, self.capacity, bandwidth)

    def to_json(self) -> dict:
        return asdict(self)


def measure_limits(problems: list[Problem]) -> dict[int, Limits]:
    """The limits for each number of threads in `problems`, at most the number of cores."""
    dtypes = dict.fromkeys(problem.dtype for problem in problems)
    before = torch.get_num_threads()
    result = {}
    for threads in sorted({min(problem.threads, cores()) for problem in problems}):
        torch.set_num_threads(threads)
        capacity = cache_sizes(threads)
        # Reading half of a cache leaves room for other data. Other programs may use the last cache too, so
        # read a quarter of it. For memory, read much more than the last cache holds.
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
    """Bytes of cache, by level, that `threads` threads on neighbouring cores have together."""
    result = {}
    for cache in sorted(CACHES.glob("index*")):
        kind, level, size, shared = (
            (cache / name).read_text().strip() for name in ("type", "level", "size", "shared_cpu_list")
        )
        if kind != "Instruction":
            result[f"L{level}"] = int(size.removesuffix("K")) * 1024 * math.ceil(threads / count_cpus(shared))
    return result


def count_cpus(text: str) -> int:
    """The number of CPUs in a list like 0-3,8-11."""
    ranges = [[int(cpu) for cpu in part.split("-")] for part in text.split(",")]
    return sum(r[-1] - r[0] + 1 for r in ranges)


def best_time(call: Call, repeats: int) -> float:
    call()
    return min(time_calls(call, torch.cpu.synchronize, 1) for _ in range(repeats))


def gemm_peak(dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of torch's large matrix products.

    Without large ones for a dtype that torch multiplies slowly here: bfloat16 without AVX-512 runs at a
    hundredth of float32's rate, and would take minutes.
    """
    peak = 0.0
    for n in GEMM_SIZES:
        if peak and 2 * n**3 / peak > LONGEST_GEMM_S:
            break
        a, b, out = torch.randn(3, n, n).to(dtype)
        peak = max(peak, 2 * n**3 / best_time(partial(torch.mm, a, b, out=out), 3))
    return peak


def read_bandwidth(size: float, threads: int) -> float:
    """Bytes/s that `threads` threads read together. Each reads its own `size` bytes again and again.

    The sum along the last dimension is torch's simplest function that reads: one thread sums each row. A
    matrix-vector product, which layers use, reads at about half of this rate.
    """
    n = int(size) // 4
    passes = math.ceil(2**22 / n)
    rows = torch.ones(threads, 1, n).expand(threads, passes, n)
    out = torch.empty(threads, passes)
    return threads * passes * n * 4 / best_time(lambda: torch.sum(rows, -1, out=out), 30)
