"""What tests run on: the instruction sets of this machine, and its GPU."""

import pytest
from cases import GPU_MISSING, fastrnn_on, float32_products

from fastrnn import _C

# Those for which all kernels are compiled; the others have products of int8 alone.
ISAS = tuple(isa for isa in _C.isas_available() if isa in {row.split()[0] for row in _C.isa_flags.split(",")})
CUDA = [] if GPU_MISSING else [pytest.param("cuda", marks=pytest.mark.cuda)]


def use_isa(name):
    before = _C.isa()
    _C.set_isa(name)
    assert _C.isa() == name
    yield name
    _C.set_isa(before)


def use_device(device):
    # Of float32 what is compared is the full precision: tf32 has tests of its own.
    with fastrnn_on(device), float32_products("ieee"):
        yield device
