"""Let torch.ao.quantization find fastrnn's layers. It looks for torch.nn's layers by their exact class.

`import torch` has loaded all modules that this imports.
"""

import functools
from importlib import import_module
from typing import Any

import torch

from ..conversion import _TO_FAST, _TO_TORCH


def _register():
    mappings: Any = import_module("torch.ao.quantization.quantization_mappings")
    # The attribute torch.ao.quantization.quantize is a function.
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
    """In quantize_dynamic(model, {torch.nn.LSTM}) the class means fastrnn.LSTM, too, and vice versa."""

    @functools.wraps(propagate)
    def wrapper(module, qconfig_dict=None, *args, **kwargs):
        given = qconfig_dict or {}
        other = {_TO_FAST.get(cls) or _TO_TORCH.get(cls, cls): qconfig for cls, qconfig in given.items()}
        return propagate(module, {**other, **given}, *args, **kwargs)

    return wrapper


def _of_either_library(from_float):
    """`from_float` of a quantized class for layers of both libraries. By itself it takes only the class that
    has torch.nn's name at this moment."""

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
except (ImportError, AttributeError):  # a torch without these modules, or with others; nothing else needs it
    pass
