"""Training: `fit` trains any model on any data, and `train` trains an experiment."""

from jrnn.signals import Interrupted as Interrupted
from jrnn.train.config.experiment import Experiment as Experiment
from jrnn.train.config.network import Network as Network
from jrnn.train.config.optimizer import Optimizer as Optimizer
from jrnn.train.config.tbptt import TBPTT as TBPTT
from jrnn.train.fit import FitResult as FitResult
from jrnn.train.fit import fit as fit
from jrnn.train.run.checkpoint import Checkpoint as Checkpoint
from jrnn.train.run.checkpoint import Checkpointer as Checkpointer
from jrnn.train.run.checkpoint import CheckpointError as CheckpointError
from jrnn.train.run.trainer import NonFiniteLoss as NonFiniteLoss
from jrnn.train.step.evaluate import make_evaluate as make_evaluate
from jrnn.train.step.loss import Objective as Objective
from jrnn.train.step.loss import apply_model as apply_model
from jrnn.train.step.state import StepMetrics as StepMetrics
from jrnn.train.step.state import TrainState as TrainState
from jrnn.train.step.state import init_state as init_state
from jrnn.train.step.step import make_train_step as make_train_step
from jrnn.train.train import check_experiment as check_experiment
from jrnn.train.train import load_best as load_best
from jrnn.train.train import restore as restore
from jrnn.train.train import train as train
