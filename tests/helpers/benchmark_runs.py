"""Results of `python -m benchmarks` made up, for the tests of what is done with them."""

import json

from benchmarks.limits import Limits
from benchmarks.peers import AGAIN, COMPILED, FASTRNN, ONNXRUNTIME, TORCH
from benchmarks.problems import Problem, Shape

SMALL = Shape(3, 2, 5, 4)
LIMITS = Limits(
    gemm={"float32": 1e9, "float64": 5e8, "bfloat16": 2e9},
    capacity={"L1": 1000, "L2": 10_000},
    bandwidth={"L1": 1e9, "L2": 1e8, "memory": 1e7},
)
TIMES = {TORCH: 4.0, ONNXRUNTIME: 3.0, FASTRNN: 2.0, AGAIN: 4.0}  # seconds


def problem(**fields) -> Problem:
    return Problem(**{"mode": "forward", "cell": "lstm", "shape": SMALL, "threads": 2, **fields})


def data(problems, times=lambda problem: TIMES) -> dict:
    """The JSON of a run that found `times(problem)`. A peer without a time does not support the problem."""
    timed = [(p, peer, seconds) for p in problems for peer, seconds in times(p).items()]
    refused = [(p, peer) for p in problems for peer in TIMES if peer not in times(p)]
    result = {
        "datetime": "2026-01-02T03:04:05",
        "commit_info": {"id": "0123abc"},
        "machine_info": {
            "cpu": "Some CPU",
            "cores": 2,
            "threads": 2,
            "torch": "2.0",
            "torch_isa": "AVX2",
            "onnxruntime": "1.0",
            "fastrnn": {"fastrnn": "0.1", "CPU ISA chosen": "avx2"},
            "python_version": "3.10",
        },
        "limits": {n: LIMITS.to_json() for n in (1, 2)},
        "memory": [{"problem": problem(training=True).to_json(), "bytes": {TORCH: 2**21, FASTRNN: 2**20}}],
        "contention": [
            {
                "problem": problem(mode="oversubscribed").to_json(),
                "seconds": {TORCH: {"alone": 1.0, "two": 9.0}, FASTRNN: {"alone": 1.0, "two": 2.0}},
            }
        ],
        "missing": {COMPILED: "no compiler"},
        "refusals": [
            {"problem": p.to_json(), "peer": peer, "reason": f"{peer} cannot"} for p, peer in refused
        ],
        "benchmarks": [
            {
                "extra_info": {"problem": p.to_json(), "peer": peer, "quietest": 0.9 * seconds},
                "stats": {"median": seconds, "iqr": 0.1 * seconds},
            }
            for p, peer, seconds in timed
        ],
    }
    return json.loads(json.dumps(result))
