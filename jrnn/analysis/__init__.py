"""Looking inside: every gate of a cell at every step, how fast carries part, and pictures."""

from jrnn.analysis.capture import GateCapture as GateCapture
from jrnn.analysis.capture import capture_gates as capture_gates
from jrnn.analysis.capture import retention as retention
from jrnn.analysis.lyapunov import Lyapunov as Lyapunov
from jrnn.analysis.lyapunov import lyapunov as lyapunov
from jrnn.analysis.plots import plot_cell_state as plot_cell_state
from jrnn.analysis.plots import plot_forgetting as plot_forgetting
from jrnn.analysis.plots import plot_gates as plot_gates
from jrnn.analysis.plots import plot_unit as plot_unit
