"""ONNX's nodes of fastrnn's layers: what all exporters write, and what is written in a dynamo=True export."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from ..cells import CELLS
from ..late import when_imported

__all__ = [
    "BOOL",
    "INT32",
    "INT64",
    "OPERATORS",
    "cell",
    "check",
    "is_exporting",
    "rnn",
    "stack",
    "stack_with_lengths",
    "stack_without_batch",
    "step",
]

NO_RESETS = "resets: a layer with them in several steps cannot be exported to ONNX"
INT32, INT64, BOOL = 6, 7, 9  # ONNX's numbers of these dtypes


class Operator(NamedTuple):
    """The operator of ONNX that computes a cell.

    Attributes:
        name: in ONNX
        gates: their letters, in ONNX's order of the rows of W and R
        attributes: what makes it this cell, of one direction
    """

    name: str
    gates: str
    attributes: dict[str, Any]


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "lstm": Operator("LSTM", "iofg", {}),
        "gru": Operator("GRU", "zrn", {"linear_before_reset": 1}),
        "rnn_tanh": Operator("RNN", "h", {"activations": ["Tanh"]}),
        "rnn_relu": Operator("RNN", "h", {"activations": ["Relu"]}),
        "rnn_sigmoid": Operator("RNN", "h", {"activations": ["Sigmoid"]}),
        "rnn_identity": Operator(
            "RNN", "h", {"activations": ["Affine"], "activation_alpha": [1.0], "activation_beta": [0.0]}
        ),
        "gru_reset_before": Operator("GRU", "zrn", {"linear_before_reset": 0}),
        "peephole_lstm": Operator("LSTM", "iofg", {}),
    }
)


def operator_of(cell: str) -> Operator:
    """Raises NotImplementedError if ONNX has none."""
    if cell not in OPERATORS:
        raise NotImplementedError(f"{cell}: ONNX has no such operator")
    return OPERATORS[cell]


def check(cell, dtype, dropout=0.0, training=False, recurrent_dropout=0.0, zoneout=(), resets=None):
    """Refuse what ONNX's operators cannot do. dtype: its name in the exporter, or None if that is unknown."""
    name = operator_of(cell).name
    if dtype not in (None, "FLOAT", "FLOAT32", "DOUBLE", "FLOAT64", "FLOAT16", "HALF"):
        raise NotImplementedError(f"dtype: ONNX's {name} has none of {dtype}")
    for argument, p in (("dropout", dropout), ("recurrent_dropout", recurrent_dropout)):
        if p and training:
            raise NotImplementedError(f"{argument}: ONNX's {name} has no dropout: export in eval mode")
    if resets is not None:
        raise NotImplementedError(NO_RESETS)
    if any(zoneout):
        raise NotImplementedError(f"zoneout: ONNX's {name} has none")


def _has_bias(cell, each):
    """Whether a layer of so many weights in each direction has biases. Refuse a projection."""
    info = CELLS[cell]
    bias = each == len(info.parameters_of(bias=True, projected=False))
    if not bias and each != len(info.parameters_of(bias=False, projected=False)):
        raise NotImplementedError(f"proj_size: ONNX's {operator_of(cell).name} has no projection")
    return bias


def stack(op, x, steps, hx, weights, cell, H, num_layers, bidirectional, batch_first):
    """The layers of fastrnn::rnn (csrc/torch/schema.h) in the operators of `op`, an ONNX opset.

    x: `[T, B, I]`, `[B, T, I]` with batch_first
    steps: sequence_lens, `[B]` of int32, or None for T each

    Returns `[y, h_n(, c_n)]`.
    """
    (name, gates, attributes), D = operator_of(cell), 2 if bidirectional else 1
    each = len(weights) // (num_layers * D)
    bias = _has_bias(cell, each)

    G = len(gates)
    order = [CELLS[cell].gates.index(gate) for gate in gates]
    rows = [row for gate in order for row in range(gate * H, (gate + 1) * H)]
    attributes = {key: value * D if isinstance(value, list) else value for key, value in attributes.items()}

    def join(layer, k):
        """The k-th weight of each direction, with its gates in ONNX's order: `[D, G*H, …]`."""
        both = [weights[(layer * D + d) * each + k] for d in range(D)]
        if G > 1:
            both = [op.Gather(weight, rows, axis=0) for weight in both]
        both = [op.Unsqueeze(weight, [0]) for weight in both]
        return op.Concat(*both, axis=0) if D > 1 else both[0]

    places = [p.symbol for p in CELLS[cell].parameters_of(bias, projected=False)]

    def peepholes(layer, k):
        """The k-th weight of each direction, `[3, H]` of i, f and o, as ONNX has it: `[D, 3*H]`, i, o, f."""
        both = [op.Gather(weights[(layer * D + d) * each + k], [0, 2, 1], axis=0) for d in range(D)]
        both = [op.Reshape(weight, [1, -1]) for weight in both]
        return op.Concat(*both, axis=0) if D > 1 else both[0]

    y = op.Transpose(x, perm=[1, 0, 2]) if batch_first else x
    last = []
    for layer in range(num_layers):
        k = layer * D
        states = hx if num_layers == 1 else [op.Slice(h, [k], [k + D], [0]) for h in hx]
        if "W_c" in places:
            states = [*(states or [None, None]), peepholes(layer, places.index("W_c"))]
        y, *states = getattr(op, name)(
            y,
            join(layer, 0),
            join(layer, 1),
            op.Concat(join(layer, 2), join(layer, 3), axis=1) if bias else None,
            steps,
            *states,
            direction="bidirectional" if bidirectional else "forward",
            hidden_size=H,
            **attributes,
        )
        # [T, D, B, H] to [T, B, D*H], in the operators that dynamo=False knows: it moves packing past them.
        y = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), [0, 0, -1]) if D > 1 else op.Squeeze(y, [1])
        last.append(states)
    states = last[0] if num_layers == 1 else [op.Concat(*s, axis=0) for s in zip(*last, strict=True)]
    return [op.Transpose(y, perm=[1, 0, 2]) if batch_first else y, *states]


def stack_with_lengths(op, x, lengths, hx, *arguments):
    """`stack`. The last state of a sequence of length 0 is its initial state."""
    y, *last = stack(op, x, op.Cast(lengths, to=INT32), hx, *arguments)
    if hx:  # onnxruntime gives zeros for such a sequence
        runs = op.Unsqueeze(op.Cast(lengths, to=BOOL), [1])
        last = [op.Where(runs, new, initial) for new, initial in zip(last, hx, strict=True)]
    return [y, *last]


def stack_without_batch(op, x, hx, *arguments):
    """`stack` of x `[T, I]`, time-major."""
    x, *hx = (op.Unsqueeze(t, [1]) for t in (x, *hx))
    return [op.Squeeze(t, [1]) for t in stack(op, x, None, hx, *arguments, False)]  # type: ignore[call-arg]


def step(op, x, hx, weights, cell, H, axes):
    """The states after one step, as a sequence of length 1. `axes`: the dimensions that x and hx lack."""
    x, *hx = (op.Unsqueeze(t, axes) for t in (x, *hx))
    _, *states = stack(op, x, None, hx, weights, cell, H, 1, False, False)
    return [op.Squeeze(state, axes) for state in states]


# ---- inside torch.onnx.export(dynamo=True) ----


def is_exporting() -> bool:
    """Whether torch.onnx.export(dynamo=True) records this; it imports torch.onnx only where that may be."""
    return torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()


# Dynamo would take it that is_in_onnx_export() is False. It calls what is marked so, and is slow to import.
when_imported("torch._dynamo", lambda: torch.compiler.assume_constant_result(is_exporting))


class _Tensors:
    """The operators with onnxscript's arguments, on torch's tensors. Those of layers are symbolic, and
    torch.onnx.export makes their nodes; the others are torch's operations."""

    _DTYPES = {INT32: torch.int32, BOOL: torch.bool}

    def Cast(self, x, to):
        return x.to(self._DTYPES[to])

    def Concat(self, *inputs, axis):
        return torch.cat(inputs, axis)

    def Gather(self, x, rows, axis):
        return x.index_select(axis, torch.tensor(rows, device=x.device))

    def Reshape(self, x, shape):  # torch's would ask for the sizes of x in the graph
        if x.dim() == 2:
            return x.reshape(shape)
        T, B, D, H = x.shape
        return self._add("Reshape", (x, torch.tensor(shape)), {}, [[T, B, D * H]])[0]

    def Slice(self, x, starts, ends, axes):
        return x.narrow(axes[0], starts[0], ends[0] - starts[0])

    def Squeeze(self, x, axes):
        return x.squeeze(axes)

    def Transpose(self, x, perm):
        return x.permute(perm)

    def Unsqueeze(self, x, axes):
        for axis in axes:
            x = x.unsqueeze(axis)
        return x

    def Where(self, condition, x, y):
        return torch.where(condition, x, y)

    def LSTM(self, *inputs, **attributes):
        return self._layer("LSTM", 2, *inputs, **attributes)

    def GRU(self, *inputs, **attributes):
        return self._layer("GRU", 1, *inputs, **attributes)

    def RNN(self, *inputs, **attributes):
        return self._layer("RNN", 1, *inputs, **attributes)

    def _layer(self, name, states, x, W, R, *others, **attributes):
        T, B = x.shape[:2]
        D, _, H = R.shape
        shapes = [[T, D, B, H], *[[D, B, H]] * states]
        return self._add(name, (x, W, R, *others), attributes, shapes)

    def _add(self, name, inputs, attributes, shapes):
        x = inputs[0]
        results = torch.onnx.ops.symbolic_multi_out(
            name, inputs, attributes, dtypes=[x.dtype] * len(shapes), shapes=shapes
        )
        return [_move(result, x.device) for result in results]  # a symbolic result is on the CPU


def rnn(x, batch_sizes, hx, weights, *options, lengths=None):
    """fastrnn::rnn, perhaps with the lengths of a padded x.

    Packed rows, and what Dynamo records, which refuses symbolic operators, are left to the translation table.
    """
    # The operator refuses sizes that do not fit; the graph keeps no node whose results nobody uses.
    results = torch.ops.fastrnn.rnn(x, batch_sizes, hx, weights, *options)
    cell, _, num_layers, dropout, training, bidirectional, batch_first, _, *noise = options
    x, hx, weights = _cast(x, hx, weights, results)
    check(cell, _name(x.dtype), dropout, training, *noise)
    _has_bias(cell, len(weights) // (num_layers * (1 + bidirectional)))
    if batch_sizes is not None or torch.compiler.is_dynamo_compiling():
        return results
    op, arguments = _Tensors(), (weights, cell, weights[1].shape[1], num_layers, bidirectional)
    if lengths is not None:
        return stack_with_lengths(op, x, _move(lengths, x.device), hx, *arguments, batch_first)
    if x.dim() == 2:
        return stack_without_batch(op, x, hx, *arguments)
    return stack(op, x, None, hx, *arguments, batch_first)


def cell(x, hx, weights, cell):
    """fastrnn::cell."""
    results = torch.ops.fastrnn.cell(x, hx, weights, cell)
    x, hx, weights = _cast(x, hx, weights, results)
    check(cell, _name(x.dtype))
    if torch.compiler.is_dynamo_compiling():
        return results
    return step(_Tensors(), x, hx, weights, cell, weights[1].shape[1], [0, 1] if x.dim() == 1 else [0])


def _cast(x, hx, weights, results):
    """All in the dtype of the results, which is that of the region under torch.autocast."""
    dtype = results[0].dtype
    return _move(x, dtype), [_move(h, dtype) for h in hx], [_move(w, dtype) for w in weights]


def _move(x, to):
    """x on a device, or in a dtype. The graph has no node where x is so already."""
    return x if to in (x.device, x.dtype) else x.to(to)


def _name(dtype):
    return str(dtype).removeprefix("torch.").upper()
