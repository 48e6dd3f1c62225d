"""`python -m fastrnn`: what was built, what is running, what was chosen on this machine, or, with `--plan`,
what would be chosen for a layer on a GPU or on this CPU."""

import argparse
import sys

import torch

from . import _C, __version__
from .cells import CELLS
from .plan import (
    CPU_DTYPES,
    MANY_STEPS,
    MATHS,
    SHARED_KIB,
    TORCH_DTYPES,
    Gpu,
    describe,
    describe_cpu,
    make_cpu_plans,
    make_plans,
)


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
        "GPU or this CPU would compute a layer. FASTRNN_CUDA_PLAN=stepwise, grid or cluster and "
        "FASTRNN_CPU_PLAN=units or batch force a kind of plan.",
    )
    parser.add_argument("--plan", choices=CELLS, metavar="CELL", help=", ".join(CELLS))
    problem = parser.add_argument_group("the layer to plan")
    problem.add_argument("--hidden", type=size)
    problem.add_argument("--batch", type=size)
    problem.add_argument("--steps", type=size, default=MANY_STEPS, help="of the sequence (%(default)s)")
    problem.add_argument("--input", type=size, help="(as --hidden; only the CPU's plan depends on it)")
    dtypes = (*MATHS, *TORCH_DTYPES)
    problem.add_argument("--dtype", choices=dtypes, default="fp32", help=f"{', '.join(dtypes)} (%(default)s)")
    problem.add_argument("--bidirectional", action="store_true")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="to plan for (%(default)s)")
    device = parser.add_argument_group("the GPU to plan for; default: that of this machine")
    device.add_argument("--sms", type=size, help="streaming multiprocessors; an H200 has 132")
    device.add_argument("--capability", type=capability, help="compute capability; an H200 has 9.0")
    args = parser.parse_args()
    if args.plan:
        missing = [f"--{name}" for name in ("hidden", "batch") if getattr(args, name) is None]
        if missing:
            parser.error(f"--plan needs {' and '.join(missing)}")
        args.dtype = TORCH_DTYPES.get(args.dtype, args.dtype)
        check_device(parser, args)
    return args


def check_device(parser: argparse.ArgumentParser, args: argparse.Namespace):
    if args.device == "cpu":
        if args.sms or args.capability:
            parser.error("--sms and --capability: these are a GPU's, not a CPU's")
        if args.dtype not in CPU_DTYPES:
            parser.error(f"--dtype {args.dtype}: a CPU does not compute in it")
    else:
        args.gpu = Gpu(args.sms, args.capability) if args.sms and args.capability else None
        if args.gpu is None and not torch.cuda.is_available():
            parser.error("no GPU here: give --sms and --capability of the GPU to plan for, or --device cpu")
        if args.gpu is None and (args.sms or args.capability):
            parser.error("--sms and --capability: give both, or neither for the GPU of this machine")


def print_cpu_plan(args: argparse.Namespace):
    D = 2 if args.bidirectional else 1
    I = args.input or args.hidden
    print(
        f"{args.plan}, T = {args.steps}, B = {args.batch}, I = {I}, H = {args.hidden}, {args.dtype}, "
        f"{D} direction(s) on {torch.get_num_threads()} thread(s) of this CPU with {_C.isa()}"
    )
    plans = make_cpu_plans(args.plan, args.steps, args.batch, I, args.hidden, args.dtype, D)
    for name, plan in plans.items():
        print(f"{name}: {describe_cpu(plan)}")


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
        if args.device == "cpu":
            print_cpu_plan(args)
        else:
            print_plan(args)
    except RuntimeError as error:  # FASTRNN_CUDA_PLAN or FASTRNN_CPU_PLAN names what cannot be
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
