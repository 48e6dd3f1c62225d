"""fastrnn: LSTM, GRU and Elman RNN layers and cells that replace those of torch.nn one for one.

    fastrnn.LSTM, GRU, RNN, LSTMCell, GRUCell, RNNCell    the modules
    fastrnn.PeepholeLSTM, LayerNormLSTM, LayerNormGRU, IndRNN, LiGRU, sLSTM     layers that torch.nn lacks
    fastrnn.convert(model), fastrnn.revert(model)         switch the torch.nn layers inside a model, and back
    fastrnn.summary(model)                                lists which library computes each layer
    fastrnn.install(), fastrnn.uninstall()                put the modules under torch.nn's names, and back
    fastrnn.functional                                    the same as functions of tensors
    fastrnn.Stateful(layer)                               keeps the state from call to call
    fastrnn.freeze(model, dtype)                          a copy for inference with packed weights
    fastrnn.build_cell(path)                              a layer of a cell of your own, from its header
    fastrnn.from_keras(layer), to_keras_weights(layer)    the layers of Keras as fastrnn's, and back
    fastrnn.onnx                                          export to ONNX
    fastrnn.from_onnx(model)                              the layers of an ONNX model
    fastrnn.KindError                                     raised if an argument is of the wrong type

`python -m fastrnn` prints what was built and what was chosen on this machine.
"""

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

_BUILD = "`pip install --no-build-isolation --force-reinstall --no-deps .` in fastrnn's source folder"


def _load() -> None:
    """Load fastrnn._C, which registers the operators, or raise an ImportError that says what to do."""
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(f"fastrnn needs torch: install torch, then build fastrnn with {_BUILD}") from None

    try:
        _C = import_module("fastrnn._C")
    except ModuleNotFoundError as error:
        if error.name != "fastrnn._C":
            raise
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise ImportError(
            f"fastrnn is not built for Python {python} in {__path__[0]}: build it with {_BUILD}, "
            "and start Python in another folder"
        ) from None
    except ImportError as error:
        if error.path is None:  # not an error of the dynamic loader: fastrnn._C itself says what is wrong
            raise
        raise ImportError(
            f"fastrnn._C does not load with torch {torch.__version__}, probably built for another one: "
            f"build it again with {_BUILD} ({error})"
        ) from error

    if _C.torch_version.split(".")[:2] != torch.__version__.split(".")[:2]:
        raise ImportError(
            f"fastrnn was built for torch {_C.torch_version} and this is torch {torch.__version__}: "
            f"build it again with {_BUILD}"
        )
    _C.isa()  # a wrong FASTRNN_CPU_ISA is an error of the import, not of the first forward


_load()

# These need the operators. Some register functions that torch looks up.
from . import functional, onnx  # noqa: E402
from .conversion import convert, revert, summary  # noqa: E402
from .export import fake  # noqa: E402, F401
from .export.from_onnx import from_onnx  # noqa: E402
from .frozen import freeze  # noqa: E402
from .functional import KindError  # noqa: E402
from .installation import install, uninstall  # noqa: E402
from .keras_weights import from_keras, to_keras_weights  # noqa: E402
from .layers import IndRNN, LayerNormGRU, LayerNormLSTM, LiGRU, PeepholeLSTM, sLSTM  # noqa: E402
from .modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell  # noqa: E402
from .own_cell import BuildError, build_cell  # noqa: E402
from .stateful import Stateful  # noqa: E402
from .transforms import flops, per_sample, quantization, vmap  # noqa: E402, F401

try:
    __version__ = version("fastrnn")
except PackageNotFoundError:  # built in place, not installed
    __version__ = "unknown"

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "BuildError",
    "GRUCell",
    "IndRNN",
    "KindError",
    "LSTMCell",
    "LayerNormGRU",
    "LayerNormLSTM",
    "LiGRU",
    "PeepholeLSTM",
    "RNNCell",
    "Stateful",
    "build_cell",
    "convert",
    "freeze",
    "from_keras",
    "from_onnx",
    "functional",
    "install",
    "onnx",
    "revert",
    "sLSTM",
    "summary",
    "to_keras_weights",
    "uninstall",
]
