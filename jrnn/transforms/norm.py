"""Layer normalisation inside the recurrence."""

# pyright: reportIncompatibleMethodOverride=false, reportIncompatibleVariableOverride=false

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from jrnn import checks
from jrnn.cell import Carry, Cell, Gates, Inputs, Params, Recurrence, acting
from jrnn.transforms.wrapper import Wrapper


class LayerNormParams(NamedTuple):
    """Gains, beside the parameters of the cell; its b is the shift of all gates."""

    cell: Params
    gain_ih: jax.Array  # [G·hidden]
    gain_hh: jax.Array | None  # [G·hidden], of the gates that see the carry
    gain_c: jax.Array | None  # [hidden], where the cell shows a state
    shift_c: jax.Array | None  # [hidden]


@dataclass(frozen=True)
class LayerNorm(Wrapper):
    r"""Layer normalisation of what gates see of input and carry, and of the state that is shown.

    ::

        gain_ih * norm(W x) + gain_hh * norm(U h) + b       in place of W x + U h + b, of all gates
        h' = o * tanh(gain_c * norm(c') + shift_c)          where the cell shows a state
        norm(v) = (v - mean v) / sqrt(var v + epsilon)

    Mean and variance are over all gates of a product together, as in the LSTM of the paper and in
    haste, or with `per_gate` over each by itself. The shifts of the paper would do what b does.
    Where a bias stands within a gate, the b_hn of a GRU, it is added after the norm.

    It goes directly round a cell, inside of other transforms: `zoneout(layer_norm(LSTM(64)))`.

    Args:
      cell: a cell whose parameters have a bias `b`, and that multiplies no matrix in `update`.
      per_gate: whether each gate is normalised by itself.
      shown: whether a state is normalised on its way to the output; cells without one ignore it.
      epsilon: added to the variance.

    Raises:
      TypeError: `cell` is no cell, or its parameters have no `b` for all gates.
      ValueError: a product within `update`, or gates that are not W x + b, cannot be normalised;
        the cell is a transform, or has noise; `epsilon` is not above 0.

    >>> import jax, jax.numpy as jnp, jrnn
    >>> cell = LayerNorm(jrnn.LSTM(hidden_size=4))
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> params.gain_hh.shape, params.gain_c.shape
    ((16,), (4,))

    References:
      Ba, Kiros and Hinton, 2016, Layer normalization.
      Haste, LayerNormLSTM and LayerNormGRU (joint statistics, no shifts but b).
    """

    per_gate: bool = False
    shown: bool = True
    epsilon: float = 1e-5
    nested = True

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.boolean(self.owner, "per_gate", self.per_gate)
        checks.boolean(self.owner, "shown", self.shown)
        checks.positive_number(self.owner, "epsilon", self.epsilon)
        if isinstance(self.cell, Wrapper) or self.cell.perturb is not None:
            raise ValueError(
                f"{self.owner}: goes directly round a cell without noise, inside of other "
                f"transforms, got {self.cell!r}; write zoneout(layer_norm(...)) and not the reverse"
            )
        if not self.cell.affine_gates:
            raise ValueError(
                f"{self.owner}: {self.cell!r} does more to its inputs than W x + b, gate by gate; "
                "there is no place for the norm: choose another cell"
            )
        if not self.cell.pointwise:
            raise ValueError(
                f"{self.owner}: {self.cell!r} multiplies a matrix in update, where it cannot be "
                "normalised; choose a cell or an option without, such as GRU(reset_after=True)"
            )

    @property
    def pointwise(self) -> bool:
        return not self._mixes

    @property
    def recurrence(self) -> Recurrence:
        return "dense" if self._mixes else self.cell.recurrence

    @property
    def _mixes(self) -> bool:
        """Whether a norm within `update` mixes hidden units."""
        sizes = _sizes(self.cell)
        return bool(sizes.hh) or (self.shown and sizes.shown is not None)

    def init(
        self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32
    ) -> LayerNormParams:
        inside = self.cell.init(key, input_size, dtype)
        sizes = _sizes(self.cell)
        bias = getattr(inside, "b", None)
        if bias is None or bias.shape != (sum(sizes.ih),):
            raise TypeError(
                f"{self.owner}: the parameters of the cell must have a bias b [{sum(sizes.ih)}], "
                f"one number for each of all gates, got {self.cell!r}; choose another cell"
            )
        ones = lambda size: jnp.ones((size,), dtype) if size else None
        width = sizes.shown if self.shown else None
        return LayerNormParams(
            cell=inside,
            gain_ih=jnp.ones((sum(sizes.ih),), dtype),
            gain_hh=ones(sum(sizes.hh)),
            gain_c=ones(width),
            shift_c=None if width is None else jnp.zeros((width,), dtype),
        )

    def project(self, params: LayerNormParams, x: Inputs) -> Gates:
        bare = params.cell._replace(b=jnp.zeros_like(params.cell.b))
        z = self._normed(self.cell.project(bare, x), params.gain_ih)
        leaves, structure = jax.tree.flatten(z)
        biases = _cut(params.cell.b, leaves)
        return jax.tree.unflatten(structure, map(jnp.add, leaves, biases))

    def update(
        self, params: LayerNormParams, carry: Carry, z: Gates, u: Gates
    ) -> tuple[Carry, Any]:
        if params.gain_hh is not None:
            u = self._normed(u, params.gain_hh)
        gain, shift = params.gain_c, params.shift_c
        if gain is None or shift is None:
            return self.cell.update(params.cell, carry, z, u)
        norm = lambda c: gain * _norm([c], self.epsilon)[0] + shift
        with acting("shown", norm):
            return self.cell.update(params.cell, carry, z, u)

    def _normed(self, gates: Gates, gain: jax.Array) -> Gates:
        leaves, structure = jax.tree.flatten(gates)
        each = [[leaf] for leaf in leaves] if self.per_gate else [leaves]
        normed = [a for group in each for a in _norm(group, self.epsilon)]
        gains = _cut(gain, leaves)
        return jax.tree.unflatten(structure, map(jnp.multiply, gains, normed))


class _Sizes(NamedTuple):
    """Widths of the gates of both products, and of the state that is shown, if any."""

    ih: tuple[int, ...]
    hh: tuple[int, ...]
    shown: int | None


@functools.cache
def _sizes(cell: Cell) -> _Sizes:
    def step() -> Any:
        params = cell.init(jax.random.key(0), 1)
        carry, x = cell.init_carry(params, ()), cell.inputs(1, ())
        params, x = cell.perturbed(params, carry, x)
        z, u = cell.project(params, x), cell.recur(params, carry)
        with acting("shown", lambda value: value) as shown:
            cell.update(params, carry, z, u)
        return z, u, shown

    z, u, shown = jax.eval_shape(step)
    ih, hh = (tuple(a.shape[-1] for a in jax.tree.leaves(gates)) for gates in (z, u))
    return _Sizes(ih, hh, shown[0].shape[-1] if shown else None)


def _norm(group: list[jax.Array], epsilon: float) -> list[jax.Array]:
    """Arrays `[..., n]` less their common mean, over their common deviation, found in float32."""
    dtypes = [a.dtype for a in group]
    group = [a.astype(jnp.promote_types(a.dtype, jnp.float32)) for a in group]
    count = sum(a.shape[-1] for a in group)
    total = lambda arrays: sum(a.sum(axis=-1, keepdims=True) for a in arrays)
    mean = total(group) / count
    group = [a - mean for a in group]
    scale = lax.rsqrt(total([a * a for a in group]) / count + epsilon)
    return [(a * scale).astype(dtype) for a, dtype in zip(group, dtypes, strict=True)]


def _cut(joined: jax.Array, like: list[jax.Array]) -> list[jax.Array]:
    """Gates side by side, cut into parts as wide as those given."""
    ends = [sum(a.shape[-1] for a in like[: n + 1]) for n in range(len(like) - 1)]
    return jnp.split(joined, ends, axis=-1)
