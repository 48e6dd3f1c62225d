"""Forecast a time series one step ahead, then let the network go on alone from its own predictions.

The lecture's sequence-to-sequence network: an RNN of 100 relu units reads a window of 20 values, and after
each of them says what comes next. The series are the lecture's t sin(t)/3 + 2 sin(5t), and the four EEG
channels that come with matplotlib. The network trains on the first 70% of a series, the next 10% choose the
best epoch, and the last 20% are the test. Its error stands beside those of two simple forecasts: the last
value again, and the linear function of the 20 values that fits best. No network beats the linear one on the
lecture's series, because that obeys a linear recurrence; brain waves do not. The fed-back forecast shows how
errors add up when the network reads nothing but its own predictions.
"""

from __future__ import annotations

from dataclasses import dataclass

import common
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

WINDOW = 20
TRAINING, TEST = 0.7, 0.8  # the shares of time at which training ends and the test begins
COLOURS = {"-": "#2166ac", "--": "#e08214"}
EPOCHS = {"lecture": 300, "eeg": 10}


class Forecaster(nn.Module):
    """Values `[B, T, 1]` to a prediction of the next value at each step, `[B, T, 1]`."""

    def __init__(self, library, cell: str, hidden: int):
        super().__init__()
        options = {"nonlinearity": "relu"} if cell == "RNN" else {}
        self.rnn = getattr(library, cell)(1, hidden, batch_first=True, **options)
        self.head = nn.Linear(hidden, 1)

    def forward(self, values: Tensor) -> Tensor:
        return self.head(self.rnn(values)[0])


class Linear(nn.Module):
    """The linear function of the whole window that fits the windows `[N, WINDOW + 1, 1]` best."""

    def __init__(self, windows: Tensor):
        super().__init__()
        x, y = windows[:, :-1, 0].double(), windows[:, -1].double()
        # x has less than full rank where the series obeys a recurrence of fewer steps; gelsd allows that
        self.weight = torch.linalg.lstsq(x, y, driver="gelsd").solution

    def forward(self, values: Tensor) -> Tensor:
        return (values[:, :, 0].double() @ self.weight)[:, None].to(values)


@dataclass
class Series:
    """Channels `[C, T]` in units of their standard deviation in training, `scale`."""

    title: str
    axis: str
    times: np.ndarray
    values: Tensor
    scale: float

    def windows(self, start: float, end: float) -> Tensor:
        """`[N, WINDOW + 1, 1]`: the windows whose last value, the one to predict, lies in this part."""
        first, last = (round(share * len(self.times)) for share in (start, end))
        return (
            self.values[:, max(first - WINDOW, 0) : last].unfold(1, WINDOW + 1, 1).reshape(-1, WINDOW + 1, 1)
        )


def read_series(name: str) -> Series:
    """The series of that name, `lecture` or `eeg`."""
    if name == "lecture":
        title, axis, times = "t sin(t)/3 + 2 sin(5t)", "t", np.arange(0, 30, 0.1)
        values = (times * np.sin(times) / 3 + 2 * np.sin(5 * times))[None]
    else:
        from matplotlib.cbook import get_sample_data

        title, axis, times = "EEG, channel 1 of 4", "sample", np.arange(800)
        with get_sample_data("eeg.dat") as file:
            values = np.fromfile(file, dtype="<f8").reshape(800, 4).T
    scale = values[:, : round(TRAINING * len(times))].std()
    return Series(title, axis, times, torch.tensor(values / scale, dtype=torch.float32), scale)


@torch.no_grad()
def feed_back(model: nn.Module, known: Tensor, steps: int) -> Tensor:
    """`[steps]` values after the `known` ones `[WINDOW]`, each predicted from what was predicted before."""
    values = known.tolist()
    for _ in range(steps):
        values.append(model(torch.tensor(values[-WINDOW:])[None, :, None])[0, -1, 0].item())
    return torch.tensor(values[WINDOW:])


@torch.no_grad()
def plot(axes, series: Series, models: dict[str, nn.Module]) -> None:
    """The first channel, and in its test part what the models predict with and without the true values."""
    test, times, values = round(TEST * len(series.times)), series.times, series.values[0]
    windows = values[test - WINDOW :].unfold(0, WINDOW + 1, 1)[:, :-1, None]
    whole, ahead, fed_back = axes
    whole.plot(times, values * series.scale, color="0.45", linewidth=1)
    whole.axvspan(times[test], times[-1], color="#fee0b6")
    whole.set(title=f"{series.title} (shaded: test)", xlabel=series.axis, ylabel="value")
    low, high = whole.get_ylim()
    for ax, title in ((ahead, "one step ahead"), (fed_back, "fed back")):
        ax.plot(
            times[test - WINDOW :], values[test - WINDOW :] * series.scale, "0.7", linewidth=4, label="series"
        )
        for (name, model), look in zip(models.items(), ("-", "--"), strict=True):
            once = (
                model(windows)[:, -1, 0] if ax is ahead else feed_back(model, windows[0, :, 0], len(windows))
            )
            ax.plot(times[test:], once * series.scale, look, color=COLOURS[look], linewidth=1.5, label=name)
        ax.set(title=title, xlabel=series.axis, ylim=(low, high + 0.25 * (high - low)))
        ax.legend(frameon=False, loc="upper left", ncols=3, columnspacing=1)


def main() -> None:
    parser = common.make_parser(__doc__, "time_series", cell="rnn", hidden=100)
    parser.add_argument(
        "--series", choices=[*EPOCHS, "both"], default="both", help="to forecast (%(default)s)"
    )
    args = common.parse(parser)

    names = list(EPOCHS) if args.series == "both" else [args.series]
    title = f"Forecasts of {args.cell}({args.hidden}) from windows of {WINDOW} values"
    size = (13, 3.6 * len(names))
    figure, axes = common.new_figure(title, len(names), 3, size, squeeze=False, width_ratios=[1.3, 1, 1])
    for name, row in zip(names, axes, strict=True):
        series = read_series(name)
        training, validation, test = (
            series.windows(*p) for p in ((0, TRAINING), (TRAINING, TEST), (TEST, 1))
        )
        print(f"{name}: {len(training)} windows to train, {len(validation)} to validate, {len(test)} to test")

        def error(windows: Tensor, scale: float = series.scale):
            return lambda model: mse_loss(model(windows[:, :-1])[:, -1], windows[:, -1]).item() * scale**2

        runs = common.train(
            args,
            build=lambda library: Forecaster(library, args.cell, args.hidden),
            loss_of=lambda model, w: mse_loss(model(w[:, :-1]), w[:, 1:]),
            batches=lambda generator, w=training: common.minibatches(w, 50, generator),
            epochs=EPOCHS[name] // (10 if args.quick else 1),
            score=error(validation),
            higher_is_better=False,
            rate=3e-3,
        )
        linear = Linear(series.windows(0, TEST))
        others = {"last value again": nn.Identity(), f"linear, {WINDOW} values": linear}
        common.report(runs, {"mean squared error, test": error(test)}, "{:.3g}", others)
        plot(row, series, {args.cell: runs[-1].model, "linear": linear})
    common.save(figure, args.out)


if __name__ == "__main__":
    main()
