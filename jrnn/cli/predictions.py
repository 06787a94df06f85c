"""The rows of files of predictions."""

from collections.abc import Iterator
from typing import Any

from jrnn.cli.table_file import Content, shorten, to_arrays
from jrnn.tasks.conversion import Predictions
from jrnn.tasks.task import DataSpec


def make_content(spec: DataSpec, predictions: Predictions) -> Content:
    """Returns the content of a file of predictions.

    Args:
      spec: the properties of the data.
      predictions: the predictions.
    """
    return Content(column_names(spec), make_rows(spec, predictions), to_arrays(predictions))


def column_names(spec: DataSpec) -> list[str]:
    """Returns the names of the columns: example, step, prediction, and probabilities."""
    names = ["example", "step"] if spec.per_step else ["example"]
    if spec.has_classes:
        return [*names, "prediction", *(f"p({name})" for name in spec.names_of_classes)]
    return [*names, *spec.names_of_targets]


def make_rows(spec: DataSpec, predictions: Predictions) -> Iterator[list[Any]]:
    """Yields a row for each example or, with targets at each step, for each valid step."""
    names = spec.names_of_classes if spec.has_classes else ()
    for example, length in enumerate(predictions.lengths.tolist()):
        steps = [(example, step) for step in range(length)] if spec.per_step else [(example,)]
        for index in steps:
            if predictions.values is not None:
                yield [*index, *shorten(predictions.values[index])]
            elif predictions.classes is not None and predictions.probabilities is not None:
                name = names[predictions.classes[index]]
                yield [*index, name, *shorten(predictions.probabilities[index])]
