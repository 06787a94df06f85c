"""Tests of `lyapunov`, against NumPy loops over full Jacobians and against known exponents."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jrnn
from jrnn.analysis import LyapunovSpectrum, lyapunov
from jrnn.analysis.lyapunov import _initial_q
from tests.cells.toys import Counter, Leaky, Noisy, Timed
from tests.helpers import (
    Batch,
    Scenario,
    assert_close,
    random_batch,
    random_params,
    scan_order,
    select_sequence,
)
from tests.table import CELLS, Row

T, B, INPUT, HIDDEN = 9, 5, 2, 3


# --- reference -----------------------------------------------------------------------------------


def flatten(carry: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(carry)])


def jacobian(step: Any, carry: Any, eps: float = 1e-6) -> np.ndarray:
    """Returns the Jacobian of the new carry with respect to the old one, by central differences."""
    leaves, treedef = jax.tree.flatten(carry)
    columns = []
    for k, leaf in enumerate(leaves):
        for index in np.ndindex(leaf.shape):
            perturbed = []
            for sign in (1, -1):
                shifted = [np.array(a) for a in leaves]
                shifted[k][index] += sign * eps
                perturbed.append(flatten(step(jax.tree.unflatten(treedef, shifted))))
            columns.append((perturbed[0] - perturbed[1]) / (2 * eps))
    return np.stack(columns, axis=-1)


def reference(row: Row, scenario: Scenario, params: Any, batch: Batch, skip: int) -> Any:
    """Loops over sequences; returns exponents, steps, history, final carries, Jacobians and ranks.

    The Jacobians are those of the steps that are not skipped. The rank of a sequence is the lowest
    rank of the Jacobians of all its steps; exponents after the first `rank` are minus infinity or
    rounding errors.
    """
    initial_carry = row.init_carry(params)
    size = len(flatten(initial_carry))
    initial_q = np.asarray(_initial_q(size, size, 1, jnp.dtype("float64")))[0]
    exponents, steps, history, jacobians = [], [], np.full(batch.xs.shape[:2], np.nan), []
    carries, ranks = [], np.full(B, size)
    for b in range(B):
        carry = select_sequence(batch.carry, b) if scenario.carry else initial_carry
        q, num_to_skip = initial_q, skip
        logs: list[Any] = []
        jacobians.append([])
        order = scan_order(scenario, batch, b)
        for t in order:
            if scenario.resets and batch.resets[t, b]:
                carry, q, num_to_skip = initial_carry, initial_q, max(skip, 1)
            j = jacobian(lambda c, t=t, b=b: row.step(params, c, batch.xs[t, b])[0], carry)
            q, r = np.linalg.qr(j @ q)
            ranks[b] = min(ranks[b], np.linalg.matrix_rank(j))
            carry, _ = row.step(params, carry, batch.xs[t, b])
            if num_to_skip == 0:
                with np.errstate(divide="ignore"):
                    logs.append(np.log(np.abs(np.diagonal(r))))
                jacobians[b].append(j)
            num_to_skip = max(num_to_skip - 1, 0)
            history[t, b] = np.mean(logs, axis=0)[0] if logs else np.nan
        if not scenario.reverse and order:
            history[len(order) :, b] = history[order[-1], b]
        mean = np.mean(logs, axis=0) if logs else np.full(size, np.nan)
        exponents.append(mean)
        steps.append(len(logs))
        carries.append(carry)
    carry = jax.tree.map(lambda *leaves: np.stack(leaves), *carries)
    return np.stack(exponents), np.array(steps), history, carry, jacobians, ranks


def make_example(row: Row, seed: int = 3, steps: int = T) -> tuple[Any, Any, Batch]:
    cell = row.make(HIDDEN)
    params = random_params(cell, seed=seed, input_size=INPUT)
    if row is CELLS["elman-relu"]:
        params = params._replace(b=params.b + 4)  # so that relu is active at all steps
    batch = random_batch(cell, params, seed=seed + 1, steps=steps, batch=B)
    return cell, params, batch


# --- cells with known exponents ------------------------------------------------------------------


@dataclass(frozen=True)
class SingleArrayCell(jrnn.Cell):
    """The base class of cells whose parameters are one array, and whose initial carry is 0.3."""

    hidden_size: int

    def init(self, key: Any, input_size: int, dtype: Any = jnp.float32) -> Any:
        return jnp.zeros(self.param_shape, dtype)

    @property
    def param_shape(self) -> tuple[int, ...]:
        return ()

    def init_carry(self, params: Any, batch_shape: tuple[int, ...]) -> Any:
        return jnp.full((*batch_shape, self.hidden_size), 0.3, params.dtype)

    def project(self, params: Any, x: Any) -> Any:
        return x

    def recur(self, params: Any, carry: Any) -> Any:
        return ()

    def update(self, params: Any, carry: Any, z: Any, u: Any) -> Any:
        raise NotImplementedError


class Henon(SingleArrayCell):
    """x' = 1 - a·x² + y, y' = b·x."""

    @property
    def param_shape(self) -> tuple[int, ...]:
        return (2,)

    def update(self, params: Any, carry: Any, z: Any, u: Any) -> Any:
        x, y = carry[..., 0], carry[..., 1]
        return jnp.stack([1 - params[0] * x**2 + y + z[..., 0], params[1] * x], axis=-1)


class Logistic(SingleArrayCell):
    """x' = r·x·(1 - x)."""

    def update(self, params: Any, carry: Any, z: Any, u: Any) -> Any:
        return params * carry * (1 - carry) + z


class Linear(SingleArrayCell):
    """h' = A h + x."""

    @property
    def param_shape(self) -> tuple[int, ...]:
        return (self.hidden_size, self.hidden_size)

    def recur(self, params: Any, carry: Any) -> Any:
        return carry @ params.T

    def update(self, params: Any, carry: Any, z: Any, u: Any) -> Any:
        return z + u


update_calls = []  # one entry for each trace of `Multiply.update`


class Multiply(SingleArrayCell):
    """h' = x * h, whose derivative is the input."""

    def update(self, params: Any, carry: Any, z: Any, u: Any) -> Any:
        update_calls.append(self)
        return z * carry


class ComplexLinear(SingleArrayCell):
    """s' = a·s + c·conj(s) + x, with a complex carry."""

    @property
    def param_shape(self) -> tuple[int, ...]:
        return (4,)

    def init_carry(self, params: Any, batch_shape: tuple[int, ...]) -> Any:
        return jnp.full((*batch_shape, 1), 0.3 + 0.1j, jnp.result_type(params.dtype, jnp.complex64))

    def update(self, params: Any, carry: Any, z: Any, u: Any) -> Any:
        a, c = jax.lax.complex(params[0], params[1]), jax.lax.complex(params[2], params[3])
        return a * carry + c * jnp.conj(carry) + z

    def readout(self, params: Any, carry: Any, z: Any) -> Any:
        return carry.real


def test_henon_map_has_published_exponents(x64: None) -> None:
    spectrum = lyapunov(Henon(2), np.array([1.4, 0.3]), np.zeros((20_000, 2, 1)), skip=100)
    np.testing.assert_allclose(spectrum.exponents, [[0.41922, -1.62319]] * 2, rtol=0.01)
    np.testing.assert_allclose(spectrum.exponents.sum(axis=-1), np.log(0.3), rtol=1e-9)
    np.testing.assert_allclose(spectrum.dimension, 1.258, rtol=0.005)
    np.testing.assert_allclose(spectrum.entropy, spectrum.largest_exponent)
    np.testing.assert_array_equal(spectrum.steps, 19_900)
    assert spectrum.exponents.dtype == np.float64


def test_logistic_map_has_exponent_ln_2(x64: None) -> None:
    spectrum = lyapunov(Logistic(1), np.array(4.0), np.zeros((20_000, 1, 1)), skip=10)
    np.testing.assert_allclose(spectrum.exponents, np.log(2), rtol=0.01)
    np.testing.assert_allclose(spectrum.history[-1], np.log(2), rtol=0.01)
    np.testing.assert_allclose(spectrum.dimension, 1)


def test_exponents_of_a_linear_cell_are_log_moduli_of_eigenvalues(x64: None) -> None:
    basis = np.random.default_rng(0).normal(size=(4, 4))
    rotation = 0.6 * np.array([[np.cos(1), -np.sin(1)], [np.sin(1), np.cos(1)]])
    a = np.zeros((4, 4))
    a[0, 0], a[1:3, 1:3], a[3, 3] = -0.9, rotation, 0.1
    a = basis @ a @ np.linalg.inv(basis)
    spectrum = lyapunov(Linear(4), a, np.zeros((3000, 1, 4)), skip=100)
    np.testing.assert_allclose(spectrum.exponents[0], np.log([0.9, 0.6, 0.6, 0.1]), atol=2e-3)
    assert spectrum.dimension == 0 and spectrum.entropy == 0


@pytest.mark.parametrize("lower", [False, True])
def test_largest_exponent_of_a_triangular_matrix_is_the_log_of_its_largest_eigenvalue(
    lower: bool, x64: None
) -> None:
    a = np.diag([0.2, 0.9, 0.5]) + np.triu(np.ones((3, 3)), 1)
    spectrum = lyapunov(
        Linear(3), a.T if lower else a, np.zeros((500, 1, 3)), num_exponents=1, skip=100
    )
    np.testing.assert_allclose(spectrum.largest_exponent, np.log(0.9), atol=1e-3)


def test_complex_carry_has_two_exponents_per_unit(x64: None) -> None:
    params = np.array([0.5, 0.3, 0.7, -0.2])
    a, c = params[0] + 1j * params[1], params[2] + 1j * params[3]
    columns = [a * s + c * np.conj(s) for s in (1, 1j)]
    j = np.array([[s.real for s in columns], [s.imag for s in columns]])
    moduli = np.sort(np.abs(np.linalg.eigvals(j)))[::-1]
    spectrum = lyapunov(ComplexLinear(1), params, np.zeros((500, 2, 1)), skip=200)
    np.testing.assert_allclose(spectrum.exponents, [np.log(moduli)] * 2, atol=1e-6)
    assert spectrum.carry.dtype == np.complex128


def test_pytree_inputs_and_integer_carry_have_known_exponents(x64: None, reverse: bool) -> None:
    """J_t = exp(-dt) I, so each exponent is the mean of -dt over the steps that are not skipped."""
    rng = np.random.default_rng(1)
    dt, resets = rng.uniform(0.1, 2, (T, 3)), rng.random((T, 3)) < 0.2
    lengths, skip = np.array([T, 5, 0]), 1
    xs = Timed(jnp.asarray(rng.normal(size=(T, 3, INPUT))), jnp.asarray(dt))
    params = rng.normal(size=(INPUT, HIDDEN))
    spectrum = lyapunov(
        Leaky(HIDDEN), params, xs, skip=skip, lengths=lengths, resets=resets, reverse=reverse
    )
    for b in range(3):
        num_to_skip, rates = skip, []
        for t in list(range(lengths[b]))[:: -1 if reverse else 1]:
            num_to_skip = 1 if resets[t, b] else num_to_skip
            rates += [-dt[t, b]] if num_to_skip == 0 else []
            num_to_skip = max(num_to_skip - 1, 0)
        assert spectrum.steps[b] == len(rates)
        mean = np.mean(rates) if rates else np.nan
        np.testing.assert_allclose(spectrum.exponents[b], [mean] * HIDDEN, rtol=1e-12)


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scenario", "skip"),
    [(Scenario(False, False, False), 0), (Scenario(), 2), (Scenario(reverse=True), 1)],
    ids=["unmasked", "masked", "masked-reverse"],
)
def test_exponents_equal_a_loop_over_full_jacobians(
    kind: Row, scenario: Scenario, skip: int, x64: None
) -> None:
    cell, params, batch = make_example(kind)
    if any(np.iscomplexobj(leaf) for leaf in jax.tree.leaves(batch.carry)):
        pytest.skip("the loop supports real carries only; complex ones have a separate test")
    spectrum = lyapunov(
        cell,
        params,
        batch.xs,
        batch.carry if scenario.carry else None,
        skip=skip,
        lengths=batch.lengths if scenario.lengths else None,
        resets=batch.resets if scenario.resets else None,
        reverse=scenario.reverse,
    )
    exponents, steps, history, carry, jacobians, ranks = reference(
        kind, scenario, params, batch, skip
    )
    np.testing.assert_array_equal(spectrum.steps, steps)
    assert_close(spectrum.carry, carry, 1e-12)
    assert (steps * ranks).any()
    for b in range(B):
        rank = ranks[b]
        got = spectrum.exponents[b]
        np.testing.assert_allclose(got[:rank], exponents[b, :rank], rtol=1e-6, atol=1e-6)
        if steps[b] and rank == len(got):
            mean = np.mean([np.linalg.slogdet(j)[1] for j in jacobians[b]])
            np.testing.assert_allclose(got.sum(), mean, rtol=1e-6)
        if rank > 0 and steps[b]:
            steps_at = scan_order(scenario, batch, b) if scenario.reverse else slice(None)
            np.testing.assert_allclose(
                spectrum.history[steps_at, b], history[steps_at, b], rtol=1e-6, atol=1e-6
            )


def test_single_exponent_equals_the_first_of_all_exponents(kind: Row, x64: None) -> None:
    cell, params, batch = make_example(kind)
    all_exponents, first = (
        lyapunov(cell, params, batch.xs, num_exponents=num) for num in (None, 1)
    )
    assert first.exponents.shape == (B, 1)
    np.testing.assert_allclose(first.exponents, all_exponents.exponents[:, :1], rtol=1e-9)
    np.testing.assert_allclose(first.history, all_exponents.history, rtol=1e-9)


def test_two_exponents_equal_the_first_two_of_all_exponents(x64: None) -> None:
    cell, params, batch = make_example(CELLS["lstm"])
    all_exponents, first = (
        lyapunov(cell, params, batch.xs, num_exponents=num) for num in (None, 2)
    )
    np.testing.assert_allclose(first.exponents, all_exponents.exponents[:, :2], rtol=1e-9)


def test_segments_and_padding_equal_separate_runs(reverse: bool, x64: None) -> None:
    cell, params, batch = make_example(CELLS["lstm"], steps=12)
    resets, lengths = np.zeros((12, B), bool), np.full(B, 10)
    resets[6 if not reverse else 5] = True
    spectrum = lyapunov(
        cell,
        params,
        batch.xs,
        batch.carry,
        num_exponents=1,
        lengths=lengths,
        resets=resets,
        reverse=reverse,
    )
    parts = [batch.xs[:6], batch.xs[6:10]]
    first, second = (part[::-1] for part in reversed(parts)) if reverse else parts
    before = lyapunov(cell, params, first, batch.carry, num_exponents=1)
    after = lyapunov(cell, params, second, num_exponents=1, skip=1)
    total = before.steps * before.largest_exponent + after.steps * after.largest_exponent
    np.testing.assert_array_equal(spectrum.steps, 9)
    np.testing.assert_allclose(spectrum.largest_exponent, total / 9, rtol=1e-12)
    np.testing.assert_allclose(
        spectrum.history[0 if reverse else -1], spectrum.largest_exponent, rtol=1e-12
    )


def random_network(gain: float, hidden: int, seed: int) -> Any:
    """Returns the Elman network of Sompolinsky et al., 1988; weights have variance gain²/hidden."""
    rng = np.random.default_rng(seed)
    params = jrnn.Elman(hidden).init(jax.random.key(seed), 1)
    w = gain / np.sqrt(hidden) * rng.normal(size=(hidden, hidden))
    carry = rng.normal(size=(1, hidden)).astype(np.float32)
    return params._replace(w_hh=jnp.asarray(w, jnp.float32)), carry


def test_random_network_becomes_chaotic_with_large_gain() -> None:
    xs = np.zeros((2000, 1, 1), np.float32)
    for gain, hidden in [(0.5, 32), (0.8, 32), (0.8, 128)]:
        params, carry = random_network(gain, hidden, 0)
        spectrum = lyapunov(jrnn.Elman(hidden), params, xs, carry, num_exponents=1, skip=200)
        radius = np.abs(np.linalg.eigvals(np.asarray(params.w_hh))).max()
        # The carry converges to the fixed point 0, where the Jacobian is w_hh.
        np.testing.assert_allclose(spectrum.largest_exponent, np.log(radius), atol=5e-3)
        assert spectrum.largest_exponent[0] < 0
    for gain, hidden in [(3.0, 32), (1.5, 128), (3.0, 128)]:
        params, carry = random_network(gain, hidden, 0)
        spectrum = lyapunov(jrnn.Elman(hidden), params, xs, carry, num_exponents=1, skip=200)
        assert spectrum.largest_exponent[0] > 0.02
        assert spectrum.exponents.dtype == np.float32


@pytest.mark.parametrize(("gain", "tolerance"), [(1.0, 1e-3), (3.0, 0.05)])
def test_largest_exponent_equals_the_divergence_rate_of_two_runs(
    gain: float, tolerance: float, x64: None
) -> None:
    params, carry = random_network(gain, 32, 0)
    params = jax.tree.map(lambda a: a.astype(np.float64), params)
    xs = np.random.default_rng(1).normal(size=(3000, 1, 1))
    largest = lyapunov(
        jrnn.Elman(32), params, xs, carry, num_exponents=1, skip=100
    ).largest_exponent
    w_hh, w_ih = np.asarray(params.w_hh), np.asarray(params.w_ih)
    # Rounding errors make the chaotic trajectories differ, so the growth rates agree only roughly.
    h, eps, growth = carry[0].astype(np.float64), 1e-7, []
    perturbed = h + eps / np.sqrt(32)
    for t in range(3000):
        h, perturbed = (np.tanh(xs[t, 0] @ w_ih + s @ w_hh) for s in (h, perturbed))
        distance = np.linalg.norm(perturbed - h)
        growth.append(np.log(distance / eps))
        perturbed = h + (perturbed - h) * eps / distance
    np.testing.assert_allclose(largest, np.mean(growth[100:]), atol=tolerance)


# --- singular steps, NaN, no steps ---------------------------------------------------------------


@pytest.mark.parametrize("num_exponents", [1, 3])
def test_exponents_are_minus_infinity_after_a_zero_derivative(num_exponents: int) -> None:
    params, xs = jnp.zeros(()), np.full((6, 2, 3), 0.5, np.float32)
    xs[2, 0] = 0
    spectrum = lyapunov(Multiply(3), params, xs, num_exponents=num_exponents)
    np.testing.assert_array_equal(spectrum.exponents[0], -np.inf)
    np.testing.assert_allclose(spectrum.exponents[1], np.log(0.5), rtol=1e-6)
    np.testing.assert_allclose(spectrum.history[:, 0], [np.log(0.5)] * 2 + [-np.inf] * 4, rtol=1e-6)


@pytest.mark.parametrize("num_exponents", [1, 3])
def test_skipped_zero_derivative_does_not_change_later_exponents(num_exponents: int) -> None:
    xs = np.full((6, 2, 3), 0.5, np.float32)
    xs[2, 0] = 0
    spectrum = lyapunov(Multiply(3), jnp.zeros(()), xs, skip=3, num_exponents=num_exponents)
    np.testing.assert_allclose(spectrum.exponents, np.log(0.5), rtol=1e-6)


def test_inactive_relu_unit_does_not_change_other_exponents(x64: None) -> None:
    row = CELLS["elman-relu"]
    cell, params, batch = make_example(row, steps=40)
    w_hh = np.linalg.qr(np.random.default_rng(0).normal(size=(HIDDEN, HIDDEN)))[0] * 0.5
    bias = np.array([50.0, -1000, 50])
    params = params._replace(w_hh=w_hh, b=bias)
    spectrum = lyapunov(cell, params, batch.xs, skip=5)
    active = w_hh[np.ix_([0, 2], [0, 2])]
    # Check the assumption that units 0 and 2 are active, and unit 1 is inactive, at all steps.
    *_, ys = jrnn.unroll(cell, params, batch.xs, engine="scan")
    assert (np.asarray(ys)[..., [0, 2]] > 0).all() and (np.asarray(ys)[..., 1] == 0).all()
    sums = spectrum.exponents[:, :2].sum(axis=-1)
    np.testing.assert_allclose(sums, np.linalg.slogdet(active)[1], atol=1e-9)
    assert (spectrum.exponents[:, 2] < -30).all()


def test_nan_in_one_sequence_does_not_change_others(kind: Row, x64: None) -> None:
    cell, params, batch = make_example(kind)
    xs = batch.xs.copy()
    xs[3, 1] = np.nan
    others = np.array([b for b in range(B) if b != 1])
    for num_exponents in (None, 1):
        got, expected = (
            lyapunov(cell, params, a, num_exponents=num_exponents) for a in (xs, batch.xs)
        )
        assert np.isnan(got.exponents[1]).all() and np.isnan(got.history[3:, 1]).all()
        np.testing.assert_array_equal(got.exponents[others], expected.exponents[others])
        np.testing.assert_array_equal(got.history[:3], expected.history[:3])


def test_nan_propagates_unless_skipped_or_on_padding() -> None:
    cell = jrnn.LSTM(HIDDEN)
    params = random_params(cell, 3, INPUT, np.float32)
    xs = random_batch(cell, params, 4, T, B, np.float32).xs
    resets = np.zeros((T, B), bool)
    resets[3] = True
    xs_with_nan = xs.copy()
    xs_with_nan[1, 0] = np.nan
    got = lyapunov(cell, params, xs_with_nan, resets=resets)
    assert np.isnan(got.exponents[0]).all() and np.isfinite(got.exponents[1:]).all()
    got, expected = (lyapunov(cell, params, a, resets=resets, skip=3) for a in (xs_with_nan, xs))
    np.testing.assert_array_equal(got.exponents, expected.exponents)
    assert np.isfinite(got.exponents).all()
    padded = xs.copy()
    padded[5:] = np.nan
    got = lyapunov(cell, params, padded, lengths=np.full(B, 5))
    np.testing.assert_allclose(got.exponents, lyapunov(cell, params, xs[:5]).exponents, rtol=1e-5)


def test_zero_steps_return_nan_and_the_initial_carry() -> None:
    cell = jrnn.LSTM(HIDDEN)
    params = random_params(cell, 3, INPUT, np.float32)
    batch = random_batch(cell, params, 4, T, B, np.float32)
    spectrum = lyapunov(cell, params, batch.xs[:0], batch.carry)
    assert np.isnan(spectrum.exponents).all() and spectrum.exponents.shape == (B, 2 * HIDDEN)
    assert spectrum.history.shape == (0, B) and (spectrum.steps == 0).all()
    assert np.isnan(spectrum.dimension).all() and np.isnan(spectrum.entropy).all()
    assert_close(spectrum.carry, batch.carry, 0)
    assert np.isnan(lyapunov(cell, params, batch.xs, skip=T).exponents).all()
    assert np.isfinite(lyapunov(cell, params, batch.xs, skip=T - 1).exponents).all()


# --- transformations, dtypes, errors -------------------------------------------------------------


@pytest.mark.parametrize("num_exponents", [None, 1])
def test_gradients_equal_finite_differences(num_exponents: int | None, x64: None) -> None:
    cell, params, batch = make_example(CELLS["elman-tanh"])
    lengths = np.array([T, 4, 2, 6, 0])

    @jax.jit
    def loss(p: Any) -> jax.Array:
        spectrum = lyapunov(
            cell, p, batch.xs, batch.carry, num_exponents=num_exponents, lengths=lengths
        )
        return jnp.where(spectrum.steps > 0, jnp.nan_to_num(spectrum.largest_exponent), 0).sum()

    gradient, eps = jax.grad(loss)(params), 1e-6
    for index in np.ndindex(params.w_hh.shape):
        up, down = params.w_hh.copy(), params.w_hh.copy()
        up[index] += eps
        down[index] -= eps
        slope = (loss(params._replace(w_hh=up)) - loss(params._replace(w_hh=down))) / (2 * eps)
        np.testing.assert_allclose(gradient.w_hh[index], slope, rtol=1e-5, atol=1e-7)


def test_gradients_are_finite_with_singular_padding() -> None:
    """On padding, the input is zero for the cell, and so is the derivative of `Multiply`."""
    xs = jnp.full((4, 2, 2), 0.5)
    loss = lambda xs, num_exponents: lyapunov(
        Multiply(2), jnp.zeros(()), xs, num_exponents=num_exponents, lengths=jnp.array([4, 2])
    ).largest_exponent.sum()
    for num_exponents in (1, 2):
        gradient = np.asarray(jax.grad(loss)(xs, num_exponents))
        assert np.isfinite(gradient).all()
        np.testing.assert_array_equal(gradient[2:, 1], 0)
        np.testing.assert_allclose(gradient[:2, 1].sum(), 2.0, rtol=1e-5)


def test_second_call_with_an_equal_cell_does_not_retrace() -> None:
    xs = np.full((6, 2, 3), 0.5, np.float32)
    lyapunov(Multiply(3), jnp.zeros(()), xs)
    num_traces = len(update_calls)
    lyapunov(Multiply(3), jnp.zeros(()), 2 * xs, skip=2)
    assert len(update_calls) == num_traces
    lyapunov(Multiply(3), jnp.zeros(()), xs, reverse=True)
    assert len(update_calls) > num_traces


def test_jit_and_vmap_equal_separate_calls() -> None:
    cell = jrnn.GRU(HIDDEN)
    all_params = [random_params(cell, seed, INPUT, np.float32) for seed in (1, 2)]
    xs = random_batch(cell, all_params[0], 4, T, B, np.float32).xs
    stacked = jax.tree.map(lambda *a: np.stack(a), *all_params)
    spectrum = jax.jit(jax.vmap(lambda p: lyapunov(cell, p, xs, lengths=jnp.arange(5, 10))))(
        stacked
    )
    assert isinstance(spectrum, LyapunovSpectrum)
    for n, params in enumerate(all_params):
        expected = lyapunov(cell, params, xs, lengths=jnp.arange(5, 10))
        assert_close(select_sequence(spectrum, n), expected, 1e-4)
        assert_close(spectrum.dimension[n], expected.dimension, 1e-4)


def test_noise_depends_on_the_key() -> None:
    cell = Noisy(HIDDEN)
    params = cell.init(jax.random.key(0), INPUT)
    xs = np.random.default_rng(0).normal(size=(T, B, INPUT)).astype(np.float32)
    key = jax.random.key(3)
    spectrum = lyapunov(cell, params, xs, key=key)
    carry, _ = jrnn.unroll(cell, params, xs, key=key, engine="scan")
    assert_close(spectrum.carry, carry, 1e-6)
    assert (spectrum.exponents != lyapunov(cell, params, xs).exponents).any()


def test_bfloat16_inputs_and_parameters_give_float32_exponents() -> None:
    cell = jrnn.GRU(HIDDEN)
    float32_params = random_params(cell, 1, INPUT, np.float32)
    xs = random_batch(cell, float32_params, 2, 50, B, np.float32).xs
    expected = lyapunov(cell, float32_params, xs)
    bfloat16_params = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), float32_params)
    for params in (float32_params, bfloat16_params):
        spectrum = lyapunov(cell, params, jnp.asarray(xs, jnp.bfloat16))
        assert spectrum.exponents.dtype == np.float32
        np.testing.assert_allclose(spectrum.largest_exponent, expected.largest_exponent, atol=0.03)


def test_initial_q_is_orthonormal_and_independent_of_num_exponents() -> None:
    q = np.asarray(_initial_q(6, 6, 2, jnp.dtype("float32")))
    np.testing.assert_allclose(q[0].T @ q[0], np.eye(6), atol=1e-6)
    assert np.abs(q).min() > 1e-3
    column = np.asarray(_initial_q(6, 1, 2, jnp.dtype("float32")))
    np.testing.assert_allclose(np.abs(column), np.abs(q[..., :1]), rtol=1e-5)


def test_dimension_and_entropy_equal_known_values() -> None:
    exponents = jnp.array([[0.5, 0.1, -0.4, -1.0], [-0.1, -0.2, -0.3, -0.4], [0.5, -jnp.inf, 0, 0]])
    exponents = exponents.at[2, 2:].set(-jnp.inf)
    spectrum = LyapunovSpectrum(exponents, jnp.ones(3), None, jnp.zeros((0, 3)))
    np.testing.assert_allclose(spectrum.dimension, [3.2, 0, 1], rtol=1e-6)
    np.testing.assert_allclose(spectrum.entropy, [0.6, 0, 0.5], rtol=1e-6)
    np.testing.assert_allclose(spectrum._replace(exponents=exponents[:, :2]).dimension, [2, 0, 1])


@pytest.mark.parametrize("num_exponents", [0, -1, 7, 1.0, True])
def test_num_exponents_out_of_range_raises(num_exponents: Any) -> None:
    cell = jrnn.LSTM(HIDDEN)
    params = random_params(cell, 3, INPUT, np.float32)
    with pytest.raises(ValueError, match=rf"must be an int from 1 to 6.*LSTM, got {num_exponents}"):
        lyapunov(cell, params, np.zeros((2, 1, INPUT), np.float32), num_exponents=num_exponents)


def test_invalid_arguments_raise() -> None:
    cell = jrnn.LSTM(HIDDEN)
    params = random_params(cell, 3, INPUT, np.float32)
    xs = np.zeros((T, B, INPUT), np.float32)
    for skip in (-1, 1.5, True):
        with pytest.raises(ValueError, match=f"skip must be an int of at least 0.*got {skip}"):
            lyapunov(cell, params, xs, skip=skip)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"carry of Counter must have a floating leaf.*\['int32'\]"):
        lyapunov(Counter(), jnp.zeros(()), xs)
    with pytest.raises(ValueError, match=r"lengths must have shape \(batch,\) = \(5,\)"):
        lyapunov(cell, params, xs, lengths=jnp.ones(3, jnp.int32))
    with pytest.raises(TypeError, match="carry must be .*, as in LSTM.init_carry"):
        lyapunov(cell, params, xs, jnp.zeros((B, HIDDEN)))
    with pytest.raises(TypeError, match=r"cell must be a cell such as jrnn.LSTM"):
        lyapunov("lstm", params, xs)  # pyright: ignore[reportArgumentType]
