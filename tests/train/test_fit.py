"""`fit` with user models, losses and data, compared with explicit training loops."""

import itertools
import re

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from jrnn.files import WriteError
from jrnn.tasks.task import Split
from jrnn.train import Interrupted, NonFiniteLoss, Objective, fit
from jrnn.train.data.sampler import EpochSampler
from jrnn.train.run.metrics_logger import MetricsFile
from jrnn.train.run.trainer import Trainer
from tests.sweep.test_sweep import Signs
from tests.train.test_resume import signal_at

STEPS = 12
ADAM = optax.adam(3e-2)


class MLP(nnx.Module):
    """A model without layers of jrnn."""

    def __init__(self, rngs, rate=0.0):
        self.first = nnx.Linear(3, 8, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.last = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, xs):
        return self.last(self.dropout(jax.numpy.tanh(self.first(xs))))[:, 0]


def make_examples(seed=0, size=20):
    rng = np.random.default_rng(seed)
    xs = rng.normal(size=(size, 3)).astype(np.float32)
    return xs, (xs.sum(-1) > 0).astype(np.float32)


def mse(model, batch):
    xs, ys = batch
    return ((model(xs) - ys) ** 2).mean()


def mse_and_accuracy(model, batch):
    xs, ys = batch
    outputs = model(xs)
    return ((outputs - ys) ** 2).mean(), ((outputs > 0.5) == (ys > 0.5)).mean()


def reference_loop(model, batches, loss=mse):
    """Returns the parameters and losses of an explicit training loop."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    state = ADAM.init(params)
    grad_fn = jax.jit(
        jax.value_and_grad(lambda p, batch: loss(nnx.merge(graphdef, p, rest, copy=True), batch))
    )
    losses = []
    for batch in batches:
        value, grads = grad_fn(params, batch)
        updates, state = ADAM.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(value))
    return params, losses


def params_of(model):
    return nnx.state(model, nnx.Param)


def assert_close(actual, expected, rtol=2e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), actual, expected
    )


def run(model, data, **options):
    options = {"loss": mse, "optimizer": ADAM, "steps": STEPS, "batch_size": 8} | options
    return fit(model, data, progress=False, **options)


def test_fit_on_arrays_matches_a_loop(tmp_path):
    model, data = MLP(nnx.Rngs(0)), make_examples()
    rows = EpochSampler(20, 8, seed=5).plan(0, STEPS)
    expected, losses = reference_loop(model, [(data[0][r], data[1][r]) for r in rows])
    initial = jax.tree.map(np.array, params_of(model))
    result = run(model, data, seed=5, run_dir=tmp_path)
    assert_close(params_of(result.model), expected)
    jax.tree.map(np.testing.assert_array_equal, params_of(model), initial)
    _, means = MetricsFile(tmp_path / "metrics.jsonl").read("train", "loss")
    assert means == pytest.approx([np.mean(losses)], rel=1e-5)
    assert result.step == STEPS and result.validation == result.test == {}


def test_accumulate_matches_whole_batch():
    model, data = MLP(nnx.Rngs(0)), make_examples()
    expected, actual = run(model, data), run(model, data, accumulate=4)
    assert_close(params_of(actual.model), params_of(expected.model))


def make_batches(count, size=8):
    for seed in range(count):
        yield make_examples(seed, size)


@pytest.mark.parametrize("kind", ["list", "generator"])
def test_fit_on_batches_matches_a_loop(kind):
    model = MLP(nnx.Rngs(0))
    batch_list = list(make_batches(5))
    expected, _ = reference_loop(model, itertools.islice(itertools.cycle(batch_list), STEPS))
    data = batch_list if kind == "list" else itertools.cycle(batch_list)
    assert_close(params_of(run(model, data).model), expected)


def test_resumed_run_skips_used_batches(tmp_path, monkeypatch):
    model, batch_list = MLP(nnx.Rngs(0), rate=0.3), list(make_batches(7))
    uninterrupted = run(model, batch_list, steps=400)
    signal_at(150, monkeypatch)
    with pytest.raises(Interrupted, match="stopped by SIGTERM"):
        run(model, batch_list, steps=400, run_dir=tmp_path)
    resumed = run(model, iter(batch_list * 60), steps=400, run_dir=tmp_path, resume=True)
    jax.tree.map(
        np.testing.assert_array_equal, params_of(resumed.model), params_of(uninterrupted.model)
    )


@pytest.mark.parametrize(
    ("has_folder", "command", "advice"),
    [
        (True, "make resume", ", and saved; resume with: make resume"),
        (True, "", ", and saved; resume with resume=True"),
        (False, "", "; nothing is saved, since run_dir is None"),
        (False, "make resume", "; nothing is saved, since run_dir is None"),
    ],
)
def test_messages_say_how_to_resume(has_folder, command, advice, tmp_path, monkeypatch):
    options = {"run_dir": tmp_path / "run" if has_folder else None, "resume_command": command}
    signal_at(10, monkeypatch)
    with pytest.raises(Interrupted, match=f"SIGTERM at step [0-9]+ of 400{advice}$"):
        run(MLP(nnx.Rngs(0)), make_examples(), steps=400, **options)

    def fail(trainer):
        raise WriteError("the disk is full")

    monkeypatch.setattr(Trainer, "train_steps", fail)
    with pytest.raises(WriteError) as error:
        run(MLP(nnx.Rngs(0)), make_examples(), steps=400, resume=has_folder, **options)
    (note,) = error.value.__notes__
    if has_folder:
        assert re.fullmatch(f"The newest checkpoint is of step [0-9]+{advice[11:]}", note)
    else:
        assert note == "Nothing is saved, since run_dir is None"


@pytest.mark.parametrize("has_folder", [True, False])
def test_non_finite_loss_names_the_checkpoint_of_a_run_folder(has_folder, tmp_path):
    run_dir = tmp_path if has_folder else None
    with pytest.raises(NonFiniteLoss, match="loss is nan at step 1[;.]") as error:
        run(
            MLP(nnx.Rngs(0)),
            make_examples(),
            loss=lambda *_: jax.numpy.float32("nan"),
            run_dir=run_dir,
        )
    assert ("the last good checkpoint is of step 0" in str(error.value)) == has_folder


@pytest.mark.parametrize("form", ["arrays", "batches"])
def test_fit_returns_weights_with_the_best_metric(form, tmp_path):
    model, data, held_out = MLP(nnx.Rngs(0)), make_examples(), make_examples(1, 13)
    batch_list = [(held_out[0][:8], held_out[1][:8]), (held_out[0][8:], held_out[1][8:])]
    result = run(
        model,
        data,
        loss=mse_and_accuracy,
        validation=held_out if form == "arrays" else batch_list,
        test=held_out if form == "arrays" else iter(batch_list),
        metric="accuracy",
        higher_is_better=True,
        eval_every=3,
        steps=30,
        run_dir=tmp_path,
    )
    steps, metrics = MetricsFile(tmp_path / "metrics.jsonl").read("validation", "metric")
    assert steps == list(range(3, 31, 3))
    assert result.step == steps[int(np.argmax(metrics))] and max(metrics) > min(metrics)
    loss, accuracy = mse_and_accuracy(result.model, held_out)
    assert result.test == result.validation
    assert result.test == pytest.approx({"loss": float(loss), "metric": float(accuracy)}, rel=1e-5)


def test_fit_without_run_dir_leaves_no_files(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run(MLP(nnx.Rngs(0)), make_examples())
    assert list(tmp_path.iterdir()) == []


def test_fit_learns_task_data_with_a_user_loss():
    """The batches that the loss receives are instances of `Split`."""
    data = Signs().load()
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    objective = Objective.from_data(data)

    def loss(model, batch: Split):
        sums = objective.compute_sums(model(batch.xs[:, 0]), batch)
        return sums.loss / sums.loss_weight, sums.metric / sums.metric_weight

    result = run(model, data, loss=loss, steps=60, higher_is_better=True)
    assert result.validation["metric"] > 0.9
    assert result.test["metric"] > 0.85  # on the test split of the task


def nan_loss(model, batch):
    return mse(model, batch) * np.nan


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        (make_examples(), {"loss": None}, ValueError, "loss must be a function of .model, batch."),
        (make_examples(), {"patience": 2}, ValueError, "patience needs validation data"),
        (
            make_examples(),
            {"batch_size": 21},
            ValueError,
            "at most the 20 training examples, got 21",
        ),
        (make_examples(), {"steps": 0}, ValueError, "steps must be a positive int"),
        ((np.zeros((3, 3)), np.zeros(4)), {}, ValueError, "the same first axis"),
        ((), {}, ValueError, "the same first axis"),
        ([], {}, ValueError, "must yield batches of arrays"),
        (iter(list(make_batches(3))), {}, ValueError, "got none for step 4;"),
        (
            [make_examples(0, 6)],
            {"accumulate": 4},
            ValueError,
            "accumulate must divide the 6 examples of a batch of data, got 4",
        ),
        ([make_examples(0, 8)], {"mesh": "data=64"}, ValueError, "needs 64 devices, got"),
        (
            [make_examples(0, 8), make_examples(0, 7)],
            {},
            ValueError,
            "the shapes and dtypes of the first",
        ),
        (make_examples(), {"loss": lambda m, b: m(b[0])}, ValueError, "must return a real scalar"),
        (make_examples(), {"loss": nan_loss}, NonFiniteLoss, r"the loss is nan at step 1\."),
    ],
)
def test_invalid_arguments_raise(data, options, error, message):
    with pytest.raises(error, match=message):
        run(MLP(nnx.Rngs(0)), data, **options)


def test_resume_with_another_model_raises(tmp_path):
    run(MLP(nnx.Rngs(0)), make_examples(), run_dir=tmp_path)
    with pytest.raises(OSError, match="another network"):
        run(nnx.Linear(3, 1, rngs=nnx.Rngs(0)), make_examples(), run_dir=tmp_path, resume=True)
