"""`python -m fastrnn`: what was built, what is running, what was chosen on this machine."""

import argparse

import torch

from . import _C, __version__


def main():
    argparse.ArgumentParser(
        prog="python -m fastrnn",
        description="Print what was built, what is running and what was chosen here.",
    ).parse_args()
    rows = {
        "fastrnn": __version__,
        "torch built for": _C.torch_version,
        "torch running": torch.__version__,
        "CUDA archs": " ".join(_C.cuda_archs) or "none",
        "CPU ISA chosen": _C.isa(),
        "CPU ISAs available": " ".join(_C.isas_available()),
        "CPU ISAs built": " ".join(_C.isas_built()),
        "threads": torch.get_num_threads(),
    }
    for name, value in rows.items():
        print(f"{name:20}{value}")


if __name__ == "__main__":
    main()
