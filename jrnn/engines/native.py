"""The engine of C++ kernels for LSTM, GRU and Elman on a CPU, called through `jax.ffi`."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jax.sharding import AxisType

from jrnn import structure
from jrnn.cell import Carry, Cell, Inputs
from jrnn.engines.engine import Engine
from jrnn.engines.fused import Fused
from jrnn.engines.manual_axes import vary_alike
from jrnn.engines.precision import BoundCell
from jrnn.engines.reverse_mode import require_reverse_mode
from jrnn.engines.scan import Scan
from jrnn.masking import Masks, expand_mask, tree_where, zero_where

AxisKind = Literal["time", "batch", "param"]


class _Kernel(NamedTuple):
    """The description of a C++ kernel.

    Attributes:
      cell_id: its value of the enum `JrnnCell` in kernels/api.h.
      num_gates: number of gates, which are the column blocks of w_ih, w_hh and b.
      num_residuals: number of arrays that the forward kernel saves for each step.
      extra_params: names of the parameters besides w_ih, w_hh and b, in the order of the kernel's
        arguments; None for an argument that this kernel does not use.
      has_cell_state: whether the carry is (h, c) instead of h.
    """

    cell_id: int
    num_gates: int
    num_residuals: int
    extra_params: tuple[str | None, str | None, str | None] = (None, None, None)
    has_cell_state: bool = False


KERNELS: dict[str, _Kernel] = {
    "lstm": _Kernel(0, 4, 5, has_cell_state=True),
    "lstm-peepholes": _Kernel(1, 4, 5, ("p_i", "p_f", "p_o"), has_cell_state=True),
    "lstm-coupled": _Kernel(2, 3, 4, has_cell_state=True),
    "lstm-peepholes-coupled": _Kernel(3, 3, 4, (None, "p_f", "p_o"), has_cell_state=True),
    "gru": _Kernel(4, 3, 4, ("b_hn", None, None)),
    "elman-tanh": _Kernel(5, 1, 0),
    "elman-relu": _Kernel(6, 1, 0),
    "elman-sigmoid": _Kernel(7, 1, 0),
}
"""The kernels, by the name that `Cell.kernel_name` returns."""


@dataclass(frozen=True)
class Native(Engine):
    """C++ kernels for LSTM (peepholes, coupled), GRU (reset after) and Elman on a CPU.

    Each call packs the weights into the layout of the vector instructions. The gate arithmetic is
    fused into the matrix product, tile by tile. The loop of the backward pass computes only
    cotangents of the carry; the weight gradients of a chunk of steps follow while the chunk is in
    the cache. Threads divide the batch, or the units if the batch is small. Padding is skipped.

    Transforms that change only inputs, outputs, weights or the initial carry (dropout of inputs and
    outputs, weight_drop, residual, highway, projection, learned_carry) are applied to all steps at
    once, and the kernel runs the inner cell.

    When the extension is loaded, it selects the best available instruction set: AVX-512, AVX2 or
    the baseline. The environment variable JRNN_ISA (v4, v3 or base) selects a lower one.

    Only float32 is supported; float64 runs on `Fused`. Only first derivatives in reverse mode are
    supported: use `engine="fused"` for second derivatives, and `engine="scan"` for forward mode.
    `jax.export` raises: use `engine="scan"`. Results do not depend on thread scheduling. They may
    depend on the number of threads, which determines the order of sums over the batch.

    Raises:
      ValueError: when run, the cell has no kernel, a shape or dtype is not supported, the platform
        is not a CPU, or the C++ extension is not installed.
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
        carry, hs = _run_masked(kernel, inner.params, carry, inner.x, masks, reverse)
        if cell is bound.cell and _readout_returns_h(cell) and not bound.return_carries:
            return carry, hs  # already zero on padding
        # Outputs on padding are set to a value other than zero, since the derivative of a readout
        # or a transform may not be finite at zero.
        hs = tree_where(masks.valid, hs, jnp.full_like(hs, 0.5))
        # The kernels do not return the cell state of each step, and the readout does not use it.
        placeholder = lambda leaf: jnp.zeros((*hs.shape[:2], *leaf.shape[2:]), leaf.dtype)
        carries = type(carry)(hs, placeholder(hs)) if kernel.has_cell_state else hs
        z = jax.tree.map(placeholder, jax.eval_shape(cell.project, inner.params, inner.x))
        ys = inner.transform_output(cell.readout(inner.params, carries, z))
        return carry, zero_where(masks.valid, (ys, carries) if bound.return_carries else ys)


def find_kernel(cell: Cell) -> _Kernel | None:
    """Returns the kernel of a cell, or None.

    A cell has no kernel if its class overrides a method that the kernel computes.
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
    """Returns whether the readout is h: no subclass of the class with the kernel overrides it."""
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
        return f"xs must be one array [time, batch, input], got {jax.tree.structure(x)}"
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
    return _register_kernels()


def _innermost_cell(bound: BoundCell, xs: Inputs) -> tuple[Cell, Any, Any]:
    """Returns `Cell.inner_cell`, with the shapes of its parameters and inputs."""
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
    """Returns whether XLA partitions the traced computation, as with `jax.set_mesh`."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    return any(size > 1 and kind != AxisType.Manual for size, kind in kinds)


def _shape_mismatch(kernel: _Kernel, params: Any, xs: Any) -> str | None:
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


@functools.cache
def _register_kernels() -> str | None:
    """Registers the kernels with XLA; returns the reason if this fails, otherwise None."""
    try:
        from jrnn import _kernels
    except ImportError as error:
        return (
            f"the C++ extension is not installed ({error}); reinstall jrnn where CMake finds a C++ "
            "compiler"
        )
    try:
        # The backend is initialized first: otherwise no JAX function works after a failure.
        jax.local_devices(backend="cpu")
        for name, handler in _kernels.registrations().items():
            jax.ffi.register_ffi_target(_target_name(name), handler, platform="cpu")
    except Exception as error:  # the other engines work without it
        return (
            f"the C++ extension was built for another jaxlib ({error}); reinstall jrnn with pip's "
            "--no-build-isolation"
        )
    return None


def _target_name(handler: str) -> str:
    """Returns the name of a kernel in XLA, which is part of the error message of `jax.export`."""
    return f"{handler} (for jax.export use engine='scan')"


def _run_masked(
    kernel: _Kernel, params: Any, carry: Carry, xs: jax.Array, masks: Masks, reverse: bool
) -> tuple[Carry, jax.Array]:
    """Runs the kernel with any mask: moves valid steps to the front, and their outputs back."""
    if masks.valid is None or masks.lengths is not None:
        return _run(kernel, params, carry, xs, masks, reverse)
    xs = zero_where(masks.valid, xs)  # no residual has a NaN from padding
    order = jnp.argsort(~masks.valid, axis=0, stable=True)
    move_to_front = lambda a: jnp.take_along_axis(a, expand_mask(order, a), axis=0)
    moved_masks = masks._replace(
        lengths=masks.valid.sum(axis=0, dtype=jnp.int32),
        resets=None if masks.resets is None else move_to_front(masks.resets),
    )
    carry, hs = _run(kernel, params, carry, move_to_front(xs), moved_masks, reverse)
    inverse = jnp.argsort(order, axis=0)
    return carry, jnp.take_along_axis(hs, expand_mask(inverse, hs), axis=0)


def _run(
    kernel: _Kernel, params: Any, carry: Carry, xs: jax.Array, masks: Masks, reverse: bool
) -> tuple[Carry, jax.Array]:
    absent = jnp.zeros((0,), xs.dtype)

    def h_and_c(tree: Any) -> tuple[jax.Array, jax.Array]:
        if tree is None:
            return absent, absent
        return tree if kernel.has_cell_state else (tree, absent)

    lengths = jnp.zeros((0,), jnp.int32) if masks.lengths is None else masks.lengths
    resets = jnp.zeros((0,), bool) if masks.resets is None else masks.resets
    # A cell without biases runs on the same kernel, with zeros.
    b = jnp.zeros(params.w_ih.shape[-1:], xs.dtype) if params.b is None else params.b
    extra = [_extra_param(params, name, absent) for name in kernel.extra_params]
    operands = (
        xs,
        params.w_ih,
        params.w_hh,
        b,
        *extra,
        *h_and_c(carry),
        *h_and_c(masks.reset_carry),
    )
    operands = vary_alike(operands)  # the placeholders too
    results: Any = _call_kernel(kernel, reverse, lengths, resets, operands)
    ys, h, c = results
    return type(carry)(h, c) if kernel.has_cell_state else h, ys


def _extra_param(params: Any, name: str | None, absent: jax.Array) -> jax.Array:
    """Returns a parameter besides w_ih, w_hh and b; zeros `[hidden]` if the cell has no biases."""
    if name is None:
        return absent
    value = getattr(params, name)
    return jnp.zeros(params.w_hh.shape[:1], absent.dtype) if value is None else value


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _call_kernel(
    kernel: _Kernel, reverse: bool, lengths: jax.Array, resets: jax.Array, operands: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    return _make_forward(kernel, reverse, False)(lengths, resets, *operands)[:3]


def _call_kernel_fwd(
    kernel: _Kernel, reverse: bool, lengths: jax.Array, resets: jax.Array, operands: Any
) -> tuple[Any, Any]:
    *results, saved = _make_forward(kernel, reverse, True)(lengths, resets, *operands)
    return tuple(results), (lengths, resets, operands, results[0], saved)


def _call_kernel_bwd(kernel: _Kernel, reverse: bool, residuals: Any, cotangents: Any) -> Any:
    lengths, resets, operands, ys, saved = residuals
    grads = _make_backward(kernel, reverse, 1)(lengths, resets, *operands, ys, saved, *cotangents)
    drop_groups = lambda kind, grad: grad[0] if kind == "param" else grad
    return None, None, tuple(map(drop_groups, OPERAND_AXES, grads))


_call_kernel.defvjp(_call_kernel_fwd, _call_kernel_bwd)

# Leading axes of arrays: "time" stands for time and batch, "batch" for batch, and "param" for none.
# Masks are lengths and resets. Operands are xs, w_ih, w_hh, b, three extra parameters, h and c
# of the initial carry, and h and c of the reset carry. Results are ys and the final h and c.
OPERAND_AXES: tuple[AxisKind, ...] = ("time", *("param",) * 6, *("batch",) * 4)  # pyright: ignore
MASK_AXES: tuple[AxisKind, ...] = ("batch", "time")
RESULT_AXES: tuple[AxisKind, ...] = ("time", "batch", "batch")


@functools.cache
def _make_forward(kernel: _Kernel, reverse: bool, save: bool) -> Callable[..., Any]:
    def call(lengths: jax.Array, resets: jax.Array, xs: jax.Array, *rest: jax.Array) -> Any:
        (steps, batch, _), hidden = xs.shape, rest[1].shape[0]
        ys = (steps, batch, hidden)
        saved = (
            (steps, batch, kernel.num_residuals, hidden) if save and kernel.num_residuals else (0,)
        )
        # The kernel requests huge pages for the memory of all results. Nothing reads the last
        # result: XLA can reuse its buffer for the cotangents of ys, which have the same size.
        # Without jit, `jax_debug_nans` would check it.
        debugs = jax.config.values["jax_debug_nans"] or jax.config.values["jax_debug_infs"]
        scratch = ys if save and not debugs else (0,)
        shapes = [
            ys,
            (batch, hidden),
            (batch, hidden) if kernel.has_cell_state else (0,),
            saved,
            scratch,
        ]
        results = [jax.ShapeDtypeStruct(shape, xs.dtype) for shape in shapes]
        target: Any = jax.ffi.ffi_call(_target_name("jrnn_forward"), results)
        cell = np.int32(kernel.cell_id)
        results = target(lengths, resets, xs, *rest, cell=cell, reverse=reverse)[:-1]
        return vary_alike(tuple(results), xs)

    return _fold_vmap_into_batch(
        call,
        MASK_AXES + OPERAND_AXES,
        (*RESULT_AXES, "time"),
        lambda _: _make_forward(kernel, reverse, save),
    )


@functools.cache
def _make_backward(kernel: _Kernel, reverse: bool, groups: int) -> Callable[..., Any]:
    """Returns the call of the backward kernel.

    `groups` is the number of batches that `vmap` folded into one. Gradients of parameters have a
    leading axis of this size.
    """

    def call(lengths: jax.Array, resets: jax.Array, *rest: jax.Array) -> Any:
        shapes = [
            (groups, *leaf.shape) if kind == "param" else leaf.shape
            for kind, leaf in zip(OPERAND_AXES, rest, strict=False)
        ]
        results = [jax.ShapeDtypeStruct(shape, rest[0].dtype) for shape in shapes]
        attributes = {"cell": np.int32(kernel.cell_id), "groups": np.int32(groups)}
        target: Any = jax.ffi.ffi_call(_target_name("jrnn_backward"), results)
        results = target(lengths, resets, *rest, reverse=reverse, **attributes)
        return vary_alike(tuple(results), rest)

    kinds = MASK_AXES + OPERAND_AXES + ("time", "time") + RESULT_AXES
    return _fold_vmap_into_batch(
        call, kinds, OPERAND_AXES, lambda size: _make_backward(kernel, reverse, size * groups)
    )


def _fold_vmap_into_batch(
    call: Callable[..., Any],
    kinds: tuple[AxisKind, ...],
    result_kinds: tuple[AxisKind, ...],
    with_batch_size: Callable[[int], Callable[..., Any]],
) -> Callable[..., Any]:
    """Adds a `vmap` rule that folds the mapped axis into the batch axis.

    If parameters are mapped, the rule runs the calls one after another instead. Differentiating the
    returned function raises, since `_call_kernel` defines the first derivatives.

    Args:
      call: the kernel call.
      kinds: the leading axes of each operand.
      result_kinds: the leading axes of each result.
      with_batch_size: maps n to the call for a batch that is n times as large.
    """
    with_vmap_rule = custom_vmap(call)
    without_second_derivative = jax.custom_jvp(with_vmap_rule)

    @without_second_derivative.defjvp
    def raise_second_derivative(*_):
        raise ValueError(
            "engine 'native' has first derivatives only; for second derivatives use "
            "engine='fused', or engine='scan' for forward mode"
        )

    @with_vmap_rule.def_vmap
    def rule(size, batched, *operands):
        all_batched = tuple(True for _ in result_kinds)
        if size == 0:
            unbatched = lambda a, on: jax.ShapeDtypeStruct(a.shape[1:] if on else a.shape, a.dtype)
            results = jax.eval_shape(call, *map(unbatched, operands, batched))
            return tuple(jnp.zeros((0, *a.shape), a.dtype) for a in results), all_batched
        if any(on for on, kind in zip(batched, kinds, strict=True) if kind == "param"):
            mapped = [a for a, on in zip(operands, batched, strict=True) if on]

            def call_one(slices):
                rest = iter(slices)
                full = [next(rest) if on else a for a, on in zip(operands, batched, strict=True)]
                return with_vmap_rule(*full)

            return lax.map(call_one, mapped), all_batched
        broadcast = [
            a if on or kind == "param" else jnp.broadcast_to(a, (size, *a.shape))
            for a, on, kind in zip(operands, batched, kinds, strict=True)
        ]
        inputs = [_fold(kind, a) for kind, a in zip(kinds, broadcast, strict=True)]
        results = with_batch_size(size)(*inputs)
        unfolded = [_unfold(kind, a, size) for kind, a in zip(result_kinds, results, strict=True)]
        return tuple(unfolded), all_batched

    return without_second_derivative


def _fold(kind: AxisKind, a: jax.Array) -> jax.Array:
    """Folds the mapped axis: `[N, T, B, ...]` to `[T, N·B, ...]`, `[N, B, ...]` to `[N·B, ...]`."""
    if kind == "param":
        return a
    if a.shape[1:] == (0,):  # the placeholder of an absent array
        return jnp.zeros((0,), a.dtype)
    if kind == "batch":
        return a.reshape(-1, *a.shape[2:])
    return jnp.moveaxis(a, 0, 1).reshape(a.shape[1], -1, *a.shape[3:])


def _unfold(kind: AxisKind, a: jax.Array, size: int) -> jax.Array:
    """Inverts `_fold`; `size` is that of the mapped axis."""
    if a.shape == (0,):
        return jnp.zeros((size, 0), a.dtype)
    if kind == "time":
        return jnp.moveaxis(a.reshape(a.shape[0], size, -1, *a.shape[2:]), 1, 0)
    return a.reshape(size, a.shape[0] // size, *a.shape[1:])
