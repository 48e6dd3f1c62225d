"""Lengths, resets and the states of every step: what the layers do beyond torch.nn's.

Sizes as in `fastrnn.functional`; R is the number of rows of a packed sequence, the sum of its lengths.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import dropout as drop
from torch.nn.functional import linear
from torch.nn.utils.rnn import PackedSequence

from .cells import CELLS
from .export import nodes

__all__ = [
    "Options",
    "Rows",
    "Segments",
    "cell_states",
    "form_of",
    "read_resets",
    "rows_of",
    "run_each_layer",
    "run_layers",
    "run_stack",
    "segments_of",
    "split_resets",
    "unwrap",
]

_rnn = torch.ops.fastrnn.rnn.default
_layer = torch.ops.fastrnn.layer.default


class Options(NamedTuple):
    """What the operator fastrnn::rnn takes after the tensors, in its order; see `fastrnn.functional.lstm`."""

    cell: str
    bias: bool = True
    num_layers: int = 1
    dropout: float = 0.0
    training: bool = False
    bidirectional: bool = False
    batch_first: bool = False
    checkpoint_gates: bool = False
    recurrent_dropout: float = 0.0
    zoneout: tuple[float, ...] = ()
    resets: Tensor | None = None


class Rows(NamedTuple):
    """The steps that padded sequences have, as the rows of a packed sequence.

    Attributes:
        index: `[R]`, where each row stands in the padded input with its first two dimensions flattened
        batch_sizes: `[longest length]`, on the CPU
        order: `[n]`, the sequences that have a step at all, the longest first
    """

    index: Tensor  # type: ignore[assignment]  # in place of tuple.index
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
    return rows.index, rows.batch_sizes, rows.order


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


# ---- resets ----


class Segments(NamedTuple):
    """The segments of sequences with resets, as the sequences of a packed sequence: the longest first.

    Attributes:
        index: `[R]`, where each packed row stands among the rows of the input
        place: `[N]`, where each row of the input stands among the packed rows; R past the lengths
        batch_sizes: `[longest segment]`, on the CPU
        source: `[2, n]`, for each direction and segment: where it begins from in `[zero, states of B
            sequences]`
        last: `[2, B]`, for each direction and sequence: where its last state is in `[states of n segments,
            initial states of B sequences]`
    """

    index: Tensor  # type: ignore[assignment]  # in place of tuple.index
    place: Tensor
    batch_sizes: Tensor
    source: Tensor
    last: Tensor

    def to(self, device) -> Segments:
        if device.type == "cpu":
            return self
        index, place, source, last = (t.to(device) for t in (self.index, self.place, self.source, self.last))
        return Segments(index, place, self.batch_sizes, source, last)


def read_resets(resets: Tensor | PackedSequence, size: Sequence[int]) -> Tensor:
    """`resets` as a tensor, checked: of bool and of this size.

    Raises TypeError if it is something else, RuntimeError for another size.
    """
    if isinstance(resets, PackedSequence):
        resets = resets.data
    if not isinstance(resets, Tensor):
        raise TypeError(f"resets: expected a bool Tensor, got {type(resets).__name__}")
    if resets.dtype != torch.bool:
        raise TypeError(f"resets: expected a bool Tensor, got {resets.dtype}: call .bool()")
    if not torch.jit.is_tracing() and resets.shape != size:  # a trace keeps no check
        raise RuntimeError(
            f"resets: expected size {list(size)}, one for each step of the input, got {list(resets.shape)}"
        )
    return resets


def unwrap(name: str, tensor: Tensor) -> Tensor:
    """A tensor without the wrappers of torch.func. Raises RuntimeError if torch.vmap maps over it."""
    functorch: Any = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            raise RuntimeError(f"{name}: vmap cannot map over them where resets are of several steps")
        tensor = functorch.get_unwrapped(tensor)
    return tensor


def split_resets(resets: Tensor, lengths: Tensor | None, batch_sizes: Tensor | None, batch_first: bool):
    """The resets of step 0, `[B]` (`[]` unbatched), and whether a later step has one.

    The arguments are those of segments_of; `lengths` are read. Resets past them do not count.
    """
    if batch_sizes is not None:
        B = int(batch_sizes[0])
        return resets[:B], bool(resets[B:].any())
    if batch_first and resets.dim() == 2:
        resets = resets.T
    if lengths is not None:
        resets = resets & (torch.arange(len(resets), device="cpu").unsqueeze(1) < lengths)
    return resets[:1].any(0), bool(resets[1:].any())  # there may be no step 0


def segments_of(
    resets: Tensor,
    lengths: Tensor | Sequence[int] | None,
    batch_sizes: Tensor | None,
    batch_first: bool,
) -> Segments:
    """The segments of sequences.

    Args:
        resets: `[T, B]`, or `[B, T]` with `batch_first`; `[T]` of one sequence; `[R]` with `batch_sizes`
        lengths: of padded sequences, see read_lengths; None for T each
        batch_sizes: of packed sequences
        batch_first: the form of `resets` of 2 dimensions
    """
    if in_graph():
        lengths = lengths if lengths is None else _to_tensor(lengths)
        return Segments(*torch.ops.fastrnn.segments_of(resets, lengths, batch_sizes, batch_first))
    return find_segments(resets, lengths, batch_sizes, batch_first)


@torch.library.custom_op("fastrnn::segments_of", mutates_args=())
def segments_in_graph(
    resets: Tensor, lengths: Tensor | None, batch_sizes: Tensor | None, batch_first: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """segments_of as one node of a graph, which has to know that there is a row at all."""
    if not resets.numel() or lengths is not None and not lengths.any():
        raise RuntimeError(
            "resets: expected a sequence with a step in what torch.compile, torch.export or torch.jit.trace "
            "has made, got none"
        )
    index, place, sizes, source, last = find_segments(resets, lengths, batch_sizes, batch_first)
    return index, place, sizes, source, last


@segments_in_graph.register_fake
def _(resets, lengths, batch_sizes, batch_first):
    size = torch.library.get_ctx().new_dynamic_size
    R = resets.numel() if lengths is None else size(min=1)
    of_padded = [*resets.shape, 1][0 if batch_first and resets.dim() == 2 else 1]
    B = of_padded if batch_sizes is None else size(min=1)
    shapes = (R,), (resets.numel(),), (size(min=1),), (2, size(min=1)), (2, B)
    return tuple(torch.empty(shape, dtype=torch.int64, device="cpu") for shape in shapes)


def _to_numpy(name, tensor):
    tensor = unwrap(name, tensor)
    with torch._C._DisableFuncTorch():  # which would wrap it again
        return tensor.to("cpu").numpy()


def find_segments(resets, lengths, batch_sizes, batch_first) -> Segments:
    """What segments_of says. There is a row at least. In NumPy, whose small operations take a fraction of the
    time of torch's."""
    marks = _to_numpy("resets", resets)
    if batch_sizes is not None:
        of_step = _to_numpy("batch_sizes", batch_sizes)
        of_sequence = np.arange(of_step[0])[:, np.newaxis]
        row = of_step.cumsum() - of_step + of_sequence  # [B, T]
        steps = (of_step > of_sequence).sum(1)  # of each sequence
    else:
        row = np.arange(marks.size).reshape(marks.shape if marks.ndim == 2 else (-1, 1))
        row = row if batch_first and marks.ndim == 2 else row.T
        steps = np.full(*row.shape)
        if lengths is not None:
            steps = _to_numpy("lengths", read_lengths(lengths, *row.shape))
    B, T = row.shape

    # Rows are now in the order of the sequences, each from its first step to its last.
    row = row[np.arange(T) < steps[:, np.newaxis]]
    is_reset = marks.ravel()[row]
    running = steps.nonzero()[0]  # sequences
    end = steps.cumsum()[running]
    first = end - steps[running]

    begins = is_reset.copy()
    begins[first] = True
    begin = begins.nonzero()[0]  # of each segment
    n, R = len(begin), len(row)
    order = (begin - np.append(begin[1:], R)).argsort(kind="stable")  # the longest first
    rank = np.empty_like(order)
    rank[order] = np.arange(n)

    segment = begins.cumsum() - 1  # of each row
    step = np.arange(R) - begin[segment]
    sizes = np.bincount(step)
    packed = (sizes.cumsum() - sizes)[step] + rank[segment]
    index = np.empty_like(row)
    index[packed] = row
    place = np.full(marks.size, R)
    place[row] = packed

    at_first, at_last = rank[segment[first]], rank[segment[end - 1]]  # segments of a sequence
    source = np.zeros((2, n), order.dtype)
    source[0, at_first] = np.where(is_reset[first], 0, running + 1)
    source[1, at_last] = running + 1
    last = np.tile(np.arange(n, n + B), (2, 1))
    last[0, running], last[1, running] = at_last, at_first
    return Segments(*map(torch.from_numpy, (index, place, sizes, source, last)))


# ---- forms of input ----


class _TimeMajor:
    """`[T, B, I]`, as the operator takes it. The other forms of input say what differs.

    Attributes:
        x, batch_sizes: what the operator takes, `[T, B, I]` and None, or packed rows `[R, I]` and their sizes
        B: how many sequences that is
        order: these among all sequences of the input, `[B]`, or None if they are all and in their order
    """

    batch_sizes: Tensor | None = None
    order: Tensor | None = None

    def __init__(self, input):
        self.x, self.B = input, input.shape[1]

    def state_size(self, LD, width):
        """The size of a state as it is given, of LD layers and directions."""
        return LD, self.B, width

    def take(self, state):
        """A state as it is given, `[L*D, B, .]` for the operator."""
        return state

    def take_resets(self, resets):
        """Resets as the operator takes them, of each row of x."""
        return resets

    def give(self, y):
        """The operator's output in the form of the input."""
        return y

    def give_state(self, state, initial):
        """A last state of the operator in the form of the one that was given, or of None."""
        return state

    def give_every(self, states):
        """A state of every step, `[T, B, L*D, .]` or `[R, L*D, .]`, in the form of the results."""
        return states.movedim(-2, 0)


class _BatchFirst(_TimeMajor):
    """`[B, T, I]`."""

    def __init__(self, input):
        super().__init__(input.transpose(0, 1))

    def take_resets(self, resets):
        return resets.transpose(0, 1)

    def give(self, y):
        return y.transpose(0, 1)

    def give_every(self, states):
        return super().give_every(states).transpose(1, 2)


class _Unbatched(_TimeMajor):
    """`[T, I]`."""

    def __init__(self, input):
        super().__init__(input.unsqueeze(1))

    def take_resets(self, resets):
        return resets.unsqueeze(1)

    def state_size(self, LD, width):
        return LD, width

    def take(self, state):
        return state.unsqueeze(1)

    def give(self, y):
        return y.squeeze(1)

    def give_state(self, state, initial):
        return state.squeeze(1)

    def give_every(self, states):
        return super().give_every(states).squeeze(2)


class _Packed(_TimeMajor):
    """A PackedSequence."""

    def __init__(self, input):
        self.input = input
        self.x, batch_sizes, self.order, self.restored = input
        self.batch_sizes = batch_sizes
        self.B = batch_sizes[0] if torch.jit.is_tracing() else int(batch_sizes[0])

    def take(self, state):
        return state if self.order is None else state.index_select(1, self.order)

    def give(self, y):
        return PackedSequence(y, *self.input[1:])

    def give_state(self, state, initial):
        return state if self.restored is None else state.index_select(1, self.restored)

    def give_every(self, states):
        return self.give(states)


class _WithLengths(_TimeMajor):
    """`[T, B, I]` or `[B, T, I]`, and the lengths of the sequences: run as packed rows."""

    def __init__(self, input, lengths, batch_first):
        self.size = input.shape[:2]
        T, self.B = reversed(self.size) if batch_first else self.size
        rows = rows_of(lengths, self.B, T, batch_first).to(input.device)
        self.index, self.order = rows.index, rows.order
        self.x, self.batch_sizes = input.flatten(0, 1).index_select(0, rows.index), rows.batch_sizes
        self.is_empty = not in_graph() and not len(rows.order)
        if self.is_empty:  # one step of no sequence: gradients are zeros as of any batch
            self.x, self.batch_sizes = self.x.unsqueeze(0), None

    def take(self, state):
        if torch.jit.is_tracing():  # a trace keeps no check of Python's, but this takes B sequences alone
            state = state.split([self.B], 1)[0]
        return state.index_select(1, self.order)

    def take_resets(self, resets):
        rows = resets.flatten().index_select(0, self.index)
        return rows.unsqueeze(0) if self.is_empty else rows

    def give(self, y):
        """Back to where the rows came from, and zero elsewhere."""
        y = y.squeeze(0) if self.is_empty else y
        padded = y.new_zeros(self.size[0] * self.size[1], *y.shape[1:])
        return padded.index_copy(0, self.index, y).unflatten(0, self.size)

    def give_state(self, state, initial):
        """What sequences of length 0 have is their initial state."""
        if initial is None:
            initial = state.new_zeros(state.shape[0], self.B, state.shape[2])
        return initial.to(state.dtype).index_copy(1, self.order, state)

    def give_every(self, states):
        return self.give(states).movedim(-2, 0)


class _WithResets(_TimeMajor):
    """Any of these forms, and resets: the segments of its sequences run as packed rows."""

    def __init__(self, input, resets, lengths, options):
        self.form = form_of(input, None, None, options)
        self.B, self.is_padded = self.form.B, not isinstance(input, PackedSequence)
        rows = input.flatten(0, -2) if self.is_padded else input.data
        self.size = input.shape[:-1] if self.is_padded else rows.shape[:1]
        self.directions = 1 + options.bidirectional
        self.has_lengths = lengths is not None
        segments = segments_of(resets, lengths, self.form.batch_sizes, options.batch_first).to(rows.device)
        self.index, self.place, self.batch_sizes, self.order, self.last = segments
        # index_select is the quicker way, but its backward is a slow sum. That of index_copy_ is none.
        if rows.requires_grad and not in_graph():
            R = len(self.index)
            x = rows.new_empty(R + self.has_lengths, *rows.shape[1:]).index_copy_(0, self.place, rows)
            self.x = x[:R]
        else:
            self.x = rows.index_select(0, self.index)

    def state_size(self, LD, width):
        return self.form.state_size(LD, width)

    def take(self, state):
        state = self.form.take(state)
        zero = state.new_zeros(state.shape[0], 1, state.shape[2])
        return self._select(torch.cat([zero, state], 1), self.order)

    def _select(self, states, index):
        """Of states `[L*D, ., .]` those that `index` has for each direction, `[2, .]`."""
        D = self.directions
        selected = [states[d::D].index_select(1, index[d]) for d in range(D)]
        if D == 1:
            return selected[0]
        # As torch.stack(selected, 1).flatten(0, 1), for which torch.export would fix the number of states.
        of_layers = zip(*[s.unbind() for s in selected], strict=True)
        return torch.stack([s for of_layer in of_layers for s in of_layer])

    def give(self, y):
        """Back to where the rows came from, and zero past the lengths."""
        if self.has_lengths:
            y = y.new_zeros(math.prod(self.size), *y.shape[1:]).index_copy_(0, self.index, y)
        elif y.requires_grad and not in_graph():
            y = torch.empty_like(y).index_copy_(0, self.index, y)
        else:
            y = y.index_select(0, self.place)
        return y.unflatten(0, self.size) if self.is_padded else self.form.give(y)

    def give_state(self, state, initial):
        if self.has_lengths:
            if initial is None:
                initial = state.new_zeros(state.shape[0], self.B, state.shape[2])
            state = torch.cat([state, initial.to(state.dtype)], 1)
        return self.form.give_state(self._select(state, self.last), initial)

    def give_every(self, states):
        states = self.give(states)
        return states.movedim(-2, 0) if self.is_padded else states


def form_of(input, lengths, resets, options: Options) -> _TimeMajor:
    """The form of an input: a PackedSequence, or a Tensor of 2 or 3 dimensions; with lengths of 3."""
    batch_first = options.batch_first
    if resets is not None:
        return _WithResets(input, resets, lengths, options)
    if isinstance(input, PackedSequence):
        return _Packed(input)
    if lengths is not None:
        return _WithLengths(input, lengths, batch_first)
    if input.dim() == 2:
        return _Unbatched(input)
    return _BatchFirst(input) if batch_first else _TimeMajor(input)


# ---- states of every step ----


def run_layers(x, batch_sizes, states, weights, options: Options, shares=None, run_one=None):
    """The operator fastrnn::rnn, layer by layer, with the states of every step.

    x: `[T, B, I]`, or packed `[R, I]` with `batch_sizes`; states: `[L*D, B, …]` each, or none

    Returns `[output, h_n(, further states)]` of the operator, and `[h(, further states)]` of every step with
    the leading dimensions of x: `[T, B, L*D, P]` and `[T, B, L*D, H]`, or `[R, L*D, …]`.
    """
    several = len(CELLS[options.cell].states) > 1
    if several and (any(options.zoneout) or options.training and options.recurrent_dropout):
        raise NotImplementedError(
            "return_all_states: expected no zoneout, and no recurrent_dropout in training, with a cell of "
            "several states"
        )
    run = _run_layer_by_steps if several and options.cell not in _FROM_H else _run_layer
    run = run if run_one is None else partial(run_one, run)
    each_layer = run_each_layer(x, batch_sizes, states, weights, options, run, shares)
    results = [(y, last, every) for _, (y, last, every) in each_layer]
    y = results[-1][0]
    last = [torch.cat(s) for s in zip(*(last for _, last, _ in results), strict=True)]
    every = [torch.cat(s, -2) for s in zip(*(every for _, _, every in results), strict=True)]
    return [y, *last], every


def run_each_layer(x, batch_sizes, states, weights, options: Options, run, shares=None):
    """Call `run(x, batch_sizes, states, weights, options)`, which returns y and more, layer by layer.

    shares: `shares(layer, x)` makes of the input of a layer the gates' shares, for cells without W_ih

    Yields of each layer its arguments and its results. The other arguments are those of run_layers.
    """
    num_layers, D = options.num_layers, 1 + options.bidirectional
    each, rest = divmod(len(weights), max(num_layers * D, 1))
    if num_layers < 1:
        raise ValueError(f"num_layers: expected at least 1, got {num_layers}")
    if rest:
        raise RuntimeError(
            f"weights: expected as many for each of {num_layers} layer(s) and {D} direction(s), "
            f"got {len(weights)} tensors"
        )
    of_one = options._replace(num_layers=1, dropout=0.0, batch_first=False)
    for layer in range(num_layers):
        k = layer * D
        if shares is not None:
            x = shares(layer, x)
        first, of_layer = [s[k : k + D] for s in states], weights[k * each : (k + D) * each]
        arguments = x, batch_sizes, first, of_layer, of_one
        results = run(*arguments)
        yield arguments, results
        x = results[0]
        if options.training and options.dropout and layer + 1 < num_layers:
            x = drop(x, options.dropout)


def run_layer(x, batch_sizes, states, weights, options: Options):
    """The operator with one layer."""
    rnn = nodes.rnn if nodes.is_exporting() else _rnn
    return rnn(x, batch_sizes, states, weights, *options)


def run_stack(x, batch_sizes, states, weights, options: Options, shares, run_one):
    """The operator fastrnn::rnn for cells without W_ih, layer by layer; see run_each_layer."""
    run = partial(run_one, run_layer)
    results = [r for _, r in run_each_layer(x, batch_sizes, states, weights, options, run, shares)]
    last = zip(*(states for _, *states in results), strict=True)
    return [results[-1][0], *map(torch.cat, last)]


def _run_layer(x, batch_sizes, states, weights, options):
    """One layer: its output, its last states, and its states of every step."""
    y, *last = run_layer(x, batch_sizes, states, weights, options)
    D = 1 + options.bidirectional
    h = y.unflatten(-1, (D, -1))
    if len(last) == 1:
        return y, last, [h]
    each = len(weights) // D
    h_0, c_0 = states or [torch.zeros_like(s) for s in last]
    sizes = _sizes_of_steps(x, batch_sizes)
    c = [
        _FROM_H[options.cell](
            x.flatten(0, -2),
            h.select(-2, d).flatten(0, -2),
            h_0[d],
            c_0[d],
            weights[d * each : (d + 1) * each],
            options.bias,
            sizes,
            reverse=d == 1,
        ).unflatten(0, y.shape[:-1])
        for d in range(D)
    ]
    return y, last, [h, torch.stack(c, -2)]


def _run_layer_by_steps(x, batch_sizes, states, weights, options):
    """The same, for a cell with states that h does not tell: a call for each step."""
    D, packed = 1 + options.bidirectional, batch_sizes is not None
    each, info = len(weights) // D, CELLS[options.cell]
    rows = x.split(batch_sizes.tolist()) if packed else x.unbind()
    if not states:
        P, H = info.sizes_of(weights)
        widths = P, *[H] * (len(info.states) - 1)
        states = [x.new_zeros(D, len(rows[0]), width) for width in widths]
    flags = options.cell, False, False, options.checkpoint_gates
    every, last = [], []
    takes_shares = not info.has("input_matrix")
    for d in range(D):
        now = [s[d] for s in states]
        inputs = [row.chunk(D, -1)[d] for row in rows] if takes_shares else rows
        of_steps: list[Any] = [None] * len(rows)
        for t in range(len(rows) - 1, -1, -1) if d else range(len(rows)):
            n = len(rows[t])
            of_direction = weights[d * each : (d + 1) * each]
            before = [s[:n] for s in now]
            of_steps[t] = _layer(inputs[t], None, before, of_direction, *flags)
            now = [torch.cat([new, s[n:]]) for new, s in zip(of_steps[t], now, strict=True)]
        join = torch.cat if packed else torch.stack
        every.append([join(s) for s in zip(*of_steps, strict=True)])
        last.append(now)
    of_both = [torch.stack(s, -2) for s in zip(*every, strict=True)]
    return of_both[0].flatten(-2), [torch.stack(s) for s in zip(*last, strict=True)], of_both


def _sizes_of_steps(x, batch_sizes):
    """The rows of each step; under torch.jit.trace a tensor, so that the trace takes other ones."""
    if torch.jit.is_tracing():
        if batch_sizes is not None:
            return batch_sizes
        return torch.ones(x.shape[0], dtype=torch.int64, device="cpu") * x.shape[1]
    return [x.shape[1]] * x.shape[0] if batch_sizes is None else batch_sizes.tolist()


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


# The cells whose further state follows from h of every step, and how.
_FROM_H = {"lstm": cell_states}
