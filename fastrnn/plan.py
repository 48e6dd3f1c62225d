"""How a GPU or the CPU of this machine would compute a layer. `python -m fastrnn --plan` prints it.

The plan of a GPU needs no GPU: every machine can compute it for every GPU.
"""

from dataclasses import dataclass

import torch

from . import _C

# The names that csrc/cuda/plan.h has for the ways to compute products.
MATHS = {"fp64": "fp64", "fp32": "ieee", "tf32": "tf32", "fp16": "fp16", "bf16": "bf16"}
# The same by torch's names.
TORCH_DTYPES = {"float64": "fp64", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
# In which of torch's dtypes the CPU computes: it has no kernels of float16, and TF32 is not a CPU's.
CPU_DTYPES = {"fp64": "float64", "fp32": "float32", "fp16": "float32", "bf16": "bfloat16"}

# KiB of shared memory that a block can have, by compute capability (CUDA C++ Programming Guide, technical
# specifications per compute capability).
SHARED_KIB = {
    (7, 0): 96, (7, 2): 96, (7, 5): 64, (8, 0): 163, (8, 6): 99, (8, 7): 163, (8, 9): 99, (9, 0): 227,
    (10, 0): 227, (10, 3): 227, (11, 0): 227, (12, 0): 99, (12, 1): 99,
}  # fmt: skip


# SMs of each GPC, by compute capability and SMs in all. A GPC is a graphics processing cluster; a cluster of
# blocks lies within one. No GPU tells these numbers. These give the numbers of clusters that an H200 told,
# which agree with what was seen on an H100: clusters of 8 on 120 of its 132 SMs
# (https://github.com/accel-sim/gpu-app-collection/pull/87). Single GPUs may differ.
GPCS = {((9, 0), 132): (18, 18, 16, 16, 16, 16, 16, 8, 2, 2, 2, 2)}
# Other GPUs have full GPCs and one with the rest, as CUTLASS assumes (get_max_cta_occupancy of its tile
# schedulers).
MOST_SMS_OF_A_GPC = 18
MOST_CLUSTER = 16  # blocks; csrc/cuda/plan.h

MANY_STEPS = 100

TRIES, NEVER = 5, 2**63 - 1


@dataclass(frozen=True)
class Gpu:
    """The properties that a plan depends on: streaming multiprocessors and compute capability."""

    sms: int
    capability: tuple[int, int]

    @classmethod
    def here(cls) -> "Gpu":
        properties = torch.cuda.get_device_properties()
        return cls(properties.multi_processor_count, (properties.major, properties.minor))

    @property
    def clusters(self) -> list[int]:
        """How many clusters of 1, 2, .. 16 blocks run at once, one block an SM. None before 9.0."""
        if self.capability < (9, 0):
            return [0] * MOST_CLUSTER
        full, rest = divmod(self.sms, MOST_SMS_OF_A_GPC)
        gpcs = GPCS.get((self.capability, self.sms), [MOST_SMS_OF_A_GPC] * full + [rest])
        return [sum(sms // blocks for sms in gpcs) for blocks in range(1, MOST_CLUSTER + 1)]


def make_plans(
    cell: str,
    T: int,
    B: int,
    H: int,
    dtype: str,
    D: int = 1,
    gpu: Gpu | None = None,
    projected: bool = False,
) -> dict[str, dict]:
    """The plans of forward and backward, with the fields of csrc/cuda/plan.h.

    FASTRNN_CUDA_PLAN forces a kind of plan.

    gpu: None means the GPU of this machine. A build with CUDA asks it what fits. Others use a table.
    """
    problem = dict(cell=cell, math=MATHS[dtype], projected=projected, T=T, B=B, H=H, D=D)
    passes = {"forward": False, "backward": True}
    if gpu is None and _C.cuda_built:
        return {name: _C.plan_here(**problem, backward=backward) for name, backward in passes.items()}
    gpu = gpu or Gpu.here()
    major, minor = gpu.capability
    device = dict(
        sms=gpu.sms,
        capability=10 * major + minor,
        shared_bytes=1024 * SHARED_KIB[gpu.capability],
        clusters=gpu.clusters,
    )
    kind = _C.forced_cuda_plan()
    return {
        name: _C.plan(**problem, **device, backward=backward, kind=kind) for name, backward in passes.items()
    }


def make_cpu_plans(
    cell: str,
    T: int,
    B: int,
    I: int,
    H: int,
    dtype: str,
    D: int = 1,
    P: int | None = None,
    threads: int | None = None,
) -> dict[str, dict]:
    """The plans of forward and backward on this CPU, fields as in csrc/cpu/plan.h.

    FASTRNN_CPU_PLAN forces how threads share a layer.

    P: the size of the hidden state, H without a projection. threads: torch's unless given.
    """
    threads = torch.get_num_threads() if threads is None else threads
    return _C.cpu_plan(
        cell=cell, dtype=CPU_DTYPES[dtype], T=T, B=B, I=I, H=H, P=H if P is None else P, D=D, threads=threads
    )


def core_round_trip() -> float | None:
    """Seconds that a cache line takes between two cores of torch's threads and back, at this moment.

    The shorter it is, the shorter are the steps that the CPU shares among its threads. The best of some
    tries; None if a second thread never comes.
    """
    found = min(_C.core_round_trip() for _ in range(TRIES))
    return None if found == NEVER else found * 1e-9


def describe(plan: dict) -> str:
    text = f"{plan['kind']}: {plan['reason']}"
    if plan["refused"]:
        text += f" (the GPU cannot run {' or '.join(plan['refused'])} now)"
    if plan["kind"] == "stepwise":
        return text
    warps = plan["row_warps"] * plan["k_warps"]
    both = ", both directions at once" if plan["directions"] == 2 else ""
    return (
        f"{text}\n"
        f"    {plan['block_groups']} block group(s) of {plan['blocks']} block(s){both}\n"
        f"    a block group: {plan['tiles']} tile(s) of {plan['tile_batch']} sequences in turn\n"
        f"    a block: {plan['units_of_block']} units, {warps} warps ({plan['row_warps']} x "
        f"{plan['k_warps']} along k), {plan['shared_bytes']} bytes of shared memory"
    )


def describe_cpu(plan: dict) -> str:
    how = {
        "none": "one thread",
        "units": f"by units, {plan['threads']} threads",
        "batch": f"by batch, {plan['threads']} threads, {plan['batch_groups']} batch groups",
    }[plan["sharing"]]
    both = " each, both directions at once" if plan["side_by_side"] else ""
    tile = f"{plan['tile_rows']} rows x {plan['tile_vectors']} vectors of {plan['lanes']} numbers"
    product = f"{plan['panels']} panel(s) of {plan['panel_units']} units, tiles of up to {tile}"
    if not plan["packed"]:
        product = "with the weights where they stand"
    return f"{how}{both}: {plan['reason']}\n    product with W_hh: {product}"
