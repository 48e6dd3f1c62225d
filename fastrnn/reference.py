"""The layers of fastrnn in plain torch, readable as the equations.

Nothing here is fast. Everything is composed of differentiable torch operations, in whatever dtype comes
in, so that autograd (also of higher order), `torch.func` and float64 work. Tests use it in float64 as the
judge of the kernels.

Sizes: `T` time, `B` batch, `I` input, `H` hidden, `P` projected hidden (`P = H` without a projection), `G`
gates of the cell, `D` directions, `L` layers. Weights are those of torch.nn: gates are stacked along the
rows.

To add a cell: write its step and a row of `CELLS`. Tests and benchmarks iterate over that table. The facts
of a cell stand with its kernels; see `fastrnn.cells`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop
from torch.nn.functional import layer_norm, linear, logsigmoid

from . import cells

__all__ = [
    "CELLS",
    "Cell",
    "gru_step",
    "lstm_step",
    "rnn",
    "rnn_step",
    "sweep",
    "weight_shapes",
]

State = tuple[Tensor, ...]


def lstm_step(x, state, W_ih, W_hh, b_ih=None, b_hh=None, W_hr=None, *, mask=1.0) -> State:
    """One step of an LSTM, gates in the order `i f g o`.

        i = sigmoid(W_ii x + b_ii + W_hi h + b_hi)
        f = sigmoid(W_if x + b_if + W_hf h + b_hf)
        g =    tanh(W_ig x + b_ig + W_hg h + b_hg)
        o = sigmoid(W_io x + b_io + W_ho h + b_ho)
        c' = f * c + i * g
        h' = o * tanh(c')                           or W_hr (o * tanh(c')) with a projection

    Args:
        x: `[B, I]`
        state: `(h, c)`, `h` `[B, P]`, `c` `[B, H]`
        W_ih: `[4*H, I]`
        W_hh: `[4*H, P]`
        b_ih, b_hh: `[4*H]` or None
        W_hr: `[P, H]` or None (then P = H)
        mask: `[B, P]`, factors of the h that W_hh multiplies (recurrent dropout)

    Returns: `(h', c')`, shaped like `state`.
    """
    h, c = state
    i, f, g, o = (linear(x, W_ih, b_ih) + linear(h * mask, W_hh, b_hh)).chunk(4, dim=-1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return (h if W_hr is None else linear(h, W_hr)), c


def gru_step(x, state, W_ih, W_hh, b_ih=None, b_hh=None, *, mask=1.0) -> State:
    """One step of a GRU, gates in the order `r z n`; the reset gate acts after the matmul, as in torch.nn.

        r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)
        z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
        n =    tanh(W_in x + b_in + r * (W_hn h + b_hn))
        h' = (1 - z) * n + z * h

    Args:
        x: `[B, I]`
        state: `(h,)`, `h` `[B, H]`
        W_ih: `[3*H, I]`
        W_hh: `[3*H, H]`
        b_ih, b_hh: `[3*H]` or None

    Returns: `(h',)`, shaped like `state`.
    """
    (h,) = state
    x_r, x_z, x_n = linear(x, W_ih, b_ih).chunk(3, dim=-1)
    h_r, h_z, h_n = linear(h * mask, W_hh, b_hh).chunk(3, dim=-1)
    r = (x_r + h_r).sigmoid()
    z = (x_z + h_z).sigmoid()
    n = (x_n + r * h_n).tanh()
    return ((1 - z) * n + z * h,)


def rnn_step(x, state, W_ih, W_hh, b_ih=None, b_hh=None, *, nonlinearity: str = "tanh", mask=1.0) -> State:
    """One step of an Elman RNN.

        h' = tanh(W_ih x + b_ih + W_hh h + b_hh)    or another nonlinearity

    Args:
        x: `[B, I]`
        state: `(h,)`, `h` `[B, H]`
        W_ih: `[H, I]`
        W_hh: `[H, H]`
        b_ih, b_hh: `[H]` or None
        nonlinearity: `"tanh"`, `"relu"`, `"sigmoid"` or `"identity"`
        mask: as lstm_step

    Returns: `(h',)`, shaped like `state`.
    """
    (h,) = state
    return (_ACTIVATIONS[nonlinearity](linear(x, W_ih, b_ih) + linear(h * mask, W_hh, b_hh)),)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "identity": lambda a: a,
}


def gru_reset_before_step(x, state, W_ih, W_hh, b_ih=None, b_hh=None, *, mask=1.0) -> State:
    """One step of a GRU whose reset gate acts before the matmul (Cho et al. 2014), gates in order `r z n`.

        n = tanh(W_in x + b_in + W_hn (r * h) + b_hn)      and all else as gru_step

    Args, returns: as gru_step
    """
    (h,) = state
    x_r, x_z, x_n = linear(x, W_ih, b_ih).chunk(3, dim=-1)
    W_r, W_z, W_n = W_hh.chunk(3)
    b_r, b_z, b_n = (None,) * 3 if b_hh is None else b_hh.chunk(3)
    r = (x_r + linear(h * mask, W_r, b_r)).sigmoid()
    z = (x_z + linear(h * mask, W_z, b_z)).sigmoid()
    n = (x_n + linear(r * h * mask, W_n, b_n)).tanh()
    return ((1 - z) * n + z * h,)


def peephole_lstm_step(x, state, W_ih, W_hh, b_ih=None, b_hh=None, W_c=None, W_hr=None, *, mask=1.0) -> State:
    """One step of an LSTM whose gates see c (Gers and Schmidhuber 2000): i and f the old one, o the new one.

    Args:
        W_c: `[3, H]`, what i, f and o multiply it with
        others: as lstm_step

    Returns: as lstm_step
    """
    h, c = state
    w_i, w_f, w_o = W_c
    i, f, g, o = (linear(x, W_ih, b_ih) + linear(h * mask, W_hh, b_hh)).chunk(4, dim=-1)
    c_new = (f + w_f * c).sigmoid() * c + (i + w_i * c).sigmoid() * g.tanh()
    h = (o + w_o * c_new).sigmoid() * c_new.tanh()
    return (h if W_hr is None else linear(h, W_hr)), c_new


def layer_norm_lstm_step(x, state, W_hh, g_hh, g_c, b_c, *, mask=1.0) -> State:
    """One step of an LSTM with layer normalisation (Ba et al. 2016), gates in the order `i f g o`.

    Args:
        x: `[B, 4*H]`, the gates' shares from the input, normalised and with the bias
        g_hh: `[4*H]`, gain of the normalised product with W_hh
        g_c, b_c: `[H]`, gain and bias of the normalised c
        state, W_hh: as lstm_step
    """
    h, c = state
    product = linear(h * mask, W_hh)
    i, f, g, o = (x + layer_norm(product, product.shape[-1:], g_hh)).chunk(4, dim=-1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * layer_norm(c, c.shape[-1:], g_c, b_c).tanh(), c


def layer_norm_gru_step(x, state, W_hh, g_hh, *, mask=1.0) -> State:
    """One step of a GRU with layer normalisation, gates in the order `r z n`.

    Args: as layer_norm_lstm_step
    """
    (h,) = state
    product = linear(h * mask, W_hh)
    x_r, x_z, x_n = x.chunk(3, dim=-1)
    h_r, h_z, h_n = layer_norm(product, product.shape[-1:], g_hh).chunk(3, dim=-1)
    r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
    n = (x_n + r * h_n).tanh()
    return ((1 - z) * n + z * h,)


def indrnn_step(x, state, W_ih, u, b=None, *, nonlinearity: str = "relu", mask=1.0) -> State:
    """One step of an IndRNN (Li et al. 2018): `h' = relu(W_ih x + b + u * h)`, or tanh.

    Args:
        u: `[H]`
        others: as rnn_step
    """
    (h,) = state
    return (_ACTIVATIONS[nonlinearity](linear(x, W_ih, b) + u * h * mask),)


def ligru_step(x, state, W_hh, *, mask=1.0) -> State:
    """One step of a LiGRU (Ravanelli et al. 2018), gates in the order `n z`.

    Args:
        x: `[B, 2*H]`, the gates' shares from the input
        W_hh: `[2*H, H]`
    """
    (h,) = state
    n, z = (x + linear(h * mask, W_hh)).chunk(2, dim=-1)
    n, z = n.relu(), z.sigmoid()
    return ((1 - z) * n + z * h,)


def slstm_step(x, state, W_hh, *, mask=1.0) -> State:
    """One step of an sLSTM (Beck et al. 2024), gates in the order `i f z o`, states `(h, c, n, m)`.

        m' = max(log sigmoid(f) + m, i)     i where n <= 0: nothing is stored yet
        i, f = exp(i - m'), exp(min(log sigmoid(f) + m - m', 0))
        c' = f * c + i * tanh(z)
        n' = f * n + i
        h' = sigmoid(o) * c' / n'

    Args:
        x: `[B, 4*H]`, the gates' shares from the input, with the bias
        W_hh: `[4*H, H]`
    """
    h, c, n, m = state
    i, f, z, o = (x + linear(h * mask, W_hh)).chunk(4, dim=-1)
    kept = logsigmoid(f) + m
    m = torch.where(n <= 0, i, torch.where(kept <= i, i, kept))
    i, f = (i - m).exp(), torch.where(kept > m, 0, kept - m).exp()
    c = f * c + i * z.tanh()
    n = f * n + i
    return o.sigmoid() * c / n, c, n, m


@dataclass(frozen=True)
class Cell:
    """A row of `CELLS`: who judges a cell.

    Attributes:
        name: as the operators call it
        step: `step(x, state, *weights) -> state`, weights in the order of `fastrnn.cells`, None for those
            that the layer does not have
        layer, cell: the torch.nn classes of the layer and of the cell, None if torch.nn has none. fastrnn's
            have the same names.
        kwargs: what both classes need besides their sizes
    """

    name: str
    step: Callable[..., State]
    layer: type[torch.nn.RNNBase] | None = None
    cell: type[torch.nn.RNNCellBase] | None = None
    kwargs: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def in_torch(self) -> bool:
        """Whether torch.nn has the cell, so that it can be compared with."""
        return self.layer is not None

    @property
    def info(self) -> cells.CellInfo:
        return cells.CELLS[self.name]

    @property
    def gates(self) -> int:
        """`G`, the blocks of `H` rows in `W_ih`, `W_hh`, `b_ih` and `b_hh`."""
        return len(self.info.gates)

    @property
    def states(self) -> int:
        """How many tensors a step carries to the next, `h` first."""
        return len(self.info.states)

    @property
    def projection(self) -> bool:
        """Whether the layer takes `proj_size`, and the step a last argument `W_hr`."""
        return self.info.can_project


CELLS: Mapping[str, Cell] = MappingProxyType(
    {
        row.name: row
        for row in (
            Cell("lstm", lstm_step, torch.nn.LSTM, torch.nn.LSTMCell),
            Cell("gru", gru_step, torch.nn.GRU, torch.nn.GRUCell),
            *(
                Cell(
                    f"rnn_{name}",
                    partial(rnn_step, nonlinearity=name),
                    torch.nn.RNN,
                    torch.nn.RNNCell,
                    MappingProxyType({"nonlinearity": name}),
                )
                for name in ("tanh", "relu")
            ),
            *(Cell(f"rnn_{name}", partial(rnn_step, nonlinearity=name)) for name in ("sigmoid", "identity")),
            Cell("gru_reset_before", gru_reset_before_step),
            Cell("peephole_lstm", peephole_lstm_step),
            Cell("layer_norm_lstm", layer_norm_lstm_step),
            Cell("layer_norm_gru", layer_norm_gru_step),
            *(Cell(f"indrnn_{name}", partial(indrnn_step, nonlinearity=name)) for name in ("tanh", "relu")),
            Cell("ligru", ligru_step),
            Cell("slstm", slstm_step),
        )
    }
)


def weight_shapes(
    cell: str | Cell,
    I: int,
    H: int,
    *,
    P: int = 0,
    bias: bool = True,
    num_layers: int = 1,
    bidirectional: bool = False,
) -> list[tuple[int, ...]]:
    """Shapes of the flat list of weights, ordered as torch.nn's `_flat_weights`; `P = 0` is no projection."""
    info, D = (CELLS[cell] if isinstance(cell, str) else cell).info, 1 + bidirectional
    shapes: list[tuple[int, ...]] = []
    for layer in range(num_layers):
        inputs = I if layer == 0 else D * (P or H)
        shapes += [info.shape_of(p, inputs, H, P or H) for p in info.parameters_of(bias, bool(P))] * D
    return shapes


def sweep(
    step, x, state, weights, batch_sizes, reverse, resets=None, mask=None, kept=None
) -> tuple[Tensor, State]:
    """One layer in one direction.

    Args:
        step: `step(x_t, state_t) -> state_t+1`
        x: `[sum(batch_sizes), I]`, the sequences packed: all rows of time 0, then all of time 1 …
        state: tensors `[B, …]`
        weights: of this layer and direction, in the order the step takes them
        batch_sizes: rows at each time, `T` ints that never grow
        reverse: from the last time to the first
        resets: bool `[sum(batch_sizes)]`: between the time before and that of a marked row the state becomes
            zero, in both directions; None for nowhere
        mask: `[B, P]`, factors of the h that W_hh multiplies, or None
        kept: for each state `[sum(batch_sizes), H]`, zoneout's factors of the state before a step, or None:
            `kept * before + (1 - kept) * after` takes the place of the state after it

    Returns: `h` of every step `[sum(batch_sizes), P]` and the last state of every sequence, `[B, …]` each.
    """
    rows = x.split(batch_sizes)
    outputs: list[Tensor] = [x] * len(rows)
    times = range(len(rows) - 1, -1, -1) if reverse else range(len(rows))
    marks = [] if resets is None else resets.split(batch_sizes)
    for t in times:
        running = [s[: batch_sizes[t]] for s in state]  # the others have ended, or, in reverse, not begun
        later = t + 1 if reverse else t  # the later one of the two times that the state goes between
        if later < len(marks):
            mark, n = marks[later].unsqueeze(-1), batch_sizes[later]
            running = [torch.cat([s[:n].masked_fill(mark, 0), s[n:]]) for s in running]
        n = batch_sizes[t]
        stepped = step(rows[t], tuple(running), *weights, **({} if mask is None else {"mask": mask[:n]}))
        if kept is not None:
            factors = [k.split(batch_sizes)[t] for k in kept]
            each = zip(factors, running, stepped, strict=True)
            stepped = tuple(k * before + (1 - k) * after for k, before, after in each)
        state = tuple(torch.cat([new, s[batch_sizes[t] :]]) for new, s in zip(stepped, state, strict=True))
        outputs[t] = stepped[0]
    return torch.cat(outputs), state


def rnn(
    input: Tensor,
    hx: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    cell: str | Cell,
    *,
    bias: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    bidirectional: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | Sequence[int] | None = None,
    resets: Tensor | None = None,
    masks: Tensor | None = None,
    kept: Sequence[Sequence[Tensor]] | None = None,
) -> tuple[Tensor, ...]:
    """Whole sequences through `L` layers in `D` directions.

    Args:
        input: `[T, B, I]`, `[B, T, I]` with `batch_first`, `[T, I]` unbatched, or, with `batch_sizes`, the
            data of a PackedSequence `[sum(batch_sizes), I]`. For a cell without W_ih its last dimension holds
            the gates' shares, `D*G*H` of them, and `L` is 1.
        hx: one tensor a state, or None (or empty) for zeros. `h_0` `[L*D, B, P]`, and `c_0` `[L*D, B, H]` for
            an LSTM; `[L*D, P]` and `[L*D, H]` unbatched. For packed input its rows are in the packed order.
        weights: for each layer, for each direction: `W_ih` `[G*H, I]` (`[G*H, D*P]` above the first layer),
            `W_hh` `[G*H, P]`, with `bias` `b_ih` and `b_hh` `[G*H]`, with a projection `W_hr` `[P, H]`
        cell: a name in `CELLS`, or a row of that form
        bias: whether `weights` has biases
        num_layers: `L`
        dropout: chance of an element between two layers to be zeroed (a layer in eval mode passes 0). Masks
            are drawn as torch.nn draws them, from the global generator.
        bidirectional: `D = 2`, otherwise 1
        batch_first: form of `input` and of the output (not of the states)
        batch_sizes: of a PackedSequence, `[T]`
        resets: bool, the size of `input` without its last dimension: where it is set, the state of the
            sequence is zero before this step, and in the reverse direction after it
        masks: `[L*D, B, P]`, factors of the h that W_hh multiplies
        kept: of each layer and direction for each state, see `sweep`; rows are packed

    Returns: `(output, h_n)`, and `c_n` for an LSTM. `output` has the form of `input` with a last size of
    `D*P`, states have the form of `hx`.
    """
    row = CELLS[cell] if isinstance(cell, str) else cell
    D = 1 + bidirectional
    each = len(weights) // (num_layers * D)
    forms = [row.info.parameters_of(bias, projected) for projected in (False, row.projection)]
    parameters = next((form for form in forms if len(form) * num_layers * D == len(weights)), None)
    if parameters is None:
        has = "a projection" if row.projection else "no projection"
        raise ValueError(
            f"weights: {len(weights)} tensors for L={num_layers}, D={D}, bias={bias}; {row.name} has {has}"
        )

    # Every form of input becomes packed rows.
    unbatched = batch_sizes is None and input.dim() == 2
    if batch_sizes is not None:
        sizes = [int(n) for n in batch_sizes]
        B, x = sizes[0], input
    else:
        time_major = input.unsqueeze(1) if unbatched else input.transpose(0, 1) if batch_first else input
        T, B = time_major.shape[:2]
        sizes, x = [B] * T, time_major.flatten(0, 1)
        if resets is not None:
            resets = (resets.T if batch_first and not unbatched else resets).flatten()

    P, H = row.info.sizes_of(weights)
    if hx is None or len(hx) == 0:
        hx = tuple(input.new_zeros(num_layers * D, B, size) for size in (P, *[H] * (row.states - 1)))
    elif unbatched:
        hx = tuple(s.unsqueeze(1) for s in hx)

    last: list[State] = []
    for layer in range(num_layers):
        outputs = []
        for direction in range(D):
            k = layer * D + direction
            given = iter(weights[k * each : (k + 1) * each])
            ws = [next(given) if p in parameters else None for p in row.info.parameters]
            of_direction = x if row.info.has("input_matrix") else x.chunk(D, -1)[direction]
            output, state = sweep(
                row.step,
                of_direction,
                tuple(s[k] for s in hx),
                ws,
                sizes,
                direction == 1,
                resets,
                None if masks is None else masks[k],
                None if kept is None else kept[k],
            )
            outputs.append(output)
            last.append(state)
        x = torch.cat(outputs, dim=-1)
        if dropout and layer < num_layers - 1:
            x = drop(x, dropout, training=True)

    if batch_sizes is None:
        x = x.unflatten(0, (len(sizes), B))
        x = x.squeeze(1) if unbatched else x.transpose(0, 1) if batch_first else x
    states = [torch.stack(s) for s in zip(*last, strict=True)]
    return x, *(s.squeeze(1) if unbatched else s for s in states)
