"""How examples come to the device: from a split that lies there, or a few batches at a time."""

import threading
from typing import Any

import jax
import numpy as np

from jrnn.tasks.task import Split
from jrnn.train.data import Plan, Reader, filled, fits, nbytes, take
from jrnn.train.mesh import Mesh

SENT = 2**26
"""Bytes of examples that are sent at a time, by all processes together."""
THREADS = 4
"""Threads that gather batches to be sent."""


class Batches:
    """The batches of all steps, read by grain in the background some steps ahead.

    What a step is given depends on the number of the step alone, whichever thread reads it.
    """

    def __init__(self, split: Split, reader: Reader, ahead: int, rows: np.ndarray):
        """Reads some rows of each batch, and at most so many steps ahead."""
        self._split, self._reader, self._ahead, self._rows = split, reader, ahead, rows
        self._planning = threading.Lock()
        self._next, self._steps = -1, iter(())

    def __len__(self) -> int:
        return np.iinfo(np.int32).max

    def __getitem__(self, step: int) -> Split:
        """The rows of the batch of a step, counted from 0."""
        with self._planning:  # readers draw an epoch where they first need it
            plan = self._reader.plan(step, 1)
        own = lambda array: array[0] if array.ndim == 1 else array[0][self._rows]
        return self._reader.batch(self._split, jax.tree.map(own, plan))

    def take(self, first: int, count: int) -> list[Split]:
        """The batches of some steps."""
        import grain  # takes a while, and most runs have no need of it

        if first != self._next:
            options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=self._ahead)
            source: Any = self
            steps = grain.MapDataset.source(source)[first:]
            self._steps = iter(steps.to_iter_dataset(options))
        self._next = first + count
        return [next(self._steps) for _ in range(count)]


class Feed:
    """Examples for many steps at once: a source on the device, and what each step takes of it.

    A split that fits is put on the device once. Of a larger one the batches of the next steps are
    sent, and the source is these; of several processes each reads and sends the rows that lie on
    its own devices. Either way all shapes stay as they are.
    """

    def __init__(self, split: Split, reader: Reader, most: int, mesh: Mesh | None = None):
        """At most `most` steps at once, and fewer where these would be too much to send."""
        self._reader, self._mesh = reader, mesh or Mesh()
        self._whole = fits(split) and jax.process_count() == 1
        if self._whole:
            self._source = self._mesh.everywhere(split)
        else:
            rows = self._mesh.rows(reader.batch_size)
            row = nbytes(Batches(split, reader, 1, rows[:1])[0])
            most = min(most, max(1, SENT // max(row * reader.batch_size, 1)))
            self._batches = Batches(split, reader, most, rows)
        self.most = most

    def next(self, first: int, count: int) -> tuple[Split, Plan]:
        """The source, and plans `[most, ...]` of which the first `count` are to be used."""
        if self._whole:
            return self._source, filled(self._reader.plan(first, count), self.most)
        sent = jax.tree.map(lambda *parts: np.stack(parts), *self._batches.take(first, count))
        sent = self._mesh.batches(filled(sent, self.most), self._reader.batch_size)
        return sent, np.arange(self.most)

    def batch(self, source: Split, plan: Plan) -> Split:
        """The examples of one step, on the device."""
        batch = self._reader.batch(source, plan) if self._whole else take(source, plan)
        return self._mesh.split(batch)
