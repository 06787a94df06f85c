"""Streaming inference: runs a network one time step at a time."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

from jrnn import checks
from jrnn.cell import Carry, Inputs
from jrnn.nn.heads import Body, SequenceToSequence


class Stream:
    """A network in evaluation mode and its carry; created by `stream`."""

    def __init__(self, model: Body | SequenceToSequence, batch_size: int):
        """See `stream`."""
        body = model.body if isinstance(model, SequenceToSequence) else model
        if not body.causal:
            raise ValueError(
                "stream: the network must be causal, but an output of it may depend on later "
                "inputs; use causal layers, which are not reversed or bidirectional"
            )
        checks.positive_int("stream", "batch_size", batch_size)
        graphdef, state = nnx.split(model)
        # A list of leaves has less dispatch overhead in jit than a flax state.
        self._leaves, tree = jax.tree.flatten(jax.tree.map(jnp.copy, state))
        axis = 0 if body.time_major else 1
        self._all_rows, self._no_rows = jnp.ones(batch_size, bool), jnp.zeros(batch_size, bool)
        self._resets = self._all_rows
        self._carry: Carry = None

        def run(leaves: list[jax.Array], carry: Carry, x: Inputs, resets: jax.Array):
            _check_batch(x, batch_size)
            eval_model = nnx.merge(graphdef, jax.tree.unflatten(tree, leaves))
            eval_model.eval()
            xs = jax.tree.map(lambda leaf: jnp.expand_dims(leaf, axis), x)
            carry, ys = eval_model(xs, carry, resets=jnp.expand_dims(resets, axis))
            return carry, jnp.squeeze(ys, axis)

        self._run = jax.jit(run)
        self._carry_shapes = lambda x: jax.eval_shape(run, self._leaves, None, x, self._all_rows)[0]

    @property
    def carry(self) -> Carry:
        """The carry after the last step; None before the first.

        It may be set to any carry of the network, such as the one returned for a prompt; the next
        step continues from it.
        """
        return self._carry

    @carry.setter
    def carry(self, carry: Carry) -> None:
        self._carry, self._resets = carry, self._no_rows

    def step(self, x: Inputs) -> jax.Array:
        """Takes one step.

        Args:
          x: inputs of one step `[B, input]`, or a pytree or tokens `[B]`, as the network expects.

        Returns:
          Outputs `[B, output]`, equal to those of the network on the whole sequence at this step.

        Raises:
          ValueError: the batch size differs from `batch_size`.
        """
        if self._carry is None:
            x = jax.tree.map(jnp.asarray, x)
            self._carry = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), self._carry_shapes(x))
        self._carry, y = self._run(self._leaves, self._carry, x, self._resets)
        self._resets = self._no_rows
        return y

    def reset(self, rows: ArrayLike | None = None) -> None:
        """Resets the carry before the next step.

        Args:
          rows: `[B]` bool, the sequences to reset; by default all.
        """
        selected = self._all_rows if rows is None else jnp.asarray(rows)
        if selected.shape != self._all_rows.shape or selected.dtype != bool:
            raise ValueError(
                f"stream: rows must be bool of shape (batch,) = {self._all_rows.shape}, got "
                f"{selected.dtype} of {selected.shape}"
            )
        self._resets = self._resets | selected


def _check_batch(x: Inputs, batch_size: int) -> None:
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(x)]
    if any(shape[:1] != (batch_size,) for shape in shapes):
        raise ValueError(
            f"stream: leaves of x must have a first axis of batch_size={batch_size}, got shapes "
            f"{shapes}; pass the batch size as batch_size= to stream"
        )


def stream(model: Body | SequenceToSequence, batch_size: int = 1) -> Stream:
    """Runs a network one time step at a time; each step calls one compiled function.

    ::

        carry, y_t = model(x_t, carry)

    The outputs equal those of the network on the whole sequence. The current weights are copied,
    and the copy runs in evaluation mode.

    Args:
      model: a causal `RNN`, `StackedRNN`, `LSTM`, `GRU` or `SequenceToSequence`.
      batch_size: number of sequences.

    Raises:
      ValueError: the model is not causal, or `batch_size` is below 1.

    >>> import jrnn
    >>> model = jrnn.nn.RNN(jrnn.GRU(4), 3, rngs=nnx.Rngs(0))
    >>> xs = jnp.ones((1, 5, 3))
    >>> streamed = stream(model)
    >>> ys = [streamed.step(xs[:, t]) for t in range(5)]
    >>> bool(jnp.allclose(jnp.stack(ys, axis=1), model(xs)[1], atol=1e-6))
    True
    """
    return Stream(model, batch_size)
