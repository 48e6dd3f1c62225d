"""torch.onnx.export makes one standard node of each layer, and onnxruntime computes the same."""

import io
import itertools
from collections import Counter

import pytest
import torch
from cases import EVERY_CELL, Case, give, random, run_python
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fastrnn
import fastrnn.onnx
from fastrnn.export.nodes import OPERATORS

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of torch.onnx and what it uses, about themselves
    pytest.mark.xdist_group("onnx"),  # one process imports the exporter
]

NODES = {cell: operator.name for cell, operator in OPERATORS.items()}
DYNAMIC = torch.export.Dim.DYNAMIC
each_cell = pytest.mark.parametrize("cell", EVERY_CELL)


def export(module, args, dynamic=None, table=None):
    return torch.onnx.export(
        module.eval(),
        args,
        dynamo=True,
        custom_translation_table=table,
        dynamic_shapes=dynamic,
        verbose=False,
    )


def export_with_table(module, args, dynamic=None):
    return export(module, args, dynamic, fastrnn.onnx.translation_table())


def export_program(module, args, dynamic=None):
    """By torch.export first, which knows nothing of ONNX."""
    program = torch.export.export(module.eval(), args, dynamic_shapes=dynamic)
    table = fastrnn.onnx.translation_table()
    return torch.onnx.export(program, custom_translation_table=table, verbose=False)


def compare(module, program, inputs):
    """onnxruntime's outputs are the module's. program: what either exporter returns"""
    model = program if isinstance(program, bytes) else program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    flat = [t for t in torch.utils._pytree.tree_leaves(inputs) if t is not None]
    names = [i.name for i in session.get_inputs()]
    got = session.run(None, {name: t.numpy() for name, t in zip(names, flat, strict=True)})
    with torch.no_grad():
        want = torch.utils._pytree.tree_leaves(module(*inputs))
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(torch.from_numpy(a), b, rtol=1e-5, atol=1e-5)


def operators(program):
    return Counter(node.op_type for node in program.model.graph)


each_way = pytest.mark.parametrize("export", [export, export_with_table, export_program])

OPTIONS = [
    dict(),
    dict(L=2, bidirectional=True, form="batch_first"),
    dict(bias=False, bidirectional=True),
    dict(H=300),  # with weights too large for the exporter to reorder
]


@pytest.mark.quick(1)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@each_way
@each_cell
def test_layer(cell, export, options):
    """Batch and time of any size from one export; nothing but the nodes and what moves dimensions."""
    case = Case(cell, **options)
    layer = case.build(fastrnn).eval()
    x = case.inputs()[0].detach()
    program = export(layer, (x,), {"input": {0: DYNAMIC, 1: DYNAMIC}})
    count = operators(program)
    assert count.pop(NODES[cell]) == case.L
    moves = {"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Concat", "Gather"}
    if export is export_program:  # initial states of zeros
        moves |= {"Shape", "Expand", "Slice"}
    assert set(count) <= moves, count
    for a, b in ((x.shape[0], x.shape[1]), (9, 2), (1, 1), (2, 6)):
        compare(layer, program, (random(a, b, case.I, seed=a),))


# Of cells that torch.nn does not have
BEYOND = {
    "rnn_sigmoid": lambda **options: fastrnn.RNN(5, 7, nonlinearity="sigmoid", **options),
    "rnn_identity": lambda **options: fastrnn.RNN(5, 7, nonlinearity="identity", **options),
    "gru_reset_before": lambda **options: fastrnn.GRU(5, 7, reset_after=False, **options),
    "peephole_lstm": lambda **options: fastrnn.PeepholeLSTM(5, 7, **options),
}


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    "options", [dict(), dict(num_layers=2, bidirectional=True, batch_first=True), dict(bias=False)], ids=str
)
@each_way
@pytest.mark.parametrize("cell", BEYOND)
def test_layer_that_torch_does_not_have(cell, export, options):
    layer = BEYOND[cell](**options).eval()
    x = random(4, 3, 5, seed=1)
    program = export(layer, (x,), {"input": {0: DYNAMIC, 1: DYNAMIC}})
    assert operators(program)[NODES[cell]] == layer.num_layers
    for a, b in ((4, 3), (9, 2), (1, 1)):
        compare(layer, program, (random(a, b, 5, seed=a),))


@pytest.mark.parametrize("kind", ["LayerNormLSTM", "LayerNormGRU", "LiGRU", "sLSTM", "IndRNN"])
def test_cells_that_onnx_does_not_have(kind):
    layer = getattr(fastrnn, kind)(5, 7).eval()
    with pytest.raises(Exception, match="ONNX has no such operator"):
        export(layer, (random(4, 3, 5, seed=1),))


@pytest.mark.quick(1)
@each_way
@each_cell
def test_initial_states(cell, export):
    case = Case(cell, L=2, bidirectional=True)
    layer, (x, hx) = case.build(fastrnn).eval(), case.inputs()
    inputs = x.detach(), give([h.detach() for h in hx])
    program = export(layer, inputs)
    assert operators(program)[NODES[cell]] == 2
    compare(layer, program, inputs)


@pytest.mark.quick(0)
@each_way
@each_cell
def test_without_a_batch(cell, export):
    case = Case(cell, form="unbatched", hx=False)
    layer, x = case.build(fastrnn).eval(), case.inputs()[0].detach()
    compare(layer, export(layer, (x,)), (x,))


@pytest.mark.quick(1)
@pytest.mark.parametrize("batched", [True, False])
@each_way
@each_cell
def test_single_step(cell, export, batched):
    case = Case(cell, T=1)
    module, _, x, hx = case.prepare_step(fastrnn)
    x, hx = x.detach(), [h.detach() for h in hx]
    inputs = (x, give(hx)) if batched else (x[0], give([h[0] for h in hx]))
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


class Rows(torch.nn.Module):
    """Gets the rows of a packed sequence."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, data, batch_sizes):
        output, last = self.rnn(PackedSequence(data, batch_sizes))
        return output.data, last


class Lengths(torch.nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x, lengths, hx=None):
        return self.rnn(x, hx, lengths=lengths)


def lens_of(program):
    """Of each node of a layer the input sequence_lens."""
    return [node.inputs[4] for node in program.model.graph if node.op_type in NODES.values()]


STACKS = [dict(), dict(L=2, bidirectional=True, form="batch_first")]


@pytest.mark.quick(1)
@pytest.mark.parametrize("options", STACKS, ids=str)
@each_cell
def test_packed_rows(cell, options):
    case = Case(cell, **{**options, "form": "packed"})
    module = Rows(case.build(fastrnn))
    rows = case.pack(case.inputs()[0].detach())
    dynamic = {"data": {0: DYNAMIC}, "batch_sizes": {0: DYNAMIC}}
    program = export_with_table(module, (rows.data, rows.batch_sizes), dynamic)
    assert len(lens_of(program)) == case.L and None not in lens_of(program)
    for lengths in ([5, 5, 5, 1], [9], [2, 1]):
        rows = pack_padded_sequence(random(lengths[0], len(lengths), case.I, seed=0), lengths)
        compare(module, program, (rows.data, rows.batch_sizes))


@pytest.mark.quick(1)
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("options", STACKS, ids=str)
@each_cell
def test_lengths(cell, options, given):
    """Those of length 0 keep their initial state, which onnxruntime's nodes do not know."""
    case = Case(cell, B=3, **options)
    module = Lengths(case.build(fastrnn))

    def inputs(T, lengths):
        x, hx = case.but(T=T, B=len(lengths)).inputs()
        return x.detach(), torch.tensor(lengths), *([give([h.detach() for h in hx])] if given else [])

    args = inputs(5, [5, 0, 2])
    states = {"hx": give([{1: DYNAMIC}] * case.row.states)} if given else {}
    program = export(module, args, {"x": {0: DYNAMIC, 1: DYNAMIC}, "lengths": {0: DYNAMIC}} | states)
    count = operators(program)
    assert count[NODES[cell]] == case.L and not count["NonZero"]
    assert len(set(lens_of(program))) == 1 and lens_of(program)[0].producer().op_type == "Cast"
    for T, lengths in ((5, [5, 0, 2]), (9, [1, 9]), (2, [0, 1, 0, 0]), (3, [0, 0])):
        compare(module, program, inputs(T, lengths))


@pytest.mark.quick(0)
@pytest.mark.parametrize("form", ["padded", "batch_first"])
def test_lengths_of_an_exported_program(form):
    case = Case("gru", L=2, bidirectional=True, form=form)
    module = Lengths(case.build(fastrnn))

    def inputs(T, lengths):
        return case.but(T=T, B=len(lengths)).inputs()[0].detach(), torch.tensor(lengths)

    dynamic = {"x": {0: DYNAMIC, 1: DYNAMIC}, "lengths": {0: DYNAMIC}}
    program = export_program(module, inputs(5, [5, 0, 2]), dynamic)
    for T, lengths in ((5, [5, 0, 2]), (9, [1, 9]), (4, [2, 2, 0, 2])):
        compare(module, program, inputs(T, lengths))


class Packing(torch.nn.Module):
    """Packs, runs the layer, pads; or gives it the lengths. Takes x, perhaps hx, lengths."""

    def __init__(self, rnn, form):
        super().__init__()
        self.rnn = rnn
        self.form = form

    def forward(self, x, *args):
        *hx, lengths = args
        if self.form == "lengths":
            return self.rnn(x, *hx, lengths=lengths)
        first = self.rnn.batch_first
        packed = pack_padded_sequence(x, lengths, first, enforce_sorted=self.form == "packed")
        output, last = self.rnn(packed, *hx)
        return pad_packed_sequence(output, first)[0], last


def told(export, *args):
    """All messages of the chain of exceptions that an export ends with."""
    with pytest.raises(Exception) as caught:
        export(*args)
    text, error = "", caught.value
    while error is not None:
        text, error = f"{text}\n{error}", error.__cause__ or error.__context__
    return text


def test_what_onnx_cannot():
    x = random(5, 3, 7, seed=0)
    lengths = torch.tensor([5, 3, 1])
    for lstm, args in ((fastrnn.LSTM(7, 16, proj_size=4), (x,)), (fastrnn.LSTM(7, 16, 2, proj_size=4), (x,))):
        assert "proj_size: ONNX's LSTM has no projection" in told(export, lstm, args)
        assert "proj_size: ONNX's LSTM has no projection" in told(export_script, lstm, args)
    half = fastrnn.GRU(7, 16, dtype=torch.bfloat16)
    assert "dtype: ONNX's GRU has none of BFLOAT16" in told(export, half, (x.bfloat16(),))
    assert "dtype: ONNX's GRU has none of BFLOAT16" in told(export_script, half, (x.bfloat16(),))
    assert "torch.export cannot pack" in told(export, Packing(Functional(), "packed"), (x, lengths))
    rows = pack_padded_sequence(x, lengths)
    message = told(export_script, Rows(fastrnn.GRU(7, 16)), (rows.data, rows.batch_sizes))
    assert "PackedSequence: the model must pack it" in message
    states = AllStates(fastrnn.GRU(7, 16))
    assert "return_all_states: with lengths" in told(export_script, states, (x, lengths))


class Alone(torch.nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        return self.rnn(x)


class AllStates(Lengths):
    def forward(self, x, lengths=None):
        return self.rnn(x, lengths=lengths, return_all_states=True)


@pytest.mark.parametrize("options", STACKS, ids=str)
def test_another_device(options):
    """The layers' results are where their inputs are, and meet what else is there. Any machine has meta."""
    case = Case("lstm", **options)
    layer = Lengths(case.build(fastrnn))
    x, hx = case.inputs()
    width = case.H * (1 + case.bidirectional)
    model = Headed(layer, torch.nn.Linear(width, 3)).to("meta").eval()
    x, h, c = (t.detach().to("meta") for t in (x, *hx))
    args = x, torch.ones(case.B, dtype=torch.int64), (h, c)
    program = torch.onnx.export(model, args, dynamo=True, optimize=False, verbose=False)
    assert operators(program)["LSTM"] == case.L


class Headed(torch.nn.Module):
    def __init__(self, layer, head):
        super().__init__()
        self.layer = layer
        self.head = head

    def forward(self, x, lengths, hx):
        output, (h, c) = self.layer(x, lengths, hx)
        return self.head(output), h + hx[0], c


class Autocast(Alone):
    def forward(self, x):
        with torch.autocast("cpu", torch.float16):
            return self.rnn(x)


def test_autocast():
    """The node has the dtype of the region, which onnxruntime does not run on the CPU."""
    program = export(Autocast(fastrnn.GRU(7, 16)), (random(5, 3, 7, seed=0),))
    (node,) = (n for n in program.model.graph if n.op_type == "GRU")
    assert {value.dtype.name for value in [*node.inputs, *node.outputs] if value is not None} == {"FLOAT16"}


def test_sizes_that_do_not_fit():
    x = random(5, 3, 6, seed=0)
    assert "input.size(-1) must be equal to input_size. Expected 7, got 6" in told(
        export, fastrnn.LSTM(7, 16), (x,)
    )
    assert "Expected hidden size (1, 3, 16), got [1, 3, 15]" in told(
        export, fastrnn.GRU(6, 16), (x, random(1, 3, 15, seed=1))
    )


@pytest.mark.parametrize("lengths", [False, True])
def test_refuses_dropout_in_training(lengths):
    module = (Lengths if lengths else Alone)(fastrnn.GRU(7, 16, 2, dropout=0.5)).train()
    args = random(5, 3, 7, seed=0), *([torch.tensor([5, 3, 1])] * lengths)
    message = told(lambda: torch.onnx.export(module, args, dynamo=True, verbose=False))
    assert "dropout: ONNX's GRU has no dropout: export in eval mode" in message


class Functional(torch.nn.Module):
    batch_first = False

    def __init__(self):
        super().__init__()
        self.weights = torch.nn.ParameterList(p.detach() for p in fastrnn.GRU(7, 16).parameters())

    def forward(self, x):
        return fastrnn.functional.gru(x, None, list(self.weights))


# ---- dynamo=False ----


def export_script(module, args, opset=None, dynamic=None, training=torch.onnx.TrainingMode.EVAL):
    """The model of the TorchScript exporter, as bytes. dynamic: the axes of each input"""
    file = io.BytesIO()
    names = ["x", *(f"in{k}" for k in range(1, len(torch.utils._pytree.tree_leaves(args))))]
    torch.onnx.export(
        module,
        args,
        file,
        dynamo=False,
        opset_version=opset,
        input_names=names,
        dynamic_axes=dynamic and dict(zip(names, dynamic, strict=True)),
        training=training,
    )
    return file.getvalue()


def layers_of(model):
    """The nodes of layers in a model: name, attributes, and which inputs they have beside states.

    torch.nn writes states of zeros, fastrnn leaves them out."""
    nodes = [n for n in onnx.load_from_string(model).graph.node if n.op_type in NODES.values()]
    return [
        (
            n.op_type,
            {a.name: onnx.helper.get_attribute_value(a) for a in n.attribute if a.name != "direction"},
            [bool(name) for name in n.input[:5]],
        )
        for n in nodes
    ]


def wrap(layer, form):
    return layer if form in ("padded", "unbatched") else Packing(layer, form)


SCRIPT_FORMS = ("padded", "unbatched", "packed", "unsorted", "lengths")
OPSETS = (9, 11, 13, 17, 20)


def script_cases():
    """Every pair of options at least, and every cell with every form and stack."""
    stacks = itertools.product(EVERY_CELL, SCRIPT_FORMS, (1, 2), (False, True))
    for k, (cell, form, L, bidirectional) in enumerate(stacks):
        for hx in (False, True):
            batch_first = (k + k // 7 + hx) % 2 == 1 and form != "unbatched"
            bias = (k + k // 3) % 4 != 0
            opset = OPSETS[(k + k // 5 + hx) % len(OPSETS)]
            if form == "unsorted":  # what sorts lengths of any number comes with opset 11
                opset = max(opset, 11)
            yield pytest.param(
                Case(cell, L=L, bidirectional=bidirectional, bias=bias, hx=hx),
                form,
                batch_first,
                opset,
                (k + k // 2) % 3 > 0,
                id=f"{cell}-{form}-L{L}{'-bi' * bidirectional}{'-hx' * hx}"
                f"{'-batch_first' * batch_first}{'' if bias else '-nobias'}-{opset}",
            )


@pytest.mark.parametrize("case, form, batch_first, opset, dynamic", list(script_cases()))
def test_script(case, form, batch_first, opset, dynamic):
    """In all that torch.nn's layers export to, fastrnn's give the same nodes, and take other sizes."""
    changes = dict(batch_first=batch_first, dropout=0.5 * (case.L > 1))
    module = wrap(case.build(fastrnn, **changes), form).eval()

    def inputs(T, lengths):
        kind = "batch_first" if batch_first else "unbatched" if form == "unbatched" else "padded"
        x, hx = case.but(T=T, B=len(lengths), form=kind).inputs()
        hx = [give([h.detach() for h in hx])] if case.hx else []
        return x.detach(), *hx, *([torch.tensor(lengths)] if form not in ("padded", "unbatched") else [])

    batch = {} if form == "unbatched" else {0: "b"} if batch_first else {1: "b"}
    states = [{1: "b"} if batch else {}] * (case.row.states * case.hx)
    lens = [{0: "b"}] * (form not in ("padded", "unbatched"))
    axes = [{int(batch_first): "t"} | batch, *states, *lens] if dynamic else None
    model = export_script(module, inputs(5, [5, 3, 3]), opset, axes)
    assert onnx.load_from_string(model).opset_import[0].version == opset
    compare(module, model, inputs(5, [5, 3, 3]))
    others = {"unsorted": [(9, [2, 9]), (4, [1, 3, 4, 2])], "lengths": [(9, [0, 9]), (4, [0, 3, 1, 2])]}
    if dynamic:
        for T, lengths in others.get(form, [(9, [9, 2]), (4, [4, 3, 2, 1])]):
            compare(module, model, inputs(T, lengths))
    if form != "lengths":
        slow = wrap(case.build(torch.nn, **changes), form)
        assert layers_of(model) == layers_of(export_script(slow, inputs(5, [5, 3, 3]), opset, axes))


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("form", ["batched", "unbatched", "nohx"])
@each_cell
def test_script_step(cell, form, opset):
    case = Case(cell, T=1)
    module, _, x, hx = case.prepare_step(fastrnn)
    x, hx = x.detach(), [h.detach() for h in hx]
    if form == "unbatched":
        x, hx = x[0], [h[0] for h in hx]
    inputs = (x,) if form == "nohx" else (x, give(hx))
    compare(module, export_script(module, inputs, opset), inputs)


class WithH(Alone):
    def forward(self, x, h):
        return self.rnn(x, h)


class WithHC(Alone):
    def forward(self, x, h, c):
        return self.rnn(x, (h, c))


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("kind", ["layer", "step"])
@each_cell
def test_script_of_torchscript(cell, kind, given, opset):
    """torch.jit.script before the export."""
    if kind == "layer":
        case = Case(cell, L=2, bidirectional=True)
        rnn, (x, hx) = case.build(fastrnn), case.inputs()
    else:
        rnn, _, x, hx = Case(cell, T=1).prepare_step(fastrnn)
    module = ((WithH if len(hx) == 1 else WithHC) if given else Alone)(rnn).eval()
    inputs = x.detach(), *(h.detach() for h in hx if given)
    compare(module, export_script(torch.jit.script(module), inputs, opset), inputs)


def test_script_two_layers_on_one_packing():
    """The exporter moves the packing past both."""

    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = fastrnn.GRU(7, 6, bidirectional=True), fastrnn.LSTM(12, 5)

        def forward(self, x, lengths):
            y, _ = self.a(pack_padded_sequence(x, lengths))
            y, last = self.b(y)
            return pad_packed_sequence(y)[0], last

    module = Two().eval()
    model = export_script(module, (random(5, 3, 7, seed=0), torch.tensor([5, 3, 1])))
    compare(module, model, (random(5, 3, 7, seed=1), torch.tensor([5, 5, 2])))


@pytest.mark.parametrize("form", ["padded", "packed", "lengths"])
def test_script_refuses_dropout_in_training(form):
    """As torch.nn's layers, which have no lengths."""
    args = random(5, 3, 7, seed=0), *([torch.tensor([5, 3, 1])] if form != "padded" else [])
    case = Case("gru", L=2, dropout=0.5)
    for library, message in ((torch.nn, "dropout in training mode"), (fastrnn, "dropout: ONNX's GRU")):
        if library is fastrnn or form != "lengths":
            with pytest.raises(RuntimeError, match=message):
                module = wrap(case.build(library), form).train()
                export_script(module, args, training=torch.onnx.TrainingMode.TRAINING)


def runs(program):
    done = run_python("-c", program)
    assert done.returncode == 0, done.stderr


def test_import_does_not_load_the_exporter():
    """Its operators are told to torch.onnx when that is imported, before or after."""
    runs("import sys, fastrnn; assert 'torch.onnx' not in sys.modules")
    known = (
        "from torch.onnx._internal.torchscript_exporter.registration import registry; "
        "assert registry.is_registered_op('fastrnn::rnn', 9)"
    )
    runs(f"import fastrnn, torch.onnx; {known}")
    runs(f"import torch.onnx, fastrnn; {known}")


def test_torch_without_the_exporter():
    """torch.onnx can be imported if it has no TorchScript exporter."""
    gone = "import sys; sys.modules['torch.onnx.symbolic_helper'] = None"
    runs(f"{gone}; import fastrnn, torch.onnx; torch.onnx.export")
    runs(f"{gone}; import torch.onnx, fastrnn; torch.onnx.export")


@pytest.mark.quick(0)
@pytest.mark.parametrize("options", STACKS, ids=str)
@each_cell
def test_all_states(cell, options):
    case = Case(cell, **options)
    module, x = AllStates(case.build(fastrnn)), case.inputs()[0].detach()
    program = export(module, (x,))
    assert operators(program)[NODES[cell]] == case.L
    compare(module, program, (x,))


def test_all_states_with_lengths():
    """By dynamo=True and the table; the exported model takes other lengths."""
    model, x = AllStates(fastrnn.GRU(7, 16)).eval(), random(5, 3, 7, seed=0)
    program = export_with_table(model, (x, torch.tensor([5, 3, 1])))
    for lengths in ([5, 3, 1], [2, 5, 4]):
        n = torch.tensor(lengths)
        for got, want in zip(program(x, n), model(x, n), strict=True):
            torch.testing.assert_close(got, want)
