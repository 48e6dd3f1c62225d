"""Translate one sequence into another: dates as people write them into ISO form, or questions into answers.

The lecture's encoder and decoder. One GRU reads the characters of a question, "tuesday, the 3rd of may 1987".
Its last state is the first state of another GRU, which writes the answer, "1987-05-03": a character a step,
from START until it writes EOS. In training the decoder gets the right last character, whatever it wrote
(teacher forcing). Afterwards it gets its own: the likeliest one (greedy), or it follows the likeliest
beginnings (--beam). No date of the test is in the training. --reverse goes from ISO form to "3 may 1987",
--pairs takes a file of yours.
"""

from __future__ import annotations

import random
from pathlib import Path

import common
import torch
from common import EOS, PAD, START, right
from support.pairs import date_pairs, file_pairs
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence


class Translator(nn.Module):
    """Questions `[B, T]` and answers so far `[B, T']` to logits of what comes next `[B, T', characters]`."""

    def __init__(self, library, characters: int, hidden: int):
        super().__init__()
        self.embedding = nn.Embedding(characters, 64)
        self.encoder = library.GRU(64, hidden, batch_first=True)
        self.decoder = library.GRU(64, hidden, batch_first=True)
        self.head = nn.Linear(hidden, characters)

    def encode(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Embedded questions `[B, T, 64]` to the state after the last character of each, `[1, B, H]`."""
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.encoder(packed)[1]

    def decode(self, y: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The logits after each character of y, and the last state."""
        states, h = self.decoder(self.embedding(y), h)
        return self.head(states), h

    def forward(self, x: Tensor, lengths: Tensor, y: Tensor) -> Tensor:
        return self.decode(y, self.encode(self.embedding(x), lengths))[0]


@torch.no_grad()
def search(model: Translator, x: Tensor, lengths: Tensor, width: int, steps: int) -> Tensor:
    """The likeliest answer found for each question, `[B, 1 + steps]`, with a beam. Width 1 is greedy."""
    h = model.encode(model.embedding(x), lengths).repeat_interleave(width, 1)  # [1, B * width, H]
    answers = torch.full((len(x), width, 1), START)
    scores = torch.tensor([0.0, *[-torch.inf] * (width - 1)])  # at first all beginnings are the same
    for _ in range(steps):
        logits, h = model.decode(answers[:, :, -1].reshape(-1, 1), h)
        after = logits.log_softmax(-1).view(len(x), width, -1)
        ended = answers[:, :, -1] <= EOS  # only PAD follows, at no cost
        after[ended] = -torch.inf
        after[:, :, PAD] = torch.where(ended, 0.0, -torch.inf)
        scores, best = (scores[..., None] + after).flatten(1).topk(width)
        parents, characters = best // after.shape[-1], best % after.shape[-1]
        answers = torch.cat([answers.take_along_dim(parents[:, :, None], 1), characters[:, :, None]], -1)
        h = h[:, (parents + width * torch.arange(len(x))[:, None]).flatten()]
    return answers[:, 0]


def influence(model: Translator, x: Tensor, y: Tensor) -> Tensor:
    """How much each character of a question moves each one of its answer: norms of gradients, `[T, T']`."""
    embedded = model.embedding(x[None]).detach().requires_grad_()
    logits, _ = model.decode(y[None, :-1], model.encode(embedded, torch.tensor([len(x)])))
    chosen = logits[0].gather(1, y[1:, None])
    gradients = [torch.autograd.grad(logit, embedded, retain_graph=True)[0] for logit in chosen]
    return torch.cat(gradients).norm(dim=-1).T


def plot(args, runs, names: list[str], x: Tensor, lengths: Tensor, steps: int) -> None:
    """The training, what the model hesitates between, and where in a question its answer comes from."""
    model = runs[-1].model
    written = search(model, x, lengths, 1, steps)
    with torch.no_grad():
        p = model(x, lengths, written[:, :-1]).softmax(-1)  # [N, T', characters]
    unsure = (p.amax(-1) + (written[:, 1:] == PAD)).amin(1).argmin().item()
    longest = lengths.argmax().item()
    questions = {i: x[i, : lengths[i]] for i in (unsure, longest)}
    answers = {i: written[i, written[i] != PAD] for i in (unsure, longest)}
    p = p[unsure, : len(answers[unsure]) - 1].T
    likely = (p > 0.02).any(1).nonzero()[:, 0]

    title = f"Encoder and decoder, GRU({args.hidden})"
    figure, (left, middle, last) = common.new_figure(title, 1, 3, (16, 7))
    common.plot_scores(left, runs, "validation answers exactly right, share")
    left.set(title="training", ylim=(0, 1.02))
    middle.imshow(p[likely], cmap="Blues", vmin=0, vmax=1, aspect="auto")
    asked = "".join(names[c] for c in questions[unsure])
    middle.set(title=f"probabilities where it is least sure,\n{asked!r}"[:60], ylabel="character")
    last.imshow(influence(model, questions[longest], answers[longest]), cmap="Blues", aspect="auto")
    last.set(title="how much a character of a question\nmoves one of the answer", ylabel="question")
    for ax, rows, i in ((middle, likely, unsure), (last, questions[longest], longest)):
        ax.set_yticks(range(len(rows)), [names[c] for c in rows])
        ax.set_xticks(range(len(answers[i]) - 1), [names[c] for c in answers[i][1:]])
        ax.set_xlabel("answer")
        ax.tick_params(length=0)
    common.save(figure, args.out)


def main() -> None:
    parser = common.make_parser(__doc__, "seq2seq", hidden=128)
    add = parser.add_argument
    add("--pairs", metavar="FILE", type=Path, help="pairs to learn, question TAB answer a line")
    add("--reverse", action="store_true", help="from ISO form to 3 may 1987")
    add("--beam", metavar="K", type=common.positive, default=4, help="beginnings that are kept (%(default)s)")
    args = common.parse(parser)

    rng = random.Random(args.seed)
    count = (200 if args.quick else 2000) * (4 if args.reverse else 1)
    groups = file_pairs(args.pairs) if args.pairs else date_pairs(count, args.reverse, rng)
    rng.shuffle(groups)
    tenth = len(groups) // 10
    parts = groups[:tenth], groups[tenth : 2 * tenth], groups[2 * tenth :]
    pairs = [pair for group in groups for pair in group]
    names = ["", "EOS", "START", *sorted({c for pair in pairs for c in "".join(pair)})]
    number = {name: i for i, name in enumerate(names)}
    questions = [torch.tensor([number[c] for c in question]) for question, _ in pairs]
    answers = [torch.tensor([START, *(number[c] for c in answer), EOS]) for _, answer in pairs]
    x, y = (pad_sequence(texts, batch_first=True, padding_value=PAD) for texts in (questions, answers))
    truth = y[:, 1:]  # what to write: answers without START
    lengths = torch.tensor([len(question) for question in questions])
    test, validation, training = torch.arange(len(pairs)).split([sum(map(len, part)) for part in parts])
    print(f"{len(training):,} pairs to train, {len(validation):,} to validate, {len(test):,} to test")

    def write(model: Translator, i: Tensor, width: int = 1) -> Tensor:
        return search(model, x[i], lengths[i], width, y.shape[1] - 1)[:, 1:]

    def loss_of(model: Translator, i: Tensor) -> Tensor:
        logits = model(x[i], lengths[i], y[i, :-1])
        return cross_entropy(logits.flatten(0, 1), truth[i].flatten(), ignore_index=PAD)

    runs = common.train(
        args,
        build=lambda library: Translator(library, len(names), args.hidden),
        loss_of=loss_of,
        batches=lambda generator: common.minibatches(training, 64, generator),
        epochs=2 if args.quick else 20 if args.reverse else 12,
        score=lambda model: right(write(model, validation), truth[validation])[0],
        rate=3e-3,
    )
    scores = {
        "greedy: answers": lambda model: right(write(model, test), truth[test])[0],
        "characters": lambda model: right(write(model, test), truth[test])[1],
        f"beam of {args.beam}: answers": lambda model: right(write(model, test, args.beam), truth[test])[0],
    }
    common.report(runs, scores)
    usual = right(truth[training].mode(0).values, truth[test])
    print(f"the most frequent character at each place: {usual[0]:.3f} answers, {usual[1]:.3f} characters")
    for i, found in zip(test, write(runs[-1].model, test[:8], args.beam), strict=False):
        question, answer = pairs[i]
        text = "".join(names[c] for c in found if c > START)
        print(f"{question:>36} -> {text}" + ("" if text == answer else f"  (wrong: {answer})"))
    plot(args, runs, names, x[test], lengths[test], y.shape[1] - 1)


if __name__ == "__main__":
    main()
