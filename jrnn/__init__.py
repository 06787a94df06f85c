"""Recurrent networks in JAX.

The gate arithmetic of a cell is written once, as pure functions. Engines, gradients, training and
analysis are derived from these functions.

>>> import jax, jax.numpy as jnp, jrnn
>>> cell = jrnn.LSTM(hidden_size=4)
>>> params = cell.init(jax.random.key(0), input_size=3)
>>> carry, ys = jrnn.unroll(cell, params, jnp.ones((5, 2, 3)))  # [time, batch, input]
>>> ys.shape
(5, 2, 4)

Run a cell or a layer:
  unroll: runs over a batch of sequences, with lengths, masks and resets, forward or in reverse.
  stream: runs a network of `jrnn.nn` one step at a time.
  segment_resets, reverse_resets: compute the resets for packed sequences.

Cells with dense recurrence:
  LSTM and its variants: LSTM, lstm_variant, JANET, MultiplicativeLSTM, MogrifierLSTM,
    DepthGatedLSTM, SLSTM, ConvLSTM.
  GRU and its variants: GRU, MGU, UGRNN, MUT1, MUT2, MUT3, MinimalRNN, GRUD.
  Other cells: Elman, FastGRNN, AntisymmetricRNN, Clockwork, CoRNN, LEM, CTRNN, CfC.

Cells with diagonal or block-diagonal recurrence: IndRNN, ParaGRU, ParaLSTM.

Cells that are linear in their carry: MinGRU, MinLSTM, LRU, RGLRU, S5, MLSTM.

Trained runs:
  load: returns a Run from the folder that the command `jrnn train` has written.

Layers, which map sequences to sequences:
  stack, bidirectional: combine cells and layers.
  Layer: the base class of layers and cells.

Engines, which `unroll` takes as the argument `engine`:
  Engine: the base class.
  Scan, Fused, Native: run step by step.
  Associative, Newton: run in parallel over time.
  Sharded: runs another engine on each device of a mesh.
  newton: runs `Newton`, and returns a Solution with a NewtonStatus.

Write a cell:
  Cell: the base class.
  tap: names a value, such as a gate, for `jrnn.analysis.capture_gates`.
  Diagonal, LogDiagonal, Dense: the coefficients of a cell that is linear in its carry.
  Noisy, Timed, Observed, WithCellState: inputs with noise, time intervals, missing values, or the
    cell state of the layer below.
  SequenceInputs: the arguments of a layer for a batch of sequences.
  Carries of several arrays are NamedTuples, such as LSTMCarry.

Modules:
  jrnn.transforms: functions from a cell to a cell, such as dropout, zoneout and layer_norm.
  jrnn.layers: the classes of stack and bidirectional.
  jrnn.initializers: initial values of weights and biases.
  jrnn.nn: flax modules. It needs flax.
  jrnn.train: training with optax, and checkpoints.
  jrnn.tasks: data sets and synthetic problems.
  jrnn.config: Python config files of the command `jrnn`.
  jrnn.analysis: gates, Lyapunov exponents, and figures.
  jrnn.testing: the conformance suite for your own cells.
  jrnn.sweep, jrnn.distributed: hyper-parameter sweeps, and training on several devices or hosts.

`import jrnn` imports no other module of jrnn, and not JAX: they are imported on first use.
"""

import importlib as _importlib
from typing import TYPE_CHECKING
from typing import Any as _Any

if TYPE_CHECKING:  # type checkers and editors read these imports; `_NAMES` lists the same names
    from jrnn import analysis as analysis
    from jrnn import bench as bench
    from jrnn import cells as cells
    from jrnn import config as config
    from jrnn import distributed as distributed
    from jrnn import engines as engines
    from jrnn import initializers as initializers
    from jrnn import layers as layers
    from jrnn import nn as nn
    from jrnn import sweep as sweep
    from jrnn import tasks as tasks
    from jrnn import testing as testing
    from jrnn import train as train
    from jrnn import transforms as transforms
    from jrnn.cell import Cell as Cell
    from jrnn.cell import Dense as Dense
    from jrnn.cell import Diagonal as Diagonal
    from jrnn.cell import LogDiagonal as LogDiagonal
    from jrnn.cell import Noisy as Noisy
    from jrnn.cell import Timed as Timed
    from jrnn.cell import WithCellState as WithCellState
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
    from jrnn.nn import stream as stream
    from jrnn.run_folder import Run as Run
    from jrnn.run_folder import load as load
    from jrnn.taps import tap as tap

    __version__: str

_NAMES = {
    "jrnn.cell": (
        "Cell",
        "Dense",
        "Diagonal",
        "LogDiagonal",
        "Noisy",
        "Timed",
        "WithCellState",
    ),
    "jrnn.cells": (
        "CTRNN",
        "GRU",
        "GRUD",
        "JANET",
        "LEM",
        "LRU",
        "LSTM",
        "MGU",
        "MLSTM",
        "MUT1",
        "MUT2",
        "MUT3",
        "RGLRU",
        "S5",
        "SLSTM",
        "UGRNN",
        "AntisymmetricRNN",
        "CfC",
        "Clockwork",
        "ClockworkCarry",
        "ConvLSTM",
        "CoRNN",
        "CoRNNCarry",
        "CTRNNCarry",
        "DepthGatedLSTM",
        "Elman",
        "FastGRNN",
        "GRUDCarry",
        "IndRNN",
        "LEMCarry",
        "LSTMCarry",
        "LSTMGateCarry",
        "MinGRU",
        "MinimalRNN",
        "MinLSTM",
        "MLSTMCarry",
        "MogrifierLSTM",
        "MultiplicativeLSTM",
        "Observed",
        "ParaGRU",
        "ParaLSTM",
        "SLSTMCarry",
        "lstm_variant",
    ),
    "jrnn.engines": (
        "Associative",
        "Engine",
        "Fused",
        "Native",
        "Newton",
        "NewtonStatus",
        "Scan",
        "Sharded",
        "Solution",
        "newton",
        "reverse_resets",
        "segment_resets",
        "unroll",
    ),
    "jrnn.layer": (
        "Layer",
        "SequenceInputs",
    ),
    "jrnn.layers": (
        "bidirectional",
        "stack",
    ),
    "jrnn.taps": ("tap",),
    "jrnn.nn": ("stream",),
    "jrnn.run_folder": ("Run", "load"),
}
"""The public names, by the module from which they are imported."""
_MODULES = (
    "analysis",
    "bench",
    "cells",
    "config",
    "distributed",
    "engines",
    "initializers",
    "layers",
    "nn",
    "sweep",
    "tasks",
    "testing",
    "train",
    "transforms",
)
"""The public modules."""
# An editable installation adds the root of the repository, whose folders are not parts of jrnn.
__path__ = [path for path in __path__ if path.rstrip("/\\").endswith("jrnn")]
_SOURCES = {name: module for module, names in _NAMES.items() for name in names}
_ALL = ["__version__", *_SOURCES, *_MODULES]
globals()["__all__"] = _ALL  # not a literal, which type checkers would have to evaluate


def _find_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("jrnn")
    except PackageNotFoundError:  # jrnn is imported from a source tree and is not installed
        return "0+unknown"


def __getattr__(name: str) -> _Any:
    """Imports a public name on its first use, and stores it as an attribute of `jrnn`."""
    if name == "__version__":
        value = _find_version()
    elif name in _SOURCES:
        value = getattr(_importlib.import_module(_SOURCES[name]), name)
    elif name in _MODULES:
        value = _importlib.import_module(f"jrnn.{name}")
    else:
        raise AttributeError(f"module 'jrnn' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_ALL})
