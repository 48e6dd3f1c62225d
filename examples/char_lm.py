"""Train a character language model on torch.nn and on fastrnn, and compare the two.

Both models start from the same seed and see the same batches. Their training steps take turns, and the model
that goes first alternates, so that neither gets a quieter machine. Without --text they learn the
documentation that comes with Python. Under torchrun the processes share each batch and average their
gradients.
"""

from __future__ import annotations

import math
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median

import common
import torch
import torch.distributed as dist
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fastrnn

LAYERS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}
LEARNING_RATE = 2e-3
COMPARED_STEPS = 100  # over these first steps the two losses must agree
PROMPT_CHARS, SAMPLE_CHARS = 100, 600
SAMPLE_TEMPERATURE = 0.6


class CharModel(nn.Module):
    """Predicts the next character: Embedding, recurrent layers from `library`, Linear."""

    def __init__(self, library, cell: str, vocabulary: int, hidden: int, layers: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, hidden)
        self.rnn = fastrnn.Stateful(getattr(library, LAYERS[cell])(hidden, hidden, layers))
        self.head = nn.Linear(hidden, vocabulary)

    def forward(
        self, chars: Tensor
    ) -> Tensor:  # [T, B] -> logits [T, B, vocabulary]; continues where the last call ended
        return self.head(self.rnn(self.embedding(chars)))


@dataclass
class Trainer:
    """One model with its optimizer and history."""

    name: str
    model: CharModel
    steps: int
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self):
        self.parallel = DistributedDataParallel(self.model) if dist.is_initialized() else self.model
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE, fused=True)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, self.steps)

    def step(self, inputs: Tensor, targets: Tensor, fresh: bool):
        """One step of truncated back-propagation through time; `fresh` starts from a zero state."""
        start = time.perf_counter()
        if fresh:
            self.model.rnn.reset()
        self.optimizer.zero_grad()
        logits = self.parallel(inputs)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), common.CLIP_NORM)
        self.optimizer.step()
        self.schedule.step()
        self.model.rnn.detach()
        if dist.is_initialized():
            dist.all_reduce(loss := loss.detach() / dist.get_world_size())
        self.losses.append(loss.item())
        self.seconds.append(time.perf_counter() - start)


def default_text() -> str:
    from pydoc_data import topics

    lines = "\n\n".join(topics.topics[name] for name in sorted(topics.topics)).split("\n")
    return "\n".join(line for line in lines if not line.startswith(("|", "+")))  # tables are mostly spaces


def streams(text: str, vocabulary: str, batch: int, seq: int) -> Tensor:
    """Cut the text into `batch` streams that are read in parallel: `[characters, batch]`."""
    length = len(text) // batch
    if length < seq + 1:
        raise SystemExit(
            f"the text has {len(text)} characters, "
            f"but --batch {batch} --seq {seq} need at least {batch * (seq + 1)}"
        )
    index = {char: i for i, char in enumerate(vocabulary)}
    return torch.tensor([index[char] for char in text[: length * batch]]).view(batch, length).t().contiguous()


def train(trainers: list[Trainer], data: Tensor, steps: int, seq: int):
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    with Progress(*columns, console=common.console) as progress:
        task = progress.add_task("training", total=steps, loss="")
        position = 0
        for step in range(steps):
            if position + seq + 1 > len(data):
                position = 0
            inputs, targets = data[position : position + seq], data[position + 1 : position + seq + 1]
            for trainer in trainers if step % 2 else reversed(trainers):
                trainer.step(inputs, targets, fresh=position == 0)
            position += seq
            loss = " ".join(f"{trainer.name} {trainer.losses[-1]:.3f}" for trainer in trainers)
            progress.update(task, advance=1, loss=f"loss {loss}")


@torch.no_grad()
def sample(model: CharModel, vocabulary: str, prompt: str, seed: int) -> str:
    generator = torch.Generator().manual_seed(seed)
    chars, text = torch.tensor([[vocabulary.index(char)] for char in prompt]), ""
    model.rnn.reset()
    for _ in range(SAMPLE_CHARS):
        logits = model(chars)
        chars = torch.multinomial((logits[-1] / SAMPLE_TEMPERATURE).softmax(-1), 1, generator=generator)
        text += vocabulary[chars.item()]
    return text


def rounding_bounds(losses: list[float], seq: int, hidden: int, layers: int) -> list[float]:
    """How much rounding alone may separate the losses of two float32 runs, at each of the first steps.

    A value is a sum over seq steps, hidden units and layers. Rounding errors add up like a random walk, so
    its relative error is e = u * sqrt(seq * hidden * layers), u = 2^-24. The loss has this error itself.
    Adam moves a parameter by at most the learning rate, so n steps add an error of n * learning_rate * e to
    it. The loss changes by that times the norm of the gradient, which is at most CLIP_NORM. The factor 2 is
    for two runs.
    """
    e = 2.0**-24 * math.sqrt(seq * hidden * layers)
    move = LEARNING_RATE * common.CLIP_NORM
    return [2 * e * (loss + n * move) for n, loss in enumerate(losses[:COMPARED_STEPS])]


def report(trainers: list[Trainer], chars_per_step: int):
    table = Table("", "first loss", "mean of last 50", "median characters/s", "seconds")
    for trainer in trainers:
        table.add_row(
            trainer.name,
            f"{trainer.losses[0]:.4f}",
            f"{mean(trainer.losses[-50:]):.4f}",
            f"{chars_per_step / median(trainer.seconds):,.0f}",
            f"{sum(trainer.seconds):.1f}",
        )
    common.console.print(table)


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


def plot(
    trainers: list[Trainer],
    differences: list[float],
    bounds: list[float],
    chars_per_step: int,
    title: str,
    path: Path,
):
    figure, panels = common.new_figure(title, 2, 2, size=(12, 5.5), width_ratios=[1.7, 1])
    axes = common.join(panels[:, 0])
    for trainer in trainers:
        name = trainer.name
        axes.plot(trainer.losses, color=common.COLOURS[name], linewidth=common.WIDTHS[name], label=name)
    axes.set(xlabel="training step", ylabel="loss, nats per character", title="Loss")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)

    axes = panels[0, 1] if differences else common.join(panels[:, 1])
    speeds = [chars_per_step / median(trainer.seconds) for trainer in trainers]
    names = [trainer.name for trainer in trainers]
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
        axes.set(xlabel="training step", title="Difference of the two losses")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    common.save(figure, path)


def main() -> int:
    parser = common.make_parser(__doc__, "char_lm")
    parser.set_defaults(layer_impl="both")
    add = parser.add_argument
    add("--text", type=Path, metavar="FILE", help="UTF-8 text (the documentation that comes with Python)")
    add("--cell", choices=LAYERS, default="gru", help="kind of recurrent layer (%(default)s)")
    add("--layers", type=common.positive, default=2, help="recurrent layers (%(default)s)")
    add("--hidden", type=common.positive, default=256, help="hidden units of each layer (%(default)s)")
    add("--steps", type=common.positive, default=600, help="training steps (%(default)s)")
    add("--batch", type=common.positive, default=32, help="streams of text read in parallel (%(default)s)")
    add("--seq", type=common.positive, default=64, help="characters of a training step (%(default)s)")
    args = common.parse(parser)
    if args.quick:
        args.steps, args.hidden = 10, 64
    rank, processes = 0, int(os.environ.get("WORLD_SIZE", 1))  # torchrun sets it
    if processes > 1:
        if args.batch % processes:
            raise SystemExit(f"--batch {args.batch} cannot be shared by {processes} processes")
        dist.init_process_group("gloo")
        rank = dist.get_rank()
    console = common.console
    console.quiet = rank > 0
    text = default_text() if args.text is None else common.read_text(args.text, "--text")
    vocabulary = "".join(sorted(set(text)))
    data = streams(text, vocabulary, args.batch, args.seq)[:, rank::processes].contiguous()

    trainers = []
    for name in args.libraries:
        torch.manual_seed(args.seed)
        model = CharModel(common.LIBRARIES[name], args.cell, len(vocabulary), args.hidden, args.layers)
        trainers.append(Trainer(name, model, args.steps))
    title = (
        f"Character model, {args.layers} x {LAYERS[args.cell]}({args.hidden}), batch {args.batch}, "
        f"sequence {args.seq}, {args.threads} threads"
        + f" in each of {processes} processes"
        * (processes > 1)
    )
    console.print(f"{title}\n{len(text):,} characters of text, {len(vocabulary)} different ones")
    train(trainers, data, args.steps, args.seq)
    if processes > 1:
        dist.destroy_process_group()
        if rank > 0:
            return 0

    chars_per_step = args.batch * args.seq
    report(trainers, chars_per_step)
    differences, bounds, held = [], [], True
    if len(trainers) == 2:
        reference, other = trainers
        ratio = median(reference.seconds) / median(other.seconds)
        console.print(f"fastrnn trains [bold]{ratio:.2f}x[/bold] as fast as torch.nn")
        bounds = rounding_bounds(reference.losses, args.seq, args.hidden, args.layers)
        differences = [abs(a - b) for a, b in zip(reference.losses, other.losses, strict=True)][: len(bounds)]
        held = agreement(differences, bounds)
    plot(trainers, differences, bounds, chars_per_step, title, args.out)
    console.print()

    prompt = text[:PROMPT_CHARS]
    console.rule(f"text sampled from the {trainers[-1].name} model")
    console.out(prompt, style="dim", end="", highlight=False)
    console.out(sample(trainers[-1].model, vocabulary, prompt, args.seed), highlight=False)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
