"""The problems that are timed, as data: shapes, modes, and the work in each problem."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from itertools import product
from pydoc_data.topics import topics
from typing import NamedTuple

import torch

from fastrnn import reference

CELLS = {name: row for name, row in reference.CELLS.items() if row.in_torch}  # see variants.py for others
DEFAULT_CELLS = tuple(name for name in CELLS if name != "rnn_relu")  # it runs the same kernels as rnn_tanh


class NotSupported(NotImplementedError):
    """A peer cannot do a problem."""


class Shape(NamedTuple):
    T: int
    B: int
    I: int
    H: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        T, B, I, H = (int(size) for size in text.split(","))
        if min(T, B, I, H) < 1:
            raise ValueError(text)
        return cls(T, B, I, H)

    def __str__(self) -> str:
        return ",".join(map(str, self))


def shapes(*texts: str) -> tuple[Shape, ...]:
    return tuple(map(Shape.parse, texts))


GRID = shapes(
    "100,1,64,64",
    "100,1,256,256",
    "100,1,512,512",
    "100,16,128,128",
    "100,32,32,32",
    "28,64,28,150",
    "100,64,256,256",
    "50,64,512,512",
    "100,16,1024,1024",
)
QUICK = shapes("100,1,64,64", "100,1,256,256", "28,64,28,150")
TWO = shapes("100,1,256,256", "100,64,256,256")
ONE = shapes("100,16,128,128")
DTYPE_SHAPES = shapes("100,1,256,256", "100,16,128,128", "50,64,512,512")
MEMORY = shapes("100,1,256,256", "100,64,256,256", "100,16,1024,1024", "1000,64,256,256")
CONTENTION = shapes("100,1,64,64", "100,1,256,256", "100,16,128,128", "100,64,256,256")


@dataclass(frozen=True)
class Mode:
    """A row of MODES: it says which problems the mode has.

    Attributes:
        shapes, quick: the shapes of the full run, and of the quick one
        seconds: how long the full run times a problem, all peers together
        training: forward only (False), forward and backward (True), or both, as two problems
        modules: "layer" times torch.nn.LSTM, "cell" torch.nn.LSTMCell
        packed: sequences have the lengths of sentences, see `sentence_lengths`
        threads: takes the number of threads of the run, and gives the numbers to time
        device: the device that the mode is for
        cells: the cells that the mode has (default: all)
        graphs: on a GPU, plain calls (False), replays of a CUDA graph (True), or both
        goals: for the speedup over torch.nn of the forward and of training, geometric mean
    """

    shapes: tuple[Shape, ...]
    quick: tuple[Shape, ...]
    seconds: float = 3.0
    training: tuple[bool, ...] = (False, True)
    modules: tuple[str, ...] = ("layer",)
    dtype: str = "float32"
    layers: int = 1
    directions: int = 1
    packed: bool = False
    threads: Callable[[int], Iterable[int]] = lambda chosen: (chosen,)
    device: str = "cpu"
    cells: tuple[str, ...] | None = None
    graphs: tuple[bool, ...] = (False,)
    goals: tuple[float, float] | None = None


def torch_dtype(name: str) -> torch.dtype:
    return torch.float32 if name == "tf32" else getattr(torch, name)


def cores() -> int:
    return len(os.sched_getaffinity(0))


def scaling(vary: Callable[[int], Shape], sizes: tuple[int, ...], quick: tuple[int, ...] = ()) -> Mode:
    """A mode that varies one size, with one thread and with all."""
    return Mode(
        tuple(map(vary, sizes)),
        tuple(map(vary, quick)),
        seconds=2.0,
        training=(False,),
        threads=lambda chosen: sorted({1, chosen}),
    )


MODES = {
    "forward": Mode(GRID, QUICK, seconds=8.0, training=(False,)),
    "training": Mode(GRID, QUICK, seconds=9.0, training=(True,)),
    "streaming": Mode(
        shapes("1,1,64,64", "1,1,256,256"),
        shapes("1,1,64,64"),
        modules=("layer", "cell"),
    ),
    # The cost of a call that computes almost nothing.
    "call": Mode(shapes("1,1,1,1"), (), seconds=2.0, modules=("layer", "cell")),
    "packed": Mode((*ONE, TWO[1]), ONE, packed=True),
    "bidirectional": Mode(TWO, TWO[:1], directions=2),
    "2-layer": Mode(TWO, ONE, layers=2),
    "bfloat16": Mode((*DTYPE_SHAPES, GRID[2]), ONE, dtype="bfloat16"),
    "float64": Mode(DTYPE_SHAPES, ONE, dtype="float64"),
    "scaling-T": scaling(lambda T: Shape(T, 16, 128, 128), (50, 100, 200, 400, 800), quick=(50, 100)),
    "scaling-B": scaling(lambda B: Shape(100, B, 128, 128), (1, 4, 16, 64, 256)),
    "scaling-H": scaling(lambda H: Shape(100, 16, H, H), (32, 64, 128, 256, 512)),
    "scaling-H-B1": scaling(lambda H: Shape(100, 1, H, H), (64, 128, 256, 512)),
    "oversubscribed": Mode(
        CONTENTION, ONE, seconds=2.0, training=(False,), threads=lambda chosen: (cores(), 2 * cores())
    ),
}

EAGER_AND_GRAPH = (False, True)


def regime(dtype: str, sizes: str, goals: tuple[float, float] | None, cells=("lstm",), **fields) -> Mode:
    """A mode on a GPU: sequences of 512 steps; `sizes` are B,H pairs, and I = H."""
    pairs = [map(int, pair.split(",")) for pair in sizes.split()]
    own = tuple(Shape(512, B, H, H) for B, H in pairs)
    return Mode(own, own[:1], seconds=0.35, dtype=dtype, device="cuda", cells=cells, goals=goals, **fields)


# The regimes in which cuDNN is strong, those in which it is weak, and the goals for each.
MODES |= {
    "bf16-small-batch": regime(
        "bfloat16", "1,256 16,256 16,512 1,1024 16,1024", (5, 4), graphs=EAGER_AND_GRAPH
    ),
    "tf32-small-batch": regime("tf32", "1,256 16,512 16,1024", (5, 4), graphs=EAGER_AND_GRAPH),
    "rnn-small-batch": regime("bfloat16", "1,512 16,512 16,1024", (5, 4), cells=("rnn_tanh",)),
    "bf16-B64": regime("bfloat16", "64,256 64,512", (4, 3)),
    "tf32-B64": regime("tf32", "64,256 64,512", (4, 3)),
    "bf16-B64-H1024": regime("bfloat16", "64,1024", (2, 1.8)),
    "tf32-B64-H1024": regime("tf32", "64,1024", (2, 1.8)),
    # The sizes that cuDNN's PERSIST_STATIC supports: H a multiple of 128, B of 8.
    "fp16": regime("float16", "8,256 16,768 64,512 64,1024 128,1024", (1.6, 1.4)),
    "small-H": regime("bfloat16", "1,64 16,128", (1.2, 1.2), cells=DEFAULT_CELLS, graphs=EAGER_AND_GRAPH),
    "middle-H": regime("bfloat16", "32,160 64,192", (5, 3), cells=("lstm", "gru")),
    "gru": regime("bfloat16", "1,256 16,512 64,256 64,1024", (4, 3), cells=("gru",)),
    "packed-bf16": regime("bfloat16", "16,256 64,512 64,1024", (4, 3), cells=("lstm", "gru"), packed=True),
    "fp32-small-batch": regime("float32", "1,256 16,256 16,512 16,1024", (3, 2.5)),
    "fp32-B256": regime("float32", "256,256 256,1024", (1.1, 1.05)),
    "bf16-large": regime("bfloat16", "256,1024 256,2048", (1.25, 1.15)),
    "bidirectional-bf16": regime("bfloat16", "16,256 64,512", None, directions=2),
}


def modes_of(device: str) -> list[str]:
    return [name for name, mode in MODES.items() if mode.device == device]


@dataclass(frozen=True)
class Problem:
    """One thing to time, once for each peer. It is plain data that JSON can hold."""

    mode: str
    cell: str
    shape: Shape
    training: bool = False
    module: str = "layer"
    dtype: str = "float32"
    layers: int = 1
    directions: int = 1
    lengths: tuple[int, ...] | None = None  # of the sequences in a packed batch, longest first
    threads: int = 1
    device: str = "cpu"
    graph: bool = False  # replay a CUDA graph

    @classmethod
    def from_json(cls, given: dict) -> Problem:
        lengths = given.get("lengths")
        return cls(**{**given, "shape": Shape(*given["shape"]), "lengths": lengths and tuple(lengths)})

    def to_json(self) -> dict:
        """The fields that differ from their defaults."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return {**given, "shape": list(self.shape)}

    @property
    def group(self) -> str:
        """The mode, and forward or training if the mode has both."""
        passes = "training" if self.training else "forward"
        group = f"{self.mode} {passes}" if len(MODES[self.mode].training) > 1 else self.mode
        return f"{group} graph" if self.graph else group

    @property
    def cell_name(self) -> str:
        return self.cell if self.module == "layer" else f"{self.cell} cell"

    @property
    def name(self) -> str:
        return f"{self.group}-{self.cell_name}-{self.shape}-{self.threads} threads".replace(" ", "-")

    @property
    def torch_dtype(self) -> torch.dtype:
        return torch_dtype(self.dtype)

    @property
    def gates(self) -> int:
        return CELLS[self.cell].gates

    @property
    def steps(self) -> int:
        return max(self.lengths) if self.lengths else self.shape.T

    @property
    def rows(self) -> int:
        """The number of steps of all sequences together."""
        return sum(self.lengths) if self.lengths else self.shape.T * self.shape.B

    @property
    def flops(self) -> int:
        """Operations of all matrix products. Training has three products for each one of the forward."""
        sizes = sum(self.input_sizes) + self.layers * self.shape.H
        passes = 3 if self.training else 1
        return passes * 2 * self.rows * self.directions * self.gates * self.shape.H * sizes

    @property
    def activations(self) -> int:
        """Activations of the forward: one for each gate, and tanh(c). The backward computes some of them
        again.
        """
        cell = CELLS[self.cell]
        each = cell.gates + cell.states - 1
        return self.rows * self.directions * self.layers * self.shape.H * each

    @property
    def recurrent_bytes(self) -> int:
        """The size of W_hh of all directions."""
        H = self.shape.H
        return self.directions * self.gates * H * H * self.torch_dtype.itemsize

    @property
    def input_sizes(self) -> list[int]:
        """The input size of each layer."""
        return [self.shape.I, *[self.directions * self.shape.H] * (self.layers - 1)]


def sentence_lengths(B: int, longest: int) -> tuple[int, ...]:
    """The numbers of words of B English sentences, longest first, at most `longest`.

    The sentences are a random sample, with a fixed seed, from the language reference that is part of every
    Python.
    """
    sentences = re.split(r"(?<=[.!?])\s+", " ".join(topics.values()))
    words = [len(sentence.split()) for sentence in random.Random(0).choices(sentences, k=B)]
    return tuple(sorted((max(1, min(longest, n)) for n in words), reverse=True))


def select(
    cells: Iterable[str], chosen: Iterable[Shape] | None, modes: Iterable[str], quick: bool, **given
) -> list[Problem]:
    """The problems of `modes`. The shapes `chosen` replace the modes' own.

    The mode "streaming" takes the chosen shapes with T = 1. The mode "call" keeps its own. `given` has the
    threads and the device of all problems.
    """
    problems = {}  # the keys are the problems, in order, each once
    for name in modes:
        mode = MODES[name]
        own_cells = [cell for cell in cells if mode.cells is None or cell in mode.cells]
        own = mode.quick if quick else mode.shapes
        if chosen is not None and name != "call":
            own = [s._replace(T=1) if name == "streaming" else s for s in chosen]
        threads = mode.threads(given["threads"])
        for shape, training, cell, module, n, graph in product(
            own, mode.training, own_cells, mode.modules, threads, mode.graphs
        ):
            problem = Problem(
                mode=name,
                cell=cell,
                shape=shape,
                training=training,
                module=module,
                dtype=mode.dtype,
                layers=mode.layers,
                directions=mode.directions,
                lengths=sentence_lengths(shape.B, shape.T) if mode.packed else None,
                threads=n,
                device=given["device"],
                graph=graph,
            )
            problems[problem] = None
    return list(problems)
