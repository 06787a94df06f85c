"""The call of a C++ kernel through `jax.ffi`, with its first derivative and its rule for `vmap`."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from jrnn.cell import Carry
from jrnn.engines.manual_axes import vary_alike
from jrnn.masking import Masks, expand_mask, zero_where

AxisKind = Literal["time", "batch", "param"]


class Kernel(NamedTuple):
    """The description of a C++ kernel.

    Attributes:
      cell_id: the number of the cell in the enum `JrnnCell` of kernels/api.h.
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


KERNELS: dict[str, Kernel] = {
    "lstm": Kernel(0, 4, 5, has_cell_state=True),
    "lstm-peepholes": Kernel(1, 4, 5, ("p_i", "p_f", "p_o"), has_cell_state=True),
    "lstm-coupled": Kernel(2, 3, 4, has_cell_state=True),
    "lstm-peepholes-coupled": Kernel(3, 3, 4, (None, "p_f", "p_o"), has_cell_state=True),
    "gru": Kernel(4, 3, 4, ("b_hn", None, None)),
    "elman-tanh": Kernel(5, 1, 0),
    "elman-relu": Kernel(6, 1, 0),
    "elman-sigmoid": Kernel(7, 1, 0),
}
"""The kernels, by the name that `Cell.kernel_name` returns."""


@functools.cache
def register_kernels() -> str | None:
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


def run_kernel(
    kernel: Kernel, params: Any, carry: Carry, xs: jax.Array, masks: Masks, reverse: bool
) -> tuple[Carry, jax.Array]:
    """Runs a kernel over a batch of sequences, with any mask.

    The kernel takes only lengths. For other masks, valid steps are moved to the front, and their
    outputs are moved back to their steps.

    Args:
      kernel: the kernel.
      params: the parameters of its cell.
      carry: the initial carry, h or (h, c), leaves `[B, hidden]`.
      xs: inputs `[T, B, input]`.
      masks: padding and resets.
      reverse: whether the scan runs in reverse.

    Returns:
      The final carry, and h of each step `[T, B, hidden]`, which is 0 on padding.
    """
    if masks.valid is None or masks.lengths is not None:
        return _run(kernel, params, carry, xs, masks, reverse)
    xs = zero_where(masks.valid, xs)  # so that no residual has a NaN from padding
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
    kernel: Kernel, params: Any, carry: Carry, xs: jax.Array, masks: Masks, reverse: bool
) -> tuple[Carry, jax.Array]:
    """Computes `run_kernel` without padding, or with padding given by `masks.lengths`."""
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
    operands = vary_alike(operands)  # also casts the placeholders of absent arrays
    results: Any = _call_kernel(kernel, reverse, lengths, resets, operands)
    ys, h, c = results
    return type(carry)(h, c) if kernel.has_cell_state else h, ys


def _extra_param(params: Any, name: str | None, absent: jax.Array) -> jax.Array:
    """Returns the parameter with a name of `Kernel.extra_params`, or `absent` if the name is None.

    A parameter that is None, as in a cell without biases, is replaced by zeros `[hidden]`.
    """
    if name is None:
        return absent
    value = getattr(params, name)
    return jnp.zeros(params.w_hh.shape[:1], absent.dtype) if value is None else value


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _call_kernel(
    kernel: Kernel, reverse: bool, lengths: jax.Array, resets: jax.Array, operands: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    return _make_forward(kernel, reverse, False)(lengths, resets, *operands)[:3]


def _call_kernel_fwd(
    kernel: Kernel, reverse: bool, lengths: jax.Array, resets: jax.Array, operands: Any
) -> tuple[Any, Any]:
    *results, saved = _make_forward(kernel, reverse, True)(lengths, resets, *operands)
    return tuple(results), (lengths, resets, operands, results[0], saved)


def _call_kernel_bwd(kernel: Kernel, reverse: bool, residuals: Any, cotangents: Any) -> Any:
    lengths, resets, operands, ys, saved = residuals
    grads = _make_backward(kernel, reverse, 1)(lengths, resets, *operands, ys, saved, *cotangents)
    drop_groups = lambda kind, grad: grad[0] if kind == "param" else grad
    return None, None, tuple(map(drop_groups, OPERAND_AXES, grads))


_call_kernel.defvjp(_call_kernel_fwd, _call_kernel_bwd)

# The leading axes of the arrays of a kernel call: "time" stands for time and batch, "batch" for
# batch, and "param" for none. Masks are lengths and resets. Operands are xs, w_ih, w_hh, b, three
# extra parameters, h and c of the initial carry, and h and c of the reset carry. Results are ys and
# the final h and c.
OPERAND_AXES: tuple[AxisKind, ...] = ("time", *("param",) * 6, *("batch",) * 4)  # pyright: ignore
MASK_AXES: tuple[AxisKind, ...] = ("batch", "time")
RESULT_AXES: tuple[AxisKind, ...] = ("time", "batch", "batch")


@functools.cache
def _make_forward(kernel: Kernel, reverse: bool, save: bool) -> Callable[..., Any]:
    """Returns the call of the forward kernel, `(*masks, *operands) -> (*results, saved)`.

    `saved` has the residuals for the backward pass, and no elements unless `save` is True.
    """

    def call(lengths: jax.Array, resets: jax.Array, xs: jax.Array, *rest: jax.Array) -> Any:
        (steps, batch, _), hidden = xs.shape, rest[1].shape[0]
        ys = (steps, batch, hidden)
        saved = (
            (steps, batch, kernel.num_residuals, hidden) if save and kernel.num_residuals else (0,)
        )
        # The kernel requests huge pages for the memory of all results. Nothing writes or reads the
        # last result: XLA can reuse its buffer for the cotangents of ys, which have the same size.
        # It is empty with `jax_debug_nans`, which checks all results if the call is not jitted.
        checks_values = jax.config.values["jax_debug_nans"] or jax.config.values["jax_debug_infs"]
        scratch = ys if save and not checks_values else (0,)
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
def _make_backward(kernel: Kernel, reverse: bool, groups: int) -> Callable[..., Any]:
    """Returns the call of the backward kernel.

    The call maps masks, operands, ys, `saved` and the cotangents of the results to the gradients of
    the operands. `groups` is the number of batches that `vmap` folded into one. Gradients of
    parameters have a leading axis of this size.
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
    with_larger_batch: Callable[[int], Callable[..., Any]],
) -> Callable[..., Any]:
    """Adds a `vmap` rule that folds the mapped axis into the batch axis.

    If parameters are mapped, the rule runs the calls one after another instead. Differentiating the
    returned function raises a ValueError, since `_call_kernel` defines the first derivatives.

    Args:
      call: the kernel call.
      kinds: the leading axes of each operand.
      result_kinds: the leading axes of each result.
      with_larger_batch: maps n to the call for a batch that is n times as large.
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
            unbatched = lambda a, is_batched: jax.ShapeDtypeStruct(
                a.shape[1:] if is_batched else a.shape, a.dtype
            )
            results = jax.eval_shape(call, *map(unbatched, operands, batched))
            return tuple(jnp.zeros((0, *a.shape), a.dtype) for a in results), all_batched
        if any(
            is_batched for is_batched, kind in zip(batched, kinds, strict=True) if kind == "param"
        ):
            mapped = [a for a, is_batched in zip(operands, batched, strict=True) if is_batched]

            def call_one(slices):
                rest = iter(slices)
                full = [
                    next(rest) if is_batched else a
                    for a, is_batched in zip(operands, batched, strict=True)
                ]
                return with_vmap_rule(*full)

            return lax.map(call_one, mapped), all_batched
        broadcast = [
            a if is_batched or kind == "param" else jnp.broadcast_to(a, (size, *a.shape))
            for a, is_batched, kind in zip(operands, batched, kinds, strict=True)
        ]
        inputs = [_fold(kind, a) for kind, a in zip(kinds, broadcast, strict=True)]
        results = with_larger_batch(size)(*inputs)
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
