"""PyTorch's own tests of recurrent layers pass with fastrnn's classes wherever they pass with torch.nn's.

    PYTORCH_SOURCE=/path/to/a/checkout pytest tests/test_pytorch_suite.py

The checkout should be of the installed torch. A file that does not run with torch.nn's classes is skipped.
"""

import os
from pathlib import Path

import pytest
from pytorch_suite import judge, run

SOURCE = os.environ.get("PYTORCH_SOURCE")
FILES = (  # under test/
    "test_nn.py",
    "nn/test_*.py",
    "test_modules.py",
    "test_expanded_weights.py",
    "test_overrides.py",
    "test_jit*.py",
    "test_autocast.py",
    "test_autograd.py",
    "test_decomp.py",
    "test_fake_tensor.py",
    "test_mkldnn.py",
    "onnx/test_pytorch_onnx_onnxruntime.py",
    "onnx/test_pytorch_onnx_no_runtime.py",
    "onnx/test_utility_funs.py",
    "quantization/*/test_*.py",
    "ao/sparsity/test_structured_sparsifier.py",
)
# Tests that pass with torch.nn's classes only, as patterns, each with its reason.
DIFFERENCES = {
    "*TestFXNumericSuiteCoreAPIsModels::test_compare_shadow_activations_lstm_dynamic": (
        "the numeric suite of FX looks classes up in tables of its own, where fastrnn's are not"
    ),
}


def find_files():
    folder = Path(SOURCE or ".") / "test"
    return sorted({str(path.relative_to(folder)) for pattern in FILES for path in folder.glob(pattern)})


@pytest.mark.skipif(not SOURCE, reason="PYTORCH_SOURCE is not set: the path of a PyTorch checkout")
@pytest.mark.parametrize("file", find_files() if SOURCE else ["every file"])
def test_file(file, tmp_path):
    source = Path(SOURCE).resolve()
    try:
        theirs = run(source, file, False, tmp_path)
    except RuntimeError as error:
        pytest.skip(f"with torch.nn, {error}")
    new, gone = judge(theirs, run(source, file, True, tmp_path), DIFFERENCES)
    assert not new, "\n".join(f"{test}: {result}" for test, result in new.items())
    assert not gone, f"no difference any more: {gone}"


# ---- the harness itself ----

CHECKOUT = """
import os, unittest
import torch
from pkg.helper import VALUE

theirs = torch.nn.LSTM.__module__.startswith("torch.")

class TestFake(unittest.TestCase):
    def test_1_linear_is_not_chosen(self): raise AssertionError
    def test_2_lstm_same(self): assert VALUE == 3 and torch.nn.LSTM is torch.nn.modules.rnn.LSTM
    def test_3_GRU_differs(self): assert theirs, "words"
    def test_4_rnn_fails_with_both(self): raise AssertionError
    def test_5_rnn_kills(self): theirs or os._exit(3)
    def test_6_rnn_after_that(self): pass
    def test_7_rnn_is_skipped(self):
        if not theirs: self.skipTest("no")
    def test_8_lstm_in_part(self):
        for k in range(2):
            with self.subTest(k=k): assert theirs or k

if theirs:
    class TestGRU(unittest.TestCase):
        def test_it(self): pass
"""


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "test" / "pkg").mkdir(parents=True)
    (tmp_path / "test" / "pkg" / "helper.py").write_text("VALUE = 3")
    (tmp_path / "test" / "nn").mkdir()
    (tmp_path / "test" / "nn" / "test_fake.py").write_text(CHECKOUT)
    return tmp_path


@pytest.mark.thorough
def test_the_harness(checkout):
    theirs, ours = (run(checkout, "nn/test_fake.py", replaced, checkout) for replaced in (False, True))
    name = "nn/test_fake.py::TestFake::test_"
    assert [test for test, result in theirs.items() if result != "passed"] == [f"{name}4_rnn_fails_with_both"]
    new, gone = judge(theirs, ours, ["*::test_3_GRU*", "*lstm_same"])
    assert gone == [f"{name}2_lstm_same"]
    assert list(new) == [
        f"{name}5_rnn_kills",
        f"{name}7_rnn_is_skipped",
        f"{name}8_lstm_in_part",
        "nn/test_fake.py::TestGRU::test_it",
    ]
    assert new[f"{name}5_rnn_kills"] == "failed: the process died"
    assert "words" in ours[f"{name}3_GRU_differs"]
    assert ours[f"{name}6_rnn_after_that"] == "passed"


def test_a_file_that_cannot_be_collected(checkout):
    (checkout / "test" / "test_bad.py").write_text("import no_such_module")
    with pytest.raises(RuntimeError, match="test_bad.py does not run"):
        run(checkout, "test_bad.py", False, checkout)
