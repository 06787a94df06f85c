"""Layer normalisation inside the recurrence."""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from jrnn import checks, structure, taps
from jrnn.cell import Carry, Cell, Coefficients, Gates, Inputs, Params
from jrnn.transforms.wrapper import Wrapper, WrapperGates


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

    It must be the innermost transform: `zoneout(layer_norm(LSTM(64)))`.

    Args:
      cell: a cell whose parameters have a bias `b`, and that multiplies no matrix in `update`.
      per_gate: whether each gate is normalised by itself.
      shown: whether the cell state is normalised on its way to the output; cells without one
        ignore it.
      epsilon: added to the variance.

    Raises:
      TypeError: `cell` is no cell.
      ValueError: `update` is not elementwise; the gates are not W x + b with a bias `b` for all of
        them; the cell is a transform, or stochastic; `epsilon` is not above 0.

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
        if isinstance(self.cell, Wrapper) or self.cell.is_stochastic:
            raise ValueError(
                f"{self.owner}: must be the innermost transform, of a cell without noise, got "
                f"{self.cell!r}; write zoneout(layer_norm(...)) and not the reverse"
            )
        facts = _facts(self.cell)
        if not facts.affine_gates:
            raise ValueError(
                f"{self.owner}: the gates of {self.cell!r} are not W x + b with one bias b for "
                "all of them, so that there is no product to normalise; choose another cell"
            )
        if not facts.elementwise:
            raise ValueError(
                f"{self.owner}: {self.cell!r} multiplies a matrix in update, where it cannot be "
                "normalised; choose a cell or an option without, such as GRU(reset_after=True)"
            )

    def init(
        self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32
    ) -> LayerNormParams:
        inside = self.cell.init(key, input_size, dtype)
        facts = _facts(self.cell)
        ones = lambda size: jnp.ones((size,), dtype) if size else None
        width = facts.cell_state if self.shown else None
        return LayerNormParams(
            cell=inside,
            gain_ih=jnp.ones((sum(facts.ih),), dtype),
            gain_hh=ones(sum(facts.hh)),
            gain_c=ones(width),
            shift_c=None if width is None else jnp.zeros((width,), dtype),
        )

    def transform_gates(self, params: LayerNormParams, x: Inputs) -> Gates:
        # The tangent by b is b itself, cut into the gates as the cell cuts it.
        project = lambda b: self.cell.project(params.cell._replace(b=b), x)
        b = params.cell.b
        z, shift = jax.jvp(project, (jnp.zeros_like(b),), (b,))
        return jax.tree.map(jnp.add, self._normed(z, params.gain_ih), shift)

    def update(self, params: LayerNormParams, carry: Carry, z: WrapperGates, u: Gates) -> Carry:
        if params.gain_hh is not None:
            u = self._normed(u, params.gain_hh)
        gain, shift = params.gain_c, params.shift_c
        if gain is None or shift is None:
            return self.cell.update(params.cell, carry, z.inside, u)
        norm = lambda c: gain * _norm([c], self.epsilon)[0] + shift
        update = taps.replace_taps(self.cell.update, "cell_state", norm)
        return update(params.cell, carry, z.inside, u)

    def coefficients(self, params: LayerNormParams, z: WrapperGates) -> Coefficients | None:
        if params.gain_hh is not None or params.gain_c is not None:
            return None
        return self.cell.coefficients(params.cell, z.inside)

    def _normed(self, gates: Gates, gain: jax.Array) -> Gates:
        leaves, structure = jax.tree.flatten(gates)
        each = [[leaf] for leaf in leaves] if self.per_gate else [leaves]
        normed = [a for group in each for a in _norm(group, self.epsilon)]
        gains = _cut(gain, leaves)
        return jax.tree.unflatten(structure, map(jnp.multiply, gains, normed))


class _Facts(NamedTuple):
    """What a trace of a cell tells: whether it can be normalised, and how wide its gates are.

    Attributes:
      affine_gates: whether `project` is W x + b with a bias for all gates.
      elementwise: whether `update` is elementwise.
      ih: widths of the gates of the input product.
      hh: widths of the gates of the recurrent product.
      cell_state: width of the state on its way to the output, or None.
    """

    affine_gates: bool
    elementwise: bool
    ih: tuple[int, ...]
    hh: tuple[int, ...]
    cell_state: int | None


@functools.cache
def _facts(cell: Cell) -> _Facts:
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 1))
    carry = jax.eval_shape(lambda p: cell.init_carry(p, ()), params)
    x = jax.eval_shape(lambda: cell.inputs(1, ()))
    z = jax.eval_shape(cell.project, params, x)
    u = jax.eval_shape(cell.recur, params, carry)
    shown = taps.tapped_shapes(cell.update, "cell_state", params, carry, z, u)
    ih, hh = (tuple(a.shape[-1] for a in jax.tree.leaves(gates)) for gates in (z, u))
    return _Facts(
        affine_gates=structure.adds_bias_last(cell.project, "b", sum(ih), params, x),
        elementwise=structure.update_is_elementwise(cell, params, carry, z, u),
        ih=ih,
        hh=hh,
        cell_state=shown[0].shape[-1] if shown else None,
    )


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
