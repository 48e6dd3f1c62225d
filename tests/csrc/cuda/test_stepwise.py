"""The stepwise plan of the CUDA kernels and the products around it, run on the host by stepwise_runner.cpp.

It is the same driver, with loops for kernels and a plain product for cuBLAS; built with sanitizers if the
tests are --thorough, as these take some minutes to compile.
"""

import functools
import itertools
import struct
import subprocess

import pytest
import runners
import torch
from cases import STATE_NAMES, Case, cotangents
from own_cells import (
    KINDS,
    RELU_CELLS,
    bound_by,
    call_reference,
    draw_inputs,
    draw_noise,
    draw_weights,
    fit,
    is_jumpy,
    judge,
    with_margin,
)
from tolerance import assert_close, assert_few_roundings, assert_same_bits

from fastrnn.reference import CELLS


@pytest.fixture(scope="module")
def runner(thorough):
    """The program for a dtype."""
    names = {torch.float32: "float", torch.float64: "double", torch.float16: "fp16", torch.bfloat16: "bf16"}
    sanitizers = "address,undefined" if thorough else ""
    return functools.cache(lambda dtype: runners.build(f"stepwise_runner_{names[dtype]}", sanitizers))


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


def run(runner, folder, case, order="ascending", noise="", hn=True, inputs=True, weights=True, change=None):
    """Values and gradients by name, as `evaluate` (cases.py) returns them. hn, inputs, weights: whether these
    results and gradients are wanted. change: called with all that the layer is given, by name."""
    (x, hx), parameters, given_noise = draw_inputs(case), draw_weights(case), draw_noise(case, noise)[0]
    info, D, B, H, P = case.row.info, 1 + case.bidirectional, case.B, case.H, case.P or case.H
    states = STATE_NAMES[: case.row.states]
    batch_sizes, stride_t, stride_b = None, B, 1
    given = {"x": x.detach()}
    if case.packed:
        packed = case.pack(x)
        assert packed.sorted_indices is None
        given["x"], batch_sizes = packed.data.detach(), packed.batch_sizes
    elif case.form == "batch_first":
        stride_t, stride_b = 1, case.T
    given |= dict(zip((f"{s}_0" for s in states), hx or [None] * len(states), strict=True))
    shapes = {"output": (*given["x"].shape[:-1], D * P), "h_n": (D, B, P)}
    shapes |= {f"{s}_n": (D, B, H) for s in states[1:]}
    grads = cotangents([torch.empty(s, dtype=case.dtype) for s in shapes.values()], case.seed)
    given |= {f"d{name}": grad for name, grad in zip(shapes, grads, strict=True)}
    if is_jumpy(case):
        given |= {f"d{s}_n": None for s in states[1:]}
    given |= parameters
    if change:
        change(given)

    names = [p.symbol + "_reverse" * d for d in range(D) for p in info.parameters]
    sizes = torch.tensor([case.T, B, stride_t, stride_b, case.I, H, P, D, hn, inputs, weights])
    zoneout = given_noise.get("zoneout")
    tensors = [sizes, batch_sizes, *(given.get(name) for name in names)]
    tensors += [given["x"], *(given[f"{s}_0"] for s in states)]
    tensors += [given_noise.get("mask"), zoneout and torch.tensor(zoneout, dtype=torch.float64)]
    tensors += [given_noise.get("seed")]
    tensors += [given["doutput"], *(given[f"d{s}_n"] for s in states)]
    source, target = folder / "input", folder / "output"
    source.write_bytes(b"".join(map(to_bytes, tensors)))
    command = [runner(case.dtype), case.cell, order, source, target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr

    real = torch.float64 if case.dtype == torch.float64 else torch.float32
    outputs = [("output", case.dtype), *([("h_n", case.dtype)] * hn)]
    outputs += [(f"{s}_n", case.dtype) for s in states[1:]]
    outputs += [("s", real)] * (info.saved > 0) + [("c", real)] * (len(states) > 1)
    outputs += [("computed", real)] * (zoneout is not None and (info.saved == 0 or len(states) > 1))
    outputs += [("output again", case.dtype)]
    if inputs:
        outputs += [(name, case.dtype) for name in ("dx", *(f"d{s}_0" for s in states))]
    if weights:
        outputs += [(f"d{name}", case.dtype) for name in names if name in parameters]
    arrays = read_arrays(target, [dtype for _, dtype in outputs])
    result = {name: array for (name, _), array in zip(outputs, arrays, strict=True)}
    again = result.pop("output again")
    assert torch.allclose(again, result["output"], rtol=0, atol=0, equal_nan=True), "saving changes y"
    shapes |= {"dx": given["x"].shape} | {f"d{s}_0": shapes[f"{s}_n"] for s in states}
    shapes |= {f"d{name}": w.shape for name, w in parameters.items()}
    result = {name: array.view(shapes[name]) for name, array in result.items() if name in shapes}
    if hx is None:  # the reference has no gradient of states that are not given
        result = {name: array for name, array in result.items() if not name.endswith("_0")}
    return result


@functools.cache
def truth(case, noise=""):
    expected = judge(case, **draw_noise(case, noise)[1])
    if case.packed:
        # The gradient of the packed rows, out of that of the padded input.
        expected["dx"] = torch.nn.utils.rnn.pack_padded_sequence(expected["dx"], case.lengths).data
    return expected


def check(result, case, noise=""):
    """Against the reference."""
    expected = truth(case, noise)
    result = {name: result[name] for name in expected}
    if case.dtype in (torch.float32, torch.float64):
        assert_close(result, {name: want.to(case.dtype) for name, want in expected.items()}, bound_by(case))
    elif case.cell in RELU_CELLS:  # the derivative of relu jumps where a rounding may move a sum to
        values = {name: want for name, want in expected.items() if not name.startswith("d")}
        assert_few_roundings({name: result[name] for name in values}, values, case)
    else:
        assert_few_roundings(result, expected, case)


def layer_cases(**changes):
    """Tails of every size, both layouts, packed, both directions, with and without biases and states."""
    for cell in CELLS:
        yield fit(Case(cell, T=5, B=3, I=7, H=33, **changes))
        # Normalising few numbers divides by their deviation, which may be small, and so enlarges errors. They
        # grow from step to step.
        least, most_steps = (4, 8) if CELLS[cell].info.normalised else (1, 30)
        yield fit(Case(cell, T=4, B=2, I=1, H=least, bidirectional=True, **changes))
        more = dict(form="batch_first", bidirectional=True, hx=False)
        yield fit(Case(cell, T=3, B=17, I=33, H=16, **more, **changes))
        yield fit(Case(cell, T=7, B=9, I=5, H=17, form="packed", bidirectional=True, **changes))
        yield fit(Case(cell, T=6, B=5, I=3, H=9, form="packed", bias=False, hx=False, **changes))
        yield fit(Case(cell, T=1, B=4, I=6, H=8, **changes))
        yield fit(Case(cell, T=1, B=1, I=6, H=5, bidirectional=True, bias=False, **changes))
        yield fit(Case(cell, T=most_steps, B=1, I=40, H=40, **changes))
    for cell in (name for name, row in CELLS.items() if row.projection):
        for form, bidirectional in itertools.product(("padded", "batch_first", "packed"), (False, True)):
            yield Case(cell, T=6, B=5, I=4, H=18, P=7, form=form, bidirectional=bidirectional, **changes)
        yield Case(cell, T=1, B=5, I=4, H=18, P=7, hx=False, bias=False, **changes)


@pytest.mark.parametrize("case", list(layer_cases(dtype=torch.float64)), ids=str)
def test_float64(runner, tmp_path, case):
    """Against the reference; and the same bits whatever the order of the indices of a kernel."""
    result = run(runner, tmp_path, case)
    check(result, case)
    assert_same_bits(run(runner, tmp_path, case, order="descending"), result, "descending")


def in_dtype(case, dtype):
    """The derivative of relu jumps at a sum of 0, which a rounding could move to either side."""
    case = case.but(dtype=dtype)
    return with_margin(case, 2e-6) if dtype == torch.float32 else case


def noisy_cases(**changes):
    for cell, noise in itertools.product(CELLS, KINDS):
        sizes = dict(B=4, I=3, H=33)
        yield fit(Case(cell, T=5, **sizes, **changes)), noise
        yield fit(Case(cell, T=5, **sizes, form="batch_first", bidirectional=True, **changes)), noise
        yield fit(Case(cell, T=5, **sizes, form="packed", bidirectional=True, **changes)), noise
        yield fit(Case(cell, T=1, **sizes, hx=False, **changes)), noise
        if CELLS[cell].projection and noise == "mask":
            for form in ("padded", "batch_first", "packed"):
                more = dict(form=form, bidirectional=form == "packed")
                yield Case(cell, T=5, P=7, **sizes, **more, **changes), noise


@pytest.mark.parametrize("case, noise", list(noisy_cases(dtype=torch.float64)), ids=str)
def test_noise(runner, tmp_path, case, noise):
    result = run(runner, tmp_path, case, noise=noise)
    check(result, case, noise)
    assert_same_bits(run(runner, tmp_path, case, noise=noise, order="descending"), result, "descending")


@pytest.mark.quick(1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case, noise", list(noisy_cases()), ids=str)
def test_noise_of_other_dtypes(runner, tmp_path, case, noise, dtype):
    case = in_dtype(case, dtype)
    check(run(runner, tmp_path, case, noise=noise), case, noise)


@pytest.mark.quick(1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", list(layer_cases()), ids=str)
def test_other_dtypes(runner, tmp_path, case, dtype):
    case = in_dtype(case, dtype)
    check(run(runner, tmp_path, case), case)


@pytest.mark.quick(0)
@pytest.mark.parametrize("cell", [cell for cell, row in CELLS.items() if not row.info.normalised])
def test_many_steps(runner, tmp_path, cell):
    """More steps of a packed batch than one kernel's arguments carry, and several parts of a column sum.

    In so many steps of a normalised cell rounding errors would grow to any size."""
    case = fit(Case(cell, T=1000, B=3, I=2, H=3, form="packed", bidirectional=True, dtype=torch.float64))
    check(run(runner, tmp_path, case), case)


@pytest.mark.quick(1)
@pytest.mark.parametrize("unwanted", ["hn", "inputs", "weights"])
@pytest.mark.parametrize("cell", CELLS)
def test_unwanted_results(runner, tmp_path, cell, unwanted):
    """What is not asked for changes nothing of the rest."""
    case = fit(Case(cell, T=4, B=5, I=3, H=9, form="packed", bidirectional=True))
    every = run(runner, tmp_path, case)
    some = run(runner, tmp_path, case, **{unwanted: False})
    assert set(some) < set(every)
    assert_same_bits(some, {name: every[name] for name in some}, f"without {unwanted}")


@pytest.mark.parametrize("cell", CELLS)
def test_missing_gradients_are_zeros(runner, tmp_path, cell):
    case = fit(Case(cell, T=4, B=5, I=3, H=9, bidirectional=True))
    names = ["doutput", *(f"d{s}_n" for s in STATE_NAMES[: case.row.states])]
    for missing in names:

        def zero(given, missing=missing):
            given[missing] = torch.zeros_like(given[missing])

        def remove(given, missing=missing):
            given[missing] = None

        zeros = run(runner, tmp_path, case, change=zero)
        assert_same_bits(run(runner, tmp_path, case, change=remove), zeros, f"without {missing}")


@pytest.mark.quick(1)
@pytest.mark.parametrize("place", ["x", "h_0", "weight"])
@pytest.mark.parametrize("cell", CELLS)
def test_nan_goes_through(runner, tmp_path, cell, place):
    """To where the reference has it, and nowhere else: the sequences of a batch stay apart."""
    case = fit(Case(cell, T=4, B=3, I=3, H=9, dtype=torch.float64))

    def spoil(given):
        name = next(n for n in given if n in ("W_hh", "u_hh")) if place == "weight" else place
        given[name] = given[name].detach().clone()
        given[name].view(-1)[-1] = float("nan")

    got = run(runner, tmp_path, case, change=spoil)["output"]
    (x, hx), weights = draw_inputs(case), draw_weights(case)
    given = {"x": x, "h_0": hx[0], **weights}
    spoil(given)
    call = call_reference(case, [given[name] for name in weights])
    want = call(given["x"], [given["h_0"], *hx[1:]])[0]
    assert torch.equal(got.isnan(), want.isnan())
    assert want.isnan().any()
