"""Matrix products of all forms and sizes against double, in a C++ program for each instruction set."""

import subprocess

import pytest
from runners import build

from fastrnn import _C

*OTHERS, NEWEST = _C.isas_available()


@pytest.mark.parametrize("isa", [NEWEST, *(pytest.param(isa, marks=pytest.mark.thorough) for isa in OTHERS)])
def test_gemm(isa):
    program = build(f"gemm_test_{isa}")
    done = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "numbers are right" in done.stdout
