"""Analytic first and second derivatives in float64 against finite differences, through the operators.

`torch.autograd.gradcheck` also checks that a result without a gradient is handled, that gradients have the
types and layouts of what they belong to, and that the backward gives the same bits twice.
"""

import itertools

import pytest
import torch
from cases import EVERY_CELL, Case, recorded_margin
from torch.autograd import gradcheck, gradgradcheck

import fastrnn
from fastrnn.reference import CELLS

pytestmark = pytest.mark.usefixtures("target")

EPS = 1e-6  # gradcheck's step


def flatten(case):
    """The case for gradcheck: a function of tensors, and the tensors."""
    layer = case.build(fastrnn)
    x, hx = case.inputs(fastrnn)
    packed = case.pack(x.detach())
    if case.packed:
        x = packed.data.clone().requires_grad_()
    states = 0 if hx is None else len(hx)
    weights = [w.detach().requires_grad_() for w in layer._flat_weights]
    batch_sizes = packed.batch_sizes if case.packed else None

    def function(x, *rest):
        hx, weights = rest[:states], rest[states:]
        batch_first = case.form == "batch_first"
        return tuple(
            torch.ops.fastrnn.rnn(
                x,
                batch_sizes,
                hx,
                weights,
                case.cell,
                case.bias,
                case.L,
                0.0,
                False,
                case.bidirectional,
                batch_first,
            )
        )

    return function, (x, *(hx or ()), *weights)


def with_margin(case):
    """The case with a seed for which no sum is so near to 0 that a finite difference meets relu's kink."""
    if case.cell != "rnn_relu":
        return case
    return next(
        candidate
        for seed in itertools.count(case.seed)
        if recorded_margin(candidate := case.but(seed=seed)) > 100 * EPS
    )


def flatten_step(cell, H, bias, hx, form):
    """The same for a single step."""
    case = with_margin(Case(cell, T=1, B=2, I=4, H=H, bias=bias, form=form, dtype=torch.float64))
    layer = case.build(fastrnn)
    x, states = case.inputs(fastrnn)
    states = [s[0].detach().requires_grad_() for s in states] if hx else []
    x = x[0].detach().requires_grad_()
    n = len(states)

    def function(x, *rest):
        return tuple(torch.ops.fastrnn.cell(x, rest[:n], rest[n:], cell))

    return function, (x, *states, *layer._flat_weights)


def id_of(case):
    return str(case).removesuffix("-float64")


def every_combination(**sizes):
    """Of cell, directions, biases, padded or packed, and for an LSTM the projection in `P`."""
    P = sizes.pop("P")
    for cell, *flags in itertools.product(EVERY_CELL, *[(False, True)] * 3):
        bidirectional, bias, packed = flags
        case = Case(cell, dtype=torch.float64, bidirectional=bidirectional, bias=bias, **sizes)
        case = case.but(form="packed" if packed else "padded")
        yield case
        if CELLS[cell].projection:
            yield case.but(P=P)


# Every entry of the Jacobian is looked at.
SMALL_CASES = list(every_combination(T=3, B=2, I=2, H=3, P=2))

# Sizes beyond those of vectors and tiles; a random projection of the Jacobian is looked at.
WIDE_CASES = [case for L in (1, 2) for case in every_combination(T=4, B=7, I=5, H=19, P=5, L=L)]


def other_cases():
    for cell in EVERY_CELL:
        case = Case(cell, T=3, B=7, I=5, H=19, bidirectional=True, dtype=torch.float64)
        yield from (case.but(form="batch_first"), case.but(form="unbatched"), case.but(hx=False))
        yield from (case.but(T=1), case.but(B=1), case.but(T=1, B=1, I=1, H=1), case.but(L=3, H=8))


@pytest.mark.parametrize("case", SMALL_CASES, ids=id_of)
def test_layer_whole_jacobian(case):
    assert gradcheck(*flatten(with_margin(case)), eps=EPS)


@pytest.mark.parametrize("case", [*WIDE_CASES, *other_cases()], ids=id_of)
def test_layer(case):
    assert gradcheck(*flatten(with_margin(case)), eps=EPS, fast_mode=True)


@pytest.mark.parametrize("form", ["padded", "unbatched"])
@pytest.mark.parametrize("hx", [True, False], ids=["hx", "nohx"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("H, fast", [(3, False), (19, True)])
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_cell(cell, H, fast, bias, hx, form):
    function, inputs = flatten_step(cell, H, bias, hx, form)
    assert gradcheck(function, inputs, eps=EPS, fast_mode=fast)


# ---- second derivatives ----

GRADGRAD = [
    *every_combination(T=3, B=2, I=2, H=3, P=2),
    *(case.but(T=min(case.T, 3), B=2, H=4) for case in other_cases()),
]


@pytest.mark.parametrize("case", GRADGRAD, ids=id_of)
def test_layer_twice(case):
    assert gradgradcheck(*flatten(with_margin(case)), eps=EPS, fast_mode=True)


@pytest.mark.parametrize("form", ["padded", "unbatched"])
@pytest.mark.parametrize("hx", [True, False], ids=["hx", "nohx"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_cell_twice(cell, bias, hx, form):
    function, inputs = flatten_step(cell, 3, bias, hx, form)
    assert gradgradcheck(function, inputs, eps=EPS)
