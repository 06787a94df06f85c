"""Data parallelism and sharded parameters: the device mesh of a run.

The devices may belong to several processes. All processes run the same code, and each stores the
shards of its own devices. Before an array is sharded, every process has the whole array. Batches
are different: each process reads only the rows of its own devices.
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
"""Names of the axes of a device mesh; see `Mesh`."""


@dataclass(frozen=True)
class Mesh:
    """The shape of a device mesh. Each device computes its own rows of every batch.

    Gradients are summed over all devices once per step. The methods use a `jax.sharding.Mesh` with
    the axes `data` and `model`. As in FSDP and ZeRO, `model` shards parameters and optimizer state,
    and batches are sharded over both axes; it is not tensor parallelism.

    Args:
      data: number of copies of the parameters and of the optimizer state.
      model: number of devices that each copy is sharded over: a device stores one shard of every
        floating-point array whose last axis is divisible by this number, and gathers the other
        shards during a step. This saves memory, but not time.

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
    def parse_or_default(cls, text: str | None) -> "Mesh":
        """Parses a mesh; None means one device, or all devices if there are several processes.

        Raises:
          TypeError, ValueError: as for `parse`.
        """
        if text is not None:
            return cls.parse(text)
        return cls(jax.device_count() if jax.process_count() > 1 else 1)

    @classmethod
    def parse(cls, text: str) -> "Mesh":
        """Parses "data=8" or "data=4,model=2".

        Raises:
          TypeError: `text` is not a str.
          ValueError: the text has another form.
        """
        checks.instance("mesh", "mesh", text, str)
        sizes = dict[str, int]()
        for part in text.split(","):
            match = re.fullmatch(r"(\w+)=(\d+)", part.strip())
            if match is None:
                raise ValueError(
                    f"mesh: mesh must be of the form data=8 or data=4,model=2, got {text!r}"
                )
            axis, size = match.groups()
            checks.one_of("mesh", "axis", axis, AXES)
            if axis in sizes:
                raise ValueError(f"mesh: {axis} must occur once, got {text!r}")
            sizes[axis] = int(size)
        return cls(**sizes)

    @property
    def size(self) -> int:
        """The number of devices."""
        return self.data * self.model

    def validate(self, batch_size: int) -> None:
        """Validates the devices and the batch size.

        Args:
          batch_size: number of examples of a training step, or of a micro-batch if gradients are
            accumulated.

        Raises:
          ValueError: there are too few devices, the processes have different numbers of devices,
            the mesh does not have all devices of several processes, or `batch_size` is not
            divisible by the number of devices.
        """
        available, processes = len(jax.devices()), jax.process_count()
        requirement = f"mesh: data={self.data},model={self.model} needs {self.size} devices, got"
        if processes > 1 and jax.local_device_count() * processes != available:
            raise ValueError(
                f"mesh: all {processes} processes must have the same number of devices, got "
                f"{jax.local_device_count()} of {available} in this process"
            )
        if processes > 1 and self.size != available:
            raise ValueError(
                f"{requirement} {available} in {processes} processes; use all devices, or start "
                "fewer processes"
            )
        if self.size > available:
            raise ValueError(
                f"{requirement} {available}; to simulate devices on a CPU, set the environment "
                f"variable XLA_FLAGS=--xla_force_host_platform_device_count={self.size}"
            )
        if batch_size % self.size:
            raise ValueError(
                f"mesh: the number of devices must divide the batch size, or that of a micro-batch "
                f"with accumulate, got {self.size} devices and a size of {batch_size}; set "
                f"batch_size to a multiple of {self.size}"
            )

    def make_engine(self, name: str) -> Engine:
        """Returns the engine for this mesh, given the name of the engine for each device."""
        engine = choose_engine(name)
        return engine if self.size == 1 else Sharded(engine, AXES)

    def device_put(self, tree: Any, *, sharded: bool = True) -> Any:
        """Puts arrays on the devices of the mesh.

        Args:
          tree: a pytree of arrays.
          sharded: whether to shard floating-point arrays over `model`; other arrays are replicated.
        """
        if self.size == 1:
            return tree
        return jax.tree.map(_put, tree, self._shardings(tree, sharded))

    def constrain(self, tree: Any, *, sharded: bool = True) -> Any:
        """Constrains arrays to the shardings of `device_put`, within `jax.jit`."""
        if self.size == 1:
            return tree
        return jax.lax.with_sharding_constraint(tree, self._shardings(tree, sharded))

    def gather(self, tree: Any) -> Any:
        """Gathers arrays that are sharded over `model`, within `jax.jit`."""
        if self.model == 1:
            return tree
        return jax.lax.with_sharding_constraint(tree, self._named_sharding())

    def replicate(self, tree: Any) -> Any:
        """Puts arrays on every device."""
        if self.size == 1:
            return jax.device_put(tree)
        return jax.tree.map(lambda leaf: _put(leaf, self._named_sharding()), tree)

    def fetch(self, tree: Any) -> Any:
        """Gathers arrays from all processes, so that this process can read all of their shards."""
        if jax.process_count() == 1:
            return tree
        return jax.tree.map(_fetch, tree)

    def local_rows(self, batch_size: int) -> np.ndarray:
        """Returns the indices of the rows of a batch that are on the devices of this process."""
        sharding = self._named_sharding(AXES)
        slices = sharding.addressable_devices_indices_map((batch_size,)).values()
        rows = np.arange(batch_size)
        return np.unique(np.concatenate([rows[index] for index in slices]))

    def shard_batches(self, local: Any, batch_size: int) -> Any:
        """Makes global batches, given the rows of this process.

        Args:
          local: arrays `[steps, rows, ...]` with the rows in `local_rows`.
          batch_size: number of rows of a global batch.

        Returns:
          Arrays `[steps, batch_size, ...]` whose rows are sharded over the devices; with one
          device, `local` itself.
        """
        if self.size == 1:
            return local

        def shard(leaf: np.ndarray) -> jax.Array:
            shape = len(leaf), batch_size, *leaf.shape[2:]
            sharding = self._named_sharding(None, AXES)
            return jax.make_array_from_process_local_data(sharding, leaf, shape)

        return jax.tree.map(shard, local)

    def constrain_batch(self, batch: Any) -> Any:
        """Constrains the rows of a batch to be sharded over the devices, within `jax.jit`."""
        if self.size == 1:
            return batch
        return jax.lax.with_sharding_constraint(batch, self._named_sharding(AXES))

    def shard_rows(self, rows: Any) -> jax.Array:
        """Puts row indices `[batches, batch]` on the devices.

        The second axis is sharded if the number of devices divides its size. Arrays of other ranks
        are replicated.
        """
        is_divisible = rows.ndim == 2 and rows.shape[1] % self.size == 0
        axes = (None, AXES) if is_divisible else ()
        return _put(rows, self._named_sharding(*axes))

    def wrap_with_context(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps a function to run under `jax.set_mesh`, which the engine `Sharded` requires."""
        if self.size == 1:
            return function

        def wrapper(*args: Any) -> Any:
            with jax.set_mesh(self._mesh):
                return function(*args)

        return wrapper

    def _shardings(self, tree: Any, sharded: bool) -> Any:
        replicated = lambda leaf: self._named_sharding()
        return jax.tree.map(self._sharding if sharded else replicated, tree)

    def _sharding(self, leaf: Any) -> NamedSharding:
        is_eligible = self.model > 1 and leaf.ndim > 0 and jnp.issubdtype(leaf.dtype, jnp.floating)
        if is_eligible and leaf.shape[-1] % self.model == 0:
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
    """Puts an array that is complete in every process on the devices of a sharding."""
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
        return leaf

    def put(array: Any) -> Any:
        full = np.asarray(array)
        return jax.make_array_from_callback(full.shape, sharding, lambda index: full[index])

    return _map_key_data(put, leaf)


def _fetch(leaf: jax.Array) -> jax.Array:
    """Returns an array that is complete in this process."""

    def fetch(array: jax.Array) -> jax.Array:
        if not array.is_fully_replicated:
            return jnp.asarray(multihost_utils.process_allgather(array, tiled=True))
        return jnp.asarray(np.asarray(array))

    return leaf if leaf.is_fully_addressable else _map_key_data(fetch, leaf)


def _map_key_data(function: Callable[[Any], jax.Array], leaf: Any) -> jax.Array:
    """Applies a function to an array, or to the key data of an array of PRNG keys."""
    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return function(leaf)
    data = function(jax.random.key_data(leaf))
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
