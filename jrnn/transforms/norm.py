"""Layer normalization inside a recurrent cell."""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from jrnn import checks, structure, taps
from jrnn.broadcasting import add, multiply
from jrnn.cell import Carry, Cell, Coefficients, Gates, Inputs, Params
from jrnn.dtypes import promote_dtypes
from jrnn.transforms.wrapper import Wrapper, WrapperGates


class LayerNormParams(NamedTuple):
    """The parameters of the inner cell, and gains and shifts of the normalization.

    The bias `b` of the inner cell is the shift of the gates.
    """

    cell: Params
    gain_ih: jax.Array  # [G·hidden]
    gain_hh: jax.Array | None  # [G·hidden], or None if `recur` returns None
    gain_c: jax.Array | None  # [hidden], or None if no cell state is normalized
    shift_c: jax.Array | None  # [hidden], or None


@dataclass(frozen=True)
class LayerNorm(Wrapper):
    r"""Layer normalization of the input and recurrent products, and of the cell state.

    ::

        gain_ih * norm(W x) + gain_hh * norm(U h) + b       replaces W x + U h + b
        h' = o * tanh(gain_c * norm(c') + shift_c)          replaces h' = o * tanh(c')
        norm(v) = (v - mean(v)) / sqrt(var(v) + epsilon)

    The second line applies to cells with a cell state. By default the mean and variance are over
    all gates of a product, as in the paper's LSTM and in haste; with `per_gate` they are over each
    gate separately. The paper's shifts of the two products are omitted, since b has the same
    effect. A bias inside a gate, such as b_hn of a GRU, is added after the normalization.

    `layer_norm` must be the innermost transform: `zoneout(layer_norm(LSTM(64)))`.

    Args:
      cell: a cell whose gates are W x + b, with one bias `b` for all gates, and whose `update` is
        elementwise.
      per_gate: whether to normalize each gate separately.
      normalize_cell_state: whether to normalize the cell state in the computation of h'; has no
        effect for a cell without a cell state.
      epsilon: a small number that is added to the variance.

    Raises:
      TypeError: `cell` is not a `Cell`.
      ValueError: the gates of `cell` are not W x + b, or its `update` is not elementwise; `cell` is
        a transform, or stochastic; `per_gate` or `normalize_cell_state` is not a bool; or `epsilon`
        is not a finite number above 0.

    >>> import jax, jax.numpy as jnp, jrnn
    >>> cell = LayerNorm(jrnn.LSTM(hidden_size=4))
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> params.gain_hh.shape, params.gain_c.shape
    ((16,), (4,))

    References:
      Ba, Kiros and Hinton, 2016, Layer normalization.
      Haste library, LayerNormLSTM and LayerNormGRU (joint statistics, and b as the only shift).
    """

    per_gate: bool = False
    normalize_cell_state: bool = True
    epsilon: float = 1e-5
    has_own_params = True

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.boolean(self.owner, "per_gate", self.per_gate)
        checks.boolean(self.owner, "normalize_cell_state", self.normalize_cell_state)
        checks.positive_number(self.owner, "epsilon", self.epsilon)
        if isinstance(self.cell, Wrapper) or self.cell.is_stochastic:
            raise ValueError(
                f"{self.owner}: cell must be deterministic and not a transform, got {self.cell!r}; "
                "apply layer_norm first, as in zoneout(layer_norm(jrnn.LSTM(64)))"
            )
        info = _trace_cell(self.cell)
        if not info.has_affine_gates:
            raise ValueError(
                f"{self.owner}: cell must have gates W x + b with one bias b for all gates, got "
                f"{self.cell!r}; use another cell"
            )
        if not info.is_elementwise:
            raise ValueError(
                f"{self.owner}: cell must have an elementwise update, got {self.cell!r}, whose "
                "update computes a matrix product; use another cell or option, such as "
                "GRU(64, reset_after=True)"
            )

    def init(
        self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32
    ) -> LayerNormParams:
        inner = self.cell.init(key, input_size, dtype)
        info = _trace_cell(self.cell)
        ones = lambda size: jnp.ones((size,), dtype) if size else None
        size = info.cell_state_size if self.normalize_cell_state else None
        return LayerNormParams(
            cell=inner,
            gain_ih=jnp.ones((sum(info.input_sizes),), dtype),
            gain_hh=ones(sum(info.recurrent_sizes)),
            gain_c=ones(size),
            shift_c=None if size is None else jnp.zeros((size,), dtype),
        )

    def transform_gates(self, params: LayerNormParams, x: Inputs) -> Gates:
        # `project` adds b, so its value at b = 0 is W x, and its tangent along b is b, split into
        # the gates of the cell.
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
        normalize = lambda c: add(multiply(gain, _normalize_jointly([c], self.epsilon)[0]), shift)
        update = taps.replace_taps(self.cell.update, "cell_state", normalize)
        return update(params.cell, carry, z.inner, u)

    def coefficients(self, params: LayerNormParams, z: WrapperGates) -> Coefficients | None:
        if params.gain_hh is not None or params.gain_c is not None:
            return None
        return self.cell.coefficients(params.cell, z.inner)

    def _normalize(self, gates: Gates, gain: jax.Array) -> Gates:
        leaves, structure = jax.tree.flatten(gates)
        groups = [[leaf] for leaf in leaves] if self.per_gate else [leaves]
        normalized = [a for group in groups for a in _normalize_jointly(group, self.epsilon)]
        gains = _split_like(gain, leaves)
        return jax.tree.unflatten(structure, map(multiply, gains, normalized))


class _CellInfo(NamedTuple):
    """Properties of a cell that `LayerNorm` needs, derived from its jaxprs.

    Attributes:
      has_affine_gates: whether `project` is W x + b, with one bias `b` for all gates.
      is_elementwise: whether `update` is elementwise.
      input_sizes: sizes of the gates in the result of `project`.
      recurrent_sizes: sizes of the gates in the result of `recur`.
      cell_state_size: size of the cell state; None for a cell without one.
    """

    has_affine_gates: bool
    is_elementwise: bool
    input_sizes: tuple[int, ...]
    recurrent_sizes: tuple[int, ...]
    cell_state_size: int | None


@functools.cache
def _trace_cell(cell: Cell) -> _CellInfo:
    """Traces the methods of a cell, without computing anything."""
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 1))
    carry = jax.eval_shape(lambda p: cell.init_carry(p, ()), params)
    x = jax.eval_shape(lambda: cell.inputs(1, ()))
    z = jax.eval_shape(cell.project, params, x)
    u = jax.eval_shape(cell.recur, params, carry)
    cell_states = taps.tapped_shapes(cell.update, "cell_state", params, carry, z, u)
    sizes = lambda gates: tuple(a.shape[-1] for a in jax.tree.leaves(gates))
    return _CellInfo(
        has_affine_gates=structure.adds_bias_last(cell.project, "b", sum(sizes(z)), params, x),
        is_elementwise=structure.update_is_elementwise(cell, params, carry, z, u),
        input_sizes=sizes(z),
        recurrent_sizes=sizes(u),
        cell_state_size=cell_states[0].shape[-1] if cell_states else None,
    )


def _normalize_jointly(group: list[jax.Array], epsilon: float) -> list[jax.Array]:
    """Normalizes arrays `[..., n]` by their joint mean and variance, in float32 or wider."""
    dtypes = [a.dtype for a in group]
    group = [a.astype(promote_dtypes(a.dtype, jnp.float32)) for a in group]
    count = sum(a.shape[-1] for a in group)
    total = lambda arrays: sum(a.sum(axis=-1, keepdims=True) for a in arrays)
    mean = total(group) / count
    group = [a - mean for a in group]
    scale = lax.rsqrt(total([a * a for a in group]) / count + epsilon)
    return [(a * scale).astype(dtype) for a, dtype in zip(group, dtypes, strict=True)]


def _split_like(array: jax.Array, like: list[jax.Array]) -> list[jax.Array]:
    """Splits the last axis into parts with the sizes of the last axes of `like`."""
    ends = [sum(a.shape[-1] for a in like[: n + 1]) for n in range(len(like) - 1)]
    return jnp.split(array, ends, axis=-1)
