"""from_keras and to_keras_weights: Keras's own outputs, its weights back to the bit, errors for all else."""

import os
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import fastrnn

os.environ["KERAS_BACKEND"] = "torch"  # which Keras reads when it is imported
keras = pytest.importorskip("keras", reason="keras is not installed")

# Keras's own way to read its weights on torch
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

T, B, I, H = 6, 3, 5, 4
KINDS = {
    "tanh": ("SimpleRNN", {}),
    "relu": ("SimpleRNN", {"activation": "relu"}),
    "sigmoid": ("SimpleRNN", {"activation": "sigmoid"}),
    "linear": ("SimpleRNN", {"activation": None}),
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {}),
    "reset_before": ("GRU", {"reset_after": False}),
}
NOT_IN_TORCH = {"sigmoid", "linear", "reset_before"}
FORMS = ("layer", "bidirectional", "cell", "stack", "stacked_cells")
each_kind = pytest.mark.parametrize("kind", KINDS)
each_form = pytest.mark.parametrize("form", FORMS)
each_bias = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])


def draw(*shape, seed, dtype="float32"):
    return (0.5 * np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def build(kind, form="layer", sizes=(I, H), dtype="float32", outer=None, **options):
    """A Keras layer that returns everything it can, with random weights and biases."""
    (inputs, units), (name, own) = sizes, KINDS[kind]
    outer = {"return_sequences": True, "return_state": True} | (outer or {})
    keras.config.set_dtype_policy(dtype)
    # Keras's default, orthogonal, cannot be computed in 16 bits.
    options = {"recurrent_initializer": "zeros"} | own | options

    def cell():
        return getattr(keras.layers, f"{name}Cell")(units, **options)

    if form in ("layer", "bidirectional"):
        layer = getattr(keras.layers, name)(units, **options, **outer)
        layer = keras.layers.Bidirectional(layer) if form == "bidirectional" else layer
    elif form == "cell":
        layer = keras.layers.RNN(cell(), **outer)
    else:
        cells = [cell(), cell()]
        stack = cells if form == "stack" else keras.layers.StackedRNNCells(cells)
        layer = keras.layers.RNN(stack, **outer)
    layer.build((B, T, inputs))
    layer.set_weights([draw(*w.shape, seed=k, dtype=w.dtype) for k, w in enumerate(layer.get_weights())])
    return layer


def states_of(layer, rnn, dtype):
    """Initial states: as Keras takes them, and as fastrnn does."""
    LD, lstm = rnn.num_layers * (1 + rnn.bidirectional), isinstance(rnn, nn.LSTM)
    h, c = (torch.tensor(draw(LD, B, H, seed=seed, dtype=dtype)) for seed in (7, 8))
    each = [[h[k], c[k]] if lstm else [h[k]] for k in range(LD)]
    flat = sum(each, [])
    return each if rnn.num_layers > 1 else flat, (h, c) if lstm else h


def run_keras(layer, x, **arguments):
    """output, h_n and, of an LSTM, c_n in fastrnn's shapes."""
    with torch.no_grad():
        output, *states = keras.tree.flatten(layer(x, **arguments))
    S = 2 if "lstm" in layer.weights[0].path else 1
    return output, *(torch.stack(states[s::S]) for s in range(S))


def run_fastrnn(rnn, x, *arguments, **options):
    with torch.no_grad():
        output, states = rnn(x, *arguments, **options)
    return output, *(states if isinstance(states, tuple) else (states,))


def assert_close(got, want):
    """Also of float64, whose products Keras computes in float32 on torch."""
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-5)


@each_kind
@each_form
@each_bias
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_outputs_are_those_of_keras(kind, form, bias, dtype):
    layer = build(kind, form, use_bias=bias, dtype=dtype)
    rnn = fastrnn.from_keras(layer)
    assert type(rnn).__module__ == "fastrnn.modules" and rnn.batch_first and rnn.bias == bias
    x = torch.tensor(draw(B, T, I, seed=9, dtype=dtype))
    of_keras, of_fastrnn = states_of(layer, rnn, dtype)
    assert_close(run_fastrnn(rnn, x), run_keras(layer, x))
    assert_close(run_fastrnn(rnn, x, of_fastrnn), run_keras(layer, x, initial_state=of_keras))


@each_kind
@each_form
@each_bias
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_weights_come_back_to_the_bit(kind, form, bias, dtype):
    layer = build(kind, form, use_bias=bias, dtype=dtype)
    rnn = fastrnn.from_keras(layer)
    assert all(p.dtype == getattr(torch, dtype) for p in rnn.parameters())
    before, weights = layer.get_weights(), fastrnn.to_keras_weights(rnn)
    assert [w.dtype for w in weights] == [dtype if dtype != "bfloat16" else "float32"] * len(before)
    layer.set_weights([np.zeros_like(w) for w in before])
    layer.set_weights(weights)
    for got, want, after in zip(weights, before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(got, want.astype(got.dtype), strict=True)
        np.testing.assert_array_equal(after, want, strict=True)


@each_kind
@each_form
@each_bias
@pytest.mark.parametrize("library", [fastrnn, nn], ids=["fastrnn", "torch.nn"])
def test_weights_of_a_layer_with_two_biases(kind, form, bias, library):
    """A layer that did not come from Keras: both its biases count."""
    layer = build(kind, form, use_bias=bias)
    rnn = fastrnn.from_keras(layer)
    with torch.no_grad():
        for k, p in enumerate(rnn.parameters()):
            p.copy_(torch.tensor(draw(*p.shape, seed=20 + k)))
    if library is nn:
        if kind in NOT_IN_TORCH:
            pytest.skip("torch.nn has no such layer")
        rnn = fastrnn.revert(rnn)
    x = torch.tensor(draw(B, T, I, seed=9))
    layer.set_weights(fastrnn.to_keras_weights(rnn))
    assert_close(run_fastrnn(rnn, x), run_keras(layer, x))


@each_kind
def test_nothing_is_shared(kind):
    """Sizes of 1: a transposed matrix is then contiguous, as a copy would be."""
    layer = build(kind, sizes=(1, 1))
    rnn = fastrnn.from_keras(layer)
    before, weights = layer.get_weights(), fastrnn.to_keras_weights(rnn)
    with torch.no_grad():
        for p in rnn.parameters():
            p.add_(1)
    for of_keras, given, old in zip(layer.get_weights(), weights, before, strict=True):
        np.testing.assert_array_equal(of_keras, old)
        np.testing.assert_array_equal(given, old)


@each_kind
@pytest.mark.parametrize("form", ["layer", "bidirectional", "stack"])
def test_a_mask_of_ends_is_lengths(kind, form):
    layer = build(kind, form, outer={"zero_output_for_mask": True})
    x, lengths = torch.tensor(draw(B, T, I, seed=9)), torch.tensor([4, T, 1])
    mask = torch.arange(T) < lengths.unsqueeze(1)
    got = run_fastrnn(fastrnn.from_keras(layer), x, lengths=lengths)
    assert_close(got, run_keras(layer, x, mask=mask))


@pytest.mark.parametrize("form", FORMS)
def test_last_output(form):
    """Keras's result without return_sequences, as the docstring says."""
    layer = build("gru", form, outer={"return_sequences": False, "return_state": False})
    x = torch.tensor(draw(B, T, I, seed=9))
    _, h_n = run_fastrnn(fastrnn.from_keras(layer), x)
    got = torch.cat([h_n[0], h_n[1]], dim=-1) if form == "bidirectional" else h_n[-1]
    assert_close([got], [layer(x).detach()])


# What the errors advise.


def test_dropout_switched_off():
    layer = build("lstm", dropout=0.2, recurrent_dropout=0.3)
    x = torch.tensor(draw(B, T, I, seed=9))
    want = run_keras(layer, x)
    layer.cell.dropout = layer.cell.recurrent_dropout = 0
    assert_close(run_fastrnn(fastrnn.from_keras(layer), x), want)


def test_recurrent_dropout_is_taken_over():
    """By the mask that Keras drew, which is kept until the end of a call."""
    layer = build("tanh", recurrent_dropout=0.4)
    rnn = fastrnn.from_keras(layer)
    assert rnn.recurrent_dropout == 0.4
    x = torch.tensor(draw(B, T, I, seed=9))
    masks, kept = [], layer.cell.get_recurrent_dropout_mask
    layer.cell.get_recurrent_dropout_mask = lambda h: masks.append(kept(h)) or masks[-1]
    (want, _), (mask, *others) = run_keras(layer, x, training=True), masks
    assert all(torch.equal(mask, other) for other in others) and not mask.all()
    weights, flags = list(rnn.parameters()), ("rnn_tanh", False, True)
    with torch.no_grad():
        got = torch.ops.fastrnn.layer(x, None, [], weights, *flags, mask=mask.unsqueeze(0))[0]
    assert_close([got], [want])


def test_backwards_is_a_flipped_input():
    layer = build("lstm", outer={"go_backwards": True})
    x = torch.tensor(draw(B, T, I, seed=9))
    want = run_keras(layer, x)
    layer.go_backwards = False
    assert_close(run_fastrnn(fastrnn.from_keras(layer), x.flip(1)), want)


def test_stateful_is_wrapped():
    layer = build("gru", outer={"stateful": True})
    chunks = [torch.tensor(draw(B, T, I, seed=seed)) for seed in (9, 10)]
    want = [run_keras(layer, x)[0] for x in chunks]
    layer.stateful = False
    rnn = fastrnn.Stateful(fastrnn.from_keras(layer))
    assert_close([rnn(x).detach() for x in chunks], want)


def test_read_only_weights_give_no_warning():
    layer = build("lstm")
    arrays = [w.copy() for w in layer.get_weights()]
    for w in arrays:
        w.flags.writeable = False  # as those of Keras's JAX backend
    layer.cell.get_weights = lambda: arrays
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastrnn.from_keras(layer)


def tanh(x):
    """Not Keras's function of this name."""
    return x


class OwnLSTM(keras.layers.LSTM):
    pass


def of_layers(forward, backward):
    layer = keras.layers.Bidirectional(forward, backward_layer=backward)
    layer.build((B, T, I))
    return layer


def of_cells(*cells):
    layer = keras.layers.RNN(list(cells))
    layer.build((B, T, I))
    return layer


L = keras.layers
ERRORS = {
    "nothing": (lambda: None, TypeError, "layer: expected a SimpleRNN, LSTM, .* got builtins.NoneType"),
    "torch": (lambda: nn.LSTM(3, 4), TypeError, r"Keras 3, got torch\.nn\.modules\.rnn\.LSTM"),
    "dense": (lambda: L.Dense(4), TypeError, r"layer: .*, got keras\..*\.Dense"),
    "mask": (lambda: L.Masking(), TypeError, r"layer: .*, got keras\..*\.Masking"),
    "conv": (lambda: L.ConvLSTM1D(4, 3), TypeError, r"layer: .*, got keras\..*\.ConvLSTM1D"),
    "cell": (lambda: L.LSTMCell(4), TypeError, r"layer: .*, got keras\..*\.LSTMCell"),
    "subclass": (lambda: OwnLSTM(4), TypeError, r"layer: .*, got .*\.OwnLSTM"),
    "nested stack": (
        lambda: of_cells(L.StackedRNNCells([L.GRUCell(4)]), L.GRUCell(4)),
        TypeError,
        r"cell: expected a SimpleRNNCell, LSTMCell or GRUCell of Keras 3, got keras\..*\.StackedRNNCells",
    ),
    "unbuilt": (lambda: L.GRU(4), ValueError, "layer: expected one that is built, got one without weights"),
    "unbuilt bidirectional": (lambda: L.Bidirectional(L.GRU(4)), ValueError, "without weights: call it"),
    "simple activation": (
        lambda: build("tanh", activation="gelu"),
        ValueError,
        "activation: expected 'tanh' or 'relu'.*, got 'gelu': fastrnn's RNN has no other",
    ),
    "lstm activation": (
        lambda: build("lstm", activation="relu"),
        ValueError,
        "^activation: expected 'tanh', got 'relu': fastrnn's LSTM has no other",
    ),
    "gru recurrent activation": (
        lambda: build("gru", "stack", recurrent_activation="hard_sigmoid"),
        ValueError,
        "^recurrent_activation: expected 'sigmoid', got 'hard_sigmoid': fastrnn's GRU has no other",
    ),
    "own activation": (
        lambda: build("lstm", activation=tanh),
        ValueError,
        r"^activation: expected 'tanh', got '.*test_keras_weights\.tanh'",
    ),
    "layer as activation": (
        lambda: build("tanh", activation=L.ReLU()),
        ValueError,
        r"^activation: .* got 'keras\..*\.ReLU'",
    ),
    "dropout": (lambda: build("gru", dropout=0.25), ValueError, "^dropout: expected 0, got 0.25"),
    "recurrent dropout": (
        lambda: build("gru", "bidirectional", recurrent_dropout=0.5),  # a mask for each gate
        ValueError,
        "^recurrent_dropout: expected 0, got 0.5: .* set `cell.recurrent_dropout = 0` first",
    ),
    "backwards": (lambda: build("lstm", outer={"go_backwards": True}), ValueError, "^go_backwards: expected"),
    "both backwards": (
        lambda: of_layers(L.GRU(4, go_backwards=True), L.GRU(4)),
        ValueError,
        "^go_backwards: expected False, got True",
    ),
    "stateful": (
        lambda: build("lstm", outer={"stateful": True}),
        ValueError,
        "^stateful: expected False, got True: .* fastrnn.Stateful",
    ),
    "merge mode": (
        lambda: L.Bidirectional(L.LSTM(4), merge_mode="sum"),
        ValueError,
        "^merge_mode: expected 'concat', got 'sum'",
    ),
    "no merge mode": (lambda: L.Bidirectional(L.LSTM(4), merge_mode=None), ValueError, "^merge_mode.* None"),
    "stack in two directions": (
        lambda: of_layers(
            L.RNN([L.GRUCell(4), L.GRUCell(4)]), L.RNN([L.GRUCell(4), L.GRUCell(4)], go_backwards=True)
        ),
        ValueError,
        r"^Bidirectional: expected one cell in each direction, got \[2, 2\]",
    ),
    "units": (
        lambda: of_cells(L.GRUCell(4), L.GRUCell(8)),
        ValueError,
        "^units: expected the same in all cells and directions, got 4 and 8",
    ),
    "class": (
        lambda: of_cells(L.GRUCell(4), L.LSTMCell(4)),
        ValueError,
        "^class: .* got 'GRUCell' and 'LSTMCell'",
    ),
    "bias": (
        lambda: of_layers(L.LSTM(4), L.LSTM(4, use_bias=False, go_backwards=True)),
        ValueError,
        "^use_bias: .* got True and False",
    ),
    "units of directions": (
        lambda: of_layers(L.LSTM(4), L.LSTM(5, go_backwards=True)),
        ValueError,
        "^units: .* got 4 and 5",
    ),
    "recurrent dropout of cells": (
        lambda: of_cells(L.SimpleRNNCell(4), L.SimpleRNNCell(4, recurrent_dropout=0.1)),
        ValueError,
        r"^recurrent_dropout: .* got 0\.0 and 0\.1",
    ),
    "activations": (
        lambda: of_cells(L.SimpleRNNCell(4), L.SimpleRNNCell(4, activation="relu")),
        ValueError,
        "^activation: .* got 'tanh' and 'relu'",
    ),
    "reset_after": (
        lambda: of_cells(L.GRUCell(4), L.GRUCell(4, reset_after=False)),
        ValueError,
        "^reset_after: .* got True and False",
    ),
    "dtype": (
        lambda: of_cells(L.GRUCell(4), L.GRUCell(4, dtype="float64")),
        ValueError,
        "^dtype: .* got 'float32' and 'float64'",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_has_no_counterpart(name):
    make, error, words = ERRORS[name]
    layer = make()
    with pytest.raises(error, match=words):
        fastrnn.from_keras(layer)


@pytest.mark.parametrize(
    "layer, error, words",
    [
        (nn.LSTMCell(3, 4), TypeError, r"layer: expected an LSTM, .* got torch\.nn\.modules\.rnn\.LSTMCell"),
        (fastrnn.Stateful(fastrnn.GRU(3, 4)), TypeError, r"layer: .* got fastrnn\.stateful\.Stateful"),
        (
            fastrnn.LSTM(3, 4, proj_size=2),
            ValueError,
            "proj_size: expected 0, got 2: Keras has no projections",
        ),
        (nn.GRU(3, 4, 2, bidirectional=True), ValueError, "num_layers: expected 1 .* got 2"),
    ],
    ids=["cell", "stateful", "projection", "stack in two directions"],
)
def test_what_keras_does_not_have(layer, error, words):
    with pytest.raises(error, match=words):
        fastrnn.to_keras_weights(layer)
