"""The state of training: parameters, other variables, optimizer state and carry."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jrnn.cell import Carry
from jrnn.distributed.mesh import Mesh


class TrainState(NamedTuple):
    """All arrays that a training step changes.

    Attributes:
      step: number of training steps so far, an int32 scalar.
      params: the parameters of the model, its variables of type `nnx.Param`.
      rest: its other variables, such as the counters of its random streams.
      opt_state: the state of the optimizer.
      carry: the initial carry of the next batch with truncated backpropagation through time, where
        batches are windows of long sequences (`jrnn.train.data.windows`), else `()`. If gradients
        are accumulated, it has a first axis for the micro-batches.
      ema: the exponential moving average of the parameters, else `()`.
    """

    step: jax.Array
    params: nnx.State
    rest: nnx.State
    opt_state: optax.OptState
    carry: Carry = ()
    ema: Any = ()

    @property
    def weights(self) -> "Weights":
        """What is evaluated: the average of the parameters, else the parameters, and the rest."""
        return Weights(self.ema or self.params, self.rest)

    def arrays(self) -> dict[str, Any]:
        """Returns the fields for a checkpoint, without `ema` if there is no average."""
        return {name: value for name, value in self._asdict().items() if name != "ema" or value}


class Weights(NamedTuple):
    """The parameters and other variables of a model.

    Attributes:
      params: the parameters.
      rest: the other variables.
    """

    params: nnx.State
    rest: nnx.State


class StepMetrics(NamedTuple):
    """The metrics of a training step.

    Attributes:
      loss: the mean loss of the batch.
      metric: the mean metric of the batch.
      grad_norm: the global norm of the gradient, before clipping.
      update_norm: the global norm of the update that is added to the parameters.
      has_loss: 1 if the batch has targets with a weight in the loss; else 0, as is the loss.
      has_metric: 1 if it has targets in the metric; else 0, as is the metric.
    """

    loss: jax.Array
    metric: jax.Array
    grad_norm: jax.Array
    update_norm: jax.Array
    has_loss: jax.Array
    has_metric: jax.Array


def init_state(
    model: nnx.Module, optimizer: optax.GradientTransformation, *, ema: bool = False
) -> tuple[nnx.GraphDef, TrainState]:
    """Splits a model into its static structure and the initial state of training.

    Args:
      model: any `nnx.Module`.
      optimizer: an optax transformation.
      ema: whether the state has an average of the parameters, which is a copy of them at first.

    Returns:
      The `nnx.GraphDef` of the model, and the state, which shares the arrays of the model.
    """
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    state = TrainState(jnp.zeros((), jnp.int32), params, rest, optimizer.init(params))
    return graphdef, state._replace(ema=jax.tree.map(jnp.copy, params)) if ema else state


def abstract_state(
    make_model: Callable[[], nnx.Module],
    optimizer: optax.GradientTransformation,
    *,
    ema: bool = False,
) -> tuple[nnx.GraphDef, TrainState]:
    """Returns the result of `init_state` with `jax.ShapeDtypeStruct` leaves instead of arrays.

    The model is created within `nnx.eval_shape`: no parameter is initialized.
    """
    graphdef, params, rest = nnx.split(nnx.eval_shape(make_model), nnx.Param, ...)
    step: Any = jax.ShapeDtypeStruct((), jnp.int32)
    state = TrainState(step, params, rest, jax.eval_shape(optimizer.init, params))
    return graphdef, state._replace(ema=params) if ema else state


def merge_model(graphdef: nnx.GraphDef, weights: Weights) -> Any:
    """Merges structure and weights into a model in evaluation mode."""
    model = nnx.merge(graphdef, *weights, copy=True)
    model.eval()
    return model


def place_state(mesh: Mesh, state: TrainState) -> TrainState:
    """Puts a state on the devices of a mesh by `Mesh.device_put`; the carry is replicated."""
    placed = mesh.device_put(state._replace(carry=()))
    return placed._replace(carry=mesh.device_put(state.carry, sharded=False))


def constrain_state(mesh: Mesh, state: TrainState) -> TrainState:
    """Constrains a state to the shardings of `place_state`, within `jax.jit`."""
    constrained = mesh.constrain(state._replace(carry=()))
    return constrained._replace(carry=mesh.constrain(state.carry, sharded=False))


def count_params(model: nnx.Module) -> int:
    """Returns the number of trainable parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
