"""What torch.utils.flop_counter.FlopCounterMode counts for the operators of fastrnn.

It counts floating-point operations of matrix products only: 2*m*n*k for `[m, k] @ [k, n]`. These are the
products of torch.nn's layers on the CPU, so that both libraries give the same number. Few programs import
torch's counter, and it imports Triton if that is installed. So the formulas are registered when a program
imports it.
"""

from math import prod

import torch
from torch._subclasses.fake_tensor import FakeTensor

from ..cells import CELLS
from ..late import when_imported

_MATRICES = "input_matrix", "state_matrix", "projection"


def kinds_of(cell, each) -> list[str]:
    """The kinds of the `each` weights that a direction has."""
    info, options = CELLS[cell], (False, True)
    forms = [info.parameters_of(bias, projected) for bias in options for projected in options]
    return [p.kind for p in next(form for form in forms if len(form) == each)]


def count_forward(x, batch_sizes, hx, weights, cell, bidirectional, *rest, **kwargs) -> int:
    """Operations of a forward: every row (a step of a sequence) is multiplied by every matrix once."""
    kinds = kinds_of(cell, len(weights) // (1 + bidirectional)) * (1 + bidirectional)
    sizes = (w.numel() for w, kind in zip(weights, kinds, strict=True) if kind in _MATRICES)
    return 2 * prod(x.shape[:-1]) * sum(sizes)


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

    kinds = kinds_of(cell, each)
    products = 0
    for d in range(1 + bidirectional):
        own = wants_weights[d * each : (d + 1) * each]
        matrices = {
            kind: (w.numel(), wants)
            for w, kind, wants in zip(weights[d * each : (d + 1) * each], kinds, own, strict=True)
        }
        if not (wants_x or wants_hx or any(own)):
            continue
        first, last = reversed(ends) if d else ends
        if "input_matrix" in matrices:
            size, wants = matrices["input_matrix"]
            products += size * rows * (wants + wants_x)
        if "state_matrix" in matrices:
            size, wants = matrices["state_matrix"]
            products += size * (rows * wants + rows - (0 if wants_h_0 else first))
        if "projection" in matrices:
            size, wants = matrices["projection"]
            # The last h' may be unused. What the first step projects may depend on nothing wanted.
            used = rows if any(grad is not None for grad in grads[:-1]) else rows - last
            varies = wants_x or wants_hx or any(own[:-1])
            products += size * (used * wants + max(used - (0 if varies else first), 0))
    return 2 * products


def count_frozen(
    x,
    batch_sizes,
    hx,
    packed,
    cell,
    dtype,
    weights,
    I,
    H,
    proj_size,
    num_layers,
    bidirectional,
    *rest,
    **kwargs,
) -> int:
    """Operations of a stack of frozen layers."""
    info, D, P = CELLS[cell], 1 + bidirectional, proj_size or H
    GH = len(info.gates) * H
    inputs = [I, *[D * P] * (num_layers - 1)] if info.has("input_matrix") else [0]
    state = info.has("state_matrix") * GH * P + H * proj_size
    return 2 * prod(x.shape[:-1]) * D * sum(GH * width + state for width in inputs)


def count_frozen_step(x, hx, packed, cell, dtype, weights, I, H, **kwargs) -> int:
    """Operations of a step of a frozen cell."""
    return count_frozen(x, None, hx, packed, cell, dtype, weights, I, H, 0, 1, False)


def count_frozen_product(x, packed, weights, output_size, **kwargs) -> int:
    """Operations of a product with a frozen matrix."""
    return 2 * prod(x.shape) * output_size


def register() -> None:
    """Register the formulas. The operators fastrnn::rnn and fastrnn::cell are composed of these operators."""
    from torch.utils.flop_counter import register_flop_formula

    operators = torch.ops.fastrnn
    register_flop_formula([operators.layer, operators.layer_forward], get_raw=True)(count_forward)
    register_flop_formula(operators.layer_backward, get_raw=True)(count_backward)
    register_flop_formula(operators.frozen_rnn, get_raw=True)(count_frozen)
    register_flop_formula(operators.frozen_cell, get_raw=True)(count_frozen_step)
    register_flop_formula(operators.frozen_product, get_raw=True)(count_frozen_product)


when_imported("torch.utils.flop_counter", register)
