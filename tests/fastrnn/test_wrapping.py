"""What torch and its users wrap around a module works as with torch.nn's: values, gradients, no warnings."""

import copy
import importlib
import pickle
import warnings

import pytest
import torch
from cases import EVERY_CELL, Case, cotangents, device_of, evaluate, give, judged_there, name_values, take
from tolerance import assert_close, assert_same_bits
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

import fastrnn

pytestmark = pytest.mark.usefixtures("device")

DOUBLE = torch.float64
each_cell = pytest.mark.parametrize("cell", EVERY_CELL)
each_kind = pytest.mark.parametrize("step", [False, True], ids=["layer", "cell"])


def case_of(cell, step, **changes):
    return Case(cell, T=1 if step else 4, L=1 if step else 2, H=9, I=9, dtype=DOUBLE, **changes)


def prepare(case, step, library):
    return case.prepare_step(library) if step else case.prepare(library)


def call_of(case, step, module):
    """A call of that module, say a copy of the one that was prepared."""
    if not step:
        return case.call(module)
    return lambda x, hx: [(s := take(module(x, give(hx))))[0], *s]


def name_of(step, which="weight_hh"):
    return which if step else f"{which}_l0"


def compare(case, step, wrap, training=True):
    """The same `wrap(module)` on both libraries: values and gradients, in two calls with a step between."""

    def solve(library):
        module, _, x, hx = prepare(case, step, library)
        torch.manual_seed(5)
        module = (wrap(module) or module).train(training)
        call = call_of(case, step, module)
        evaluate(call, x, hx, dict(module.named_parameters()), case)
        torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1).step()
        module.zero_grad()
        _, _, x, hx = prepare(case, step, library)
        return evaluate(call, x, hx, dict(module.named_parameters()), case)

    with judged_there():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            got = solve(fastrnn)
        assert_close(got, solve(torch.nn), case)
    return got


# ---- computed weights ----


class Symmetric(torch.nn.Module):
    def forward(self, W):
        return W + 0.5 * W.flip(0)


WRAPS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "parametrize": lambda module, name: parametrize.register_parametrization(module, name, Symmetric()),
    "orthogonal": lambda module, name: parametrizations.orthogonal(module, name),
    "prune": lambda module, name: prune.l1_unstructured(module, name, amount=0.4),
    "prune and keep": lambda module, name: prune.remove(prune.random_unstructured(module, name, 0.4), name),
    "prune rows": lambda module, name: prune.ln_structured(module, name, amount=3, n=2, dim=0),
}


@pytest.mark.parametrize("wrap", WRAPS)
@each_kind
@each_cell
def test_computed_weights(cell, step, wrap):
    names = [name_of(step), name_of(step, "weight_ih")]
    training = wrap != "spectral_norm" or step  # test_one_power_iteration_a_call
    got = compare(
        case_of(cell, step), step, lambda m: [WRAPS[wrap](m, name) for name in names] and None, training
    )
    if wrap != "prune and keep":
        assert f"d{names[0]}" not in got, "the weight itself is still the parameter"


@each_kind
@each_cell
def test_one_power_iteration_a_call(cell, step):
    """spectral_norm goes on with every look at the weight in training. fastrnn looks once in a call, as other
    modules do; torch.nn's layers look twice."""
    case, name = case_of(cell, step), name_of(step)
    module, call, x, hx = prepare(case, step, fastrnn)
    plain = copy.deepcopy(module)
    parametrizations.spectral_norm(module, name)
    other = copy.deepcopy(module)
    for _ in range(2):
        got = call(x, hx)
        with torch.no_grad():
            getattr(plain, name).copy_(getattr(other, name))
        # Not to the bit: on a GPU torch.nn has joined the weights of one of them, which moves them in memory.
        want = call_of(case, step, plain)(x, hx)
        assert_close(*(name_values([v.detach() for v in values]) for values in (got, want)), case)


@each_cell
def test_parametrization_cached_and_removed(cell):
    case = case_of(cell, False)
    layer, call, x, hx = case.prepare(fastrnn)
    parametrize.register_parametrization(layer, "weight_hh_l0", Symmetric())
    want = call(x, hx)
    with parametrize.cached():
        assert all(map(torch.equal, call(x, hx), want))
    parametrize.remove_parametrizations(layer, "weight_hh_l0", leave_parametrized=True)
    assert type(layer) is type(case.build(fastrnn))
    assert all(map(torch.equal, call(x, hx), want))


@each_cell
def test_global_pruning_and_copy(cell):
    case = case_of(cell, False)
    layer, call, x, hx = case.prepare(fastrnn)
    prune.global_unstructured(
        [(layer, "weight_hh_l0"), (layer, "weight_ih_l1")], prune.L1Unstructured, amount=0.5
    )
    dense = case.build(fastrnn)
    dense.load_state_dict(
        {n: getattr(layer, n).detach() for n in (name for name, _ in dense.named_parameters())}
    )
    assert not dense.weight_hh_l0.all()
    want = case.call(dense)(x, hx)
    assert all(map(torch.equal, call(x, hx), want))


# ---- copies and averages ----


@each_kind
@each_cell
def test_replicas_of_data_parallel(cell, step):
    """What torch.nn.DataParallel does on each device: plain tensors for parameters; gradients reach these."""
    case = case_of(cell, step)
    module, call, x, hx = prepare(case, step, fastrnn)
    want = evaluate(call, x, hx, dict(module.named_parameters()), case)
    module.zero_grad()
    replica = module._replicate_for_data_parallel()
    for name, p in module.named_parameters():
        setattr(replica, name, p * 1.0)
    assert not list(replica.parameters())
    _, _, x, hx = prepare(case, step, fastrnn)
    got = evaluate(call_of(case, step, replica), x, hx, dict(module.named_parameters()), case)
    assert_same_bits(got, want, "replica")


@each_kind
@each_cell
def test_averaged_model(cell, step):
    case = case_of(cell, step)

    def solve(library):
        module, call, x, hx = prepare(case, step, library)
        averaged = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.7))
        optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
        for _ in range(3):
            evaluate(call, x, hx, dict(module.named_parameters()), case)
            optimizer.step()
            averaged.update_parameters(module)
        values = call_of(case, step, averaged.module)(x, hx)
        own = call(x, hx)
        assert not torch.equal(values[0], own[0])
        return {f"value {k}": v.detach() for k, v in enumerate(values)}

    want = solve(torch.nn)
    for name, value in solve(fastrnn).items():  # three steps of training make errors grow
        torch.testing.assert_close(value.cpu(), want[name], rtol=1e-11, atol=1e-12)


@each_kind
@each_cell
def test_share_memory(cell, step):
    """Weights in shared memory are computed with, and a write of another holder is seen."""
    case = case_of(cell, step)
    module, call, x, hx = prepare(case, step, fastrnn)
    want = call(x, hx)
    module.share_memory()
    assert all(p.is_shared() for p in module.parameters())
    assert all(map(torch.equal, call(x, hx), want))
    other = copy.copy(module)  # shares the parameters
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.5)
    assert not torch.equal(call(x, hx)[0], want[0])


@pytest.mark.parametrize(
    "which_frozen", [("weight_ih", "bias_hh"), ("weight_hh", "bias_ih")], ids=lambda pair: "-".join(pair)
)
@each_kind
@each_cell
def test_frozen_weights(cell, step, which_frozen):
    """Some weights need no gradient: they get none, the others' are the same."""
    case = case_of(cell, step)
    module, call, x, hx = prepare(case, step, fastrnn)
    want = evaluate(call, x, hx, dict(module.named_parameters()), case)
    module.zero_grad(set_to_none=True)
    frozen = [name_of(step, which) for which in which_frozen]
    for name in frozen:
        getattr(module, name).requires_grad_(False)
    _, _, x, hx = prepare(case, step, fastrnn)
    got = evaluate(call, x, hx, dict(module.named_parameters()), case)
    assert all(got.pop(f"d{name}") is None and want.pop(f"d{name}") is not None for name in frozen)
    assert_same_bits(got, want, "frozen")


# ---- weights that come later ----


@pytest.mark.parametrize("mmap", [False, True])
@each_kind
@each_cell
def test_state_dict_with_weights_only(cell, step, mmap, tmp_path):
    case = case_of(cell, step)
    module, call, x, hx = prepare(case, step, fastrnn)
    want = call(x, hx)
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    state = torch.load(tmp_path / "weights.pt", weights_only=True, mmap=mmap)
    with torch.device("meta"):
        other = type(module)(9, 9, **({} if step else dict(num_layers=2)), dtype=DOUBLE, **case.row.kwargs)
    other.load_state_dict(state, assign=True)
    assert all(map(torch.equal, call_of(case, step, other)(x, hx), want))


@each_kind
@each_cell
def test_meta_device(cell, step):
    """Built without memory: shapes can be asked for; then filled on a real device."""
    case = case_of(cell, step)
    module, call, x, hx = prepare(case, step, fastrnn)
    want = call(x, hx)
    with torch.device("meta"):
        built = type(module)(9, 9, **({} if step else dict(num_layers=2)), dtype=DOUBLE, **case.row.kwargs)
    assert all(p.is_meta for p in built.parameters())
    shapes = call_of(case, step, built)(x.to("meta"), [h.to("meta") for h in hx])
    assert all(v.is_meta for v in shapes)
    assert [(v.shape, v.dtype) for v in shapes] == [(v.shape, v.dtype) for v in want]
    built.to_empty(device=device_of(fastrnn))
    torch.manual_seed(case.seed)
    built.reset_parameters()
    assert all(p.isfinite().all() and p.abs().max() <= 1 / 3 for p in built.parameters())  # 1 / sqrt(H)
    built.load_state_dict(module.state_dict())
    assert all(map(torch.equal, call_of(case, step, built)(x, hx), want))


@each_kind
@each_cell
def test_skip_init(cell, step):
    case = case_of(cell, step)
    module, call, x, hx = prepare(case, step, fastrnn)
    options = {} if step else dict(num_layers=2)
    empty = torch.nn.utils.skip_init(
        type(module), 9, 9, **options, dtype=DOUBLE, device=device_of(fastrnn), **case.row.kwargs
    )
    empty.load_state_dict(module.state_dict())
    assert all(map(torch.equal, call_of(case, step, empty)(x, hx), call(x, hx)))


@pytest.mark.parametrize("form", ["padded", "batch_first", "unbatched"])
@each_kind
@each_cell
def test_fake_tensor_mode(cell, step, form):
    """Shapes, dtypes and strides of results and gradients without computing them."""
    case = case_of(cell, step).but(form="padded" if step else form)
    real = prepare(case, step, fastrnn)
    mode = FakeTensorMode()

    def solve(module, x, hx):
        values = call_of(case, step, module)(x, hx)
        leaves = [x, *hx, *module.parameters()]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            gradients = torch.autograd.grad(sum(v.sum() for v in values), leaves)
        return [(t.shape, t.dtype, t.stride(), t.device) for t in (*values, *gradients)]

    want = solve(real[0], *real[2:])
    fake = copy.deepcopy(real[0])
    for name, p in list(fake.named_parameters()):
        setattr(fake, name, torch.nn.Parameter(mode.from_tensor(p.detach())))
    x, *hx = (mode.from_tensor(t.detach()).requires_grad_() for t in (real[2], *real[3]))
    with mode:
        assert solve(fake, x, hx) == want


class Named(torch.Tensor):
    """A subclass that says nothing of its own: torch makes results of its operations such, too."""


@pytest.mark.parametrize("which", ["input", "hx", "weight"])
@each_kind
@each_cell
def test_tensor_subclass(cell, step, which):
    case = case_of(cell, step)
    module, call, x, hx = prepare(case, step, fastrnn)
    want = call(x, hx)
    if which == "weight":
        weight = torch.nn.Parameter(getattr(module, name_of(step)).detach().as_subclass(Named))
        setattr(module, name_of(step), weight)
    x = x.as_subclass(Named) if which == "input" else x
    hx = [h.as_subclass(Named) for h in hx] if which == "hx" else hx
    got = call(x, hx)
    assert [type(t) for t in got] == [Named] * len(want)
    assert all(map(torch.equal, got, want))


class Wrapper:
    """No Tensor, but taken for one because of __torch_function__."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __getattr__(self, name):  # .dim, .shape, ...
        return getattr(self.tensor, name)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        args, kwargs = tree_map_only(Wrapper, lambda wrapper: wrapper.tensor, (args, kwargs or {}))
        return tree_map_only(torch.Tensor, Wrapper, function(*args, **kwargs))


@pytest.mark.parametrize("which", ["input", "hx", "both"])
@each_kind
@each_cell
def test_what_is_a_tensor_by_torch_function_only(cell, step, which):
    case = case_of(cell, step)
    module, call, x, hx = prepare(case, step, fastrnn)
    want = call(x, hx)
    wrapped = Wrapper(x) if which != "hx" else x, give([Wrapper(h) for h in hx] if which != "input" else hx)
    output, states = module(*wrapped) if not step else (None, module(*wrapped))
    got = [*([] if step else [output]), *(states if isinstance(states, tuple) else [states])]
    assert [type(t) for t in got] == [Wrapper] * len(got)
    assert all(torch.equal(wrapper.tensor, t) for wrapper, t in zip(got, want[step:], strict=True))


def test_such_an_input_with_return_all_states():
    layer, x = fastrnn.GRU(4, 6), torch.ones(5, 3, 4)
    got = [getattr(result, "tensor", result) for result in layer(Wrapper(x), return_all_states=True)]
    assert all(map(torch.equal, got, layer(x, return_all_states=True)))


@each_kind
@each_cell
def test_torch_function_mode_sees_the_operator(cell, step):
    class Record(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    seen = []
    _, call, x, hx = prepare(case_of(cell, step), step, fastrnn)
    with Record():
        call(x, hx)
    assert (torch.ops.fastrnn.cell if step else torch.ops.fastrnn.rnn).default in seen


# ---- torch.fx ----


class Chain(torch.nn.Module):
    """A layer with dropout, given its states, then cells in a loop."""

    def __init__(self, library, case):
        super().__init__()
        self.pair = case.row.states == 2
        self.layer = case.build(library)
        self.cell = case.prepare_step(library)[0]

    def forward(self, x, h, c):
        y, states = self.layer(x, hx=(h, c) if self.pair else h)
        state = None
        for t in range(3):
            state = self.cell(y[t], state)
        return y, states, state


def chain_of(cell, library):
    case = case_of(cell, False).but(dropout=0.5)
    x, hx = case.inputs(library)
    model = Chain(library, case)
    return model, (x.detach(), hx[0].detach(), hx[-1].detach())


def calls_of(traced):
    return [(node.op, node.name, node.target) for node in traced.graph.nodes]


def assert_equal_results(got, want):
    for a, b in zip(tree_leaves(got), tree_leaves(want), strict=True):
        assert torch.equal(a, b)


@each_cell
def test_fx_graph(cell):
    """A layer and a cell are one node a call, as torch.nn's, and what they are is looked up when it runs."""
    model, args = chain_of(cell, fastrnn)
    traced = torch.fx.symbolic_trace(model)
    assert calls_of(traced) == calls_of(torch.fx.symbolic_trace(chain_of(cell, torch.nn)[0]))
    stacks = [list(n.meta["nn_module_stack"]) for n in traced.graph.nodes if n.op == "call_module"]
    assert stacks == [["layer"], ["cell"], ["cell@1"], ["cell@2"]]
    for training in (False, True, False):
        traced.train(training)
        model.train(training)
        torch.manual_seed(3)
        want = model(*args)
        torch.manual_seed(3)
        assert_equal_results(traced(*args), want)
    with torch.no_grad():
        model.layer.weight_ih_l0.mul_(0.5)
    assert_equal_results(traced(*args), model(*args))
    assert_equal_results(torch.fx.Interpreter(traced).run(*args), model(*args))
    assert calls_of(torch.fx.Transformer(traced).transform()) == calls_of(traced)
    assert calls_of(torch.fx.symbolic_trace(traced)) == calls_of(traced)
    fastrnn.revert(traced)
    assert type(model.layer) is model_class(cell, torch.nn)


def model_class(cell, library):
    return getattr(library, Case(cell).row.layer.__name__)


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated", "ignore:Was not able to save")
@pytest.mark.parametrize("how", ["script", "folder", "pickle", "deepcopy"])
@each_cell
def test_fx_graph_is_copied(cell, how, tmp_path, monkeypatch):
    model, args = chain_of(cell, fastrnn)
    traced = torch.fx.symbolic_trace(model).eval()
    want = traced(*args)
    if how == "script":
        copied = torch.jit.script(traced)
    elif how == "folder":
        traced.to_folder(tmp_path / f"saved_{cell}", "Saved")
        monkeypatch.syspath_prepend(tmp_path)
        copied = importlib.import_module(f"saved_{cell}").Saved().eval()
    elif how == "pickle":
        copied = pickle.loads(pickle.dumps(traced))
    else:
        copied = copy.deepcopy(traced)
    assert_equal_results(copied(*args), want)


@each_kind
@each_cell
def test_fx_runs_no_hooks(cell, step):
    """They run with the node, once."""
    case = case_of(cell, step)
    module, _, x, hx = prepare(case, step, fastrnn)
    prune.l1_unstructured(module, name_of(step), amount=0.4)  # a hook that sets the weight
    seen = []
    module.register_forward_pre_hook(lambda m, args: (2 * args[0], *args[1:]))
    module.register_forward_hook(lambda m, args, result: seen.append(args[0]))
    model = torch.nn.Sequential(module)
    traced = torch.fx.symbolic_trace(model)
    assert not seen and not any(isinstance(value, torch.fx.Proxy) for value in vars(module).values())
    assert [op for op, *_ in calls_of(traced)] == ["placeholder", "call_module", "output"]
    assert_equal_results(traced(x), model(x))
    assert len(seen) == 2


@each_kind
@each_cell
def test_fx_of_a_subclass(cell, step):
    """It is one node with all that it does, and done once."""
    module, _, x, _ = prepare(case_of(cell, step), step, fastrnn)

    class Doubling(type(module)):
        def forward(self, input, hx=None):
            return super().forward(2 * input, hx)

    module.__class__ = Doubling
    model = torch.nn.Sequential(module)
    assert_equal_results(torch.fx.symbolic_trace(model)(x), model(x))


@pytest.mark.parametrize("what", ["buffer", "new tensor"])
@each_cell
def test_fx_of_constant_arguments(cell, what):
    """Without any Proxy among the arguments, too, weights are those of the moment."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, _, x, _ = case_of(cell, False).prepare(fastrnn)
            self.register_buffer("x", x.detach())

        def forward(self, scale):
            return scale * self.layer(self.x if what == "buffer" else torch.ones_like(self.x))[0]

    model, scale = Model(), torch.tensor(2.0, device=device_of(fastrnn))
    traced = torch.fx.symbolic_trace(model)
    with torch.no_grad():
        model.layer.weight_ih_l0.mul_(0.5)
    assert torch.equal(traced(scale), model(scale))


@each_cell
def test_fx_of_options(cell):
    """What fastrnn's layers have beyond torch.nn's, and arguments that torch.fx is told the values of."""
    layer, _, x, hx = case_of(cell, False).prepare(fastrnn)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.stateful = layer, fastrnn.Stateful(layer)

        def forward(self, x, lengths, hx=None):
            results = self.layer(x, hx, lengths=lengths, return_all_states=True)
            return results, self.stateful(x), self.stateful(x)

    model, lengths = Model(), torch.tensor([2, 4, 0, 1][: x.shape[1]])
    traced = torch.fx.symbolic_trace(model, concrete_args={"hx": None})
    assert model.stateful.state is None
    want = model(x, lengths)
    model.stateful.reset()
    assert_equal_results(traced(x, lengths, None), want)


class EveryLeaf(torch.fx.Tracer):
    def is_leaf_module(self, module, name):
        return True


class NoLeaf(torch.fx.Tracer):
    def is_leaf_module(self, module, name):
        return False


class Naming(torch.fx.Tracer):
    """As torchvision's, which notes which module a node comes from."""

    def call_module(self, module, forward, args, kwargs):
        self.called = [*getattr(self, "called", []), self.path_of_module(module)]
        return super().call_module(module, forward, args, kwargs)


@pytest.mark.parametrize("tracer", [EveryLeaf, NoLeaf, Naming])
@each_kind
@each_cell
def test_fx_with_other_tracers(cell, step, tracer):
    module, _, x, _ = prepare(case_of(cell, step), step, fastrnn)
    model, tracer = torch.nn.Sequential(module), tracer()
    traced = torch.fx.GraphModule(model, tracer.trace(model))
    assert [op for op, *_ in calls_of(traced)] == ["placeholder", "call_module", "output"]
    assert getattr(tracer, "called", ["0"]) == ["0"]
    assert_equal_results(traced(x), model(x))


@each_kind
@each_cell
def test_fx_cannot_trace_the_layer_itself(cell, step):
    """As the root it would have to say what is inside. Nor can torch.nn's."""
    for library in (torch.nn, fastrnn):
        with pytest.raises(
            torch.fx.proxy.TraceError, match="torch.fx cannot" if library is fastrnn else None
        ):
            torch.fx.symbolic_trace(prepare(case_of(cell, step), step, library)[0])


@each_kind
@each_cell
def test_fx_after_a_trace(cell, step):
    """Nothing stays behind, also if the trace fails."""
    module, call, x, hx = prepare(case_of(cell, step), step, fastrnn)
    want = call(x, hx)

    class Failing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, x):
            return 1 if self.inner(x)[0] > 0 else 2

    with pytest.raises(torch.fx.proxy.TraceError):
        torch.fx.symbolic_trace(Failing())
    assert all(map(torch.equal, call(x, hx), want))


@each_kind
@each_cell
def test_make_fx_sees_the_operators(cell, step):
    """It records what a call does, and no call of a module."""
    module, _, x, _ = prepare(case_of(cell, step), step, fastrnn)
    model = torch.nn.Sequential(module)
    traced = make_fx(model)(x)
    assert not [n for n in traced.graph.nodes if n.op == "call_module"]
    assert [n for n in traced.graph.nodes if "fastrnn" in str(n.target)]
    assert_equal_results(traced(x), model(x))


def test_call_goes_on_to_who_replaces_it(monkeypatch):
    """Others than torch.fx replace torch.nn.Module.__call__, too."""
    call, seen = torch.nn.Module.__call__, []

    def replaced(self, *args, **kwargs):
        seen.append(self)
        return call(self, *args, **kwargs)

    layer, x = fastrnn.GRU(3, 4), torch.ones(2, 1, 3)
    want = layer(x)
    monkeypatch.setattr(torch.nn.Module, "__call__", replaced)
    assert_equal_results(layer(x), want)
    assert seen == [layer]


# ---- complex and sparse tensors, which torch's own operations compute ----

LAYOUTS = {
    "coo": torch.Tensor.to_sparse,
    "csr": torch.Tensor.to_sparse_csr,
    "csc": torch.Tensor.to_sparse_csc,
}


def outcome(module, args):
    """The results and the gradients of the parameters, or the type of the error."""
    try:
        values = [v.data if isinstance(v, PackedSequence) else v for v in flatten(module(*args))]
        loss = sum((v * v.conj()).real.sum() for v in values)
        return [*values, *torch.autograd.grad(loss, [*module.parameters()])]
    except (RuntimeError, ValueError) as error:
        return type(error)


def flatten(values):
    for value in values if type(values) is tuple else (values,):
        yield from flatten(value) if type(value) is tuple else (value,)


def assert_same_outcome(modules, args):
    theirs, ours = modules
    ours.load_state_dict(theirs.state_dict())
    got, want = outcome(ours, args), outcome(theirs, args)
    if isinstance(want, type):
        assert isinstance(got, type) and issubclass(got, want)
    else:
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@each_cell
def test_complex(cell, bias):
    """Values, gradients and errors of torch.nn."""
    row, dtype = Case(cell).row, torch.complex128

    def build(kind, **options):
        kind, options = getattr(row, kind).__name__, dict(dtype=dtype, bias=bias, **row.kwargs, **options)
        return [getattr(library, kind)(4, 6, **options) for library in (torch.nn, fastrnn)]

    def draw(*sizes):
        return torch.randn(*sizes, dtype=dtype)

    torch.manual_seed(0)
    hx = give([draw(3, 6) for _ in range(row.states)])
    for args in (
        (draw(3, 4),),
        (draw(3, 4), hx),
        (draw(4),),
        (draw(4), give([draw(6) for _ in range(row.states)])),
        (draw(0, 4),),
        (draw(3, 4).conj(), hx),
        (draw(3, 5),),
        (draw(1, 4), hx),
        (draw(3, 4).real, hx),
        (draw(3, 4), give([draw(3, 6).real for _ in range(row.states)])),
    ):
        assert_same_outcome(build("cell"), args)
    hx = give([draw(4, 3, 6) for _ in range(row.states)])
    packed = pack_sequence([draw(n, 4) for n in (2, 5, 3)], enforce_sorted=False)
    for args in ((draw(5, 3, 4),), (draw(5, 3, 4), hx), (packed, hx), (draw(5, 4),), (draw(5, 1, 4), hx)):
        assert_same_outcome(build("layer", num_layers=2, bidirectional=True), args)
    assert_same_outcome(build("layer", batch_first=True), (draw(3, 5, 4),))
    if row.projection:
        assert_same_outcome(build("layer", proj_size=3), (draw(5, 3, 4),))


@pytest.mark.filterwarnings("ignore:Sparse CS. tensor support is in beta state")
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("layout", LAYOUTS)
@each_cell
def test_sparse_input_of_a_cell(cell, layout, bias):
    row, change = Case(cell).row, LAYOUTS[layout]

    def build():
        options = dict(bias=bias, dtype=DOUBLE, **row.kwargs)
        return [getattr(library, row.cell.__name__)(4, 6, **options) for library in (torch.nn, fastrnn)]

    torch.manual_seed(0)
    x, hx = (
        torch.randn(3, 4, dtype=DOUBLE),
        give([torch.randn(3, 6, dtype=DOUBLE) for _ in range(row.states)]),
    )
    for args in (
        (change(x),),
        (change(x), hx),
        (change(x.float()), hx),
        (change(x[:, :3]), hx),
        (change(x[:1]), hx),
    ):
        assert_same_outcome(build(), args)
    if layout == "coo":
        h = give([torch.randn(6, dtype=DOUBLE) for _ in range(row.states)])
        assert_same_outcome(build(), (change(x[0]), h))
    if layout == "csr":  # a weight, too
        for module in (modules := build()):
            module.weight_hh = torch.nn.Parameter(module.weight_hh.detach().clone())
        modules[1].load_state_dict(modules[0].state_dict())
        for module in modules:
            module.weight_hh = torch.nn.Parameter(
                module.weight_hh.detach().to_sparse_csr(), requires_grad=False
            )
        got, want = modules[1](x, hx), modules[0](x, hx)
        for a, b in zip(take(got), take(want), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.* is deprecated")
@each_kind
@each_cell
def test_complex_when_wrapped(cell, step):
    if cell == "rnn_relu":
        return  # complex numbers have no relu
    row = Case(cell).row
    kind = getattr(fastrnn, (row.cell if step else row.layer).__name__)
    module, x = kind(4, 6, dtype=torch.complex64, **row.kwargs), torch.randn(3, 2, 4, dtype=torch.complex64)
    x = x[0] if step else x
    want = module(x)
    torch._dynamo.reset()  # its limit of compilations
    with torch._dynamo.config.patch(allow_rnn=True):
        assert_equal_results(torch.compile(module, backend="aot_eager", fullgraph=True)(x), want)
    shapes = copy.deepcopy(module).to("meta")(x.to("meta"))
    assert [t.shape for t in flatten(shapes)] == [t.shape for t in flatten(want)]
    if step:
        for a, b in zip(flatten(torch.vmap(module)(x.unsqueeze(1))), flatten(want), strict=True):
            torch.testing.assert_close(a.squeeze(1), b)
    assert_equal_results(torch.jit.trace(module, (x,))(x), want)


# ---- switches of torch ----


@pytest.mark.parametrize("options", [{}, dict(lengths=[2, 0, 4]), dict(return_all_states=True)], ids=str)
@each_cell
def test_deterministic_algorithms(cell, options):
    """Nothing that torch.use_deterministic_algorithms refuses; the same bits in every run."""
    case = Case(cell, T=4, B=3, L=2, H=33, bidirectional=True)
    layer, (x, hx) = case.build(fastrnn), case.inputs(fastrnn)

    def solve():
        layer.zero_grad()
        y, states, *every = layer(x, give(hx), **options)
        values = [y, *take(states), *(take(every[0]) if every else [])]
        gradients = torch.autograd.grad(values, [x, *hx, *layer.parameters()], cotangents(values))
        return dict(enumerate([*values, *gradients]))

    torch.use_deterministic_algorithms(True)
    try:
        first = solve()
        for _ in range(3):
            assert_same_bits(solve(), first, "run")
    finally:
        torch.use_deterministic_algorithms(False)


@each_kind
@each_cell
def test_float16(cell, step):
    """Where the CPU has no kernels for float16, float32 is computed: the same bits as by casts."""
    case = case_of(cell, step).but(dtype=torch.float16)
    module, call, x, hx = prepare(case, step, fastrnn)
    got = evaluate(call, x, hx, dict(module.named_parameters()), case)
    assert {t.dtype for t in got.values()} == {torch.float16}
    if device_of(fastrnn) != "cpu":
        return  # test_half.py
    wide, (x, hx) = copy.deepcopy(module).float(), (x.detach(), [h.detach() for h in hx])
    wide.zero_grad(set_to_none=True)
    x, hx = x.float().requires_grad_(), [h.float().requires_grad_() for h in hx]

    def narrow(x, hx):
        if not step:
            return [v.half() for v in case.call(wide)(x, hx)]
        states = [v.half() for v in take(wide(x, give(hx)))]
        return [states[0], *states]

    want = evaluate(narrow, x, hx, dict(wide.named_parameters()), case)
    assert_same_bits(got, {name: t.half() for name, t in want.items()}, "float16")


@each_kind
@each_cell
def test_float16_is_not_mixed(cell, step):
    case = case_of(cell, step)
    module, call, x, hx = prepare(case, step, fastrnn)
    module.half()
    with pytest.raises(RuntimeError, match="hx: expected dtype Half|h_0: expected dtype Half"):
        call(x.half(), hx)
    with pytest.raises((ValueError, RuntimeError), match="dtype"):
        call(x, [h.half() for h in hx])
