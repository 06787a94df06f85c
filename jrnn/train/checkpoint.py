"""Checkpoints of a run by orbax: the best and the last are kept."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from jrnn.train.objective import HIGHER_IS_BETTER
from jrnn.train.step import TrainState


class Checkpoints:
    """The folder of a run's checkpoints; each is written whole or not at all."""

    def __init__(self, folder: Path, metric: str):
        """Opens the folder, and makes it if need be.

        Args:
          folder: the run's folder `checkpoints`.
          metric: name of the metric that says which checkpoint is best.
        """
        self._higher = HIGHER_IS_BETTER[metric]
        keep = policies.AnyPreservationPolicy(
            [
                policies.LatestN(1),
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics["metric"],
                    n=1,
                    reverse=not self._higher,
                ),
            ]
        )
        self._manager = ocp.CheckpointManager(
            folder.absolute(), options=ocp.CheckpointManagerOptions(preservation_policy=keep)
        )

    def save(self, state: TrainState, metrics: dict[str, float]) -> None:
        """Writes a checkpoint in the background, under its step.

        Args:
          state: of the run.
          metrics: on the validation split, with the key "metric".
        """
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state._asdict()), metrics=ocp.args.JsonSave(metrics)
            ),
            metrics=metrics,
        )

    def steps(self) -> list[int]:
        """The steps that can be restored, once all writing is done."""
        self._manager.wait_until_finished()
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step of the best checkpoint, or None where there is none."""
        best = max if self._higher else min
        values = {}
        for step in self.steps():
            try:
                values[step] = self.metrics(step)["metric"]
            except (KeyError, FileNotFoundError):
                continue  # half deleted by a run that was killed while it made room
        return best(values, key=lambda step: values[step], default=None)

    def metrics(self, step: int) -> dict[str, Any]:
        """The validation metrics that were saved with a checkpoint."""
        args = ocp.args.Composite(metrics=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)["metrics"]

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Reads a checkpoint.

        Args:
          step: one of `steps`.
          like: a state of the same network and optimiser; arrays in it may be mere shapes.
        """
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), like._asdict())
        args = ocp.args.Composite(state=ocp.args.StandardRestore(shapes))
        return TrainState(**self._manager.restore(step, args=args)["state"])

    def close(self) -> None:
        """Waits for all writing and lets go of the folder."""
        self._manager.close()
