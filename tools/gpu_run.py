"""Runs programs for tools/gpu_check.py within a time limit, and keeps what they leave in few, small files.

A worker is a program that goes through items (tests, facts) and notes each as it comes. It keeps the one that
it is at in the file that GPU_CHECK_PULSE names, and ends with the exit status LOST where the CUDA context is
of no more use. It is then started again, as after a hang or a crash, and goes on behind that item.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PULSE = "GPU_CHECK_PULSE"
LOST = 77  # exit status of a worker
HUNG, NO_TIME = "hung", "no time left"
NOT_RUN = "not run"
WELL = {"passed", "skipped", NOT_RUN}  # of a test

# All that a folder of results has, and how large what grows may get: together under 16 MB.
OUTCOMES, FACTS, TESTS, LOG = "outcomes.json", "facts.json", "tests.jsonl", "log.txt"
BENCHMARKS, BENCHMARKS_REPORT, REPORT = "benchmarks.json", "benchmarks.md", "report.md"
FILES = (REPORT, OUTCOMES, FACTS, TESTS, LOG, BENCHMARKS, BENCHMARKS_REPORT)
LOG_BYTES = TESTS_BYTES = 5_000_000
COMMAND_BYTES = 500_000  # of the log, for each program
OUTPUT_BYTES = 3_000  # of what failed, in a report

_running: set[subprocess.Popen] = set()
_stopping = threading.Event()


def cut_middle(text: str, size: int) -> str:
    """The first and the last of `text`, in `size` bytes or a few more."""
    data = text.encode(errors="replace")
    if len(data) <= size:
        return text
    parts = data[: size // 2], data[-(size - size // 2) :]
    return f"\n[{len(data) - size} bytes left out]\n".join(part.decode(errors="ignore") for part in parts)


def last_bytes(text: str, size: int) -> str:
    return text.encode(errors="replace")[-size:].decode(errors="ignore")


def write_whole(path: Path, data: object):
    """JSON that a reader finds old or new, never half."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(data, indent=1) + "\n")
    os.replace(new, path)


def read_json(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {}


def beat(item: str = ""):
    """Of a worker: says which item it is at; none between two."""
    if path := os.environ.get(PULSE):
        Path(path).write_text(item)


class Journal:
    """What became of each test, in lines of JSON that several processes append; the last of a test counts."""

    def __init__(self, path: Path):
        self.path = Path(path)

    def add(self, name: str, status: str, output: str = "", seconds: float = 0.0):
        full = self.path.is_file() and self.path.stat().st_size > TESTS_BYTES
        entry = {"name": name, "status": status, "seconds": round(seconds, 2)}
        entry["output"] = "" if full else cut_middle(output, OUTPUT_BYTES)
        with open(self.path, "ab", buffering=0) as file:  # one write, which no other process gets into
            file.write(f"{json.dumps(entry)}\n".encode())

    def read(self) -> dict[str, dict]:
        found = {}
        for line in self.path.read_text().splitlines() if self.path.is_file() else ():
            try:
                entry = json.loads(line)
            except ValueError:  # of a process that was killed while it wrote
                continue
            found[entry["name"]] = entry
        return found


@dataclass
class Outcome:
    name: str
    status: str
    seconds: float = 0.0
    output: str = ""

    @property
    def bad(self) -> bool:
        return self.status.startswith(("FAILED", "STOPPED"))


class Results:
    """The folder that results go to. What other calls have left there stays."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def forget(self, stage: str, *files: str):
        """What an earlier call has found in that stage."""
        outcomes = read_json(self.folder / OUTCOMES)
        outcomes[stage] = []
        write_whole(self.folder / OUTCOMES, outcomes)
        for name in files:
            (self.folder / name).unlink(missing_ok=True)

    def add(self, stage: str, outcome: Outcome):
        outcomes = read_json(self.folder / OUTCOMES)
        short = asdict(outcome) | {"output": last_bytes(outcome.output, OUTPUT_BYTES) if outcome.bad else ""}
        outcomes.setdefault(stage, []).append(short)
        write_whole(self.folder / OUTCOMES, outcomes)
        log = self.folder / LOG
        before = log.read_text() if log.is_file() else ""
        output = cut_middle(outcome.output, COMMAND_BYTES)
        added = f"==> {stage}: {outcome.name}: {outcome.status}\n{output}\n"
        log.write_text(cut_middle(before + added, LOG_BYTES))


def run_program(
    arguments: list[str | Path],
    env: dict[str, str],
    end: float,
    log: Path,
    pulse: Path | None = None,
    patience: float = math.inf,
) -> tuple[int | str, str]:
    """Exit status, or NO_TIME or HUNG if it had to be stopped, and output, which is in `log` meanwhile.

    It hangs if `pulse` has not been touched for `patience` seconds. At `end` it is interrupted first: pytest
    then still writes what it has.
    """
    if time.monotonic() >= end or _stopping.is_set():
        return NO_TIME, ""
    # In a group of its own, so that its children are stopped with it, but in the session of this process, so
    # that it does not outlive that unseen.
    group = {"process_group": 0} if sys.version_info >= (3, 11) else {"preexec_fn": os.setpgrp}
    with open(log, "w+", errors="replace") as out:
        print("$", *arguments, file=out, flush=True)
        streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(arguments, cwd=ROOT, env=env, **streams, **group)
        _running.add(process)
        code = None
        while code is None and process.poll() is None:
            if time.monotonic() >= end:
                code = NO_TIME
            elif pulse and time.time() - pulse.stat().st_mtime > patience:
                code = HUNG
            else:
                time.sleep(0.05)
        if code == NO_TIME:
            os.killpg(process.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
        kill(process)
        with contextlib.suppress(subprocess.TimeoutExpired):  # of one that even a kill does not end
            process.wait(10)
        _running.discard(process)
        out.seek(0)
        code = NO_TIME if _stopping.is_set() else process.returncode if code is None else code
        return code, out.read()


def kill(process: subprocess.Popen):
    """With what is left of its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def stop_all(signum, frame):
    """Of a signal that ends this process: what it has started ends, too."""
    _stopping.set()
    for process in list(_running):
        kill(process)
    sys.exit(128 + signum)


def run_worker(
    arguments: list[str | Path],
    env: dict[str, str],
    end: float,
    log: Path,
    patience: float,
    record: Callable[[str, str, str], None],
) -> tuple[int | str, str]:
    """Until it has gone through all its items. As `run_program`.

    record: is given the name, the status and the output of an item that hangs or ends the process
    """
    pulse = log.with_suffix(".pulse")
    output = ""
    while True:
        pulse.write_text("")
        code, text = run_program(arguments, env | {PULSE: str(pulse)}, end, log, pulse, patience)
        output += text
        item = pulse.read_text()
        if code == LOST:
            continue
        if not item:  # in none of them, so it would end the same way again
            return code, output
        if code == NO_TIME:
            record(item, NOT_RUN, NO_TIME)
            return code, output
        words = text[max(0, text.rfind(item)) :]  # from where pytest names the test
        record(item, HUNG if code == HUNG else f"died with exit status {code}", words)
