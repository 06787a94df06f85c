"""The examples of each training step: a function of a seed and the number of the step."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Protocol

import jax
import numpy as np

DEVICE_BYTES = 2**30
"""Largest split, in bytes, that is put on the device as a whole; a larger one is streamed."""

Examples = Any
"""A pytree of arrays with the examples on the first axis, such as a `Split`."""
BatchPlan = Any
"""Integer arrays that say which examples a step takes; for several steps, with a first axis."""


class Sampler(Protocol):
    """Chooses the examples of each training step.

    Attributes:
      batch_size: number of examples of a step.
    """

    batch_size: int

    def plan(self, first: int, count: int) -> BatchPlan:
        """Which examples the steps `first, ..., first + count - 1` take, counted from 0."""
        ...

    def batch(self, examples: Examples, plan: BatchPlan) -> Examples:
        """The examples of one step, from arrays of NumPy or of JAX."""
        ...


class EpochSampler:
    """Samples whole examples, each epoch in a new order that depends only on (seed, epoch).

    The last, smaller batch of an epoch is dropped, so that all batches have the same shape.
    """

    def __init__(self, size: int, batch_size: int, seed: int):
        """For `size` examples, at least one batch of them; see `check_batch_size`."""
        self.batch_size = batch_size
        self._per_epoch = size // batch_size
        self._epoch = lru_cache(maxsize=2)(
            lambda epoch: np.random.default_rng((seed, epoch)).permutation(size).astype(np.int32)
        )

    def plan(self, first: int, count: int) -> np.ndarray:
        """The rows `[count, batch]` of the steps `first, ..., first + count - 1`."""
        rows = np.empty((count, self.batch_size), np.int32)
        for k in range(count):
            epoch, position = divmod(first + k, self._per_epoch)
            begin = position * self.batch_size
            rows[k] = self._epoch(epoch)[begin : begin + self.batch_size]
        return rows

    def batch(self, examples: Examples, plan: Any) -> Examples:
        """The examples of the rows of a plan."""
        return take(examples, plan)


def shuffled_batches(examples: Examples, batch_size: int, seed: int) -> Iterator[Any]:
    """Yields batches without end, in the order of `EpochSampler`.

    Args:
      examples: at least one batch of them; see `check_batch_size`.
      batch_size: number of examples of a batch.
      seed: of the order.
    """
    sampler, step = EpochSampler(num_examples(examples), batch_size, seed), 0
    while True:
        yield take(examples, sampler.plan(step, 1)[0])
        step += 1


def check_batch_size(examples: Examples, batch_size: int) -> None:
    """Raises ValueError if a batch has more examples than there are."""
    size = num_examples(examples)
    if size < batch_size:
        raise ValueError(
            f"train: batch_size must be at most the {size} training examples, got {batch_size}"
        )


def rows_in_order(size: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """All examples in order, as rows `[batches, batch]`.

    The last batch is padded; `present [batches, batch]` is False for padding.
    """
    rows = np.arange(-(-size // batch_size) * batch_size).reshape(-1, batch_size)
    return np.minimum(rows, size - 1).astype(np.int32), rows < size


def pad_first_axis(tree: Any, size: int) -> Any:
    """Arrays padded with zeros along the first axis."""
    pad = lambda array: np.pad(array, [(0, size - len(array))] + [(0, 0)] * (array.ndim - 1))
    return jax.tree.map(pad, tree)


def take(examples: Examples, rows: Any) -> Any:
    """The examples of some rows."""
    return jax.tree.map(lambda array: array[rows], examples)


def num_examples(examples: Examples) -> int:
    """The number of examples."""
    return len(jax.tree.leaves(examples)[0])


def fits_on_device(examples: Examples) -> bool:
    """Whether all examples together are small enough to be put on the device."""
    return num_bytes(examples) <= DEVICE_BYTES


def num_bytes(examples: Examples) -> int:
    """Bytes of all examples."""
    return sum(array.nbytes for array in jax.tree.leaves(examples))
