"""The pure training step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jrnn.cell import Carry
from jrnn.distributed.mesh import Mesh
from jrnn.train.data.sampler import BatchPlan, Examples
from jrnn.train.step.loss import Loss, MetricSums, Objective, SequenceLoss
from jrnn.train.step.state import StepMetrics, TrainState, constrain_state

StepFunction = Callable[[TrainState, Any], tuple[TrainState, StepMetrics]]
StepsFunction = Callable[[TrainState, Examples, BatchPlan, Any], tuple[TrainState, StepMetrics]]


@dataclass(frozen=True)
class TrainStep:
    """The pure function `(state, batch) -> (state, metrics)`.

    With `accumulate` above 1 the rows of a batch are split into as many parts, which run one after
    another; the carry of the state then has a first axis for the parts. Sums of losses and of their
    gradients are added and divided once, so that the step equals that of the whole batch for any
    lengths.

    Args:
      graphdef: the structure of the model.
      loss: the loss to minimize.
      optimizer: an optax transformation.
      accumulate: number of parts of a batch.
      mesh: devices that the state and the batches are sharded over.
    """

    graphdef: nnx.GraphDef
    loss: Loss
    optimizer: optax.GradientTransformation
    accumulate: int = 1
    mesh: Mesh = Mesh()

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, StepMetrics]:
        """Takes one step."""
        differentiate = self._whole_batch if self.accumulate == 1 else self._in_parts
        grads, sums, rest, carry = differentiate(state, batch)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        metrics = StepMetrics(
            sums.loss / jnp.maximum(sums.loss_weight, 1),
            sums.metric / jnp.maximum(sums.metric_weight, 1),
            optax.tree.norm(grads),
        )
        state = TrainState(state.step + 1, params, rest, opt_state, carry)
        return constrain_state(self.mesh, state), metrics

    def repeat(self, batch_of: Callable[[Examples, BatchPlan], Any]) -> StepsFunction:
        """A pure function of several steps, by a loop on the device.

        Args:
          batch_of: function from examples and the plan of a step to the batch of the step.

        Returns:
          A function `(state, examples, plans, count) -> (state, metrics)`. The plans have a first
          axis for the steps, and only the first `count` entries are used; the metrics have the same
          first axis and are 0 after these. All counts share one compilation.
        """

        def train_steps(state: TrainState, examples: Examples, plans: BatchPlan, count: Any):
            max_steps = len(jax.tree.leaves(plans)[0])

            def body(k: jax.Array, loop: tuple[TrainState, StepMetrics]):
                state, all_metrics = loop
                plan = jax.tree.map(lambda array: jnp.asarray(array)[k], plans)
                state, metrics = self(state, batch_of(examples, plan))
                return state, jax.tree.map(lambda a, one: a.at[k].set(one), all_metrics, metrics)

            zeros = StepMetrics(*(jnp.zeros(max_steps, jnp.float32) for _ in StepMetrics._fields))
            return jax.lax.fori_loop(0, count, body, (state, zeros))

        return train_steps

    def _sums(self, params: nnx.State, rest: nnx.State, carry: Carry, batch: Any):
        model: Any = nnx.merge(self.graphdef, self.mesh.gather(params), rest, copy=True)
        model.train()
        carry, sums = self.loss(model, carry, batch)
        _, _, rest = nnx.split(model, nnx.Param, ...)
        return sums.loss, (sums, rest, carry)

    def _mean(self, params: nnx.State, rest: nnx.State, carry: Carry, batch: Any):
        loss, aux = self._sums(params, rest, carry, batch)
        return loss / jnp.maximum(aux[0].loss_weight, 1), aux

    def _whole_batch(
        self, state: TrainState, batch: Any
    ) -> tuple[Any, MetricSums, nnx.State, Carry]:
        """Gradients, sums, other variables and carry."""
        gradient = jax.value_and_grad(self._mean, has_aux=True)
        (_, aux), grads = gradient(state.params, state.rest, state.carry, batch)
        return grads, *aux

    def _in_parts(self, state: TrainState, batch: Any) -> tuple[Any, MetricSums, nnx.State, Carry]:
        """The same as `_whole_batch`, with the memory of one part."""

        def add(loop: Any, part: tuple[Carry, Any]) -> tuple[Any, Carry]:
            rest, *totals = loop
            gradient = jax.grad(self._sums, has_aux=True)
            grads, (sums, rest, carry) = gradient(state.params, rest, *part)
            return (rest, *jax.tree.map(jnp.add, totals, [grads, sums])), carry

        split = lambda array: array.reshape(self.accumulate, -1, *array.shape[1:])
        parts = state.carry, jax.tree.map(split, batch)
        first = jax.tree.map(lambda array: array[0], parts)
        shapes = jax.eval_shape(self._sums, state.params, state.rest, *first)[1][0]
        no_sums = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        no_grads = jax.tree.map(jnp.zeros_like, state.params)
        (rest, grads, sums), carry = jax.lax.scan(add, (state.rest, no_grads, no_sums), parts)
        weight = jnp.maximum(sums.loss_weight, 1)
        return jax.tree.map(lambda grad: grad / weight, grads), sums, rest, carry


def make_train_step(
    graphdef: nnx.GraphDef, objective: Objective, optimizer: optax.GradientTransformation
) -> StepFunction:
    """A jitted function `(state, batch) -> (state, metrics)` that donates the old state."""
    return jax.jit(TrainStep(graphdef, SequenceLoss(objective), optimizer), donate_argnums=0)
