"""Comparisons of runs, and reports of sweeps."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import jrnn
from jrnn.cli.main import main
from jrnn.report.compare_page import Entry, make_comparison, make_rows, overlay, rank_entries
from jrnn.report.settings import find_differences
from jrnn.tasks import Adding
from jrnn.train import Experiment, Network, Optimizer
from tests.cli.test_hostile_runs import run_and_fail
from tests.report.conftest import FOLDER, SCRIPT
from tests.report.helpers import assert_self_contained


def test_differences_are_the_settings_that_differ():
    first = Experiment(Adding(), Network(jrnn.LSTM(8)), Optimizer(1e-2))
    assert find_differences([first, replace(first, run_dir="x")]) == [{}, {}]
    other = replace(first, network=Network(jrnn.GRU(8, reset_after=False)), seed=3)
    assert find_differences([first, other]) == [
        {"seed": 0, "network.cell": "LSTM", "network.cell.reset_after": None},
        {"seed": 3, "network.cell": "GRU", "network.cell.reset_after": "False"},
    ]


def read_sweep_page(folder):
    return assert_self_contained((Path(folder) / "report.html").read_text("utf-8"))


def table_rows(page):
    """Returns the texts of the first table, as a list of rows."""
    cells = [(path[-1], text) for path, text in page.texts if path[-1:] in (("th",), ("td",))]
    columns = [text for tag, text in cells if tag == "th"]
    values = [text for tag, text in cells if tag == "td"]
    return columns, np.array(values).reshape(-1, len(columns)).tolist()


def test_report_of_a_sweep_ranks_its_trials(in_folder):
    main(["report", "sweep"])
    page = read_sweep_page("sweep")
    columns, rows = table_rows(page)
    result = json.loads(Path("sweep/result.json").read_text())
    ranked = sorted(result["trials"], key=lambda t: -t["validation"])
    assert columns[:3] == ["run", "optimizer.learning_rate", "seed"]
    assert [row[0] for row in rows] == [f"trial {t['trial']}" for t in ranked]
    scores = [[float(x) for x in row[3:5]] for row in rows]
    np.testing.assert_allclose(scores, [[t["validation"], t["test"]] for t in ranked], atol=1e-4)
    charts = page.charts()
    for series in charts["Training loss"]["series"]:
        index = int(series["name"].removeprefix("trial "))
        lines = Path(f"sweep/trials/{index:03d}/metrics.jsonl").read_text().splitlines()
        losses = [m["loss"] for m in map(json.loads, lines) if m["split"] == "train"]
        np.testing.assert_allclose(series["y"], losses, rtol=1e-5)
    axes = charts["Settings and results"]["axes"]
    assert axes[0]["name"] == "optimizer.learning_rate" and axes[0]["log"] is True
    assert sorted(axes[0]["values"]) == [1e-3, 1e-3, 3e-2, 3e-2]


def test_report_of_an_unfinished_sweep_has_what_is_there(in_folder, tmp_path):
    shutil.copytree("sweep", tmp_path / "sweep")
    (tmp_path / "sweep/result.json").unlink()
    (tmp_path / "sweep/trials/002/metrics.jsonl").unlink()
    main(["report", str(tmp_path / "sweep")])
    _, rows = table_rows(read_sweep_page(tmp_path / "sweep"))
    assert {row[-1] for row in rows} == {"not finished"} and rows[-1][0] == "trial 2"


SWEEP_FILES = {
    "result of another sweep": ("result.json", lambda r: r["trials"].pop(), "must have 4 trials"),
    "test as text": ("result.json", lambda r: r["trials"][0].update(test="x"), "test metric"),
    "no trials": ("sweep.json", lambda s: s.update(trials=[]), "there must be trials"),
    "value as a list": (
        "sweep.json",
        lambda s: s["trials"][0]["values"].update(seed=[]),
        "must be a dict of strings",
    ),
}


@pytest.mark.parametrize("name", SWEEP_FILES)
def test_invalid_files_of_a_sweep_are_refused(name, in_folder, tmp_path, capsys):
    file, change, message = SWEEP_FILES[name]
    shutil.copytree("sweep", tmp_path / "sweep")
    saved = json.loads((tmp_path / "sweep" / file).read_text())
    change(saved)
    (tmp_path / "sweep" / file).write_text(json.dumps(saved))
    assert message in run_and_fail(["report", str(tmp_path / "sweep")], capsys)


def test_runs_are_compared_in_a_table_and_on_a_page(in_folder, tmp_path, capsys):
    out = str(tmp_path / "page.html")
    main(["compare", "sweep/best", "sweep/best-2", "--out", out])
    printed = capsys.readouterr().out
    assert "sweep/best-2" in printed and "validation accuracy" in printed
    page = assert_self_contained(Path(out).read_text("utf-8"))
    columns, rows = table_rows(page)
    assert columns[0] == "run" and rows[0][0] == "sweep/best"
    results = [
        json.loads(Path(f"sweep/{name}/result.json").read_text()) for name in ("best", "best-2")
    ]
    position = columns.index("test accuracy")
    for row, result in zip(rows, results, strict=True):
        assert float(row[position]) == pytest.approx(result["test"], abs=1e-4)
    assert "network.cell.hidden_size" not in columns


def test_invalid_comparisons_are_refused(in_folder, tmp_path, capsys):
    out = ["--out", str(tmp_path / "page.html")]
    assert "at least two runs, got 1" in run_and_fail(["compare", "text", *out], capsys)
    assert "same metric" in run_and_fail(["compare", "text", FOLDER, *out], capsys)
    assert "got no such folder" in run_and_fail(["compare", "text", "none", *out], capsys)
    assert not (tmp_path / "page.html").exists()


def make_entries(count):
    rng = np.random.default_rng(0)
    metrics = lambda: [
        {"step": step, "split": "validation", "loss": 1.0, "metric": float(rng.random())}
        for step in range(1, 301)
    ]
    return [Entry(f"{SCRIPT} {k}", {"x": k}, k / count, None, 1, metrics()) for k in range(count)]


def test_comparison_of_many_runs_has_a_bounded_size(in_folder):
    spec = jrnn.load("sweep/best").data.spec
    entries = make_entries(1200)
    entries[5] = entries[5]._replace(validation=None, state="not finished")
    assert [e.settings["x"] for e in rank_entries(entries, spec)[:2]] == [1199, 1198]
    assert rank_entries(entries, spec)[-1] == entries[5]
    html = make_comparison("title", "lead", entries, spec)
    assert len(html) < 3_000_000
    page = assert_self_contained(html)
    assert "These are the best 1,000 of 1,200." in page.text()
    assert f"{SCRIPT} 1199" in page.text()
    columns, rows = make_rows(entries[:3], spec)
    assert columns == ["run", "x", "validation accuracy", "best step", "state"] and len(rows) == 3
    assert overlay(entries[:3], "train", "loss", "loss", spec, 0) is None
