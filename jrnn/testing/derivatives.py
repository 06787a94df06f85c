"""The properties of a cell that are about derivatives."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jrnn import structure
from jrnn.dtypes import restrict_to_floats
from jrnn.engines import unroll
from jrnn.engines.pullback import floats
from jrnn.testing.case import (
    BATCH,
    STEPS,
    Case,
    as_numpy,
    compute_step,
    is_complex,
    jit_quickly,
    randomized,
    require,
)

EPSILON = 1e-3


def check_gradients(case: Case) -> None:
    """Gradients are finite and equal finite differences, in one random direction for each leaf."""
    given = {"params": case.params, "xs": case.xs(STEPS, BATCH), "carry": case.carry(BATCH)}
    named, structure = jax.tree.flatten_with_path(given)
    leaves = [leaf for _, leaf in named]

    def outputs(leaves):
        tree = jax.tree.unflatten(structure, leaves)
        results = unroll(case.cell, tree["params"], tree["xs"], tree["carry"])
        return jax.tree.leaves(floats(results))

    zeros = [np.zeros(y.shape, y.dtype) for y in jax.eval_shape(outputs, leaves)]
    weights = randomized(zeros, case.key, 1.0)

    def total(leaves):
        return sum((y * w).sum().real for y, w in zip(outputs(leaves), weights, strict=True))

    both = jit_quickly(jax.value_and_grad(total, allow_int=True))
    leaves = as_numpy(leaves)
    _, grads = both(leaves)
    for k, grad in enumerate(as_numpy(grads)):
        if grad.dtype == jax.dtypes.float0:
            continue
        where = "d loss / d " + jax.tree_util.keystr(named[k][0])
        require(bool(np.isfinite(grad).all()), f"{where} is not finite")
        signs = _signs(k, grad)
        nudge = lambda size, k=k, signs=signs: float(
            both([*leaves[:k], leaves[k] + signs * leaves[k].dtype.type(size), *leaves[k + 1 :]])[0]
        )
        slope = (nudge(EPSILON) - nudge(-EPSILON)) / (2 * EPSILON)
        np.testing.assert_allclose(
            (grad * signs).sum().real, slope, rtol=2e-2, atol=2e-2, err_msg=f"{where} is wrong"
        )


def _signs(seed: int, like: np.ndarray) -> np.ndarray:
    """Ones and minus ones, in both parts where it is complex."""
    parts = np.random.default_rng(seed).choice([-1.0, 1.0], (2, *like.shape))
    return (parts[0] + 1j * parts[1] if is_complex(like) else parts[0]).astype(like.dtype)


def check_structure(case: Case) -> None:
    """The traced facts against the derivatives themselves."""
    cell, params, carry, x = case.cell, case.params, case.carry(), case.xs()
    z, u = compute_step(case, carry, x).gates
    update = lambda tree: cell.update(params, *tree)
    step = lambda carry: cell.step(params, carry, x)[0]
    leaves = jax.tree.leaves((carry, z, u))
    same = len({np.shape(leaf) for leaf in leaves}) == 1
    if same and structure.update_is_elementwise(cell, params, carry, z, u):
        require(
            _keeps_apart(update, (carry, z, u)),
            "update reads as elementwise, but mixes hidden units",
        )
    kind = structure.jacobian_kind(cell, params, carry, z)
    if kind is not None:
        require(
            _keeps_apart(step, carry, leaves_too=kind == "diagonal"),
            f"the Jacobian of a step reads as {kind!r}, and is not",
        )


def _keeps_apart(function: Callable[[Any], Any], tree: Any, leaves_too: bool = False) -> bool:
    """Whether each unit of the outputs depends on that unit of the inputs alone.

    Args:
      function: from one tree to another.
      tree: of leaves `[..., hidden]`.
      leaves_too: whether each number of a leaf may depend on the same number of that leaf alone.
    """
    numbers, restricted = restrict_to_floats(function, tree)
    leaves = jax.tree.leaves(tree)
    at = [leaves[n] for n in numbers]
    outputs = jax.eval_shape(restricted, *at)

    def allowed(k: int, m: int) -> np.ndarray:
        """Which numbers of output m may move with which of input k."""
        inside, outside = np.arange(at[k].size), np.arange(outputs[m].size)
        if leaves_too:
            return inside == outside[:, None] if k == m else np.zeros((), bool)
        return inside % at[k].shape[-1] == outside[:, None] % outputs[m].shape[-1]

    @jit_quickly
    def jacobians(*at):
        """By number of the output, those of its real part and of its imaginary one."""
        # Reverse mode, for a step may have no other.
        _, pull = jax.vjp(restricted, *at)
        found = []
        for m, out in enumerate(outputs):
            for part in (1, 1j) if is_complex(out) else (1,):
                cts = [np.zeros((out.size, *a.shape), a.dtype) for a in outputs]
                cts[m] = (part * np.eye(out.size)).reshape(cts[m].shape).astype(out.dtype)
                found.append((m, jax.vmap(pull)(cts)))
        return found

    return not any(
        np.any(np.where(allowed(k, int(m)), 0, np.reshape(by, (outputs[m].size, -1))) != 0)
        for m, moved in jacobians(*at)
        for k, by in enumerate(moved)
    )
