"""Files of predictions: `.npz`, `.csv` and `.jsonl`."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from jrnn.files import atomic_path
from jrnn.tasks.conversion import Predictions
from jrnn.tasks.task import DataSpec

SUFFIXES = (".npz", ".csv", ".jsonl")
"""The formats of files of predictions."""


def write(path: Path, spec: DataSpec, predictions: Predictions) -> None:
    """Writes predictions to a file, in the format of its suffix.

    Args:
      path: path of the file; an existing file is replaced.
      spec: the properties of the data.
      predictions: the predictions.

    Raises:
      WriteError: the file cannot be written.
    """
    with atomic_path(path) as partial:
        if path.suffix == ".npz":
            arrays = {k: v for k, v in predictions._asdict().items() if v is not None}
            with partial.open("wb") as file:
                np.savez(file, **arrays)
            return
        with partial.open("w", encoding="utf-8", newline="") as file:
            write_rows(file, path.suffix, spec, predictions)


def write_rows(file: TextIO, suffix: str, spec: DataSpec, predictions: Predictions) -> None:
    """Writes predictions as lines of CSV, or of JSON if the suffix is ".jsonl"."""
    names = column_names(spec)
    if suffix == ".jsonl":
        for row in make_rows(spec, predictions):
            file.write(json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) + "\n")
        return
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(make_rows(spec, predictions))


def column_names(spec: DataSpec) -> list[str]:
    """Returns the names of the columns: example, step, prediction, and probabilities."""
    names = ["example", "step"] if spec.per_step else ["example"]
    if spec.has_classes:
        return [*names, "prediction", *(f"p({name})" for name in class_names(spec))]
    return [*names, *target_names(spec)]


def class_names(spec: DataSpec) -> Sequence[str]:
    """Returns the names of the classes, which are their numbers if they have no names."""
    return spec.class_names or spec.vocabulary or [str(k) for k in range(spec.output_size)]


def target_names(spec: DataSpec) -> Sequence[str]:
    """Returns the names of the channels of real-valued targets."""
    return spec.target_names or [f"target {index}" for index in range(spec.output_size)]


def make_rows(spec: DataSpec, predictions: Predictions) -> Iterator[list[Any]]:
    """Yields a row for each example or, with targets at each step, for each valid step."""
    names = class_names(spec) if spec.has_classes else ()
    for example, length in enumerate(predictions.lengths.tolist()):
        steps = [(example, step) for step in range(length)] if spec.per_step else [(example,)]
        for index in steps:
            if predictions.values is not None:
                yield [*index, *shorten(predictions.values[index])]
            elif predictions.classes is not None and predictions.probabilities is not None:
                name = names[predictions.classes[index]]
                yield [*index, name, *shorten(predictions.probabilities[index])]


def shorten(numbers: np.ndarray) -> list[float]:
    """Rounds numbers to nine significant digits, which float32 has at most."""
    return [float(f"{number:.9g}") for number in numbers.tolist()]
