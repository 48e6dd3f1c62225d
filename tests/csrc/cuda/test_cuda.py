"""What only a GPU can show: every kind of plan, streams, graphs, memory, no waiting of the host. The other
tests run there too, with fastrnn on the GPU."""

import ctypes
import functools
from pathlib import Path

import pytest
import torch
from cases import (
    EVERY_CELL,
    GPU_MISSING,
    Case,
    cotangents,
    cover_pairs,
    evaluate,
    fastrnn_on,
    float32_products,
    give,
    name_values,
    run_python,
    take,
)
from devices import use_device
from tolerance import assert_close, assert_few_roundings, assert_same_bits, assert_same_specials

import fastrnn
from fastrnn.plan import Gpu, make_plans

if GPU_MISSING:
    pytest.skip(f"nothing runs on cuda: {GPU_MISSING}", allow_module_level=True)

pytestmark = pytest.mark.cuda

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
PLAN_DTYPES = {BF16: "bf16", FP16: "fp16", FP32: "fp32", FP64: "fp64"}
LEAST_CAPABILITY = {"stepwise": (7, 0), "grid": (8, 0), "cluster": (9, 0)}
HERE = Gpu.here()
KINDS = [kind for kind, least in LEAST_CAPABILITY.items() if HERE.capability >= least]

each_cell = pytest.mark.parametrize("cell", EVERY_CELL)


@pytest.fixture(autouse=True)
def on_gpu():
    yield from use_device("cuda")


@pytest.fixture
def kind(request, monkeypatch):
    """The kind of plan that computes. Parametrized by each test."""
    monkeypatch.setenv("FASTRNN_CUDA_PLAN", request.param)
    return request.param


def on_kinds(cases):
    """Each case with each kind of plan that can compute it."""
    pairs = [(kind, case) for case in cases for kind in KINDS if can(kind, case)]
    return pytest.mark.parametrize("kind, case", pairs, indirect=["kind"], ids=str)


def can(kind: str, case: Case) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTRNN_CUDA_PLAN", kind)
        try:
            make_plans(case.cell, case.T, case.B, case.H, PLAN_DTYPES[case.dtype], 1 + case.bidirectional)
        except RuntimeError:
            return False
    return True


@functools.cache
def truth(case):
    return case.solve_exactly()


def check(case):
    """By the float64 reference."""
    if case.dtype in (BF16, FP16):
        assert_few_roundings(case.solve(fastrnn), truth(case), case)
    else:
        want = {name: None if t is None else t.to(case.dtype) for name, t in truth(case).items()}
        assert_close(case.solve(fastrnn), want, case)


# ---- every kind of plan ----


def kind_cases():
    rows = cover_pairs(
        H=(1, 7, 17, 40, 150, 257),
        B=(1, 3, 9, 33),
        T=(1, 2, 30),
        dtype=(FP32, BF16, FP16, FP64),
        form=("padded", "packed", "batch_first"),
        bidirectional=(False, True),
        bias=(True, False),
        hx=(True, False),
    )
    for cell in EVERY_CELL:
        for row in rows:
            case = Case(cell, I=19, **row)
            # Integers, as rounding could decide which branch relu takes; few steps, as float16 ends early.
            exact = cell == "rnn_relu" and case.dtype != FP64
            yield case.but(exact=exact, T=min(case.T, 2) if exact and case.dtype == FP16 else case.T)


KIND_CASES = list(dict.fromkeys(kind_cases()))


@on_kinds(KIND_CASES)
def test_kind(kind, case):
    check(case)


@each_cell
def test_every_kind_is_tested(cell):
    """Forwards and backwards of all but float64, which a stepwise plan alone computes."""
    for kind in KINDS:
        dtypes = {case.dtype for case in KIND_CASES if case.cell == cell and can(kind, case)}
        assert dtypes == ({FP32, BF16, FP16, FP64} if kind == "stepwise" else {FP32, BF16, FP16})


def large_cases():
    for cell in ("lstm", "gru"):
        for dtype in (BF16, FP16, FP32):
            for T, B, H in ((8, 64, 1024), (8, 256, 512), (4, 8, 2048), (6, 1, 1024), (8, 16, 768)):
                yield Case(cell, T=T, B=B, I=64, H=H, dtype=dtype)


@pytest.mark.parametrize("case", list(large_cases()), ids=str)
def test_large(case):
    """By the kind of plan that is chosen."""
    check(case)


def count_launches(call) -> int:
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    on_device = torch.autograd.DeviceType.CUDA
    return sum(event.device_type == on_device for event in profile.events())


@pytest.mark.parametrize("passes", ["forward", "training"])
@pytest.mark.parametrize("kind", KINDS, indirect=True)
def test_the_kind_that_is_forced_runs(kind, passes):
    """Step after step, or one launch whatever the number of steps."""

    def count(T):
        _, call, x, hx = Case("lstm", T=T, B=9, I=19, H=40).prepare(fastrnn)

        def train():
            values = call(x, hx)
            torch.autograd.backward(values, [torch.ones_like(v) for v in values])

        with torch.set_grad_enabled(passes == "training"):
            return count_launches(train if passes == "training" else lambda: call(x, hx))

    more = count(44) - count(4)
    assert more >= 40 if kind == "stepwise" else abs(more) <= 4


@pytest.mark.parametrize(
    "kind, dtype, words",
    [
        ("fast", FP32, "FASTRNN_CUDA_PLAN: expected stepwise, grid or cluster"),
        ("grid", FP64, "a grid plan cannot compute lstm"),
    ],
)
def test_kind_that_cannot_be(kind, dtype, words, monkeypatch):
    _, call, x, hx = Case("lstm", dtype=dtype).prepare(fastrnn)
    monkeypatch.setenv("FASTRNN_CUDA_PLAN", kind)
    with pytest.raises(RuntimeError, match=words):
        call(x, hx)


@on_kinds([Case(cell, T=30, B=3, I=19, H=H).safe() for cell in EVERY_CELL for H in (17, 150)])
def test_nan_in_a_state(kind, case):
    """Goes through and holds nobody up, who might wait for a number."""

    def solve(library):
        layer, call, x, hx = case.prepare(library)
        with torch.no_grad():
            hx[0].view(-1)[case.H // 2] = float("nan")
        return evaluate(call, x, hx, dict(layer.named_parameters()), case)

    want = solve(torch.nn)
    assert want["output"].isnan().any() and not want["output"].isnan().all()
    assert_same_specials(solve(fastrnn), want, case)


@on_kinds([Case(cell, T=70_000, B=2, I=3, H=8) for cell in ("lstm", "gru", "rnn_tanh")])
def test_many_steps(kind, case):
    """More than the 65,535 at which torch.nn fails. The judge is fastrnn on the CPU, in float64: the
    reference would take a minute."""
    with fastrnn_on("cpu"):
        layer = case.build(fastrnn).double()
        x, hx = case.inputs(fastrnn)
        x, *hx = (t.detach().double().requires_grad_() for t in (x, *hx))
        want = evaluate(case.call(layer), x, hx, dict(layer.named_parameters()), case)
    assert_close(case.solve(fastrnn), {name: t.float() for name, t in want.items()}, case)


# ---- precision ----


@on_kinds([Case(cell, T=10, B=16, I=64, H=150) for cell in ("lstm", "gru", "rnn_tanh")])
def test_tf32(kind, case):
    """Follows torch's flags; errors are those of numbers rounded to 11 bits, and are there."""
    full = case.solve(fastrnn)
    with float32_products("tf32"):
        got = case.solve(fastrnn)
    want = {name: t.float() for name, t in truth(case).items()}
    assert_close(got, want, case, u=2**-11)
    if HERE.capability >= (8, 0):
        assert not torch.equal(got["output"], full["output"])


@each_cell
def test_tf32_of_matrix_products_is_not_that_of_layers(cell):
    """As torch.nn's layers on cuDNN, fastrnn's follow the flag for RNNs."""
    case = Case(cell, T=5, B=16, I=64, H=150)
    full = case.solve(fastrnn)
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        assert_same_bits(case.solve(fastrnn), full, "tf32 of matrix products")
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def cudnn_cases():
    for cell in EVERY_CELL:
        for dtype in (FP32, FP64):
            case = Case(cell, T=7, B=9, I=19, H=40, dtype=dtype).safe()
            yield from (
                case,
                case.but(form="packed"),
                case.but(L=2, bidirectional=True),
                case.but(H=257, T=30),
            )


def keep_from_zero(layer):
    """Let relu be applied to no 0 in an exact case: cuDNN takes 1 for its derivative there, fastrnn takes 0,
    as torch.nn does on the CPU.

    The sums were integers. Now a sum has one 256th of its own, and those of the states that it reads, as no
    weight of a state is negative: at least one, and in so few steps and layers fewer than 256.
    """
    with torch.no_grad():
        for name, weight in layer.named_parameters():
            if name.startswith("bias_ih"):
                weight += 1 / 256
            elif "weight_hh" in name or name.startswith("weight_ih") and "_l0" not in name:
                weight.abs_()


@pytest.mark.parametrize("case", list(cudnn_cases()), ids=str)
def test_is_cudnn(case):
    def solve(layer):
        if case.exact:
            keep_from_zero(layer)
        x, hx = case.inputs(fastrnn)
        return evaluate(case.call(layer), x, hx, dict(layer.named_parameters()), case)

    assert_close(solve(case.build(fastrnn)), solve(case.build(torch.nn).cuda()), case)


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize("step", [False, True], ids=["layer", "cell"])
@each_cell
def test_autocast(cell, step, dtype):
    """The bits of casting by hand, gradients in float32."""
    case = Case(cell, T=1 if step else 5, B=9, H=40)
    layer, call, x, hx = case.prepare_step(fastrnn) if step else case.prepare(fastrnn)
    with torch.autocast("cuda", dtype):
        values = call(x, hx)
    torch.autograd.backward(values, cotangents(values))
    assert all(leaf.grad.dtype == FP32 for leaf in (x, *hx, *layer.parameters()))
    layer.to(dtype)
    want = call(x.to(dtype), [h.to(dtype) for h in hx])
    got, want = ([v.detach() for v in values] for values in (values, want))
    assert_same_bits(name_values(got), name_values(want), "autocast")


# ---- streams and graphs ----


def name_leaves(layer, x, hx):
    return {"x": x, **{f"{s}_0": h for s, h in zip("hc", hx, strict=False)}, **dict(layer.named_parameters())}


def stream_cases():
    for cell in EVERY_CELL:
        yield Case(cell, T=20, B=9, I=19, H=40, dtype=BF16, bidirectional=True)
        yield Case(cell, T=20, B=33, I=19, H=257)
    yield Case("lstm", T=20, B=16, I=64, H=1024, dtype=BF16)  # needs most of the device, twice at once


@on_kinds(stream_cases())
def test_streams(kind, case):
    """The same bits again and again, on another stream, and on two streams at once."""
    pair = [case, case.but(seed=1)]
    want = [c.solve(fastrnn) for c in pair]
    streams = [torch.cuda.Stream() for _ in pair]
    prepared = [c.prepare(fastrnn) for c in pair]
    gradients = [cotangents(call(x, hx), c.seed) for c, (_, call, x, hx) in zip(pair, prepared, strict=True)]
    torch.cuda.synchronize()
    for _ in range(5):
        results = []
        for stream, (layer, call, x, hx), gradient in zip(streams, prepared, gradients, strict=True):
            with torch.cuda.stream(stream):
                leaves = name_leaves(layer, x, hx)
                values = call(x, hx)
                found = torch.autograd.grad(values, list(leaves.values()), gradient)
                results.append(
                    name_values([v.detach() for v in values])
                    | {f"d{name}": g for name, g in zip(leaves, found, strict=True)}
                )
        torch.cuda.synchronize()
        for got, expected in zip(results, want, strict=True):
            assert_same_bits(got, expected, "on a stream")


def capture(step):
    """A graph of `step`, and what it returned."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    return graph, results


def prepare_data(case):
    """As `Case.prepare`, but packed sequences are packed beforehand: x is their data."""
    layer, call, x, hx = case.prepare(fastrnn)
    if not case.packed:
        return layer, call, x, hx
    packed = case.pack(x.detach())

    def call_packed(x, hx):
        output, states = layer(packed._replace(data=x), give(hx))
        return [output.data, *take(states)]

    return layer, call_packed, packed.data.requires_grad_(), hx


def graph_cases():
    for cell in EVERY_CELL:
        for H in (40, 257):
            case = Case(cell, T=12, B=9, I=19, H=H, bidirectional=True)
            yield from (case, case.but(form="packed"))


@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
@on_kinds(graph_cases())
def test_graph(kind, case, training):
    """Replays, with other numbers in the inputs, give what a call gives."""
    layer, call, x, hx = prepare_data(case)
    leaves = name_leaves(layer, x, hx)
    with torch.no_grad():
        gradients = cotangents(call(x, hx))

    def step():
        for leaf in leaves.values():
            leaf.grad = None
        with torch.set_grad_enabled(training):
            values = call(x, hx)
        if training:
            torch.autograd.backward(values, gradients)
        found = {f"d{name}": leaf.grad for name, leaf in leaves.items()} if training else {}
        return name_values([v.detach() for v in values]) | found

    graph, results = capture(step)
    for seed in (1, 2):
        _, _, other_x, other_hx = prepare_data(case)
        with torch.no_grad():
            for there, other in zip((x, *hx), (other_x, *other_hx), strict=True):
                there.copy_(other * (1 + seed))
        for result in results.values():
            result.detach().fill_(float("nan"))
        graph.replay()
        got = {name: t.clone() for name, t in results.items()}
        assert_same_bits(got, step(), f"replay {seed}")


FIRST_CALL = """
import torch, fastrnn
x = torch.randn(5, 3, 7, device="cuda")
x @ x.mT  # torch's own preparations
layer = fastrnn.LSTM(7, 40, device="cuda")
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph), torch.no_grad():
    y, _ = layer(x)
graph.replay()
assert torch.equal(y, layer(x)[0])
"""


@pytest.mark.parametrize("kind", KINDS)
def test_first_call_may_be_captured(kind):
    """In a process that has neither loaded kernels nor asked what fits."""
    done = run_python("-c", FIRST_CALL, env={"FASTRNN_CUDA_PLAN": kind})
    assert done.returncode == 0, done.stderr


@pytest.mark.alone
@pytest.mark.parametrize("form", ["padded", "batch_first", "packed", "step"])
@pytest.mark.parametrize("kind", KINDS, indirect=True)
@each_cell
def test_the_host_does_not_wait(cell, kind, form):
    """Neither by torch's own account nor behind a kernel that takes long."""
    if form == "step":
        _, call, x, hx = Case(cell, T=1, B=9, I=19, H=40).prepare_step(fastrnn)
    else:
        _, call, x, hx = prepare_data(Case(cell, T=5, B=9, I=19, H=40, form=form))
    gradients = cotangents(call(x, hx))

    def train():
        torch.autograd.backward(call(x, hx), gradients)

    for _ in range(2):  # a first one loads kernels, torch's and cuBLAS's too, for which the driver may wait
        train()
    torch.cuda.synchronize()
    slept = torch.cuda.Event()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(400_000_000)  # cycles: a fifth of a second or so
        slept.record()
        train()
        assert not slept.query(), "the host has waited for the device"
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()


# ---- devices and memory ----


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
@pytest.mark.parametrize("form", ["padded", "packed"])
@each_cell
def test_second_device(cell, form):
    """Data on device 1 is computed there, also while 0 is the current device."""
    case = Case(cell, T=5, B=9, H=40, form=form)
    want = case.solve(fastrnn)
    assert torch.cuda.current_device() == 0
    with fastrnn_on("cuda:1"):
        _, call, x, hx = case.prepare(fastrnn)
        assert {v.device for v in call(x, hx)} == {torch.device("cuda:1")}
        assert_same_bits(case.solve(fastrnn), want, "device 1")
        with torch.cuda.device(1):
            assert_same_bits(case.solve(fastrnn), want, "device 1, current")
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("alone", ["x", "hx", "weight", "bias"])
@each_cell
def test_tensor_on_the_cpu(cell, alone):
    """One among others on the GPU: the exception that torch.nn raises."""
    case = Case(cell)

    def attempt(library):
        layer = case.build(library).cuda()
        x, hx = case.inputs(fastrnn)
        if alone == "x":
            x = x.cpu()
        elif alone == "hx":
            hx = [h.cpu() for h in hx]
        else:
            name = {"weight": "weight_hh_l0", "bias": "bias_ih_l0"}[alone]
            setattr(layer, name, torch.nn.Parameter(getattr(layer, name).detach().cpu()))
        with pytest.raises(Exception) as caught:
            layer(x, give(hx))
        return caught.type

    assert issubclass(attempt(fastrnn), attempt(torch.nn))


@pytest.mark.alone
@pytest.mark.parametrize("kind", KINDS, indirect=True)
def test_memory_is_from_the_allocator_of_torch(kind):
    """All that a call takes of the device it takes through torch, which has it back afterwards."""

    def train(T):
        _, call, x, hx = Case("lstm", T=T, B=64, I=64, H=256).prepare(fastrnn)
        values = call(x, hx)
        torch.autograd.backward(values, [torch.ones_like(v) for v in values])
        torch.cuda.synchronize()

    def taken_otherwise():
        free, total = torch.cuda.mem_get_info()
        return total - free - torch.cuda.memory_reserved()

    train(2)  # what libraries set up once
    torch.cuda.reset_peak_memory_stats()
    allocated, otherwise = torch.cuda.memory_allocated(), taken_otherwise()
    train(512)
    assert torch.cuda.max_memory_allocated() - allocated > 200 << 20, "the case shows nothing"
    assert torch.cuda.memory_allocated() == allocated
    assert taken_otherwise() - otherwise < 32 << 20


def test_error_is_raised_once(monkeypatch):
    """What fastrnn raises it takes from the CUDA runtime, or torch's next check would raise it too."""
    _, call, x, hx = prepare_data(Case("lstm", form="packed"))  # whose first launch is fastrnn's own
    monkeypatch.setenv("FASTRNN_CUDA_PLAN", "stepwise")
    call(x, hx)
    loaded = Path("/proc/self/maps").read_text().splitlines()
    libraries = {line.split()[-1] for line in loaded if "libcudart.so" in line}
    assert libraries, "no libcudart.so is loaded"
    ctypes.CDLL(libraries.pop()).cudaSetDevice(9999)  # leaves an error for the check of the next launch
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        call(x, hx)
    assert torch.ones(3, device="cuda").sum() == 3


@each_cell
def test_deterministic_mode(cell):
    """torch.use_deterministic_algorithms has nothing to object to."""
    torch.use_deterministic_algorithms(True)
    try:
        Case(cell, T=4, bidirectional=True).solve(fastrnn)
    finally:
        torch.use_deterministic_algorithms(False)
