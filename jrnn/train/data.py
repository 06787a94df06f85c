"""What each training step takes out of a split: fixed by a seed and the number of the step."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Protocol

import jax
import numpy as np

from jrnn.tasks.task import Split

ON_DEVICE = 2**30
"""Bytes of a split that are put on the device whole; a larger one is sent by and by."""

Plan = Any
"""Arrays of whole numbers that say what a step takes; of many steps, with a first axis."""


class Reader(Protocol):
    """A way through a split.

    Attributes:
      batch_size: examples a step.
    """

    batch_size: int

    def plan(self, first: int, count: int) -> Plan:
        """What the steps from `first` on take, counted from 0."""
        ...

    def batch(self, split: Split, plan: Plan) -> Split:
        """The examples of one step, from arrays of NumPy or of JAX."""
        ...


class Examples:
    """Whole examples: each epoch in a new order, which depends on (seed, epoch) alone.

    The last, smaller batch of an epoch is left out, so that every batch has one shape.
    """

    def __init__(self, size: int, batch_size: int, seed: int):
        """For a split of `size` examples, at least one batch; see `check_batch_size`."""
        self.batch_size = batch_size
        self._per_epoch = size // batch_size
        self._epoch = lru_cache(maxsize=2)(
            lambda epoch: np.random.default_rng((seed, epoch)).permutation(size).astype(np.int32)
        )

    def plan(self, first: int, count: int) -> np.ndarray:
        """The rows `[count, batch]` of the steps from `first` on, counted from 0."""
        rows = np.empty((count, self.batch_size), np.int32)
        for k in range(count):
            epoch, place = divmod(first + k, self._per_epoch)
            begin = place * self.batch_size
            rows[k] = self._epoch(epoch)[begin : begin + self.batch_size]
        return rows

    def batch(self, split: Split, plan: Any) -> Split:
        """The examples of some rows."""
        return take(split, plan)


def shuffled_batches(split: Split, batch_size: int, seed: int) -> Iterator[Split]:
    """Batches without end, in the order of `Examples`.

    Args:
      split: at least one batch of examples; see `check_batch_size`.
      batch_size: examples in a batch.
      seed: of the order.
    """
    examples, step = Examples(len(split.xs), batch_size, seed), 0
    while True:
        yield take(split, examples.plan(step, 1)[0])
        step += 1


def check_batch_size(split: Split, batch_size: int) -> None:
    """Refuses a batch with more examples than the split has."""
    if len(split.xs) < batch_size:
        raise ValueError(
            f"train: batch_size must be at most the {len(split.xs)} training examples, "
            f"got {batch_size}"
        )


def whole_rows(size: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """All examples in order, as rows `[batches, batch]`.

    The last batch is filled up, and `present [batches, batch]` is False there.
    """
    rows = np.arange(-(-size // batch_size) * batch_size).reshape(-1, batch_size)
    return np.minimum(rows, size - 1).astype(np.int32), rows < size


def filled(tree: Any, size: int) -> Any:
    """Arrays with their first axis made longer, by zeros."""
    fill = lambda array: np.pad(array, [(0, size - len(array))] + [(0, 0)] * (array.ndim - 1))
    return jax.tree.map(fill, tree)


def take(split: Split, rows: Any) -> Split:
    """Some examples of a split."""
    return jax.tree.map(lambda array: array[rows], split)


def fits(split: Split) -> bool:
    """Whether a split is small enough to lie on the device whole."""
    return nbytes(split) <= ON_DEVICE


def nbytes(split: Split) -> int:
    """Bytes of all examples."""
    return sum(array.nbytes for array in jax.tree.leaves(split))
