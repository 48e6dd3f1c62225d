"""Writes the page that a person reads first, from the files of tools/gpu_check.py. Any of these files may be
missing, and any fact in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tools.gpu_facts import CUDNN, KINDS, PASSES, name_row, rows
from tools.gpu_run import (
    BENCHMARKS,
    BENCHMARKS_REPORT,
    FACTS,
    NOT_RUN,
    OUTCOMES,
    REPORT,
    TESTS,
    WELL,
    Journal,
    read_json,
)

SHOWN, NAMED = 20, 100  # tests with some lines of their output, and the names of more
LINES = 12


def write_report(folder: Path) -> Path:
    facts = read_json(folder / FACTS)
    outcomes = read_json(folder / OUTCOMES)
    tests = Journal(folder / TESTS).read()
    known = facts.get("known", {})
    parts = [f"# Check of fastrnn on {value(known, 'device').get('name', 'an unknown GPU')}"]
    for describe, *found in (
        (describe_device, known),
        (describe_stages, outcomes),
        (describe_tests, tests),
        (describe_left_out, facts, tests),
        (describe_clusters, value(known, "clusters")),
        (describe_rounds, value(known, "rounds")),
        (describe_benchmarks, folder),
        (describe_steps, known),
        (describe_kernels, known),
        (describe_errors, known),
    ):
        try:
            parts += describe(*found)
        except Exception as error:  # a bad fact must not hide the others
            parts.append(f"{describe.__name__}: {type(error).__name__}: {error}")
    (folder / REPORT).write_text("\n\n".join(parts) + "\n")
    return folder / REPORT


def value(known: dict, name: str) -> dict:
    """The value of a fact; empty if it is not known."""
    found = known.get(name)
    return found if isinstance(found, dict) and "error" not in found else {}


def table(columns: Iterable[object], lines: Iterable[Iterable[object]]) -> str:
    columns = list(columns)
    cells = [columns, ["---"] * len(columns), *lines]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in cells)


def bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def quote(output: str) -> str:
    """The first and the last lines, indented as code."""
    lines = output.strip().splitlines()
    if len(lines) > LINES:
        lines = [*lines[: LINES // 3], "...", *lines[-LINES * 2 // 3 :]]
    return "\n".join(f"      {line}" for line in lines)


def describe_device(known: dict) -> list[str]:
    found = {name: value(known, name) for name in ("device", "versions", "clocks", "clocks at work")}
    lines = [f"{name}: {', '.join(f'{k} {v}' for k, v in of.items())}" for name, of in found.items() if of]
    return [bullets(lines)] if lines else []


def describe_stages(outcomes: dict) -> list[str]:
    """A line for each stage and status."""
    if not outcomes:
        return ["No stage has run."]
    lines: dict[tuple[str, str], list[str]] = {}
    failed = []
    for stage, found in outcomes.items():
        for outcome in found:
            name, status, took = outcome["name"], outcome["status"], outcome["seconds"]
            lines.setdefault((stage, status), []).append(f"{name} ({took:.0f} s)" if took else name)
            if outcome["output"]:
                failed.append(f"**{name}**: {status}\n\n{quote(outcome['output'])}")
    rows = [(*key, ", ".join(names)) for key, names in lines.items()]
    return ["## What became of each stage", table(("stage", "status", "what"), rows), *failed]


def describe_tests(tests: dict) -> list[str]:
    if not tests:
        return []
    counts = Counter(entry["status"] for entry in tests.values())
    bad = [entry for entry in tests.values() if entry["status"] not in WELL]
    shown = [f"{e['name']}: **{e['status']}**\n\n{quote(e['output'])}\n" for e in bad[:SHOWN]]
    shown += [f"{e['name']}: **{e['status']}**" for e in bad[SHOWN:NAMED]]
    shown += [f"{len(bad) - NAMED} more, in {TESTS}"] * (len(bad) > NAMED)
    numbers = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    return ["## Tests", f"{numbers}.", *([bullets(shown)] if shown else [])]


def describe_left_out(facts: dict, tests: dict) -> list[str]:
    not_run = Counter(name.split("::")[0] for name, entry in tests.items() if entry["status"] == NOT_RUN)
    lines = [f"{file}: {count} tests" for file, count in not_run.items()]
    if left := facts.get("left out"):
        lines.append(f"{len(left)} facts: {name_some(left)}")
    return ["## Left out, besides what the stages say", bullets(lines)] if lines else []


def describe_clusters(found: dict) -> list[str]:
    clusters = found.get("clusters")
    if not clusters:
        return []
    line = ["at once", *clusters]
    return ["## Clusters of each size that the device holds", table(["blocks", *range(1, len(line))], [line])]


def describe_rounds(found: dict) -> list[str]:
    if not found:
        return []
    lines = [(name, f"{number:.0f}") for name, number in found.items()]
    return ["## Nanoseconds a round of the exchange between blocks", table(("how", "ns"), lines)]


def describe_benchmarks(folder: Path) -> list[str]:
    """The regimes and their goals. The whole report of the benchmark goes into its own file."""
    data = read_json(folder / BENCHMARKS)
    if not data:
        return []
    from benchmarks.report import markdown, markdown_table, regime_table
    from benchmarks.results import read_rows

    regimes = markdown_table(regime_table(read_rows(data)))
    (folder / BENCHMARKS_REPORT).write_text(markdown(data, []))
    return ["## Benchmarks", f"All of it is in {BENCHMARKS_REPORT}.", regimes]


def describe_steps(known: dict) -> list[str]:
    plans = value(known, "plans")
    lines = []
    for row in rows():
        found = {who: value(known, f"step {name_row(row)} {who}") for who in (*KINDS, CUDNN)}
        if not any(found.values()):
            continue
        plan = plans.get(name_row(row), "")
        chosen = [found.get(kind, {}) for kind in plan.split("/")]
        passes = zip(PASSES, chosen, strict=False)
        pairs = [(step(found[CUDNN], name), step(of, name)) for name, of in passes]
        ratios = [f"{theirs / ours:.2f}" if theirs and ours else "-" for theirs, ours in pairs]
        times = [" / ".join(step_cell(of, name) for name in PASSES) if of else "" for of in found.values()]
        lines.append([*row, *times, plan, " / ".join(ratios)])
    if not lines:
        return []
    text = (
        "Forward / backward. The cost of a call is left out; the product of the inputs is included (as many "
        "inputs as units). Plan: the kinds that fastrnn chooses. Last column: their speed relative to cuDNN."
    )
    columns = ("cell", "dtype", "H", "B", *KINDS, CUDNN, "plan", f"vs {CUDNN}")
    return ["## Microseconds a step", text, table(columns, sorted(lines, key=lambda line: line[:2]))]


def step(found: dict, name: str) -> float | None:
    return found.get(name, {}).get("step_us")


def step_cell(found: dict, name: str) -> str:
    if (took := step(found, name)) is not None:
        return f"{took:.2f}"
    return "cannot" if "cannot compute" in found.get(name, {}).get("error", "") else "failed"


def describe_kernels(known: dict) -> list[str]:
    lines = [
        (name.removeprefix("kernels "), f"{kernel['us']:.1f}", kernel["count"], kernel["name"])
        for name, kernels in known.items()
        if name.startswith("kernels ") and isinstance(kernels, list)
        for kernel in kernels
    ]
    columns = ("layer", "us", "launches", "kernel")
    return ["## What runs on the device in a forward and a backward", table(columns, lines)] if lines else []


def describe_errors(known: dict) -> list[str]:
    """The errors of facts, except those of plans that cannot compute a row."""
    names: dict[str, list[str]] = {}
    for name, found in known.items():
        parts = [found, *(found.get(p) for p in PASSES)] if isinstance(found, dict) else []
        for part in parts:
            if isinstance(part, dict) and "cannot compute" not in part.get("error", "cannot compute"):
                names.setdefault(part["error"][:300], []).append(name)
    lines = [f"{name_some(of)}: {error}" for error, of in names.items()]
    return ["## Facts that could not be found", bullets(lines)] if lines else []


def name_some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + f" and {len(names) - SHOWN} more" * (len(names) > SHOWN)
