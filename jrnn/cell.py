"""The contract of a cell: gate arithmetic, written once as pure functions.

A cell is a frozen dataclass of hyper-parameters. It holds no arrays: those are in `params` and in
`carry`. Four of its methods, `project`, `recur`, `update` and `readout`, make a step, and each of
them accepts any leading axes. Every engine is derived from these four.
"""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jrnn.dtypes import cast, widest
from jrnn.layer import Carry as Carry
from jrnn.layer import Inputs as Inputs
from jrnn.layer import Layer, RunCell, SequenceInputs
from jrnn.layer import Params as Params

Gates = Any


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


class Noisy(NamedTuple):
    """The input of a cell together with the noise that its `sample_noise` drew.

    Attributes:
      x: the input.
      noise: a pytree of leaves with the same leading axes as the input.
    """

    x: Any
    noise: Any


class Diagonal(NamedTuple):
    """Coefficients of a linear cell: s' = a * s + b, elementwise.

    Attributes:
      a: a tree with the structure of the carry; leaves broadcast against those of the carry, and
        may lack leading axes or have axes of size 1.
      b: likewise.
    """

    a: Any
    b: Any

    def apply(self, carry: Carry) -> Carry:
        """The carry after the step."""
        return jax.tree.map(lambda a, s, b: a * s + b, self.a, carry, self.b)


class LogDiagonal(NamedTuple):
    """Coefficients of a linear cell as logarithms, where both are positive.

    ::

        s' = exp(log_a) * s + exp(log_b)

    Attributes:
      log_a: as `Diagonal.a`.
      log_b: as `Diagonal.b`.
    """

    log_a: Any
    log_b: Any

    def apply(self, carry: Carry) -> Carry:
        """The carry after the step."""
        return self.exp().apply(carry)

    def exp(self) -> Diagonal:
        """The coefficients themselves."""
        return Diagonal(*jax.tree.map(jnp.exp, (self.log_a, self.log_b)))


class Dense(NamedTuple):
    """Coefficients of a linear cell with a matrix: s' = a @ s + b.

    Attributes:
      a: a tree with the structure of the carry; leaves `[..., n, n]` for leaves `[..., n]` of the
        carry, with all leading axes, of size 1 where the matrices are the same.
      b: a tree with the structure of the carry, as `Diagonal.b`.
    """

    a: Any
    b: Any

    def apply(self, carry: Carry) -> Carry:
        """The carry after the step."""
        return jax.tree.map(lambda a, s, b: (a @ s[..., None])[..., 0] + b, self.a, carry, self.b)


Coefficients = Diagonal | LogDiagonal | Dense


class Core(NamedTuple):
    """The cell inside of transforms that leave its `update` as it is.

    Attributes:
      cell: the innermost cell.
      params: its parameters.
      x: its input.
      finish: from its output to that of the whole.
    """

    cell: "Cell"
    params: Params
    x: Inputs
    finish: Callable[[Any], Any]


class Traits(NamedTuple):
    """Properties of a cell that cannot be derived by tracing its functions.

    Attributes:
      coupled_carry: whether one part of the carry is a function or the scale of another, such as a
        potential and its rate, so that no transform may change one of them alone.
      input_types: types of inputs besides an array that the cell accepts, such as `Timed`.
    """

    coupled_carry: bool = False
    input_types: tuple[type, ...] = ()


class Cell(Layer):
    """One step of a recurrent network, in four pure functions.

    With carry s, input x and output y::

        z  = project(params, x)                everything that depends on the input alone
        u  = recur(params, s)                  every matrix product with the carry, nothing else
        s' = update(params, s, z, u)           the gate arithmetic, elementwise
        y  = readout(params, s', z)            what the step shows; by default s' itself

    Subclasses are frozen dataclasses, so that a cell is hashable (a static argument of `jax.jit`),
    printable, picklable and its own config. Each of the four functions accepts any leading axes;
    `z` and `u` are pytrees with one array `[..., hidden]` for each gate, and `recur` is linear in
    the carry.

    A subclass writes `init`, `init_carry`, `project`, `recur` and `update`; a cell whose carry is
    more than its output also writes `readout`. Optional methods add capabilities: `coefficients`
    to a cell that is linear in its carry, `sample_noise` to one that is stochastic, `inputs` to one
    whose inputs are not one array, `traits` for what cannot be traced. Everything else that an
    engine needs to know, such as whether `update` is elementwise or the Jacobian diagonal, is read
    off the jaxpr of these functions (see `jrnn.structure`).
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.step is not Cell.step:
            raise TypeError(
                f"{cls.__name__}: step is derived and never overridden; write project, recur, "
                "update and readout instead"
            )

    @abc.abstractmethod
    def project(self, params: Params, x: Inputs) -> Gates:
        """Everything that depends on the input alone: from `x [..., input]`, an array per gate."""

    @abc.abstractmethod
    def recur(self, params: Params, carry: Carry) -> Gates:
        """Every matrix product with the carry and nothing else: one array for each gate."""

    @abc.abstractmethod
    def update(self, params: Params, carry: Carry, z: Gates, u: Gates) -> Carry:
        """The gate arithmetic, elementwise: the new carry."""

    def readout(self, params: Params, carry: Carry, z: Gates) -> Any:
        """The output `y [..., output]` from the new carry: the carry itself by default."""
        if len(jax.tree.leaves(carry)) != 1:
            raise TypeError(
                f"{type(self).__name__}: the carry has {len(jax.tree.leaves(carry))} arrays, so "
                "the output must be chosen; write readout(self, params, carry, z), such as "
                "`return carry.h`"
            )
        return carry

    def coefficients(self, params: Params, z: Gates) -> Coefficients | None:
        """The coefficients of a cell that is linear in its carry; None for any other cell.

        `update` of such a cell is `coefficients(params, z).apply(carry)`, and `recur` returns None.
        """
        return None

    def sample_noise(
        self, params: Params, xs: Inputs, leading: tuple[int, ...], key: jax.Array
    ) -> tuple[Params, Any]:
        """Draws everything random, once before the loop, so that all engines see the same noise.

        `project` is then given `Noisy(x, noise)` of each step; without a key it is given the plain
        input, for which the cell returns its expected value.

        Args:
          params: the parameters.
          xs: shapes and dtypes of the inputs, leaves `[*leading, ...]`.
          leading: `(T, *batch)`.
          key: randomness.

        Returns:
          The parameters, changed where noise holds for all steps and sequences, such as dropped
          weights; and a pytree of leaves `[*leading, ...]`, or None.
        """
        return params, None

    @property
    def is_stochastic(self) -> bool:
        """Whether the cell draws noise when it is given a key."""
        return type(self).sample_noise is not Cell.sample_noise

    @property
    def traits(self) -> Traits:
        """What cannot be read off the functions of the cell."""
        return Traits()

    def kernel_name(self) -> str | None:
        """The hand-written kernel of `Native` that computes this cell's `update`, or None.

        Parameters and carry must then have the fields that the name implies.
        """
        return None

    def core(self, params: Params, x: Inputs) -> Core:
        """The cell whose `recur` and `update` are those of this one, and what is around it.

        An engine with a kernel for the inner cell runs that, on inputs of all steps at once.
        """
        return Core(self, params, x, lambda y: y)

    def inputs(
        self, input_size: int, batch_shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
    ) -> Inputs:
        return jnp.zeros((*batch_shape, input_size), dtype)

    @property
    @final
    def causal(self) -> bool:
        """True: a step sees its own input and those before it."""
        return True

    @property
    @final
    def input_types(self) -> tuple[type, ...]:
        """As `traits` says."""
        return self.traits.input_types

    @final
    def apply(
        self,
        run: RunCell,
        params: Params,
        inputs: SequenceInputs,
        *,
        path: tuple[str, ...] = (),
    ) -> tuple[Carry, Any]:
        return run(self, params, inputs, path=path)

    @final
    def output_shape(self, params: Params, input_size: int) -> Any:
        """The output of one step without batch axes, as `jax.eval_shape` returns it."""

        def one(params: Params) -> Any:
            return self.step(params, self.init_carry(params, ()), self.inputs(input_size, ()))[1]

        return jax.eval_shape(one, params)

    @final
    def init_carry_like(self, params: Params, x: Inputs) -> Carry:
        """The carry before the first step, in the wider dtype of parameters and inputs.

        `init_carry` has the dtype of the parameters. Where inputs have a wider one, a loop of your
        own over `step` that starts from this carry keeps the wider dtype, as `unroll` does.

        Args:
          params: the parameters.
          x: inputs of one step, `[*batch, input]`.
        """
        one = jax.tree.leaves(jax.eval_shape(lambda: self.inputs(1, ())))[0]
        leaf = jax.tree.leaves(x)[0]
        carry = self.init_carry(params, leaf.shape[: leaf.ndim - one.ndim])
        return cast(carry, widest(params, x))

    @final
    def step(
        self, params: Params, carry: Carry, x: Inputs, *, key: jax.Array | None = None
    ) -> tuple[Carry, Any]:
        """One step, derived from the four functions: project, recur, update, readout.

        Args:
          params: what `init` drew.
          carry: what `init_carry` or the step before returned.
          x: the input, `[..., input]`.
          key: randomness for a stochastic cell; None means deterministic, at the expected value.

        Returns:
          The new carry, in the dtypes of the given one, and the output `[..., output]`.
        """
        new, y = self._step(*self._with_noise(params, carry, x, key=key))
        return jax.tree.map(lambda a, old: a.astype(jnp.result_type(old)), new, carry), y

    def _step(self, params: Params, carry: Carry, x: Inputs) -> tuple[Carry, Any]:
        z = self.project(params, x)
        carry = self.update(params, carry, z, self.recur(params, carry))
        return carry, self.readout(params, carry, z)

    def _with_noise(
        self, params: Params, carry: Carry, x: Inputs, *, key: jax.Array | None
    ) -> tuple[Params, Carry, Inputs]:
        """Parameters, carry and input of one step, with noise where there is a key for it."""
        if key is None or not self.is_stochastic:
            return params, carry, x
        alone = jax.eval_shape(lambda p: self.init_carry(p, ()), params)
        leaf, own = jax.tree.leaves(carry)[0], jax.tree.leaves(alone)[0]
        batch = leaf.shape[: leaf.ndim - own.ndim]
        xs = jax.eval_shape(lambda: jax.tree.map(lambda leaf: leaf[None], x))
        params, noise = self.sample_noise(params, xs, (1, *batch), key)
        return params, carry, add_noise(x, jax.tree.map(lambda drawn: drawn[0], noise))


def add_noise(x: Inputs, noise: Any) -> Inputs:
    """The input with noise; as it is where there is none."""
    return Noisy(x, noise) if jax.tree.leaves(noise) else x


def split_noise(x: Inputs) -> tuple[Inputs, Any]:
    """The input and its noise, None where there is none."""
    return tuple(x) if isinstance(x, Noisy) else (x, None)
