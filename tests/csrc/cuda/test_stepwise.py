"""The stepwise plan of the CUDA kernels and the products around it, run on the host by stepwise_runner.cpp.

It is the same driver, with loops for kernels and a plain product for cuBLAS; built with sanitizers if the
tests are --thorough, as these take a minute to compile.
"""

import functools
import struct
import subprocess

import pytest
import runners
import torch
from cases import EVERY_CELL, Case, cotangents
from tolerance import assert_close, assert_few_roundings, assert_same_bits


@pytest.fixture(scope="module")
def runner(thorough):
    return runners.build("stepwise_runner", "address,undefined" if thorough else "")


def to_bytes(tensor):
    if tensor is None:
        return struct.pack("q", -1)
    data = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return struct.pack("q", len(data)) + data


def read_arrays(path, dtypes):
    """The arrays of a file; `dtypes` is one dtype for each."""
    data, at, arrays = bytearray(path.read_bytes()), 0, []
    for dtype in dtypes:
        (size,) = struct.unpack_from("q", data, at)
        arrays.append(torch.frombuffer(data, dtype=dtype, offset=at + 8, count=size // dtype.itemsize))
        at += 8 + size
    assert at == len(data)
    return arrays


def run(runner, folder, case, order="ascending", hn=True, inputs=True, weights=True, change=None):
    """Values and gradients by name, as `evaluate` (cases.py) returns them. hn, inputs, weights: whether these
    results and gradients are wanted. change: called with all that the layer is given, by name."""
    layer = case.build(torch.nn)
    x, hx = case.inputs()
    D, B, H, P = 1 + case.bidirectional, case.B, case.H, case.P or case.H
    parameters = dict(layer.named_parameters())
    batch_sizes, stride_t, stride_b = None, B, 1
    given = {"x": x.detach(), "h_0": None, "c_0": None}
    if case.packed:
        packed = case.pack(x)
        assert packed.sorted_indices is None
        given["x"], batch_sizes = packed.data.detach(), packed.batch_sizes
    elif case.form == "batch_first":
        stride_t, stride_b = 1, case.T
    if hx is not None:
        given |= dict(zip(("h_0", "c_0"), hx, strict=False))
    shapes = {"output": (*given["x"].shape[:-1], D * P), "h_n": (D, B, P)}
    if case.row.states == 2:
        shapes["c_n"] = (D, B, H)
    grads = cotangents([torch.empty(s, dtype=case.dtype) for s in shapes.values()], case.seed, case.exact)
    given |= {f"d{name}": grad for name, grad in zip(shapes, grads, strict=True)}
    given.setdefault("dc_n", None)
    given |= parameters
    if change:
        change(given)

    suffixes = [f"l0{'_reverse' * d}" for d in range(D)]
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    names = [f"{kind}_{suffix}" for suffix in suffixes for kind in kinds]
    sizes = torch.tensor([case.T, B, stride_t, stride_b, case.I, H, P, D, hn, inputs, weights])
    tensors = [sizes, batch_sizes, *(given.get(name) for name in names)]
    tensors += [given[name] for name in ("x", "h_0", "c_0", "doutput", "dh_n", "dc_n")]
    source, target = folder / "input", folder / "output"
    source.write_bytes(b"".join(map(to_bytes, tensors)))
    dtype = str(case.dtype).removeprefix("torch.")
    command = [runner, case.cell, dtype, order, source, target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr

    real = torch.float64 if case.dtype == torch.float64 else torch.float32
    outputs = [("output", case.dtype), *([("h_n", case.dtype)] * hn)]
    outputs += [("c_n", case.dtype)] * (case.row.states == 2)
    outputs += [("s", real)] * (case.row.gates > 1) + [("c", real)] * (case.row.states == 2)
    outputs += [("output again", case.dtype)]
    if inputs:
        outputs += [(name, case.dtype) for name in ("dx", "dh_0", "dc_0")[: 1 + case.row.states]]
    if weights:
        outputs += [(f"d{name}", case.dtype) for name in names if name in parameters]
    arrays = read_arrays(target, [dtype for _, dtype in outputs])
    result = {name: array for (name, _), array in zip(outputs, arrays, strict=True)}
    again = result.pop("output again")
    assert torch.allclose(again, result["output"], rtol=0, atol=0, equal_nan=True), "saving changes y"
    shapes |= {"dx": given["x"].shape, "dh_0": shapes["h_n"], "dc_0": shapes.get("c_n")}
    shapes |= {f"d{name}": w.shape for name, w in parameters.items()}
    result = {name: array.view(shapes[name]) for name, array in result.items() if name in shapes}
    if hx is None:  # the reference has no gradient of states that are not given
        result = {name: array for name, array in result.items() if name not in ("dh_0", "dc_0")}
    return result


@functools.cache
def truth(case):
    expected = case.solve_exactly()
    if case.packed:
        # The gradient of the packed rows, out of that of the padded input.
        expected["dx"] = torch.nn.utils.rnn.pack_padded_sequence(expected["dx"], case.lengths).data
    return expected


def layer_cases(**changes):
    """Tails of every size, both layouts, packed, both directions, with and without biases and states."""
    for cell in EVERY_CELL:
        yield Case(cell, T=5, B=3, I=7, H=33, **changes)
        yield Case(cell, T=4, B=2, I=1, H=1, bidirectional=True, **changes)
        yield Case(cell, T=3, B=17, I=33, H=16, form="batch_first", bidirectional=True, hx=False, **changes)
        yield Case(cell, T=7, B=9, I=5, H=17, form="packed", bidirectional=True, **changes)
        yield Case(cell, T=6, B=5, I=3, H=9, form="packed", bias=False, hx=False, **changes)
        yield Case(cell, T=1, B=4, I=6, H=8, **changes)
        yield Case(cell, T=1, B=1, I=2, H=5, bidirectional=True, bias=False, **changes)
        yield Case(cell, T=30, B=1, I=40, H=40, **changes)
    for form in ("padded", "batch_first", "packed"):
        for bidirectional in (False, True):
            yield Case(T=6, B=5, I=4, H=18, P=7, form=form, bidirectional=bidirectional, **changes)
    yield Case(T=1, B=5, I=4, H=18, P=7, hx=False, bias=False, **changes)


@pytest.mark.parametrize("case", list(layer_cases(dtype=torch.float64)), ids=str)
def test_float64(runner, tmp_path, case):
    """Against the reference; and the same bits whatever the order of the indices of a kernel."""
    result = run(runner, tmp_path, case)
    assert_close(result, truth(case), case)
    assert_same_bits(run(runner, tmp_path, case, order="descending"), result, "descending")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", list(layer_cases()), ids=str)
def test_other_dtypes(runner, tmp_path, case, dtype):
    # Integers for relu: its derivative jumps at a sum of 0, which a rounding could move to either side.
    case = case.but(dtype=dtype, exact=case.cell == "rnn_relu")
    result, expected = run(runner, tmp_path, case), truth(case)
    if dtype == torch.float32:
        assert_close(result, {name: want.float() for name, want in expected.items()}, case)
    else:
        assert_few_roundings(result, expected, case)


@pytest.mark.parametrize("cell", EVERY_CELL)
def test_many_steps(runner, tmp_path, cell):
    """More steps of a packed batch than one kernel's arguments carry, and several parts of a column sum."""
    case = Case(cell, T=1000, B=3, I=2, H=3, form="packed", bidirectional=True, dtype=torch.float64)
    assert_close(run(runner, tmp_path, case), truth(case), case)


@pytest.mark.parametrize("unwanted", ["hn", "inputs", "weights"])
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_unwanted_results(runner, tmp_path, cell, unwanted):
    """What is not asked for changes nothing of the rest."""
    case = Case(cell, T=4, B=5, I=3, H=9, form="packed", bidirectional=True)
    every = run(runner, tmp_path, case)
    some = run(runner, tmp_path, case, **{unwanted: False})
    assert set(some) < set(every)
    assert_same_bits(some, {name: every[name] for name in some}, f"without {unwanted}")


@pytest.mark.parametrize("cell", EVERY_CELL)
def test_missing_gradients_are_zeros(runner, tmp_path, cell):
    case = Case(cell, T=4, B=5, I=3, H=9, bidirectional=True)
    names = ["doutput", "dh_n", "dc_n"][: 1 + case.row.states]
    for missing in names:

        def zero(given, missing=missing):
            given[missing] = torch.zeros_like(given[missing])

        def remove(given, missing=missing):
            given[missing] = None

        zeros = run(runner, tmp_path, case, change=zero)
        assert_same_bits(run(runner, tmp_path, case, change=remove), zeros, f"without {missing}")


@pytest.mark.parametrize("place", ["x", "h_0", "weight_hh_l0"])
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_nan_goes_through(runner, tmp_path, cell, place):
    """To where the reference has it, and nowhere else: the sequences of a batch stay apart."""
    case = Case(cell, T=4, B=3, I=3, H=9, dtype=torch.float64)

    def spoil(given):
        given[place] = given[place].detach().clone()
        given[place].view(-1)[-1] = float("nan")

    got = run(runner, tmp_path, case, change=spoil)["output"]
    layer = case.build(torch.nn)
    x, hx = case.inputs()
    given = {"x": x, "h_0": hx[0], **dict(layer.named_parameters())}
    spoil(given)
    weights = [given[name] for name in layer._flat_weights_names]
    want = case.judge(weights)(given["x"], [given["h_0"], *hx[1:]])[0]
    assert torch.equal(got.isnan(), want.isnan())
    assert want.isnan().any()
