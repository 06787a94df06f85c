"""The cases that are timed: default shapes, sweeps over one axis, and shapes from flags."""

from collections.abc import Iterable, Iterator, Sequence

from jrnn import checks
from jrnn.bench.implementations import MODES, NUM_GATES, Case, Shape

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
"""Series of shapes, by the size that increases. In `hidden`, the input size is the hidden size."""


def cases(
    cells: Sequence[str], modes: Sequence[str], shapes: Iterable[Shape], sweep: bool
) -> Iterator[Case]:
    """Yields all combinations of cells, modes and shapes, then those of the sweeps.

    Raises:
      ValueError: a cell or mode is unknown.
    """
    for name in cells:
        checks.one_of("bench", "cell", name, NUM_GATES)
    for name in modes:
        checks.one_of("bench", "mode", name, MODES)
    series: list[tuple[str | None, Iterable[Shape]]] = [(None, shapes)]
    series += list(SWEEPS.items()) if sweep else []
    for axis, series_shapes in series:
        for shape in series_shapes:
            for cell in cells:
                for mode in modes:
                    yield Case(cell, mode, shape, axis)


def parse_shape(text: str) -> Shape:
    """Parses an index of `SHAPES`, or a shape written as BxTxIxH.

    Raises:
      ValueError: the text is neither.

    >>> parse_shape("0") == parse_shape("32x128x32x64")
    True
    """
    parts = text.split("x")
    if text.isdecimal() and int(text) < len(SHAPES):
        return SHAPES[int(text)]
    if len(parts) == 4 and all(part.isdecimal() and int(part) > 0 for part in parts):
        return Shape(*map(int, parts))
    raise ValueError(
        f"bench: each shape must be an index from 0 to {len(SHAPES) - 1}, or batch x time x input "
        f"x hidden as in 32x128x32x64, got {text!r}"
    )
