"""The sentences of a report, and how it writes numbers."""

from __future__ import annotations

from ..results import NOISE, means, read_rows

NOT_SUPPORTED = "not supported"


def duration(seconds: float) -> str:
    """With at least three digits."""
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
    ratios = [row.aa for row in read_rows(data) if row.aa is not None]
    mean, worst = means(ratios)
    text = f"A/A: {worst:.2f} to {max(ratios):.2f}, geometric mean {mean:.2f}"
    if not NOISE < mean < 1 / NOISE:
        text += ". This is too far from 1: do not trust these results, and measure again on a quiet machine"
    return text


def describe_cores(data: dict) -> list[str]:
    """The time that two cores need to exchange a cache line: it limits a short step on several threads."""
    trips = sorted(row.round_trip for row in read_rows(data) if row.round_trip)
    if not trips:
        return []
    low, middle, high = (nanoseconds(trips[int(q * (len(trips) - 1))]) for q in (0, 0.5, 1))
    return [
        "round trip: the time that a cache line takes from one core to another and back, measured with each "
        f"problem: {low} to {high}, median {middle}. On some machines it changes from moment to moment"
    ]


def describe_absence(data: dict) -> list[str]:
    """Which peers are missing, and which do not support a problem."""
    result = [f"Missing: {peer}: {reason}" for peer, reason in data["missing"].items()]
    reasons = dict.fromkeys((refusal["peer"], refusal["reason"]) for refusal in data["refusals"])
    return result + [f"{NOT_SUPPORTED.capitalize()}: {peer}: {reason}" for peer, reason in reasons]


AA = "A/A: torch.nn is timed twice, and this is the ratio of the two times. Without noise it is 1.00"
EFFICIENCY = (
    "efficiency: the limit / the time of fastrnn. The limit is the least time that the machine needs: "
    "x-GEMM flops / peak + max(recurrent flops / peak, T * bytes(W_hh) / bandwidth of the level that holds "
    "it). The peak is the rate of torch's own matrix products. fastrnn's can be faster: then the efficiency "
    "can exceed 100%"
)
EFFICIENCY_ON_GPU = (
    "efficiency: the limit / the time of fastrnn. The limit is the time of the matrix products at the "
    "measured peak. It does not include the reading of W_hh, which can stay in registers, or the exchange of "
    "h between the steps"
)
PLANS = (
    "per step: the time of fastrnn / the number of steps; it includes the product with the inputs. plans: "
    "the kinds of plan for the forward and the backward"
)


def notes(data: dict) -> list[str]:
    on_gpu = "gpu" in data["machine_info"]
    words = [AA, EFFICIENCY_ON_GPU, PLANS] if on_gpu else [AA, EFFICIENCY]
    return [*words, *describe_cores(data), *describe_absence(data)]
