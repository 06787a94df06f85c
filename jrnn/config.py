"""Configs: Python files that return an `Experiment`, flags that override it, and JSON files.

A config file defines a function `get_config(...)` with typed arguments and defaults, which returns
a `jrnn.train.Experiment`. Its arguments are given after a colon, and flags override single fields
of the experiment::

    jrnn train configs/digits.py:cell=gru,hidden=64 --optimizer.learning-rate 1e-3
"""

import dataclasses
import functools
import importlib
import importlib.util
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import tyro

from jrnn import checks, files, flag_hints, messages, serialize, terminal
from jrnn.cell import Cell
from jrnn.cells import REGISTRY as CELLS
from jrnn.serialize import decode as decode
from jrnn.serialize import encode as encode
from jrnn.train.config.experiment import Experiment
from jrnn.transforms import REGISTRY as TRANSFORMS

T = TypeVar("T")

MODULE_NAME = serialize.CONFIG_MODULE
"""The name under which a config file is imported as a module."""
CONFIG_FILE = "config.json"
"""Name of the JSON file of a config in the folder of a run."""
MAX_BYTES = 2**20
"""Maximum size of the JSON file of a run, in bytes."""
MAX_SWEEP_BYTES = 2**28
"""Maximum size of the JSON file of a sweep, which has a config per trial, in bytes."""
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
      ValueError: the cell or a transform is unknown, a transform has required arguments besides the
        cell, or an option is invalid.
      TypeError: the cell does not have one of the options.

    >>> make_cell("gru", 64).hidden_size
    64
    >>> make_cell("residual+elman", 64).cell.hidden_size
    64
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
    """Returns whether a cell is the only required argument of a transform."""
    cell: Any = CELLS["lstm"]
    try:
        transform(cell(hidden_size=1))
    except (TypeError, ValueError):
        return False
    return dataclasses.fields(transform)[0].name == "cell"


_CELL_TRANSFORMS: dict[str, Any] = {n: t for n, t in TRANSFORMS.items() if _needs_only_a_cell(t)}


def find_configs_folder() -> Path:
    """Returns the folder of the configs of jrnn, in the installed package or in the repository."""
    package = Path(__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def list_configs() -> list[Path]:
    """Returns the paths of all configs of jrnn."""
    return sorted(find_configs_folder().rglob("*.py"))


def config_names() -> list[str]:
    """Returns the names of all configs of jrnn, such as "configs/digits.py"."""
    return [f"configs/{path.relative_to(find_configs_folder())}" for path in list_configs()]


@dataclasses.dataclass(frozen=True)
class ConfigFile:
    """A config file and the arguments of its `get_config`.

    Attributes:
      name: the path as it was given, for messages.
      path: path of the file.
      arguments: the arguments as text, by name.
    """

    name: str
    path: Path
    arguments: dict[str, str]

    @classmethod
    def parse(cls, spec: str) -> "ConfigFile":
        """Parses `path.py` or `path.py:name=value,...`.

        Args:
          spec: the text. If the path does not exist, the file is looked up in the configs of jrnn.

        Raises:
          ConfigError: the file does not exist, or `spec` has another form.
          TypeError: `spec` is not a text or a `Path`.
        """
        checks.file_path("config", "spec", spec, "such as configs/digits.py")
        spec = os.fspath(spec)
        name, colon, text = spec.partition(".py:") if ".py:" in spec else (spec, "", "")
        name = name + ".py" if colon else name
        path = find_config(name)
        arguments = {}
        for pair in filter(None, text.split(",")):
            key, equals, value = pair.partition("=")
            if not equals or not key:
                raise ConfigError(
                    f"{spec}: arguments after the colon must have the form name=value,..., got "
                    f"{pair!r}; set a value with a comma by a flag, such as --task.path 'a,b.npz'"
                )
            arguments[key] = value
        return cls(name, path, arguments)

    @property
    def argument_names(self) -> list[str]:
        """The names of the parameters of `get_config`."""
        return list(inspect.signature(self._get_config()).parameters)

    def help(self) -> str:
        """Returns a text with the types, defaults and descriptions of the arguments."""
        get_config = self._get_config()
        signature = "".join(f"  {p}\n" for p in inspect.signature(get_config).parameters.values())
        usage = f"usage: jrnn train {self.name}[:NAME=VALUE,...] [--FLAG VALUE ...]"
        return f"{usage}\n\narguments:\n{signature}\n{inspect.getdoc(get_config) or ''}\n"

    def load(self, arguments: dict[str, str], flags: Sequence[str]) -> Experiment:
        """Returns the experiment of `get_config`, with fields that flags override.

        Args:
          arguments: arguments of `get_config` that override or extend `self.arguments`.
          flags: flags for fields, such as `["--optimizer.learning-rate", "1e-3"]`.

        Raises:
          ConfigError: the file cannot be imported, or has no function `get_config` that returns an
            experiment; an argument or flag is unknown, or its value is invalid; or `get_config`
            raises an error. The message has the line of the file.
          ValueError, TypeError: `get_config` of a config of jrnn raises it, such as for an invalid
            option of a cell; or a number in the experiment is not finite or has more than 64 bits.
          SystemExit: a flag requested help, which was printed.
        """
        arguments = self.arguments | arguments
        get_config = self._get_config()
        experiment = self._call(get_config, arguments)
        assignments = ",".join(f"{name}={value}" for name, value in arguments.items())
        try:
            experiment = terminal.parse_flags(
                Experiment,
                flags,
                default=experiment,
                prog=f"jrnn train {self.name}{assignments and ':'}{assignments}",
                config=(tyro.conf.AvoidSubcommands,),
            )
        except terminal.FlagError as error:
            hint = flag_hints.explain_flag(
                flags, experiment, self.name, self.argument_names, self._with_argument
            )
            raise ConfigError(hint or str(error)) from error
        serialize.check_numbers("Experiment", experiment)
        return experiment

    def _call(self, get_config: Callable[..., Any], arguments: dict[str, str]) -> Experiment:
        """Returns the experiment of `get_config`; raises as `load`."""
        names = self.argument_names
        if unknown := [key for key in arguments if key.replace("-", "_") not in names]:
            key = unknown[0]
            hint = checks.suggestion(key, names)
            if not hint:
                flag = flag_hints.find_flag(key, self._call(get_config, {}))
                hint = f"; its arguments are {', '.join(names)}, and all other settings are flags"
                hint += f": {flag} {arguments[key]}" if flag else ""
            raise ConfigError(f"{self.name}: the config has no argument {key!r}{hint}")
        try:
            experiment = terminal.parse_flags(
                get_config,
                _to_flags(get_config, arguments),
                prog=f"jrnn train {self.name}",
                config=(tyro.conf.FlagConversionOff,),
            )
        except terminal.FlagError as error:
            name = error.flag.removeprefix("--")
            raise ConfigError(f"{self.name}: the argument {name} {error.problem}") from error
        except (ConfigError, SystemExit):
            raise  # the latter is from tyro after printing help
        except (ValueError, TypeError) as error:  # from jrnn for an invalid option
            line = _find_line(self.path, error)
            if not line or self.path.absolute().is_relative_to(find_configs_folder().absolute()):
                raise
            raise ConfigError(f"{self.name}{line}: {error}") from error
        except Exception as error:
            name = f"{self.name}{_find_line(self.path, error)}"
            raise ConfigError(f"{name}: get_config: {type(error).__name__}: {error}") from error
        if not isinstance(experiment, Experiment):
            raise ConfigError(
                f"{self.name}: get_config must return a jrnn.train.Experiment, got {experiment!r}"
            )
        return experiment

    def _with_argument(self, name: str, value: str) -> str:
        """Returns the config with an argument more, as it is written in the command."""
        arguments = self.arguments | {name: value}
        return f"{self.name}:{','.join(f'{key}={text}' for key, text in arguments.items())}"

    def _get_config(self) -> Callable[..., Any]:
        get_config: Any = getattr(_import(self.path), "get_config", None)
        if callable(get_config):
            return self._without_exit(get_config)
        raise ConfigError(f"{self.name}: a config file must define a function get_config(...)")

    def _without_exit(self, get_config: Callable[..., Any]) -> Callable[..., Any]:
        """Converts a SystemExit of `get_config` to ConfigError, since tyro raises one for help."""

        @functools.wraps(get_config)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            try:
                return get_config(*args, **kwargs)
            except SystemExit as error:
                raise ConfigError(f"{self.name}: get_config: SystemExit: {error}") from error

        return wrapped


def load(spec: str, flags: Sequence[str] = ()) -> Experiment:
    """Loads the experiment of a config file.

    Args:
      spec: `path.py` or `path.py:name=value,...`. If the path does not exist, the file is looked up
        in the configs of jrnn.
      flags: flags for fields of the experiment, such as `["--optimizer.learning-rate", "1e-3"]`.

    Raises:
      ConfigError: the file does not exist, or as for `ConfigFile.load`.
      ValueError, TypeError, SystemExit: as for `ConfigFile.load`.
    """
    return ConfigFile.parse(spec).load({}, flags)


def _to_flags(get_config: Callable[..., Any], arguments: dict[str, str]) -> list[str]:
    """Converts arguments of `get_config` to flags for tyro; bools may be in lower case."""
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
      ConfigError: there is no such `.py` file; the message suggests a similar name.
    """
    path = Path(name)
    relative = path.relative_to("configs") if path.parts[:1] == ("configs",) else path
    for candidate in (path, find_configs_folder() / relative):
        if candidate.is_file() and candidate.suffix == ".py":
            return candidate
    names = config_names()
    if path.exists():
        hint = _hint_for_path(path)
    else:
        similar = checks.suggestion(name, names)
        if path.name == name and not similar:
            similar = checks.suggestion(f"configs/{name.removesuffix('.py')}.py", names)
        hint = similar or f"; the configs of jrnn are {', '.join(names)}"
    raise ConfigError(f"{name}: no such config file{hint}")


_DATA_CONFIGS = {
    ".csv": "configs/table.py",
    ".tsv": "configs/table.py",
    ".npz": "configs/arrays.py",
    ".txt": "configs/text.py",
}
"""The configs for files of data, by the suffix of the file."""


def _hint_for_path(path: Path) -> str:
    """Returns what to write in place of a path that exists and is not a config."""
    if (path / CONFIG_FILE).is_file():
        return f", but the folder of a run; resume it with: jrnn train --resume {path}"
    if path.suffix in _DATA_CONFIGS:
        command = f"jrnn train {_DATA_CONFIGS[path.suffix]}:path={path}"
        return f", but a file of data; train on it with: {command}"
    return ", which must be a Python file that defines get_config(...); see: jrnn ls configs"


def _import(path: Path) -> ModuleType:
    """Imports a config file as the module `MODULE_NAME`; raises ConfigError if this fails."""
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
        name = f"{path}{_find_line(path, error)}"
        raise ConfigError(f"{name}: {type(error).__name__}: {error}") from error
    return module


def _find_line(path: Path, error: BaseException) -> str:
    """Returns the line of a config file at which an error was raised, such as ", line 3".

    Returns "" if the traceback has no line of the file, as for a SyntaxError, whose message has the
    line.
    """
    name = str(path.absolute())
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if str(Path(frame.filename).absolute()) == name]
    return f", line {lines[-1]}" if lines else ""


def save(experiment: Experiment, spec: str, path: Path, source: Path | None = None) -> None:
    """Writes an experiment as JSON, and a copy of its config file.

    The copy is needed for reading if the config file defines classes, such as a cell.

    Args:
      experiment: the experiment, from `load`.
      spec: the argument `spec` of `load`.
      path: path of the JSON file; the copy has the same name with the suffix `.py`.
      source: path of the config file; None means that of `spec`.
    """
    write({"spec": spec, "experiment": encode(experiment)}, spec, path, source)


def write(content: dict[str, Any], spec: str, path: Path, source: Path | None = None) -> None:
    """Writes a dict of encoded values as JSON, atomically, and a copy of the config file.

    `spec`, `path` and `source` are those of `save`.
    """
    source = ConfigFile.parse(spec).path if source is None else source
    code = source.read_bytes()
    with files.atomic_path(path.with_suffix(".py")) as partial:
        partial.write_bytes(code)
    write_json(content, path)


def write_json(content: dict[str, Any], path: Path) -> None:
    """Writes JSON atomically; raises `jrnn.files.WriteError` if the file cannot be written."""
    files.write_text(path, json.dumps(content, indent=2) + "\n")


def read(path: Path, *, trust: bool = False) -> Experiment:
    """Reads an experiment that was written by `save`.

    The file is data: only classes of jrnn are created, with fields of their annotated types.

    Args:
      path: path of the JSON file.
      trust: whether to import other classes that the file names, which executes code: that of the
        copy of the config file, or of an installed module.

    Raises:
      ConfigError: the file is invalid, was written by an incompatible version of jrnn, or names a
        class that is not in jrnn, and `trust` is False.
    """
    return read_saved(
        path, lambda saved: decode_experiment(saved["experiment"], trust=trust), trust=trust
    )


def decode_experiment(saved: Any, *, trust: bool = False) -> Experiment:
    """Decodes an experiment, from `encode`; see `jrnn.serialize.decode`.

    Raises:
      ValueError, TypeError: a class, a field or a value is invalid.
    """
    experiment = decode(saved, trust=trust)
    if not isinstance(experiment, Experiment):
        raise TypeError(f"experiment must be an Experiment, got {experiment!r}")
    return experiment


def read_saved(
    path: Path,
    decode_content: Callable[[dict[str, Any]], T],
    *,
    trust: bool = False,
    max_bytes: int = MAX_BYTES,
) -> T:
    """Reads a file that was written by `write`.

    Args:
      path: path of the JSON file.
      decode_content: function that decodes the content of the file; it calls `decode`.
      trust: whether the copy of the config file is imported if the content names one of its
        classes.
      max_bytes: maximum size of the file in bytes.

    Raises:
      ConfigError: the file is invalid, was written by an incompatible version of jrnn, or names a
        class that is not in jrnn, and `trust` is False.
    """
    try:
        saved = files.read_json(path, max_bytes)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: cannot be read as the config of a run or sweep: {error}"
        ) from error
    try:
        if trust and _names_config_class(saved):
            _import(path.with_suffix(".py"))
        return decode_content(saved)
    except ConfigError:
        raise
    except serialize.UnknownClass as error:
        is_in_copy = error.name.startswith(MODULE_NAME + ":")
        source = f"its {path.with_suffix('.py').name}" if is_in_copy else "that module"
        raise ConfigError(
            f"{path}: needs the class {messages.shorten(error.name, 100)}, which is not in jrnn; "
            f"pass --trust to execute {source}, which may do anything, only if you trust its author"
        ) from error
    except KeyError as error:
        raise ConfigError(f"{path}: {_INCOMPATIBLE}: {error} is missing") from error
    except Exception as error:  # the constructors of any class were called with any values
        message = str(error) or type(error).__name__
        raise ConfigError(f"{path}: {_INCOMPATIBLE}: {message}") from error


def _names_config_class(saved: Any) -> bool:
    """Returns whether encoded values name a class that the config file defines."""
    names = serialize.names_of_classes(saved)
    return any(name.startswith(MODULE_NAME + ":") for name in names)
