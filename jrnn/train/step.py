"""The pure training step, and evaluation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jrnn.nn import Classifier, SequenceToSequence
from jrnn.tasks.task import Split
from jrnn.train.data import whole_batches
from jrnn.train.objective import Objective, Sums


class TrainState(NamedTuple):
    """Everything that a training step changes.

    Attributes:
      step: steps taken, an int32 scalar.
      params: the parameters of the network.
      rest: its other state: the counters of its random streams.
      opt_state: the state of the optimiser.
    """

    step: jax.Array
    params: nnx.State
    rest: nnx.State
    opt_state: optax.OptState


class Report(NamedTuple):
    """What one training step reports: loss and metric over the batch, and the gradient's norm."""

    loss: jax.Array
    metric: jax.Array
    grad_norm: jax.Array


StepFunction = Callable[[TrainState, Split], tuple[TrainState, Report]]


def apply_model(model: Classifier | SequenceToSequence, batch: Split) -> jax.Array:
    """The network's outputs for a batch, of whichever head it has."""
    lengths = None if batch.lengths is None else jnp.asarray(batch.lengths)
    outputs = model(jnp.asarray(batch.xs), lengths=lengths)
    return outputs[1] if isinstance(outputs, tuple) else outputs


def predict(
    model: Classifier | SequenceToSequence, split: Split, batch_size: int = 256
) -> np.ndarray:
    """The network's float32 outputs for all examples, a batch at a time."""
    run = nnx.jit(lambda model, batch: apply_model(model, batch).astype(jnp.float32))
    outputs = [run(model, batch)[present] for batch, present in whole_batches(split, batch_size)]
    return np.concatenate(outputs)


def init_state(
    model: Classifier | SequenceToSequence, optimizer: optax.GradientTransformation
) -> tuple[nnx.GraphDef, TrainState]:
    """Splits a network into its static structure and the state that training changes."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    return graphdef, TrainState(jnp.zeros((), jnp.int32), params, rest, optimizer.init(params))


def abstract_state(
    make_model: Callable[[], Classifier | SequenceToSequence],
    optimizer: optax.GradientTransformation,
) -> tuple[nnx.GraphDef, TrainState]:
    """What `init_state` gives, with shapes for arrays: nothing is drawn and nothing compiled."""
    graphdef, params, rest = nnx.split(nnx.eval_shape(make_model), nnx.Param, ...)
    step: Any = jax.ShapeDtypeStruct((), jnp.int32)
    return graphdef, TrainState(step, params, rest, jax.eval_shape(optimizer.init, params))


def make_train_step(
    graphdef: nnx.GraphDef, objective: Objective, optimizer: optax.GradientTransformation
) -> StepFunction:
    """A jitted pure function `(state, batch) -> (state, report)`; it takes over the old state."""

    def loss_of(params: nnx.State, rest: nnx.State, batch: Split):
        model = nnx.merge(graphdef, params, rest, copy=True)
        model.train()
        sums = objective.sums(apply_model(model, batch), batch)
        _, _, rest = nnx.split(model, nnx.Param, ...)
        return sums.loss / sums.loss_weight, (sums, rest)

    def train_step(state: TrainState, batch: Split) -> tuple[TrainState, Report]:
        gradient = jax.value_and_grad(loss_of, has_aux=True)
        (loss, (sums, rest)), grads = gradient(state.params, state.rest, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        report = Report(loss, sums.metric / sums.metric_weight, optax.tree.norm(grads))
        return TrainState(state.step + 1, params, rest, opt_state), report

    return jax.jit(train_step, donate_argnums=0)


def make_evaluate(
    graphdef: nnx.GraphDef, objective: Objective, batch_size: int
) -> Callable[[TrainState, Split], dict[str, float]]:
    """A function `(state, split) -> {"loss", "metric"}`: exact means over every example."""

    @jax.jit
    def batch_sums(params, rest, batch, present) -> Sums:
        model = nnx.merge(graphdef, params, rest)
        model.eval()
        return objective.sums(apply_model(model, batch), batch, present)

    def evaluate(state: TrainState, split: Split) -> dict[str, float]:
        sums = [
            batch_sums(state.params, state.rest, batch, present)
            for batch, present in whole_batches(split, batch_size)
        ]
        return jax.tree.map(lambda *parts: sum(parts), *sums).means()

    return evaluate


def count_params(model: nnx.Module) -> int:
    """The number of trainable numbers."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
