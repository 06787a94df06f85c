"""Gradient accumulation gives the update of the whole batch, in less memory."""

import itertools
from dataclasses import replace

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import jrnn
from jrnn.sweep.sweep import sweep, trial_folder
from jrnn.train import TBPTT, Experiment, Network, Objective, Optimizer, init_state, train
from jrnn.train.data.sampler import take
from jrnn.train.step.loss import SequenceLoss
from jrnn.train.step.step import TrainStep
from tests.helpers import mark_exhaustive
from tests.sweep.test_sweep import assert_same_metrics
from tests.train.test_truncated import Sums


def make_experiment(**changes):
    options = {"steps": 20, "batch_size": 6, "eval_every": 10, "tbptt": TBPTT(4, 6)}
    return Experiment(
        Sums(lengths=True, resets=True),
        Network(jrnn.GRU(5), num_layers=2),
        Optimizer(1e-2),
        **{**options, **changes},
    )


@pytest.mark.parametrize(
    ("tbptt", "accumulate"),
    mark_exhaustive(
        itertools.product([None, TBPTT(4, 6)], [2, 3, 6]),
        always=[(None, 3), (TBPTT(4, 6), 2)],
    ),
)
def test_accumulated_run_equals_run_of_whole_batches(tbptt, accumulate, tmp_path):
    """Lengths differ, so that the loss is not the mean of the mean losses of the micro-batches."""
    experiment = make_experiment(tbptt=tbptt)
    data = experiment.task.load()
    train(experiment, data, tmp_path / "whole")
    train(replace(experiment, accumulate=accumulate), data, tmp_path / "accumulated")
    assert_same_metrics(tmp_path / "accumulated", tmp_path / "whole", abs=None)


def test_accumulated_step_equals_explicit_loop():
    experiment = make_experiment(tbptt=None)
    data = experiment.task.load()
    graphdef, state = init_state(experiment.network.build(data, 0), optax.sgd(0.5))
    batch = take(data.train, np.arange(6))
    loss = SequenceLoss(Objective.from_data(data))

    def squared_error(params, row):
        model = nnx.merge(graphdef, params, state.rest)
        example = take(data.train, np.array([row]))
        _, ys = model(example.xs, lengths=example.lengths, resets=example.resets)
        length = int(example.lengths[0])
        return ((ys[0, :length] - example.ys[0, :length]) ** 2).sum()

    grads = [jax.grad(squared_error)(state.params, row) for row in range(6)]
    total = float(batch.lengths.sum())
    expected = jax.tree.map(lambda p, *g: p - 0.5 * sum(g) / total, state.params, *grads)
    step = TrainStep(graphdef, loss, optax.sgd(0.5), accumulate=3)
    new, metrics = jax.jit(step)(state, batch)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), new.params, expected
    )
    expected = sum(float(squared_error(state.params, row)) for row in range(6)) / total
    assert float(metrics.loss) == pytest.approx(expected, rel=1e-5)


def test_each_microbatch_has_its_own_dropout_noise():
    experiment = replace(make_experiment(tbptt=None), network=Network(jrnn.GRU(5), dropout=0.5))
    data = experiment.task.load()
    graphdef, state = init_state(experiment.network.build(data, 0), optax.sgd(0.0))
    repeated = take(data.train, np.zeros(6, int))
    losses = []
    for accumulate in (1, 6):
        step = TrainStep(
            graphdef, SequenceLoss(Objective.from_data(data)), optax.sgd(0.0), accumulate
        )
        new, metrics = jax.jit(step)(state, repeated)
        losses.append(float(metrics.loss))
    counts_before, counts_after = (
        [int(leaf) for leaf in jax.tree.leaves(s.rest) if leaf.dtype == np.uint32]
        for s in (state, new)
    )
    assert [b - a for a, b in zip(counts_before, counts_after, strict=True)].count(6) == 1
    assert losses[0] != losses[1]


def test_accumulation_reduces_memory():
    experiment = make_experiment(tbptt=None, batch_size=64, accumulate=1)
    data = experiment.task.load()
    graphdef, state = init_state(experiment.network.build(data, 0), optax.sgd(0.1))
    batch = take(data.train, np.arange(512) % 10)
    sizes = []
    for accumulate in (1, 16):
        step = TrainStep(
            graphdef, SequenceLoss(Objective.from_data(data)), optax.sgd(0.1), accumulate
        )
        analysis = jax.jit(step).lower(state, batch).compile().memory_analysis()
        sizes.append(analysis.temp_size_in_bytes)
    assert sizes[1] < sizes[0] / 4


def test_trial_with_accumulation_equals_its_separate_run(tmp_path):
    trials = [make_experiment(accumulate=3, seed=seed) for seed in range(2)]
    sweep(trials, tmp_path / "sweep")
    train(trials[1], trials[1].task.load(), tmp_path / "alone")
    assert_same_metrics(trial_folder(tmp_path / "sweep", 1), tmp_path / "alone", abs=None)


def test_accumulate_must_divide_batch_size():
    with pytest.raises(ValueError, match="accumulate must divide batch_size=6, got 4"):
        make_experiment(accumulate=4)
