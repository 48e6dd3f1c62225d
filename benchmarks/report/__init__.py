"""The report of a run: tables in the terminal, Markdown and plots in files.

`python -m benchmarks` writes it. `python -m benchmarks.report` writes it again from the JSON of a run.
"""

from .prose import describe_noise
from .render import markdown, markdown_table, print_report, write_report
from .tables import Table, regime_table, tables

__all__ = [
    "Table",
    "describe_noise",
    "markdown",
    "markdown_table",
    "print_report",
    "regime_table",
    "tables",
    "write_report",
]
