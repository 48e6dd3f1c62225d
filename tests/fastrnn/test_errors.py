"""Bad input: the exception that torch.nn raises, a message that names the argument, and nothing changed."""

import pytest
import torch
from cases import EVERY_CELL, Case, cotangents, device_of, random
from tolerance import assert_same_bits
from torch.nn import Parameter
from torch.nn.utils.rnn import PackedSequence

import fastrnn
import fastrnn.functional
from fastrnn import _C
from fastrnn.reference import CELLS

pytestmark = pytest.mark.usefixtures("device")

L, T, B, I, H = 2, 4, 3, 5, 19

INPUT = r"\binput\b"
HX = r"\b(hx|h_0|c_0)\b"
H_0 = r"\b(hx|h_0)\b"
BATCH_SIZES = r"\bbatch_sizes\b"


def make_states(cell, *shape, dtype=torch.float32):
    """States as the cell takes them."""
    states = [torch.zeros(shape, dtype=dtype) for _ in range(CELLS[cell].states)]
    return states[0] if len(states) == 1 else tuple(states)


def packed(rows, *batch_sizes, dtype=torch.int64, size=I):
    return PackedSequence(torch.zeros(rows, size), torch.tensor(batch_sizes, dtype=dtype))


# name: (arguments of the call, given the cell; what the message names[; the exception, where torch.nn raises
# none])
LAYER_INPUTS = {
    "input-1d": (lambda cell: (torch.zeros(I),), INPUT),
    "input-4d": (lambda cell: (torch.zeros(1, T, B, I),), INPUT),
    "input-size": (lambda cell: (torch.zeros(T, B, I + 1),), INPUT),
    "input-size-unbatched": (lambda cell: (torch.zeros(T, I + 1),), INPUT),
    "input-no-steps": (lambda cell: (torch.zeros(0, B, I),), INPUT),
    "input-float64": (lambda cell: (torch.zeros(T, B, I, dtype=torch.float64),), INPUT),
    "input-int64": (lambda cell: (torch.zeros(T, B, I, dtype=torch.int64),), INPUT),
    "input-meta": (lambda cell: (torch.zeros(T, B, I, device="meta"),), INPUT),
    "input-list": (lambda cell: ([1.0, 2.0],), INPUT),
    "input-none": (lambda cell: (None,), INPUT),
    "hx-2d": (lambda cell: (torch.zeros(T, B, I), make_states(cell, L, H)), HX),
    "hx-3d-unbatched": (lambda cell: (torch.zeros(T, I), make_states(cell, L, 1, H)), HX),
    "hx-batch": (lambda cell: (torch.zeros(T, B, I), make_states(cell, L, B + 1, H)), HX),
    "hx-batch-of-1": (lambda cell: (torch.zeros(T, B, I), make_states(cell, L, 1, H)), HX),
    "hx-layers": (lambda cell: (torch.zeros(T, B, I), make_states(cell, 1, B, H)), HX),
    "hx-hidden": (lambda cell: (torch.zeros(T, B, I), make_states(cell, L, B, H + 1)), HX),
    "hx-float64": (lambda cell: (torch.zeros(T, B, I), make_states(cell, L, B, H, dtype=torch.float64)), HX),
    "hx-list": (lambda cell: (torch.zeros(T, B, I), [torch.zeros(L, B, H)] * (3 - CELLS[cell].states)), HX),
    "hx-other-kind": (
        lambda cell: (
            torch.zeros(T, B, I),
            torch.zeros(L, B, H) if cell == "lstm" else (torch.zeros(L, B, H),) * 2,
        ),
        HX,
    ),
    "hx-string": (lambda cell: (torch.zeros(T, B, I), "zeros"), HX),
    "packed-size": (lambda cell: (packed(5, 3, 2, size=I + 1),), INPUT),
    "packed-hx-batch": (lambda cell: (packed(5, 3, 2), make_states(cell, L, 2, H)), HX + "|" + BATCH_SIZES),
    "packed-growing": (lambda cell: (packed(5, 2, 3),), BATCH_SIZES),
    "packed-negative": (lambda cell: (packed(3, 3, 1, -1),), BATCH_SIZES),
    "packed-none": (lambda cell: (packed(0, *()),), BATCH_SIZES),
    "packed-float64": (
        lambda cell: (PackedSequence(torch.zeros(5, I, dtype=torch.float64), torch.tensor([3, 2])),),
        INPUT,
    ),
    "packed-int32": (lambda cell: (packed(5, 3, 2, dtype=torch.int32),), BATCH_SIZES),
    # torch.nn reads rows that no sequence has, or leaves some out, without a word
    "packed-too-many-rows": (lambda cell: (packed(6, 3, 2),), BATCH_SIZES, RuntimeError),
    "packed-too-few-rows": (lambda cell: (packed(4, 3, 2),), BATCH_SIZES, RuntimeError),
    "packed-zero-inside": (lambda cell: (packed(5, 3, 0, 2),), BATCH_SIZES),
    "input-sparse": (lambda cell: (torch.zeros(T, B, I).to_sparse(),), r"", RuntimeError),
}

# Here fastrnn's message begins with torch.nn's.
SAME_WORDS = {
    *("input-1d", "input-4d", "input-size", "input-size-unbatched", "input-no-steps", "input-float64"),
    *("input-int64", "hx-2d", "hx-3d-unbatched", "hx-batch", "hx-batch-of-1", "hx-layers", "hx-hidden"),
}

STEP_INPUTS = {
    "input-0d": (lambda cell: (torch.zeros(()),), INPUT),
    "input-3d": (lambda cell: (torch.zeros(1, B, I),), INPUT),
    "input-size": (lambda cell: (torch.zeros(B, I + 1),), INPUT),
    "input-float64": (lambda cell: (torch.zeros(B, I, dtype=torch.float64),), r"dtype"),
    "input-int64": (lambda cell: (torch.zeros(B, I, dtype=torch.int64),), r"dtype"),
    "input-list": (lambda cell: ([1.0, 2.0],), INPUT),
    "input-packed": (lambda cell: (packed(5, 3, 2),), INPUT),
    "hx-3d": (lambda cell: (torch.zeros(B, I), make_states(cell, 1, B, H)), HX),
    "hx-1d": (lambda cell: (torch.zeros(B, I), make_states(cell, H)), HX),
    "hx-2d-unbatched": (lambda cell: (torch.zeros(I), make_states(cell, 1, H)), HX),
    "hx-batch": (lambda cell: (torch.zeros(B, I), make_states(cell, B + 1, H)), HX),
    "hx-batch-of-1": (lambda cell: (torch.zeros(B, I), make_states(cell, 1, H)), HX),
    "hx-hidden": (lambda cell: (torch.zeros(B, I), make_states(cell, B, H + 1)), HX),
    "hx-float64": (lambda cell: (torch.zeros(B, I), make_states(cell, B, H, dtype=torch.float64)), HX),
    "hx-list": (lambda cell: (torch.zeros(B, I), [torch.zeros(B, H)] * (3 - CELLS[cell].states)), HX),
    "hx-other-kind": (
        lambda cell: (torch.zeros(B, I), torch.zeros(B, H) if cell == "lstm" else (torch.zeros(B, H),) * 2),
        HX,
    ),
}
# Not those of states with other dimensions than the input's: torch 2.15 has words of its own for them.
SAME_WORDS_OF_STEP = {"input-0d", "input-3d", "input-size", "hx-3d", "hx-batch", "hx-batch-of-1", "hx-hidden"}


def place(args):
    """Nested arguments where fastrnn is; what is meant to be elsewhere (meta) stays there."""
    if isinstance(args, torch.Tensor):
        return args.to(device_of(fastrnn)) if args.device.type == "cpu" else args
    if isinstance(args, PackedSequence):
        return args.to(device_of(fastrnn))  # batch_sizes stay on the CPU
    if isinstance(args, (tuple, list)):
        return type(args)(map(place, args))
    return args


def refuse(module, args, expected=None):
    """The exception that a call raises; `expected` says that torch.nn raises none, or what comes along."""
    with pytest.raises(expected or Exception) as caught:
        module(*args)
    return caught


def check(theirs, ours, bad, good, cell, same_words):
    """Bad input raises alike, and the module goes on as if nothing had been."""
    make, names, *expected = bad
    good = place(good)
    with torch.no_grad():
        want = [t.clone() for t in flatten(ours(*good))]
    words = str(refuse(theirs, make(cell)).value) if same_words else ""
    expected = expected[0] if expected else refuse(theirs, make(cell)).type
    before = {name: p.detach().clone() for name, p in ours.named_parameters()}
    args = place(make(cell))
    generator = torch.get_rng_state()
    for context in (torch.enable_grad(), torch.no_grad()):
        with context:
            error = refuse(ours, args, expected)
        error.match(names)
        assert str(error.value).startswith(words)
    assert torch.equal(torch.get_rng_state(), generator)
    assert_same_bits({name: p.detach() for name, p in ours.named_parameters()}, before, "parameters")
    for given, again in zip(flatten(args), flatten(place(make(cell))), strict=True):
        if given.device.type != "meta" and not given.is_sparse:
            assert torch.equal(given, again), "an argument was changed"
    with torch.no_grad():
        for a, b in zip(flatten(ours(*good)), want, strict=True):
            assert torch.equal(a, b), "the next call gives another result"


def flatten(args):
    """The tensors in nested arguments or results."""
    if isinstance(args, torch.Tensor):
        return [args]
    if isinstance(args, (tuple, list)):
        return [t for a in args for t in flatten(a)]
    return []


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("bad", LAYER_INPUTS)
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_layer(cell, bad):
    case = Case(cell, I=I, H=H, L=L, dropout=0.5)
    good = (random(T, B, I, seed=0), make_states(cell, L, B, H))
    check(
        case.build(torch.nn).eval(),
        case.build(fastrnn).eval(),
        LAYER_INPUTS[bad],
        good,
        cell,
        bad in SAME_WORDS,
    )


@pytest.mark.parametrize("bad", STEP_INPUTS)
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_cell(cell, bad):
    case = Case(cell, T=1, I=I, H=H)
    good = (random(B, I, seed=0), make_states(cell, B, H))
    modules = case.prepare_step(torch.nn)[0], case.prepare_step(fastrnn)[0]
    check(*modules, STEP_INPUTS[bad], good, cell, bad in SAME_WORDS_OF_STEP)


def test_projection_sizes():
    """Of h_0 and c_0 with a projection, which differ."""
    case = Case("lstm", I=I, H=H, P=7, L=L)
    x = torch.zeros(T, B, I)
    h, c = torch.zeros(L, B, 7), torch.zeros(L, B, H)
    for states, names in (((c, c), H_0), ((h, h), r"\b(hx|c_0)\b"), ((c, h), HX)):
        expected = refuse(case.build(torch.nn), (x, states)).type
        refuse(case.build(fastrnn), place((x, states)), expected).match(names)


# Sizes and kinds of weights; torch.nn reads beyond the end of some of them (LSTM by oneDNN), so it is not
# asked.
WEIGHTS = {
    "weight_ih_l0": ((-1, 1), r"\b(W_ih|weight_ih_l0|weights|input)\b"),
    "weight_hh_l1": ((0, 1), r"\b(W_ih|W_hh|weight_hh_l1|weights)\b"),  # H is read off W_hh
    "bias_ih_l0": ((1,), r"\b(b_ih|bias_ih_l0|weights)\b"),
    "bias_hh_l1": ((-1,), r"\b(b_hh|bias_hh_l1|weights)\b"),
}


@pytest.mark.parametrize("what", ["size", "dtype", "dimensions"])
@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_weights(cell, name, what):
    grow, names = WEIGHTS[name]
    layer = Case(cell, I=I, H=H, L=L).build(fastrnn)
    weight = getattr(layer, name).detach()
    if what == "size":
        weight = weight.new_zeros([n + k for n, k in zip(weight.shape, grow, strict=True)])
    elif what == "dtype":
        weight = weight.double()
        names += "|dtype"
    else:
        weight = weight.unsqueeze(0)
    setattr(layer, name, Parameter(weight))
    for requires_grad in (False, True):
        x = weight.new_zeros(T, B, I, dtype=torch.float32).requires_grad_(requires_grad)
        refuse(layer, (x,), (RuntimeError, ValueError)).match(names)


CONSTRUCTORS = {
    "input_size-0": dict(input_size=0, hidden_size=3),
    "input_size-float": dict(input_size=2.0, hidden_size=3),
    "hidden_size-0": dict(input_size=2, hidden_size=0),
    "hidden_size-float": dict(input_size=2, hidden_size=3.0),
    "num_layers-0": dict(input_size=2, hidden_size=3, num_layers=0),
    "dropout-2": dict(input_size=2, hidden_size=3, num_layers=2, dropout=2.0),
    "dropout-bool": dict(input_size=2, hidden_size=3, num_layers=2, dropout=True),
    "bias-int": dict(input_size=2, hidden_size=3, bias=1),
    "batch_first-int": dict(input_size=2, hidden_size=3, batch_first=1),
    "proj_size-negative": dict(input_size=2, hidden_size=3, proj_size=-1),
    "proj_size-large": dict(input_size=2, hidden_size=3, proj_size=3),
    "hidden_size-missing": dict(input_size=2),
    "unknown": dict(input_size=2, hidden_size=3, colour="red"),
}


@pytest.mark.parametrize("name", CONSTRUCTORS)
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_constructors(cell, name):
    row = CELLS[cell]
    kwargs = dict(CONSTRUCTORS[name], **row.kwargs)
    with pytest.raises(Exception) as theirs:
        row.layer(**kwargs)
    with pytest.raises(theirs.type) as ours:
        getattr(fastrnn, row.layer.__name__)(**kwargs)
    assert type(ours.value) is type(theirs.value) and str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("module", ["RNN", "RNNCell"])
def test_unknown_nonlinearity(module):
    def attempt(library):
        with pytest.raises(Exception) as caught:
            getattr(library, module)(2, 3, nonlinearity="sine")(torch.zeros(1, 2))
        return caught

    error = attempt(torch.nn)
    attempt(fastrnn).match("nonlinearity")
    assert issubclass(attempt(fastrnn).type, error.type)


# ---- the operators, which take more freely than modules do ----


def operator_arguments(**changes):
    layer = Case("lstm", I=I, H=H, L=L).build(torch.nn)
    arguments = dict(
        input=torch.zeros(T, B, I),
        batch_sizes=None,
        hx=[torch.zeros(L, B, H)] * 2,
        weights=list(layer._flat_weights),
        cell="lstm",
        has_biases=True,
        num_layers=L,
        dropout=0.0,
        train=False,
        bidirectional=False,
        batch_first=False,
    )
    arguments |= changes
    return {name: value if name == "batch_sizes" else place(value) for name, value in arguments.items()}


OPERATOR = {
    "cell": (dict(cell="lstn"), r"\bcell\b"),
    "num_layers": (dict(num_layers=0), r"\b(num_layers|weights)\b"),
    "num_layers-negative": (dict(num_layers=-1), r"\b(num_layers|weights)\b"),
    "dropout": (dict(dropout=1.5), r"\bdropout\b"),
    "dropout-nan": (dict(dropout=float("nan")), r"\bdropout\b"),
    "weights-none": (dict(weights=[]), r"\bweights\b"),
    "weights-few": (dict(weights=[torch.zeros(4 * H, I), torch.zeros(4 * H, H)]), r"\bweights\b"),
    "weights-odd": (dict(weights=[torch.zeros(4 * H, I)] * 7), r"\bweights\b"),
    "bidirectional": (dict(bidirectional=True), r"\bweights\b"),
    "has_biases": (dict(has_biases=False), r"\b(weights|has_biases)\b"),
    "other-cell": (dict(cell="gru", hx=[]), r"\b(weights|W_ih|hx)\b"),
    "hx-one": (dict(hx=[torch.zeros(L, B, H)]), r"\b(hx|h_0|c_0)\b"),
    "hx-three": (dict(hx=[torch.zeros(L, B, H)] * 3), r"\b(hx|h_0|c_0)\b"),
    "batch_sizes-empty": (
        dict(input=torch.zeros(0, I), batch_sizes=torch.tensor([], dtype=torch.int64), hx=[]),
        r"\bbatch_sizes\b",
    ),
    "batch_sizes-2d": (
        dict(input=torch.zeros(5, I), batch_sizes=torch.tensor([[3, 2]]), hx=[]),
        r"\bbatch_sizes\b",
    ),
    "batch_sizes-with-3d": (dict(batch_sizes=torch.tensor([3, 2])), r"\binput\b"),
}


@pytest.mark.parametrize("name", OPERATOR)
def test_operator(name):
    changes, names = OPERATOR[name]
    torch.ops.fastrnn.rnn(**operator_arguments())  # good
    with pytest.raises((RuntimeError, ValueError, IndexError), match=names):
        torch.ops.fastrnn.rnn(**operator_arguments(**changes))


@pytest.mark.parametrize("function", ["lstm", "gru", "rnn"])
def test_functional_counts_weights(function):
    with pytest.raises((RuntimeError, ValueError), match=r"\bweights\b"):
        getattr(fastrnn.functional, function)(torch.zeros(T, B, I), None, [torch.zeros(H, I)])


def test_backward_refuses_a_gradient_of_another_shape():
    layer = Case("gru", I=I, H=H).build(fastrnn)
    y, _ = layer(place(torch.zeros(T, B, I)))
    with pytest.raises(RuntimeError):
        y.backward(cotangents([y[:2]])[0])


def test_unknown_isa():
    before = _C.isa()
    with pytest.raises((RuntimeError, ValueError), match="avx1024"):
        _C.set_isa("avx1024")
    assert _C.isa() == before


@pytest.mark.skipif(_C.cuda_built, reason="this fastrnn has CUDA kernels")
def test_build_without_cuda_says_so():
    """What a tensor on a CUDA device meets."""
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    arguments = (
        torch.zeros(T, B, I),
        None,
        [],
        [torch.zeros(H, I), torch.zeros(H, H)],
        "rnn_tanh",
        False,
        False,
    )
    with pytest.raises(NotImplementedError, match="input: .* CUDA .* FASTRNN_CUDA=1"):
        torch.ops.fastrnn.layer.default.redispatch(cuda, *arguments)


@pytest.mark.parametrize("step", [False, True], ids=["layer", "cell"])
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_kind_error(cell, step):
    """It has a name to catch it by, and is what torch.nn may raise."""
    case = Case(cell)
    module = case.prepare_step(fastrnn)[0] if step else case.build(fastrnn)
    for args in ((None,), ([0.0],), (torch.zeros(2, 2, case.I)[0 if step else ...], 5)):
        with pytest.raises(fastrnn.KindError, match=r"(input|hx): expected .*, got (NoneType|list|int)"):
            module(*args)
    for kind in (TypeError, AttributeError, IndexError, RuntimeError, ValueError):
        assert issubclass(fastrnn.KindError, kind)
