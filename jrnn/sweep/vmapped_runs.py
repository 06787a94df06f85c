"""Trains many networks with one compilation, distributed over devices."""

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
from jrnn.train.config.optimizer import TRACEABLE_FIELDS, Optimizer
from jrnn.train.data.sampler import fits_on_device, pad_first_axis
from jrnn.train.run.data_plan import DataPlan
from jrnn.train.run.dispatch import max_dispatch_steps
from jrnn.train.step.evaluate import Evaluator
from jrnn.train.step.freeze import freeze
from jrnn.train.step.loss import MetricSums, set_label_smoothing
from jrnn.train.step.state import StepMetrics, TrainState, Weights, init_state
from jrnn.train.step.step import TrainStep

AXIS = "trials"
"""Name of the axis of the device mesh that trials are sharded over."""


@dataclass(frozen=True)
class TrialDevices:
    """Distributes trials over devices, and vectorizes the trials of a device by `jax.vmap`.

    By default, all trials of a device run in one `jax.vmap`, except on a CPU, where this is not
    faster: there they run one after another in one `jax.lax.map`.

    Args:
      devices: the devices.
      width: number of trials in one `jax.vmap`; None means 1 on a CPU, and all trials of a device
        elsewhere.
    """

    devices: tuple[Any, ...]
    width: int | None = None

    def round_up_to_devices(self, num_trials: int) -> int:
        """Returns the number of trials, rounded up to a multiple of the number of devices."""
        return -(-num_trials // len(self.devices)) * len(self.devices)

    def shard(self, tree: Any) -> Any:
        """Shards arrays `[trials, ...]` over the devices."""
        return jax.device_put(tree, self._sharding(AXIS))

    def replicate(self, tree: Any) -> Any:
        """Puts arrays that all trials share on every device."""
        return jax.device_put(tree, self._sharding())

    def map(self, function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """Returns a function `(trials, shared)` that maps `function(trial, shared)`.

        It maps over the first axis of the arrays in `trials`; `shared` is the same for all trials.
        """

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
    """Models of the same structure, trained with different scalar hyper-parameters.

    Implements `jrnn.train.run.trainable.Trainable`.

    All arrays have a first axis for the trials. If the number of trials is not a multiple of the
    number of devices, copies of the last trial are added as padding; they take no steps.

    Attributes:
      max_steps: maximum number of steps in one call of `train_steps`.
    """

    def __init__(
        self,
        make_models: Sequence[Callable[[], nnx.Module]],
        data_plan: DataPlan,
        optimizer: Optimizer,
        scalars: ScalarHyperparams,
        options: RunOptions,
        seeds: Sequence[int],
        devices: TrialDevices,
    ):
        """Initializes all models.

        Args:
          make_models: for each trial, a function that initializes its model.
          data_plan: the data, the same for all trials.
          optimizer: the optimizer; its scalar hyper-parameters are replaced by `scalars`.
          scalars: the scalars of all trials, from `stack_scalars`.
          options: the options of all trials; `seed` and the fields in `scalars` are ignored.
          seeds: for each trial, the seed that determines the order of its examples.
          devices: the devices.

        Raises:
          ValueError: the training or validation split does not fit on the device.
        """
        self._devices, self._count = devices, len(make_models)
        if not (fits_on_device(data_plan.examples) and fits_on_device(data_plan.validation)):
            raise ValueError(
                "sweep: the training and validation splits must fit on the device, got splits that "
                "are too large; train the trials separately with jrnn train"
            )
        # indices[i] is the trial at position i; padding repeats the last trial.
        padded = devices.round_up_to_devices(self._count)
        indices = np.minimum(np.arange(padded), self._count - 1)
        transformation = freeze(optimizer.build(options.steps), options.freeze)
        has_ema = options.ema_decay is not None
        states = [init_state(make_models[i](), transformation, ema=has_ema) for i in indices]
        graphdef, state = states[0]
        carry = data_plan.init_carry(graphdef, state.weights)
        self._initial_state = devices.shard(_stack([s._replace(carry=carry) for _, s in states]))
        self._scalars = devices.shard({name: v[indices] for name, v in scalars.items()})
        self._samplers = [data_plan.make_sampler(seeds[index]) for index in indices]
        self.max_steps = max_dispatch_steps(options)
        self._examples = devices.replicate(data_plan.examples)
        self._validation = devices.replicate(data_plan.validation)
        get_batch = self._samplers[0].get_batch

        def train_one(trial: Any, examples: Any) -> tuple[TrainState, StepMetrics]:
            state, scalars, batch_plans, count = trial
            own = {name: scalars[name] for name in scalars if name in TRACEABLE_FIELDS}
            step = TrainStep(
                graphdef,
                set_label_smoothing(data_plan.loss, scalars["label_smoothing"])
                if options.label_smoothing
                else data_plan.loss,
                freeze(optimizer.build(options.steps, **own), options.freeze),
                options.accumulate,
                freeze=options.freeze,
                ema_decay=scalars.get("ema_decay"),
            )
            return step.make_loop(get_batch)(state, examples, batch_plans, count)

        train_all = devices.map(train_one)

        def train_steps(
            state: TrainState, scalars: Any, batch_plans: Any, counts: Any, examples: Any
        ) -> tuple[TrainState, StepMetrics]:
            return train_all((state, scalars, batch_plans, counts), examples)

        self._train_steps = jax.jit(train_steps, donate_argnums=0)
        self._evaluate = _make_evaluate_all(data_plan.make_evaluator(graphdef), devices)

    def init_state(self) -> TrainState:
        """Returns the state before the first step. The first call of `train_steps` donates it."""
        return self._initial_state

    def train_steps(
        self, state: TrainState, first: int, count: int, active: Sequence[bool]
    ) -> tuple[TrainState, StepMetrics]:
        """Dispatches `count` steps of the active trials, from step `first` on; see `Trainable`."""
        batch_plans = [
            pad_first_axis(sampler.plan(first, count), self.max_steps) for sampler in self._samplers
        ]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batch_plans)
        counts = np.where(self._pad_flags(active), count, 0).astype(np.int32)
        shard = self._devices.shard
        return self._train_steps(
            state, self._scalars, shard(stacked), shard(counts), self._examples
        )

    def split_metrics(self, metrics: StepMetrics, count: int) -> list[StepMetrics]:
        """Returns the metrics `[count]` of each trial."""
        return [
            jax.tree.map(lambda values, k=index: values[k, :count], metrics)
            for index in range(self._count)
        ]

    def validate(self, weights: Weights) -> list[dict[str, float]] | None:
        """Returns the loss and the metric of each trial on the validation split.

        Returns None if there is no validation split.
        """
        return None if self._validation is None else self.evaluate(weights, self._validation)

    def evaluate(self, weights: Weights, examples: Any) -> list[dict[str, float]]:
        """Returns the loss and the metric of each trial on a split."""
        return self._evaluate(weights, examples)[: self._count]

    def copy_where(self, chosen: Sequence[bool], new: Weights, old: Weights) -> Weights:
        """Returns, for each trial, the new weights if it is chosen, and otherwise the old ones."""
        return _tree_where_trial(self._devices.shard(self._pad_flags(chosen)), new, old)

    def fetch(self, tree: Any) -> Any:
        """Returns the arrays unchanged, since all devices belong to this process."""
        return tree

    def restore(self, state: TrainState, best: Weights) -> tuple[TrainState, Weights]:
        """Puts the arrays of a checkpoint on the devices."""
        return self._devices.shard(state), self._devices.shard(best)

    def _pad_flags(self, flags: Sequence[bool]) -> np.ndarray:
        padded = np.zeros(self._devices.round_up_to_devices(self._count), bool)
        padded[: self._count] = flags
        return padded


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _make_evaluate_all(
    evaluator: Evaluator, devices: TrialDevices
) -> Callable[[Weights, Any], list[dict[str, float]]]:
    """Returns a function that evaluates the weights of all trials on a split."""
    compiled = jax.jit(devices.map(lambda weights, part: evaluator.compute_sums(weights, *part)))

    def evaluate(weights: Weights, examples: Any) -> list[dict[str, float]]:
        parts = [compiled(weights, part) for part in evaluator.iterate_chunks(examples)]
        sums: MetricSums = jax.device_get(jax.tree.map(lambda *leaves: sum(leaves), *parts))
        return [MetricSums(*values).means() for values in zip(*sums, strict=True)]

    return evaluate


@jax.jit
def _tree_where_trial(chosen: jax.Array, new: Any, old: Any) -> Any:
    """Returns the leaves of `new` for chosen trials, and those of `old` for all others."""
    where = lambda flag, a, b: jax.tree.map(lambda x, y: jnp.where(flag, x, y), a, b)
    return jax.vmap(where)(chosen, new, old)
