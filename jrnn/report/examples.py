"""Tables and figures of the predictions for a split: errors, worst examples and forecasts."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jrnn.report.charts import Band, Series, heat_map, image, lines
from jrnn.report.evaluation import Evaluation
from jrnn.report.page import Child, Element, Page, element, grid, panels, shade, table
from jrnn.tasks.forecast import Forecast, current_values

MAX_CLASSES = 30
"""Maximum number of classes of a confusion matrix; for more, the most frequent errors are shown."""
MAX_ERRORS = 20
"""Maximum number of rows of the table of the most frequent errors."""
MAX_CHANNELS = 8
"""Maximum number of channels that are drawn as lines; more are drawn as a heat map."""
MAX_TARGETS = 6
"""Maximum number of targets of a forecast that are drawn."""
MAX_LABELS = 600
"""Maximum number of steps of a sequence of labels."""
MAX_SCATTER = 1000
"""Maximum number of examples of a scatter plot."""
PLAIN_NAME = 30
"""Maximum length of the name of a class in a confusion matrix."""


def class_tables(evaluation: Evaluation) -> list[Child]:
    """Makes the table of the classes and their confusion matrix; empty without classes."""
    classes = evaluation.scores.get("classes", [])
    if not classes or evaluation.spec.vocabulary is not None:
        return []
    rows = [[c["name"], c["count"], c["precision"], c["recall"], c["f1"]] for c in classes]
    columns = ["class", "count", "precision", "recall", "F1"]
    content: list[Child] = [element("h3", "Classes"), table(columns, rows, sortable=True)]
    counts = np.asarray(evaluation.scores["confusion"])
    if len(classes) <= MAX_CLASSES:
        note = "Rows are true classes, columns predicted ones; darker is a larger part of a row."
        content += [
            element("h3", "Confusion matrix"),
            element("p", note, class_="muted"),
            _confusion_table(evaluation.class_names, counts),
        ]
    errors = counts * ~np.eye(len(counts), dtype=bool)
    order = np.argsort(-errors, axis=None, kind="stable")[:MAX_ERRORS]
    pairs = np.stack(np.unravel_index(order, errors.shape), axis=1).tolist()
    names = evaluation.class_names
    common: list[list[Any]] = [
        [names[true], names[predicted], int(errors[true, predicted])]
        for true, predicted in pairs
        if errors[true, predicted]
    ]
    if common and len(classes) > MAX_CLASSES:
        content += [
            element("h3", "Most frequent errors"),
            table(["true", "predicted", "count"], common, sortable=True),
        ]
    return content


def _confusion_table(names: Sequence[str], counts: np.ndarray) -> Element:
    shorten = lambda name: name if len(name) <= PLAIN_NAME else f"{name[:PLAIN_NAME]}…"
    heads = [element("th", shorten(name), scope="col", title=name) for name in names]
    rows = []
    for true, values in enumerate(counts.tolist()):
        cells = []
        for predicted, count in enumerate(values):
            is_right, level = true == predicted, shade(count, float(sum(values)))
            cells.append(
                element(
                    "td",
                    str(count) if count else "·",
                    class_=" ".join(filter(None, [level, "right" if is_right else None])) or None,
                    title=f"true {names[true]}, predicted {names[predicted]}: {count}",
                )
            )
        head = element("th", shorten(names[true]), scope="row", title=names[true])
        rows.append(element("tr", head, *cells))
    corner = element("th", "true \\ predicted", class_="muted")
    head = element("thead", element("tr", corner, *heads))
    matrix = element("table", head, element("tbody", *rows), class_="confusion")
    return element("div", matrix, class_="scroll")


def target_tables(evaluation: Evaluation) -> list[Child]:
    """Makes the table of the errors of each target in original units; empty for classes."""
    targets = evaluation.scores.get("targets", [])
    if not targets:
        return []
    columns = ["target", "MAE", "95% interval", "RMSE", "95% interval"]
    has_baseline = "baseline_mae" in targets[0]
    columns += ["baseline MAE", "baseline RMSE"] if has_baseline else []
    rows = []
    for target in targets:
        row: list[Any] = [target["name"]]
        for name in ("mae", "rmse"):
            interval = target[f"{name}_interval"]
            text = None if interval is None else f"{interval[0]:.4g} to {interval[1]:.4g}"
            row += [target[name], text]
        rows.append(
            row + ([target["baseline_mae"], target["baseline_rmse"]] if has_baseline else [])
        )
    title = element("h3", "Errors in original units")
    return [title, table(columns, rows, numeric={*range(1, len(columns))}, sortable=len(rows) > 1)]


def worst_examples(page: Page, evaluation: Evaluation, count: int) -> list[Child]:
    """Makes a figure for each of the examples with the highest losses, and what was predicted."""
    draw = {
        "class": _draw_class,
        "value": _draw_value,
        "class_per_step": _draw_labels,
        "value_per_step": _draw_forecast,
    }[evaluation.spec.target]
    losses = evaluation.example_losses
    if evaluation.spec.target == "class":
        figures = [draw(page, evaluation, k) for k in evaluation.rank(count)]
        flat = [figure for parts in figures for figure in parts]
        return [grid(*flat, small=evaluation.image is not None)]
    content = [
        (f"{place}: example {k}, loss {losses[k]:.4g}", draw(page, evaluation, k))
        for place, k in _places(evaluation, count).items()
    ]
    return [panels("Example", content)]


def _places(evaluation: Evaluation, count: int) -> dict[str, int]:
    """Returns the worst examples, and those with the median and the lowest loss, by a title."""
    places = {f"{rank + 1}. worst": k for rank, k in enumerate(evaluation.rank(count))}
    others = {name: k for name, k in evaluation.choose().items() if k not in places.values()}
    return places | others


def _draw_class(page: Page, evaluation: Evaluation, k: int) -> list[Child]:
    """Draws an example of a class as an image, or else its inputs."""
    names, predictions = evaluation.class_names, evaluation.predictions
    if predictions.classes is None or predictions.probabilities is None:
        return []
    predicted = int(predictions.classes[k])
    true = int(evaluation.examples.ys[k])
    probability = predictions.probabilities[k]
    is_right = predicted == true
    caption = element(
        "p",
        element(
            "strong", "correct: " if is_right else "wrong: ", class_="good" if is_right else "bad"
        ),
        f"predicted {names[predicted]} ({probability[predicted]:.1%}), "
        f"true {names[true]} ({probability[true]:.1%}), loss {evaluation.losses[k]:.3g}",
        class_="muted",
    )
    picture = draw_inputs(page, evaluation, k, f"example {k}")
    return [element("div", picture, caption)]


def draw_inputs(page: Page, evaluation: Evaluation, k: int, title: str) -> Element:
    """Draws the inputs of an example in original units: an image, lines, a heat map, or tokens."""
    if evaluation.image is not None:
        picture = evaluation.image(evaluation.examples.xs[k])
        return page.chart(title, image(picture, title))
    spec, x = evaluation.spec, evaluation.examples.xs[k]
    x = x[: int(evaluation.predictions.lengths[k])]
    if spec.has_tokens:
        names = spec.vocabulary or [str(token) for token in range(spec.input_size)]
        text = ("" if spec.vocabulary else " ").join(names[token] for token in x[:MAX_LABELS])
        return element("figure", element("figcaption", title), element("pre", text))
    if spec.input_scaler is not None:
        x = spec.input_scaler.invert(x)
    x = x.reshape(len(x), -1)
    if x.shape[1] > MAX_CHANNELS:
        return page.chart(title, heat_map(x.T, "step", "input"))
    names = spec.input_names or [f"input {channel}" for channel in range(x.shape[1])]
    steps = np.arange(len(x))
    series = [Series(name, steps, x[:, c], c, c) for c, name in enumerate(names)]
    return page.chart(title, lines("time step", "input", series, height=220))


def _draw_value(page: Page, evaluation: Evaluation, k: int) -> list[Child]:
    """Draws the inputs of an example, and a table of its values."""
    values = evaluation.predictions.values
    if values is None:
        return []
    rows = [
        [name, *(None if np.isnan(x) else float(x) for x in (true, value, value - true))]
        for name, true, value in zip(
            evaluation.target_names, evaluation.truth[k], values[k], strict=True
        )
    ]
    columns = ["target", "true", "predicted", "error"]
    return [table(columns, rows), draw_inputs(page, evaluation, k, "inputs")]


def value_scatter(page: Page, evaluation: Evaluation) -> Element | None:
    """Draws predicted against true values; None for other targets than "value"."""
    values = evaluation.predictions.values
    if evaluation.spec.target != "value" or values is None:
        return None
    truth = evaluation.truth
    rows = np.unique(np.linspace(0, len(truth) - 1, min(len(truth), MAX_SCATTER)).astype(int))
    figures = []
    for channel, name in list(enumerate(evaluation.target_names))[:MAX_TARGETS]:
        shown = rows[~np.isnan(truth[rows, channel])]
        if not len(shown):
            continue
        true, predicted = truth[shown, channel], values[shown, channel]
        ends = [float(true.min()), float(true.max())]
        series = [
            Series("predicted = true", ends, ends, 6, 1),
            Series(
                "example", true, predicted, 0, points=True, texts=[f"example {k}" for k in shown]
            ),
        ]
        figures.append(page.chart(name, lines(f"true {name}", f"predicted {name}", series)))
    return grid(*figures)


def _draw_labels(page: Page, evaluation: Evaluation, k: int) -> list[Child]:
    """Draws a sequence of true labels, on which the background shows the loss of each step."""
    names, predictions = evaluation.class_names, evaluation.predictions
    if predictions.classes is None or predictions.probabilities is None:
        return []
    ys = evaluation.examples.ys[k]
    steps = np.flatnonzero(evaluation.mask[k])[:MAX_LABELS]
    is_text = evaluation.spec.vocabulary is not None
    parts: list[Child] = []
    for step in steps.tolist():
        true, predicted = int(ys[step]), int(predictions.classes[k, step])
        probability = float(predictions.probabilities[k, step, true])
        level = shade(min(evaluation.losses[k, step], 5.0), 5.0)
        title = (
            f"step {step}: true {names[true]!r} ({probability:.1%}), predicted {names[predicted]!r}"
        )
        parts.append(element("mark", names[true], class_=level, title=title))
        parts.append(None if is_text else " ")
    note = "The darker a true label, the less probable it was (no color 100%, dark below 1%)."
    return [element("p", note, class_="muted"), element("pre", *parts)]


def _draw_forecast(page: Page, evaluation: Evaluation, k: int) -> list[Child]:
    """Draws the true and predicted values of an example over its steps, in original units."""
    values, length = evaluation.predictions.values, int(evaluation.predictions.lengths[k])
    if values is None:
        return []
    if evaluation.spec.forecast is not None:
        return [grid(*_draw_rows_ahead(page, evaluation, evaluation.spec.forecast, k))]
    names = list(enumerate(evaluation.target_names))[:MAX_TARGETS]
    return [
        grid(
            *(
                forecast_figure(
                    page, name, evaluation.truth[k, :length, channel], values[k, :length, channel]
                )
                for channel, name in names
            )
        )
    ]


def _draw_rows_ahead(
    page: Page, evaluation: Evaluation, forecast: Forecast, k: int
) -> Iterator[Element]:
    """Draws the inputs of an example, and the rows that are forecast after its last row."""
    predictions, scaler = evaluation.predictions, evaluation.spec.input_scaler
    if predictions.values is None or scaler is None:
        return
    past = current_values(forecast, scaler, evaluation.examples.xs[k])
    for target, name in list(enumerate(forecast.targets))[:MAX_TARGETS]:
        ahead = slice(target, None, len(forecast.targets))  # this target in each row ahead
        rows = np.arange(1 - len(past), forecast.steps + 1)
        unknown = np.full(len(past), np.nan)
        join = lambda first, ends, ahead=ahead: np.concatenate([first, ends[k, -1, ahead]])
        has_interval = predictions.low is not None and predictions.high is not None
        yield forecast_figure(
            page,
            name,
            join(past[:, target], evaluation.truth),
            join(unknown, predictions.values),
            x=rows,
            low=join(unknown, predictions.low) if has_interval else None,
            high=join(unknown, predictions.high) if has_interval else None,
            xlabel="rows after the last row of the inputs",
        )


def forecast_figure(
    page: Page,
    name: str,
    truth: np.ndarray,
    values: np.ndarray,
    *,
    x: np.ndarray | None = None,
    low: np.ndarray | None = None,
    high: np.ndarray | None = None,
    interval: str = "interval",
    xlabel: str | None = None,
) -> Element:
    """Draws a forecast against the truth.

    Args:
      page: the page.
      name: the name of the target.
      truth: `[T]`, the true values in original units; NaN where they are not known.
      values: `[T]`, the predictions.
      x: `[T]`, the times of the values, NumPy `datetime64` or numbers; None means step numbers.
      low: `[T]`, the lower ends of intervals of the predictions, or None.
      high: `[T]`, the upper ends, or None.
      interval: the name of the intervals, such as "90% interval".
      xlabel: the label of the times; None means "time", or "time step" without `x`.
    """
    times = np.arange(len(values)) if x is None else x
    bands = [] if low is None or high is None else [Band(interval, times, low, high, 1)]
    series = [Series("true", times, truth, 0), Series("predicted", times, values, 1, 1)]
    xlabel = xlabel or ("time step" if x is None else "time")
    return page.chart(name, lines(xlabel, f"{name} (original units)", series, bands=bands))
