"""What is done to the carry: a first one that is learned, and limits."""

# pyright: reportIncompatibleMethodOverride=false, reportIncompatibleVariableOverride=false

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jrnn import checks
from jrnn.cell import Carry, Gates, Params, Recurrence
from jrnn.transforms.wrapper import Wrapper, refuse_tied


class LearnedCarryParams(NamedTuple):
    """The first carry, beside the parameters of the cell."""

    cell: Params
    carry: Carry  # leaves without batch axes


@dataclass(frozen=True)
class LearnedCarry(Wrapper):
    r"""A first carry that is a parameter, for every sequence and after every reset.

    ::

        s_0 = params.carry

    It begins as that of the cell.

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
        refuse_tied(self, "learning them one by one")

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
        # Copies: leaves of one carry may be one array, and a training step donates each once.
        return LearnedCarryParams(inside, jax.tree.map(jnp.copy, carry))

    def init_carry(self, params: LearnedCarryParams, batch_shape: tuple[int, ...]) -> Carry:
        spread = lambda leaf: jnp.broadcast_to(leaf, (*batch_shape, *leaf.shape))
        return jax.tree.map(spread, params.carry)


@dataclass(frozen=True)
class Clip(Wrapper):
    r"""Keeps each number of the carry within a limit, and each of its cotangents within another.

    ::

        s~, y = cell(s, x);   s' = min(max(s~, -carry), carry)
        backwards: ds' = min(max(ds', -gradient), gradient), step by step

    With `gradient` what is computed is no derivative: there is no forward mode, and engines that
    solve a linear equation for all gradients at once refuse the cell.

    Args:
      cell: the cell.
      carry: limit of the carry, or None.
      gradient: limit of what comes back from the step after, or None.

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
    coefficients: ClassVar[Any] = None
    log_space: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("carry", "gradient"):
            if getattr(self, name) is not None:
                checks.positive_number(self.owner, name, getattr(self, name))
        if self.carry is not None:
            refuse_tied(self, "limits of their own")
        if self.carry is None and self.gradient is None:
            raise ValueError(f"{self.owner}: give a limit, carry= or gradient=")

    @property
    def recurrence(self) -> Recurrence:
        return "dense" if self.cell.recurrence == "linear" else self.cell.recurrence

    @property
    def reverse_only(self) -> bool:
        return self.gradient is not None or self.cell.reverse_only

    def update(self, params: Params, carry: Carry, z: Gates, u: Gates) -> tuple[Carry, Any]:
        new, y = self.cell.update(params, carry, z, u)
        leaves, structure = jax.tree.flatten(new)
        if any(jnp.issubdtype(leaf.dtype, jnp.complexfloating) for leaf in leaves):
            raise TypeError(
                f"{self.owner}: the carry of {self.cell!r} is complex, and has no order; "
                "what keeps it small are its eigenvalues"
            )
        limited = [self._limited(leaf) for leaf in leaves]
        shown = [now for leaf, now in zip(leaves, limited, strict=True) if leaf is y]
        limited = [_limited_back(self.gradient, leaf) for leaf in limited]
        return jax.tree.unflatten(structure, limited), shown[0] if shown else y

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
