"""Configuration: frozen dataclasses of an experiment, its network, its optimizer and TBPTT."""

from jrnn.train.config.experiment import Experiment as Experiment
from jrnn.train.config.experiment import RunOptions as RunOptions
from jrnn.train.config.network import Network as Network
from jrnn.train.config.optimizer import Optimizer as Optimizer
from jrnn.train.config.tbptt import TBPTT as TBPTT
