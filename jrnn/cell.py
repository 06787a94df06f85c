"""The base class of cells: gate arithmetic, written once as pure functions.

A cell is a frozen dataclass of hyper-parameters. It holds no arrays: those are in `params` and in
`carry`. A step consists of four methods, `project`, `recur`, `update` and `readout`, each of which
accepts any leading axes. Every engine is derived from these four.
"""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jrnn.dtypes import cast, widest_dtype
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
      dt: the time since the previous input, `[...]`, the same for all layers of a stack.
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
      b: as `a`.
    """

    a: Any
    b: Any

    def apply(self, carry: Carry) -> Carry:
        """The carry after the step."""
        return jax.tree.map(lambda a, s, b: a * s + b, self.a, carry, self.b)


class LogDiagonal(NamedTuple):
    """Positive coefficients of a linear cell, as logarithms.

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
        """The coefficients as `Diagonal`."""
        return Diagonal(*jax.tree.map(jnp.exp, (self.log_a, self.log_b)))


class Dense(NamedTuple):
    """Coefficients of a linear cell with a matrix: s' = a @ s + b.

    Attributes:
      a: a tree with the structure of the carry; leaves `[..., n, n]` for leaves `[..., n]` of the
        carry, with all leading axes, which have size 1 where the matrices are the same.
      b: a tree with the structure of the carry, as `Diagonal.b`.
    """

    a: Any
    b: Any

    def apply(self, carry: Carry) -> Carry:
        """The carry after the step."""
        return jax.tree.map(lambda a, s, b: (a @ s[..., None])[..., 0] + b, self.a, carry, self.b)


Coefficients = Diagonal | LogDiagonal | Dense


class Core(NamedTuple):
    """The innermost cell of a chain of transforms that do not change its `update`.

    Attributes:
      cell: the innermost cell.
      params: its parameters.
      x: its input.
      finish: maps its output to that of the transformed cell.
    """

    cell: "Cell"
    params: Params
    x: Inputs
    finish: Callable[[Any], Any]


class Traits(NamedTuple):
    """Properties of a cell that cannot be derived by tracing its methods.

    Attributes:
      coupled_carry: whether one leaf of the carry is a function or the scale of another, such as a
        potential and its rate, so that a transform must not change one of them alone.
      input_types: input types that the cell accepts besides arrays, such as `Timed`.
    """

    coupled_carry: bool = False
    input_types: tuple[type, ...] = ()


class Cell(Layer):
    """One step of a recurrent network, as four pure functions.

    With carry s, input x and output y::

        z  = project(params, x)                everything that depends on the input alone
        u  = recur(params, s)                  every matrix product with the carry, nothing else
        s' = update(params, s, z, u)           the gate arithmetic, elementwise
        y  = readout(params, s', z)            the output; by default s' itself

    Subclasses are frozen dataclasses, so that a cell is hashable (a static argument of `jax.jit`),
    printable, picklable and its own config. Each of the four functions accepts any leading axes;
    `z` and `u` are pytrees with one array `[..., hidden]` for each gate, and `recur` is linear in
    the carry.

    A subclass implements `init`, `init_carry`, `project`, `recur` and `update`, and `readout` if
    the output is not the carry. Optional methods add capabilities: `coefficients` for a cell that
    is linear in its carry, `sample_noise` for a stochastic cell, `inputs` for a cell whose input is
    not a single array, `traits` for properties that cannot be traced. All other properties that an
    engine uses, such as whether `update` is elementwise or the Jacobian diagonal, are derived from
    the jaxprs of these functions (see `jrnn.structure`).
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.step is not Cell.step:
            raise TypeError(
                f"{cls.__name__}: step must not be overridden; implement project, recur, update "
                "and readout instead"
            )

    @abc.abstractmethod
    def project(self, params: Params, x: Inputs) -> Gates:
        """Everything that depends on `x [..., input]` alone: one array for each gate."""

    @abc.abstractmethod
    def recur(self, params: Params, carry: Carry) -> Gates:
        """Every matrix product with the carry, and nothing else: one array for each gate."""

    @abc.abstractmethod
    def update(self, params: Params, carry: Carry, z: Gates, u: Gates) -> Carry:
        """The gate arithmetic, elementwise: the new carry."""

    def readout(self, params: Params, carry: Carry, z: Gates) -> Any:
        """The output `y [..., output]` from the new carry: the carry itself by default."""
        if len(jax.tree.leaves(carry)) != 1:
            raise TypeError(
                f"{type(self).__name__}: the carry must be one array for the default readout, "
                f"got {len(jax.tree.leaves(carry))} arrays; implement readout(self, params, carry, "
                "z), such as `return carry.h`"
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
        """Draws all noise once, before the loop, so that it is the same on every engine.

        `project` then receives `Noisy(x, noise)` at each step. Without a key it receives the plain
        input, and the cell returns its expected value.

        Args:
          params: the parameters.
          xs: shapes and dtypes of the inputs, leaves `[*leading, ...]`.
          leading: `(T, *batch)`.
          key: a PRNG key.

        Returns:
          The parameters, with noise that is shared by all steps and sequences applied to them, such
          as dropped weights; and a pytree of leaves `[*leading, ...]`, or None.
        """
        return params, None

    @property
    def is_stochastic(self) -> bool:
        """Whether the cell draws noise when a key is passed."""
        return type(self).sample_noise is not Cell.sample_noise

    @property
    def traits(self) -> Traits:
        """Properties that cannot be derived from the methods of the cell."""
        return Traits()

    def kernel_name(self) -> str | None:
        """The hand-written kernel of `Native` that computes this cell's `update`, or None.

        Parameters and carry must have the fields that this kernel reads.
        """
        return None

    def core(self, params: Params, x: Inputs) -> Core:
        """The innermost cell with the same `recur` and `update`, and how to run it instead.

        An engine with a kernel for that cell applies the transforms to all steps at once.
        """
        return Core(self, params, x, lambda y: y)

    def inputs(
        self, input_size: int, batch_shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
    ) -> Inputs:
        return jnp.zeros((*batch_shape, input_size), dtype)

    @property
    @final
    def causal(self) -> bool:
        """True: an output depends on the inputs up to its own step only."""
        return True

    @property
    @final
    def input_types(self) -> tuple[type, ...]:
        """Input types that the cell accepts besides arrays; see `traits`."""
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

        `init_carry` returns the dtype of the parameters. A custom loop over `step` that starts from
        this carry keeps the wider dtype, as `unroll` does.

        Args:
          params: the parameters.
          x: inputs of one step, `[*batch, input]`.
        """
        one = jax.tree.leaves(jax.eval_shape(lambda: self.inputs(1, ())))[0]
        leaf = jax.tree.leaves(x)[0]
        carry = self.init_carry(params, leaf.shape[: leaf.ndim - one.ndim])
        return cast(carry, widest_dtype(params, x))

    @final
    def step(
        self, params: Params, carry: Carry, x: Inputs, *, key: jax.Array | None = None
    ) -> tuple[Carry, Any]:
        """One step, derived from the four functions: project, recur, update, readout.

        Args:
          params: the parameters, from `init`.
          carry: the carry, from `init_carry` or the previous step.
          x: the input, `[..., input]`.
          key: a PRNG key for a stochastic cell; None means the deterministic expected value.

        Returns:
          The new carry, in the dtypes of `carry`, and the output `[..., output]`.
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
        """Parameters, carry and input of one step, with noise if `key` is not None."""
        if key is None or not self.is_stochastic:
            return params, carry, x
        unbatched = jax.eval_shape(lambda p: self.init_carry(p, ()), params)
        leaf, unbatched_leaf = jax.tree.leaves(carry)[0], jax.tree.leaves(unbatched)[0]
        batch = leaf.shape[: leaf.ndim - unbatched_leaf.ndim]
        xs = jax.eval_shape(lambda: jax.tree.map(lambda leaf: leaf[None], x))
        params, noise = self.sample_noise(params, xs, (1, *batch), key)
        return params, carry, add_noise(x, jax.tree.map(lambda leaf: leaf[0], noise))


def add_noise(x: Inputs, noise: Any) -> Inputs:
    """The input with its noise, or the input itself if there is no noise."""
    return Noisy(x, noise) if jax.tree.leaves(noise) else x


def split_noise(x: Inputs) -> tuple[Inputs, Any]:
    """The input and its noise, or None for the noise if there is none."""
    return tuple(x) if isinstance(x, Noisy) else (x, None)
