"""Formats the results as Markdown tables and notes."""

from collections.abc import Iterable, Sequence
from typing import Any

from jrnn.bench.gpu_check import correctness

STATUS_MARKS = {"not applicable": "-", "skipped": "skipped", "error": "ERROR"}
ENGINE_COLUMNS = (
    "scan",
    "fused",
    "associative",
    "newton",
    "scan (CUDA graphs)",
    "fused (CUDA graphs)",
)
PEER_COLUMNS = ("flax", "jax cuDNN", "torch")


def render(result: dict[str, Any]) -> str:
    """Formats the machine, the tables, and notes on missing or wrong results."""
    rows, groups = result["correctness"], result["speed"]
    parts = [
        f"{result['machine']['device']}, {result['platform_version'].strip()}",
        "Largest error of values and gradients, relative to float64 on the CPU:",
        markdown(("cell", *correctness.CHECKED_ENGINES), correctness_lines(rows)),
        "Median times in ms. The last column divides the time of the fastest peer by that of the "
        "fastest engine of jrnn:",
        markdown(
            (
                "cell",
                "dtype",
                "batch x time x input x hidden",
                "mode",
                *ENGINE_COLUMNS,
                *PEER_COLUMNS,
                "peer / jrnn",
            ),
            speed_lines(groups),
        ),
        *notes(rows, groups),
    ]
    return "\n\n".join(parts)


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Formats a Markdown table with aligned columns."""
    rows = [tuple(header), *map(tuple, lines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, tuple("-" * width for width in widths))
    padded = (" | ".join(map(str.ljust, row, widths)) for row in rows)
    return "\n".join(f"| {line} |" for line in padded)


def correctness_lines(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Returns a row of the table for each layer, with the largest error of each engine."""
    by_engine = {(row["cell"], row["engine"]): row for row in rows}
    cells = dict.fromkeys(row["cell"] for row in rows)
    return [
        (
            cell,
            *(
                _format_check(by_engine.get((cell, engine)))
                for engine in correctness.CHECKED_ENGINES
            ),
        )
        for cell in cells
    ]


def _format_check(row: dict[str, Any] | None) -> str:
    if row is None or row["status"] in STATUS_MARKS:
        return "" if row is None else STATUS_MARKS[row["status"]]
    errors = row["errors"].values()
    error = "not finite" if None in errors else f"{max(errors):.0e}"
    return error if row["status"] == "passed" else f"MISMATCH {error}"


def speed_lines(groups: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Returns a row of the table for each cell, dtype, shape and mode, with the median times."""
    lines: dict[tuple[str, ...], dict[str, float]] = {}
    for group in groups:
        shape = "x".join(map(str, group["shape"].values()))
        key = group["cell"], group["dtype"], shape, group["mode"]
        line = lines.setdefault(key, {})
        for row in group["implementations"]:
            column = _column(row["name"])
            line[column] = min(row["median_seconds"], line.get(column, float("inf")))
    return [
        (
            *key,
            *(_milliseconds(line.get(name)) for name in (*ENGINE_COLUMNS, *PEER_COLUMNS)),
            _ratio(line),
        )
        for key, line in lines.items()
    ]


def _column(name: str) -> str:
    """Returns the column of an implementation; all classes of a peer library share a column."""
    libraries = {"nnx": "flax", "jax": "jax cuDNN", "torch": "torch"}
    library, _, rest = name.partition(" ")
    return rest if library == "jrnn" else libraries[library]


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.3g}"


def _ratio(line: dict[str, float]) -> str:
    engine_times = [line[name] for name in ENGINE_COLUMNS if name in line]
    peer_times = [line[name] for name in PEER_COLUMNS if name in line]
    return f"{min(peer_times) / min(engine_times):.2f}" if engine_times and peer_times else "-"


def notes(rows: Sequence[dict[str, Any]], groups: Sequence[dict[str, Any]]) -> list[str]:
    """Lists mismatches, failures and skipped rows, each reason once with its count, and Newton."""
    counts: dict[str, int] = {}
    for row in rows:
        if row["status"] not in ("passed", "not applicable"):
            skipped = row["status"] == "skipped"
            subject = "checks skipped" if skipped else f"{row['cell']} on {row['engine']}"
            note = f"{subject}: {row['reason']}"
            counts[note] = counts.get(note, 0) + 1
    for group in groups:
        for missing in group["missing"]:
            note = f"{missing['name']}: {missing['reason']}"
            counts[note] = counts.get(note, 0) + 1
        if "newton" in group:
            counts[f"{group['cell']} on newton: {group['newton']}"] = 1
    return ["\n".join(f"- {note} ({count})" for note, count in counts.items())] if counts else []
