"""Layers and options that torch.nn does not have: what a module is, and what works with it."""

import copy
import math
import pickle

import pytest
import torch
from cases import give, take
from layer_kinds import DOUBLE, LAYERS, B, H, I, T, draw, draw_states, make, run
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastrnn
from fastrnn.reference import CELLS

each_layer = pytest.mark.parametrize("name", LAYERS)


def each_layer_but_quick(*names):
    """All layers, but only these without --thorough: for tests that take long."""
    thorough = pytest.mark.thorough
    return pytest.mark.parametrize(
        "name", [n if n in names else pytest.param(n, marks=thorough) for n in LAYERS]
    )


BASED = tuple(
    name for name, (kind, _, _) in LAYERS.items() if issubclass(kind, fastrnn.layers.RecurrentLayer)
)


def assert_close(got, want, tolerance=1e-11):
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert g.shape == w.shape
        torch.testing.assert_close(g, w, rtol=tolerance, atol=tolerance)


def assert_same(got, want):
    assert len(got) == len(want)
    assert all(map(torch.equal, got, want))


# ---- parameters ----

SHAPES = {
    "PeepholeLSTM": {
        "weight_ih": (4 * H, I),
        "weight_hh": (4 * H, H),
        "bias_ih": (4 * H,),
        "bias_hh": (4 * H,),
        "weight_peephole": (3, H),
    },
    "IndRNN-relu": {"weight_ih": (H, I), "weight_hh": (H,), "bias": (H,)},
    "LayerNormLSTM": {
        "weight_ih": (4 * H, I),
        "bias": (4 * H,),
        "ln_ih_weight": (4 * H,),
        "weight_hh": (4 * H, H),
        "ln_hh_weight": (4 * H,),
        "ln_c_weight": (H,),
        "ln_c_bias": (H,),
    },
    "LayerNormGRU": {
        "weight_ih": (3 * H, I),
        "bias": (3 * H,),
        "ln_ih_weight": (3 * H,),
        "weight_hh": (3 * H, H),
        "ln_hh_weight": (3 * H,),
    },
    "LiGRU": {"weight_ih": (2 * H, I), "bias": (2 * H,), "weight_hh": (2 * H, H)},
    "sLSTM": {"weight_ih": (4 * H, I), "bias": (4 * H,), "weight_hh": (4 * H, H)},
    "sLSTM-heads": {"weight_ih": (4 * H, I), "bias": (4 * H,), "weight_hh": (4 * H, H // 4)},
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_parameters(name, bias):
    layer = make(name, num_layers=2, bidirectional=True, bias=bias)
    expected = {}
    for k in range(2):
        for reverse in ("", "_reverse"):
            for parameter, shape in SHAPES[name].items():
                if parameter.startswith("bias") and not bias:
                    continue
                if parameter == "weight_ih" and k:
                    shape = (shape[0], 2 * H)
                expected[f"{parameter}_l{k}{reverse}"] = shape
    assert {n: tuple(p.shape) for n, p in layer.named_parameters()} == expected


@pytest.mark.parametrize("kind", ["batchnorm", "layernorm"])
def test_modules_of_ligru(kind):
    layer = fastrnn.LiGRU(I, H, 2, bidirectional=True, normalization=kind)
    classes = {"batchnorm": torch.nn.BatchNorm1d, "layernorm": torch.nn.LayerNorm}
    assert [n for n, _ in layer.named_children()] == [
        "norm_l0",
        "norm_l0_reverse",
        "norm_l1",
        "norm_l1_reverse",
    ]
    assert all(type(m) is classes[kind] for m in layer.children())
    assert not any("bias" in n for n, _ in layer.named_parameters(recurse=False))


@each_layer
def test_initial_values(name):
    """Uniform over +-1/sqrt(H); gains 1, biases of a normalisation 0, u of an IndRNN from 0 to 1."""
    kind, own, _ = LAYERS[name]
    torch.manual_seed(0)
    layer = kind(I, 64, **own)
    for n, p in layer.named_parameters(recurse=False):
        if n.startswith("ln_"):
            assert (p == float("bias" not in n)).all()
        elif name.startswith("IndRNN") and n.startswith("weight_hh"):
            assert p.min() >= 0 and 0.8 < p.max() <= 1
        else:
            assert 0.8 / 8 < p.abs().max() <= 1 / 8
    torch.manual_seed(0)
    again = kind(I, 64, **own)
    assert_same([*again.parameters()], [*layer.parameters()])


@each_layer
def test_skip_init(name):
    kind, own, _ = LAYERS[name]
    layer = torch.nn.utils.skip_init(kind, I, H, **own)
    want = kind(I, H, **own)
    assert [p.shape for p in layer.parameters()] == [p.shape for p in want.parameters()]


@each_layer
@pytest.mark.parametrize("how", ["pickle", "deepcopy", "state_dict", "save"])
def test_copies(name, how, tmp_path):
    layer = make(name, num_layers=2, bidirectional=True).eval()
    x = draw(T, B, I)
    want = run(layer, x)
    if how == "pickle":
        again = pickle.loads(pickle.dumps(layer))
    elif how == "deepcopy":
        again = copy.deepcopy(layer)
    elif how == "save":
        torch.save(layer, tmp_path / "layer.pt")
        again = torch.load(tmp_path / "layer.pt", weights_only=False)
    else:
        again = make(name, num_layers=2, bidirectional=True).eval()
        with torch.no_grad():
            [p.zero_() for p in again.parameters()]
        again.load_state_dict(layer.state_dict())
    assert type(again) is type(layer) and repr(again) == repr(layer)
    assert_same(run(again, x), want)
    with torch.no_grad():
        [p.zero_() for p in layer.parameters()]
    assert_same(run(again, x), want)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_layers_pickled_before_the_options_were(kind):
    """They have none of the attributes."""
    layer = getattr(fastrnn, kind)(I, H)
    for attribute in ("recurrent_dropout", "zoneout", "reset_after"):
        vars(layer).pop(attribute, None)
    again = pickle.loads(pickle.dumps(layer))
    x = torch.randn(T, B, I)
    assert_same(run(again, x), run(layer, x))
    assert repr(again) == repr(getattr(torch.nn, kind)(I, H))


@pytest.mark.parametrize(
    "layer, text",
    [
        (fastrnn.GRU(3, 4, reset_after=False), "GRU(3, 4, reset_after=False)"),
        (fastrnn.LSTM(3, 4, recurrent_dropout=0.5, zoneout=(0.1, 0.2)), None),
        (fastrnn.RNN(3, 4, nonlinearity="sigmoid"), "RNN(3, 4, nonlinearity=sigmoid)"),
        (fastrnn.PeepholeLSTM(3, 4, 2, proj_size=2), "PeepholeLSTM(3, 4, proj_size=2, num_layers=2)"),
        (fastrnn.IndRNN(3, 4), "IndRNN(3, 4)"),
        (fastrnn.IndRNN(3, 4, nonlinearity="tanh"), "IndRNN(3, 4, nonlinearity=tanh)"),
        (fastrnn.LayerNormGRU(3, 4, zoneout=0.1), "LayerNormGRU(3, 4, zoneout=0.1)"),
        (fastrnn.LiGRU(3, 4, normalization=None), "LiGRU(3, 4, normalization=None)"),
        (fastrnn.sLSTM(3, 4, num_heads=2), "sLSTM(3, 4, num_heads=2)"),
        (fastrnn.GRUCell(3, 4, reset_after=False), "GRUCell(3, 4, reset_after=False)"),
    ],
    ids=str,
)
def test_repr(layer, text):
    assert repr(layer) == (text or "LSTM(3, 4, recurrent_dropout=0.5, zoneout=(0.1, 0.2))")


# ---- equations, written again ----


def test_ligru_is_speechbrains():
    """speechbrain.nnet.RNN.LiGRU_Layer: candidates and gates of one product, at first the candidates."""
    layer = make("LiGRU-batchnorm").train()
    x = draw(B, T, I)
    layer.batch_first = True
    norm = copy.deepcopy(layer.norm_l0)
    y, h_n = layer(x)
    w = x @ layer.weight_ih_l0.T
    w = norm(w.reshape(B * T, 2 * H)).reshape(B, T, 2 * H)
    h = torch.zeros(B, H, dtype=DOUBLE)
    hiddens = []
    for k in range(T):
        gates = w[:, k] + h @ layer.weight_hh_l0.T
        at, zt = gates.chunk(2, 1)
        zt = torch.sigmoid(zt)
        hcand = torch.relu(at)
        h = zt * h + (1 - zt) * hcand
        hiddens.append(h)
    assert_close([y, h_n[0]], [torch.stack(hiddens, 1), h])
    assert_close(
        [layer.norm_l0.running_mean, layer.norm_l0.running_var], [norm.running_mean, norm.running_var]
    )


@pytest.mark.parametrize("num_heads", [1, 4])
def test_slstm_is_that_of_the_paper(num_heads):
    """Equations 8 to 17 of Beck et al. 2024, without the stabiliser; R is block-diagonal."""
    layer = make("sLSTM", num_heads=num_heads, num_layers=1)
    x = draw(T, B, I)
    size = H // num_heads
    R = []  # of i, f, z, o
    for block in layer.weight_hh_l0.chunk(4):
        R.append(torch.block_diag(*block.split(size)))
    c = n = h = torch.zeros(B, H, dtype=DOUBLE)
    outputs = []
    for t in range(T):
        of_input = (x[t] @ layer.weight_ih_l0.T + layer.bias_l0).chunk(4, 1)
        i, f, z, o = (a + h @ r.T for a, r in zip(of_input, R, strict=True))
        i, f, z, o = i.exp(), f.sigmoid(), z.tanh(), o.sigmoid()
        c = f * c + i * z
        n = f * n + i
        h = o * c / n
        outputs.append(h)
    y, (h_n, c_n, n_n, m_n) = layer(x)
    assert_close([y, h_n[0]], [torch.stack(outputs), h])
    # c and n are those of the equations but for the stabiliser.
    assert_close([c_n[0] * m_n[0].exp(), n_n[0] * m_n[0].exp()], [c, n])


def test_slstm_does_not_overflow():
    layer = make("sLSTM", dtype=torch.float32)
    y, _ = layer(1e4 * torch.randn(T, B, I))
    assert y.isfinite().all() and y.abs().max() <= 1


@pytest.mark.parametrize("lstm", [True, False])
def test_layer_norm_is_torchs(lstm):
    layer = make("LayerNormLSTM" if lstm else "LayerNormGRU")
    GH = (4 if lstm else 3) * H
    x, hx = draw(T, B, I), draw_states("LayerNormLSTM" if lstm else "LayerNormGRU", layer)
    h, *c = (s[0] for s in hx)
    norm = torch.nn.functional.layer_norm
    outputs = []
    for t in range(T):
        gx = norm(x[t] @ layer.weight_ih_l0.T, (GH,), layer.ln_ih_weight_l0, layer.bias_l0)
        gh = norm(h @ layer.weight_hh_l0.T, (GH,), layer.ln_hh_weight_l0)
        if lstm:
            i, f, g, o = (gx + gh).chunk(4, 1)
            c = [f.sigmoid() * c[0] + i.sigmoid() * g.tanh()]
            h = o.sigmoid() * norm(c[0], (H,), layer.ln_c_weight_l0, layer.ln_c_bias_l0).tanh()
        else:
            (x_r, x_z, x_n), (h_r, h_z, h_n) = gx.chunk(3, 1), gh.chunk(3, 1)
            r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
            h = (1 - z) * (x_n + r * h_n).tanh() + z * h
        outputs.append(h)
    assert_close(run(layer, x, hx), [torch.stack(outputs), h[None], *(s[None] for s in c)])


@pytest.mark.parametrize("kind", ["GRU-before", "RNN-sigmoid", "RNN-identity"])
def test_cells_are_steps_of_layers(kind):
    layer, x = make(kind), draw(T, B, I)
    own = LAYERS[kind][1]
    cell = {"GRU-before": fastrnn.GRUCell}.get(kind, fastrnn.RNNCell)(I, H, dtype=DOUBLE, **own)
    cell.load_state_dict({n.removesuffix("_l0"): p for n, p in layer.state_dict().items()})
    h, outputs = None, []
    for t in range(T):
        h = cell(x[t], h)
        outputs.append(h)
    assert_close([layer(x)[0]], [torch.stack(outputs)])
    reset = torch.tensor([True, False, True, False])
    cleared = h.masked_fill(reset[:, None], 0)
    assert_close([cell(x[0], h, resets=reset)], [cell(x[0], cleared)])
    scripted = torch.jit.script(cell)
    assert_same([scripted(x[0], h)], [cell(x[0], h)])


# ---- forms of input ----


@each_layer
def test_forms(name):
    """Batch first, unbatched, packed and with lengths: each sequence as if it were alone."""
    layer = make(name, num_layers=2, bidirectional=True).eval()
    x, hx = draw(T, B, I), draw_states(name, layer)
    lengths = [6, 2, 5, 1]
    ys, lasts = [], []
    for b, n in enumerate(lengths):
        y, *last = run(layer, x[:n, b], [s[:, b] for s in hx])  # unbatched
        ys.append(torch.cat([y, y.new_zeros(T - n, y.shape[-1])]))
        lasts.append(last)
    want = [torch.stack(ys, 1), *(torch.stack(s, 1) for s in zip(*lasts, strict=True))]
    assert_close(run(layer, x, hx, lengths=lengths), want)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    y, *last = run(layer, packed, hx)
    assert_close([pad_packed_sequence(y)[0], *last], want)
    first = copy.deepcopy(layer)
    first.batch_first = True
    y, *last = run(first, x.transpose(0, 1), hx, lengths=lengths)
    assert_close([y.transpose(0, 1), *last], want)
    y, *last = run(layer, x)
    y_first, *last_first = run(first, x.transpose(0, 1))
    assert_close([y_first.transpose(0, 1), *last_first], [y, *last])


@each_layer
def test_resets(name):
    """A reset begins a sequence of its own, from zeros."""
    layer, x = make(name, num_layers=2).eval(), draw(T, B, I)
    hx = draw_states(name, layer)
    resets = torch.zeros(T, B, dtype=torch.bool)
    resets[3, 1] = True
    got = run(layer, x, hx, resets=resets)
    whole = run(layer, x, hx)
    begin, end = run(layer, x[:3], hx), run(layer, x[3:])
    want = [t.clone() for t in whole]
    want[0][:, 1] = torch.cat([begin[0], end[0]])[:, 1]
    for k in range(1, len(want)):
        want[k][:, 1] = end[k][:, 1]
    assert_close(got, want)


@each_layer
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("form", ["padded", "lengths", "packed"])
def test_states_of_every_step(name, form, bidirectional):
    """`h[:, t]` and the other states are an hx: the rest of the sequence follows from them. In both
    directions they are what a sequence that ends or begins with step t leaves."""
    layer, x = make(name, num_layers=2 - bidirectional, bidirectional=bidirectional).eval(), draw(T, B, I)
    hx = draw_states(name, layer)
    lengths = [6, 6, 6, 6] if form == "padded" else [6, 6, 6, 4]
    if form == "packed":
        output, states, every = layer(pack_padded_sequence(x, lengths), give(hx), return_all_states=True)
        output = pad_packed_sequence(output)[0]
        every = [
            pad_packed_sequence(s)[0].movedim(-2, 0)
            for s in (take(every) if isinstance(every, tuple) and not hasattr(every, "data") else [every])
        ]
    else:
        kwargs = {} if form == "padded" else {"lengths": lengths}
        output, states, every = layer(x, give(hx), return_all_states=True, **kwargs)
        every = take(every)
    if bidirectional:
        assert_close([output], [every[0].movedim(0, -2).flatten(-2)])
        for t in range(4):  # steps that all sequences have
            _, *first = run(layer, x[: t + 1], hx)
            _, *rest = run(layer, x[t:], hx, lengths=[n - t for n in lengths])
            for of_steps, forward, backward in zip(every, first, rest, strict=True):
                assert_close([of_steps[0, t], of_steps[1, t]], [forward[0], backward[1]])
        return
    assert_close([output], [every[0][-1]])
    for t in range(1, 4):
        rest = run(layer, x[t : 3 + t], [s[:, t - 1] for s in every])
        n = 4 - t  # steps that all sequences have
        assert_close([rest[0][:n]], [output[t : t + n]])
    if form == "padded":
        assert_close([s[:, -1] for s in every], take(states))


@pytest.mark.parametrize("name", ["PeepholeLSTM", "LayerNormLSTM", "sLSTM"])
def test_states_of_every_step_with_noise(name):
    layer = make(name, zoneout=0.2)
    with pytest.raises(NotImplementedError, match="return_all_states: expected no zoneout"):
        layer(draw(T, B, I), return_all_states=True)
    layer = make("LiGRU", zoneout=0.2)
    y, _, h = layer(draw(T, B, I), return_all_states=True)
    assert_same([y], [h[0]])


@each_layer
def test_stateful(name):
    layer, x = make(name, num_layers=2).eval(), draw(2 * T, B, I)
    stateful = fastrnn.Stateful(layer)
    parts = torch.cat([stateful(x[:T]), stateful(x[T:])])
    assert_close([parts], [layer(x)[0]])
    stateful.reset(torch.tensor([True, False, False, False]))
    fresh, old = layer(x[:T])[0], stateful(x[:T])
    assert_close([old[:, 0]], [fresh[:, 0]])
    assert (old[:, 1] - fresh[:, 1]).abs().max() > 1e-6


@each_layer
def test_no_sequences(name):
    layer = make(name, num_layers=2, bidirectional=True).eval()
    x = torch.empty(T, 0, I, dtype=DOUBLE, requires_grad=True)
    y, *last = run(layer, x)
    width = 2 * (layer.proj_size or H)
    assert y.shape == (T, 0, width) and all(s.shape[:2] == (4, 0) for s in last)
    y.sum().backward()
    assert x.grad.shape == x.shape


# ---- dtypes ----


@each_layer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_dtypes(name, dtype):
    """In 16 bits as in float32, but for roundings."""
    layer = make(name, num_layers=2, bidirectional=True).eval()
    x = draw(T, B, I)
    rounded = copy.deepcopy(layer).to(dtype)
    got = run(rounded, x.to(dtype))
    want = run(rounded.double(), x.to(dtype).double())
    assert all(t.dtype == dtype for t in got)
    for g, w in zip(got, want, strict=True):
        assert (g.double() - w).abs().max() <= 30 * torch.finfo(dtype).eps * max(1.0, w.abs().max())


@each_layer
def test_autocast(name):
    layer = make(name, num_layers=2, dtype=torch.float32)
    x = draw(T, B, I, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = run(layer.eval(), x)
    assert all(t.dtype == torch.bfloat16 for t in got)
    for g, w in zip(got, run(layer, x), strict=True):
        assert (g.float() - w).abs().max() <= 0.1 * max(1.0, w.abs().max())
    with torch.autocast("cpu", torch.bfloat16):
        run(layer, x)[0].sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())


# ---- derivatives ----


@each_layer_but_quick("PeepholeLSTM-proj", "LiGRU-batchnorm", "sLSTM-heads")
def test_gradients_and_second_ones(name):
    kwargs = {"bidirectional": True, "num_layers": 2, "recurrent_dropout": 0.2}
    if "proj" not in name:
        kwargs["zoneout"] = 0.2
    layer = make(name, **kwargs).eval()
    names = [n for n, _ in layer.named_parameters()]
    x, hx = draw(3, 2, I).requires_grad_(), draw_states(name, layer, B=2)

    def call(x, *weights):
        given = dict(zip(names, weights, strict=True))
        y, states = torch.func.functional_call(layer, given, (x, give(hx)))
        return y, *take(states)

    arguments = x, *layer.parameters()
    assert torch.autograd.gradcheck(call, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, arguments, fast_mode=True)


@each_layer
def test_checkpoint_gates(name):
    layer, x = make(name, num_layers=2, recurrent_dropout=0.3).eval(), draw(T, B, I).requires_grad_()
    layer.train(not isinstance(layer, fastrnn.LiGRU))
    results = []
    for flag in (False, True):
        layer.checkpoint_gates = flag
        torch.manual_seed(9)
        y = layer(x)[0]
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])])
    assert_same(*results)


@each_layer_but_quick("LayerNormGRU", "IndRNN-relu", "sLSTM-heads", "LiGRU-batchnorm")
def test_torch_func(name):
    """vmap over inputs and over weights, and gradients of each sample."""
    layer = make(name, num_layers=2).eval()
    x = draw(3, T, B, I)
    assert_close([torch.func.vmap(lambda x: layer(x)[0])(x)], [torch.stack([layer(one)[0] for one in x])])

    models = [make(name, num_layers=2).eval() for _ in range(2)]
    with torch.no_grad():
        [p.add_(0.1) for p in models[1].parameters()]
    weights, buffers = torch.func.stack_module_state(models)

    def call(weights, buffers, x):
        return torch.func.functional_call(layer, (weights, buffers), (x,))[0]

    got = torch.func.vmap(call, (0, 0, None))(weights, buffers, x[0])
    assert_close([got], [torch.stack([m(x[0])[0] for m in models])])

    def loss(weights, x):
        return torch.func.functional_call(layer, weights, (x.unsqueeze(1),))[0].square().sum()

    own = {n: p.detach() for n, p in layer.named_parameters()}
    got = torch.func.vmap(torch.func.grad(loss), (None, 1))(own, x[0])
    for b in range(B):
        want = torch.func.grad(loss)(own, x[0][:, b])
        assert_close([g[b] for g in got.values()], [*want.values()])


@each_layer_but_quick("PeepholeLSTM", "LayerNormLSTM", "IndRNN-relu")
def test_expanded_weights(name):
    """Gradients of each sample, or an error in one sentence."""
    from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

    layer, x = make(name, num_layers=2).eval(), draw(T, B, I)
    layer.batch_first = True
    x = x.transpose(0, 1)
    if not CELLS[LAYERS[name][2]].info.has("input_matrix"):
        with pytest.raises(RuntimeError, match="gradients of each sample: .* torch.func"):
            call_for_per_sample_grads(layer, batch_size=B, loss_reduction="sum")(x)
        return
    call_for_per_sample_grads(layer, batch_size=B, loss_reduction="sum")(x)[0].square().sum().backward()
    got = [p.grad_sample for p in layer.parameters()]
    for b in range(B):
        loss = layer(x[b : b + 1])[0].square().sum()
        assert_close([g[b] for g in got], [*torch.autograd.grad(loss, [*layer.parameters()])])


def products_of(name, layer, rows, backward):
    """Multiply-adds of the matrix products, by the shapes of the weights."""
    count = 0
    for n, p in layer.named_parameters(recurse=False):
        is_matrix = n.startswith(("weight_ih", "weight_hr")) or n.startswith("weight_hh") and p.dim() == 2
        count += p.numel() * rows * is_matrix * (3 if backward else 1)
    return 2 * count


@each_layer
def test_flops(name):
    from torch.utils.flop_counter import FlopCounterMode

    layer, x = make(name).eval(), draw(T, B, I).requires_grad_()
    hx = [s.requires_grad_() for s in draw_states(name, layer)]
    with FlopCounterMode(display=False) as counter:
        results = run(layer, x, hx)
        assert counter.get_total_flops() == products_of(name, layer, T * B, backward=False)
        sum(r.sum() for r in results).backward()
    assert counter.get_total_flops() == products_of(name, layer, T * B, backward=True)


@each_layer_but_quick(
    "IndRNN-tanh", "LayerNormGRU", "LiGRU-batchnorm", "sLSTM", "PeepholeLSTM", "RNN-sigmoid"
)
def test_training(name):
    """Does the last output learn to tell whether the sum of a sequence is positive?"""
    layer = make(name, dtype=torch.float32)
    torch.manual_seed(0)
    head = torch.nn.Linear(layer.proj_size or H, 1)
    x = torch.randn(T, 64, I)
    wanted = (x.sum((0, 2)) > 0).float()
    optimizer = torch.optim.Adam([*layer.parameters(), *head.parameters()], lr=0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        logits = head(layer(x)[0][-1]).squeeze(-1)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.5 and losses[-1] < 0.6 * losses[0], losses[::20]


# ---- graphs ----


@each_layer_but_quick("sLSTM-heads", "GRU-before")
def test_compile(name):
    options = {"recurrent_dropout": 0.3} | ({} if "proj" in name else {"zoneout": 0.2})
    layer = make(name, num_layers=2, **options).eval()
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = draw(T, B, I).requires_grad_()

    def solve(call):
        results = run(call, x)
        return results + [*torch.autograd.grad(results[0].square().sum(), [x, *layer.parameters()])]

    with torch._dynamo.config.patch(allow_rnn=True):  # for subclasses of torch.nn's layers
        got = solve(compiled)
    assert_close(got, solve(layer))


@each_layer_but_quick("sLSTM-heads", "LayerNormLSTM", "PeepholeLSTM")
def test_export(name):
    layer, x = make(name, num_layers=2, bidirectional=True).eval(), draw(T, B, I)
    time, batch = torch.export.Dim("T", min=2, max=50), torch.export.Dim("B", min=2, max=50)
    program = torch.export.export(layer, (x,), dynamic_shapes={"input": {0: time, 1: batch}})
    other = draw(T + 3, B + 2, I)
    assert_close(run(program.module(), other), run(layer, other))


@each_layer_but_quick("sLSTM-heads", "LayerNormLSTM", "IndRNN-relu")
def test_fx_and_trace(name):
    model = torch.nn.Sequential(make(name).eval())
    graph = torch.fx.symbolic_trace(model)
    assert [node.op for node in graph.graph.nodes] == ["placeholder", "call_module", "output"]
    x = draw(T, B, I)
    assert_same(run(graph, x), run(model, x))
    traced = torch.jit.trace(model, x, check_trace=False)
    assert_close(run(traced, draw(T + 2, B, I)), run(model, draw(T + 2, B, I)))


@each_layer
def test_torchscript_is_refused(name):
    with pytest.raises(NotImplementedError, match="torch.jit.script takes only layers that torch.nn has"):
        torch.jit.script(torch.nn.Sequential(make(name)))


def test_torchscript_refuses_noise():
    for layer in (fastrnn.LSTM(I, H, zoneout=0.1), fastrnn.GRU(I, H, recurrent_dropout=0.1)):
        with pytest.raises(NotImplementedError, match="torch.jit.script takes only layers that torch.nn has"):
            torch.jit.script(layer)


# ---- conversion ----

BEYOND = {
    "reset_after": lambda: fastrnn.GRU(I, H, reset_after=False),
    "sigmoid": lambda: fastrnn.RNN(I, H, nonlinearity="sigmoid"),
    "recurrent_dropout": lambda: fastrnn.LSTM(I, H, recurrent_dropout=0.1),
    "zoneout": lambda: fastrnn.LSTM(I, H, zoneout=(0.0, 0.1)),
    "GRUCell": lambda: fastrnn.GRUCell(I, H, reset_after=False),
    "RNNCell": lambda: fastrnn.RNNCell(I, H, nonlinearity="identity"),
}


@pytest.mark.parametrize("make_layer", BEYOND.values(), ids=BEYOND.keys())
def test_revert_leaves_what_torch_cannot_compute(make_layer):
    model = torch.nn.Sequential(make_layer(), fastrnn.LSTM(I, H))
    with pytest.warns(UserWarning, match="its cell or its noise is none of torch.nn's"):
        fastrnn.revert(model)
    assert type(model[0]).__module__ == "fastrnn.modules"
    assert type(model[1]) is torch.nn.LSTM
    assert [row.runs_on for row in fastrnn.summary(model)] == ["fastrnn", "torch.nn"]
    assert fastrnn.convert(model)[0] is model[0]


def test_revert_after_the_options_are_taken_back():
    layer = fastrnn.LSTM(I, H, zoneout=0.1)
    layer.zoneout = 0.0
    assert type(fastrnn.revert(layer)) is torch.nn.LSTM
    assert type(fastrnn.convert(layer)) is fastrnn.LSTM


@each_layer
def test_summary(name):
    model = torch.nn.Sequential(make(name))
    (row,) = fastrnn.summary(model)
    assert row.kind == type(model[0]).__name__ and row.runs_on == "fastrnn"
    assert row.parameters == sum(p.numel() for p in model.parameters())


def test_install():
    with fastrnn.install():
        layer = torch.nn.GRU(I, H, 2, batch_first=True)
        assert type(layer) is fastrnn.GRU
        assert type(torch.nn.GRU(I, H, reset_after=False)) is fastrnn.GRU
        assert torch.nn.RNN(I, H, nonlinearity="sigmoid").nonlinearity == "sigmoid"


def test_options_can_be_changed_afterwards():
    """As torch.nn's dropout."""
    layer = fastrnn.LSTM(I, H)
    x = torch.randn(T, B, I)
    plain = layer(x)[0]
    layer.zoneout = 1.0
    assert not layer(x)[0].any()
    layer.zoneout, layer.recurrent_dropout = 0.0, 1.0
    assert not torch.equal(layer(x)[0], plain)
    layer.recurrent_dropout = 0.0
    assert torch.equal(layer(x)[0], plain)


# ---- errors ----


@pytest.mark.parametrize(
    "build, words",
    [
        (lambda: fastrnn.sLSTM(I, H, num_heads=3), "num_heads: expected a divisor of 8, got 3"),
        (lambda: fastrnn.sLSTM(I, H, num_heads=0), "num_heads: expected a divisor of 8, got 0"),
        (lambda: fastrnn.IndRNN(I, H, nonlinearity="gelu"), "expected 'relu' or 'tanh', got 'gelu'"),
        (lambda: fastrnn.RNN(I, H, nonlinearity="gelu"), "nonlinearity: expected .*got 'gelu'"),
        (lambda: fastrnn.LiGRU(I, H, normalization="rms"), "normalization: expected .*, got 'rms'"),
        (lambda: fastrnn.LSTM(I, H, recurrent_dropout=1.5), "recurrent_dropout: .*probability, got 1.5"),
        (lambda: fastrnn.sLSTM(I, H, recurrent_dropout=-1), "recurrent_dropout: .*probability, got -1"),
        (lambda: fastrnn.sLSTM(I, H, dropout=2), "dropout: expected a probability, got 2"),
        (lambda: fastrnn.GRU(I, H, zoneout=1.5), r"zoneout: expected a probability.*\(h\), got 1.5"),
        (lambda: fastrnn.GRU(I, H, zoneout=math.nan), "zoneout: expected a probability"),
        (lambda: fastrnn.LSTM(I, H, zoneout=(0.1,)), r"zoneout: expected .*\(h, c\), got \(0.1,\)"),
        (lambda: fastrnn.sLSTM(I, H, zoneout=(0.1, 0.2)), r"zoneout: expected .*\(h, c, n, m\)"),
        (lambda: fastrnn.LSTM(I, H, zoneout=0.1, proj_size=2), "zoneout: expected none with a projection"),
        (lambda: fastrnn.PeepholeLSTM(I, H, zoneout=0.1, proj_size=2), "zoneout: expected none with"),
        *(
            (lambda name=name: make(name, proj_size=2), "proj_size: .* has no projection, got 2")
            for name in BASED
            if "Peephole" not in name
        ),
        (lambda: fastrnn.PeepholeLSTM(I, H, proj_size=8), "proj_size: expected from 0 to less than 8, got 8"),
        (lambda: fastrnn.sLSTM(I, 0), "hidden_size: expected at least 1, got 0"),
        (lambda: fastrnn.sLSTM(I, H, 0), "num_layers: expected at least 1, got 0"),
        (lambda: fastrnn.GRU(I, H, proj_size=2), "proj_size argument is only supported for LSTM"),
    ],
)  # fmt: skip
def test_constructors_refuse(build, words):
    with pytest.raises(ValueError, match=words):
        build()


@pytest.mark.parametrize("name", BASED)
def test_calls_refuse(name):
    layer, x = make(name).eval(), draw(T, B, I)
    with pytest.raises(RuntimeError, match="input.size"):
        layer(x[..., :-1])
    with pytest.raises(ValueError, match="dtype"):
        layer(x.float())
    with pytest.raises((ValueError, RuntimeError), match="2D or 3D|2 or 3"):
        layer(x[0, 0])
    with pytest.raises(RuntimeError, match="sequence length to be larger than 0"):
        layer(x[:0])
    states = draw_states(name, layer, B=B + 1)
    with pytest.raises(RuntimeError, match="Expected hidden.* size"):
        layer(x, give(states))
    with pytest.raises(fastrnn.functional.KindError, match="hx: expected"):
        layer(x, "state")
    with pytest.raises(fastrnn.functional.KindError, match="input: expected"):
        layer([1.0])


def test_a_step_with_late_gates_keeps_its_weights():
    """Its backward multiplies W_hh, though no other step follows."""
    layer, x = fastrnn.GRU(2, 3, reset_after=False), torch.randn(1, 2, 2, requires_grad=True)
    y, _ = layer(x)
    with torch.no_grad():
        layer.weight_hh_l0.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
