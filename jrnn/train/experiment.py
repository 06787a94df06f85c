"""Everything that defines a run, in one frozen dataclass."""

from dataclasses import dataclass, field

from jrnn import checks
from jrnn.tasks.task import Task
from jrnn.train.mesh import Mesh
from jrnn.train.network import Network
from jrnn.train.optim import Optim
from jrnn.train.tbptt import TBPTT


@dataclass(frozen=True)
class Experiment:
    """A run: what to learn, with which network, how and for how long.

    Args:
      task: what to learn.
      network: the network; its `cell` is the cell.
      optim: the optimiser.
      tbptt: truncated backpropagation through time, with the carry handed over from one window to
        the next; None trains on whole examples.
      steps: training steps.
      batch_size: examples a step.
      accumulate: parts into which a batch is cut, to be run one after another in the memory of one;
        the step is that of the whole batch. Must divide batch_size.
      eval_every: steps between evaluations on the validation split.
      patience: evaluations without a better one after which a run ends; None never ends early.
      save_every: seconds between checkpoints; there is one at the beginning and at the end too.
      seed: of the parameters, of dropout, and of the order of the examples.
      mesh: devices to train on, such as "data=8", which splits each batch over eight of them, or
        "data=4,model=2", which keeps parameters in halves too; None means one, or of several
        processes all.
      run_dir: folder for all that the run writes; None means a new one under `runs`.

    Raises:
      ValueError: a number is not positive, or the seed is negative.
    """

    task: Task
    network: Network
    optim: Optim = field(default_factory=Optim)
    tbptt: TBPTT | None = None
    steps: int = 1000
    batch_size: int = 32
    accumulate: int = 1
    eval_every: int = 100
    patience: int | None = None
    save_every: float = 30.0
    seed: int = 0
    mesh: str | None = None
    run_dir: str | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "eval_every"):
            checks.positive_int("Experiment", name, getattr(self, name))
        checks.divides("Experiment", "accumulate", self.accumulate, "batch_size", self.batch_size)
        if self.patience is not None:
            checks.positive_int("Experiment", "patience", self.patience)
        checks.positive_number("Experiment", "save_every", self.save_every)
        if self.mesh is not None:
            Mesh.parse(self.mesh)
        if self.seed < 0:
            raise ValueError(f"Experiment: seed must be at least 0, got {self.seed}")
