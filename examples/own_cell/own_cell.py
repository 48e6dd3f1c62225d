"""Train a layer of a cell of your own, and time it beside the same cell as a loop in plain torch.

coupled_lstm.h has the cell, an LSTM whose input gate is 1 - f. fastrnn compiles it, once, and makes a layer
of it. The layer learns the adding problem: of two rows of input, one has numbers, and the other marks two of
them; the answer is their sum.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, mse_loss

import fastrnn

CoupledLSTM = fastrnn.build_cell(Path(__file__).with_name("coupled_lstm.h"))


def run_loop(layer: nn.Module, x: Tensor) -> Tensor:
    """The same as `layer(x)[0]`, step by step."""
    W_ih, W_hh, b_ih, b_hh = layer.parameters()
    h = c = x.new_zeros(x.shape[1], layer.hidden_size)
    outputs = []
    for x_t in x:
        f, g, o = (linear(x_t, W_ih, b_ih) + linear(h, W_hh, b_hh)).chunk(3, -1)
        f, g, o = f.sigmoid(), g.tanh(), o.sigmoid()
        c = f * c + (1 - f) * g
        h = o * c.tanh()
        outputs.append(h)
    return torch.stack(outputs)


def draw_task(T: int, B: int) -> tuple[Tensor, Tensor]:
    """Input `[T, B, 2]` and answers `[B]`."""
    numbers, marks = torch.rand(T, B), torch.zeros(T, B)
    places = torch.rand(T, B).argsort(0)[:2]  # two for each sequence
    marks.scatter_(0, places, 1.0)
    return torch.stack([numbers, marks], -1), (numbers * marks).sum(0)


def train(layer: nn.Module, steps: int, T: int) -> None:
    """Print the loss now and then. Who always answers 1 has a loss of 0.167."""
    head = nn.Linear(layer.hidden_size, 1)
    optimizer = torch.optim.Adam([*layer.parameters(), *head.parameters()], lr=5e-3)
    losses = []
    for step in range(1, steps + 1):
        x, answer = draw_task(T, 64)
        loss = mse_loss(head(layer(x)[0][-1]).squeeze(-1), answer)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % max(steps // 6, 1) == 0:
            print(f"step {step:5}: loss {sum(losses) / len(losses):.4f}")
            losses.clear()


def time_training(run, x: Tensor) -> float:
    """Milliseconds of a forward and backward: the median of some."""
    times = []
    for _ in range(12):
        start = time.perf_counter()
        run(x).sum().backward()
        times.append(1000 * (time.perf_counter() - start))
    return median(times[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=600, help="of training")
    parser.add_argument("--length", type=int, default=30, help="T, steps of a sequence")
    parser.add_argument("--hidden", type=int, default=64, help="H, units of the layer")
    args = parser.parse_args()
    torch.manual_seed(0)

    layer = CoupledLSTM(2, args.hidden)
    print(layer)
    x, _ = draw_task(args.length, 64)
    torch.testing.assert_close(layer(x)[0], run_loop(layer, x))
    train(layer, args.steps, args.length)

    wide = CoupledLSTM(args.hidden, args.hidden)
    x = torch.randn(100, 16, args.hidden)
    fused, loop = time_training(lambda x: wide(x)[0], x), time_training(lambda x: run_loop(wide, x), x)
    print(f"forward and backward, T,B,I,H = 100,16,{args.hidden},{args.hidden}:")
    print(f"fastrnn {fused:.2f} ms, a loop in torch {loop:.2f} ms: {loop / fused:.1f} times as fast")


if __name__ == "__main__":
    main()
