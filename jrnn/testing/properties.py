"""The properties of the contract of a cell, one function each."""

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jrnn.cell import Carry, Inputs, Params
from jrnn.engines import REGISTRY as ENGINES
from jrnn.engines import unroll
from jrnn.engines.vjp import float_leaves
from jrnn.taps import capture_taps
from jrnn.testing.case import (
    BATCH,
    STEPS,
    Case,
    as_jax,
    as_numpy,
    assert_close,
    change_last_step,
    compute_step,
    is_complex,
    is_linear,
    jit_unoptimized,
    require,
    run_step_loop,
    stack_trees,
    take,
)
from jrnn.testing.derivatives import check_gradients, check_structure


def _frozen(case: Case) -> None:
    cell = case.cell
    params = getattr(type(cell), "__dataclass_params__", None)
    frozen = params is not None and params.frozen
    require(frozen, "a cell must be a @dataclass(frozen=True)")
    require(hash(cell) == hash(copy.deepcopy(cell)), "equal cells must have equal hashes")
    require(
        pickle.loads(pickle.dumps(cell)) == cell, "a pickled and unpickled cell must equal the cell"
    )
    require(type(cell).__name__ in repr(cell), "the repr of a cell must have its name and fields")


def _step(case: Case) -> None:
    carry = case.carry(2, BATCH)
    step = compute_step(case, carry, case.xs(2, BATCH))
    assert_close(step.from_parts, step.from_step, 0)
    new_carry, _ = step.from_parts
    chex.assert_trees_all_equal_shapes_and_dtypes(new_carry, carry)


def _recur(case: Case) -> None:
    """Linear in the carry: engines take its transpose for its derivative."""
    x = case.xs(2, BATCH)
    one, other = case.carry(2, BATCH), case.carry(2, BATCH, seed=1)
    add = lambda a, b: a + b if jnp.issubdtype(a.dtype, jnp.inexact) else a
    total = jax.tree.map(add, one, other)
    parts = [compute_step(case, carry, x).gates[1] for carry in (one, other, total)]
    try:
        assert_close(parts[2], jax.tree.map(add, *parts[:2]))
    except AssertionError as error:
        raise AssertionError(f"recur is not linear in the carry: {error}") from error


def _readout(case: Case) -> None:
    """A separate call equals that in the step, so it does not depend on the old carry or on u."""
    carry, x = case.carry(2, BATCH), case.xs(2, BATCH)
    step = compute_step(case, carry, x)
    (z, _), (new_carry, y) = step.gates, step.from_parts
    with jax.disable_jit():
        separate_y = case.cell.readout(case.params, *as_jax((new_carry, z)))
    assert_close(as_numpy(separate_y), y)


def _taps(case: Case) -> None:
    """A tap is part of the jaxpr, so that capturing it also works under jit."""
    cell = case.cell

    def step(params: Params, carry: Carry, x: Inputs) -> tuple[Carry, Any]:
        z = cell.project(params, x)
        new_carry = cell.update(params, carry, z, cell.recur(params, carry))
        return new_carry, cell.readout(params, new_carry, z)

    def capture(function: Callable[..., Any]) -> tuple[Any, dict[str, Any]]:
        args = (case.params, case.carry(2, BATCH), case.xs(2, BATCH))
        return jax.eval_shape(capture_taps(function), *args)

    (expected, expected_taps), (got, got_taps) = (
        capture(step),
        # A new function, because JAX would not trace `step` again.
        capture(jax.jit(lambda *args: step(*args))),
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(got, expected)
    require(got_taps == expected_taps, f"taps are {expected_taps}, but {got_taps} under jax.jit")


def _leading_axes(case: Case) -> None:
    carry, xs = case.carry(2, BATCH), case.xs(2, BATCH)
    batched = compute_step(case, carry, xs)
    for index in np.ndindex(2, BATCH):
        single = compute_step(case, take(carry, *index), take(xs, *index))
        assert_close(take(batched[:2], *index), single[:2])


def _sequence(case: Case) -> None:
    cell, params, carry, xs = case.cell, case.params, case.carry(BATCH), case.xs(STEPS, BATCH)
    lengths = np.array([STEPS, STEPS - 2, 0])
    resets = np.zeros((STEPS, BATCH), bool)
    resets[2, 0] = resets[1, 1] = resets[STEPS - 1, 1] = True
    masks = {"lengths": lengths, "resets": resets}
    engines = [name for name, kind in ENGINES.items() if kind.supports_every_cell]
    engines += ["associative"] * is_linear(case)
    variants = [(engine, reverse) for engine in engines for reverse in (False, True)]

    @jit_unoptimized
    def run_all(params, xs, carry):
        run = partial(unroll, cell, params, xs, carry, **masks)
        one_step = unroll(cell, params, take(xs, slice(1)), carry)
        return one_step, [run(engine=engine, reverse=reverse) for engine, reverse in variants]

    one_step, results = run_all(params, xs, carry)
    new_carry, y = compute_step(case, carry, take(xs, 0)).from_step
    assert_close(one_step, (new_carry, take(y, None)))
    expected = {
        reverse: run_step_loop(case, xs, carry, lengths, resets, reverse)
        for reverse in (False, True)
    }
    _, changed_results = run_all(params, change_last_step(xs), carry)
    for (engine, reverse), got, changed in zip(variants, results, changed_results, strict=True):
        try:
            assert_close(got, expected[reverse])
        except AssertionError as error:
            raise AssertionError(f"{engine}, reverse={reverse}: {error}") from error
        if not reverse:
            earlier = slice(STEPS - 1)
            try:
                assert_close(take(changed[1], earlier), take(got[1], earlier), 0)
            except AssertionError as error:
                raise AssertionError(
                    f"{engine}: an earlier output depends on the last input: {error}"
                ) from error


def _jit(case: Case) -> None:
    carry, x = case.carry(BATCH), case.xs(BATCH)
    with jax.disable_jit():
        expected = case.cell.step(case.params, *as_jax((carry, x)))
    assert_close(compute_step(case, carry, x).from_step, expected)


def _vmap(case: Case) -> None:
    carry, x = case.carry(BATCH), case.xs(BATCH)
    mapped = jit_unoptimized(jax.vmap(case.cell.step, in_axes=(None, 0, 0)))(case.params, carry, x)
    rows = [compute_step(case, take(carry, b), take(x, b)).from_step for b in range(BATCH)]
    assert_close(mapped, stack_trees(rows))
    assert_close(mapped, compute_step(case, carry, x).from_step)


def _no_recompilation(case: Case) -> None:
    traced = []

    def run(cell, params, xs):
        traced.append(cell)
        return unroll(cell, params, xs)

    run = jax.jit(run, static_argnums=0)  # tracing suffices: one trace is one compilation
    run.trace(case.cell, case.params, case.xs(STEPS, BATCH))
    run.trace(copy.deepcopy(case.cell), case.params, case.xs(STEPS, BATCH, seed=1))
    require(len(traced) == 1, "an equal cell with new values was traced again")


def _dtype(case: Case) -> None:
    def step(x, dtype):
        params = case.cell.init(case.key, case.input_size, dtype)
        carry = case.cell.init_carry(params, (BATCH,))
        return params, carry, case.cell.step(params, carry, x)

    for dtype in (jnp.float32, jnp.bfloat16):
        for tree in jax.eval_shape(partial(step, dtype=dtype), _cast(case.xs(BATCH), dtype)):
            expected = {True: jnp.complex64, False: dtype}
            equal = [
                a.dtype == expected[is_complex(a)] for a in jax.tree.leaves(float_leaves(tree))
            ]
            require(all(equal), f"expected {jnp.dtype(dtype).name}, got {_dtypes(tree)}")
    for dtype in (jnp.float32, jnp.bfloat16):
        params = jax.eval_shape(partial(case.cell.init, case.key, case.input_size, dtype))
        for init_carry in (
            lambda p, xs: case.cell.init_carry(p, (BATCH,)),
            lambda p, xs: case.cell.init_carry_like(p, take(xs, 0)),
        ):
            loop = lambda p, xs, init_carry=init_carry: jax.lax.scan(
                lambda carry, x: case.cell.step(p, carry, x), init_carry(p, xs), xs
            )
            jax.eval_shape(loop, params, case.xs(STEPS, BATCH))


def _cast(tree: Any, dtype: DTypeLike) -> Any:
    real = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if real(leaf) else leaf, tree)


def _dtypes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.dtype.name, tree)


def _coefficients(case: Case) -> None:
    """`coefficients` reproduces the step, for a batch of sequences and for a single one."""
    if not is_linear(case):
        return
    cell = case.cell

    @jit_unoptimized
    def apply_coefficients(params: Params, carry: Carry, x: Inputs) -> Carry:
        coefficients: Any = cell.coefficients(params, cell.project(params, x))
        for tree in coefficients:
            chex.assert_trees_all_equal_structs(tree, carry)
        return coefficients.apply(carry)

    for leading in ((), (2, BATCH)):
        carry, xs = case.carry(*leading), case.xs(*leading)
        got = apply_coefficients(case.params, carry, xs)
        chex.assert_trees_all_equal_shapes(got, carry)
        try:
            assert_close(got, compute_step(case, carry, xs).from_step[0])
        except AssertionError as error:
            raise AssertionError(f"coefficients do not reproduce step: {error}") from error


def _noise(case: Case) -> None:
    """The noise of a stochastic cell depends only on the key."""
    cell, params, xs = case.cell, case.params, case.xs(STEPS, BATCH)
    if not cell.is_stochastic:
        return
    _, noise = cell.sample_noise(params, jax.eval_shape(lambda: xs), (STEPS, BATCH), case.key)
    for leaf in jax.tree.leaves(noise):
        require(
            np.shape(leaf)[:2] == (STEPS, BATCH),
            f"leaves of the noise must have the leading axes {(STEPS, BATCH)}, got "
            f"{np.shape(leaf)}",
        )

    @jit_unoptimized
    def run_all(params: Params, xs: Inputs, key: jax.Array) -> list[Any]:
        engines = [name for name, kind in ENGINES.items() if kind.supports_every_cell]
        run = partial(unroll, cell, params, xs)
        return [run(key=key, engine=engine) for engine in engines] + [run(engine="scan")]

    *first, deterministic = as_numpy(run_all(params, xs, case.key))
    *second, _ = as_numpy(run_all(params, xs, case.key))
    for one, other in zip(first, second, strict=True):
        assert_close(one, other, 0)
        assert_close(one, first[0])
    steps = run_step_loop(
        case, xs, as_numpy(cell.init_carry(params, (BATCH,))), *_no_masks(), False
    )
    assert_close(deterministic, steps)


def _no_masks() -> tuple[np.ndarray, np.ndarray]:
    """Returns lengths and resets without padding and resets."""
    return np.full(BATCH, STEPS), np.zeros((STEPS, BATCH), bool)


PROPERTIES: dict[str, Callable[[Case], None]] = {
    "frozen": _frozen,
    "step": _step,
    "recur": _recur,
    "readout": _readout,
    "leading_axes": _leading_axes,
    "sequence": _sequence,
    "jit": _jit,
    "vmap": _vmap,
    "no_recompilation": _no_recompilation,
    "dtype": _dtype,
    "gradients": check_gradients,
    "taps": _taps,
    "structure": check_structure,
    "coefficients": _coefficients,
    "noise": _noise,
}
"""Maps names to properties; each takes a `Case` and raises if the property does not hold."""
