"""Frozen layers of int8: their products, their errors, and what is not finite."""

import copy
from unittest.mock import patch

import pytest
import torch
from cases import cover_pairs, name_values
from frozen import (
    BF16,
    DOUBLE,
    FLOAT,
    INT8,
    KINDS,
    build,
    case_of,
    each_layer,
    rounded,
    roundoff,
    solve,
    to_int8,
)
from layer_kinds import draw, run
from own_cells import draw_inputs
from tolerance import assert_same_specials, bound

import fastrnn
from fastrnn import reference
from fastrnn.layers import of_head, run_heads


def quantized_linear(x, W, b=None):
    """x @ W.T + b of integers: each row of either factor in 127 steps of its largest number. In float64, as
    is the judge; W as the frozen layer got it, in float32."""
    steps = x.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    W, scales = to_int8(W.float())
    y = (x / steps).round() @ W.double().T * (steps * scales.double().T)
    return y if b is None else y + b


@torch.no_grad()
def emulate(layer, case):
    """What the int8 layer computes in `case`, in plain torch and float64."""
    layer, info, D = copy.deepcopy(layer).double(), case.row.info, 1 + case.bidirectional
    x, hx = draw_inputs(case, DOUBLE)
    if case.form == "batch_first":
        x = x.transpose(0, 1)
    N, lasts = getattr(layer, "num_heads", 1), []

    def run_one(x, batch_sizes, states, weights, options):
        options = dict(bias=case.bias, bidirectional=case.bidirectional)
        return list(reference.rnn(x, states, weights, case.cell, **options))

    with (
        patch.object(reference, "linear", quantized_linear),
        patch.object(fastrnn.layers, "linear_of", quantized_linear),
    ):
        for k in range(case.L):
            names = [p.name for p in info.parameters_of(case.bias, case.P > 0)]
            suffixes = [f"_l{k}{reverse}" for reverse in ("", "_reverse")[:D]]
            weights = [getattr(layer, name + suffix) for suffix in suffixes for name in names]
            if not info.has("input_matrix"):
                x = layer._shares(k, x)
            arguments = x, None, hx and [s[k * D : (k + 1) * D] for s in hx], weights, None
            results = run_heads(run_one, arguments, N, D, of_head) if N > 1 else run_one(*arguments)
            x, *last = results
            lasts.append(last)
    y = x.transpose(0, 1) if case.form == "batch_first" else x
    return name_values([y, *map(torch.cat, zip(*lasts, strict=True))])


INT8_ROWS = cover_pairs(
    H=(1, 7, 33, 150),
    I=(1, 6, 150),
    B=(3, 65),
    T=(3, 1),
    form=("padded", "batch_first"),
    L=(1, 2),
    bidirectional=(False, True),
    bias=(True, False),
    hx=(True, False),
)


@pytest.mark.parametrize("row", INT8_ROWS, ids=lambda row: "-".join(map(str, row.values())))
@each_layer
def test_int8(name, row, isa):
    """The integers of the emulation, so that results differ by roundings only. But a number that lies midway
    between two integers may be rounded to the other one, and this sequence goes on a little differently."""
    case = case_of(name, **row)
    layer = build(name, case)
    frozen = fastrnn.freeze(layer, INT8)
    assert frozen.weights == "int8"
    got, want = solve(frozen, case), emulate(layer, case)
    differs = torch.zeros(case.B, dtype=torch.bool)
    for result, exact in want.items():
        assert got[result].shape == exact.shape
        limit = bound(case, result, want, roundoff(name, FLOAT))
        error = (got[result] - exact).abs()
        assert not error.isnan().any()
        # Less than half of what the rounding of all numbers to integers changes
        assert error.max() <= max(limit, 0.02 * exact.abs().max().clamp(min=1)), result
        batch_dim = 0 if result == "output" and case.form == "batch_first" else 1
        differs |= (error > limit).movedim(batch_dim, 0).flatten(1).any(1)
    assert differs.sum() <= max(1, case.B // 10)


@pytest.mark.filterwarnings("ignore")  # torch.ao.quantization is deprecated
@pytest.mark.parametrize("H", [64, 128, 256])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_int8_is_as_exact_as_dynamic_quantization(kind, H):
    layer = getattr(torch.nn, kind)(H, H)
    model = torch.nn.Sequential(copy.deepcopy(layer))
    theirs = torch.ao.quantization.quantize_dynamic(model, {type(layer)}, dtype=torch.qint8)
    assert type(theirs[0]) is not type(layer)
    x = draw(20, 16, H, dtype=FLOAT)
    with torch.no_grad():
        want = copy.deepcopy(layer).double()(x.double())[0]
        error = {}
        for name, other in {
            "theirs": theirs,
            "int8": fastrnn.freeze(layer, INT8),
            "int8_wide": fastrnn.freeze(layer, INT8, activations=FLOAT),
            "bfloat16": fastrnn.freeze(layer, BF16),
            "float32": fastrnn.freeze(layer),
        }.items():
            error[name] = (other(x)[0] - want).square().mean().sqrt().item()
    assert error["int8"] <= error["theirs"], error
    assert error["float32"] < error["bfloat16"] < error["int8_wide"] < error["int8"], error


@pytest.mark.parametrize("H", [64, 128, 256])
def test_int8_of_rnn(H):
    """torch quantizes none. The error is less than a hundredth of the results."""
    layer = torch.nn.RNN(H, H)
    x = draw(20, 16, H, dtype=FLOAT)
    with torch.no_grad():
        want = copy.deepcopy(layer).double()(x.double())[0]
        error = (fastrnn.freeze(layer, INT8)(x)[0] - want).square().mean() / want.square().mean()
    assert error.sqrt() <= 0.01


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["input", "state"])
@each_layer
def test_int8_of_what_is_not_finite(name, where, value, isa):
    """Its sequence becomes NaN from then on, and no other changes."""
    case = case_of(name, T=4, B=5, I=9, H=19)
    frozen = fastrnn.freeze(build(name, case), INT8)
    x, hx = draw_inputs(case)
    x, hx = x.detach(), [s.detach() for s in hx]
    want = run(frozen, x, hx)
    if where == "input":
        x[2, 1, 3] = value
    else:
        hx[0][0, 1, 2] = value
    got = run(frozen, x, hx)
    others = [0, 2, 3, 4]
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g[:, others], w[:, others])
    assert torch.equal(got[0][: 2 if where == "input" else 0], want[0][: 2 if where == "input" else 0])
    # u of an IndRNN is no matrix: NaN stays in its unit. All others have some product with the row.
    after = got[0][2:, 1] if where == "input" else got[0][:, 1]
    if "IndRNN" in name and where == "state":
        after = after[..., 2] if value != value else after[..., :0]
    assert after.isnan().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["input", "state"])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8_wide"])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN-tanh", "RNN-relu"])
def test_what_is_not_finite(name, kind, where, value, isa):
    """It goes through as in torch.nn."""
    case = case_of(name, T=4, B=5, I=9, H=19)
    layer = build(name, case)
    plain = fastrnn.revert(rounded(layer, kind))
    frozen = fastrnn.freeze(layer, **KINDS[kind][1])
    x, hx = case.inputs()
    x, hx = x.detach(), [s.detach() for s in hx]
    (x[2, 1] if where == "input" else hx[0][0, 1])[3] = value
    with torch.no_grad():
        got, want = (name_values(run(layer, x, hx)) for layer in (frozen, plain))
    assert_same_specials(got, want, case)
