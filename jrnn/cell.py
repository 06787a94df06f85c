"""The contract of a cell: gate arithmetic, written once as pure functions.

A cell is a frozen dataclass of hyper-parameters. It holds no arrays: those live in `params` and in
`carry`. Three of its methods, `project`, `recur` and `update`, make a step, and each of them
accepts any leading axes. Every engine is derived from these three; but for `Native`, which knows
some cells by name.
"""

import abc
import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, final

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

Params = Any
Carry = Any
Inputs = Any
Gates = Any
Recurrence = Literal["dense", "block_diagonal", "diagonal", "linear"]


class Below(NamedTuple):
    """The input of a cell that takes the state of the layer below it.

    Attributes:
      x: the output of that layer, `[..., input]`.
      c: its cell state after this step, `[..., hidden]`.
    """

    x: jax.Array
    c: jax.Array


class Timed(NamedTuple):
    """The input of a cell that takes irregular time steps.

    Attributes:
      x: the input, `[..., input]`.
      dt: the time since the input before, `[...]`, the same for all layers of a stack.
    """

    x: jax.Array
    dt: jax.Array


class Cell(abc.ABC):
    """One step of a recurrent network, in three pure parts.

    With carry s, input x and output y::

        z = project(params, x)                 all that depends on the input alone
        u = recur(params, s)                   all matrix products with the carry, nothing else
        s', y = update(params, s, z, u)        the gate arithmetic, element by element

    Subclasses are frozen dataclasses, so that a cell is hashable (a static argument of `jax.jit`),
    printable, picklable and its own config. Each of the three parts accepts any leading axes; `z`
    and `u` are pytrees with one array `[..., hidden]` for each gate.

    Attributes:
      hidden_size: number of hidden units.
      recurrence: how the new carry depends on the old one, which tells an engine what it may do.
        "diagonal": each number of the new carry depends on the same number of the old one alone;
        "block_diagonal": unit k of each leaf depends on unit k of all leaves alone; "linear": the
        carry is an affine function of the old one, given by `coefficients`; "dense": anything.
      pointwise: whether `update` works element by element, as a fused kernel needs it. A cell that
        multiplies matrices inside `update` says False: right on every engine, slower on some.
      kernel: None, or the name of the arithmetic, such as "lstm-peepholes", for engines with code
        written by hand. Parameters and carry must then have the fields that the name implies. A
        subclass that writes a part of its own has none unless it names one.
      perturb: None, or a method `perturb(params, xs, leading, key) -> (params, noise)` of a cell
        with noise. It is called once, before the loop, and draws all that is random, so that every
        engine sees the same noise. Of xs, leaves `[*leading, ...]` with `leading = (T, *batch)`, it
        is given the shapes alone. What holds for all sequences (dropped weights) it puts into the
        parameters; all else it returns as `noise`, a pytree of leaves `[*leading, ...]`, and
        `project` is then given the pair `(x, noise)` of one step. `key=None` asks for the expected
        value.
      coefficients: None, or a method `coefficients(params, z) -> (a, b)` of a cell that is linear
        in its carry: s' = a * s + b, element by element. Both are trees with the structure of the
        carry, whose leaves broadcast against its leaves `[..., hidden]`: a leaf of a may lack
        leading axes, or have axes of size 1. A leaf of a with one axis more than its leaf of the
        carry holds matrices instead, `[..., n, n]` with all leading axes, of size 1 where they are
        the same: s' = a @ s + b. `update` of such a cell uses its own `coefficients`, and any y.
      affine_gates: whether `project` is W x + b for all gates, with the field b of the parameters
        and nothing after it: layer normalisation stands between the two.
      tied: whether parts of the carry belong together, such as a potential and its rate, so that
        no transform may change one of them alone.
      directions: for each equal part of the output's last axis, whether it comes from a run against
        time.
      takes_below: whether inputs may be `Below`, with the cell state of the layer below.
      takes_time: whether inputs may be `Timed`, with the time since the input before.
      stepwise: whether the cell has a single step; one that reads a whole sequence has none.
      sequence: None, or a method `sequence(run, params, xs, carry, key) -> (carry, ys)` of a cell
        made of others, which runs these one by one over all of time, each as an engine does best.
        `run(cell, params, xs, carry, key, backwards=False)` is `jrnn.unroll` with the masks and the
        engine of the whole, in the direction of travel or against it.
      reverse_only: whether the step has derivatives of reverse mode alone, which `Newton` cannot
        use.
      log_space: whether `coefficients` gives the logarithms of a and b, both positive, so that an
        engine may stay among logarithms: s' = exp(a) * s + exp(b).
    """

    hidden_size: int
    recurrence: Recurrence = "dense"
    pointwise: bool = True
    kernel: str | None = None
    perturb: (
        Callable[[Params, Inputs, tuple[int, ...], jax.Array | None], tuple[Params, Any]] | None
    ) = None
    coefficients: Callable[[Params, Gates], tuple[Carry, Carry]] | None = None
    log_space: bool = False
    affine_gates: bool = True
    tied: bool = False
    directions: tuple[bool, ...] = (False,)
    takes_below: bool = False
    takes_time: bool = False
    stepwise: bool = True
    sequence: Callable[..., tuple[Carry, Any]] | None = None
    reverse_only: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.step is not Cell.step:
            raise TypeError(
                f"{cls.__name__}: step is derived and never overridden; write project, recur and "
                "update instead"
            )
        parts = {"project", "recur", "update", "perturb"}
        if parts & vars(cls).keys() and "kernel" not in vars(cls):
            cls.kernel = None

    @abc.abstractmethod
    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> Params:
        """Draws the parameters, for inputs with a last axis of `input_size`."""

    @abc.abstractmethod
    def init_carry(self, params: Params, batch_shape: tuple[int, ...]) -> Carry:
        """The carry before the first step: leaves `[*batch_shape, ...]`, dtype of `params`."""

    def inputs(
        self, input_size: int, batch_shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
    ) -> Inputs:
        """Zeros like one input: `[*batch_shape, input]`, unless a cell says otherwise."""
        return jnp.zeros((*batch_shape, input_size), dtype)

    @abc.abstractmethod
    def project(self, params: Params, x: Inputs) -> Gates:
        """All that depends on the input alone: from `x [..., input]`, one array for each gate."""

    @abc.abstractmethod
    def recur(self, params: Params, carry: Carry) -> Gates:
        """All matrix products with the carry and nothing else: one array for each gate."""

    @abc.abstractmethod
    def update(self, params: Params, carry: Carry, z: Gates, u: Gates) -> tuple[Carry, jax.Array]:
        """The gate arithmetic: the new carry, and the output `y [..., output]`."""

    def output(self, params: Params, input_size: int) -> Any:
        """The shape of the output of one step, without batch axes, as `jax.eval_shape` has it."""

        def one(params: Params) -> Any:
            return self.step(params, self.init_carry(params, ()), self.inputs(input_size, ()))[1]

        return jax.eval_shape(one, params)

    @final
    def step(
        self, params: Params, carry: Carry, x: Inputs, *, key: jax.Array | None = None
    ) -> tuple[Carry, jax.Array]:
        """One step, derived from the three parts: `update(..., project(x), recur(carry))`.

        Args:
          params: what `init` drew.
          carry: what `init_carry` or the step before returned.
          x: the input, `[..., input]`.
          key: randomness for a cell with noise; None means deterministic, at the expected value.

        Returns:
          The new carry, and the output `[..., output]`.
        """
        params, x = self.perturbed(params, carry, x, key=key)
        return self.update(params, carry, self.project(params, x), self.recur(params, carry))

    @final
    def perturbed(
        self, params: Params, carry: Carry, x: Inputs, *, key: jax.Array | None = None
    ) -> tuple[Params, Inputs]:
        """Parameters and input of one step as `perturb` leaves them; as they are without noise."""
        if self.perturb is None:
            return params, x
        alone = jax.eval_shape(lambda p: self.init_carry(p, ()), params)
        leaf, own = jax.tree.leaves(carry)[0], jax.tree.leaves(alone)[0]
        batch = leaf.shape[: leaf.ndim - own.ndim]
        xs = jax.eval_shape(lambda: jax.tree.map(lambda leaf: leaf[None], x))
        params, noise = self.perturb(params, xs, (1, *batch), key)
        return params, (x, jax.tree.map(lambda drawn: drawn[0], noise))


_recorder: contextvars.ContextVar[dict[str, jax.Array] | None] = contextvars.ContextVar(
    "jrnn_recorder", default=None
)


Action = Callable[[jax.Array], jax.Array]

_actions: contextvars.ContextVar[dict[str, Action] | None] = contextvars.ContextVar(
    "jrnn_actions", default=None
)


def place(name: str, value: jax.Array) -> jax.Array:
    """A place within `update` where transforms may act; without one it is the value as it is.

    Args:
      name: "candidate": what a cell may write, after its activation; "shown": the cell state on
        its way to the output, before its activation.
      value: `[..., hidden]`.
    """
    return _action(name)(value)


def _action(name: str) -> Action:
    return (_actions.get() or {}).get(name, lambda value: value)


@contextlib.contextmanager
def acting(name: str, action: Action) -> Iterator[list[jax.Array]]:
    """Within the block, `action` is done at a `place`, before what blocks around it do there.

    It yields the list of all values that came by, empty where a cell has no such place.
    """
    values, around = [], _action(name)

    def act(value: jax.Array) -> jax.Array:
        values.append(value)
        return around(action(value))

    token = _actions.set((_actions.get() or {}) | {name: act})
    try:
        yield values
    finally:
        _actions.reset(token)


_scope: contextvars.ContextVar[str] = contextvars.ContextVar("jrnn_scope", default="")


@contextlib.contextmanager
def scope(name: str) -> Iterator[None]:
    """Within the block, what cells `record` has the name in front, as in "0.f" of a first layer."""
    token = _scope.set(f"{_scope.get()}{name}.")
    try:
        yield
    finally:
        _scope.reset(token)


def record(**gates: jax.Array) -> None:
    """Names the gates of a step, for `jrnn.analysis.anatomy`; elsewhere it does nothing.

    A cell calls it in `update`, after the arithmetic: `record(i=i, f=f, g=g, o=o)`.

    Args:
      **gates: the value of each gate after its activation, `[..., hidden]`.
    """
    recorded = _recorder.get()
    if recorded is not None:
        recorded.update({f"{_scope.get()}{name}": gate for name, gate in gates.items()})


@contextlib.contextmanager
def recording() -> Iterator[dict[str, jax.Array]]:
    """Within the block, collects into the dictionary it yields what cells `record`.

    It goes round a plain step, inside of whatever is compiled: a function that is already compiled
    records nothing. For whole sequences there is `jrnn.analysis.anatomy`.
    """
    recorded: dict[str, jax.Array] = {}
    token = _recorder.set(recorded)
    try:
        yield recorded
    finally:
        _recorder.reset(token)
