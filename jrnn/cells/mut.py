"""The three mutants of the GRU that a search over architectures found: MUT1, MUT2 and MUT3."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jax.typing import DTypeLike

from jrnn import checks, initializers
from jrnn.cell import Cell, place, record
from jrnn.cells.common import affine, product, split


class MUTParams(NamedTuple):
    """Weights with the gates side by side in the order z, r, n; `MUT1` has no recurrent z."""

    w_ih: jax.Array  # [input, 3·hidden]
    w_hh: jax.Array  # [hidden, 3·hidden], in MUT1 [hidden, 2·hidden]
    b: jax.Array  # [3·hidden]


class MUTGates(NamedTuple):
    """Pre-activations, each `[..., hidden]`; u lacks those whose products are in `update`."""

    z: jax.Array
    r: jax.Array
    n: jax.Array


@dataclass(frozen=True)
class MUT1(Cell):
    r"""A mutant of the GRU: its update gate sees the input alone, its candidate tanh of it.

    ::

        z = sigmoid(W_z x + b_z)                            what to write
        r = sigmoid(W_r x + U_r h + b_r)                    reset: what of the past shows
        n = tanh(tanh(W_n x) + U_n (r * h) + b_n)           candidate
        h' = z * n + (1 - z) * h,   y = h'

    In the paper tanh(x) has no weights, which takes an input as wide as the state; the common
    reading has W_n, and so does this one, with the one bias outside of the inner tanh.

    z writes here, as in the paper; the z of `GRU` keeps. The product with r * h is in `update`.

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
    pointwise = False

    def __post_init__(self) -> None:
        checks.positive_int("MUT1", "hidden_size", self.hidden_size)

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> MUTParams:
        return _init(self, key, input_size, dtype, recurrent_gates=2)

    def init_carry(self, params: MUTParams, batch_shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros((*batch_shape, self.hidden_size), params.w_hh.dtype)

    def project(self, params: MUTParams, x: jax.Array) -> MUTGates:
        a = split(product(self, x, params.w_ih), MUTGates, ("z", "r", "n"))
        b = split(params.b, MUTGates, ("z", "r", "n"))
        return MUTGates(z=a.z + b.z, r=a.r + b.r, n=jnp.tanh(a.n) + b.n)

    def recur(self, params: MUTParams, carry: jax.Array) -> MUTGates:
        return split(carry @ params.w_hh[:, : self.hidden_size], MUTGates, ("r",))

    def update(
        self, params: MUTParams, carry: jax.Array, z: MUTGates, u: MUTGates
    ) -> tuple[jax.Array, jax.Array]:
        write, reset = sigmoid(z.z), sigmoid(z.r + u.r)
        return _advance(params, carry, write, reset, z.n)


@dataclass(frozen=True)
class MUT2(Cell):
    r"""A mutant of the GRU: in the paper its reset gate takes in the input as it is.

    ::

        z = sigmoid(W_z x + U_z h + b_z)                    what to write
        r = sigmoid(W_r x + U_r h + b_r)                    reset: what of the past shows
        n = tanh(W_n x + U_n (r * h) + b_n)                 candidate
        h' = z * n + (1 - z) * h,   y = h'

    In the paper W_r is the identity, which takes an input as wide as the state; the common reading
    has a W_r that is learned, and so does this one. It is then the GRU of the first paper, `GRU`
    with `reset_after=False`, whose z keeps where this one writes.

    The product with r * h is in `update`.

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
    pointwise = False

    def __post_init__(self) -> None:
        checks.positive_int("MUT2", "hidden_size", self.hidden_size)

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> MUTParams:
        return _init(self, key, input_size, dtype, recurrent_gates=3)

    def init_carry(self, params: MUTParams, batch_shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros((*batch_shape, self.hidden_size), params.w_hh.dtype)

    def project(self, params: MUTParams, x: jax.Array) -> MUTGates:
        return split(affine(self, x, params.w_ih, params.b), MUTGates, ("z", "r", "n"))

    def recur(self, params: MUTParams, carry: jax.Array) -> MUTGates:
        return split(carry @ params.w_hh[:, : 2 * self.hidden_size], MUTGates, ("z", "r"))

    def update(
        self, params: MUTParams, carry: jax.Array, z: MUTGates, u: MUTGates
    ) -> tuple[jax.Array, jax.Array]:
        write, reset = sigmoid(z.z + u.z), sigmoid(z.r + u.r)
        return _advance(params, carry, write, reset, z.n)


@dataclass(frozen=True)
class MUT3(Cell):
    r"""A mutant of the GRU: its update gate sees the state through a tanh.

    ::

        z = sigmoid(W_z x + U_z tanh(h) + b_z)              what to write
        r = sigmoid(W_r x + U_r h + b_r)                    reset: what of the past shows
        n = tanh(W_n x + U_n (r * h) + b_n)                 candidate
        h' = z * n + (1 - z) * h,   y = h'

    z writes here, as in the paper; the z of `GRU` keeps. The products with tanh(h) and with r * h
    are in `update`.

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
    pointwise = False

    def __post_init__(self) -> None:
        checks.positive_int("MUT3", "hidden_size", self.hidden_size)

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> MUTParams:
        return _init(self, key, input_size, dtype, recurrent_gates=3)

    def init_carry(self, params: MUTParams, batch_shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros((*batch_shape, self.hidden_size), params.w_hh.dtype)

    def project(self, params: MUTParams, x: jax.Array) -> MUTGates:
        return split(affine(self, x, params.w_ih, params.b), MUTGates, ("z", "r", "n"))

    def recur(self, params: MUTParams, carry: jax.Array) -> MUTGates:
        hidden = self.hidden_size
        return split(carry @ params.w_hh[:, hidden : 2 * hidden], MUTGates, ("r",))

    def update(
        self, params: MUTParams, carry: jax.Array, z: MUTGates, u: MUTGates
    ) -> tuple[jax.Array, jax.Array]:
        # Of tanh(h) and not of h: no product for `recur`, which is linear in the carry.
        squashed = jnp.tanh(carry) @ params.w_hh[:, : self.hidden_size]
        write, reset = sigmoid(z.z + squashed), sigmoid(z.r + u.r)
        return _advance(params, carry, write, reset, z.n)


def _init(
    cell: Cell, key: jax.Array, input_size: int, dtype: DTypeLike, recurrent_gates: int
) -> MUTParams:
    owner, hidden = f"{type(cell).__name__}.init", cell.hidden_size
    dtype = checks.float_dtype(owner, dtype)
    checks.positive_int(owner, "input_size", input_size)
    key_ih, key_hh = jax.random.split(key)
    return MUTParams(
        w_ih=initializers.input_weights(key_ih, input_size, hidden, 3, dtype),
        w_hh=initializers.recurrent_weights(key_hh, hidden, recurrent_gates, dtype),
        b=jnp.zeros((3 * hidden,), dtype),
    )


def _advance(
    params: MUTParams, carry: jax.Array, write: jax.Array, reset: jax.Array, given: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The new state, of the gates and of what the input gives to the candidate."""
    past = (reset * carry) @ params.w_hh[:, -carry.shape[-1] :]
    n = place("candidate", jnp.tanh(given + past))
    h = write * n + (1 - write) * carry
    record(z=write, r=reset, n=n)
    return h, h
