"""Check that no object compiled for one instruction set shares code with the others.

The compiler may emit a function out of line (an inline function, a template of the standard library) under a
name outside of the instruction set's own namespace. The linker then keeps one of the copies in all objects.
If that is the AVX-512 copy, an older processor crashes.

    python tools/check_isa_symbols.py

looks at the objects below build/. The exit status is 1 if it finds such a function.
"""

import subprocess
import sys
from pathlib import Path

WEAK = {"W", "V", "u"}


def main():
    root = Path(__file__).resolve().parent.parent
    objects = sorted((root / "build").glob("**/fastrnn_*.dir/**/*.o"))
    if not objects:
        sys.exit("no objects below build/: build fastrnn first")
    failed = False
    for path in objects:
        folder = next(part for part in path.parts if part.startswith("fastrnn_"))
        isa = folder.removeprefix("fastrnn_").removesuffix(".dir")
        command = ["nm", "-C", "--defined-only", path]
        listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for line in listing.splitlines():
            _, kind, name = line.split(maxsplit=2)
            # DW.ref.* is a pointer for exception handling that is the same in every object.
            if kind in WEAK and f"fastrnn::cpu::{isa}::" not in name and not name.startswith("DW.ref."):
                print(f"{path.relative_to(root)}: shared symbol {name}")
                failed = True
    print(f"{len(objects)} objects, " + ("shared symbols found" if failed else "no shared code"))
    sys.exit(failed)


if __name__ == "__main__":
    main()
