"""fastrnn.functional: the shapes that its docstrings give, and the same bits as the modules."""

import inspect
from itertools import product

import pytest
import torch
from cases import EVERY_CELL, FORMS, Case, device_of, give, name_values, random, take
from tolerance import assert_close, assert_same_bits
from torch.nn.utils.rnn import PackedSequence

import fastrnn
from fastrnn import functional, reference
from fastrnn.reference import CELLS

pytestmark = pytest.mark.usefixtures("target")

DOUBLE = torch.float64
function_of = {"lstm": "lstm", "gru": "gru", "rnn_tanh": "rnn", "rnn_relu": "rnn"}


def find(cell, step=False):
    """The function, and what it needs besides the module's arguments."""
    return getattr(functional, function_of[cell] + "_cell" * step), dict(CELLS[cell].kwargs)


@pytest.mark.parametrize("hx", [True, False], ids=["hx", "nohx"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "both"])
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_sequence_is_that_of_the_module(cell, bidirectional, form, hx):
    for L, bias, P in product((1, 2), (True, False), (0, 7) if CELLS[cell].projection else (0,)):
        case = Case(cell, L=L, bias=bias, P=P, bidirectional=bidirectional, form=form, hx=hx)
        layer = case.build(fastrnn)
        x, states = case.inputs(fastrnn)
        function, kwargs = find(cell)
        kwargs |= dict(bias=bias, num_layers=L, bidirectional=bidirectional)
        kwargs["batch_first"] = form == "batch_first"

        def run(function=function, layer=layer, case=case, x=x, states=states, kwargs=kwargs):
            return function(case.pack(x), states and give(states), list(layer.parameters()), **kwargs)

        output, last = run()
        assert isinstance(output, PackedSequence) == case.packed
        output = output.data if case.packed else output
        D = 1 + bidirectional
        assert output.shape[-1] == D * (P or case.H)
        batch = [case.B] * case.batched
        assert [list(s.shape) for s in take(last)] == [[L * D, *batch, n] for n in case.state_sizes]
        assert isinstance(last, torch.Tensor) == (CELLS[cell].states == 1)
        assert_same_bits(
            name_values([output, *take(last)]), name_values(case.call(layer)(x, states)), str(case)
        )
        with torch.no_grad():
            output, last = run()
            want = name_values(case.call(layer)(x, states))
        got = name_values([output.data if case.packed else output, *take(last)])
        assert_same_bits(got, want, f"{case}, without autograd")


@pytest.mark.parametrize("batch", [(3,), ()], ids=["batched", "unbatched"])
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_step_is_the_reference(cell, batch):
    """With both biases, with one of them, with none; with states and without."""
    I, H = 5, 19
    case = Case(cell, T=1, I=I, H=H, dtype=DOUBLE)
    row = CELLS[cell]
    device = device_of(fastrnn)
    W_ih, W_hh, b_ih, b_hh = (
        random(*shape, seed=k, dtype=DOUBLE, scale=0.3).to(device)
        for k, shape in enumerate(reference.weight_shapes(cell, I, H))
    )
    x = random(*batch, I, seed=5, dtype=DOUBLE).to(device)
    function, kwargs = find(cell, step=True)
    for biases, with_hx in product(
        ((b_ih, b_hh), (b_ih, None), (None, b_hh), (), (None, None)), (True, False)
    ):
        states = [random(*batch, H, seed=6 + k, dtype=DOUBLE).to(device) for k in range(row.states)]
        if not with_hx:
            states = [torch.zeros_like(s) for s in states]
        got = take(function(x, give(states) if with_hx else None, W_ih, W_hh, *biases, **kwargs))
        want = row.step(x, tuple(states), W_ih, W_hh, *biases)
        assert_close({"h_n": got[0], "c_n": got[-1]}, {"h_n": want[0], "c_n": want[-1]}, case)


@pytest.mark.parametrize("cell", EVERY_CELL)
def test_dropout_needs_training(cell):
    case = Case(cell, L=2, T=6, H=33)
    x, _ = case.inputs(fastrnn)
    function, kwargs = find(cell)
    weights = list(case.build(fastrnn).parameters())

    def run(p, training):
        torch.manual_seed(0)
        return function(x, None, weights, num_layers=2, dropout=p, training=training, **kwargs)[0]

    assert torch.equal(run(0.5, False), run(0.0, True))
    assert not torch.equal(run(0.5, True), run(0.0, True))


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn", "lstm_cell", "gru_cell", "rnn_cell"])
def test_docstring_names_every_argument(name):
    function = getattr(functional, name)
    assert function.__doc__ and "Returns:" in function.__doc__
    for argument in inspect.signature(function).parameters:
        assert argument in function.__doc__, argument
