"""A layer that remembers its state from call to call, for streams and truncated back-propagation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Stateful"]


class Stateful(torch.nn.Module):
    """Keeps the state of a recurrent layer or cell between calls: each call goes on where the last one ended.

        rnn = fastrnn.Stateful(fastrnn.LSTM(128, 256))
        for chunk in stream:                   # truncated back-propagation through time
            loss(rnn(chunk)).backward()
            rnn.detach()                       # keep the state, forget how it came about
            rnn.reset(ended)                   # the rows of the batch in which something new begins

    The first call, and one after `reset()`, starts from zeros. The batch must keep its size and order until
    then. The state follows `.to()`, is in no state dict, and is left behind by pickling and copies, which
    start from zeros.

    Args:
        layer: fastrnn's or torch.nn's LSTM, GRU, RNN or one of their cells, or any module that is called as
            `layer(input, state)` and returns `output, state`

    Attributes:
        layer: the layer
        state: as the layer returns it, None before the first call; may be read, and set to go on elsewhere
    """

    def __init__(self, layer: torch.nn.Module):
        super().__init__()
        self.layer = layer
        self.state = None

    def forward(self, input, **options):
        """Go on with `input`; `options` are the layer's, as `lengths=`.

        Returns the layer's output alone, for a cell h; with `return_all_states=True` `(output, states)`.
        """
        result = self.layer(input, self.state, **options)
        if isinstance(self.layer, torch.nn.RNNCellBase):
            self.state = result
            return result if isinstance(result, Tensor) else result[0]
        output, self.state, *more = result
        return (output, *more) if more else output

    def detach(self) -> None:
        """Keep the state and cut it off from what it was computed from."""
        self._change(Tensor.detach)

    def reset(self, rows: Tensor | Sequence[int] | int | None = None) -> None:
        """Begin again from zeros, in all of the batch or in some rows of it.

        rows: None for all; the indices of some, or a bool tensor `[B]` that marks them. The others keep their
            state, and the graph behind it.

        Raises IndexError for a row that is not there, RuntimeError for rows of an unbatched state.
        """
        if rows is None:
            self.state = None
            return
        rows = torch.as_tensor(rows)
        if rows.numel() == 0:
            rows = rows.long()  # an empty list has no dtype

        def zero(state):
            if state.dim() != (2 if isinstance(self.layer, torch.nn.RNNCellBase) else 3):
                raise RuntimeError(
                    f"rows: expected None for a state without a batch, of shape {list(state.shape)}"
                )
            marked = torch.zeros(state.shape[-2], dtype=torch.bool, device=state.device)
            marked[rows.to(state.device)] = True
            return state.masked_fill(marked.unsqueeze(-1), 0)

        self._change(zero)

    def _change(self, change):
        if self.state is not None:
            is_one = isinstance(self.state, Tensor)
            self.state = change(self.state) if is_one else tuple(change(s) for s in self.state)

    def _apply(self, fn, recurse=True):  # what .to(), .double() and .cuda() call
        super()._apply(fn, recurse)
        self._change(fn)
        return self

    def __getstate__(self):
        return {**super().__getstate__(), "state": None}
