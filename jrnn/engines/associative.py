"""The engine for cells that are linear in their carry: an associative scan over time."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jrnn import checks
from jrnn.cell import Carry, Dense, Gates, Inputs, LogDiagonal
from jrnn.dtypes import promote_dtypes
from jrnn.engines import recurrence
from jrnn.engines.chunks import choose_chunk_size, scan_chunks
from jrnn.engines.engine import Engine
from jrnn.engines.precision import BoundCell
from jrnn.engines.scan import Scan
from jrnn.masking import Masks, expand_mask, step_shapes, zero_where

BLOCK_ELEMENTS = 2**17
"""The default number of state elements in a block on a CPU; the states of a block then fit into the
cache. 2^15 to 2^18 are equally fast at 65536 steps."""

Steps = tuple[Inputs, jax.Array | None, jax.Array | None]
"""Inputs, valid steps and resets, each `[T, ...]` or None."""


@dataclass(frozen=True)
class Associative(Engine):
    r"""Runs a linear cell, s' = a * s + b with (a, b) = `coefficients`, by an associative scan.

    ::

        (a_2, b_2) after (a_1, b_1) = (a_2 a_1, a_2 b_1 + b_2)
        reset:    (a, b) becomes (0, a * reset_carry + b)
        padding:  (a, b) becomes (1, 0)

    The projections of all steps of a block are one matrix product, and so are the readouts. The
    scan has logarithmic depth on accelerators. On a CPU it is sequential, with one pass over
    memory. Its reverse-mode derivative is another scan, in the opposite direction. Derivatives of
    every mode and order are supported. Half-precision carries are accumulated in float32.

    `LogDiagonal` coefficients are converted to their exponentials. The scan never divides by a
    product of gates, so it does not need logarithms for numerical stability.

    If `Scan` overflows to inf, this engine may return NaN. An inf or NaN does not affect outputs
    after a reset.

    With a `mesh`, time is sharded over devices. Each device composes its own steps, all devices
    exchange the composed steps, and each device computes its states from its incoming carry. Inputs
    may have any sharding; outputs are sharded over time, and the carry is replicated::

        mesh = jax.make_mesh((8,), ("time",))
        carry, ys = jrnn.unroll(cell, params, xs, engine=jrnn.Associative(mesh=mesh))

    Args:
      chunk: number of consecutive steps that are computed sequentially; chunks are combined by an
        associative scan. 1 is a pure associative scan, more than half of the steps a sequential
        loop. By default a sequential loop on a CPU, else 1.
      block: number of steps whose states are computed at the same time. Blocks run one after
        another, and are recomputed in the backward pass; T or more is a single block. The default
        is T on accelerators. On a CPU it is the number of steps that fit into the cache
        (`BLOCK_ELEMENTS`), which is twice as fast as a single block. Use a smaller number for large
        states, such as matrices. With a `mesh` it must be None.
      mesh: devices over which time is sharded, or None.
      axis: the axis of the mesh over which time is sharded.

    Raises:
      TypeError: `mesh` is not a mesh; or, when run, the cell has no `coefficients`, or they do not
        have the structure of the carry.
      ValueError: `chunk` or `block` is not a positive int, both `block` and `mesh` are given, or
        the mesh has no such axis; or, when run, the coefficients do not broadcast against the
        carry, or the number of steps is not a multiple of the number of devices.

    >>> import jax, jax.numpy as jnp, jrnn
    >>> cell = jrnn.MinGRU(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, ys = jrnn.unroll(cell, params, jnp.ones((9, 2, 3)), engine=Associative())
    >>> ys.shape
    (9, 2, 4)

    References:
      Blelloch, 1990, Prefix sums and their applications.
      Martin and Cundy, 2018, Parallelizing linear recurrent neural nets over sequence length.
    """

    supports_every_cell: ClassVar[bool] = False

    chunk: int | None = None
    block: int | None = None
    mesh: Mesh | None = None
    axis: str = "time"

    def __post_init__(self) -> None:
        for name in ("chunk", "block"):
            if getattr(self, name) is not None:
                checks.positive_int("Associative", name, getattr(self, name))
        if self.mesh is None:
            return
        if not isinstance(self.mesh, Mesh):
            raise TypeError(
                "Associative: mesh must be a jax.sharding.Mesh such as jax.make_mesh((8,), "
                f"('time',)), got {self.mesh!r}"
            )
        if self.block is not None:
            raise ValueError("Associative: block must be None with a mesh, got both; remove block")
        checks.one_of("Associative", "axis", self.axis, self.mesh.axis_names)

    def run(
        self, bound: BoundCell, carry: Carry, xs: Inputs, masks: Masks, reverse: bool
    ) -> tuple[Carry, Any]:
        if not bound.is_linear(step_shapes(xs)):
            raise TypeError(
                f"Associative: the cell must be linear in its carry and have `coefficients`, got "
                f"{bound.cell!r}; use engine='fused', or engine='newton' for parallel steps"
            )
        steps = (xs, masks.valid, masks.resets)
        count = len(jax.tree.leaves(xs)[0])
        if count == 0:
            return Scan().run(bound, carry, xs, masks, reverse)
        if self.mesh is not None:
            return self._run_sharded(self.mesh, bound, carry, steps, masks.reset_carry, reverse)
        block = self.block_size(count, carry)
        if block >= count:
            return self._run(bound, carry, steps, masks.reset_carry, reverse)

        @jax.checkpoint
        def run_block(carry: Carry, steps: Steps, _: None) -> Any:
            carry, ys = self._run(bound, carry, steps, masks.reset_carry, reverse)
            return carry, (ys, None)

        carry, (ys, _) = scan_chunks(run_block, carry, steps, None, block, reverse=reverse)
        return carry, ys

    def block_size(self, steps: int, carry: Carry) -> int:
        """Returns the number of steps of a block: the field `block`, or its default.

        Args:
          steps: the number of steps T; the default is a divisor of T if one is close enough.
          carry: the carry, leaves `[B, ...]`.
        """
        if self.block is not None:
            return self.block
        if jax.default_backend() != "cpu":
            return steps
        size = sum(leaf.size for leaf in jax.tree.leaves(carry))
        return choose_chunk_size(steps, max(16, BLOCK_ELEMENTS // max(1, size)))

    def _run(
        self, bound: BoundCell, carry: Carry, steps: Steps, reset_carry: Carry | None, reverse: bool
    ) -> tuple[Carry, Any]:
        z, leaves = _recurrences(bound, carry, steps, reset_carry)
        states = [leaf.solve(reverse, self.chunk) for leaf in leaves]
        return _carry_and_outputs(bound, carry, steps[1], reverse, z, states)

    def _run_sharded(
        self,
        mesh: Mesh,
        bound: BoundCell,
        carry: Carry,
        steps: Steps,
        reset_carry: Carry | None,
        reverse: bool,
    ) -> tuple[Carry, Any]:
        count, devices = len(jax.tree.leaves(steps)[0]), mesh.shape[self.axis]
        if count % devices:
            raise ValueError(
                f"Associative: the number of steps must be a multiple of the {devices} devices of "
                f"axis {self.axis!r}, got {count}; pad xs to {-(-count // devices) * devices} "
                "steps and pass lengths"
            )
        sharded, replicated = PartitionSpec(self.axis), PartitionSpec()

        def run_shard(
            bound: BoundCell, carry: Carry, steps: Steps, reset_carry: Carry | None
        ) -> Any:
            z, leaves = _recurrences(bound, carry, steps, reset_carry)
            leaves = [
                leaf.after_previous_devices(self.axis, reverse, self.chunk) for leaf in leaves
            ]
            states = [leaf.solve(reverse, self.chunk) for leaf in leaves]
            carry, ys = _carry_and_outputs(bound, carry, steps[1], reverse, z, states)
            last_device = 0 if reverse else -1
            carry = jax.tree.map(lambda a: lax.all_gather(a, self.axis)[last_device], carry)
            return carry, ys

        if AxisType.Explicit in mesh.axis_types:  # cotangents must have the sharding of the inputs
            reshard = lambda tree, spec: jax.sharding.reshard(tree, NamedSharding(mesh, spec))
            steps = reshard(steps, sharded)
            bound, carry, reset_carry = (
                reshard(tree, replicated) for tree in (bound, carry, reset_carry)
            )
        return jax.shard_map(
            run_shard,
            mesh=mesh,
            in_specs=(replicated, replicated, sharded, replicated),
            out_specs=(replicated, sharded),
            check_vma=False,
        )(bound, carry, steps, reset_carry)


class _Recurrence(NamedTuple):
    """The recurrence of one leaf of the carry: s_t = a_t s_{t-1} + b_t, from s = init.

    Attributes:
      algebra: the products of a with states, without resets.
      a: scalars `[T, B, ...]` or matrices `[T, B, ..., n, n]`; T and B may be 1 for broadcasting.
      keep: `[T, B]` bool, False at resets, which discard the previous state; None without resets.
      b: `[T, B, ...]`.
      init: the state before the first step, `[B, ...]`.
    """

    algebra: recurrence.Algebra
    a: jax.Array
    keep: jax.Array | None
    b: jax.Array
    init: jax.Array

    def solve(self, reverse: bool, chunk: int | None) -> jax.Array:
        """Computes the state after each step."""
        algebra, a = self.algebra, self.a
        if self.keep is not None:
            algebra, a = recurrence.with_resets(algebra), (a, self.keep)
        return recurrence.solve(algebra, a, self.b, self.init, reverse=reverse, chunk=chunk)

    def after_previous_devices(self, axis: str, reverse: bool, chunk: int | None) -> "_Recurrence":
        """Replaces `init` by the state after the steps of all previous devices in scan order.

        Args:
          axis: the axis of the mesh over which time is sharded.
          reverse: whether the scan runs in reverse.
          chunk: as in `recurrence.solve`.
        """

        def last_state(b: jax.Array, init: jax.Array) -> jax.Array:
            states = self._replace(b=b, init=init).solve(reverse, chunk)
            return recurrence.last(states, reverse)

        # The composed steps of this device map a state s to product * s + offset.
        multiply_all = partial(last_state, jnp.zeros_like(self.b))
        if self.algebra is recurrence.DENSE:
            basis = jnp.eye(self.init.shape[-1], dtype=self.init.dtype)
            columns = jax.vmap(lambda e: multiply_all(jnp.broadcast_to(e, self.init.shape)))(basis)
            product = jnp.moveaxis(columns, 0, -1)
        else:
            product = multiply_all(jnp.ones_like(self.init))
        offset = last_state(self.b, jnp.zeros_like(self.init))
        # A recurrence over devices, with one element for the composed steps of each device.
        products, offsets = (lax.all_gather(leaf, axis) for leaf in (product, offset))
        devices = self._replace(a=products, b=offsets)
        if self.keep is not None:  # inf and NaN must not pass a reset
            devices = devices._replace(keep=lax.all_gather(self.keep.all(axis=0), axis))
        last_states = devices.solve(reverse, None)
        first_states = recurrence.shift(last_states, self.init, reverse)
        return self._replace(init=first_states[lax.axis_index(axis)])


def _recurrences(
    bound: BoundCell, carry: Carry, steps: Steps, reset_carry: Carry | None
) -> tuple[Gates, list[_Recurrence]]:
    """Returns the gates z, and the recurrence of each leaf of the carry, with masks applied."""
    xs, valid, resets = steps
    z = bound.project(zero_where(valid, xs))
    coefficients: Any = bound.coefficients(z)  # not None, as `run` has validated
    if isinstance(coefficients, LogDiagonal):
        coefficients = coefficients.exp()
    dense = isinstance(coefficients, Dense)
    time = jax.tree.leaves(xs)[0].shape[:1]

    def leaf_recurrence(
        a: jax.Array, b: jax.Array, init: jax.Array, reset_carry: jax.Array
    ) -> _Recurrence:
        a, b, init = (leaf.astype(_accum_dtype(init.dtype)) for leaf in (a, b, init))
        algebra = recurrence.DENSE if dense else recurrence.DIAGONAL
        shape = (*time, *init.shape)
        if not dense and any(_cannot_broadcast(leaf.shape, shape) for leaf in (a, b)):
            raise ValueError(
                f"{type(bound.cell).__name__}.coefficients must broadcast against the carry, "
                f"{shape} with time and batch, got a {a.shape} and b {b.shape}; for matrices "
                "return Dense(a, b)"
            )
        b = jnp.broadcast_to(b, shape)
        a = a.reshape((1,) * (b.ndim + dense - a.ndim) + a.shape)
        identity = jnp.eye(a.shape[-1], dtype=a.dtype) if dense else jnp.ones((), a.dtype)
        if valid is not None:
            a, b = jnp.where(expand_mask(valid, a), a, identity), zero_where(valid, b)
        if resets is not None:
            b = b + zero_where(resets, algebra.matvec(a, jnp.broadcast_to(reset_carry, b.shape)))
        return _Recurrence(algebra, a, None if resets is None else ~resets, b, init)

    trees = (*coefficients, carry, carry if reset_carry is None else reset_carry)
    return z, [
        leaf_recurrence(*leaves) for leaves in zip(*map(jax.tree.leaves, trees), strict=True)
    ]


def _cannot_broadcast(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Returns whether a shape cannot be broadcast to another."""
    pairs = zip(reversed(shape), reversed(other), strict=False)
    return len(shape) > len(other) or any(n not in (1, m) for n, m in pairs)


def _carry_and_outputs(
    bound: BoundCell,
    carry: Carry,
    valid: jax.Array | None,
    reverse: bool,
    z: Gates,
    states: list[jax.Array],
) -> tuple[Carry, Any]:
    """Returns the final carry and the outputs, from the state after each step."""
    tree = jax.tree.unflatten(jax.tree.structure(carry), states)
    # The states are in float32 or wider; the carry may be in half precision, or not floating.
    carries = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), tree, carry)
    return recurrence.last(carries, reverse), zero_where(valid, bound.readout(carries, z))


def _accum_dtype(dtype: jnp.dtype) -> jnp.dtype:
    return promote_dtypes(dtype, jnp.float32)
