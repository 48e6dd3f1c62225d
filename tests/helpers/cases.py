"""The problems that tests solve with torch.nn, fastrnn and the reference, and how results are named.

A `Case` is a problem as plain data. `build` makes the module, `inputs` the tensors, `evaluate` runs a call
forward and backward and returns every value and every gradient by name:

    output, h_n, c_n, dx, dh_0, dc_0, dweight_ih_l0, …

All that is random comes from `Case.seed`, and is drawn on the CPU, so that it is the same on every device.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import os
import subprocess
import sys
import unittest.mock
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn
from fastrnn import _C, reference
from fastrnn.reference import CELLS

FORMS = ("padded", "batch_first", "packed", "unsorted", "unbatched")
DTYPES = (torch.float32, torch.float64)
STATE_NAMES = ("h", "c", "n", "m")
EVERY_CELL = tuple(name for name, row in CELLS.items() if row.in_torch)

Call = Callable[[Tensor, "Sequence[Tensor] | None"], "list[Tensor]"]

# Why nothing can run on a GPU here; None where it can.
GPU_MISSING = (
    "no GPU" if not torch.cuda.is_available() else None if _C.cuda_archs else "fastrnn was built without CUDA"
)
_device = "cpu"
_is_judged_there = False


def skip_unless_torch_has_autocast_lstm() -> None:
    """oneDNN, which computes torch.nn.LSTM under torch.autocast, refuses processors without AVX-512."""
    try:
        with torch.autocast("cpu", torch.bfloat16):
            torch.nn.LSTM(2, 3)(torch.zeros(1, 1, 2))
    except RuntimeError as error:
        pytest.skip(f"torch.nn.LSTM under autocast: {str(error).split('.')[0]}")


@contextlib.contextmanager
def fastrnn_on(device: str):
    """Let fastrnn's modules, and what they are given, be on `device`."""
    global _device
    before, _device = _device, device
    try:
        yield
    finally:
        _device = before


@contextlib.contextmanager
def judged_there():
    """Let torch.nn judge from where fastrnn is, but without cuDNN: for weights that torch computes in another
    way on each device. On a GPU weight_norm takes square roots in float32, also of float64, and random
    numbers are others."""
    global _is_judged_there
    # torch._C: torch.testing forbids to set torch.backends.cudnn.enabled, and its context manager sets the
    # precision, too.
    before, had_cudnn = _is_judged_there, torch._C._get_cudnn_enabled()
    _is_judged_there = True
    torch._C._set_cudnn_enabled(False)
    try:
        yield
    finally:
        _is_judged_there = before
        torch._C._set_cudnn_enabled(had_cudnn)


def device_of(library) -> str:
    """torch.nn and the reference judge from the CPU, wherever fastrnn is: cuDNN has habits of its own (what
    it does with NaN, dropout, eval mode). `judged_there` is the exception."""
    return _device if library is fastrnn or _is_judged_there else "cpu"


@contextlib.contextmanager
def float32_products(precision: str):
    """Let products of float32 be computed in full ("ieee") or rounded to "tf32" on a GPU."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn.rnn)
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = precision
    try:
        yield
    finally:
        for backend, was in zip(backends, before, strict=True):
            backend.fp32_precision = was


def random(*shape, seed: int, dtype=torch.float32, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)


def random_integers(*shape, seed: int, limit: int, dtype=torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-limit, limit + 1, shape, generator=generator).to(dtype)


@dataclasses.dataclass(frozen=True)
class Case:
    """A layer and what it is given.

    `T`, `B`, `I`, `H`, `P`, `L` are the sizes; `P = 0` is no projection. In the forms packed and unsorted the
    sequences have various lengths, the longest T. `hx` tells whether states are given.

    `exact` takes integers for every number, and weights that add up a few of them, so that all sums fit the
    mantissa: for an RNN with relu every order of operations must then give the same bits. Relu needs this in
    float32, where its derivative jumps at a sum of 0, which rounding can move to either side.
    """

    cell: str = "lstm"
    T: int = 5
    B: int = 3
    I: int = 7
    H: int = 16
    P: int = 0
    L: int = 1
    bidirectional: bool = False
    bias: bool = True
    form: str = "padded"
    hx: bool = True
    dropout: float = 0.0
    dtype: torch.dtype = torch.float32
    seed: int = 0
    exact: bool = False

    def __str__(self) -> str:
        """Short, for the name of a test: only what differs from the default, but every size."""
        words = [self.cell, *(f"{name}{getattr(self, name)}" for name in "TBIH")]
        words += [f"{name}{getattr(self, name)}" for name in "PL" if getattr(self, name) not in (0, 1)]
        words += ["bi"] * self.bidirectional + ["nobias"] * (not self.bias) + ["nohx"] * (not self.hx)
        words += [self.form] * (self.form != "padded") + [str(self.dtype).removeprefix("torch.")]
        words += [f"drop{self.dropout}"] * bool(self.dropout) + ["exact"] * self.exact
        words += [f"seed{self.seed}"] * bool(self.seed)
        return "-".join(words)

    def but(self, **changes) -> Case:
        return dataclasses.replace(self, **changes)

    def safe(self) -> Case:
        """Exact where rounding could decide which branch relu takes."""
        return self.but(exact=self.cell == "rnn_relu" and self.dtype == torch.float32)

    @property
    def row(self) -> reference.Cell:
        return CELLS[self.cell]

    @property
    def large(self) -> bool:
        """Whether several threads may share its largest layer, by the work of a direction, as in csrc/cpu."""
        P = self.P or self.H
        I = max(self.I, (1 + self.bidirectional) * P * (self.L > 1))
        return self.T * self.B * self.row.gates * self.H * (I + P) >= 192 * 1024

    @property
    def batched(self) -> bool:
        return self.form != "unbatched"

    @property
    def packed(self) -> bool:
        return self.form in ("packed", "unsorted")

    @property
    def state_sizes(self) -> tuple[int, ...]:
        return (self.P or self.H, *[self.H] * (self.row.states - 1))

    @cached_property
    def lengths(self) -> Tensor:
        """Of packed sequences: at least one as long as T, some equal, in descending order unless unsorted."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        lengths = torch.randint(1, self.T + 1, (self.B,), generator=generator)
        lengths[self.B // 2] = self.T
        return lengths if self.form == "unsorted" else lengths.sort(descending=True).values

    def build(self, library, **changes) -> torch.nn.RNNBase:
        """The layer, with the weights that `library` (torch.nn or fastrnn) gives it under the seed."""
        kwargs = dict(
            num_layers=self.L,
            bias=self.bias,
            batch_first=self.form == "batch_first",
            dropout=self.dropout,
            bidirectional=self.bidirectional,
            dtype=self.dtype,
            **self.row.kwargs,
        )
        if self.P:
            kwargs["proj_size"] = self.P
        torch.manual_seed(self.seed)
        layer = getattr(library, self.row.layer.__name__)(self.I, self.H, **(kwargs | changes))
        if self.exact:
            self._make_exact(layer)
        return layer.to(device_of(library))

    def _make_exact(self, layer) -> None:
        with torch.no_grad():
            for k, (name, weight) in enumerate(layer.named_parameters()):
                seed = 1000 * self.seed + k
                if "bias" in name:
                    weight.copy_(random_integers(*weight.shape, seed=seed, limit=2))
                    continue
                # One signed permutation for the recurrence, so that a state grows by addition only; three for
                # the input.
                generator = torch.Generator().manual_seed(seed)
                weight.zero_()
                rows, columns = weight.shape
                for _ in range(1 if "hh" in name else 3):
                    n = min(rows, columns)
                    to = torch.randperm(rows, generator=generator)[:n]
                    of = torch.randperm(columns, generator=generator)[:n]
                    weight[to, of] = random_integers(n, seed=seed + 1, limit=1).to(weight.dtype)

    def inputs(self, library=torch.nn) -> tuple[Tensor, list[Tensor] | None]:
        """x and the states for that library, leaves that require gradients. x is padded, also if the module
        gets it packed."""
        shape = {"unbatched": (self.T, self.I), "batch_first": (self.B, self.T, self.I)}.get(
            self.form, (self.T, self.B, self.I)
        )
        D = 1 + self.bidirectional
        shapes = [(self.L * D, *[self.B] * self.batched, size) for size in self.state_sizes]
        seed = 10_000 + 100 * self.seed
        if self.exact:
            x = random_integers(*shape, seed=seed, limit=2, dtype=self.dtype)
            hx = [random_integers(*s, seed=seed + 1, limit=2, dtype=self.dtype) for s in shapes]
        else:  # W_ih is about 1/sqrt(3*H), so this keeps W_ih x at most of order 1
            x = random(*shape, seed=seed, dtype=self.dtype, scale=min(1.0, (self.H / self.I) ** 0.5))
            hx = [random(*s, seed=seed + 1 + k, dtype=self.dtype, scale=0.5) for k, s in enumerate(shapes)]
        device = device_of(library)
        x = x.to(device).requires_grad_()
        return x, [s.to(device).requires_grad_() for s in hx] if self.hx else None

    def pack(self, x: Tensor) -> Tensor | PackedSequence:
        if not self.packed:
            return x
        return pack_padded_sequence(x, self.lengths, enforce_sorted=self.form == "packed")

    def call(self, layer) -> Call:
        """`layer`, with its arguments and results made alike for every cell and form."""

        def call(x, hx):
            output, states = layer(self.pack(x), hx if hx is None else give(hx))
            return [output.data if self.packed else output, *take(states)]

        return call

    def judge(self, weights: Sequence[Tensor], cell: reference.Cell | None = None, **noise) -> Call:
        """The reference, in the dtype of `weights`, without dropout; `noise`: its `masks` and `kept`."""
        kwargs = dict(
            cell=cell or self.row,
            bias=self.bias,
            num_layers=self.L,
            bidirectional=self.bidirectional,
            **noise,
        )

        def call(x, hx):
            if not self.packed:
                return list(reference.rnn(x, hx, weights, batch_first=self.form == "batch_first", **kwargs))
            p = self.pack(x)
            if p.sorted_indices is not None and hx is not None:
                hx = [h.index_select(1, p.sorted_indices) for h in hx]
            y, *states = reference.rnn(p.data, hx, weights, batch_sizes=p.batch_sizes, **kwargs)
            if p.unsorted_indices is not None:
                states = [s.index_select(1, p.unsorted_indices) for s in states]
            return [y, *states]

        return call

    def prepare(self, library):
        """The library's own layer, a call of it, x and hx."""
        layer = self.build(library)
        return layer, self.call(layer), *self.inputs(library)

    def prepare_step(self, library):
        """The same for its cell module. x and hx are what the layer gets in its first step. The call returns
        `[h', h']`, for an LSTM `[h', h', c']`: output and last state are the same thing."""
        torch.manual_seed(self.seed)
        kwargs = dict(bias=self.bias, dtype=self.dtype, **self.row.kwargs)
        module = getattr(library, self.row.cell.__name__)(self.I, self.H, **kwargs)
        if self.exact:
            self._make_exact(module)
        module = module.to(device_of(library))
        x, hx = self.inputs(library)
        x = x[0].detach().requires_grad_()
        hx = hx and [h[0].detach().requires_grad_() for h in hx]

        def call(x, hx):
            state = take(module(x, hx if hx is None else give(hx)))
            return [state[0], *state]

        return module, call, x, hx

    def solve(self, library) -> dict[str, Tensor | None]:
        """Values and gradients of the library's own layer."""
        layer, call, x, hx = self.prepare(library)
        return evaluate(call, x, hx, dict(layer.named_parameters()), self)

    def solve_step(self, library) -> dict[str, Tensor | None]:
        """Values and gradients of the library's own cell module."""
        module, call, x, hx = self.prepare_step(library)
        return evaluate(call, x, hx, dict(module.named_parameters()), self)

    def solve_exactly(self) -> dict[str, Tensor | None]:
        """Values and gradients of the reference in float64, for the very numbers that a library would get."""
        layer = self.build(torch.nn).double()
        x, hx = self.inputs()
        x = x.detach().double().requires_grad_()
        hx = hx and [h.detach().double().requires_grad_() for h in hx]
        return evaluate(self.judge(layer._flat_weights), x, hx, dict(layer.named_parameters()), self)


def recorded_margin(case: Case) -> float:
    """How near to 0 any sum comes that relu is applied to, in the reference in float64."""
    nearest = []

    def step(x, state, W_ih, W_hh, b_ih=None, b_hh=None):
        total = linear(x, W_ih, b_ih) + linear(state[0], W_hh, b_hh)
        nearest.append(total.abs().min().item())
        return (total.relu(),)

    layer = case.build(torch.nn).double()
    x, hx = case.inputs()
    with torch.no_grad():
        call = case.judge(layer._flat_weights, dataclasses.replace(case.row, step=step))
        call(x.double(), hx and [h.double() for h in hx])
    return min(nearest)


def give(states: Sequence[Tensor]) -> Tensor | tuple[Tensor, ...]:
    """States as torch.nn takes them: a tensor, or a tuple of two."""
    return states[0] if len(states) == 1 else tuple(states)


def take(states: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    """The opposite of `give`."""
    return [states] if isinstance(states, Tensor) else list(states)


def name_values(values: Sequence[Tensor]) -> dict[str, Tensor]:
    """`[output, h_n, c_n]` by name."""
    return dict(zip(("output", *(f"{s}_n" for s in STATE_NAMES)), values, strict=False))


def cotangents(values: Iterable[Tensor], seed: int = 0, integers: bool = False) -> list[Tensor]:
    """A random gradient for every result."""
    make = random_integers if integers else random
    limit = {"limit": 1} if integers else {}
    return [
        make(*v.shape, seed=777 + 10 * seed + k, dtype=v.dtype, **limit).to(v.device)
        for k, v in enumerate(values)
    ]


def evaluate(call: Call, x, hx, parameters: Mapping[str, Tensor], case: Case) -> dict[str, Tensor | None]:
    """Forward and backward. Gradients are None where none is asked for."""
    values = call(x, hx)
    result = {name: v.detach() for name, v in name_values(values).items()}
    if any(v.requires_grad for v in values):
        torch.autograd.backward(values, cotangents(values, case.seed, case.exact))
    named = {"dx": x, **{f"d{s}_0": h for s, h in zip(STATE_NAMES, hx or (), strict=False)}}
    named |= {f"d{name}": p for name, p in parameters.items()}
    return result | {name: None if t.grad is None else t.grad.clone() for name, t in named.items()}


def cover_pairs(**factors: Sequence) -> list[dict]:
    """Rows in which any two factors take every pair of their values; greedy, and the same in every run."""
    names = list(factors)
    counts = [len(values) for values in factors.values()]
    columns = list(itertools.combinations(range(len(names)), 2))
    uncovered = {(a, u, b, v) for a, b in columns for u in range(counts[a]) for v in range(counts[b])}

    def gain(row, c, w):  # uncovered pairs that column c with value w makes with the row so far
        pairs = ((d, v, c, w) if d < c else (c, w, d, v) for d, v in row.items())
        return sum(pair in uncovered for pair in pairs)

    rows = []
    while uncovered:
        a, u, b, v = min(uncovered)
        row = {a: u, b: v}
        for c in sorted(set(range(len(names))) - {a, b}):
            gains = [gain(row, c, w) for w in range(counts[c])]
            start = len(rows) % counts[c]  # among equals another value in every row
            order = [*range(start, counts[c]), *range(start)]
            row[c] = max(order, key=gains.__getitem__)
        uncovered -= {(a, row[a], b, row[b]) for a, b in columns}
        rows.append({name: factors[name][row[k]] for k, name in enumerate(names)})
    return rows


SIZES = (1, 7, 16, 33, 150, 257)


def various_layers(**factors: Sequence) -> Iterator[Case]:
    """For each cell layers in which any two of these and of `factors` take every pair of their values."""
    rows = cover_pairs(
        H=SIZES,
        I=SIZES,
        form=FORMS,
        B=(3, 17, 1, 7, 0),
        L=(1, 2),
        bidirectional=(False, True),
        bias=(True, False),
        hx=(True, False),
        project=(False, True),
        **factors,
    )
    for cell in EVERY_CELL:
        for row in rows:
            row = dict(row)
            project = row.pop("project") and cell == "lstm" and row["H"] > 1
            if row["B"] == 0 and row["form"] in ("packed", "unsorted"):
                row["form"] = "batch_first"  # there is no packed sequence without a sequence
            yield Case(cell, P=project and (row["H"] + 1) // 2, **row)


def mark_large(cases: Iterable[Case]) -> list:
    """Parameters of a test, the large cases marked as such of several threads."""
    return [pytest.param(case, marks=pytest.mark.threads if case.large else ()) for case in cases]


@contextlib.contextmanager
def using_threads(n: int):
    """Let torch use n threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_program(main: Callable[[], int | None], *arguments: str) -> subprocess.CompletedProcess:
    """What `main` does as a program with these arguments, in this process: a fresh one takes seconds."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        unittest.mock.patch("sys.argv", ["program", *arguments]),
    ):
        try:
            code = main() or 0
        except SystemExit as end:
            code = end.code or 0
            if isinstance(code, str):
                print(code, file=err)
                code = 1
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def run_python(*arguments: str, env: Mapping[str, str] | None = None, timeout: float = 300):
    """A fresh Python that finds the same fastrnn. The timeout is a guard against a hang, not a measure."""
    package = Path(fastrnn.__file__).parents[1]
    paths = [str(package), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    fresh = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**fresh, "PYTHONPATH": os.pathsep.join(p for p in paths if p), **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
