"""Linear recurrences over time, s_t = A_t s_{t-1} + b_t, for all t at once.

Elements (A, b) compose: (A_2, b_2) after (A_1, b_1) is (A_2 A_1, A_2 b_1 + b_2). Composition is
associative, so a parallel scan has logarithmic depth; a sequential scan needs only one pass over
memory. All functions accept pytrees; an `Algebra` defines the product of A with b.
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
    """How the matrices of a recurrence multiply.

    Attributes:
      times: the product of two trees of matrices, the later step first.
      act: the product of a tree of matrices with a tree of vectors.
      transpose: the transpose of a tree of matrices, without conjugation.
      pack: packs a tree of vectors into one array, as the transpose of a linear solve requires.
      unpack: the inverse of `pack`.
    """

    times: Callable[[Matrices, Matrices], Matrices]
    act: Callable[[Matrices, Vectors], Vectors]
    transpose: Callable[[Matrices], Matrices]
    pack: Callable[[Vectors], jax.Array] = lambda vectors: vectors
    unpack: Callable[[jax.Array], Vectors] = lambda packed: packed


def _blocks_times(a: Matrices, b: Matrices) -> Matrices:
    columns = tuple(zip(*b, strict=True))
    return tuple(tuple(_dot(row, column) for column in columns) for row in a)


def _dot(row: tuple[jax.Array, ...], column: tuple[jax.Array, ...]) -> jax.Array:
    first, *others = (a * b for a, b in zip(row, column, strict=True))
    return sum(others, start=first)


DIAGONAL = Algebra(
    times=jnp.multiply,
    act=jnp.multiply,
    transpose=lambda a: a,
)
"""Elementwise: b is an array, and A is an array that broadcasts against it."""

BLOCKS = Algebra(
    times=_blocks_times,
    act=lambda a, s: tuple(_dot(row, s) for row in a),
    transpose=lambda a: tuple(zip(*a, strict=True)),
    pack=lambda s: jnp.stack(s, axis=1),
    unpack=lambda packed: tuple(packed[:, k] for k in range(packed.shape[1])),
)
"""Unit k of each leaf depends on unit k of all n leaves: b is a tuple of n leaves, A a tuple of n
rows, each a tuple of n leaves."""

_multiply = partial(jnp.matmul, precision="highest")  # float32, not TF32

DENSE = Algebra(
    times=_multiply,
    act=lambda a, s: _multiply(a, s[..., None])[..., 0],
    transpose=lambda a: jnp.swapaxes(a, -1, -2),
)
"""b is an array `[..., n]` and A an array `[..., n, n]`."""


def with_resets(algebra: Algebra) -> Algebra:
    """The algebra where A is a pair (A, keep): A is zero where `keep [T, B]` is False.

    Unlike a matrix of zeros, it also maps inf and NaN to zero.
    """
    mask = lambda keep, s: jax.tree.map(lambda leaf: jnp.where(expand_mask(keep, leaf), leaf, 0), s)
    return algebra._replace(
        times=lambda a, b: (algebra.times(a[0], b[0]), a[1] & b[1]),
        act=lambda a, s: mask(a[1], algebra.act(a[0], s)),
        transpose=lambda a: (algebra.transpose(a[0]), a[1]),
    )


def default_chunk(steps: int) -> int:
    """T on a CPU, for one pass over memory; 1 on accelerators, for logarithmic depth.

    On two cores the sequential scan is as fast as a copy of b, and 7 times as fast as the
    associative scan.
    """
    return max(1, steps) if jax.default_backend() == "cpu" else 1


def solve(
    algebra: Algebra,
    a: Matrices,
    b: Vectors,
    start: Vectors,
    *,
    reverse: bool = False,
    chunk: int | None = None,
) -> Vectors:
    """Solves s_t = A_t s_{t-1} + b_t for all t, with derivatives of every mode and order.

    The tangent satisfies a recurrence of the same form, the cotangent one in the other direction.

    Args:
      algebra: the product of A with b.
      a: the matrices, leaves `[T, ...]`, or `[1, ...]` if they are the same at all steps.
      b: the vectors, leaves `[T, ...]`.
      start: the state before the first step, leaves `[...]`.
      reverse: whether to scan from the last step to the first.
      chunk: number of consecutive steps that are computed sequentially; chunks are combined by an
        associative scan. 1 is a pure associative scan, T or more a sequential loop. By default
        `default_chunk`.

    Returns:
      The states, leaves `[T, ...]`.
    """
    steps = len(jax.tree.leaves(b)[0])
    chunk = min(default_chunk(steps) if chunk is None else chunk, max(1, steps))
    if steps == 0:
        return b
    first = steps - 1 if reverse else 0
    select = lambda tree: jax.tree.map(lambda leaf: leaf[first if len(leaf) > 1 else 0], tree)
    add_first = lambda leaf, value: jnp.asarray(leaf).at[first].add(value)
    b = jax.tree.map(add_first, b, algebra.act(select(a), start))
    run = partial(_states, algebra, chunk=chunk)
    zero = jax.tree.map(jnp.zeros_like, start)

    def residual(packed: jax.Array) -> jax.Array:
        states = algebra.unpack(packed)
        products = algebra.act(a, shift(states, zero, reverse))
        return algebra.pack(jax.tree.map(jnp.subtract, states, products))

    def forward(_: Any, packed: jax.Array) -> jax.Array:
        return algebra.pack(run(a, algebra.unpack(packed), zero, reverse))

    def backward(_: Any, packed: jax.Array) -> jax.Array:
        transposed, cotangents = algebra.transpose(a), algebra.unpack(packed)
        return algebra.pack(run(transposed, cotangents, zero, not reverse, late=True))

    return algebra.unpack(lax.custom_linear_solve(residual, algebra.pack(b), forward, backward))


def shift(states: Vectors, start: Vectors, reverse: bool) -> Vectors:
    """The state before each step, from `start` and the states after each step."""
    if reverse:
        return jax.tree.map(lambda s, s0: jnp.concatenate([s[1:], s0[None]]), states, start)
    return jax.tree.map(lambda s, s0: jnp.concatenate([s0[None], s[:-1]]), states, start)


def last(states: Vectors, reverse: bool) -> Vectors:
    """The state after the last step in scan order."""
    return jax.tree.map(lambda s: s[0] if reverse else s[-1], states)


def _states(
    algebra: Algebra,
    a: Matrices,
    b: Vectors,
    start: Vectors,
    reverse: bool,
    *,
    chunk: int,
    late: bool = False,
) -> Vectors:
    """The states, without a custom derivative.

    With `late`, A_t is applied after b_t: s_t = r_{t-1} + b_t, with r_t = A_t s_t carried.
    """
    steps = len(jax.tree.leaves(b)[0])
    chunks = steps // chunk
    if chunks == 1:
        return _sequential(algebra, a, b, start, reverse, late)[0]
    full = chunks * chunk
    if full == steps:
        return _chunked(algebra, a, b, start, reverse, late, chunk)[0]
    # The remaining steps at the end of time are a shorter chunk.
    head, rest = (
        (_slice_steps(a, part), _slice_steps(b, part)) for part in (slice(full), slice(full, None))
    )
    main = partial(_chunked, algebra, reverse=reverse, late=late, chunk=chunk)
    tail = partial(_sequential, algebra, reverse=reverse, late=late)
    if reverse:
        second, start = tail(*rest, start)
        first, start = main(*head, start)
    else:
        first, start = main(*head, start)
        second, start = tail(*rest, start)
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y]), first, second)


def _slice_steps(tree: Any, part: slice) -> Any:
    """Slices the time axis; leaves that are the same at all steps are not changed."""
    return jax.tree.map(lambda leaf: leaf if len(leaf) == 1 else leaf[part], tree)


def _sequential(
    algebra: Algebra, a: Matrices, b: Vectors, start: Vectors, reverse: bool, late: bool
) -> tuple[Vectors, Vectors]:
    """The states and the last carry, step by step."""
    steps = len(jax.tree.leaves(b)[0])
    # Constant matrices are not read again at every step.
    leaves, structure = jax.tree.flatten(a)
    constant = [len(leaf) == 1 and steps > 1 for leaf in leaves]
    varying = [None if same else leaf for leaf, same in zip(leaves, constant, strict=True)]

    def body(carry: Vectors, inputs: Any) -> tuple[Vectors, Vectors]:
        varying, b = inputs
        matrices = [leaf[0] if m is None else m for leaf, m in zip(leaves, varying, strict=True)]
        carry, state = _step(algebra, late, jax.tree.unflatten(structure, matrices), b, carry)
        return carry, state

    carry, states = lax.scan(body, start, (varying, b), reverse=reverse)
    return states, carry


def _step(
    algebra: Algebra, late: bool, a: Matrices, b: Vectors, carry: Vectors
) -> tuple[Vectors, Vectors]:
    """The carry for the next step, and the state."""
    if late:
        state = jax.tree.map(jnp.add, carry, b)
        return algebra.act(a, state), state
    state = jax.tree.map(jnp.add, algebra.act(a, carry), b)
    return state, state


def _chunked(
    algebra: Algebra,
    a: Matrices,
    b: Vectors,
    start: Vectors,
    reverse: bool,
    late: bool,
    chunk: int,
) -> tuple[Vectors, Vectors]:
    """All chunks in parallel: composes each chunk, scans over chunks, and solves each chunk."""
    a, b = (jax.tree.map(lambda leaf: _by_chunks(leaf, chunk), tree) for tree in (a, b))
    order = (lambda n: chunk - 1 - n) if reverse else (lambda n: n)
    select = lambda tree, n: jax.tree.map(
        lambda leaf: lax.dynamic_index_in_dim(leaf, n if leaf.shape[1] > 1 else 0, 1, False), tree
    )

    def fold(n: jax.Array, element: tuple[Matrices, Vectors]) -> tuple[Matrices, Vectors]:
        product, carried = element
        a_n, b_n = (select(tree, order(n)) for tree in (a, b))
        carried, _ = _step(algebra, late, a_n, b_n, carried)
        return algebra.times(a_n, product), carried

    first = select(a, order(0))
    # Products of leaves that are constant in time may have a time axis.
    like = jax.eval_shape(algebra.times, first, first)
    first = jax.tree.map(lambda leaf, product: jnp.broadcast_to(leaf, product.shape), first, like)
    zero = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[:, 0]), b)
    carried, _ = _step(algebra, late, first, select(b, order(0)), zero)
    product, carried = lax.fori_loop(1, chunk, fold, (first, carried))
    ends = _prefix(algebra, product, carried, start, reverse)
    carry = shift(ends, start, reverse)

    def states_of(n: jax.Array, state: tuple[Vectors, Vectors]) -> tuple[Vectors, Vectors]:
        carry, states = state
        a_n, b_n = (select(tree, order(n)) for tree in (a, b))
        carry, s = _step(algebra, late, a_n, b_n, carry)
        put = lambda leaf, new: lax.dynamic_update_index_in_dim(leaf, new, order(n), 1)
        return carry, jax.tree.map(put, states, s)

    empty = jax.tree.map(jnp.zeros_like, b)
    _, states = lax.fori_loop(0, chunk, states_of, (carry, empty))
    flat = lambda leaf: leaf.reshape(-1, *leaf.shape[2:])
    return jax.tree.map(flat, states), last(ends, reverse)


def _by_chunks(leaf: jax.Array, chunk: int) -> jax.Array:
    steps, *rest = leaf.shape
    return leaf[None] if steps == 1 else leaf.reshape(steps // chunk, chunk, *rest)


def _prefix(algebra: Algebra, a: Matrices, b: Vectors, start: Vectors, reverse: bool) -> Vectors:
    """The carry after each element, by an associative scan."""
    count = len(jax.tree.leaves(b)[0])
    a = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape[1:])), a)

    def compose(early: tuple[Matrices, Vectors], late: tuple[Matrices, Vectors]) -> Any:
        (a_1, b_1), (a_2, b_2) = early, late
        return algebra.times(a_2, a_1), jax.tree.map(jnp.add, algebra.act(a_2, b_1), b_2)

    a, b = lax.associative_scan(compose, (a, b), reverse=reverse)
    return jax.tree.map(jnp.add, algebra.act(a, start), b)
