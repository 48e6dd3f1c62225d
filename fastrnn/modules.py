"""Modules that replace torch.nn.LSTM, GRU, RNN and their cells one for one.

Each class subclasses the torch.nn class of the same name and differs from it in `forward` only: constructor,
parameters, initial values, state dict, repr and pickling are torch.nn's own.
"""

import torch
import torch.fx

from .functional import name_rnn, run_sequence, run_step

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]

# torch.fx records these two as one call each; torch.nn's own layers are leaves to it in the same way
torch.fx.wrap("run_sequence")
torch.fx.wrap("run_step")

_CELL_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _gather(module, names):
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


class _Layer:
    """`forward` of a whole-sequence layer, for a subclass of torch.nn.RNNBase.

    Set `checkpoint_gates` on a layer to train with less memory and more time; see `fastrnn.functional.lstm`.
    """

    checkpoint_gates = False

    def forward(self, input, hx=None):
        """Run the layer over a sequence; see the function of the same name in `fastrnn.functional`.

        input: `[T, B, I]`, `[B, T, I]` with batch_first, `[T, I]` unbatched, or a PackedSequence
        hx: initial state, None for zeros; a tensor h_0, for an LSTM a tuple (h_0, c_0)

        Returns `output, h_n`, for an LSTM `output, (h_n, c_n)`.
        """
        return run_sequence(
            self.mode.lower(),
            input,
            hx,
            _gather(self, self._flat_weights_names),
            self.bias,
            self.num_layers,
            self.dropout,
            self.training,
            self.bidirectional,
            self.batch_first,
            self.checkpoint_gates,
        )


class _Cell:
    """`forward` of a single step, for a subclass of torch.nn.RNNCellBase; `_cell` names the cell."""

    def forward(self, input, hx=None):
        """Run one step; see `lstm_cell`, `gru_cell` and `rnn_cell` in `fastrnn.functional`.

        input: `[B, I]` or `[I]`
        hx: state, None for zeros; a tensor h, for an LSTMCell a tuple (h, c)

        Returns the next state: h', for an LSTMCell (h', c').
        """
        return run_step(self._cell, input, hx, *_gather(self, _CELL_WEIGHTS))


class LSTM(_Layer, torch.nn.LSTM):
    """torch.nn.LSTM, computed by fastrnn. Arguments, shapes and attributes: see torch.nn.LSTM."""


class GRU(_Layer, torch.nn.GRU):
    """torch.nn.GRU, computed by fastrnn. Arguments, shapes and attributes: see torch.nn.GRU."""


class RNN(_Layer, torch.nn.RNN):
    """torch.nn.RNN, computed by fastrnn. Arguments, shapes and attributes: see torch.nn.RNN."""


class LSTMCell(_Cell, torch.nn.LSTMCell):
    """torch.nn.LSTMCell, computed by fastrnn. Arguments, shapes and attributes: see torch.nn.LSTMCell."""

    _cell = "lstm"


class GRUCell(_Cell, torch.nn.GRUCell):
    """torch.nn.GRUCell, computed by fastrnn. Arguments, shapes and attributes: see torch.nn.GRUCell."""

    _cell = "gru"


class RNNCell(_Cell, torch.nn.RNNCell):
    """torch.nn.RNNCell, computed by fastrnn. Arguments, shapes and attributes: see torch.nn.RNNCell."""

    @property
    def _cell(self):
        return name_rnn(self.nonlinearity, RuntimeError)  # torch.nn.RNNCell finds out in forward only
