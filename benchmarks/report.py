"""Tables from the JSON of a run: for the terminal, and, with `python -m benchmarks.report`, in Markdown."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import geometric_mean

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from .problems import Problem, Shape

NOISE = 0.97  # a ratio between this and its inverse may be noise


@dataclass
class Row:
    """The times of one problem."""

    problem: Problem
    flops: int
    median: dict[str, float] = field(default_factory=dict)  # seconds, for each peer
    spread: dict[str, float] = field(default_factory=dict)  # interquartile range / median

    @property
    def ratio(self) -> float:
        return self.median["torch.nn"] / self.median["fastrnn"]

    @property
    def aa(self) -> float:
        return self.median["torch.nn"] / self.median["torch.nn again"]

    @property
    def flops_per_s(self) -> float:
        return self.flops / self.median["fastrnn"]


@dataclass
class Table:
    """A cell is text, or a ratio to torch.nn."""

    title: str
    columns: list[str]
    rows: list[list[str | float]]
    labels: int = 1  # so many first columns name the row


def read_rows(data: dict) -> list[Row]:
    rows = {}
    for benchmark in data["benchmarks"]:
        info, stats = benchmark["extra_info"], benchmark["stats"]
        problem = Problem(**{**info["problem"], "shape": Shape(*info["problem"]["shape"])})
        row = rows.setdefault(problem, Row(problem, info["flops"]))
        row.median[info["peer"]] = stats["median"]
        row.spread[info["peer"]] = stats["iqr"] / stats["median"]
    return list(rows.values())


def ratio_tables(rows: list[Row]) -> list[Table]:
    """Ratios by shape and cell: whole sequences with their summary, and calls of one step."""
    columns = list(dict.fromkeys((row.problem.mode, row.problem.cell) for row in rows))

    def lines(chosen: list[Row], label) -> list[list[str | float]]:
        ratios = {}
        for row in chosen:
            ratios.setdefault(label(row), {})[row.problem.mode, row.problem.cell] = row.ratio
        return [[key, *(line.get(column, "-") for column in columns)] for key, line in ratios.items()]

    def summary(chosen: list[Row], label: str, measure, value) -> list[str | float]:
        line = [label]
        for column in columns:
            values = [value(row) for row in chosen if (row.problem.mode, row.problem.cell) == column]
            line.append(measure(values) if values else "-")
        return line

    heads = [f"{cell} {mode}" for mode, cell in columns]
    result = []
    sequences = [row for row in rows if row.problem.shape.T > 1]
    if sequences:
        body = lines(sequences, lambda row: str(row.problem.shape))
        body.append(summary(sequences, "geometric mean", geometric_mean, lambda row: row.ratio))
        body.append(summary(sequences, "worst shape", min, lambda row: row.ratio))
        body.append(summary(sequences, "A/A", geometric_mean, lambda row: row.aa))
        result.append(Table("Times as fast as torch.nn: whole sequences", ["T,B,I,H", *heads], body))
    steps = [row for row in rows if row.problem.shape.T == 1]
    if steps:
        body = lines(steps, lambda row: f"{row.problem.module} {row.problem.shape}")
        body.append(summary(steps, "A/A", geometric_mean, lambda row: row.aa))
        result.append(Table("Times as fast as torch.nn: one step", ["module T,B,I,H", *heads], body))
    return result


def detail_table(mode: str, rows: list[Row], peak: float) -> Table:
    columns = ["cell", "T,B,I,H", "torch.nn", "±", "fastrnn", "±", "ratio", "A/A", "GFLOP/s", "of peak"]
    body = []
    for row in sorted((row for row in rows if row.problem.mode == mode), key=lambda row: row.problem.cell):
        problem = row.problem
        times = []
        for peer in ("torch.nn", "fastrnn"):
            times += [duration(row.median[peer]), f"{row.spread[peer] / 2:.0%}"]
        cell = problem.cell if problem.module == "layer" else f"{problem.cell} step"
        speed = [f"{row.flops_per_s / 1e9:.1f}", f"{row.flops_per_s / peak:.0%}"]
        body.append([cell, str(problem.shape), *times, row.ratio, row.aa, *speed])
    return Table(f"{mode}: median time of a call ± half the interquartile range", columns, body, labels=2)


def tables(data: dict) -> list[Table]:
    rows = read_rows(data)
    modes = dict.fromkeys(row.problem.mode for row in rows)
    return [*ratio_tables(rows), *(detail_table(mode, rows, data["gemm_flops_per_s"]) for mode in modes)]


def duration(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def describe_machine(data: dict) -> str:
    machine = data["machine_info"]
    fastrnn = machine["fastrnn"]
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads; "
        f"fastrnn {fastrnn['fastrnn']} ({fastrnn['CPU ISA chosen']}), "
        f"torch {machine['torch']} ({machine['torch_isa']}), Python {machine['python_version']}; "
        f"float32 GEMM peak {data['gemm_flops_per_s'] / 1e9:.0f} GFLOP/s, measured in the same run"
    )


def describe_noise(data: dict) -> str:
    """The spread of A/A, torch.nn against itself."""
    ratios = [row.aa for row in read_rows(data)]
    mean = geometric_mean(ratios)
    text = f"A/A, torch.nn against itself: {min(ratios):.2f} to {max(ratios):.2f}, geometric mean {mean:.2f}"
    if not NOISE < mean < 1 / NOISE:
        text += ", too far from 1 to trust these figures (is the machine quiet?)"
    return text


def print_report(data: dict, console: Console):
    for table in reversed(tables(data)):  # what matters most comes last, where the reader's eye is
        rich_table = RichTable(title=table.title, title_justify="left", box=SIMPLE)
        for index, column in enumerate(table.columns):
            justify = "left" if index < table.labels else "right"
            rich_table.add_column(column, justify=justify, no_wrap=index == 0)
        for line in table.rows:
            rich_table.add_row(*(ratio_text(cell) if isinstance(cell, float) else cell for cell in line))
        console.print(rich_table)
    console.print(f"{describe_machine(data)}\n{describe_noise(data)}", highlight=False)


def ratio_text(ratio: float) -> Text:
    return Text(f"{ratio:.2f}", style="red" if ratio < NOISE else "green" if ratio > 1 / NOISE else "")


def markdown(data: dict) -> str:
    parts = [f"Measured on {data['datetime'][:10]} on {describe_machine(data)}. {describe_noise(data)}."]
    for table in tables(data):
        lines = [table.columns, ["---"] * len(table.columns), *table.rows]
        cells = ([f"{c:.2f}" if isinstance(c, float) else c for c in line] for line in lines)
        parts += [f"### {table.title}", "\n".join(f"| {' | '.join(line)} |" for line in cells)]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Print the report of a benchmark run as Markdown.")
    parser.add_argument("json", type=Path, help="what `python -m benchmarks --json` wrote")
    print(markdown(json.loads(parser.parse_args().json.read_text())), end="")
