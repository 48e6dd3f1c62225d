"""install and uninstall: torch.nn's names give fastrnn's classes for a while."""

import copy
import io
import pickle
import subprocess
import sys
from abc import ABC, abstractmethod

import pytest
import torch
from torch import nn

import fastrnn

NAMES = fastrnn.modules.__all__
OWN = {name: getattr(nn, name) for name in NAMES}  # torch.nn's own classes
FAST = {name: getattr(fastrnn, name) for name in NAMES}
NAMESPACES = (nn, nn.modules, nn.modules.rnn)
X = torch.randn(5, 2, 3)


def named():
    """What torch.nn's names give, which is the same everywhere."""
    classes = {name: {getattr(space, name) for space in NAMESPACES} for name in NAMES}
    assert all(len(found) == 1 for found in classes.values())
    return {name: found.pop() for name, found in classes.items()}


@pytest.fixture(autouse=True)
def nothing_stays():
    assert named() == OWN
    yield
    left = named()
    fastrnn.uninstall()
    assert left == OWN


@pytest.fixture
def installed():
    with fastrnn.install():
        yield


class Subclass(nn.GRU):
    """Defined before."""

    def forward(self, input, hx=None):
        output, state = super().forward(input, hx)
        return output * 2, state


def test_block():
    with fastrnn.install():
        assert named() == FAST
        layer = nn.LSTM(3, 4)
    assert named() == OWN
    assert type(layer) is fastrnn.LSTM and type(nn.LSTM(3, 4)) is OWN["LSTM"]


def test_without_block():
    fastrnn.install()
    assert named() == FAST
    fastrnn.install()
    fastrnn.uninstall()
    assert named() == OWN
    fastrnn.uninstall()
    assert named() == OWN


def test_nested():
    with fastrnn.install():
        with fastrnn.install():
            pass
        assert named() == FAST
        fastrnn.uninstall()
        assert named() == OWN
    assert named() == OWN
    fastrnn.install()
    with fastrnn.install():
        pass
    assert named() == FAST
    fastrnn.uninstall()


def test_error_in_the_block():
    with pytest.raises(KeyError, match="mine"), fastrnn.install():
        raise KeyError("mine")
    assert named() == OWN


def test_block_that_is_used_again():
    block = fastrnn.install()
    for _ in range(2):
        with block:
            assert named() == FAST
        assert named() == OWN


def test_name_that_someone_else_took():
    class Other(nn.LSTM):
        pass

    nn.LSTM = Other
    try:
        with fastrnn.install():
            assert nn.LSTM is Other and nn.GRU is fastrnn.GRU
        assert nn.LSTM is Other
    finally:
        nn.LSTM = OWN["LSTM"]


@pytest.mark.parametrize("name", NAMES)
def test_layers_of_torch_while_installed(name):
    """They compute, copy, pickle and count as instances as before."""
    layer = OWN[name](3, 4)
    x = X[0] if "Cell" in name else X
    want = layer(x)[0]
    with fastrnn.install():
        assert isinstance(layer, getattr(nn, name)) and issubclass(OWN[name], getattr(nn, name))
        others = set(NAMES) - {name}
        assert not any(
            isinstance(layer, getattr(nn, o)) or issubclass(OWN[name], getattr(nn, o)) for o in others
        )
        assert not isinstance(nn.Linear(1, 1), getattr(nn, name))
        stored = pickle.dumps(layer)
        file = io.BytesIO()
        torch.save(layer, file)
        copies = [copy.copy(layer), copy.deepcopy(layer), pickle.loads(stored)]
    copies += [pickle.loads(stored), torch.load(io.BytesIO(file.getvalue()), weights_only=False)]
    for other in copies:
        assert type(other) is OWN[name] and torch.equal(other(x)[0], want)
    assert not isinstance(layer, FAST[name]) and not issubclass(OWN[name], FAST[name])
    assert type(pickle.loads(pickle.dumps(layer))) is OWN[name]
    assert b"fastrnn" not in pickle.dumps(layer)


@pytest.mark.parametrize("name", NAMES)
def test_layers_of_fastrnn_afterwards(name):
    with fastrnn.install():
        layer = getattr(nn, name)(3, 4)
        stored = pickle.dumps(layer)
    x = X[0] if "Cell" in name else X
    for other in (pickle.loads(stored), pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert type(other) is FAST[name] and torch.equal(other(x)[0], layer(x)[0])
    assert isinstance(layer, OWN[name])
    fastrnn.revert(layer)
    assert type(layer) is OWN[name]


def test_pickles_from_before_load_as_fastrnn():
    stored = pickle.dumps(nn.Sequential(nn.GRU(3, 4)))
    with fastrnn.install():
        assert type(pickle.loads(stored)[0]) is fastrnn.GRU
    assert type(pickle.loads(stored)[0]) is nn.GRU


class Abstract(ABC, nn.RNNBase):
    @abstractmethod
    def scale(self): ...

    def forward(self, input, hx=None):
        output, state = super().forward(input, hx)
        return output * self.scale(), state


@pytest.mark.usefixtures("installed")
def test_subclass_defined_while_installed():
    class Mine(Abstract, nn.LSTM):
        def scale(self):
            return 2

    layer = Mine(3, 4)
    assert isinstance(layer, fastrnn.LSTM) and isinstance(layer, Abstract)
    plain = OWN["LSTM"](3, 4)
    plain.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(X)[0], plain(X)[0] * 2)
    assert not isinstance(plain, Mine) and not issubclass(nn.LSTM, Mine)
    fastrnn.uninstall()
    torch.testing.assert_close(layer(X)[0], plain(X)[0] * 2)
    assert type(copy.deepcopy(layer)) is Mine and isinstance(layer, nn.LSTM)


@pytest.mark.usefixtures("installed")
def test_subclass_defined_before():
    layer = Subclass(3, 4)
    assert isinstance(layer, nn.GRU) and not isinstance(layer, nn.LSTM)
    want = layer(X)[0]
    fastrnn.convert(layer, subclasses=True)
    assert isinstance(layer, fastrnn.GRU) and type(pickle.loads(pickle.dumps(layer))) is type(layer)
    torch.testing.assert_close(layer(X)[0], want)
    fastrnn.revert(layer)
    assert type(layer) is Subclass and torch.equal(layer(X)[0], want)


@pytest.mark.usefixtures("installed")
def test_convert_and_revert_while_installed():
    model = nn.Sequential(OWN["LSTM"](3, 4), nn.LSTM(3, 4), OWN["GRUCell"](3, 4))
    fastrnn.convert(model)
    assert [type(m) for m in model] == [fastrnn.LSTM, fastrnn.LSTM, fastrnn.GRUCell]
    fastrnn.revert(model)
    assert [type(m) for m in model] == [OWN["LSTM"], OWN["LSTM"], OWN["GRUCell"]]
    assert [row.runs_on for row in fastrnn.summary(model)] == ["torch.nn"] * 3


class Around(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor):
        return self.layer(x)[0]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("classes", [OWN, FAST], ids=["torch", "fastrnn"])
def test_script_and_compile_while_installed(classes):
    model = Around(classes["LSTM"](3, 4))
    want = model(X)
    torch.testing.assert_close(torch.jit.script(model)(X), want)
    if classes is FAST:
        torch.testing.assert_close(torch.compile(model, backend="eager")(X), want)


@pytest.mark.usefixtures("installed")
def test_models_of_torch_build_fastrnn():
    """What builds its layers by torch.nn's names, also when it is copied."""

    class Rebuilt(Around):
        def __init__(self):
            super().__init__(nn.LSTM(3, 4))

        def __deepcopy__(self, memo):
            return type(self)()

    assert type(copy.deepcopy(Rebuilt()).layer) is fastrnn.LSTM


def test_pickle_of_a_layer_of_torch_in_another_process(tmp_path):
    """It says where it comes from: fastrnn is imported, and is not installed there."""
    with fastrnn.install():
        (tmp_path / "layer").write_bytes(pickle.dumps(OWN["LSTM"](3, 4)))
    program = f"import pickle; print(type(pickle.load(open({str(tmp_path / 'layer')!r}, 'rb'))))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "<class 'torch.nn.modules.rnn.LSTM'>"
