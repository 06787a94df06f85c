"""The continuous-time RNN of neuroscience: leaky membrane potentials with rates as outputs."""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jrnn import checks, initializers
from jrnn.cell import Cell, split_noise
from jrnn.cells.common import ACTIVATIONS, affine
from jrnn.taps import tap

RATE_ACTIVATIONS = {**ACTIVATIONS, "softplus": jax.nn.softplus}


class CTRNNCarry(NamedTuple):
    """Potentials `h [..., hidden]` and firing rates `r = activation(h) [..., hidden]`."""

    h: jax.Array
    r: jax.Array


class CTRNNParams(NamedTuple):
    """Weights of the input current W x + U r + b."""

    w_ih: jax.Array  # [input, hidden]
    w_hh: jax.Array  # [hidden, hidden]
    b: jax.Array  # [hidden]


@dataclass(frozen=True)
class CTRNN(Cell):
    r"""The continuous-time RNN of rate units, by Euler's method, with noise in the potentials.

    ::

        h' = (1 - alpha) * h + alpha * (W x + U r + b) + sqrt(2 alpha) sigma N(0, 1)
        r' = activation(h'),   y = r',   alpha = dt / tau

    This is the Euler-Maruyama method for the stochastic differential equation

        tau dh/dt = -h + W x + U r + b + sqrt(2 tau) sigma xi,   r = activation(h)

    with white noise xi. The noise is drawn independently at each step from the `key` argument of
    `unroll` or `step`; without a key the cell is deterministic. The carry contains both potentials
    and rates, so that `recur` is linear in the carry. A custom initial carry must be consistent:
    `CTRNNCarry(h, activation(h))`.

    Args:
      hidden_size: number of units.
      tau: time constant of the units, such as 100 ms.
      dt: duration of a step, in the units of `tau`; at most `tau`.
      sigma: noise level, the stationary standard deviation of a potential that receives only
        noise, in the limit dt -> 0.
      activation: "relu", "tanh", "sigmoid" or "softplus".

    Raises:
      ValueError: `hidden_size` is not a positive int, 0 < `dt` <= `tau` does not hold for finite
        numbers, `sigma` is not a finite number of at least 0, or `activation` is unknown.

    >>> import jax, jax.numpy as jnp
    >>> cell = CTRNN(hidden_size=4, sigma=0.1)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry = cell.init_carry(params, (2,))
    >>> carry, y = cell.step(params, carry, jnp.ones((2, 3)), key=jax.random.key(1))
    >>> carry.h.shape, y.shape
    ((2, 4), (2, 4))

    References:
      Song, Yang and Wang, 2016, Training excitatory-inhibitory recurrent neural networks for
        cognitive tasks: a simple and flexible framework.
    """

    hidden_size: int
    _: KW_ONLY
    tau: float = 100.0
    dt: float = 20.0
    sigma: float = 0.0
    activation: Literal["relu", "tanh", "sigmoid", "softplus"] = "relu"

    def __post_init__(self) -> None:
        checks.positive_int("CTRNN", "hidden_size", self.hidden_size)
        checks.positive_number("CTRNN", "tau", self.tau)
        checks.positive_number("CTRNN", "dt", self.dt)
        checks.non_negative_number("CTRNN", "sigma", self.sigma)
        checks.one_of("CTRNN", "activation", self.activation, RATE_ACTIVATIONS)
        if self.dt > self.tau:
            raise ValueError(
                f"CTRNN: dt must be at most tau, got dt={self.dt!r}, tau={self.tau!r}; use "
                "a smaller dt"
            )

    @property
    def alpha(self) -> float:
        """The step size relative to the time constant, dt / tau."""
        return self.dt / self.tau

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> CTRNNParams:
        key_ih, key_hh = jax.random.split(key)
        return CTRNNParams(
            w_ih=initializers.input_weights(key_ih, input_size, self.hidden_size, 1, dtype),
            w_hh=initializers.recurrent_weights(key_hh, self.hidden_size, 1, dtype),
            b=jnp.zeros((self.hidden_size,), dtype),
        )

    def init_carry(self, params: CTRNNParams, batch_shape: tuple[int, ...]) -> CTRNNCarry:
        h = jnp.zeros((*batch_shape, self.hidden_size), params.w_hh.dtype)
        return CTRNNCarry(h=h, r=RATE_ACTIVATIONS[self.activation](h))

    @property
    def is_stochastic(self) -> bool:
        return self.sigma > 0

    @property
    def has_coupled_carry(self) -> bool:
        return True

    def sample_noise(
        self, params: CTRNNParams, xs: jax.Array, leading: tuple[int, ...], key: jax.Array
    ) -> tuple[CTRNNParams, jax.Array]:
        noise = jax.random.normal(key, (*leading, self.hidden_size), params.w_hh.dtype)
        # The noise is added to the current, which `update` multiplies by alpha:
        # alpha sqrt(2 / alpha) = sqrt(2 alpha).
        return params, math.sqrt(2 / self.alpha) * self.sigma * noise

    def project(self, params: CTRNNParams, x: Any) -> jax.Array:
        x, noise = split_noise(x)
        z = affine(self, x, params.w_ih, params.b)
        return z if noise is None else z + noise

    def recur(self, params: CTRNNParams, carry: CTRNNCarry) -> jax.Array:
        return carry.r @ params.w_hh

    def update(
        self, params: CTRNNParams, carry: CTRNNCarry, z: jax.Array, u: jax.Array
    ) -> CTRNNCarry:
        h = tap("h", (1 - self.alpha) * carry.h + self.alpha * (z + u))
        r = tap("r", RATE_ACTIVATIONS[self.activation](h))
        return CTRNNCarry(h, r)

    def readout(self, params: CTRNNParams, carry: CTRNNCarry, z: jax.Array) -> jax.Array:
        return carry.r
