"""The operators on tensors without data, with which torch.compile and torch.export make graphs.

The Meta kernel of an operator knows the shapes and dtypes of its results. torch would call it by itself, but
only with all tensors on one device, and batch_sizes are always on the CPU.
"""

import torch

_META = torch._C.DispatchKeySet(torch._C.DispatchKey.Meta)


def _register(name: str):
    meta = torch.library.get_kernel(name, "Meta")

    @torch.library.register_fake(name, allow_override=True)
    def fake(*arguments):
        return meta.call_boxed(_META, *arguments)


for _name in ("layer", "layer_forward", "layer_backward"):
    _register(f"fastrnn::{_name}")
