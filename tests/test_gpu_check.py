"""tools/gpu_check.py as far as it goes without a GPU."""

import re
import sys
from pathlib import Path

import pytest
import torch
from cases import run_python

from tools import gpu_check
from tools.gpu_check import Command, Stage, make_stages, run_stages

TESTS = Path(__file__).parent


def command(name, *programs, **fields):
    return Command(name, [[sys.executable, "-c", program] for program in programs], **fields)


def run(stages, folder, seconds=60.0):
    outcomes = run_stages(stages, seconds, folder, {"PYTHONUNBUFFERED": "1"})
    return {outcome.name: outcome.status for outcome in outcomes}, (folder / "log.txt").read_text()


def test_every_stage_runs_whatever_became_of_those_before(tmp_path):
    stages = [
        Stage(
            "first",
            60,
            [
                command("fails", "print('so far'); raise SystemExit(3)", "print('never')"),
                command("passes", "print('one')", "print('two')"),
                command("not here", "print('never')", missing="no such tool"),
            ],
        ),
        Stage("second", 60, [command("late", "print('still here')")]),
    ]
    statuses, log = run(stages, tmp_path)
    assert statuses == {
        "fails": "FAILED with exit status 3",
        "passes": "passed",
        "not here": "skipped: no such tool",
        "late": "passed",
    }
    assert all(f"\n{word}\n" in log for word in ("so far", "one", "two", "still here"))
    assert "\nnever\n" not in log
    summary = (tmp_path / "summary.txt").read_text().splitlines()
    assert [line.split()[0] for line in summary] == ["fails", "passes", "not", "late"]


WAITS = """
import time
print("begun")
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("kept")
"""


def test_what_takes_too_long_is_interrupted(tmp_path):
    """It can still write what it has, and the next stage gets what was reserved for it."""
    stages = [
        Stage("long", 60, [command("waits", WAITS)]),
        Stage("last", 60, [command("report", "print('report')")], reserved=30),
    ]
    statuses, log = run(stages, tmp_path, seconds=32)
    assert statuses == {"waits": "STOPPED: no time left", "report": "passed"}
    assert all(f"\n{word}\n" in log for word in ("begun", "kept", "report"))


def test_nothing_starts_without_time(tmp_path):
    statuses, log = run([Stage("late", 60, [command("late", "print('never')")])], tmp_path, seconds=0)
    assert statuses == {"late": "STOPPED: no time left"} and "never" not in log


def test_stages(tmp_path, monkeypatch):
    """What they name is there; together they leave the benchmarks their time."""
    monkeypatch.setattr(gpu_check, "find_sanitizer", lambda: None)
    stages = make_stages(tmp_path, tmp_path, "9.0a")
    assert sum(stage.reserved for stage in stages) < gpu_check.SECONDS < 9 * 60
    commands = [command for stage in stages for command in stage.commands]
    files = [a for c in commands for arguments in c.arguments for a in map(str, arguments)]
    named = {f for f in files if re.fullmatch(r"(tests|setup|tools)[\w/]*\.(py|cu)", f)}
    assert len(named) > 10
    assert all((gpu_check.ROOT / f).is_file() for f in named)
    skipped = {c.name: c.missing for c in commands if c.missing}
    assert skipped == dict.fromkeys(gpu_check.SANITIZER_TOOLS, "compute-sanitizer is not here")


def test_every_file_with_tests_of_a_gpu_is_run():
    on_gpu = re.compile(r'usefixtures\("(target|device)"\)|pytest\.mark\.cuda|use_device')
    files = {p.stem for p in TESTS.glob("test_*.py") if on_gpu.search(p.read_text())} - {Path(__file__).stem}
    assert files == {f"test_{name}" for name in (*gpu_check.TESTS, "cuda")}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu():
    done = run_python(gpu_check.__file__)
    assert (done.returncode, done.stdout) == (0, "no GPU: nothing is checked\n")
