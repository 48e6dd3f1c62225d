"""Daily prices for stock.py: Google's, which come with matplotlib, or those of a CSV file."""

from __future__ import annotations

import csv
from datetime import date
from pathlib import Path

import common
import numpy as np


def read_prices(path: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Days `[N]` in the order of time, and their prices `[N]`."""
    if path is None:
        from matplotlib.cbook import get_sample_data

        data = get_sample_data("goog.npz")["price_data"]
        return data["date"], data["adj_close"]
    rows = csv.DictReader(common.read_text(path, "--prices").splitlines())
    columns = {name.strip().lower(): name for name in rows.fieldnames or []}
    if not {"date", "close"} <= columns.keys():
        raise SystemExit(f"--prices {path}: expected the columns date and close, got {list(columns)}")
    days, prices = [], []
    for row in rows:
        try:
            days.append(np.datetime64(date.fromisoformat(row[columns["date"]])))
            prices.append(float(row[columns["close"]]))
            if not 0 < prices[-1] < np.inf:
                raise ValueError
        except (ValueError, TypeError):
            where, got = f"--prices {path}, line {rows.line_num}", ",".join(map(str, row.values()))
            raise SystemExit(
                f"{where}: expected a day as 2004-08-19 and a close above 0, got {got}"
            ) from None
    order = np.argsort(days)
    return np.array(days, "datetime64[D]")[order], np.array(prices)[order]
