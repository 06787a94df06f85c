"""Small cells for tests, with noise, integer carries, and pytrees as inputs and carries."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jrnn import Cell
from jrnn.cell import split_noise
from jrnn.taps import tap


@dataclass(frozen=True)
class Integrator(Cell):
    """c' = c + x, y = c': without products, so that only the carry is rounded."""

    hidden_size: int

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> jax.Array:
        return jnp.zeros((), dtype)

    def init_carry(self, params: jax.Array, batch_shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros((*batch_shape, self.hidden_size), params.dtype)

    def project(self, params: jax.Array, x: jax.Array) -> jax.Array:
        return x

    def recur(self, params: jax.Array, carry: jax.Array) -> None:
        return None

    def update(self, params: Any, carry: jax.Array, z: jax.Array, u: None) -> jax.Array:
        return carry + z


class NoisyParams(NamedTuple):
    """Weights of `Noisy`."""

    w_ih: jax.Array  # [input, hidden]
    w_hh: jax.Array  # [hidden, hidden]


@dataclass(frozen=True)
class Noisy(Cell):
    """h' = tanh(m_t * (W x) + (D * U) h), with dropout masks m_t for each step and D for all steps.

    The initial carry is all ones, so that resets are visible.
    """

    hidden_size: int
    keep: float = 0.5  # the probability to keep a value

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> NoisyParams:
        keys, h = jax.random.split(key), self.hidden_size
        return NoisyParams(
            jax.random.normal(keys[0], (input_size, h), dtype),
            jax.random.normal(keys[1], (h, h), dtype),
        )

    def init_carry(self, params: NoisyParams, batch_shape: tuple[int, ...]) -> jax.Array:
        return jnp.ones((*batch_shape, self.hidden_size), params.w_hh.dtype)

    def sample_noise(
        self, params: NoisyParams, xs: Any, leading: tuple[int, ...], key: jax.Array
    ) -> tuple[NoisyParams, jax.Array]:
        shape, dtype = (*leading, self.hidden_size), params.w_hh.dtype
        keys = jax.random.split(key)
        draw = lambda k, shape: jax.random.bernoulli(k, self.keep, shape) / self.keep
        dropped = draw(keys[0], params.w_hh.shape).astype(params.w_hh.dtype)
        masks = draw(keys[1], shape).astype(dtype)
        return params._replace(w_hh=params.w_hh * dropped), masks

    def project(self, params: NoisyParams, x: Any) -> jax.Array:
        x, mask = split_noise(x)
        z = x @ params.w_ih
        return z if mask is None else mask * z

    def recur(self, params: NoisyParams, carry: jax.Array) -> jax.Array:
        return carry @ params.w_hh

    def update(
        self, params: NoisyParams, carry: jax.Array, z: jax.Array, u: jax.Array
    ) -> jax.Array:
        return tap("h", jnp.tanh(z + u))


class Timed(NamedTuple):
    """Inputs at irregular time steps."""

    x: jax.Array  # [..., input]
    dt: jax.Array  # [...]


class Clock(NamedTuple):
    """A nested carry with an integer leaf."""

    inner: dict[str, jax.Array]  # leak [..., hidden]
    steps: jax.Array  # [...] int32


@dataclass(frozen=True)
class Leaky(Cell):
    """leak' = exp(-dt)·leak + w·x, steps' = steps + 1, y = leak' + steps'.

    Initially leak is 0.5 and steps is 100, so that resets are visible.
    """

    hidden_size: int

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> jax.Array:
        return jax.random.normal(key, (input_size, self.hidden_size), dtype)

    def init_carry(self, params: jax.Array, batch_shape: tuple[int, ...]) -> Clock:
        leak = jnp.full((*batch_shape, self.hidden_size), 0.5, params.dtype)
        return Clock({"leak": leak}, jnp.full(batch_shape, 100, jnp.int32))

    def project(self, params: jax.Array, x: Timed) -> tuple[jax.Array, jax.Array]:
        return jnp.exp(-x.dt)[..., None], x.x @ params

    def recur(self, params: jax.Array, carry: Clock) -> None:
        return None

    def update(self, params: jax.Array, carry: Clock, z: Any, u: None) -> Clock:
        decay, write = z
        return Clock({"leak": decay * carry.inner["leak"] + write}, carry.steps + 1)

    def readout(self, params: jax.Array, carry: Clock, z: Any) -> jax.Array:
        return carry.inner["leak"] + carry.steps[..., None]


@dataclass(frozen=True)
class Counter(Cell):
    """c' = c + 1, y = c', with an integer carry that is initially 0."""

    hidden_size: int = 1

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> jax.Array:
        return jnp.zeros((), dtype)

    def init_carry(self, params: jax.Array, batch_shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros(batch_shape, jnp.int32)

    def project(self, params: jax.Array, x: jax.Array) -> jax.Array:
        return 0 * x

    def recur(self, params: jax.Array, carry: jax.Array) -> None:
        return None

    def update(self, params: jax.Array, carry: jax.Array, z: jax.Array, u: None) -> jax.Array:
        return carry + 1

    def readout(self, params: jax.Array, carry: jax.Array, z: jax.Array) -> jax.Array:
        return z[..., :1] + carry[..., None]


class LearnedParams(NamedTuple):
    """Weights of `LearnedInitialCarry`, and its initial carry h0."""

    w_ih: jax.Array  # [input, hidden]
    w_hh: jax.Array  # [hidden, hidden]
    h0: jax.Array  # [hidden]


@dataclass(frozen=True)
class LearnedInitialCarry(Cell):
    """h' = tanh(W x + U h), with a learned initial carry."""

    hidden_size: int

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> Any:
        h = self.hidden_size
        weights = jax.random.normal(key, (input_size + h + 1, h), dtype)
        return LearnedParams(weights[:input_size], weights[input_size:-1], weights[-1])

    def init_carry(self, params: LearnedParams, batch_shape: tuple[int, ...]) -> jax.Array:
        return jnp.broadcast_to(params.h0, (*batch_shape, self.hidden_size))

    def project(self, params: LearnedParams, x: jax.Array) -> jax.Array:
        return x @ params.w_ih

    def recur(self, params: LearnedParams, carry: jax.Array) -> jax.Array:
        return carry @ params.w_hh

    def update(
        self, params: LearnedParams, carry: jax.Array, z: jax.Array, u: jax.Array
    ) -> jax.Array:
        return jnp.tanh(z + u)
