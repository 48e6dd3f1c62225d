"""call_for_per_sample_grads gives of fastrnn's modules what it gives of torch.nn's, and what a loop gives."""

import pytest
import torch
from cases import EVERY_CELL, FORMS, Case, cotangents, cover_pairs, give, take
from tolerance import assert_close
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

import fastrnn

pytestmark = pytest.mark.usefixtures("device")

DOUBLE = torch.float64
each_cell = pytest.mark.parametrize("cell", EVERY_CELL)


def solve(case, library, frozen=(), more=0, **kwargs):
    """Values, gradients of x and the states, and gradients of the weights for each sample."""
    layer, _, x, hx = case.prepare(library)
    named = {"x": x, **{f"{s}_0": h for s, h in zip("hc", hx or (), strict=False)}}
    named |= {name: p.requires_grad_(name not in frozen) for name, p in layer.named_parameters()}
    B = case.B if case.batched else 1
    call = call_for_per_sample_grads(layer, batch_size=B + more, **kwargs)
    output, states = call(case.pack(x), hx and give(hx))
    values = [output.data if case.packed else output, *take(states)]
    if library is torch.nn and case.batched:  # in torch 2.11 an LSTM's states have one dimension more
        values[1:] = [v.flatten(0, -3) for v in values[1:]]
    torch.autograd.backward(values, cotangents(values))
    results = {f"value {k}": v.detach() for k, v in enumerate(values)}
    for name, t in named.items():
        is_weight = isinstance(t, torch.nn.Parameter)
        assert not is_weight or t.grad is None
        results[f"d{name}"] = getattr(t, "grad_sample", None) if is_weight else t.grad
    return results


# torch.nn drops nothing between layers here, as its decomposition has a mistake: dropout is tested below.
ROWS = cover_pairs(
    form=FORMS,
    T=(1, 5),
    B=(1, 4),
    L=(1, 3),
    P=(0, 3),
    bidirectional=(False, True),
    bias=(False, True),
    hx=(False, True),
    loss_reduction=("sum", "mean"),
)


@each_cell
@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(map(str, row.values())))
def test_layers_give_what_those_of_torch_give(cell, row):
    row = dict(row)
    loss_reduction = row.pop("loss_reduction")
    if cell != "lstm":
        row["P"] = 0
    case = Case(cell, I=4, H=6, dtype=DOUBLE, **row)
    got = solve(case, fastrnn, loss_reduction=loss_reduction)
    assert_close(got, solve(case, torch.nn, loss_reduction=loss_reduction), case)


@each_cell
def test_frozen_weights(cell):
    case = Case(cell, L=2, hx=False, dtype=DOUBLE)
    frozen = "weight_ih_l0", "bias_hh_l0", "weight_hh_l1"
    got = solve(case, fastrnn, frozen)
    assert all(got[f"d{name}"] is None for name in frozen)
    assert_close(got, solve(case, torch.nn, frozen), case)


@each_cell
def test_more_samples_than_packed_sequences(cell):
    case = Case(cell, B=3, form="packed", dtype=DOUBLE)
    got = solve(case, fastrnn, more=2)
    assert got["dweight_ih_l0"].shape[0] == 5
    assert_close(got, solve(case, torch.nn, more=2), case)


def loop(module, loss, samples):
    """The gradients of the module's weights, sample by sample."""
    each = [torch.autograd.grad(loss(sample), list(module.parameters())) for sample in samples]
    names = [name for name, _ in module.named_parameters()]
    return dict(zip(names, map(torch.stack, zip(*each, strict=True)), strict=True))


def grad_samples(module):
    return {name: p.grad_sample for name, p in module.named_parameters()}


class Twice(torch.nn.Module):
    """Uses its cell's weights twice."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x, hx):
        return take(self.cell(x, self.cell(x, hx)))[0]


@each_cell
def test_cells(cell):
    """torch.nn's do not work with ExpandedWeights."""
    case = Case(cell, T=1, dtype=DOUBLE)
    module, _, x, hx = case.prepare_step(fastrnn)
    model = Twice(module)
    call_for_per_sample_grads(model)(x, give(hx)).sum().backward()
    samples = [(x[b], give([h[b] for h in hx])) for b in range(case.B)]
    expected = loop(model, lambda sample: model(*sample).sum(), samples)
    assert_close(grad_samples(model), expected, case)
    for p in module.parameters():
        del p.grad_sample
    call_for_per_sample_grads(model, batch_size=1)(*samples[1]).sum().backward()
    one = {name: g[1:2] for name, g in expected.items()}
    assert_close(grad_samples(model), one, case)


def test_dropout_between_layers_is_that_of_a_plain_call():
    case = Case("gru", L=3, dropout=0.5, form="batch_first", dtype=DOUBLE)
    layer, _, x, hx = case.prepare(fastrnn)
    torch.manual_seed(5)
    plain = layer(x, give(hx))[0]
    torch.manual_seed(5)
    output = call_for_per_sample_grads(layer, batch_size=case.B)(x, give(hx))[0]
    assert_close({"output": output}, {"output": plain}, case)
    output.sum().backward()
    expected = torch.autograd.grad(plain.sum(), list(layer.parameters()))
    got = {name: g.sum(0) for name, g in grad_samples(layer).items()}
    assert_close(got, dict(zip(got, expected, strict=True)), case)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits(dtype):
    case = Case("lstm", L=2, dtype=dtype)
    layer, _, x, hx = case.prepare(fastrnn)
    call_for_per_sample_grads(layer, batch_size=case.B)(x, give(hx))[0].sum().backward()
    samples = [(x[:, b : b + 1], give([h[:, b : b + 1] for h in hx])) for b in range(case.B)]
    expected = loop(layer, lambda sample: layer(*sample)[0].sum(), samples)
    assert_close(grad_samples(layer), expected, case)


def test_autocast():
    case = Case("gru")
    layer, _, x, hx = case.prepare(fastrnn)

    def run(layer, x, hx):
        with torch.autocast(x.device.type, torch.bfloat16):
            output = layer(x, hx)[0]
        assert output.dtype == torch.bfloat16
        return output.sum()

    run(call_for_per_sample_grads(layer, batch_size=case.B), x, *hx).backward()
    samples = [(x[:, b : b + 1], hx[0][:, b : b + 1]) for b in range(case.B)]
    expected = loop(layer, lambda sample: run(layer, *sample), samples)
    got = grad_samples(layer)
    assert all(g.dtype == torch.float32 for g in got.values())
    assert_close(got, expected, case.but(dtype=torch.bfloat16))


def test_no_samples():
    layer = fastrnn.GRU(4, 6)
    output, _ = call_for_per_sample_grads(layer, batch_first=False)(torch.ones(5, 0, 4))
    output.sum().backward()
    assert layer.weight_hh_l0.grad_sample.shape == (0, 18, 6)


def test_states_of_every_step():
    layer = fastrnn.GRU(4, 6, num_layers=2)
    x = torch.randn(5, 3, 4)
    call_for_per_sample_grads(layer, batch_size=3)(x, return_all_states=True)[2].sum().backward()
    expected = loop(layer, lambda x: layer(x, return_all_states=True)[2].sum(), x.unbind(1))
    assert_close(grad_samples(layer), expected, Case("gru"))


def test_errors():
    layer, x = fastrnn.GRU(4, 6), torch.ones(5, 3, 4)
    with pytest.raises(RuntimeError, match="input batch size of 3 with ExpandedWeight of batch size 5"):
        call_for_per_sample_grads(layer)(x)
    with pytest.raises(RuntimeError, match="lengths: expected None for gradients of each sample"):
        call_for_per_sample_grads(layer, batch_size=3)(x, lengths=[5, 4, 3])
