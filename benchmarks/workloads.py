"""Train the programs of examples/ for an epoch, on torch.nn and on fastrnn: what the layers gain end to end.

A program hands its model, loss and batches to `common.train`; here they are taken over. Each batch is a turn:
both libraries make their step on it, in an order that changes. A second model of torch.nn shows the noise
(A/A). The share of the layers is their time alone, on the inputs that they had in the epoch, over the time of
the steps. What else takes time is what torch's profiler says.
"""

from __future__ import annotations

import argparse
import json
import runpy
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

import fastrnn

from .peers import AGAIN, FASTRNN, TORCH
from .shares import Bar, LayerCall, draw_shares, layers_of, recording, replay

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
LIBRARIES = {TORCH: nn, FASTRNN: fastrnn, AGAIN: nn}
SEEDS = (0, 1, 2)
CALLS = 40  # of the layers that are timed alone
PROFILED = 10  # steps

# A workload: the program of examples/ and its arguments; {data} and {text} are what --data and --text name.
WORKLOADS = {
    "characters, GRU": ("char_lm", ["--text", "{text}"]),
    "digits, RNN": ("digits", []),
    "digits, GRU": ("digits", ["--cell", "gru"]),
    "reviews, RNN": ("sentiment", ["--model", "last", "--data", "{data}"]),
    "reviews, GRU": ("sentiment", ["--model", "gru", "--data", "{data}"]),
    "series, RNN": ("time_series", []),
    "tags, 2 bidirectional layers": ("tagging", []),
    "dates, encoder and decoder": ("seq2seq", []),
    "captions": ("captioning", []),
    "speech, GRU": ("vad_stream", []),
}


@dataclass
class Workload:
    """What a program hands to common.train."""

    build: Callable[[Any], nn.Module]
    loss_of: Callable[[nn.Module, Any], Tensor]
    batches: Callable[[torch.Generator], Iterable[Any]]
    score: Callable[[nn.Module], float]
    optimizer: Callable[..., torch.optim.Optimizer]
    rate: float


class _TakenOver(Exception):
    pass


def examples_common() -> Any:
    """The module that the programs share. Python finds it where it finds them."""
    if str(EXAMPLES) not in sys.path:
        sys.path.append(str(EXAMPLES))
    return import_module("common")


def take_over(program: str, arguments: list[str]) -> Workload:
    """Run a program up to its first training."""
    found: list[Workload] = []

    def train(args, build, loss_of, batches, *, score, optimizer=torch.optim.Adam, rate=1e-3, **others):
        found.append(Workload(build, loss_of, batches, score, optimizer, rate))
        raise _TakenOver

    common = examples_common()
    argv, original = sys.argv, common.train
    try:
        common.train = train
        sys.argv = [program, *arguments, "--threads", str(torch.get_num_threads())]
        runpy.run_path(str(EXAMPLES / f"{program}.py"), run_name="__main__")
    except _TakenOver:
        pass
    finally:
        common.train, sys.argv = original, argv
    (workload,) = found
    return workload


class Trainee:
    """A model in training."""

    def __init__(self, workload: Workload, library: Any, seed: int):
        torch.manual_seed(seed)
        self.workload, self.model = workload, workload.build(library)
        self.optimizer = workload.optimizer(self.model.parameters(), lr=workload.rate)
        self.seconds: list[float] = []

    def step(self, batch: Any, seed: int) -> None:
        torch.manual_seed(seed)  # the same dropout masks for all
        start = time.perf_counter()
        self.optimizer.zero_grad()
        self.workload.loss_of(self.model, batch).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), examples_common().CLIP_NORM)
        self.optimizer.step()
        self.seconds.append(time.perf_counter() - start)

    @torch.no_grad()
    def score(self) -> float:
        self.model.eval()
        return self.workload.score(self.model)


def seconds_of(call: LayerCall) -> float:
    """Of the forward and backward of a layer alone."""
    layer, args, kwargs = torch.utils._pytree.tree_map_only(
        Tensor, lambda t: t.detach().requires_grad_(t.is_floating_point()), call
    )
    start = time.perf_counter()
    y = replay((layer, args, kwargs))
    y.backward(torch.ones_like(y))
    return time.perf_counter() - start


def share_of(trainee: Trainee, batches: list[Any]) -> float:
    """Of the layers in the time of steps on these batches."""
    alone, whole = 0.0, 0.0
    for batch in batches:
        with recording(trainee.model) as calls:
            trainee.step(batch, 0)
        whole += trainee.seconds.pop()
        alone += sum(map(seconds_of, calls))
    return alone / whole


def others_of(trainee: Trainee, batches: list[Any]) -> list[tuple[str, float]]:
    """Which operators beside the layers take how much of the time, by torch's profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for batch in batches:
            trainee.step(batch, 0)
            trainee.seconds.pop()
    times = {e.key: e.self_cpu_time_total for e in profile.key_averages()}
    total = sum(times.values())
    others = {name: t for name, t in times.items() if "fastrnn" not in name.lower()}
    return [(name, others[name] / total) for name in sorted(others, key=others.get, reverse=True)[:3]]


def lacks(name: str, given: dict[str, str | None]) -> list[str]:
    """The options that the workload needs and that nobody gave. given: by option."""
    return [option for option, value in given.items() if f"{{{option}}}" in WORKLOADS[name][1] and not value]


def measure(
    name: str, given: dict[str, str | None], quick: bool, advance: Callable[[], None]
) -> dict[str, Any]:
    """One epoch with each seed."""
    program, arguments = WORKLOADS[name]
    arguments = [argument.format(**given) for argument in arguments] + ["--quick"] * quick
    workload = take_over(program, arguments)
    seconds: dict[str, list[float]] = {library: [] for library in LIBRARIES}
    scores: dict[str, list[float]] = {library: [] for library in LIBRARIES}
    for seed in SEEDS[:1] if quick else SEEDS:
        trainees = {library: Trainee(workload, module, seed) for library, module in LIBRARIES.items()}
        batches = list(workload.batches(torch.Generator().manual_seed(seed)))
        for module in (nn, fastrnn):  # what a first step loads and prepares is not counted
            Trainee(workload, module, seed).step(batches[0], seed)
        order = list(trainees.values())
        for number, batch in enumerate(batches):
            order = order[1:] + order[:1]
            for trainee in order:
                trainee.step(batch, seed + number)
        for library, trainee in trainees.items():
            seconds[library].append(sum(trainee.seconds))
            scores[library].append(trainee.score())
        advance()
    for trainee in trainees.values():
        trainee.model.train()
    some = batches[:: max(1, len(batches) // CALLS)][:CALLS]
    share = {library: share_of(trainees[library], some) for library in (TORCH, FASTRNN)}
    layers = layers_of(trainees[FASTRNN].model)
    return {
        "workload": name,
        "layers": sorted({str(layer) for layer in layers}),
        "steps": len(batches),
        "seconds": seconds,
        "scores": scores,
        "share": share,
        "others": others_of(trainees[FASTRNN], some[:PROFILED]),
    }


def ratio(row: dict[str, Any], library: str) -> float:
    """How many times as fast `library` is as torch.nn, over all seeds."""
    return sum(row["seconds"][TORCH]) / sum(row["seconds"][library])


def spread(scores: list[float]) -> str:
    return f"{mean(scores):.3f} ({min(scores):.3f} to {max(scores):.3f})"


def agree(row: dict[str, Any]) -> bool:
    """Whether the mean scores differ by less than the seeds do; or than 1%, as one seed has no spread."""
    own, other = row["scores"][FASTRNN], row["scores"][TORCH]
    scatter = max(max(own) - min(own), max(other) - min(other))
    return abs(mean(own) - mean(other)) <= max(scatter, 0.01 * abs(mean(other)))


def table(rows: list[dict[str, Any]]) -> Table:
    columns = (
        "workload",
        "layers",
        "torch.nn, s",
        "fastrnn, s",
        "times as fast",
        "A/A",
        "share of the layers",
    )
    result = Table(*columns, "score, torch.nn", "fastrnn", "beside the layers")
    for row in rows:
        seconds = {library: mean(row["seconds"][library]) for library in LIBRARIES}
        result.add_row(
            row["workload"],
            "\n".join(row["layers"]),
            f"{seconds[TORCH]:.2f}",
            f"{seconds[FASTRNN]:.2f}",
            f"{ratio(row, FASTRNN):.2f}",
            f"{ratio(row, AGAIN):.2f}",
            f"{row['share'][TORCH]:.0%}, {row['share'][FASTRNN]:.0%}",
            spread(row["scores"][TORCH]),
            spread(row["scores"][FASTRNN]) + ("" if agree(row) else ": DIFFERS"),
            ", ".join(f"{name} {part:.0%}" for name, part in row["others"]),
        )
    return result


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars: what of the time of an epoch is the layers', with each library."""
    bars = [
        Bar(
            row["workload"],
            {library: mean(row["seconds"][library]) for library in row["share"]},
            row["share"],
            f"{ratio(row, FASTRNN):.2f} times as fast",
        )
        for row in rows
    ]
    draw_shares(bars, path, "Training end to end", "time of an epoch")


def main(arguments: list[str]) -> int:
    from .__main__ import describe_machine, threads

    parser = argparse.ArgumentParser(prog="python -m benchmarks --workloads", description=__doc__)
    add = parser.add_argument
    add("--names", nargs="+", choices=WORKLOADS, metavar="NAME", help="; ".join(WORKLOADS))
    add("--data", metavar="FOLDER", help="reviews for sentiment.py; without it they are left out")
    add("--text", metavar="FILE", help="UTF-8 text for char_lm.py; without it that is left out")
    add("--threads", type=threads, default=torch.get_num_threads(), help="default: %(default)s")
    add("--quick", action="store_true", help="one seed, little data")
    add("--json", type=Path, default=Path("out/workloads.json"), help="results; the picture goes beside them")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    console = Console(width=None if sys.stdout.isatty() else 240)
    given = {"data": args.data, "text": args.text}
    names = [name for name in args.names or WORKLOADS if not lacks(name, given)]
    for name in args.names or WORKLOADS:
        if options := lacks(name, given):
            console.print(f"left out, it needs --{' --'.join(options)}: {name}")
    rows = []
    with Progress(console=console, auto_refresh=False, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(names) * (1 if args.quick else len(SEEDS)))
        for name in names:
            progress.update(task, description=name, refresh=True)
            rows.append(
                measure(name, given, args.quick, lambda: progress.update(task, advance=1, refresh=True))
            )
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps({"machine": describe_machine(args.threads), "rows": rows}, indent=1))
    draw(rows, picture := args.json.with_suffix(".png"))
    console.print(table(rows))
    for path in (args.json, picture):
        console.print(path)
    return 0 if all(map(agree, rows)) else 1
