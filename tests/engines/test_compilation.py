"""The second call of `unroll`, or of its gradient under `jit`, neither traces nor compiles."""

import logging

import jax
import numpy as np
import pytest

import jrnn
from jrnn import Engine
from tests.helpers import Batch, random_batch, random_params
from tests.table import Row

pytestmark = pytest.mark.usefixtures("disable_compilation_cache")


class Model:
    """A cell, its parameters and a batch, in sizes that no other test uses."""

    def __init__(self, row: Row, seed: int) -> None:
        self.cell = row.make(2)
        self.params = random_params(self.cell, seed, 1, np.float32)
        self.batch = random_batch(self.cell, self.params, seed + 1, 4, 2, np.float32)


@pytest.fixture
def jax_log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Captures the log messages of JAX about tracing and compilation."""
    caplog.set_level(logging.WARNING)
    return caplog


def messages(log: pytest.LogCaptureFixture) -> list[str]:
    """Returns the captured messages of JAX, and clears them."""
    result = [record.getMessage() for record in log.records if record.name.startswith("jax")]
    log.clear()
    return result


@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
def test_second_call_compiles_nothing(
    kind: Row, engine: Engine, jitted: bool, jax_log: pytest.LogCaptureFixture
) -> None:
    def run(params: object, batch: Batch, key: jax.Array) -> object:
        lengths, resets = batch.lengths, batch.resets
        return jrnn.unroll(
            # New but equal cells and engines must hit the cache.
            kind.make(2),
            params,
            batch.xs,
            batch.carry,
            lengths=lengths if jitted else lengths.tolist(),
            resets=resets,
            key=key,
            engine=type(engine)(**vars(engine)),
        )

    run = jax.jit(run) if jitted else run
    keys = jax.random.key(0), jax.random.key(1)
    with jax.log_compiles():
        first, second = Model(kind, 1), Model(kind, 2)
        messages(jax_log)
        before = run(first.params, first.batch, keys[0])
        assert messages(jax_log), "no compilation was captured"
        after = run(second.params, second.batch, keys[1])
        assert messages(jax_log) == []
    assert jax.tree.structure(before) == jax.tree.structure(after)


def test_gradient_compiles_once(
    kind: Row, engine: Engine, jax_log: pytest.LogCaptureFixture
) -> None:
    @jax.jit
    def grads(params: object, batch: Batch) -> object:
        def loss(params: object) -> jax.Array:
            return jrnn.unroll(kind.make(2), params, batch.xs, engine=engine)[1].sum()

        return jax.grad(loss)(params)

    with jax.log_compiles():
        first, second = Model(kind, 1), Model(kind, 2)
        grads(first.params, first.batch)
        assert messages(jax_log), "no compilation was captured"
        grads(second.params, second.batch)
        assert messages(jax_log) == []
