"""Export to ONNX: each layer becomes one node, the standard operator LSTM, GRU or RNN.

    torch.onnx.export(model, args, "model.onnx", dynamo=True,
                      custom_translation_table=fastrnn.onnx.translation_table())

Needs onnxscript, as torch.onnx.export does. Batch and time may be dynamic (`dynamic_shapes=`). What ONNX's
operators have no word for raises NotImplementedError: projections (`proj_size`), packed sequences and
`lengths=`, dtypes other than float32, float64 and float16.
"""

from collections.abc import Callable, Sequence

import torch

__all__ = ["translation_table"]

# ONNX's operator, the order of its gates in terms of torch's, and its attributes.
_OPERATORS = {
    "lstm": ("LSTM", (0, 3, 1, 2), {}),  # i o f c
    "gru": ("GRU", (1, 0, 2), {"linear_before_reset": 1}),  # z r n
    "rnn_tanh": ("RNN", (0,), {"activations": ("Tanh",)}),
    "rnn_relu": ("RNN", (0,), {"activations": ("Relu",)}),
}

_PADDED = "ONNX export of packed sequences and lengths: pad the batch instead"


def translation_table() -> dict[Callable, Callable]:
    """For the argument `custom_translation_table` of torch.onnx.export: fastrnn's operators in ONNX.

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
        checkpoint_gates: bool = False,  # has no meaning in what is exported
    ):
        return _translate(op, x, batch_sizes, hx, weights, cell, bidirectional, batch_first)

    def rows(lengths: TensorType, B: int, T: int, batch_first: bool):
        raise NotImplementedError(_PADDED)

    return {torch.ops.fastrnn.layer.default: layer, torch.ops.fastrnn.rows_of.default: rows}


def _translate(op, x, batch_sizes, hx, weights, cell, bidirectional, batch_first):
    """fastrnn::layer (csrc/torch/layer.h) by the operators in `op`."""
    name, order, attributes = _OPERATORS[cell]
    D = 2 if bidirectional else 1
    each = len(weights) // D
    if batch_sizes is not None:
        raise NotImplementedError(_PADDED)
    if each % 2:
        raise NotImplementedError(f"proj_size: ONNX's {name} has no projection")
    if x.dtype is not None and x.dtype.name not in ("FLOAT", "DOUBLE", "FLOAT16"):
        raise NotImplementedError(f"dtype: ONNX's {name} has none of {x.dtype.name}")

    G, H = len(order), weights[1].shape[1]
    rows = [row for gate in order for row in range(gate * H, (gate + 1) * H)]

    def stack(k):
        """Of each direction the k-th weight, its gates in ONNX's order: [D, G*H, …]."""
        both = [weights[d * each + k] for d in range(D)]
        if G > 1:
            both = [op.Gather(weight, rows, axis=0) for weight in both]
        both = [op.Unsqueeze(weight, [0]) for weight in both]
        return op.Concat(*both, axis=0) if D > 1 else both[0]

    step = len(x.shape) == 2
    W, R = stack(0), stack(1)
    b = op.Concat(stack(2), stack(3), axis=1) if each == 4 else None
    states = [op.Unsqueeze(h, [0]) if step else h for h in hx]
    x = op.Unsqueeze(x, [0]) if step else op.Transpose(x, perm=[1, 0, 2]) if batch_first else x
    if "activations" in attributes:
        attributes = {"activations": attributes["activations"] * D}
    y, *last = getattr(op, name)(
        x,
        W,
        R,
        b,
        None,  # sequence_lens: all steps
        *states,
        direction="bidirectional" if bidirectional else "forward",
        hidden_size=H,
        **attributes,
    )
    if step:
        return [op.Squeeze(state, [0]) for state in last]
    # [T, D, B, H] to [T, B, D*H]; 0 keeps a size
    y = op.Transpose(y, perm=[2, 0, 1, 3] if batch_first else [0, 2, 1, 3])
    return [op.Reshape(y, [0, 0, -1]), *last]
