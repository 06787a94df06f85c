"""Truncated backpropagation through time, compared with whole sequences and explicit loops."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jrnn
from jrnn.tasks.task import Data, Split, Task
from jrnn.train import TBPTT, Experiment, Network, Optimizer, check_experiment, restore, train
from jrnn.train.data.windows import (
    Window,
    WindowIndex,
    WindowSampler,
    cut_streams,
    take_windows,
)
from jrnn.train.run.data_plan import plan_task
from jrnn.train.step.evaluate import make_evaluate
from jrnn.train.step.loss import Objective, SequenceLoss
from jrnn.train.step.state import init_state
from jrnn.train.step.step import TrainStep
from jrnn.train.step.truncated import TruncatedLoss, apply_to_window, zero_carry
from tests.helpers import cache_size, mark_exhaustive

T, N = 12, 10


@dataclass(frozen=True)
class Sums(Task):
    """A task whose target at each time step is the sum of all inputs so far."""

    contiguous: bool = False
    lengths: bool = False
    resets: bool = False
    target: str = "value_per_step"
    test_steps: int = T

    def load(self) -> Data:
        rng = np.random.default_rng(0)
        parts = []
        for size, steps in ((N, T), (7, T), (7, self.test_steps)):
            xs = rng.normal(size=(size, steps, 2)).astype(np.float32)
            ys = xs.sum(-1, keepdims=True).cumsum(1)
            lengths = rng.integers(1, steps + 1, size).astype(np.int32) if self.lengths else None
            resets = rng.random((size, steps)) < 0.2 if self.resets else None
            parts.append(Split(xs, ys, lengths, resets=resets))
        return Data(
            *parts,
            target=self.target,
            metric="mse",
            input_size=2,
            output_size=1,
            baseline=("zero", 1.0),
            contiguous=self.contiguous,
        )


TASKS = [Sums(), Sums(True), Sums(lengths=True), Sums(True, resets=True), Sums(False, True, True)]


def make_experiment(task=TASKS[0], **changes):
    cell = jrnn.transforms.learned_carry(jrnn.GRU(5))
    options = {"steps": 40, "batch_size": 3, "eval_every": 20, "tbptt": TBPTT(4)}
    return Experiment(task, Network(cell), Optimizer(1e-2), **{**options, **changes})


def random_network(experiment, data, seed=0):
    """Returns the graph and the state of a network with noise in all parameters.

    No bias and no initial carry is zero.
    """
    graphdef, state = init_state(experiment.network.build(data, seed), optax.sgd(1.0))
    keys = iter(jax.random.split(jax.random.key(seed), 100))
    add_noise = lambda a: a + 0.3 * jax.random.normal(next(keys), a.shape, a.dtype)
    return graphdef, state._replace(params=jax.tree.map(add_noise, state.params))


@pytest.mark.parametrize("task", TASKS, ids=repr)
@pytest.mark.parametrize("k1", [1, 4, 12])
def test_stateful_evaluation_equals_evaluation_of_whole_streams(task, k1):
    """The errors of all time steps are averaged in NumPy; the result must not depend on k1."""
    experiment = make_experiment(task, tbptt=TBPTT(k1))
    data = experiment.task.load()
    graphdef, state = random_network(experiment, data)
    evaluator = plan_task(data, experiment, experiment.tbptt).make_evaluator(graphdef)
    metrics = evaluator.compile()(state, data.test)
    model = nnx.merge(graphdef, state.params, state.rest)
    model.eval()
    split = data.test
    if task.contiguous:
        # Each stream of consecutive windows is one long sequence.
        cut = cut_streams(data, split, k1, 3, keep_last=True)
        join = lambda a: a.reshape(3, -1, *a.shape[3:])
        lengths = cut.lengths
        resets = None if cut.resets is None else join(cut.resets)
        split = Split(join(cut.xs), join(cut.ys), lengths, resets=resets)
        total = 7 * T
        assert (total if lengths is None else lengths.sum()) == total
    _, ys = model(split.xs, lengths=split.lengths, resets=split.resets)
    lengths = np.full(len(split.xs), split.xs.shape[1]) if split.lengths is None else split.lengths
    errors = [(np.asarray(ys[b, :n]) - split.ys[b, :n]) ** 2 for b, n in enumerate(lengths)]
    assert metrics["metric"] == pytest.approx(np.concatenate(errors).mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("task", "k1", "k2"),
    mark_exhaustive(
        ((t, *k) for t in TASKS[2:] for k in [(4, 4), (4, 6), (2, 9), (4, 3), (12, 12)]),
        always=[
            (TASKS[2], 4, 6),
            (TASKS[3], 4, 3),
            (TASKS[3], 4, 6),
            (TASKS[4], 4, 4),
            (TASKS[4], 12, 12),
        ],
    ),
)
def test_gradients_flow_exactly_k2_steps(task, k1, k2):
    """Compares the gradient of each window with that of one long sequence, at fixed weights."""
    experiment = make_experiment(task, tbptt=TBPTT(k1, k2))
    data = experiment.task.load()
    graphdef, state = random_network(experiment, data)
    split = cut_streams(data, data.train, k1, 3, keep_last=False)
    window = TBPTT(k1, k2).window(data)
    objective = Objective.from_data(data)
    rows = np.array([2, 0, 1])
    carry = zero_carry(graphdef, state.weights, split, 3)

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def loss(params, carry, index):
        model = nnx.merge(graphdef, params, state.rest, copy=True)
        batch = take_windows(window, jax.tree.map(jnp.asarray, split), index)
        carry, outputs, targets = apply_to_window(window, model, carry, batch)
        sums = objective.compute_sums(outputs, targets)
        return sums.loss, (carry, sums)

    join = lambda a: None if a is None else a[rows].reshape(3, -1, *a.shape[3:])
    xs, ys, resets = join(split.xs), join(split.ys), join(split.resets)
    length = xs.shape[1]
    valid = np.full(3, length) if split.lengths is None else split.lengths[rows]

    @partial(jax.jit, static_argnums=(1, 2, 3))
    @jax.value_and_grad
    def sequence_loss(params, begin, end, grad_begin):
        """Sums errors of time steps [begin, end), with gradients back to `grad_begin`."""
        model = nnx.merge(graphdef, params, state.rest, copy=True)
        constant_model = nnx.merge(graphdef, state.params, state.rest, copy=True)
        part = lambda a, b: {
            "lengths": (valid - a).clip(0, b - a),
            "resets": None if resets is None else resets[:, a:b],
        }
        carry = None
        if grad_begin > 0:
            carry, _ = constant_model(xs[:, :grad_begin], **part(0, grad_begin))
            carry = jax.lax.stop_gradient(carry)
        _, out = model(xs[:, grad_begin:end], carry, **part(grad_begin, end))
        is_valid = np.arange(begin, end) < valid[:, None]
        errors = (out[:, begin - grad_begin :] - ys[:, begin:end]) ** 2
        return jnp.where(is_valid[..., None], errors, 0).sum()

    last_window = min(max(k2 // k1, 1) + 1, length // k1 - 1)
    for w in range(last_window + 1):
        index = WindowIndex(jnp.asarray(rows), jnp.int32(w))
        (value, (carry, _)), grads = loss(state.params, carry, index)
        end = (w + 1) * k1
        begin, grad_begin = end - min(k1, k2), max(end - max(k1, k2), 0)
        if k2 < k1:
            grad_begin = begin
        expected_value, expected = sequence_loss(state.params, begin, end, grad_begin)
        assert float(value) == pytest.approx(float(expected_value), rel=1e-5, abs=1e-6)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), grads, expected
        )


def test_windows_are_in_order_and_no_stream_repeats_within_an_epoch():
    data = Sums(lengths=True).load()
    split = cut_streams(data, data.train, 4, 3, keep_last=False)
    windows = WindowSampler(Window(4, 4), split, 3, seed=1)
    counts = -(-data.train.lengths // 4)
    all_rows, step = [], 0
    for _ in range(3):
        rows = windows.plan(step, 1).rows[0]
        for k in range(counts[rows].max()):
            index = windows.plan(step, 1)
            assert index.window[0] == k
            np.testing.assert_array_equal(index.rows[0], rows)
            step += 1
        all_rows += list(rows)
    assert len(set(all_rows)) == 9
    later = windows.plan(0, step)
    again = WindowSampler(Window(4, 4), split, 3, seed=1).plan(step - 2, 2)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[-2:], b), later, again)
    assert list(windows.plan(step, 1).rows[0]) != list(later.rows[0])


@pytest.mark.parametrize("task", [TASKS[0], TASKS[3]], ids=repr)
def test_training_on_windows_matches_explicit_loop(task):
    """The loop passes the carry from window to window."""
    experiment = make_experiment(task, tbptt=TBPTT(4, 6))
    data = experiment.task.load()
    optimizer = experiment.optimizer.build(experiment.steps)
    graphdef, state = init_state(experiment.network.build(data, 0), optimizer)
    split = cut_streams(data, data.train, 4, 3, keep_last=False)
    window = TBPTT(4, 6).window(data)
    windows = WindowSampler(window, split, 3, seed=0)
    carry = zero_carry(graphdef, state.weights, split, 3)
    state = state._replace(carry=carry)
    params, opt_state = state.params, state.opt_state
    losses = []
    plans = windows.plan(0, 12)
    for k in range(12):
        batch = windows.get_batch(split, WindowIndex(plans.rows[k], plans.window[k]))

        def loss(params, carry=carry, batch=batch):
            model = nnx.merge(graphdef, params, state.rest, copy=True)
            carry, ys = model(batch.xs[:, :4], carry, resets=batch.resets[:, :4])
            _, more = model(batch.xs[:, 4:], carry, resets=batch.resets[:, 4:])
            ys = jnp.concatenate([ys, more], 1)[:, -4:]
            return jnp.mean((ys - batch.ys) ** 2), carry

        (value, carry), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(value))
    step = TrainStep(graphdef, TruncatedLoss(Objective.from_data(data), window), optimizer)
    steps = jax.jit(step.make_loop(windows.get_batch))
    state, metrics = steps(state, jax.tree.map(jnp.asarray, split), plans, 12)
    np.testing.assert_allclose(metrics.loss, losses, rtol=1e-4)
    assert cache_size(steps) == 1


@pytest.mark.parametrize("task", TASKS[1:3], ids=repr)
def test_run_learns_and_can_be_restored(task, tmp_path):
    experiment = make_experiment(task, steps=300, eval_every=100, tbptt=TBPTT(4, 8))
    data = experiment.task.load()
    result = train(experiment, data, tmp_path)
    before = train(replace(experiment, steps=1), data, tmp_path / "one")
    assert result.validation["loss"] < 0.7 * before.validation["loss"]
    assert restore(experiment, data, tmp_path)[1:4] == result[1:4]


def test_whole_examples_use_resets_of_the_task():
    experiment = make_experiment(Sums(resets=True), tbptt=None)
    data = experiment.task.load()
    graphdef, state = random_network(experiment, data)
    model = nnx.merge(graphdef, state.params, state.rest)
    _, ys = model(data.test.xs, resets=data.test.resets)
    expected = np.mean((np.asarray(ys) - data.test.ys) ** 2)
    evaluate = make_evaluate(graphdef, Objective.from_data(data), 3)
    assert evaluate(state, data.test)["metric"] == pytest.approx(expected, rel=1e-5)
    no_resets = data.test._replace(resets=None)
    assert evaluate(state, no_resets)["metric"] != pytest.approx(expected, rel=1e-3)
    carry, sums = SequenceLoss(Objective.from_data(data))(model, (), data.test)
    assert carry == () and float(sums.loss_weight) == 7 * T


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tbptt": TBPTT(5)}, "k1 must divide the 12 time steps of a train example, got 5"),
        ({"task": Sums(target="value")}, "the task must have a target at each time step"),
        ({"batch_size": 11}, "batch_size must be at most the 10 training examples"),
        (
            {"task": TASKS[1], "batch_size": 31},
            "batch_size must be at most the 30 windows of 4 time steps",
        ),
        (
            {"task": Sums(True, lengths=True)},
            "contiguous examples must not have lengths",
        ),
        (
            {"task": Sums(test_steps=10)},
            "k1 must divide the 10 time steps of a test example, got 4",
        ),
        (
            {"network": Network(jrnn.GRU(5), bidirectional=True)},
            "other layers have no carry to pass on",
        ),
    ],
)
def test_incompatible_tbptt_raises(changes, message):
    experiment = replace(make_experiment(), **changes)
    with pytest.raises(ValueError, match=message):
        check_experiment(experiment, experiment.task.load())


@pytest.mark.parametrize("k", [0, -1, 2.5, True])
def test_invalid_k1_and_k2_raise(k):
    with pytest.raises(ValueError, match="TBPTT: k[12] must be a positive int"):
        TBPTT(k1=k)
    with pytest.raises(ValueError, match="TBPTT: k2 must be a positive int"):
        TBPTT(k1=3, k2=k)
