"""FlopCounterMode counts for fastrnn what it counts for torch.nn on the CPU: the matrix products."""

import random

import pytest
import torch
from cases import EVERY_CELL, FORMS, Case, cover_pairs, run_python
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.flop_counter import FlopCounterMode

import fastrnn

each_cell = pytest.mark.parametrize("cell", EVERY_CELL)


def count(case, step, library, wanted, used):
    """FLOP of the forward and of the backward.

    wanted: which of x, hx and the weights require a gradient; used: which results have one.
    """
    module, call, x, hx = (case.prepare_step if step else case.prepare)(library)
    leaves = [x, *(hx or ()), *module.parameters()]
    for leaf, wants in zip(leaves, wanted, strict=False):
        leaf.requires_grad_(wants)
    with FlopCounterMode(display=False) as counter:
        values = call(x, hx)[step:]  # a cell's h' comes twice
        forward = counter.get_total_flops()
        values = [v for v, use in zip(values, used, strict=False) if use and v.requires_grad]
        if values:
            torch.autograd.backward(values, [torch.ones_like(v) for v in values])
    return forward, counter.get_total_flops() - forward


# float64, because torch.nn's LSTM in float32 is one operation of oneDNN, which is counted as nothing.
ROWS = cover_pairs(
    form=(*FORMS, "step"),
    T=(1, 2, 5),
    L=(1, 3),
    bidirectional=(False, True),
    bias=(False, True),
    hx=(False, True),
    P=(0, 3),
    share=(0.1, 0.3, 0.6, 1.0),
)


@each_cell
@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(map(str, row.values())))
def test_counts_are_those_of_torch(cell, row):
    row = dict(row)
    step, share = row["form"] == "step", row.pop("share")
    if step:
        row |= {"form": "padded", "T": 1, "L": 1, "bidirectional": False}
    if step or cell != "lstm":
        row["P"] = 0
    case = Case(cell, H=6, dtype=torch.float64, **row)
    draw = random.Random(str(case))
    for _ in range(6):
        wanted = [draw.random() < share for _ in range(40)]
        used = [draw.random() < 0.6 for _ in range(3)]
        expected = count(case, step, torch.nn, wanted, used)
        assert count(case, step, fastrnn, wanted, used) == expected, (wanted, used)


@pytest.mark.parametrize("used", [[1, 0, 0], [0, 1, 0], [0, 0, 1]], ids=["output", "h_n", "c_n"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("T", [1, 4])
@pytest.mark.parametrize("name", ["weight_hr_l0", "weight_ih_l0", "c_0"])
def test_one_wanted_one_used(name, T, form, used):
    """The h' of the last step may be unused, and what the first step projects may need no gradient."""
    case = Case(T=T, P=5, H=6, form=form, bidirectional=True, dtype=torch.float64)
    names = ["x", "h_0", "c_0", *dict(case.build(torch.nn).named_parameters())]
    wanted = [n == name for n in names]
    assert count(case, False, fastrnn, wanted, used) == count(case, False, torch.nn, wanted, used)


@each_cell
def test_without_onednn(cell):
    case = Case(cell, L=2)
    with torch.backends.mkldnn.flags(enabled=False):
        expected = count(case, False, torch.nn, [True] * 20, [True] * 3)
    assert count(case, False, fastrnn, [True] * 20, [True] * 3) == expected


@each_cell
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("step", [False, True], ids=["layer", "cell"])
def test_without_autograd(cell, step, mode):
    def count_forward(library):
        case = Case(cell, T=1 if step else 5, L=1 if step else 2, dtype=torch.float64)
        _, call, x, hx = (case.prepare_step if step else case.prepare)(library)
        with FlopCounterMode(display=False) as counter, mode():
            call(x.detach(), [h.detach() for h in hx])
        return counter.get_total_flops()

    assert count_forward(fastrnn) == count_forward(torch.nn) > 0


def test_a_forward_that_is_run_again_is_counted_again():
    counts = []
    for checkpoint_gates in (False, True):
        layer = fastrnn.GRU(4, 6)
        layer.checkpoint_gates = checkpoint_gates
        with FlopCounterMode(display=False) as counter:
            y = layer(torch.ones(5, 3, 4))[0].sum()
            forward = counter.get_total_flops()
            y.backward()
        counts.append(counter.get_total_flops())
    assert counts[1] == counts[0] + forward


@pytest.mark.parametrize("fake_sizes", [False, True])
def test_fake_packed_sequences(fake_sizes):
    """Fake lengths have no numbers: they count as equal."""
    packed = pack_sequence([torch.ones(5, 4), torch.ones(5, 4)])

    def run(data, sizes):
        layer = fastrnn.LSTM(4, 6, bidirectional=True, proj_size=3)
        hx = torch.zeros(2, 2, 3), torch.zeros(2, 2, 6)
        with FlopCounterMode(display=False) as counter:
            layer(PackedSequence(data, sizes), hx)[1][1].sum().backward()
        return counter.get_total_flops()

    expected = run(*packed[:2])
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        sizes = mode.from_tensor(packed.batch_sizes) if fake_sizes else packed.batch_sizes
        assert run(mode.from_tensor(packed.data), sizes) == expected


@pytest.mark.quick(0)
@pytest.mark.parametrize("first", ["fastrnn", "torch.utils.flop_counter"])
def test_order_of_imports(first):
    """The formulas are there whichever comes first, and fastrnn does not import the counter itself."""
    code = f"""
import {first}, sys
assert ("torch.utils.flop_counter" in sys.modules) == ({first!r} != "fastrnn")
import fastrnn, torch
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    fastrnn.GRU(2, 3)(torch.ones(1, 1, 2))
assert counter.get_total_flops() == 2 * 9 * (2 + 3)
"""
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
