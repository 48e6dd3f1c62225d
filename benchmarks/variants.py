"""Time the cells and options that torch.nn does not have.

Each takes turns with the layer that it extends, and with what people use where there is no such layer: a loop
over the steps in plain torch, torch.compile of that loop, Keras, onnxruntime. The results of all are compared
first.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import fastrnn
from fastrnn.reference import CELLS

from .__main__ import describe_machine, shape, threads
from .problems import NotSupported, Shape
from .timing import Call, interleave, quietest_third

SHAPE = Shape(100, 16, 128, 128)
COMPILED_STEPS = 28  # torch.compile unrolls the loop
SECONDS, MIN_ROUNDS = 3.0, 5
TOLERANCE = 5e-3  # of float32 results, relative to the norm

FASTRNN, BASE, LOOP, COMPILED, KERAS, ONNXRUNTIME = (
    "fastrnn",
    "what it extends",
    "plain loop",
    "torch.compile",
    "Keras",
    "onnxruntime",
)


@dataclass(frozen=True)
class Variant:
    """A layer that torch.nn does not have.

    Attributes:
        make: `make(I, H, **options)`, the layer
        base: the layer that it extends
        options: of the layer
        call: options of the call, from its sizes
        cell: whose step the plain loop takes; None for options that a loop would draw anew
        peers: those beside fastrnn and the loops
    """

    make: Callable[..., torch.nn.Module]
    base: Callable[..., torch.nn.Module]
    options: Mapping[str, Any] = field(default_factory=dict)
    call: Callable[[Shape], dict[str, Any]] = lambda sizes: {}
    cell: str | None = None
    peers: tuple[str, ...] = ()


def some_resets(sizes: Shape) -> dict[str, torch.Tensor]:
    """Episodes of 50 steps in the mean."""
    return {"resets": torch.rand(sizes.T, sizes.B, generator=torch.Generator().manual_seed(0)) < 0.02}


VARIANTS = {
    "GRU(reset_after=False)": Variant(
        fastrnn.GRU, fastrnn.GRU, {"reset_after": False}, cell="gru_reset_before", peers=(KERAS, ONNXRUNTIME)
    ),
    "PeepholeLSTM": Variant(fastrnn.PeepholeLSTM, fastrnn.LSTM, cell="peephole_lstm", peers=(ONNXRUNTIME,)),
    "LayerNormLSTM": Variant(fastrnn.LayerNormLSTM, fastrnn.LSTM, cell="layer_norm_lstm"),
    "LayerNormGRU": Variant(fastrnn.LayerNormGRU, fastrnn.GRU, cell="layer_norm_gru"),
    "LiGRU": Variant(fastrnn.LiGRU, fastrnn.GRU, cell="ligru"),
    "sLSTM": Variant(fastrnn.sLSTM, fastrnn.LSTM, cell="slstm"),
    "sLSTM(num_heads=4)": Variant(fastrnn.sLSTM, fastrnn.LSTM, {"num_heads": 4}),
    "IndRNN": Variant(fastrnn.IndRNN, fastrnn.RNN, cell="indrnn_relu"),
    "RNN(sigmoid)": Variant(
        fastrnn.RNN, fastrnn.RNN, {"nonlinearity": "sigmoid"}, cell="rnn_sigmoid", peers=(ONNXRUNTIME,)
    ),
    "RNN(identity)": Variant(fastrnn.RNN, fastrnn.RNN, {"nonlinearity": "identity"}, cell="rnn_identity"),
    **{
        f"{base.__name__}({option}=0.1)": Variant(base, base, {option: 0.1})
        for base in (fastrnn.LSTM, fastrnn.GRU)
        for option in ("recurrent_dropout", "zoneout")
    },
    **{
        f"{base.__name__}, resets": Variant(base, base, call=some_resets)
        for base in (fastrnn.LSTM, fastrnn.GRU)
    },
}


class Subject:
    """A variant with its input."""

    def __init__(self, variant: Variant, sizes: Shape, training: bool):
        T, B, I, H = sizes
        torch.manual_seed(0)
        self.variant, self.sizes, self.training = variant, sizes, training
        self.layer = variant.make(I, H, **variant.options).train(training)
        self.base = variant.base(I, H).train(training)
        self.x = torch.randn(T, B, I, requires_grad=training)
        self.gradient = torch.randn(T, B, H)

    def timed(self, forward: Callable[[], torch.Tensor], weights) -> Call:
        """`forward`, or for training, `forward` and the gradients of weights and input."""
        if not self.training:
            return forward
        leaves = [self.x, *weights]
        return lambda: torch.autograd.grad(forward(), leaves, self.gradient)[0]

    def calls(self, compiled: bool) -> Iterator[tuple[str, Callable[[], Call]]]:
        layer, options = self.layer, self.variant.call(self.sizes)
        yield FASTRNN, lambda: self.timed(lambda: layer(self.x, **options)[0], layer.parameters())
        yield BASE, lambda: self.timed(lambda: self.base(self.x)[0], self.base.parameters())
        if self.variant.cell is not None:
            yield LOOP, lambda: self.timed(lambda: self.loop(self.x), layer.parameters())
            if compiled:
                yield COMPILED, self.compiled
        for peer in self.variant.peers:
            yield peer, {KERAS: self.keras, ONNXRUNTIME: self.onnxruntime}[peer]

    def loop(self, x: torch.Tensor) -> torch.Tensor:
        """The layer as a loop over its steps, as its users would write it."""
        layer, row = self.layer, CELLS[self.variant.cell]
        weights = [getattr(layer, f"{p.name}_l0") for p in row.info.parameters_of(bias=True, projected=False)]
        takes_shares = not row.info.has("input_matrix")
        state = (x.new_zeros(x.shape[1], self.sizes.H),) * row.states
        outputs = []
        for x_t in layer._shares(0, x) if takes_shares else x:
            state = row.step(x_t, state, *weights)
            outputs.append(state[0])
        return torch.stack(outputs)

    def compiled(self) -> Call:
        if self.sizes.T > COMPILED_STEPS:
            raise NotSupported(f"more than {COMPILED_STEPS} steps take too long to compile")
        torch._dynamo.reset()
        compiled = torch.compile(self.loop, dynamic=False)
        return self.timed(lambda: compiled(self.x), self.layer.parameters())

    def keras(self) -> Call:
        os.environ.setdefault("KERAS_BACKEND", "torch")
        import keras

        layer = keras.layers.GRU(self.sizes.H, reset_after=False, return_sequences=True)
        x = self.x.transpose(0, 1)
        layer(x)
        layer.set_weights(fastrnn.to_keras_weights(self.layer))
        weights = [v.value for v in layer.trainable_variables]
        return self.timed(lambda: layer(self.x.transpose(0, 1)).transpose(0, 1), weights)

    def onnxruntime(self) -> Call:
        if self.training:
            raise NotSupported("inference only")
        import onnxruntime

        class Output(torch.nn.Module):
            def __init__(self, layer):
                super().__init__()
                self.layer = layer

            def forward(self, x):
                return self.layer(x)[0]

        program = torch.onnx.export(Output(self.layer), (self.x,), dynamo=True, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        y, binding = torch.empty(self.gradient.shape), session.io_binding()
        (given,), (result,) = session.get_inputs(), session.get_outputs()
        binding.bind_input(given.name, "cpu", 0, "float32", list(self.x.shape), self.x.data_ptr())
        binding.bind_output(result.name, "cpu", 0, "float32", list(y.shape), y.data_ptr())

        def call():
            session.run_with_iobinding(binding)
            return y

        return call


def measure(name: str, sizes: Shape, training: bool, compiled: bool) -> dict[str, Any]:
    """Seconds of a call of each peer, and why others were not timed."""
    subject = Subject(VARIANTS[name], sizes, training)
    calls, refusals = {}, {}
    with torch.set_grad_enabled(training):
        for peer, make in subject.calls(compiled):
            try:
                calls[peer] = make()
            except NotImplementedError as error:
                refusals[peer] = str(error)
                continue
            if peer == FASTRNN:
                expected = calls[peer]().detach().clone()
            elif peer != BASE:
                error = ((calls[peer]() - expected).norm() / expected.norm()).item()
                if not error <= TOLERANCE:  # true for NaN, too
                    raise RuntimeError(f"{name}: {peer} differs from fastrnn by {error:.1e}")
        samples = interleave(calls, lambda: None, SECONDS, MIN_ROUNDS)
    return {
        "variant": name,
        "sizes": list(sizes),
        "training": training,
        "seconds": {peer: quietest_third(of_peer) for peer, of_peer in samples.items()},
        "refusals": refusals,
    }


def table(rows: list[dict[str, Any]]) -> Table:
    """Times relative to fastrnn's: how many times as long the others take."""
    peers = (BASE, LOOP, COMPILED, KERAS, ONNXRUNTIME)
    result = Table("variant", "T,B,I,H", "pass", "fastrnn, ms", *peers)
    for row in rows:
        seconds = row["seconds"]
        own = seconds[FASTRNN]
        result.add_row(
            row["variant"],
            str(Shape(*row["sizes"])),
            "training" if row["training"] else "forward",
            f"{own * 1e3:.2f}",
            *(f"{seconds[peer] / own:.2f}" if peer in seconds else "" for peer in peers),
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.variants", description=__doc__)
    add = parser.add_argument
    add("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    add("--shape", type=shape, default=SHAPE, metavar="T,B,I,H", help="default: %(default)s")
    add("--threads", type=threads, default=torch.get_num_threads(), help="default: %(default)s")
    add("--compile", action="store_true", help="time torch.compile of the loop, too, which takes minutes")
    add("--json", type=Path, default=Path("out/variants.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    console = Console(width=None if Console().is_terminal else 160)
    problems = [(name, training) for name in args.variants for training in (False, True)]
    rows = [
        measure(name, args.shape, training, args.compile)
        for name, training in track(problems, "", console=console, auto_refresh=False)
    ]
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps({"machine": describe_machine(args.threads), "rows": rows}, indent=1))
    console.print(table(rows))
    console.print("Times of the others in multiples of fastrnn's.")


if __name__ == "__main__":
    main()
