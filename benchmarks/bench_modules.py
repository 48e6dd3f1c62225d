"""Gives the samples to pytest-benchmark, for its statistics, its JSON and --benchmark-compare.

pytest-benchmark times one function after the other, so peers would not have the same conditions. Therefore
`timing.py` takes the samples first, and each call here advances a clock by one sample. `python -m benchmarks`
runs this file and chooses the problems.
"""

import pytest

from benchmarks.timing import quietest_third


class SampleClock:
    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float):
        self.now += seconds


clock = SampleClock()


@pytest.mark.benchmark(timer=clock)
def test_speed(problem, peer, samples, benchmark):
    clock.now = 0.0  # a small number, so that differences are exact
    replay = iter(samples[peer])
    benchmark.group = problem.name
    benchmark.extra_info.update(problem=problem.to_json(), peer=peer, quietest=quietest_third(samples[peer]))
    benchmark.pedantic(lambda: clock.advance(next(replay)), rounds=len(samples[peer]))
