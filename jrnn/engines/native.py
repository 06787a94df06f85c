"""The engine that runs a cell, or the cell within transforms, on a C++ kernel."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from jrnn import structure
from jrnn.cell import Carry, Cell, Inputs
from jrnn.engines.engine import Engine
from jrnn.engines.fused import Fused
from jrnn.engines.kernel_call import KERNELS, Kernel, register_kernels, run_kernel
from jrnn.engines.precision import BoundCell
from jrnn.engines.reverse_mode import require_reverse_mode
from jrnn.engines.scan import Scan
from jrnn.masking import Masks, tree_where, zero_where
from jrnn.trees import describe_structure


@dataclass(frozen=True)
class Native(Engine):
    """C++ kernels for LSTM (peepholes, coupled), GRU (reset after) and Elman on a CPU.

    Each call packs the weights into the layout of the vector instructions. The gate arithmetic is
    fused into the matrix product, tile by tile. The loop of the backward pass computes only
    cotangents of the carry and of the pre-activations; the gradients of weights and inputs for a
    chunk of steps follow while the chunk is in the cache. Threads divide the batch, and also the
    hidden units if the batch is small. Padding is skipped.

    Transforms that change only inputs, outputs, weights or the initial carry (dropout of inputs and
    outputs, weight_drop, residual, highway, projection, learned_carry) are applied to all steps at
    once, and the kernel runs the inner cell.

    When the extension is loaded, it selects the best available instruction set: AVX-512, AVX2 or
    the baseline. The environment variable JRNN_ISA (v4, v3 or base) sets an upper limit.

    Only float32 is supported; float64 runs on `Fused`. Only first derivatives in reverse mode are
    supported: use `engine="fused"` for second derivatives, and `engine="scan"` for forward mode.
    `jax.export` raises: use `engine="scan"`. Results do not depend on thread scheduling. They may
    depend on the number of threads, which determines the order of sums over the batch.

    Raises:
      ValueError: when run, the cell has no kernel, a shape or dtype is not supported, the platform
        is not a CPU, XLA partitions the computation over a mesh, `return_carries` is True for an
        LSTM, the C++ extension is not installed, or a second derivative is computed.
      TypeError: when run, a forward-mode derivative is computed.
    """

    supports_every_cell: ClassVar[bool] = False

    def run(
        self, bound: BoundCell, carry: Carry, xs: Inputs, masks: Masks, reverse: bool
    ) -> tuple[Carry, Any]:
        cell, params, x = _innermost_cell(bound, xs)
        kernel = find_kernel(cell)
        if kernel is not None and bound.precision == (jnp.float64, jnp.float64):
            return Fused().run(bound, carry, xs, masks, reverse)
        reason = _unavailable_reason(bound, cell, params, x)
        if kernel is None or reason is not None:
            raise ValueError(f"engine 'native': {reason}; use engine='auto'")
        steps, batch = jax.tree.leaves(xs)[0].shape[:2]
        if steps == 0 or batch == 0:
            return Scan().run(bound, carry, xs, masks, reverse)
        bound, carry, xs, masks = require_reverse_mode(self, (bound, carry, xs, masks))
        # The kernels skip padding, but the transforms read it.
        xs = xs if cell is bound.cell else zero_where(masks.valid, xs)
        inner = bound.cell.inner_cell(bound.accum_params, xs)
        carry, hs = run_kernel(kernel, inner.params, carry, inner.x, masks, reverse)
        if cell is bound.cell and _readout_returns_h(cell) and not bound.return_carries:
            return carry, hs  # already zero on padding
        # h on padding is set to a value other than zero, since the derivative of a readout or a
        # transform may not be finite at zero.
        hs = tree_where(masks.valid, hs, jnp.full_like(hs, 0.5))
        # The kernels do not return the cell state of each step, and the readout does not use it.
        placeholder = lambda leaf: jnp.zeros((*hs.shape[:2], *leaf.shape[2:]), leaf.dtype)
        carries = type(carry)(hs, placeholder(hs)) if kernel.has_cell_state else hs
        z = jax.tree.map(placeholder, jax.eval_shape(cell.project, inner.params, inner.x))
        ys = inner.transform_output(cell.readout(inner.params, carries, z))
        return carry, zero_where(masks.valid, (ys, carries) if bound.return_carries else ys)


def find_kernel(cell: Cell) -> Kernel | None:
    """Returns the kernel of a cell, or None.

    A cell has no kernel if its class overrides a public method or property of the class that
    defines `kernel_name`, or of its base classes. Exceptions are fields, `init`, `init_carry` and
    `readout`, which the kernel does not compute.
    """
    bases, owner = type(cell).__mro__, _defining_level(cell, "kernel_name")
    allowed = {"init", "init_carry", "readout"} | set(getattr(cell, "__dataclass_fields__", ()))
    public = {name for base in bases[owner:-1] for name in vars(base) if not name.startswith("_")}
    overridden = {name for base in bases[:owner] for name in vars(base)} & public
    return None if overridden - allowed else KERNELS.get(cell.kernel_name() or "")


def _defining_level(cell: Cell, name: str) -> int:
    """Returns the index of the first class in the MRO of a cell that defines a method."""
    return next(n for n, base in enumerate(type(cell).__mro__) if name in vars(base))


def _readout_returns_h(cell: Cell) -> bool:
    """Returns whether the readout is h: no subclass of the one with `kernel_name` overrides it."""
    return _defining_level(cell, "readout") >= _defining_level(cell, "kernel_name")


def unavailable_reason(bound: BoundCell, xs: Inputs) -> str | None:
    """Returns the reason why no kernel can run a cell on these inputs, or None if one can."""
    return _unavailable_reason(bound, *_innermost_cell(bound, xs))


def _unavailable_reason(bound: BoundCell, cell: Cell, params: Any, x: Any) -> str | None:
    """Returns the `unavailable_reason`, from the results of `_innermost_cell`."""
    kernel = find_kernel(cell)
    if kernel is None:
        return f"no kernel supports {cell}; the kernels are {', '.join(KERNELS)}"
    compute, accum = bound.precision
    if compute != jnp.float32 or accum != jnp.float32:
        return f"products and gates must be float32, got {compute} and {accum}"
    if not jax.tree_util.treedef_is_leaf(jax.tree.structure(x)):
        return f"xs must be one array [time, batch, input], got {describe_structure(x)}"
    if jax.default_backend() != "cpu":
        return f"the default backend must be cpu, got {jax.default_backend()}"
    if is_partitioned():
        return "XLA cannot partition the kernels over a mesh; run them inside jax.shard_map"
    mismatch = _shape_mismatch(kernel, params, x)
    if mismatch is not None:
        return mismatch
    if kernel.has_cell_state and bound.return_carries:
        return "return_carries must be False, since the kernels return h but not c of each step"
    if _readout_uses_more_than_h(cell, params, x):
        return f"readout must use only h, got {cell}, whose readout uses other values"
    return register_kernels()


def _innermost_cell(bound: BoundCell, xs: Inputs) -> tuple[Cell, Any, Any]:
    """Returns the cell of `Cell.inner_cell`, and the shapes and dtypes of its params and inputs."""
    cells = []

    def trace(params: Any, xs: Inputs) -> tuple[Any, Inputs]:
        inner = bound.cell.inner_cell(params, xs)
        cells.append(inner.cell)
        return inner.params, inner.x

    params, x = jax.eval_shape(trace, bound.accum_params, xs)
    return cells[0], params, x


def _readout_uses_more_than_h(cell: Cell, params: Any, xs: Any) -> bool:
    """Returns whether the readout of a cell uses z, or leaves of the carry besides h."""
    carry = jax.eval_shape(lambda p: cell.init_carry(p, ()), params)
    z = jax.eval_shape(cell.project, params, jax.ShapeDtypeStruct(xs.shape[2:], xs.dtype))
    used = structure.find_used_leaves(cell.readout, params, carry, z)
    return any(used.carry[1:]) or any(used.z)


def is_partitioned() -> bool:
    """Returns whether XLA partitions the traced computation over a mesh, as with `jax.set_mesh`."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    return any(size > 1 and kind != AxisType.Manual for size, kind in kinds)


def _shape_mismatch(kernel: Kernel, params: Any, xs: Any) -> str | None:
    """Describes a parameter whose shape or dtype the kernel does not support, or returns None."""
    hidden = jnp.shape(params.w_hh)[0]
    columns = kernel.num_gates * hidden
    expected = {"w_ih": (xs.shape[-1], columns), "w_hh": (hidden, columns), "b": (columns,)}
    expected |= {name: (hidden,) for name in kernel.extra_params if name is not None}
    for name, shape in expected.items():
        leaf = getattr(params, name)
        if leaf is None:  # a cell without biases
            continue
        if leaf.shape != shape or leaf.dtype != jnp.float32:
            got = f"{leaf.dtype}{list(leaf.shape)}"
            return f"{name} must be float32{list(shape)} for inputs of {xs.shape[-1]}, got {got}"
    return None
