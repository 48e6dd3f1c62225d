"""What the example programs share: options, data, the training loop, the report and the look of pictures.

A program describes its model as a function of the library whose layers it uses, torch.nn or fastrnn, and
`train` trains one model for each: from the same seed, on the same batches, by turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn

import fastrnn

LIBRARIES: dict[str, ModuleType] = {"torch": nn, "fastrnn": fastrnn}
CELLS = ("RNN", "LSTM", "GRU")
COLOURS = {"torch": "#e08214", "fastrnn": "#2166ac"}
WIDTHS = {"torch": 5, "fastrnn": 1.5}  # where curves coincide, the wide one shows behind the narrow one
CLIP_NORM = 1.0
PAD, EOS, START = range(3)  # the numbers of what a sequence ends and begins with; those of words come after

console = Console()


# ---- options ----


def positive(text: str) -> int:
    """The type of an option that is a count."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def picture(text: str) -> Path:
    """The type of an option that names a picture."""
    if not text.endswith(".png"):
        raise argparse.ArgumentTypeError(f"{text} does not end in .png")
    return Path(text)


def make_parser(doc: str, name: str, cell: str | None = None, **counts: int) -> argparse.ArgumentParser:
    """The options of every program. doc: its docstring; name: its own, which the picture has too.

    cell, counts: defaults of --cell, --hidden and --epochs; a program without a default lacks the option
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--layer-impl", choices=[*LIBRARIES, "both"], default="fastrnn", help="whose layers (%(default)s)")
    add("--seed", type=int, default=0, help="of the weights and the batches (%(default)s)")
    threads = torch.get_num_threads()
    add("--threads", type=positive, default=threads, help="of torch and fastrnn (%(default)s)")
    add("--quick", action="store_true", help="train a little, to see that it runs")
    add("--out", type=picture, default=Path(f"out/{name}.png"), help="where the picture goes (%(default)s)")
    if cell:
        add("--cell", type=str.upper, choices=CELLS, default=cell, help="kind of layer (%(default)s)")
    helps = {"hidden": "units of each recurrent layer", "epochs": "of training"}
    for option, count in counts.items():
        add(f"--{option}", type=positive, default=count, help=f"{helps[option]} (%(default)s)")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options given, with `libraries`, the names of those to train; sets threads and seed."""
    args = parser.parse_args()
    if args.quick and hasattr(args, "epochs"):
        args.epochs = 2
    args.libraries = list(LIBRARIES) if args.layer_impl == "both" else [args.layer_impl]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    return args


# ---- data ----


def download(url: str, known_hash: str, option: str, unpack: Sequence[str] | None = None) -> Path:
    """A file of the web, kept by pooch in the user's cache. option: what to give where there is no network;
    unpack: the folders that are wanted of a tar archive, for the path of the folder that then has them."""
    import pooch

    processor = pooch.Untar(members=unpack) if unpack else None
    options = dict(path=pooch.os_cache("fastrnn"), processor=processor, progressbar=False)
    try:
        path = pooch.retrieve(url, known_hash, **options)
    except (OSError, ValueError) as error:  # no network, another status than 200; another content
        raise SystemExit(f"{url}: {error}\ngive a file or folder that you have: {option}") from None
    return Path(processor.extract_dir if processor else path)


def read_text(path: Path, option: str, encoding: str = "utf-8") -> str:
    """The text of a file that an option names."""
    try:
        return path.read_text(encoding=encoding)
    except OSError as error:
        raise SystemExit(f"{option} {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SystemExit(f"{option} {path}: not {encoding} text (byte {error.start})") from None


def read_text_or_topics(path: Path | None) -> str:
    """The text that --text names, or without it the documentation that comes with Python."""
    if path:
        return read_text(path, "--text")
    from pydoc_data.topics import topics

    lines = "\n\n".join(topics[name] for name in sorted(topics)).split("\n")
    return "\n".join(line for line in lines if not line.startswith(("|", "+")))  # tables are mostly spaces


def split_in_three(count: int) -> list[Tensor]:
    """The indices 0 to count - 1, shuffled: a fifth to test, a fifth to validate, the rest to train."""
    fifth = count // 5
    return list(torch.randperm(count).split([fifth, fifth, count - 2 * fifth]))


def minibatches(items: Tensor, size: int, generator: torch.Generator) -> list[Tensor]:
    """The items in a new order, in groups of `size`."""
    return list(items[torch.randperm(len(items), generator=generator)].split(size))


# ---- training ----


@dataclass
class Run:
    """A model in training, and how it went."""

    name: str  # of the library
    model: nn.Module
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)  # of each step, before it
    times: list[float] = field(default_factory=list)  # of each step, seconds
    scores: list[float] = field(default_factory=list)  # after each epoch
    best: dict[str, Any] = field(default_factory=dict)  # the state of the model at its best score

    @property
    def seconds(self) -> float:
        """Of training, without scoring."""
        return sum(self.times)

    def step(self, loss_of: Callable[[nn.Module, Any], Tensor], batch: Any) -> None:
        """Train on a batch."""
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss = loss_of(self.model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.losses.append(loss.item())
        self.times.append(time.perf_counter() - start)


def begin(
    args: argparse.Namespace,
    build: Callable[[ModuleType], nn.Module],
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    rate: float = 1e-3,
) -> list[Run]:
    """A model of each library that was asked for, from the same seed. rate: of learning."""
    runs = []
    for name in args.libraries:
        torch.manual_seed(args.seed)
        model = build(LIBRARIES[name])
        runs.append(Run(name, model, optimizer(model.parameters(), lr=rate)))
    return runs


def in_turn(runs: Sequence[Run], turn: int) -> Iterable[Run]:
    """The runs, those of the other library first each time, so that neither gets a quieter machine."""
    return runs if turn % 2 else reversed(runs)


def progress_bar() -> Progress:
    """A bar for tasks, which goes away when they are done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def track(items: Sequence[Any], what: str) -> Iterator[Any]:
    """The items, with a progress bar."""
    with progress_bar() as progress:
        yield from progress.track(items, description=what)


def train(
    args: argparse.Namespace,
    build: Callable[[ModuleType], nn.Module],
    loss_of: Callable[[nn.Module, Any], Tensor],
    batches: Callable[[torch.Generator], Iterable[Any]],
    *,
    epochs: int,
    score: Callable[[nn.Module], float],
    higher_is_better: bool = True,
    patience: int | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    rate: float = 1e-3,
    what: str = "training",
) -> list[Run]:
    """Train a model of each library that was asked for; each ends with the weights of its best score.

    The models see the same batches and draw the same dropout masks. They take turns epoch by epoch.

    Args:
        build: makes the model from the library's layers
        loss_of: the loss of the model on a batch
        batches: the batches of an epoch, in an order drawn from the generator
        score: of the model in eval mode, without gradients
        patience: stop when no model got better in so many epochs
        rate: of learning
    """
    runs = begin(args, build, optimizer, rate)
    best = max if higher_is_better else min
    with progress_bar() as progress:
        task = progress.add_task(what, total=epochs)
        for epoch in range(epochs):
            todo = list(batches(torch.Generator().manual_seed(args.seed + epoch)))
            for run in in_turn(runs, epoch):
                torch.manual_seed(args.seed + epoch)
                run.model.train()
                for batch in todo:
                    run.step(loss_of, batch)
                run.scores.append(evaluate(run.model, score))
                if run.scores[-1] == best(run.scores):
                    run.best = deepcopy(run.model.state_dict())
            scores = ", ".join(f"{run.name} {run.scores[-1]:.3f}" for run in runs)
            progress.update(task, advance=1, description=f"{what}: {scores}")
            if patience and all(epoch - run.scores.index(best(run.scores)) >= patience for run in runs):
                break
    for run in runs:
        run.model.load_state_dict(run.best)
        run.model.eval()
    return runs


@torch.no_grad()
def evaluate(model: nn.Module, score: Callable[[nn.Module], float]) -> float:
    """The score of the model in eval mode."""
    model.eval()
    return score(model)


def right(found: Tensor, truth: Tensor) -> tuple[float, float]:
    """The share of sequences `[N, T]` that are right to the end, and the share of their items."""
    same = found == truth
    return same.all(1).float().mean().item(), same[truth > EOS].float().mean().item()


# ---- report ----


def report(
    runs: Sequence[Run],
    scores: dict[str, Callable[[nn.Module], float]],
    form: str = "{:.3f}",
    beside: dict[str, nn.Module] | None = None,
) -> None:
    """Print a table: the scores of each run's model by name, and the seconds that it trained.

    beside: other models to compare with, by name, that nobody trained here
    """
    table = Table("", *scores, "training, s")
    for run in runs:
        values = [form.format(evaluate(run.model, score)) for score in scores.values()]
        table.add_row(run.name, *values, f"{run.seconds:.1f}")
    for name, model in (beside or {}).items():
        table.add_row(name, *(form.format(evaluate(model, score)) for score in scores.values()), "")
    console.print(table)
    if len(runs) == 2:
        reference, other = runs
        console.print(f"{other.name} trains [bold]{reference.seconds / other.seconds:.2f}x[/bold] as fast")


# ---- pictures ----


def new_figure(title: str, rows: int = 1, columns: int = 1, size: tuple[float, float] = (11, 5), **grid: Any):
    """A figure and its axes, as plt.subplots returns them, in the style of the examples."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 11})
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", **grid)
    figure.suptitle(title)
    return figure, axes


def join(axes: Any) -> Any:
    """One panel in place of those in `axes`, an array of neighbours."""
    places = [ax.get_subplotspec() for ax in axes.flat]
    figure, grid = axes.flat[0].figure, axes.flat[0].get_gridspec()
    for ax in axes.flat:
        ax.remove()
    rows, columns = places[0].rowspan.start, places[0].colspan.start
    return figure.add_subplot(grid[rows : places[-1].rowspan.stop, columns : places[-1].colspan.stop])


def plot_scores(axes: Any, runs: Sequence[Run], label: str, colours: dict[str, str] = COLOURS) -> None:
    """The score of each run after each epoch, in the colour of its name; grey if it has none."""
    for run in runs:
        look = dict(color=colours.get(run.name, "0.5"), linewidth=WIDTHS.get(run.name, 1.5))
        look["marker"] = "o" if len(run.scores) == 1 else ""  # a single point is no line
        axes.plot(range(1, len(run.scores) + 1), run.scores, label=run.name, **look)
    axes.set(xlabel="epoch", ylabel=label)
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.25)
    if len(runs) > 1:
        axes.legend(frameon=False)


def legend_below(axes: Any, distance: float = 0.15) -> None:
    """The legend below a panel, in three columns. distance: in heights of the panel."""
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -distance), ncols=3)


def save(figure: Any, path: Path) -> None:
    """Write the picture, and say where it is."""
    figure.savefig(path, dpi=120)
    console.print(f"picture: {path}")
