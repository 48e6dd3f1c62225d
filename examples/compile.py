"""torch.compile with fastrnn: a model in one graph, forward and backward, for sequences of any length."""

import torch
from torch import nn

import fastrnn

# Without this switch of torch's, layers of the classes LSTM, GRU and RNN run between two graphs.
torch._dynamo.config.allow_rnn = True


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = fastrnn.GRU(16, 32), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0][-1]).square().mean()


model = Model()
compiled = torch.compile(model, fullgraph=True, dynamic=True)  # fullgraph: a graph break would be an error
for T in 20, 50:
    x = torch.randn(T, 8, 16)
    losses = compiled(x), model(x)
    torch.testing.assert_close(*losses)
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in losses]
    torch.testing.assert_close(*gradients)
    print(f"T = {T}: loss compiled {losses[0]:.6f}, not compiled {losses[1]:.6f}, gradients equal")
