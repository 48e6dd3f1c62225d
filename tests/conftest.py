"""Fixtures: every instruction set of the machine and its GPU, a fixed seed."""

import pytest
import torch
from cases import GPU_MISSING
from devices import CUDA, ISAS, use_device, use_isa

import fastrnn


def pytest_configure(config):
    config.addinivalue_line("markers", "cuda: runs on a GPU")
    config.addinivalue_line("markers", "alone: looks at the whole GPU, so nothing else may run there")


def pytest_report_header():
    gpu = f"nothing runs on cuda: {GPU_MISSING}" if GPU_MISSING else torch.cuda.get_device_name()
    return f"fastrnn {fastrnn.__file__}, torch {torch.__version__}, ISAs {' '.join(ISAS)}, {gpu}"


@pytest.fixture(params=ISAS)
def isa(request):
    """Run the test once on every instruction set that this machine has."""
    yield from use_isa(request.param)


@pytest.fixture(params=["cpu", *CUDA])
def device(request):
    """Run the test with fastrnn on the CPU, and on the GPU if there is one."""
    yield from use_device(request.param)


@pytest.fixture(params=[*ISAS, *CUDA])
def target(request):
    """Run the test with fastrnn on every instruction set of the CPU, and on the GPU if there is one."""
    yield from (use_device if request.param == "cuda" else use_isa)(request.param)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
