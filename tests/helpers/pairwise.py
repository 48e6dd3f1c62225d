"""Few of the cases of a test that stand for all of them."""

import heapq
from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement

ABSENT = "absent"


def cover_pairs_of(rows: Sequence[Mapping[str, str]]) -> list[int]:
    """Where the rows are that cover all: any two values that are together in a row are so in one of these.

    Greedy, and the same in every run.
    """
    names = sorted({name for row in rows for name in row})
    values = [[(name, row.get(name, ABSENT)) for name in names] for row in rows]
    pairs = [set(combinations_with_replacement(row, 2)) for row in values]
    covered, chosen = set(), []
    waiting = [(-len(new), number) for number, new in enumerate(pairs)]  # what each row adds, most first
    heapq.heapify(waiting)
    while waiting:
        _, number = heapq.heappop(waiting)
        new = pairs[number] - covered
        if new and waiting and (-len(new), number) > waiting[0]:  # others may add more by now
            heapq.heappush(waiting, (-len(new), number))
        elif new:
            chosen.append(number)
            covered |= new
    return sorted(chosen)
