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
) -> Labels:
    """Converts labels to the ids of known classes.

    Args:
      ys: labels, as for `encode`.
      mask: as for `encode`.
      names: the name of each class; None means that the labels are ids.
      size: number of classes.

    Raises:
      ValueError: a label is not one of the classes.
    """
    one_hot = from_one_hot(ys, mask.shape, mask)
    if one_hot is not None and ys.shape[-1] == size:
        ids = one_hot
    else:
        ids = ys if one_hot is None else one_hot
        ids = ignore_padding(ids, mask)
        ids = ids if names is None else find(ids, names)
    used = mask & (ids != IGNORED_LABEL) if ids.dtype.kind in "iu" else mask
    if ids.dtype.kind not in "iu" or (used & ((ids < 0) | (ids >= size))).any():
        raise ValueError(
            f"Arrays: ys must be one of the {size} classes of the run to keep its encoding, got "
            f"{checks.describe(np.unique(ids[used])[-1].item())}"
        )
    return Labels(np.where(mask, ids, 0).astype(np.int32), names, size)


def ignore_padding(ys: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns labels of which those on padding, where `mask` is False, are ignored.

    Ints and bools become int64, since `IGNORED_LABEL` is no unsigned int.
    """
    if ys.dtype.kind in "UO":
        return np.where(mask, ys, "")
    return np.where(mask, ys.astype(np.int64), IGNORED_LABEL) if ys.dtype.kind in "biu" else ys


def find(ys: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Returns the ids of labels by the names of the classes.

    Args:
      ys: texts, of which the empty text is ignored, or ints, which are ids unless all names are
        numbers.
      names: the name of each class.

    Raises:
      ValueError: a label is not the name of a class.
    """
    if ys.dtype.kind in "iu" and not all(name.isdecimal() for name in names):
        return ys
    ids = {name: index for index, name in enumerate(names)}
    ids |= {"": IGNORED_LABEL, str(IGNORED_LABEL): IGNORED_LABEL}
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
