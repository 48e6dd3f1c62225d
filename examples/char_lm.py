"""Train a character language model on torch.nn and on fastrnn, and compare the two.

The lecture's language model: characters come in, and out go the probabilities of the next one. The text is
read in pieces, and the state goes on from piece to piece, the gradient does not (truncated back-propagation
through time). At the end the model writes: each character that it draws is its next input.

Both models start from the same seed and see the same batches. They take turns of a few steps, and the model
that goes first alternates, so that neither gets a quieter machine. Without --text they learn the
documentation that comes with Python. Under torchrun the processes share each batch and average their
gradients.
"""

from __future__ import annotations

import math
import os
import sys
from itertools import islice
from pathlib import Path

import common
import torch
import torch.distributed as dist
from support.comparison import compare
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import fastrnn

LEARNING_RATE = 2e-3
TURN = 20  # steps of a model until it is the other's turn
PROMPT_CHARS, SAMPLE_CHARS, TEMPERATURE = 100, 600, 0.6


class CharModel(nn.Module):
    """Characters `[T, B]` to logits of the next ones `[T, B, vocabulary]`. Continues where it ended."""

    def __init__(self, library, cell: str, vocabulary: int, hidden: int, layers: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, hidden)
        self.rnn = fastrnn.Stateful(getattr(library, cell)(hidden, hidden, layers))
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, chars: Tensor) -> Tensor:
        return self.head(self.rnn(self.embedding(chars)))


def streams(text: str, vocabulary: str, batch: int, seq: int) -> tuple[Tensor, Tensor]:
    """The text as `batch` streams that are read in parallel, `[characters, batch]`: to train, to test."""
    length = len(text) // batch
    if length < 2 * seq + 1:
        need = f"--batch {batch} --seq {seq} need at least {batch * (2 * seq + 1)}"
        raise SystemExit(f"the text has {len(text)} characters, but {need}")
    index = {char: i for i, char in enumerate(vocabulary)}
    data = torch.tensor([index[char] for char in text[: length * batch]]).view(batch, length).t().contiguous()
    return data[:-seq], data[-seq - 1 :]


def loss_of(model: nn.Module, piece: tuple[bool, Tensor]) -> Tensor:
    """Of predicting each character of a piece from those before it. fresh: the text begins anew."""
    fresh, chars = piece
    rnn = unwrap(model).rnn
    if fresh:
        rnn.reset()
    rnn.detach()
    return cross_entropy(model(chars[:-1]).flatten(0, 1), chars[1:].flatten())


def unwrap(model: nn.Module) -> CharModel:
    """The model itself, where DistributedDataParallel holds it."""
    return getattr(model, "module", model)


def loss_on(chars: Tensor, model: nn.Module) -> float:
    """On text that training has not seen. The state of training waits."""
    model = unwrap(model)
    state = model.rnn.state
    loss = loss_of(model, (True, chars)).item()
    model.rnn.state = state
    return loss


@torch.no_grad()
def sample(model: CharModel, vocabulary: str, prompt: str, seed: int) -> str:
    """What the model writes after the prompt."""
    generator = torch.Generator().manual_seed(seed)
    chars, text = torch.tensor([[vocabulary.index(char)] for char in prompt]), ""
    model.rnn.reset()
    for _ in range(SAMPLE_CHARS):
        p = (model(chars)[-1] / TEMPERATURE).softmax(-1)
        chars = torch.multinomial(p, 1, generator=generator)
        text += vocabulary[chars.item()]
    return text


def main() -> int:
    parser = common.make_parser(__doc__, "char_lm", cell="GRU", hidden=256)
    parser.set_defaults(layer_impl="both")
    add = parser.add_argument
    add("--text", type=Path, metavar="FILE", help="UTF-8 text (the documentation that comes with Python)")
    add("--layers", type=common.positive, default=2, help="recurrent layers (%(default)s)")
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

    text = common.read_text_or_topics(args.text)
    vocabulary = "".join(sorted(set(text)))
    data, held_out = streams(text, vocabulary, args.batch, args.seq)
    data = data[:, rank::processes].contiguous()
    places = range(0, len(data) - args.seq, args.seq)
    steps = (places[step % len(places)] for step in range(args.steps))
    pieces = ((place == 0, data[place : place + args.seq + 1]) for place in steps)
    model = f"{args.layers} x {args.cell}({args.hidden}), batch {args.batch}, sequence {args.seq}"
    where = f" in each of {processes} processes" if processes > 1 else ""
    title = f"Character model, {model}, {args.threads} threads{where}"
    console.print(f"{title}\n{len(text):,} characters of text, {len(vocabulary)} different ones")

    def build(library) -> nn.Module:
        model = CharModel(library, args.cell, len(vocabulary), args.hidden, args.layers)
        return DistributedDataParallel(model) if processes > 1 else model

    def optimizer(parameters, lr: float) -> torch.optim.Optimizer:
        """Adam, whose rate sinks to zero along a cosine."""
        adam = torch.optim.Adam(parameters, lr=lr, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, args.steps)
        adam.register_step_post_hook(lambda *_: schedule.step())
        return adam

    runs = common.train(
        args,
        build=build,
        loss_of=loss_of,
        batches=lambda generator: islice(pieces, TURN),
        epochs=math.ceil(args.steps / TURN),
        score=lambda model: loss_on(held_out, model),
        higher_is_better=False,
        optimizer=optimizer,
        rate=LEARNING_RATE,
    )
    if processes > 1:  # the loss of the whole batch is the mean of those of its shares
        for run in runs:
            dist.all_reduce(losses := torch.tensor(run.losses, dtype=torch.float64) / processes)
            run.losses = losses.tolist()
        dist.destroy_process_group()
        if rank > 0:
            return 0

    held = compare(args, title, runs, LEARNING_RATE)
    prompt = text[:PROMPT_CHARS]
    console.rule(f"text sampled from the {runs[-1].name} model")
    console.out(prompt, style="dim", end="", highlight=False)
    console.out(sample(unwrap(runs[-1].model), vocabulary, prompt, args.seed), highlight=False)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
