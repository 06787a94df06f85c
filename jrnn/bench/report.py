"""Tables of the results, and geometric means over the shapes."""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from jrnn.bench.contenders import Shape

WIDTH = 140
"""Width of the tables in characters."""

MAX_OTHER_CORES = 0.15
"""Cores that other processes may use; above, the results of a group are marked as disturbed."""

PEER_FAMILIES = {"jax": "best JAX peer", "torch": "torch", "onnxruntime": "onnxruntime"}
"""The families of peers; the engines are compared with the fastest contender of each."""

TEXT_COLUMNS = ("engine", "cell", "direction", "batch x time x input x hidden")
NUMBER_COLUMNS = ("jrnn ms", "% of product", *PEER_FAMILIES.values())
"""The columns of the table of ratios."""


def family_ratios(group: dict[str, Any], engine: str) -> dict[str, float]:
    """For each family, the median of its fastest contender over that of the engine."""
    fastest: dict[str, float] = {}
    for peer in group["contenders"]:
        if peer["family"] in PEER_FAMILIES:
            ratio = group["ratios"][engine][peer["name"]]
            fastest[peer["family"]] = min(ratio, fastest.get(peer["family"], ratio))
    return fastest


def summary(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each engine, cell and direction, the geometric means over the shapes without sweeps."""
    rows: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for group in groups:
        for engine in group["ratios"] if group["sweep"] is None else ():
            by_family = rows.setdefault((engine, group["cell"], group["direction"]), {})
            for family, ratio in family_ratios(group, engine).items():
                by_family.setdefault(family, []).append(ratio)
    return [
        {
            "engine": engine,
            "cell": cell,
            "direction": direction,
            "geometric_mean": {k: statistics.geometric_mean(v) for k, v in by_family.items()},
            "shapes": {k: len(v) for k, v in by_family.items()},
        }
        for (engine, cell, direction), by_family in rows.items()
    ]


def missing(groups: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The missing contenders, one entry for each name and reason, with the cases."""
    cases: dict[tuple[str, str, str], list[str]] = {}
    for group in groups:
        for entry in group["missing"]:
            key = (entry["name"], entry["reason"], entry["kind"])
            cases.setdefault(key, []).append(title(group))
    return [
        {"name": name, "reason": reason, "kind": kind, "cases": titles}
        for (name, reason, kind), titles in cases.items()
    ]


def title(group: dict[str, Any]) -> str:
    """The title of a group."""
    return f"{group['cell']} {group['direction']} {_shape(group)}"


def _shape(group: dict[str, Any]) -> str:
    return Shape(**group["shape"]).text


def is_disturbed(group: dict[str, Any]) -> bool:
    """Whether other processes used the machine, which slows multi-threaded contenders most."""
    return (group["others_cores"] or 0.0) > MAX_OTHER_CORES


def group_table(group: dict[str, Any]) -> Table:
    """A table of the contenders of a group, fastest first."""
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
            _format(row["compile_seconds"], ".2f"),
            _format(None if memory is None else memory / 2**20, ".1f"),
            *(f"{median[row['name']] / median[name]:.2f}" for name in engines),
        )
    return table


def final_tables(result: dict[str, Any]) -> Group:
    """The summary of a run: ratios at each shape, geometric means, and missing contenders."""
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
    for column in TEXT_COLUMNS:
        table.add_column(column, no_wrap=True)
    for column in NUMBER_COLUMNS:
        table.add_column(column, justify="right")
    for line in _ratio_lines(result["groups"]):
        table.add_row(*line)
    table.add_section()
    for line in _mean_lines(result["summary"]):
        table.add_row(*line, style="bold")
    return table


def markdown(result: dict[str, Any], engine: str) -> str:
    """The ratios of one engine as a Markdown table, without the growth curves."""
    texts = TEXT_COLUMNS[1:]
    head = [texts + NUMBER_COLUMNS, ("---",) * len(texts) + ("---:",) * len(NUMBER_COLUMNS)]
    groups = [group for group in result["groups"] if group["sweep"] is None]
    lines = [*_ratio_lines(groups), *_mean_lines(result["summary"])]
    rows = head + [line[1:] for line in lines if line[0] == engine]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _mean_lines(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        means = [_format(row["geometric_mean"].get(family), ".2f") for family in PEER_FAMILIES]
        name = row["engine"].removeprefix("jrnn ")
        yield (name, row["cell"], row["direction"], "geometric mean", "", "", *means)


def _ratio_lines(groups: Iterable[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    for group in groups:
        for row in group["contenders"]:
            if row["family"] == "jrnn":
                peer_ratios = family_ratios(group, row["name"])
                yield (
                    row["name"].removeprefix("jrnn "),
                    group["cell"],
                    group["direction"],
                    _shape(group),
                    f"{1e3 * row['median_seconds']:.2f}",
                    f"{row['percent_of_product_rate']:.0f}",
                    *(_format(peer_ratios.get(family), ".2f") for family in PEER_FAMILIES),
                )


def _notes(result: dict[str, Any]) -> Iterator[str]:
    """The missing contenders, and the number of disturbed groups."""
    for entry in result["missing"]:
        cases = f"{len(entry['cases'])} of {len(result['groups'])} groups"
        yield escape(f"missing: {entry['name']}, in {cases}: {entry['reason']}")
    disturbed = sum(map(is_disturbed, result["groups"]))
    if disturbed:
        groups = f"{disturbed} of {len(result['groups'])} groups"
        yield f"disturbed: in {groups} other processes used the machine; repeat when it is idle"


def _format(value: float | None, format_spec: str) -> str:
    return "-" if value is None else format(value, format_spec)
