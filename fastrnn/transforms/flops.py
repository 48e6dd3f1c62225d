"""What torch.utils.flop_counter.FlopCounterMode counts for the operators of fastrnn.

It counts floating-point operations of matrix products only: 2*m*n*k for `[m, k] @ [k, n]`. These are the
products of torch.nn's layers on the CPU, so that both libraries give the same number. Few programs import
torch's counter, and it imports Triton if that is installed. So the formulas are registered when a program
imports it.
"""

from math import prod

import torch
from torch._subclasses.fake_tensor import FakeTensor

from ..late import when_imported


def count_forward(x, batch_sizes, hx, weights, *rest, **kwargs) -> int:
    """Operations of a forward: every row (a step of a sequence) is multiplied by every matrix once."""
    return 2 * prod(x.shape[:-1]) * sum(w.numel() for w in weights if w.dim() == 2)


def count_backward(
    grads, x, batch_sizes, hx, weights, cell, bidirectional, batch_first, saved, wanted, **kwargs
) -> int:
    """Operations of a backward. A product of the forward has one for each of its two factors, if the gradient
    of that factor is wanted."""
    rows = prod(x.shape[:-1])
    each = len(weights) // (1 + bidirectional)
    wants_x, wants_hx, wants_weights = wanted[0], wanted[1 : 1 + len(hx)], wanted[1 + len(hx) :]
    wants_h_0, wants_hx = any(wants_hx[:1]), any(wants_hx)
    # Rows of the first step in time and of the last one. Fake tensors have no numbers: then all lengths
    # count as equal.
    if batch_sizes is not None:
        B = hx[0].shape[1]
        ends = B, B if isinstance(x, FakeTensor) else int(batch_sizes[-1])
    elif x.dim() == 2:
        ends = rows, rows
    else:
        ends = (x.shape[0 if batch_first else 1],) * 2

    products = 0
    for d in range(1 + bidirectional):
        own = wants_weights[d * each : (d + 1) * each]
        W_ih, W_hh, *others = weights[d * each : (d + 1) * each]
        if not (wants_x or wants_hx or any(own)):
            continue
        first, last = reversed(ends) if d else ends
        products += W_ih.numel() * rows * (own[0] + wants_x)
        products += W_hh.numel() * (rows * own[1] + rows - (0 if wants_h_0 else first))
        if each % 2:  # a projection
            # The last h' may be unused. What the first step projects may depend on nothing wanted.
            used = rows if any(grad is not None for grad in grads[:-1]) else rows - last
            varies = wants_x or wants_hx or any(own[:-1])
            products += others[-1].numel() * (used * own[-1] + max(used - (0 if varies else first), 0))
    return 2 * products


def register() -> None:
    """Register the formulas. The operators fastrnn::rnn and fastrnn::cell are composed of these operators."""
    from torch.utils.flop_counter import register_flop_formula

    operators = torch.ops.fastrnn
    register_flop_formula([operators.layer, operators.layer_forward], get_raw=True)(count_forward)
    register_flop_formula(operators.layer_backward, get_raw=True)(count_backward)


when_imported("torch.utils.flop_counter", register)
