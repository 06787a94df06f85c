"""The cells: one family to a file."""

from jrnn.cell import Cell
from jrnn.cells.elman import Elman as Elman
from jrnn.cells.elman import ElmanParams as ElmanParams
from jrnn.cells.gru import GRU as GRU
from jrnn.cells.gru import GRUGates as GRUGates
from jrnn.cells.gru import GRUParams as GRUParams
from jrnn.cells.lstm import LSTM as LSTM
from jrnn.cells.lstm import LSTMCarry as LSTMCarry
from jrnn.cells.lstm import LSTMGates as LSTMGates
from jrnn.cells.lstm import LSTMParams as LSTMParams

REGISTRY: dict[str, type[Cell]] = {"lstm": LSTM, "gru": GRU, "elman": Elman}
"""Every cell by the name that a config takes; each can be made as `cls(hidden_size=...)`."""
