"""lengths=, return_all_states=: results of packed sequences, of the reference."""

from itertools import product

import pytest
import torch
from cases import EVERY_CELL, Case, cotangents, device_of, give, random, take
from tolerance import assert_close, assert_same_bits
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fastrnn
from fastrnn import functional
from fastrnn.reference import CELLS

pytestmark = pytest.mark.usefixtures("device")

DOUBLE = torch.float64
each_cell = pytest.mark.parametrize("cell", EVERY_CELL)
LENGTHS = [3, 0, 6, 1, 6, 0, 2]  # unsorted, some equal, some zero, one of all steps
SIZES = dict(T=6, B=len(LENGTHS), I=5, H=17)


def various(cell):
    base = Case(cell, **SIZES, dtype=DOUBLE)
    for form, hx in product(("padded", "batch_first"), (True, False)):
        yield base.but(form=form, hx=hx)
        yield base.but(form=form, hx=hx, L=3, bidirectional=True)
    yield base.but(bias=False, bidirectional=True)
    if CELLS[cell].projection:
        yield base.but(P=7, L=2, bidirectional=True)
        yield base.but(P=7, bias=False)


VARIOUS = [case for cell in EVERY_CELL for case in various(cell)]
each_case = pytest.mark.parametrize("case", VARIOUS, ids=str)


def solve(case, call, library=fastrnn):
    """Values and gradients of `call(layer, x, hx)`, which returns a list of tensors."""
    layer = case.build(library)
    x, hx = case.inputs(library)
    values = call(layer, x, hx and give(hx))
    torch.autograd.backward(values, cotangents(values))
    leaves = {"dx": x, **dict(zip(("dh_0", "dc_0"), hx or (), strict=False))}
    leaves |= {f"d{name}": p for name, p in layer.named_parameters()}
    gradients = {name: t.grad for name, t in leaves.items()}
    return {f"value {k}": v.detach() for k, v in enumerate(values)} | gradients


def one_by_one(case, lengths, every=False):
    """Each sequence on its own, cut to its length, through the reference."""

    def call(layer, x, hx):
        x = x.transpose(0, 1) if case.form == "batch_first" else x
        hx = hx if hx is None else take(hx)
        judge = case.but(form="padded").judge([p for _, p in layer.named_parameters()])
        outputs, states = [], []
        width = (case.P or case.H) * (1 + case.bidirectional)
        for b, n in enumerate(lengths):
            first = hx and [s[:, b : b + 1] for s in hx]
            if n == 0:
                y = x.new_zeros(0, 1, width)
                D = 1 + case.bidirectional
                last = first or [x.new_zeros(case.L * D, 1, size) for size in case.state_sizes]
            else:
                y, *last = judge(x[:n, b : b + 1], first)
            outputs.append(torch.cat([y, y.new_zeros(case.T - n, 1, width)]))
            states.append(last)
        output = torch.cat(outputs, 1)
        output = output.transpose(0, 1) if case.form == "batch_first" else output
        return [output, *(torch.cat(s, 1) for s in zip(*states, strict=True))]

    return call


def with_lengths(lengths):
    def call(layer, x, hx):
        y, states = layer(x, hx, lengths=lengths)
        return [y, *take(states)]

    return call


def packed(case, lengths):
    def call(layer, x, hx):
        bf = case.form == "batch_first"
        p = pack_padded_sequence(x, lengths, batch_first=bf, enforce_sorted=False)
        y, states = layer(p, hx)
        return [pad_packed_sequence(y, batch_first=bf, total_length=case.T)[0], *take(states)]

    return call


@each_cell
def test_batch_sizes_that_end_in_zeros(cell):
    """Steps that no sequence has, as torch.nn takes them."""
    case = Case(cell, bidirectional=True, dtype=torch.float64)

    def solve(library):
        layer = case.build(library)
        data = random(6, case.I, seed=3, dtype=case.dtype).to(device_of(library)).requires_grad_()
        _, hx = case.inputs(library)
        y, state = layer(PackedSequence(data, torch.tensor([3, 2, 1, 0, 0])), give(hx))
        values = [y.data, *take(state)]
        leaves = [data, *hx, *layer.parameters()]
        gradients = torch.autograd.grad(values, leaves, cotangents(values))
        return {str(i): t for i, t in enumerate((*values, *gradients))}

    assert_close(solve(fastrnn), solve(torch.nn), case)


# ---- lengths ----


@each_case
def test_lengths_are_sequences_on_their_own(case):
    """Values and gradients of every sequence cut to its length, by the reference; zeros elsewhere."""
    got = solve(case, with_lengths(torch.tensor(LENGTHS)))
    want = solve(case, one_by_one(case, LENGTHS), torch.nn)
    assert_close(got, want, case)
    y = got["value 0"] if case.form == "padded" else got["value 0"].transpose(0, 1)
    dx = got["dx"] if case.form == "padded" else got["dx"].transpose(0, 1)
    for b, n in enumerate(LENGTHS):
        assert not y[n:, b].any() and not dx[n:, b].any()


@each_case
def test_lengths_are_packed_sequences(case):
    """The same bits, also of the masks of dropout."""
    lengths = torch.tensor([n or 4 for n in LENGTHS])
    case = case.but(dropout=0.5 if case.L > 1 else 0.0)

    got = solve(case, lambda *args: (torch.manual_seed(3), with_lengths(lengths)(*args))[1])
    want = solve(case, lambda *args: (torch.manual_seed(3), packed(case, lengths)(*args))[1])
    assert_same_bits(got, want, str(case))


@each_cell
def test_lengths_may_be_given_in_any_way(cell):
    case = Case(cell, **SIZES)
    want = solve(case, with_lengths(torch.tensor(LENGTHS)))
    ways = [LENGTHS, tuple(LENGTHS), torch.tensor(LENGTHS, dtype=torch.int32)]
    ways += [torch.tensor(LENGTHS, dtype=torch.uint8), torch.tensor(LENGTHS, device=device_of(fastrnn))]
    for lengths in ways:
        assert_same_bits(solve(case, with_lengths(lengths)), want, repr(lengths))


@each_cell
def test_full_lengths_change_nothing(cell):
    case = Case(cell, **SIZES, L=2, bidirectional=True)
    plain = solve(case, lambda layer, x, hx: [(r := layer(x, hx))[0], *take(r[1])])
    got = solve(case, with_lengths([case.T] * case.B))
    values = {name: v for name, v in plain.items() if name.startswith("value")}
    assert_same_bits({name: got[name] for name in values}, values, "full lengths")


@pytest.mark.parametrize("hx", [True, False], ids=["hx", "nohx"])
@pytest.mark.parametrize("form", ["padded", "batch_first"])
@each_cell
def test_all_lengths_zero(cell, form, hx):
    """No step at all: zeros, the initial states, and gradients of zero for every weight (as DDP needs)."""
    case = Case(cell, **SIZES, form=form, hx=hx, L=2, bidirectional=True, dtype=DOUBLE)
    layer, (x, states) = case.build(fastrnn), case.inputs(fastrnn)
    for lengths in ([0] * case.B, torch.zeros(case.B, dtype=torch.int64)):
        layer.zero_grad()
        y, last = layer(x, states and give(states), lengths=lengths)
        assert not y.any() and y.shape == (*x.shape[:2], 2 * case.H)
        for k, s in enumerate(take(last)):
            assert torch.equal(s, states[k]) if hx else not s.any()
        (y.sum() + sum(s.sum() for s in take(last))).backward()
        assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())


@each_cell
def test_lengths_of_an_empty_batch(cell):
    layer = Case(cell, I=5).build(fastrnn)
    y, last = layer(torch.zeros(4, 0, 5, device=device_of(fastrnn)), lengths=[])
    assert y.shape == (4, 0, 16) and all(s.shape == (1, 0, 16) for s in take(last))


@each_cell
def test_what_is_past_a_length_is_not_read(cell):
    case = Case(cell, **SIZES, bidirectional=True)
    layer, (x, hx) = case.build(fastrnn), case.inputs(fastrnn)
    spoilt = x.detach().clone()
    for b, n in enumerate(LENGTHS):
        spoilt[n:, b] = float("nan")
    want, got = (layer(t, give(hx), lengths=LENGTHS) for t in (x, spoilt))
    for a, b in zip([got[0], *take(got[1])], [want[0], *take(want[1])], strict=True):
        assert torch.equal(a, b)


@each_cell
def test_lengths_second_derivative(cell):
    case = Case(cell, T=3, B=3, I=2, H=3, L=2, bidirectional=True, dtype=DOUBLE)
    layer, (x, hx) = case.build(fastrnn), case.inputs(fastrnn)

    def call(x, *hx):
        y, last = layer(x, give(hx), lengths=[2, 0, 3])
        return (y, *take(last))

    if cell != "rnn_relu":  # whose second derivative jumps
        assert torch.autograd.gradgradcheck(call, (x, *hx))
    assert torch.autograd.gradcheck(call, (x, *hx))


@each_cell
def test_lengths_under_autocast(cell):
    case = Case(cell, **SIZES, bidirectional=True)
    layer, (x, hx) = case.build(fastrnn), case.inputs(fastrnn)
    with torch.autocast(device_of(fastrnn), torch.bfloat16):
        got = layer(x, give(hx), lengths=LENGTHS, return_all_states=True)
    want = layer(x, give(hx), lengths=LENGTHS, return_all_states=True)
    for a, b in zip(*([r[0], *take(r[1]), *take(r[2])] for r in (got, want)), strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a.float(), b, rtol=0, atol=8 * 2**-7)


BAD_LENGTHS = {
    "too few": ([1, 2], RuntimeError, r"lengths: expected size \[7\], .* got \[2\]"),
    "a matrix": (torch.ones(7, 1, dtype=torch.int64), RuntimeError, r"lengths: expected size \[7\]"),
    "a number": (3, RuntimeError, r"lengths: expected size \[7\], .* got \[\]"),
    "negative": ([3, -1, 6, 1, 6, 0, 2], RuntimeError, "lengths: expected from 0 to 6.* got -1 to 6"),
    "too long": ([3, 7, 6, 1, 6, 0, 2], RuntimeError, "lengths: expected from 0 to 6.* got 0 to 7"),
    "float": (torch.ones(7), TypeError, "lengths: expected integers, got torch.float32"),
    "bool": (torch.ones(7, dtype=torch.bool), TypeError, "lengths: expected integers, got torch.bool"),
    "text": ("seven", TypeError, "lengths: expected a Tensor or a list of integers"),
}


@pytest.mark.parametrize("bad", BAD_LENGTHS)
@each_cell
def test_bad_lengths(cell, bad):
    case = Case(cell, **SIZES)
    layer, (x, _) = case.build(fastrnn), case.inputs(fastrnn)
    lengths, error, message = BAD_LENGTHS[bad]
    with pytest.raises(error, match=message):
        layer(x, lengths=lengths)


@pytest.mark.parametrize(
    "options", [dict(lengths=LENGTHS), dict(return_all_states=True)], ids=lambda o: [*o][0]
)
@each_cell
def test_bad_inputs(cell, options):
    """What is wrong besides is found, with the exceptions of a call without these options."""
    case = Case(cell, **SIZES, L=2)
    layer, (x, hx) = case.build(fastrnn), case.inputs(fastrnn)
    x, hx = x.detach(), [h.detach() for h in hx]
    bad = [
        ((x[0, 0],), ValueError, "Expected input to be 2D or 3D"),
        ((None,), TypeError, "input: expected Tensor"),
        ((x[..., :3],), RuntimeError, "must be equal to input_size"),
        ((x.double(),), ValueError, "does not match weight dtype"),
        ((x, "zeros"), TypeError, "hx: expected"),
    ]
    size = r"Expected hidden(\[0\])? size \(2, 7, 17\)"
    for index in [
        (slice(1),),
        (slice(None), slice(3)),
        (slice(None), slice(None), slice(5)),
        (slice(None), 0),
        (None,),
    ]:
        bad.append(((x, give([h[index] for h in hx])), RuntimeError, size))
    bad.append(((x, give([torch.cat([h, h]) for h in hx])), RuntimeError, size))
    bad.append(((x, give([torch.cat([h, h], 1) for h in hx])), RuntimeError, size))
    bad.append(((x, give([h.double() for h in hx])), RuntimeError, "h_0: expected dtype"))
    for args, error, message in bad:
        with pytest.raises(error, match=message):
            layer(*args, **options)
    function = getattr(functional, {"lstm": "lstm", "gru": "gru"}.get(cell, "rnn"))
    weights = list(layer.parameters())
    for kwargs, error, message in [
        (dict(num_layers=3), RuntimeError, "weights: expected"),
        (dict(num_layers=0), ValueError, "num_layers: expected"),
        (dict(num_layers=2, dropout=2.0, training=True), ValueError, "dropout"),
    ]:
        with pytest.raises(error, match=message):
            function(x, None, weights, **kwargs, **options)


@each_cell
def test_lengths_only_with_padded_input(cell):
    case = Case(cell, **SIZES)
    layer, (x, _) = case.build(fastrnn), case.inputs(fastrnn)
    with pytest.raises(RuntimeError, match="lengths: expected a padded input.*got a PackedSequence"):
        layer(pack_padded_sequence(x, [6] * 7), lengths=LENGTHS)
    with pytest.raises(RuntimeError, match="lengths: expected a padded input.*got 2 dimensions"):
        layer(x[:, 0], lengths=[6])


# ---- the states of every step ----


def states_step_by_step(case, layer, x, hx):
    """h and c of every step, by the cell's equations in float64: [h [L*D, T, B, P], c] for time-major x."""
    D = 1 + case.bidirectional
    weights = [p for _, p in layer.named_parameters()]
    each = len(weights) // (case.L * D)
    B = x.shape[1]
    hx = hx or [x.new_zeros(case.L * D, B, size) for size in case.state_sizes]
    every = []
    for k in range(case.L * D):
        if k % D == 0 and k:
            x = torch.cat([states[0] for states in every[-D:]], -1)
        w = weights[k * each : (k + 1) * each]
        if not case.bias:
            w[2:2] = [None, None]
        state, steps = tuple(s[k] for s in hx), {}
        for t in sorted(range(len(x)), reverse=k % D == 1):
            state = steps[t] = case.row.step(x[t], state, *w)
        every.append([torch.stack([steps[t][i] for t in range(len(x))]) for i in range(len(state))])
    return [torch.stack(s) for s in zip(*every, strict=True)]


def all_states(layer, x, hx, **options):
    y, last, every = layer(x, hx, return_all_states=True, **options)
    return [y, *take(last), *take(every)]


@each_case
def test_all_states(case):
    """Values and all gradients, also those that come through c of every step."""
    n = case.row.states

    def by_equations(layer, x, hx):
        bf = case.form == "batch_first"
        x = x.transpose(0, 1) if bf else x
        hx = hx if hx is None else take(hx)
        every = states_step_by_step(case, layer, x, hx)
        D = 1 + case.bidirectional
        y = torch.cat(list(every[0][-D:]), -1)
        last = [torch.stack([s[k, 0 if k % D else -1] for k in range(case.L * D)]) for s in every]
        every = [s.transpose(1, 2) if bf else s for s in every]
        return [y.transpose(0, 1) if bf else y, *last, *every]

    got = solve(case, all_states)
    assert_close(got, solve(case, by_equations, torch.nn), case)
    D = 1 + case.bidirectional
    sizes = (case.B, case.T) if case.form == "batch_first" else (case.T, case.B)
    for k, size in enumerate(case.state_sizes):
        assert got[f"value {1 + n + k}"].shape == (case.L * D, *sizes, size)


@each_case
def test_all_states_leave_the_others_alone(case):
    """Output and last states are, to the bit, those without them; dropout draws the same masks."""
    case = case.but(dropout=0.5 if case.L > 1 else 0.0)
    layer, (x, hx) = case.build(fastrnn), case.inputs(fastrnn)
    for lengths in (None, LENGTHS):
        options = {} if lengths is None else dict(lengths=lengths)
        torch.manual_seed(3)
        y, last = layer(x, hx and give(hx), **options)
        torch.manual_seed(3)
        got = all_states(layer, x, hx and give(hx), **options)
        for a, b in zip([y, *take(last)], got, strict=False):
            assert torch.equal(a, b)


@each_case
def test_all_states_with_lengths(case):
    """Those of each sequence on its own, and zeros; the same in a PackedSequence."""
    bf, n = case.form == "batch_first", case.row.states
    layer, (x, hx) = case.build(fastrnn), case.inputs(fastrnn)
    got = all_states(layer, x, hx and give(hx), lengths=LENGTHS)[1 + n :]
    kept = torch.tensor([b for b, length in enumerate(LENGTHS) if length], device=x.device)
    p = pack_padded_sequence(
        x.index_select(0 if bf else 1, kept), [m for m in LENGTHS if m], bf, enforce_sorted=False
    )
    of_packed = layer(p, hx and give([h.index_select(1, kept) for h in hx]), return_all_states=True)
    assert isinstance(of_packed[0], PackedSequence)
    for k, (s, of_rows) in enumerate(zip(got, take_packed(of_packed[2]), strict=True)):
        padded = pad_packed_sequence(of_rows, total_length=case.T)[0].permute(2, 0, 1, 3)
        time_major = s.transpose(1, 2) if bf else s
        assert torch.equal(time_major.index_select(2, kept), padded)
        for b, length in enumerate(LENGTHS):
            assert not time_major[:, length:, b].any()
            if length:
                alone = x[b : b + 1, :length] if bf else x[:length, b : b + 1]
                first = hx and give([h[:, b : b + 1] for h in hx])
                want = all_states(layer, alone, first)[1 + n + k]
                want = want.transpose(1, 2) if bf else want
                torch.testing.assert_close(time_major[:, :length, b : b + 1], want, rtol=1e-12, atol=1e-12)


def take_packed(states):
    return [states] if isinstance(states, PackedSequence) else list(states)


@each_cell
def test_go_on_from_any_step(cell):
    """(h[:, t], c[:, t]) is an hx: what follows is what would have followed."""
    case = Case(cell, **SIZES, L=2, dtype=DOUBLE)
    layer, (x, hx) = case.build(fastrnn), case.inputs(fastrnn)
    y, _, every = layer(x, give(hx), return_all_states=True)
    rest, _ = layer(x[3:], give([s[:, 2] for s in take(every)]))
    torch.testing.assert_close(rest, y[3:], rtol=1e-12, atol=1e-12)


@each_cell
def test_all_states_of_one_sequence(cell):
    case = Case(cell, **(SIZES | dict(B=1)), L=2, bidirectional=True, form="unbatched", dtype=DOUBLE)
    layer, (x, hx) = case.build(fastrnn), case.inputs(fastrnn)
    got = all_states(layer, x, give(hx))
    batched = all_states(layer, x.unsqueeze(1), give([h.unsqueeze(1) for h in hx]))
    for k, (a, b) in enumerate(zip(got, batched, strict=True)):
        assert torch.equal(a, b.squeeze(-2)), k


@pytest.mark.quick(1)
@pytest.mark.parametrize("lengths", [None, [2, 0, 3]], ids=["whole", "lengths"])
@each_cell
def test_all_states_second_derivative(cell, lengths):
    case = Case(cell, T=3, B=3, I=2, H=3, bidirectional=True, dtype=DOUBLE, P=2 if cell == "lstm" else 0)
    layer, (x, hx) = case.build(fastrnn), case.inputs(fastrnn)

    def call(x, *hx):
        return tuple(all_states(layer, x, give(hx), lengths=lengths))

    assert torch.autograd.gradcheck(call, (x, *hx))
    if cell != "rnn_relu":
        assert torch.autograd.gradgradcheck(call, (x, *hx))


def test_all_states_in_bfloat16():
    """c is as near to the kernel's as its rounding."""
    case = Case("lstm", T=20, B=3, I=9, H=33, dtype=torch.bfloat16)
    layer, (x, hx) = case.build(fastrnn), case.inputs(fastrnn)
    _, (_, c_n), (_, c) = layer(x, give(hx), return_all_states=True)
    assert c.dtype == torch.bfloat16
    torch.testing.assert_close(c[:, -1], c_n, rtol=2**-7, atol=2**-8)


# ---- another default device ----


@pytest.mark.parametrize(
    "lengths", [None, LENGTHS, torch.tensor(LENGTHS), [0] * 7], ids=["none", "list", "tensor", "zeros"]
)
@each_cell
def test_another_default_device(cell, lengths):
    """What is made on the way is where the input is, or on the CPU."""
    case = Case(cell, **SIZES, L=2, bidirectional=True)
    layer, (x, _) = case.build(fastrnn), case.inputs(fastrnn)
    want = all_states(layer, x, None, lengths=lengths)
    torch.set_default_device("meta")
    try:
        got = all_states(layer, x, None, lengths=lengths)
        torch.autograd.backward(got, [torch.ones_like(s) for s in got])
    finally:
        torch.set_default_device(None)
    for a, b in zip(got, want, strict=True):
        assert a.device == x.device and torch.equal(a, b)
    assert x.grad.isfinite().all()
