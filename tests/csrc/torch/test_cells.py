"""Cells that torch.nn does not have: values and all gradients equal those of the reference in float64."""

import itertools

import pytest
import torch
from cases import Case, cotangents, cover_pairs, evaluate, mark_large, random, using_threads
from own_cells import (
    OWN_CELLS,
    RELU_CELLS,
    bound_by,
    call_operator,
    call_reference,
    draw_inputs,
    draw_weights,
    fit,
    judge,
    solve,
    with_margin,
)
from tolerance import assert_close, assert_few_roundings, assert_same_bits, assert_same_specials
from torch.autograd import gradcheck, gradgradcheck

from fastrnn import _C, reference

pytestmark = pytest.mark.usefixtures("isa")
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
FORMS = ("padded", "batch_first", "packed")

each_cell = pytest.mark.parametrize("cell", OWN_CELLS)


def layer_cases():
    rows = cover_pairs(
        H=(1, 7, 16, 150, 257),
        I=(1, 7, 33, 257),
        form=FORMS,
        B=(3, 17, 1, 0),
        T=(5, 1, 2),
        P=(0, 5),
        bidirectional=(False, True),
        bias=(True, False),
        hx=(True, False),
        dtype=DTYPES,
    )
    for cell in OWN_CELLS:
        for row in rows:
            if row["B"] == 0 and row["form"] == "packed":
                row = row | {"form": "batch_first"}  # there is no packed sequence without a sequence
            yield fit(Case(cell, **row))
        for form, dtype in itertools.product(FORMS, DTYPES):
            if cell not in RELU_CELLS:
                yield fit(Case(cell, T=20, B=17, I=33, H=150, form=form, dtype=dtype, bidirectional=True))
            # A step of many sequences, which the kernels take in parts
            yield fit(Case(cell, T=1, B=700, I=5, H=19, form=form, dtype=dtype))


@pytest.mark.parametrize("case", mark_large(dict.fromkeys(layer_cases())), ids=str)
def test_layer(case):
    if case.dtype == torch.float32:
        case = with_margin(case, 2e-6)
    got = solve(case)
    if case.dtype == torch.bfloat16:
        assert_few_roundings(got, judge(case), case)
    else:
        expected = judge(case)
        rounded = {k: None if t is None else t.to(case.dtype) for k, t in expected.items()}
        assert_close(got, rounded, bound_by(case))


@pytest.mark.quick(1)
@pytest.mark.threads
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
@each_cell
def test_same_bits(cell, form, dtype):
    """Again, and with another number of threads."""
    case = fit(Case(cell, T=6, B=9, I=64, H=257, form=form, bidirectional=True, dtype=dtype))
    first = solve(case)
    for threads in (1, 2):
        with using_threads(threads):
            assert_same_bits(solve(case), first, f"{threads} threads")
    sizes = dict(T=case.T, B=case.B, I=case.I, H=case.H, P=case.H, D=2)
    plan = _C.cpu_plan(cell=cell, dtype=str(dtype)[6:], threads=2, **sizes)["forward"]
    assert plan["threads"] == 2 or plan["reason"] == "there is no second thread"  # which proves nothing


@each_cell
def test_bits_do_not_depend_on_the_batch(cell):
    """A sequence alone, and among others."""
    case = fit(Case(cell, T=4, B=19, I=33, H=150))
    weights = [w.detach() for w in draw_weights(case).values()]
    x, hx = draw_inputs(case)
    every = call_operator(case, weights)(x, hx)
    alone = call_operator(case, weights)(x[:, 7:12], [h[:, 7:12] for h in hx])
    assert_same_bits(
        {str(k): t for k, t in enumerate(alone)},
        {str(k): t[:, 7:12] for k, t in enumerate(every)},
        "5 of 19 sequences",
    )


@pytest.mark.parametrize("what", ["x", "hx", "weights", "gradients"])
@pytest.mark.parametrize("layout", ["transposed", "every_second", "expanded", "misaligned"])
@each_cell
def test_strides(cell, layout, what):
    """Views of all kinds, as input, states, weights and gradients of the results."""
    case = fit(Case(cell, T=4, B=5, I=6, H=19, bidirectional=True, dtype=torch.float64))
    if case.row.info.normalised and (layout, what) == ("expanded", "weights"):
        pytest.skip("all products are multiples of the sum of h: where that is near 0, rounding grows")

    def lay(t):
        t = t.detach()
        if layout == "transposed":
            t = t.mT.contiguous().mT if t.dim() > 1 else t.unsqueeze(-1).expand(*t.shape, 2).select(-1, 1)
        elif layout == "every_second":
            t = torch.stack([t, t + 1], -1)[..., 0]
        elif layout == "expanded":
            t = t[..., :1].expand(t.shape)
        else:
            t = torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)
        return t

    def run(call, weights, x, hx):
        values = call(x, hx)
        outer = [lay(g) if what == "gradients" else g for g in cotangents(values)]
        gradients = torch.autograd.grad(values, [x, *hx, *weights], outer)
        names = ["dx", *(f"d{s}_0" for s in case.row.info.states), *(f"dW{k}" for k in range(len(weights)))]
        named = dict(zip(names, gradients, strict=True))
        return named | {f"value{k}": v for k, v in enumerate(values)}

    weights = [*draw_weights(case).values()]
    x, hx = draw_inputs(case)
    if what == "x":
        x = lay(x).requires_grad_()
    elif what == "hx":
        hx = [lay(h).requires_grad_() for h in hx]
    elif what == "weights":
        weights = [lay(w).requires_grad_() for w in weights]
    got = run(call_operator(case, weights), weights, x, hx)
    assert_close(got, run(call_reference(case, weights), weights, x, hx), bound_by(case))


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "all-but"])
@pytest.mark.parametrize("form", FORMS)
@each_cell
def test_requires_grad(cell, form, alone):
    """Any leaf may be the only one, or the only one not, to require a gradient."""
    case = fit(Case(cell, T=3, B=4, I=5, H=19, P=3, form=form, dtype=torch.float64))
    count = 1 + case.row.states + len(draw_weights(case))

    def run(call_of, k):
        weights = draw_weights(case)
        x, hx = draw_inputs(case)
        for place, leaf in enumerate([x, *hx, *weights.values()]):
            leaf.requires_grad_((place == k) == alone)
        return evaluate(call_of(case, [*weights.values()]), x, hx, weights, case)

    for k in range(count):
        want = run(call_reference, k)
        gradients = [t for name, t in want.items() if name.startswith("d")]
        assert sum(t is not None for t in gradients) == (1 if alone else count - 1)
        assert_close(run(call_operator, k), want, bound_by(case))


@pytest.mark.parametrize("form", FORMS)
@each_cell
def test_part_of_the_results(cell, form):
    """Only one of output, h_n and further states reaches the loss."""
    case = fit(Case(cell, T=3, B=4, I=5, H=19, P=3, form=form, dtype=torch.float64, bidirectional=True))

    def run(call_of, k):
        weights = draw_weights(case)
        x, hx = draw_inputs(case)
        values = call_of(case, [*weights.values()])(x, hx)
        values[k].backward(cotangents(values)[k])
        leaves = {"x": x, **{f"{s}_0": h for s, h in zip(case.row.info.states, hx, strict=True)}, **weights}
        return {f"d{n}": torch.zeros_like(t) if t.grad is None else t.grad for n, t in leaves.items()}

    for k in range(1 + case.row.states):
        assert_close(run(call_operator, k), run(call_reference, k), bound_by(case))


SPECIALS = (float("nan"), float("inf"), -float("inf"))


@pytest.mark.parametrize("value", SPECIALS, ids=str)
@pytest.mark.parametrize("where", ["x", "hx", "W_hh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@each_cell
def test_specials(cell, where, value, dtype):
    """NaN and Inf are where they are in the reference."""
    case = fit(Case(cell, T=4, B=3, I=5, H=19, dtype=dtype))

    def run(call_of):
        weights = draw_weights(case)
        x, hx = draw_inputs(case)
        given = {"x": x, "hx": hx[0], "W_hh": weights.get("W_hh", weights.get("u_hh"))}[where]
        with torch.no_grad():
            given.view(-1)[given.numel() // 2] = value
            values = call_of(case, [*weights.values()])(x, hx)
        return {f"value{k}": v for k, v in enumerate(values)}

    assert_same_specials(run(call_operator), run(call_reference), bound_by(case))


@pytest.mark.parametrize("value", SPECIALS, ids=str)
@pytest.mark.parametrize("result", [0, 1, 2])
@each_cell
def test_special_gradients(cell, result, value):
    """NaN and Inf among the gradients of the results go to those of the reference."""
    case = fit(Case(cell, T=4, B=3, I=5, H=19, dtype=torch.float64))
    if result > case.row.states:
        pytest.skip("it has no such result")

    def run(call_of):
        weights = draw_weights(case)
        x, hx = draw_inputs(case)
        values = call_of(case, [*weights.values()])(x, hx)
        outer = cotangents(values)
        outer[result][-1, 1, 5] = value
        leaves = [x, *hx]  # gradients of the weights sum products of 0 and Inf
        names = ["dx", *(f"d{s}_0" for s in case.row.info.states)]
        return dict(zip(names, torch.autograd.grad(values, leaves, outer), strict=True))

    got, want = run(call_operator), run(call_reference)
    for name, expected in want.items():
        assert torch.equal(got[name].isfinite(), expected.isfinite()), name


@each_cell
def test_saturated(cell):
    """Large sums overflow nothing that the reference keeps."""
    case = fit(Case(cell, T=6, B=3, I=5, H=19, dtype=torch.float32))
    weights = [*draw_weights(case).values()]
    x, hx = draw_inputs(case)
    if cell in ("rnn_identity", *RELU_CELLS):
        scale = 1e3  # their states grow
    else:
        scale = 1e4
    with torch.no_grad():
        got = call_operator(case, weights)(x * scale, hx)
        want = call_reference(case, [w.double() for w in weights])(
            x.double() * scale, [h.double() for h in hx]
        )
    for g, w in zip(got, want, strict=True):
        assert g.isfinite().all()
        assert ((g - w).abs() <= 1e-4 * (1 + w.abs().max())).all()


def test_slstm_tie():
    """The gradient where the stabiliser has two maxima: the forget gate is open, and the input repeats."""
    H = 5
    gates = torch.zeros(4, 2, 4 * H, dtype=torch.float64)
    gates[..., :H] = 0.5  # i
    gates[..., H : 2 * H] = 1000.0  # f, whose log sigmoid is 0
    gates[..., 2 * H :] = random(4, 2, 2 * H, seed=4, dtype=torch.float64)
    W = torch.zeros(4 * H, H, dtype=torch.float64)

    def run(rnn):
        x = gates.clone().requires_grad_()
        y, *_ = rnn(x, [W])
        (y * random(*y.shape, seed=5, dtype=torch.float64)).sum().backward()
        return x.grad

    got = run(lambda x, w: ops_rnn(x, w))
    want = run(lambda x, w: reference.rnn(x, None, w, "slstm"))
    assert want.abs().max() > 0.01
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def ops_rnn(x, weights):
    return torch.ops.fastrnn.rnn(x, None, [], weights, "slstm", False, 1, 0.0, False, False, False)


def derivative_cases():
    for cell, form in itertools.product(OWN_CELLS, ("padded", "packed", "batch_first")):
        for bidirectional, bias in itertools.product((False, True), (False, True)):
            case = Case(cell, T=3, B=2, I=2, H=3, P=2, form=form, bias=bias, dtype=torch.float64)
            yield fit(case.but(bidirectional=bidirectional))
            yield fit(case.but(bidirectional=bidirectional, P=0, hx=False))


@pytest.mark.parametrize("case", list(dict.fromkeys(derivative_cases())), ids=str)
def test_derivatives(case):
    """First and second ones, against finite differences."""
    case = with_margin(case, 1e-4)
    weights = draw_weights(case)
    x, hx = draw_inputs(case)
    n = len(hx or ())

    def function(x, *rest):
        return tuple(call_operator(case, rest[n:])(x, rest[:n]))

    given = x, *(hx or ()), *weights.values()
    assert gradcheck(function, given, fast_mode=True)
    assert gradgradcheck(function, given, fast_mode=True)
