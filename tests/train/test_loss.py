"""Losses and metrics, compared with explicit loops, and the sampling of batches."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrnn.tasks.task import Data, Split
from jrnn.tasks.validate import check_arrays
from jrnn.train.config.experiment import RunOptions
from jrnn.train.data.sampler import check_batch_size, rows_in_order, shuffled_batches
from jrnn.train.scores import score
from jrnn.train.step.loss import Objective, divide_or_zero

B, T, K = 4, 5, 3
LENGTHS = np.array([5, 3, 1, 4], np.int32)


def cross_entropy(scores, label):
    return np.log(np.exp(scores).sum()) - scores[label]


def reference_means(target, metric, outputs, batch, row_mask):
    """Returns the mean loss and metric of the rows in `row_mask`, computed by a loop."""
    losses, metrics = [], []
    per_step = target.endswith("per_step")
    for b in np.flatnonzero(row_mask):
        length = T if batch.lengths is None else batch.lengths[b]
        for t in range(length) if per_step else [None]:
            o, y = (outputs[b], batch.ys[b]) if t is None else (outputs[b, t], batch.ys[b, t])
            is_class = target.startswith("class")
            loss = cross_entropy(o, y) if is_class else np.mean((o - y) ** 2)
            losses.append(loss)
            if t is not None and batch.metric_mask is not None and not batch.metric_mask[b, t]:
                continue
            metrics.append(
                {"accuracy": float(is_class and np.argmax(o) == y), "mse": loss}.get(
                    metric, loss / np.log(2)
                )
            )
    return {"loss": np.mean(losses), "metric": np.mean(metrics)}


@pytest.mark.parametrize(
    ("target", "metric"),
    [
        ("class", "accuracy"),
        ("value", "mse"),
        ("class_per_step", "accuracy"),
        ("class_per_step", "bits_per_character"),
        ("value_per_step", "mse"),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_means_match_a_loop(target, metric, masked):
    rng = np.random.default_rng(0)
    shape = (B, T) if target.endswith("per_step") else (B,)
    outputs = rng.normal(size=(*shape, K)).astype(np.float32)
    ys = rng.integers(0, K, shape) if target.startswith("class") else rng.normal(size=(*shape, K))
    metric_mask = (rng.random((B, T)) < 0.5) if masked and len(shape) == 2 else None
    batch = Split(np.zeros((B, T, 1)), ys, LENGTHS if masked else None, metric_mask)
    row_mask = np.array([True, True, True, not masked])
    sums = Objective(target, metric).compute_sums(
        jnp.asarray(outputs), batch, jnp.asarray(row_mask)
    )
    expected = reference_means(target, metric, outputs, batch, row_mask)
    actual = sums.means()
    assert actual == pytest.approx(expected, rel=1e-5)


def smoothed_reference(outputs, labels, lengths, smoothing, weights):
    """Returns the loss of training for labels per step in float64, by a loop."""
    total, total_weight = 0.0, 0.0
    for b in range(B):
        for t in range(lengths[b]):
            label = labels[b, t]
            if label == -100:
                continue
            probabilities = np.exp(outputs[b, t]) / np.exp(outputs[b, t]).sum()
            target = np.full(K, smoothing / K)
            target[label] += 1 - smoothing
            total -= (weights * target * np.log(probabilities)).sum()
            total_weight += weights[label]
    return total, total_weight


def make_data(labels, **changes):
    """Returns data with labels per step, which are the same in all splits."""
    split = Split(np.zeros((B, T, 1), np.float32), labels, LENGTHS)
    fields = {"target": "class_per_step", "metric": "accuracy", "output_size": K}
    fields |= {"input_size": 1, "baseline": ("guess", 0.5)}
    return Data(train=split, validation=split, test=split, **{**fields, **changes})


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 0.0), "balanced"])
def test_smoothed_and_weighted_loss_matches_a_loop(smoothing, weights):
    rng = np.random.default_rng(1)
    outputs = rng.normal(size=(B, T, K))
    labels = rng.integers(0, K, (B, T)).astype(np.int32)
    labels[0, :2] = labels[2, 0] = -100
    labels[3, 1] = 2
    data = make_data(labels)
    options = RunOptions(label_smoothing=smoothing, class_weights=weights)
    objective = Objective.from_data(data, options)
    used = [labels[b, t] for b in range(B) for t in range(LENGTHS[b]) if labels[b, t] != -100]
    balanced = [len(used) / (K * used.count(k)) for k in range(K)]
    numbers = {None: [1.0] * K, "balanced": balanced}.get(weights, weights)
    total, weight = smoothed_reference(outputs, labels, LENGTHS, smoothing, numbers)
    sums = objective.compute_sums(jnp.asarray(outputs, jnp.float32), data.train)
    assert float(sums.loss) == pytest.approx(total, rel=1e-5)
    assert float(sums.loss_weight) == pytest.approx(weight, rel=1e-6)
    # Accuracies count all labels equally, and evaluations have neither option.
    hits = [
        outputs[b, t].argmax() == labels[b, t]
        for b in range(B)
        for t in range(LENGTHS[b])
        if labels[b, t] != -100
    ]
    assert (float(sums.metric), int(sums.metric_weight)) == (sum(hits), len(hits))
    plain = Objective.from_data(data).compute_sums(jnp.asarray(outputs, jnp.float32), data.train)
    expected, count = smoothed_reference(outputs, labels, LENGTHS, 0.0, [1.0] * K)
    assert plain.means()["loss"] == pytest.approx(expected / count, rel=1e-5)


def test_batch_whose_labels_have_no_weight_has_no_loss():
    labels = np.full((B, T), 2, np.int32)
    objective = Objective("class_per_step", "accuracy", None, 0.2, (1.0, 1.0, 0.0))

    def loss(outputs):
        sums = objective.compute_sums(outputs, Split(np.zeros((B, T, 1)), labels))
        return divide_or_zero(sums.loss, sums.loss_weight)

    value, gradient = jax.value_and_grad(loss)(jnp.ones((B, T, K)))
    assert value == 0 and not gradient.any()


def test_unsigned_labels_are_not_ignored():
    labels = np.array([0, 156, 156, 7], np.uint8)  # -100 is 156 modulo 256
    sums = Objective("class", "accuracy").compute_sums(
        jnp.zeros((4, 200)), Split(np.zeros((4, 1, 1)), labels)
    )
    assert (int(sums.loss_weight), int(sums.metric_weight)) == (4, 4)


def test_nan_targets_have_no_loss_and_no_gradient():
    rng = np.random.default_rng(2)
    outputs = rng.normal(size=(B, T, K)).astype(np.float32)
    ys = rng.normal(size=(B, T, K)).astype(np.float32)
    ys[rng.random(ys.shape) < 0.4] = np.nan
    ys[1] = np.nan
    batch = Split(np.zeros((B, T, 1)), ys, LENGTHS)
    squares, count, gradient = 0.0, 0, np.zeros_like(ys, np.float64)
    for b, t, k in np.ndindex(B, T, K):
        if t < LENGTHS[b] and not np.isnan(ys[b, t, k]):
            error = float(outputs[b, t, k]) - float(ys[b, t, k])
            squares, count, gradient[b, t, k] = squares + error**2, count + 1, 2 * error
    compute = lambda outputs: Objective("value_per_step", "mse").compute_sums(outputs, batch)
    sums = compute(jnp.asarray(outputs))
    assert (int(sums.loss_weight), int(sums.metric_weight)) == (count, count)
    assert sums.means() == pytest.approx(
        dict.fromkeys(("loss", "metric"), squares / count), rel=1e-5
    )
    actual = jax.grad(lambda outputs: compute(outputs).loss)(jnp.asarray(outputs))
    np.testing.assert_allclose(actual, gradient, rtol=1e-5)


@pytest.mark.parametrize("name", ["validation", "test"])
def test_metric_without_targets_is_refused(name):
    labels = np.zeros((B, T), np.int32)
    labels[1:] = -100
    mask = np.ones((B, T), bool)
    mask[0] = False
    data = make_data(labels)
    split = data.train._replace(metric_mask=mask)
    check_arrays(replace(data, train=split))
    with pytest.raises(ValueError, match=f"{name}.metric_mask must select a step with a target"):
        check_arrays(replace(data, **{name: split}))


def test_scores_ignore_the_same_targets_as_the_loss():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, K, (B, T)).astype(np.int32)
    labels[rng.random((B, T)) < 0.4] = -100
    values = rng.normal(size=(B, T, K)).astype(np.float32)
    values[rng.random(values.shape) < 0.4] = np.nan
    outputs = rng.normal(size=(B, T, K)).astype(np.float32)
    for data in (
        make_data(labels),
        make_data(values, target="value_per_step", metric="mse"),
    ):
        result = score(data.spec, data.test, outputs)
        sums = Objective.from_data(data).compute_sums(jnp.asarray(outputs), data.test)
        assert {n: result[n] for n in ("loss", "metric")} == pytest.approx(sums.means(), rel=1e-5)
        if data.has_classes:
            assert sum(c["count"] for c in result["classes"]) == int(sums.metric_weight)
        else:
            known = ~np.isnan(values) & (np.arange(T) < LENGTHS[:, None])[..., None]
            for k, target in enumerate(result["targets"]):
                errors = np.abs(outputs[..., k] - values[..., k])[known[..., k]]
                assert target["mae"] == pytest.approx(errors.mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\)"),
        (
            {"class_weights": (1.0, -1.0, 1.0)},
            "class_weights must be a finite number of at least 0",
        ),
        ({"class_weights": (0.0, 0.0)}, "class_weights must have a weight above 0"),
        ({"class_weights": "balance"}, "did you mean 'balanced'"),
        ({"class_weights": (1.0, 1.0)}, "one number for each of the 3 classes, got 2"),
    ],
)
def test_invalid_loss_options_raise(options, message):
    data = make_data(np.zeros((B, T), np.int32))
    with pytest.raises(ValueError, match=message):
        Objective.from_data(data, RunOptions(**options))


def test_loss_options_need_classes():
    data = make_data(np.zeros((B, T, K), np.float32), target="value_per_step", metric="mse")
    with pytest.raises(ValueError, match="label_smoothing needs a task with classes"):
        Objective.from_data(data, RunOptions(label_smoothing=0.1))


def make_split(size):
    return Split(np.arange(size)[:, None, None], np.arange(size), np.arange(size))


def test_shuffled_batches_have_no_duplicates_within_an_epoch():
    batches = shuffled_batches(make_split(10), 3, seed=1)
    epochs = [np.concatenate([next(batches).ys for _ in range(3)]) for _ in range(2)]
    for epoch in epochs:
        assert len(set(epoch)) == 9
    assert list(epochs[0]) != list(epochs[1])


def test_shuffled_batches_are_reproducible():
    first, repeated, other = (shuffled_batches(make_split(10), 3, seed) for seed in (1, 1, 2))
    expected = [next(first).ys for _ in range(3)]
    np.testing.assert_array_equal([next(repeated).ys for _ in range(3)], expected)
    assert list(next(other).ys) != list(expected[0])


def test_shuffled_batches_keep_examples_together():
    batch = next(shuffled_batches(make_split(10), 4, seed=0))
    np.testing.assert_array_equal(batch.xs[:, 0, 0], batch.ys)
    np.testing.assert_array_equal(batch.lengths, batch.ys)


def test_batch_larger_than_data_raises():
    with pytest.raises(ValueError, match="at most the 5 training examples, got 6"):
        check_batch_size(make_split(5), 6)


def test_rows_in_order_contains_every_example_once():
    rows, row_mask = rows_in_order(10, 4)
    assert rows.shape == row_mask.shape == (3, 4)
    np.testing.assert_array_equal(rows[row_mask], np.arange(10))
    assert rows.max() == 9
