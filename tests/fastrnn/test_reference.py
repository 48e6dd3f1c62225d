"""The reference in float64 is torch.nn, in every form; what the other tests judge by."""

import pytest
import torch
from cases import EVERY_CELL, FORMS, Case, evaluate
from tolerance import assert_close

from fastrnn import reference
from fastrnn.reference import CELLS


@pytest.mark.parametrize("hx", [True, False], ids=["hx", "nohx"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_is_torch(cell, form, bias, hx):
    for P in (0, 5) if CELLS[cell].projection else (0,):
        for L, bidirectional in ((1, False), (3, True)):
            case = Case(cell, P=P, L=L, bidirectional=bidirectional, form=form, bias=bias, hx=hx)
            case = case.but(dtype=torch.float64)
            assert_close(case.solve_exactly(), case.solve(torch.nn), case)


@pytest.mark.parametrize("cell", EVERY_CELL)
def test_step_is_torch(cell):
    case = Case(cell, T=1, dtype=torch.float64)
    module, _, x, hx = case.prepare_step(torch.nn)

    def call(x, hx):
        state = case.row.step(x, tuple(hx), *module.parameters())
        return [state[0], *state]

    got = evaluate(call, x, hx, dict(module.named_parameters()), case)
    assert_close(got, case.solve_step(torch.nn), case)


@pytest.mark.parametrize("form", ["padded", "batch_first", "packed"])
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_dropout_is_that_of_torch(cell, form):
    case = Case(cell, L=3, form=form, dropout=0.4, hx=False, dtype=torch.float64)
    layer = case.build(torch.nn)
    x, _ = case.inputs()
    torch.manual_seed(5)
    want = case.call(layer)(x, None)[0]
    torch.manual_seed(5)
    packed = case.pack(x)
    got = reference.rnn(
        packed.data if case.packed else packed,
        None,
        layer._flat_weights,
        cell,
        num_layers=3,
        dropout=0.4,
        batch_first=form == "batch_first",
        batch_sizes=packed.batch_sizes if case.packed else None,
    )[0]
    assert_close({"output": got}, {"output": want}, case)


@pytest.mark.parametrize("cell", EVERY_CELL)
def test_second_derivatives(cell):
    case = Case(cell, T=2, B=2, I=2, H=3, L=2, bidirectional=True, form="packed", dtype=torch.float64)
    x, hx = case.inputs()
    call = case.judge(case.build(torch.nn)._flat_weights)
    assert torch.autograd.gradgradcheck(lambda x, *hx: tuple(call(x, hx)), (x, *hx), fast_mode=True)


@pytest.mark.parametrize("P, bias, bidirectional", [(0, True, False), (4, False, True), (4, True, True)])
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_weight_shapes_are_those_of_torch(cell, P, bias, bidirectional):
    case = Case(cell, P=P if CELLS[cell].projection else 0, L=2, bias=bias, bidirectional=bidirectional)
    shapes = reference.weight_shapes(
        cell, case.I, case.H, P=case.P, bias=bias, num_layers=2, bidirectional=bidirectional
    )
    assert shapes == [tuple(p.shape) for p in case.build(torch.nn).parameters()]


def test_wrong_number_of_weights():
    case = Case("gru", L=2)
    weights = case.build(torch.nn)._flat_weights
    x, _ = case.inputs()
    for wrong in (weights[:-1], weights[:2], weights[:4] * 3):
        with pytest.raises(ValueError, match="weights"):
            reference.rnn(x, None, wrong, "gru", num_layers=2)
    with pytest.raises(ValueError, match="projection"):
        reference.rnn(x, None, [*weights[:4], weights[0]], "gru")
