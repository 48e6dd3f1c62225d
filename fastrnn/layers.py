"""The base of layers whose cells torch.nn does not have."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.nn import Parameter

from .cells import CELLS
from .functional import run_sequence
from .modules import gather
from .sequences import Options
from .signatures import Lengths, Resets, TensorOrPacked, typed_as
from .transforms.fx import Leaf, forward_error

__all__ = ["RecurrentLayer"]


class RecurrentLayer(Leaf):
    """The base of layers of cells that torch.nn does not have. A subclass names its cell:

        class MyLayer(fastrnn.layers.RecurrentLayer):
            cell = "my_cell"  # a name in fastrnn.cells.CELLS

    Arguments, attributes, names of parameters and results are those of torch.nn's layers: `weight_ih_l0`,
    `bias_hh_l1_reverse` and so on; which there are, and their shapes, is said in `fastrnn.cells.CELLS`.

    Args:
        input_size: I, features of the input
        hidden_size: H, units of a state
        num_layers: L, layers on top of each other
        bias: whether the layer has the biases of its cell
        batch_first: whether input and output are `[B, T, .]` and not `[T, B, .]`
        dropout: probability of zeroing an element of what goes from one layer to the next in training
        bidirectional: whether each layer runs in both directions
        proj_size: P, units of a projected h, 0 for none
        device, dtype: of the parameters

    Raises ValueError for a size, a probability or a projection that cannot be.
    """

    cell: str
    checkpoint_gates = False

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        info = CELLS[self.cell]
        for name, size in dict(hidden_size=hidden_size, num_layers=num_layers).items():
            if size < 1:
                raise ValueError(f"{name}: expected at least 1, got {size}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout: expected a probability, got {dropout}")
        if proj_size and not info.can_project:
            raise ValueError(f"proj_size: {type(self).__name__} has no projection, got {proj_size}")
        if not 0 <= proj_size < hidden_size:
            raise ValueError(f"proj_size: expected from 0 to less than {hidden_size}, got {proj_size}")
        self.input_size, self.hidden_size, self.proj_size = input_size, hidden_size, proj_size
        self.num_layers, self.bias, self.batch_first = num_layers, bias, batch_first
        self.dropout, self.bidirectional = float(dropout), bidirectional

        P, D = proj_size or hidden_size, 1 + bidirectional
        names = []
        for layer in range(num_layers):
            for reverse in ("", "_reverse")[:D]:
                for parameter in info.parameters_of(bias, proj_size > 0):
                    shape = info.shape_of(parameter, input_size if layer == 0 else D * P, hidden_size, P)
                    names.append(f"{parameter.name}_l{layer}{reverse}")
                    values = torch.empty(shape, device=device, dtype=dtype)
                    self.register_parameter(names[-1], Parameter(values))
        self._names = tuple(names)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters from the uniform distribution over +-1/sqrt(H), as torch.nn's layers do."""
        bound = self.hidden_size**-0.5
        for parameter in self.parameters():
            torch.nn.init.uniform_(parameter, -bound, bound)

    def forward(
        self,
        input: TensorOrPacked,
        hx: Tensor | tuple[Tensor, ...] | None = None,
        lengths: Lengths = None,
        return_all_states: bool = False,
        resets: Resets = None,
    ) -> tuple[Any, ...]:
        """Run the layer over a sequence, as LSTM.forward.

        hx: initial states, a Tensor `[L*D, B, P]` or, for a cell of several states, a tuple of such
            (`[L*D, B, H]` but for the first); None for zeros

        Returns `output, h_n`, or with several states `output, (h_n, ...)`; with return_all_states a third
        result, the states of every step.
        """
        if isinstance(input, Proxy):
            raise forward_error(self)
        options = Options(
            self.cell,
            self.bias,
            self.num_layers,
            self.dropout,
            self.training,
            self.bidirectional,
            self.batch_first,
            self.checkpoint_gates,
        )
        weights = gather(self, self._names)
        return run_sequence(input, hx, weights, options, lengths, return_all_states, resets)

    if TYPE_CHECKING:

        @typed_as(forward)
        def __call__(self) -> None: ...

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}"
        defaults = dict(
            proj_size=0, num_layers=1, bias=True, batch_first=False, dropout=0.0, bidirectional=False
        )
        given = {name: getattr(self, name) for name in defaults}
        return text + "".join(f", {name}={v}" for name, v in given.items() if v != defaults[name])
