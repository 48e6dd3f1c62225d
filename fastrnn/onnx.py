"""Export to ONNX: each layer becomes one node, the standard operator LSTM, GRU or RNN.

    torch.onnx.export(model, args, "model.onnx", dynamo=True,
                      custom_translation_table=fastrnn.onnx.translation_table())
    torch.onnx.export(model, args, "model.onnx", dynamo=False)

Needs onnx, and with dynamo=True onnxscript, as torch.onnx.export does. Batch and time may be dynamic
(`dynamic_shapes=`, `dynamic_axes=`). `lengths=` becomes the node's input sequence_lens. So does a
PackedSequence: with dynamo=False one that the model packs; with dynamo=True one that the model is given, as
torch.export cannot pack.

NotImplementedError says what ONNX's operators do not have: projections (`proj_size`), dtypes other than
float32, float64 and float16, and dropout between layers in training mode.
"""

from .export.onnx import translation_table

__all__ = ["translation_table"]
