"""How the CPU's threads share a layer: `python -m fastrnn --plan CELL --device cpu`, and FASTRNN_CPU_PLAN."""

import re
import sys

import pytest
import torch
from cases import EVERY_CELL, run_python

from fastrnn import _C
from fastrnn.__main__ import main
from fastrnn.plan import CPU_DTYPES, TORCH_DTYPES, describe_cpu, make_cpu_plans

LSTM = dict(cell="lstm", dtype="float32", T=100, B=64, I=64, H=64, P=64)
MOST = 8  # threads


def plans(threads=MOST, **changes):
    return _C.cpu_plan(**LSTM | changes, threads=threads)


@pytest.mark.parametrize("cell", EVERY_CELL)
@pytest.mark.parametrize("dtype", sorted(set(CPU_DTYPES.values())))
@pytest.mark.parametrize("T, B, H", [(1, 1, 7), (3, 2, 150), (100, 1, 256), (20, 64, 512), (100, 100, 32)])
def test_plans_hold_together(cell, dtype, T, B, H):
    for D in (1, 2):
        for name, plan in plans(cell=cell, dtype=dtype, T=T, B=B, I=H, H=H, P=H, D=D).items():
            directions = 2 if plan["side_by_side"] else 1
            assert 1 <= plan["threads"] * directions <= MOST
            assert directions == 1 or (D == 2 and name == "forward")
            assert (plan["sharing"] == "batch") == (plan["batch_groups"] > 0)
            assert (plan["sharing"] == "none") == (plan["threads"] == 1)
            assert plan["batch_groups"] % plan["threads"] == 0
            assert (plan["panels"] - 1) * plan["panel_units"] < H <= plan["panels"] * plan["panel_units"]
            assert 1 <= plan["tile_rows"] <= max(B, 1) and plan["tile_vectors"] >= 1
            assert plan["packed"] or T * B <= 8
            assert plan["reason"]


def test_plans_by_size():
    """One thread for little work, by batch for many sequences, by units for few ones and a single step."""

    def sharing(**changes):
        return [plan["sharing"] for plan in plans(**changes).values()]

    assert sharing(T=1, B=1) == ["none", "none"]
    assert sharing(threads=1) == ["none", "none"]
    assert sharing() == ["batch", "batch"]
    assert sharing(B=4, I=512, H=512, P=512) == ["units", "units"]
    assert sharing(T=1, B=2000) == ["units", "units"]


def test_two_directions_share_the_threads():
    both = plans(D=2)
    assert both["forward"]["side_by_side"] and both["forward"]["threads"] == MOST // 2
    assert not both["backward"]["side_by_side"] and both["backward"]["threads"] == MOST


@pytest.mark.parametrize(
    "wrong, words",
    [
        (dict(cell="lstn"), "cell: expected .* got 'lstn'"),
        (dict(dtype="float16"), "dtype: expected float32, float64 or bfloat16, got 'float16'"),
        (dict(B=0), "sizes and threads: expected positive numbers"),
        (dict(threads=0), "sizes and threads: expected positive numbers"),
    ],
    ids=str,
)
def test_wrong_arguments(wrong, words):
    with pytest.raises(ValueError, match=words):
        plans(**wrong)


# ---- the command ----

LAYER = ("--plan", "gru", "--hidden", "300", "--batch", "30", "--device", "cpu")
HOW = re.compile(r"^(forward|backward): (one thread|by units|by batch)\b", re.MULTILINE)


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the command in this process on two threads: what it prints, or the last line of its error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fastrnn", *LAYER, *arguments])
        main()
        return capsys.readouterr().out

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield run
    torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_command(command, dtype):
    """Prints what the binding gives."""
    out = command("--dtype", dtype)
    assert f"gru, T = 100, B = 30, I = 300, H = 300, {dtype}, 1 direction(s) on 2 thread(s)" in out
    for name, plan in make_cpu_plans("gru", 100, 30, 300, 300, dtype, threads=2).items():
        assert f"{name}: {describe_cpu(plan)}" in out


def test_text_of_plans():
    text = describe_cpu(plans(D=2)["forward"])
    assert text.startswith("by batch, 4 threads, 4 batch groups each, both directions at once: ")
    text = describe_cpu(plans(T=1, B=1)["forward"])
    assert text.startswith("one thread: it is too little work") and "where they stand" in text


@pytest.mark.parametrize("name", TORCH_DTYPES)
def test_names_of_dtypes(command, name):
    assert command("--dtype", name) == command("--dtype", TORCH_DTYPES[name])
    assert hasattr(torch, name)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--dtype", "tf32"), "--dtype tf32: a CPU does not compute in it"),
        (("--dtype", "int8"), "--dtype: invalid choice"),
        (("--sms", "132"), "--sms and --capability: these are a GPU's"),
        (("--input", "0"), "--input: 0: expected a positive number"),
        (("--device", "tpu"), "--device: invalid choice"),
    ],
)
def test_command_names_what_is_wrong(command, capsys, arguments, words):
    with pytest.raises(SystemExit, match="2"):
        command(*arguments)
    assert words in capsys.readouterr().err


# ---- FASTRNN_CPU_PLAN, which a process reads once ----


@pytest.mark.parametrize("forced", ["units", "batch"])
def test_environment_forces_a_plan(forced):
    done = run_python("-m", "fastrnn", *LAYER, env=dict(OMP_NUM_THREADS="2", FASTRNN_CPU_PLAN=forced))
    assert done.returncode == 0, done.stderr
    assert HOW.findall(done.stdout) == [("forward", f"by {forced}"), ("backward", f"by {forced}")]
    assert done.stdout.count("FASTRNN_CPU_PLAN forces it") == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("-m", "fastrnn", *LAYER),
        ("-c", "import torch, fastrnn; fastrnn.GRU(3, 3)(torch.zeros(2, 1, 3))"),
    ],
    ids=["command", "layer"],
)
def test_wrong_environment(arguments):
    done = run_python(*arguments, env=dict(FASTRNN_CPU_PLAN="fast"))
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.endswith("rror: FASTRNN_CPU_PLAN: expected units or batch, got 'fast'")


BITS = """
import hashlib, torch, fastrnn
torch.set_num_threads(2)
torch.manual_seed(0)
digest = hashlib.md5()
for layer, B, packed in [
    (fastrnn.LSTM(40, 96), 1, False),
    (fastrnn.LSTM(40, 96, bidirectional=True, batch_first=True), 11, False),
    (fastrnn.LSTM(40, 96, proj_size=24), 40, False),
    (fastrnn.GRU(40, 200), 24, False),
    (fastrnn.RNN(40, 200), 24, True),
]:
    x = torch.randn(B, 30, 40) if layer.batch_first else torch.randn(30, B, 40)
    if packed:
        x = torch.nn.utils.rnn.pack_padded_sequence(x, [30 - b for b in range(B)])
    y = layer(x)[0]
    y = y.data if packed else y
    y.square().sum().backward()
    for tensor in (y.detach(), *(p.grad for p in layer.parameters())):
        digest.update(tensor.contiguous().numpy().tobytes())
print(digest.hexdigest())
"""


def test_every_plan_gives_the_same_bits():
    """Forced also where it is not chosen: fewer sequences than threads, a packed batch, a projection."""
    runs = [run_python("-c", BITS, env=dict(FASTRNN_CPU_PLAN=forced)) for forced in ("", "units", "batch")]
    assert all(run.returncode == 0 for run in runs), [run.stderr for run in runs]
    assert len({run.stdout for run in runs}) == 1
