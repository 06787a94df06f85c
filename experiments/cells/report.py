"""What the study of cells shows: a table, a figure, and claims of the literature beside it."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scipy.stats import mannwhitneyu

from experiments.cells.contenders import CONTENDERS, GREFF
from jrnn.plotting import new_figure

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
    parts = ("# Every cell", conditions(result), markdown(result), claims_markdown(result))
    text = "\n\n".join(parts) + "\n"
    (out / "cells.md").write_text(text, "utf-8")
    draw(result).savefig(out / "cells.png", dpi=110, bbox_inches="tight")


def conditions(result: dict[str, Any]) -> str:
    """How the figures came about."""
    options, versions, rows = result["options"], result["versions"], result["rows"]
    rates = sorted(options["rates"])
    chosen = [row["rate"] for row in rows]
    steps = {row["task"]: row["steps"] for row in rows}
    return (
        f"Networks of about {options['parameters']} parameters: one layer and a linear readout. "
        f"Training steps of {options['batch_size']} examples: "
        f"{', '.join(f'{task} {count}' for task, count in steps.items())}. Adam, its gradient "
        f"clipped, with a cosine schedule. Of the highest rates {', '.join(map(str, rates))} one "
        f"was chosen by seed 0 on the validation split (the lowest {chosen.count(rates[0])} times, "
        f"the highest {chosen.count(rates[-1])} times of {len(chosen)}); the seeds 1 to "
        f"{options['seeds']} give the test results below. Accuracies are means over them with "
        f"their standard deviation; errors are medians, with the number of seeds below "
        f"{SOLVED['adding']}. The time of a training step is that on digits, of the LSTM = 1, "
        f"{_milliseconds(result)}float32, engine auto, on {result['machine']['cores']} cores of "
        f"{result['machine']['cpu']}; trained on {_processors(result)}. "
        f"Python {versions['python']}, JAX {versions['jax']}, "
        f"jrnn {versions['jrnn']}. Made by `python -m experiments.cells.run`."
    )


def _processors(result: dict[str, Any]) -> str:
    """On which processors the rows were made, and how many on each where there are several."""
    counts = Counter(row.get("cpu", result["machine"]["cpu"]) for row in result["rows"])
    if len(counts) == 1:
        return next(iter(counts))
    return " and ".join(f"{cpu} ({count} of {counts.total()})" for cpu, count in counts.items())


def _milliseconds(result: dict[str, Any]) -> str:
    lstm = result["step_ms"].get("lstm")
    return f"{lstm:.2f} ms; " if lstm else ""


def by_key(result: dict[str, Any]) -> dict[Key, Row]:
    """The rows by cell and task, in the order of the contenders and of `COLUMNS`."""
    cells, tasks = list(CONTENDERS), list(COLUMNS)
    place = lambda row: (cells.index(row["cell"]), tasks.index(row["task"]))
    rows = sorted(result["rows"], key=place)
    return {(row["cell"], row["task"]): row for row in rows}


def values(row: Row, more: str | None = None) -> list[float]:
    """What each seed reached; the worst there is for one that came to no number."""
    worst = math.inf if row["task"] == "adding" else 0.0
    seen = row["test"] if more is None else row["more"][more]
    return [worst if value is None else value for value in seen]


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
    named = ("cell", "recurrence", "hidden", "parameters")
    header = (*named, *(COLUMNS[task] for task in tasks), "time of a step")
    lines = []
    for cell in dict.fromkeys(cell for cell, _ in rows):
        own = {task: row for (name, task), row in rows.items() if name == cell}
        first = next(iter(own.values()))
        title = f"`{cell}`" + (f" ({first['options']})" if first["options"] else "")
        time = result["step_ms"].get(cell)
        shown = [_shown(own[task]) if task in own else "-" for task in tasks]
        spent = f"{time / lstm:.1f}" if time and lstm else "-"
        sizes = (_range(row[name] for row in own.values()) for name in ("hidden", "parameters"))
        lines.append((title, first["recurrence"], *sizes, *shown, spent))
    return _table(header, lines)


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---"] * len(header)
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines))


def _range(numbers: Iterable[int]) -> str:
    least, *_, most = sorted([*numbers] * 2)
    return str(least) if least == most else f"{least} to {most}"


def _shown(row: Row) -> str:
    """What a row reached, as one text."""
    if row["task"] == "adding":
        return f"{statistics.median(values(row)):.2g} ({solved(row)} of {len(row['test'])})"
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
    greff = "Greff et al. 2015"
    against = "loses nothing against the LSTM with peepholes"
    found = [
        *(
            _compared(rows, task, "lstm", "lstm-bias-0", claim, source)
            for claim, source in [
                ("a forget bias of 1 is better than 0", "Gers et al. 2000; Jozefowicz et al. 2015")
            ]
            for task in ("digits", "adding")
        ),
        *(
            _compared(rows, task, f"lstm-{name}", "lstm-peepholes", f"{name} {against}", greff)
            for name in ("CIFG", "NP")
            for task in ("digits", "adding")
        ),
        *(_worst(rows, task) for task in ("digits", "adding")),
        _identity(rows),
        _compared(
            rows,
            "digits",
            "janet",
            "lstm",
            "the forget gate alone does as well as all gates (here without chrono initialisation)",
            "Van der Westhuizen and Lasenby 2018",
        ),
        *(_tracking(rows, task) for task in ("parity", "s3")),
    ]
    return [verdict for verdict in found if verdict is not None]


def _ahead(one: Row, other: Row) -> tuple[float, float]:
    """How far the median of one row is ahead of that of another, and how likely by chance."""
    sign = -1 if one["task"] == "adding" else 1
    mine, theirs = ([sign * value for value in values(row)] for row in (one, other))
    middle = statistics.median(mine), statistics.median(theirs)
    # Two that have both no number are alike: infinity has no difference.
    return (0.0 if middle[0] == middle[1] else middle[0] - middle[1]), float(
        mannwhitneyu(mine, theirs).pvalue
    )


def _compared(
    rows: dict[Key, Row], task: str, one: str, other: str, claim: str, source: str
) -> Verdict | None:
    """A claim that one is better than another, or no worse."""
    if not {(one, task), (other, task)} <= rows.keys():
        return None
    pair = rows[one, task], rows[other, task]
    ahead, p = _ahead(*pair)
    verdict = "no difference seen"
    if p < SURE:
        verdict = "confirmed" if ahead > 0 else "not confirmed"
    elif 2 / math.comb(2 * len(pair[0]["test"]), len(pair[0]["test"])) >= SURE:
        verdict = "too few seeds to tell"
    seen = f"{task}: `{one}` {_shown(pair[0])}, `{other}` {_shown(pair[1])}; p = {p:.3f}"
    return Verdict(claim, source, seen, verdict)


def _worst(rows: dict[Key, Row], task: str) -> Verdict | None:
    """The claim that two variants of the LSTM lose most, against the one with all its parts."""
    names = [f"lstm-{name}" for name in GREFF]
    if not {(name, task) for name in [*names, "lstm-peepholes"]} <= rows.keys():
        return None
    whole = rows["lstm-peepholes", task]
    lost = {name: _ahead(rows[name, task], whole) for name in names}
    ranked = sorted(names, key=lambda name: lost[name][0])
    right = [n for n in ranked[:2] if n in ("lstm-NFG", "lstm-NOAF") and lost[n][1] < SURE]
    verdict = ("not confirmed", "half confirmed", "confirmed")[len(right)]
    least = (f"`{n}` {_shown(rows[n, task])} (p = {lost[n][1]:.3f})" for n in ranked[:3])
    seen = f"{task}, worst first: {', '.join(least)}; `lstm-peepholes` {_shown(whole)}"
    return Verdict(
        "of the eight variants NFG and NOAF lose most", "Greff et al. 2015", seen, verdict
    )


def _identity(rows: dict[Key, Row]) -> Verdict | None:
    """The claim that one begins at the identity and so adds, where another does not."""
    if not {("irnn", "adding"), ("elman", "adding")} <= rows.keys():
        return None
    ours, plain = rows["irnn", "adding"], rows["elman", "adding"]
    share = solved(ours) - solved(plain)
    verdict = "confirmed" if share == len(ours["test"]) else "confirmed in part"
    seen = f"adding: `irnn` {_shown(ours)}, `elman` {_shown(plain)}"
    claim = "a ReLU network that begins at the identity adds, a tanh network does not"
    return Verdict(claim, "Le et al. 2015", seen, verdict if share > 0 else "not confirmed")


def _tracking(rows: dict[Key, Row], task: str) -> Verdict | None:
    """The claim about linear cells, whose factors here are positive or do not see the input."""
    mine = {cell: row for (cell, name), row in rows.items() if name == task}
    linear = {cell: row for cell, row in mine.items() if row["recurrence"] == "linear"}
    if not {"lstm", "slstm"} <= mine.keys() or not linear:
        return None
    counts = lambda some: ", ".join(
        f"`{cell}` {solved(row)} / {solved(row, LONGER)}" for cell, row in some.items()
    )
    gated = {cell: mine[cell] for cell in ("lstm", "slstm")}
    fails = [cell for cell, row in linear.items() if solved(row) == 0]
    solves = [cell for cell, row in gated.items() if solved(row) == len(row["test"])]
    whole = len(fails) == len(linear) and len(solves) == len(gated)
    verdict = "confirmed in part" if fails and solves else "not confirmed"
    seen = f"{task}, seeds that solve it at 32 / 128: {counts(gated)}; {counts(linear)}"
    claim = "linear cells do not track state where LSTM and sLSTM do"
    source = "Beck et al. 2024; Sarrof et al. 2024; Grazzi et al. 2024"
    return Verdict(claim, source, seen, "confirmed" if whole else verdict)


def draw(result: dict[str, Any]) -> Any:
    """One column a task and one for the time; a line for each cell, a dot for each seed."""
    from matplotlib.lines import Line2D

    rows = by_key(result)
    names = list(dict.fromkeys(cell for cell, _ in rows))
    digits = {cell: statistics.median(values(r)) for (cell, t), r in rows.items() if t == "digits"}
    names.sort(key=lambda name: digits.get(name, 0.0))
    places = {name: place for place, name in enumerate(names)}
    colours = {row["recurrence"]: "" for row in rows.values()}
    colours = {kind: f"C{number}" for number, kind in enumerate(colours)}
    tasks = {task: row for (_, task), row in rows.items()}
    figure = new_figure(15, 2 + 0.24 * len(names))
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
