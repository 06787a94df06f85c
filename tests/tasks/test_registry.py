"""Properties of every task: flags, JSON, documented shapes, and fast imports."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tyro

from jrnn.tasks import REGISTRY, Data, Task
from tests.tasks.compare import all_splits_are_equal

OPTIONS: dict[str, dict[str, Any]] = {
    "digits": {"order": "permuted", "seed": 3},
    "adding": {"length": 12, "train_size": 30, "eval_size": 10, "seed": 3},
    "copy": {"delay": 5, "symbols": 3, "copy_length": 2, "train_size": 30, "eval_size": 10},
    "tracking": {"degree": 2, "length": 9, "test_length": 12, "train_size": 30, "eval_size": 10},
    "text": {"path": "text.txt", "window": 16, "test_fraction": 0.25},
    "arrays": {"path": "arrays.npz", "kind": "regression", "normalize": False},
    "table": {"path": "table.csv", "columns": ("b", "a"), "targets": ("a",), "window": 5},
}
FLAGS = {
    "digits": ["--order", "permuted", "--seed", "3"],
    "adding": ["--length", "12", "--train-size", "30", "--eval-size", "10", "--seed", "3"],
    "copy": "--delay 5 --symbols 3 --copy-length 2 --train-size 30 --eval-size 10".split(),
    "tracking": "--degree 2 --length 9 --test-length 12 --train-size 30 --eval-size 10".split(),
    "text": ["--path", "text.txt", "--window", "16", "--test-fraction", "0.25"],
    "arrays": ["--path", "arrays.npz", "--kind", "regression", "--no-normalize"],
    "table": "--path table.csv --columns b a --targets a --window 5".split(),
}


@pytest.fixture(params=REGISTRY)
def task(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    """Each task with non-default options, and its file if it reads one."""
    rng = np.random.default_rng(0)
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("the quick brown fox\n" * 30, "utf-8")
    np.savez("arrays.npz", xs=rng.normal(size=(30, 4, 2)), ys=rng.normal(size=(30, 3)))
    np.savetxt("table.csv", rng.normal(size=(90, 2)), delimiter=",", header="a,b", comments="")
    return REGISTRY[request.param](**OPTIONS[request.param])


def _registry_name(task: Task) -> str:
    return next(name for name, cls in REGISTRY.items() if cls is type(task))


def test_options_and_flags_cover_every_task():
    assert OPTIONS.keys() == FLAGS.keys() == REGISTRY.keys()


def test_tasks_can_be_parsed_from_flags(task: Task):
    assert tyro.cli(type(task), args=FLAGS[_registry_name(task)]) == task


def test_tasks_round_trip_through_json_and_hash(task: Task):
    options = json.loads(json.dumps(dataclasses.asdict(task)))
    options = {name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}
    assert type(task)(**options) == task
    assert hash(type(task)(**options)) == hash(task)


def test_load_is_deterministic(task: Task):
    assert all_splits_are_equal(task.load(), task.load())


@pytest.mark.parametrize("name", ["digits", "adding", "copy", "tracking"])
def test_seed_changes_data(name: str):
    options = OPTIONS[name] | {"seed": 4}
    other = REGISTRY[name](**(options | {"seed": 5}))
    assert not all_splits_are_equal(REGISTRY[name](**options).load(), other.load())


def test_splits_have_documented_shapes_and_dtypes(task: Task):
    data = task.load()
    for split in (data.train, data.validation, data.test):
        examples, steps = split.xs.shape[:2]
        assert examples > 0
        if data.has_tokens:
            assert split.xs.shape == (examples, steps) and split.xs.dtype == np.int32
            assert 0 <= split.xs.min() and split.xs.max() < data.input_size
        else:
            assert split.xs.shape == (examples, steps, data.input_size)
            assert split.xs.dtype == np.float32
        leading = (examples, steps) if data.target.endswith("per_step") else (examples,)
        if data.target.startswith("class"):
            assert split.ys.shape == leading and split.ys.dtype == np.int32
            assert 0 <= split.ys.min() and split.ys.max() < data.output_size
        else:
            assert split.ys.shape == (*leading, data.output_size)
            assert split.ys.dtype == np.float32
        if split.metric_mask is not None:
            assert split.metric_mask.shape == (examples, steps) and split.metric_mask.dtype == bool


def test_baseline_is_a_named_positive_float(task: Task):
    name, value = task.load().baseline
    assert name and type(value) is float and value > 0


def test_data_compares_by_identity():
    split = REGISTRY["adding"](**OPTIONS["adding"]).load().train
    one, other = (
        Data(
            *[split] * 3,
            target="value",
            metric="mse",
            input_size=2,
            output_size=1,
            baseline=("constant prediction", 1.0),
        )
        for _ in range(2)
    )
    assert one == one and one != other


def test_import_of_tasks_does_not_import_slow_packages():
    slow = ("sklearn", "flax", "optax", "orbax", "matplotlib", "pydoc_data")
    code = f"import sys, jrnn.tasks; print([m for m in {slow} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
