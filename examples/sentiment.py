"""Read a film review word by word, then say whether it praises the film.

The lecture's many-to-one network: an embedding of 32, a simple RNN with 32 units, and a sigmoid of its last
state. --model has the lecture's variants: `last` (that network), `all` (the states of all words go to the
sigmoid), `lstm`, `gru` and `bidirectional` (a second RNN reads from the end). The numbers of the words come
in, the probability that the review is positive comes out. Beside the networks stands a logistic regression on
bags of words, which cannot see the order of words.

--data is a folder of aclImdb, or one with rt-polarity.pos and rt-polarity.neg. Without it the program
downloads aclImdb.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import common
import torch
from support.reviews import Review, read_reviews
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

COLOURS = dict(last="#000000", all="#e69f00", lstm="#0072b2", gru="#009e73", bidirectional="#cc79a7")
SIZE = 32  # of the embedding and of the state
DROPOUT = 0.3
VOCABULARY = 5000
UNKNOWN = 1  # the number of other words; 0 pads


class SentimentReader(nn.Module):
    """Words `[B, T]`, of each row the first `lengths` `[B]`, to the logit of a positive review, `[B]`."""

    def __init__(self, library, variant: str, T: int):
        super().__init__()
        self.variant, self.T = variant, T
        layer = {"lstm": library.LSTM, "gru": library.GRU}.get(variant, library.RNN)
        self.embedding = nn.Embedding(VOCABULARY + 2, SIZE)
        self.rnn = layer(SIZE, SIZE, batch_first=True, bidirectional=variant == "bidirectional")
        self.dropout = nn.Dropout(DROPOUT)
        self.head = nn.Linear(SIZE * {"all": T, "bidirectional": 2}.get(variant, 1), 1)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        # A layer stops at the end of each packed sequence: its last state is that of the last word.
        packed = pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
        states, last = self.rnn(packed._replace(data=self.dropout(self.embedding(packed.data))))
        if self.variant == "all":
            features, _ = pad_packed_sequence(states, batch_first=True, total_length=self.T)  # [B, T, H]
        else:
            h = last[0] if self.variant == "lstm" else last
            features = h.transpose(0, 1)  # [B, directions, H]
        return self.head(self.dropout(features.flatten(1))).squeeze(1)


def encode(reviews: list[Review], numbers: dict[str, int], T: int) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of the words `[N, T]`, lengths `[N]` and labels `[N]`."""
    rows = [[numbers.get(word, UNKNOWN) for word in words] + [0] * (T - len(words)) for words, _ in reviews]
    lengths = torch.tensor([len(words) for words, _ in reviews])
    return torch.tensor(rows), lengths, torch.tensor([float(label) for _, label in reviews])


def loss_of(model: nn.Module, encoded: Sequence[Tensor]) -> Tensor:
    """The cross entropy of the sigmoid of the logits."""
    words, lengths, labels = encoded
    return binary_cross_entropy_with_logits(model(words, lengths), labels)


def accuracy(model: nn.Module, encoded: Sequence[Tensor]) -> float:
    """The share of reviews on whose right side the logit is."""
    batches = zip(*(tensor.split(500) for tensor in encoded), strict=True)
    hits = [(model(words, lengths) > 0) == (y > 0) for words, lengths, y in batches]
    return torch.cat(hits).float().mean().item()


def bag_of_words(*parts: list[Review]) -> list[float]:
    """The accuracy on each part of a logistic regression that learns from the first."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(TfidfVectorizer(analyzer=list), LogisticRegression(max_iter=1000))
    words_and_labels = [tuple(zip(*part, strict=True)) for part in parts]
    model.fit(*words_and_labels[0])
    return [model.score(*pair) for pair in words_and_labels]


def plot(args, runs: dict[str, common.Run], tests: dict[str, float], baseline: float, test, encoded) -> None:
    """The training, the test accuracies, and what the best model thinks of a review word after word."""
    figure, axes = common.new_figure("Is the review positive?", 2, 2, size=(12, 8.5), height_ratios=(3, 2))
    curves, bars = axes[0]
    common.plot_scores(curves, list(runs.values()), "validation accuracy", COLOURS)
    names = [f"{variant} {score:.3f}" for variant, score in tests.items()]
    bars.barh(names, list(tests.values()), color=[COLOURS[variant] for variant in tests])
    bars.axvline(baseline, color="0.4", linestyle="--")
    bars.set(xlabel=f"test accuracy (dashed: bag of words, {baseline:.3f})", xlim=(0.5, None))
    bars.invert_yaxis()

    below = common.join(axes[1])
    best = max(runs, key=lambda variant: max(runs[variant].scores))
    courses = {}
    for i, (words, n) in enumerate(zip(*encoded[:2], strict=True)):
        if n <= max(16, encoded[1].min()):
            with torch.no_grad():  # of the first word, the first two words, and so on
                courses[i] = runs[best].model(words.expand(n, -1), torch.arange(1, n + 1)).sigmoid()
    i = max(courses, key=lambda i: courses[i].max() - courses[i].min())
    words, label = test[i]
    below.axhline(0.5, color="0.4", linewidth=1)
    below.plot(courses[i], color=COLOURS[best], marker="o")
    below.set(ylabel="probability of positive", ylim=(-0.05, 1.05))
    below.set_xticks(range(len(words)), words, rotation=30, ha="right")
    title = f"{best} after each word of the short test review where it turns most"
    below.set_title(f"{title} (a {('negative', 'positive')[label]} one)", fontsize=11)
    common.save(figure, args.out)


def main() -> None:
    parser = common.make_parser(__doc__, "sentiment", epochs=12)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="of aclImdb or of rt-polarity")
    parser.add_argument("--model", choices=[*COLOURS, "every"], default="every", help="variant (%(default)s)")
    args = common.parse(parser)

    learn, test = read_reviews(args.data)
    if args.quick:
        learn, test = learn[:1000], test[:300]
    parts = learn[len(learn) // 5 :], learn[: len(learn) // 5], test
    counts = Counter(word for words, _ in parts[0] for word in words)
    numbers = {word: i for i, (word, _) in enumerate(counts.most_common(VOCABULARY), start=UNKNOWN + 1)}
    T = max(len(words) for part in parts for words, _ in part)
    encoded = [encode(part, numbers, T) for part in parts]
    print("{:,} reviews to train, {:,} to validate, {:,} to test".format(*map(len, parts)))
    own = sum(parameter.numel() for parameter in nn.RNN(SIZE, SIZE).parameters())
    print(f"W_ih, W_hh and b of a simple RNN, as Keras counts: {2 * SIZE * SIZE + SIZE:,} parameters;")
    print(f"torch's layer has {own:,}, because its b is a sum of two: b_ih and b_hh")

    columns = ("", "layers of", "training", "validation", "test", "epochs", "seconds")
    table = common.Table(*columns, title="accuracy")
    runs, tests = {}, {}
    for variant in COLOURS if args.model == "every" else [args.model]:
        trained = common.train(
            args,
            build=lambda library, variant=variant: SentimentReader(library, variant, T),
            loss_of=lambda model, i: loss_of(model, [tensor[i] for tensor in encoded[0]]),
            batches=lambda generator: common.minibatches(torch.arange(len(parts[0])), 64, generator),
            epochs=args.epochs,
            score=lambda model: accuracy(model, encoded[1]),
            patience=4,
            optimizer=torch.optim.RMSprop,
            rate=5e-3,
            what=variant,
        )
        for run in trained:
            scores = [common.evaluate(run.model, lambda model, x=x: accuracy(model, x)) for x in encoded]
            runs[variant], tests[variant] = run, scores[-1]  # of fastrnn if there are both
            shown = [f"{score:.3f}" for score in scores]
            table.add_row(variant, run.name, *shown, str(len(run.scores)), f"{run.seconds:.1f}")
            run.name = variant  # for the legend
    baseline = bag_of_words(*parts)
    table.add_row("bag of words", "", *(f"{score:.3f}" for score in baseline))
    common.console.print(table)
    error = (baseline[-1] * (1 - baseline[-1]) / len(test)) ** 0.5
    print(f"with {len(test):,} test reviews, a test accuracy has a standard error of {error:.3f}")
    plot(args, runs, tests, baseline[-1], test, encoded[-1])


if __name__ == "__main__":
    main()
