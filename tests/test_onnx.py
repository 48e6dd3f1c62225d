"""torch.onnx.export(dynamo=True) makes one standard node of each layer, and onnxruntime computes the same."""

from collections import Counter

import pytest
import torch
from cases import EVERY_CELL, Case, give, random, take
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn
import fastrnn.onnx

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch.onnx and what it uses, about themselves

NODES = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "RNN", "rnn_relu": "RNN"}
DYNAMIC = torch.export.Dim.DYNAMIC
each_cell = pytest.mark.parametrize("cell", EVERY_CELL)


def export(module, args, dynamic=None):
    return torch.onnx.export(
        module.eval(),
        args,
        dynamo=True,
        custom_translation_table=fastrnn.onnx.translation_table(),
        dynamic_shapes=dynamic,
        verbose=False,
    )


def compare(module, program, inputs):
    """onnxruntime's outputs are the module's."""
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    flat = [inputs[0], *(take(inputs[1]) if len(inputs) > 1 else [])]
    names = [i.name for i in session.get_inputs()]
    got = session.run(None, {name: t.numpy() for name, t in zip(names, flat, strict=True)})
    with torch.no_grad():
        result = module(*inputs)
    want = take(result) if isinstance(module, torch.nn.RNNCellBase) else [result[0], *take(result[1])]
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(torch.from_numpy(a), b, rtol=1e-5, atol=1e-5)


def operators(program):
    return Counter(node.op_type for node in program.model.graph)


OPTIONS = [
    dict(),
    dict(L=2, bidirectional=True, form="batch_first"),
    dict(bias=False, bidirectional=True),
    dict(H=300),  # with weights too large for the exporter to reorder
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@each_cell
def test_layer(cell, options):
    """Batch and time of any size from one export; nothing but the nodes and what moves dimensions."""
    case = Case(cell, **options)
    layer = case.build(fastrnn).eval()
    x = case.inputs()[0].detach()
    program = export(layer, (x,), {"input": {0: DYNAMIC, 1: DYNAMIC}})
    count = operators(program)
    assert count.pop(NODES[cell]) == case.L
    moves = {"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Concat", "Gather"}
    zeros = {"Shape", "Expand", "Slice"}  # initial states
    assert set(count) <= moves | zeros, count
    for a, b in ((x.shape[0], x.shape[1]), (9, 2), (1, 1), (2, 6)):
        compare(layer, program, (random(a, b, case.I, seed=a),))


@each_cell
def test_initial_states(cell):
    case = Case(cell, L=2, bidirectional=True)
    layer, (x, hx) = case.build(fastrnn).eval(), case.inputs()
    inputs = x.detach(), give([h.detach() for h in hx])
    program = export(layer, inputs)
    assert operators(program)[NODES[cell]] == 2
    compare(layer, program, inputs)


@each_cell
def test_without_a_batch(cell):
    case = Case(cell, form="unbatched", hx=False)
    layer, x = case.build(fastrnn).eval(), case.inputs()[0].detach()
    compare(layer, export(layer, (x,)), (x,))


@each_cell
def test_single_step(cell):
    case = Case(cell, T=1)
    module, _, x, hx = case.prepare_step(fastrnn)
    inputs = x.detach(), give([h.detach() for h in hx])
    program = export(module, inputs)
    assert operators(program)[NODES[cell]] == 1
    compare(module, program, inputs)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = torch.nn.GRU(7, 16, batch_first=True, dropout=0.5, num_layers=2)
        self.head = torch.nn.Linear(16, 3)

    def forward(self, x):
        y, h = self.rnn(x.tanh())
        return self.head(y), h


def test_a_model_keeps_its_other_layers():
    """A converted torch.nn model: what is around the layer is exported as ever."""
    model = fastrnn.convert(Model()).eval()
    x = random(3, 5, 7, seed=0)
    program = export(model, (x,), {"x": {0: DYNAMIC, 1: DYNAMIC}})
    assert operators(program)["GRU"] == 2 and not operators(program)["Dropout"]
    compare(model, program, (random(4, 2, 7, seed=1),))


class Packed(torch.nn.Module):
    """Gets the rows of a packed sequence: packing itself is beyond torch.export."""

    def __init__(self):
        super().__init__()
        self.rnn = fastrnn.GRU(7, 16)
        self.register_buffer("h_0", torch.zeros(1, 3, 16))

    def forward(self, data, batch_sizes):
        return self.rnn(PackedSequence(data, batch_sizes), self.h_0)[1]


class Lengths(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = fastrnn.GRU(7, 16)

    def forward(self, x, lengths):
        return self.rnn(x, lengths=lengths)[1]


def told(module, args):
    """All messages of the chain of exceptions that an export ends with."""
    with pytest.raises(Exception) as caught:
        export(module, args)
    text, error = "", caught.value
    while error is not None:
        text, error = f"{text}\n{error}", error.__cause__ or error.__context__
    return text


def test_what_onnx_cannot():
    x = random(5, 3, 7, seed=0)
    assert "proj_size: ONNX's LSTM has no projection" in told(fastrnn.LSTM(7, 16, proj_size=4), (x,))
    half = fastrnn.GRU(7, 16, dtype=torch.bfloat16)
    assert "dtype: ONNX's GRU has none of BFLOAT16" in told(half, (x.bfloat16(),))
    packed = pack_padded_sequence(x, [5, 3, 1])
    assert "ONNX export of packed sequences" in told(Packed(), (packed.data, packed.batch_sizes))
    assert "sequences and lengths" in told(Lengths(), (x, torch.tensor([5, 0, 1])))
