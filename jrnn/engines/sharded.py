"""The engine that lets each device of a mesh run its own part of a batch."""

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
    """Splits the batch over axes of the mesh in context, and runs each part by another engine.

    No step waits for another device: gradients of weights, which are replicated, are summed over
    the devices once, after all steps. XLA alone, given arrays that are sharded over a mesh, may sum
    them at every step of time; and `Native`, which XLA cannot split, runs here on each device.

    Without a mesh that has these axes, or where they do not divide the batch, the whole batch is
    run by the other engine, or by `Fused` in place of `Native`. Noise is drawn before the batch is
    split, so it is the noise of a run on one device.

    Args:
      engine: the engine that runs each part.
      axes: axes of the mesh, of the type `jax.sharding.AxisType.Auto`.

    Raises:
      TypeError: `engine` is not an engine.

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
        there = tuple(axis for axis in self.axes if axis in sizes)
        rows: Any = PartitionSpec(there)
        steps: Any = PartitionSpec(None, there)
        return jax.shard_map(
            run,
            in_specs=(PartitionSpec(), rows, steps, Masks(rows, steps, steps, rows)),
            out_specs=(rows, steps),
            axis_names=set(there),
            check_vma=False,
        )(bound, carry, xs, masks)
