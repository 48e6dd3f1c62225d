"""Who is timed, and what one call of each is."""

from __future__ import annotations

from collections.abc import Callable

import torch

import fastrnn
from fastrnn.reference import CELLS

from .problems import Problem

# torch.nn stands there twice: its ratio to itself shows what noise does to the others.
PEERS = {"torch.nn": torch.nn, "fastrnn": fastrnn, "torch.nn again": torch.nn}


def make_calls(problem: Problem) -> dict[str, Callable[[], object]]:
    """One function for each peer, with the same weights and input, once they are seen to compute the same."""
    T, B, I, H = problem.shape
    row = CELLS[problem.cell]
    reference_class = row.layer if problem.module == "layer" else row.cell
    torch.manual_seed(0)
    reference = reference_class(I, H, **row.kwargs)
    training = problem.mode == "training"
    x = torch.randn(*((T, B, I) if problem.module == "layer" else (B, I)), requires_grad=training)
    state = streaming_state(problem) if T == 1 else None
    expected = first(reference(x, state)).detach()

    calls = {}
    for name, library in PEERS.items():
        module = getattr(library, reference_class.__name__)(I, H, **row.kwargs)
        module.load_state_dict(reference.state_dict())
        # A fast wrong answer is not worth timing. Rounding differs, hence the tolerance.
        torch.testing.assert_close(first(module(x, state)), expected, rtol=1e-4, atol=1e-4)
        calls[name] = training_call(module, x, state) if training else (lambda m=module: m(x, state))
    return calls


def streaming_state(problem: Problem):
    """The state that a stream carries from one call to the next."""
    B, H = problem.shape.B, problem.shape.H
    size = (1, B, H) if problem.module == "layer" else (B, H)
    state = tuple(torch.randn(size) for _ in range(CELLS[problem.cell].states))
    return state if len(state) > 1 else state[0]


def first(result) -> torch.Tensor:
    """The output of a layer, or h of a step."""
    return result[0] if isinstance(result, tuple) else result


def training_call(module, x, state) -> Callable[[], None]:
    """Forward and backward, to the gradients of the weights and of the input."""
    leaves = [x, *module.parameters()]
    gradient = torch.randn_like(first(module(x, state)))

    def call():
        for leaf in leaves:
            leaf.grad = None
        first(module(x, state)).backward(gradient)

    return call
