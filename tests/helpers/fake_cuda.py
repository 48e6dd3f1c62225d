"""A GPU for Python without one: torch.cuda with the properties of an H200, memory and kernels of the CPU.

What stands behind torch.cuda in `torch._C` is put there, so that its own Python runs, with its own names and
signatures. Tensors on "cuda" are plain ones whose device is cuda:0 or cuda:1; fake_cuda.cpp computes them
with the CPU's kernels. A graph that was captured computes again when it is replayed.

    library = build()    # in one process; then, in those that are to see a GPU:
    install(library)
"""

import itertools
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

SOURCE = Path(__file__).parent / "fake_cuda.cpp"


class DeviceProperties:
    """Of an H200: what torch's class has since 2.9, and nothing else but what inductor asks for."""

    __slots__ = ()
    name = "NVIDIA H200 (fake)"
    major, minor = 9, 0
    multi_processor_count = 132
    total_memory = 150_120_824_832
    L2_cache_size = 60 * 2**20
    is_integrated = is_multi_gpu_board = 0
    max_threads_per_multi_processor = 2048
    regs_per_multiprocessor = 65536
    warp_size = 32
    uuid = "00000000-0000-0000-0000-000000000000"


def build() -> str:
    """The device as a library; its path. It stays below build/, as the extension does."""
    from torch.utils.cpp_extension import load

    folder = Path(__file__).parents[2] / f"build/tests/fake_cuda-torch-{torch.__version__}"
    folder.mkdir(parents=True, exist_ok=True)
    options = dict(is_python_module=False, build_directory=str(folder), extra_cflags=["-O0"])
    with FileLock(folder / "lock of tests"):
        (folder / "lock").unlink(missing_ok=True)  # torch's own, which stays when a build is interrupted
        return load("fake_cuda", [str(SOURCE)], **options)


class Clock:
    """How far the device is. It runs only what `_sleep` gave it behind the host's back."""

    busy = False


class StreamBase:
    ids = itertools.count(1)

    def __new__(cls, priority=0, stream_id=None, device_index=None, device_type=None):
        self = object.__new__(cls)
        self.stream_id = next(StreamBase.ids) if stream_id is None else stream_id
        self.device_index = torch.cuda.current_device() if device_index is None else device_index
        self.device_type = 1
        self.device = torch.device("cuda", self.device_index)
        self.cuda_stream = self.stream_id
        return self

    def __init__(self, *args, **kwargs):
        pass

    def __eq__(self, other):
        return (self.stream_id, self.device) == (other.stream_id, other.device)

    def query(self):
        return not Clock.busy

    def synchronize(self):
        synchronize()


class EventBase:
    def __new__(cls, enable_timing, blocking, interprocess, external):
        self = object.__new__(cls)
        self.enable_timing, self.time, self.waits = enable_timing, None, False
        return self

    def __init__(self, *args, **kwargs):
        pass

    def record(self, stream):
        self.time, self.waits = time.perf_counter(), Clock.busy

    def wait(self, stream):
        pass

    def query(self):
        return not (self.waits and Clock.busy)

    def synchronize(self):
        synchronize()

    def elapsed_time(self, end):
        if not (self.enable_timing and end.enable_timing and self.time and end.time):
            raise ValueError("Both events must be created with argument 'enable_timing=True' and recorded.")
        if not (self.query() and end.query()):
            raise RuntimeError("device not ready")
        return 1e3 * (end.time - self.time)


class GraphBase:
    ids = itertools.count(1)

    def __new__(cls, *args, **kwargs):
        self = object.__new__(cls)
        self.id = next(GraphBase.ids)
        return self

    def __init__(self, *args, **kwargs):
        pass

    def capture_begin(self, *args, **kwargs):
        torch.ops.fake_cuda.capture(self.id)

    def capture_end(self):
        torch.ops.fake_cuda.capture(0)

    def replay(self):
        torch.ops.fake_cuda.replay(self.id)


class Storage:
    """What a storage does by code of its own for each device."""

    def as_tensor(self):
        return torch.empty(0, dtype=torch.uint8, device=self.device).set_(self)

    def clone(self):
        return Storage.as_tensor(self).clone().untyped_storage()

    def cpu(self):
        return Storage.to(self, device="cpu")

    def to(self, *, device, non_blocking=False):
        return Storage.as_tensor(self).to(device).untyped_storage()

    def resize_(self, size):
        if self.device.type != "cuda":
            return torch._C.StorageBase.resize_(self, size)
        torch.ops.fake_cuda.resize_storage(Storage.as_tensor(self), size)


def flatten_weights(
    weight_arr,
    weight_stride0,
    input_size,
    mode,
    hidden_size,
    proj_size,
    num_layers,
    batch_first,
    bidirectional,
):
    """As cuDNN has them: parts of one buffer."""
    buffer = torch.cat([weight.flatten() for weight in weight_arr])
    start = 0
    for weight in weight_arr:
        weight.set_(buffer[start : start + weight.numel()].view_as(weight))
        start += weight.numel()
    return buffer


def is_acceptable(tensor):
    return tensor.is_cuda and tensor.dtype in (torch.float16, torch.float32, torch.float64)


def synchronize():
    Clock.busy = False


def sleep(cycles):
    Clock.busy = True


class Streams:
    """The current one of each device."""

    current = {}

    @classmethod
    def get(cls, index):
        return cls.current.get(index, (0, index, 1))

    @classmethod
    def set(cls, *, stream_id, device_index, device_type):
        cls.current[device_index] = (stream_id, device_index, device_type)
        exchange_device(device_index)


def exchange_device(index):
    before = torch.ops.fake_cuda.device()
    if index >= 0:
        torch.ops.fake_cuda.set_device(index)
    return before


class SyncMode:
    value = 0

    @classmethod
    def set(cls, value):
        cls.value = value
        torch.ops.fake_cuda.set_may_wait(value != 2)


def memory_stats(device):
    numbers = dict.fromkeys(("current", "peak", "allocated", "freed"), 0)
    return {name: {"all": dict(numbers)} for name in ("allocated_bytes", "reserved_bytes", "active_bytes")}


kernels = torch.library.Library("aten", "IMPL")  # which lasts as long as the process
CELLS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
RECURRENCES = [f"{cell}.{form}" for cell in CELLS for form in ("input", "data")]
RECURRENCES += [f"{cell}_cell" for cell in CELLS]

ACTIVITIES = {torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA}

# What torch.cuda calls.
BINDINGS = {
    "_cuda_init": lambda: None,
    "_cuda_getDeviceCount": lambda: torch.ops.fake_cuda.device_count(),
    "_cuda_getDevice": lambda: torch.ops.fake_cuda.device(),
    "_cuda_setDevice": lambda index: torch.ops.fake_cuda.set_device(index),
    "_cuda_exchangeDevice": lambda index: exchange_device(index),
    "_cuda_maybeExchangeDevice": lambda index: exchange_device(index),
    "_cuda_synchronize": synchronize,
    "_cuda_sleep": sleep,
    "_cuda_getCurrentStream": Streams.get,
    "_cuda_getCurrentRawStream": lambda index: 0,
    "_cuda_getDefaultStream": lambda index: (0, index, 1),
    "_cuda_setStream": Streams.set,
    "_cuda_set_sync_debug_mode": SyncMode.set,
    "_cuda_get_sync_debug_mode": lambda: SyncMode.value,
    "_cuda_emptyCache": lambda: None,
    "_host_emptyCache": lambda: None,
    "_cuda_memoryStats": memory_stats,
    "_cuda_resetPeakMemoryStats": lambda device: None,
    "_cuda_resetAccumulatedMemoryStats": lambda device: None,
    "_cuda_getArchFlags": lambda: "sm_90",
    "_cuda_CUDAAllocator_AllocatorState": object,
}


# What fastrnn._C has in a build with CUDA.
DEVICE = dict(sms=132, capability=90, shared_bytes=227 * 1024)


def plan_here(**problem):
    from fastrnn import _C

    return _C.plan(**problem, **_C.device(), kind=_C.forced_cuda_plan())


def give_methods(dummy, base):
    """Let the class that torch.cuda derives its own from, which refuses to be made, be `base`."""
    for name, value in vars(base).items():
        if name not in ("__dict__", "__weakref__", "__doc__", "__module__"):
            setattr(dummy, name, value)


def recurrence_of(name):
    """torch.nn's operator, which asks cuDNN, on the CPU instead."""
    packet, _, overload = name.partition(".")
    operator = getattr(getattr(torch.ops.aten, packet), overload or "default")

    def run(*args):
        tensors = [t for t in tree_leaves(args) if isinstance(t, Tensor) and t.dtype != torch.int64]
        (device, *others) = {t.device for t in tensors}  # batch sizes, of int64, are on the CPU
        if others:
            raise RuntimeError("Input and parameter tensors are not at the same device")
        move = partial(tree_map_only, Tensor)
        return move(lambda t: t.to(device), operator(*move(lambda t: t.cpu(), args)))

    return run


def install(library: str):
    """Before anything asks for a GPU."""
    torch.ops.load_library(library)
    torch.ops.fake_cuda.replace_hooks()
    from fastrnn import _C
    from fastrnn.plan import Gpu

    torch.ops.fake_cuda.compute_layers()
    for name, function in BINDINGS.items():
        setattr(torch._C, name, function)
    give_methods(torch._C._CudaStreamBase, StreamBase)
    give_methods(torch._C._CudaEventBase, EventBase)
    give_methods(torch._C._CUDAGraph, GraphBase)
    for name in ("clone", "cpu", "to", "resize_"):
        setattr(torch.UntypedStorage, name, vars(Storage)[name])
    torch._cudnn_rnn_flatten_weight = flatten_weights
    torch._use_cudnn_rnn_flatten_weight = lambda: True
    torch.version.cuda = "13.0"
    torch.backends.cudnn.version = lambda: 91002
    torch.backends.cudnn.is_acceptable = is_acceptable
    torch.backends.cudnn.rnn.get_cudnn_mode = ("RNN_RELU", "RNN_TANH", "LSTM", "GRU").index
    torch.profiler._supported_activities = torch.autograd.profiler._supported_activities = lambda: ACTIVITIES
    torch._C._has_cuda = True
    torch.cuda._get_device_properties = lambda index: DeviceProperties()
    total = DeviceProperties.total_memory
    torch.cuda._cudart = SimpleNamespace(cudaMemGetInfo=lambda device: (total - 2**30, total))
    torch.cuda._exchange_device = torch._C._cuda_exchangeDevice
    torch.cuda._maybe_exchange_device = torch._C._cuda_maybeExchangeDevice
    torch.cuda.default_generators = tuple(torch.Generator() for _ in range(2))
    _C.cuda_built, _C.cuda_archs = True, ["sm_90a"]
    clusters = Gpu(DEVICE["sms"], (DeviceProperties.major, DeviceProperties.minor)).clusters
    _C.device, _C.plan_here = lambda: DEVICE | {"clusters": clusters}, plan_here
    for name in RECURRENCES:
        for key in ("AutogradCUDA", "CUDA"):
            kernels.impl(name, recurrence_of(name), key)


# ---- as a plugin of pytest ----


@pytest.hookimpl(trylast=True)  # of those that -m leaves
def pytest_collection_modifyitems(config, items):
    """One case of each test."""
    chosen = {}
    for item in items:
        chosen.setdefault((item.path, item.originalname), item)
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen.values()])
    items[:] = chosen.values()
