"""Tests that `Scan` passes its options to `lax.scan`."""

import jax
import numpy as np
import pytest

import jrnn
from jrnn import Elman, Scan


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_options_are_passed_to_lax_scan(steps: int, reverse: bool) -> None:
    cell = Elman(2)
    params = cell.init(jax.random.key(0), 1)
    run = lambda xs: jrnn.unroll(cell, params, xs, reverse=reverse, engine=Scan(unroll=steps))
    text = str(jax.make_jaxpr(run)(np.ones((7, 1, 1), np.float32)))
    assert f"unroll={steps}\n" in text
    assert f"reverse={reverse}\n" in text
