"""Switch the recurrent layers and cells in a model to fastrnn and back; list which library computes each."""

import copyreg
import functools
import inspect
import re
import types
import warnings
from abc import ABC
from collections.abc import Iterator
from types import CodeType
from typing import Any, NamedTuple, TypeVar

import torch
from torch.nn import Module
from torch.nn.utils.parametrize import type_before_parametrizations

from . import modules
from .layers import RecurrentLayer

__all__ = ["convert", "revert", "summary"]

M = TypeVar("M", bound=Module)

_TO_FAST: dict[type, type] = {getattr(torch.nn, name): getattr(modules, name) for name in modules.__all__}
_TO_TORCH = {fast: plain for plain, fast in _TO_FAST.items()}

# What fastrnn's forward or torch.nn's looks up on the module. If a subclass defines such a name, the two may
# compute different things; not so with the names in _HARMLESS.
_HARMLESS = {
    *("__constants__", "__jit_unused_properties__", "all_weights", "checkpoint_gates"),
    *("flatten_parameters", "reset_parameters", "_has_own_methods", "_weight_was_set", "_size_was_set"),
}
_MEANINGS = {fast: set(dir(fast)).difference(dir(Module), dir(ABC), _HARMLESS) for fast in _TO_TORCH}
_ATTRIBUTES = {"_flat_weights", "__getattr__", "__getattribute__"}

_KINDS = "LSTM, GRU, RNN, LSTMCell, GRUCell or RNNCell"

_TORCH_OPERATORS = re.compile(r"aten::(lstm|gru|rnn_tanh|rnn_relu)(_cell)?\(")

# Names in a method for pickling or copying that builds the layers anew, and in one that keeps them.
_REBUILDING = {"__init__", "load_state_dict"}
_KEEPING = {"__dict__", "__setstate__", "__reduce__", "__reduce_ex__", "__deepcopy__"}


class Layer(NamedTuple):
    """A recurrent layer or cell in a model: a row of `summary`."""

    path: str  # as in named_modules(), "" for the model itself
    kind: str  # the name of its class
    runs_on: str  # "fastrnn"; "torch.nn", which convert can switch; or "left", which it cannot
    note: str  # why it is left, or what switches it
    parameters: int  # how many numbers its parameters hold


class Summary(tuple[Layer, ...]):
    """What `summary` returns: a tuple of `Layer` that prints as a table."""

    def __str__(self) -> str:
        if not self:
            return f"no {_KINDS}"
        rows = [("path", "class", "parameters", "runs on", "")]
        rows += [(r.path or "(root)", r.kind, f"{r.parameters:,}", r.runs_on, r.note) for r in self]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        widths[-1] = 0
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

    __repr__ = __str__


def summary(module: Module) -> Summary:
    """List which library computes each LSTM, GRU, RNN and cell in `module`.

        print(fastrnn.summary(model))

    Returns a tuple that prints as a table. Each row is a `Layer(path, kind, runs_on, note, parameters)`.
    `runs_on` is "fastrnn"; "torch.nn" if `convert` can switch the layer; "left" if it cannot, and `note` says
    why. A part that TorchScript compiled is one row, and so is a quantized layer.

    Raises TypeError if `module` is not a torch.nn.Module.
    """
    _check(module, "summary")
    return Summary(
        Layer(
            path,
            m.original_name
            if isinstance(m, torch.jit.ScriptModule)
            else type_before_parametrizations(m).__name__,
            runs_on,
            note,
            sum(p.numel() for p in m.parameters()),
        )
        for path, m, runs_on, note in _find(module)
    )


def convert(module: M, *, subclasses: bool = False) -> M:
    """Let fastrnn compute every torch.nn.LSTM, GRU, RNN, LSTMCell, GRUCell and RNNCell in `module`.

    Each layer stays the same object; only its class changes. So parameters, optimizers, shared weights and
    modules, hooks, the training flag, devices and dtypes stay as they are. `module` itself may be such a
    layer. Layers with parametrizations (torch.nn.utils.parametrize) are converted, too.

    Args:
        module: the model, changed in place
        subclasses: convert instances of a user's subclass, too. Its `forward` must be inherited or call
            `super().forward`, and it must not define other names that `forward` looks up. Such a layer gets
            a new class of the same name, which derives from the user's class and from fastrnn's.

    Returns:
        `module`

    Raises:
        TypeError: `module` is not a torch.nn.Module.

    Warns:
        UserWarning: layers are left as they are: subclasses, modules whose `forward` was replaced on the
            instance, ScriptModules, quantized layers. The warning lists them with the reasons of `summary`.
        UserWarning: there is no layer to convert.
        UserWarning: the `__setstate__`, `__reduce__` or `__deepcopy__` of a class seems to build its layers
            anew, so that copies and loaded models have torch.nn's layers again.
    """
    _check(module, "convert")
    found, left, switched = False, [], set()
    for path, m, runs_on, note in _find(module):
        found = True
        if runs_on == "torch.nn":
            old = type_before_parametrizations(m)
            if old not in _TO_FAST and not subclasses:
                left.append(_name(path, m, note))
                continue
            try:
                _set_class(m, _TO_FAST.get(old) or _rebase(old))
                switched.add(m)
                if isinstance(m, modules._Layer):
                    m._take_over()
            except TypeError as error:  # of a metaclass, or of an __init_subclass__ that wants arguments
                left.append(_name(path, m, f"a subclass that cannot be derived from ({error})"))
        elif runs_on == "left":
            left.append(_name(path, m, note))
    if left:
        _warn("fastrnn.convert left these modules as they are: " + "; ".join(left))
    if not found:
        _warn(
            f"fastrnn.convert found no {_KINDS} in {type(module).__qualname__}. "
            "It does not see functions, and no modules in a plain list or dict"
        )
    rebuilt = {type(m).__qualname__ for m in module.modules() if _rebuilds(m) and switched & set(m.modules())}
    if rebuilt:
        _warn(
            f"fastrnn.convert: {', '.join(sorted(rebuilt))} seems to build its layers anew when it is copied "
            "or loaded. The copy has torch.nn's layers: convert it, too, or make it under fastrnn.install()"
        )
    return module


def revert(module: M) -> M:
    """Undo `convert`: let torch.nn compute every fastrnn layer and cell in `module`, in the same way.

    This switches layers that were built as fastrnn's, too. Layers that `subclasses=True` switched get their
    own class back.

    Args:
        module: the model, changed in place

    Returns:
        `module`

    Raises:
        TypeError: `module` is not a torch.nn.Module.

    Warns:
        UserWarning: layers are left as they are: instances of a user's subclass of a fastrnn class, what
            TorchScript compiled, and what torch.nn cannot compute: layers of its own, a GRU with
            `reset_after=False`, other nonlinearities, `recurrent_dropout` and `zoneout`. The warning lists
            them.
    """
    _check(module, "revert")
    left = []
    for path, m, runs_on, note in _find(module):
        old = type_before_parametrizations(m)
        if not (runs_on == "fastrnn" or _base_in(_TO_TORCH, old)):
            continue
        if runs_on == "left" or old not in _TO_TORCH and not issubclass(old, _Rebased):
            left.append(_name(path, m, note or "a user's subclass of fastrnn's class"))
        elif m._is_beyond_torch:
            left.append(_name(path, m, "its cell or its noise is none of torch.nn's"))
        else:
            _set_class(m, _TO_TORCH.get(old, old.__bases__[0]))
    if left:
        _warn("fastrnn.revert left these modules as they are: " + "; ".join(left))
    return module


def _check(module: object, function: str) -> None:
    if not isinstance(module, Module):
        raise TypeError(
            f"fastrnn.{function}: module: expected a torch.nn.Module, got {type(module).__name__}"
        )


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)


def _name(path: str, m: Module, reason: str) -> str:
    return f"{path or '(root)'} ({type(m).__module__}.{type(m).__qualname__}): {reason}"


# ---- finding the layers ----


def _find(module: Module) -> Iterator[tuple[str, Module, str, str]]:
    """Path, module, `runs_on` and `note` of every recurrent part of `module`."""
    inside: str | None = None  # how the paths begin inside of the last recurrent or compiled part
    for path, m in module.named_modules():
        if inside is not None and path.startswith(inside):
            continue
        result = _examine(m)
        if result is not None:
            yield path, m, *result
        if isinstance(m, torch.jit.ScriptModule) or result is not None:
            inside = f"{path}." if path else ""


def _examine(m: Module) -> tuple[str, str] | None:
    """`runs_on` and `note` of a recurrent module; None for any other."""
    if isinstance(m, torch.jit.ScriptModule):
        graph = _graph_of(m)
        if _TORCH_OPERATORS.search(graph):
            return "left", "a ScriptModule, whose code is fixed: convert before torch.jit.script or trace"
        return ("fastrnn", "a ScriptModule") if "fastrnn::" in graph else None
    cls = type_before_parametrizations(m)
    if any(c.__module__.startswith("torch.ao.") and c.__name__ in modules.__all__ for c in cls.__mro__):
        return "left", "quantized, which fastrnn does not compute"
    if isinstance(m, RecurrentLayer):
        return "fastrnn", "a layer that torch.nn does not have"
    if any(c.__module__ == "fastrnn.frozen" for c in cls.__mro__):
        return "fastrnn", "frozen"
    if not isinstance(m, (torch.nn.RNNBase, torch.nn.RNNCellBase)):
        return None
    plain, fast = _base_in(_TO_FAST, cls), _base_in(_TO_TORCH, cls)
    if plain is None:
        return "left", "derived from RNNBase or RNNCellBase, with a forward of its own"
    if "forward" in vars(m):
        return "left", "its forward is replaced on the instance"
    own = [c for c in cls.__mro__ if c not in (fast or plain).__mro__ and c is not _Rebased]
    reason = _find_own_forward(own)
    if fast is not None:
        return ("fastrnn", "") if reason is None else ("left", reason)
    if not own:
        return "torch.nn", ""
    reason = reason or _find_own_meaning(m, own, _MEANINGS[_TO_FAST[plain]])
    if reason is None:
        return "torch.nn", "a subclass, which convert(..., subclasses=True) switches"
    return "left", reason


def _base_in(table: dict[type, type], cls: type) -> type | None:
    return next((c for c in cls.__mro__ if c in table), None)


def _graph_of(m: torch.jit.ScriptModule) -> str:
    """The graph that a ScriptModule computes, as text; "" if it has no forward."""
    for name in ("forward", "forward__0"):  # the second if the layer itself was compiled
        try:
            return str(getattr(m, name).inlined_graph)
        except (AttributeError, RuntimeError):
            pass
    return ""


def _find_own_forward(classes: list[type]) -> str | None:
    """Why a forward of `classes` does not call the forward that they inherit; None if each does."""
    for c in classes:
        methods = map(inspect.unwrap, filter(inspect.isfunction, vars(c).values()))
        if "forward" in vars(c) and not any(
            {"super", "forward"} <= names for method in methods for names in _names_in(method.__code__)
        ):
            return f"a subclass, and forward of {c.__qualname__} does not call super().forward"
    return None


def _find_own_meaning(m: Module, classes: list[type], meanings: set[str]) -> str | None:
    """Which names that a forward looks up, `meanings`, this subclass defines; None if it defines none."""
    of_classes = {name for c in classes for name in vars(c)} & (meanings | _ATTRIBUTES)
    of_instance = {*vars(m), *m._modules, *m._parameters, *m._buffers} & meanings
    names = sorted(of_classes | of_instance)
    return f"a subclass, with {', '.join(names)} of its own" if names else None


def _names_in(code: CodeType) -> Iterator[set[str]]:
    """The names that a function looks up, and those that each function inside it looks up, as sets."""
    yield set(code.co_names)
    for constant in code.co_consts:
        if inspect.iscode(constant):
            yield from _names_in(constant)


def _rebuilds(m: Module) -> bool:
    """Whether a method of its class for pickling or copying seems to build its modules anew."""
    for method in ("__setstate__", "__reduce__", "__reduce_ex__", "__deepcopy__"):
        definer = next((c for c in type(m).__mro__ if method in vars(c)), object)
        found: Any = vars(definer).get(method)
        function = inspect.unwrap(found)
        if definer.__module__.split(".")[0] in ("torch", "fastrnn") or not inspect.isfunction(function):
            continue
        names = set().union(*_names_in(function.__code__))
        if names & _REBUILDING or not names & _KEEPING:
            return True
    return False


# ---- changing the class ----


def _set_class(m: Module, new: type) -> None:
    old = type_before_parametrizations(m)
    if type(m) is old:
        m.__class__ = new
    else:
        # register_parametrization gave it a class of its own, with a property for each parametrized tensor.
        # Copies of the module share that class, so it stays, and a new one is made on the new base.
        m.__class__ = type(type(m).__name__, (new,), dict(vars(type(m))))


class _Rebased:
    """Marks a class that `_rebase` made. No import finds such a class, so pickle stores the user's class."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        reduced: Any = super().__reduce_ex__(max(protocol, 2))
        function, arguments, *rest = reduced
        if function is copyreg.__newobj__:  # type: ignore[attr-defined]  # not a __reduce__ of the user's
            function, arguments = _new_rebased, (type(self).__bases__[0], *arguments[1:])
        return function, arguments, *rest


@functools.cache
def _rebase(cls: type) -> type:
    """A subclass of `cls` in which `super().forward` calls fastrnn: its class comes before torch.nn's."""
    fast = next(_TO_FAST[c] for c in cls.__mro__ if c in _TO_FAST)
    copied = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    return types.new_class(cls.__name__, (cls, fast, _Rebased), exec_body=lambda names: names.update(copied))


def _new_rebased(cls: type, *arguments: Any) -> object:
    rebased = _rebase(cls)
    return rebased.__new__(rebased, *arguments)
