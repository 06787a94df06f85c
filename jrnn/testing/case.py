"""What the properties share: one cell with random parameters, its steps, and comparisons."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jrnn.cell import Carry, Cell, Inputs, Params
from jrnn.layer import Layer

MakeInputs = Callable[[jax.Array, tuple[int, ...]], Inputs]

STEPS, BATCH = 5, 3
RTOL = 1e-5

# Compilation is nearly all of the time that a check takes, and unoptimised it is twice as fast. So
# the properties share what is compiled, and all other arrays are NumPy's: a function of jax.numpy
# outside of jit is compiled for each shape.
jit_quickly = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Case(NamedTuple):
    """One cell with random parameters, and a way to draw inputs for it."""

    cell: Cell
    params: Params
    inputs: MakeInputs
    key: jax.Array
    input_size: int

    def xs(self, *leading: int, seed: int = 0) -> Inputs:
        """Random inputs with these leading axes."""
        return as_numpy(self.inputs(jax.random.fold_in(self.key, seed), leading))

    def carry(self, *leading: int, seed: int = 0) -> Carry:
        """A random carry with these leading axes."""
        key = jax.random.fold_in(self.key, 1000 + seed)
        return as_numpy(randomized(self.cell.init_carry(self.params, leading), key))


class Step(NamedTuple):
    """One step and its parts."""

    gates: Any  # z and u
    derived: Any  # the carry of `update` and the output of `readout`
    stepped: Any  # what `step` returns


def randomized(tree: Any, key: jax.Array, scale: float = 0.3) -> Any:
    """Adds normal noise to every floating leaf, so that no zero hides a mistake.

    Args:
      tree: parameters or a carry.
      key: randomness.
      scale: standard deviation of the noise.
    """
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))

    def noisy(leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        noise = rng.normal(scale=scale, size=leaf.shape)
        if is_complex(leaf):
            noise = (noise + 1j * rng.normal(scale=scale, size=leaf.shape)) / np.sqrt(2)
        return jnp.asarray((np.asarray(leaf) + noise).astype(leaf.dtype))

    return jax.tree.map(noisy, tree)


def normal_inputs(layer: Layer, input_size: int) -> MakeInputs:
    """Normal numbers in the shapes of the layer's inputs."""
    return lambda key, leading: randomized(layer.inputs(input_size, leading), key, 1.0)


def change_last_step(xs: Inputs) -> Inputs:
    """The inputs with other numbers at the last step."""
    end = lambda leaf: np.concatenate([leaf[:-1], leaf[-1:] + np.ones((), leaf.dtype)])
    floating = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
    return jax.tree.map(lambda leaf: end(leaf) if floating(leaf) else leaf, xs)


@partial(jit_quickly, static_argnums=0)
def _compiled_step(cell: Cell, params: Params, carry: Carry, x: Inputs) -> Step:
    z, u = cell.project(params, x), cell.recur(params, carry)
    after = cell.update(params, carry, z, u)
    derived = after, cell.readout(params, after, z)
    return Step((z, u), derived, cell.step(params, carry, x))


def compute_step(case: Case, carry: Carry, x: Inputs) -> Step:
    """A compiled step, and the parts of it, as NumPy arrays."""
    return as_numpy(_compiled_step(case.cell, case.params, carry, x))


def loop_steps(
    case: Case, xs: Inputs, carry: Carry, lengths: np.ndarray, resets: np.ndarray, reverse: bool
) -> tuple[Carry, Any]:
    """Each sequence alone, step by step."""
    first = as_numpy(case.cell.init_carry(case.params, ()))
    _, like = compute_step(case, first, take(xs, 0, 0)).stepped
    lasts, outputs = [], []
    for b, length in enumerate(lengths):
        s = take(carry, b)
        ys = [jax.tree.map(np.zeros_like, like) for _ in resets]
        for t in reversed(range(length)) if reverse else range(length):
            if resets[t, b]:
                s = first
            s, ys[t] = compute_step(case, s, take(xs, t, b)).stepped
        lasts.append(s)
        outputs.append(stack_trees(ys))
    return stack_trees(lasts), jax.tree.map(lambda y: np.swapaxes(y, 0, 1), stack_trees(outputs))


def is_linear(case: Case) -> bool:
    """Whether the cell has coefficients."""
    find = lambda params, x: case.cell.coefficients(params, case.cell.project(params, x))
    return jax.eval_shape(find, case.params, case.xs(BATCH)) is not None


def require(holds: bool, message: str) -> None:
    """An assertion that also works under `python -O`."""
    if not holds:
        raise AssertionError(message)


def assert_close(got: Any, expected: Any, rtol: float = RTOL) -> None:
    """Close, leaf by leaf, to the size of the largest expected number of each leaf."""
    chex.assert_trees_all_equal_structs(got, expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        wide = np.complex128 if is_complex(b) else np.float64
        a, b = np.asarray(a, wide), np.asarray(b, wide)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(1.0, np.abs(b).max(initial=0)))


def as_numpy(tree: Any) -> Any:
    """The leaves as NumPy arrays."""
    return jax.tree.map(np.asarray, tree)


def as_jax(tree: Any) -> Any:
    """For calls outside of `jit`, where a cell may use what NumPy's arrays lack, such as `.at`."""
    return jax.tree.map(jnp.asarray, tree)


def take(tree: Any, *index: Any) -> Any:
    """The leaves at an index of their leading axes."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def stack_trees(trees: list[Any]) -> Any:
    """Trees stacked along a new first axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def is_complex(leaf: Any) -> bool:
    """Whether an array is complex."""
    return jnp.issubdtype(leaf.dtype, jnp.complexfloating)
