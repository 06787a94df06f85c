"""The commands `jrnn eval`, `jrnn predict` and `jrnn sample`, which use trained runs."""

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.markup import escape
from rich.table import Table

from jrnn import checks, files, run_folder
from jrnn.cli import forecasts, predictions, table_file
from jrnn.layer import Layer
from jrnn.messages import escape_controls
from jrnn.nn import SequenceToSequence, generate
from jrnn.run_folder import Run, SplitName
from jrnn.tasks.conversion import UNKNOWN
from jrnn.tasks.task import DataSpec
from jrnn.terminal import Console, open_output, parse_flags, write_text
from jrnn.train.run.progress import METRIC_NAMES
from jrnn.train.run.summary import describe_comparison, make_table

stdout = Console()

MAX_SAMPLE = 10**6
"""Maximum number of characters of a sample; it is printed as a whole, after about a minute."""
MAX_CONFUSION = 12
"""Maximum number of classes of a confusion matrix on the terminal."""

Trust = Annotated[bool, tyro.conf.FlagCreatePairsOff]
RunArgument = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]


@dataclass(frozen=True)
class EvalOptions:
    """Evaluates the weights of a run with the best validation metric.

    Example: jrnn eval runs/mine --split validation

    Args:
      run: the folder of the run.
      split: the split of the training data, by default test.
      data: a file with other examples and their targets, in the format of the training data;
        a run of another task than text reads an .npz file with xs, ys and optionally lengths.
      backtest: for a forecast, number of rows of the split from which all rows of the horizon are
        forecast, as by jrnn predict.
      json: print JSON instead of tables.
      trust: execute the code of the run, such as its config.py, if its config names a class that is
        not in jrnn, and accept symbolic links in its folder.
    """

    run: RunArgument
    split: SplitName | None = None
    data: str | None = None
    backtest: int | None = None
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    trust: Trust = False


@dataclass(frozen=True)
class PredictOptions:
    """Predicts with the best weights of a run, in the units and classes of its data.

    A run of configs/table.py reads a .csv file, and writes forecasts of the rows after its last
    row, with dates and intervals.

    Example: jrnn predict runs/mine new.npz --out predictions.csv

    Args:
      run: the folder of the run.
      data: a file with examples: .npz with xs and optionally lengths, .csv with one example, or a
        text for a run of a text task; - reads one example per line from standard input: a text, or
        JSON such as [[0.1, 0.2], [0.3, 0.4]], a list of steps.
      out: the file to write: .csv, .jsonl or .npz; by default CSV to standard output.
      batch_size: number of examples per forward pass.
      trust: execute the code of the run, such as its config.py, if its config names a class that is
        not in jrnn, and accept symbolic links in its folder.
    """

    run: RunArgument
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    out: str | None = None
    batch_size: int = 256
    trust: Trust = False


@dataclass(frozen=True)
class SampleOptions:
    """Samples text from the language model of a run, such as a run of configs/text.py.

    Example: jrnn sample runs/mine --prompt "The " --length 200

    Args:
      run: the folder of the run.
      prompt: text to continue; None means a newline, or the first character of the vocabulary if
        the training text has no newline.
      length: number of characters to sample.
      temperature: divisor of the logits; 0 always selects the most probable character.
      seed: seed of the samples.
      trust: execute the code of the run, such as its config.py, if its config names a class that is
        not in jrnn, and accept symbolic links in its folder.
    """

    run: RunArgument
    prompt: str | None = None
    length: int = 400
    temperature: float = 0.7
    seed: int = 0
    trust: Trust = False


def eval_command(args: list[str]) -> None:
    """`jrnn eval RUN [--split SPLIT | --data FILE]`: scores the best weights of a run."""
    options: EvalOptions = parse_flags(EvalOptions, args, prog="jrnn eval")
    if options.data is not None and (options.split or options.backtest is not None):
        raise ValueError(
            "eval: --data must be given without --split and --backtest, which are for the data of "
            "the run, got both"
        )
    run = run_folder.load(options.run, trust=options.trust)
    if options == EvalOptions(options.run, trust=options.trust) and not run.has_data:
        stdout.print(make_table(run.result))
        text = "The data are not on this machine: these scores were computed after the training."
        stdout.print(text, soft_wrap=True)
        return
    if options.backtest is not None:
        _backtest(run, options)
        return
    split = options.split or "test"
    scores = run.evaluate(options.data, split=split)
    if options.json:
        _print_json(scores)
        return
    title = options.data or f"{split} split"
    for table in make_tables(run.config.network.cell, run.data.spec, scores, title):
        stdout.print(table)
    stdout.print(escape(describe_comparison(run.data.spec.metric, scores)), soft_wrap=True)


def _backtest(run: Run, options: EvalOptions) -> None:
    """Prints the scores of forecasts from several rows of a split."""
    origins = checks.positive_int("eval", "--backtest", options.backtest)
    scores = run.backtest(origins, split=options.split or "test")
    if options.json:
        _print_json(scores)
        return
    for table in forecasts.make_backtest_tables(scores):
        stdout.print(table)


def _print_json(scores: dict[str, Any]) -> None:
    """Prints scores as JSON; those that do not exist, such as of a target without values, are null.

    JSON has no NaN.
    """
    finite = json.loads(json.dumps(scores), parse_constant=lambda name: None)
    print(json.dumps(finite, indent=2))


def make_tables(cell: Layer, spec: DataSpec, scores: dict[str, Any], title: str) -> Iterator[Table]:
    """Yields the tables of the scores from `Run.evaluate`."""
    name = METRIC_NAMES[spec.metric]
    table = Table(title=escape(title), show_header=False, title_justify="left")
    table.add_row("cell", escape(checks.describe(cell)))
    table.add_row("examples", f"{scores['examples']:,}")
    if scores["items"] != scores["examples"]:
        name_of_items = "scored targets" if spec.forecast is None else "scored forecasts"
        table.add_row(name_of_items, f"{scores['items']:,}")
    table.add_row(name, f"[bold]{scores['metric']:.4f}[/bold]{_format_interval(scores)}")
    table.add_row("loss", f"{scores['loss']:.4f}")
    baseline = scores.get("baseline")
    for entry in scores.get("baselines", [baseline] if baseline else []):
        table.add_row(escape(f"baseline: {entry['name']}"), f"{entry['value']:.4f}")
    if "coverage" in scores:
        coverage = f"{scores['coverage']:.1%} (nominal {scores['level']:.0%})"
        table.add_row("coverage of intervals", coverage)
    yield table
    if targets := scores.get("targets"):
        yield _make_target_table(targets)
    if len(horizons := scores.get("horizons", [])) > 1:
        yield forecasts.make_horizon_table(horizons)
    classes = scores.get("classes", [])
    if classes and spec.vocabulary is None:
        yield _make_class_table(classes)
        if len(classes) <= MAX_CONFUSION:
            yield _make_confusion_table(classes, scores["confusion"])


def _format_interval(scores: dict[str, Any], name: str = "interval") -> str:
    interval = scores.get(name)
    return "" if interval is None else f"  (95%: {interval[0]:.4g} to {interval[1]:.4g})"


def _make_target_table(targets: list[dict[str, Any]]) -> Table:
    table = Table(title="errors in original units", title_justify="left")
    has_baseline = "baseline_mae" in targets[0]
    columns = ["target", "MAE", "RMSE"] + (
        ["baseline MAE", "baseline RMSE"] if has_baseline else []
    )
    if has_crps := "crps" in targets[0]:
        columns.append("CRPS")
    for column in columns:
        table.add_column(column, justify="left" if column == "target" else "right")
    for target in targets:
        cells = [
            f"{target[name]:.4g}{_format_interval(target, name + '_interval')}"
            for name in ("mae", "rmse")
        ]
        if has_baseline:
            cells += [f"{target[name]:.4g}" for name in ("baseline_mae", "baseline_rmse")]
        if has_crps:
            cells.append(f"{target['crps']:.4g}")
        table.add_row(escape(target["name"]), *cells)
    return table


def _make_class_table(classes: list[dict[str, Any]]) -> Table:
    table = Table(title="classes", title_justify="left")
    for column in ("class", "examples", "precision", "recall", "F1"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for row in classes:
        scores = [f"{row[name]:.3f}" for name in ("precision", "recall", "f1")]
        table.add_row(escape(row["name"]), str(row["count"]), *scores)
    return table


def _make_confusion_table(classes: list[dict[str, Any]], counts: list[list[int]]) -> Table:
    table = Table(title="confusion matrix: true classes in rows", title_justify="left")
    table.add_column("")
    for row in classes:
        table.add_column(escape(row["name"]), justify="right")
    for row, values in zip(classes, counts, strict=True):
        table.add_row(escape(row["name"]), *map(str, values))
    return table


def predict_command(args: list[str]) -> None:
    """`jrnn predict RUN DATA [--out FILE]`: writes the predictions for a file."""
    options: PredictOptions = parse_flags(PredictOptions, args, prog="jrnn predict")
    out = None if options.out is None else Path(options.out)
    if out is not None:
        checks.one_of("predict", "suffix of --out", out.suffix, table_file.SUFFIXES)
        checks.writable_file("predict", "--out", out)
    run = run_folder.load(options.run, trust=options.trust)
    if options.data == "-":
        _predict_lines(run, sys.stdin, out)
        return
    spec = run.data.spec
    if spec.forecast is not None and Path(options.data).suffix.lower() == ".csv":
        made = run.forecast(options.data)
        content = forecasts.make_content(spec.forecast, made)
        series = "" if spec.forecast.group is None else f" of {len(made.context.names):,} series"
        title = f"forecasts of {spec.forecast.horizon:,} rows{series}"
        if made.rows.low is None:
            print(_explain_no_intervals(run.folder), file=sys.stderr)
        else:
            title += f" with intervals of {spec.forecast.level:.0%}"
    else:
        raw = run.read(options.data)
        made = run.predict(raw.xs, lengths=raw.lengths, batch_size=options.batch_size)
        content = predictions.make_content(spec, made)
        title = f"predictions for {len(made.lengths):,} examples"
    table_file.write(content, out)
    if out is not None:
        stdout.print(escape(f"{title}: {out}"), soft_wrap=True)


def _explain_no_intervals(folder: Path) -> str:
    text = "no intervals, since the run has not ended, and its end writes their widths; resume it "
    return escape_controls(f"jrnn: {text}with: jrnn train --resume {folder}")


def _predict_lines(run: Run, lines: Iterable[str], out: Path | None) -> None:
    """Predicts for each line as soon as it is read, and writes one line of JSON."""
    with open_output(out) as file:
        for number, line in enumerate(lines, 1):
            if run.data.spec.vocabulary is not None:
                example: Any = line.rstrip("\n")
            else:
                try:
                    example = np.array(files.parse_json(line.encode()))
                except ValueError as error:
                    raise ValueError(
                        f"predict: line {number} must be JSON, a list of steps, got an error: "
                        f"{error}"
                    ) from error
            try:
                made = run.predict([example])
            except (ValueError, TypeError) as error:
                raise type(error)(f"line {number}: {error}") from error
            table_file.write_json_lines(predictions.make_content(run.data.spec, made), file)
            file.flush()


def sample_command(args: list[str]) -> None:
    """`jrnn sample RUN [--prompt TEXT] [--length N] [--temperature X] [--seed N]`: samples text.

    The prompt and the sample are printed unchanged, except on a terminal, where control characters
    are escaped.
    """
    options: SampleOptions = parse_flags(SampleOptions, args, prog="jrnn sample")
    checks.int_between("sample", "length", options.length, 1, MAX_SAMPLE)
    checks.int_between("sample", "seed", options.seed, 0, checks.MAX_SEED)
    run, prompt = run_folder.load(options.run, trust=options.trust), options.prompt
    vocabulary = run.data.spec.vocabulary
    if vocabulary is None:
        raise ValueError(
            f"sample: {run.folder} must be a run of a text task, got "
            f"{type(run.config.task).__name__}"
        )
    if prompt is None:
        prompt = "\n" if "\n" in vocabulary else vocabulary[0]
    if not prompt:
        raise ValueError("sample: prompt must have at least one character, got an empty text")
    ids = {character: id for id, character in enumerate(vocabulary)}
    unknown = sorted({character for character in prompt if character not in ids})
    if unknown:
        raise ValueError(
            "sample: prompt must contain only characters of the training text, got "
            f"{' '.join(map(repr, unknown))}"
        )
    model = run.model
    if not isinstance(model, SequenceToSequence):
        raise ValueError(
            f"sample: the network of {run.folder} must predict a token at each step, got "
            f"{type(model).__name__}"
        )
    tokens = generate(
        model,
        jnp.array([[ids[character] for character in prompt]], jnp.int32),
        options.length,
        temperature=options.temperature,
        exclude=[ids[UNKNOWN]] if UNKNOWN in ids else [],
        key=jax.random.key(options.seed),
    )
    write_text(prompt + "".join(vocabulary[token] for token in np.asarray(tokens[0])))
