"""Whether data are what their task says: looked at before anything is trained on them."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jrnn.tasks.task import Data, Split, Task

_MOST = float(np.finfo(np.float32).max)


def load(task: Task) -> Data:
    """The data of a task, if all of them can be trained on.

    Raises:
      TypeError: as for `check`.
      ValueError: as for `check`; or an entry that counts is NaN, infinite or beyond float32, and
        where it is.
    """
    data = task.load()
    check(data)
    for name, split in _splits(data):
        _finite(f"{name}.xs", split.xs, split, per_step=True)
        _finite(f"{name}.ys", split.ys, split, per_step=data.target.endswith("per_step"))
    return data


def check(data: Data) -> None:
    """Refuses arrays that do not fit one another, or what the data say of themselves.

    What lies beyond the length of an example is not looked at.

    Raises:
      TypeError: what should be an array is none, or holds other things than it should.
      ValueError: a split is empty, shapes do not fit, or a label, token or length is out of range.
    """
    for name, split in _splits(data):
        _check_kinds(name, split, data)
        _check_shapes(name, split, data)
        if split.lengths is not None:
            _in_range(f"{name}.lengths", split.lengths, split.xs.shape[1], None, "T")
        if data.tokens:
            _in_range(f"{name}.xs", split.xs, data.input_size - 1, _valid(split), "input_size - 1")
        if data.target.startswith("class"):
            valid = _valid(split) if data.target == "class_per_step" else None
            _in_range(f"{name}.ys", split.ys, data.output_size - 1, valid, "output_size - 1")


def _splits(data: Data) -> Iterator[tuple[str, Split]]:
    for name in ("train", "validation", "test"):
        yield name, getattr(data, name)


def _check_kinds(name: str, split: Split, data: Data) -> None:
    labels = data.target.startswith("class")
    wanted = {
        "xs": ("iu", "tokens, which are ints") if data.tokens else ("biuf", "real numbers"),
        "ys": ("iu", "labels, which are ints") if labels else ("biuf", "real numbers"),
        "lengths": ("iu", "ints"),
        "scored": ("b", "bools"),
        "resets": ("b", "bools"),
    }
    for field, (kinds, words) in wanted.items():
        array: Any = getattr(split, field)
        if array is None and field not in ("xs", "ys"):
            continue
        if not isinstance(array, np.ndarray | jax.Array):
            raise TypeError(
                f"data: {name}.{field} must be an array of {words}, got {type(array).__name__}"
            )
        if array.dtype == object:
            raise TypeError(
                f"data: {name}.{field} must be one array of {words}, got objects; if the examples "
                "differ in length, pad them to one and give their lengths"
            )
        if array.dtype.kind not in kinds:
            raise TypeError(f"data: {name}.{field} must hold {words}, got dtype {array.dtype}")


def _check_shapes(name: str, split: Split, data: Data) -> None:
    xs = split.xs.shape
    if not xs or not xs[0]:
        raise ValueError(
            f"data: the {name} split must have at least one example, got xs of shape {xs}"
        )
    axes = "[N, T] of tokens" if data.tokens else "[N, T, input]"
    if (len(xs) != 2) if data.tokens else (len(xs) < 3) or xs[1] == 0:
        raise ValueError(f"data: {name}.xs must have shape {axes} with T of at least 1, got {xs}")
    if not data.tokens and len(xs) == 3 and xs[2] != data.input_size:
        raise ValueError(
            f"data: {name}.xs must have shape {axes} with input = input_size = {data.input_size}, "
            f"got {xs}"
        )
    values = (data.output_size,) if data.target.startswith("value") else ()
    steps = xs[:2] if data.target.endswith("per_step") else xs[:1]
    wanted = {"ys": steps + values, "lengths": xs[:1], "scored": xs[:2], "resets": xs[:2]}
    for field, shape in wanted.items():
        array = getattr(split, field)
        if array is not None and array.shape != shape:
            raise ValueError(
                f"data: {name}.{field} must have shape {shape} for xs of shape {xs} and target "
                f"{data.target!r}, got {array.shape}"
            )


def _valid(split: Split) -> np.ndarray | None:
    """The steps `[N, T]` that count, or None if all do."""
    if split.lengths is None:
        return None
    return np.arange(split.xs.shape[1]) < np.asarray(split.lengths)[:, None]


def _in_range(name: str, array: Any, most: int, valid: np.ndarray | None, words: str) -> None:
    """Refuses ints outside 0..most."""
    array = np.asarray(array)
    if array.min() >= 0 and array.max() <= most:
        return
    bad = (array < 0) | (array > most)
    bad = bad if valid is None else bad & valid
    _refuse(name, array, bad, f"lie in 0..{words} = 0..{most}", per_step=True)


def _finite(name: str, array: Any, split: Split, *, per_step: bool) -> None:
    """Refuses numbers that are not finite in float32."""
    array = np.asarray(array)
    # NaN is handed on by min and max, so that no array of bools is made where all is well.
    fits = array.dtype.kind != "f" or not array.size
    if fits or (-_MOST <= array.min() and array.max() <= _MOST):
        return
    bad = ~(np.abs(array) <= _MOST)
    valid = _valid(split) if per_step else None
    if valid is not None:
        bad &= valid.reshape(valid.shape + (1,) * (array.ndim - 2))
    _refuse(name, array, bad, "be finite and within float32", per_step=per_step)


def _refuse(name: str, array: np.ndarray, bad: np.ndarray, must: str, *, per_step: bool) -> None:
    """Raises if there is a bad entry, and says where the first is."""
    if not bad.any():
        return
    place = np.unravel_index(int(bad.argmax()), bad.shape)
    axes = ["example", "step", "channel"] if per_step else ["example", "channel"]
    where = ", ".join(f"{axis} {index}" for axis, index in zip(axes, place, strict=False))
    raise ValueError(f"data: {name} must {must}, got {array[place]} at {where}")
