"""Whole runs: reproducible, saved, restored, and stopped at non-finite losses."""

import json
from dataclasses import dataclass, replace
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jrnn
from jrnn.tasks.task import Data, Split, Task
from jrnn.train import Checkpointer, Experiment, Network, NonFiniteLoss, Optimizer, restore, train
from jrnn.train.data.sampler import shuffled_batches
from jrnn.train.run.metrics_logger import MetricsFile
from jrnn.train.run.summary import make_table, save_figure, summarize
from jrnn.train.step.evaluate import make_evaluate
from jrnn.train.step.loss import Objective, apply_model
from jrnn.train.step.state import init_state
from jrnn.train.step.step import make_train_step
from jrnn.transforms import zoneout
from tests.helpers import cache_size

SPLIT_BOUNDS = ((0, 200), (200, 300), (300, 400))


@dataclass(frozen=True)
class Sign(Task):
    """The sign or the value of the first input of a sequence, once or at each step."""

    target: str = "class"
    nan_in_row: int | None = None

    def load(self) -> Data:
        rng = np.random.default_rng(0)
        xs = rng.normal(size=(400, 4, 2)).astype(np.float32)
        lengths = rng.integers(1, 5, 400).astype(np.int32)
        first = np.repeat(xs[:, :1, :1], 4, axis=1)
        ys = {
            "class": (first[:, 0, 0] > 0).astype(np.int32),
            "value": first[:, 0],
            "class_per_step": (first[..., 0] > 0).astype(np.int32),
            "value_per_step": first,
        }[self.target]
        if self.nan_in_row is not None:
            xs[self.nan_in_row, 0, 0] = np.nan
        parts = [Split(xs[a:b], ys[a:b], lengths[a:b]) for a, b in SPLIT_BOUNDS]
        classes = self.target.startswith("class")
        return Data(
            *parts,
            target=self.target,
            metric="accuracy" if classes else "mse",
            input_size=2,
            output_size=2 if classes else 1,
            baseline=("guess", 0.5),
            target_scale=None if classes else np.array([2.0]),
        )


def experiment(task=Sign(), **changes):
    options = {"steps": 50, "batch_size": 8, "eval_every": 25}
    options |= {"network": Network(jrnn.GRU(6), dropout=0.1), "optimizer": Optimizer(3e-2)}
    return Experiment(task, **{**options, **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One finished run: its experiment, data, folder and result."""
    e, folder = experiment(steps=60), tmp_path_factory.mktemp("run")
    data = e.task.load()
    return e, data, folder, train(e, data, folder)


def test_training_learns_and_beats_the_baseline(run):
    _, data, folder, trained = run
    assert trained.test["metric"] > 0.8 > data.baseline[1]
    steps, losses = MetricsFile(folder / "metrics.jsonl").read("train", "loss")
    assert steps == [20, 25, 40, 50, 60]
    assert losses[-1] < losses[0]


def test_runs_are_reproducible(run, tmp_path):
    e, data, folder, trained = run
    repeated = train(e, data, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == (folder / "metrics.jsonl").read_text()
    assert repeated.test == trained.test
    other = train(replace(e, seed=1), data, tmp_path / "other")
    assert other.test["loss"] != trained.test["loss"]


def test_restore_returns_the_best_network(run):
    e, data, folder, trained = run
    repeated = restore(e, data, folder)
    assert repeated[1:4] == trained[1:4]
    actual, expected = (nnx.state(t.model, nnx.Param) for t in (repeated, trained))
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize(("target", "best_of"), [("class", max), ("value", min)])
def test_best_network_has_the_best_evaluation(target, best_of, tmp_path):
    """At a high learning rate the last evaluation is not the best."""
    e = replace(experiment(Sign(target), steps=60, eval_every=5), optimizer=Optimizer(1.0))
    data = e.task.load()
    trained = train(e, data, tmp_path)
    _, metrics = MetricsFile(tmp_path / "metrics.jsonl").read("validation", "metric")
    assert trained.validation["metric"] == best_of(metrics)
    assert trained.step < e.steps
    graphdef, state = init_state(trained.model, e.optimizer.build(e.steps))
    actual = make_evaluate(graphdef, Objective.from_data(data), 8)(state, data.validation)
    assert actual == pytest.approx(trained.validation, rel=1e-5)


def test_metrics_file_has_train_and_validation_lines(run):
    _, _, folder, trained = run
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    validation = [line for line in lines if line["split"] == "validation"]
    assert [line["step"] for line in validation] == [25, 50, 60]
    assert set(lines[0]) == {"step", "split", "loss", "metric", "grad_norm"}
    assert trained.validation["metric"] == max(line["metric"] for line in validation)


def test_evaluation_does_not_depend_on_the_batch_size(run):
    e, data, _, trained = run
    graphdef, state = init_state(trained.model, e.optimizer.build(e.steps))
    objective = Objective.from_data(data)
    for size in (7, 100, 128):
        actual = make_evaluate(graphdef, objective, size)(state, data.test)
        assert actual == pytest.approx(trained.test, rel=1e-5)


def test_second_step_does_not_recompile():
    e = experiment()
    data = e.task.load()
    optimizer = e.optimizer.build(e.steps)
    graphdef, state = init_state(e.network.build(data, 0), optimizer)
    step = make_train_step(graphdef, Objective.from_data(data), optimizer)
    for batch, _ in zip(shuffled_batches(data.train, 8, 0), range(3), strict=False):
        state, _ = step(state, batch)
    assert cache_size(step) == 1
    assert int(state.step) == 3


@pytest.mark.parametrize(
    "noise", [{"dropout": 0.5}, {"cell": zoneout(jrnn.GRU(8), h=0.5)}], ids=["head", "cell"]
)
def test_noise_differs_from_step_to_step(noise):
    e = experiment()
    e = replace(e, network=replace(e.network, **noise), optimizer=Optimizer(1e-9))
    data = e.task.load()
    optimizer = e.optimizer.build(e.steps)
    graphdef, state = init_state(e.network.build(data, 0), optimizer)
    step = make_train_step(graphdef, Objective.from_data(data), optimizer)
    batch = next(shuffled_batches(data.train, 8, 0))
    losses = []
    for _ in range(2):
        state, metrics = step(state, batch)
        losses.append(float(metrics.loss))
    assert losses[0] != losses[1]
    evaluate = make_evaluate(graphdef, Objective.from_data(data), 8)
    assert evaluate(state, data.test) == evaluate(state, data.test)


def test_non_finite_loss_raises_with_step_and_checkpoint(tmp_path):
    e = experiment(eval_every=4, batch_size=4, save_every=1e-9)
    row = np.random.default_rng((e.seed, 0)).permutation(200)[5 * 4 + 1]
    e = replace(e, task=Sign(nan_in_row=int(row)))
    data = e.task.load()
    step = 6  # the sixth batch has the row
    batches = list(islice(shuffled_batches(data.train, 4, e.seed), 8))
    assert [np.isnan(batch.xs).any() for batch in batches] == [k == 6 for k in range(1, 9)]
    with pytest.raises(
        NonFiniteLoss, match=f"nan at step {step}; .*checkpoint is of step"
    ) as caught:
        train(e, data, tmp_path)
    checkpoints = Checkpointer(tmp_path / "checkpoints")
    _, like = init_state(e.network.build(data, 0), e.optimizer.build(e.steps))
    checkpoint = checkpoints.read_newest({"state": like._asdict()})
    assert checkpoint.step < step and f"is of step {checkpoint.step}." in str(caught.value)
    assert all(
        np.isfinite(leaf).all() for leaf in jax.tree.leaves(checkpoint.arrays["state"]["params"])
    )
    checkpoints.close()


@dataclass(frozen=True)
class RootOfZero(jrnn.Elman):
    """A cell whose state is 0 with a NaN gradient."""

    def update(self, params, carry, z, u):
        return jnp.sqrt(0 * super().update(params, carry, z, u))


def test_non_finite_gradient_raises_at_its_step(tmp_path):
    e = experiment(network=Network(RootOfZero(4)))
    with pytest.raises(NonFiniteLoss, match="the gradient is nan at step 1;"):
        train(e, e.task.load(), tmp_path)


def test_diverging_run_raises(tmp_path):
    e = replace(
        experiment(Sign("value"), steps=60), optimizer=Optimizer(1e30, "sgd", clip_norm=None)
    )
    with pytest.raises(NonFiniteLoss, match="last good checkpoint is of step 0"):
        train(e, e.task.load(), tmp_path)


def test_folder_with_checkpoints_raises_and_is_unchanged(run):
    e, data, folder, trained = run
    lines = (folder / "metrics.jsonl").read_text()
    with pytest.raises(FileExistsError, match="has the checkpoints of a run already"):
        train(replace(e, seed=1), data, folder)
    assert (folder / "metrics.jsonl").read_text() == lines
    assert restore(e, data, folder).test == trained.test


def test_restore_of_empty_folder_raises(tmp_path):
    e = experiment()
    with pytest.raises(FileNotFoundError, match="no evaluated network"):
        restore(e, e.task.load(), tmp_path)


@pytest.mark.parametrize("target", ["class", "value", "class_per_step", "value_per_step"])
def test_every_kind_of_target_can_be_trained_and_plotted(target, tmp_path):
    e = experiment(Sign(target))
    data = e.task.load()
    trained = train(e, data, tmp_path)
    result = summarize(e, data, trained)
    json.dumps(result)
    outputs = np.asarray(apply_model(trained.model, data.test))
    if target == "value":
        expected = np.sqrt(np.mean((outputs - data.test.ys) ** 2)) * 2.0
        assert result["test_rmse_in_units"] == pytest.approx(expected, rel=1e-5)
    if target == "class":
        expected = np.mean(outputs.argmax(-1) == data.test.ys)
        assert result["test"] == pytest.approx(expected)
    assert make_table(result).row_count >= 6
    assert save_figure(data, trained, tmp_path).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"pool": "sum"}, "pool must be one of"),
        ({"dtype": "float16"}, "dtype must be one of"),
        ({"num_layers": 0}, "num_layers must be a positive int"),
        ({"engine": "scann"}, "did you mean 'scan'"),
        ({"embedding_size": 0}, "embedding_size must be a positive int"),
    ],
)
def test_invalid_network_options_raise(network, message):
    with pytest.raises(ValueError, match=message):
        Network(jrnn.GRU(4), **network)


def test_network_incompatible_with_task_raises():
    data = Sign().load()
    with pytest.raises(ValueError, match="needs a task with tokens"):
        Network(jrnn.GRU(4), embedding_size=8).build(data, 0)
    with pytest.raises(ValueError, match="needs a causal network, since .* has to predict"):
        Network(jrnn.GRU(4), bidirectional=True).build(replace(data, causal=True), 0)


def test_bfloat16_network_has_float32_parameters():
    model = Network(jrnn.LSTM(4), dtype="bfloat16").build(Sign().load(), 0)
    assert {str(a.dtype) for a in jax.tree.leaves(nnx.state(model, nnx.Param))} == {"float32"}
    _, ys = model.body(Sign().load().test.xs)
    assert ys.dtype == "bfloat16"
