"""Losses and metrics, compared with explicit loops, and the sampling of batches."""

import jax.numpy as jnp
import numpy as np
import pytest

from jrnn.tasks.task import Split
from jrnn.train.data.sampler import check_batch_size, rows_in_order, shuffled_batches
from jrnn.train.step.loss import Objective

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
