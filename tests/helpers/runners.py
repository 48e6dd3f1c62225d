"""Programs of tests/csrc, which run the device code on the host."""

import subprocess
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parents[2]


def build(target: str, sanitizers: str = "") -> Path:
    """Build a program, with sanitizers of the compiler ("address,undefined"); its path.

    It stays below build/, as the extension does, so only what has changed is compiled again.
    """
    folder = ROOT / "build/tests" / f"{target}-{sanitizers or 'plain'}"
    configure = ["cmake", "-S", ROOT / "tests/csrc", "-B", folder, f"-DSANITIZE={sanitizers}"]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):  # of the processes that run tests one builds
        for command in (configure, ["cmake", "--build", folder, "--target", target]):
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
    return folder / target
