"""Padded sequences with lengths, and the states of every step: what the layers do beyond torch.nn's.

Sizes as in `fastrnn.functional`; R is the number of rows of a packed sequence, the sum of its lengths.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop
from torch.nn.functional import linear

__all__ = ["Rows", "cell_states", "rows_of", "run_each_layer", "run_layers"]

_rnn = torch.ops.fastrnn.rnn.default


class Rows(NamedTuple):
    """The steps that padded sequences have, as the rows of a packed sequence.

    Attributes:
        index: `[R]`, where each row stands in the padded input with its first two dimensions flattened
        batch_sizes: `[longest length]`, on the CPU
        order: `[n]`, the sequences that have a step at all, the longest first
    """

    index: Tensor
    batch_sizes: Tensor
    order: Tensor

    def to(self, device) -> Rows:
        move = device.type != "cpu"
        return Rows(self.index.to(device), self.batch_sizes, self.order.to(device)) if move else self


def rows_of(lengths: Tensor | Sequence[int], B: int, T: int, batch_first: bool) -> Rows:
    """The rows that sequences of these lengths (see read_lengths) have in `[T, B, …]` or `[B, T, …]`."""
    if torch.jit.is_tracing():
        if not isinstance(lengths, Tensor):
            warnings.warn(
                "lengths: a trace keeps those of a list as they are; give a Tensor for other ones",
                torch.jit.TracerWarning,
                stacklevel=2,
            )
        return Rows(*torch.jit.script(_rows_in_trace)(_to_tensor(lengths), B, T, batch_first))
    if torch.compiler.is_compiling():
        return Rows(*rows_in_graph(_to_tensor(lengths), B, T, batch_first))
    return find_rows(read_lengths(lengths, B, T), T, batch_first)


def in_graph() -> bool:
    """Whether what runs is recorded, to run again with other sizes and lengths."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


@torch.library.custom_op("fastrnn::rows_of", mutates_args=())
def rows_in_graph(lengths: Tensor, B: int, T: int, batch_first: bool) -> tuple[Tensor, Tensor, Tensor]:
    """rows_of as one node of a graph, which has to know that there is a row at all."""
    rows = find_rows(read_lengths(lengths, B, T), T, batch_first)
    if not len(rows.order):
        raise RuntimeError(
            "lengths: expected one larger than 0 in what torch.compile, torch.export or torch.jit.trace has "
            "made, got none"
        )
    return tuple(rows)


@rows_in_graph.register_fake
def _(lengths, B, T, batch_first):
    size = torch.library.get_ctx().new_dynamic_size
    return tuple(torch.empty(size(min=1), dtype=torch.int64, device="cpu") for _ in range(3))


def _rows_in_trace(lengths: Tensor, B: Tensor, T: Tensor, batch_first: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The same for TorchScript, where sizes are those of the input then; a trace has them as tensors."""
    return torch.ops.fastrnn.rows_of(lengths, int(B), int(T), batch_first)


def read_lengths(lengths: Tensor | Sequence[int], B: int, T: int) -> Tensor:
    """`lengths` as int64 on the CPU, checked: `[B]`, each from 0 to T.

    Raises TypeError if they are no integers, RuntimeError for a wrong number of them or one out of range.
    """
    try:
        given = _to_tensor(lengths)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"lengths: expected a Tensor or a list of integers: {error}") from None
    if given.numel() == 0 and not isinstance(lengths, Tensor):
        given = given.long()  # an empty list has no dtype
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise TypeError(f"lengths: expected integers, got {given.dtype}")
    if given.shape != (B,):
        raise RuntimeError(
            f"lengths: expected size [{B}], one for each sequence of the input, got {list(given.shape)}"
        )
    given = given.to("cpu", torch.int64)
    if B and not 0 <= given.min() <= given.max() <= T:
        raise RuntimeError(
            f"lengths: expected from 0 to {T}, the steps of the input, got {given.min()} to {given.max()}"
        )
    return given


def _to_tensor(lengths: Tensor | Sequence[int]) -> Tensor:
    return lengths if isinstance(lengths, Tensor) else torch.as_tensor(lengths, device="cpu")


def find_rows(lengths: Tensor, T: int, batch_first: bool) -> Rows:
    """The rows of sequences of these lengths (`[B]`, int64, CPU) in a padded `[T, B, …]` or `[B, T, …]`."""
    ordered, order = lengths.sort(descending=True, stable=True)
    n = int((ordered > 0).sum())
    ordered, order = ordered[:n], order[:n]
    longest = int(ordered[0]) if n else 0
    runs = torch.arange(longest, device="cpu").unsqueeze(1) < ordered  # [longest, n]
    t, k = runs.nonzero(as_tuple=True)
    index = order[k] * T + t if batch_first else t * len(lengths) + order[k]
    return Rows(index, runs.sum(1), order)


def run_layers(
    x,
    batch_sizes,
    states,
    weights,
    cell,
    bias,
    num_layers,
    dropout,
    training,
    bidirectional,
    checkpoint_gates,
):
    """The operator fastrnn::rnn, layer by layer, with the states of every step.

    x: `[T, B, I]`, or packed `[R, I]` with `batch_sizes`; states: `[L*D, B, …]` each, or none

    Returns `[output, h_n(, c_n)]` of the operator, and `[h(, c)]` of every step with x's leading dimensions:
    `[T, B, L*D, P]` and `[T, B, L*D, H]`, or `[R, L*D, …]`.
    """
    D = 1 + bidirectional
    if cell != "lstm":
        sizes = None
    elif torch.jit.is_tracing():
        sizes = batch_sizes
        if batch_sizes is None:
            sizes = torch.ones(x.shape[0], dtype=torch.int64, device="cpu") * x.shape[1]
    else:
        sizes = [x.shape[1]] * x.shape[0] if batch_sizes is None else batch_sizes.tolist()
    every_h, every_c, last = [], [], []
    options = cell, bias, num_layers, dropout, training, bidirectional, checkpoint_gates
    for below, first, of_layer, (y, *final) in run_each_layer(x, batch_sizes, states, weights, *options):
        every_h.append(y.unflatten(-1, (D, -1)))
        last.append(final)
        if cell == "lstm":
            each = len(of_layer) // D
            h_0, c_0 = first or [torch.zeros_like(s) for s in final]
            for d in range(D):
                c = cell_states(
                    below.flatten(0, -2),
                    every_h[-1].select(-2, d).flatten(0, -2),
                    h_0[d],
                    c_0[d],
                    of_layer[d * each : (d + 1) * each],
                    bias,
                    sizes,
                    reverse=d == 1,
                )
                every_c.append(c.unflatten(0, y.shape[:-1]).unsqueeze(-2))
    results = [y, *(torch.cat(s) for s in zip(*last, strict=True))]
    return results, [torch.cat(every, -2) for every in (every_h, every_c) if every]


def run_each_layer(
    x,
    batch_sizes,
    states,
    weights,
    cell,
    bias,
    num_layers,
    dropout,
    training,
    bidirectional,
    checkpoint_gates,
):
    """Run the operator fastrnn::rnn layer by layer, with the arguments of run_layers.

    Yields of each layer `input, first states, weights, results`.
    """
    D = 1 + bidirectional
    each, rest = divmod(len(weights), max(num_layers * D, 1))
    if num_layers < 1:
        raise ValueError(f"num_layers: expected at least 1, got {num_layers}")
    if rest:
        raise RuntimeError(
            f"weights: expected as many for each of {num_layers} layer(s) and {D} direction(s), "
            f"got {len(weights)} tensors"
        )
    for layer in range(num_layers):
        k = layer * D
        first, of_layer = [s[k : k + D] for s in states], weights[k * each : (k + D) * each]
        options = cell, bias, 1, 0.0, False, bidirectional, False, checkpoint_gates
        results = _rnn(x, batch_sizes, first, of_layer, *options)
        yield x, first, of_layer, results
        y = results[0]
        x = drop(y, dropout) if training and dropout and layer + 1 < num_layers else y


def cell_states(x, h, h_0, c_0, weights, bias, sizes, *, reverse) -> Tensor:
    """c of every step of one layer and direction of an LSTM, once h of every step is known.

    The gates of all steps are then one product, and only c' = f * c + i * g goes from step to step. It is
    made of differentiable operations, and h brings its own derivative, so that of c is complete.

    Args:
        x: `[R, I]`
        h: `[R, P]`, the layer's output; its dtype is that of the result, 16 bits are computed in 32
        h_0, c_0: `[B, P]`, `[B, H]`
        weights: `W_ih, W_hh`, with `bias` `b_ih, b_hh`, and perhaps `W_hr`
        sizes: rows of each step; under torch.jit.trace a tensor, so that the trace takes other ones
        reverse: from the last step to the first

    Returns: `[R, H]`
    """
    dtype = h.dtype
    wide = torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
    H = weights[0].shape[0] // 4
    with torch.autocast(h.device.type, enabled=False):
        x, h, h_0, c_0 = (t.to(dtype).to(wide) for t in (x, h, h_0, c_0))
        ifg = [w[: 3 * H].to(dtype).to(wide) for w in weights[: 4 if bias else 2]]  # o makes h, not c
        W_ih, W_hh, b_ih, b_hh = ifg if bias else (*ifg, None, None)
        c_0 = c_0.clone()  # addcmul saves it, and its backward does not ask whether its memory is still there
        before = torch.cat([h_0, h]).index_select(0, _previous(sizes, reverse).to(h.device))
        i, f, g = (linear(x, W_ih, b_ih) + linear(before, W_hh, b_hh)).chunk(3, -1)

        carry = carry_cells if isinstance(sizes, list) else torch.jit.script(_carry_in_trace)
        c = carry(f.sigmoid(), i.sigmoid() * g.tanh(), c_0, sizes, reverse)
    return c.to(dtype)


def carry_cells(f: Tensor, ig: Tensor, c: Tensor, sizes: list[int], reverse: bool) -> Tensor:
    """c' = f * c + ig from step to step, as `reference.sweep`; TorchScript can compile it."""
    of_step, additions = f.split(sizes), ig.split(sizes)
    outputs = [ig] * len(sizes)
    for n in range(len(sizes)):
        t = len(sizes) - 1 - n if reverse else n
        new = torch.addcmul(additions[t], of_step[t], c[: sizes[t]])
        c = torch.cat([new, c[sizes[t] :]])
        outputs[t] = new
    return torch.cat(outputs)


def _carry_in_trace(f: Tensor, ig: Tensor, c: Tensor, sizes: Tensor, reverse: bool) -> Tensor:
    """The same as a loop in the trace, which has as many steps as its input then."""
    steps: list[int] = sizes.tolist()
    return carry_cells(f, ig, c, steps, reverse)


def _previous(sizes: Tensor | Sequence[int], reverse: bool) -> Tensor:
    """For each packed row where the state before it stands in `[rows of h_0, rows of h]`: `[R]`."""
    n = sizes if isinstance(sizes, Tensor) else torch.tensor(sizes, device="cpu")
    steps = torch.arange(n.shape[0], device="cpu")
    start = n.cumsum(0) - n
    t = torch.repeat_interleave(steps, n)
    k = torch.arange(t.shape[0], device="cpu") - start[t]
    other = t + 1 if reverse else t - 1
    runs = torch.cat([n, n.new_zeros(1)])[other] > k  # t - 1 = -1 is the zero at the end, too
    return torch.where(runs, n[0] + start[other.clamp(0, n.shape[0] - 1)] + k, k)
