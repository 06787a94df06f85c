"""Lyapunov exponents: the rates at which nearby carries diverge or converge on the same inputs."""

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


class LyapunovSpectrum(NamedTuple):
    """The Lyapunov exponents of each sequence. A pytree, for use with jit and vmap.

    Attributes:
      exponents: `[B, count]`, in nats per step, the largest first; NaN if no step counts. They
        have the order of the columns of Q and are not sorted, so that the sum of the first k is
        the growth rate of k-dimensional volumes for any `count`; two exponents that are almost
        equal may be in the wrong order before convergence.
      steps: `[B]` int32, the number of steps that the mean is taken over.
      carry: the final carry, leaves `[B, ...]`, as `jrnn.unroll` returns it.
      history: `[T, B]`, forward in time: the estimate of the largest exponent after each step,
        to judge convergence. Constant on padding; NaN until a step counts.
    """

    exponents: jax.Array
    steps: jax.Array
    carry: Carry
    history: jax.Array

    @property
    def largest(self) -> jax.Array:
        """The largest exponent `[B]`: above zero for chaos, below zero if the cell forgets."""
        return self.exponents[..., 0]

    @property
    def entropy(self) -> jax.Array:
        """The sum of the positive exponents `[B]`, in nats per step.

        It is an upper bound of the Kolmogorov-Sinai entropy rate (Ruelle), and often equal to it
        (Pesin).
        """
        return jnp.where(self.exponents <= 0, 0, self.exponents).sum(axis=-1)

    @property
    def dimension(self) -> jax.Array:
        """The Kaplan-Yorke dimension `[B]` of the attractor.

        ::

            D = k + (e_1 + ... + e_k) / |e_k+1|,   k the largest with e_1 + ... + e_k >= 0

        If all partial sums are non-negative it is `count`, a lower bound if `count` is below the
        size of the carry.
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
) -> LyapunovSpectrum:
    """Computes the Lyapunov exponents of a cell that is driven by inputs, by QR at every step.

    With J_t the Jacobian of the new carry with respect to the old one, for t in scan order::

        Q_t R_t = J_t Q_t-1                        Q_t with orthonormal columns
        exponents[k] = mean over t of log |R_t[k, k]|

    The largest exponent is the rate at which a small difference between two carries grows, in nats
    (factors of e) per step. Below zero the cell forgets its initial carry, and Newton's method
    solves for the carries of all steps in few iterations (Gonzalez et al.); far below zero
    gradients vanish, and above zero they explode. The sum of all exponents is the mean of
    log |det J_t|.

    The carry of one sequence is treated as a vector of n real numbers, with two for each complex
    one. Integer leaves are not perturbed. J_t is never formed: `jax.jvp` of the
    step is applied to the columns of Q. Memory is B·n·count numbers for Q, independent of T. The
    exponents are differentiable with respect to `params`, `xs` and `carry` while they are finite,
    and can be used as a regularizer (Engelken, gradient flossing).

    *Initialization.* Q_0 is random, but the same in each call and for each sequence. The identity
    would not do: its columns may span invariant subspaces. If J_t is triangular (layers without
    feedback), the first column of the identity would give the exponent of the last layer, which
    may not be the largest. Q needs some steps to align with the directions of growth, and the
    carry to reach its attractor; exclude these steps with `skip`.

    *Resets.* A carry after a reset does not depend on earlier steps, so the Jacobian is zero and
    its exponents would be minus infinity for every cell. Therefore a reset sets Q to Q_0, and the
    step at the reset updates Q from the initial carry but does not count. The exponents are means
    over all segments.

    *Singular steps.* If J_t is singular (dead relu units), an exponent is minus infinity, and is
    returned as such. LAPACK's QR still returns an orthonormal Q: a column that becomes exactly zero
    is replaced by a direction orthogonal to the previous columns. But rounding often turns a zero
    of R into about 1e-8 (float32) or 1e-17 (float64) of the largest entry, so that exponents of
    minus infinity may become large negative numbers. Do not rely on exponents that are more than
    15 nats (float32), or 35 (float64), below the largest.

    Args:
      cell: any cell.
      params: its parameters, from `cell.init`.
      xs: inputs `[T, B, input]`, or a pytree of leaves `[T, B, ...]`.
      carry: the initial carry, leaves `[B, ...]`; by default `cell.init_carry`.
      count: number of exponents, the largest first, from 1 to n; by default n.
      skip: number of steps at the start of each sequence, and after each reset, that update carry
        and Q but do not count.
      lengths: `[B]` ints, the number of valid steps of each sequence; padding does not count.
      mask: `[T, B]` bool, True on valid steps, in any pattern.
      resets: `[T, B]` bool; True replaces the carry by the cell's own initial carry before step t.
      reverse: scan from the last valid step to the first.
      key: PRNG key for stochastic cells; None uses the expected value.

    Returns:
      A `LyapunovSpectrum`. If no step counts (such as for T = 0), the exponents are NaN. A NaN in a
      sequence makes the exponents of this sequence NaN, even if a reset follows, and no others.

    Raises:
      ValueError: a shape does not fit, `count` is not from 1 to n, or `skip` is negative.
      TypeError: a dtype or the structure of the carry does not fit, or it has no floating leaf.

    >>> import jax, jax.numpy as jnp, jrnn
    >>> cell = jrnn.LSTM(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> xs = jax.random.normal(jax.random.key(1), (200, 2, 3))
    >>> spectrum = lyapunov(cell, params, xs, skip=50)
    >>> spectrum.exponents.shape, int(spectrum.steps[0]), bool((spectrum.largest < 0).all())
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
            f"lyapunov: cell must be a jrnn.Cell such as jrnn.LSTM(64), got {cell!r}; for a "
            "stack compute those of each cell on the outputs of the cell below it"
        )
    inputs = SequenceInputs(xs, carry, lengths, mask, resets, key, reverse)
    return _lyapunov(cell, params, inputs, skip, count)


@partial(jax.jit, static_argnames=("cell", "count"))
def _lyapunov(
    cell: Cell, params: Params, inputs: SequenceInputs, skip: int | jax.Array, count: int | None
) -> LyapunovSpectrum:
    run = canonicalize(cell, params, inputs)
    size = _carry_size(cell, run.carry)
    count = size if count is None else count
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= size:
        raise ValueError(
            f"lyapunov: count must be an int in 1 to {size}, the size of the carry of one "
            f"sequence of {type(cell).__name__}, got {count!r}"
        )
    batch = jax.tree.leaves(run.carry)[0].shape[0]
    start = _initial_frame(size, count, batch, _frame_dtype(run.carry))
    zeros, skip = jnp.zeros(batch, jnp.int32), jnp.asarray(skip, jnp.int32)

    def body(state, step):
        carry, frame, sums, steps, wait = state
        x, valid, reset, nan_carry = step
        prev, frame, wait = apply_resets(
            reset, (run.masks.initial, start, jnp.maximum(zeros + skip, 1)), (carry, frame, wait)
        )
        after, pushed = _push_forward(run, prev, zero_where(valid, x), frame)
        # Padding does not enter QR, so that it does not make gradients NaN.
        q, growth = _orthonormalize(tree_where(valid, pushed, frame))
        # relu has the derivative 0 at NaN, so that the Jacobian alone does not show it.
        is_nan = jnp.isnan(_flatten(after, start.dtype)).any(axis=-1)
        is_nan = is_nan if nan_carry is None else is_nan | nan_carry
        counts = wait <= 0 if valid is None else (wait <= 0) & valid
        sums = sums + jnp.log(tree_where(counts, growth, jnp.ones_like(growth)))
        sums = tree_where(is_nan & counts, jnp.full_like(sums, jnp.nan), sums)
        steps = steps + counts
        after, q, later = tree_where(
            valid, (after, q, jnp.maximum(wait - 1, 0)), (prev, frame, wait)
        )
        return (after, q, sums, steps, later), _mean(sums[:, 0], steps)

    state = (run.carry, start, jnp.zeros_like(start[:, 0]), zeros, zeros + skip)
    xs = (run.xs, run.masks.valid, run.masks.resets, run.nan_carries)
    (carry, _, sums, steps, _), history = lax.scan(body, state, xs, reverse=run.reverse)
    return LyapunovSpectrum(_mean(sums, steps[:, None]), steps, run.cast_carry(carry), history)


def _push_forward(
    run: CanonicalInputs, prev: Carry, x: Inputs, frame: jax.Array
) -> tuple[Carry, jax.Array]:
    """Returns the carry after a step, and J times each column of the frame `[B, n, count]`."""

    def step(vector: jax.Array) -> tuple[jax.Array, Carry]:
        after, _ = run.bound.step(_unflatten(vector, prev), x)
        return _flatten(after, frame.dtype), after

    vector = _flatten(prev, frame.dtype)
    column = lambda tangent: jax.jvp(step, (vector,), (tangent,), has_aux=True)[1:]
    pushed, after = jax.vmap(column, in_axes=-1, out_axes=(-1, None))(frame)
    return after, pushed


def _orthonormalize(frame: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns Q `[B, n, count]` of a frame, and the absolute diagonal `[B, count]` of R.

    A single column is divided by its norm, without overflow or underflow of the squares.
    """
    if frame.shape[-1] > 1:
        q, r = jnp.linalg.qr(frame)
        return q, jnp.abs(jnp.diagonal(r, axis1=-2, axis2=-1))
    scale = lax.stop_gradient(jnp.abs(frame).max(axis=-2, keepdims=True))
    first = jnp.zeros_like(frame).at[..., 0, :].set(1)  # the result of LAPACK for a column of zeros
    scaled = jnp.where(scale == 0, first, frame / jnp.where(scale == 0, 1, scale))
    norm = jnp.sqrt(jnp.square(scaled).sum(axis=-2, keepdims=True))
    return scaled / norm, (scale * norm)[..., 0]


def _mean(sums: jax.Array, steps: jax.Array) -> jax.Array:
    return jnp.where(steps > 0, sums / jnp.maximum(steps, 1), jnp.nan)


def _initial_frame(size: int, count: int, batch: int, dtype: jnp.dtype) -> jax.Array:
    """Random orthonormal columns `[B, n, count]`; the first k do not depend on the count."""
    key = jax.random.key(0, impl="threefry2x32")
    draw = lambda k: jax.random.normal(jax.random.fold_in(key, k), (size,), dtype)
    columns, _ = _orthonormalize(jax.vmap(draw, out_axes=-1)(jnp.arange(count)))
    return jnp.broadcast_to(columns, (batch, size, count))


def _is_inexact(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _real_size(leaf: jax.Array) -> int:
    """The size of a leaf `[B, ...]` for one sequence, in real numbers."""
    return math.prod(leaf.shape[1:]) * (2 if jnp.iscomplexobj(leaf) else 1)


def _carry_size(cell: Cell, carry: Carry) -> int:
    size = sum(_real_size(leaf) for leaf in jax.tree.leaves(carry) if _is_inexact(leaf))
    if size == 0:
        dtypes = [leaf.dtype.name for leaf in jax.tree.leaves(carry)]
        raise TypeError(
            f"lyapunov: the carry of {type(cell).__name__} must have a floating leaf to "
            f"differentiate, got leaves of dtypes {dtypes}"
        )
    return size


def _frame_dtype(carry: Carry) -> jnp.dtype:
    """The dtype of the inexact leaves of a carry, at least float32, which QR needs."""
    leaves = [leaf for leaf in jax.tree.leaves(carry) if _is_inexact(leaf)]
    return jnp.result_type(jnp.float32, *(jnp.finfo(leaf.dtype).dtype for leaf in leaves))


def _flatten(carry: Carry, dtype: jnp.dtype) -> jax.Array:
    """Concatenates the inexact leaves `[B, ...]` of a carry to real vectors `[B, n]`."""
    leaves = [leaf for leaf in jax.tree.leaves(carry) if _is_inexact(leaf)]
    flat = [leaf.reshape(len(leaf), math.prod(leaf.shape[1:])) for leaf in leaves]
    columns = [
        [leaf.real, leaf.imag] if jnp.iscomplexobj(leaf) else [leaf.astype(dtype)] for leaf in flat
    ]
    return jnp.concatenate([p.astype(dtype) for pair in columns for p in pair], axis=-1)


def _unflatten(vectors: jax.Array, carry: Carry) -> Carry:
    """The inverse of `_flatten`; integer leaves are those of `carry`."""
    leaves, structure = jax.tree.flatten(carry)
    offset, unflattened = 0, []
    for leaf in leaves:
        if not _is_inexact(leaf):
            unflattened.append(leaf)
            continue
        part = vectors[:, offset : offset + _real_size(leaf)].astype(jnp.finfo(leaf.dtype).dtype)
        offset += _real_size(leaf)
        if jnp.iscomplexobj(leaf):
            part = lax.complex(*jnp.split(part, 2, axis=-1))
        unflattened.append(part.reshape(leaf.shape))
    return jax.tree.unflatten(structure, unflattened)
