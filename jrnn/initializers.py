"""Initializers of the weights and biases of gates, drawn gate by gate and concatenated."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

Initializer = Callable[[jax.Array, tuple[int, ...], DTypeLike], jax.Array]


def per_gate(
    initializer: Initializer, key: jax.Array, rows: int, columns: int, gates: int, dtype: DTypeLike
) -> jax.Array:
    """Draws one matrix for each gate and concatenates them.

    Applied to the concatenated matrix, an orthogonal or variance-scaling initializer would use the
    wrong shape: its rows, not its gates, would be orthogonal, and the fan-out would include every
    gate. Half-precision weights are drawn in float32 and rounded.

    Args:
      initializer: `(key, shape, dtype) -> array`, as in `jax.nn.initializers`.
      key: a random key.
      rows: input or hidden size.
      columns: hidden size, the width of one gate.
      gates: number of gates, G.
      dtype: dtype of the result.

    Returns:
      Weights `[rows, G·columns]`.
    """
    draw_dtype = jnp.promote_types(dtype, jnp.float32)
    keys = jax.random.split(key, gates)
    weights = [initializer(k, (rows, columns), draw_dtype) for k in keys]
    return jnp.concatenate(weights, axis=-1).astype(dtype)


def input_weights(
    key: jax.Array, input_size: int, hidden_size: int, gates: int, dtype: DTypeLike
) -> jax.Array:
    """Draws Glorot-uniform weights `[input, G·hidden]`, gate by gate.

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
    """Draws orthogonal weights `[hidden, G·hidden]`, gate by gate.

    Args:
      key: a random key.
      hidden_size: number of units.
      gates: number of gates, G.
      dtype: dtype of the result.
      heads: number of blocks on the diagonal of each gate's matrix. With more than one, the result
        contains only these blocks, `[heads, hidden/heads, G·hidden/heads]`, each orthogonal.
      rows: number of rows; None means `hidden_size`.

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
    """Draws chrono biases of a forget gate, b = log U[1, t_max - 1], for memories of t_max steps.

    A forget gate with bias b multiplies the state by sigmoid(b) at each step, so the cell forgets
    in about 1 + exp(b) steps. The bias of the input gate is -b.

    Args:
      key: a random key.
      hidden_size: number of units.
      t_max: longest expected dependency, in steps; at least 3.
      dtype: dtype of the result.

    Returns:
      Biases `[hidden]`, between 0 and log(t_max - 1).

    References:
      Tallec and Ollivier, 2018, Can recurrent neural networks warp time?
    """
    times = jax.random.uniform(
        key, (hidden_size,), jnp.promote_types(dtype, jnp.float32), 1.0, t_max - 1.0
    )
    return jnp.log(times).astype(dtype)


def uniform(key: jax.Array, size: int, low: float, high: float, dtype: DTypeLike) -> jax.Array:
    """Draws diagonal recurrent weights `[size]` from U[low, high)."""
    draw_dtype = jnp.promote_types(dtype, jnp.float32)
    return jax.random.uniform(key, (size,), draw_dtype, low, high).astype(dtype)


class Ring(NamedTuple):
    """Eigenvalues exp(-exp(nu_log) + i·exp(theta_log)), and the scales of their inputs."""

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
    """Draws complex eigenvalues uniformly from the area between two circles.

    With u and v from U[0, 1] and lambda an eigenvalue::

        |lambda|^2 = r_min^2 + u (r_max^2 - r_min^2),   arg lambda = max_phase v
        gamma = sqrt(1 - |lambda|^2)

    so that the state has the variance of the input if that is white noise.

    Args:
      key: a random key.
      hidden_size: number of eigenvalues.
      r_min: radius of the inner circle.
      r_max: radius of the outer circle, at most 1.
      max_phase: the largest angle, in radians.
      dtype: dtype of the result.

    Returns:
      The logarithms of nu = -log |lambda|, of the angle and of gamma, all finite, since radii of
      exactly 0 or 1 and an angle of exactly 0 are excluded.

    References:
      Orvieto et al., 2023, Resurrecting recurrent neural networks for long sequences.
    """
    draw_dtype = jnp.promote_types(dtype, jnp.float32)
    info = jnp.finfo(draw_dtype)
    keys = jax.random.split(key)
    u, v = (
        jax.random.uniform(k, (hidden_size,), draw_dtype, float(info.eps), 1 - float(info.eps))
        for k in keys
    )
    squared = jnp.clip(r_min**2 + u * (r_max**2 - r_min**2), info.tiny, 1 - info.eps)
    nu = -0.5 * jnp.log(squared)
    gamma_log = 0.5 * jnp.log(-jnp.expm1(-2 * nu))
    logs = jnp.log(nu), jnp.log(max_phase * v), gamma_log
    return Ring(*(leaf.astype(dtype) for leaf in logs))


def forget_gate_bias(
    key: jax.Array, hidden_size: int, t_max: int | None, bias: float, dtype: DTypeLike
) -> jax.Array:
    """Initial biases `[hidden]` of a forget gate: `chrono` with a `t_max`, else constant `bias`."""
    if t_max is None:
        return jnp.full((hidden_size,), bias, dtype)
    return chrono(key, hidden_size, t_max, dtype)


def gate_biases(
    hidden_size: int, gates: tuple[str, ...], forget_bias: float, dtype: DTypeLike
) -> jax.Array:
    """Initial biases `[G·hidden]` of the named gates: `forget_bias` for f, 0 for the others."""
    values = [forget_bias if gate == "f" else 0.0 for gate in gates]
    return jnp.repeat(jnp.array(values, dtype), hidden_size)
