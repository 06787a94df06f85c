"""The engine that computes the carries of all steps at once, by Newton's method."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jrnn import checks, structure
from jrnn.cell import Carry, Cell, Inputs, Params
from jrnn.engines import jacobian, recurrence
from jrnn.engines.engine import Engine
from jrnn.engines.equations import build_system
from jrnn.engines.inputs import canonicalize, cast_like, conform_arguments, validate_arguments
from jrnn.engines.jacobian import JacobianKind, Leaves
from jrnn.engines.manual_axes import vary_alike
from jrnn.engines.newton_iteration import NewtonStatus as NewtonStatus
from jrnn.engines.newton_iteration import empty_status, run_newton
from jrnn.engines.precision import BoundCell
from jrnn.engines.scan import Scan
from jrnn.layer import Layer, SequenceInputs, check_layer
from jrnn.masking import Masks, expand_mask, step_shapes
from jrnn.signatures import SEQUENCE_HINTS, explain_signature

KINDS = ("auto", "diagonal", "block", "full")
INITS = ("step", "carry")
FALLBACKS = ("error", "scan", "none")

MAX_FULL_SIZE = 64
"""The largest carry for which `jacobian="auto"` uses full Jacobians for a dense cell."""


class Solution(NamedTuple):
    """The result of `jrnn.newton`.

    Attributes:
      carry: the final carry, leaves `[B, ...]`.
      ys: the outputs `[T, B, output]`.
      carries: the carry after each step, leaves `[T, B, ...]`, for example as the `guess` of a
        later call. On padding it is that of the previous step in scan order.
      status: convergence, iterations and residuals of Newton's method. With `fallback="scan"` it
        still reports the sequences that were run step by step as not converged.
    """

    carry: Carry
    ys: Any
    carries: Carry
    status: NewtonStatus


@dataclass(frozen=True)
class Newton(Engine):
    r"""Solves s_t = step(s_{t-1}, x_t) for all t at once, by Newton's method.

    ::

        r_t = step(s_{t-1}, x_t) - s_t                      residual, of all steps at once
        J_t = d step / d s_{t-1}
        d_t = J_t d_{t-1} + r_t,    s_t = s_t + d_t         a linear recurrence, by a parallel scan

    Each iteration is parallel in time. This engine is faster than a scan only if one step does not
    use the whole device and the cell is contracting. If the largest Lyapunov exponent
    (`jrnn.analysis.lyapunov`) is well below zero, a few iterations are enough for any T. If it is
    above zero, the number of iterations grows with T; if it is near zero, it may grow. After k
    iterations without damping the first k states are exact, so T iterations are always enough.

    "full" Jacobians have T·n² elements for a carry of size n. "block" Jacobians couple unit k of
    each leaf only with unit k of the other leaves; "diagonal" Jacobians do not couple units. They
    are exact for cells whose Jacobian has this sparsity (see `jrnn.structure`). For all other cells
    they are approximations, which need more iterations and lead to the same solution.

    With `damping` each iteration is a Levenberg-Marquardt step, computed by a Kalman smoother over
    time (ELK). If it does not reduce the residual, it is rejected and the damping is increased,
    otherwise the damping is decreased.

    The gradient follows from the implicit function theorem, and is exact for any `jacobian`. It is
    a linear recurrence in the opposite scan direction: parallel in time with
    `jacobian="full"`, or if the Jacobian of the cell is known to be diagonal or block-diagonal,
    otherwise sequential. Derivatives of every mode and order are supported.

    `fallback` defines the result for sequences that have not converged; `jrnn.newton` returns their
    status. For a chaotic cell, a converged solution may differ from the result of `Scan`, because
    the states amplify rounding errors.

    Args:
      jacobian: "auto", "full", "block" or "diagonal". "auto" is the cheapest exact kind; for a
        dense cell it is "full" for a carry of up to 64 elements, otherwise "block", or "diagonal"
        if the leaves of the carry differ in shape.
      damping: the initial damping, such as 1.0, or None for no damping. On a CPU, a damped
        iteration with full Jacobians is tens of times slower than an undamped one.
      max_steps: the maximum number of iterations.
      tol: a sequence has converged if all residuals, relative to 1 + |s_t|, are at most `tol`. The
        default is 64 times the machine epsilon of the carry: 8e-6 in float32, 1.4e-14 in float64.
        If the carry or the products are in half precision, it is the machine epsilon of that dtype:
        8e-3 in bfloat16.
      init: the initial guess of each s_t: "step" is the result of one step from the initial carry
        on x_t, "carry" the initial carry.
      fallback: for sequences that have not converged: "error" raises when the result is computed,
        "scan" runs them step by step, "none" returns the last iterate.
      max_bytes: the maximum size of the full Jacobians of all steps, validated at trace time. The
        solver allocates two or three arrays of this size, and about eight with damping.

    Raises:
      ValueError: an option is invalid; or, when run, Jacobians take more than `max_bytes`.
      TypeError: when run, the cell has no forward-mode derivatives; or a leaf of the carry is not
        floating, or is complex although the cell is not linear.
      jax.errors.JaxRuntimeError: with `fallback="error"`, when a sequence has not converged.

    >>> import jax, jax.numpy as jnp, jrnn
    >>> cell = jrnn.GRU(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> solution = jrnn.newton(cell, params, jnp.ones((100, 2, 3)))
    >>> bool(solution.status.converged.all()), solution.ys.shape
    (True, (100, 2, 4))

    References:
      Lim et al., 2024, Parallelizing non-linear sequential models over the sequence length (DEER).
      Gonzalez et al., 2024, Towards scalable and stable parallelization of nonlinear RNNs
        (quasi-DEER, ELK).
      Danieli et al., 2025, ParaRNN: unlocking parallel training of nonlinear RNNs for large
        language models.
      Gonzalez et al., 2025, Predictability enables parallelization of nonlinear state space models.
    """

    supports_every_cell: ClassVar[bool] = False

    jacobian: Literal["auto", "full", "block", "diagonal"] = "auto"
    damping: float | None = None
    max_steps: int = 100
    tol: float | None = None
    init: Literal["step", "carry"] = "step"
    fallback: Literal["error", "scan", "none"] = "error"
    max_bytes: int = 2**31

    def __post_init__(self) -> None:
        checks.one_of("Newton", "jacobian", self.jacobian, KINDS)
        checks.one_of("Newton", "init", self.init, INITS)
        checks.one_of("Newton", "fallback", self.fallback, FALLBACKS)
        checks.positive_int("Newton", "max_steps", self.max_steps)
        checks.positive_int("Newton", "max_bytes", self.max_bytes)
        for name in ("damping", "tol"):
            if getattr(self, name) is not None:
                checks.positive_number("Newton", name, getattr(self, name))

    def run(
        self, bound: BoundCell, carry: Carry, xs: Inputs, masks: Masks, reverse: bool
    ) -> tuple[Carry, Any]:
        solution = self.solve(bound, carry, xs, masks, reverse)
        if self.fallback == "error":
            jax.debug.callback(partial(_raise_if_not_converged, self), *solution.status)
        return solution.carry, solution.ys

    def solve(
        self,
        bound: BoundCell,
        carry: Carry,
        xs: Inputs,
        masks: Masks,
        reverse: bool,
        guess: Carry | None = None,
    ) -> Solution:
        """Solves the equations; sequences that have not converged do not raise.

        Args:
          bound: as in `run`.
          carry: as in `run`.
          xs: as in `run`.
          masks: as in `run`.
          reverse: as in `run`.
          guess: the initial guess of the carry after each step, leaves `[T, B, ...]`, or None.
        """
        kind = self.choose_jacobian(bound, carry, xs)
        if len(jax.tree.leaves(xs)[0]) == 0:
            carry, ys = Scan().run(bound, carry, xs, masks, reverse)
            empty = jax.tree.map(lambda leaf: jnp.zeros((0, *leaf.shape), leaf.dtype), carry)
            return Solution(carry, ys, empty, empty_status(jax.tree.leaves(carry), self.max_steps))
        leaves, ys, status = _root(self, kind, reverse, bound, carry, xs, masks, guess)
        carries = jax.tree.unflatten(jax.tree.structure(carry), leaves)
        return Solution(recurrence.last(carries, reverse), ys, carries, status)

    def choose_jacobian(self, bound: BoundCell, carry: Carry, xs: Inputs) -> JacobianKind:
        """Chooses the kind of Jacobian for a cell, and validates that the cell supports it.

        Raises:
          ValueError: `jacobian` is "block" and the leaves of the carry differ in shape, or full
            Jacobians take more than `max_bytes`.
          TypeError: the cell has no forward-mode derivatives; or a leaf of the carry is not
            floating, or is complex although the cell is not linear.
        """
        cell, leaves = bound.cell, jax.tree.leaves(carry)
        if _has_reverse_mode_only(bound, carry, xs):
            raise TypeError(
                f"Newton: the cell must have forward-mode derivatives, got {cell!r} with reverse "
                "mode only; use engine='fused'"
            )
        allowed = jnp.inexact if bound.is_linear(step_shapes(xs)) else jnp.floating
        if not leaves or not all(jnp.issubdtype(leaf.dtype, allowed) for leaf in leaves):
            raise TypeError(
                "Newton: all leaves of the carry must be floating, got dtypes "
                f"{[leaf.dtype.name for leaf in leaves]} of {cell!r}; use engine='fused'"
            )
        steps, batch = jax.tree.leaves(xs)[0].shape[:2]
        size = sum(math.prod(leaf.shape[1:]) for leaf in leaves)
        same_shape = len({leaf.shape for leaf in leaves}) == 1
        kind = self.jacobian
        if kind == "block" and not same_shape:
            raise ValueError(
                "Newton: leaves of the carry must have the same shape for jacobian='block', got "
                f"{[leaf.shape for leaf in leaves]} of {cell!r}; use 'diagonal' or 'full'"
            )
        if kind == "auto":
            approximate = "block" if same_shape else "diagonal"
            dense = "full" if size <= MAX_FULL_SIZE else approximate
            kind = jacobian.exact_kind(bound, xs) or dense
        needed = steps * batch * size**2 * leaves[0].dtype.itemsize
        if kind == "full" and needed > self.max_bytes:
            raise ValueError(
                f"Newton: full Jacobians must take at most max_bytes={self.max_bytes} "
                f"({self.max_bytes / 2**30:.3g} GiB), got {needed / 2**30:.3g} GiB for {steps} "
                f"steps, {batch} sequences and a carry of size {size}; use jacobian='block' or "
                "'diagonal', or engine='fused', or increase max_bytes"
            )
        return kind


@explain_signature(SEQUENCE_HINTS)
def newton(
    cell: Cell,
    params: Params,
    xs: Inputs,
    carry: Carry | None = None,
    *,
    lengths: Any = None,
    mask: Any = None,
    resets: Any = None,
    reverse: bool = False,
    key: jax.Array | None = None,
    engine: Newton | None = None,
    guess: Carry | None = None,
) -> Solution:
    """Runs a cell like `jrnn.unroll(engine=Newton(...))`, and also returns the solver status.

    Args:
      cell: the cell.
      params: its parameters, from `cell.init`.
      xs: inputs `[T, B, input]`, or a pytree of leaves `[T, B, ...]`.
      carry: the carry before the first step in scan order, leaves `[B, ...]`; by default
        `cell.init_carry`.
      lengths: `[B]` ints, the number of valid steps of each sequence.
      mask: `[T, B]` bool, True on valid steps, in any pattern.
      resets: `[T, B]` bool, True where `cell.init_carry` replaces the carry before the step, in
        scan order.
      reverse: whether to scan from the last valid step to the first.
      key: a PRNG key for stochastic cells; None means the deterministic expected value.
      engine: the options of the solver; None means `Newton()`. With `fallback="error"` this
        function does not raise for sequences that have not converged; check the status instead.
      guess: the initial guess of the carry after each step, leaves `[T, B, ...]`, such as `carries`
        of a solution with similar parameters or inputs. It does not affect the gradient.

    Returns:
      A `Solution`.

    Raises:
      ValueError: a shape is wrong, or full Jacobians would take more than `max_bytes`.
      TypeError: `cell` is not a cell, `engine` is not a `Newton`, or a dtype or the structure of
        the parameters, the inputs, the carry or the guess is wrong.

    >>> import jax, jax.numpy as jnp, jrnn
    >>> cell = jrnn.ParaGRU(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> xs = jax.random.normal(jax.random.key(1), (100, 2, 3))
    >>> first = newton(cell, params, xs)
    >>> again = newton(cell, params, xs, guess=first.carries)
    >>> bool(again.status.iterations < first.status.iterations)
    True
    """
    engine = Newton() if engine is None else engine
    if not isinstance(engine, Newton):
        raise TypeError(f"newton: engine must be a jrnn.Newton(...), got {checks.describe(engine)}")
    if isinstance(cell, Layer) and not isinstance(cell, Cell):
        raise TypeError(
            f"newton: cell must be a jrnn.Cell such as jrnn.GRU(64), got {checks.describe(cell)}; "
            "for a layer of several cells use jrnn.unroll(..., engine=jrnn.Newton())"
        )
    check_layer("newton", "cell", cell, Cell)
    inputs = SequenceInputs(xs, carry, lengths, mask, resets, key, reverse, "newton")
    with validate_arguments(inputs, params):
        return _newton(cell, params, inputs, guess, engine)


@partial(jax.jit, static_argnames=("cell", "engine"))
def _newton(
    cell: Cell, params: Params, inputs: SequenceInputs, guess: Carry | None, engine: Newton
) -> Solution:
    params = conform_arguments(cell, params, inputs)
    args = canonicalize(cell, params, inputs)
    if guess is not None:
        steps = len(jax.tree.leaves(args.xs)[0])
        add_time = lambda leaf: jax.ShapeDtypeStruct((steps, *leaf.shape), leaf.dtype)
        like = jax.tree.map(add_time, args.carry)
        guess = cast_like("newton: guess", "the carry after each step", guess, like)
    solution = engine.solve(args.bound, args.carry, args.xs, args.masks, args.reverse, guess)
    return solution._replace(
        carry=args.cast_carry(solution.carry),
        ys=args.restore_nans(solution.ys),
        carries=args.restore_nan_carries(solution.carries),
    )


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _root(
    options: Newton,
    kind: JacobianKind,
    reverse: bool,
    bound: BoundCell,
    carry: Carry,
    xs: Inputs,
    masks: Masks,
    guess: Carry | None,
) -> tuple[Leaves, Any, NewtonStatus]:
    """Returns the states that solve the equations, the outputs, and the status."""
    system = build_system(bound, carry, xs, masks, reverse)
    if guess is None:
        first = system.initial_guess(options.init)
    else:  # the guess may contain inf or NaN, if it is from a solve that has not converged
        pairs = zip(jax.tree.leaves(guess), system.initial_guess("carry"), strict=True)
        first = [jnp.where(jnp.isfinite(leaf), leaf, default) for leaf, default in pairs]
    states, status = run_newton(
        system, kind, first, options.damping, options.max_steps, options.tol
    )
    if options.fallback == "scan":
        converged = status.converged
        sequential = lax.cond(converged.all(), lambda: states, system.solve_sequentially)
        pairs = zip(states, sequential, strict=True)
        states = [jnp.where(expand_mask(converged, s[0]), s, other) for s, other in pairs]
    return states, system.outputs(states), status


@_root.defjvp
def _(options: Newton, kind: JacobianKind, reverse: bool, primals: Any, tangents: Any) -> Any:
    """Computes the tangents: ds_t = J_t ds_{t-1} + (tangent of the step at fixed states)."""
    states, ys, status = _root(options, kind, reverse, *primals)
    args, tangents = primals[:4], tangents[:4]  # the solution does not depend on the guess

    step_all = lambda *args: build_system(*args, reverse=reverse).step_all(states)
    _, (deltas, y_deltas) = jax.jvp(step_all, args, tangents)
    system = build_system(*args, reverse=reverse)
    d_states = system.solve_tangents(kind, states, deltas)
    _, d_ys = jax.jvp(system.outputs, (states,), (d_states,))
    d_status = jax.tree.map(_zero_tangent, status)
    return (states, ys, status), (d_states, jax.tree.map(jnp.add, d_ys, y_deltas), d_status)


def _has_reverse_mode_only(bound: BoundCell, carry: Carry, xs: Inputs) -> bool:
    """Returns whether a step contains an operation without a forward-mode derivative."""
    like = jax.eval_shape(lambda: carry)
    return structure.has_reverse_mode_only(bound.step, like, step_shapes(xs))


def _zero_tangent(leaf: jax.Array) -> Any:
    floating = jnp.issubdtype(leaf.dtype, jnp.floating)
    if floating:
        return jnp.zeros_like(leaf)
    return vary_alike(np.zeros(leaf.shape, jax.dtypes.float0), leaf)


def _raise_if_not_converged(
    options: Newton, converged: Any, iterations: Any, residuals: Any
) -> None:
    converged, residuals = np.atleast_1d(converged), np.asarray(residuals)
    if converged.all():
        return
    last = residuals[int(np.max(iterations))]
    if np.isfinite(last).all():
        advice = (
            "If jrnn.analysis.lyapunov(cell, params, xs).largest_exponent is near 0 or above, use "
            "engine='fused'. Otherwise increase max_steps, or use damping=1.0, which is slow, or "
            "fallback='scan' or 'none'"
        )
    else:
        advice = (
            "Residuals are not finite: check inputs and parameters for NaN and inf, or use "
            "fallback='scan' or 'none' for the results of the other sequences"
        )
    raise FloatingPointError(
        f"Newton: {int((~converged).sum())} of {converged.size} sequences have not converged after "
        f"{int(np.max(iterations))} iterations of {options}, with residuals up to "
        f"{np.max(last):.3g}. {advice}. jrnn.newton returns the status"
    )
