"""Samplers: the examples of a training step depend only on the seed and the step number."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Protocol

import jax
import numpy as np

DEVICE_BYTES = 2**30
"""Maximum size in bytes of a split that is stored on the device; larger splits are streamed."""

Examples = Any
"""A pytree of arrays with the examples on the first axis, such as a `Split`."""
BatchPlan = Any
"""Integer arrays that select the examples of one step.

The plans of several steps are stacked along a new first axis.
"""


class Sampler(Protocol):
    """Selects the examples of each training step.

    Attributes:
      batch_size: number of examples per training step.
    """

    batch_size: int

    def plan(self, first: int, count: int) -> BatchPlan:
        """Returns the plans of the steps `first, ..., first + count - 1`, counted from 0."""
        ...

    def get_batch(self, examples: Examples, plan: BatchPlan) -> Examples:
        """Returns the examples that the plan of one step selects, from NumPy or JAX arrays."""
        ...


class EpochSampler:
    """Shuffles whole examples; the order of an epoch depends only on the seed and the epoch.

    The last, smaller batch of an epoch is dropped, so that all batches have the same shape.
    """

    def __init__(self, size: int, batch_size: int, seed: int):
        """Creates a sampler.

        Args:
          size: number of examples, at least `batch_size`; see `check_batch_size`.
          batch_size: number of examples per training step.
          seed: seed of the order of the examples.
        """
        self.batch_size = batch_size
        self._steps_per_epoch = size // batch_size
        self._epoch_order = lru_cache(maxsize=2)(
            lambda epoch: np.random.default_rng((seed, epoch)).permutation(size).astype(np.int32)
        )

    def plan(self, first: int, count: int) -> np.ndarray:
        """Returns row indices `[count, batch]` of the steps `first, ..., first + count - 1`."""
        rows = np.empty((count, self.batch_size), np.int32)
        for k in range(count):
            epoch, position = divmod(first + k, self._steps_per_epoch)
            begin = position * self.batch_size
            rows[k] = self._epoch_order(epoch)[begin : begin + self.batch_size]
        return rows

    def get_batch(self, examples: Examples, plan: Any) -> Examples:
        """Returns the examples at the row indices of a plan."""
        return take(examples, plan)


def shuffled_batches(examples: Examples, batch_size: int, seed: int) -> Iterator[Any]:
    """Yields batches forever, in the order of `EpochSampler`.

    Args:
      examples: a pytree of arrays with at least `batch_size` examples; see `check_batch_size`.
      batch_size: number of examples per batch.
      seed: seed of the order of the examples.
    """
    sampler, step = EpochSampler(num_examples(examples), batch_size, seed), 0
    while True:
        yield take(examples, sampler.plan(step, 1)[0])
        step += 1


def check_batch_size(examples: Examples, batch_size: int, owner: str = "train") -> None:
    """Raises ValueError if there are fewer examples than one batch needs."""
    size = num_examples(examples)
    if size < batch_size:
        raise ValueError(
            f"{owner}: batch_size must be at most the {size} training examples, got {batch_size}; "
            "set a smaller batch_size"
        )


def rows_in_order(size: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the row indices of all examples in order, in batches.

    Returns:
      `rows`: `[batches, batch]` int32; the last batch is padded with the index of the last example.
      `row_mask`: `[batches, batch]` bool, False for padding.
    """
    rows = np.arange(-(-size // batch_size) * batch_size).reshape(-1, batch_size)
    return np.minimum(rows, size - 1).astype(np.int32), rows < size


def pad_first_axis(tree: Any, size: int) -> Any:
    """Pads arrays with zeros along the first axis to length `size`."""
    pad = lambda array: np.pad(array, [(0, size - len(array))] + [(0, 0)] * (array.ndim - 1))
    return jax.tree.map(pad, tree)


def take(examples: Examples, rows: Any) -> Any:
    """Returns the examples at the given row indices."""
    return jax.tree.map(lambda array: array[rows], examples)


def num_examples(examples: Examples) -> int:
    """Returns the number of examples."""
    return len(jax.tree.leaves(examples)[0])


def fits_on_device(examples: Examples) -> bool:
    """Returns whether all examples together take at most `DEVICE_BYTES`."""
    return num_bytes(examples) <= DEVICE_BYTES


def num_bytes(examples: Examples) -> int:
    """Returns the size of all examples in bytes."""
    return sum(array.nbytes for array in jax.tree.leaves(examples))
