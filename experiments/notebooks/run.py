"""Runs the notebooks of this folder and saves the executed copies; an error fails the run.

    python experiments/notebooks/run.py [name ...]

A name is that of a notebook, with or without `.ipynb`; by default all are run. The copies are saved
in `build/notebooks/`. The exit code is 1 if any notebook fails.
"""

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build" / "notebooks"
TIMEOUT = 600  # seconds per notebook


def find(names: list[str]) -> list[Path]:
    """The named notebooks; by default all in this folder and its subfolders."""
    paths = sorted(p for p in HERE.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
    if not paths:
        raise SystemExit(f"run.py: no notebooks in {HERE}")
    known = ", ".join(p.stem for p in paths)
    if unknown := [name for name in names if Path(name).stem not in {p.stem for p in paths}]:
        raise SystemExit(f"run.py: name must be one of {known}, got {', '.join(unknown)}")
    stems = {Path(name).stem for name in names}
    return [p for p in paths if not names or p.stem in stems]


def execute(path: Path) -> str | None:
    """Runs a notebook in its folder, and saves the copy even if it fails; returns the error."""
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
    except Exception as error:  # the other notebooks still run
        return f"{type(error).__name__}: {error}".strip()
    finally:
        copy = BUILD / path.relative_to(HERE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, copy)
    return None


def main(names: list[str]) -> int:
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
