"""How far two right answers may lie apart, derived from rounding; and what is said where they do not.

The model. One rounding has a relative error of at most u (2**-24 in float32, 2**-53 in float64), of either
sign. A sum of K terms rounds K times, and what it has summed so far grows like the sum itself, so independent
roundings add up to about u * sqrt(K) * |sum|. (The worst case, u * K, does not occur in practice. Higham and
Mary 2019, "A new approach to probabilistic rounding error analysis", derive sqrt(K) with a small constant.)
An element of a result rests on one long chain of additions:

    of a state     in every layer and step, one sum over the I inputs and the P states, a few more in the cell
    of dx, dh_0    what the states rest on, and in every layer and step back one sum over the G*H gates
    of a weight's  what dh rests on, and a sum over the T*B rows
      gradient

With K the length of that chain, and s the largest magnitude of what is summed, two computations that differ
only in the order of their operations differ by at most

    SAFETY * u * sqrt(K) * s

A result that is small is often small by cancellation, with the error of what cancelled, so s is taken over
all results of the same kind (values; gradients of x and the states; gradients of weights), and for values it
is at least 1, the order of the sums that the gates are computed from.

SAFETY covers what the model leaves out: the largest of many thousand elements (4 to 5 standard deviations),
two computations instead of one (sqrt 2), activations that are accurate to some u and not to one, derivatives
such as 1 - h*h that cancel somewhat. Errors that grow from step to step would break the model; with
torch.nn's initial weights a step contracts, and `cases.py` scales x so that gates are not saturated
throughout. As a check of the model itself: over all cases of test_parity.py, torch.nn is nowhere further from
the float64 reference than 0.06 of this bound.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastrnn.reference import CELLS

SAFETY = 8
ROUNDINGS = 10  # of results of 16 bits


def unit_roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def chain(case, name: str) -> int:
    """K: additions that an element of the result `name` rests on."""
    P = case.P or case.H
    D = 1 + case.bidirectional
    steps = case.L * case.T
    info = CELLS[case.cell].info
    moments = 2 * len(info.gates) * case.H if info.normalised else 0  # mean and variance over the gates
    forward = steps * (moments + max(case.I, D * P if case.L > 1 else 0) + P + 8)
    if not name.startswith("d"):
        return forward
    backward = forward + steps * (moments + CELLS[case.cell].gates * case.H + 8)
    return backward if is_of_input(name) else backward + case.T * case.B


def is_of_input(name: str) -> bool:
    return name == "dx" or name.endswith("_0")


def kind(name: str) -> str:
    """Results of one kind have one scale."""
    if not name.startswith("d"):
        return "value"
    return "gradient" if is_of_input(name) else "gradient of a weight"


def bound(case, name: str, expected: dict, u: float | None = None) -> float:
    """Largest difference allowed to an element of the result `name`; `u` where products round to less than
    what the result can hold."""
    if case.exact:
        return 0.0
    alike = [t for other, t in expected.items() if kind(other) == kind(name) and t is not None and t.numel()]
    least = 1.0 if kind(name) == "value" else 0.0
    scale = max([least, *(t.abs().max().item() for t in alike)])
    return SAFETY * (u or unit_roundoff(expected[name].dtype)) * math.sqrt(chain(case, name)) * scale


def measure(results, truths, name):
    """Errors and magnitudes of all of these: root mean square, and mean of the largest.

    The mean of the largest is a maximum that does not hang on a single element.
    """

    def norms(values):
        largest = values.abs().topk(max(8, values.numel() // 1000)).values
        return values.square().mean().sqrt().item(), largest.mean().item()

    pairs = zip(results, truths, strict=True)
    errors = torch.cat([(r[name].cpu().double() - t[name]).flatten() for r, t in pairs])
    return *norms(errors), *norms(torch.cat([t[name].flatten() for t in truths]))


def name_worst(name: str, actual: Tensor, expected: Tensor, excess: Tensor) -> str:
    """Say where two tensors differ first and where most."""
    bad = excess.nonzero()
    worst = torch.unravel_index((actual - expected).abs().nan_to_num(nan=math.inf).argmax(), actual.shape)
    lines = [f"{name}{list(actual.shape)}: {len(bad)} of {actual.numel()} elements differ"]
    for which, at in (("first", bad[0].tolist()), ("worst", [int(i) for i in worst])):
        got, want = actual[tuple(at)].item(), expected[tuple(at)].item()
        lines.append(f"  {which} at {name}{at}: got {got!r}, expected {want!r}, difference {got - want:.3g}")
    return "\n".join(lines)


def on_cpu(tensors: dict) -> dict:
    return {name: None if t is None else t.cpu() for name, t in tensors.items()}


def assert_close(actual: dict, expected: dict, case, u: float | None = None) -> None:
    """Compare two dictionaries of named tensors, wherever they are; `case` (cases.py) sets the bound, zero if
    it is exact, and `u` as `bound` takes it."""
    assert actual.keys() == expected.keys()
    actual, expected = on_cpu(actual), on_cpu(expected)
    complaints = []
    for name, want in expected.items():
        got = actual[name]
        if (got is None) != (want is None):
            complaints.append(f"{name}: got {got if got is None else 'a tensor'}, expected the opposite")
        if got is None or want is None:
            continue
        if got.shape != want.shape or got.dtype != want.dtype:
            complaints.append(
                f"{name}: got {got.dtype} {list(got.shape)}, expected {want.dtype} {list(want.shape)}"
            )
            continue
        limit = bound(case, name, expected, u)
        excess = ~((got - want).abs() <= limit)  # NaN is an excess
        if excess.any():
            complaints.append(f"{name_worst(name, got, want, excess)}\n  allowed {limit:.3g}")
    assert not complaints, f"{case}\n" + "\n".join(complaints)


def assert_few_roundings(actual: dict, expected: dict, case) -> None:
    """Compare results of 16 bits with float64 ones: relative errors, root mean square, of a few roundings.
    Where sums of few numbers cancel (H = 1) they are relative to the largest result of the same kind."""
    assert actual.keys() == expected.keys()
    actual, u = on_cpu(actual), unit_roundoff(case.dtype)
    # A normalisation divides by the deviation of what is rounded, which is less than 1.
    roundings = (4 if CELLS[case.cell].info.normalised else 1) * ROUNDINGS
    complaints = []
    for name, want in expected.items():
        got = actual[name]
        if want is None or want.numel() == 0:
            assert (got is None) == (want is None) and (got is None or got.shape == want.shape)
            continue
        assert got.dtype == case.dtype, name
        rms = want.square().mean().sqrt().item()
        if case.H == 1:
            alike = (t for n, t in expected.items() if kind(n) == kind(name) and t is not None)
            rms = max(t.abs().max().item() for t in alike)
        error = (got.double() - want).square().mean().sqrt().item()
        if not error <= roundings * u * rms:
            complaints.append(f"{name}: error {error / max(rms, 1e-30) / u:.2f} u, allowed {roundings} u")
    assert not complaints, f"{case}\n" + "\n".join(complaints)


def assert_same_bits(actual: dict, expected: dict, what: str) -> None:
    """Compare two dictionaries of named tensors, wherever they are; every bit counts."""
    assert actual.keys() == expected.keys()
    actual, expected = on_cpu(actual), on_cpu(expected)
    for name, want in expected.items():
        got = actual[name]
        if want is None:
            assert got is None, f"{what}: {name}: got a tensor, expected None"
        elif not torch.equal(got, want):
            raise AssertionError(f"{what}: {name_worst(name, got, want, got != want)}")


def assert_same_specials(actual: dict, expected: dict, case) -> None:
    """NaN, +Inf and -Inf at the same places, and close values at all others."""
    actual, expected = on_cpu(actual), on_cpu(expected)
    complaints = []
    finite = {"actual": {}, "expected": {}}
    for name, want in expected.items():
        got = actual[name]
        for what, find in (("NaN", torch.isnan), ("+Inf", torch.isposinf), ("-Inf", torch.isneginf)):
            if not torch.equal(find(got), find(want)):
                at = (find(got) != find(want)).nonzero()[0].tolist()
                there = f"got {got[tuple(at)].item()}, expected {want[tuple(at)].item()}"
                counts = f"{int(find(got).sum())} of them instead of {int(find(want).sum())}"
                complaints.append(f"{name}{list(want.shape)}: {what}: first at {name}{at}: {there}; {counts}")
        both = got.isfinite() & want.isfinite()
        finite["actual"][name] = got.where(both, 0)
        finite["expected"][name] = want.where(both, 0)
    assert not complaints, f"{case}\n" + "\n".join(complaints)
    assert_close(finite["actual"], finite["expected"], case)
