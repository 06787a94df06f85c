"""The devices of a run: one, or a mesh of them that batches and parameters are sharded over.

The devices may belong to several processes. All processes run the same code on the same values, and
each holds the shards of its own devices. Before it is sharded, an array is complete in every
process, except for batches: a process reads only the rows of its own devices.
"""

import re
from collections.abc import Callable
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

AXES = ("data", "model")


@dataclass(frozen=True)
class Mesh:
    """A grid of devices; each computes its own rows of every batch.

    Gradients are summed over all devices once per step.

    Args:
      data: number of devices along the batch; each has all parameters if `model` is 1.
      model: number of devices that share one copy of the parameters and of the optimizer state:
        each stores a shard of every array whose last axis is divisible by this number, and gathers
        the other shards during a step. This saves memory, not time.

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
        """The mesh of a run; None means one device, or all devices if there are several processes.

        Raises:
          ValueError: as for `parse`.
        """
        if text is not None:
            return cls.parse(text)
        return cls(jax.device_count() if jax.process_count() > 1 else 1)

    @classmethod
    def parse(cls, text: str) -> "Mesh":
        """Parses "data=8" or "data=4,model=2".

        Raises:
          ValueError: the text has another form.
        """
        sizes = dict[str, int]()
        for part in text.split(","):
            match = re.fullmatch(r"(\w+)=(\d+)", part.strip())
            if match is None:
                raise ValueError(
                    f"mesh: must be of the form data=8 or data=4,model=2, got {text!r}"
                )
            axis, size = match.groups()
            checks.one_of("mesh", "an axis", axis, AXES)
            if axis in sizes:
                raise ValueError(f"mesh: {axis} must be given once, got {text!r}")
            sizes[axis] = int(size)
        return cls(**sizes)

    @property
    def size(self) -> int:
        """The number of devices."""
        return self.data * self.model

    def validate(self, batch_size: int) -> None:
        """Checks that the devices exist and divide a batch.

        Args:
          batch_size: number of examples that are computed at once: those of a step, or of a part of
            it if gradients are accumulated.

        Raises:
          ValueError: they do not.
        """
        available, processes = len(jax.devices()), jax.process_count()
        needs = f"mesh: data={self.data},model={self.model} needs {self.size} devices, and there"
        if processes > 1 and jax.local_device_count() * processes != available:
            raise ValueError(
                f"mesh: all {processes} processes must have the same number of devices; this one "
                f"has {jax.local_device_count()} of {available}"
            )
        if processes > 1 and self.size != available:
            raise ValueError(
                f"{needs} are {available} in {processes} processes; use all devices, or start "
                "fewer processes"
            )
        if self.size > available:
            raise ValueError(
                f"{needs} are {available}; to simulate devices on a CPU, set the environment "
                f"variable XLA_FLAGS=--xla_force_host_platform_device_count={self.size}"
            )
        if batch_size % self.size:
            raise ValueError(
                f"mesh: the {self.size} devices must divide the {batch_size} examples of a batch "
                f"(or of a part of it, with accumulate); set batch_size to a multiple of "
                f"{self.size}"
            )

    def engine(self, name: str) -> Engine:
        """The engine for this mesh, given the name of the engine for one device."""
        engine = choose_engine(name)
        return engine if self.size == 1 else Sharded(engine, AXES)

    def place(self, tree: Any, *, sharded: bool = True) -> Any:
        """Puts arrays on the devices: floating-point arrays sharded over `model`, or replicated."""
        if self.size == 1:
            return tree
        return jax.tree.map(_put, tree, self._shardings(tree, sharded))

    def constrain(self, tree: Any, *, sharded: bool = True) -> Any:
        """Within `jax.jit`: constrains arrays to the shardings of `place`."""
        if self.size == 1:
            return tree
        return jax.lax.with_sharding_constraint(tree, self._shardings(tree, sharded))

    def gather(self, tree: Any) -> Any:
        """Within `jax.jit`: gathers arrays that are sharded over `model`."""
        if self.model == 1:
            return tree
        return jax.lax.with_sharding_constraint(tree, self._named_sharding())

    def replicate(self, tree: Any) -> Any:
        """Puts arrays on every device."""
        if self.size == 1:
            return jax.device_put(tree)
        return jax.tree.map(lambda leaf: _put(leaf, self._named_sharding()), tree)

    def fetch(self, tree: Any) -> Any:
        """Gathers arrays whose shards may be in other processes, so that this one can read them."""
        if jax.process_count() == 1:
            return tree
        return jax.tree.map(_fetch, tree)

    def local_rows(self, batch_size: int) -> np.ndarray:
        """The indices of the rows of a batch that are on devices of this process."""
        sharding = self._named_sharding(AXES)
        slices = sharding.addressable_devices_indices_map((batch_size,)).values()
        rows = np.arange(batch_size)
        return np.unique(np.concatenate([rows[each] for each in slices]))

    def shard_batches(self, local: Any, batch_size: int) -> Any:
        """Puts batches on the devices, given the rows of this process.

        Args:
          local: arrays `[steps, rows, ...]`, with the rows of `local_rows`.
          batch_size: number of rows of a global batch.
        """
        if self.size == 1:
            return local

        def shard(leaf: np.ndarray) -> jax.Array:
            shape = len(leaf), batch_size, *leaf.shape[2:]
            sharding = self._named_sharding(None, AXES)
            return jax.make_array_from_process_local_data(sharding, leaf, shape)

        return jax.tree.map(shard, local)

    def constrain_batch(self, batch: Any) -> Any:
        """Within `jax.jit`: constrains the rows of a batch to be sharded over the devices."""
        if self.size == 1:
            return batch
        return jax.lax.with_sharding_constraint(batch, self._named_sharding(AXES))

    def shard_rows(self, plan: Any) -> jax.Array:
        """Puts integers `[batches, batch]` on the devices, sharded over the batch if possible."""
        divisible = plan.ndim == 2 and plan.shape[1] % self.size == 0
        axes = (None, AXES) if divisible else ()
        return _put(plan, self._named_sharding(*axes))

    def in_context(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps a function to run in the context of the mesh, which engines read."""
        if self.size == 1:
            return function

        def wrapped(*args: Any) -> Any:
            with jax.set_mesh(self._mesh):
                return function(*args)

        return wrapped

    def _shardings(self, tree: Any, sharded: bool) -> Any:
        replicated = lambda leaf: self._named_sharding()
        return jax.tree.map(self._sharding if sharded else replicated, tree)

    def _sharding(self, leaf: Any) -> NamedSharding:
        eligible = self.model > 1 and leaf.ndim > 0 and jnp.issubdtype(leaf.dtype, jnp.floating)
        if eligible and leaf.shape[-1] % self.model == 0:
            return self._named_sharding(*[None] * (leaf.ndim - 1), "model")
        return self._named_sharding()

    def _named_sharding(self, *axes: str | tuple[str, ...] | None) -> NamedSharding:
        return NamedSharding(self._mesh, PartitionSpec(*axes))

    @cached_property
    def _mesh(self) -> jax.sharding.Mesh:
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
        grid = np.array(devices[: self.size]).reshape(self.data, self.model)
        return jax.sharding.Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """Puts an array, which all processes have, on devices."""
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
        return leaf

    def put(array: Any) -> Any:
        full = np.asarray(array)
        return jax.make_array_from_callback(full.shape, sharding, lambda index: full[index])

    return _map_key_data(put, leaf)


def _fetch(leaf: jax.Array) -> jax.Array:
    def fetch(array: jax.Array) -> jax.Array:
        if not array.is_fully_replicated:
            return jnp.asarray(multihost_utils.process_allgather(array, tiled=True))
        return jnp.asarray(np.asarray(array))

    return leaf if leaf.is_fully_addressable else _map_key_data(fetch, leaf)


def _map_key_data(function: Callable[[Any], jax.Array], leaf: Any) -> jax.Array:
    """Applies a function to an array, or to the integers of an array of random keys."""
    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return function(leaf)
    data = function(jax.random.key_data(leaf))
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
