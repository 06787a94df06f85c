"""Reads the trials of a sweep from its folder, which may be unfinished."""

from pathlib import Path
from typing import Any

from jrnn import config, files, run_data, run_folder
from jrnn.report import curves
from jrnn.report.compare_page import Entry, to_numbers
from jrnn.sweep.sweep import trial_folder
from jrnn.tasks.task import DataSpec
from jrnn.train.run.metrics_logger import MetricsFile

SWEEP_FILE = "sweep.json"
"""Name of the file with the options and the trials of a sweep."""


def is_sweep(folder: Path) -> bool:
    """Returns whether a folder is that of a sweep."""
    return (folder / SWEEP_FILE).is_file()


def read_sweep(folder: Path, *, trust: bool = False) -> tuple[list[Entry], DataSpec]:
    """Reads the settings, results and metrics of the trials of a sweep.

    The folder is data: none of its code is executed.

    Args:
      folder: the folder of the sweep.
      trust: whether to accept symbolic links in the folder.

    Returns:
      The trials in their order, and the properties of the data.

    Raises:
      OSError: a file cannot be read, or the folder has symbolic links or special files.
      ValueError: a file is invalid.
    """
    if not trust:
        files.check_tree(folder)
    spec = run_data.read_data(folder)[0].spec
    values = config.read_saved(
        folder / SWEEP_FILE, _decode_values, max_bytes=config.MAX_SWEEP_BYTES
    )
    results = _read_results(folder / run_folder.RESULT_FILE, len(values))
    numbers = {name: to_numbers([each[name] for each in values]) for name in values[0]}
    entries = []
    for index in range(len(values)):
        path = trial_folder(folder, index) / "metrics.jsonl"
        metrics = MetricsFile(path).read_lines() if path.is_file() else []
        settings = {name: column[index] for name, column in numbers.items()}
        best = curves.find_best(metrics, spec)
        validation, step = (None, None) if best is None else (best.metric, best.step)
        entry = Entry(f"trial {index}", settings, validation, None, step, metrics)
        if results is None:
            entries.append(entry._replace(state="not finished"))
        else:
            entries.append(entry._replace(test=results[index][0], state=results[index][1]))
    return entries, spec


def check_values(values: Any) -> dict[str, str]:
    """Returns the values of a trial; raises TypeError unless they are a dict of strings."""
    if not isinstance(values, dict) or not all(isinstance(v, str) for v in values.values()):
        raise TypeError(f"values of a trial must be a dict of strings, got {values!r}")
    return values


def _decode_values(saved: dict[str, Any]) -> list[dict[str, str]]:
    """Returns the values of the trials in a sweep file; raises if they are invalid."""
    values = [check_values(trial["values"]) for trial in saved["trials"]]
    if not values or len({tuple(each) for each in values}) > 1:
        raise ValueError(f"there must be trials with the same axes, got {len(values)} trials")
    return values


def _read_results(path: Path, count: int) -> list[tuple[float | None, str]] | None:
    """Returns the test metric and the state of each trial; None if the sweep has not ended."""
    if not path.is_file():
        return None
    try:
        rows = files.read_json(path, config.MAX_SWEEP_BYTES)["trials"]
        results = [(row["test"], row["stopped"] or "finished") for row in rows]
        for test, state in results:
            if not isinstance(test, int | float | None) or not isinstance(state, str):
                raise TypeError(
                    f"a trial must have a test metric and a state, got {test!r}, {state!r}"
                )
        if len(results) != count:
            raise ValueError(f"it must have {count} trials, got {len(results)}")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} is not the result of the sweep: {error}; write it again with jrnn sweep "
            "--resume"
        ) from error
    return results
