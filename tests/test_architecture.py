"""Tests of the architecture of the package: allowed imports, forbidden code, and docstrings."""

import ast
import importlib
import inspect
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import jrnn
from tests.helpers import public_names

PACKAGE = Path(jrnn.__file__).parent

# The parts of the package, which are its files and folders, by level from the bottom up. A part may
# import parts of lower levels and itself, but no other part of its own level.
LEVELS: list[set[str]] = [
    {"broadcasting", "dataclass_tree", "dtypes", "messages"},
    # _kernels is a compiled extension module.
    {
        "checks",
        "files",
        "initializers",
        "jaxprs",
        "memory",
        "plotting",
        "signals",
        "_kernels",
    },
    {"signatures", "trees"},
    {"fields"},
    {"flag_hints", "layer", "taps", "terminal"},
    {"params"},
    {"cell", "masking"},
    {"structure"},
    {"cells", "transforms", "engines", "layers"},
    {"jrnn"},  # the names that jrnn/__init__.py exports
    {"nn", "analysis", "testing", "distributed"},
    {"tasks"},
    {"train"},
    {"sweep", "serialize"},
    {"config"},
    {"run_data"},
    {"run_folder"},
    {"report"},
    {"bench"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, level in enumerate(LEVELS) for name in level}


# The parts that may import each library. Other libraries are forbidden, except the standard one.
ALLOWED_EVERYWHERE = {"jax", "numpy"}
LIBRARIES = {
    "flax": {"nn", "train", "sweep", "bench"},
    "optax": {"train", "bench"},
    "orbax": {"train"},
    "filelock": {"train"},
    "grain": {"train"},
    "rich": {"train", "sweep", "bench", "cli", "terminal"},
    "scipy": {"train"},
    "shtab": {"cli"},
    "tensorboardX": {"train"},
    "wandb": {"train"},
    "typeguard": {"serialize", "train"},
    "tyro": {"config", "bench", "cli", "terminal"},
    "chex": {"testing"},
    "equinox": {"bench"},
    "ray": {"sweep"},
}
# Libraries that are slow to import, or are not installed with jrnn. Any part may import them, but
# only inside functions, unless LIBRARIES restricts the parts.
INSIDE_FUNCTIONS = {
    "matplotlib",
    "sklearn",
    "torch",
    "onnx",
    "onnxruntime",
    "keras",
    "haiku",
    "ray",
    "tensorboardX",
    "wandb",
}
# Each file of this folder imports the library that it is named after. The files themselves are
# imported inside functions.
PEERS = "bench/peers/"

MAX_LINES = 700
MAX_IGNORED = 5  # comments that disable pyright, except for imports of optional libraries
# `import jrnn` and the use of the names in `jrnn._SOURCES`, except `stream`, must not import these
# libraries.
NOT_IMPORTED = [
    "flax",
    "grain",
    "optax",
    "orbax",
    "matplotlib",
    "sklearn",
    "torch",
    "chex",
    "ray",
    "rich",
    "tyro",
]


def violations(path: str, source: str) -> list[str]:
    """Lists the violations in a file; `path` is relative to the package, as in cells/lstm.py."""
    tree = ast.parse(source)
    messages = [f"{path}:{line}: {message}" for line, message in sorted(_violations(path, tree))]
    if (lines := len(source.splitlines())) > MAX_LINES:
        messages.append(f"{path}: must have at most {MAX_LINES} lines, got {lines}; split the file")
    return messages


def _violations(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    part = part_of(path)
    if part not in RANK:
        yield 1, f"{part} must be on a level; add it to LEVELS"
        return
    for line, name, at_import in imports(path, tree):
        top, *rest = name.split(".")
        if top == "jrnn":
            target = rest[0] if rest and rest[0] in RANK else "jrnn"
            is_allowed = target == part or RANK[target] < RANK[part]
            # jrnn/__init__.py imports names and modules on first use; type checkers read them.
            is_allowed = is_allowed or (part == "jrnn" and not at_import)
            if not is_allowed:
                yield line, f"{part} must not import {target}"
        elif name.startswith("jax._src") and at_import:
            yield line, "jax._src is private to JAX; import it inside the function that uses it"
        elif top in INSIDE_FUNCTIONS and at_import:
            if not path.startswith(PEERS):
                yield line, f"{top} must be imported inside the function that uses it"
        elif top in LIBRARIES:
            if part not in LIBRARIES[top]:
                allowed = ", ".join(sorted(LIBRARIES[top]))
                yield line, f"{top} must be imported in {allowed} only, not in {part}"
        elif (
            top not in ALLOWED_EVERYWHERE | INSIDE_FUNCTIONS and top not in sys.stdlib_module_names
        ):
            yield line, f"{top} is not an allowed library; add it to LIBRARIES"
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert) and part != "testing":
            yield node.lineno, "assert must not be used; raise an error"
        if isinstance(node, ast.Name) and node.id == "hasattr":
            yield node.lineno, "hasattr must not be used; declare an attribute"


def part_of(path: str) -> str:
    """Returns the part of a file: its folder, or the file itself; `jrnn` for jrnn/__init__.py."""
    parts = Path(path).with_suffix("").parts
    return "jrnn" if parts == ("__init__",) else parts[0]


def imports(path: str, tree: ast.Module) -> Iterator[tuple[int, str, bool]]:
    """Yields line and full name of each import, and whether it runs when the file is imported."""
    package = ["jrnn", *Path(path).parts[:-1]]
    for node, at_import in walk(tree, True):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, at_import
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # RANK distinguishes `from jrnn import cells` from `from jrnn import LSTM`.
            names = (
                [f"{module}.{alias.name}" for alias in node.names] if module == "jrnn" else [module]
            )
            for name in names:
                yield node.lineno, name, at_import


def walk(node: ast.AST, at_import: bool) -> Iterator[tuple[ast.AST, bool]]:
    """Yields each node, and whether it runs when the file is imported."""
    yield node, at_import
    is_lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    is_lazy = is_lazy or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    for child in ast.iter_child_nodes(node):
        yield from walk(child, at_import and not is_lazy)


@pytest.mark.parametrize("part", sorted(RANK))
def test_files_follow_the_architecture(part: str) -> None:
    for file in sorted(PACKAGE.rglob("*.py")):
        path = file.relative_to(PACKAGE).as_posix()
        if part_of(path) == part:
            assert violations(path, file.read_text(encoding="utf-8")) == []


def test_levels_list_exactly_the_parts_of_the_package() -> None:
    parts = {part_of(file.relative_to(PACKAGE).as_posix()) for file in PACKAGE.rglob("*.py")}
    # An installed jrnn also contains the configs. `_kernels` is not a Python file.
    assert parts - {"configs"} | {"_kernels"} == set(RANK)


def test_type_errors_are_rarely_ignored() -> None:
    ignored = [
        f"{file.relative_to(PACKAGE)}:{number}"
        for file in PACKAGE.rglob("*.py")
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"#\s*(pyright|type):", line)
        and "reportMissingImports" not in line  # for optional libraries
    ]
    assert len(ignored) <= MAX_IGNORED, ignored


INVALID_FILES = [
    ("cell.py", "from jrnn.cells import LSTM", "cell must not import cells"),
    ("cells/mut.py", "from jrnn.engines import unroll", "cells must not import engines"),
    ("cells/mut.py", "from jrnn import LSTM", "cells must not import jrnn"),
    ("cells/mut.py", "import jrnn", "cells must not import jrnn"),
    ("cells/mut.py", "from ..engines.scan import Scan", "cells must not import engines"),
    ("cells/deep/mut.py", "from ... import nn", "cells must not import nn"),
    ("engines/fused.py", "from jrnn import cells", "engines must not import cells"),
    ("layers/stack.py", "from jrnn.engines.scan import Scan", "layers must not import engines"),
    ("layers/stack.py", "from jrnn import engines", "layers must not import engines"),
    ("layers/stack.py", "from jrnn.transforms import zoneout", "layers must not import transforms"),
    ("masking.py", "from jrnn.cell import Cell", "masking must not import cell"),
    ("engines/scan.py", "from jrnn import layers", "engines must not import layers"),
    ("cell.py", "from jrnn import structure", "cell must not import structure"),
    ("layer.py", "from jrnn.cell import Cell", "layer must not import cell"),
    ("taps.py", "from jrnn.layer import Layer", "taps must not import layer"),
    ("checks.py", "from jrnn import initializers", "checks must not import initializers"),
    ("initializers.py", "import jrnn.cell", "initializers must not import cell"),
    ("nn/rnn.py", "import jrnn.analysis.plots", "nn must not import analysis"),
    ("nn/rnn.py", "def f():\n    from jrnn import train", "nn must not import train"),
    ("tasks/copy.py", "from jrnn.train import train", "tasks must not import train"),
    ("train/loop.py", "from jrnn import config", "train must not import config"),
    ("config.py", "from jrnn.cli import main", "config must not import cli"),
    ("sweep/sweep.py", "from jrnn import report", "sweep must not import report"),
    ("__init__.py", "from jrnn import nn", "jrnn must not import nn"),
    ("novel.py", "", "novel must be on a level; add it"),
    (
        "cells/lstm.py",
        "from flax import nnx",
        "flax must be imported in bench, nn, sweep, train only, not in cells",
    ),
    ("nn/rnn.py", "import optax", "optax must be imported in bench, train only, not in nn"),
    (
        "tasks/copy.py",
        "import orbax.checkpoint",
        "orbax must be imported in train only, not in tasks",
    ),
    (
        "analysis/plots.py",
        "import matplotlib.pyplot",
        "matplotlib must be imported inside the function",
    ),
    ("nn/torch.py", "class A:\n    import torch", "torch must be imported inside the function"),
    ("sweep/ray.py", "import ray", "ray must be imported inside the function"),
    ("cli/sweep.py", "def f():\n    import ray", "ray must be imported in sweep only, not in cli"),
    ("tasks/copy.py", "from jax._src import core", "jax._src is private to JAX; import it inside"),
    ("cells/lstm.py", "import trax", "trax is not an allowed library"),
    ("cells/lstm.py", "def f(x):\n    assert x", "cells/lstm.py:2: assert must not be used"),
    ("cells/lstm.py", "hasattr(1, 'real')", "hasattr must not be used"),
    ("cells/lstm.py", "x = 1\n" * 701, "must have at most 700 lines, got 701"),
]


@pytest.mark.parametrize(("path", "source", "expected"), INVALID_FILES)
def test_invalid_file_is_reported(path: str, source: str, expected: str) -> None:
    (message,) = violations(path, source)
    assert expected in message


VALID_FILES = [
    (
        "cells/lstm.py",
        "from jrnn import checks, initializers\nfrom jrnn.cells import common",
    ),
    ("cells/lstm.py", "from . import common\nimport jax, numpy as np, math"),
    ("cells/lstm.py", "from jrnn.cell import Cell\nfrom jrnn import structure, taps"),
    ("layers/bidirectional.py", "from jrnn.masking import reverse_resets"),
    ("layers/bidirectional.py", "from ..masking import reverse_resets"),
    ("nn/rnn.py", "import jrnn\nfrom jrnn import LSTM\nfrom flax import nnx"),
    ("analysis/plots.py", "def draw():\n    import matplotlib.pyplot"),
    ("sweep/ray.py", "def connect():\n    import ray"),
    ("tasks/copy.py", "def f():\n    from jax._src import core"),
    ("analysis/plots.py", "if TYPE_CHECKING:\n    from matplotlib.axes import Axes"),
    ("train/loop.py", "from jrnn.tasks import Task\nimport optax, orbax.checkpoint"),
    ("testing.py", "import chex\nassert True"),
    ("__init__.py", "if TYPE_CHECKING:\n    from jrnn import nn"),
    ("cells/lstm.py", "x = 1\n" * 700),
]


@pytest.mark.parametrize(("path", "source"), VALID_FILES)
def test_valid_file_has_no_violations(path: str, source: str) -> None:
    assert violations(path, source) == []


MEASURE_IMPORT = """
import json, time
start = time.process_time()
import jax
before, middle = dict(jax.config.values), time.process_time()
import jrnn
for name in jrnn._SOURCES:
    if name not in ("stream", "load", "Run"):  # which need flax
        getattr(jrnn, name)
end = time.process_time()
import sys
print(json.dumps({
    "seconds": end - middle,
    "loaded": sorted({name.split(".")[0] for name in sys.modules}),
    "changed": [name for name, value in jax.config.values.items() if before[name] != value],
}))
"""


def test_import_is_fast_and_loads_no_slow_library_and_changes_no_setting() -> None:
    runs = []
    for _ in range(3):
        output = subprocess.run(
            [sys.executable, "-c", MEASURE_IMPORT], check=True, capture_output=True
        )
        runs.append(json.loads(output.stdout))
    assert not set(NOT_IMPORTED) & set(runs[0]["loaded"])
    assert runs[0]["changed"] == []
    assert statistics.median(run["seconds"] for run in runs) < 0.3


def test_import_of_the_command_loads_only_the_standard_library() -> None:
    """The command must install its signal handlers before it imports JAX."""
    code = (
        "import sys; old = set(sys.modules); import jrnn, jrnn.cli; print(*set(sys.modules) - old)"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout
    loaded = {name.split(".")[0] for name in output.decode().split()}
    assert loaded - sys.stdlib_module_names == {"jrnn"}


def test_public_names_are_the_imports_that_type_checkers_read() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    imported = {
        alias.name: node.module
        for node, at_import in walk(tree, True)
        if isinstance(node, ast.ImportFrom)
        and not at_import
        and node.module != "importlib.metadata"
        for alias in node.names
    }
    assert {n: m for n, m in imported.items() if m != "jrnn"} == jrnn._SOURCES
    modules = {name for name, module in imported.items() if module == "jrnn"}
    assert modules == set(jrnn._MODULES) < set(dir(jrnn))
    assert set(public_names(jrnn)) == modules | {*jrnn._SOURCES, "__version__"}
    with pytest.raises(AttributeError, match="module 'jrnn' has no attribute 'LSTN'"):
        getattr(jrnn, "LSTN")  # noqa: B009


def public_modules() -> list[ModuleType]:
    """Returns the package, and those of its parts that are attributes of the package."""
    parts = [name for name in dir(jrnn) if (PACKAGE / name).is_dir() or name in RANK]
    return [jrnn, *(importlib.import_module(f"jrnn.{name}") for name in parts)]


def undocumented(name: str, value: Any, package: str = "jrnn") -> list[str]:
    """Returns which of a class or function, and of its public methods, have no docstring.

    Args:
      name: the name of `value`, which is the prefix of the returned names of methods.
      value: a class or function; the result is empty for other values.
      package: only methods that are defined in this package are examined.
    """
    is_own = lambda a: (getattr(a, "__module__", None) or "").split(".")[0] == package
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        return []
    missing = [] if has_docstring(value) else [name]
    if inspect.isclass(value):
        for key in dir(value):
            member = inspect.getattr_static(value, key)
            member = getattr(member, "__func__", getattr(member, "fget", member))
            if not key.startswith("_") and inspect.isfunction(member) and is_own(member):
                if not has_docstring(getattr(value, key)) and not is_described(value, key):
                    missing.append(f"{name}.{key}")
    return missing


def has_docstring(value: Any) -> bool:
    """Returns whether there is a docstring other than the `Name(field, ...)` of a dataclass."""
    docstring = inspect.getdoc(value)
    return bool(docstring) and not docstring.startswith(f"{getattr(value, '__name__', '')}(")


def is_described(cls: type, key: str) -> bool:
    """Returns whether the docstring of a class or of a base class describes an attribute."""
    return any(f"{key}:" in (base.__doc__ or "") for base in cls.__mro__)


def test_every_public_name_has_a_docstring() -> None:
    missing = []
    for module in public_modules():
        assert module.__doc__, module.__name__
        values = public_names(jrnn) if module is jrnn else vars(module)
        for name, value in values.items():
            origin = getattr(value, "__module__", None) or ""
            if not name.startswith("_") and origin.split(".")[0] == "jrnn":
                missing += undocumented(f"{module.__name__}.{name}", value)
    assert missing == []


class WithoutDocstrings:
    def run(self) -> None: ...

    @property
    def size(self) -> int:
        return 1


class Documented:
    """A class with docstrings.

    Attributes:
      size: the size.
    """

    def run(self) -> None:
        """Runs."""


class Inherits(Documented):
    """Inherits the descriptions of run and size."""

    def run(self) -> None: ...

    @property
    def size(self) -> int:
        return 1


@dataclass
class WithGeneratedDocstring:
    size: int


def test_docstring_of_jrnn_mentions_every_public_name_except_modules_and_carries() -> None:
    names = [
        name
        for name, value in public_names(jrnn).items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and not name.endswith("Carry")
    ]
    assert len(names) > 50
    docstring = jrnn.__doc__ or ""
    assert [name for name in names if not re.search(rf"\b{name}\b", docstring)] == []


def test_missing_docstrings_are_reported() -> None:
    assert undocumented("A", WithoutDocstrings, "tests") == ["A", "A.run", "A.size"]
    assert undocumented("A", WithGeneratedDocstring, "tests") == ["A"]
    assert undocumented("Documented", Documented, "tests") == []
    assert undocumented("Inherits", Inherits, "tests") == []


def test_package_has_no_folders_of_the_repository():
    """An editable installation must not make `tests` or `configs` parts of jrnn."""
    assert {Path(path).name for path in jrnn.__path__} == {"jrnn"}
