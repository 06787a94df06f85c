"""Figures of the results: ratios at each shape, and growth curves."""

from pathlib import Path
from typing import Any

from jrnn.bench.report import PEER_FAMILIES, family_ratios
from jrnn.plotting import new_figure


def save(result: dict[str, Any], out: Path) -> list[Path]:
    """Draws the figures that have data next to the JSON file; returns their paths."""
    paths = []
    for suffix, draw, groups in (
        ("", _ratios, [g for g in result["groups"] if g["sweep"] is None and g["ratios"]]),
        ("-growth", _growth, [g for g in result["groups"] if g["sweep"] is not None]),
    ):
        if groups:
            path = out.with_name(f"{out.stem}{suffix}.png")
            draw(groups).savefig(path, dpi=150, bbox_inches="tight")
            paths.append(path)
    return paths


def _panels(groups: list[dict[str, Any]], key: Any) -> tuple[Any, dict[Any, Any]]:
    """A figure with one axes for each value of `key`, in two columns."""
    keys = list(dict.fromkeys(map(key, groups)))
    rows = -(-len(keys) // 2)
    figure = new_figure(12, 3.8 * rows)
    axes = figure.subplots(rows, min(2, len(keys)), squeeze=False).flat
    return figure, {name: next(axes) for name in keys}


def _ratios(groups: list[dict[str, Any]]) -> Any:
    """Bars, starting at 1, of the times of the peers over that of the fastest engine."""
    from matplotlib.patches import Patch

    key = lambda group: (group["cell"], group["direction"])
    figure, panels = _panels(groups, key)
    for name, axes in panels.items():
        ours = [group for group in groups if key(group) == name]
        present = [family for family in PEER_FAMILIES if any(_best_ratio(g, family) for g in ours)]
        for number, family in enumerate(present):
            offset = 0.27 * (number - (len(present) - 1) / 2)
            for position, group in enumerate(ours):
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
        axes.set_xticks(range(len(ours)), ["\n".join(_sizes(group)) for group in ours])
        axes.set_title(f"{name[0].upper()}, {name[1]}")
        axes.set_ylabel("time of the peer / time of jrnn")
    patches = [Patch(color=f"C{k}", label=label) for k, label in enumerate(PEER_FAMILIES.values())]
    figure.legend(handles=patches, loc="outside upper center", ncols=len(patches), frameon=False)
    return figure


def _best_ratio(group: dict[str, Any], family: str) -> float:
    return max(family_ratios(group, engine).get(family, 0.0) for engine in group["ratios"])


def _sizes(group: dict[str, Any]) -> list[str]:
    shape = group["shape"]
    return [f"B {shape['batch']} T {shape['steps']}", f"I {shape['input']} H {shape['hidden']}"]


def _growth(groups: list[dict[str, Any]]) -> Any:
    """Median time over the axis that grows, one line for each contender."""
    key = lambda group: (group["cell"], group["direction"], group["sweep"])
    figure, panels = _panels(groups, key)
    for name, axes in panels.items():
        lines: dict[str, list[tuple[int, float]]] = {}
        for group in (group for group in groups if key(group) == name):
            for row in group["contenders"]:
                point = (group["shape"][name[2]], 1e3 * row["median_seconds"])
                lines.setdefault(row["name"], []).append(point)
        for label, points in lines.items():
            own = label.startswith("jrnn")
            axes.loglog(*zip(*points, strict=True), label=label, linewidth=2.5 if own else 1)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_title(f"{name[0].upper()}, {name[1]}")
        axes.set_xlabel(name[2])
        axes.set_ylabel("ms")
        axes.legend(fontsize=7)
    return figure
