"""The cause of a loss that is NaN or infinite, as far as the data show it."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jrnn import checks
from jrnn.dtypes import is_prng_key
from jrnn.nn import Classifier, SequenceToSequence


def explain_non_finite(model: Any, examples: Mapping[str, Any]) -> str:
    """Returns the end of a message with the first invalid entry of the data; "" if there is none.

    Args:
      model: the model. If it is a `Classifier` or `SequenceToSequence`, ints that are not classes
        of its outputs are reported too.
      examples: pytrees of arrays, by the names of the arguments of `fit`. Other leaves are ignored.
    """
    arrays = {
        f"{name}{jax.tree_util.keystr(path)}": np.asarray(leaf)
        for name, tree in examples.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if isinstance(leaf, np.ndarray | jax.Array) and not is_prng_key(leaf)
    }
    for path, array in arrays.items():
        is_float = jax.numpy.issubdtype(array.dtype, np.floating)
        if is_float and (bad := ~np.isfinite(array.astype(np.float32))).any():
            index = checks.first_index(bad)
            return (
                f"{path} must be finite in float32, got {array[index]} at index {index}; replace "
                "or remove such values"
            )
    return _explain_labels(model, arrays)


def _explain_labels(model: Any, arrays: Mapping[str, np.ndarray]) -> str:
    """Returns the first int that is not a class of the outputs of the model."""
    if not isinstance(model, Classifier | SequenceToSequence):
        return ""
    size: int | None = getattr(model.head, "out_features", None)
    if size is None:  # the head is not a linear layer
        return ""
    ints = {path: array for path, array in arrays.items() if array.dtype.kind in "iu"}
    for path, array in reversed(ints.items()):  # labels usually follow tokens
        if (bad := (array < 0) | (array >= size)).any():
            index = checks.first_index(bad)
            return (
                f"If {path} has labels, they must be in 0..{size - 1} for the {size} outputs of "
                f"the model, got {array[index]} at index {index}; encode them so, or set "
                "output_size of the model; otherwise try a lower learning rate"
            )
    return ""
