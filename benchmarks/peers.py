"""The libraries that are timed, and how to call each."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn

from . import cuda, onnx_peer
from .problems import CELLS, NotSupported, Problem
from .timing import Call

TORCH = "torch.nn"
AGAIN = "torch.nn again"
FASTRNN = "fastrnn"
ONNXRUNTIME = "onnxruntime"
COMPILED = "torch.compile"

# The results of peers may differ by so much, relative to the norm. Single elements can differ by more:
# rounding can change the sign of a relu's sum, and then its derivative jumps.
TOLERANCE = {"float32": 5e-3, "float64": 1e-6, "bfloat16": 5e-2, "float16": 2e-2, "tf32": 2e-2}
COMPILED_STEPS = 28  # torch.compile unrolls the loop, so that many steps take long to compile


@dataclass(frozen=True)
class Setup:
    """What all peers receive: a problem, a module of torch.nn with the weights, and its arguments."""

    problem: Problem
    module: torch.nn.Module
    leaf: torch.Tensor  # gets the gradient of the input
    x: torch.Tensor | PackedSequence
    hx: torch.Tensor | tuple[torch.Tensor, ...] | None

    @classmethod
    def of(cls, problem: Problem) -> Setup:
        T, B, I, H = problem.shape
        torch.manual_seed(0)
        factory = {"dtype": problem.torch_dtype, "device": problem.device}
        leaf = torch.randn(*((T, B, I) if problem.module == "layer" else (B, I)), **factory)
        x = leaf
        if problem.lengths:
            packed = pack_padded_sequence(leaf, torch.tensor(problem.lengths))
            x = PackedSequence(leaf := packed.data, packed.batch_sizes)
        leaf.requires_grad_(problem.training)
        return cls(problem, make_module(torch.nn, problem), leaf, x, streaming_state(problem, factory))

    def timed(self, forward: Call, parameters) -> Call:
        """`forward`, or for training, `forward` and the backward, with the gradients of weights and input."""
        if not self.problem.training:
            return forward
        leaves = [self.leaf, *parameters]
        torch.manual_seed(1)  # so that all peers get the same gradient
        size = (*self.leaf.shape[:-1], self.problem.directions * self.problem.shape.H)
        gradient = torch.randn(size, dtype=self.leaf.dtype, device=self.leaf.device)

        def call() -> torch.Tensor:
            for leaf in leaves:
                leaf.grad = None
            output(forward()).backward(gradient)
            return self.leaf.grad

        return call


def make_module(library, problem: Problem) -> torch.nn.Module:
    row = CELLS[problem.cell]
    kwargs = {**row.kwargs, "dtype": problem.torch_dtype, "device": problem.device}
    if problem.module == "layer":
        kwargs |= {"num_layers": problem.layers, "bidirectional": problem.directions == 2}
    name = (row.layer if problem.module == "layer" else row.cell).__name__
    return getattr(library, name)(problem.shape.I, problem.shape.H, **kwargs)


def streaming_state(problem: Problem, factory):
    """The state that a stream passes from one call to the next. Whole sequences have none."""
    T, B, _, H = problem.shape
    if T > 1:
        return None
    size = (problem.layers * problem.directions, B, H) if problem.module == "layer" else (B, H)
    state = tuple(torch.randn(size, **factory) for _ in range(CELLS[problem.cell].states))
    return state if len(state) > 1 else state[0]


def output(result) -> torch.Tensor:
    """The output of a layer, or h of a cell, as one tensor. For packed sequences it is their data."""
    if isinstance(result, tuple):
        result = result[0]
    return result.data if isinstance(result, PackedSequence) else result


def comparable(problem: Problem, result) -> torch.Tensor:
    """`output` in the form that torch.nn gives it."""
    tensor = output(result)
    if tensor.dim() == 4:  # [T, B, D, H] of onnxruntime, padded
        tensor = tensor.flatten(2)
        if problem.lengths:
            tensor = pack_padded_sequence(tensor, torch.tensor(problem.lengths)).data
    return tensor.detach().clone()


def module_call(library, setup: Setup) -> Call:
    module = make_module(library, setup.problem)
    module.load_state_dict(setup.module.state_dict())
    module.train(setup.problem.training)
    return setup.timed(lambda: module(setup.x, setup.hx), module.parameters())


def compiled_call(setup: Setup) -> Call:
    """A compiled loop over the steps, in plain torch."""
    problem = setup.problem
    if problem.module != "layer":
        raise NotSupported("only layers are timed")
    if problem.lengths or problem.layers * problem.directions > 1:
        raise NotSupported("only one layer and one direction, with sequences of one length, are timed")
    if problem.shape.T > COMPILED_STEPS:
        raise NotSupported(f"more than {COMPILED_STEPS} steps take too long to compile")
    step = CELLS[problem.cell].step

    def loop(x, state, weights):
        outputs = []
        for x_t in x:
            state = step(x_t, state, *weights)
            outputs.append(state[0])
        return torch.stack(outputs), state

    torch._dynamo.reset()  # each problem is compiled for its own sizes
    compiled = torch.compile(loop, dynamic=False, fullgraph=True)
    hx = setup.hx
    if hx is None:
        zeros = torch.zeros(
            problem.shape.B, problem.shape.H, dtype=problem.torch_dtype, device=problem.device
        )
        state = (zeros,) * CELLS[problem.cell].states
    else:
        state = tuple(s[0] for s in (hx if isinstance(hx, tuple) else (hx,)))
    weights = [w.detach().requires_grad_(problem.training) for w in setup.module.parameters()]
    return setup.timed(lambda: compiled(setup.x, state, weights), weights)


def onnxruntime_call(setup: Setup) -> Call:
    problem = setup.problem
    if problem.training:
        raise NotSupported("inference only")
    if problem.module != "layer":
        raise NotSupported("has no operator for a single step")
    if problem.dtype != "float32":
        raise NotSupported(f"has no {problem.dtype} kernels on the CPU")
    if problem.device != "cpu":
        raise NotSupported(f"is timed only on the CPU, not on {problem.device}")
    return onnx_peer.make_call(problem, setup.module, setup.x, setup.hx)


# torch.nn is the first: the results of all others must agree with its. It is timed twice: the ratio to
# itself, A/A, shows how much noise there is.
PEERS = {
    TORCH: partial(module_call, torch.nn),
    ONNXRUNTIME: onnxruntime_call,
    COMPILED: compiled_call,
    FASTRNN: partial(module_call, fastrnn),
    AGAIN: partial(module_call, torch.nn),
}


def find_missing(quick: bool, device: str = "cpu") -> dict[str, str]:
    """The peers that cannot run here at all, with the reasons."""
    if device != "cpu":
        return dict.fromkeys((ONNXRUNTIME, COMPILED), "is timed only on the CPU")
    missing = {}
    if onnx_peer.MISSING:
        missing[ONNXRUNTIME] = onnx_peer.MISSING
    if quick:
        missing[COMPILED] = "left out by --quick, because it takes long to compile"
    else:
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # more would compete with the peers
        try:
            torch.compile(lambda x: x + 1)(torch.zeros(1))
        except Exception as error:  # a missing or broken compiler can raise anything
            missing[COMPILED] = str(error).strip().splitlines()[0]
    return missing


def make_calls(problem: Problem, missing: dict[str, str]) -> tuple[dict[str, Call], dict[str, str]]:
    """One call for each peer, with the same weights and input. Their results are compared first.

    Returns: the calls, and the reasons why other peers do not support the problem or compute a wrong result.

    Raises:
        RuntimeError: the result of fastrnn differs from torch.nn's.
    """
    setup = Setup.of(problem)
    calls, refusals, expected = {}, {}, None
    with torch.set_grad_enabled(problem.training):
        for name, make in PEERS.items():
            if name in missing:
                continue
            try:
                call = make(setup)
                if problem.graph:
                    call = cuda.captured(call)
                result = comparable(problem, call())
            except NotImplementedError as error:
                refusals[name] = str(error).splitlines()[0]
                continue
            expected = result if expected is None else expected
            error = ((result - expected).norm() / expected.norm()).item()
            if not error <= TOLERANCE[problem.dtype]:  # true for NaN, too
                reason = f"differs from {TORCH} by {error:.1e} in {problem.name}"
                if name == FASTRNN:
                    raise RuntimeError(f"{name} {reason}")
                refusals[name] = reason
                continue
            calls[name] = call
    return calls, refusals
