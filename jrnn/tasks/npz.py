"""Reads and checks the arrays of an .npz file."""

import zipfile
import zlib

import numpy as np

from jrnn import checks
from jrnn.tasks import common

_NAMES = ("xs", "ys", "lengths")
_INT32_MAX = np.iinfo(np.int32).max


def read(path: str) -> dict[str, np.ndarray]:
    """Reads the arrays `xs`, `ys` and optionally `lengths`, without checks of their values."""
    file = common.find_file("Arrays", path)
    if not zipfile.is_zipfile(file):
        raise ValueError(
            f"Arrays: {path!r} must be an .npz file, got another or a truncated file; write "
            "it with np.savez(path, xs=xs, ys=ys)"
        )
    try:
        with np.load(file, allow_pickle=False) as archive:
            _check_names(path, archive.files)
            arrays = {name: _load_array(archive, name) for name in archive.files}
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"Arrays: {path!r} is damaged ({error}); write it again") from error
    return arrays


def check_inputs(xs: np.ndarray) -> np.ndarray:
    """Returns the inputs; raises unless they have the shape and dtype of features or tokens."""
    if xs.ndim == 3 and xs.dtype.kind not in "biuf":
        raise TypeError(f"Arrays: xs must be real numbers, got dtype {xs.dtype}")
    if xs.ndim == 2 and xs.dtype.kind not in "iu":
        raise TypeError(
            f"Arrays: xs of shape [N, T] must be tokens, which are ints, got {xs.dtype}; for one "
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
            f"Arrays: lengths must have shape [N] = ({examples},) as xs has {examples} examples, "
            f"got {lengths.shape}"
        )
    bad = np.flatnonzero((lengths < 1) | (lengths > steps))
    if len(bad):
        raise ValueError(
            f"Arrays: lengths must be in 1..T = 1..{steps}, got {lengths[bad[0]]} at example "
            f"{bad[0]}"
        )
    return lengths.astype(np.int32)


def check_labels(ys: np.ndarray, kind: str, leading: tuple[int, ...]) -> np.ndarray:
    """Returns the targets; raises unless they are ints of the shape `leading`."""
    if ys.dtype.kind not in "iu":
        raise TypeError(
            f"Arrays: kind={kind!r} needs ys of ints, the class labels, got dtype {ys.dtype}; save "
            "ys.astype(int), or choose a kind of regression"
        )
    _check_shape(ys, kind, leading, (0,))
    return ys


def check_dense(ys: np.ndarray) -> np.ndarray:
    """Returns the labels `[N]`; raises unless all are below N, which excludes large gaps."""
    bad = np.argwhere(ys >= len(ys))
    if len(bad):
        raise ValueError(
            f"Arrays: ys must be labels below N = {len(ys)}, since there are at most as many "
            f"classes as examples, got {_describe_entry('ys', ys, bad)}; number the classes from 0 "
            "without gaps"
        )
    return ys


def check_values(ys: np.ndarray, kind: str, leading: tuple[int, ...]) -> np.ndarray:
    """Returns the targets `[*leading, K]`; raises unless they are floats of a valid shape.

    Targets of the shape `leading` get a last axis with K = 1.
    """
    if ys.dtype.kind != "f":
        raise TypeError(
            f"Arrays: kind={kind!r} needs ys of floats, got dtype {ys.dtype}; save "
            "ys.astype('float32'), or choose a kind of classification"
        )
    _check_shape(ys, kind, leading, (0, 1))
    return ys if ys.ndim > len(leading) else ys[..., None]


def to_ids(name: str, array: np.ndarray) -> np.ndarray:
    """Converts the array to int32; raises unless all entries are in 0..2³¹ - 1."""
    bad = np.argwhere((array < 0) | (array > _INT32_MAX))
    if len(bad):
        raise ValueError(
            f"Arrays: {name} must be ids from 0 to {_INT32_MAX}, got "
            f"{_describe_entry(name, array, bad)}; number the ids from 0"
        )
    return array.astype(np.int32)


def to_finite(name: str, array: np.ndarray) -> np.ndarray:
    """Converts the array to float64; raises unless all entries are finite in float32."""
    with np.errstate(over="ignore"):
        bad = np.argwhere(~np.isfinite(array.astype(np.float32)))
    if len(bad):
        raise ValueError(
            f"Arrays: {name} must be finite in float32, got "
            f"{_describe_entry(name, array, bad)}; remove or fill such entries, or save lengths if "
            "they are padding"
        )
    return array.astype(np.float64)


def _check_names(path: str, names: list[str]) -> None:
    for name in ("xs", "ys"):
        if name not in names:
            raise ValueError(
                f"Arrays: {path!r} must have the arrays xs and ys, got {', '.join(names) or 'none'}"
            )
    for name in names:
        if name not in _NAMES:
            raise ValueError(
                f"Arrays: {path!r} may only have the arrays {', '.join(_NAMES)}, got {name!r}"
                f"{checks.suggestion(name, _NAMES)}"
            )


def _load_array(archive: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    try:
        return np.asarray(archive[name])
    except ValueError as error:
        raise ValueError(
            f"Arrays: {name} must be one array of numbers, got an array that NumPy cannot load: "
            f"{error}; if the examples differ in length, pad them and save their lengths too"
        ) from error


def _check_shape(
    ys: np.ndarray, kind: str, leading: tuple[int, ...], extra_axes: tuple[int, ...]
) -> None:
    expected = [
        f"[{', '.join(['N', 'T'][: len(leading)] + ['K'][:extra])}]" for extra in extra_axes
    ]
    sizes = ", ".join(f"{axis} = {size}" for axis, size in zip("NT", leading, strict=False))
    matches = ys.ndim - len(leading) in extra_axes and ys.shape[: len(leading)] == leading
    if not matches or 0 in ys.shape:
        raise ValueError(
            f"Arrays: kind={kind!r} needs ys of shape {' or '.join(expected)} with {sizes} as in xs"
            f", got {ys.shape}"
        )


def _describe_entry(name: str, array: np.ndarray, indices: np.ndarray) -> str:
    index = tuple(int(i) for i in indices[0])
    return f"{array[index]} at {name}[{', '.join(map(str, index))}]"
