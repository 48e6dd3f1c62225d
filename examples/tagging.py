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

import argparse
import ast
import io
import itertools
import keyword
import random
import re
import sysconfig
import tokenize
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import common
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

LIBRARY = Path(sysconfig.get_path("stdlib"))
MODULES = 40
LONGEST = 100  # tokens of a statement; longer ones are tables of data
RARE = 2  # a word that training has so often, or less, becomes its shape
SIZE = 64  # of the embedding and of the state
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d00", "#56b4e9", "#e69f00", "#332288", "#882255"]
LINES, WIDTH = 26, 80  # of the passage in the picture
FONT, LETTER = 9, 0.602 * 9  # points: its size, and the width of a letter


class Token(NamedTuple):
    """A word or sign, and where it stands."""

    text: str
    word: str  # what the network may see of it
    tag: str  # B- begins an entity, I- is inside of it, O is outside
    row: int
    column: int


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


def roles_of(text: str) -> dict[tuple[int, int], str]:
    """What names of a module are, by row and column, as far as its syntax tree says."""
    nodes = list(ast.walk(ast.parse(text)))
    called = {node.func for node in nodes if isinstance(node, ast.Call)}
    roles = {}
    for node in nodes:
        match node:
            case ast.Name(ctx=ast.Load()):
                roles[node.lineno, node.col_offset] = "called" if node in called else "read"
            case ast.Attribute():
                start = node.end_col_offset - len(node.attr.encode())
                roles[node.end_lineno, start] = "method" if node in called else "attribute"
            case ast.arg():
                roles[node.lineno, node.col_offset] = "parameter"
            case ast.keyword():
                roles[node.lineno, node.col_offset] = "argument"
    lines = text.encode().split(b"\n")  # the tree counts bytes, tokens count characters
    return {(row, len(lines[row - 1][:byte].decode())): role for (row, byte), role in roles.items()}


def read_module(path: Path) -> list[list[Token]]:
    """The statements of a module; each of its names is an entity of one token."""
    try:
        with tokenize.open(path) as file:
            text = file.read()
        roles, parts = roles_of(text), list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (OSError, SyntaxError, ValueError, tokenize.TokenError) as error:
        raise SystemExit(f"--code {path}: expected Python, got {error}") from None
    statements = [[]]
    for part in parts:
        kind, statement = tokenize.tok_name[part.type], statements[-1]
        word, tag = part.string, "O"
        if kind == "NEWLINE":
            statements.append([])
        elif kind == "NAME" and not keyword.iskeyword(word):
            tag = "B-" + roles.get(part.start, "assigned")
            if statement and statement[0].text in ("from", "import"):
                tag = "B-imported"
            elif statement and statement[-1].text in ("def", "class"):
                tag = "B-defined"
        elif kind == "NUMBER" or "STRING" in kind:
            word = kind
        if kind in ("NAME", "OP") or word == kind:
            statement.append(Token(part.string.split("\n")[0], word, tag, *part.start))
    return [statement for statement in statements if 0 < len(statement) <= LONGEST]


def read_conll(path: Path) -> list[list[Token]]:
    """The sentences of a file that has a word a line, its tag last, and an empty line after each sentence."""
    sentences, row, column = [[]], 0, 0
    for number, line in enumerate(common.read_text(path, "--conll").splitlines(), start=1):
        fields = line.split()
        if not fields or fields[0] == "-DOCSTART-":
            sentences.append([])
            continue
        if len(fields) < 2 or not re.fullmatch("O|[BI]-.+", fields[-1]):
            raise SystemExit(f"--conll {path}:{number}: expected a word and O, B-... or I-..., got {line!r}")
        if not sentences[-1] or column > WIDTH:
            row, column = row + 1, 0
        sentences[-1].append(Token(fields[0], fields[0], fields[-1], row, column))
        column += len(fields[0]) + 1
    return [sentence for sentence in sentences if sentence]


def read(args: argparse.Namespace) -> list[list[list[Token]]]:
    """The sentences to train with, to validate with and to test with."""
    if args.conll:
        source, pieces = f"--conll {args.conll}", [[sentence] for sentence in read_conll(args.conll)]
    else:
        files = sorted(args.code.glob("*.py"))
        files = random.Random(0).sample(files, min(len(files), 5 if args.quick else MODULES))
        source, pieces = f"--code {args.code}", [read_module(file) for file in files]
    n = len(pieces) // 5
    parts = [list(itertools.chain(*part)) for part in (pieces[2 * n :], pieces[n : 2 * n], pieces[:n])]
    if not all(parts):
        raise SystemExit(f"{source}: expected 5 {'sentences' if args.conll else 'modules *.py'} or more")
    return parts


def shape(word: str) -> str:
    """What is left of a rare word: of Conv2dLayer <Aa0aAa>."""
    return "<" + re.sub("[A-Z]+", "A", re.sub("[a-z]+", "a", re.sub("[0-9]+", "0", word))) + ">"


def spans(tags: list[str]) -> set[tuple[int, int, str]]:
    """The entities of a sentence: start, end, kind. An I- of another kind than before begins one too."""
    found, start, kind = set(), 0, ""
    for i, tag in enumerate([*tags, "O"]):
        if tag != f"I-{kind}":
            if kind:
                found.add((start, i, kind))
            start, kind = i, tag[2:]
    return found


def predict(model: nn.Module, x: list[Tensor], tags: list[str]) -> list[list[str]]:
    """The likeliest tag of each word of each sentence."""
    with torch.no_grad():
        logits = model(pack_sequence(x, enforce_sorted=False))
    best = unpack_sequence(logits._replace(data=logits.data.argmax(-1)))
    return [[tags[i] for i in sentence.tolist()] for sentence in best]


def judge(sentences: list[list[Token]], predicted: list[list[str]]) -> dict[str, float]:
    """The accuracy of the tags, the F1 of all entities, and the F1 of each kind of entity."""
    hits, true, found, right = [], Counter(), Counter(), Counter()
    for sentence, guesses in zip(sentences, predicted, strict=True):
        tags = [token.tag for token in sentence]
        hits += [tag == guess for tag, guess in zip(tags, guesses, strict=True)]
        a, b = spans(tags), spans(guesses)
        for counter, entities in (true, a), (found, b), (right, a & b):
            counter.update(kind for *_, kind in entities)
            counter["F1"] += len(entities)
    f1 = {kind: 2 * right[kind] / max(1, n + found[kind]) for kind, n in true.most_common()}
    return {"token accuracy": sum(hits) / len(hits)} | f1


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


def plot(args, runs, forward: common.Run, scores: list[dict[str, float]], test, predicted) -> None:
    """The training, F1 by kind, and a passage. scores: of the model, of the forward one, of the baseline."""
    title = "Which entities does the text name?" if args.conll else "What is each name in the code?"
    figure, axes = common.new_figure(title, 2, 2, size=(14, 8), width_ratios=(2, 3))
    curves, bars = axes[:, 0]
    common.plot_scores(curves, runs, "F1, validation")
    curves.plot(range(1, len(forward.scores) + 1), forward.scores, color="0.5", label="forward alone")
    curves.legend(frameon=False)
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
    parser = common.make_parser(__doc__, "tagging")
    parser.add_argument("--code", type=Path, metavar="FOLDER", default=LIBRARY, help="Python (its library)")
    parser.add_argument("--conll", type=Path, metavar="FILE", help="named entities, instead of code")
    parser.add_argument("--epochs", type=common.positive, default=3, help="of training (%(default)s)")
    args = common.parse(parser)

    parts = [part[:800] for part in read(args)] if args.quick else read(args)
    print("{:,} sentences to train, {:,} to validate, {:,} to test".format(*map(len, parts)))
    counts = Counter(token.word for sentence in parts[0] for token in sentence)
    inputs = {word if n > RARE else shape(word) for word, n in counts.items()}
    numbers = {word: i for i, word in enumerate(sorted(inputs), start=1)}
    tag_counts = Counter(token.tag for sentence in parts[0] for token in sentence)
    tags = [tag for tag, _ in tag_counts.most_common()]

    def number(word: str) -> int:
        return numbers.get(word, numbers.get(shape(word), 0))

    x = [[torch.tensor([number(token.word) for token in s]) for s in part] for part in parts]
    y = [torch.tensor([tags.index(token.tag) for token in s]) for s in parts[0]]

    def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
        words = pack_sequence([x[0][i] for i in batch], enforce_sorted=False)
        truth = pack_sequence([y[i] for i in batch], enforce_sorted=False)
        return cross_entropy(model(words).data, truth.data)

    def judge_on(part: int, model: nn.Module) -> dict[str, float]:
        return judge(parts[part], predict(model, x[part], tags))

    def train(libraries: list[str], directions: int) -> list[common.Run]:
        return common.train(
            argparse.Namespace(libraries=libraries, seed=args.seed),
            build=lambda library: Tagger(library, len(numbers) + 1, len(tags), directions),
            loss_of=loss_of,
            batches=lambda generator: common.minibatches(len(y), 32, generator),
            epochs=2 if args.quick else args.epochs,
            score=lambda model: judge_on(1, model)["F1"],
            optimizer=lambda parameters: torch.optim.Adam(parameters, lr=3e-3),
        )

    runs = train(args.libraries, directions=2)
    (forward,) = train(args.libraries[-1:], directions=1)
    baseline = MostFrequent(len(numbers) + 1, len(tags), x[0], y)
    shown = {name: lambda model, name=name: judge_on(2, model)[name] for name in ("token accuracy", "F1")}
    common.report(runs, shown, beside={"forward alone": forward.model, "most frequent tag": baseline})
    scores = [judge_on(2, model) for model in (runs[-1].model, forward.model, baseline)]
    plot(args, runs, forward, scores, parts[2], predict(runs[-1].model, x[2], tags))


if __name__ == "__main__":
    main()
