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
# The project's goals on the whole grid: for the geometric mean, and for the worst shape (None: no goal).
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
    """A cell of a table is a text, a ratio to a peer, or None, which is empty.

    Attributes:
        labels: the first so many columns name the row
    """

    title: str
    columns: list[str]
    rows: list[list[str | float | None]]
    labels: int = 1


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
    columns += [head for peer in (*peers, "the fastest peer") for head in (f"vs {peer}", "worst")]
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
    """Mean and worst ratio of each regime that has goals, and the goals."""
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
    """Ratios by shape and cell, for the two modes that have the whole grid."""
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
    """The goals, what fastrnn reaches, and what a library at the machine's limit would reach."""
    body = []
    for (mode, cell, peer), goals in GOALS.items():
        same = [row for row in rows if (row.problem.mode, row.problem.cell) == (mode, cell)]
        same = [row for row in same if row.ratio(peer)]
        if same:
            reached = means([row.ratio(peer) for row in same])
            ceiling = means([row.median[peer] / row.limit for row in same])
            numbers = [number for of in zip(reached, goals, ceiling, strict=True) for number in of]
            body.append([mode, cell, peer, *numbers])
    columns = ["mode", "cell", "peer"]
    columns += [f"{of}{name}" for of in ("", "worst: ") for name in ("reached", "goal", AT_LIMIT)]
    title = (
        "Times as fast as a peer: what fastrnn reaches, the goal, and what is possible at the machine's limit"
    )
    return Table(title, columns, body, labels=3)


def bounds_table(rows: list[Row], limits: dict[int, Limits]) -> Table:
    """The work of each problem, and the least time for it.

    The table leaves out the scaling modes, which repeat other problems, and GPUs, which can keep W_hh in
    registers.
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
            line.append(percent(row.efficiency(peer)))
        body.append(line)
    columns = ["mode", "cell", "T,B,I,H", "Mflop", "activations per step", "W_hh", "bound by"]
    columns += ["limit per step", "fastrnn per step", "difference"]
    columns += [f"efficiency of {peer}" for peer in (FASTRNN, TORCH, ONNXRUNTIME)]
    return Table("What bounds each problem", columns, body, labels=3)


def behind_table(rows: list[Row]) -> Table:
    """The problems on which a peer is faster than fastrnn, and the efficiency of both."""
    body = []
    for row in sorted(rows, key=lambda row: row.best_ratio or 1):
        if row.best_ratio is None or row.best_ratio >= NOISE:
            continue
        problem = row.problem
        peer = min(PEERS_OF_FASTRNN, key=lambda peer: row.median.get(peer, float("inf")))
        line = [problem.group, problem.cell_name, str(problem.shape), str(problem.threads), peer]
        line += [row.best_ratio, duration(row.median[FASTRNN] - row.median[peer])]
        body.append([*line, *(percent(row.efficiency(p)) for p in (FASTRNN, peer))])
    columns = ["mode", "cell", "T,B,I,H", "threads", "peer", "times as fast", "difference"]
    columns += [f"efficiency of {FASTRNN}", "efficiency of the peer"]
    return Table(f"Problems on which a peer is more than {1 - NOISE:.0%} faster", columns, body, labels=3)


def detail_table(group: str, rows: list[Row]) -> Table:
    peers = [*present_peers(rows), FASTRNN]
    varied = len({row.problem.threads for row in rows}) > 1
    on_gpu = rows[0].problem.device == "cuda"
    columns = ["cell", "T,B,I,H", *["threads"] * varied, *peers, "vs the fastest peer", "A/A", "efficiency"]
    measured = any(row.round_trip for row in rows)
    columns += ["per step", "plans"] * on_gpu + ["round trip"] * measured
    body = []
    for row in sorted(rows, key=lambda row: row.problem.cell_name):
        problem = row.problem
        line = [problem.cell_name, str(problem.shape), *[str(problem.threads)] * varied]
        line += [time_cell(row, peer) for peer in peers]
        line += [row.best_ratio, row.aa, percent(row.efficiency())]
        if on_gpu:
            took = row.median.get(FASTRNN)
            line += [took and duration(took / problem.steps), row.plans]
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
    """`factor` times the time of the first of each pair / the time of the second.

    A column for each library, and one for a library that takes the least time on both.
    """
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
    """Pairs of the same problem with the fewest and with the most threads."""
    by_problem = grouped(rows, lambda row: replace(row.problem, mode="", threads=0)).values()
    ordered = [sorted(same, key=lambda row: row.problem.threads) for same in by_problem]
    return [(same[0], same[-1]) for same in ordered if same[0].problem.threads < same[-1].problem.threads]


def pairs_with(mode: str, rows: list[Row], **plain) -> list[tuple[Row, Row]]:
    """Pairs of a problem of whole sequences, with the fields `plain`, and the same problem in `mode`."""
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
            "Speed-up from one thread per core to two, forward (1.00: nothing is lost)",
            thread_pairs([row for row in rows if row.problem.mode == "oversubscribed"]),
        ),
        speedup_table(
            "Speed-up of a bidirectional layer over one direction after the other",
            pairs_with("bidirectional", rows, directions=1),
            factor=2,
        ),
        speedup_table(
            "Speed-up of a bidirectional layer on all cores over one direction after the other on one core",
            pairs_with("bidirectional", rows, directions=1, threads=1),
            factor=2,
        ),
        speedup_table("Speed-up of bfloat16 over float32", pairs_with("bfloat16", rows, dtype="float32")),
    ]
    return [table for table in result if table.rows]


def linear_table(rows: list[Row]) -> Table:
    """Whether time is linear in T."""
    body = []
    for (cell, threads), chosen in grouped(rows, lambda row: (row.problem.cell, row.problem.threads)).items():
        for library in LIBRARIES:
            points = [(r.problem.shape.T, r.median[library]) for r in chosen if library in r.median]
            if len(points) > 2:  # a line through two points has no error
                line = fit_line(points)
                numbers = [f"{line.start * 1e6:.1f} us", f"{line.slope * 1e6:.2f} us", percent(line.error)]
                body.append([cell, str(threads), library, *numbers])
    columns = ["cell", "threads", "library", "start", "per step", "largest error"]
    return Table("Time of the forward as a line in T: start + T * time per step", columns, body, labels=3)


def memory_table(data: dict) -> Table:
    body = []
    for entry in data["memory"]:
        problem, used = Problem.from_json(entry["problem"]), entry["bytes"]
        sizes = [f"{used[library] / 2**20:.1f} MiB" for library in LIBRARIES]
        body.append([problem.cell, str(problem.shape), *sizes, used[FASTRNN] / used[TORCH]])
    columns = ["cell", "T,B,I,H", *LIBRARIES, "fastrnn / torch.nn"]
    return Table("Peak memory of a training step, without weights and input", columns, body, labels=2)


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
        "Two processes at once: time of the slower one / time of one process alone, forward (2.00: each has "
        "half of the cores)"
    )
    return Table(title, ["T,B,I,H", *(" ".join(column) for column in columns)], body)


def paths_table(data: dict) -> Table:
    """For `python -m benchmarks.paths`."""
    cells = list(dict.fromkeys(row["cell"] for row in data["paths"]))
    lines = {}
    for row in data["paths"]:
        base, *others = row["seconds"]
        for other in others:
            line = lines.setdefault((f"{other} / {base}", str(Shape(*row["shape"]))), {})
            line[row["cell"]] = f"{row['seconds'][other] / row['seconds'][base]:.2f}"
    body = [[*labels, *(line[cell] for cell in cells)] for labels, line in lines.items()]
    return Table("Time relative to a base", ["path / base", "T,B,I,H", *cells], body, labels=2)


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
    return Table("Limits of this machine, measured in the same run", columns, body)


def tables(data: dict) -> list[Table]:
    """All tables of a run, the most important first."""
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
