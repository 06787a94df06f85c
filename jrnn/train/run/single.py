"""A single network to train, on one device or on a mesh."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax
from flax import nnx

from jrnn.distributed import Mesh, ProcessGroup
from jrnn.train.config.experiment import RunOptions
from jrnn.train.data.arrays import describe_specs
from jrnn.train.data.sampler import fits_on_device, take
from jrnn.train.run.data_plan import DataPlan
from jrnn.train.run.multi_process import broadcast_arrays
from jrnn.train.step.evaluate import shard_evaluator
from jrnn.train.step.freeze import check_freeze, freeze
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
    """A single network on one device or on a mesh; implements `Trainable`.

    Attributes:
      max_steps: maximum number of steps per call of `train_steps`.
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
        """Copies the parameters to the devices, and creates the functions of training.

        Args:
          model: the model with its initial parameters; it is not changed.
          plan: the data and the loss.
          optimizer: an optax transformation.
          options: batch size, accumulation, seed, frozen parameters and their average.
          mesh: the devices.
          group: the processes that train together; all use the parameters of the first one.

        Raises:
          ValueError: a path of `options.freeze` selects no parameter, or as for
            `DataPlan.make_loader`.
        """
        self._mesh = mesh
        optimizer = freeze(optimizer, options.freeze)
        self._graphdef, state = init_state(model, optimizer, ema=options.ema_decay is not None)
        check_freeze(options.freeze, state.params, "fit")
        state = broadcast_arrays(jax.tree.map(jax.numpy.copy, state), group)
        self._loader = plan.make_loader(options, mesh)
        carry = plan.init_carry(self._graphdef, state.weights)
        self._initial_state = place_state(mesh, state._replace(carry=carry))
        self.max_steps = self._loader.max_steps
        step = TrainStep(
            self._graphdef,
            plan.loss,
            optimizer,
            options.accumulate,
            mesh,
            options.freeze,
            options.ema_decay,
        )
        self._jitted_steps = jax.jit(step.make_loop(self._loader.get_batch), donate_argnums=0)
        self._train_steps = mesh.wrap_with_context(self._jitted_steps)
        self._evaluator = shard_evaluator(plan.make_evaluator(self._graphdef), mesh)
        self._evaluate = mesh.wrap_with_context(self._evaluator.compile())
        self._validation = plan.validation
        if isinstance(plan.validation, tuple) and fits_on_device(plan.validation):
            self._validation = mesh.replicate(plan.validation)

    def trace(self, examples: Mapping[str, Any]) -> None:
        """Traces a training step and evaluations without compilation, which raises their errors.

        Args:
          examples: data to evaluate, as for `evaluate`, or None, by name.
        """
        state = self._initial_state
        eval_shape = self._mesh.wrap_with_context(jax.eval_shape)
        eval_shape(self._jitted_steps, state, *self._loader.peek(), 1)
        traced = []
        for each in examples.values():
            if each is None:
                continue
            chunk = next(iter(self._evaluator.iterate_chunks(each)))
            specs = jax.tree.structure(chunk), describe_specs(chunk)
            if specs not in traced:
                eval_shape(self._evaluator.compute_sums, state.weights, *chunk)
                traced.append(specs)

    @property
    def batch_specs(self) -> str:
        """The dtypes and shapes of a batch, if the data are an iterable of batches."""
        batches, _ = self._loader.peek()
        return describe_specs(jax.eval_shape(lambda tree: take(tree, 0), batches))

    def init_state(self) -> TrainState:
        """Returns the state before the first step; the first step donates its arrays."""
        return self._initial_state

    def train_steps(
        self, state: TrainState, first: int, count: int, active: Sequence[bool]
    ) -> tuple[TrainState, StepMetrics]:
        """Dispatches several steps; see `Trainable`."""
        return self._train_steps(state, *self._loader.next(first, count), count)

    def split_metrics(self, metrics: StepMetrics, count: int) -> list[StepMetrics]:
        """Returns the metrics of the first `count` steps, in a list of length 1."""
        return [jax.tree.map(lambda values: values[:count], metrics)]

    def validate(self, weights: Weights) -> list[dict[str, float]] | None:
        """Returns the loss and the metric in a list of length 1; None without validation data."""
        return None if self._validation is None else self.evaluate(weights, self._validation)

    def evaluate(self, weights: Weights, examples: Any) -> list[dict[str, float]]:
        """Returns the loss and the metric on other data, in a list of length 1."""
        return [self._evaluate(weights, examples)]

    def copy_where(self, chosen: Sequence[bool], new: Weights, old: Weights) -> Weights:
        """Returns a copy of the new weights if `chosen[0]`, else the old weights."""
        return jax.tree.map(jax.numpy.copy, new) if chosen[0] else old

    def fetch(self, tree: Any) -> Any:
        """Gathers arrays, so that this process can read all of their values."""
        return self._mesh.fetch(tree)

    def restore(self, state: TrainState, best: Weights) -> tuple[TrainState, Weights]:
        """Puts the arrays of a checkpoint on the devices."""
        return place_state(self._mesh, state), self._mesh.device_put(best)

    def model(self, weights: Weights) -> Any:
        """Returns the network with these weights, in evaluation mode."""
        return merge_model(self._graphdef, weights)
