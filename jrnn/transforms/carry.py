"""Transforms of the carry: a learned initial carry, and clipping."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jrnn import checks
from jrnn.cell import Carry, Gates, Params
from jrnn.transforms.wrapper import Wrapper, WrapperGates, check_independent_carry


class LearnedCarryParams(NamedTuple):
    """The parameters of the inner cell, and the initial carry."""

    cell: Params
    carry: Carry  # leaves without batch axes


@dataclass(frozen=True)
class LearnedCarry(Wrapper):
    r"""Makes the initial carry a parameter; it is used at the first step and after a reset.

    ::

        s_0 = params.carry

    The parameter is initialized to the initial carry of the inner cell.

    Args:
      cell: the inner cell.

    Raises:
      TypeError: `cell` is not a `Cell`. `init` raises it if the carry has integer or complex
        arrays.
      ValueError: an array in the carry determines or scales another one, as in `CTRNN`.

    >>> import jax, jax.numpy as jnp, jrnn
    >>> cell = LearnedCarry(jrnn.GRU(hidden_size=4))
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> params.carry.shape, cell.init_carry(params, (2,)).shape
    ((4,), (2, 4))
    """

    has_own_params = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_independent_carry(self, "a learned initial carry")

    def init(
        self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32
    ) -> LearnedCarryParams:
        inner = self.cell.init(key, input_size, dtype)
        carry = self.cell.init_carry(inner, ())
        if not all(jnp.issubdtype(a.dtype, jnp.floating) for a in jax.tree.leaves(carry)):
            raise TypeError(
                f"{self.owner}: cell must have a carry of real floating arrays, got {self.cell!r} "
                f"with {', '.join(a.dtype.name for a in jax.tree.leaves(carry))}; use another "
                "cell, or pass an initial carry to unroll instead"
            )
        # Copy the arrays, since they may share a buffer, which can be donated only once.
        return LearnedCarryParams(inner, jax.tree.map(jnp.copy, carry))

    def init_carry(self, params: LearnedCarryParams, batch_shape: tuple[int, ...]) -> Carry:
        broadcast = lambda leaf: jnp.broadcast_to(leaf, (*batch_shape, *leaf.shape))
        return jax.tree.map(broadcast, params.carry)


@dataclass(frozen=True)
class Clip(Wrapper):
    r"""Clips the carry elementwise, and its cotangent in the backward pass.

    ::

        s' = min(max(update(s, x), -carry), carry),   y = readout(s')
        backward pass: ds' = min(max(ds', -gradient), gradient) at each step

    ds' is the full cotangent of the new carry, which comes from the next step and from the output.
    With `gradient`, forward-mode differentiation is not supported, since a clipped cotangent is not
    the derivative of any function, and the `Newton` engine raises a TypeError. `coefficients`
    returns None, so the `Associative` engine does not support a clipped cell. Integer arrays in the
    carry, such as a step counter, are not clipped.

    Args:
      cell: the inner cell.
      carry: largest absolute value of the carry; None for no clipping.
      gradient: largest absolute value of the cotangent of the new carry; None for no clipping.

    Raises:
      TypeError: `cell` is not a `Cell`. `update` raises it if the carry is complex.
      ValueError: `carry` or `gradient` is not a finite number above 0, or both are None; or `carry`
        is given and an array in the carry determines or scales another one, as in `CTRNN`.

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
            check_independent_carry(self, "elementwise clipping")
        if self.carry is None and self.gradient is None:
            raise ValueError(
                f"{self.owner}: carry or gradient must be a number, got None for both; set "
                "one of them"
            )

    def coefficients(self, params: Params, z: WrapperGates) -> None:
        return None

    def update(self, params: Params, carry: Carry, z: WrapperGates, u: Gates) -> Carry:
        new = self.cell.update(self.cell_params(params), carry, z.inner, u)
        if any(jnp.issubdtype(leaf.dtype, jnp.complexfloating) for leaf in jax.tree.leaves(new)):
            raise TypeError(
                f"{self.owner}: cell must have a real carry, got {self.cell!r} with a complex "
                "carry; use the cell without clip, or a cell with a real carry"
            )
        return jax.tree.map(
            lambda leaf: _clip_cotangent(self.gradient, self._clip_carry(leaf)), new
        )

    def _clip_carry(self, leaf: jax.Array) -> jax.Array:
        if self.carry is None or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return jnp.clip(leaf, -self.carry, self.carry)


def _clip_cotangent(limit: float | None, leaf: jax.Array) -> jax.Array:
    """Returns the leaf; its cotangent is clipped, unless `limit` is None or the leaf is integer."""
    floating = jnp.issubdtype(leaf.dtype, jnp.floating)
    return leaf if limit is None or not floating else _identity_with_clipped_cotangent(limit, leaf)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _identity_with_clipped_cotangent(limit: float, leaf: jax.Array) -> jax.Array:
    return leaf


def _forward(limit: float, leaf: jax.Array) -> tuple[jax.Array, None]:
    return leaf, None


def _backward(limit: float, _: None, ct: jax.Array) -> tuple[jax.Array]:
    return (jnp.clip(ct, -limit, limit),)


_identity_with_clipped_cotangent.defvjp(_forward, _backward)
