"""The table of cells and their options, with a NumPy oracle for each row.

The tests of the contract of a cell use each row. By default, most tests of engines use only the
rows of `KINDS`, one or two for each kind of cell, because compilation takes most of the time of the
test suite.
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
    "lstm-peepholes",  # carry with two leaves; update reads parameters
    "gru",  # update does more than add z and u
    "gru-reset-before",  # matrix product in update
    "elman-relu",  # non-smooth activation
    "mingru-log",  # linear, with logarithmic coefficients
    "lru",  # linear, with a complex carry
    "indrnn",  # diagonal Jacobian
    "paralstm",  # block-diagonal Jacobian
)

ENGINES: dict[str, tuple[Engine, ...]] = {
    "scan": (Scan(), Scan(unroll=2), Scan(unroll=3), Scan(unroll=4)),
    "fused": (Fused(), Fused(chunk=2), Fused(chunk=3, remat=True)),
}
"""The variants of each engine that supports every cell. Most tests only use the first variant."""
