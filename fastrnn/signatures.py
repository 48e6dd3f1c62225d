"""Types in the signatures of the functions and layers."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypedDict, TypeVar

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

__all__ = [
    "GRUOptions",
    "LayerOptions",
    "Lengths",
    "Pair",
    "Resets",
    "RNNOptions",
    "TensorOrPacked",
    "TensorOrPackedT",
    "Zoneout",
    "typed_as",
]

TensorOrPacked: TypeAlias = Tensor | PackedSequence
TensorOrPackedT = TypeVar("TensorOrPackedT", Tensor, PackedSequence)  # the result has the type of the input
Pair: TypeAlias = tuple[Tensor, Tensor]  # the states h and c of an LSTM
Zoneout: TypeAlias = float | Sequence[float]
Lengths: TypeAlias = Tensor | Sequence[int] | None
Resets: TypeAlias = Tensor | PackedSequence | None


class LayerOptions(TypedDict, total=False):
    """The options of `fastrnn.functional.lstm` and `gru` that do not change the type of the results."""

    bias: bool
    num_layers: int
    dropout: float
    training: bool
    bidirectional: bool
    batch_first: bool
    lengths: Lengths
    checkpoint_gates: bool
    recurrent_dropout: float
    zoneout: Zoneout
    resets: Resets


class GRUOptions(LayerOptions, total=False):
    """Those of `fastrnn.functional.gru`."""

    reset_after: bool


class RNNOptions(LayerOptions, total=False):
    """Those of `fastrnn.functional.rnn`."""

    nonlinearity: str


FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def typed_as(function: FunctionT) -> Callable[[object], FunctionT]:
    """Declare a function of the type of `function` for type checkers: __call__ of a module, as its forward.
    After `__call__ = forward` pyright would still show the type that torch.nn.Module declares."""
    return lambda declared: function
