"""Examples as users pass them: validated, and converted to pytrees of arrays."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from jrnn import checks

NOT_NUMBERS = "OSUMm"
"""Kinds of NumPy dtypes that are not numbers: objects, texts, dates and durations."""


def is_iterable_of_batches(data: Any) -> bool:
    """Returns whether `data` is a list or another iterable of batches, not a pytree of arrays."""
    is_pytree = data is None or isinstance(data, tuple | dict) or _is_array_like(data)
    return not is_pytree and isinstance(data, Iterable)


def to_arrays(name: str, examples: Any) -> Any:
    """Converts the leaves of a pytree to arrays.

    NumPy and JAX arrays are returned unchanged. Nested lists of numbers, and tensors and tables of
    other libraries that NumPy can convert, become NumPy arrays.

    Args:
      name: the name of the argument of `fit`, for messages.
      examples: the pytree.

    Raises:
      TypeError: a leaf is not an array, or its entries are not numbers.
      ValueError: nested lists have unequal lengths.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _to_array(f"{name}{jax.tree_util.keystr(path)}", leaf),
        examples,
        is_leaf=_is_list_of_scalars,
    )


def check_examples(name: str, examples: Any, advice: str = "") -> None:
    """Raises ValueError unless all arrays have the same first axis, with at least one example.

    Args:
      name: the name of the examples in the message.
      examples: a pytree of arrays.
      advice: the end of the message.
    """
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(examples)]
    if not shapes or () in shapes or len({shape[0] for shape in shapes}) > 1:
        got = f"shapes {checks.shorten(', '.join(map(str, shapes)))}" if shapes else "no arrays"
        raise ValueError(
            f"fit: the arrays of {name} must have the same first axis, the examples, got {got}"
            f"{advice}"
        )
    if shapes[0][0] == 0:
        raise ValueError(f"fit: {name} must have at least one example, got shape {shapes[0]}")


def check_list(name: str, batches: Any) -> None:
    """Raises ValueError for a list of arrays of different kinds, which cannot be batches.

    Args:
      name: the name of the argument of `fit`.
      batches: an iterable of batches.
    """
    if not isinstance(batches, list) or not batches or not all(map(_is_array_like, batches)):
        return
    arrays = [np.asarray(array) for array in batches[:9]]
    if len({(array.shape[1:], array.dtype) for array in arrays}) > 1:
        shapes = checks.shorten(", ".join(str(array.shape) for array in arrays))
        raise ValueError(
            f"fit: {name} must be a tuple of arrays such as (x, y), or a list of batches of the "
            f"same structure, got a list of arrays of shapes {shapes}; pass the tuple"
        )


def to_batch(name: str, batch: Any) -> Any:
    """Returns a batch of an iterable as a pytree of arrays.

    Args:
      name: the name of the argument of `fit`.
      batch: a pytree of arrays.

    Raises:
      TypeError, ValueError: see `to_arrays` and `check_examples`.
    """
    batch = to_arrays(f"{name} batch", batch)
    check_examples(
        f"a batch of {name}",
        batch,
        "; each entry of a list or another iterable is a batch, so pass arrays as a tuple (x, y)",
    )
    return batch


def materialize_batches(examples: Any, name: str = "test") -> Any:
    """Converts an iterable of batches to a list of pytrees of arrays, and other data to arrays.

    Args:
      examples: a pytree of arrays, an iterable of batches, or None, which is returned.
      name: the name of the argument of `fit`.

    Raises:
      TypeError, ValueError: see `to_arrays`, `check_examples` and `check_list`.
    """
    if examples is None:
        return None
    if is_iterable_of_batches(examples):
        check_list(name, examples)
        batches = [to_batch(name, batch) for batch in examples]
        if not batches:
            raise ValueError(f"fit: {name} must have at least one batch, got none")
        return batches
    examples = to_arrays(name, examples)
    check_examples(name, examples)
    return examples


def describe_specs(examples: Any) -> str:
    """Returns dtype and shape of all arrays of a pytree, such as "float32[8, 3], int32[8]"."""
    specs = (f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(examples))
    return checks.shorten(", ".join(specs))


def _to_array(path: str, leaf: Any) -> Any:
    if isinstance(leaf, jax.Array | bool | int | float):  # `check_examples` refuses scalars
        return leaf
    if not isinstance(leaf, list) and not _is_array_like(leaf):
        raise TypeError(
            f"fit: {path} must be an array, got {checks.describe(leaf)}; pass arrays such as the "
            "tuple (x, y), or an iterable of batches, such as a DataLoader of a PyTorch Dataset"
        )
    try:
        array = leaf if isinstance(leaf, np.ndarray) else np.asarray(leaf)
    except Exception as error:  # other libraries raise errors of any class
        got = "lists of unequal lengths" if isinstance(leaf, list) else checks.describe(leaf)
        raise TypeError(
            f"fit: {path} must be an array, or numbers that NumPy can convert, got {got}; pad "
            "sequences to one length, or convert tensors by .detach().cpu().numpy()"
        ) from error
    if array.dtype.kind in NOT_NUMBERS:
        raise TypeError(
            f"fit: {path} must contain numbers, got dtype {array.dtype}; encode classes as ints, "
            "such as by np.unique(y, return_inverse=True)[1], and pad sequences to one length"
        )
    return array


def _is_array_like(value: Any) -> bool:
    """Returns whether a value is an array, or NumPy can convert it: a tensor, a series, a table."""
    return not isinstance(value, type) and callable(getattr(value, "__array__", None))


def _is_list_of_scalars(value: Any) -> bool:
    """Returns whether a value is a list of numbers or texts, which may be nested."""
    entry = value
    while type(entry) in (list, tuple) and entry:
        entry = entry[0]
    is_scalar = isinstance(entry, bool | int | float | str | np.generic)
    return type(value) is list and is_scalar
