"""The Jacobians of `Newton`, against forward mode of one step and finite differences."""

import itertools
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jrnn
from jrnn import (
    GRU,
    LRU,
    LSTM,
    Cell,
    Elman,
    MinGRU,
    Newton,
    ParaGRU,
    ParaLSTM,
    Scan,
    structure,
)
from jrnn.engines import jacobian
from jrnn.engines.equations import build_system
from jrnn.engines.jacobian import Step
from jrnn.engines.precision import bind, infer_precision
from jrnn.masking import Masks
from tests.cells.linear_toys import Mixer, Pair
from tests.cells.toys import LearnedInitialCarry
from tests.helpers import (
    Batch,
    assert_close,
    mark_exhaustive,
    random_batch,
    random_params,
)
from tests.table import CELLS, Row

STEPS, BATCH, HIDDEN = 4, 2, 3


def make_step(cell: Cell, params: Any, xs: Any, treedef: Any) -> Step:
    """Returns the `Step` of a cell whose carry has the tree structure `treedef`."""
    precision = infer_precision(params, xs)
    bound = bind(cell, params, precision)
    return Step(bound, treedef, bound.project(xs), jacobian.exact_kind(bound, xs))


def flatten_tree(tree: Any) -> Any:
    """Concatenates all leaves into one vector."""
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])


@partial(jax.jit, static_argnames="cell")
def compute_all(cell: Cell, params: Any, xs: Any, prev_carries: Any) -> Any:
    """Computes the carry after each step and its Jacobians, by `jacobian` and by forward mode.

    Returns:
      The results of `full`, `blocks` and `diagonal`, where that of `blocks` is None if the leaves
      of the carry differ in shape; and by forward mode the carries `[T, B, n]` and the Jacobians
      `[T, B, n, n]`.
    """
    leaves, treedef = jax.tree.flatten(prev_carries)
    step = make_step(cell, params, xs, treedef)
    same_shape = len({leaf.shape for leaf in leaves}) == 1
    blocks = jacobian.blocks(step, leaves) if same_shape else None
    kinds = jacobian.full(step, leaves), blocks, jacobian.diagonal(step, leaves)
    holomorphic = jnp.issubdtype(leaves[0].dtype, jnp.complexfloating)

    def one_step(prev: Any, x: Any) -> Any:
        vector, unravel = ravel_pytree(prev)
        after = lambda vector: flatten_tree(cell.step(params, unravel(vector), x)[0])
        return after(vector), jax.jacfwd(after, holomorphic=holomorphic)(vector)

    return kinds, jax.vmap(jax.vmap(one_step))(prev_carries, xs)


def sample_inputs(cell: Cell, seed: int = 1) -> tuple[Any, Batch, Any]:
    """Returns parameters, a batch, and random carries before each step, leaves `[T, B, ...]`."""
    params = random_params(cell, seed, 2)
    batch = random_batch(cell, params, seed + 1, STEPS, BATCH)
    many = random_batch(cell, params, seed + 2, STEPS, STEPS * BATCH).carry
    prev_carries = jax.tree.map(lambda leaf: leaf.reshape(STEPS, BATCH, *leaf.shape[1:]), many)
    return params, batch, prev_carries


def flatten_units(leaf: Any) -> np.ndarray:
    """Reshapes a leaf `[T, B, ...]` to `[T, B, n]`."""
    return np.asarray(leaf).reshape(STEPS, BATCH, -1)


def concat_leaves(leaves: Any) -> np.ndarray:
    """Concatenates leaves `[T, B, ...]` to `[T, B, n]`."""
    return np.concatenate([flatten_units(leaf) for leaf in leaves], axis=-1)


def assert_jacobians_equal_forward_mode(cell: Cell) -> None:
    params, batch, prev_carries = sample_inputs(cell)
    (full, blocks, diagonal), (after, expected) = compute_all(cell, params, batch.xs, prev_carries)
    for result in (full, blocks, diagonal):
        if result is not None:
            np.testing.assert_allclose(concat_leaves(result[0]), after, atol=1e-13)
    np.testing.assert_allclose(full[1], expected, atol=1e-12)
    want = np.diagonal(expected, axis1=-2, axis2=-1)
    np.testing.assert_allclose(concat_leaves(diagonal[1]), want, atol=1e-12)
    if blocks is None:
        return
    width = flatten_units(jax.tree.leaves(prev_carries)[0]).shape[-1]
    count = expected.shape[-1] // width
    units = np.arange(width)
    for i in range(count):
        for j in range(count):
            entries = np.asarray(expected)[..., i * width + units, j * width + units]
            np.testing.assert_allclose(flatten_units(blocks[1][i][j]), entries, atol=1e-12)


def test_jacobians_equal_forward_mode_of_one_step(kind_or_row: Row, x64: None) -> None:
    cell = kind_or_row.make(HIDDEN)
    carry = jax.eval_shape(lambda p: cell.init_carry(p, ()), random_params(cell, 1, 2))
    allowed = jnp.inexact if structure.recurrence_kind(cell, 2) == "linear" else jnp.floating
    if not all(jnp.issubdtype(leaf.dtype, allowed) for leaf in jax.tree.leaves(carry)):
        pytest.skip("Newton raises for integer carries, and for complex carries of nonlinear cells")
    assert_jacobians_equal_forward_mode(cell)


def test_jacobians_of_one_unit_equal_forward_mode(x64: None) -> None:
    for cell in (LSTM(1), GRU(1, reset_after=False)):
        assert_jacobians_equal_forward_mode(cell)


def test_jacobians_of_a_custom_cell_equal_forward_mode(x64: None) -> None:
    assert_jacobians_equal_forward_mode(LearnedInitialCarry(HIDDEN))


@pytest.mark.parametrize("name", ["lstm", "lstm-peepholes", "gru", "gru-reset-before", "paralstm"])
def test_full_jacobians_equal_differences_of_the_oracle(name: str, x64: None) -> None:
    row, eps = CELLS[name], 1e-6
    cell = row.make(HIDDEN)
    params, batch, prev_carries = sample_inputs(cell)
    (full, *_), _ = compute_all(cell, params, batch.xs, prev_carries)
    for t in range(STEPS):
        for b in range(BATCH):
            leaves, treedef = jax.tree.flatten(
                jax.tree.map(lambda a, t=t, b=b: a[t, b], prev_carries)
            )
            point = np.concatenate(leaves)

            def after(point: Any, x: Any = batch.xs[t, b], treedef: Any = treedef) -> Any:
                parts = np.split(point, len(point) // HIDDEN)
                carry = jax.tree.unflatten(treedef, parts)
                return np.concatenate(jax.tree.leaves(row.step(params, carry, x)[0]))

            units = eps * np.eye(len(point))
            columns = [(after(point + e) - after(point - e)) / (2 * eps) for e in units]
            np.testing.assert_allclose(full[1][t, b], np.stack(columns, axis=-1), atol=1e-8)


EXACT_KINDS = {
    "diagonal": [ParaGRU(3), MinGRU(3), LRU(3)],
    "block": [ParaLSTM(3)],
    None: [LSTM(3), GRU(3), Elman(3), GRU(3, reset_after=False)],
}


@pytest.mark.parametrize("kind", EXACT_KINDS)
def test_exact_kind_is_the_sparsity_of_the_jacobian(kind: str | None, x64: None) -> None:
    for cell in EXACT_KINDS[kind]:
        params, batch, prev_carries = sample_inputs(cell)
        bound = bind(cell, params, infer_precision(params, batch.xs))
        assert jacobian.exact_kind(bound, batch.xs) == kind
        _, (_, expected) = compute_all(cell, params, batch.xs, prev_carries)
        count = len(jax.tree.leaves(prev_carries))
        n = expected.shape[-1]
        same_unit = np.arange(n)[:, None] % (n // count) == np.arange(n) % (n // count)
        allowed = {
            "diagonal": np.eye(n, dtype=bool),
            "block": same_unit,
            None: np.ones((n, n), bool),
        }
        outside = np.abs(expected) * ~allowed[kind]
        np.testing.assert_array_equal(outside, 0)
        assert kind is not None or (np.abs(expected) * ~same_unit).max() > 1e-3


@pytest.mark.parametrize("kind", ["diagonal", "block", "full"])
def test_jacobians_are_zero_at_resets_and_identity_on_padding(kind: Any, x64: None) -> None:
    cell = LSTM(2)
    params, batch, prev_carries = sample_inputs(cell)
    valid = np.ones((STEPS, BATCH), bool)
    valid[2:, 1] = False
    resets = np.zeros((STEPS, BATCH), bool)
    resets[1, 0] = True
    initial = cell.init_carry(params, (BATCH,))
    masks = Masks(None, jnp.asarray(valid), jnp.asarray(resets), initial)
    bound = bind(cell, params, infer_precision(params, batch.xs))
    system = build_system(bound, batch.carry, batch.xs, masks, False)
    states = jax.tree.leaves(prev_carries)
    after, matrices = system.linearize(kind, states)
    if kind == "full":
        dense = np.asarray(matrices)
        diagonals = [dense[..., k, k] for k in range(4)]
        off_diagonal = dense * (1 - np.eye(4))
    elif kind == "block":
        diagonals = [matrices[k][k] for k in range(2)]
        off_diagonal = np.stack([matrices[0][1], matrices[1][0]], axis=-1)
    else:
        diagonals, off_diagonal = matrices, np.zeros((STEPS, BATCH, 1))
    for diagonal in diagonals:
        assert (np.asarray(diagonal)[1, 0] == 0).all()
        assert (np.asarray(diagonal)[2:, 1] == 1).all()
        assert (np.asarray(diagonal)[0] != 0).any()
    assert (off_diagonal[1, 0] == 0).all()
    assert (off_diagonal[2:, 1] == 0).all()
    for leaf, prev in zip(after, states, strict=True):
        np.testing.assert_array_equal(leaf[2:, 1], prev[1:-1, 1])


# Cells with a bias in `recur`, a carry with a further axis, a linear step with matrices, and leaves
# of different shapes.

JACOBIAN_OPTIONS = ("auto", "full", "diagonal")


@dataclass(frozen=True)
class Biased(jrnn.Elman):
    """A bias in `recur`, as in PyTorch, which does not affect the Jacobian of `recur`."""

    def recur(self, params: Any, carry: Any) -> Any:
        return super().recur(params, carry) + params.b


@dataclass(frozen=True)
class Heads(jrnn.Cell):
    """A carry `[B, 3, hidden]`: unit k of each row also depends on unit k of the previous row."""

    hidden_size: int

    def init(self, key: Any, input_size: int, dtype: Any = jnp.float32) -> Any:
        return jax.random.normal(key, (input_size, 3 * self.hidden_size), dtype)

    def init_carry(self, params: Any, batch_shape: tuple[int, ...]) -> Any:
        return jnp.zeros((*batch_shape, 3, self.hidden_size), params.dtype)

    def project(self, params: Any, x: Any) -> Any:
        z = x @ params
        return z.reshape(*z.shape[:-1], 3, self.hidden_size)

    def recur(self, params: Any, carry: Any) -> None:
        return None

    def update(self, params: Any, carry: Any, z: Any, u: None) -> Any:
        return jnp.tanh(z + 0.5 * carry - 0.4 * jnp.roll(carry, 1, axis=-2))

    def readout(self, params: Any, carry: Any, z: Any) -> Any:
        return carry.sum(axis=-2)


@pytest.mark.parametrize(
    ("cell", "kind"),
    mark_exhaustive(
        itertools.product([Biased(3), Heads(3), Mixer(3), Pair(3)], JACOBIAN_OPTIONS),
        always=[
            (Biased(3), "auto"),
            (Heads(3), "auto"),
            (Heads(3), "diagonal"),
            (Mixer(3), "full"),
            (Pair(3), "auto"),
        ],
    ),
    ids=repr,
)
def test_values_and_gradients_of_unusual_cells_equal_scan(cell: Any, kind: Any, x64: None) -> None:
    params = cell.init(jax.random.key(0), 2, jnp.float64)
    params = jax.tree.map(lambda p: p + 0.1, params)
    xs = np.random.default_rng(0).normal(size=(9, 3, 2))
    resets = np.zeros((9, 3), bool)
    resets[4, 1] = True

    def loss(params: Any, xs: Any, engine: Any) -> Any:
        options = {"lengths": np.array([9, 7, 0]), "resets": resets, "engine": engine}
        carry, ys = jrnn.unroll(cell, params, xs, **options)
        return sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves((carry, ys)))

    grads = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=2)
    got, want = grads(params, xs, Newton(kind)), grads(params, xs, Scan())
    assert_close(got, want, 1e-9)
