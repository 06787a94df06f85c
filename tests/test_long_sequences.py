"""Tests that the study of long sequences and `jrnn bench newton` write complete results."""

import json

import pytest

from experiments.long_sequences import run as study
from jrnn.bench import newton, timing
from jrnn.cli import main


def test_study_writes_growth_training_and_a_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(
        study, "GROWTH_CASES", {k: study.GROWTH_CASES[k] for k in ("minGRU", "GRU")}
    )
    flags = "--max-steps 1024 --repeats 1 --training-steps 2 --length 12 --out".split()
    study.main([*flags, str(tmp_path)])
    result = json.loads((tmp_path / "long_sequences.json").read_text("utf-8"))
    assert [row["cell"] for row in result["growth"]] == ["minGRU", "GRU"]
    for row in result["growth"]:
        assert row["steps"] == 1024 and 0 < row["parallel_ms"] and 0 < row["scan_mib"]
        assert row["error"] < 1e-4
    assert result["growth"][1]["converged"] and 0 < result["growth"][1]["iterations"] <= 8
    assert [row["cell"] for row in result["training"]] == ["ParaGRU", "GRU"]
    for row in result["training"]:
        assert row["converged"] and len(row["losses"]) == len(row["iterations"]) == 2
        assert row["exponent_steps"] == [0, 1]
    assert (tmp_path / "long_sequences.png").stat().st_size > 10_000


def test_number_of_timing_rounds_is_that_of_the_option(monkeypatch):
    rounds = []

    def time_interleaved(*args, **kwargs):
        timings = timing.time_interleaved(*args, **kwargs)
        rounds.append({name: result.calls for name, result in timings.items()})
        return timings

    monkeypatch.setattr(timing, "TIMED_SECONDS", 0.0)  # so that a round times one call
    monkeypatch.setattr(study, "time_interleaved", time_interleaved)
    study.measure_growth(study.GROWTH_CASES["minGRU"], steps=8, repeats=5)
    assert rounds == [{"parallel": 5, "scan": 5}]


def test_bench_newton_reports_iterations_and_divergence(tmp_path, capsys):
    out = tmp_path / "deep" / "newton.json"
    flags = "--cells paragru elman-times-3 --steps 300 --max-steps 12 --repeats 1 --seconds 0"
    main(["bench", "newton", *flags.split(), "--out", str(out)])
    stable, chaotic = json.loads(out.read_text("utf-8"))["rows"]
    assert stable["converged"] and stable["iterations"] <= 8 and stable["exponent"] < 0
    assert stable["error"] < 1e-4 and 0 < stable["newton_ms"] and 0 < stable["scan_ms"]
    assert not chaotic["converged"] and chaotic["iterations"] == 12 and chaotic["exponent"] > 0
    assert "elman-times-3" in capsys.readouterr().out


def test_bench_newton_with_unknown_case_raises():
    with pytest.raises(ValueError, match="cell must be one of paragru, .*did you mean 'paragru'"):
        newton.Bench(cells=("paragu",))
