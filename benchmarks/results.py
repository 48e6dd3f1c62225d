"""What a run found, read from its JSON: the times of each problem and what they mean."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from statistics import geometric_mean

import numpy as np

from .limits import Limits
from .peers import AGAIN, COMPILED, FASTRNN, ONNXRUNTIME, TORCH
from .problems import Problem

PEERS_OF_FASTRNN = (TORCH, ONNXRUNTIME, COMPILED)
NOISE = 0.97  # a ratio between this and its inverse may be noise


@dataclass
class Row:
    """The times of one problem; a peer that did not run has none.

    Attributes:
        median, quietest: seconds, by peer; quietest is the mean of the quietest third
        spread: interquartile range / median, by peer
        refusals: why a peer did not run, by peer
        limit: seconds that the machine needs at least
        tiers: on a GPU, what the plan chose for the forward and the backward
        round_trip: on a CPU, seconds from a core to another and back when the problem was timed
    """

    problem: Problem
    limit: float
    median: dict[str, float] = field(default_factory=dict)
    quietest: dict[str, float] = field(default_factory=dict)
    spread: dict[str, float] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)
    tiers: str = ""
    round_trip: float | None = None

    def ratio(self, peer: str, to: str = FASTRNN) -> float | None:
        """How many times as fast `to` is as `peer`; None where one of them did not run."""
        if peer in self.median and to in self.median:
            return self.median[peer] / self.median[to]
        return None

    @property
    def best_ratio(self) -> float | None:
        """To the fastest of the peers."""
        ratios = [ratio for peer in PEERS_OF_FASTRNN if (ratio := self.ratio(peer))]
        return min(ratios, default=None)

    @property
    def aa(self) -> float | None:
        return self.ratio(TORCH, to=AGAIN)

    @property
    def of_limit(self) -> float | None:
        return self.limit / self.median[FASTRNN] if FASTRNN in self.median else None


def read_limits(data: dict) -> dict[int, Limits]:
    """By the number of threads."""
    return {int(threads): Limits(**fields) for threads, fields in data["limits"].items()}


def read_rows(data: dict) -> list[Row]:
    limits, cores = read_limits(data), data["machine_info"]["cores"]
    tiers, round_trips = data.get("tiers", {}), data.get("round_trips", {})
    rows: dict[Problem, Row] = {}

    def row_of(fields: dict) -> Row:
        problem = Problem.from_json(fields)
        if problem not in rows:
            limit = limits[min(problem.threads, cores)].seconds(problem)
            name = problem.name
            rows[problem] = Row(problem, limit, tiers=tiers.get(name, ""), round_trip=round_trips.get(name))
        return rows[problem]

    for benchmark in data["benchmarks"]:
        info, stats = benchmark["extra_info"], benchmark["stats"]
        row, peer = row_of(info["problem"]), info["peer"]
        row.median[peer] = stats["median"]
        row.quietest[peer] = info["quietest"]
        row.spread[peer] = stats["iqr"] / stats["median"]
    for refusal in data["refusals"]:
        row_of(refusal["problem"]).refusals[refusal["peer"]] = refusal["reason"]
    return list(rows.values())


def merge(runs: list[dict]) -> dict:
    """One run's JSON of that of several, which timed other problems on the same machine."""
    merged, *others = copy.deepcopy(runs)
    for run in others:
        for key in ("benchmarks", "memory", "contention", "refusals"):
            merged[key] += run[key]
        for key in ("missing", "tiers", "round_trips"):
            merged[key] |= run[key]
        for threads, limits in run["limits"].items():
            best = merged["limits"].setdefault(threads, limits)
            for part in ("gemm", "bandwidth"):
                for name, found in limits[part].items():
                    best[part][name] = max(found, best[part].get(name, found))
    return merged


def means(values: list[float | None]) -> tuple[float, float] | None:
    """The geometric mean and the smallest of what there is."""
    present = [value for value in values if value is not None]
    return (geometric_mean(present), min(present)) if present else None


@dataclass(frozen=True)
class Line:
    """`seconds = start + slope * T`, fitted; `error` is the largest relative distance of a point to it."""

    start: float
    slope: float
    error: float


def fit_line(points: list[tuple[float, float]]) -> Line:
    """Through `(T, seconds)`, by least squares of the relative distances, so that short times count too."""
    T, seconds = np.array(sorted(points)).T
    slope, start = np.polyfit(T, seconds, 1, w=1 / seconds)
    return Line(start, slope, np.abs((start + slope * T) / seconds - 1).max())
