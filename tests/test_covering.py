"""The cases that run without --thorough (helpers/covering.py)."""

from itertools import combinations, product

import pytest
from covering import cover

ROWS = [
    {"cell": cell, "dtype": dtype, "form": form, **({"P": P} if cell == "lstm" else {})}
    for cell, dtype, form, P in product(("lstm", "gru"), ("float32", "float64", "bfloat16"), "abcd", "03")
    if (dtype, form) != ("bfloat16", "d")
]


def groups(n, rows):
    return {group for row in rows for group in combinations(sorted(row.items()), n)}


@pytest.mark.parametrize("n, most", [(0, 1), (1, 4), (2, 14), (3, 40), (4, len(ROWS))])
def test_any_values_meet(n, most):
    chosen = cover(n, ROWS)
    assert groups(n, [ROWS[i] for i in chosen]) == groups(n, ROWS)
    assert len(chosen) <= most
    assert chosen == sorted(set(chosen)) == cover(n, ROWS)


def test_a_parameter_that_only_some_rows_have():
    """To be without it is a value, too."""
    assert cover(1, [{"a": "1"}, {"a": "1", "b": "2"}]) == [0, 1]
