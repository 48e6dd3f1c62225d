"""`python -m fastrnn`: what was built, what is running, what was chosen on this machine, or, with `--plan`,
what would be chosen on a GPU."""

import argparse
import sys

import torch

from . import _C, __version__
from .cells import CELLS
from .plan import MANY_STEPS, MATHS, SHARED_KIB, Gpu, describe, make_plans


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
        "GPU would compute a layer. FASTRNN_CUDA_PLAN=stepwise, grid or cluster forces a kind of plan.",
    )
    parser.add_argument("--plan", choices=CELLS, metavar="CELL", help=", ".join(CELLS))
    problem = parser.add_argument_group("the layer to plan")
    problem.add_argument("--hidden", type=size)
    problem.add_argument("--batch", type=size)
    problem.add_argument("--steps", type=size, default=MANY_STEPS, help="of the sequence (%(default)s)")
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
        args.gpu = Gpu(args.sms, args.capability) if args.sms and args.capability else None
        if args.gpu is None and not torch.cuda.is_available():
            parser.error("no GPU here: give --sms and --capability of the one to plan for")
        if args.gpu is None and (args.sms or args.capability):
            parser.error("--sms and --capability: give both, or neither for the GPU that is here")
    return args


def print_plan(args: argparse.Namespace):
    D = 2 if args.bidirectional else 1
    device = args.gpu or Gpu.here()
    print(
        f"{args.plan}, T = {args.steps}, B = {args.batch}, H = {args.hidden}, {args.dtype}, {D} direction(s) "
        f"on {device.sms} SMs of compute capability {'.'.join(map(str, device.capability))}"
    )
    plans = make_plans(args.plan, args.steps, args.batch, args.hidden, args.dtype, D, args.gpu)
    for name, plan in plans.items():
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
    except RuntimeError as error:  # of a kind that FASTRNN_CUDA_PLAN names
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
