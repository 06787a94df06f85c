"""What to write in place of a flag that the experiment of a config does not have."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from jrnn.dataclass_tree import walk

SYNONYMS = {
    "lr": "learning-rate",
    "wd": "weight-decay",
    "hidden": "hidden-size",
    "layers": "num-layers",
    "epochs": "steps",
    "batch": "batch-size",
    "clip": "clip-norm",
    "ema": "ema-decay",
}
"""Last parts of flags that users of other libraries try, and what they are called in jrnn."""
_DEVICES = "JAX selects the device; set the environment variable JAX_PLATFORMS to cpu or cuda"
_ADVICE = {name: _DEVICES for name in ("--device", "--gpu", "--gpus", "--cuda", "--cpu")}
"""What to do in place of flags that commands of other libraries have."""


def field_flags(experiment: Any) -> dict[str, Any]:
    """Returns the values of the fields of an experiment by flag, such as "--network.dropout"."""
    return {
        _to_flag(path): value
        for path, value in walk(experiment)
        if path and not dataclasses.is_dataclass(value)
    }


def find_flag(name: str, experiment: Any) -> str:
    """Returns the flag whose last part is the name or a synonym of it; "" if there is none."""
    last = name.replace("_", "-")
    last = SYNONYMS.get(last, last)
    flags = field_flags(experiment)
    return next((flag for flag in flags if flag.removeprefix("--").split(".")[-1] == last), "")


def explain_flag(
    flags: Sequence[str],
    experiment: Any,
    config: str,
    argument_names: Sequence[str],
    with_argument: Callable[[str, str], str],
) -> str:
    """Returns what to write instead of the first unknown flag; "" if nothing is similar.

    Args:
      flags: the flags and their values, of which one is unknown.
      experiment: the experiment of the config.
      config: the config, for the message.
      argument_names: the names of the arguments of the config.
      with_argument: returns the config with another argument, from its name and value.
    """
    groups = [_to_flag(path) for path, _ in walk(experiment) if path]
    for index, flag in enumerate(flags):
        name, equals, value = flag.partition("=")
        if equals and name in argument_names:
            return (
                f"{config}: an argument of the config must follow a colon, got {flag!r}; write "
                f"{with_argument(name, value)}"
            )
        name = name.replace("_", "-")  # tyro accepts both
        if not flag.startswith("--") or name in (*field_flags(experiment), "--help"):
            continue
        if name in _ADVICE:
            return f"train: {name} is not a flag; {_ADVICE[name]}"
        last = name.removeprefix("--").rpartition(".")[2]
        found = find_flag(last, experiment)
        if last.replace("-", "_") in argument_names and (name in groups or not found):
            value = value or next(iter(flags[index + 1 :]), "VALUE")
            colon = with_argument(last.replace("-", "_"), value)
            return f"train: {name} is not a flag; it is an argument of the config: {colon}"
        if found:
            return f"train: {name} is not a flag; did you mean {found!r}?"
    return ""


def _to_flag(path: str) -> str:
    """Returns the flag of a field of an experiment, such as "steps" or "network.dropout"."""
    return "--" + path.replace("_", "-")
