"""The configuration of a run, as a frozen dataclass."""

from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Any, Literal

from jrnn import checks
from jrnn.dataclass_tree import dataclasses_in, is_of_jrnn
from jrnn.distributed.mesh import Mesh
from jrnn.fields import OptionFields
from jrnn.tasks.task import Task
from jrnn.train.config.network import Network
from jrnn.train.config.optimizer import Optimizer
from jrnn.train.config.tbptt import TBPTT

MAX_STEPS = 2**31 - 1
"""Maximum number of training steps, which are counted in 32 bits."""


@dataclass(frozen=True)
class RunOptions(OptionFields):
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
      ema_decay: decay d of an exponential moving average of the parameters, in [0, 1), which is
        evaluated and saved as the best network in place of the parameters; None disables it. After
        training step t = 1, 2, ... the average is a = a + (1 - d_t)(params - a), with
        d_t = min(d, (1 + t) / (10 + t)), from the initial parameters on.
      freeze: paths of parameters that are not trained, such as "body.rnns.0" or "embedding": all
        parameters below a path, in which `*` and `?` are wildcards. They have no optimizer state.
      label_smoothing: fraction of the probability of the label that training distributes equally
        over all classes, in [0, 1).
      class_weights: weight of each class in the loss of training; "balanced" weights a class with n
        of N labels of the training split by N / (K n), for K classes; None means equal weights.

    Evaluations have neither label smoothing nor class weights.

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
    ema_decay: float | None = None
    freeze: tuple[str, ...] = ()
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | Literal["balanced"] | None = None

    def __post_init__(self) -> None:
        values = {f.name: getattr(self, f.name) for f in fields(RunOptions)}
        check_run_options(type(self).__name__, values)


def check_run_options(owner: str, values: Mapping[str, Any]) -> None:
    """Raises unless the values of all fields of `RunOptions` are valid; see there."""
    for name in ("steps", "batch_size", "eval_every"):
        checks.positive_int(owner, name, values[name])
    checks.divides(owner, "accumulate", values["accumulate"], "batch_size", values["batch_size"])
    if values["patience"] is not None:
        checks.positive_int(owner, "patience", values["patience"])
    checks.positive_number(owner, "save_every", values["save_every"])
    if values["mesh"] is not None:
        Mesh.parse(values["mesh"])
    checks.int_between(owner, "seed", values["seed"], 0, checks.MAX_SEED)
    checks.int_between(owner, "steps", values["steps"], 1, MAX_STEPS)
    if values["ema_decay"] is not None:
        checks.rate(owner, "ema_decay", values["ema_decay"])
    checks.texts(owner, "freeze", values["freeze"])
    checks.rate(owner, "label_smoothing", values["label_smoothing"])
    _check_class_weights(owner, values["class_weights"])


def _check_class_weights(owner: str, weights: Any) -> None:
    """Raises ValueError unless the value is a tuple of weights, "balanced" or None."""
    if isinstance(weights, tuple):
        for weight in weights:
            checks.non_negative_number(owner, "class_weights", weight)
        if not any(weights):
            raise ValueError(
                f"{owner}: class_weights must have a weight above 0, got {checks.describe(weights)}"
            )
    elif weights is not None and not (isinstance(weights, str) and weights == "balanced"):
        raise ValueError(
            f"{owner}: class_weights must be a tuple with one number for each class, such as "
            f"(1.0, 2.0), 'balanced' or None, got {checks.describe(weights)}"
            + checks.suggestion(weights, ("balanced",))
        )


@dataclass(frozen=True)
class Experiment(RunOptions):
    """The configuration of `jrnn train`: a task, a network, an optimizer and `RunOptions`.

    Args:
      task: the task to learn.
      network: the options of the network, which include the cell.
      optimizer: the options of the optimizer.
      tbptt: options of truncated backpropagation through time; None trains on whole sequences.
      run_dir: the folder that `jrnn train` creates for the run; None means a new folder in `runs`.
      init_from: the folder of a run whose best parameters are the initial ones, to fine-tune its
        network on other data or with other options; None means random parameters.
      init_skip: paths of parameters that are not read from this run, such as ("head",) for another
        number of classes; see `freeze`.
      keep_encoding: whether to encode the data as this run: with its normalization, vocabulary and
        classes. False computes them from the new data.

    Raises:
      TypeError: a field has the wrong type; see also `RunOptions`.
      ValueError: see `RunOptions`; also if `init_skip` or `keep_encoding` is set without
        `init_from`.
    """

    task: Task
    network: Network
    optimizer: Optimizer = field(default_factory=Optimizer)
    tbptt: TBPTT | None = None
    _: KW_ONLY
    run_dir: str | None = None
    init_from: str | None = None
    init_skip: tuple[str, ...] = ()
    keep_encoding: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.instance("Experiment", "task", self.task, Task)
        if not isinstance(self.network, Network):
            raise TypeError(
                "Experiment: network must be a Network, got "
                f"{checks.describe(self.network)}; train a module by jrnn.train.fit"
            )
        checks.instance("Experiment", "optimizer", self.optimizer, Optimizer)
        if self.tbptt is not None:
            checks.instance("Experiment", "tbptt", self.tbptt, TBPTT)
        for name in ("run_dir", "init_from"):
            if getattr(self, name) is not None:
                checks.instance("Experiment", name, getattr(self, name), str)
        checks.texts("Experiment", "init_skip", self.init_skip)
        checks.boolean("Experiment", "keep_encoding", self.keep_encoding)
        if self.init_from is None and (self.init_skip or self.keep_encoding):
            name = "init_skip" if self.init_skip else "keep_encoding"
            raise ValueError(f"Experiment: {name} needs init_from, got None; set init_from")


def resume_flags(experiments: Iterable[Experiment]) -> str:
    """Returns " --trust" if the command needs this flag to resume runs of experiments, else "".

    The flag is needed if a class, such as that of a cell, is not in jrnn.
    """
    classes = dataclasses_in(tuple(experiments))
    return "" if all(is_of_jrnn(cls.__module__) for cls in classes) else " --trust"
