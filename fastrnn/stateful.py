"""A layer that remembers its state from call to call, for streams and truncated back-propagation."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload
from weakref import WeakKeyDictionary

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.utils._pytree import tree_map

from .frozen import FrozenCell, FrozenLayer
from .layers import RecurrentLayer
from .signatures import Lengths, Resets, TensorOrPackedT, typed_as
from .transforms.fx import Leaf

__all__ = ["Stateful"]


LayerT = TypeVar("LayerT", bound=torch.nn.Module)
RecurrentT = TypeVar(
    "RecurrentT",
    bound=torch.nn.RNNBase | torch.nn.RNNCellBase | RecurrentLayer | FrozenLayer | FrozenCell,
)
_CELLS = torch.nn.RNNCellBase, FrozenCell

# Plain attributes of Stateful: torch.nn.Module registers none of them, even if the value is a Parameter.
_STATE = ("_state", "_examples", "_region")


class _Kept:
    """The state between two calls.

    Attributes:
        _state: the state outside of torch.vmap
        _examples: the state under torch.vmap; None if that begins from `_state`
        _region: what surrounded the last call: _INFERENCE, _AUTOCAST and _FUNCTORCH, or _ANY
    """

    _state: Any
    _examples: Any
    _region: int

    def _begin(self, other: _Kept | None = None) -> None:
        """Begin from zeros, or from what `other` keeps."""
        self._state = other and other._state
        self._examples = other and other._examples
        self._region = other._region if other else 0

    def _get(self) -> Any:
        # The quick way, if nothing around the calls has changed. To look at the tensors takes as long as a
        # small step.
        if torch.compiler.is_compiling() or _is_plain(self._region) and _region() == self._region:
            return self._state
        vmaps = _vmaps()
        if self._examples is None or not vmaps:
            return _change(self._state, _arrive)
        examples = _change(self._examples, _arrive)
        if not all(vmaps.items() >= _examples_of(t).items() for t in _tensors(examples)):
            raise RuntimeError("state: expected as many examples as in the last torch.vmap, or reset() first")
        return examples

    def _put(self, state: Any) -> None:
        self._region = _ANY if torch.compiler.is_compiling() else _region()
        under_vmap = self._region != _ANY and not _is_plain(self._region) and bool(_vmaps())
        if under_vmap and any(map(_examples_of, _tensors(state))):
            self._examples = state
            return
        self._state = state
        if under_vmap:
            self._examples = None

    def _map(self, change: Callable[[Tensor], Tensor]) -> None:
        self._state = _change(self._state, lambda t: _inside(t, change))
        self._examples = _change(self._examples, lambda t: _inside(t, change))


class Stateful(_Kept, Leaf, Generic[LayerT]):
    """Keeps the state of a recurrent layer or cell between calls: each call goes on where the last one ended.

        rnn = fastrnn.Stateful(fastrnn.LSTM(128, 256))
        for chunk in stream:                   # truncated back-propagation through time
            loss(rnn(chunk)).backward()
            rnn.detach()                       # keep the state, drop the graph behind it
            rnn.reset(ended)                   # begin again in the rows of the batch that `ended` marks

    The first call begins from zeros, and so does the first one after `reset()`. Between two resets the batch
    must keep its size and order. `.to()` moves the state, too. The state is in no state dict, and pickles and
    copies leave it out: they begin from zeros. Replicas of torch.nn.DataParallel share it, so that a call of
    several replicas at once is an error.

    What may surround a call:

    - torch.utils.checkpoint: when the backward runs a checkpoint again, the state begins from what it was
      when the checkpoint began, and the present state does not change. With `use_reentrant=True` no gradient
      flows through the state from a checkpoint to later calls: a backward that arrives there raises
      RuntimeError, so call `detach()` first. What torch.compile compiled outside of a checkpoint does not
      notice a checkpoint around it later: compile the function that calls the checkpoint. Checkpoints of
      other libraries raise RuntimeError.
    - torch.autocast: a call inside may leave a state of 16 bits. A call outside casts it to the dtype of the
      layer's parameters.
    - torch.func: grad, vjp, jvp and the Jacobians leave the value of the state, without derivatives. Under
      vmap each example has a state of its own. It begins from the state outside, the next vmap of as many
      examples goes on from it, and `reset()` drops it. The state outside does not change.
    - torch.inference_mode: a call outside goes on from a copy of the state that a call inside left.
    - torch.jit.trace and torch.export: every call of the graph begins from the state at the time of tracing.

    Args:
        layer: an LSTM, GRU, RNN or cell of fastrnn or torch.nn, frozen or not, or any module that is called
            as `layer(input, state)` and returns `output, state`. A state is a tensor of any dtype, None, or a
            tuple, list or dict of states.

    Attributes:
        layer: the layer
        state: the state as the layer returns it, None before the first call. It can be read, and it can be
            set to go on from another state.
    """

    layer: LayerT

    def __init__(self, layer: LayerT):
        super().__init__()
        self.layer = layer
        self._begin()

    @overload
    def forward(
        self: Stateful[RecurrentT],
        input: TensorOrPackedT,
        *,
        lengths: Lengths = None,
        return_all_states: Literal[False] = False,
        resets: Resets = None,
    ) -> TensorOrPackedT: ...
    @overload
    def forward(
        self: Stateful[RecurrentT],
        input: TensorOrPackedT,
        *,
        lengths: Lengths = None,
        return_all_states: Literal[True],
        resets: Resets = None,
    ) -> tuple[TensorOrPackedT, Any]: ...
    @overload
    def forward(self, input: Any, **options: Any) -> Any: ...
    def forward(self, input: Any, **options: Any) -> Any:
        """Run the layer on `input`, from the state that the last call left.

        Args:
            input: what the layer takes, see `fastrnn.functional.lstm` and `lstm_cell`
            options: other keyword arguments of the layer, such as `lengths=` and `resets=`

        Returns:
            The layer's output alone, for a cell h; with `return_all_states=True` `(output, states)`.

        Raises:
            RuntimeError: the call is in a backward, and not in a torch.utils.checkpoint that runs again; or
                another call changed the state during this one.
        """
        kept, is_cut = self._find()
        if torch.jit.is_tracing():
            warnings.warn(
                "Stateful: each call of a trace begins from the state that this call begins from",
                torch.jit.TracerWarning,
                stacklevel=2,
            )
        if isinstance(kept, Stateful) and not torch.compiler.is_compiling() and _in_backward():
            raise RuntimeError(
                "Stateful: expected a call in a forward or in torch.utils.checkpoint, got one in a backward: "
                "a forward that runs again there would go on from a later state"
            )
        before, state = kept._state, kept._get()
        if kept._region & _AUTOCAST:
            state = _change(state, self._widen)
        result = self.layer(input, state, **options)
        if isinstance(self.layer, _CELLS):
            output, new, more = result if isinstance(result, Tensor) else result[0], result, []
        else:
            output, new, *more = result
        if is_cut and any(
            t.requires_grad for t in _tensors((input, state, options, [*self.layer.parameters()]))
        ):
            new = _change(new, _cut)
        if kept._state is not before:
            raise RuntimeError(
                "state: another call has changed it during this one. Each thread and each replica needs a "
                "Stateful of its own; torch.nn.parallel.DistributedDataParallel gives it one"
            )
        kept._put(new)
        return (output, *more) if more else output

    if TYPE_CHECKING:

        @typed_as(forward)
        def __call__(self) -> None: ...

    @property
    def state(self) -> Any:
        return self._find()[0]._get()

    @state.setter
    def state(self, state: Any) -> None:
        self._take(state)

    def _take(self, state: Any) -> None:
        kept = self._find()[0]
        kept._put(state)
        kept._region = _ANY  # it may come from anywhere

    def detach(self) -> None:
        """Keep the state and drop the graph behind it: no gradient flows into earlier calls."""
        self._find()[0]._map(Tensor.detach)

    def reset(self, rows: Tensor | Sequence[int] | int | None = None) -> None:
        """Begin again from zeros, in all of the batch or in some rows of it.

        Args:
            rows: None for all; an index or several, or a bool tensor `[B]` that marks rows. The other rows
                keep their state and the graph behind it. The batch is the dimension in which torch.nn has it:
                1 of the state of a layer, `[L*D, B, …]`, 0 of the state of a cell, `[B, …]`. The state of
                another module may have tensors of both shapes, and of shape `[B]`.

        Raises:
            IndexError: a row does not exist. If `rows` are on a GPU, only the GPU finds this out, as with any
                index there, and the process cannot use it any more.
            RuntimeError: `rows` are given and the state has no batch.
        """
        if rows is None:
            self._find()[0]._begin()
            return
        rows = rows if isinstance(rows, Tensor) else torch.tensor(rows, device="cpu")
        if rows.numel() == 0:
            rows = rows.long()  # torch makes float32 of an empty list
        if isinstance(self.layer, torch.nn.RNNBase | FrozenLayer):
            batch_dims = {3: 1}
        elif isinstance(self.layer, _CELLS):
            batch_dims = {2: 0}
        else:
            batch_dims = {1: 0, 2: 0, 3: 1}

        def zero(state: Tensor) -> Tensor:
            if state.dim() not in batch_dims:
                raise RuntimeError(
                    f"rows: expected None for a state without a batch, of shape {list(state.shape)}"
                )
            dim = batch_dims[state.dim()]
            # On the CPU if `rows` are there, which raises: on a GPU a wrong row ends all work of the process.
            where = rows if rows.is_cpu else rows.to(state.device)
            marked = torch.zeros(state.shape[dim], dtype=torch.bool, device=where.device)
            marked[where] = True
            marked = marked.to(state.device).view(-1, *[1] * (state.dim() - 1 - dim))
            return state.masked_fill(marked, 0)

        self.state = _change(self.state, zero)

    def _widen(self, state: Tensor) -> Tensor:
        """Cast a tensor that a call under autocast may have left, for a call outside."""
        if state.dtype not in _NARROW or _left_by_autocast(state):
            return state
        dtypes = (p.dtype for p in self.layer.parameters() if p.is_floating_point())
        return state.to(next(dtypes, state.dtype))

    def _find(self) -> tuple[_Kept, bool]:
        """What keeps the state for a call at this place, and whether the call is in the forward of a
        reentrant checkpoint, which gradients leave only through its results.

        `self` keeps the state, unless a checkpoint runs again. Then another object does: its state begins
        from what the forward of this checkpoint found first, and ends with the recomputation.
        """
        if torch.compiler.is_compiling():
            return _find_between_graphs(self) if _in_checkpoint() else (self, False)
        if not _may_be_in_checkpoint():  # to read the stack would take as long as a small step
            return vars(self).get("_origin", self), False
        return self._find_here()

    def _find_here(self) -> tuple[_Kept, bool]:
        kept: _Kept = vars(self).get("_origin", self)
        is_cut, begun = False, []
        for checkpoint, run in _checkpoints():
            of_checkpoint = vars(checkpoint).setdefault("_fastrnn_starts", WeakKeyDictionary())
            if run is None:
                begun.append(of_checkpoint)
                is_cut = is_cut or isinstance(checkpoint, torch.autograd.function.FunctionCtx)
                continue
            if self not in of_checkpoint:
                raise RuntimeError("Stateful: a checkpoint has come here in the backward, not in the forward")
            start = of_checkpoint[self]
            if start.run != run:
                start.run = run
                start.kept._begin(start.first)
            kept = start.kept
            break
        for of_checkpoint in begun:
            if self not in of_checkpoint:
                of_checkpoint[self] = _Start(kept)
        return kept, is_cut

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "state":  # Dynamo of torch 2.11 would keep it as an attribute, and pass over the setter
            self._take(value)
        elif name in _STATE:
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Stateful[LayerT]:
        # .to(), .double() and .cuda() call this.
        super()._apply(fn, recurse)
        self._map(fn)
        return self

    def __getstate__(self) -> dict[str, Any]:
        kept = _Kept()
        kept._begin()
        return {**vars(self), **vars(kept)}

    def _replicate_for_data_parallel(self) -> Stateful[LayerT]:
        replica = super()._replicate_for_data_parallel()
        vars(replica).setdefault("_origin", self)  # it keeps the state; not a submodule
        return replica


class _Start:
    """The state of a checkpoint: `first` is what its forward found, `kept` belongs to its last recomputation,
    `run`."""

    def __init__(self, kept: _Kept):
        self.first, self.kept = _Kept(), _Kept()
        self.run: Any = None
        self.first._begin(kept)


class _Cut(torch.autograd.Function):
    """Where the gradients of a reentrant checkpoint end: a backward that arrives here raises."""

    @staticmethod
    def forward(ctx: Any, state: Tensor) -> Tensor:
        return state.view_as(state)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise RuntimeError(
            "Stateful: no gradient goes through the state back into a checkpoint with use_reentrant=True: "
            "call detach() after it, or use use_reentrant=False"
        )


def _cut(state: Tensor) -> Tensor:
    if not state.is_floating_point():
        return state
    with torch.enable_grad():
        return _Cut.apply(state.detach().requires_grad_())


_CHECKPOINT_FILE = torch.utils.checkpoint.checkpoint_sequential.__code__.co_filename


def _checkpoints() -> Iterator[tuple[Any, Any]]:
    """The checkpoints that this code runs in, the innermost first, as `checkpoint, run`.

    checkpoint: an object that torch keeps from the forward of the checkpoint to its backward
    run: None in the forward; in the backward a value that tells this recomputation from others

    torch.utils.checkpoint tells neither to the code that it calls, so this reads its frames on the stack. If
    a release of torch changes these frames, a call in a backward raises, and never begins from a wrong state.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_filename == _CHECKPOINT_FILE:
            names = frame.f_locals
            match code.co_name:
                case "forward" if "ctx" in names:  # of CheckpointFunction: the reentrant one
                    yield names["ctx"], None
                case "backward" if "ctx" in names:
                    yield names["ctx"], torch._C._current_graph_task_id()
                case "checkpoint" | "_checkpoint_impl" if "gen" in names:  # the second since torch 2.15
                    of_generator = names["gen"].gi_frame.f_locals
                    if "new_frame" in of_generator:
                        yield of_generator["new_frame"], None
                case "unpack_hook" if "frame" in names and "gid" in names:
                    yield names["frame"], names["gid"]
        frame = frame.f_back


_autograd = torch._C._autograd
_saved_tensors_hooks = getattr(_autograd, "_top_saved_tensors_default_hooks", lambda ignored: True)


def _may_be_in_checkpoint() -> bool:
    """Whether this code may run in a checkpoint: it runs in a backward, or in a forward with hooks for saved
    tensors or without gradients."""
    without_gradients = not torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    return without_gradients or _in_backward() or bool(_saved_tensors_hooks(False))


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _in_checkpoint() -> bool:
    """Whether this code runs in a checkpoint. torch.compile asks, and breaks the graph if it does."""
    return next(_checkpoints(), None) is not None


# As torch.compiler.assume_constant_result and torch.compiler.disable, which would import the compiler now.
_in_checkpoint._dynamo_marked_constant = True  # type: ignore[attr-defined]
_find_between_graphs = getattr(torch, "_disable_dynamo", torch.compiler.disable)(Stateful._find_here)


def _change(state: Any, change: Callable[[Tensor], Any]) -> Any:
    """`state` with `change(tensor)` in place of every tensor in it."""
    if isinstance(state, Tensor):
        return change(state)
    if type(state) is tuple:  # as of an LSTM; tree_map takes as long as a small step
        return tuple([_change(s, change) for s in state])
    return tree_map(lambda t: change(t) if isinstance(t, Tensor) else t, state)


def _tensors(state: Any) -> list[Tensor]:
    found: list[Tensor] = []
    _change(state, found.append)
    return found


# What may surround a call and change the kind of its tensors, as bits.
_INFERENCE, _AUTOCAST, _FUNCTORCH = 1, 2, 4
_ANY = 7


def _region() -> int:
    return (
        torch.is_inference_mode_enabled() * _INFERENCE
        + torch._C._is_any_autocast_enabled() * _AUTOCAST
        + (_functorch.maybe_current_level() is not None) * _FUNCTORCH
    )


def _is_plain(region: int) -> bool:
    """Whether no tensor of a call in this region is a wrapper of torch.func."""
    return not region & _FUNCTORCH


_NARROW = (torch.bfloat16, torch.float16)


def _left_by_autocast(t: Tensor) -> bool:
    device = t.device.type
    return (
        t.dtype in _NARROW and torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    )


# torch.func wraps a tensor in another one for each level of its transforms.

_functorch: Any = torch._C._functorch


def _vmaps() -> dict[int, int]:
    """The levels of torch.vmap that this code runs in, and how many examples each has."""
    levels = _functorch.get_interpreter_stack() or ()
    return {
        i.level(): _functorch.CVmapInterpreterPtr(i).batchSize()
        for i in levels
        if i.key() == _functorch.TransformType.Vmap
    }


def _examples_of(t: Tensor) -> dict[int, int]:
    """The levels of torch.vmap that `t` is mapped at, and how many examples each has."""
    levels = {}
    while _functorch.is_functorch_wrapped_tensor(t):
        inner = _functorch.get_unwrapped(t)
        if _functorch.is_batchedtensor(t):
            levels[_functorch.maybe_get_level(t)] = inner.shape[_functorch.maybe_get_bdim(t)]
        t = inner
    return levels


def _arrive(t: Tensor) -> Tensor:
    """`t` without the wrappers of regions that have ended, and as a copy if it is an inference tensor."""
    level = _functorch.maybe_current_level() or 0
    while _functorch.is_dead_tensor_wrapper(t) or (
        _functorch.is_functionaltensor(t) and _functorch.maybe_get_level(t) > level
    ):
        t = _functorch.get_unwrapped(t)
    return t.clone() if t.is_inference() and not torch.is_inference_mode_enabled() else t


def _inside(t: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """`change(t)` of an elementwise change, also after the end of the vmap that wrapped `t`."""
    if torch.compiler.is_compiling():
        return change(t)
    t = _arrive(t)
    if not _functorch.is_batchedtensor(t):
        return change(t)
    inner = _inside(_functorch.get_unwrapped(t), change)
    return _functorch._add_batch_dim(inner, _functorch.maybe_get_bdim(t), _functorch.maybe_get_level(t))
