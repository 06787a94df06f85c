"""The training loop: from first step to last, or on from where a run was stopped."""

import contextlib
import shlex
import signal
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol

import jax
from flax import nnx

from jrnn.nn import Classifier, SequenceToSequence
from jrnn.processes import Team
from jrnn.tasks import sound
from jrnn.tasks.task import Data
from jrnn.train.checkpoint import Checkpoints
from jrnn.train.course import evaluator
from jrnn.train.data import check_batch_size
from jrnn.train.experiment import Experiment
from jrnn.train.guard import Interrupted, Signals, one_process
from jrnn.train.ledger import Record
from jrnn.train.mesh import Mesh
from jrnn.train.progress import Progress
from jrnn.train.run import Best, Run
from jrnn.train.step import TrainState, Weights, abstract_state
from jrnn.train.tbptt import check_streams


class Trained(NamedTuple):
    """What a run ends with.

    Attributes:
      model: the network with the best parameters.
      step: the training step that these are from.
      validation: loss and metric there on the validation split.
      test: loss and metric there on the test split.
      seconds: wall time of the training, with compilation, evaluation and saving, over all parts of
        a run that was resumed; None for a run that was read back.
    """

    model: Classifier | SequenceToSequence
    step: int
    validation: dict[str, float]
    test: dict[str, float]
    seconds: float | None = None


def train(
    experiment: Experiment,
    data: Data,
    folder: Path,
    *,
    resume: bool = False,
    team: Team | None = None,
) -> Trained:
    """Trains a network, evaluates it and saves it; all that comes of it lies in `folder`.

    A run that was stopped, by a signal or by force, and is resumed goes on exactly as it would have
    gone on: on the same device and versions, parameters and metrics are the same bit for bit.

    Several processes train one network if each calls this alike within `jrnn.processes.joined`, of
    which comes `team`. The first of them alone writes to the folder and reads it; a signal that one
    receives ends all.

    Args:
      experiment: what to do.
      data: the loaded task of the experiment.
      folder: gets `metrics.jsonl`, `checkpoints`, a lock, and `damaged` for checkpoints that are.
      resume: go on from the newest checkpoint in the folder that is not damaged; without any, from
        the beginning.
      team: the processes that do this together; by default this one alone.

    Returns:
      The best network, by the metric on the validation split, and what it reaches.

    Raises:
      NonFiniteLoss: a loss or a gradient was NaN or infinite; says at which step, and the last good
        checkpoint.
      Interrupted: SIGINT or SIGTERM came; all was saved.
      CheckpointError: a checkpoint could not be written or read; says which are whole.
      ValueError: options and data do not fit, or there are several processes and no team.
      FileExistsError: the folder holds checkpoints already, and `resume` is not set.
      BlockingIOError: another process trains in the folder.
    """
    team = team or Team()
    if jax.process_count() != team.count:
        raise ValueError(
            f"train: there are {jax.process_count()} processes, and {team.count} in the team; join "
            "them by jrnn.processes.joined, and not by jax.distributed.initialize"
        )
    check(experiment, data)
    team.again = f"jrnn train --resume {shlex.quote(str(folder))}"
    with (
        one_process(folder) if team.first else contextlib.nullcontext(),
        Signals() as signals,
        contextlib.closing(Run(experiment, data, folder, team)) as run,
        Progress(experiment.steps, data.metric, shown=team.first) as progress,
    ):
        run.resume() if resume else run.begin()
        drive(run, experiment, team, signals, progress)
        best = run.best()
        test = run.evaluate(data.test)
        return Trained(best.model(), best.step, best.validation, test, run.seconds())


class Going(Protocol):
    """What can be driven from first step to last: a run, or many at once.

    Attributes:
      step: training steps done or under way.
    """

    step: int

    def advance(self) -> None: ...
    def validate(self) -> dict[str, float]: ...
    def save(self) -> None: ...
    def wait(self) -> None: ...
    def ended(self) -> bool: ...
    def means(self) -> dict[str, float]: ...
    def unsaved_seconds(self) -> float: ...


def drive(
    run: Going, experiment: Experiment, team: Team, signals: Signals, progress: Progress
) -> None:
    """Trains to the end, and saves on the way and at the end.

    Args:
      run: what is trained.
      experiment: how long, and how often it is evaluated and saved.
      team: the processes that do it, which do all of it at the same steps.
      signals: what may end it before, whichever of the processes receives it.
      progress: what is shown.

    Raises:
      Interrupted: a signal came; all was saved.
      NonFiniteLoss, CheckpointError: as for `train`.
    """
    while not run.ended():
        due = run.unsaved_seconds() >= experiment.save_every
        stopped, due = team.most("stop, save", signals.received or 0, due)
        if not stopped:
            run.advance()
            progress.trained(run.step, run.means())
            if run.step % experiment.eval_every == 0 or run.step == experiment.steps:
                progress.validated(run.validate())
        if stopped or due or run.ended():
            run.save()
        if stopped and not run.ended():
            run.wait()
            raise Interrupted(
                f"stopped by {signal.Signals(stopped).name} at step {run.step} of "
                f"{experiment.steps}, and saved; go on with: {team.again}",
                signal.Signals(stopped),
            )
    run.wait()


def check(experiment: Experiment, data: Data) -> tuple[nnx.GraphDef, TrainState]:
    """Refuses what does not fit, at no cost: nothing is drawn, and nothing is compiled.

    Whether real numbers are finite is not looked at; `jrnn.tasks.load` does that.

    Returns:
      The structure of the network and the state of the run, with shapes for arrays.

    Raises:
      TypeError: an array of the data holds other things than it should.
      ValueError: options and data do not fit, or arrays of the data one another.
    """
    if experiment.tbptt is None:
        check_batch_size(data.train, experiment.batch_size)
    else:
        check_streams(data, experiment.tbptt.window(data), experiment.batch_size)
    sound.check(data)
    mesh = Mesh.of(experiment.mesh)
    mesh.check(experiment.batch_size // experiment.accumulate)
    optimizer = experiment.optim.build(experiment.steps)
    make = lambda: experiment.network.build(data, experiment.seed)
    found = abstract_state(make, optimizer)
    if experiment.tbptt is not None and not experiment.network.causal:
        raise ValueError(
            "TBPTT: the network must be causal, since other layers have no carry to hand over; set "
            "bidirectional=False and use a causal cell, or leave out tbptt"
        )
    return found


def restore(experiment: Experiment, data: Data, folder: Path) -> Trained:
    """Reads back the best network of a run, and evaluates it on the test split.

    Args:
      experiment: that of the run.
      data: the loaded task of the experiment.
      folder: that of the run.

    Returns:
      As `train`, without the time that it took.

    Raises:
      FileNotFoundError: no checkpoint of the run was ever evaluated.
      CheckpointError: all checkpoints are damaged.
    """
    best = load_best(experiment, data, folder)
    evaluate = evaluator(best.graphdef, experiment, data).compiled()
    return Trained(best.model(), best.step, best.validation, evaluate(best.weights, data.test))


def load_best(experiment: Experiment, data: Data, folder: Path) -> Best:
    """Reads back the best network of a run, which its newest checkpoint holds.

    Args:
      experiment: that of the run.
      data: the loaded task of the experiment.
      folder: that of the run.

    Raises:
      FileNotFoundError: no checkpoint of the run was ever evaluated.
      CheckpointError: all checkpoints are damaged.
    """
    graphdef, like = check(replace(experiment, mesh=None), data)  # one device is enough
    found = None
    if (folder / "checkpoints").is_dir():
        with contextlib.closing(Checkpoints(folder / "checkpoints")) as checkpoints:
            found = checkpoints.newest({"best": Weights(like.params, like.rest)._asdict()})
    record = Record() if found is None else Record.read(found.record, experiment)
    if found is None or not record.best:
        raise FileNotFoundError(
            f"restore: {folder / 'checkpoints'} holds no network that was evaluated; train the run "
            "first, or go on with it by --resume"
        )
    return Best(graphdef, Weights(**found.arrays["best"]), record.best_step, record.best)
