"""Batches out of a split, in an order that a seed fixes."""

from collections.abc import Iterator

import jax
import numpy as np

from jrnn.tasks.task import Split


def shuffled_batches(split: Split, batch_size: int, seed: int) -> Iterator[Split]:
    """Batches without end: each epoch in a new order, which depends on (seed, epoch) alone.

    The last, smaller batch of an epoch is left out, so that every batch has one shape.

    Args:
      split: at least one batch of examples; see `check_batch_size`.
      batch_size: examples in a batch.
      seed: of the order.
    """
    size, epoch = len(split.xs), 0
    while True:
        order = np.random.default_rng((seed, epoch)).permutation(size)
        for start in range(0, size - batch_size + 1, batch_size):
            yield take(split, order[start : start + batch_size])
        epoch += 1


def check_batch_size(split: Split, batch_size: int) -> None:
    """Refuses a batch with more examples than the split has."""
    if len(split.xs) < batch_size:
        raise ValueError(
            f"train: batch_size must be at most the {len(split.xs)} training examples, "
            f"got {batch_size}"
        )


def whole_batches(split: Split, batch_size: int) -> Iterator[tuple[Split, np.ndarray]]:
    """All examples in order; the last batch is filled up, and `present [B]` is False there."""
    for start in range(0, len(split.xs), batch_size):
        rows = np.arange(start, start + batch_size)
        yield take(split, np.minimum(rows, len(split.xs) - 1)), rows < len(split.xs)


def take(split: Split, rows: np.ndarray) -> Split:
    """Some examples of a split."""
    return jax.tree.map(lambda array: array[rows], split)
