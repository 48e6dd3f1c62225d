"""Learn a vector for each word from the words around it, then let an RNN begin with these vectors.

The lecture's word vectors. Skip-gram guesses the words around a word from its vector, CBOW guesses a word
from the mean vector of those around it. Neither needs a softmax over all words: the word that stands there
only has to score higher than words drawn at random (negative sampling, a form of noise contrastive
estimation). Then three RNNs learn to predict the next word, on a fourth of the training text. They differ in
the embedding that they begin with: random, or the vectors of skip-gram or CBOW, which saw all of the training
text. One sees the nearest words of a few, analogies, and the words as a map. Without --text the text is the
documentation that comes with Python. That is little: the vectors learn what belongs together, and hardly any
analogy.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import common
import torch
from support.words import draw_map, read_words
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid, normalize

SIZE = 64  # of a vector
AROUND = 4  # words on each side of one
NOISE = 5  # words drawn at random for each that stands there
STEPS = 20  # words that the RNN reads before its state is reset
COLOURS = {"random": "#777777", "skip-gram": "#2166ac", "CBOW": "#e08214"}
LOOK_UP = ["list", "integer", "raise", "left", "keyword", "king", "night", "house"]
LOOK_UP += ["true false left", "value values object", "is are was", "king queen father"]  # analogies


class WordVectors(nn.Module):
    """Words that are given `[B, n]` and others `[B, ...]` to scores: how well each of the others fits."""

    def __init__(self, words: int):
        super().__init__()
        self.vectors, self.others = nn.Embedding(words, SIZE), nn.Embedding(words, SIZE)
        nn.init.normal_(self.vectors.weight, std=SIZE**-0.5)
        nn.init.zeros_(self.others.weight)

    def forward(self, given: Tensor, words: Tensor) -> Tensor:
        v = self.vectors(given).mean(1)
        return torch.einsum("bs,bns->bn", v, self.others(words.flatten(1))).view_as(words)


class NextWord(nn.Module):
    """Words `[B, T]` to logits of the next ones `[B, T, words]`."""

    def __init__(self, library, vectors: Tensor, hidden: int):
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(vectors.clone(), freeze=False)
        self.rnn = library.GRU(SIZE, hidden, batch_first=True)
        self.drop = nn.Dropout(0.4)
        self.head = nn.Linear(hidden, len(vectors))

    def forward(self, words: Tensor) -> Tensor:
        states, _ = self.rnn(self.drop(self.embedding(words)))
        states = states.contiguous()  # dropout follows the layout, and that of torch.nn is another
        return self.head(self.drop(states))

    def loss(self, rows: Tensor) -> Tensor:
        """Of predicting each word of the rows `[B, T + 1]` from those before it."""
        return cross_entropy(self(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


def draw(kind: str, words: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """The words given `[N, n]`, and the words that stand there, each before its noise `[N, m, 1 + NOISE]`."""
    keep = (1e-3 * counts.sum() / counts).sqrt()  # frequent words say little: most of them are left out
    keep[0] = 0  # as are rare ones
    windows = words[torch.rand(len(words)) < keep[words]].unfold(0, 2 * AROUND + 1, 1)
    centre, around = windows[:, [AROUND]], torch.cat([windows[:, :AROUND], windows[:, -AROUND:]], 1)
    given, there = (centre, around) if kind == "skip-gram" else (around, centre)
    chances = (counts**0.75).index_fill(0, torch.tensor(0), 0.0)
    noise = chances.multinomial(there.numel() * NOISE, replacement=True)
    return given, torch.cat([there[:, :, None], noise.view(*there.shape, NOISE)], -1)


def learn(args, kind: str, words: Tensor, counts: Tensor) -> WordVectors:
    """Train the vectors: what stands there becomes likely, noise becomes unlikely."""
    model = WordVectors(len(counts))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in common.track(range(1 if args.quick else 12), kind):
        given, asked = draw(kind, words, counts)
        for i in common.minibatches(torch.arange(len(given)), 256, torch.default_generator):
            optimizer.zero_grad()
            scores = model(given[i], asked[i])
            (-logsigmoid(scores[..., 0]).mean() - logsigmoid(-scores[..., 1:]).sum(-1).mean()).backward()
            optimizer.step()
    return model


@torch.no_grad()
def above_noise(scores: Tensor) -> float:
    """How often the word that stands there scores higher than a random one. Chance: 0.5."""
    there, noise = scores[..., :1], scores[..., 1:]
    return ((there > noise).float() + (there == noise).float() / 2).mean().item()


def nearest(vectors: Tensor, names: list[str], words: list[str], count: int) -> str:
    """The words of the vectors nearest to that of one word, or of three to b - a + c."""
    index = torch.tensor([names.index(word) for word in words])
    v = vectors[index]
    v = v[0] if len(words) == 1 else v[1] - v[0] + v[2]
    cosines = (vectors @ v).index_fill(0, index, -torch.inf)
    return " ".join(names[i] for i in cosines[1:].topk(count).indices + 1)


def plot(args, runs: list[common.Run], names: list[str], vectors: Tensor) -> None:
    """The perplexity of the RNNs, and a map: words of like vectors are neighbours."""
    figure, (left, right) = common.new_figure("Word vectors", 1, 2, (15, 7.5), width_ratios=[1, 2])
    common.plot_scores(left, runs, "validation perplexity", COLOURS)
    left.set_title("an RNN that begins with these vectors")
    draw_map(right, names, vectors)
    right.set_title("map (t-SNE) of skip-gram's vectors of frequent words")
    common.save(figure, args.out)


def main() -> None:
    parser = common.make_parser(__doc__, "word_vectors", hidden=128, epochs=10)
    parser.add_argument("--text", type=Path, metavar="FILE", help="UTF-8 text (Python's documentation)")
    args = common.parse(parser)

    words, names = read_words(args.text, most=15000 if args.quick else None)
    tenth = len(words) // 10
    training, validation, test = words[: 8 * tenth], words[8 * tenth : 9 * tenth], words[9 * tenth :]
    counts = training.bincount(minlength=len(names)).float().clamp(min=1)
    print(f"{len(words):,} words of text, {len(names) - 1:,} come 5 times or more, the others count as one")

    starts = {"random": torch.randn(len(names), SIZE)}
    for kind in ("skip-gram", "CBOW"):
        model = learn(args, kind, training, counts)
        given, asked = draw(kind, test, counts)
        score, usual = above_noise(model(given, asked)), above_noise(counts[asked])
        print(f"{kind}: words of the test text above random ones {score:.3f}, by frequency alone {usual:.3f}")
        starts[kind] = model.vectors.weight.detach()
    starts = {start: normalize(v) * SIZE**0.5 / 2 for start, v in starts.items()}  # all of one length
    table = common.Table("nearest words of", "skip-gram", "CBOW")
    for query in LOOK_UP:
        if all(word in names for word in query.split()):
            found = (nearest(starts[kind], names, query.split(), 4) for kind in ("skip-gram", "CBOW"))
            table.add_row("{} : {} = {} :".format(*query.split()) if " " in query else query, *found)
    common.console.print(table)

    parts = training[: 2 * tenth], validation, test
    rows, held_out, unseen = (part.unfold(0, STEPS + 1, STEPS) for part in parts)
    runs, shown = [], []
    for start, vectors in starts.items():
        runs += common.train(
            args,
            build=lambda library, v=vectors: NextWord(library, v, args.hidden),
            loss_of=NextWord.loss,
            batches=lambda generator: common.minibatches(rows, 16, generator),
            epochs=args.epochs,
            score=lambda model: model.loss(held_out).exp().item(),
            higher_is_better=False,
            rate=3e-3,
            what=f"RNN, {start}",
        )
        shown.append(replace(runs[-1], name=start))  # of fastrnn if there are both
        for run in runs[-len(args.libraries) :]:
            run.name += f", {start} vectors"
    common.report(runs, {"test perplexity": lambda model: model.loss(unseen).exp().item()}, "{:.1f}")
    usual = -(counts / counts.sum()).log()[unseen[:, 1:]].mean()
    print(f"test perplexity of the frequencies of words, without an RNN: {usual.exp():.1f}")
    plot(args, shown, names, starts["skip-gram"])


if __name__ == "__main__":
    main()
