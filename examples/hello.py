"""Learn one word, "hello", and show every number on the way.

The lecture's four-letter model: h, e, l and o as one-hot vectors, a simple RNN with a state of 3 numbers, and
a probability for each of the four letters to come next. It reads "hell" and learns to answer "ello". The
letter l comes twice and has two answers, so a model that sees the last letter alone has to halve its bet:
only the state tells which l it is. Then the model writes on its own: each letter that it draws is its next
input.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import common
import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

LETTERS, WORD, H = "helo", "hello", 3
ANSWERS = torch.tensor([LETTERS.index(letter) for letter in WORD[1:]])
COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7"]  # of the four steps


class NextLetter(nn.Module):
    """Text and a state to the logits of the next letter `[T, 4]`, the states `[T, H]` and the last state."""

    def __init__(self, library):
        super().__init__()
        self.rnn = library.RNN(len(LETTERS), H)
        self.head = nn.Linear(H, len(LETTERS))

    def forward(self, text: str, h: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        x = one_hot(torch.tensor([LETTERS.index(letter) for letter in text]), len(LETTERS)).float()
        states, h = self.rnn(x, h)
        return self.head(states), states, h


def loss_of(model: NextLetter, word: str) -> Tensor:
    return cross_entropy(model(word[:-1])[0], ANSWERS)


def write(model: NextLetter) -> str:
    """Four letters after "h", each drawn from the model's probabilities and fed back."""
    text, h = WORD[0], None
    while len(text) < len(WORD):
        logits, _, h = model(text[-1], h)
        text += LETTERS[torch.multinomial(logits[-1].softmax(-1), 1).item()]
    return text[1:]


@torch.no_grad()
def show(run: common.Run, when: str) -> Tensor:
    """Print and return the probability of each letter at each step, `[T, 4]`; < marks the right one."""
    logits, states, _ = run.model(WORD[:-1])
    p = logits.softmax(-1)
    table = Table("input", "state h", *(f"p({letter})" for letter in LETTERS))
    table.title, table.title_justify = f"{run.name}, {when} training", "left"
    for letter, h_t, p_t, answer in zip(WORD[:-1], states, p, ANSWERS, strict=True):
        cells = [f"[bold]{q:.3f} <[/]" if i == answer else f"{q:.3f}" for i, q in enumerate(p_t)]
        table.add_row(letter, " ".join(f"{number:+.2f}" for number in h_t), *cells)
    common.console.print(table)
    written = Counter(write(run.model) for _ in range(200)).most_common(5)
    print('after "h" it writes, in 200 tries:', ", ".join(f"{text} {n}" for text, n in written), end="\n\n")
    return p


def train(runs: list[common.Run], steps: int) -> Tensor:
    """The right letters' probabilities at each step of the last run's training, `[steps, T]`."""
    history = []
    for step in range(steps):
        for run in common.in_turn(runs, step):
            run.step(loss_of, WORD)
        with torch.no_grad():
            history.append(runs[-1].model(WORD[:-1])[0].softmax(-1)[range(len(ANSWERS)), ANSWERS])
    return torch.stack(history)


def plot(args, history: Tensor, p: Tensor) -> None:
    """How the right letters become probable, and all probabilities at the end."""
    figure, (left, right) = common.new_figure(f'"{WORD}", RNN({H})', 1, 2, width_ratios=[1.6, 1])
    left.set_prop_cycle(color=COLOURS)
    left.semilogx(range(1, len(history) + 1), history, label=[f"{a} → {b}" for a, b in pairwise(WORD)])
    left.set(title="in training: probability of the right letter", xlabel="training step", ylim=(0, 1.02))
    left.xaxis.set_major_formatter("{x:.0f}")
    left.legend(loc="lower right", frameon=False)
    right.imshow(p, cmap="Blues", vmin=0, vmax=1)
    for t, p_t in enumerate(p):
        for i, q in enumerate(p_t):
            right.text(i, t, f"{q:.3f}", ha="center", va="center", color="white" if q > 0.5 else "black")
    right.set(title="after training: probability of each letter", xlabel="next letter", ylabel="input letter")
    right.set(xticks=range(len(LETTERS)), xticklabels=LETTERS, yticks=range(len(p)), yticklabels=WORD[:-1])
    common.save(figure, args.out)


def main() -> None:
    args = common.parse(common.make_parser(__doc__, "hello"))
    runs = common.begin(args, NextLetter, rate=0.1)
    show(runs[-1], "before")
    history = train(runs, 20 if args.quick else 200)
    p = show(runs[-1], "after")
    common.report(runs, {"loss": lambda model: loss_of(model, WORD).item()}, "{:.6f}")
    print(f"four letters alike: {math.log(4):.3f}; the best that sees one letter: {math.log(2) / 2:.3f}")
    if len(runs) == 2:
        difference = max(abs(a - b) for a, b in zip(runs[0].losses, runs[1].losses, strict=True))
        print(f"largest difference of the two losses in training: {difference:.1e}")
    plot(args, history, p)


if __name__ == "__main__":
    main()
