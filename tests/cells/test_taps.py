"""Capturing and replacing named values in a function, under jit, checkpoint, vmap and autodiff."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jrnn.taps import capture_taps, replace_taps, tap, tapped_shapes

A, B = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda f: f,
    "jit": jax.jit,
    "checkpoint": jax.checkpoint,
    "vmap": jax.vmap,
    "jit-checkpoint": lambda f: jax.jit(jax.checkpoint(f)),
    "checkpoint-jit": lambda f: jax.checkpoint(jax.jit(f)),
    "vmap-jit": lambda f: jax.vmap(jax.jit(f)),
    "jit-vmap-checkpoint": lambda f: jax.jit(jax.vmap(jax.checkpoint(f))),
}


def update(a: jax.Array, b: jax.Array) -> jax.Array:
    """A function with taps, whose names are not in alphabetical order.

    The tapped relu has a custom derivative in JAX.
    """
    z = tap("z", jax.nn.sigmoid(a))
    n = tap("n", jnp.tanh(b), role="candidate")
    c = tap(None, jax.nn.relu(z * n), role="cell_state")
    return jnp.exp(c)


def oracle(scale: float = 1.0, shift: float = 0.0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Computes `update` in NumPy, with its candidate scaled and its cell state shifted."""
    z, n = 1 / (1 + np.exp(-A)), scale * np.tanh(B)
    return np.exp(np.maximum(z * n, 0) + shift), {"z": z, "n": n}


def assert_captured(actual: Any, expected: Any) -> None:
    (out, values), (expected_out, expected_values) = actual, expected
    np.testing.assert_allclose(out, expected_out, rtol=1e-5)
    assert set(values) == set(expected_values)
    for name, value in values.items():
        np.testing.assert_allclose(value, expected_values[name], rtol=1e-5)


@pytest.fixture(params=WRAPPERS)
def wrapped(request: pytest.FixtureRequest) -> Any:
    """Returns `update` under each transformation, without a cached trace."""
    return WRAPPERS[request.param](lambda a, b: update(a, b))


def test_taps_do_not_change_results(wrapped: Any) -> None:
    np.testing.assert_allclose(wrapped(A, B), oracle()[0], rtol=1e-5)


def test_taps_are_captured_in_call_order(wrapped: Any) -> None:
    out, values = capture_taps(wrapped)(A, B)
    assert_captured((out, values), oracle())
    assert list(values) == ["z", "n"]


def test_capturing_is_independent_of_cached_traces(wrapped: Any) -> None:
    for _ in range(2):
        np.testing.assert_allclose(wrapped(A, B), oracle()[0], rtol=1e-5)
        assert_captured(capture_taps(wrapped)(A, B), oracle())
        assert_captured(jax.jit(capture_taps(wrapped))(A, B), oracle())
        doubled = replace_taps(wrapped, "candidate", lambda n: 2 * n)
        np.testing.assert_allclose(doubled(A, B), oracle(scale=2)[0], rtol=1e-5)
        np.testing.assert_allclose(jax.jit(doubled)(A, B), oracle(scale=2)[0], rtol=1e-5)


def test_replaced_values_are_captured(wrapped: Any) -> None:
    changed = replace_taps(wrapped, "candidate", lambda n: 2 * n)
    changed = replace_taps(changed, "cell_state", lambda c: c + 1)
    assert_captured(capture_taps(changed)(A, B), oracle(scale=2, shift=1))


def test_inner_replacements_are_applied_first() -> None:
    inner = replace_taps(update, "candidate", lambda n: 2 * n)
    outer = replace_taps(inner, "candidate", lambda n: n + 1)
    z, n = (np.asarray(oracle()[1][name]) for name in "zn")
    np.testing.assert_allclose(outer(A, B), np.exp(np.maximum(z * (2 * n + 1), 0)), rtol=1e-5)


def test_replacing_an_absent_role_changes_nothing() -> None:
    unchanged = replace_taps(update, "other", lambda value: 0 * value)
    np.testing.assert_array_equal(unchanged(A, B), update(*map(jnp.asarray, (A, B))))


def test_derivatives_of_captured_and_replaced_taps_equal_numpy(wrapped: Any) -> None:
    capture = lambda a, b: capture_taps(wrapped)(a, b)[1]["n"].sum()
    grad_a, grad_b = jax.grad(capture, argnums=(0, 1))(A, B)
    np.testing.assert_array_equal(grad_a, 0)
    np.testing.assert_allclose(grad_b, 1 - np.tanh(B) ** 2, rtol=1e-5, atol=1e-6)
    doubled = replace_taps(wrapped, "candidate", lambda n: 2 * n)
    grad_b = jax.grad(lambda b: doubled(A, b).sum())(B)
    out, values = oracle(scale=2)
    expected = out * (out > 1) * values["z"] * 2 * (1 - np.tanh(B) ** 2)
    np.testing.assert_allclose(grad_b, expected, rtol=1e-4, atol=1e-6)
    _, tangent = jax.jvp(lambda b: doubled(A, b), (B,), (np.ones_like(B),))
    np.testing.assert_allclose(tangent, expected, rtol=1e-4, atol=1e-6)


def test_taps_are_captured_at_every_step_of_a_scan() -> None:
    def body(carry: jax.Array, a: jax.Array) -> Any:
        return capture_taps(jax.jit(update))(a, carry)

    _, values = jax.jit(lambda: lax.scan(body, B[0], A))()
    carry = B[0]
    for t, a in enumerate(A):
        np.testing.assert_allclose(values["n"][t], np.tanh(carry), rtol=1e-4, atol=1e-6)
        carry = np.exp(np.maximum(np.tanh(carry) / (1 + np.exp(-a)), 0))


def test_function_with_closed_over_tracer_can_be_captured() -> None:
    @jax.jit
    def run(scale: jax.Array) -> Any:
        return capture_taps(lambda a: tap("n", scale * a))(A)

    out, values = run(jnp.float32(3.0))
    np.testing.assert_allclose(values["n"], 3 * A, rtol=1e-6)
    np.testing.assert_array_equal(out, values["n"])


def test_tapped_shapes_returns_shapes_of_a_role() -> None:
    (shape,) = tapped_shapes(jax.jit(update), "candidate", A, B)
    assert (shape.shape, shape.dtype) == ((5, 3), np.float32)
    assert tapped_shapes(update, "other", A, B) == []


def tap_in_scan(a: jax.Array) -> jax.Array:
    return lax.scan(lambda s, x: (tap("s", s + x), None), jnp.zeros(3), a)[0]


def tap_in_cond(a: jax.Array) -> jax.Array:
    return lax.cond(a.sum() > 0, lambda a: tap("a", a), lambda a: a, a)


@jax.custom_jvp
def tap_in_custom_jvp(a: jax.Array) -> jax.Array:
    return tap("a", a)


tap_in_custom_jvp.defjvps(lambda t, out, a: t)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (tap_in_scan, "scan"),
        (tap_in_cond, "cond"),
        (tap_in_custom_jvp, "custom_jvp_call"),
    ],
)
def test_capturing_taps_in_control_flow_raises(function: Any, name: str) -> None:
    function(jnp.asarray(A))
    with pytest.raises(
        TypeError, match=rf"jrnn.tap: must be called outside of loops.* inside {name};"
    ):
        capture_taps(function)(A)
    with pytest.raises(TypeError, match=rf"jrnn.tap: .* inside {name};"):
        replace_taps(function, "candidate", lambda value: value)(A)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint], ids=["", "jit", "remat"])
@pytest.mark.parametrize("first", [True, False])
def test_two_taps_of_the_same_name_raise(wrap: Any, first: bool) -> None:
    inner, plain = wrap(lambda x: tap("g", x)), lambda x: tap("g", 2 * x)
    calls = [inner, plain] if first else [plain, inner]
    for functions in (calls, [inner, inner]):
        with pytest.raises(ValueError, match="names must be unique within a cell, got 'g' twice"):
            capture_taps(lambda x, fs=functions: sum(f(x) for f in fs))(A)
