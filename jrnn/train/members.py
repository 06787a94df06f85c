"""Networks that differ in numbers alone: which they are, and one compiled code for all of them."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jrnn.tasks.task import Data, Split, Task
from jrnn.train.course import Course, evaluator
from jrnn.train.experiment import Experiment
from jrnn.train.objective import Objective, Sums
from jrnn.train.optim import ARRAYS, Optim
from jrnn.train.step import (
    Evaluation,
    Report,
    TrainState,
    Weights,
    abstract_state,
    many_steps,
    training_step,
)

AXIS = "members"
Numbers = dict[str, jax.Array]


def groups(experiments: Sequence[Experiment], loaded: Mapping[Task, Data]) -> list[list[int]]:
    """Parts experiments so that those of one part are trained by the same compiled code.

    These differ in the seed, in numbers of the optimiser, in rates of dropout above 0, and in what
    the initialisation alone reads, such as the forget bias. Whether a cell's option is of that kind
    is not declared anywhere: the code of a training step is compared, before it is compiled.

    Args:
      experiments: in any order.
      loaded: the data of their tasks.

    Returns:
      For each part the places of its experiments, from the first on.
    """
    plain: dict[Experiment, list[int]] = {}
    for place, experiment in enumerate(experiments):
        plain.setdefault(without_numbers(experiment), []).append(place)
    found: dict[Hashable, list[int]] = {}
    for experiment, places in plain.items():
        rest = [getattr(experiment, f.name) for f in fields(experiment) if f.name != "network"]
        code = _code(experiment, loaded[experiment.task]) if len(plain) > 1 else ""
        found.setdefault((code, *rest), []).extend(places)
    return [sorted(places) for places in found.values()]


def without_numbers(experiment: Experiment) -> Experiment:
    """The experiment with the same number in place of each that may be an array."""
    network = experiment.network
    return replace(
        experiment,
        seed=0,
        run_dir=None,
        patience=None,
        save_every=1.0,
        optim=_unit(experiment.optim),
        network=replace(network, dropout=0.5 if network.dropout else 0.0),
    )


def _unit(optim: Optim) -> Optim:
    present = {name: 0.5 for name in ARRAYS if getattr(optim, name)}
    decay = 0.5 if optim.algorithm == "adamw" else 0.0
    return replace(optim, **(present | {"weight_decay": decay}))


def _code(experiment: Experiment, data: Data) -> str:
    """What would be compiled for a step and for an evaluation."""
    optimizer = experiment.optim.build(experiment.steps)
    make = lambda: experiment.network.build(data, experiment.seed)
    graphdef, state = abstract_state(make, optimizer)
    weights = Weights(state.params, state.rest)
    course = Course.of(experiment, data)
    state = state._replace(carry=course.first_carry(graphdef, weights))
    reader = course.reader(0)
    plan = jax.tree.map(lambda array: array[0], reader.plan(0, 1))
    parts = experiment.accumulate
    step = training_step(graphdef, Objective.of(data), optimizer, course.forward, parts)
    train = lambda state, split, plan: step(state, reader.batch(split, plan))
    some = jax.tree.map(lambda array: array[: experiment.batch_size], data.validation)
    evaluation = evaluator(graphdef, experiment, data)
    lowered = [
        jax.jit(train).lower(state, course.split, plan),
        jax.jit(evaluation.sums).lower(weights, *next(evaluation.parts(some))),
    ]
    return "".join(part.as_text() for part in lowered)


def numbers_of(optims: Sequence[Optim]) -> Numbers:
    """The numbers of optimisers that are alike, as arrays `[members]`."""
    names = [name for name in ARRAYS if getattr(optims[0], name) is not None]
    return {name: jnp.array([getattr(o, name) for o in optims], jnp.float32) for name in names}


def stacked(trees: Sequence[Any]) -> Any:
    """Trees of arrays as one with a first axis for the members."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def member(tree: Any, number: int) -> Any:
    """What `stacked` was given for one member."""
    return jax.tree.map(lambda leaf: leaf[number], tree)


@dataclass(frozen=True)
class Layout:
    """How members lie on devices, and how many of them are in one `jax.vmap`.

    On a CPU, where nothing is gained by wider products, members go one after another within the
    same compiled code; elsewhere all members of a device go at once.

    Args:
      devices: over which members are spread.
      width: members in one `vmap`; None chooses.
    """

    devices: tuple[Any, ...]
    width: int | None = None

    def places(self, members: int) -> int:
        """How many places there are for so many members, all devices being equally full."""
        return -(-members // len(self.devices)) * len(self.devices)

    def put(self, tree: Any) -> Any:
        """Lays members out over the devices."""
        return jax.device_put(tree, self._sharding(AXIS))

    def put_shared(self, tree: Any) -> Any:
        """Lays what all members share on every device."""
        return jax.device_put(tree, self._sharding())

    def map(self, function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """From a function of a member and of what is shared to one of all members."""

        def of_some(members: Any, shared: Any) -> Any:
            one = lambda member: function(member, shared)
            count = len(jax.tree.leaves(members)[0])
            width = self.width or (1 if self.devices[0].platform == "cpu" else count)
            if width >= count:
                return jax.vmap(one)(members)
            return jax.lax.map(one, members, batch_size=None if width == 1 else width)

        if len(self.devices) == 1:
            return of_some
        split, whole = PartitionSpec(AXIS), PartitionSpec()
        return jax.shard_map(
            of_some, mesh=self._mesh(), in_specs=(split, whole), out_specs=split, check_vma=False
        )

    def _mesh(self) -> jax.sharding.Mesh:
        return jax.sharding.Mesh(np.array(self.devices), (AXIS,), axis_types=(AxisType.Auto,))

    def _sharding(self, *axes: str) -> jax.sharding.Sharding:
        if len(self.devices) == 1:
            return jax.sharding.SingleDeviceSharding(self.devices[0])
        return NamedSharding(self._mesh(), PartitionSpec(*axes))


def member_steps(
    experiment: Experiment,
    graphdef: Any,
    objective: Objective,
    course: Course,
    batch_of: Callable[[Split, Any], Split],
    layout: Layout,
) -> Callable[..., tuple[TrainState, Report]]:
    """A jitted pure function that takes many training steps of each member.

    Args:
      experiment: one of the members'.
      graphdef: the structure of the networks.
      objective: what is minimised.
      course: how a run goes through its training split.
      batch_of: from a source of examples and the plan of a step to its batch.
      layout: where members lie.

    Returns:
      A function `(state, numbers, plans, counts, source) -> (state, reports)` that takes over the
      old state. All but the source have a first axis for the members; a member takes as many steps
      as `counts [members]` says.
    """

    def of_one(member: Any, source: Split) -> tuple[TrainState, Report]:
        state, numbers, plans, count = member
        optimizer = experiment.optim.build(experiment.steps, **numbers)
        parts = experiment.accumulate
        step = training_step(graphdef, objective, optimizer, course.forward, parts)
        return many_steps(step, batch_of)(state, source, plans, count)

    of_all = layout.map(of_one)

    def train_steps(state: TrainState, numbers: Numbers, plans: Any, counts: Any, source: Split):
        return of_all((state, numbers, plans, counts), source)

    return jax.jit(train_steps, donate_argnums=0)


def member_evaluate(
    evaluation: Evaluation, layout: Layout
) -> Callable[[Weights, Split], list[dict[str, float]]]:
    """A function from the weights of all members and a split to the loss and metric of each."""
    compiled = jax.jit(layout.map(lambda weights, part: evaluation.sums(weights, *part)))

    def evaluate(weights: Weights, split: Split) -> list[dict[str, float]]:
        each = [compiled(weights, part) for part in evaluation.parts(split)]
        sums: Sums = jax.device_get(jax.tree.map(lambda *parts: sum(parts), *each))
        return [Sums(*values).means() for values in zip(*sums, strict=True)]

    return evaluate
