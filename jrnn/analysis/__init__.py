"""Looking inside: what every gate of a cell does at every step, and pictures of it."""

from jrnn.analysis.anatomy import Anatomy as Anatomy
from jrnn.analysis.anatomy import anatomy as anatomy
from jrnn.analysis.anatomy import retention as retention
from jrnn.analysis.plots import plot_cell_state as plot_cell_state
from jrnn.analysis.plots import plot_forgetting as plot_forgetting
from jrnn.analysis.plots import plot_gates as plot_gates
from jrnn.analysis.plots import plot_unit as plot_unit
