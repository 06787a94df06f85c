"""What the study of cells shows: a table, a figure, and claims of the literature beside it."""

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from scipy.stats import mannwhitneyu

from experiments.cells.contenders import CONTENDERS, GREFF

SOLVED = {"adding": 0.01, "parity": 0.95, "s3": 0.95}
"""From where on a task counts as solved; on adding the error must be below."""
SURE = 0.05
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
    text = f"{markdown(result)}\n\n{claims_markdown(result)}\n"
    (out / "cells.md").write_text(text, "utf-8")
    draw(result).savefig(out / "cells.png", dpi=110, bbox_inches="tight")


def by_key(result: dict[str, Any]) -> dict[Key, Row]:
    """The rows by cell and task, in the order of the contenders."""
    order = list(CONTENDERS)
    rows = sorted(result["rows"], key=lambda row: order.index(row["cell"]))
    return {(row["cell"], row["task"]): row for row in rows}


def values(row: Row, more: str | None = None) -> list[float]:
    """What each seed reached; the worst there is for one that came to no number."""
    worst = math.inf if row["task"] == "adding" else 0.0
    seen = row["test"] if more is None else row["more"][more]
    return [value if math.isfinite(value) else worst for value in seen]


def solved(row: Row, more: str | None = None) -> int:
    """Of how many seeds."""
    bound = SOLVED[row["task"]]
    good = (v < bound if row["task"] == "adding" else v >= bound for v in values(row, more))
    return sum(good)


def markdown(result: dict[str, Any]) -> str:
    """All cells, a line each."""
    rows = by_key(result)
    lstm = result["step_ms"].get("lstm")
    tasks = [task for task in COLUMNS if any(task == name for _, name in rows)]
    header = ("cell", "recurrence", "hidden", *(COLUMNS[task] for task in tasks), "time of a step")
    lines = []
    for cell in dict.fromkeys(cell for cell, _ in rows):
        own = {task: row for (name, task), row in rows.items() if name == cell}
        first = next(iter(own.values()))
        title = f"`{cell}`" + (f" ({first['options']})" if first["options"] else "")
        time = result["step_ms"].get(cell)
        shown = [_shown(own[task]) if task in own else "-" for task in tasks]
        spent = f"{time / lstm:.1f}" if time and lstm else "-"
        lines.append((title, first["recurrence"], str(first["hidden"]), *shown, spent))
    return _table(header, lines)


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---"] * len(header)
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines))


def _shown(row: Row) -> str:
    """What a row reached, as one text."""
    if row["task"] == "adding":
        return f"{statistics.median(values(row)):.4f} ({solved(row)} of {len(row['test'])})"
    return " / ".join(_spread(values(row, more)) for more in (None, *row["more"]))


def _spread(accuracies: list[float]) -> str:
    percent = [100 * value for value in accuracies]
    spread = statistics.stdev(percent) if len(percent) > 1 else 0.0
    return f"{statistics.mean(percent):.1f} ± {spread:.1f}"


class Verdict(NamedTuple):
    """A claim, who made it, what was seen, and whether that bears it out."""

    claim: str
    source: str
    seen: str
    verdict: str


def claims_markdown(result: dict[str, Any]) -> str:
    """The claims, a line each."""
    return _table(("claim", "source", "seen here", "so"), claims(result))


def claims(result: dict[str, Any]) -> list[Verdict]:
    """Every claim of which all rows are there."""
    rows = by_key(result)
    better = "a forget bias of 1 is better than one of 0"
    jozefowicz = "Gers et al. 2000; Jozefowicz et al. 2015"
    identity = "a ReLU network that begins at the identity adds over 200 steps, a tanh one does not"
    found = [
        *(_compared(rows, task, "lstm", "lstm-bias-0", "better", better, jozefowicz)
          for task in ("digits", "adding")),
        *(_compared(rows, task, f"lstm-{name}", "lstm-peepholes", "no worse",
                    f"{name} loses nothing against the LSTM with peepholes", "Greff et al. 2015")
          for name in ("CIFG", "NP") for task in ("digits", "adding")),
        *(_worst(rows, task) for task in ("digits", "adding")),
        _compared(rows, "adding", "irnn", "elman", "better", identity, "Le et al. 2015"),
        _compared(rows, "digits", "janet", "lstm", "no worse",
                  "the forget gate alone does as well as all gates, pixel by pixel",
                  "Van der Westhuizen and Lasenby 2018"),
        *(_tracking(rows, task) for task in ("parity", "s3")),
    ]  # fmt: skip
    return [verdict for verdict in found if verdict is not None]


def _compared(
    rows: dict[Key, Row],
    task: str,
    one: str,
    other: str,
    claimed: Literal["better", "no worse"],
    claim: str,
    source: str,
) -> Verdict | None:
    if not {(one, task), (other, task)} <= rows.keys():
        return None
    sign = -1 if task == "adding" else 1
    mine, theirs = values(rows[one, task]), values(rows[other, task])
    p = float(mannwhitneyu(mine, theirs).pvalue)
    ahead = sign * (statistics.median(mine) - statistics.median(theirs))
    if p >= SURE:
        verdict = "no difference seen" if claimed == "better" else "confirmed: no loss seen"
    elif claimed == "better":
        verdict = "confirmed" if ahead > 0 else "the reverse"
    else:
        verdict = "confirmed" if ahead > 0 else "not confirmed"
    seen = f"{task}: `{one}` {_shown(rows[one, task])}, `{other}` {_shown(rows[other, task])}"
    return Verdict(claim, source, f"{seen}; p = {p:.3f}", verdict)


def _worst(rows: dict[Key, Row], task: str) -> Verdict | None:
    names = [f"lstm-{name}" for name in GREFF]
    if not {(name, task) for name in names} <= rows.keys():
        return None
    worse = task == "adding"
    middle = statistics.median if worse else statistics.mean  # as they are shown
    ranked = sorted(names, key=lambda name: middle(values(rows[name, task])), reverse=worse)
    least = ", ".join(f"`{name}` {_shown(rows[name, task])}" for name in ranked[:3])
    right = len({"lstm-NFG", "lstm-NOAF"} & set(ranked[:2]))
    verdict = {2: "confirmed", 1: "half confirmed", 0: "not confirmed"}[right]
    claim = "of the eight variants NFG and NOAF lose most"
    return Verdict(claim, "Greff et al. 2015", f"{task}, worst first: {least}", verdict)


def _tracking(rows: dict[Key, Row], task: str) -> Verdict | None:
    mine = {cell: row for (cell, name), row in rows.items() if name == task}
    if not {"lstm", "slstm"} <= mine.keys():
        return None
    linear = {cell: row for cell, row in mine.items() if row["recurrence"] == "linear"}
    counts = lambda some: ", ".join(
        f"`{cell}` {solved(row)} / {solved(row, LONGER)}" for cell, row in some.items()
    )
    gated = {cell: mine[cell] for cell in ("lstm", "slstm")}
    fails = all(solved(row, LONGER) == 0 for row in linear.values())
    solves = all(solved(row) == len(row["test"]) for row in gated.values())
    seen = f"{task}, seeds that solve it at 32 / 128: {counts(gated)}; {counts(linear)}"
    verdict = "confirmed" if fails and solves else "confirmed in part" if fails else "not confirmed"
    claim = "linear cells do not track state where LSTM and sLSTM do"
    return Verdict(claim, "Merrill et al. 2024; Beck et al. 2024", seen, verdict)


def draw(result: dict[str, Any]) -> Any:
    """One column a task and one for the time; a line for each cell, a dot for each seed."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    rows = by_key(result)
    names = list(dict.fromkeys(cell for cell, _ in rows))
    digits = {cell: statistics.median(values(r)) for (cell, t), r in rows.items() if t == "digits"}
    names.sort(key=lambda name: digits.get(name, 0.0))
    places = {name: place for place, name in enumerate(names)}
    colours = {row["recurrence"]: "" for row in rows.values()}
    colours = {kind: f"C{number}" for number, kind in enumerate(colours)}
    tasks = {task: row for (_, task), row in rows.items()}
    figure = Figure(figsize=(15, 2 + 0.24 * len(names)), layout="constrained")
    *panels, timed = figure.subplots(1, len(tasks) + 1, sharey=True)

    for axes, task in zip(panels, tasks, strict=True):
        for name in names:
            if (name, task) in rows:
                _dots(axes, rows[name, task], places[name], colours)
        axes.axvline(tasks[task]["baseline"], color="gray", linestyle=":", linewidth=1)
        axes.set(title=TITLES[task], xlabel="squared error" if task == "adding" else "accuracy")
        if task == "adding":
            axes.set_xscale("log")
    steps = {name: result["step_ms"][name] for name in names if name in result["step_ms"]}
    whole = steps.get("lstm", 1.0)
    timed.barh([places[n] for n in steps], [ms / whole for ms in steps.values()], color="lightgray")
    timed.set(title="time of a training step", xlabel="LSTM = 1" if "lstm" in steps else "ms")
    timed.set_xscale("log" if steps else "linear")
    timed.set_yticks(range(len(names)), names)
    timed.set_ylim(-0.7, len(names) - 0.3)
    for axes in (*panels, timed):
        axes.grid(axis="both", alpha=0.25)

    dot = lambda label, **look: Line2D([], [], marker="o", linestyle="", label=label, **look)
    handles = [
        *(dot(kind, color=colour) for kind, colour in colours.items()),
        dot("parity, S3 at 32 steps", mfc="none", mec="black"),
        dot("at 128 steps", color="black"),
        Line2D([], [], linestyle=":", color="gray", label="a constant guess"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _dots(axes: Any, row: Row, place: int, colours: dict[str, str]) -> None:
    """The seeds of one cell: hollow where there are tests of longer sequences too."""
    colour = colours[row["recurrence"]]
    for number, more in enumerate((None, *row["more"])):
        seen = [value for value in values(row, more) if math.isfinite(value)]
        hollow = number == 0 and row["more"]
        look = {"mfc": "none" if hollow else colour, "mec": colour, "alpha": 0.7}
        axes.plot(seen, [place] * len(seen), "o", markersize=5, **look)
