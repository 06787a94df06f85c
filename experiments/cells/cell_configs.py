"""The compared cells: every cell of jrnn, and variants of `LSTM` and `Elman`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

import jrnn
from jrnn import structure
from jrnn.cells import REGISTRY
from jrnn.cells.lstm_variants import VARIANTS
from jrnn.layers import Stack
from jrnn.transforms.wrapper import Wrapper

CLOCKWORK_PERIODS = (1, 2, 4, 8, 16)
MLSTM_HEAD_SIZE = 4
CONVLSTM_POSITIONS = 4
SIZE_STEP = 16
"""Among this many consecutive hidden sizes, each cell supports at least one."""
MAX_DEVIATION = 0.06
"""Maximum relative deviation from the requested number of parameters."""
GREFF_VARIANTS = tuple(name for name in VARIANTS if name != "vanilla")
"""The variants of Greff et al., 2017, LSTM: A search space odyssey, without the vanilla LSTM."""


@dataclass(frozen=True)
class CellConfig:
    """How to make a cell of any hidden size.

    Attributes:
      make: function from a hidden size to the cell; raises ValueError for an unsupported size.
      transform_inputs: function from the inputs of a task to the inputs of the cell.
      description: the options and inputs that differ from the defaults; "" if there are none.
    """

    make: Callable[[int], jrnn.Layer]
    transform_inputs: Callable[[jax.Array], Any] = field(default=lambda xs: xs)
    description: str = ""


def make_mlstm(hidden: int) -> jrnn.MLSTM:
    """Makes an mLSTM with a constant head size, since its memory is quadratic in the head size."""
    if hidden % MLSTM_HEAD_SIZE:
        raise ValueError(f"make_mlstm: hidden must be divisible by {MLSTM_HEAD_SIZE}, got {hidden}")
    return jrnn.MLSTM(hidden, heads=hidden // MLSTM_HEAD_SIZE)


def add_observation_mask(xs: jax.Array) -> jrnn.Observed:
    """Converts inputs to a time series without missing values, sampled at unit intervals."""
    return jrnn.Observed(xs, jnp.ones_like(xs), jnp.ones_like(xs))


@dataclass(frozen=True)
class InputRepeater(Wrapper):
    """Wraps a convolutional cell: repeats its input at each position, and flattens its output.

    It has several positions, because with one a ConvLSTM is equivalent to an LSTM.
    """

    def inputs(
        self, input_size: int, batch_shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
    ) -> jax.Array:
        return jnp.zeros((*batch_shape, input_size), dtype)

    def transform_input(self, params: Any, x: jax.Array, noise: Any) -> tuple[Any, Any]:
        return jnp.repeat(x[..., None, :], CONVLSTM_POSITIONS, axis=-2), None

    def transform_output(self, params: Any, y: Any, extra: Any) -> Any:
        return y.reshape(*y.shape[:-2], -1)


_OVERRIDES = {
    "clockwork": CellConfig(
        lambda hidden: jrnn.Clockwork(hidden, periods=CLOCKWORK_PERIODS),
        description="periods 1 to 16; the count includes the masked 2/5 of w_hh",
    ),
    "cfc": CellConfig(
        lambda hidden: jrnn.CfC(hidden, backbone_units=32), description="32 backbone units"
    ),
    "depthgatedlstm": CellConfig(
        lambda hidden: jrnn.stack((jrnn.LSTM(hidden), jrnn.DepthGatedLSTM(hidden))),
        description="on top of an LSTM layer",
    ),
    "mlstm": CellConfig(make_mlstm, description=f"head size {MLSTM_HEAD_SIZE}"),
    "grud": CellConfig(jrnn.GRUD, add_observation_mask, "no missing values"),
    "convlstm": CellConfig(
        lambda hidden: InputRepeater(jrnn.ConvLSTM(hidden, spatial_shape=(CONVLSTM_POSITIONS,))),
        description=f"input repeated at {CONVLSTM_POSITIONS} positions, kernel size 3",
    ),
}
"""Configs of the cells that need other inputs or options than the defaults."""

CELL_CONFIGS: dict[str, CellConfig] = {
    name: _OVERRIDES.get(name) or CellConfig(partial(cls)) for name, cls in REGISTRY.items()
}
CELL_CONFIGS |= {
    "lstm-bias-0": CellConfig(partial(jrnn.LSTM, forget_bias=0.0), description="forget bias 0"),
    "irnn": CellConfig(
        partial(jrnn.Elman, activation="relu", identity=1.0),
        description="Elman, ReLU, identity initialization",
    ),
    "lstm-peepholes": CellConfig(
        partial(jrnn.LSTM, peepholes=True), description="vanilla LSTM of Greff et al."
    ),
}
CELL_CONFIGS |= {
    f"lstm-{name}": CellConfig(
        partial(jrnn.lstm_variant, name), description="variant of Greff et al."
    )
    for name in GREFF_VARIANTS
}
"""The configs of the compared cells by name, including every cell of `jrnn.cells.REGISTRY`."""


def match_parameter_count(
    config: CellConfig, input_size: int, output_size: int, count: int
) -> jrnn.Layer:
    """Returns the cell of the hidden size at which a network has about `count` parameters.

    Args:
      config: how to make the cell.
      input_size: size of the inputs of the cell.
      output_size: size of the linear output layer, the other part of the network.
      count: the requested number of parameters.

    Raises:
      ValueError: the number of parameters of every hidden size deviates by more than
        `MAX_DEVIATION`.
    """

    def compute_deficit(hidden: int) -> int | None:
        """Returns `count` minus the number of parameters; None for an unsupported hidden size."""
        try:
            cell = config.make(hidden)
            params = jax.eval_shape(lambda key: cell.init(key, input_size), jax.random.key(0))
        except ValueError:
            return None
        width = cell.output_shape(params, input_size).shape[-1]
        return count - count_parameters(params) - (width + 1) * output_size

    def is_too_small(size: int) -> bool:
        """Returns whether the first supported size from `size` on has too few parameters."""
        deficits = (compute_deficit(s) for s in range(size, size + SIZE_STEP))
        return next((deficit for deficit in deficits if deficit is not None), 0) > 0

    # Bisection, since the number of parameters increases with the hidden size.
    low, high = 0, SIZE_STEP
    while is_too_small(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_too_small(middle) else (low, middle)
    sizes = range(max(1, low - SIZE_STEP), high + SIZE_STEP)
    deficits = {size: compute_deficit(size) for size in sizes}
    deviations = {size: abs(d) for size, d in deficits.items() if d is not None}
    best = min(deviations, key=lambda size: deviations[size])
    if deviations[best] > MAX_DEVIATION * count:
        raise ValueError(
            f"match_parameter_count: count must be possible for a hidden size, got {count}; the "
            f"nearest is {config.make(best)!r}, with a deviation of {deviations[best]}"
        )
    return config.make(best)


def get_hidden_size(layer: jrnn.Layer) -> int:
    """Returns the hidden size of a cell, or of the last cell of a stack."""
    inner: Any = layer
    while not hasattr(inner, "hidden_size"):
        inner = inner.layers[-1] if isinstance(inner, Stack) else inner.cell
    return inner.hidden_size


def get_recurrence(layer: jrnn.Layer, input_size: int) -> str:
    """Returns the structure of the recurrence of a cell; "dense" for a layer of several cells."""
    return structure.recurrence_kind(layer, input_size) if isinstance(layer, jrnn.Cell) else "dense"


def count_parameters(tree: Any) -> int:
    """Returns the total number of elements in a pytree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
