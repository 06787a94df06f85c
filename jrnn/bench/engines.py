"""The engines of jrnn as contenders, each held to the values and gradients of Scan."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jrnn
from jrnn import checks
from jrnn.bench.contenders import Case, Contender, JaxModel, Unavailable, compiled
from jrnn.cells import REGISTRY as CELLS
from jrnn.engines import REGISTRY as ENGINES

MOST_DIFFERENCE = 1e-4


class Wrong(Unavailable):
    """An engine that computes something else than Scan does."""


def build(engine: str, case: Case) -> list[Contender]:
    """An engine for a case.

    Raises:
      Unavailable: there is no such engine, or it does not work here.
    """
    if engine not in ENGINES:
        raise Unavailable(f"jrnn has no such engine{checks.suggestion(engine, ENGINES)}")
    try:
        return [compiled(model(engine, case), case, "jrnn")]
    except Exception as error:  # such as a part that was not compiled when jrnn was installed
        raise Unavailable(f"failed: {type(error).__name__}: {error}") from error


def truth(case: Case) -> Any:
    """What Scan computes for a case."""
    (contender,) = build("scan", case)
    return contender.call()


def check(contender: Contender, expected: Any) -> None:
    """Compares an engine with Scan, leaf by leaf, in units of the leaf's largest value.

    Raises:
      Wrong: a difference above `MOST_DIFFERENCE`.
    """
    pairs = zip(jax.tree.leaves(contender.call()), jax.tree.leaves(expected), strict=True)
    worst = max(_difference(np.asarray(got), np.asarray(want)) for got, want in pairs)
    if not worst <= MOST_DIFFERENCE:
        raise Wrong(f"differs from Scan by {worst:.1e}, above {MOST_DIFFERENCE:.0e}")


def _difference(got: np.ndarray, want: np.ndarray) -> float:
    scale = np.abs(want).max()
    return float(np.abs(got - want).max() / (scale or 1))


def model(
    engine: str | jrnn.Engine, case: Case, name: str | None = None, params: Any = None
) -> JaxModel:
    """An engine with the cell of a case.

    Args:
      engine: as `unroll` takes it.
      case: the cell, its sizes and dtype.
      name: in tables; by default that of the engine.
      params: by default those of `params_of`.
    """
    cell = cell_of(case)
    params = params_of(cell, case) if params is None else params

    def apply(params: Any, xs: jax.Array) -> jax.Array:
        return jrnn.unroll(cell, params, xs, engine=engine)[1]

    return JaxModel(f"jrnn {name or engine}", apply, params)


def cell_of(case: Case) -> jrnn.Cell:
    """The cell of a case, with its options by default."""
    make: Any = CELLS[case.cell]
    return make(case.shape.hidden)


def params_of(cell: jrnn.Cell, case: Case) -> Any:
    """The cell's own first parameters with some noise: biases of zero would hide faults."""
    leaves, structure = jax.tree.flatten(
        cell.init(jax.random.key(0), case.shape.input, jnp.dtype(case.dtype))
    )
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [
        leaf + 0.01 * jax.random.normal(key, leaf.shape, leaf.dtype)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, noisy)
