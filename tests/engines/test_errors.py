"""Errors for invalid arguments of `unroll`, valid types of arguments, and the choice of `Auto`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jrnn
from jrnn import GRU, GRUD, LSTM, LSTMCarry, Observed, Scan, masking

CELL = LSTM(3)
PARAMS = CELL.init(jax.random.key(0), 2)
XS: Any = np.ones((5, 4, 2), np.float32)


def unroll(**changes: Any) -> Any:
    """Calls `jrnn.unroll` with valid arguments, except for `changes`."""
    arguments: dict[str, Any] = {"layer": CELL, "params": PARAMS, "xs": XS} | changes
    return jrnn.unroll(**arguments)


INVALID_ARGUMENTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"layer": LSTM},
        TypeError,
        r"unroll: layer must be a cell such as jrnn.LSTM\(64\), or a layer, got the class LSTM; cr",
    ),
    ({"layer": "lstm"}, TypeError, "unroll: layer must be a cell"),
    ({"reverse": "no"}, ValueError, "unroll: reverse must be True or False, got 'no'"),
    ({"xs": ()}, ValueError, "unroll: xs must hold at least one array .*, got none"),
    ({"xs": XS[0, 0]}, ValueError, r"xs must have shape \(time, batch, \.\.\.\).*got \[\(2,\)\]"),
    (
        {"layer": GRUD(3), "xs": Observed(XS, XS[:4], XS)},
        ValueError,
        r"got \[\(5, 4, 2\), \(4, 4, 2\), .*xs\[:, None\]",
    ),
    (
        {"layer": GRUD(3), "xs": Observed(XS, XS, XS[:, :3])},
        ValueError,
        r"with the same time and batch, got \[\(5, 4, 2\), \(5, 4, 2\), \(5, 3, 2\)\]",
    ),
    ({"xs": np.ones((5, 4), int)}, TypeError, "xs must be floating, got int.*one-hot tokens first"),
    (
        {"xs": XS[..., :1]},
        ValueError,
        r"unroll: xs must have a last axis of 2 \(input_size of the parameters\), got shape",
    ),
    ({"xs": XS[:, 0]}, ValueError, r"\(time, batch, input\), got \(5, 2\); pass a single sequence"),
    ({"lengths": np.ones(3, int)}, ValueError, r"lengths must .* \(batch,\) = \(4,\), got \(3,\)"),
    ({"lengths": 5}, ValueError, r"lengths must have shape \(batch,\) = \(4,\), got \(\)"),
    ({"lengths": np.ones(4)}, TypeError, "lengths must be ints, .*, got float32"),
    ({"lengths": np.ones(4, bool)}, TypeError, "lengths must be ints, .*, got bool"),
    ({"resets": np.ones((4, 5), bool)}, ValueError, r"\(time, batch\) = \(5, 4\), got \(4, 5\)"),
    ({"resets": np.ones(4, bool)}, ValueError, r"resets must have shape .*, got \(4,\)"),
    (
        {"resets": np.ones((5, 4), int)},
        TypeError,
        "resets must be bool, got int32; write rese",
    ),
    ({"carry": np.ones((4, 3))}, TypeError, r"carry must have the structure of LSTM.init_carry"),
    ({"layer": GRU(3), "carry": LSTMCarry(XS, XS)}, TypeError, "structure of GRU.init_carry"),
    (
        {"carry": LSTMCarry(XS[0], XS[0, 0])},
        ValueError,
        r"leaves of shapes \[\(4, 3\), \(4, 3\)\], got \[\(4, 2\), \(2,\)\]",
    ),
    (
        {"carry": LSTMCarry(*2 * [np.zeros((4, 3), complex)])},
        TypeError,
        r"leaves of dtypes \['float32', 'float32'\], got \['complex64', 'complex64'\]",
    ),
    ({"engine": "scna"}, ValueError, "engine must be one of auto, .*'scna'; did you mean 'scan'"),
    ({"engine": None}, ValueError, "unroll: engine must be one of auto, .*got None"),
]


@pytest.mark.parametrize(
    ("changes", "error", "message"), INVALID_ARGUMENTS, ids=lambda part: str(part)[:40]
)
def test_invalid_argument_raises(changes: Any, error: type[Exception], message: str) -> None:
    if isinstance(changes.get("layer"), GRU | GRUD):
        changes = changes | {"params": changes["layer"].init(jax.random.key(0), 2)}
    with pytest.raises(error, match=message):
        unroll(**changes)


def test_invalid_argument_raises_under_jit() -> None:
    with pytest.raises(ValueError, match="lengths must have shape"):
        jax.jit(lambda lengths: unroll(lengths=lengths))(jnp.ones(3, int))


@pytest.mark.parametrize("steps", [0, -1, 1.5, True, "2"])
def test_scan_unroll_must_be_a_positive_int(steps: Any) -> None:
    with pytest.raises(ValueError, match="Scan: unroll must be a positive int, got"):
        Scan(unroll=steps)


def test_segment_ids_must_have_two_axes() -> None:
    with pytest.raises(ValueError, match=r"segment_ids must .* \(time, batch\), got \(3,\)"):
        jrnn.segment_resets(jnp.array([0, 0, 1]))


def test_isolate_nans_requires_resets() -> None:
    with pytest.raises(ValueError, match="masks.resets must be an array .*, got None"):
        masking.isolate_nans(XS, XS[0], masking.Masks(None, None, None, None), reverse=False)


@pytest.mark.parametrize("convert", [list, np.asarray, jnp.asarray])
def test_lengths_and_resets_may_be_lists_or_arrays(convert: Any) -> None:
    lengths, resets = [5, 0, 3, 1], np.eye(5, 4, dtype=bool).tolist()
    want = unroll(lengths=jnp.array(lengths), resets=jnp.array(resets))
    got = unroll(lengths=convert(lengths), resets=convert(resets))
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(g, w)


def test_engine_may_be_a_name_or_an_instance() -> None:
    for engine in ("auto", "scan", Scan(), Scan(unroll=2)):
        np.testing.assert_allclose(unroll(engine=engine)[1], unroll()[1], rtol=1e-6)


def test_auto_logs_its_choice(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", logger="jrnn"):
        # In a shape that no other test uses, since `Auto` logs only when it is traced.
        unroll(engine="auto", xs=np.ones((7, 5, 2), np.float32))
    assert "engine='auto' chose " in caplog.text


@pytest.mark.parametrize(
    ("hidden", "batch", "choice"), [(16, 32, "Scan("), (16, 31, "Fused("), (128, 32, "Fused(")]
)
def test_auto_without_a_kernel_chooses_by_cell_and_batch_size(
    hidden: int, batch: int, choice: str, caplog: pytest.LogCaptureFixture
) -> None:
    cell = GRU(hidden, reset_after=False)
    params = cell.init(jax.random.key(0), 2)
    with caplog.at_level("DEBUG", logger="jrnn"):
        jax.eval_shape(lambda xs: jrnn.unroll(cell, params, xs), jnp.ones((3, batch, 2)))
    assert f"engine='auto' chose {choice}" in caplog.text


def test_auto_under_a_mesh_chooses_fused(caplog: pytest.LogCaptureFixture) -> None:
    cell = GRU(16, reset_after=False)
    params = cell.init(jax.random.key(0), 2)
    mesh = jax.sharding.AbstractMesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with caplog.at_level("DEBUG", logger="jrnn"), jax.sharding.use_abstract_mesh(mesh):
        jax.eval_shape(lambda xs: jrnn.unroll(cell, params, xs), jnp.ones((3, 32, 2)))
    assert "engine='auto' chose Fused(" in caplog.text


@pytest.mark.parametrize("engine", ["auto", "scan"])
def test_integer_carry_of_a_floating_cell_raises(engine: str) -> None:
    # The final carry has the dtype of the initial carry, so it would be rounded to ints.
    cell = jrnn.GRU(4)
    params = cell.init(jax.random.key(0), 3)
    xs, carry = jnp.ones((5, 2, 3)), jnp.zeros((2, 4), jnp.int32)
    with pytest.raises(TypeError, match=r"carry must have leaves of dtypes \['float32'\], got"):
        jrnn.unroll(cell, params, xs, carry, engine=engine)
