"""A stream, one step a call: Stateful keeps the state between calls, as if they were one long call."""

import torch

import fastrnn

layer = fastrnn.GRU(16, 32).eval()
stream = fastrnn.Stateful(layer)
x = torch.randn(100, 2, 16)  # [T, B, I]: two streams

with torch.inference_mode():
    whole, _ = layer(x)
    steps = torch.cat([stream(x[t : t + 1]) for t in range(len(x))])
    torch.testing.assert_close(steps, whole)
    print(f"{len(x)} calls of one step, one call of {len(x)}: differ by {(steps - whole).abs().max():.1e}")

    stream.reset([1])  # the second stream begins anew, the first goes on
    again = stream(x[:1])
    torch.testing.assert_close(again[0, 1], whole[0, 1])
    assert not torch.allclose(again[0, 0], whole[0, 0])
    print("after reset([1]) stream 1 answers as in its first step, stream 0 does not")
