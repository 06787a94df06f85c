"""What is compared: every cell of the toolkit, and LSTMs that differ in one thing."""

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
HEAD = 4
PLACES = 4
ALLOWED = 16
"""One size in so many is allowed, at least."""
NEAR = 0.06
"""How far off the number of parameters may be, as a share of it."""
GREFF = tuple(name for name in VARIANTS if name != "vanilla")


@dataclass(frozen=True)
class Contender:
    """A cell of any hidden size.

    Attributes:
      make: from the hidden size to the cell; a ValueError means that it has none of this size.
      inputs: from the inputs of a task to those of the cell.
      options: how it differs from the defaults, for the reader.
    """

    make: Callable[[int], jrnn.Layer]
    inputs: Callable[[jax.Array], Any] = field(default=lambda xs: xs)
    options: str = ""


def mlstm(hidden: int) -> jrnn.MLSTM:
    """Heads of one width, since the memory of a head grows as its square."""
    if hidden % HEAD:
        raise ValueError(f"mlstm: hidden must be a multiple of {HEAD}, got {hidden}")
    return jrnn.MLSTM(hidden, heads=hidden // HEAD)


def observed(xs: jax.Array) -> jrnn.Observed:
    """A series without holes, one unit of time a step."""
    return jrnn.Observed(xs, jnp.ones_like(xs), jnp.ones_like(xs))


@dataclass(frozen=True)
class OverPlaces(Wrapper):
    """A cell over one axis of space that is given its input at each place, and flattens its output.

    On a single place a ConvLSTM would be an LSTM. On these places it sees its border too.
    """

    def inputs(
        self, input_size: int, batch_shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
    ) -> jax.Array:
        return jnp.zeros((*batch_shape, input_size), dtype)

    def transform_input(self, params: Any, x: jax.Array, noise: Any) -> tuple[Any, Any]:
        return jnp.repeat(x[..., None, :], PLACES, axis=-2), None

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
    "mlstm": Contender(mlstm, options=f"heads of {HEAD}"),
    "grud": Contender(jrnn.GRUD, observed, "without holes"),
    "convlstm": Contender(
        lambda hidden: OverPlaces(jrnn.ConvLSTM(hidden, (PLACES,))),
        options=f"each input at {PLACES} places in a row, kernels of 3",
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
"""By name; every cell of `jrnn.cells.REGISTRY` is here."""


def of_size(contender: Contender, input_size: int, output_size: int, count: int) -> jrnn.Layer:
    """The cell with which a network, its linear readout included, is nearest to `count` numbers.

    Raises:
      ValueError: the nearest is more than `NEAR` off.
    """

    def missing(hidden: int) -> int | None:
        """How many numbers a size falls short; None where the cell has no such size."""
        try:
            cell = contender.make(hidden)
            params = jax.eval_shape(lambda key: cell.init(key, input_size), jax.random.key(0))
        except ValueError:
            return None
        width = cell.output_shape(params, input_size).shape[-1]
        return count - parameters(params) - (width + 1) * output_size

    def too_small(size: int) -> bool:
        """Whether the first allowed size from this one on falls short."""
        lacks = (missing(each) for each in range(size, size + ALLOWED))
        return next((m for m in lacks if m is not None), 0) > 0

    # Numbers grow with the size, so that a step may be doubled, and halved.
    few, many = 0, ALLOWED
    while too_small(many):
        few, many = many, 2 * many
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if too_small(middle) else (few, middle)
    near = {size: missing(size) for size in range(max(1, few - ALLOWED), many + ALLOWED)}
    fit = {size: abs(lacks) for size, lacks in near.items() if lacks is not None}
    best = min(fit, key=lambda size: fit[size])
    if fit[best] > NEAR * count:
        raise ValueError(
            f"no hidden size gives {count} parameters: {contender.make(best)!r} is the nearest, "
            f"and {fit[best]} off; choose another number"
        )
    return contender.make(best)


def hidden_units(layer: jrnn.Layer) -> int:
    """Hidden units of a cell, or of the topmost cell in a layer."""
    inner: Any = layer
    while not hasattr(inner, "hidden_size"):
        inner = inner.layers[-1] if isinstance(inner, Stack) else inner.cell
    return inner.hidden_size


def recurrence_of(layer: jrnn.Layer, input_size: int) -> str:
    """How the new carry depends on the old one; of a layer of several cells "dense"."""
    return structure.recurrence(layer, input_size) if isinstance(layer, jrnn.Cell) else "dense"


def parameters(tree: Any) -> int:
    """How many numbers a tree of arrays holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
