"""The clockwork RNN: groups of units (modules), each updated with its own period."""

import math
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jrnn import checks, initializers
from jrnn.broadcasting import expand_like
from jrnn.cell import Cell
from jrnn.cells.common import affine
from jrnn.taps import tap

MAX_MODULES = 8
"""The maximum number of modules that is chosen if `periods` is None."""
MAX_COMMON_PERIOD = 2**31 - 1
"""The maximum of the step counter, an int32."""


class ClockworkCarry(NamedTuple):
    """Hidden state `h [..., hidden]`, and the step counter `t [...]`, int32."""

    h: jax.Array
    t: jax.Array


class ClockworkParams(NamedTuple):
    """Weights of the candidate."""

    w_ih: jax.Array  # [input, hidden]
    w_hh: jax.Array  # [hidden, hidden]; the masked blocks have no effect
    b: jax.Array  # [hidden]


@dataclass(frozen=True)
class Clockwork(Cell):
    r"""The clockwork RNN: modules with different update periods; fast modules depend on slow ones.

    ::

        n = tanh(W x + (M * U) h + b)                       candidate
        h'_k = n_k if t mod T_k = 0, else h_k               T_k is the period of unit k
        t' = t + 1,   y = h'

    The units are divided into modules of equal size, and all units of a module have the same
    period. M is a binary mask: M_kj = 1 where T_j >= T_k, else 0. So a module depends only on
    modules with the same or a longer period, and M * U is block upper triangular. The masked
    weights of w_hh are initialized to 0 and have zero gradients.

    The step counter t is part of the carry. It is 0 at the first step and after a reset, so that
    all modules are updated there, and wraps around at the least common multiple of the periods.
    Since t is an integer, the `Newton` engine does not support this cell.

    Args:
      hidden_size: number of units.
      periods: the period of each module in steps, in increasing order. By default there are n
        modules with the periods 1, 2, 4, ..., 2^(n - 1), where n is the largest number up to 8
        that divides `hidden_size`.

    Raises:
      ValueError: `hidden_size` is not a positive int, `periods` is not a tuple of increasing
        positive ints with a least common multiple below 2^31, or `hidden_size` is not a multiple
        of their number. With `periods=None`: `hidden_size` is above 8 and not a multiple of any
        number from 2 to 8.

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
    _: KW_ONLY
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
        if (common := math.lcm(*self.periods)) > MAX_COMMON_PERIOD:
            raise ValueError(
                f"Clockwork: the least common multiple of periods must be below 2^31, since steps "
                f"are counted in 32 bits, got {common}; use periods with common factors"
            )

    @property
    def unit_periods(self) -> np.ndarray:
        """The period of each unit, `[hidden]`."""
        modules = max(n for n in range(1, MAX_MODULES + 1) if self.hidden_size % n == 0)
        periods = self.periods or tuple(2**n for n in range(modules))
        return np.repeat(np.asarray(periods, np.int32), self.hidden_size // len(periods))

    def _mask_recurrent_weights(self, w_hh: jax.Array) -> jax.Array:
        """Sets the weights from units to units with a longer period to 0."""
        periods = self.unit_periods
        return w_hh * jnp.asarray(periods[:, None] >= periods, w_hh.dtype)

    def init(
        self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32
    ) -> ClockworkParams:
        key_ih, key_hh = jax.random.split(key)
        w_hh = initializers.recurrent_weights(key_hh, self.hidden_size, 1, dtype)
        return ClockworkParams(
            w_ih=initializers.input_weights(key_ih, input_size, self.hidden_size, 1, dtype),
            w_hh=self._mask_recurrent_weights(w_hh),
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
        return carry.h @ self._mask_recurrent_weights(params.w_hh)

    def update(
        self, params: ClockworkParams, carry: ClockworkCarry, z: jax.Array, u: jax.Array
    ) -> ClockworkCarry:
        periods = self.unit_periods
        t = carry.t[..., None]
        active = t % expand_like(jnp.asarray(periods), t) == 0
        n = tap("n", jnp.tanh(z + u), role="candidate")
        h = jnp.where(active, n, carry.h)
        tap("active", active.astype(h.dtype))
        # Without wrapping around, the int32 counter would overflow after 2^31 steps.
        common_period = math.lcm(*periods.tolist())
        return ClockworkCarry(h, (carry.t + 1) % common_period)

    def readout(self, params: ClockworkParams, carry: ClockworkCarry, z: jax.Array) -> jax.Array:
        return carry.h
