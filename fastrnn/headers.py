"""The sources that `fastrnn.build_cell` compiles a cell with. setup.py runs this file by itself."""

from hashlib import sha256
from pathlib import Path

__all__ = ["FOLDER", "files_of", "stamp_of"]

_PACKAGE = Path(__file__).resolve().parent
# Of an installed package, or of one in its source folder.
FOLDER = _PACKAGE / "include" if (_PACKAGE / "include").is_dir() else _PACKAGE.parent / "csrc"


def files_of(folder: Path) -> list[Path]:
    """Those of them in a folder of the form of csrc/."""
    headers = [path for part in ("cells", "core", "cpu") for path in (folder / part).rglob("*.h")]
    return sorted([*headers, folder / "cpu/own_cell.cpp"])


def stamp_of(folder: Path) -> str:
    """Is the same if the files are: a cell and fastrnn._C must be compiled with the same."""
    total = sha256()
    for path in files_of(folder):
        total.update(f"{path.relative_to(folder).as_posix()} ".encode() + sha256(path.read_bytes()).digest())
    return total.hexdigest()[:16]
