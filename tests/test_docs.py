"""Tests that the files, functions and lines of code that docs and a notebook name exist."""

import inspect
import json
import re
from itertools import groupby
from pathlib import Path

import pytest

from jrnn import GRU, LSTM

ROOT = Path(__file__).parents[1]
INTERNALS = (ROOT / "docs/internals.md").read_text("utf-8")


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
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
