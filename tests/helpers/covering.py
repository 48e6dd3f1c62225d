"""Few of the cases of a test that stand for all of them."""

import heapq
from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement


def cover(n: int, rows: Sequence[Mapping[str, str]]) -> list[int]:
    """Where the rows are that cover all: any n values that are together in a row are so in one of these.

    Greedy, and the same in every run.
    """
    names = sorted({name for row in rows for name in row})
    values = [[(name, row.get(name)) for name in names] for row in rows]
    groups = [set(combinations_with_replacement(row, n)) for row in values]
    covered, chosen = set(), []
    # By what each row added when it was looked at last, most first.
    waiting = [(-len(new), number) for number, new in enumerate(groups)]
    heapq.heapify(waiting)
    while waiting:
        _, number = heapq.heappop(waiting)
        new = groups[number] - covered
        if new and waiting and (-len(new), number) > waiting[0]:  # others may add more by now
            heapq.heappush(waiting, (-len(new), number))
        elif new:
            chosen.append(number)
            covered |= new
    return sorted(chosen)
