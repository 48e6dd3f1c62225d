"""tanh and sigmoid of single numbers, as the CPU kernels compute them."""

import math

import numpy as np
import pytest
import torch
from tolerance import unit_roundoff

import fastrnn.functional as F

pytestmark = pytest.mark.usefixtures("isa")

# Beyond it exp reaches numbers that are not normal, whose rounding is coarser.
LARGEST = {torch.float32: 85.0, torch.float64: 700.0}


@pytest.mark.parametrize("dtype", LARGEST, ids=str)
def test_activations(dtype):
    """To a few roundings of the value, however small it is.

    Both multiply their argument by a constant. That product and the constant are rounded, which makes a
    relative error of up to 2 |x| roundings in sigmoid(x), twice what the rounding of x itself makes. The
    others are of 6 operations.
    """
    size = torch.logspace(-8, math.log10(LARGEST[dtype]), 20_000, dtype=torch.float64).to(dtype)
    x = torch.cat([-size, size])[None, :, None]
    exact = x.double().numpy().astype(np.longdouble)
    one, zero = torch.ones(1, 1, dtype=dtype), torch.zeros(1, 1, dtype=dtype)
    tanh = F.rnn(x, None, [one, zero], bias=False)[0]
    # c' = f c + i g, where g = tanh(0)
    c = torch.ones(1, x.shape[1], 1, dtype=dtype)
    only_f = [torch.cat([zero, one, zero, zero]), zero.repeat(4, 1)]
    sigmoid = F.lstm(x, (torch.zeros_like(c), c), only_f, bias=False)[1][1]
    for value, want, of_x in (
        (tanh, np.tanh(exact), 0),
        (sigmoid, 1 / (1 + np.exp(-exact)), 2 * np.abs(exact)),
    ):
        error = np.abs(value.numpy().astype(np.longdouble) - want)
        assert np.all(error <= (6 + of_x) * unit_roundoff(dtype) * np.abs(want))


@pytest.mark.parametrize("dtype", LARGEST, ids=str)
def test_tanh_of_zero(dtype):
    zero = torch.zeros(1, 1, 1, dtype=dtype)
    y = F.rnn(zero, None, [zero[0], zero[0]], bias=False)[0]
    assert y.item() == 0 and not y.signbit().any()
