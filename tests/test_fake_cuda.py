"""The Python that runs only where there is a GPU, run on the CPU against a fake one: see fake_cuda.py.

It shows names, signatures, fixtures, parameters and devices that are wrong. What the kernels compute, only a
GPU can show.
"""

import json
import os
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import fake_cuda
import pytest
import torch
from cases import run_python

from benchmarks.peers import TORCH
from benchmarks.problems import modes_of
from benchmarks.results import read_rows

pytestmark = pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has a CUDA of its own")

TESTS = Path(__file__).parent

# What the fake cannot do: how tests end for want of a device.
EXPECTED = {
    "test_cuda.test_the_kind_that_is_forced_runs": "^assert False",  # no kernel is on the profile
    "test_cuda.test_kind_that_cannot_be": "DID NOT RAISE",
    "test_cuda.test_tf32": "AssertionError: assert not True",
    "test_cuda.test_error_is_raised_once": "no libcudart.so is loaded",
    "test_cuda.test_memory_is_from_the_allocator_of_torch": "AssertionError: the case shows nothing",
    "test_compile.test_inductor": "TritonMissing",
    "test_compile.test_ahead_of_time": "TritonMissing",
}


@pytest.fixture(scope="module")
def gpu(tmp_path_factory):
    """The environment of a process that finds the fake GPU."""
    folder = tmp_path_factory.mktemp("gpu")
    library = fake_cuda.build()
    (folder / "sitecustomize.py").write_text(f"import fake_cuda\nfake_cuda.install({library!r})\n")
    paths = [folder, TESTS.parent, TESTS / "helpers", os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(map(str, filter(None, paths))), "OMP_NUM_THREADS": "1"}


def run_tests(gpu, folder, *files):
    """One case of each test for the GPU: how each ended, by name, and what was printed."""
    report = folder / "report.xml"
    options = ["-m", "cuda", "-p", "fake_cuda", "-p", "no:cacheprovider", f"--junitxml={report}"]
    done = run_python("-m", "pytest", *options, *map(str, files), env=gpu, timeout=600)
    ends = {}
    for case in ElementTree.parse(report).iter("testcase"):
        bad = [end for end in case if end.tag in ("failure", "error")]
        name = f"{case.get('classname').split('.')[-1]}.{case.get('name').split('[')[0]}"
        ends[name] = bad[0].get("message") if bad else ""
    return ends, done.stdout + done.stderr


FILES = {file.stem: file for file in sorted(TESTS.rglob("test_*.py"))}
GPU, COMPILE = FILES.pop("test_cuda"), FILES.pop("test_compile")


@pytest.mark.parametrize(
    "files, count",
    [
        pytest.param([GPU], 15, id="cuda"),
        pytest.param([COMPILE], 20, id="compile", marks=pytest.mark.thorough),
        pytest.param([*FILES.values()], 130, id="others", marks=pytest.mark.thorough),
    ],
)
def test_tests_of_a_gpu(gpu, tmp_path, files, count):
    """End well or, for want of a device, as they must."""
    ends, output = run_tests(gpu, tmp_path, *files)
    assert len(ends) > count, output
    wrong = {name: end for name, end in ends.items() if end and not re.search(EXPECTED.get(name, "^$"), end)}
    assert not wrong, output
    assert {name for name, end in ends.items() if end} == EXPECTED.keys() & ends.keys()


PLANTED = """
import pytest, torch
from pytest import mark

@mark.cuda
@mark.parametrize("device", ["cuda", "cpu"])
def test_parameters(device):
    pytest.fail(device)

@mark.cuda
def test_names():
    torch.cuda.get_device_properties().sms

@mark.cuda
def test_arguments():
    torch.cuda.synchronize(timeout=3)

@mark.cuda
def test_devices():
    torch.ones(3, device="cuda") + torch.ones(3)

@mark.cuda
def test_waits():
    torch.cuda.set_sync_debug_mode("error")
    torch.ones(3, device="cuda").sum().item()

def test_on_the_cpu():
    pytest.fail("is not for a GPU")
"""


def test_faults_are_found(gpu, tmp_path):
    file = tmp_path / "test_planted.py"
    file.write_text(PLANTED)
    ends, _ = run_tests(gpu, tmp_path, file)
    assert {name.split(".")[1]: end.splitlines()[0] for name, end in ends.items()} == {
        "test_parameters": "Failed: cuda",
        "test_names": "AttributeError: 'DeviceProperties' object has no attribute 'sms'",
        "test_arguments": "TypeError: synchronize() got an unexpected keyword argument 'timeout'",
        "test_devices": "RuntimeError: Expected all tensors to be on the same device, but found at least two "
        "devices, cuda:0 and cpu!",
        "test_waits": "RuntimeError: called a synchronizing CUDA operation: aten::_local_scalar_dense",
    }


# The sizes that are measured besides problems, made small.
BENCHMARKS = """
import sys
from benchmarks import __main__, cuda
cuda.GEMM_SIZES, cuda.COPY_BYTES, cuda.BLOCK_S, __main__.QUICK_SECONDS = (32,), 1024, 0.001, 0.01
sys.exit(__main__.main())
"""


@pytest.mark.thorough
def test_benchmarks(gpu, tmp_path):
    """The whole program, from arguments to plots, in every mode."""
    path = tmp_path / "run.json"
    arguments = ("--device", "cuda", "--quick", "--flush-l2", "--shapes", "2,2,5,4", "--json", str(path))
    done = run_python("-c", BENCHMARKS, *arguments, env=gpu | {"FASTRNN_CUDA_PLAN": "stepwise"}, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(path.read_text())
    assert found["machine_info"]["gpu"]["l2_state"] == "flushed before each call"
    (limits,) = found["limits"].values()
    assert set(limits["gemm"]) == {"bfloat16", "float16", "float32", "tf32"}
    rows = read_rows(found)
    timed = {row.problem.mode for row in rows if row.ratio(TORCH)}
    assert timed == set(modes_of("cuda"))
    assert {row.plans for row in rows} == {"stepwise", "stepwise/stepwise"}
    assert "NVIDIA H200 (fake), 132 SMs" in path.with_suffix(".md").read_text()
    assert (tmp_path / "run-regimes.png").read_bytes().startswith(b"\x89PNG")


# Every program that a stage starts is named. A Python does nothing, other programs are those of PROGRAMS.
GPU_CHECK = """
import subprocess, sys
from pathlib import Path
from tools import gpu_check

gpu_check.CONFORMANCE = Path(sys.argv.pop())

class Popen(subprocess.Popen):
    def __init__(self, arguments, *rest, **options):
        sys.stdout.write(" ".join(map(str, ["STARTED", *arguments])) + chr(10))
        is_python = arguments[0] == sys.executable
        super().__init__([sys.executable, "-S", "-c", ""] if is_python else arguments, *rest, **options)

subprocess.Popen = Popen
sys.exit(gpu_check.main())
"""
COMPILE = 'while [ $# -gt 1 ]; do [ "$1" = -o ] && echo "#!/bin/sh" > "$2" && chmod +x "$2"; shift; done\n'
PROGRAMS = {"nvcc": COMPILE, "cmake": "", "ninja": "", "compute-sanitizer": ""}


def test_gpu_check(gpu, tmp_path):
    """Every stage, from what it asks torch to the report."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}")
        (programs / name).chmod(0o755)
    path = os.pathsep.join([str(programs), os.environ["PATH"]])
    done = run_python(
        *("-c", GPU_CHECK, "--out", str(tmp_path / "out"), str(tmp_path / "conformance")),
        env=gpu | {"PATH": path},
        timeout=600,
    )
    failed = [line for line in done.stdout.splitlines() if "FAILED" in line]
    assert all("there is no test of a GPU" in line for line in failed), done.stdout  # as no pytest has run
    assert done.returncode == bool(failed) and "Traceback" not in done.stdout + done.stderr, done.stderr
    started = [line for line in done.stdout.splitlines() if line.startswith("STARTED")]
    for words in ("setup.py build_ext", "-arch=sm_90a", "-m pytest", "-m benchmarks", "--tool=memcheck"):
        assert any(words in line for line in started), (words, done.stdout)


# Of small layers, and few.
FACTS = """
import sys, time
from pathlib import Path
from tools import gpu_facts
gpu_facts.HIDDEN, gpu_facts.BATCH, gpu_facts.STEPS, gpu_facts.TIMES = (8, 20), (3,), (2, 4), 1
path, log = Path(sys.argv[1]), Path(sys.argv[2])
log.write_text("")
sys.exit(gpu_facts.learn(gpu_facts.list_facts(log), path, time.time() + 500))
"""


def test_facts(gpu, tmp_path):
    """Every fact is asked for."""
    path = tmp_path / "facts.json"
    done = run_python("-c", FACTS, str(path), str(tmp_path / "log"), env=gpu, timeout=600)
    assert done.returncode == 0, done.stderr
    facts = json.loads(path.read_text())
    wrong = {name: fact for name, fact in facts["known"].items() if "error" in str(fact)}
    assert not wrong and not facts["left out"] and len(facts["known"]) > 20
