"""jrnn: recurrent networks in JAX. Write the gate arithmetic of a cell once; run it on any engine.

This module exports the functional core: cells, engines and `unroll`. The other modules are imported
on first use, so that `import jrnn` is fast: `jrnn.nn` (flax modules), `jrnn.stream`, `jrnn.tasks`,
`jrnn.train`, `jrnn.analysis`, `jrnn.testing`.
"""

import importlib
from importlib.metadata import PackageNotFoundError as _PackageNotFoundError
from importlib.metadata import version as _version
from typing import Any

from jrnn import initializers as initializers
from jrnn import layers as layers
from jrnn import transforms as transforms
from jrnn.cell import Cell as Cell
from jrnn.cell import Dense as Dense
from jrnn.cell import Diagonal as Diagonal
from jrnn.cell import LogDiagonal as LogDiagonal
from jrnn.cell import WithCellState as WithCellState
from jrnn.cell import Noisy as Noisy
from jrnn.cell import Timed as Timed
from jrnn.cells import CTRNN as CTRNN
from jrnn.cells import GRU as GRU
from jrnn.cells import GRUD as GRUD
from jrnn.cells import JANET as JANET
from jrnn.cells import LEM as LEM
from jrnn.cells import LRU as LRU
from jrnn.cells import LSTM as LSTM
from jrnn.cells import MGU as MGU
from jrnn.cells import MLSTM as MLSTM
from jrnn.cells import MUT1 as MUT1
from jrnn.cells import MUT2 as MUT2
from jrnn.cells import MUT3 as MUT3
from jrnn.cells import RGLRU as RGLRU
from jrnn.cells import S5 as S5
from jrnn.cells import SLSTM as SLSTM
from jrnn.cells import UGRNN as UGRNN
from jrnn.cells import AntisymmetricRNN as AntisymmetricRNN
from jrnn.cells import CfC as CfC
from jrnn.cells import Clockwork as Clockwork
from jrnn.cells import ClockworkCarry as ClockworkCarry
from jrnn.cells import ConvLSTM as ConvLSTM
from jrnn.cells import CoRNN as CoRNN
from jrnn.cells import CoRNNCarry as CoRNNCarry
from jrnn.cells import CTRNNCarry as CTRNNCarry
from jrnn.cells import DepthGatedLSTM as DepthGatedLSTM
from jrnn.cells import Elman as Elman
from jrnn.cells import FastGRNN as FastGRNN
from jrnn.cells import GRUDCarry as GRUDCarry
from jrnn.cells import IndRNN as IndRNN
from jrnn.cells import LEMCarry as LEMCarry
from jrnn.cells import LSTMCarry as LSTMCarry
from jrnn.cells import LSTMGateCarry as LSTMGateCarry
from jrnn.cells import MinGRU as MinGRU
from jrnn.cells import MinimalRNN as MinimalRNN
from jrnn.cells import MinLSTM as MinLSTM
from jrnn.cells import MLSTMCarry as MLSTMCarry
from jrnn.cells import MogrifierLSTM as MogrifierLSTM
from jrnn.cells import MultiplicativeLSTM as MultiplicativeLSTM
from jrnn.cells import Observed as Observed
from jrnn.cells import ParaGRU as ParaGRU
from jrnn.cells import ParaLSTM as ParaLSTM
from jrnn.cells import SLSTMCarry as SLSTMCarry
from jrnn.cells import lstm_variant as lstm_variant
from jrnn.engines import Associative as Associative
from jrnn.engines import Engine as Engine
from jrnn.engines import Fused as Fused
from jrnn.engines import Native as Native
from jrnn.engines import Newton as Newton
from jrnn.engines import NewtonStatus as NewtonStatus
from jrnn.engines import Scan as Scan
from jrnn.engines import Sharded as Sharded
from jrnn.engines import Solution as Solution
from jrnn.engines import newton as newton
from jrnn.engines import reverse_resets as reverse_resets
from jrnn.engines import segment_resets as segment_resets
from jrnn.engines import unroll as unroll
from jrnn.layer import Layer as Layer
from jrnn.layer import SequenceInputs as SequenceInputs
from jrnn.layers import bidirectional as bidirectional
from jrnn.layers import stack as stack
from jrnn.taps import tap as tap

try:
    __version__ = _version("jrnn")
except _PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"

_LAZY_MODULES = ("analysis", "config", "nn", "stream", "tasks", "testing", "train")


def __getattr__(name: str) -> Any:
    if name == "stream":
        return importlib.import_module("jrnn.nn").stream
    if name in _LAZY_MODULES:
        return importlib.import_module(f"jrnn.{name}")
    raise AttributeError(f"module 'jrnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY_MODULES])
