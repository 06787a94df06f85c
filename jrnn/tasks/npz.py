"""Reads and validates the arrays of an .npz file."""

import zipfile
from collections.abc import Sequence

import numpy as np

from jrnn import checks
from jrnn.tasks import common, labels

_NAMES = ("xs", "ys", "lengths")
_INT32_MAX = np.iinfo(np.int32).max


class _InvalidArrays(ValueError):
    """Raised if an .npz file is intact, but has missing, unknown or non-numeric arrays."""


def read(
    path: str, *, owner: str = "Arrays", required: Sequence[str] = ("xs", "ys")
) -> dict[str, np.ndarray]:
    """Reads the arrays `xs`, `ys` and `lengths`, without validation of their values.

    Args:
      path: path of the file.
      owner: the beginning of error messages.
      required: names of the arrays that the file must have; it may have the others.

    Raises:
      FileNotFoundError: the path is not a regular file.
      ValueError: the file is not an .npz file, is corrupted, or has missing, unknown or non-numeric
        arrays.
    """
    file = common.find_file(owner, path)
    if not zipfile.is_zipfile(file):
        is_table = file.suffix.lower() in (".csv", ".tsv")
        hint = "train on a table with configs/table.py" if is_table else ""
        raise ValueError(
            f"{owner}: {path!r} must be an .npz file, got another or a truncated file; "
            f"{hint or 'write it with np.savez(path, xs=xs, ys=ys)'}"
        )
    try:
        with np.load(file, allow_pickle=False) as archive:
            _check_names(owner, path, archive.files, required)
            arrays = {name: _load_array(owner, archive, name) for name in archive.files}
    except (_InvalidArrays, OSError, MemoryError):
        raise
    except Exception as error:  # corrupted bytes may raise any exception
        raise ValueError(f"{owner}: {path!r} is corrupted ({error}); write it again") from error
    return arrays


def check_inputs(xs: np.ndarray) -> np.ndarray:
    """Returns the inputs; raises unless their shape and dtype are those of features or tokens."""
    if xs.ndim == 3 and xs.dtype.kind not in "biuf":
        raise TypeError(f"Arrays: xs must contain real numbers, got dtype {xs.dtype}")
    if xs.ndim == 2 and xs.dtype.kind not in "iu":
        raise TypeError(
            f"Arrays: xs of shape [N, T] must be int tokens, got dtype {xs.dtype}; for one "
            "real-valued channel save xs[:, :, None]"
        )
    if xs.ndim not in (2, 3) or 0 in xs.shape:
        raise ValueError(
            "Arrays: xs must have shape [N, T, input], or [N, T] for tokens, without empty axes, "
            f"got {xs.shape}"
        )
    return xs


def check_lengths(lengths: np.ndarray | None, examples: int, steps: int) -> np.ndarray | None:
    """Returns the lengths `[N]` as int32, or None; raises unless all are in 1..T."""
    if lengths is None:
        return None
    if lengths.dtype.kind not in "iu":
        raise TypeError(f"Arrays: lengths must be ints, got dtype {lengths.dtype}")
    if lengths.shape != (examples,):
        raise ValueError(
            f"Arrays: lengths must have shape [N] = ({examples},), since xs has {examples} "
            f"examples, got {lengths.shape}"
        )
    bad = np.flatnonzero((lengths < 1) | (lengths > steps))
    if len(bad):
        raise ValueError(
            f"Arrays: lengths must be in 1..T = 1..{steps}, got {lengths[bad[0]]} at example "
            f"{bad[0]}"
        )
    return lengths.astype(np.int32)


def check_labels(ys: np.ndarray, kind: str, mask: np.ndarray) -> np.ndarray:
    """Returns the labels or one-hot rows; raises unless `ys` are either of them.

    Args:
      ys: ints, bools, texts or one-hot rows.
      kind: the option `kind`, for messages.
      mask: `[N]` or `[N, T]`, False for padding; its shape is that of the labels.
    """
    if labels.from_one_hot(ys, mask.shape, mask) is not None:
        return ys
    if ys.dtype.kind == "f" and ys.shape == mask.shape:
        raise TypeError(
            f"Arrays: kind={kind!r} needs int class labels in ys, got dtype {ys.dtype}; save "
            "ys.astype(int), or use a regression kind"
        )
    if ys.dtype.kind not in "biuUf":
        raise TypeError(
            f"Arrays: kind={kind!r} needs class labels in ys, ints or texts, got dtype {ys.dtype}; "
            "save ys.astype(str)"
        )
    _check_shape(ys, kind, mask.shape, (0,))
    return ys if ys.dtype.kind != "b" else ys.astype(np.int32)


def check_values(ys: np.ndarray, kind: str, leading_shape: tuple[int, ...]) -> np.ndarray:
    """Returns the targets `[*leading_shape, K]`; raises unless they are floats of a valid shape.

    Targets of shape `leading_shape` get a last axis with K = 1.
    """
    if ys.dtype.kind != "f":
        raise TypeError(
            f"Arrays: kind={kind!r} needs float values in ys, got dtype {ys.dtype}; save "
            "ys.astype('float32'), or use a classification kind"
        )
    _check_shape(ys, kind, leading_shape, (0, 1))
    return ys if ys.ndim > len(leading_shape) else ys[..., None]


def to_ids(name: str, array: np.ndarray) -> np.ndarray:
    """Converts the array to int32; raises unless all entries are from 0 to 2³¹ - 1."""
    bad = np.argwhere((array < 0) | (array > _INT32_MAX))
    if len(bad):
        raise ValueError(
            f"Arrays: {name} must contain ids from 0 to {_INT32_MAX}, got "
            f"{_describe_entry(name, array, bad)}; number the ids from 0"
        )
    return array.astype(np.int32)


def to_finite(name: str, array: np.ndarray, *, allow_nan: bool = False) -> np.ndarray:
    """Converts the array to float64; raises unless all entries are finite in float32.

    `allow_nan` says whether entries may also be NaN.
    """
    with np.errstate(over="ignore"):
        is_valid = np.isfinite(array.astype(np.float32))
    bad = np.argwhere(~(is_valid | np.isnan(array)) if allow_nan else ~is_valid)
    if len(bad):
        raise ValueError(
            f"Arrays: {name} must be finite in float32, got "
            f"{_describe_entry(name, array, bad)}; replace such entries, or save lengths if they "
            "are padding"
        )
    return array.astype(np.float64)


def _check_names(owner: str, path: str, names: list[str], required: Sequence[str]) -> None:
    for name in required:
        if name not in names:
            arrays = "the arrays" if len(required) > 1 else "the array"
            raise _InvalidArrays(
                f"{owner}: {path!r} must contain {arrays} {' and '.join(required)}, got "
                f"{', '.join(names) or 'none'}"
            )
    for name in names:
        if name not in _NAMES:
            raise _InvalidArrays(
                f"{owner}: {path!r} may only contain the arrays {', '.join(_NAMES)}, got {name!r}"
                f"{checks.suggestion(name, _NAMES)}"
            )


def _load_array(owner: str, archive: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    try:
        return np.asarray(archive[name])
    except ValueError as error:
        raise _InvalidArrays(
            f"{owner}: {name} must be a numeric array, got an array that NumPy cannot load: "
            f"{error}; if the examples differ in length, pad them and save their lengths too"
        ) from error


def _check_shape(
    ys: np.ndarray, kind: str, leading_shape: tuple[int, ...], extra_axes: tuple[int, ...]
) -> None:
    """Raises ValueError unless `ys` has the shape `leading_shape`, with further axes.

    Args:
      ys: the targets.
      kind: the option `kind`, for the message.
      leading_shape: `(N,)` or `(N, T)`.
      extra_axes: the valid numbers of further axes: 0, or 1 for an axis of K values.
    """
    expected = [
        f"[{', '.join(['N', 'T'][: len(leading_shape)] + ['K'][:extra])}]" for extra in extra_axes
    ]
    sizes = ", ".join(f"{axis} = {size}" for axis, size in zip("NT", leading_shape, strict=False))
    leading_axes = len(leading_shape)
    is_valid = ys.ndim - leading_axes in extra_axes and ys.shape[:leading_axes] == leading_shape
    if not is_valid or 0 in ys.shape:
        raise ValueError(
            f"Arrays: kind={kind!r} needs ys of shape {' or '.join(expected)} with {sizes} as in xs"
            f", got {ys.shape}"
        )


def _describe_entry(name: str, array: np.ndarray, indices: np.ndarray) -> str:
    index = tuple(int(i) for i in indices[0])
    return f"{array[index]} at {name}[{', '.join(map(str, index))}]"
