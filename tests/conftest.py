"""Fixtures: every instruction set of the machine, a fixed seed."""

import pytest
import torch

import fastrnn
from fastrnn import _C

ISAS = tuple(_C.isas_available())


def pytest_report_header():
    return f"fastrnn {fastrnn.__file__}, torch {torch.__version__}, ISAs {' '.join(ISAS)}"


@pytest.fixture(params=ISAS)
def isa(request):
    """Run the test once on every instruction set that this machine has."""
    before = _C.isa()
    _C.set_isa(request.param)
    assert _C.isa() == request.param
    yield request.param
    _C.set_isa(before)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
