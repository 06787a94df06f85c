"""Executes notebooks in copies, which are saved with their outputs.

    python experiments/notebooks/run.py [NAME ...]

NAME is the name of a notebook, with or without `.ipynb`; by default all are executed. The copies
are saved in `build/notebooks/`. The exit code is 1 if a notebook raises an error, or a name is
unknown.
"""

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build" / "notebooks"
TIMEOUT = 600  # seconds for all cells of a notebook


def find(names: list[str]) -> list[Path]:
    """Returns the paths of the named notebooks; without names, of all in this folder.

    Notebooks in subfolders are included.

    Raises:
      SystemExit: there is no notebook, or a name is unknown.
    """
    paths = sorted(p for p in HERE.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
    if not paths:
        raise SystemExit(f"run.py: there are no notebooks in {HERE}")
    choices = ", ".join(p.stem for p in paths)
    if unknown := [name for name in names if Path(name).stem not in {p.stem for p in paths}]:
        raise SystemExit(f"run.py: name must be one of {choices}, got {', '.join(unknown)}")
    stems = {Path(name).stem for name in names}
    return [p for p in paths if not names or p.stem in stems]


def execute(path: Path) -> str | None:
    """Executes a notebook in its folder, and saves the copy.

    Returns:
      The error message if a cell raises an error, otherwise None. The copy is saved in both cases.
    """
    notebook = nbformat.read(path, as_version=4)
    deadline = time.monotonic() + TIMEOUT
    client = NotebookClient(
        notebook,
        timeout_func=lambda cell: max(1, round(deadline - time.monotonic())),
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
        coalesce_streams=True,
    )
    try:
        client.execute()
    except Exception as error:  # so that the other notebooks are executed too
        return f"{type(error).__name__}: {error}".strip()
    finally:
        copy = BUILD / path.relative_to(HERE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, copy)
    return None


def main(names: list[str]) -> int:
    """Executes the named notebooks; returns the exit code."""
    failed = 0
    for path in find(names):
        start = time.perf_counter()
        error = execute(path)
        seconds = time.perf_counter() - start
        print(
            f"{'FAIL' if error else 'pass'}  {path.relative_to(HERE)}  {seconds:.0f} s", flush=True
        )
        if error:
            failed += 1
            print(error, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
