"""The benchmarks: results, ratios, timing, and reports of missing implementations."""

import json
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import pytest

from jrnn.bench import (
    cases,
    engines,
    figure,
    group,
    implementations,
    machine,
    peers,
    report,
    timing,
    training,
)
from jrnn.cli import main

SHAPE = "2x5x3x4"
CASE = implementations.Case("lstm", "forward+backward", implementations.Shape(2, 5, 3, 4))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Returns a function that runs `jrnn bench` on a small shape, and reads the JSON file.

    Keras cannot be imported.
    """
    monkeypatch.setattr(machine, "matmul_gflops", lambda: {"xla": 100.0, "torch": 50.0})
    monkeypatch.setitem(sys.modules, "keras", None)
    monkeypatch.delitem(sys.modules, f"{peers.__name__}.keras_jax", raising=False)

    def run(*flags):
        out = tmp_path / "deep" / "bench.json"
        command = ["bench", "--shapes", SHAPE, "--repeats", "3", "--out", str(out)]
        main([*command, *flags])
        return json.loads(out.read_text("utf-8"))

    return run


def test_results_list_all_implementations_and_missing_ones(run, tmp_path, capsys):
    result = run(
        *"--cells gru --peers nnx keras --engines auto unknown --modes forward+backward".split(),
        "--figure",
    )
    (timed,) = result["groups"]
    assert timed["shape"] == {"batch": 2, "steps": 5, "input": 3, "hidden": 4}
    assert timed["flops"] == 3 * 2 * 5 * 2 * (3 + 4) * 3 * 4
    rows = {row["name"]: row for row in timed["implementations"]}
    assert set(rows) == {"jrnn auto", "nnx GRUCell"}
    for row in rows.values():
        assert row["calls"] >= 3 and 0 < row["min_seconds"] <= row["median_seconds"]
        assert row["compile_seconds"] > 0 and row["memory_bytes"] > 0
        rate = timed["flops"] / row["median_seconds"] / 1e9
        assert row["gflops"] == pytest.approx(rate)
        assert row["percent_of_matmul"] == pytest.approx(rate)  # of 100 GFLOP/s
    assert {entry["name"]: entry["cases"] for entry in result["missing"]} == {
        "keras": ["gru forward+backward 2x5x3x4"],
        "jrnn unknown": ["gru forward+backward 2x5x3x4"],
    }
    assert "other_process_cores" in timed and result["matmul_gflops"] == {
        "xla": 100.0,
        "torch": 50.0,
    }
    assert {"cpu", "cores", "vector_flags", "kernels", "device"} <= set(result["machine"])
    assert result["versions"]["jax"] and result["options"]["repeats"] == 3
    ratio = rows["nnx GRUCell"]["median_seconds"] / rows["jrnn auto"]["median_seconds"]
    assert timed["ratios"] == {"jrnn auto": {"nnx GRUCell": pytest.approx(ratio)}}
    (mean,) = result["summary"]
    assert mean["geometric_mean"] == {"jax": pytest.approx(ratio)}
    output = capsys.readouterr().out
    assert "missing: keras" in output and "no such engine" in output and "nnx GRUCell" in output
    assert (tmp_path / "deep" / "bench.png").stat().st_size > 10_000


def test_engine_with_wrong_results_exits_with_1(run, monkeypatch, capsys):
    reference = engines.reference
    monkeypatch.setattr(engines, "reference", lambda case: 1.001 * reference(case))
    with pytest.raises(SystemExit) as exit_info:
        run("--cells", "lstm", "--modes", "forward", "--peers")
    assert exit_info.value.code == 1
    assert "auto differs from Scan by 1.0e-03" in capsys.readouterr().err


def test_library_that_fails_when_called_is_missing(run, monkeypatch):
    def fail():
        raise MemoryError("2 GiB")

    failing = implementations.Implementation("nnx GRUCell", "jax", fail)
    monkeypatch.setattr(peers, "build", lambda peer, case: [failing])
    result = run(*"--cells gru --modes forward --engines scan --peers nnx".split())
    (missing,) = result["missing"]
    assert missing["name"] == "nnx GRUCell" and missing["reason"] == "failed: MemoryError: 2 GiB"


def implementation_row(name, family, seconds):
    """Returns an entry of `implementations` in the JSON file, with the keys that reports read."""
    row = {"name": name, "family": family, "time_major": True, "median_seconds": seconds}
    return row | {"gflops": 1.0, "percent_of_matmul": 1.0}


def test_summary_is_geometric_mean_of_ratios_to_the_fastest_peer():
    groups = []
    for seconds in ((1.0, 8.0, 2.0, 3.0), (2.0, 16.0, 20.0, 1.5)):
        names = [("jrnn auto", "jrnn"), ("a", "jax"), ("b", "jax"), ("torch LSTM", "torch")]
        rows = [
            implementation_row(*name, second) for name, second in zip(names, seconds, strict=True)
        ]
        shape = {"batch": 1, "steps": 1, "input": 1, "hidden": 1}
        case = {"cell": "lstm", "mode": "forward", "shape": shape, "sweep": None}
        groups.append(case | {"implementations": rows, "ratios": group.ratios(rows)})
    groups.append(groups[0] | {"sweep": "steps"})  # excluded from the means
    (mean,) = report.summary(groups)
    assert mean["geometric_mean"] == {
        "jax": pytest.approx((2.0 * 8.0) ** 0.5),
        "torch": pytest.approx((3.0 * 0.75) ** 0.5),
    }
    assert mean["shapes"] == {"jax": 2, "torch": 2}


def test_sweep_adds_cases_and_a_figure(tmp_path):
    plain = list(cases.cases(["gru"], ["forward"], [CASE.shape], sweep=False))
    swept = list(cases.cases(["gru"], ["forward"], [CASE.shape], sweep=True))
    assert [case.sweep for case in plain] == [None]
    assert swept[0] == plain[0] and {case.sweep for case in swept} == {None, "steps", "hidden"}
    groups = [
        {
            "cell": case.cell,
            "mode": case.mode,
            "shape": case.shape._asdict(),
            "sweep": case.sweep,
            "implementations": [
                implementation_row("jrnn scan", "jrnn", 1.0),
                implementation_row("torch GRU", "torch", 2.0),
            ],
            "ratios": {"jrnn scan": {"torch GRU": 2.0}},
        }
        for case in swept
    ]
    paths = figure.save({"groups": groups}, tmp_path / "bench.json")
    assert [path.name for path in paths] == ["bench.png", "bench-growth.png"]
    assert all(path.stat().st_size > 10_000 for path in paths)


@pytest.mark.parametrize(
    ("shape", "value", "message"), [((5, 2, 4), 0.0, "shape"), ((5, 2, 3), jnp.nan, "not finite")]
)
def test_implementation_with_wrong_shape_or_nan_raises(shape, value, message):
    call = lambda: (jnp.float32(0), jnp.full(shape, value))
    with pytest.raises(implementations.Unavailable, match=message):
        timing.check_results(implementations.Implementation("bad", "jax", call), CASE)


def test_nan_in_the_results_of_scan_is_a_mismatch():
    result = (jnp.ones(2), jnp.ones(2))
    implementation = implementations.Implementation("jrnn auto", "jrnn", lambda: result)
    engines.check_against_scan(implementation, result)
    with pytest.raises(engines.ResultMismatch, match="differs from Scan by nan"):
        engines.check_against_scan(implementation, (jnp.ones(2), jnp.full(2, jnp.nan)))


@pytest.mark.parametrize("flag", ["--steps", "--repeats"])
def test_bench_newton_refuses_zero(flag, capsys):
    with pytest.raises(SystemExit):
        main(["bench", "newton", flag, "0"])
    assert f"{flag[2:]} must be a positive int, got 0" in capsys.readouterr().err


def test_implementations_are_interleaved_until_the_time_limit():
    order = []

    def call(name):
        time.sleep(timing.TIMED_SECONDS)
        order.append(name)

    both = [implementations.Implementation(n, "jax", lambda n=n: call(n)) for n in "ab"]
    timings = timing.time_interleaved(both, repeats=20, seconds=0.0)
    warmup_and_timed = ["a", "a", "b", "b"]
    assert order == warmup_and_timed * timing.MIN_ROUNDS
    assert timings["a"].calls == timing.MIN_ROUNDS
    assert timings["a"].minimum >= timing.TIMED_SECONDS
    assert timing.time_interleaved(both, repeats=5, seconds=60.0)["b"].calls == 5


def test_short_calls_are_repeated_within_a_round():
    sleep = implementations.Implementation(
        "sleep", "jax", lambda: time.sleep(timing.TIMED_SECONDS / 10)
    )
    assert (
        timing.MIN_ROUNDS
        < timing.time_interleaved([sleep], 3, 0.0)["sleep"].calls
        <= 10 * timing.MIN_ROUNDS
    )


def test_group_is_disturbed_if_other_processes_use_the_cores():
    assert not report.is_disturbed({"other_process_cores": None})
    assert not report.is_disturbed({"other_process_cores": 0.01})
    assert report.is_disturbed({"other_process_cores": 0.9})


@pytest.mark.skipif(sys.platform != "linux", reason="the times are read from /proc/stat")
def test_cpu_time_of_other_processes_is_measured():
    before = machine.other_process_seconds()
    busy_loop = "import time\nwhile time.process_time() < 0.8: pass"
    subprocess.run([sys.executable, "-c", busy_loop], check=True)
    assert machine.other_process_seconds() - before > 0.5


def test_matmul_gflops_are_measured(monkeypatch):
    monkeypatch.setattr(machine, "_version", lambda package: None)
    gflops = machine.matmul_gflops((64, 32, 64), repeats=3)
    assert set(gflops) == {"xla"} and gflops["xla"] > 0  # PyTorch seems not to be installed


def test_peers_are_all_files_of_the_package():
    files = {path.stem for path in Path(peers.__file__).parent.glob("*.py")}
    assert files == {"__init__", *peers.PEERS.values()}


@pytest.mark.exhaustive
def test_bench_train_writes_all_columns(tmp_path, capsys):
    out = tmp_path / "training.json"
    flags = "--networks digits-row --rounds 1 --seconds 0.05 --sweeps 1".split()
    main(["bench", "train", *flags, "--out", str(out)])
    (row,) = json.loads(out.read_text("utf-8"))["rows"]
    assert set(training.COLUMNS) < set(row)
    assert all(
        row[name] > 0
        for name in ("steps_per_second", "vs_handwritten", "vs_flax", "vs_compiled", "resume_ms")
    )
    output = capsys.readouterr().out
    assert "digits-row" in output and "of the time of 16 separate runs" in output
