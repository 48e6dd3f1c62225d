"""How the libraries compare in char_lm.py: losses, speeds, and whether rounding explains a difference."""

from __future__ import annotations

import math
from statistics import mean, median

import common

COMPARED_STEPS = 100  # over these first steps the two losses must agree


def compare(args, title: str, runs: list[common.Run], rate: float) -> bool:
    """Print and draw the comparison; returns whether the losses agree. rate: of learning."""
    speeds = [args.batch * args.seq / median(run.times) for run in runs]
    report(runs, speeds)
    differences, bounds, held = [], [], True
    if len(runs) == 2:
        bounds = rounding_bounds(args, runs[0].losses, rate)
        pairs = zip(runs[0].losses, runs[1].losses, strict=True)
        differences = [abs(a - b) for a, b in pairs][: len(bounds)]
        held = agreement(differences, bounds)
    plot(args, title, runs, speeds, differences, bounds)
    return held


def rounding_bounds(args, losses: list[float], rate: float) -> list[float]:
    """How much rounding alone may separate the losses of two float32 runs, at each of the first steps.

    A value is a sum over seq steps, hidden units and layers. Rounding errors add up like a random walk, so
    its relative error is e = u * sqrt(seq * hidden * layers), u = 2^-24. The loss has this error itself.
    Adam moves a parameter by at most the rate of learning, so n steps add an error of n * rate * e to it. The
    loss changes by that times the norm of the gradient, which is at most CLIP_NORM. The factor 2 is for two
    runs.
    """
    e = 2.0**-24 * math.sqrt(args.seq * args.hidden * args.layers)
    move = rate * common.CLIP_NORM
    return [2 * e * (loss + n * move) for n, loss in enumerate(losses[:COMPARED_STEPS])]


def report(runs: list[common.Run], speeds: list[float]) -> None:
    """Print the losses and the speed of each library."""
    columns = ("first loss", "mean of last 50", "loss on text held out", "median characters/s", "seconds")
    table = common.Table("", *columns)
    for run, speed in zip(runs, speeds, strict=True):
        losses = [run.losses[0], mean(run.losses[-50:]), min(run.scores)]
        table.add_row(run.name, *(f"{loss:.4f}" for loss in losses), f"{speed:,.0f}", f"{run.seconds:.1f}")
    common.console.print(table)
    if len(runs) == 2:
        ratio = speeds[1] / speeds[0]
        common.console.print(f"fastrnn trains [bold]{ratio:.2f}x[/bold] as fast as torch.nn")


def agreement(differences: list[float], bounds: list[float]) -> bool:
    """Print the largest difference of the losses over the first steps, and whether rounding explains it."""
    worst = max(range(len(bounds)), key=lambda step: differences[step] / bounds[step])
    held = differences[worst] <= bounds[worst]
    common.console.print(
        f"loss over the first {len(bounds)} steps: largest difference {max(differences):.1e}; "
        f"rounding explains {bounds[worst]:.1e} at step {worst}, where the difference comes nearest to it; "
        f"{'the bound held' if held else 'THE BOUND DID NOT HOLD'}"
    )
    return held


def plot(args, title: str, runs: list[common.Run], speeds: list[float], differences, bounds) -> None:
    """The losses, the speeds, and how far the losses differ if there are two."""
    figure, panels = common.new_figure(title, 2, 2, size=(12, 5.5), width_ratios=[1.7, 1])
    names = [run.name for run in runs]
    axes = common.join(panels[:, 0])
    for run in runs:
        name = run.name
        axes.plot(run.losses, color=common.COLOURS[name], linewidth=common.WIDTHS[name], label=name)
    axes.set(xlabel="training step", ylabel="loss, nats per character", title="Loss")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)

    axes = panels[0, 1] if differences else common.join(panels[:, 1])
    bars = axes.barh(names, speeds, color=[common.COLOURS[name] for name in names], height=0.55)
    axes.bar_label(bars, [f"{speed:,.0f}" for speed in speeds], padding=4)
    axes.set(title="Training speed, characters/s (median)", xlim=(0, 1.25 * max(speeds)))
    axes.tick_params(left=False)
    axes.spines.bottom.set_visible(False)
    axes.xaxis.set_visible(False)

    if differences:
        axes = panels[1, 1]
        axes.plot(bounds, color="0.4", linestyle="--", label="rounding bound")
        axes.plot(differences, ".", color=common.COLOURS["fastrnn"], label="difference")
        axes.set_yscale("symlog", linthresh=1e-7)
        axes.set(xlabel="training step", ylabel="nats", title="Difference of the two losses")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    common.save(figure, args.out)
