"""Layers whose cells torch.nn does not have, and their base."""

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.nn import Parameter
from torch.nn.functional import layer_norm
from torch.nn.functional import linear as linear_of

from .cells import CELLS, CellInfo
from .cells import Parameter as CellParameter
from .functional import read_zoneout, run_sequence
from .modules import gather
from .sequences import Options, run_layers, run_stack
from .signatures import Lengths, Resets, TensorOrPacked, Zoneout, typed_as
from .transforms.fx import Leaf, forward_error

__all__ = ["IndRNN", "LayerNormGRU", "LayerNormLSTM", "LiGRU", "PeepholeLSTM", "RecurrentLayer", "sLSTM"]


def linear(x: Tensor, W: Any, bias: Tensor | None = None) -> Tensor:
    """torch.nn.functional.linear; W may be a frozen matrix."""
    if isinstance(W, Tensor):
        return linear_of(x, W, bias)
    return W(x) if bias is None else W(x) + bias


_W_IH = CellParameter("W_ih", "weight_ih", "input_matrix", "always")
_BIAS = CellParameter("b", "bias", "input_bias", "bias")


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
        recurrent_dropout, zoneout: see `fastrnn.functional.lstm`

    Raises ValueError for a size, a probability or a projection that cannot be.
    """

    cell: str
    # Parameters of the layer from which it computes the gates' shares from the input, for cells without W_ih.
    parameters_of_input: ClassVar[tuple[CellParameter, ...]] = ()
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
        *,
        recurrent_dropout: float = 0.0,
        zoneout: Zoneout = 0.0,
    ) -> None:
        super().__init__()
        info = self._info
        for name, size in dict(hidden_size=hidden_size, num_layers=num_layers).items():
            if size < 1:
                raise ValueError(f"{name}: expected at least 1, got {size}")
        for name, p in dict(dropout=dropout, recurrent_dropout=recurrent_dropout).items():
            if not 0 <= p <= 1:
                raise ValueError(f"{name}: expected a probability, got {p}")
        if proj_size and not info.can_project:
            raise ValueError(f"proj_size: {type(self).__name__} has no projection, got {proj_size}")
        if not 0 <= proj_size < hidden_size:
            raise ValueError(f"proj_size: expected from 0 to less than {hidden_size}, got {proj_size}")
        if read_zoneout(zoneout, self.cell) and proj_size:
            raise ValueError(f"zoneout: expected none with a projection, got {zoneout}")
        self.input_size, self.hidden_size, self.proj_size = input_size, hidden_size, proj_size
        self.num_layers, self.bias, self.batch_first = num_layers, bias, batch_first
        self.dropout, self.bidirectional = float(dropout), bidirectional
        self.recurrent_dropout, self.zoneout = recurrent_dropout, zoneout

        P, D = proj_size or hidden_size, 1 + bidirectional
        names = []
        for layer in range(num_layers):
            for reverse in ("", "_reverse")[:D]:
                inputs = input_size if layer == 0 else D * P
                for parameter in (*self.parameters_of_input, *info.parameters_of(bias, proj_size > 0)):
                    if parameter.needs == "bias" and not bias:
                        continue
                    shape = self._shape_of(parameter, inputs, hidden_size, P)
                    name = f"{parameter.name}_l{layer}{reverse}"
                    if parameter not in self.parameters_of_input:
                        names.append(name)
                    self.register_parameter(name, Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self._names = tuple(names)
        self.reset_parameters()

    @property
    def _info(self) -> CellInfo:
        return CELLS[self.cell]

    def _shape_of(self, parameter: CellParameter, I: int, H: int, P: int) -> tuple[int, ...]:
        return self._info.shape_of(parameter, I, H, P)

    def reset_parameters(self) -> None:
        """Draw all parameters from the uniform distribution over +-1/sqrt(H), as torch.nn's layers do; gains
        of a normalisation become 1, its biases 0."""
        bound = self.hidden_size**-0.5
        for name, parameter in self.named_parameters():
            if name.startswith("ln_"):
                torch.nn.init.constant_(parameter, float("_weight_" in name))
            else:
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
            self.recurrent_dropout,
            read_zoneout(self.zoneout, self.cell),
        )
        weights = gather(self, self._names)
        stack = None if self._info.has("input_matrix") else self._run_stack
        return run_sequence(input, hx, weights, options, lengths, return_all_states, resets, stack)

    if TYPE_CHECKING:

        @typed_as(forward)
        def __call__(self) -> None: ...

    def __prepare_scriptable__(self) -> None:
        raise NotImplementedError(
            f"{type(self).__name__}: torch.jit.script takes only layers that torch.nn has"
        )

    def _run_stack(
        self,
        x: Tensor,
        batch_sizes: Tensor | None,
        states: Sequence[Tensor],
        weights: Sequence[Tensor],
        options: Options,
        return_all_states: bool,
    ) -> tuple[Any, Any]:
        """What run_sequence takes as `stack`."""
        self._check_input(x, weights)
        if return_all_states:
            return run_layers(x, batch_sizes, states, weights, options, self._shares, self._run_one)
        return run_stack(x, batch_sizes, states, weights, options, self._shares, self._run_one), []

    def _check_input(self, x: Tensor, weights: Sequence[Tensor]) -> None:
        """What the operator checks of its input, in the same words, which begin with torch.nn's."""
        if hasattr(weights[0], "orig_weight"):  # an ExpandedWeight
            raise RuntimeError(
                f"{type(self).__name__}: call_for_per_sample_grads cannot compute gradients of each sample: "
                "use torch.func.grad in torch.func.vmap"
            )
        (W_ih,) = gather(self, ["weight_ih_l0"])
        if not torch.jit.is_tracing() and x.shape[-1] != W_ih.shape[-1]:  # a trace keeps no check
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {W_ih.shape[-1]}, got {x.shape[-1]}"
            )
        if x.dtype != W_ih.dtype and not torch._C._is_any_autocast_enabled():
            raise ValueError(
                f"RNN input dtype ({x.dtype}) does not match weight dtype ({W_ih.dtype}). Convert input: "
                f"input.to({W_ih.dtype}), or convert model: model.to({x.dtype})"
            )

    def _shares(self, layer: int, x: Tensor) -> Tensor:
        """The gates' shares from the input of a layer, `[..., D*G*H]`."""
        suffixes = [f"_l{layer}{reverse}" for reverse in ("", "_reverse")[: 1 + self.bidirectional]]
        shares = [self.share(x, *gather(self, self._names_of_input(s)), s) for s in suffixes]
        return shares[0] if len(shares) == 1 else torch.cat(shares, -1)

    def _names_of_input(self, suffix: str) -> list[str]:
        return [p.name + suffix for p in self.parameters_of_input if self.bias or p.needs != "bias"]

    def share(self, x: Tensor, *weights: Any) -> Tensor:
        """The gates' shares from the input of one direction, `[..., G*H]`. weights: those of
        `parameters_of_input` that the layer has, and last the suffix of their names."""
        raise NotImplementedError

    def _run_one(self, run: Callable[..., Any], *arguments: Any) -> Any:
        """One layer, its cell's input at hand: `run(x, batch_sizes, states, weights, options)`."""
        return run(*arguments)

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}"
        defaults = dict(
            proj_size=0,
            num_layers=1,
            bias=True,
            batch_first=False,
            dropout=0.0,
            bidirectional=False,
            recurrent_dropout=0.0,
            zoneout=0.0,
        )
        given = {name: getattr(self, name) for name in defaults}
        return text + "".join(f", {name}={v}" for name, v in given.items() if v != defaults[name])


def _takes_its_own(init: Callable[..., None]) -> Callable[..., None]:
    """Tell `inspect` the arguments that a constructor passes on to RecurrentLayer's beside its own.
    torch.nn.utils.skip_init looks for them."""
    own = [p for p in inspect.signature(init).parameters.values() if p.kind is p.KEYWORD_ONLY]
    all_of_them = [*inspect.signature(RecurrentLayer.__init__).parameters.values(), *own]
    init.__signature__ = inspect.Signature(all_of_them)  # type: ignore[attr-defined]
    return init


class PeepholeLSTM(RecurrentLayer):
    r"""An LSTM whose gates see c (Gers and Schmidhuber 2000, "Recurrent nets that time and count")::

        i  = sigma(W_ii @ x + b_ii + W_hi @ h + b_hi + w_ci * c)
        f  = sigma(W_if @ x + b_if + W_hf @ h + b_hf + w_cf * c)
        g  = tanh (W_ig @ x + b_ig + W_hg @ h + b_hg)
        c' = f * c + i * g
        o  = sigma(W_io @ x + b_io + W_ho @ h + b_ho + w_co * c')
        h' = o * tanh(c')

    Arguments as torch.nn.LSTM's and RecurrentLayer's. The parameters are torch.nn.LSTM's and
    `weight_peephole_l0` `[3, H]`, of i, f and o.
    """

    cell = "peephole_lstm"


class IndRNN(RecurrentLayer):
    r"""Independently recurrent network (Li et al. 2018, https://arxiv.org/abs/1803.04831)::

        h' = relu(W_ih @ x + u * h + b)        or tanh

    A unit sees its own state alone. Parameters: `weight_ih_l0` `[H, I]`, `weight_hh_l0` `[H]`, which is u and
    is drawn from 0 to 1, `bias_l0` `[H]`.

    Args:
        nonlinearity: "relu" or "tanh"
        others: as RecurrentLayer's
    """

    @_takes_its_own
    def __init__(self, *args: Any, nonlinearity: str = "relu", **kwargs: Any) -> None:
        cells = {info.nonlinearity: name for name, info in CELLS.items() if info.layer == "IndRNN"}
        if nonlinearity not in cells:
            raise ValueError(f"nonlinearity: expected 'relu' or 'tanh', got {nonlinearity!r}")
        self.nonlinearity, self.cell = nonlinearity, cells[nonlinearity]
        super().__init__(*args, **kwargs)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for name, parameter in self.named_parameters():
            if name.startswith("weight_hh_"):
                torch.nn.init.uniform_(parameter)

    def extra_repr(self) -> str:
        return super().extra_repr() + f", nonlinearity={self.nonlinearity}" * (self.nonlinearity != "relu")


class _LayerNorm(RecurrentLayer):
    parameters_of_input = (_W_IH, _BIAS, CellParameter("g_ih", "ln_ih_weight", "gate_vector", "always"))

    def share(self, x: Tensor, *weights: Any) -> Tensor:
        W_ih, *bias, gain, _ = weights
        product = linear(x, W_ih)
        gain, *bias = (v.to(product.dtype) for v in (gain, *bias))
        return layer_norm(product, product.shape[-1:], gain, *bias)


class LayerNormLSTM(_LayerNorm):
    r"""An LSTM with layer normalisation (Ba et al. 2016, https://arxiv.org/abs/1607.06450)::

        i, f, g, o = LN(W_ih @ x) * g_ih + LN(W_hh @ h) * g_hh + b
        c' = sigma(f) * c + sigma(i) * tanh(g)
        h' = sigma(o) * tanh(LN(c') * g_c + b_c)

    LN normalises over all gates of a sequence, or over c, with an epsilon of 1e-5; c goes from step to step
    as it is. Arguments as RecurrentLayer's. Parameters: `weight_ih_l0` `[4*H, I]`, `weight_hh_l0` `[4*H, H]`,
    `bias_l0`, `ln_ih_weight_l0` and `ln_hh_weight_l0` `[4*H]`, `ln_c_weight_l0` and `ln_c_bias_l0` `[H]`."""

    cell = "layer_norm_lstm"


class LayerNormGRU(_LayerNorm):
    r"""A GRU with layer normalisation (Ba et al. 2016, https://arxiv.org/abs/1607.06450)::

        x_r, x_z, x_n = LN(W_ih @ x) * g_ih + b
        h_r, h_z, h_n = LN(W_hh @ h) * g_hh
        r, z = sigma(x_r + h_r), sigma(x_z + h_z)
        n  = tanh(x_n + r * h_n)
        h' = (1 - z) * n + z * h

    LN normalises over all gates of a sequence, with an epsilon of 1e-5. Arguments as RecurrentLayer's.
    Parameters: `weight_ih_l0` `[3*H, I]`, `weight_hh_l0` `[3*H, H]`, `bias_l0`, `ln_ih_weight_l0` and
    `ln_hh_weight_l0` `[3*H]`.
    """

    cell = "layer_norm_gru"


class LiGRU(RecurrentLayer):
    r"""Light gated recurrent unit (Ravanelli et al. 2018, https://arxiv.org/abs/1803.10225), as speechbrain::

        n, z = N(W_ih @ x) + W_hh @ h
        n, z = relu(n), sigma(z)
        h' = (1 - z) * n + z * h

    N is a normalisation outside of the recurrence: a torch.nn.BatchNorm1d over all steps and sequences or a
    torch.nn.LayerNorm, both over 2*H. Parameters: `weight_ih_l0` `[2*H, I]`, `weight_hh_l0` `[2*H, H]` with
    rows of n, then z; and the modules `norm_l0`. There is no other bias, and with a normalisation none is
    needed.

    Args:
        normalization: "batchnorm", "layernorm" or None; with None there is a `bias_l0` `[2*H]` if `bias` is
            True
        others: as RecurrentLayer's
    """

    cell = "ligru"

    @_takes_its_own
    def __init__(self, *args: Any, normalization: str | None = "batchnorm", **kwargs: Any) -> None:
        kinds = {"batchnorm": torch.nn.BatchNorm1d, "layernorm": torch.nn.LayerNorm, None: None}
        if normalization not in kinds:
            raise ValueError(
                f"normalization: expected 'batchnorm', 'layernorm' or None, got {normalization!r}"
            )
        self.normalization = normalization
        super().__init__(*args, **kwargs)
        kind = kinds[normalization]
        like = self.weight_ih_l0
        for layer in range(self.num_layers):
            for reverse in ("", "_reverse")[: 1 + self.bidirectional]:
                if kind is not None:
                    norm = kind(2 * self.hidden_size, device=like.device, dtype=like.dtype)
                    self.add_module(f"norm_l{layer}{reverse}", norm)

    @property
    def parameters_of_input(self) -> tuple[CellParameter, ...]:  # type: ignore[override]
        return (_W_IH,) if self.normalization else (_W_IH, _BIAS)

    def share(self, x: Tensor, *weights: Any) -> Tensor:
        W_ih, *bias, suffix = weights
        product = linear(x, W_ih, *bias)
        if not self.normalization:
            return product
        rows = product.flatten(0, -2)
        return getattr(self, f"norm{suffix}")(rows).view(product.shape)

    def extra_repr(self) -> str:
        return super().extra_repr() + f", normalization={self.normalization!r}"


class sLSTM(RecurrentLayer):
    r"""sLSTM of xLSTM (Beck et al. 2024, https://arxiv.org/abs/2405.04517): an LSTM with an exponential input
    gate, a normaliser n and a stabiliser m::

        i, f, z, o = W_ih @ x + W_hh @ h + b
        m' = max(log sigma(f) + m, i)              i where n = 0
        i  = exp(i - m'),  f = exp(log sigma(f) + m - m')
        c' = f * c + i * tanh(z)
        n' = f * n + i
        h' = sigma(o) * c' / n'

    The states are `(h, c, n, m)`, `[L*D, B, H]` each. Parameters: `weight_ih_l0` `[4*H, I]`, `bias_l0`
    `[4*H]`, and `weight_hh_l0` `[4*H, H / num_heads]`: W_hh has `num_heads` blocks on its diagonal, and the
    units of a head see each other alone.

    Args:
        num_heads: blocks of W_hh; it divides hidden_size
        others: as RecurrentLayer's
    """

    cell = "slstm"
    parameters_of_input = (_W_IH, _BIAS)

    @_takes_its_own
    def __init__(self, *args: Any, num_heads: int = 1, **kwargs: Any) -> None:
        self.num_heads = num_heads
        super().__init__(*args, **kwargs)

    def _shape_of(self, parameter: CellParameter, I: int, H: int, P: int) -> tuple[int, ...]:
        if self.num_heads < 1 or H % self.num_heads:
            raise ValueError(f"num_heads: expected a divisor of {H}, got {self.num_heads}")
        shape = super()._shape_of(parameter, I, H, P)
        return (shape[0], H // self.num_heads) if parameter.kind == "state_matrix" else shape

    def share(self, x: Tensor, *weights: Any) -> Tensor:
        return linear(x, *weights[:-1])

    def _run_one(self, run: Callable[..., Any], *arguments: Any) -> Any:
        """Heads do not see each other: each is a layer of its own."""
        N = self.num_heads
        return run(*arguments) if N == 1 else run_heads(run, arguments, N, 1 + self.bidirectional, of_head)

    def extra_repr(self) -> str:
        return super().extra_repr() + f", num_heads={self.num_heads}" * (self.num_heads > 1)


def of_head(weights: Sequence[Tensor], k: int, N: int) -> list[Tensor]:
    """The weights of head k of N."""
    return [w.unflatten(0, (4, N, -1))[:, k].flatten(0, 1) for w in weights]


def run_heads(
    run: Callable[..., Any], arguments: Any, N: int, D: int, of_head: Callable[[Any, int, int], Any]
) -> Any:
    """Run each of N heads as a layer of D directions with `of_head(weights, k, N)`; see _run_one."""
    x, batch_sizes, states, weights, options = arguments
    gates = x.unflatten(-1, (D, 4, N, -1))
    chunks = zip(*(s.chunk(N, -1) for s in states), strict=True) if states else [()] * N
    results = [
        run(gates.select(-2, k).flatten(-3), batch_sizes, list(chunk), of_head(weights, k, N), options)
        for k, chunk in enumerate(chunks)
    ]
    return _join_heads(results, D)


def _join_heads(results: Sequence[Any], D: int) -> Any:
    """The results of each head side by side: `[y, *last]` of run_layer, or y, last and every state."""

    def join(*of_heads: Any) -> Any:
        if isinstance(of_heads[0], Tensor):
            return torch.cat(of_heads, -1)
        return [join(*each) for each in zip(*of_heads, strict=True)]

    y, *rest = join(*results)
    heads = [r[0].unflatten(-1, (D, -1)) for r in results]  # of y; both directions stand side by side in it
    y = torch.cat(heads, -1).flatten(-2)
    return [y, *rest]
