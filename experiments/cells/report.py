"""The report of the comparison of cells: a table, a figure, and claims of the literature."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scipy.stats import mannwhitneyu

from experiments.cells.cell_configs import CELL_CONFIGS, GREFF
from jrnn.plotting import new_figure

SOLVED = {"adding": 0.01, "parity": 0.95, "s3": 0.95}
"""Thresholds of the accuracy, and for adding of the error, at which a task counts as solved."""
SIGNIFICANCE = 0.05
LONGER = "at 128"
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
    """Writes `cells.md` and `cells.png`."""
    parts = ("# Every cell", conditions(result), markdown(result), claims_markdown(result))
    text = "\n\n".join(parts) + "\n"
    (out / "cells.md").write_text(text, "utf-8")
    draw(result).savefig(out / "cells.png", dpi=110, bbox_inches="tight")


def conditions(result: dict[str, Any]) -> str:
    """A paragraph on how the results were computed."""
    options, versions, rows = result["options"], result["versions"], result["rows"]
    rates = sorted(options["rates"])
    selected = [row["rate"] for row in rows]
    steps = {row["task"]: row["steps"] for row in rows}
    return (
        f"Networks of about {options['parameters']} parameters: one layer and a linear readout. "
        f"Training steps of {options['batch_size']} examples: "
        f"{', '.join(f'{task} {count}' for task, count in steps.items())}. Adam with clipped "
        f"gradients and a cosine schedule. The peak learning rate was selected from "
        f"{', '.join(map(str, rates))} by seed 0 on the validation split (the lowest "
        f"{selected.count(rates[0])} times, the highest {selected.count(rates[-1])} times of "
        f"{len(selected)}); the seeds 1 to {options['seeds']} give the test results below. "
        f"Accuracies are means with standard deviations; errors are medians, with the number of "
        f"seeds below {SOLVED['adding']}. The time of a training step is measured on digits, "
        f"relative to the LSTM, {_milliseconds(result)}float32, engine auto, on "
        f"{result['machine']['cores']} cores of {result['machine']['cpu']}; trained on "
        f"{_processors(result)}. Python {versions['python']}, JAX {versions['jax']}, "
        f"jrnn {versions['jrnn']}. Command: `python -m experiments.cells.run`."
    )


def _processors(result: dict[str, Any]) -> str:
    """The processors of the rows, with the number of rows on each if there are several."""
    counts = Counter(row.get("cpu", result["machine"]["cpu"]) for row in result["rows"])
    if len(counts) == 1:
        return next(iter(counts))
    return " and ".join(f"{cpu} ({count} of {counts.total()})" for cpu, count in counts.items())


def _milliseconds(result: dict[str, Any]) -> str:
    lstm = result["step_ms"].get("lstm")
    return f"{lstm:.2f} ms; " if lstm else ""


def by_key(result: dict[str, Any]) -> dict[Key, Row]:
    """The rows by cell and task, in the order of `CELL_CONFIGS` and `COLUMNS`."""
    cells, tasks = list(CELL_CONFIGS), list(COLUMNS)
    order = lambda row: (cells.index(row["cell"]), tasks.index(row["task"]))
    rows = sorted(result["rows"], key=order)
    return {(row["cell"], row["task"]): row for row in rows}


def values(row: Row, more: str | None = None) -> list[float]:
    """The metric of each seed; the worst possible value if training diverged."""
    worst = math.inf if row["task"] == "adding" else 0.0
    metrics = row["test"] if more is None else row["more"][more]
    return [worst if value is None else value for value in metrics]


def count_solved(row: Row, more: str | None = None) -> int:
    """The number of seeds that solve the task."""
    threshold = SOLVED[row["task"]]
    is_error = row["task"] == "adding"
    return sum(v < threshold if is_error else v >= threshold for v in values(row, more))


def markdown(result: dict[str, Any]) -> str:
    """A table with one line for each cell."""
    rows = by_key(result)
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
        sizes = (_range(row[name] for row in own.values()) for name in ("hidden", "parameters"))
        lines.append((title, first["recurrence"], *sizes, *metrics, relative_time))
    return _table(header, lines)


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---"] * len(header)
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines))


def _range(numbers: Iterable[int]) -> str:
    least, *_, most = sorted([*numbers] * 2)
    return str(least) if least == most else f"{least} to {most}"


def _format_row(row: Row) -> str:
    """Formats the metrics of a row."""
    if row["task"] == "adding":
        return f"{statistics.median(values(row)):.2g} ({count_solved(row)} of {len(row['test'])})"
    return " / ".join(_mean_and_std(values(row, more)) for more in (None, *row["more"]))


def _mean_and_std(accuracies: list[float]) -> str:
    percent = [100 * value for value in accuracies]
    spread = statistics.stdev(percent) if len(percent) > 1 else 0.0
    return f"{statistics.mean(percent):.1f} ± {spread:.1f}"


class Verdict(NamedTuple):
    """A claim, its source, the results here, and whether they confirm it."""

    claim: str
    source: str
    result: str
    verdict: str


def claims_markdown(result: dict[str, Any]) -> str:
    """A table with one line for each claim."""
    return _table(("claim", "source", "result here", "verdict"), claims(result))


def claims(result: dict[str, Any]) -> list[Verdict]:
    """The verdicts on all claims whose rows are available."""
    rows = by_key(result)
    greff = "Greff et al. 2015"
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
    """The advantage of one row's median over another's, and its p-value."""
    sign = -1 if one["task"] == "adding" else 1
    mine, theirs = ([sign * value for value in values(row)] for row in (one, other))
    medians = statistics.median(mine), statistics.median(theirs)
    # Both may be infinite, and the difference of infinities would be NaN.
    advantage = 0.0 if medians[0] == medians[1] else medians[0] - medians[1]
    return advantage, float(mannwhitneyu(mine, theirs).pvalue)


def _compare_pair(
    rows: dict[Key, Row], task: str, one: str, other: str, claim: str, source: str
) -> Verdict | None:
    """The verdict on a claim that one cell is better than another, or no worse."""
    if not {(one, task), (other, task)} <= rows.keys():
        return None
    pair = rows[one, task], rows[other, task]
    advantage, p = _compare_medians(*pair)
    verdict = "no significant difference"
    if p < SIGNIFICANCE:
        verdict = "confirmed" if advantage > 0 else "not confirmed"
    elif 2 / math.comb(2 * len(pair[0]["test"]), len(pair[0]["test"])) >= SIGNIFICANCE:
        verdict = "too few seeds"
    result = f"{task}: `{one}` {_format_row(pair[0])}, `{other}` {_format_row(pair[1])}"
    return Verdict(claim, source, f"{result}; p = {p:.3f}", verdict)


def _judge_variants(rows: dict[Key, Row], task: str) -> Verdict | None:
    """The verdict on the claim that two ablations are the worst, compared with the full LSTM."""
    names = [f"lstm-{name}" for name in GREFF]
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
    return Verdict(claim, "Greff et al. 2015", result, verdict)


def _judge_identity(rows: dict[Key, Row]) -> Verdict | None:
    """The verdict on the claim about a ReLU network that is initialized to the identity."""
    if not {("irnn", "adding"), ("elman", "adding")} <= rows.keys():
        return None
    irnn, elman = rows["irnn", "adding"], rows["elman", "adding"]
    difference = count_solved(irnn) - count_solved(elman)
    verdict = "confirmed" if difference == len(irnn["test"]) else "partly confirmed"
    result = f"adding: `irnn` {_format_row(irnn)}, `elman` {_format_row(elman)}"
    claim = "a ReLU network initialized to the identity solves adding, a tanh network does not"
    return Verdict(claim, "Le et al. 2015", result, verdict if difference > 0 else "not confirmed")


def _judge_tracking(rows: dict[Key, Row], task: str) -> Verdict | None:
    """The verdict on linear cells, whose factors are positive or do not depend on the input."""
    by_cell = {cell: row for (cell, name), row in rows.items() if name == task}
    linear = {cell: row for cell, row in by_cell.items() if row["recurrence"] == "linear"}
    if not {"lstm", "slstm"} <= by_cell.keys() or not linear:
        return None
    counts = lambda rows: ", ".join(
        f"`{cell}` {count_solved(row)} / {count_solved(row, LONGER)}" for cell, row in rows.items()
    )
    gated = {cell: by_cell[cell] for cell in ("lstm", "slstm")}
    fails = [cell for cell, row in linear.items() if count_solved(row) == 0]
    solves = [cell for cell, row in gated.items() if count_solved(row) == len(row["test"])]
    verdict = "partly confirmed" if fails and solves else "not confirmed"
    if len(fails) == len(linear) and len(solves) == len(gated):
        verdict = "confirmed"
    result = f"{task}, seeds that solve it at 32 / 128: {counts(gated)}; {counts(linear)}"
    claim = "linear cells do not track state where LSTM and sLSTM do"
    source = "Beck et al. 2024; Sarrof et al. 2024; Grazzi et al. 2024"
    return Verdict(claim, source, result, verdict)


def draw(result: dict[str, Any]) -> Any:
    """One panel for each task and one for the time; a line for each cell, a dot for each seed."""
    from matplotlib.lines import Line2D

    rows = by_key(result)
    names = list(dict.fromkeys(cell for cell, _ in rows))
    digits = {cell: statistics.median(values(r)) for (cell, t), r in rows.items() if t == "digits"}
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
                _dots(axes, rows[name, task], positions[name], colors)
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


def _dots(axes: Any, row: Row, position: int, colors: dict[str, str]) -> None:
    """Draws the seeds of one cell; hollow if longer sequences were tested too."""
    color = colors[row["recurrence"]]
    for number, more in enumerate((None, *row["more"])):
        finite = [value for value in values(row, more) if math.isfinite(value)]
        is_hollow = number == 0 and row["more"]
        style = {"mfc": "none" if is_hollow else color, "mec": color, "alpha": 0.7}
        axes.plot(finite, [position] * len(finite), "o", markersize=5, **style)
