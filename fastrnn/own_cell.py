"""Layers of cells that a program brings along, in a header of its own."""

import fcntl
import json
import os
import re
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from . import _C, cells, headers
from .layers import RecurrentLayer

__all__ = ["BuildError", "build_cell"]

_STRUCT = re.compile(r"^\s*struct\s+(\w+)\s*:\s*CellConstants\s*<", re.MULTILINE)
# A subscript beyond an array is an error: that the cell saves more than CellInfo::saved, say.
_FLAGS = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-Werror=array-bounds"]
# Text of a header -> its class, and the text and the struct of a class
_CLASSES: dict[tuple[str, str], type[RecurrentLayer]] = {}
_SOURCES: dict[type, tuple[str, str]] = {}


class BuildError(RuntimeError):
    """Raised if a cell cannot be compiled; the message has that of the compiler."""


def build_cell(path: str | os.PathLike[str], struct: str | None = None) -> type[RecurrentLayer]:
    """Compile a cell from a header of your own, and make a layer of it::

        CoupledLSTM = fastrnn.build_cell("coupled_lstm.h")
        layer = CoupledLSTM(64, 128, num_layers=2, bidirectional=True)

    The header has the form of those in `csrc/cells/`. `cell.h` there says what the functions of a cell get,
    and `examples/own_cell/` has two cells. It may include fastrnn's headers and those of C++. A cell that you
    change while a process has it needs another name, or another process.

    The layer has what fastrnn's own layers have on the CPU: kernels for all instruction sets, packed
    sequences, `lengths=`, stacks, both directions, the options of RecurrentLayer, `torch.func`, derivatives
    of any order. There are no CUDA kernels: on a GPU torch's operations compute the same functions, slower.
    Complex and sparse tensors are a NotImplementedError.

    A C++ compiler is needed, `$CXX` or else `c++`; it takes some seconds. What it made is kept by content in
    the folder of torch's extensions (`$TORCH_EXTENSIONS_DIR`). Processes that build the same cell at the same
    time wait for each other. A layer is pickled with the text of its header, and the cell is built where the
    layer is loaded, unless it is there.

    Args:
        path: of the header
        struct: the name of the cell in it; needed if there are several

    Returns: a subclass of `fastrnn.layers.RecurrentLayer`, the same one for the same header. Its name is
    `CellInfo::layer` of the cell; `fastrnn.cells.CELLS` has the other facts.

    Raises:
        FileNotFoundError: there is no such header
        BuildError: the header has no cell, or several; there is no compiler, or it refuses the header; or
            another cell has the name
    """
    path = Path(path)
    return _build(path.read_text(), struct, str(path))


def _build(text: str, struct: str | None, path: str) -> type[RecurrentLayer]:
    struct = struct or _find_struct(text, path)
    if (text, struct) not in _CLASSES:
        library = _find_library(text, struct, path)
        try:
            row = _C.add_cell(str(library))
        except RuntimeError as error:
            raise BuildError(f"{path}: {error}") from None
        info = cells.add(row)
        names = ", ".join(f"`{p.name}_l0`" for p in info.parameters)
        doc = f"{_comment_of(text)}\n\nArguments: those of RecurrentLayer. Parameters: {names}."
        body = {"cell": info.name, "__doc__": doc, "__module__": __name__, "__reduce_ex__": _reduce}
        made = _CLASSES.setdefault((text, struct), type(info.layer, (RecurrentLayer,), body))
        _SOURCES[made] = (text, struct)
    return _CLASSES[text, struct]


def _find_struct(text: str, path: str) -> str:
    found = _STRUCT.findall(text)
    if not found:
        raise BuildError(f"{path}: expected a cell, `struct MyCell : CellConstants<kMyCell>`, got none")
    if len(found) > 1:
        raise BuildError(f"{path}: has the cells {', '.join(found)}: name one with struct=")
    return found[0]


def _comment_of(text: str) -> str:
    """The first lines of comment, which say what the cell computes."""
    first = re.search(r"(?:^//.*\n)+", text, re.MULTILINE)
    return "\n".join(line[2:].removeprefix(" ") for line in first[0].splitlines()) if first else ""


def _new(text: str, struct: str) -> Any:
    return object.__new__(_build(text, struct, struct))


def _reduce(self: RecurrentLayer, protocol: Any) -> tuple[Any, ...]:
    """Pickle a layer with the text of its header; one of a subclass as any object."""
    reduced: Any = object.__reduce_ex__(self, max(protocol, 2))
    return (_new, _SOURCES[type(self)], *reduced[2:]) if type(self) in _SOURCES else reduced


# ---- the library ----


def _find_library(text: str, struct: str, path: str) -> Path:
    """The library of a cell, compiled unless it is in the folder."""
    from torch.utils.cpp_extension import get_default_build_root

    stamp = headers.stamp_of(headers.FOLDER)
    if stamp != _C.stamp:
        raise BuildError(f"{headers.FOLDER}: expected what fastrnn._C was built with: install fastrnn again")
    flags = dict(row.split(" ", 1) for row in _C.isa_flags.split(","))
    units = {
        isa: [f"-DFASTRNN_ISA={isa}", *flags[isa].split()] for isa in _C.isas_available() if isa in flags
    }
    units["row"] = ["-O1"]
    content = sha256("\n".join((text, struct, stamp, str(units))).encode()).hexdigest()[:32]
    common = [*_FLAGS, f"-I{headers.FOLDER}", f"-DFASTRNN_STRUCT={struct}"]
    common += [f'-DFASTRNN_STAMP="{stamp}"', f'-DFASTRNN_CONTENT="{content}"']

    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root(), "fastrnn")
    library = folder / f"{re.sub(r'[^A-Za-z0-9_]', '_', struct)}-{content}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        # The lock ends with the process that has it, so a build that was killed is in nobody's way.
        with open(library.with_suffix(".lock"), "w") as lock:
            with suppress(OSError):  # a file system without locks: who comes last puts the same in place
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not library.exists():
                _compile(library, text, path, common, units)
    return library


def _compile(library: Path, text: str, path: str, common: list[str], units: dict[str, list[str]]) -> None:
    """Compile the units, each with flags of its own, and link them."""
    # Beside the library, which appears under its name when it is complete.
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        # A copy of the header: it must not include what is beside it, which nobody would see change.
        header = Path(folder, "cell.h")
        header.write_text(f"#line 1 {json.dumps(path, ensure_ascii=False)}\n{text}")
        objects = {name: f"{folder}/{name}.o" for name in units}
        source = str(headers.FOLDER / "cpu/own_cell.cpp")
        commands = [
            [*common, f'-DFASTRNN_HEADER="{header}"', *flags, "-c", source, "-o", objects[name]]
            for name, flags in units.items()
        ]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(lambda command: _run_compiler(command, path), reversed(commands)))
        made = f"{folder}/cell.so"
        _run_compiler(["-shared", *objects.values(), "-o", made], path)
        os.replace(made, library)


def _run_compiler(arguments: list[str], path: str) -> None:
    compiler = os.environ.get("CXX") or "c++"
    try:
        done = subprocess.run([*compiler.split(), *arguments], capture_output=True, text=True)
    except OSError as error:
        raise BuildError(f"{path}: expected a C++ compiler, got {error}: name one in CXX") from None
    if done.returncode != 0:
        raise BuildError(f"{path}: {compiler} does not compile it\n{done.stderr}")
