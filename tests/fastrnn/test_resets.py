"""resets=: sequences that begin anew, of the reference and of a loop over steps."""

import io
import re
import shutil
import warnings
from itertools import product

import pytest
import torch
import torch._dynamo.testing
from cases import EVERY_CELL, FORMS, Case, cotangents, device_of, evaluate, give, take
from tolerance import assert_close, assert_same_bits
from torch.export import Dim
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import fastrnn
import fastrnn.onnx
from fastrnn import functional, reference
from fastrnn.layers import RecurrentLayer
from fastrnn.reference import CELLS

pytestmark = pytest.mark.usefixtures("device")

DOUBLE = torch.float64
each_cell = pytest.mark.parametrize("cell", EVERY_CELL)
SIZES = dict(T=7, B=4, I=5, H=9)


def draw(case, share, seed=5):
    """Resets for a case: in that share of the steps, in the form of its input."""
    shape = {"unbatched": (case.T,), "batch_first": (case.B, case.T)}.get(case.form, (case.T, case.B))
    shape = (int(case.lengths.sum()),) if case.packed else shape
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share).to(device_of(fastrnn))


def solve(case, **options):
    """Values and gradients of fastrnn's layer with these options."""
    layer, _, x, hx = case.prepare(fastrnn)

    def call(x, hx):
        y, states = layer(case.pack(x), hx and give(hx), **options)
        return [y.data if case.packed else y, *take(states)]

    return evaluate(call, x, hx, dict(layer.named_parameters()), case)


def judge(case, resets):
    """The same of the reference."""
    layer, _, x, hx = case.prepare(torch.nn)
    options = dict(bias=case.bias, num_layers=case.L, bidirectional=case.bidirectional, resets=resets.cpu())

    def call(x, hx):
        if not case.packed:
            bf = case.form == "batch_first"
            return list(reference.rnn(x, hx, layer._flat_weights, case.row, batch_first=bf, **options))
        p = case.pack(x)
        if p.sorted_indices is not None and hx is not None:
            hx = [h.index_select(1, p.sorted_indices) for h in hx]
        y, *states = reference.rnn(
            p.data, hx, layer._flat_weights, case.row, batch_sizes=p.batch_sizes, **options
        )
        if p.unsorted_indices is not None:
            states = [s.index_select(1, p.unsorted_indices) for s in states]
        return [y, *states]

    return evaluate(call, x, hx, dict(layer.named_parameters()), case)


def various(cell):
    base = Case(cell, **SIZES, dtype=DOUBLE)
    for form, (L, bidirectional), hx in product(
        FORMS, ((1, False), (2, False), (1, True), (2, True)), (True, False)
    ):
        yield base.but(form=form, L=L, bidirectional=bidirectional, hx=hx)
    yield base.but(bias=False, bidirectional=True, form="unsorted")
    if CELLS[cell].projection:
        yield base.but(P=4, L=2, bidirectional=True, form="batch_first")


@pytest.mark.parametrize("share", [0.02, 0.4, 1.0])
@pytest.mark.parametrize("case", [case for cell in EVERY_CELL for case in various(cell)], ids=str)
def test_are_those_of_the_reference(case, share):
    resets = draw(case, share)
    assert_close(solve(case, resets=resets), judge(case, resets), case)


@each_cell
def test_reference_is_a_loop_of_steps(cell):
    """With where() before each step; what the other tests judge by."""
    case = Case(cell, **SIZES, dtype=DOUBLE)
    layer, _, x, hx = case.prepare(torch.nn)
    resets = draw(case, 0.4).cpu()
    state, outputs = [h[0] for h in hx], []
    for t in range(case.T):
        state = [torch.where(resets[t, :, None], 0.0, s) for s in state]
        state = case.row.step(x[t], tuple(state), *layer.parameters())
        outputs.append(state[0])
    want = [torch.stack(outputs), *(s.unsqueeze(0) for s in state)]
    got = reference.rnn(x, hx, layer._flat_weights, cell, resets=resets)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


@each_cell
def test_reference_in_reverse(cell):
    """The reverse direction is the forward one of the sequence from its end, whose steps the same
    boundaries part: a reset of step t lies before step T - t of that."""
    case = Case(cell, **SIZES, bidirectional=True, dtype=DOUBLE)
    layer, _, x, hx = case.prepare(torch.nn)
    resets, n = draw(case, 0.4).cpu(), case.H
    y, *last = reference.rnn(x, hx, layer._flat_weights, cell, bidirectional=True, resets=resets)
    weights = layer._flat_weights[len(layer._flat_weights) // 2 :]
    turned = torch.cat([resets[:1] & False, resets[1:].flip(0)])
    want, *ends = reference.rnn(x.flip(0), [h[1:] for h in hx], weights, cell, resets=turned)
    torch.testing.assert_close(y[..., n:], want.flip(0), rtol=1e-13, atol=1e-13)
    for a, b in zip(last, ends, strict=True):
        torch.testing.assert_close(a[1:], b, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bidirectional", [False, True])
@each_cell
def test_few_resets_are_an_ordinary_call(cell, bidirectional, form):
    """No reset changes no bit; those of step 0 alone are zeros in hx of the forward direction."""
    case = Case(cell, **SIZES, L=2, bidirectional=bidirectional, form=form)
    none = draw(case, 0.0)
    assert_same_bits(solve(case, resets=none), solve(case), "none")
    at_0 = none.clone()
    if case.packed:
        at_0[: case.B] = draw(case, 0.5)[: case.B]
    else:
        step = (slice(None), 0) if form == "batch_first" else 0
        at_0[step] = True
    assert_close(
        solve(case.but(dtype=DOUBLE), resets=at_0),
        judge(case.but(dtype=DOUBLE), at_0),
        case.but(dtype=DOUBLE),
    )


@each_cell
def test_bits_are_the_same_in_every_run(cell):
    case = Case(cell, T=40, B=5, I=16, H=32, L=2, bidirectional=True)
    resets = draw(case, 0.2)
    assert_same_bits(solve(case, resets=resets), solve(case, resets=resets), str(case))
    layer, (x, hx) = case.build(fastrnn), case.inputs(fastrnn)
    y, state = layer(x, give(hx), resets=resets)
    with torch.no_grad():  # another way to gather rows
        got, last = layer(x, give(hx), resets=resets)
    assert torch.equal(y, got)
    assert all(map(torch.equal, take(state), take(last)))


@each_cell
def test_steps_of_one_call_each(cell):
    """What programs did: a call for each step, its state zeroed where a sequence begins anew."""
    case = Case(cell, **SIZES, L=2, dtype=DOUBLE)
    layer, (x, hx) = case.build(fastrnn), case.inputs(fastrnn)
    resets, state, outputs = draw(case, 0.4), give(hx), []
    for t in range(case.T):
        y, state = layer(x[t : t + 1], state, resets=resets[t : t + 1])
        outputs.append(y)
    want, last = layer(x, give(hx), resets=resets)
    torch.testing.assert_close(torch.cat(outputs), want, rtol=1e-12, atol=1e-12)
    for a, b in zip(take(state), take(last), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


# ---- with lengths ----

LENGTHS = [3, 0, 7, 1]


@pytest.mark.parametrize("hx", [True, False], ids=["hx", "nohx"])
@pytest.mark.parametrize("form", ["padded", "batch_first"])
@pytest.mark.parametrize("bidirectional", [False, True])
@each_cell
def test_with_lengths(cell, bidirectional, form, hx):
    """Each sequence on its own, by the reference; a reset past a length, or of a sequence without a step,
    does nothing."""
    case = Case(cell, **SIZES, L=2, bidirectional=bidirectional, form=form, hx=hx, dtype=DOUBLE)
    for resets in (draw(case, 0.4), draw(case, 1.0)):
        layer, _, x, states = case.prepare(torch.nn)
        bf = form == "batch_first"

        def by_sequence(x, hx, layer=layer, resets=resets, bf=bf):
            x, marks = (x.transpose(0, 1), resets.T) if bf else (x, resets)
            outputs, ends = [], []
            for b, n in enumerate(LENGTHS):
                first = hx and [h[:, b : b + 1] for h in hx]
                y = x.new_zeros(0, 1, case.H * (1 + bidirectional))
                last = first or [x.new_zeros(2 * (1 + bidirectional), 1, case.H)] * case.row.states
                if n:
                    y, *last = reference.rnn(
                        x[:n, b : b + 1],
                        first,
                        layer._flat_weights,
                        cell,
                        num_layers=2,
                        bidirectional=bidirectional,
                        resets=marks[:n, b : b + 1].cpu(),
                    )
                outputs.append(torch.cat([y, y.new_zeros(case.T - n, *y.shape[1:])]))
                ends.append(last)
            y = torch.cat(outputs, 1)
            return [y.transpose(0, 1) if bf else y, *(torch.cat(s, 1) for s in zip(*ends, strict=True))]

        want = evaluate(by_sequence, x, states, dict(layer.named_parameters()), case)
        assert_close(solve(case, lengths=LENGTHS, resets=resets), want, case)


@each_cell
def test_with_lengths_of_zero(cell):
    case = Case(cell, **SIZES)
    zeros = [0] * case.B
    assert_same_bits(solve(case, lengths=zeros, resets=draw(case, 1.0)), solve(case, lengths=zeros), "zeros")


# ---- what does not cross a reset ----


@pytest.mark.parametrize("T", [1, 5])
@pytest.mark.parametrize("later", [False, True])
@each_cell
def test_a_state_that_is_not_a_number_ends_at_a_reset(cell, later, T):
    case = Case(cell, **(SIZES | dict(T=T)), L=2)
    layer, (x, hx) = case.build(fastrnn), case.inputs(fastrnn)
    resets = draw(case, 0.0)
    resets[0, 1] = True
    resets[-1, 2] = resets[-1, 2] | later
    with torch.no_grad():
        for h in hx:
            h[:, 1] = float("nan")
    y, last = layer(x, give(hx), resets=resets)
    values = [y, *take(last)]
    assert all(v.isfinite().all() for v in values)
    gradients = torch.autograd.grad(values, [x, *hx, *layer.parameters()], cotangents(values))
    assert all(g.isfinite().all() for g in gradients)
    for g in gradients[1 : 1 + len(hx)]:
        assert not g[:, 1].any() and g[:, 0].any()


@pytest.mark.parametrize("bidirectional", [False, True])
@each_cell
def test_no_gradient_crosses(cell, bidirectional):
    case = Case(cell, **SIZES, bidirectional=bidirectional)
    layer, (x, hx) = case.build(fastrnn), case.inputs(fastrnn)
    resets = draw(case, 0.0)
    resets[3] = True
    y, last = layer(x, give(hx), resets=resets)
    after, *states = torch.autograd.grad(y[3:].sum(), [x, *hx], retain_graph=True)
    assert not after[:3].any() and after[3:].any()
    assert not any(s[0].any() for s in states)
    before, *states = torch.autograd.grad(y[:3].sum(), [x, *hx], retain_graph=True)
    assert before[:3].any() and not before[3:].any()
    if bidirectional:
        assert not any(s[1].any() for s in states)
        (of_last,) = torch.autograd.grad(sum(s[1].sum() for s in take(last)), x)
        assert of_last[:3].any() and not of_last[3:].any()


@pytest.mark.parametrize("options", [{}, dict(lengths=[2, 0, 3])], ids=["whole", "lengths"])
@each_cell
def test_derivatives(cell, options):
    case = Case(cell, T=3, B=3, I=2, H=3, bidirectional=True, dtype=DOUBLE)
    layer, (x, hx) = case.build(fastrnn), case.inputs(fastrnn)
    resets = torch.tensor([[0, 0, 1], [0, 1, 0], [1, 0, 0]], device=x.device).bool()

    def call(x, *hx):
        y, last = layer(x, give(hx), resets=resets, **options)
        return (y, *take(last))

    assert torch.autograd.gradcheck(call, (x, *hx))
    if cell != "rnn_relu":  # whose second derivative jumps
        assert torch.autograd.gradgradcheck(call, (x, *hx), fast_mode=True)


# ---- other options ----


@pytest.mark.parametrize("form", FORMS)
@each_cell
def test_states_of_every_step(cell, form):
    """They are those that a loop of steps has, and their gradients."""
    case = Case(cell, **SIZES, L=2, form=form, dtype=DOUBLE)
    layer, (x, hx) = case.build(fastrnn), case.inputs(fastrnn)
    if case.packed:
        case = case.but(form="unsorted")
    resets = draw(case, 0.4)
    y, last, every = layer(case.pack(x), give(hx), resets=resets, return_all_states=True)
    want, ends = layer(case.pack(x), give(hx), resets=resets)
    every = [every] if isinstance(every, (torch.Tensor, PackedSequence)) else every
    if case.packed:
        assert torch.equal(y.data, want.data) and isinstance(every[0], PackedSequence)
        alone = layer(x, give(hx), lengths=case.lengths, return_all_states=True, resets=unpack(case, resets))
        for a, b in zip(every, take(alone[2]), strict=True):
            padded, _ = torch.nn.utils.rnn.pad_packed_sequence(a, total_length=case.T)
            torch.testing.assert_close(padded.permute(2, 0, 1, 3), b, rtol=1e-12, atol=1e-12)
        return
    assert torch.equal(y, want) and all(map(torch.equal, take(last), take(ends)))
    time = 1 if form == "batch_first" else 0
    state, of_steps = give(hx), []
    for t in range(case.T):
        _, state = layer(x.narrow(time, t, 1), state, resets=resets.narrow(time, t, 1))
        of_steps.append(take(state))
    wanted = [torch.stack(s, 1) for s in zip(*of_steps, strict=True)]
    wanted = [s.transpose(1, 2) if time else s for s in wanted]
    for a, b in zip(every, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    leaves = [x, *hx, *layer.parameters()]
    got = torch.autograd.grad(every, leaves, cotangents(every))
    for a, b in zip(got, torch.autograd.grad(wanted, leaves, cotangents(wanted)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def unpack(case, resets):
    """Resets of packed rows as those of padded sequences."""
    order = case.pack(torch.zeros(case.T, case.B, 1, device=resets.device))
    packed = PackedSequence(resets.float().unsqueeze(-1), *order[1:])
    return torch.nn.utils.rnn.pad_packed_sequence(packed, total_length=case.T)[0].squeeze(-1).bool()


@each_cell
def test_packed_resets(cell):
    """A PackedSequence of resets, packed as the input is."""
    case = Case(cell, **SIZES, form="unsorted")
    resets = draw(case, 0.3)
    packed = pack_padded_sequence(unpack(case, resets), case.lengths, enforce_sorted=False)
    assert_same_bits(solve(case, resets=packed), solve(case, resets=resets), "packed")


@each_cell
def test_dropout(cell):
    """On the CPU masks are those of a call without resets; segments draw as packed sequences do."""
    case = Case(cell, T=6, B=1, I=5, H=9, L=2, dropout=0.5, hx=False)
    layer, (x, _) = case.build(fastrnn), case.inputs(fastrnn)
    resets = torch.tensor([[0], [0], [1], [0], [0], [1]], device=x.device).bool()
    pieces = [x[2:5, 0], x[0:2, 0], x[5:6, 0]]
    torch.manual_seed(3)
    got, _ = layer(x, resets=resets)
    torch.manual_seed(3)
    if x.device.type == "cpu":
        weights = list(layer.parameters())
        want, *_ = reference.rnn(x, None, weights, cell, num_layers=2, dropout=0.5, resets=resets)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        return
    y, _ = layer(torch.nn.utils.rnn.pack_sequence(pieces))
    y, n = torch.nn.utils.rnn.pad_packed_sequence(y)
    assert torch.equal(got[:, 0], torch.cat([y[:2, 1], y[:3, 0], y[:1, 2]]))


@each_cell
def test_checkpoint_gates(cell):
    case = Case(cell, **SIZES, L=2, bidirectional=True)
    layer, (x, hx) = case.build(fastrnn), case.inputs(fastrnn)
    resets, found = draw(case, 0.3), []
    for layer.checkpoint_gates in (False, True):
        y, last = layer(x, give(hx), resets=resets)
        values = [y, *take(last)]
        gradients = torch.autograd.grad(values, [x, *hx, *layer.parameters()], cotangents(values))
        found.append([*values, *gradients])
    assert all(map(torch.equal, *found))


@each_cell
def test_autocast(cell):
    case = Case(cell, **SIZES, bidirectional=True)
    layer, (x, hx) = case.build(fastrnn), case.inputs(fastrnn)
    resets = draw(case, 0.3)
    for options in ({}, dict(lengths=LENGTHS)):
        with torch.autocast(device_of(fastrnn), torch.bfloat16):
            got = layer(x, give(hx), resets=resets, return_all_states=True, **options)
        want = layer(x, give(hx), resets=resets, return_all_states=True, **options)
        for a, b in zip(*([r[0], *take(r[1]), *take(r[2])] for r in (got, want)), strict=True):
            assert a.dtype == torch.bfloat16
            torch.testing.assert_close(a.float(), b, rtol=0, atol=8 * 2**-7)


@each_cell
def test_an_empty_batch(cell):
    layer = Case(cell, I=5).build(fastrnn)
    device = device_of(fastrnn)
    resets = torch.zeros(4, 0, dtype=torch.bool, device=device)
    y, last = layer(torch.zeros(4, 0, 5, device=device), resets=resets)
    assert y.shape == (4, 0, 16) and all(s.shape == (1, 0, 16) for s in take(last))


@each_cell
def test_functions_and_other_layers(cell):
    """All take resets as the layer of torch.nn's name does."""
    case = Case(cell, **SIZES)
    layer, (x, hx) = case.build(fastrnn), case.inputs(fastrnn)
    resets, info = draw(case, 0.3), CELLS[cell].info
    want = layer(x, give(hx), resets=resets)

    function = getattr(functional, info.layer.lower())
    kwargs = dict(CELLS[cell].kwargs)
    other = type("Other", (RecurrentLayer,), {"cell": cell})(case.I, case.H).to(x.device)
    other.load_state_dict(layer.state_dict())
    layer.check_input = layer.check_input  # a method of its own
    for got in (
        function(x, give(hx), list(layer.parameters()), resets=resets, **kwargs),
        other(x, give(hx), resets=resets),
        layer(x, give(hx), resets=resets),
    ):
        for a, b in zip([got[0], *take(got[1])], [want[0], *take(want[1])], strict=True):
            assert torch.equal(a, b)


# ---- cells ----


@pytest.mark.parametrize("batched", [True, False], ids=["batch", "one"])
@each_cell
def test_cells(cell, batched):
    case = Case(cell, **SIZES)
    module, _, x, hx = case.prepare_step(fastrnn)
    x, hx = x.detach(), [h.detach() for h in hx]
    if not batched:
        x, hx = x[1], [h[1] for h in hx]
    resets = torch.tensor([False, True, False, True], device=x.device)
    resets = resets if batched else resets[1]
    for h in hx:
        h[resets] = float("nan")
    leaves = [t.requires_grad_() for t in (x, *hx)]
    want = take(module(x, give([torch.where(resets.unsqueeze(-1), 0.0, h) for h in hx])))
    info, kwargs = CELLS[cell].info, dict(CELLS[cell].kwargs)
    function = getattr(functional, info.layer.lower() + "_cell")
    for got in (
        module(x, give(hx), resets=resets),
        function(x, give(hx), *module.parameters(), resets=resets, **kwargs),
    ):
        assert all(map(torch.equal, take(got), want))
        for g in torch.autograd.grad([s.sum() for s in take(got)], leaves)[1:]:
            assert not g[resets].any() and g.isfinite().all()
    for a, b in zip(take(module(x, resets=resets)), take(module(x)), strict=True):
        assert torch.equal(a, b)


@each_cell
def test_cells_refuse(cell):
    case = Case(cell, **SIZES)
    module, _, x, hx = case.prepare_step(fastrnn)
    for bad, error, message in [
        (torch.zeros(4, device=x.device), TypeError, "resets: expected a bool Tensor, got torch.float32"),
        ([False] * 4, TypeError, "resets: expected a bool Tensor, got list"),
        (torch.zeros(3).bool(), RuntimeError, r"resets: expected size \[4\], .*, got \[3\]"),
    ]:
        with pytest.raises(error, match=message):
            module(x, give(hx), resets=bad)
    with pytest.raises(RuntimeError, match="hidden"):  # not made the right size by a mask
        module(x, give([h[:1] for h in hx]), resets=torch.ones(4, device=x.device).bool())
    scripted = torch.jit.script(module)
    scripted(x, give(hx))
    with pytest.raises(Exception, match="resets: expected None in TorchScript"):
        scripted(x, give(hx), torch.ones(4, device=x.device).bool())


# ---- errors ----


@pytest.mark.parametrize("T", [1, 7])
@pytest.mark.parametrize("form", FORMS)
@each_cell
def test_bad_resets(cell, form, T):
    case = Case(cell, **(SIZES | dict(T=T)), form=form)
    layer, (x, hx) = case.build(fastrnn), case.inputs(fastrnn)
    right = draw(case, 1.0)
    size = re.escape(str([*right.shape]))
    for bad, error, message in [
        (right.float(), TypeError, r"resets: expected a bool Tensor, got torch.float32: call .bool\(\)"),
        (right.byte(), TypeError, "resets: expected a bool Tensor, got torch.uint8"),
        (right.tolist(), TypeError, "resets: expected a bool Tensor, got list"),
        (right[:-1], RuntimeError, f"resets: expected size {size}, .*got"),
        (right.unsqueeze(-1), RuntimeError, f"resets: expected size {size}, .*got"),
    ]:
        with pytest.raises(error, match=message):
            layer(case.pack(x), give(hx), resets=bad)
    if case.batched and form != "unsorted":  # not made the right size by a mask
        with pytest.raises(RuntimeError, match="Expected hidden"):
            layer(case.pack(x), give([h[:, :1] for h in hx]), resets=right)


@each_cell
def test_other_errors_are_those_without_resets(cell):
    case = Case(cell, **SIZES)
    layer, (x, _) = case.build(fastrnn), case.inputs(fastrnn)
    resets = draw(case, 0.5)
    for args, options, error, message in [
        ((x[0, 0],), {}, ValueError, "Expected input to be 2D or 3D"),
        ((None,), {}, TypeError, "input: expected Tensor"),
        ((x[..., :3],), {}, RuntimeError, "must be equal to input_size"),
        ((x.double(),), {}, ValueError, "does not match weight dtype"),
        ((x, "zeros"), {}, TypeError, "hx: expected"),
        ((x,), dict(lengths=[8] * 4), RuntimeError, "lengths: expected from 0 to 7"),
        ((x[:, 0],), dict(lengths=[7]), RuntimeError, "lengths: expected a padded input"),
        (
            (pack_padded_sequence(x, [7] * 4),),
            dict(lengths=[7] * 4),
            RuntimeError,
            "lengths: expected a padded",
        ),
    ]:
        with pytest.raises(error, match=message):
            layer(*args, resets=resets, **options)


@pytest.fixture
def one_precision(monkeypatch):
    """torch.export wants the same of all of cuDNN."""
    precision = torch.backends.cudnn.conv.fp32_precision
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", precision)


@pytest.mark.parametrize("dynamo", [True, False])
def test_onnx_has_none(one_precision, dynamo):
    pytest.importorskip("onnxscript")

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = fastrnn.GRU(5, 8)

        def forward(self, x, resets):
            return self.rnn(x, resets=resets)[0]

    args = torch.zeros(4, 3, 5), torch.zeros(4, 3).bool()
    with pytest.raises(Exception) as caught:
        table = dict(custom_translation_table=fastrnn.onnx.translation_table()) if dynamo else {}
        torch.onnx.export(Model().eval(), args, io.BytesIO(), dynamo=dynamo, **table)
    text, error = "", caught.value
    while error is not None:
        text, error = text + str(error), error.__cause__
    assert "resets: a layer with them in several steps cannot be exported to ONNX" in text


def test_onnx_of_a_step(one_precision):
    """As a policy takes it: then they are a Where on the states."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")

    class Step(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = fastrnn.LSTM(5, 8)

        def forward(self, x, h, c, resets):
            y, (h, c) = self.rnn(x, (h, c), resets=resets)
            return y, h, c

    model, file = Step().eval(), io.BytesIO()
    resets = torch.tensor([[True, False, True]])
    args = torch.randn(1, 3, 5), torch.randn(1, 3, 8), torch.randn(1, 3, 8), resets
    program = torch.onnx.export(
        model, args, dynamo=True, custom_translation_table=fastrnn.onnx.translation_table()
    )
    program.save(file)
    session = runtime.InferenceSession(file.getvalue())
    for given in (args, (*args[:3], ~resets)):
        names = [i.name for i in session.get_inputs()]
        found = session.run(None, {name: t.numpy() for name, t in zip(names, given, strict=True)})
        for a, b in zip(found, model(*given), strict=True):
            torch.testing.assert_close(torch.from_numpy(a), b.detach(), rtol=1e-5, atol=1e-5)


# ---- torch.func ----


@each_cell
def test_func(cell):
    """vmap over the input, and over the resets of a single step; arguments that grad wraps."""
    case = Case(cell, **SIZES, L=2, bidirectional=True, dtype=DOUBLE)
    layer, (x, hx) = case.build(fastrnn), case.inputs(fastrnn)
    resets = draw(case, 0.3)
    many = torch.stack([x, 2 * x, -x])

    def call(x):
        y, last = layer(x, give(hx), resets=resets)
        return (y, *take(last))

    want = [torch.stack(v) for v in zip(*map(call, many), strict=True)]
    for a, b in zip(torch.vmap(call)(many), want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    masks = torch.stack([resets, ~resets, resets])
    over_masks = torch.vmap(lambda x, r: layer(x, resets=r)[0])
    if x.device.type == "cpu":
        want = torch.stack([layer(x, resets=r)[0] for x, r in zip(many, masks, strict=True)])
        torch.testing.assert_close(over_masks(many, masks), want, rtol=1e-12, atol=1e-12)
    else:
        with pytest.raises(RuntimeError, match="resets: vmap cannot map over them"):
            over_masks(many, masks)
    gradient = torch.func.grad(lambda x, r, n: layer(x, resets=r, lengths=n)[0].sum())
    lengths = torch.tensor(LENGTHS)
    (want,) = torch.autograd.grad(layer(x, resets=resets, lengths=lengths)[0].sum(), x)
    torch.testing.assert_close(gradient(x.detach(), resets, lengths), want, rtol=1e-12, atol=1e-12)
    step = torch.vmap(lambda x, r: layer(x[:1], give(hx), resets=r[:1])[0])(many, masks)
    want = torch.stack([layer(x[:1], give(hx), resets=r[:1])[0] for x, r in zip(many, masks, strict=True)])
    torch.testing.assert_close(step, want, rtol=1e-12, atol=1e-12)


# ---- Stateful ----


@each_cell
def test_stateful_chunks_are_one_long_call(cell):
    case = Case(cell, T=12, B=4, I=5, H=9, L=2, dtype=DOUBLE)
    layer, (x, _) = case.build(fastrnn), case.inputs(fastrnn)
    resets = draw(case, 0.2)
    resets[5] = True  # the first step of a chunk
    want, last = layer(x, resets=resets)
    weights = [x, *layer.parameters()]
    gradients = torch.autograd.grad(want, weights, cotangents([want]))
    for again in (False, True):
        stateful = fastrnn.Stateful(layer)

        def run(x, resets, stateful=stateful):
            return stateful(x, resets=resets)

        chunks = zip(x.split([1, 4, 5, 2]), resets.split([1, 4, 5, 2]), strict=True)
        got = torch.cat([checkpoint(run, *c, use_reentrant=False) if again else run(*c) for c in chunks])
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
        for a, b in zip(take(stateful.state), take(last), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        for a, b in zip(torch.autograd.grad(got, weights, cotangents([got])), gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@each_cell
def test_stateful_cell(cell):
    case = Case(cell, **SIZES, dtype=DOUBLE)
    module = case.prepare_step(fastrnn)[0]
    x, resets = case.inputs(fastrnn)[0], draw(case, 0.3)
    stateful, state = fastrnn.Stateful(module), None
    for t in range(case.T):
        state = module(x[t], state, resets=resets[t])
        assert torch.equal(stateful(x[t], resets=resets[t]), take(state)[0])


# ---- graphs ----


class Model(torch.nn.Module):
    def __init__(self, rnn, names, **options):
        super().__init__()
        self.rnn, self.names, self.options = rnn, names, options

    def forward(self, x, *more):
        y, *states = self.rnn(x.tanh(), **dict(zip(self.names, more, strict=True)), **self.options)
        return y.sin(), *[s for given in states for s in take(given)]


def problem(cell, names, B, T):
    """The arguments of Model for a layer with batch_first, and every way to have them."""
    device = device_of(fastrnn)
    x = torch.randn(B, T, 5, device=device, requires_grad=True)
    given = dict(resets=torch.rand(B, T, device=device) < 0.3)
    given["lengths"] = torch.randint(0, T + 1, (B,))
    given["lengths"][0] = T
    return x, *(given[name] for name in names)


SHAPES = [(3, 6), (4, 8), (6, 3)]
each_names = pytest.mark.parametrize("names", [("resets",), ("resets", "lengths")], ids="+".join)


def compare(model, other, args):
    got, want = [*other(*args)], [*model(*args)]
    leaves = [args[0], *model.parameters()]
    for result in (got, want):
        result += torch.autograd.grad([r.square().sum() for r in result], leaves)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.fixture
def one_graph():
    torch._dynamo.reset()
    with torch._dynamo.config.patch(allow_rnn=True):
        yield
    torch._dynamo.reset()


@pytest.mark.quick(0)
@each_names
@each_cell
def test_compile(one_graph, cell, names):
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    model = Model(Case(cell, I=5, H=8, L=2, bidirectional=True, form="batch_first").build(fastrnn), names)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    first = 0
    for B, T in SHAPES:
        compare(model, compiled, problem(cell, names, B, T))
        first = first or counter.frame_count
    assert counter.frame_count == first


@pytest.mark.thorough
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a compiler")
@each_names
def test_inductor(one_graph, names):
    model = Model(Case("lstm", I=5, H=8, L=2, bidirectional=True, form="batch_first").build(fastrnn), names)
    compare(model, torch.compile(model, fullgraph=True), problem("lstm", names, 3, 5))


@pytest.mark.thorough
def test_compile_of_other_forms(one_graph):
    case = Case("lstm", **SIZES)
    for form in ("padded", "unbatched", "unsorted"):
        layer, _, x, hx = case.but(form=form).prepare(fastrnn)
        resets, packed = draw(case.but(form=form), 0.3), case.but(form=form).pack(x.detach())

        def run(x, resets, *hx, layer=layer):
            y, last = layer(x, hx, resets=resets)
            return [y if isinstance(y, torch.Tensor) else y.data, *last]

        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        for a, b in zip(compiled(packed, resets, *hx), run(packed, resets, *hx), strict=True):
            torch.testing.assert_close(a, b)


def check_export(cell, names, strict, **options):
    layer = Case(cell, I=5, H=8, L=2, bidirectional=True, form="batch_first").build(fastrnn)
    model = Model(layer, names, **options)
    B, T = Dim("B"), Dim("T")
    sizes = {0: B, 1: T}, ({0: B, 1: T}, {0: B})[: len(names)]
    with torch._dynamo.config.patch(allow_rnn=True):
        args = problem(cell, names, 3, 5)
        program = torch.export.export(model.eval(), args, dynamic_shapes=sizes, strict=strict).module()
    for B, T in SHAPES:
        args = problem(cell, names, B, T)
        with torch.no_grad():
            for a, b in zip(program(*args), model(*args), strict=True):
                torch.testing.assert_close(a, b)


@pytest.mark.quick(0)
@pytest.mark.parametrize("strict", [True, False])
@each_names
@each_cell
def test_export(one_precision, cell, names, strict):
    check_export(cell, names, strict)


@pytest.mark.parametrize("strict", [True, False])
@each_names
def test_export_of_segments(one_precision, names, strict):
    """Which resets make on a GPU, and on the CPU for the states of every step."""
    check_export("gru", names, strict, return_all_states=True)


@pytest.mark.quick(0)
@each_names
@each_cell
def test_trace(cell, names):
    model = Model(Case(cell, I=5, H=8, L=2, bidirectional=True, form="batch_first").build(fastrnn), names)
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(model, problem(cell, names, 3, 5))
    for B, T in [*SHAPES, (2, 1)]:
        compare(model, traced, problem(cell, names, B, T))


@each_cell
def test_steps_in_graphs(one_graph, cell):
    """One step of a layer or a cell, compiled and traced."""
    case = Case(cell, **(SIZES | dict(T=1)))
    layer, (x, hx) = case.build(fastrnn), case.inputs(fastrnn)
    resets = draw(case, 0.5)

    class Both(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.cell = layer, case.prepare_step(fastrnn)[0]

        def forward(self, x, resets, *hx):
            y, last = self.layer(x, give(hx), resets=resets)
            return y, *take(last), *take(self.cell(x[0], give([h[0] for h in hx]), resets=resets[0]))

    run, args = Both(), (x, resets, *hx)
    for other in (torch.compile(run, fullgraph=True, backend="aot_eager"), torch.jit.trace(run, args)):
        for given in (args, (x, ~resets, *hx)):
            for a, b in zip(other(*given), run(*given), strict=True):
                torch.testing.assert_close(a, b)
