"""Matrix products of all forms and sizes against double, in a C++ program for each instruction set."""

import subprocess

import pytest
from runners import build

from fastrnn import _C


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("gemm")


@pytest.mark.parametrize("isa", _C.isas_available())
def test_gemm(folder, isa):
    program = build(folder, f"gemm_test_{isa}")
    done = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "numbers are right" in done.stdout
