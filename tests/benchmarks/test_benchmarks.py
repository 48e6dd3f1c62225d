"""`python -m benchmarks`: problems, peers, limits, reports. No test depends on a measured time."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmark_runs import LIMITS, SMALL, TIMES, data, problem

import benchmarks
import fastrnn
from benchmarks import (
    inference,
    models,
    onnx_peer,
    paths,
    peers,
    published,
    shares,
    timing,
    variants,
    workloads,
)
from benchmarks.__main__ import parse_arguments
from benchmarks.contention import contended_times
from benchmarks.keep import keep
from benchmarks.limits import count_cpus, measure_limits
from benchmarks.peers import AGAIN, COMPILED, FASTRNN, ONNXRUNTIME, PEERS, TORCH, find_missing, make_calls
from benchmarks.problems import (
    CELLS,
    DEFAULT_CELLS,
    MODES,
    Problem,
    Shape,
    modes_of,
    select,
    sentence_lengths,
)
from benchmarks.report import describe_noise, markdown, render, tables, write_report
from benchmarks.report.plots import PLOTS
from benchmarks.results import compact, fit_line, read_rows, read_runs
from benchmarks.timing import interleave, quietest_third

RESULTS = Path(benchmarks.__file__).parent / "results"
GIVEN = {"threads": 2, "device": "cpu"}


def table(found: dict, title: str):
    (result,) = [t for t in tables(found) if title in t.title]
    return result


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("quick", [False, True])
def test_problems(quick, device):
    modes = modes_of(device)
    problems = select(DEFAULT_CELLS, None, modes, quick, threads=2, device=device)
    assert len({p.name for p in problems}) == len(problems)
    assert {p.mode for p in problems} == {name for name in modes if not quick or MODES[name].quick}
    assert [Problem.from_json(json.loads(json.dumps(p.to_json()))) for p in problems] == problems


def test_chosen_shapes():
    """They replace the shapes of each mode. Streaming takes them with T = 1."""
    chosen = [SMALL, SMALL._replace(T=9)]
    problems = select(["gru"], chosen, ["forward", "streaming"], False, **GIVEN)
    assert [(p.mode, p.module, p.shape.T) for p in problems] == [
        ("forward", "layer", 3),
        ("forward", "layer", 9),
        *[("streaming", module, 1) for _ in ("forward", "training") for module in ("layer", "cell")],
    ]


def test_sentence_lengths():
    lengths = sentence_lengths(64, 30)
    assert len(lengths) == 64 and lengths == sentence_lengths(64, 30)
    assert list(lengths) == sorted(lengths, reverse=True)
    assert lengths[0] == 30 and lengths[-1] >= 1 and len(set(lengths)) > 10


@pytest.mark.parametrize("cell", CELLS)
def test_peers_agree(cell, monkeypatch):
    """In every mode, all peers that support a problem compute the same. `make_calls` compares them."""
    monkeypatch.delitem(PEERS, COMPILED)
    for p in select([cell], [SMALL], modes_of("cpu"), False, **GIVEN):
        calls, refusals = make_calls(p, {})
        assert {TORCH, AGAIN} <= set(calls)
        assert set(calls) | set(refusals) == set(PEERS)
        inference = not p.training and p.module == "layer" and p.dtype == "float32"
        assert (ONNXRUNTIME in calls) == inference, refusals


def test_compiled_refuses_what_would_compile_for_long():
    _, refusals = make_calls(problem(shape=SMALL._replace(T=29)), {ONNXRUNTIME: ""})
    assert "28 steps" in refusals[COMPILED]


def test_wrong_peer_is_found(monkeypatch):
    monkeypatch.setitem(PEERS, FASTRNN, lambda setup: lambda: torch.zeros(3, 2, 4))
    with pytest.raises(RuntimeError, match="fastrnn differs from torch.nn"):
        make_calls(problem(), {COMPILED: ""})


def test_wrong_result_of_another_peer_is_told_and_the_rest_timed(monkeypatch):
    monkeypatch.setitem(PEERS, COMPILED, lambda setup: lambda: torch.full((3, 2, 4), float("nan")))
    calls, refusals = make_calls(problem(), {ONNXRUNTIME: ""})
    assert FASTRNN in calls and COMPILED not in calls
    assert refusals[COMPILED].startswith("differs from torch.nn by nan")


def test_missing_peers_have_reasons(monkeypatch):
    def broken(function):
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setattr(onnx_peer, "MISSING", "No module named 'onnx'")
    monkeypatch.setattr(torch, "compile", broken)
    assert find_missing(quick=False) == {ONNXRUNTIME: "No module named 'onnx'", COMPILED: "no compiler"}
    assert "--quick" in find_missing(quick=True)[COMPILED]
    calls, refusals = make_calls(problem(), peers.find_missing(quick=True))
    assert not {ONNXRUNTIME, COMPILED} & {*calls, *refusals}


def test_interleave():
    """Every peer gets enough samples. A sample of short calls times several together."""
    counts = dict.fromkeys("ab", 0)

    def call(name):
        counts[name] += 1

    calls = {name: lambda name=name: call(name) for name in counts}
    samples = interleave(calls, lambda: None, seconds=0.0, min_rounds=2)
    assert all(len(samples[name]) >= 2 and counts[name] > len(samples[name]) for name in counts)
    assert quietest_third([9.0, 1.0, 3.0, 8.0, 7.0]) == 2.0


def test_level():
    assert [LIMITS.level(n) for n in (1000, 1001, 10_001)] == ["L1", "L2", "memory"]


def test_limit():
    """x-GEMM flops / peak + max(recurrent flops / peak, T * bytes(W_hh) / bandwidth of its level)"""
    x, recurrent, T = 2 * 6 * 16 * 5 / 1e9, 2 * 6 * 16 * 4 / 1e9, 3
    streamed = T * (4 * 16 * 4) / 1e9
    assert LIMITS.seconds(problem()) == pytest.approx(x + max(recurrent, streamed))
    # At B = 1, with the weights in memory, reading them takes longer than the products.
    large = problem(shape=Shape(3, 1, 5, 100))
    streamed = T * (4 * 400 * 100) / 1e7
    assert LIMITS.seconds(large) == pytest.approx(2 * 3 * 400 * 5 / 1e9 + streamed)
    recurrent = 2 * 3 * 400 * 100 / 1e9
    training = 3 * 2 * 3 * 400 * 5 / 1e9 + 2 * streamed + recurrent
    assert LIMITS.seconds(replace(large, training=True)) == pytest.approx(training)


def test_limit_of_layers_directions_and_lengths():
    assert problem(layers=2, directions=2).input_sizes == [5, 8]
    packed = problem(lengths=(3, 1))
    assert (packed.rows, packed.steps) == (4, 3)
    one, both = LIMITS.seconds(problem()), LIMITS.seconds(problem(directions=2))
    assert both == pytest.approx(2 * one)


def test_best_of_two_measurements():
    other = replace(LIMITS, gemm={**LIMITS.gemm, "float32": 2e9})
    assert LIMITS.best(other) == other == other.best(LIMITS)


def test_measured_limits(monkeypatch):
    monkeypatch.setattr("benchmarks.limits.GEMM_SIZES", (32, 64))
    monkeypatch.setattr("benchmarks.limits.cache_sizes", lambda threads: {"L1": 2**15, "L2": 2**18})
    threads = torch.get_num_threads()
    (limits,) = measure_limits([problem(threads=1), problem(threads=1, dtype="float64")]).values()
    assert torch.get_num_threads() == threads
    assert set(limits.gemm) == {"float32", "float64"}
    assert list(limits.bandwidth) == ["L1", "L2", "memory"]
    assert min(*limits.gemm.values(), *limits.bandwidth.values()) > 0


def test_count_cpus():
    assert [count_cpus(text) for text in ("0", "0-3", "0-1,8-11")] == [1, 4, 6]


def test_row():
    (row,) = read_rows(data([problem()]))
    assert (row.ratio(TORCH), row.ratio(ONNXRUNTIME), row.ratio(COMPILED)) == (2.0, 1.5, None)
    assert (row.best_ratio, row.aa) == (1.5, 1.0)
    assert row.efficiency() == LIMITS.seconds(problem()) / 2.0


def test_fit_line():
    line = fit_line([(T, 5.0 + 2 * T) for T in (1, 10, 100)])
    assert (line.start, line.slope) == (pytest.approx(5.0), pytest.approx(2.0)) and line.error < 1e-9
    assert fit_line([(1, 1.0), (2, 2.0), (3, 4.0)]).error > 0.05


def test_summary():
    """Geometric mean and worst ratio to each peer that ran, and to the fastest."""
    found = data(
        [problem(), problem(shape=SMALL._replace(T=4))],
        times=lambda p: {**TIMES, TORCH: 4.0 if p.shape.T == 3 else 16.0},
    )
    (line,) = table(found, "each peer").rows
    assert line[:3] == ["forward", "lstm", "2"]
    assert line[3:9] == pytest.approx([4.0, 2.0, 1.5, 1.5, 1.5, 1.5])


def test_tables_of_scaling():
    """The time is 1 + T, and half of it with two threads. Two directions take as long as one."""

    def times(p: Problem):
        return {peer: (1.0 + p.shape.T) / min(p.threads, 2) for peer in TIMES}

    modes = ["forward", "bidirectional", "scaling-T", "oversubscribed"]
    shapes = [SMALL._replace(T=T) for T in (10, 20, 40)]
    found = data(select(["lstm"], shapes, modes, False, **GIVEN), times)
    fits = table(found, "line in T").rows
    assert {line[1] for line in fits} == {"1", "2"}
    assert all(line[-1] == "0%" for line in fits)
    for title, faster in (("from 1 thread", 2.0), ("layer over", 2.0), ("on all cores", 4.0)):
        pairs = table(found, title)
        assert pairs.columns[1:] == ["lstm torch.nn", "lstm fastrnn", "lstm at the limit"]
        assert len(pairs.rows) == len(shapes)
        for line in pairs.rows:
            # The limits here are the same for one thread and two, and twice as long for two directions.
            assert line[1:] == pytest.approx([faster, faster, 1.0])


def test_table_of_bfloat16():
    """The base is float32, with the same shape and pass. The limits here have twice the rate for bfloat16."""
    problems = [problem(), problem(mode="bfloat16", dtype="bfloat16"), problem(mode="call")]
    times = {"float32": TIMES, "bfloat16": {peer: seconds / 4 for peer, seconds in TIMES.items()}}
    (line,) = table(data(problems, lambda p: times[p.dtype]), "over float32").rows
    assert line[1:] == pytest.approx([4.0, 4.0, 2.0])


def test_tables_of_goals_and_bounds():
    """At the limit, each ratio is the time of the peer / the limit."""
    on_gpu = problem(mode="bf16-B64", dtype="bfloat16", device="cuda")  # not in the table of bounds
    found = data([problem(), problem(mode="training", training=True), on_gpu])
    lines = table(found, "the goal").rows
    limit = LIMITS.seconds(problem())
    assert lines[0][:3] == ["forward", "lstm", TORCH]
    assert lines[0][3:] == pytest.approx([2.0, 1.7, 4.0 / limit, 2.0, 1.0, 4.0 / limit])
    assert [line[:3] for line in lines[1:]] == [["training", "lstm", TORCH], ["forward", "lstm", ONNXRUNTIME]]
    forward, training = table(found, "What bounds").rows
    flops = 2 * 6 * 16 * (5 + 4)
    assert problem().flops == flops and problem(training=True).flops == 3 * flops
    assert forward[4:7] == [str(2 * 4 * 5), "0 KiB (L1)", "products"] and training[-1] == "0%"


def test_table_of_faster_peers():
    """It has the problems on which a peer is faster by more than noise, the slowest first."""
    problems = [problem(), problem(shape=SMALL._replace(T=20)), problem(mode="training", training=True)]

    def times(p: Problem):
        if p.training:
            return {**TIMES, TORCH: 0.98 * TIMES[FASTRNN]}
        return {**TIMES, ONNXRUNTIME: TIMES[FASTRNN] / {3: 2.0, 20: 1.5}[p.shape.T]}

    lines = table(data(problems, times), "% faster").rows
    assert [(line[2].split(",")[0], line[4]) for line in lines] == [("3", ONNXRUNTIME), ("20", ONNXRUNTIME)]
    assert [line[5] for line in lines] == pytest.approx([1 / 2.0, 1 / 1.5])
    assert lines[0][6] == "1000 ms"


def test_table_of_two_processes():
    (line,) = table(data([problem()]), "Two processes").rows
    assert line[1:] == ["9.00", "2.00"]


def test_two_processes():
    """Each library is timed alone, and in two processes at once."""
    times = contended_times(problem(mode="oversubscribed", threads=1), seconds=0.01)
    assert set(times) == {TORCH, FASTRNN}
    assert all(seconds["alone"] > 0 and seconds["two"] > 0 for seconds in times.values())


def test_report_says_who_is_missing_and_who_refused(tmp_path):
    found = data([problem(dtype="bfloat16", mode="bfloat16")], times=lambda p: {TORCH: 4.0, AGAIN: 4.0})
    text = markdown(found, [])
    assert "Missing: torch.compile: no compiler" in text
    assert "Not supported: fastrnn: fastrnn cannot" in text
    (line,) = table(found, "bfloat16 forward").rows
    assert "not supported" in line


def test_report_says_how_far_apart_cores_were():
    """For each problem that ran on several threads, and for the whole run."""
    near, far, alone = problem(), problem(shape=SMALL._replace(T=29)), problem(threads=1)
    found = data([near, far, alone]) | {"round_trips": {near.name: 1.04e-7, far.name: 4.2e-7}}
    lines = {line[1]: line for line in table(found, "forward:").rows if line[2] == "2"}
    assert [lines[str(p.shape)][-1] for p in (near, far)] == ["104 ns", "420 ns"]
    assert "104 ns to 420 ns, median 104 ns" in markdown(found, [])
    assert "round trip" not in markdown(data([near]), [])


# ---- on a GPU ----


def test_regimes():
    """Each regime, launch and pass has a line with the mean, the worst ratio and the goal."""
    modes = ["bf16-small-batch", "fp32-B256", "bidirectional-bf16"]
    problems = select(["lstm"], None, modes, False, threads=2, device="cuda")
    limits = replace(LIMITS, capacity={}, bandwidth={"memory": 1e9})

    def times(p):
        return {TORCH: 8.0 if p.shape.B == 1 else 2.0, FASTRNN: 1.0, AGAIN: 2.0}

    found = data(problems, times) | {
        "limits": {2: limits.to_json()},
        "plans": {problems[0].name: "cluster"},
    }
    lines = table(found, "Regimes").rows
    assert [line[:4] for line in lines] == [
        ["bf16-small-batch", passes, launched, "5"]
        for passes in ("forward", "training")
        for launched in ("eager", "CUDA graph")
    ] + [["fp32-B256", passes, "eager", "2"] for passes in ("forward", "training")]
    assert lines[0][4:] == [pytest.approx((8 * 2 * 2 * 8 * 2) ** 0.2), 2.0, "5"]
    assert [line[6] for line in lines] == ["5", "5", "4", "4", "1.1", "1.05"]
    (line,) = [r for r in table(found, f"{problems[0].group}:").rows if r[1] == str(problems[0].shape)]
    assert line[-2:] == ["1.95 ms", "cluster"]


def test_a_gpu_need_not_read_the_weights_again():
    p = problem(device="cuda", shape=Shape(3, 1, 5, 100))
    assert LIMITS.seconds(p) == pytest.approx(2 * 3 * 400 * (5 + 100) / 1e9)


def test_noise_is_named():
    assert "trust" not in describe_noise(data([problem()]))
    noisy = data([problem()], times=lambda p: {**TIMES, AGAIN: 3.8})
    assert "too far from 1" in describe_noise(noisy)


def test_paths(tmp_path, monkeypatch):
    """Every path runs with every cell. The ratios are to the first call of each."""
    monkeypatch.setattr(paths, "SECONDS", 0.0)
    monkeypatch.setattr(paths, "MIN_ROUNDS", 1)
    for name, value in {"PAUSES": 0, "BLOCK_S": 0.0, "SAMPLE_S": 1e-9}.items():
        monkeypatch.setattr(timing, name, value)
    file = tmp_path / "paths.json"
    monkeypatch.setattr("sys.argv", ["paths", "--shapes", "3,2,4,5", "--json", str(file)])
    paths.main()
    data = json.loads(file.read_text())
    assert len(data["paths"]) == len(paths.PATHS) * len(DEFAULT_CELLS)
    measured = [row["seconds"] for row in data["paths"] if "jvp" in row["seconds"]]
    ratios = [f"{seconds['jvp'] / seconds['forward']:.2f}" for seconds in measured]
    line = " | ".join(["| jvp / forward", "3,2,4,5", *ratios])
    assert line in file.with_suffix(".md").read_text()


def test_variants(tmp_path, monkeypatch):
    """Every variant runs, and all that compute the same agree."""
    monkeypatch.setattr(variants, "SECONDS", 0.0)
    monkeypatch.setattr(variants, "MIN_ROUNDS", 1)
    for name, value in {"PAUSES": 0, "BLOCK_S": 0.0, "SAMPLE_S": 1e-9}.items():
        monkeypatch.setattr(timing, name, value)
    for name in variants.VARIANTS:
        for training in (False, True):
            found = variants.measure(name, Shape(3, 2, 5, 8), training, compiled=False)
            assert {variants.FASTRNN, variants.BASE} <= found["seconds"].keys()
            has_loop = variants.VARIANTS[name].cell is not None
            assert (variants.LOOP in found["seconds"]) == has_loop
    wrong = replace(variants.VARIANTS["LayerNormLSTM"], cell="slstm")
    monkeypatch.setitem(variants.VARIANTS, "wrong", wrong)
    with pytest.raises(RuntimeError, match="plain loop differs from fastrnn"):
        variants.measure("wrong", Shape(3, 2, 5, 8), False, compiled=False)


def test_report_files(tmp_path):
    found = data(select(["lstm", "gru"], None, ["forward", "training", "scaling-T"], True, **GIVEN))
    report, *plots = write_report([found], tmp_path / "run.json", tmp_path / "plots")
    assert [plot.name for plot in plots] == ["run-ratio.png", "run-efficiency.png", "run-scaling.png"]
    assert all(plot.read_bytes().startswith(b"\x89PNG") for plot in plots)
    assert "](plots/run-ratio.png)" in report.read_text()


def test_small_form():
    """It has what a report needs, and each problem once."""
    problems = select(["lstm"], None, ["forward", "packed", "scaling-T"], True, **GIVEN)
    more = {"round_trips": {problems[0].name: 1e-7}, "plans": {problems[1].name: "cluster/grid"}}
    found = data(problems) | more
    small = compact(found)
    assert compact(small) == small
    assert markdown(small, []) == markdown(found, [])
    assert read_rows(small) == read_rows(found)
    assert len(small["rows"]) == len(problems)
    refused = data(problems, times=lambda p: {TORCH: 1.0, AGAIN: 1.0})
    assert compact(refused)["refusals"] == [
        {"peer": peer, "reason": f"{peer} cannot"} for peer in (ONNXRUNTIME, FASTRNN)
    ]


def test_keep(tmp_path, monkeypatch):
    """A run replaces the one of its name. Pictures have the names of their runs."""
    monkeypatch.setattr(render, "draw", lambda rows, path: [path.with_name(f"{path.name}-ratio.png")])
    file = tmp_path / "machine.json"
    small, large = data([problem()]), data([problem(), problem(cell="gru")])
    keep(small, file, "one", "The first")
    keep(small, file, "two", "The second")
    keep(large, file, "one", "The first")
    runs = read_runs(file)
    assert [(run["name"], len(run["rows"])) for run in runs] == [("one", 2), ("two", 1)]
    text = file.with_suffix(".md").read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## The first", "## The second"]
    assert "- [The second](#the-second)" in text and "](machine-two-ratio.png)" in text
    assert markdown(small, ["machine-two-ratio.png"]) in text


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.json")), ids=lambda file: file.stem)
def test_results_of_a_machine(file, tmp_path, monkeypatch):
    """The small file is enough to write the report that is in the tree."""

    def drawn(rows, path):
        names = [f"{path.name}-{plot}.png" for plot in PLOTS]
        return [path.with_name(name) for name in names if (RESULTS / name).exists()]

    monkeypatch.setattr(render, "draw", drawn)
    assert file.stat().st_size < 200_000
    report, *_ = write_report(read_runs(file), tmp_path / file.name)
    assert report.read_text() == file.with_suffix(".md").read_text()


@pytest.mark.parametrize(
    "option, value, words",
    [
        ("--threads", "0", "positive"),
        ("--shapes", "1,2,3", "T,B,I,H"),
        ("--modes", "sideways", "sideways"),
        ("--modes", "packed-bf16", "not on cpu"),
        pytest.param(
            "--device",
            "cuda",
            "no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)
def test_wrong_arguments(option, value, words, monkeypatch, capsys):
    """The last line of the message names the argument."""
    monkeypatch.setattr("sys.argv", ["benchmarks", option, value])
    with pytest.raises(SystemExit) as exit:
        parse_arguments()
    assert exit.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert option in message and words in message, message


def test_workloads(tmp_path, capfd):
    """An epoch of a program: both libraries train alike, and their layers take a part of the time."""
    pytest.importorskip("sklearn")
    path, text = tmp_path / "workloads.json", tmp_path / "text"
    text.write_text("The words of a text. " * 300)
    names = ["characters, GRU", "digits, RNN", "reviews, RNN"]
    options = ["--quick", "--threads=1", f"--json={path}", f"--text={text}"]
    assert workloads.main([*options, "--names", *names]) == 0
    assert "left out, it needs --data: reviews, RNN\n" in capfd.readouterr().out
    characters, row = json.loads(path.read_text())["rows"]
    assert characters["steps"] == 10 and characters["layers"] == ["GRU(64, 64, num_layers=2)"]
    assert row["steps"] == 17 and row["layers"] == ["RNN(8, 150, batch_first=True)"]
    assert all(0 < part < 1.5 for part in row["share"].values())
    assert workloads.agree(row) and not workloads.agree(row | {"scores": {**row["scores"], "fastrnn": [0.1]}})
    assert path.with_suffix(".png").stat().st_size > 10_000
    assert {program for program, _ in workloads.WORKLOADS.values()} <= {
        path.stem for path in workloads.EXAMPLES.glob("*.py")
    }


def test_inference(tmp_path, monkeypatch):
    """Single calls of every peer of the modes, whose results are compared first."""
    path = tmp_path / "inference.json"
    arguments = [
        "--quick",
        "--threads=1",
        f"--json={path}",
        "--modes",
        "streaming",
        "int8",
        "--cells",
        "lstm",
    ]
    assert inference.main(arguments) == 0
    streaming, int8 = json.loads(path.read_text())["rows"]
    for row in streaming, int8:
        there = set(inference.MODES[row["mode"]].peers) - set(row["refusals"])
        assert set(row["p50"]) == set(row["p99"]) == set(row["errors"]) == there
        assert all(0 < row["p50"][peer] <= row["p99"][peer] for peer in there) and row["limit"] > 0
    assert int8["limit"] < streaming["limit"]  # a quarter of the bytes
    assert 0 < int8["errors"][inference.WIDE] < int8["errors"][inference.INT8] < inference.TOLERANCE_INT8
    assert path.with_suffix(".png").stat().st_size > 10_000
    wrong = inference.frozen_call
    monkeypatch.setitem(inference.PEERS, inference.FROZEN, lambda setup: wrong(replace(setup, x=setup.x + 1)))
    with pytest.raises(RuntimeError, match="frozen differs from torch.nn by"):
        inference.main(arguments)


class Small(torch.nn.Module):
    """A layer, and a cell for two steps. `off` is added to the output if fastrnn computes them."""

    def __init__(self, off=0.0):
        super().__init__()
        self.layer, self.cell = torch.nn.LSTM(4, 5), torch.nn.GRUCell(5, 5)
        self.off = off

    def forward(self, x):
        y, (h, _) = self.layer(torch.nn.utils.rnn.pack_padded_sequence(x, [3, 2]))
        added = self.off if fastrnn.summary(self)[0].runs_on == "fastrnn" else 0.0
        return {"y": y.data + added, "h": self.cell(self.cell(h[0])), "n": x.shape[0]}


def planted(off=0.0, trained=True):
    subject = published.alike(Small(off), torch.rand(3, 2, 4))
    return subject if trained else subject._replace(train=None)


def test_models(tmp_path, monkeypatch, capfd):
    """Of planted models: what is converted, timed and different; what cannot be had is named."""
    monkeypatch.setattr(models, "QUICK_SECONDS", 0.0)
    for name, value in {"PAUSES": 0, "BLOCK_S": 0.0, "SAMPLE_S": 1e-9}.items():
        monkeypatch.setattr(timing, name, value)
    table = {
        "small": published.Model("torch", planted, "3 steps"),
        "inference": published.Model("torch", lambda: planted(trained=False), "3 steps"),
        "none": published.Model("no_such_package", planted, "3 steps"),
    }
    monkeypatch.setattr(models, "MODELS", table)
    path = tmp_path / "models.json"
    arguments = ["--quick", "--threads=1", f"--json={path}"]
    assert models.main(arguments) == 0
    result = json.loads(path.read_text())
    assert list(result["missing"]) == ["none"] and "missing: none, no_such_package" in capfd.readouterr().out
    row, only = result["rows"]
    assert row["layers"] == ["1 LSTM(4, 5)", "1 GRUCell(5, 5)"]
    assert (row["converted"], row["left"]) == (2, []) and row["difference"] < 1e-5
    assert set(row["share"]) == {TORCH, FASTRNN} and all(part > 0 for part in row["share"].values())
    for seconds in row["seconds"].values():
        assert set(seconds) == {TORCH, FASTRNN, AGAIN} and min(seconds.values()) > 0
    assert list(row["seconds"]) == ["inference", "training"] and list(only["seconds"]) == ["inference"]
    assert path.with_suffix(".png").stat().st_size > 10_000
    for off in (0.01, float("nan")):
        table["wrong"] = published.Model("torch", lambda off=off: planted(off), "3 steps")
        assert models.main([*arguments, "--names", "wrong"]) == 1
        assert "DIFFERS" in capfd.readouterr().out


def test_replay_of_recorded_calls():
    """A layer alone computes what it did in the model; its hooks are gone."""
    model = Small()
    with shares.recording(model) as calls:
        result = model(torch.rand(3, 2, 4))
    assert [type(layer).__name__ for layer, _, _ in calls] == ["LSTM", "GRUCell", "GRUCell"]
    assert torch.equal(shares.replay(calls[0]), result["y"]) and torch.equal(
        shares.replay(calls[2]), result["h"]
    )
    assert not any(layer._forward_pre_hooks for layer in shares.layers_of(model))
