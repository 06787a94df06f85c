"""The conformance suite: what every cell must satisfy, yours included.

Use it in a test of your own: `jrnn.testing.check_cell(MyCell(hidden_size=8))`.
"""

from jrnn.testing.case import Case as Case
from jrnn.testing.case import randomized as randomized
from jrnn.testing.check import check_cell as check_cell
from jrnn.testing.check import check_layer as check_layer
from jrnn.testing.properties import PROPERTIES as PROPERTIES
