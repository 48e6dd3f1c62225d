"""fastrnn's classes by torch's own inputs for its modules (torch.testing._internal.common_modules), with the
tests that torch has for every module (its test/test_modules.py)."""

import io
import pickle

import pytest
import torch
from cases import device_of
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves, tree_map

import fastrnn

common_modules = pytest.importorskip(
    "torch.testing._internal.common_modules", reason="torch's module inputs (they need expecttest)"
)
pytestmark = [
    pytest.mark.usefixtures("device"),
    pytest.mark.filterwarnings("ignore:dropout option adds dropout"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),  # of torch.nn
]

CLASSES = {
    torch.nn.RNN: fastrnn.RNN,
    torch.nn.GRU: fastrnn.GRU,
    torch.nn.LSTM: fastrnn.LSTM,
    torch.nn.RNNCell: fastrnn.RNNCell,
    torch.nn.GRUCell: fastrnn.GRUCell,
    torch.nn.LSTMCell: fastrnn.LSTMCell,
}
INFOS = [info for info in common_modules.module_db if info.module_cls in CLASSES]
each_info = pytest.mark.parametrize("info", INFOS, ids=lambda info: info.module_cls.__name__)
each_mode = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def test_all_are_there():
    assert {info.module_cls for info in INFOS} == set(CLASSES)


def samples(info, dtype, training, requires_grad=False):
    """fastrnn's module, torch.nn's with the same weights, the arguments of the call, the sample."""
    options = dict(device=device_of(fastrnn), dtype=dtype, requires_grad=requires_grad, training=training)
    if info.module_cls in (torch.nn.RNN, torch.nn.GRU):
        options["with_packed_sequence"] = True
    for sample in info.module_inputs_func(info, **options):
        make = sample.constructor_input
        ours, theirs = (
            cls(*make.args, **make.kwargs, dtype=dtype).train(training)
            for cls in (CLASSES[info.module_cls], info.module_cls)
        )
        ours.to(device_of(fastrnn)).load_state_dict(theirs.state_dict())
        yield ours, theirs, sample.forward_input, sample


def tensors(values):
    """The tensors in nested results; of a PackedSequence its data."""
    is_packed = lambda v: isinstance(v, PackedSequence)  # noqa: E731
    leaves = tree_leaves(values, is_leaf=is_packed)
    return [v.data if is_packed(v) else v for v in leaves if isinstance(v, (torch.Tensor, PackedSequence))]


def fresh(args, change=lambda t: t):
    """A copy of nested arguments whose tensors, changed, are leaves."""

    def copy(value):
        if isinstance(value, PackedSequence):
            return PackedSequence(copy(value.data), *value[1:])
        if not isinstance(value, torch.Tensor):
            return value
        return change(value.detach().clone()).requires_grad_(value.requires_grad)

    return tree_map(copy, args, is_leaf=lambda v: isinstance(v, PackedSequence))


def solve(module, args):
    """Results and the gradients of arguments and parameters for their sum of squares."""
    module.zero_grad()
    results = tensors(module(*args))
    leaves = [t for t in (*tensors(args), *module.parameters()) if t.requires_grad]
    gradients = torch.autograd.grad(sum(r.square().sum() for r in results), leaves)
    return [*results, *gradients]


def assert_all_close(got, want, dtype):
    """Relative to the largest element: torch's inputs go up to 9, and small gradients are what cancels."""
    relative = 1e-5 if dtype == torch.float32 else 1e-12
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.cpu(), b.cpu(), rtol=0, atol=relative * max(1, b.abs().max().item()))


@each_dtype
@each_mode
@each_info
def test_forward_and_backward(info, training, dtype):
    for ours, theirs, call, sample in samples(info, dtype, training, requires_grad=True):
        args = fresh(call.args)
        on_cpu = fresh(call.args, lambda t: t.cpu())
        assert_all_close(solve(ours, args), solve(theirs, on_cpu), dtype)
        if not isinstance(call.args[0], PackedSequence):
            want = sample.reference_fn(ours, *call.args, **call.kwargs)
            assert_all_close(tensors(ours(*call.args, **call.kwargs)), tensors(want), dtype)


@pytest.mark.thorough
@each_info
def test_gradcheck_and_gradgradcheck(info):
    for ours, _, call, _ in samples(info, torch.float64, True, requires_grad=True):
        inputs = tensors(call.args)
        leaves = [*inputs, *ours.parameters()]

        def run(*values, ours=ours, call=call, inputs=inputs):
            given = iter(values)

            def put(v):
                if isinstance(v, PackedSequence):
                    return PackedSequence(next(given), *v[1:])
                return next(given) if isinstance(v, torch.Tensor) else v

            args = tree_map(put, call.args, is_leaf=lambda v: isinstance(v, PackedSequence))
            parameters = dict(zip(dict(ours.named_parameters()), values[len(inputs) :], strict=True))
            return tuple(tensors(torch.func.functional_call(ours, parameters, args)))

        relu = getattr(ours, "nonlinearity", "") == "relu"
        assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
        if not relu:  # torch excludes it by its inputs; a second derivative jumps
            assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


@each_mode
@each_info
def test_pickle(info, training):
    for ours, _, call, _ in samples(info, torch.float32, training):
        with io.BytesIO() as file:
            torch.save(ours, file)
            file.seek(0)
            loaded = torch.load(file, weights_only=False)
        want = tensors(ours(*call.args))
        for copied in (loaded, pickle.loads(pickle.dumps(ours))):
            assert type(copied) is type(ours)
            assert all(map(torch.equal, tensors(copied(*call.args)), want))


@each_info
def test_save_load_and_repr(info):
    for ours, theirs, call, _ in samples(info, torch.float32, False):
        assert repr(ours) == repr(theirs)
        with io.BytesIO() as file:
            torch.save(ours.state_dict(), file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
        want = tensors(ours(*call.args))
        with torch.no_grad():
            for p in ours.parameters():
                p.zero_()
        ours.load_state_dict(state)
        assert all(map(torch.equal, tensors(ours(*call.args)), want))


def spread(t):
    """The same values in every second place of a larger tensor."""
    wide = torch.empty(*t.shape, 2, dtype=t.dtype, device=t.device).fill_(float("nan"))
    wide[..., 0] = t
    return wide[..., 0]


@each_mode
@each_info
def test_non_contiguous(info, training):
    for ours, _, call, _ in samples(info, torch.float64, training, requires_grad=True):
        want = solve(ours, fresh(call.args))
        assert all(map(torch.equal, solve(ours, fresh(call.args, spread)), want))
        for p in ours.parameters():
            p.data = spread(p.data)
            assert p.numel() < 2 or not p.is_contiguous()
        assert all(map(torch.equal, solve(ours, fresh(call.args, spread)), want))


@each_info
def test_memory_format(info):
    for ours, _, call, _ in samples(info, torch.float32, False):
        want = tensors(ours(*call.args))
        for memory_format in (torch.channels_last, torch.contiguous_format):
            ours.to(memory_format=memory_format)
            assert all(map(torch.equal, tensors(ours(*call.args)), want))


@each_info
def test_factory_arguments(info):
    """device and dtype of the constructor, and no parameter initialized by skip_init."""
    for _, _, _, sample in samples(info, torch.float32, False):
        make, cls = sample.constructor_input, CLASSES[info.module_cls]
        for device in ("cpu", device_of(fastrnn), "meta"):
            built = cls(*make.args, **make.kwargs, device=device, dtype=torch.float64)
            assert {p.dtype for p in built.parameters()} == {torch.float64}
            assert {p.device.type for p in built.parameters()} == {torch.device(device).type}
        empty = torch.nn.utils.skip_init(cls, *make.args, **make.kwargs, dtype=torch.float64)
        assert {(p.dtype, p.device.type) for p in empty.parameters()} == {(torch.float64, "cpu")}
        assert type(empty) is cls


@each_dtype
@each_info
def test_errors(info, dtype):
    """The exceptions that torch.nn raises, with its text."""
    errors = info.module_error_inputs_func(
        info, device=device_of(fastrnn), dtype=dtype, requires_grad=False, training=False
    )
    kinds = common_modules.ModuleErrorEnum
    for error in errors:
        make, call = error.module_error_input.constructor_input, error.module_error_input.forward_input
        cls = CLASSES[info.module_cls]
        if error.error_on is kinds.CONSTRUCTION_ERROR:
            with pytest.raises(error.error_type, match=error.error_regex):
                cls(*make.args, **make.kwargs)
            continue
        module = cls(*make.args, **make.kwargs).to(device_of(fastrnn), dtype)
        with pytest.raises(error.error_type, match=error.error_regex):
            module(*call.args, **call.kwargs)
