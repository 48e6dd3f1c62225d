"""Export a model to ONNX, run it in onnxruntime on other sizes, and read its layer back."""

from pathlib import Path

import onnxruntime
import torch
from torch import nn

import fastrnn

model = nn.Sequential(nn.Linear(16, 16), fastrnn.GRU(16, 32)).eval()
path = Path("out/model.onnx")
path.parent.mkdir(exist_ok=True)
dims = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}  # T and B
torch.onnx.export(model, (torch.randn(20, 8, 16),), path, dynamo=True, dynamic_shapes=(dims,), verbose=False)

x = torch.randn(50, 3, 16)
session = onnxruntime.InferenceSession(path)
output, _ = session.run(None, {session.get_inputs()[0].name: x.numpy()})
expected, _ = model(x)
torch.testing.assert_close(torch.tensor(output), expected)
print(f"onnxruntime and fastrnn differ by {(torch.tensor(output) - expected).abs().max():.1e}")

(name, layer), *_ = fastrnn.from_onnx(path).items()
assert all(map(torch.equal, layer.layer.parameters(), model[1].parameters()))
print(f"read back: {name} is {layer.layer}, with the same weights")
