"""Comparison of the splits of tasks."""

import numpy as np

from jrnn.tasks import Data, Split


def splits_are_equal(one: Split, other: Split) -> bool:
    """Returns whether corresponding arrays of two splits are equal or both None."""
    return all(
        (a is None and b is None) or (a is not None and b is not None and np.array_equal(a, b))
        for a, b in zip(one, other, strict=True)
    )


def all_splits_are_equal(one: Data, other: Data) -> bool:
    """Returns whether all three splits are equal; other fields are not compared."""
    return all(
        splits_are_equal(getattr(one, part), getattr(other, part))
        for part in ("train", "validation", "test")
    )
