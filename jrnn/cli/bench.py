"""`jrnn bench`: finds the benchmark, which is no part of the package, and runs it."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from jrnn import config

MODULE = "jrnn_speed"
"""Name under which the benchmark is imported."""


def bench_command(args: list[str]) -> None:
    """`jrnn bench [newton|train] [--flag value ...]`."""
    part = {"newton": "newton", "train": "training"}.get(args[0] if args else "")
    if part:
        load(part).main(args[1:])
    else:
        load("bench").main(args)


def folder() -> Path:
    """Where the benchmark lies: in the package, if that is installed, else beside it.

    Raises:
      ValueError: it is in neither.
    """
    place = config.folder("experiments/speed")
    if not (place / "bench.py").is_file():
        raise ValueError(f"bench: this installation lacks the benchmark; it would be in {place}")
    return place


def load(part: str) -> ModuleType:
    """A module of the benchmark, such as `load("bench")`."""
    if MODULE not in sys.modules:
        place = folder()
        spec = importlib.util.spec_from_file_location(
            MODULE, place / "__init__.py", submodule_search_locations=[str(place)]
        )
        if spec is None or spec.loader is None:
            raise ValueError(f"bench: {place} cannot be imported as Python")
        module = importlib.util.module_from_spec(spec)
        sys.modules[MODULE] = module
        spec.loader.exec_module(module)
    return importlib.import_module(f"{MODULE}.{part}")
