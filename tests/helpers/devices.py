"""What tests run on: the instruction sets of this machine, and its GPU."""

import pytest
from cases import GPU_MISSING, fastrnn_on, float32_products

from fastrnn import _C

ISAS = tuple(_C.isas_available())
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
