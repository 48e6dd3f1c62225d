"""Matrix products of all forms and sizes against double, in a C++ program for each instruction set."""

import subprocess

import pytest
from runners import build

from fastrnn import _C

ISAS = _C.isas_available()
NEWEST = ISAS[-1].split("_")[0]  # and what adds instructions to it


@pytest.mark.parametrize(
    "isa",
    [isa if isa.split("_")[0] == NEWEST else pytest.param(isa, marks=pytest.mark.thorough) for isa in ISAS],
)
def test_gemm(isa):
    program = build(f"gemm_test_{isa}")
    done = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "numbers are right" in done.stdout
