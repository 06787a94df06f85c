"""Lyapunov exponents: how fast two carries that are close draw apart, or together, on one input."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jrnn.cell import Carry, Cell, Inputs, Params
from jrnn.engines.inputs import CanonicalInputs, canonicalize
from jrnn.layer import SequenceInputs
from jrnn.masking import apply_resets, tree_where, zero_where


class Lyapunov(NamedTuple):
    """The Lyapunov exponents of each sequence. A pytree: it passes through jit and vmap.

    Attributes:
      exponents: `[B, count]`, in nats per step, the largest first; NaN where no step counts. The
        order is that of the columns of Q and not sorted, so that the sum of the first k is the
        growth of volumes in k dimensions, whatever `count`: two that are almost equal may stand
        the other way round until they have settled.
      steps: `[B]` int32, over how many steps the mean is taken.
      carry: the final carry, leaves `[B, ...]`, as `jrnn.unroll` returns it.
      history: `[T, B]`, in the order of time: the largest exponent as it stood after each step. It
        has settled once it no longer drifts. On padding it stays as it was; NaN until a step
        counts.
    """

    exponents: jax.Array
    steps: jax.Array
    carry: Carry
    history: jax.Array

    @property
    def largest(self) -> jax.Array:
        """The largest exponent `[B]`: above zero is chaos, below zero forgets its first carry."""
        return self.exponents[..., 0]

    @property
    def entropy(self) -> jax.Array:
        """The sum of the positive exponents `[B]`, in nats per step.

        It bounds the entropy rate of Kolmogorov and Sinai from above (Ruelle), and is mostly equal
        to it (Pesin).
        """
        return jnp.where(self.exponents <= 0, 0, self.exponents).sum(axis=-1)

    @property
    def dimension(self) -> jax.Array:
        """The dimension `[B]` of the attractor by Kaplan and Yorke.

        ::

            D = k + (e_1 + ... + e_k) / |e_k+1|,   k the largest with e_1 + ... + e_k >= 0

        Where all partial sums are positive it is `count`: with fewer exponents than the carry has
        numbers that is a lower bound.
        """
        exponents = jnp.sort(self.exponents, axis=-1, descending=True)
        sums = jnp.cumsum(exponents, axis=-1)
        count = sums.shape[-1]
        k = (sums >= 0).sum(axis=-1, keepdims=True)
        inside = jnp.take_along_axis(sums, jnp.maximum(k - 1, 0), axis=-1)
        following = jnp.take_along_axis(exponents, jnp.minimum(k, count - 1), axis=-1)
        between = (k > 0) & (k < count)
        rest = jnp.where(between, inside, 0) / jnp.where(between, jnp.abs(following), 1)
        return jnp.where(jnp.isnan(self.largest), jnp.nan, (k + rest)[..., 0])


def lyapunov(
    cell: Cell,
    params: Params,
    xs: Inputs,
    carry: Carry | None = None,
    *,
    count: int | None = None,
    skip: int = 0,
    lengths: jax.Array | None = None,
    mask: jax.Array | None = None,
    resets: jax.Array | None = None,
    reverse: bool = False,
    key: jax.Array | None = None,
) -> Lyapunov:
    """The Lyapunov exponents of a cell that is driven by inputs, by QR at every step.

    With J_t the derivative of the new carry by the old one at step t, for each t in scan order::

        Q_t R_t = J_t Q_t-1                        Q_t with orthonormal columns
        exponents[k] = mean over t of log |R_t[k, k]|

    The largest one is the rate at which a small difference between two carries grows, in nats (by a
    factor of e) per step. Below zero the cell forgets where it began, and its carries can be solved
    for at all steps at once by Newton's method in few iterations (Gonzalez et al.); far below zero
    its gradients vanish, and above zero they explode. With all exponents, their sum is the mean of
    log |det J_t|.

    The carry of one sequence counts as a vector of n real numbers, of all its leaves together, and
    a complex number as two. Leaves of integers have no derivative and are held fixed. J_t is never
    formed: `jax.jvp` of the step is applied to the columns of Q. Memory is that of Q,
    B·n·count numbers, whatever T. Gradients by `params`, `xs` and `carry` work while the exponents
    are finite, as regularising by them needs it (Engelken, gradient flossing).

    *Start.* Q_0 is random, but the same in each call and for each sequence: not the identity, whose
    columns may lie where the cell never leads out of. Where J_t is triangular (layers that only
    feed forward) the first column of the identity would give the exponent of the last layer alone,
    largest or not. It takes some steps until Q has turned to the directions of growth, as until the
    carry is on its attractor: `skip` both.

    *Resets.* A carry that has just been reset does not depend on the past: nothing of a difference
    lives on, and the mean of such a step's logarithm would be minus infinity for every cell. So a
    reset starts anew: Q is Q_0 again, and the step with the reset moves it, from the initial carry,
    but does not count. The exponents are the mean over all segments.

    *Singular steps.* Where J_t is singular (dead relu units), an exponent is minus infinity, and
    nothing is masked. The QR of LAPACK and its like stays orthonormal then: a column that
    becomes exactly zero is replaced by some direction at right angles to the columns before it. But
    rounding often turns a zero of R into some 1e-8 (float32) or 1e-17 (float64) of the largest, so
    that exponents of minus infinity may come out as large negative numbers instead: no exponent
    is to be trusted that lies more than 15 nats (float32), or 35 (float64), below the largest.

    Args:
      cell: any cell.
      params: its parameters, from `cell.init`.
      xs: inputs `[T, B, input]`, or a pytree of leaves `[T, B, ...]`.
      carry: the first carry, leaves `[B, ...]`; by default `cell.init_carry`.
      count: how many exponents, the largest first, 1 to n; by default all n. One is cheap.
      skip: how many steps at the start of each sequence, and after each reset, move carry and Q but
        do not count.
      lengths: `[B]` ints, the number of valid steps of each sequence; the others do not count.
      mask: `[T, B]` bool, True on valid steps, in any pattern.
      resets: `[T, B]` bool; True replaces the carry by the cell's own initial carry before step t.
      reverse: go from the last valid step to the first.
      key: randomness for cells with noise; None means deterministic, at the expected value.

    Returns:
      A `Lyapunov`. Without a step that counts (T = 0, say) exponents are NaN, as a mean over
      nothing is. A NaN in a sequence makes its own exponents NaN, even if a reset follows, and no
      others.

    Raises:
      ValueError: a shape does not fit, `count` is not in 1 to n, or `skip` is negative.
      TypeError: a dtype or the structure of the carry does not fit, or it has no floating leaf.

    >>> import jax, jax.numpy as jnp, jrnn
    >>> cell = jrnn.LSTM(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> xs = jax.random.normal(jax.random.key(1), (200, 2, 3))
    >>> found = lyapunov(cell, params, xs, skip=50)
    >>> found.exponents.shape, int(found.steps[0]), bool((found.largest < 0).all())
    ((2, 8), 150, True)

    References:
      Benettin, Galgani, Giorgilli and Strelcyn, 1980, Lyapunov characteristic exponents for smooth
      dynamical systems and for Hamiltonian systems; a method for computing all of them.
      Engelken, Wolf and Abbott, 2023, Lyapunov spectra of chaotic recurrent neural networks.
      Engelken, 2023, Gradient flossing: improving gradient descent through dynamic control of
      Jacobians.
      Gonzalez et al., 2025, Predictability enables parallelization of nonlinear state space models.
      Vogt et al., 2022, On Lyapunov exponents for RNNs: understanding information propagation using
      dynamical systems tools.
    """
    if isinstance(skip, bool) or not isinstance(skip, int) or skip < 0:
        raise ValueError(f"lyapunov: skip must be an int of at least 0 steps, got {skip!r}")
    if not isinstance(cell, Cell):
        raise TypeError(
            f"lyapunov: cell must be a jrnn.Cell such as jrnn.LSTM(64), got {cell!r}; those of a "
            "stack are the exponents of its cells, each on the outputs of the one below it"
        )
    inputs = SequenceInputs(xs, carry, lengths, mask, resets, key, reverse)
    return _lyapunov(cell, params, inputs, skip, count)


@partial(jax.jit, static_argnames=("cell", "count"))
def _lyapunov(
    cell: Cell, params: Params, inputs: SequenceInputs, skip: int | jax.Array, count: int | None
) -> Lyapunov:
    run = canonicalize(cell, params, inputs)
    size = _size(cell, run.carry)
    count = size if count is None else count
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= size:
        raise ValueError(
            f"lyapunov: count must be an int in 1 to {size}, the numbers in the carry of one "
            f"sequence of {type(cell).__name__}, got {count!r}"
        )
    batch = jax.tree.leaves(run.carry)[0].shape[0]
    start = _first_frame(size, count, batch, _dtype(run.carry))
    zeros, skip = jnp.zeros(batch, jnp.int32), jnp.asarray(skip, jnp.int32)

    def body(state, step):
        carry, frame, sums, steps, wait = state
        x, valid, reset, nan_steps = step
        before, frame, wait = apply_resets(
            reset, (run.masks.initial, start, jnp.maximum(zeros + skip, 1)), (carry, frame, wait)
        )
        after, moved = _push(run, before, zero_where(valid, x), frame)
        # On padding nothing of the step is looked at, so that no NaN gets into a gradient there.
        turned, growth = _orthonormal(tree_where(valid, moved, frame))
        lost = jnp.isnan(_pack(after, start.dtype)).any(axis=-1)  # the relu of a NaN has slope 0
        lost = lost if nan_steps is None else lost | nan_steps
        counts = wait <= 0 if valid is None else (wait <= 0) & valid
        sums = sums + jnp.log(tree_where(counts, growth, jnp.ones_like(growth)))
        sums = tree_where(lost & counts, jnp.full_like(sums, jnp.nan), sums)
        steps = steps + counts
        after, turned, later = tree_where(
            valid, (after, turned, jnp.maximum(wait - 1, 0)), (before, frame, wait)
        )
        return (after, turned, sums, steps, later), _mean(sums[:, 0], steps)

    state = (run.carry, start, jnp.zeros_like(start[:, 0]), zeros, zeros + skip)
    xs = (run.xs, run.masks.valid, run.masks.resets, run.nan_steps)
    (carry, _, sums, steps, _), history = lax.scan(body, state, xs, reverse=run.reverse)
    return Lyapunov(_mean(sums, steps[:, None]), steps, run.cast_carry(carry), history)


def _push(
    run: CanonicalInputs, before: Carry, x: Inputs, frame: jax.Array
) -> tuple[Carry, jax.Array]:
    """The carry after a step, and J times each column of the frame `[B, n, count]`."""

    def step(vector: jax.Array) -> tuple[jax.Array, Carry]:
        after, _ = run.bound.step(_unpack(vector, before), x)
        return _pack(after, frame.dtype), after

    vector = _pack(before, frame.dtype)
    column = lambda tangent: jax.jvp(step, (vector,), (tangent,), has_aux=True)[1:]
    moved, after = jax.vmap(column, in_axes=-1, out_axes=(-1, None))(frame)
    return after, moved


def _orthonormal(frame: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The Q `[B, n, count]` of a frame, and the absolute values `[B, count]` of the diagonal of R.

    One column alone is divided by its norm, without overflow or underflow of the squares.
    """
    if frame.shape[-1] > 1:
        q, r = jnp.linalg.qr(frame)
        return q, jnp.abs(jnp.diagonal(r, axis1=-2, axis2=-1))
    most = lax.stop_gradient(jnp.abs(frame).max(axis=-2, keepdims=True))
    first = jnp.zeros_like(frame).at[..., 0, :].set(1)  # as LAPACK does with a column of zeros
    scaled = jnp.where(most == 0, first, frame / jnp.where(most == 0, 1, most))
    norm = jnp.sqrt(jnp.square(scaled).sum(axis=-2, keepdims=True))
    return scaled / norm, (most * norm)[..., 0]


def _mean(sums: jax.Array, steps: jax.Array) -> jax.Array:
    return jnp.where(steps > 0, sums / jnp.maximum(steps, 1), jnp.nan)


def _first_frame(size: int, count: int, batch: int, dtype: jnp.dtype) -> jax.Array:
    """Random orthonormal columns `[B, n, count]`; the first few are the same for each count."""
    key = jax.random.key(0, impl="threefry2x32")
    draw = lambda k: jax.random.normal(jax.random.fold_in(key, k), (size,), dtype)
    columns, _ = _orthonormal(jax.vmap(draw, out_axes=-1)(jnp.arange(count)))
    return jnp.broadcast_to(columns, (batch, size, count))


def _moving(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _numbers(leaf: jax.Array) -> int:
    """How many real numbers of one sequence are in a leaf `[B, ...]`."""
    return math.prod(leaf.shape[1:]) * (2 if jnp.iscomplexobj(leaf) else 1)


def _size(cell: Cell, carry: Carry) -> int:
    size = sum(_numbers(leaf) for leaf in jax.tree.leaves(carry) if _moving(leaf))
    if size == 0:
        dtypes = [leaf.dtype.name for leaf in jax.tree.leaves(carry)]
        raise TypeError(
            f"lyapunov: the carry of {type(cell).__name__} must have a floating leaf to "
            f"differentiate by, got leaves of dtypes {dtypes}"
        )
    return size


def _dtype(carry: Carry) -> jnp.dtype:
    """That of the floats in a carry, but float32 at least: there is no QR of anything narrower."""
    leaves = [leaf for leaf in jax.tree.leaves(carry) if _moving(leaf)]
    return jnp.result_type(jnp.float32, *(jnp.finfo(leaf.dtype).dtype for leaf in leaves))


def _pack(carry: Carry, dtype: jnp.dtype) -> jax.Array:
    """The floats of a carry, leaves `[B, ...]`, as real vectors `[B, n]`."""
    leaves = [leaf for leaf in jax.tree.leaves(carry) if _moving(leaf)]
    flat = [leaf.reshape(len(leaf), math.prod(leaf.shape[1:])) for leaf in leaves]
    columns = [
        [leaf.real, leaf.imag] if jnp.iscomplexobj(leaf) else [leaf.astype(dtype)] for leaf in flat
    ]
    return jnp.concatenate([p.astype(dtype) for pair in columns for p in pair], axis=-1)


def _unpack(vectors: jax.Array, carry: Carry) -> Carry:
    """The inverse of `_pack`; leaves without floats are those of the given carry."""
    leaves, structure = jax.tree.flatten(carry)
    at, out = 0, []
    for leaf in leaves:
        if not _moving(leaf):
            out.append(leaf)
            continue
        part = vectors[:, at : at + _numbers(leaf)].astype(jnp.finfo(leaf.dtype).dtype)
        at += _numbers(leaf)
        if jnp.iscomplexobj(leaf):
            part = lax.complex(*jnp.split(part, 2, axis=-1))
        out.append(part.reshape(leaf.shape))
    return jax.tree.unflatten(structure, out)
