"""Where a report goes: to the terminal, or into Markdown and pictures."""

from __future__ import annotations

import os
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from ..results import NOISE, read_rows
from .plots import draw
from .prose import describe_machine, describe_noise, notes
from .tables import Table, tables


def print_report(data: dict, console: Console):
    for table in reversed(tables(data)):  # what matters most comes last, where the reader's eye is
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


def write_report(data: dict, path: Path, plots: Path) -> list[Path]:
    """Markdown beside the JSON at `path`, plots into the folder `plots`; returns what was written."""
    plots.mkdir(parents=True, exist_ok=True)
    drawn = draw(read_rows(data), plots / path.stem)
    report = path.with_suffix(".md")
    report.write_text(markdown(data, [os.path.relpath(plot, path.parent) for plot in drawn]))
    return [report, *drawn]
