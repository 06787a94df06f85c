"""The results as Markdown tables."""

from collections.abc import Iterable, Sequence
from typing import Any

from jrnn.bench.gpu_check import agreement

MARKS = {"not applicable": "-", "skipped": "skipped", "error": "ERROR"}
TIMES = ("scan", "fused", "associative", "newton", "scan graphs", "fused graphs")
PEERS = ("flax", "jax cuDNN", "torch")


def text(result: dict[str, Any]) -> str:
    """The machine, the tables, and notes on missing or wrong results."""
    rows, groups = result["agreement"], result["speed"]
    parts = [
        f"{result['machine']['device']}, {result['platform_version'].strip()}",
        "Largest relative difference from float64 on the CPU, of values and gradients:",
        markdown(("cell", *agreement.ENGINES), agreement_lines(rows)),
        "Median milliseconds, and the time of the fastest peer over the fastest engine of jrnn:",
        markdown(
            (
                "cell",
                "dtype",
                "batch x time x input x hidden",
                "direction",
                *TIMES,
                *PEERS,
                "peer / jrnn",
            ),
            speed_lines(groups),
        ),
        *notes(rows, groups),
    ]
    return "\n\n".join(parts)


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table with aligned columns."""
    rows = [tuple(head), *map(tuple, lines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, tuple("-" * width for width in widths))
    padded = (" | ".join(map(str.ljust, row, widths)) for row in rows)
    return "\n".join(f"| {line} |" for line in padded)


def agreement_lines(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A line for each cell."""
    by_engine = {(row["cell"], row["engine"]): row for row in rows}
    cells = dict.fromkeys(row["cell"] for row in rows)
    return [
        (cell, *(_mark(by_engine.get((cell, engine))) for engine in agreement.ENGINES))
        for cell in cells
    ]


def _mark(row: dict[str, Any] | None) -> str:
    if row is None or row["status"] in MARKS:
        return "" if row is None else MARKS[row["status"]]
    errors = row["differences"].values()
    error = "not finite" if None in errors else f"{max(errors):.0e}"
    return error if row["status"] == "agrees" else f"DIFFERS {error}"


def speed_lines(groups: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A line for each cell, dtype, shape and direction, including CUDA graphs."""
    lines: dict[tuple[str, ...], dict[str, float]] = {}
    for group in groups:
        shape = "x".join(map(str, group["shape"].values()))
        key = group["cell"], group["dtype"], shape, group["direction"]
        line = lines.setdefault(key, {})
        for row in group["contenders"]:
            column = _column(row["name"])
            line[column] = min(row["median_seconds"], line.get(column, float("inf")))
    return [
        (*key, *(_milliseconds(line.get(name)) for name in (*TIMES, *PEERS)), _ratio(line))
        for key, line in lines.items()
    ]


def _column(name: str) -> str:
    """The column of a contender; the cells of a library share one."""
    libraries = {"nnx": "flax", "jax": "jax cuDNN", "torch": "torch"}
    library, _, rest = name.partition(" ")
    return rest if library == "jrnn" else libraries[library]


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.3g}"


def _ratio(line: dict[str, float]) -> str:
    own = [line[name] for name in TIMES if name in line]
    others = [line[name] for name in PEERS if name in line]
    return f"{min(others) / min(own):.2f}" if own and others else "-"


def notes(rows: Sequence[dict[str, Any]], groups: Sequence[dict[str, Any]]) -> list[str]:
    """Lists differences, failures and skipped rows; each reason once, with its count."""
    counts: dict[str, int] = {}
    for row in rows:
        if row["status"] not in ("agrees", "not applicable"):
            skipped = row["status"] == "skipped"
            subject = "checks skipped" if skipped else f"{row['cell']} by {row['engine']}"
            note = f"{subject}: {row['reason']}"
            counts[note] = counts.get(note, 0) + 1
    for group in groups:
        for missing in group["missing"]:
            note = f"{missing['name']}: {missing['reason']}"
            counts[note] = counts.get(note, 0) + 1
        if "newton" in group:
            counts[f"{group['cell']} by Newton: {group['newton']}"] = 1
    return ["\n".join(f"- {note} ({count})" for note, count in counts.items())] if counts else []
