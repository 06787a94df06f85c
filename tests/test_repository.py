"""Tests that workflows, metadata and documents name existing files, and agree with each other."""

import fnmatch
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
YAML = [*WORKFLOWS, *sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))]
YAML += [ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def load(path: Path) -> dict[str, Any]:
    # BaseLoader reads every scalar as a string; others read the key `on` of a workflow as True.
    return yaml.load(path.read_text("utf-8"), yaml.BaseLoader)


def jobs(workflow: Path) -> dict[str, dict[str, Any]]:
    return load(workflow)["jobs"]


def commands(workflow: Path) -> Iterator[str]:
    """Yields each line of the shell commands of a workflow."""
    for job in jobs(workflow).values():
        for step in job["steps"]:
            yield from step.get("run", "").splitlines()


def make_targets(text: str) -> list[str]:
    """Returns the targets of all calls of make in a text."""
    calls = re.findall(r"^(?:[\w.]+=\S+ )*make ([^#|;&\n]*)", text, re.MULTILINE)
    words = [word for call in calls for word in call.split()]
    return [word for word in words if "=" not in word and not word.startswith("-")]


def makefile_targets() -> list[str]:
    """Returns the targets of the Makefile, as patterns of `fnmatch`."""
    text = read("Makefile").replace("$(VENV)", ".venv")
    names = re.findall(r"^([\w./%-]+):(?!=)", text, re.MULTILINE)
    return [name.replace("%", "*") for name in names]


def is_makefile_target(target: str) -> bool:
    return any(fnmatch.fnmatchcase(target, pattern) for pattern in makefile_targets())


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_yaml_files_can_be_parsed(path: Path) -> None:
    assert isinstance(load(path), dict)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_only_targets_of_the_makefile(path: Path) -> None:
    called = make_targets("\n".join(commands(path)))
    assert [target for target in called if not is_makefile_target(target)] == []


def test_calls_of_make_are_found() -> None:
    text = "make .venv/bin/python\nA=1 make lint JOBS=4 -k # make x\nmake test-fast\nremake y"
    assert make_targets(text) == [".venv/bin/python", "lint", "test-fast"]
    assert (
        is_makefile_target("lint")
        and is_makefile_target(".venv/with-test")
        and is_makefile_target(".venv/bin/python")
    )
    assert not is_makefile_target("tests") and not is_makefile_target("FAST")
    assert make_targets("\n".join(commands(ROOT / ".github/workflows/ci.yml"))) != []


def test_names_that_test_fast_excludes_are_parts_of_names_of_tests() -> None:
    (expression,) = re.findall(r'-k "(.*)"', read("Makefile"))
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    names = re.findall(r"not (\w+)", expression)
    assert names and [n for n in names if not re.search(rf"def test_\w*{n}", sources)] == []


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_documents_name_only_targets_of_the_makefile(name: str) -> None:
    text = read(name)
    blocks = re.findall(r"```\n(.*?)```", text, re.DOTALL)
    called = make_targets("\n".join(re.findall(r"`(make [^`]*)`", text) + blocks))
    assert len(called) >= 6
    assert [target for target in called if not is_makefile_target(target)] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_have_least_permissions_and_a_time_limit(path: Path) -> None:
    assert load(path)["permissions"] == {"contents": "read"}
    for name, job in jobs(path).items():
        assert int(job["timeout-minutes"]) <= 60, name
        # Only the job `publish` has more permissions, and it runs no code of the repository.
        if "permissions" in job:
            assert (path.name, name) == ("wheels.yml", "publish")
            assert job["permissions"] == {"id-token": "write"} and job["environment"] == "pypi"
            assert all("run" not in step for step in job["steps"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_to_a_major_version(path: Path) -> None:
    used = [step["uses"] for job in jobs(path).values() for step in job["steps"] if "uses" in step]
    assert used != []
    assert [
        action for action in used if not re.fullmatch(r"[\w./-]+@(release/)?v\d+", action)
    ] == []


def test_versions_and_dates_agree() -> None:
    version = PROJECT["project"]["version"]
    citation = load(ROOT / "CITATION.cff")
    headings = re.findall(r"^## (.*)$", read("CHANGELOG.md"), re.MULTILINE)
    assert citation["version"] == version
    assert headings[:2] == ["Unreleased", f"{version} - {citation['date-released']}"]
    assert citation["license"] == PROJECT["project"]["license"]


def test_oldest_tested_jax_is_the_oldest_that_the_package_allows() -> None:
    pinned = re.findall(r"^(\w+)==([\d.]+)$", read(".github/oldest.txt"), re.M)
    (oldest,) = re.findall(r"^jax>=([\d.]+)$", "\n".join(PROJECT["project"]["dependencies"]), re.M)
    assert pinned == [("jax", f"{oldest}.0"), ("jaxlib", f"{oldest}.0")]


def test_wheels_are_built_for_the_python_versions_in_the_metadata() -> None:
    classifiers = "\n".join(PROJECT["project"]["classifiers"])
    versions = [
        version.replace(".", "") for version in re.findall(r":: (3\.\d+)$", classifiers, re.M)
    ]
    assert PROJECT["tool"]["cibuildwheel"]["build"] == [f"cp{version}-*" for version in versions]


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md"])
def test_paths_of_documents_exist(name: str) -> None:
    """A path is in backticks, and begins with a folder or is the name of a .md, .toml or .cff file.

    Paths with `NAME` are placeholders.
    """
    text = read(name)
    folder = r"(?:jrnn|tests|configs|experiments|docs|\.github)/"
    paths = re.findall(rf"`({folder}[\w./-]*|[\w.-]+\.(?:md|toml|cff))`", text)
    paths = [path for path in paths if "NAME" not in path]
    assert len(paths) >= (20 if name == "CONTRIBUTING.md" else 0)
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("jrnn/cells/__init__.py", ["REGISTRY"]),
        ("jrnn/transforms/__init__.py", ["REGISTRY"]),
        ("jrnn/engines/unroll.py", ["REGISTRY"]),
        ("jrnn/tasks/__init__.py", ["REGISTRY"]),
        ("tests/table.py", ["FAMILIES", "KINDS", "ENGINES"]),
        ("tests/oracles/transforms.py", ["CELLS"]),
        ("tests/tasks/test_registry.py", ["OPTIONS", "FLAGS"]),
        ("experiments/cells/cell_configs.py", ["_OVERRIDES"]),
        ("jrnn/bench/gpu_check/plan.py", ["TIMED_ENGINES"]),
    ],
)
def test_tables_that_contributing_mentions_exist(path: str, names: list[str]) -> None:
    assert f"`{path}`" in read("CONTRIBUTING.md")
    defined = re.findall(r"^(\w+)\b.* = ", read(path), re.MULTILINE)
    assert [name for name in names if name not in defined] == []


def test_mutants_apply_to_the_source() -> None:
    """The text that a mutant replaces occurs exactly once in its file."""
    mutants = tomllib.loads((ROOT / "tests/mutants.toml").read_text("utf-8"))["mutant"]
    counts = {m["name"]: (ROOT / m["file"]).read_text("utf-8").count(m["old"]) for m in mutants}
    assert {name: count for name, count in counts.items() if count != 1} == {}


def test_tests_of_a_file_run_in_one_process(request):
    """Otherwise fixtures of a file run in every process. pytest-xdist appends the group."""
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("tests are not distributed by groups")
    assert request.node.nodeid.endswith("@tests/test_repository.py")
