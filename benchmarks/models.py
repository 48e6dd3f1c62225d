"""Time published models that are installed, with torch.nn's layers and with fastrnn's: the gain end to end.

`published.py` has the models. Each is built three times with equal weights: `fastrnn.convert` converts one,
and the third shows the noise (A/A). They take turns in one process. Training is the forward and backward of a
step. The share of the layers is their time alone, on the inputs that they had, over the time of an inference.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import fastrnn

from .peers import AGAIN, FASTRNN, TORCH
from .published import MODELS, Model, Subject
from .shares import Bar, LayerCall, draw_shares, layers_of, recording, replay
from .timing import interleave

LIBRARIES = (TORCH, FASTRNN, AGAIN)
SECONDS, MIN_ROUNDS = 10.0, 5  # of inference, and again of training
QUICK_SECONDS, QUICK_ROUNDS = 0.2, 1
TOLERANCE = 1e-4  # of outputs in float32
INFERENCE, TRAINING = "inference", "training"


def build(model: Model) -> tuple[Subject, dict[str, nn.Module]]:
    """A model, and by library three modules of it with equal weights.

    They are not copies: modules with torch.nn.utils.weight_norm cannot be copied.
    """
    import_module(model.package)
    threads, subjects = torch.get_num_threads(), []
    logging.disable(logging.INFO)  # some packages tell of what they build
    try:
        for _ in LIBRARIES:
            torch.manual_seed(0)
            subjects.append(model.build())
    finally:
        logging.disable(logging.NOTSET)
        torch.set_num_threads(threads)  # some packages set it
    modules = dict(zip(LIBRARIES, (subject.module for subject in subjects), strict=True))
    for module in modules.values():
        module.load_state_dict(modules[TORCH].state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the table says what is left
        fastrnn.convert(modules[FASTRNN])
    return subjects[0], modules


def floats(outputs: Any) -> list[Tensor]:
    return [t for t in tree_leaves(outputs) if isinstance(t, Tensor) and t.is_floating_point()]


def difference(subject: Subject, modules: dict[str, nn.Module]) -> float:
    """The largest distance of fastrnn's outputs from torch.nn's, relative to the norm of torch.nn's."""
    outputs = []
    for library in (TORCH, FASTRNN):
        torch.manual_seed(0)  # the same dropout, of those that have it in inference too
        outputs.append(floats(subject.infer(modules[library])))
    apart = [
        (own - expected).norm() / expected.norm().clamp_min(1e-30)
        for expected, own in zip(*outputs, strict=True)
    ]
    return torch.stack(apart).max().item()  # NaN if one of them is


def step(module: nn.Module, forward: Callable[[nn.Module], Any]) -> None:
    """The forward and backward of a training step. The gradient of each output is 1."""
    module.zero_grad()
    ends = [y for y in floats(forward(module)) if y.requires_grad]
    torch.autograd.backward(ends, list(map(torch.ones_like, ends)))


def medians(calls: dict[str, Callable[[], Any]], seconds: float, min_rounds: int) -> dict[str, float]:
    """Seconds of each of `calls`."""
    samples = interleave(calls, torch.cpu.synchronize, seconds, min_rounds)
    return {name: median(found) for name, found in samples.items()}


def measure(
    name: str, subject: Subject, modules: dict[str, nn.Module], seconds: float, min_rounds: int
) -> dict[str, Any]:
    """A row of the table. Its times are medians, in seconds."""
    layers = fastrnn.summary(modules[FASTRNN])
    alone: dict[str, list[LayerCall]] = {}

    def replay_all(library: str) -> None:
        for call in alone[library]:
            replay(call)

    with torch.no_grad():
        for library, module in modules.items():
            module.eval()
            with recording(module) as alone[library]:
                subject.infer(module)
        apart = difference(subject, modules)
        calls = {library: partial(subject.infer, module) for library, module in modules.items()}
        timed_alone = [library for library in (TORCH, FASTRNN) if alone[library]]
        calls |= {f"layers of {library}": partial(replay_all, library) for library in timed_alone}
        times = medians(calls, seconds, min_rounds)
    by_pass = {INFERENCE: {library: times[library] for library in LIBRARIES}}
    if subject.train is not None:
        for module in modules.values():
            module.train()
        calls = {library: partial(step, module, subject.train) for library, module in modules.items()}
        by_pass[TRAINING] = medians(calls, seconds, min_rounds)
    package = MODELS[name].package
    return {
        "model": name,
        "package": package,
        "version": version(package),
        "given": MODELS[name].given,
        "layers": [
            f"{count} {layer}" for layer, count in Counter(map(str, layers_of(modules[TORCH]))).items()
        ],
        "converted": sum(layer.runs_on == "fastrnn" for layer in layers),
        "left": [f"{layer.kind}: {layer.note}" for layer in layers if layer.runs_on != "fastrnn"],
        "difference": apart,
        "seconds": by_pass,
        "share": {library: times[f"layers of {library}"] / times[library] for library in timed_alone},
    }


def ratio(row: dict[str, Any], which: str, library: str = FASTRNN) -> float:
    """How many times as fast `library` is as torch.nn, in inference or training."""
    return row["seconds"][which][TORCH] / row["seconds"][which][library]


def agree(row: dict[str, Any]) -> bool:
    return row["difference"] <= TOLERANCE  # false for NaN, too


def table(rows: list[dict[str, Any]]) -> Table:
    result = Table("model", "package", "layers", "converted", "difference", "share of the layers")
    for which in (INFERENCE, TRAINING):
        for column in (f"{which}, torch.nn, ms", "fastrnn, ms", "times as fast", "A/A"):
            result.add_column(column)
    for row in rows:
        cells = []
        for which in (INFERENCE, TRAINING):
            if which not in row["seconds"]:
                cells += [""] * 4
                continue
            cells += [f"{1e3 * row['seconds'][which][library]:.3g}" for library in (TORCH, FASTRNN)]
            cells += [f"{ratio(row, which, library):.2f}" for library in (FASTRNN, AGAIN)]
        result.add_row(
            f"{row['model']}\n{row['given']}",
            f"{row['package']}\n{row['version']}",
            "\n".join(row["layers"]),
            "\n".join([f"{row['converted']} of {row['converted'] + len(row['left'])}", *row["left"]]),
            f"{row['difference']:.1e}" + ("" if agree(row) else ": DIFFERS"),
            ", ".join(f"{part:.0%}" for part in row["share"].values()),
            *cells,
        )
    return result


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars: what of the time of an inference is the layers', with each library."""
    bars = []
    for row in rows:
        text = f"{ratio(row, INFERENCE):.2f} times as fast"
        if TRAINING in row["seconds"]:
            text += f", training {ratio(row, TRAINING):.2f}"
        bars.append(Bar(f"{row['model']}\n{row['package']}", row["seconds"][INFERENCE], row["share"], text))
    draw_shares(bars, path, "Published models, end to end", "time of an inference")


def main(arguments: list[str]) -> int:
    from .__main__ import describe_machine, threads

    parser = argparse.ArgumentParser(prog="python -m benchmarks --models", description=__doc__)
    add = parser.add_argument
    add("--names", nargs="+", choices=MODELS, metavar="NAME", help="; ".join(MODELS))
    add("--threads", type=threads, default=torch.get_num_threads(), help="default: %(default)s")
    add("--quick", action="store_true", help="few samples of each")
    add("--json", type=Path, default=Path("out/models.json"), help="results; the picture goes beside them")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    console = Console(width=None if sys.stdout.isatty() else 240)
    names = args.names or list(MODELS)
    given = (QUICK_SECONDS, QUICK_ROUNDS) if args.quick else (SECONDS, MIN_ROUNDS)
    rows, missing = [], {}
    with Progress(console=console, auto_refresh=False, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(names))
        for name in names:
            progress.update(task, description=name, refresh=True)
            try:
                built = build(MODELS[name])
            except Exception as error:  # a package that was made for another torch can raise anything
                missing[name] = f"{MODELS[name].package}: {type(error).__name__}: {error}".splitlines()[0]
            else:
                rows.append(measure(name, *built, *given))
            progress.update(task, advance=1, refresh=True)
    for name, reason in missing.items():
        console.print(f"missing: {name}, {reason}", markup=False)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    data = {"machine": describe_machine(args.threads), "missing": missing, "rows": rows}
    args.json.write_text(json.dumps(data, indent=1))
    draw(rows, picture := args.json.with_suffix(".png"))
    console.print(table(rows))
    for path in (args.json, picture):
        console.print(path)
    return 0 if all(map(agree, rows)) else 1
