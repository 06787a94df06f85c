"""Generates the pages of cells, transforms and the API, from the registries and docstrings."""

import ast
import importlib.util
import inspect
import json
import statistics
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parents[1]))

import jrnn
from experiments.cells.report import get_metrics
from jrnn import analysis, config, distributed, initializers, nn, sweep, tasks, testing, train
from jrnn.cli.inspect import first_line, make_cell_rows
from jrnn.layers import REGISTRY as LAYERS
from jrnn.nn import linen
from jrnn.transforms import REGISTRY as TRANSFORMS

ROOT = Path(__file__).parents[1]
FIGURES = {
    "rl.png": "rl/results/rl.png",
    "cells.png": "cells/results/cells.png",
    "long_sequences.png": "long_sequences/results/long_sequences.png",
}
"""Figures of the studies, by their names in the documentation."""
STUDY = "experiments/cells/results/cells.json"
MODULES: dict[str, tuple[ModuleType, str]] = {
    "jrnn": (jrnn, "Cells, engines and the functions that run them."),
    "jrnn.nn": (nn, "flax nnx modules: layers, models, generation and streaming."),
    "jrnn.nn.linen": (linen, "Modules for flax linen."),
    "jrnn.train": (train, "Experiments, the training loop `fit`, optimizers and writers."),
    "jrnn.tasks": (tasks, "Tasks, which load data."),
    "jrnn.analysis": (analysis, "Gates over time, Lyapunov exponents and figures."),
    "jrnn.testing": (testing, "Conformance tests of your own cells and layers."),
    "jrnn.distributed": (distributed, "Meshes and process groups."),
    "jrnn.sweep": (sweep, "Sweeps."),
    "jrnn.config": (config, "Config files."),
    "jrnn.initializers": (initializers, "Initial values of parameters."),
}
"""The modules of the API, and what they have."""


def on_config(mkdocs_config: MkDocsConfig) -> MkDocsConfig:
    """Adds the generated pages to the navigation."""
    pages = {
        "Cells": ["cells/index.md", *({c: f"cells/{n}.md"} for n, c in _cell_names())],
        "API": ["api/index.md", *({name: f"api/{name}.md"} for name in MODULES)],
    }
    nav: Any = mkdocs_config.nav
    for entry in nav:
        if isinstance(entry, dict):
            for title in pages.keys() & entry.keys():
                entry[title] = pages[title]
    return mkdocs_config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    for path, content in generate().items():
        files.append(File.generated(config, path, content=content))
    for name, path in FIGURES.items():
        figure = str(ROOT / "experiments" / path)
        files.append(File.generated(config, f"figures/{name}", abs_src_path=figure))
    return files


def generate() -> dict[str, str]:
    """Returns the generated pages as Markdown, by their paths."""
    pages = {"cells/index.md": _cells_index(), "api/index.md": _api_index()}
    pages |= {f"cells/{row[0]}.md": _cell_page(*row) for row in make_cell_rows()}
    pages |= {f"api/{name}.md": _api_page(name) for name in MODULES}
    pages["transforms.md"] = _transforms()
    return pages


def _cell_names() -> list[tuple[str, str]]:
    return [(name, cls.__name__) for name, cls in jrnn.cells.REGISTRY.items()]


def _cells_index() -> str:
    lines = [
        "# Cells",
        "",
        f"jrnn has {len(jrnn.cells.REGISTRY)} cells. Each runs on every engine that supports its "
        "recurrence, with lengths, masks, resets and both directions.",
        "",
        "- `recurrence` says how the new carry depends on the old one: `dense` through a matrix "
        "product, `diagonal` or `block_diagonal` within units, and `linear` cells can run in "
        "parallel over time.",
        "- `parameters` is the number for 128 inputs and 128 hidden units.",
        "",
        "| cell | | recurrence | parameters | paper |",
        "| --- | --- | --- | ---: | --- |",
    ]
    for name, recurrence, count, paper, description in make_cell_rows():
        cls = jrnn.cells.REGISTRY[name].__name__
        lines.append(f"| [`{cls}`]({name}.md) | {description} | {recurrence} | {count} | {paper} |")
    return "\n".join(lines)


def _cell_page(name: str, recurrence: str, count: str, paper: str, description: str) -> str:
    cls = jrnn.cells.REGISTRY[name].__name__
    return f"""# {cls}

| | |
| --- | --- |
| name in configs and commands | `{name}` |
| recurrence | {recurrence} |
| parameters for 128 inputs and 128 hidden units | {count} |
| paper | {paper} |

::: jrnn.{cls}
    options:
      show_root_heading: false
      show_root_toc_entry: false
      members: []

{_study_results(name)}"""


def _study_results(name: str) -> str:
    """Returns the results of a cell in the comparison of all cells."""
    study = json.loads((ROOT / STUDY).read_text("utf-8"))
    rows = [row for row in study["rows"] if row["cell"].split("-")[0] == name]
    if not rows:
        return ""
    lines = [
        "## Results in the comparison of the cells",
        "",
        "Networks of about 4,500 parameters, five seeds; [the study](../studies.md) describes the "
        "tasks.",
        "",
        "| variant | task | test, median | lowest | highest |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        values = [f"{f(get_metrics(row)):.4g}" for f in (statistics.median, min, max)]
        lines.append(f"| `{row['cell']}` | {row['task']} | {' | '.join(values)} |")
    return "\n".join(lines)


def _transforms() -> str:
    lines = [
        "# Transforms and layers",
        "",
        "A transform wraps a cell and returns a cell. A layer combines cells, and maps sequences "
        "to sequences.",
        "",
        "| name | |",
        "| --- | --- |",
    ]
    lines += [f"| `{n}` | {first_line(c)} |" for n, c in (TRANSFORMS | LAYERS).items()]
    for name, cls in TRANSFORMS.items():
        lines += ["", f"## {name}", "", f"::: jrnn.transforms.{cls.__name__}", *_PLAIN]
    for name, cls in LAYERS.items():
        lines += ["", f"## {name}", "", f"::: {cls.__module__}.{cls.__name__}", *_PLAIN]
    return "\n".join(lines)


_PLAIN = [
    "    options:",
    "      show_root_heading: false",
    "      show_root_toc_entry: false",
    "      members: []",
]


def _api_index() -> str:
    lines = ["# API", "", "| module | |", "| --- | --- |"]
    lines += [f"| [`{n}`]({n}.md) | {text} |" for n, (_, text) in MODULES.items()]
    return "\n".join(lines)


def _api_page(name: str) -> str:
    module, text = MODULES[name]
    lines = [f"# {name}", "", text]
    for each in public_names(module):
        value = getattr(module, each)
        if inspect.ismodule(value):
            continue
        lines += ["", f"::: {_path(module, each)}"]
    return "\n".join(lines)


def _path(module: ModuleType, name: str) -> str:
    """Returns the path of a public name; where a submodule has the same name, its own path."""
    path = f"{module.__name__}.{name}"
    if hasattr(module, "__path__") and importlib.util.find_spec(path) is not None:
        return f"{getattr(module, name).__module__}.{name}"
    return path


def public_names(module: ModuleType) -> list[str]:
    """Returns the public names of a module: `__all__`, or what it re-exports or defines."""
    if hasattr(module, "__all__"):
        return [name for name in module.__all__ if not name.startswith("_")]
    names = []
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ImportFrom):
            names += [alias.name for alias in node.names if alias.asname == alias.name]
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            names.append(node.name)
    return names
