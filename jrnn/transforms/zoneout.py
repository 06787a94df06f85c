"""Zoneout: some units keep their state for a step."""

# pyright: reportIncompatibleMethodOverride=false, reportIncompatibleVariableOverride=false

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jrnn import checks
from jrnn.cell import Carry, Gates, Inputs, Params
from jrnn.transforms.wrapper import Wrapper, keys_for, refuse_tied


@dataclass(frozen=True)
class Zoneout(Wrapper):
    r"""Keeps each number of the carry as it was, with a probability, for one step.

    ::

        s~, y = cell(s, x)
        s' = m * s + (1 - m) * s~,   m_t ~ Bernoulli(rate)      with a key
        s' = rate * s + (1 - rate) * s~                         without: the expected value

    Where y is a part of the new carry, as the h of most cells, so it stays: y = h'.

    Args:
      cell: the cell.
      h: rate of h, or of a carry that is one array.
      c: rate of all else in the carry, c of an LSTM, with one mask for leaves of one shape.

    Parts of a carry without a name in it, as in a stack of GRUs, have the rate h.

    Raises:
      TypeError: `cell` is no cell.
      ValueError: a rate outside [0, 1), or one for c of a cell whose carry is one array.

    >>> import jax, jax.numpy as jnp, jrnn
    >>> cell = Zoneout(jrnn.LSTM(hidden_size=4), h=0.05, c=0.5)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> _, ys = jrnn.unroll(cell, params, jnp.ones((9, 2, 3)), key=jax.random.key(1))
    >>> ys.shape
    (9, 2, 4)

    References:
      Krueger et al., 2017, Zoneout: regularizing RNNs by randomly preserving hidden activations.
    """

    h: float = 0.0
    c: float = 0.0
    plain_gates = False
    log_space: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.rate(self.owner, "h", self.h)
        checks.rate(self.owner, "c", self.c)
        refuse_tied(self, "keeping them one by one")

    def perturb(
        self, params: Params, xs: Inputs, leading: tuple[int, ...], key: jax.Array | None
    ) -> tuple[Params, Any]:
        own, inside = keys_for(key, 2)
        params, noise = self.perturb_inside(params, xs, leading, inside)
        return params, (noise, None if own is None else self._masks(params, leading, own))

    def _masks(self, params: Params, leading: tuple[int, ...], key: jax.Array) -> list[jax.Array]:
        """For each leaf of the carry that may stay, where it does."""
        carry = jax.eval_shape(lambda: self.cell.init_carry(params, leading))
        leaves, rates = jax.tree.leaves(carry), self._rates(carry)
        drawn = {}
        for leaf, r in zip(leaves, rates, strict=True):
            if r is not None and (leaf.shape, r) not in drawn:
                fold = jax.random.fold_in(key, len(drawn))
                drawn[leaf.shape, r] = jax.random.bernoulli(fold, r, leaf.shape)
        pairs = zip(leaves, rates, strict=True)
        return [drawn[leaf.shape, r] for leaf, r in pairs if r is not None]

    def _rates(self, carry: Carry) -> list[float | None]:
        """Of each leaf; None for what is no real or complex number: a clock goes on."""
        named, _ = jax.tree_util.tree_flatten_with_path(carry)
        moves = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.inexact)
        groups = ["h" if _is_h(path) else "c" for path, _ in named]
        for name in ("h", "c"):
            if getattr(self, name) and name not in groups:
                leaves = [jax.tree_util.keystr(path).strip(".") or "one array" for path, _ in named]
                other = "c" if name == "h" else "h"
                raise ValueError(
                    f"{self.owner}: no part of the carry of {self.cell!r} has the rate {name}; "
                    f"that of {', '.join(leaves)} is {other}: write {other}={getattr(self, name)}"
                )
        rates = [self.h if group == "h" else self.c for group in groups]
        return [r if moves(leaf) else None for r, (_, leaf) in zip(rates, named, strict=True)]

    def project(self, params: Params, x: Any) -> Gates:
        x, (noise, masks) = x
        return self.project_inside(params, x, noise), masks

    def update(self, params: Params, carry: Carry, z: Gates, u: Gates) -> tuple[Carry, Any]:
        z, masks = z
        new, y = self.cell.update(params, carry, z, u)
        leaves, structure = jax.tree.flatten(new)
        olds, keeps = jax.tree.leaves(carry), self._keeps(carry, masks)
        kept = [
            leaf if keep is None else _mix(keep, old, leaf)
            for keep, old, leaf in zip(keeps, olds, leaves, strict=True)
        ]
        shown = [stays for leaf, stays in zip(leaves, kept, strict=True) if leaf is y]
        return jax.tree.unflatten(structure, kept), shown[0] if shown else y

    def _keeps(self, carry: Carry, masks: list[jax.Array] | None) -> list[Any]:
        """Of each leaf what stays: a mask, a rate, or None where there is none."""
        rates = self._rates(carry)
        if masks is None:
            return rates
        each = iter(masks)
        return [None if r is None else next(each) for r in rates]

    @property
    def coefficients(self) -> Any:
        return None if self.cell.coefficients is None else self._coefficients

    def _coefficients(self, params: Params, z: Gates) -> tuple[Carry, Carry]:
        a, b = self.coefficients_inside(params, z)
        if self.cell.log_space:
            a, b = jax.tree.map(jnp.exp, (a, b))
        keeps = self._keeps(b, z[1])
        structure = jax.tree.structure(b)
        pairs = zip(keeps, jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        mixed = [
            (_decay(keep, a, b.ndim), _mix(keep, jnp.zeros_like(b), b)) for keep, a, b in pairs
        ]
        a, b = zip(*mixed, strict=True)
        return jax.tree.unflatten(structure, a), jax.tree.unflatten(structure, b)


def _is_h(path: tuple[Any, ...]) -> bool:
    """Whether a leaf is called h, or has no name: a carry that is one array."""
    return (
        not path
        or jax.tree_util.keystr(path[-1:]) == ".h"
        or isinstance(path[-1], jax.tree_util.SequenceKey)
    )


def _mix(keep: Any, old: jax.Array, new: jax.Array) -> jax.Array:
    """The old where it is kept, or as much of it as a rate says."""
    if isinstance(keep, float | int):
        return keep * old + (1 - keep) * new if keep else new
    return jnp.where(keep, old, new)


def _decay(keep: Any, a: jax.Array, axes: int) -> jax.Array:
    """The coefficient of a state of so many axes: 1 where it is kept; of a matrix the identity."""
    if a.ndim <= axes:
        return _mix(keep, jnp.ones((), a.dtype), a)
    keep = keep if isinstance(keep, float | int) else keep[..., None]
    return _mix(keep, jnp.eye(a.shape[-1], dtype=a.dtype), a)
