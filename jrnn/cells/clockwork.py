"""The clockwork RNN: modules of units, each updated with its own period."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jrnn import checks, initializers
from jrnn.cell import Cell
from jrnn.cells.common import affine
from jrnn.taps import tap

MAX_MODULES = 8
"""The maximum number of modules if `periods` is None."""


class ClockworkCarry(NamedTuple):
    """Hidden state `h [..., hidden]`, and the clock `t [...]`, int32, which counts steps."""

    h: jax.Array
    t: jax.Array


class ClockworkParams(NamedTuple):
    """Weights of the candidate."""

    w_ih: jax.Array  # [input, hidden]
    w_hh: jax.Array  # [hidden, hidden]; blocks from faster to slower modules are unused
    b: jax.Array  # [hidden]


@dataclass(frozen=True)
class Clockwork(Cell):
    r"""The clockwork RNN: modules with different update periods; fast modules depend on slow ones.

    ::

        n = tanh(W x + (M * U) h + b)                       candidate
        h'_k = n_k  where t mod T_k = 0,  else h_k          T_k: period of unit k
        t' = t + 1,   y = h'

    All modules have the same number of units. The mask M lets a module depend only on modules of
    the same or a longer period, so that M * U is block upper triangular; the masked weights of w_hh
    are initialized to 0 and have no gradient. At the first step, t = 0, all modules are active. The
    clock is part of the carry, counts modulo the least common multiple of the periods, and restarts
    at every reset. It is an integer and has no derivative, so `Newton` does not support this cell.

    Args:
      hidden_size: number of units.
      periods: period of each module in steps, in increasing order; None means 1, 2, 4, ..., for the
        largest number of modules up to 8 that divides `hidden_size`.

    Raises:
      ValueError: `hidden_size` is not a positive int, `periods` are not increasing positive ints,
        or `hidden_size` is not a multiple of their number (without periods: of one from 2 to 8).

    >>> import jax, jax.numpy as jnp
    >>> cell = Clockwork(hidden_size=4, periods=(1, 3))
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, y = cell.step(params, cell.init_carry(params, (2,)), jnp.ones((2, 3)))
    >>> y.shape, carry.t.tolist()
    ((2, 4), [1, 1])

    References:
      Koutnik, Greff, Gomez and Schmidhuber, 2014, A clockwork RNN.
    """

    hidden_size: int
    periods: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        checks.positive_int("Clockwork", "hidden_size", self.hidden_size)
        if self.periods is None:
            if self.hidden_size > MAX_MODULES and len(set(self.unit_periods.tolist())) == 1:
                raise ValueError(
                    f"Clockwork: hidden_size must be a multiple of a number from 2 to "
                    f"{MAX_MODULES}, got {self.hidden_size}; use a size such as "
                    f"{-(-self.hidden_size // MAX_MODULES) * MAX_MODULES}, or set periods=(1,)"
                )
            return
        checks.increasing_ints("Clockwork", "periods", self.periods)
        if self.hidden_size % len(self.periods):
            raise ValueError(
                f"Clockwork: hidden_size must be a multiple of the number of periods, "
                f"{len(self.periods)}, got {self.hidden_size}"
            )

    @property
    def unit_periods(self) -> np.ndarray:
        """The period of each unit, `[hidden]`."""
        modules = max(n for n in range(1, MAX_MODULES + 1) if self.hidden_size % n == 0)
        periods = self.periods or tuple(2**n for n in range(modules))
        return np.repeat(np.asarray(periods, np.int32), self.hidden_size // len(periods))

    def _masked(self, w_hh: jax.Array) -> jax.Array:
        """Recurrent weights, with 0 for connections from faster to slower units."""
        periods = self.unit_periods
        return w_hh * jnp.asarray(periods[:, None] >= periods, w_hh.dtype)

    def init(
        self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32
    ) -> ClockworkParams:
        key_ih, key_hh = jax.random.split(key)
        w_hh = initializers.recurrent_weights(key_hh, self.hidden_size, 1, dtype)
        return ClockworkParams(
            w_ih=initializers.input_weights(key_ih, input_size, self.hidden_size, 1, dtype),
            w_hh=self._masked(w_hh),
            b=jnp.zeros((self.hidden_size,), dtype),
        )

    def init_carry(self, params: ClockworkParams, batch_shape: tuple[int, ...]) -> ClockworkCarry:
        return ClockworkCarry(
            h=jnp.zeros((*batch_shape, self.hidden_size), params.w_hh.dtype),
            t=jnp.zeros(batch_shape, jnp.int32),
        )

    def project(self, params: ClockworkParams, x: jax.Array) -> jax.Array:
        return affine(self, x, params.w_ih, params.b)

    def recur(self, params: ClockworkParams, carry: ClockworkCarry) -> jax.Array:
        return carry.h @ self._masked(params.w_hh)

    def update(
        self, params: ClockworkParams, carry: ClockworkCarry, z: jax.Array, u: jax.Array
    ) -> ClockworkCarry:
        periods = self.unit_periods
        active = carry.t[..., None] % periods == 0
        n = tap("n", jnp.tanh(z + u), role="candidate")
        h = jnp.where(active, n, carry.h)
        tap("active", active.astype(h.dtype))
        # Without the modulus the int32 counter would overflow after 2^31 steps.
        common_period = math.lcm(*periods.tolist())
        return ClockworkCarry(h, (carry.t + 1) % common_period)

    def readout(self, params: ClockworkParams, carry: ClockworkCarry, z: jax.Array) -> jax.Array:
        return carry.h
