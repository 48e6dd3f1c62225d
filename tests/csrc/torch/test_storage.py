"""Where pointers are taken of tensors: marks that fallbacks of torch pass over, and memory that is gone."""

import pytest
import torch
from cases import EVERY_CELL, Case, give, run_python, take
from tolerance import assert_same_bits
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn

pytestmark = pytest.mark.usefixtures("device")

KINDS = pytest.mark.parametrize("step", [False, True], ids=["layer", "cell"])
CELLS = pytest.mark.parametrize("cell", EVERY_CELL)


def prepare(case, step, library=fastrnn):
    return case.prepare_step(library) if step else case.prepare(library)


def conjugated_imaginary(t):
    """-t, as the imaginary part of a conjugated number: torch marks it as negative."""
    return torch.complex(t, t).conj().imag


MARKS = {
    "negative": torch._neg_view,
    "conjugate": conjugated_imaginary,
    "zero": lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype, device=t.device),
}


@pytest.mark.parametrize("mark", MARKS)
@KINDS
@CELLS
def test_marked_gradients(cell, step, mark):
    """A gradient that is only marked as negative, conjugated or zero counts as what it stands for."""
    module, call, x, hx = prepare(Case(cell), step)
    leaves = [x, *hx, *module.parameters()]
    values = call(x, hx)
    grads = [MARKS[mark](torch.ones_like(v)) for v in values]
    plain = [torch.zeros_like(v) if mark == "zero" else -torch.ones_like(v) for v in values]
    got = torch.autograd.grad(values, leaves, grads, retain_graph=True)
    want = torch.autograd.grad(values, leaves, plain)
    names = [str(i) for i in range(len(leaves))]
    assert_same_bits(dict(zip(names, got, strict=True)), dict(zip(names, want, strict=True)), mark)


@pytest.mark.parametrize("which", ["x", "hx", "weights"])
@KINDS
@CELLS
def test_marked_arguments(cell, step, which):
    case = Case(cell, T=3)
    module, call, x, hx = prepare(case, step)
    twin, twin_call, *_ = prepare(case, step)
    with torch.no_grad():
        want_x = -x if which == "x" else x
        want_hx = [-h for h in hx] if which == "hx" else hx
        for p in twin.parameters() if which == "weights" else ():
            p.neg_()
        want = twin_call(want_x, want_hx)
        got_x = torch._neg_view(x) if which == "x" else x
        got_hx = [torch._neg_view(h) for h in hx] if which == "hx" else hx
        if which == "weights":
            marked = {name: torch._neg_view(p) for name, p in module.named_parameters()}
            result = torch.func.functional_call(module, marked, (got_x, give(got_hx)))
            got = [result[0], *take(result[1])] if not step else [take(result)[0], *take(result)]
        else:
            got = call(got_x, got_hx)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("size", [0, 16])
@pytest.mark.parametrize("name", ["x", "h_0", "weight_ih", "weight_hh"])
@KINDS
@CELLS
def test_storage_given_back(cell, step, name, size):
    """As offloading does between forward and backward. torch's own operators raise RuntimeError, too."""
    module, call, x, hx = prepare(Case(cell), step)
    values = call(x, hx)
    tensors = {"x": x, "h_0": hx[0], **{n.removesuffix("_l0"): p for n, p in module.named_parameters()}}
    tensors[name].untyped_storage().resize_(size)
    with pytest.raises(
        RuntimeError, match=r"(input|h_0|W_ih|W_hh): expected a storage of at least \d+ bytes"
    ):
        torch.autograd.backward(values, [torch.ones_like(v) for v in values])
    with pytest.raises(RuntimeError, match="storage"):
        call(x, hx)


def test_storage_of_batch_sizes():
    case = Case("gru", form="packed")
    layer = case.build(fastrnn)
    packed = case.pack(case.inputs(fastrnn)[0])
    packed.batch_sizes.untyped_storage().resize_(8)
    with pytest.raises(RuntimeError, match="batch_sizes: expected a storage"):
        layer(packed)


@pytest.mark.quick(0)
@pytest.mark.parametrize("training", [False, True])
def test_out_of_memory_reads_as_torch_says_it(training):
    """What looks for a batch size that fits (Accelerate, Lightning) searches messages for torch's text."""
    script = f"""
import resource, torch, fastrnn
layer = fastrnn.GRU(8, 256)
x = torch.zeros(1, 120000, 8)
layer(x[:, :8])
with torch.set_grad_enabled({training}):
    y = layer(x)[0] if {training} else None
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (60 << 20),) * 2)
    y.sum().backward() if {training} else layer(x)
"""
    result = run_python("-c", script)
    assert "RuntimeError" in result.stderr and "can't allocate memory" in result.stderr, result.stderr[-500:]


@pytest.mark.parametrize("size", [0, 8])
@CELLS
def test_storage_of_states_that_are_put_in_order(cell, size):
    """torch's index_select reads what is not there."""
    case = Case(cell)
    layer, _, x, hx = case.prepare(fastrnn)
    for which in range(len(hx)):
        states = [h.detach().clone() for h in hx]
        states[which].untyped_storage().resize_(size)
        name = f"{'hc'[which]}_0: expected a storage"
        with pytest.raises(RuntimeError, match=name):
            layer(x, give(states), lengths=[2, 5, 1])
        with pytest.raises(RuntimeError, match=name):
            layer(pack_padded_sequence(x, [2, 5, 1], enforce_sorted=False), give(states))


def test_storage_of_c_0_and_all_states():
    """c of every step is computed by torch's operations, whose backward would read c_0."""
    layer, _, x, hx = Case("lstm").prepare(fastrnn)
    c_0 = hx[1].detach().clone().requires_grad_()
    output, _, (h, c) = layer(x, (hx[0], c_0), return_all_states=True)
    c_0.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="c_0: expected a storage"):
        (output.sum() + c.sum()).backward()
