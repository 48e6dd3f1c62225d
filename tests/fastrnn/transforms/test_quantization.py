"""torch.ao.quantization treats fastrnn's layers as torch.nn's."""

import copy
import warnings
from collections import Counter

import pytest
import torch
import torch.ao.ns._numeric_suite as numeric_suite
from torch import nn
from torch.ao.nn import quantizable
from torch.ao.nn.quantized import dynamic
from torch.ao.quantization import (
    DeQuantStub,
    QuantStub,
    convert,
    default_dynamic_qconfig,
    default_qconfig,
    float16_dynamic_qconfig,
    get_dynamic_quant_module_class,
    prepare,
    quantize_dynamic,
    quantize_fx,
)

import fastrnn

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated"),
    pytest.mark.filterwarnings("ignore:.*quantize_per:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*quantize:UserWarning", "ignore:.*quantized:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*reduce_range:UserWarning"),
]

X = torch.randn(5, 2, 8, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    def __init__(self, library):
        super().__init__()
        self.lstm = library.LSTM(8, 16, num_layers=2, bidirectional=True)
        self.gru = library.GRU(32, 16)
        self.rnn = library.RNN(16, 16)
        self.lstm_cell, self.gru_cell = library.LSTMCell(16, 16), library.GRUCell(16, 16)
        self.rnn_cell = library.RNNCell(16, 16, nonlinearity="relu")
        self.out = nn.Linear(16, 4)

    def forward(self, x):
        y, _ = self.lstm(x)
        y, _ = self.gru(y)
        y, _ = self.rnn(y)
        h, _ = self.lstm_cell(y[-1])
        return self.out(self.rnn_cell(self.gru_cell(h)))


def pair(build):
    theirs, ours = build(nn).eval(), build(fastrnn).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def kinds(model, library):
    """The classes of the children, with those of fastrnn or torch.nn called the same."""
    own = "fastrnn.modules" if library is fastrnn else "torch.nn.modules.rnn"
    return [f"{type(m).__module__}.{type(m).__name__}".replace(own, "own") for m in model.children()]


SPECS = {
    "default": None,
    "one": {nn.LSTM},
    "layers": {nn.LSTM, nn.GRU},
    "cells": {nn.LSTMCell, nn.GRUCell, nn.RNNCell},
    "no layer": {nn.Linear},
    "path": {"gru"},
    "dict": {nn.GRU: default_dynamic_qconfig, nn.LSTM: float16_dynamic_qconfig, "rnn_cell": None},
}


@pytest.mark.parametrize("dtype", [torch.qint8, torch.float16], ids=str)
@pytest.mark.parametrize("spec", SPECS)
def test_dynamic(spec, dtype):
    theirs, ours = pair(Model)
    want = quantize_dynamic(theirs, SPECS[spec], dtype=dtype)
    got = quantize_dynamic(ours, SPECS[spec], dtype=dtype)
    assert kinds(got, fastrnn) == kinds(want, nn)
    assert kinds(ours, fastrnn) == kinds(theirs, nn), "the original changed, too"
    torch.testing.assert_close(got(X), want(X), rtol=0, atol=1e-4)


def test_dynamic_in_place_and_by_fastrnn_names():
    model = Model(fastrnn)
    quantize_dynamic(model, {fastrnn.LSTM, fastrnn.GRUCell}, inplace=True)
    assert type(model.lstm) is dynamic.LSTM and type(model.gru_cell) is dynamic.GRUCell
    assert type(model.gru) is fastrnn.GRU


@pytest.mark.parametrize("spec", [None, {"LSTM", "GRUCell"}], ids=["default", "types"])
@pytest.mark.parametrize("library", [nn, fastrnn], ids=["torch", "fastrnn"])
def test_dynamic_while_installed(library, spec):
    """Both libraries' layers, though torch.nn's names give one of them."""
    model = Model(library)
    with fastrnn.install():
        types = spec and {getattr(nn, name) for name in spec}
        quantized = quantize_dynamic(model, types)
    found = Counter(
        type(m).__module__ == "torch.ao.nn.quantized.dynamic.modules.rnn" for m in quantized.children()
    )
    assert found[True] == (2 if spec else 5)
    assert quantized(X).shape == (2, 4)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "LSTMCell", "GRUCell", "RNNCell"])
def test_from_float(name):
    layer = getattr(fastrnn, name)(3, 4)
    layer.qconfig = default_dynamic_qconfig
    with fastrnn.install():
        while_installed = getattr(dynamic, name).from_float(layer)
    for quantized in (while_installed, getattr(dynamic, name).from_float(layer)):
        assert type(quantized) is getattr(dynamic, name)
    assert type(layer) is getattr(fastrnn, name)
    assert get_dynamic_quant_module_class(type(layer)) is getattr(dynamic, name)


def test_from_float_refuses_what_it_refused():
    for wrong in (nn.Linear(2, 3), fastrnn.RNN(2, 3), fastrnn.GRUCell(2, 3)):
        with pytest.raises(AssertionError, match="only works for"):
            dynamic.LSTM.from_float(wrong)


class Static(nn.Module):
    def __init__(self, library):
        super().__init__()
        self.quant, self.lstm, self.dequant = QuantStub(), library.LSTM(8, 16, 2), DeQuantStub()

    def forward(self, x):
        return self.dequant(self.lstm(self.quant(x))[0])


def test_static():
    """LSTM by way of torch.ao.nn.quantizable.LSTM."""
    results = []
    for library, model in zip((nn, fastrnn), pair(Static), strict=True):
        model.qconfig = default_qconfig
        prepared = prepare(model)
        assert type(prepared.lstm) is quantizable.LSTM and type(model.lstm) is library.LSTM
        prepared(X)
        quantized = convert(prepared)
        assert type(quantized.lstm) is torch.ao.nn.quantized.LSTM
        results.append(quantized(X))
    torch.testing.assert_close(*results)


def test_numeric_suite():
    found = []
    for model in pair(Model):
        quantized = quantize_dynamic(model)
        weights = numeric_suite.compare_weights(model.state_dict(), quantized.state_dict())
        outputs = numeric_suite.compare_model_outputs(copy.deepcopy(model), copy.deepcopy(quantized), X)
        found.append((sorted(weights), sorted(outputs)))
    assert found[0] == found[1] and found[0][0] and found[0][1]


# ---- FX mode ----


@pytest.mark.parametrize("installed", [False, True])
def test_fx_mode(installed):
    """It compares types and has no table, so it finds the layers under fastrnn.install(); else it warns."""
    mapping = torch.ao.quantization.QConfigMapping().set_global(torch.ao.quantization.default_dynamic_qconfig)
    x = torch.randn(5, 3, 4)

    def quantize(library):
        torch.manual_seed(0)
        model = nn.Sequential(library.LSTM(4, 6))
        return quantize_fx.convert_fx(quantize_fx.prepare_fx(model.eval(), mapping, (x,)))

    want = quantize(nn)
    if installed:
        with fastrnn.install(), warnings.catch_warnings():
            warnings.filterwarnings("error", "torch.ao.quantization's FX mode")
            got = quantize(fastrnn)
        assert type(got.get_submodule("0")) is type(want.get_submodule("0"))
        assert torch.equal(got(x)[0], want(x)[0])
    else:
        with pytest.warns(UserWarning, match="FX mode leaves fastrnn's layers in float"):
            got = quantize(fastrnn)
        assert type(got.get_submodule("0")) is fastrnn.LSTM
