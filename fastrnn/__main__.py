"""`python -m fastrnn`: what was built, what is running, what was chosen on this machine, or, with `--plan`,
what would be chosen on a GPU."""

import argparse
import sys

import torch

from . import _C, __version__
from .plan import MATHS, SHARED_KIB, Gpu, describe, make_plans


def capability(text: str) -> tuple[int, int]:
    known = {f"{major}.{minor}": (major, minor) for major, minor in SHARED_KIB}
    if text not in known:
        raise argparse.ArgumentTypeError(f"{text}: expected one of {', '.join(known)}")
    return known[text]


def size(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a positive number")
    return int(text)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fastrnn",
        description="Print what was built, what is running and what was chosen here, or, with --plan, how a "
        "GPU would compute a layer. FASTRNN_CUDA_TIER forces a tier.",
    )
    parser.add_argument("--plan", choices=_C.cells(), metavar="CELL", help=", ".join(_C.cells()))
    problem = parser.add_argument_group("the layer to plan")
    problem.add_argument("--hidden", type=size)
    problem.add_argument("--batch", type=size)
    problem.add_argument("--dtype", choices=MATHS, default="fp32", help=f"{', '.join(MATHS)} (%(default)s)")
    problem.add_argument("--bidirectional", action="store_true")
    device = parser.add_argument_group("the GPU to plan for, this machine's unless given")
    device.add_argument("--sms", type=size, help="streaming multiprocessors: 132 of an H200")
    device.add_argument("--capability", type=capability, help="compute capability: 9.0 of an H200")
    args = parser.parse_args()
    if args.plan:
        missing = [f"--{name}" for name in ("hidden", "batch") if getattr(args, name) is None]
        if missing:
            parser.error(f"--plan needs {' and '.join(missing)}")
        if torch.cuda.is_available():
            here = Gpu.here()
            args.sms = args.sms or here.sms
            args.capability = args.capability or here.capability
        elif not (args.sms and args.capability):
            parser.error("no GPU here: give --sms and --capability of the one to plan for")
    return args


def print_plan(args: argparse.Namespace):
    D = 2 if args.bidirectional else 1
    print(
        f"{args.plan}, H = {args.hidden}, B = {args.batch}, {args.dtype}, {D} direction(s), "
        f"on {args.sms} SMs of compute capability {'.'.join(map(str, args.capability))}"
    )
    gpu = Gpu(args.sms, args.capability)
    for name, plan in make_plans(args.plan, args.hidden, args.batch, args.dtype, D, gpu).items():
        print(f"{name}: {describe(plan)}")


def print_report():
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


def main():
    args = parse_arguments()
    if not args.plan:
        print_report()
        return
    try:
        print_plan(args)
    except RuntimeError as error:  # of a tier that FASTRNN_CUDA_TIER names
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
