"""torch.compile, torch.export, AOTInductor and TorchScript: a model with each layer gives what it gives
without them."""

import io
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
import torch._dynamo.testing
from cases import EVERY_CELL, Case, device_of, fastrnn_on, give, take
from torch._subclasses import FakeTensorMode
from torch.export import Dim
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import fastrnn
from fastrnn import reference

pytestmark = [
    pytest.mark.usefixtures("device", "default_precision"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.xdist_group("compile"),  # one process imports the compiler
]
each_cell = pytest.mark.parametrize("cell", EVERY_CELL)
each_kind = pytest.mark.parametrize("step", [False, True], ids=["layer", "cell"])


DEFAULT_PRECISION = torch.backends.cudnn.rnn.fp32_precision


@pytest.fixture
def default_precision(device):
    """torch.export asks for the TF32 flag in the old way, which allows cuDNN's RNN no setting of its own."""
    torch.backends.cudnn.rnn.fp32_precision = DEFAULT_PRECISION  # `device` puts back what was there


class Model(torch.nn.Module):
    """What surrounds a layer: something before, something after."""

    def __init__(self, case, step=False):
        super().__init__()
        self.before = torch.nn.Linear(case.I, case.I, device=device_of(fastrnn))
        self.rnn = (case.prepare_step if step else case.prepare)(fastrnn)[0]

    def forward(self, x):
        result = self.rnn(self.before(x).tanh())
        return result[0].sin() if isinstance(result, tuple) else result.sin()


def problem(cell, step=False, **changes):
    options = {} if step else dict(L=2, bidirectional=True, form="batch_first")
    case = Case(cell, B=3, I=5, H=8, **{**options, **changes})
    x = case.inputs(fastrnn)[0].detach()
    return Model(case, step), x[0] if step else x


@pytest.fixture
def one_graph():
    """fullgraph=True with a layer that subclasses torch.nn.LSTM, GRU or RNN needs this switch of torch's."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(allow_rnn=True):
        yield
    torch._dynamo.reset()


def train(model, call, x):
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = call(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad.clone() for p in model.parameters())]


def agree(got, want):
    # On a GPU products of float32 may be tf32 here, but cuBLAS computes some shapes in full.
    rounding = {"rtol": 5e-3, "atol": 5e-3} if device_of(fastrnn) == "cuda" else {}
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, **rounding)


@pytest.mark.quick(1)
@each_kind
@each_cell
def test_fullgraph(one_graph, cell, step):
    model, x = problem(cell, step)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    agree(train(model, compiled, x), train(model, model, x))
    with torch.no_grad():
        agree([compiled(x)], [model(x)])


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a compiler")
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_inductor(one_graph, cell):
    model, x = problem(cell)
    agree(train(model, torch.compile(model, fullgraph=True), x), train(model, model, x))


@pytest.mark.quick(0)
@each_cell
def test_dynamic_lengths_compile_once(one_graph, cell):
    """T and B of any size, forward and training, in the graph that the first call has made."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    model, _ = problem(cell)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    first = 0
    for T, B in ((4, 3), (7, 2), (11, 6), (2, 9), (30, 4)):
        x = torch.randn(B, T, 5, device=device_of(fastrnn))
        agree(train(model, compiled, x), train(model, model, x))
        first = first or counter.frame_count
    assert counter.frame_count == first


def test_default_dynamic_compiles_twice(one_graph):
    """Without dynamic=True torch finds out with the second length; after that no more."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    model, _ = problem("lstm")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    counts = []
    for T, B in ((4, 3), (7, 2), (11, 6), (13, 9), (30, 4)):
        x = torch.randn(B, T, 5, device=device_of(fastrnn))
        agree([compiled(x)], [model(x)])
        counts.append(counter.frame_count)
    assert counts[0] < counts[1] == counts[-1]


@each_cell
def test_without_the_switch_the_layer_runs_between_graphs(cell):
    torch._dynamo.reset()
    model, x = problem(cell)
    agree(train(model, torch.compile(model, backend="aot_eager"), x), train(model, model, x))
    torch._dynamo.reset()


@each_cell
def test_packed_argument(one_graph, cell):
    """A PackedSequence made outside goes through one graph."""
    case = Case(cell, B=3, I=5, H=8, form="unsorted")
    layer, _, x, _ = case.prepare(fastrnn)
    packed = case.pack(x.detach())

    def run(packed):
        y, state = layer(packed)
        return [y.data, *take(state)]

    agree(torch.compile(run, fullgraph=True, backend="aot_eager")(packed), run(packed))


@pytest.mark.parametrize("save", [None, False, True], ids=["layer", "forward", "save"])
@each_cell
def test_batch_sizes_stay_on_the_cpu_in_a_graph(cell, save):
    """Of a layer on a GPU, where all else is; tensors without data show it on every machine."""
    case = Case(cell, B=3, I=5, H=8, form="packed")
    options = (cell, False, False) if save is None else (cell, False, False, save)
    op = torch.ops.fastrnn.layer if save is None else torch.ops.fastrnn.layer_forward
    with fastrnn_on("cpu"):
        layer, _, x, hx = case.prepare(fastrnn)
    packed = case.pack(x.detach())
    real = [packed.data, *hx, *layer._flat_weights]
    want = op(packed.data, packed.batch_sizes, hx, layer._flat_weights, *options)
    with FakeTensorMode() as mode:
        data, *others = (torch.empty(t.shape, device="cuda") for t in real)
        states, weights = others[: len(hx)], others[len(hx) :]
        sizes = mode.from_tensor(packed.batch_sizes)
        found = op(data, sizes, states, weights, *options)
        assert [(t.shape, t.device.type) for t in found] == [(t.shape, "cuda") for t in want]
        if save:
            results = found[: 1 + len(hx)]
            wanted = [True] * len(real)
            saved = found[len(results) :]
            found = torch.ops.fastrnn.layer_backward(
                results, data, sizes, states, weights, *options[:3], [results[0], *saved], wanted
            )
            assert [(t.shape, t.device.type) for t in found] == [(t.shape, "cuda") for t in real]


LENGTHS = [[4, 2, 0], [7, 7, 7], [0, 1, 0], [3, 9, 1, 0, 2]]


@pytest.mark.quick(0)
@each_cell
def test_lengths_in_one_graph(one_graph, cell):
    """Packing inside of a graph is beyond torch; a padded batch with its lengths goes through one graph."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    case = Case(cell, I=5, H=8, L=2, bidirectional=True, form="batch_first")
    layer, first = case.build(fastrnn), 0

    def run(x, lengths):
        y, state = layer(x.tanh(), lengths=lengths)
        return [y.sin(), *take(state)]

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend=counter)
    for lengths in LENGTHS:
        x = torch.randn(len(lengths), 2 + max(lengths), 5, device=device_of(fastrnn), requires_grad=True)
        got, want = (f(x, torch.tensor(lengths)) for f in (compiled, run))
        agree(got, want)
        leaves = [x, *layer.parameters()]
        agree(*(torch.autograd.grad([r.square().sum() for r in result], leaves) for result in (got, want)))
        first = first or counter.frame_count
    assert counter.frame_count == first


def test_lengths_in_one_graph_with_states(one_graph):
    layer, x = fastrnn.LSTM(5, 8, device=device_of(fastrnn)), torch.randn(4, 3, 5, device=device_of(fastrnn))
    hx = tuple(torch.randn(1, 3, 8, device=device_of(fastrnn)) for _ in "hc")
    run = lambda x, hx: layer(x, hx, lengths=[2, 0, 4])  # noqa: E731
    (y, state), (want, last) = torch.compile(run, fullgraph=True, backend="aot_eager")(x, hx), run(x, hx)
    agree([y, *state], [want, *last])


def test_lengths_in_a_graph_are_checked(one_graph):
    layer = fastrnn.GRU(5, 8, device=device_of(fastrnn))
    compiled = torch.compile(lambda x, n: layer(x, lengths=n)[0], fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3, 5, device=device_of(fastrnn))
    compiled(x, torch.tensor([1, 2, 3]))
    for wrong, message in (([1, 2, 5], "from 0 to 4"), ([0, 0, 0], "one larger than 0"), ([1, 2], "size")):
        with pytest.raises(Exception, match=f"lengths: expected .*{message}"):
            compiled(x, torch.tensor(wrong))


@each_cell
def test_checkpoint_gates_in_a_graph(one_graph, cell):
    model, x = problem(cell)
    want = train(model, model, x)
    model.rnn.checkpoint_gates = True
    agree(train(model, torch.compile(model, fullgraph=True, backend="aot_eager"), x), want)


@each_kind
@each_cell
def test_export(cell, step):
    """With dynamic sizes, saved and loaded."""
    model, x = problem(cell, step)
    sizes = {0: Dim("B")} if step else {0: Dim("B"), 1: Dim("T")}
    program = torch.export.export(model.eval(), (x,), dynamic_shapes=(sizes,))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for size in (x.shape, [4, 5] if step else [6, 9, 5]):
        x = torch.randn(size, device=device_of(fastrnn))
        agree([loaded(x)], [model(x)])


class Rows(torch.nn.Module):
    """A layer as a function, of a PackedSequence or of what it packs itself."""

    def __init__(self):
        super().__init__()
        self.weights = torch.nn.ParameterList(p.detach() for p in fastrnn.GRU(3, 4).parameters())

    def forward(self, x, lengths=None):
        packed = x if lengths is None else pack_padded_sequence(x, lengths)
        return fastrnn.functional.gru(packed, None, list(self.weights))[1]


def test_export_takes_packed_sequences_and_does_not_pack():
    x, lengths = torch.randn(5, 2, 3), torch.tensor([5, 3])
    packed = pack_padded_sequence(x, lengths)
    module = Rows()
    program = torch.export.export(module, (packed,), strict=False).module()
    agree([program(packed)], [module(packed)])
    with pytest.raises(NotImplementedError, match="cannot pack sequences, give the layer lengths="):
        torch.export.export(module, (x, lengths), strict=False)


def test_export_with_lengths():
    class Padded(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = fastrnn.GRU(5, 8, batch_first=True, bidirectional=True, device=device_of(fastrnn))

        def forward(self, x, lengths):
            return self.rnn(x, lengths=lengths)

    model, device = Padded().eval(), device_of(fastrnn)
    sizes = ({0: Dim("B"), 1: Dim("T")}, {0: Dim("B")})
    example = torch.randn(3, 4, 5, device=device), torch.tensor([2, 4, 1])
    program = torch.export.export(model, example, dynamic_shapes=sizes).module()
    for lengths in LENGTHS:
        x = torch.randn(len(lengths), 2 + max(lengths), 5, device=device)
        agree(program(x, torch.tensor(lengths)), model(x, torch.tensor(lengths)))


@pytest.mark.skipif(not shutil.which("g++"), reason="AOTInductor needs a compiler")
def test_ahead_of_time(tmp_path):
    model, x = problem("lstm", L=1, bidirectional=False)
    model.eval()
    with torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes=({0: Dim("B"), 1: Dim("T")},))
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
        loaded = torch._inductor.aoti_load_package(path)
        for size in (x.shape, (6, 9, 5)):
            x = torch.randn(size, device=device_of(fastrnn))
            agree([loaded(x)], [model(x)])


# ---- TorchScript ----


def reloaded(scripted):
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    return torch.jit.load(file)


@each_kind
@each_cell
def test_trace(cell, step):
    model, x = problem(cell, step)
    traced = reloaded(torch.jit.trace(model, x))
    for size in (x.shape, [4, 5] if step else [6, 9, 5]):
        x = torch.randn(size, device=device_of(fastrnn))
        agree(train(model, model, x)[:2], train(traced, traced, x)[:2])


# ---- lengths and states of every step in a trace ----


class Flat(torch.nn.Module):
    """A layer as a trace takes it: from tensors to tensors."""

    def __init__(self, rnn, form, options, hx):
        super().__init__()
        self.rnn, self.form, self.options, self.hx = rnn, form, options, hx

    def forward(self, x, lengths, *hx):
        options = {name: lengths if name == "lengths" else True for name in self.options}
        if self.form == "packed":
            x = pack_padded_sequence(x, lengths, enforce_sorted=False)
        if self.form == "unbatched":
            x, hx = x[:, 0], [h[:, 0] for h in hx]
        result = self.rnn(x, give(hx) if self.hx else None, **options)
        return tuple(t for t in torch.utils._pytree.tree_leaves(result) if t is not None)


TRACES = [
    (form, options)
    for form in ("padded", "batch_first", "packed", "unbatched")
    for options in (("lengths",), ("return_all_states",), ("lengths", "return_all_states"))
    if form in ("padded", "batch_first") or "lengths" not in options
]


def arguments(form, lengths, cell):
    B, T = len(lengths), max(lengths) + (form != "packed")
    size = (B, T, 5) if form == "batch_first" else (T, B, 5)
    states = [(4, B, 8)] * len(reference.CELLS[cell].info.states)
    x, *hx = (torch.randn(size, device=device_of(fastrnn), requires_grad=True) for size in (size, *states))
    return x, torch.tensor(lengths), *hx


@pytest.mark.parametrize("hx", [True, False], ids=["hx", "nohx"])
@pytest.mark.parametrize(("form", "options"), TRACES, ids=lambda v: v if isinstance(v, str) else "+".join(v))
@each_cell
def test_trace_takes_other_lengths(cell, form, options, hx):
    """Values and gradients for another T and B, and for other lengths; also after saving. Nothing warns."""
    case = Case(
        cell, I=5, H=8, L=2, bidirectional=True, form="batch_first" if form == "batch_first" else "padded"
    )
    model = Flat(case.build(fastrnn), form, options, hx)
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(model, arguments(form, [3, 5, 2], cell))
    for lengths in ([3, 5, 2], [7, 1, 4], [1, 1], [9, 1, 4, 2, 8], [3], [4, 0, 2, 0]):
        if form == "packed" and 0 in lengths:
            continue
        args = arguments(form, lengths, cell)
        leaves = [args[0], *args[2:]] if hx else [args[0]]
        results = []
        for module in (model, traced, reloaded(traced)):
            values = [v for v in module(*args) if v.is_floating_point()]
            loss = sum(v.square().sum() for v in values)
            results.append([*values, *torch.autograd.grad(loss, [*leaves, *module.parameters()])])
        agree(results[1], results[0])
        agree(results[2], results[0])


def test_trace_checks_lengths():
    model = Flat(Case("gru", I=5, H=8, L=4).build(fastrnn), "padded", ["lengths"], True)
    x, lengths, h = arguments("padded", [3, 5, 2], "gru")
    traced = torch.jit.trace(model, (x, lengths, h))
    for wrong, message in (
        (lengths + 4, "lengths: expected from 0 to 6"),
        (-lengths, "lengths: expected from 0 to 6"),
        (lengths[:2], r"lengths: expected size \[3\]"),
        (lengths.float(), "lengths: expected integers"),
        (0 * lengths, "lengths: expected one larger than 0"),
    ):
        with pytest.raises(Exception, match=message):
            traced(x, wrong, h)
    for size in (2, 6):
        with pytest.raises(RuntimeError, match=f"sum exactly to {size}"):
            traced(x, lengths, torch.cat([h, h], 1)[:, :size])
    with pytest.raises(Exception, match="lengths: expected one larger than 0"):
        torch.jit.trace(model, (x, 0 * lengths, h))


class WithList(Flat):
    def forward(self, x):
        return self.rnn(x, lengths=[2, 4, 0])[0]


def test_trace_of_lengths_in_a_list():
    """As of torch.nn.utils.rnn.pack_padded_sequence: they are constants, which is said."""
    model = WithList(Case("gru", I=5, H=8).build(fastrnn), "padded", [], False)
    x = torch.randn(4, 3, 5, device=device_of(fastrnn))
    with pytest.warns(torch.jit.TracerWarning, match="lengths: a trace keeps those of a list"):
        traced = torch.jit.trace(model, x)
    agree([traced(2 * x)], [model(2 * x)])
    with pytest.raises(Exception, match="lengths: expected from 0 to 3"):
        traced(x[:3])


# ---- scripts ----


class Scripted(torch.nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x: torch.Tensor, lengths: torch.Tensor):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.rnn(x), self.rnn(packed)[0].data, self.rnn(packed)[1]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@each_cell
def test_script_layer(cell, bias):
    """Padded and packed input in one model; values, gradients and the module after it was saved."""
    rnn = Case(cell, I=5, H=8, L=2, bidirectional=True, form="batch_first", bias=bias).build(fastrnn)
    model = Scripted(rnn)
    x, n = torch.randn(3, 4, 5, device=device_of(fastrnn)), torch.tensor([2, 4, 1])
    for scripted in (torch.jit.script(model), reloaded(torch.jit.script(model))):
        for got, want in zip(scripted(x, n), model(x, n), strict=True):
            got, want = (torch.utils._pytree.tree_leaves(v) for v in (got, want))
            agree(got, want)
        scripted.zero_grad()
        scripted(x, n)[1].sum().backward()
        got = [p.grad.clone() for p in scripted.parameters()]
        model.zero_grad()
        model(x, n)[1].sum().backward()
        agree(got, [p.grad for p in model.parameters()])
    assert type(model.rnn) is type(rnn), "scripting has changed the model"


class WithStates(torch.nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x: torch.Tensor, h: torch.Tensor):
        return self.rnn(x, h)


class WithTwoStates(WithStates):
    def forward(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor):
        return self.rnn(x, (h, c))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@each_kind
@each_cell
def test_script_states(cell, step, bias):
    case = Case(cell, I=5, H=8, bias=bias)
    module, _, x, hx = (case.prepare_step if step else case.prepare)(fastrnn)
    model = (WithStates, WithTwoStates)[case.row.states - 1](module)
    got, want = (torch.utils._pytree.tree_leaves(m(x, *hx)) for m in (torch.jit.script(model), model))
    agree(got, want)


@each_cell
def test_script_cell(cell):
    module, _, x, hx = Case(cell, I=5, H=8).prepare_step(fastrnn)
    scripted = reloaded(torch.jit.script(module))
    for arguments in ((x,), (x[0],), (x, give(hx))):
        got, want = (torch.utils._pytree.tree_leaves(m(*arguments)) for m in (scripted, module))
        agree(got, want)


def test_script_of_a_projection_and_an_annotated_packed_sequence():
    class Inner(torch.nn.Module):
        def __init__(self, rnn):
            super().__init__()
            self.rnn = rnn

        def forward(self, x: PackedSequence):
            return self.rnn(x)[0].data

    case = Case("lstm", P=3, form="unsorted")
    layer, _, x, _ = case.prepare(fastrnn)
    packed = case.pack(x)
    agree([torch.jit.script(Inner(layer))(packed)], [layer(packed)[0].data])


# ---- Stateful ----


def stream(cell, step=False):
    """A Stateful, and what it reads step by step or in chunks."""
    case = Case(cell, T=12, B=4, I=5, H=9)
    layer = (case.prepare_step if step else case.prepare)(fastrnn)[0]
    x = case.inputs(fastrnn)[0].detach()
    return fastrnn.Stateful(layer), x if step else x.split(3)


@pytest.mark.quick(1)
@each_kind
@each_cell
def test_stateful_in_one_graph(one_graph, cell, step):
    stateful, chunks = stream(cell, step)
    compiled = torch.compile(stateful, fullgraph=True, backend="aot_eager")
    results = []
    for call in (compiled, stateful):
        stateful.zero_grad()
        stateful.reset()
        for n, chunk in enumerate(chunks):
            y = call(chunk)
            y.square().sum().backward()
            stateful.detach()
            if n == 1:
                stateful.reset([1])
        results.append([y.detach(), *(p.grad.clone() for p in stateful.parameters())])
    agree(*results)


def test_stateful_methods_in_one_graph(one_graph):
    stateful, (x, *_) = stream("lstm")

    def call(x, h, c):
        stateful.state = (h, c)
        y = stateful(x)
        stateful.detach()
        stateful.reset([1])
        return y + stateful(x), stateful.state

    states = [torch.randn(1, 4, 9, device=x.device) for _ in "hc"]
    got = torch.compile(call, fullgraph=True, backend="aot_eager")(x, *states)
    agree(*map(torch.utils._pytree.tree_leaves, (got, call(x, *states))))


@pytest.mark.quick(0)
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "nonreentrant"])
@pytest.mark.parametrize("outer", ["compile", "checkpoint"])
def test_stateful_in_a_checkpoint(one_graph, outer, reentrant):
    """One around the other, either way."""
    stateful, chunks = stream("gru")
    if outer == "compile":
        call = torch.compile(
            lambda v: checkpoint(stateful, v.sin(), use_reentrant=reentrant).cos(), backend="aot_eager"
        )
    else:
        compiled = torch.compile(stateful, backend="aot_eager")
        call = lambda v: checkpoint(compiled, v.sin(), use_reentrant=reentrant).cos()  # noqa: E731
    results = []
    for function in (call, lambda v: stateful(v.sin()).cos()):
        stateful.zero_grad()
        stateful.reset()
        for chunk in chunks:
            function(chunk.clone().requires_grad_()).sum().backward()
            stateful.detach()
        results.append([p.grad.clone() for p in stateful.parameters()])
    agree(*results)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.filterwarnings("ignore:.*(assigned during export|side effects happened).*")
def test_export_leaves_a_state_alone(strict):
    stateful, (x, *_) = stream("lstm")
    torch.export.export(stateful, (x,), strict=strict)
    assert stateful.state is None
    stateful(x)
    before = stateful.state
    torch.export.export(stateful, (x,), strict=strict)
    assert all(map(torch.equal, stateful.state, before))


def test_trace_of_a_stateful_says_that_it_keeps_no_state():
    stateful, (x, *_) = stream("lstm")
    with pytest.warns(torch.jit.TracerWarning, match="each call of a trace begins from the state"):
        torch.jit.trace(stateful, x, check_trace=False)
    stateful(x)


def test_import_leaves_the_compiler_out():
    """It takes seconds to load."""
    code = "import sys, fastrnn; sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
