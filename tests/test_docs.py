"""Tests that the files, functions and lines of code that docs and a notebook name exist."""

import contextlib
import inspect
import io
import json
import re
import sys
from itertools import groupby
from pathlib import Path
from types import ModuleType

import pytest

import jrnn
from jrnn import GRU, LSTM, config
from jrnn.cli.completion import FLAG
from jrnn.cli.main import _load_commands
from jrnn.flag_hints import field_flags
from tests.code_blocks import PAGES, read_code

ROOT = Path(__file__).parents[1]
INTERNALS = (ROOT / "docs/internals.md").read_text("utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page):
    paths = re.findall(
        r"`((?:jrnn|tests|docs|configs|experiments)/[\w./-]+\.\w+)`", page.read_text("utf-8")
    )
    assert [path for path in paths if not (ROOT / path).is_file()] == []


def test_table_of_internals_lists_the_files_of_a_package_together():
    paths = re.findall(r"^\| \d+ \| `([\w/.]+)`", INTERNALS, re.MULTILINE)
    assert len(paths) > 15
    packages = [package for package, _ in groupby(paths, key=lambda name: name.rpartition("/")[0])]
    assert len(packages) == len(set(packages)), packages


def test_functions_in_the_table_of_internals_exist():
    rows = re.findall(r"^\| \d+ \| `([\w/.]+\.py)` \| `([\w.]+)`", INTERNALS, re.MULTILINE)
    assert len(rows) > 15
    for path, function in rows:
        source = (ROOT / path).read_text("utf-8")
        definition = rf"^\s*(def|class) {function.split('.')[-1]}\b"
        assert re.search(definition, source, re.MULTILINE), path


def test_lines_of_code_that_a_notebook_prints_exist():
    """`print_code(cell, prefix, ...)` prints the line of `update` that begins with each prefix."""
    notebook = json.loads((ROOT / "experiments/notebooks/understanding_lstm.ipynb").read_text())
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    calls = re.findall(r"^print_code\((\w+), (.+)\)$", "\n".join(cells), re.MULTILINE)
    assert len(calls) > 5
    for variable, prefixes in calls:
        lines = inspect.getsource((GRU if variable == "gru" else LSTM).update).splitlines()
        for prefix in re.findall('"(.+?)"', prefixes):
            assert any(line.strip().startswith(prefix) for line in lines), prefix


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_code_of_a_page_runs(page, tmp_path, monkeypatch):
    module = ModuleType("page_of_docs")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # so that its classes are pickled
    monkeypatch.chdir(tmp_path)
    exec(compile(read_code(page), str(page), "exec"), vars(module))


def test_flags_in_commands_of_pages_exist():
    configs = [config.load(f"configs/{name}.py") for name in ("digits", "table", "arrays", "text")]
    known = {flag for each in configs for flag in field_flags(each)}
    for command in _load_commands().values():
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            command(["--help"])
        known |= {*FLAG.findall(printed.getvalue())}
    command = r"jrnn (?:train|eval|predict|sweep|report|compare|sample)\b[^`\n#]*"
    used = {
        (page.name, flag)
        for page in PAGES
        for line in re.findall(command, page.read_text("utf-8"))
        for flag in FLAG.findall(line)
    }
    assert len(used) > 20
    assert {(page, flag) for page, flag in used if flag not in known} == set()


def test_links_between_pages_exist():
    generated = {"transforms.md", "cells/index.md", "api/index.md"}
    for page in PAGES:
        for link in re.findall(r"\]\(([\w./-]+\.md)[)#]", page.read_text("utf-8")):
            path = (page.parent / link).resolve()
            name = str(path.relative_to(ROOT)).removeprefix("docs/")
            is_generated = name.startswith(("api/", "cells/")) or name in generated
            assert is_generated or path.is_file(), (page.name, link)


def test_every_public_module_has_a_page():
    """Cells, transforms and layers have pages of their own; `jrnn` lists the engines."""
    text = (ROOT / "docs/hooks.py").read_text("utf-8")
    documented = set(re.findall(r'^    "(jrnn[\w.]*)": \(', text, re.MULTILINE))
    public = {f"jrnn.{name}" for name in jrnn.__all__ if inspect.ismodule(getattr(jrnn, name))}
    others = {"jrnn.bench", "jrnn.cells", "jrnn.engines", "jrnn.layers", "jrnn.transforms"}
    assert public - others <= documented


@pytest.mark.parametrize(
    "notebook", sorted((ROOT / "experiments").rglob("*.ipynb")), ids=lambda path: path.stem
)
def test_notebooks_are_saved_without_outputs(notebook):
    if "build" in notebook.parts or ".ipynb_checkpoints" in notebook.parts:
        pytest.skip("an executed copy")
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
