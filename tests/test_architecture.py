"""The shape of the package: who may import whom, and what no file of it may hold."""

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

PACKAGE = Path(jrnn.__file__).parent

# The levels from the bottom up, by files and folders of the package. Each may import those of lower
# levels and itself, and no other of its own level.
LEVELS: list[set[str]] = [
    # _kernels is compiled.
    {"checks", "dtypes", "initializers", "jaxprs", "plotting", "_kernels"},
    {"layer", "taps"},
    {"cell", "masking"},
    {"structure"},
    {"cells", "transforms", "engines", "layers"},
    {"jrnn"},  # what `import jrnn` gives
    {"nn", "analysis", "testing", "distributed"},
    {"tasks"},
    {"train"},
    {"sweep"},
    {"config"},
    {"bench"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, level in enumerate(LEVELS) for name in level}


# Which parts may import a library; what is not named here is the standard library or refused.
EVERYWHERE = {"jax", "numpy"}
LIBRARIES = {
    "flax": {"nn", "train", "sweep", "bench"},
    "optax": {"train", "bench"},
    "orbax": {"train"},
    "filelock": {"train"},
    "grain": {"train"},
    "rich": {"train", "sweep", "bench", "cli"},
    "tyro": {"config", "bench", "cli"},
    "chex": {"testing"},
    "equinox": {"bench"},
}
# Slow to import or not installed with jrnn: imported inside of functions alone, in any part.
INSIDE_FUNCTIONS = {"matplotlib", "sklearn", "torch", "onnx", "onnxruntime", "keras", "haiku"}
# Each file of this folder is the library that it is named after, and is imported on use.
PEERS = "bench/peers/"

MOST_LINES = 700
MOST_IGNORED = 5  # comments that switch pyright off
NOT_LOADED = [
    "flax",
    "grain",
    "optax",
    "orbax",
    "matplotlib",
    "sklearn",
    "torch",
    "chex",
    "rich",
    "tyro",
]


def faults(path: str, source: str) -> list[str]:
    """What is wrong with a file of the package; `path` is relative to it, as in cells/lstm.py."""
    tree = ast.parse(source)
    found = [f"{path}:{line}: {fault}" for line, fault in sorted(_faults(path, tree))]
    if (lines := len(source.splitlines())) > MOST_LINES:
        found.append(f"{path}: {lines} lines; split it before {MOST_LINES}")
    return found


def _faults(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    part = part_of(path)
    if part not in RANK:
        yield 1, f"{part} is on no level; add it to LEVELS"
        return
    for line, name, at_import in imports(path, tree):
        top, *rest = name.split(".")
        if top == "jrnn":
            target = rest[0] if rest and rest[0] in RANK else "jrnn"
            below = target == part or RANK[target] < RANK[part]
            if not below:
                yield line, f"{part} must not import {target}"
        elif top in INSIDE_FUNCTIONS:
            if at_import and not path.startswith(PEERS):
                yield line, f"import {top} inside of the function that needs it"
        elif top in LIBRARIES:
            if part not in LIBRARIES[top]:
                yield line, f"{top} belongs in {', '.join(sorted(LIBRARIES[top]))}, not in {part}"
        elif top not in EVERYWHERE and top not in sys.stdlib_module_names:
            yield line, f"{top} is in no table of libraries"
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert) and part != "testing":
            yield node.lineno, "raise an error instead of an assert"
        if isinstance(node, ast.Name) and node.id == "hasattr":
            yield node.lineno, "what an object can do is data, not hasattr"


def part_of(path: str) -> str:
    """The part that a file belongs to: its folder, or itself; the package itself is `jrnn`."""
    parts = Path(path).with_suffix("").parts
    return "jrnn" if parts == ("__init__",) else parts[0]


def imports(path: str, tree: ast.Module) -> Iterator[tuple[int, str, bool]]:
    """Line, full name, and whether it runs when the file is imported, of each import."""
    package = ["jrnn", *Path(path).parts[:-1]]
    for node, at_import in walk(tree, True):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, at_import
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            # `from jrnn import cells` and `from jrnn import LSTM` look the same: RANK tells which.
            names = (
                [f"{start}.{alias.name}" for alias in node.names] if start == "jrnn" else [start]
            )
            for name in names:
                yield node.lineno, name, at_import


def walk(node: ast.AST, at_import: bool) -> Iterator[tuple[ast.AST, bool]]:
    """All nodes, with whether they run when the file is imported."""
    yield node, at_import
    lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    lazy = lazy or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    for child in ast.iter_child_nodes(node):
        yield from walk(child, at_import and not lazy)


@pytest.mark.parametrize("part", sorted(RANK))
def test_files_keep_to_the_architecture(part: str) -> None:
    for file in sorted(PACKAGE.rglob("*.py")):
        path = file.relative_to(PACKAGE).as_posix()
        if part_of(path) == part:
            assert faults(path, file.read_text(encoding="utf-8")) == []


def test_every_part_is_on_a_level_and_every_level_has_parts() -> None:
    found = {part_of(file.relative_to(PACKAGE).as_posix()) for file in PACKAGE.rglob("*.py")}
    # An installed jrnn brings the configs and the benchmark along.
    assert found - {"configs", "experiments"} | {"_kernels"} == set(RANK)


def test_types_are_rarely_ignored() -> None:
    ignored = [
        f"{file.relative_to(PACKAGE)}:{number}"
        for file in PACKAGE.rglob("*.py")
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"#\s*(pyright|type):", line)
        and "reportMissingImports" not in line  # of libraries that are optional
    ]
    assert len(ignored) <= MOST_IGNORED, ignored


BAD = [
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
    ("__init__.py", "from jrnn import nn", "jrnn must not import nn"),
    ("novel.py", "", "novel is on no level"),
    (
        "cells/lstm.py",
        "from flax import nnx",
        "flax belongs in bench, nn, sweep, train, not in cells",
    ),
    ("nn/rnn.py", "import optax", "optax belongs in bench, train, not in nn"),
    ("tasks/copy.py", "import orbax.checkpoint", "orbax belongs in train, not in tasks"),
    ("analysis/plots.py", "import matplotlib.pyplot", "import matplotlib inside of the function"),
    ("nn/torch.py", "class A:\n    import torch", "import torch inside of the function"),
    ("cells/lstm.py", "import trax", "trax is in no table of libraries"),
    ("cells/lstm.py", "def f(x):\n    assert x", "cells/lstm.py:2: raise an error instead"),
    ("cells/lstm.py", "hasattr(1, 'real')", "is data, not hasattr"),
    ("cells/lstm.py", "x = 1\n" * 701, "701 lines; split it before 700"),
]


@pytest.mark.parametrize(("path", "source", "fault"), BAD)
def test_a_broken_rule_is_found(path: str, source: str, fault: str) -> None:
    (found,) = faults(path, source)
    assert fault in found


GOOD = [
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
    ("analysis/plots.py", "if TYPE_CHECKING:\n    from matplotlib.axes import Axes"),
    ("train/loop.py", "from jrnn.tasks import Task\nimport optax, orbax.checkpoint"),
    ("testing.py", "import chex\nassert True"),
    ("cells/lstm.py", "x = 1\n" * 700),
]


@pytest.mark.parametrize(("path", "source"), GOOD)
def test_what_keeps_the_rules_is_let_through(path: str, source: str) -> None:
    assert faults(path, source) == []


MEASURE = """
import json, time
start = time.process_time()
import jax
before, middle = dict(jax.config.values), time.process_time()
import jrnn
end = time.process_time()
import sys
print(json.dumps({
    "seconds": end - middle,
    "loaded": sorted({name.split(".")[0] for name in sys.modules}),
    "changed": [name for name, value in jax.config.values.items() if before[name] != value],
}))
"""


def test_import_is_light_and_changes_no_setting() -> None:
    runs = []
    for _ in range(3):
        output = subprocess.run([sys.executable, "-c", MEASURE], check=True, capture_output=True)
        runs.append(json.loads(output.stdout))
    assert not set(NOT_LOADED) & set(runs[0]["loaded"])
    assert runs[0]["changed"] == []
    assert statistics.median(run["seconds"] for run in runs) < 0.3


def public_modules() -> list[ModuleType]:
    """The package and those parts of it that are imported on first use."""
    parts = [name for name in dir(jrnn) if (PACKAGE / name).is_dir() or name in RANK]
    return [jrnn, *(importlib.import_module(f"jrnn.{name}") for name in parts)]


def undocumented(name: str, thing: Any, package: str = "jrnn") -> list[str]:
    """The public names in a thing, itself included, that no docstring describes."""
    ours = lambda a: (getattr(a, "__module__", None) or "").split(".")[0] == package
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        return []
    missing = [] if has_docstring(thing) else [name]
    if inspect.isclass(thing):
        for key in dir(thing):
            member = inspect.getattr_static(thing, key)
            member = getattr(member, "__func__", getattr(member, "fget", member))
            if not key.startswith("_") and inspect.isfunction(member) and ours(member):
                if not has_docstring(getattr(thing, key)) and not described(thing, key):
                    missing.append(f"{name}.{key}")
    return missing


def has_docstring(thing: Any) -> bool:
    """Whether a docstring was written: dataclasses and named tuples make up `Name(field, ...)`."""
    text = inspect.getdoc(thing)
    return bool(text) and not text.startswith(f"{getattr(thing, '__name__', '')}(")


def described(cls: type, key: str) -> bool:
    """Whether an attribute is in the docstring of its class, or of one that it comes from."""
    return any(f"{key}:" in (base.__doc__ or "") for base in cls.__mro__)


def test_every_public_name_has_a_docstring() -> None:
    missing = []
    for module in public_modules():
        assert module.__doc__, module.__name__
        for name, thing in vars(module).items():
            origin = getattr(thing, "__module__", None) or ""
            if not name.startswith("_") and origin.split(".")[0] == "jrnn":
                missing += undocumented(f"{module.__name__}.{name}", thing)
    assert missing == []


class Bare:
    def run(self) -> None: ...

    @property
    def size(self) -> int:
        return 1


class Documented:
    """Says what it is.

    Attributes:
      size: of it.
    """

    def run(self) -> None:
        """Runs."""


class Inherits(Documented):
    """Has no words of its own for run and size."""

    def run(self) -> None: ...

    @property
    def size(self) -> int:
        return 1


@dataclass
class MadeUp:
    size: int


def test_a_missing_docstring_is_found() -> None:
    assert undocumented("Bare", Bare, "tests") == ["Bare", "Bare.run", "Bare.size"]
    assert undocumented("MadeUp", MadeUp, "tests") == ["MadeUp"]
    assert undocumented("Documented", Documented, "tests") == []
    assert undocumented("Inherits", Inherits, "tests") == []
