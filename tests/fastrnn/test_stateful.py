"""Stateful: what calls one after another give is what one call gives, whatever surrounds them."""

import copy
import pickle
import weakref
from collections import OrderedDict, namedtuple
from itertools import product

import pytest
import torch
from cases import EVERY_CELL, Case, device_of, skip_unless_torch_has_autocast_lstm, take
from tolerance import assert_same_bits
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import fastrnn
from fastrnn.reference import CELLS

pytestmark = pytest.mark.usefixtures("device")

DOUBLE = torch.float64
each_cell = pytest.mark.parametrize("cell", EVERY_CELL)


def build(cell, library=fastrnn, step=False, **changes):
    case = Case(cell, **(dict(T=12, B=4, I=5, H=9, dtype=DOUBLE) | changes))
    layer = (case.prepare_step if step else case.prepare)(library)[0]
    return fastrnn.Stateful(layer), layer, case.inputs(library)[0].detach()


@pytest.mark.parametrize("library", [fastrnn, torch.nn], ids=["fastrnn", "torch.nn"])
@each_cell
def test_stateful_streams(cell, library):
    """Chunks of any size give what the whole sequence gives; after reset() it starts again."""
    stateful, layer, x = build(cell, library, L=2)
    want, last = layer(x)
    for _ in range(2):
        got = torch.cat([stateful(chunk) for chunk in x.split([1, 5, 4, 2])])
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
        for a, b in zip(take(stateful.state), take(last), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        stateful.reset()
        assert stateful.state is None


@each_cell
def test_stateful_cell(cell):
    stateful, module, x = build(cell, step=True)
    layer = getattr(fastrnn, CELLS[cell].layer.__name__)(5, 9, dtype=DOUBLE, **CELLS[cell].kwargs)
    layer = layer.to(x.device)
    layer.load_state_dict({f"{name}_l0": p for name, p in module.state_dict().items()})
    got = torch.stack([stateful(row) for row in x])
    torch.testing.assert_close(got, layer(x)[0], rtol=1e-12, atol=1e-12)
    stateful.reset([1])
    assert all(not s[1].any() and s[0].any() for s in take(stateful.state))


@each_cell
def test_stateful_reset_of_rows(cell):
    """Rows that are reset go on as if new; the others as if nothing had been, and keep their gradients."""
    rows = [torch.tensor([False, True, False, True]), [1, 3], torch.tensor([1, 3]), [-3, 3]]
    for reset in rows:
        stateful, layer, x = build(cell, L=2)
        x.requires_grad_()
        stateful(x[:6])
        stateful.reset(reset)
        got = stateful(x[6:])
        on, new = layer(x)[0][6:], layer(x[6:])[0]
        torch.testing.assert_close(got[:, ::2], on[:, ::2], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(got[:, 1::2], new[:, 1::2], rtol=1e-12, atol=1e-12)
        got.sum().backward()
        assert x.grad[:6, ::2].any() and not x.grad[:6, 1::2].any()
    before = stateful.state
    stateful.reset([])
    assert all(map(torch.equal, take(stateful.state), take(before)))
    stateful.reset(2)
    assert all(not s[:, 2].any() and s[:, 1].any() for s in take(stateful.state))
    for wrong in ([4], -5, torch.tensor([1, 4]), torch.tensor([True, False])):  # found out on the CPU
        with pytest.raises(IndexError):
            stateful.reset(wrong)
    assert stateful(x).isfinite().all()  # a GPU still works


@each_cell
def test_stateful_reset_cleans_nan(cell):
    stateful, _, x = build(cell)
    stateful(x.masked_fill(torch.arange(4, device=x.device).view(1, 4, 1) == 2, float("nan")))
    stateful.reset([2])
    assert stateful(x).isfinite().all()


@each_cell
def test_stateful_detach(cell):
    """Truncated back-propagation: the gradients of the last chunk alone, from the state so far."""
    stateful, layer, x = build(cell)
    stateful(x[:6]).sum().backward()
    stateful.detach()
    layer.zero_grad()
    stateful(x[6:]).sum().backward()
    got = {name: p.grad.clone() for name, p in layer.named_parameters()}
    layer.zero_grad()
    with torch.no_grad():
        _, state = layer(x[:6])
    layer(x[6:], state)[0].sum().backward()
    assert_same_bits(got, {name: p.grad for name, p in layer.named_parameters()}, "detach")
    stateful.detach()  # again, and before a first call: nothing to do
    fastrnn.Stateful(layer).detach()


@each_cell
def test_stateful_is_a_module(cell):
    """State dict and parameters are the layer's; copies start fresh; .to() takes the state along."""
    stateful, layer, x = build(cell)
    want = stateful(x)
    assert list(stateful.state_dict()) == [f"layer.{name}" for name in layer.state_dict()]
    for copied in (copy.deepcopy(stateful), pickle.loads(pickle.dumps(stateful))):
        assert copied.state is None
        assert torch.equal(copied(x), want)
    assert all(s.dtype == torch.float32 for s in take(stateful.float().state))
    assert stateful(x.float()).dtype == torch.float32


@each_cell
def test_stateful_takes_options(cell):
    stateful, layer, x = build(cell)
    y, every = stateful(x, lengths=[3, 0, 12, 5], return_all_states=True)
    want = layer(x, lengths=[3, 0, 12, 5], return_all_states=True)
    assert torch.equal(y, want[0]) and all(map(torch.equal, take(every), take(want[2])))
    packed = pack_padded_sequence(x, [12, 5, 5, 1])
    got = stateful(packed)
    assert torch.equal(got.data, layer(packed, want[1])[0].data)


@each_cell
def test_stateful_errors(cell):
    stateful, _, x = build(cell)
    stateful(x)
    with pytest.raises(RuntimeError, match=r"Expected hidden(\[0\])? size \(1, 3, 9\), got \[1, 4, 9\]"):
        stateful(x[:, :3])
    stateful.reset()
    stateful(x[:, 0])
    with pytest.raises(RuntimeError, match="rows: expected None for a state without a batch"):
        stateful.reset([0])


# ---- states of any form ----


class Two(nn.Module):
    """Layers one above the other, with a state of the form that `join` makes of theirs."""

    def __init__(self, join, split, library=fastrnn):
        super().__init__()
        options = dict(dtype=DOUBLE, device=device_of(library))
        self.a, self.b = library.LSTM(5, 9, **options), library.GRU(9, 9, **options)
        self.join, self.split = join, split

    def forward(self, x, state=None):
        of_a, of_b, seen = (None, None, x.new_zeros(x.shape[1]).int()) if state is None else self.split(state)
        y, of_a = self.a(x, of_a)
        y, of_b = self.b(y, of_b)
        return y, self.join(of_a, of_b, seen + len(x))


Pair = namedtuple("Pair", ["of_a", "rest"])
FORMS = {
    "tuple": (lambda a, b, n: (a, (b, n)), lambda s: (s[0], *s[1])),
    "list": (lambda a, b, n: [[*a], None, b, n], lambda s: (tuple(s[0]), *s[2:])),
    "dict": (
        lambda a, b, n: {"a": a, "rest": OrderedDict(b=b, n=n)},
        lambda s: (s["a"], *s["rest"].values()),
    ),
    "namedtuple": (
        lambda a, b, n: Pair(a, {"b": b, "n": n, "no": None}),
        lambda s: (s[0], *list(s[1].values())[:2]),
    ),
}
each_form = pytest.mark.parametrize("form", FORMS)


def build_two(form):
    two = Two(*FORMS[form])
    return fastrnn.Stateful(two), two, torch.randn(12, 4, 5, dtype=DOUBLE, device=device_of(fastrnn))


@each_form
def test_nested_state_streams(form):
    stateful, two, x = build_two(form)
    want, last = two(x)
    got = torch.cat([stateful(chunk) for chunk in x.split([1, 5, 6])])
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert torch.utils._pytree.tree_structure(stateful.state) == torch.utils._pytree.tree_structure(last)
    assert stateful.state is not None and two.split(stateful.state)[2].tolist() == [12] * 4


@each_form
def test_nested_state_changes(form):
    """detach, reset of rows and .to() reach every tensor; integers keep their dtype."""
    stateful, two, x = build_two(form)
    stateful(x)
    before = two.split(stateful.state)
    assert before[0][0].requires_grad and before[1].requires_grad
    stateful.detach()
    stateful.reset([1, 3])
    (h, c), b, n = two.split(stateful.state)
    for got, want in zip((h, c, b), (*before[0], before[1]), strict=True):
        assert not got.requires_grad
        assert not got[:, [1, 3]].any() and torch.equal(got[:, [0, 2]], want[:, [0, 2]])
    assert n.tolist() == [12, 0, 12, 0]
    stateful.float()
    (h, c), b, n = two.split(stateful.state)
    assert (h.dtype, c.dtype, b.dtype, n.dtype) == (*[torch.float32] * 3, torch.int32)
    assert stateful(x.float()).dtype == torch.float32
    stateful.reset()
    assert stateful.state is None


def test_rows_of_a_state_without_a_place_for_them():
    """Of what is neither torch.nn's layer nor cell dimensions 1 to 3 tell where the batch is."""

    class Other(nn.Module):
        def forward(self, x, state):
            return x, self.new

    stateful = fastrnn.Stateful(Other())
    for shape in ((), (2, 3, 4, 5)):
        stateful.layer.new = torch.zeros(shape)
        stateful(torch.zeros(1))
        with pytest.raises(RuntimeError, match="rows: expected None for a state without a batch"):
            stateful.reset([0])
    stateful.layer.new = (torch.ones(3, dtype=torch.bool), torch.ones(3, 2), torch.ones(2, 3, 2))
    stateful(torch.zeros(1))
    stateful.reset(1)
    for s, dim in zip(stateful.state, (0, 0, 1), strict=True):
        assert s.any(tuple(d for d in range(s.dim()) if d != dim)).tolist() == [True, False, True]


def test_a_parameter_as_state():
    """A learned beginning: it gets a gradient, and is no parameter of the module."""
    stateful, layer, x = build("gru")
    first = nn.Parameter(torch.randn(1, 4, 9, dtype=DOUBLE, device=x.device))
    stateful.state = first
    want, _ = layer(x, first)
    assert torch.equal(stateful(x), want) and "state" not in dict(stateful.named_parameters())
    stateful(x).sum().backward()
    assert first.grad.any()


# ---- torch.utils.checkpoint ----


class Net(nn.Module):
    """Two Stateful between other layers."""

    def __init__(self, cell):
        super().__init__()
        row = Case(cell).row
        options = dict(dtype=DOUBLE, device=device_of(fastrnn))
        layer = getattr(fastrnn, row.layer.__name__)(5, 9, **row.kwargs, **options)
        self.first, self.last = nn.Linear(5, 5, **options), nn.Linear(9, 3, **options)
        self.a, self.b = fastrnn.Stateful(layer), fastrnn.Stateful(fastrnn.GRU(9, 9, **options))

    def forward(self, x):
        return self.last(self.b(self.a(self.first(x).tanh())))

    def twice(self, x):
        return torch.cat([self(x[:2]), self(x[2:])])

    def changing(self, x):
        """All that can be done with a state, in the middle of a forward."""
        self.a.reset([2])
        y = self.a(self.first(x))
        before = self.a.state
        self.a.detach()
        y = y + self.a(x)
        self.a.state = before
        return self.last(self.b(y + self.a(x)))


def inside_of(net, call, x, outer, inner):
    """A checkpoint in a checkpoint."""
    once = lambda v: call(net.b, call(net.a, v, inner), inner)  # noqa: E731
    return call(lambda v: net.last(once(net.first(v).tanh())), x, outer)


def run(function, x, reentrant, **options):
    return checkpoint(function, x, use_reentrant=reentrant, **options)


WAYS = {
    "whole": (Net.forward, lambda net, x, r: run(net, x, r)),
    "each": (Net.forward, lambda net, x, r: net.last(run(net.b, run(net.a, net.first(x).tanh(), r), r))),
    "sequential": (
        Net.forward,
        lambda net, x, r: checkpoint_sequential(
            [net.first, nn.Tanh(), net.a, net.b, net.last, nn.Identity()], 3, x, use_reentrant=r
        ),
    ),
    "twice": (Net.twice, lambda net, x, r: run(net.twice, x, r)),
    "changing": (Net.changing, lambda net, x, r: run(net.changing, x, r)),
    "no early stop": (Net.forward, lambda net, x, r: run(net, x, r, **({} if r else {"early_stop": False}))),
    "in reentrant": (Net.forward, lambda net, x, r: inside_of(net, run, x, True, r)),
    "in the other": (Net.forward, lambda net, x, r: inside_of(net, run, x, False, r)),
}


def stream(net, call, detach, backward):
    """Values, gradients and last states of four chunks; a new sequence begins in one row after two."""
    net.zero_grad()
    net.a.reset()
    net.b.reset()
    torch.manual_seed(1)
    chunks = [
        torch.randn(5, 4, 5, dtype=DOUBLE, device=device_of(fastrnn), requires_grad=True) for _ in range(4)
    ]
    outputs = []
    for n, x in enumerate(chunks):
        outputs.append(call(net, x))
        if backward == "each":
            outputs[-1].square().sum().backward(retain_graph=not detach)
        for rnn in (net.a, net.b):
            if detach:
                rnn.detach()
            if n == 1:
                rnn.reset([1])
    if backward == "last":  # of several chunks at once
        sum(y.square().sum() for y in outputs).backward()
    leaves = [*chunks, *net.parameters()]
    return [*outputs, *(leaf.grad.clone() for leaf in leaves), *tree_leaves((net.a.state, net.b.state))]


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "nonreentrant"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
def test_checkpoint_changes_nothing(cell, way, reentrant):
    net, (plain, checkpointed) = Net(cell), WAYS[way]
    for detach, backward in product((True, False), ("each", "last")):
        want = stream(net, plain, detach, backward)
        try:
            got = stream(net, lambda net, x: checkpointed(net, x, reentrant), detach, backward)
        except RuntimeError as error:
            assert "no gradient goes through the state" in str(error)
            assert not detach and (reentrant or way == "in reentrant")
            continue
        assert detach or not (reentrant and way == "whole"), "a gradient was lost without a word"
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g, w, rtol=1e-12, atol=1e-12)


def test_checkpoint_twice_backward():
    stateful, _, x = build("lstm")
    for reentrant in (True, False):
        stateful.reset()
        stateful(x[:4])
        stateful.detach()
        v = x[4:8].clone().requires_grad_()
        y = run(stateful, v, reentrant)
        stateful(x[8:])
        y.sum().backward(retain_graph=True)
        once = v.grad.clone()
        y.sum().backward()
        assert torch.equal(v.grad, 2 * once)


def test_checkpoint_that_returns_the_state():
    """What a reentrant checkpoint returns it differentiates: so the gradient flows on."""
    stateful, layer, x = build("gru")
    x.requires_grad_()

    def first(chunk):
        y = stateful(chunk)
        return y, stateful.state

    y, _ = run(first, x[:6], True)
    (y.sum() + stateful(x[6:]).sum()).backward()
    got, x.grad = x.grad, None
    layer(x)[0].sum().backward()
    torch.testing.assert_close(got, x.grad, rtol=1e-12, atol=1e-12)


def test_reentrant_checkpoint_without_gradients():
    """Nothing is missed where nothing wants a gradient: there is no error."""
    stateful, layer, x = build("gru")
    layer.requires_grad_(False)
    scale = torch.ones((), dtype=DOUBLE, device=x.device, requires_grad=True)
    run(lambda s: stateful(x[:6]) * s, scale, True)
    assert not stateful.state.requires_grad
    (stateful(x[6:]) * scale).sum().backward()


def test_checkpoint_keeps_no_state():
    """Where a checkpoint began from is kept as long as its graph."""
    stateful, _, x = build("gru")
    for reentrant in (True, False):
        stateful(x)
        stateful.detach()
        began = weakref.ref(stateful.state)
        y = run(stateful, x.clone().requires_grad_(), reentrant)
        stateful.reset()
        assert began() is not None
        y.sum().backward()
        del y
        assert began() is None


def test_calls_in_a_backward():
    """What torch.utils.checkpoint does not run again might be another library's checkpoint."""
    stateful, _, x = build("gru")

    class Again(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return stateful(x)

        @staticmethod
        def backward(ctx, grad):
            with torch.enable_grad():
                stateful(*ctx.saved_tensors)

    with pytest.raises(RuntimeError, match="Stateful: expected a call in a forward"):
        Again.apply(x.requires_grad_()).sum().backward()

    calls = []

    def other(v):
        calls.append(v)
        return stateful(v) if len(calls) > 1 else v.sin()

    with pytest.raises(RuntimeError, match="in the backward, not in the forward"):
        run(other, x, True).sum().backward()


# ---- torch.func ----


def scalar(stateful):
    return lambda x: stateful(x).square().sum()


FUNCTIONS = {
    "grad": lambda f, x: torch.func.grad(scalar(f))(x),
    "vjp": lambda f, x: torch.func.vjp(f, x)[1](torch.ones_like(f.layer(x)[0])),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,)),
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x),
    "hessian": lambda f, x: torch.func.hessian(scalar(f))(x),
    "functionalize": lambda f, x: torch.func.functionalize(f)(x),
    "grad of grad": lambda f, x: torch.func.grad(lambda x: torch.func.grad(scalar(f))(x).sum())(x),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@each_cell
def test_go_on_after_a_transform(cell, name):
    """The value of the state is that of a call without, and a tensor as any other: it can be saved, changed,
    and be gone on from, in the same transform, too."""
    stateful, layer, x = build(cell, T=6, I=2, H=3)
    FUNCTIONS[name](stateful, x[:2])
    FUNCTIONS[name](stateful, x[2:4])
    _, state = layer(x[:4])
    for got, want in zip(take(stateful.state), take(state), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
        assert got.untyped_storage().nbytes() == want.untyped_storage().nbytes()
    torch.testing.assert_close(stateful(x[4:]), layer(x[4:], state)[0], rtol=1e-12, atol=1e-12)
    FUNCTIONS[name](stateful, x[:2])
    stateful.detach()
    stateful.reset([1])
    stateful.float()
    assert all(not s[:, 1].any() and s.dtype == torch.float32 for s in take(stateful.state))


@each_cell
def test_states_of_examples(cell):
    """Under vmap a stream for each; the one outside goes its own way."""
    stateful, layer, x = build(cell)
    xs = torch.stack([x, 2 * x, -x])
    outside = stateful(x[:4])
    want = [layer(v, layer(x[:4])[1])[0] for v in (xs[0], xs[1], xs[2])]
    got = [torch.vmap(stateful)(chunk) for chunk in xs.split(6, 1)]
    torch.testing.assert_close(torch.cat(got, 1), torch.stack(want), rtol=1e-12, atol=1e-12)
    stateful.detach()
    rest = stateful(x[4:])
    torch.testing.assert_close(torch.cat([outside, rest]), layer(x)[0], rtol=1e-12, atol=1e-12)
    with pytest.raises(RuntimeError, match="state: expected as many examples as in the last torch.vmap"):
        torch.vmap(stateful)(xs[:2])
    with pytest.raises(RuntimeError, match="state: expected as many examples as in the last torch.vmap"):
        torch.func.grad(lambda xs: torch.vmap(stateful)(xs).sum())(xs)
    stateful.reset()
    assert stateful.state is None
    torch.testing.assert_close(
        torch.vmap(stateful)(xs[:2]), torch.stack([layer(v)[0] for v in xs[:2]]), rtol=1e-12, atol=1e-12
    )


@each_cell
def test_detach_between_vmaps(cell):
    """The examples' states are cut off, too, and follow .to()."""
    stateful, layer, x = build(cell)
    xs = torch.stack([x, -x])
    torch.vmap(stateful)(xs[:, :6]).sum().backward()
    stateful.detach()
    layer.zero_grad()
    torch.vmap(stateful)(xs[:, 6:]).sum().backward()
    got = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    for v in xs:
        with torch.no_grad():
            _, state = layer(v[:6])
        layer(v[6:], state)[0].sum().backward()
    for g, p in zip(got, layer.parameters(), strict=True):
        torch.testing.assert_close(g, p.grad, rtol=1e-12, atol=1e-12)
    stateful.float()
    assert torch.vmap(stateful)(xs.float()).dtype == torch.float32


@each_cell
def test_gradients_between_calls_of_one_transform(cell):
    """Of each example, through the state from one call to the next."""
    stateful, layer, x = build(cell, T=4)
    xs = torch.stack([x, -x])

    def loss(call):
        return lambda v: call(v).square().sum()

    def in_two(v):
        stateful.reset()
        return torch.cat([stateful(v[:2]), stateful(v[2:])])

    got = torch.vmap(torch.func.grad(loss(in_two)))(xs)
    want = torch.stack([torch.func.grad(loss(lambda v: layer(v)[0]))(v) for v in xs])
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


# ---- autocast, inference, replicas, devices ----


@pytest.mark.parametrize("library", [fastrnn, torch.nn], ids=["fastrnn", "torch.nn"])
@each_cell
def test_go_on_after_autocast(cell, library):
    if library is torch.nn and cell == "lstm":
        skip_unless_torch_has_autocast_lstm()
    stateful, layer, x = build(cell, library, dtype=torch.float32)
    with torch.autocast(x.device.type, torch.bfloat16):
        first, _ = stateful(x[:4]), stateful(x[4:6])
        _, state = layer(x[:4])
        _, state = layer(x[4:6], state)
    assert {s.dtype for s in take(stateful.state)} == {s.dtype for s in take(state)}
    got = stateful(x[6:])
    state = tuple(s.float() for s in take(state))
    want, _ = layer(x[6:], state if len(state) > 1 else state[0])
    assert got.dtype == torch.float32 and torch.equal(got, want)
    got.sum().backward()  # and through the cast back into the region
    assert layer.weight_ih_l0.grad.any() and first.grad_fn is not None


def test_a_state_in_16_bits_stays_so():
    """What autocast has not made narrow is the layer's own choice."""

    class Narrow(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x, state):
            assert state is None or state.dtype == torch.bfloat16
            return x * self.weight, x.bfloat16()

    stateful = fastrnn.Stateful(Narrow())
    for _ in range(2):
        stateful(torch.zeros(2, 3))
    narrow = fastrnn.Stateful(fastrnn.GRU(5, 9, dtype=torch.bfloat16))
    x = torch.randn(3, 4, 5, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        narrow(x)
    assert narrow(x).dtype == torch.bfloat16


@each_cell
def test_go_on_after_inference_mode(cell):
    stateful, layer, x = build(cell)
    with torch.inference_mode():
        stateful(x[:6])
    got = stateful(x[6:])
    got.sum().backward()
    assert layer.weight_hh_l0.grad.any()
    torch.testing.assert_close(got, layer(x)[0][6:], rtol=1e-12, atol=1e-12)


@each_cell
def test_replicas_share_the_state(cell):
    """What torch.nn.DataParallel makes goes on, and so does the original; two at once are an error."""
    stateful, layer, x = build(cell)

    def replicate():
        replica = stateful._replicate_for_data_parallel()
        replica.layer = layer
        return replica

    want, _ = layer(x)
    got = torch.cat([replicate()(x[:4]), replicate()(x[4:8]), stateful(x[8:])])
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert not any(name.startswith("_origin") for name, _ in replicate().named_modules())

    one, other = replicate(), replicate()

    def call_the_other(*_):
        handle.remove()
        other(x)

    handle = layer.register_forward_pre_hook(call_the_other)
    with pytest.raises(RuntimeError, match="state: another call has changed it during this one"):
        one(x)


@pytest.mark.parametrize("device_by", [torch.set_default_device, torch.device], ids=["set", "with"])
def test_another_default_device(device_by):
    stateful, _, x = build("lstm")
    meta = device_by("meta")
    try:
        if meta is not None:
            meta.__enter__()
        stateful(x)
        for rows in ([1], 1, [], [True, False, False, False], torch.tensor([0], device=x.device)):
            stateful.reset(rows)
        assert stateful(x).device == x.device
    finally:
        meta.__exit__(None, None, None) if meta is not None else torch.set_default_device(None)
