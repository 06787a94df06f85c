"""Windows of long streams, for truncated backpropagation through time."""

from bisect import bisect_right
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np

from jrnn.tasks.task import Data, Split
from jrnn.train.data.sampler import check_batch_size


class Window(NamedTuple):
    """The steps of one update.

    Attributes:
      k1: steps that an update advances by.
      k2: steps that gradients flow back through.
    """

    k1: int
    k2: int


class WindowIndex(NamedTuple):
    """The windows of a batch.

    Attributes:
      rows: `[..., batch]`, the streams.
      window: `[...]`, which window of these streams, from 0.
    """

    rows: Any
    window: Any


def check_streams(data: Data, window: Window, batch_size: int) -> None:
    """Raises ValueError if a batch has more rows than the training split makes streams."""
    if not data.contiguous:
        check_batch_size(data.train, batch_size)
        return
    total = count_windows(data.train, window.k1)
    if total < batch_size:
        raise ValueError(
            f"train: batch_size must be at most the {total} windows of {window.k1} steps, got "
            f"{batch_size}"
        )


def count_windows(split: Split, k1: int) -> int:
    """The number of windows of all examples of a split."""
    size, steps = split.xs.shape[:2]
    return size * (steps // k1)


def cut_streams(data: Data, split: Split, k1: int, rows: int, *, keep_last: bool) -> Split:
    """Cuts a split into windows of streams.

    Args:
      data: determines whether examples are contiguous.
      split: the training split or another one.
      k1: steps of a window; divides the steps of an example.
      rows: number of streams that contiguous examples are cut into.
      keep_last: whether to keep the last windows if they do not fill all rows.

    Returns:
      Arrays `[streams, windows, k1, ...]`, and lengths `[streams]`: the valid steps of each stream,
      or None if all steps are valid.
    """
    size, length = split.xs.shape[:2]
    windows = length // k1
    if data.contiguous:
        total = size * windows
        windows = -(-total // rows) if keep_last else total // rows
        order = np.minimum(np.arange(rows * windows), total - 1)
        steps = k1 * np.clip(total - windows * np.arange(rows), 0, windows)
    else:
        rows, order = size, slice(None)
        steps = np.full(size, length) if split.lengths is None else split.lengths

    def cut(array: np.ndarray) -> np.ndarray:
        pieces = array.reshape(size * (length // k1), k1, *array.shape[2:])
        return pieces[order].reshape(rows, windows, *pieces.shape[1:])

    pieces = jax.tree.map(cut, split._replace(lengths=None))
    full = np.all(steps == windows * k1)
    return pieces._replace(lengths=None if full else np.asarray(steps, np.int32))


class WindowSampler:
    """Samples the windows of a batch of streams in order, then those of the next batch.

    Each epoch has the streams in a new order that depends only on (seed, epoch). Streams that do
    not fill a batch are dropped, and so are windows after the end of all streams of a batch.
    """

    def __init__(self, window: Window, split: Split, batch_size: int, seed: int):
        """For the streams that `cut_streams` returns."""
        self.batch_size = batch_size
        self._window = window
        count, windows = split.xs.shape[:2]
        self._windows = np.full(count, windows)
        if split.lengths is not None:
            self._windows = np.maximum(-(-split.lengths // window.k1), 1)
        self._seed = seed
        self._first_steps = [0]
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)

    def plan(self, first: int, count: int) -> WindowIndex:
        """The windows `[count]` of the steps `first, ..., first + count - 1`."""
        rows = np.empty((count, self.batch_size), np.int32)
        window = np.empty(count, np.int32)
        for k in range(count):
            rows[k], window[k] = self._index(first + k)
        return WindowIndex(rows, window)

    def batch(self, examples: Split, plan: WindowIndex) -> Split:
        """The windows of one step; see `batch_of_windows`."""
        return batch_of_windows(self._window, examples, plan)

    def _index(self, step: int) -> tuple[np.ndarray, int]:
        while self._first_steps[-1] <= step:
            _, ends = self._epoch(len(self._first_steps) - 1)
            self._first_steps.append(self._first_steps[-1] + int(ends[-1]))
        epoch = bisect_right(self._first_steps, step) - 1
        batches, ends = self._epoch(epoch)
        within = step - self._first_steps[epoch]
        batch = int(np.searchsorted(ends, within, "right"))
        return batches[batch], within - (int(ends[batch - 1]) if batch else 0)

    def _draw_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Batches of streams `[batches, batch]`, and the step of the epoch at which each ends."""
        order = np.random.default_rng((self._seed, epoch)).permutation(len(self._windows))
        complete = len(order) // self.batch_size * self.batch_size
        batches = order[:complete].reshape(-1, self.batch_size)
        return batches, np.cumsum(self._windows[batches].max(axis=1))


def batch_of_windows(window: Window, streams: Any, plan: WindowIndex) -> Split:
    """A batch of windows, preceded by the steps that their gradients flow back through.

    Args:
      window: its steps.
      streams: from `cut_streams`, arrays of NumPy or of JAX.
      plan: rows `[batch]`, and one window of these.

    Returns:
      `xs` and `resets` `[batch, before + k1, ...]` with before = max(k2 - k1, 0); lengths, counted
      from the first of these steps, which may be negative or too large; and the targets of the k1
      steps of the window.
    """
    k1, k2 = window
    before = max(k2 - k1, 0)
    length = before + k1
    rows = plan.rows
    windows = (plan.window - np.arange(-(-before // k1), -1, -1)).clip(0)

    def join(array: Any) -> Any:
        parts = array[rows[:, None], windows[None]]
        return parts.reshape(len(rows), -1, *parts.shape[3:])[:, -length:]

    begin = plan.window * k1 - before
    resets = ((begin + np.arange(length)) == 0)[None] & np.ones((len(rows), 1), bool)
    return Split(
        xs=join(streams.xs),
        ys=streams.ys[rows, plan.window],
        lengths=None if streams.lengths is None else streams.lengths[rows] - begin,
        metric_mask=None if streams.metric_mask is None else streams.metric_mask[rows, plan.window],
        resets=resets if streams.resets is None else resets | join(streams.resets),
    )
