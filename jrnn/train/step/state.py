"""The state that a training step changes."""

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
      step: number of steps taken, an int32 scalar.
      params: the parameters of the model.
      rest: its other variables, such as the counters of its random streams.
      opt_state: the state of the optimizer.
      carry: the carry that the next batch starts from if it is passed on between batches, else
        empty. With a first axis for the parts of a batch if gradients are accumulated.
    """

    step: jax.Array
    params: nnx.State
    rest: nnx.State
    opt_state: optax.OptState
    carry: Carry = ()

    @property
    def weights(self) -> "Weights":
        """The parameters and other variables of the model."""
        return Weights(self.params, self.rest)


class Weights(NamedTuple):
    """The parameters and other variables of a model.

    Attributes:
      params: the parameters.
      rest: the other variables.
    """

    params: nnx.State
    rest: nnx.State


class StepMetrics(NamedTuple):
    """The metrics of a training step: loss and metric of the batch, and norm of the gradient."""

    loss: jax.Array
    metric: jax.Array
    grad_norm: jax.Array


def init_state(
    model: nnx.Module, optimizer: optax.GradientTransformation
) -> tuple[nnx.GraphDef, TrainState]:
    """Splits a model into its static structure and the state that training changes."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    return graphdef, TrainState(jnp.zeros((), jnp.int32), params, rest, optimizer.init(params))


def abstract_state(
    make_model: Callable[[], nnx.Module], optimizer: optax.GradientTransformation
) -> tuple[nnx.GraphDef, TrainState]:
    """The result of `init_state` with shapes in place of arrays; it draws and compiles nothing."""
    graphdef, params, rest = nnx.split(nnx.eval_shape(make_model), nnx.Param, ...)
    step: Any = jax.ShapeDtypeStruct((), jnp.int32)
    return graphdef, TrainState(step, params, rest, jax.eval_shape(optimizer.init, params))


def merge_model(graphdef: nnx.GraphDef, weights: Weights) -> Any:
    """The model with the given weights, in evaluation mode."""
    model = nnx.merge(graphdef, *weights, copy=True)
    model.eval()
    return model


def place_state(mesh: Mesh, state: TrainState) -> TrainState:
    """Puts a state on the devices of a mesh: the carry on all of them, the rest sharded."""
    placed = mesh.device_put(state._replace(carry=()))
    return placed._replace(carry=mesh.device_put(state.carry, sharded=False))


def constrain_state(mesh: Mesh, state: TrainState) -> TrainState:
    """Inside of compiled code: a state that stays where `place_state` puts it."""
    constrained = mesh.constrain(state._replace(carry=()))
    return constrained._replace(carry=mesh.constrain(state.carry, sharded=False))


def count_params(model: nnx.Module) -> int:
    """The number of trainable parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
