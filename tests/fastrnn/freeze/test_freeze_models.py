"""fastrnn.freeze: what of a model becomes frozen, how large it is and what it says of itself."""

import copy
import traceback
import warnings

import pytest
import torch
import torch.nn.utils.prune
from frozen import BF16, CELL_MODULES, FLOAT, INT8, KINDS, build, case_of, each_kind, each_layer
from layer_kinds import EVERY_LAYER, B, H, I, T, draw, make, run
from tolerance import assert_same_bits
from torch.utils.flop_counter import FlopCounterMode

import fastrnn
from fastrnn.frozen import FrozenCell, FrozenLayer


class Model(torch.nn.Module):
    """One of everything."""

    def __init__(self):
        super().__init__()
        self.before = torch.nn.Linear(3, I)
        self.layers = torch.nn.ModuleDict({name.replace(".", "_"): make(name) for name in EVERY_LAYER})
        self.cells = torch.nn.ModuleList(m(I, H, **own) for m, own in CELL_MODULES.values())
        self.torchs = torch.nn.ModuleList(getattr(torch.nn, k)(I, H) for k in ("LSTM", "GRU", "RNN"))
        self.convolution = torch.nn.Conv1d(3, I, 1)
        self.again = self.layers["GRU"]
        self.listed = [self.layers["GRU"]]


def test_what_becomes_frozen():
    model = Model().train()
    model.layers["LSTM"].eval()
    types = {path: type(m) for path, m in model.named_modules()}
    before = copy.deepcopy(model.state_dict())
    with warnings.catch_warnings(action="error"):
        frozen = fastrnn.freeze(model)
    assert {path: type(m) for path, m in model.named_modules()} == types
    assert_same_bits(model.state_dict(), before, "the model itself")
    assert type(frozen) is Model and frozen is not model
    assert all(type(m) is FrozenLayer for m in [*frozen.layers.values(), *frozen.torchs])
    assert all(type(m) is FrozenCell for m in frozen.cells)
    assert [n for n, _ in frozen.named_parameters()] == [
        "before.weight",
        "before.bias",
        "convolution.weight",
        "convolution.bias",
    ]
    assert frozen.before.weight is not model.before.weight
    assert torch.equal(frozen.before.weight, model.before.weight)
    assert frozen.again is frozen.layers["GRU"] is frozen.listed[0]  # one layer in several places
    assert frozen.training and not frozen.layers["LSTM"].training and frozen.layers["GRU"].training
    rows = fastrnn.summary(frozen)
    assert {row.runs_on for row in rows} == {"fastrnn"} and len(rows) == len(EVERY_LAYER) + 13


@each_layer
@each_kind
def test_a_frozen_layer_is_a_snapshot(name, kind):
    dtype, arguments = KINDS[kind]
    layer = make(name, dtype=dtype, num_layers=2, bidirectional=True).eval()
    frozen = fastrnn.freeze(layer, **arguments)
    assert not [*frozen.parameters()]
    x = draw(T, B, I, dtype=dtype)
    want = run(frozen, x)
    with torch.no_grad():
        for t in (*layer.parameters(), *layer.buffers()):
            t.zero_()
    assert all(map(torch.equal, run(frozen, x), want))
    assert not any(t.requires_grad for t in want)


def test_a_frozen_model_freezes_to_a_copy():
    frozen = fastrnn.freeze(torch.nn.LSTM(I, H), INT8)
    again = fastrnn.freeze(frozen, BF16)
    assert type(again) is FrozenLayer and again is not frozen and again.weights == "int8"


def test_other_modules_with_attributes_of_that_name():
    """A flag of the user's does not make a module frozen."""
    model = torch.nn.Sequential(torch.nn.Sequential(torch.nn.LSTM(I, H)))
    model[0].is_frozen = True
    assert type(fastrnn.freeze(model)[0][0]) is FrozenLayer
    assert len(fastrnn.summary(model)) == 1


class Own(torch.nn.LSTM):
    def forward(self, x):
        return super().forward(x)[0]


class OwnFast(fastrnn.GRU):
    def forward(self, x):
        return super().forward(x)[0]


class OwnLayer(fastrnn.sLSTM):
    def forward(self, x):
        return super().forward(x)[0]


class OwnCell(torch.nn.GRUCell):
    def __call__(self, x):
        return super().__call__(x) + 1


class Named(torch.nn.GRU):
    """With nothing of its own."""


@pytest.mark.parametrize("kind", [Own, OwnFast, OwnLayer, OwnCell])
def test_subclasses_are_left(kind):
    layer = kind(I, H)
    x = draw(2, 3, I, dtype=FLOAT) if kind is not OwnCell else draw(3, I, dtype=FLOAT)
    with pytest.warns(UserWarning, match=f"left these modules as they are: 1 .*{kind.__name__}.*of its own"):
        model = fastrnn.freeze(torch.nn.Sequential(torch.nn.Identity(), layer))
    assert type(model[1]) is kind and model[1] is not layer
    assert torch.equal(model[1](x), layer(x))


def test_subclasses_without_a_forward_become_frozen():
    layer = Named(I, H)
    frozen, x = fastrnn.freeze(layer), draw(T, B, I, dtype=FLOAT)
    assert repr(frozen).startswith("FrozenNamed(5, 8, weights=float32, ")
    torch.testing.assert_close(frozen(x), layer(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [torch.nn.LSTM, fastrnn.LSTM, fastrnn.sLSTM])
def test_a_forward_on_the_instance_is_left(kind):
    layer = kind(I, H)
    layer.forward = lambda x: x + 1
    with pytest.warns(UserWarning, match="its forward is replaced on the instance"):
        frozen = fastrnn.freeze(layer)
    assert torch.equal(frozen(torch.zeros(2)), torch.ones(2))


@pytest.mark.parametrize("library", [torch.nn, fastrnn])
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_script_modules_are_left(library):
    compiled = torch.jit.script(torch.nn.Sequential(library.LSTM(I, H)))
    model = torch.nn.ModuleList([compiled, torch.nn.GRU(I, H)])
    with pytest.warns(UserWarning, match="left these modules as they are: 0 .*ScriptModule"):
        frozen = fastrnn.freeze(model)
    assert isinstance(frozen[0], torch.jit.ScriptModule) and type(frozen[1]) is FrozenLayer
    x = draw(T, B, I, dtype=FLOAT)
    assert torch.equal(frozen[0](x)[0], model[0](x)[0])


COMPUTED = {
    "parametrizations.weight_norm": torch.nn.utils.parametrizations.weight_norm,
    "parametrizations.spectral_norm": torch.nn.utils.parametrizations.spectral_norm,
    "weight_norm": torch.nn.utils.weight_norm,
    "spectral_norm": torch.nn.utils.spectral_norm,
    "prune": lambda layer, name: torch.nn.utils.prune.l1_unstructured(layer, name, 0.3),
}


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils")
@pytest.mark.parametrize("weight", ["weight_ih_l0", "weight_hh_l0"])
@pytest.mark.parametrize("compute", COMPUTED)
@pytest.mark.parametrize("name", ["LSTM", "LayerNormLSTM", "LSTMCell"])
def test_computed_weights(name, compute, weight):
    """Those of the moment, also where a hook computes them before each call."""
    layer = torch.nn.LSTMCell(I, H) if name == "LSTMCell" else make(name, dtype=FLOAT)
    layer = COMPUTED[compute](layer.train(), weight.removesuffix("_l0" * (name == "LSTMCell")))
    with torch.no_grad():
        for k, parameter in enumerate(layer.parameters()):
            parameter.add_(0.3 * draw(*parameter.shape, seed=k, dtype=FLOAT))
    buffers = copy.deepcopy(dict(layer.named_buffers()))
    frozen = fastrnn.freeze(layer)
    assert_same_bits(dict(layer.named_buffers()), buffers, "the vectors of spectral_norm")
    assert layer.training and repr(frozen).startswith(f"Frozen{name}(5, 8, ")
    x = draw(*[T] * (name != "LSTMCell"), B, I, dtype=FLOAT)
    torch.testing.assert_close(frozen(x), layer.eval()(x), rtol=1e-4, atol=1e-4)


def test_hooks():
    """Kept, and those added later do not reach the other model."""
    layer = torch.nn.LSTM(I, H)
    calls = []
    layer.register_forward_pre_hook(lambda m, args: calls.append(type(m)) or (args[0] * 0,))
    layer.register_forward_hook(lambda m, args, out: out[0] + 3)
    frozen, x = fastrnn.freeze(layer), draw(T, B, I, dtype=FLOAT)
    torch.testing.assert_close(frozen(x), layer(x), rtol=1e-5, atol=1e-6)
    assert calls == [FrozenLayer, torch.nn.LSTM] and frozen(x).min() > 1
    layer.register_forward_hook(lambda m, args, out: out * 0)
    assert frozen(x).min() > 1
    inner = fastrnn.LayerNormLSTM(I, H)
    inner.register_forward_hook(lambda m, args, out: calls.append("inner"))
    fastrnn.freeze(inner)(x)
    assert calls.count("inner") == 1


@each_layer
def test_flops(name):
    """FlopCounterMode counts the products of the layer."""
    layer = build(name, case_of(name, I=I, H=H, L=2, bidirectional=True))
    counts = []
    for module in (layer, fastrnn.freeze(layer, INT8)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(draw(T, B, I, dtype=FLOAT))
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("make_layer, size", [(fastrnn.GRU, (T, B, I)), (fastrnn.LSTMCell, (B, I))])
def test_onnx_is_refused(make_layer, size):
    pytest.importorskip("onnxscript")
    with pytest.raises(Exception) as caught:
        torch.onnx.export(
            fastrnn.freeze(make_layer(I, H)), (draw(*size, dtype=FLOAT),), dynamo=True, verbose=False
        )
    assert "ONNX has no packed weights" in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("H", [128, 150, 256])
@each_layer
def test_bytes(name, H):
    if name.startswith("IndRNN") and H % 16:
        pytest.skip("a matrix of a gate alone, whose 150 rows take the room of 160")
    layer = build(name, case_of(name, I=128, H=H))
    whole = sum(p.nbytes for p in layer.parameters())
    limits = ({}, 1.1), ({"dtype": BF16}, 0.55), ({"dtype": INT8}, 0.3)
    limits += (({"dtype": INT8, "activations": FLOAT}, 0.3),)
    for arguments, limit in limits:
        frozen = fastrnn.freeze(layer, **arguments)
        assert frozen.nbytes() == sum(b.nbytes for b in frozen.buffers()) <= limit * whole, arguments


@pytest.mark.parametrize(
    "layer, arguments, text",
    [
        (fastrnn.LSTM(64, 64), {}, "FrozenLSTM(64, 64, weights=float32, 0.13 MB)"),
        (fastrnn.GRUCell(3, 64), {"dtype": INT8}, "FrozenGRUCell(3, 64, weights=int8, 17.8 kB)"),
        (torch.nn.GRU(64, 64, 2, batch_first=True), {"dtype": BF16}, None),
        (fastrnn.IndRNN(3, 64), {"dtype": INT8, "activations": FLOAT}, None),
    ],
    ids=str,
)
def test_repr(layer, arguments, text):
    frozen = fastrnn.freeze(layer, **arguments)
    assert f", {frozen.nbytes() / 1e3:.1f} kB)" in repr(frozen) or f"{frozen.nbytes() / 1e6:.2f} MB" in repr(
        frozen
    )
    assert f"weights={frozen.weights}, " in repr(frozen)
    assert repr(frozen).startswith(f"Frozen{repr(layer)[:-1]}, ")
    assert text is None or repr(frozen) == text


def test_attributes():
    layer = fastrnn.LSTM(I, H, 2, bias=False, batch_first=True, bidirectional=True, proj_size=3)
    frozen = fastrnn.freeze(layer)
    for name in (
        "input_size",
        "hidden_size",
        "num_layers",
        "bias",
        "batch_first",
        "bidirectional",
        "proj_size",
    ):
        assert getattr(frozen, name) == getattr(layer, name)
    assert (frozen.cell, frozen.dtype, frozen.weights) == ("lstm", FLOAT, "float32")
    frozen.flatten_parameters()  # which models call
