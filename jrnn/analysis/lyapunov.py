"""Lyapunov exponents: the rates at which nearby carries diverge or converge on the same inputs."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jrnn import checks
from jrnn.cell import Carry, Cell, Inputs, Params
from jrnn.dtypes import promote_dtypes
from jrnn.engines.inputs import (
    CanonicalInputs,
    canonicalize,
    conform_arguments,
    validate_arguments,
)
from jrnn.layer import Layer, SequenceInputs, check_layer
from jrnn.masking import apply_resets, tree_where, zero_where
from jrnn.signatures import SEQUENCE_HINTS, explain_signature


class LyapunovSpectrum(NamedTuple):
    """The Lyapunov exponents of each sequence. A pytree, for use with jit and vmap.

    Attributes:
      exponents: `[B, num_exponents]`, in nats per step; NaN if the mean is over no steps. They are
        in the order of the columns of Q, which converges to descending order, and are not sorted:
        the sum of the first k is the growth rate of k-dimensional volumes. Before convergence, two
        exponents that are almost equal may be in the wrong order.
      steps: `[B]` int32, the number of steps that the mean is taken over.
      carry: the final carry, leaves `[B, ...]`, as `jrnn.unroll` returns it.
      history: `[T, B]`, in the order of time: the estimate of the largest exponent after each step,
        to judge convergence. It is constant on padding, and NaN before the first step of the mean.
    """

    exponents: jax.Array
    steps: jax.Array
    carry: Carry
    history: jax.Array

    @property
    def largest_exponent(self) -> jax.Array:
        """The largest exponent `[B]`: positive for chaos, negative if the cell is contracting."""
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

            D = k + (e_1 + ... + e_k) / |e_k+1|

        where e_1 >= e_2 >= ... are the exponents, and k is the largest number with
        e_1 + ... + e_k >= 0. If all partial sums are non-negative, D is the number of exponents;
        this is a lower bound of the dimension if fewer exponents were computed than the carry has
        elements.
        """
        exponents = jnp.sort(self.exponents, axis=-1, descending=True)
        sums = jnp.cumsum(exponents, axis=-1)
        num_exponents = sums.shape[-1]
        k = (sums >= 0).sum(axis=-1, keepdims=True)
        sum_of_k = jnp.take_along_axis(sums, jnp.maximum(k - 1, 0), axis=-1)
        next_exponent = jnp.take_along_axis(exponents, jnp.minimum(k, num_exponents - 1), axis=-1)
        has_fraction = (k > 0) & (k < num_exponents)
        numerator = jnp.where(has_fraction, sum_of_k, 0)
        fraction = numerator / jnp.where(has_fraction, jnp.abs(next_exponent), 1)
        return jnp.where(jnp.isnan(self.largest_exponent), jnp.nan, (k + fraction)[..., 0])


@explain_signature(SEQUENCE_HINTS)
def lyapunov(
    cell: Cell,
    params: Params,
    xs: Inputs,
    carry: Carry | None = None,
    *,
    num_exponents: int | None = None,
    skip: int = 0,
    lengths: jax.Array | None = None,
    mask: jax.Array | None = None,
    resets: jax.Array | None = None,
    reverse: bool = False,
    key: jax.Array | None = None,
) -> LyapunovSpectrum:
    """Computes the Lyapunov exponents of a cell on given inputs, with a QR factorization per step.

    With J_t the Jacobian of the new carry with respect to the old one, for t in scan order::

        Q_t R_t = J_t Q_t-1                        Q_t has orthonormal columns
        exponents[k] = mean over t of log |R_t[k, k]|

    The largest exponent is the rate at which a small difference between two carries grows, in nats
    (factors of e) per step. If it is negative, the cell forgets its initial carry, and Newton's
    method computes the carries of all steps in few iterations (Gonzalez et al.). If it is far below
    zero, gradients vanish; if it is positive, they explode. The sum of all exponents is the mean of
    log |det J_t|.

    The carry of one sequence is treated as a vector of n real numbers, with two for each complex
    number. Integer leaves are not differentiated. J_t is never computed explicitly: `jax.jvp` of
    the step multiplies it by the columns of Q. The memory for Q is B·n·num_exponents numbers,
    independent of T. Finite exponents are differentiable with respect to `params`, `xs` and
    `carry`, and can be used as a regularizer (gradient flossing; Engelken).

    *Initialization.* Q_0 is random, but the same in each call and for each sequence. The identity
    matrix is unsuitable, because its columns may span invariant subspaces: if every J_t is upper
    triangular, the first column of the identity keeps its direction, whose exponent may not be the
    largest. Q takes some steps to align with the directions of growth, and the carry takes some
    steps to reach its attractor; exclude these steps from the mean with `skip`.

    *Resets.* The carry after a reset does not depend on earlier steps, so the Jacobian is zero and
    the exponents would be minus infinity for every cell. A reset therefore sets Q to Q_0. The step
    at the reset updates Q from the initial carry but is excluded from the mean. The exponents are
    means over the steps of all segments.

    *Singular Jacobians.* If J_t is singular (for example, by relu units that are zero), an exponent
    is minus infinity and is returned as such. The QR decomposition of LAPACK still returns an
    orthonormal Q: it replaces a column of zeros by a direction orthogonal to the previous columns.
    Rounding often turns a zero of R into about 1e-8 (float32) or 1e-17 (float64) of the largest
    entry, so that an exponent of minus infinity becomes a large negative number. Do not rely on
    exponents that are more than 15 nats (float32) or 35 nats (float64) below the largest.

    Args:
      cell: any cell.
      params: its parameters, from `cell.init`.
      xs: inputs `[T, B, input]`, or a pytree of leaves `[T, B, ...]`.
      carry: the initial carry, leaves `[B, ...]`; by default `cell.init_carry`.
      num_exponents: number of exponents to compute, the largest first, from 1 to n; by default n.
      skip: number of steps, from the start of each sequence and from each reset on, that are
        excluded from the mean; they still update the carry and Q. At a reset at least one step is
        excluded.
      lengths: `[B]` ints, the number of valid steps of each sequence; padding is excluded.
      mask: `[T, B]` bool, True on valid steps, in any pattern.
      resets: `[T, B]` bool, True where `cell.init_carry` replaces the carry before the step, in
        scan order.
      reverse: whether to scan from the last valid step to the first.
      key: PRNG key for stochastic cells; None means the deterministic expected value.

    Returns:
      A `LyapunovSpectrum`. If the mean is over no steps (such as for T = 0), the exponents are NaN.
      A NaN at a step of the mean makes the exponents of its sequence NaN, even if a reset follows,
      but does not affect other sequences.

    Raises:
      ValueError: a shape is wrong, `num_exponents` is not an int from 1 to n, or `skip` is not an
        int of at least 0.
      TypeError: `cell` is not a cell, a dtype or the structure of the parameters, the inputs or the
        carry is wrong, or the carry has no floating leaf.

    >>> import jax, jax.numpy as jnp, jrnn
    >>> cell = jrnn.LSTM(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> xs = jax.random.normal(jax.random.key(1), (200, 2, 3))
    >>> spectrum = lyapunov(cell, params, xs, skip=50)
    >>> spectrum.exponents.shape, int(spectrum.steps[0])
    ((2, 8), 150)
    >>> bool((spectrum.largest_exponent < 0).all())
    True

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
    skip = checks.non_negative_int("lyapunov", "skip", skip)
    if isinstance(cell, Layer) and not isinstance(cell, Cell):
        raise TypeError(
            f"lyapunov: cell must be a jrnn.Cell such as jrnn.LSTM(64), got "
            f"{checks.describe(cell)}; for a stack call lyapunov for each cell, on the outputs of "
            "the layer below it"
        )
    check_layer("lyapunov", "cell", cell, Cell)
    inputs = SequenceInputs(xs, carry, lengths, mask, resets, key, reverse, "lyapunov")
    with validate_arguments(inputs, params):
        return _lyapunov(cell, params, inputs, skip, checks.as_python(num_exponents))


@partial(jax.jit, static_argnames=("cell", "num_exponents"))
def _lyapunov(
    cell: Cell,
    params: Params,
    inputs: SequenceInputs,
    skip: int | jax.Array,
    num_exponents: int | None,
) -> LyapunovSpectrum:
    params = conform_arguments(cell, params, inputs)
    args = canonicalize(cell, params, inputs)
    size = _carry_size(cell, args.carry)
    num = size if num_exponents is None else num_exponents
    if not checks.is_int(num) or not 1 <= num <= size:
        raise ValueError(
            f"lyapunov: num_exponents must be an int from 1 to {size}, the size of the carry of "
            f"one sequence of {type(cell).__name__}, got {checks.describe(num)}"
        )
    batch = jax.tree.leaves(args.carry)[0].shape[0]
    initial_q = _initial_q(size, num, batch, _real_dtype(args.carry))
    zeros, skip = jnp.zeros(batch, jnp.int32), jnp.asarray(skip, jnp.int32)

    def body(state, step):
        carry, q, log_sums, steps, num_to_skip = state
        x, valid, reset, nan_carry = step
        prev_carry, prev_q, num_to_skip = apply_resets(
            reset,
            (args.masks.reset_carry, initial_q, jnp.maximum(zeros + skip, 1)),
            (carry, q, num_to_skip),
        )
        carry, jacobian_q = _push_forward(args, prev_carry, zero_where(valid, x), prev_q)
        # On padding, Q itself is decomposed: gradients of the QR decomposition of a singular matrix
        # are NaN.
        q, diagonal = _orthonormalize(tree_where(valid, jacobian_q, prev_q))
        # A Jacobian can be finite although the carry is NaN: the derivative of relu at NaN is 0.
        is_nan = jnp.isnan(_flatten(carry, initial_q.dtype)).any(axis=-1)
        is_nan = is_nan if nan_carry is None else is_nan | nan_carry
        is_included = num_to_skip <= 0 if valid is None else (num_to_skip <= 0) & valid
        log_sums += jnp.log(tree_where(is_included, diagonal, jnp.ones_like(diagonal)))
        log_sums = tree_where(is_nan & is_included, jnp.full_like(log_sums, jnp.nan), log_sums)
        steps = steps + is_included.astype(steps.dtype)
        carry, q, num_to_skip = tree_where(
            valid,
            (carry, q, jnp.maximum(num_to_skip - 1, 0)),
            (prev_carry, prev_q, num_to_skip),
        )
        return (carry, q, log_sums, steps, num_to_skip), _mean(log_sums[:, 0], steps)

    state = (args.carry, initial_q, jnp.zeros_like(initial_q[:, 0]), zeros, zeros + skip)
    xs = (args.xs, args.masks.valid, args.masks.resets, args.nan_carries)
    (carry, _, log_sums, steps, _), history = lax.scan(body, state, xs, reverse=args.reverse)
    return LyapunovSpectrum(_mean(log_sums, steps[:, None]), steps, args.cast_carry(carry), history)


def _push_forward(
    args: CanonicalInputs, prev_carry: Carry, x: Inputs, q: jax.Array
) -> tuple[Carry, jax.Array]:
    """Returns the carry after a step, and J Q `[B, n, num_exponents]`."""

    def step(vector: jax.Array) -> tuple[jax.Array, Carry]:
        carry, _ = args.bound.step(_unflatten(vector, prev_carry), x)
        return _flatten(carry, q.dtype), carry

    vector = _flatten(prev_carry, q.dtype)
    jvp = lambda tangent: jax.jvp(step, (vector,), (tangent,), has_aux=True)[1:]
    jacobian_q, carry = jax.vmap(jvp, in_axes=-1, out_axes=(-1, None))(q)
    return carry, jacobian_q


def _orthonormalize(matrices: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes the QR decompositions of matrices `[B, n, num_exponents]`.

    Returns:
      Q `[B, n, num_exponents]`, and the absolute values of the diagonal of R `[B, num_exponents]`.
    """
    if matrices.shape[-1] > 1:
        q, r = jnp.linalg.qr(matrices)
        return q, jnp.abs(jnp.diagonal(r, axis1=-2, axis2=-1))
    # A single column is divided by its norm. The scale prevents overflow and underflow of squares.
    scale = lax.stop_gradient(jnp.abs(matrices).max(axis=-2, keepdims=True))
    # For a column of zeros, Q is the first unit vector, as in LAPACK.
    unit_vector = jnp.zeros_like(matrices).at[..., 0, :].set(1)
    scaled = jnp.where(scale == 0, unit_vector, matrices / jnp.where(scale == 0, 1, scale))
    norm = jnp.sqrt(jnp.square(scaled).sum(axis=-2, keepdims=True))
    return scaled / norm, (scale * norm)[..., 0]


def _mean(sums: jax.Array, steps: jax.Array) -> jax.Array:
    """Divides sums by numbers of steps; NaN for zero steps."""
    return jnp.where(steps > 0, sums / jnp.maximum(steps, 1).astype(sums.dtype), jnp.nan)


def _initial_q(size: int, num_exponents: int, batch: int, dtype: jnp.dtype) -> jax.Array:
    """Returns random orthonormal columns `[B, n, num_exponents]`.

    The first k columns do not depend on `num_exponents`.
    """
    key = jax.random.key(0, impl="threefry2x32")
    sample = lambda k: jax.random.normal(jax.random.fold_in(key, k), (size,), dtype)
    columns, _ = _orthonormalize(jax.vmap(sample, out_axes=-1)(jnp.arange(num_exponents)))
    return jnp.broadcast_to(columns, (batch, size, num_exponents))


def _is_inexact(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _real_size(leaf: jax.Array) -> int:
    """Returns how many real numbers a leaf `[B, ...]` has for each sequence."""
    return math.prod(leaf.shape[1:]) * (2 if jnp.iscomplexobj(leaf) else 1)


def _carry_size(cell: Cell, carry: Carry) -> int:
    """Returns n, how many real numbers the inexact leaves of a carry have for each sequence.

    Raises:
      TypeError: the carry has no inexact elements.
    """
    size = sum(_real_size(leaf) for leaf in jax.tree.leaves(carry) if _is_inexact(leaf))
    if size == 0:
        dtypes = [leaf.dtype.name for leaf in jax.tree.leaves(carry)]
        raise TypeError(
            f"lyapunov: the carry of {type(cell).__name__} must have a floating leaf to "
            f"differentiate, got leaves of dtypes {dtypes}"
        )
    return size


def _real_dtype(carry: Carry) -> jnp.dtype:
    """Returns the real dtype of the inexact leaves of a carry; at least float32, as QR requires."""
    leaves = [leaf for leaf in jax.tree.leaves(carry) if _is_inexact(leaf)]
    return promote_dtypes(jnp.float32, *(jnp.finfo(leaf.dtype).dtype for leaf in leaves))


def _flatten(carry: Carry, dtype: jnp.dtype) -> jax.Array:
    """Concatenates the inexact leaves `[B, ...]` of a carry into real vectors `[B, n]`."""
    leaves = [leaf for leaf in jax.tree.leaves(carry) if _is_inexact(leaf)]
    flat = [leaf.reshape(len(leaf), math.prod(leaf.shape[1:])) for leaf in leaves]
    parts = [[leaf.real, leaf.imag] if jnp.iscomplexobj(leaf) else [leaf] for leaf in flat]
    return jnp.concatenate([a.astype(dtype) for arrays in parts for a in arrays], axis=-1)


def _unflatten(vectors: jax.Array, carry: Carry) -> Carry:
    """Inverts `_flatten`; integer leaves are those of `carry`."""
    leaves, treedef = jax.tree.flatten(carry)
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
    return jax.tree.unflatten(treedef, unflattened)
