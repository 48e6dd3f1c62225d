"""Say in words what a picture shows: the digits 3, 0 and 7 side by side are "three hundred seven".

The lecture's one-to-many network. A small convolutional network turns the picture into features, and these
become the first state of an RNN: h_0 = tanh(W features). From there the RNN writes a word a step, gets its
own last word as input, and ends with EOS. The pictures are put together from one to three handwritten digits,
those of the test from digits that the training did not have. The model cannot learn the captions by heart:
the training has no picture at all of a hundred of the thousand numbers. Without --mnist the digits are those
of scikit-learn, 8 x 8 pixels; --mnist download, or a path of mnist.npz, takes those of 28 x 28.
"""

from __future__ import annotations

import random

import common
import torch
from common import EOS, PAD, START, right
from digits import read_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torch.nn.utils.rnn import pad_sequence

SMALL = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen".split()
SMALL += [f"{stem}teen" for stem in ("fif", "six", "seven", "eigh", "nine")]
TENS = [f"{stem}ty" for stem in ("twen", "thir", "for", "fif", "six", "seven", "eigh", "nine")]
WORDS = ["", "EOS", "START", *SMALL, *TENS, "hundred"]
LONGEST = 5  # three hundred forty two EOS


def in_words(number: int) -> list[str]:
    """The name of a number below 1000."""
    if number < 20:
        return [SMALL[number]]
    if number < 100:
        return [TENS[number // 10 - 2], *(in_words(number % 10) if number % 10 else [])]
    return [SMALL[number // 100], "hundred", *(in_words(number % 100) if number % 100 else [])]


class Captioner(nn.Module):
    """Pictures `[B, rows, width]` and the words so far `[B, T]` to logits of the next `[B, T, words]`."""

    def __init__(self, library, cell: str, rows: int, width: int, hidden: int):
        super().__init__()
        first = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        second = [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*first, *second, nn.Flatten())
        self.first_state = nn.Linear(32 * (rows // 4) * (width // 4), hidden)
        self.embedding = nn.Embedding(len(WORDS), 32)
        self.rnn = getattr(library, cell)(32, hidden, batch_first=True)
        self.head = nn.Linear(hidden, len(WORDS))

    def begin(self, pictures: Tensor):
        """The first state `[1, B, H]`. An LSTM has a second one, c, which begins at zero."""
        h = self.first_state(self.features(pictures[:, None])).tanh()[None]
        return (h, torch.zeros_like(h)) if isinstance(self.rnn, nn.LSTM) else h

    def forward(self, pictures: Tensor, words: Tensor) -> Tensor:
        states, _ = self.rnn(self.embedding(words), self.begin(pictures))
        return self.head(states)

    @torch.no_grad()
    def caption(self, pictures: Tensor) -> Tensor:
        """The likeliest word at each step, `[B, LONGEST]`: EOS ends a caption, PAD follows."""
        words, state = torch.full((len(pictures), 1), START), self.begin(pictures)
        for _ in range(LONGEST):
            states, state = self.rnn(self.embedding(words[:, -1:]), state)
            ended = words[:, -1:] <= EOS
            words = torch.cat([words, self.head(states).argmax(-1).masked_fill(ended, PAD)], 1)
        return words[:, 1:]


def put_together(numbers: Tensor, x: Tensor, y: Tensor, rng: random.Random) -> Tensor:
    """A picture `[rows, 3 width]` for each number, of handwritten digits x `[N, rows, width]`, y `[N]`."""
    pools = [x[y == digit] for digit in range(10)]
    pictures = torch.zeros(len(numbers), x.shape[1], 3 * x.shape[2])
    for picture, number in zip(pictures, numbers.tolist(), strict=True):
        digits = torch.cat([rng.choice(pools[int(digit)]) for digit in str(number)], 1)
        left = (picture.shape[1] - digits.shape[1]) // 2
        picture[:, left : left + digits.shape[1]] = digits
    return pictures


def plot(args, runs, pictures: Tensor, captions: Tensor, numbers: Tensor) -> None:
    """The training, and test pictures with the captions that the model gives them."""
    title = f"A picture is the first state, {args.cell}({args.hidden}) writes the caption"
    figure, axes = common.new_figure(title, 4, 4, size=(14, 7.5), width_ratios=[1.4, 1, 1, 1])
    ax = common.join(axes[:, 0])
    common.plot_scores(ax, runs, "validation captions exactly right, share")
    ax.set_ylim(0, 1)
    found = runs[-1].model.caption(pictures)
    same = (found == captions).all(1)
    shown = [*(~same).nonzero()[:4, 0], *same.nonzero()[:12, 0]]
    for ax in axes[:, 1:].flat:
        ax.axis("off")
    for ax, i in zip(axes[:, 1:].flat, shown, strict=False):
        ax.imshow(pictures[i], cmap="gray_r")
        text = " ".join(WORDS[word] for word in found[i] if word > EOS)
        verdict, colour = ("right", "#2166ac") if same[i] else (f"wrong: a {numbers[i]}", "#b35806")
        ax.set_title(f"{text}\n({verdict})", color=colour, fontsize=11)
    common.save(figure, args.out)


def main() -> None:
    parser = common.make_parser(__doc__, "captioning", cell="gru", hidden=128, epochs=15)
    parser.add_argument("--mnist", metavar="FILE", help="mnist.npz, or the word download")
    args = common.parse(parser)

    x, y = read_digits(args.mnist)
    test, validation, training = common.split_in_three(len(x))
    texts = [torch.tensor([*map(WORDS.index, in_words(number)), EOS]) for number in range(1000)]
    captions = pad_sequence(texts, batch_first=True, padding_value=PAD)  # [1000, LONGEST]
    unseen = 100 + torch.randperm(900)[:100]
    often = torch.tensor([1 / 10] * 10 + [1 / 90] * 90 + [1 / 900] * 900).index_fill(0, unseen, 0.0)
    rng = random.Random(args.seed)

    def draw(chosen: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures of these numbers, made of the chosen digits, and their captions."""
        return put_together(numbers, x[chosen], y[chosen], rng), captions[numbers]

    count, tests = (1000, 200) if args.quick else (8000, 1000)
    train_x, train_y = draw(training, often.multinomial(count, replacement=True))
    validation_x, validation_y = draw(validation, often.multinomial(tests, replacement=True))
    numbers = often.multinomial(tests, replacement=True)
    test_x, test_y = draw(test, numbers)
    unseen_x, unseen_y = draw(test, unseen.repeat(tests // 100))
    print(
        f"{count:,} pictures of {len(training):,} digits to train, {tests:,} of {len(test):,} others to test"
    )

    def loss_of(model: Captioner, i: Tensor) -> Tensor:
        logits = model(train_x[i], pad(train_y[i, :-1], (1, 0), value=START))
        return cross_entropy(logits.flatten(0, 1), train_y[i].flatten(), ignore_index=PAD)

    runs = common.train(
        args,
        build=lambda library: Captioner(library, args.cell, *train_x.shape[1:], args.hidden),
        loss_of=loss_of,
        batches=lambda generator: common.minibatches(torch.arange(count), 64, generator),
        epochs=args.epochs,
        score=lambda model: right(model.caption(validation_x), validation_y)[0],
        rate=2e-3,
    )
    three = numbers >= 100
    scores = {
        "test words": lambda model: right(model.caption(test_x), test_y)[1],
        "captions": lambda model: right(model.caption(test_x), test_y)[0],
        "of three digits": lambda model: right(model.caption(test_x[three]), test_y[three])[0],
        "of unseen numbers": lambda model: right(model.caption(unseen_x), unseen_y)[0],
    }
    common.report(runs, scores)
    different, times = train_y.unique(dim=0, return_counts=True)
    words = torch.stack([column[column > EOS].mode().values for column in train_y[:, :-1].T])
    print(f"always the most frequent one: {right(different[times.argmax()], test_y)[0]:.3f} of the captions")
    print(f"the most frequent word at each place: {right(pad(words, (0, 1)), test_y)[1]:.3f} of the words")
    plot(args, runs, test_x, test_y, numbers)


if __name__ == "__main__":
    main()
