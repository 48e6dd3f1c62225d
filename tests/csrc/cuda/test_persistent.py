"""The persistent CUDA kernels' body, run on the host by persistent_runner.cpp, a thread a warp.

What only a GPU can show, the instructions behind the context, conformance.cu tests there."""

import os
import subprocess

import pytest
import runners

SANITIZERS = {"plain": "", "address": "address", "thread": "thread"}
# Each takes long to compile: only one is without --thorough.
BUILDS = [
    pytest.param(
        sanitizer, math, marks=() if (sanitizer, math) == ("plain", "bf16") else pytest.mark.thorough
    )
    for sanitizer in SANITIZERS
    for math in ("bf16", "ieee", "tf32", "fp16")
]
# A race ends the program at once.
ENVIRONMENT = os.environ | {"TSAN_OPTIONS": "halt_on_error=1"}


def run(sanitizer, math, *arguments):
    runner = runners.build(f"persistent_runner_{math}", SANITIZERS[sanitizer])
    return subprocess.run([runner, *arguments], capture_output=True, text=True, timeout=600, env=ENVIRONMENT)


@pytest.mark.parametrize("sanitizer, math", BUILDS)
def test_values_and_gradients(sanitizer, math, thorough):
    """Every kind of plan and cell against a plain recurrence in float64. With sanitizers: few problems."""
    few = sanitizer != "plain" or not thorough
    done = run(sanitizer, math, *["none"] * few)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert done.stdout.count("of the tolerance") >= (38 if few else 500)


@pytest.mark.parametrize(
    "fault, sanitizer, sign",
    [
        ("lost_signal", "plain", "not answered in time"),
        ("short_tail", "plain", "expected"),
        *(
            pytest.param(fault, "thread", "data race", marks=pytest.mark.thorough)
            for fault in ("relaxed_signal", "missing_wait", "single_buffer")
        ),
    ],
)
def test_planted_faults_are_caught(fault, sanitizer, sign):
    done = run(sanitizer, "bf16", fault)
    assert done.returncode != 0
    assert sign in done.stdout + done.stderr
