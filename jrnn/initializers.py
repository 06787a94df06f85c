"""Initializers of cell parameters; weights are drawn for each gate separately and concatenated."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jrnn.dtypes import promote_dtypes

Initializer = Callable[[jax.Array, tuple[int, ...], DTypeLike], jax.Array]


def per_gate(
    initializer: Initializer, key: jax.Array, rows: int, columns: int, gates: int, dtype: DTypeLike
) -> jax.Array:
    """Draws one matrix for each gate and concatenates them.

    An orthogonal initializer must be applied to the matrix of each gate, and a variance-scaling
    initializer must not count the columns of other gates as fan-out. Weights in half precision are
    drawn in float32 and rounded.

    Args:
      initializer: `(key, shape, dtype) -> array`, as in `jax.nn.initializers`.
      key: a PRNG key.
      rows: number of rows, such as the input size.
      columns: number of columns of each gate, such as the hidden size.
      gates: number of gates, G.
      dtype: dtype of the result.

    Returns:
      Weights `[rows, G·columns]`.
    """
    draw_dtype = promote_dtypes(dtype, jnp.float32)
    keys = jax.random.split(key, gates)
    weights = [initializer(k, (rows, columns), draw_dtype) for k in keys]
    return jnp.concatenate(weights, axis=-1).astype(dtype)


def input_weights(
    key: jax.Array, input_size: int, hidden_size: int, gates: int, dtype: DTypeLike
) -> jax.Array:
    """Draws Glorot-uniform weights `[input, G·hidden]`, each gate separately.

    References:
      Glorot and Bengio, 2010, Understanding the difficulty of training deep feedforward networks.
    """
    return per_gate(
        jax.nn.initializers.glorot_uniform(), key, input_size, hidden_size, gates, dtype
    )


def recurrent_weights(
    key: jax.Array,
    hidden_size: int,
    gates: int,
    dtype: DTypeLike,
    *,
    heads: int = 1,
    rows: int | None = None,
) -> jax.Array:
    """Draws orthogonal weights, each gate separately.

    Args:
      key: a PRNG key.
      hidden_size: number of units.
      gates: number of gates, G.
      dtype: dtype of the result.
      heads: number of blocks on the diagonal of each gate's matrix.
      rows: number of rows; by default `hidden_size`.

    Returns:
      Weights `[rows, G·hidden]`. With more than one head, only the blocks,
      `[heads, rows/heads, G·hidden/heads]`, each orthogonal for each gate.

    References:
      Saxe, McClelland and Ganguli, 2014, Exact solutions to the nonlinear dynamics of learning in
      deep linear neural networks.
    """
    rows = hidden_size if rows is None else rows
    orthogonal = jax.nn.initializers.orthogonal()
    if heads == 1:
        return per_gate(orthogonal, key, rows, hidden_size, gates, dtype)
    block_shape = rows // heads, hidden_size // heads
    keys = jax.random.split(key, heads)
    return jnp.stack([per_gate(orthogonal, k, *block_shape, gates, dtype) for k in keys])


def chrono(key: jax.Array, hidden_size: int, t_max: int, dtype: DTypeLike) -> jax.Array:
    """Draws chrono biases of a forget gate, b = log(v), v ~ Uniform(1, t_max - 1).

    A forget gate with bias b multiplies the state by sigmoid(b) at each step, so the state decays
    within about 1 + exp(b) steps. The bias of the input gate must be -b.

    Args:
      key: a PRNG key.
      hidden_size: number of units.
      t_max: longest expected dependency in steps, at least 3.
      dtype: dtype of the result.

    Returns:
      Biases `[hidden]`, between 0 and log(t_max - 1).

    References:
      Tallec and Ollivier, 2018, Can recurrent neural networks warp time?
    """
    times = jax.random.uniform(
        key, (hidden_size,), promote_dtypes(dtype, jnp.float32), 1.0, t_max - 1.0
    )
    return jnp.log(times).astype(dtype)


def uniform(key: jax.Array, size: int, low: float, high: float, dtype: DTypeLike) -> jax.Array:
    """Draws an array `[size]` from Uniform(low, high)."""
    draw_dtype = promote_dtypes(dtype, jnp.float32)
    return jax.random.uniform(key, (size,), draw_dtype, low, high).astype(dtype)


class Ring(NamedTuple):
    """Complex eigenvalues exp(-exp(nu_log) + i exp(theta_log)), and input scales exp(gamma_log)."""

    nu_log: jax.Array  # [hidden]
    theta_log: jax.Array  # [hidden]
    gamma_log: jax.Array  # [hidden]


def ring(
    key: jax.Array,
    hidden_size: int,
    r_min: float,
    r_max: float,
    max_phase: float,
    dtype: DTypeLike,
) -> Ring:
    """Draws complex eigenvalues lambda uniformly from the ring between two circles.

    With u and v from Uniform(0, 1)::

        |lambda|^2 = r_min^2 + u (r_max^2 - r_min^2),   arg lambda = max_phase v
        gamma = sqrt(1 - |lambda|^2)

    With the input scale gamma, white noise at the input produces a state of the same variance.

    Args:
      key: a PRNG key.
      hidden_size: number of eigenvalues.
      r_min: radius of the inner circle.
      r_max: radius of the outer circle, at most 1.
      max_phase: largest argument of lambda, in radians, above 0.
      dtype: dtype of the result.

    Returns:
      The logarithms of nu = -log |lambda|, of theta = arg lambda and of gamma. They are finite,
      since |lambda| = 0, |lambda| = 1 and theta = 0 are excluded.

    References:
      Orvieto et al., 2023, Resurrecting recurrent neural networks for long sequences.
    """
    draw_dtype = promote_dtypes(dtype, jnp.float32)
    info = jnp.finfo(draw_dtype)
    keys = jax.random.split(key)
    u, v = (
        jax.random.uniform(k, (hidden_size,), draw_dtype, float(info.eps), 1 - float(info.eps))
        for k in keys
    )
    squared_radius = jnp.clip(r_min**2 + u * (r_max**2 - r_min**2), info.tiny, 1 - info.eps)
    nu = -0.5 * jnp.log(squared_radius)
    gamma_log = 0.5 * jnp.log(-jnp.expm1(-2 * nu))
    logs = jnp.log(nu), jnp.log(max_phase * v), gamma_log
    return Ring(*(leaf.astype(dtype) for leaf in logs))


def forget_gate_bias(
    key: jax.Array, hidden_size: int, t_max: int | None, bias: float, dtype: DTypeLike
) -> jax.Array:
    """Returns initial forget gate biases `[hidden]`: `bias` if `t_max` is None, else `chrono`."""
    if t_max is None:
        return jnp.full((hidden_size,), bias, dtype)
    return chrono(key, hidden_size, t_max, dtype)


def gate_biases(
    hidden_size: int, gates: tuple[str, ...], forget_bias: float, dtype: DTypeLike
) -> jax.Array:
    """Returns initial biases `[G·hidden]` of the named gates: `forget_bias` for f, 0 for others."""
    values = [forget_bias if gate == "f" else 0.0 for gate in gates]
    return jnp.repeat(jnp.array(values, dtype), hidden_size)
