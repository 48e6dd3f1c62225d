"""The operators for tensors without data, of which torch.compile and torch.export make graphs.

Their Meta kernels know what comes out. torch by itself wants all tensors of a call on one device, but
batch_sizes are on the CPU.
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
