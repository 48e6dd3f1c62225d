"""The weights of Keras 3's recurrent layers in fastrnn's, and the way back. Keras itself is not imported."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .cells import CELLS
from .modules import GRU, LSTM, RNN

__all__ = ["from_keras", "to_keras_weights"]

_LAYERS = {"SimpleRNN", "LSTM", "GRU", "RNN"}
_CELLS: dict[str, type[LSTM] | type[GRU] | type[RNN]] = {
    "SimpleRNNCell": RNN,
    "LSTMCell": LSTM,
    "GRUCell": GRU,
}


def from_keras(layer: Any) -> LSTM | GRU | RNN:
    """Make the fastrnn layer that computes what a recurrent layer of Keras 3 computes.

        rnn = fastrnn.from_keras(model.get_layer("gru"))
        output, h_n = rnn(x)

    | Keras | fastrnn |
    | --- | --- |
    | `SimpleRNN`, `LSTM`, `GRU` | `RNN`, `LSTM`, `GRU` |
    | `GRU(reset_after=False)` | `GRU(reset_after=False)` |
    | `SimpleRNN(recurrent_dropout=p)` | `RNN(recurrent_dropout=p)` |
    | `RNN(cell)` | the layer of the cell |
    | `RNN([cell, cell])`, `RNN(StackedRNNCells([cell, cell]))` | `num_layers=2` |
    | `Bidirectional(layer)` | `bidirectional=True` |

    The result has `batch_first=True`: input and output are `[B, T, .]`. Its weights are copies on the CPU, in
    the dtype of Keras's weights. Where Keras has one bias, `bias_ih` holds it and `bias_hh` is zero. Training
    changes both, so that a step of plain gradient descent moves their sum twice as far as Keras's bias.

    Other options and arguments of the Keras layer:

    - `return_sequences`, `return_state`: fastrnn's layer always returns `output, h_n`, an LSTM
      `output, (h_n, c_n)`. What Keras returns without `return_sequences` is `h_n[-1]`, and for a
      `Bidirectional` `torch.cat([h_n[0], h_n[1]], dim=-1)`.
    - `initial_state`: `hx`, stacked to `[L*D, B, H]`
    - `mask`: `lengths=`, if the mask leaves out the ends of sequences. Past them `output` is zero, as Keras's
      with `zero_output_for_mask=True`. There are no other masks.
    - `unroll`, `seed`, `trainable`, initializers, regularizers and constraints are not taken over. They do
      not change the output.

    Args:
        layer: of Keras 3 with any backend; it must have weights

    Raises:
        TypeError: `layer` or a cell in it is none of these, or it is of a user's subclass.
        ValueError: `layer` has no weights yet, or it has something that fastrnn's layers do not have: an
            activation, a `dropout` above 0, a `recurrent_dropout` above 0 of an LSTM or GRU (Keras draws a mask
            for each of their gates), `go_backwards` outside of `Bidirectional`, `stateful`, a `merge_mode` other than "concat", cells or directions of different forms, several
            cells inside `Bidirectional`.
    """
    bidirectional = _is_keras(layer, {"Bidirectional"})
    if bidirectional and layer.merge_mode != "concat":
        raise ValueError(f"merge_mode: expected 'concat', got {layer.merge_mode!r}: fastrnn has no other")
    directions = [layer.forward_layer, layer.backward_layer] if bidirectional else [layer]
    stacks = [_cells_of(direction) for direction in directions]
    if directions[0].go_backwards:
        raise ValueError(
            "go_backwards: expected False, got True: set it to False, and flip the input: rnn(x.flip(1))"
        )
    if bidirectional and any(len(stack) > 1 for stack in stacks):
        raise ValueError(
            f"Bidirectional: expected one cell in each direction, got {[len(stack) for stack in stacks]}: a "
            "stack of fastrnn's has both directions in each layer"
        )
    form, *others = [_form_of(cell) for stack in stacks for cell in stack]
    for other in others:
        for key, value in form.items():
            if other[key] != value:
                raise ValueError(
                    f"{key}: expected the same in all cells and directions, got {value!r} and {other[key]!r}"
                )
    weights = {
        f"{name}_l{k}{suffix}": weight
        for stack, suffix in zip(stacks, ("", "_reverse"), strict=False)
        for k, cell in enumerate(stack)
        for name, weight in _weights_of(cell).items()
    }
    result = _CELLS[form["class"]](
        weights["weight_ih_l0"].shape[1],
        form["units"],
        num_layers=len(stacks[0]),
        bias=form["use_bias"],
        batch_first=True,
        bidirectional=bidirectional,
        dtype=getattr(torch, form["dtype"]),
        **_options_of(form),
    )
    result.load_state_dict(weights)
    return result


def to_keras_weights(layer: torch.nn.RNNBase) -> list[NDArray[Any]]:
    """The weights of an LSTM, GRU or RNN as `set_weights` of the Keras layer of the same form takes them.

        keras_layer.set_weights(fastrnn.to_keras_weights(rnn))

    The Keras layer is the one of the table in `from_keras`: for `num_layers=2` that is `RNN([cell, cell])`.
    What `from_keras` made gives back the very weights that it was made of. Keras has one bias, except in a
    GRU with `reset_after=True`; it is the sum `bias_ih + bias_hh`.

    Args:
        layer: of fastrnn or torch.nn, on any device

    Returns:
        new arrays in Keras's order: for each layer, and then for the other direction, `kernel` `[I, G*H]`,
        `recurrent_kernel` `[H, G*H]` and, with `bias`, `bias` `[G*H]`, or `[2, 3*H]` for a GRU with
        `reset_after=True`. They have the dtype of the weights, but bfloat16, which NumPy does not have, is
        given as float32.

    Raises:
        TypeError: `layer` is something else.
        ValueError: it has projections, or several layers of two directions, which Keras does not have.
    """
    if not isinstance(layer, (torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN)):
        raise TypeError(f"layer: expected an LSTM, GRU or RNN of fastrnn or torch.nn, got {_class_of(layer)}")
    if layer.proj_size:
        raise ValueError(f"proj_size: expected 0, got {layer.proj_size}: Keras has no projections")
    if layer.bidirectional and layer.num_layers > 1:
        raise ValueError(
            f"num_layers: expected 1 in a bidirectional layer, got {layer.num_layers}: Keras has no stack "
            "with both directions in each layer"
        )
    is_gru = isinstance(layer, torch.nn.GRU)
    two_biases = is_gru and getattr(layer, "reset_after", True)  # torch.nn.GRU has no such attribute
    arrays = []
    for suffix in ("", "_reverse")[: 1 + layer.bidirectional]:
        for k in range(layer.num_layers):
            W_ih, W_hh = (getattr(layer, f"weight_{name}_l{k}{suffix}").detach() for name in ("ih", "hh"))
            found = [W_ih.T, W_hh.T]
            if layer.bias:
                b_ih, b_hh = (getattr(layer, f"bias_{name}_l{k}{suffix}").detach() for name in ("ih", "hh"))
                found.append(torch.stack([b_ih, b_hh]) if two_biases else b_ih + b_hh)
            arrays += [_reorder(t) if is_gru else t for t in found]
    return [_to_array(t) for t in arrays]


def _class_of(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _is_keras(thing: object, names: set[str]) -> bool:
    """Whether the class of `thing` is one of Keras's own of these names."""
    return type(thing).__name__ in names and type(thing).__module__.split(".")[0] == "keras"


def _cells_of(layer: Any) -> list[Any]:
    """The cells of one direction, one for each layer of the stack."""
    if not _is_keras(layer, _LAYERS):
        raise TypeError(
            f"layer: expected a SimpleRNN, LSTM, GRU, RNN or Bidirectional of Keras 3, got {_class_of(layer)}"
        )
    if layer.stateful:
        raise ValueError(
            "stateful: expected False, got True: set it to False, and wrap the result in fastrnn.Stateful"
        )
    return list(layer.cell.cells) if _is_keras(layer.cell, {"StackedRNNCells"}) else [layer.cell]


def _form_of(cell: Any) -> dict[str, Any]:
    """What all cells of a layer must have in common, in Keras's words."""
    if not _is_keras(cell, set(_CELLS)):
        raise TypeError(
            f"cell: expected a SimpleRNNCell, LSTMCell or GRUCell of Keras 3, got {_class_of(cell)}"
        )
    weights = cell.get_weights()
    if not weights:
        raise ValueError(
            "layer: expected one that is built, got one without weights: call it or build it first"
        )
    # A SimpleRNN multiplies h by one mask, as fastrnn does; an LSTM or GRU has a mask for each gate (Keras 3.15,
    # DropoutRNNCell.dropout_mask_count).
    known = ("recurrent_dropout",) if type(cell).__name__ == "SimpleRNNCell" else ()
    for key in ("dropout", "recurrent_dropout"):
        if (rate := getattr(cell, key)) and key not in known:
            raise ValueError(
                f"{key}: expected 0, got {rate}: fastrnn has no counterpart in training; for inference set "
                f"`cell.{key} = 0` first"
            )
    # The class comes first: cells of the same class have the same keys.
    form = {"class": type(cell).__name__, "dtype": weights[0].dtype.name}
    for key in ("units", "use_bias", "reset_after", "activation", "recurrent_activation", *known):
        if hasattr(cell, key):
            value = getattr(cell, key)
            form[key] = _name_of(value) if "activation" in key else value
    return form


def _name_of(activation: Any) -> str:
    """The name of a function of Keras; of anything else the full name."""
    if not hasattr(activation, "__qualname__"):
        return _class_of(activation)
    module = str(activation.__module__)
    return activation.__name__ if module.split(".")[0] == "keras" else f"{module}.{activation.__qualname__}"


def _options_of(form: dict[str, Any]) -> dict[str, Any]:
    """The options of the class of the layer alone."""
    if form["class"] == "SimpleRNNCell":
        names = {"identity": "linear"}  # where Keras has another name
        infos = (info for info in CELLS.values() if info.layer == "RNN")
        table = {names.get(n, n): n for info in infos if (n := info.nonlinearity)}
        _check_activation("activation", list(table), form)
        return {
            "nonlinearity": table[form["activation"]],
            "recurrent_dropout": form["recurrent_dropout"],
        }
    _check_activation("activation", ["tanh"], form)
    _check_activation("recurrent_activation", ["sigmoid"], form)
    return {"reset_after": False} if form.get("reset_after") is False else {}


def _check_activation(key: str, known: list[str], form: dict[str, Any]) -> None:
    if form[key] not in known:
        expected = " or ".join(map(repr, known))
        name = _CELLS[form["class"]].__name__
        raise ValueError(f"{key}: expected {expected}, got {form[key]!r}: fastrnn's {name} has no other")


def _weights_of(cell: Any) -> dict[str, Tensor]:
    """The weights of a cell by torch's names, without layer and direction."""
    # torch.tensor does not take the bfloat16 of ml_dtypes. float32 holds the same numbers.
    arrays = (w.astype("float32") if w.dtype.name == "bfloat16" else w for w in cell.get_weights())
    tensors = map(torch.tensor, arrays)
    kernel, recurrent, *bias = map(_reorder, tensors) if _CELLS[type(cell).__name__] is GRU else tensors
    weights = {"weight_ih": kernel.T, "weight_hh": recurrent.T}
    for b in bias:
        b_ih, b_hh = b if b.dim() == 2 else (b, torch.zeros_like(b))
        weights |= {"bias_ih": b_ih, "bias_hh": b_hh}
    return weights


def _reorder(t: Tensor) -> Tensor:
    """From z r n, Keras's order of the gates of a GRU, to r z n, or back; along the last dimension."""
    z, r, n = t.chunk(3, dim=-1)
    return torch.cat([r, z, n], dim=-1)


def _to_array(t: Tensor) -> NDArray[Any]:
    return np.array((t.float() if t.dtype == torch.bfloat16 else t).cpu().numpy(), order="C")  # a copy
