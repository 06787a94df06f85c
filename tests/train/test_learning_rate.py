"""The learning rate range test."""

import json
from dataclasses import replace

import numpy as np
import pytest

from jrnn.cli import main
from jrnn.train import Optimizer, find_learning_rate, train
from jrnn.train.learning_rate import _summarize
from jrnn.train.run.metrics_logger import MetricsFile
from tests.train.test_trainer import Sign, make_experiment


@pytest.fixture(scope="module")
def experiment():
    return make_experiment(Sign("value"), optimizer=Optimizer(3e-3, "sgd", "cosine", warmup=0.1))


def test_losses_are_those_of_a_run_whose_rate_increases(experiment, tmp_path):
    data = experiment.task.load()
    found = find_learning_rate(experiment, data, low=1e-4, high=10.0, steps=40)
    np.testing.assert_allclose(found.learning_rates, np.geomspace(1e-4, 10.0, 40), rtol=1e-6)
    options = (("transition_steps", 1), ("decay_rate", (1e5) ** (1 / 39)))
    optimizer = Optimizer(1e-4, "sgd", "exponential_decay", schedule_options=options)
    train(replace(experiment, optimizer=optimizer, steps=40), data, tmp_path)
    _, means = MetricsFile(tmp_path / "metrics.jsonl").read("train", "loss")
    # Lines are means of the steps since the line before: of 20, 25 and 40.
    expected = [np.mean(found.losses[a:b]) for a, b in ((0, 20), (20, 25), (25, 40))]
    np.testing.assert_allclose(means, expected, rtol=1e-4)
    assert 1e-4 < found.suggestion < 10.0


def test_range_test_starts_from_the_network_of_a_run(experiment, tmp_path):
    data = experiment.task.load()
    tuned = replace(experiment, init_from="runs/old", init_skip=("head.bias",), steps=10)
    source = experiment.network.build(data, experiment.seed + 1)
    options = {"low": 1e-12, "high": 2e-12, "steps": 10}
    found = find_learning_rate(tuned, data, source=source, **options)
    slow = replace(tuned, optimizer=Optimizer(1e-12, "sgd"))
    train(slow, data, tmp_path, source=source)
    _, means = MetricsFile(tmp_path / "metrics.jsonl").read("train", "loss")
    assert means == pytest.approx([np.mean(found.losses)], rel=1e-5)
    other = find_learning_rate(experiment, data, **options)
    assert abs(other.losses[0] - found.losses[0]) > 1e-3


def test_algorithm_with_a_constant_rate_is_refused():
    experiment = make_experiment(optimizer=Optimizer(1e-3, "sm3"))
    with pytest.raises(ValueError, match="must accept a learning rate that changes, got 'sm3'"):
        find_learning_rate(experiment, experiment.task.load())


def test_suggestion_is_a_tenth_of_the_rate_of_the_least_average():
    losses = [4.0, 3.0, 1.0, 1.0, 9.0, np.nan, 0.0]
    found = _summarize(0.5, 2.0, losses)
    assert found.losses == losses[:5] and found.learning_rates == [0.5, 1.0, 2.0, 4.0, 8.0]
    weights = lambda k: np.array([0.9 ** (k - j) for j in range(k + 1)])
    expected = [(weights(k) * losses[: k + 1]).sum() / weights(k).sum() for k in range(5)]
    np.testing.assert_allclose(found.smoothed, expected, rtol=1e-12)
    assert found.suggestion == pytest.approx(4.0 / 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 0.0}, "low must be a finite number above 0"),
        ({"high": 1e-7}, "high must be above low=1e-06"),
        ({"steps": 5}, "steps must be an int of at least 10"),
    ],
)
def test_invalid_arguments_raise(options, message, experiment):
    with pytest.raises(ValueError, match=f"find_learning_rate: {message}"):
        find_learning_rate(experiment, experiment.task.load(), **options)


def test_loss_that_is_never_finite_raises():
    with pytest.raises(ValueError, match="the loss must be finite at the rate low=0.5"):
        _summarize(0.5, 2.0, [np.nan, 1.0])


def test_command_prints_the_rate_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = ["configs/adding.py:runlocal=true", "--network.cell.hidden-size", "4"]
    main(["train", *config, "--find-learning-rate", "--json"])
    found = json.loads(capsys.readouterr().out)
    best = found["learning_rates"][int(np.argmin(found["smoothed"]))]
    assert found["suggestion"] == best / 10 and len(found["losses"]) == 100
    assert not [*tmp_path.iterdir()]
