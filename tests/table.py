"""The table of all cells. A new cell is a new row, and all properties are tested on it.

Properties of cells are tested on every row, and engines only on the rows of `KINDS`, which has one
or two rows of each kind, since compilation dominates the time of the suite.
"""

from jrnn import Engine, Fused, Scan
from tests.oracles import (
    continuous,
    conv,
    elman,
    gated,
    gru,
    linear,
    lstm,
    mut,
    para,
    structured,
    transforms,
    xlstm,
)
from tests.oracles.common import Row as Row

FAMILIES = (
    continuous,
    conv,
    elman,
    gated,
    gru,
    linear,
    lstm,
    mut,
    para,
    structured,
    transforms,
    xlstm,
)

CELLS: dict[str, Row] = {name: row for family in FAMILIES for name, row in family.CELLS.items()}

KINDS: tuple[str, ...] = (
    "lstm-peepholes",  # two leaves of a carry; parameters that update uses
    "gru",  # gates of z and u that are not only added
    "gru-reset-before",  # a product within update
    "elman-relu",  # no smooth derivative
    "mingru-log",  # linear, coefficients as logarithms
    "lru",  # a complex carry
    "indrnn",  # diagonal
    "paralstm",  # blocks
)

ENGINES: dict[str, tuple[Engine, ...]] = {
    "scan": (Scan(), Scan(unroll=2), Scan(unroll=3), Scan(unroll=4)),
    "fused": (Fused(), Fused(chunk=2), Fused(chunk=3, remat=True)),
}
"""Every engine that runs all cells, with variants. Most tests only use the first variant."""
