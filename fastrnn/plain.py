"""The operators in torch's own operations, for tensors that torch.nn's modules take and kernels do not."""

from collections.abc import Callable

import torch
from torch import Tensor

from .reference import CELLS, rnn
from .sequences import Options

__all__ = ["OPERATORS", "is_foreign"]


def is_foreign(tensors):
    """Whether one of them is complex or not strided, say sparse."""
    return any(t.is_complex() or t.layout is not torch.strided for t in tensors)


def _shapes(tensors):
    """What the operators check the sizes of: torch's operations would broadcast."""
    return [torch.empty(t.shape, device="meta") for t in tensors]


def _row_of(cell):
    if cell not in CELLS:  # one of build_cell
        raise NotImplementedError(f"{cell}: expected no complex or sparse tensors for a cell of your own")
    return CELLS[cell]


def _cell(input, states, weights, cell):
    torch.ops.fastrnn.cell(*_shapes([input]), _shapes(states), _shapes(weights), cell)
    if input.dim() == 1:
        states = _cell(input.unsqueeze(0), [s.unsqueeze(0) for s in states], weights, cell)
        return [s.squeeze(0) for s in states]
    row = _row_of(cell)
    if not states:
        H = row.info.sizes_of(weights)[1]
        zeros = torch.zeros(input.shape[0], H, dtype=input.dtype, device=input.device)
        states = [zeros] * row.states
    return row.step(input, states, *weights)


def _rnn(x, batch_sizes, states, weights, *options):
    torch.ops.fastrnn.rnn(*_shapes([x]), batch_sizes, _shapes(states), _shapes(weights), *options)
    o = Options(*options)
    if o.zoneout or o.training and o.recurrent_dropout:
        raise NotImplementedError("recurrent_dropout, zoneout: expected none for complex and sparse tensors")
    return rnn(
        x,
        states,
        weights,
        _row_of(o.cell),
        bias=o.bias,
        num_layers=o.num_layers,
        dropout=o.dropout if o.training else 0.0,
        bidirectional=o.bidirectional,
        batch_first=o.batch_first,
        batch_sizes=batch_sizes,
        resets=o.resets,
    )


OPERATORS: dict[str, Callable[..., list[Tensor]]] = {"cell": _cell, "rnn": _rnn}
