"""Transforms of the carry: a learned first carry, and clipping."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jrnn import checks
from jrnn.cell import Carry, Gates, Params
from jrnn.transforms.wrapper import Wrapper, WrapperGates, refuse_coupled_carry


class LearnedCarryParams(NamedTuple):
    """The first carry, beside the parameters of the cell."""

    cell: Params
    carry: Carry  # leaves without batch axes


@dataclass(frozen=True)
class LearnedCarry(Wrapper):
    r"""Learns the first carry, which every sequence and every reset starts from.

    ::

        s_0 = params.carry

    It starts at that of the cell.

    Args:
      cell: the cell.

    Raises:
      TypeError: `cell` is no cell; or, at `init`, its carry is not of real floats alone.

    >>> import jax, jax.numpy as jnp, jrnn
    >>> cell = LearnedCarry(jrnn.GRU(hidden_size=4))
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> params.carry.shape, cell.init_carry(params, (2,)).shape
    ((4,), (2, 4))
    """

    nested = True

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_coupled_carry(self, "a learned value of each by itself")

    def init(
        self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32
    ) -> LearnedCarryParams:
        inside = self.cell.init(key, input_size, dtype)
        carry = self.cell.init_carry(inside, ())
        if not all(jnp.issubdtype(a.dtype, jnp.floating) for a in jax.tree.leaves(carry)):
            raise TypeError(
                f"{self.owner}: the carry must be of real floats alone, got "
                f"{[a.dtype.name for a in jax.tree.leaves(carry)]} of {self.cell!r}; "
                "pass a carry to unroll, or choose another cell"
            )
        # Copies, because leaves of a carry may share a buffer, which can be donated only once.
        return LearnedCarryParams(inside, jax.tree.map(jnp.copy, carry))

    def init_carry(self, params: LearnedCarryParams, batch_shape: tuple[int, ...]) -> Carry:
        spread = lambda leaf: jnp.broadcast_to(leaf, (*batch_shape, *leaf.shape))
        return jax.tree.map(spread, params.carry)


@dataclass(frozen=True)
class Clip(Wrapper):
    r"""Clips each number of the carry to a limit, and each of its cotangents to another.

    ::

        s' = min(max(update(s, x), -carry), carry),   y = readout(s')
        backwards: ds' = min(max(ds', -gradient), gradient), step by step

    ds' is the whole cotangent of the new carry, from the next step and from the output. The result
    of clipping it is no derivative: there is no forward mode, and engines that solve a linear
    equation for all gradients at once refuse the cell.

    Args:
      cell: the cell.
      carry: limit of the carry, or None.
      gradient: limit of the cotangent of the new carry, or None.

    Raises:
      TypeError: `cell` is no cell; or, when run, its carry is complex.
      ValueError: a limit is not above 0, or both are None.

    >>> import jax, jax.numpy as jnp, jrnn
    >>> cell = Clip(jrnn.LSTM(hidden_size=4), carry=3.0, gradient=1.0)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, _ = jrnn.unroll(cell, params, 1e6 * jnp.ones((9, 2, 3)))
    >>> bool((abs(carry.c) <= 3).all())
    True

    References:
      Graves, 2013, Generating sequences with recurrent neural networks (clipped derivatives).
      Sak, Senior and Beaufays, 2014, Long short-term memory recurrent neural network architectures
        for large scale acoustic modeling (clipped cells).
    """

    carry: float | None = None
    gradient: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("carry", "gradient"):
            if getattr(self, name) is not None:
                checks.positive_number(self.owner, name, getattr(self, name))
        if self.carry is not None:
            refuse_coupled_carry(self, "clipping of each by itself")
        if self.carry is None and self.gradient is None:
            raise ValueError(f"{self.owner}: give a limit, carry= or gradient=")

    def coefficients(self, params: Params, z: WrapperGates) -> None:
        return None

    def update(self, params: Params, carry: Carry, z: WrapperGates, u: Gates) -> Carry:
        new = self.cell.update(self.inside(params), carry, z.inside, u)
        if any(jnp.issubdtype(leaf.dtype, jnp.complexfloating) for leaf in jax.tree.leaves(new)):
            raise TypeError(
                f"{self.owner}: the carry of {self.cell!r} is complex and cannot be clipped; its "
                "eigenvalues keep it small"
            )
        return jax.tree.map(lambda leaf: _limited_back(self.gradient, self._limited(leaf)), new)

    def _limited(self, leaf: jax.Array) -> jax.Array:
        if self.carry is None or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return jnp.clip(leaf, -self.carry, self.carry)


def _limited_back(limit: float | None, leaf: jax.Array) -> jax.Array:
    floating = jnp.issubdtype(leaf.dtype, jnp.floating)
    return leaf if limit is None or not floating else _identity(limit, leaf)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _identity(limit: float, leaf: jax.Array) -> jax.Array:
    return leaf


def _forward(limit: float, leaf: jax.Array) -> tuple[jax.Array, None]:
    return leaf, None


def _backward(limit: float, _: None, ct: jax.Array) -> tuple[jax.Array]:
    return (jnp.clip(ct, -limit, limit),)


_identity.defvjp(_forward, _backward)
