"""Zoneout: random units keep their previous state."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jrnn import checks
from jrnn.cell import Carry, Coefficients, Dense, Diagonal, Gates, Inputs, LogDiagonal, Params
from jrnn.transforms.wrapper import Wrapper, WrapperGates, check_independent_carry


@dataclass(frozen=True)
class Zoneout(Wrapper):
    r"""Keeps the previous value of each element of the carry with a given probability.

    ::

        s~, y = cell(s, x)
        s' = m * s + (1 - m) * s~,   m_t ~ Bernoulli(rate)      with a key
        s' = rate * s + (1 - rate) * s~                         without a key: the expected value

    The output is read from s', so that y = h' for cells whose output is h.

    Args:
      cell: the cell.
      h: rate of h, or of a carry that is one array.
      c: rate of all other leaves, such as c of an LSTM; leaves of the same shape have the same
        mask.

    Raises:
      TypeError: `cell` is not a `Cell`.
      ValueError: a rate is outside [0, 1), or no leaf of the carry has the rate.

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

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.rate(self.owner, "h", self.h)
        checks.rate(self.owner, "c", self.c)
        check_independent_carry(self, "zoneout")

    def sample_own_noise(
        self, params: Params, xs: Inputs, noise: Any, leading: tuple[int, ...], key: jax.Array
    ) -> tuple[Params, list[jax.Array]]:
        return params, self._sample_masks(params, leading, key)

    def transform_input(self, params: Params, x: Inputs, noise: Any) -> tuple[Inputs, Any]:
        return x, noise

    def _sample_masks(
        self, params: Params, leading: tuple[int, ...], key: jax.Array
    ) -> list[jax.Array]:
        """One mask for each floating leaf of the carry, True where the previous value is kept."""
        carry = jax.eval_shape(lambda: self.cell.init_carry(self.cell_params(params), leading))
        named, _ = jax.tree_util.tree_flatten_with_path(carry)
        masks, masks_by_kind = [], {}
        for (path, leaf), r in zip(named, self._rates(carry), strict=True):
            if r is None:
                continue
            kind = _is_h(path), leaf.shape
            if kind not in masks_by_kind:
                mask_key = jax.random.fold_in(key, len(masks_by_kind))
                masks_by_kind[kind] = jax.random.bernoulli(mask_key, r, leaf.shape)
            masks.append(masks_by_kind[kind])
        return masks

    def _rates(self, carry: Carry) -> list[float | None]:
        """The rate of each leaf; None for integers, such as a clock."""
        named, _ = jax.tree_util.tree_flatten_with_path(carry)
        is_inexact = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.inexact)
        groups = ["h" if _is_h(path) else "c" for path, _ in named]
        for name in ("h", "c"):
            if getattr(self, name) and name not in groups:
                leaves = [jax.tree_util.keystr(path).strip(".") or "one array" for path, _ in named]
                other = "c" if name == "h" else "h"
                raise ValueError(
                    f"{self.owner}: no leaf of the carry of {self.cell!r} has the rate {name}; "
                    f"that of {', '.join(leaves)} is {other}: write {other}={getattr(self, name)}"
                )
        rates = [self.h if group == "h" else self.c for group in groups]
        return [r if is_inexact(leaf) else None for r, (_, leaf) in zip(rates, named, strict=True)]

    def update(self, params: Params, carry: Carry, z: WrapperGates, u: Gates) -> Carry:
        new = self.cell.update(self.cell_params(params), carry, z.inner, u)
        leaves, structure = jax.tree.flatten(new)
        prev, keeps = jax.tree.leaves(carry), self._keep_masks(carry, z.extra)
        mixed = [
            leaf if keep is None else _mix(keep, old, leaf)
            for keep, old, leaf in zip(keeps, prev, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, mixed)

    def _keep_masks(self, carry: Carry, masks: list[jax.Array] | None) -> list[Any]:
        """For each leaf a mask or a rate, or None for a leaf that is never kept."""
        rates = self._rates(carry)
        if masks is None:
            return rates
        each = iter(masks)
        return [None if r is None else next(each) for r in rates]

    def coefficients(self, params: Params, z: WrapperGates) -> Coefficients | None:
        inner = self.cell.coefficients(self.cell_params(params), z.inner)
        if inner is None:
            return None
        kind = Dense if isinstance(inner, Dense) else Diagonal
        a, b = inner.exp() if isinstance(inner, LogDiagonal) else inner
        keeps = self._keep_masks(b, z.extra)
        structure = jax.tree.structure(b)
        pairs = list(zip(keeps, jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
        decays = [_decay(keep, a, kind is Dense) for keep, a, _ in pairs]
        offsets = [b if keep is None else _mix(keep, jnp.zeros_like(b), b) for keep, _, b in pairs]
        return kind(jax.tree.unflatten(structure, decays), jax.tree.unflatten(structure, offsets))


def _is_h(path: tuple[Any, ...]) -> bool:
    """Whether a leaf is the field h, or is the whole carry."""
    return not path or jax.tree_util.keystr(path[-1:]) == ".h"


def _mix(keep: Any, old: jax.Array, new: jax.Array) -> jax.Array:
    """The old value where a mask is True, or a weighted mean for a rate."""
    if isinstance(keep, float | int):
        return keep * old + (1 - keep) * new if keep else new
    return jnp.where(keep, old, new)


def _decay(keep: Any, a: jax.Array, dense: bool) -> jax.Array:
    """The coefficient of the state: 1, or the identity matrix, where the state is kept."""
    if keep is None:
        return a
    if not dense:
        return _mix(keep, jnp.ones((), a.dtype), a)
    keep = keep if isinstance(keep, float | int) else keep[..., None]
    return _mix(keep, jnp.eye(a.shape[-1], dtype=a.dtype), a)
