"""Calls leave no memory behind, and need no more than torch.nn's."""

from pathlib import Path

import pytest
import torch
from cases import EVERY_CELL, Case, cotangents, run_python

import fastrnn

CALLS = 10_000
GROWTH_BYTES = 1 << 20  # 100 bytes a call: less than any buffer of a call


def resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


@pytest.mark.quick(0)
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


PEAK = """
import sys, torch, fastrnn
from pathlib import Path

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

def train(layer, x):
    y = layer(x)[0]
    y.backward(torch.ones_like(y))

library, kind, shape, H = sys.argv[1], sys.argv[2], eval(sys.argv[3]), int(sys.argv[4])
layer = getattr({"fastrnn": fastrnn, "torch.nn": torch.nn}[library], kind)(shape[2], H)
train(layer, torch.zeros(2, 2, shape[2]))
x = torch.zeros(shape, requires_grad=True)
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
train(layer, x)
print(status("VmHWM") - before)
"""


@pytest.mark.quick(0)
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs /proc")
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_step_of_many_sequences(kind):
    """Scratch memory of a single step is for some of its sequences at a time."""
    shape, H = (1, 20_000, 64), 256

    def peak(library):
        result = run_python("-c", PEAK, library, kind, str(shape), str(H))
        assert result.returncode == 0, result.stderr
        return int(result.stdout)

    assert peak("fastrnn") <= 1.1 * peak("torch.nn")
