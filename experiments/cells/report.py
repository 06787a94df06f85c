"""The report of the comparison of cells: a table, a figure, and a test of published claims."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scipy.stats import mannwhitneyu

from experiments.cells.cell_configs import CELL_CONFIGS, GREFF_VARIANTS
from jrnn.plotting import new_figure

SOLVED = {"adding": 0.01, "parity": 0.95, "s3": 0.95}
"""A task is solved from this accuracy, and adding below this error."""
SIGNIFICANCE = 0.05
"""Significance level of the Mann-Whitney U test."""
LONGER = "at 128"
"""Label of the further test on sequences of 128 steps."""
COLUMNS = {
    "digits": "digits, accuracy %",
    "adding": "adding, error (solved)",
    "parity": "parity, % at 32 / 128",
    "s3": "S3, % at 32 / 128",
}
TITLES = {
    "digits": "digits by pixel",
    "adding": "adding, 200 steps",
    "parity": "parity",
    "s3": "S3",
}

Row = dict[str, Any]
Key = tuple[str, str]


def write(result: dict[str, Any], out: Path) -> None:
    """Writes `cells.md` and `cells.png` to the folder `out`."""
    parts = (
        "# Comparison of all cells",
        conditions(result),
        markdown(result),
        claims_markdown(result),
    )
    text = "\n\n".join(parts) + "\n"
    (out / "cells.md").write_text(text, "utf-8")
    draw(result).savefig(out / "cells.png", dpi=110, bbox_inches="tight")


def conditions(result: dict[str, Any]) -> str:
    """Returns a paragraph that describes how the results were computed."""
    options, versions, rows = result["options"], result["versions"], result["rows"]
    rates = sorted(options["rates"])
    selected = [row["rate"] for row in rows]
    steps = {row["task"]: row["steps"] for row in rows}
    return (
        f"Networks of about {options['parameters']} parameters: one recurrent layer (two with "
        f"`depthgatedlstm`) and a linear output layer. "
        f"Training steps of {options['batch_size']} examples: "
        f"{', '.join(f'{task} {count}' for task, count in steps.items())}. Adam with clipped "
        f"gradients and a cosine schedule. The peak learning rate was selected from "
        f"{', '.join(map(str, rates))} by seed 0 on the validation split (the lowest "
        f"{selected.count(rates[0])} times, the highest {selected.count(rates[-1])} times of "
        f"{len(selected)}); the seeds 1 to {options['seeds']} give the test results below. "
        f"Accuracies are means with standard deviations; errors are medians, with the number of "
        f"seeds below {SOLVED['adding']}. The time of a training step is measured on digits, "
        f"relative to the LSTM, {_format_lstm_time(result)}float32, engine auto, on "
        f"{result['machine']['cores']} cores of {result['machine']['cpu']}; trained on "
        f"{_format_cpus(result)}. Python {versions['python']}, JAX {versions['jax']}, "
        f"jrnn {versions['jrnn']}. Command: `python -m experiments.cells.run`."
    )


def _format_cpus(result: dict[str, Any]) -> str:
    """Returns the names of the CPUs, with the number of rows on each if there are several."""
    counts = Counter(row.get("cpu", result["machine"]["cpu"]) for row in result["rows"])
    if len(counts) == 1:
        return next(iter(counts))
    return " and ".join(f"{cpu} ({count} of {counts.total()})" for cpu, count in counts.items())


def _format_lstm_time(result: dict[str, Any]) -> str:
    lstm = result["step_ms"].get("lstm")
    return f"{lstm:.2f} ms; " if lstm else ""


def index_rows(result: dict[str, Any]) -> dict[Key, Row]:
    """Returns the rows by cell and task, in the order of `CELL_CONFIGS` and `COLUMNS`."""
    cells, tasks = list(CELL_CONFIGS), list(COLUMNS)
    order = lambda row: (cells.index(row["cell"]), tasks.index(row["task"]))
    rows = sorted(result["rows"], key=order)
    return {(row["cell"], row["task"]): row for row in rows}


def get_metrics(row: Row, more: str | None = None) -> list[float]:
    """Returns the metric of each seed; the worst possible value if training diverged.

    Args:
      row: a row of the results.
      more: label of a further test; None means the test split of the task.
    """
    worst = math.inf if row["task"] == "adding" else 0.0
    metrics = row["test"] if more is None else row["more"][more]
    return [worst if value is None else value for value in metrics]


def count_solved(row: Row, more: str | None = None) -> int:
    """Returns the number of seeds that solve the task."""
    threshold = SOLVED[row["task"]]
    is_error = row["task"] == "adding"
    return sum(v < threshold if is_error else v >= threshold for v in get_metrics(row, more))


def markdown(result: dict[str, Any]) -> str:
    """Returns a Markdown table with one line per cell."""
    rows = index_rows(result)
    lstm = result["step_ms"].get("lstm")
    tasks = [task for task in COLUMNS if any(task == name for _, name in rows)]
    columns = ("cell", "recurrence", "hidden", "parameters")
    header = (*columns, *(COLUMNS[task] for task in tasks), "time of a step")
    lines = []
    for cell in dict.fromkeys(cell for cell, _ in rows):
        own = {task: row for (name, task), row in rows.items() if name == cell}
        first = next(iter(own.values()))
        title = f"`{cell}`" + (f" ({first['options']})" if first["options"] else "")
        time = result["step_ms"].get(cell)
        metrics = [_format_row(own[task]) if task in own else "-" for task in tasks]
        relative_time = f"{time / lstm:.1f}" if time and lstm else "-"
        sizes = (
            _format_range(row[name] for row in own.values()) for name in ("hidden", "parameters")
        )
        lines.append((title, first["recurrence"], *sizes, *metrics, relative_time))
    return _table(header, lines)


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---"] * len(header)
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines))


def _format_range(numbers: Iterable[int]) -> str:
    minimum, *_, maximum = sorted([*numbers] * 2)
    return str(minimum) if minimum == maximum else f"{minimum} to {maximum}"


def _format_row(row: Row) -> str:
    """Formats the metrics of a row: the median for adding, otherwise means and deviations."""
    if row["task"] == "adding":
        return (
            f"{statistics.median(get_metrics(row)):.2g} ({count_solved(row)} of {len(row['test'])})"
        )
    return " / ".join(_format_mean_and_std(get_metrics(row, more)) for more in (None, *row["more"]))


def _format_mean_and_std(accuracies: list[float]) -> str:
    percent = [100 * value for value in accuracies]
    spread = statistics.stdev(percent) if len(percent) > 1 else 0.0
    return f"{statistics.mean(percent):.1f} ± {spread:.1f}"


class Verdict(NamedTuple):
    """A published claim, its source, the results of the study, and whether they confirm it."""

    claim: str
    source: str
    result: str
    verdict: str


def claims_markdown(result: dict[str, Any]) -> str:
    """Returns a Markdown table with one line per claim."""
    return _table(("claim", "source", "our result", "verdict"), judge_claims(result))


def judge_claims(result: dict[str, Any]) -> list[Verdict]:
    """Returns the verdicts on all claims whose rows are available."""
    rows = index_rows(result)
    greff = "Greff et al. 2017"
    verdicts = [
        *(
            _compare_pair(rows, task, "lstm", "lstm-bias-0", claim, source)
            for claim, source in [
                ("a forget bias of 1 is better than 0", "Gers et al. 2000; Jozefowicz et al. 2015")
            ]
            for task in ("digits", "adding")
        ),
        *(
            _compare_pair(
                rows,
                task,
                f"lstm-{name}",
                "lstm-peepholes",
                f"{name} performs as well as the LSTM with peepholes",
                greff,
            )
            for name in ("CIFG", "NP")
            for task in ("digits", "adding")
        ),
        *(_judge_variants(rows, task) for task in ("digits", "adding")),
        _judge_identity(rows),
        _compare_pair(
            rows,
            "digits",
            "janet",
            "lstm",
            "a forget gate alone performs as well as all gates (without chrono initialization)",
            "Van der Westhuizen and Lasenby 2018",
        ),
        *(_judge_tracking(rows, task) for task in ("parity", "s3")),
    ]
    return [verdict for verdict in verdicts if verdict is not None]


def _compare_medians(one: Row, other: Row) -> tuple[float, float]:
    """Returns by how much the median of one row is better than that of another, and the p-value."""
    sign = -1 if one["task"] == "adding" else 1
    first, second = ([sign * value for value in get_metrics(row)] for row in (one, other))
    medians = statistics.median(first), statistics.median(second)
    # If both are infinite, their difference is NaN.
    advantage = 0.0 if medians[0] == medians[1] else medians[0] - medians[1]
    return advantage, float(mannwhitneyu(first, second).pvalue)


def _compare_pair(
    rows: dict[Key, Row], task: str, one: str, other: str, claim: str, source: str
) -> Verdict | None:
    """Returns the verdict on the claim that cell `one` is better than `other`, or as good.

    As the other functions for verdicts, it returns None if a row is missing.
    """
    if not {(one, task), (other, task)} <= rows.keys():
        return None
    pair = rows[one, task], rows[other, task]
    advantage, p = _compare_medians(*pair)
    verdict = "no significant difference"
    if p < SIGNIFICANCE:
        verdict = "confirmed" if advantage > 0 else "not confirmed"
    # The left side is the smallest possible p-value.
    elif 2 / math.comb(2 * len(pair[0]["test"]), len(pair[0]["test"])) >= SIGNIFICANCE:
        verdict = "too few seeds"
    result = f"{task}: `{one}` {_format_row(pair[0])}, `{other}` {_format_row(pair[1])}"
    return Verdict(claim, source, f"{result}; p = {p:.3f}", verdict)


def _judge_variants(rows: dict[Key, Row], task: str) -> Verdict | None:
    """Returns the verdict on the claim that the variants NFG and NOAF are the worst."""
    names = [f"lstm-{name}" for name in GREFF_VARIANTS]
    if not {(name, task) for name in [*names, "lstm-peepholes"]} <= rows.keys():
        return None
    full = rows["lstm-peepholes", task]
    compared = {name: _compare_medians(rows[name, task], full) for name in names}
    ranked = sorted(names, key=lambda name: compared[name][0])
    confirmed = [
        name
        for name in ranked[:2]
        if name in ("lstm-NFG", "lstm-NOAF") and compared[name][1] < SIGNIFICANCE
    ]
    verdict = ("not confirmed", "partly confirmed", "confirmed")[len(confirmed)]
    worst = (f"`{n}` {_format_row(rows[n, task])} (p = {compared[n][1]:.3f})" for n in ranked[:3])
    result = f"{task}, worst first: {', '.join(worst)}; `lstm-peepholes` {_format_row(full)}"
    claim = "NFG and NOAF are the worst of the eight variants"
    return Verdict(claim, "Greff et al. 2017", result, verdict)


def _judge_identity(rows: dict[Key, Row]) -> Verdict | None:
    """Returns the verdict on the claim about a ReLU network with identity initialization."""
    if not {("irnn", "adding"), ("elman", "adding")} <= rows.keys():
        return None
    irnn, elman = rows["irnn", "adding"], rows["elman", "adding"]
    difference = count_solved(irnn) - count_solved(elman)
    verdict = "confirmed" if difference == len(irnn["test"]) else "partly confirmed"
    result = f"adding: `irnn` {_format_row(irnn)}, `elman` {_format_row(elman)}"
    claim = "a ReLU network initialized to the identity solves adding, a tanh network does not"
    return Verdict(claim, "Le et al. 2015", result, verdict if difference > 0 else "not confirmed")


def _judge_tracking(rows: dict[Key, Row], task: str) -> Verdict | None:
    """Returns the verdict on the claim that linear cells do not track state."""
    by_cell = {cell: row for (cell, name), row in rows.items() if name == task}
    linear = {cell: row for cell, row in by_cell.items() if row["recurrence"] == "linear"}
    if not {"lstm", "slstm"} <= by_cell.keys() or not linear:
        return None
    counts = lambda rows: ", ".join(
        f"`{cell}` {count_solved(row)} / {count_solved(row, LONGER)}" for cell, row in rows.items()
    )
    nonlinear = {cell: by_cell[cell] for cell in ("lstm", "slstm")}
    fails = [cell for cell, row in linear.items() if count_solved(row) == 0]
    solves = [cell for cell, row in nonlinear.items() if count_solved(row) == len(row["test"])]
    verdict = "partly confirmed" if fails and solves else "not confirmed"
    if len(fails) == len(linear) and len(solves) == len(nonlinear):
        verdict = "confirmed"
    result = f"{task}, seeds that solve it at 32 / 128: {counts(nonlinear)}; {counts(linear)}"
    claim = "linear cells do not track state where LSTM and sLSTM do"
    source = "Beck et al. 2024; Sarrof et al. 2024; Grazzi et al. 2024"
    return Verdict(claim, source, result, verdict)


def draw(result: dict[str, Any]) -> Any:
    """Draws one panel per task and one for the time; each line is a cell, each dot one seed."""
    from matplotlib.lines import Line2D

    rows = index_rows(result)
    names = list(dict.fromkeys(cell for cell, _ in rows))
    digits = {
        cell: statistics.median(get_metrics(r)) for (cell, t), r in rows.items() if t == "digits"
    }
    names.sort(key=lambda name: digits.get(name, 0.0))
    positions = {name: position for position, name in enumerate(names)}
    colors = {row["recurrence"]: "" for row in rows.values()}
    colors = {kind: f"C{number}" for number, kind in enumerate(colors)}
    tasks = {task: row for (_, task), row in rows.items()}
    figure = new_figure(15, 2 + 0.24 * len(names))
    *panels, timed = figure.subplots(1, len(tasks) + 1, sharey=True)

    for axes, task in zip(panels, tasks, strict=True):
        for name in names:
            if (name, task) in rows:
                _draw_dots(axes, rows[name, task], positions[name], colors)
        axes.axvline(tasks[task]["baseline"], color="gray", linestyle=":", linewidth=1)
        axes.set(title=TITLES[task], xlabel="squared error" if task == "adding" else "accuracy")
        if task == "adding":
            axes.set_xscale("log")
    steps = {name: result["step_ms"][name] for name in names if name in result["step_ms"]}
    unit = steps.get("lstm", 1.0)
    widths = [ms / unit for ms in steps.values()]
    timed.barh([positions[name] for name in steps], widths, color="lightgray")
    timed.set(title="time of a training step", xlabel="LSTM = 1" if "lstm" in steps else "ms")
    timed.set_xscale("log" if steps else "linear")
    timed.set_yticks(range(len(names)), names)
    timed.set_ylim(-0.7, len(names) - 0.3)
    for axes in (*panels, timed):
        axes.grid(axis="both", alpha=0.25)

    dot = lambda label, **style: Line2D([], [], marker="o", linestyle="", label=label, **style)
    handles = [
        *(dot(kind, color=color) for kind, color in colors.items()),
        dot("parity, S3 at 32 steps", mfc="none", mec="black"),
        dot("at 128 steps", color="black"),
        Line2D([], [], linestyle=":", color="gray", label="constant prediction"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _draw_dots(axes: Any, row: Row, position: int, colors: dict[str, str]) -> None:
    """Draws the seeds of one row; dots are hollow if filled ones show longer sequences."""
    color = colors[row["recurrence"]]
    for number, more in enumerate((None, *row["more"])):
        finite = [value for value in get_metrics(row, more) if math.isfinite(value)]
        is_hollow = number == 0 and row["more"]
        style = {"mfc": "none" if is_hollow else color, "mec": color, "alpha": 0.7}
        axes.plot(finite, [position] * len(finite), "o", markersize=5, **style)
