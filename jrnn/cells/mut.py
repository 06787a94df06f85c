"""MUT1, MUT2 and MUT3, variants of the GRU found by an evolutionary architecture search."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jax.typing import DTypeLike

from jrnn import checks, initializers
from jrnn.broadcasting import add
from jrnn.cell import Cell
from jrnn.cells.common import affine, input_matmul, split_gates
from jrnn.taps import tap


class MUTParams(NamedTuple):
    """Weights, with the gates concatenated in the order z, r, n; w_hh of `MUT1` has no z."""

    w_ih: jax.Array  # [input, 3·hidden]
    w_hh: jax.Array  # [hidden, 3·hidden]; [hidden, 2·hidden] in MUT1
    b: jax.Array  # [3·hidden]


class MUTGates(NamedTuple):
    """Pre-activations, each `[..., hidden]`.

    In the result of `recur`, gates are None that have no recurrent weights, such as z of `MUT1`, or
    whose recurrent product is computed in `update`.
    """

    z: jax.Array
    r: jax.Array
    n: jax.Array


@dataclass(frozen=True)
class MUT1(Cell):
    r"""A mutant of the GRU: its update gate depends only on the input.

    ::

        z = sigmoid(W_z x + b_z)                            update gate
        r = sigmoid(W_r x + U_r h + b_r)                    reset gate
        n = tanh(tanh(W_n x) + U_n (r * h) + b_n)           candidate
        h' = z * n + (1 - z) * h,   y = h'

    In the paper, tanh(x) has no weights, so x must have the size of h. Like other implementations,
    this cell has W_n, and one bias outside of the inner tanh.

    z multiplies the candidate, as in the paper; in `GRU` it multiplies the old state. `update`
    computes the matrix product with r * h, so it is not elementwise.

    Args:
      hidden_size: number of units.

    Raises:
      ValueError: `hidden_size` is not a positive int.

    >>> import jax, jax.numpy as jnp
    >>> cell = MUT1(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> h, y = cell.step(params, cell.init_carry(params, (2,)), jnp.ones((2, 3)))
    >>> h.shape
    (2, 4)

    References:
      Jozefowicz, Zaremba and Sutskever, 2015, An empirical exploration of recurrent network
      architectures.
    """

    hidden_size: int

    def __post_init__(self) -> None:
        checks.positive_int("MUT1", "hidden_size", self.hidden_size)

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> MUTParams:
        return _init_params(self.hidden_size, key, input_size, dtype, recurrent_gates=2)

    def init_carry(self, params: MUTParams, batch_shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros((*batch_shape, self.hidden_size), params.w_hh.dtype)

    def project(self, params: MUTParams, x: jax.Array) -> MUTGates:
        a = split_gates(input_matmul(self, x, params.w_ih), MUTGates, ("z", "r", "n"))
        b = split_gates(params.b, MUTGates, ("z", "r", "n"))
        return MUTGates(z=add(a.z, b.z), r=add(a.r, b.r), n=add(jnp.tanh(a.n), b.n))

    def recur(self, params: MUTParams, carry: jax.Array) -> MUTGates:
        return split_gates(carry @ params.w_hh[:, : self.hidden_size], MUTGates, ("r",))

    def update(self, params: MUTParams, carry: jax.Array, z: MUTGates, u: MUTGates) -> jax.Array:
        update_gate, reset_gate = sigmoid(z.z), sigmoid(z.r + u.r)
        return _next_state(params, carry, update_gate, reset_gate, z.n)


@dataclass(frozen=True)
class MUT2(Cell):
    r"""A mutant of the GRU: in the paper its reset gate has no input weights.

    ::

        z = sigmoid(W_z x + U_z h + b_z)                    update gate
        r = sigmoid(W_r x + U_r h + b_r)                    reset gate
        n = tanh(W_n x + U_n (r * h) + b_n)                 candidate
        h' = z * n + (1 - z) * h,   y = h'

    In the paper, W_r is the identity matrix, so x must have the size of h. Like other
    implementations, this cell has a learned W_r. It then equals `GRU` with `reset_after=False`,
    except that z multiplies the candidate, while in `GRU` it multiplies the old state.

    `update` computes the matrix product with r * h, so it is not elementwise.

    Args:
      hidden_size: number of units.

    Raises:
      ValueError: `hidden_size` is not a positive int.

    >>> import jax, jax.numpy as jnp
    >>> cell = MUT2(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> h, y = cell.step(params, cell.init_carry(params, (2,)), jnp.ones((2, 3)))
    >>> h.shape
    (2, 4)

    References:
      Jozefowicz, Zaremba and Sutskever, 2015, An empirical exploration of recurrent network
      architectures.
    """

    hidden_size: int

    def __post_init__(self) -> None:
        checks.positive_int("MUT2", "hidden_size", self.hidden_size)

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> MUTParams:
        return _init_params(self.hidden_size, key, input_size, dtype, recurrent_gates=3)

    def init_carry(self, params: MUTParams, batch_shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros((*batch_shape, self.hidden_size), params.w_hh.dtype)

    def project(self, params: MUTParams, x: jax.Array) -> MUTGates:
        return split_gates(affine(self, x, params.w_ih, params.b), MUTGates, ("z", "r", "n"))

    def recur(self, params: MUTParams, carry: jax.Array) -> MUTGates:
        return split_gates(carry @ params.w_hh[:, : 2 * self.hidden_size], MUTGates, ("z", "r"))

    def update(self, params: MUTParams, carry: jax.Array, z: MUTGates, u: MUTGates) -> jax.Array:
        update_gate, reset_gate = sigmoid(z.z + u.z), sigmoid(z.r + u.r)
        return _next_state(params, carry, update_gate, reset_gate, z.n)


@dataclass(frozen=True)
class MUT3(Cell):
    r"""A mutant of the GRU: its update gate depends on tanh of the state.

    ::

        z = sigmoid(W_z x + U_z tanh(h) + b_z)              update gate
        r = sigmoid(W_r x + U_r h + b_r)                    reset gate
        n = tanh(W_n x + U_n (r * h) + b_n)                 candidate
        h' = z * n + (1 - z) * h,   y = h'

    z multiplies the candidate, as in the paper; in `GRU` it multiplies the old state. `update`
    computes the matrix products with tanh(h) and r * h, so it is not elementwise.

    Args:
      hidden_size: number of units.

    Raises:
      ValueError: `hidden_size` is not a positive int.

    >>> import jax, jax.numpy as jnp
    >>> cell = MUT3(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> h, y = cell.step(params, cell.init_carry(params, (2,)), jnp.ones((2, 3)))
    >>> h.shape
    (2, 4)

    References:
      Jozefowicz, Zaremba and Sutskever, 2015, An empirical exploration of recurrent network
      architectures.
    """

    hidden_size: int

    def __post_init__(self) -> None:
        checks.positive_int("MUT3", "hidden_size", self.hidden_size)

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> MUTParams:
        return _init_params(self.hidden_size, key, input_size, dtype, recurrent_gates=3)

    def init_carry(self, params: MUTParams, batch_shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros((*batch_shape, self.hidden_size), params.w_hh.dtype)

    def project(self, params: MUTParams, x: jax.Array) -> MUTGates:
        return split_gates(affine(self, x, params.w_ih, params.b), MUTGates, ("z", "r", "n"))

    def recur(self, params: MUTParams, carry: jax.Array) -> MUTGates:
        hidden = self.hidden_size
        return split_gates(carry @ params.w_hh[:, hidden : 2 * hidden], MUTGates, ("r",))

    def update(self, params: MUTParams, carry: jax.Array, z: MUTGates, u: MUTGates) -> jax.Array:
        # `recur` must be linear in the carry, so the product with tanh(h) is computed here.
        u_z = jnp.tanh(carry) @ params.w_hh[:, : self.hidden_size]
        update_gate, reset_gate = sigmoid(z.z + u_z), sigmoid(z.r + u.r)
        return _next_state(params, carry, update_gate, reset_gate, z.n)


def _init_params(
    hidden: int, key: jax.Array, input_size: int, dtype: DTypeLike, recurrent_gates: int
) -> MUTParams:
    key_ih, key_hh = jax.random.split(key)
    return MUTParams(
        w_ih=initializers.input_weights(key_ih, input_size, hidden, 3, dtype),
        w_hh=initializers.recurrent_weights(key_hh, hidden, recurrent_gates, dtype),
        b=jnp.zeros((3 * hidden,), dtype),
    )


def _next_state(
    params: MUTParams,
    carry: jax.Array,
    update_gate: jax.Array,
    reset_gate: jax.Array,
    z_n: jax.Array,
) -> jax.Array:
    """Returns the new state, given the gates and the input part of the candidate `z_n`."""
    update_gate, reset_gate = tap("z", update_gate), tap("r", reset_gate)
    u_n = (reset_gate * carry) @ params.w_hh[:, -carry.shape[-1] :]
    n = tap("n", jnp.tanh(z_n + u_n), role="candidate")
    return update_gate * n + (1 - update_gate) * carry
