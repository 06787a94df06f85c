"""The engine that shards the batch over the devices of a mesh."""

import math
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import PartitionSpec

from jrnn.cell import Carry, Inputs
from jrnn.engines.auto import Auto
from jrnn.engines.engine import Engine
from jrnn.engines.fused import Fused
from jrnn.engines.native import Native
from jrnn.engines.precision import BoundCell
from jrnn.masking import Masks


@dataclass(frozen=True)
class Sharded(Engine):
    """Shards the batch over axes of the current mesh, and runs each shard on another engine.

    Parameters are replicated. The devices communicate only once, to sum the gradients of the
    parameters after all steps. Without this engine, XLA may sum them at every step. XLA cannot
    partition the kernels of `Native`; this engine runs them on each device.

    If the current mesh has none of these axes, `engine` runs the whole batch. If the number of
    their devices does not divide the batch, `engine` also runs the whole batch, or `Fused` if
    `engine` is `Native`. Noise is drawn before the batch is sharded, so it is the same as on one
    device.

    Args:
      engine: the engine that runs each shard.
      axes: names of axes of the mesh, which must have the type `jax.sharding.AxisType.Auto`.

    Raises:
      TypeError: `engine` is not an engine, or `axes` is not a tuple of strings.

    >>> import jax, jax.numpy as jnp, jrnn
    >>> cell = jrnn.GRU(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    >>> with jax.set_mesh(mesh):
    ...     carry, ys = jrnn.unroll(cell, params, jnp.ones((5, 2, 3)), engine=jrnn.Sharded())
    >>> ys.shape
    (5, 2, 4)
    """

    engine: Engine = Auto()
    axes: tuple[str, ...] = ("data",)

    def __post_init__(self) -> None:
        if not isinstance(self.engine, Engine):
            raise TypeError(
                f"Sharded: engine must be an engine such as jrnn.Fused(), got {self.engine!r}"
            )
        if not isinstance(self.axes, tuple) or not all(isinstance(a, str) for a in self.axes):
            raise TypeError(
                f"Sharded: axes must be a tuple of axis names such as ('data',), got {self.axes!r}"
            )

    def run(
        self, bound: BoundCell, carry: Carry, xs: Inputs, masks: Masks, reverse: bool
    ) -> tuple[Carry, Any]:
        def run(bound: BoundCell, carry: Carry, xs: Inputs, masks: Masks) -> tuple[Carry, Any]:
            return self.engine.run(bound, carry, xs, masks, reverse)

        sizes = jax.sharding.get_abstract_mesh().shape
        devices = math.prod(sizes.get(axis, 1) for axis in self.axes)
        if devices == 1:
            return run(bound, carry, xs, masks)
        if jax.tree.leaves(xs)[0].shape[1] % devices:
            engine = Fused() if isinstance(self.engine, Native) else self.engine
            return engine.run(bound, carry, xs, masks, reverse)
        axes = tuple(axis for axis in self.axes if axis in sizes)
        batch: Any = PartitionSpec(axes)
        time_batch: Any = PartitionSpec(None, axes)
        return jax.shard_map(
            run,
            in_specs=(
                PartitionSpec(),
                batch,
                time_batch,
                Masks(batch, time_batch, time_batch, batch),
            ),
            out_specs=(batch, time_batch),
            axis_names=set(axes),
            check_vma=False,
        )(bound, carry, xs, masks)
