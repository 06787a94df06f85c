"""Figures of the results: ratios at each shape, and times over the size that a sweep increases."""

from pathlib import Path
from typing import Any

from jrnn.bench.report import PEER_FAMILIES, family_ratios
from jrnn.plotting import new_figure


def save(result: dict[str, Any], out: Path) -> list[Path]:
    """Saves the figures next to the JSON file `out`, if they have data; returns their paths."""
    paths = []
    for suffix, draw, groups in (
        ("", _draw_ratios, [g for g in result["groups"] if g["sweep"] is None and g["ratios"]]),
        ("-growth", _draw_sweeps, [g for g in result["groups"] if g["sweep"] is not None]),
    ):
        if groups:
            path = out.with_name(f"{out.stem}{suffix}.png")
            draw(groups).savefig(path, dpi=150, bbox_inches="tight")
            paths.append(path)
    return paths


def _panels(groups: list[dict[str, Any]], key: Any) -> tuple[Any, dict[Any, Any]]:
    """Creates a figure in two columns; returns it, and one axes for each value of `key(group)`."""
    keys = list(dict.fromkeys(map(key, groups)))
    rows = -(-len(keys) // 2)
    figure = new_figure(12, 3.8 * rows)
    axes = figure.subplots(rows, min(2, len(keys)), squeeze=False).flat
    return figure, {name: next(axes) for name in keys}


def _draw_ratios(groups: list[dict[str, Any]]) -> Any:
    """Draws bars of the ratios of `_best_ratio`, at each shape and for each family of peers."""
    from matplotlib.patches import Patch

    key = lambda group: (group["cell"], group["mode"])
    figure, panels = _panels(groups, key)
    for name, axes in panels.items():
        selected = [group for group in groups if key(group) == name]
        families = [f for f in PEER_FAMILIES if any(_best_ratio(group, f) for group in selected)]
        for number, family in enumerate(families):
            offset = 0.27 * (number - (len(families) - 1) / 2)
            for position, group in enumerate(selected):
                ratio = _best_ratio(group, family)
                if ratio:
                    color = f"C{list(PEER_FAMILIES).index(family)}"
                    x = position + offset
                    axes.bar(x, ratio - 1, 0.25, bottom=1, color=color)
                    va = "bottom" if ratio >= 1 else "top"
                    axes.text(x, ratio, f"{ratio:.2g}", ha="center", va=va, size=7)
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.margins(y=0.12)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xticks(range(len(selected)), ["\n".join(_size_labels(g)) for g in selected])
        axes.set_title(f"{name[0].upper()}, {name[1]}")
        axes.set_ylabel("time of the peer / time of jrnn")
    patches = [Patch(color=f"C{k}", label=label) for k, label in enumerate(PEER_FAMILIES.values())]
    figure.legend(handles=patches, loc="outside upper center", ncols=len(patches), frameon=False)
    return figure


def _best_ratio(group: dict[str, Any], family: str) -> float:
    """Divides the time of the fastest peer of a family by that of the fastest engine of jrnn.

    Returns 0 if the family is missing.
    """
    return max(family_ratios(group, engine).get(family, 0.0) for engine in group["ratios"])


def _size_labels(group: dict[str, Any]) -> list[str]:
    shape = group["shape"]
    return [f"B {shape['batch']} T {shape['steps']}", f"I {shape['input']} H {shape['hidden']}"]


def _draw_sweeps(groups: list[dict[str, Any]]) -> Any:
    """Draws the median time over the size that increases, one line for each implementation."""
    key = lambda group: (group["cell"], group["mode"], group["sweep"])
    figure, panels = _panels(groups, key)
    for name, axes in panels.items():
        lines: dict[str, list[tuple[int, float]]] = {}
        for group in (group for group in groups if key(group) == name):
            for row in group["implementations"]:
                point = (group["shape"][name[2]], 1e3 * row["median_seconds"])
                lines.setdefault(row["name"], []).append(point)
        for label, points in lines.items():
            is_jrnn = label.startswith("jrnn")
            axes.loglog(*zip(*points, strict=True), label=label, linewidth=2.5 if is_jrnn else 1)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_title(f"{name[0].upper()}, {name[1]}")
        axes.set_xlabel(name[2])
        axes.set_ylabel("ms")
        axes.legend(fontsize=7)
    return figure
