"""Sizes of 0: torch.nn's cells take them, and fastrnn.functional takes them everywhere."""

import itertools

import pytest
import torch
from cases import EVERY_CELL, Case, cotangents, device_of, give, random, take
from tolerance import assert_close

import fastrnn
import fastrnn.functional
from fastrnn import reference
from fastrnn.reference import CELLS

pytestmark = pytest.mark.usefixtures("target")

DOUBLE = torch.float64
CASE = Case(dtype=DOUBLE)  # sets the tolerance only
STEP_SIZES = [sizes for sizes in itertools.product((0, 3), (0, 4), (0, 5)) if 0 in sizes]


def gradients_of(values, leaves):
    return torch.autograd.grad(values, leaves, cotangents(values), allow_unused=True)


def name_all(values, gradients):
    named = {f"value {i}": v.detach() for i, v in enumerate(values)}
    return named | {f"gradient {i}": g for i, g in enumerate(gradients)}


@pytest.mark.parametrize("hx", [True, False], ids=["hx", "nohx"])
@pytest.mark.parametrize("B, I, H", STEP_SIZES)
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_step(cell, B, I, H, hx):
    row = CELLS[cell]

    def solve(library):
        torch.manual_seed(0)
        module = getattr(library, row.cell.__name__)(I, H, dtype=DOUBLE, **row.kwargs).to(device_of(library))
        x = random(B, I, seed=1, dtype=DOUBLE)
        states = [random(B, H, seed=2 + k, dtype=DOUBLE) for k in range(row.states)]
        x, *states = (t.to(device_of(library)).requires_grad_() for t in (x, *states))
        values = take(module(x, give(states) if hx else None))
        return name_all(values, gradients_of(values, [x, *states * hx, *module.parameters()]))

    assert_close(solve(fastrnn), solve(torch.nn), CASE)


class Layer:
    """A layer of these sizes as a function of its tensors, and the reference's of the same."""

    def __init__(self, cell, I, H, P, D, form="padded"):
        self.row, self.form, self.D = CELLS[cell], form, D
        self.cell, self.projected = cell, P is not None
        T, B, G, width = 4, 3, self.row.gates, P if self.projected else H
        shapes = [(G * H, I), (G * H, width), (G * H,), (G * H,)] + [(width, H)] * self.projected
        states = [(D, B, width), (D, B, H)][: self.row.states]
        self.batch_sizes = torch.tensor([3, 2, 2, 1]) if form == "packed" else None
        x = (8, I) if form == "packed" else (B, T, I) if form == "batch_first" else (T, B, I)
        tensors = [random(*s, seed=k, dtype=DOUBLE) for k, s in enumerate([x, *states, *shapes * D])]
        self.tensors = [t.to(device_of(fastrnn)).requires_grad_() for t in tensors]

    def split(self, tensors):
        n = 1 + self.row.states
        return tensors[0], list(tensors[1:n]), list(tensors[n:])

    def fast(self, *tensors):
        x, hx, weights = self.split(tensors)
        return torch.ops.fastrnn.rnn(
            x, self.batch_sizes, hx, weights, self.cell, True, 1, 0.0, False, self.D == 2,
            self.form == "batch_first",
        )  # fmt: skip

    def judge(self, *tensors):
        x, hx, weights = self.split(tensors)
        return list(
            reference.rnn(
                x, hx, weights, cell=self.row, bias=True, num_layers=1, bidirectional=self.D == 2,
                batch_first=self.form == "batch_first", batch_sizes=self.batch_sizes,
            )
        )  # fmt: skip


LAYERS = [
    (I, H, P, D, form)
    for I, H, P in ((0, 4, None), (3, 0, None), (0, 0, None), (3, 4, 0), (0, 4, 2), (3, 0, 2), (3, 0, 0))
    for D, form in ((1, "padded"), (2, "packed"), (1, "batch_first"))
]


@pytest.mark.parametrize("I, H, P, D, form", LAYERS)
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_layer(cell, I, H, P, D, form):
    """Forward, backward, and the backward of that."""
    if P is not None and cell != "lstm":
        pytest.skip("only an LSTM has a projection")
    layer = Layer(cell, I, H, P, D, form)

    def solve(call):
        values = call(*layer.tensors)
        first = torch.autograd.grad(
            values, layer.tensors, cotangents(values), create_graph=True, allow_unused=True
        )
        first = [torch.zeros_like(t) if g is None else g for g, t in zip(first, layer.tensors, strict=True)]
        some = [g for g in first if g.requires_grad]
        second = gradients_of(some, layer.tensors) if some else []
        second = [
            torch.zeros_like(t) if g is None else g for g, t in zip(second, layer.tensors, strict=bool(some))
        ]
        return name_all(values, [g.detach() for g in first]) | {
            f"second {i}": g for i, g in enumerate(second)
        }

    got, want = solve(layer.fast), solve(layer.judge)
    # Where no second derivative exists one of the two may have none to tell.
    assert_close(
        {k: v for k, v in got.items() if k in want}, {k: v for k, v in want.items() if k in got}, CASE
    )


@pytest.mark.parametrize("I, H", [(0, 4), (3, 0)])
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_vmap_and_forward_mode(cell, I, H):
    layer = Layer(cell, I, H, None, 1)
    tensors = [t.detach() for t in layer.tensors]
    stacked = [torch.stack([t, 2 * t]) for t in tensors]
    for got, *want in zip(
        torch.vmap(layer.fast)(*stacked),
        layer.fast(*tensors),
        layer.fast(*(2 * t for t in tensors)),
        strict=True,
    ):
        torch.testing.assert_close(got, torch.stack(want))
    _, got = torch.func.jvp(layer.fast, tuple(tensors), tuple(tensors))
    _, want = torch.func.jvp(layer.judge, tuple(tensors), tuple(tensors))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("I, H", [(0, 4), (3, 0)])
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_dtypes(cell, I, H, dtype):
    row = CELLS[cell]
    module = getattr(fastrnn, row.cell.__name__)(I, H, dtype=dtype, **row.kwargs).to(device_of(fastrnn))
    h = take(module(torch.zeros(2, I, dtype=dtype, device=device_of(fastrnn))))[0]
    assert h.shape == (2, H) and h.dtype == dtype
    h.sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in module.parameters())
