"""A flax module that scans a cell, or a layer of cells, over time."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

from jrnn import checks
from jrnn.cell import Carry, Inputs, Params
from jrnn.dtypes import cast
from jrnn.engines import Engine, choose_engine, unroll_inputs
from jrnn.layer import Layer, SequenceInputs, check_layer
from jrnn.nn.dropout import fork_dropout_stream, missing_stream
from jrnn.nn.options import (
    MODULE_HINTS,
    check_dtypes,
    check_input_size,
    check_rngs,
    convert_lists,
)
from jrnn.signatures import SEQUENCE_HINTS, explain_signature


class Recurrent(nnx.Module):
    """The base class of recurrent modules, whose calls run whole sequences.

    Attributes:
      input_size: size of the last axis of the inputs.
      causal: whether each output depends only on inputs up to its own step.
      time_major: whether inputs and outputs are `[T, B, ...]` instead of `[B, T, ...]`.
    """

    input_size: int
    causal: bool
    time_major: bool

    @property
    def first_cell(self) -> Layer:
        """The cell or layer that reads the inputs."""
        raise NotImplementedError

    def step_shape(self, batch_size: int) -> tuple[int, ...] | None:
        """Returns the shape of the inputs of one step; None if they are not a single array."""
        inputs = self.first_cell.inputs(self.input_size, (batch_size,))
        return inputs.shape if isinstance(inputs, jax.Array) else None

    def step(
        self, x: Inputs, carry: Carry | None = None, *, resets: ArrayLike | None = None
    ) -> tuple[Carry, jax.Array]:
        """Takes one step, with the output of a call for the whole sequence.

        Args:
          x: inputs of one step, `[B, input]`, or a pytree of inputs that the cell accepts.
          carry: the carry after the previous step; None means the initial carry.
          resets: `[B]` bool, True where the carry is reset before the step.

        Returns:
          The carry, and the output `[B, output]`.

        Raises:
          ValueError: the module is not causal, or as for a call.
          TypeError: as for a call.
        """
        owner = type(self).__name__
        if not self.causal:
            raise ValueError(
                f"{owner}: step needs a causal module, got one whose outputs may depend on later "
                "inputs; use layers that are neither reversed nor bidirectional"
            )
        expected, leaves = self.step_shape(1), jax.tree.leaves(x)
        if expected is not None and len(leaves) == 1 and jnp.ndim(leaves[0]) != len(expected):
            axes = ", ".join(("batch", *map(str, expected[1:-1]), "input"))
            raise ValueError(
                f"{owner}: x must be the inputs of one step, of shape ({axes}), got "
                f"{jnp.shape(leaves[0])}"
            )
        axis = 0 if self.time_major else 1
        expand = lambda leaf: jnp.expand_dims(jnp.asarray(leaf), axis)
        xs, resets = jax.tree.map(expand, (x, resets))
        carry, ys = self(xs, carry, resets=resets)
        return carry, jnp.squeeze(ys, axis)


class RNN(Recurrent):
    """Scans a cell or a layer over a batch of sequences, and contains its parameters.

    `rnn.weights` is the pytree of parameters that `cell.init` returns, with an `nnx.Param` for each
    array, such as `rnn.weights.w_ih`. `rnn.params` is the same pytree of arrays, for `jrnn.unroll`.

    Attributes:
      cell: the cell or layer.
      input_size: size of the last axis of the inputs.
      output_size: size of the last axis of the outputs.
      reverse: whether the module scans from the last valid step to the first.
      time_major: whether inputs and outputs are `[T, B, ...]` instead of `[B, T, ...]`.
      causal: whether an output depends only on the inputs up to its step.
      output_directions: for each part of the last axis of the outputs, True if a reverse scan
        computes it.
      output_sizes: the sizes of these parts.
      owner: the name of the module in error messages.
      deterministic: for calls without `key`: if True, as after `eval()`, a stochastic cell returns
        its expected value; if False, initially and after `train()`, each call samples noise.

    >>> import jax.numpy as jnp, jrnn
    >>> rnn = RNN(jrnn.GRU(8), 3, rngs=nnx.Rngs(0))
    >>> carry, ys = rnn(jnp.ones((4, 7, 3)))
    >>> carry.shape, ys.shape
    ((4, 8), (4, 7, 8))
    """

    @explain_signature(MODULE_HINTS)
    def __init__(
        self,
        cell: Layer,
        input_size: int,
        *,
        rngs: nnx.Rngs,
        reverse: bool = False,
        time_major: bool = False,
        engine: Engine | str = "auto",
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
    ):
        """Initializes the parameters.

        Args:
          cell: any cell, such as `jrnn.LSTM(64)`, or a layer, such as `jrnn.stack([...])`.
          input_size: size of the last axis of the inputs.
          rngs: the stream `params` is used for the parameters, and `dropout` for the noise of a
            stochastic cell.
          reverse: whether to scan from the last valid step to the first.
          time_major: use `[T, B, ...]` instead of `[B, T, ...]` for inputs and outputs.
          engine: as in `jrnn.unroll`.
          dtype: dtype of inputs, products and outputs; None uses that of the inputs.
          param_dtype: dtype of the parameters; the carry has the wider of the two.

        Raises:
          TypeError: `cell` is not a layer, `rngs` is not an `nnx.Rngs`, or `dtype` or
            `param_dtype` is not floating or not enabled in JAX.
          ValueError: `input_size` is not a positive int, `engine` is unknown, `reverse` is True for
            a layer that is not causal, or `reverse` or `time_major` is not a bool.
        """
        self.owner = type(self).__name__
        check_layer(self.owner, "cell", cell)
        check_rngs(self.owner, rngs)
        check_dtypes(self.owner, dtype, param_dtype)
        reverse = checks.boolean(self.owner, "reverse", reverse)
        if reverse and not cell.causal:
            raise ValueError(
                f"{type(self).__name__}: cell must be causal for reverse=True or "
                f"bidirectional=True, got {checks.describe(cell)}; remove the option"
            )
        input_size = checks.positive_int(self.owner, "input_size", input_size)
        params = cell.init(rngs.params(), input_size, param_dtype)
        self.cell = cell
        self.input_size = input_size
        self.output_size = cell.output_shape(params, input_size).shape[-1]
        self.reverse = reverse
        self.causal = cell.causal and not reverse
        self.output_directions = (True,) if reverse else cell.output_directions
        self.output_sizes = cell.output_sizes(params, input_size)
        self.time_major = checks.boolean(self.owner, "time_major", time_major)
        self.engine = choose_engine(engine, self.owner)
        self.dtype = dtype
        self.deterministic = False
        self.rngs = nnx.data(fork_dropout_stream(rngs) if cell.is_stochastic else None)
        self.weights = nnx.data(jax.tree.map(nnx.Param, params))

    @property
    def first_cell(self) -> Layer:
        """The cell or layer, which reads the inputs."""
        return self.cell

    @property
    def params(self) -> Params:
        """The parameters as a pytree of arrays, for `jrnn.unroll`."""
        return jax.tree.map(
            lambda weight: weight[...], self.weights, is_leaf=lambda w: isinstance(w, nnx.Param)
        )

    @explain_signature(SEQUENCE_HINTS)
    def __call__(
        self,
        xs: Inputs,
        carry: Carry | None = None,
        *,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        resets: ArrayLike | None = None,
        key: jax.Array | None = None,
    ) -> tuple[Carry, jax.Array]:
        """Scans over all steps. The carry is the first result, as in `lax.scan`.

        Args:
          xs: inputs `[B, T, input]` (`[T, B, input]` if time_major), or a pytree of inputs that the
            cell accepts.
          carry: the initial carry, leaves `[B, ...]`; by default `cell.init_carry`.
          lengths: `[B]` ints, the number of valid steps of each sequence, as in `jrnn.unroll`.
          mask: `[B, T]` bool (`[T, B]` if time_major), True on valid steps, in any pattern.
          resets: `[B, T]` bool (`[T, B]` if time_major), True where the carry is reset before the
            step.
          key: PRNG key for the noise of a stochastic cell. By default it is drawn from the stream
            `dropout` in training mode, and there is no noise in evaluation mode.

        Returns:
          The final carry, and the outputs `[B, T, output]` (`[T, B, output]` if time_major).

        Raises:
          ValueError: a shape or a length is wrong, or `rngs` had no stream for the noise of the
            cell.
          TypeError: a dtype or the structure of the carry is wrong.
        """
        given, mask, resets = convert_lists(self.owner, xs, mask, resets)
        xs = given
        if not self.time_major:
            xs, mask, resets = to_time_major(self.owner, xs, mask, resets)
        check_input_size(self.owner, self.cell, self.input_size, given)
        if self.dtype is not None:
            xs = cast(jax.tree.map(jnp.asarray, xs), jnp.dtype(self.dtype))
        if key is None and self.cell.is_stochastic and not self.deterministic:
            key = self._make_noise_key()
        inputs = SequenceInputs(xs, carry, lengths, mask, resets, key, self.reverse, self.owner)
        carry, ys = unroll_inputs(self.cell, self.params, inputs, self.engine)
        return carry, ys if self.time_major else swap_time_and_batch(ys)

    def init_carry(self, batch_size: int) -> Carry:
        """Returns the carry before the first step, leaves `[batch_size, ...]`."""
        batch_size = checks.positive_int(self.owner, "batch_size", batch_size)
        return self.cell.init_carry(self.params, (batch_size,))

    def _make_noise_key(self) -> jax.Array:
        """Returns the PRNG key for the noise of one call."""
        if self.rngs is None:
            raise ValueError(
                f"{self.owner}: {missing_stream(f'the noise of {checks.describe(self.cell)}')}; or "
                "pass key, or call eval() to use the expected value"
            )
        return self.rngs()


def to_time_major(
    owner: str, xs: Inputs, mask: ArrayLike | None, resets: ArrayLike | None
) -> tuple[Inputs, Any, Any]:
    """Converts batch-major inputs, mask and resets to time-major; None stays None.

    Raises:
      ValueError: the leaves of `xs` do not share the axes batch and time, or the shape of `mask` or
        `resets` is not (batch, time).
      TypeError: `xs` are tokens.
    """
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(xs)]
    if any(len(shape) < 2 or shape[:2] != shapes[0][:2] for shape in shapes):
        raise ValueError(
            f"{owner}: xs must have shape (batch, time, ...), with the same batch and time in "
            f"every array, got {checks.shorten(shapes[:9])}"
        )
    if len(shapes) == 1 and len(shapes[0]) < 3:
        dtype = jnp.result_type(jax.tree.leaves(xs)[0])
        if jnp.issubdtype(dtype, jnp.integer):
            raise TypeError(
                f"{owner}: xs must be floating, of shape (batch, time, input), got {dtype} of "
                f"shape {shapes[0]}; map tokens to vectors first, as by nnx.Embed"
            )
        raise ValueError(
            f"{owner}: xs must have shape (batch, time, input), got {shapes[0]}; pass a single "
            "sequence as xs[None]"
        )
    for name, value in (("mask", mask), ("resets", resets)):
        if value is not None and shapes and jnp.shape(value) != shapes[0][:2]:
            raise ValueError(
                f"{owner}: {name} must have shape (batch, time) = {shapes[0][:2]}, "
                f"got {jnp.shape(value)}"
            )
    return swap_time_and_batch((xs, mask, resets))


def swap_time_and_batch(tree: Any) -> Any:
    """Swaps the first two axes of every leaf."""
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), tree)
