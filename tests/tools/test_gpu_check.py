"""tools/gpu_check.py as far as it goes without a GPU."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from benchmark_runs import data, problem
from cases import run_python

from benchmarks.results import merge, read_rows
from tools import gpu_check, gpu_facts, gpu_run
from tools.gpu_check import STAGES, Check, Command, Stage, run_stages
from tools.gpu_facts import parse_smi, read_rounds, record_end, rows, split_time
from tools.gpu_report import write_report
from tools.gpu_run import FACTS, FILES, LOG, OUTCOMES, TESTS, Journal, Outcome, Results, read_json

BY_HAND = Path(__file__).parent / "gpu_check_by_hand"


@pytest.fixture
def check(tmp_path, monkeypatch):
    """A check of a folder of its own, with the stages that a test puts there instead of the real ones."""
    monkeypatch.setattr(gpu_check, "STAGES", {})
    monkeypatch.setattr(gpu_check, "CONFORMANCE", tmp_path / "conformance")
    env = {"PATH": str(Path(sys.executable).parent) + ":/usr/bin:/bin", "PYTHONPATH": str(gpu_run.ROOT)}
    # As main() does: in the background of a shell pytest ignores interrupts, and so would its programs.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield Check(Results(tmp_path / "results"), env, tmp_path / "scratch")
    signal.signal(signal.SIGINT, before)


def command(name, *programs, **fields):
    return Command(name, [[sys.executable, "-c", program] for program in programs], **fields)


def add_stage(name, *commands, reserved=0.0):
    def run(check):
        check.results.forget(check.stage)
        return bool(check.run_together(list(commands), check.run_command))

    gpu_check.STAGES[name] = Stage(run, 60.0, reserved)


def statuses(check):
    outcomes = read_json(check.results.folder / OUTCOMES)
    return {o["name"]: o["status"] for of in outcomes.values() for o in of}


# ---- stages ----


def test_every_stage_runs_whatever_became_of_those_before(check):
    add_stage(
        "first",
        command("fails", "print('so far'); raise SystemExit(3)", "print('never')"),
        command("passes", "print('one')", "print('two')"),
        command("not here", "print('never')", needs=("no_such_tool", "sys")),
    )
    add_stage("second", command("late", "print('still here')"))
    run_stages(["first", "second"], check)
    assert statuses(check) == {
        "fails": "FAILED with exit status 3",
        "passes": "passed",
        "not here": "skipped: not here: no_such_tool",
        "late": "passed",
    }
    assert check.bad
    log = (check.results.folder / LOG).read_text()
    assert all(f"\n{word}\n" in log for word in ("so far", "one", "two", "still here"))
    assert "\nnever\n" not in log


def test_what_is_missing_is_no_failure(check):
    add_stage("only", command("not here", "", needs=(Path("/no/such/program"),)))
    run_stages(["only"], check)
    assert statuses(check) == {"not here": "skipped: not here: /no/such/program"} and not check.bad


WAITS = """
import time
print("begun", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("kept")
"""


def test_what_takes_too_long_is_interrupted(check):
    """It can still write what it has, and the next stage gets what was reserved for it."""
    add_stage("long", command("waits", WAITS), command("hangs", WAITS, patience=1))
    add_stage("last", command("report", "print('report')"), reserved=30)
    run_stages(["long", "last"], check, seconds=33)
    assert statuses(check) == {
        "waits": "STOPPED: no time left",
        "hangs": "FAILED: hung",
        "report": "passed",
    }
    log = (check.results.folder / LOG).read_text()
    assert all(f"\n{word}\n" in log for word in ("begun", "kept", "report"))


def test_nothing_starts_without_time(check):
    add_stage("late", command("late", "print('never')"))
    run_stages(["late"], check, seconds=0)
    assert statuses(check) == {"late": "left out: no time left"} and not check.bad


@pytest.mark.parametrize(
    "name, status, last",
    [
        ("extension", "FAILED with exit status 1", "build"),
        ("extension", "STOPPED: no time left", "build"),
        ("extension", "skipped: not here: pybind11", "second"),  # there may be one that was built before
        ("conformance", "FAILED with exit status 1", "second"),
    ],
)
def test_a_failed_build_ends_the_check(name, status, last, check, monkeypatch):
    """That of the extension; without the primitives' program the others still tell something."""
    monkeypatch.setattr(gpu_check.Check, "run_command", lambda self, c: Outcome(c.name, ends[c.name]))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    ends = {"extension": "passed", "conformance": "passed", "late": "passed"} | {name: status}
    gpu_check.STAGES["build"] = STAGES["build"]
    add_stage("second", command("late", ""))
    run_stages(["build", "second"], check)
    outcomes = read_json(check.results.folder / OUTCOMES)
    assert list(outcomes)[-1] == last and check.bad != status.startswith("skipped")
    assert (check.results.folder / "report.md").is_file()


def test_the_build_is_for_the_device(check, monkeypatch):
    commands = []
    monkeypatch.setattr(
        gpu_check.Check, "run_command", lambda s, c: commands.append(c) or Outcome(c.name, "")
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    STAGES["build"].run(check)
    extension, conformance = commands
    assert extension.env["TORCH_CUDA_ARCH_LIST"] == "9.0a"
    assert "-arch=sm_90a" in conformance.arguments[0]
    for file in ("setup.py", "tests/csrc/cuda/conformance.cu"):
        assert any(file in arguments for c in commands for arguments in c.arguments)
        assert (gpu_run.ROOT / file).is_file()


def test_an_error_of_a_stage_is_kept(check):
    gpu_check.STAGES["wrong"] = Stage(lambda check: [][0], 60, 0)
    add_stage("second", command("late", ""))
    run_stages(["wrong", "second"], check)
    assert statuses(check) == {"wrong": "FAILED: an error of the check itself", "late": "passed"}
    assert "IndexError" in (check.results.folder / "report.md").read_text()


def test_time_of_the_stages():
    """A call of all ends in time, and three calls have more for each."""
    assert sum(stage.reserved for stage in STAGES.values()) < gpu_check.SECONDS <= 9 * 60
    assert list(STAGES) == ["build", "facts", "tests", "benchmarks", "sanitizers"]


def test_stages_that_are_named():
    assert gpu_check.stage_names("facts,build") == ["build", "facts"]
    assert gpu_check.stage_names("report") == []
    done = run_python(gpu_check.__file__, "--stages", "build,fact")
    assert done.returncode == 2
    message = done.stderr.strip().splitlines()[-1]
    assert "--stages: 'fact': expected some of build,facts,tests,benchmarks,sanitizers,report" in message


def test_other_calls_with_the_same_folder(check):
    """What they have found stays, of the same stage what is new."""
    folder = check.results.folder
    add_stage("first", command("one", ""))
    add_stage("second", command("two", "raise SystemExit(1)"))
    run_stages(["first"], check)
    run_stages(["second"], Check(Results(folder), check.env, check.scratch))
    add_stage("second", command("three", ""))
    run_stages(["second"], Check(Results(folder), check.env, check.scratch))
    assert statuses(check) == {"one": "passed", "three": "passed"}
    report = (folder / "report.md").read_text()
    assert "| first | passed | one (" in report and "| second | passed | three (" in report


def test_few_small_files(check, monkeypatch):
    """Whatever the programs print; their first and last words are kept."""
    monkeypatch.setattr(gpu_run, "COMMAND_BYTES", 2_000_000)
    prints = "print('first ' + 'x' * 4_000_000 + 'é' * 100 + ' last'); raise SystemExit(1)"
    add_stage("only", *[command(f"prints {i}", prints) for i in range(4)])
    journal = Journal(check.results.folder / TESTS)
    for i in range(6000):
        journal.add(f"test_{i}", "failed", "y" * 4_000)
    run_stages(["only"], check)
    files = list(check.results.folder.iterdir())
    assert len(FILES) <= 8 and {file.name for file in files} <= set(FILES)
    assert sum(file.stat().st_size for file in files) < 16_000_000
    log = (check.results.folder / LOG).read_text()
    assert len(log) < gpu_run.LOG_BYTES * 1.1
    assert "first x" in log and "é last" in log and "bytes left out" in log
    assert len(journal.read()) == 6000


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu():
    done = run_python(gpu_check.__file__)
    assert (done.returncode, done.stdout) == (0, "no GPU: nothing is checked\n")


# ---- tests, each of which may end the process ----

CONFTEST = """
import pytest
from tools import gpu_isolation

lost = []
gpu_isolation.lost_context = lambda: "CUDA error: unspecified launch failure" if lost else ""

def pytest_addoption(parser):
    parser.addoption("--thorough", action="store_true")

def pytest_configure(config):
    for marker in ("cuda", "alone"):
        config.addinivalue_line("markers", marker)

@pytest.fixture
def trap():
    yield
    lost.append(1)
"""

TESTS_OF_A_GPU = """
import os, time
import pytest

pytestmark = pytest.mark.cuda

def note(name):
    with open("ran.txt", "a") as file:
        print(name, file=file)

@pytest.fixture(autouse=True)
def noted(request):
    note(request.node.name)

@pytest.mark.parametrize("i", range(4))
def test_passes(i):
    pass

def test_traps(trap):
    assert False, "before the trap"

@pytest.mark.parametrize("i", range(2))  # whichever process has the trap
def test_behind_the_trap(i):
    pass

def test_traps_unseen(trap):
    pass

def test_dies():
    os.abort()

def test_hangs():
    time.sleep(600)

@pytest.mark.alone
def test_alone():
    assert os.environ["GPU_CHECK_SHARD"] == "0/1"

def test_fails():
    assert 1 + 1 == 3
"""


@pytest.fixture
def tests_of_a_gpu(tmp_path, monkeypatch):
    """The folder of tests, instead of this one, that the stage finds."""
    monkeypatch.setattr(gpu_run, "ROOT", tmp_path)
    gpu_check.STAGES["tests"] = STAGES["tests"]
    tests = tmp_path / "tests"
    tests.mkdir()
    (tmp_path / "pytest.ini").touch()
    (tests / "conftest.py").write_text(CONFTEST)
    (tests / "test_gpu.py").write_text(TESTS_OF_A_GPU)
    (tests / "test_cpu.py").write_text("def test_of_the_cpu(): open('ran.txt', 'a').write('never')")
    return tests


def test_a_trap_costs_one_test(check, tests_of_a_gpu, tmp_path, monkeypatch):
    """So does a crash, and a hang; and each test runs once, whatever became of those before."""
    monkeypatch.setattr(gpu_check, "TEST_SECONDS", 8)
    monkeypatch.setattr(gpu_check, "SHARD_TESTS", 6)
    (tests_of_a_gpu / "test_missing.py").write_text("import no_such_package")
    run_stages(["tests"], check, seconds=120)
    found = Journal(check.results.folder / TESTS).read()
    ends = {name.split("::")[-1]: entry["status"] for name, entry in found.items()}
    assert ends == {
        **{f"test_passes[{i}]": "passed" for i in range(4)},
        "test_traps": "trapped",
        **{f"test_behind_the_trap[{i}]": "passed" for i in range(2)},
        "test_traps_unseen": "trapped",
        "test_dies": "died with exit status -6",
        "test_hangs": "hung",
        "test_alone": "passed",
        "test_fails": "failed",
        "tests/test_missing.py": "skipped",
    }
    ran = Counter((tmp_path / "ran.txt").read_text().split())
    assert set(ran) == set(ends) - {"tests/test_missing.py"} and set(ran.values()) == {1}
    outputs = {name.split("::")[-1]: entry["output"] for name, entry in found.items()}
    assert "before the trap" in outputs["test_traps"] and "launch failure" in outputs["test_traps"]
    assert "Timeout" in outputs["test_hangs"] and "in test_hangs" in outputs["test_hangs"]
    assert "Aborted" in outputs["test_dies"] and "in test_dies" in outputs["test_dies"]
    assert "1 + 1" in outputs["test_fails"]
    counted = statuses(check)["all"].removeprefix("FAILED: ").split(", ")
    assert sorted(counted) == [
        "1 died with exit status -6",
        "1 failed",
        "1 hung",
        "1 skipped",
        "2 trapped",
        "7 passed",
    ]
    assert {"alone on the device", "test_gpu.py 1 of 2", "test_gpu.py 2 of 2"} < set(statuses(check))


def test_tests_that_did_not_run_are_named(check, tests_of_a_gpu):
    sleeps = TESTS_OF_A_GPU.replace("def test_alone():", "def test_alone():\n    time.sleep(600)")
    (tests_of_a_gpu / "test_gpu.py").write_text(sleeps)
    run_stages(["tests"], check, seconds=6)
    report = (check.results.folder / "report.md").read_text()
    assert "- tests/test_gpu.py: 12 tests" in report.splitlines()


def test_without_pytest_there_are_no_tests(check, tests_of_a_gpu, monkeypatch):
    monkeypatch.setattr(gpu_check, "is_here", lambda name, path: name != "pytest")
    run_stages(["tests"], check)
    assert statuses(check) == {"alone on the device": "skipped: not here: pytest"} and not check.bad


def test_without_a_build_with_cuda_the_tests_fail(check, tests_of_a_gpu):
    (tests_of_a_gpu / "test_gpu.py").unlink()
    run_stages(["tests"], check)
    assert "is fastrnn built with CUDA?" in statuses(check)["all"] and check.bad


# ---- facts ----

FACTS_THAT_END = """
import os, sys, time
from pathlib import Path
from tools.gpu_facts import learn

lost = []
def ends(): os._exit(3)
def hangs(): time.sleep(600)
def loses(): lost.append("CUDA error: an illegal instruction\\nand more"); raise RuntimeError("launch")
def raises(): raise RuntimeError("no such plan\\nand more")
facts = {"one": lambda: 1, "raises": raises, "loses": loses, "behind": lambda: 2}
facts |= {"ends": ends, "hangs": hangs, "last": lambda: {"of": [1, 2]}, "waits": hangs, "never": ends}
sys.exit(learn(facts, Path(sys.argv[1]), time.time() + 60, lambda: lost[0] if lost else ""))
"""


def test_a_fact_that_ends_the_process_costs_only_itself(check, tmp_path):
    path = tmp_path / FACTS
    check.end = time.monotonic() + 20
    worker = Command("facts", [[sys.executable, "-c", FACTS_THAT_END, path]], patience=3)
    outcome = check.run_worker(worker, partial(record_end, path))
    found = read_json(path)
    good = {"one": 1, "behind": 2, "last": {"of": [1, 2]}}
    errors = {name: of.pop("error") for name, of in found["known"].items() if name not in good}
    assert {name: found["known"][name] for name in good} == good
    assert errors["raises"] == "RuntimeError: no such plan"
    assert errors["loses"] == "the context is lost: CUDA error: an illegal instruction"
    assert errors["ends"].startswith("died with exit status 3")
    assert errors["hangs"].startswith("hung") and errors["waits"].startswith("hung")
    assert errors["never"].startswith("died") and found["left out"] == []
    assert outcome.status == "passed"


def test_facts_stop_by_the_clock(tmp_path):
    facts = {"first": lambda: time.sleep(0.2), "second": lambda: 2}
    assert gpu_facts.learn(facts, tmp_path / FACTS, time.time() + 0.1, lambda: "") == 0
    assert read_json(tmp_path / FACTS) == {"known": {"first": None}, "left out": ["second"]}


def test_facts_that_are_asked_for(tmp_path):
    """What matters most comes first, and every row has every kind of plan and cuDNN."""
    names = list(gpu_facts.list_facts(tmp_path / "conformance.log"))
    assert names[:2] == ["device", "clocks"]
    assert [name for name in names if name.startswith("step")][:4] == [
        f"step lstm bf16 H256 B16 {who}" for who in ("cuDNN", "cluster", "grid", "stepwise")
    ]
    assert sum(name.startswith("step ") for name in names) == 2 * 4 * 5 * 3 * 4
    early = rows()[:40]
    assert all({row[i] for row in early} == {row[i] for row in rows()} for i in range(4))


def test_time_of_a_step_is_without_the_call():
    short, long = gpu_facts.STEPS
    assert split_time(50 + 1.5 * short, 50 + 1.5 * long) == {"step_us": 1.5, "call_us": 50}


def test_rounds_of_the_conformance_program():
    log = """$ conformance
mma bf16                                      passed
timing push, 16 blocks: 812.5 ns a round
timing counter, 128 blocks:  2104 ns a round
timing broken: nan
"""
    assert read_rounds(log) == {"push, 16 blocks": 812.5, "counter, 128 blocks": 2104}


def test_clocks():
    line = "580.159.03, 1980 MHz, 3201 MHz, 1980 MHz, 3201 MHz, 700.00 W, 35, Enabled, Default, Disabled\n"
    assert parse_smi(line)["clocks.max.sm"] == "1980 MHz"


# ---- the report ----


@pytest.fixture
def by_hand(tmp_path):
    """A folder with the run that was made by hand."""
    folder = tmp_path / "by_hand"
    shutil.copytree(BY_HAND, folder)
    return folder


def test_report_is_written_again(by_hand):
    done = run_python(gpu_check.__file__, "--stages", "report", "--out", str(by_hand))
    assert done.returncode == 0, done.stderr
    report = (by_hand / "report.md").read_text()
    lines = report.splitlines()
    assert lines[0] == "# Check of fastrnn on made by hand: no device has said any of this"
    for line in (
        "| build | FAILED with exit status 1 | conformance (41 s) |",
        "      push, barrier_wait, cluster_sync: 16 blocks   FAILED",
        "      RuntimeError: CUDA error: unspecified launch failure",
        "- tests/test_cuda.py::test_graph[made by hand]: **hung**",
        "| sanitizers | skipped: not here: compute-sanitizer | memcheck, racecheck |",
        "- tests/test_ops.py: 1 tests",
        "| at once | 132 | 66 | 44 | 33 | 24 | 22 | 18 | 16 | 14 | 12 | 11 | 10 | 9 | 8 | 8 | 7 |",
        "| push, 16 blocks | 800 |",
        "| lstm | bf16 | 256 | 16 | 1.00 / 2.00 | 3.00 / 6.00 | 9.00 / 9.50 "
        "| 5.00 / 8.00 | cluster/cluster | 5.00 / 4.00 |",
        "| lstm | bf16 | 1024 | 16 | cannot / cannot | 4.00 / failed |  "
        "| 6.00 / 9.00 | grid/grid | 1.50 / - |",
        "| lstm bf16 H256 B16 fastrnn | 130.0 | 1 | made_by_hand_kernel |",
        "- step lstm bf16 H1024 B16 grid: RuntimeError: made by hand",
        "- clocks: died with exit status -11; the last words: made by hand",
    ):
        assert line in lines, line
    assert "2 passed, 1 trapped, 1 hung, 1 not run" in report
    assert "2 facts: step gru ieee H768 B64 grid, step gru ieee H768 B64 stepwise" in report


@pytest.mark.parametrize("file", [OUTCOMES, FACTS, TESTS])
def test_report_without_a_file(by_hand, file):
    (by_hand / file).unlink()
    report = write_report(by_hand).read_text()
    assert report.startswith("# Check of fastrnn on ")
    assert ("## Tests" in report) == (file != TESTS)
    assert ("## Microseconds a step" in report) == (file != FACTS)
    assert ("No stage has run" in report) == (file == OUTCOMES)


def test_report_with_any_fact_missing_or_wrong(by_hand):
    whole = read_json(by_hand / FACTS)
    for name in whole["known"]:
        for hole in ({}, {name: {"error": "made by hand"}}, {name: None}, {name: {}}, {name: [1]}):
            known = {k: v for k, v in whole["known"].items() if k != name} | hole
            (by_hand / FACTS).write_text(json.dumps({"known": known}))
            report = write_report(by_hand).read_text()
            assert (f"- {name}: made by hand" in report) == ("error" in (hole.get(name) or {}))
            assert hole == {name: [1]} or "describe_" not in report


def test_report_with_a_part_that_cannot_be_written(by_hand):
    (by_hand / "benchmarks.json").write_text('{"benchmarks": "made by hand"}')
    report = write_report(by_hand).read_text()
    assert "describe_benchmarks: KeyError" in report and "## Microseconds a step" in report


def test_report_is_one_page_when_all_fails(by_hand):
    journal = Journal(by_hand / TESTS)
    for i in range(3000):
        journal.add(f"test_{i}", "failed", "of this\nand that")
    facts = {f"step {i}": {"forward": {"error": "the same"}} for i in range(500)}
    (by_hand / FACTS).write_text(json.dumps({"known": facts}))
    report = write_report(by_hand).read_text()
    assert len(report.splitlines()) < 300
    assert "more, in tests.jsonl" in report and "step 0, step 1" in report and "480 more: the same" in report


def test_report_of_half_a_line(by_hand):
    """Of a process that was killed while it wrote."""
    with open(by_hand / TESTS, "a") as file:
        file.write('{"name": "tests/test_ops.py::t')
    assert "2 passed, 1 trapped" in write_report(by_hand).read_text()


def test_report_has_the_regimes_of_the_benchmarks(by_hand):
    found = data([problem(mode="bf16-B64", device="cuda")])
    (by_hand / "benchmarks.json").write_text(json.dumps(found))
    report = write_report(by_hand).read_text()
    assert "| bf16-B64 | forward | eager | 1 | 2.00 | 2.00 | 4 |" in report
    assert "Times as fast as each peer" in (by_hand / "benchmarks.md").read_text()


# ---- benchmarks ----


def run_of(problem):
    return json.loads(json.dumps(data([problem]) | {"plans": {problem.name: "cluster"}, "round_trips": {}}))


def test_benchmarks_of_several_processes_are_one(tmp_path):
    one, two = problem(), problem(mode="training", training=True, dtype="float64")
    first, second = run_of(one), run_of(two)
    first["limits"]["2"]["gemm"] = {"float32": 7e9}
    second["limits"]["2"]["gemm"] = {"float64": 5e9, "float32": 6e9}
    merged = merge([first, second])
    assert [(row.problem, row.plans) for row in read_rows(merged)] == [(one, "cluster"), (two, "cluster")]
    assert merged["limits"]["2"]["gemm"] == {"float32": 7e9, "float64": 5e9}
    assert len(first["benchmarks"]) < len(merged["benchmarks"])


def test_a_mode_that_leaves_nothing_is_timed_shape_by_shape(check, monkeypatch):
    """And what of these leaves something is kept."""
    asked = []

    def run_command(self, command):
        arguments = command.arguments[0]
        asked.append(command.name)
        json_file = next(a for a in arguments if a.startswith("--json=")).removeprefix("--json=")
        if command.name == "bf16-B64" or "64,512" in command.name:
            Path(json_file).touch()  # as pytest-benchmark does before there is anything
            return Outcome(command.name, "FAILED with exit status 1")
        Path(json_file).write_text(json.dumps(run_of(problem())))
        return Outcome(command.name, "passed")

    monkeypatch.setattr(gpu_check.Check, "run_command", run_command)
    gpu_check.STAGES["benchmarks"] = STAGES["benchmarks"]
    run_stages(["benchmarks"], check)
    assert [name for name in asked if name.split()[0] == "bf16-B64"] == [
        "bf16-B64",
        "bf16-B64 512,64,256,256",
        "bf16-B64 512,64,512,512",
    ]
    assert len(read_json(check.results.folder / "benchmarks.json")["benchmarks"]) > 0


# ---- an end from outside ----


def test_what_was_started_ends_with_the_check(tmp_path):
    """As when a time limit from outside ends it."""
    program = (
        "import signal, sys, time; from pathlib import Path; from tools import gpu_run; "
        "signal.signal(signal.SIGTERM, gpu_run.stop_all); "
        "end = time.monotonic() + 60; "
        "gpu_run.run_program([sys.executable, '-c', sys.argv[1]], {}, end, Path(sys.argv[2]))"
    )
    started = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    log = tmp_path / "log"
    process = subprocess.Popen([sys.executable, "-c", program, started, log], cwd=gpu_run.ROOT)
    while not (log.is_file() and len(words := log.read_text().splitlines()) == 2):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM
    stat = Path(f"/proc/{words[-1]}/stat")
    assert not stat.is_file() or ") Z" in stat.read_text()  # a zombie, which nobody has asked for
