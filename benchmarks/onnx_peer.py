"""onnxruntime as a peer: builds a model from a layer of torch.nn, and calls it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_packed_sequence

from .problems import CELLS, Problem
from .timing import Call

try:
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    MISSING, VERSION = "", onnxruntime.__version__
except ImportError as error:
    MISSING, VERSION = str(error), ""

# For each cell: the operator, torch.nn's gates in the operator's order (i o f c; z r h), and the attributes.
OPERATORS = {
    "lstm": ("LSTM", (0, 3, 1, 2), {}),
    "gru": ("GRU", (1, 0, 2), {"linear_before_reset": 1}),
    "rnn_tanh": ("RNN", (0,), {"activations": ["Tanh"]}),
    "rnn_relu": ("RNN", (0,), {"activations": ["Relu"]}),
}


def make_call(
    problem: Problem, module: torch.nn.RNNBase, x, hx, change: Callable[[Any], Any] = lambda model: model
) -> Call:
    """A call that reads torch's tensors and writes to torch's tensors, without a copy.

    change: makes of the model the one that is run, say a quantized one

    Its result is `[T, B, D, H]`. Packed sequences are padded in it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = problem.threads
    options.inter_op_num_threads = 1
    model = change(build_model(problem, module, stateful=hx is not None))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    inputs = {"x": x}
    if problem.lengths:
        inputs["x"] = pad_packed_sequence(x)[0]
        inputs["lengths"] = torch.tensor(problem.lengths, dtype=torch.int32)
    if hx is not None:
        states = hx if isinstance(hx, tuple) else (hx,)
        inputs |= {f"{name}_0": state for name, state in zip("hc", states, strict=False)}
    B, H, D = problem.shape.B, problem.shape.H, problem.directions
    outputs = {"y": torch.empty(problem.steps, D, B, H)}
    outputs |= {name: torch.empty(D, B, H) for name in final_states(problem)}

    binding = session.io_binding()
    for bind, tensors in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
        for name, tensor in tensors.items():
            dtype = np.int32 if tensor.dtype == torch.int32 else np.float32
            bind(name, "cpu", 0, dtype, list(tensor.shape), tensor.data_ptr())
    result = outputs["y"].transpose(1, 2), inputs, outputs  # the call must keep all of them

    def call():
        session.run_with_iobinding(binding)
        return result

    return call


def final_states(problem: Problem) -> list[str]:
    """The names of the last states of all layers, in the order of torch.nn."""
    kinds = "hc"[: CELLS[problem.cell].states]
    return [f"{kind}_n_l{layer}" for kind in kinds for layer in range(problem.layers)]


def build_model(problem: Problem, module: torch.nn.RNNBase, stateful: bool) -> onnx.ModelProto:
    """A model with one operator for each layer. Between layers it concatenates the directions."""
    operator, order, attributes = OPERATORS[problem.cell]
    D, H = problem.directions, problem.shape.H
    direction = "bidirectional" if D == 2 else "forward"
    attributes = {**attributes, "hidden_size": H, "direction": direction}
    if "activations" in attributes:
        attributes["activations"] = attributes["activations"] * D
    nodes, weights, source = [], {}, "x"
    for layer in range(problem.layers):
        W, R, biases = (f"{name}_l{layer}" for name in ("W", "R", "b"))
        of_layer = zip(*(gates_in_order(module, layer, d, order) for d in range(D)), strict=True)
        weights |= dict(zip((W, R, biases), map(np.stack, of_layer), strict=True))
        y = "y" if layer == problem.layers - 1 else f"y_l{layer}"
        states = [f"{kind}_0" for kind in "hc"[: CELLS[problem.cell].states]] if stateful else []
        nodes.append(
            helper.make_node(
                operator,
                [source, W, R, biases, "lengths" if problem.lengths else "", *states],
                [y, *(name for name in final_states(problem) if name.endswith(f"_l{layer}"))],
                **attributes,
            )
        )
        if y != "y":
            weights["flat"] = np.array([0, 0, -1])
            nodes.append(helper.make_node("Transpose", [y], [f"{y}_side"], perm=[0, 2, 1, 3]))
            nodes.append(helper.make_node("Reshape", [f"{y}_side", "flat"], [source := f"{y}_flat"]))

    T, B, I = problem.steps, problem.shape.B, problem.shape.I
    inputs = {"x": (T, B, I)} | {state: (D, B, H) for state in states}
    outputs = {"y": (T, D, B, H)} | {name: (D, B, H) for name in final_states(problem)}
    infos = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in tensors.items()]
        for tensors in (inputs, outputs)
    ]
    if problem.lengths:
        infos[0].append(helper.make_tensor_value_info("lengths", TensorProto.INT32, (B,)))
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, problem.name, *infos, constants)
    # These are the oldest versions with all that the model needs, so that every onnxruntime can read it.
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


def gates_in_order(module: torch.nn.RNNBase, layer: int, direction: int, order: tuple[int, ...]):
    """W_ih, W_hh, and both biases in one array, with the gates in the operator's order."""
    suffix = f"_l{layer}" + "_reverse" * direction

    def parameter(name: str) -> np.ndarray:
        gates = np.split(getattr(module, name + suffix).detach().numpy(), len(order))
        return np.concatenate([gates[i] for i in order])

    biases = np.concatenate([parameter("bias_ih"), parameter("bias_hh")])
    return parameter("weight_ih"), parameter("weight_hh"), biases
