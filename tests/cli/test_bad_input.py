"""Invalid data and edited configs of runs: a message and exit code 2, and runs remain valid."""

import json
import re
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrnn import tasks
from jrnn.cli import main
from jrnn.tasks.task import Data, Split, Task
from jrnn.train import Objective

FLAGS = ["--steps", "2", "--eval-every", "2", "--batch-size", "4"]
XS = np.random.default_rng(0).normal(size=(60, 7, 3)).astype(np.float32)
YS = (XS[:, 0, 0] > 0).astype(np.int32)


def xs_with_entry(value):
    """Returns `XS` with another value of feature 1 at step 2 of example 3."""
    xs = XS.copy()
    xs[3, 2, 1] = value
    return xs


def ragged_array():
    rows = np.empty(3, object)
    rows[:] = [np.ones(2), np.ones(3), np.ones(1)]
    return rows


INVALID_ARRAYS = {
    "nan": ({"xs": xs_with_entry(np.nan), "ys": YS}, "got nan at xs[3, 2, 1]"),
    "infinite": ({"xs": xs_with_entry(-np.inf), "ys": YS}, "got -inf at xs[3, 2, 1]"),
    "missing ys": ({"xs": XS}, "must contain the arrays xs and ys, got xs"),
    "negative label": ({"xs": XS, "ys": YS - 1}, "ys must contain ids from 0 to"),
    "float labels": ({"xs": XS, "ys": YS * 1.0}, "needs int class labels in ys"),
    "too large length": (
        {"xs": XS, "ys": YS, "lengths": np.full(60, 8)},
        "lengths must be in 1..T = 1..7",
    ),
    "wrong shape": (
        {"xs": XS, "ys": YS[:50]},
        "needs ys of shape [N] with N = 60 as in xs, got (50,)",
    ),
    "too few examples": ({"xs": XS[:2], "ys": YS[:2]}, "must have at least 1 examples each"),
    "no examples": ({"xs": XS[:0], "ys": YS[:0]}, "without empty axes, got (0, 7, 3)"),
    "ragged array": ({"xs": ragged_array(), "ys": np.arange(3)}, "pad them and save their lengths"),
}


@pytest.fixture(autouse=True)
def run_in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run_and_fail(args, capsys):
    """Runs a command that must exit with code 2, and returns its message."""
    with pytest.raises(SystemExit) as exit_info:
        main(args)
    assert exit_info.value.code == 2
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    return errors


@pytest.mark.parametrize("name", INVALID_ARRAYS)
def test_invalid_arrays_exit_before_any_folder_is_created(name, tmp_path, capsys):
    arrays, message = INVALID_ARRAYS[name]
    np.savez("mine.npz", **arrays)
    args = ["train", "configs/arrays.py:path=mine.npz,kind=classification", *FLAGS]
    assert message in run_and_fail(args, capsys)
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def run(tmp_path, capsys):
    """The folder of a run on arrays, which is `run` in the current folder."""
    np.savez("mine.npz", xs=XS, ys=YS)
    spec = "configs/arrays.py:path=mine.npz,kind=classification"
    main(["train", spec, "--run-dir", "run", "--network.cell.hidden-size", "4", *FLAGS])
    capsys.readouterr()
    return tmp_path / "run"


def edit_config(run, change):
    """Applies `change` to the experiment in the saved config of a run."""
    path = run / "config.json"
    saved = json.loads(path.read_text())
    change(saved["experiment"])
    path.write_text(json.dumps(saved))


GRU = {"type": "jrnn.cells.gru:GRU", "hidden_size": 4, "reset_after": True, "t_max": None}
CONFIG_EDITS = {
    "other cell": (
        lambda e: e["network"].update(cell=GRU | {"heads": 1}),
        "has a run of another network",
    ),
    "other hidden size": (
        lambda e: e["network"]["cell"].update(hidden_size=5),
        "float32[16] in the checkpoint, and float32[20] in this config",
    ),
    "other activation": (
        lambda e: e["network"]["cell"].update(input_activation="linear"),
        "is of another network: it has trained Network(cell=LSTM(",
    ),
    "other pooling": (lambda e: e["network"].update(pool="max"), "and this config has Network("),
    "unknown field": (
        lambda e: e["network"].update(unknown=3),
        "written by another version of jrnn",
    ),
    "unknown class": (
        lambda e: e["network"]["cell"].update(type="jrnn.cells.lstm:LSTN"),
        "written by another version of jrnn",
    ),
}


@pytest.mark.parametrize("command", [["eval"], ["train", "--resume"]], ids=" ".join)
@pytest.mark.parametrize("name", CONFIG_EDITS)
def test_edited_config_exits_and_run_remains_valid(name, command, run, capsys):
    change, message = CONFIG_EDITS[name]
    original = (run / "config.json").read_text()
    edit_config(run, change)
    errors = run_and_fail([*command, "run"], capsys)
    assert message in errors and "damaged" not in errors
    (run / "config.json").write_text(original)
    main(["eval", "run"])


def make_data(**changes):
    splits = {"train": Split(XS[:40], YS[:40]), "validation": Split(XS[40:50], YS[40:50])}
    splits |= {"test": Split(XS[50:], YS[50:])}
    sizes = {"input_size": 3, "output_size": 2, "baseline": ("constant prediction", 0.5)}
    return Data(**{**splits, "target": "class", "metric": "accuracy", **sizes, **changes})


@dataclass(frozen=True)
class UserTask(Task):
    """A task that returns its class attribute `data` without validation."""

    data: ClassVar[Any] = None

    def load(self):
        return UserTask.data


VALID = make_data()
LENGTHS = np.full(40, 7, np.int32)
LENGTHS[5] = 9
TOKENS = [np.zeros((n, 7), np.int32) for n in (40, 10, 10)]
TOKENS[1][2, 6] = 3
INVALID_DATA = {
    "too large label": (
        make_data(output_size=1),
        "train.ys must be in 0..output_size - 1 = 0..0, got 1 at",
    ),
    "empty split": (
        make_data(test=Split(XS[:0], YS[:0])),
        "the test split must have at least one example",
    ),
    "wrong shape": (make_data(train=VALID.train._replace(ys=YS)), "train.ys must have shape (40,)"),
    "too large length": (
        make_data(train=VALID.train._replace(lengths=LENGTHS)),
        "got 9 at example 5",
    ),
    "float labels": (
        make_data(train=VALID.train._replace(ys=YS[:40] * 1.0)),
        "train.ys must contain int labels",
    ),
    "nan": (make_data(test=Split(xs_with_entry(np.nan)[:10], YS[:10])), "test.xs must be finite"),
    "list": (make_data(test=Split(XS[:10].tolist(), YS[:10])), "test.xs must be an array"),
    "tokens without steps": (
        make_data(train=Split(TOKENS[0][:, :0], YS[:40]), has_tokens=True),
        "train.xs must have shape [N, T] of tokens with T of at least 1, got (40, 0)",
    ),
    "metric_mask without targets per step": (
        make_data(train=VALID.train._replace(metric_mask=np.ones((40, 7), bool))),
        "train.metric_mask must be None without a target at each step, got target 'class'",
    ),
    "resets without targets per step": (
        make_data(train=VALID.train._replace(resets=np.ones((40, 7), bool))),
        "train.resets must be None without a target at each step, got target 'class'",
    ),
}


@pytest.mark.parametrize("name", INVALID_DATA)
def test_invalid_data_of_a_user_task_raise(name):
    UserTask.data, message = INVALID_DATA[name]
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        tasks.load(UserTask())


def test_invalid_entries_on_padding_are_accepted():
    lengths = np.full(10, 2, np.int32)
    padded = Split(xs_with_entry(np.nan)[:10], YS[:10], lengths)
    UserTask.data = make_data(test=padded)
    assert tasks.load(UserTask()) is UserTask.data
    names = ("train", "validation", "test")
    splits = {n: getattr(VALID, n)._replace(xs=xs) for n, xs in zip(names, TOKENS, strict=True)}
    UserTask.data = make_data(**splits, has_tokens=True)
    with pytest.raises(ValueError, match="validation.xs .* got 3 at example 2, step 6"):
        tasks.load(UserTask())
    without_last = splits["validation"]._replace(lengths=np.full(10, 6, np.int32))
    UserTask.data = make_data(**{**splits, "validation": without_last}, has_tokens=True)
    assert tasks.load(UserTask()) is UserTask.data


def test_nan_in_padding_does_not_affect_gradients():
    ys = np.ones((2, 3, 1), np.float32)
    clean, with_nan = (Split(ys, ys.copy(), np.array([3, 2], np.int32)) for _ in range(2))
    with_nan.ys[1, 2] = np.nan
    objective = Objective("value_per_step", "mse")
    loss = lambda outputs, batch: objective.compute_sums(outputs, batch).loss
    outputs = jnp.full((2, 3, 1), 0.5)
    expected, actual = (jax.grad(loss)(outputs, batch) for batch in (clean, with_nan))
    np.testing.assert_array_equal(actual, expected)
    assert expected[1, 2] == 0 and expected[1, 1] != 0
