"""Say what each name in Python code is: called, assigned, a parameter, an attribute, and so on.

The lecture's synchronous many-to-many network: at each step a word comes in and a tag goes out. What a name
is depends on both its sides (`x` in `x(f)`, `x = f`, `f(x=1)`, `def f(x)`, `f.x`), so the network is a deep
bidirectional LSTM: two layers, each reads from both ends. A statement is a sequence, of any length, so a
batch is packed. The code is Python's own library, and the test is on modules that training has not seen.
Beside the network stand one that reads forward alone, and the most frequent tag of each word.

Named entities are the same task: --conll takes a file in the form of CoNLL-2003. F1 counts entities; one is
right if its first word, its last word and its kind are. In code each name is an entity.
"""

from __future__ import annotations

import itertools
import re
import sysconfig
from argparse import Namespace
from collections import Counter
from pathlib import Path

import common
import torch
from support.tokens import Token, judge, read_sentences
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

LIBRARY = Path(sysconfig.get_path("stdlib"))
RARE = 2  # a word that training has so often, or less, becomes its shape
SIZE = 64  # of the embedding and of the state
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d00", "#56b4e9", "#e69f00", "#332288", "#882255"]
LINES, FONT, LETTER = 26, 9, 0.602 * 9  # of the passage; size of its font and width of a letter, points


def pack(sequences: list[Tensor]) -> PackedSequence:
    return pack_sequence(sequences, enforce_sorted=False)


class Tagger(nn.Module):
    """Numbers of words, packed, to a logit for each tag, packed."""

    def __init__(self, library, words: int, tags: int, directions: int):
        super().__init__()
        self.embedding = nn.Embedding(words, SIZE)
        self.rnn = library.LSTM(SIZE, SIZE, num_layers=2, bidirectional=directions == 2, dropout=0.3)
        self.head = nn.Linear(directions * SIZE, tags)

    def forward(self, words: PackedSequence) -> PackedSequence:
        states, _ = self.rnn(words._replace(data=self.embedding(words.data)))
        return states._replace(data=self.head(states.data))


class MostFrequent(nn.Module):
    """The baseline: how often each word had each tag."""

    def __init__(self, words: int, tags: int, x: list[Tensor], y: list[Tensor]):
        super().__init__()
        pairs = torch.cat(x) * tags + torch.cat(y)
        self.counts = pairs.bincount(minlength=words * tags).view(words, tags)

    def forward(self, words: PackedSequence) -> PackedSequence:
        return words._replace(data=self.counts[words.data])


def shape(word: str) -> str:
    """What is left of a rare word: of Conv2dLayer <Aa0aAa>."""
    return "<" + re.sub("[A-Z]+", "A", re.sub("[a-z]+", "a", re.sub("[0-9]+", "0", word))) + ">"


@torch.no_grad()
def predict(model: nn.Module, x: list[Tensor], tags: list[str]) -> list[list[str]]:
    """The likeliest tag of each word of each sentence."""
    logits = model(pack(x))
    best = unpack_sequence(logits._replace(data=logits.data.argmax(-1)))
    return [[tags[i] for i in sentence.tolist()] for sentence in best]


def plot_passage(ax, sentences: list[list[Token]], predicted: list[list[str]], colours: dict) -> None:
    """Where the model errs most: each token in the colour of the kind that it says, and errors framed."""
    pairs = [list(zip(*pair, strict=True)) for pair in zip(sentences, predicted, strict=True)]
    errors = [sum(token.tag != guess for token, guess in pair) for pair in pairs]
    first = max(range(len(pairs)), key=lambda i: sum(errors[i : i + LINES // 2]))
    ax.axis("off")
    ax.set_title("where it errs most in the test (red: the truth)", fontsize=11)
    ax.figure.draw_without_rendering()  # settles the size of ax
    ax.set(xlim=(0, ax.bbox.width / ax.figure.dpi * 72 / LETTER), ylim=(LINES, -1))
    line, row = -1, None
    for token, guess in itertools.chain(*pairs[first:]):
        line, row = line + (token.row != row), token.row
        if line == LINES:
            break
        text = ax.text(token.column, line, token.text, family="monospace", size=FONT, va="center")
        text.set_color(colours.get(guess[2:], "0.45"))
        if token.tag != guess:
            text.set_bbox(dict(edgecolor="red", facecolor="none", pad=1))
            ax.text(token.column, line + 0.5, token.tag[2:], size=7, color="red", va="center")


def plot(args, runs: list[common.Run], scores: list[dict[str, float]], test, predicted) -> None:
    """The training, F1 by kind, and a passage. scores: of the model, of the forward one, of the baseline."""
    title = "Which entities does the text name?" if args.conll else "What is each name in the code?"
    figure, axes = common.new_figure(title, 2, 2, size=(14, 8), width_ratios=(2, 3))
    curves, bars = axes[:, 0]
    common.plot_scores(curves, runs, "F1, validation")
    kinds = list(scores[0])[2:]
    colours = dict(zip(kinds, itertools.cycle(COLOURS), strict=False))
    model, narrow, baseline = ([of[kind] for kind in kinds] for of in scores)
    bars.barh(kinds, model, color=colours.values())
    bars.plot(narrow, kinds, "kx")
    bars.plot(baseline, kinds, "k|", markersize=12)
    bars.set(xlabel="F1, test (x: forward alone, |: most frequent tag)", xlim=(-0.02, 1.02))
    bars.invert_yaxis()
    plot_passage(common.join(axes[:, 1]), test, predicted, colours)
    common.save(figure, args.out)


def main() -> None:
    parser = common.make_parser(__doc__, "tagging", epochs=3)
    parser.add_argument("--code", type=Path, metavar="FOLDER", default=LIBRARY, help="Python (its library)")
    parser.add_argument("--conll", type=Path, metavar="FILE", help="named entities, instead of code")
    args = common.parse(parser)

    parts = read_sentences(args.code, args.conll, modules=5 if args.quick else 40)
    parts = [part[: 800 if args.quick else None] for part in parts]
    print("{:,} sentences to train, {:,} to validate, {:,} to test".format(*map(len, parts)))
    counts = Counter(token.word for sentence in parts[0] for token in sentence)
    inputs = {word if n > RARE else shape(word) for word, n in counts.items()}
    numbers = {word: i for i, word in enumerate(sorted(inputs), start=1)}  # 0: other words
    tag_counts = Counter(token.tag for sentence in parts[0] for token in sentence)
    tags = [tag for tag, _ in tag_counts.most_common()]
    sizes = len(numbers) + 1, len(tags)

    def number(word: str) -> int:
        return numbers.get(word, numbers.get(shape(word), 0))

    x = [[torch.tensor([number(token.word) for token in s]) for s in part] for part in parts]
    y = [torch.tensor([tags.index(token.tag) for token in s]) for s in parts[0]]

    def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
        return cross_entropy(model(pack([x[0][i] for i in batch])).data, pack([y[i] for i in batch]).data)

    def judge_on(part: int, model: nn.Module) -> dict[str, float]:
        return judge(parts[part], predict(model, x[part], tags))

    def train(libraries: list[str], directions: int) -> list[common.Run]:
        return common.train(
            Namespace(libraries=libraries, seed=args.seed),
            build=lambda library: Tagger(library, *sizes, directions),
            loss_of=loss_of,
            batches=lambda generator: common.minibatches(torch.arange(len(y)), 32, generator),
            epochs=args.epochs,
            score=lambda model: judge_on(1, model)["F1"],
            rate=3e-3,
        )

    runs = train(args.libraries, directions=2)
    (forward,) = train(args.libraries[-1:], directions=1)
    forward.name = "forward alone"
    baseline = MostFrequent(*sizes, x[0], y)
    shown = {name: lambda model, name=name: judge_on(2, model)[name] for name in ("token accuracy", "F1")}
    common.report(runs, shown, beside={"forward alone": forward.model, "most frequent tag": baseline})
    scores = [judge_on(2, model) for model in (runs[-1].model, forward.model, baseline)]
    plot(args, [*runs, forward], scores, parts[2], predict(runs[-1].model, x[2], tags))


if __name__ == "__main__":
    main()
