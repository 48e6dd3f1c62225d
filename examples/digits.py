"""Read a handwritten digit as a sequence: one row of pixels a step, then say which digit it was.

The lecture's many-to-one network: an RNN with 150 units, whose last state goes through a softmax. It needs no
convolution: the state keeps what the rows above looked like. Without --mnist it reads the 1797 digits of
8 x 8 pixels that come with scikit-learn; --mnist download, or a path of mnist.npz, takes the 70,000 of
28 x 28.
"""

from __future__ import annotations

from pathlib import Path
from zipfile import BadZipFile

import common
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

MNIST = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
MNIST_HASH = "sha256:731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"


class DigitReader(nn.Module):
    """Rows `[B, T, width]` to a logit for each digit, `[B, 10]`."""

    def __init__(self, library, cell: str, width: int, hidden: int):
        super().__init__()
        self.rnn = getattr(library, cell)(width, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 10)

    def forward(self, rows: Tensor) -> Tensor:
        states, _ = self.rnn(rows)
        return self.head(states[:, -1])


def read_digits(mnist: str | None) -> tuple[Tensor, Tensor]:
    """Pictures `[N, rows, width]` from 0 to 1, and their digits `[N]`."""
    if mnist is None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        return torch.tensor(digits.images, dtype=torch.float32) / 16, torch.tensor(digits.target)
    path = common.download(MNIST, MNIST_HASH, "--mnist FILE") if mnist == "download" else Path(mnist)
    try:
        with np.load(path) as data:
            x, y = (np.concatenate([data[f"{name}_train"], data[f"{name}_test"]]) for name in "xy")
    except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise SystemExit(f"--mnist {path}: expected mnist.npz, got {error}") from None
    return torch.tensor(x, dtype=torch.float32) / 255, torch.tensor(y, dtype=torch.int64)


def plot(args, runs, x: Tensor, y: Tensor) -> None:
    """The training, and what the model thinks of a few digits after each of their rows."""
    title = f"Digits read row by row, {args.cell}({args.hidden})"
    figure, axes = common.new_figure(title, 2, 4, size=(12, 6))
    common.plot_scores(common.join(axes[:, 0]), runs, "validation accuracy")
    model = runs[-1].model
    with torch.no_grad():
        beliefs = model.head(model.rnn(x[:3])[0]).softmax(-1)  # [3, T, 10]
    for i, (above, below) in enumerate(zip(axes[0, 1:], axes[1, 1:], strict=True)):
        above.imshow(x[i], cmap="gray_r")
        above.set_title(f"a {y[i]}")
        above.axis("off")
        below.imshow(beliefs[i], cmap="Blues", vmin=0, vmax=1, aspect="auto")
        below.set(xlabel="digit", ylabel="rows read", xticks=range(10))
    common.save(figure, args.out)


def main() -> None:
    parser = common.make_parser(__doc__, "digits", cell="rnn", hidden=150)
    parser.add_argument("--mnist", metavar="FILE", help="mnist.npz, or the word download")
    args = common.parse(parser)

    x, y = read_digits(args.mnist)
    test, validation, training = common.split_in_three(len(x))
    print(f"{len(training):,} digits to train, {len(validation):,} to validate, {len(test):,} to test")

    def accuracy(chosen: Tensor):
        return lambda model: (model(x[chosen]).argmax(-1) == y[chosen]).float().mean().item()

    runs = common.train(
        args,
        build=lambda library: DigitReader(library, args.cell, x.shape[2], args.hidden),
        loss_of=lambda model, i: cross_entropy(model(x[i]), y[i]),
        batches=lambda generator: common.minibatches(training, 64, generator),
        epochs=2 if args.quick else 3 if args.mnist else 40,
        score=accuracy(validation),
    )
    common.report(runs, {"validation accuracy": accuracy(validation), "test accuracy": accuracy(test)})
    plot(args, runs, x[test], y[test])


if __name__ == "__main__":
    main()
