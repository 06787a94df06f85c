"""GRU-D: a GRU for time series with missing values, whose state decays between observations."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import relu, sigmoid
from jax.typing import DTypeLike

from jrnn import checks, initializers
from jrnn.broadcasting import add, multiply
from jrnn.cell import Cell
from jrnn.cell import Observed as Observed
from jrnn.cells.common import input_matmul, split_gates
from jrnn.taps import tap


class GRUDCarry(NamedTuple):
    """Hidden state `h [..., hidden]` and the last observed values `x_last [..., input]`."""

    h: jax.Array
    x_last: jax.Array


class GRUDParams(NamedTuple):
    """Weights of the gates, concatenated in the order r, z, n, and of the decay rates."""

    w_ih: jax.Array  # [input, 3·hidden]
    w_hh: jax.Array  # [hidden, 3·hidden]
    w_mh: jax.Array  # [input, 3·hidden], V of the equations, multiplies the mask
    b: jax.Array  # [3·hidden]
    w_decay_x: jax.Array  # [input]
    b_decay_x: jax.Array  # [input]
    w_decay_h: jax.Array  # [input, hidden]
    b_decay_h: jax.Array  # [hidden]
    mean: jax.Array  # [input], mean of each variable


class GRUDGates(NamedTuple):
    """Pre-activations from the mask `[..., hidden]`, decay factors, and observed values."""

    r: jax.Array
    z: jax.Array
    n: jax.Array
    gamma_h: Any  # [..., hidden]
    gamma_x: Any  # [..., input]
    observed: Any  # [..., input]: x * mask
    missing: Any  # [..., input]: 1 - mask


@dataclass(frozen=True)
class GRUD(Cell):
    r"""The GRU with decay: input and state decay with the time since the last observation.

    With an input x, its mask m, and the time delta since the last observation of each variable::

        gamma_x = exp(-max(0, w_x * delta + b_x))           decay factor of each variable
        gamma_h = exp(-max(0, W_h delta + b_h))             decay factor of each unit
        x^ = m * x + (1 - m) * (gamma_x * x_last + (1 - gamma_x) * mean)    imputed input
        h^ = gamma_h * h                                    decayed state
        r = sigmoid(W_r x^ + U_r h^ + V_r m + b_r)          reset gate
        z = sigmoid(W_z x^ + U_z h^ + V_z m + b_z)          update gate
        n = tanh(W_n x^ + U_n (r * h^) + V_n m + b_n)       candidate
        h' = (1 - z) * n + z * h^,   y = h'
        x_last' = m * x + (1 - m) * x_last

    z multiplies the old state, as in `GRU`. In the paper it multiplies the candidate, which is
    equivalent with negated weights of z. The parameter `mean` is the mean of each variable, and
    also the initial x_last. It is initialized to 0, for standardized data; set it for other data.
    It is trained like the other parameters, whereas the paper fixes it to the mean of the data.
    `update` computes the matrix products with x^, h^ and r * h^, so it is not elementwise.

    The input is `Observed(x, mask, delta)`; x may be NaN where the mask is 0.

    Args:
      hidden_size: number of units.

    Raises:
      ValueError: `hidden_size` is not a positive int. `project` raises it if the input is not an
        `Observed`, or one of its arrays has another input size.

    >>> import jax, jax.numpy as jnp
    >>> cell = GRUD(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> x = Observed(x=jnp.ones((2, 3)), mask=jnp.array([1.0, 0.0, 1.0]) * jnp.ones((2, 3)),
    ...              delta=jnp.full((2, 3), 0.5))
    >>> carry, y = cell.step(params, cell.init_carry(params, (2,)), x)
    >>> y.shape, carry.x_last[0].tolist()
    ((2, 4), [1.0, 0.0, 1.0])

    References:
      Che et al., 2018, Recurrent neural networks for multivariate time series with missing values.
    """

    hidden_size: int

    def __post_init__(self) -> None:
        checks.positive_int("GRUD", "hidden_size", self.hidden_size)

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> GRUDParams:
        hidden = self.hidden_size
        key_ih, key_hh, key_mh, key_x, key_h = jax.random.split(key, 5)
        return GRUDParams(
            w_ih=initializers.input_weights(key_ih, input_size, hidden, 3, dtype),
            w_hh=initializers.recurrent_weights(key_hh, hidden, 3, dtype),
            w_mh=initializers.input_weights(key_mh, input_size, hidden, 3, dtype),
            b=jnp.zeros((3 * hidden,), dtype),
            # Positive, because the ReLU and its gradient are 0 for negative weights.
            w_decay_x=initializers.uniform(key_x, input_size, 0.0, 1.0, dtype),
            b_decay_x=jnp.zeros((input_size,), dtype),
            w_decay_h=initializers.input_weights(key_h, input_size, hidden, 1, dtype),
            b_decay_h=jnp.zeros((hidden,), dtype),
            mean=jnp.zeros((input_size,), dtype),
        )

    def init_carry(self, params: GRUDParams, batch_shape: tuple[int, ...]) -> GRUDCarry:
        h = jnp.zeros((*batch_shape, self.hidden_size), params.w_hh.dtype)
        return GRUDCarry(h, jnp.broadcast_to(params.mean, (*batch_shape, *params.mean.shape)))

    def inputs(
        self, input_size: int, batch_shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
    ) -> Observed:
        return Observed(*(jnp.zeros((*batch_shape, input_size), dtype) for _ in range(3)))

    def project(self, params: GRUDParams, x: Observed) -> GRUDGates:
        _validate_input(x, params.w_ih.shape[0])
        x = x.zero_missing()
        a = add(input_matmul(self, x.mask, params.w_mh), params.b)
        decay_rate = add(input_matmul(self, x.delta, params.w_decay_h), params.b_decay_h)
        return split_gates(a, GRUDGates, ("r", "z", "n"))._replace(
            gamma_h=jnp.exp(-relu(decay_rate)),
            gamma_x=jnp.exp(-relu(add(multiply(x.delta, params.w_decay_x), params.b_decay_x))),
            observed=x.mask * x.x,
            missing=1 - x.mask,
        )

    def recur(self, params: GRUDParams, carry: GRUDCarry) -> None:
        return None

    def update(self, params: GRUDParams, carry: GRUDCarry, z: GRUDGates, u: None) -> GRUDCarry:
        imputed = z.gamma_x * carry.x_last + multiply(1 - z.gamma_x, params.mean)
        a = (z.observed + z.missing * imputed) @ params.w_ih
        x = split_gates(a, GRUDGates, ("r", "z", "n"))
        h = z.gamma_h * carry.h
        w_rz, w_n = jnp.split(params.w_hh, [2 * self.hidden_size], axis=-1)
        u_rz = split_gates(h @ w_rz, GRUDGates, ("r", "z"))
        reset_gate = tap("r", sigmoid(z.r + x.r + u_rz.r))
        update_gate = tap("z", sigmoid(z.z + x.z + u_rz.z))
        n = jnp.tanh(z.n + x.n + (reset_gate * h) @ w_n)
        n = tap("n", n, role="candidate")
        h = (1 - update_gate) * n + update_gate * h
        return GRUDCarry(h, z.observed + z.missing * carry.x_last)

    def readout(self, params: GRUDParams, carry: GRUDCarry, z: GRUDGates) -> jax.Array:
        return carry.h


def _validate_input(x: Any, input_size: int) -> None:
    """Raises a ValueError unless the input is an `Observed` with arrays of the input size."""
    if not isinstance(x, Observed):
        raise ValueError(
            "GRUD: x must be jrnn.Observed(x, mask, delta), each array [..., input], got "
            f"{checks.describe(x)}"
        )
    for name, leaf in x._asdict().items():
        checks.last_axis("GRUD", name, leaf, input_size, "input_size of the parameters")
