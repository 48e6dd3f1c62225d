"""Questions and answers for seq2seq.py: dates as people write them and in ISO form, or pairs of a file."""

from __future__ import annotations

import calendar
import random
from datetime import date, timedelta
from pathlib import Path

import common

Pair = tuple[str, str]


def forms(day: date) -> list[str]:
    """How people write a date."""
    d, y = day.day, day.year
    month, weekday = calendar.month_name[day.month].lower(), calendar.day_name[day.weekday()].lower()
    nth = f"{d}th" if 11 <= d <= 13 else f"{d}" + {1: "st", 2: "nd", 3: "rd"}.get(d % 10, "th")
    short = [f"{d} {month[:3]} {y}", f"{weekday[:3]} {month[:3]} {d} {y}", f"{month[:3]} {nth} '{y % 100:02}"]
    long = [f"the {nth} of {month}, {y}", f"{weekday}, the {nth} of {month} {y}", f"{month} {d}, {y}"]
    return [*short, *long, f"{d}.{day.month}.{y}"]


def date_pairs(count: int, reverse: bool, rng: random.Random) -> list[list[Pair]]:
    """Dates of a hundred years, drawn at random: each is a group of pairs, in four of its forms."""
    days = [date(1950, 1, 1) + timedelta(number) for number in rng.sample(range(36525), count)]
    if reverse:
        return [[(day.isoformat(), forms(day)[0])] for day in days]
    return [[(form, day.isoformat()) for form in rng.sample(forms(day), 4)] for day in days]


def file_pairs(path: Path) -> list[list[Pair]]:
    """The pairs of a file, those with the same question in a group."""
    groups: dict[str, list[Pair]] = {}
    for number, line in enumerate(common.read_text(path, "--pairs").splitlines(), 1):
        question, _, answer = (part.strip() for part in line.partition("\t"))
        if not (question and answer):
            raise SystemExit(f"--pairs {path}: expected question TAB answer, line {number} is {line[:40]!r}")
        groups.setdefault(question, []).append((question, answer))
    if len(groups) < 10:
        raise SystemExit(f"--pairs {path}: expected at least 10 different questions, got {len(groups)}")
    return list(groups.values())
