"""What a sweep shows at its end: a table and a figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from jrnn.tasks.task import Data
from jrnn.train.metrics import MetricsFile
from jrnn.train.objective import HIGHER_IS_BETTER
from jrnn.train.progress import METRIC_NAMES
from jrnn.train.report import blank
from jrnn.train.sweep import Swept, member_folder

SHOWN = 20
"""Members that the table shows at most: the best of them."""

Values = Sequence[dict[str, str]]
"""For each member the texts of its values, by name."""


def rows(values: Values, swept: Swept) -> list[dict[str, Any]]:
    """What each member reached in plain numbers, fit for JSON; None where it has no number."""
    return [
        {
            "member": number,
            "values": value,
            "validation": outcome.validation.get("metric"),
            "test": outcome.test.get("metric"),
            "best_step": outcome.step,
            "ended": outcome.ended,
        }
        for number, (value, outcome) in enumerate(zip(values, swept.outcomes, strict=True))
    ]


def ranked(values: Values, swept: Swept, metric: str) -> list[dict[str, Any]]:
    """The rows, the best on the validation split first and those without a number last."""
    sign = -1 if HIGHER_IS_BETTER[metric] else 1
    found = rows(values, swept)
    worst = float("inf")
    order = lambda r: worst if r["validation"] is None else sign * r["validation"]
    return sorted(found, key=order)


def table(values: Values, swept: Swept, metric: str) -> Table:
    """The best members as a rich table."""
    codes, members = len(swept.groups), len(swept.outcomes)
    shown = Table(
        title=f"{members} members, {codes} compiled code{'s' if codes > 1 else ''}, "
        f"{swept.seconds:.0f} s",
        title_justify="left",
    )
    name = METRIC_NAMES[metric]
    for column in ("member", *values[0], f"validation {name}", f"test {name}", "best at", "ended"):
        shown.add_column(column)
    number = lambda value: "-" if value is None else f"{value:.4f}"
    for row in ranked(values, swept, metric)[:SHOWN]:
        results = number(row["validation"]), number(row["test"]), str(row["best_step"])
        shown.add_row(str(row["member"]), *row["values"].values(), *results, row["ended"] or "-")
    if members > SHOWN:
        shown.caption = f"the best {SHOWN}; all are in result.json"
    return shown


def figure(values: Values, swept: Swept, data: Data, folder: Path) -> Path:
    """Draws `figure.png`: each member over training, and what it reached over each of its values.

    Args:
      values: those of the members.
      swept: what the sweep ended with.
      data: the loaded task, or one of them.
      folder: that of the sweep.

    Returns:
      Where the figure is.

    Raises:
      ImportError: matplotlib is missing.
    """
    names = list(values[0])
    drawn = blank(4 * (len(names) + 1), 3.6)
    panels = drawn.subplots(1, len(names) + 1, squeeze=False)[0]
    _draw_curves(panels[0], swept, data, folder)
    for ax, name in zip(panels[1:], names, strict=True):
        _draw_values(ax, name, values, swept)
    path = folder / "figure.png"
    drawn.savefig(path, dpi=120)
    return path


def _draw_curves(ax: Any, swept: Swept, data: Data, folder: Path) -> None:
    for number in range(len(swept.outcomes)):
        curve = MetricsFile(member_folder(folder, number) / "metrics.jsonl")
        best = number == swept.best
        style = {"color": "k", "lw": 2, "zorder": 3} if best else {"color": "0.6", "lw": 0.8}
        label = f"member {number}, the best" if best else None
        ax.plot(*curve.read("validation", "metric"), label=label, **style)
    ax.axhline(data.baseline[1], color="tab:red", ls=":", lw=1, label=data.baseline[0])
    ax.set(xlabel="step", ylabel=f"validation {METRIC_NAMES[data.metric]}")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)


def _draw_values(ax: Any, name: str, values: Values, swept: Swept) -> None:
    """What members reached over one value; those that were never evaluated are left out."""
    found = [(v[name], o) for v, o in zip(values, swept.outcomes, strict=True) if o.validation]
    texts = [text for text, _ in found]
    heights = [outcome.validation["metric"] for _, outcome in found]
    try:
        places: list[Any] = [float(text) for text in texts]
    except ValueError:
        places = texts
    ax.plot(places, heights, "o", color="0.6", ms=4)
    if swept.best is not None:
        best = (
            [float(values[swept.best][name])] if places is not texts else [values[swept.best][name]]
        )
        ax.plot(best, [swept.outcomes[swept.best].validation["metric"]], "k*", ms=11)
    if places is not texts and places and min(places) > 0 and max(places) > 20 * min(places):
        ax.set_xscale("log")
    ax.set(xlabel=name)
    ax.spines[["top", "right"]].set_visible(False)
