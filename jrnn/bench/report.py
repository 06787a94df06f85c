"""Tables of the results, and geometric means over the shapes."""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from jrnn.bench.implementations import Shape

WIDTH = 140
"""Width of the tables in characters."""

MAX_OTHER_CORES = 0.15
"""A group is marked as disturbed if other processes use more cores than this on average."""

PEER_FAMILIES = {"jax": "fastest JAX peer", "torch": "torch", "onnxruntime": "onnxruntime"}
"""Labels of the families of peers. Engines are compared with the fastest member of each family."""

TEXT_COLUMNS = ("engine", "cell", "mode", "batch x time x input x hidden")
NUMBER_COLUMNS = ("jrnn ms", "% of matmul", *(f"{f} / jrnn" for f in PEER_FAMILIES.values()))
"""The columns of the table of ratios."""


def family_ratios(group: dict[str, Any], engine: str) -> dict[str, float]:
    """Divides the median time of the fastest peer of each family by that of the engine."""
    fastest: dict[str, float] = {}
    for peer in group["implementations"]:
        if peer["family"] in PEER_FAMILIES:
            ratio = group["ratios"][engine][peer["name"]]
            fastest[peer["family"]] = min(ratio, fastest.get(peer["family"], ratio))
    return fastest


def summary(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Computes, for each engine, cell and mode, the geometric mean of the ratios over all shapes.

    Groups of a sweep are excluded.
    """
    rows: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for group in groups:
        for engine in group["ratios"] if group["sweep"] is None else ():
            by_family = rows.setdefault((engine, group["cell"], group["mode"]), {})
            for family, ratio in family_ratios(group, engine).items():
                by_family.setdefault(family, []).append(ratio)
    return [
        {
            "engine": engine,
            "cell": cell,
            "mode": mode,
            "geometric_mean": {k: statistics.geometric_mean(v) for k, v in by_family.items()},
            "shapes": {k: len(v) for k, v in by_family.items()},
        }
        for (engine, cell, mode), by_family in rows.items()
    ]


def missing(groups: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lists missing implementations, one entry for each name and reason, with their cases."""
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
    """Returns the case of a group, as in `lstm forward 32x128x32x64`."""
    return f"{group['cell']} {group['mode']} {_shape(group)}"


def _shape(group: dict[str, Any]) -> str:
    return Shape(**group["shape"]).text


def is_disturbed(group: dict[str, Any]) -> bool:
    """Returns whether other processes used more than `MAX_OTHER_CORES` during the timing."""
    return (group["other_process_cores"] or 0.0) > MAX_OTHER_CORES


def group_table(group: dict[str, Any]) -> Table:
    """Returns a table of the implementations of a group, from the fastest to the slowest.

    For each engine, a last column divides the median times by that of the engine.
    """
    header = title(group)
    if is_disturbed(group):
        header += f"; disturbed: other processes used {group['other_process_cores']:.1f} cores"
    table = Table(title=header, title_justify="left", box=None, header_style="bold")
    table.add_column("implementation", no_wrap=True)
    engines = list(group["ratios"])
    ratio_columns = [f"time / {name}" for name in engines]
    for column in (
        "median ms",
        "min ms",
        "GFLOP/s",
        "% of matmul",
        "compile s",
        "MiB",
        *ratio_columns,
    ):
        table.add_column(column, justify="right", no_wrap=True)
    median = {row["name"]: row["median_seconds"] for row in group["implementations"]}
    for row in sorted(group["implementations"], key=lambda row: row["median_seconds"]):
        memory = row["memory_bytes"]
        table.add_row(
            row["name"] + ("" if row["time_major"] else " (batch-major)"),
            f"{1e3 * row['median_seconds']:.2f}",
            f"{1e3 * row['min_seconds']:.2f}",
            f"{row['gflops']:.1f}",
            f"{row['percent_of_matmul']:.0f}",
            _format(row["compile_seconds"], ".2f"),
            _format(None if memory is None else memory / 2**20, ".1f"),
            *(f"{median[row['name']] / median[name]:.2f}" for name in engines),
        )
    return table


def final_tables(result: dict[str, Any]) -> Group:
    """Returns the ratios at each shape, their geometric means, and the missing implementations."""
    gflops = max(result["matmul_gflops"].values())
    machine = result["machine"]
    header = f"{machine['cpu']}, {machine['cores']} cores; matrix product {gflops:.0f} GFLOP/s"
    return Group("", escape(header), "", _ratio_table(result), "", *_notes(result))


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
    """Formats the ratios of one engine as a Markdown table, without sweeps."""
    texts = TEXT_COLUMNS[1:]
    header = [texts + NUMBER_COLUMNS, ("---",) * len(texts) + ("---:",) * len(NUMBER_COLUMNS)]
    groups = [group for group in result["groups"] if group["sweep"] is None]
    lines = [*_ratio_lines(groups), *_mean_lines(result["summary"])]
    rows = header + [line[1:] for line in lines if line[0] == engine]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _mean_lines(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        means = [_format(row["geometric_mean"].get(family), ".2f") for family in PEER_FAMILIES]
        name = row["engine"].removeprefix("jrnn ")
        yield (name, row["cell"], row["mode"], "geometric mean", "", "", *means)


def _ratio_lines(groups: Iterable[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    for group in groups:
        for row in group["implementations"]:
            if row["family"] == "jrnn":
                peer_ratios = family_ratios(group, row["name"])
                yield (
                    row["name"].removeprefix("jrnn "),
                    group["cell"],
                    group["mode"],
                    _shape(group),
                    f"{1e3 * row['median_seconds']:.2f}",
                    f"{row['percent_of_matmul']:.0f}",
                    *(_format(peer_ratios.get(family), ".2f") for family in PEER_FAMILIES),
                )


def _notes(result: dict[str, Any]) -> Iterator[str]:
    """Yields a line for each missing implementation, and one for disturbed groups."""
    for entry in result["missing"]:
        cases = f"{len(entry['cases'])} of {len(result['groups'])} groups"
        yield escape(f"missing: {entry['name']}, in {cases}: {entry['reason']}")
    disturbed = sum(map(is_disturbed, result["groups"]))
    if disturbed:
        groups = f"{disturbed} of {len(result['groups'])} groups"
        yield f"disturbed: in {groups} other processes used the machine; repeat when it is idle"


def _format(value: float | None, format_spec: str) -> str:
    return "-" if value is None else format(value, format_spec)
