"""Where a run runs: on one device, or on a mesh of them, its batches split over these.

The devices may be those of several processes. Each of these runs the same code on the same numbers
and holds parts of the arrays; what is laid over the devices is known to all of them before, but for
the examples of a batch, of which each process reads its own.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jrnn import checks
from jrnn.engines import Engine, Sharded, choose_engine
from jrnn.tasks.task import Split
from jrnn.train.step import Evaluation, TrainState

AXES = ("data", "model")


@dataclass(frozen=True)
class Mesh:
    """Devices in a grid, each of which has its own part of every batch.

    Gradients are added up over all of them, once a step.

    Args:
      data: devices that have all parameters each, if `model` is 1.
      model: devices that share one copy of the parameters and of the state of the optimiser: each
        keeps a part of every array whose last axis this divides, and is given the rest for the time
        of a step. It saves memory, and no time.

    References:
      Rajbhandari et al., 2020, ZeRO: memory optimizations toward training trillion parameter
        models.

    Raises:
      ValueError: a size is not a positive int.
    """

    data: int = 1
    model: int = 1

    def __post_init__(self) -> None:
        for name in AXES:
            checks.positive_int("mesh", name, getattr(self, name))

    @classmethod
    def of(cls, text: str | None) -> "Mesh":
        """That of a run: None is a single device, or batches split over all of several processes.

        Raises:
          ValueError: as of `parse`.
        """
        if text is not None:
            return cls.parse(text)
        return cls(jax.device_count() if jax.process_count() > 1 else 1)

    @classmethod
    def parse(cls, text: str) -> "Mesh":
        """Reads "data=8" or "data=4,model=2".

        Raises:
          ValueError: it is not of this form.
        """
        sizes = dict[str, int]()
        for part in text.split(","):
            found = re.fullmatch(r"(\w+)=(\d+)", part.strip())
            if found is None:
                raise ValueError(
                    f"mesh: must be of the form data=8 or data=4,model=2, got {text!r}"
                )
            checks.one_of("mesh", "an axis", found[1], AXES)
            if found[1] in sizes:
                raise ValueError(f"mesh: {found[1]} stands twice in {text!r}")
            sizes[found[1]] = int(found[2])
        return cls(**sizes)

    @property
    def size(self) -> int:
        """How many devices it has."""
        return self.data * self.model

    def check(self, batch_size: int) -> None:
        """Refuses other devices than there are, and parts that do not divide a batch.

        Args:
          batch_size: examples that are run at once: of a step, or of a part of it.

        Raises:
          ValueError: as said.
        """
        there, processes = len(jax.devices()), jax.process_count()
        needs = f"mesh: data={self.data},model={self.model} needs {self.size} devices, and there"
        if processes > 1 and jax.local_device_count() * processes != there:
            raise ValueError(
                f"mesh: each of {processes} processes must have as many devices as the others; "
                f"this one has {jax.local_device_count()} of {there}"
            )
        if processes > 1 and self.size != there:
            raise ValueError(
                f"{needs} are {there} in {processes} processes; take all, or fewer processes"
            )
        if self.size > there:
            raise ValueError(
                f"{needs} are {there}; on a CPU the environment variable XLA_FLAGS="
                f"--xla_force_host_platform_device_count={self.size} simulates so many"
            )
        if batch_size % self.size:
            raise ValueError(
                f"mesh: {self.size} devices must divide the {batch_size} examples that are run at "
                f"once; take a multiple of {self.size} for batch_size"
            )

    def engine(self, name: str) -> Engine:
        """What runs cells, by the name of the engine for one device."""
        engine = choose_engine(name)
        return engine if self.size == 1 else Sharded(engine, AXES)

    def place(self, tree: Any) -> Any:
        """Lays parameters and what goes with them over the devices."""
        if self.size == 1:
            return tree
        return jax.tree.map(_laid, tree, self._shardings(tree))

    def kept(self, tree: Any) -> Any:
        """Within compiled code: arrays that stay where `place` would lay them."""
        if self.size == 1:
            return tree
        return jax.lax.with_sharding_constraint(tree, self._shardings(tree))

    def whole(self, tree: Any) -> Any:
        """Within compiled code: arrays that every device has all of."""
        if self.model == 1:
            return tree
        return jax.lax.with_sharding_constraint(tree, self._of())

    def everywhere(self, tree: Any) -> Any:
        """Lays arrays on every device."""
        if self.size == 1:
            return jax.device_put(tree)
        return jax.tree.map(lambda leaf: _laid(leaf, self._of()), tree)

    def rows(self, batch_size: int) -> np.ndarray:
        """Which of a batch's examples lie on devices of this process."""
        parts = self._of(AXES).addressable_devices_indices_map((batch_size,)).values()
        every = np.arange(batch_size)
        return np.unique(np.concatenate([every[part] for part in parts]))

    def batches(self, own: Split, batch_size: int) -> Split:
        """Lays batches over the devices, out of the rows of this process.

        Args:
          own: arrays `[steps, rows, ...]`, the rows those of `rows`.
          batch_size: examples of a whole batch.
        """
        if self.size == 1:
            return own

        def laid(leaf: np.ndarray) -> jax.Array:
            shape = len(leaf), batch_size, *leaf.shape[2:]
            return jax.make_array_from_process_local_data(self._of(None, AXES), leaf, shape)

        return jax.tree.map(laid, own)

    def fetched(self, tree: Any) -> Any:
        """Arrays as this process can read all of them, whoever holds the parts."""
        if jax.process_count() == 1:
            return tree
        return jax.tree.map(_fetched, tree)

    def split(self, batch: Split) -> Split:
        """Within compiled code: a batch that lies over the devices."""
        if self.size == 1:
            return batch
        return jax.lax.with_sharding_constraint(batch, self._of(AXES))

    def evaluation(self, evaluation: Evaluation) -> Evaluation:
        """The evaluation with its batches over the devices, where their number divides them."""
        if self.size == 1:
            return evaluation

        def parts(split: Split) -> Iterator[tuple[Any, ...]]:
            for source, *plans in evaluation.parts(split):
                yield self.everywhere(source), *(jax.tree.map(self._rows, plan) for plan in plans)

        sums = lambda weights, *part: evaluation.sums(self.whole(weights), *part)
        return Evaluation(sums, parts)

    def within(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function in the context of the mesh, which engines are chosen by."""
        if self.size == 1:
            return function

        def inside(*args: Any) -> Any:
            with jax.set_mesh(self._mesh):
                return function(*args)

        return inside

    def _rows(self, plan: Any) -> jax.Array:
        """Whole numbers `[batches, batch]`, or one for each batch."""
        over = plan.ndim == 2 and plan.shape[1] % self.size == 0
        return _laid(plan, self._of(None, AXES) if over else self._of())

    def _shardings(self, tree: Any) -> Any:
        """Where the leaves lie of a state, or of weights."""
        found = jax.tree.map(self._sharding, tree)
        if isinstance(tree, TrainState):
            found = found._replace(carry=jax.tree.map(lambda leaf: self._of(), tree.carry))
        return found

    def _sharding(self, leaf: Any) -> NamedSharding:
        wide = self.model > 1 and leaf.ndim > 0 and jnp.issubdtype(leaf.dtype, jnp.floating)
        if wide and leaf.shape[-1] % self.model == 0:
            return self._of(*[None] * (leaf.ndim - 1), "model")
        return self._of()

    def _of(self, *axes: str | tuple[str, ...] | None) -> NamedSharding:
        return NamedSharding(self._mesh, PartitionSpec(*axes))

    @cached_property
    def _mesh(self) -> jax.sharding.Mesh:
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
        grid = np.array(devices[: self.size]).reshape(self.data, self.model)
        return jax.sharding.Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _laid(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """Lays an array, which all processes have, over devices."""
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
        return leaf

    def lay(numbers: Any) -> jax.Array:
        whole = np.asarray(numbers)
        return jax.make_array_from_callback(whole.shape, sharding, lambda part: whole[part])

    return _by_numbers(lay, leaf)


def _fetched(leaf: jax.Array) -> jax.Array:
    def fetch(numbers: jax.Array) -> jax.Array:
        if not numbers.is_fully_replicated:
            return jnp.asarray(multihost_utils.process_allgather(numbers, tiled=True))
        return jnp.asarray(np.asarray(numbers))

    return leaf if leaf.is_fully_addressable else _by_numbers(fetch, leaf)


def _by_numbers(function: Callable[[Any], jax.Array], leaf: Any) -> jax.Array:
    """What a function makes of an array, or of the numbers that random keys are made of."""
    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return function(leaf)
    numbers = function(jax.random.key_data(leaf))
    return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(leaf))
