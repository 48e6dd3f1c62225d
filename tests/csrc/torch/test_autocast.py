"""torch.autocast: float32 is cast to bfloat16, float64 is not, gradients arrive in the dtype
of the leaves.

Every layer and cell gives its results in the dtype of the region, packed or not. What torch.nn's give follows
from the operations they are made of: float32 (GRU, GRUCell, LSTMCell, LSTM with a packed input) or bfloat16
(RNN, RNNCell, LSTM with a padded one).
"""

import pytest
import torch
from cases import (
    EVERY_CELL,
    Case,
    cotangents,
    device_of,
    give,
    name_values,
    skip_unless_torch_has_autocast_lstm,
    take,
)
from tolerance import assert_same_bits

import fastrnn

BF16 = torch.bfloat16
each_kind = pytest.mark.parametrize("step", [False, True], ids=["layer", "cell"])
each_cell = pytest.mark.parametrize("cell", EVERY_CELL)
every_device = pytest.mark.usefixtures("device")
ROOM = dict(rtol=0, atol=8 * torch.finfo(BF16).eps)


def region(library=fastrnn, **options):
    return torch.autocast(device_of(library), BF16, **options)


def prepare(case, step, library=fastrnn):
    return case.prepare_step(library) if step else case.prepare(library)


def evaluate(layer, call, x, hx, context):
    """Results, and the gradients of all that goes in, of a forward in `context`."""
    with context:
        values = call(x, hx)
    leaves = {
        "x": x,
        **{f"{s}_0": h for s, h in zip("hc", hx, strict=False)},
        **dict(layer.named_parameters()),
    }
    gradients = torch.autograd.grad(values, list(leaves.values()), cotangents(values))
    return name_values(values), dict(zip(leaves, gradients, strict=True))


@every_device
def test_dtypes_are_those_of_torch_lstm():
    skip_unless_torch_has_autocast_lstm()
    case = Case("lstm", L=2, bidirectional=True)

    def dtypes(library):
        layer, call, x, hx = case.prepare(library)
        with region(library):
            return [t.dtype for t in (*call(x, hx), *call(x, None))]

    assert dtypes(fastrnn) == dtypes(torch.nn) == [BF16] * 6


@every_device
@each_cell
def test_packed_input_has_the_dtype_of_the_region(cell):
    case = Case(cell, form="packed", L=2)
    layer, call, x, hx = case.prepare(fastrnn)
    with region():
        values = [*call(x, hx), *call(x, None), *call(x.to(BF16), hx)]
    assert {v.dtype for v in values} == {BF16}


@pytest.mark.usefixtures("target")
@each_kind
@each_cell
def test_values_and_gradients(cell, step):
    """Close to those of float32; results are bfloat16, gradients float32."""
    case = Case(cell, T=1 if step else 5, L=1 if step else 2)
    layer, call, x, hx = prepare(case, step)
    want_values, want_gradients = evaluate(layer, call, x, hx, region(enabled=False))
    values, gradients = evaluate(layer, call, x, hx, region())
    for name, value in values.items():
        assert value.dtype == BF16, name
        torch.testing.assert_close(value.float(), want_values[name], **ROOM)
    for name, gradient in gradients.items():
        want = want_gradients[name]
        assert gradient.dtype == torch.float32, name
        error = (gradient - want).norm() / want.norm()
        assert error < 8 * torch.finfo(BF16).eps, name


@every_device
@each_kind
@each_cell
def test_same_as_casting_by_hand(cell, step):
    case = Case(cell, T=1 if step else 5)
    layer, call, x, hx = prepare(case, step)
    with torch.no_grad():
        with region():
            got = name_values(call(x, hx))
        layer.to(BF16)
        assert_same_bits(got, name_values(call(x.to(BF16), [h.to(BF16) for h in hx])), "autocast")


@every_device
@pytest.mark.parametrize("form", ["batch_first", "packed", "unsorted", "unbatched"])
@each_cell
def test_forms_of_input(cell, form):
    layer, call, x, hx = Case(cell, form=form, bidirectional=True).prepare(fastrnn)
    with torch.no_grad():
        want = name_values(call(x, hx))
        with region():
            got = name_values(call(x, hx))
    for name, value in got.items():
        assert value.dtype == BF16, name
        torch.testing.assert_close(value.float(), want[name], **ROOM)


@every_device
@each_kind
@each_cell
def test_dtypes_may_be_mixed(cell, step):
    """bfloat16 from an operation before, float32 weights, a state of either dtype: all are cast."""
    case = Case(cell, T=1 if step else 5)
    layer, call, x, hx = prepare(case, step)
    with region():
        for dtypes in ((BF16, torch.float32), (torch.float32, BF16)):
            values = call(x.to(dtypes[0]), [h.to(dtypes[1]) for h in hx])
            assert all(v.dtype == BF16 for v in values)


@every_device
@each_kind
@each_cell
def test_float64_is_left_alone(cell, step):
    case = Case(cell, T=1 if step else 5, dtype=torch.float64)
    layer, call, x, hx = prepare(case, step)
    want = evaluate(layer, call, x, hx, region(enabled=False))
    got = evaluate(layer, call, x, hx, region())
    for a, b in zip(got, want, strict=True):
        assert_same_bits(a, b, "float64")


@every_device
@each_kind
@each_cell
def test_disabled_changes_nothing(cell, step):
    case = Case(cell, T=1 if step else 5)
    layer, call, x, hx = prepare(case, step)
    want, _ = evaluate(layer, call, x, hx, torch.enable_grad())
    with region():
        got, _ = evaluate(layer, call, x, hx, region(enabled=False))
    assert all(v.dtype == torch.float32 for v in got.values())
    assert_same_bits(got, want, "autocast disabled")


@every_device
@each_cell
def test_weights_are_cast_once(cell):
    """Each weight is saved once for the backward, however often the region calls the layer."""
    layer, _, x, hx = Case(cell, T=1, B=2, I=7, H=11).prepare(fastrnn)
    weights = [p.numel() for p in layer.parameters()]
    saved = []

    def save(tensor):
        if tensor.dtype == BF16 and tensor.numel() in weights:
            saved.append(tensor.data_ptr())
        return tensor

    # torch.export, of other tests, may leave the cache off.
    with region(cache_enabled=True), torch.autograd.graph.saved_tensors_hooks(save, lambda t: t):
        state = give(hx)
        for _ in range(3):
            _, state = layer(x, state)
    assert take(state)[0].dtype == BF16
    assert len(saved) == 3 * len(weights) and len(set(saved)) == len(weights)


@each_kind
@each_cell
def test_half_on_the_cpu(cell, step):
    """float16, too: computed in float32, and rounded only where it is stored."""
    layer, call, x, hx = prepare(Case(cell, T=1 if step else 5), step)
    want = call(x, hx)
    with torch.autocast("cpu", torch.float16):
        got = call(x, hx)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == torch.float16
        torch.testing.assert_close(a.float(), b, rtol=0, atol=8 * 2**-10)
