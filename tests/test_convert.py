"""convert and revert: the same modules and parameters, computed by the other library."""

import copy
import warnings

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
    assert kinds(fastrnn.convert(model)) == kept
    plain = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    assert fastrnn.convert(plain) is plain and fastrnn.revert(plain) is plain
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
