"""Switch the recurrent layers and cells inside a model to fastrnn and back."""

import warnings
from typing import TypeVar

import torch
from torch.nn.utils.parametrize import type_before_parametrizations

from . import modules

__all__ = ["convert", "revert"]

M = TypeVar("M", bound=torch.nn.Module)

_TO_FAST = {getattr(torch.nn, name): getattr(modules, name) for name in modules.__all__}
_TO_TORCH = {fast: plain for plain, fast in _TO_FAST.items()}


def convert(module: M) -> M:
    """Let fastrnn compute every torch.nn.LSTM, GRU, RNN, LSTMCell, GRUCell and RNNCell in `module`.

    The modules stay the very same objects and only change their class, so parameters, optimizers, shared
    weights and modules, hooks, the training flag, devices and dtypes stay as they are. `module` itself may
    be such a layer. Layers with parametrizations (torch.nn.utils.parametrize) are converted too.

    Left as they are, and listed in one UserWarning: instances of a user's own subclass, which may compute
    something else, and modules whose `forward` was replaced on the instance, which a change of class does
    not reach.

    Returns `module`. Raises TypeError if it is not a torch.nn.Module.
    """
    return _switch(module, _TO_FAST)


def revert(module: M) -> M:
    """Undo `convert`: make every fastrnn layer and cell in `module` the torch.nn one again, in the same way.

    Modules that were constructed as fastrnn's are switched as well; a user's subclass of a fastrnn class is
    left and listed in a UserWarning.

    Returns `module`. Raises TypeError if it is not a torch.nn.Module.
    """
    return _switch(module, _TO_TORCH)


def _switch(module, table):
    """Give every module whose class is a key of `table` the class it maps to."""
    from_fast = table is _TO_TORCH
    verb = "revert" if from_fast else "convert"
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"fastrnn.{verb}: module: expected a torch.nn.Module, got {type(module).__name__}")

    left = []
    for path, m in module.named_modules():
        is_recurrent = isinstance(m, (torch.nn.RNNBase, torch.nn.RNNCellBase))
        is_fast = isinstance(m, tuple(_TO_TORCH))
        if not is_recurrent or is_fast != from_fast:
            continue
        old = type_before_parametrizations(m)
        if old not in table:
            left.append(f"{path or '(root)'} is a {old.__module__}.{old.__qualname__}, a class of its own")
        elif "forward" in vars(m):
            left.append(f"{path or '(root)'} has its forward replaced on the instance")
        elif type(m) is old:
            m.__class__ = table[old]
        else:
            # register_parametrization gave it a class of its own, with one property a parametrized tensor.
            # Copies of the module share that class, so it is rebuilt on the new base and not changed.
            m.__class__ = type(type(m).__name__, (table[old],), dict(vars(type(m))))
    if left:
        warnings.warn(f"fastrnn.{verb} left these modules as they are: " + "; ".join(left), stacklevel=3)
    return module
