"""Frozen layers: the same results, with weights of fewer bits too, in every form of input."""

import pytest
import torch
from cases import FORMS, SIZES, cover_pairs, give, take, using_threads
from frozen import (
    BF16,
    CELL_MODULES,
    FLOAT,
    KINDS,
    build,
    case_of,
    each_kind,
    each_layer,
    rounded,
    roundoff,
    solve,
)
from layer_kinds import B, H, I, T, draw, draw_states, make, run
from own_cells import draw_inputs
from tolerance import SAFETY, assert_close, assert_same_bits, unit_roundoff

import fastrnn
from fastrnn.frozen import FrozenCell

FLOAT_KINDS = [kind for kind in KINDS if kind != "int8"]
ROWS = cover_pairs(
    kind=FLOAT_KINDS,
    H=SIZES,
    I=SIZES,
    form=FORMS,
    B=(3, 65, 1, 0),
    T=(4, 1),
    L=(1, 2),
    bidirectional=(False, True),
    bias=(True, False),
    hx=(True, False),
    option=("", "lengths", "resets", "every", "lengths resets", "resets every"),
)


def possible(row):
    """The row, with sequences to pack, and lengths only where they are taken."""
    row = dict(row)
    if row["B"] == 0 and row["form"] in ("packed", "unsorted", "unbatched"):
        row["form"] = "batch_first"
    if row["form"] not in ("padded", "batch_first"):
        row["option"] = row["option"].replace("lengths", "").strip()
    return row


@pytest.mark.parametrize(
    "row", [possible(row) for row in ROWS], ids=lambda row: "-".join(map(str, row.values()))
)
@each_layer
def test_results(name, row, isa):
    """Those of the layer, or of one whose matrices are rounded as those of the frozen one: its additions are
    of the same numbers."""
    row = dict(row)
    kind, option = row.pop("kind"), row.pop("option")
    dtype, arguments = KINDS[kind]
    case = case_of(name, dtype=dtype, **row)
    layer = build(name, case)
    frozen = fastrnn.freeze(layer, **arguments)
    assert frozen.weights == kind.split()[0] and frozen.dtype == dtype
    got, want = solve(frozen, case, option), solve(rounded(layer, kind), case, option)
    assert_close(got, want, case, roundoff(name, dtype))


@pytest.mark.parametrize(
    "row",
    cover_pairs(kind=FLOAT_KINDS, H=SIZES, B=(None, 0, 1, 3, 65), hx=(True, False), bias=(True, False)),
    ids=lambda row: "-".join(map(str, row.values())),
)
@pytest.mark.parametrize("name", CELL_MODULES)
def test_results_of_cells(name, row, isa):
    kind, H, B, hx, bias = row.values()
    (make_cell, own), (dtype, arguments) = CELL_MODULES[name], KINDS[kind]
    cell = make_cell(I, H, bias, dtype=dtype, **own)
    frozen = fastrnn.freeze(cell, **arguments)
    assert type(frozen) is FrozenCell
    size = () if B is None else (B,)
    x, state = draw(*size, I, dtype=dtype), draw(*size, H, seed=6, dtype=dtype)
    state = None if not hx else (state, -state) if "LSTM" in name else state
    with torch.no_grad():
        got, want = (dict(enumerate(take(c(x, state)))) for c in (frozen, rounded(cell, kind)))
    limit = SAFETY * unit_roundoff(dtype) * (I + H + 8) ** 0.5
    for k, result in want.items():
        assert got[k].dtype == dtype and got[k].shape == result.shape
        scale = max([1.0, *result.abs().flatten().tolist()])
        assert ((got[k] - result).abs() <= limit * scale).all()
    if B and hx and "torch" not in name:
        resets = torch.arange(B) % 2 == 0
        begun = [s.masked_fill(resets[:, None], 0) for s in take(state)]
        assert_same_bits(
            dict(enumerate(take(frozen(x, state, resets=resets)))),
            dict(enumerate(take(frozen(x, give(begun))))),
            "resets",
        )


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_layers_of_torch(kind):
    """As fastrnn's with their weights."""
    layer = getattr(torch.nn, kind)(I, H, 2, bidirectional=True)
    x = draw(T, B, I, dtype=FLOAT)
    got = run(fastrnn.freeze(layer), x)
    want = run(fastrnn.freeze(fastrnn.convert(layer)), x)
    assert all(map(torch.equal, got, want))


@pytest.mark.parametrize("name", ["LSTM", "GRU", "LayerNormLSTM", "sLSTM-heads", "IndRNN-tanh"])
@each_kind
def test_zoneout(name, kind):
    """The expected value, as in evaluation."""
    dtype, arguments = KINDS[kind]
    plain, zoned = (make(name, dtype=dtype, zoneout=p).eval() for p in (0.0, 0.4))
    x = draw(T, B, I, dtype=dtype)
    got = run(fastrnn.freeze(zoned.train(), **arguments), x)  # whatever the mode
    tolerance = 0.05 if dtype == BF16 or kind == "int8" else 1e-5
    for g, w, other in zip(got, run(rounded(zoned.eval(), kind), x), run(plain, x), strict=True):
        torch.testing.assert_close(g, w.detach(), rtol=tolerance, atol=tolerance)
        assert (g - other).abs().max() > 0.05  # zoneout changes results by more


@each_layer
def test_dropout_is_that_of_evaluation(name):
    layer = make(name, num_layers=2, dropout=0.5, recurrent_dropout=0.5, dtype=FLOAT)
    x = draw(T, B, I, dtype=FLOAT)
    want = run(layer.eval(), x)
    got = run(fastrnn.freeze(layer.train()), x)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w.detach(), rtol=1e-5, atol=1e-5)


LAYOUTS = {
    "transposed": lambda t: t.mT.contiguous().mT,
    "every second": lambda t: torch.stack([t, t + 1], -1)[..., 0],
    "expanded": lambda t: t[:1].expand(t.shape),
    "misaligned": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@each_kind
@each_layer
def test_strides(name, kind, layout):
    """Views of all kinds, as input and states."""
    dtype, arguments = KINDS[kind]
    frozen = fastrnn.freeze(make(name, dtype=dtype), **arguments)
    x, hx = draw(T, B, I, dtype=dtype), draw_states(name, frozen, dtype=dtype)
    x, *hx = map(LAYOUTS[layout], (x, *hx))
    got, want = run(frozen, x, hx), run(frozen, x.contiguous(), [s.contiguous() for s in hx])
    assert all(map(torch.equal, got, want))


@each_layer
@each_kind
def test_bits_do_not_depend_on_the_batch(name, kind, isa):
    """A sequence alone and among others; and the same call twice."""
    dtype, arguments = KINDS[kind]
    case = case_of(name, T=3, B=65, I=33, H=150, bidirectional=True, dtype=dtype)
    frozen = fastrnn.freeze(build(name, case), **arguments)
    x, hx = (t if isinstance(t, list) else t.detach() for t in draw_inputs(case))
    hx = [s.detach() for s in hx]
    every = run(frozen, x, hx)
    assert all(map(torch.equal, run(frozen, x, hx), every))
    for sequences in (slice(7, 12), slice(64, 65)):
        alone = run(frozen, x[:, sequences], [s[:, sequences] for s in hx])
        for k, (a, e) in enumerate(zip(alone, every, strict=True)):
            assert torch.equal(a, e[:, sequences]), f"result {k} of sequences {sequences}"


@pytest.mark.threads
@pytest.mark.parametrize("form", ["padded", "unsorted"])
@each_layer
@each_kind
def test_bits_do_not_depend_on_threads(name, kind, form):
    dtype, arguments = KINDS[kind]
    case = case_of(name, T=4, B=33, I=40, H=257, form=form, bidirectional=True, dtype=dtype)
    frozen = fastrnn.freeze(build(name, case), **arguments)
    with using_threads(1):
        want = solve(frozen, case)
    for threads in (2, 3):
        with using_threads(threads):
            assert_same_bits(solve(frozen, case), want, f"{threads} threads")
