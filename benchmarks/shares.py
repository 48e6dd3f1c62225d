"""The recurrent layers in a model: their calls, to time them alone, and a picture of their share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeAlias

from torch import Tensor, nn

from fastrnn.layers import RecurrentLayer

from .peers import FASTRNN, TORCH

LayerCall: TypeAlias = "tuple[nn.Module, tuple, dict]"  # a layer and what it was called with


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The recurrent layers and cells of either library."""
    return [m for m in model.modules() if isinstance(m, nn.RNNBase | nn.RNNCellBase | RecurrentLayer)]


@contextmanager
def recording(model: nn.Module) -> Iterator[list[LayerCall]]:
    """The calls of the model's layers."""
    calls: list[LayerCall] = []
    hooks = [
        layer.register_forward_pre_hook(
            lambda layer, args, kwargs: calls.append((layer, args, kwargs)), with_kwargs=True
        )
        for layer in layers_of(model)
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def replay(call: LayerCall) -> Tensor:
    """Call the layer again, alone. Returns the states of all steps, or the new state of a cell."""
    layer, args, kwargs = call
    output = layer(*args, **kwargs)
    y = output if isinstance(output, Tensor) else output[0]
    return y if isinstance(y, Tensor) else y.data  # of a PackedSequence


class Bar(NamedTuple):
    """A pair of bars in the picture.

    Attributes:
        name: stands left of them
        seconds: of the whole call, by library; the first one's bar has length 1
        share: of the layers in `seconds`, by library; empty if it is not known
        text: stands right of them
    """

    name: str
    seconds: dict[str, float]
    share: dict[str, float]
    text: str


def draw_shares(bars: list[Bar], path: Path, title: str, time: str) -> None:
    """A pair of horizontal bars each: what of the time is the layers', with torch.nn and with fastrnn.

    `time` says of what, for the label of the axis.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 1.2 + 0.7 * len(bars)), layout="constrained")
    for place, bar in enumerate(bars):
        whole = bar.seconds[TORCH]
        for library, offset, colour in ((TORCH, -0.2, "tab:orange"), (FASTRNN, 0.2, "tab:blue")):
            seconds, share = bar.seconds[library] / whole, min(1, bar.share.get(library, 0))
            label = library if place == 0 else None
            axes.barh(place + offset, seconds * share, 0.36, color=colour, label=label)
            axes.barh(place + offset, seconds * (1 - share), 0.36, left=seconds * share, color="0.8")
        axes.text(max(1, bar.seconds[FASTRNN] / whole) + 0.02, place, bar.text, va="center")
    axes.barh(0, 0, color="0.8", label="beside the layers")
    axes.set(xlabel=f"{time}, torch.nn's = 1", xlim=(0, 1.3), title=title)
    axes.set_yticks(range(len(bars)), [bar.name for bar in bars])
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
