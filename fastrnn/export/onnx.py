"""How both exporters of torch.onnx write fastrnn's operators. What users need is in fastrnn/onnx.py."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..cells import CELLS
from ..functional import run_in_form
from ..late import when_imported
from ..sequences import Options

__all__ = ["translation_table"]

# ONNX's operators, which have the names of torch.nn's layers: the order of their gates, by the letters of the
# cells, and their attributes.
_OPERATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "LSTM": ("iofg", {}),
    "GRU": ("zrn", {"linear_before_reset": 1}),
    "RNN": ("h", {}),
}
_ACTIVATIONS = {"tanh": "Tanh", "relu": "Relu"}  # of an RNN, by its nonlinearity

_NO_RESETS = "resets: a layer with them in several steps cannot be exported to ONNX"

_INT32, _INT64, _BOOL = 6, 7, 9  # ONNX's numbers of these dtypes


# ---- one operator for a call with lengths, so that an exporter sees them ----


@torch.library.custom_op("fastrnn::rnn_with_lengths", mutates_args=())
def _rnn_with_lengths(
    input: Tensor,
    lengths: Tensor,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    cell: str,
    bias: bool,
    num_layers: int,
    dropout: float,
    training: bool,
    bidirectional: bool,
    batch_first: bool,
) -> list[Tensor]:
    """fastrnn::rnn with the lengths of a padded input. `run_sequence` calls it under torch.onnx.export."""
    options = Options(cell, bias, num_layers, dropout, training, bidirectional, batch_first)
    output, last = run_in_form(input, hx, weights, options, lengths)
    return [output, *([last] if isinstance(last, Tensor) else last)]


@_rnn_with_lengths.register_fake
def _(input, lengths, *arguments):
    return torch.ops.fastrnn.rnn(input, None, *arguments)


# ---- what both exporters write ----


def _stack(op, x, steps, hx, weights, cell, H, num_layers, bidirectional, batch_first):
    """The layers of fastrnn::rnn (csrc/torch/schema.h) in the operators of `op`, an ONNX opset.

    x: `[T, B, I]`, `[B, T, I]` with batch_first
    steps: sequence_lens, `[B]` of int32, or None for T each

    Returns `[y, h_n(, c_n)]`.
    """
    info = CELLS[cell]
    name, D = _operator_of(info), 2 if bidirectional else 1
    gates, attributes = _OPERATORS[name]
    each = len(weights) // (num_layers * D)
    bias = each == len(info.parameters_of(bias=True, projected=False))
    if not bias and each != len(info.parameters_of(bias=False, projected=False)):
        raise NotImplementedError(f"proj_size: ONNX's {name} has no projection")

    G = len(gates)
    order = [info.gates.index(gate) for gate in gates]
    rows = [row for gate in order for row in range(gate * H, (gate + 1) * H)]
    if info.nonlinearity:
        attributes = {"activations": (_ACTIVATIONS[info.nonlinearity],) * D}

    def join(layer, k):
        """The k-th weight of each direction, with its gates in ONNX's order: `[D, G*H, …]`."""
        both = [weights[(layer * D + d) * each + k] for d in range(D)]
        if G > 1:
            both = [op.Gather(weight, rows, axis=0) for weight in both]
        both = [op.Unsqueeze(weight, [0]) for weight in both]
        return op.Concat(*both, axis=0) if D > 1 else both[0]

    y = op.Transpose(x, perm=[1, 0, 2]) if batch_first else x
    last = []
    for layer in range(num_layers):
        k = layer * D
        y, *states = getattr(op, name)(
            y,
            join(layer, 0),
            join(layer, 1),
            op.Concat(join(layer, 2), join(layer, 3), axis=1) if bias else None,
            steps,
            *(hx if num_layers == 1 else [op.Slice(h, [k], [k + D], [0]) for h in hx]),
            direction="bidirectional" if bidirectional else "forward",
            hidden_size=H,
            **attributes,
        )
        # [T, D, B, H] to [T, B, D*H], in the operators that dynamo=False knows: it moves packing past them.
        y = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), [0, 0, -1]) if D > 1 else op.Squeeze(y, [1])
        last.append(states)
    states = last[0] if num_layers == 1 else [op.Concat(*s, axis=0) for s in zip(*last, strict=True)]
    return [op.Transpose(y, perm=[1, 0, 2]) if batch_first else y, *states]


def _stack_with_lengths(op, x, lengths, hx, *arguments):
    """_stack for fastrnn::rnn_with_lengths. The last state of a sequence of length 0 is its initial state."""
    y, *last = _stack(op, x, op.Cast(lengths, to=_INT32), hx, *arguments)
    if hx:  # onnxruntime gives zeros for such a sequence
        runs = op.Unsqueeze(op.Cast(lengths, to=_BOOL), [1])
        last = [op.Where(runs, new, initial) for new, initial in zip(last, hx, strict=True)]
    return [y, *last]


def _step(op, x, hx, weights, cell, H, axes):
    """The states after one step, as a sequence of length 1. `axes`: the dimensions that x and hx lack."""
    x, *hx = (op.Unsqueeze(t, axes) for t in (x, *hx))
    _, *states = _stack(op, x, None, hx, weights, cell, H, 1, False, False)
    return [op.Squeeze(state, axes) for state in states]


def _operator_of(info):
    if info.layer not in _OPERATORS or info.nonlinearity not in (None, *_ACTIVATIONS):
        raise NotImplementedError(f"{info.name}: ONNX has no such operator")
    return info.layer


def _check(cell, dtype, dropout=0.0, training=False):
    """Refuse what ONNX's operators cannot do. dtype: its name in the exporter, or None if that is unknown."""
    name = _operator_of(CELLS[cell])
    if dtype not in (None, "FLOAT", "DOUBLE", "FLOAT16", "HALF"):
        raise NotImplementedError(f"dtype: ONNX's {name} has none of {dtype}")
    if dropout and training:
        raise NotImplementedError(f"dropout: ONNX's {name} has no dropout: export in eval mode")


# ---- dynamo=True ----


def translation_table() -> dict[Callable, Callable]:
    """How to write fastrnn's operators in ONNX: the argument `custom_translation_table` of torch.onnx.export.

    Raises ModuleNotFoundError if onnxscript is not installed.
    """
    from onnxscript import opset18 as op
    from onnxscript.onnx_types import TensorType

    def layer(
        x: TensorType,
        batch_sizes: TensorType | None,
        hx: Sequence[TensorType],
        weights: Sequence[TensorType],
        cell: str,
        bidirectional: bool,
        batch_first: bool,
        checkpoint_gates: bool = False,  # for training only
    ):
        _check(cell, x.dtype and x.dtype.name)
        H = weights[1].shape[1]
        if batch_sizes is None and len(x.shape) == 2:
            return _step(op, x, hx, weights, cell, H, [0])
        if batch_sizes is None:
            return _stack(op, x, None, hx, weights, cell, H, 1, bidirectional, batch_first)
        padded, steps, places = _pad(op, x, batch_sizes)
        y, *last = _stack(op, padded, steps, hx, weights, cell, H, 1, bidirectional, False)
        return [op.GatherND(y, places), *last]

    def rnn_with_lengths(
        x: TensorType,
        lengths: TensorType,
        hx: Sequence[TensorType],
        weights: Sequence[TensorType],
        cell: str,
        bias: bool,
        num_layers: int,
        dropout: float,
        training: bool,
        bidirectional: bool,
        batch_first: bool,
    ):
        _check(cell, x.dtype and x.dtype.name, dropout, training)
        H = weights[1].shape[1]
        return _stack_with_lengths(
            op, x, lengths, hx, weights, cell, H, num_layers, bidirectional, batch_first
        )

    def segments_of(
        resets: TensorType, lengths: TensorType | None, batch_sizes: TensorType | None, batch_first: bool
    ):
        raise NotImplementedError(_NO_RESETS)

    def rows_of(lengths: TensorType, B: int, T: int, batch_first: bool):
        return _rows(op, lengths, B, T, batch_first)

    return {
        torch.ops.fastrnn.layer.default: layer,
        torch.ops.fastrnn.rnn_with_lengths.default: rnn_with_lengths,
        torch.ops.fastrnn.segments_of.default: segments_of,
        torch.ops.fastrnn.rows_of.default: rows_of,  # in programs that torch.export made before
    }


def _rows(op, lengths, B, T, batch_first):
    """What find_rows of sequences.py computes."""
    lengths = op.Cast(lengths, to=_INT64)
    ordered, order = op.TopK(lengths, op.Shape(lengths))
    some = op.Cast(ordered, to=_BOOL)
    ordered, order = op.Compress(ordered, some), op.Compress(order, some)
    steps = op.Range(0, op.ReduceMax(lengths, keepdims=0), 1)
    runs = op.Less(op.Unsqueeze(steps, [1]), op.Unsqueeze(ordered, [0]))
    t, k = (op.Squeeze(of, [0]) for of in op.Split(op.NonZero(runs), num_outputs=2))
    sequence = op.Gather(order, k)
    index = op.Add(op.Mul(sequence, T), t) if batch_first else op.Add(op.Mul(t, B), sequence)
    return index, op.ReduceSum(op.Cast(runs, to=_INT64), [1], keepdims=0), order


def _pad(op, x, batch_sizes):
    """Packed rows `[R, I]` as `[T, B, I]`, the lengths `[B]`, and the place (t, b) of each row, `[R, 2]`."""
    k = op.Range(0, op.Squeeze(op.Slice(batch_sizes, [0], [1], [0]), [0]), 1)
    runs = op.Less(op.Unsqueeze(k, [0]), op.Unsqueeze(batch_sizes, [1]))  # [T, B]
    steps = op.ReduceSum(op.Cast(runs, to=_INT32), [0], keepdims=0)
    places = op.Transpose(op.NonZero(runs), perm=[1, 0])
    shape = op.Concat(op.Shape(runs), op.Shape(x, start=1), axis=0)
    return op.ScatterND(op.Expand(op.CastLike(0.0, x), shape), places, x), steps, places


# ---- dynamo=False: the exporter for TorchScript ----


class _Graph:
    """The operators with onnxscript's arguments, written into the graph of torch's GraphContext `g`."""

    # Before this opset these operators took these inputs as attributes.
    _ATTRIBUTES = {
        "Slice": (10, ("starts", "ends", "axes")),
        "Squeeze": (13, ("axes",)),
        "Unsqueeze": (13, ("axes",)),
    }
    _OUTPUTS = {"LSTM": 3, "GRU": 2, "RNN": 2}

    def __init__(self, g):
        self._g = g

    def __getattr__(self, name):
        before, names = self._ATTRIBUTES.get(name, (0, ()))

        def add(*inputs, **attributes):
            if self._g.opset < before:
                attributes = dict(zip(names, inputs[1:], strict=True))
                inputs = inputs[:1]
            typed = {f"{key}_{'i' if _is_int(value) else 's'}": value for key, value in attributes.items()}
            return self._g.op(name, *map(self._value, inputs), outputs=self._OUTPUTS.get(name, 1), **typed)

        return add

    def _value(self, given):
        if isinstance(given, list):
            return self._g.op("Constant", value_t=torch.tensor(given))
        if given is None:  # an optional input that is not given
            none = self._g.op("prim::Constant")
            none.setType(torch._C.OptionalType.ofTensor())
            return none
        return given


def _is_int(value):
    return isinstance(value[0] if isinstance(value, (list, tuple)) else value, int)


def _register():
    """Register with torch.onnx.export(dynamo=False) how to write fastrnn's operators in any opset."""
    try:
        from torch.onnx import register_custom_op_symbolic
        from torch.onnx.symbolic_helper import parse_args
    except ImportError:  # a torch without this deprecated exporter
        return

    def dtype_of(x):
        return (x.type().scalarType() or "").upper() or None

    def list_of(values):
        return list(values.node().inputs())

    def size_of(weights):
        sizes = weights[1].type().sizes()
        if sizes is None:
            raise NotImplementedError("weights: expected sizes that are known, for ONNX's hidden_size")
        return sizes[1]

    @parse_args("v", "v", "v", "v", "s", "b", "i", "f", "b", "b", "b", "b")
    def rnn(
        g, x, sizes, hx, weights, cell, bias, num_layers, dropout, training, bidirectional, batch_first, _
    ):
        _check(cell, dtype_of(x), dropout, training)
        op, hx, weights = _Graph(g), list_of(hx), list_of(weights)
        arguments = weights, cell, size_of(weights), num_layers, bidirectional
        if not sizes.node().mustBeNone():
            # The exporter puts padded sequences and their lengths in place of what packs them.
            if sizes.node().kind() != "prim::PackPadded":
                raise NotImplementedError("PackedSequence: the model must pack it, by pack_padded_sequence")
            results = _stack(op, x, sizes, hx, *arguments, False)
        elif x.type().dim() == 2:  # without a batch
            x, *hx = (op.Unsqueeze(t, [1]) for t in (x, *hx))
            results = [op.Squeeze(t, [1]) for t in _stack(op, x, None, hx, *arguments, False)]
        else:
            results = _stack(op, x, None, hx, *arguments, batch_first)
        return g.op("prim::ListConstruct", *results)

    @parse_args("v", "v", "v", "v", "s", "b", "i", "f", "b", "b", "b")
    def rnn_with_lengths(
        g, x, lengths, hx, weights, cell, bias, num_layers, dropout, training, bidirectional, batch_first
    ):
        _check(cell, dtype_of(x), dropout, training)
        weights = list_of(weights)
        results = _stack_with_lengths(
            _Graph(g),
            x,
            lengths,
            list_of(hx),
            weights,
            cell,
            size_of(weights),
            num_layers,
            bidirectional,
            batch_first,
        )
        return g.op("prim::ListConstruct", *results)

    @parse_args("v", "v", "v", "s")
    def cell(g, x, hx, weights, cell):
        _check(cell, dtype_of(x))
        weights = list_of(weights)
        axes = [0, 1] if x.type().dim() == 1 else [0]
        states = _step(_Graph(g), x, list_of(hx), weights, cell, size_of(weights), axes)
        return g.op("prim::ListConstruct", *states)

    def segments_of(g, *_):
        raise NotImplementedError(_NO_RESETS)

    first = 9  # the first opset that the exporter writes; for a later one it takes what is registered before
    register_custom_op_symbolic("fastrnn::rnn", rnn, first)
    register_custom_op_symbolic("fastrnn::rnn_with_lengths", rnn_with_lengths, first)
    register_custom_op_symbolic("fastrnn::cell", cell, first)
    register_custom_op_symbolic("fastrnn::segments_of", segments_of, first)


when_imported("torch.onnx", _register)  # its import takes as long as fastrnn's, and few programs need it
