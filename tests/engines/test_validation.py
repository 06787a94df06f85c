"""Validation of parameters and inputs, which is the same for all functions that run a cell."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jrnn
from jrnn import GRU, GRUD, LSTM, Observed, Timed, transforms
from jrnn.analysis import capture_gates, lyapunov
from tests.cells.toys import Integrator
from tests.helpers import mark_exhaustive

CELL = LSTM(4)
KEY = jax.random.key(0)
PARAMS = CELL.init(KEY, 3)
XS = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
MODULE = jrnn.nn.RNN(CELL, 3, rngs=nnx.Rngs(0))
STACK = jrnn.stack([LSTM(4), jrnn.bidirectional(GRU(5))])
STACK_PARAMS = STACK.init(KEY, 3)


def unroll_with(engine: Any) -> Callable[..., Any]:
    """Returns `(cell, params, xs) -> results`, which calls `unroll` with an engine."""
    return lambda cell, params, xs: jrnn.unroll(cell, params, xs, engine=engine)


ENTRY_POINTS: dict[str, Callable[..., Any]] = {
    "scan": unroll_with("scan"),
    "auto": unroll_with("auto"),
    "fused": unroll_with("fused"),
    "native": unroll_with("native"),
    "associative": unroll_with("associative"),
    "newton-engine": unroll_with("newton"),
    "sharded": unroll_with(jrnn.Sharded()),
    "newton": jrnn.newton,
    "lyapunov": lyapunov,
    "capture_gates": capture_gates,
    "step": lambda cell, params, xs: cell.step(params, cell.init_carry(PARAMS, (2,)), xs[0]),
}

WRONG_PARAMS: dict[str, tuple[Any, str]] = {
    "size": (LSTM(6).init(KEY, 3), r"w_ih: shape \(3, 24\) instead of shape \(3, 16\)"),
    "variant": (LSTM(4, peepholes=True).init(KEY, 3), r"p_i: shape \(4,\) instead of None"),
    "cell": (GRU(4).init(KEY, 3), "GRUParams of 4 arrays"),
    "dtype": (jax.tree.map(lambda a: a.astype(int), PARAMS), "w_ih: dtype int32 instead of floa"),
    "none": (None, "got None"),
    "state": (nnx.state(MODULE), "flax's State; use the attribute params of the module"),
    "weights": (MODULE.weights, "use the attribute params of the module"),
    "dict": ({"w_ih": PARAMS.w_ih}, "got dict of 1 arrays"),
    "array": (XS, r"an array of shape \(5, 2, 3\)"),
}


@pytest.mark.parametrize(
    ("entry_point", "wrong"),
    mark_exhaustive(
        [(entry_point, wrong) for entry_point in ENTRY_POINTS for wrong in WRONG_PARAMS],
        always=[(entry_point, "size") for entry_point in ENTRY_POINTS]
        + [("scan", wrong) for wrong in WRONG_PARAMS],
    ),
)
def test_wrong_params_raise(entry_point: str, wrong: str) -> None:
    params, got = WRONG_PARAMS[wrong]
    message = rf"^\S+: params must be those of LSTM\(hidden_size=4\) for inputs of size 3, .*{got}"
    with pytest.raises((TypeError, ValueError), match=message) as error:
        ENTRY_POINTS[entry_point](CELL, params, XS)
    first_line = str(error.value).splitlines()[0]
    assert len(first_line) < 400
    owners = {name: name for name in ("newton", "lyapunov", "capture_gates")}
    owner = {**owners, "step": "LSTM.step"}.get(entry_point, "unroll")
    assert first_line.startswith(f"{owner}: ")


def test_params_without_peepholes_raise_for_a_cell_with_peepholes() -> None:
    for engine in ("scan", "native"):
        with pytest.raises(
            ValueError, match=r"peepholes=True\).*p_i: None instead of shape \(4,\)"
        ):
            jrnn.unroll(LSTM(4, peepholes=True), PARAMS, XS, engine=engine)


@pytest.mark.parametrize(
    "entry_point", mark_exhaustive(ENTRY_POINTS, always=["native", "step", "lyapunov"])
)
def test_dicts_and_named_tuples_of_params_give_equal_shapes(entry_point: str) -> None:
    if entry_point == "associative":
        pytest.skip("LSTM is not linear")
    fields = {name: leaf for name, leaf in PARAMS._asdict().items() if leaf is not None}
    want = jax.eval_shape(lambda params: ENTRY_POINTS[entry_point](CELL, params, XS), PARAMS)
    got = jax.eval_shape(lambda params: ENTRY_POINTS[entry_point](CELL, params, XS), fields)
    assert got == want


def test_nested_dicts_and_named_tuples_of_params_give_equal_results() -> None:
    to_dict = lambda params: {k: v for k, v in params._asdict().items() if v is not None}
    lstm, pair = STACK_PARAMS
    nested = [
        to_dict(lstm),
        {"forward": to_dict(pair.forward), "backward": to_dict(pair.backward)},
    ]
    run = lambda params: (jrnn.unroll(STACK, params, XS, engine="scan")[1] ** 2).sum()
    want, grads = jax.value_and_grad(run)(STACK_PARAMS)
    got, dict_grads = jax.value_and_grad(run)(nested)
    assert got == want
    np.testing.assert_array_equal(dict_grads[1]["backward"]["w_hh"], grads[1].backward.w_hh)


def test_init_carry_accepts_dicts_and_refuses_other_types() -> None:
    """It has no inputs, on which the shapes of the parameters depend."""
    to_dict = lambda params: {k: v for k, v in params._asdict().items() if v is not None}
    for cell in (CELL, GRUD(4), transforms.layer_norm(GRU(4))):
        params = cell.init(KEY, 3)
        got = jax.eval_shape(lambda p, cell=cell: cell.init_carry(p, (2,)), to_dict(params))
        assert got == jax.eval_shape(lambda p, cell=cell: cell.init_carry(p, (2,)), params)
    for wrong in ("none", "state", "dict"):
        params, _ = WRONG_PARAMS[wrong]
        with pytest.raises(TypeError, match=r"^LSTM.init_carry: params must be those of LSTM\(hid"):
            CELL.init_carry(params, (2,))


def test_init_carry_of_layers_accepts_dicts_and_refuses_other_types() -> None:
    to_dict = lambda params: {k: v for k, v in params._asdict().items() if v is not None}
    lstm, pair = STACK_PARAMS
    nested = [to_dict(lstm), {"backward": pair.backward, "forward": pair.forward}]
    run = lambda params: STACK.init_carry(params, (2,))
    assert jax.eval_shape(run, nested) == jax.eval_shape(run, STACK_PARAMS)
    for wrong in (None, STACK_PARAMS[:1], [lstm]):
        with pytest.raises(TypeError, match=r"^Stack.init_carry: params must be those of Stack"):
            STACK.init_carry(wrong, (2,))
    with pytest.raises(TypeError, match=r"^Bidirectional.init_carry: params must be .*got None"):
        STACK.layers[1].init_carry(None, (2,))
    with pytest.raises(TypeError, match=r"batch_shape must be a tuple of ints such as .*got 2$"):
        CELL.init_carry(PARAMS, 2)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("carry", "error", "message"),
    [
        (None, TypeError, r"carry must be LSTMCarry\(h, c\), as in LSTM.init_carry, got None"),
        (XS, TypeError, r"LSTM.init_carry, got an array of shape \(5, 2, 3\)"),
        (
            (XS[0], XS[0]),
            TypeError,
            "LSTM.init_carry, got a tuple of 2 arrays; pass jrnn.LSTMCarry",
        ),
        (LSTM(6).init_carry(PARAMS, (2,)), ValueError, r"leaves of shapes .*4\).*got .*6\)"),
    ],
    ids=["none", "array", "tuple", "size"],
)
def test_wrong_carry_of_a_step_raises(carry: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^LSTM.step: {message}|^LSTM.step: .*{message}"):
        CELL.step(PARAMS, carry, XS[0])


def test_params_restored_by_orbax_are_accepted(tmp_path: Any) -> None:
    ocp: Any = pytest.importorskip("orbax.checkpoint")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "params", STACK_PARAMS)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "params")
    assert not isinstance(restored[0] if isinstance(restored, list) else restored, tuple)
    got = jrnn.unroll(STACK, restored, XS, engine="scan")[1]
    np.testing.assert_array_equal(got, jrnn.unroll(STACK, STACK_PARAMS, XS, engine="scan")[1])


def test_error_for_params_of_another_layer_names_the_first_difference() -> None:
    lstm, pair = STACK_PARAMS
    with pytest.raises(ValueError, match=r"Stack.*got no 1.forward.w_ih; use Stack.init\(key, 3\)"):
        jrnn.unroll(STACK, (lstm, pair.forward), XS)
    plain, normalized = GRU(4).init(KEY, 3), transforms.layer_norm(GRU(4))
    with pytest.raises(TypeError, match=r"LayerNorm\(cell=GRU\(hidden_size=4\)\).*got GRUParams"):
        jrnn.unroll(normalized, plain, XS)


def test_params_in_other_precisions_and_vmapped_params_are_accepted() -> None:
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), PARAMS)
    run = lambda params: jrnn.unroll(CELL, params, XS)[1]
    assert jax.eval_shape(run, half).dtype == jnp.float32
    two = jax.tree.map(lambda a: jnp.stack([a, a]), PARAMS)
    assert jax.eval_shape(jax.vmap(run), two).shape == (2, 5, 2, 4)


class InitReadsKey(Integrator):
    """A cell whose `init` cannot be traced, so that its parameters are not validated."""

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> jax.Array:
        return super().init(key, input_size, dtype) * float(jax.random.uniform(key))


def test_cell_whose_init_cannot_be_traced_runs() -> None:
    cell = InitReadsKey(3)
    assert jrnn.unroll(cell, cell.init(KEY, 3), XS, engine="scan")[1].shape == XS.shape


NOT_ARRAYS = [
    ((CELL, CELL, XS), r"unroll: params must consist of arrays.*got LSTM\(hidden_size=4\)"),
    ((CELL, PARAMS, [["a"]]), "unroll: xs must consist of arrays, got 'a'"),
    ((CELL, PARAMS, np.array([["a"]])), "unroll: xs must consist of arrays, got an array .* <U1"),
    ((CELL, PARAMS, XS, "a"), "unroll: carry must consist of arrays, got 'a'"),
    ((CELL, XS, PARAMS), r"the order of the arguments is unroll\(layer, params, xs\)"),
    ((PARAMS, CELL, XS), "unroll: layer must be a cell .*, got LSTMParams of 3 arrays$"),
    ((LSTM, PARAMS, XS), r"got the class LSTM; create an instance, such as LSTM\(64\)"),
]


@pytest.mark.parametrize(("arguments", "message"), NOT_ARRAYS, ids=[m for _, m in NOT_ARRAYS])
def test_swapped_arguments_and_other_objects_raise(arguments: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        jrnn.unroll(*arguments)


@pytest.mark.parametrize(
    ("cell", "xs", "message"),
    [
        (LSTM(4), Timed(XS, XS[..., 0]), r"must be an array for LSTM\(hid.*\), got Timed\(x, dt\)"),
        (LSTM(4), Observed(XS, XS, XS), r"must be an array for .*got Observed\(x, mask, delta\)"),
        (GRUD(4), (XS, XS, XS), r"must be Observed\(x, mask, delta\) for GRUD.*a tuple of 3 array"),
        (GRUD(4), XS, r"must be Observed\(x, mask, delta\) for GRUD.*got an array"),
        (jrnn.CfC(4), Observed(XS, XS, XS), "must be an array or Timed for CfC"),
    ],
    ids=["lstm-timed", "lstm-observed", "grud-tuple", "grud-array", "cfc-observed"],
)
def test_inputs_of_another_type_raise(cell: Any, xs: Any, message: str) -> None:
    params = cell.init(KEY, 3)
    for run, name in ((jrnn.unroll, "unroll: xs"), (lyapunov, "lyapunov: xs")):
        with pytest.raises(TypeError, match=f"^{name} {message}"):
            run(cell, params, xs)
    with pytest.raises(TypeError, match=rf"^\w+.step: x {message}"):
        cell.step(params, None, jax.tree.map(lambda leaf: leaf[0], xs))


def test_nested_lists_are_converted() -> None:
    want = jrnn.unroll(CELL, PARAMS, XS)[1]
    np.testing.assert_array_equal(jrnn.unroll(CELL, PARAMS, XS.tolist())[1], want)
    got = MODULE(XS.swapaxes(0, 1).tolist(), mask=np.ones((2, 5), bool).tolist())[1]
    np.testing.assert_allclose(got, MODULE(XS.swapaxes(0, 1))[1], rtol=1e-6)
    with pytest.raises(
        ValueError, match="unroll: xs must be one array, got nested lists of unequa"
    ):
        jrnn.unroll(CELL, PARAMS, [[[1.0, 2.0, 3.0]], [[1.0, 2.0]]])


def test_scalar_arrays_are_described_by_shape_and_dtype() -> None:
    describe = jrnn.checks.describe
    assert describe(jnp.float32(1)) == "an array of shape () and dtype float32"
    assert describe(KEY) == "an array of shape () and dtype key<fry>"
    assert describe(np.array(-3)) == "array(-3)" and describe(np.int64(-3)) == "np.int64(-3)"
    with pytest.raises(ValueError, match=r"positive int, got an array of shape \(\) and dtype int"):
        LSTM(jnp.int32(8))  # pyright: ignore[reportArgumentType]


def test_mask_of_another_size_raises() -> None:
    cell = GRUD(4)
    observed = Observed(XS, XS[..., :2], XS)
    with pytest.raises(ValueError, match=r"^Observed: mask must have the shape of x, .*2, 2\)"):
        jrnn.unroll(cell, cell.init(KEY, 3), observed)


def test_messages_have_a_bounded_length() -> None:
    arrays = (np.zeros((2,) * 20), np.zeros((1,) * 60), PARAMS, [PARAMS] * 99)
    for value in ("x" * 9999, list(range(9999)), STACK, *arrays):
        assert len(jrnn.checks.describe(value)) <= jrnn.checks.MAX_DESCRIPTION
    with pytest.raises(ValueError, match="engine must be one of") as error:
        jrnn.unroll(CELL, PARAMS, XS, engine="x" * 9999)
    assert len(str(error.value)) < 400
    with pytest.raises(TypeError, match="must be an array") as error:
        jrnn.unroll(CELL, PARAMS, tuple(XS for _ in range(999)))
    assert len(str(error.value).splitlines()[0]) < 400


def test_scalar_arrays_and_default_tuples_are_described() -> None:
    describe = jrnn.checks.describe
    assert describe(np.array(3)) == "array(3)"
    assert describe(jrnn.ConvLSTM(4)) == "ConvLSTM(hidden_size=4)"
    assert describe(jrnn.Clockwork(4, periods=(1, 2))) == "Clockwork(hidden_size=4, periods=(1, 2))"


@dataclass(frozen=True)
class TwoInputs(jrnn.Elman):
    """A cell of a user with a tuple of two arrays as its input."""

    def project(self, params: Any, x: Any) -> Any:
        return super().project(params, x[0] + x[1])


@pytest.mark.parametrize("wrap", [lambda c: c, lambda c: transforms.zoneout(c, 0.1)])
def test_a_users_cell_may_have_any_inputs_also_in_a_transform(wrap: Any) -> None:
    layer = wrap(TwoInputs(4))
    params = layer.init(jax.random.key(0), 3)
    ys = jrnn.unroll(layer, params, (jnp.ones((5, 2, 3)), jnp.ones((5, 2, 3))))[1]
    assert ys.shape == (5, 2, 4)
