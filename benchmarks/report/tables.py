"""The tables of a report, each built from the rows of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..limits import Limits
from ..peers import FASTRNN, ONNXRUNTIME, TORCH
from ..problems import MODES, Problem, Shape
from ..results import NOISE, PEERS_OF_FASTRNN, Row, fit_line, means, read_limits, read_rows
from .prose import NOT_SUPPORTED, duration, nanoseconds, percent

LIBRARIES = (TORCH, FASTRNN)
AT_LIMIT = "at the limit"
# What the project aims at on the whole grid: geometric mean and worst shape (None: no aim).
GOALS = {
    ("forward", "lstm", TORCH): (1.7, 1.0),
    ("forward", "gru", TORCH): (4.0, 1.3),
    ("forward", "rnn_tanh", TORCH): (3.6, 1.4),
    ("training", "lstm", TORCH): (1.55, 1.0),
    ("training", "gru", TORCH): (4.5, 1.25),
    ("training", "rnn_tanh", TORCH): (3.8, 1.15),
    ("forward", "lstm", ONNXRUNTIME): (1.3, None),
    ("forward", "gru", ONNXRUNTIME): (1.5, None),
    ("forward", "rnn_tanh", ONNXRUNTIME): (2.2, None),
}


@dataclass
class Table:
    """A cell is text, or a ratio to torch.nn or another peer, or None where there is nothing to say."""

    title: str
    columns: list[str]
    rows: list[list[str | float | None]]
    labels: int = 1  # so many first columns name the row


def grouped(rows: list[Row], key: Callable[[Row], object]) -> dict[object, list[Row]]:
    result = {}
    for row in rows:
        result.setdefault(key(row), []).append(row)
    return result


def present_peers(rows: list[Row]) -> list[str]:
    return [peer for peer in PEERS_OF_FASTRNN if any(peer in row.median for row in rows)]


def summary_table(rows: list[Row]) -> Table:
    """Mean and worst ratio of each mode and cell."""
    peers = present_peers(rows)
    columns = ["mode", "cell", "problems"]
    columns += [head for peer in (*peers, "the best") for head in (f"vs {peer}", "worst")]
    body = []
    for (group, cell), chosen in grouped(
        rows, lambda row: (row.problem.group, row.problem.cell_name)
    ).items():
        line = [group, cell, str(len(chosen))]
        for peer in peers:
            line += means([row.ratio(peer) for row in chosen]) or (None, None)
        line += means([row.best_ratio for row in chosen]) or (None, None)
        aa = means([row.aa for row in chosen])
        body.append([*line, aa and aa[0]])
    title = "Times as fast as each peer: geometric mean and worst"
    return Table(title, [*columns, "A/A"], body, labels=2)


def regime_table(rows: list[Row]) -> Table:
    """Mean and worst ratio of each regime that has goals, beside the goals."""
    body = []
    of_regime = grouped(
        [row for row in rows if MODES[row.problem.mode].goals],
        lambda row: (row.problem.mode, row.problem.graph, row.problem.training),
    )
    for (mode, graph, training), chosen in of_regime.items():
        found = means([row.ratio(TORCH) for row in chosen])
        launched = "CUDA graph" if graph else "eager"
        passes = "training" if training else "forward"
        goal = f"{MODES[mode].goals[training]:g}"
        body.append([mode, passes, launched, str(len(chosen)), *(found or (None, None)), goal])
    columns = ["regime", "pass", "launched", "problems", f"vs {TORCH}", "worst", "goal"]
    return Table("Regimes of a GPU: times as fast as torch.nn, geometric mean and worst", columns, body, 3)


def ratio_table(peer: str, rows: list[Row]) -> Table:
    """By shape and cell, of the two modes that have the whole grid."""
    chosen = [row for row in rows if row.problem.mode in ("forward", "training") and row.ratio(peer)]
    cells = grouped(chosen, lambda row: (row.problem.group, row.problem.cell))
    body = []
    for shape, of_shape in grouped(chosen, lambda row: row.problem.shape).items():
        ratios = {(row.problem.group, row.problem.cell): row.ratio(peer) for row in of_shape}
        body.append([str(shape), *map(ratios.get, cells)])
    for index, label in enumerate(("geometric mean", "worst shape")):
        body.append(
            [label, *(means([row.ratio(peer) for row in column])[index] for column in cells.values())]
        )
    return Table(
        f"Times as fast as {peer}: whole sequences", ["T,B,I,H", *(f"{c} {g}" for g, c in cells)], body
    )


def ceiling_table(rows: list[Row]) -> Table:
    """What is reached of the goals, and what a library would reach that ran at the limit on every shape."""
    body = []
    for (mode, cell, peer), goals in GOALS.items():
        same = [row for row in rows if (row.problem.mode, row.problem.cell) == (mode, cell)]
        same = [row for row in same if row.ratio(peer)]
        if same:
            reached = means([row.ratio(peer) for row in same])
            ceiling = means([row.median[peer] / row.limit for row in same])
            numbers = [number for of in zip(reached, goals, ceiling, strict=True) for number in of]
            body.append([mode, cell, peer, *numbers])
    columns = ["mode", "cell", "beside"]
    columns += [f"{name}{of}" for of in ("", " of the worst") for name in ("reached", "goal", AT_LIMIT)]
    return Table("The goals, and what the machine's limit leaves to be had", columns, body, labels=3)


def bounds_table(rows: list[Row], limits: dict[int, Limits]) -> Table:
    """What each time is made of: counts, and how long they take at best.

    Not of scaling, which repeats other problems, nor of a GPU, which need not read W_hh again.
    """
    body = []
    for row in rows:
        problem = row.problem
        repeated = problem.mode.startswith(("scaling", "oversubscribed"))
        if repeated or problem.device == "cuda" or FASTRNN not in row.median:
            continue
        of, size, steps = limits[problem.threads], problem.recurrent_bytes, problem.steps
        streamed = of.streamed(problem) > of.recurrent(problem)
        line = [problem.group, problem.cell_name, str(problem.shape), f"{problem.flops / 1e6:.0f}"]
        line.append(f"{problem.activations / steps:.0f}")
        line += [f"{size / 1024:.0f} KiB ({of.level(size)})", "reading W_hh" if streamed else "products"]
        line += [duration(seconds / steps) for seconds in (row.limit, row.median[FASTRNN])]
        line.append(f"{(row.median[FASTRNN] - row.limit) / steps * 1e6:.2f} us")
        for peer in (FASTRNN, TORCH, ONNXRUNTIME):
            line.append(percent(row.limit / row.median[peer]) if peer in row.median else None)
        body.append(line)
    columns = ["mode", "cell", "T,B,I,H", "Mflop", "activations a step", "W_hh", "a step bound by"]
    columns += ["limit of a step", "fastrnn's", "beyond it"]
    columns += ["fastrnn of limit", "torch.nn of limit", "onnxruntime of limit"]
    return Table("What bounds each problem", columns, body, labels=3)


def behind_table(rows: list[Row]) -> Table:
    """Where a peer is faster, and how far both are from the limit."""
    body = []
    for row in sorted(rows, key=lambda row: row.best_ratio or 1):
        if row.best_ratio is None or row.best_ratio >= NOISE:
            continue
        problem = row.problem
        peer = min(PEERS_OF_FASTRNN, key=lambda peer: row.median.get(peer, float("inf")))
        line = [problem.group, problem.cell_name, str(problem.shape), str(problem.threads), peer]
        ahead = duration(row.median[FASTRNN] - row.median[peer])
        body.append(
            [*line, row.best_ratio, ahead, *(percent(row.limit / row.median[p]) for p in (FASTRNN, peer))]
        )
    columns = ["mode", "cell", "T,B,I,H", "threads", "peer", "times as fast", "a call behind"]
    columns += ["fastrnn of limit", "peer of limit"]
    return Table(f"Where a peer is faster, by more than noise ({1 - NOISE:.0%})", columns, body, labels=3)


def detail_table(group: str, rows: list[Row]) -> Table:
    peers = [*present_peers(rows), FASTRNN]
    varied = len({row.problem.threads for row in rows}) > 1
    on_gpu = rows[0].problem.device == "cuda"
    columns = ["cell", "T,B,I,H", *["threads"] * varied, *peers, "to best", "A/A", "of limit"]
    measured = any(row.round_trip for row in rows)
    columns += ["a step", "tiers"] * on_gpu + ["round trip"] * measured
    body = []
    for row in sorted(rows, key=lambda row: row.problem.cell_name):
        problem = row.problem
        line = [problem.cell_name, str(problem.shape), *[str(problem.threads)] * varied]
        line += [time_cell(row, peer) for peer in peers]
        line += [row.best_ratio, row.aa, percent(row.of_limit)]
        if on_gpu:
            took = row.median.get(FASTRNN)
            line += [took and duration(took / problem.steps), row.tiers]
        if measured:
            line.append(row.round_trip and nanoseconds(row.round_trip))
        body.append(line)
    return Table(f"{group}: {TIME_CELL}", columns, body, labels=2)


TIME_CELL = "median time of a call ± half the interquartile range (mean of the quietest third)"


def time_cell(row: Row, peer: str) -> str:
    if peer not in row.median:
        return NOT_SUPPORTED
    number, unit = duration(row.median[peer]).split()
    quietest = row.quietest[peer] * (float(number) / row.median[peer])
    digits = len(number.partition(".")[2])
    return f"{number} {unit} ±{row.spread[peer] / 2:.0%} ({quietest:.{digits}f})"


def speedup_table(title: str, pairs: list[tuple[Row, Row]], factor: float = 1.0) -> Table:
    """How many times as fast the second of each pair is as `factor` times the first: of each library, and of
    one that ran at the limit on both."""
    cells = dict.fromkeys(row.problem.cell for row, _ in pairs)
    columns = [(cell, name) for cell in cells for name in (*LIBRARIES, AT_LIMIT)]
    lines = {}
    for slow, fast in pairs:
        training = " training" if fast.problem.training else ""
        line = lines.setdefault(f"{fast.problem.shape}{training}", {})
        for library in LIBRARIES:
            if library in slow.median and library in fast.median:
                line[fast.problem.cell, library] = factor * slow.median[library] / fast.median[library]
        line[fast.problem.cell, AT_LIMIT] = factor * slow.limit / fast.limit
    body = [[label, *map(line.get, columns)] for label, line in lines.items()]
    return Table(title, ["T,B,I,H", *(" ".join(column) for column in columns)], body)


def thread_pairs(rows: list[Row]) -> list[tuple[Row, Row]]:
    """The same problem with the fewest and with the most threads."""
    by_problem = grouped(rows, lambda row: replace(row.problem, mode="", threads=0)).values()
    ordered = [sorted(same, key=lambda row: row.problem.threads) for same in by_problem]
    return [(same[0], same[-1]) for same in ordered if same[0].problem.threads < same[-1].problem.threads]


def pairs_with(mode: str, rows: list[Row], **plain) -> list[tuple[Row, Row]]:
    """The problems of `mode`, each behind the one of whole sequences that has `plain` instead."""

    modes = ("forward", "training", "scaling")
    wholes = {replace(r.problem, mode=""): r for r in reversed(rows) if r.problem.mode.startswith(modes)}
    pairs = [(replace(r.problem, mode="", **plain), r) for r in rows if r.problem.mode == mode]
    return [(wholes[problem], row) for problem, row in pairs if problem in wholes]


def scaling_tables(rows: list[Row]) -> list[Table]:
    scaling = [row for row in rows if row.problem.mode.startswith("scaling")]
    most = max((row.problem.threads for row in scaling), default=1)
    result = [
        linear_table([row for row in scaling if row.problem.mode == "scaling-T"]),
        speedup_table(f"Speed-up from 1 thread to {most}, forward", thread_pairs(scaling)),
        speedup_table(
            "Two threads a core beside one (1.00: nothing lost), forward",
            thread_pairs([row for row in rows if row.problem.mode == "oversubscribed"]),
        ),
        speedup_table(
            "Bidirectional beside one direction after the other",
            pairs_with("bidirectional", rows, directions=1),
            factor=2,
        ),
        speedup_table(
            "Bidirectional on all cores beside one direction after the other on one",
            pairs_with("bidirectional", rows, directions=1, threads=1),
            factor=2,
        ),
        speedup_table("bfloat16 beside float32", pairs_with("bfloat16", rows, dtype="float32")),
    ]
    return [table for table in result if table.rows]


def linear_table(rows: list[Row]) -> Table:
    """Whether time is linear in T."""
    body = []
    for (cell, threads), chosen in grouped(rows, lambda row: (row.problem.cell, row.problem.threads)).items():
        for library in LIBRARIES:
            points = [(r.problem.shape.T, r.median[library]) for r in chosen if library in r.median]
            if len(points) > 2:  # through two points a line always goes
                line = fit_line(points)
                numbers = [f"{line.start * 1e6:.1f} us", f"{line.slope * 1e6:.2f} us", percent(line.error)]
                body.append([cell, str(threads), library, *numbers])
    columns = ["cell", "threads", "library", "start", "each step", "farthest point"]
    return Table("Time of the forward as a line in T", columns, body, labels=3)


def memory_table(data: dict) -> Table:
    body = []
    for entry in data["memory"]:
        problem, used = Problem.from_json(entry["problem"]), entry["bytes"]
        sizes = [f"{used[library] / 2**20:.1f} MiB" for library in LIBRARIES]
        body.append([problem.cell, str(problem.shape), *sizes, used[FASTRNN] / used[TORCH]])
    columns = ["cell", "T,B,I,H", *LIBRARIES, "fastrnn / torch.nn"]
    return Table("Peak memory of a training step, beyond weights and input", columns, body, labels=2)


def contention_table(data: dict) -> Table:
    cells = list(dict.fromkeys(entry["problem"]["cell"] for entry in data["contention"]))
    lines = {}
    for entry in data["contention"]:
        problem = Problem.from_json(entry["problem"])
        line = lines.setdefault(str(problem.shape), {})
        for library, seconds in entry["seconds"].items():
            line[problem.cell, library] = f"{seconds['two'] / seconds['alone']:.2f}"
    columns = [(cell, library) for cell in cells for library in LIBRARIES]
    body = [[shape, *map(line.get, columns)] for shape, line in lines.items()]
    title = (
        "Two processes at once: how many times as long as one alone (the slower of both; 2.00 where each has "
        "half of the cores), forward"
    )
    return Table(title, ["T,B,I,H", *(" ".join(column) for column in columns)], body)


def paths_table(data: dict) -> Table:
    """Of `python -m benchmarks.paths`."""
    cells = list(dict.fromkeys(row["cell"] for row in data["paths"]))
    lines = {}
    for row in data["paths"]:
        base, *others = row["seconds"]
        for other in others:
            line = lines.setdefault((f"{other} / {base}", str(Shape(*row["shape"]))), {})
            line[row["cell"]] = f"{row['seconds'][other] / row['seconds'][base]:.2f}"
    body = [[*labels, *(line[cell] for cell in cells)] for labels, line in lines.items()]
    return Table("Times as long", ["path / base", "T,B,I,H", *cells], body, labels=2)


def limits_table(data: dict) -> Table:
    body = []
    for threads, limits in read_limits(data).items():
        for dtype, flops in limits.gemm.items():
            body.append([f"{dtype} GEMM", str(threads), "", f"{flops / 1e9:.0f} GFLOP/s"])
        for level, bandwidth in limits.bandwidth.items():
            size = limits.capacity.get(level)
            size_text = f"{size / 1024:.0f} KiB" if size else ""
            body.append([f"reading from {level}", str(threads), size_text, f"{bandwidth / 1e9:.0f} GB/s"])
    columns = ["limit", "threads", "capacity", "measured"]
    return Table("What this machine can do, measured in the same run", columns, body)


def tables(data: dict) -> list[Table]:
    """What matters most is first."""
    rows = read_rows(data)
    groups = grouped(rows, lambda row: row.problem.group)
    ratios = [ratio_table(peer, rows) for peer in (TORCH, ONNXRUNTIME)]
    regimes = regime_table(rows)
    return [
        *([regimes] if regimes.rows else []),
        summary_table(rows),
        *(table for table in ratios if len(table.columns) > 1),
        *([ceiling] if (ceiling := ceiling_table(rows)).rows else []),
        *([behind] if (behind := behind_table(rows)).rows else []),
        *([memory_table(data)] if data["memory"] else []),
        *([contention_table(data)] if data["contention"] else []),
        *scaling_tables(rows),
        *(detail_table(group, chosen) for group, chosen in groups.items()),
        *([bounds] if (bounds := bounds_table(rows, read_limits(data))).rows else []),
        limits_table(data),
    ]
