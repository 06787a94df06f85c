"""How weights and biases of gates begin. Each is drawn gate by gate, then laid side by side."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

Initializer = Callable[[jax.Array, tuple[int, ...], DTypeLike], jax.Array]


def per_gate(
    initializer: Initializer, key: jax.Array, rows: int, columns: int, gates: int, dtype: DTypeLike
) -> jax.Array:
    """Draws one matrix for each gate and joins them.

    Over the joined matrix an orthogonal or variance-scaling initialiser would see the wrong
    shape: its rows, not its gates, would be orthogonal, and the fan-out would count every gate.
    Half-precision dtypes are drawn in float32 and rounded.

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
    drawn_in = jnp.promote_types(dtype, jnp.float32)
    keys = jax.random.split(key, gates)
    drawn = [initializer(k, (rows, columns), drawn_in) for k in keys]
    return jnp.concatenate(drawn, axis=-1).astype(dtype)


def input_weights(
    key: jax.Array, input_size: int, hidden_size: int, gates: int, dtype: DTypeLike
) -> jax.Array:
    """Glorot-uniform weights `[input, G·hidden]`, each gate for itself.

    References:
      Glorot and Bengio, 2010, Understanding the difficulty of training deep feedforward networks.
    """
    return per_gate(
        jax.nn.initializers.glorot_uniform(), key, input_size, hidden_size, gates, dtype
    )


def recurrent_weights(key: jax.Array, hidden_size: int, gates: int, dtype: DTypeLike) -> jax.Array:
    """Orthogonal weights `[hidden, G·hidden]`, each gate for itself.

    References:
      Saxe, McClelland and Ganguli, 2014, Exact solutions to the nonlinear dynamics of learning in
      deep linear neural networks.
    """
    return per_gate(jax.nn.initializers.orthogonal(), key, hidden_size, hidden_size, gates, dtype)


def chrono(key: jax.Array, hidden_size: int, t_max: int, dtype: DTypeLike) -> jax.Array:
    """Biases of the gate that keeps: b = log U[1, t_max - 1], so memories last up to t_max steps.

    A gate with bias b keeps sigmoid(b) of its unit at each step, so it forgets in about
    1 + exp(b) steps. The gate that writes takes the negative of it.

    Args:
      key: a random key.
      hidden_size: number of units.
      t_max: the longest dependency expected, in steps; at least 3.
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
