"""`Associative` with time sharded over devices, against `Scan`.

test_associative.py runs this file in a new process with several CPU devices:

`XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.engines.time_sharding`
"""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jrnn
from jrnn import Associative, Scan
from tests.cells.linear_toys import TOYS, Growth, GrowthParams
from tests.helpers import Scenario, assert_close, random_batch, random_params, unroll_scenario
from tests.table import CELLS

STEPS = 16
SCENARIOS = (Scenario(carry=False), Scenario(reverse=True))


def make_meshes() -> dict[str, Mesh]:
    """Returns meshes of eight devices; "explicit" and "auto" differ in the types of their axes."""
    devices = np.array(jax.devices())
    make = partial(jax.make_mesh, axis_shapes=(2, 4), axis_names=("data", "time"))
    return {
        "8": Mesh(devices, ("time",)),
        "2x4": Mesh(devices.reshape(2, 4), ("data", "time")),
        "explicit": make(axis_types=(AxisType.Explicit,) * 2),
        "auto": make(axis_types=(AxisType.Auto,) * 2),
    }


def compute_results(cell: Any, engines: Any, params: Any, batch: Any) -> Any:
    """Returns, for each engine, the values and gradients of each of `SCENARIOS`."""

    def run_scenario(engine: Any, scenario: Scenario) -> Any:
        run = lambda p, xs, c: unroll_scenario(
            cell, engine, scenario, p, batch._replace(xs=xs, carry=c)
        )
        values, vjp = jax.vjp(run, params, batch.xs, batch.carry)
        return values, vjp((batch.ct_carry, batch.ct_ys))

    return [[run_scenario(engine, scenario) for scenario in SCENARIOS] for engine in engines]


def check_values_and_gradients() -> None:
    """Tests that values and gradients equal those of `Scan`."""
    eight, four = (make_meshes()[name] for name in ("8", "2x4"))
    for name, engine in {
        "minlstm": Associative(mesh=four, chunk=1),
        "lru": Associative(mesh=eight),
        "mixer": Associative(mesh=eight, chunk=1),
        "varying-mixer": Associative(mesh=four),
        "pair": Associative(mesh=eight),
    }.items():
        cell = (CELLS | TOYS)[name].make(2)
        params = random_params(cell, 1, 2)
        batch = random_batch(cell, params, 2, STEPS, 3)
        run = jax.jit(partial(compute_results, cell, [Scan(), engine]))
        want, got = run(params, batch)
        assert_close(got, want, 1e-9)


def check_shardings() -> None:
    """Tests values and gradients for several shardings of xs and axis types, also without `jit`."""
    cell = CELLS["mingru"].make(2)
    params = random_params(cell, 1, 2)
    batch = random_batch(cell, params, 2, STEPS, 4)

    def loss(engine: Any, p: Any, xs: Any) -> Any:
        masks = {"lengths": batch.lengths, "return_carries": True}
        _, ys, carries = jrnn.unroll(cell, p, xs, engine=engine, **masks)
        return jnp.sum(ys**2) + jnp.sum(carries**3)

    want = jax.jit(jax.value_and_grad(partial(loss, Scan()), (0, 1)))(params, batch.xs)

    def with_mesh(run: Any) -> Any:
        """Sets the mesh for a function, as JAX requires outside of jit for explicit axes."""

        def in_mesh(*args: Any) -> Any:
            with jax.set_mesh(make_meshes()["explicit"]):
                return run(*args)

        return in_mesh

    jitted_in_mesh = lambda run: with_mesh(jax.jit(run))
    time, both = PartitionSpec("time"), PartitionSpec("time", "data")
    for name, spec, transform in (
        ("8", time, jax.jit),
        ("2x4", both, jax.jit),
        ("auto", time, jax.jit),
        ("explicit", None, jax.jit),
        ("explicit", time, jax.jit),
        ("explicit", both, jax.jit),
        ("explicit", both, with_mesh),
        ("explicit", both, jitted_in_mesh),
        ("explicit", None, jitted_in_mesh),
    ):
        mesh = make_meshes()[name]
        run = transform(jax.value_and_grad(partial(loss, Associative(mesh=mesh)), (0, 1)))
        xs = jax.device_put(batch.xs, None if spec is None else NamedSharding(mesh, spec))
        try:
            assert_close(run(params, xs), want, 1e-9)
        except Exception as error:
            error.add_note(f"mesh {name}, xs sharded by {spec}, {transform}")
            raise


def check_collectives() -> None:
    """Tests that devices only exchange arrays of at most one carry for each device, not inputs."""
    cell = CELLS["mingru"].make(3)
    params = random_params(cell, 1, 5)
    mesh = make_meshes()["8"]
    shape = (64, 2, 5)
    xs = jax.device_put(jnp.ones(shape), NamedSharding(mesh, PartitionSpec("time")))

    def loss(params: Any, xs: Any) -> Any:
        return jnp.sum(jrnn.unroll(cell, params, xs, engine=Associative(mesh=mesh))[1] ** 2)

    forward = jax.jit(lambda p, xs: jrnn.unroll(cell, p, xs, engine=Associative(mesh=mesh)))
    for run in (forward, jax.jit(jax.grad(loss, (0, 1)))):
        compiled = run.lower(params, xs).compile()
        text = compiled.as_text()
        gathered = re.findall(r"= \(?(\w+\[[\d,]*\].*?) all-gather(?:-start)?\(", text)
        assert gathered, "no all-gather"
        for result in gathered:
            for sizes in re.findall(r"\[([\d,]+)\]", result):
                count = np.prod([int(n) for n in sizes.split(",")])
                assert count <= 8 * 2 * 3, f"{result} is larger than one carry for each device"
        ys = jax.tree.leaves(compiled.output_shardings)[-1]
        assert ys.spec[0] == "time", ys
        assert "all-to-all" not in text


def check_overflow() -> None:
    """Tests that inf and NaN do not pass a reset, also between devices."""
    params = GrowthParams(np.ones((1, 1), np.float32))
    xs = np.full((64, 2, 1), 0.5, np.float32)
    xs[:20, 0] = 1e10
    resets = np.zeros((64, 2), bool)
    resets[20, 0] = True
    for flip in (1, -1):
        options = {"resets": resets[::flip], "reverse": flip < 0}
        engine = Associative(mesh=make_meshes()["8"])
        carry, ys = jrnn.unroll(Growth(1), params, xs[::flip], engine=engine, **options)
        np.testing.assert_allclose(carry, 2)
        np.testing.assert_allclose(
            np.asarray(ys)[::flip][20:, 0, 0], 2 - 0.5 ** np.arange(44), rtol=1e-6
        )


def check_number_of_steps() -> None:
    """Tests zero steps, and the error for a number of steps that 8 devices do not divide."""
    cell = CELLS["mingru"].make(3)
    params = random_params(cell, 1, 5)
    engine = Associative(mesh=make_meshes()["8"])
    assert jrnn.unroll(cell, params, np.ones((0, 2, 5)), engine=engine)[1].shape == (0, 2, 3)
    try:
        jrnn.unroll(cell, params, np.ones((13, 2, 5)), engine=engine)
    except ValueError as error:
        assert "multiple of the 8 devices of axis 'time', got 13; pad xs to 16" in str(error)
    else:
        raise AssertionError("13 steps over 8 devices did not raise")


if __name__ == "__main__":
    assert len(jax.devices()) == 8, jax.devices()
    check_number_of_steps()
    check_overflow()
    print("overflow", flush=True)
    with jax.enable_x64(True):
        check_collectives()
        print("collectives", flush=True)
        check_shardings()
        print("shardings", flush=True)
        check_values_and_gradients()
