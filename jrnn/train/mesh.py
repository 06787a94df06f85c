"""Where a run runs: on one device, or on a mesh of them, its batches split over these."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jrnn import checks
from jrnn.tasks.task import Split
from jrnn.train.step import Evaluation

AXES = ("data", "model")


@dataclass(frozen=True)
class Mesh:
    """Devices in a grid; XLA splits the work over them and adds up the gradients.

    Args:
      data: parts of a batch, each on devices of its own.
      model: parts of every array of parameters and of the optimiser whose last axis it divides;
        others lie on every device.

    Raises:
      ValueError: a size is not a positive int.
    """

    data: int = 1
    model: int = 1

    def __post_init__(self) -> None:
        for name in AXES:
            checks.positive_int("mesh", name, getattr(self, name))

    @classmethod
    def parse(cls, text: str | None) -> "Mesh":
        """Reads "data=8" or "data=4,model=2"; None is a single device.

        Raises:
          ValueError: it is not of this form.
        """
        sizes = dict[str, int]()
        for part in [] if text is None else text.split(","):
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
        """Refuses more devices than there are, and parts that do not divide a batch.

        Args:
          batch_size: examples that are run at once: of a step, or of a part of it.

        Raises:
          ValueError: as said.
        """
        there = len(jax.devices())
        if self.size > there:
            raise ValueError(
                f"mesh: data={self.data},model={self.model} needs {self.size} devices, and there "
                f"are {there}; on a CPU the environment variable XLA_FLAGS="
                f"--xla_force_host_platform_device_count={self.size} simulates so many"
            )
        if batch_size % self.data:
            raise ValueError(
                f"mesh: data={self.data} must divide the {batch_size} examples that are run at "
                f"once; take a multiple of {self.data} for batch_size"
            )

    def place(self, tree: Any) -> Any:
        """Lays parameters and what goes with them over the devices."""
        if self.size == 1:
            return tree
        return jax.tree.map(lambda leaf: jax.device_put(leaf, self._sharding(leaf)), tree)

    def kept(self, tree: Any) -> Any:
        """Within compiled code: arrays that stay where `place` would lay them."""
        if self.size == 1:
            return tree
        keep = lambda leaf: jax.lax.with_sharding_constraint(leaf, self._sharding(leaf))
        return jax.tree.map(keep, tree)

    def everywhere(self, tree: Any) -> Any:
        """Lays arrays on every device."""
        return jax.device_put(tree, None if self.size == 1 else self._of())

    def split(self, batch: Split) -> Split:
        """Within compiled code: a batch that lies over the axis `data`."""
        if self.data == 1:
            return batch
        rows = self._of("data")
        return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, rows), batch)

    def evaluation(self, evaluation: Evaluation) -> Evaluation:
        """The evaluation with its batches over the axis `data`, where this divides them."""
        if self.data == 1:
            return evaluation

        def parts(split: Split) -> Iterator[tuple[Any, ...]]:
            for source, *plans in evaluation.parts(split):
                yield self.everywhere(source), *(jax.tree.map(self._rows, plan) for plan in plans)

        return Evaluation(evaluation.sums, parts)

    def within(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function in the context of the mesh, which engines are chosen by."""
        if self.size == 1:
            return function

        def inside(*args: Any) -> Any:
            with jax.set_mesh(self._mesh()):
                return function(*args)

        return inside

    def _rows(self, plan: Any) -> jax.Array:
        """Whole numbers `[batches, batch]`, or one for each batch."""
        over = plan.ndim == 2 and plan.shape[1] % self.data == 0
        return jax.device_put(plan, self._of(None, "data") if over else self._of())

    def _sharding(self, leaf: Any) -> NamedSharding:
        wide = self.model > 1 and leaf.ndim > 0 and jnp.issubdtype(leaf.dtype, jnp.floating)
        if wide and leaf.shape[-1] % self.model == 0:
            return self._of(*[None] * (leaf.ndim - 1), "model")
        return self._of()

    def _of(self, *axes: str | None) -> NamedSharding:
        return NamedSharding(self._mesh(), PartitionSpec(*axes))

    def _mesh(self) -> jax.sharding.Mesh:
        devices = np.array(jax.devices()[: self.size]).reshape(self.data, self.model)
        return jax.sharding.Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))
