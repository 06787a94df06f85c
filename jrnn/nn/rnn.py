"""A cell, or a layer of cells, over time as a flax module."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

from jrnn.cell import Carry, Inputs, Params
from jrnn.dtypes import cast
from jrnn.engines import Engine, choose_engine, unroll
from jrnn.layer import Layer


class RNN(nnx.Module):
    """Runs a cell or a layer over a batch of sequences and holds its parameters.

    The parameters keep the names that the cell gives them: `rnn.weights.w_ih` and so on are
    `nnx.Param`s, and `rnn.params` is the plain tree that the functional core takes.

    Attributes:
      cell: the cell or layer.
      input_size: last axis of the inputs.
      output_size: last axis of the outputs.
      causal: whether an output depends on the inputs up to its own step alone.
      output_directions: for each equal part of the output's last axis, whether it is scanned in
        reverse.
      deterministic: whether a stochastic cell returns its expected value, as after `eval()`; after
        `train()`, and at first, noise is drawn at each call.
    """

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
        """Draws the parameters.

        Args:
          cell: any cell, such as `jrnn.LSTM(64)`, or a layer, such as `jrnn.stack([...])`.
          input_size: last axis of the inputs.
          rngs: source of randomness: stream `params`, and for noise stream `dropout`.
          reverse: scan from the last valid step to the first.
          time_major: take and return `[T, B, ...]` in place of `[B, T, ...]`.
          engine: as in `jrnn.unroll`.
          dtype: of inputs, products and outputs; None leaves the inputs as they come.
          param_dtype: of the parameters; the carry is in the wider of the two.
        """
        if reverse and not cell.causal:
            raise ValueError(
                f"{type(self).__name__}: {cell!r} scans in both directions itself; leave out "
                "reverse=True and bidirectional=True"
            )
        params = cell.init(rngs.params(), input_size, param_dtype)
        self.cell = cell
        self.input_size = input_size
        self.output_size = cell.output_shape(params, input_size).shape[-1]
        self.reverse = reverse
        self.causal = cell.causal and not reverse
        self.output_directions = (True,) if reverse else cell.output_directions
        self.time_major = time_major
        self.engine = choose_engine(engine)
        self.dtype = dtype
        self.deterministic = False
        self.rngs = nnx.data(_noise(rngs) if cell.is_stochastic else None)
        self.weights = nnx.data(jax.tree.map(nnx.Param, params))

    @property
    def params(self) -> Params:
        """The parameters as plain arrays, for the functional core."""
        return jax.tree.map(
            lambda weight: weight[...], self.weights, is_leaf=lambda w: isinstance(w, nnx.Param)
        )

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
        """Runs over all steps; the order of arguments and results is that of `lax.scan`.

        Args:
          xs: inputs `[B, T, input]` (`[T, B, input]` if time_major).
          carry: the first carry, leaves `[B, ...]`; by default the cell's own.
          lengths: `[B]`, valid steps of each sequence.
          mask: `[B, T]` bool (`[T, B]` if time_major), True on valid steps, in any pattern.
          resets: `[B, T]` bool (`[T, B]` if time_major), the carry is reset before these steps.
          key: randomness for stochastic cells; by default from the module's own stream in training
            mode, and none in evaluation mode.

        Returns:
          The last carry, and the outputs `[B, T, output]` (`[T, B, output]` if time_major).

        Raises:
          ValueError: a shape does not fit.
          TypeError: a dtype or the structure of the carry does not fit.
        """
        if not self.time_major:
            xs, mask, resets = time_first(type(self).__name__, xs, mask, resets)
        if self.dtype is not None:
            xs = cast(jax.tree.map(jnp.asarray, xs), jnp.dtype(self.dtype))
        if key is None and self.cell.is_stochastic and not self.deterministic:
            key = self._draw()
        carry, ys = unroll(
            self.cell,
            self.params,
            xs,
            carry,
            lengths=lengths,
            mask=mask,
            resets=resets,
            reverse=self.reverse,
            key=key,
            engine=self.engine,
        )
        return carry, ys if self.time_major else swap_time_and_batch(ys)

    def _draw(self) -> jax.Array:
        """A key for the noise of one call."""
        if self.rngs is None:
            raise ValueError(
                f"{type(self).__name__}: {self.cell!r} draws noise, and rngs had no stream for it; "
                "make the module with rngs=nnx.Rngs(params=..., dropout=...), give a key, or call "
                "eval() for the expected value"
            )
        return self.rngs()


def _noise(rngs: nnx.Rngs) -> nnx.RngStream | None:
    """A separate stream for noise, if `rngs` has a stream to fork it from."""
    return rngs.dropout.fork() if "dropout" in rngs or "default" in rngs else None


def time_first(
    owner: str, xs: Inputs, mask: ArrayLike | None, resets: ArrayLike | None
) -> tuple[Inputs, Any, Any]:
    """Batch-major inputs, mask and resets as time-major ones, after a check in the user's axes."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(xs)]
    if any(len(shape) < 2 for shape in shapes):
        raise ValueError(f"{owner}: xs must have shape (batch, time, ...), got {shapes}")
    if len(shapes) == 1 and len(shapes[0]) < 3:
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
    """Exchanges the first two axes of every leaf."""
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), tree)
