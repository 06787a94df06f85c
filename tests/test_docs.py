"""The documentation names files that exist."""

import re
from itertools import groupby
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
INTERNALS = (ROOT / "docs/internals.md").read_text("utf-8")


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_named_files_exist(page):
    named = re.findall(
        r"`((?:jrnn|tests|docs|configs|experiments)/[\w./-]+\.\w+)`", page.read_text("utf-8")
    )
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_the_path_of_a_batch_enters_each_package_once():
    path = re.findall(r"^\| \d+ \| `([\w/.]+)`", INTERNALS, re.MULTILINE)
    assert len(path) > 15
    packages = [package for package, _ in groupby(path, key=lambda name: name.rpartition("/")[0])]
    assert len(packages) == len(set(packages)), packages


def test_functions_of_the_path_exist():
    rows = re.findall(r"^\| \d+ \| `([\w/.]+\.py)` \| `([\w.]+)`", INTERNALS, re.MULTILINE)
    assert len(rows) > 15
    for name, function in rows:
        source = (ROOT / name).read_text("utf-8")
        assert re.search(rf"^\s*(def|class) {function.split('.')[-1]}\b", source, re.MULTILINE), (
            name
        )
