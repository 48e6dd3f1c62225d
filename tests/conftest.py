"""Which tests run; fixtures: every instruction set of the machine and its GPU, a fixed seed."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import fields

import pytest
import torch
from cases import GPU_MISSING, Case
from devices import CUDA, ISAS, use_device, use_isa
from pairwise import cover_pairs_of

import fastrnn

THREADS_WORK = 192 * 1024  # multiply-adds from which a layer may use a second thread


def pytest_addoption(parser):
    parser.addoption(
        "--thorough",
        action="store_true",
        help="run all cases of each test; otherwise so many that any two values of its parameters meet",
    )
    parser.addoption(
        "--threads",
        choices=["one", "several"],
        help="run only tests for which one thread is enough, or only those that use several",
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "threads: uses several threads, and is disturbed by other processes")
    config.addinivalue_line("markers", "thorough: takes long, and runs only with --thorough")
    config.addinivalue_line("markers", "cuda: runs on a GPU")
    config.addinivalue_line("markers", "alone: looks at the whole GPU, so nothing else may run there")


def pytest_report_header():
    gpu = f"nothing runs on cuda: {GPU_MISSING}" if GPU_MISSING else torch.cuda.get_device_name()
    return f"fastrnn {fastrnn.__file__}, torch {torch.__version__}, ISAs {' '.join(ISAS)}, {gpu}"


def parameters_of(item):
    return item.callspec.params if hasattr(item, "callspec") else {}


def uses_threads(item):
    case = parameters_of(item).get("case")
    large = isinstance(case, Case) and case.work >= THREADS_WORK
    return large or item.get_closest_marker("threads") is not None


def parts_of(value):
    """What is varied in a parameter."""
    if isinstance(value, Case):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return value if isinstance(value, Mapping) else {"": value}


def describe(item):
    """What is varied between the cases of a test, by name, as text."""
    parts = {"threads": uses_threads(item)}
    for name, value in parameters_of(item).items():
        parts |= {f"{name}.{part}": x for part, x in parts_of(value).items()}
    return {name: repr(x) for name, x in parts.items()}


@pytest.hookimpl(trylast=True)  # of the tests that -k and -m leave
def pytest_collection_modifyitems(config, items):
    chosen = list(items)
    if not config.option.thorough:
        tests = defaultdict(list)
        for item in items:
            if item.get_closest_marker("thorough") is None:
                tests[item.nodeid.split("[")[0]].append(item)
        chosen = [cases[i] for cases in tests.values() for i in cover_pairs_of([*map(describe, cases)])]
    if config.option.threads is not None:
        chosen = [item for item in chosen if uses_threads(item) == (config.option.threads == "several")]
    if len(chosen) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
        items[:] = chosen


def pytest_sessionfinish(session, exitstatus):
    # A file may have no test of the one kind.
    if session.config.option.threads and exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
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


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
