"""Time inference in short calls: frozen layers and int8 beside torch.nn, onnxruntime and torch.ao.

Single calls are timed, and a table shows the median (p50) and the 99th percentile (p99) in microseconds.
Peers take turns in blocks, as in the other benchmarks. The limit is the bytes of the packed weights over the
bandwidth of the memory level that holds them: a step cannot read them faster.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import fastrnn

from . import onnx_peer
from .limits import Limits, measure_limits
from .peers import Setup, module_call
from .problems import CELLS, DEFAULT_CELLS, NotSupported, Problem, Shape, shapes
from .timing import Call, pause

TORCH, AGAIN, AO, ONNX, ONNX_INT8 = (
    "torch.nn",
    "torch.nn again",
    "torch.ao int8",
    "onnxruntime",
    "onnxruntime int8",
)
FASTRNN, FROZEN, BF16, INT8, WIDE = (
    "fastrnn",
    "frozen",
    "frozen bfloat16",
    "frozen int8",
    "frozen int8, float32 activations",
)
ONE_STEP = shapes("1,1,64,64", "1,1,256,256", "1,1,512,512", "1,1,1024,1024")
SHORT = shapes(*(f"10,{B},{H},{H}" for B in (1, 8) for H in (128, 256, 512)))
WHOLE = shapes("100,1,256,256", "100,16,128,128", "28,64,28,150", "100,64,256,256", "50,64,512,512")
QUICK = shapes("1,1,64,64")
# Largest difference of a result from torch.nn's, relative to the norm
TOLERANCE = {TORCH: 0.0, AGAIN: 0.0, ONNX: 1e-4, FASTRNN: 1e-4, FROZEN: 1e-4, BF16: 2e-2}
TOLERANCE_INT8 = 0.1
SECONDS, BLOCK_S, MOST_CALLS = 3.0, 0.05, 2000


@dataclass(frozen=True)
class Mode:
    """Shapes, and who is timed on them."""

    shapes: tuple[Shape, ...]
    peers: tuple[str, ...]


MODES = {
    "streaming": Mode(ONE_STEP, (TORCH, AGAIN, ONNX, FASTRNN, FROZEN)),
    "frozen": Mode((*SHORT, *WHOLE), (TORCH, AGAIN, ONNX, FASTRNN, FROZEN, BF16)),
    "int8": Mode((*ONE_STEP[1:], *SHORT), (TORCH, AGAIN, AO, ONNX_INT8, FROZEN, BF16, INT8, WIDE)),
}


def frozen_call(
    setup: Setup, dtype: torch.dtype | None = None, activations: torch.dtype | None = None
) -> Call:
    layer = fastrnn.freeze(setup.module, dtype, activations=activations)
    return lambda: layer(setup.x, setup.hx)


def quantized_by_torch(setup: Setup) -> Call:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import quantize_dynamic

        kinds = {torch.nn.LSTM, torch.nn.GRU}
        if type(setup.module) not in kinds:
            raise NotSupported("quantizes no RNN layer")
        holder = torch.nn.Sequential(setup.module)
        (layer,) = quantize_dynamic(holder, kinds, dtype=torch.qint8)
    return lambda: layer(setup.x, setup.hx)


def quantized_by_onnxruntime(setup: Setup) -> Call:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    problem = setup.problem
    if problem.cell != "lstm":
        raise NotSupported("quantizes LSTM alone")

    # Without VNNI its sums of two products may overflow 16 bits, unless weights have 7; its documents say so.
    has_vnni = any("vnni" in isa for isa in fastrnn._C.isas_available())

    def quantize(model: Any) -> Any:
        with TemporaryDirectory() as folder:
            path = Path(folder, "int8.onnx")
            quantize_dynamic(
                model,
                path,
                op_types_to_quantize=["LSTM"],
                per_channel=True,
                reduce_range=not has_vnni,
                weight_type=QuantType.QInt8,
            )
            return onnx_peer.onnx.load(path)

    return onnx_peer.make_call(problem, setup.module, setup.x, setup.hx, change=quantize)


def onnx_call(setup: Setup) -> Call:
    return onnx_peer.make_call(setup.problem, setup.module, setup.x, setup.hx)


PEERS: dict[str, Callable[[Setup], Call]] = {
    TORCH: lambda setup: lambda: setup.module(setup.x, setup.hx),
    AGAIN: lambda setup: module_call(torch.nn, setup),
    AO: quantized_by_torch,
    ONNX: onnx_call,
    ONNX_INT8: quantized_by_onnxruntime,
    FASTRNN: lambda setup: module_call(fastrnn, setup),
    FROZEN: frozen_call,
    BF16: lambda setup: frozen_call(setup, torch.bfloat16),
    INT8: lambda setup: frozen_call(setup, torch.int8),
    WIDE: lambda setup: frozen_call(setup, torch.int8, torch.float32),
}


def result_of(result: Any) -> torch.Tensor:
    """The output of a layer; onnxruntime's is `[T, B, D, H]`."""
    y = result[0]
    return (y.flatten(2) if y.dim() == 4 else y).clone()


def measure(mode: str, cell: str, shape: Shape, threads: int, seconds: float) -> dict[str, Any]:
    """Single calls of all peers of a mode on one shape, in turns."""
    setup = Setup.of(Problem("forward", cell, shape, threads=threads))
    setup.module.eval()
    calls: dict[str, Call] = {}
    errors, refusals = {}, {}
    for name in MODES[mode].peers:
        try:
            calls[name] = PEERS[name](setup)
        except (NotImplementedError, ImportError) as error:
            refusals[name] = str(error)
            continue
        result = result_of(calls[name]())
        if name == TORCH:  # the first
            expected = result
        errors[name] = ((result - expected).norm() / expected.norm()).item()
        if not errors[name] <= TOLERANCE.get(name, TOLERANCE_INT8):
            raise RuntimeError(f"{mode}, {cell}, {shape}: {name} differs from torch.nn by {errors[name]:.1e}")
    samples: dict[str, list[int]] = {name: [] for name in calls}
    order, shuffle = list(calls), random.Random(0).shuffle
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not all(samples.values()):
        shuffle(order)
        for name in order:
            samples[name] += block(calls[name])
    return {
        "mode": mode,
        "cell": cell,
        "shape": list(shape),
        "p50": {name: float(np.percentile(s, 50)) / 1e3 for name, s in samples.items()},
        "p99": {name: float(np.percentile(s, 99)) / 1e3 for name, s in samples.items()},
        "errors": errors,
        "refusals": refusals,
        "limit": 0.0,
    }


def block(call: Call) -> list[int]:
    """Nanoseconds of single calls, after one that is not counted."""
    pause()
    call()
    times: list[int] = []
    end = time.perf_counter_ns() + int(BLOCK_S * 1e9)
    while len(times) < MOST_CALLS:
        start = time.perf_counter_ns()
        call()
        now = time.perf_counter_ns()
        times.append(now - start)
        if now > end:
            break
    return times


def limit_of(row: dict[str, Any], limits: Limits, nbytes: float = 4) -> float:
    """Microseconds that reading the weights takes at least: W_ih once, W_hh in each step.

    nbytes: of a number
    """
    T, _, I, H = row["shape"]
    GH = CELLS[row["cell"]].gates * H
    level = limits.level(int(GH * (I + H) * nbytes))
    return GH * (I + T * H) * nbytes / limits.bandwidth[level] * 1e6


def ratio(row: dict[str, Any], to: str, peer: str) -> float | None:
    """How many times as fast `to` is as `peer`."""
    return row["p50"][peer] / row["p50"][to] if peer in row["p50"] and to in row["p50"] else None


def table(mode: str, rows: list[dict[str, Any]]) -> Table:
    peers = [peer for peer in MODES[mode].peers if peer != AGAIN]
    own = INT8 if mode == "int8" else FROZEN
    others = [FROZEN, ONNX_INT8, AO] if mode == "int8" else [ONNX, TORCH]
    result = Table(
        "cell",
        "T,B,I,H",
        *peers,
        "limit",
        "A/A",
        *(f"{own} / {other}" for other in others),
        title=f"{mode}: p50 (p99), us",
    )
    for row in rows:
        times = [f"{row['p50'][p]:.1f} ({row['p99'][p]:.1f})" if p in row["p50"] else "-" for p in peers]
        ratios = [ratio(row, own, other) for other in others]
        result.add_row(
            row["cell"],
            str(Shape(*row["shape"])),
            *times,
            f"{row['limit']:.1f}",
            f"{ratio(row, AGAIN, TORCH):.2f}",
            *("-" if r is None else f"{r:.2f}" for r in ratios),
        )
    return result


def summaries(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Geometric mean and worst, by mode and peer."""
    for mode in MODES:
        own = INT8 if mode == "int8" else FROZEN
        for peer in MODES[mode].peers:
            found = [
                r for row in rows if row["mode"] == mode and (r := ratio(row, own, peer)) and peer != own
            ]
            if found and peer != AGAIN:
                mean, worst = geometric_mean(found), min(found)
                yield f"{mode}: {own} is {mean:.2f} times as fast as {peer}, at worst {worst:.2f}"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Time of a call by shape: a panel for each cell and mode, a line for each library."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = {peer: f"C{k}" for k, peer in enumerate(PEERS)}
    modes = [m for m in MODES if any(row["mode"] == m for row in rows)]
    cells = list(dict.fromkeys(row["cell"] for row in rows))
    figure, axes = pyplot.subplots(
        len(modes),
        len(cells),
        figsize=(1.5 + 4.2 * len(cells), 3.6 * len(modes)),
        squeeze=False,
        layout="constrained",
    )
    for i, mode in enumerate(modes):
        peers = [peer for peer in MODES[mode].peers if peer != AGAIN]
        for j, cell in enumerate(cells):
            ax, chosen = axes[i, j], [r for r in rows if (r["mode"], r["cell"]) == (mode, cell)]
            for peer in peers:
                line = [(k, r["p50"][peer], r["p99"][peer]) for k, r in enumerate(chosen) if peer in r["p50"]]
                if line:
                    x, p50, p99 = zip(*line, strict=True)
                    ax.plot(x, p50, marker="o", markersize=3, label=peer, color=colours[peer])
                    ax.vlines(x, p50, p99, color=colours[peer], alpha=0.4)
            ax.plot([r["limit"] for r in chosen], "k_", markersize=14, label="limit")
            ax.set_yscale("log")
            ax.set_xticks(
                range(len(chosen)),
                [str(Shape(*r["shape"])) for r in chosen],
                rotation=45,
                ha="right",
                fontsize=7,
            )
            ax.set_title(f"{mode}, {cell}", fontsize=10)
            ax.grid(alpha=0.3)
            if j == 0:
                ax.set_ylabel("time of a call, us: p50, up to p99")
            if i == len(modes) - 1:
                ax.set_xlabel("T,B,I,H")
        # The first cell has all peers; others refuse some.
        axes[i, -1].legend(
            *axes[i, 0].get_legend_handles_labels(),
            fontsize=7,
            loc="upper left",
            bbox_to_anchor=(1, 1),
            frameon=False,
        )
    figure.suptitle("Inference in short calls")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(arguments: list[str]) -> int:
    from .__main__ import describe_machine, shape, threads

    parser = argparse.ArgumentParser(prog="python -m benchmarks --inference", description=__doc__)
    add = parser.add_argument
    add("--modes", nargs="+", choices=MODES, default=list(MODES), metavar="MODE", help="; ".join(MODES))
    add("--cells", nargs="+", choices=CELLS, default=DEFAULT_CELLS, metavar="CELL", help=", ".join(CELLS))
    add("--shapes", nargs="+", type=shape, metavar="T,B,I,H", help="replace the shapes of the modes")
    add("--threads", type=threads, default=torch.get_num_threads(), help="default: %(default)s")
    add("--quick", action="store_true", help="one shape, short")
    add("--json", type=Path, default=Path("out/inference.json"), help="results; the picture goes beside them")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    console = Console(width=None if sys.stdout.isatty() else 200)
    if onnx_peer.MISSING:
        console.print(f"missing: onnxruntime: {onnx_peer.MISSING}")
    problems = [
        (mode, cell, s)
        for mode in args.modes
        for cell in args.cells
        for s in args.shapes or (QUICK if args.quick else MODES[mode].shapes)
    ]
    (limits,) = measure_limits([Problem("forward", "lstm", QUICK[0], threads=args.threads)]).values()
    rows = []
    with Progress(console=console, auto_refresh=False, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(problems))
        for mode, cell, s in problems:
            progress.update(task, description=f"{mode}, {cell}, {s}", refresh=True)
            with torch.inference_mode():
                rows.append(measure(mode, cell, s, args.threads, 0.2 if args.quick else SECONDS))
            rows[-1]["limit"] = limit_of(rows[-1], limits, 1 if mode == "int8" else 4)
            progress.update(task, advance=1, refresh=True)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    data = {"machine": describe_machine(args.threads), "limits": limits.to_json(), "rows": rows}
    args.json.write_text(json.dumps(data, indent=1))
    draw(rows, picture := args.json.with_suffix(".png"))
    for mode in args.modes:
        console.print(table(mode, [row for row in rows if row["mode"] == mode]))
    for line in summaries(rows):
        console.print(line, highlight=False)
    for path in (args.json, picture):
        console.print(path)
    return 0
