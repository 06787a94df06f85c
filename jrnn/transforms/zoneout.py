"""Zoneout: randomly chosen elements of the carry keep their previous values."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jrnn import checks
from jrnn.cell import Carry, Coefficients, Dense, Diagonal, Gates, Inputs, LogDiagonal, Params
from jrnn.dtypes import sample_mask
from jrnn.transforms.wrapper import Wrapper, WrapperGates, check_independent_carry


@dataclass(frozen=True)
class Zoneout(Wrapper):
    r"""Keeps the previous value of each element of the carry with a given probability.

    ::

        s~ = update(s, x)                                       of the inner cell
        s' = m * s + (1 - m) * s~,   m ~ Bernoulli(rate)        with a key
        s' = rate * s + (1 - rate) * s~                         without a key, the expected value
        y = readout(s')

    A new mask m is drawn at each step. The output is computed from s', so that y = h' for cells
    whose output is h.

    Args:
      cell: the inner cell.
      h: zoneout rate of the field `h` of the carry, or of a carry that is one array.
      c: zoneout rate of all other arrays of the carry, such as the field `c` of an LSTM; those
        with the same shape have the same mask, and integer arrays are not changed.

    Raises:
      TypeError: `cell` is not a `Cell`.
      ValueError: a rate is outside [0, 1), or an array in the carry determines or scales another
        one, as in `CTRNN`. `update` raises it if a rate is above 0 and applies to no array.

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
        """Draws a mask for each floating leaf of the carry; True keeps the previous value."""
        carry = jax.eval_shape(lambda: self.cell.init_carry(self.cell_params(params), leading))
        named, _ = jax.tree_util.tree_flatten_with_path(carry)
        masks, masks_by_group = [], {}
        for (path, leaf), rate in zip(named, self._rates(carry), strict=True):
            if rate is None:
                continue
            group = _is_h(path), leaf.shape
            if group not in masks_by_group:
                mask_key = jax.random.fold_in(key, len(masks_by_group))
                masks_by_group[group] = sample_mask(mask_key, rate, leaf.shape)
            masks.append(masks_by_group[group])
        return masks

    def _rates(self, carry: Carry) -> list[float | None]:
        """Returns the rate of each leaf; None for an integer leaf, such as a step counter."""
        named, _ = jax.tree_util.tree_flatten_with_path(carry)
        is_integer = lambda leaf: not jnp.issubdtype(leaf.dtype, jnp.inexact)
        groups = [None if is_integer(a) else "h" if _is_h(path) else "c" for path, a in named]
        for name in ("h", "c"):
            if getattr(self, name) and name not in groups:
                leaves = [jax.tree_util.keystr(path).strip(".") or "one array" for path, _ in named]
                other = "c" if name == "h" else "h"
                raise ValueError(
                    f"{self.owner}: {name} must be 0 for {self.cell!r}, whose carry is "
                    f"{', '.join(leaves)}, got {name}={getattr(self, name)}; set "
                    f"{other}={getattr(self, name)} instead"
                )
        rates = {"h": self.h, "c": self.c, None: None}
        return [rates[group] for group in groups]

    def update(self, params: Params, carry: Carry, z: WrapperGates, u: Gates) -> Carry:
        new = self.cell.update(self.cell_params(params), carry, z.inner, u)
        leaves, structure = jax.tree.flatten(new)
        keep_masks = self._keep_masks(carry, z.extra)
        mixed = [
            leaf if keep is None else _mix(keep, prev, leaf)
            for keep, prev, leaf in zip(keep_masks, jax.tree.leaves(carry), leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, mixed)

    def _keep_masks(self, carry: Carry, masks: list[jax.Array] | None) -> list[Any]:
        """Returns for each leaf its mask, or its rate without masks; None for an integer leaf."""
        rates = self._rates(carry)
        if masks is None:
            return rates
        remaining = iter(masks)
        return [None if rate is None else next(remaining) for rate in rates]

    def coefficients(self, params: Params, z: WrapperGates) -> Coefficients | None:
        inner = self.cell.coefficients(self.cell_params(params), z.inner)
        if inner is None:
            return None
        is_dense = isinstance(inner, Dense)
        a, b = inner.exp() if isinstance(inner, LogDiagonal) else inner
        keep_masks = self._keep_masks(b, z.extra)
        structure = jax.tree.structure(b)
        leaves = list(zip(keep_masks, jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
        decays = [_decay(keep, a, is_dense) for keep, a, _ in leaves]
        offsets = [b if keep is None else _mix(keep, jnp.zeros_like(b), b) for keep, _, b in leaves]
        a, b = (jax.tree.unflatten(structure, leaves) for leaves in (decays, offsets))
        return Dense(a, b) if is_dense else Diagonal(a, b)


def _is_h(path: tuple[Any, ...]) -> bool:
    """Returns whether a leaf of the carry is the field h or the whole carry."""
    return not path or jax.tree_util.keystr(path[-1:]) == ".h"


def _mix(keep: Any, old: jax.Array, new: jax.Array) -> jax.Array:
    """Returns old where the mask `keep` is True, else new; for a rate, their weighted mean."""
    if isinstance(keep, float | int):
        return keep * old + (1 - keep) * new if keep else new
    return jnp.where(keep, old, new)


def _decay(keep: Any, a: jax.Array, is_dense: bool) -> jax.Array:
    """Returns the coefficient `a`, replaced by 1 or the identity where the old state is kept."""
    if keep is None:
        return a
    if not is_dense:
        return _mix(keep, jnp.ones((), a.dtype), a)
    keep = keep if isinstance(keep, float | int) else keep[..., None]
    return _mix(keep, jnp.eye(a.shape[-1], dtype=a.dtype), a)
