"""A training step as a pure function."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.typing import ArrayLike

from jrnn.cell import Carry
from jrnn.distributed.mesh import Mesh
from jrnn.train.data.sampler import BatchPlan, Examples
from jrnn.train.step.freeze import frozen_mask
from jrnn.train.step.loss import Loss, MetricSums, Objective, SequenceLoss, divide_or_zero
from jrnn.train.step.state import StepMetrics, TrainState, constrain_state

StepFunction = Callable[[TrainState, Any], tuple[TrainState, StepMetrics]]
"""A training step, `(state, batch) -> (state, metrics)`."""
StepsFunction = Callable[[TrainState, Examples, BatchPlan, Any], tuple[TrainState, StepMetrics]]
"""A loop over training steps; see `TrainStep.make_loop`."""


@dataclass(frozen=True)
class TrainStep:
    """A pure function `(state, batch) -> (state, metrics)`: one update of the parameters.

    With `accumulate` above 1, each batch is split into that many micro-batches, and their gradients
    are computed one after another and added. The update equals that of the whole batch even if the
    examples have different lengths, because sums are accumulated and divided once. The carry in the
    state then has a first axis for the micro-batches.

    Args:
      graphdef: the static structure of the model.
      loss: the loss to minimize.
      optimizer: an optax transformation.
      accumulate: number of micro-batches per batch.
      mesh: the devices that the state and the batches are sharded over.
      freeze: the parameters that do not change; see `jrnn.train.step.freeze.is_selected`. Their
        gradient is not computed, and is not included in the norm of the gradient.
      ema_decay: the decay of the average of the parameters, which may be traced; see `RunOptions`.
        Must not be None if the state has an average.
    """

    graphdef: nnx.GraphDef
    loss: Loss
    optimizer: optax.GradientTransformation
    accumulate: int = 1
    mesh: Mesh = Mesh()
    freeze: tuple[str, ...] = ()
    ema_decay: ArrayLike | None = None

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, StepMetrics]:
        """Updates the parameters once."""
        compute = self._compute_grads if self.accumulate == 1 else self._accumulate_grads
        grads, sums, rest, carry = compute(state, batch)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        params = self._keep_frozen(state.params, params)
        metrics = StepMetrics(
            divide_or_zero(sums.loss, sums.loss_weight),
            divide_or_zero(sums.metric, sums.metric_weight),
            optax.tree.norm(grads),
            optax.tree.norm(updates),
            (sums.loss_weight > 0).astype(jnp.float32),
            (sums.metric_weight > 0).astype(jnp.float32),
        )
        step = state.step + 1
        ema = self._average(state.ema, params, step)
        state = TrainState(step, params, rest, opt_state, carry, ema)
        return constrain_state(self.mesh, state), metrics

    def make_loop(self, get_batch: Callable[[Examples, BatchPlan], Any]) -> StepsFunction:
        """Returns a pure function that runs several training steps in a loop on the device.

        Args:
          get_batch: a function `(examples, plan) -> batch`, where `plan` selects the examples of
            one step.

        Returns:
          A function `(state, examples, plans, count) -> (state, metrics)`. `plans` and `metrics`
          have a first axis for the steps. The loop runs the first `count` plans; the other entries
          of `metrics` are 0. All values of `count` share one compilation.
        """

        def train_steps(state: TrainState, examples: Examples, plans: BatchPlan, count: Any):
            max_steps = len(jax.tree.leaves(plans)[0])

            def body(k: jax.Array, loop: tuple[TrainState, StepMetrics]):
                state, all_metrics = loop
                plan = jax.tree.map(lambda array: jnp.asarray(array)[k], plans)
                state, metrics = self(state, get_batch(examples, plan))
                return state, jax.tree.map(lambda a, one: a.at[k].set(one), all_metrics, metrics)

            zeros = StepMetrics(*(jnp.zeros(max_steps, jnp.float32) for _ in StepMetrics._fields))
            return jax.lax.fori_loop(0, count, body, (state, zeros))

        return train_steps

    def _average(self, ema: Any, params: nnx.State, step: jax.Array) -> Any:
        """Returns the average of the parameters after step `step`; `()` if there is none."""
        if not ema:
            return ()
        limit: Any = self.ema_decay
        decay = jnp.minimum(limit, (1 + step) / (10 + step))
        average = lambda old, new: old + ((1 - decay) * (new - old)).astype(old.dtype)
        return self._keep_frozen(ema, jax.tree.map(average, ema, params))

    def _keep_frozen(self, old: Any, new: Any) -> Any:
        """Returns the new parameters, but the old ones where they are frozen.

        Adding an update of zero would change the sign of -0.0.
        """
        if not self.freeze:
            return new
        keep = lambda frozen, a, b: a if frozen else b
        return jax.tree.map(keep, frozen_mask(old, self.freeze), old, new)

    def _loss_sum(self, params: nnx.State, rest: nnx.State, carry: Carry, batch: Any):
        if self.freeze:
            stop = lambda frozen, leaf: jax.lax.stop_gradient(leaf) if frozen else leaf
            params = jax.tree.map(stop, frozen_mask(params, self.freeze), params)
        model: Any = nnx.merge(self.graphdef, self.mesh.gather(params), rest, copy=True)
        model.train()
        carry, sums = self.loss(model, carry, batch)
        _, _, rest = nnx.split(model, nnx.Param, ...)
        return sums.loss, (sums, rest, carry)

    def _loss_mean(self, params: nnx.State, rest: nnx.State, carry: Carry, batch: Any):
        loss, aux = self._loss_sum(params, rest, carry, batch)
        return divide_or_zero(loss, aux[0].loss_weight), aux

    def _compute_grads(
        self, state: TrainState, batch: Any
    ) -> tuple[Any, MetricSums, nnx.State, Carry]:
        """Returns the gradients, the sums of loss and metric, the other variables and the carry."""
        grad_fn = jax.value_and_grad(self._loss_mean, has_aux=True)
        (_, aux), grads = grad_fn(state.params, state.rest, state.carry, batch)
        return grads, *aux

    def _accumulate_grads(
        self, state: TrainState, batch: Any
    ) -> tuple[Any, MetricSums, nnx.State, Carry]:
        """Returns the same as `_compute_grads`, with the peak memory of one micro-batch."""

        def add(loop: Any, microbatch: tuple[Carry, Any]) -> tuple[Any, Carry]:
            rest, *totals = loop
            grad_fn = jax.grad(self._loss_sum, has_aux=True)
            grads, (sums, rest, carry) = grad_fn(state.params, rest, *microbatch)
            return (rest, *jax.tree.map(jnp.add, totals, [grads, sums])), carry

        split = lambda array: array.reshape(self.accumulate, -1, *array.shape[1:])
        microbatches = state.carry, jax.tree.map(split, batch)
        first = jax.tree.map(lambda array: array[0], microbatches)
        shapes = jax.eval_shape(self._loss_sum, state.params, state.rest, *first)[1][0]
        zero_sums = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        zero_grads = jax.tree.map(jnp.zeros_like, state.params)
        (rest, grads, sums), carry = jax.lax.scan(
            add, (state.rest, zero_grads, zero_sums), microbatches
        )
        divide = lambda grad: divide_or_zero(grad, sums.loss_weight).astype(grad.dtype)
        return jax.tree.map(divide, grads), sums, rest, carry


def make_train_step(
    graphdef: nnx.GraphDef, objective: Objective, optimizer: optax.GradientTransformation
) -> StepFunction:
    """Returns a jitted training step for whole examples.

    Args:
      graphdef: the static structure of the model, from `init_state`.
      objective: the loss and metric.
      optimizer: the optax transformation that was passed to `init_state`.

    Returns:
      A function `(state, batch) -> (state, metrics)`, from `TrainState` and `Split` to `TrainState`
      and `StepMetrics`. It donates the old state.
    """
    return jax.jit(TrainStep(graphdef, SequenceLoss(objective), optimizer), donate_argnums=0)
