"""A pytest plugin: a kernel that traps costs only one test. It is used in a worker of `gpu_run.run_worker`.

It notes the outcome of each test in the journal that GPU_CHECK_JOURNAL names, and leaves out the tests that
are noted there. It ends the process when the CUDA context is lost, because all later tests would fail too.
"""

from __future__ import annotations

import os
import sys

import pytest

from tools.gpu_run import LOST, NOT_RUN, Journal, beat

JOURNAL, SHARD = "GPU_CHECK_JOURNAL", "GPU_CHECK_SHARD"  # "1/3" is every third test, from the second on


def lost_context() -> str:
    """The message of an error that CUDA cannot recover from; empty if there is none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return ""
    try:
        torch.cuda.synchronize()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


class Isolation:
    def __init__(self, journal: Journal, shard: str):
        self.journal = journal
        self.index, self.count = map(int, shard.split("/"))
        self.reports = []

    @pytest.hookimpl(tryfirst=True)  # before -m, so that the journal has every test of a GPU
    def pytest_collection_modifyitems(self, config, items):
        noted = self.journal.read()
        chosen = []
        on_gpu = [item for item in items if item.get_closest_marker("cuda")]
        for number, item in enumerate(on_gpu):
            if item.nodeid not in noted:
                self.journal.add(item.nodeid, NOT_RUN)
            untried = noted.get(item.nodeid, {"status": NOT_RUN})["status"] == NOT_RUN
            if untried and number % self.count == self.index:
                chosen.append(item)
        items[:] = chosen

    def pytest_collectreport(self, report):
        if report.failed:
            missing = "ModuleNotFoundError" in report.longreprtext
            self.journal.add(report.nodeid, "skipped" if missing else "failed", report.longreprtext)

    def pytest_runtest_logstart(self, nodeid):
        self.reports = []
        beat(nodeid)

    def pytest_runtest_logreport(self, report):
        self.reports.append(report)

    def pytest_runtest_logfinish(self, nodeid):
        outcomes = {report.outcome for report in self.reports}
        status = next((outcome for outcome in ("failed", "skipped") if outcome in outcomes), "passed")
        output = "\n".join(report.longreprtext for report in self.reports if report.failed)
        if error := lost_context():
            status, output = "trapped", f"{output}\n{error}"
        self.journal.add(nodeid, status, output, sum(report.duration for report in self.reports))
        beat()
        if error:
            sys.stdout.flush()
            os._exit(LOST)


def pytest_configure(config):
    journal = Journal(os.environ[JOURNAL])
    config.pluginmanager.register(Isolation(journal, os.environ.get(SHARD, "0/1")))
