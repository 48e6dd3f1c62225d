"""The results of a run: the times of each problem, their statistics, and the files that hold them.

A run has two forms. `python -m benchmarks` writes the full one: the JSON of pytest-benchmark with more in it.
`compact` makes the small form, which has only what a report needs. The small file of a machine holds several
runs; `python -m benchmarks.keep` writes it.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import geometric_mean

import numpy as np

from .limits import Limits
from .peers import AGAIN, COMPILED, FASTRNN, ONNXRUNTIME, TORCH
from .problems import Problem

PEERS_OF_FASTRNN = (TORCH, ONNXRUNTIME, COMPILED)
NOISE = 0.97  # a ratio between this and its inverse may be noise
# What a report says of a machine and of the software on it.
MACHINE = (
    "cpu",
    "gpu",
    "cores",
    "threads",
    "torch",
    "torch_isa",
    "onnxruntime",
    "fastrnn",
    "python_version",
)
TIMES = ("median", "quietest", "spread")  # of a peer, in the small form
DIGITS = 9  # of the numbers in the small form: so many that rounding does not show in a report


@dataclass
class Row:
    """The times of one problem. A peer that did not run has none.

    Attributes:
        limit: seconds that the machine needs at least; None until the limits of the machine are known
        median, quietest: seconds, by peer; quietest is the mean of the quietest third
        spread: interquartile range / median, by peer
        plans: on a GPU, the kinds of plan for the forward and the backward
        round_trip: on a CPU, seconds from a core to another and back when the problem was timed
    """

    problem: Problem
    limit: float | None = None
    median: dict[str, float] = field(default_factory=dict)
    quietest: dict[str, float] = field(default_factory=dict)
    spread: dict[str, float] = field(default_factory=dict)
    plans: str = ""
    round_trip: float | None = None

    def to_json(self) -> dict:
        times = {peer: [getattr(self, name)[peer] for name in TIMES] for peer in self.median}
        others = {"plans": self.plans, "round_trip": self.round_trip}
        return {"problem": self.problem.to_json(), "times": times, **{k: v for k, v in others.items() if v}}

    @classmethod
    def from_json(cls, entry: dict) -> Row:
        given = {**entry, "problem": Problem.from_json(entry["problem"])}
        times = given.pop("times")
        by_name = {name: {peer: times[peer][i] for peer in times} for i, name in enumerate(TIMES)}
        return cls(**given, **by_name)

    def ratio(self, peer: str, to: str = FASTRNN) -> float | None:
        """How many times as fast `to` is as `peer`. None if one of them did not run."""
        if peer in self.median and to in self.median:
            return self.median[peer] / self.median[to]
        return None

    @property
    def best_ratio(self) -> float | None:
        """The ratio to the fastest peer."""
        ratios = [ratio for peer in PEERS_OF_FASTRNN if (ratio := self.ratio(peer))]
        return min(ratios, default=None)

    @property
    def aa(self) -> float | None:
        """The ratio of torch.nn to itself, timed twice: 1 without noise."""
        return self.ratio(TORCH, to=AGAIN)

    def efficiency(self, peer: str = FASTRNN) -> float | None:
        """The least time that the machine needs / the time that `peer` takes."""
        return self.limit / self.median[peer] if peer in self.median else None


def read_limits(data: dict) -> dict[int, Limits]:
    """The limits of the machine, by the number of threads."""
    return {int(threads): Limits(**fields) for threads, fields in data["limits"].items()}


def read_rows(data: dict) -> list[Row]:
    data = compact(data)
    limits, cores = read_limits(data), data["machine_info"]["cores"]
    rows = list(map(Row.from_json, data["rows"]))
    for row in rows:
        row.limit = limits[min(row.problem.threads, cores)].seconds(row.problem)
    return rows


def compact(data: dict) -> dict:
    """The small form of a run. `data` is the full form, or already the small one."""
    if "benchmarks" not in data:
        return data
    result = {
        "datetime": data["datetime"],
        "commit": data["commit_info"]["id"],
        "machine_info": {
            name: data["machine_info"][name] for name in MACHINE if name in data["machine_info"]
        },
        "limits": data["limits"],
        "missing": data["missing"],
        **{name: list(map(shorten, data[name])) for name in ("memory", "contention")},
        "refusals": distinct({"peer": r["peer"], "reason": r["reason"]} for r in data["refusals"]),
        "rows": [row.to_json() for row in make_rows(data)],
    }
    return rounded(result)


def make_rows(data: dict) -> list[Row]:
    """The rows of a run in the full form."""
    plans, round_trips = data.get("plans", {}), data.get("round_trips", {})
    rows: dict[Problem, Row] = {}

    def row_of(fields: dict) -> Row:
        problem = Problem.from_json(fields)
        if problem not in rows:
            name = problem.name
            rows[problem] = Row(problem, plans=plans.get(name, ""), round_trip=round_trips.get(name))
        return rows[problem]

    for benchmark in data["benchmarks"]:
        info, stats = benchmark["extra_info"], benchmark["stats"]
        row, peer = row_of(info["problem"]), info["peer"]
        row.median[peer] = stats["median"]
        row.quietest[peer] = info["quietest"]
        row.spread[peer] = stats["iqr"] / stats["median"]
    for refusal in data["refusals"]:
        row_of(refusal["problem"])  # a problem that no peer supports has a row, too
    return list(rows.values())


def shorten(entry: dict) -> dict:
    """The same entry, without the defaults of its problem."""
    return {**entry, "problem": Problem.from_json(entry["problem"]).to_json()}


def distinct(values) -> list:
    """Each of `values` once, in order."""
    return list({json.dumps(value): value for value in values}.values())


def rounded(value):
    """The same data with DIGITS digits in each number."""
    if isinstance(value, dict):
        return {name: rounded(v) for name, v in value.items()}
    if isinstance(value, list):
        return list(map(rounded, value))
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def read_runs(path: Path) -> list[dict]:
    """The runs in the file of a machine, or the one run that `python -m benchmarks` wrote."""
    data = json.loads(path.read_text())
    return data.get("runs", [data])


def write_runs(runs: list[dict], path: Path):
    """Write the file of a machine. Each entry of a list has a line, so that a diff shows what changed."""
    path.write_text(to_text({"runs": runs}, depth=4) + "\n")


def to_text(value, depth: int) -> str:
    """JSON. Its outer `depth` levels have a line for each item."""
    if depth == 0 or not value or not isinstance(value, (dict, list)):
        return json.dumps(value)
    if isinstance(value, list):
        return "[\n" + ",\n".join(to_text(v, depth - 1) for v in value) + "\n]"
    items = (f"{json.dumps(name)}: {to_text(v, depth - 1)}" for name, v in value.items())
    return "{\n" + ",\n".join(items) + "\n}"


def merge(runs: list[dict]) -> dict:
    """Join runs, in the full form, that timed different problems on the same machine."""
    merged, *others = copy.deepcopy(runs)
    for run in others:
        for key in ("benchmarks", "memory", "contention", "refusals"):
            merged[key] += run[key]
        for key in ("missing", "plans", "round_trips"):
            merged[key] |= run[key]
        for threads, limits in run["limits"].items():
            best = merged["limits"].setdefault(threads, limits)
            for part in ("gemm", "bandwidth"):
                for name, found in limits[part].items():
                    best[part][name] = max(found, best[part].get(name, found))
    return merged


def means(values: list[float | None]) -> tuple[float, float] | None:
    """The geometric mean and the smallest of the values that are not None."""
    present = [value for value in values if value is not None]
    return (geometric_mean(present), min(present)) if present else None


@dataclass(frozen=True)
class Line:
    """`seconds = start + slope * T`. `error` is the largest relative error of a point."""

    start: float
    slope: float
    error: float


def fit_line(points: list[tuple[float, float]]) -> Line:
    """Fit a line to points `(T, seconds)`, by least squares of the relative errors: short times count as much
    as long ones.
    """
    T, seconds = np.array(sorted(points)).T
    slope, start = np.polyfit(T, seconds, 1, w=1 / seconds)
    return Line(start, slope, np.abs((start + slope * T) / seconds - 1).max())
