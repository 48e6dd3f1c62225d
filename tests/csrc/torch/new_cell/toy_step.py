# Appended to fastrnn/reference.py by test_new_cell.py.
# ruff: noqa: F821


def toy_step(x, state, W_ih, W_hh, b_ih, b_hh, v):
    """One step of the toy cell, as csrc/cells/toy.h."""
    h, c, m = state
    f, g = (linear(x, W_ih, b_ih) + linear(h, W_hh, b_hh)).chunk(2, -1)
    f, g = (f + v * c).sigmoid(), g.tanh()
    c = f * c + (1 - f) * g
    m = f * m + c
    return m.tanh(), c, m


CELLS = MappingProxyType({**CELLS, "toy": Cell("toy", toy_step)})
