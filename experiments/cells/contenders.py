"""The compared cells: every cell of jrnn, and ablations of the LSTM."""

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

PERIODS = (1, 2, 4, 8, 16)
HEAD_SIZE = 4
POSITIONS = 4
SIZE_STEP = 16
"""A cell supports at least one hidden size in this many consecutive ones."""
MAX_DEVIATION = 0.06
"""The maximum relative deviation from the number of parameters."""
GREFF = tuple(name for name in VARIANTS if name != "vanilla")


@dataclass(frozen=True)
class Contender:
    """A cell of any hidden size.

    Attributes:
      make: from the hidden size to the cell; raises a ValueError if that size is not supported.
      inputs: from the inputs of a task to those of the cell.
      options: a description of options that differ from the defaults.
    """

    make: Callable[[int], jrnn.Layer]
    inputs: Callable[[jax.Array], Any] = field(default=lambda xs: xs)
    options: str = ""


def mlstm(hidden: int) -> jrnn.MLSTM:
    """An mLSTM with a fixed head size, since the memory of a head grows quadratically with it."""
    if hidden % HEAD_SIZE:
        raise ValueError(f"mlstm: hidden must be a multiple of {HEAD_SIZE}, got {hidden}")
    return jrnn.MLSTM(hidden, heads=hidden // HEAD_SIZE)


def observed(xs: jax.Array) -> jrnn.Observed:
    """A time series without missing values, with one unit of time per step."""
    return jrnn.Observed(xs, jnp.ones_like(xs), jnp.ones_like(xs))


@dataclass(frozen=True)
class OverPositions(Wrapper):
    """A convolutional cell that gets the same input at each position, and flattens its output.

    With a single position a ConvLSTM would be an LSTM; with several, padding at the border matters.
    """

    def inputs(
        self, input_size: int, batch_shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
    ) -> jax.Array:
        return jnp.zeros((*batch_shape, input_size), dtype)

    def transform_input(self, params: Any, x: jax.Array, noise: Any) -> tuple[Any, Any]:
        return jnp.repeat(x[..., None, :], POSITIONS, axis=-2), None

    def transform_output(self, params: Any, y: Any, extra: Any) -> Any:
        return y.reshape(*y.shape[:-2], -1)


_SPECIAL = {
    "clockwork": Contender(
        lambda hidden: jrnn.Clockwork(hidden, periods=PERIODS),
        options="periods 1 to 16; of w_hh 2/5 is masked, and counted",
    ),
    "cfc": Contender(lambda hidden: jrnn.CfC(hidden, backbone_units=32), options="backbone of 32"),
    "depthgatedlstm": Contender(
        lambda hidden: jrnn.stack((jrnn.LSTM(hidden), jrnn.DepthGatedLSTM(hidden))),
        options="on a layer of LSTM",
    ),
    "mlstm": Contender(mlstm, options=f"heads of {HEAD_SIZE}"),
    "grud": Contender(jrnn.GRUD, observed, "without holes"),
    "convlstm": Contender(
        lambda hidden: OverPositions(jrnn.ConvLSTM(hidden, (POSITIONS,))),
        options=f"each input at {POSITIONS} places in a row, kernels of 3",
    ),
}

CONTENDERS: dict[str, Contender] = {
    name: _SPECIAL.get(name) or Contender(partial(cls)) for name, cls in REGISTRY.items()
}
CONTENDERS |= {
    "lstm-bias-0": Contender(partial(jrnn.LSTM, forget_bias=0.0), options="forget bias 0"),
    "irnn": Contender(
        partial(jrnn.Elman, activation="relu", identity=1.0), options="Elman, relu, identity"
    ),
    "lstm-peepholes": Contender(partial(jrnn.LSTM, peepholes=True), options="V of the odyssey"),
}
CONTENDERS |= {
    f"lstm-{name}": Contender(partial(jrnn.lstm_variant, name), options="odyssey, with peepholes")
    for name in GREFF
}
"""Contenders by name, including every cell of `jrnn.cells.REGISTRY`."""


def cell_of_size(contender: Contender, input_size: int, output_size: int, count: int) -> jrnn.Layer:
    """The cell whose network, with a linear readout, has nearest to `count` parameters.

    Raises:
      ValueError: the nearest number deviates by more than `MAX_DEVIATION`.
    """

    def deficit(hidden: int) -> int | None:
        """`count` minus the parameters at a hidden size; None if the size is not supported."""
        try:
            cell = contender.make(hidden)
            params = jax.eval_shape(lambda key: cell.init(key, input_size), jax.random.key(0))
        except ValueError:
            return None
        width = cell.output_shape(params, input_size).shape[-1]
        return count - count_parameters(params) - (width + 1) * output_size

    def too_small(size: int) -> bool:
        """Whether the first supported size from this one on has fewer than `count` parameters."""
        deficits = (deficit(each) for each in range(size, size + SIZE_STEP))
        return next((each for each in deficits if each is not None), 0) > 0

    # The number of parameters grows with the size: bisect.
    low, high = 0, SIZE_STEP
    while too_small(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if too_small(middle) else (low, middle)
    deficits = {size: deficit(size) for size in range(max(1, low - SIZE_STEP), high + SIZE_STEP)}
    deviations = {size: abs(each) for size, each in deficits.items() if each is not None}
    best = min(deviations, key=lambda size: deviations[size])
    if deviations[best] > MAX_DEVIATION * count:
        raise ValueError(
            f"no hidden size has {count} parameters: {contender.make(best)!r} is the nearest, with "
            f"a deviation of {deviations[best]}; choose another number"
        )
    return contender.make(best)


def hidden_units(layer: jrnn.Layer) -> int:
    """The hidden size of a cell, or of the top cell in a layer."""
    inner: Any = layer
    while not hasattr(inner, "hidden_size"):
        inner = inner.layers[-1] if isinstance(inner, Stack) else inner.cell
    return inner.hidden_size


def recurrence_of(layer: jrnn.Layer, input_size: int) -> str:
    """The structure of the recurrence of a cell; "dense" for a layer of several cells."""
    return structure.recurrence_kind(layer, input_size) if isinstance(layer, jrnn.Cell) else "dense"


def count_parameters(tree: Any) -> int:
    """The total number of elements in a tree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
