"""Run by test_new_cell.py beside a package that has the toy cell: all that a cell gets by its row."""

import copy
from itertools import product

import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastrnn
from fastrnn import _C, reference
from fastrnn.layers import RecurrentLayer

LENGTHS = [3, 6, 1, 4]
I, H, B, T = 5, 9, len(LENGTHS), max(LENGTHS)


class Toy(RecurrentLayer):
    cell = "toy"


def draw(*shape, dtype):
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def run(call, layer, inputs):
    """The results of `call`, and the gradients of all that it is computed from."""
    results = call()
    torch.manual_seed(5)
    grads = [torch.randn(r.shape).to(inputs[0].dtype).to(r.dtype) for r in results]
    return [*results, *torch.autograd.grad(results, [*inputs, *layer.parameters()], grads)]


def check_values(dtype, tolerance, form, bidirectional, num_layers, bias):
    torch.manual_seed(3)
    options = dict(num_layers=num_layers, bidirectional=bidirectional, bias=bias)
    layer = Toy(I, H, **options, batch_first=form == "batch_first", dtype=dtype)
    x = draw(*((B, T) if form == "batch_first" else (T, B)), I, dtype=dtype)
    hx = tuple(draw(num_layers * (1 + bidirectional), B, H, dtype=dtype) for _ in range(3))

    def fast():
        if form == "lengths":
            y, last = layer(x, hx, lengths=LENGTHS)
        elif form == "packed":
            y, last = layer(pack_padded_sequence(x, LENGTHS, enforce_sorted=False), hx)
            y, _ = pad_packed_sequence(y)
        else:
            y, last = layer(x, hx)
        return [y, *last]

    def slow():
        double = [t.double() for t in (x, *hx, *layer.parameters())]
        x64, hx64, weights = double[0], double[1:4], double[4:]
        if form not in ("lengths", "packed"):
            options64 = dict(options, batch_first=form == "batch_first")
            return reference.rnn(x64, hx64, weights, "toy", **options64)
        each = [  # each sequence by itself
            reference.rnn(x64[:n, k : k + 1], [s[:, k : k + 1] for s in hx64], weights, "toy", **options)
            for k, n in enumerate(LENGTHS)
        ]
        ys = [torch.cat([y, y.new_zeros(T - len(y), *y.shape[1:])]) for y, *_ in each]
        return [torch.cat(ys, 1), *(torch.cat(s, 1) for s in zip(*(last for _, *last in each), strict=True))]

    for got, want in zip(run(fast, layer, [x, *hx]), run(slow, layer, [x, *hx]), strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want.double(), rtol=tolerance, atol=tolerance)


def check_derivatives():
    layer = Toy(2, 3, bidirectional=True, dtype=torch.float64)
    x, hx = draw(3, 2, 2, dtype=torch.float64), [draw(2, 2, 3, dtype=torch.float64) for _ in range(3)]

    def call(x, *rest):
        names = [name for name, _ in layer.named_parameters()]
        weights = dict(zip(names, rest[3:], strict=True))
        y, last = torch.func.functional_call(layer, weights, (x, rest[:3]))
        return y, *last

    given = (x, *hx, *layer.parameters())
    assert gradcheck(call, given)
    assert gradgradcheck(call, given)


def check_training():
    torch.manual_seed(0)
    layer, head = Toy(3, 16), torch.nn.Linear(16, 1)
    x = torch.randn(20, 32, 3)
    wanted = x[:10].sum((0, 2), keepdim=False).tanh()
    optimizer = torch.optim.Adam([*layer.parameters(), *head.parameters()], lr=0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(head(layer(x)[0][-1]).squeeze(-1), wanted)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0], losses[:: len(losses) - 1]


def check_options():
    layer = Toy(I, H, num_layers=2, bidirectional=True, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64)
    y, last = layer(x)
    again = copy.deepcopy(layer)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x)[0], y)
    assert set(layer.state_dict()) >= {"weight_v_l0", "weight_v_l1_reverse", "bias_hh_l1"}

    _, _, every = layer(x, return_all_states=True)
    for state, of_steps in zip(last, every, strict=True):
        ends = torch.stack([of_steps[k, -1 if k % 2 == 0 else 0] for k in range(4)])
        torch.testing.assert_close(ends, state)

    one = Toy(I, H)
    stateful, chunks = fastrnn.Stateful(one), torch.randn(2 * T, B, I)
    parts = torch.cat([stateful(chunks[:T]), stateful(chunks[T:])])
    torch.testing.assert_close(parts, one(chunks)[0], rtol=0, atol=1e-6)
    assert fastrnn.summary(torch.nn.Sequential(one))[0].runs_on == "fastrnn"

    many = torch.func.vmap(lambda x: layer(x)[0])(torch.stack([x, 2 * x]))
    torch.testing.assert_close(many[1], layer(2 * x)[0])
    layer.checkpoint_gates = True
    x.requires_grad_()
    torch.testing.assert_close(
        torch.autograd.grad(layer(x)[0].sum(), x), torch.autograd.grad(again(x)[0].sum(), x)
    )


torch.set_num_threads(2)
forms = ("time_major", "batch_first", "packed", "lengths")
for isa in _C.isas_available():
    _C.set_isa(isa)
    for form, bidirectional, num_layers, bias in product(forms, (False, True), (1, 2), (False, True)):
        # Of rounded weights and of what is stored in 16 bits between steps and layers
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.1)):
            check_values(dtype, tolerance, form, bidirectional, num_layers, bias)
check_derivatives()
check_training()
check_options()
print("all right")
