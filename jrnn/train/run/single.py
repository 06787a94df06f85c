"""A single network, on one device or on a mesh."""

from collections.abc import Sequence
from typing import Any

import jax
import optax
from flax import nnx

from jrnn.distributed import Mesh, ProcessGroup
from jrnn.train.config.experiment import RunOptions
from jrnn.train.data.sampler import fits_on_device
from jrnn.train.run.data_plan import DataPlan
from jrnn.train.run.multi_process import broadcast_arrays
from jrnn.train.step.evaluate import shard_evaluation
from jrnn.train.step.state import (
    StepMetrics,
    TrainState,
    Weights,
    init_state,
    merge_model,
    place_state,
)
from jrnn.train.step.step import TrainStep


class SingleNetwork:
    """The placement of a single network; see `Placement`.

    Attributes:
      max_steps: largest number of steps of one call of `train_steps`.
    """

    def __init__(
        self,
        model: nnx.Module,
        plan: DataPlan,
        optimizer: optax.GradientTransformation,
        options: RunOptions,
        mesh: Mesh,
        group: ProcessGroup,
    ):
        """For a model with its initial parameters, which are copied."""
        self._mesh = mesh
        self._graphdef, state = init_state(model, optimizer)
        state = broadcast_arrays(jax.tree.map(jax.numpy.copy, state), group)
        carry = plan.first_carry(self._graphdef, state.weights)
        self._first = place_state(mesh, state._replace(carry=carry))
        self._loader = plan.loader(options, mesh)
        self.max_steps = self._loader.max_steps
        step = TrainStep(self._graphdef, plan.loss, optimizer, options.accumulate, mesh)
        train_steps = jax.jit(step.repeat(self._loader.batch), donate_argnums=0)
        self._train_steps = mesh.wrap_with_context(train_steps)
        evaluation = shard_evaluation(plan.evaluation(self._graphdef), mesh)
        self._evaluate = mesh.wrap_with_context(evaluation.compiled())
        self._validation = plan.validation
        if isinstance(plan.validation, tuple) and fits_on_device(plan.validation):
            self._validation = mesh.replicate(plan.validation)

    def init_state(self) -> TrainState:
        """The state before the first step, whose arrays the first step donates."""
        return self._first

    def train_steps(
        self, state: TrainState, first: int, count: int, active: Sequence[bool]
    ) -> tuple[TrainState, StepMetrics]:
        """Dispatches some steps; see `Placement`."""
        return self._train_steps(state, *self._loader.next(first, count), count)

    def split_metrics(self, metrics: StepMetrics, count: int) -> list[StepMetrics]:
        """The metrics `[count]`, in a list."""
        return [jax.tree.map(lambda values: values[:count], metrics)]

    def validate(self, weights: Weights) -> list[dict[str, float]] | None:
        """Loss and metric on the validation data, in a list; None if there are none."""
        return None if self._validation is None else self.evaluate(weights, self._validation)

    def evaluate(self, weights: Weights, examples: Any) -> list[dict[str, float]]:
        """Loss and metric on other data, in a list."""
        return [self._evaluate(weights, examples)]

    def copy_where(self, chosen: Sequence[bool], new: Weights, old: Weights) -> Weights:
        """A copy of the new weights, or the old ones."""
        return jax.tree.map(jax.numpy.copy, new) if chosen[0] else old

    def fetch(self, tree: Any) -> Any:
        """Arrays that are fully addressable by this process."""
        return self._mesh.fetch(tree)

    def restore(self, state: TrainState, best: Weights) -> tuple[TrainState, Weights]:
        """Puts arrays that were read from a checkpoint on the devices."""
        return place_state(self._mesh, state), self._mesh.device_put(best)

    def model(self, weights: Weights) -> Any:
        """The network with the given weights, in evaluation mode."""
        return merge_model(self._graphdef, weights)
