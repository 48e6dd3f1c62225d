"""Layers from the nodes LSTM, GRU and RNN of an ONNX model. `fastrnn.from_onnx` is the function here."""

import math
import os
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ..cells import CELLS
from ..layers import PeepholeLSTM
from ..modules import GRU, LSTM, RNN
from ..sequences import read_lengths
from ..signatures import typed_as
from .nodes import OPERATORS

if TYPE_CHECKING:
    import numpy
    import onnx

__all__ = ["OnnxLayer", "from_onnx"]


class OnnxLayer(torch.nn.Module):
    """What a node LSTM, GRU or RNN of an ONNX model computes, with its inputs and outputs.

    Attributes:
        layer: the layer with the node's weights, a fastrnn.LSTM, PeepholeLSTM, GRU or RNN of one layer; with
            `layout=1` it is batch_first. Of a node with `direction="reverse"` it runs forward, over the
            sequences that `forward` turns around.
        direction: "forward", "reverse" or "bidirectional"
        sequence_lens, initial_h, initial_c: those inputs of the node if they are constant, else None
    """

    sequence_lens: Tensor | None
    initial_h: Tensor | None
    initial_c: Tensor | None

    def __init__(
        self,
        layer: torch.nn.Module,
        direction: str = "forward",
        sequence_lens: Tensor | None = None,
        initial_h: Tensor | None = None,
        initial_c: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.layer: Any = layer
        self.direction = direction
        self.register_buffer("sequence_lens", sequence_lens)
        self.register_buffer("initial_h", initial_h)
        self.register_buffer("initial_c", initial_c)

    def forward(
        self,
        X: Tensor,
        sequence_lens: Tensor | None = None,
        initial_h: Tensor | None = None,
        initial_c: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Compute the node's outputs. Sizes: T time, B batch, I input, H hidden, D directions.

        X: `[T, B, I]`
        sequence_lens: `[B]`, integers from 0 to T
        initial_h, initial_c: `[D, B, H]`; initial_c is of an LSTM

        An input that is not given is the constant of the node; without one it is T, or zeros.

        Returns `Y, Y_h`, of an LSTM `Y, Y_h, Y_c`: `[T, D, B, H]` and `[D, B, H]` each. With `layout=1` B is
        the first size of X, of the states and of all results: `[B, T, I]`, `[B, D, H]`, `[B, T, D, H]`.

        Raises what the layer raises.
        """
        lengths = self.sequence_lens if sequence_lens is None else sequence_lens
        reverse = self.direction == "reverse"
        x = self._turn(X, lengths) if reverse else X
        y, last = self.layer(x, self._states(initial_h, initial_c), lengths=lengths)
        y = self._turn(y, lengths) if reverse else y
        y = y.unflatten(2, (2 if self.direction == "bidirectional" else 1, -1))
        states = last if isinstance(last, tuple) else (last,)
        if self.layer.batch_first:
            return y, *(state.transpose(0, 1) for state in states)
        return y.transpose(1, 2), *states

    def _states(self, initial_h, initial_c) -> Any:
        """The initial states as the layer takes them."""
        h: Any = self.initial_h if initial_h is None else initial_h
        c: Any = self.initial_c if initial_c is None else initial_c
        if self.layer.batch_first:
            h, c = (None if state is None else state.transpose(0, 1) for state in (h, c))
        if c is None and (h is None or isinstance(self.layer, (GRU, RNN))):
            return h
        if h is None:
            h = torch.zeros_like(c)
        return h, torch.zeros_like(h) if c is None else c

    def _turn(self, x, lengths):
        """Each sequence from its end to its start. What stands past a length stays."""
        time = int(self.layer.batch_first)
        if lengths is None or x.dim() != 3:  # the layer refuses another form
            return x.flip(time)
        T, B = x.shape[time], x.shape[1 - time]
        n = read_lengths(lengths, B, T).to(x.device)
        t = torch.arange(T, device=x.device).unsqueeze(1)
        index = torch.where(t < n, n - 1 - t, t)
        return x.take_along_dim((index.T if time else index).unsqueeze(2), time)

    if TYPE_CHECKING:

        @typed_as(forward)
        def __call__(self) -> None: ...

    def extra_repr(self) -> str:
        return f"direction={self.direction!r}"


class ModelProto(Protocol):
    """An onnx.ModelProto, whose package is imported only to read one."""

    def SerializeToString(self) -> bytes: ...


def from_onnx(model: ModelProto | bytes | str | os.PathLike[str]) -> dict[str, OnnxLayer]:
    """The layers of an ONNX model: each node LSTM, GRU or RNN of its graph, with its weights.

        layers = fastrnn.from_onnx("model.onnx")
        Y, Y_h, Y_c = layers["/rnn/LSTM"](X)      as the node
        y, (h_n, c_n) = layers["/rnn/LSTM"].layer(x)  as torch.nn.LSTM

    (https://onnx.ai/onnx/operators: LSTM, GRU, RNN.) Weights are constants of the graph: initializers, or
    what Cast, Concat, Constant, Gather, Identity, Reshape, Slice, Squeeze, Transpose and Unsqueeze make of
    them. They keep their dtype: float32, float64, float16 or bfloat16. Nodes in subgraphs and functions are
    not looked for.

    Args:
        model: an onnx.ModelProto, its bytes, or the path of its file, which may have external data.

    Returns:
        An `OnnxLayer` for each node, in the order of the graph, by the name of the node or, where it has none
        or another node's, of its first output.

    Raises:
        ValueError: there is no such node; a node has an attribute that no cell has (`clip`, `input_forget`,
            some `activations`), weights that are not constant, or sizes and dtypes that do not fit; the file
            is damaged. The message names the node and what is wrong.
        TypeError: `model` is none of these.
        OSError: the file cannot be read.
        ModuleNotFoundError: the package onnx is not installed.
    """
    graph = _Graph(_load(model))
    nodes = [node for node in graph.nodes if node.op_type in _INPUTS and _is_standard(node)]
    if not nodes:
        raise ValueError("model: expected a node LSTM, GRU or RNN in its graph, got none")
    layers: dict[str, OnnxLayer] = {}
    for node in nodes:
        output = next(filter(None, node.output), "")
        name = node.name if node.name and node.name not in layers else output
        if not name or name in layers:
            raise ValueError(f"{node.op_type}: expected a node with a name or an output of its own, got none")
        try:
            layers[name] = _read(graph, node)
        except _Error as error:
            raise ValueError(f"{node.op_type} {name!r}: {error}") from error.__cause__
    return layers


class _Error(ValueError):
    """What is wrong with a node."""


# ---- files ----


def _load(model):
    try:
        import onnx
    except ModuleNotFoundError:
        raise ModuleNotFoundError("fastrnn.from_onnx needs the package onnx: pip install onnx") from None

    folder = None
    if isinstance(model, (str, os.PathLike)):
        folder = os.path.dirname(os.path.abspath(model))
        with open(model, "rb") as file:
            model = file.read()
    if isinstance(model, bytes):
        try:
            model = onnx.ModelProto.FromString(model)
        except Exception as error:  # of protobuf
            raise ValueError(f"model: expected an ONNX model, got other or damaged data: {error}") from None
        if folder is not None:
            try:
                onnx.load_external_data_for_model(model, folder)
            except Exception as error:  # of many classes
                raise ValueError(f"model: its external data cannot be loaded: {error}") from error
    if not isinstance(model, onnx.ModelProto):
        raise TypeError(f"model: expected a ModelProto, bytes or a path, got {type(model).__name__}")
    if not any(_is_standard(opset) for opset in model.opset_import):
        raise ValueError("model: expected a version of ONNX's operators, got a model without one")
    return model


# ---- constants ----


def _is_standard(node):
    return node.domain in ("", "ai.onnx")


# The operators that make constants of constants.
_FOLDED = {
    "Cast",
    "Concat",
    "Constant",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}


def _count(node, inputs):
    """How many numbers one of these operators makes at most."""
    if node.op_type == "Concat":
        return sum(array.size for array in inputs)
    if node.op_type == "Gather":
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        return inputs[0].size // max(1, inputs[0].shape[axis]) * inputs[1].size
    return inputs[0].size if inputs else 0


class _Graph:
    """The graph of a model, and its constants as NumPy arrays."""

    _FACTOR = 4  # how many numbers constants of constants may have, for each byte of the model

    def __init__(self, model):
        self.nodes = model.graph.node
        self._opsets = model.opset_import
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self._producers = {
            name: k
            for k, node in enumerate(self.nodes)
            if _is_standard(node) and node.op_type in _FOLDED
            for name in node.output
        }
        self._arrays: dict[str, numpy.ndarray] = {}
        self._left = self._FACTOR * sum(part.ByteSize() for part in (*model.graph.initializer, *self.nodes))

    def constant(self, name: str) -> "numpy.ndarray | None":
        """The value of a constant, or None if it is known only when the model runs."""
        for k in sorted(self._needed(name)):  # an order in which each comes after its inputs
            self._fold(self.nodes[k])
        return self._array(name)

    def _needed(self, name) -> set[int]:
        """The nodes that a value is computed by, as far as they may be constant."""
        found: set[int] = set()
        names = [name]
        while names:
            name = names.pop()
            if name in self._producers and name not in self._arrays and self._producers[name] not in found:
                found.add(self._producers[name])
                names += self.nodes[self._producers[name]].input
        return found

    def _array(self, name):
        if name not in self._arrays and name in self._initializers:
            self._arrays[name] = self._take(self._initializers[name])
        return self._arrays.get(name)

    def _take(self, tensor):
        """The value of a TensorProto."""
        from onnx import numpy_helper

        if tensor.data_location == tensor.EXTERNAL:
            raise _Error("its data is in another file: give the path of the model")
        # No number takes less than half a byte: what has more was not written so.
        if min(tensor.dims, default=0) < 0 or math.prod(tensor.dims) > 2 * tensor.ByteSize():
            raise _Error(f"expected data of size {list(tensor.dims)}, got {tensor.ByteSize()} bytes")
        try:
            return numpy_helper.to_array(tensor)
        except Exception as error:  # of many classes
            raise _Error(f"expected a tensor, got one that cannot be read: {error}") from error

    def _fold(self, node):
        """Compute a node, if all its inputs are constants."""
        import numpy
        from onnx import helper
        from onnx.reference import ReferenceEvaluator

        if node.op_type == "Constant":
            tensors = [attribute.t for attribute in node.attribute if attribute.name == "value"]
            if tensors:
                self._arrays[node.output[0]] = self._take(tensors[0])
                return
        inputs = {name: self._array(name) for name in node.input if name}
        if any(value is None for value in inputs.values()):
            return
        try:
            self._left -= _count(node, [inputs[name] for name in node.input if name])
            if self._left < 0:
                raise ValueError("the result is much larger than the model")
            graph = helper.make_graph([node], "constant", [], [])
            for name in inputs:
                graph.input.append(helper.make_value_info(name, helper.make_tensor_type_proto(0, None)))
            for name in filter(None, node.output):
                graph.output.append(helper.make_value_info(name, helper.make_tensor_type_proto(0, None)))
            model = helper.make_model(graph, opset_imports=self._opsets)
            results = ReferenceEvaluator(model).run(None, inputs)
        except Exception as error:  # of many classes
            raise _Error(f"{node.op_type} of constants cannot be computed: {error}") from error
        self._arrays |= zip(filter(None, node.output), map(numpy.asarray, results), strict=True)


# ---- nodes ----

_INPUTS = {
    "LSTM": ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"),
    "GRU": ("X", "W", "R", "B", "sequence_lens", "initial_h"),
    "RNN": ("X", "W", "R", "B", "sequence_lens", "initial_h"),
}
# Attributes that are supported: their defaults, of one direction.
_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "LSTM": {"activations": ["Sigmoid", "Tanh", "Tanh"], "input_forget": 0},
    "GRU": {"activations": ["Sigmoid", "Tanh"], "linear_before_reset": 0},
    "RNN": {"activations": ["Tanh"]},
}
_COMMON: dict[str, Any] = {
    "activation_alpha": [],
    "activation_beta": [],
    "direction": "forward",
    "hidden_size": 0,
    "layout": 0,
}
_WEIGHTS = "W", "R", "B", "P"
_DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
_DTYPES = ("float32", "float64", "float16", "bfloat16")


def _read(graph: _Graph, node: "onnx.NodeProto") -> OnnxLayer:
    """The layer of a node."""
    inputs = _INPUTS[node.op_type]
    if len(node.input) > len(inputs):
        raise _Error(f"expected at most {len(inputs)} inputs, got {len(node.input)}")
    given = {name: of for name, of in zip(inputs, node.input, strict=False) if of and name != "X"}
    values = {}
    for name, of in given.items():
        try:
            values[name] = graph.constant(of)
        except _Error as error:
            raise _Error(f"{name}: {error}") from error.__cause__
    for name in _WEIGHTS:
        if name in given and values[name] is None:
            raise _Error(f"{name}: expected a constant of the graph, got {given[name]!r}, which is none")
    tensors = {name: _tensor(name, value) for name, value in values.items() if value is not None}
    for name in ("W", "R"):
        if name not in tensors or tensors[name].dim() != 3:
            got = list(tensors[name].shape) if name in tensors else "none"
            raise _Error(f"{name}: expected an input of 3 dimensions, got {got}")

    attributes = _attributes(node)
    cell, make, options = _find(node.op_type, attributes, "P" in tensors)
    order = OPERATORS[cell].gates
    D, G = _DIRECTIONS[attributes["direction"]], len(order)
    H, I = tensors["R"].shape[2], tensors["W"].shape[2]
    if H < 1 or attributes["hidden_size"] not in (0, H):
        raise _Error(f"hidden_size: expected that of R, which is {H}, got {attributes['hidden_size']}")
    _check_sizes(tensors, D, G, H, I, attributes["layout"])

    layer = torch.nn.utils.skip_init(
        make,
        I,
        H,
        bias="B" in tensors,
        batch_first=attributes["layout"] == 1,
        bidirectional=D == 2,
        dtype=tensors["W"].dtype,
        **options,
    )
    rows = [order.index(gate) for gate in CELLS[cell].gates]
    for d, suffix in enumerate(("_l0", "_l0_reverse")[:D]):
        weights = {
            "weight_ih": tensors["W"][d].view(G, H, I)[rows],
            "weight_hh": tensors["R"][d].view(G, H, H)[rows],
        }
        if "B" in tensors:
            weights["bias_ih"], weights["bias_hh"] = tensors["B"][d].view(2, G, H)[:, rows]
        if "P" in tensors:
            weights["weight_peephole"] = tensors["P"][d].view(3, H)[["iof".index(gate) for gate in "ifo"]]
        with torch.no_grad():
            for name, weight in weights.items():
                parameter = layer.get_parameter(name + suffix)
                parameter.copy_(weight.reshape(parameter.shape))
    constants = (tensors.get(name) for name in ("sequence_lens", "initial_h", "initial_c"))
    return OnnxLayer(layer, attributes["direction"], *constants)


def _check_sizes(tensors, D, G, H, I, layout):
    sizes = {
        "W": [D, G * H, I],
        "R": [D, G * H, H],
        "B": [D, 2 * G * H],
        "P": [D, 3 * H],
        "sequence_lens": ["B"],
        "initial_h": ["B", D, H] if layout else [D, "B", H],
        "initial_c": ["B", D, H] if layout else [D, "B", H],
    }
    dtype = tensors["W"].dtype
    for name, tensor in tensors.items():
        pairs = zip(sizes[name], tensor.shape, strict=False)
        if len(sizes[name]) != tensor.dim() or any(want not in ("B", got) for want, got in pairs):
            text = ", ".join(map(str, sizes[name]))
            raise _Error(f"{name}: expected size [{text}], got {list(tensor.shape)}")
        if name != "sequence_lens" and tensor.dtype != dtype:
            raise _Error(f"{name}: expected {dtype} as W has, got {tensor.dtype}")


def _tensor(name, array):
    expected = ("int32", "int64") if name == "sequence_lens" else _DTYPES
    if array.dtype.name not in expected:
        raise _Error(f"{name}: expected {' or '.join(expected)}, got {array.dtype}")
    if array.dtype.name == "bfloat16":  # which torch does not take from NumPy
        return torch.from_numpy(array.view("int16").copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def _attributes(node) -> dict[str, Any]:
    """All attributes of a node, or their defaults; lists are those of one direction."""
    from onnx import helper

    attributes = _COMMON | _ATTRIBUTES[node.op_type]
    for attribute in node.attribute:
        name = attribute.name
        if name not in attributes:
            raise _Error(f"{name}: expected no such attribute, as no cell has it")
        try:
            value = helper.get_attribute_value(attribute)
            value = _text(list(value)) if isinstance(attributes[name], list) else _text(value)
        except (TypeError, ValueError) as error:
            raise _Error(f"{name}: expected an attribute with a value: {error}") from error
        if type(value) is not type(attributes[name]):
            kind = type(attributes[name]).__name__
            raise _Error(f"{name}: expected {kind}, got {type(value).__name__}")
        attributes[name] = value
    direction = attributes["direction"]
    if direction not in _DIRECTIONS:
        raise _Error(f"direction: expected one of {', '.join(_DIRECTIONS)}, got {direction!r}")
    for name in ("layout", "linear_before_reset"):
        if attributes.get(name, 0) not in (0, 1):
            raise _Error(f"{name}: expected 0 or 1, got {attributes[name]}")
    if attributes.get("input_forget", 0):
        raise _Error("input_forget: expected 0, as no cell couples its gates")
    if direction == "bidirectional":
        for name in ("activations", "activation_alpha", "activation_beta"):
            if any(attribute.name == name for attribute in node.attribute):
                attributes[name] = _one_direction(name, attributes[name])
    return attributes


def _text(value):
    if isinstance(value, list):
        return [_text(item) for item in value]
    return value.decode() if isinstance(value, bytes) else value


def _one_direction(name, values):
    first, second = values[: len(values) // 2], values[len(values) // 2 :]
    if not _same(first, second):
        raise _Error(f"{name}: expected the same of both directions, got {values}")
    return first


def _same(first, second):
    return [str(value).lower() for value in first] == [str(value).lower() for value in second]


def _find(op_type, attributes, has_peepholes):
    """The cell of a node, the class of its layer, and what else that takes."""
    names = "activations", "activation_alpha", "activation_beta"
    cell = None
    for other, operator in OPERATORS.items():
        of_cell = _COMMON | _ATTRIBUTES[operator.name] | operator.attributes
        if operator.name == op_type and all(_same(of_cell[name], attributes[name]) for name in names):
            cell = cell or other
    if cell is None:
        got = ", ".join(f"{name} {attributes[name]}" for name in names if attributes[name])
        raise _Error(f"activations: expected those of a cell, got {got}")
    if op_type == "GRU":
        return cell, GRU, {} if attributes["linear_before_reset"] else {"reset_after": False}
    if op_type == "RNN":
        return cell, RNN, {"nonlinearity": CELLS[cell].nonlinearity}
    return cell, PeepholeLSTM if has_peepholes else LSTM, {}
