"""Helpers of the conformance suite: a cell with random parameters, its steps, and comparisons."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jrnn.cell import Carry, Cell, Inputs, Params
from jrnn.layer import Layer

InputSampler = Callable[[jax.Array, tuple[int, ...]], Inputs]
"""A function `(key, leading) -> x` that samples inputs with the leading axes `leading`."""

STEPS, BATCH = 5, 3
RTOL = 1e-5

# Most of the time of a check is compilation, which is twice as fast without optimization. To
# compile little, the checks share jitted functions and use NumPy outside of jit, where each
# jax.numpy function would be compiled for each shape.
jit_unoptimized = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Case(NamedTuple):
    """A cell with random parameters, and a function that samples inputs.

    Attributes:
      cell: the cell.
      params: its parameters, all random.
      sample_inputs: a function `(key, leading) -> x` that samples inputs; `leading` is the shape of
        the leading axes of x.
      key: the PRNG key from which inputs and carries are sampled.
      input_size: the size of the last axis of the inputs.
    """

    cell: Cell
    params: Params
    sample_inputs: InputSampler
    key: jax.Array
    input_size: int

    def xs(self, *leading: int, seed: int = 0) -> Inputs:
        """Samples inputs with the given leading axes."""
        return as_numpy(self.sample_inputs(jax.random.fold_in(self.key, seed), leading))

    def carry(self, *leading: int, seed: int = 0) -> Carry:
        """Samples a carry with the given leading axes."""
        key = jax.random.fold_in(self.key, 1000 + seed)
        return as_numpy(randomize(self.cell.init_carry(self.params, leading), key))


class StepResults(NamedTuple):
    """The results of one step."""

    projections: Any  # z and u, the results of `project` and `recur`
    from_parts: Any  # the carry that `update` returns, and the output that `readout` returns
    from_step: Any  # the carry and the output that `step` returns


def randomize(tree: Any, key: jax.Array, scale: float = 0.3) -> Any:
    """Adds normal noise to every floating or complex leaf.

    Without it, zeros, such as biases, would hide bugs.

    Args:
      tree: parameters or a carry.
      key: PRNG key.
      scale: standard deviation of the noise.

    Returns:
      A tree with the same structure, shapes and dtypes.
    """
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))

    def add_noise(leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        noise = rng.normal(scale=scale, size=leaf.shape)
        if is_complex(leaf):
            noise = (noise + 1j * rng.normal(scale=scale, size=leaf.shape)) / np.sqrt(2)
        return jnp.asarray((np.asarray(leaf) + noise).astype(leaf.dtype))

    return jax.tree.map(add_noise, tree)


def normal_inputs(layer: Layer, input_size: int) -> InputSampler:
    """Returns a function that samples normal inputs with the shapes of `layer.inputs`."""
    return lambda key, leading: randomize(layer.inputs(input_size, leading), key, 1.0)


def change_last_step(xs: Inputs) -> Inputs:
    """Adds 1 to the floating inputs at the last step."""
    add_one = lambda leaf: np.concatenate([leaf[:-1], leaf[-1:] + np.ones((), leaf.dtype)])
    is_floating = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
    return jax.tree.map(lambda leaf: add_one(leaf) if is_floating(leaf) else leaf, xs)


@partial(jit_unoptimized, static_argnums=0)
def _compiled_step(cell: Cell, params: Params, carry: Carry, x: Inputs) -> StepResults:
    z, u = cell.project(params, x), cell.recur(params, carry)
    new_carry = cell.update(params, carry, z, u)
    from_parts = new_carry, cell.readout(params, new_carry, z)
    return StepResults((z, u), from_parts, cell.step(params, carry, x))


def compute_step(case: Case, carry: Carry, x: Inputs) -> StepResults:
    """Computes one step in a jitted function, and returns NumPy arrays."""
    return as_numpy(_compiled_step(case.cell, case.params, carry, x))


def run_step_loop(
    case: Case, xs: Inputs, carry: Carry, lengths: np.ndarray, resets: np.ndarray, reverse: bool
) -> tuple[Carry, Any]:
    """Runs each sequence separately in a Python loop over steps.

    Args:
      case: the cell.
      xs: inputs, leaves `[T, B, ...]`.
      carry: the initial carry, leaves `[B, ...]`.
      lengths: `[B]` ints.
      resets: `[T, B]` bool.
      reverse: whether to scan from the last valid step to the first.

    Returns:
      The final carry, leaves `[B, ...]`, and the outputs, leaves `[T, B, ...]`.
    """
    reset_carry = as_numpy(case.cell.init_carry(case.params, ()))
    _, y = compute_step(case, reset_carry, take(xs, 0, 0)).from_step
    final_carries, outputs = [], []
    for b, length in enumerate(lengths):
        state = take(carry, b)
        ys = [jax.tree.map(np.zeros_like, y) for _ in resets]
        for t in reversed(range(length)) if reverse else range(length):
            if resets[t, b]:
                state = reset_carry
            state, ys[t] = compute_step(case, state, take(xs, t, b)).from_step
        final_carries.append(state)
        outputs.append(stack_trees(ys))
    ys = jax.tree.map(lambda y: np.swapaxes(y, 0, 1), stack_trees(outputs))
    return stack_trees(final_carries), ys


def is_linear(case: Case) -> bool:
    """Returns whether the cell is linear in its carry, so that it has coefficients."""
    coefficients = lambda params, x: case.cell.coefficients(params, case.cell.project(params, x))
    return jax.eval_shape(coefficients, case.params, case.xs(BATCH)) is not None


def require(condition: bool, message: str) -> None:
    """Raises `AssertionError` unless the condition is true, also under `python -O`."""
    if not condition:
        raise AssertionError(message)


def assert_close(got: Any, expected: Any, rtol: float = RTOL) -> None:
    """Raises `AssertionError` unless two trees are equal up to rounding errors.

    The tolerance of an element is `rtol` times its absolute value, plus `rtol` times the largest
    absolute value of the leaf or 1, whichever is larger.
    """
    chex.assert_trees_all_equal_structs(got, expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        dtype = np.complex128 if is_complex(b) else np.float64
        a, b = np.asarray(a, dtype), np.asarray(b, dtype)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(1.0, np.abs(b).max(initial=0)))


def as_numpy(tree: Any) -> Any:
    """Converts the leaves to NumPy arrays."""
    return jax.tree.map(np.asarray, tree)


def as_jax(tree: Any) -> Any:
    """Converts the leaves to JAX arrays, because a cell may use `.at`, which NumPy lacks."""
    return jax.tree.map(jnp.asarray, tree)


def take(tree: Any, *index: Any) -> Any:
    """Indexes the leading axes of the leaves."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def stack_trees(trees: list[Any]) -> Any:
    """Stacks trees along a new first axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def is_complex(leaf: Any) -> bool:
    """Returns whether an array is complex."""
    return jnp.issubdtype(leaf.dtype, jnp.complexfloating)
