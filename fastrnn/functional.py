r"""Recurrent layers and cells as functions of tensors.

`lstm`, `gru` and `rnn` run a stack of layers over a whole sequence, `lstm_cell`, `gru_cell` and `rnn_cell`
do one step. The modules of fastrnn call the same code. The equations are PyTorch's, which its documentation
gives with torch.nn.LSTM, GRU and RNN; W @ x is written for a column x, sigma is the logistic sigmoid, * is
elementwise.

Sizes: T time, B batch, I input, H hidden, P projected hidden (H without a projection), L layers,
D directions.

Every tensor of a call has one dtype, float32, float64, bfloat16 or float16, which the CPU computes in
float32, and one device, the CPU or a CUDA device; only the batch sizes of a PackedSequence stay on the CPU,
and `lengths` may be anywhere. Outputs have that dtype. In a region of torch.autocast dtypes other than
float64 may be mixed: all are cast to its dtype. Strides are free. Gradients flow to the input, the states and
the weights. Complex and sparse tensors are computed with torch's own operations where torch.nn takes them,
but without `lengths`, `return_all_states` and `resets` of several steps.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import has_torch_function, is_tensor_like

from . import _C
from .cells import CELLS
from .export import nodes
from .plain import OPERATORS, is_foreign
from .sequences import (
    Options,
    form_of,
    in_graph,
    read_lengths,
    read_resets,
    run_layers,
    split_resets,
    unwrap,
)
from .signatures import (
    GRUOptions,
    LayerOptions,
    Lengths,
    Pair,
    Resets,
    RNNOptions,
    TensorOrPacked,
    TensorOrPackedT,
    Zoneout,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["KindError", "gru", "gru_cell", "lstm", "lstm_cell", "rnn", "rnn_cell"]

_is_tracing = getattr(torch._C, "_is_tracing", torch.jit.is_tracing)  # the same thing, several times as quick


class KindError(TypeError, AttributeError, IndexError, RuntimeError, ValueError):
    """An argument is of the wrong kind, say a Tensor where a tuple of two is wanted.

    torch.nn checks no kinds: what it raises depends on the shapes and may be any of these; being all of them,
    this is caught wherever torch.nn's exception was.
    """


@overload
def lstm(
    input: TensorOrPackedT,
    hx: Pair | None,
    weights: Sequence[Tensor],
    *,
    return_all_states: Literal[False] = False,
    **options: "Unpack[LayerOptions]",
) -> tuple[TensorOrPackedT, Pair]: ...
@overload
def lstm(
    input: TensorOrPackedT,
    hx: Pair | None,
    weights: Sequence[Tensor],
    *,
    return_all_states: Literal[True],
    **options: "Unpack[LayerOptions]",
) -> tuple[TensorOrPackedT, Pair, tuple[TensorOrPackedT, TensorOrPackedT]]: ...
@overload
def lstm(
    input: TensorOrPackedT,
    hx: Pair | None,
    weights: Sequence[Tensor],
    *,
    return_all_states: bool,
    **options: "Unpack[LayerOptions]",
) -> tuple[TensorOrPackedT, Pair] | tuple[TensorOrPackedT, Pair, tuple[TensorOrPackedT, TensorOrPackedT]]: ...
def lstm(
    input: TensorOrPacked,
    hx: Pair | None,
    weights: Sequence[Tensor],
    *,
    bias: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    lengths: Lengths = None,
    return_all_states: bool = False,
    checkpoint_gates: bool = False,
    resets: Resets = None,
    recurrent_dropout: float = 0.0,
    zoneout: Zoneout = 0.0,
) -> tuple[TensorOrPacked, Pair] | tuple[TensorOrPacked, Pair, tuple[TensorOrPacked, TensorOrPacked]]:
    r"""Long short-term memory over a sequence. In each layer and direction, for every step::

        i  = sigma(W_ii @ x + b_ii + W_hi @ h + b_hi)
        f  = sigma(W_if @ x + b_if + W_hf @ h + b_hf)
        g  = tanh (W_ig @ x + b_ig + W_hg @ h + b_hg)
        o  = sigma(W_io @ x + b_io + W_ho @ h + b_ho)
        c' = f * c + i * g
        h' = o * tanh(c')                  with a projection: h' = W_hr @ (o * tanh(c'))

    (torch.nn.LSTM; the projection is Sak et al. 2014, https://arxiv.org/abs/1402.1128.) A layer above the
    first reads the h' of the layer below, both directions side by side.

    Args:
        input: `[T, B, I]`, or `[B, T, I]` with `batch_first`; `[T, I]` for one sequence without a batch; or a
            PackedSequence with data `[sum of lengths, I]`, sorted or not.
        hx: `(h_0, c_0)` of shapes `[L*D, B, P]` and `[L*D, B, H]`, without B for an unbatched input; None
            for zeros. Layer by layer, the forward direction before the reverse one. For a PackedSequence, B
            is in the order of the sequences before packing.
        weights: flat, for each layer, for each direction: `W_ih, W_hh`, with `bias` then `b_ih, b_hh`, with a
            projection then `W_hr`. Rows of the gates are stacked in the order i, f, g, o. `W_ih` is
            `[4*H, I]` in the first layer and `[4*H, D*P]` above, `W_hh` `[4*H, P]`, `b_ih` and `b_hh`
            `[4*H]`, `W_hr` `[P, H]`.
        bias: whether `weights` has biases.
        num_layers: L.
        dropout: probability of zeroing an element of what goes from one layer to the next, when `training`.
        training: whether dropout is active.
        bidirectional: D = 2, with weights for the reverse direction, else D = 1.
        batch_first: whether `input` and `output` have the batch before the time; states never do, unbatched
            and packed input ignore it.
        lengths: how many steps each sequence of a padded `input` has, `[B]`: a list or a tensor of integers
            from 0 to T, in any order, on any device. What stands past a length is not read. Results are those
            of the same sequences packed, to the bit: `output` is zero past a length, the last states are
            those of each sequence at its own end, and those of a sequence of length 0 are its initial ones.
            Lengths are needed on the CPU: on a GPU they cost a synchronization, and are the only one. In a
            compiled, exported or traced graph one has to be larger than 0, and a list is part of the graph.
        return_all_states: return the states of every step, of all layers, as well.
        checkpoint_gates: keep for the backward only what a layer is given, and run its forward again there.
            Saves most of the memory of training, gives the same bits, and costs the time of the forward.
        resets: where sequences begin anew: a bool tensor `[T, B]`, `[B, T]` with `batch_first`, `[T]` without
            a batch; for a PackedSequence `[sum of lengths]` in the order of its data, or packed as `input`
            is. Before a step where it is set, the state of the sequence is zero, in every layer, and no
            gradient crosses. So the resets part a sequence into segments: the first one begins from `hx`,
            unless step 0 has a reset, the others from zeros, and the last state is that of the last segment.
            The reverse direction runs through the same segments: the last one begins from `hx`, the others
            from zeros, and its last state is that of the first segment; a reset of step 0 does not change
            it. Resets past the `lengths` are not read. TorchScript takes none, and ONNX none of several
            steps. On a GPU, resets of several steps cost a synchronization, and segments run as the sequences
            of a packed batch, so dropout and recurrent_dropout draw masks for each segment.
        recurrent_dropout: probability of zeroing, when `training`, a unit of the h that W_hh multiplies; the
            others are multiplied by 1 / (1 - recurrent_dropout). The units are drawn once for each sequence,
            layer and direction (Gal and Ghahramani 2016, https://arxiv.org/abs/1512.05287; Keras's
            argument of the same name, but its LSTM and GRU draw a mask for each gate). All else sees h as it
            is.
        zoneout: probability of a unit to keep the state that it had before a step (Krueger et al. 2017,
            https://arxiv.org/abs/1606.01305): when `training` at random, else in expectation,
            `p * h + (1 - p) * h'`. One for all states, or one for each, `(p_h, p_c)`. Not with a projection.
            Both draw from torch's generator, and nothing of the size of the sequences is kept for them.

    Returns:
        `output, (h_n, c_n)`: the h' of the last layer, in the form of `input` with last size `D*P`, and the
        last states, shaped and ordered as in `hx`. With `return_all_states` `output, (h_n, c_n), (h, c)`: h
        `[L*D, T, B, P]` and c `[L*D, T, B, H]` hold what each step ends with, so that `(h[:, t], c[:, t])` is
        an `hx`. They are `[L*D, B, T, …]` with `batch_first`, `[L*D, T, …]` without a batch, zero past the
        `lengths`, and PackedSequences of data `[sum of lengths, L*D, …]` for a PackedSequence. c is computed
        from h, one more product and T small operations, and differs from `c_n` by rounding.

    Raises:
        ValueError: an `input` that is not packed has not 2 or 3 dimensions, or its dtype is not that of the
            weights.
        RuntimeError: any other size or dtype that does not fit, or a count of weights that does not; a length
            out of range; `lengths` with an unbatched or packed input; torch.vmap maps on a GPU over `resets`
            of several steps.
        TypeError: `lengths` are not integers, or `resets` no bool tensor.
        NotImplementedError: `resets` of several steps are exported to ONNX.
        KindError: `input` or `hx` is something else than stated above. It is caught by any `except` that
            catches what torch.nn raises then.
    """
    noise = recurrent_dropout, read_zoneout(zoneout, "lstm")
    options = Options(
        "lstm", bias, num_layers, dropout, training, bidirectional, batch_first, checkpoint_gates, *noise
    )
    return run_sequence(input, hx, weights, options, lengths, return_all_states, resets)


@overload
def gru(
    input: TensorOrPackedT,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    return_all_states: Literal[False] = False,
    **options: "Unpack[GRUOptions]",
) -> tuple[TensorOrPackedT, Tensor]: ...
@overload
def gru(
    input: TensorOrPackedT,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    return_all_states: Literal[True],
    **options: "Unpack[GRUOptions]",
) -> tuple[TensorOrPackedT, Tensor, TensorOrPackedT]: ...
@overload
def gru(
    input: TensorOrPackedT,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    return_all_states: bool,
    **options: "Unpack[GRUOptions]",
) -> tuple[TensorOrPackedT, Tensor] | tuple[TensorOrPackedT, Tensor, TensorOrPackedT]: ...
def gru(
    input: TensorOrPacked,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    reset_after: bool = True,
    bias: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    lengths: Lengths = None,
    return_all_states: bool = False,
    checkpoint_gates: bool = False,
    resets: Resets = None,
    recurrent_dropout: float = 0.0,
    zoneout: Zoneout = 0.0,
) -> tuple[TensorOrPacked, Tensor] | tuple[TensorOrPacked, Tensor, TensorOrPacked]:
    r"""Gated recurrent units over a sequence. In each layer and direction, for every step::

        r  = sigma(W_ir @ x + b_ir + W_hr @ h + b_hr)
        z  = sigma(W_iz @ x + b_iz + W_hz @ h + b_hz)
        n  = tanh (W_in @ x + b_in + r * (W_hn @ h + b_hn))
        n  = tanh (W_in @ x + b_in + W_hn @ (r * h) + b_hn)      with reset_after=False
        h' = (1 - z) * n + z * h

    (torch.nn.GRU; with reset_after=False Cho et al. 2014, https://arxiv.org/abs/1406.1078.) A layer above the
    first reads the h' of the layer below, both directions side by side.

    Args:
        input: `[T, B, I]`, or `[B, T, I]` with `batch_first`; `[T, I]` for one sequence without a batch; or a
            PackedSequence with data `[sum of lengths, I]`, sorted or not.
        hx: `h_0` of shape `[L*D, B, H]`, `[L*D, H]` for an unbatched input; None for zeros. Layer by layer,
            the forward direction before the reverse one. For a PackedSequence, B is in the order of the
            sequences before packing.
        weights: flat, for each layer, for each direction: `W_ih, W_hh`, with `bias` then `b_ih, b_hh`. Rows
            of the gates are stacked in the order r, z, n. `W_ih` is `[3*H, I]` in the first layer and
            `[3*H, D*H]` above, `W_hh` `[3*H, H]`, `b_ih` and `b_hh` `[3*H]`.
        reset_after: whether r acts after the product with W_hn, as in torch.nn, or before it, as in Keras
            with `reset_after=False` and in ONNX with `linear_before_reset=0`.
        bias, num_layers, dropout, training, bidirectional, batch_first, lengths, return_all_states,
            checkpoint_gates, resets, recurrent_dropout, zoneout: as for `lstm`.

    Returns:
        `output, h_n`: the h' of the last layer, in the form of `input` with last size `D*H`, and the last
        state, shaped and ordered as `hx`. With `return_all_states` `output, h_n, h`, the last as for `lstm`.

    Raises:
        ValueError, RuntimeError, TypeError, KindError: as `lstm`.
    """
    cell = name_gru(reset_after)
    noise = recurrent_dropout, read_zoneout(zoneout, cell)
    options = Options(
        cell, bias, num_layers, dropout, training, bidirectional, batch_first, checkpoint_gates, *noise
    )
    return run_sequence(input, hx, weights, options, lengths, return_all_states, resets)


@overload
def rnn(
    input: TensorOrPackedT,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    return_all_states: Literal[False] = False,
    **options: "Unpack[RNNOptions]",
) -> tuple[TensorOrPackedT, Tensor]: ...
@overload
def rnn(
    input: TensorOrPackedT,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    return_all_states: Literal[True],
    **options: "Unpack[RNNOptions]",
) -> tuple[TensorOrPackedT, Tensor, TensorOrPackedT]: ...
@overload
def rnn(
    input: TensorOrPackedT,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    return_all_states: bool,
    **options: "Unpack[RNNOptions]",
) -> tuple[TensorOrPackedT, Tensor] | tuple[TensorOrPackedT, Tensor, TensorOrPackedT]: ...
def rnn(
    input: TensorOrPacked,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    nonlinearity: str = "tanh",
    bias: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    lengths: Lengths = None,
    return_all_states: bool = False,
    checkpoint_gates: bool = False,
    resets: Resets = None,
    recurrent_dropout: float = 0.0,
    zoneout: Zoneout = 0.0,
) -> tuple[TensorOrPacked, Tensor] | tuple[TensorOrPacked, Tensor, TensorOrPacked]:
    r"""Elman's recurrent network over a sequence. In each layer and direction, for every step::

        h' = tanh(W_ih @ x + b_ih + W_hh @ h + b_hh)          or relu, sigmoid or the identity

    (torch.nn.RNN, which has tanh and relu.) A layer above the first reads the h' of the layer below, both
    directions side by side.

    Args:
        input: `[T, B, I]`, or `[B, T, I]` with `batch_first`; `[T, I]` for one sequence without a batch; or a
            PackedSequence with data `[sum of lengths, I]`, sorted or not.
        hx: `h_0` of shape `[L*D, B, H]`, `[L*D, H]` for an unbatched input; None for zeros. Layer by layer,
            the forward direction before the reverse one. For a PackedSequence, B is in the order of the
            sequences before packing.
        weights: flat, for each layer, for each direction: `W_ih, W_hh`, with `bias` then `b_ih, b_hh`.
            `W_ih` is `[H, I]` in the first layer and `[H, D*H]` above, `W_hh` `[H, H]`, `b_ih` and `b_hh`
            `[H]`.
        nonlinearity: "tanh", "relu", "sigmoid" or "identity".
        bias, num_layers, dropout, training, bidirectional, batch_first, lengths, return_all_states,
            checkpoint_gates, resets, recurrent_dropout, zoneout: as for `lstm`.

    Returns:
        `output, h_n`: the h' of the last layer, in the form of `input` with last size `D*H`, and the last
        state, shaped and ordered as `hx`. With `return_all_states` `output, h_n, h`, the last as for `lstm`.

    Raises:
        ValueError: `nonlinearity` is none of these; and as `lstm`.
        RuntimeError, TypeError, KindError: as `lstm`.
    """
    cell = name_rnn(nonlinearity, ValueError)
    noise = recurrent_dropout, read_zoneout(zoneout, cell)
    options = Options(
        cell, bias, num_layers, dropout, training, bidirectional, batch_first, checkpoint_gates, *noise
    )
    return run_sequence(input, hx, weights, options, lengths, return_all_states, resets)


def lstm_cell(
    input: Tensor,
    hx: Pair | None,
    W_ih: Tensor,
    W_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    resets: Tensor | None = None,
) -> Pair:
    r"""One step of `lstm`, with its equations.

    Args:
        input: `[B, I]`, or `[I]` without a batch.
        hx: `(h, c)`, each `[B, H]`, or `[H]` without a batch; None for zeros.
        W_ih, W_hh: `[4*H, I]` and `[4*H, H]`, rows in the order i, f, g, o.
        b_ih, b_hh: `[4*H]`, or None for zeros.
        resets: bool `[B]`, or `[]` without a batch: where it is set, the state before the step is zero.

    Returns:
        `(h', c')`, each shaped as in `hx`.

    Raises:
        ValueError: `input` or a state has not 1 or 2 dimensions.
        RuntimeError: any other size or dtype that does not fit.
        TypeError: `resets` are no bool tensor.
        KindError: `input` or `hx` is something else than stated above. It is caught by any `except` that
            catches what torch.nn raises then.
    """
    return run_step("lstm", input, hx, W_ih, W_hh, b_ih, b_hh, resets)


def gru_cell(
    input: Tensor,
    hx: Tensor | None,
    W_ih: Tensor,
    W_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    reset_after: bool = True,
    resets: Tensor | None = None,
) -> Tensor:
    r"""One step of `gru`, with its equations.

    Args:
        input: `[B, I]`, or `[I]` without a batch.
        hx: `h`, `[B, H]`, or `[H]` without a batch; None for zeros.
        W_ih, W_hh: `[3*H, I]` and `[3*H, H]`, rows in the order r, z, n.
        b_ih, b_hh: `[3*H]`, or None for zeros.
        reset_after: as for `gru`.
        resets: as for `lstm_cell`.

    Returns:
        `h'`, shaped as `h`.

    Raises:
        ValueError, RuntimeError, TypeError, KindError: as `lstm_cell`.
    """
    return run_step(name_gru(reset_after), input, hx, W_ih, W_hh, b_ih, b_hh, resets)


def rnn_cell(
    input: Tensor,
    hx: Tensor | None,
    W_ih: Tensor,
    W_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
    resets: Tensor | None = None,
) -> Tensor:
    r"""One step of `rnn`, with its equation.

    Args:
        input: `[B, I]`, or `[I]` without a batch.
        hx: `h`, `[B, H]`, or `[H]` without a batch; None for zeros.
        W_ih, W_hh: `[H, I]` and `[H, H]`.
        b_ih, b_hh: `[H]`, or None for zeros.
        nonlinearity: as for `rnn`.
        resets: as for `lstm_cell`.

    Returns:
        `h'`, shaped as `h`.

    Raises:
        ValueError: `nonlinearity` is none of these; and as `lstm_cell`.
        RuntimeError, TypeError, KindError: as `lstm_cell`.
    """
    return run_step(name_rnn(nonlinearity, ValueError), input, hx, W_ih, W_hh, b_ih, b_hh, resets)


# ---- what the functions above and the modules share ----


def run_sequence(
    input, hx, weights, options: Options, lengths=None, return_all_states=False, resets=None, stack=None
):
    """The operator fastrnn::rnn in torch.nn's calling convention: hx None, a state or a tuple; packed input.

    stack: how a layer whose cell has no W_ih runs its stack, `stack(x, batch_sizes, states, weights, options,
        return_all_states)`, which returns what run_layers returns

    Kinds are checked here, every shape and dtype in the operator.
    """
    states = _list_states(options.cell, hx)
    if resets is not None:
        return _run_with_resets(input, states, weights, options, lengths, return_all_states, resets, stack)
    if lengths is not None or return_all_states or stack is not None:
        return _run_with_more(input, states, weights, options, lengths, return_all_states, stack)
    if isinstance(input, Tensor) or is_tensor_like(input):
        output, *states = _run(input, None, states, weights, options)
        return output, _join_states(states)
    if not isinstance(input, PackedSequence):
        raise KindError(f"{options.cell}: input: expected Tensor or PackedSequence, got {_kind(input)}")

    x, batch_sizes, order, restored = input
    if torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling():
        _refuse_packing(batch_sizes)
    is_lstm = CELLS[options.cell].layer == "LSTM"
    if is_lstm and x.dtype != weights[0].dtype and not torch._C._is_any_autocast_enabled():
        # torch.nn.LSTM leaves this to its matrix product; for all else it is a ValueError, as here
        raise RuntimeError(
            f"mat1 and mat2 must have the same dtype: input has {x.dtype}, the weights {weights[0].dtype}"
        )
    if order is not None:
        _check_storage(options.cell, states)
        states = [state.index_select(1, order) for state in states]
    output, *states = _run(x, batch_sizes, states, weights, options._replace(batch_first=False))
    if restored is not None:
        states = [state.index_select(1, restored) for state in states]
    return PackedSequence(output, batch_sizes, order, restored), _join_states(states)


def _run(x, batch_sizes, states, weights, options):
    """The operator fastrnn::rnn, or torch's operations for tensors that it does not take."""
    try:
        return _operator("rnn", x, states, weights)(x, batch_sizes, states, weights, *options)
    except NotImplementedError:
        if not is_foreign((x, *states, *weights)):
            raise
        return OPERATORS["rnn"](x, batch_sizes, states, weights, *options)


def _run_with_resets(input, states, weights, options, lengths, return_all_states, resets, stack):
    """run_sequence with `resets`. On the CPU the kernels take them; on a GPU, and for the states of every
    step, those of later steps than the first make segments."""
    packed = isinstance(input, PackedSequence)
    x = input.data if packed else input
    is_sequence = packed or is_tensor_like(x) and (x.dim() == 3 or x.dim() == 2 and lengths is None)
    if not is_sequence or packed and lengths is not None:  # which is an error of any call
        return run_in_form(input, states, weights, options, lengths)
    resets = read_resets(resets, x.shape[: 1 if packed else -1])

    batch_first, batch_sizes = options.batch_first and x.dim() == 3, input.batch_sizes if packed else None
    time = int(batch_first)
    if not (packed or torch.jit.is_tracing()) and lengths is None and resets.shape[time] == 1:
        first = resets.select(time, 0)
    elif x.device.type == "cpu" and not return_all_states:
        return _run_with_marks(input, states, weights, options, lengths, resets, stack)
    elif in_graph():
        return run_in_form(input, states, weights, options, lengths, return_all_states, resets, stack)
    else:
        resets = unwrap("resets", resets).to("cpu")
        if lengths is not None:
            lengths = read_lengths(lengths, *(x.shape[:2] if batch_first else x.shape[1::-1]))
        first, is_later = split_resets(resets, lengths, batch_sizes, batch_first)
        if is_later:
            return run_in_form(input, states, weights, options, lengths, return_all_states, resets, stack)
        if packed and input.unsorted_indices is not None:
            first = first[input.unsorted_indices.to("cpu")]
    if states and options.bidirectional:
        first = torch.stack([first, torch.zeros_like(first)]).repeat(options.num_layers, *[1] * first.dim())
    states = [_begin_anew(state, first) for state in states]
    given = _join_states(states) if states else None
    return run_sequence(input, given, weights, options, lengths, return_all_states, stack=stack)


def _run_with_marks(input, states, weights, options, lengths, resets, stack):
    """run_sequence with `resets` that the operator takes."""
    if _is_exporting_to_onnx():
        raise NotImplementedError(nodes.NO_RESETS)
    resets = resets.to("cpu")
    if lengths is not None or stack is not None:
        return run_in_form(input, states, weights, options, lengths, resets=resets, stack=stack)
    _refuse_each_sample("resets", weights)
    options = options._replace(resets=resets)
    return run_sequence(input, _join_states(states) if states else None, weights, options)


def _begin_anew(state, resets):
    """A state with zeros where `resets` are set, which have the sizes before its last one."""
    if not torch.jit.is_tracing() and state.shape[:-1][-resets.dim() :] != resets.shape and resets.dim():
        return state  # of another size than the input, which the operator refuses
    return state.masked_fill(resets.to(state.device).unsqueeze(-1), 0)


def _run_with_more(input, states, weights, options, lengths, return_all_states, stack):
    """run_sequence with `lengths`, `return_all_states` or `stack`."""
    if lengths is not None and stack is None and _is_exporting_to_onnx():
        if return_all_states and torch.jit.is_tracing():
            raise NotImplementedError(
                "return_all_states: with lengths it can be exported to ONNX by dynamo=True only"
            )
        if not return_all_states:
            lengths = torch.as_tensor(lengths)
            if torch.jit.is_tracing():
                results = torch.ops.fastrnn.rnn_with_lengths(input, lengths, states, weights, *options[:7])
            else:
                results = nodes.rnn(input, None, states, weights, *options, lengths=lengths)
            output, *states = results
            return output, _join_states(states)
    return run_in_form(input, states, weights, options, lengths, return_all_states, stack=stack)


def run_in_form(input, states, weights, options, lengths, return_all_states=False, resets=None, stack=None):
    """run_sequence with `lengths`, `return_all_states`, `resets` or `stack`. All of them take time-major
    sequences, or packed rows."""
    packed = isinstance(input, PackedSequence)
    if not packed and not is_tensor_like(input):
        raise KindError(f"{options.cell}: input: expected Tensor or PackedSequence, got {_kind(input)}")
    if not packed and input.dim() not in (2, 3):  # the operator says so
        return _run(input, None, states, weights, options)
    if lengths is not None and (packed or input.dim() != 3):
        kind = "a PackedSequence, which has its own" if packed else f"{input.dim()} dimensions"
        raise RuntimeError(f"lengths: expected a padded input of 3 dimensions with them, got {kind}")
    for name, option in (("lengths", lengths), ("resets", resets)):
        if option is not None:
            _refuse_each_sample(name, weights)

    device = (input.data if packed else input).device.type
    makes_segments = resets is not None and (return_all_states or device != "cpu")
    form = form_of(input, lengths, resets if makes_segments else None, options)
    if resets is not None and not makes_segments:
        options = options._replace(resets=form.take_resets(resets))
    sizes = _state_sizes(form, weights, options)
    if not (lengths is None and resets is None) and not states and in_graph():
        # The operator would take their number from batch_sizes, where a graph does not see that it is that
        # of the form's sequences.
        states = [input.new_zeros(size) for size in sizes]
    if not torch.jit.is_tracing() and not (packed and in_graph()):  # which keep no check, or do not know B
        _check_sizes(options.cell, states, sizes)
    if form.order is not None:
        _check_storage(options.cell, states)
    given, options = states, options._replace(batch_first=False)
    states = [form.take(state) for state in states]
    if stack is not None:
        (y, *last), every = stack(form.x, form.batch_sizes, states, weights, options, return_all_states)
    elif return_all_states:
        (y, *last), every = run_layers(form.x, form.batch_sizes, states, weights, options)
    else:
        y, *last = _operator("rnn", form.x, states, weights)(
            form.x, form.batch_sizes, states, weights, *options
        )
        every = []
    given = given or [None] * len(last)
    last = [form.give_state(state, initial) for state, initial in zip(last, given, strict=True)]
    result = form.give(y), _join_states(last)
    return (*result, _join_states([form.give_every(s) for s in every])) if return_all_states else result


def _refuse_each_sample(name, weights):
    """Refuse ExpandedWeights, whose gradients of each sample would be in the order of the rows."""
    if any(hasattr(weight, "orig_weight") for weight in weights):
        hint = "; a PackedSequence is taken" if name == "lengths" else ""
        raise RuntimeError(f"{name}: expected None for gradients of each sample{hint}")


def _state_sizes(form, weights, options):
    """The size of each state, as it is given."""
    info = CELLS[options.cell]
    P, H = info.sizes_of(weights)
    LD = options.num_layers * (1 + options.bidirectional)
    return [form.state_size(LD, width) for width in (P, *[H] * (len(info.states) - 1))]


def _check_sizes(cell, states, sizes):
    """Refuse states of another size, in torch.nn's words, as the operator does."""
    for k, (state, size) in enumerate(zip(states, sizes, strict=False)):
        if tuple(state.shape) != size:
            index = f"[{k}]" if len(states) > 1 else ""
            name = CELLS[cell].states[k]
            raise RuntimeError(f"Expected hidden{index} size {size}, got {list(state.shape)} for {name}_0")


def run_step(cell, input, hx, W_ih, W_hh, b_ih, b_hh, resets=None):
    """The operator fastrnn::cell in torch.nn's calling convention."""
    if not (isinstance(input, Tensor) or is_tensor_like(input)):
        raise KindError(f"{cell}: input: expected Tensor, got {_kind(input)}")
    weights = [W_ih, W_hh]
    if b_ih is not None or b_hh is not None:  # the operator takes both or none
        weights.append(torch.zeros_like(b_hh) if b_ih is None else b_ih)
        weights.append(torch.zeros_like(b_ih) if b_hh is None else b_hh)
    states = _list_states(cell, hx)
    if resets is not None:
        resets = read_resets(resets, input.shape[:-1])
        states = [_begin_anew(s, resets) for s in states]
    try:
        states = _operator("cell", input, states, weights)(input, states, weights, cell)
    except NotImplementedError:
        if not is_foreign((input, *states, *weights)):
            raise
        states = OPERATORS["cell"](input, states, weights, cell)
    return _join_states(states)


def _operator(name, input, hx, weights):
    """The operator fastrnn::`name`, to be called with these tensors.

    Both calls go through torch's dispatcher. That of `_C` is quicker by more than a small step takes; that of
    torch.ops is seen by what records Python's calls (Dynamo) or overrides them (__torch_function__).
    """
    is_compiling = torch.compiler.is_compiling()
    if (is_compiling or _is_tracing()) and is_foreign((input, *hx, *weights)):
        return OPERATORS[name]  # an error of the operator could not be caught: a graph has it then
    if is_compiling and nodes.is_exporting():
        return getattr(nodes, name)
    if is_compiling or has_torch_function((input, *hx, *weights)):
        return getattr(torch.ops.fastrnn, name).default
    return getattr(_C, name)


def _check_storage(cell, states):
    """Refuse states whose storage was given back, before torch gathers their rows from what is not there."""
    if not in_graph():
        for k, state in enumerate(states):
            if isinstance(state, Tensor):
                _C.check_storage(state, CELLS[cell].states[k], "_0")


def _refuse_packing(batch_sizes):
    """Refuse what torch.export records of pack_padded_sequence, with sizes that are wrong or not known."""
    from torch.fx.experimental.symbolic_shapes import has_free_unbacked_symbols

    if has_free_unbacked_symbols(batch_sizes):
        raise NotImplementedError(
            "PackedSequence: torch.export cannot pack sequences, give the layer lengths= instead"
        )


def _is_exporting_to_onnx():
    """Whether torch.onnx.export records this call; it imports torch.onnx only where that may be."""
    return (torch.jit.is_tracing() or torch.compiler.is_exporting()) and torch.onnx.is_in_onnx_export()


# Elman RNNs by their nonlinearity
_RNNS = {info.nonlinearity: name for name, info in CELLS.items() if info.layer == "RNN"}


def name_rnn(nonlinearity, error):
    """The cell of an Elman RNN; for an unknown nonlinearity raises `error`."""
    if nonlinearity not in _RNNS:
        raise error(f"nonlinearity: expected {' or '.join(map(repr, _RNNS))}, got {nonlinearity!r}")
    return _RNNS[nonlinearity]


def name_gru(reset_after):
    """The cell of a GRU."""
    return "gru" if reset_after else "gru_reset_before"


def read_zoneout(zoneout, cell):
    """`zoneout` as the operator takes it: one probability for each state, or none if all are 0.

    Raises ValueError for another number of them, or what is no probability.
    """
    if not zoneout:
        return ()
    names = CELLS[cell].states
    each = (zoneout,) * len(names) if isinstance(zoneout, (int, float)) else tuple(zoneout)
    if len(each) != len(names) or not all(0 <= p <= 1 for p in each):
        raise ValueError(
            f"zoneout: expected a probability, or one for each state ({', '.join(names)}), got {zoneout}"
        )
    return tuple(map(float, each)) if any(each) else ()


def _list_states(cell, hx):
    """hx as the operators take it: one tensor a state, none for zeros."""
    if hx is None:
        return []
    names = CELLS[cell].states
    if len(names) == 1:
        if isinstance(hx, Tensor) or is_tensor_like(hx):
            return [hx]
        expected = "Tensor"
    else:
        if isinstance(hx, (tuple, list)) and len(hx) == len(names):
            for state in hx:
                if not isinstance(state, Tensor) and not is_tensor_like(state):
                    break
            else:
                return hx
        expected = f"tuple ({', '.join(names)}) of {len(names)} Tensors"
    raise KindError(f"{cell}: hx: expected {expected}, got {_kind(hx)}")


def _join_states(states):
    """The inverse: one state as a tensor, more as a tuple."""
    return states[0] if len(states) == 1 else tuple(states)


def _kind(value):
    """What an argument is, for an error message."""
    if isinstance(value, Tensor):
        return f"Tensor of shape {list(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} of ({', '.join(type(item).__name__ for item in value)})"
    return type(value).__name__
