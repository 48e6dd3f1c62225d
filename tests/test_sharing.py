"""How threads share work, in a C++ program: the queue of tasks, the core latency, and the thread throttle."""

import os
import shlex
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_sharing(tmp_path):
    program = tmp_path / "sharing"
    threads = ROOT / "csrc/cpu/threads"
    sources = [ROOT / "tests/sharing.cpp", threads / "task_queue.cpp", threads / "core_latency.cpp"]
    options = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-pthread", "-fopenmp"]
    options += ["-DFASTRNN_ISA=test", f"-I{ROOT}/csrc"]
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    subprocess.run([*compiler, *options, *sources, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
