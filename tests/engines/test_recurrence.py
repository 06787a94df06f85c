"""`recurrence.solve` against a NumPy loop, and its derivatives against those of `lax.scan`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jrnn.engines import recurrence
from tests.helpers import assert_close, mark_exhaustive

BATCH, UNITS = 2, 3
CHUNKS_BY_STEPS = {
    12: (1, 2, 3, 11, 12, 20, None),
    7: (1, 3),
    2: (1, 2, None),
    1: (1, 3),
    0: (1, 4),
}
"""Tested chunk sizes by number of steps."""
FEW_CHUNKS = (1, 5, None)  # pure associative scan, chunks with a remainder, sequential

Tree = Any


class Case(NamedTuple):
    """One kind of recurrence.

    Attributes:
      algebra: the algebra of A.
      a, b: shapes of the leaves, without the time axis.
      constant: whether A is the same at all steps.
      dtypes: float or complex, of A and of b.
      resets: whether A is a pair (A, keep).
    """

    algebra: recurrence.Algebra
    a: Tree
    b: Tree
    constant: bool = False
    dtypes: tuple[type, type] = (float, float)
    resets: bool = False


def block_case(k: int, **options: Any) -> Case:
    """Returns a case of `BLOCKS` with k leaves."""
    leaf = Shape((BATCH, UNITS))
    return Case(recurrence.BLOCKS, ((leaf,) * k,) * k, (leaf,) * k, **options)


class Shape(tuple):
    """The shape of a leaf; JAX would treat a plain tuple as a tree."""


ROWS, MATRICES = Shape((BATCH, UNITS)), Shape((BATCH, UNITS, UNITS))
CASES = {
    "diagonal": Case(recurrence.DIAGONAL, ROWS, ROWS),
    "diagonal-constant": Case(recurrence.DIAGONAL, Shape((1, UNITS)), ROWS, constant=True),
    "diagonal-broadcast": Case(recurrence.DIAGONAL, Shape((BATCH, 1)), ROWS, resets=True),
    "complex": Case(recurrence.DIAGONAL, ROWS, ROWS, dtypes=(complex, complex), resets=True),
    "complex-by-real": Case(recurrence.DIAGONAL, ROWS, ROWS, dtypes=(float, complex)),
    "blocks-1": block_case(1),
    "blocks-2": block_case(2, resets=True),
    "blocks-3-constant": block_case(3, constant=True),
    "dense": Case(recurrence.DENSE, MATRICES, ROWS, resets=True),
    "dense-complex": Case(recurrence.DENSE, MATRICES, ROWS, dtypes=(complex, complex)),
    "dense-constant": Case(
        recurrence.DENSE, Shape((1, UNITS, UNITS)), ROWS, constant=True, resets=True
    ),
}


class Problem(NamedTuple):
    """A recurrence, and a cotangent of its states."""

    a: Tree
    b: Tree
    init: Tree
    ct: Tree


def make_problem(case: Case, steps: int, seed: int = 1) -> tuple[Problem, np.ndarray]:
    """Returns a random problem, and `keep [T, B]`, False at a third of the steps."""
    rng = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...], dtype: type) -> np.ndarray:
        real = rng.normal(0, 0.7, shape)
        return real if dtype is float else real + 1j * rng.normal(0, 0.7, shape)

    def tree(shapes: Tree, dtype: type, *leading: int) -> Tree:
        is_leaf = lambda node: isinstance(node, Shape)
        return jax.tree.map(lambda s: draw((*leading, *s), dtype), shapes, is_leaf=is_leaf)

    a_dtype, b_dtype = case.dtypes
    drawn = Problem(
        a=tree(case.a, a_dtype, 1 if case.constant else steps),
        b=tree(case.b, b_dtype, steps),
        init=tree(case.b, b_dtype),
        ct=tree(case.b, b_dtype, steps),
    )
    return drawn, rng.random((steps, BATCH)) > 0.33


def matrices(case: Case, a: Tree, keep: Any) -> Tree:
    """Returns A as `recurrence.solve` expects it: with resets, the pair (A, keep)."""
    return (a, keep) if case.resets else a


def matvec(case: Case, a: Tree, s: Tree) -> Tree:
    """Returns the product A s of one step, in NumPy."""
    if case.algebra is recurrence.DIAGONAL:
        return a * s
    if case.algebra is recurrence.DENSE:
        return np.einsum("...ij,...j->...i", a, s)
    return tuple(sum(a[i][j] * s[j] for j in range(len(s))) for i in range(len(s)))


def loop(case: Case, p: Problem, keep: np.ndarray, reverse: bool) -> Tree:
    """Computes the state after each step in a NumPy loop, leaves `[T, B, ...]`."""
    steps = len(keep)
    states = jax.tree.map(np.zeros_like, p.b)
    state = p.init
    for t in reversed(range(steps)) if reverse else range(steps):
        a = jax.tree.map(lambda leaf, t=t: leaf[0 if case.constant else t], p.a)
        state = matvec(case, a, state)
        if case.resets:
            state = jax.tree.map(lambda s, t=t: np.where(keep[t][:, None], s, 0), state)
        state = jax.tree.map(lambda s, b, t=t: s + b[t], state, p.b)
        for leaf, s in zip(jax.tree.leaves(states), jax.tree.leaves(state), strict=True):
            leaf[t] = s
    return states


def plain_scan(case: Case, p: Problem, keep: Any, reverse: bool) -> Tree:
    """Computes the state after each step by `lax.scan`, without a custom derivative."""
    steps = len(keep)
    a = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (steps, *leaf.shape[1:])), p.a)

    def body(state: Tree, inputs: Tree) -> tuple[Tree, Tree]:
        a, b, keep = inputs
        if case.algebra is recurrence.DENSE:
            product = jnp.einsum("...ij,...j->...i", a, state)
        else:
            product = matvec(case, a, state)
        if case.resets:
            product = jax.tree.map(lambda s: s * keep[:, None], product)
        state = jax.tree.map(jnp.add, product, b)
        return state, state

    return lax.scan(body, p.init, (a, p.b, keep), reverse=reverse)[1]


def solve(case: Case, p: Problem, keep: Any, reverse: bool, chunk: int | None) -> Tree:
    """Computes the state after each step by `recurrence.solve`."""
    algebra = recurrence.with_resets(case.algebra) if case.resets else case.algebra
    a = matrices(case, p.a, keep)
    return recurrence.solve(algebra, a, p.b, p.init, reverse=reverse, chunk=chunk)


Solver = Callable[[Problem], Tree]


def states_and_gradients(run: Solver, p: Problem) -> tuple[Tree, Tree]:
    """Returns the states, and the gradients with respect to a, b and init."""
    states, vjp = jax.vjp(lambda a, b, s: run(p._replace(a=a, b=b, init=s)), p.a, p.b, p.init)
    return states, vjp(p.ct)


# Blocks expand to many operations, which compile slowly.
SETTINGS = [
    (name, steps, chunks)
    for name in CASES
    for steps, chunks in (
        {7: FEW_CHUNKS, 2: (1,)} if "blocks-" in name else CHUNKS_BY_STEPS
    ).items()
]
SETTINGS += [("blocks-1", 12, CHUNKS_BY_STEPS[12]), ("blocks-2", 12, (2, 3, 11))]


# Every case and every number of steps at least once; the exhaustive tests run all settings.
DEFAULT_SETTINGS = {
    *((name, 7) for name in CASES if "blocks-3" not in name),
    *(("diagonal", steps) for steps in CHUNKS_BY_STEPS),
    ("complex", 12),
    ("dense", 0),
    ("blocks-2", 2),
    ("blocks-2", 12),
    ("blocks-3-constant", 2),
}


@pytest.mark.parametrize(
    ("name", "steps", "chunks"),
    mark_exhaustive(SETTINGS, always=[s for s in SETTINGS if s[:2] in DEFAULT_SETTINGS]),
)
def test_states_and_gradients_equal_a_loop(
    name: str, steps: int, chunks: tuple[int | None, ...], x64: None
) -> None:
    case = CASES[name]
    p, keep = make_problem(case, steps)

    @jax.jit
    def reference_and_solutions(p: Problem, keep: Any) -> tuple[Tree, list[Tree]]:
        expected = [
            states_and_gradients(lambda q, r=r: plain_scan(case, q, keep, r), p)[1]
            for r in (False, True)
        ]
        solver = lambda r, c: lambda q: solve(case, q, keep, r, c)
        return expected, [
            [states_and_gradients(solver(r, c), p) for c in chunks] for r in (False, True)
        ]

    expected, got = reference_and_solutions(p, keep)
    for reverse in (False, True):
        for states, grads in got[reverse]:
            assert_close(states, loop(case, p, keep, reverse), 1e-12)
            assert_close(grads, expected[reverse], 1e-11)


def make_small_problem(name: str) -> tuple[Case, Problem, np.ndarray]:
    """Returns a case, and a random problem of 7 steps with its `keep`."""
    return CASES[name], *make_problem(CASES[name], 7)


DERIVATIVE_CASES = ("diagonal", "complex", "blocks-2", "dense")


@pytest.mark.parametrize("name", DERIVATIVE_CASES)
def test_derivatives_of_all_modes_equal_those_of_a_scan(name: str, x64: None) -> None:
    # Forward mode, reverse over reverse, and forward over reverse as in jax.hessian.
    case, p, keep = make_small_problem(name)
    direction, _ = make_problem(case, 7, seed=2)
    direction = direction._replace(ct=jax.tree.map(np.zeros_like, p.ct))

    def modes(run: Solver) -> Tree:
        def loss(q: Problem) -> jax.Array:
            cubed = jax.tree.map(lambda s, ct: jnp.sum(s**3 * ct).real, run(q), p.ct)
            return sum(jax.tree.leaves(cubed), jnp.zeros(()))

        def slope(q: Problem) -> jax.Array:
            products = jax.tree.map(lambda g, v: jnp.sum(g * v).real, jax.grad(loss)(q), direction)
            return sum(jax.tree.leaves(products), jnp.zeros(()))

        return (
            jax.jvp(run, (p,), (direction,)),
            jax.grad(slope)(p),
            jax.jvp(jax.grad(loss), (p,), (direction,))[1],
        )

    @jax.jit
    def compute_all(keep: Any) -> list[Tree]:
        expected = modes(lambda q: plain_scan(case, q, keep, True))
        return [
            expected,
            *(modes(lambda q, c=c: solve(case, q, keep, True, c)) for c in FEW_CHUNKS),
        ]

    expected, *got = compute_all(keep)
    for modes_of_chunk in got:
        assert_close(modes_of_chunk, expected, 1e-10)


def test_hessian_equals_that_of_a_scan(x64: None) -> None:
    case, p, keep = make_small_problem("diagonal")

    def hessian_of(run: Solver) -> Tree:
        return jax.hessian(lambda a: jnp.sum(run(p._replace(a=a)) ** 2))(p.a)

    @jax.jit
    def reference_and_solutions() -> Tree:
        solver = lambda c: lambda q: solve(case, q, keep, False, c)
        return hessian_of(lambda q: plain_scan(case, q, keep, False)), [
            hessian_of(solver(c)) for c in FEW_CHUNKS
        ]

    expected, got = reference_and_solutions()
    assert np.abs(expected).max() > 1
    for hessian in got:
        assert_close(hessian, expected, 1e-11)


def test_gradients_equal_central_differences(x64: None) -> None:
    case, p, keep = make_small_problem("blocks-2")
    loss = lambda q: sum(
        (s * c).sum() for s, c in zip(loop(case, q, keep, False), p.ct, strict=True)
    )
    _, (by_a, by_b, by_init) = jax.jit(
        lambda p: states_and_gradients(lambda q: solve(case, q, keep, False, 3), p)
    )(p)
    eps = 1e-5
    for field, grads in zip(("a", "b", "init"), (by_a, by_b, by_init), strict=True):
        leaves, structure = jax.tree.flatten(getattr(p, field))
        for n, leaf in enumerate(leaves):
            index = tuple(size // 2 for size in leaf.shape)
            ends = []
            for step in (eps, -eps):
                perturbed = [other.copy() for other in leaves]
                perturbed[n][index] += step
                ends.append(loss(p._replace(**{field: jax.tree.unflatten(structure, perturbed)})))
            slope = (ends[0] - ends[1]) / (2 * eps)
            np.testing.assert_allclose(jax.tree.leaves(grads)[n][index], slope, atol=1e-8)


@pytest.mark.parametrize("name", ("complex", "blocks-2", "dense"))
def test_vmap_equals_separate_calls(name: str, x64: None) -> None:
    case = CASES[name]
    problems, keeps = zip(*(make_problem(case, 7, seed) for seed in (1, 2)), strict=True)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *problems)

    @jax.jit
    def run(p: Problem, keep: Any) -> list[Tree]:
        solver = lambda c, keep: lambda q: solve(case, q, keep, True, c)
        return [
            jax.vmap(lambda q, k, c=c: states_and_gradients(solver(c, k), q))(p, keep)
            for c in FEW_CHUNKS
        ]

    for states, grads in run(stacked, np.stack(keeps)):
        for n, (p, keep) in enumerate(zip(problems, keeps, strict=True)):
            of_n = jax.tree.map(lambda leaf, n=n: leaf[n], (states, grads))
            expected = jax.jit(
                lambda p, keep: states_and_gradients(lambda q: plain_scan(case, q, keep, True), p),
            )(p, keep)
            assert_close(of_n[0], loop(case, p, keep, True), 1e-12)
            assert_close(of_n[1], expected[1], 1e-11)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("bad", [np.inf, np.nan])
@pytest.mark.parametrize("name", ("diagonal-broadcast", "blocks-2", "dense"))
def test_inf_and_nan_do_not_pass_a_reset(name: str, bad: float, reverse: bool) -> None:
    case = CASES[name]
    p, keep = make_problem(case, 12)
    keep[:], keep[5, 0] = True, False
    before = [3, 8][reverse]
    with_bad = jax.tree.map(np.copy, p)
    jax.tree.leaves(with_bad.b)[0][before, 0] = bad
    jax.tree.leaves(with_bad.a)[0][[4, 7][reverse], 0] = bad
    jax.tree.leaves(with_bad.a)[-1][5, 0] = bad  # the matrix of the reset itself
    jax.tree.leaves(with_bad.init)[0][0] = bad
    chunks = (1, 2, 3, 5, 12)

    @jax.jit
    def run(p: Problem, keep: Any) -> list[Tree]:
        return [solve(case, p, keep, reverse, c) for c in chunks]

    after_reset = np.s_[:6, 0] if reverse else np.s_[5:, 0]
    other = np.s_[:, 1]
    expected = loop(case, as_single(p), keep, reverse)
    for states in run(as_single(with_bad), keep):
        for state, want in zip(jax.tree.leaves(states), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(state[after_reset], want[after_reset], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(state[other], want[other], rtol=1e-5, atol=1e-5)
            assert not np.isfinite(jax.tree.leaves(states)[0][before, 0]).all()


def as_single(tree: Tree) -> Tree:
    """Casts all leaves to float32."""
    return jax.tree.map(lambda leaf: leaf.astype(np.float32), tree)


def test_constant_and_varying_blocks_equal_a_loop(x64: None) -> None:
    case = CASES["blocks-2"]._replace(resets=False)
    p, keep = make_problem(case, 7)
    (first, second), last_row = p.a
    mixed = p._replace(a=((first[:1], second), last_row))
    full = p._replace(a=((np.broadcast_to(first[:1], first.shape), second), last_row))
    chunks = (1, 2, None)
    run = jax.jit(
        lambda p: [
            states_and_gradients(lambda q, c=c: solve(case, q, keep, False, c), p) for c in chunks
        ],
    )
    want, (by_a, by_b, by_init) = states_and_gradients(
        lambda q: plain_scan(case, q, keep, False), full
    )
    (grad, second), last_row = by_a
    by_a = ((grad.sum(0, keepdims=True), second), last_row)
    for states, grads in run(mixed):
        assert_close(states, loop(case, full, keep, False), 1e-12)
        assert_close(grads, (by_a, by_b, by_init), 1e-11)


NUM_STEPS = 10_000


@pytest.mark.parametrize("chunk", [1, 64, None])
def test_ten_thousand_steps_are_accurate(chunk: int | None, reverse: bool) -> None:
    rng = np.random.default_rng(3)
    a = 1 - 10 ** rng.uniform(-5, 0, (NUM_STEPS, BATCH, UNITS))
    b, init = rng.normal(size=a.shape), rng.normal(size=a.shape[1:])
    inputs = as_single((a, b, init))
    p = Problem(*jax.tree.map(np.float64, inputs), ct=b)
    expected = loop(CASES["diagonal"], p, np.ones(NUM_STEPS), reverse)
    run = lambda a, b, init: recurrence.solve(
        recurrence.DIAGONAL, a, b, init, reverse=reverse, chunk=chunk
    )
    assert_close(jax.jit(run)(*inputs), expected, 1e-4)
    with jax.enable_x64(True):
        assert_close(jax.jit(run)(p.a, p.b, p.init), expected, 1e-9)


def test_shift_and_last_follow_the_scan_order() -> None:
    states, init = np.arange(1.0, 4)[:, None], np.zeros(1)
    np.testing.assert_array_equal(recurrence.shift(states, init, False)[:, 0], [0, 1, 2])
    np.testing.assert_array_equal(recurrence.shift(states, init, True)[:, 0], [2, 3, 0])
    assert recurrence.last(states, False) == 3
    assert recurrence.last(states, True) == 1


def test_default_chunk_is_all_steps_on_a_cpu_and_one_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert [recurrence.default_chunk(n) for n in (0, 1, 9)] == [1, 1, 9]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert [recurrence.default_chunk(n) for n in (0, 1, 9)] == [1, 1, 1]
