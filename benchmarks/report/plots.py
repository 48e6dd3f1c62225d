"""The plots of a run: ratios to peers, efficiency, scaling, and the regimes of a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import geometric_mean

import matplotlib
import numpy as np
from matplotlib import pyplot
from matplotlib.colors import LogNorm
from matplotlib.ticker import LogLocator, PercentFormatter

from ..peers import FASTRNN, ONNXRUNTIME, TORCH
from ..problems import MODES
from ..results import Row

matplotlib.use("Agg")

DPI = 130
COLOURS = {FASTRNN: "tab:blue", TORCH: "tab:orange", ONNXRUNTIME: "tab:green"}
LARGEST_RATIO = 8  # the last colour of the scale; its inverse is the first


def draw(rows: list[Row], path: Path) -> list[Path]:
    """Write a PNG for each plot that has rows. `path` is the beginning of their names."""
    drawn = []
    for name, plot in PLOTS.items():
        figure = plot(rows)
        if figure is not None:
            file = path.with_name(f"{path.name}-{name}.png")
            figure.savefig(file, dpi=DPI)
            pyplot.close(figure)
            drawn.append(file)
    return drawn


def labels(values) -> list:
    return list(dict.fromkeys(values))


def plot_ratio(rows: list[Row]):
    """Heat maps of the ratios by shape and cell. Each pass and peer has a panel."""
    panels = [
        (mode, peer, chosen)
        for mode, peer in (("forward", TORCH), ("forward", ONNXRUNTIME), ("training", TORCH))
        if (chosen := [row for row in rows if row.problem.mode == mode and row.ratio(peer)])
    ]
    if not panels:
        return None
    shapes = labels(row.problem.shape for _, _, chosen in panels for row in chosen)
    cells = labels(row.problem.cell for _, _, chosen in panels for row in chosen)
    size = (2.2 + 0.95 * len(cells) * len(panels), 1.7 + 0.42 * len(shapes))
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for ax, (mode, peer, chosen) in zip(axes[0], panels, strict=True):
        ratios = np.full((len(shapes), len(cells)), np.nan)
        for row in chosen:
            ratios[shapes.index(row.problem.shape), cells.index(row.problem.cell)] = row.ratio(peer)
        # The scale is logarithmic: 2 and 1/2 are equally far from 1.
        image = ax.imshow(ratios, cmap="RdBu", norm=LogNorm(1 / LARGEST_RATIO, LARGEST_RATIO), aspect="auto")
        for (y, x), ratio in np.ndenumerate(ratios):
            if not np.isnan(ratio):
                dark = abs(np.log(ratio)) > 0.6 * np.log(LARGEST_RATIO)
                ax.text(
                    x,
                    y,
                    f"{ratio:.{2 if ratio < 10 else 1}f}",
                    ha="center",
                    va="center",
                    color="white" if dark else "black",
                )
        ax.set_title(f"{mode},\nvs\n{peer}", fontsize=10)
        ax.set_xticks(range(len(cells)), cells)
        ax.set_yticks(range(len(shapes)), map(str, shapes))
        ax.tick_params(length=0)
    axes[0, 0].set_ylabel("T,B,I,H")
    bar = figure.colorbar(image, ax=axes, ticks=[1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8], pad=0.01)
    bar.ax.set_yticklabels(["1/8", "1/4", "1/2", "1", "2", "4", "8"])
    bar.ax.minorticks_off()
    figure.suptitle("fastrnn: times as fast as its peers")
    return figure


def plot_efficiency(rows: list[Row]):
    """Bars of fastrnn's efficiency by shape and cell, and a mark for torch.nn's."""
    panels = [
        (mode, chosen)
        for mode in ("forward", "training")
        if (chosen := [row for row in rows if row.problem.mode == mode and row.efficiency()])
    ]
    if not panels:
        return None
    shapes = labels(row.problem.shape for _, chosen in panels for row in chosen)
    cells = labels(row.problem.cell for _, chosen in panels for row in chosen)
    height = 0.8 / len(cells)
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(1.5 + 4.2 * len(panels), 1.7 + 0.55 * len(shapes)),
        sharey=True, squeeze=False, layout="constrained",
    )  # fmt: skip
    for ax, (mode, chosen) in zip(axes[0], panels, strict=True):
        for index, cell in enumerate(cells):
            of_cell = [row for row in chosen if row.problem.cell == cell]
            y = [shapes.index(r.problem.shape) + (index - (len(cells) - 1) / 2) * height for r in of_cell]
            ax.barh(y, [row.efficiency() for row in of_cell], 0.9 * height, label=cell)
            marks = [row.efficiency(TORCH) for row in of_cell]
            label = "torch.nn" if index == len(cells) - 1 else None
            ax.plot(marks, y, "k|", markersize=0.45 * height * 100, markeredgewidth=1.6, label=label)
        ax.set_title(mode, fontsize=10)
        ax.xaxis.set_major_formatter(PercentFormatter(1))
        ax.set_xlim(0, max(1, ax.get_xlim()[1]))
        ax.set_xlabel("efficiency")
        ax.set_yticks(range(len(shapes)), map(str, shapes))
        ax.grid(axis="x", alpha=0.3)
        ax.set_axisbelow(True)
    axes[0, 0].set_ylabel("T,B,I,H")
    axes[0, 0].invert_yaxis()
    legend = figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(cells) + 1
    )
    for mark in legend.get_lines():  # a bar is taller than the text if there is only one cell
        mark.set_markersize(10)
    figure.suptitle("Efficiency of fastrnn: the least time that the machine needs / the time measured")
    return figure


def plot_scaling(rows: list[Row]):
    """Time by T, B and H. Each cell has a row of panels, each peer and number of threads a line."""
    scaling = [row for row in rows if row.problem.mode.startswith("scaling")]
    if not scaling:
        return None
    modes = labels(row.problem.mode for row in scaling)
    cells = labels(row.problem.cell for row in scaling)
    most = max(row.problem.threads for row in scaling)
    figure, axes = pyplot.subplots(
        len(cells), len(modes), figsize=(1.2 + 3.3 * len(modes), 1 + 2.5 * len(cells)),
        sharex="col", squeeze=False, layout="constrained",
    )  # fmt: skip
    for (i, j), ax in np.ndenumerate(axes):
        axis = modes[j].split("-")[1]
        panel = [row for row in scaling if (row.problem.cell, row.problem.mode) == (cells[i], modes[j])]
        for peer, colour in COLOURS.items():
            for threads in labels(row.problem.threads for row in panel):
                line = [row for row in panel if row.problem.threads == threads and peer in row.median]
                sizes = [getattr(row.problem.shape, axis) for row in line]
                ax.loglog(
                    sizes,
                    [row.median[peer] * 1e3 for row in line],
                    color=colour,
                    linestyle="-" if threads == most else ":",
                    marker="o",
                    markersize=3,
                    label=f"{peer}, {threads} thread{'' if threads == 1 else 's'}",
                )
        ticks = labels(getattr(row.problem.shape, axis) for row in panel)
        ax.set_xticks(ticks, map(str, ticks))
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=9))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
        ax.grid(alpha=0.3)
        if i == 0:
            ax.set_title(title_of(axis, panel), fontsize=10)
        if i == len(cells) - 1:
            ax.set_xlabel(axis)
        if j == 0:
            ax.set_ylabel(f"{cells[i]}: ms a call")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(modes))
    figure.suptitle("Scaling of the forward")
    return figure


def title_of(axis: str, panel: list[Row]) -> str:
    """The sizes that do not change along `axis`."""
    shape = panel[0].problem.shape
    same = {name: size for name, size in shape._asdict().items() if name != axis}
    if axis == "H":
        same["I"] = "H"
    return ", ".join(f"{name} = {size}" for name, size in same.items())


def plot_regimes(rows: list[Row]):
    """Bars of the geometric mean ratio by regime. Each problem has a dot, and each goal a line."""
    chosen = [row for row in rows if MODES[row.problem.mode].goals and row.ratio(TORCH)]
    if not chosen:
        return None
    regimes = labels((row.problem.mode, row.problem.graph) for row in chosen)
    figure, axes = pyplot.subplots(
        1, 2, figsize=(12, 1.7 + 0.4 * len(regimes)), sharey=True, layout="constrained"
    )
    for ax, training in zip(axes, (False, True), strict=True):
        for y, (mode, graph) in enumerate(regimes):
            ratios = [
                row.ratio(TORCH)
                for row in chosen
                if (row.problem.mode, row.problem.graph, row.problem.training) == (mode, graph, training)
            ]
            if ratios:
                ax.barh(y, geometric_mean(ratios), 0.7, color=COLOURS[FASTRNN], alpha=0.6)
                ax.plot(ratios, [y] * len(ratios), "k.", markersize=4)
            goal = MODES[mode].goals[training]
            ax.plot([goal, goal], [y - 0.4, y + 0.4], color="tab:red")
        ax.axvline(1, color="black", linewidth=0.8)
        ax.set_title("training" if training else "forward", fontsize=10)
        ax.set_xlabel("times as fast as torch.nn (red: the goal)")
        ax.grid(axis="x", alpha=0.3)
    names = [f"{mode}, {'CUDA graph' if graph else 'eager'}" for mode, graph in regimes]
    axes[0].set_yticks(range(len(regimes)), names)
    axes[0].invert_yaxis()
    return figure


PLOTS: dict[str, Callable] = {
    "ratio": plot_ratio,
    "efficiency": plot_efficiency,
    "scaling": plot_scaling,
    "regimes": plot_regimes,
}
