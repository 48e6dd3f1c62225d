"""Runs programs for tools/gpu_check.py within a time limit, and keeps their results in few, small files.

A worker is a program that goes through items (tests, facts) and notes each result at once. It writes its
current item to the file that GPU_CHECK_PULSE names. It ends with the exit status LOST when the CUDA context
is lost. Then it is started again, as after a hang or a crash, and goes on after that item.
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

# The files in a folder of results, and the limits of those that grow: together under 16 MB.
OUTCOMES, FACTS, TESTS, LOG = "outcomes.json", "facts.json", "tests.jsonl", "log.txt"
BENCHMARKS, BENCHMARKS_REPORT, REPORT = "benchmarks.json", "benchmarks.md", "report.md"
FILES = (REPORT, OUTCOMES, FACTS, TESTS, LOG, BENCHMARKS, BENCHMARKS_REPORT)
LOG_BYTES = TESTS_BYTES = 5_000_000
COMMAND_BYTES = 500_000  # of the log, for each program
OUTPUT_BYTES = 3_000  # of what failed, in a report

_running: set[subprocess.Popen] = set()
_stopping = threading.Event()


def cut_middle(text: str, size: int) -> str:
    """The beginning and the end of `text`, in about `size` bytes."""
    data = text.encode(errors="replace")
    if len(data) <= size:
        return text
    parts = data[: size // 2], data[-(size - size // 2) :]
    return f"\n[{len(data) - size} bytes left out]\n".join(part.decode(errors="ignore") for part in parts)


def last_bytes(text: str, size: int) -> str:
    return text.encode(errors="replace")[-size:].decode(errors="ignore")


def write_whole(path: Path, data: object):
    """Writes JSON in one step: a reader finds the old file or the new one, never half of it."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(data, indent=1) + "\n")
    os.replace(new, path)


def read_json(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {}


def beat(item: str = ""):
    """Called by a worker: notes its current item; empty between two items."""
    if path := os.environ.get(PULSE):
        Path(path).write_text(item)


class Journal:
    """The outcome of each test: lines of JSON from several processes. The last line of a test counts."""

    def __init__(self, path: Path):
        self.path = Path(path)

    def add(self, name: str, status: str, output: str = "", seconds: float = 0.0):
        full = self.path.is_file() and self.path.stat().st_size > TESTS_BYTES
        entry = {"name": name, "status": status, "seconds": round(seconds, 2)}
        entry["output"] = "" if full else cut_middle(output, OUTPUT_BYTES)
        with open(self.path, "ab", buffering=0) as file:  # one write, which no other process can interrupt
            file.write(f"{json.dumps(entry)}\n".encode())

    def read(self) -> dict[str, dict]:
        found = {}
        for line in self.path.read_text().splitlines() if self.path.is_file() else ():
            try:
                entry = json.loads(line)
            except ValueError:  # the process was killed while it wrote
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
    """The folder of the results. It keeps the results of other calls."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def forget(self, stage: str, *files: str):
        """Removes what an earlier call found in that stage."""
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
    """Returns the exit status, or NO_TIME or HUNG if it was stopped, and the output (first in `log`).

    The program hangs if it does not touch `pulse` for `patience` seconds. At `end` it gets an interrupt
    first: then pytest can still write its results.
    """
    if time.monotonic() >= end or _stopping.is_set():
        return NO_TIME, ""
    # The program has its own process group, so that its children are stopped with it. It stays in the session
    # of this process, so that it does not outlive it.
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
        with contextlib.suppress(subprocess.TimeoutExpired):  # even a kill may not end it
            process.wait(10)
        _running.discard(process)
        out.seek(0)
        code = NO_TIME if _stopping.is_set() else process.returncode if code is None else code
        return code, out.read()


def kill(process: subprocess.Popen):
    """Kills a process and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def stop_all(signum, frame):
    """Handles a signal that ends this process: ends the programs that it has started, too."""
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
    """Runs a worker until it has gone through all its items. Returns what `run_program` returns.

    record: called with the name, the status and the output of an item that hangs or ends the process
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
        if not item:  # it was at no item, so it would end in the same way again
            return code, output
        if code == NO_TIME:
            record(item, NOT_RUN, NO_TIME)
            return code, output
        words = text[max(0, text.rfind(item)) :]  # from where pytest names the test
        record(item, HUNG if code == HUNG else f"died with exit status {code}", words)
