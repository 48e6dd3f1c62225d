"""Values and all gradients of layers and cells equal those of torch.nn."""

import itertools

import pytest
import torch
from cases import (
    DTYPES,
    EVERY_CELL,
    FORMS,
    SIZES,
    Case,
    cotangents,
    cover_pairs,
    evaluate,
    give,
    mark_large,
    name_values,
    random,
    various_layers,
)
from tolerance import assert_close

import fastrnn
from fastrnn.reference import CELLS

pytestmark = [
    pytest.mark.usefixtures("target"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),  # of torch.nn
]


def layer_cases():
    """Various layers; for each cell the largest problem in both precisions, and a step of many sequences,
    which the kernels take in parts."""
    for case in various_layers(T=(50, 2, 1), dtype=DTYPES):
        yield case.safe()
    for cell, dtype in itertools.product(EVERY_CELL, DTYPES):
        yield Case(cell, T=50, B=17, I=257, H=257, L=2, bidirectional=True, dtype=dtype).safe()
        for form in ("padded", "batch_first", "packed"):
            P = 5 if cell == "lstm" and form == "packed" else 0
            bidirectional = form != "padded"
            yield Case(
                cell, T=1, B=4500, I=5, H=19, P=P, bidirectional=bidirectional, form=form, dtype=dtype
            ).safe()


def cell_cases():
    rows = cover_pairs(
        H=SIZES,
        I=SIZES,
        B=(3, 17, 1, 0),
        form=("padded", "unbatched"),
        dtype=DTYPES,
        bias=(True, False),
        hx=(True, False),
    )
    for cell in EVERY_CELL:
        yield from (Case(cell, T=1, **row).safe() for row in rows)


LAYER_CASES = list(dict.fromkeys(layer_cases()))
CELL_CASES = list(dict.fromkeys(cell_cases()))
_solved = {}  # by torch.nn, the same for every ISA


@pytest.mark.parametrize("case", mark_large(LAYER_CASES), ids=str)
def test_layer(case):
    if case not in _solved:
        _solved[case] = case.solve(torch.nn)
    assert_close(case.solve(fastrnn), _solved[case], case)


@pytest.mark.parametrize("case", CELL_CASES, ids=str)
def test_cell(case):
    assert_close(case.solve_step(fastrnn), case.solve_step(torch.nn), case)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cell", EVERY_CELL)
@pytest.mark.parametrize("p, L, bidirectional", [(0.5, 2, False), (0.3, 3, True), (1.0, 2, False)])
def test_dropout_draws_the_masks_of_torch(cell, form, p, L, bidirectional, target):
    if target == "cuda":
        pytest.skip("a GPU has a generator of its own, and cuDNN one more")
    case = Case(
        cell, T=4, H=19, L=L, dropout=p, bidirectional=bidirectional, form=form, dtype=torch.float64, seed=3
    )

    def solve(library, training):
        layer = case.build(library).train(training)
        torch.manual_seed(11)
        result = evaluate(case.call(layer), *case.inputs(library), dict(layer.named_parameters()), case)
        return result, torch.get_rng_state()

    trained, evaluated = solve(fastrnn, True), solve(fastrnn, False)
    for (got, got_state), training in ((trained, True), (evaluated, False)):
        want, want_state = solve(torch.nn, training)
        assert_close(got, want, case)
        assert torch.equal(got_state, want_state), "the generator is left in another state than by torch.nn"
    assert not torch.equal(trained[0]["output"], evaluated[0]["output"]), "dropout did nothing"


def numbers(*shape, device):
    return random(*shape, seed=1, dtype=torch.float64, scale=0.3).to(device)


def transposed(*shape, device):
    return numbers(*reversed(shape), device=device).permute(*reversed(range(len(shape))))


def every_second(*shape, device):
    return numbers(*(2 * n for n in shape), device=device)[(slice(None, None, 2),) * len(shape)]


def expanded(*shape, device):
    return numbers(*shape[:-1], 1, device=device).expand(shape)


def expanded_rows(*shape, device):
    return numbers(1, *shape[1:], device=device).expand(shape)


def misaligned(*shape, device):
    return numbers(torch.Size(shape).numel() + 1, device=device)[1:].view(shape)


def one_number(*shape, device):  # the gradient that .sum() gives
    return torch.tensor(0.25, dtype=torch.float64, device=device).expand(shape)


LAYOUTS = (transposed, every_second, expanded, expanded_rows, misaligned, one_number)


@pytest.mark.parametrize("what", ["x", "hx", "weights", "gradients"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_strides(cell, layout, what):
    """Views of all kinds, as input, states, weights and gradients of the results."""
    case = Case(cell, T=4, B=5, I=6, H=19, bidirectional=True, dtype=torch.float64)

    def lay(tensor):  # of this layout, around the size of `tensor`
        return layout(*tensor.shape, device=tensor.device).requires_grad_()

    def solve(library):
        layer = case.build(library)
        weights = dict(layer.named_parameters())
        x, hx = case.inputs(library)
        if what == "x":
            x = lay(x)
        if what == "hx":
            hx = [lay(h) for h in hx]
        if what == "weights":
            weights = {name: lay(w) for name, w in weights.items()}
        output, states = torch.func.functional_call(layer, weights, (x, give(hx)))
        values = [output, *(states if isinstance(states, tuple) else (states,))]
        leaves = {"x": x, **{f"h{k}": h for k, h in enumerate(hx)}, **weights}
        outer = (
            [layout(*v.shape, device=v.device) for v in values] if what == "gradients" else cotangents(values)
        )
        gradients = torch.autograd.grad(values, list(leaves.values()), outer)
        return name_values(values) | {f"d{n}": g for n, g in zip(leaves, gradients, strict=True)}

    assert_close(solve(fastrnn), solve(torch.nn), case)


LEAVES = ("x", "h_0", "c_0", "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


@pytest.mark.parametrize("step", [False, True], ids=["layer", "cell"])
@pytest.mark.parametrize("leaf", LEAVES)
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "all-but"])
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_requires_grad(cell, leaf, alone, step):
    """Any leaf may be the only one, or the only one not, to require a gradient."""
    case = Case(cell, T=3, B=4, I=5, H=19, P=3 if cell == "lstm" and not step else 0, dtype=torch.float64)
    if leaf == "c_0" and case.row.states == 1:
        leaf = "weight_hh_l0"
    leaf = leaf.replace("_l0", "") if step else leaf

    def solve(library):
        layer, call, x, hx = case.prepare_step(library) if step else case.prepare(library)
        leaves = {"x": x, **{f"{s}_0": h for s, h in zip("hc", hx, strict=False)}}
        for name, tensor in (leaves | dict(layer.named_parameters())).items():
            tensor.requires_grad_((name == leaf) == alone)
        return evaluate(call, x, hx, dict(layer.named_parameters()), case)

    want = solve(torch.nn)
    assert (want[f"d{leaf}"] is None) != alone
    assert_close(solve(fastrnn), want, case)


def parts_of_the_results():
    for cell in EVERY_CELL:
        row = CELLS[cell]
        for step, count in ((False, 1 + row.states), (True, row.states)):
            for used in itertools.chain.from_iterable(
                itertools.combinations(range(count), n) for n in range(1, count)
            ):
                yield pytest.param(cell, step, used, id=f"{cell}-{'cell' if step else 'layer'}-{used}")


@pytest.mark.parametrize("cell, step, used", list(parts_of_the_results()))
def test_part_of_the_results(cell, step, used):
    """Only some of output, h_n and c_n reach the loss."""
    case = Case(cell, T=3, B=4, I=5, H=19, L=1 if step else 2, dtype=torch.float64)

    def solve(library):
        layer, call, x, hx = case.prepare_step(library) if step else case.prepare(library)
        values = call(x, hx)[1 if step else 0 :]
        torch.autograd.backward([values[k] for k in used], cotangents(values[k] for k in used))
        return {"dx": x.grad, "dh_0": hx[0].grad, "dc_0": hx[-1].grad} | {
            f"d{name}": p.grad for name, p in layer.named_parameters()
        }

    assert_close(solve(fastrnn), solve(torch.nn), case)


@pytest.mark.parametrize("cell", EVERY_CELL)
def test_lengths_of_a_packed_sequence(cell):
    """All equal, all different, one long among many of length 1, a single sequence, a single step."""
    for lengths in ([4, 4, 4], [5, 4, 3, 2, 1], [50] + [1] * 20, [6], [1, 1, 1]):
        case = Case(cell, T=lengths[0], B=len(lengths), H=19, L=2, bidirectional=True, form="packed")
        case = case.but(dtype=torch.float64)
        case.__dict__["lengths"] = torch.tensor(lengths)  # what the cached property holds
        assert_close(case.solve(fastrnn), case.solve(torch.nn), case)
