"""Two processes (gloo, on the CPU) train as one: DistributedDataParallel, fully_shard, the demo."""

import os
import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from cases import EVERY_CELL, Case, random, run_python
from torch import nn

import fastrnn

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo"
)

WORLD = 2
T, B, STEPS = 5, 4, 3
LENGTHS = [0, 5, 0, 2]  # those of process 0 are all 0: every weight gets a gradient of it all the same
OPTIONS = {"plain": {}, "lengths": dict(lengths=LENGTHS), "all states": dict(return_all_states=True)}
WAYS = ("DDP", "FSDP2")


class Model(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.rnn = Case(cell, I=6, H=8, L=2, bidirectional=True, dtype=torch.float64).build(fastrnn)
        self.head = nn.Linear(16, 3, dtype=torch.float64)

    def forward(self, x, **options):
        y, _, *every = self.rnn(x, **options)
        extra = (
            sum(s.square().mean() for s in (every[0] if isinstance(every[0], tuple) else every))
            if every
            else 0
        )
        return self.head(y).square().mean() + extra


def train(cell, option, wrap, rows):
    """Three steps of SGD on these rows of the batch: the last gradients and the weights, whole."""
    torch.manual_seed(0)
    model = Model(cell)
    wrapped = wrap(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    options = dict(OPTIONS[option])
    if "lengths" in options:
        options["lengths"] = options["lengths"][rows]
    x = random(T, B, 6, seed=1, dtype=torch.float64)[:, rows]
    for step in range(STEPS):
        optimizer.zero_grad()
        wrapped(x + step, **options).backward()
        optimizer.step()
    whole = lambda t: t.full_tensor() if hasattr(t, "full_tensor") else t  # noqa: E731
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    tensors |= {f"d{name}": p.grad for name, p in model.named_parameters()}
    return {name: whole(t).clone() for name, t in tensors.items()}


def shard(model):
    from torch.distributed.fsdp import fully_shard

    fully_shard(model.rnn)
    return fully_shard(model)


def work(rank, folder):
    """One of the two processes: all cases, results of process 0 into a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    wraps = {"DDP": nn.parallel.DistributedDataParallel, "FSDP2": shard}
    rows = slice(rank * B // WORLD, (rank + 1) * B // WORLD)
    results = {}
    for cell in EVERY_CELL:
        for option in OPTIONS:
            for way in WAYS:
                results[cell, option, way] = train(cell, option, wraps[way], rows)
    if rank == 0:
        torch.save(results, f"{folder}/results.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # one in some ten processes that used gloo aborts in its static destructors


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=WORLD)
    return torch.load(folder / "results.pt")


@pytest.mark.xdist_group("two processes")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_two_processes_train_as_one(results, cell, option, way):
    got, want = results[cell, option, way], train(cell, option, lambda model: model, slice(None))
    assert got.keys() == want.keys() and all(want[n].any() for n in want if n.startswith("d"))
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-10, atol=1e-12)


@pytest.mark.thorough
def test_demo_under_torchrun(tmp_path):
    """The demo in two processes prints once, and its losses are those of one process."""
    demo = Path(__file__).parents[2] / "examples/char_lm.py"
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    arguments = [str(demo), "--steps=4", "--hidden=16", "--batch=4", "--seq=8", "--threads=1"]
    arguments.append(f"--out={tmp_path}/char_lm.png")
    env = {"COLUMNS": "120", "OMP_NUM_THREADS": "1"}

    def losses(*launcher):
        done = run_python(*launcher, *arguments, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        told = " ".join(done.stdout.split())  # lines are wrapped
        rows = re.findall(r"(torch|fastrnn) +│ ([\d.]+) +│ ([\d.]+)", done.stdout)
        assert [name for name, *_ in rows] == ["torch", "fastrnn"], done.stdout
        assert told.count("the bound held") == 1
        return [float(loss) for _, *of_row in rows for loss in of_row]

    alone = losses()
    port = str(29500 + os.getpid() % 1000)
    together = losses(
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--master-addr=127.0.0.1",
        f"--master-port={port}",
    )
    assert together == pytest.approx(alone, abs=2e-4)  # printed with four digits
