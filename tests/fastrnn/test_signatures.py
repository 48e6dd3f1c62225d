"""The types of the public API. mypy checks each assert_type here (make lint), and the tests run the calls."""

import inspect
import typing
from collections.abc import Iterator

import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from typing_extensions import assert_type

import fastrnn
import fastrnn.onnx
from fastrnn import cells, functional, layers

Pair = tuple[Tensor, Tensor]
X = torch.zeros(5, 2, 3)
PACKED = pack_sequence([torch.zeros(5, 3), torch.zeros(4, 3)])


def test_lstm() -> None:
    layer = fastrnn.LSTM(3, 4, num_layers=2, batch_first=False)
    for call in (layer, layer.forward):
        assert_type(call(X), tuple[Tensor, Pair])
    h = torch.zeros(2, 2, 4)
    output, (h_n, c_n) = layer(X, (h, h), lengths=[5, 3])
    assert_type(output, Tensor)
    assert_type(c_n, Tensor)
    assert_type(layer(X, lengths=torch.tensor([5, 3])), tuple[Tensor, Pair])
    assert_type(layer(X, resets=torch.zeros(5, 2).bool()), tuple[Tensor, Pair])
    assert_type(layer(PACKED), tuple[PackedSequence, Pair])
    assert_type(layer(X, return_all_states=True), tuple[Tensor, Pair, Pair])
    assert_type(
        layer(PACKED, return_all_states=True),
        tuple[PackedSequence, Pair, tuple[PackedSequence, PackedSequence]],
    )
    assert_type(layer.hidden_size, int)


def test_layers_of_one_state() -> None:
    for layer in (fastrnn.GRU(3, 4), fastrnn.RNN(3, 4, nonlinearity="relu")):
        assert_type(layer(X), tuple[Tensor, Tensor])
        assert_type(layer.forward(X, torch.zeros(1, 2, 4)), tuple[Tensor, Tensor])
        assert_type(layer(PACKED), tuple[PackedSequence, Tensor])
        assert_type(layer(X, return_all_states=True), tuple[Tensor, Tensor, Tensor])
        assert_type(layer(PACKED, return_all_states=True), tuple[PackedSequence, Tensor, PackedSequence])


def is_wanted() -> bool:
    return True


def test_states_that_may_be_wanted() -> None:
    """Both forms of the result stay possible for a type checker."""
    results = fastrnn.GRU(3, 4)(X, return_all_states=is_wanted())
    if len(results) == 3:
        assert_type(results[0], Tensor)


def test_cells() -> None:
    assert_type(fastrnn.LSTMCell(3, 4)(X[0]), Pair)
    assert_type(fastrnn.GRUCell(3, 4)(X[0], torch.zeros(2, 4)), Tensor)
    assert_type(fastrnn.RNNCell(3, 4, nonlinearity="tanh")(X[0]), Tensor)


def test_functions() -> None:
    lstm, gru = fastrnn.LSTM(3, 4), fastrnn.GRU(3, 4)
    of_lstm, of_gru = list(lstm.parameters()), list(gru.parameters())
    of_rnn = list(fastrnn.RNN(3, 4).parameters())
    assert_type(functional.lstm(X, None, of_lstm, dropout=0.1, lengths=[5, 3]), tuple[Tensor, Pair])
    assert_type(functional.lstm(PACKED, None, of_lstm), tuple[PackedSequence, Pair])
    assert_type(functional.lstm(X, None, of_lstm, return_all_states=True), tuple[Tensor, Pair, Pair])
    assert_type(functional.gru(X, torch.zeros(1, 2, 4), of_gru), tuple[Tensor, Tensor])
    assert_type(functional.gru(X, None, of_gru, return_all_states=True), tuple[Tensor, Tensor, Tensor])
    assert_type(functional.rnn(X, None, of_rnn, nonlinearity="relu"), tuple[Tensor, Tensor])
    assert_type(functional.lstm_cell(X[0], None, *of_lstm), Pair)
    assert_type(functional.gru_cell(X[0], None, *of_gru), Tensor)
    assert_type(functional.rnn_cell(X[0], None, *of_rnn), Tensor)


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = torch.nn.GRU(3, 4)


def test_switching() -> None:
    model = assert_type(fastrnn.convert(Model()), Model)
    (row,) = fastrnn.summary(model)
    assert_type(row.path, str)
    assert_type(row.parameters, int)
    assert_type(fastrnn.revert(model), Model)
    with fastrnn.install():
        assert isinstance(torch.nn.GRU(3, 4), fastrnn.GRU)


def test_keras() -> None:
    weights = assert_type(fastrnn.to_keras_weights(fastrnn.GRU(3, 4)), list[NDArray[typing.Any]])
    fastrnn.to_keras_weights(torch.nn.LSTM(3, 4))
    assert_type(weights[0].shape, tuple[typing.Any, ...])


def test_stateful() -> None:
    rnn = fastrnn.Stateful(fastrnn.LSTM(3, 4))
    assert_type(rnn, "fastrnn.Stateful[fastrnn.LSTM]")
    assert_type(rnn.layer, fastrnn.LSTM)
    assert_type(rnn(X), Tensor)
    assert_type(rnn(X, lengths=[5, 3]), Tensor)
    assert_type(rnn(X, return_all_states=True)[0], Tensor)
    assert_type(fastrnn.Stateful(torch.nn.GRU(3, 4))(PACKED), PackedSequence)
    assert_type(fastrnn.Stateful(fastrnn.GRUCell(3, 4))(X[0]), Tensor)
    rnn.detach()
    rnn.reset([0])


def public() -> Iterator[tuple[str, typing.Any]]:
    """The functions of the public API, and the public methods of its classes."""
    modules = (fastrnn, functional, fastrnn.onnx, cells, layers)
    for name, item in ((name, getattr(module, name)) for module in modules for name in module.__all__):
        if inspect.isfunction(item):
            yield name, item
        elif inspect.isclass(item):
            for method, function in vars(item).items():
                if inspect.isfunction(function) and not method.startswith("_"):
                    yield f"{name}.{method}", function


@pytest.mark.parametrize("function", [pytest.param(function, id=name) for name, function in public()])
def test_python_shows_the_types(function: typing.Any) -> None:
    """Of every argument and of the result, also of a forward that TorchScript compiles another one for."""
    arguments = set(inspect.signature(function).parameters) - {"self"}
    assert typing.get_type_hints(function).keys() == {*arguments, "return"}
