"""Runs test files of a PyTorch checkout with fastrnn's classes in place of torch.nn's.

Each run is a fresh pytest that loads this file as its plugin. The plugin replaces the classes by name before
any test is imported, and writes down what becomes of every test.
"""

import json
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from cases import run_python

import fastrnn

CLASSES = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")
WORDS = "rnn or lstm or gru"  # in the names of tests, in any case
RAN = (0, 1, 5)  # what pytest exits with: all passed, some failed, none was chosen


def run(source: Path, file: str, replaced: bool, folder: Path, timeout: float = 3600) -> dict[str, str]:
    """What became of each chosen test of `source/test/file`: "passed", "skipped: why" or "failed: why".

    folder: an empty one, for the run's files

    Raises RuntimeError if the file cannot be collected.
    """
    log = folder / ("fastrnn" if replaced else "torch.nn")
    log.touch()
    while True:
        before = log.read_text()
        done = run_python(
            *("-m", "pytest", "-q", "-p", "pytorch_suite", "-p", "no:cacheprovider"),
            *("--noconftest", "-c", "/dev/null", "--rootdir", source / "test", "-k", WORDS),
            *("--log", log, *["--replaced"] * replaced, source / "test" / file),
            timeout=timeout,
        )
        if done.returncode in RAN:
            break
        if log.read_text() == before:
            raise RuntimeError(f"{file} does not run:\n{(done.stdout + done.stderr)[-2000:]}")
        # The process died in a test. The next one goes on with those after it.
    results = {}
    for line in log.read_text().splitlines():
        test, result = json.loads(line)
        if not results.get(test, "").startswith("failed"):
            results[test] = result
    return {test: result or "failed: the process died" for test, result in results.items()}


def judge(theirs: dict[str, str], ours: dict[str, str], differences) -> tuple[dict[str, str], list[str]]:
    """What `run` gave with torch.nn and with fastrnn, beside the known differences, patterns of names.

    Returns the tests that pass with torch.nn only and are not known, with their results, and those known that
    pass with both.
    """
    new, gone = {}, []
    for test in (test for test, result in theirs.items() if result == "passed"):
        result = ours.get(test, "not collected")
        known = any(fnmatchcase(test, pattern) for pattern in differences)
        if result != "passed" and not known:
            new[test] = result
        elif result == "passed" and known:
            gone.append(test)
    return new, gone


# ---- the plugin ----


def pytest_addoption(parser):
    parser.addoption("--log", type=Path)
    parser.addoption("--replaced", action="store_true")


def pytest_configure(config):
    config.pluginmanager.register(Recorder(config.getoption("--log")))
    sys.path.append(str(config.rootpath))  # where PyTorch's test files look for each other
    if config.getoption("--replaced"):
        for module in (torch.nn, torch.nn.modules, torch.nn.modules.rnn):
            for name in CLASSES:
                setattr(module, name, getattr(fastrnn, name))


class Recorder:
    """Writes a line `[test, ""]` when a test begins, and `[test, result]` for each of its results."""

    def __init__(self, log):
        self.log = log

    def write(self, test, result):
        with self.log.open("a") as file:
            file.write(json.dumps([test, result]) + "\n")

    def pytest_collection_modifyitems(self, items):
        seen = {json.loads(line)[0] for line in self.log.read_text().splitlines()}
        items[:] = [item for item in items if item.nodeid not in seen]

    def pytest_runtest_logstart(self, nodeid):
        self.write(nodeid, "")

    def pytest_runtest_logreport(self, report):
        if report.outcome != "passed":
            lines = report.longreprtext.strip().splitlines()
            why = [line for line in lines if line.startswith("E ")] or lines[-1:]
            self.write(report.nodeid, f"{report.outcome}: {' '.join(why[:1])}")
        elif report.when == "call":
            self.write(report.nodeid, "passed")
