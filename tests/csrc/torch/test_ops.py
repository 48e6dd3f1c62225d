"""The operators as torch.library sees them: schema, fake kernels, registration of autograd."""

import pytest
import torch
from cases import EVERY_CELL, FORMS, Case, device_of
from torch.library import opcheck

import fastrnn
from fastrnn.reference import CELLS

pytestmark = pytest.mark.usefixtures("device")

rnn = torch.ops.fastrnn.rnn.default
cell_step = torch.ops.fastrnn.cell.default
layer = torch.ops.fastrnn.layer.default
layer_forward = torch.ops.fastrnn.layer_forward.default
layer_backward = torch.ops.fastrnn.layer_backward.default


def tensors(case, requires_grad):
    """x, packed if the case says so, batch_sizes, states, weights."""
    weights = [w.detach().requires_grad_(requires_grad) for w in case.build(fastrnn)._flat_weights]
    x, hx = case.inputs(fastrnn)
    x, batch_sizes = x.detach(), None
    if case.packed:
        packed = case.pack(x)
        x, batch_sizes = packed.data, packed.batch_sizes
    hx = [h.detach().requires_grad_(requires_grad) for h in hx or ()]
    return x.requires_grad_(requires_grad), batch_sizes, hx, weights


def rnn_arguments(case, requires_grad=False):
    x, batch_sizes, hx, weights = tensors(case, requires_grad)
    return (
        x,
        batch_sizes,
        hx,
        weights,
        case.cell,
        case.bias,
        case.L,
        case.dropout,
        False,
        case.bidirectional,
        case.form == "batch_first",
    )


def cell_arguments(case, requires_grad=False):
    x, _, hx, weights = tensors(case, requires_grad)
    x = x[0].detach().requires_grad_(requires_grad)
    return x, [h[0].detach().requires_grad_(requires_grad) for h in hx], weights, case.cell


def layer_arguments(case, requires_grad=False):
    x, batch_sizes, hx, weights = tensors(case, requires_grad)
    return x, batch_sizes, hx, weights, case.cell, case.bidirectional, case.form == "batch_first"


SIZES = dict(T=3, B=2, I=3, H=5)
CASES = [
    Case(cell, **SIZES, **changes)
    for cell in EVERY_CELL
    for changes in (
        dict(),
        dict(L=2, bidirectional=True, form="batch_first", dtype=torch.float64),
        dict(bias=False, hx=False),
        dict(form="packed", bidirectional=True),
        dict(form="unbatched", L=2),
        *([dict(P=2, L=2)] if CELLS[cell].projection else []),
    )
]
LAYER_CASES = [c for c in CASES if c.L == 1 and c.form != "unbatched"]
grad = pytest.mark.parametrize("requires_grad", [False, True], ids=["nograd", "grad"])


@pytest.mark.quick(1)
@grad
@pytest.mark.parametrize("case", CASES, ids=str)
def test_opcheck_rnn(case, requires_grad):
    opcheck(rnn, rnn_arguments(case, requires_grad))


@grad
@pytest.mark.parametrize(
    "case",
    [
        Case(cell, **SIZES, bias=bias, hx=hx, form=form)
        for cell in EVERY_CELL
        for bias, hx, form in ((True, True, "padded"), (False, False, "padded"), (True, True, "unbatched"))
    ],
    ids=str,
)
def test_opcheck_cell(case, requires_grad):
    opcheck(cell_step, cell_arguments(case, requires_grad))


@pytest.mark.quick(1)
@grad
@pytest.mark.parametrize("case", LAYER_CASES, ids=str)
def test_opcheck_layer(case, requires_grad):
    opcheck(layer, layer_arguments(case, requires_grad))


@pytest.mark.parametrize("save", [False, True], ids=["nosave", "save"])
@pytest.mark.parametrize("case", LAYER_CASES, ids=str)
def test_opcheck_layer_forward(case, save):
    opcheck(layer_forward, (*layer_arguments(case), save))


@pytest.mark.quick(1)
@pytest.mark.parametrize("case", LAYER_CASES, ids=str)
def test_opcheck_layer_backward(case):
    x, batch_sizes, hx, weights, *rest = layer_arguments(case)
    results = layer_forward(x, batch_sizes, hx, weights, *rest, True)
    n = 1 + CELLS[case.cell].states
    gradients = [torch.ones_like(r) for r in results[:n]]
    wanted = [True] * (1 + len(hx) + len(weights))
    for g, w in ((gradients, wanted), ([gradients[0]] + [None] * (n - 1), [False, *wanted[1:]])):
        opcheck(layer_backward, (g, x, batch_sizes, hx, weights, *rest, results[n:], w))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_meta_tensors_have_the_shapes_of_real_ones(cell, form):
    case = Case(cell, **SIZES, form=form, L=2, bidirectional=True)

    def shapes(device):
        x, batch_sizes, hx, weights, *rest = rnn_arguments(case)
        there = [[t.to(device) for t in ts] for ts in ([x], hx, weights)]
        results = rnn(there[0][0], batch_sizes, *there[1:], *rest)
        assert all(r.device.type == device for r in results)
        return [(r.shape, r.dtype, r.stride()) for r in results]

    assert shapes("meta") == shapes(device_of(fastrnn))


def test_every_cell_is_registered():
    from fastrnn import _C

    # Tests of build_cell may have added some to this process.
    assert [row["name"] for row in _C.cells()][: len(CELLS)] == list(CELLS)


RNN_SCHEMA = (
    "fastrnn::rnn(Tensor input, Tensor? batch_sizes, Tensor[] hx, Tensor[] weights, str cell, "
    "bool has_biases, int num_layers, float dropout, bool train, bool bidirectional, bool batch_first, "
    "bool checkpoint_gates=False, float recurrent_dropout=0., float[] zoneout=[], Tensor? resets=None) "
    "-> Tensor[]"
)
CELL_SCHEMA = "fastrnn::cell(Tensor input, Tensor[] hx, Tensor[] weights, str cell) -> Tensor[]"


@pytest.mark.parametrize("op, schema", [(rnn, RNN_SCHEMA), (cell_step, CELL_SCHEMA)], ids=["rnn", "cell"])
def test_schema_is_that_of_the_design(op, schema):
    assert str(op._schema) == schema


# ---- what layer_backward refuses ----


def backward_arguments(case, step=False):
    """Arguments of layer_backward by name, right ones."""
    x, batch_sizes, hx, weights, cell, bidirectional, batch_first = layer_arguments(case)
    if step:
        x, hx = x[0], [h[0] for h in hx]
    results = layer_forward(x, batch_sizes, hx, weights, cell, bidirectional, batch_first, True)
    n = CELLS[case.cell].states + (not step)
    return dict(
        grads=[torch.ones_like(r) for r in results[:n]],
        x=x,
        batch_sizes=batch_sizes,
        hx=hx,
        weights=weights,
        cell=cell,
        bidirectional=bidirectional,
        batch_first=batch_first,
        saved=results[n:] or results[:1],  # a step saves its result if there is nothing else
        wanted=[True] * (1 + len(hx) + len(weights)),
    )


def replaced(items, i, item):
    items = list(items)
    items[i] = item
    return items


# name: (argument, what becomes of it, the message)
BAD_BACKWARDS = {
    "grads-count": ("grads", lambda g: g[:-1], r"^grads: expected .* got \d"),
    "grads-size": (
        "grads",
        lambda g: replaced(g, 0, g[0][..., :-1]),
        r"^dy: expected size \[.*5\], got \[.*4\]",
    ),
    "grads-dtype": (
        "grads",
        lambda g: replaced(g, 0, g[0].double()),
        "^dy: expected dtype Float .* got Double",
    ),
    "saved-count": ("saved", lambda s: s[:-1], r"^saved: expected \d tensor\(s\), got \d"),
    "saved-size": (
        "saved",
        lambda s: replaced(s, 0, s[0][..., :-1]),
        r"^saved [scy]: expected size .* got \[",
    ),
    "saved-dtype": ("saved", lambda s: replaced(s, 0, s[0].double()), "^saved [scy]: expected dtype Float"),
    "last-saved-size": ("saved", lambda s: replaced(s, -1, s[-1][:0]), r"^saved [scy]: expected size"),
    "wanted-count": ("wanted", lambda w: w[:-1], r"^wanted: expected \d+ flags, got \d+"),
    "x-size": ("x", lambda x: x[..., :-1], "^W_ih: expected size"),
}


@pytest.mark.parametrize("bad", BAD_BACKWARDS)
@pytest.mark.parametrize("step", [False, True], ids=["layer", "step"])
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_layer_backward_refuses(cell, step, bad):
    argument, change, message = BAD_BACKWARDS[bad]
    arguments = backward_arguments(Case(cell, **SIZES), step)
    layer_backward(*arguments.values())
    arguments[argument] = change(arguments[argument])
    with pytest.raises(RuntimeError, match=message):
        layer_backward(*arguments.values())


@pytest.mark.parametrize("cell", EVERY_CELL)
@pytest.mark.parametrize("i, name", list(enumerate(("y", "h_n", "c_n"))))
def test_layer_backward_names_the_gradient(cell, i, name):
    arguments = backward_arguments(Case(cell, **SIZES))
    if i >= len(arguments["grads"]):
        pytest.skip("the cell has no such result")
    arguments["grads"] = replaced(arguments["grads"], i, torch.ones(1))
    with pytest.raises(RuntimeError, match=rf"^d{name}: expected size \[.*\], got \[1\]"):
        layer_backward(*arguments.values())
