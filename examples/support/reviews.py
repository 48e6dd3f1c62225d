"""Reviews of films for sentiment.py: aclImdb, or the rt-polarity files."""

from __future__ import annotations

import random
import re
from pathlib import Path

import common

ACLIMDB = "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"
ACLIMDB_HASH = "md5:7c2ac02c03563afcf9b574c7e56c153a"
SIDES = ("neg", "pos")  # the label of a review is its side's index
LONGEST = 200  # words read of a review

Review = tuple[list[str], int]  # its words, its label


def read_reviews(data: Path | None) -> tuple[list[Review], list[Review]]:
    """Shuffled reviews to learn from, and reviews to test with."""
    if data is None:
        folders = [f"aclImdb/{part}/{side}" for part in ("train", "test") for side in SIDES]
        data = common.download(ACLIMDB, ACLIMDB_HASH, "--data FOLDER", unpack=folders) / "aclImdb"

    def read(path: Path) -> str:
        return common.read_text(path, "--data", "latin-1")  # UTF-8 too: `words_of` takes ASCII alone

    learn, test = [], []
    for label, side in enumerate(SIDES):
        learn += [(words_of(read(file)), label) for file in sorted((data / "train" / side).glob("*.txt"))]
        test += [(words_of(read(file)), label) for file in sorted((data / "test" / side).glob("*.txt"))]
        if (file := data / f"rt-polarity.{side}").exists():
            learn += [(words_of(line), label) for line in read(file).splitlines()]
    random.Random(0).shuffle(learn)
    if not test:  # rt-polarity is not split
        learn, test = learn[len(learn) // 5 :], learn[: len(learn) // 5]
    if any({label for _, label in part} != {0, 1} for part in (learn, test)):
        files = "rt-polarity.neg and .pos, or folders train/neg, train/pos, test/neg, test/pos of *.txt"
        raise SystemExit(f"--data {data}: expected {files}, got no reviews of both sides")
    return learn, test


def words_of(text: str) -> list[str]:
    """The words of a review; of a long one the end, which tends to judge."""
    text = text.lower().replace("<br />", " ")
    return re.findall(r"[a-z]+(?:'[a-z]+)?|[!?]", text)[-LONGEST:] or ["?"]
