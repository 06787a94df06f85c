"""The engine that solves for the carries of all steps at once, by Newton's method."""

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
from jrnn.engines import jacobian, prefix
from jrnn.engines.engine import Engine
from jrnn.engines.equations import system_of
from jrnn.engines.inputs import canonicalize, checked_like
from jrnn.engines.iterate import NewtonStatus as NewtonStatus
from jrnn.engines.iterate import iterate, no_steps
from jrnn.engines.jacobian import Kind, Leaves
from jrnn.engines.precision import BoundCell
from jrnn.engines.scan import Scan
from jrnn.layer import SequenceInputs
from jrnn.masking import Masks, expand_mask, step_of

KINDS = ("auto", "diagonal", "block", "full")
GUESSES = ("step", "carry")
FALLBACKS = ("error", "scan", "none")

SMALL = 64
"""Numbers in a carry up to which `jacobian="auto"` takes the full one of a dense cell."""


class Solution(NamedTuple):
    """What `jrnn.newton` returns.

    Attributes:
      carry: the last carry, leaves `[B, ...]`.
      ys: the outputs `[T, B, output]`.
      carries: the carry after each step, leaves `[T, B, ...]`: the `guess` of a next solve.
      status: a `NewtonStatus`.
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
        d_t = J_t d_{t-1} + r_t,    s_t = s_t + d_t         one linear recurrence, a prefix

    Each iteration is parallel in time. Use it where the processor has parallelism to spare and the
    cell forgets: with a largest Lyapunov exponent (`jrnn.analysis.lyapunov`) well below zero a few
    iterations are enough, at any length; above zero their number grows with T, and near zero either
    may happen. After k iterations without damping the first k states are exact, so T are enough.

    The Jacobian, exact from the contract of a cell: "full" takes T·n² numbers for a carry of n;
    "block" couples unit k of each leaf of the carry with unit k of the others, "diagonal" nothing,
    and each is exact for cells whose Jacobian has that structure, as `jrnn.structure` reads it off
    the jaxpr. For any other cell they are an approximation, which takes more iterations, for the
    same solution.

    With `damping` each step is one of Levenberg and Marquardt, a Kalman smoother over time (ELK):
    an iteration that does not make the residual smaller is undone, and the damping is increased.

    The gradient is that of the implicit function at the solution, exact whatever Jacobian was used
    on the way: one linear recurrence in the other direction, parallel in time with a Jacobian that
    is exact, and else sequential step by step. Derivatives of every mode and order work.

    Sequences that have not converged are reported: see `fallback`; `jrnn.newton` returns the
    status. The states of a chaotic cell may satisfy their equations to the last bit, and yet be far
    from those of `Scan`, as those of `Scan` would be after any change of rounding.

    Args:
      jacobian: "auto", "full", "block" or "diagonal". "auto" is the cheapest one that is exact; for
        a dense cell "full" with a carry of up to 64 numbers, else "block", or
        "diagonal" where the leaves of the carry differ in shape.
      damping: None for plain Newton, or the damping to start with, such as 1.0. A damped step with
        full Jacobians takes tens of times as long on a CPU.
      max_steps: the most iterations.
      tol: the residual, relative to 1 + |s_t|, at which a sequence has converged; by default 64
        times the rounding of the carry's dtype, 8e-6 in float32 and 1.4e-14 in float64; where
        carry or products are of half precision, the rounding of that, 8e-3 in bfloat16.
      init: the first guess: "step", one step from the first carry at each t, or "carry", the first
        carry itself.
      fallback: what to do with a sequence that has not converged: "error" raises, when the result
        is computed; "scan" runs it step by step; "none" returns the last iterate.
      max_bytes: refuses full Jacobians of more, before any memory is taken. That is one copy of
        them; a solve holds two or three, and a damped one about eight.

    Raises:
      ValueError: an option is none of these; or, when run, Jacobians take more than `max_bytes`.
      TypeError: when run, the carry has leaves that are not real, of a cell that is not linear.
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

    general: ClassVar[bool] = False

    jacobian: Literal["auto", "full", "block", "diagonal"] = "auto"
    damping: float | None = None
    max_steps: int = 100
    tol: float | None = None
    init: Literal["step", "carry"] = "step"
    fallback: Literal["error", "scan", "none"] = "error"
    max_bytes: int = 2**31

    def __post_init__(self) -> None:
        checks.one_of("Newton", "jacobian", self.jacobian, KINDS)
        checks.one_of("Newton", "init", self.init, GUESSES)
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
            jax.debug.callback(partial(_raise, self), *solution.status)
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
        """The solution with its status; arguments as of `run`, and a guess of all carries."""
        kind = self.kind_of(bound, carry, xs)
        if len(jax.tree.leaves(xs)[0]) == 0:
            carry, ys = Scan().run(bound, carry, xs, masks, reverse)
            empty = jax.tree.map(lambda leaf: jnp.zeros((0, *leaf.shape), leaf.dtype), carry)
            return Solution(carry, ys, empty, no_steps(jax.tree.leaves(carry), self.max_steps))
        leaves, ys, status = _root(self, kind, reverse, bound, carry, xs, masks, guess)
        carries = jax.tree.unflatten(jax.tree.structure(carry), leaves)
        return Solution(prefix.last(carries, reverse), ys, carries, status)

    def kind_of(self, bound: BoundCell, carry: Carry, xs: Inputs) -> Kind:
        """The kind of Jacobian, after checks of the carry and of the memory."""
        cell, leaves = bound.cell, jax.tree.leaves(carry)
        if _has_reverse_mode_only(bound, carry, xs):
            raise TypeError(
                f"Newton: the step of {cell!r} has derivatives of reverse mode alone, and Newton "
                "needs its Jacobian; use engine='fused'"
            )
        allowed = jnp.inexact if bound.is_linear(step_of(xs)) else jnp.floating
        if not leaves or not all(jnp.issubdtype(leaf.dtype, allowed) for leaf in leaves):
            raise TypeError(
                "Newton: the carry must have floating leaves alone, got dtypes "
                f"{[leaf.dtype.name for leaf in leaves]} of {cell!r}; use engine='fused'"
            )
        steps, batch = jax.tree.leaves(xs)[0].shape[:2]
        size = sum(math.prod(leaf.shape[1:]) for leaf in leaves)
        same_shape = len({leaf.shape for leaf in leaves}) == 1
        kind = self.jacobian
        if kind == "block" and not same_shape:
            raise ValueError(
                "Newton: jacobian='block' needs leaves of the carry of one shape, got "
                f"{[leaf.shape for leaf in leaves]} of {cell!r}; use 'diagonal' or 'full'"
            )
        if kind == "auto":
            other = "block" if same_shape else "diagonal"
            dense = "full" if size <= SMALL else other
            kind = jacobian.exact_kind(bound, xs) or dense
        needed = steps * batch * size**2 * leaves[0].dtype.itemsize
        if kind == "full" and needed > self.max_bytes:
            raise ValueError(
                f"Newton: full Jacobians of {steps} steps, {batch} sequences and a carry of {size} "
                f"numbers take {needed / 2**30:.3g} GiB, over max_bytes={self.max_bytes} "
                f"({self.max_bytes / 2**30:.3g} GiB); use jacobian='block' or 'diagonal', or "
                "engine='fused', or allow more"
            )
        return kind


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
    """Runs a cell as `jrnn.unroll(engine=Newton(...))` does, and returns how it went.

    Args:
      cell: the cell.
      params: its parameters, from `cell.init`.
      xs: inputs `[T, B, input]`, or a pytree of leaves `[T, B, ...]`.
      carry: the first carry, leaves `[B, ...]`; by default `cell.init_carry`.
      lengths: `[B]` ints, the number of valid steps of each sequence.
      mask: `[T, B]` bool, True on valid steps, in any pattern.
      resets: `[T, B]` bool; True replaces the carry by the cell's own initial carry before step t.
      reverse: scan from the last valid step to the first.
      key: randomness for cells with noise; None means deterministic, at the expected value.
      engine: the options; this function never raises for lack of convergence; see the status.
      guess: the carry after each step to start from, leaves `[T, B, ...]`: `carries` of a solution
        with similar parameters or inputs. It has no effect on the gradient.

    Returns:
      A `Solution`.

    Raises:
      ValueError: a shape does not fit, or full Jacobians would take too much memory.
      TypeError: a dtype or the structure of the carry or of the guess does not fit.

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
        raise TypeError(f"newton: engine must be a jrnn.Newton(...), got {engine!r}")
    if not isinstance(cell, Cell):
        raise TypeError(
            f"newton: cell must be a jrnn.Cell such as jrnn.GRU(64), got {cell!r}; run a layer of "
            "several cells by jrnn.unroll(..., engine=jrnn.Newton())"
        )
    inputs = SequenceInputs(xs, carry, lengths, mask, resets, key, reverse)
    return _newton(cell, params, inputs, guess, engine)


@partial(jax.jit, static_argnames=("cell", "engine"))
def _newton(
    cell: Cell, params: Params, inputs: SequenceInputs, guess: Carry | None, engine: Newton
) -> Solution:
    run = canonicalize(cell, params, inputs)
    if guess is not None:
        steps = len(jax.tree.leaves(run.xs)[0])
        every = lambda leaf: jax.ShapeDtypeStruct((steps, *leaf.shape), leaf.dtype)
        like = jax.tree.map(every, run.carry)
        guess = checked_like("newton: guess", "the carry after each step", guess, like)
    solution = engine.solve(run.bound, run.carry, run.xs, run.masks, run.reverse, guess)
    return solution._replace(
        carry=run.result(solution.carry),
        ys=run.restore(solution.ys),
        carries=run.restore_carries(solution.carries),
    )


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _root(
    options: Newton,
    kind: Kind,
    reverse: bool,
    bound: BoundCell,
    carry: Carry,
    xs: Inputs,
    masks: Masks,
    guess: Carry | None,
) -> tuple[Leaves, Any, NewtonStatus]:
    """The states that solve the equations, the outputs, and the status."""
    system = system_of(bound, carry, xs, masks, reverse)
    if guess is None:
        first = system.guess(options.init)
    else:  # but where that is of a solve that failed
        pairs = zip(jax.tree.leaves(guess), system.guess("carry"), strict=True)
        first = [jnp.where(jnp.isfinite(given), given, own) for given, own in pairs]
    how = options.damping, options.max_steps, options.tol
    states, status = iterate(system, kind, first, *how)
    if options.fallback == "scan":
        fine = status.converged
        sequential = lax.cond(fine.all(), lambda: states, system.sequential)
        pairs = zip(states, sequential, strict=True)
        states = [jnp.where(expand_mask(fine, found[0]), found, other) for found, other in pairs]
    return states, system.outputs(states), status


@_root.defjvp
def _(options: Newton, kind: Kind, reverse: bool, primals: Any, tangents: Any) -> Any:
    """ds_t = J_t ds_{t-1} + (what the step moves by, at fixed states)."""
    states, ys, status = _root(options, kind, reverse, *primals)
    given, moved = primals[:4], tangents[:4]  # the guess has no effect on the solution

    at = partial(system_of, reverse=reverse)
    _, (moves, y_moves) = jax.jvp(lambda *given: at(*given).stepped(states), given, moved)
    system = at(*given)
    d_states = system.tangents(kind, states, moves)
    _, d_ys = jax.jvp(system.outputs, (states,), (d_states,))
    still = jax.tree.map(_no_tangent, status)
    return (states, ys, status), (d_states, jax.tree.map(jnp.add, d_ys, y_moves), still)


def _has_reverse_mode_only(bound: BoundCell, carry: Carry, xs: Inputs) -> bool:
    """Whether some part of a step has no forward-mode derivative."""
    first = jax.eval_shape(lambda: carry)
    return structure.has_reverse_mode_only(bound.step, first, step_of(xs))


def _no_tangent(leaf: jax.Array) -> Any:
    floating = jnp.issubdtype(leaf.dtype, jnp.floating)
    return jnp.zeros_like(leaf) if floating else np.zeros(leaf.shape, jax.dtypes.float0)


def _raise(options: Newton, converged: Any, iterations: Any, residuals: Any) -> None:
    converged, residuals = np.atleast_1d(converged), np.asarray(residuals)
    if converged.all():
        return
    last = residuals[int(np.max(iterations))]
    if np.isfinite(last).all():
        advice = (
            "Where jrnn.analysis.lyapunov(cell, params, xs).largest is near 0 or above, use "
            "engine='fused'. Otherwise increase max_steps, or pass damping=1.0, which is slow, or "
            "fallback='scan' or 'none'"
        )
    else:
        advice = (
            "Residuals are not finite: look for NaN and inf in inputs and parameters, or pass "
            "fallback='scan' or 'none' to get the other sequences"
        )
    raise FloatingPointError(
        f"Newton: {int((~converged).sum())} of {converged.size} sequences have not converged after "
        f"{int(np.max(iterations))} iterations of {options}, with residuals up to "
        f"{np.max(last):.3g}. {advice}. jrnn.newton returns the status"
    )
