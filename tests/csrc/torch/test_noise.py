"""Dropout of the h that W_hh multiplies, and zoneout: as in the reference with the same masks."""

import itertools

import numpy as np
import pytest
import torch
from cases import Case, cotangents, cover_pairs, mark_large, using_threads
from own_cells import (
    KINDS,
    RELU_CELLS,
    SEED,
    bound_by,
    call_operator,
    draw_inputs,
    draw_noise,
    draw_weights,
    fit,
    judge,
    kept_of,
    philox,
    solve,
    with_margin,
)
from tolerance import assert_close, assert_few_roundings, assert_same_bits
from torch.autograd import gradcheck, gradgradcheck

import fastrnn
from fastrnn.reference import CELLS

each_isa = pytest.mark.usefixtures("isa")
each_cell = pytest.mark.parametrize("cell", CELLS)
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


@pytest.mark.parametrize(
    "counter, key, expected",
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox(counter, key, expected):
    """The generator of these tests is that of Random123, by its own test vectors."""
    assert [int(word) for word in philox(key, counter)] == [int(word, 16) for word in expected.split()]


def layer_cases():
    rows = cover_pairs(
        H=(7, 1, 19, 150),
        I=(7, 33),
        form=("padded", "batch_first", "packed"),
        B=(3, 17, 1),
        T=(4, 1),
        P=(0, 5),
        bidirectional=(False, True),
        bias=(True, False),
        hx=(True, False),
        dtype=DTYPES,
        kind=KINDS,
    )
    for cell, row in itertools.product(CELLS, rows):
        row = dict(row)
        kind = row.pop("kind")
        case = fit(Case(cell, **row))
        yield kind if not case.P or kind == "mask" else "mask", case


NOISY_CASES = [(kind, *case.values) for kind, case in ((k, mark_large([c])[0]) for k, c in layer_cases())]


@each_isa
@pytest.mark.parametrize("kind, case", list(dict.fromkeys(NOISY_CASES)), ids=str)
def test_layer(kind, case):
    given, judged = draw_noise(case, kind)
    if case.dtype == torch.float32:
        case = with_margin(case, 2e-6)
    got, want = solve(case, **given), judge(case, **judged)
    if case.dtype == torch.bfloat16:
        assert_few_roundings(got, want, case)
    else:
        assert_close(got, {k: t if t is None else t.to(case.dtype) for k, t in want.items()}, bound_by(case))


@each_isa
@pytest.mark.quick(1)
@pytest.mark.threads
@pytest.mark.parametrize("form", ["padded", "batch_first", "packed"])
@pytest.mark.parametrize("kind", KINDS)
@each_cell
def test_same_bits(cell, kind, form):
    case = fit(Case(cell, T=5, B=9, I=64, H=257, form=form, bidirectional=True))
    given, _ = draw_noise(case, kind)
    first = solve(case, **given)
    for threads in (1, 2):
        with using_threads(threads):
            assert_same_bits(solve(case, **given), first, f"{threads} threads")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["padded", "packed"])
@each_cell
def test_derivatives(cell, kind, form):
    """First and second ones, against finite differences; the masks are the same in every call."""
    case = with_margin(fit(Case(cell, T=3, B=2, I=2, H=3, form=form, dtype=torch.float64)), 1e-3)
    given, _ = draw_noise(case, kind)
    weights = [*draw_weights(case).values()]
    x, hx = draw_inputs(case)
    n = len(hx)

    def function(x, *rest):
        return tuple(call_operator(case, rest[n:], **given)(x, rest[:n]))

    arguments = x, *hx, *weights
    assert gradcheck(function, arguments, fast_mode=True)
    assert gradgradcheck(function, arguments, fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
@each_cell
def test_checkpoint_gates(cell, kind):
    """The forward that runs again draws the same."""
    case = fit(Case(cell, T=5, B=3, I=7, H=19, bidirectional=True))
    given, _ = draw_noise(case, kind)

    def run(checkpoint):
        weights = draw_weights(case)
        x, hx = draw_inputs(case)
        flags = True, False, checkpoint
        values = torch.ops.fastrnn.layer(x, None, hx, [*weights.values()], cell, *flags, **given)
        return dict(zip("vxyhcnm", values, strict=False)) | {
            f"d{k}": g
            for k, g in enumerate(
                torch.autograd.grad(values, [x, *hx, *weights.values()], cotangents(values))
            )
        }

    assert_same_bits(run(True), run(False), "checkpoint_gates")


# ---- layers, which draw with torch's generator ----


def make_layer(cell, **options):
    """The layer of a cell, as users make it, in float64."""
    info = CELLS[cell].info
    own = {"gru_reset_before": {"reset_after": False}}.get(cell, {})
    if info.nonlinearity is not None:
        own = {"nonlinearity": info.nonlinearity}
    if cell == "ligru":
        own = {"normalization": None}
    return getattr(fastrnn, info.layer)(5, 8, dtype=torch.float64, **own, **options)


def results_of(output, states):
    return [output, *(states if isinstance(states, tuple) else (states,))]


def weights_of_reference(layer, cell, k, reverse):
    """The weights of the cell, by the names of its layer."""
    names = [p.name for p in CELLS[cell].info.parameters_of(layer.bias, False)]
    return [getattr(layer, f"{name}_l{k}{reverse}") for name in names]


def run_reference(layer, cell, x, masks, kept):
    """The layer's stack on the reference. masks, kept: by layer."""
    info, D = CELLS[cell].info, 1 + layer.bidirectional
    last = []
    for k in range(layer.num_layers):
        weights = [w for r in ("", "_reverse")[:D] for w in weights_of_reference(layer, cell, k, r)]
        if not info.has("input_matrix"):
            x = layer._shares(k, x)
        options = dict(bias=layer.bias, bidirectional=layer.bidirectional, masks=masks[k], kept=kept[k])
        x, *states = fastrnn.reference.rnn(x, None, weights, cell, **options)
        last.append(states)
    return [x, *(torch.cat(s) for s in zip(*last, strict=True))]


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("noise", [(0.5, 0.0), (0.0, 0.4), (0.3, 0.2), (1.0, 0.0), (0.0, 1.0)], ids=str)
@each_cell
def test_layer_draws_with_torchs_generator(cell, noise, training):
    """The masks of h with torch's dropout, and a seed for zoneout; each layer in its turn. In evaluation
    there is no mask, and zoneout is its expectation."""
    T, B, H = 4, 3, 8
    torch.manual_seed(1)
    recurrent_dropout, zoneout = noise
    layer = make_layer(
        cell, num_layers=2, bidirectional=True, recurrent_dropout=recurrent_dropout, zoneout=zoneout
    )
    layer.train(training)
    x = torch.randn(T, B, 5, dtype=torch.float64)
    torch.manual_seed(7)
    got = results_of(*layer(x))
    after = torch.get_rng_state()

    torch.manual_seed(7)
    masks, kept = [None] * 2, [None] * 2
    states = CELLS[cell].states
    case = Case(cell, T=T, B=B, H=H, bidirectional=True)
    for k in range(2):
        if training and recurrent_dropout:
            ones = torch.ones(2, B, H, dtype=torch.float64)
            masks[k] = torch.nn.functional.dropout(ones, recurrent_dropout)
        if zoneout:
            seed = int(torch.randint(2**63 - 1, (1,))) if training else None
            kept[k] = kept_of(case, seed, [zoneout] * states)
    want = run_reference(layer, cell, x, masks, kept)
    assert torch.equal(torch.get_rng_state(), after)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-11, atol=1e-11)


@each_cell
def test_seeds(cell):
    """The same seed gives the same result, another one another; without noise nothing is drawn."""
    layer = make_layer(cell, recurrent_dropout=0.5, zoneout=0.3)
    x = torch.randn(4, 3, 5, dtype=torch.float64)

    def run(seed):
        torch.manual_seed(seed)
        return layer(x)[0]

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    plain = make_layer(cell)
    before = torch.get_rng_state()
    plain(x)
    assert torch.equal(torch.get_rng_state(), before)


def test_zoneout_keeps_as_many_as_it_says():
    """Over many units: 0.3 of h, 0.6 of c, independently. 5 standard deviations are allowed."""
    T, B, H = 20, 50, 64
    layer = fastrnn.LSTM(3, H, zoneout=(0.3, 0.6))
    h, c = torch.full((1, B, H), 5.0), torch.full((1, B, H), -7.0)
    _, (h_n, c_n) = layer(torch.randn(1, B, 3), (h, c))
    is_kept = (h_n == h).double(), (c_n == c).double()
    n = B * H
    for kept, p in zip(is_kept, (0.3, 0.6), strict=True):
        assert abs(kept.mean() - p) < 5 * (p * (1 - p) / n) ** 0.5
    both = (is_kept[0] * is_kept[1]).mean()
    assert abs(both - 0.18) < 5 * (0.18 * 0.82 / n) ** 0.5
    # Steps differ.
    rnn = fastrnn.RNN(3, H, zoneout=0.5)
    y, _ = rnn(torch.randn(T, B, 3))
    same = (y[1:] == y[:-1]).double().mean((1, 2))
    assert ((same - 0.5).abs() < 5 * (0.25 / n) ** 0.5).all()


def test_recurrent_dropout_in_the_mean():
    """Of a linear recurrence the mean over many masks is what there is without: factors are 0 or 1/(1-p)."""
    layer = fastrnn.RNN(2, 4, nonlinearity="identity", recurrent_dropout=0.4, dtype=torch.float64)
    x = torch.randn(2, 1, 2, dtype=torch.float64).expand(2, 40_000, 2)
    y = layer(x)[0][1]
    expected = layer.eval()(x[:, :1])[0][1]
    error = y.std(0) / 40_000**0.5
    assert ((y.mean(0) - expected).abs() < 5 * error).all()
    assert (y.std(0) > 0).all()


@pytest.mark.parametrize("zoneout", [0.0, 0.5])
def test_torch_checkpoint_sees_the_same_masks(zoneout):
    layer = fastrnn.LSTM(5, 8, num_layers=2, recurrent_dropout=0.5, zoneout=zoneout)
    x = torch.randn(4, 3, 5, requires_grad=True)

    def run(call):
        torch.manual_seed(3)
        y = call(x)
        return y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])

    plain = run(lambda x: layer(x)[0])
    again = run(lambda x: torch.utils.checkpoint.checkpoint(lambda x: layer(x)[0], x, use_reentrant=False))
    for a, b in zip(plain, again, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("cell", ["lstm", "gru", "ligru", "slstm"])
def test_packed_and_lengths_draw_for_their_sequences(cell):
    """A mask of h for each sequence; what follows the end of a sequence changes nothing."""
    layer = make_layer(cell, recurrent_dropout=0.5, zoneout=0.3, bidirectional=True)
    x = torch.randn(5, 3, 5, dtype=torch.float64)
    lengths = torch.tensor([5, 3, 1])

    def run(x):
        torch.manual_seed(3)
        return results_of(*layer(x, lengths=lengths))

    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths)
    torch.manual_seed(3)
    y, last = layer(packed)
    padded, _ = torch.nn.utils.rnn.pad_packed_sequence(y)
    spoiled = x.clone()
    spoiled[3:, 1] = 9.0
    for one in (results_of(padded, last), run(spoiled)):
        for a, b in zip(one, run(x), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("lstm", [True, False])
def test_one_mask_for_all_gates_and_steps(lstm):
    layer = (fastrnn.LSTM if lstm else fastrnn.RNN)(5, 8, recurrent_dropout=0.5, dtype=torch.float64)
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    torch.manual_seed(5)
    y, _ = layer(x)
    torch.manual_seed(5)
    mask = torch.nn.functional.dropout(torch.ones(1, 3, 8, dtype=torch.float64), 0.5)[0]
    h, c = torch.zeros(2, 3, 8, dtype=torch.float64)
    for t in range(4):
        z = x[t] @ layer.weight_ih_l0.T + layer.bias_ih_l0 + layer.bias_hh_l0
        z = z + (h * mask) @ layer.weight_hh_l0.T
        if lstm:
            i, f, g, o = z.chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        else:
            h = z.tanh()
        torch.testing.assert_close(y[t], h, rtol=1e-12, atol=1e-12)


def test_relu_cells_are_known():
    assert set(RELU_CELLS) == {n for n, r in CELLS.items() if r.info.nonlinearity == "relu" or n == "ligru"}
    assert np.uint64(SEED) >> np.uint64(32), "both words of the key are used"
