"""Modules that replace torch.nn.LSTM, GRU, RNN and their cells one for one.

Each class subclasses the torch.nn class of the same name and differs from it in `forward` only: constructor,
parameters, initial values, state dict, repr and pickling are torch.nn's own.
"""

import functools
import inspect
import types
import weakref
from abc import ABCMeta
from operator import is_
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor
from torch._jit_internal import _overload_method
from torch.fx import Proxy
from torch.nn import Parameter
from torch.nn.utils.rnn import PackedSequence

from . import reference
from .cells import CELLS
from .functional import name_gru, name_rnn, read_zoneout, run_sequence, run_step
from .sequences import Options
from .signatures import Lengths, Pair, Resets, TensorOrPacked, TensorOrPackedT, Zoneout, typed_as
from .transforms.fx import INSTALLED, Leaf, forward_error

if TYPE_CHECKING:  # what the classes of layers and cells are mixed with
    from torch.nn import RNNBase, RNNCellBase
else:
    RNNBase = RNNCellBase = object

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]

_CELL_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def gather(module, names):
    """The tensors that `module` holds under `names` at this moment.

    Looked up by name in every call, so that what replaces a parameter (an assignment, functional_call,
    weight_norm, a parametrization, a DataParallel replica) is never missed. `_parameters` is the short way
    to `getattr`.
    """
    parameters = module._parameters
    try:
        return [parameters[name] for name in names]
    except KeyError:  # some weight is not a Parameter of the module: a plain tensor or computed from others
        return [getattr(module, name) for name in names]


class _Class(ABCMeta):
    """The class of the classes here. While one of them has a name of torch.nn, the instances and subclasses
    of torch.nn's own class count as its own. It is an ABCMeta, so that it goes with an abstract base."""

    def __instancecheck__(cls, instance):
        own = INSTALLED.get(cls)
        return super().__instancecheck__(instance) if own is None else isinstance(instance, own)

    def __subclasscheck__(cls, subclass):
        own = INSTALLED.get(cls)
        return super().__subclasscheck__(subclass) if own is None else issubclass(subclass, own)


_CELLS_OF_TORCH = {name for name, row in reference.CELLS.items() if row.in_torch}

_NOTHING = weakref.ref(Parameter())  # which is gone at once


def _gather_flat(layer):
    """The weights of a layer in order, by torch.nn's rule.

    They are the list `_flat_weights`, which anyone may change. But when a name of a weight holds another
    tensor than in the last call, they are what the names hold, and the list is made again.
    """
    held, flat = layer._parameters, layer._flat_weights
    if not layer._weight_was_set and len(held) >= len(flat) and all(map(is_, flat, held.values())):
        return flat  # the quick way: the list is what the names hold, and was it in the last call
    names, refs = layer._flat_weights_names, layer._flat_weight_refs
    try:
        weights = gather(layer, names)
    except AttributeError:  # a replica that nobody has given its weights: torch.nn passes over such names
        return flat
    is_same = all(ref is not None and ref() is w for ref, w in zip(refs, weights, strict=True))
    if torch.compiler.is_compiling():
        return flat if is_same else weights
    if not is_same:
        # torch.nn's list keeps what functional_call passed or a parametrization computed until the next call.
        # Here it is not made of these, as what they were computed from would stay in memory.
        attributes = vars(layer)
        lasts = all(isinstance(w, Parameter) or n in attributes for w, n in zip(weights, names, strict=True))
        layer._flat_weight_refs = [weakref.ref(w) if lasts else _NOTHING for w in weights]
        if not lasts:
            layer._weight_was_set = True
            return weights
        layer._flat_weights = weights
    layer._weight_was_set = False
    return layer._flat_weights


# What torch.nn's forward compares with its input
_SIZES = {"input_size", "hidden_size", "proj_size"}
# What it calls: a subclass, or one object, may have its own
_METHODS = {
    "check_forward_args",
    "check_hidden_size",
    "check_input",
    "get_expected_cell_size",
    "get_expected_hidden_size",
    "permute_hidden",
}


def _each(states, change):
    return tuple(map(change, states)) if type(states) in (tuple, list) else change(states)


class _Layer(Leaf, RNNBase, metaclass=_Class):
    """`forward` of a whole-sequence layer, for a subclass of torch.nn.RNNBase.

    Set `checkpoint_gates` on a layer to train with less memory and more time; see `fastrnn.functional.lstm`.
    """

    checkpoint_gates = False
    recurrent_dropout = 0.0
    if TYPE_CHECKING:  # TorchScript does not know the type
        zoneout: Zoneout
    else:
        zoneout = 0.0
    _has_own_methods = False
    _weight_was_set = False  # under its name, since the last call

    __constants__ = [*torch.nn.RNNBase.__constants__, "checkpoint_gates"]  # for TorchScript
    __jit_unused_properties__ = [*torch.nn.RNNBase.__jit_unused_properties__, "_is_beyond_torch"]

    def _set_noise(self, recurrent_dropout: float, zoneout: Zoneout) -> None:
        """Take the options of the constructor that torch.nn does not have."""
        if not 0 <= recurrent_dropout <= 1:
            raise ValueError(f"recurrent_dropout: expected a probability, got {recurrent_dropout}")
        if read_zoneout(zoneout, self._name_of_cell()) and self.proj_size:
            raise ValueError(f"zoneout: expected none with a projection, got {zoneout}")
        self.recurrent_dropout, self.zoneout = recurrent_dropout, zoneout

    @property
    def _is_beyond_torch(self) -> bool:
        """Whether it has a cell or options that torch.nn does not have."""
        cell = self._name_of_cell()
        noise = self.recurrent_dropout or read_zoneout(self.zoneout, cell)
        return bool(noise) or cell not in _CELLS_OF_TORCH

    def _name_of_cell(self) -> str:
        return self.mode.lower()

    def extra_repr(self) -> str:
        own: dict[str, Any] = dict(recurrent_dropout=0.0, zoneout=0.0, reset_after=True)
        given = {name: getattr(self, name, default) for name, default in own.items()}
        if self._name_of_cell() not in _CELLS_OF_TORCH and isinstance(self, RNN):
            own["nonlinearity"], given["nonlinearity"] = None, self.nonlinearity
        return super().extra_repr() + "".join(f", {n}={v}" for n, v in given.items() if v != own[n])

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        own = {name for c in cls.__mro__ if c.__module__ != torch.nn.RNNBase.__module__ for name in vars(c)}
        if own & _METHODS:
            cls._has_own_methods = True
            # TorchScript, whose code calls none of them, refuses.
            cls._script_rows = None  # type: ignore[assignment, method-assign]

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name in _METHODS or name in _SIZES and "_flat_weights" in vars(self):
            self._has_own_methods = True
        elif name in vars(self).get("_flat_weights_names", ()):
            self._weight_was_set = True

    def _take_over(self):
        """Catch up on what __setattr__ would have noted while this was an object of torch.nn's class."""
        if vars(self).keys() & _METHODS or not self._has_its_sizes():
            self._has_own_methods = True
        pairs = zip(self._flat_weight_refs, self._flat_weights, strict=False)
        if any(ref is None or ref() is not w for ref, w in pairs):
            self._weight_was_set = True

    def _has_its_sizes(self):
        """Whether the sizes are those of the weights; they may be changed afterwards."""
        sizes = [weight.shape[-1] for weight in self._flat_weights[:2] if weight is not None]
        return sizes == [self.input_size, self.proj_size or self.hidden_size]

    def _run_with_own_methods(self, input, hx, lengths, return_all_states, resets):
        """`_run` that calls _METHODS as torch.nn's forward does."""
        packed = isinstance(input, PackedSequence)
        x, batch_sizes, order, restored = input if packed else (input, None, None, None)
        if not isinstance(x, Tensor) or not packed and x.dim() not in (2, 3):
            return self._run(
                input, hx, lengths, return_all_states, resets, with_own_methods=False
            )  # an error
        unbatched, batch_dim = not packed and x.dim() == 2, 0 if self.batch_first else 1
        if unbatched:
            x = x.unsqueeze(batch_dim)
        if hx is None:
            B = x.shape[batch_dim] if batch_sizes is None else int(batch_sizes[0])
            LD = self.num_layers * (1 + self.bidirectional)
            hx = x.new_zeros(LD, B, self.proj_size or self.hidden_size)
            others = len(CELLS[self._name_of_cell()].states) - 1
            if others:
                hx = hx, *(x.new_zeros(LD, B, self.hidden_size) for _ in range(others))
        else:
            hx = _each(hx, lambda s: s.unsqueeze(1)) if unbatched else hx
            hx = self.permute_hidden(hx, order)
        if not (packed and self.mode == "LSTM"):  # torch.nn.LSTM checks no packed input
            self.check_forward_args(x, hx, batch_sizes)
        hx = _each(hx, lambda s: s.squeeze(1)) if unbatched else hx
        given = PackedSequence(x, batch_sizes) if packed else input
        results = self._run(given, hx, lengths, return_all_states, resets, with_own_methods=False)
        output, last, *every = results
        if packed:

            def reorder(p):
                return PackedSequence(p.data, batch_sizes, order, restored)

            output, every = reorder(output), [_each(s, reorder) for s in every]
        return output, self.permute_hidden(last, restored), *every

    def _run(self, input, hx, lengths, return_all_states, resets, with_own_methods=True):
        """What `forward` does in Python."""
        if isinstance(input, Proxy):
            raise forward_error(self)
        if with_own_methods and self._has_own_methods:
            return self._run_with_own_methods(input, hx, lengths, return_all_states, resets)
        cell = self._name_of_cell()
        options = Options(
            cell,
            self.bias,
            self.num_layers,
            self.dropout,
            self.training,
            self.bidirectional,
            self.batch_first,
            self.checkpoint_gates,
            self.recurrent_dropout,
            read_zoneout(self.zoneout, cell),
        )
        return run_sequence(input, hx, _gather_flat(self), options, lengths, return_all_states, resets)

    def __prepare_scriptable__(self):
        if self._is_beyond_torch:
            raise NotImplementedError(
                f"{type(self).__name__}: torch.jit.script takes only layers that torch.nn has, got {self}"
            )
        return self

    # The same for TorchScript, which wants one type for each argument. Lists are unpacked and not indexed, so
    # that the ONNX exporter knows what is in them.

    def _script_rows(self, x: Tensor, batch_sizes: Tensor | None, states: list[Tensor]) -> list[Tensor]:
        return torch.ops.fastrnn.rnn(
            x,
            batch_sizes,
            states,
            self._flat_weights,
            self.mode.lower(),
            self.bias,
            self.num_layers,
            self.dropout,
            self.training,
            self.bidirectional,
            self.batch_first and batch_sizes is None,
            self.checkpoint_gates,
        )

    def _script_packed(
        self, input: PackedSequence, states: list[Tensor]
    ) -> tuple[PackedSequence, list[Tensor]]:
        x, batch_sizes, order, restored = input
        if order is not None:
            states = [state.index_select(1, order) for state in states]
        values = self._script_rows(x, batch_sizes, states)
        y, states = PackedSequence(values[0], batch_sizes, order, restored), values[1:]
        if restored is not None:
            states = [state.index_select(1, restored) for state in states]
        return y, states


class _Cell(Leaf, RNNCellBase, metaclass=_Class):
    """`forward` of a single step, for a subclass of torch.nn.RNNCellBase; `_cell` names the cell."""

    __jit_unused_properties__ = ["_cell", "_is_beyond_torch"]

    _size_was_set = False

    @property
    def _is_beyond_torch(self) -> bool:
        """Whether torch.nn does not have the cell."""
        return self._cell in CELLS and self._cell not in _CELLS_OF_TORCH

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name == "hidden_size" and "weight_hh" in self._parameters:
            self._size_was_set = True

    def _run(self, input, hx, resets):
        if isinstance(input, Proxy):
            raise forward_error(self)
        if self._size_was_set and hx is None and self.hidden_size != self.weight_hh.shape[1]:
            raise RuntimeError(
                f"hidden0 has inconsistent hidden_size: got {self.hidden_size}, "
                f"expected {self.weight_hh.shape[1]} as weight_hh has"
            )
        W_ih, W_hh, b_ih, b_hh = gather(self, _CELL_WEIGHTS)
        return run_step(self._cell, input, hx, W_ih, W_hh, b_ih, b_hh, resets)

    def _script(self, input: Tensor, states: list[Tensor], cell: str, resets: Tensor | None) -> list[Tensor]:
        assert resets is None, "resets: expected None in TorchScript"
        weights = [self.weight_ih, self.weight_hh]
        if self.bias_ih is not None and self.bias_hh is not None:
            weights = [self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh]
        return torch.ops.fastrnn.cell(input, states, weights, cell)


class _TwoStateLayer(_Layer):
    """A layer with the states h and c: `forward` as Python runs it."""

    @overload
    def forward(
        self,
        input: TensorOrPackedT,
        hx: Pair | None = None,
        lengths: Lengths = None,
        return_all_states: Literal[False] = False,
        resets: Resets = None,
    ) -> tuple[TensorOrPackedT, Pair]: ...
    @overload
    def forward(
        self,
        input: TensorOrPackedT,
        hx: Pair | None = None,
        lengths: Lengths = None,
        *,
        return_all_states: Literal[True],
        resets: Resets = None,
    ) -> tuple[TensorOrPackedT, Pair, tuple[TensorOrPackedT, TensorOrPackedT]]: ...
    @overload
    def forward(
        self,
        input: TensorOrPackedT,
        hx: Pair | None = None,
        lengths: Lengths = None,
        *,
        return_all_states: bool,
        resets: Resets = None,
    ) -> tuple[TensorOrPackedT, Pair] | tuple[TensorOrPackedT, Pair, Any]: ...
    # Not keyword-only: torch.onnx.export(dynamo=False) gives every argument by its position.
    def forward(
        self,
        input: TensorOrPacked,
        hx: Pair | None = None,
        lengths: Lengths = None,
        return_all_states: bool = False,
        resets: Resets = None,
    ) -> tuple[TensorOrPacked, Pair] | tuple[TensorOrPacked, Pair, tuple[TensorOrPacked, TensorOrPacked]]:
        """Run the layer over a sequence; see `fastrnn.functional.lstm`.

        input: `[T, B, I]`, `[B, T, I]` with batch_first, `[T, I]` unbatched, or a PackedSequence
        hx: initial states `(h_0, c_0)`, None for zeros
        lengths: `[B]`, of the sequences in a padded input: any integers from 0 to T, on any device; the plain
            alternative to a PackedSequence. `output` is zero past a length
        return_all_states: return the states of every step, too
        resets: bool `[T, B]`, `[B, T]` with batch_first, `[T]` unbatched, `[R]` for the rows of a
            PackedSequence: where it is set, the state before the step is zero

        Returns `output, (h_n, c_n)`; with return_all_states a third result `(h, c)` of every step,
        `[L*D, T, B, P]` and `[L*D, T, B, H]`.

        Raises KindError if `input` or `hx` is something else, torch.fx.proxy.TraceError if a Tracer of
        torch.fx runs this itself (it may only record calls of the layer), else as the function.
        """
        return self._run(input, hx, lengths, return_all_states, resets)

    if TYPE_CHECKING:

        @typed_as(forward)
        def __call__(self) -> None: ...


class _OneStateLayer(_Layer):
    """A layer with the state h: `forward` as Python runs it."""

    @overload
    def forward(
        self,
        input: TensorOrPackedT,
        hx: Tensor | None = None,
        lengths: Lengths = None,
        return_all_states: Literal[False] = False,
        resets: Resets = None,
    ) -> tuple[TensorOrPackedT, Tensor]: ...
    @overload
    def forward(
        self,
        input: TensorOrPackedT,
        hx: Tensor | None = None,
        lengths: Lengths = None,
        *,
        return_all_states: Literal[True],
        resets: Resets = None,
    ) -> tuple[TensorOrPackedT, Tensor, TensorOrPackedT]: ...
    @overload
    def forward(
        self,
        input: TensorOrPackedT,
        hx: Tensor | None = None,
        lengths: Lengths = None,
        *,
        return_all_states: bool,
        resets: Resets = None,
    ) -> tuple[TensorOrPackedT, Tensor] | tuple[TensorOrPackedT, Tensor, Any]: ...
    def forward(
        self,
        input: TensorOrPacked,
        hx: Tensor | None = None,
        lengths: Lengths = None,
        return_all_states: bool = False,
        resets: Resets = None,
    ) -> tuple[TensorOrPacked, Tensor] | tuple[TensorOrPacked, Tensor, TensorOrPacked]:
        """As LSTM.forward, with one state `h_0`. Returns `output, h_n`, and h of every step if wanted."""
        return self._run(input, hx, lengths, return_all_states, resets)

    if TYPE_CHECKING:

        @typed_as(forward)
        def __call__(self) -> None: ...


def _in_place_of(forward):
    """Let Python run `forward` in place of the decorated function, which TorchScript compiles. That wants one
    type for each argument, and a function in the body of the layer's class, which it finds by __wrapped__."""

    def mark(script):
        copy: Any = types.FunctionType(forward.__code__, forward.__globals__, argdefs=forward.__defaults__)
        functools.update_wrapper(copy, forward)
        copy.__qualname__ = script.__qualname__
        copy.__signature__ = inspect.signature(forward)  # inspect would follow __wrapped__
        copy.__wrapped__ = script
        return copy

    return mark


def _takes(change):
    """Tell `inspect` the arguments of a layer: those of torch.nn.RNNBase after `change`, and its own, which
    are given by keyword. torch.nn's layers hide them behind *args, and torch.nn.utils.skip_init, which looks
    for them, refuses."""

    def sign(init):
        arguments = dict(inspect.signature(torch.nn.RNNBase.__init__).parameters)
        del arguments["mode"]
        own = [p for p in inspect.signature(init).parameters.values() if p.kind is p.KEYWORD_ONLY]
        init.__signature__ = inspect.Signature([*change(arguments), *own])
        return init

    return sign


def _without_projection(arguments):
    return [a for name, a in arguments.items() if name != "proj_size"]


def _with_nonlinearity(arguments):
    nonlinearity = arguments["num_layers"].replace(name="nonlinearity", default="tanh", annotation=str)
    first = list(arguments).index("num_layers") + 1
    arguments = _without_projection(arguments)
    return [*arguments[:first], nonlinearity, *arguments[first:]]


class LSTM(_TwoStateLayer, torch.nn.LSTM):
    """torch.nn.LSTM, computed by fastrnn. Arguments, shapes and attributes: see torch.nn.LSTM.

    Args beyond torch.nn's, by keyword:
        recurrent_dropout: probability of zeroing a unit of the h that W_hh multiplies, one mask a sequence
        zoneout: probability of a unit to keep its state in a step, one number or one for each state
    Both are explained in `fastrnn.functional.lstm`.
    """

    if not TYPE_CHECKING:  # it sees __init__ of torch.nn, and forward of the class above

        @_takes(lambda arguments: arguments.values())
        def __init__(self, *args, recurrent_dropout=0.0, zoneout=0.0, **kwargs):
            super().__init__(*args, **kwargs)
            self._set_noise(recurrent_dropout, zoneout)

        @_overload_method
        def forward(self, input: Tensor, hx: Pair | None = None) -> tuple[Tensor, Pair]:
            pass

        @_overload_method
        def forward(self, input: PackedSequence, hx: Pair | None = None) -> tuple[PackedSequence, Pair]:  # noqa: F811
            pass

        @_in_place_of(_TwoStateLayer.forward)
        def forward(self, input, hx=None):  # noqa: F811
            states: list[Tensor] = [] if hx is None else [hx[0], hx[1]]
            if isinstance(input, PackedSequence):
                output, last = self._script_packed(input, states)
                h, c = last
            else:
                output, h, c = self._script_rows(input, None, states)
            return output, (h, c)


class GRU(_OneStateLayer, torch.nn.GRU):
    """torch.nn.GRU, computed by fastrnn. Arguments, shapes and attributes: see torch.nn.GRU.

    Args beyond torch.nn's, by keyword:
        reset_after: False for the GRU whose reset gate acts before the product with W_hn (Cho et al. 2014)
        recurrent_dropout, zoneout: see LSTM
    """

    reset_after = True

    def _name_of_cell(self) -> str:
        return name_gru(self.reset_after)

    if not TYPE_CHECKING:  # it sees __init__ of torch.nn, and forward of the class above

        @_takes(_without_projection)
        def __init__(self, *args, reset_after=True, recurrent_dropout=0.0, zoneout=0.0, **kwargs):
            super().__init__(*args, **kwargs)
            self.reset_after = reset_after
            self._set_noise(recurrent_dropout, zoneout)

        @_overload_method
        def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
            pass

        @_overload_method
        def forward(self, input: PackedSequence, hx: Tensor | None = None) -> tuple[PackedSequence, Tensor]:  # noqa: F811
            pass

        @_in_place_of(_OneStateLayer.forward)
        def forward(self, input, hx=None):  # noqa: F811
            states: list[Tensor] = [] if hx is None else [hx]
            if isinstance(input, PackedSequence):
                output, last = self._script_packed(input, states)
                (h,) = last
            else:
                output, h = self._script_rows(input, None, states)
            return output, h


class RNN(_OneStateLayer, torch.nn.RNN):
    """torch.nn.RNN, computed by fastrnn. Arguments, shapes and attributes: see torch.nn.RNN.

    Args beyond torch.nn's:
        nonlinearity: also "sigmoid" and "identity"
        recurrent_dropout, zoneout: by keyword, see LSTM
    """

    if not TYPE_CHECKING:  # it sees __init__ of torch.nn, and forward of the class above

        @_takes(_with_nonlinearity)
        def __init__(self, *args, recurrent_dropout=0.0, zoneout=0.0, **kwargs):
            args, kwargs = list(args), dict(kwargs)
            place = next((k for k, a in enumerate(args[3:4], 3)), None)  # input_size, hidden_size, num_layers
            given = args[3] if place else kwargs.get("nonlinearity")
            cell = name_rnn(given, ValueError) if given not in (None, "tanh", "relu") else None
            if cell and place:
                args[3] = "tanh"
            elif cell:
                kwargs["nonlinearity"] = "tanh"
            super().__init__(*args, **kwargs)
            if cell:
                self.nonlinearity, self.mode = given, cell.upper()
            self._set_noise(recurrent_dropout, zoneout)

        @_overload_method
        def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
            pass

        @_overload_method
        def forward(self, input: PackedSequence, hx: Tensor | None = None) -> tuple[PackedSequence, Tensor]:  # noqa: F811
            pass

        @_in_place_of(_OneStateLayer.forward)
        def forward(self, input, hx=None):  # noqa: F811
            states: list[Tensor] = [] if hx is None else [hx]
            if isinstance(input, PackedSequence):
                output, last = self._script_packed(input, states)
                (h,) = last
            else:
                output, h = self._script_rows(input, None, states)
            return output, h


class LSTMCell(_Cell, torch.nn.LSTMCell):
    """torch.nn.LSTMCell, computed by fastrnn. Arguments, shapes and attributes: see torch.nn.LSTMCell."""

    _cell = "lstm"

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run one step; see `fastrnn.functional.lstm_cell`.

        input: `[B, I]` or `[I]`
        hx: state `(h, c)`, None for zeros
        resets: bool `[B]` or `[]`: where it is set, the state before the step is zero. TorchScript takes none

        Returns the next state `(h', c')`. Raises as LSTM.forward.
        """
        if torch.jit.is_scripting():
            h, c = self._script(input, [] if hx is None else [hx[0], hx[1]], "lstm", resets)
            return h, c
        else:
            return self._run(input, hx, resets)

    if TYPE_CHECKING:

        @typed_as(forward)
        def __call__(self) -> None: ...


class GRUCell(_Cell, torch.nn.GRUCell):
    """torch.nn.GRUCell, computed by fastrnn. Arguments, shapes and attributes: see torch.nn.GRUCell; and by
    keyword reset_after, see GRU."""

    reset_after = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        reset_after: bool = True,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self.reset_after = reset_after

    @property
    def _cell(self):
        return name_gru(self.reset_after)

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.reset_after else ", reset_after=False")

    def forward(self, input: Tensor, hx: Tensor | None = None, resets: Tensor | None = None) -> Tensor:
        """As LSTMCell.forward with one state `h`; see `fastrnn.functional.gru_cell`. Returns `h'`."""
        if torch.jit.is_scripting():
            name = "gru" if self.reset_after else "gru_reset_before"
            (h,) = self._script(input, [] if hx is None else [hx], name, resets)
            return h
        else:
            return self._run(input, hx, resets)

    if TYPE_CHECKING:

        @typed_as(forward)
        def __call__(self) -> None: ...


class RNNCell(_Cell, torch.nn.RNNCell):
    """torch.nn.RNNCell, computed by fastrnn. Arguments, shapes and attributes: see torch.nn.RNNCell."""

    @property
    def _cell(self):
        return name_rnn(self.nonlinearity, RuntimeError)  # torch.nn.RNNCell finds out in forward only

    def forward(self, input: Tensor, hx: Tensor | None = None, resets: Tensor | None = None) -> Tensor:
        """As LSTMCell.forward with one state `h`; see `fastrnn.functional.rnn_cell`. Returns `h'`."""
        if torch.jit.is_scripting():
            (h,) = self._script(input, [] if hx is None else [hx], "rnn_" + self.nonlinearity, resets)
            return h
        else:
            return self._run(input, hx, resets)

    if TYPE_CHECKING:

        @typed_as(forward)
        def __call__(self) -> None: ...
