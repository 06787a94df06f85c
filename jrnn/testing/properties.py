"""Checks of the properties that the contract of a cell requires, with one function for each."""

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


def _check_frozen(case: Case) -> None:
    """Checks that the cell is a hashable frozen dataclass that can be pickled, and has a repr."""
    cell = case.cell
    params = getattr(type(cell), "__dataclass_params__", None)
    frozen = params is not None and params.frozen
    require(frozen, "a cell must be a @dataclass(frozen=True)")
    require(hash(cell) == hash(copy.deepcopy(cell)), "equal cells must have equal hashes")
    require(
        pickle.loads(pickle.dumps(cell)) == cell, "a pickled and unpickled cell must equal the cell"
    )
    require(type(cell).__name__ in repr(cell), "the repr of a cell must have the name of its class")


def _check_step(case: Case) -> None:
    """Checks that `step` equals `project`, `recur`, `update` and `readout` in this order.

    It must also preserve the structure, shapes and dtypes of the carry.
    """
    carry = case.carry(2, BATCH)
    step = compute_step(case, carry, case.xs(2, BATCH))
    assert_close(step.from_parts, step.from_step, 0)
    new_carry, _ = step.from_parts
    chex.assert_trees_all_equal_shapes_and_dtypes(new_carry, carry)


def _check_recur(case: Case) -> None:
    """Checks that `recur` is linear in the carry, because engines transpose it."""
    x = case.xs(2, BATCH)
    first, second = case.carry(2, BATCH), case.carry(2, BATCH, seed=1)
    add = lambda a, b: a + b if jnp.issubdtype(a.dtype, jnp.inexact) else a
    total = jax.tree.map(add, first, second)
    us = [compute_step(case, carry, x).projections[1] for carry in (first, second, total)]
    try:
        assert_close(us[2], jax.tree.map(add, *us[:2]))
    except AssertionError as error:
        raise AssertionError(f"recur is not linear in the carry: {error}") from error


def _check_readout(case: Case) -> None:
    """Checks that a separate call of `readout` equals the call within the step.

    The separate call shows that `readout` does not depend on the previous carry or on the
    result of `recur`.
    """
    carry, x = case.carry(2, BATCH), case.xs(2, BATCH)
    step = compute_step(case, carry, x)
    (z, _), (new_carry, y) = step.projections, step.from_parts
    with jax.disable_jit():
        separate_y = case.cell.readout(case.params, *as_jax((new_carry, z)))
    assert_close(as_numpy(separate_y), y)


def _check_taps(case: Case) -> None:
    """Checks that the same taps are captured with and without jit."""
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
        # The lambda is a new function, because JAX does not trace the same function twice.
        capture(jax.jit(lambda *args: step(*args))),
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(got, expected)
    require(got_taps == expected_taps, f"taps are {expected_taps}, but under jax.jit {got_taps}")


def _check_leading_axes(case: Case) -> None:
    """Checks that a batched step equals a step for each element of the batch."""
    carry, xs = case.carry(2, BATCH), case.xs(2, BATCH)
    batched = compute_step(case, carry, xs)
    for index in np.ndindex(2, BATCH):
        single = compute_step(case, take(carry, *index), take(xs, *index))
        assert_close(take(batched[:2], *index), single[:2])


def _check_sequence(case: Case) -> None:
    """Checks that engines equal a loop of steps, and that no output depends on later inputs.

    The engines are those that run every cell, and `Associative` for a linear cell.
    """
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


def _check_jit(case: Case) -> None:
    """Checks that a step is the same with and without jit."""
    carry, x = case.carry(BATCH), case.xs(BATCH)
    with jax.disable_jit():
        expected = case.cell.step(case.params, *as_jax((carry, x)))
    assert_close(compute_step(case, carry, x).from_step, expected)


def _check_vmap(case: Case) -> None:
    """Checks that a step under vmap equals a loop over the batch, and a batched step."""
    carry, x = case.carry(BATCH), case.xs(BATCH)
    mapped = jit_unoptimized(jax.vmap(case.cell.step, in_axes=(None, 0, 0)))(case.params, carry, x)
    rows = [compute_step(case, take(carry, b), take(x, b)).from_step for b in range(BATCH)]
    assert_close(mapped, stack_trees(rows))
    assert_close(mapped, compute_step(case, carry, x).from_step)


def _check_no_recompilation(case: Case) -> None:
    """Checks that a call with an equal cell and other arrays does not retrace."""
    traced = []

    def run(cell, params, xs):
        traced.append(cell)
        return unroll(cell, params, xs)

    run = jax.jit(run, static_argnums=0)  # traced but not compiled, to save time
    run.trace(case.cell, case.params, case.xs(STEPS, BATCH))
    run.trace(copy.deepcopy(case.cell), case.params, case.xs(STEPS, BATCH, seed=1))
    require(len(traced) == 1, "a call with an equal cell and other arrays traces again")


def _check_dtype(case: Case) -> None:
    """Checks that parameters, carry and output have the dtype passed to `init`.

    The inputs have the same dtype. Also checks that `lax.scan` accepts the step if the dtypes of
    parameters and inputs differ.
    """

    def init_and_step(x, dtype):
        params = case.cell.init(case.key, case.input_size, dtype)
        carry = case.cell.init_carry(params, (BATCH,))
        return params, carry, case.cell.step(params, carry, x)

    for dtype in (jnp.float32, jnp.bfloat16):
        for tree in jax.eval_shape(
            partial(init_and_step, dtype=dtype), _cast(case.xs(BATCH), dtype)
        ):
            expected = {True: jnp.complex64, False: dtype}
            equal = [
                a.dtype == expected[is_complex(a)] for a in jax.tree.leaves(float_leaves(tree))
            ]
            require(
                all(equal),
                f"parameters, carry and output must be {jnp.dtype(dtype).name} (complex leaves "
                f"complex64), got {_dtype_names(tree)}",
            )
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
    """Casts the leaves that are real and floating."""
    is_floating = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if is_floating(leaf) else leaf, tree)


def _dtype_names(tree: Any) -> Any:
    """Replaces the leaves by the names of their dtypes."""
    return jax.tree.map(lambda leaf: leaf.dtype.name, tree)


def _check_coefficients(case: Case) -> None:
    """Checks that `coefficients` reproduces the step, for a single sequence and for a batch."""
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


def _check_noise(case: Case) -> None:
    """Checks that noise has the leading axes, depends on the key, and is absent without a key.

    With the same key, it must be the same in every call and on every engine.
    """
    cell, params, xs = case.cell, case.params, case.xs(STEPS, BATCH)
    if not cell.is_stochastic:
        return
    shapes = jax.eval_shape(lambda: xs)

    @jit_unoptimized
    def sample(params: Params, key: jax.Array) -> tuple[Params, Any]:
        return cell.sample_noise(params, shapes, (STEPS, BATCH), key)

    _, noise = sample(params, case.key)
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
    for result, repeated in zip(first, second, strict=True):
        assert_close(result, repeated, 0)
        assert_close(result, first[0])
    # Noise that does not change the result, such as dropout at a rate of 0, needs no key.
    if not _all_leaves(np.allclose, first[0], deterministic):
        # Several keys, because two samples may be equal at a rate close to 0.
        samples = [sample(params, key) for key in jax.random.split(case.key, 8)]
        is_equal = lambda a, b: bool(jnp.all(a == b))
        require(
            not all(_all_leaves(is_equal, samples[0], other) for other in samples[1:]),
            "noise must depend on the key, got the same noise for 8 keys",
        )
    expected = run_step_loop(
        case, xs, as_numpy(cell.init_carry(params, (BATCH,))), *_make_trivial_masks(), False
    )
    assert_close(deterministic, expected)


def _all_leaves(predicate: Callable[[Any, Any], bool], first: Any, second: Any) -> bool:
    """Returns whether a predicate is true for all pairs of leaves."""
    return all(jax.tree.leaves(jax.tree.map(predicate, first, second)))


def _make_trivial_masks() -> tuple[np.ndarray, np.ndarray]:
    """Returns lengths and resets for a batch with neither padding nor resets."""
    return np.full(BATCH, STEPS), np.zeros((STEPS, BATCH), bool)


PROPERTIES: dict[str, Callable[[Case], None]] = {
    "frozen": _check_frozen,
    "step": _check_step,
    "recur": _check_recur,
    "readout": _check_readout,
    "leading_axes": _check_leading_axes,
    "sequence": _check_sequence,
    "jit": _check_jit,
    "vmap": _check_vmap,
    "no_recompilation": _check_no_recompilation,
    "dtype": _check_dtype,
    "gradients": check_gradients,
    "taps": _check_taps,
    "structure": check_structure,
    "coefficients": _check_coefficients,
    "noise": _check_noise,
}
"""Maps the names of properties to checks, which take a `Case` and raise if the property fails."""
