"""A cell is one row: a header, a line of the registry and a step of the reference make a layer of it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
NEW = Path(__file__).parent / "new_cell"
COPIED = ["csrc", "fastrnn", "CMakeLists.txt", "setup.py", "pyproject.toml", "README.md", "LICENSE"]


def add(path, text, before):
    source = path.read_text()
    assert source.count(before) == 1
    path.write_text(source.replace(before, text + before))


@pytest.mark.thorough
def test_new_cell(tmp_path):
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    for built in (tmp_path / "fastrnn").glob("_C*.so"):
        built.unlink()
    shutil.copy(NEW / "toy.h", tmp_path / "csrc/cells")
    registry = tmp_path / "csrc/cells/registry.h"
    add(registry, '#include "cells/toy.h"\n', "\n// A cell is a CellInfo")
    add(registry, "  X(Toy) \\\n", "  X(Lstm)")
    with (tmp_path / "fastrnn/reference.py").open("a") as reference:
        reference.write((NEW / "toy_step.py").read_text())

    environment = os.environ | {"FASTRNN_CUDA": "0", "PYTHONPATH": str(tmp_path)}
    for command in (["setup.py", "build_ext", "--inplace"], [NEW / "check.py"]):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-10_000:]
    assert done.stdout.endswith("all right\n")
