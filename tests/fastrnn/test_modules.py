"""Modules are torch.nn's in all but the computation, and compute with the weights they have at the moment."""

import copy
import pickle
import random
import weakref

import pytest
import torch
from cases import EVERY_CELL, FORMS, Case, device_of, evaluate, give, judged_there, take
from tolerance import assert_close, assert_same_bits, on_cpu
from torch.nn import Parameter
from torch.nn.utils import parametrizations, weight_norm
from torch.utils._pytree import tree_leaves

import fastrnn
from fastrnn.reference import CELLS

DOUBLE = torch.float64
CONFIGURATIONS = [
    Case(cell, **changes)
    for cell in EVERY_CELL
    for changes in (
        dict(),
        dict(L=3, bidirectional=True, dropout=0.25, form="batch_first"),
        dict(bias=False, dtype=DOUBLE),
        *([dict(P=5, L=2)] if CELLS[cell].projection else []),
    )
]


def build_pair(case, step=False):
    """torch.nn's module and fastrnn's."""
    build = (lambda library: case.prepare_step(library)[0]) if step else case.build
    return build(torch.nn), build(fastrnn)


def library_of(module):
    return fastrnn if type(module).__module__.startswith("fastrnn") else torch.nn


def run(module, case, step=False):
    """Values and gradients that a module gives for the inputs of the case."""
    x, hx = case.inputs(library_of(module))
    module.zero_grad()
    if not step:
        return evaluate(case.call(module), x, hx, dict(module.named_parameters()), case)
    x, hx = x[0].detach().requires_grad_(), [h[0].detach().requires_grad_() for h in hx]

    def call(x, hx):
        state = take(module(x, give(hx)))
        return [state[0], *state]

    return evaluate(call, x, hx, dict(module.named_parameters()), case)


each_module = pytest.mark.parametrize(
    "case, step", [(c, False) for c in CONFIGURATIONS] + [(Case(c, T=1), True) for c in EVERY_CELL], ids=str
)
each_kind = pytest.mark.parametrize("step", [False, True], ids=["layer", "cell"])
each_cell = pytest.mark.parametrize("cell", EVERY_CELL)


# ---- what a module is ----


@each_module
def test_same_seed_same_parameters(case, step):
    theirs, ours = build_pair(case, step)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    assert_same_bits(dict(ours.named_parameters()), dict(theirs.named_parameters()), str(case))


@each_module
def test_class_repr_and_flags(case, step):
    theirs, ours = build_pair(case, step)
    assert type(ours) is getattr(fastrnn, type(theirs).__name__)
    assert isinstance(ours, type(theirs))
    assert repr(ours) == repr(theirs)
    assert ours.training and not ours.eval().training and ours.train().training
    for name in ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "mode"):
        assert getattr(ours, name, None) == getattr(theirs, name, None)


@each_module
def test_state_dict_both_ways(case, step):
    theirs, ours = build_pair(case, step)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    with torch.no_grad():
        for p in (*theirs.parameters(), *ours.parameters()):
            p.normal_(std=0.3)
    trained = {name: t.clone() for name, t in ours.state_dict().items()}
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert_same_bits(ours.state_dict(), theirs.state_dict(), "from torch.nn")
    theirs.load_state_dict(trained, strict=True)
    assert_same_bits(theirs.state_dict(), trained, "to torch.nn")


@each_module
@pytest.mark.parametrize("how", ["pickle", "deepcopy", "save"])
def test_copies(case, step, how, tmp_path):
    _, ours = build_pair(case.but(dropout=0.0), step)
    want = run(ours, case, step)  # before the copy, so that whatever a call leaves behind is copied too
    if how == "pickle":
        copied = pickle.loads(pickle.dumps(ours))
    elif how == "deepcopy":
        copied = copy.deepcopy(ours)
    else:
        torch.save(ours, tmp_path / "module.pt")
        copied = torch.load(tmp_path / "module.pt", weights_only=False)
    assert type(copied) is type(ours)
    assert not {p.data_ptr() for p in copied.parameters()} & {p.data_ptr() for p in ours.parameters()}
    assert_same_bits(run(copied, case, step), want, how)
    with torch.no_grad():
        for p in ours.parameters():
            p.zero_()
    assert_same_bits(run(copied, case, step), want, f"{how}, after the original has changed")


@each_cell
@each_kind
def test_dtype_changes(cell, step):
    """.double() and .to() give what torch.nn gives; the flat list of weights follows."""
    case = Case(cell, T=1 if step else 4, L=1 if step else 2, dtype=torch.float32)
    for change in (lambda m: m.double(), lambda m: m.to(DOUBLE), lambda m: m.to("cpu", DOUBLE)):
        theirs, ours = (change(m) for m in build_pair(case, step))
        assert {p.dtype for p in ours.parameters()} == {DOUBLE}
        wide = case.but(dtype=DOUBLE)
        assert_close(run(ours, wide, step), run(theirs, wide, step), wide)
        back = case.safe()
        assert_close(run(ours.float(), back, step), run(theirs.float(), back, step), case.but(exact=False))


# ---- the weights of the moment ----


def write_data(module):
    for p in module.parameters():
        p.data.mul_(-0.5)


def replace_data(module):
    for p in module.parameters():
        p.data = p.data.flip(0) * 0.5


def load(module):
    module.load_state_dict({name: 0.7 * t.flip(0) for name, t in module.state_dict().items()})


def write_in_place(module):
    with torch.no_grad():
        for k, p in enumerate(module.parameters()):
            p.add_(0.01 * (k + 1))


def step_optimizer(module):
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    for p in module.parameters():
        p.grad = torch.full_like(p, 0.1)
    optimizer.step()


def step_fused_optimizer(module):
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, foreach=True)
    for p in module.parameters():
        p.grad = torch.full_like(p, 0.1)
    optimizer.step()


def replace_parameters(module):
    for name, p in list(module.named_parameters()):
        setattr(module, name, Parameter(p.detach() * -0.25))


def write_through_numpy(module):
    for p in module.parameters():
        if p.is_cuda:
            pytest.skip("numpy is on the CPU")
        p.detach().numpy()[...] *= -0.5


WRITES = [
    write_data,
    replace_data,
    load,
    write_in_place,
    step_optimizer,
    step_fused_optimizer,
    replace_parameters,
    write_through_numpy,
]


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("write", WRITES, ids=lambda f: f.__name__)
@each_kind
@each_cell
def test_next_call_sees_a_write(cell, step, write):
    case = Case(cell, T=1 if step else 6, B=9, H=33, L=1 if step else 2, dtype=DOUBLE)
    theirs, ours = build_pair(case, step)
    before = run(ours, case, step)
    with torch.no_grad():
        run_without = ours(*args_of(case, step))
    write(theirs)
    write(ours)
    after = run(ours, case, step)
    assert not torch.equal(before["output"], after["output"]), "the write changed nothing"
    assert_close(after, run(theirs, case, step), case)
    with torch.no_grad():
        again = ours(*args_of(case, step))
    assert not torch.equal(first_of(run_without), first_of(again)), "not seen without autograd"
    assert_same_bits(
        {"h": first_of(again)}, {"h": first_of(ours(*args_of(case, step))).detach()}, "without autograd"
    )


def first_of(result):
    return result if isinstance(result, torch.Tensor) else result[0]


def args_of(case, step):
    """For fastrnn."""
    x, hx = case.inputs(fastrnn)
    if step:
        x, hx = x[0], [h[0] for h in hx]
    return x, give(hx)


# ---- the flat list of weights, and methods, that torch.nn looks at in each call ----


def value_for(layer, name, k):
    p = getattr(layer, name)
    return 0.3 * torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(k)).to(p.device)


def set_tensor(layer, name, k):
    value = value_for(layer, name, k)
    layer._parameters.pop(name, None)
    setattr(layer, name, value)


def register_again(layer, name, k):
    value = value_for(layer, name, k)
    delattr(layer, name)
    layer.register_parameter(name, Parameter(value))


def replace_in_dict(layer, name, k):
    if name in layer._parameters:
        layer._parameters[name] = Parameter(value_for(layer, name, k))


def load_by_assignment(layer, name, k):
    layer.load_state_dict({n: value_for(layer, n, k) for n in layer.state_dict()}, assign=True)


def set_list(layer, name, k):
    layer._flat_weights = [value_for(layer, n, k + i) for i, n in enumerate(layer._flat_weights_names)]


def halve_list(layer, name, k):
    layer._flat_weights = [w.detach() * 0.5 for w in layer._flat_weights]


def set_item(layer, name, k):
    layer._flat_weights[layer._flat_weights_names.index(name)] = value_for(layer, name, k)


def there_and_back(layer, name, k):
    layer.double().float()


def copied(layer, name, k):
    return copy.deepcopy(layer)


def pass_weights(layer, name, k):
    given = {n: value_for(layer, n, k) for n in layer._parameters}
    return layer, torch.func.functional_call(layer, given, (input_of(layer),))[0]


def pass_computed_weights(layer, name, k):
    given = {n: value_for(layer, n, k).requires_grad_() * 2 for n in layer._parameters}
    return layer, torch.func.functional_call(layer, given, (input_of(layer),))[0]


def call_layer(layer, name, k):
    return layer, layer(input_of(layer))[0]


def input_of(layer):
    return torch.linspace(-1, 1, 24).view(3, 2, 4).to(next(iter(layer._flat_weights)).device)


CHANGES = [
    lambda layer, name, k: setattr(layer, name, Parameter(value_for(layer, name, k))),
    set_tensor,
    register_again,
    replace_in_dict,
    load_by_assignment,
    set_list,
    halve_list,
    set_item,
    there_and_back,
    copied,
    pass_weights,
    pass_computed_weights,
    call_layer,
    call_layer,
    call_layer,
]


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("converted", [False, True], ids=["built", "converted"])
@each_cell
def test_flat_weights_as_in_torch(cell, converted, thorough):
    """Whatever sequence of changes: the next call computes with the weights that torch.nn computes with."""
    case = Case(cell, I=4, H=6, L=1)

    def solve(library, changes):
        layer, outputs = case.build(library), []
        for step, (change, which, k) in enumerate([*changes, (call_layer, 0, 0)]):
            if converted and library is fastrnn:
                (fastrnn.convert if step % 3 else fastrnn.revert)(layer)
            try:
                changed = change(layer, layer._flat_weights_names[which], k)
            except RuntimeError:  # a copy of what is no leaf
                continue
            if isinstance(changed, tuple):
                outputs.append(changed[1].detach().cpu())
            layer = changed if isinstance(changed, torch.nn.Module) else layer
        return outputs

    draw = random.Random(cell)
    for _ in range(150 if thorough else 30):
        changes = [
            (draw.choice(CHANGES), draw.randrange(4), draw.randrange(1000))
            for _ in range(draw.randrange(2, 9))
        ]
        got, want = solve(fastrnn, changes), solve(torch.nn, changes)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda m, c=changes: f"{c}: {m}")


@pytest.mark.usefixtures("target")
@each_cell
def test_flat_weights_get_the_gradients(cell):
    layer, call, x, hx = Case(cell, T=4, L=2).prepare(fastrnn)
    layer._flat_weights = [w.detach().requires_grad_() for w in layer._flat_weights]
    sum(v.sum() for v in call(x, hx)).backward()
    assert all(w.grad is not None for w in layer._flat_weights)
    assert all(p.grad is None for p in layer.parameters())


@each_cell
def test_computed_weights_are_not_kept(cell):
    """What functional_call is given goes when the call's results go."""
    layer = Case(cell, L=1, I=4, H=6).build(fastrnn)
    given = {name: p.detach().requires_grad_() * 2 for name, p in layer.named_parameters()}
    gone = [weakref.ref(w) for w in given.values()]
    torch.func.functional_call(layer, given, (input_of(layer),))
    del given
    assert all(ref() is None for ref in gone)


@each_cell
def test_flat_weights_when_compiled(cell):
    layer = Case(cell, L=1, I=4, H=6).build(fastrnn)
    x = input_of(layer)
    before = layer(x)[0]
    layer._flat_weights = [w.detach() * 0.5 for w in layer._flat_weights]
    want = layer(x)[0]
    torch._dynamo.reset()  # its limit of compilations
    with torch._dynamo.config.patch(allow_rnn=True):
        got = torch.compile(layer, backend="eager", fullgraph=True)(x)[0]
    assert torch.equal(got, want) and not torch.equal(got, before)


def shapes_of(value):
    return [tuple(v.shape) if isinstance(v, torch.Tensor) else v for v in value]


def with_methods(layer, seen):
    """A subclass of the layer's class that notes and changes what torch.nn's forward asks it."""

    class Mine(layer):
        def permute_hidden(self, hx, permutation):
            seen.append(("permute", permutation is None))
            return give([0.5 * h for h in take(super().permute_hidden(hx, permutation))])

        def check_input(self, input, batch_sizes):
            seen.append(("input", tuple(input.shape), batch_sizes is None))
            super().check_input(input, batch_sizes)

        def check_hidden_size(self, hx, expected, msg="{} {}"):
            seen.append(("hidden", *shapes_of([hx]), tuple(expected)))
            super().check_hidden_size(hx, expected, msg)

    return Mine


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("with_hx", [True, False], ids=["hx", "zeros"])
@pytest.mark.parametrize("form", FORMS)
@each_cell
def test_own_methods(cell, form, with_hx):
    """Methods that torch.nn's forward calls are called where a subclass has its own."""
    case = Case(cell, T=4, L=2, bidirectional=True, form=form, P=3 if cell == "lstm" else 0, dtype=DOUBLE)

    def solve(library):
        seen, (x, hx) = [], case.inputs(library)
        layer = case.build(library)
        layer.__class__ = with_methods(type(layer), seen)
        result = evaluate(case.call(layer), x, hx if with_hx else None, dict(layer.named_parameters()), case)
        return result, sorted(map(str, seen))

    (got, seen), (want, expected) = solve(fastrnn), solve(torch.nn)
    assert_close(got, want, case)
    assert seen == expected


@pytest.mark.parametrize("converted", [False, True], ids=["built", "converted"])
@each_cell
def test_own_method_of_an_object(cell, converted):
    case = Case(cell, T=4, L=2)

    def solve(library, convert=False):
        layer, call, x, hx = case.prepare(torch.nn if convert else library)
        layer.permute_hidden = lambda hx, permutation: give([0.5 * h for h in take(hx)])
        layer = fastrnn.convert(layer) if convert else layer
        assert type(layer) is getattr(library, case.row.layer.__name__)
        return evaluate(call, x, hx, dict(layer.named_parameters()), case)

    assert_close(solve(fastrnn, converted), solve(torch.nn), case)


@pytest.mark.parametrize("form", ["padded", "unbatched", "unsorted"])
@each_cell
def test_own_methods_and_more(cell, form):
    """They are called around what torch.nn has not, too; here they change nothing."""
    case = Case(cell, T=4, L=2, form=form)
    layer, (x, hx) = case.build(fastrnn), case.inputs(fastrnn)
    own = copy.deepcopy(layer)
    own.check_forward_args = lambda *args: seen.append(args)
    seen = []
    for options in [
        dict(return_all_states=True),
        *([dict(lengths=[2] * case.B)] if form == "padded" else []),
    ]:
        got, want = own(case.pack(x), give(hx), **options), layer(case.pack(x), give(hx), **options)
        for a, b in zip(tree_leaves(got), tree_leaves(want), strict=True):
            assert type(a) is type(b)
            assert all(map(torch.equal, a, b))
    assert len(seen) > 0 or form == "unsorted"
    if form == "unbatched":
        with pytest.raises(RuntimeError, match="lengths: expected a padded input"):
            own(x, give(hx), lengths=[2])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
@each_cell
def test_own_methods_are_refused_by_torchscript(cell):
    layer = Case(cell).build(fastrnn)
    torch.jit.script(copy.deepcopy(layer))
    layer.__class__ = with_methods(type(layer), [])
    with pytest.raises(RuntimeError, match="_script_rows"):
        torch.jit.script(layer)


# ---- weights shared, computed, passed ----


@pytest.mark.usefixtures("target")
@each_cell
def test_module_used_twice(cell):
    """One module twice in a model: its gradients add up."""
    case = Case(cell, T=4, I=9, H=9, L=2, dtype=DOUBLE)

    def solve(library):
        layer, _, x, hx = case.prepare(library)

        def twice(x, hx):
            y, state = layer(x, give(hx))
            y, state = layer(y, state)
            return [y, *take(state)]

        return evaluate(twice, x, hx, dict(layer.named_parameters()), case)

    assert_close(solve(fastrnn), solve(torch.nn), case)


@pytest.mark.usefixtures("target")
@each_cell
def test_tied_weights(cell):
    """One Parameter at several places of a module."""
    case = Case(cell, T=4, I=9, H=9, L=2, dtype=DOUBLE)

    def solve(library):
        layer = case.build(library)
        for name in ("weight_ih", "weight_hh", "bias_hh"):
            setattr(layer, f"{name}_l1", getattr(layer, f"{name}_l0"))
        layer.weight_hh_l0 = layer.weight_hh_l1 = layer.weight_ih_l0  # H = I: the same shape
        layer.bias_ih_l1 = layer.bias_hh_l1
        x, hx = case.inputs(library)
        return evaluate(case.call(layer), x, hx, dict(layer.named_parameters()), case)

    want = solve(torch.nn)
    assert len([name for name in want if name.startswith("dweight")]) == 1
    assert_close(solve(fastrnn), want, case)


@pytest.mark.usefixtures("target")
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("names", [["weight_hh_l0"], ["weight_ih_l0", "weight_hh_l1", "bias_ih_l0"]], ids=str)
@pytest.mark.parametrize("norm", [weight_norm, parametrizations.weight_norm], ids=["hook", "parametrization"])
@each_cell
def test_weight_norm(cell, norm, names):
    case = Case(cell, T=4, L=2, dtype=DOUBLE)

    def solve(library):
        layer = case.build(library)
        for name in names:
            norm(layer, name, dim=0)
        x, hx = case.inputs(library)
        first = evaluate(case.call(layer), x, hx, dict(layer.named_parameters()), case)
        torch.optim.SGD(layer.parameters(), lr=0.1).step()
        layer.zero_grad()
        second = evaluate(case.call(layer), *case.inputs(library), dict(layer.named_parameters()), case)
        assert not torch.equal(first["output"], second["output"])
        return second

    with judged_there():
        # The gradient with respect to a direction is a difference, which has the rounding errors of both
        # numbers.
        assert_close(solve(fastrnn), solve(torch.nn), case, u=2**-51)


@pytest.mark.usefixtures("target")
@each_cell
def test_functional_call(cell):
    """Weights passed from outside are used, get the gradients, and leave the module as it was."""
    case = Case(cell, T=4, L=2, dtype=DOUBLE)

    def solve(library):
        layer = case.build(library)
        own = {name: p.detach().clone() for name, p in layer.named_parameters()}
        given = {name: (0.5 * p.detach().flip(0)).requires_grad_() for name, p in layer.named_parameters()}
        x, hx = case.inputs(library)

        def call(x, hx):
            y, state = torch.func.functional_call(layer, given, (x, give(hx)))
            return [y, *take(state)]

        result = evaluate(call, x, hx, given, case)
        assert all(p.grad is None for p in layer.parameters())
        assert_same_bits(dict(layer.named_parameters()), own, "the module's own parameters")
        return result

    assert_close(solve(fastrnn), solve(torch.nn), case)


@pytest.mark.usefixtures("target")
@each_cell
def test_training_follows_torch(cell):
    """A few steps of Adam with clipped gradients and a carried state end at the same weights."""
    case = Case(cell, T=6, B=4, I=5, H=19, L=2, dtype=DOUBLE)

    def train(library):
        layer = case.build(library)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
        x, _ = case.inputs(library)
        state = None
        for k in range(5):
            y, state = layer(x.detach() + 0.1 * k, state)
            y.square().mean().backward()
            torch.nn.utils.clip_grad_norm_(layer.parameters(), 0.05)
            optimizer.step()
            optimizer.zero_grad()
            state = state.detach() if isinstance(state, torch.Tensor) else tuple(s.detach() for s in state)
        return {name: p.detach() for name, p in layer.named_parameters()}

    got, want = on_cpu(train(fastrnn)), on_cpu(train(torch.nn))
    # Adam divides by the gradient's own size, so differences of 1e-13 in it are differences of 1e-13 * lr
    # here
    for name in want:
        torch.testing.assert_close(
            got[name], want[name], rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("name, value", [("hidden_size", 7), ("input_size", 9)])
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_sizes_changed_afterwards(cell, name, value):
    """torch.nn's layers compare them with what they are given: an error, not something else in silence."""
    for convert in (False, True):
        case = Case(cell, I=5, H=6)
        theirs, ours = case.build(torch.nn), case.build(torch.nn if convert else fastrnn)
        setattr(theirs, name, value)
        setattr(ours, name, value)
        ours = fastrnn.convert(ours) if convert else ours
        x, hx = case.inputs()
        with pytest.raises(RuntimeError) as expected:
            theirs(x, give(hx))
        with pytest.raises(RuntimeError) as error:
            ours(x.to(device_of(fastrnn)), give([h.to(device_of(fastrnn)) for h in hx]))
        assert str(error.value) == str(expected.value)


@pytest.mark.parametrize("cell", EVERY_CELL)
def test_hidden_size_of_a_cell_changed_afterwards(cell):
    module, _, x, _ = Case(cell, T=1, H=6).prepare_step(fastrnn)
    module.hidden_size = 7
    with pytest.raises(RuntimeError, match="hidden0 has inconsistent hidden_size: got 7, expected 6"):
        module(x)


@pytest.mark.parametrize("cell", EVERY_CELL)
def test_replica_without_its_weights(cell):
    """Runs on the list of weights that it has copied, as torch.nn's."""
    layer, call, x, hx = Case(cell).prepare(fastrnn)
    want = call(x, hx)
    replica = Case(cell).call(layer._replicate_for_data_parallel())
    for a, b in zip(replica(x, hx), want, strict=True):
        assert torch.equal(a, b)
