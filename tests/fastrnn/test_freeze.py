"""fastrnn.freeze: the same results without parameters, with weights of fewer bits, and all that works with a
frozen layer."""

import concurrent.futures
import copy
import itertools
import pickle
import traceback
import warnings
from unittest.mock import patch

import pytest
import torch
import torch.nn.utils.prune
from cases import FORMS, SIZES, Case, cover_pairs, give, name_values, random, run_python, take, using_threads
from layer_kinds import EVERY_LAYER, B, H, I, T, draw, draw_states, make, run
from own_cells import draw_inputs
from tolerance import SAFETY, assert_close, assert_same_bits, assert_same_specials, bound, unit_roundoff
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

import fastrnn
from fastrnn import reference
from fastrnn.frozen import FrozenCell, FrozenLayer
from fastrnn.layers import of_head, run_heads

FLOAT, DOUBLE, BF16, INT8 = torch.float32, torch.float64, torch.bfloat16, torch.int8

# By the name in FrozenLayer.weights, with the dtype of the layer before it where that is not float32: the
# dtype, and the arguments of freeze.
KINDS = {
    "float32": (FLOAT, {}),
    "float64": (DOUBLE, {}),
    "bfloat16 of bfloat16": (BF16, {}),
    "bfloat16": (FLOAT, {"dtype": BF16}),
    "int8_wide": (FLOAT, {"dtype": INT8, "activations": FLOAT}),
    "int8": (FLOAT, {"dtype": INT8}),
}
each_layer = pytest.mark.parametrize("name", EVERY_LAYER)
each_kind = pytest.mark.parametrize("kind", KINDS)


def case_of(name, **changes):
    """A layer of this kind, whose sizes it allows."""
    case = Case(EVERY_LAYER[name][2], **changes)
    projected = "proj_size" in EVERY_LAYER[name][1] and case.H > 1
    return case.but(P=(case.H + 2) // 3 if projected else 0)


def build(name, case):
    options = dict(
        num_layers=case.L, bias=case.bias, batch_first=case.form == "batch_first", dtype=case.dtype
    )
    if "proj_size" in EVERY_LAYER[name][1]:
        options["proj_size"] = case.P
    if name == "sLSTM-heads":
        options["num_heads"] = next(n for n in (4, 3, 7, 1) if case.H % n == 0)
    layer = make(name, case.I, case.H, bidirectional=case.bidirectional, **options).eval()
    for norm in layer.modules():
        if isinstance(norm, torch.nn.BatchNorm1d):  # as after a training
            torch.nn.init.normal_(norm.running_mean)
            torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    return layer


def is_matrix(name, parameter):
    return (
        name.startswith(("weight_ih", "weight_hr")) or name.startswith("weight_hh") and parameter.dim() == 2
    )


def to_int8(matrix):
    """Integers and the scale of each row, `[N, 1]`."""
    scales = matrix.abs().amax(1, keepdim=True) / 127
    return (matrix / scales).round(), scales


def rounded(module, kind):
    """The layer that a frozen one with weights of `kind` computes."""
    module = copy.deepcopy(module)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if is_matrix(name, parameter) and kind == "bfloat16":
                parameter.copy_(parameter.bfloat16())
            if is_matrix(name, parameter) and kind == "int8_wide":
                numbers, scales = to_int8(parameter)
                parameter.copy_(numbers * scales)
    return module


@torch.no_grad()
def solve(layer, case, option=""):
    """All results by name. option: "lengths", "resets", "every", what the call has beside input and hx."""
    x, hx = draw_inputs(case)
    x, hx = case.pack(x.detach()), hx and give([s.detach() for s in hx])
    kwargs = {}
    if "lengths" in option:
        kwargs["lengths"] = lengths = random(case.B, seed=60).abs().mul(case.T).long().clamp(max=case.T)
        lengths[:1], lengths[1:2] = case.T, 0
    if "resets" in option:
        rows = x.data if case.packed else x
        kwargs["resets"] = random(*rows.shape[:-1], seed=70) > 1
    if "every" in option:
        kwargs["return_all_states"] = True
    output, states, *every = layer(x, hx, **kwargs)
    results = name_values([output.data if case.packed else output, *take(states)])
    for k, state in enumerate(every and (every if hasattr(every[0], "data") else every[0])):
        results[f"every state {k}"] = state.data
    assert not any(t.requires_grad for t in results.values())
    return results


def roundoff(name, dtype):
    """Of a layer of this kind. A layer normalisation divides by the deviation of its numbers. That of few
    gates may happen to be small beside the gates, a sixteenth of them in one of many rows, and by as much the
    error of a product grows."""
    return unit_roundoff(dtype) * (16 if "layernorm" in name.lower() else 1)


# ---- results ----

FLOAT_KINDS = [kind for kind in KINDS if kind != "int8"]
ROWS = cover_pairs(
    kind=FLOAT_KINDS,
    H=SIZES,
    I=SIZES,
    form=FORMS,
    B=(3, 65, 1, 0),
    T=(4, 1),
    L=(1, 2),
    bidirectional=(False, True),
    bias=(True, False),
    hx=(True, False),
    option=("", "lengths", "resets", "every", "lengths resets", "resets every"),
)


def possible(row):
    """The row, with sequences to pack, and lengths only where they are taken."""
    row = dict(row)
    if row["B"] == 0 and row["form"] in ("packed", "unsorted", "unbatched"):
        row["form"] = "batch_first"
    if row["form"] not in ("padded", "batch_first"):
        row["option"] = row["option"].replace("lengths", "").strip()
    return row


@pytest.mark.parametrize(
    "row", [possible(row) for row in ROWS], ids=lambda row: "-".join(map(str, row.values()))
)
@each_layer
def test_results(name, row, isa):
    """Those of the layer, or of one whose matrices are rounded as those of the frozen one: its additions are
    of the same numbers."""
    row = dict(row)
    kind, option = row.pop("kind"), row.pop("option")
    dtype, arguments = KINDS[kind]
    case = case_of(name, dtype=dtype, **row)
    layer = build(name, case)
    frozen = fastrnn.freeze(layer, **arguments)
    assert frozen.weights == kind.split()[0] and frozen.dtype == dtype
    got, want = solve(frozen, case, option), solve(rounded(layer, kind), case, option)
    assert_close(got, want, case, roundoff(name, dtype))


CELL_MODULES = {
    "LSTMCell": (fastrnn.LSTMCell, {}),
    "GRUCell": (fastrnn.GRUCell, {}),
    "GRUCell-before": (fastrnn.GRUCell, {"reset_after": False}),
    "RNNCell-tanh": (fastrnn.RNNCell, {}),
    "RNNCell-relu": (fastrnn.RNNCell, {"nonlinearity": "relu"}),
    "RNNCell-sigmoid": (fastrnn.RNNCell, {"nonlinearity": "sigmoid"}),
    "RNNCell-identity": (fastrnn.RNNCell, {"nonlinearity": "identity"}),
    "torch.nn.LSTMCell": (torch.nn.LSTMCell, {}),
    "torch.nn.GRUCell": (torch.nn.GRUCell, {}),
    "torch.nn.RNNCell": (torch.nn.RNNCell, {"nonlinearity": "relu"}),
}


@pytest.mark.parametrize(
    "row",
    cover_pairs(kind=FLOAT_KINDS, H=SIZES, B=(None, 0, 1, 3, 65), hx=(True, False), bias=(True, False)),
    ids=lambda row: "-".join(map(str, row.values())),
)
@pytest.mark.parametrize("name", CELL_MODULES)
def test_results_of_cells(name, row, isa):
    kind, H, B, hx, bias = row.values()
    (make_cell, own), (dtype, arguments) = CELL_MODULES[name], KINDS[kind]
    cell = make_cell(I, H, bias, dtype=dtype, **own)
    frozen = fastrnn.freeze(cell, **arguments)
    assert type(frozen) is FrozenCell
    size = () if B is None else (B,)
    x, state = draw(*size, I, dtype=dtype), draw(*size, H, seed=6, dtype=dtype)
    state = None if not hx else (state, -state) if "LSTM" in name else state
    with torch.no_grad():
        got, want = (dict(enumerate(take(c(x, state)))) for c in (frozen, rounded(cell, kind)))
    limit = SAFETY * unit_roundoff(dtype) * (I + H + 8) ** 0.5
    for k, result in want.items():
        assert got[k].dtype == dtype and got[k].shape == result.shape
        scale = max([1.0, *result.abs().flatten().tolist()])
        assert ((got[k] - result).abs() <= limit * scale).all()
    if B and hx and "torch" not in name:
        resets = torch.arange(B) % 2 == 0
        begun = [s.masked_fill(resets[:, None], 0) for s in take(state)]
        assert_same_bits(
            dict(enumerate(take(frozen(x, state, resets=resets)))),
            dict(enumerate(take(frozen(x, give(begun))))),
            "resets",
        )


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_layers_of_torch(kind):
    """As fastrnn's with their weights."""
    layer = getattr(torch.nn, kind)(I, H, 2, bidirectional=True)
    x = draw(T, B, I, dtype=FLOAT)
    got = run(fastrnn.freeze(layer), x)
    want = run(fastrnn.freeze(fastrnn.convert(layer)), x)
    assert all(map(torch.equal, got, want))


@pytest.mark.parametrize("name", ["LSTM", "GRU", "LayerNormLSTM", "sLSTM-heads", "IndRNN-tanh"])
@each_kind
def test_zoneout(name, kind):
    """The expected value, as in evaluation."""
    dtype, arguments = KINDS[kind]
    plain, zoned = (make(name, dtype=dtype, zoneout=p).eval() for p in (0.0, 0.4))
    x = draw(T, B, I, dtype=dtype)
    got = run(fastrnn.freeze(zoned.train(), **arguments), x)  # whatever the mode
    tolerance = 0.05 if dtype == BF16 or kind == "int8" else 1e-5
    for g, w, other in zip(got, run(rounded(zoned.eval(), kind), x), run(plain, x), strict=True):
        torch.testing.assert_close(g, w.detach(), rtol=tolerance, atol=tolerance)
        assert (g - other).abs().max() > 0.05  # zoneout changes results by more


@each_layer
def test_dropout_is_that_of_evaluation(name):
    layer = make(name, num_layers=2, dropout=0.5, recurrent_dropout=0.5, dtype=FLOAT)
    x = draw(T, B, I, dtype=FLOAT)
    want = run(layer.eval(), x)
    got = run(fastrnn.freeze(layer.train()), x)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w.detach(), rtol=1e-5, atol=1e-5)


LAYOUTS = {
    "transposed": lambda t: t.mT.contiguous().mT,
    "every second": lambda t: torch.stack([t, t + 1], -1)[..., 0],
    "expanded": lambda t: t[:1].expand(t.shape),
    "misaligned": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@each_kind
@each_layer
def test_strides(name, kind, layout):
    """Views of all kinds, as input and states."""
    dtype, arguments = KINDS[kind]
    frozen = fastrnn.freeze(make(name, dtype=dtype), **arguments)
    x, hx = draw(T, B, I, dtype=dtype), draw_states(name, frozen, dtype=dtype)
    x, *hx = map(LAYOUTS[layout], (x, *hx))
    got, want = run(frozen, x, hx), run(frozen, x.contiguous(), [s.contiguous() for s in hx])
    assert all(map(torch.equal, got, want))


@each_layer
@each_kind
def test_bits_do_not_depend_on_the_batch(name, kind, isa):
    """A sequence alone and among others; and the same call twice."""
    dtype, arguments = KINDS[kind]
    case = case_of(name, T=3, B=65, I=33, H=150, dtype=dtype)
    frozen = fastrnn.freeze(build(name, case), **arguments)
    x, hx = (t if isinstance(t, list) else t.detach() for t in draw_inputs(case))
    hx = [s.detach() for s in hx]
    every = run(frozen, x, hx)
    assert all(map(torch.equal, run(frozen, x, hx), every))
    for sequences in (slice(7, 12), slice(64, 65)):
        alone = run(frozen, x[:, sequences], [s[:, sequences] for s in hx])
        for k, (a, e) in enumerate(zip(alone, every, strict=True)):
            assert torch.equal(a, e[:, sequences]), f"result {k} of sequences {sequences}"


@pytest.mark.threads
@pytest.mark.parametrize("form", ["padded", "unsorted"])
@each_layer
@each_kind
def test_bits_do_not_depend_on_threads(name, kind, form):
    dtype, arguments = KINDS[kind]
    case = case_of(name, T=4, B=33, I=40, H=257, form=form, bidirectional=True, dtype=dtype)
    frozen = fastrnn.freeze(build(name, case), **arguments)
    with using_threads(1):
        want = solve(frozen, case)
    for threads in (2, 3):
        with using_threads(threads):
            assert_same_bits(solve(frozen, case), want, f"{threads} threads")


# ---- int8 ----


def quantized_linear(x, W, b=None):
    """x @ W.T + b of integers: each row of either factor in 127 steps of its largest number. In float64, as
    is the judge; W as the frozen layer got it, in float32."""
    steps = x.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    W, scales = to_int8(W.float())
    y = (x / steps).round() @ W.double().T * (steps * scales.double().T)
    return y if b is None else y + b


@torch.no_grad()
def emulate(layer, case):
    """What the int8 layer computes in `case`, in plain torch and float64."""
    layer, info, D = copy.deepcopy(layer).double(), case.row.info, 1 + case.bidirectional
    x, hx = draw_inputs(case, DOUBLE)
    if case.form == "batch_first":
        x = x.transpose(0, 1)
    N, lasts = getattr(layer, "num_heads", 1), []

    def run_one(x, batch_sizes, states, weights, options):
        options = dict(bias=case.bias, bidirectional=case.bidirectional)
        return list(reference.rnn(x, states, weights, case.cell, **options))

    with (
        patch.object(reference, "linear", quantized_linear),
        patch.object(fastrnn.layers, "linear_of", quantized_linear),
    ):
        for k in range(case.L):
            names = [p.name for p in info.parameters_of(case.bias, case.P > 0)]
            suffixes = [f"_l{k}{reverse}" for reverse in ("", "_reverse")[:D]]
            weights = [getattr(layer, name + suffix) for suffix in suffixes for name in names]
            if not info.has("input_matrix"):
                x = layer._shares(k, x)
            arguments = x, None, hx and [s[k * D : (k + 1) * D] for s in hx], weights, None
            results = run_heads(run_one, arguments, N, D, of_head) if N > 1 else run_one(*arguments)
            x, *last = results
            lasts.append(last)
    y = x.transpose(0, 1) if case.form == "batch_first" else x
    return name_values([y, *map(torch.cat, zip(*lasts, strict=True))])


INT8_ROWS = cover_pairs(
    H=(1, 7, 33, 150),
    I=(1, 6, 150),
    B=(3, 65),
    T=(3, 1),
    form=("padded", "batch_first"),
    L=(1, 2),
    bidirectional=(False, True),
    bias=(True, False),
    hx=(True, False),
)


@pytest.mark.parametrize("row", INT8_ROWS, ids=lambda row: "-".join(map(str, row.values())))
@each_layer
def test_int8(name, row, isa):
    """The integers of the emulation, so that results differ by roundings only. But a number that lies midway
    between two integers may be rounded to the other one, and this sequence goes on a little differently."""
    case = case_of(name, **row)
    layer = build(name, case)
    frozen = fastrnn.freeze(layer, INT8)
    assert frozen.weights == "int8"
    got, want = solve(frozen, case), emulate(layer, case)
    differs = torch.zeros(case.B, dtype=torch.bool)
    for result, exact in want.items():
        assert got[result].shape == exact.shape
        limit = bound(case, result, want, roundoff(name, FLOAT))
        error = (got[result] - exact).abs()
        assert not error.isnan().any()
        # Less than half of what the rounding of all numbers to integers changes
        assert error.max() <= max(limit, 0.02 * exact.abs().max().clamp(min=1)), result
        batch_dim = 0 if result == "output" and case.form == "batch_first" else 1
        differs |= (error > limit).movedim(batch_dim, 0).flatten(1).any(1)
    assert differs.sum() <= max(1, case.B // 10)


@pytest.mark.filterwarnings("ignore")  # torch.ao.quantization is deprecated
@pytest.mark.parametrize("H", [64, 128, 256])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_int8_is_as_exact_as_dynamic_quantization(kind, H):
    layer = getattr(torch.nn, kind)(H, H)
    model = torch.nn.Sequential(copy.deepcopy(layer))
    theirs = torch.ao.quantization.quantize_dynamic(model, {type(layer)}, dtype=torch.qint8)
    assert type(theirs[0]) is not type(layer)
    x = draw(20, 16, H, dtype=FLOAT)
    with torch.no_grad():
        want = copy.deepcopy(layer).double()(x.double())[0]
        error = {}
        for name, other in {
            "theirs": theirs,
            "int8": fastrnn.freeze(layer, INT8),
            "int8_wide": fastrnn.freeze(layer, INT8, activations=FLOAT),
            "bfloat16": fastrnn.freeze(layer, BF16),
            "float32": fastrnn.freeze(layer),
        }.items():
            error[name] = (other(x)[0] - want).square().mean().sqrt().item()
    assert error["int8"] <= error["theirs"], error
    assert error["float32"] < error["bfloat16"] < error["int8_wide"] < error["int8"], error


@pytest.mark.parametrize("H", [64, 128, 256])
def test_int8_of_rnn(H):
    """torch quantizes none. The error is less than a hundredth of the results."""
    layer = torch.nn.RNN(H, H)
    x = draw(20, 16, H, dtype=FLOAT)
    with torch.no_grad():
        want = copy.deepcopy(layer).double()(x.double())[0]
        error = (fastrnn.freeze(layer, INT8)(x)[0] - want).square().mean() / want.square().mean()
    assert error.sqrt() <= 0.01


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["input", "state"])
@each_layer
def test_int8_of_what_is_not_finite(name, where, value, isa):
    """Its sequence becomes NaN from then on, and no other changes."""
    case = case_of(name, T=4, B=5, I=9, H=19)
    frozen = fastrnn.freeze(build(name, case), INT8)
    x, hx = draw_inputs(case)
    x, hx = x.detach(), [s.detach() for s in hx]
    want = run(frozen, x, hx)
    if where == "input":
        x[2, 1, 3] = value
    else:
        hx[0][0, 1, 2] = value
    got = run(frozen, x, hx)
    others = [0, 2, 3, 4]
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g[:, others], w[:, others])
    assert torch.equal(got[0][: 2 if where == "input" else 0], want[0][: 2 if where == "input" else 0])
    # u of an IndRNN is no matrix: NaN stays in its unit. All others have some product with the row.
    after = got[0][2:, 1] if where == "input" else got[0][:, 1]
    if "IndRNN" in name and where == "state":
        after = after[..., 2] if value != value else after[..., :0]
    assert after.isnan().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["input", "state"])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8_wide"])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN-tanh", "RNN-relu"])
def test_what_is_not_finite(name, kind, where, value, isa):
    """It goes through as in torch.nn."""
    case = case_of(name, T=4, B=5, I=9, H=19)
    layer = build(name, case)
    plain = fastrnn.revert(rounded(layer, kind))
    frozen = fastrnn.freeze(layer, **KINDS[kind][1])
    x, hx = case.inputs()
    x, hx = x.detach(), [s.detach() for s in hx]
    (x[2, 1] if where == "input" else hx[0][0, 1])[3] = value
    with torch.no_grad():
        got, want = (name_values(run(layer, x, hx)) for layer in (frozen, plain))
    assert_same_specials(got, want, case)


# ---- what becomes frozen ----


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


# ---- sizes ----


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


# ---- what works with it ----


def copies(frozen, other, folder):
    """Copies of a frozen layer by name; `other` is one of the same kind."""
    yield "pickle", pickle.loads(pickle.dumps(frozen))
    yield "deepcopy", copy.deepcopy(frozen)
    torch.save(frozen, folder / "layer.pt")
    yield "save", torch.load(folder / "layer.pt", weights_only=False)
    torch.save(frozen.state_dict(), folder / "state.pt")
    other.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    yield "state_dict", other


@each_layer
@each_kind
def test_copies(name, kind, tmp_path):
    dtype, arguments = KINDS[kind]
    layer = make(name, dtype=dtype, num_layers=2, bidirectional=True).eval()
    frozen = fastrnn.freeze(layer, **arguments)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(-2)
    other = fastrnn.freeze(layer, **arguments)
    x = draw(T, B, I, dtype=dtype)
    want = run(frozen, x)
    assert not torch.equal(run(other, x)[0], want[0])
    frozen.compile(backend="eager")  # which is not copied
    for how, again in copies(frozen, other, tmp_path):
        assert type(again) is FrozenLayer and repr(again) == repr(frozen), how
        assert all(map(torch.equal, run(again, x), want)), how
        shared = {b.data_ptr() for b in again.buffers()} & {b.data_ptr() for b in frozen.buffers()}
        assert not shared, how


def test_load_state_dict_of_another_kind():
    float32, int8 = (fastrnn.freeze(torch.nn.LSTM(I, H), dtype) for dtype in (None, INT8))
    with pytest.raises(RuntimeError, match="size mismatch for packed_l0"):
        float32.load_state_dict(int8.state_dict())


CASTS = {
    "double": lambda m: m.double(),
    "half": lambda m: m.half(),
    "to": lambda m: m.to(DOUBLE),
    "bfloat16": lambda m: m.to("cpu", BF16),
    "type": lambda m: m.type(DOUBLE),
    "float": lambda m: m.float(),
    "share_memory": lambda m: m.share_memory(),
    "requires_grad": lambda m: m.requires_grad_(),
    "zero_grad": lambda m: m.zero_grad() or m,
    "eval": lambda m: m.eval(),
    "train": lambda m: m.train(),
}


@pytest.mark.parametrize("cast", CASTS)
@each_kind
@each_layer
def test_casts_leave_it_as_it_is(name, kind, cast):
    dtype, arguments = KINDS[kind]
    model = torch.nn.Sequential(fastrnn.freeze(make(name, dtype=dtype, num_layers=2), **arguments))
    x = draw(T, B, I, dtype=dtype)
    want = run(model, x)
    assert CASTS[cast](model) is model
    assert all(map(torch.equal, run(model, x), want))


def test_other_devices():
    frozen = fastrnn.freeze(torch.nn.LSTM(I, H))
    y, (h, c) = copy.deepcopy(frozen).to("meta")(torch.empty(T, B, I, device="meta"))
    assert y.shape == (T, B, H) and h.shape == c.shape == (1, B, H) and y.is_meta and h.is_meta
    with patch.object(torch.Tensor, "cuda", lambda self, device=None: torch.empty(0, device="meta")):
        frozen.cuda()  # as where there is a device: meta stands for one that is allowed


@each_kind
@each_layer
def test_stateful(name, kind):
    dtype, arguments = KINDS[kind]
    frozen = fastrnn.freeze(make(name, dtype=dtype, num_layers=2), **arguments)
    x = draw(2 * T, B, I, dtype=dtype)
    stateful = fastrnn.Stateful(frozen)
    parts = torch.cat([stateful(x[:T]), stateful(x[T:])])
    whole = frozen(x)[0]
    # In 16 bits a state that is handed on is rounded once more; what is quantized then may differ a little.
    tolerance = 0.05 if dtype == BF16 else 1e-4 if kind == "int8" else 1e-5
    torch.testing.assert_close(parts, whole, rtol=tolerance, atol=tolerance)
    stateful.reset(torch.tensor([True, False, False, False]))
    fresh, old = frozen(x[:T])[0], stateful(x[:T])
    torch.testing.assert_close(old[:, 0], fresh[:, 0], rtol=tolerance, atol=tolerance)
    assert (old[:, 1] - fresh[:, 1]).abs().max() > 1e-4
    kept = fastrnn.freeze(fastrnn.Stateful(make(name, dtype=dtype, num_layers=2)), **arguments)
    assert type(kept.layer) is FrozenLayer
    torch.testing.assert_close(torch.cat([kept(x[:T]), kept(x[T:])]), parts, rtol=0, atol=0)


@pytest.mark.parametrize("name", CELL_MODULES)
def test_stateful_cell(name):
    make_cell, own = CELL_MODULES[name]
    frozen, x = fastrnn.freeze(make_cell(I, H, **own)), draw(T, B, I, dtype=FLOAT)
    stateful, state = fastrnn.Stateful(frozen), None
    for t in range(T):
        state = frozen(x[t], state)
        assert torch.equal(stateful(x[t]), take(state)[0])


@each_kind
def test_threads_of_python(kind):
    """Several call one layer at once."""
    dtype, arguments = KINDS[kind]
    frozen = fastrnn.freeze(make("LayerNormLSTM", dtype=dtype, num_layers=2), **arguments)
    inputs = [draw(T, n, I, seed=n, dtype=dtype) for n in range(1, 9)]
    want = [frozen(x)[0] for x in inputs]
    with using_threads(1), concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            got = list(pool.map(lambda x: frozen(x)[0], inputs))
            assert all(map(torch.equal, got, want))


@pytest.mark.parametrize(
    "name", ["LSTM", "GRU", "LayerNormLSTM", "LiGRU-batchnorm", "sLSTM-heads", "LSTM-proj"]
)
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8", "int8_wide"])
def test_export(name, kind):
    frozen = fastrnn.freeze(make(name, dtype=FLOAT, num_layers=2, bidirectional=True), **KINDS[kind][1])
    model = torch.nn.Sequential(frozen)
    x, other = draw(T, B, I, dtype=FLOAT), draw(T + 3, B + 2, I, dtype=FLOAT)
    sizes = {0: torch.export.Dim("T", min=2, max=50), 1: torch.export.Dim("B", min=2, max=50)}
    program = torch.export.export(model, (x,), dynamic_shapes={"input": sizes})
    assert all(map(torch.equal, run(program.module(), other), run(frozen, other)))


@pytest.mark.parametrize("call", ["plain", "hx", "lengths", "resets", "every", "packed"])
@pytest.mark.parametrize(
    "name",
    [
        "LayerNormLSTM",
        *(pytest.param(n, marks=pytest.mark.thorough) for n in EVERY_LAYER if n != "LayerNormLSTM"),
    ],
)
def test_compile(name, call):
    """In one graph, of any batch."""
    frozen = fastrnn.freeze(make(name, dtype=FLOAT, num_layers=2), INT8)
    torch._dynamo.reset()

    def solve(x, lengths, resets, *hx):
        kwargs = {"lengths": lengths} if call == "lengths" else {}
        kwargs |= {"resets": resets} if call == "resets" else {}
        kwargs |= {"return_all_states": True} if call == "every" else {}
        return frozen(x, give(hx) if call == "hx" else None, **kwargs)

    compiled = torch.compile(solve, fullgraph=call != "packed", backend="aot_eager", dynamic=True)
    for n in (B, B + 3):
        x, hx = draw(T, n, I, dtype=FLOAT), draw_states(name, frozen, B=n, dtype=FLOAT)
        lengths = torch.arange(n) % T + 1
        if call == "packed":
            x = pack_padded_sequence(x, lengths, enforce_sorted=False)
        arguments = x, lengths, draw(T, n) > 1, *hx
        got, want = (torch.utils._pytree.tree_leaves(f(*arguments)) for f in (compiled, solve))
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g, w, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [fastrnn.LSTMCell, fastrnn.GRUCell])
def test_compile_and_export_of_cells(kind):
    frozen = fastrnn.freeze(kind(I, H), INT8)
    torch._dynamo.reset()
    compiled = torch.compile(frozen, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (2, 5):
        x = draw(n, I, dtype=FLOAT)
        state = frozen(x)
        assert all(map(torch.equal, take(compiled(x, state)), take(frozen(x, state))))
    batch = torch.export.Dim("B", min=2, max=50)
    program = torch.export.export(frozen, (draw(3, I, dtype=FLOAT),), dynamic_shapes={"input": {0: batch}})
    x = draw(7, I, dtype=FLOAT)
    assert all(map(torch.equal, take(program.module()(x)), take(frozen(x))))


def test_module_compile():
    frozen, x = fastrnn.freeze(torch.nn.LSTM(I, H)), draw(T, B, I, dtype=FLOAT)
    want = run(frozen, x)
    torch._dynamo.reset()
    frozen.compile(fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, run(frozen, x), want))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("name", ["LSTM", "GRU", "LayerNormLSTM", "LiGRU-batchnorm", "sLSTM-heads"])
def test_fx_and_trace(name):
    model = torch.nn.Sequential(fastrnn.freeze(make(name, dtype=FLOAT), INT8))
    graph = torch.fx.symbolic_trace(model)
    assert [node.op for node in graph.graph.nodes] == ["placeholder", "call_module", "output"]
    x, other = draw(T, B, I, dtype=FLOAT), draw(T + 2, B - 1, I, dtype=FLOAT)
    assert all(map(torch.equal, run(graph, x), run(model, x)))
    traced = torch.jit.trace(model, x, check_trace=False)
    assert all(map(torch.equal, run(traced, other), run(model, other)))
    with pytest.raises(torch.fx.proxy.TraceError, match="FrozenLayer: torch.fx cannot trace its forward"):
        torch.fx.symbolic_trace(model[0])


def test_torchscript_is_refused():
    for module in (torch.nn.LSTM(I, H), torch.nn.LSTMCell(I, H), fastrnn.sLSTM(I, H)):
        with pytest.raises(NotImplementedError, match="torch.jit.script takes no frozen layers"):
            torch.jit.script(torch.nn.Sequential(fastrnn.freeze(module)))


@each_kind
@each_layer
def test_autocast(name, kind):
    """What came from a region's operators is cast, in whatever form; results are of the layer's dtype."""
    dtype, arguments = KINDS[kind]
    frozen = fastrnn.freeze(make(name, dtype=dtype, num_layers=2), **arguments)
    x = draw(T, B, I, dtype=BF16)
    hx = draw_states(name, frozen, dtype=BF16)
    packed = pack_padded_sequence(x, [T] * B)
    want = run(frozen, x.to(dtype), [s.to(dtype) for s in hx])
    with torch.autocast("cpu", BF16):
        assert all(map(torch.equal, run(frozen, x, hx), want))
        assert all(map(torch.equal, run(frozen, x.to(dtype), hx), want))
        output, *states = run(frozen, packed, hx)
        assert torch.equal(output.data.view(want[0].shape), want[0])
        assert all(map(torch.equal, states, want[1:]))
    assert all(t.dtype == dtype for t in want)


@pytest.mark.parametrize("name", CELL_MODULES)
def test_autocast_of_cells(name):
    make_cell, own = CELL_MODULES[name]
    frozen, x = fastrnn.freeze(make_cell(I, H, **own)), draw(B, I, dtype=BF16)
    state = frozen(x.float())
    rounded_state = give([s.bfloat16() for s in take(state)])
    want = take(frozen(x.float(), give([s.bfloat16().float() for s in take(state)])))
    with torch.autocast("cpu", BF16):
        for given in (x, x.float()):
            assert all(map(torch.equal, take(frozen(given, rounded_state)), want))


@each_layer
def test_inference_mode(name):
    """Inside, and with what comes out of it."""
    frozen, x = fastrnn.freeze(make(name, dtype=FLOAT, num_layers=2)), draw(T, B, I, dtype=FLOAT)
    want = run(frozen, x, draw_states(name, frozen, dtype=FLOAT))
    with torch.inference_mode():
        inside, hx = x.clone(), draw_states(name, frozen, dtype=FLOAT)
        got = run(frozen, inside, hx)
    assert all(map(torch.equal, got, want)) and got[0].is_inference()
    assert all(map(torch.equal, run(frozen, inside, hx), want))
    with torch.inference_mode():
        made = fastrnn.freeze(make(name, dtype=FLOAT, num_layers=2))
    assert all(map(torch.equal, run(made, x, hx), want))


@each_layer
@each_kind
def test_default_dtype(name, kind):
    """It changes nothing."""
    dtype, arguments = KINDS[kind]
    layer, x = make(name, dtype=dtype, num_layers=2), draw(T, B, I, dtype=dtype)
    packed = pack_padded_sequence(x, [T] * B)
    frozen = fastrnn.freeze(layer, **arguments)
    want = run(frozen, x)
    torch.set_default_dtype(DOUBLE)
    try:
        again = fastrnn.freeze(layer, **arguments)
        for module in (frozen, again):
            assert all(map(torch.equal, run(module, x), want))
            assert torch.equal(run(module, packed)[0].data.view(want[0].shape), want[0])
    finally:
        torch.set_default_dtype(FLOAT)
    assert all(map(torch.equal, again.buffers(), frozen.buffers()))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("form", ["batched", "unbatched"])
@pytest.mark.parametrize("every", [False, True])
@each_layer
def test_vmap(name, form, every, batch_first):
    frozen = fastrnn.freeze(
        make(name, dtype=FLOAT, num_layers=2, bidirectional=True, batch_first=batch_first)
    )
    x = draw(3, *((B, T) if batch_first else (T, B)), I, dtype=FLOAT)
    hx = (
        torch.stack([torch.stack(draw_states(name, frozen, dtype=FLOAT))] * 3) if "proj" not in name else None
    )
    if form == "unbatched":
        x, hx = (x[:, 0] if batch_first else x[:, :, 0]), hx if hx is None else hx[..., 0, :]

    def call(x, hx):
        states = None if hx is None else give(list(hx))
        return torch.utils._pytree.tree_leaves(frozen(x, states, return_all_states=every))

    for in_dim, states in itertools.product((0, 1), {id(hx): hx, id(None): None}.values()):
        got = torch.vmap(call, (in_dim, None if states is None else 0))(x.movedim(0, in_dim), states)
        for k in range(3):
            for g, w in zip(got, call(x[k], states if states is None else states[k]), strict=True):
                torch.testing.assert_close(g[k], w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["LSTM", "sLSTM-heads"])
def test_vmap_of_packed_sequences(name):
    frozen, x = fastrnn.freeze(make(name, dtype=FLOAT)), draw(3, T, B, I, dtype=FLOAT)

    def call(x):
        return torch.utils._pytree.tree_leaves(run(frozen, x, lengths=[6, 5, 2, 1]))

    got = torch.vmap(call)(x)
    for k in range(3):
        for g, w in zip(got, call(x[k]), strict=True):
            torch.testing.assert_close(g[k], w, rtol=1e-5, atol=1e-5)


def test_vmap_of_cells_and_weights():
    frozen = fastrnn.freeze(fastrnn.LSTMCell(I, H))
    x, h = draw(3, B, I, dtype=FLOAT), draw(3, B, H, dtype=FLOAT)
    for pick in (lambda t: t, lambda t: t[:, 0]):  # batches, and single sequences
        given = pick(x), pick(h)
        got = torch.vmap(lambda x, h: frozen(x, (h, h)))(*given)
        for k in range(3):
            want = frozen(given[0][k], (given[1][k],) * 2)
            assert all(map(torch.equal, (g[k] for g in got), want))
    models = [fastrnn.freeze(make("LayerNormLSTM", dtype=FLOAT, bias=bias)) for bias in (True, True)]
    with torch.no_grad():
        layer = make("LayerNormLSTM", dtype=FLOAT)
        layer.weight_ih_l0[0].mul_(-3)
        models[1] = fastrnn.freeze(layer)
    _, buffers = torch.func.stack_module_state(models)
    got = torch.vmap(lambda b: torch.func.functional_call(models[0], b, (x[0],))[0])(buffers)
    for g, m in zip(got, models, strict=True):
        torch.testing.assert_close(g, m(x[0])[0], rtol=1e-5, atol=1e-5)
    assert (got[0] - got[1]).abs().max() > 1e-3


# ---- gradients ----


@pytest.mark.parametrize("where", ["input", "hx"])
@pytest.mark.parametrize("how", ["plain", "lengths", "resets", "packed", "unbatched"])
@each_layer
def test_gradients_are_refused(name, how, where):
    frozen = fastrnn.freeze(make(name, dtype=FLOAT, num_layers=2))
    x, hx = draw(T, B, I, dtype=FLOAT), draw_states(name, frozen, dtype=FLOAT)
    if how == "unbatched":
        x, hx = x[:, 0], [s[:, 0] for s in hx]
    (x if where == "input" else hx[-1]).requires_grad_()
    kwargs = {"lengths": torch.full((B,), T)} if how == "lengths" else {}
    kwargs |= {"resets": torch.zeros(T, B, dtype=torch.bool)} if how == "resets" else {}
    given = pack_padded_sequence(x, [T] * B) if how == "packed" else x
    with pytest.raises(RuntimeError, match=r"requires a gradient.* for inference.*torch.no_grad\(\)"):
        frozen(given, give(hx), **kwargs)
    with torch.no_grad():
        results = run(frozen, given, hx, **kwargs)
    assert not any(t.data.requires_grad for t in results)


def test_gradients_of_cells_are_refused():
    frozen = fastrnn.freeze(torch.nn.LSTMCell(I, H))
    x, h = draw(B, I, dtype=FLOAT), draw(B, H, dtype=FLOAT)
    for given in ((x.clone().requires_grad_(), None), (x, (h, h.clone().requires_grad_()))):
        with pytest.raises(RuntimeError, match="requires a gradient.* for inference"):
            frozen(*given)
        with torch.no_grad():
            assert not frozen(*given)[0].requires_grad


def test_torch_func_is_refused():
    frozen, x = fastrnn.freeze(torch.nn.LSTM(I, H)), draw(T, B, I, dtype=FLOAT)
    with pytest.raises(RuntimeError, match="requires a gradient.* for inference"):
        torch.func.grad(lambda x: frozen(x)[0].sum())(x)


@pytest.mark.parametrize("name", ["LSTM", "LayerNormLSTM"])
def test_forward_mode_is_refused(name):
    """A tangent of zeros would be wrong."""
    frozen, x = fastrnn.freeze(make(name, dtype=FLOAT)), draw(T, B, I, dtype=FLOAT)
    with pytest.raises((RuntimeError, NotImplementedError), match="inference"):
        torch.func.jvp(lambda x: frozen(x)[0], (x,), (x,))
    with (
        torch.autograd.forward_ad.dual_level(),
        pytest.raises((RuntimeError, NotImplementedError), match="inference"),
    ):
        frozen(torch.autograd.forward_ad.make_dual(x, x))


# ---- errors ----


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ((3,), TypeError, "fastrnn.freeze: model: expected a torch.nn.Module, got int"),
        ((torch.nn.LSTM,), TypeError, "model: expected a torch.nn.Module, got type"),
        ((torch.nn.LSTM(I, H), torch.float16), ValueError, "dtype: expected None, .*, got torch.float16"),
        ((torch.nn.LSTM(I, H), "int8"), ValueError, "dtype: expected None, .*, got int8"),
        ((torch.nn.LSTM(I, H), DOUBLE), ValueError, "dtype: expected None, .*, got torch.float64"),
        (
            (torch.nn.LSTM(I, H).double(), INT8),
            NotImplementedError,
            "LSTM: expected a layer of float32, got torch.float64",
        ),
        (
            (torch.nn.Sequential(torch.nn.GRU(I, H).double()), BF16),
            NotImplementedError,
            "0: expected a layer of float32, got torch.float64",
        ),
        (
            (torch.nn.LSTM(I, H).half(),),
            NotImplementedError,
            "expected a layer of float32.*, got torch.float16",
        ),
        (
            (torch.nn.GRUCell(I, H, device="meta"),),
            NotImplementedError,
            "GRUCell: expected a layer on the CPU, got one on meta",
        ),
    ],
)
def test_freeze_refuses(arguments, error, words):
    with pytest.raises(error, match=words):
        fastrnn.freeze(*arguments)


@pytest.mark.parametrize("make_module", [torch.nn.GRUCell, fastrnn.IndRNN, fastrnn.LayerNormLSTM])
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_freeze_refuses_layers_of_no_size(make_module):
    for arguments in ({}, {"dtype": INT8}):
        with pytest.raises(NotImplementedError, match="weight_ih.*: expected sizes of at least 1, got"):
            fastrnn.freeze(make_module(0, H), **arguments)


@pytest.mark.parametrize("dtype", [None, FLOAT, BF16])
@pytest.mark.parametrize("activations", [FLOAT, INT8])
def test_activations_are_of_int8(dtype, activations):
    with pytest.raises(
        ValueError, match=f"activations: expected .*int8 weights, got {activations} with {dtype}"
    ):
        fastrnn.freeze(torch.nn.LSTM(I, H), dtype, activations=activations)
    with pytest.raises(ValueError, match="activations: expected .*, got torch.bfloat16"):
        fastrnn.freeze(torch.nn.LSTM(I, H), INT8, activations=BF16)


def test_a_model_without_layers():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4))
    with pytest.warns(UserWarning, match="fastrnn.freeze found no recurrent layer in Sequential"):
        frozen = fastrnn.freeze(model)
    assert type(frozen[0]) is torch.nn.Linear and frozen[0] is not model[0]


@each_layer
def test_calls_refuse(name):
    frozen, x = fastrnn.freeze(make(name)), draw(T, B, I)
    with pytest.raises(RuntimeError, match=r"input.size\(-1\) .* Expected 5, got 4"):
        frozen(x[..., :-1])
    with pytest.raises(ValueError, match=r"input dtype \(torch.float32\).*torch.float64"):
        frozen(x.float())
    for wrong in (x[None], x[0, 0]):
        with pytest.raises(ValueError, match="Expected input to be 2D or 3D, got"):
            frozen(wrong)
    with pytest.raises(RuntimeError, match="sequence length to be larger than 0"):
        frozen(x[:0])
    states = draw_states(name, frozen, B=B + 1)
    with pytest.raises(RuntimeError, match=r"Expected hidden.* size .*, got \[1, 5, .*for h_0"):
        frozen(x, give(states))
    states = draw_states(name, frozen)
    with pytest.raises(RuntimeError, match="_0: expected Double on cpu, got Float"):
        frozen(x, give([*states[:-1], states[-1].float()]))
    with pytest.raises(fastrnn.KindError, match="hx: expected .*, got str"):
        frozen(x, "state")
    with pytest.raises(fastrnn.KindError, match="hx: expected"):
        frozen(x, (*states, *states))
    with pytest.raises(fastrnn.KindError, match="input: expected Tensor or PackedSequence, got list"):
        frozen([1.0])
    with pytest.raises(RuntimeError, match=r"lengths: expected size \[4\]"):
        frozen(x, lengths=[1])
    with pytest.raises(RuntimeError, match=r"resets: expected size \[6, 4\]"):
        frozen(x, resets=torch.zeros(2, dtype=torch.bool))


def test_calls_of_cells_refuse():
    frozen, x, h = fastrnn.freeze(torch.nn.LSTMCell(I, H)), draw(B, I, dtype=FLOAT), draw(B, H, dtype=FLOAT)
    with pytest.raises(RuntimeError, match="inconsistent input_size: got 4 expected 5"):
        frozen(x[:, :-1])
    with pytest.raises(RuntimeError, match="input: expected dtype Float, got Double"):
        frozen(x.double())
    with pytest.raises(ValueError, match="Expected input to be 1D or 2D, got 3D"):
        frozen(x[None])
    with pytest.raises(RuntimeError, match="batch size 3 of h_0"):
        frozen(x, (h[:3], h))
    with pytest.raises(RuntimeError, match="inconsistent hidden_size: got 7, expected 8 for c_0"):
        frozen(x, (h, h[:, :-1]))
    with pytest.raises(RuntimeError, match="c_0: expected Float on cpu, got Double"):
        frozen(x, (h, h.double()))
    for wrong in (h, (h,), (h, h, h), 3):
        with pytest.raises(fastrnn.KindError, match=r"hx: expected tuple \(h, c\) of 2 Tensors"):
            frozen(x, wrong)
    with pytest.raises(fastrnn.KindError, match="input: expected Tensor, got list"):
        frozen([1.0])
    with pytest.raises(RuntimeError, match=r"resets: expected size \[4\]"):
        frozen(x, resets=torch.zeros(3, dtype=torch.bool))


# Each call in a process of its own, which may die of it.
HOSTILE = """
import os, sys, torch
import fastrnn
from cases import using_threads

F, ops = torch.float32, torch.ops.fastrnn
zeros = lambda n: torch.zeros(n, dtype=torch.uint8)
layer, cell = fastrnn.freeze(fastrnn.LSTM(5, 7)), fastrnn.freeze(fastrnn.LSTMCell(5, 7))
packed, x, h, of_ligru = layer.packed_l0, torch.ones(2, 3, 5), torch.zeros(1, 3, 7), torch.ones(2, 3, 14)

def rnn(packed=packed, x=x, hx=(), sizes=None, name="lstm", weights="float32", I=5, H=7, P=0, L=1, **rest):
    given = x, sizes, list(hx), [packed] * min(L, 1)
    return ops.frozen_rnn(*given, name, F, weights, I, H, P, L, False, False, **rest)

def step(packed=cell.packed, x=x[0], hx=(), name="lstm", I=5, H=7):
    return ops.frozen_cell(x, list(hx), packed, name, F, "float32", I, H)

def product(packed, x=x, N=7, weights="float32"):
    return ops.frozen_product(x, packed, weights, N)

def with_enough(call):
    # a buffer of as many bytes as the error asks for
    try:
        return call(zeros(1))
    except RuntimeError as error:
        return call(zeros(int(str(error).split("packed: expected ")[1].split()[0])))

def without_buffer(module):
    for name in module._buffers:
        module._buffers[name] = None
    module(x if module is layer else x[0])

calls = {
    "too short": lambda: rnn(packed[:-1].clone()),
    "empty": lambda: rnn(zeros(0)),
    "too long": lambda: rnn(torch.cat([packed, packed])),
    "of floats": lambda: rnn(packed.float()),
    "of int8": lambda: rnn(packed.view(torch.int8)),
    "of another kind": lambda: rnn(weights="int8"),
    "no kind": lambda: rnn(weights="int4"),
    "too few": lambda: rnn(L=2),
    "no layer": lambda: rnn(L=0),
    "no cell": lambda: rnn(name="cell"),
    "no storage": lambda: (packed.untyped_storage().resize_(0), rnn()),
    "no storage of x": lambda: (x.untyped_storage().resize_(0), rnn()),
    "H of another": lambda: rnn(H=8),
    "I of another": lambda: rnn(I=6, x=torch.zeros(2, 3, 6)),
    "no unit": lambda: with_enough(lambda p: rnn(p, H=0)),
    "no unit in a step": lambda: with_enough(lambda p: step(p, H=0)),
    "H below 0": lambda: with_enough(lambda p: rnn(p, H=-1)),
    "huge H": lambda: rnn(H=2**61),
    "huge I": lambda: rnn(I=2**62),
    "a projection of a GRU": lambda: with_enough(lambda p: rnn(p, name="gru", P=3)),
    "a projection of a LiGRU": lambda: with_enough(lambda p: rnn(p, of_ligru, name="ligru", P=40)),
    "one state": lambda: rnn(hx=[h]),
    "five states": lambda: rnn(hx=[h] * 5),
    "one state of no sequence": lambda: rnn(hx=[h[:, :0]], x=x[:, :0]),
    "one state in a step": lambda: step(hx=[h[0]]),
    "one state in a step of no sequence": lambda: step(hx=[h[0, :0]], x=x[0, :0]),
    "five states in a step": lambda: step(hx=[h[0]] * 5),
    "wrong state": lambda: rnn(hx=[h, h[:, :2]]),
    "zoneout": lambda: rnn(zoneout=[0.1]),
    "resets": lambda: rnn(resets=torch.zeros(2, dtype=torch.bool)),
    "resets of ints": lambda: rnn(resets=torch.zeros(2, 3, dtype=torch.long)),
    "batch sizes": lambda: rnn(x=x[0], sizes=torch.tensor([9, 1])),
    "growing batch sizes": lambda: rnn(x=x[0], sizes=torch.tensor([1, 2])),
    "batch sizes below 0": lambda: rnn(x=x[0], sizes=torch.tensor([-3, 6])),
    "no batch sizes": lambda: rnn(x=x[0], sizes=torch.zeros(0, dtype=torch.long)),
    "4-D": lambda: rnn(x=x[None]),
    "short step": lambda: step(cell.packed[1:].clone()),
    "step of a layer norm": lambda: step(name="layer_norm_lstm"),
    "product": lambda: product(zeros(64)),
    "product of another kind": lambda: product(zeros(64), weights="int8"),
    "product of no dimension": lambda: product(zeros(64), x=torch.zeros(())),
    "product below 0": lambda: product(zeros(64), N=-1),
    "huge product": lambda: product(zeros(64), N=2**62),
    "product of floats": lambda: product(torch.zeros(320)),
    "buffers gone": lambda: without_buffer(layer),
    "buffer of a cell gone": lambda: without_buffer(cell),
    "sparse": lambda: layer(x.to_sparse()),
}
def in_fork(call):
    pid = os.fork()
    if pid == 0:
        try:
            call()
        except Exception:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

for name, call in calls.items():
    status = in_fork(call)
    if status != 1 << 8:
        print(f"{name}: " + ("no error" if status == 0 else f"signal {status & 127}"))

big, y = fastrnn.freeze(fastrnn.LayerNormLSTM(40, 150), torch.int8), torch.randn(4, 33, 40)
for threads in (1, 2):
    with using_threads(threads):
        want = big(y)[0]  # which begins threads
        # A child has none of them, and no library may wait for them.
        status = in_fork(lambda: torch.set_num_threads(1) or torch.equal(big(y)[0], want) or 1 / 0)
        if status:
            print(f"a forked process with {threads} threads: {status}")
print("done")
"""


def test_hostile_calls_and_forks():
    """Errors and never a crash; and a forked process computes the same."""
    done = run_python("-W", "ignore", "-c", HOSTILE, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "done", done.stdout
