"""The persistent CUDA kernels' body, run on the host by persistent_runner.cpp, a thread a warp.

What only a GPU can show, the instructions behind the context, conformance.cu tests there."""

import os
import subprocess

import pytest
import runners

MATHS = ["ieee", "tf32", "fp16", "bf16"]
# A race ends the program at once.
ENVIRONMENT = os.environ | {"TSAN_OPTIONS": "halt_on_error=1"}


@pytest.fixture(scope="module", params=["", "address", "thread"], ids=["plain", "address", "thread"])
def sanitizer(request):
    return request.param


@pytest.fixture(scope="module")
def runner(sanitizer, tmp_path_factory):
    return runners.build(tmp_path_factory.mktemp("persistent"), "persistent_runner", sanitizer)


def run(runner, *arguments):
    return subprocess.run([runner, *arguments], capture_output=True, text=True, timeout=600, env=ENVIRONMENT)


@pytest.mark.parametrize("math", MATHS)
def test_values_and_gradients(runner, sanitizer, math):
    """Every kind of plan and cell against a plain recurrence in float64. With sanitizers: few problems."""
    done = run(runner, math, *(["none"] if sanitizer else []))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert done.stdout.count("of the tolerance") >= (38 if sanitizer else 500)


# A fault -> the sanitizer of the build that must catch it, and what it says.
FAULTS = {
    "relaxed_signal": ("thread", "data race"),
    "missing_wait": ("thread", "data race"),
    "single_buffer": ("thread", "data race"),
    "lost_signal": ("", "not answered in time"),
    "short_tail": ("", "expected"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(runner, sanitizer, fault):
    catcher, sign = FAULTS[fault]
    if catcher != sanitizer:
        pytest.skip(f"the {catcher or 'plain'} build catches it")
    done = run(runner, "bf16", fault)
    assert done.returncode != 0
    assert sign in done.stdout + done.stderr
