"""Labels of classes: ints, texts or one-hot rows, as consecutive ids from 0."""

from typing import Any, NamedTuple

import numpy as np

from jrnn import checks

IGNORED_LABEL = -100
"""The label of an item without a class; the loss and the metric ignore such items."""


class Labels(NamedTuple):
    """Labels as ids.

    Attributes:
      ids: int32 ids from 0, or `IGNORED_LABEL`.
      names: the label of each id as text; None if the labels are these ids themselves.
      size: number of classes.
    """

    ids: np.ndarray
    names: tuple[str, ...] | None
    size: int


def encode(ys: np.ndarray, mask: np.ndarray) -> Labels:
    """Converts labels to ids, in the order of the labels.

    Args:
      ys: one-hot rows, ints from 0 or `IGNORED_LABEL`, or texts, of which the empty text is
        ignored.
      mask: `[N]` or `[N, T]`, the shape of the ids; False for padding, whose ids become 0.

    Raises:
      ValueError: a label is another negative int.
    """
    one_hot = from_one_hot(ys, mask.shape, mask)
    if one_hot is not None:
        return Labels(np.where(mask, one_hot, 0).astype(np.int32), None, ys.shape[-1])
    if ys.dtype.kind == "U":
        used = mask & (ys != "")
    else:
        bad = np.argwhere(mask & (ys < 0) & (ys != IGNORED_LABEL))
        if len(bad):
            index = tuple(bad[0].tolist())
            raise ValueError(
                "Arrays: ys must contain ids from 0 to the number of classes, or "
                f"{IGNORED_LABEL} for labels to ignore, got {ys[index]} at ys"
                f"[{', '.join(map(str, index))}]; number the classes from 0"
            )
        used = mask & (ys != IGNORED_LABEL)
    known, inverse = np.unique(ys[used], return_inverse=True)
    ids = np.where(mask, IGNORED_LABEL, 0).astype(np.int32)
    ids[used] = inverse
    is_ids = ys.dtype.kind != "U" and np.array_equal(known, np.arange(len(known)))
    return Labels(ids, None if is_ids else tuple(map(str, known.tolist())), len(known))


def encode_like(
    ys: np.ndarray, mask: np.ndarray, names: tuple[str, ...] | None, size: int
) -> np.ndarray:
    """Converts labels to the ids of known classes.

    Args:
      ys: labels, as for `encode`.
      mask: as for `encode`.
      names: the name of each class; None means that the labels are ids.
      size: number of classes.

    Returns:
      The ids, int32 of the shape of `mask`, or `IGNORED_LABEL`; 0 on padding.

    Raises:
      ValueError: a label is not one of the classes, or the shape or dtype is wrong.
    """
    one_hot = from_one_hot(ys, mask.shape, mask)
    if one_hot is not None and ys.shape[-1] == size:
        ids = one_hot
    elif ys.shape == mask.shape:
        # Unsigned ints have no value for IGNORED_LABEL.
        ids = ys.astype(np.int64) if ys.dtype.kind in "biu" else ys
        ids = np.where(mask, ids, "" if ids.dtype.kind in "OU" else IGNORED_LABEL)
        ids = ids if names is None or ids.dtype.kind not in "iuOU" else find(ids, names)
    else:
        ids = ys
    if ids.dtype.kind not in "iu" or ids.shape != mask.shape:
        raise ValueError(
            f"data: ys must be {'int classes' if names is None else 'classes'} of shape "
            f"{mask.shape}, got {ys.dtype} of shape {ys.shape}"
        )
    bad = ids[mask & (ids != IGNORED_LABEL) & ((ids < 0) | (ids >= size))]
    if bad.size:
        raise ValueError(
            f"data: ys must be in 0..{size - 1}, the classes of the run, or {IGNORED_LABEL}, got "
            f"{bad[0]}"
        )
    return np.where(mask, ids, 0).astype(np.int32)


def find(ys: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Returns the ids of labels by the names of the classes.

    Args:
      ys: texts, of which the empty text is ignored, or ints, which are ids unless all names are
        numbers, and of which `IGNORED_LABEL` is ignored.
      names: the name of each class.

    Raises:
      ValueError: a label is not the name of a class.
    """
    if ys.dtype.kind in "iu" and not all(name.isdecimal() for name in names):
        return ys
    ids = {"": IGNORED_LABEL, str(IGNORED_LABEL): IGNORED_LABEL}
    ids |= {name: index for index, name in enumerate(names)}
    distinct, inverse = np.unique(ys.astype(str), return_inverse=True)
    if unknown := [name for name in distinct.tolist() if name not in ids]:
        raise ValueError(
            f"data: ys must be classes of the run, which are {checks.describe(list(names))}, got "
            f"{checks.describe(unknown[0])}"
        )
    return np.array([ids[name] for name in distinct.tolist()], np.int32)[inverse].reshape(ys.shape)


def from_one_hot(ys: np.ndarray, shape: tuple[int, ...], mask: np.ndarray) -> np.ndarray | None:
    """Returns the labels of one-hot rows as ints; None if `ys` are no such rows.

    Args:
      ys: any array; one-hot rows have the shape `[*shape, K]` with K of at least 2.
      shape: the shape of the labels.
      mask: of this shape, False for padding, which may have any values.
    """
    if ys.dtype.kind not in "biuf" or ys.shape[:-1] != shape or ys.shape[-1] < 2:
        return None
    rows: Any = ys[mask]
    is_one_hot = ((rows == 0) | (rows == 1)).all() and (rows.sum(axis=-1) == 1).all()
    return ys.argmax(axis=-1) if is_one_hot else None
