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
from jrnn.engines.pullback import floats
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
    jit_quickly,
    loop_steps,
    require,
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
    require(pickle.loads(pickle.dumps(cell)) == cell, "the cell must survive pickling")
    require(type(cell).__name__ in repr(cell), "the cell must print its name and fields")


def _derived(case: Case) -> None:
    carry = case.carry(2, BATCH)
    step = compute_step(case, carry, case.xs(2, BATCH))
    assert_close(step.derived, step.stepped, 0)
    after, _ = step.derived
    chex.assert_trees_all_equal_shapes_and_dtypes(after, carry)


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
    """Called alone it is that of the step: nothing of the old carry or of u reaches it."""
    carry, x = case.carry(2, BATCH), case.xs(2, BATCH)
    step = compute_step(case, carry, x)
    (z, _), (after, y) = step.gates, step.derived
    with jax.disable_jit():
        alone = case.cell.readout(case.params, *as_jax((after, z)))
    assert_close(as_numpy(alone), y)


def _taps(case: Case) -> None:
    """Traced alone: a tap is part of the jaxpr, and its value is what that computes."""
    cell = case.cell

    def derive(params: Params, carry: Carry, x: Inputs) -> tuple[Carry, Any]:
        z = cell.project(params, x)
        after = cell.update(params, carry, z, cell.recur(params, carry))
        return after, cell.readout(params, after, z)

    def capture(function: Callable[..., Any]) -> tuple[Any, dict[str, Any]]:
        arguments = (case.params, case.carry(2, BATCH), case.xs(2, BATCH))
        return jax.eval_shape(capture_taps(function), *arguments)

    # A function of its own: JAX would not trace `derive` a second time.
    (plain, tapped), (jitted, again) = capture(derive), capture(jax.jit(lambda *a: derive(*a)))
    chex.assert_trees_all_equal_shapes_and_dtypes(jitted, plain)
    require(again == tapped, f"taps are {tapped}, and under jax.jit {again}")


def _leading_axes(case: Case) -> None:
    carry, xs = case.carry(2, BATCH), case.xs(2, BATCH)
    whole = compute_step(case, carry, xs)
    for index in np.ndindex(2, BATCH):
        alone = compute_step(case, take(carry, *index), take(xs, *index))
        assert_close(take(whole[:2], *index), alone[:2])


def _sequence(case: Case) -> None:
    cell, params, carry, xs = case.cell, case.params, case.carry(BATCH), case.xs(STEPS, BATCH)
    lengths = np.array([STEPS, STEPS - 2, 0])
    resets = np.zeros((STEPS, BATCH), bool)
    resets[2, 0] = resets[1, 1] = resets[STEPS - 1, 1] = True
    masks = {"lengths": lengths, "resets": resets}
    engines = [name for name, kind in ENGINES.items() if kind.general]
    engines += ["associative"] * is_linear(case)
    ways = [(engine, reverse) for engine in engines for reverse in (False, True)]

    @jit_quickly
    def all_ways(params, xs, carry):
        run = partial(unroll, cell, params, xs, carry, **masks)
        one = unroll(cell, params, take(xs, slice(1)), carry)
        return one, [run(engine=engine, reverse=reverse) for engine, reverse in ways]

    one, results = all_ways(params, xs, carry)
    after, y = compute_step(case, carry, take(xs, 0)).stepped
    assert_close(one, (after, take(y, None)))
    truth = {way: loop_steps(case, xs, carry, lengths, resets, way) for way in (False, True)}
    _, others = all_ways(params, change_last_step(xs), carry)
    for (engine, reverse), got, other in zip(ways, results, others, strict=True):
        try:
            assert_close(got, truth[reverse])
        except AssertionError as error:
            raise AssertionError(f"{engine}, reverse={reverse}: {error}") from error
        if not reverse:
            earlier = slice(STEPS - 1)
            try:
                assert_close(take(other[1], earlier), take(got[1], earlier), 0)
            except AssertionError as error:
                raise AssertionError(
                    f"{engine}: the last input changes an earlier output: {error}"
                ) from error


def _compiled(case: Case) -> None:
    carry, x = case.carry(BATCH), case.xs(BATCH)
    with jax.disable_jit():
        plain = case.cell.step(case.params, *as_jax((carry, x)))
    assert_close(compute_step(case, carry, x).stepped, plain)


def _vmap(case: Case) -> None:
    carry, x = case.carry(BATCH), case.xs(BATCH)
    mapped = jit_quickly(jax.vmap(case.cell.step, in_axes=(None, 0, 0)))(case.params, carry, x)
    rows = [compute_step(case, take(carry, b), take(x, b)).stepped for b in range(BATCH)]
    assert_close(mapped, stack_trees(rows))
    assert_close(mapped, compute_step(case, carry, x).stepped)


def _no_recompilation(case: Case) -> None:
    traced = []

    def run(cell, params, xs):
        traced.append(cell)
        return unroll(cell, params, xs)

    run = jax.jit(run, static_argnums=0)  # only traced: what is traced once is compiled once
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
            wanted = {True: jnp.complex64, False: dtype}
            kept = [a.dtype == wanted[is_complex(a)] for a in jax.tree.leaves(floats(tree))]
            require(all(kept), f"{jnp.dtype(dtype).name} did not stay: {_dtypes(tree)}")
    for dtype in (jnp.float32, jnp.bfloat16):
        params = jax.eval_shape(partial(case.cell.init, case.key, case.input_size, dtype))
        for first in (
            lambda p, xs: case.cell.init_carry(p, (BATCH,)),
            lambda p, xs: case.cell.init_carry_like(p, take(xs, 0)),
        ):
            loop = lambda p, xs, first=first: jax.lax.scan(
                lambda carry, x: case.cell.step(p, carry, x), first(p, xs), xs
            )
            jax.eval_shape(loop, params, case.xs(STEPS, BATCH))


def _cast(tree: Any, dtype: DTypeLike) -> Any:
    real = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if real(leaf) else leaf, tree)


def _dtypes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.dtype.name, tree)


def _coefficients(case: Case) -> None:
    """`coefficients` gives the step, for a batch of sequences as well as for one."""
    if not is_linear(case):
        return
    cell = case.cell

    @jit_quickly
    def given(params: Params, carry: Carry, x: Inputs) -> Carry:
        coefficients: Any = cell.coefficients(params, cell.project(params, x))
        for tree in coefficients:
            chex.assert_trees_all_equal_structs(tree, carry)
        return coefficients.apply(carry)

    for leading in ((), (2, BATCH)):
        carry, xs = case.carry(*leading), case.xs(*leading)
        after = given(case.params, carry, xs)
        chex.assert_trees_all_equal_shapes(after, carry)
        try:
            assert_close(after, compute_step(case, carry, xs).stepped[0])
        except AssertionError as error:
            raise AssertionError(f"coefficients are not those of step: {error}") from error


def _noise(case: Case) -> None:
    """The noise of a stochastic cell is a function of the key alone."""
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

    @jit_quickly
    def runs(params: Params, xs: Inputs, key: jax.Array) -> list[Any]:
        engines = [name for name, kind in ENGINES.items() if kind.general]
        run = partial(unroll, cell, params, xs)
        return [run(key=key, engine=engine) for engine in engines] + [run(engine="scan")]

    *first, quiet = as_numpy(runs(params, xs, case.key))
    *again, _ = as_numpy(runs(params, xs, case.key))
    for one, other in zip(first, again, strict=True):
        assert_close(one, other, 0)
        assert_close(one, first[0])
    steps = loop_steps(case, xs, as_numpy(cell.init_carry(params, (BATCH,))), *_unmasked(), False)
    assert_close(quiet, steps)


def _unmasked() -> tuple[np.ndarray, np.ndarray]:
    """Lengths and resets of whole sequences."""
    return np.full(BATCH, STEPS), np.zeros((STEPS, BATCH), bool)


PROPERTIES: dict[str, Callable[[Case], None]] = {
    "frozen": _frozen,
    "step": _derived,
    "recur": _recur,
    "readout": _readout,
    "leading_axes": _leading_axes,
    "sequence": _sequence,
    "jit": _compiled,
    "vmap": _vmap,
    "no_recompilation": _no_recompilation,
    "dtype": _dtype,
    "gradients": check_gradients,
    "taps": _taps,
    "structure": check_structure,
    "coefficients": _coefficients,
    "noise": _noise,
}
"""The properties by name; each takes a `Case` and raises when it does not hold."""
