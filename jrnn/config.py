"""Configs: Python files that return an `Experiment`, flags that override it, and JSON files.

A config file defines a function `get_config(...)` with typed arguments and defaults, which returns
a `jrnn.train.Experiment`. Its arguments are given after a colon, and flags override single fields
of the experiment::

    jrnn train configs/digits.py:cell=gru,hidden=64 --optimizer.learning-rate 1e-3
"""

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import io
import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import tyro

from jrnn import checks, files
from jrnn.cell import Cell
from jrnn.cells import REGISTRY as CELLS
from jrnn.tasks.task import Task
from jrnn.train.config.experiment import Experiment
from jrnn.train.config.network import Network
from jrnn.train.config.optimizer import Optimizer
from jrnn.transforms import REGISTRY as TRANSFORMS

T = TypeVar("T")

MODULE_NAME = "jrnn_config"
"""The module name of an imported config file."""
_BOX = re.compile(r"[\u2500-\u257f]|\x1b\[[0-9;]*m|\+?-{3,}\+?|^\s*\||\|\s*$", re.MULTILINE)
"""The characters and escape sequences of a box of tyro."""
_INCOMPATIBLE = "the file was edited, or written by another version of jrnn or of a class in it"


class ConfigError(ValueError):
    """Raised if a config is missing or invalid."""


def make_cell(name: str, hidden_size: int, **options: Any) -> Cell:
    """Makes a cell, optionally with transforms, from names.

    Args:
      name: a key of `jrnn.cells.REGISTRY`, such as "gru", or transforms and a cell, the outermost
        transform first, such as "zoneout+layer_norm+gru". Transforms have their default options,
        which flags can override, such as `--network.cell.h 0.1` for zoneout.
      hidden_size: number of hidden units.
      **options: options of the cell.

    Raises:
      ValueError: the cell is unknown, or a transform is unknown or needs more than a cell.

    >>> make_cell("gru", 64).hidden_size
    64
    >>> make_cell("residual+gru", 64)
    Residual(cell=GRU(hidden_size=64, reset_after=True, t_max=None, heads=1))
    """
    *transforms, cell_name = name.split("+")
    checks.one_of("config", "cell", cell_name, CELLS)
    cls: Any = CELLS[cell_name]
    cell = cls(hidden_size=hidden_size, **options)
    for transform in reversed(transforms):
        checks.one_of("config", "transform", transform, _CELL_TRANSFORMS)
        cell = _CELL_TRANSFORMS[transform](cell)
    return cell


def _needs_only_a_cell(transform: Any) -> bool:
    """Whether a cell is the only required argument of a transform."""
    cell: Any = CELLS["lstm"]
    try:
        transform(cell(hidden_size=1))
    except (TypeError, ValueError):
        return False
    return dataclasses.fields(transform)[0].name == "cell"


_CELL_TRANSFORMS: dict[str, Any] = {n: t for n, t in TRANSFORMS.items() if _needs_only_a_cell(t)}


def find_configs_folder() -> Path:
    """Returns the folder of the configs that are installed with jrnn."""
    package = Path(__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def list_configs() -> list[Path]:
    """Returns the paths of all configs that are installed with jrnn."""
    return sorted(find_configs_folder().rglob("*.py"))


@dataclasses.dataclass(frozen=True)
class ConfigFile:
    """A config file and the arguments of its `get_config`.

    Attributes:
      path: path of the file.
      arguments: the arguments as text, by name.
    """

    path: Path
    arguments: dict[str, str]

    @classmethod
    def parse(cls, spec: str) -> "ConfigFile":
        """Parses `path.py` or `path.py:name=value,...`.

        Args:
          spec: the text. If the path does not exist, it is searched in the configs of jrnn.

        Raises:
          ConfigError: the file does not exist, or the text has another form.
        """
        name, colon, text = spec.partition(".py:") if ".py:" in spec else (spec, "", "")
        path = find_config(name + ".py" if colon else name)
        arguments = {}
        for pair in filter(None, text.split(",")):
            key, equals, value = pair.partition("=")
            if not equals or not key:
                raise ConfigError(
                    f"{spec}: arguments after the colon must have the form name=value,..., got "
                    f"{pair!r}"
                )
            arguments[key] = value
        return cls(path, arguments)

    @property
    def argument_names(self) -> list[str]:
        """The names of the arguments of `get_config`."""
        return list(inspect.signature(self._get_config()).parameters)

    def help(self) -> str:
        """Returns a text with the types, defaults and descriptions of the arguments."""
        get_config = self._get_config()
        signature = "".join(f"  {p}\n" for p in inspect.signature(get_config).parameters.values())
        usage = f"usage: jrnn train {self.path}[:NAME=VALUE,...] [--FLAG VALUE ...]"
        return f"{usage}\n\narguments:\n{signature}\n{inspect.getdoc(get_config) or ''}\n"

    def load(self, arguments: dict[str, str], flags: Sequence[str]) -> Experiment:
        """Returns the experiment of `get_config`, with fields that flags override.

        Args:
          arguments: arguments of `get_config` that override or extend `self.arguments`.
          flags: flags for fields, such as `["--optimizer.learning-rate", "1e-3"]`.

        Raises:
          ConfigError: the file cannot be imported, or has no function `get_config` that returns an
            experiment; an argument or flag is unknown, or a value is invalid.
        """
        arguments = self.arguments | arguments
        get_config = self._get_config()
        try:
            experiment = parse_cli(
                get_config,
                args=_to_flags(get_config, arguments),
                prog=f"jrnn train {self.path}",
                config=(tyro.conf.FlagConversionOff,),
            )
        except (ValueError, TypeError, SystemExit):
            raise  # these are errors of jrnn about invalid options
        except Exception as error:
            message = f"{self.path}: get_config: {type(error).__name__}: {error}"
            raise ConfigError(message) from error
        if not isinstance(experiment, Experiment):
            raise ConfigError(
                f"{self.path}: get_config must return a jrnn.train.Experiment, got {experiment!r}"
            )
        assignments = ",".join(f"{name}={value}" for name, value in arguments.items())
        return parse_cli(
            Experiment,
            default=experiment,
            args=list(flags),
            prog=f"jrnn train {self.path}{assignments and ':'}{assignments}",
            config=(tyro.conf.AvoidSubcommands,),
        )

    def _get_config(self) -> Callable[..., Any]:
        get_config: Any = getattr(_import(self.path), "get_config", None)
        if callable(get_config):
            return self._without_exit(get_config)
        raise ConfigError(f"{self.path}: a config file must define a function get_config(...)")

    def _without_exit(self, get_config: Callable[..., Any]) -> Callable[..., Any]:
        """Makes `get_config` raise ConfigError if it exits, since tyro exits too."""

        @functools.wraps(get_config)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            try:
                return get_config(*args, **kwargs)
            except SystemExit as error:
                raise ConfigError(f"{self.path}: get_config: SystemExit: {error}") from error

        return wrapped


def parse_cli(type_or_function: Any, **options: Any) -> Any:
    """Calls `tyro.cli`, whose errors are raised instead of printed in a box of several lines.

    Args:
      type_or_function: what to parse.
      **options: arguments of `tyro.cli`.

    Raises:
      ConfigError: an argument is unknown, or a value is invalid.
      SystemExit: help was requested and printed; the exit code is 0.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(type_or_function, **options)
    except SystemExit as error:
        if not error.code:
            raise
        _title, _, text = printed.getvalue().strip().partition("\n")
        text = " ".join(_BOX.sub(" ", text).split())
        printed = io.StringIO()
        raise ConfigError(text.partition(" For full helptext")[0]) from error
    finally:
        sys.stderr.write(printed.getvalue())


def load(spec: str, flags: Sequence[str] = ()) -> Experiment:
    """Loads the experiment of a config file.

    Args:
      spec: `path.py` or `path.py:name=value,...`. If the path does not exist, it is searched in the
        configs of jrnn.
      flags: flags for fields of the experiment, such as `["--optimizer.learning-rate", "1e-3"]`.

    Raises:
      ConfigError: the file does not exist, cannot be imported, or has no function `get_config` that
        returns an experiment; an argument or flag is unknown, or a value is invalid.
    """
    return ConfigFile.parse(spec).load({}, flags)


def _to_flags(get_config: Callable[..., Any], arguments: dict[str, str]) -> list[str]:
    """Converts arguments to flags for tyro; bools may be written as true and false."""
    types = {name: p.annotation for name, p in inspect.signature(get_config).parameters.items()}
    flags = []
    for key, value in arguments.items():
        is_bool = types.get(key.replace("-", "_")) in (bool, "bool")
        value = value.title() if is_bool else value
        # `=` is needed for a value that begins with a dash; tyro suggests names only without `=`.
        flags += [f"--{key}={value}"] if value.startswith("-") else [f"--{key}", value]
    return flags


def find_config(name: str) -> Path:
    """Finds a config file by its path, or by its name among the configs of jrnn.

    Raises:
      ConfigError: the file does not exist; the message suggests a similar name.
    """
    path = Path(name)
    relative = path.relative_to("configs") if path.parts[:1] == ("configs",) else path
    for candidate in (path, find_configs_folder() / relative):
        if candidate.is_file() and candidate.suffix == ".py":
            return candidate
    names = [f"configs/{config.relative_to(find_configs_folder())}" for config in list_configs()]
    hint = checks.suggestion(name, names) or f"; the configs of jrnn are {', '.join(names)}"
    raise ConfigError(f"{name}: no such config file{hint}")


def _import(path: Path) -> ModuleType:
    """Imports a config file as the module `MODULE_NAME`."""
    spec = importlib.util.spec_from_file_location(MODULE_NAME, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE_NAME] = module
    parent = str(path.parent.absolute())
    if parent not in sys.path:
        sys.path.append(parent)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a config that exits must not look like a success
        raise ConfigError(f"{path}: {type(error).__name__}: {error}") from error
    return module


def save(experiment: Experiment, spec: str, path: Path) -> None:
    """Writes an experiment as JSON, and a copy of its config file.

    The copy is needed for reading if the config file defines classes, such as a cell.

    Args:
      experiment: the experiment, from `load`.
      spec: the `spec` that was passed to `load`.
      path: path of the JSON file; the copy has the same name with the suffix `.py`.
    """
    write({"spec": spec, "experiment": encode(experiment)}, spec, path)


def write(content: dict[str, Any], spec: str, path: Path) -> None:
    """Writes a dict of encoded values as JSON, atomically, and a copy of the config file."""
    with files.atomic_path(path.with_suffix(".py")) as partial:
        shutil.copyfile(ConfigFile.parse(spec).path, partial)
    write_json(content, path)


def write_json(content: dict[str, Any], path: Path) -> None:
    """Writes JSON atomically; raises `jrnn.files.WriteError` if the file cannot be written."""
    files.write_text(path, json.dumps(content, indent=2) + "\n")


def read(path: Path) -> Experiment:
    """Reads an experiment that was written by `save`.

    Raises:
      ConfigError: the file is invalid, or was written by an incompatible version of jrnn.
    """
    return read_saved(path, lambda saved: _decode_experiment(saved["experiment"]))


def _decode_experiment(saved: Any) -> Experiment:
    """Decodes an experiment; raises TypeError if a value has the wrong class."""
    experiment = _check_class("experiment", decode(saved), Experiment)
    for name, cls in (("task", Task), ("network", Network), ("optimizer", Optimizer)):
        _check_class(name, getattr(experiment, name), cls)
    _check_class("cell", experiment.network.cell, Cell)
    return experiment


def _check_class(name: str, value: Any, cls: type[T]) -> T:
    if not isinstance(value, cls):
        raise TypeError(f"{name} must be a {cls.__name__}, got {value!r}")
    return value


def read_saved(path: Path, decode_content: Callable[[dict[str, Any]], T]) -> T:
    """Reads a file that was written by `write`.

    Args:
      path: path of the JSON file.
      decode_content: function that decodes the content of the file; it calls `decode`.

    Raises:
      ConfigError: the file is invalid, or was written by an incompatible version of jrnn.
    """
    try:
        saved = json.loads(path.read_text("utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as the config of a run: {error}") from error
    source = path.with_suffix(".py")
    try:
        if source.is_file():
            _import(source)
        return decode_content(saved)
    except KeyError as error:
        raise ConfigError(f"{path}: {_INCOMPATIBLE}: {error} is missing") from error
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        raise ConfigError(f"{path}: {_INCOMPATIBLE}: {error}") from error


def encode(value: Any) -> Any:
    """Encodes a frozen dataclass as a JSON object: its fields, and its class as "type"."""
    if dataclasses.is_dataclass(value):
        cls = type(value)
        fields = {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": f"{cls.__module__}:{cls.__qualname__}", **fields}
    if isinstance(value, tuple):
        return [encode(item) for item in value]
    return value


def decode(value: Any) -> Any:
    """Decodes a value of `encode`; lists become tuples.

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
