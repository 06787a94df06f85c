"""Validation and conversion of the arguments of cells, at construction, in `init` and in `step`."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jrnn
from jrnn import GRU, LRU, LSTM, Cell, Elman, IndRNN, MinGRU, MinLSTM, ParaGRU, ParaLSTM, checks
from jrnn.cells import REGISTRY
from tests.cells.toys import Integrator
from tests.table import Row

INVALID_SIZES = [0, -3, 2.0, True, "8", None, np.float32(2)]


@pytest.mark.parametrize("size", INVALID_SIZES, ids=repr)
@pytest.mark.parametrize("name", REGISTRY)
def test_hidden_size_must_be_a_positive_int(name: str, size: Any) -> None:
    cls: Any = REGISTRY[name]
    with pytest.raises(ValueError, match=f"{cls.__name__}: hidden_size must be a positive int"):
        cls(hidden_size=size)


def test_input_size_must_be_a_positive_int(row: Row) -> None:
    cell = row.make(2)
    for size in (0, 1.5, True):
        with pytest.raises(ValueError, match=r"\w+.init: input_size must be a positive int, got"):
            cell.init(jax.random.key(0), size)  # pyright: ignore[reportArgumentType]


def test_dtype_must_be_floating(row: Row) -> None:
    cell = row.make(2)
    for dtype in (jnp.int32, jnp.complex64, bool):
        with pytest.raises(TypeError, match="init: dtype must be floating, such as float32"):
            cell.init(jax.random.key(0), 2, dtype)


def test_float64_requires_jax_enable_x64(row: Row) -> None:
    cell = row.make(2)
    with pytest.raises(
        TypeError, match="dtype must be enabled in JAX, got float64; call .*jax_enable_x64"
    ):
        cell.init(jax.random.key(0), 2, jnp.float64)
    with jax.enable_x64(True):
        params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 2, jnp.float64))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float64)}


def test_wrong_input_size_raises(row: Row) -> None:
    cell = row.make(2)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 3))

    def step(params: Any, x: Any, leading: tuple[int, ...]) -> Any:
        return cell.step(params, cell.init_carry(params, leading), x)

    message = r"\w+: x must have a last axis of 3 .*, got shape \(4, .*2\)"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda p: step(p, cell.inputs(2, (4,)), (4,)), params)
    with pytest.raises((ValueError, TypeError), match=r"got shape \(\)|got an array"):
        jax.eval_shape(lambda p: step(p, jnp.ones(()), ()), params)


def test_init_of_custom_cell_validates_its_arguments() -> None:
    # The base class validates, not the cell.
    init: Any = Integrator(2).init
    key = jax.random.key(0)
    for size in (0, -1, 2.0, True, "2"):
        with pytest.raises(ValueError, match=r"Integrator.init: input_size must be a positive int"):
            init(key, size)
    for bad_key in (0, None, jnp.zeros(2), jax.random.split(key)):
        with pytest.raises(TypeError, match=r"Integrator.init: key must be one key such as jax.ra"):
            init(bad_key, 2)
    for dtype in (jnp.int32, jnp.complex64, bool):
        with pytest.raises(TypeError, match=r"Integrator.init: dtype must be floating, such"):
            init(key, 2, dtype)
    with pytest.raises(
        TypeError, match=r"Integrator.init: dtype must be enabled in JAX, got float64"
    ):
        init(key, input_size=2, dtype=jnp.float64)


def test_init_accepts_typed_and_legacy_keys_and_names_of_dtypes() -> None:
    cell = Integrator(2)
    for key in (jax.random.key(0), jax.random.PRNGKey(0), jax.random.key(0, impl="rbg")):
        assert cell.init(key, 2).dtype == jnp.float32
        assert jax.eval_shape(lambda key: cell.init(key, 2), key).dtype == jnp.float32
    assert cell.init(jax.random.key(0), 2, "bfloat16").dtype == jnp.bfloat16


def test_init_of_subclass_may_call_init_of_base_class() -> None:
    class Shifted(Integrator):
        def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> jax.Array:
            return super().init(key, input_size, dtype) + 1

    assert Shifted(2).init(jax.random.key(0), 3) == 1
    with pytest.raises(ValueError, match=r"Shifted.init: input_size must be a positive int, got 0"):
        Shifted(2).init(jax.random.key(0), 0)


@pytest.mark.parametrize("t_max", [2, 0, 10.0, True, "9"])
@pytest.mark.parametrize("cls", [LSTM, GRU, MinGRU, MinLSTM, ParaGRU, ParaLSTM])
def test_t_max_must_be_an_int_of_at_least_three(cls: Any, t_max: Any) -> None:
    message = f"{cls.__name__}: t_max must be an int of at least 3 steps, got"
    with pytest.raises(ValueError, match=message):
        cls(4, t_max=t_max)


@pytest.mark.parametrize("bias", [float("nan"), float("inf"), "1", None, True])
@pytest.mark.parametrize(
    "cls", [cls for cls in REGISTRY.values() if "forget_bias" in inspect.signature(cls).parameters]
)
def test_forget_bias_must_be_a_finite_number(cls: Any, bias: Any) -> None:
    with pytest.raises(ValueError, match=f"{cls.__name__}: forget_bias must be a finite number"):
        cls(4, forget_bias=bias)


@pytest.mark.parametrize("cls", [LSTM, MinLSTM, ParaLSTM])
def test_t_max_with_forget_bias_raises(cls: Any) -> None:
    with pytest.raises(ValueError, match="t_max=9 determines the forget bias.*remove forget_bias"):
        cls(4, t_max=9, forget_bias=2.0)


@pytest.mark.parametrize("t_max", [0, -1, 10.0, True, "9"])
def test_indrnn_t_max_must_be_a_positive_int(t_max: Any) -> None:
    with pytest.raises(ValueError, match="IndRNN: t_max must be a positive int, got"):
        IndRNN(4, t_max=t_max)


def test_indrnn_suggests_closest_activation() -> None:
    message = "IndRNN: activation must be one of .*, got 'tahn'; did you mean 'tanh'"
    with pytest.raises(ValueError, match=message):
        IndRNN(4, activation="tahn")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("cls", [MinGRU, MinLSTM])
@pytest.mark.parametrize("log_space", [None, 1, "yes"])
def test_log_space_must_be_a_bool(cls: type[MinGRU | MinLSTM], log_space: Any) -> None:
    message = f"{cls.__name__}: log_space must be True or False, got"
    with pytest.raises(ValueError, match=message):
        cls(4, log_space=log_space)


@pytest.mark.parametrize(
    ("r_min", "r_max"),
    [(-0.1, 1.0), (0.5, 0.5), (0.9, 0.1), (0.0, 1.1), (float("nan"), 1.0), ("0.5", 1.0)],
)
def test_lru_radii_must_be_increasing_within_unit_circle(r_min: Any, r_max: float) -> None:
    message = "LRU: r_min and r_max must satisfy 0 <= r_min < r_max <= 1, got r_min="
    with pytest.raises(ValueError, match=message):
        LRU(4, r_min=r_min, r_max=r_max)


@pytest.mark.parametrize("max_phase", [0.0, -1.0, float("inf"), float("nan"), "1"])
def test_lru_max_phase_must_be_finite_and_positive(max_phase: Any) -> None:
    with pytest.raises(ValueError, match="LRU: max_phase must be a finite angle above 0 in .*got"):
        LRU(4, max_phase=max_phase)


def test_elman_suggests_closest_activation() -> None:
    message = "Elman: activation must be one of tanh, relu, sigmoid, got 'rleu'; did you .* 'relu'"
    with pytest.raises(ValueError, match=message):
        Elman(4, activation="rleu")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="got 3$"):
        Elman(4, activation=3)  # pyright: ignore[reportArgumentType]


def test_abstract_cell_cannot_be_instantiated() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Cell()  # pyright: ignore[reportAbstractUsage]


def test_suggestion_ignores_case() -> None:
    assert checks.suggestion("GRUU", ["lstm", "gru"]) == "; did you mean 'gru'?"
    assert checks.suggestion("transformer", ["lstm", "gru"]) == ""


@pytest.mark.parametrize("rate", [-0.1, 1.0, 2, float("nan")])
def test_rate_must_be_at_least_zero_and_below_one(rate: float) -> None:
    with pytest.raises(ValueError, match=r"dropout: rate must be in \[0, 1\), got"):
        checks.rate("dropout", "rate", rate)
    checks.rate("dropout", "rate", 0.0)


def test_numpy_scalars_are_converted_to_python() -> None:
    cell: Any = LSTM(np.int64(8), forget_bias=np.float32(1), peepholes=np.bool_(True))
    assert repr(cell) == repr(LSTM(8, peepholes=True)) and hash(cell) == hash(
        LSTM(8, peepholes=True)
    )
    assert type(cell.hidden_size) is int and cell.peepholes is True
    assert repr(jrnn.Clockwork(4, periods=(np.int64(1), np.int64(2)))).count("np.") == 0  # pyright: ignore
    engine: Any = jrnn.Newton(max_steps=np.int32(5), tol=np.float64(1e-3))
    assert repr(engine) == repr(jrnn.Newton(max_steps=5, tol=1e-3))
    wrapped: Any = jrnn.transforms.dropout(GRU(4), x=np.float64(0.5), each_step=np.bool_(True))
    assert type(wrapped.x) is float and wrapped.each_step is True
    params: Any = GRU(4).init(jax.random.key(0), np.int32(3))  # pyright: ignore[reportArgumentType]
    assert params.w_ih.shape == (3, 12)


def test_options_of_cells_are_keyword_only() -> None:
    for cls in REGISTRY.values():
        with pytest.raises(TypeError, match="only hidden_size may be passed by position, got 2"):
            cls(3, 8)


@pytest.mark.parametrize("engine", ["scan", "native"])
@pytest.mark.parametrize("cls", [LSTM, GRU, Elman])
def test_cell_without_biases_equals_one_with_zero_biases(cls: Any, engine: str) -> None:
    if engine == "native":
        pytest.importorskip("jrnn._kernels", reason="the C++ kernels are not built")
    params = cls(4).init(jax.random.key(0), 3)
    params = params._replace(b=0 * params.b)
    without_names = {"b": None, "b_hn": None} if cls is GRU else {"b": None}
    without = params._replace(**without_names)
    assert jax.tree.structure(cls(4, bias=False).init(jax.random.key(0), 3)) == jax.tree.structure(
        without
    )
    xs = jax.random.normal(jax.random.key(1), (5, 2, 3))

    def differentiate(cell: Cell, params: Any) -> Any:
        run = lambda params: (jrnn.unroll(cell, params, xs, engine=engine)[1] ** 2).sum()
        return jax.value_and_grad(run)(params)

    loss, grads = differentiate(cls(4), params)
    got_loss, got_grads = differentiate(cls(4, bias=False), without)
    np.testing.assert_allclose(got_loss, loss, rtol=1e-6)
    np.testing.assert_allclose(got_grads.w_hh, grads.w_hh, rtol=1e-5, atol=1e-6)


def test_options_that_need_biases_raise_without_them() -> None:
    with pytest.raises(ValueError, match="LSTM: forget_bias=2.0 requires biases, got bias=False"):
        LSTM(4, bias=False, forget_bias=2.0)
    with pytest.raises(ValueError, match="LSTM: t_max=9 requires biases"):
        LSTM(4, bias=False, t_max=9)
    with pytest.raises(ValueError, match="GRU: t_max=9 requires biases"):
        GRU(4, bias=False, t_max=9)


@pytest.mark.parametrize("option", ["reset_after", "bias"])
def test_options_of_the_gru_must_be_bools(option: str) -> None:
    options: dict[str, Any] = {option: "no"}
    with pytest.raises(ValueError, match=f"GRU: {option} must be True or False, got 'no'"):
        GRU(4, **options)


def test_unknown_role_of_a_tap_raises() -> None:
    with pytest.raises(ValueError, match="tap: role must be one of candidate, .*'candidate'"):
        jrnn.tap("n", jnp.ones(2), role="canddate")
