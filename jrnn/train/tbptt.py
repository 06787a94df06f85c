"""Truncated backpropagation through time: windows of long streams, and the carry handed over."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jrnn import checks
from jrnn.cell import Carry
from jrnn.nn import SequenceToSequence
from jrnn.tasks.task import Data, Split
from jrnn.train.data import check_batch_size, whole_rows
from jrnn.train.objective import Objective, Sums
from jrnn.train.step import Evaluation, Weights


@dataclass(frozen=True)
class TBPTT:
    """Every k1 steps the parameters are updated, by errors of these steps, sent back through k2.

    ::

        window w:   loss over the steps w·k1 + 1, ..., (w + 1)·k1
                    gradient through the steps (w + 1)·k1 - max(k1, k2) + 1, ..., (w + 1)·k1
                    carry before them: from the window before, without gradient

    With k2 below k1 the loss counts the last k2 steps of a window alone, and is 0 where none of
    these is valid. A stream is one example
    of the task, or, where examples follow one another as in `Text`, all of them, cut into as many
    streams as a batch has rows. It begins with the cell's own carry. Validation and test go through
    every step of every stream with the carry handed over.

    Args:
      k1: steps between two updates; None means all steps of an example. Must divide these.
      k2: steps that an error is sent back; None means k1.

    Raises:
      ValueError: k1 or k2 is not a positive int.

    References:
      Williams and Peng, 1990, An efficient gradient-based algorithm for on-line training of
      recurrent network trajectories. It is their BPTT(h; h') with h = k2 and h' = k1.
    """

    k1: int | None = None
    k2: int | None = None

    def __post_init__(self) -> None:
        for name in ("k1", "k2"):
            if getattr(self, name) is not None:
                checks.positive_int("TBPTT", name, getattr(self, name))

    def window(self, data: Data) -> "Window":
        """k1 and k2 for a task's data.

        Raises:
          ValueError: k1 does not divide the steps of an example, the task has one target for a
            whole sequence, or its examples follow one another and have lengths.
        """
        if not data.target.endswith("per_step"):
            raise ValueError(
                f"TBPTT: needs a task with a target at each step, and this one has "
                f"{data.target!r}; leave out tbptt"
            )
        k1 = data.train.xs.shape[1] if self.k1 is None else self.k1
        for name in ("train", "validation", "test"):
            split: Split = getattr(data, name)
            steps = split.xs.shape[1]
            if k1 == 0 or steps % k1:
                raise ValueError(
                    f"TBPTT: k1 must divide the {steps} steps of a {name} example, got {k1}"
                )
            if data.contiguous and split.lengths is not None:
                raise ValueError(
                    "TBPTT: examples that follow one another cannot have lengths; leave out tbptt, "
                    "or set contiguous=False"
                )
        return Window(k1, k1 if self.k2 is None else self.k2)


def check_streams(data: Data, window: "Window", batch_size: int) -> None:
    """Refuses a batch with more rows than the training split has streams to make."""
    if not data.contiguous:
        check_batch_size(data.train, batch_size)
        return
    total = windows_of(data.train, window.k1)
    if total < batch_size:
        raise ValueError(
            f"train: batch_size must be at most the {total} windows of {window.k1} steps, got "
            f"{batch_size}"
        )


def windows_of(split: Split, k1: int) -> int:
    """How many windows all examples of a split have."""
    size, steps = split.xs.shape[:2]
    return size * (steps // k1)


def streams(data: Data, split: Split, k1: int, rows: int, *, whole: bool) -> Split:
    """Cuts a split into windows of streams.

    Args:
      data: says whether examples follow one another.
      split: its training split, or another.
      k1: steps of a window; divides the steps of an example.
      rows: how many streams are made of one.
      whole: whether the last windows are kept where they do not fill all rows.

    Returns:
      Arrays `[streams, windows, k1, ...]`, and lengths `[streams]`: the valid steps of each stream,
      or None where all are full.
    """
    size, length = split.xs.shape[:2]
    windows = length // k1
    if data.contiguous:
        total = size * windows
        windows = -(-total // rows) if whole else total // rows
        kept = np.minimum(np.arange(rows * windows), total - 1)
        steps = k1 * np.clip(total - windows * np.arange(rows), 0, windows)
    else:
        rows, kept = size, slice(None)
        steps = np.full(size, length) if split.lengths is None else split.lengths

    def cut(array: np.ndarray) -> np.ndarray:
        pieces = array.reshape(size * (length // k1), k1, *array.shape[2:])
        return pieces[kept].reshape(rows, windows, *pieces.shape[1:])

    pieces = jax.tree.map(cut, split._replace(lengths=None))
    full = np.all(steps == windows * k1)
    return pieces._replace(lengths=None if full else np.asarray(steps, np.int32))


class Place(NamedTuple):
    """Where a batch of windows lies.

    Attributes:
      rows: `[..., batch]`, which streams.
      window: `[...]`, which of their windows, from 0.
    """

    rows: Any
    window: Any


class Windows:
    """Windows of streams one after another: all of a batch of streams, then of the next batch.

    Each epoch has the streams in a new order, which depends on (seed, epoch) alone; those that do
    not fill a batch are left out. Windows that lie beyond all streams of a batch are left out too.
    """

    def __init__(self, window: "Window", split: Split, batch_size: int, seed: int):
        """For the streams of a split that `streams` has cut."""
        self.batch_size = batch_size
        self.batch = window.batch
        count, windows = split.xs.shape[:2]
        self._windows = np.full(count, windows)
        if split.lengths is not None:
            self._windows = np.maximum(-(-split.lengths // window.k1), 1)
        self._seed = seed
        self._begins = [0]
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)

    def plan(self, first: int, count: int) -> Place:
        """The places `[count]` of the steps from `first` on, counted from 0."""
        rows = np.empty((count, self.batch_size), np.int32)
        window = np.empty(count, np.int32)
        for k in range(count):
            rows[k], window[k] = self._place(first + k)
        return Place(rows, window)

    def _place(self, step: int) -> tuple[np.ndarray, int]:
        while self._begins[-1] <= step:
            _, ends = self._epoch(len(self._begins) - 1)
            self._begins.append(self._begins[-1] + int(ends[-1]))
        epoch = bisect_right(self._begins, step) - 1
        batches, ends = self._epoch(epoch)
        within = step - self._begins[epoch]
        batch = int(np.searchsorted(ends, within, "right"))
        return batches[batch], within - (int(ends[batch - 1]) if batch else 0)

    def _draw_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Batches of streams `[batches, batch]`, and at which step of the epoch each ends."""
        order = np.random.default_rng((self._seed, epoch)).permutation(len(self._windows))
        whole = len(order) // self.batch_size * self.batch_size
        batches = order[:whole].reshape(-1, self.batch_size)
        return batches, np.cumsum(self._windows[batches].max(axis=1))


class Window(NamedTuple):
    """How a window is read and run through.

    Attributes:
      k1: steps whose outputs it gives.
      k2: steps that errors are sent back through.
    """

    k1: int
    k2: int

    def batch(self, split: Any, plan: Place) -> Split:
        """A batch of windows, with the steps before them that their errors go back through.

        Args:
          split: from `streams`, arrays of NumPy or of JAX.
          plan: rows `[batch]`, and one window of these.

        Returns:
          `xs` and `resets` `[batch, before + k1, ...]` with before = max(k2 - k1, 0), lengths that
          count from there on and may lie outside it, and the targets of the window alone.
        """
        before = max(self.k2 - self.k1, 0)
        length = before + self.k1
        rows = plan.rows
        windows = (plan.window - np.arange(-(-before // self.k1), -1, -1)).clip(0)

        def joined(array: Any) -> Any:
            parts = array[rows[:, None], windows[None]]
            return parts.reshape(len(rows), -1, *parts.shape[3:])[:, -length:]

        begin = plan.window * self.k1 - before
        resets = ((begin + np.arange(length)) == 0)[None] & np.ones((len(rows), 1), bool)
        return Split(
            xs=joined(split.xs),
            ys=split.ys[rows, plan.window],
            lengths=None if split.lengths is None else split.lengths[rows] - begin,
            scored=None if split.scored is None else split.scored[rows, plan.window],
            resets=resets if split.resets is None else resets | joined(split.resets),
        )

    def run(
        self, model: SequenceToSequence, carry: Carry, batch: Any
    ) -> tuple[Carry, jax.Array, Split]:
        """Runs through a batch, with gradients through the last k2 steps.

        Returns:
          The carry that the next window begins with, the outputs of the steps that count, and the
          targets of these.
        """
        length = batch.xs.shape[1]
        without, counted = max(self.k1 - self.k2, 0), min(self.k1, self.k2)
        outputs = []
        handed = carry = jax.lax.stop_gradient(carry)
        cuts = sorted({0, without, self.k1, length})
        for begin, end in pairwise(cuts):
            carry, ys = model(
                batch.xs[:, begin:end],
                carry,
                lengths=_within(batch.lengths, begin, end),
                resets=batch.resets[:, begin:end],
            )
            outputs.append(ys)
            if end == without:
                carry = jax.lax.stop_gradient(carry)
            if end == self.k1:
                handed = jax.lax.stop_gradient(carry)
        targets = Split(
            xs=batch.xs[:, -counted:],
            ys=batch.ys[:, -counted:],
            lengths=_within(batch.lengths, length - counted, length),
            scored=None if batch.scored is None else batch.scored[:, -counted:],
        )
        return handed, jnp.concatenate(outputs, axis=1)[:, -counted:], targets

    def first_carry(self, graphdef: nnx.GraphDef, weights: Any, split: Split, rows: int) -> Carry:
        """Zeros in the form of a carry: every stream begins with a reset."""

        def run(weights: Any, xs: jax.Array) -> Carry:
            return nnx.merge(graphdef, *weights)(xs)[0]

        shape = jax.ShapeDtypeStruct((rows, 1, *split.xs.shape[3:]), split.xs.dtype)
        carry = jax.eval_shape(run, weights, shape)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), carry)


def _within(lengths: Any, begin: int, end: int) -> Any:
    """Of so many valid steps, those from `begin` to `end`."""
    return None if lengths is None else (lengths - begin).clip(0, end - begin)


def stateful_evaluation(
    graphdef: nnx.GraphDef, objective: Objective, data: Data, k1: int, batch_size: int
) -> Evaluation:
    """Evaluation on every step: each stream from its first window to its last, in one go."""
    window = Window(k1, k1)

    def sums(weights: Weights, cut: Split, places: Place, present: jax.Array) -> Sums:
        def of_window(carry: Carry, place: Place, present: jax.Array) -> tuple[Carry, Sums]:
            model = nnx.merge(graphdef, *weights, copy=True)
            model.eval()
            carry, outputs, targets = window.run(model, carry, window.batch(cut, place))
            return carry, objective.sums(outputs, targets, present)

        def add(so_far: tuple[Carry, Sums], one: tuple[Place, jax.Array]) -> Any:
            carry, found = of_window(so_far[0], *one)
            return (carry, jax.tree.map(jnp.add, so_far[1], found)), None

        carry = window.first_carry(graphdef, weights, cut, present.shape[1])
        first = jax.tree.map(lambda array: array[0], (places, present))
        shapes = jax.eval_shape(of_window, carry, *first)[1]
        nothing = jax.tree.map(jnp.zeros_like, shapes)
        return jax.lax.scan(add, (carry, nothing), (places, present))[0][1]

    def parts(split: Split) -> Iterator[tuple[Any, ...]]:
        most = windows_of(split, k1) if data.contiguous else len(split.xs)
        rows = min(batch_size, most)
        cut = streams(data, split, k1, rows, whole=True)
        batches, present = whole_rows(len(cut.xs), rows)
        windows = cut.xs.shape[1]
        number = np.tile(np.arange(windows, dtype=np.int32), len(batches))
        yield cut, Place(batches.repeat(windows, 0), number), present.repeat(windows, 0)

    return Evaluation(sums, parts)
