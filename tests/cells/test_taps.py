"""Named values inside a function: captured and replaced, whatever JAX transformation is around."""

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
    """Names whose order is not that of the alphabet; relu is a custom derivative in JAX."""
    z = tap("z", jax.nn.sigmoid(a))
    n = tap("n", jnp.tanh(b), role="candidate")
    c = tap("", jax.nn.relu(z * n), role="cell_state")
    return jnp.exp(c)


def truth(scale: float = 1.0, shift: float = 0.0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """`update` in NumPy, with its candidate scaled and its cell state shifted."""
    z, n = 1 / (1 + np.exp(-A)), scale * np.tanh(B)
    return np.exp(np.maximum(z * n, 0) + shift), {"z": z, "n": n}


def assert_true(got: Any, want: Any) -> None:
    (out, values), (true_out, true_values) = got, want
    np.testing.assert_allclose(out, true_out, rtol=1e-5)
    assert set(values) == set(true_values)
    for name, value in values.items():
        np.testing.assert_allclose(value, true_values[name], rtol=1e-5)


@pytest.fixture(params=WRAPPERS)
def wrapped(request: pytest.FixtureRequest) -> Any:
    """`update` within each transformation, traced for the first time."""
    return WRAPPERS[request.param](lambda a, b: update(a, b))


def test_taps_change_nothing(wrapped: Any) -> None:
    np.testing.assert_allclose(wrapped(A, B), truth()[0], rtol=1e-5)


def test_taps_are_captured_in_the_order_of_calls(wrapped: Any) -> None:
    out, values = capture_taps(wrapped)(A, B)
    assert_true((out, values), truth())
    assert list(values) == ["z", "n"]


def test_capturing_does_not_depend_on_what_was_traced_before(wrapped: Any) -> None:
    for _ in range(2):
        np.testing.assert_allclose(wrapped(A, B), truth()[0], rtol=1e-5)
        assert_true(capture_taps(wrapped)(A, B), truth())
        assert_true(jax.jit(capture_taps(wrapped))(A, B), truth())
        doubled = replace_taps(wrapped, "candidate", lambda n: 2 * n)
        np.testing.assert_allclose(doubled(A, B), truth(scale=2)[0], rtol=1e-5)
        np.testing.assert_allclose(jax.jit(doubled)(A, B), truth(scale=2)[0], rtol=1e-5)


def test_captured_values_are_those_that_replaced_others(wrapped: Any) -> None:
    changed = replace_taps(wrapped, "candidate", lambda n: 2 * n)
    changed = replace_taps(changed, "cell_state", lambda c: c + 1)
    assert_true(capture_taps(changed)(A, B), truth(scale=2, shift=1))


def test_replacements_of_one_role_are_applied_from_the_inside_out() -> None:
    inner = replace_taps(update, "candidate", lambda n: 2 * n)
    outer = replace_taps(inner, "candidate", lambda n: n + 1)
    z, n = (np.asarray(truth()[1][name]) for name in "zn")
    np.testing.assert_allclose(outer(A, B), np.exp(np.maximum(z * (2 * n + 1), 0)), rtol=1e-5)


def test_a_role_that_is_not_there_is_not_replaced() -> None:
    same = replace_taps(update, "other", lambda value: 0 * value)
    np.testing.assert_array_equal(same(A, B), update(*map(jnp.asarray, (A, B))))


def test_derivatives_pass_through_captured_and_replaced_taps(wrapped: Any) -> None:
    captured = lambda a, b: capture_taps(wrapped)(a, b)[1]["n"].sum()
    by_a, by_b = jax.grad(captured, argnums=(0, 1))(A, B)
    np.testing.assert_array_equal(by_a, 0)
    np.testing.assert_allclose(by_b, 1 - np.tanh(B) ** 2, rtol=1e-5, atol=1e-6)
    doubled = replace_taps(wrapped, "candidate", lambda n: 2 * n)
    by_b = jax.grad(lambda b: doubled(A, b).sum())(B)
    out, values = truth(scale=2)
    slope = out * (out > 1) * values["z"] * 2 * (1 - np.tanh(B) ** 2)
    np.testing.assert_allclose(by_b, slope, rtol=1e-4, atol=1e-6)
    _, tangent = jax.jvp(lambda b: doubled(A, b), (B,), (np.ones_like(B),))
    np.testing.assert_allclose(tangent, slope, rtol=1e-4, atol=1e-6)


def test_taps_are_captured_at_every_step_of_a_loop() -> None:
    def body(carry: jax.Array, a: jax.Array) -> Any:
        return capture_taps(jax.jit(update))(a, carry)

    _, values = jax.jit(lambda: lax.scan(body, B[0], A))()
    carry = B[0]
    for t, a in enumerate(A):
        np.testing.assert_allclose(values["n"][t], np.tanh(carry), rtol=1e-4, atol=1e-6)
        carry = np.exp(np.maximum(np.tanh(carry) / (1 + np.exp(-a)), 0))


def test_a_function_that_uses_a_traced_value_can_be_captured() -> None:
    @jax.jit
    def run(scale: jax.Array) -> Any:
        return capture_taps(lambda a: tap("n", scale * a))(A)

    out, values = run(jnp.float32(3.0))
    np.testing.assert_allclose(values["n"], 3 * A, rtol=1e-6)
    np.testing.assert_array_equal(out, values["n"])


def test_shapes_of_the_taps_of_a_role() -> None:
    (shape,) = tapped_shapes(jax.jit(update), "candidate", A, B)
    assert (shape.shape, shape.dtype) == ((5, 3), np.float32)
    assert tapped_shapes(update, "other", A, B) == []


def looped(a: jax.Array) -> jax.Array:
    return lax.scan(lambda s, x: (tap("s", s + x), None), jnp.zeros(3), a)[0]


def branched(a: jax.Array) -> jax.Array:
    return lax.cond(a.sum() > 0, lambda a: tap("a", a), lambda a: a, a)


@jax.custom_jvp
def custom(a: jax.Array) -> jax.Array:
    return tap("a", a)


custom.defjvps(lambda t, out, a: t)


@pytest.mark.parametrize(
    ("function", "name"), [(looped, "scan"), (branched, "cond"), (custom, "custom_jvp_call")]
)
def test_taps_within_control_flow_are_refused(function: Any, name: str) -> None:
    function(jnp.asarray(A))
    with pytest.raises(
        TypeError, match=rf"jrnn.tap: must be called outside of loops.* inside {name};"
    ):
        capture_taps(function)(A)
    with pytest.raises(TypeError, match=rf"jrnn.tap: .* inside {name};"):
        replace_taps(function, "candidate", lambda value: value)(A)
