"""Make a module one node in a graph of torch.fx, as torch.nn's layers are."""

import warnings
from typing import Any

import torch
from torch.fx import Proxy
from torch.fx.proxy import TraceError

__all__ = ["INSTALLED", "Leaf", "forward_error"]

# fastrnn's classes that have a name of torch.nn now (fastrnn.install), and torch.nn's own of that name
INSTALLED: dict[type, type] = {}

_Module = torch.nn.Module
_call = _Module.__call__


class Leaf(_Module):
    """A module that torch.fx records as one `call_module`.

    A Tracer records a module as one node only if its class is in torch's own namespace. It runs the forward
    of any other module, and the graph keeps what that did at the time, for example dropout in training. This
    class records the call before hooks of the module run: the node will run them.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if _Module.__call__ is _call:  # and what it does, without a function between
            run = self._compiled_call_impl or self._call_impl
            return run(*args, **kwargs)
        # A Tracer replaces Module.__call__ while it traces. Others may, too.
        tracer = _find_tracer(self, args, kwargs)
        if tracer is None:
            return super().__call__(*args, **kwargs)
        if type(tracer).__module__.startswith("torch.ao.quantization") and not INSTALLED:
            warnings.warn(
                "torch.ao.quantization's FX mode leaves fastrnn's layers in float: call it under "
                "fastrnn.install(), or fastrnn.revert(model) before it",
                stacklevel=2,
            )

        def record(*args: Any, **kwargs: Any) -> Any:
            return tracer.create_proxy("call_module", tracer.path_of_module(self), args, kwargs)

        return tracer.call_module(self, record, args, kwargs)


def _find_tracer(module: _Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The Tracer that records a call with these arguments, or None."""
    given = [*args, *kwargs.values()]
    given += [item for value in given if isinstance(value, (tuple, list)) for item in value]
    found = next((value for value in given if isinstance(value, Proxy)), None)
    if found is None:  # all arguments may be constants; under a Tracer the parameters are Proxies
        found = next((getattr(module, name) for name in module._parameters), None)
    return found.tracer if isinstance(found, Proxy) else None


def forward_error(module: _Module) -> TraceError:
    """The error for a Tracer that runs `module.forward` itself, as it does with its root."""
    return TraceError(
        f"{type(module).__name__}: torch.fx cannot trace its forward, only calls of it in another module: "
        "trace torch.nn.Sequential(layer), and call layer(input) there"
    )
