"""Analysis of recurrent networks: gates at every step, Lyapunov exponents, and figures."""

from jrnn.analysis.capture import GateCapture as GateCapture
from jrnn.analysis.capture import capture_gates as capture_gates
from jrnn.analysis.capture import retention as retention
from jrnn.analysis.lyapunov import LyapunovSpectrum as LyapunovSpectrum
from jrnn.analysis.lyapunov import lyapunov as lyapunov
from jrnn.analysis.plots import plot_cell_state as plot_cell_state
from jrnn.analysis.plots import plot_gates as plot_gates
from jrnn.analysis.plots import plot_retention as plot_retention
from jrnn.analysis.plots import plot_unit as plot_unit
