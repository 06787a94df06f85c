"""Errors for invalid arguments of `unroll`, valid types of arguments, and the choice of `Auto`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jrnn
from jrnn import GRU, GRUD, LSTM, Diagonal, LSTMCarry, Observed, Scan, masking
from tests.cells.toys import Integrator

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
    (
        {"carry": np.ones((4, 3))},
        TypeError,
        r"unroll: carry must be LSTMCarry\(h, c\), as in LSTM.init_carry, got an array of shape "
        r"\(4, 3\) and dtype float32; pass jrnn.LSTMCarry\(h, c\)",
    ),
    (
        {"carry": (np.ones((4, 3)), np.ones((4, 3)))},
        TypeError,
        r"carry must be LSTMCarry\(h, c\), .* got a tuple of 2 arrays; pass jrnn.LSTMCarry\(h, c\)",
    ),
    (
        {"layer": GRU(3), "carry": LSTMCarry(XS, XS)},
        TypeError,
        r"carry must be an array, as in GRU.init_carry, got LSTMCarry\(h, c\)",
    ),
    (
        {"carry": LSTMCarry((XS, XS), None)},
        TypeError,
        r"LSTM.init_carry, got LSTMCarry\(h=a tuple of 2 arrays, c=None\)",
    ),
    ({"carry": {"h": XS, "c": XS}}, TypeError, "LSTM.init_carry, got a dict of c, h; pass jrnn.LS"),
    ({"carry": np.array([5, 5, 4, 1])}, TypeError, "pass the lengths of sequences by name, as in"),
    ({"carry": [5, 5, 4, 1]}, TypeError, "pass the lengths of sequences by name, as in lengths=le"),
    (
        {"layer": GRU(3), "carry": np.array([5, 5, 4, 1])},
        TypeError,
        r"carry must be an array, .*dtype int32; pass the lengths of sequences by name",
    ),
    (
        {"lengths": np.array([5, 0, 6, 7])},
        ValueError,
        "^unroll: lengths must be from 0 to T = 5, got 6 at index 2$",
    ),
    ({"lengths": [5, 0, 1, -1]}, ValueError, "lengths must be from 0 to T = 5, got -1 at index 3"),
    ({"lengths": jnp.array([5, 9, 1, 1])}, ValueError, "from 0 to T = 5, got 9 at index 1$"),
    ({"key": 0}, TypeError, r"unroll: key must be one key such as jax.random.key\(0\), got 0"),
    (
        {"batch_first": True},
        TypeError,
        r"^unroll: batch_first is not an argument; jrnn.unroll take",
    ),
    ({"hx": None}, TypeError, r"^unroll: hx is not an argument; use carry$"),
    ({"engin": "scan"}, TypeError, r"^unroll: engin is not an argument; did you mean 'engine'\?$"),
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


def test_traced_lengths_are_clipped() -> None:
    run = jax.jit(lambda lengths: unroll(lengths=lengths)[1])
    np.testing.assert_array_equal(
        run(jnp.array([7, -2, 5, 3])), run(jnp.array([5, 0, 5, 3], jnp.int32))
    )


def test_messages_for_a_wrong_structure_name_classes_and_fields() -> None:
    """No message has a PyTreeDef of JAX."""

    class Wrong(Integrator):
        def coefficients(self, params: Any, z: Any) -> Any:
            return Diagonal(z, (z, z))

    stack = jrnn.stack([GRU(3), LSTM(3)])
    params = stack.init(jax.random.key(0), 2)
    guess: Any = (XS, XS)
    h = np.ones((4, 3), np.float32)
    calls: list[tuple[Any, str]] = [
        (lambda: unroll(layer=stack, params=params, carry=np.array([5, 5, 4, 1])), "pass the leng"),
        (lambda: unroll(layer=stack, params=params, carry=(h, (h, h))), "LSTMCarry"),
        (
            lambda: jrnn.newton(CELL, PARAMS, XS, guess=guess),
            r"newton: guess must be LSTMCarry\(h, ",
        ),
        (
            lambda: jrnn.unroll(Wrong(2), jnp.zeros(()), XS, engine="associative"),
            r"b=a tuple of 2 arrays",
        ),
    ]
    for call, message in calls:
        with pytest.raises(TypeError, match=message) as error:
            jax.eval_shape(call)
        message = str(error.value).partition("\n---")[0]  # without a note of JAX
        assert "PyTreeDef" not in message and "\n" not in message


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
