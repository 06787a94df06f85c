"""Mutation testing: plants faults one at a time and prints whether the tests catch them.

::

    python tests/mutants.py                      all of mutants.toml
    python tests/mutants.py --only gru lstm:     those whose names contain one of these texts

A mutant replaces a text that occurs exactly once in a file of `jrnn`, in a copy of the repository,
and one test of `make test` runs there: it must pass without the mutant and fail with it. The exit
status is 1 if a mutant survives. `make test` does not run this file.
"""

import argparse
import importlib.util
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TABLE = Path(__file__).with_suffix(".toml")
COPIED = ("jrnn", "tests", "configs", "experiments", "pyproject.toml", "README.md")
TIMEOUT = 600
"""Seconds for the tests of one mutant."""

# The editable install would import jrnn from the repository and not from the copy.
SITE = """
import sys

sys.meta_path[:] = [f for f in sys.meta_path if "jrnn" not in getattr(f, "known_source_files", {})]
"""


class Mutant(NamedTuple):
    """A fault: an entry of mutants.toml.

    Attributes:
      name: what the fault is.
      file: where it is.
      old: text that occurs exactly once in the file.
      new: what replaces it.
      tests: arguments of pytest, most often the id of one test, which must fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def read_mutants() -> list[Mutant]:
    """The mutants, after a check that each of them fits the code."""
    entries = tomllib.loads(TABLE.read_text())["mutant"]
    mutants = [Mutant(**entry)._replace(tests=tuple(entry["tests"])) for entry in entries]
    names = [mutant.name for mutant in mutants]
    if len(set(names)) < len(names):
        raise SystemExit("mutants.py: two mutants have the same name")
    for mutant in mutants:
        compile(plant(mutant, (ROOT / mutant.file).read_text()), mutant.file, "exec")
    return mutants


class Outcome(NamedTuple):
    """What the tests say of a mutant.

    Attributes:
      mutant: its name.
      file: where the fault is.
      caught_by: the first test that fails, or why it does not count as caught.
      caught: whether a test fails.
      message: the first line of the failure.
      seconds: how long the tests take.
    """

    mutant: str
    file: str
    caught_by: str
    caught: bool
    message: str
    seconds: float


class PytestResult(NamedTuple):
    """What pytest returns: its exit status, the tests that failed, and its output."""

    status: int
    failed: list[str]
    output: str


def plant(mutant: Mutant, text: str) -> str:
    """The text of a file with the fault; raises unless the old text occurs once."""
    count = text.count(mutant.old)
    if count != 1:
        raise SystemExit(
            f"mutants.py: {mutant.name!r}: its old text must occur once in {mutant.file}, and "
            f"occurs {count} times; bring mutants.toml up to date"
        )
    return text.replace(mutant.old, mutant.new)


def make_copy(folder: Path) -> Path:
    """A copy of the repository from which Python imports jrnn, compiled kernels included."""
    ignored = shutil.ignore_patterns("__pycache__", "results", "*.so")
    for name in COPIED:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy2
        copy(source, folder / name, **({"ignore": ignored} if source.is_dir() else {}))
    kernels = importlib.util.find_spec("jrnn._kernels")
    if kernels is not None and kernels.origin is not None:
        shutil.copy2(kernels.origin, folder / "jrnn")
    (folder / "sitecustomize.py").write_text(SITE)
    found = run_python(folder, "-c", "import jrnn; print(jrnn.__file__)").stdout
    if not Path(found.strip()).is_relative_to(folder):
        raise SystemExit(f"mutants.py: jrnn is imported from {found}, and not from {folder}")
    return folder


def run_python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in a copy; no bytecode is written, since a file may change within a second."""
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
    )


def run_tests(folder: Path, *arguments: str) -> PytestResult:
    """Runs pytest in a copy, with the tests of `make test`."""
    options = ("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider")
    try:
        done = run_python(folder, *options, *arguments)
    except subprocess.TimeoutExpired:
        return PytestResult(-1, [], f"more than {TIMEOUT} seconds")
    failed = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    return PytestResult(done.returncode, failed, done.stdout)


def log(line: str) -> None:
    """Progress, beside the table that is printed at the end."""
    print(line, file=sys.stderr, flush=True)


def try_mutant(folder: Path, mutant: Mutant) -> Outcome:
    """Plants a fault, runs its tests and removes it again."""
    path, begin = folder / mutant.file, time.perf_counter()
    text = path.read_text()
    path.write_text(plant(mutant, text))
    try:
        tests = run_tests(folder, "-x", *mutant.tests)
    finally:
        path.write_text(text)
    caught = tests.status == 1 and bool(tests.failed)
    if caught:
        by = tests.failed[0].removeprefix("tests/")
    else:
        by = "NOT CAUGHT" if tests.status == 0 else f"pytest ends with {tests.status}"
        log(f"{mutant.name}: {by}\n{tests.output[-2000:]}")
    message = re.search(r"^E +(.+)$", tests.output, re.MULTILINE)
    why = message[1] if message else ""
    return Outcome(mutant.name, mutant.file, by, caught, why, time.perf_counter() - begin)


def run_all(folder: Path, mutants: list[Mutant], jobs: int) -> tuple[list[Outcome], list[str]]:
    """The outcomes, and tests that fail without a mutant: what they would catch is left out."""
    copies: queue.Queue[Path] = queue.Queue()
    for number in range(jobs):
        (folder / str(number)).mkdir()
        copies.put(make_copy(folder / str(number)))

    @contextmanager
    def borrowed() -> Iterator[Path]:
        copy = copies.get()
        try:
            yield copy
        finally:
            copies.put(copy)

    def failing(selection: tuple[str, ...]) -> list[str]:
        with borrowed() as copy:
            tests = run_tests(copy, *selection)
        if tests.status == 0:
            return []
        log(f"{' '.join(selection)}: fails without a mutant\n{tests.output[-2000:]}")
        return tests.failed or list(selection)

    def outcome_of(mutant: Mutant) -> Outcome:
        with borrowed() as copy:
            outcome = try_mutant(copy, mutant)
        log(f"{outcome.seconds:4.0f} s  {outcome.mutant}: {outcome.caught_by}")
        return outcome

    with ThreadPoolExecutor(jobs) as pool:
        failed = sum(pool.map(failing, selections(mutants)), [])
        # A failure may be that of a whole file, and tests may be all cases of one function.
        same = lambda test, name: name.startswith(test) or test.startswith(name)
        usable = [m for m in mutants if not any(same(m.tests[0], name) for name in failed)]
        return list(pool.map(outcome_of, usable)), failed


def selections(mutants: list[Mutant]) -> list[tuple[str, ...]]:
    """All tests once: those of one file are one run."""
    by_file: dict[str, set[str]] = {}
    others = set()
    for mutant in mutants:
        if len(mutant.tests) > 1:
            others.add(mutant.tests)
        else:
            by_file.setdefault(mutant.tests[0].partition("::")[0], set()).update(mutant.tests)
    return [tuple(sorted(tests)) for tests in by_file.values()] + sorted(others)


def table(outcomes: list[Outcome]) -> str:
    """The outcomes in Markdown."""
    lines = ["| mutant | file | caught by | s |", "| --- | --- | --- | ---: |"]
    for outcome in outcomes:
        by = f"`{outcome.caught_by}`" if outcome.caught else f"**{outcome.caught_by}**"
        file = outcome.file.removeprefix("jrnn/")
        lines.append(f"| {outcome.mutant} | `{file}` | {by} | {outcome.seconds:.0f} |")
    return "\n".join(lines)


def main() -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=[""], help="texts in the names")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at the same time")
    parser.add_argument("--json", type=Path, help="a file for the outcomes")
    options = parser.parse_args()
    mutants = [m for m in read_mutants() if any(text in m.name for text in options.only)]
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        outcomes, failed = run_all(Path(folder).resolve(), mutants, options.jobs)
    if options.json:
        options.json.write_text(json.dumps([o._asdict() for o in outcomes], indent=2) + "\n")
    caught = sum(outcome.caught for outcome in outcomes)
    print(table(outcomes))
    print(
        f"\n{caught} of {len(mutants)} caught in {(time.perf_counter() - begin) / 60:.0f} minutes"
    )
    for test in failed:
        print(f"fails without a mutant: {test}")
    return 0 if caught == len(mutants) and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
