"""Initializes a network with the parameters of a trained one, for fine-tuning."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from jrnn import checks
from jrnn.tasks.task import DataSpec
from jrnn.train.step.freeze import check_patterns, is_selected, param_paths, path_of


def check_transfer(source: nnx.Module, target: nnx.State, skip: Sequence[str]) -> list[str]:
    """Checks that the parameters of one network can be copied to another.

    Args:
      source: the trained network.
      target: the parameters of the network to initialize; only shapes and dtypes are used.
      skip: paths of parameters that are not copied; see `jrnn.train.step.freeze.is_selected`.

    Returns:
      The paths of the parameters of `target` that are not copied.

    Raises:
      ValueError: a path is in one network only, or a shape or dtype differs, and `skip` does not
        select the path; or a path in `skip` selects no parameter of `target`.
    """
    check_patterns("init_skip", skip, target)
    describe = lambda leaf: f"{leaf.dtype}{list(leaf.shape)}"
    trained = param_paths(nnx.state(source, nnx.Param))
    old = {path: describe(leaf) for path, leaf in trained.items()}
    new = {path: describe(leaf) for path, leaf in param_paths(target).items()}
    for path in [*new, *(path for path in old if path not in new)]:
        if is_selected(path, skip) or old.get(path) == new.get(path):
            continue
        raise ValueError(
            f"train: --init-from: the parameter {path} is {old.get(path, 'missing')} in the run, "
            f"and {new.get(path, 'missing')} in this config; use the same network, or pass "
            f"--init-skip {path.partition('.')[0]}"
        )
    return [path for path in new if is_selected(path, skip)]


def copy_params(source: nnx.Module, target: nnx.Module, skip: Sequence[str] = ()) -> None:
    """Copies the parameters of a trained model to another model, which is changed.

    Other variables, such as the counters of random streams, are not copied.

    Args:
      source: the trained model.
      target: the model to initialize.
      skip: paths of parameters that are not copied, such as "head"; see `check_transfer`.

    Raises:
      ValueError: as for `check_transfer`.
    """
    params = nnx.state(target, nnx.Param)
    check_transfer(source, params, skip)
    trained = param_paths(nnx.state(source, nnx.Param))

    def choose(keys: Any, own: Any) -> Any:
        path = path_of(keys)
        return own if is_selected(path, skip) else trained[path]

    nnx.update(target, jax.tree_util.tree_map_with_path(choose, params))


def check_encoding(source: DataSpec, target: DataSpec, skip: Sequence[str]) -> None:
    """Raises ValueError if ids have another meaning for the trained network than in the new data.

    Args:
      source: the properties of the data of the trained network.
      target: the properties of the new data.
      skip: paths of parameters that are not copied.
    """
    parts: dict[str, tuple[str, ...]] = {"vocabulary": ("embedding",), "class_names": ("head",)}
    if source.vocabulary is not None and source.target == "class_per_step":
        parts["vocabulary"] = ("embedding", "head")
    for name, modules in parts.items():
        if getattr(source, name) != getattr(target, name):
            missing = [module for module in modules if not is_selected(module, skip)]
            if missing:
                raise ValueError(
                    f"train: --init-from: the {name} of the run is "
                    f"{checks.describe(getattr(source, name))}, and that of the new data is "
                    f"{checks.describe(getattr(target, name))}; pass --keep-encoding to use that "
                    f"of the run, or --init-skip {' '.join(missing)}"
                )
