"""Trained runs: predictions and scores in the units of the user, without the training data."""

import csv
import dataclasses
import io
import json
import shutil
import sys
from typing import Any

import numpy as np
import pytest

import jrnn
from jrnn import run_data
from jrnn.cli.main import main
from jrnn.tasks.conversion import encode_inputs
from jrnn.tasks.task import RawExamples

SMALL = [
    "--steps",
    "4",
    "--batch-size",
    "4",
    "--eval-every",
    "2",
    "--network.cell.hidden-size",
    "3",
]
LENGTHS = np.array([7, 1, 4, 7, 3] * 12)


@pytest.fixture(scope="module")
def data():
    """Values at each step in large units, and labels of whole sequences."""
    rng = np.random.default_rng(0)
    xs = rng.normal(50, 10, (60, 7, 2))
    return {"xs": xs, "ys": xs.sum(axis=-1) * 1000, "lengths": LENGTHS}


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Runs of two kinds, moved to another folder than that of their data, which are removed."""
    folder = tmp_path_factory.mktemp("training")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        np.savez("values.npz", **data)
        np.savez("labels.npz", xs=data["xs"], ys=np.arange(60) % 3)
        for name, kind in (("values", "sequence_regression"), ("labels", "classification")):
            spec = f"configs/arrays.py:path={name}.npz,kind={kind}"
            main(["train", spec, "--run-dir", name, *SMALL])
        (folder / "text.txt").write_text("the cat sat on the mat. " * 40)
        spec = "configs/text.py:path=text.txt"
        main(["train", spec, "--run-dir", "text", *SMALL, "--task.window", "16"])
    target = tmp_path_factory.mktemp("moved")
    for name in ("values", "labels", "text"):
        shutil.move(folder / name, target / name)
    shutil.rmtree(folder)
    return target


@pytest.fixture
def values(runs):
    return jrnn.load(runs / "values")


def test_predictions_are_in_units_and_equal_the_model(values, data):
    predictions = values.predict(data["xs"], lengths=LENGTHS)
    spec = values.data.spec
    valid = np.arange(7) < LENGTHS[:, None]
    assert spec.input_scaler is not None and spec.target_scaler is not None
    xs = np.where(valid[..., None], spec.input_scaler.transform(data["xs"]), 0)
    outputs = np.asarray(values.model(xs.astype(np.float32), lengths=LENGTHS)[1])
    expected = outputs.astype(np.float64) * spec.target_scaler.std + spec.target_scaler.mean
    actual = predictions.values
    np.testing.assert_allclose(actual[valid], expected[valid], rtol=1e-5)
    assert not actual[~valid].any() and actual.shape == (60, 7, 1)
    assert 50_000 < actual[valid].mean() < 150_000


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_predictions_do_not_depend_on_batches(batch_size, values, data):
    examples = [x[:length] for x, length in zip(data["xs"][:10], LENGTHS, strict=False)]
    together = values.predict(data["xs"][:10], lengths=LENGTHS[:10])
    split = values.predict(examples, batch_size=batch_size)
    np.testing.assert_allclose(split.values, together.values, rtol=1e-5)
    assert split.lengths.tolist() == LENGTHS[:10].tolist()


def test_classes_have_names_and_probabilities(runs, data):
    predictions = jrnn.load(runs / "labels").predict(data["xs"])
    assert predictions.probabilities.shape == (60, 3) and predictions.values is None
    np.testing.assert_allclose(predictions.probabilities.sum(axis=-1), 1)
    np.testing.assert_array_equal(predictions.probabilities.argmax(-1), predictions.classes)


def test_texts_are_predicted_character_by_character(runs):
    run = jrnn.load(runs / "text")
    predictions = run.predict(["the cat", "a", "\u2603"])
    assert predictions.labels.shape == (3, 7) and predictions.lengths.tolist() == [7, 1, 1]
    alone = run.predict("the cat")
    np.testing.assert_allclose(alone.probabilities[0], predictions.probabilities[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("xs", "options", "message"),
    [
        (np.zeros((7, 2)), {}, "xs must have shape .N, T, 2., got .7, 2.; .* pass xs.None."),
        (np.zeros((1, 7, 3)), {}, "got .1, 7, 3."),
        (np.full((1, 7, 2), np.nan), {}, "xs must be finite, got nan at example 0, step 0"),
        (
            np.zeros((1, 7, 2)),
            {"lengths": [8]},
            "lengths must be in 0..T = 0..7, got values from 8",
        ),
        (np.zeros((1, 7, 2)), {"batch_size": 0}, "batch_size must be a positive int, got 0"),
        ([], {}, "xs must have at least one example"),
        ([np.zeros((3, 2)), np.zeros((3, 1))], {}, "example 1 must have shape .T, 2."),
        (["text"], {}, "xs must be numbers, got texts"),
    ],
)
def test_invalid_inputs_raise(xs, options, message, values):
    with pytest.raises((ValueError, TypeError), match=message):
        values.predict(xs, **options)


def test_inputs_of_a_wrong_shape_raise_with_the_names_of_the_inputs(values):
    spec = dataclasses.replace(values.data.spec, input_names=("load", "temp"))
    wrong: list[Any] = [np.zeros((1, 7, 3)), [np.zeros((3, 2)), np.zeros((3, 1))]]
    for xs in wrong:
        with pytest.raises(ValueError, match=r"got \(.*\); the inputs are load, temp$"):
            encode_inputs(spec, xs, None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: jrnn.load(3), "^load: folder must be a path, got 3$"),
        (lambda run: run.evaluate(np.zeros((3, 2))), "^evaluate: data must be a path, got an arr.*"
         r"; or pass arrays as \(xs, ys\) or \(xs, ys, lengths\)$"),
        (lambda run: run.forecast([{"load": 1.0}]), "^forecast: path must be a path, got .*; wri"),
        (lambda run: run.read(None), "^read: path must be a path, got None$"),
    ],
)  # fmt: skip
def test_an_argument_that_is_no_path_raises(call, message, values):
    with pytest.raises(TypeError, match=message):
        call(values)


def test_missing_files_of_a_run_are_named(runs, tmp_path):
    shutil.copytree(runs / "values", tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "checkpoints")
    (tmp_path / "part" / "metrics.jsonl").unlink()
    run = jrnn.load(tmp_path / "part")
    with pytest.raises(FileNotFoundError, match="checkpoints must have the checkpoints of the run"):
        run.predict(np.zeros((1, 7, 2)))
    with pytest.raises(FileNotFoundError, match="metrics.jsonl does not exist; restore it from a"):
        assert run.metrics


@pytest.mark.parametrize(
    "torn", [b'{"step": 6, "spl', b'{"step": 6, "split": "train", "loss": 1.0']
)
def test_incomplete_last_line_of_metrics_is_skipped(torn, values, runs, tmp_path):
    """A process that is killed while it writes leaves such a line, which resuming removes."""
    shutil.copytree(runs / "values", tmp_path / "torn")
    path = tmp_path / "torn" / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + torn)
    assert jrnn.load(tmp_path / "torn").metrics == values.metrics
    path.write_bytes(torn + b"\n" + path.read_bytes())
    with pytest.raises(ValueError, match="line 1 of .* must be a line of metrics"):
        assert jrnn.load(tmp_path / "torn").metrics


def test_padding_may_have_any_value(values, data):
    xs = np.where((np.arange(7) < LENGTHS[:, None])[..., None], data["xs"], np.nan)
    expected = values.predict(data["xs"], lengths=LENGTHS)
    np.testing.assert_array_equal(values.predict(xs, lengths=LENGTHS).values, expected.values)


def test_labels_on_padding_are_not_scored(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = np.array(["low", "high"])[(data["xs"][..., 0] > 50).astype(int)]
    names[np.arange(7) >= LENGTHS[:, None]] = "padding"
    np.savez("steps.npz", xs=data["xs"], ys=names, lengths=LENGTHS)
    spec = "configs/arrays.py:path=steps.npz,kind=sequence_classification"
    main(["train", spec, "--run-dir", "steps", *SMALL])
    scores = jrnn.load("steps").evaluate("steps.npz")
    counts = {entry["name"]: entry["count"] for entry in scores["classes"]}
    assert counts == {name: int((names == name).sum()) for name in ("high", "low")}


def test_scores_of_other_data_in_units(values, data):
    scores = values.evaluate(RawExamples(data["xs"], data["ys"], LENGTHS))
    assert scores == values.evaluate((data["xs"], data["ys"], LENGTHS))
    valid = np.arange(7) < LENGTHS[:, None]
    errors = values.predict(data["xs"], lengths=LENGTHS).values[..., 0] - data["ys"]
    target = scores["targets"][0]
    assert scores["items"] == LENGTHS.sum() and scores["examples"] == 60
    assert target["mae"] == pytest.approx(np.abs(errors[valid]).mean(), rel=1e-5)
    assert target["rmse"] == pytest.approx(np.square(errors[valid]).mean() ** 0.5, rel=1e-5)
    assert target["rmse_interval"][0] < target["rmse"] < target["rmse_interval"][1]
    # The constant baseline predicts the mean of the training split.
    mean = values.data.spec.target_scaler.mean[0]
    expected = np.abs(data["ys"][valid] - mean).mean()
    assert target["baseline_mae"] == pytest.approx(expected, rel=0.01)
    assert scores["baseline"]["name"] == "constant prediction"


def test_evaluation_needs_the_training_data_only_for_its_splits(values, capsys):
    with pytest.raises(FileNotFoundError, match="values.npz"):
        values.evaluate()
    main(["eval", str(values.folder)])
    out = capsys.readouterr().out
    assert f"{values.result['test']:.4f}" in out and "data are not on this machine" in out


def test_metrics_are_rows_of_a_table(values):
    assert [(row["step"], row["split"]) for row in values.metrics] == [
        (2, "train"),
        (2, "validation"),
        (4, "train"),
        (4, "validation"),
    ]
    assert values.config.steps == 4 and values.data.versions.keys() >= {"jrnn", "jax"}


def test_folder_of_an_earlier_version_is_refused(runs, tmp_path):
    shutil.copytree(runs / "values", tmp_path / "old")
    (tmp_path / "old" / "data.json").unlink()
    with pytest.raises(ValueError, match="old has no data.json: it was removed, or an earlier"):
        jrnn.load(tmp_path / "old")
    with pytest.raises(FileNotFoundError, match="must be the folder of a run"):
        jrnn.load(tmp_path)


def test_files_of_predictions_have_the_same_content(runs, values, data, tmp_path, capsys):
    np.savez(tmp_path / "new.npz", xs=data["xs"][:3], lengths=LENGTHS[:3])
    command = ["predict", str(values.folder), str(tmp_path / "new.npz")]
    for suffix in ("csv", "jsonl", "npz"):
        main([*command, "--out", str(tmp_path / f"out.{suffix}")])
    with (tmp_path / "out.csv").open() as file:
        rows = [*csv.DictReader(file)]
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    with np.load(tmp_path / "out.npz") as arrays:
        expected = [
            (example, step, arrays["values"][example, step, 0])
            for example, length in enumerate([7, 1, 4])
            for step in range(length)
        ]
    for table in (rows, lines):
        assert [(int(r["example"]), int(r["step"])) for r in table] == [e[:2] for e in expected]
        actual = [float(row["target 0"]) for row in table]
        np.testing.assert_allclose(actual, [e[2] for e in expected], rtol=1e-7)
    capsys.readouterr()
    main(command)
    assert capsys.readouterr().out == (tmp_path / "out.csv").read_text()


def test_lines_of_standard_input_are_predicted(runs, data, monkeypatch, capsys):
    run = jrnn.load(runs / "labels")
    lines = "".join(json.dumps(x.tolist()) + "\n" for x in data["xs"][:2])
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    main(["predict", str(run.folder), "-"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = run.predict(data["xs"][:2]).probabilities
    np.testing.assert_allclose(
        [[r[f"p({k})"] for k in range(3)] for r in rows], expected, rtol=1e-5
    )


def test_data_are_found_in_the_folder_of_the_training(tmp_path, monkeypatch):
    (tmp_path / "mine.csv").write_text("a\n")
    task = jrnn.tasks.Table("mine.csv")
    found: Any = run_data.find_task(task, str(tmp_path))
    assert found.path == str(tmp_path / "mine.csv")
    monkeypatch.chdir(tmp_path)
    assert run_data.find_task(task, "elsewhere") is task
    assert run_data.find_task(jrnn.tasks.Adding(), "elsewhere") == jrnn.tasks.Adding()
