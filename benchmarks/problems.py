"""What is timed, as data: the cells, shapes and modes, and the work in each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from fastrnn.reference import CELLS


class Shape(NamedTuple):
    T: int
    B: int
    I: int
    H: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        sizes = [int(size) for size in text.split(",")]
        if len(sizes) != 4 or min(sizes) < 1:
            raise ValueError(f"{text}: expected four positive sizes T,B,I,H")
        return cls(*sizes)

    def __str__(self) -> str:
        return ",".join(map(str, self))


GRID = tuple(
    map(
        Shape.parse,
        (
            "100,1,64,64",
            "100,1,256,256",
            "100,1,512,512",
            "100,16,128,128",
            "100,32,32,32",
            "28,64,28,150",
            "100,64,256,256",
            "50,64,512,512",
            "100,16,1024,1024",
        ),
    )
)
STREAMING = (Shape(1, 1, 64, 64), Shape(1, 1, 256, 256))
QUICK = (GRID[0], GRID[1], GRID[4], GRID[5], *STREAMING)

MODES = ("forward", "training")
DEFAULT_CELLS = tuple(name for name in CELLS if name != "rnn_relu")  # it runs the kernels of rnn_tanh


@dataclass(frozen=True)
class Problem:
    """One thing to time, once for each peer."""

    cell: str
    module: str  # "layer" or "cell": torch.nn.LSTM or torch.nn.LSTMCell
    mode: str
    shape: Shape

    @property
    def name(self) -> str:
        return f"{self.cell}-{self.module}-{self.mode}-{self.shape}"

    @property
    def flops(self) -> int:
        """Multiplications and additions of the matrix products.

        Training has three products for each one of the forward: itself, the gradient of its input and that of
        its weights.
        """
        T, B, I, H = self.shape
        forward = 2 * T * B * CELLS[self.cell].gates * H * (I + H)
        return forward * (3 if self.mode == "training" else 1)


def select(cells: Iterable[str], shapes: Iterable[Shape], modes: Iterable[str]) -> list[Problem]:
    """All combinations. Where T is 1 the step modules are timed beside the layers."""
    return [
        Problem(cell, module, mode, shape)
        for shape, mode, cell in product(shapes, modes, cells)
        for module in (("layer", "cell") if shape.T == 1 else ("layer",))
    ]
