"""The benchmark: what it writes, how it counts, and that it names what it could not time."""

import json
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import pytest

from jrnn.bench import (
    cases,
    contenders,
    engines,
    figure,
    group,
    machine,
    peers,
    report,
    timing,
    training,
)
from jrnn.cli import main

SHAPE = "2x5x3x4"
CASE = contenders.Case("lstm", "forward+backward", contenders.Shape(2, 5, 3, 4))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the benchmark at a tiny shape without keras; gives its JSON."""
    monkeypatch.setattr(machine, "product_rates", lambda: {"xla": 100.0, "torch": 50.0})
    monkeypatch.setitem(sys.modules, "keras", None)
    monkeypatch.delitem(sys.modules, f"{peers.__name__}.keras_jax", raising=False)

    def run(*flags):
        out = tmp_path / "deep" / "bench.json"
        fixed = ["bench", "--shapes", SHAPE, "--repeats", "3", "--out", str(out)]
        main([*fixed, *flags])
        return json.loads(out.read_text("utf-8"))

    return run


def test_results_hold_every_contender_and_name_who_is_missing(run, tmp_path, capsys):
    result = run(
        *"--cells gru --peers nnx keras --engines auto bcan --directions forward+backward".split(),
        "--figure",
    )
    (done,) = result["groups"]
    assert done["shape"] == {"batch": 2, "steps": 5, "input": 3, "hidden": 4}
    assert done["flops"] == 3 * 2 * 5 * 2 * (3 + 4) * 3 * 4
    rows = {row["name"]: row for row in done["contenders"]}
    assert set(rows) == {"jrnn auto", "nnx GRUCell"}
    for row in rows.values():
        assert row["calls"] >= 3 and 0 < row["min_seconds"] <= row["median_seconds"]
        assert row["compile_seconds"] > 0 and row["memory_bytes"] > 0
        rate = done["flops"] / row["median_seconds"] / 1e9
        assert row["gflops"] == pytest.approx(rate)
        assert row["percent_of_product_rate"] == pytest.approx(rate)  # of 100 GFLOP/s
    assert {absent["name"]: absent["cases"] for absent in result["missing"]} == {
        "keras": ["gru forward+backward 2x5x3x4"],
        "jrnn bcan": ["gru forward+backward 2x5x3x4"],
    }
    assert "others_cores" in done and result["product_gflops"] == {"xla": 100.0, "torch": 50.0}
    assert {"cpu", "cores", "vector_flags", "kernels", "device"} <= set(result["machine"])
    assert result["versions"]["jax"] and result["options"]["repeats"] == 3
    ratio = rows["nnx GRUCell"]["median_seconds"] / rows["jrnn auto"]["median_seconds"]
    assert done["ratios"] == {"jrnn auto": {"nnx GRUCell": pytest.approx(ratio)}}
    (mean,) = result["summary"]
    assert mean["geometric_mean"] == {"jax": pytest.approx(ratio)}
    said = capsys.readouterr().out
    assert "missing: keras" in said and "no such engine" in said and "nnx GRUCell" in said
    assert (tmp_path / "deep" / "bench.png").stat().st_size > 10_000


def test_an_engine_that_computes_something_else_fails_the_run(run, monkeypatch, capsys):
    truth = engines.truth
    monkeypatch.setattr(engines, "truth", lambda case: 1.001 * truth(case))
    with pytest.raises(SystemExit) as stopped:
        run("--cells", "lstm", "--directions", "forward", "--peers")
    assert stopped.value.code == 1
    assert "auto differs from Scan by 1.0e-03" in capsys.readouterr().err


def timed(name, family, seconds):
    row = {"name": name, "family": family, "time_major": True, "median_seconds": seconds}
    return row | {"gflops": 1.0, "percent_of_product_rate": 1.0}


def test_means_are_geometric_and_of_the_fastest_peer():
    groups = []
    for seconds, sweep in (((1.0, 8.0, 2.0, 3.0), None), ((2.0, 16.0, 20.0, 1.5), None)):
        names = [("jrnn auto", "jrnn"), ("a", "jax"), ("b", "jax"), ("torch LSTM", "torch")]
        rows = [timed(*name, second) for name, second in zip(names, seconds, strict=True)]
        shape = {"batch": 1, "steps": 1, "input": 1, "hidden": 1}
        case = {"cell": "lstm", "direction": "forward", "shape": shape, "sweep": sweep}
        groups.append(case | {"contenders": rows, "ratios": group.ratios(rows)})
    groups.append(groups[0] | {"sweep": "steps"})  # no part of the means
    (mean,) = report.summary(groups)
    assert mean["geometric_mean"] == {
        "jax": pytest.approx((2.0 * 8.0) ** 0.5),
        "torch": pytest.approx((3.0 * 0.75) ** 0.5),
    }
    assert mean["shapes"] == {"jax": 2, "torch": 2}


def test_a_sweep_adds_growth_curves_and_their_figure(tmp_path):
    plain = list(cases.cases(["gru"], ["forward"], [CASE.shape], sweep=False))
    swept = list(cases.cases(["gru"], ["forward"], [CASE.shape], sweep=True))
    assert [case.sweep for case in plain] == [None]
    assert swept[0] == plain[0] and {case.sweep for case in swept} == {None, "steps", "hidden"}
    groups = [
        {
            "cell": case.cell,
            "direction": case.direction,
            "shape": case.shape._asdict(),
            "sweep": case.sweep,
            "contenders": [timed("jrnn scan", "jrnn", 1.0), timed("torch GRU", "torch", 2.0)],
            "ratios": {"jrnn scan": {"torch GRU": 2.0}},
        }
        for case in swept
    ]
    drawn = figure.save({"groups": groups}, tmp_path / "bench.json")
    assert [path.name for path in drawn] == ["bench.png", "bench-growth.png"]
    assert all(path.stat().st_size > 10_000 for path in drawn)


@pytest.mark.parametrize(
    ("shape", "value", "message"), [((5, 2, 4), 0.0, "shape"), ((5, 2, 3), jnp.nan, "not finite")]
)
def test_a_contender_with_wrong_results_is_refused(shape, value, message):
    call = lambda: (jnp.float32(0), jnp.full(shape, value))
    with pytest.raises(contenders.Unavailable, match=message):
        timing.check(contenders.Contender("bad", "jax", call), CASE)


def test_contenders_take_turns_until_the_time_is_over():
    order = []

    def slow(name):
        time.sleep(timing.TURN)
        order.append(name)

    named = [contenders.Contender(n, "jax", lambda n=n: slow(n)) for n in "ab"]
    timings = timing.in_turn(named, repeats=20, seconds=0.0)
    settled_and_timed = ["a", "a", "b", "b"]
    assert order == settled_and_timed * timing.FEWEST
    assert timings["a"].calls == timing.FEWEST
    assert timings["a"].least >= timing.TURN
    assert timing.in_turn(named, repeats=5, seconds=60.0)["b"].calls == 5


def test_a_turn_of_short_calls_is_many_of_them():
    nap = contenders.Contender("nap", "jax", lambda: time.sleep(timing.TURN / 10))
    assert timing.FEWEST < timing.in_turn([nap], 3, 0.0)["nap"].calls <= 10 * timing.FEWEST


def test_other_processes_are_noticed():
    assert not report.is_disturbed({"others_cores": None})
    assert not report.is_disturbed({"others_cores": 0.01})
    assert report.is_disturbed({"others_cores": 0.9})


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_work_of_other_processes_is_counted():
    before = machine.foreign_seconds()
    burn = "import time\nwhile time.process_time() < 0.8: pass"
    subprocess.run([sys.executable, "-c", burn], check=True)
    assert machine.foreign_seconds() - before > 0.5


def test_rate_of_products_is_measured(monkeypatch):
    monkeypatch.setattr(machine, "_version", lambda package: None)
    rates = machine.product_rates((64, 32, 64), repeats=3)
    assert set(rates) == {"xla"} and rates["xla"] > 0


def test_every_peer_has_its_file():
    files = {path.stem for path in Path(peers.__file__).parent.glob("*.py")}
    assert files == {"__init__", *peers.PEERS.values()}


@pytest.mark.exhaustive
def test_bench_of_training_writes_what_its_table_shows(tmp_path, capsys):
    out = tmp_path / "training.json"
    flags = "--cases digits-row --rounds 1 --seconds 0.05 --sweeps 1".split()
    main(["bench", "train", *flags, "--out", str(out)])
    (row,) = json.loads(out.read_text("utf-8"))["rows"]
    assert set(training.COLUMNS) < set(row)
    assert all(row[name] > 0 for name in ("jrnn", "hand", "flax", "compiled", "resume_ms"))
    said = capsys.readouterr().out
    assert "digits-row" in said and "of the time of 16 runs" in said
