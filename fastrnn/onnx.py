"""Export to ONNX: each layer becomes one node, the standard operator LSTM, GRU or RNN.

    torch.onnx.export(model, args, "model.onnx", dynamo=True)
    torch.onnx.export(model, args, "model.onnx", dynamo=False)

Needs the packages that torch.onnx.export needs: onnx, and onnxscript with dynamo=True. Batch and time may be
dynamic (`dynamic_shapes=`, `dynamic_axes=`). `lengths=` becomes the node's input sequence_lens. So do the
lengths of a PackedSequence: with dynamo=False the model must pack it; with dynamo=True it must be an input of
the model, because torch.export cannot pack.

Three exports with dynamo=True need `custom_translation_table=fastrnn.onnx.translation_table()`: of a program
that torch.export.export has made, of a model with a PackedSequence as input, and of `lengths` together with
`return_all_states`. For all others the table changes nothing.

The export raises NotImplementedError for what ONNX's operators do not have: projections (`proj_size`), dtypes
other than float32, float64 and float16, and dropout between layers in training mode.

The way back is `fastrnn.from_onnx`.
"""

from .export.onnx import translation_table

__all__ = ["translation_table"]
