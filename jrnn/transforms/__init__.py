"""Transforms: wrappers that take a cell and return a cell, such as `dropout(LSTM(64), x=0.2)`."""

from jrnn.cell import Cell
from jrnn.transforms.carry import Clip as Clip
from jrnn.transforms.carry import LearnedCarry as LearnedCarry
from jrnn.transforms.carry import LearnedCarryParams as LearnedCarryParams
from jrnn.transforms.dropout import Dropout as Dropout
from jrnn.transforms.dropout import WeightDrop as WeightDrop
from jrnn.transforms.norm import LayerNorm as LayerNorm
from jrnn.transforms.norm import LayerNormParams as LayerNormParams
from jrnn.transforms.residual import Highway as Highway
from jrnn.transforms.residual import HighwayParams as HighwayParams
from jrnn.transforms.residual import Projection as Projection
from jrnn.transforms.residual import ProjectionParams as ProjectionParams
from jrnn.transforms.residual import Residual as Residual
from jrnn.transforms.wrapper import Wrapper as Wrapper
from jrnn.transforms.zoneout import Zoneout as Zoneout

# Lower-case aliases for composition. The transforms are dataclasses, so that the repr of a
# transformed cell is an expression that constructs it.
clip = Clip
dropout = Dropout
highway = Highway
layer_norm = LayerNorm
learned_carry = LearnedCarry
projection = Projection
residual = Residual
weight_drop = WeightDrop
zoneout = Zoneout

REGISTRY: dict[str, type[Cell]] = {
    "layer_norm": LayerNorm,
    "zoneout": Zoneout,
    "dropout": Dropout,
    "weight_drop": WeightDrop,
    "residual": Residual,
    "highway": Highway,
    "projection": Projection,
    "learned_carry": LearnedCarry,
    "clip": Clip,
}
"""Maps the names that configs use to transforms."""
