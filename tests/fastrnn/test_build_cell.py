"""fastrnn.build_cell: a layer of a cell that is compiled outside of the extension."""

import copy
import os
import pickle
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from devices import ISAS
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import linear
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastrnn
from fastrnn import _C, own_cell, reference
from fastrnn.layers import RecurrentLayer

EXAMPLES = Path(__file__).parents[2] / "examples/own_cell"
LENGTHS = [3, 6, 1, 4]
QUICK = (EXAMPLES / "coupled_lstm.h").read_text().replace('"coupled_lstm"', '"quick"')
I, H, B, T = 5, 9, len(LENGTHS), max(LENGTHS)


def coupled_lstm_step(x, state, W_ih, W_hh, b_ih, b_hh):
    h, c = state
    f, g, o = (linear(x, W_ih, b_ih) + linear(h, W_hh, b_hh)).chunk(3, -1)
    f = f.sigmoid()
    c = f * c + (1 - f) * g.tanh()
    return o.sigmoid() * c.tanh(), c


def three_states_step(x, state, W_ih, W_hh, b_ih, b_hh, v):
    h, c, m = state
    f, g = (linear(x, W_ih, b_ih) + linear(h, W_hh, b_hh)).chunk(2, -1)
    f, g = (f + v * c).sigmoid(), g.tanh()
    c = f * c + (1 - f) * g
    m = f * m + c
    return m.tanh(), c, m


STEPS = {"coupled_lstm": coupled_lstm_step, "three_states": three_states_step}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where libraries are kept, for all processes of this run of pytest."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(base))
        yield base


@pytest.fixture(scope="module", params=STEPS)
def Layer(request, folder):
    """The class of an example, compiled for every instruction set."""
    return fastrnn.build_cell(EXAMPLES / f"{request.param}.h")


def newest():
    """The instruction set in use, and those whose code it uses where it has none of its own."""
    return [isa for isa in ISAS if isa.split("_")[0] == _C.isa().split("_")[0]]


@pytest.fixture(scope="module")
def Quick(folder):
    """A cell that is compiled for one instruction set, which takes some seconds."""
    path = folder / "quick.h"
    path.write_text(QUICK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_cell._C, "isas_available", newest)
        return fastrnn.build_cell(path)


def draw(*shape, dtype):
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def run(call, layer, inputs):
    """The results of `call`, and the gradients of all that it is computed from."""
    results = call()
    torch.manual_seed(5)
    grads = [torch.randn(r.shape).to(inputs[0].dtype).to(r.dtype) for r in results]
    return [*results, *torch.autograd.grad(results, [*inputs, *layer.parameters()], grads)]


def check_values(Layer, step, dtype, tolerance, form, bidirectional, num_layers, bias):
    torch.manual_seed(3)
    row = reference.Cell(Layer.cell, step)
    options = dict(num_layers=num_layers, bidirectional=bidirectional, bias=bias)
    layer = Layer(I, H, **options, batch_first=form == "batch_first", dtype=dtype)
    x = draw(*((B, T) if form == "batch_first" else (T, B)), I, dtype=dtype)
    hx = tuple(draw(num_layers * (1 + bidirectional), B, H, dtype=dtype) for _ in range(row.states))

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
        x64, hx64, weights = double[0], double[1 : 1 + len(hx)], double[1 + len(hx) :]
        if form not in ("lengths", "packed"):
            return reference.rnn(x64, hx64, weights, row, **options, batch_first=form == "batch_first")
        each = [  # each sequence by itself
            reference.rnn(x64[:n, k : k + 1], [s[:, k : k + 1] for s in hx64], weights, row, **options)
            for k, n in enumerate(LENGTHS)
        ]
        ys = [torch.cat([y, y.new_zeros(T - len(y), *y.shape[1:])]) for y, *_ in each]
        return [torch.cat(ys, 1), *(torch.cat(s, 1) for s in zip(*(last for _, *last in each), strict=True))]

    for got, want in zip(run(fast, layer, [x, *hx]), run(slow, layer, [x, *hx]), strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want.double(), rtol=tolerance, atol=tolerance)


# Of rounded weights and of what is stored in 16 bits between steps and layers
TOLERANCES = ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.1))
FORMS = ("time_major", "batch_first", "packed", "lengths")


@pytest.mark.thorough
@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("form", FORMS)
def test_values(Layer, isa, form):
    for bidirectional, num_layers, bias in product((False, True), (1, 2), (False, True)):
        for dtype, tolerance in TOLERANCES:
            check_values(Layer, STEPS[Layer.cell], dtype, tolerance, form, bidirectional, num_layers, bias)


def check_derivatives(Layer):
    layer = Layer(2, 3, bidirectional=True, dtype=torch.float64)
    states = len(layer._info.states)
    x, hx = draw(3, 2, 2, dtype=torch.float64), [draw(2, 2, 3, dtype=torch.float64) for _ in range(states)]

    def call(x, *rest):
        names = [name for name, _ in layer.named_parameters()]
        weights = dict(zip(names, rest[states:], strict=True))
        y, last = torch.func.functional_call(layer, weights, (x, rest[:states]))
        return y, *last

    given = (x, *hx, *layer.parameters())
    assert gradcheck(call, given)
    assert gradgradcheck(call, given)


@pytest.mark.thorough
def test_derivatives(Layer):
    check_derivatives(Layer)


@pytest.mark.thorough
def test_options(Layer):
    torch.manual_seed(1)
    layer = Layer(I, H, num_layers=2, bidirectional=True, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64)
    y, last = layer(x)
    again = copy.deepcopy(layer)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x)[0], y)

    _, _, every = layer(x, return_all_states=True)
    for state, of_steps in zip(last, every, strict=True):
        ends = torch.stack([of_steps[k, -1 if k % 2 == 0 else 0] for k in range(4)])
        torch.testing.assert_close(ends, state)

    one = Layer(I, H)
    stateful, chunks = fastrnn.Stateful(one), torch.randn(2 * T, B, I)
    parts = torch.cat([stateful(chunks[:T]), stateful(chunks[T:])])
    torch.testing.assert_close(parts, one(chunks)[0], rtol=0, atol=1e-6)
    assert fastrnn.summary(torch.nn.Sequential(one))[0].runs_on == "fastrnn"

    many = torch.func.vmap(lambda x: layer(x)[0])(torch.stack([x, 2 * x]))
    torch.testing.assert_close(many[1], layer(2 * x)[0])
    x.requires_grad_()
    wanted = torch.autograd.grad(layer(x)[0].sum(), x)
    layer.checkpoint_gates = True
    torch.testing.assert_close(torch.autograd.grad(layer(x)[0].sum(), x), wanted)

    zoned = Layer(I, H, zoneout=0.3, recurrent_dropout=0.2)
    torch.manual_seed(4)
    zoned(chunks)[0].sum().backward()
    fused = [p.grad for p in zoned.parameters()]
    torch.manual_seed(4)
    plain = torch.autograd.grad(zoned(chunks)[0].sum(), list(zoned.parameters()), create_graph=True)
    for got, want in zip(plain, fused, strict=True):
        torch.testing.assert_close(got, want)


def test_quick(Quick):
    assert issubclass(Quick, RecurrentLayer) and Quick.__name__ == "CoupledLSTM"
    assert "c' = f c + (1 - f) g" in Quick.__doc__
    assert fastrnn.cells.CELLS["quick"].states == ("h", "c")
    for dtype, tolerance in TOLERANCES:
        check_values(Quick, coupled_lstm_step, dtype, tolerance, "packed", True, 2, True)
    check_derivatives(Quick)
    with pytest.raises(NotImplementedError, match="quick"):
        Quick(2, 3, dtype=torch.complex64)(torch.randn(4, 2, 2, dtype=torch.complex64))


def test_other_isa(Quick):
    """A cell that was not compiled for an instruction set says so."""
    others = [name for name in ISAS if name not in newest()]
    assert others
    before = _C.isa()
    for name in others:
        _C.set_isa(name)
        try:
            with pytest.raises(RuntimeError, match=f"quick.*{name}"):
                Quick(2, 3)(torch.zeros(1, 1, 2))
        finally:
            _C.set_isa(before)


def test_pickle(Quick, folder):
    layer = Quick(3, 4)
    x = torch.randn(2, 1, 3)
    for again in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert type(again) is Quick
        assert torch.equal(again(x)[0], layer(x)[0])


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.int8])
def test_freeze(Quick, dtype):
    layer = Quick(I, H, 2, bidirectional=True)
    frozen = fastrnn.freeze(torch.nn.Sequential(layer), dtype)[0]
    assert repr(frozen).startswith("FrozenCoupledLSTM(5, 9, num_layers=2, bidirectional=True, weights=")
    x = torch.randn(T, B, I)
    for got, want in zip(frozen(x)[1], layer(x)[1], strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5 if dtype is None else 0.05)
    again = pickle.loads(pickle.dumps(frozen))
    assert torch.equal(again(x)[0], frozen(x)[0])


@pytest.mark.thorough
def test_frozen_pickle_elsewhere(Layer, folder):
    """A process that never saw the header has the frozen layer too."""
    frozen, x = fastrnn.freeze(Layer(3, 4)), torch.randn(2, 1, 3)
    (folder / f"{Layer.cell}.frozen").write_bytes(pickle.dumps((frozen, x)))
    code = (
        "import pickle, sys\nlayer, x = pickle.load(open(sys.argv[1], 'rb'))\nprint(layer(x)[0].sum().item())"
    )
    done = run_python(code, folder / f"{Layer.cell}.frozen")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(frozen(x)[0].sum().item())


@pytest.mark.thorough
def test_pickle_elsewhere(Layer, folder):
    """A process that never saw the header has the layer too."""
    layer, x = Layer(3, 4), torch.randn(2, 1, 3)
    (folder / f"{Layer.cell}.pickle").write_bytes(pickle.dumps((layer, x)))
    code = (
        "import pickle, sys\nlayer, x = pickle.load(open(sys.argv[1], 'rb'))\nprint(layer(x)[0].sum().item())"
    )
    done = run_python(code, folder / f"{Layer.cell}.pickle")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(layer(x)[0].sum().item())


def run_python(code, *arguments, **environment):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)


def test_same_again(Quick, folder, tmp_path):
    """The content counts, not the place."""
    path = tmp_path / "elsewhere.h"
    path.write_text((folder / "quick.h").read_text())
    assert fastrnn.build_cell(path) is Quick


HEADER = """
#include "cells/cell_info.h"
#include "cells/inline.h"
namespace fastrnn::cells {
inline constexpr CellInfo kA{.name = "%s", .layer = "A", .gates = {"h"}, .saved = 0, .whole_gates = 1};
struct A : CellConstants<kA> {
%s
};
}
"""


FUNCTIONS = """
  template <class M, class V>
  static FASTRNN_INLINE void activate(const V* a, const V*, V* s, V*) { s[0] = a[0]; }
  template <class M, class V>
  static FASTRNN_INLINE void output(V* s, const V*, const V&, const V*, V& h) { h = M::tanh(s[0]); }
  template <class M, class V>
  static FASTRNN_INLINE void backward(const V*, const V*, const V&, const V& h, const V*, const V*,
                                      const V& dh, V*, V* dgx, V*, V*, V&) {
    V sum{};
    sum += dh;
    sum -= 0.5 * h;
    sum *= M::if_positive(h, h, V{});
    dgx[0] = -(sum / (2 + h * h)) + 3 / (h - 4) * dh * 0.5;
  }
"""


EIGHT_GATES = """
  template <class M, class V>
  static FASTRNN_INLINE void activate(const V* a, const V*, V* s, V*) {
    s[0] = a[0];
    for (int g = 1; g < gates; ++g) s[0] += a[g];
  }
  template <class M, class V>
  static FASTRNN_INLINE void output(V* s, const V*, const V&, const V*, V& h) { h = M::tanh(s[0]); }
  template <class M, class V>
  static FASTRNN_INLINE void backward(const V*, const V*, const V&, const V& h, const V*, const V*,
                                      const V& dh, V*, V* dgx, V*, V*, V&) {
    for (int g = 0; g < gates; ++g) dgx[g] = dh * (1 - h * h);
  }
"""


def test_most_gates(folder, tmp_path, monkeypatch):
    """One vector of units with all its gates has more columns than other panels. A product of many rows with
    them once went past the end of its buffer."""
    monkeypatch.setattr(own_cell._C, "isas_available", newest)
    path = tmp_path / "own.h"
    path.write_text(
        (HEADER % ("eight_gates", EIGHT_GATES))
        .replace(
            '{"h"}', str([f"g{k}" for k in range(8)]).replace("'", '"').replace("[", "{").replace("]", "}")
        )
        .replace(".whole_gates = 1", ".whole_gates = 8")
    )
    layer, plain = fastrnn.build_cell(path)(5, 40), torch.nn.RNN(5, 40)
    with torch.no_grad():
        for own, summed in zip(layer.parameters(), plain.parameters(), strict=True):
            own.mul_(0.3)
            summed.copy_(own.unflatten(0, (8, -1)).sum(0))
    for B in (1, 7, 50, 100):
        x = torch.randn(4, B, 5)
        want = plain(x)[0]
        torch.testing.assert_close(layer(x)[0], want, rtol=0, atol=2e-6)
        torch.testing.assert_close(fastrnn.freeze(layer)(x)[0], want, rtol=0, atol=2e-6)


@pytest.mark.thorough
def test_operators(folder, tmp_path, monkeypatch):
    """A value that stands for a tensor can do what a vector can. Its derivatives are those of the
    kernel's first ones, even if these are not those of the forward."""
    monkeypatch.setattr(own_cell._C, "isas_available", newest)
    path = tmp_path / "own.h"
    path.write_text(HEADER % ("operators", FUNCTIONS))
    layer = fastrnn.build_cell(path)(2, 3, dtype=torch.float64)
    x = draw(3, 2, 2, dtype=torch.float64)
    assert gradgradcheck(lambda x: layer(x)[0], (x,))
    assert not gradcheck(lambda x: layer(x)[0], (x,), raise_exception=False)


@pytest.mark.parametrize(
    "text, words",
    [
        ("int x;", "expected a cell"),
        ("struct A : CellConstants<kA> {};\nstruct B: CellConstants<kB> {};", "A, B.*struct="),
        (HEADER % ("bad", "this is not C++"), "own.h:7:.*error"),
        (HEADER % ("bad", ""), "error.*activate"),
        (QUICK.replace(".saved = 3", ".saved = 2"), "own.h:.*s\\[2\\]"),
        ('#include "beside.h"\n' + HEADER % ("bad", ""), "own.h:1:.*beside.h"),
    ],
    ids=["none", "several", "not-c++", "no-functions", "saved", "beside"],
)
def test_bad_code(text, words, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(own_cell._C, "isas_available", lambda: ["baseline"])
    path = tmp_path / "own.h"
    path.write_text(text)
    (tmp_path / "beside.h").write_text("")
    with pytest.raises(fastrnn.BuildError, match=f"(?s){words}") as caught:
        fastrnn.build_cell(path)
    assert str(caught.value).startswith(str(path))


def test_no_header(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.h"):
        fastrnn.build_cell(tmp_path / "nowhere.h")


def test_no_compiler(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    path = tmp_path / "own.h"
    path.write_text(HEADER % ("uncompiled", ""))
    with pytest.raises(fastrnn.BuildError, match="C\\+\\+ compiler.*no-such-compiler.*CXX"):
        fastrnn.build_cell(path)


def test_other_headers(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(own_cell.headers, "stamp_of", lambda folder: "another")
    path = tmp_path / "own.h"
    path.write_text(HEADER % ("other_headers", ""))
    with pytest.raises(fastrnn.BuildError, match="install fastrnn again"):
        fastrnn.build_cell(path)


@pytest.mark.parametrize("name, whose", [("lstm", "which is fastrnn's"), ("quick", "other content")])
def test_name_is_taken(name, whose, Quick, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(own_cell._C, "isas_available", lambda: ["baseline"])
    path = tmp_path / "own.h"
    path.write_text(HEADER % (name, FUNCTIONS))
    with pytest.raises(fastrnn.BuildError, match=f"'{name}', which.*{whose.removeprefix('which ')}"):
        fastrnn.build_cell(path)


def test_not_a_library(tmp_path):
    with pytest.raises(RuntimeError, match="nothing.so"):
        _C.add_cell(str(tmp_path / "nothing.so"))
    with pytest.raises(RuntimeError, match="build_cell"):
        _C.add_cell(_C.__file__)


@pytest.mark.thorough
def test_two_processes(tmp_path):
    """They build a cell at the same time: one compiles, the other waits, and both have it."""
    code = (
        "import sys, torch, fastrnn\n"
        "Layer = fastrnn.build_cell(sys.argv[1])\n"
        "print(Layer(2, 3)(torch.zeros(4, 1, 2))[0].shape)"
    )
    command = [sys.executable, "-c", code, EXAMPLES / "coupled_lstm.h"]
    environment = os.environ | {"TORCH_EXTENSIONS_DIR": str(tmp_path)}
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in both] == ["torch.Size([4, 1, 3])\n"] * 2
    assert len(list(tmp_path.glob("fastrnn/*.so"))) == 1


@pytest.mark.thorough
def test_killed_build(folder, tmp_path):
    """A build that is killed leaves nothing that the next one waits for or takes for a library."""
    code = (
        "import os, sys, fastrnn\n"
        "from fastrnn import own_cell\n"
        "own_cell.os.replace = lambda *_: os._exit(9)\n"
        "fastrnn.build_cell(sys.argv[1])"
    )
    done = run_python(code, EXAMPLES / "coupled_lstm.h", TORCH_EXTENSIONS_DIR=str(tmp_path))
    assert done.returncode == 9, done.stderr
    assert not list(tmp_path.glob("fastrnn/*.so")) and list(tmp_path.glob("fastrnn/*.lock"))
    again = "import sys, fastrnn; fastrnn.build_cell(sys.argv[1])"
    done = run_python(again, EXAMPLES / "coupled_lstm.h", TORCH_EXTENSIONS_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("fastrnn/*.so"))) == 1


@pytest.mark.thorough
def test_example(folder):
    """The layer learns more than to answer the mean."""
    command = [sys.executable, EXAMPLES / "own_cell.py", "--steps", "300", "--length", "10"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    losses = [float(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("step")]
    assert losses[-1] < 0.1, done.stdout
    assert "times as fast" in done.stdout
