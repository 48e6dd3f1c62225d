"""Add two numbers that lie far apart: what an RNN forgets, and LSTM and GRU keep.

The adding problem, many to one. Each step brings a random number from 0 to 1 and a mark, which is 0 or 1. Two
of the T steps are marked, one in each half, and after the last step the network says the sum of their
numbers. So it must keep a number for up to T steps and ignore all others. Who always answers 1 has a mean
squared error of 1/6 = 0.167. The data are generated.

The gradient that teaches the network to keep a number comes back over the same steps. It is large while T is
small, so each cell learns T = 6, 12, 25 and 50 first, and then each of --lengths, from the weights of the
length before. One sees from which length on a cell is no better than 0.167.
"""

from __future__ import annotations

from functools import partial

import common
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

BASELINE = 1 / 6  # of the answer 1: twice the variance of a number
SHORT = [6, 12, 25, 50]  # lengths to begin with
BATCH = 32
RATES = {"RNN": 0.003, "LSTM": 0.01, "GRU": 0.01}  # of learning; an RNN learns nothing at 0.01
LOOKS = {"RNN": ("#e08214", ":"), "LSTM": ("#2166ac", "-"), "GRU": ("#1b7837", "--")}


class Adder(nn.Module):
    """Numbers and marks `[T, B, 2]` to the sum of the marked numbers `[B]`."""

    def __init__(self, library, cell: str, hidden: int):
        super().__init__()
        self.rnn = getattr(library, cell)(2, hidden)
        self.head = nn.Linear(hidden, 1)
        if cell == "LSTM":  # forget little at first: sigma(1) = 0.73 of c goes on
            with torch.no_grad():
                self.rnn.bias_ih_l0.chunk(4)[1].fill_(1)

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.rnn(x)
        return self.head(h[-1]).squeeze(-1)


def draw(T: int, B: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs `[T, B, 2]` and the sums `[B]`."""
    numbers = torch.rand(T, B, generator=generator)
    marks = torch.zeros(T, B)
    marks.scatter_(0, torch.randint(T // 2, (1, B), generator=generator), 1)
    marks.scatter_(0, torch.randint(T // 2, T, (1, B), generator=generator), 1)
    return torch.stack([numbers, marks], -1), (numbers * marks).sum(0)


def loss_of(model: Adder, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return mse_loss(model(x), y)


def plot(args, runs: dict[tuple[str, str], common.Run], plan: list[tuple[int, int]]) -> None:
    """The loss while a cell learns each length; a panel for all short ones."""
    short = [(T, steps) for T, steps in plan if T not in args.lengths]
    panels = [(str(T), steps) for T, steps in plan[len(short) :]]
    if short:
        panels.insert(0, (", ".join(str(T) for T, _ in short), sum(steps for _, steps in short)))
    title, shape = f"Adding two numbers of T, {args.hidden} units", (1, len(panels))
    figure, axes = common.new_figure(title, *shape, size=(13, 4.5), sharey=True, squeeze=False)
    start = 0
    for panel, (name, steps) in zip(axes[0], panels, strict=True):
        for cell in RATES:
            run = runs[cell, args.libraries[-1]]
            losses = torch.tensor(run.losses[start : start + steps])
            width = max(1, len(losses) // 40)
            smooth = losses[: len(losses) // width * width].view(-1, width).mean(-1)
            places = torch.arange(len(smooth)) * width + width / 2
            colour, style = LOOKS[cell]
            panel.plot(places, smooth, style, color=colour, lw=2, label=cell)
        panel.axhline(BASELINE, color="grey", lw=1, label="who always answers 1")
        panel.set(title=f"T = {name}", xlabel="training step", yscale="log")
        panel.grid(alpha=0.25)
        start += steps
    axes[0, 0].set_ylabel("training loss (mean squared error)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    common.save(figure, args.out)


def main() -> None:
    parser = common.make_parser(__doc__, "long_memory", hidden=64)
    add = parser.add_argument
    add("--lengths", type=common.positive, nargs="+", default=[100, 400, 1000], help="each a T (%(default)s)")
    args = common.parse(parser)
    if min(args.lengths) < 2:
        raise SystemExit(f"--lengths: expected at least 2 steps, for two marks, got {min(args.lengths)}")
    args.lengths = [25, 50] if args.quick else sorted(set(args.lengths))
    few, many = (20, 60) if args.quick else (100, 300)
    plan = [(T, many) for T in SHORT if T < args.lengths[0]] + [(T, few) for T in args.lengths]

    runs = {}
    for cell, rate in RATES.items():
        build = partial(Adder, cell=cell, hidden=args.hidden)
        runs |= {(cell, run.name): run for run in common.begin(args, build, rate=rate)}
    always_1 = []
    generator = torch.Generator().manual_seed(args.seed)
    for T, count in plan:
        for _ in common.track(range(count), f"T = {T}"):
            batch = draw(T, BATCH, generator)
            for run in runs.values():
                run.step(loss_of, batch)
        test = draw(T, 500, generator)
        always_1.append((test[1] - 1).square().mean())
        for run in runs.values():
            run.scores.append(common.evaluate(run.model, partial(loss_of, batch=test)).item())

    n = len(args.lengths)
    table = common.Table("test error", *(f"T = {T}" for T in args.lengths), "training, s")
    for (cell, library), run in runs.items():
        table.add_row(f"{cell}, {library}", *map("{:.4f}".format, run.scores[-n:]), f"{run.seconds:.1f}")
    table.add_row("always 1", *map("{:.4f}".format, always_1[-n:]))
    common.console.print(table)
    plot(args, runs, plan)


if __name__ == "__main__":
    main()
