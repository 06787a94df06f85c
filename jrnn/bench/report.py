"""Tables of the results, and the geometric means over the shapes."""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from jrnn.bench.contenders import Shape

WIDTH = 140
"""Columns that the tables need; a narrower terminal breaks their lines."""

BUSY = 0.15
"""Cores that other processes may use before the results of a group are called disturbed."""

RIVALS = {"jax": "best JAX peer", "torch": "torch", "onnxruntime": "onnxruntime"}
"""What the engines are compared with, by family; of a family its fastest contender counts."""

NAMED = ("engine", "cell", "direction", "batch x time x input x hidden")
NUMBERS = ("jrnn ms", "% of product", *RIVALS.values())
"""The columns of the table of ratios."""


def rival_ratios(group: dict[str, Any], engine: str) -> dict[str, float]:
    """For each family that took part, its fastest contender's median over the engine's."""
    found: dict[str, float] = {}
    for peer in group["contenders"]:
        if peer["family"] in RIVALS:
            ratio = group["ratios"][engine][peer["name"]]
            found[peer["family"]] = min(ratio, found.get(peer["family"], ratio))
    return found


def summary(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each engine, cell and direction, the geometric means over the shapes, sweeps left out."""
    rows: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for group in groups:
        for engine in group["ratios"] if group["sweep"] is None else ():
            seen = rows.setdefault((engine, group["cell"], group["direction"]), {})
            for family, ratio in rival_ratios(group, engine).items():
                seen.setdefault(family, []).append(ratio)
    return [
        {
            "engine": engine,
            "cell": cell,
            "direction": direction,
            "geometric_mean": {k: statistics.geometric_mean(seen[k]) for k in seen},
            "shapes": {k: len(seen[k]) for k in seen},
        }
        for (engine, cell, direction), seen in rows.items()
    ]


def missing(groups: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Who was absent and why, each reason once, with the cases."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for group in groups:
        for absent in group["missing"]:
            key = (absent["name"], absent["reason"], absent["kind"])
            found.setdefault(key, []).append(title(group))
    return [
        {"name": name, "reason": reason, "kind": kind, "cases": cases}
        for (name, reason, kind), cases in found.items()
    ]


def title(group: dict[str, Any]) -> str:
    """One line that names a group."""
    return f"{group['cell']} {group['direction']} {_shape(group)}"


def _shape(group: dict[str, Any]) -> str:
    return Shape(**group["shape"]).text


def is_disturbed(group: dict[str, Any]) -> bool:
    """Whether others used the machine: threads that wait for one another then suffer most."""
    return (group["others_cores"] or 0.0) > BUSY


def group_table(group: dict[str, Any]) -> Table:
    """Every contender of a group, fastest first."""
    head = title(group)
    if is_disturbed(group):
        head += f"; disturbed: other processes used {group['others_cores']:.1f} cores"
    table = Table(title=head, title_justify="left", box=None, header_style="bold")
    table.add_column("contender", no_wrap=True)
    engines = list(group["ratios"])
    own = [f"/ {name}" for name in engines]
    for column in ("median ms", "min ms", "GFLOP/s", "% of product", "compile s", "MiB", *own):
        table.add_column(column, justify="right", no_wrap=True)
    median = {row["name"]: row["median_seconds"] for row in group["contenders"]}
    for row in sorted(group["contenders"], key=lambda row: row["median_seconds"]):
        memory = row["memory_bytes"]
        table.add_row(
            row["name"] + ("" if row["time_major"] else " (batch-major)"),
            f"{1e3 * row['median_seconds']:.2f}",
            f"{1e3 * row['min_seconds']:.2f}",
            f"{row['gflops']:.1f}",
            f"{row['percent_of_product_rate']:.0f}",
            _shown(row["compile_seconds"], ".2f"),
            _shown(None if memory is None else memory / 2**20, ".1f"),
            *(f"{median[row['name']] / median[name]:.2f}" for name in engines),
        )
    return table


def final(result: dict[str, Any]) -> Group:
    """The tables that close a run: each shape, the geometric means, and who was missing."""
    rate = max(result["product_gflops"].values())
    machine = result["machine"]
    head = f"{machine['cpu']}, {machine['cores']} cores; matrix product {rate:.0f} GFLOP/s"
    return Group("", escape(head), "", _ratio_table(result), "", *_notes(result))


def _ratio_table(result: dict[str, Any]) -> Table:
    table = Table(
        title="time of the peer / time of jrnn: above 1, jrnn is faster",
        title_justify="left",
        header_style="bold",
        box=None,
    )
    for column in NAMED:
        table.add_column(column, no_wrap=True)
    for column in NUMBERS:
        table.add_column(column, justify="right")
    for line in _ratio_lines(result["groups"]):
        table.add_row(*line)
    table.add_section()
    for line in _mean_lines(result["summary"]):
        table.add_row(*line, style="bold")
    return table


def markdown(result: dict[str, Any], engine: str) -> str:
    """The ratios of one engine as a Markdown table, the growth curves left out."""
    head = [NAMED[1:] + NUMBERS, ("---",) * len(NAMED[1:]) + ("---:",) * len(NUMBERS)]
    groups = [group for group in result["groups"] if group["sweep"] is None]
    lines = [*_ratio_lines(groups), *_mean_lines(result["summary"])]
    rows = head + [line[1:] for line in lines if line[0] == engine]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _mean_lines(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        means = [_shown(row["geometric_mean"].get(family), ".2f") for family in RIVALS]
        name = row["engine"].removeprefix("jrnn ")
        yield (name, row["cell"], row["direction"], "geometric mean", "", "", *means)


def _ratio_lines(groups: Iterable[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    for group in groups:
        for row in group["contenders"]:
            if row["family"] == "jrnn":
                found = rival_ratios(group, row["name"])
                yield (
                    row["name"].removeprefix("jrnn "),
                    group["cell"],
                    group["direction"],
                    _shape(group),
                    f"{1e3 * row['median_seconds']:.2f}",
                    f"{row['percent_of_product_rate']:.0f}",
                    *(_shown(found.get(family), ".2f") for family in RIVALS),
                )


def _notes(result: dict[str, Any]) -> Iterator[str]:
    """Who was missing, and in how many groups the machine was not free."""
    for absent in result["missing"]:
        cases = f"{len(absent['cases'])} of {len(result['groups'])} groups"
        yield escape(f"missing: {absent['name']}, in {cases}: {absent['reason']}")
    disturbed = sum(map(is_disturbed, result["groups"]))
    if disturbed:
        groups = f"{disturbed} of {len(result['groups'])} groups"
        yield f"disturbed: in {groups} other processes used the machine; measure again when idle"


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
