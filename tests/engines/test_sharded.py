"""`Sharded` on several devices against a run on one device."""

import re
import subprocess
import sys
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

import jrnn
from jrnn import Associative, Fused, Native, Newton, Scan, Sharded
from jrnn.transforms import dropout, weight_drop, zoneout
from tests.compilation import environment_with_devices
from tests.helpers import (
    Scenario,
    add_float0_cotangents,
    assert_close,
    differentiable_leaves,
    random_batch,
    random_params,
    unroll_scenario,
)
from tests.table import CELLS

STEPS, ROWS, DEVICES = 6, 8, 4
SCENARIOS = (Scenario(carry=False), Scenario(reverse=True))
CASES = {
    "lstm-peepholes": Fused(),
    "gru": Fused(remat=True),
    "gru-reset-before": Scan(),
    "elman-relu": jrnn.engines.choose_engine("auto"),
    "mingru": Associative(),
    "lru": Scan(),
    "indrnn": Newton(),
}


def make_mesh():
    """Returns a mesh of four devices with two axes."""
    return jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def compute_results(cell, engine, params, batch):
    """Returns the values and gradients of each of `SCENARIOS`."""

    def run_scenario(scenario):
        run = lambda p, xs, c: unroll_scenario(
            cell, engine, scenario, p, batch._replace(xs=xs, carry=c)
        )
        (carry, ys), vjp = jax.vjp(run, params, batch.xs, batch.carry)
        return (
            carry,
            ys,
            differentiable_leaves(vjp((add_float0_cotangents(carry, batch.ct_carry), batch.ct_ys))),
        )

    return [run_scenario(scenario) for scenario in SCENARIOS]


def check_values_and_gradients():
    """Asserts that values and gradients on the mesh equal those of `Scan` on one device."""
    for name, engine in CASES.items():
        check_case(CELLS[name].make(2), engine, ROWS, ("data", "model"))
    gru = CELLS["gru"].make(2)
    check_case(gru, Fused(), 6, ("data", "model"))  # 4 devices do not divide the batch
    # An axis that the mesh does not have is ignored.
    check_case(gru, Fused(), 6, ("data", "nowhere"))


def check_case(cell, engine, rows, axes):
    """Checks one cell for a batch of `rows` sequences, sharded over `axes` of the mesh."""
    params = random_params(cell, 1, 2)
    batch = random_batch(cell, params, 2, STEPS, rows)
    want = jax.jit(partial(compute_results, cell, Scan()))(params, batch)
    with jax.set_mesh(make_mesh()):
        run = partial(compute_results, cell, Sharded(engine, axes))
        got = jax.jit(run)(params, batch)
    assert_close(got, want, 1e-8 if isinstance(engine, Newton) else 1e-10)


def check_noise():
    """Asserts that the noise equals that of one device."""
    cell = weight_drop(zoneout(dropout(jrnn.LSTM(3), x=0.4), h=0.3, c=0.2), 0.3)
    params = cell.init(jax.random.key(0), 2)
    xs = np.random.default_rng(0).normal(size=(STEPS, ROWS, 2)).astype(np.float32)
    key = jax.random.key(1)
    want = jrnn.unroll(cell, params, xs, key=key, engine="fused")
    with jax.set_mesh(make_mesh()):
        got = jrnn.unroll(cell, params, xs, key=key, engine=Sharded(Fused(), ("data", "model")))
    assert_close(got, want, 1e-6)


def check_native():
    """Asserts that results with `Native` on each device equal those of `Scan`.

    For a batch that the number of devices does not divide, `Fused` replaces `Native`.
    """
    cell = jrnn.LSTM(8)
    params = cell.init(jax.random.key(0), 3)
    for rows in (ROWS, 6):
        xs = np.random.default_rng(0).normal(size=(STEPS, rows, 3)).astype(np.float32)
        want = jrnn.unroll(cell, params, xs, engine="scan")
        with jax.set_mesh(make_mesh()):
            got = jrnn.unroll(cell, params, xs, engine=Sharded(Native(), ("data", "model")))
        assert_close(got, want, 1e-5)


def check_collectives():
    """Asserts that devices communicate only by all-reduce, and outside of the loop over time.

    This must not hold for `Scan` without `Sharded`: otherwise the test has no effect.
    """
    cell = jrnn.GRU(8, reset_after=False)
    params = cell.init(jax.random.key(0), 3)
    xs = np.ones((STEPS, ROWS, 3), np.float32)
    with jax.set_mesh(make_mesh()):
        rows = jax.sharding.NamedSharding(make_mesh(), jax.sharding.PartitionSpec(None, "data"))
        xs = jax.device_put(xs, rows)
        for engine, only_outside in ((Sharded(Scan()), True), (Scan(), False)):
            loss = lambda p, xs, e=engine: (jrnn.unroll(cell, p, xs, engine=e)[1] ** 2).sum()
            text = jax.jit(jax.grad(loss)).lower(params, xs).compile().as_text()
            collectives = re.findall(r" (all-\w+|collective-\w+|reduce-scatter)(?:-start)?\(", text)
            with_all_reduce = [
                part for part in re.split(r"\n(?=%|ENTRY)", text) if "all-reduce(" in part[:100000]
            ]
            outside = all(part.startswith("ENTRY") for part in with_all_reduce)
            only_all_reduce = set(collectives) == {"all-reduce"}
            assert (only_all_reduce and outside) == only_outside, (engine, collectives)


SCRIPT = f"""
from importlib.util import find_spec
import jax
from tests.engines import test_sharded
assert len(jax.devices()) == {DEVICES}
test_sharded.check_noise()
test_sharded.check_collectives()
if find_spec("jrnn._kernels"):
    test_sharded.check_native()
with jax.enable_x64(True):
    test_sharded.check_values_and_gradients()
"""


def test_results_on_several_devices_equal_those_on_one():
    command = [sys.executable, "-W", "error", "-c", SCRIPT]
    subprocess.run(command, env=environment_with_devices(DEVICES), check=True, timeout=300)


def test_results_without_a_mesh_equal_those_of_the_inner_engine():
    cell = jrnn.GRU(3)
    params = random_params(cell, 1, 2)
    batch = random_batch(cell, params, 2, STEPS, 3)
    want, got = (
        jrnn.unroll(cell, params, batch.xs, lengths=batch.lengths, engine=engine)
        for engine in (Scan(), Sharded(Scan()))
    )
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_invalid_engine_raises():
    with pytest.raises(
        TypeError, match="engine must be an engine such as jrnn.Fused\\(\\), got 'fused'"
    ):
        Sharded("fused")  # pyright: ignore


@pytest.mark.parametrize("axes", ["data", ["data"], (0,)])
def test_axes_must_be_a_tuple_of_names(axes: Any):
    with pytest.raises(TypeError, match="axes must be a tuple of axis names"):
        Sharded(axes=axes)
