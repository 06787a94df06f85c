"""Runs that start from the parameters of another run, and runs that are continued."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

import jrnn
from jrnn import config
from jrnn.cli import main
from jrnn.tasks import Arrays, Table, Text
from jrnn.train import Experiment, Network, Optimizer, train
from jrnn.train.step.freeze import param_paths
from jrnn.train.transfer import check_encoding, check_transfer, copy_params
from tests.train.test_resume import assert_same_run
from tests.train.test_trainer import Sign, make_experiment

SMALL = ["--steps", "4", "--batch-size", "4", "--eval-every", "2"]
SMALL += ["--network.cell.hidden-size", "3", "--optimizer.warmup", "0"]
SMALL += ["--optimizer.schedule", "constant"]


def write_arrays(path, names, shift=0.0):
    """Writes sequences with labels, whose values have the given shift and a scale of 10."""
    rng = np.random.default_rng(0)
    xs = rng.normal(50 + shift, 10, (60, 7, 2))
    np.savez(path, xs=xs, ys=np.array(names)[np.arange(60) % len(names)])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with data files and a trained run `old` on two classes."""
    folder = tmp_path_factory.mktemp("runs")
    write_arrays(folder / "two.npz", ["cat", "dog"])
    write_arrays(folder / "three.npz", ["cat", "dog", "emu"], shift=20.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train_run("two", "old")
    return folder


def train_run(data, run, *flags):
    main(["train", f"configs/arrays.py:path={data}.npz", "--run-dir", run, *SMALL, *flags])


def fail(args, capsys):
    """Runs a command that must exit with code 2, and returns its message."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        main(args)
    assert exit_info.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def params_of(run):
    params = param_paths(nnx.state(jrnn.load(run).model, nnx.Param))
    return {path: np.asarray(leaf) for path, leaf in params.items()}


def test_fine_tuning_starts_from_the_run_and_trains_only_the_head(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    train_run("three", "tuned", "--init-from", "old", "--init-skip", "head", "--freeze", "body")
    assert "initialized from" in capsys.readouterr().out
    old, tuned = params_of("old"), params_of("tuned")
    for path in old:
        is_copied = old[path].tobytes() == tuned[path].tobytes()
        assert is_copied == path.startswith("body."), path
    # The normalization is that of the new data.
    scaler = jrnn.load("tuned").data.spec.input_scaler
    assert 65 < scaler.mean[0] < 75
    # The run can be used from another folder, and without the old one.
    saved = json.loads((runs / "tuned/config.json").read_text())["experiment"]
    assert saved["init_from"] == str(runs / "old") and saved["init_skip"] == ["head"]
    main(["train", "--resume", "tuned"])
    (runs / "old").rename(runs / "moved")
    main(["eval", "tuned"])
    (runs / "moved").rename(runs / "old")


def test_run_that_was_killed_before_its_first_checkpoint_is_initialized_again(runs, monkeypatch):
    monkeypatch.chdir(runs)
    train_run("three", "killed", "--init-from", "old", "--init-skip", "head", "--freeze", "body")
    expected = params_of("killed")
    shutil.rmtree("killed/checkpoints")
    (runs / "killed/metrics.jsonl").unlink()
    main(["train", "--resume", "killed"])
    for path, leaf in params_of("killed").items():
        assert leaf.tobytes() == expected[path].tobytes(), path


def test_kept_encoding_is_that_of_the_run(runs, monkeypatch):
    monkeypatch.chdir(runs)
    write_arrays(runs / "dogs.npz", ["dog", "cat"], shift=20.0)
    train_run("dogs", "kept", "--init-from", "old", "--keep-encoding", "--steps", "2")
    old, kept = jrnn.load("old").data.spec, jrnn.load("kept").data.spec
    assert kept.input_scaler == old.input_scaler and kept.class_names == old.class_names
    data = jrnn.load("kept").load_data()
    assert 1.5 < data.train.xs.mean() < 2.5  # (70 - 50) / 10
    assert jrnn.load("kept").evaluate()["examples"] == 12


@pytest.mark.parametrize(
    ("data", "flags", "message"),
    [
        ("three", ["--init-from", "old"], "class_names of the run is ('cat', 'dog')"),
        ("three", ["--init-from", "old", "--keep-encoding"], "classes of the run, which are"),
        (
            "two",
            ["--init-from", "old", "--network.cell.hidden-size", "4"],
            "the parameter body.rnns.0.weights.b is float32[12] in the run, and float32[16]",
        ),
        (
            "two",
            ["--init-from", "old", "--network.num-layers", "2"],
            "body.rnns.1.weights.b is missing in the run, and float32[12] in this config",
        ),
        ("two", ["--init-from", "old", "--init-skip", "tail"], "init_skip must have paths"),
        ("two", ["--init-from", "gone"], "must be the folder of a run"),
        ("two", ["--keep-encoding"], "keep_encoding needs init_from"),
        ("two", ["--init-skip", "head"], "init_skip needs init_from"),
        ("two", ["--freeze", "bodi"], "freeze must have paths of parameters, got 'bodi'"),
    ],
)
def test_invalid_fine_tuning_exits_before_a_folder_is_created(
    data, flags, message, runs, monkeypatch, capsys
):
    monkeypatch.chdir(runs)
    command = ["train", f"configs/arrays.py:path={data}.npz", "--run-dir", "new", *SMALL, *flags]
    assert message in fail(command, capsys)
    assert not (runs / "new").exists()


def test_train_needs_the_source_network(tmp_path):
    experiment = make_experiment(init_from="runs/old")
    with pytest.raises(ValueError, match=r"source=jrnn.load\('runs/old'\).model"):
        train(experiment, experiment.task.load(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_only_parameters_are_copied_and_both_models_are_independent():
    build = lambda seed: Network(jrnn.GRU(4), dropout=0.5).build(Sign().load(), seed)
    source, target = build(0), build(1)
    rest = jax.tree.map(str, nnx.split(target, nnx.Param, ...)[2])
    with pytest.raises(TypeError, match="init_skip must be a tuple of non-empty strings"):
        copy_params(source, target, "head")
    skipped = check_transfer(source, nnx.state(target, nnx.Param), ["head.bias"])
    copy_params(source, target, ["head.bias"])
    assert skipped == ["head.bias"]
    assert jax.tree.map(str, nnx.split(target, nnx.Param, ...)[2]) == rest
    np.testing.assert_array_equal(source.head.kernel[...], target.head.kernel[...])
    target.head.kernel[...] += 1
    assert float(abs(source.head.kernel[...] - target.head.kernel[...]).min()) > 0.5


def test_text_with_another_vocabulary_is_refused_or_keeps_that_of_the_run(tmp_path):
    (tmp_path / "old.txt").write_text("abba" * 100)
    (tmp_path / "new.txt").write_text("acca" * 100)
    old = Text(str(tmp_path / "old.txt"), window=8).load().spec
    new = Text(str(tmp_path / "new.txt"), window=8)
    with pytest.raises(ValueError, match="the vocabulary of the run is .* --init-skip embedding"):
        check_encoding(old, new.load().spec, [])
    # The head of a language model predicts the characters of its vocabulary.
    for skipped, missing in (("embedding", "head"), ("head", "embedding")):
        with pytest.raises(ValueError, match=f"--init-skip {missing}$"):
            check_encoding(old, new.load().spec, [skipped])
    check_encoding(old, new.load().spec, ["embedding", "head"])
    data = new.load_like(old)
    check_encoding(old, data.spec, [])
    unknown = old.vocabulary.index("\N{REPLACEMENT CHARACTER}")
    assert data.train.xs[0, :4].tolist() == [0, unknown, unknown, 0]


def test_table_keeps_the_normalization_of_the_run(tmp_path):
    for name, shift in (("old", 0.0), ("new", 7.0)):
        rows = "\n".join(f"{np.sin(k / 5) + shift:.4f}" for k in range(200))
        (tmp_path / f"{name}.csv").write_text(f"load\n{rows}\n")
    old = Table(str(tmp_path / "old.csv"), window=8).load()
    task = Table(str(tmp_path / "new.csv"), window=8)
    new = task.load_like(old.spec)
    assert new.target_scaler == old.target_scaler
    shift = 7.0 / old.target_scaler.std[0]
    np.testing.assert_allclose(new.train.xs, old.train.xs + shift, atol=1e-4)
    assert new.baseline[1] == pytest.approx(old.baseline[1], rel=1e-3)
    (tmp_path / "other.csv").write_text((tmp_path / "new.csv").read_text().replace("load", "x"))
    with pytest.raises(ValueError, match="columns must be .*'load'.* got .*'x'"):
        Table(str(tmp_path / "other.csv"), window=8).load_like(old.spec)


def write_series(path, rows, step="h", shift=0.0):
    dates = np.datetime64("2024-01-01T00:00") + np.arange(rows) * np.timedelta64(1, step)
    lines = [f"{date},{np.sin(k / 5) + shift:.4f}" for k, date in enumerate(dates)]
    path.write_text("date,load\n" + "\n".join(lines) + "\n")
    return str(path)


def test_table_keeps_the_inputs_of_the_run(tmp_path):
    options = {"window": 8, "missing": "mask", "horizon": 2}
    old = Table(write_series(tmp_path / "old.csv", 200), **options).load()
    task = Table(write_series(tmp_path / "new.csv", 400, shift=7.0), **options)
    assert task.load().input_size > old.input_size  # the new dates cover two weeks
    new = task.load_like(old.spec)
    assert new.input_names == old.input_names and new.train.xs.shape[2] == old.input_size
    assert (new.input_scaler, new.target_scaler) == (old.input_scaler, old.target_scaler)
    later = replace(task, horizon=3).load_like(old.spec)
    assert later.target_scaler.std == old.target_scaler.std[:1] * 3
    with pytest.raises(ValueError, match="inputs must be .*'load observed'"):
        replace(task, missing="refuse").load_like(old.spec)
    with pytest.raises(ValueError, match="inputs must be .*, those of the run"):
        replace(task, calendar=False).load_like(old.spec)
    minutes = replace(task, path=write_series(tmp_path / "minutes.csv", 200, "m"))
    with pytest.raises(ValueError, match="dates must have the spacing of the training data"):
        minutes.load_like(old.spec)
    text = "\n".join(row.split(",")[1] for row in (tmp_path / "new.csv").read_text().split())
    (tmp_path / "undated.csv").write_text(text)
    with pytest.raises(ValueError, match="inputs must be .*, those of the run"):
        replace(task, path=str(tmp_path / "undated.csv")).load_like(old.spec)


def test_forecast_is_fine_tuned_continued_and_used(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, shift in (("first", 0.0), ("second", 7.0)):
        write_series(tmp_path / f"{name}.csv", 200, shift=shift)
    command = lambda name, *flags: main(
        ["train", f"configs/table.py:path={name}.csv,window=8", "--run-dir", f"runs/{name}"]
        + [*SMALL, "--ema-decay", "0.9", "--task.horizon", "2", *flags]
    )
    command("first")
    assert "persistence" in capsys.readouterr().out
    command("second", "--init-from", "runs/first", "--keep-encoding", "--json")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    names = [entry["name"] for entry in lines[-1]["result"]["baselines"]]
    assert "persistence" in names
    steps = [line for line in lines if line.get("split") == "train"]
    assert [line["step"] for line in steps] == [2, 4]
    assert all(line["update_norm"] > 0 for line in steps)
    old, run = jrnn.load("runs/first"), jrnn.load("runs/second")
    assert run.data.spec.input_scaler == old.data.spec.input_scaler
    assert run.evaluate()["metric"] == pytest.approx(lines[-1]["result"]["test"], rel=1e-5)
    assert run.forecast("second.csv").rows.low is not None
    assert 6 < run.forecast("second.csv").rows.points.mean() < 8
    main(["train", "--resume", "runs/second", "--steps", "6", "--quiet"])
    assert capsys.readouterr().out == ""
    result = json.loads((tmp_path / "runs/second/result.json").read_text())
    assert result["steps"] == 6 and [entry["name"] for entry in result["baselines"]] == names
    assert jrnn.load("runs/second").evaluate()["metric"] == pytest.approx(result["test"], rel=1e-5)


def test_arrays_of_another_size_cannot_keep_the_encoding(tmp_path):
    write_arrays(tmp_path / "two.npz", ["cat", "dog"])
    task = Arrays(str(tmp_path / "two.npz"), "classification")
    spec = task.load().spec
    np.savez(tmp_path / "wide.npz", xs=np.ones((60, 7, 3)), ys=np.arange(60) % 2)
    with pytest.raises(ValueError, match="features per step, in number 2, as the run"):
        Arrays(str(tmp_path / "wide.npz"), "classification", normalize=False).load_like(
            Arrays(task.path, task.kind, normalize=False).load().spec
        )
    with pytest.raises(ValueError, match="kind must be that of the run"):
        Arrays(task.path, "sequence_classification").load_like(spec)


# Continued runs.


def test_continued_run_equals_a_run_of_this_length(tmp_path):
    long = make_experiment(Sign("class_per_step"), steps=80, eval_every=20)
    short = make_experiment(Sign("class_per_step"), steps=40, eval_every=20)
    data = long.task.load()
    expected = train(long, data, tmp_path / "long")
    train(short, data, tmp_path / "short")
    actual = train(long, data, str(tmp_path / "short"), resume=True)
    assert (actual.step, actual.test) == (expected.step, expected.test)
    assert_same_run(long, data, tmp_path / "long", tmp_path / "short")


def test_resume_with_more_steps_changes_the_config(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    train_run("two", "more")
    main(["train", "--resume", "more", "--steps=6"])
    assert config.read(runs / "more/config.json").steps == 6
    assert json.loads((runs / "more/result.json").read_text())["steps"] == 6
    main(["train", "--resume", "more"])
    original = (runs / "more/config.json").read_text()
    for text, message in {
        "5": "--steps must be at least the 6 of the run, got 5",
        "x": "--steps must be a positive int, got 'x'",
        "-1": "--steps must be a positive int, got '-1'",
        "9" * 30: "--steps must be a positive int",
    }.items():
        assert message in fail(["train", "--resume", "more", "--steps", text], capsys)
    assert (runs / "more/config.json").read_text() == original


def test_run_whose_schedule_depends_on_steps_is_not_continued(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    train_run("two", "cosine", "--optimizer.schedule", "cosine")
    message = fail(["train", "--resume", "cosine", "--steps", "8"], capsys)
    assert "--steps must be 4, since the learning rate" in message and "--init-from" in message
    assert config.read(runs / "cosine/config.json").steps == 4


def test_appended_rows_are_new_data(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    rows = "\n".join(f"{np.sin(k / 5):.4f}" for k in range(200))
    (runs / "mine.csv").write_text(f"load\n{rows}\n")
    spec = "configs/table.py:path=mine.csv,window=8"
    main(["train", spec, "--run-dir", "table", *SMALL])
    with (runs / "mine.csv").open("a") as file:
        file.write("0.5\n")
    message = fail(["train", "--resume", "table", "--steps", "8"], capsys)
    assert "have changed; new rows are new data too" in message
    assert "--init-from table" in message
    main(["train", spec, "--run-dir", "longer", *SMALL, "--init-from", "table"])


def test_run_that_has_trained_more_steps_is_refused(tmp_path):
    long, short = make_experiment(steps=40), make_experiment(steps=20)
    data = long.task.load()
    train(long, data, tmp_path)
    with pytest.raises(ValueError, match="steps must be at least 40, which the run has trained"):
        train(short, data, tmp_path, resume=True)


def test_stopped_run_says_that_it_is_not_continued(tmp_path, caplog):
    options = {"eval_every": 10, "patience": 1, "optimizer": Optimizer(1e-30)}
    data = Sign().load()
    first = train(make_experiment(steps=100, **options), data, tmp_path)
    caplog.clear()
    again = train(make_experiment(steps=200, **options), data, tmp_path, resume=True)
    assert again.step == first.step
    assert "stopped early and is not continued: patience exhausted at step 20" in caplog.text


def test_experiment_of_a_module_says_what_to_do():
    with pytest.raises(TypeError, match="network must be a Network, got flax's Linear; .*fit"):
        Experiment(Sign(), nnx.Linear(1, 1, rngs=nnx.Rngs(0)))
