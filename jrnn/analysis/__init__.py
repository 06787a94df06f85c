"""Looking inside: every gate of a cell at every step, how fast carries part, and pictures."""

from jrnn.analysis.anatomy import Anatomy as Anatomy
from jrnn.analysis.anatomy import anatomy as anatomy
from jrnn.analysis.anatomy import retention as retention
from jrnn.analysis.lyapunov import Lyapunov as Lyapunov
from jrnn.analysis.lyapunov import lyapunov as lyapunov
from jrnn.analysis.plots import plot_cell_state as plot_cell_state
from jrnn.analysis.plots import plot_forgetting as plot_forgetting
from jrnn.analysis.plots import plot_gates as plot_gates
from jrnn.analysis.plots import plot_unit as plot_unit
