"""Transfer of the examples of training steps to the device."""

import itertools
import threading
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import jax
import numpy as np

from jrnn.distributed.mesh import Mesh
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
"""Bytes of examples that are sent at a time, by all processes together."""
THREADS = 4
"""Threads that gather batches to be sent."""


class Loader(Protocol):
    """Provides the examples of the next steps to a compiled function of many steps.

    Attributes:
      max_steps: largest number of steps that `next` takes.
    """

    max_steps: int

    def next(self, first: int, count: int) -> tuple[Examples, BatchPlan]:
        """Examples on the device, and plans `[max_steps, ...]`; the first `count` are used."""
        ...

    def batch(self, examples: Examples, plan: BatchPlan) -> Any:
        """Inside of compiled code: the batch of one step."""
        ...


class PrefetchedBatches:
    """The batches of all steps, read by grain in background threads.

    The batch of a step depends only on the number of the step, whichever thread reads it.
    """

    def __init__(self, examples: Examples, sampler: Sampler, ahead: int, rows: np.ndarray):
        """Reads `rows` of each batch, at most `ahead` steps before they are used."""
        self._examples, self._sampler, self._ahead = examples, sampler, ahead
        self._rows = rows
        self._planning = threading.Lock()
        self._next, self._steps = -1, iter(())

    def __len__(self) -> int:
        return np.iinfo(np.int32).max

    def __getitem__(self, step: int) -> Any:
        """The rows of the batch of a step, counted from 0."""
        with self._planning:  # a sampler draws the order of an epoch on first use
            plan = self._sampler.plan(step, 1)
        local = lambda array: array[0] if array.ndim == 1 else array[0][self._rows]
        return self._sampler.batch(self._examples, jax.tree.map(local, plan))

    def take(self, first: int, count: int) -> list[Any]:
        """The batches of the steps `first, ..., first + count - 1`."""
        import grain  # slow to import, and most runs do not need it

        if first != self._next:
            options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=self._ahead)
            source: Any = self
            steps = grain.MapDataset.source(source)[first:]
            self._steps = iter(steps.to_iter_dataset(options))
        self._next = first + count
        return [next(self._steps) for _ in range(count)]


class DataLoader:
    """Provides the examples that a sampler chooses from a split.

    A split that fits is put on the device once. The batches of a larger one are streamed: those of
    the next steps are sent before each dispatch, and each of several processes reads and sends the
    rows of its own devices. All shapes stay the same either way.
    """

    def __init__(
        self, examples: Examples, sampler: Sampler, max_steps: int, mesh: Mesh | None = None
    ):
        """For at most `max_steps` steps at once, or fewer if these are too large to be sent."""
        self._sampler, self._mesh = sampler, mesh or Mesh()
        self._on_device = fits_on_device(examples) and jax.process_count() == 1
        if self._on_device:
            self._examples = self._mesh.replicate(examples)
        else:
            rows = self._mesh.local_rows(sampler.batch_size)
            row_bytes = num_bytes(PrefetchedBatches(examples, sampler, 1, rows[:1])[0])
            streamed_steps = STREAMED_BYTES // max(row_bytes * sampler.batch_size, 1)
            max_steps = min(max_steps, max(1, streamed_steps))
            self._batches = PrefetchedBatches(examples, sampler, max_steps, rows)
        self.max_steps = max_steps

    def next(self, first: int, count: int) -> tuple[Examples, BatchPlan]:
        """Examples on the device, and plans `[max_steps, ...]`; the first `count` are used."""
        if self._on_device:
            plan = self._sampler.plan(first, count)
            return self._examples, pad_first_axis(plan, self.max_steps)
        batches = self._batches.take(first, count)
        return _send(batches, self._mesh, self._sampler.batch_size, self.max_steps)

    def batch(self, examples: Examples, plan: BatchPlan) -> Any:
        """Inside of compiled code: the batch of one step, split over the devices of the mesh."""
        batch = self._sampler.batch(examples, plan) if self._on_device else take(examples, plan)
        return self._mesh.constrain_batch(batch)


class IteratorLoader:
    """Provides the batches of an iterable in order; a resumed run skips those it has used.

    An iterable that can be iterated over again, such as a list or a `DataLoader` of PyTorch, starts
    again at its end; an iterator is used once. The shapes and dtypes of all batches must be the
    same, since all steps share one compilation.
    """

    def __init__(self, batches: Iterable[Any], max_steps: int, mesh: Mesh | None = None):
        """For at most `max_steps` steps at once, or fewer if these are too large to be sent.

        Raises:
          ValueError: the iterable is empty, or its first batch has no arrays.
        """
        self._batches, self._mesh = _repeat(batches), mesh or Mesh()
        self._position = 0
        first = next(self._batches, None)
        if not jax.tree.leaves(first):
            raise ValueError(f"fit: data must yield batches of arrays, got {first!r}")
        self._batches = itertools.chain([first], self._batches)
        first = jax.tree.map(np.asarray, first)
        self.batch_size = num_examples(first)
        self._shapes = _shapes(first)
        streamed_steps = STREAMED_BYTES // max(num_bytes(first), 1)
        self.max_steps = min(max_steps, max(1, streamed_steps))

    def next(self, first: int, count: int) -> tuple[Examples, BatchPlan]:
        """The next batches on the device, and their positions.

        Raises:
          ValueError: the iterable has ended, or a batch differs in shapes or dtypes from the first.
        """
        skipped = first - self._position
        batches = list(itertools.islice(self._batches, skipped, skipped + count))
        self._position = first + count
        if len(batches) < count:
            raise ValueError(
                f"fit: data ended after {first + len(batches)} batches, and the run has more "
                "steps; pass an iterable with a batch for each step, or lower steps"
            )
        for step, batch in enumerate(batches, first):
            if _shapes(batch) != self._shapes:
                raise ValueError(
                    f"fit: all batches must have the shapes and dtypes of the first, "
                    f"{self._shapes}; batch {step} has {_shapes(batch)}"
                )
        return _send(batches, self._mesh, self.batch_size, self.max_steps)

    def batch(self, examples: Examples, plan: BatchPlan) -> Any:
        """Inside of compiled code: the batch of one step, split over the devices of the mesh."""
        return self._mesh.constrain_batch(take(examples, plan))


def _send(
    batches: list[Any], mesh: Mesh, batch_size: int, max_steps: int
) -> tuple[Examples, BatchPlan]:
    """Batches as arrays `[max_steps, batch, ...]` on the devices, and the position of each."""
    stacked = jax.tree.map(lambda *parts: np.stack(parts), *batches)
    return mesh.shard_batches(pad_first_axis(stacked, max_steps), batch_size), np.arange(max_steps)


def _repeat(batches: Iterable[Any]) -> Iterator[Any]:
    """Yields the batches, without end if they can be iterated over again."""
    while True:
        iterator, is_empty = iter(batches), True
        for batch in iterator:
            is_empty = False
            yield batch
        if is_empty or iterator is batches:
            return


def _shapes(batch: Any) -> str:
    leaf = lambda array: f"{np.asarray(array).dtype}{list(np.shape(array))}"
    return str(jax.tree.map(leaf, batch))


def batches_of(examples: Examples, batch_size: int) -> Iterator[Any]:
    """Yields all examples in order; the last batch may be smaller."""
    for begin in range(0, num_examples(examples), batch_size):
        yield take(examples, slice(begin, begin + batch_size))
