"""`python -m fastrnn`, and the instruction set that FASTRNN_CPU_ISA forces."""

import re
from pathlib import Path

import pytest
import torch
from cases import run_python

import fastrnn
from fastrnn import _C

ISAS = tuple(_C.isas_available())


def report(**env):
    """The lines of the report by name."""
    done = run_python("-m", "fastrnn", env=env)
    assert done.returncode == 0, done.stderr
    return read(done.stdout)


def read(text):
    return dict(re.split(r"\s{2,}|:\s+", line, maxsplit=1) for line in text.splitlines())


def find(rows, *words):
    """The value of the one line whose name has all of these words."""
    (value,) = [v for name, v in rows.items() if all(w.lower() in name.lower() for w in words)]
    return value.strip()


def test_report():
    rows = report(OMP_NUM_THREADS="1", FASTRNN_CPU_ISA="")
    assert find(rows, "fastrnn") == fastrnn.__version__
    assert find(rows, "torch", "built") == _C.torch_version
    assert find(rows, "torch", "running") == torch.__version__
    assert find(rows, "CUDA") == (" ".join(_C.cuda_archs) or "none")
    intel = "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    assert find(rows, "ISA", "chosen") == [isa for isa in ISAS if not (intel and isa == "avx512_bf16")][-1]
    assert tuple(re.findall(r"\w+", find(rows, "ISA", "available"))) == ISAS
    assert find(rows, "threads") == "1"
    assert find(report(OMP_NUM_THREADS="2"), "threads") == "2"


FORCED = """
import torch, fastrnn
fastrnn.LSTM(3, 5)(torch.zeros(2, 1, 3))
print(fastrnn._C.isa())
from fastrnn.__main__ import main
main()
"""


@pytest.mark.parametrize("isa", ISAS)
def test_forced_isa(isa):
    """It computes, and the report names it."""
    done = run_python("-c", FORCED, env={"FASTRNN_CPU_ISA": isa})
    assert done.returncode == 0, done.stderr
    computes, _, rows = done.stdout.partition("\n")
    assert computes == isa
    assert find(read(rows), "ISA", "chosen") == isa


NOT_THERE = ["avx1024", "AVX2 ", "baseline,avx2", *sorted(set(_C.isas_built()) - set(ISAS))]


@pytest.mark.quick(0)
@pytest.mark.parametrize("name", NOT_THERE)
def test_isa_that_is_not_there(name):
    """At import: an error that names the variable, its value, and what there is to choose from."""
    done = run_python("-c", "import fastrnn", env={"FASTRNN_CPU_ISA": name})
    assert done.returncode != 0
    message = done.stderr.strip().splitlines()[-1]
    assert "FASTRNN_CPU_ISA" in message and name in message
    assert all(isa in message for isa in ISAS), message


def test_names_of_the_build():
    assert set(ISAS) <= set(_C.isas_built())
    assert "baseline" in ISAS
    assert _C.isa() in ISAS
    assert _C.torch_version.split("+")[0] == torch.__version__.split("+")[0]
    assert bool(_C.cuda_archs) == _C.cuda_built
    assert all(re.fullmatch(r"(sm|compute)_\d+[af]?", arch) for arch in _C.cuda_archs)
    assert torch.version.cuda or not _C.cuda_built
