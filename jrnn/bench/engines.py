"""Compiles the engines of jrnn, and compares their values and gradients with those of Scan."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jrnn
from jrnn import checks
from jrnn.bench.implementations import Case, Implementation, JaxModel, Unavailable, compile_model
from jrnn.cells import REGISTRY as CELLS
from jrnn.engines import REGISTRY as ENGINES

MAX_DIFFERENCE = 1e-4
"""Maximum absolute difference from an array of Scan, relative to its largest absolute value."""


class ResultMismatch(Unavailable):
    """The results of an engine differ from those of Scan."""


def build(engine: str, case: Case) -> list[Implementation]:
    """Compiles an engine, given by its name, for a case; returns one implementation.

    Raises:
      Unavailable: the engine does not exist, or cannot be compiled for the case.
    """
    if engine not in ENGINES:
        raise Unavailable(f"jrnn has no such engine{checks.suggestion(engine, ENGINES)}")
    try:
        return [compile_model(make_model(engine, case), case, "jrnn")]
    except Exception as error:  # for example, the C++ kernels were not built
        raise Unavailable(f"failed: {type(error).__name__}: {error}") from error


def reference(case: Case) -> Any:
    """Returns the results of Scan for a case.

    Raises:
      Unavailable: Scan cannot be compiled for the case.
    """
    (implementation,) = build("scan", case)
    return implementation.call()


def check_against_scan(implementation: Implementation, expected: Any) -> None:
    """Runs an engine, and compares its results with those of Scan.

    Raises:
      ResultMismatch: the relative difference of an array exceeds `MAX_DIFFERENCE`, or is NaN.
    """
    pairs = zip(jax.tree.leaves(implementation.call()), jax.tree.leaves(expected), strict=True)
    differences = [_max_relative_difference(*map(np.asarray, pair)) for pair in pairs]
    worst = np.max(differences)  # NaN if one of them is NaN
    if not worst <= MAX_DIFFERENCE:
        raise ResultMismatch(f"differs from Scan by {worst:.1e}, above {MAX_DIFFERENCE:.0e}")


def _max_relative_difference(got: np.ndarray, want: np.ndarray) -> float:
    scale = np.abs(want).max()
    return float(np.abs(got - want).max() / (scale or 1))


def make_model(
    engine: str | jrnn.Engine, case: Case, name: str | None = None, params: Any = None
) -> JaxModel:
    """Returns a model that runs the cell of a case on an engine.

    Args:
      engine: an engine of `unroll`, or its name.
      case: the cell, its sizes and dtype.
      name: name in tables and results, after "jrnn"; by default `engine`.
      params: the parameters of the cell; by default those of `init_params`.
    """
    cell = make_cell(case)
    params = init_params(cell, case) if params is None else params

    def apply(params: Any, xs: jax.Array) -> jax.Array:
        return jrnn.unroll(cell, params, xs, engine=engine)[1]

    return JaxModel(f"jrnn {name or engine}", apply, params)


def make_cell(case: Case) -> jrnn.Cell:
    """Returns the cell of a case, with default options."""
    cell_class: Any = CELLS[case.cell]
    return cell_class(case.shape.hidden)


def init_params(cell: jrnn.Cell, case: Case) -> Any:
    """Returns initial parameters plus small noise, because zero biases would hide errors."""
    leaves, structure = jax.tree.flatten(
        cell.init(jax.random.key(0), case.shape.input, jnp.dtype(case.dtype))
    )
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [
        leaf + 0.01 * jax.random.normal(key, leaf.shape, leaf.dtype)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, noisy)
