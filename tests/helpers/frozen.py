"""Kinds of frozen layers, and what the tests of them share."""

import copy

import pytest
import torch
from cases import Case, give, name_values, random, take
from layer_kinds import EVERY_LAYER, make
from own_cells import draw_inputs
from tolerance import unit_roundoff

import fastrnn

FLOAT, DOUBLE, BF16, INT8 = torch.float32, torch.float64, torch.bfloat16, torch.int8

# By the name in FrozenLayer.weights, with the dtype of the layer before it where that is not float32: the
# dtype, and the arguments of freeze.
KINDS = {
    "float32": (FLOAT, {}),
    "float64": (DOUBLE, {}),
    "bfloat16 of bfloat16": (BF16, {}),
    "bfloat16": (FLOAT, {"dtype": BF16}),
    "int8_wide": (FLOAT, {"dtype": INT8, "activations": FLOAT}),
    "int8": (FLOAT, {"dtype": INT8}),
}
each_layer = pytest.mark.parametrize("name", EVERY_LAYER)
each_kind = pytest.mark.parametrize("kind", KINDS)


def case_of(name, **changes):
    """A layer of this kind, whose sizes it allows."""
    case = Case(EVERY_LAYER[name][2], **changes)
    projected = "proj_size" in EVERY_LAYER[name][1] and case.H > 1
    return case.but(P=(case.H + 2) // 3 if projected else 0)


def build(name, case):
    options = dict(
        num_layers=case.L, bias=case.bias, batch_first=case.form == "batch_first", dtype=case.dtype
    )
    if "proj_size" in EVERY_LAYER[name][1]:
        options["proj_size"] = case.P
    if name == "sLSTM-heads":
        options["num_heads"] = next(n for n in (4, 3, 7, 1) if case.H % n == 0)
    layer = make(name, case.I, case.H, bidirectional=case.bidirectional, **options).eval()
    for norm in layer.modules():
        if isinstance(norm, torch.nn.BatchNorm1d):  # as after a training
            torch.nn.init.normal_(norm.running_mean)
            torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    return layer


def is_matrix(name, parameter):
    return (
        name.startswith(("weight_ih", "weight_hr")) or name.startswith("weight_hh") and parameter.dim() == 2
    )


def to_int8(matrix):
    """Integers and the scale of each row, `[N, 1]`."""
    scales = matrix.abs().amax(1, keepdim=True) / 127
    return (matrix / scales).round(), scales


def rounded(module, kind):
    """The layer that a frozen one with weights of `kind` computes."""
    module = copy.deepcopy(module)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if is_matrix(name, parameter) and kind == "bfloat16":
                parameter.copy_(parameter.bfloat16())
            if is_matrix(name, parameter) and kind == "int8_wide":
                numbers, scales = to_int8(parameter)
                parameter.copy_(numbers * scales)
    return module


@torch.no_grad()
def solve(layer, case, option=""):
    """All results by name. option: "lengths", "resets", "every", what the call has beside input and hx."""
    x, hx = draw_inputs(case)
    x, hx = case.pack(x.detach()), hx and give([s.detach() for s in hx])
    kwargs = {}
    if "lengths" in option:
        kwargs["lengths"] = lengths = random(case.B, seed=60).abs().mul(case.T).long().clamp(max=case.T)
        lengths[:1], lengths[1:2] = case.T, 0
    if "resets" in option:
        rows = x.data if case.packed else x
        kwargs["resets"] = random(*rows.shape[:-1], seed=70) > 1
    if "every" in option:
        kwargs["return_all_states"] = True
    output, states, *every = layer(x, hx, **kwargs)
    results = name_values([output.data if case.packed else output, *take(states)])
    for k, state in enumerate(every and (every if hasattr(every[0], "data") else every[0])):
        results[f"every state {k}"] = state.data
    assert not any(t.requires_grad for t in results.values())
    return results


def roundoff(name, dtype):
    """Of a layer of this kind. A layer normalisation divides by the deviation of its numbers. That of few
    gates may happen to be small beside the gates, a sixteenth of them in one of many rows, and by as much the
    error of a product grows."""
    return unit_roundoff(dtype) * (16 if "layernorm" in name.lower() else 1)


CELL_MODULES = {
    "LSTMCell": (fastrnn.LSTMCell, {}),
    "GRUCell": (fastrnn.GRUCell, {}),
    "GRUCell-before": (fastrnn.GRUCell, {"reset_after": False}),
    "RNNCell-tanh": (fastrnn.RNNCell, {}),
    "RNNCell-relu": (fastrnn.RNNCell, {"nonlinearity": "relu"}),
    "RNNCell-sigmoid": (fastrnn.RNNCell, {"nonlinearity": "sigmoid"}),
    "RNNCell-identity": (fastrnn.RNNCell, {"nonlinearity": "identity"}),
    "torch.nn.LSTMCell": (torch.nn.LSTMCell, {}),
    "torch.nn.GRUCell": (torch.nn.GRUCell, {}),
    "torch.nn.RNNCell": (torch.nn.RNNCell, {"nonlinearity": "relu"}),
}
