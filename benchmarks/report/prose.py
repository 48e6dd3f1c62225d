"""The sentences of a report, and how it writes numbers."""

from __future__ import annotations

from ..results import NOISE, means, read_rows

NOT_SUPPORTED = "not supported"


def duration(seconds: float) -> str:
    """In three digits or more."""
    value, unit = (seconds * 1e6, "us") if seconds < 1e-3 else (seconds * 1e3, "ms")
    return f"{value:.{max(0, 3 - len(str(int(value))))}f} {unit}"


def nanoseconds(seconds: float) -> str:
    return f"{seconds * 1e9:.0f} ns"


def percent(fraction: float | None) -> str | None:
    return None if fraction is None else f"{fraction:.0%}"


def describe_machine(data: dict) -> str:
    machine = data["machine_info"]
    fastrnn = machine["fastrnn"]
    versions = [
        f"fastrnn {fastrnn['fastrnn']} ({fastrnn['CPU ISA chosen']})",
        f"torch {machine['torch']} ({machine['torch_isa']})",
        *([f"onnxruntime {machine['onnxruntime']}"] if machine["onnxruntime"] else []),
        f"Python {machine['python_version']}",
    ]
    text = f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads; {', '.join(versions)}"
    if gpu := machine.get("gpu"):
        text = (
            f"{gpu['name']}, {gpu['sms']} SMs of compute capability {gpu['capability']}, L2 cache "
            f"{gpu['l2_state']}; CUDA {gpu['cuda']}, cuDNN {gpu['cudnn']}; {text}"
        )
    return text


def describe_noise(data: dict) -> str:
    """The spread of A/A, torch.nn against itself."""
    ratios = [row.aa for row in read_rows(data) if row.aa is not None]
    mean, worst = means(ratios)
    text = f"A/A, torch.nn against itself: {worst:.2f} to {max(ratios):.2f}, geometric mean {mean:.2f}"
    if not NOISE < mean < 1 / NOISE:
        text += ", too far from 1 to trust these figures (is the machine quiet?)"
    return text


def describe_cores(data: dict) -> list[str]:
    """How far apart the cores were, which moves what a short step takes on several of them."""
    trips = sorted(row.round_trip for row in read_rows(data) if row.round_trip)
    if not trips:
        return []
    low, middle, high = (nanoseconds(trips[int(q * (len(trips) - 1))]) for q in (0, 0.5, 1))
    return [
        f"round trip: of a cache line between two cores, when a problem was timed: {low} to {high}, median "
        f"{middle}. Some machines' cores are near each other in one moment and far apart in the next"
    ]


def describe_absence(data: dict) -> list[str]:
    """Who is missing, and who refused what."""
    result = [f"Missing: {peer}: {reason}" for peer, reason in data["missing"].items()]
    reasons = dict.fromkeys((refusal["peer"], refusal["reason"]) for refusal in data["refusals"])
    return result + [f"{NOT_SUPPORTED.capitalize()}: {peer}: {reason}" for peer, reason in reasons]


LIMIT = (
    "of limit: the time that the machine needs at least, as a part of fastrnn's: x-GEMM flops / peak + "
    "max(recurrent flops / peak, T * bytes(W_hh) / bandwidth of the level that holds it). The peak is "
    "that of torch's own matrix products; over 100% is possible where fastrnn's are faster"
)


LIMIT_OF_GPU = (
    "of limit: the time of the matrix products at the measured peak, as a part of fastrnn's; W_hh may stay "
    "in registers, so reading it is not counted, nor is the way of h from step to step. A step: of fastrnn, "
    "the product with the inputs included. Tiers: forward/backward, as planned"
)


def notes(data: dict) -> list[str]:
    limit = LIMIT_OF_GPU if "gpu" in data["machine_info"] else LIMIT
    return [limit, *describe_cores(data), *describe_absence(data)]
