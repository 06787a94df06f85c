"""Frozen parameters: they are selected by their paths, and are neither trained nor changed."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import optax
from flax import nnx

from jrnn import checks

MAX_PATHS = 8
"""Maximum number of paths in a message."""


def param_paths(params: nnx.State) -> dict[str, Any]:
    """Returns the arrays of a model by their paths, such as "body.rnns.0.weights.w_ih"."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {path_of(keys): leaf for keys, leaf in leaves}


def path_of(keys: Sequence[Any]) -> str:
    """Returns the path of an array of `nnx.State` as text, from the keys of `jax.tree_util`."""
    return jax.tree_util.keystr(tuple(keys), simple=True, separator=".").removesuffix(".value")


def is_selected(path: str, patterns: Sequence[str]) -> bool:
    """Returns whether a path, or a path above it, matches one of the patterns.

    >>> is_selected("body.rnns.0.weights.b", ["body.rnns.0"])
    True
    >>> is_selected("body.rnns.0.weights.b", ["*.w_*", "bod"])
    False
    """
    return any(fnmatchcase(path, p) or fnmatchcase(path, f"{p}.*") for p in patterns)


def check_patterns(
    name: str, patterns: Sequence[str], params: nnx.State, owner: str = "train"
) -> None:
    """Checks that each pattern selects a parameter.

    Args:
      name: the name of the argument, for the message.
      patterns: the patterns; see `is_selected`.
      params: the parameters of the model.
      owner: the function that the user called, for the message.

    Raises:
      TypeError: the patterns are a str, whose characters would each be a pattern.
      ValueError: a pattern selects no parameter.
    """
    checks.texts(owner, name, patterns if isinstance(patterns, str) else tuple(patterns))
    paths = list(param_paths(params))
    for pattern in patterns:
        if not any(is_selected(path, [pattern]) for path in paths):
            more = ", ..." if len(paths) > MAX_PATHS else ""
            raise ValueError(
                f"{owner}: {name} must have paths of parameters, got {checks.describe(pattern)}; "
                f"the paths are {', '.join(paths[:MAX_PATHS])}{more}"
            )


def check_freeze(patterns: Sequence[str], params: nnx.State, owner: str = "train") -> None:
    """Raises ValueError unless each pattern selects a parameter, and some remain to be trained."""
    check_patterns("freeze", patterns, params, owner)
    if patterns and all(is_selected(path, patterns) for path in param_paths(params)):
        raise ValueError(
            f"{owner}: freeze must leave at least one parameter that is trained, got paths that "
            f"together match all: {', '.join(patterns)}; freeze fewer"
        )


def frozen_mask(params: nnx.State, patterns: Sequence[str]) -> Any:
    """Returns a pytree of bools with the structure of the parameters, True for frozen ones."""
    return jax.tree_util.tree_map_with_path(
        lambda keys, _: is_selected(path_of(keys), patterns), params
    )


def freeze(
    optimizer: optax.GradientTransformation, patterns: Sequence[str]
) -> optax.GradientTransformation:
    """Returns an optimizer that has no state for frozen parameters, and does not update them.

    Args:
      optimizer: the optimizer of the other parameters.
      patterns: the frozen parameters; see `is_selected`. If there are none, the optimizer itself is
        returned.
    """
    if not patterns:
        return optimizer
    labels = lambda params: jax.tree.map(
        lambda frozen: "frozen" if frozen else "trained", frozen_mask(params, patterns)
    )
    return optax.multi_transform({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)
