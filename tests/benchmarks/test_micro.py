"""`python -m benchmarks.csrc`: it builds, and times every kind of thing."""

import pytest

from benchmarks.csrc import __main__ as micro


@pytest.mark.thorough  # it compiles for half a minute
def test_micro_benchmarks(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("FASTRNN_CPU_ISA", "baseline")
    monkeypatch.setattr(micro, "FOLDER", tmp_path)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["micro", "--seconds", "0", *arguments])
        assert micro.main() == 0
        return capfd.readouterr().out.splitlines()

    machine, header, *lines = run()
    assert machine.endswith("; baseline") and "of peak" in header
    kinds = {line.split("/")[0] for line in lines}
    assert {"peak", "input_product", "recurrent_product", "gemv", "weight_gradients"} <= kinds
    assert {"cell_forward", "cell_backward"} <= kinds
    peak, product = run("gemv/double/H:64/")[2:]
    assert peak.startswith("peak/double") and peak.endswith("100%")
    assert product.startswith("gemv/double/H:64/rows:1") and "GFLOP/s" in product
