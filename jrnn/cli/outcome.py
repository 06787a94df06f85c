"""What commands that train print and write besides the files of the training loop."""

import contextlib
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.markup import escape

from jrnn import config, files, run_data
from jrnn.cli import forecasts, inference
from jrnn.tasks.task import Data, Task
from jrnn.terminal import Console
from jrnn.train import FitResult
from jrnn.train.config.experiment import Experiment
from jrnn.train.forecasting import fit_half_widths, forecast_rows, score_rows
from jrnn.train.run.metrics_logger import MetricsWriter
from jrnn.train.run.progress import ProgressMode
from jrnn.train.run.summary import (
    describe_comparison,
    make_table,
    make_title,
    save_figure,
    summarize,
)
from jrnn.train.run.writers import JsonLinesWriter, TensorBoardWriter, WandbWriter
from jrnn.train.scores import score
from jrnn.train.step.evaluate import predict

stdout = Console()

BACKTEST_ORIGINS = 50
"""Number of recursive forecasts that are scored after the training."""


@dataclass(frozen=True)
class OutputOptions:
    """What a command prints and writes besides the files of the run.

    Attributes:
      quiet: whether to print only errors.
      json: whether to print JSON lines.
      tensorboard: whether to write event files.
      wandb: a project of Weights & Biases, or None.
    """

    quiet: bool = False
    json: bool = False
    tensorboard: bool = False
    wandb: str | None = None

    @property
    def progress(self) -> ProgressMode:
        """How progress is shown."""
        return "none" if self.quiet or self.json else "auto"

    def make_writers(self, folder: Path, experiment: Experiment) -> list[MetricsWriter]:
        """Creates the writers of metrics; raises ImportError if a library is not installed."""
        writers: list[MetricsWriter] = [JsonLinesWriter(sys.stdout)] if self.json else []
        if self.tensorboard:
            writers.append(TensorBoardWriter(folder / "tensorboard"))
        if self.wandb is not None:
            writers.append(WandbWriter(self.wandb, folder, config.encode(experiment)))
        return writers

    def print_folder(self, folder: Path) -> None:
        """Prints the folder of the run."""
        if self.json:
            print(json.dumps({"run": str(folder)}), flush=True)
        elif not self.quiet:
            stdout.print(escape(f"run folder: {folder}"), soft_wrap=True)


def new_folder(experiment: Experiment, prefix: str = "") -> Path:
    """Creates the folder of a new run.

    Args:
      experiment: the experiment; its `run_dir` is the folder; None means a new folder in `runs`.
      prefix: prefix of the name of a new folder in `runs`.

    Raises:
      FileExistsError: `run_dir` exists and is not an empty folder, or `runs` has 999 folders of the
        same name.
    """
    if experiment.run_dir is not None:
        folder = Path(experiment.run_dir)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(
                f"train: --run-dir must be a new or empty folder, got {folder}; use another folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    task, cell = type(experiment.task).__name__, type(experiment.network.cell).__name__
    stem = f"{prefix}{task}-{cell}-{datetime.now():%Y%m%d-%H%M%S}".lower()
    for number in range(1, 1000):
        folder = Path("runs") / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(f"train: there are too many folders runs/{stem}-*; remove some of them")


@contextlib.contextmanager
def explaining_write_errors(command: str) -> Iterator[None]:
    """Adds a note to errors of writing the results, which says that the training is saved.

    Args:
      command: the command that writes the results, for the note.
    """
    try:
        yield
    except files.WriteError as error:
        error.add_note(f"The training is done and saved; write the results with: {command}")
        raise


def report_run(
    experiment: Experiment,
    data: Data,
    result: FitResult,
    folder: Path,
    output: OutputOptions = OutputOptions(),
) -> None:
    """Writes the result and the figure of a run to its folder, and prints the result."""
    summary = summarize(experiment, data, result)
    scores = None if data.forecast is None else _score_forecast(experiment, data, result, folder)
    if scores is not None:
        summary["baselines"] = scores["baselines"]
    config.write_json(summary, folder / "result.json")
    if output.quiet or output.json:
        with contextlib.suppress(ImportError):
            save_figure(data, result, folder, title=make_title(experiment, result))
        if output.json:
            print(json.dumps({"result": summary}), flush=True)
        return
    stdout.print(make_table(summary))
    if scores is not None:
        _print_forecast_scores(experiment, data, result, folder, scores)
    stdout.print(escape(f"run folder: {folder}"), soft_wrap=True)
    try:
        path = save_figure(data, result, folder, title=make_title(experiment, result))
        stdout.print(escape(f"figure:     {path}"), soft_wrap=True)
    except ImportError as error:
        stdout.print(escape(f"no figure:  {error}"), soft_wrap=True)


def _score_forecast(
    experiment: Experiment, data: Data, result: FitResult, folder: Path
) -> dict[str, Any]:
    """Writes the intervals of a forecast to the folder of the run; returns its test scores."""
    apply = lambda examples: predict(result.model, examples)
    widths = fit_half_widths(_find_task(experiment, folder), data, apply)
    run_data.write_intervals(folder, widths)
    baselines = None if data.baselines is None else data.baselines("test")
    steps = None if widths is None else widths[: data.output_size]
    return score(data.spec, data.test, apply(data.test), baselines, steps)


def _find_task(experiment: Experiment, folder: Path) -> Task:
    """Returns the task of a run, whose file may be relative to the folder where it was started."""
    return run_data.find_task(experiment.task, run_data.read_data(folder)[0].folder)


def _print_forecast_scores(
    experiment: Experiment, data: Data, result: FitResult, folder: Path, scores: dict[str, Any]
) -> None:
    """Prints the test errors of a forecast in original units, and how it compares."""
    tables = inference.make_tables(experiment.network.cell, data.spec, scores, "test split")
    for table in itertools.islice(tables, 1, None):  # the first is that of the summary
        stdout.print(table)
    if "coverage" in scores:
        text = f"Intervals cover {scores['coverage']:.1%} of the test values ({scores['level']:.0%}"
        stdout.print(f"{text} nominal).", soft_wrap=True)
    stdout.print(escape(describe_comparison(data.metric, scores)), soft_wrap=True)
    if data.forecast is not None and data.forecast.recursive:
        stdout.print("These are errors of one row ahead. Of recursive forecasts:")
        task = _find_task(experiment, folder)
        origins = task.find_origins(data.spec, "test", BACKTEST_ORIGINS)
        rows = forecast_rows(
            data.spec, lambda examples: predict(result.model, examples), origins.context
        )
        for table in forecasts.make_backtest_tables(score_rows(data.spec, rows, origins)):
            stdout.print(table)
