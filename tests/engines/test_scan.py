"""`Scan` passes its option `unroll`, and the scan direction, to `lax.scan`."""

import jax
import numpy as np
import pytest

import jrnn
from jrnn import Elman, Scan


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("unroll", [1, 3])
def test_unroll_and_reverse_are_passed_to_lax_scan(unroll: int, reverse: bool) -> None:
    cell = Elman(2)
    params = cell.init(jax.random.key(0), 1)
    run = lambda xs: jrnn.unroll(cell, params, xs, reverse=reverse, engine=Scan(unroll=unroll))
    text = str(jax.make_jaxpr(run)(np.ones((7, 1, 1), np.float32)))
    assert f"unroll={unroll}\n" in text
    assert f"reverse={reverse}\n" in text
