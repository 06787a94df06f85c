"""What the folder of a run has of its data: `data.json`, and the intervals of a forecast."""

import os
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jrnn import checks, config, files, serialize
from jrnn.tasks.task import Data, DataSpec, Task

DATA_FILE = "data.json"
INTERVALS_FILE = "intervals.json"
MAX_BYTES = 2**28
"""Maximum size of a file, which has the names of all columns and classes."""
LIBRARIES = ("jrnn", "jax", "flax", "optax")
"""The libraries whose versions are saved."""


class SavedData(NamedTuple):
    """What the folder of a run has of its data.

    Attributes:
      spec: the properties of the data.
      fingerprint: the fingerprint of all examples; see `Data.fingerprint`.
      folder: the folder in which the command was run, to which paths of data are relative.
      versions: the versions of Python libraries in the process that has started the run.
    """

    spec: DataSpec
    fingerprint: str
    folder: str
    versions: dict[str, str]


def write_data(folder: Path, loaded: Sequence[Data], started_in: str | None = None) -> None:
    """Writes the properties of the data of a run, or of all tasks of a sweep, to its folder.

    Args:
      folder: the folder of the run or the sweep.
      loaded: the data.
      started_in: the folder to which paths of the data are relative; None means the current one.
    """
    content = {
        "folder": os.getcwd() if started_in is None else started_in,
        "versions": {name: version(name) for name in LIBRARIES},
        "data": [
            {"spec": serialize.encode(data.spec), "fingerprint": data.fingerprint}
            for data in loaded
        ],
    }
    config.write_json(content, folder / DATA_FILE)


def read_data(folder: Path) -> list[SavedData]:
    """Reads what `write_data` wrote.

    Raises:
      OSError: the file cannot be read.
      ValueError: the file is missing, as in folders of earlier versions of jrnn, or is invalid.
    """
    path = folder / DATA_FILE
    if not path.is_file():
        raise ValueError(
            f"{folder} has no {DATA_FILE}: it was removed, or an earlier version of jrnn wrote the "
            "folder; restore the file from a copy, use that version, or train the run again"
        )
    try:
        saved = files.read_json(path, MAX_BYTES)
        return [
            _check_types(
                SavedData(
                    serialize.decode(each["spec"]),
                    each["fingerprint"],
                    saved["folder"],
                    saved["versions"],
                )
            )
            for each in saved["data"]
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} is invalid: {error}; restore it from a copy, or train the run again"
        ) from error


def _check_types(saved: SavedData) -> SavedData:
    spec, fingerprint, folder, versions = saved
    texts = [fingerprint, folder, *versions.keys(), *versions.values()]
    if not isinstance(spec, DataSpec) or not all(isinstance(text, str) for text in texts):
        raise TypeError("fields must be a DataSpec and texts")
    _check_sizes(spec)
    return saved


def write_intervals(folder: Path, half_widths: np.ndarray | None) -> None:
    """Writes half of the widths of the intervals of a point forecast, `[horizon * K]`; see `Run`.

    Writes nothing for None.
    """
    if half_widths is not None:
        config.write_json({"half_widths": half_widths.tolist()}, folder / INTERVALS_FILE)


def read_intervals(folder: Path, spec: DataSpec) -> np.ndarray | None:
    """Reads what `write_intervals` wrote; None if there is no such file.

    Raises:
      ValueError: the file is invalid.
    """
    path, forecast = folder / INTERVALS_FILE, spec.forecast
    if forecast is None or not path.is_file():
        return None
    expected = forecast.horizon * len(forecast.targets)
    try:
        widths = files.read_json(path, MAX_BYTES)["half_widths"]
        valid = isinstance(widths, list) and all(checks.is_number(width) for width in widths)
        if not valid or len(widths) != expected or min(widths) < 0 or not np.isfinite(widths).all():
            raise ValueError(f"half_widths must be {expected} finite numbers of at least 0")
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is invalid: {error}; write it again with jrnn train --resume"
        ) from error
    return np.array(widths, float)


def _check_sizes(spec: DataSpec) -> None:
    """Raises ValueError unless there is one name and one number of each channel and class."""
    means = lambda scaler: None if scaler is None else scaler.mean
    parts = {
        "class_names": (spec.class_names, spec.output_size),
        "vocabulary": (spec.vocabulary, spec.output_size),
        "target_names": (spec.target_names, spec.output_size),
        "baseline_outputs": (spec.baseline_outputs, spec.output_size),
        "target_scaler": (means(spec.target_scaler), spec.output_size),
        "input_names": (spec.input_names, spec.input_size),
        "input_scaler": (means(spec.input_scaler), spec.input_size),
    }
    for name, (values, size) in parts.items():
        if values is not None and len(values) != size:
            raise ValueError(f"{name} must have {size} entries, got {len(values)}")


def check_data(folder: Path, loaded: Sequence[Data]) -> None:
    """Raises ValueError if the data have changed since the run was created."""
    if [saved.fingerprint for saved in read_data(folder)] != [d.fingerprint for d in loaded]:
        raise ValueError(
            f"{folder}: the data of this run have changed; new rows are new data too. Restore the "
            "original data, or train its network on the new data in a new run: jrnn train CONFIG "
            f"--init-from {folder}"
        )


def find_task(task: Task, folder: str) -> Task:
    """Returns a task whose relative path is found in the present folder, or else in another one.

    Args:
      task: the task of a run.
      folder: the folder in which the run was started.
    """
    path = getattr(task, "path", None)
    if not isinstance(path, str) or Path(path).expanduser().exists():
        return task
    other = Path(folder, path)
    return replace(task, **{"path": str(other)}) if other.exists() else task
