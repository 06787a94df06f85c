"""The report of a run: settings, curves, errors, worst examples, gates and sampled text."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jrnn.nn import SequenceToSequence, generate
from jrnn.report import curves
from jrnn.report.evaluation import Evaluation, chosen_examples, evaluate
from jrnn.report.examples import (
    class_tables,
    draw_inputs,
    target_tables,
    value_scatter,
    worst_examples,
)
from jrnn.report.gates import capture_traces, gate_figures
from jrnn.report.page import (
    Child,
    Page,
    capitalize,
    element,
    facts,
    format_number,
    grid,
    panels,
    table,
)
from jrnn.report.settings import list_settings
from jrnn.run_folder import Run, SplitName
from jrnn.tasks.task import Split
from jrnn.train.run.summary import describe_comparison, metric_label

SAMPLED_CHARACTERS = 500
"""Number of characters of each sampled text."""
TEMPERATURES = (0.5, 0.8, 1.0)
"""The temperatures of the sampled texts."""


def make_run_report(run: Run, *, split: SplitName = "test", num_examples: int = 8) -> str:
    """Makes the report of a run as one HTML page.

    Without the training data, the page leaves out all that needs them, and says so.

    Args:
      run: the run, from `jrnn.load`.
      split: the split of the training data whose examples are shown.
      num_examples: number of examples with the highest losses that are shown.

    Returns:
      The page as HTML, which makes no requests.

    Raises:
      ValueError: `metrics.jsonl` or `result.json` is invalid.
      CheckpointError: all checkpoints are damaged.
    """
    spec, cell = run.data.spec, type(run.config.network.cell).__name__
    page = Page(f"{type(run.config.task).__name__}, {cell}", f"Run {run.folder}")
    try:
        metrics = run.metrics
    except FileNotFoundError:
        metrics = []
    result, model, notes = _read_result(run), None, []
    try:
        model = run.model
    except FileNotFoundError:
        notes.append("The run has no evaluated network yet, so that there are no predictions.")
    evaluation = None
    if model is not None:
        try:
            evaluation = evaluate(model, _load_data(run), split, run.step_half_widths)
        except DataUnavailable as error:
            notes.append(
                "Tables and figures of examples are left out, since they need the data of the "
                f"run: {error}"
            )
    page.add_section(
        "Result",
        _facts(run, metrics, result, evaluation),
        None if evaluation is None else _describe(evaluation),
        *(element("p", note, class_="note") for note in notes),
    )
    if metrics:
        page.add_section(
            "Learning curves",
            grid(
                page.chart("Loss", curves.loss_curves(metrics, spec)),
                page.chart(capitalize(metric_label(spec)), curves.metric_curves(metrics, spec)),
            ),
            _norms(page, metrics),
        )
    if evaluation is not None:
        add_evaluation(page, evaluation, num_examples)
    if model is not None:
        _add_text_and_gates(page, run, model, evaluation)
    page.add_section("Settings", *_settings(run))
    return page.render()


class DataUnavailable(Exception):
    """Raised if the training data cannot be loaded; the message is the reason."""


def _load_data(run: Run) -> Any:
    if not run.has_data:
        raise DataUnavailable("their file is not on this machine")
    try:
        return run.load_data()
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise DataUnavailable(str(error)) from error


def _read_result(run: Run) -> dict[str, Any] | None:
    try:
        return run.result
    except FileNotFoundError:
        return None


def _facts(
    run: Run,
    metrics: curves.Lines,
    result: dict[str, Any] | None,
    evaluation: Evaluation | None,
) -> Child:
    spec, label = run.data.spec, metric_label(run.data.spec)
    values: dict[str, str] = {}
    if evaluation is not None:
        scores = evaluation.scores
        values[f"{evaluation.name} {label}"] = format_number(scores["metric"])
        if scores["interval"] is not None:
            values["95% interval"] = " to ".join(map(format_number, scores["interval"]))
    elif result is not None:
        values[f"test {label}"] = format_number(result["test"])
    best = curves.find_best(metrics, spec)
    if best is not None:
        values[f"best validation {label}"] = format_number(best.metric)
        last = max(line["step"] for line in metrics)
        values["best step"] = f"{best.step:,} of {last:,}"
    values[f"baseline on test: {spec.baseline[0]}"] = format_number(spec.baseline[1])
    if result is not None:
        values["parameters"] = f"{result['parameters']:,}"
        if result["seconds"] is not None:
            values["training time"] = f"{result['seconds']:.0f} s"
    else:
        values["state"] = "not finished"
    return facts(values)


def _describe(evaluation: Evaluation) -> str:
    """Compares the network with the baseline; that of the data is of the test split."""
    scores, (name, value) = evaluation.scores, evaluation.spec.baseline
    if evaluation.name == "test":
        scores = {"baseline": {"name": name, "value": value}} | scores
    return describe_comparison(evaluation.spec.metric, scores)


def _norms(page: Page, metrics: curves.Lines) -> Child:
    charts = {
        "Gradient norm, before clipping": curves.norm_curves(metrics, "grad_norm"),
        "Update norm": curves.norm_curves(metrics, "update_norm"),
    }
    return grid(*(page.chart(name, spec) for name, spec in charts.items() if spec is not None))


def add_evaluation(page: Page, evaluation: Evaluation, num_examples: int) -> None:
    """Adds the sections with the errors on a split and its worst examples.

    Args:
      page: the page.
      evaluation: the predictions for the split.
      num_examples: number of examples with the highest losses.
    """
    name = evaluation.name
    page.add_section(
        f"Errors on the {name} split",
        *class_tables(evaluation),
        *target_tables(evaluation),
        value_scatter(page, evaluation),
    )
    is_forecast = evaluation.spec.target == "value_per_step"
    title = "Forecasts" if is_forecast else "Worst examples"
    page.add_section(
        f"{title} of the {name} split", *worst_examples(page, evaluation, num_examples)
    )


def _add_text_and_gates(page: Page, run: Run, model: Any, evaluation: Evaluation | None) -> None:
    vocabulary = run.data.spec.vocabulary
    if vocabulary is not None and isinstance(model, SequenceToSequence):
        samples = [
            (temperature, _sample(model, vocabulary, temperature)) for temperature in TEMPERATURES
        ]
        page.add_section(
            "Sampled text",
            *(
                part
                for temperature, tokens in samples
                for part in (
                    element("h3", f"Temperature {temperature}"),
                    element("pre", "".join(vocabulary[token] for token in tokens)),
                )
            ),
        )
        if evaluation is None:
            tokens = samples[-1][1]
            examples = Split(tokens[None], tokens[None])
            figures = gate_figures(page, capture_traces(model, examples), 0, len(tokens))
            page.add_section("Gates for sampled text", *figures)
    if evaluation is not None:
        titles, examples = chosen_examples(evaluation)
        traces = capture_traces(model, examples)
        lengths = evaluation.predictions.lengths
        content = [
            (
                title,
                [
                    draw_inputs(page, evaluation, k, "inputs"),
                    *gate_figures(page, traces, index, int(lengths[k])),
                ],
            )
            for index, (title, k) in enumerate(
                zip(titles, evaluation.choose().values(), strict=True)
            )
        ]
        page.add_section("Gates and carries over time", panels("Example", content))


def _sample(
    model: SequenceToSequence, vocabulary: tuple[str, ...], temperature: float
) -> np.ndarray:
    """Samples a text from a newline, or from the first character if there is no newline."""
    first = vocabulary.index("\n") if "\n" in vocabulary else 0
    tokens = generate(
        model,
        jnp.array([[first]], jnp.int32),
        SAMPLED_CHARACTERS,
        temperature=temperature,
        key=jax.random.key(0),
    )
    return np.asarray(tokens[0])


def _settings(run: Run) -> list[Child]:
    settings = list_settings(run.config)
    environment = {"started in": run.data.folder, "data fingerprint": run.data.fingerprint}
    rows = [[name, "None" if value is None else str(value)] for name, value in settings.items()]
    versions = [[name, value] for name, value in (run.data.versions | environment).items()]
    blocks: list[Child] = []
    for title, content in (("Config", rows), ("Environment", versions)):
        block = table(["name", "value"], content, numeric=set())
        block[0].set("class", "settings")
        blocks.append(element("div", element("h3", title), block))
    return [grid(*blocks)]
