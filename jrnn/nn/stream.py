"""One time step at a time through a network, for inputs that come as time goes by."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

from jrnn import checks
from jrnn.cell import Carry, Inputs
from jrnn.nn.heads import Body, SequenceToSequence


class Stream:
    """A network in evaluation mode, and the carry between two of its steps; made by `stream`."""

    def __init__(self, model: Body | SequenceToSequence, batch_size: int):
        """As `stream`."""
        body = model.body if isinstance(model, SequenceToSequence) else model
        if not body.causal:
            raise ValueError(
                "stream: the network must be causal, but an output of it may depend on later "
                "inputs; use causal layers, which are not reversed or bidirectional"
            )
        checks.positive_int("stream", "batch_size", batch_size)
        graphdef, state = nnx.split(model)
        # Leaves in a list, as jit takes these apart faster than a tree of flax.
        self._leaves, tree = jax.tree.flatten(jax.tree.map(jnp.copy, state))
        axis = 0 if body.time_major else 1
        self._all, self._none = jnp.ones(batch_size, bool), jnp.zeros(batch_size, bool)
        self._resets = self._all
        self._carry: Carry = None

        def run(leaves: list[jax.Array], carry: Carry, x: Inputs, resets: jax.Array):
            _check_batch(x, batch_size)
            quiet = nnx.merge(graphdef, jax.tree.unflatten(tree, leaves))
            quiet.eval()
            xs = jax.tree.map(lambda leaf: jnp.expand_dims(leaf, axis), x)
            carry, ys = quiet(xs, carry, resets=jnp.expand_dims(resets, axis))
            return carry, jnp.squeeze(ys, axis)

        self._run = jax.jit(run)
        self._shapes = lambda x: jax.eval_shape(run, self._leaves, None, x, self._all)[0]

    @property
    def carry(self) -> Carry:
        """The carry after the last step; None before the first.

        Any carry of the network may be put here, such as that which it returned for a prompt: the
        next step goes on from it.
        """
        return self._carry

    @carry.setter
    def carry(self, carry: Carry) -> None:
        self._carry, self._resets = carry, self._none

    def step(self, x: Inputs) -> jax.Array:
        """Takes one step.

        Args:
          x: inputs `[B, input]`, or what the network takes at a step, such as tokens `[B]`.

        Returns:
          Outputs `[B, output]`: those of the whole sequence at this step.

        Raises:
          ValueError: a batch of another size.
        """
        if self._carry is None:
            x = jax.tree.map(jnp.asarray, x)
            self._carry = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), self._shapes(x))
        self._carry, y = self._run(self._leaves, self._carry, x, self._resets)
        self._resets = self._none
        return y

    def reset(self, rows: ArrayLike | None = None) -> None:
        """Begins anew before the next step.

        Args:
          rows: `[B]` bool, in which sequences; by default in all.
        """
        chosen = self._all if rows is None else jnp.asarray(rows)
        if chosen.shape != self._all.shape or chosen.dtype != bool:
            raise ValueError(
                f"stream: rows must be bool of shape (batch,) = {self._all.shape}, got "
                f"{chosen.dtype} of {chosen.shape}"
            )
        self._resets = self._resets | chosen


def _check_batch(x: Inputs, batch_size: int) -> None:
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(x)]
    if any(shape[:1] != (batch_size,) for shape in shapes):
        raise ValueError(
            f"stream: x must have the batch of {batch_size} as its first axis, got shapes "
            f"{shapes}; or give batch_size="
        )


def stream(model: Body | SequenceToSequence, batch_size: int = 1) -> Stream:
    """Runs a network one time step at a time; each step is one call of compiled code.

    ::

        carry, y_t = model(x_t, carry)

    Outputs are those of the whole sequence. The network is copied as it is now, and its dropout is
    left out.

    Args:
      model: a causal `RNN`, `StackedRNN`, `LSTM`, `GRU` or `SequenceToSequence`.
      batch_size: sequences that go side by side.

    Raises:
      ValueError: the model is not causal, or a batch size below 1.

    >>> import jrnn
    >>> model = jrnn.nn.RNN(jrnn.GRU(4), 3, rngs=nnx.Rngs(0))
    >>> xs = jnp.ones((1, 5, 3))
    >>> live = stream(model)
    >>> ys = [live.step(xs[:, t]) for t in range(5)]
    >>> bool(jnp.allclose(jnp.stack(ys, axis=1), model(xs)[1], atol=1e-6))
    True
    """
    return Stream(model, batch_size)
