"""Programs of tests/csrc, which run the device code on the host."""

import subprocess
from pathlib import Path

SOURCES = Path(__file__).parents[1] / "csrc"


def build(folder, target, sanitizers=""):
    """Build a program, with sanitizers of the compiler ("address,undefined"); its path."""
    configure = ["cmake", "-S", SOURCES, "-B", folder, f"-DSANITIZE={sanitizers}"]
    for command in (configure, ["cmake", "--build", folder, "--target", target]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / target
