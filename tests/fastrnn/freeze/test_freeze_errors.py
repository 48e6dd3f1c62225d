"""What frozen layers refuse: gradients, and arguments that are wrong or hostile."""

import pytest
import torch
from cases import give, run_python
from frozen import BF16, DOUBLE, FLOAT, INT8, each_layer
from layer_kinds import B, H, I, T, draw, draw_states, make, run
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn


@pytest.mark.parametrize("where", ["input", "hx"])
@pytest.mark.parametrize("how", ["plain", "lengths", "resets", "packed", "unbatched"])
@each_layer
def test_gradients_are_refused(name, how, where):
    frozen = fastrnn.freeze(make(name, dtype=FLOAT, num_layers=2))
    x, hx = draw(T, B, I, dtype=FLOAT), draw_states(name, frozen, dtype=FLOAT)
    if how == "unbatched":
        x, hx = x[:, 0], [s[:, 0] for s in hx]
    (x if where == "input" else hx[-1]).requires_grad_()
    kwargs = {"lengths": torch.full((B,), T)} if how == "lengths" else {}
    kwargs |= {"resets": torch.zeros(T, B, dtype=torch.bool)} if how == "resets" else {}
    given = pack_padded_sequence(x, [T] * B) if how == "packed" else x
    with pytest.raises(RuntimeError, match=r"requires a gradient.* for inference.*torch.no_grad\(\)"):
        frozen(given, give(hx), **kwargs)
    with torch.no_grad():
        results = run(frozen, given, hx, **kwargs)
    assert not any(t.data.requires_grad for t in results)


def test_gradients_of_cells_are_refused():
    frozen = fastrnn.freeze(torch.nn.LSTMCell(I, H))
    x, h = draw(B, I, dtype=FLOAT), draw(B, H, dtype=FLOAT)
    for given in ((x.clone().requires_grad_(), None), (x, (h, h.clone().requires_grad_()))):
        with pytest.raises(RuntimeError, match="requires a gradient.* for inference"):
            frozen(*given)
        with torch.no_grad():
            assert not frozen(*given)[0].requires_grad


def test_torch_func_is_refused():
    frozen, x = fastrnn.freeze(torch.nn.LSTM(I, H)), draw(T, B, I, dtype=FLOAT)
    with pytest.raises(RuntimeError, match="requires a gradient.* for inference"):
        torch.func.grad(lambda x: frozen(x)[0].sum())(x)


@pytest.mark.parametrize("name", ["LSTM", "LayerNormLSTM"])
def test_forward_mode_is_refused(name):
    """A tangent of zeros would be wrong."""
    frozen, x = fastrnn.freeze(make(name, dtype=FLOAT)), draw(T, B, I, dtype=FLOAT)
    with pytest.raises((RuntimeError, NotImplementedError), match="inference"):
        torch.func.jvp(lambda x: frozen(x)[0], (x,), (x,))
    with (
        torch.autograd.forward_ad.dual_level(),
        pytest.raises((RuntimeError, NotImplementedError), match="inference"),
    ):
        frozen(torch.autograd.forward_ad.make_dual(x, x))


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ((3,), TypeError, "fastrnn.freeze: model: expected a torch.nn.Module, got int"),
        ((torch.nn.LSTM,), TypeError, "model: expected a torch.nn.Module, got type"),
        ((torch.nn.LSTM(I, H), torch.float16), ValueError, "dtype: expected None, .*, got torch.float16"),
        ((torch.nn.LSTM(I, H), "int8"), ValueError, "dtype: expected None, .*, got int8"),
        ((torch.nn.LSTM(I, H), DOUBLE), ValueError, "dtype: expected None, .*, got torch.float64"),
        (
            (torch.nn.LSTM(I, H).double(), INT8),
            NotImplementedError,
            "LSTM: expected a layer of float32, got torch.float64",
        ),
        (
            (torch.nn.Sequential(torch.nn.GRU(I, H).double()), BF16),
            NotImplementedError,
            "0: expected a layer of float32, got torch.float64",
        ),
        (
            (torch.nn.LSTM(I, H).half(),),
            NotImplementedError,
            "expected a layer of float32.*, got torch.float16",
        ),
        (
            (torch.nn.GRUCell(I, H, device="meta"),),
            NotImplementedError,
            "GRUCell: expected a layer on the CPU, got one on meta",
        ),
    ],
)
def test_freeze_refuses(arguments, error, words):
    with pytest.raises(error, match=words):
        fastrnn.freeze(*arguments)


@pytest.mark.parametrize("make_module", [torch.nn.GRUCell, fastrnn.IndRNN, fastrnn.LayerNormLSTM])
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_freeze_refuses_layers_of_no_size(make_module):
    for arguments in ({}, {"dtype": INT8}):
        with pytest.raises(NotImplementedError, match="weight_ih.*: expected sizes of at least 1, got"):
            fastrnn.freeze(make_module(0, H), **arguments)


@pytest.mark.parametrize("dtype", [None, FLOAT, BF16])
@pytest.mark.parametrize("activations", [FLOAT, INT8])
def test_activations_are_of_int8(dtype, activations):
    with pytest.raises(
        ValueError, match=f"activations: expected .*int8 weights, got {activations} with {dtype}"
    ):
        fastrnn.freeze(torch.nn.LSTM(I, H), dtype, activations=activations)
    with pytest.raises(ValueError, match="activations: expected .*, got torch.bfloat16"):
        fastrnn.freeze(torch.nn.LSTM(I, H), INT8, activations=BF16)


def test_a_model_without_layers():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4))
    with pytest.warns(UserWarning, match="fastrnn.freeze found no recurrent layer in Sequential"):
        frozen = fastrnn.freeze(model)
    assert type(frozen[0]) is torch.nn.Linear and frozen[0] is not model[0]


@each_layer
def test_calls_refuse(name):
    frozen, x = fastrnn.freeze(make(name)), draw(T, B, I)
    with pytest.raises(RuntimeError, match=r"input.size\(-1\) .* Expected 5, got 4"):
        frozen(x[..., :-1])
    with pytest.raises(ValueError, match=r"input dtype \(torch.float32\).*torch.float64"):
        frozen(x.float())
    for wrong in (x[None], x[0, 0]):
        with pytest.raises(ValueError, match="Expected input to be 2D or 3D, got"):
            frozen(wrong)
    with pytest.raises(RuntimeError, match="sequence length to be larger than 0"):
        frozen(x[:0])
    states = draw_states(name, frozen, B=B + 1)
    with pytest.raises(RuntimeError, match=r"Expected hidden.* size .*, got \[1, 5, .*for h_0"):
        frozen(x, give(states))
    states = draw_states(name, frozen)
    with pytest.raises(RuntimeError, match="_0: expected Double on cpu, got Float"):
        frozen(x, give([*states[:-1], states[-1].float()]))
    with pytest.raises(fastrnn.KindError, match="hx: expected .*, got str"):
        frozen(x, "state")
    with pytest.raises(fastrnn.KindError, match="hx: expected"):
        frozen(x, (*states, *states))
    with pytest.raises(fastrnn.KindError, match="input: expected Tensor or PackedSequence, got list"):
        frozen([1.0])
    with pytest.raises(RuntimeError, match=r"lengths: expected size \[4\]"):
        frozen(x, lengths=[1])
    with pytest.raises(RuntimeError, match=r"resets: expected size \[6, 4\]"):
        frozen(x, resets=torch.zeros(2, dtype=torch.bool))


def test_calls_of_cells_refuse():
    frozen, x, h = fastrnn.freeze(torch.nn.LSTMCell(I, H)), draw(B, I, dtype=FLOAT), draw(B, H, dtype=FLOAT)
    with pytest.raises(RuntimeError, match="inconsistent input_size: got 4 expected 5"):
        frozen(x[:, :-1])
    with pytest.raises(RuntimeError, match="input: expected dtype Float, got Double"):
        frozen(x.double())
    with pytest.raises(ValueError, match="Expected input to be 1D or 2D, got 3D"):
        frozen(x[None])
    with pytest.raises(RuntimeError, match="batch size 3 of h_0"):
        frozen(x, (h[:3], h))
    with pytest.raises(RuntimeError, match="inconsistent hidden_size: got 7, expected 8 for c_0"):
        frozen(x, (h, h[:, :-1]))
    with pytest.raises(RuntimeError, match="c_0: expected Float on cpu, got Double"):
        frozen(x, (h, h.double()))
    for wrong in (h, (h,), (h, h, h), 3):
        with pytest.raises(fastrnn.KindError, match=r"hx: expected tuple \(h, c\) of 2 Tensors"):
            frozen(x, wrong)
    with pytest.raises(fastrnn.KindError, match="input: expected Tensor, got list"):
        frozen([1.0])
    with pytest.raises(RuntimeError, match=r"resets: expected size \[4\]"):
        frozen(x, resets=torch.zeros(3, dtype=torch.bool))


# Each call in a process of its own, which may die of it.
HOSTILE = """
import os, sys, torch
import fastrnn
from cases import using_threads

F, ops = torch.float32, torch.ops.fastrnn
zeros = lambda n: torch.zeros(n, dtype=torch.uint8)
layer, cell = fastrnn.freeze(fastrnn.LSTM(5, 7)), fastrnn.freeze(fastrnn.LSTMCell(5, 7))
packed, x, h, of_ligru = layer.packed_l0, torch.ones(2, 3, 5), torch.zeros(1, 3, 7), torch.ones(2, 3, 14)

def rnn(packed=packed, x=x, hx=(), sizes=None, name="lstm", weights="float32", I=5, H=7, P=0, L=1, **rest):
    given = x, sizes, list(hx), [packed] * min(L, 1)
    return ops.frozen_rnn(*given, name, F, weights, I, H, P, L, False, False, **rest)

def step(packed=cell.packed, x=x[0], hx=(), name="lstm", I=5, H=7):
    return ops.frozen_cell(x, list(hx), packed, name, F, "float32", I, H)

def product(packed, x=x, N=7, weights="float32"):
    return ops.frozen_product(x, packed, weights, N)

def with_enough(call):
    # a buffer of as many bytes as the error asks for
    try:
        return call(zeros(1))
    except RuntimeError as error:
        return call(zeros(int(str(error).split("packed: expected ")[1].split()[0])))

def without_buffer(module):
    for name in module._buffers:
        module._buffers[name] = None
    module(x if module is layer else x[0])

calls = {
    "too short": lambda: rnn(packed[:-1].clone()),
    "empty": lambda: rnn(zeros(0)),
    "too long": lambda: rnn(torch.cat([packed, packed])),
    "of floats": lambda: rnn(packed.float()),
    "of int8": lambda: rnn(packed.view(torch.int8)),
    "of another kind": lambda: rnn(weights="int8"),
    "no kind": lambda: rnn(weights="int4"),
    "too few": lambda: rnn(L=2),
    "no layer": lambda: rnn(L=0),
    "no cell": lambda: rnn(name="cell"),
    "no storage": lambda: (packed.untyped_storage().resize_(0), rnn()),
    "no storage of x": lambda: (x.untyped_storage().resize_(0), rnn()),
    "H of another": lambda: rnn(H=8),
    "I of another": lambda: rnn(I=6, x=torch.zeros(2, 3, 6)),
    "no unit": lambda: with_enough(lambda p: rnn(p, H=0)),
    "no unit in a step": lambda: with_enough(lambda p: step(p, H=0)),
    "H below 0": lambda: with_enough(lambda p: rnn(p, H=-1)),
    "huge H": lambda: rnn(H=2**61),
    "huge I": lambda: rnn(I=2**62),
    "a projection of a GRU": lambda: with_enough(lambda p: rnn(p, name="gru", P=3)),
    "a projection of a LiGRU": lambda: with_enough(lambda p: rnn(p, of_ligru, name="ligru", P=40)),
    "one state": lambda: rnn(hx=[h]),
    "five states": lambda: rnn(hx=[h] * 5),
    "one state of no sequence": lambda: rnn(hx=[h[:, :0]], x=x[:, :0]),
    "one state in a step": lambda: step(hx=[h[0]]),
    "one state in a step of no sequence": lambda: step(hx=[h[0, :0]], x=x[0, :0]),
    "five states in a step": lambda: step(hx=[h[0]] * 5),
    "wrong state": lambda: rnn(hx=[h, h[:, :2]]),
    "zoneout": lambda: rnn(zoneout=[0.1]),
    "resets": lambda: rnn(resets=torch.zeros(2, dtype=torch.bool)),
    "resets of ints": lambda: rnn(resets=torch.zeros(2, 3, dtype=torch.long)),
    "batch sizes": lambda: rnn(x=x[0], sizes=torch.tensor([9, 1])),
    "growing batch sizes": lambda: rnn(x=x[0], sizes=torch.tensor([1, 2])),
    "batch sizes below 0": lambda: rnn(x=x[0], sizes=torch.tensor([-3, 6])),
    "no batch sizes": lambda: rnn(x=x[0], sizes=torch.zeros(0, dtype=torch.long)),
    "4-D": lambda: rnn(x=x[None]),
    "short step": lambda: step(cell.packed[1:].clone()),
    "step of a layer norm": lambda: step(name="layer_norm_lstm"),
    "product": lambda: product(zeros(64)),
    "product of another kind": lambda: product(zeros(64), weights="int8"),
    "product of no dimension": lambda: product(zeros(64), x=torch.zeros(())),
    "product below 0": lambda: product(zeros(64), N=-1),
    "huge product": lambda: product(zeros(64), N=2**62),
    "product of floats": lambda: product(torch.zeros(320)),
    "buffers gone": lambda: without_buffer(layer),
    "buffer of a cell gone": lambda: without_buffer(cell),
    "sparse": lambda: layer(x.to_sparse()),
}
def in_fork(call):
    pid = os.fork()
    if pid == 0:
        try:
            call()
        except Exception:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

for name, call in calls.items():
    status = in_fork(call)
    if status != 1 << 8:
        print(f"{name}: " + ("no error" if status == 0 else f"signal {status & 127}"))

big, y = fastrnn.freeze(fastrnn.LayerNormLSTM(40, 150), torch.int8), torch.randn(4, 33, 40)
for threads in (1, 2):
    with using_threads(threads):
        want = big(y)[0]  # which begins threads
        # A child has none of them, and no library may wait for them.
        status = in_fork(lambda: torch.set_num_threads(1) or torch.equal(big(y)[0], want) or 1 / 0)
        if status:
            print(f"a forked process with {threads} threads: {status}")
print("done")
"""


def test_hostile_calls_and_forks():
    """Errors and never a crash; and a forked process computes the same."""
    done = run_python("-W", "ignore", "-c", HOSTILE, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "done", done.stdout
