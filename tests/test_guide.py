"""The code of docs/guide.md runs."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import fastrnn

GUIDE = Path(__file__).resolve().parents[1] / "docs/guide.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MAY_BE_MISSING = ["sb3_contrib", "tensordict"]


@pytest.fixture(scope="module")
def names():
    """What the blocks define, run in their order; without those whose library is missing."""
    text, defined = GUIDE.read_text(), {"__name__": "guide"}
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == text.count("```") / 2
    for block in blocks:
        if any(name in block[1] and find_spec(name) is None for name in MAY_BE_MISSING):
            continue
        line = text.count("\n", 0, block.start(1))
        exec(compile("\n" * line + block[1], str(GUIDE), "exec"), defined)
    return defined


def test_every_block(names):
    assert isinstance(names["gru"], fastrnn.GRU)


def test_policy_for_stable_baselines(names):
    """It does in one call what that of sb3-contrib does step by step."""
    pytest.importorskip("sb3_contrib")
    T, B, I, H = 7, 3, 4, 5
    policy, lstm = names["FastLstmPolicy"], fastrnn.LSTM(I, H)
    starts = (torch.rand(B * T) < 0.3).float()
    arguments = torch.randn(B * T, I), (torch.randn(1, B, H), torch.randn(1, B, H)), starts, lstm
    assert starts.any()
    torch.testing.assert_close(
        policy._process_sequence(*arguments), policy.__base__._process_sequence(*arguments)
    )
