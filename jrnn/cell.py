"""The base class of cells: gate arithmetic, written once as pure functions.

A cell is a frozen dataclass of hyper-parameters. Its arrays are not fields, but are passed as
`params` and `carry`. A step consists of four methods, `project`, `recur`, `update` and `readout`,
each of which accepts any leading axes. Engines run these four, or what is derived from them: the
`coefficients` of a cell that is linear in its carry, or a kernel with the same equations.
"""

import abc
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jrnn import checks
from jrnn.broadcasting import add, multiply
from jrnn.dtypes import cast, widest_dtype
from jrnn.layer import Carry as Carry
from jrnn.layer import Inputs as Inputs
from jrnn.layer import Layer, RunCell, SequenceInputs, register_for_export
from jrnn.layer import Params as Params
from jrnn.params import check_input_type, conform_params, convert_params
from jrnn.trees import check_structure

Gates = Any


class WithCellState(NamedTuple):
    """The input of a cell that also reads the cell state of the layer below, as in a stack.

    Attributes:
      x: the output of the layer below, `[..., input]`.
      c: the cell state of the layer below after the same step, `[..., hidden]`.
    """

    x: jax.Array
    c: jax.Array


class Timed(NamedTuple):
    """The input of a cell for irregularly sampled sequences.

    Attributes:
      x: the input, `[..., input]`.
      dt: the time since the previous input, `[...]`. In a stack, all layers that accept `Timed`
        receive the same `dt`.
    """

    x: jax.Array
    dt: jax.Array


class Observed(NamedTuple):
    """The input of `GRUD`: one step of a time series with missing values.

    All arrays are `[..., input]`, with one entry for each variable.

    Attributes:
      x: the observed values; where a value is missing, any number or NaN, which is not read.
      mask: 1 where a value is observed, 0 where it is missing.
      delta: the time since the previous observation of the variable, in any unit.
    """

    x: jax.Array
    mask: jax.Array
    delta: jax.Array

    def zero_missing(self, valid: jax.Array | None = None) -> "Observed":
        """Returns the input with 0 in place of missing values, which receive no gradient.

        Args:
          valid: `[...]` bool, False on padding, where the values are replaced by 0 too; None means
            that there is no padding.
        """
        if self.mask.shape[-1:] != self.x.shape[-1:]:
            raise ValueError(
                f"Observed: mask must have the shape of x, {self.x.shape}, got {self.mask.shape}"
            )
        keep = self.mask != 0 if valid is None else (self.mask != 0) & valid[..., None]
        return self._replace(x=_zero_unless(keep, self.x))


@jax.jit  # so that jax_debug_nans does not check NumPy arrays with NaN, which JAX would convert
def _zero_unless(keep: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.where(keep, x, jnp.zeros((), x.dtype))


class Noisy(NamedTuple):
    """The input of a stochastic cell, with the noise from its `sample_noise`.

    Attributes:
      x: the input that the cell receives without noise.
      noise: a pytree; its leaves have the leading axes of the input.
    """

    x: Any
    noise: Any


register_for_export(WithCellState, Timed, Noisy)


class Diagonal(NamedTuple):
    """Coefficients of a linear cell: s' = a * s + b, elementwise.

    Attributes:
      a: a pytree with the structure of the carry. Its leaves broadcast against those of the carry;
        they may lack leading axes or have axes of size 1.
      b: a pytree with the structure of the carry. Its leaves broadcast in the same way.
    """

    a: Any
    b: Any

    def apply(self, carry: Carry) -> Carry:
        """Returns the carry after the step."""
        return jax.tree.map(lambda a, s, b: add(multiply(a, s), b), self.a, carry, self.b)


class LogDiagonal(NamedTuple):
    """The logarithms of the coefficients of a linear cell whose coefficients are all positive.

    ::

        s' = exp(log_a) * s + exp(log_b)

    Attributes:
      log_a: the logarithms of the leaves of `Diagonal.a`.
      log_b: the logarithms of the leaves of `Diagonal.b`.
    """

    log_a: Any
    log_b: Any

    def apply(self, carry: Carry) -> Carry:
        """Returns the carry after the step."""
        return self.exp().apply(carry)

    def exp(self) -> Diagonal:
        """Returns the coefficients as `Diagonal`."""
        return Diagonal(*jax.tree.map(jnp.exp, (self.log_a, self.log_b)))


class Dense(NamedTuple):
    """Coefficients of a linear cell with a transition matrix: s' = a @ s + b.

    Attributes:
      a: a pytree with the structure of the carry, leaves `[..., n, n]` for leaves `[..., n]` of the
        carry. All leading axes must be present; an axis has size 1 if the matrices do not depend on
        it.
      b: a pytree with the structure of the carry, as in `Diagonal.b`.
    """

    a: Any
    b: Any

    def apply(self, carry: Carry) -> Carry:
        """Returns the carry after the step."""
        return jax.tree.map(
            lambda a, s, b: add((a @ s[..., None])[..., 0], b), self.a, carry, self.b
        )


Coefficients = Diagonal | LogDiagonal | Dense


class InnerCell(NamedTuple):
    """The cell inside a chain of transforms that do not change `recur` and `update`.

    Attributes:
      cell: the inner cell.
      params: the parameters of the inner cell.
      x: the input of the inner cell.
      transform_output: maps the output of the inner cell to that of the transformed cell.
    """

    cell: "Cell"
    params: Params
    x: Inputs
    transform_output: Callable[[Any], Any]


class Cell(Layer):
    """One step of a recurrent network, as four pure functions.

    With carry s, input x and output y::

        z  = project(params, x)                everything that depends on the input alone
        u  = recur(params, s)                  every matrix product with the carry, nothing else
        s' = update(params, s, z, u)           the gate arithmetic, elementwise
        y  = readout(params, s', z)            the output; by default s' itself

    Here z is what `project` returns, such as the pre-activations from the input, and u is what
    `recur` returns, the pre-activations from the carry. They are not the update gate z and the
    recurrent matrix U in the equations of a paper or in the docstring of a cell.

    Subclasses must be frozen dataclasses. A cell is then hashable, so that it can be a static
    argument of `jax.jit`; it is also printable and picklable, and serves as its own config. Each of
    the four functions accepts any leading axes. `z` and `u` are pytrees, usually with one array
    `[..., hidden]` for each gate. `recur` is linear in the carry, or returns None. An `update` that
    computes matrix products, such as that of `MGU`, is valid, but `layer_norm` does not support it.

    A subclass implements `init`, `init_carry`, `project`, `recur` and `update`, and `readout` if
    the output is not the carry. Optional methods add capabilities: `coefficients` for a cell that
    is linear in its carry, `sample_noise` for a stochastic cell, `inputs` for a cell whose input is
    not a single array. Two properties must be declared if their default is wrong:
    `has_coupled_carry` and `input_types`. All other properties that an engine uses, such as whether
    `update` is elementwise or the Jacobian diagonal, are derived from the jaxprs of these functions
    (see `jrnn.structure`).
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.step is not Cell.step:
            raise TypeError(
                f"{cls.__name__}: step must not be overridden; implement project, recur, update "
                "and readout instead"
            )
        if "init_carry" in vars(cls):
            cls.init_carry = _with_converted_params(cls.init_carry)

    @abc.abstractmethod
    def project(self, params: Params, x: Inputs) -> Gates:
        """Computes everything that depends on parameters and the input `x [..., input]` alone."""

    @abc.abstractmethod
    def recur(self, params: Params, carry: Carry) -> Gates:
        """Computes the matrix products with the carry, and nothing else."""

    @abc.abstractmethod
    def update(self, params: Params, carry: Carry, z: Gates, u: Gates) -> Carry:
        """Computes the new carry from the old carry, `z` and `u`, elementwise if possible."""

    def readout(self, params: Params, carry: Carry, z: Gates) -> Any:
        """Computes the output `y [..., output]` from the new carry; by default the carry itself.

        Raises:
          TypeError: the carry is not one array, and `readout` is not overridden.
        """
        if len(jax.tree.leaves(carry)) != 1:
            raise TypeError(
                f"{type(self).__name__}: the carry must be one array for the default readout, "
                f"got {len(jax.tree.leaves(carry))} arrays; implement readout(self, params, carry, "
                "z), such as `return carry.h`"
            )
        return carry

    def coefficients(self, params: Params, z: Gates) -> Coefficients | None:
        """Returns the coefficients of a cell that is linear in its carry; None for any other cell.

        `update` of a linear cell is `coefficients(params, z).apply(carry)`, and its `recur` returns
        None.
        """
        return None

    def sample_noise(
        self, params: Params, xs: Inputs, leading: tuple[int, ...], key: jax.Array
    ) -> tuple[Params, Any]:
        """Draws the noise of all steps before the loop, so that it is the same on every engine.

        `project` then receives `Noisy(x, noise)` at each step, or the plain input if the noise is
        None. Without a key this method is not called: `project` receives the plain input, and the
        cell must compute its expected value.

        Args:
          params: the parameters.
          xs: shapes and dtypes of the inputs, leaves `[*leading, ...]`.
          leading: `(T, *batch)`.
          key: a PRNG key.

        Returns:
          The parameters, changed by noise that all steps and sequences share, such as dropped
          weights; and the noise of each step, a pytree of leaves `[*leading, ...]`, or None.
        """
        return params, None

    @property
    def is_stochastic(self) -> bool:
        """Whether the cell draws noise when a key is passed."""
        return type(self).sample_noise is not Cell.sample_noise

    @property
    def has_coupled_carry(self) -> bool:
        """Whether one leaf of the carry determines or scales another, as in `CTRNN` and `SLSTM`.

        Transforms such as `zoneout` raise for such a cell, since they would change these leaves
        independently of each other.
        """
        return False

    def kernel_name(self) -> str | None:
        """Returns the name of the `Native` kernel that computes this cell's `update`, or None.

        Parameters and carry must have the fields that this kernel reads.
        """
        return None

    def inner_cell(self, params: Params, x: Inputs) -> InnerCell:
        """Returns the innermost cell that has the `recur` and `update` of this cell.

        `Native` runs its kernel on the inner cell, and applies the transforms to all steps at once.
        A cell that is not a transform returns itself.

        Args:
          params: the parameters of this cell.
          x: the inputs of this cell, with any leading axes.
        """
        return InnerCell(self, params, x, lambda y: y)

    def inputs(
        self, input_size: int, batch_shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
    ) -> Inputs:
        return jnp.zeros((*batch_shape, input_size), dtype)

    @property
    @final
    def causal(self) -> bool:
        """Always True: an output of a cell does not depend on inputs of later steps."""
        return True

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
        """Returns shape and dtype of the output of one step, without batch axes.

        Args:
          params: the parameters, or their shapes and dtypes.
          input_size: the size of the last axis of the inputs.

        Returns:
          A `jax.ShapeDtypeStruct`, or a pytree of them.
        """

        def step_output(params: Params) -> Any:
            x = self.inputs(input_size, ())
            params, x = cast((params, x), widest_dtype(params, x))
            return self.step(params, self.init_carry(params, ()), x)[1]

        return jax.eval_shape(step_output, params)

    @final
    def init_carry_like(self, params: Params, x: Inputs) -> Carry:
        """Returns the initial carry, in the wider dtype of parameters and inputs.

        `init_carry` uses the dtype of the parameters only. A custom loop over `step` that starts
        from this carry keeps the wider dtype, as `unroll` does.

        Args:
          params: the parameters.
          x: inputs of one step, `[*batch, input]`, or another input that the cell accepts.
        """
        unbatched = jax.tree.leaves(jax.eval_shape(lambda: self.inputs(1, ())))[0]
        leaf = jax.tree.leaves(x)[0]
        carry = self.init_carry(params, leaf.shape[: leaf.ndim - unbatched.ndim])
        return cast(carry, widest_dtype(params, x))

    @final
    def step(
        self, params: Params, carry: Carry, x: Inputs, *, key: jax.Array | None = None
    ) -> tuple[Carry, Any]:
        """Runs one step: `project`, `recur`, `update` and `readout` in this order.

        Args:
          params: the parameters, from `init`.
          carry: the carry, from `init_carry` or the previous step.
          x: the input, `[..., input]`, or another input that the cell accepts.
          key: a PRNG key for a stochastic cell; None means the deterministic expected value.

        Returns:
          The new carry, in the dtypes of `carry`, and the output `[..., output]`.

        Raises:
          TypeError: `params`, `carry` or `x` has a wrong type, or `key` is not a PRNG key.
          ValueError: the structure, a shape or a dtype within `params` is wrong, `x` has another
            input size than `params`, or a leaf of `carry` has a wrong size.
        """
        owner = f"{type(self).__name__}.step"
        check_input_type(owner, self, params, x, "x")
        params = conform_params(owner, self, params, x, "x")
        if key is not None:
            checks.prng_key(owner, "key", key)
        try:
            new, y = self._step(*self._with_noise(params, carry, x, key=key))
            return jax.tree.map(lambda a, old: a.astype(jnp.result_type(old)), new, carry), y
        except (AttributeError, TypeError, ValueError):
            self._check_carry(owner, params, carry, x)
            raise

    def _check_carry(self, owner: str, params: Params, carry: Carry, x: Inputs) -> None:
        """Raises if the carry of a step that failed is not one of `init_carry`."""
        expected = jax.eval_shape(lambda: self.init_carry_like(params, x))
        source = f"{type(self).__name__}.init_carry"
        check_structure(f"{owner}: carry", source, carry, expected)
        shapes = [[leaf.shape for leaf in jax.tree.leaves(tree)] for tree in (expected, carry)]
        if [shape[-1:] for shape in shapes[0]] != [shape[-1:] for shape in shapes[1]]:
            raise ValueError(
                f"{owner}: carry must have leaves of shapes {checks.shorten(shapes[0])}, got "
                f"{checks.shorten(shapes[1])}"
            )

    def _step(self, params: Params, carry: Carry, x: Inputs) -> tuple[Carry, Any]:
        z = self.project(params, x)
        carry = self.update(params, carry, z, self.recur(params, carry))
        return carry, self.readout(params, carry, z)

    def _with_noise(
        self, params: Params, carry: Carry, x: Inputs, *, key: jax.Array | None
    ) -> tuple[Params, Carry, Inputs]:
        """Returns the arguments of one step, with noise if `key` is not None."""
        if key is None or not self.is_stochastic:
            return params, carry, x
        unbatched = jax.eval_shape(lambda p: self.init_carry(p, ()), params)
        leaf, unbatched_leaf = jax.tree.leaves(carry)[0], jax.tree.leaves(unbatched)[0]
        batch = leaf.shape[: leaf.ndim - unbatched_leaf.ndim]
        xs = jax.eval_shape(lambda: jax.tree.map(lambda leaf: leaf[None], x))
        params, noise = self.sample_noise(params, xs, (1, *batch), key)
        return params, carry, add_noise(x, jax.tree.map(lambda leaf: leaf[0], noise))


def _with_converted_params(init_carry: Callable[..., Carry]) -> Callable[..., Carry]:
    """Returns a method that validates its arguments, converts dicts, and calls `init_carry`."""

    @functools.wraps(init_carry)
    def converted(self: Cell, params: Params, batch_shape: tuple[int, ...]) -> Carry:
        owner = f"{type(self).__name__}.init_carry"
        if not isinstance(batch_shape, tuple | list):
            raise TypeError(
                f"{owner}: batch_shape must be a tuple of ints such as (32,), got "
                f"{checks.describe(batch_shape)}"
            )
        return init_carry(self, convert_params(owner, self, params), batch_shape)

    return converted


def add_noise(x: Inputs, noise: Any) -> Inputs:
    """Returns `Noisy(x, noise)`, or the input itself if `noise` has no leaves."""
    return Noisy(x, noise) if jax.tree.leaves(noise) else x


def split_noise(x: Inputs) -> tuple[Inputs, Any]:
    """Splits an input into the plain input and its noise, or None for an input without noise."""
    return tuple(x) if isinstance(x, Noisy) else (x, None)
