"""The average of the parameters, and frozen parameters."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jrnn.train import Checkpointer, Interrupted, check_experiment, fit, restore, train
from jrnn.train.run.metrics_logger import MetricsFile
from jrnn.train.step.freeze import frozen_mask, is_selected, param_paths
from jrnn.train.step.state import init_state
from jrnn.train.step.step import TrainStep
from tests.train.test_resume import assert_same_run, newest_arrays, signal_at
from tests.train.test_trainer import Sign, make_experiment


class Linear(nnx.Module):
    """y = x w + b, with a parameter that is a negative zero."""

    def __init__(self):
        self.w = nnx.Param(jnp.array([[0.5], [-0.25]]))
        self.b = nnx.Param(jnp.array([-0.0]))

    def __call__(self, xs):
        return xs @ self.w + self.b


def mean_squared_error(model, batch):
    xs, ys = batch
    return jnp.mean((model(xs) - ys) ** 2)


RNG = np.random.default_rng(0)
XS = RNG.normal(size=(16, 2)).astype(np.float32)
YS = (XS @ np.array([[1.0], [2.0]]) + 3).astype(np.float32)


def fit_linear(**options):
    options = {"batch_size": 16, "progress": False, "optimizer": optax.sgd(0.1)} | options
    return fit(Linear(), (XS, YS), loss=mean_squared_error, **options)


def reference_average(decay, steps):
    """Returns the average of w after full-batch steps of SGD, in float64 by a loop."""
    w, b = np.array([[0.5], [-0.25]]), np.array([0.0])
    average = w.copy()
    for t in range(1, steps + 1):
        errors = XS.astype(np.float64) @ w + b - YS
        w = w - 0.1 * 2 * XS.T.astype(np.float64) @ errors / len(XS)
        b = b - 0.1 * 2 * errors.mean(axis=0)
        rate = min(decay, (1 + t) / (10 + t))
        average = rate * average + (1 - rate) * w
    return average, w


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.99])
def test_average_matches_a_loop(decay):
    average, last = reference_average(decay, 12)
    model = fit_linear(steps=12, ema_decay=decay).model
    np.testing.assert_allclose(model.w[...], average, rtol=1e-5)
    assert (abs(average - last).max() > 0.01) == (decay > 0)


def test_average_is_what_is_validated_and_returned():
    def validate(**options):
        result = fit_linear(steps=12, eval_every=12, validation=(XS, YS), **options)
        errors = XS.astype(np.float64) @ np.asarray(result.model.w[...], np.float64)
        errors += np.asarray(result.model.b[...], np.float64) - YS
        assert result.validation["loss"] == pytest.approx((errors**2).mean(), rel=1e-5)
        return result.validation["loss"]

    assert validate(ema_decay=0.99) > 1.5 * validate()


@pytest.fixture(scope="module")
def experiment():
    return make_experiment(
        Sign("class_per_step"), steps=400, eval_every=40, ema_decay=0.9, freeze=("body.*.w_hh",)
    )


def test_run_with_average_and_frozen_parameters_resumes_exactly(experiment, tmp_path, monkeypatch):
    data = experiment.task.load()
    reference, resumed = tmp_path / "reference", tmp_path / "resumed"
    expected = train(experiment, data, reference)
    signal_at(150, monkeypatch)
    with pytest.raises(Interrupted):
        train(experiment, data, resumed)
    actual = train(experiment, data, resumed, resume=True)
    assert actual.test == expected.test
    assert_same_run(experiment, data, reference, resumed)
    # The best network in the checkpoint is an average, not the parameters of its step.
    _, arrays = newest_arrays(experiment, data, reference)
    assert restore(experiment, data, reference).test == expected.test
    _, losses = MetricsFile(reference / "metrics.jsonl").read("validation", "metric")
    assert expected.validation["metric"] == max(losses)
    difference = jax.tree.map(
        lambda a, b: float(abs(a - b).max()), arrays["state"]["ema"], arrays["state"]["params"]
    )
    assert max(jax.tree.leaves(difference)) > 1e-4
    # Frozen parameters have no optimizer state, and have not changed.
    initial = param_paths(nnx.state(experiment.network.build(data, 0), nnx.Param))
    for name in ("params", "ema"):
        for path, leaf in param_paths(arrays["state"][name]).items():
            is_equal = np.asarray(leaf).tobytes() == np.asarray(initial[path]).tobytes()
            assert is_equal == path.endswith("w_hh"), path
    opt_state = arrays["state"]["opt_state"]
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(opt_state)]
    assert any("w_ih" in path for path in paths) and not any("w_hh" in path for path in paths)


def test_frozen_negative_zero_keeps_its_sign():
    model = fit_linear(steps=3, freeze=("b",), ema_decay=0.9).model
    assert np.asarray(model.b[...]).tobytes() == np.float32(-0.0).tobytes()
    assert float(abs(model.w[...] - Linear().w[...]).max()) > 0.01


def test_gradient_norm_and_clipping_do_not_include_frozen_parameters():
    optimizer = optax.sgd(1.0)
    graphdef, state = init_state(Linear(), optimizer)
    step = TrainStep(graphdef, _Loss(), optimizer, freeze=("b",))
    _, metrics = step(state, (jnp.asarray(XS), jnp.asarray(YS)))
    errors = XS.astype(np.float64) @ np.array([[0.5], [-0.25]]) - YS
    gradient = 2 * XS.T.astype(np.float64) @ errors / len(XS)
    assert float(metrics.grad_norm) == pytest.approx(np.linalg.norm(gradient), rel=1e-5)


class _Loss:
    def __call__(self, model, carry, batch, row_mask=None):
        from jrnn.train.step.loss import BatchLoss

        return BatchLoss(mean_squared_error)(model, carry, batch)


def test_paths_are_selected_by_prefix_and_wildcards():
    assert is_selected("body.rnns.0.weights.w_ih", ["body"])
    assert is_selected("body.rnns.0.weights.w_ih", ["head", "body.rnns.?"])
    assert is_selected("body.rnns.0.weights.w_ih", ["*.w_*"])
    assert not is_selected("body.rnns.0.weights.w_ih", ["bod", "rnns", "body.rnns.1"])
    params = nnx.state(Linear(), nnx.Param)
    assert jax.tree.leaves(frozen_mask(params, ["b"])) == [True, False]


def test_unknown_path_raises_before_a_folder_is_created(tmp_path):
    experiment = make_experiment(freeze=("bodi",))
    message = "freeze must have paths of parameters, got 'bodi'; the paths are body.rnns.0"
    with pytest.raises(ValueError, match=message):
        check_experiment(experiment, experiment.task.load())
    with pytest.raises(ValueError, match="freeze must have paths .*, got 'x'; the paths are b, w"):
        fit_linear(steps=1, freeze=["x"])
    with pytest.raises(TypeError, match="fit: freeze must be a tuple of .*, got 'b'"):
        fit_linear(steps=1, freeze="b")
    with pytest.raises(TypeError, match="freeze must be a tuple of non-empty strings"):
        make_experiment(freeze="body")


def test_run_without_average_is_not_resumed_with_one(tmp_path):
    experiment = make_experiment(steps=30)
    data = experiment.task.load()
    train(experiment, data, tmp_path)
    with pytest.raises(OSError, match="has a run of another network: state.*ema"):
        train(replace(experiment, ema_decay=0.9), data, tmp_path, resume=True)
    with Checkpointers(tmp_path) as steps:
        assert steps == [0, 30]


class Checkpointers:
    """The steps of the checkpoints of a run."""

    def __init__(self, folder):
        self.checkpoints = Checkpointer(folder / "checkpoints")

    def __enter__(self):
        return self.checkpoints.steps()

    def __exit__(self, *_):
        self.checkpoints.close()
