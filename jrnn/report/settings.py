"""The settings of an experiment as a flat list, and the differences between experiments."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jrnn.dataclass_tree import walk
from jrnn.train.config.experiment import Experiment

Setting = float | str | None
"""A number, or the text of any other value."""
IGNORED = ("run_dir",)
"""Settings that do not change a result."""


def list_settings(experiment: Experiment) -> dict[str, Setting]:
    """Returns the value of each field of an experiment by its path, such as "network.cell.h".

    A field whose value is a dataclass has the name of its class.

    >>> import jrnn
    >>> from jrnn.train import Network
    >>> settings = list_settings(Experiment(jrnn.tasks.Adding(), Network(jrnn.GRU(4))))
    >>> settings["network.cell"], settings["network.cell.hidden_size"], settings["seed"]
    ('GRU', 4, 0)
    """
    settings = {}
    for path, value in walk(experiment):
        if path:
            settings[path] = _convert(value)
    # The entries of a tuple such as (1, 2) are part of its text; fields of its entries are not.
    return {path: value for path, value in settings.items() if not path.endswith("]")}


def find_differences(experiments: Sequence[Experiment]) -> list[dict[str, Setting]]:
    """Returns the settings of each experiment that are not the same in all of them.

    A setting that an experiment does not have, such as the option of another cell, is None. A
    setting that is the default in all experiments that have it is left out.
    """
    settings = [list_settings(experiment) for experiment in experiments]
    defaults = [_list_defaults(experiment) for experiment in experiments]
    names = dict.fromkeys(name for each in settings for name in each if name not in IGNORED)
    differing = []
    for name in names:
        present = [each[name] for each in settings if name in each]
        is_default = all(
            own[name] == default.get(name, _NO_DEFAULT)
            for own, default in zip(settings, defaults, strict=True)
            if name in own
        )
        is_missing = len(present) < len(settings) and not is_default
        if is_missing or len({repr(value) for value in present}) > 1:
            differing.append(name)
    return [{name: each.get(name) for name in differing} for each in settings]


_NO_DEFAULT = object()


def _list_defaults(experiment: Experiment) -> dict[str, Any]:
    """Returns the default of each field that has one, by its path and as `list_settings` does."""
    return {
        f"{path}.{field.name}" if path else field.name: _convert(field.default)
        for path, value in walk(experiment)
        if dataclasses.is_dataclass(value)
        for field in dataclasses.fields(value)
        if field.default is not dataclasses.MISSING
    }


def _convert(value: Any) -> Setting:
    if dataclasses.is_dataclass(value):
        return type(value).__name__
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        return value
    return None if value is None else repr(value)
