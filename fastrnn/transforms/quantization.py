"""Let torch.ao.quantization, which looks for torch.nn's layers by their exact class, find fastrnn's, too.

`import torch` has loaded all that is imported here.
"""

import functools
from importlib import import_module
from typing import Any

import torch

from ..conversion import _TO_FAST, _TO_TORCH


def _register():
    mappings: Any = import_module("torch.ao.quantization.quantization_mappings")
    # torch.ao.quantization.quantize is a function
    quantize: Any = import_module("torch.ao.quantization.quantize")
    dynamic: Any = import_module("torch.ao.nn.quantized.dynamic.modules.rnn")

    for table in (
        mappings.DEFAULT_DYNAMIC_QUANT_MODULE_MAPPINGS,
        mappings.DEFAULT_REFERENCE_STATIC_QUANT_MODULE_MAPPINGS,
        quantize.get_default_custom_config_dict()["float_to_observed_custom_module_class"],
    ):
        table.update({fast: table[plain] for plain, fast in _TO_FAST.items() if plain in table})
    quantize.propagate_qconfig_ = _under_both_names(quantize.propagate_qconfig_)
    for base in (dynamic.RNNBase, dynamic.RNNCellBase):
        base.from_float = _of_either_library(base.from_float.__func__)


def _under_both_names(propagate):
    """quantize_dynamic(model, {torch.nn.LSTM}) means fastrnn.LSTM, too, and the other way round."""

    @functools.wraps(propagate)
    def wrapper(module, qconfig_dict=None, *args, **kwargs):
        given = qconfig_dict or {}
        other = {_TO_FAST.get(cls) or _TO_TORCH.get(cls, cls): qconfig for cls, qconfig in given.items()}
        return propagate(module, {**other, **given}, *args, **kwargs)

    return wrapper


def _of_either_library(from_float):
    """`from_float` of a quantized class, which takes only the very class that has torch.nn's name now."""

    @functools.wraps(from_float)
    def wrapper(cls, module, *args, **kwargs):
        named: Any = getattr(torch.nn, type(module).__name__, None)
        if (type(module) in _TO_TORCH or type(module) in _TO_FAST) and type(module) is not named:
            twin = object.__new__(named)
            twin.__dict__ = module.__dict__
            module = twin
        return from_float(cls, module, *args, **kwargs)

    return classmethod(wrapper)


try:
    _register()
except (ImportError, AttributeError):  # a torch without it, or with another: nothing else here needs it
    pass
