"""Runs are reproducible and can be restored; non-finite losses and gradients raise."""

import json
from dataclasses import dataclass, replace
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jrnn
from jrnn.tasks.common import StandardScaler
from jrnn.tasks.task import Data, Split, Task
from jrnn.train import Checkpointer, Experiment, Network, NonFiniteLoss, Optimizer, restore, train
from jrnn.train.data.sampler import shuffled_batches
from jrnn.train.run.metrics_logger import MetricsFile, MetricsLogger
from jrnn.train.run.summary import make_table, save_figure, summarize
from jrnn.train.step.evaluate import make_evaluate
from jrnn.train.step.loss import Objective, apply_model
from jrnn.train.step.state import StepMetrics, init_state
from jrnn.train.step.step import make_train_step
from jrnn.transforms import zoneout
from tests.helpers import cache_size

SPLIT_BOUNDS = ((0, 200), (200, 300), (300, 400))


@dataclass(frozen=True)
class Sign(Task):
    """The sign or the value of the first input of a sequence, once or at each step.

    If `nan_in_row` is not None, the first input of this row of the arrays is NaN.
    """

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
            target_scaler=None if classes else StandardScaler((1.0,), (2.0,)),
        )


def make_experiment(task=Sign(), **changes):
    options = {"steps": 50, "batch_size": 8, "eval_every": 25}
    options |= {"network": Network(jrnn.GRU(6), dropout=0.1), "optimizer": Optimizer(3e-2)}
    return Experiment(task, **{**options, **changes})


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """The experiment, data, folder and result of a finished run."""
    experiment, folder = make_experiment(steps=60), tmp_path_factory.mktemp("run")
    data = experiment.task.load()
    return experiment, data, folder, train(experiment, data, folder)


def test_training_learns_and_beats_the_baseline(finished_run):
    _, data, folder, result = finished_run
    assert result.test["metric"] > 0.8 > data.baseline[1]
    steps, losses = MetricsFile(folder / "metrics.jsonl").read("train", "loss")
    assert steps == [20, 25, 40, 50, 60]
    assert losses[-1] < losses[0]


def test_runs_are_reproducible(finished_run, tmp_path):
    experiment, data, folder, result = finished_run
    repeated = train(experiment, data, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == (folder / "metrics.jsonl").read_text()
    assert repeated.test == result.test
    other = train(replace(experiment, seed=1), data, tmp_path / "other")
    assert other.test["loss"] != result.test["loss"]


def test_restore_returns_the_best_network(finished_run):
    experiment, data, folder, result = finished_run
    repeated = restore(experiment, data, folder)
    assert repeated[1:4] == result[1:4]
    actual, expected = (nnx.state(t.model, nnx.Param) for t in (repeated, result))
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize(("target", "best_of"), [("class", max), ("value", min)])
def test_best_network_has_the_best_evaluation(target, best_of, tmp_path):
    """The learning rate is so high that the last evaluation is not the best one."""
    experiment = replace(
        make_experiment(Sign(target), steps=60, eval_every=5), optimizer=Optimizer(1.0)
    )
    data = experiment.task.load()
    result = train(experiment, data, tmp_path)
    _, metrics = MetricsFile(tmp_path / "metrics.jsonl").read("validation", "metric")
    assert result.validation["metric"] == best_of(metrics)
    assert result.step < experiment.steps
    graphdef, state = init_state(result.model, experiment.optimizer.build(experiment.steps))
    actual = make_evaluate(graphdef, Objective.from_data(data), 8)(state, data.validation)
    assert actual == pytest.approx(result.validation, rel=1e-5)


def test_metrics_file_has_train_and_validation_lines(finished_run):
    _, _, folder, result = finished_run
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    validation = [line for line in lines if line["split"] == "validation"]
    assert [line["step"] for line in validation] == [25, 50, 60]
    assert set(lines[0]) == {"step", "split", "loss", "metric", "grad_norm", "update_norm"}
    assert result.validation["metric"] == max(line["metric"] for line in validation)


def test_update_norm_is_the_norm_of_what_is_added_to_the_parameters(tmp_path):
    """By plain gradient descent, it is the learning rate times the norm of the clipped gradient."""
    optimizer = Optimizer(0.25, "sgd", clip_norm=0.2)
    experiment = make_experiment(optimizer=optimizer, steps=12, eval_every=1)
    train(experiment, experiment.task.load(), tmp_path)
    file = MetricsFile(tmp_path / "metrics.jsonl")
    grads, updates = (np.array(file.read("train", k)[1]) for k in ("grad_norm", "update_norm"))
    assert len(grads) == 12 and grads.min() < 0.2 < grads.max()
    np.testing.assert_allclose(updates, 0.25 * np.minimum(grads, 0.2), rtol=1e-5)


def test_a_line_has_the_update_norm_if_all_of_its_steps_have(tmp_path):
    """A step of an earlier version has none, and the norm of a large update may be infinite."""
    logger = MetricsLogger(make_experiment(steps=80), tmp_path)
    logger.restore({"pending": [[1.0, 0.5, 3.0]] * 19, "bytes": 0})
    loss, grad = np.full(61, 2.0, np.float32), np.full(61, 3.0, np.float32)
    update = np.full(61, 4.0, np.float32)
    update[-2] = np.inf
    ones = np.ones(61, np.float32)
    logger.log_steps(20, StepMetrics(loss, loss / 4, grad, update, ones, ones))
    lines = MetricsFile(tmp_path / "metrics.jsonl").read_lines()
    assert [line["step"] for line in lines] == [20, 25, 40, 50, 60, 75, 80]
    assert lines[0]["loss"] == 21 / 20 and lines[0]["grad_norm"] == 3
    assert [line.get("update_norm") for line in lines] == [None, 4, 4, 4, 4, 4, None]


def test_batches_without_labels_are_not_in_the_logged_loss(tmp_path):
    """Without updates, the mean of the logged losses of batches of one is that of all labels."""
    data = Sign().load()
    split = Split(*(None if array is None else array[:20] for array in data.train))
    split = split._replace(ys=np.where(np.arange(20) % 5 == 0, split.ys, -100).astype(np.int32))
    data = replace(data, train=split, validation=split)
    options = {"steps": 20, "batch_size": 1, "eval_every": 20, "optimizer": Optimizer(1e-30)}
    experiment = make_experiment(network=Network(jrnn.GRU(6)), **options)
    train(experiment, data, tmp_path)
    logged, validated = MetricsFile(tmp_path / "metrics.jsonl").read_lines()
    for name in ("loss", "metric"):
        assert logged[name] == pytest.approx(validated[name], rel=1e-5)


def test_evaluation_does_not_depend_on_the_batch_size(finished_run):
    experiment, data, _, result = finished_run
    graphdef, state = init_state(result.model, experiment.optimizer.build(experiment.steps))
    objective = Objective.from_data(data)
    for size in (7, 100, 128):
        actual = make_evaluate(graphdef, objective, size)(state, data.test)
        assert actual == pytest.approx(result.test, rel=1e-5)


def test_second_step_does_not_recompile():
    experiment = make_experiment()
    data = experiment.task.load()
    optimizer = experiment.optimizer.build(experiment.steps)
    graphdef, state = init_state(experiment.network.build(data, 0), optimizer)
    step = make_train_step(graphdef, Objective.from_data(data), optimizer)
    for batch, _ in zip(shuffled_batches(data.train, 8, 0), range(3), strict=False):
        state, _ = step(state, batch)
    assert cache_size(step) == 1
    assert int(state.step) == 3


@pytest.mark.parametrize(
    "noise", [{"dropout": 0.5}, {"cell": zoneout(jrnn.GRU(8), h=0.5)}], ids=["head", "cell"]
)
def test_noise_differs_from_step_to_step(noise):
    experiment = make_experiment()
    experiment = replace(
        experiment, network=replace(experiment.network, **noise), optimizer=Optimizer(1e-9)
    )
    data = experiment.task.load()
    optimizer = experiment.optimizer.build(experiment.steps)
    graphdef, state = init_state(experiment.network.build(data, 0), optimizer)
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
    experiment = make_experiment(eval_every=4, batch_size=4, save_every=1e-9)
    row = np.random.default_rng((experiment.seed, 0)).permutation(200)[5 * 4 + 1]
    experiment = replace(experiment, task=Sign(nan_in_row=int(row)))
    data = experiment.task.load()
    step = 6  # the sixth batch has the row
    batches = list(islice(shuffled_batches(data.train, 4, experiment.seed), 8))
    assert [np.isnan(batch.xs).any() for batch in batches] == [k == 6 for k in range(1, 9)]
    with pytest.raises(
        NonFiniteLoss, match=f"nan at step {step}; .*checkpoint is of step"
    ) as caught:
        train(experiment, data, tmp_path)
    checkpoints = Checkpointer(tmp_path / "checkpoints")
    _, like = init_state(
        experiment.network.build(data, 0), experiment.optimizer.build(experiment.steps)
    )
    checkpoint = checkpoints.read_newest({"state": like.arrays()})
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
    experiment = make_experiment(network=Network(RootOfZero(4)))
    with pytest.raises(NonFiniteLoss, match="the gradient is nan at step 1;"):
        train(experiment, experiment.task.load(), tmp_path)


def test_diverging_run_raises(tmp_path):
    experiment = replace(
        make_experiment(Sign("value"), steps=60), optimizer=Optimizer(1e30, "sgd", clip_norm=None)
    )
    with pytest.raises(NonFiniteLoss, match="last good checkpoint is of step 0"):
        train(experiment, experiment.task.load(), tmp_path)


def test_folder_with_checkpoints_raises_and_is_unchanged(finished_run):
    experiment, data, folder, result = finished_run
    lines = (folder / "metrics.jsonl").read_text()
    with pytest.raises(FileExistsError, match="has the checkpoints of a run already"):
        train(replace(experiment, seed=1), data, folder)
    assert (folder / "metrics.jsonl").read_text() == lines
    assert restore(experiment, data, folder).test == result.test


def test_restore_of_empty_folder_raises(tmp_path):
    experiment = make_experiment()
    with pytest.raises(FileNotFoundError, match="no evaluated network"):
        restore(experiment, experiment.task.load(), tmp_path)


@pytest.mark.parametrize("target", ["class", "value", "class_per_step", "value_per_step"])
def test_every_kind_of_target_can_be_trained_and_plotted(target, tmp_path):
    experiment = make_experiment(Sign(target))
    data = experiment.task.load()
    result = train(experiment, data, tmp_path)
    summary = summarize(experiment, data, result)
    json.dumps(summary)
    outputs = np.asarray(apply_model(result.model, data.test))
    if target == "value":
        expected = np.sqrt(np.mean((outputs - data.test.ys) ** 2)) * 2.0
        assert summary["test_rmse_in_units"] == pytest.approx(expected, rel=1e-5)
    if target == "class":
        expected = np.mean(outputs.argmax(-1) == data.test.ys)
        assert summary["test"] == pytest.approx(expected)
    assert make_table(summary).row_count >= 6
    assert save_figure(data, result, tmp_path).read_bytes().startswith(b"\x89PNG")


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
    with pytest.raises(ValueError, match="needs a causal network, since .* the target of a step"):
        Network(jrnn.GRU(4), bidirectional=True).build(replace(data, causal=True), 0)


def test_bfloat16_network_has_float32_parameters():
    model = Network(jrnn.LSTM(4), dtype="bfloat16").build(Sign().load(), 0)
    assert {str(a.dtype) for a in jax.tree.leaves(nnx.state(model, nnx.Param))} == {"float32"}
    _, ys = model.body(Sign().load().test.xs)
    assert ys.dtype == "bfloat16"
