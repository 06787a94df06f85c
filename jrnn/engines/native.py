"""Kernels in C++ for the workhorses on a CPU, called through `jax.ffi`."""

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

Kind = Literal["time", "batch", "param"]


class _Kernel(NamedTuple):
    """How the code in C++ identifies a cell.

    Attributes:
      number: `JrnnCell` in kernels/api.h.
      gates: blocks of columns of w_ih, w_hh and b.
      saved: arrays that are kept for each step.
      extra: the fields of the parameters besides w_ih, w_hh and b, in their places; None for none.
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
"""By `cell.kernel_name()`."""


@dataclass(frozen=True)
class Native(Engine):
    """Kernels written in C++ for LSTM (peepholes, coupled), GRU (reset after) and Elman on a CPU.

    Weights are packed for the vector units in each call; the gate arithmetic is done on the tile of
    pre-activations that a matrix product has just left; the backward pass carries the cotangents
    of the carry alone and makes every weight gradient of a chunk of steps while it is in the
    cache. The threads of the runtime share the batch, or the units where the batch is small.
    Padded steps are not computed at all.

    Transforms that only change inputs, outputs, weights or the first carry (dropout of inputs and
    outputs, weight_drop, residual, highway, projection, learned_carry) keep the kernel of the cell
    inside; they are applied to all steps at once.

    The best instruction set of the machine is chosen when the code is loaded: AVX-512, AVX2 or
    what every machine has. The environment variable JRNN_ISA (v4, v3, base) asks for less.

    float32 only; float64 runs on `Fused`. Derivatives are those of reverse mode, once: second
    ones need `engine="fused"`, and forward mode `engine="scan"`. `jax.export` refuses it. Which
    threads come to help changes no bit of a result; how many the runtime has may, as they decide
    the order of the sums over the batch. Inside `jax.shard_map` gradients need `check_vma=False`.

    Raises:
      ValueError: when it is run: the cell has no kernel, the dtypes are others, the platform is no
        CPU, or the kernels were not built.
    """

    general: ClassVar[bool] = False

    def run(
        self, bound: BoundCell, carry: Carry, xs: Inputs, masks: Masks, reverse: bool
    ) -> tuple[Carry, Any]:
        cell, params, x = _innermost(bound, xs)
        kernel = kernel_of(cell)
        if kernel is not None and bound.precision == (jnp.float64, jnp.float64):
            return Fused().run(bound, carry, xs, masks, reverse)
        reason = _reason(bound, cell, params, x)
        if kernel is None or reason is not None:
            raise ValueError(f"engine 'native': {reason}; engine='auto' chooses one that fits")
        steps, batch = jax.tree.leaves(xs)[0].shape[:2]
        if steps == 0 or batch == 0:
            return Scan().run(bound, carry, xs, masks, reverse)
        # The kernels skip padding; the transforms around them do not.
        given = xs if cell is bound.cell else zero_where(masks.valid, xs)
        core = bound.cell.core(bound.accum_params, given)
        carry, hs = _run_masked(kernel, core.params, carry, core.x, masks, reverse)
        if cell is bound.cell and _reads_h_alone(cell) and not bound.return_carries:
            return carry, hs  # zero on padding
        # At zero a readout or a transform may have no derivative.
        hs = tree_where(masks.valid, hs, jnp.full_like(hs, 0.5))
        # No kernel returns the cell state of each step, and no readout that runs here reads it.
        absent = lambda leaf: jnp.zeros((*hs.shape[:2], *leaf.shape[2:]), leaf.dtype)
        carries = type(carry)(hs, absent(hs)) if kernel.cell_state else hs
        z = jax.tree.map(absent, jax.eval_shape(cell.project, core.params, core.x))
        ys = core.finish(cell.readout(core.params, carries, z))
        return carry, zero_where(masks.valid, (ys, carries) if bound.return_carries else ys)


def kernel_of(cell: Cell) -> _Kernel | None:
    """The kernel of a cell; none where a subclass overrides what the kernel may compute."""
    bases, owner = type(cell).__mro__, _level(cell, "kernel_name")
    free = {"init", "init_carry", "readout"} | set(getattr(cell, "__dataclass_fields__", ()))
    known = {name for base in bases[owner:-1] for name in vars(base) if not name.startswith("_")}
    own = {name for base in bases[:owner] for name in vars(base)}
    return None if own & known - free else KERNELS.get(cell.kernel_name() or "")


def _level(cell: Cell, name: str) -> int:
    """How far up among the bases of a cell a method is defined."""
    return next(n for n, base in enumerate(type(cell).__mro__) if name in vars(base))


def _reads_h_alone(cell: Cell) -> bool:
    """Whether the readout is that of the cell which has the kernel: h itself."""
    return _level(cell, "readout") >= _level(cell, "kernel_name")


def unavailable(bound: BoundCell, xs: Inputs) -> str | None:
    """Why a cell cannot run on these inputs by native kernels, or None if it can."""
    return _reason(bound, *_innermost(bound, xs))


def _reason(bound: BoundCell, cell: Cell, params: Any, x: Any) -> str | None:
    """`unavailable`, from the cell inside of transforms and shapes."""
    kernel = kernel_of(cell)
    if kernel is None:
        return f"there is no kernel for {cell}; there are kernels for {', '.join(KERNELS)}"
    compute, wide = bound.precision
    if compute != jnp.float32 or wide != jnp.float32:
        return f"products and gates must be float32, got {compute} and {wide}"
    if not jax.tree_util.treedef_is_leaf(jax.tree.structure(x)):
        return f"xs must be one array [time, batch, input], got {jax.tree.structure(x)}"
    if jax.default_backend() != "cpu":
        return f"it runs on a CPU, and the default backend is {jax.default_backend()}"
    if partitioned():
        return "XLA cannot split it over a mesh; inside of jax.shard_map it runs on each device"
    misfit = _misfit(kernel, params, x)
    if misfit is not None:
        return misfit
    if kernel.cell_state and bound.return_carries:
        return "it does not return the cell state of each step"
    if _reads_more_than_h(cell, params, x):
        return f"it returns h of each step and nothing else, and the readout of {cell} reads more"
    return _load()


def _innermost(bound: BoundCell, xs: Inputs) -> tuple[Cell, Any, Any]:
    """The cell inside of transforms, with the shapes of its parameters and inputs."""
    cells = []

    def trace(params: Any, xs: Inputs) -> tuple[Any, Inputs]:
        core = bound.cell.core(params, xs)
        cells.append(core.cell)
        return core.params, core.x

    params, x = jax.eval_shape(trace, bound.accum_params, xs)
    return cells[0], params, x


def _reads_more_than_h(cell: Cell, params: Any, xs: Any) -> bool:
    """Whether the readout of a cell, such as a subclass with its own, reads more than h."""
    carry = jax.eval_shape(lambda p: cell.init_carry(p, ()), params)
    z = jax.eval_shape(cell.project, params, jax.ShapeDtypeStruct(xs.shape[2:], xs.dtype))
    reads = structure.leaves_read(cell.readout, params, carry, z)
    return any(reads.carry[1:]) or any(reads.z)


def partitioned() -> bool:
    """Whether XLA is to split what is traced now over devices, as under `jax.set_mesh`."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    return any(size > 1 and kind != AxisType.Manual for size, kind in kinds)


def _misfit(kernel: _Kernel, params: Any, xs: Any) -> str | None:
    """Which array has another shape or dtype than the code in C++ assumes."""
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
def _load() -> str | None:
    """Registers the kernels with XLA; the reason if there are none."""
    try:
        from jrnn import _kernels
    except ImportError as error:
        return (
            f"its code in C++ is not there ({error}); install jrnn again where CMake finds a C++ "
            "compiler"
        )
    try:
        # With the backend there first, a refusal can be caught: else it would end all of JAX.
        jax.local_devices(backend="cpu")
        for name, handler in _kernels.registrations().items():
            jax.ffi.register_ffi_target(name, handler, platform="cpu")
    except Exception as error:  # whatever XLA has against it, the other engines work
        return (
            f"its code in C++ does not fit this jaxlib ({error}); install jrnn again with pip's "
            "--no-build-isolation, so that it is built with this one"
        )
    return None


def _run_masked(
    kernel: _Kernel, params: Any, carry: Carry, xs: jax.Array, masks: Masks, reverse: bool
) -> tuple[Carry, jax.Array]:
    """`_run` with a mask of any pattern: valid steps are moved to the front, and outputs back."""
    if masks.valid is None or masks.lengths is not None:
        return _run(kernel, params, carry, xs, masks, reverse)
    order = jnp.argsort(~masks.valid, axis=0, stable=True)
    move = lambda a: jnp.take_along_axis(a, expand_mask(order, a), axis=0)
    front = masks._replace(
        lengths=masks.valid.sum(axis=0, dtype=jnp.int32),
        resets=None if masks.resets is None else move(masks.resets),
    )
    carry, hs = _run(kernel, params, carry, move(xs), front, reverse)
    back = jnp.argsort(order, axis=0)
    return carry, jnp.take_along_axis(hs, expand_mask(back, hs), axis=0)


def _run(
    kernel: _Kernel, params: Any, carry: Carry, xs: jax.Array, masks: Masks, reverse: bool
) -> tuple[Carry, jax.Array]:
    none = jnp.zeros((0,), xs.dtype)

    def pair(tree: Any) -> tuple[jax.Array, jax.Array]:
        if tree is None:
            return none, none
        return tree if kernel.cell_state else (tree, none)

    lengths = jnp.zeros((0,), jnp.int32) if masks.lengths is None else masks.lengths
    resets = jnp.zeros((0,), bool) if masks.resets is None else masks.resets
    extra = [none if name is None else getattr(params, name) for name in kernel.extra]
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

# Which axes the operands have: time and batch, batch, or neither. xs, w_ih, w_hh, b, three extras,
# h0, c0, and the initial h and c.
FLOATS: tuple[Kind, ...] = ("time", *("param",) * 6, *("batch",) * 4)  # pyright: ignore
MASKS: tuple[Kind, ...] = ("batch", "time")
RESULTS: tuple[Kind, ...] = ("time", "batch", "batch")


@functools.cache
def _forward(kernel: _Kernel, reverse: bool, save: bool) -> Callable[..., Any]:
    def call(lengths: jax.Array, resets: jax.Array, xs: jax.Array, *rest: jax.Array) -> Any:
        (steps, batch, _), hidden = xs.shape, rest[1].shape[0]
        ys = (steps, batch, hidden)
        saved = (steps, batch, kernel.saved, hidden) if save and kernel.saved else (0,)
        # The code in C++ asks for large pages for all results. Nothing uses the last one, so XLA
        # puts the cotangents of ys there: they have its size, and are computed when it is free.
        room = ys if save else (0,)
        shapes = [ys, (batch, hidden), (batch, hidden) if kernel.cell_state else (0,), saved, room]
        results = [jax.ShapeDtypeStruct(shape, xs.dtype) for shape in shapes]
        target: Any = jax.ffi.ffi_call("jrnn_forward", results)
        cell = np.int32(kernel.number)
        return tuple(target(lengths, resets, xs, *rest, cell=cell, reverse=reverse)[:-1])

    return _folded(
        call, MASKS + FLOATS, (*RESULTS, "time"), lambda _: _forward(kernel, reverse, save)
    )


@functools.cache
def _backward(kernel: _Kernel, reverse: bool, groups: int) -> Callable[..., Any]:
    """Its gradients of parameters have a leading axis: one for each of `groups` of sequences."""

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
    return _folded(call, kinds, FLOATS, lambda size: _backward(kernel, reverse, size * groups))


def _folded(
    call: Callable[..., Any],
    kinds: tuple[Kind, ...],
    result_kinds: tuple[Kind, ...],
    grown: Callable[[int], Callable[..., Any]],
) -> Callable[..., Any]:
    """A call whose `vmap` is one call with a larger batch, if all share the parameters.

    It is refused where it is differentiated: `_call_kernel` knows the first derivatives.

    `grown(size)` is the call for a batch that is `size` times as large.
    """
    wrapped = custom_vmap(call)
    once = jax.custom_jvp(wrapped)

    @once.defjvp
    def refuse(*_):
        raise ValueError(
            "engine 'native' has first derivatives alone; for second ones use engine='fused', or "
            "engine='scan' where they are of forward mode"
        )

    @wrapped.def_vmap
    def rule(size, batched, *operands):
        every = tuple(True for _ in result_kinds)
        if size == 0:
            cut = lambda a, on: jax.ShapeDtypeStruct(a.shape[1:] if on else a.shape, a.dtype)
            results = jax.eval_shape(call, *map(cut, operands, batched))
            return tuple(jnp.zeros((0, *a.shape), a.dtype) for a in results), every
        if any(on for on, kind in zip(batched, kinds, strict=True) if kind == "param"):
            moved = [a for a, on in zip(operands, batched, strict=True) if on]

            def alone(these):
                rest = iter(these)
                full = [next(rest) if on else a for a, on in zip(operands, batched, strict=True)]
                return wrapped(*full)

            return lax.map(alone, moved), every
        spread = [
            a if on or kind == "param" else jnp.broadcast_to(a, (size, *a.shape))
            for a, on, kind in zip(operands, batched, kinds, strict=True)
        ]
        inputs = [_fold(kind, a) for kind, a in zip(kinds, spread, strict=True)]
        results = grown(size)(*inputs)
        unfolded = [_unfold(kind, a, size) for kind, a in zip(result_kinds, results, strict=True)]
        return tuple(unfolded), every

    return once


def _fold(kind: Kind, a: jax.Array) -> jax.Array:
    """`[N, T, B, ...]` to `[T, N·B, ...]`, or `[N, B, ...]` to `[N·B, ...]`."""
    if kind == "param":
        return a
    if a.shape[1:] == (0,):  # it stands for an absent array
        return jnp.zeros((0,), a.dtype)
    if kind == "batch":
        return a.reshape(-1, *a.shape[2:])
    return jnp.moveaxis(a, 0, 1).reshape(a.shape[1], -1, *a.shape[3:])


def _unfold(kind: Kind, a: jax.Array, size: int) -> jax.Array:
    if a.shape == (0,):
        return jnp.zeros((size, 0), a.dtype)
    if kind == "time":
        return jnp.moveaxis(a.reshape(a.shape[0], size, -1, *a.shape[2:]), 1, 0)
    return a.reshape(size, a.shape[0] // size, *a.shape[1:])
