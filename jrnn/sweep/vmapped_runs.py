"""Many networks in one compilation, spread over devices."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jrnn.sweep.trials import ScalarHyperparams
from jrnn.train.config.experiment import RunOptions
from jrnn.train.config.optimizer import Optimizer
from jrnn.train.data.sampler import fits_on_device, pad_first_axis
from jrnn.train.run.data_plan import DataPlan
from jrnn.train.run.dispatch import max_steps_of
from jrnn.train.step.evaluate import Evaluation
from jrnn.train.step.loss import MetricSums
from jrnn.train.step.state import StepMetrics, TrainState, Weights, init_state
from jrnn.train.step.step import TrainStep

AXIS = "trials"


@dataclass(frozen=True)
class TrialDevices:
    """The devices that trials are spread over, and how many of them one `jax.vmap` computes.

    On a CPU, which gains nothing from wider products, trials run one after another within one
    compilation; on other devices all trials of a device run at once.

    Args:
      devices: the devices.
      width: number of trials of one `vmap`; None means 1 on a CPU, else all trials of a device.
    """

    devices: tuple[Any, ...]
    width: int | None = None

    def padded_count(self, trials: int) -> int:
        """The number of trials with padding, a multiple of the number of devices."""
        return -(-trials // len(self.devices)) * len(self.devices)

    def shard(self, tree: Any) -> Any:
        """Spreads arrays with a first axis for the trials over the devices."""
        return jax.device_put(tree, self._sharding(AXIS))

    def replicate(self, tree: Any) -> Any:
        """Copies arrays that all trials share to every device."""
        return jax.device_put(tree, self._sharding())

    def map(self, function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """Maps a function `(trial, shared)` over all trials."""

        def map_on_device(trials: Any, shared: Any) -> Any:
            apply = lambda trial: function(trial, shared)
            count = len(jax.tree.leaves(trials)[0])
            width = self.width or (1 if self.devices[0].platform == "cpu" else count)
            if width >= count:
                return jax.vmap(apply)(trials)
            return jax.lax.map(apply, trials, batch_size=None if width == 1 else width)

        if len(self.devices) == 1:
            return map_on_device
        sharded, replicated = PartitionSpec(AXIS), PartitionSpec()
        return jax.shard_map(
            map_on_device,
            mesh=self._mesh(),
            in_specs=(sharded, replicated),
            out_specs=sharded,
            check_vma=False,
        )

    def _mesh(self) -> jax.sharding.Mesh:
        return jax.sharding.Mesh(np.array(self.devices), (AXIS,), axis_types=(AxisType.Auto,))

    def _sharding(self, *axes: str) -> jax.sharding.Sharding:
        if len(self.devices) == 1:
            return jax.sharding.SingleDeviceSharding(self.devices[0])
        return NamedSharding(self._mesh(), PartitionSpec(*axes))


class VmappedRuns:
    """The placement of many models of the same structure, trained with different scalars.

    All arrays have a first axis for the trials; see `Placement`. Trials that pad the devices are
    copies of the last one, and take no steps.

    Attributes:
      max_steps: largest number of steps of one call of `train_steps`.
    """

    def __init__(
        self,
        make_models: Sequence[Callable[[], nnx.Module]],
        plan: DataPlan,
        optimizer: Optimizer,
        scalars: ScalarHyperparams,
        options: RunOptions,
        seeds: Sequence[int],
        devices: TrialDevices,
    ):
        """Draws all parameters.

        Args:
          make_models: for each trial a function that draws its model.
          plan: the data, the same for all trials.
          optimizer: the optimizer; its scalars are replaced by those of a trial.
          scalars: by field of the optimizer, arrays `[trials]`; see `trials.stack_scalars`.
          options: the same for all trials; `seed` is not used.
          seeds: for each trial, of the order of its examples.
          devices: that the trials are spread over.

        Raises:
          ValueError: the training or validation split does not fit on the device.
        """
        self._devices, self._count = devices, len(make_models)
        if not (fits_on_device(plan.examples) and fits_on_device(plan.validation)):
            raise ValueError(
                "sweep: the training and validation splits must fit on the device, and those of "
                "this task are too large; train the trials one by one with jrnn train"
            )
        # The trial at each position; padding repeats the last trial.
        indices = np.minimum(np.arange(devices.padded_count(self._count)), self._count - 1)
        transformation = optimizer.build(options.steps)
        states = [init_state(make_models[index](), transformation) for index in indices]
        graphdef, state = states[0]
        carry = plan.first_carry(graphdef, state.weights)
        self._first = devices.shard(_stack([s._replace(carry=carry) for _, s in states]))
        self._scalars = devices.shard({name: each[indices] for name, each in scalars.items()})
        self._samplers = [plan.make_sampler(seeds[index]) for index in indices]
        self.max_steps = max_steps_of(options)
        self._examples = devices.replicate(plan.examples)
        self._validation = devices.replicate(plan.validation)
        batch_of = self._samplers[0].batch

        def train_one(trial: Any, examples: Any) -> tuple[TrainState, StepMetrics]:
            state, scalars, plans, count = trial
            transformation = optimizer.build(options.steps, **scalars)
            step = TrainStep(graphdef, plan.loss, transformation, options.accumulate)
            return step.repeat(batch_of)(state, examples, plans, count)

        train_all = devices.map(train_one)

        def train_steps(state: TrainState, scalars: Any, plans: Any, counts: Any, examples: Any):
            return train_all((state, scalars, plans, counts), examples)

        self._train_steps = jax.jit(train_steps, donate_argnums=0)
        self._evaluate = _evaluate_all(plan.evaluation(graphdef), devices)

    def init_state(self) -> TrainState:
        """The state before the first step, whose arrays the first step donates."""
        return self._first

    def train_steps(
        self, state: TrainState, first: int, count: int, active: Sequence[bool]
    ) -> tuple[TrainState, StepMetrics]:
        """Dispatches some steps of the active trials; see `Placement`."""
        each = [pad_first_axis(s.plan(first, count), self.max_steps) for s in self._samplers]
        plans = jax.tree.map(lambda *plans: np.stack(plans), *each)
        counts = np.where(self._pad_flags(active), count, 0).astype(np.int32)
        shard = self._devices.shard
        return self._train_steps(state, self._scalars, shard(plans), shard(counts), self._examples)

    def split_metrics(self, metrics: StepMetrics, count: int) -> list[StepMetrics]:
        """The metrics `[count]` of each trial."""
        return [
            jax.tree.map(lambda values, k=index: values[k, :count], metrics)
            for index in range(self._count)
        ]

    def validate(self, weights: Weights) -> list[dict[str, float]] | None:
        """Loss and metric of each trial on the validation split; None if there is none."""
        return None if self._validation is None else self.evaluate(weights, self._validation)

    def evaluate(self, weights: Weights, examples: Any) -> list[dict[str, float]]:
        """Loss and metric of each trial on another split."""
        return self._evaluate(weights, examples)[: self._count]

    def copy_where(self, chosen: Sequence[bool], new: Weights, old: Weights) -> Weights:
        """For each trial the new weights where it is chosen, else the old ones."""
        return _where(self._devices.shard(self._pad_flags(chosen)), new, old)

    def fetch(self, tree: Any) -> Any:
        """Returns the arrays unchanged, since all devices belong to this process."""
        return tree

    def restore(self, state: TrainState, best: Weights) -> tuple[TrainState, Weights]:
        """Puts arrays that were read from a checkpoint on the devices."""
        return self._devices.shard(state), self._devices.shard(best)

    def _pad_flags(self, flags: Sequence[bool]) -> np.ndarray:
        padded = np.zeros(self._devices.padded_count(self._count), bool)
        padded[: self._count] = flags
        return padded


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _evaluate_all(
    evaluation: Evaluation, devices: TrialDevices
) -> Callable[[Weights, Any], list[dict[str, float]]]:
    """A function from the weights of all trials and a split to the loss and metric of each."""
    compiled = jax.jit(devices.map(lambda weights, part: evaluation.sums(weights, *part)))

    def evaluate(weights: Weights, examples: Any) -> list[dict[str, float]]:
        each = [compiled(weights, part) for part in evaluation.parts(examples)]
        sums: MetricSums = jax.device_get(jax.tree.map(lambda *parts: sum(parts), *each))
        return [MetricSums(*values).means() for values in zip(*sums, strict=True)]

    return evaluate


@jax.jit
def _where(chosen: jax.Array, new: Any, old: Any) -> Any:
    each = lambda choice, one, other: jax.tree.map(lambda a, b: jnp.where(choice, a, b), one, other)
    return jax.vmap(each)(chosen, new, old)
