"""Time the other paths of fastrnn's layers: derivatives, transforms, lengths.

Each path takes turns with a base, such as the fused training step, and with the usual way to do the same,
such as a loop. The results are times relative to the base.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastrnn

from .__main__ import describe_machine, shape, threads
from .peers import make_module
from .problems import CELLS, DEFAULT_CELLS, Problem, Shape, sentence_lengths, shapes
from .report import print_report, write_report
from .timing import Call, interleave, quietest_third

SHAPES = shapes("100,1,64,64", "50,16,64,128", "50,64,256,256")
SECONDS, MIN_ROUNDS = 1.0, 3
MODELS = 8  # in an ensemble


class Subject:
    """A layer, its input, and a loss."""

    def __init__(self, cell: str, sizes: Shape):
        T, B, I, H = sizes
        torch.manual_seed(0)
        self.new_layer = lambda: make_module(fastrnn, Problem("training", cell, sizes))
        self.layer = self.new_layer()
        self.weights = list(self.layer.parameters())
        self.detached = {name: weight.detach() for name, weight in self.layer.named_parameters()}
        self.x = torch.randn(T, B, I)
        self.samples = self.x.transpose(0, 1).unsqueeze(2)  # [B, T, 1, I]
        self.row, self.lengths = CELLS[cell], torch.tensor(sentence_lengths(B, T))

    def train(self, output: Callable, *more: torch.Tensor, **options) -> Call:
        """A training step that computes the gradients of `output()`."""
        return lambda: torch.autograd.grad(
            output().square().sum(), [*self.weights, *more], materialize_grads=True, **options
        )

    @property
    def step(self) -> Call:
        return self.train(lambda: self.layer(self.x)[0])

    def loss(self, weights, x):
        return functional_call(self.layer, weights, (x,))[0].square().sum()


def gradients(s: Subject) -> dict[str, Call]:
    return {"training step": s.step, "torch.func.grad": lambda: grad(s.loss)(s.detached, s.x)}


def per_sample(s: Subject) -> dict[str, Call]:
    one = grad(s.loss)
    return {
        "training step": s.step,
        "vmap(grad)": lambda: vmap(one, (None, 0))(s.detached, s.samples),
        "loop of grad": lambda: [one(s.detached, sample) for sample in s.samples],
    }


def over_inputs(s: Subject) -> dict[str, Call]:
    return {
        "forward": lambda: s.layer(s.x),
        "vmap over inputs": lambda: vmap(s.layer)(s.samples),
        "loop over inputs": lambda: [s.layer(sample) for sample in s.samples],
    }


def over_weights(s: Subject) -> dict[str, Call]:
    models = [s.new_layer() for _ in range(MODELS)]
    stacked = {name: weight.detach() for name, weight in stack_module_state(models)[0].items()}
    run = vmap(lambda weights: functional_call(s.layer, weights, (s.x,)))
    loop = lambda: [model(s.x) for model in models]  # noqa: E731
    return {"loop": loop, f"vmap over {MODELS} models": lambda: run(stacked)}


def forward_mode(s: Subject) -> dict[str, Call]:
    return {
        "forward": lambda: s.layer(s.x),
        "jvp": lambda: jvp(lambda x: s.layer(x)[0], (s.x,), (s.x,)),
    }


def differentiable_gradient(s: Subject) -> dict[str, Call]:
    output = lambda: s.layer(s.x)[0]  # noqa: E731
    return {"training step": s.step, "create_graph=True": s.train(output, create_graph=True)}


def gradient_penalty(s: Subject) -> dict[str, Call]:
    def step():
        x = s.x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(s.layer(x)[0].square().sum(), x, create_graph=True)
        torch.autograd.grad(gradient.square().sum(), s.weights)

    return {"training step": s.step, "gradient penalty": step}


def recomputed_gates(s: Subject) -> dict[str, Call]:
    other = s.new_layer()
    other.checkpoint_gates = True
    weights = list(other.parameters())
    return {
        "training step": s.step,
        "checkpoint_gates": lambda: torch.autograd.grad(other(s.x)[0].square().sum(), weights),
    }


def with_lengths(s: Subject) -> dict[str, Call]:
    def packed():
        packed = pack_padded_sequence(s.x, s.lengths)
        return pad_packed_sequence(s.layer(packed)[0], total_length=len(s.x))[0]

    return {
        "PackedSequence": s.train(packed),
        "lengths": s.train(lambda: s.layer(s.x, lengths=s.lengths)[0]),
    }


def all_states(s: Subject) -> dict[str, Call]:
    I, H = s.layer.input_size, s.layer.hidden_size
    cell = getattr(fastrnn, s.row.cell.__name__)(I, H, **s.row.kwargs)
    cell.load_state_dict({name.removesuffix("_l0"): weight for name, weight in s.detached.items()})
    weights = list(cell.parameters())

    def loop():
        state, outputs = None, []
        for x in s.x:
            state = cell(x, state)
            outputs.append(state[-1] if isinstance(state, tuple) else state)
        torch.autograd.grad(torch.stack(outputs).square().sum(), weights)

    def states():
        last = s.layer(s.x, return_all_states=True)[2]
        return last[-1] if isinstance(last, tuple) else last

    return {"training step": s.step, "return_all_states": s.train(states), "loop of cells": loop}


# For each path, the function that makes its calls, and whether they need gradients. The first call is the
# base.
PATHS = [
    (gradients, True),
    (per_sample, True),
    (over_inputs, False),
    (over_weights, False),
    (forward_mode, False),
    (differentiable_gradient, True),
    (gradient_penalty, True),
    (recomputed_gates, True),
    (with_lengths, True),
    (all_states, True),
]


def measure(make_calls: Callable, with_gradients: bool, cell: str, sizes: Shape) -> dict:
    with torch.set_grad_enabled(with_gradients):
        calls = make_calls(Subject(cell, sizes))
        samples = interleave(calls, torch.cpu.synchronize, SECONDS, MIN_ROUNDS)
    seconds = {name: quietest_third(times) for name, times in samples.items()}
    return {"cell": cell, "shape": list(sizes), "seconds": seconds}


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paths", description=__doc__)
    add = parser.add_argument
    add("--cells", nargs="+", choices=CELLS, default=DEFAULT_CELLS, metavar="CELL", help=", ".join(CELLS))
    add("--shapes", nargs="+", type=shape, default=SHAPES, metavar="T,B,I,H")
    add(
        "--threads",
        type=threads,
        default=torch.get_num_threads(),
        help="number of threads (default: %(default)s)",
    )
    add("--json", type=Path, default=Path("out/paths.json"), help="results; the report goes beside them")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    problems = [(*path, cell, sizes) for path in PATHS for sizes in args.shapes for cell in args.cells]
    console = Console()
    machine = {"python_version": platform.python_version(), **describe_machine(args.threads)}
    measured = [measure(*problem) for problem in track(problems, console=console)]
    data = {"machine_info": machine, "paths": measured}
    args.json.write_text(json.dumps(data, indent=1) + "\n")
    print_report(data, console)
    for written in (args.json, *write_report([data], args.json)):
        console.print(written)


if __name__ == "__main__":
    main()
