"""Configs: Python files that return an `Experiment`, flags over it, and its JSON.

A config file has a function `get_config(...)` with typed arguments and defaults, which returns a
`jrnn.train.Experiment`. The text after a colon gives its arguments, and flags change single fields
of what it returns::

    jrnn train configs/digits.py:cell=gru,hidden=64 --optimizer.learning-rate 1e-3
"""

import dataclasses
import importlib
import importlib.util
import inspect
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import tyro

from jrnn import checks
from jrnn.cell import Cell
from jrnn.cells import REGISTRY as CELLS
from jrnn.tasks.task import Task
from jrnn.train.config.experiment import Experiment
from jrnn.train.config.network import Network
from jrnn.train.config.optimizer import Optimizer
from jrnn.transforms import REGISTRY as TRANSFORMS

T = TypeVar("T")

MODULE = "jrnn_config"
"""Name under which the classes of a config file are known while it is in use."""
_OTHER = "was edited, or written by another version of jrnn or of a class it names"


class ConfigError(ValueError):
    """A config that cannot be used; the message says why and what to do."""


def make_cell(name: str, hidden_size: int, **options: Any) -> Cell:
    """A cell by its name in `jrnn.cells.REGISTRY`, in transforms by theirs.

    Args:
      name: such as "gru"; or with transforms before it, the outermost first, such as
        "zoneout+layer_norm+gru". Their options are flags, such as `--network.cell.h 0.1`;
        without them the rates of zoneout and dropout are 0.
      hidden_size: number of hidden units.
      **options: of the cell.

    Raises:
      ValueError: no such cell, or no transform that goes round one cell; suggests the nearest name.

    >>> make_cell("gru", 64).hidden_size
    64
    >>> make_cell("residual+gru", 64)
    Residual(cell=GRU(hidden_size=64, reset_after=True, t_max=None, heads=1))
    """
    *outer, inner = name.split("+")
    checks.one_of("config", "cell", inner, CELLS)
    kind: Any = CELLS[inner]
    cell = kind(hidden_size=hidden_size, **options)
    for transform in reversed(outer):
        checks.one_of("config", "transform", transform, _AROUND_ONE)
        cell = _AROUND_ONE[transform](cell)
    return cell


def _goes_round_one(transform: Any) -> bool:
    """Whether it needs nothing but a cell."""
    cell: Any = CELLS["lstm"]
    try:
        transform(cell(hidden_size=1))
    except (TypeError, ValueError):
        return False
    return dataclasses.fields(transform)[0].name == "cell"


_AROUND_ONE: dict[str, Any] = {n: kind for n, kind in TRANSFORMS.items() if _goes_round_one(kind)}


def folder() -> Path:
    """The folder of the configs that are installed with jrnn."""
    package = Path(__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def shipped() -> list[Path]:
    """All configs that are installed with jrnn, at any depth."""
    return sorted(folder().rglob("*.py"))


@dataclasses.dataclass(frozen=True)
class ConfigFile:
    """A config file and arguments of its function.

    Attributes:
      path: of the file.
      arguments: as text, by name.
    """

    path: Path
    arguments: dict[str, str]

    @classmethod
    def parse(cls, spec: str) -> "ConfigFile":
        """Reads `path.py` or `path.py:name=value,...`.

        Args:
          spec: the text; a path that does not exist is looked up among the configs of jrnn.

        Raises:
          ConfigError: there is no such file, or the text has another form.
        """
        name, colon, text = spec.partition(".py:") if ".py:" in spec else (spec, "", "")
        path = find(name + ".py" if colon else name)
        arguments = {}
        for pair in filter(None, text.split(",")):
            key, equals, value = pair.partition("=")
            if not equals or not key:
                raise ConfigError(
                    f"{spec}: arguments after the colon must be name=value,..., got {pair!r}"
                )
            arguments[key] = value
        return cls(path, arguments)

    @property
    def argument_names(self) -> list[str]:
        """The names of the arguments of its function."""
        return list(inspect.signature(self._get_config()).parameters)

    def help(self) -> str:
        """The arguments of its function, with types and defaults."""
        get_config = self._get_config()
        signature = "".join(f"  {p}\n" for p in inspect.signature(get_config).parameters.values())
        usage = f"{self.path}:name=value,... with\n{signature}\n"
        return f"{usage}{inspect.getdoc(get_config) or ''}\n"

    def load(self, arguments: dict[str, str], flags: Sequence[str]) -> Experiment:
        """The experiment that its function returns, with flags for single fields.

        Args:
          arguments: of the function, in addition to those of the file.
          flags: such as `["--optimizer.learning-rate", "1e-3"]`.

        Raises:
          ConfigError: the file has no function `get_config` that returns an experiment.
          SystemExit: an unknown argument or flag, or a bad value, with code 2; the message is on
            standard error.
        """
        arguments = self.arguments | arguments
        get_config = self._get_config()
        try:
            experiment = tyro.cli(
                get_config,
                args=_typed(get_config, arguments),
                prog=f"jrnn train {self.path}",
                config=(tyro.conf.FlagConversionOff,),
            )
        except (ValueError, TypeError):
            raise  # these say what is wrong, and with what
        except Exception as error:
            message = f"{self.path}: get_config: {type(error).__name__}: {error}"
            raise ConfigError(message) from error
        if not isinstance(experiment, Experiment):
            raise ConfigError(
                f"{self.path}: get_config must return a jrnn.train.Experiment, got {experiment!r}"
            )
        text = ",".join(f"{name}={value}" for name, value in arguments.items())
        return tyro.cli(
            Experiment,
            default=experiment,
            args=list(flags),
            prog=f"jrnn train {self.path}{text and ':'}{text}",
            config=(tyro.conf.AvoidSubcommands,),
        )

    def _get_config(self) -> Callable[..., Any]:
        get_config: Any = getattr(_import(self.path), "get_config", None)
        if callable(get_config):
            return get_config
        raise ConfigError(f"{self.path}: a config file must define get_config(...)")


def load(spec: str, flags: Sequence[str] = ()) -> Experiment:
    """Reads a config file, with its arguments and with flags for its fields.

    Args:
      spec: `path.py` or `path.py:name=value,...`; a path that does not exist is looked up among the
        configs of jrnn.
      flags: such as `["--optimizer.learning-rate", "1e-3"]`.

    Raises:
      ConfigError: there is no such file, or its `get_config` does not return an experiment.
      SystemExit: an unknown argument or flag, or a bad value, with code 2; the message is on
        standard error.
    """
    return ConfigFile.parse(spec).load({}, flags)


def _typed(get_config: Callable[..., Any], arguments: dict[str, str]) -> list[str]:
    """The arguments as tyro reads them; bools may be written true and false."""
    kinds = {name: p.annotation for name, p in inspect.signature(get_config).parameters.items()}
    flags = []
    for key, value in arguments.items():
        is_bool = kinds.get(key.replace("-", "_")) in (bool, "bool")
        value = value.title() if is_bool else value
        # Joined, a value may begin with a dash; apart, a wrong name gets a better suggestion.
        flags += [f"--{key}={value}"] if value.startswith("-") else [f"--{key}", value]
    return flags


def find(name: str) -> Path:
    """The config file at a path; or of a name, such as `configs/text.py`, that comes with jrnn."""
    here = Path(name)
    inside = here.relative_to("configs") if here.parts[:1] == ("configs",) else here
    for path in (here, folder() / inside):
        if path.is_file() and path.suffix == ".py":
            return path
    known = [f"configs/{path.relative_to(folder())}" for path in shipped()]
    near = checks.suggestion(name, known)
    raise ConfigError(f"{name}: no such config file{near or '; there are ' + ', '.join(known)}")


def _import(path: Path) -> ModuleType:
    """Runs a config file as the module `jrnn_config`."""
    spec = importlib.util.spec_from_file_location(MODULE, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module
    beside = str(path.parent.absolute())
    if beside not in sys.path:
        sys.path.append(beside)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{path}: {type(error).__name__}: {error}") from error
    return module


def save(experiment: Experiment, spec: str, path: Path) -> None:
    """Writes an experiment as JSON, and its config file beside it, for classes of its own.

    Args:
      experiment: what `load` returned.
      spec: what `load` was given.
      path: the JSON file.
    """
    write({"spec": spec, "experiment": encode(experiment)}, spec, path)


def write(content: dict[str, Any], spec: str, path: Path) -> None:
    """Writes JSON that holds what `encode` gave, whole or not at all, and its config file."""
    shutil.copyfile(ConfigFile.parse(spec).path, path.with_suffix(".py"))
    write_json(content, path)


def write_json(content: dict[str, Any], path: Path) -> None:
    """Writes JSON, whole or not at all."""
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    partial.replace(path)


def read(path: Path) -> Experiment:
    """Reads what `save` wrote.

    Raises:
      ConfigError: not such a file, or written by a version whose fields were others.
    """
    return read_saved(path, lambda saved: _experiment(saved["experiment"]))


def _experiment(saved: Any) -> Experiment:
    """An experiment of what `encode` gave, if its parts are what they should be."""
    experiment = _of_kind("experiment", decode(saved), Experiment)
    for name, kind in (("task", Task), ("network", Network), ("optimizer", Optimizer)):
        _of_kind(name, getattr(experiment, name), kind)
    _of_kind("cell", experiment.network.cell, Cell)
    return experiment


def _of_kind(name: str, value: Any, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be of the class {kind.__name__}, got {value!r}")
    return value


def read_saved(path: Path, use: Callable[[dict[str, Any]], T]) -> T:
    """Reads what `write` wrote.

    Args:
      path: the JSON file.
      use: makes something of its content, by `decode`.

    Raises:
      ConfigError: not such a file, or written by a version whose fields were others.
    """
    try:
        saved = json.loads(path.read_text("utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as the config of a run: {error}") from error
    source = path.with_suffix(".py")
    try:
        if source.is_file():
            _import(source)
        return use(saved)
    except KeyError as error:
        raise ConfigError(f"{path}: {_OTHER}: it lacks {error}") from error
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        raise ConfigError(f"{path}: {_OTHER}: {error}") from error


def encode(value: Any) -> Any:
    """A frozen dataclass as JSON: its fields, and under "type" its class."""
    if dataclasses.is_dataclass(value):
        kind = type(value)
        fields = {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": f"{kind.__module__}:{kind.__qualname__}", **fields}
    if isinstance(value, tuple):
        return [encode(item) for item in value]
    return value


def decode(value: Any) -> Any:
    """What `encode` gave, made again; lists become tuples.

    >>> import jrnn
    >>> decode(encode(jrnn.LSTM(8))) == jrnn.LSTM(8)
    True
    """
    if isinstance(value, list):
        return tuple(decode(item) for item in value)
    if not isinstance(value, dict):
        return value
    module, _, name = value["type"].partition(":")
    fields = {key: decode(item) for key, item in value.items() if key != "type"}
    return getattr(importlib.import_module(module), name)(**fields)
