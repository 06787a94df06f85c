"""Small cells that are linear in their carry. Those in `TOYS` have oracles in NumPy."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jrnn import Cell
from jrnn.cell import Dense, Diagonal, split_noise
from tests.oracles.common import Row, sigmoid


class Linear(Cell):
    """Base class: parameters are drawn from N(0, 1), and `update` applies `coefficients`."""

    hidden_size: int

    def shapes(self, input_size: int) -> Any:
        """Returns a NamedTuple of the shapes of the parameters."""
        raise NotImplementedError

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> Any:
        shapes = self.shapes(input_size)
        keys = jax.random.split(key, len(shapes))
        leaves = [jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True)]
        return type(shapes)(*leaves)

    def init_carry(self, params: Any, batch_shape: tuple[int, ...]) -> Any:
        return jnp.zeros((*batch_shape, self.hidden_size), params.w_ih.dtype)

    def project(self, params: Any, x: jax.Array) -> Any:
        return x @ params.w_ih

    def recur(self, params: Any, carry: Any) -> None:
        return None

    def update(self, params: Any, carry: Any, z: Any, u: None) -> Any:
        return self.coefficients(params, z).apply(carry)  # pyright: ignore


class MixerParams(NamedTuple):
    w_ih: Any  # [input, hidden]
    m: Any  # [hidden, hidden]


@dataclass(frozen=True)
class Mixer(Linear):
    """s' = M s / 2 + W x, with the same matrix at all steps; y = tanh(s')."""

    hidden_size: int

    def shapes(self, input_size: int) -> MixerParams:
        return MixerParams((input_size, self.hidden_size), (self.hidden_size,) * 2)

    def coefficients(self, params: Any, z: Any) -> Any:
        return Dense(params.m.reshape((1,) * (z.ndim - 1) + params.m.shape) / 2, z)

    def readout(self, params: Any, carry: jax.Array, z: Any) -> jax.Array:
        return jnp.tanh(carry)


def mixer(params: MixerParams, s: np.ndarray, x: np.ndarray) -> Any:
    """The oracle of `Mixer`."""
    s = params.m @ s / 2 + params.w_ih.T @ x
    return s, np.tanh(s)


class VaryingMixerParams(NamedTuple):
    w_ih: Any  # [input, hidden]
    m: Any  # [hidden, hidden]
    v: Any  # [input, hidden]


@dataclass(frozen=True)
class VaryingMixer(Mixer):
    """s' = (M / 2 + (V x) (V x)^T / 4) s + W x, with another matrix at each step; y = tanh(s')."""

    hidden_size: int

    def shapes(self, input_size: int) -> Any:
        h = self.hidden_size
        return VaryingMixerParams((input_size, h), (h, h), (input_size, h))

    def project(self, params: VaryingMixerParams, x: jax.Array) -> Any:
        return x @ params.w_ih, x @ params.v

    def coefficients(self, params: VaryingMixerParams, z: Any) -> Any:
        z, v = z
        return Dense(params.m / 2 + v[..., :, None] * v[..., None, :] / 4, z)


def varying_mixer(params: VaryingMixerParams, s: np.ndarray, x: np.ndarray) -> Any:
    """The oracle of `VaryingMixer`."""
    v = params.v.T @ x
    s = (params.m / 2 + np.outer(v, v) / 4) @ s + params.w_ih.T @ x
    return s, np.tanh(s)


class MemoryParams(NamedTuple):
    w_ih: Any  # [input, hidden]
    w_v: Any  # [input, hidden]
    w_a: Any  # [input]
    q: Any  # [hidden]


@dataclass(frozen=True)
class Memory(Linear):
    """S' = a S + k v^T, y = S' q, with a matrix S; the scalar a, k and v depend on x."""

    hidden_size: int

    def shapes(self, input_size: int) -> MemoryParams:
        h = self.hidden_size
        return MemoryParams((input_size, h), (input_size, h), (input_size,), (h,))

    def init_carry(self, params: MemoryParams, batch_shape: tuple[int, ...]) -> Any:
        return jnp.zeros((*batch_shape, self.hidden_size, self.hidden_size), params.q.dtype)

    def project(self, params: MemoryParams, x: jax.Array) -> Any:
        decay = jax.nn.sigmoid(x @ params.w_a)
        return decay[..., None, None], x @ params.w_ih, x @ params.w_v

    def coefficients(self, params: MemoryParams, z: Any) -> Any:
        a, k, v = z
        return Diagonal(a, k[..., :, None] * v[..., None, :])

    def readout(self, params: MemoryParams, carry: jax.Array, z: Any) -> jax.Array:
        return carry @ params.q


def memory(params: MemoryParams, s: np.ndarray, x: np.ndarray) -> Any:
    """The oracle of `Memory`."""
    s = sigmoid(params.w_a @ x) * s + np.outer(params.w_ih.T @ x, params.w_v.T @ x)
    return s, s @ params.q


class PairCarry(NamedTuple):
    fast: Any  # [..., hidden]
    slow: Any  # [..., 1]


class PairParams(NamedTuple):
    w_ih: Any  # [input, 2 hidden + 1]
    decay: Any  # [1]
    fast: Any  # [hidden]
    slow: Any  # [1]


@dataclass(frozen=True)
class Pair(Linear):
    """A carry of two arrays, initialized from parameters; y = fast' * slow' + tanh(gate).

    `fast` decays by the sigmoid of a gate, and `slow` by the cosine of a parameter.
    """

    hidden_size: int

    def shapes(self, input_size: int) -> PairParams:
        return PairParams((input_size, 2 * self.hidden_size + 1), (1,), (self.hidden_size,), (1,))

    def init_carry(self, params: PairParams, batch_shape: tuple[int, ...]) -> Any:
        broadcast = lambda leaf: jnp.broadcast_to(leaf, (*batch_shape, *leaf.shape))
        return PairCarry(broadcast(params.fast), broadcast(params.slow))

    def project(self, params: PairParams, x: jax.Array) -> Any:
        h, z = self.hidden_size, x @ params.w_ih
        return z[..., :h], z[..., h : 2 * h], z[..., 2 * h :]

    def coefficients(self, params: PairParams, z: Any) -> Any:
        gate, write, drift = z
        a = PairCarry(jax.nn.sigmoid(gate), jnp.cos(params.decay))
        return Diagonal(a, PairCarry(write, drift))

    def readout(self, params: PairParams, carry: PairCarry, z: Any) -> jax.Array:
        return carry.fast * carry.slow + jnp.tanh(z[0])


def pair(params: PairParams, carry: PairCarry, x: np.ndarray) -> Any:
    """The oracle of `Pair`."""
    h, z = len(params.fast), params.w_ih.T @ x
    fast = sigmoid(z[:h]) * carry.fast + z[h : 2 * h]
    slow = np.cos(params.decay) * carry.slow + z[2 * h :]
    return PairCarry(fast, slow), fast * slow + np.tanh(z[:h])


class NoisyLinearParams(NamedTuple):
    w_ih: Any  # [input, hidden]
    decay: Any  # [hidden]


@dataclass(frozen=True)
class NoisyLinear(Linear):
    """s' = tanh(D decay) s + m_t W x: noise m_t for each step, a dropout mask D for all steps."""

    hidden_size: int

    def shapes(self, input_size: int) -> NoisyLinearParams:
        return NoisyLinearParams((input_size, self.hidden_size), (self.hidden_size,))

    def sample_noise(self, params: Any, xs: Any, leading: tuple[int, ...], key: Any) -> Any:
        shape, dtype = (*leading, self.hidden_size), params.decay.dtype
        keys = jax.random.split(key)
        dropped = params.decay * jax.random.bernoulli(keys[0], 0.5, params.decay.shape)
        return params._replace(decay=dropped), jax.random.normal(keys[1], shape, dtype)

    def project(self, params: NoisyLinearParams, x: Any) -> Any:
        x, mask = split_noise(x)
        z = x @ params.w_ih
        return z if mask is None else mask * z

    def coefficients(self, params: NoisyLinearParams, z: jax.Array) -> Any:
        return Diagonal(jnp.tanh(params.decay), z)


class GrowthParams(NamedTuple):
    w_ih: Any  # [1, hidden]


@dataclass(frozen=True)
class Growth(Linear):
    """s' = x s + w, y = s': the input `[..., 1]` is the growth factor."""

    hidden_size: int

    def shapes(self, input_size: int) -> GrowthParams:
        return GrowthParams((1, self.hidden_size))

    def project(self, params: GrowthParams, x: jax.Array) -> jax.Array:
        return x

    def coefficients(self, params: GrowthParams, z: jax.Array) -> Any:
        return Diagonal(z, jnp.broadcast_to(params.w_ih[0], (*z.shape[:-1], self.hidden_size)))


class CountingCarry(NamedTuple):
    sum: Any  # [..., hidden]
    steps: Any  # [...] int32


@dataclass(frozen=True)
class Counting(Growth):
    """`Growth` with an integer step counter in the carry."""

    hidden_size: int

    def init_carry(self, params: GrowthParams, batch_shape: tuple[int, ...]) -> Any:
        steps = jnp.zeros(batch_shape, jnp.int32)
        return CountingCarry(super().init_carry(params, batch_shape), steps)

    def coefficients(self, params: GrowthParams, z: jax.Array) -> Any:
        a, b = super().coefficients(params, z)
        one = jnp.ones(z.shape[:-1], jnp.int32)
        return Diagonal(CountingCarry(a, one), CountingCarry(b, one))

    def readout(self, params: GrowthParams, carry: CountingCarry, z: jax.Array) -> jax.Array:
        return carry.sum


def zero_carry(params: Any) -> np.ndarray:
    """Returns the initial carry `[hidden]` of a cell with weights w_ih `[input, hidden]`."""
    return np.zeros(params.w_ih.shape[1])


TOYS = {
    "mixer": Row(Mixer, mixer, zero_carry),
    "varying-mixer": Row(VaryingMixer, varying_mixer, zero_carry),
    "memory": Row(Memory, memory, lambda params: np.zeros(2 * params.q.shape)),
    "pair": Row(Pair, pair, lambda params: PairCarry(params.fast, params.slow)),
}
