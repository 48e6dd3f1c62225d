"""How a GPU would compute a layer: `python -m fastrnn --plan` says it on any machine. The device must be able
to run every plan, and no plan may leave anything out."""

import os
import re
import unittest.mock
from itertools import groupby

import pytest
import torch
from cases import EVERY_CELL, run_program
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrnn import _C
from fastrnn.__main__ import main
from fastrnn.plan import MANY_STEPS, MATHS, SHARED_KIB, Gpu, describe
from fastrnn.reference import CELLS

H200 = dict(sms=132, capability=90, shared_bytes=227 * 1024, clusters=Gpu(132, (9, 0)).clusters)
LEAST_CAPABILITY = {"stepwise": 70, "grid": 80, "cluster": 90}
CLUSTER = 16  # blocks at most
REGISTERS = 255  # of a thread, at most
BYTES = {"ieee": 4, "tf32": 4, "fp16": 2, "bf16": 2}


@st.composite
def devices(draw):
    (major, minor), kib = draw(st.sampled_from(sorted(SHARED_KIB.items())))
    sms = draw(st.integers(1, 200))
    fewer = draw(st.integers(0, 3))  # than the table says
    clusters = [max(0, count - fewer) for count in Gpu(sms, (major, minor)).clusters]
    return dict(sms=sms, capability=10 * major + minor, shared_bytes=1024 * kib, clusters=clusters)


@st.composite
def problems(draw):
    return dict(
        cell=draw(st.sampled_from(EVERY_CELL)),
        math=draw(st.sampled_from(sorted(MATHS.values()))),
        backward=draw(st.booleans()),
        projected=draw(st.booleans()),
        noisy=draw(st.booleans()),
        T=draw(st.one_of(st.integers(1, 5), st.just(MANY_STEPS))),
        B=draw(st.one_of(st.integers(1, 300), st.integers(1, 10_000))),
        H=draw(st.one_of(st.integers(1, 600), st.integers(1, 5000))),
        D=draw(st.integers(1, 2)),
    )


def check(plan, problem, device):
    """That the device can run the plan, and that the plan has all of the problem."""
    kind = plan["kind"]
    assert device["capability"] >= LEAST_CAPABILITY[kind]
    if kind == "stepwise":
        assert plan["directions"] == 1 and plan["shared_bytes"] == 0
        return
    assert problem["math"] in BYTES, "only a stepwise plan computes this"
    assert not problem["projected"] and not problem["noisy"], "only a stepwise plan computes these"
    warps = plan["row_warps"] * plan["k_warps"]
    assert 1 <= warps <= 8
    assert 1 <= plan["directions"] <= problem["D"]
    assert plan["block_groups"] * plan["blocks"] * plan["directions"] <= device["sms"], "one block an SM"
    if kind == "cluster":
        assert plan["blocks"] <= CLUSTER
        at_once = device["clusters"][plan["blocks"] - 1]
        assert plan["block_groups"] * plan["directions"] <= at_once, "a second wave"
    assert 0 < plan["shared_bytes"] <= device["shared_bytes"]

    def covers(parts, size, what):
        assert (parts - 1) * size < what <= parts * size

    covers(plan["blocks"], plan["units_of_block"], problem["H"])
    covers(plan["block_groups"], plan["tiles"] * plan["tile_batch"], problem["B"])
    rows = problem["H"] * CELLS[problem["cell"]].gates
    weights = rows * problem["H"] * BYTES[problem["math"]]
    assert weights <= plan["blocks"] * warps * 32 * REGISTERS * 4, "the weights do not fit the registers"


@settings(max_examples=500, deadline=None, derandomize=True)
@given(problem=problems(), device=devices())
def test_best_plan(problem, device):
    check(_C.plan(**problem, **device), problem, device)


@pytest.mark.parametrize("kind", LEAST_CAPABILITY)
@settings(max_examples=300, deadline=None, derandomize=True)
@given(problem=problems(), device=devices())
def test_forced_plan(kind, problem, device):
    """Of that kind, or an error; and the best plan is never of a kind that a force to it would refuse."""
    best = _C.plan(**problem, **device)
    try:
        plan = _C.plan(**problem, **device, kind=kind)
    except RuntimeError as error:
        assert re.match(rf"a {kind} plan cannot compute", str(error)) and best["kind"] != kind
        return
    assert plan["kind"] == kind
    check(plan, problem, device)


@pytest.mark.parametrize("math", BYTES)
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_kinds_by_size(cell, backward, math):
    """A cluster for small layers, then the device, for some of it, and steps for what fits neither."""
    sizes = range(16, 5001, 16)
    problem = dict(cell=cell, math=math, backward=backward, T=MANY_STEPS, B=1)
    kinds = [_C.plan(**problem, H=H, **H200)["kind"] for H in sizes]
    assert [kind for kind, _ in groupby(kinds)] == ["cluster", "grid", "stepwise"]


LSTM = dict(cell="lstm", math="bf16", T=MANY_STEPS, B=16, H=256)


def test_few_steps_do_not_pay_for_loading_the_weights():
    kinds = [_C.plan(**LSTM | dict(T=T), **H200)["kind"] for T in range(1, 6)]
    assert [kind for kind, _ in groupby(kinds)] == ["stepwise", "cluster"]
    assert _C.plan(**LSTM | dict(T=1), **H200, kind="cluster")["kind"] == "cluster", "the forced kind"


def test_the_next_kind_where_one_does_not_fit():
    plans = [_C.plan(**LSTM, **H200, fitting=kinds) for kinds in ({"grid", "cluster"}, {"grid"}, set())]
    assert [(plan["kind"], plan["refused"]) for plan in plans] == [
        ("cluster", []),
        ("grid", ["cluster"]),
        ("stepwise", ["cluster", "grid"]),
    ]
    assert [describe(plan).count("cannot run") for plan in plans] == [0, 1, 1]
    assert "(the GPU cannot run cluster or grid now)" in describe(plans[2])
    with pytest.raises(RuntimeError, match="a cluster plan cannot compute lstm"):
        _C.plan(**LSTM, **H200, kind="cluster", fitting={"grid"})


def test_clusters_of_a_device():
    """Fewer than there are SMs for: a cluster lies within a GPC. An H200 has told these numbers."""
    assert Gpu(132, (9, 0)).clusters == [132, 66, 39, 30, 22, 17, 15, 15, 9, 7, 7, 7, 7, 7, 7, 7]
    assert Gpu(132, (8, 0)).clusters == [0] * CLUSTER
    assert all(n * count <= 148 for n, count in enumerate(Gpu(148, (10, 0)).clusters, 1))


def test_no_clusters():
    assert _C.plan(**LSTM, **H200 | dict(clusters=[0] * CLUSTER))["kind"] == "grid"


def test_sizes_that_the_kernels_cannot_count():
    assert _C.plan(**LSTM | dict(T=2**30 + 1), **H200)["kind"] == "stepwise"
    assert _C.plan(**LSTM | dict(B=2**30 + 1), **H200)["kind"] == "stepwise"
    assert _C.plan(**LSTM | dict(T=2**20, B=2**10 + 1), **H200)["kind"] == "stepwise"


@pytest.mark.parametrize(
    "value, nanoseconds", [("", 20_000_000_000), ("0", 0), ("0.5", 500_000_000), ("600", 600_000_000_000)]
)
def test_longest_wait(value, nanoseconds, monkeypatch):
    monkeypatch.setenv("FASTRNN_CUDA_WAIT_SECONDS", value)
    assert _C.longest_cuda_wait() == nanoseconds


@pytest.mark.parametrize("value", ["-1", "long", "nan", "5 s"])
def test_wrong_longest_wait(value, monkeypatch):
    monkeypatch.setenv("FASTRNN_CUDA_WAIT_SECONDS", value)
    with pytest.raises(RuntimeError, match=f"FASTRNN_CUDA_WAIT_SECONDS: expected .*, got '{value}'"):
        _C.longest_cuda_wait()


@pytest.mark.parametrize("wrong", [dict(cell="lstn"), dict(math="int8"), dict(kind="fast")], ids=str)
def test_wrong_arguments(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name}: expected .* got '{wrong[name]}'"):
        _C.plan(**LSTM | wrong, **H200)


# ---- the command ----

LAYER = ("--plan", "lstm", "--hidden", "256", "--batch", "16", "--dtype", "bf16")
DEVICE = ("--sms", "132", "--capability", "9.0")
KINDS = re.compile(r"^(forward|backward): (\w+): \w", re.MULTILINE)


def run_plan(*arguments, **env):
    with unittest.mock.patch.dict(os.environ, env):
        return run_program(main, *arguments)


def error_of(done) -> str:
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_command():
    """Prints what the binding gives."""
    done = run_plan(*LAYER, *DEVICE)
    assert done.returncode == 0, done.stderr
    plans = [_C.plan(**LSTM, backward=b, **H200) for b in (False, True)]
    assert KINDS.findall(done.stdout) == [
        (name, plan["kind"]) for name, plan in zip(("forward", "backward"), plans, strict=True)
    ]
    for plan in plans:
        assert plan["reason"] in done.stdout
        for field in ("block_groups", "blocks", "tiles", "units_of_block", "shared_bytes"):
            assert re.search(rf"\b{plan[field]}\b", done.stdout), field


@pytest.mark.parametrize("kind", LEAST_CAPABILITY)
def test_environment_forces_a_kind(kind):
    done = run_plan(*LAYER, *DEVICE, FASTRNN_CUDA_PLAN=kind)
    assert done.returncode == 0, done.stderr
    assert KINDS.findall(done.stdout) == [("forward", kind), ("backward", kind)]


def test_environment_forces_what_cannot_be():
    assert "a cluster plan cannot compute lstm with H = 5000" in error_of(
        run_plan(*LAYER, *DEVICE, "--hidden", "5000", FASTRNN_CUDA_PLAN="cluster")
    )
    assert "FASTRNN_CUDA_PLAN: expected stepwise, grid or cluster, got 'fast'" in error_of(
        run_plan(*LAYER, *DEVICE, FASTRNN_CUDA_PLAN="fast")
    )


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--plan", "lstm", *DEVICE), "--plan needs --hidden and --batch"),
        (("--plan", "lstm", "--batch", "1", *DEVICE), "--plan needs --hidden"),
        ((*LAYER, "--sms", "0"), "--sms: 0: expected a positive number"),
        ((*LAYER, "--steps", "0"), "--steps: 0: expected a positive number"),
        ((*LAYER, "--capability", "9"), "--capability: 9: expected one of 7.0, "),
        (("--plan", "transformer"), "--plan: invalid choice"),
    ],
)
def test_command_names_what_is_wrong(arguments, words):
    assert words in error_of(run_plan(*arguments))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("given", [(), DEVICE[:2], DEVICE[2:]], ids=str)
def test_without_a_gpu_the_device_must_be_given(given):
    assert "no GPU here: give --sms and --capability" in error_of(run_plan(*LAYER, *given))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_the_device_is_known():
    here = Gpu.here()
    done = run_plan(*LAYER)
    assert done.returncode == 0, done.stderr
    capability = ".".join(map(str, here.capability))
    assert f"on {here.sms} SMs of compute capability {capability}" in done.stdout
