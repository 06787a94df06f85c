"""The configuration of a run, as a frozen dataclass."""

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass, field

from jrnn import checks
from jrnn.dataclass_tree import dataclasses_in, is_of_jrnn
from jrnn.distributed.mesh import Mesh
from jrnn.tasks.task import Task
from jrnn.train.config.network import Network
from jrnn.train.config.optimizer import Optimizer
from jrnn.train.config.tbptt import TBPTT

MAX_STEPS = 2**31 - 1
"""Maximum number of training steps, which are counted in 32 bits."""


@dataclass(frozen=True)
class RunOptions(checks.ConvertsFields):
    """Options of the training loop: steps, batches, evaluations, checkpoints and devices.

    Args:
      steps: number of training steps, below 2³¹; each is one update of the parameters.
      batch_size: number of examples per training step; of streams, with `tbptt`.
      accumulate: number of micro-batches that each batch is split into. They are computed one after
        another, which saves memory; the gradient is that of the whole batch. Must divide
        batch_size.
      eval_every: number of training steps between evaluations on the validation split; there is
        also one after the last step.
      patience: number of consecutive evaluations without improvement of the metric after which the
        run stops early; None disables early stopping.
      save_every: seconds between checkpoints; a run is also saved before its first step, when a
        signal stops it, and at its end.
      seed: seed of the parameters, of dropout, and of the order of the examples.
      mesh: devices to train on: "data=8" shards each batch over 8 devices, "data=4,model=2" also
        shards the parameters over 2; None means one device, or all devices if there are several
        processes.

    Raises:
      TypeError: mesh is neither None nor a str.
      ValueError: a number is not positive or not an int where one is required, accumulate does not
        divide batch_size, mesh cannot be parsed, or the seed or the number of steps is out of
        range.
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
        for field_name in ("steps", "batch_size", "eval_every"):
            checks.positive_int(name, field_name, getattr(self, field_name))
        checks.divides(name, "accumulate", self.accumulate, "batch_size", self.batch_size)
        if self.patience is not None:
            checks.positive_int(name, "patience", self.patience)
        checks.positive_number(name, "save_every", self.save_every)
        if self.mesh is not None:
            Mesh.parse(self.mesh)
        checks.int_between(name, "seed", self.seed, 0, checks.MAX_SEED)
        checks.int_between(name, "steps", self.steps, 1, MAX_STEPS)


@dataclass(frozen=True)
class Experiment(RunOptions):
    """The configuration of `jrnn train`: a task, a network, an optimizer and `RunOptions`.

    Args:
      task: the task to learn.
      network: the options of the network, which include the cell.
      optimizer: the options of the optimizer.
      tbptt: options of truncated backpropagation through time; None trains on whole sequences.
      run_dir: the folder that `jrnn train` creates for the run; None means a new folder in `runs`.

    Raises:
      TypeError: task, network, optimizer, tbptt or run_dir has the wrong type; see also
        `RunOptions`.
      ValueError: see `RunOptions`.
    """

    task: Task
    network: Network
    optimizer: Optimizer = field(default_factory=Optimizer)
    tbptt: TBPTT | None = None
    _: KW_ONLY
    run_dir: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.instance("Experiment", "task", self.task, Task)
        checks.instance("Experiment", "network", self.network, Network)
        checks.instance("Experiment", "optimizer", self.optimizer, Optimizer)
        if self.tbptt is not None:
            checks.instance("Experiment", "tbptt", self.tbptt, TBPTT)
        if self.run_dir is not None:
            checks.instance("Experiment", "run_dir", self.run_dir, str)


def resume_flags(experiments: Iterable[Experiment]) -> str:
    """Returns " --trust" if the command needs this flag to resume runs of experiments, else "".

    The flag is needed if a class, such as that of a cell, is not in jrnn.
    """
    classes = dataclasses_in(tuple(experiments))
    return "" if all(is_of_jrnn(cls.__module__) for cls in classes) else " --trust"
