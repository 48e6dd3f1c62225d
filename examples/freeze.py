"""Freeze models for inference: how much faster, smaller and less exact they become.

Three models as they are used for speech and text, with random weights: a speaker encoder (3 LSTMs of 256
units over 160 frames of one voice), a speech enhancer (2 GRUs of 256 units over 100 frames of one voice), and
a tagger (2 bidirectional LSTMs of 256 units over 8 sentences of 30 words). Each runs as it is, as a copy that
`fastrnn.freeze` makes, and as a copy that torch.ao quantizes. The error of a copy is relative to the norm of
the model's output.

Then a character model is trained for a few seconds, and its perplexity shows what small weights cost a model
that has learned something.
"""

from __future__ import annotations

import argparse
import copy
import math
import warnings
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from common import console, positive, read_text_or_topics
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import fastrnn


class SpeakerEncoder(nn.Module):
    """A voice as 256 numbers (Wan et al. 2018, https://arxiv.org/abs/1710.10467)."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(40, 256, num_layers=3), nn.Linear(256, 256)

    def forward(self, frames: Tensor) -> Tensor:  # [T, B, 40] -> [B, 256]
        return nn.functional.normalize(self.head(self.rnn(frames)[0][-1]).relu())


class Enhancer(nn.Module):
    """A mask for each frame of a spectrum, which leaves the voice and takes the noise."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.rnn, self.after = nn.Linear(257, 256), nn.GRU(256, 256, 2), nn.Linear(256, 257)

    def forward(self, spectrum: Tensor) -> Tensor:  # [T, B, 257] -> the same
        return spectrum * self.after(self.rnn(self.before(spectrum).relu())[0]).sigmoid()


class Tagger(nn.Module):
    """Scores of 10 tags for each word."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5000, 100), nn.Linear(512, 10)
        self.rnn = nn.LSTM(100, 256, num_layers=2, bidirectional=True)

    def forward(self, words: Tensor) -> Tensor:  # [T, B] -> [T, B, 10]
        return self.head(self.rnn(self.embed(words))[0])


class Characters(nn.Module):
    """Scores of the next character."""

    def __init__(self, kinds: int) -> None:
        super().__init__()
        self.embed, self.rnn, self.head = nn.Embedding(kinds, 32), fastrnn.GRU(32, 256), nn.Linear(256, kinds)

    def forward(self, text: Tensor) -> Tensor:  # [T, B] -> [T, B, kinds]
        return self.head(self.rnn(self.embed(text))[0])


def quantize_by_torch(model: nn.Module) -> nn.Module:
    """A copy whose LSTMs and GRUs have weights of int8, by torch.ao."""
    from torch.ao.quantization import quantize_dynamic

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is on its way out
        plain = fastrnn.revert(copy.deepcopy(model)).eval()
        return quantize_dynamic(plain, {nn.LSTM, nn.GRU}, dtype=torch.qint8)


def copies_of(model: nn.Module) -> dict[str, nn.Module]:
    """The model and what can be made of it for inference."""
    return {
        "torch.nn": model,
        "fastrnn": fastrnn.convert(copy.deepcopy(model)),
        "frozen": fastrnn.freeze(model),
        "frozen, bfloat16": fastrnn.freeze(model, torch.bfloat16),
        "frozen, int8": fastrnn.freeze(model, torch.int8),
        "torch.ao, int8": quantize_by_torch(model),
    }


@torch.inference_mode()
def compare(models: dict[str, nn.Module], x: Tensor, rounds: int) -> dict[str, tuple[float, float]]:
    """Of each model the median time of a call in ms, all by turns, and the error of its output."""
    expected = models["torch.nn"](x)
    errors = {name: ((m(x) - expected).norm() / expected.norm()).item() for name, m in models.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            model(x)
            start = perf_counter()
            model(x)
            times[name].append(perf_counter() - start)
    return {name: (median(times[name]) * 1e3, errors[name]) for name in models}


def train(text: Tensor, kinds: int, steps: int) -> Characters:
    """A character model that has seen `steps` batches of 32 times 64 characters."""
    model = Characters(kinds)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in track(range(steps), "training", console=console, transient=True):
        starts = torch.randint(len(text) - 65, (32,))
        rows = torch.stack([text[i : i + 65] for i in starts], 1)  # [65, B]
        loss = nn.functional.cross_entropy(model(rows[:-1]).flatten(0, 1), rows[1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.inference_mode()
def perplexity(model: nn.Module, text: Tensor) -> float:
    """e to the mean surprise at a character, over 16 pieces of `text` side by side."""
    rows = text[: len(text) // 16 * 16].view(16, -1).T
    return math.exp(nn.functional.cross_entropy(model(rows[:-1]).flatten(0, 1), rows[1:].flatten()).item())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--text", type=Path, help="to learn from, instead of the documentation that comes with Python")
    add("--threads", type=positive, default=torch.get_num_threads(), help="(%(default)s)")
    add("--quick", action="store_true", help="few calls and steps, to see that it runs")
    args, _ = parser.parse_known_args()  # `make examples` gives all programs the same options
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    table = Table("model", "version", "ms a call", "times as fast as torch.nn", "error")
    inputs = {
        SpeakerEncoder: torch.randn(160, 1, 40),
        Enhancer: torch.randn(100, 1, 257),
        Tagger: torch.randint(5000, (30, 8)),
    }
    for kind, x in inputs.items():
        results = compare(copies_of(kind().eval()), x, 3 if args.quick else 40)
        for name, (ms, error) in results.items():
            ratio = results["torch.nn"][0] / ms
            table.add_row(
                kind.__name__,
                name,
                f"{ms:.2f}",
                f"{ratio:.2f}",
                f"{error:.2%}",
                end_section=name[-1] == "8" and name[0] == "t",
            )
    console.print(table)

    text = read_text_or_topics(args.text)
    alphabet = {c: k for k, c in enumerate(sorted(set(text)))}
    codes = torch.tensor([alphabet[c] for c in text])
    rest, test = codes[:-20_000], codes[-20_000:]
    model = train(rest, len(alphabet), 20 if args.quick else 1000)
    of_model = perplexity(model, test)
    console.print(f"perplexity of the character model: {of_model:.3f}")
    for name, other in copies_of(model).items():
        if "int8" in name or "bfloat16" in name:
            value = perplexity(other, test)
            console.print(f"  {name}: {value:.3f} ({value / of_model - 1:+.2%})")


if __name__ == "__main__":
    main()
