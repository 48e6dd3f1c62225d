"""How torch.onnx writes fastrnn's operators in programs of torch.export, and by its TorchScript exporter.

What users need is in fastrnn/onnx.py. What a layer writes in a dynamo=True export is in nodes.py.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..functional import run_in_form
from ..late import when_imported
from ..sequences import Options
from .nodes import BOOL, INT32, INT64, NO_RESETS, check, stack, stack_with_lengths, stack_without_batch, step

__all__ = ["translation_table"]


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


# ---- programs of torch.export ----


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
        mask: TensorType | None = None,
        seed: TensorType | None = None,
        zoneout: Sequence[float] = (),
        resets: TensorType | None = None,
    ):
        check(
            cell,
            x.dtype and x.dtype.name,
            recurrent_dropout=mask is not None,
            training=True,
            zoneout=zoneout,
            resets=resets,
        )
        H = weights[1].shape[1]
        if batch_sizes is None and len(x.shape) == 2:
            return step(op, x, hx, weights, cell, H, [0])
        if batch_sizes is None:
            return stack(op, x, None, hx, weights, cell, H, 1, bidirectional, batch_first)
        padded, steps, places = _pad(op, x, batch_sizes)
        y, *last = stack(op, padded, steps, hx, weights, cell, H, 1, bidirectional, False)
        return [op.GatherND(y, places), *last]

    def segments_of(
        resets: TensorType, lengths: TensorType | None, batch_sizes: TensorType | None, batch_first: bool
    ):
        raise NotImplementedError(NO_RESETS)

    def rows_of(lengths: TensorType, B: int, T: int, batch_first: bool):
        return _rows(op, lengths, B, T, batch_first)

    return {
        torch.ops.fastrnn.layer.default: layer,
        torch.ops.fastrnn.segments_of.default: segments_of,
        torch.ops.fastrnn.rows_of.default: rows_of,
    }


def _rows(op, lengths, B, T, batch_first):
    """What find_rows of sequences.py computes."""
    lengths = op.Cast(lengths, to=INT64)
    ordered, order = op.TopK(lengths, op.Shape(lengths))
    some = op.Cast(ordered, to=BOOL)
    ordered, order = op.Compress(ordered, some), op.Compress(order, some)
    steps = op.Range(0, op.ReduceMax(lengths, keepdims=0), 1)
    runs = op.Less(op.Unsqueeze(steps, [1]), op.Unsqueeze(ordered, [0]))
    t, k = (op.Squeeze(of, [0]) for of in op.Split(op.NonZero(runs), num_outputs=2))
    sequence = op.Gather(order, k)
    index = op.Add(op.Mul(sequence, T), t) if batch_first else op.Add(op.Mul(t, B), sequence)
    return index, op.ReduceSum(op.Cast(runs, to=INT64), [1], keepdims=0), order


def _pad(op, x, batch_sizes):
    """Packed rows `[R, I]` as `[T, B, I]`, the lengths `[B]`, and the place (t, b) of each row, `[R, 2]`."""
    k = op.Range(0, op.Squeeze(op.Slice(batch_sizes, [0], [1], [0]), [0]), 1)
    runs = op.Less(op.Unsqueeze(k, [0]), op.Unsqueeze(batch_sizes, [1]))  # [T, B]
    steps = op.ReduceSum(op.Cast(runs, to=INT32), [0], keepdims=0)
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

    @parse_args("v", "v", "v", "v", "s", "b", "i", "f", "b", "b", "b", "b", "f", "fs", "v")
    def rnn(
        g,
        x,
        sizes,
        hx,
        weights,
        cell,
        bias,
        num_layers,
        dropout,
        training,
        bidirectional,
        batch_first,
        _,
        recurrent_dropout,
        zoneout,
        resets,
    ):
        given = None if resets.node().mustBeNone() else resets
        check(cell, dtype_of(x), dropout, training, recurrent_dropout, zoneout, given)
        op, hx, weights = _Graph(g), list_of(hx), list_of(weights)
        arguments = weights, cell, size_of(weights), num_layers, bidirectional
        if not sizes.node().mustBeNone():
            # The exporter puts padded sequences and their lengths in place of what packs them.
            if sizes.node().kind() != "prim::PackPadded":
                raise NotImplementedError("PackedSequence: the model must pack it, by pack_padded_sequence")
            results = stack(op, x, sizes, hx, *arguments, False)
        elif x.type().dim() == 2:
            results = stack_without_batch(op, x, hx, *arguments)
        else:
            results = stack(op, x, None, hx, *arguments, batch_first)
        return g.op("prim::ListConstruct", *results)

    @parse_args("v", "v", "v", "v", "s", "b", "i", "f", "b", "b", "b")
    def rnn_with_lengths(
        g, x, lengths, hx, weights, cell, bias, num_layers, dropout, training, bidirectional, batch_first
    ):
        check(cell, dtype_of(x), dropout, training)
        weights = list_of(weights)
        results = stack_with_lengths(
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
        check(cell, dtype_of(x))
        weights = list_of(weights)
        axes = [0, 1] if x.type().dim() == 1 else [0]
        states = step(_Graph(g), x, list_of(hx), weights, cell, size_of(weights), axes)
        return g.op("prim::ListConstruct", *states)

    def segments_of(g, *_):
        raise NotImplementedError(NO_RESETS)

    first = 9  # the first opset that the exporter writes; for a later one it takes what is registered before
    register_custom_op_symbolic("fastrnn::rnn", rnn, first)
    register_custom_op_symbolic("fastrnn::rnn_with_lengths", rnn_with_lengths, first)
    register_custom_op_symbolic("fastrnn::cell", cell, first)
    register_custom_op_symbolic("fastrnn::segments_of", segments_of, first)


when_imported("torch.onnx", _register)  # its import takes as long as fastrnn's, and few programs need it
