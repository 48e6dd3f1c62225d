"""Put fastrnn's classes under torch.nn's names: code that builds torch.nn's layers then builds fastrnn's."""

import copyreg
from contextlib import AbstractContextManager
from typing import Any

import torch

from .conversion import _TO_FAST, _TO_TORCH
from .transforms.fx import INSTALLED

__all__ = ["install", "uninstall"]

_NAMESPACES = (torch.nn, torch.nn.modules, torch.nn.modules.rnn)


def install() -> AbstractContextManager[None]:
    """Let torch.nn.LSTM, GRU, RNN, LSTMCell, GRUCell and RNNCell be fastrnn's classes, in the whole process.

        fastrnn.install()                      # until fastrnn.uninstall()

        with fastrnn.install():                # until the end of the block
            model = some_library.build()       # its layers stay fastrnn's after that

    For libraries that build their layers themselves, perhaps when they load or copy a model, or that subclass
    torch.nn's classes. From now on such a name in torch.nn is fastrnn's class. This does not change modules
    that ran `from torch.nn import LSTM` before, subclasses that were defined before, and layers that exist
    already; `convert` switches these layers. For isinstance, a layer of torch.nn's own class is an instance
    of what torch.nn.LSTM is now. Copying and pickling it works; the pickle needs fastrnn where it is loaded.

    A second `install()` changes nothing. The end of a `with` block restores what was there at its
    `install()`: inside another block, or after a plain `fastrnn.install()`, fastrnn's classes stay.
    """
    return _Installation()


def uninstall() -> None:
    """Let torch.nn's names be torch.nn's own classes again, also inside a `with fastrnn.install()` block.

    Layers that were built meanwhile stay fastrnn's; `revert` switches them. Without an `install()` this does
    nothing.
    """
    INSTALLED.clear()
    _put(_TO_TORCH)
    for plain in _TO_FAST:
        copyreg.dispatch_table.pop(plain, None)


class _Installation:
    """What `install` returns: the context of a `with` statement."""

    def __init__(self) -> None:
        self._was_installed = bool(INSTALLED)
        self.__enter__()

    def __enter__(self) -> None:
        INSTALLED.update(_TO_TORCH)
        _put(_TO_FAST)
        for plain in _TO_FAST:
            copyreg.pickle(plain, _reduce)

    def __exit__(self, *error: object) -> None:
        if not self._was_installed:
            uninstall()


def _put(table: dict[type, type]) -> None:
    for namespace in _NAMESPACES:
        for old, new in table.items():
            if getattr(namespace, old.__name__) is old:  # not what someone else put there
                setattr(namespace, old.__name__, new)


def _reduce(module: torch.nn.Module) -> tuple[Any, ...]:
    """How pickle stores a layer of torch.nn's own class while fastrnn's class has the name of that class."""
    reduced: Any = module.__reduce_ex__(2)
    _, (cls, *_), *state = reduced
    return _new, (cls.__name__,), *state


def _new(name: str) -> torch.nn.Module:
    plain: Any = next(plain for plain in _TO_FAST if plain.__name__ == name)
    return plain.__new__(plain)
