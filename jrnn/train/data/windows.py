"""Windows of streams, for truncated backpropagation through time.

A stream is a long sequence that is cut into windows of k1 time steps. Each training step uses one
window of every stream in a batch.
"""

from bisect import bisect_right
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np

from jrnn.tasks.task import Data, Split
from jrnn.train.data.sampler import check_batch_size


class Window(NamedTuple):
    """The time steps of one parameter update.

    Attributes:
      k1: number of time steps between two updates.
      k2: number of time steps that gradients flow back through.
    """

    k1: int
    k2: int


class WindowIndex(NamedTuple):
    """The indices of the windows of a batch.

    Attributes:
      rows: `[..., batch]` int32, the indices of the streams.
      window: `[...]` int32, the index of the window in these streams, from 0.
    """

    rows: Any
    window: Any


def check_streams(data: Data, window: Window, batch_size: int, owner: str = "train") -> None:
    """Raises ValueError if the training split gives fewer streams than one batch has rows."""
    if not data.contiguous:
        check_batch_size(data.train, batch_size, owner)
        return
    total = count_windows(data.train, window.k1)
    if total < batch_size:
        raise ValueError(
            f"{owner}: batch_size must be at most the {total} windows of {window.k1} time steps, "
            f"got {batch_size}; set a smaller batch_size or k1"
        )


def count_windows(split: Split, k1: int) -> int:
    """Returns the number of windows in all examples of a split."""
    size, length = split.xs.shape[:2]
    return size * (length // k1)


def cut_streams(data: Data, split: Split, k1: int, rows: int, *, keep_last: bool) -> Split:
    """Cuts a split into windows of streams.

    Args:
      data: the data of the task; `data.contiguous` selects how streams are made.
      split: the split to cut. If examples are contiguous, they are concatenated and cut into `rows`
        streams; otherwise each example is a stream.
      k1: number of time steps per window; must divide the length of an example.
      rows: number of streams of contiguous examples; not used otherwise.
      keep_last: for contiguous examples, whether to keep the remainder that does not fill all rows,
        by padding.

    Returns:
      A split with arrays `[streams, windows, k1, ...]`. Its lengths are `[streams]`, the number of
      valid time steps of each stream, or None if all time steps are valid.
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

    The order of the streams in an epoch depends only on the seed and the epoch. Streams that do not
    fill a batch are dropped, and so are windows after the end of all streams of a batch.
    """

    def __init__(self, window: Window, split: Split, batch_size: int, seed: int):
        """Creates a sampler.

        Args:
          window: k1 and k2.
          split: the streams, from `cut_streams`.
          batch_size: number of streams per training step.
          seed: seed of the order of the streams.
        """
        self.batch_size = batch_size
        self._window = window
        count, windows = split.xs.shape[:2]
        self._num_windows = np.full(count, windows)
        if split.lengths is not None:
            self._num_windows = np.maximum(-(-split.lengths // window.k1), 1)
        self._seed = seed
        self._first_steps = [0]  # the first training step of each epoch
        self._epoch_plan = lru_cache(maxsize=2)(self._sample_epoch)

    def plan(self, first: int, count: int) -> WindowIndex:
        """Returns the windows of the training steps `first, ..., first + count - 1`.

        Returns:
          Rows `[count, batch]` and windows `[count]`.
        """
        rows = np.empty((count, self.batch_size), np.int32)
        window = np.empty(count, np.int32)
        for k in range(count):
            rows[k], window[k] = self._index(first + k)
        return WindowIndex(rows, window)

    def get_batch(self, examples: Split, plan: WindowIndex) -> Split:
        """Returns the windows of one training step; see `take_windows`."""
        return take_windows(self._window, examples, plan)

    def _index(self, step: int) -> tuple[np.ndarray, int]:
        while self._first_steps[-1] <= step:
            _, ends = self._epoch_plan(len(self._first_steps) - 1)
            self._first_steps.append(self._first_steps[-1] + int(ends[-1]))
        epoch = bisect_right(self._first_steps, step) - 1
        batches, ends = self._epoch_plan(epoch)
        step_in_epoch = step - self._first_steps[epoch]
        batch = int(np.searchsorted(ends, step_in_epoch, "right"))
        return batches[batch], step_in_epoch - (int(ends[batch - 1]) if batch else 0)

    def _sample_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns batches of streams `[batches, batch]`, and the step at which each ends."""
        order = np.random.default_rng((self._seed, epoch)).permutation(len(self._num_windows))
        complete = len(order) // self.batch_size * self.batch_size
        batches = order[:complete].reshape(-1, self.batch_size)
        return batches, np.cumsum(self._num_windows[batches].max(axis=1))


def take_windows(window: Window, streams: Any, plan: WindowIndex) -> Split:
    """Returns a batch of windows, each with the context that gradients flow back through.

    The context of a window is the C = max(k2 - k1, 0) time steps before it.

    Args:
      window: k1 and k2.
      streams: the streams from `cut_streams`, as NumPy or JAX arrays.
      plan: rows `[batch]`, and one window index.

    Returns:
      A split with `xs` and `resets` `[batch, C + k1, ...]`, the context and the window; targets
      `[batch, k1, ...]` of the window; and lengths `[batch]` counted from the first time step of
      the context, which may be negative or above C + k1.
    """
    k1, k2 = window
    context = max(k2 - k1, 0)
    length = context + k1
    rows = plan.rows
    windows = (plan.window - np.arange(-(-context // k1), -1, -1)).clip(0)

    def join(array: Any) -> Any:
        parts = array[rows[:, None], windows[None]]
        return parts.reshape(len(rows), -1, *parts.shape[3:])[:, -length:]

    begin = plan.window * k1 - context
    resets = ((begin + np.arange(length)) == 0)[None] & np.ones((len(rows), 1), bool)
    return Split(
        xs=join(streams.xs),
        ys=streams.ys[rows, plan.window],
        lengths=None if streams.lengths is None else streams.lengths[rows] - begin,
        metric_mask=None if streams.metric_mask is None else streams.metric_mask[rows, plan.window],
        resets=resets if streams.resets is None else resets | join(streams.resets),
    )
