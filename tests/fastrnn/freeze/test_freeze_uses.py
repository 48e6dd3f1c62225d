"""What works with a frozen layer: saving, threads, export, compilation, vmap and others."""

import concurrent.futures
import copy
import itertools
import pickle
from unittest.mock import patch

import pytest
import torch
from cases import give, take, using_threads
from frozen import BF16, CELL_MODULES, DOUBLE, FLOAT, INT8, KINDS, each_kind, each_layer
from layer_kinds import EVERY_LAYER, B, H, I, T, draw, draw_states, make, run
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn.frozen import FrozenLayer


def copies(frozen, other, folder):
    """Copies of a frozen layer by name; `other` is one of the same kind."""
    yield "pickle", pickle.loads(pickle.dumps(frozen))
    yield "deepcopy", copy.deepcopy(frozen)
    torch.save(frozen, folder / "layer.pt")
    yield "save", torch.load(folder / "layer.pt", weights_only=False)
    torch.save(frozen.state_dict(), folder / "state.pt")
    other.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    yield "state_dict", other


@each_layer
@each_kind
def test_copies(name, kind, tmp_path):
    dtype, arguments = KINDS[kind]
    layer = make(name, dtype=dtype, num_layers=2, bidirectional=True).eval()
    frozen = fastrnn.freeze(layer, **arguments)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(-2)
    other = fastrnn.freeze(layer, **arguments)
    x = draw(T, B, I, dtype=dtype)
    want = run(frozen, x)
    assert not torch.equal(run(other, x)[0], want[0])
    frozen.compile(backend="eager")  # which is not copied
    for how, again in copies(frozen, other, tmp_path):
        assert type(again) is FrozenLayer and repr(again) == repr(frozen), how
        assert all(map(torch.equal, run(again, x), want)), how
        shared = {b.data_ptr() for b in again.buffers()} & {b.data_ptr() for b in frozen.buffers()}
        assert not shared, how


def test_load_state_dict_of_another_kind():
    float32, int8 = (fastrnn.freeze(torch.nn.LSTM(I, H), dtype) for dtype in (None, INT8))
    with pytest.raises(RuntimeError, match="size mismatch for packed_l0"):
        float32.load_state_dict(int8.state_dict())


CASTS = {
    "double": lambda m: m.double(),
    "half": lambda m: m.half(),
    "to": lambda m: m.to(DOUBLE),
    "bfloat16": lambda m: m.to("cpu", BF16),
    "type": lambda m: m.type(DOUBLE),
    "float": lambda m: m.float(),
    "share_memory": lambda m: m.share_memory(),
    "requires_grad": lambda m: m.requires_grad_(),
    "zero_grad": lambda m: m.zero_grad() or m,
    "eval": lambda m: m.eval(),
    "train": lambda m: m.train(),
}


@pytest.mark.parametrize("cast", CASTS)
@each_kind
@each_layer
def test_casts_leave_it_as_it_is(name, kind, cast):
    dtype, arguments = KINDS[kind]
    model = torch.nn.Sequential(fastrnn.freeze(make(name, dtype=dtype, num_layers=2), **arguments))
    x = draw(T, B, I, dtype=dtype)
    want = run(model, x)
    assert CASTS[cast](model) is model
    assert all(map(torch.equal, run(model, x), want))


def test_other_devices():
    frozen = fastrnn.freeze(torch.nn.LSTM(I, H))
    y, (h, c) = copy.deepcopy(frozen).to("meta")(torch.empty(T, B, I, device="meta"))
    assert y.shape == (T, B, H) and h.shape == c.shape == (1, B, H) and y.is_meta and h.is_meta
    with patch.object(torch.Tensor, "cuda", lambda self, device=None: torch.empty(0, device="meta")):
        frozen.cuda()  # as where there is a device: meta stands for one that is allowed


@each_kind
@each_layer
def test_stateful(name, kind):
    dtype, arguments = KINDS[kind]
    frozen = fastrnn.freeze(make(name, dtype=dtype, num_layers=2), **arguments)
    x = draw(2 * T, B, I, dtype=dtype)
    stateful = fastrnn.Stateful(frozen)
    parts = torch.cat([stateful(x[:T]), stateful(x[T:])])
    whole = frozen(x)[0]
    # In 16 bits a state that is handed on is rounded once more; what is quantized then may differ a little.
    tolerance = 0.05 if dtype == BF16 else 1e-4 if kind == "int8" else 1e-5
    torch.testing.assert_close(parts, whole, rtol=tolerance, atol=tolerance)
    stateful.reset(torch.tensor([True, False, False, False]))
    fresh, old = frozen(x[:T])[0], stateful(x[:T])
    torch.testing.assert_close(old[:, 0], fresh[:, 0], rtol=tolerance, atol=tolerance)
    assert (old[:, 1] - fresh[:, 1]).abs().max() > 1e-4
    kept = fastrnn.freeze(fastrnn.Stateful(make(name, dtype=dtype, num_layers=2)), **arguments)
    assert type(kept.layer) is FrozenLayer
    torch.testing.assert_close(torch.cat([kept(x[:T]), kept(x[T:])]), parts, rtol=0, atol=0)


@pytest.mark.parametrize("name", CELL_MODULES)
def test_stateful_cell(name):
    make_cell, own = CELL_MODULES[name]
    frozen, x = fastrnn.freeze(make_cell(I, H, **own)), draw(T, B, I, dtype=FLOAT)
    stateful, state = fastrnn.Stateful(frozen), None
    for t in range(T):
        state = frozen(x[t], state)
        assert torch.equal(stateful(x[t]), take(state)[0])


@each_kind
def test_threads_of_python(kind):
    """Several call one layer at once."""
    dtype, arguments = KINDS[kind]
    frozen = fastrnn.freeze(make("LayerNormLSTM", dtype=dtype, num_layers=2), **arguments)
    inputs = [draw(T, n, I, seed=n, dtype=dtype) for n in range(1, 9)]
    want = [frozen(x)[0] for x in inputs]
    with using_threads(1), concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            got = list(pool.map(lambda x: frozen(x)[0], inputs))
            assert all(map(torch.equal, got, want))


@pytest.mark.parametrize(
    "name", ["LSTM", "GRU", "LayerNormLSTM", "LiGRU-batchnorm", "sLSTM-heads", "LSTM-proj"]
)
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8", "int8_wide"])
def test_export(name, kind):
    frozen = fastrnn.freeze(make(name, dtype=FLOAT, num_layers=2, bidirectional=True), **KINDS[kind][1])
    model = torch.nn.Sequential(frozen)
    x, other = draw(T, B, I, dtype=FLOAT), draw(T + 3, B + 2, I, dtype=FLOAT)
    sizes = {0: torch.export.Dim("T", min=2, max=50), 1: torch.export.Dim("B", min=2, max=50)}
    program = torch.export.export(model, (x,), dynamic_shapes={"input": sizes})
    assert all(map(torch.equal, run(program.module(), other), run(frozen, other)))


@pytest.mark.parametrize("call", ["plain", "hx", "lengths", "resets", "every", "packed"])
@pytest.mark.parametrize(
    "name",
    [
        "LayerNormLSTM",
        *(pytest.param(n, marks=pytest.mark.thorough) for n in EVERY_LAYER if n != "LayerNormLSTM"),
    ],
)
def test_compile(name, call):
    """In one graph, of any batch."""
    frozen = fastrnn.freeze(make(name, dtype=FLOAT, num_layers=2), INT8)
    torch._dynamo.reset()

    def solve(x, lengths, resets, *hx):
        kwargs = {"lengths": lengths} if call == "lengths" else {}
        kwargs |= {"resets": resets} if call == "resets" else {}
        kwargs |= {"return_all_states": True} if call == "every" else {}
        return frozen(x, give(hx) if call == "hx" else None, **kwargs)

    compiled = torch.compile(solve, fullgraph=call != "packed", backend="aot_eager", dynamic=True)
    for n in (B, B + 3):
        x, hx = draw(T, n, I, dtype=FLOAT), draw_states(name, frozen, B=n, dtype=FLOAT)
        lengths = torch.arange(n) % T + 1
        if call == "packed":
            x = pack_padded_sequence(x, lengths, enforce_sorted=False)
        arguments = x, lengths, draw(T, n) > 1, *hx
        got, want = (torch.utils._pytree.tree_leaves(f(*arguments)) for f in (compiled, solve))
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g, w, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [fastrnn.LSTMCell, fastrnn.GRUCell])
def test_compile_and_export_of_cells(kind):
    frozen = fastrnn.freeze(kind(I, H), INT8)
    torch._dynamo.reset()
    compiled = torch.compile(frozen, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (2, 5):
        x = draw(n, I, dtype=FLOAT)
        state = frozen(x)
        assert all(map(torch.equal, take(compiled(x, state)), take(frozen(x, state))))
    batch = torch.export.Dim("B", min=2, max=50)
    program = torch.export.export(frozen, (draw(3, I, dtype=FLOAT),), dynamic_shapes={"input": {0: batch}})
    x = draw(7, I, dtype=FLOAT)
    assert all(map(torch.equal, take(program.module()(x)), take(frozen(x))))


def test_module_compile():
    frozen, x = fastrnn.freeze(torch.nn.LSTM(I, H)), draw(T, B, I, dtype=FLOAT)
    want = run(frozen, x)
    torch._dynamo.reset()
    frozen.compile(fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, run(frozen, x), want))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("name", ["LSTM", "GRU", "LayerNormLSTM", "LiGRU-batchnorm", "sLSTM-heads"])
def test_fx_and_trace(name):
    model = torch.nn.Sequential(fastrnn.freeze(make(name, dtype=FLOAT), INT8))
    graph = torch.fx.symbolic_trace(model)
    assert [node.op for node in graph.graph.nodes] == ["placeholder", "call_module", "output"]
    x, other = draw(T, B, I, dtype=FLOAT), draw(T + 2, B - 1, I, dtype=FLOAT)
    assert all(map(torch.equal, run(graph, x), run(model, x)))
    traced = torch.jit.trace(model, x, check_trace=False)
    assert all(map(torch.equal, run(traced, other), run(model, other)))
    with pytest.raises(torch.fx.proxy.TraceError, match="FrozenLayer: torch.fx cannot trace its forward"):
        torch.fx.symbolic_trace(model[0])


def test_torchscript_is_refused():
    for module in (torch.nn.LSTM(I, H), torch.nn.LSTMCell(I, H), fastrnn.sLSTM(I, H)):
        with pytest.raises(NotImplementedError, match="torch.jit.script takes no frozen layers"):
            torch.jit.script(torch.nn.Sequential(fastrnn.freeze(module)))


@each_kind
@each_layer
def test_autocast(name, kind):
    """What came from a region's operators is cast, in whatever form; results are of the layer's dtype."""
    dtype, arguments = KINDS[kind]
    frozen = fastrnn.freeze(make(name, dtype=dtype, num_layers=2), **arguments)
    x = draw(T, B, I, dtype=BF16)
    hx = draw_states(name, frozen, dtype=BF16)
    packed = pack_padded_sequence(x, [T] * B)
    want = run(frozen, x.to(dtype), [s.to(dtype) for s in hx])
    with torch.autocast("cpu", BF16):
        assert all(map(torch.equal, run(frozen, x, hx), want))
        assert all(map(torch.equal, run(frozen, x.to(dtype), hx), want))
        output, *states = run(frozen, packed, hx)
        assert torch.equal(output.data.view(want[0].shape), want[0])
        assert all(map(torch.equal, states, want[1:]))
    assert all(t.dtype == dtype for t in want)


@pytest.mark.parametrize("name", CELL_MODULES)
def test_autocast_of_cells(name):
    make_cell, own = CELL_MODULES[name]
    frozen, x = fastrnn.freeze(make_cell(I, H, **own)), draw(B, I, dtype=BF16)
    state = frozen(x.float())
    rounded_state = give([s.bfloat16() for s in take(state)])
    want = take(frozen(x.float(), give([s.bfloat16().float() for s in take(state)])))
    with torch.autocast("cpu", BF16):
        for given in (x, x.float()):
            assert all(map(torch.equal, take(frozen(given, rounded_state)), want))


@each_layer
def test_inference_mode(name):
    """Inside, and with what comes out of it."""
    frozen, x = fastrnn.freeze(make(name, dtype=FLOAT, num_layers=2)), draw(T, B, I, dtype=FLOAT)
    want = run(frozen, x, draw_states(name, frozen, dtype=FLOAT))
    with torch.inference_mode():
        inside, hx = x.clone(), draw_states(name, frozen, dtype=FLOAT)
        got = run(frozen, inside, hx)
    assert all(map(torch.equal, got, want)) and got[0].is_inference()
    assert all(map(torch.equal, run(frozen, inside, hx), want))
    with torch.inference_mode():
        made = fastrnn.freeze(make(name, dtype=FLOAT, num_layers=2))
    assert all(map(torch.equal, run(made, x, hx), want))


@each_layer
@each_kind
def test_default_dtype(name, kind):
    """It changes nothing."""
    dtype, arguments = KINDS[kind]
    layer, x = make(name, dtype=dtype, num_layers=2), draw(T, B, I, dtype=dtype)
    packed = pack_padded_sequence(x, [T] * B)
    frozen = fastrnn.freeze(layer, **arguments)
    want = run(frozen, x)
    torch.set_default_dtype(DOUBLE)
    try:
        again = fastrnn.freeze(layer, **arguments)
        for module in (frozen, again):
            assert all(map(torch.equal, run(module, x), want))
            assert torch.equal(run(module, packed)[0].data.view(want[0].shape), want[0])
    finally:
        torch.set_default_dtype(FLOAT)
    assert all(map(torch.equal, again.buffers(), frozen.buffers()))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("form", ["batched", "unbatched"])
@pytest.mark.parametrize("every", [False, True])
@each_layer
def test_vmap(name, form, every, batch_first):
    frozen = fastrnn.freeze(
        make(name, dtype=FLOAT, num_layers=2, bidirectional=True, batch_first=batch_first)
    )
    x = draw(3, *((B, T) if batch_first else (T, B)), I, dtype=FLOAT)
    hx = (
        torch.stack([torch.stack(draw_states(name, frozen, dtype=FLOAT))] * 3) if "proj" not in name else None
    )
    if form == "unbatched":
        x, hx = (x[:, 0] if batch_first else x[:, :, 0]), hx if hx is None else hx[..., 0, :]

    def call(x, hx):
        states = None if hx is None else give(list(hx))
        return torch.utils._pytree.tree_leaves(frozen(x, states, return_all_states=every))

    for in_dim, states in itertools.product((0, 1), {id(hx): hx, id(None): None}.values()):
        got = torch.vmap(call, (in_dim, None if states is None else 0))(x.movedim(0, in_dim), states)
        for k in range(3):
            for g, w in zip(got, call(x[k], states if states is None else states[k]), strict=True):
                torch.testing.assert_close(g[k], w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["LSTM", "sLSTM-heads"])
def test_vmap_of_packed_sequences(name):
    frozen, x = fastrnn.freeze(make(name, dtype=FLOAT)), draw(3, T, B, I, dtype=FLOAT)

    def call(x):
        return torch.utils._pytree.tree_leaves(run(frozen, x, lengths=[6, 5, 2, 1]))

    got = torch.vmap(call)(x)
    for k in range(3):
        for g, w in zip(got, call(x[k]), strict=True):
            torch.testing.assert_close(g[k], w, rtol=1e-5, atol=1e-5)


def test_vmap_of_cells_and_weights():
    frozen = fastrnn.freeze(fastrnn.LSTMCell(I, H))
    x, h = draw(3, B, I, dtype=FLOAT), draw(3, B, H, dtype=FLOAT)
    for pick in (lambda t: t, lambda t: t[:, 0]):  # batches, and single sequences
        given = pick(x), pick(h)
        got = torch.vmap(lambda x, h: frozen(x, (h, h)))(*given)
        for k in range(3):
            want = frozen(given[0][k], (given[1][k],) * 2)
            assert all(map(torch.equal, (g[k] for g in got), want))
    models = [fastrnn.freeze(make("LayerNormLSTM", dtype=FLOAT, bias=bias)) for bias in (True, True)]
    with torch.no_grad():
        layer = make("LayerNormLSTM", dtype=FLOAT)
        layer.weight_ih_l0[0].mul_(-3)
        models[1] = fastrnn.freeze(layer)
    _, buffers = torch.func.stack_module_state(models)
    got = torch.vmap(lambda b: torch.func.functional_call(models[0], b, (x[0],))[0])(buffers)
    for g, m in zip(got, models, strict=True):
        torch.testing.assert_close(g, m(x[0])[0], rtol=1e-5, atol=1e-5)
    assert (got[0] - got[1]).abs().max() > 1e-3
