"""Everything that defines a run, in one frozen dataclass."""

from dataclasses import KW_ONLY, dataclass, field

from jrnn import checks
from jrnn.distributed.mesh import Mesh
from jrnn.tasks.task import Task
from jrnn.train.config.network import Network
from jrnn.train.config.optimizer import Optimizer
from jrnn.train.config.tbptt import TBPTT


@dataclass(frozen=True)
class RunOptions:
    """How long a run trains, on which batches, and how often it is evaluated and saved.

    Args:
      steps: number of training steps.
      batch_size: number of examples of a step.
      accumulate: number of parts of a batch, which run one after another with the memory of one;
        the step equals that of the whole batch. Must divide batch_size.
      eval_every: steps between evaluations on the validation split.
      patience: number of evaluations without improvement after which the run ends; None never ends
        it early.
      save_every: seconds between checkpoints; the first and the last step are always saved.
      seed: of the parameters, of dropout, and of the order of the examples.
      mesh: devices to train on, such as "data=8", which splits each batch over eight devices, or
        "data=4,model=2", which also shards the parameters over two; None means one device, or all
        devices if there are several processes.

    Raises:
      ValueError: a number is not positive, or the seed is negative.
    """

    _: KW_ONLY
    steps: int = 1000
    batch_size: int = 32
    accumulate: int = 1
    eval_every: int = 100
    patience: int | None = None
    save_every: float = 30.0
    seed: int = 0
    mesh: str | None = None

    def __post_init__(self) -> None:
        name = type(self).__name__
        for number in ("steps", "batch_size", "eval_every"):
            checks.positive_int(name, number, getattr(self, number))
        checks.divides(name, "accumulate", self.accumulate, "batch_size", self.batch_size)
        if self.patience is not None:
            checks.positive_int(name, "patience", self.patience)
        checks.positive_number(name, "save_every", self.save_every)
        if self.mesh is not None:
            Mesh.parse(self.mesh)
        if self.seed < 0:
            raise ValueError(f"{name}: seed must be at least 0, got {self.seed}")


@dataclass(frozen=True)
class Experiment(RunOptions):
    """A run of the command `jrnn train`: what to learn, with which network, how and how long.

    The other fields are those of `RunOptions`.

    Args:
      task: what to learn.
      network: the network; its `cell` is the cell.
      optimizer: the optimizer.
      tbptt: truncated backpropagation through time, which passes the carry on from one window to
        the next; None trains on whole examples.
      run_dir: folder for all that the run writes; None means a new one under `runs`.

    Raises:
      ValueError: a number is not positive, or the seed is negative.
    """

    task: Task
    network: Network
    optimizer: Optimizer = field(default_factory=Optimizer)
    tbptt: TBPTT | None = None
    _: KW_ONLY
    run_dir: str | None = None
