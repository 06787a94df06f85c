"""Helpers for the tests of `Newton`."""

from functools import partial
from typing import Any

import jax
import numpy as np

import jrnn
from jrnn import (
    Cell,
    Newton,
)
from tests.helpers import (
    Batch,
    Scenario,
    oracle,
    random_batch,
    random_params,
)
from tests.table import Row

NEWTON = Newton()


def make_example(row: Row, dtype: Any = np.float64, steps: int = 7) -> tuple[Cell, Any, Batch]:
    """Returns a cell with 3 hidden units and 2 inputs, its parameters, and a batch of 3."""
    cell = row.make(3)
    params = random_params(cell, 1, 2, dtype)
    return cell, params, random_batch(cell, params, 2, steps, 3, dtype)


def all_carries(row: Row, scenario: Scenario, params: Any, batch: Batch) -> Any:
    """Returns the carry of the oracle after each step, leaves `[T, B, ...]`, in the order of time.

    The batch must not have a mask.
    """
    carries = []
    for t in range(len(batch.xs)):
        # All steps up to t, in scan order.
        steps = slice(t, None) if scenario.reverse else slice(t + 1)
        lengths = np.clip(batch.lengths - (t if scenario.reverse else 0), 0, None)
        partial_batch = batch._replace(
            xs=batch.xs[steps],
            resets=batch.resets[steps],
            ct_ys=batch.ct_ys[steps],
            lengths=lengths,
        )
        carries.append(oracle(row, scenario, params, partial_batch)[0])
    return jax.tree.map(lambda *leaves: np.stack(leaves), *carries)


@partial(jax.jit, static_argnames=("cell", "engine", "scenario"))
def solve(cell: Cell, engine: Newton, scenario: Scenario, params: Any, batch: Batch) -> Any:
    """Calls `jrnn.newton` with the optional arguments of the scenario."""
    return jrnn.newton(
        cell,
        params,
        batch.xs,
        batch.carry if scenario.carry else None,
        lengths=batch.lengths if scenario.lengths else None,
        resets=batch.resets if scenario.resets else None,
        reverse=scenario.reverse,
        engine=engine,
    )
