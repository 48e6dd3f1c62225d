"""convert and revert: the same modules and parameters, computed by the other library."""

import copy
import io
import pickle
import warnings
from abc import ABC, abstractmethod

import pytest
import torch
from cases import EVERY_CELL, Case, evaluate, give
from tolerance import assert_close
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

import fastrnn
from fastrnn.reference import CELLS

NAMES = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")


class Decoder(nn.Module):
    """A model with layers and cells at several depths, one of them at two places, and modules of other
    kinds."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.encoder = nn.LSTM(8, 6, num_layers=2, dropout=0.1, bidirectional=True)
        self.stack = nn.Sequential(nn.Linear(12, 8), nn.ModuleDict({"inner": nn.GRU(8, 8, batch_first=True)}))
        self.cells = nn.ModuleList(
            [nn.LSTMCell(8, 8), nn.GRUCell(8, 8), nn.RNNCell(8, 8, nonlinearity="relu")]
        )
        self.shared = self.again = nn.RNN(8, 8, nonlinearity="relu", bias=False)
        self.tied = nn.GRU(8, 8)
        self.tied.weight_hh_l0 = self.stack[1]["inner"].weight_hh_l0
        self.out = nn.Linear(8, 11)

    def forward(self, tokens):
        y, _ = self.encoder(self.embed(tokens))
        y = self.stack[0](y)
        y, _ = self.stack[1]["inner"](y.transpose(0, 1))
        y, _ = self.shared(y.transpose(0, 1))
        y, _ = self.again(y)
        y, _ = self.tied(y)
        h, _ = self.cells[0](y[-1])
        h = self.cells[2](h, self.cells[1](h))
        return self.out(h)


def kinds(model):
    """Module and class of every recurrent part."""
    return {
        name: f"{type(m).__module__.split('.')[0]}.{type(m).__name__}"
        for name, m in model.named_modules(remove_duplicate=False)
        if isinstance(m, (nn.RNNBase, nn.RNNCellBase))
    }


def build():
    torch.manual_seed(0)
    return Decoder().double()


TOKENS = torch.randint(11, (5, 3), generator=torch.Generator().manual_seed(0))


def test_whole_model():
    model = build()
    parts = list(model.modules())
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    parameters = dict(model.named_parameters())
    before = kinds(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fastrnn.convert(model) is model
    assert set(before.values()) == {f"torch.{name}" for name in NAMES}
    assert kinds(model) == {name: kind.replace("torch", "fastrnn") for name, kind in before.items()}
    assert [name for name, _ in model.named_modules(remove_duplicate=False)] == names
    assert len(list(model.modules())) == len(parts)
    assert model.shared is model.again
    after = dict(model.named_parameters())
    assert list(after) == list(parameters)
    assert all(after[name] is p for name, p in parameters.items())
    assert model.tied.weight_hh_l0 is model.stack[1]["inner"].weight_hh_l0

    assert fastrnn.revert(model) is model
    assert kinds(model) == before
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert repr(model) == repr(build())


@pytest.mark.usefixtures("isa")
def test_computes_the_same():
    model, original = build().eval(), build().eval()
    fastrnn.convert(model)
    case = Case("lstm", T=5 * 8, I=8, H=8, dtype=torch.float64)

    def solve(m):
        m.zero_grad()
        y = m(TOKENS)
        y.square().sum().backward()
        return {"output": y.detach()} | {f"d{name}": p.grad.clone() for name, p in m.named_parameters()}

    want = solve(original)
    assert_close(solve(model), want, case)
    assert_close(solve(fastrnn.revert(model)), want, case)


@pytest.mark.parametrize("step", [False, True], ids=["layer", "cell"])
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_root(cell, step):
    """A layer or cell that is itself what is converted."""
    case = Case(cell, T=1 if step else 4, dtype=torch.float64)
    module, _, x, hx = case.prepare_step(torch.nn) if step else case.prepare(torch.nn)
    parameters = dict(module.named_parameters())
    name = (CELLS[cell].cell if step else CELLS[cell].layer).__name__
    converted = fastrnn.convert(module)
    assert type(converted) is getattr(fastrnn, name)
    assert {n: id(p) for n, p in converted.named_parameters()} == {n: id(p) for n, p in parameters.items()}
    assert repr(converted) == repr(case.prepare_step(torch.nn)[0] if step else case.build(torch.nn))
    y = converted(x, give(hx))
    (y if isinstance(y, torch.Tensor) else y[0]).sum().backward()
    assert all(p.grad is not None for p in parameters.values())
    assert type(fastrnn.revert(converted)) is getattr(nn, name)


def test_twice_and_nothing_to_do():
    model = fastrnn.convert(build())
    kept = kinds(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kinds(fastrnn.convert(model)) == kept
        plain = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        assert fastrnn.revert(plain) is plain
    with pytest.warns(UserWarning, match="found no LSTM.* in Sequential") as caught:
        assert fastrnn.convert(plain) is plain
    assert caught[0].filename == __file__
    assert [type(m) for m in plain] == [nn.Linear, nn.ReLU]


def test_refuses_what_is_no_module():
    for function in (fastrnn.convert, fastrnn.revert):
        for wrong in (None, nn.LSTM, [nn.LSTM(2, 3)]):
            with pytest.raises(TypeError, match="module"):
                function(wrong)


class OwnLSTM(nn.LSTM):
    """A user's subclass, which computes something else."""

    def forward(self, input, hx=None):
        output, state = super().forward(input, hx)
        return output * 2, state


class OwnFastGRU(fastrnn.GRU):
    pass


def test_subclasses_are_left_and_listed():
    model = nn.Sequential(nn.ModuleDict({"own": OwnLSTM(3, 4)}), nn.GRU(4, 4), OwnLSTM(3, 4))
    x = torch.randn(2, 1, 3)
    want = model[2](x)[0]
    with pytest.warns(UserWarning) as caught:
        fastrnn.convert(model)
    (warning,) = caught
    assert (
        "OwnLSTM" in str(warning.message) and "0.own" in str(warning.message) and "2 " in str(warning.message)
    )
    assert warning.filename == __file__, "the warning points into fastrnn, not at the caller"
    assert type(model[0]["own"]) is type(model[2]) is OwnLSTM
    assert type(model[1]) is fastrnn.GRU
    assert torch.equal(model[2](x)[0], want)
    with pytest.warns(UserWarning, match="OwnLSTM"):
        fastrnn.convert(OwnLSTM(3, 4))
    own = OwnFastGRU(3, 4)
    with pytest.warns(UserWarning, match="OwnFastGRU"):
        fastrnn.revert(own)
    assert type(own) is OwnFastGRU


def test_optimizer_stays_valid():
    """An optimizer made before goes on, with its state, and training goes as without the conversion."""

    def train(switch):
        model = build().eval()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for k in range(4):
            if switch and k:
                (fastrnn.revert if k == 3 else fastrnn.convert)(model)
            optimizer.zero_grad()
            model(TOKENS).square().sum().backward()
            optimizer.step()
        return dict(model.named_parameters())

    got, want = train(True), train(False)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-8, atol=1e-10)


def test_hooks_and_flags_are_kept():
    model = build().eval()
    model.encoder.train()
    model.cells[0].weight_hh.requires_grad_(False)
    seen = []
    layer, cell = model.encoder, model.cells[1]
    layer.register_forward_pre_hook(lambda m, args: seen.append("before"))
    layer.register_forward_hook(lambda m, args, result: seen.append("after"))
    layer.register_full_backward_hook(lambda m, grad_input, grad_output: seen.append("backward"))
    cell.register_forward_hook(lambda m, args, result: seen.append("cell"))
    layer._register_state_dict_hook(lambda m, state, prefix, meta: seen.append("state"))
    layer.weight_hh_l0.register_hook(lambda g: seen.append("gradient"))
    layer.note = "kept"
    fastrnn.convert(model)
    assert model.encoder.training and not model.tied.training and model.encoder.note == "kept"
    assert not model.cells[0].weight_hh.requires_grad
    model(TOKENS).sum().backward()
    model.state_dict()
    assert sorted(seen) == ["after", "backward", "before", "cell", "gradient", "state"]


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("norm", [weight_norm, parametrizations.weight_norm], ids=["hook", "parametrization"])
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_computed_weights(cell, norm):
    """weight_norm before the conversion: converted or left and listed, and right in both cases."""
    case = Case(cell, T=4, dtype=torch.float64)

    def solve(convert):
        layer = case.build(torch.nn)
        norm(layer, "weight_hh_l0")
        model = nn.ModuleList([layer])
        if convert:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                fastrnn.convert(model)
            assert isinstance(model[0], getattr(fastrnn, CELLS[cell].layer.__name__)) or caught
        return evaluate(case.call(model[0]), *case.inputs(), dict(model[0].named_parameters()), case)

    assert_close(solve(True), solve(False), case)


def test_copies_of_a_converted_model():
    model = fastrnn.convert(build().eval())
    copied = copy.deepcopy(model)
    assert kinds(copied) == kinds(model)
    assert copied.shared is copied.again
    assert torch.equal(copied(TOKENS), model(TOKENS))
    fastrnn.revert(copied)
    assert set(kinds(model).values()) == {f"fastrnn.{name}" for name in NAMES}, "the original changed too"


def test_state_dict_round_trip():
    model = build()
    state = copy.deepcopy(model.state_dict())
    fastrnn.convert(model).load_state_dict(state, strict=True)
    assert list(model.state_dict()) == list(state)


# ---- what is left, and why ----


class Around(nn.Module):
    """A model around one recurrent layer or cell."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor):
        return self.layer(x)


X = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))


def scripted(library):
    return torch.jit.script(Around(library.LSTM(3, 4)))


LEFT = {
    "scripted": (lambda: scripted(nn), "layer", "ScriptModule"),
    "scripted cell": (lambda: torch.jit.script(nn.GRUCell(3, 4)), "layer", "ScriptModule"),
    "scripted layer": (lambda: torch.jit.script(nn.RNN(3, 4, nonlinearity="relu")), "layer", "ScriptModule"),
    "traced": (lambda: torch.jit.trace(Around(nn.GRU(3, 4)), X), "layer", "ScriptModule"),
    "frozen": (lambda: torch.jit.freeze(scripted(nn).eval()), "layer", "ScriptModule"),
    "dynamic": (lambda: torch.ao.nn.quantized.dynamic.LSTM(3, 4), "layer", "quantized"),
    "dynamic cell": (lambda: torch.ao.nn.quantized.dynamic.GRUCell(3, 4), "layer", "quantized"),
    "quantizable": (lambda: torch.ao.nn.quantizable.LSTM(3, 4), "layer", "quantized"),
    "quantized": (lambda: torch.ao.nn.quantized.LSTM(3, 4), "layer", "quantized"),
}


@pytest.mark.filterwarnings("ignore:.*quantize_per:UserWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", LEFT)
def test_what_convert_cannot_reach_is_listed(name):
    build, path, reason = LEFT[name]
    model = Around(build())
    kind = type(model.layer)
    with pytest.warns(UserWarning, match=rf"left.*{path} \(.*{reason}") as caught:
        fastrnn.convert(model)
    assert len(caught) == 1 and str(caught[0].message).count(";") == 0, "one part, one line"
    assert type(model.layer) is kind
    (row,) = fastrnn.summary(model)
    assert row.path == path and row.runs_on == "left" and reason in row.note


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("form", ["script", "trace"])
def test_compiled_of_fastrnn(form):
    """A ScriptModule that runs on fastrnn already is no reason to warn; revert does not reach it."""
    model = Around(fastrnn.GRU(3, 4))
    model = Around(torch.jit.script(model) if form == "script" else torch.jit.trace(model, X))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastrnn.convert(model)
    assert [row.runs_on for row in fastrnn.summary(model)] == ["fastrnn"]
    with pytest.warns(UserWarning, match="left.*ScriptModule"):
        fastrnn.revert(model)


def test_summary():
    model = Around(nn.ModuleList([nn.LSTM(3, 4), fastrnn.GRUCell(3, 4), OwnLSTM(3, 4), SelfMade(3, 4)]))
    model.again = model.layer[0]
    model.layer[0].forward = model.layer[0].forward
    table = fastrnn.summary(model)
    assert [(row.path, row.kind, row.runs_on, row.parameters) for row in table] == [
        ("layer.0", "LSTM", "left", 144),
        ("layer.1", "GRUCell", "fastrnn", 108),
        ("layer.2", "OwnLSTM", "torch.nn", 144),
        ("layer.3", "SelfMade", "left", 144),
    ]
    lines = str(table).splitlines()
    assert repr(table) == str(table) and len(lines) == 5
    assert lines[1].split() == ["layer.0", "LSTM", "144", "left", *table[0].note.split()]
    assert "instance" in table[0].note and "subclasses=True" in table[2].note and "super()" in table[3].note
    assert str(fastrnn.summary(nn.GRU(2, 3))).splitlines()[1].split() == ["(root)", "GRU", "63", "torch.nn"]
    assert fastrnn.summary(nn.Linear(2, 2)) == () and str(fastrnn.summary(nn.Linear(2, 2)))
    with pytest.raises(TypeError, match="summary: module"):
        fastrnn.summary([])


# ---- subclasses=True ----


class SelfMade(nn.LSTM):
    def forward(self, input, hx=None):
        return nn.LSTM.forward(self, input, hx)


class Abstract(ABC, nn.RNNBase):
    @abstractmethod
    def rate(self): ...

    def forward(self, x, hx=None, scale=1.0):
        output, state = super().forward(x, hx=hx)
        return output * scale * self.rate(), state


class OfAbstract(Abstract, nn.GRU):
    def rate(self):
        return 3


class Renamed(nn.RNN):
    """Nothing but other arguments."""

    def __init__(self, width):
        super().__init__(3, width, num_layers=2)


class OfSubclass(OwnLSTM):
    def forward(self, input, hx=None):
        def inner():
            return super(OfSubclass, self).forward(input, hx)

        return inner()


class OwnCell(nn.LSTMCell):
    def forward(self, input, hx=None):
        h, c = super().forward(input, hx)
        return h + input[..., :1], c


class OwnGRUCell(nn.GRUCell):
    pass


DELEGATING = {
    "own": lambda: OwnLSTM(3, 4),
    "abstract": lambda: OfAbstract(3, 4),
    "renamed": lambda: Renamed(4),
    "of subclass": lambda: OfSubclass(3, 4),
    "cell": lambda: OwnCell(3, 4),
    "cell without forward": lambda: OwnGRUCell(3, 4),
}


def compute(layer):
    layer.zero_grad()
    result = layer(X[0] if isinstance(layer, nn.RNNCellBase) else X)
    output = result if isinstance(result, torch.Tensor) else result[0]
    output.square().sum().backward()
    return [output.detach(), *(p.grad.clone() for p in layer.parameters())]


def runs_fastrnn(layer):
    with torch.profiler.profile() as profile:
        compute(layer)
    return any(event.key.startswith("fastrnn::") for event in profile.key_averages())


@pytest.mark.parametrize("name", DELEGATING)
def test_delegating_subclass(name):
    model = Around(DELEGATING[name]())
    layer, old = model.layer, type(model.layer)
    parameters, want = dict(layer.named_parameters()), compute(layer)
    assert not runs_fastrnn(layer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastrnn.convert(model, subclasses=True)
        fastrnn.convert(model, subclasses=True)
    assert model.layer is layer and runs_fastrnn(layer)
    assert isinstance(layer, old) and isinstance(layer, (fastrnn.modules._Layer, fastrnn.modules._Cell))
    names = ("__module__", "__name__", "__qualname__", "__doc__")
    assert all(getattr(type(layer), n) == getattr(old, n) for n in names)
    assert all(parameters[n] is p for n, p in layer.named_parameters())
    torch.testing.assert_close(compute(layer), want)
    assert [row.runs_on for row in fastrnn.summary(model)] == ["fastrnn"]

    copies = [copy.deepcopy(layer), *(pickle.loads(pickle.dumps(layer, p)) for p in (0, 2, 5))]
    file = io.BytesIO()
    torch.save(layer, file)
    copies.append(torch.load(io.BytesIO(file.getvalue()), weights_only=False))
    for other in copies:
        assert type(other) is type(layer)
        assert all(map(torch.equal, compute(other), compute(layer)))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastrnn.revert(model)
    assert type(layer) is old and all(map(torch.equal, compute(layer), want))


def test_delegating_subclass_with_parametrization():
    layer = OwnLSTM(3, 4)
    parametrizations.weight_norm(layer, "weight_hh_l0")
    want = compute(layer)
    fastrnn.convert(layer, subclasses=True)
    assert runs_fastrnn(layer) and isinstance(layer, OwnLSTM)
    torch.testing.assert_close(compute(layer), want)
    fastrnn.revert(layer)
    assert not runs_fastrnn(layer) and type(layer).__bases__ == (OwnLSTM,)


class OwnPermutation(nn.LSTM):
    def permute_hidden(self, hx, permutation):
        return hx


class OwnChecks(nn.GRU):
    def check_forward_args(self, input, hidden, batch_sizes):
        pass


class SameName(nn.LSTM):
    """Its helper has the name of one of fastrnn's."""

    def forward(self, input, hx=None):
        return self._run(input, hx)

    def _run(self, input, hx):
        return super().forward(input, hx)


class SameSubmodule(OwnGRUCell):
    def __init__(self):
        super().__init__(3, 4)
        self._cell = nn.Linear(1, 1)


class ComputedWeight(nn.GRU):
    def __getattr__(self, name):
        value = super().__getattr__(name)
        return value * 2 if name == "weight_hh_l0" else value


class OfBase(nn.RNNBase):
    def __init__(self):
        super().__init__("GRU", 3, 4)

    def forward(self, input, hx=None):
        return torch.ops.aten.gru(
            input, torch.zeros(1, 2, 4), self._flat_weights, True, 1, 0.0, False, False, False
        )


class Wants(nn.LSTM):
    def __init_subclass__(cls, *, name):
        pass


class MixedIn(nn.Module):
    def forward(self, input, hx=None):
        return input, None


class WithMixedIn(MixedIn, nn.LSTM):
    pass


NOT_DELEGATING = {
    "by name": (lambda: SelfMade(3, 4), "super"),
    "mixed in": (lambda: WithMixedIn(3, 4), "MixedIn does not call super"),
    "what torch.nn calls": (lambda: OwnPermutation(3, 4), "permute_hidden"),
    "checks": (lambda: OwnChecks(3, 4), "check_forward_args"),
    "what fastrnn calls": (lambda: SameName(3, 4), "_run"),
    "what fastrnn reads": (SameSubmodule, "_cell"),
    "weight": (lambda: ComputedWeight(3, 4), "__getattr__"),
    "of the base": (OfBase, "RNNBase"),
    "wants more": (lambda: Wants(3, 4), "name"),
}


@pytest.mark.parametrize("name", NOT_DELEGATING)
def test_subclass_that_does_more_is_left(name):
    build, reason = NOT_DELEGATING[name]
    torch.manual_seed(0)
    layer = build()
    old = type(layer)
    x = X[0] if isinstance(layer, nn.RNNCellBase) else X
    want = layer(x)[0]
    with pytest.warns(UserWarning, match=rf"left.*{old.__qualname__}.*{reason}"):
        fastrnn.convert(layer, subclasses=True)
    assert type(layer) is old and torch.equal(layer(x)[0], want)


# ---- models that build their layers anew ----


class Rebuilt(Around):
    """As flair's language models: the state is what builds the model, and the weights."""

    def __init__(self, width=3):
        super().__init__(nn.LSTM(3, width))
        self.width = width

    def __getstate__(self):
        return {"width": self.width, "state_dict": self.state_dict()}

    def __setstate__(self, state):
        self.__init__(state["width"])
        self.load_state_dict(state["state_dict"])


class Replaced(Rebuilt):
    def __setstate__(self, state):
        other = Replaced(state["width"])
        other.load_state_dict(state["state_dict"])
        self.__dict__ = other.__dict__


class Reduced(Around):
    def __init__(self):
        super().__init__(nn.GRU(3, 4))

    def __reduce__(self):
        return Reduced, ()


class KeepsItsLayers(Around):
    def __setstate__(self, state):
        super().__setstate__(state)
        self.cache = {}

    def __deepcopy__(self, memo):
        other = self.__class__.__new__(self.__class__)
        other.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return other


@pytest.mark.parametrize("build", [Rebuilt, Replaced, Reduced])
def test_model_that_rebuilds_its_layers(build):
    model = nn.Sequential(build())
    with pytest.warns(UserWarning, match=f"{build.__qualname__} seems to build its layers anew") as caught:
        fastrnn.convert(model)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert set(kinds(copy.deepcopy(model)).values()) == {f"torch.{type(model[0].layer).__name__}"}


def test_model_that_keeps_its_layers():
    model = nn.Sequential(KeepsItsLayers(nn.LSTM(3, 4)), copy.deepcopy(fastrnn.GRU(3, 4)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastrnn.convert(model)
    assert type(copy.deepcopy(model)[0].layer) is fastrnn.LSTM
