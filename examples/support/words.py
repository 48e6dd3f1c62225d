"""The words of a text for word_vectors.py, and a map of them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import common
import torch
from torch import Tensor


def read_words(path: Path | None, most: int | None) -> tuple[Tensor, list[str]]:
    """The words of a text as numbers, and the names of these. 0 stands for all that training has seldom."""
    tokens = re.findall(r"[^\W\d]+", common.read_text_or_topics(path).lower())[:most]
    often = Counter(tokens[: 8 * (len(tokens) // 10)])
    names = ["(rare)", *(word for word, count in often.most_common() if count >= 5)]
    if len(tokens) < 10000 or len(names) < 250:
        got = f"{len(tokens):,} and {len(names) - 1}"
        raise SystemExit(f"--text {path}: expected 10,000 words, 250 of them 5 times or more, got {got}")
    number = {name: i for i, name in enumerate(names)}
    return torch.tensor([number.get(token, 0) for token in tokens]), names


def draw_map(ax: Any, names: list[str], vectors: Tensor) -> None:
    """Frequent words in a plane, neighbours if their vectors are alike. One without room is a point."""
    from sklearn.manifold import TSNE

    chosen = [i for i in range(40, 240) if len(names[i]) > 2]  # those before, like "the", go with all words
    places = TSNE(perplexity=12, metric="cosine", init="pca", random_state=0).fit_transform(vectors[chosen])
    ax.scatter(*places.T, s=6, color="0.75")
    ax.set(xticks=[], yticks=[])
    ax.figure.canvas.draw()
    taken = []
    for place, i in zip(places, chosen, strict=True):
        text = ax.annotate(names[i], place, fontsize=9, ha="center", va="center")
        box = text.get_window_extent()
        if any(box.overlaps(other) for other in taken):
            text.remove()
        else:
            taken.append(box)
