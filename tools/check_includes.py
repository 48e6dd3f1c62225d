"""Check the includes in csrc/ and the imports in Python against docs/design.md. Print every violation."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# A folder of csrc/ -> the folders it may include.
FOLDERS = {
    "cells": {"cells"},
    "core": {"cells", "core"},
    "cpu": {"cells", "core", "cpu"},
    "cuda": {"cells", "core", "cuda"},
    "torch": {"cells", "core", "cpu", "cuda", "torch"},
}
TORCH = r"(torch|ATen|c10|caffe2|pybind11)/|Python\.h$"
CUDA = r"cuda|cub/|thrust/|cooperative_groups|mma\.h$"
SIMD_AND_THREADS = r"\w*intrin\.h$|arm_neon|arm_sve|omp\.h$"
# A folder of csrc/ -> the outside headers that it must not include.
FORBIDDEN_HEADERS = {
    "cells": "|".join((TORCH, CUDA, SIMD_AND_THREADS)),
    "core": "|".join((TORCH, CUDA, SIMD_AND_THREADS)),
    "cpu": "|".join((TORCH, CUDA)),
    "cuda": "|".join((TORCH, SIMD_AND_THREADS)),
}
INCLUDE = re.compile(r'\s*#\s*include\s*[<"]([^>"]+)[>"]')

# fastrnn's modules in order: each may import those before it.
MODULES = """
    headers late signatures transforms.fx
    cells reference export.nodes sequences plain functional
    export.fake export.onnx onnx transforms.flops transforms.per_sample transforms.vmap
    modules layers own_cell
    export.from_onnx
    conversion frozen stateful installation keras_weights transforms.quantization
    plan
""".split()
# What programs outside the package may import. `reference` has the judges of the cells.
PUBLIC = {
    "fastrnn",
    "fastrnn.cells",
    "fastrnn.functional",
    "fastrnn.layers",
    "fastrnn.onnx",
    "fastrnn.plan",
    "fastrnn.reference",
}


def check_cpp(path: Path) -> Iterator[str]:
    folder = path.relative_to(ROOT / "csrc").parts[0]
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not (match := INCLUDE.match(line)):
            continue
        header = match[1]
        beside, below = (path.parent / header).resolve(), ROOT / "csrc" / header
        target = beside if beside.is_file() else below
        if target.is_file() and target.is_relative_to(ROOT / "csrc"):
            other = target.relative_to(ROOT / "csrc").parts[0]
            wrong = other not in FOLDERS[folder]
        else:
            wrong = folder in FORBIDDEN_HEADERS and re.match(FORBIDDEN_HEADERS[folder], header)
        if wrong:
            yield f"{path.relative_to(ROOT)}:{number}: csrc/{folder} must not include {header}"


def name_of(path: Path) -> str:
    """fastrnn/export/onnx.py -> fastrnn.export.onnx; __init__.py has the name of its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every import; `from a import b` gives both `a` and `a.b`."""
    folders = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            package = folders[: len(folders) + 1 - node.level] if node.level else ()
            source = ".".join((*package, *filter(None, [node.module])))
            yield node.lineno, source
            for alias in node.names:
                yield node.lineno, f"{source}.{alias.name}"


def check_package(path: Path) -> Iterator[str]:
    if path.stem in ("__init__", "__main__"):
        return
    name = name_of(path)
    module = name.removeprefix("fastrnn.")
    if module not in MODULES:
        yield f"{path.relative_to(ROOT)}:1: {module} has no place in MODULES of tools/check_includes.py"
        return
    later = {f"fastrnn.{other}" for other in MODULES[MODULES.index(module) + 1 :]}
    for number, imported in imports(path):
        if imported in later:
            yield f"{path.relative_to(ROOT)}:{number}: {name} must not import {imported}"


def check_program(path: Path) -> Iterator[str]:
    private = {name_of(file) for file in (ROOT / "fastrnn").glob("**/*.py")} | {"fastrnn._C"}
    for number, name in imports(path):
        if name in private - PUBLIC:
            yield f"{path.relative_to(ROOT)}:{number}: {name} is not public"


def main() -> int:
    checks = (
        (check_cpp, "csrc/*/**/*.*"),
        (check_package, "fastrnn/**/*.py"),
        (check_program, "benchmarks/**/*.py"),
        (check_program, "examples/**/*.py"),
    )
    violations = [v for check, files in checks for path in sorted(ROOT.glob(files)) for v in check(path)]
    print("\n".join(violations) or "includes and imports follow docs/design.md")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
