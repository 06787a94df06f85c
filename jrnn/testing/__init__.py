"""The conformance suite: tests of the properties that every cell must have.

Use it to test your own cell: `jrnn.testing.check_cell(MyCell(hidden_size=8))`.
"""

from jrnn.testing.case import Case as Case
from jrnn.testing.case import randomize as randomize
from jrnn.testing.check import check_cell as check_cell
from jrnn.testing.check import check_layer as check_layer
from jrnn.testing.properties import PROPERTIES as PROPERTIES
