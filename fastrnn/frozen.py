"""Layers and cells for inference, whose weights are packed once."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import is_tensor_like

from . import _C, own_cell
from .cells import CELLS, CellInfo
from .conversion import _find, _name
from .export import nodes
from .functional import (
    KindError,
    _begin_anew,
    _join_states,
    _kind,
    _list_states,
    read_zoneout,
    run_sequence,
)
from .layers import RecurrentLayer, gather, of_head, run_heads
from .sequences import Options, read_resets, run_each_layer
from .signatures import Lengths, Resets, TensorOrPacked, typed_as
from .transforms.fx import Leaf, forward_error

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["FrozenCell", "FrozenLayer", "freeze"]

M = TypeVar("M", bound=torch.nn.Module)

_MATRICES = ("input_matrix", "state_matrix", "projection")
_HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
)


def freeze(model: M, dtype: torch.dtype | None = None, *, activations: torch.dtype | None = None) -> M:
    """Make a copy of a model for inference, in which the weights of recurrent layers are packed once.

        fast = fastrnn.freeze(model)                    # the same results, with less time for short calls
        small = fastrnn.freeze(model, torch.int8)       # a quarter of the memory, and quicker still

    Every LSTM, GRU, RNN and cell of torch.nn and every layer of fastrnn becomes a FrozenLayer or FrozenCell;
    all else is deep-copied. A layer in several places of the model stays one layer. The model itself does not
    change, and what changes in it later does not reach the copy.

    Frozen layers are called as the layers were, with the same results: shapes, dtypes and errors. They have
    no parameters, and their results never require a gradient. They run on the CPU and behave as in
    evaluation, in whatever mode they are: no dropout, of zoneout the expected value. `.to()` and `.half()`
    leave their dtypes as they are. Forward hooks are kept. They can be copied, pickled, saved, exported,
    compiled and traced, but not scripted.

    Args:
        model: a module, which may itself be such a layer
        dtype: what the weight matrices of float32 layers are stored as. None: as they are, which also layers
            of float64 and bfloat16 can be. `torch.float32`: the same, of float32 alone. `torch.bfloat16`:
            half of the memory; they are widened in registers. `torch.int8`: a quarter, integers from -127 to
            127 with a scale for each row of a matrix, its largest number by 127. Input, states, results and
            all other weights stay float32, and sums are float32
        activations: what int8 weights are multiplied with. `torch.int8`, the default: input and h are
            quantized, each row of a batch by its largest number in every step, for the integer
            instructions of the processor (VNNI where it has them); a row with NaN or infinity in it gives
            NaN. `torch.float32`: nothing but the weights is rounded, which is more exact and slower

    Returns:
        The copy.

    Raises:
        TypeError: `model` is no torch.nn.Module.
        ValueError: `dtype` or `activations` is none of those above, or `activations` is given for weights
            that are not int8.
        NotImplementedError: a layer is not on the CPU; has another dtype than float32, or, with dtype=None,
            than float32, float64 and bfloat16; or a weight of no number. The error begins with its path.

    Warns:
        UserWarning: layers are left as they are, copied only. The warning lists them with the reasons:
            subclasses with a `forward` or `__call__` of their own, modules whose `forward` was replaced on
            the instance, ScriptModules, quantized layers.
        UserWarning: there is no recurrent layer.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"fastrnn.freeze: model: expected a torch.nn.Module, got {type(model).__name__}")
    if dtype not in (None, torch.float32, torch.bfloat16, torch.int8):
        raise ValueError(f"dtype: expected None, torch.float32, torch.bfloat16 or torch.int8, got {dtype}")
    if activations is not None and (dtype != torch.int8 or activations not in (torch.int8, torch.float32)):
        raise ValueError(
            f"activations: expected torch.int8 or torch.float32 with int8 weights, got {activations} "
            f"with {dtype}"
        )
    frozen: dict[int, Any] = {}
    left, found = [], False
    for path, module, runs_on, note in _find(model):
        found = True
        if runs_on == "left" or isinstance(module, torch.jit.ScriptModule):
            left.append(_name(path, module, note))
        elif reason := _find_own_call(module):
            left.append(_name(path, module, reason))
        elif not isinstance(module, _Frozen):
            kind = FrozenCell if isinstance(module, torch.nn.RNNCellBase) else FrozenLayer
            try:
                with torch.no_grad(), _in_evaluation(module):
                    layer = kind(module, dtype, activations)
                frozen[id(module)] = layer.train(module.training)
            except NotImplementedError as error:
                raise NotImplementedError(f"{path or type(module).__name__}: {error}") from None
    if left:
        warnings.warn("fastrnn.freeze left these modules as they are: " + "; ".join(left), stacklevel=2)
    if not found:
        warnings.warn(f"fastrnn.freeze found no recurrent layer in {type(model).__qualname__}", stacklevel=2)
    return copy.deepcopy(model, frozen)


def _find_own_call(module: torch.nn.Module) -> str | None:
    """Why a frozen layer would not compute what a call of `module` does; None if it would."""
    classes = type_before_parametrizations(module).__mro__
    for name in ("forward", "__call__"):
        if name in vars(module):
            return f"its {name} is replaced on the instance"
        definer = next(c for c in classes if name in vars(c))
        if definer.__module__.split(".")[0] not in ("torch", "fastrnn"):
            return f"a subclass, with a {name} of its own in {definer.__qualname__}"
    return None


class PackedMatrix(torch.nn.Module):
    """A matrix W `[N, K]` that is packed for products `x @ W.T`, and for nothing else.

    Attributes:
        shape, dtype: N and K; what x and the product are
        weights: what it is stored as, see _Frozen
        packed: bytes
    """

    packed: Tensor

    def __init__(self, matrix: Tensor, weights: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.shape, self.dtype, self.weights = tuple(matrix.shape), matrix.dtype, weights
        stored, scales = _store(matrix, weights)
        self.register_buffer("packed", _C.pack_frozen_matrix(stored, scales, dtype, weights))

    def forward(self, x: Tensor) -> Tensor:
        """x: `[..., K]` of `dtype`. Returns `[..., N]`. Raises RuntimeError for another size, and for an x
        that requires a gradient while gradients are enabled."""
        return torch.ops.fastrnn.frozen_product(x, self.packed, self.weights, self.shape[0])


def _store(matrix: Tensor, weights: str) -> tuple[Tensor, Tensor | None]:
    """A matrix as numbers of the kind `weights` (see _Frozen), and of int8 the scale of each row, `[N]`."""
    if weights.startswith("int8"):
        scales = matrix.abs().amax(1).clamp(min=1e-30) / 127
        return (matrix / scales.unsqueeze(1)).round().to(torch.int8), scales
    return matrix.to(getattr(torch, weights)).contiguous(), None


def _refuse_onnx(layer: torch.nn.Module) -> None:
    if nodes.is_exporting():
        raise NotImplementedError(
            f"{type(layer).__name__}: ONNX has no packed weights: export the layer that it was made of"
        )


class _Frozen(Leaf):
    """What frozen layers and cells have in common.

    Attributes:
        cell: its name in fastrnn.cells.CELLS
        dtype: of input, states and results
        weights: what the weights are: "float32", "float64", "bfloat16", "int8", or "int8_wide" for int8
            weights that multiply float32
        kind, description: the class of the layer that it was made of, and that layer's extra_repr()
        header: text and struct of the cell's header, if fastrnn.build_cell made it
    """

    cell: str
    dtype: torch.dtype

    def __init__(self, source: torch.nn.Module, dtype: torch.dtype | None, activations: torch.dtype | None):
        super().__init__()
        like = next(source.parameters())
        if like.device.type != "cpu":
            raise NotImplementedError(f"expected a layer on the CPU, got one on {like.device}")
        if dtype not in (None, like.dtype) and like.dtype != torch.float32 or like.dtype == torch.float16:
            raise NotImplementedError(f"expected a layer of float32, got {like.dtype}")
        self.cell, self.dtype = _cell_of(source), like.dtype
        sources = own_cell._SOURCES
        self.header = next((sources[c] for c in type(source).__mro__ if c in sources), None)
        self.kind = type_before_parametrizations(source).__name__
        self.description = source.extra_repr()
        wide = "_wide" if activations == torch.float32 else ""
        self.weights = str(dtype or like.dtype).removeprefix("torch.") + wide
        _compute_weights(source)
        for name in _HOOKS:
            hooks = ((k, h) for k, h in getattr(source, name).items() if not _computes_weight(h))
            setattr(self, name, type(getattr(source, name))(hooks))

    @property
    def info(self) -> CellInfo:
        """What there is to know of the cell."""
        return CELLS[self.cell]

    def _pack(self, weights: Sequence[Tensor], parameters: Sequence[Any]) -> Tensor:
        """The weights of one direction as the kernels take them."""
        stored, scales = [], []
        for weight, parameter in zip(weights, parameters, strict=True):
            if 0 in weight.shape:
                raise NotImplementedError(
                    f"{parameter.name}: expected sizes of at least 1, got {list(weight.shape)}"
                )
            if parameter.kind in _MATRICES:
                weight, scale = _store(weight, self.weights)
                scales += [] if scale is None else [scale]
            stored.append(weight.detach())
        return _C.pack_frozen(stored, scales, self.cell, self.dtype, self.weights)

    def _options(self) -> tuple[Any, ...]:
        """What _C.FrozenCall takes after cell, dtype and weights."""
        raise NotImplementedError

    def _prepare(self) -> None:
        """Make `_direct(input, hx, buffers)`, which runs plain calls, and returns None for others."""
        self._direct = _C.FrozenCall(self.cell, self.dtype, self.weights, *self._options())

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())  # without what torch.compile made
        del state["_direct"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.header is not None:  # of a cell that this process may not know yet
            own_cell._build(*self.header, self.header[1])
        self._prepare()

    def __prepare_scriptable__(self) -> None:
        raise NotImplementedError(f"{self._get_name()}: torch.jit.script takes no frozen layers")

    def nbytes(self) -> int:
        """Bytes of the weights and biases in memory."""
        return sum(buffer.nbytes for buffer in self.buffers())

    def extra_repr(self) -> str:
        return f"{self.description}, weights={self.weights}, {_size(self.nbytes())}"

    def __repr__(self) -> str:  # in one line, whatever it consists of
        return f"{self._get_name()}({self.extra_repr()})"

    def _get_name(self) -> str:
        return f"Frozen{self.kind}"

    def train(self, mode: bool = True) -> Self:
        """Set the flag `training`, which changes nothing: a frozen layer is as in evaluation."""
        self.training = mode
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # .to(), .half() and .cuda(): a layer keeps its dtype, and there is no other device.
        device = fn(torch.empty(0, dtype=torch.uint8)).device
        if device.type not in ("cpu", "meta"):
            raise NotImplementedError(f"{self._get_name()}: expected to stay on the CPU, got {device}")

        def change(tensor: Tensor) -> Tensor:
            changed = fn(tensor)
            return changed if changed.dtype == tensor.dtype else tensor.to(changed.device)

        return super()._apply(change, recurse)

    def _cast(self, value: Any) -> Any:
        """An argument of a call in torch.autocast, whose operators hand on tensors of 16 bits."""
        if isinstance(value, PackedSequence):
            return value.to(self.dtype)
        if isinstance(value, tuple | list):
            return type(value)(map(self._cast, value))
        return value.to(self.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _cell_of(source: Any) -> str:
    """The name of the cell of a layer or cell of torch.nn or fastrnn."""
    if isinstance(source, RecurrentLayer):
        return source.cell
    if hasattr(source, "_name_of_cell"):
        return source._name_of_cell()
    if hasattr(source, "_cell"):
        return source._cell
    kind = next(
        k
        for k in ("LSTM", "GRU", "RNN")
        if isinstance(source, (getattr(torch.nn, k), getattr(torch.nn, k + "Cell")))
    )
    return {"LSTM": "lstm", "GRU": "gru"}.get(kind) or f"rnn_{source.nonlinearity}"


def _computes_weight(hook: Any) -> bool:
    """Whether a hook is one of torch.nn.utils.weight_norm, spectral_norm or prune, which computes a weight
    before every call."""
    return type(hook).__module__.startswith("torch.nn.utils.")


def _compute_weights(source: torch.nn.Module) -> None:
    """Let these hooks compute the weights of the moment."""
    for hook in source._forward_pre_hooks.values():
        if _computes_weight(hook):
            hook(source, ())


@contextlib.contextmanager
def _in_evaluation(module: torch.nn.Module) -> Iterator[None]:
    """Let what computes weights (spectral_norm) change nothing of its own."""
    flags = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, flag in flags:
            m.training = flag


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e6:.2f} MB" if nbytes >= 1e5 else f"{nbytes / 1e3:.1f} kB"


def _operator(name: str, input: Any) -> Any:
    """The operator fastrnn::`name`: through _C, which is quicker, unless something records the call."""
    if type(input) is Tensor and not torch.compiler.is_compiling():
        return getattr(_C, name)
    return getattr(torch.ops.fastrnn, name).default


class FrozenLayer(_Frozen):
    """A layer that `freeze` made.

    Attributes:
        input_size, hidden_size, proj_size, num_layers, bias, batch_first, bidirectional: as of the layer that
            it was made of
        zoneout: of each state, `()` for none
        num_heads: of an sLSTM, else 1
        cell: the name of the cell, a key of fastrnn.cells.CELLS
        dtype: of input, states and results
        weights: what the weights are stored as: "float32", "float64", "bfloat16", "int8", or "int8_wide" for
            int8 weights that multiply float32
    """

    def __init__(self, source: Any, dtype: torch.dtype | None, activations: torch.dtype | None):
        super().__init__(source, dtype, activations)
        self.input_size, self.hidden_size = source.input_size, source.hidden_size
        self.proj_size, self.num_layers = source.proj_size, source.num_layers
        self.bidirectional, self.batch_first = source.bidirectional, source.batch_first
        self.bias = source.bias
        self.zoneout = read_zoneout(getattr(source, "zoneout", 0.0), self.cell)
        self.num_heads = getattr(source, "num_heads", 1)
        P, GH = self.proj_size or self.hidden_size, len(self.info.gates) * self.hidden_size
        self._shapes = (torch.empty(GH, self.input_size, device="meta"), torch.empty(GH, P, device="meta"))
        parameters = self.info.parameters_of(self.bias, self.proj_size > 0)
        for suffix in self._suffixes():
            weights = gather(source, [p.name + suffix for p in parameters])
            N = self.num_heads
            for k in range(N):
                name, own = f"packed{suffix}", weights
                if N > 1:
                    name, own = f"{name}_head{k}", of_head(weights, k, N)
                self.register_buffer(name, self._pack(own, parameters))
        self.inputs = None if self.info.has("input_matrix") else self._freeze_inputs(source)
        self._prepare()

    def _prepare(self) -> None:
        super()._prepare()
        if self.inputs is not None:
            self._direct = lambda input, hx, buffers: None

    def _options(self) -> tuple[Any, ...]:
        sizes = self.input_size, self.hidden_size, self.proj_size, self.num_layers
        return *sizes, self.bidirectional, self.batch_first, self.zoneout, False

    def _suffixes(self) -> list[str]:
        directions = ("", "_reverse")[: 1 + self.bidirectional]
        return [f"_l{layer}{reverse}" for layer in range(self.num_layers) for reverse in directions]

    def _freeze_inputs(self, source: RecurrentLayer) -> RecurrentLayer:
        """What of a layer makes the gates' shares from its input, without parameters."""
        inputs = copy.deepcopy(source).eval().requires_grad_(False)
        inputs.__class__ = type_before_parametrizations(source)
        inputs._modules.pop("parametrizations", None)
        for name in _HOOKS:
            getattr(inputs, name).clear()
        own = {
            name + suffix: torch.clone(*gather(source, [name + suffix]))
            for suffix in self._suffixes()
            for name in (p.name for p in source.parameters_of_input)
            if hasattr(source, name + suffix)
        }
        for name in list(inputs._parameters):
            delattr(inputs, name)
        for name, value in own.items():
            vars(inputs).pop(name, None)  # what was computed of other parameters
            if 0 in value.shape:
                raise NotImplementedError(f"{name}: expected sizes of at least 1, got {list(value.shape)}")
            if value.dim() == 2:
                inputs.add_module(name, PackedMatrix(value, self.weights, self.dtype))
            else:
                inputs.register_buffer(name, value)
        for module in inputs.modules():  # of a normalisation
            for name, parameter in list(module._parameters.items()):
                del module._parameters[name]
                module.register_buffer(name, None if parameter is None else parameter.detach().clone())
        return inputs

    def forward(
        self,
        input: TensorOrPacked,
        hx: Tensor | tuple[Tensor, ...] | None = None,
        lengths: Lengths = None,
        return_all_states: bool = False,
        resets: Resets = None,
    ) -> tuple[Any, ...]:
        """Run the layer over a sequence, as the layer that it was made of.

        input, hx, lengths, return_all_states, resets, and what is returned: see `fastrnn.LSTM.forward` and
            `fastrnn.layers.RecurrentLayer.forward`

        Raises RuntimeError if gradients are enabled and the input or a state requires one; for all else the
        errors of the layer: KindError for an input or hx of another kind, ValueError for another dtype or
        number of dimensions of the input, RuntimeError for another size, or another dtype of a state.
        """
        if isinstance(input, Proxy):
            raise forward_error(self)
        if lengths is None and resets is None and not return_all_states and not torch.compiler.is_compiling():
            results = self._direct(input, hx, self._buffers)
            if results is not None:
                return results
        if torch.is_autocast_enabled("cpu"):
            input, hx = self._cast(input), self._cast(hx)
        _refuse_onnx(self)
        if isinstance(input, Tensor) and input.dim() not in (2, 3):  # the operator says so
            one_each = [*self._buffers.values()][: len(self._suffixes())]
            return self._call(input, None, [], self.batch_first, one_each)
        options = Options(
            self.cell,
            self.bias,
            self.num_layers,
            bidirectional=self.bidirectional,
            batch_first=self.batch_first,
            zoneout=self.zoneout,
        )
        return run_sequence(input, hx, self._shapes, options, lengths, return_all_states, resets, self._stack)

    if TYPE_CHECKING:

        @typed_as(forward)
        def __call__(self) -> None: ...

    def flatten_parameters(self) -> None:
        """Nothing, as there are none: models call it on torch.nn's layers."""

    def _call(
        self,
        x,
        batch_sizes,
        states,
        batch_first,
        packed=None,
        num_layers=None,
        hidden_size=None,
        resets=None,
        every=False,
    ):
        """The operator; with `packed` and so on of some of the layers."""
        return _operator("frozen_rnn", x)(
            x,
            batch_sizes,
            states,
            list(self._buffers.values()) if packed is None else packed,
            self.cell,
            self.dtype,
            self.weights,
            self.input_size,
            hidden_size or self.hidden_size,
            self.proj_size,
            num_layers or self.num_layers,
            self.bidirectional,
            batch_first,
            self.zoneout,
            resets,
            every,
        )

    def _stack(self, x, batch_sizes, states, weights, options, return_all_states):
        """What run_sequence takes as `stack`."""
        if batch_sizes is not None and not states and not torch.jit.is_tracing():
            # The operator would make them, but a graph cannot look into batch_sizes there.
            B, LD = int(batch_sizes[0]), self.num_layers * (1 + self.bidirectional)
            widths = self.proj_size or self.hidden_size, *[self.hidden_size] * (len(self.info.states) - 1)
            states = [x.new_zeros(LD, B, width) for width in widths]
        if self.inputs is None:
            results = self._call(
                x, batch_sizes, states, False, resets=options.resets, every=return_all_states
            )
            return (
                self._split(x, results, self.num_layers, self.hidden_size)
                if return_all_states
                else (results, [])
            )
        self.inputs._check_input(x, weights)
        D, N = 1 + self.bidirectional, self.num_heads

        def run(x, batch_sizes, states, packed, options):
            size = self.hidden_size // N
            results = self._call(
                x, batch_sizes, states, False, packed, 1, size, options.resets, return_all_states
            )
            if not return_all_states:
                return results
            (y, *last), every = self._split(x, results, 1, size)
            return y, last, every

        def run_one(x, batch_sizes, states, packed, options):
            if N == 1:
                return run(x, batch_sizes, states, packed, options)
            return run_heads(
                run, (x, batch_sizes, states, packed, options), N, D, lambda packed, k, N: packed[k::N]
            )

        packed = list(self._buffers.values())
        layers = run_each_layer(x, batch_sizes, states, packed, options, run_one, self.inputs._shares)
        results = [r for _, r in layers]
        of_layers = [last for _, last, _ in results] if return_all_states else [last for _, *last in results]
        last = [torch.cat(s) for s in zip(*of_layers, strict=True)]
        every = [e for *_, e in results] if return_all_states else []
        return [results[-1][0], *last], [torch.cat(s, -2) for s in zip(*every, strict=True)]

    def _split(self, x, results, num_layers, H):
        """Results of the operator with all states: `[y, *last]`, and each state of every step with the
        leading dimensions of x, `[..., L*D, .]`."""
        D, states = 1 + self.bidirectional, len(self.info.states)
        results, every = results[: 1 + states], results[1 + states :]
        each = 1 + (states > 1)
        h = [y.unflatten(-1, (D, -1)) for y in every[::each]]
        all_states = [torch.cat(h, -2)]
        for k in range(states - 1):
            c = [e[..., k * H : (k + 1) * H].movedim(0, 1) for e in every[1::each]]
            all_states.append(torch.cat(c, 1).view(*x.shape[:-1], num_layers * D, H).to(self.dtype))
        return results, all_states


class FrozenCell(_Frozen):
    """A cell that `freeze` made.

    Attributes:
        input_size, hidden_size, bias: as of the cell that it was made of
        cell, dtype, weights: see `FrozenLayer`
        packed: the weights, bytes
    """

    packed: Tensor

    def __init__(self, source: Any, dtype: torch.dtype | None, activations: torch.dtype | None):
        super().__init__(source, dtype, activations)
        self.input_size, self.hidden_size, self.bias = source.input_size, source.hidden_size, source.bias
        parameters = self.info.parameters_of(source.bias, False)
        weights = gather(source, [p.name for p in parameters])
        self.register_buffer("packed", self._pack(weights, parameters))
        self._prepare()

    def _options(self) -> tuple[Any, ...]:
        return self.input_size, self.hidden_size, 0, 1, False, False, (), True

    def forward(
        self, input: Tensor, hx: Tensor | tuple[Tensor, ...] | None = None, resets: Tensor | None = None
    ) -> Any:
        """Run one step, as the cell that it was made of.

        input, hx, resets, and what is returned: see `fastrnn.LSTMCell.forward`

        Raises RuntimeError if gradients are enabled and the input or a state requires one; for all else the
        errors of the cell, as FrozenLayer.forward.
        """
        if isinstance(input, Proxy):
            raise forward_error(self)
        if resets is None and not torch.compiler.is_compiling():
            results = self._direct(input, hx, self._buffers)
            if results is not None:
                return results
        if torch.is_autocast_enabled("cpu"):
            input, hx = self._cast(input), self._cast(hx)
        _refuse_onnx(self)
        if not (isinstance(input, Tensor) or is_tensor_like(input)):
            raise KindError(f"{self.cell}: input: expected Tensor, got {_kind(input)}")
        states = _list_states(self.cell, hx)
        if resets is not None:
            resets = read_resets(resets, input.shape[:-1])
            states = [_begin_anew(s, resets) for s in states]
        return _join_states(
            _operator("frozen_cell", input)(
                input,
                states,
                self.packed,
                self.cell,
                self.dtype,
                self.weights,
                self.input_size,
                self.hidden_size,
            )
        )

    if TYPE_CHECKING:

        @typed_as(forward)
        def __call__(self) -> None: ...
