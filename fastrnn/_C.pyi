# The extension module. csrc/torch/module.cpp says what is in it and of what types.
from typing import Any

def __getattr__(name: str) -> Any: ...
