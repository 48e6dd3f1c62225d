"""Where a report goes: to the terminal, or into Markdown and pictures."""

from __future__ import annotations

import os
import re
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from ..results import NOISE, read_rows
from .plots import draw
from .prose import describe_machine, describe_noise, notes
from .tables import Table, paths_table, tables


def print_report(data: dict, console: Console):
    """Print the report of one run."""
    if "paths" in data:
        print_table(paths_table(data), console)
        console.print(describe_machine(data), highlight=False)
        return
    for table in reversed(tables(data)):  # the most important one comes last: a terminal shows the end
        print_table(table, console)
    for line in (*notes(data), describe_machine(data), describe_noise(data)):
        console.print(line, highlight=False)


def print_table(table: Table, console: Console):
    rich_table = RichTable(title=table.title, title_justify="left", box=SIMPLE)
    for index, column in enumerate(table.columns):
        justify = "left" if index < table.labels else "right"
        rich_table.add_column(column, justify=justify, no_wrap=index < table.labels)
    for line in table.rows:
        rich_table.add_row(*(ratio_text(c) if isinstance(c, float) else c or "-" for c in line))
    console.print(rich_table)


def ratio_text(ratio: float) -> Text:
    return Text(f"{ratio:.2f}", style="red" if ratio < NOISE else "green" if ratio > 1 / NOISE else "")


def markdown(data: dict, plots: list[str]) -> str:
    """The report of one run."""
    if "paths" in data:
        return f"Measured on {describe_machine(data)}.\n\n{markdown_table(paths_table(data))}\n"
    parts = [
        f"Measured on {data['datetime'][:10]} on {describe_machine(data)}. {describe_noise(data)}.",
        "\n".join(f"- {line}" for line in notes(data)),
        *(f"![{Path(plot).stem}]({plot})" for plot in plots),
    ]
    parts += map(markdown_table, tables(data))
    return "\n\n".join(parts) + "\n"


def markdown_table(table: Table) -> str:
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    cells = ([f"{c:.2f}" if isinstance(c, float) else c or "" for c in line] for line in lines)
    return f"### {table.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in cells)


def write_report(runs: list[dict], path: Path, plots: Path | None = None) -> list[Path]:
    """Write Markdown beside the JSON at `path`, and plots into the folder `plots` (default: the same folder).

    Returns: the paths of the files written.
    """
    plots = plots or path.parent
    plots.mkdir(parents=True, exist_ok=True)
    names = [f"{path.stem}-{run['name']}" if "name" in run else path.stem for run in runs]
    drawn = [draw_run(run, plots / name) for run, name in zip(runs, names, strict=True)]
    report = path.with_suffix(".md")
    pictures = [[os.path.relpath(plot, path.parent) for plot in of_run] for of_run in drawn]
    report.write_text(document(path.stem, runs, pictures))
    return [report, *(plot for of_run in drawn for plot in of_run)]


def draw_run(run: dict, path: Path) -> list[Path]:
    return [] if "paths" in run else draw(read_rows(run), path)


def document(name: str, runs: list[dict], pictures: list[list[str]]) -> str:
    """The report of several runs: a list of their titles, and a section for each.

    A run without a title is alone in its file and needs no section.
    """
    texts = list(map(markdown, runs, pictures))
    titles = [run["title"] for run in runs if "title" in run]
    if not titles:
        return "\n".join(texts)
    contents = "\n".join(f"- [{title}](#{anchor(title)})" for title in titles)
    sections = (f"## {title}\n\n{text}" for title, text in zip(titles, texts, strict=True))
    return "\n".join([f"# Benchmarks: {name}\n\n{contents}\n", *sections])


def anchor(title: str) -> str:
    """The name that GitHub gives to the section."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
