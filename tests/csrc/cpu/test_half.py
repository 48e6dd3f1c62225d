"""bfloat16 and, on a GPU, float16: right, no less accurate than torch.nn's, NaN goes through.

Weights, inputs and outputs are 16 bits wide; sums, activations and states are float32. So what is rounded on
the way is the hidden state once a step and the gates' gradients once a step, and errors are a few roundings,
not one for each addition. They are measured against the float64 reference, given the same numbers.
"""

import functools

import pytest
import torch
from cases import EVERY_CELL, Case, mark_large, various_layers
from devices import CUDA, ISAS, use_device, use_isa
from tolerance import assert_few_roundings, measure, unit_roundoff

import fastrnn

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

BF16, FP16 = torch.bfloat16, torch.float16


@pytest.fixture(
    params=[
        *(pytest.param((use_isa, isa, BF16), id=f"{isa}-bfloat16") for isa in ISAS),
        *(
            pytest.param((use_device, *param.values, dtype), marks=param.marks, id=f"cuda-{str(dtype)[6:]}")
            for param in CUDA
            for dtype in (BF16, FP16)
        ),
    ]
)
def dtype(request):
    """Run the test in bfloat16 on every instruction set and the GPU, and in float16 on the GPU."""
    use, name, dtype = request.param
    for _ in use(name):
        yield dtype


def layer_cases():
    """Various layers, and enough work for two threads, shared by batch and by units."""
    cases = [*various_layers(T=(20, 2, 1))]
    for cell in EVERY_CELL:
        cases.append(Case(cell, T=12, B=49, I=33, H=150, P=7 if cell == "lstm" else 0))
        cases.append(Case(cell, T=12, B=5, I=257, H=257, bidirectional=True))
        cases.append(Case(cell, T=1, B=4500, I=5, H=19, bidirectional=True))  # in parts
    # Integers for relu: its derivative jumps at a sum of 0, which a rounding could move to either side.
    return [case.but(exact=case.cell == "rnn_relu") for case in cases]


@functools.cache
def truth(case):
    return case.solve_exactly()


@pytest.mark.parametrize("case", mark_large(dict.fromkeys(layer_cases())), ids=str)
def test_layer(case, dtype):
    if dtype == FP16 and case.exact and case.T > 2:
        pytest.skip("sums of so many integers go beyond float16")
    case = case.but(dtype=dtype)
    assert_few_roundings(case.solve(fastrnn), truth(case), case)


ACCURACY_CASES = [
    Case(cell, **sizes)
    for cell in ("lstm", "gru", "rnn_tanh")
    for sizes in (
        dict(T=50, B=1, I=64, H=64),
        dict(T=20, B=17, I=33, H=150),
        dict(T=8, B=3, I=16, H=257, form="unsorted"),
        dict(T=10, B=5, I=33, H=33, L=2, bidirectional=True),
        dict(T=20, B=64, I=16, H=32),
    )
]
SEEDS = range(4)


@functools.cache
def solved_by_torch(case):
    return case.solve(torch.nn)


@pytest.mark.parametrize("case", ACCURACY_CASES, ids=str)
def test_error_at_most_that_of_torch(case, dtype):
    """Root mean square over the seeds, of each result. What is rounded correctly has errors of some u, and
    torch.nn can be luckier at that, so a quarter of u of the size is allowed on top of torch.nn's error."""
    cases, U = [case.but(seed=seed, dtype=dtype) for seed in SEEDS], unit_roundoff(dtype)
    ours, theirs = [c.solve(fastrnn) for c in cases], [solved_by_torch(c) for c in cases]
    truths = [truth(c) for c in cases]
    complaints = []
    for name in truths[0]:
        our, _, size, _ = measure(ours, truths, name)
        their, _, _, _ = measure(theirs, truths, name)
        if not our <= their + 0.25 * U * size:
            complaints.append(f"{name}: {our / size / U:.2f} u, torch.nn {their / size / U:.2f} u")
    assert not complaints, f"{case}\n" + "\n".join(complaints)


@pytest.mark.parametrize("place", ["x", "h_0", "weight_ih_l0"])
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_nan_goes_through(cell, place, dtype):
    """NaN in the very places where float32 has it; an odd input size, so that pairs have a tail."""
    case = Case(cell, T=4, B=3, I=7, H=33, dtype=dtype)
    layer, call, x, hx = case.prepare(fastrnn)
    with torch.no_grad():
        {"x": x, "h_0": hx[0], "weight_ih_l0": layer.weight_ih_l0}[place].view(-1)[-1] = float("nan")
        got = call(x, hx)
        want = call_in_float32(case, layer, x, hx)
    for result, expected in zip(got, want, strict=True):
        assert torch.equal(result.isnan(), expected.isnan())
        assert expected.isnan().any()


def call_in_float32(case, layer, x, hx):
    wide = case.but(dtype=torch.float32).build(fastrnn)
    wide.load_state_dict(layer.state_dict())
    return case.call(wide)(x.float(), [h.float() for h in hx])


@pytest.mark.parametrize("cell", EVERY_CELL)
def test_cell(cell, dtype):
    case, U = Case(cell, T=1, B=5, I=33, H=65, dtype=dtype), unit_roundoff(dtype)
    module, call, x, hx = case.prepare_step(fastrnn)
    got = call(x, hx)
    with torch.no_grad():
        weights = [w.double() for w in (module.weight_ih, module.weight_hh, module.bias_ih, module.bias_hh)]
        want = case.row.step(x.double(), tuple(h.double() for h in hx), *weights)
    for result, expected in zip(got[1:], want, strict=True):
        assert result.dtype == dtype
        assert (result.double() - expected).norm() <= 2 * U * expected.norm()
