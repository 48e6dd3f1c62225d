"""How threads share work, in a C++ program: the queue of tasks, the core latency, and the thread throttle."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
THREADS = "csrc/cpu/threads"
SOURCES = ["tests/csrc/cpu/sharing.cpp", f"{THREADS}/task_queue.cpp", f"{THREADS}/core_latency.cpp"]


@pytest.mark.threads
def test_sharing(tmp_path):
    program = tmp_path / "sharing"
    options = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-pthread", "-fopenmp"]
    options += ["-DFASTRNN_ISA=test", f"-I{ROOT}/csrc"]
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    subprocess.run([*compiler, *options, *(ROOT / source for source in SOURCES), "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
