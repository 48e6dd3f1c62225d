"""The code of docs/guide.md runs."""

import re
from importlib.util import find_spec
from pathlib import Path

import torch

GUIDE = Path(__file__).resolve().parents[1] / "docs/guide.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MAY_BE_MISSING = ["sb3_contrib", "tensordict"]


def run_blocks():
    """The names that the blocks define, run in their order; without those whose library is missing."""
    text, names = GUIDE.read_text(), {"__name__": "guide"}
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == text.count("```") / 2
    for block in blocks:
        if any(name in block[1] and find_spec(name) is None for name in MAY_BE_MISSING):
            continue
        line = text.count("\n", 0, block.start(1))
        exec(compile("\n" * line + block[1], str(GUIDE), "exec"), names)
    return names


def test_every_block():
    """Runs, and the policy does in one call what that of sb3-contrib does step by step."""
    names = run_blocks()
    if "FastLstmPolicy" not in names:
        return
    T, B, I, H = 7, 3, 4, 5
    policy, lstm = names["FastLstmPolicy"], torch.nn.LSTM(I, H)
    starts = (torch.rand(B * T) < 0.3).float()
    arguments = torch.randn(B * T, I), (torch.randn(1, B, H), torch.randn(1, B, H)), starts
    fast = names["fastrnn"].convert(torch.nn.Sequential(lstm))[0]
    torch.testing.assert_close(
        policy._process_sequence(*arguments, fast), policy.__base__._process_sequence(*arguments, lstm)
    )
