"""The cases that are timed: default shapes, shapes of the growth curves, and shapes from flags."""

from collections.abc import Iterable, Iterator

from jrnn import checks
from jrnn.bench.contenders import DIRECTIONS, GATES, Case, Shape

SHAPES = (
    Shape(32, 128, 32, 64),
    Shape(32, 256, 128, 256),
    Shape(32, 64, 512, 512),
    Shape(64, 784, 1, 128),
    Shape(1, 1024, 64, 128),
)
SWEEPS = {
    "steps": tuple(Shape(32, 2**k, 64, 64) for k in range(5, 12)),
    "hidden": tuple(Shape(32, 64, 2**k, 2**k) for k in range(4, 11)),
}
"""Shapes of the growth curves, by the axis that grows; `hidden` also sets the input size."""


def cases(
    cells: Iterable[str], directions: Iterable[str], shapes: Iterable[Shape], sweep: bool
) -> Iterator[Case]:
    """Yields every cell in every direction at every shape, then the cases of the growth curves."""
    for name in cells:
        checks.one_of("bench", "cell", name, GATES)
    for name in directions:
        checks.one_of("bench", "direction", name, DIRECTIONS)
    curves: list[tuple[str | None, Iterable[Shape]]] = [(None, shapes)]
    curves += list(SWEEPS.items()) if sweep else []
    for axis, points in curves:
        for shape in points:
            for cell in cells:
                for direction in directions:
                    yield Case(cell, direction, shape, axis)


def read_shape(text: str) -> Shape:
    """Parses an index in `SHAPES`, or a shape written as BxTxIxH.

    Raises:
      ValueError: the text is neither.

    >>> read_shape("0") == read_shape("32x128x32x64")
    True
    """
    parts = text.split("x")
    if text.isdecimal() and int(text) < len(SHAPES):
        return SHAPES[int(text)]
    if len(parts) == 4 and all(part.isdecimal() and int(part) > 0 for part in parts):
        return Shape(*map(int, parts))
    raise ValueError(
        f"bench: each shape must be an index from 0 to {len(SHAPES) - 1}, or batch x steps x input "
        f"x hidden as in 32x128x32x64, got {text!r}"
    )
