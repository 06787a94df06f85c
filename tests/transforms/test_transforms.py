"""Transforms: derived properties, error messages, and values."""

import typing
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jrnn
from jrnn import (
    GRU,
    LRU,
    LSTM,
    Diagonal,
    Fused,
    Layer,
    MinGRU,
    ParaLSTM,
    Scan,
    bidirectional,
    stack,
)
from jrnn.cells.gru import GRUGates
from jrnn.structure import recurrence_kind, update_is_elementwise
from jrnn.testing import check_cell
from jrnn.transforms import (
    REGISTRY,
    Wrapper,
    clip,
    dropout,
    highway,
    layer_norm,
    learned_carry,
    projection,
    residual,
    weight_drop,
    zoneout,
)
from tests.cells.toys import LearnedInitialCarry
from tests.helpers import assert_close, random_batch, random_params
from tests.oracles.common import sigmoid
from tests.oracles.lstm import lstm, lstm_init_carry

SIZE = 3
XS = np.random.default_rng(0).normal(size=(7, 4, SIZE)).astype(np.float32)
RESETS = np.random.default_rng(1).random((7, 4)) < 0.3


def is_elementwise(cell: jrnn.Cell) -> bool:
    """Returns whether `update` is elementwise."""
    params = random_params(cell, 1, SIZE, np.float32)
    carry, x = cell.init_carry(params, ()), jnp.ones(SIZE)
    z, u = cell.project(params, x), cell.recur(params, carry)
    return update_is_elementwise(cell, params, carry, z, u)


def coefficients_of(cell: jrnn.Cell) -> Any:
    """Returns the coefficients of one step, or None."""
    params = random_params(cell, 1, SIZE, np.float32)
    return cell.coefficients(params, cell.project(params, jnp.ones(SIZE)))


def test_transforms_keep_or_change_properties_of_the_inner_cell() -> None:
    linear = residual(zoneout(dropout(layer_norm(MinGRU(SIZE)), x=0.1), h=0.1))
    assert recurrence_kind(linear, SIZE) == "linear"
    assert is_elementwise(linear) and not is_elementwise(layer_norm(LSTM(SIZE)))
    assert isinstance(coefficients_of(linear), Diagonal)
    assert (
        recurrence_kind(layer_norm(ParaLSTM(SIZE), normalize_cell_state=False), SIZE)
        == "block_diagonal"
    )
    assert recurrence_kind(clip(MinGRU(SIZE), carry=1.0), SIZE) == "diagonal"
    assert coefficients_of(clip(MinGRU(SIZE), carry=1.0)) is None
    assert zoneout(LSTM(SIZE), h=0.1).kernel_name() is None
    assert isinstance(coefficients_of(zoneout(MinGRU(SIZE, log_space=True), h=0.1)), Diagonal)
    assert coefficients_of(projection(LRU(SIZE), 2)) is not None
    assert not residual(LSTM(SIZE)).is_stochastic and not clip(LSTM(SIZE), carry=1.0).is_stochastic
    assert residual(dropout(LSTM(SIZE))).is_stochastic and weight_drop(LSTM(SIZE)).is_stochastic


@pytest.mark.parametrize("transform", [residual, highway])
def test_residual_and_highway_raise_for_different_sizes(transform: Any) -> None:
    with pytest.raises(
        ValueError,
        match=r"cell must have outputs of size input_size=2, got size 3; set hidden_size=2",
    ):
        transform(LSTM(SIZE)).init(jax.random.key(0), 2)


def test_residual_and_highway_equal_their_equations(x64: None) -> None:
    for transform in (residual, highway):
        cell = transform(LSTM(SIZE))
        params = random_params(cell, 1, SIZE)
        xs = XS.astype(np.float64)
        got = jrnn.unroll(cell, params, xs)[1]
        inner_params = params if transform is residual else params.cell
        for b in range(4):
            carry = lstm_init_carry(inner_params)
            for t in range(7):
                carry, y = lstm(inner_params, carry, xs[t, b])
                if transform is residual:
                    expected = y + xs[t, b]
                else:
                    gate = sigmoid(params.w_t.T @ xs[t, b] + params.b_t)
                    expected = gate * y + (1 - gate) * xs[t, b]
                np.testing.assert_allclose(got[t, b], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cell", [residual(GRU(SIZE)), highway(dropout(MinGRU(SIZE), x=0.3))])
def test_residual_and_highway_pass_check_cell(cell: jrnn.Cell) -> None:
    check_cell(cell, input_size=SIZE)


def test_layer_norm_raises_for_unsupported_cells() -> None:
    with pytest.raises(
        ValueError, match=r"cell must have an elementwise update, got GRU\(.*a matrix product"
    ):
        layer_norm(GRU(SIZE, reset_after=False))
    for cell in (learned_carry(LSTM(SIZE)), jrnn.CTRNN(SIZE, sigma=1.0)):
        with pytest.raises(
            ValueError,
            match="cell must be deterministic and not a transform, got .*apply layer_norm",
        ):
            layer_norm(cell)
    for cell in (jrnn.MinimalRNN(SIZE), LearnedInitialCarry(2)):
        with pytest.raises(
            ValueError, match=rf"cell must have gates W x \+ b .* got {type(cell).__name__}\("
        ):
            layer_norm(cell)


def test_layer_norm_is_invariant_to_weight_scale(x64: None) -> None:
    cell = layer_norm(LSTM(SIZE), epsilon=1e-12)
    params = random_params(cell, 1, SIZE)
    batch = random_batch(cell, params, 2, 5, 2)
    inner_params = params.cell._replace(w_ih=3 * params.cell.w_ih, w_hh=0.5 * params.cell.w_hh)
    scaled = params._replace(cell=inner_params)
    got, expected = (jrnn.unroll(cell, p, batch.xs, batch.carry) for p in (scaled, params))
    assert_close(got, expected, 1e-8)


def test_learned_carry_has_gradients_and_must_be_real() -> None:
    cell = learned_carry(GRU(SIZE))
    params = random_params(cell, 1, SIZE, np.float32)
    grads = jax.grad(lambda p: jrnn.unroll(cell, p, XS, resets=RESETS)[1].sum())(params)
    assert (np.asarray(grads.carry) != 0).all()
    with pytest.raises(
        TypeError, match="cell must have a carry of real floating arrays, got .*complex64"
    ):
        learned_carry(LRU(SIZE)).init(jax.random.key(0), 2)


@pytest.mark.parametrize("engine", [Scan(), Fused(), Fused(chunk=2, remat=True)])
def test_clip_limits_the_full_cotangent_at_each_step(engine: Any) -> None:
    # h' = relu(2 h + x), whose derivatives with respect to h and x are 2 and 1 for positive values.
    plain = jrnn.Elman(1, activation="relu")
    params = plain.init(jax.random.key(0), 1)._replace(
        w_ih=jnp.ones((1, 1)), w_hh=2 * jnp.ones((1, 1)), b=jnp.zeros(1)
    )
    xs, initial = jnp.ones((5, 1, 1)), jnp.ones((1, 1))
    ct_ys, ct_final = np.array([0.5, -4.0, 0.25, 7.0, 1.0]), 0.25

    def gradients(cell: Any) -> Any:
        def loss(carry: Any, xs: Any) -> jax.Array:
            final, ys = jrnn.unroll(cell, params, xs, carry, engine=engine)
            return (ct_ys * ys[:, 0, 0]).sum() + ct_final * final.sum()

        return jax.grad(loss, argnums=(0, 1))(initial, xs)

    for cell, limit in ((plain, np.inf), (clip(plain, gradient=1.5), 1.5)):
        by_carry, by_xs = gradients(cell)
        cotangent = ct_final
        for t in reversed(range(5)):
            cotangent = np.clip(cotangent + ct_ys[t], -limit, limit)
            np.testing.assert_allclose(by_xs[t], [[cotangent]])
            cotangent = 2 * cotangent
        np.testing.assert_allclose(by_carry, [[cotangent]])


class ReturnsCarry(jrnn.GRU):
    """A GRU whose output is the carry itself."""

    def readout(self, params: Any, carry: Any, z: Any) -> Any:
        return carry


class ReturnsProduct(jrnn.GRU):
    """A GRU whose output and new carry are different arrays with equal values."""

    def update(self, params: Any, carry: Any, z: Any, u: Any) -> Any:
        return super().update(params, carry, z, u) * 1

    def readout(self, params: Any, carry: Any, z: Any) -> Any:
        return carry * 1


@pytest.mark.parametrize("key", [None, jax.random.key(1)], ids=["mean", "sampled"])
def test_transforms_do_not_depend_on_array_identity(key: Any) -> None:
    params = random_params(GRU(SIZE), 1, SIZE, np.float32)
    for transform in (
        lambda cell: zoneout(cell, h=0.5),
        lambda cell: clip(cell, carry=0.05),
        lambda cell: clip(zoneout(cell, h=0.5), carry=0.3, gradient=0.1),
    ):

        def run(cell: jrnn.Cell, params: Any) -> jax.Array:
            return jrnn.unroll(cell, params, XS, key=key)[1].sum()

        cells = [transform(cell(SIZE)) for cell in (ReturnsProduct, ReturnsCarry, GRU)]
        product, carry, expected = (jax.value_and_grad(partial(run, c))(params) for c in cells)
        assert_close((product, carry), (expected, expected), 1e-6)
    carry, y = zoneout(ReturnsProduct(SIZE), h=0.5).step(params, np.full(SIZE, 0.7), XS[0, 0])
    np.testing.assert_array_equal(carry, y)


def test_newton_raises_for_clipped_gradients() -> None:
    cell = clip(GRU(SIZE), gradient=1.0)
    params = random_params(cell, 1, SIZE, np.float32)
    with pytest.raises(TypeError, match="must have forward-mode derivatives.*use engine='fused'"):
        jrnn.unroll(cell, params, XS, engine="newton")
    check_cell(clip(GRU(SIZE), gradient=100.0))


def test_wrapper_defines_every_member_of_the_contract() -> None:
    # A new member must be defined in `Wrapper`, or added to this set of members that a transform
    # does not take from its inner cell.
    not_forwarded = {"argument_hints", "kernel_name", "output_directions", "output_sizes"}
    final = lambda value: getattr(getattr(value, "fget", value), "__final__", False)
    for base in (Layer, jrnn.Cell):
        for name, value in vars(base).items():
            if not name.startswith("_") and not final(vars(jrnn.Cell).get(name, value)):
                assert name in vars(Wrapper) or name in not_forwarded, name
    assert typing.get_type_hints(Wrapper)["cell"] is jrnn.Cell


@pytest.mark.parametrize("layer", [stack([LSTM(SIZE)]), bidirectional(LSTM(SIZE))])
@pytest.mark.parametrize("name", REGISTRY)
def test_transforms_raise_for_layers(name: str, layer: Layer) -> None:
    with pytest.raises(TypeError, match=rf"{REGISTRY[name].__name__}: cell must be .* cells in it"):
        make_transform(name)(layer)


def test_transforms_raise_for_a_coupled_carry() -> None:
    for cell in (jrnn.CTRNN(SIZE), jrnn.SLSTM(SIZE)):
        for transform in (zoneout, learned_carry, lambda cell: clip(cell, carry=1.0)):
            with pytest.raises(
                ValueError, match="cell must have a carry of independent arrays for"
            ):
                transform(cell)
        check_cell(clip(cell, gradient=100.0))


def test_cells_with_heads_accept_an_empty_batch() -> None:
    for cell in (LSTM(4, heads=2), GRU(4, heads=2), jrnn.SLSTM(4, heads=2), jrnn.MLSTM(4, heads=2)):
        params = random_params(cell, 1, SIZE, np.float32)
        assert jrnn.unroll(cell, params, np.zeros((3, 0, SIZE), np.float32))[1].shape == (3, 0, 4)


def test_layer_norm_in_float16_is_close_to_float32() -> None:
    cell = layer_norm(LSTM(4))
    params = random_params(cell, 1, 4, np.float32)
    xs = 300 * np.random.default_rng(3).normal(size=(3, 2, 4)).astype(np.float16)
    got = jrnn.unroll(cell, jax.tree.map(lambda w: w.astype(np.float16), params), xs)[1]
    expected = jrnn.unroll(cell, params, xs.astype(np.float32))[1]
    assert_close(got.astype(np.float32), expected, 2e-2)


def test_clip_raises_for_a_complex_carry() -> None:
    cell = clip(LRU(SIZE), carry=1.0)
    with pytest.raises(
        TypeError, match="Clip: cell must have a real carry, got LRU.* with a complex carry"
    ):
        jrnn.unroll(cell, random_params(cell, 1, SIZE, np.float32), XS)


def make_transform(name: str) -> Any:
    """Returns the transform with its required arguments, as `cell -> cell`."""
    return partial(REGISTRY[name], size=2) if name == "projection" else REGISTRY[name]


@pytest.mark.parametrize("name", REGISTRY)
def test_transforms_raise_for_a_class(name: str) -> None:
    with pytest.raises(
        TypeError, match=r"must be a cell such .*, got the class LSTM; create an inst"
    ):
        make_transform(name)(LSTM)


def test_invalid_arguments_raise() -> None:
    with pytest.raises(ValueError, match=r"Zoneout: h must be in \[0, 1\), got 1"):
        zoneout(LSTM(2), h=1.0)
    with pytest.raises(ValueError, match=r"Zoneout: c must be in \[0, 1\), got '0.5'"):
        zoneout(LSTM(2), c="0.5")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"Dropout: candidate must be in \[0, 1\), got -0.1"):
        dropout(LSTM(2), candidate=-0.1)
    with pytest.raises(ValueError, match="Highway: bias must be a finite number, got nan"):
        highway(LSTM(2), bias=float("nan"))
    with pytest.raises(ValueError, match=r"WeightDrop: rate must be in \[0, 1\), got 1.5"):
        weight_drop(LSTM(2), rate=1.5)
    for names in ("w_hh", ["w_hh"], (1,)):
        with pytest.raises(ValueError, match="WeightDrop: names must be a tuple of names such as"):
            weight_drop(LSTM(2), names=names)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="Projection: size must be a positive int, got 0"):
        projection(LSTM(2), size=0)
    with pytest.raises(
        ValueError, match="Clip: carry or gradient must be a number, got None for both"
    ):
        clip(LSTM(2))
    with pytest.raises(ValueError, match="Clip: carry must be a finite number above 0, got -1"):
        clip(LSTM(2), carry=-1)


def test_repr_of_transformed_cells_can_be_evaluated() -> None:
    cell = residual(zoneout(layer_norm(LSTM(4)), h=0.1))
    assert eval(repr(cell), dict(vars(jrnn)) | dict(vars(jrnn.transforms))) == cell
    assert hash(cell) == hash(eval(repr(cell), dict(vars(jrnn)) | dict(vars(jrnn.transforms))))


@dataclass(frozen=True)
class DictGates(GRU):
    """A GRU whose `project` returns gates in a different order than the columns of the bias."""

    def project(self, params: Any, x: Any) -> Any:
        return super().project(params, x)._asdict()

    def update(self, params: Any, carry: Any, z: Any, u: Any) -> Any:
        return super().update(params, carry, GRUGates(**z), u)


def test_layer_norm_matches_biases_to_gates_by_name() -> None:
    params = layer_norm(GRU(SIZE), per_gate=True).init(jax.random.key(0), SIZE)
    b = jnp.linspace(-1, 1, 3 * SIZE)
    params = params._replace(cell=params.cell._replace(b=b))
    run = lambda cell: jrnn.unroll(layer_norm(cell, per_gate=True), params, XS, engine="scan")[1]
    np.testing.assert_allclose(run(DictGates(SIZE)), run(GRU(SIZE)), atol=1e-6)


def test_weight_drop_raises_for_unknown_names_when_a_key_is_given() -> None:
    cell = weight_drop(jrnn.Elman(SIZE), 0.5, names=("none",))
    params = jrnn.Elman(SIZE).init(jax.random.key(0), 3)
    with pytest.raises(ValueError, match="names must contain a parameter of Elman.*'none'"):
        jrnn.unroll(cell, params, jnp.ones((2, 1, 3)), key=jax.random.key(1))
