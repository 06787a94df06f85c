"""The cells and sizes that a run checks and times."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jrnn
from jrnn.bench.implementations import MODES, Shape
from jrnn.cells import REGISTRY as CELLS

TIMED_CELLS = ("lstm", "gru", "paragru", "mingru", "lru", "slstm")

TIMED_ENGINES: dict[str, str | jrnn.Engine] = {
    "scan": "scan",
    "fused": "fused",
    "associative": "associative",
    "newton": jrnn.Newton(fallback="none"),  # fallback="error" would add a Python callback
}
"""The engines that are timed, by their names in the results."""

ENGINES_BY_CELL = {
    "lstm": ("scan", "fused"),
    "gru": ("scan", "fused"),
    "paragru": ("scan", "fused", "newton"),
    "mingru": ("scan", "fused", "associative"),
    "lru": ("scan", "fused", "associative"),
    "slstm": ("scan", "fused"),
}
"""Names of the engines on which each cell is timed."""

PEERS_BY_CELL = {"lstm": ("nnx", "torch", "cudnn"), "gru": ("nnx", "torch")}
"""Names of the peer libraries that have each cell."""

UNTIMED_LAYERS: Mapping[str, Callable[[int], jrnn.Layer]] = {
    "layer_norm-lstm": lambda hidden: jrnn.transforms.LayerNorm(jrnn.LSTM(hidden)),
    "zoneout-gru": lambda hidden: jrnn.transforms.Zoneout(jrnn.GRU(hidden), h=0.25),
    "projection-lstm": lambda hidden: jrnn.transforms.Projection(jrnn.LSTM(hidden), size=3),
    "zoneout-mingru": lambda hidden: jrnn.transforms.Zoneout(jrnn.MinGRU(hidden), h=0.25),
    "learned_carry-gru": lambda hidden: jrnn.transforms.LearnedCarry(jrnn.GRU(hidden)),
    "stack-lstm-gru": lambda hidden: jrnn.stack((jrnn.LSTM(hidden), jrnn.GRU(hidden))),
    "bidirectional-gru": lambda hidden: jrnn.bidirectional(jrnn.GRU(hidden)),
}
"""Functions from a hidden size to a layer, by name. These layers are checked but not timed."""


@dataclass(frozen=True)
class Plan:
    """The cells and sizes of a run.

    Args:
      checked_layers: keys of `LAYERS` whose values and gradients are checked.
      checked_shape: the sizes of the checked layers.
      timed_cells: keys of `ENGINES_BY_CELL` that are timed.
      shapes: the sizes at which each cell is timed.
      modes: keys of `implementations.MODES`.
      dtypes: the dtypes in which each cell is timed. CUDA graphs and `newton_shape` are timed only
        in the first one.
      newton_shape: the sizes of additional cases, ParaGRU on a long sequence, also by Newton.
      seconds: no timing round of a case (a cell, shape, dtype and mode) starts after this time; the
        first `timing.MIN_ROUNDS` ignore it.
    """

    checked_layers: tuple[str, ...]
    checked_shape: Shape
    timed_cells: tuple[str, ...]
    shapes: tuple[Shape, ...]
    modes: tuple[str, ...]
    dtypes: tuple[str, ...]
    newton_shape: Shape
    seconds: float


LAYERS: Mapping[str, Callable[[int], jrnn.Layer]] = {
    **{name: lambda hidden, make=make: make(hidden) for name, make in CELLS.items()},  # pyright: ignore
    **UNTIMED_LAYERS,
}
"""Functions from a hidden size to a layer, by name, for all cells and all of `UNTIMED_LAYERS`."""

FULL = Plan(
    # The timed cells come first, because the deadline may be too early for all layers.
    checked_layers=tuple(dict.fromkeys((*TIMED_CELLS, *LAYERS))),
    checked_shape=Shape(4, 24, 3, 8),
    timed_cells=TIMED_CELLS,
    shapes=(
        Shape(256, 128, 128, 128),
        Shape(16, 1024, 768, 768),
        Shape(64, 4096, 256, 256),
    ),
    modes=tuple(MODES),
    dtypes=("float32", "bfloat16"),
    newton_shape=Shape(8, 16384, 256, 256),
    seconds=0.5,
)
"""The plan of `make gpu-check`."""
TINY = Plan(
    checked_layers=("mingru",),
    checked_shape=Shape(3, 5, 3, 4),
    timed_cells=("gru",),
    shapes=(Shape(2, 4, 3, 3),),
    modes=("forward+backward",),
    dtypes=("bfloat16",),
    newton_shape=Shape(1, 8, 3, 3),
    seconds=0.0,
)
"""The plan of `--tiny`."""
