"""The arrays of an .npz file, checked one by one before anything is made of them."""

import zipfile
import zlib

import numpy as np

from jrnn import checks
from jrnn.tasks import common

_NAMES = ("xs", "ys", "lengths")
_INT32_MAX = np.iinfo(np.int32).max


def read(path: str) -> dict[str, np.ndarray]:
    """The arrays `xs`, `ys` and perhaps `lengths` of the file, as they are."""
    file = common.existing_file("Arrays", path)
    if not zipfile.is_zipfile(file):
        raise ValueError(
            f"Arrays: {path!r} must be an .npz file, got something else or half of one; write "
            "it with np.savez(path, xs=xs, ys=ys)"
        )
    try:
        with np.load(file, allow_pickle=False) as archive:
            _refuse_names(path, archive.files)
            arrays = {name: _member(archive, name) for name in archive.files}
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"Arrays: {path!r} is damaged ({error}); write it again") from error
    return arrays


def inputs(xs: np.ndarray) -> np.ndarray:
    """The inputs, if they have the shape and type of features or of tokens."""
    if xs.ndim == 3 and xs.dtype.kind not in "biuf":
        raise TypeError(f"Arrays: xs must hold real numbers, got dtype {xs.dtype}")
    if xs.ndim == 2 and xs.dtype.kind not in "iu":
        raise TypeError(
            f"Arrays: xs of shape [N, T] must hold tokens, which are ints, got {xs.dtype}; for one "
            "real channel save xs[:, :, None]"
        )
    if xs.ndim not in (2, 3) or 0 in xs.shape:
        raise ValueError(
            "Arrays: xs must have shape [N, T, input], or [N, T] for tokens, none of them 0, got "
            f"{xs.shape}"
        )
    return xs


def sequence_lengths(lengths: np.ndarray | None, examples: int, steps: int) -> np.ndarray | None:
    """The lengths `[N]` int32, if there are any and each lies in 1..T."""
    if lengths is None:
        return None
    if lengths.dtype.kind not in "iu":
        raise TypeError(f"Arrays: lengths must hold ints, got dtype {lengths.dtype}")
    if lengths.shape != (examples,):
        raise ValueError(
            f"Arrays: lengths must have shape [N] = ({examples},) as xs has {examples} examples, "
            f"got {lengths.shape}"
        )
    bad = np.flatnonzero((lengths < 1) | (lengths > steps))
    if len(bad):
        raise ValueError(
            f"Arrays: lengths must lie in 1..T = 1..{steps}, got {lengths[bad[0]]} at example "
            f"{bad[0]}"
        )
    return lengths.astype(np.int32)


def labels(ys: np.ndarray, kind: str, leading: tuple[int, ...]) -> np.ndarray:
    """The targets, if they are class labels of the shape `leading`, `(N,)` or `(N, T)`."""
    if ys.dtype.kind not in "iu":
        raise TypeError(
            f"Arrays: kind={kind!r} needs ys of ints, the class labels, got dtype {ys.dtype}; save "
            "ys.astype(int), or choose a kind of regression"
        )
    _leading(ys, kind, leading, (0,))
    return ys


def dense(ys: np.ndarray) -> np.ndarray:
    """Labels `[N]`, if they may be numbered from 0 without large gaps: each lies below N."""
    bad = np.argwhere(ys >= len(ys))
    if len(bad):
        raise ValueError(
            f"Arrays: ys must hold labels below N = {len(ys)}, as there are no more classes than "
            f"examples, got {_entry('ys', ys, bad)}; number the classes from 0 without gaps"
        )
    return ys


def values(ys: np.ndarray, kind: str, leading: tuple[int, ...]) -> np.ndarray:
    """The targets `[*leading, K]`, if they are real; one of shape `leading` gets K = 1."""
    if ys.dtype.kind != "f":
        raise TypeError(
            f"Arrays: kind={kind!r} needs ys of floats, got dtype {ys.dtype}; save "
            "ys.astype('float32'), or choose a kind of classification"
        )
    _leading(ys, kind, leading, (0, 1))
    return ys if ys.ndim > len(leading) else ys[..., None]


def ids(name: str, array: np.ndarray) -> np.ndarray:
    """The array as int32, if all of it lies in 0..2³¹ - 1."""
    bad = np.argwhere((array < 0) | (array > _INT32_MAX))
    if len(bad):
        raise ValueError(
            f"Arrays: {name} must hold ids from 0 to {_INT32_MAX}, got {_entry(name, array, bad)}; "
            "number them from 0"
        )
    return array.astype(np.int32)


def finite(name: str, array: np.ndarray) -> np.ndarray:
    """The array as float64, if all of it is finite in float32."""
    with np.errstate(over="ignore"):
        bad = np.argwhere(~np.isfinite(array.astype(np.float32)))
    if len(bad):
        raise ValueError(
            f"Arrays: {name} must be finite and within float32, got {_entry(name, array, bad)}; "
            "remove or fill such entries, or give lengths if they are padding"
        )
    return array.astype(np.float64)


def _refuse_names(path: str, names: list[str]) -> None:
    for name in ("xs", "ys"):
        if name not in names:
            raise ValueError(
                f"Arrays: {path!r} must hold the arrays xs and ys, got {', '.join(names) or 'none'}"
            )
    for name in names:
        if name not in _NAMES:
            raise ValueError(
                f"Arrays: {path!r} may hold {', '.join(_NAMES)} and nothing else, got {name!r}"
                f"{checks.suggestion(name, _NAMES)}"
            )


def _member(archive: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    try:
        return np.asarray(archive[name])
    except ValueError as error:
        raise ValueError(
            f"Arrays: {name} must be one array of numbers, got what NumPy does not load: {error}; "
            "if the examples differ in length, pad them to one and save their lengths beside them"
        ) from error


def _leading(
    ys: np.ndarray, kind: str, leading: tuple[int, ...], extra_axes: tuple[int, ...]
) -> None:
    wanted = [f"[{', '.join(['N', 'T'][: len(leading)] + ['K'][:extra])}]" for extra in extra_axes]
    known = ", ".join(f"{axis} = {size}" for axis, size in zip("NT", leading, strict=False))
    fits = ys.ndim - len(leading) in extra_axes and ys.shape[: len(leading)] == leading
    if not fits or 0 in ys.shape:
        raise ValueError(
            f"Arrays: kind={kind!r} needs ys of shape {' or '.join(wanted)} with {known} as in xs, "
            f"got {ys.shape}"
        )


def _entry(name: str, array: np.ndarray, where: np.ndarray) -> str:
    place = tuple(int(i) for i in where[0])
    return f"{array[place]} at {name}[{', '.join(map(str, place))}]"
