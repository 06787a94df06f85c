"""The cells and sizes that a run checks and times."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jrnn
from jrnn.bench.contenders import DIRECTIONS, Shape
from jrnn.cells import REGISTRY as CELLS

TIMED = ("lstm", "gru", "paragru", "mingru", "lru", "slstm")

ENGINES: dict[str, str | jrnn.Engine] = {
    "scan": "scan",
    "fused": "fused",
    "associative": "associative",
    "newton": jrnn.Newton(fallback="none"),  # no Python callback in timed code
}
"""The engines that are timed."""

TIMED_ENGINES = {
    "lstm": ("scan", "fused"),
    "gru": ("scan", "fused"),
    "paragru": ("scan", "fused", "newton"),
    "mingru": ("scan", "fused", "associative"),
    "lru": ("scan", "fused", "associative"),
    "slstm": ("scan", "fused"),
}
PEERS = {"lstm": ("nnx", "torch", "cudnn"), "gru": ("nnx", "torch")}

TRANSFORMS: Mapping[str, Callable[[int], jrnn.Layer]] = {
    "layer_norm-lstm": lambda hidden: jrnn.transforms.LayerNorm(jrnn.LSTM(hidden)),
    "zoneout-gru": lambda hidden: jrnn.transforms.Zoneout(jrnn.GRU(hidden), h=0.25),
    "projection-lstm": lambda hidden: jrnn.transforms.Projection(jrnn.LSTM(hidden), size=3),
    "zoneout-mingru": lambda hidden: jrnn.transforms.Zoneout(jrnn.MinGRU(hidden), h=0.25),
    "learned_carry-gru": lambda hidden: jrnn.transforms.LearnedCarry(jrnn.GRU(hidden)),
    "stack-lstm-gru": lambda hidden: jrnn.stack((jrnn.LSTM(hidden), jrnn.GRU(hidden))),
    "bidirectional-gru": lambda hidden: jrnn.bidirectional(jrnn.GRU(hidden)),
}
"""Functions from a hidden size to a transformed cell or a layer; checked but not timed."""


@dataclass(frozen=True)
class Plan:
    """The cells and sizes of a run.

    Args:
      checked: the cells whose values and gradients are checked, keys of `LAYERS`.
      checked_shape: the sizes of the check.
      timed: the cells that are timed, keys of `TIMED_ENGINES`, the most informative first.
      shapes: the sizes at which each is timed.
      directions: keys of `contenders.DIRECTIONS`.
      dtypes: the dtypes in which each is timed; the first also with CUDA graphs.
      long: the sizes at which ParaGRU is timed by Newton.
      seconds: timing duration for each cell, shape, dtype and direction.
    """

    checked: tuple[str, ...]
    checked_shape: Shape
    timed: tuple[str, ...]
    shapes: tuple[Shape, ...]
    directions: tuple[str, ...]
    dtypes: tuple[str, ...]
    long: Shape
    seconds: float


LAYERS: Mapping[str, Callable[[int], jrnn.Layer]] = {
    **{name: lambda hidden, make=make: make(hidden) for name, make in CELLS.items()},  # pyright: ignore
    **TRANSFORMS,
}
"""Functions from a hidden size to a layer, by name, for all layers that are checked."""

FULL = Plan(
    # The timed cells come first, in case the time does not suffice for all.
    checked=tuple(dict.fromkeys((*TIMED, *LAYERS))),
    checked_shape=Shape(4, 24, 3, 8),
    timed=TIMED,
    shapes=(
        Shape(256, 128, 128, 128),
        Shape(16, 1024, 768, 768),
        Shape(64, 4096, 256, 256),
    ),
    directions=tuple(DIRECTIONS),
    dtypes=("float32", "bfloat16"),
    long=Shape(8, 16384, 256, 256),
    seconds=0.5,
)
TINY = Plan(
    checked=("mingru",),
    checked_shape=Shape(3, 5, 3, 4),
    timed=("gru",),
    shapes=(Shape(2, 4, 3, 3),),
    directions=("forward+backward",),
    dtypes=("bfloat16",),
    long=Shape(1, 8, 3, 3),
    seconds=0.0,
)
