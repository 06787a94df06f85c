"""Validation and canonicalization of the inputs of a run: masks, dtypes and noise."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jrnn import checks, masking
from jrnn.cell import Carry, Cell, Inputs, Observed, Params, add_noise
from jrnn.dtypes import cast, dtype_kind
from jrnn.engines.manual_axes import vary_alike
from jrnn.engines.precision import BoundCell, bind, infer_precision
from jrnn.layer import Layer, SequenceInputs
from jrnn.masking import Masks
from jrnn.params import check_input_type, conform_params, refuse_non_arrays
from jrnn.structure import is_symbolic
from jrnn.trees import check_structure


class CanonicalInputs(NamedTuple):
    """The validated arguments of `Engine.run`, and how to convert its results.

    Attributes:
      bound: the cell with its parameters.
      carry: the initial carry, leaves `[B, ...]`.
      xs: inputs, leaves `[T, B, ...]`.
      masks: padding and resets.
      reverse: whether to scan from the last step to the first.
      nan_carries: `[T, B]` bool, True on steps after which the carry should be NaN, but is not,
        since `isolate_nans` replaced the inputs. None without resets or without steps.
      user_carry: the initial carry that the user passed; None if no carry was passed.
    """

    bound: BoundCell
    carry: Carry
    xs: Inputs
    masks: Masks
    reverse: bool
    nan_carries: jax.Array | None
    user_carry: Carry | None

    def restore_nans(self, ys: Any) -> Any:
        """Sets the outputs to NaN on the valid steps of `nan_carries`."""
        if self.nan_carries is None:
            return ys
        valid = self.masks.valid
        nan_steps = self.nan_carries if valid is None else self.nan_carries & valid
        return masking.restore_nans(nan_steps, ys)

    def restore_nan_carries(self, carries: Carry) -> Carry:
        """Sets the carries `[T, B, ...]` to NaN on all steps of `nan_carries`, also on padding."""
        if self.nan_carries is None:
            return carries
        return masking.restore_nans(self.nan_carries, carries)

    def cast_carry(self, carry: Carry) -> Carry:
        """Casts the final carry to the dtypes of `user_carry`, if there is one."""
        if self.user_carry is None:
            return carry
        return jax.tree.map(lambda a, old: a.astype(jnp.result_type(old)), carry, self.user_carry)


class validate_arguments:
    """A context manager that validates the key and the lengths, and explains errors of its body.

    Lengths are validated if they are not traced. If the body raises a TypeError or ValueError and
    an argument does not consist of arrays, a TypeError that names the argument replaces the error.
    This takes less time than a validation of each leaf before every call.

    Args:
      inputs: the sequences, with all arguments of the run.
      params: the parameters.

    Raises:
      TypeError: the key is not a PRNG key, or an argument does not consist of arrays.
      ValueError: a length is negative or above the number of steps.
    """

    def __init__(self, inputs: SequenceInputs, params: Params):
        self.inputs, self.params = inputs, params

    def __enter__(self) -> None:
        if self.inputs.key is not None:
            checks.prng_key(self.inputs.owner, "key", self.inputs.key)
        _check_lengths(self.inputs)

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is not None and issubclass(kind, TypeError | ValueError):
            inputs = self.inputs
            arguments = {"params": self.params, "xs": inputs.xs, "carry": inputs.carry}
            masks = {"lengths": inputs.lengths, "mask": inputs.mask, "resets": inputs.resets}
            refuse_non_arrays(inputs.owner, **arguments, **masks)


def conform_arguments(layer: Layer, params: Params, inputs: SequenceInputs) -> Params:
    """Validates inputs and parameters against a layer, and returns the parameters.

    Functions that run a layer call it before `Layer.apply`. The returned parameters are those of
    `jrnn.params.conform_params`, which converts dicts to NamedTuples.

    Raises:
      TypeError: the type of the inputs, or the structure or a dtype of the parameters is wrong.
      ValueError: a shape is wrong.
    """
    if jax.tree.leaves(inputs.xs):
        check_input_type(inputs.owner, layer, params, inputs.xs)
    time_and_batch(inputs)
    return conform_params(inputs.owner, layer, params, inputs.xs)


def canonicalize(
    cell: Cell, params: Params, inputs: SequenceInputs, *, return_carries: bool = False
) -> CanonicalInputs:
    """Validates the inputs of a run and converts them to the arguments of `Engine.run`.

    Args:
      cell: the cell.
      params: its parameters.
      inputs: the sequences.
      return_carries: whether the engine returns pairs of outputs and carries.

    Raises:
      ValueError: a shape is wrong.
      TypeError: a dtype or the structure of the carry is wrong.
    """
    xs, carry = inputs.xs, inputs.carry
    steps, batch = time_and_batch(inputs)
    lengths, valid, resets = _validate_masks(inputs, steps, batch)
    if isinstance(xs, Observed):
        xs = xs.zero_missing(valid)

    precision = infer_precision(params, xs)
    initial = cast(cell.init_carry(params, (batch,)), precision.accum)
    if carry is None:
        carry = initial
    else:
        carry = cast_like(
            f"{inputs.owner}: carry", f"{type(cell).__name__}.init_carry", carry, initial
        )
    masks = Masks(lengths, valid, resets, None if resets is None else initial)

    nan_carries = None
    if resets is not None and steps > 0:
        xs, carry, nan_carries = masking.isolate_nans(xs, carry, masks, inputs.reverse)
    if cell.is_stochastic and inputs.key is not None:
        shapes = jax.eval_shape(lambda: xs)
        params, noise = cell.sample_noise(params, shapes, (steps, batch), inputs.key)
        xs = add_noise(xs, cast(noise, precision.compute))
    params, carry, xs, masks = vary_alike((params, carry, xs, masks))
    bound = bind(cell, params, precision, return_carries)
    return CanonicalInputs(bound, carry, xs, masks, inputs.reverse, nan_carries, inputs.carry)


def time_and_batch(inputs: SequenceInputs) -> tuple[int, int]:
    """Validates shapes and dtypes of the inputs; returns the number of steps and the batch size.

    Raises:
      ValueError: there is no array, or a shape is wrong.
      TypeError: no array is floating.
    """
    owner, leaves = inputs.owner, jax.tree.leaves(inputs.xs)
    if not leaves:
        raise ValueError(f"{owner}: xs must hold at least one array [time, batch, ...], got none")
    for leaf in leaves:
        if leaf.ndim < 2 or leaf.shape[:2] != leaves[0].shape[:2]:
            raise ValueError(
                f"{owner}: every array of xs must have shape (time, batch, ...), with the same "
                f"time and batch, got {checks.shorten([leaf.shape for leaf in leaves[:9]])}; pass "
                "a single sequence as xs[:, None]"
            )
    if not any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
        raise TypeError(
            f"{owner}: xs must be floating, got {leaves[0].dtype}; embed or one-hot tokens first"
        )
    if len(leaves) == 1 and leaves[0].ndim < 3:
        raise ValueError(
            f"{owner}: xs must have shape (time, batch, input), got {leaves[0].shape}; pass a "
            "single sequence as xs[:, None]"
        )
    return leaves[0].shape[:2]


def _validate_masks(
    inputs: SequenceInputs, steps: int, batch: int
) -> tuple[jax.Array | None, jax.Array | None, jax.Array | None]:
    """Validates the masks, and returns the fields `lengths`, `valid` and `resets` of `Masks`."""
    lengths, valid, resets = inputs.lengths, None, inputs.resets
    if lengths is not None:
        lengths = _validate_lengths(inputs.owner, lengths, steps, batch)
        valid = masking.valid_steps(lengths, steps)
    if inputs.mask is not None:
        mask = _validate_bools(inputs.owner, "mask", inputs.mask, steps, batch)
        lengths, valid = None, mask if valid is None else mask & valid
    if resets is not None:
        resets = _validate_bools(inputs.owner, "resets", resets, steps, batch)
        resets = resets if valid is None else resets & valid
    return lengths, valid, resets


def _check_lengths(inputs: SequenceInputs) -> None:
    """Raises ValueError unless lengths are in [0, T]; does nothing if their values are unknown.

    Lengths of a wrong shape or dtype are not validated here, but in `canonicalize`.
    """
    lengths, leaves = inputs.lengths, jax.tree.leaves(inputs.xs)
    is_array = isinstance(lengths, np.ndarray | jax.Array) and not isinstance(lengths, Tracer)
    if not is_array or not leaves or jnp.ndim(leaves[0]) < 2:
        return
    if isinstance(lengths, jax.Array) and not lengths.is_fully_addressable:
        return
    steps = jnp.shape(leaves[0])[0]
    if lengths.ndim != 1 or not jnp.issubdtype(lengths.dtype, jnp.integer) or is_symbolic(steps):
        return
    values = np.asarray(lengths)
    invalid = (values < 0) | (values > steps)
    if invalid.any():
        index = int(invalid.argmax())
        raise ValueError(
            f"{inputs.owner}: lengths must be from 0 to T = {steps}, got {values[index]} at index "
            f"{index}"
        )


def _validate_lengths(owner: str, lengths: jax.Array, steps: int, batch: int) -> jax.Array:
    if lengths.shape != (batch,):
        raise ValueError(
            f"{owner}: lengths must have shape (batch,) = ({batch},), got {lengths.shape}"
        )
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(
            f"{owner}: lengths must be ints, the number of valid steps, got {lengths.dtype}"
        )
    if is_symbolic(steps):
        return jnp.clip(lengths.astype(jnp.int32), 0, jnp.asarray(steps, jnp.int32))
    max_length = min(steps, jnp.iinfo(lengths.dtype).max)
    # Lengths are clipped before the cast, since int64 lengths may overflow int32.
    return jnp.clip(lengths, 0, max_length).astype(jnp.int32)


def _validate_bools(owner: str, name: str, value: jax.Array, steps: int, batch: int) -> jax.Array:
    if value.shape != (steps, batch):
        raise ValueError(
            f"{owner}: {name} must have shape (time, batch) = ({steps}, {batch}), got {value.shape}"
        )
    if value.dtype != jnp.bool_:
        raise TypeError(f"{owner}: {name} must be bool, got {value.dtype}; write {name} != 0")
    return value


def cast_like(subject: str, source: str, tree: Any, like: Any) -> Any:
    """Validates a tree that the user passed, and casts it to the dtypes of `like`.

    Args:
      subject: the function and its argument, for error messages.
      source: where `like` comes from, for error messages.
      tree: the tree that the user passed.
      like: a tree with the expected structure, shapes and dtypes.

    Raises:
      ValueError: the shapes differ.
      TypeError: the structures differ, or dtypes differ in more than precision.
    """
    check_structure(subject, source, tree, like)
    tree = jax.tree.map(jnp.asarray, tree)
    both = jax.tree.leaves(like), jax.tree.leaves(tree)
    expected, got = ([leaf.shape for leaf in leaves] for leaves in both)
    if expected != got:
        expected, got = checks.shorten(expected), checks.shorten(got)
        raise ValueError(f"{subject} must have leaves of shapes {expected}, got {got}")
    if any(dtype_kind(a) != dtype_kind(leaf) for leaf, a in zip(*both, strict=True)):
        expected, got = (checks.shorten([leaf.dtype.name for leaf in leaves]) for leaves in both)
        raise TypeError(f"{subject} must have leaves of dtypes {expected}, got {got}")
    return jax.tree.map(lambda a, leaf: a.astype(leaf.dtype), tree, like)
