"""Pickling of the classes of a config file with their code, for workers on other machines."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from jrnn.dataclass_tree import dataclasses_in, is_of_jrnn

INSTALLED = ("site-packages", "dist-packages")
"""Names of the folders of installed modules, which must be installed on all nodes."""


@contextlib.contextmanager
def pickle_by_value(cloudpickle: Any, experiments: Sequence[Any]) -> Iterator[None]:
    """Context manager in which classes of a config file are pickled with their code.

    Workers cannot import a config file, nor the modules in its folder that it imports. Modules that
    are installed, such as packages in `site-packages`, are imported by the workers.

    Args:
      cloudpickle: the module `ray.cloudpickle`.
      experiments: the experiments whose classes are pickled with their code.
    """
    modules = _find_user_modules(experiments)
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def _find_user_modules(experiments: Sequence[Any]) -> list[ModuleType]:
    """Returns all modules that were imported from the same folders as classes of the experiments.

    A package is returned with its submodules. The folder of a submodule is that of its package.
    """
    names = {cls.__module__ for cls in dataclasses_in(tuple(experiments))} & sys.modules.keys()
    folders = {_find_folder(sys.modules[name]) for name in names if not is_of_jrnn(name)}
    folders = {folder for folder in folders if folder is not None and folder.name not in INSTALLED}
    return [
        module
        for name, module in [*sys.modules.items()]
        if not is_of_jrnn(name) and _find_folder(module) in folders
    ]


def _find_folder(module: ModuleType) -> Path | None:
    """Returns the folder from which a module can be imported; None if the module has no file."""
    if (file := getattr(module, "__file__", None)) is None:
        return None
    parents = Path(file).resolve().parents
    depth = module.__name__.count(".") + (Path(file).name == "__init__.py")
    return parents[depth] if depth < len(parents) else None
