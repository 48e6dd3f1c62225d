"""What autograd promises: saved tensors are guarded, nothing is kept in vain, second derivatives are never
wrong."""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from cases import EVERY_CELL, Case, cotangents, evaluate, give, name_values, run_python, take
from tolerance import assert_close, assert_same_bits
from torch._dynamo import compiled_autograd

import fastrnn
from fastrnn.reference import CELLS

DOUBLE = torch.float64
each_kind = pytest.mark.parametrize("step", [False, True], ids=["layer", "cell"])
each_cell = pytest.mark.parametrize("cell", EVERY_CELL)


def prepare(library, case, step):
    return case.prepare_step(library) if step else case.prepare(library)


def name_leaves(layer, x, hx):
    return {"x": x, **{f"{s}_0": h for s, h in zip("hc", hx, strict=False)}, **dict(layer.named_parameters())}


# ---- tensors modified between forward and backward ----

ARGUMENTS = ("x", "h_0", "c_0", "weight_ih", "weight_hh", "bias_ih", "bias_hh")
RESULTS = ("output", "h_n", "c_n")


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("modified", ARGUMENTS + RESULTS)
@each_kind
@each_cell
def test_modified_before_backward(cell, step, modified):
    """Where torch.nn raises, fastrnn raises, and in no case gradients are wrong.

    A result that torch.nn lets its user write to (`y += x`) can be written to here. Of the arguments fastrnn
    may need one that torch.nn does not, and then refuses.
    """
    case = Case(cell, T=4, B=3, I=5, H=19, dtype=DOUBLE)
    if case.row.states == 1 and modified in ("c_0", "c_n"):
        modified = modified.replace("c", "h")

    def solve(library):
        layer, call, x, hx = prepare(library, case, step)
        inner_x, inner_hx = x * 1, [h * 1 for h in hx]  # not leaves, so that they can be written
        values = call(inner_x, inner_hx)
        tensors = name_leaves(layer, inner_x, inner_hx) | name_values(values)
        chosen = tensors.get(modified, tensors.get(f"{modified}_l0"))
        loss = sum((v * c).sum() for v, c in zip(values, cotangents(values), strict=True))
        with torch.no_grad():
            chosen.add_(1.0)
        try:
            loss.backward()
        except RuntimeError as error:
            return str(error)
        return {f"d{name}": t.grad for name, t in name_leaves(layer, x, hx).items()}

    want, got = solve(torch.nn), solve(fastrnn)
    if isinstance(got, str):
        assert "modified by an inplace operation" in got
        assert isinstance(want, str) or modified in ARGUMENTS, f"with torch.nn {modified} can be written to"
    else:
        assert not isinstance(want, str), f"torch.nn refuses: {want}"
        assert_close(got, want, case)


# What is trained, by the beginning of its name, and what the backward then has no use for.
UNUSED = {
    "frozen weights": (("h_0", "c_0"), ("x", "weight_ih", "bias_ih", "bias_hh")),
    "biases only": (("bias",), ("x", "h_0", "weight_ih", "bias_ih", "bias_hh")),
    "weight_hh only": (("weight_hh",), ("x", "weight_ih", "bias_ih", "bias_hh")),
    "weight_ih only": (("weight_ih",), ("h_0", "weight_ih", "bias_ih", "bias_hh")),
    "input only": (("x",), ("x", "h_0", "bias_ih", "bias_hh")),
}


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("inference", [False, True], ids=["changed", "of inference mode"])
@pytest.mark.parametrize("form", ["padded", "batch_first", "packed"])
@pytest.mark.parametrize("trained", UNUSED)
@each_kind
@each_cell
def test_what_the_backward_does_not_need(cell, step, trained, form, inference):
    """It may be changed before the backward, and may come from inference mode: a buffer for the input of
    frozen weights, weights that an optimizer changes. The gradients are those of the values that there were.
    """
    case = Case(cell, T=4, B=3, I=5, H=19, form="padded" if step else form, dtype=DOUBLE)
    wanted, unused = UNUSED[trained]

    def solve(spoil):
        layer, call, x, hx = prepare(fastrnn, case, step)
        leaves = name_leaves(layer, x, hx)
        for name, t in leaves.items():
            t.requires_grad_(name.startswith(wanted))
        if spoil and inference:
            with torch.inference_mode():
                x = x.clone() if "x" in unused and not x.requires_grad else x
                hx = [h.clone() if "h_0" in unused and i == 0 else h for i, h in enumerate(hx)]
        values = call(x, hx)
        if spoil and not inference:
            with torch.no_grad():
                for name, t in leaves.items():
                    if name.removesuffix("_l0") in unused:
                        t.fill_(float("nan"))
        torch.autograd.backward(values, cotangents(values))
        return {name: t.grad for name, t in leaves.items()}

    assert_same_bits(solve(True), solve(False), f"{trained}")


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("form", [None, "padded", "packed"])
@each_cell
def test_first_step_needs_no_weight_hh(cell, form):
    """From zeros, while only weights are trained: an optimizer may step between forward and backward."""
    case = Case(cell, T=1, B=3, I=5, H=19, form=form or "padded", hx=False, dtype=DOUBLE)

    def solve(spoil):
        layer, call, x, _ = case.prepare(fastrnn) if form else case.prepare_step(fastrnn)
        values = call(x.detach(), None)
        if spoil:
            with torch.no_grad():
                for p in layer.parameters():
                    p.fill_(float("nan"))
        torch.autograd.backward(values, cotangents(values))
        return {name: p.grad for name, p in layer.named_parameters()}

    assert_same_bits(solve(True), solve(False), "the parameters")


@each_cell
def test_cell_built_in_inference_mode(cell):
    """torch.nn's cells can be trained then, for a step from zeros."""
    for library in (torch.nn, fastrnn):
        with torch.inference_mode():
            module, call, x, _ = Case(cell, T=1).prepare_step(library)
        call(x.detach().clone(), None)[0].sum().backward()
        assert module.bias_hh.grad is not None


@each_cell
def test_graph_of_the_backward_needs_all(cell):
    """With create_graph=True the layer is computed again, and what was changed is missed."""
    case = Case(cell, T=4, dtype=DOUBLE)
    layer, call, x, hx = case.prepare(fastrnn)
    layer.requires_grad_(False)
    values = call(x.detach_().requires_grad_(False), hx)
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(values, hx, cotangents(values), create_graph=True, allow_unused=True)
    with torch.inference_mode():
        x = x.clone()
    values = call(x, hx)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        torch.autograd.grad(values, hx, cotangents(values), create_graph=True, allow_unused=True)


@pytest.mark.usefixtures("target")
@each_cell
def test_results_may_be_modified_in_the_graph(cell):
    """`y += x`, an in-place activation: common in models, and right with torch.nn."""
    case = Case(cell, T=4, B=3, I=19, H=19, dtype=DOUBLE)

    def solve(library):
        layer, _, x, hx = case.prepare(library)
        y, state = layer(x, give(hx))
        states = take(state)
        y += x
        y.mul_(2).tanh_()
        states[0].mul_(3)
        values = [y, *states]
        torch.autograd.backward(values, cotangents(values))
        return {f"d{name}": t.grad for name, t in name_leaves(layer, x, hx).items()}

    assert_close(solve(fastrnn), solve(torch.nn), case)


# ---- backward more than once ----


@pytest.mark.usefixtures("target")
@each_kind
@each_cell
def test_backward_twice(cell, step):
    """With retain_graph gradients add up; without it a second backward raises."""
    case = Case(cell, T=4, dtype=DOUBLE)
    layer, call, x, hx = prepare(fastrnn, case, step)
    values = call(x, hx)
    leaves = list(name_leaves(layer, x, hx).values())
    first = torch.autograd.grad(values, leaves, cotangents(values), retain_graph=True)
    second = torch.autograd.grad(values, leaves, cotangents(values))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(values, leaves, cotangents(values))


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("used", ["all", "output"])
@pytest.mark.parametrize("form", ["padded", "packed", "unbatched"])
@each_kind
@each_cell
def test_double_backward_beside_an_ordinary_loss(cell, step, form, used):
    """A penalty on a gradient, added to an ordinary loss.

    The ordinary loss makes the backward succeed even if the penalty had lost its graph, so what is wrong
    would be silent: the gradients are compared with the reference's.
    """
    case = Case(cell, T=3, B=3, I=5, H=9, L=1 if step else 2, bidirectional=not step, dtype=DOUBLE)
    case = case.but(form="padded" if step else form)

    def solve(call, x, hx, parameters):
        values = call(x, hx)
        chosen = values if used == "all" else values[:1]
        gradients = torch.autograd.grad(chosen, [x, *hx], cotangents(chosen), create_graph=True)
        penalty = sum(g.square().sum() for g in gradients)
        (penalty + sum(v.square().sum() for v in values)).backward()
        leaves = {"x": x, **{f"{s}_0": h for s, h in zip("hc", hx, strict=False)}, **parameters}
        return {f"d{name}": t.grad for name, t in leaves.items()}

    layer, call, x, hx = prepare(fastrnn, case, step)
    got = solve(call, x, hx, dict(layer.named_parameters()))
    layer, _, x, hx = prepare(torch.nn, case, step)
    weights = [p for _, p in layer.named_parameters()]

    def step_of_reference(x, hx):
        state = CELLS[cell].step(x, tuple(hx), *weights)
        return [state[0], *state]

    want = solve(step_of_reference if step else case.judge(weights), x, hx, dict(layer.named_parameters()))
    assert_close(got, want, case)


@pytest.mark.parametrize("form", ["padded", "packed"])
@each_kind
@each_cell
def test_saved_tensor_hooks(cell, step, form):
    """What is saved may be moved elsewhere until the backward, all of it, and then gives the same bits."""
    case = Case(cell, T=3, form="padded" if step else form)
    layer, call, x, hx = prepare(fastrnn, case, step)
    want = evaluate(call, x, hx, dict(layer.named_parameters()), case)
    layer, call, x, hx = prepare(fastrnn, case, step)

    def evaluate_with(pack, unpack):
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            return evaluate(call, x, hx, dict(layer.named_parameters()), case)

    got = evaluate_with(lambda t: t.detach().numpy().copy(), torch.from_numpy)
    assert_same_bits(got, want, "hooks")


# ---- derivatives of other kinds ----


@each_kind
@each_cell
def test_forward_mode(cell, step):
    case = Case(cell, T=3, dtype=DOUBLE)

    def tangents(library, grad):
        layer, call, x, hx = prepare(library, case, step)
        inputs = [x.detach(), *(h.detach() for h in hx)]
        with torch.set_grad_enabled(grad), forward_ad.dual_level():
            dual = [forward_ad.make_dual(t, torch.ones_like(t)) for t in inputs]
            values = name_values(call(dual[0], dual[1:]))
            return {name: forward_ad.unpack_dual(v).tangent.detach() for name, v in values.items()}

    want = tangents(torch.nn, True)
    for grad in (True, False):
        assert_close(tangents(fastrnn, grad), want, case)


@each_kind
@each_cell
def test_torch_func(cell, step):
    """grad, grad of grad and jvp."""
    case = Case(cell, T=3, dtype=DOUBLE)

    def solve(library):
        _, call, x, hx = prepare(library, case, step)
        x, hx = x.detach(), [h.detach() for h in hx]

        def loss(x):
            return call(x, hx)[0].square().sum()

        def penalty(x):
            return torch.func.grad(loss)(x).square().sum()

        return {
            "grad": torch.func.grad(loss)(x),
            "grad of grad": torch.func.grad(penalty)(x),
            "jvp": torch.func.jvp(loss, (x,), (torch.ones_like(x),))[1].detach(),
        }

    assert_close(solve(fastrnn), solve(torch.nn), case)


def test_torch_func_checks_sizes():
    layer, _, x, hx = Case("gru", T=1).prepare_step(fastrnn)
    weights = [p.detach() for p in layer.parameters()]

    def call(x):
        return torch.ops.fastrnn.layer(x, None, [hx[0][:1]], weights, "gru", False, False)[0].sum()

    with pytest.raises(RuntimeError, match=r"h_0: expected size \[3, 16\], got \[1, 16\]"):
        torch.func.grad(call)(x.detach())


@each_kind
@each_cell
def test_compiled_autograd(cell, step):
    case = Case(cell, T=3)
    layer, call, x, hx = prepare(fastrnn, case, step)
    want = evaluate(call, x, hx, dict(layer.named_parameters()), case)
    layer, call, x, hx = prepare(fastrnn, case, step)
    with compiled_autograd._enable(lambda graph: graph):
        values = call(x, hx)
        torch.autograd.backward(values, cotangents(values))
    for name, leaf in name_leaves(layer, x, hx).items():
        assert torch.equal(leaf.grad, want[f"d{name}"]), name


# ---- nothing is kept or copied in vain ----


@each_kind
@each_cell
def test_gradients_are_handed_over(cell, step):
    """A leaf's `.grad` is the tensor that the backward has written, no copy of it."""
    case = Case(cell, T=3)
    layer, call, x, hx = prepare(fastrnn, case, step)
    leaves = name_leaves(layer, x, hx)
    written = {}
    for name, leaf in leaves.items():
        leaf.register_hook(lambda grad, name=name: written.update({name: grad.data_ptr()}))
    values = call(x, hx)
    torch.autograd.backward(values, cotangents(values))
    assert {name: leaf.grad.data_ptr() for name, leaf in leaves.items()} == written


@each_kind
@each_cell
@pytest.mark.parametrize("mode", ["no_grad", "inference_mode", "nothing requires grad"])
def test_nothing_is_saved_without_autograd(cell, step, mode):
    case = Case(cell, T=4, L=1 if step else 2)
    layer, call, x, hx = prepare(fastrnn, case, step)
    saved = []

    def save(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda t: t):
        call(x, hx)
    assert saved, "the hook sees nothing, so this test shows nothing"
    saved.clear()
    if mode == "nothing requires grad":
        layer.requires_grad_(False)
        x, hx = x.detach(), [h.detach() for h in hx]
        context = torch.enable_grad()
    else:
        context = getattr(torch, mode)()
    with torch.autograd.graph.saved_tensors_hooks(save, lambda t: t), context:
        values = call(x, hx)
    assert not saved
    for name, value in name_values(values).items():
        assert not value.requires_grad and value.grad_fn is None, name
        assert value.is_inference() == (mode == "inference_mode"), name


MEMORY = """
import gc, sys, torch, fastrnn
kind, cell, mode = sys.argv[1:]
from cases import Case
case = Case(cell, T=200, B=32, I=16, H=256)
layer, call, x, _ = case.prepare(fastrnn)

def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096

def run():
    with torch.set_grad_enabled(mode == "grad"):
        return call(x, None)

for _ in range(2):
    values = run()  # buffers that stay are there from now on
    del values
gc.collect()
before = resident()
values = run()
print(resident() - before, sum(v.numel() * v.element_size() for v in values))
"""


@pytest.mark.quick(0)
@each_cell
def test_no_activations_in_memory_without_autograd(cell):
    """A call leaves in memory its results only; with autograd, also the saved activations."""

    def measure(mode):
        done = run_python("-c", MEMORY, "layer", cell, mode, env={"MALLOC_MMAP_THRESHOLD_": "65536"})
        assert done.returncode == 0, done.stderr
        return [int(n) for n in done.stdout.split()]

    kept, results = measure("no_grad")
    slack = 1 << 20
    assert kept < results + slack, f"{kept} bytes stay, results are {results}"
    if CELLS[cell].gates > 1:  # an Elman RNN needs no more than its results
        kept, results = measure("grad")
        assert kept > 2 * results, "the measure sees no activations, so this test shows nothing"


@pytest.mark.usefixtures("target")
@each_cell
def test_inputs_are_left_alone(cell):
    """Neither forward nor backward writes to what it was given."""
    case = Case(cell, T=4, L=2, bidirectional=True, form="unsorted", dtype=DOUBLE)
    layer, call, x, hx = case.prepare(fastrnn)
    given = {name: t.detach().clone() for name, t in name_leaves(layer, x, hx).items()}
    values = call(x, hx)
    kept = {name: v.detach().clone() for name, v in name_values(values).items()}
    gradients = cotangents(values)
    kept_gradients = [g.clone() for g in gradients]
    torch.autograd.backward(values, gradients)
    assert_same_bits({n: t.detach() for n, t in name_leaves(layer, x, hx).items()}, given, "arguments")
    assert_same_bits({n: v.detach() for n, v in name_values(values).items()}, kept, "results")
    assert all(torch.equal(a, b) for a, b in zip(gradients, kept_gradients, strict=True))


@pytest.mark.usefixtures("target")
@each_cell
def test_results_do_not_share_memory(cell):
    """Writing to one result changes no other, nor the arguments."""
    for case in (Case(cell, T=1), Case(cell, T=4, L=2)):
        layer, call, x, hx = case.prepare(fastrnn)
        with torch.no_grad():
            values = call(x, hx)
        results = [t.untyped_storage().data_ptr() for t in values]
        given = {t.untyped_storage().data_ptr() for t in (x, *hx, *layer.parameters())}  # cuDNN joins weights
        assert len(set(results)) == len(results) and not given & set(results)


@pytest.mark.usefixtures("device")
@each_kind
@each_cell
def test_backward_is_fused_and_only_then_differentiable(cell, step):
    """Both backwards are one node each; with create_graph=True the first has a derivative, otherwise none."""
    layer, call, x, hx = prepare(fastrnn, Case(cell, T=3), step)
    y = call(x, hx)[0]
    assert y.grad_fn.name() == "fastrnn::LayerBackward"
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        (plain,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    names = {event.key for event in profile.key_averages()}
    assert "fastrnn::layer_backward" in names and not {"aten::linear", "aten::sigmoid", "aten::tanh"} & names
    assert plain.grad_fn is None
    (differentiable,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert differentiable.grad_fn.name() == "fastrnn::LayerDoubleBackward"
    assert torch.equal(plain, differentiable)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("create_graph", [False, True])
@each_kind
@each_cell
def test_states_computed_from_the_input(cell, step, create_graph):
    """x reaches the result by two ways, and each is counted once, in the first and the second derivative."""
    case = Case(cell, T=3, I=6, H=6, dtype=DOUBLE)

    def solve(library):
        _, call, x, hx = prepare(library, case, step)
        h = (x if step else x.mean(0, keepdim=True)).sin()
        y = call(x, [h * (k + 1) for k in range(len(hx))])[0]
        (dx,) = torch.autograd.grad(y.sin().sum(), x, create_graph=create_graph)
        return (
            {"dx": dx.detach(), "ddx": torch.autograd.grad(dx.sin().sum(), x)[0]}
            if create_graph
            else {"dx": dx}
        )

    assert_close(solve(fastrnn), solve(torch.nn), case)


@pytest.mark.usefixtures("device")
@each_kind
@each_cell
def test_backward_in_eval_mode(cell, step):
    """cuDNN's refuses; fastrnn has no mode but for dropout."""
    case = Case(cell, T=3, L=1 if step else 2, dropout=0.0 if step else 0.5, dtype=DOUBLE)

    def solve(library):
        layer, call, x, hx = prepare(library, case, step)
        layer.eval()
        return evaluate(call, x, hx, dict(layer.named_parameters()), case)

    assert_close(solve(fastrnn), solve(torch.nn), case)


@pytest.mark.usefixtures("device")
@each_kind
@each_cell
def test_anomaly_mode(cell, step):
    """Finds nothing in a sound backward, and names the layer's node where a gradient becomes NaN."""
    case = Case(cell, T=3)
    layer, call, x, hx = prepare(fastrnn, case, step)
    with (
        torch.autograd.detect_anomaly(check_nan=True),
        pytest.warns(UserWarning, match="Error detected in fastrnn::LayerBackward"),
    ):
        call(x, hx)[0].sum().backward()
        assert x.grad.isfinite().all()
        with torch.no_grad():
            next(p for name, p in layer.named_parameters() if "weight_ih" in name)[0, 0] = torch.nan
        y = call(x, hx)[0]
        with pytest.raises(RuntimeError, match="'fastrnn::LayerBackward' returned nan values"):
            torch.nansum(y).backward()


@pytest.mark.usefixtures("device")
@each_kind
@each_cell
def test_save_on_cpu_and_parameter_hooks(cell, step):
    """Hooks of each kind that a parameter has, with what is saved moved to the CPU in between."""
    case = Case(cell, T=3)
    layer, call, x, hx = prepare(fastrnn, case, step)
    want = evaluate(call, x, hx, dict(layer.named_parameters()), case)
    layer, call, x, hx = prepare(fastrnn, case, step)
    seen, done = {}, set()
    for name, p in layer.named_parameters():
        p.register_hook(lambda g, name=name: seen.update({name: g.clone()}) or 2 * g)
        p.register_post_accumulate_grad_hook(lambda p, name=name: done.add(name))
    with torch.autograd.graph.save_on_cpu():
        got = evaluate(call, x, hx, dict(layer.named_parameters()), case)
    assert done == set(seen) == {name for name, _ in layer.named_parameters()}
    for name, gradient in seen.items():
        assert torch.equal(gradient, want[f"d{name}"]) and torch.equal(got[f"d{name}"], 2 * gradient)
    assert torch.equal(got["dx"], want["dx"])


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("form", ["padded", "packed", "batch_first"])
@each_cell
def test_checkpoint_gates(cell, form):
    """The same bits, and nothing is kept but what each layer was given."""
    case = Case(cell, T=5, H=33, L=2, bidirectional=True, form=form, dropout=0.0)
    layer, call, x, hx = case.prepare(fastrnn)
    want = evaluate(call, x, hx, dict(layer.named_parameters()), case)

    def keep(gates):
        layer, call, x, hx = case.prepare(fastrnn)
        layer.checkpoint_gates = gates
        kept = {}

        def pack(t):
            kept[t.data_ptr()] = t
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            values = call(x, hx)
        own = {t.untyped_storage().data_ptr() for t in (x, *hx, *layer.parameters(), *values)}
        new = [t for t in kept.values() if t.untyped_storage().data_ptr() not in own]
        return layer, call, x, hx, sum(t.numel() for t in new)

    *_, plain = keep(False)
    layer, call, x, hx, kept = keep(True)
    x.grad = None
    assert_same_bits(evaluate(call, x, hx, dict(layer.named_parameters()), case), want, "checkpoint_gates")
    hidden = want["output"].numel()  # of the first layer, which the second one is given
    states = sum(h.numel() for h in hx)
    packed = (x.numel() + case.L * case.T) if case.packed else 0  # the data of x and batch_sizes
    assert kept <= hidden + states + packed
    assert kept < plain


@pytest.mark.usefixtures("device")
@each_cell
def test_checkpoint_gates_second_derivative(cell):
    case = Case(cell, T=3, dtype=DOUBLE)

    def solve(library):
        layer, call, x, hx = case.prepare(library)
        layer.checkpoint_gates = True
        (dx,) = torch.autograd.grad(call(x, hx)[0].sin().sum(), x, create_graph=True)
        return {"dx": torch.autograd.grad(dx.sin().sum(), x)[0]}

    assert_close(solve(fastrnn), solve(torch.nn), case)


@pytest.mark.usefixtures("target")
@each_cell
def test_checkpoint(cell):
    """Recomputation in the backward (torch.utils.checkpoint) gives the same bits."""
    from torch.utils.checkpoint import checkpoint

    case = Case(cell, T=5, H=33)
    layer, call, x, hx = case.prepare(fastrnn)
    want = evaluate(call, x, hx, dict(layer.named_parameters()), case)
    layer, call, x, hx = case.prepare(fastrnn)

    def recomputed(x, hx):
        return checkpoint(lambda *t: tuple(call(t[0], list(t[1:]))), x, *hx, use_reentrant=False)

    assert_same_bits(evaluate(recomputed, x, hx, dict(layer.named_parameters()), case), want, "checkpoint")
