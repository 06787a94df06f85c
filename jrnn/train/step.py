"""The pure training step, and evaluation."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jrnn.cell import Carry
from jrnn.nn import Classifier, SequenceToSequence
from jrnn.tasks.task import Split
from jrnn.train.data import Plan, fits, take, whole_rows
from jrnn.train.objective import Objective, Sums


class TrainState(NamedTuple):
    """Everything that a training step changes.

    Attributes:
      step: steps taken, an int32 scalar.
      params: the parameters of the network.
      rest: its other state: the counters of its random streams.
      opt_state: the state of the optimiser.
      carry: the carry that the next batch begins with, where one is handed over; else empty. With a
        first axis for the parts of a batch if there are several.
    """

    step: jax.Array
    params: nnx.State
    rest: nnx.State
    opt_state: optax.OptState
    carry: Carry = ()


class Weights(NamedTuple):
    """What a network computes with.

    Attributes:
      params: its parameters.
      rest: its other state.
    """

    params: nnx.State
    rest: nnx.State


class Report(NamedTuple):
    """What one training step reports: loss and metric over the batch, and the gradient's norm."""

    loss: jax.Array
    metric: jax.Array
    grad_norm: jax.Array


StepFunction = Callable[[TrainState, Split], tuple[TrainState, Report]]
Forward = Callable[[Any, Carry, Split], tuple[Carry, jax.Array, Split]]
"""From a network, a carry and a batch: the carry to hand over, outputs, and their targets."""
StepsFunction = Callable[[TrainState, Split, Plan, int], tuple[TrainState, Report]]


def apply_model(model: Classifier | SequenceToSequence, batch: Split) -> jax.Array:
    """The network's outputs for a batch, of whichever head it has."""
    lengths = None if batch.lengths is None else jnp.asarray(batch.lengths)
    if isinstance(model, Classifier):
        return model(jnp.asarray(batch.xs), lengths=lengths)
    return model(jnp.asarray(batch.xs), lengths=lengths, resets=batch.resets)[1]


def apply_whole(
    model: Classifier | SequenceToSequence, carry: Carry, batch: Split
) -> tuple[Carry, jax.Array, Split]:
    """Outputs for whole examples, and their targets; no carry is handed over."""
    return carry, apply_model(model, batch), batch


def predict(
    model: Classifier | SequenceToSequence, split: Split, batch_size: int = 256
) -> np.ndarray:
    """The network's float32 outputs for all examples, a batch at a time."""
    run = nnx.jit(lambda model, batch: apply_model(model, batch).astype(jnp.float32))
    batches = zip(*whole_rows(len(split.xs), batch_size), strict=True)
    return np.concatenate([run(model, take(split, rows))[present] for rows, present in batches])


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
    return jax.jit(training_step(graphdef, objective, optimizer, apply_whole), donate_argnums=0)


def make_train_steps(
    graphdef: nnx.GraphDef,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    batch_of: Callable[[Split, Plan], Split],
    forward: Forward = apply_whole,
    accumulate: int = 1,
    kept: Callable[[Any], Any] = lambda tree: tree,
    whole: Callable[[Any], Any] = lambda tree: tree,
) -> StepsFunction:
    """A jitted pure function that takes many training steps, one after another on the device.

    Args:
      graphdef: the structure of the network.
      objective: what is minimised.
      optimizer: from `Optim.build`.
      batch_of: from a source of examples and the plan of a step to its batch.
      forward: how the network runs through a batch.
      accumulate: parts of a batch that are run one after another; see `training_step`.
      kept: says of the state on which devices it stays.
      whole: gives each device all of the parameters.

    Returns:
      A function `(state, source, plans, count) -> (state, reports)` that takes over the old state.
      Of the plans, which have a first axis, the first `count` are carried out; the reports of the
      others are 0. Any count is the same compiled code.
    """
    step = training_step(graphdef, objective, optimizer, forward, accumulate, whole)

    def stays(state: TrainState, batch: Split) -> tuple[TrainState, Report]:
        state, report = step(state, batch)
        return kept(state), report

    return jax.jit(many_steps(stays, batch_of), donate_argnums=0)


def many_steps(step: StepFunction, batch_of: Callable[[Split, Plan], Split]) -> StepsFunction:
    """The pure function of `make_train_steps`, from that of one step."""

    def train_steps(state: TrainState, source: Split, plans: Plan, count: Any):
        most = len(jax.tree.leaves(plans)[0])

        def body(k: jax.Array, so_far: tuple[TrainState, Report]) -> tuple[TrainState, Report]:
            state, reports = so_far
            plan = jax.tree.map(lambda array: jnp.asarray(array)[k], plans)
            state, report = step(state, batch_of(source, plan))
            return state, jax.tree.map(lambda all_, one: all_.at[k].set(one), reports, report)

        nothing = Report(*(jnp.zeros(most, jnp.float32) for _ in Report._fields))
        return jax.lax.fori_loop(0, count, body, (state, nothing))

    return train_steps


def training_step(
    graphdef: nnx.GraphDef,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    forward: Forward,
    accumulate: int = 1,
    whole: Callable[[Any], Any] = lambda tree: tree,
) -> StepFunction:
    """The pure function `(state, batch) -> (state, report)`.

    With `accumulate` above 1 a batch is run in so many parts of its rows, one after another, and
    the carry of the state has a first axis for the parts. Sums of losses and of their gradients are
    added and divided once, so that the step is that of the whole batch whatever the lengths. The
    network computes with `whole(params)`.
    """

    def sums_of(params: nnx.State, rest: nnx.State, carry: Carry, batch: Split):
        model = nnx.merge(graphdef, whole(params), rest, copy=True)
        model.train()
        carry, outputs, targets = forward(model, carry, batch)
        sums = objective.sums(outputs, targets)
        _, _, rest = nnx.split(model, nnx.Param, ...)
        return sums.loss, (sums, rest, carry)

    def loss_of(params: nnx.State, rest: nnx.State, carry: Carry, batch: Split):
        loss, aux = sums_of(params, rest, carry, batch)
        return loss / jnp.maximum(aux[0].loss_weight, 1), aux

    def at_once(state: TrainState, batch: Split):
        gradient = jax.value_and_grad(loss_of, has_aux=True)
        (_, aux), grads = gradient(state.params, state.rest, state.carry, batch)
        return grads, *aux

    def in_parts(state: TrainState, batch: Split):
        def add(so_far: Any, part: tuple[Carry, Split]) -> tuple[Any, Carry]:
            rest, *added = so_far
            gradient = jax.grad(sums_of, has_aux=True)
            grads, (sums, rest, carry) = gradient(state.params, rest, *part)
            return (rest, *jax.tree.map(jnp.add, added, [grads, sums])), carry

        cut = lambda array: array.reshape(accumulate, -1, *array.shape[1:])
        parts = state.carry, jax.tree.map(cut, batch)
        first = jax.tree.map(lambda array: array[0], parts)
        shapes = jax.eval_shape(sums_of, state.params, state.rest, *first)[1][0]
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        zeros = jax.tree.map(jnp.zeros_like, state.params)
        (rest, grads, sums), carry = jax.lax.scan(add, (state.rest, zeros, nothing), parts)
        weight = jnp.maximum(sums.loss_weight, 1)
        return jax.tree.map(lambda grad: grad / weight, grads), sums, rest, carry

    def train_step(state: TrainState, batch: Split) -> tuple[TrainState, Report]:
        grads, sums, rest, carry = (at_once if accumulate == 1 else in_parts)(state, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        report = Report(
            sums.loss / jnp.maximum(sums.loss_weight, 1),
            sums.metric / jnp.maximum(sums.metric_weight, 1),
            optax.tree.norm(grads),
        )
        return TrainState(state.step + 1, params, rest, opt_state, carry), report

    return train_step


class Evaluation(NamedTuple):
    """How a network is evaluated.

    Attributes:
      sums: a pure function from `Weights` and a part of a split to `Sums`.
      parts: from a split to the parts of it, each the further arguments of `sums`.
    """

    sums: Callable[..., Sums]
    parts: Callable[[Split], Iterator[tuple[Any, ...]]]

    def compiled(self) -> "Evaluate":
        """A function `(weights, split) -> {"loss", "metric"}`: exact means over every example."""
        compiled = jax.jit(self.sums)

        def evaluate(weights: Weights | TrainState, split: Split) -> dict[str, float]:
            pair = Weights(weights.params, weights.rest)
            sums = [compiled(pair, *part) for part in self.parts(split)]
            return jax.tree.map(lambda *each: sum(each), *sums).means()

        return evaluate


Evaluate = Callable[[Weights | TrainState, Split], dict[str, float]]


def evaluation(graphdef: nnx.GraphDef, objective: Objective, batch_size: int) -> Evaluation:
    """Evaluation on whole examples, a batch after another on the device."""

    def sums(weights: Weights, split: Split, rows: jax.Array, present: jax.Array) -> Sums:
        def of_batch(rows: jax.Array, present: jax.Array) -> Sums:
            model = nnx.merge(graphdef, *weights, copy=True)
            model.eval()
            examples = take(split, rows)
            return objective.sums(apply_model(model, examples), examples, present)

        def add(so_far: Sums, batch: tuple[jax.Array, jax.Array]) -> tuple[Sums, None]:
            return jax.tree.map(jnp.add, so_far, of_batch(*batch)), None

        nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(of_batch, rows[0], present[0]))
        return jax.lax.scan(add, nothing, (rows, present))[0]

    def parts(split: Split) -> Iterator[tuple[Any, ...]]:
        rows, present = whole_rows(len(split.xs), batch_size)
        if fits(split):
            yield split, rows, present
            return
        places = np.arange(batch_size, dtype=np.int32)[None]
        for some, there in zip(rows, present, strict=True):
            yield take(split, some), places, there[None]

    return Evaluation(sums, parts)


def make_evaluate(graphdef: nnx.GraphDef, objective: Objective, batch_size: int) -> Evaluate:
    """A function `(weights, split) -> {"loss", "metric"}`: exact means over every example."""
    return evaluation(graphdef, objective, batch_size).compiled()


def count_params(model: nnx.Module) -> int:
    """The number of trainable numbers."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
