"""Outputs for metrics: plain progress, JSON lines, TensorBoard event files, Weights & Biases."""

import io
import json
import re
import struct
import sys
import time
import types
from importlib.machinery import ModuleSpec
from typing import Any

import numpy as np
import optax
import pytest

from jrnn.cli import inspect, main
from jrnn.terminal import Console
from jrnn.train import fit, train
from jrnn.train.run import progress as progress_module
from jrnn.train.run.metrics_logger import MetricsFile
from jrnn.train.run.progress import Progress, choose_mode
from jrnn.train.run.writers import JsonLinesWriter, TensorBoardWriter, WandbWriter
from tests.train.test_ema_and_freeze import XS, YS, Linear, mean_squared_error
from tests.train.test_resume import signal_at
from tests.train.test_trainer import Sign, make_experiment

SMALL = ["--steps", "4", "--eval-every", "2", "--network.cell.hidden-size", "4"]


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = types.SimpleNamespace(seconds=0.0)
    fake = types.SimpleNamespace(perf_counter=lambda: now.seconds)
    monkeypatch.setattr(progress_module, "time", fake)
    return now


def test_plain_progress_prints_a_line_every_few_seconds(clock, capsys):
    with Progress(100, "accuracy", mode="plain") as progress:
        for step in range(1, 101):
            clock.seconds = step / 8
            progress.update_training(step, {"loss": step / 100})
            if step == 50:
                progress.update_validation({"metric": 0.75})
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    steps = [int(re.match(r"step (\d+)/100  loss", line)[1]) for line in lines]
    assert steps == [40, 80, 100]
    assert "loss 0.4000" in lines[0] and "validation" not in lines[0]
    assert "loss 0.8000" in lines[1] and "validation accuracy 0.7500" in lines[1]


@pytest.mark.parametrize("seconds", [0, 100])
def test_failed_and_short_runs_print_no_last_line(seconds, clock, capsys):
    with pytest.raises(KeyError), Progress(10, "mse", mode="plain") as progress:
        clock.seconds = seconds
        progress.update_training(3, {})
        progress.update_training(4, {})
        raise KeyError
    with Progress(10, "mse", mode="plain") as progress:
        progress.update_training(10, {})
    assert capsys.readouterr().err.count("\n") == (1 if seconds else 0)


def test_mode_is_plain_in_a_pipe_and_in_a_notebook_without_widgets(monkeypatch):
    class FakeConsole:
        is_jupyter = is_terminal = False

    monkeypatch.setattr(progress_module.rich.console, "Console", FakeConsole)
    assert choose_mode() == "plain"
    FakeConsole.is_terminal = True
    assert choose_mode() == "bar"
    FakeConsole.is_jupyter = True
    for spec, mode in ((None, "plain"), (ModuleSpec("ipywidgets", None), "bar")):
        find_spec = lambda name, spec=spec: {"ipywidgets": spec}[name]
        monkeypatch.setattr(progress_module.importlib.util, "find_spec", find_spec)
        assert choose_mode() == mode


def fit_linear(**options):
    options = {"batch_size": 16, "progress": False, "optimizer": optax.sgd(0.1)} | options
    return fit(Linear(), (XS, YS), loss=mean_squared_error, **options)


def test_json_lines_equal_the_metrics_file(tmp_path):
    stream = io.StringIO()
    fit_linear(
        steps=50,
        eval_every=25,
        validation=(XS, YS),
        run_dir=tmp_path,
        writers=[JsonLinesWriter(stream)],
    )
    text = (tmp_path / "metrics.jsonl").read_text()
    assert stream.getvalue() == text and text.count("\n") == 6


def read_events(path):
    """Yields the events of a TensorBoard file: records of a length, a checksum and a message."""
    from tensorboardX.proto import event_pb2

    event_type: Any = vars(event_pb2)["Event"]

    content = path.read_bytes()
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        yield event_type.FromString(content[12 : 12 + length])
        content = content[16 + length :]


def test_tensorboard_events_are_those_of_the_metrics_file(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    experiment = make_experiment(Sign(), steps=200, eval_every=50)
    data = experiment.task.load()
    folder = tmp_path / "events"
    writers = lambda: [TensorBoardWriter(folder)]
    signal_at(60, monkeypatch)
    with pytest.raises(KeyboardInterrupt, match="at step") as stopped:
        train(experiment, data, tmp_path / "run", writers=writers())
    train(experiment, data, tmp_path / "run", resume=True, writers=writers())
    saved = int(re.search(r"at step (\d+) of 200", str(stopped.value))[1])
    # Two files of the same second have different names, by the step of the checkpoint.
    files = [*folder.glob("*.0"), *folder.glob(f"*.{saved}")]
    assert sorted(files) == sorted(folder.iterdir())
    # The second file starts with the step from which on TensorBoard hides older events.
    values, first_steps = {}, []
    for file in files:
        events = [*read_events(file)]
        first_steps += [e.step for e in events if e.session_log.status == 1]
        for event in events:
            for value in event.summary.value:
                values[value.tag, event.step] = value.simple_value
    assert first_steps == [1, saved + 1]
    expected = {
        (f"{line['split']}/{name}", line["step"]): value
        for line in MetricsFile(tmp_path / "run/metrics.jsonl").read_lines()
        for name, value in line.items()
        if name not in ("step", "split")
    }
    assert len(expected) > 30 and values.keys() == expected.keys()
    for key, value in expected.items():
        assert values[key] == pytest.approx(value, rel=1e-6)


def test_tensorboard_events_are_written_before_the_run_ends(tmp_path):
    pytest.importorskip("tensorboardX")
    writer = TensorBoardWriter(tmp_path)
    writer.begin(0)
    writer.write("train", {1: {"loss": 2.0}})
    (file,) = tmp_path.iterdir()
    empty = file.stat().st_size
    deadline = time.monotonic() + 30
    while file.stat().st_size == empty and time.monotonic() < deadline:
        time.sleep(0.05)
    tags = [value.tag for event in read_events(file) for value in event.summary.value]
    writer.close()
    assert tags == ["train/loss"]


def test_wandb_receives_the_metrics_and_the_run_is_resumed(tmp_path, monkeypatch):
    calls = []

    class FakeRun:
        def log(self, metrics, step):
            calls.append((step, metrics))

        def finish(self):
            calls.append("finish")

    fake: Any = types.ModuleType("wandb")
    fake.init = lambda **options: calls.append(options) or FakeRun()
    fake.Error = KeyError
    monkeypatch.setitem(sys.modules, "wandb", fake)
    folder = tmp_path / "mine"
    # `jrnn train --resume` may change the number of steps and the mesh.
    for steps, resume, mesh in ((20, False, None), (40, True, "data=1")):
        writer = WandbWriter("project", folder, {"seed": 1, "steps": steps, "mesh": mesh})
        fit_linear(steps=steps, run_dir=folder, resume=resume, writers=[writer])
    first, (step, metrics), end, second, (later, _), _ = calls
    assert first["id"] == second["id"] and end == "finish" and (step, later) == (20, 40)
    assert second["config"]["steps"] == 40 and second["allow_val_change"]
    # wandb makes symbolic links, which are refused in the folder of a run.
    assert "dir" not in first
    for other in (WandbWriter("p", folder, {"seed": 2}), WandbWriter("p", tmp_path, {"seed": 1})):
        other.begin(0)
        assert calls[-1]["id"] != first["id"]
    assert (first["project"], first["name"], first["resume"]) == ("project", "mine", "allow")
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    names = ("loss", "metric", "grad_norm", "update_norm")
    assert metrics == {f"train/{name}": line[name] for name in names}


def test_refusal_of_wandb_says_what_to_do(tmp_path, monkeypatch):
    fake: Any = types.ModuleType("wandb")
    fake.Error = type("Error", (Exception,), {})

    def refuse(**options):
        raise fake.Error("No API key configured.")

    fake.init = refuse
    monkeypatch.setitem(sys.modules, "wandb", fake)
    writer = WandbWriter("project", tmp_path, {})
    with pytest.raises(ValueError, match="No API key configured.; run wandb login, or set"):
        writer.begin(0)
    writer.close()


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_command(flags, capsys):
    main(["train", "configs/digits.py:order=row", "--run-dir", "run", *SMALL, *flags])
    return capsys.readouterr()


def test_json_prints_only_json(in_tmp_path, capsys):
    captured = run_command(["--json", "--tensorboard"], capsys)
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert lines[0] == {"run": "run"} and captured.err == ""
    assert lines[1:-1] == MetricsFile(in_tmp_path / "run/metrics.jsonl").read_lines()
    assert lines[-1]["result"] == json.loads((in_tmp_path / "run/result.json").read_text())
    assert [*(in_tmp_path / "run/tensorboard").iterdir()]
    main(["train", "--resume", "run", "--quiet"])
    assert tuple(capsys.readouterr()) == ("", "")
    main(["ls", "runs", "."])
    header, row = capsys.readouterr().out.splitlines()
    result = f"{lines[-1]['result']['test']:.4f}"
    assert header.split()[:4] == ["run", "task", "cell", "step"]
    assert row.split()[:4] == ["run", "Digits", "LSTM", "4/4"] and row.split()[-1] == result


@pytest.mark.parametrize(
    ("flag", "module"), [(["--tensorboard"], "tensorboardX"), (["--wandb", "p"], "wandb")]
)
def test_missing_library_is_named_before_a_folder_is_created(
    flag, module, in_tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, module, None)  # an import raises ImportError
    with pytest.raises(SystemExit) as exit_info:
        run_command(flag, capsys)
    assert exit_info.value.code == 2
    assert "install it with: pip install 'jrnn[" in capsys.readouterr().err
    assert not (in_tmp_path / "run").exists()


def test_ls_runs_lists_what_can_be_read(in_tmp_path, capsys):
    run = in_tmp_path / "runs" / "a\x1b[31m"
    (run / "checkpoints" / "12").mkdir(parents=True)
    (run / "config.json").write_text('{"experiment": 3}')
    (run / "result.json").write_text('{"test": "x"}')
    main(["ls", "runs"])
    header, row = capsys.readouterr().out.splitlines()
    assert "\x1b" not in row and row.split()[1:] == ["-", "-", "12/-", "-", "-", "-"]


def test_results_of_runs_are_not_cut_on_a_narrow_terminal(in_tmp_path, monkeypatch, capsys):
    run_command(["--quiet"], capsys)
    name = "digits-lstm-20261129-052826"
    (in_tmp_path / "runs").mkdir()
    (in_tmp_path / "run").rename(in_tmp_path / "runs" / name)
    screen = io.StringIO()
    monkeypatch.setattr(inspect, "stdout", Console(file=screen, width=80, force_terminal=True))
    main(["ls", "runs"])
    lines = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue()).splitlines()
    assert max(map(len, lines)) <= 80
    result = json.loads((in_tmp_path / "runs" / name / "result.json").read_text())
    assert lines[1].split()[-2:] == [f"{result[split]:.4f}" for split in ("validation", "test")]
    assert "".join(line.split(" ")[0] for line in lines[1:]) == f"runs/{name}"


def test_tables_are_not_cut_in_a_pipe(capsys):
    main(["ls", "tasks"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) > 80 and not any("\u2026" in line for line in lines)


def test_invalid_mode_of_progress_raises():
    with pytest.raises(ValueError, match="progress must be one of auto, bar, plain, none"):
        fit_linear(steps=1, progress="lines")


def test_options_of_the_loss_of_a_task_need_data_of_a_task():
    for options in ({"label_smoothing": 0.1}, {"class_weights": np.ones(2)}):
        with pytest.raises(ValueError, match="fit: label_smoothing and class_weights need"):
            fit_linear(steps=1, **options)
