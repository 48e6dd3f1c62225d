"""How threads share work, in C++ of its own: the board of tasks, and fewer threads while some get no core."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SOURCES = ["tests/csrc/cpu/sharing.cpp", "csrc/cpu/board.cpp", "csrc/cpu/distance.cpp"]


@pytest.mark.threads
def test_sharing(tmp_path):
    program = tmp_path / "sharing"
    options = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-pthread", "-fopenmp"]
    options += ["-DFASTRNN_ISA=test", f"-I{ROOT}/csrc"]
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    subprocess.run([*compiler, *options, *(ROOT / source for source in SOURCES), "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
