"""The structure of cells derived from jaxprs, compared with brute force and known cases."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jrnn import GRU, LSTM, MGU, Cell, Elman, LSTMCarry, MinGRU, MinimalRNN
from jrnn.structure import (
    find_used_leaves,
    has_reverse_mode_only,
    jacobian_sparsity,
    multiplies_by_params,
    trace_dependencies,
    update_is_elementwise,
)
from tests.helpers import input_size_of, normal_like, random_params
from tests.table import Row

HIDDEN, INPUT = 4, 3


def sample_step_args(cell: Cell, seed: int) -> tuple[Any, Any, Any, Any]:
    """Returns parameters, and carry, z and u of one sequence."""
    params, rng = random_params(cell, seed, INPUT, np.float32), np.random.default_rng(seed)
    like = lambda tree: jax.tree.map(lambda leaf: normal_like(rng, leaf, np.float32), tree)
    carry = like(jax.eval_shape(lambda p: cell.init_carry(p, ()), params))
    x = like(cell.inputs(input_size_of(params), ()))
    return params, carry, cell.project(params, x), cell.recur(params, carry)


def find_dependencies(function: Any, tree: Any) -> list[list[np.ndarray]]:
    """Finds the dependencies of `function(tree)` on `tree`, by changing one entry at a time.

    Returns:
      For each leaf of the result and each leaf of `tree`, a bool matrix `[result.size, leaf.size]`,
      True where an entry of the result depends on an entry of the leaf.
    """
    leaves, structure = jax.tree.flatten(tree)
    ends = np.cumsum([jnp.size(leaf) for leaf in leaves])
    # One copy of the tree for each entry, with this entry changed, and last an unchanged copy.
    copies, start = [], 0
    for leaf, end in zip(leaves, ends, strict=True):
        leaf = np.asarray(leaf)
        rows = np.repeat(leaf.reshape(1, -1), ends[-1] + 1, axis=0)
        rows[range(start, end), range(leaf.size)] += np.asarray(1.3).astype(leaf.dtype)
        copies.append(rows.reshape(-1, *leaf.shape))
        start = end
    run = jax.jit(jax.vmap(function))
    results = jax.tree.leaves(run(jax.tree.unflatten(structure, copies)))
    dependencies = []
    for result in results:
        flat = np.asarray(result).reshape(len(result), -1)
        differs = np.abs(flat - flat[-1]) > 1e-6 * (1 + np.abs(flat[-1]))
        dependencies.append([part.T for part in np.split(differs[:-1], ends[:-1])])
    return dependencies


def combine_dependencies(draws: list[Any]) -> Any:
    """Combines the dependencies of several draws; relu or a step counter may hide one in a draw."""
    return [
        [np.logical_or.reduce(leaves) for leaves in zip(*rows, strict=True)]
        for rows in zip(*draws, strict=True)
    ]


def test_update_is_elementwise_equals_brute_force(row: Row) -> None:
    cell = row.make(HIDDEN)
    draws = [sample_step_args(cell, seed) for seed in range(3)]
    dependencies = combine_dependencies(
        [find_dependencies(lambda s, p=params: cell.update(p, *s), rest) for params, *rest in draws]
    )
    # Each entry of the new carry depends on at most one entry of each array.
    expected = all((depends.sum(axis=1) <= 1).all() for leaf in dependencies for depends in leaf)
    assert update_is_elementwise(cell, *draws[0]) == expected


def test_jacobian_sparsity_equals_brute_force(row: Row) -> None:
    cell = row.make(HIDDEN)
    draws = [sample_step_args(cell, seed) for seed in range(3)]

    def new_carry(params: Any, z: Any, carry: Any) -> Any:
        return cell.update(params, carry, z, cell.recur(params, carry))

    dependencies = combine_dependencies(
        [find_dependencies(partial(new_carry, p, z), carry) for p, carry, z, _ in draws]
    )
    leaves = jax.tree.leaves(draws[0][1])
    expected = None
    if all(leaf.shape == leaves[0].shape for leaf in leaves):
        is_block = all(
            not (d & ~np.eye(len(d), dtype=bool)).any() for leaf in dependencies for d in leaf
        )
        is_separable = all(
            not d.any() for n, leaf in enumerate(dependencies) for k, d in enumerate(leaf) if n != k
        )
        expected = None if not is_block else "diagonal" if is_separable else "block"
    params, carry, z, _ = draws[0]
    assert jacobian_sparsity(cell, params, carry, z) == expected


def test_leading_axes_do_not_change_the_structure(row: Row) -> None:
    cell = row.make(HIDDEN)
    params, carry, z, u = sample_step_args(cell, 0)
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf] * HIDDEN), (carry, z, u))
    is_elementwise = update_is_elementwise(cell, params, carry, z, u)
    assert update_is_elementwise(cell, params, *batch) == is_elementwise
    assert jacobian_sparsity(cell, params, *batch[:2]) == jacobian_sparsity(cell, params, carry, z)


S = np.ones((3, 3), np.float32)
ELEMENTWISE = {
    "arithmetic": lambda p, s: jnp.tanh(p * s + 1) ** 2 / (1 + jnp.exp(-s)),
    "choice": lambda p, s: jnp.where(s > 0, p * s, jnp.maximum(s, p)),
    "any operation on parameters": lambda p, s: s * (p @ p).sum() + jnp.cumsum(p, axis=0)[::-1],
    "broadcast": lambda p, s: s[:, :, None] * p,
    "axis of size one": lambda p, s: s[None].reshape(3, 1, 3)[:, 0],
    "custom derivative": lambda p, s: jax.nn.relu(s) + jax.nn.silu(s) + jax.nn.softplus(s),
    "within jit": lambda p, s: jax.jit(jnp.multiply)(p, s),
    "within checkpoint": lambda p, s: jax.checkpoint(lambda a: jnp.sin(p * a))(s),
    "no derivative": lambda p, s: lax.stop_gradient(s).astype(jnp.bfloat16),
}
MIXING = {
    "matrix product": lambda p, s: s @ p,
    "product with itself": lambda p, s: s @ s,
    "sum": lambda p, s: s.sum(axis=0),
    "running sum": lambda p, s: jnp.cumsum(s, axis=0),
    "softmax": lambda p, s: jax.nn.softmax(s),
    "reversed": lambda p, s: s[::-1],
    "rolled": lambda p, s: jnp.roll(s, 1, axis=0),
    "transposed": lambda p, s: s.T,
    "slice": lambda p, s: s[:2],
    "concatenated": lambda p, s: jnp.concatenate([s, p]),
    "reshaped": lambda p, s: s.reshape(9),
    "sorted": lambda p, s: jnp.sort(s),
    "within jit": lambda p, s: jax.jit(jnp.matmul)(s, p),
    "within checkpoint": lambda p, s: jax.checkpoint(lambda a: a @ p)(s),
    "loop": lambda p, s: lax.fori_loop(0, 3, lambda _, a: a @ p, s),
    "branch": lambda p, s: lax.cond(p.sum() > 0, lambda a: a @ p, lambda a: a, s),
    "convolution": lambda p, s: jnp.convolve(s[0], p[0]),
    "gathered": lambda p, s: s[jnp.array([2, 0, 1])],
    "callback": lambda p, s: jax.pure_callback(np.flip, jax.ShapeDtypeStruct(S.shape, S.dtype), s),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_operations_are_detected(name: str) -> None:
    assert trace_dependencies(ELEMENTWISE[name], S, S).is_elementwise


@pytest.mark.parametrize("name", MIXING)
def test_mixing_operations_are_not_elementwise(name: str) -> None:
    result = trace_dependencies(MIXING[name], S, S)
    assert not result.is_elementwise and result.sources == (frozenset({0}),)


def test_trace_dependencies_tracks_each_array_separately() -> None:
    def function(p: Any, arrays: Any) -> Any:
        a, b, c = arrays
        return jax.jit(lambda x, y: (y, x * p))(a, b), p, a * c

    result = trace_dependencies(function, S, (S, S, S))
    assert result.is_elementwise
    assert [sorted(source) for source in result.sources] == [[1], [0], [], [0, 2]]


def test_mixing_of_gates_keeps_the_jacobian_diagonal() -> None:
    # The softmax mixes z, so `update` is not elementwise, but it is in the carry.
    class Weighted(MinGRU):
        def update(self, params: Any, carry: Any, z: Any, u: None) -> jax.Array:
            return carry * jax.nn.softmax(z.z)

    cell = Weighted(HIDDEN)
    params, carry, z, u = sample_step_args(cell, 0)
    assert not update_is_elementwise(cell, params, carry, z, u)
    assert jacobian_sparsity(cell, params, carry, z) == "diagonal"


def test_products_with_parameters_are_detected_at_any_depth() -> None:
    for cell, expected in [
        (MGU(HIDDEN), True),
        (GRU(HIDDEN), False),
        (GRU(HIDDEN, reset_after=False), True),
        (Elman(HIDDEN), False),
        (MinimalRNN(HIDDEN), False),
    ]:
        assert multiplies_by_params(cell.update, *sample_step_args(cell, 0)) == expected, cell
    params, w = {"w": S}, S
    for function, expected in [
        (lambda p, x: jax.jit(lambda w, x: x @ w)(p["w"].T / 2, x), True),
        (lambda p, x: jax.checkpoint(lambda x: x @ p["w"])(x), True),
        (lambda p, x: lax.scan(lambda s, _: (s @ p["w"], None), x, None, length=2)[0], True),
        (lambda p, x: jnp.convolve(x[0], p["w"][0]), True),
        (lambda p, x: p["w"] * (x @ w), False),
        (lambda p, x: jax.jit(lambda w, x: w + x @ x)(p["w"], x), False),
    ]:
        assert multiplies_by_params(function, params, S) == expected


def test_find_used_leaves_returns_leaves_that_a_function_uses() -> None:
    cell = LSTM(HIDDEN, peepholes=True)
    params, carry, z, u = sample_step_args(cell, 0)
    update = find_used_leaves(lambda p, s, z: cell.update(p, s, z, u), params, carry, z)
    names = [name for name, leaf in params._asdict().items() if leaf is not None]
    assert {n for n, read in zip(names, update.params, strict=True) if read} == {
        "p_i",
        "p_f",
        "p_o",
    }
    assert update.carry == (False, True) and all(update.z)
    readout = find_used_leaves(cell.readout, params, carry, z)
    assert readout.carry == (True, False) and not any(readout.params + readout.z)
    assert LSTMCarry._fields == ("h", "c")


def test_reverse_mode_only_functions_are_detected() -> None:
    @jax.custom_vjp
    def function(a: jax.Array) -> jax.Array:
        return jnp.tanh(a)

    function.defvjp(lambda a: (jnp.tanh(a), a), lambda a, ct: (ct,))
    assert has_reverse_mode_only(function, S)
    assert has_reverse_mode_only(lambda a: jax.jit(function)(a) + 1, S)
    assert has_reverse_mode_only(lambda a: lax.map(function, a), S)
    assert not has_reverse_mode_only(jax.nn.relu, S)
