"""Cells that torch.nn does not have, as the operators take them, and noise in the recurrence of any cell."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from cases import Case, evaluate, random
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastrnn import reference
from fastrnn.reference import CELLS

OWN_CELLS = tuple(name for name, row in CELLS.items() if not row.in_torch)
RELU_CELLS = ("rnn_relu", "indrnn_relu", "ligru")

# Noise in the recurrence. With "expected" zoneout each state gets the expected value.
KINDS = ("mask", "zoneout", "mask zoneout", "expected")
SEED = 0x1234_5678_9ABC_DEF0
CHANCES = (0.3, 0.5, 0.2, 0.4)

ops = torch.ops.fastrnn


def fit(case: Case) -> Case:
    """The case with what its cell has: the width of the input, biases, a projection."""
    info = case.row.info
    D = 1 + case.bidirectional
    return case.but(
        I=case.I if info.has("input_matrix") else D * len(info.gates) * case.H,
        bias=case.bias and any(p.needs == "bias" for p in info.parameters),
        P=case.P if info.can_project and case.H > case.P else 0,
    )


def bound_by(case: Case) -> Case:
    """The case whose sums are as long as those of the kernel: without W_ih there is none over the input."""
    return case if case.row.info.has("input_matrix") else case.but(I=1)


def draw_weights(case: Case, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """By name, in the order of the operators; leaves that require gradients. Gains are around 1."""
    result = {}
    H, P = case.H, case.P or case.H
    for direction in range(1 + case.bidirectional):
        for parameter in case.row.info.parameters_of(case.bias, case.P > 0):
            shape = case.row.info.shape_of(parameter, case.I, H, P)
            name = parameter.symbol + "_reverse" * direction
            drawn = random(*shape, seed=500 + 100 * case.seed + len(result), dtype=torch.float64)
            drawn = drawn * (3 * H) ** -0.5 + parameter.symbol.startswith("g_")
            result[name] = drawn.to(case.dtype).to(dtype or case.dtype).requires_grad_()
    return result


def draw_inputs(case: Case, dtype: torch.dtype | None = None) -> tuple[Tensor, list[Tensor] | None]:
    """x and the states; n of an sLSTM is positive, as it is in use."""
    x, hx = case.inputs()
    if hx is not None and case.cell == "slstm":
        hx[2] = (hx[2].detach().abs() + 0.5).requires_grad_()
    x, *hx = (t.detach().to(dtype or case.dtype).requires_grad_() for t in (x, *(hx or ())))
    return x, hx if case.hx else None


def call_operator(case: Case, weights: Sequence[Tensor], **noise):
    """fastrnn::layer as `evaluate` calls it. noise: mask, seed, zoneout. States of packed sequences are in
    the packed order."""

    def call(x, hx):
        x, states = case.pack(x), list(hx or ())
        rows, batch_sizes = (x.data, x.batch_sizes) if case.packed else (x, None)
        if case.packed and not states:  # which the operator wants then
            states = [rows.new_zeros(1 + case.bidirectional, case.B, size) for size in case.state_sizes]
        flags = case.bidirectional, case.form == "batch_first", False
        return ops.layer(rows, batch_sizes, states, list(weights), case.cell, *flags, **noise)

    return call


def call_reference(case: Case, weights: Sequence[Tensor], masks=None, kept=None):
    def call(x, hx):
        x = case.pack(x)
        rows, batch_sizes = (x.data, x.batch_sizes) if case.packed else (x, None)
        options = dict(bias=case.bias, bidirectional=case.bidirectional, batch_sizes=batch_sizes)
        options |= dict(batch_first=case.form == "batch_first", masks=masks, kept=kept)
        return list(reference.rnn(rows, hx, weights, case.cell, **options))

    return call


def spoil_free_memory() -> None:
    """Let new memory hold NaN, which shows where what nobody wrote is read."""
    blocks = [torch.full((1 << k,), torch.nan) for k in range(4, 19) for _ in range(2)]
    del blocks


def is_jumpy(case: Case) -> bool:
    """Of an sLSTM the gradient of m jumps where both terms of its maximum are equal, and in 16 bits rounding
    decides which is larger; those of y and h do not."""
    return case.cell == "slstm" and case.dtype in (torch.bfloat16, torch.float16)


def of_smooth_results(case: Case, call):
    """`call`, in 16 bits without the further states of an sLSTM."""
    if is_jumpy(case):
        return lambda x, hx: call(x, hx)[:2]
    return call


def solve(case: Case, **noise) -> dict[str, Tensor | None]:
    """Values and gradients of the kernels."""
    weights = draw_weights(case)
    spoil_free_memory()
    call = of_smooth_results(case, call_operator(case, [*weights.values()], **noise))
    return evaluate(call, *draw_inputs(case), weights, case)


def judge(case: Case, dtype: torch.dtype = torch.float64, masks=None, kept=None) -> dict[str, Tensor | None]:
    """Values and gradients of the reference, for the numbers that the kernels get."""
    weights = draw_weights(case, dtype)
    call = of_smooth_results(case, call_reference(case, [*weights.values()], masks, kept))
    return evaluate(call, *draw_inputs(case, dtype), weights, case)


class _Nearest(TorchFunctionMode):
    """Records how near to 0 what relu is applied to comes."""

    def __init__(self):
        super().__init__()
        self.distance = np.inf

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.relu, Tensor.relu) and args[0].numel():
            self.distance = min(self.distance, args[0].abs().min().item())
        return function(*args, **(kwargs or {}))


def with_margin(case: Case, margin: float) -> Case:
    """The case with a seed for which relu's sums stay so far from its kink."""
    if case.cell not in RELU_CELLS:
        return case
    for seed in itertools.count(case.seed):
        candidate = case.but(seed=seed)
        weights = draw_weights(candidate, torch.float64)
        with torch.no_grad(), _Nearest() as nearest:
            call_reference(candidate, [*weights.values()])(*draw_inputs(candidate, torch.float64))
        if nearest.distance > margin:
            return candidate
    raise AssertionError


# ---- random numbers of zoneout ----


def philox(key: Sequence[np.ndarray], counter: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Philox4x32-10 (Salmon et al. 2011): four words of 32 bits for a key of two and a counter of four."""
    word = np.uint64(0xFFFFFFFF)
    k0, k1 = (np.asarray(k, np.uint64) for k in key)
    c0, c1, c2, c3 = (np.asarray(c, np.uint64) for c in counter)
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (b >> np.uint64(32)) ^ c1 ^ k0, b & word, (a >> np.uint64(32)) ^ c3 ^ k1, a & word
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & word, (k1 + np.uint64(0xBB67AE85)) & word
    return [c0, c1, c2, c3]


def kept_of(case: Case, seed: int | None, zoneout: Sequence[float]) -> list[list[Tensor]]:
    """What reference.rnn takes as `kept`, of one layer: for each direction, for each state `[R, H]`."""
    D, H = 1 + case.bidirectional, case.H
    R = int(case.lengths.sum()) if case.packed else case.T * (case.B if case.batched else 1)
    if seed is None:
        return [[torch.full((R, H), p, dtype=torch.float64) for p in zoneout] for _ in range(D)]
    at = np.arange(D * R * H, dtype=np.uint64)
    zero = np.zeros_like(at)
    words = philox((seed & 0xFFFFFFFF, seed >> 32), (at, zero, zero, zero))
    kept = []
    for p, word in zip(zoneout, words, strict=False):
        factors = torch.from_numpy((word < p * 2.0**32).astype(np.float64)).view(D, R, H)
        if case.form == "batch_first":  # rows of the buffer are [B, T], those of the reference [T, B]
            factors = factors.view(D, case.B, case.T, H).transpose(1, 2).reshape(D, R, H)
        kept.append(factors)
    return [[k[d] for k in kept] for d in range(D)]


def draw_noise(case: Case, kind: str) -> tuple[dict, dict]:
    """Of one of KINDS: for the operator, and the same for the reference."""
    D = 1 + case.bidirectional
    given: dict = {}
    judged: dict = {}
    if "mask" in kind:
        mask = (random(D, case.B, case.P or case.H, seed=91) > 0).double() * 2
        given["mask"], judged["masks"] = mask.to(case.dtype), mask
    if "zoneout" in kind or "expected" in kind:
        given["zoneout"] = CHANCES[: case.row.states]
        seed = SEED if "zoneout" in kind else None
        given["seed"] = None if seed is None else torch.tensor([seed])
        judged["kept"] = kept_of(case, seed, given["zoneout"])
    return given, judged
