"""Loaders: they transfer the examples of training steps to the device."""

import itertools
import threading
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import jax
import numpy as np

from jrnn import checks
from jrnn.distributed.mesh import Mesh
from jrnn.train.data.arrays import to_arrays, to_batch
from jrnn.train.data.sampler import (
    BatchPlan,
    Examples,
    Sampler,
    fits_on_device,
    num_bytes,
    num_examples,
    pad_first_axis,
    take,
)

STREAMED_BYTES = 2**26
"""Maximum size in bytes of one transfer of several batches, summed over all processes."""
THREADS = 4
"""Number of threads that prefetch batches."""


class Loader(Protocol):
    """Provides examples to a compiled loop over training steps.

    Attributes:
      max_steps: maximum number of steps per call of `next`.
    """

    max_steps: int

    def next(self, first: int, count: int) -> tuple[Examples, BatchPlan]:
        """Returns the examples of the steps `first, ..., first + count - 1`, counted from 0.

        Returns:
          Examples on the device, and plans with first axis `max_steps`, of which the first `count`
          are valid. `get_batch` selects the batch of one step.
        """
        ...

    def peek(self) -> tuple[Examples, BatchPlan]:
        """Returns the result of `next`, for tracing: arrays or `jax.ShapeDtypeStruct`s."""
        ...

    def get_batch(self, examples: Examples, plan: BatchPlan) -> Any:
        """Returns the batch of one step, within `jax.jit`."""
        ...


class PrefetchedBatches:
    """Reads the batches of training steps in background threads of the library grain.

    The batch of a step depends only on the step number, not on which thread reads it.
    """

    def __init__(self, examples: Examples, sampler: Sampler, prefetch: int, rows: np.ndarray):
        """Creates a data source for grain.

        Args:
          examples: a pytree of NumPy arrays.
          sampler: selects the examples of each step.
          prefetch: number of batches to read ahead.
          rows: indices of the rows of each batch that this process reads.
        """
        self._examples, self._sampler, self._prefetch = examples, sampler, prefetch
        self._rows = rows
        self._sampler_lock = threading.Lock()
        self._next_step, self._batches = -1, iter(())

    def __len__(self) -> int:
        return np.iinfo(np.int32).max  # the number of training steps is not known

    def __getitem__(self, step: int) -> Any:
        """Returns the local rows of the batch of a step, counted from 0."""
        with self._sampler_lock:  # samplers are not thread-safe: they cache the order of an epoch
            plan = self._sampler.plan(step, 1)
        select_rows = lambda array: array[0] if array.ndim == 1 else array[0][self._rows]
        return self._sampler.get_batch(self._examples, jax.tree.map(select_rows, plan))

    def read(self, first: int, count: int) -> list[Any]:
        """Returns the batches of the steps `first, ..., first + count - 1`."""
        import grain  # slow to import, and most runs do not need it

        if first != self._next_step:
            options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=self._prefetch)
            source: Any = self
            steps = grain.MapDataset.source(source)[first:]
            self._batches = iter(steps.to_iter_dataset(options))
        self._next_step = first + count
        return [next(self._batches) for _ in range(count)]


class DataLoader:
    """Loads the examples that a sampler selects.

    If all examples fit on the device, they are transferred once, and batches are selected on the
    device. Otherwise batches are streamed: those of the next steps are transferred before each
    dispatch. With several processes, batches are always streamed, and each process reads the rows
    of its own devices. Shapes are constant in both cases, so that nothing is compiled again.
    """

    def __init__(
        self, examples: Examples, sampler: Sampler, max_steps: int, mesh: Mesh | None = None
    ):
        """Creates a loader.

        Args:
          examples: a pytree of NumPy arrays.
          sampler: selects the examples of each step.
          max_steps: maximum number of steps per call of `next`; the attribute is smaller if batches
            are streamed, and that many are larger than `STREAMED_BYTES`.
          mesh: the devices; None means one device.
        """
        self._sampler, self._mesh = sampler, mesh or Mesh()
        self._on_device = fits_on_device(examples) and jax.process_count() == 1
        if self._on_device:
            self._examples = self._mesh.replicate(examples)
        else:
            rows = self._mesh.local_rows(sampler.batch_size)
            self._row = PrefetchedBatches(examples, sampler, 1, rows[:1])[0]
            row_bytes = num_bytes(self._row)
            streamed_steps = STREAMED_BYTES // max(row_bytes * sampler.batch_size, 1)
            max_steps = min(max_steps, max(1, streamed_steps))
            self._prefetched = PrefetchedBatches(examples, sampler, max_steps, rows)
        self.max_steps = max_steps

    def next(self, first: int, count: int) -> tuple[Examples, BatchPlan]:
        """Returns examples on the device, and plans `[max_steps, ...]`; see `Loader`."""
        if self._on_device:
            plan = self._sampler.plan(first, count)
            return self._examples, pad_first_axis(plan, self.max_steps)
        batches = self._prefetched.read(first, count)
        return _transfer(batches, self._mesh, self._sampler.batch_size, self.max_steps)

    def peek(self) -> tuple[Examples, BatchPlan]:
        """Returns the result of `next`, for tracing; see `Loader`."""
        if self._on_device:
            return self.next(0, 1)
        return _abstract_batches(self._row, self._sampler.batch_size, self.max_steps)

    def get_batch(self, examples: Examples, plan: BatchPlan) -> Any:
        """Returns the batch of one step, sharded over the mesh, within `jax.jit`."""
        batch = self._sampler.get_batch(examples, plan) if self._on_device else take(examples, plan)
        return self._mesh.constrain_batch(batch)


class IteratorLoader:
    """Loads the batches of an iterable in order; a resumed run skips those it has used.

    An iterable that can be iterated over again, such as a list or a PyTorch `DataLoader`, restarts
    at its end; an iterator is used once. All batches must have the same shapes and dtypes, since
    all steps share one compilation.

    Attributes:
      batch_size: number of examples per batch.
      max_steps: maximum number of steps per call of `next`.
    """

    def __init__(self, batches: Iterable[Any], max_steps: int, mesh: Mesh | None = None):
        """Reads the first batch, for its shapes.

        Args:
          batches: the iterable; each batch is a pytree of arrays.
          max_steps: maximum number of steps per call of `next`; the attribute is smaller if that
            many batches are larger than `STREAMED_BYTES`.
          mesh: the devices; None means one device.

        Raises:
          TypeError: the first batch has leaves that are not arrays.
          ValueError: the iterable is empty, or the arrays of its first batch have no common first
            axis.
        """
        self._batches, self._mesh = _cycle(batches), mesh or Mesh()
        self._position = 0
        first = next(self._batches, None)
        if not jax.tree.leaves(first):
            raise ValueError(
                f"fit: data must yield batches of arrays, got {checks.describe(first)}; pass a "
                "non-empty iterable"
            )
        self._batches = itertools.chain([first], self._batches)
        self._first = first = to_batch("data", first)
        self.batch_size = num_examples(first)
        self._shapes = _describe_shapes(first)
        streamed_steps = STREAMED_BYTES // max(num_bytes(first), 1)
        self.max_steps = min(max_steps, max(1, streamed_steps))

    def next(self, first: int, count: int) -> tuple[Examples, BatchPlan]:
        """Returns batches on the device, and the position of each; see `Loader`.

        Raises:
          ValueError: the iterable has ended, or a batch differs in shapes or dtypes from the first.
        """
        skipped = first - self._position
        batches = [
            to_arrays("data batch", batch)
            for batch in itertools.islice(self._batches, skipped, skipped + count)
        ]
        self._position = first + count
        if len(batches) < count:
            raise ValueError(
                "fit: data must have a batch for each training step, got none for step "
                f"{first + len(batches) + 1}; pass a list or another iterable that can be "
                "repeated, or lower steps"
            )
        for step, batch in enumerate(batches, first):
            if _describe_shapes(batch) != self._shapes:
                raise ValueError(
                    "fit: all batches of data must have the shapes and dtypes of the first, "
                    f"{checks.shorten(self._shapes)}, got "
                    f"{checks.shorten(_describe_shapes(batch))} for step {step + 1}; pad it or "
                    "drop it"
                )
        return _transfer(batches, self._mesh, self.batch_size, self.max_steps)

    def peek(self) -> tuple[Examples, BatchPlan]:
        """Returns the result of `next`, for tracing; see `Loader`."""
        return _abstract_batches(self._first, self.batch_size, self.max_steps)

    def get_batch(self, examples: Examples, plan: BatchPlan) -> Any:
        """Returns the batch of one step, sharded over the mesh, within `jax.jit`."""
        return self._mesh.constrain_batch(take(examples, plan))


def _transfer(
    batches: list[Any], mesh: Mesh, batch_size: int, max_steps: int
) -> tuple[Examples, BatchPlan]:
    """Returns batches as arrays `[max_steps, batch, ...]` on the devices, and their positions."""
    stacked = jax.tree.map(lambda *parts: np.stack(parts), *batches)
    return mesh.shard_batches(pad_first_axis(stacked, max_steps), batch_size), np.arange(max_steps)


def _abstract_batches(batch: Any, batch_size: int, max_steps: int) -> tuple[Examples, BatchPlan]:
    """Returns the result of `_transfer` as `jax.ShapeDtypeStruct`s, from some rows of a batch."""

    def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
        dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
        return jax.ShapeDtypeStruct((max_steps, batch_size, *leaf.shape[1:]), dtype)

    return jax.tree.map(abstract, batch), np.arange(max_steps)


def _cycle(batches: Iterable[Any]) -> Iterator[Any]:
    """Yields the batches, forever if the iterable can be iterated over again."""
    while True:
        iterator, is_empty = iter(batches), True
        for batch in iterator:
            is_empty = False
            yield batch
        if is_empty or iterator is batches:
            return


def _describe_shapes(batch: Any) -> str:
    leaf = lambda array: f"{np.asarray(array).dtype}{list(np.shape(array))}"
    return str(jax.tree.map(leaf, batch))


def iterate_batches(examples: Examples, batch_size: int) -> Iterator[Any]:
    """Yields all examples in order; the last batch may be smaller."""
    for begin in range(0, num_examples(examples), batch_size):
        yield take(examples, slice(begin, begin + batch_size))
