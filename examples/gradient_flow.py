"""See gradients vanish and explode: how much the last state of a recurrent layer feels each of its inputs.

Nothing trains here. A layer with random weights reads T = 100 random inputs, and the picture shows the norm
of the Jacobian dh(T)/dx(t) over the steps T - t that the gradient runs back. Each of them multiplies the
gradient by a matrix:

- In an RNN with small states that is W_hh, nearly, and the norm goes like the spectral radius of W_hh to the
  power of the steps: 0.9 vanishes, 1.2 explodes. If the inputs have size 1, tanh saturates, and the gradient
  vanishes at radius 1.2, too. nonlinearity="identity", which torch.nn does not have, is linear at any state.
- In an LSTM the forget gate hands c on. At a bias of 0 it halves c in a step, and long memory is gone.

The last panel clips the gradients of an RNN that explodes: they get shorter and keep their direction.
--layer-impl both shows that torch.nn and fastrnn have the same gradients.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import common
import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.nn.utils import clip_grad_norm_

SMALL = 1e-10  # inputs so small that a radius of 1.2 does not bring them to where tanh bends


@dataclass
class Curve:
    """A layer whose gradient to look at, and the size of its inputs."""

    label: str
    colour: str
    cell: str = "RNN"
    nonlinearity: str = "tanh"
    radius: float | None = None  # the spectral radius of W_hh; None leaves the weights of the constructor
    forget_bias: float | None = None
    size: float = 1.0

    @torch.no_grad()
    def build(self, library, hidden: int) -> nn.Module:
        """The layer, in float64 because the norms span many powers of ten."""
        options = {"nonlinearity": self.nonlinearity} if self.cell == "RNN" else {}
        bias = self.radius is None
        layer = getattr(library, self.cell)(hidden, hidden, bias=bias, batch_first=True, **options).double()
        if self.radius is not None:
            w = torch.randn(hidden, hidden, dtype=torch.float64)
            layer.weight_hh_l0.copy_(w * self.radius / torch.linalg.eigvals(w).abs().max())
            layer.weight_ih_l0.copy_(torch.eye(hidden))
        if self.forget_bias is not None:  # the gates lie in the order i, f, g, o
            layer.bias_ih_l0[hidden : 2 * hidden] = self.forget_bias
            layer.bias_hh_l0[hidden : 2 * hidden] = 0
        return layer


RADII = [
    Curve("RNN, radius 1.2,\nidentity", "#ef8a62", nonlinearity="identity", radius=1.2),
    Curve("RNN, radius 1.2,\nsmall states", "#b2182b", radius=1.2, size=SMALL),
    Curve("RNN, radius 0.9,\nsmall states", "#2166ac", radius=0.9, size=SMALL),
    Curve("RNN, radius 1.2,\nsaturated", "#7b3294", radius=1.2),
]
CELLS = [
    Curve("LSTM,\nforget bias 4", "#b35806", "LSTM", forget_bias=4),
    Curve("LSTM,\nforget bias 1", "#e08214", "LSTM", forget_bias=1),
    Curve("GRU", "#01665e", "GRU"),
    Curve("LSTM,\nforget bias 0", "#8c6bb1", "LSTM", forget_bias=0),
    Curve("RNN", "#2166ac"),
]
CLIPPED = Curve("RNN", "#b2182b", radius=2.0, size=0.01)
CLIP_COLOURS = {"before": "#b2182b", "after": "#2166ac"}


def jacobian_norms(layer: nn.Module, x: Tensor) -> Tensor:
    """The norms, as largest singular values, of dh(T)/dx(t) at each step of x `[T, I]`: `[T]`.

    The batch holds H copies of the sequence, and copy k asks for the gradient of h_k(T): one backward gives
    all Jacobians, row by row.
    """
    copies = x.expand(layer.hidden_size, *x.shape).clone().requires_grad_()
    states, _ = layer(copies)
    (rows,) = torch.autograd.grad(states[:, -1].diagonal().sum(), copies)  # [H, T, I]
    return torch.linalg.matrix_norm(rows.transpose(0, 1), 2)


def clip(layer: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
    """The norms before and after clipping of the gradients of each sequence of x `[N, T, I]`: `[2, N]`."""
    norms = []
    for sequence, target in zip(x, targets, strict=True):
        layer.zero_grad()
        mse_loss(layer(sequence[None])[0][0, -1], target).backward()
        before = clip_grad_norm_(layer.parameters(), common.CLIP_NORM)
        after = torch.cat([p.grad.flatten() for p in layer.parameters()]).norm()
        norms.append(torch.stack([before, after]))
    return torch.stack(norms, 1)


def look(name: str, args) -> tuple[dict[str, Tensor], Tensor, float]:
    """With the layers of a library: the norms of each curve, what clipping does, and the seconds it took."""
    start = time.perf_counter()
    norms = {}
    for curve in RADII + CELLS:
        if name == "torch" and curve.nonlinearity == "identity":
            continue  # torch.nn does not have it
        torch.manual_seed(args.seed)
        layer = curve.build(common.LIBRARIES[name], args.hidden)
        x = curve.size * torch.randn(args.steps, args.hidden, dtype=torch.float64)
        norms[curve.label] = jacobian_norms(layer, x)
    torch.manual_seed(args.seed)
    layer = CLIPPED.build(common.LIBRARIES[name], args.hidden)
    x = CLIPPED.size * torch.randn(30 if args.quick else 300, args.steps, args.hidden, dtype=torch.float64)
    clipped = clip(layer, x, torch.randn(len(x), args.hidden, dtype=torch.float64))
    return norms, clipped, time.perf_counter() - start


def report(found: dict, args) -> None:
    """Print where each gradient ends, and how far the libraries differ."""
    norms, clipped, _ = found[args.libraries[-1]]
    table = Table("layer", "norm at t = T", "at t = 1", "factor a step", "largest difference from torch")
    for label, flow in norms.items():
        factor = (flow[0] / flow[-1]) ** (1 / max(1, args.steps - 1))
        judge = found["torch"][0].get(label) if len(found) == 2 else None
        difference = "" if judge is None else f"{(flow / judge - 1).abs().max():.0e} of it"
        name = label.replace("\n", " ")
        table.add_row(name, f"{flow[-1]:.2g}", f"{flow[0]:.2g}", f"{factor:.3f}", difference)
    common.console.print(table)
    before, after = clipped.median(1).values
    print(f"clipping to {common.CLIP_NORM:g}: the median norm goes from {before:.2g} to {after:.2g}")
    print(", ".join(f"{name}: {seconds:.1f} s" for name, (_, _, seconds) in found.items()))


def plot(norms: dict[str, Tensor], clipped: Tensor, args) -> None:
    """The norms over the steps back on a logarithmic scale, and the histogram of the clipped gradients."""
    title = f"How much the last of {args.steps} states feels the input of each step, {args.hidden} units"
    figure, axes = common.new_figure(title, 1, 3, size=(15, 5.2), width_ratios=[1, 1, 0.9])
    titles = ("spectral radius of W_hh", "initial weights, inputs of size 1")
    for ax, curves, title in zip(axes, (RADII, CELLS), titles, strict=False):
        ax.axhline(1, color="0.6", linewidth=1, linestyle=":")
        for curve in (c for c in curves if c.label in norms):
            flow = norms[curve.label].flip(0)
            behind = curve.nonlinearity == "identity"  # it coincides with the small states
            ax.semilogy(flow, color=curve.colour, linewidth=6 if behind else 2)
            place = {"xytext": (6, 30 if behind else 0), "textcoords": "offset points", "va": "center"}
            ax.annotate(curve.label, (len(flow) - 1, flow[-1]), color=curve.colour, fontsize=10, **place)
        ax.text(0.05, 0.95, "explodes", transform=ax.transAxes, va="top", style="italic")
        ax.text(0.05, 0.04, "vanishes", transform=ax.transAxes, style="italic")
        ax.set(title=title, xlabel="steps back, T - t", ylabel="norm of dh(T)/dx(t)")
        ax.set_ylim(top=ax.get_ylim()[1] * 1e3)
    bins = torch.arange(clipped.min().log10().floor() - 0.25, clipped.max().log10() + 0.5, 0.5)
    for values, (label, colour) in zip(clipped.log10(), CLIP_COLOURS.items(), strict=True):
        axes[2].hist(values.numpy(), bins.numpy(), color=colour, label=label)
    axes[2].set(title=f"RNN, radius {CLIPPED.radius:g}: gradients clipped to {common.CLIP_NORM:g}")
    axes[2].set(xlabel="norm of the gradient, power of ten", ylabel="sequences")
    axes[2].legend(frameon=False)
    common.save(figure, args.out)


def main() -> None:
    parser = common.make_parser(__doc__, "gradient_flow")
    parser.add_argument("--hidden", type=common.positive, default=64, help="units, and inputs (%(default)s)")
    parser.add_argument("--steps", type=common.positive, default=100, help="the length T (%(default)s)")
    args = common.parse(parser)
    found = {name: look(name, args) for name in args.libraries}
    report(found, args)
    plot(*found[args.libraries[-1]][:2], args)


if __name__ == "__main__":
    main()
