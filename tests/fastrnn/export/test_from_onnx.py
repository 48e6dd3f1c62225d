"""fastrnn.from_onnx reads the nodes LSTM, GRU and RNN, computes what they compute, and refuses the rest."""

import io
import itertools
import random as rnd
import sys
import time
from collections import Counter
from importlib import import_module

import numpy as np
import pytest
import torch
from cases import EVERY_CELL, Case, random

import fastrnn

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of torch.onnx and what it uses, about themselves
    pytest.mark.xdist_group("onnx"),  # one process imports the exporter
]

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def make_node(kind, names, values, outputs, **attributes):
    """A model of one node. names: its inputs; values: of those that are constants"""
    node = onnx.helper.make_node(kind, names, outputs, name="node", **attributes)
    graph = onnx.helper.make_graph(
        [node],
        "graph",
        [
            onnx.helper.make_value_info(name, onnx.helper.make_tensor_type_proto(1, None))
            for name in names
            if name and name not in values
        ],
        [
            onnx.helper.make_value_info(name, onnx.helper.make_tensor_type_proto(1, None))
            for name in outputs
            if name
        ],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 22)], ir_version=10)


# ---- ONNX's published vectors ----


def vectors():
    """Of the node tests of onnx those of the three operators. Their modules make them when imported."""
    for kind in GATES:
        import_module(f"onnx.backend.test.case.node.{kind.lower()}")
    from onnx.backend.test.case.node import _NodeTestCases

    found = []
    for name, case in {case.name: case for case in _NodeTestCases}.items():
        nodes = case.model.graph.node
        if len(nodes) == 1 and nodes[0].op_type in GATES:
            found.append(pytest.param(case, id=name))
    return found


VECTORS = vectors()


def test_there_are_vectors():
    """In onnx 1.23 so many."""
    count = Counter(vector.values[0].model.graph.node[0].op_type for vector in VECTORS)
    assert count.total() >= 18 and min(count[kind] for kind in GATES) >= 4, count


@pytest.mark.parametrize("case", VECTORS)
def test_vector(case):
    """Weights are inputs there, and constants here. The others are given to the node or constant in it."""
    node = case.model.graph.node[0]
    ((inputs, outputs),) = case.data_sets
    names = [name for name in node.input if name]
    values = dict(zip(names, inputs, strict=True))
    x = torch.from_numpy(values.pop("X"))
    later = {name: values[name] for name in ("sequence_lens", "initial_h", "initial_c") if name in values}
    want = dict(zip([name for name in node.output if name], outputs, strict=True))
    for given in (False, True):
        model = onnx.ModelProto()
        model.CopyFrom(case.model)
        for name, value in values.items():
            if not (given and name in later):
                model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
        (layer,) = fastrnn.from_onnx(model).values()
        arguments = {name: torch.from_numpy(value) for name, value in later.items() if given}
        with torch.no_grad():
            got = dict(zip(("Y", "Y_h", "Y_c"), layer(x, **arguments), strict=False))
        for name, value in want.items():
            np.testing.assert_allclose(got[name].numpy(), value, rtol=case.rtol, atol=case.atol)


# ---- every form, beside onnxruntime ----


def weights_of(kind, D, I, H, bias, dtype=np.float32):
    generator = np.random.default_rng(0)
    G = GATES[kind]
    sizes = {"W": (D, G * H, I), "R": (D, G * H, H)} | ({"B": (D, 2 * G * H)} if bias else {})
    return {name: generator.standard_normal(size).astype(dtype) / 3 for name, size in sizes.items()}


FORMS = [
    pytest.param(kind, direction, given, bias, lens, id=f"{kind}-{direction}-{given}-{bias}-{lens}")
    for kind, direction, given, bias, lens in itertools.product(
        GATES, ("forward", "reverse", "bidirectional"), ("zeros", "h", "all"), (False, True), (False, True)
    )
]


@pytest.mark.parametrize("kind, direction, given, bias, lens", FORMS)
def test_form(kind, direction, given, bias, lens):
    """Beside onnxruntime, which has no layout=1; that is compared with layout=0."""
    T, B, I, H, D = 6, 3, 5, 7, 1 + (direction == "bidirectional")
    values = weights_of(kind, D, I, H, bias)
    names = ["X", "W", "R", "B" if bias else "", "sequence_lens" if lens else ""]
    later = {"X": random(T, B, I, seed=1).numpy()}
    if lens:
        later["sequence_lens"] = np.array([4, 6, 1], np.int32)
    states = {"zeros": [], "h": ["initial_h"], "all": ["initial_h", "initial_c"][: 1 + (kind == "LSTM")]}
    for k, name in enumerate(states[given]):
        names.append(name)
        later[name] = random(D, B, H, seed=2 + k).numpy()
    outputs = ["Y", "Y_h", "Y_c"][: 2 + (kind == "LSTM")]
    attributes = dict(direction=direction, hidden_size=H)
    if kind == "GRU":
        attributes["linear_before_reset"] = 1
    model = make_node(kind, names, values, outputs, **attributes)
    types = {"sequence_lens": 6}
    for value in model.graph.input:
        value.type.tensor_type.elem_type = types.get(value.name, 1)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    want = [torch.from_numpy(value) for value in session.run(None, later)]

    layer = fastrnn.from_onnx(model)["node"]
    tensors = {name: torch.from_numpy(value) for name, value in later.items()}
    with torch.no_grad():
        got = layer(**tensors)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)

    turned = fastrnn.from_onnx(make_node(kind, names, values, outputs, layout=1, **attributes))["node"]
    assert turned.layer.batch_first
    tensors = {n: t if n == "sequence_lens" else t.transpose(0, 1) for n, t in tensors.items()}
    with torch.no_grad():
        y, *last = turned(**tensors)
    torch.testing.assert_close(y.permute(1, 2, 0, 3), got[0], rtol=0, atol=0)
    for a, b in zip(last, got[1:], strict=True):
        torch.testing.assert_close(a.transpose(0, 1), b, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, "bfloat16"])
def test_dtype(dtype):
    if dtype == "bfloat16":
        dtype = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)
    values = weights_of("LSTM", 1, 2, 3, True, dtype)
    layer = fastrnn.from_onnx(make_node("LSTM", ["X", "W", "R", "B"], values, ["Y"]))["node"].layer
    name = np.dtype(dtype).name
    assert {parameter.dtype for parameter in layer.parameters()} == {getattr(torch, name)}
    forget = torch.from_numpy(values["W"][0, 6:9].astype(np.float64))
    torch.testing.assert_close(layer.weight_ih_l0[3:6].double(), forget, rtol=0, atol=0)


def test_reset_before():
    """By hand, the equations of the operator."""
    values = weights_of("GRU", 1, 2, 3, True)
    layer = fastrnn.from_onnx(make_node("GRU", ["X", "W", "R", "B"], values, ["Y"]))["node"]
    x = random(4, 2, 2, seed=0)
    W, R, B = (torch.from_numpy(values[name][0]) for name in "WRB")
    h, b = torch.zeros(2, 3), B[:9] + B[9:]
    for t in range(4):
        z, r = ((x[t] @ W[:6].T + h @ R[:6].T + b[:6]).sigmoid()).chunk(2, 1)
        n = (x[t] @ W[6:].T + (r * h) @ R[6:].T + b[6:]).tanh()
        h = (1 - z) * n + z * h
    torch.testing.assert_close(layer(x)[1][0], h)


# ---- exported models ----


def export(module, args, dynamo):
    if dynamo:
        return torch.onnx.export(module.eval(), args, dynamo=True, verbose=False).model_proto
    file = io.BytesIO()
    torch.onnx.export(module.eval(), args, file, dynamo=False)
    return file.getvalue()


def assert_reads_back(model, module, x):
    """Layer by layer, weights to the bit; and all layers together compute what the module computes."""
    layers = fastrnn.from_onnx(model)
    assert len(layers) == module.num_layers
    y = x.transpose(0, 1) if module.batch_first else x
    for k, read in enumerate(layers.values()):
        own = {
            name: p
            for name, p in module.named_parameters()
            if name.removesuffix("_reverse").endswith(f"_l{k}")
        }
        of_layer = dict(read.layer.named_parameters())
        assert {name.replace("_l0", f"_l{k}") for name in of_layer} == own.keys()
        for name, parameter in of_layer.items():
            assert torch.equal(parameter, own[name.replace("_l0", f"_l{k}")]), name
        assert all(p.requires_grad for p in of_layer.values())
        y = read.layer(y)[0]
    with torch.no_grad():
        want = module(x)[0]
    torch.testing.assert_close(y.transpose(0, 1) if module.batch_first else y, want, rtol=1e-6, atol=1e-6)


EXPORTED = [dict(), dict(L=2, bidirectional=True, form="batch_first"), dict(bias=False, L=2), dict(H=300)]


@pytest.mark.quick(1)
@pytest.mark.parametrize("library", [fastrnn, torch.nn], ids=["fastrnn", "torch"])
@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("options", EXPORTED, ids=str)
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_export_reads_back(cell, options, dynamo, library):
    """Of weights that are too large for the exporter to reorder, Gather and Unsqueeze stay in the graph."""
    case = Case(cell, **options)
    if library is torch.nn and dynamo:
        pytest.skip("torch's exporter unrolls RNN")
    module, x = case.build(library), case.inputs()[0].detach()
    assert_reads_back(export(module, (x,), dynamo), module, x)


def test_path_and_external_data(tmp_path):
    module, x = fastrnn.GRU(7, 16), random(5, 3, 7, seed=0)
    file = tmp_path / "model.onnx"
    model = onnx.load_from_string(export(module, (x,), dynamo=False))
    onnx.save(model, file, save_as_external_data=True, location="weights", size_threshold=0)
    assert_reads_back(file, module, x)
    assert_reads_back(str(file), module, x)
    with pytest.raises(ValueError, match="its data is in another file: give the path"):
        fastrnn.from_onnx(file.read_bytes())
    (tmp_path / "weights").write_bytes(b"")
    with pytest.raises(ValueError, match="GRU|external data"):
        fastrnn.from_onnx(file)
    (tmp_path / "weights").unlink()
    with pytest.raises(ValueError, match="external data cannot be loaded"):
        fastrnn.from_onnx(file)
    model = onnx.load(file, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "../weights" if entry.key == "location" else entry.value
    (tmp_path / "weights").write_bytes(bytes(10000))
    (tmp_path / "inner").mkdir()
    onnx.save(model, tmp_path / "inner" / "model.onnx")
    with pytest.raises(ValueError, match="external data cannot be loaded"):
        fastrnn.from_onnx(tmp_path / "inner" / "model.onnx")
    with pytest.raises(FileNotFoundError):
        fastrnn.from_onnx(tmp_path / "none.onnx")


def test_names():
    """By the name of the node, by its first output where there is none."""
    values = weights_of("RNN", 1, 2, 3, False)
    model = make_node("RNN", ["X", "W", "R"], values, ["Y", "Y_h"])
    second, third = model.graph.node.add(), model.graph.node.add()
    for node, name, outputs in ((second, "node", ["", "b"]), (third, "", ["c"])):
        node.CopyFrom(model.graph.node[0])
        node.name = name
        del node.output[:]
        node.output.extend(outputs)
    assert list(fastrnn.from_onnx(model)) == ["node", "b", "c"]


def test_randomness_is_left_alone():
    before = torch.get_rng_state()
    model = make_node("RNN", ["X", "W", "R"], weights_of("RNN", 1, 2, 3, False), ["Y"])
    fastrnn.from_onnx(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_state_dict_and_repr():
    values = weights_of("RNN", 1, 2, 3, False) | {"initial_h": np.ones((1, 1, 3), np.float32)}
    names = ["X", "W", "R", "", "", "initial_h"]
    layer = fastrnn.from_onnx(make_node("RNN", names, values, ["Y"], direction="reverse"))["node"]
    assert set(layer.state_dict()) == {"initial_h", "layer.weight_ih_l0", "layer.weight_hh_l0"}
    assert "direction='reverse'" in repr(layer)


# ---- what is refused ----


def refused(model, *words):
    with pytest.raises(ValueError) as caught:
        fastrnn.from_onnx(model)
    for word in words:
        assert word in str(caught.value), caught.value


@pytest.mark.parametrize(
    "kind, attributes, words",
    [
        ("LSTM", dict(clip=1e30), ["clip"]),
        ("GRU", dict(clip=0.0, linear_before_reset=1), ["clip"]),
        ("LSTM", dict(input_forget=1), ["input_forget"]),
        ("LSTM", dict(activations=["Sigmoid", "Tanh", "Relu"]), ["activations", "Relu"]),
        ("GRU", dict(activations=["HardSigmoid", "Tanh"], linear_before_reset=1), ["activations", "HardS"]),
        (
            "RNN",
            dict(activations=["Elu"], activation_alpha=[0.5]),
            ["activations", "activation_alpha", "0.5"],
        ),
        ("RNN", dict(activations=["Tanh"], activation_beta=[0.5]), ["activation_beta"]),
        ("RNN", dict(activations=["Tanh", "Tanh"]), ["activations"]),
        ("RNN", dict(activations=["Tanh", "Relu"], direction="bidirectional"), ["both directions"]),
        ("RNN", dict(direction="backward"), ["direction", "'backward'"]),
        ("RNN", dict(direction="bidirectional"), ["W", "[2, 3, 2]", "[1, 3, 2]"]),
        ("RNN", dict(hidden_size=4), ["hidden_size", "3", "4"]),
        ("RNN", dict(hidden_size=1.5), ["hidden_size", "int", "float"]),
        ("RNN", dict(layout=2), ["layout", "2"]),
        ("GRU", dict(linear_before_reset=2), ["linear_before_reset", "2"]),
        ("RNN", dict(linear_before_reset=1), ["linear_before_reset"]),
        ("RNN", dict(output_sequence=1), ["output_sequence"]),
    ],
    ids=str,
)
def test_attributes_that_are_refused(kind, attributes, words):
    values = weights_of(kind, 1, 2, 3, False)
    refused(make_node(kind, ["X", "W", "R"], values, ["Y"], **attributes), f"{kind} 'node'", *words)


@pytest.mark.parametrize("activations", [["Tanh"], ["relu"], ["TANH", "Tanh"], ["Relu", "relu"]], ids=str)
def test_activations(activations):
    D = len(activations)
    direction = "bidirectional" if D == 2 else "forward"
    values = weights_of("RNN", D, 2, 3, False)
    model = make_node("RNN", ["X", "W", "R"], values, ["Y"], activations=activations, direction=direction)
    layer = fastrnn.from_onnx(model)["node"].layer
    assert layer.nonlinearity == activations[0].lower() and layer.bidirectional == (D == 2)


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(W=None), ["W", "constant", "'W'"]),
        (dict(R=None), ["R", "constant", "'R'"]),
        (dict(B=None), ["B", "constant", "'B'"]),
        (dict(W=zeros(12, 2)), ["W", "3 dimensions", "[12, 2]"]),
        (dict(R=zeros()), ["R", "3 dimensions", "[]"]),
        (dict(R=zeros(1, 12, 0)), ["hidden_size", "0"]),
        (dict(W=zeros(1, 11, 2)), ["W", "[1, 12, 2]", "[1, 11, 2]"]),
        (dict(W=zeros(2, 12, 2)), ["W", "[1, 12, 2]", "[2, 12, 2]"]),
        (dict(R=zeros(1, 9, 3)), ["R", "[1, 12, 3]", "[1, 9, 3]"]),
        (dict(B=zeros(1, 12)), ["B", "[1, 24]", "[1, 12]"]),
        (dict(P=zeros(1, 12)), ["P", "[1, 9]", "[1, 12]"]),
        (dict(B=zeros(1, 24, dtype=np.float64)), ["B", "float32", "float64"]),
        (dict(W=zeros(1, 12, 2, dtype=np.int8)), ["W", "float32", "int8"]),
        (dict(initial_h=zeros(1, 5, 4)), ["initial_h", "[1, B, 3]", "[1, 5, 4]"]),
        (dict(initial_c=zeros(5, 3)), ["initial_c", "[1, B, 3]", "[5, 3]"]),
        (dict(initial_c=zeros(1, 5, 3, dtype=np.float16)), ["initial_c", "float32", "float16"]),
        (dict(sequence_lens=zeros(2)), ["sequence_lens", "int32", "float32"]),
        (dict(sequence_lens=zeros(2, 1, dtype=np.int32)), ["sequence_lens", "[B]", "[2, 1]"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_inputs_that_are_refused(change, words):
    values = weights_of("LSTM", 1, 2, 3, True) | change
    names = ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"]
    names = [name if name in ("X", *values) else "" for name in names]
    constants = {name: value for name, value in values.items() if value is not None}
    refused(make_node("LSTM", names, constants, ["Y"]), "LSTM 'node'", *words)


def test_other_things_that_are_refused(monkeypatch):
    refused(b"", "version of ONNX's operators")
    refused(b"\xff" * 100, "damaged")
    values = weights_of("RNN", 1, 2, 3, False)
    model = make_node("RNN", ["X", "W", "R"], values, ["Y"])
    refused(make_node("RNN", ["X"], values, ["Y"]), "W: expected an input of 3 dimensions, got none")
    refused(make_node("RNN", ["X", "W", "R", "", "", "", "W"], values, ["Y"]), "at most 6 inputs", "7")
    nameless = make_node("RNN", ["X", "W", "R"], values, [""])
    nameless.graph.node[0].name = ""
    refused(nameless, "a name or an output")
    foreign = make_node("RNN", ["X", "W", "R"], values, ["Y"])
    foreign.graph.node[0].domain = "other"
    refused(foreign, "expected a node LSTM, GRU or RNN")
    for wrong in (None, 5, [b""]):
        with pytest.raises(TypeError, match=f"a ModelProto, bytes or a path, got {type(wrong).__name__}"):
            fastrnn.from_onnx(wrong)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModuleNotFoundError, match="needs the package onnx"):
        fastrnn.from_onnx(model)


def with_dims(dims, **data):
    model = make_node("RNN", ["X", "W", "R"], weights_of("RNN", 1, 2, 3, False), ["Y"])
    (tensor,) = (t for t in model.graph.initializer if t.name == "W")
    for name in ("raw_data", "dims"):
        tensor.ClearField(name)
    tensor.dims.extend(dims)
    for name, value in data.items():
        if isinstance(value, bytes):
            setattr(tensor, name, value)
        else:
            getattr(tensor, name).extend(value)
    return model


def computed(*nodes, inputs=None):
    """A model whose W is computed by these nodes of constants W0 [3, 2] and R [1, 3, 3]."""
    values = weights_of("RNN", 1, 2, 3, False)
    model = make_node("RNN", ["X", "W", "R"], {"R": values["R"]}, ["Y"])
    model.graph.initializer.append(onnx.numpy_helper.from_array(values["W"][0], "W0"))
    for name, value in (inputs or {}).items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    node = model.graph.node.pop()
    model.graph.node.extend([onnx.helper.make_node(*n[:3], **n[3]) for n in nodes] + [node])
    return model, torch.from_numpy(values["W"][0])


def test_computed_weights():
    """The chains of exporters: turned around, in another order, in pieces, in another dtype."""
    rows = {"rows": np.array([2, 0, 1]), "axes": np.array([0]), "ends": np.array([1]), "one": np.array([1])}
    model, W = computed(
        ("Transpose", ["W0"], ["a"], dict(perm=[1, 0])),
        ("Identity", ["a"], ["b"], {}),
        ("Gather", ["b", "rows"], ["c"], dict(axis=1)),
        ("Transpose", ["c"], ["d"], dict(perm=[1, 0])),
        ("Slice", ["d", "axes", "ends", "axes"], ["e"], {}),
        ("Gather", ["d", "tail"], ["f"], {}),
        ("Constant", [], ["tail"], dict(value_ints=[1, 2])),
        ("Concat", ["e", "f"], ["g"], dict(axis=0)),
        ("Cast", ["g"], ["h"], dict(to=1)),
        ("Unsqueeze", ["h", "axes"], ["W"], {}),
        inputs=rows,
    )
    nodes = list(model.graph.node)
    refused(model, "W", "constant")  # a node comes after one that needs it
    del model.graph.node[:]
    model.graph.node.extend([nodes[6], *nodes[:6], *nodes[7:]])
    assert torch.equal(fastrnn.from_onnx(model)["node"].layer.weight_ih_l0, W[[2, 0, 1]])


def hostile():
    for dims in ([1, 3, 2**40], [2**62, 2**62, 2**62], [-1, 3, 2], [1, -3, -2], [0, 3, 2], [2**31, 0, 2**31]):
        yield f"dims{dims}", with_dims(dims)
        yield f"dims{dims}-raw", with_dims(dims, raw_data=bytes(24))
        yield f"dims{dims}-floats", with_dims(dims, float_data=[0.0] * 6)
    yield "a byte less", with_dims([1, 3, 2], raw_data=bytes(23))
    yield "100 dimensions", with_dims([1] * 100 + [3, 2], raw_data=bytes(24))
    doubled = [("Concat", [f"a{k}"] * 2, [f"a{k + 1}"], dict(axis=0)) for k in range(60)]
    nodes = ("Identity", ["W0"], ["a0"], {}), *doubled, ("Identity", ["a60"], ["W"], {})
    yield "doubled 60 times", computed(*nodes)[0]
    grown = [("Gather", [f"a{k}", "rows"], [f"a{k + 1}"], dict(axis=0)) for k in range(30)]
    nodes = ("Identity", ["W0"], ["a0"], {}), *grown, ("Identity", ["a30"], ["W"], {})
    rows = {"rows": np.zeros((100, 100), np.int64)}
    yield "gathered", computed(*nodes, inputs=rows)[0]
    yield "cycle", computed(("Identity", ["b"], ["W"], {}), ("Identity", ["W"], ["b"], {}))[0]
    yield "own input", computed(("Identity", ["W"], ["W"], {}))[0]
    yield "too few inputs", computed(("Gather", ["W0"], ["W"], dict(axis=9)))[0]
    shape = {"shape": [2**40, 9, -1]}
    yield "shape", computed(("Reshape", ["W0", "shape"], ["W"], {}), inputs=shape)[0]
    yield "dtype", computed(("Cast", ["W0"], ["W"], dict(to=999)))[0]
    chain = [("Identity", [f"a{k}"], [f"a{k + 1}"], {}) for k in range(3000)]
    nodes = *chain, ("Identity", ["a3000"], ["W"], {})
    yield "long chain of none", computed(*nodes)[0]


HOSTILE = dict(hostile())


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name):
    model = HOSTILE[name]
    started = time.monotonic()
    refused(model, "RNN 'node': W: ")
    assert time.monotonic() - started < 5
    refused(model.SerializeToString(), "RNN 'node': W: ")


def test_damaged(thorough):
    """Bytes that are changed, cut out or cut off: a ValueError, or a model that was not hurt."""
    values = weights_of("LSTM", 2, 3, 4, True) | {"sequence_lens": np.array([2, 3], np.int32)}
    names = ["X", "W", "R", "B", "sequence_lens"]
    model = make_node("LSTM", names, values, ["Y", "Y_h"], direction="bidirectional", hidden_size=4)
    good, generator = model.SerializeToString(), rnd.Random(0)
    refusals = 0
    for _ in range(20000 if thorough else 600):
        bad = bytearray(good)
        kind = generator.randrange(3)
        if kind == 0:
            for _ in range(generator.randrange(1, 4)):
                bad[generator.randrange(len(bad))] = generator.randrange(256)
        elif kind == 1:
            del bad[generator.randrange(len(bad)) :]
        else:
            start = generator.randrange(len(bad))
            del bad[start : start + generator.randrange(1, 50)]
        try:
            fastrnn.from_onnx(bytes(bad))
        except ValueError:
            refusals += 1
    assert refusals > 300


@pytest.mark.parametrize("size", range(0, 400, 37))
def test_truncated(size):
    model = make_node("RNN", ["X", "W", "R"], weights_of("RNN", 1, 2, 3, False), ["Y"])
    whole = model.SerializeToString()
    if size < len(whole):
        refused(whole[:size])
