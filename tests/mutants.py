"""Mutation testing: applies the mutants of mutants.toml, and prints which test kills each.

::

    python tests/mutants.py                      all mutants
    python tests/mutants.py --only gru lstm:     mutants whose names contain "gru" or "lstm:"

In a copy of the repository, a mutant replaces a text that occurs exactly once in a file of `jrnn`.
The tests of the mutant must pass without the change, and one of them must fail with it. Otherwise
the exit status is 1. `make test` does not run this file.
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
"""Time limit in seconds for the tests of one mutant."""

# Removes the import hook of the editable install, which would import jrnn from the repository.
SITECUSTOMIZE = """
import sys

sys.meta_path[:] = [f for f in sys.meta_path if "jrnn" not in getattr(f, "known_source_files", {})]
"""


class Mutant(NamedTuple):
    """An entry of mutants.toml.

    Attributes:
      name: description of the error.
      file: path of the file.
      old: text that occurs exactly once in the file.
      new: the replacement.
      tests: arguments of pytest that select the tests, usually the id of one test.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def read_mutants() -> list[Mutant]:
    """Reads the mutants, and checks that each can be applied and is valid Python.

    Raises:
      SystemExit: two mutants have the same name, or a text does not occur exactly once.
      SyntaxError: a mutated file is not valid Python.
    """
    entries = tomllib.loads(TABLE.read_text())["mutant"]
    mutants = [Mutant(**entry)._replace(tests=tuple(entry["tests"])) for entry in entries]
    names = [mutant.name for mutant in mutants]
    if len(set(names)) < len(names):
        raise SystemExit("mutants.py: two mutants have the same name")
    for mutant in mutants:
        compile(apply_mutant(mutant, (ROOT / mutant.file).read_text()), mutant.file, "exec")
    return mutants


class Outcome(NamedTuple):
    """The result of running the tests of a mutant.

    Attributes:
      mutant: name of the mutant.
      file: path of the mutated file.
      killed_by: the first failing test, or the reason that the mutant survived.
      killed: whether a test failed.
      message: the first line of the error, or "".
      seconds: duration of the tests.
    """

    mutant: str
    file: str
    killed_by: str
    killed: bool
    message: str
    seconds: float


class PytestResult(NamedTuple):
    """The exit status of pytest (-1 after a timeout), the ids of failed tests, and the output."""

    status: int
    failed: list[str]
    output: str


def apply_mutant(mutant: Mutant, text: str) -> str:
    """Returns the mutated text of a file; exits unless the old text occurs exactly once."""
    count = text.count(mutant.old)
    if count != 1:
        raise SystemExit(
            f"mutants.py: {mutant.name!r}: old text must occur once in {mutant.file}, got {count} "
            "times; update mutants.toml"
        )
    return text.replace(mutant.old, mutant.new)


def make_copy(folder: Path) -> Path:
    """Copies the repository and the compiled kernels, so that Python imports jrnn from the copy.

    Returns the folder of the copy; exits if Python imports jrnn from elsewhere.
    """
    ignored = shutil.ignore_patterns("__pycache__", "results", "*.so")
    for name in COPIED:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy2
        copy(source, folder / name, **({"ignore": ignored} if source.is_dir() else {}))
    kernels = importlib.util.find_spec("jrnn._kernels")
    if kernels is not None and kernels.origin is not None:
        shutil.copy2(kernels.origin, folder / "jrnn")
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    imported = run_python(folder, "-c", "import jrnn; print(jrnn.__file__)").stdout
    if not Path(imported.strip()).is_relative_to(folder):
        raise SystemExit(f"mutants.py: jrnn must be imported from {folder}, got {imported}")
    return folder


def run_python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in a copy.

    Bytecode is not written, because Python does not notice that a file changes within a second.
    """
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
    """Runs pytest in a copy."""
    options = ("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider")
    try:
        done = run_python(folder, *options, *arguments)
    except subprocess.TimeoutExpired:
        return PytestResult(-1, [], f"more than {TIMEOUT} seconds")
    failed = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    return PytestResult(done.returncode, failed, done.stdout)


def log(line: str) -> None:
    """Prints a line to standard error; standard output only has the table."""
    print(line, file=sys.stderr, flush=True)


def try_mutant(folder: Path, mutant: Mutant) -> Outcome:
    """Applies a mutant, runs its tests and restores the file."""
    path, begin = folder / mutant.file, time.perf_counter()
    text = path.read_text()
    path.write_text(apply_mutant(mutant, text))
    try:
        tests = run_tests(folder, "-x", *mutant.tests)
    finally:
        path.write_text(text)
    killed = tests.status == 1 and bool(tests.failed)
    if killed:
        killed_by = tests.failed[0].removeprefix("tests/")
    else:
        killed_by = "SURVIVED" if tests.status == 0 else f"pytest exits with {tests.status}"
        log(f"{mutant.name}: {killed_by}\n{tests.output[-2000:]}")
    match = re.search(r"^E +(.+)$", tests.output, re.MULTILINE)
    message = match[1] if match else ""
    seconds = time.perf_counter() - begin
    return Outcome(mutant.name, mutant.file, killed_by, killed, message, seconds)


def run_all(folder: Path, mutants: list[Mutant], jobs: int) -> tuple[list[Outcome], list[str]]:
    """Runs all mutants in parallel copies.

    Returns:
      The outcomes, and the tests that fail without a mutant, whose mutants are skipped.
    """
    copies: queue.Queue[Path] = queue.Queue()
    for number in range(jobs):
        (folder / str(number)).mkdir()
        copies.put(make_copy(folder / str(number)))

    @contextmanager
    def exclusive_copy() -> Iterator[Path]:
        copy = copies.get()
        try:
            yield copy
        finally:
            copies.put(copy)

    def failed_tests(selection: tuple[str, ...]) -> list[str]:
        with exclusive_copy() as copy:
            tests = run_tests(copy, *selection)
        if tests.status == 0:
            return []
        log(f"{' '.join(selection)}: fails without a mutant\n{tests.output[-2000:]}")
        return tests.failed or list(selection)

    def outcome_of(mutant: Mutant) -> Outcome:
        with exclusive_copy() as copy:
            outcome = try_mutant(copy, mutant)
        log(f"{outcome.seconds:4.0f} s  {outcome.mutant}: {outcome.killed_by}")
        return outcome

    with ThreadPoolExecutor(jobs) as pool:
        failed = sum(pool.map(failed_tests, group_tests_by_file(mutants)), [])
        # `name` may be a file that failed to import, and `test` a function with several parameters.
        matches = lambda test, name: name.startswith(test) or test.startswith(name)
        usable = [m for m in mutants if not any(matches(m.tests[0], name) for name in failed)]
        return list(pool.map(outcome_of, usable)), failed


def group_tests_by_file(mutants: list[Mutant]) -> list[tuple[str, ...]]:
    """Returns the arguments of pytest runs that run each test once, one run for each file."""
    by_file: dict[str, set[str]] = {}
    others = set()
    for mutant in mutants:
        if len(mutant.tests) > 1:
            others.add(mutant.tests)
        else:
            file = next(iter(mutant.tests)).partition("::")[0]
            by_file.setdefault(file, set()).update(mutant.tests)
    return [tuple(sorted(tests)) for tests in by_file.values()] + sorted(others)


def format_table(outcomes: list[Outcome]) -> str:
    """Formats the outcomes as a Markdown table."""
    lines = ["| mutant | file | killed by | s |", "| --- | --- | --- | ---: |"]
    for outcome in outcomes:
        killed_by = f"`{outcome.killed_by}`" if outcome.killed else f"**{outcome.killed_by}**"
        file = outcome.file.removeprefix("jrnn/")
        lines.append(f"| {outcome.mutant} | `{file}` | {killed_by} | {outcome.seconds:.0f} |")
    return "\n".join(lines)


def main() -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--only", nargs="+", default=[""], help="run mutants whose names contain one of these"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="number of mutants tested in parallel"
    )
    parser.add_argument("--json", type=Path, help="path of a JSON file for the outcomes")
    options = parser.parse_args()
    mutants = [m for m in read_mutants() if any(text in m.name for text in options.only)]
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        outcomes, failed = run_all(Path(folder).resolve(), mutants, options.jobs)
    if options.json:
        options.json.write_text(json.dumps([o._asdict() for o in outcomes], indent=2) + "\n")
    killed = sum(outcome.killed for outcome in outcomes)
    print(format_table(outcomes))
    print(
        f"\n{killed} of {len(mutants)} killed in {(time.perf_counter() - begin) / 60:.0f} minutes"
    )
    for test in failed:
        print(f"fails without a mutant: {test}")
    return 0 if killed == len(mutants) and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
