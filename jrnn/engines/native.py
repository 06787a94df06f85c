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
from jrnn.engines.precision import BoundCell
from jrnn.engines.scan import Scan
from jrnn.masking import Masks, expand_mask, tree_where, zero_where

AxisKind = Literal["time", "batch", "param"]


class _Kernel(NamedTuple):
    """The description of a C++ kernel.

    Attributes:
      number: its value of `JrnnCell` in kernels/api.h.
      gates: number of gates, whose blocks are the columns of w_ih, w_hh and b.
      saved: number of residual arrays of each step.
      extra: parameters besides w_ih, w_hh and b, by the order of arguments; None if absent.
      cell_state: whether the carry is (h, c).
    """

    number: int
    gates: int
    saved: int
    extra: tuple[str | None, str | None, str | None] = (None, None, None)
    cell_state: bool = False


KERNELS: dict[str, _Kernel] = {
    "lstm": _Kernel(0, 4, 5, cell_state=True),
    "lstm-peepholes": _Kernel(1, 4, 5, ("p_i", "p_f", "p_o"), cell_state=True),
    "lstm-coupled": _Kernel(2, 3, 4, cell_state=True),
    "lstm-peepholes-coupled": _Kernel(3, 3, 4, (None, "p_f", "p_o"), cell_state=True),
    "gru": _Kernel(4, 3, 4, ("b_hn", None, None)),
    "elman-tanh": _Kernel(5, 1, 0),
    "elman-relu": _Kernel(6, 1, 0),
    "elman-sigmoid": _Kernel(7, 1, 0),
}
"""All kernels, by `cell.kernel_name()`."""


@dataclass(frozen=True)
class Native(Engine):
    """C++ kernels for LSTM (peepholes, coupled), GRU (reset after) and Elman on a CPU.

    Weights are packed for the vector units in each call. The gate arithmetic is fused into the
    matrix product, tile by tile. The carry of the backward pass contains only cotangents of the
    carry; weight gradients of a chunk of steps are computed while it is in the cache. The threads
    of the runtime divide the batch, or the units if the batch is small. Padding is skipped.

    Transforms that only change inputs, outputs, weights or the first carry (dropout of inputs and
    outputs, weight_drop, residual, highway, projection, learned_carry) are applied to all steps at
    once, and the kernel runs the inner cell.

    The best available instruction set is chosen when the extension is loaded: AVX-512, AVX2 or the
    baseline. The environment variable JRNN_ISA (v4, v3, base) selects a lower one.

    Only float32 is supported; float64 runs on `Fused`. Only first derivatives in reverse mode are
    supported: use `engine="fused"` for second derivatives, and `engine="scan"` for forward mode.
    `jax.export` raises. Results do not depend on thread scheduling, but may depend on the number of
    threads of the runtime, which determines the order of sums over the batch. Inside
    `jax.shard_map`, gradients need `check_vma=False`.

    Raises:
      ValueError: when run, the cell has no kernel, a dtype is not supported, the platform is not a
        CPU, or the kernels were not built.
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
        # The kernels skip padding, but transforms do not.
        xs = xs if cell is bound.cell else zero_where(masks.valid, xs)
        inner = bound.cell.inner_cell(bound.accum_params, xs)
        carry, hs = _run_masked(kernel, inner.params, carry, inner.x, masks, reverse)
        if cell is bound.cell and _reads_h_alone(cell) and not bound.return_carries:
            return carry, hs  # already zero on padding
        # Not zero, where a readout or a transform may have no derivative.
        hs = tree_where(masks.valid, hs, jnp.full_like(hs, 0.5))
        # The kernels do not return the cell state of each step, and readouts here do not read it.
        placeholder = lambda leaf: jnp.zeros((*hs.shape[:2], *leaf.shape[2:]), leaf.dtype)
        carries = type(carry)(hs, placeholder(hs)) if kernel.cell_state else hs
        z = jax.tree.map(placeholder, jax.eval_shape(cell.project, inner.params, inner.x))
        ys = inner.transform_output(cell.readout(inner.params, carries, z))
        return carry, zero_where(masks.valid, (ys, carries) if bound.return_carries else ys)


def find_kernel(cell: Cell) -> _Kernel | None:
    """The kernel of a cell, or None; also None if a subclass overrides what the kernel computes."""
    bases, owner = type(cell).__mro__, _defining_level(cell, "kernel_name")
    allowed = {"init", "init_carry", "readout"} | set(getattr(cell, "__dataclass_fields__", ()))
    public = {name for base in bases[owner:-1] for name in vars(base) if not name.startswith("_")}
    overridden = {name for base in bases[:owner] for name in vars(base)} & public
    return None if overridden - allowed else KERNELS.get(cell.kernel_name() or "")


def _defining_level(cell: Cell, name: str) -> int:
    """The index of the first class in the MRO of a cell that defines a method."""
    return next(n for n, base in enumerate(type(cell).__mro__) if name in vars(base))


def _reads_h_alone(cell: Cell) -> bool:
    """Whether the readout returns h: the class with the kernel, or a base of it, defines it."""
    return _defining_level(cell, "readout") >= _defining_level(cell, "kernel_name")


def unavailable_reason(bound: BoundCell, xs: Inputs) -> str | None:
    """Why no kernel can run a cell on these inputs, or None if one can."""
    return _unavailable_reason(bound, *_innermost_cell(bound, xs))


def _unavailable_reason(bound: BoundCell, cell: Cell, params: Any, x: Any) -> str | None:
    """`unavailable_reason`, from the innermost cell and shapes."""
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
        return "XLA cannot partition it over a mesh; run it inside jax.shard_map"
    mismatch = _shape_mismatch(kernel, params, x)
    if mismatch is not None:
        return mismatch
    if kernel.cell_state and bound.return_carries:
        return "it does not return the cell state of each step"
    if _reads_more_than_h(cell, params, x):
        return f"readout must only read h, got {cell}, whose readout reads more"
    return _register_kernels()


def _innermost_cell(bound: BoundCell, xs: Inputs) -> tuple[Cell, Any, Any]:
    """The innermost cell of transforms, with the shapes of its parameters and inputs."""
    cells = []

    def trace(params: Any, xs: Inputs) -> tuple[Any, Inputs]:
        inner = bound.cell.inner_cell(params, xs)
        cells.append(inner.cell)
        return inner.params, inner.x

    params, x = jax.eval_shape(trace, bound.accum_params, xs)
    return cells[0], params, x


def _reads_more_than_h(cell: Cell, params: Any, xs: Any) -> bool:
    """Whether the readout of a cell reads z or carry leaves besides h."""
    carry = jax.eval_shape(lambda p: cell.init_carry(p, ()), params)
    z = jax.eval_shape(cell.project, params, jax.ShapeDtypeStruct(xs.shape[2:], xs.dtype))
    reads = structure.find_used_leaves(cell.readout, params, carry, z)
    return any(reads.carry[1:]) or any(reads.z)


def is_partitioned() -> bool:
    """Whether XLA partitions the traced computation over devices, as under `jax.set_mesh`."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    return any(size > 1 and kind != AxisType.Manual for size, kind in kinds)


def _shape_mismatch(kernel: _Kernel, params: Any, xs: Any) -> str | None:
    """Describes a parameter whose shape or dtype the kernel does not support, or returns None."""
    hidden = jnp.shape(params.w_hh)[0]
    columns = kernel.gates * hidden
    expected = {"w_ih": (xs.shape[-1], columns), "w_hh": (hidden, columns), "b": (columns,)}
    expected |= {name: (hidden,) for name in kernel.extra if name is not None}
    for name, shape in expected.items():
        leaf = getattr(params, name)
        if leaf.shape != shape or leaf.dtype != jnp.float32:
            got = f"{leaf.dtype}{list(leaf.shape)}"
            return f"{name} must be float32{list(shape)} for inputs of {xs.shape[-1]}, got {got}"
    return None


@functools.cache
def _register_kernels() -> str | None:
    """Registers the kernels with XLA; returns the reason if this fails, else None."""
    try:
        from jrnn import _kernels
    except ImportError as error:
        return (
            f"the C++ extension is not installed ({error}); reinstall jrnn where CMake finds a C++ "
            "compiler"
        )
    try:
        # Initialize the backend first: otherwise a failed registration breaks JAX as a whole.
        jax.local_devices(backend="cpu")
        for name, handler in _kernels.registrations().items():
            jax.ffi.register_ffi_target(name, handler, platform="cpu")
    except Exception as error:  # the other engines work without it
        return (
            f"the C++ extension was built for another jaxlib ({error}); reinstall jrnn with pip's "
            "--no-build-isolation"
        )
    return None


def _run_masked(
    kernel: _Kernel, params: Any, carry: Carry, xs: jax.Array, masks: Masks, reverse: bool
) -> tuple[Carry, jax.Array]:
    """`_run` with any mask: moves valid steps to the front, and their outputs back."""
    if masks.valid is None or masks.lengths is not None:
        return _run(kernel, params, carry, xs, masks, reverse)
    order = jnp.argsort(~masks.valid, axis=0, stable=True)
    move = lambda a: jnp.take_along_axis(a, expand_mask(order, a), axis=0)
    front_masks = masks._replace(
        lengths=masks.valid.sum(axis=0, dtype=jnp.int32),
        resets=None if masks.resets is None else move(masks.resets),
    )
    carry, hs = _run(kernel, params, carry, move(xs), front_masks, reverse)
    inverse = jnp.argsort(order, axis=0)
    return carry, jnp.take_along_axis(hs, expand_mask(inverse, hs), axis=0)


def _run(
    kernel: _Kernel, params: Any, carry: Carry, xs: jax.Array, masks: Masks, reverse: bool
) -> tuple[Carry, jax.Array]:
    absent = jnp.zeros((0,), xs.dtype)

    def pair(tree: Any) -> tuple[jax.Array, jax.Array]:
        if tree is None:
            return absent, absent
        return tree if kernel.cell_state else (tree, absent)

    lengths = jnp.zeros((0,), jnp.int32) if masks.lengths is None else masks.lengths
    resets = jnp.zeros((0,), bool) if masks.resets is None else masks.resets
    extra = [absent if name is None else getattr(params, name) for name in kernel.extra]
    operands = (xs, params.w_ih, params.w_hh, params.b, *extra, *pair(carry), *pair(masks.initial))
    results: Any = _call_kernel(kernel, reverse, lengths, resets, operands)
    ys, h, c = results
    return type(carry)(h, c) if kernel.cell_state else h, ys


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _call_kernel(
    kernel: _Kernel, reverse: bool, lengths: jax.Array, resets: jax.Array, operands: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    return _forward(kernel, reverse, False)(lengths, resets, *operands)[:3]


def _call_kernel_fwd(
    kernel: _Kernel, reverse: bool, lengths: jax.Array, resets: jax.Array, operands: Any
) -> tuple[Any, Any]:
    *results, saved = _forward(kernel, reverse, True)(lengths, resets, *operands)
    return tuple(results), (lengths, resets, operands, results[0], saved)


def _call_kernel_bwd(kernel: _Kernel, reverse: bool, residuals: Any, cotangents: Any) -> Any:
    lengths, resets, operands, ys, saved = residuals
    grads = _backward(kernel, reverse, 1)(lengths, resets, *operands, ys, saved, *cotangents)
    first = lambda kind, grad: grad[0] if kind == "param" else grad
    return None, None, tuple(map(first, FLOATS, grads))


_call_kernel.defvjp(_call_kernel_fwd, _call_kernel_bwd)

# Leading axes of the operands: time and batch, batch, or none. The floating operands are xs, w_ih,
# w_hh, b, three extras, h0, c0, and the initial h and c.
FLOATS: tuple[AxisKind, ...] = ("time", *("param",) * 6, *("batch",) * 4)  # pyright: ignore
MASKS: tuple[AxisKind, ...] = ("batch", "time")
RESULTS: tuple[AxisKind, ...] = ("time", "batch", "batch")


@functools.cache
def _forward(kernel: _Kernel, reverse: bool, save: bool) -> Callable[..., Any]:
    def call(lengths: jax.Array, resets: jax.Array, xs: jax.Array, *rest: jax.Array) -> Any:
        (steps, batch, _), hidden = xs.shape, rest[1].shape[0]
        ys = (steps, batch, hidden)
        saved = (steps, batch, kernel.saved, hidden) if save and kernel.saved else (0,)
        # The kernel uses huge pages for all results. The last result is unused, so that XLA reuses
        # its buffer for the cotangents of ys, which have the same size.
        scratch = ys if save else (0,)
        shapes = [
            ys,
            (batch, hidden),
            (batch, hidden) if kernel.cell_state else (0,),
            saved,
            scratch,
        ]
        results = [jax.ShapeDtypeStruct(shape, xs.dtype) for shape in shapes]
        target: Any = jax.ffi.ffi_call("jrnn_forward", results)
        cell = np.int32(kernel.number)
        return tuple(target(lengths, resets, xs, *rest, cell=cell, reverse=reverse)[:-1])

    return _fold_vmap_into_batch(
        call, MASKS + FLOATS, (*RESULTS, "time"), lambda _: _forward(kernel, reverse, save)
    )


@functools.cache
def _backward(kernel: _Kernel, reverse: bool, groups: int) -> Callable[..., Any]:
    """The backward kernel; gradients of parameters have a leading axis of size `groups`."""

    def call(lengths: jax.Array, resets: jax.Array, *rest: jax.Array) -> Any:
        shapes = [
            (groups, *leaf.shape) if kind == "param" else leaf.shape
            for kind, leaf in zip(FLOATS, rest, strict=False)
        ]
        results = [jax.ShapeDtypeStruct(shape, rest[0].dtype) for shape in shapes]
        attributes = {"cell": np.int32(kernel.number), "groups": np.int32(groups)}
        target: Any = jax.ffi.ffi_call("jrnn_backward", results)
        return tuple(target(lengths, resets, *rest, reverse=reverse, **attributes))

    kinds = MASKS + FLOATS + ("time", "time") + RESULTS
    return _fold_vmap_into_batch(
        call, kinds, FLOATS, lambda size: _backward(kernel, reverse, size * groups)
    )


def _fold_vmap_into_batch(
    call: Callable[..., Any],
    kinds: tuple[AxisKind, ...],
    result_kinds: tuple[AxisKind, ...],
    with_batch_size: Callable[[int], Callable[..., Any]],
) -> Callable[..., Any]:
    """Adds a `vmap` rule that folds the mapped axis into the batch, if parameters are not mapped.

    Differentiation raises; first derivatives are defined by `_call_kernel`.

    Args:
      call: the kernel call.
      kinds: the leading axes of each operand.
      result_kinds: the leading axes of each result.
      with_batch_size: maps n to the call for a batch that is n times as large.
    """
    wrapped = custom_vmap(call)
    once = jax.custom_jvp(wrapped)

    @once.defjvp
    def raise_second_derivative(*_):
        raise ValueError(
            "engine 'native' has first derivatives only; for second derivatives use "
            "engine='fused', or engine='scan' for forward mode"
        )

    @wrapped.def_vmap
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
                return wrapped(*full)

            return lax.map(call_one, mapped), all_batched
        broadcast = [
            a if on or kind == "param" else jnp.broadcast_to(a, (size, *a.shape))
            for a, on, kind in zip(operands, batched, kinds, strict=True)
        ]
        inputs = [_fold(kind, a) for kind, a in zip(kinds, broadcast, strict=True)]
        results = with_batch_size(size)(*inputs)
        unfolded = [_unfold(kind, a, size) for kind, a in zip(result_kinds, results, strict=True)]
        return tuple(unfolded), all_batched

    return once


def _fold(kind: AxisKind, a: jax.Array) -> jax.Array:
    """`[N, T, B, ...]` to `[T, N·B, ...]`, or `[N, B, ...]` to `[N·B, ...]`."""
    if kind == "param":
        return a
    if a.shape[1:] == (0,):  # the placeholder of an absent array
        return jnp.zeros((0,), a.dtype)
    if kind == "batch":
        return a.reshape(-1, *a.shape[2:])
    return jnp.moveaxis(a, 0, 1).reshape(a.shape[1], -1, *a.shape[3:])


def _unfold(kind: AxisKind, a: jax.Array, size: int) -> jax.Array:
    if a.shape == (0,):
        return jnp.zeros((size, 0), a.dtype)
    if kind == "time":
        return jnp.moveaxis(a.reshape(a.shape[0], size, -1, *a.shape[2:]), 1, 0)
    return a.reshape(size, a.shape[0] // size, *a.shape[1:])
