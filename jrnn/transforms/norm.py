"""Layer normalization inside the recurrence."""

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
    """The parameters of the cell, whose b is the shift of all gates, and gains."""

    cell: Params
    gain_ih: jax.Array  # [G·hidden]
    gain_hh: jax.Array | None  # [G·hidden], of the gates that depend on the carry
    gain_c: jax.Array | None  # [hidden], if the cell has a cell state
    shift_c: jax.Array | None  # [hidden]


@dataclass(frozen=True)
class LayerNorm(Wrapper):
    r"""Layer normalization of the input and recurrent products, and of the cell state.

    ::

        gain_ih * norm(W x) + gain_hh * norm(U h) + b       in place of W x + U h + b of all gates
        h' = o * tanh(gain_c * norm(c') + shift_c)          if the cell has a cell state
        norm(v) = (v - mean v) / sqrt(var v + epsilon)

    Mean and variance are over all gates of a product jointly, as in the LSTM of the paper and in
    haste, or with `per_gate` over each gate separately. The shifts of the paper are omitted, since
    b has the same effect. A bias inside a gate, such as b_hn of a GRU, is added after the norm.

    It must be the innermost transform: `zoneout(layer_norm(LSTM(64)))`.

    Args:
      cell: a cell whose parameters have a bias `b`, and whose `update` is elementwise.
      per_gate: whether to normalize each gate separately.
      normalize_cell_state: whether to normalize the cell state before the output is computed;
        without effect for cells that have no cell state.
      epsilon: added to the variance.

    Raises:
      TypeError: `cell` is not a `Cell`.
      ValueError: `update` is not elementwise; the gates are not W x + b with one bias `b` for all
        of them; the cell is a transform or stochastic; `epsilon` is not above 0.

    >>> import jax, jax.numpy as jnp, jrnn
    >>> cell = LayerNorm(jrnn.LSTM(hidden_size=4))
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> params.gain_hh.shape, params.gain_c.shape
    ((16,), (4,))

    References:
      Ba, Kiros and Hinton, 2016, Layer normalization.
      Haste, LayerNormLSTM and LayerNormGRU (joint statistics, and b as the only shift).
    """

    per_gate: bool = False
    normalize_cell_state: bool = True
    epsilon: float = 1e-5
    nested = True

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.boolean(self.owner, "per_gate", self.per_gate)
        checks.boolean(self.owner, "normalize_cell_state", self.normalize_cell_state)
        checks.positive_number(self.owner, "epsilon", self.epsilon)
        if isinstance(self.cell, Wrapper) or self.cell.is_stochastic:
            raise ValueError(
                f"{self.owner}: must be the innermost transform, of a cell without noise, got "
                f"{self.cell!r}; write zoneout(layer_norm(...)), not layer_norm(zoneout(...))"
            )
        facts = _trace_facts(self.cell)
        if not facts.affine_gates:
            raise ValueError(
                f"{self.owner}: the gates of {self.cell!r} are not W x + b with one bias b for "
                "all of them, so there is no product to normalize; choose another cell"
            )
        if not facts.elementwise:
            raise ValueError(
                f"{self.owner}: update of {self.cell!r} must be elementwise, got a matrix product, "
                "which cannot be normalized; choose another cell or option, such as "
                "GRU(reset_after=True)"
            )

    def init(
        self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32
    ) -> LayerNormParams:
        inner = self.cell.init(key, input_size, dtype)
        facts = _trace_facts(self.cell)
        ones = lambda size: jnp.ones((size,), dtype) if size else None
        size = facts.cell_state if self.normalize_cell_state else None
        return LayerNormParams(
            cell=inner,
            gain_ih=jnp.ones((sum(facts.ih),), dtype),
            gain_hh=ones(sum(facts.hh)),
            gain_c=ones(size),
            shift_c=None if size is None else jnp.zeros((size,), dtype),
        )

    def transform_gates(self, params: LayerNormParams, x: Inputs) -> Gates:
        # The tangent along b is b itself, split into gates by the cell.
        project = lambda b: self.cell.project(params.cell._replace(b=b), x)
        b = params.cell.b
        z, shift = jax.jvp(project, (jnp.zeros_like(b),), (b,))
        return jax.tree.map(jnp.add, self._normalize(z, params.gain_ih), shift)

    def update(self, params: LayerNormParams, carry: Carry, z: WrapperGates, u: Gates) -> Carry:
        if params.gain_hh is not None:
            u = self._normalize(u, params.gain_hh)
        gain, shift = params.gain_c, params.shift_c
        if gain is None or shift is None:
            return self.cell.update(params.cell, carry, z.inner, u)
        norm = lambda c: gain * _norm([c], self.epsilon)[0] + shift
        update = taps.replace_taps(self.cell.update, "cell_state", norm)
        return update(params.cell, carry, z.inner, u)

    def coefficients(self, params: LayerNormParams, z: WrapperGates) -> Coefficients | None:
        if params.gain_hh is not None or params.gain_c is not None:
            return None
        return self.cell.coefficients(params.cell, z.inner)

    def _normalize(self, gates: Gates, gain: jax.Array) -> Gates:
        leaves, structure = jax.tree.flatten(gates)
        each = [[leaf] for leaf in leaves] if self.per_gate else [leaves]
        normalized = [a for group in each for a in _norm(group, self.epsilon)]
        gains = _split_like(gain, leaves)
        return jax.tree.unflatten(structure, map(jnp.multiply, gains, normalized))


class _CellFacts(NamedTuple):
    """Facts from the trace of a cell: whether it can be normalized, and the sizes of its gates.

    Attributes:
      affine_gates: whether `project` is W x + b with a bias for all gates.
      elementwise: whether `update` is elementwise.
      ih: sizes of the gates of the input product.
      hh: sizes of the gates of the recurrent product.
      cell_state: size of the cell state, or None.
    """

    affine_gates: bool
    elementwise: bool
    ih: tuple[int, ...]
    hh: tuple[int, ...]
    cell_state: int | None


@functools.cache
def _trace_facts(cell: Cell) -> _CellFacts:
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 1))
    carry = jax.eval_shape(lambda p: cell.init_carry(p, ()), params)
    x = jax.eval_shape(lambda: cell.inputs(1, ()))
    z = jax.eval_shape(cell.project, params, x)
    u = jax.eval_shape(cell.recur, params, carry)
    cell_states = taps.tapped_shapes(cell.update, "cell_state", params, carry, z, u)
    ih, hh = (tuple(a.shape[-1] for a in jax.tree.leaves(gates)) for gates in (z, u))
    return _CellFacts(
        affine_gates=structure.adds_bias_last(cell.project, "b", sum(ih), params, x),
        elementwise=structure.update_is_elementwise(cell, params, carry, z, u),
        ih=ih,
        hh=hh,
        cell_state=cell_states[0].shape[-1] if cell_states else None,
    )


def _norm(group: list[jax.Array], epsilon: float) -> list[jax.Array]:
    """Arrays `[..., n]` minus their joint mean, over their joint deviation, computed in float32."""
    dtypes = [a.dtype for a in group]
    group = [a.astype(jnp.promote_types(a.dtype, jnp.float32)) for a in group]
    count = sum(a.shape[-1] for a in group)
    total = lambda arrays: sum(a.sum(axis=-1, keepdims=True) for a in arrays)
    mean = total(group) / count
    group = [a - mean for a in group]
    scale = lax.rsqrt(total([a * a for a in group]) / count + epsilon)
    return [(a * scale).astype(dtype) for a, dtype in zip(group, dtypes, strict=True)]


def _split_like(array: jax.Array, like: list[jax.Array]) -> list[jax.Array]:
    """Splits the last axis into parts of the sizes of the arrays `like`."""
    ends = [sum(a.shape[-1] for a in like[: n + 1]) for n in range(len(like) - 1)]
    return jnp.split(array, ends, axis=-1)
