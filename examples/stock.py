"""Forecast a share's price day by day, and see that it does not work.

The lecture's network: two LSTM layers with dropout read the last 60 daily returns and say the next one.
Applied to the last price, that return gives the price of the next day. The forecast walks forward: for each
quarter a new network trains on the days before it, the last fifth of which choose the best epoch, and
forecasts the days of the quarter. So nothing that it learns, or is scaled by, comes from the future. The
prices are Google's from 2004 to 2008, which come with matplotlib.

The forecast stays so close to the price that it looks excellent. So does the price of the day before, and the
network does not beat that: it learns hardly more than that the share rose on average, and says up every day.
"""

from __future__ import annotations

from pathlib import Path

import common
import numpy as np
import torch
from support.prices import read_prices
from torch import Tensor, nn
from torch.nn.functional import mse_loss

WINDOW = 60
HISTORY = 200  # days before the first quarter to forecast


class Forecaster(nn.Module):
    """Returns `[B, T, 1]` to the next one, `[B]`."""

    def __init__(self, library, hidden: int):
        super().__init__()
        self.lstm = library.LSTM(1, hidden, num_layers=2, dropout=0.2, batch_first=True)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(hidden, 1)

    def forward(self, returns: Tensor) -> Tensor:
        states, _ = self.lstm(returns)
        return self.head(self.dropout(states[:, -1]))[:, 0]


def find_quarters(days: np.ndarray) -> list[tuple[int, int]]:
    """For each quarter to forecast its first day, and the first day after it."""
    quarters = days.astype("datetime64[M]").astype(int) // 3
    starts = [start for start in np.flatnonzero(np.diff(quarters)) + 1 if start >= HISTORY]
    return list(zip(starts, [*starts[1:], len(days)], strict=False))


def forecast_quarter(args, prices: np.ndarray, start: int) -> list[tuple[common.Run, np.ndarray]]:
    """The training of each library on the days before start, and the prices it expects from start on."""
    returns = torch.tensor(np.diff(np.log(prices)), dtype=torch.float32)
    scale = returns[: start - 1].std()  # the last of these leads to the day before the quarter
    windows = (returns / scale).unfold(0, WINDOW + 1, 1)
    x, y = windows[:, :-1, None], windows[:, -1]
    past = len(y) - (len(prices) - start)

    def loss(model: nn.Module, chosen: Tensor | slice) -> Tensor:
        return mse_loss(model(x[chosen]), y[chosen])

    runs = common.train(
        args,
        build=lambda library: Forecaster(library, args.hidden),
        loss_of=loss,
        batches=lambda generator: common.minibatches(torch.arange(past * 4 // 5), 64, generator),
        epochs=args.epochs,
        score=lambda model: loss(model, slice(past * 4 // 5, past)).item(),
        higher_is_better=False,
        what=f"{past} days",
    )
    with torch.no_grad():
        return [(run, prices[start - 1 : -1] * (run.model(x[past:]) * scale).exp().numpy()) for run in runs]


def report(forecasts: dict, seconds: dict[str, float], truth: np.ndarray, before: np.ndarray) -> None:
    """Print the errors and the right directions, and whether they are more than chance."""
    table = common.Table("", "mean absolute error, $", "right direction", "says up", "training, s")
    rises = truth > before
    for name, forecast in forecasts.items():
        ups = forecast > before
        error, right = abs(forecast - truth).mean(), (ups == rises).mean()
        table.add_row(name, f"{error:.3f}", f"{right:.1%}", f"{ups.mean():.1%}", f"{seconds[name]:.1f}")
    table.add_row("day before, up", f"{abs(before - truth).mean():.3f}", f"{rises.mean():.1%}", "100.0%")
    common.console.print(table)
    extra = abs(forecast - truth) - abs(before - truth)
    chance = 2 * extra.std() / len(extra) ** 0.5  # two standard errors
    verdict = "beats" if extra.mean() < -chance else "does not beat"
    print(f"{name} {verdict} the day before: {extra.mean():+.3f} $ of error a day (chance: {chance:.3f} $)")


def plot(days: np.ndarray, prices: dict[str, np.ndarray], args) -> None:
    """The price and its forecast, the last 40 days of them, and the errors by year."""
    title = f"The price of the next day, forecast by two LSTM layers of {args.hidden} units"
    figure, axes = common.new_figure(title, 1, 3, size=(15, 4.6), width_ratios=[1.3, 1.3, 1])
    looks = {"price": ("0.7", 4, "-"), "forecast": ("#2166ac", 2, "-"), "day before": ("#e08214", 1, "--")}
    for ax, count, names in ((axes[0], len(days), list(looks)[:2]), (axes[1], 40, list(looks))):
        for name in names:
            colour, width, style = looks[name]
            ax.plot(days[-count:], prices[name][-count:], style, color=colour, linewidth=width, label=name)
        ax.set(title="all quarters" if ax is axes[0] else "the last 40 days", ylabel="price, $")
        ax.set_ylim(top=ax.get_ylim()[1] + 0.15 * np.ptp(ax.get_ylim()))
        ax.legend(frameon=False, loc="upper center", ncols=3)
        ax.tick_params("x", rotation=30)
    years, year = np.unique(days.astype("datetime64[Y]"), return_inverse=True)
    for name, shift in (("forecast", -0.2), ("day before", 0.2)):
        errors = np.bincount(year, abs(prices[name] - prices["price"])) / np.bincount(year)
        axes[2].bar(np.arange(len(years)) + shift, errors, 0.4, color=looks[name][0], label=name)
    axes[2].set_xticks(range(len(years)), years.astype(str))
    axes[2].set(title="error by year", ylabel="mean absolute error, $")
    common.legend_below(axes[2])
    common.save(figure, args.out)


def main() -> None:
    parser = common.make_parser(__doc__, "stock", hidden=50, epochs=8)
    parser.add_argument("--prices", type=Path, metavar="FILE", help="CSV with the columns date and close")
    args = common.parse(parser)

    days, prices = read_prices(args.prices)
    quarters = find_quarters(days)[-5 if args.quick else 0 :]
    if not quarters:
        raise SystemExit(f"--prices {args.prices}: expected {HISTORY} days and more, got {len(days)}")
    first = quarters[0][0]
    print(f"{len(days)} days to {days[-1]}; forecast: {len(quarters)} quarters from {days[first]}")
    forecasts = {name: prices.copy() for name in args.libraries}
    seconds = dict.fromkeys(args.libraries, 0.0)
    for start, end in quarters:
        for run, expected in forecast_quarter(args, prices[:end], start):
            forecasts[run.name][start:end] = expected
            seconds[run.name] += run.seconds
    forecasts = {name: forecast[first:] for name, forecast in forecasts.items()}
    truth, before, forecast = prices[first:], prices[first - 1 : -1], forecasts[args.libraries[-1]]
    report(forecasts, seconds, truth, before)
    plot(days[first:], {"price": truth, "forecast": forecast, "day before": before}, args)


if __name__ == "__main__":
    main()
