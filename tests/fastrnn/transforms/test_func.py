"""torch.func and forward-mode AD: every transform against the reference, or against a loop over it."""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from cases import EVERY_CELL, Case, give, run_python, take
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    stack_module_state,
    vjp,
    vmap,
)
from torch.utils._pytree import tree_leaves, tree_map

import fastrnn
from fastrnn import reference

DOUBLE = torch.float64
pytestmark = pytest.mark.usefixtures("device")
each_cell = pytest.mark.parametrize("cell", EVERY_CELL)
each_kind = pytest.mark.parametrize("step", [False, True], ids=["layer", "cell"])

FORMS = {
    "padded": dict(L=2, bidirectional=True),
    "batch_first": dict(L=2, bidirectional=True, form="batch_first"),
    "packed": dict(L=2, bidirectional=True, form="packed"),
    "unbatched": dict(form="unbatched"),
    "nobias": dict(bias=False),
    "step": dict(T=1),
}


class Problem:
    """A case as functions of its tensors alone: `fast` by fastrnn and `slow` by the reference, both
    `f(weights, x, *hx) -> [output, *last states]`."""

    def __init__(self, cell, step=False, **changes):
        self.case = case = Case(cell, **{"T": 3, "B": 2, "I": 3, "H": 4, "dtype": DOUBLE, **changes})
        self.step = step
        module, _, x, hx = (case.prepare_step if step else case.prepare)(fastrnn)
        self.module = module
        self.weights = {name: w.detach() for name, w in module.named_parameters()}
        self.x, self.hx = x.detach(), [h.detach() for h in hx]
        self.packed = case.pack(self.x) if case.packed else None  # vmap knows its data only
        self.x = self.packed.data if case.packed else self.x

    def fast(self, weights, x, *hx):
        x = x if self.packed is None else self.packed._replace(data=x)
        results = functional_call(self.module, weights, (x, give(hx)) if hx else (x,))
        if self.step:
            return take(results)
        output, states = results
        return [output.data if self.case.packed else output, *take(states)]

    def slow(self, weights, x, *hx):
        weights = list(weights.values())
        if self.step:
            hx = hx or [x.new_zeros(*x.shape[:-1], self.case.H)] * self.case.row.states
            return list(self.case.row.step(x, tuple(hx), *weights))
        case, sizes = self.case, None if self.packed is None else self.packed.batch_sizes
        options = dict(bias=case.bias, num_layers=case.L, bidirectional=case.bidirectional)
        options["batch_first"] = case.form == "batch_first"
        return list(reference.rnn(x, hx, weights, case.cell, batch_sizes=sizes, **options))

    def loss(self, f):
        """One number; every element of every result counts, each in a way of its own."""

        def weigh(v):
            return (
                v * torch.arange(1, v.numel() + 1, dtype=v.dtype, device=v.device).view(v.shape) / v.numel()
            )

        return lambda *args: sum(weigh(v).sin().sum() for v in f(*args))

    def many(self, n, *tensors):
        """n variations of each tensor."""
        return [torch.stack([t * (1 + 0.3 * k) for k in range(n)]) for t in tensors]


def looped(f, in_dims):
    """What vmap should do."""

    def call(*args):
        n = next(tree_leaves(a)[0].shape[d] for a, d in zip(args, in_dims, strict=True) if d is not None)

        def pick(a, d, k):
            return a if d is None else tree_map(lambda t: t.select(d, k), a)

        each = [f(*(pick(a, d, k) for a, d in zip(args, in_dims, strict=True))) for k in range(n)]
        return tree_map(lambda *t: torch.stack(t), *each)

    return call


def agree(got, want):
    got, want = tree_leaves(got), tree_leaves(want)
    assert len(got) == len(want)
    assert any(w.any() for w in want)
    for g, w in zip(got, want, strict=True):
        assert g.shape == w.shape
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-11, check_device=False)


def ops_of(f, *args):
    """Names of fastrnn's operators that reach a kernel."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Record():
        f(*args)
    return [name.split(".")[1] for name in seen if name.startswith("fastrnn")]


# ---- vmap ----


@pytest.mark.parametrize("form", FORMS)
@each_cell
def test_vmap_over_input(cell, form):
    """Over x, over x and the states, over the states alone; the kernel runs once."""
    p = Problem(cell, **FORMS[form])
    x, *hx = p.many(3, p.x, *p.hx)
    for in_x, in_h, xs, hs in ((0, 0, x, hx), (0, None, x, p.hx), (None, 0, p.x, hx)):
        dims = (None, in_x, *[in_h] * len(p.hx))
        agree(vmap(p.fast, dims)(p.weights, xs, *hs), looped(p.slow, dims)(p.weights, xs, *hs))
    last = x.movedim(0, -1)
    dims = (None, -1)
    agree(vmap(p.fast, dims)(p.weights, last), looped(p.slow, dims)(p.weights, last))
    run = ops_of(vmap(p.fast, (None, 0)), p.weights, x)
    assert run == ["layer_forward"] * p.case.L


@each_cell
def test_vmap_over_input_of_a_cell(cell):
    for form in ("padded", "unbatched"):
        p = Problem(cell, step=True, T=1, form=form)
        x, *hx = p.many(3, p.x, *p.hx)
        dims = (None, 0, *[0] * len(hx))
        agree(vmap(p.fast, dims)(p.weights, x, *hx), looped(p.slow, dims)(p.weights, x, *hx))


@each_cell
def test_vmap_twice(cell):
    p = Problem(cell)
    x = torch.stack(p.many(2, *p.many(3, p.x)))  # [1, 2, 3, T, B, I]
    x = x[0]
    nested = vmap(vmap(p.fast, (None, 0)), (None, 1))
    want = looped(looped(p.slow, (None, 0)), (None, 1))
    agree(nested(p.weights, x), want(p.weights, x))


@each_kind
@each_cell
def test_ensemble(cell, step):
    """Models side by side, as in the tutorial: over weights, with one input for all and with one for each."""
    p = Problem(cell, step, **({} if step else FORMS["batch_first"]))
    models = [Problem(cell, step, **({} if step else FORMS["batch_first"]), seed=k) for k in range(3)]
    stacked, _ = stack_module_state([m.module for m in models])
    stacked = {name: w.detach() for name, w in stacked.items()}
    (many,) = p.many(3, p.x)
    for dims, x in (((0, None), p.x), ((0, 0), many)):
        agree(vmap(p.fast, dims)(stacked, x), looped(p.slow, dims)(stacked, x))
    gradient = [grad(p.loss(f)) for f in (p.fast, p.slow)]
    agree(vmap(gradient[0], (0, 0))(stacked, many), looped(gradient[1], (0, 0))(stacked, many))


def test_vmap_over_lengths_is_refused():
    weights = Problem("gru").module._flat_weights
    x, n = torch.zeros(2, 4, 3, dtype=DOUBLE), torch.tensor([[2, 2]] * 2)
    h = torch.zeros(1, 2, 4, dtype=DOUBLE)
    x, h = (t.to(weights[0].device) for t in (x, h))

    def call(x, n):
        return torch.ops.fastrnn.rnn(x, n, [h], weights, "gru", True, 1, 0.0, False, False, False)

    with pytest.raises(ValueError, match="vmap cannot map over the lengths"):
        vmap(call)(x, n)


# ---- gradients ----


@pytest.mark.parametrize("form", ["padded", "batch_first", "packed"])
@each_cell
def test_per_sample_gradients(cell, form):
    """vmap(grad): of weights for each sample, and of inputs."""
    p = Problem(cell, **FORMS[form])
    (x,) = p.many(3, p.x)
    for argnums in (0, 1):
        got = vmap(grad(p.loss(p.fast), argnums), (None, 0))(p.weights, x)
        agree(got, looped(grad(p.loss(p.slow), argnums), (None, 0))(p.weights, x))
    # Those of inputs take one call of each kernel, whatever is mapped over.
    run = ops_of(vmap(grad(p.loss(p.fast), 1), (None, 0)), p.weights, x)
    assert sorted(run) == ["layer_backward"] * 2 + ["layer_forward"] * 2


@each_kind
@each_cell
def test_first_derivatives_are_fused(cell, step):
    p = Problem(cell, step)
    assert ops_of(grad(p.loss(p.fast)), p.weights, p.x) == ["layer_forward", "layer_backward"]


TRANSFORMS = {
    "grad": lambda f: grad(f),
    "grad of grad": lambda f: grad(lambda x: sum(g.square().sum() for g in tree_leaves(grad(f)(x)))),
    "vjp": lambda f: lambda x: vjp(f, x)[1](torch.ones_like(f(x))),
    "jvp": lambda f: lambda x: jvp(f, (x,), (x.cos(),)),
    "hessian": lambda f: hessian(f),
    "jacrev of jacrev": lambda f: jacrev(jacrev(f)),
    "jacrev of jacfwd": lambda f: jacrev(jacfwd(f)),
    "jacfwd of jacfwd": lambda f: jacfwd(jacfwd(f)),
    "jvp of grad": lambda f: lambda x: jvp(grad(f), (x,), (x.cos(),)),
    "vmap of hessian": lambda f: lambda x: vmap(hessian(f))(torch.stack([x, 2 * x])),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
@each_kind
@each_cell
def test_transforms_of_a_loss(cell, step, frozen, transform):
    """Of x. The weights are constants, or parameters that autograd outside may want gradients of."""
    p = Problem(cell, step, B=1, I=2, H=3, **({"T": 1} if step else {"T": 2, "L": 2, "bidirectional": True}))
    weights = {name: w.clone().requires_grad_(not frozen) for name, w in p.weights.items()}
    got, want = (
        TRANSFORMS[transform](lambda x, f=f: p.loss(f)(weights, x, *p.hx))(p.x) for f in (p.fast, p.slow)
    )
    agree(got, want)


@pytest.mark.parametrize("T", [1, 3])
@each_cell
def test_hessian_of_packed_input(cell, T):
    """What a layer saves is the same in plain operations and in the kernels, of a single step too."""
    p = Problem(cell, T=T, form="packed")
    got, want = (hessian(lambda x, f=f: p.loss(f)(p.weights, x, *p.hx))(p.x) for f in (p.fast, p.slow))
    agree(got, want)


@pytest.mark.parametrize("transform", [jacrev, jacfwd], ids=["jacrev", "jacfwd"])
@each_kind
@each_cell
def test_jacobians(cell, step, transform):
    """Of every result by x, by h_0 and by a weight."""
    p = Problem(cell, step, B=1, I=2, H=3, T=2)
    name = "weight_hh" if step else "weight_hh_l0"

    def of(f):
        return lambda w, x, h: f({**p.weights, name: w}, x, h, *p.hx[1:])

    args = (p.weights[name], p.x, p.hx[0])
    got, want = (tree_leaves(transform(of(f), argnums=(0, 1, 2))(*args)) for f in (p.fast, p.slow))
    assert len(got) == 3 * (p.case.row.states + (not step))
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-11, check_device=False)


@each_cell
def test_derivative_outside_a_transform(cell):
    """autograd through torch.func.grad, and through jacrev: nothing is cut off in between."""
    for inner in (grad, jacrev):
        p = Problem(cell, T=2)

        def penalty(f, inner=inner, p=p):
            x = p.x.clone().requires_grad_()
            weights = {name: w.clone().requires_grad_() for name, w in p.weights.items()}
            inner(lambda x: p.loss(f)(weights, x, *p.hx))(x).square().sum().backward()
            return [x.grad, *(w.grad for w in weights.values() if w.grad is not None)]

        agree(penalty(p.fast), penalty(p.slow))


# ---- forward mode ----


@pytest.mark.parametrize("form", FORMS)
@each_cell
def test_forward_mode(cell, form):
    """Tangents of x, the states and the weights at once."""
    p = Problem(cell, **FORMS[form])

    def tangents(f):
        with forward_ad.dual_level():
            dual = [forward_ad.make_dual(t, t.cos()) for t in (*p.weights.values(), p.x, *p.hx)]
            n = len(p.weights)
            values = f(dict(zip(p.weights, dual, strict=False)), *dual[n:])
            return [forward_ad.unpack_dual(v).tangent for v in values]

    agree(tangents(p.fast), tangents(p.slow))


@pytest.mark.parametrize("where", ["input", "cotangent"])
@each_kind
@each_cell
def test_forward_over_reverse(cell, step, where):
    """A tangent that comes in with x, or only with the gradient of the result, when the kernel has run."""
    p = Problem(cell, step, T=2)

    def tangents(f):
        weights = {name: w.clone().requires_grad_() for name, w in p.weights.items()}
        x = p.x.clone().requires_grad_()
        with forward_ad.dual_level():
            given = forward_ad.make_dual(x, x.detach().cos()) if where == "input" else x
            y = f(weights, given, *p.hx)[0]
            c = torch.ones_like(p.x.new_empty(y.shape))
            c = forward_ad.make_dual(c, c * 0.5) if where == "cotangent" else c
            found = torch.autograd.grad(y, [x, *weights.values()], c)
            return [forward_ad.unpack_dual(g).tangent for g in found]

    agree(tangents(p.fast), tangents(p.slow))


def test_vmap_batches_gradients():
    """torch.autograd.functional.jacobian(vectorize=True) maps over the backward alone."""
    p = Problem("lstm", T=2, B=1)
    got, want = (
        torch.autograd.functional.jacobian(lambda x, f=f: f(p.weights, x)[0], p.x, vectorize=True)
        for f in (p.fast, p.slow)
    )
    agree(got, want)


def test_import_does_not_load_the_compiler():
    done = run_python("-c", "import sys, fastrnn; sys.exit('torch._dynamo' in sys.modules)")
    assert done.returncode == 0, done.stderr
