"""Forecasts from the command line: an hourly file with dates and holes, predicted and scored."""

import csv
import json
import shutil
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

import jrnn
from jrnn.cli.main import main
from jrnn.messages import MAX_MESSAGE

START = datetime(2024, 1, 1)
ROWS = 24 * 40
QUICK = ["--steps", "2", "--eval-every", "2", "--task.targets", "load"]
SPEC = "configs/table.py:path=load.csv,horizon=24,window=32"


def write_load(path: Path, rows: int, holes: tuple[int, ...] = (300, 900), names=("",)) -> None:
    """Writes an hourly load with a daily period and noise, from 28,000 to 46,000, with dates."""
    rng = np.random.default_rng(0)
    lines = ["date,load,temperature" + ",region" * (len(names) > 1)]
    for row in range(rows):
        load = 37_000 + 8000 * np.sin(2 * np.pi * row / 24) + rng.normal(0, 1000)
        cell = "" if row in holes else f"{load:.1f}"
        when = START + timedelta(hours=row)
        lines += [f"{when},{cell},{row % 9}" + f",{name}" * (len(names) > 1) for name in names]
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of the default config and its output, and runs of two steps, all moved."""
    folder = tmp_path_factory.mktemp("forecast")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_load(Path("load.csv"), ROWS)
        options = ["--task.missing", "fill", "--task.targets", "load", "--steps", "300"]
        main(["train", SPEC, "--run-dir", "default", *options])
        options = ["--task.distribution", "quantiles", "--task.missing", "fill"]
        main(["train", SPEC, "--run-dir", "quantiles", *QUICK, *options])
        write_load(Path("groups.csv"), ROWS, (), ("north", "\x1b[31msouth"))
        options = ["--task.group", "region", "--task.recursive", "--task.exclude", "temperature"]
        spec = "configs/table.py:path=groups.csv,horizon=3,window=32"
        main(["train", spec, "--run-dir", "groups", *QUICK, *options])
    target = tmp_path_factory.mktemp("moved")
    for name in ("default", "quantiles", "groups"):
        shutil.move(folder / name, target / name)
    shutil.move(folder / "load.csv", target / "load.csv")
    shutil.move(folder / "groups.csv", target / "groups.csv")
    shutil.rmtree(folder)
    return target


@pytest.fixture
def folder(runs, monkeypatch):
    monkeypatch.chdir(runs)
    return runs


def read_rows(path: str | Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return [*csv.DictReader(file)]


def fail(args, capsys) -> str:
    """Runs a command that must exit with code 2 and one line; returns the line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        main(args)
    assert exit_info.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and len(line) <= MAX_MESSAGE + 10
    return line


def test_holes_need_one_flag_that_the_message_names(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(folder / "load.csv", "load.csv")
    line = fail(["train", SPEC, "--run-dir", "run"], capsys)
    assert "line 302, column 'load'" in line and "--task.missing fill" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["load.csv"]


def test_cell_that_needs_masks_is_refused_before_the_folder_is_made(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    shutil.copy(folder / "load.csv", "load.csv")
    line = fail(["train", f"{SPEC},cell=grud", "--task.missing", "fill"], capsys)
    assert "GRUD" in line and "--task.missing mask" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["load.csv"]


def test_default_config_beats_persistence_and_the_seasonal_forecast(folder):
    """The period is 24 rows, so that persistence is wrong and the seasonal forecast has noise."""
    result = json.loads((folder / "default" / "result.json").read_text())
    baselines = {entry["name"]: entry["value"] for entry in result["baselines"]}
    names = {"persistence", "seasonal naive, 24 rows", "seasonal naive, 168 rows"}
    assert set(baselines) == names
    assert result["baseline"]["name"] == "seasonal naive, 24 rows"
    assert result["test"] < 0.1 * baselines["persistence"]
    assert result["test"] < baselines["seasonal naive, 24 rows"]


def test_forecast_has_dates_units_and_intervals_after_the_last_row(folder, capsys):
    main(["predict", "default", "load.csv", "--out", "f.csv"])
    rows = read_rows("f.csv")
    dates = [str(START + timedelta(hours=row)) for row in range(ROWS, ROWS + 24)]
    assert [row["date"] for row in rows] == dates
    assert list(rows[0]) == ["date", "load", "load_low", "load_high"]
    values = np.array([[float(row[name]) for name in list(row)[1:]] for row in rows])
    truth = 37_000 + 8000 * np.sin(2 * np.pi * np.arange(ROWS, ROWS + 24) / 24)
    assert np.abs(values[:, 0] - truth).max() < 2500
    assert (values[:, 1] < values[:, 0]).all() and (values[:, 0] < values[:, 2]).all()
    inside = (values[:, 1] <= truth) & (truth <= values[:, 2])
    assert inside.mean() > 0.6
    for suffix in ("jsonl", "npz"):
        main(["predict", "default", "load.csv", "--out", f"f.{suffix}"])
    lines = [json.loads(line) for line in Path("f.jsonl").read_text().splitlines()]
    assert [line["load_high"] for line in lines] == values[:, 2].tolist()
    with np.load("f.npz") as arrays:
        np.testing.assert_allclose(arrays["points"][0, :, 0], values[:, 0], rtol=1e-8)
        assert arrays["dates"][0].tolist() == dates
    capsys.readouterr()
    main(["predict", "default", "load.csv"])
    assert capsys.readouterr().out == Path("f.csv").read_text()


def test_forecast_reads_the_last_rows_of_longer_and_shorter_files(folder, capsys):
    main(["predict", "default", "load.csv", "--out", "f.csv"])
    lines = Path("load.csv").read_text().splitlines()
    Path("last.csv").write_text("\n".join([lines[0], *lines[-32:]]) + "\n")
    main(["predict", "default", "last.csv", "--out", "g.csv"])
    one, other = ([float(row["load"]) for row in read_rows(path)] for path in ("f.csv", "g.csv"))
    np.testing.assert_allclose(one, other, rtol=1e-4)
    Path("short.csv").write_text("\n".join(lines[:10]) + "\n")
    line = fail(["predict", "default", "short.csv", "--out", "h.csv"], capsys)
    assert "must have at least 17 rows for a forecast, got 9; use a longer file" in line
    Path("short.csv").write_text("\n".join(row.rpartition(",")[0] for row in lines) + "\n")
    assert "date, load, temperature, got none named 'temperature'" in fail(
        ["predict", "default", "short.csv", "--out", "h.csv"], capsys
    )
    assert not Path("h.csv").exists()


def test_forecasts_have_a_row_for_each_series(folder, capsys):
    main(["predict", "groups", "groups.csv", "--out", "f.csv"])
    rows = read_rows("f.csv")
    assert [row["region"] for row in rows] == ["north"] * 3 + ["\x1b[31msouth"] * 3
    dates = [str(START + timedelta(hours=row)) for row in range(ROWS, ROWS + 3)]
    assert [row["date"] for row in rows] == dates * 2
    assert [row["load"] for row in rows[:3]] == [row["load"] for row in rows[3:]]
    capsys.readouterr()
    main(["eval", "groups", "--backtest", "4", "--json"])
    scores = json.loads(capsys.readouterr().out)
    assert scores["origins"] == 4 and len(scores["horizons"]) == 3


def test_eval_shows_baselines_coverage_and_other_files(folder, capsys):
    main(["eval", "quantiles"])
    out = capsys.readouterr().out
    for text in ("persistence", "seasonal naive, 24 rows", "coverage of intervals", "CRPS"):
        assert text in out
    main(["eval", "quantiles", "--data", "load.csv", "--json"])
    scores = json.loads(capsys.readouterr().out)
    assert len(scores["horizons"]) == 24 and len(scores["baselines"]) == 3
    assert scores["items"] == ROWS - 24 - 16  # after the warm-up, and before the last horizon
    main(["eval", "quantiles", "--backtest", "5"])
    assert "backtest from 5 rows" in capsys.readouterr().out


def test_scores_without_values_are_null_in_json(folder, capsys):
    """Rows from 30 on have no load, and forecasts begin at row 16."""
    write_load(Path("holes.csv"), 80, tuple(range(30, 80)))
    main(["eval", "quantiles", "--data", "holes.csv", "--json"])
    scores = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    known = [entry["mae"] is not None for entry in scores["horizons"]]
    assert known == [ahead <= 13 for ahead in range(1, 25)]


def test_backtest_equals_forecasts_of_shorter_files(folder):
    """The backtest and `jrnn predict` agree for the last origin."""
    run = jrnn.load(folder / "default")
    lines = Path("load.csv").read_text().splitlines()
    Path("cut.csv").write_text("\n".join(lines[:-24]) + "\n")
    made = run.forecast("cut.csv")
    truth = [float(line.split(",")[1]) for line in lines[-24:]]
    error = np.abs(made.rows.points[0, :, 0] - truth).mean()
    task = run.config.task
    origins = task.find_origins(run.data.spec, "test", 2)
    np.testing.assert_array_equal(origins.truth[-1, :, 0], truth)
    scores = run.backtest(1)
    assert scores["origins"] == 1
    last = run._forecast(origins.context).points[-1, :, 0]
    np.testing.assert_allclose(last, made.rows.points[0, :, 0], rtol=1e-5)
    assert np.abs(last - truth).mean() == pytest.approx(error, rel=1e-4)


CONTENTS = {
    "text": "{",
    "list": "[]",
    "size": '{"half_widths": [1.0]}',
    "negative": json.dumps({"half_widths": [-1.0] * 24}),
    "texts": json.dumps({"half_widths": ["1"] * 24}),
    "infinite": '{"half_widths": [1e999]}',
}


@pytest.mark.parametrize("name", CONTENTS)
def test_hostile_intervals_are_refused(name, folder, tmp_path, capsys):
    shutil.copytree(folder / "default", tmp_path / "run")
    (tmp_path / "run" / "intervals.json").write_text(CONTENTS[name])
    line = fail(["predict", str(tmp_path / "run"), "load.csv"], capsys)
    assert "intervals.json is invalid" in line


FORECASTS = {
    "many rows": lambda spec: spec.update(horizon=10**15),
    "other targets": lambda spec: spec.update(targets=["x"]),
    "text as window": lambda spec: spec.update(window="4"),
    "form of dates": lambda spec: spec.update(date_form="%999999999Y"),
    "spacing": lambda spec: spec["spacing"].update(count=10**18),
    "season": lambda spec: spec.update(seasons=[10**17]),
    "calendar": lambda spec: spec.update(calendar=["century"]),
    "quantiles": lambda spec: spec.update(quantiles=[]),
}


@pytest.mark.parametrize("name", FORECASTS)
def test_hostile_properties_of_a_forecast_are_refused(name, folder, tmp_path, capsys):
    shutil.copytree(folder / "default", tmp_path / "run")
    path = tmp_path / "run" / "data.json"
    saved = json.loads(path.read_text())
    FORECASTS[name](saved["data"][0]["spec"]["forecast"])
    path.write_text(json.dumps(saved))
    assert "data.json is invalid" in fail(["predict", str(tmp_path / "run"), "load.csv"], capsys)


def test_distant_dates_are_refused(folder, tmp_path, capsys):
    """The spacing is valid, but the rows are after the year 9999."""
    shutil.copytree(folder / "default", tmp_path / "run")
    path = tmp_path / "run" / "data.json"
    saved = json.loads(path.read_text())
    saved["data"][0]["spec"]["forecast"]["spacing"] = {
        "type": "jrnn.tasks.dates:Spacing",
        "unit": "irregular",
        "count": 10**17,
    }
    path.write_text(json.dumps(saved))
    line = fail(["predict", str(tmp_path / "run"), "load.csv"], capsys)
    assert "before the year 10000" in line
