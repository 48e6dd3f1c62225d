"""Give a model that you have fastrnn's layers: the same parameters and results, and it trains on."""

import torch
from torch import nn

import fastrnn

model = nn.ModuleDict({"rnn": nn.LSTM(16, 32, num_layers=2), "head": nn.Linear(32, 4)})
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
x, answers = torch.randn(20, 8, 16), torch.randint(4, (8,))  # [T, B, I], [B]


def loss_of() -> torch.Tensor:
    states, _ = model["rnn"](x)
    return nn.functional.cross_entropy(model["head"](states[-1]), answers)


of_torch = loss_of()
fastrnn.convert(model)  # in place; the parameters stay the same objects, so the optimizer stays valid
print(fastrnn.summary(model))
of_fastrnn = loss_of()
torch.testing.assert_close(of_fastrnn, of_torch)
of_fastrnn.backward()
optimizer.step()
assert loss_of() < of_fastrnn
print(f"loss: torch {of_torch:.6f}, fastrnn {of_fastrnn:.6f}, after a training step {loss_of():.6f}")
