"""Threads: as many as torch is set to, one OpenMP runtime, forked workers, several callers, and the GIL
released.

What a process does to itself (its number of threads, the libraries it has loaded, a fork) is tested in a
fresh one.
"""

import sys
import threading
import time

import pytest
import torch
from cases import EVERY_CELL, Case, evaluate, run_python, using_threads
from tolerance import assert_same_bits

import fastrnn

# ---- torch.set_num_threads ----

COUNT = """
import os, sys, torch
from cases import Case
import fastrnn

torch.set_num_threads(1)
cell, how = sys.argv[1:3]
case = Case(cell, T=60, B=32, I=128, H=256)
layer, call, x, hx = case.prepare(fastrnn)
module, step, x1, h1 = case.but(B=64, H=512).prepare_step(fastrnn)

def work():
    for _ in range(3):
        with torch.set_grad_enabled(how == "training"):
            values = call(x, hx)
            step(x1, h1)
    if how == "training":
        torch.autograd.backward(values, [torch.ones_like(v) for v in values])

def tasks():
    return set(os.listdir("/proc/self/task"))

def cpu_time(task):  # of one thread, nanoseconds
    with open(f"/proc/self/task/{task}/schedstat") as f:
        return int(f.read().split()[0])
"""

STARTED = (
    COUNT
    + """
work()
before = tasks()  # with what torch starts on its own, the autograd engine's for instance
for n in (1, 2, 3):
    torch.set_num_threads(n)
    work()
    print(len(tasks() - before))
"""
)

BUSY = (
    COUNT
    + """
import time
torch.set_num_threads(2)
work()  # now there is a second thread
torch.set_num_threads(int(sys.argv[3]))
work()
time.sleep(0.3)  # longer than any thread spins for work
before = {task: cpu_time(task) for task in tasks()}
for _ in range(4):
    work()
spent = sorted((cpu_time(task) - before.get(task, 0) for task in tasks()), reverse=True)
print(spent[0], sum(spent[1:]))
"""
)


@pytest.mark.quick(0)
@pytest.mark.parametrize("how", ["inference", "training"])
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_number_of_threads_started(cell, how):
    """None, one and two more for set_num_threads(1), (2) and (3)."""
    done = run_python("-c", STARTED, cell, how)
    assert done.returncode == 0, done.stderr
    assert [int(n) for n in done.stdout.split()] == [0, 1, 2]


@pytest.mark.quick(0)
@pytest.mark.threads
@pytest.mark.parametrize("how", ["inference", "training"])
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_threads_that_work(cell, how):
    """Where the processor time goes: to one thread after set_num_threads(1), although there is a second."""

    def share(n):
        done = run_python("-c", BUSY, cell, how, str(n))
        assert done.returncode == 0, done.stderr
        first, others = (int(t) for t in done.stdout.split())
        return others / (first + others)

    one, two = share(1), 0
    assert one < 0.05, f"other threads do {one:.0%} of the work after set_num_threads(1)"
    for _ in range(3):  # while another program has the second core, fastrnn leaves it alone
        two = max(two, share(2))
        if two > 0.2:
            break
    assert two > 0.2, f"the second thread does {two:.0%} of the work after set_num_threads(2)"


@pytest.mark.threads
def test_more_threads_than_cores():
    """Eight threads, however few cores: the same bits."""
    case = Case("lstm", T=6, B=20, H=130)
    with using_threads(1):
        want = case.solve(fastrnn)
    with using_threads(8):
        assert_same_bits(case.solve(fastrnn), want, "eight threads")


# ---- one OpenMP runtime ----

RUNTIMES = """
import re, os, torch, fastrnn
layer = fastrnn.LSTM(64, 256)
torch.set_num_threads(2)
layer(torch.randn(20, 32, 64))[0].sum().backward()
with open("/proc/self/maps") as f:
    paths = {line.split(maxsplit=5)[5].strip() for line in f if "/" in line}
print(*sorted({os.path.realpath(p) for p in paths if re.search(r"/lib(g|i|)omp[^/]*\\\\.so", p)}),
sep="\\\\n") """.replace("\\\\", "\\")


def test_one_openmp_runtime():
    done = run_python("-c", RUNTIMES)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 1, done.stdout


# ---- forked workers ----

WORKERS = """
import sys, torch
from torch.utils.data import DataLoader, Dataset
import fastrnn
from cases import Case

cell, parent_threads = sys.argv[1], int(sys.argv[2])
case = Case(cell, T=10, B=16, I=32, H=128)
layer, call, _, _ = case.prepare(fastrnn)
x = torch.randn(8, 10, 16, 32)

def features(k):
    y = x[k].clone().requires_grad_()
    call(y, None)[0].square().sum().backward()
    return torch.cat([call(y, None)[0].detach().flatten(), y.grad.flatten()])

class Features(Dataset):
    def __len__(self):
        return len(x)

    def __getitem__(self, k):
        return features(k)

def collate(items):
    return torch.stack(items), layer(x[0])[0].detach()

torch.set_num_threads(parent_threads)
want = torch.stack([features(k) for k in range(len(x))])  # the parent has used its threads before it forks
with torch.no_grad():
    first = layer(x[0])[0]
options = dict(batch_size=4, num_workers=2, collate_fn=collate, multiprocessing_context="fork")
for _ in range(2):
    batches = list(DataLoader(Features(), **options))
    assert torch.equal(torch.cat([b for b, _ in batches]), want)
    assert all(torch.equal(y, first) for _, y in batches)
assert torch.equal(features(3), want[3])  # and the parent still works
print("done")
"""


@pytest.mark.quick(0)
@pytest.mark.parametrize("parent_threads", [2, 1])
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_forked_workers(cell, parent_threads):
    """Dataset and collate function run a layer, forward and backward, in workers of a parent that has run it
    too."""
    done = run_python("-c", WORKERS, cell, str(parent_threads))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "done"


SPAWNED = """
import torch, torch.multiprocessing as mp
import fastrnn

def run(layer, x, queue):
    queue.put(layer(x)[0].detach().clone().numpy())

if __name__ == "__main__":
    layer, x = fastrnn.GRU(5, 33), torch.randn(4, 3, 5)
    context = mp.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=run, args=(layer, x, queue))
    process.start()
    got = queue.get(timeout=100)
    process.join()
    assert torch.equal(torch.from_numpy(got), layer(x)[0])
    print("done")
"""


def test_spawned_process(tmp_path):
    """A module travels to another process by pickle."""
    script = tmp_path / "spawned.py"
    script.write_text(SPAWNED)
    done = run_python(str(script))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "done"


# ---- several callers ----


@pytest.mark.threads
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("threads", [1, 2])
def test_several_python_threads(threads):
    """Layers of several sizes run at the same time, each forward and backward, and do not disturb each
    other."""
    cases = [
        Case(cell, T=12, B=B, I=20, H=H, bidirectional=H == 40)
        for cell in EVERY_CELL
        for B, H in ((3, 70), (40, 40))
    ]
    with using_threads(threads):
        want = {case: case.solve(fastrnn) for case in cases}
        prepared = [(case, *case.prepare(fastrnn)) for case in cases for _ in range(2)]
        results, failures = [], []

        def work(case, layer, call, x, hx):
            try:
                torch.set_num_threads(threads)
                for _ in range(5):
                    for t in (x, *hx, *layer.parameters()):
                        t.grad = None
                    results.append((case, evaluate(call, x, hx, dict(layer.named_parameters()), case)))
            except BaseException as error:
                failures.append(error)

        workers = [threading.Thread(target=work, args=job) for job in prepared]
        for w in workers:
            w.start()
        for w in workers:
            w.join()
    assert not failures, failures[0]
    assert len(results) == 5 * len(prepared)
    for case, result in results:
        assert_same_bits(result, want[case], f"{case}, beside other threads")


# ---- the GIL ----


def count_beside(work):
    """How far another Python thread counts while `work` runs, if nothing but a release of the GIL lets it
    run.

    The interpreter is told never to take the GIL away from a thread, so the counter moves only while `work`
    has let go of it. The counter lets go of it by itself, every time it sleeps.
    """
    count, stop = 0, threading.Event()

    def run():
        nonlocal count
        while not stop.is_set():
            count += 1
            time.sleep(0.0005)

    interval = sys.getswitchinterval()
    counter = threading.Thread(target=run)
    counter.start()
    time.sleep(0.01)
    sys.setswitchinterval(1000)
    try:
        before = count
        work()
        return count - before
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        counter.join()


def busy_python(seconds):
    """Python code that keeps the GIL."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


@pytest.mark.threads
@pytest.mark.parametrize("how", ["inference", "training", "cell"])
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_gil_is_released(cell, how):
    """A thread counts on during a single long call; during Python code of the same length it stands still."""
    # Long enough that a few counts between the steps of a call, when operators around the kernel release the
    # GIL for an instant, are nothing beside what a release during the kernel gives.
    case = Case(
        cell,
        T=1 if how == "cell" else 1500,
        B=4096 if how == "cell" else 16,
        I=256,
        H=512 if how == "cell" else 160,
    )
    module, call, x, hx = case.prepare_step(fastrnn) if how == "cell" else case.prepare(fastrnn)
    with using_threads(1):
        start = time.perf_counter()
        with torch.set_grad_enabled(how == "training"):
            counted = count_beside(lambda: call(x, hx))
        length = time.perf_counter() - start
    held = count_beside(lambda: busy_python(length))
    assert held <= 2, "the measure counts without a release, so this test shows nothing"
    assert counted > held + 10
