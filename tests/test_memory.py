"""Calls leave no memory behind."""

from pathlib import Path

import pytest
import torch
from cases import EVERY_CELL, Case, cotangents

import fastrnn

CALLS = 10_000
GROWTH_BYTES = 1 << 20  # 100 bytes a call: less than any buffer of a call


def resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_no_growth(cell):
    """Of calls that train, once the first of them have filled malloc's and torch's own pools."""
    _, call, x, hx = Case(cell, T=2, B=2, I=4, H=4).prepare(fastrnn)

    def train():
        values = call(x, hx)
        torch.autograd.backward(values, cotangents(values))

    for _ in range(CALLS // 10):
        train()
    before = resident_bytes()
    for _ in range(CALLS):
        train()
    assert resident_bytes() - before < GROWTH_BYTES
