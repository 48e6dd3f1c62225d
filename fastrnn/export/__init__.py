"""Graphs of fastrnn's operators: for torch.compile and torch.export, and for ONNX."""
