"""Which tests run; fixtures: every instruction set of the machine and its GPU, a fixed seed."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import fields

import pytest
import torch
from cases import GPU_MISSING, Case
from covering import cover
from devices import CUDA, ISAS, use_device, use_isa

import fastrnn


def pytest_addoption(parser):
    parser.addoption(
        "--thorough",
        action="store_true",
        help="run all cases of each test; otherwise only so many that any two values of its parameters meet",
    )
    parser.addoption(
        "--rest",
        action="store_true",
        help="with --thorough: leave out the cases that run without it, unless they do more with it",
    )
    parser.addoption(
        "--phase",
        choices=["parallel", "apart"],
        help="run only tests that may run beside others, in processes of one thread; or only the other ones",
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "threads: uses several threads, and is disturbed by other processes")
    config.addinivalue_line("markers", "thorough: runs only with --thorough")
    config.addinivalue_line(
        "markers", "quick(n): without --thorough any n values of its parameters meet, not 2; 0: one case runs"
    )
    config.addinivalue_line("markers", "cuda: runs on a GPU")
    config.addinivalue_line("markers", "alone: looks at the whole GPU, so nothing else may run there")


def pytest_report_header():
    gpu = f"nothing runs on cuda: {GPU_MISSING}" if GPU_MISSING else torch.cuda.get_device_name()
    return f"fastrnn {fastrnn.__file__}, torch {torch.__version__}, ISAs {' '.join(ISAS)}, {gpu}"


def runs_apart(item):
    return any(item.get_closest_marker(name) for name in ("threads", "alone"))


def parts_of(value):
    """What is varied in a parameter."""
    if isinstance(value, Case):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return value if isinstance(value, Mapping) else {"": value}


def describe(item):
    """What is varied between the cases of a test, by name, as text."""
    parts = {"apart": runs_apart(item)}
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    for name, value in parameters.items():
        parts |= {f"{name}.{part}": x for part, x in parts_of(value).items()}
    return {name: repr(x) for name, x in parts.items()}


def choose_quick(items):
    """Without --thorough."""
    tests = defaultdict(list)
    for item in items:
        if item.get_closest_marker("thorough") is None:
            tests[item.nodeid.split("[")[0]].append(item)
    for cases in tests.values():
        marker = cases[0].get_closest_marker("quick")
        n = 2 if marker is None else marker.args[0]
        yield from (cases[i] for i in cover(n, [describe(item) for item in cases]))


@pytest.hookimpl(trylast=True)  # of the tests that -k and -m leave
def pytest_collection_modifyitems(config, items):
    chosen = items if config.option.thorough else choose_quick(items)
    if config.option.thorough and config.option.rest:
        quick = set(choose_quick(items))
        chosen = [item for item in items if item not in quick or "thorough" in item.fixturenames]
    if config.option.phase:
        chosen = (item for item in chosen if runs_apart(item) == (config.option.phase == "apart"))
    chosen = list(chosen)
    left_out = set(items) - set(chosen)
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    # What takes long starts first, so that no process waits for it in the end.
    items[:] = sorted(chosen, key=lambda item: item.get_closest_marker("thorough") is None)


def pytest_sessionfinish(session, exitstatus):
    # A file may have no test of a phase.
    if session.config.option.phase and exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK


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


@pytest.fixture(scope="session")
def thorough(pytestconfig):
    """Whether a test may take long."""
    return pytestconfig.option.thorough


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
