"""Checks of the derivatives of a cell."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jrnn import structure
from jrnn.dtypes import restrict_to_floats
from jrnn.engines import unroll
from jrnn.engines.vjp import float_leaves
from jrnn.testing.case import (
    BATCH,
    STEPS,
    Case,
    as_numpy,
    compute_step,
    is_complex,
    jit_unoptimized,
    randomize,
    require,
)

EPSILON = 1e-3  # step size of finite differences


def check_gradients(case: Case) -> None:
    """Checks that gradients are finite, and equal finite differences.

    For each leaf, the derivative in one random direction is compared.
    """
    args = {"params": case.params, "xs": case.xs(STEPS, BATCH), "carry": case.carry(BATCH)}
    leaves_with_path, treedef = jax.tree.flatten_with_path(args)
    leaves = [leaf for _, leaf in leaves_with_path]

    def outputs(leaves):
        tree = jax.tree.unflatten(treedef, leaves)
        results = unroll(case.cell, tree["params"], tree["xs"], tree["carry"])
        return jax.tree.leaves(float_leaves(results))

    zeros = [np.zeros(y.shape, y.dtype) for y in jax.eval_shape(outputs, leaves)]
    weights = randomize(zeros, case.key, 1.0)

    def loss(leaves):
        return sum((y * w).sum().real for y, w in zip(outputs(leaves), weights, strict=True))

    value_and_grad = jit_unoptimized(jax.value_and_grad(loss, allow_int=True))
    leaves = as_numpy(leaves)
    _, grads = value_and_grad(leaves)
    for k, grad in enumerate(as_numpy(grads)):
        if grad.dtype == jax.dtypes.float0:
            continue
        name = "d loss / d " + jax.tree_util.keystr(leaves_with_path[k][0])
        require(bool(np.isfinite(grad).all()), f"{name} is not finite")
        signs = _random_signs(k, grad)
        perturbed_loss = lambda size, k=k, signs=signs: float(
            value_and_grad(
                [*leaves[:k], leaves[k] + signs * leaves[k].dtype.type(size), *leaves[k + 1 :]]
            )[0]
        )
        slope = (perturbed_loss(EPSILON) - perturbed_loss(-EPSILON)) / (2 * EPSILON)
        np.testing.assert_allclose(
            (grad * signs).sum().real, slope, rtol=2e-2, atol=2e-2, err_msg=f"{name} is wrong"
        )


def _random_signs(seed: int, like: np.ndarray) -> np.ndarray:
    """Samples from 1 and -1; both the real and the imaginary part if the array is complex."""
    parts = np.random.default_rng(seed).choice([-1.0, 1.0], (2, *like.shape))
    return (parts[0] + 1j * parts[1] if is_complex(like) else parts[0]).astype(like.dtype)


def check_structure(case: Case) -> None:
    """Checks that derivatives have the structure that is inferred from the jaxpr."""
    cell, params, carry, x = case.cell, case.params, case.carry(), case.xs()
    z, u = compute_step(case, carry, x).projections
    update = lambda tree: cell.update(params, *tree)
    step = lambda carry: cell.step(params, carry, x)[0]
    leaves = jax.tree.leaves((carry, z, u))
    have_same_shape = len({np.shape(leaf) for leaf in leaves}) == 1
    if have_same_shape and structure.update_is_elementwise(cell, params, carry, z, u):
        require(
            _units_are_independent(update, (carry, z, u)),
            "update is elementwise by its jaxpr, but its derivative is not: hidden units interact",
        )
    kind = structure.jacobian_sparsity(cell, params, carry, z)
    if kind is not None:
        require(
            _units_are_independent(step, carry, per_leaf=kind == "diagonal"),
            f"the Jacobian of a step is {kind!r} by its jaxpr, but its values are not",
        )


def _units_are_independent(
    function: Callable[[Any], Any], tree: Any, per_leaf: bool = False
) -> bool:
    """Returns whether each unit of the outputs depends only on the same unit of the inputs.

    Args:
      function: maps a tree to a tree.
      tree: leaves `[..., hidden]`.
      per_leaf: if True, each element of an output leaf may depend only on the same element of the
        same leaf of the input.
    """
    indices, restricted = restrict_to_floats(function, tree)
    leaves = jax.tree.leaves(tree)
    point = [leaves[n] for n in indices]
    outputs = jax.eval_shape(restricted, *point)

    def allowed(k: int, m: int) -> np.ndarray:
        """Returns where the Jacobian of output m with respect to input k may be nonzero."""
        columns, rows = np.arange(point[k].size), np.arange(outputs[m].size)[:, None]
        if per_leaf:
            return columns == rows if k == m else np.zeros((), bool)
        return columns % point[k].shape[-1] == rows % outputs[m].shape[-1]

    @jit_unoptimized
    def jacobians(*point):
        """Returns pairs of the index of an output and its Jacobians by each input.

        A complex output has two pairs, for its real and its imaginary part.
        """
        # Reverse mode, because a step may not support forward mode.
        _, vjp = jax.vjp(restricted, *point)
        results = []
        for m, out in enumerate(outputs):
            for part in (1, 1j) if is_complex(out) else (1,):
                cts = [np.zeros((out.size, *a.shape), a.dtype) for a in outputs]
                cts[m] = (part * np.eye(out.size)).reshape(cts[m].shape).astype(out.dtype)
                results.append((m, jax.vmap(vjp)(cts)))
        return results

    return not any(
        np.any(np.where(allowed(k, int(m)), 0, np.reshape(jacobian, (outputs[m].size, -1))) != 0)
        for m, by_input in jacobians(*point)
        for k, jacobian in enumerate(by_input)
    )
