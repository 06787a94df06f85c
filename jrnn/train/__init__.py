"""Training: a pure step, a loop that shows itself, checkpoints, and a report."""

from jrnn.train.checkpoint import Checkpoint as Checkpoint
from jrnn.train.checkpoint import CheckpointError as CheckpointError
from jrnn.train.checkpoint import Checkpoints as Checkpoints
from jrnn.train.experiment import Experiment as Experiment
from jrnn.train.guard import Interrupted as Interrupted
from jrnn.train.loop import Trained as Trained
from jrnn.train.loop import check as check
from jrnn.train.loop import load_best as load_best
from jrnn.train.loop import restore as restore
from jrnn.train.loop import train as train
from jrnn.train.network import Network as Network
from jrnn.train.objective import Objective as Objective
from jrnn.train.optim import Optim as Optim
from jrnn.train.run import NonFiniteLoss as NonFiniteLoss
from jrnn.train.step import Report as Report
from jrnn.train.step import TrainState as TrainState
from jrnn.train.step import apply_model as apply_model
from jrnn.train.step import init_state as init_state
from jrnn.train.step import make_evaluate as make_evaluate
from jrnn.train.step import make_train_step as make_train_step
from jrnn.train.tbptt import TBPTT as TBPTT
