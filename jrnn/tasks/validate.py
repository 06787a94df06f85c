"""Validates the data of a task before training."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jrnn import checks
from jrnn.tasks.labels import IGNORED_LABEL
from jrnn.tasks.task import Data, DataSpec, Split, Task

_FLOAT32_MAX = float(np.finfo(np.float32).max)


def load(task: Task, like: DataSpec | None = None) -> Data:
    """Loads and validates the data of a task.

    Args:
      task: the task.
      like: the properties of other data whose encoding is used; see `Task.load_like`. None means
        the encoding of the data themselves.

    Errors of `task.load`, such as FileNotFoundError, are raised unchanged.

    Raises:
      TypeError: as for `check_arrays`.
      ValueError: as for `check_arrays`; also if a valid entry is infinite, too large for float32,
        or, in `xs`, NaN.
    """
    data = task.load() if like is None else task.load_like(like)
    check_arrays(data)
    check_finite(data)
    return data


def check_finite(data: Data) -> None:
    """Raises ValueError if a valid entry is infinite, too large for float32, or, in `xs`, NaN."""
    for name, split in _named_splits(data):
        _check_finite(f"{name}.xs", split.xs, split, per_step=True)
        _check_finite(f"{name}.ys", split.ys, split, per_step=data.per_step, allow_nan=True)


def check_arrays(data: Data) -> None:
    """Raises unless the arrays are consistent with each other and with the attributes of `data`.

    Entries on padding, after the valid steps of an example, are ignored.

    Raises:
      TypeError: a field is not an array, or has the wrong dtype.
      ValueError: a split is empty or has no targets, a shape is wrong, a label, token or length is
        out of range, there is a `metric_mask` or `resets` without a target at each step, or the
        mask of an evaluated split selects no target.
    """
    for name, split in _named_splits(data):
        _check_dtypes(name, split, data)
        _check_shapes(name, split, data)
        if split.lengths is not None:
            _check_range(f"{name}.lengths", split.lengths, split.xs.shape[1], None, "T")
        if data.has_tokens:
            _check_range(
                f"{name}.xs", split.xs, data.input_size - 1, _valid_steps(split), "input_size - 1"
            )
        valid = _valid_steps(split) if data.per_step else None
        if data.has_classes:
            used = np.asarray(split.ys) != IGNORED_LABEL
            used = used if valid is None else used & valid
            _check_range(f"{name}.ys", split.ys, data.output_size - 1, used, "output_size - 1")
        else:
            used = ~np.isnan(np.asarray(split.ys))
            used = used if valid is None else used & valid[..., None]
        if not used.any():
            raise ValueError(
                f"data: {name}.ys must have a target that is neither {IGNORED_LABEL} nor NaN, got "
                "none; add targets, or use other splits"
            )
        if split.metric_mask is not None and name != "train":
            mask = np.asarray(split.metric_mask)
            if not used[mask].any():
                raise ValueError(
                    f"data: {name}.metric_mask must select a step with a target, got none; without "
                    "one there is no metric"
                )


def _named_splits(data: Data) -> Iterator[tuple[str, Split]]:
    for name in ("train", "validation", "test"):
        yield name, getattr(data, name)


def _check_dtypes(name: str, split: Split, data: Data) -> None:
    has_labels = data.target.startswith("class")
    expected = {
        "xs": ("iu", "int tokens") if data.has_tokens else ("biuf", "real numbers"),
        "ys": ("iu", "int labels") if has_labels else ("biuf", "real numbers"),
        "lengths": ("iu", "ints"),
        "metric_mask": ("b", "bools"),
        "resets": ("b", "bools"),
    }
    for field, (kinds, content) in expected.items():
        array: Any = getattr(split, field)
        if array is None and field not in ("xs", "ys"):
            continue
        if not isinstance(array, np.ndarray | jax.Array):
            raise TypeError(
                f"data: {name}.{field} must be an array of {content}, got {type(array).__name__}"
            )
        if array.dtype == object:
            raise TypeError(
                f"data: {name}.{field} must be an array of {content}, got objects; if the "
                "examples differ in length, pad them and set lengths"
            )
        if array.dtype.kind not in kinds:
            raise TypeError(f"data: {name}.{field} must contain {content}, got dtype {array.dtype}")


def _check_shapes(name: str, split: Split, data: Data) -> None:
    xs = split.xs.shape
    if not xs or not xs[0]:
        raise ValueError(
            f"data: the {name} split must have at least one example, got xs of shape {xs}"
        )
    axes = "[N, T] of tokens" if data.has_tokens else "[N, T, input]"
    if (len(xs) != 2 if data.has_tokens else len(xs) < 3) or xs[1] == 0:
        raise ValueError(f"data: {name}.xs must have shape {axes} with T of at least 1, got {xs}")
    if not data.has_tokens and len(xs) == 3 and xs[2] != data.input_size:
        raise ValueError(
            f"data: {name}.xs must have shape {axes} with input = input_size = {data.input_size}, "
            f"got {xs}"
        )
    for field in ("metric_mask", "resets"):
        if getattr(split, field) is not None and not data.target.endswith("per_step"):
            raise ValueError(
                f"data: {name}.{field} must be None without a target at each step, got target "
                f"{data.target!r}; remove {field}"
            )
    values = (data.output_size,) if data.target.startswith("value") else ()
    steps = xs[:2] if data.target.endswith("per_step") else xs[:1]
    expected = {"ys": steps + values, "lengths": xs[:1], "metric_mask": xs[:2], "resets": xs[:2]}
    for field, shape in expected.items():
        array = getattr(split, field)
        if array is not None and array.shape != shape:
            raise ValueError(
                f"data: {name}.{field} must have shape {shape} for xs of shape {xs} and target "
                f"{data.target!r}, got {array.shape}"
            )


def _valid_steps(split: Split) -> np.ndarray | None:
    """Returns a mask `[N, T]` of the valid steps, or None if all steps are valid."""
    if split.lengths is None:
        return None
    return np.arange(split.xs.shape[1]) < np.asarray(split.lengths)[:, None]


def _check_range(
    name: str, array: Any, maximum: int, valid: np.ndarray | None, description: str
) -> None:
    """Raises ValueError unless all valid ints are from 0 to `maximum`.

    Args:
      name: name of the array in the message.
      array: ints, `[N]` or `[N, T]`.
      maximum: the maximum.
      valid: mask of the valid entries; None means all.
      description: the expression for the maximum in the message, such as "input_size - 1".
    """
    array = np.asarray(array)
    if array.min() >= 0 and array.max() <= maximum:
        return
    bad = (array < 0) | (array > maximum)
    bad = bad if valid is None else bad & valid
    _raise_at_first(name, array, bad, f"be in 0..{description} = 0..{maximum}", per_step=True)


def _check_finite(
    name: str, array: Any, split: Split, *, per_step: bool, allow_nan: bool = False
) -> None:
    """Raises ValueError unless all valid entries are finite in float32, or NaN if `allow_nan`."""
    array = np.asarray(array)
    # min and max propagate NaN, so a mask is needed only for invalid data.
    is_finite = array.dtype.kind != "f" or not array.size
    if is_finite or (-_FLOAT32_MAX <= array.min() and array.max() <= _FLOAT32_MAX):
        return
    bad = ~(np.abs(array) <= _FLOAT32_MAX)
    if allow_nan:
        bad &= ~np.isnan(array)
    valid = _valid_steps(split) if per_step else None
    if valid is not None:
        bad &= valid.reshape(valid.shape + (1,) * (array.ndim - 2))
    _raise_at_first(name, array, bad, "be finite in float32", per_step=per_step)


def _raise_at_first(
    name: str, array: np.ndarray, bad: np.ndarray, requirement: str, *, per_step: bool
) -> None:
    """Raises ValueError if `bad` is True anywhere; the message has the first such index."""
    if not bad.any():
        return
    index = checks.first_index(bad)
    axes = ["example", "step", "channel"] if per_step else ["example", "channel"]
    where = ", ".join(f"{axis} {k}" for axis, k in zip(axes, index, strict=False))
    raise ValueError(f"data: {name} must {requirement}, got {array[index]} at {where}")
