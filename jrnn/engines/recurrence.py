"""Solvers for linear recurrences over time, s_t = A_t s_{t-1} + b_t.

Elements (A, b) compose: (A_2, b_2) after (A_1, b_1) is (A_2 A_1, A_2 b_1 + b_2). Composition is
associative, so a parallel scan has logarithmic depth. A sequential scan needs only one pass over
memory. A and b may be pytrees; an `Algebra` defines their products.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jrnn.masking import expand_mask

Matrices = Any
Vectors = Any


class Algebra(NamedTuple):
    """The products of the matrices and vectors of a recurrence.

    Attributes:
      matmul: the product of two pytrees of matrices; the first is that of the later step.
      matvec: the product of a pytree of matrices with a pytree of vectors.
      transpose: the transpose of a pytree of matrices, without conjugation.
      pack: packs a pytree of vectors into one array, for `lax.custom_linear_solve`.
      unpack: the inverse of `pack`.
    """

    matmul: Callable[[Matrices, Matrices], Matrices]
    matvec: Callable[[Matrices, Vectors], Vectors]
    transpose: Callable[[Matrices], Matrices]
    pack: Callable[[Vectors], jax.Array] = lambda vectors: vectors
    unpack: Callable[[jax.Array], Vectors] = lambda packed: packed


def _matmul_blocks(a: Matrices, b: Matrices) -> Matrices:
    columns = tuple(zip(*b, strict=True))
    return tuple(tuple(_dot(row, column) for column in columns) for row in a)


def _dot(row: tuple[jax.Array, ...], column: tuple[jax.Array, ...]) -> jax.Array:
    first, *others = (a * b for a, b in zip(row, column, strict=True))
    return sum(others, start=first)


DIAGONAL = Algebra(
    matmul=jnp.multiply,
    matvec=jnp.multiply,
    transpose=lambda a: a,
)
"""Diagonal matrices: b is an array, and A an array that broadcasts against it."""

BLOCKS = Algebra(
    matmul=_matmul_blocks,
    matvec=lambda a, s: tuple(_dot(row, s) for row in a),
    transpose=lambda a: tuple(zip(*a, strict=True)),
    pack=lambda s: jnp.stack(s, axis=1),
    unpack=lambda packed: tuple(packed[:, k] for k in range(packed.shape[1])),
)
"""Block-diagonal matrices, where unit k of each leaf depends on unit k of all n leaves.

b is a tuple of n arrays, and A a tuple of n rows, each a tuple of n arrays.
"""

_matmul = partial(jnp.matmul, precision="highest")  # float32, not TF32

DENSE = Algebra(
    matmul=_matmul,
    matvec=lambda a, s: _matmul(a, s[..., None])[..., 0],
    transpose=lambda a: jnp.swapaxes(a, -1, -2),
)
"""Dense matrices: b is an array `[..., n]`, and A an array `[..., n, n]`."""


def with_resets(algebra: Algebra) -> Algebra:
    """Returns the algebra of pairs (A, keep), where A is zero if `keep` `[T, B]` is False.

    The product of a masked A with a vector is zero even if the vector has inf or NaN.
    """
    mask = lambda keep, s: jax.tree.map(lambda leaf: jnp.where(expand_mask(keep, leaf), leaf, 0), s)
    return algebra._replace(
        matmul=lambda a, b: (algebra.matmul(a[0], b[0]), a[1] & b[1]),
        matvec=lambda a, s: mask(a[1], algebra.matvec(a[0], s)),
        transpose=lambda a: (algebra.transpose(a[0]), a[1]),
    )


def default_chunk(steps: int) -> int:
    """Returns T on a CPU, for one pass over memory, and 1 otherwise, for logarithmic depth.

    On two CPU cores the sequential scan takes as long as a copy of b, and is 7 times as fast as the
    associative scan.
    """
    return max(1, steps) if jax.default_backend() == "cpu" else 1


def solve(
    algebra: Algebra,
    a: Matrices,
    b: Vectors,
    init: Vectors,
    *,
    reverse: bool = False,
    chunk: int | None = None,
) -> Vectors:
    """Solves s_t = A_t s_{t-1} + b_t for all t, with derivatives of every mode and order.

    The tangents satisfy a recurrence of the same form, the cotangents one in the opposite scan
    direction.

    Args:
      algebra: the products of matrices and vectors.
      a: the matrices, leaves `[T, ...]`, or `[1, ...]` if they are the same at all steps.
      b: the vectors, leaves `[T, ...]`.
      init: the state before the first step in scan order, leaves `[...]`.
      reverse: whether to scan from the last step to the first.
      chunk: number of consecutive steps that are computed sequentially; chunks are combined by an
        associative scan. 1 is a pure associative scan, more than T / 2 a sequential loop. None
        means `default_chunk(T)`.

    Returns:
      The state after each step, leaves `[T, ...]`.
    """
    steps = len(jax.tree.leaves(b)[0])
    chunk = min(default_chunk(steps) if chunk is None else chunk, max(1, steps))
    if steps == 0:
        return b
    first = steps - 1 if reverse else 0
    select = lambda tree: jax.tree.map(lambda leaf: leaf[first if len(leaf) > 1 else 0], tree)
    add_first = lambda leaf, value: jnp.asarray(leaf).at[first].add(value)
    b = jax.tree.map(add_first, b, algebra.matvec(select(a), init))
    run = partial(_compute_states, algebra, chunk=chunk)
    zero = jax.tree.map(jnp.zeros_like, init)

    def residual(packed: jax.Array) -> jax.Array:
        states = algebra.unpack(packed)
        products = algebra.matvec(a, shift(states, zero, reverse))
        return algebra.pack(jax.tree.map(jnp.subtract, states, products))

    def forward(_: Any, packed: jax.Array) -> jax.Array:
        return algebra.pack(run(a, algebra.unpack(packed), zero, reverse))

    def backward(_: Any, packed: jax.Array) -> jax.Array:
        transposed, cotangents = algebra.transpose(a), algebra.unpack(packed)
        return algebra.pack(run(transposed, cotangents, zero, not reverse, multiply_last=True))

    return algebra.unpack(lax.custom_linear_solve(residual, algebra.pack(b), forward, backward))


def shift(states: Vectors, init: Vectors, reverse: bool) -> Vectors:
    """Returns the state before each step, from `init` and the state after each step."""
    if reverse:
        return jax.tree.map(lambda s, s0: jnp.concatenate([s[1:], s0[None]]), states, init)
    return jax.tree.map(lambda s, s0: jnp.concatenate([s0[None], s[:-1]]), states, init)


def last(states: Vectors, reverse: bool) -> Vectors:
    """Returns the state after the last step in scan order."""
    return jax.tree.map(lambda s: s[0] if reverse else s[-1], states)


def _compute_states(
    algebra: Algebra,
    a: Matrices,
    b: Vectors,
    init: Vectors,
    reverse: bool,
    *,
    chunk: int,
    multiply_last: bool = False,
) -> Vectors:
    """Computes the states, without a custom derivative.

    With `multiply_last`, the carry of the loop is r_t = A_t s_t, and s_t = r_{t-1} + b_t.
    """
    steps = len(jax.tree.leaves(b)[0])
    chunks = steps // chunk
    if chunks == 1:
        return _sequential(algebra, a, b, init, reverse, multiply_last)[0]
    full = chunks * chunk
    if full == steps:
        return _chunked(algebra, a, b, init, reverse, multiply_last, chunk)[0]
    # The steps after the last full chunk are a shorter chunk.
    full_chunks, rest = (
        (_slice_steps(a, part), _slice_steps(b, part)) for part in (slice(full), slice(full, None))
    )
    solve_chunks = partial(
        _chunked, algebra, reverse=reverse, multiply_last=multiply_last, chunk=chunk
    )
    solve_rest = partial(_sequential, algebra, reverse=reverse, multiply_last=multiply_last)
    if reverse:
        second, init = solve_rest(*rest, init)
        first, _ = solve_chunks(*full_chunks, init)
    else:
        first, init = solve_chunks(*full_chunks, init)
        second, _ = solve_rest(*rest, init)
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y]), first, second)


def _slice_steps(tree: Any, part: slice) -> Any:
    """Slices the time axis of all leaves that vary over time."""
    return jax.tree.map(lambda leaf: leaf if len(leaf) == 1 else leaf[part], tree)


def _sequential(
    algebra: Algebra, a: Matrices, b: Vectors, init: Vectors, reverse: bool, multiply_last: bool
) -> tuple[Vectors, Vectors]:
    """Computes the states and the final carry, step by step."""
    steps = len(jax.tree.leaves(b)[0])
    # Matrices that are constant over time are not inputs of the scan, but constants of its body.
    leaves, structure = jax.tree.flatten(a)
    constant = [len(leaf) == 1 and steps > 1 for leaf in leaves]
    varying = [None if same else leaf for leaf, same in zip(leaves, constant, strict=True)]

    def body(carry: Vectors, inputs: Any) -> tuple[Vectors, Vectors]:
        varying, b = inputs
        matrices = [leaf[0] if m is None else m for leaf, m in zip(leaves, varying, strict=True)]
        a_t = jax.tree.unflatten(structure, matrices)
        return _step(algebra, multiply_last, a_t, b, carry)

    carry, states = lax.scan(body, init, (varying, b), reverse=reverse)
    return states, carry


def _step(
    algebra: Algebra, multiply_last: bool, a: Matrices, b: Vectors, carry: Vectors
) -> tuple[Vectors, Vectors]:
    """Returns the carry for the next step, and the state."""
    if multiply_last:
        state = jax.tree.map(jnp.add, carry, b)
        return algebra.matvec(a, state), state
    state = jax.tree.map(jnp.add, algebra.matvec(a, carry), b)
    return state, state


def _chunked(
    algebra: Algebra,
    a: Matrices,
    b: Vectors,
    init: Vectors,
    reverse: bool,
    multiply_last: bool,
    chunk: int,
) -> tuple[Vectors, Vectors]:
    """Computes the states and the final carry, with all chunks in parallel.

    The steps of each chunk are composed, an associative scan over chunks computes the carry before
    each chunk, and a loop then computes the states of all chunks.
    """
    a, b = (jax.tree.map(lambda leaf: _split_chunks(leaf, chunk), tree) for tree in (a, b))
    step_of = (lambda n: chunk - 1 - n) if reverse else (lambda n: n)
    select = lambda tree, n: jax.tree.map(
        lambda leaf: lax.dynamic_index_in_dim(leaf, n if leaf.shape[1] > 1 else 0, 1, False), tree
    )

    def compose(n: jax.Array, element: tuple[Matrices, Vectors]) -> tuple[Matrices, Vectors]:
        product, offset = element
        a_n, b_n = (select(tree, step_of(n)) for tree in (a, b))
        offset, _ = _step(algebra, multiply_last, a_n, b_n, offset)
        return algebra.matmul(a_n, product), offset

    first = select(a, step_of(0))
    # The first axis of a leaf that is constant over time has size 1; that of its product with
    # another leaf is the number of chunks.
    like = jax.eval_shape(algebra.matmul, first, first)
    first = jax.tree.map(lambda leaf, product: jnp.broadcast_to(leaf, product.shape), first, like)
    zero = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[:, 0]), b)
    offset, _ = _step(algebra, multiply_last, first, select(b, step_of(0)), zero)
    product, offset = lax.fori_loop(1, chunk, compose, (first, offset))
    final_carries = _scan_elements(algebra, product, offset, init, reverse)
    initial_carries = shift(final_carries, init, reverse)

    def run_step(n: jax.Array, loop_state: tuple[Vectors, Vectors]) -> tuple[Vectors, Vectors]:
        carry, states = loop_state
        a_n, b_n = (select(tree, step_of(n)) for tree in (a, b))
        carry, state = _step(algebra, multiply_last, a_n, b_n, carry)
        store = lambda leaf, new: lax.dynamic_update_index_in_dim(leaf, new, step_of(n), 1)
        return carry, jax.tree.map(store, states, state)

    empty = jax.tree.map(jnp.zeros_like, b)
    _, states = lax.fori_loop(0, chunk, run_step, (initial_carries, empty))
    merge_chunks = lambda leaf: leaf.reshape(-1, *leaf.shape[2:])
    return jax.tree.map(merge_chunks, states), last(final_carries, reverse)


def _split_chunks(leaf: jax.Array, chunk: int) -> jax.Array:
    """Reshapes `[T, ...]` to `[T / chunk, chunk, ...]`, and `[1, ...]` to `[1, 1, ...]`."""
    steps, *rest = leaf.shape
    return leaf[None] if steps == 1 else leaf.reshape(steps // chunk, chunk, *rest)


def _scan_elements(
    algebra: Algebra, a: Matrices, b: Vectors, init: Vectors, reverse: bool
) -> Vectors:
    """Computes the state after each element (a, b), by an associative scan."""
    count = len(jax.tree.leaves(b)[0])
    a = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape[1:])), a)

    def compose(first: tuple[Matrices, Vectors], second: tuple[Matrices, Vectors]) -> Any:
        (a_1, b_1), (a_2, b_2) = first, second
        return algebra.matmul(a_2, a_1), jax.tree.map(jnp.add, algebra.matvec(a_2, b_1), b_2)

    a, b = lax.associative_scan(compose, (a, b), reverse=reverse)
    return jax.tree.map(jnp.add, algebra.matvec(a, init), b)
