"""A recurrent module that is called like the body of a scan, for reinforcement learning."""

import jax
from flax import nnx
from jax.typing import ArrayLike

from jrnn.cell import Carry, Inputs
from jrnn.engines import Engine
from jrnn.layer import Layer
from jrnn.nn.rnn import RNN


class ScannedRNN(nnx.Module):
    """A recurrent layer with the call `(carry, (xs, resets)) -> (carry, ys)`, time-major.

    `resets[t]` means that the carry is reset before step t, because `xs[t]` is the first
    observation of an episode. An environment that returns `done[t]` with the reward of action t
    has `resets[t] = done[t - 1]`.

    `jrnn.nn.linen.ScannedRNN` is the same for flax linen.

    >>> import jax.numpy as jnp, jrnn
    >>> rnn = ScannedRNN(jrnn.GRU(8), 3, rngs=nnx.Rngs(0))
    >>> xs, resets = jnp.ones((5, 2, 3)), jnp.zeros((5, 2), bool)
    >>> carry, ys = rnn(rnn.init_carry(2), (xs, resets))
    >>> ys.shape
    (5, 2, 8)
    """

    def __init__(
        self, cell: Layer, input_size: int, *, rngs: nnx.Rngs, engine: Engine | str = "auto"
    ):
        """Initializes the parameters.

        Args:
          cell: any cell, or a layer such as `jrnn.stack([...])`.
          input_size: size of the last axis of the inputs.
          rngs: as for `RNN`.
          engine: as in `jrnn.unroll`.

        Raises:
          TypeError, ValueError: as for `RNN`.
        """
        self.rnn = RNN(cell, input_size, rngs=rngs, time_major=True, engine=engine)
        self.rnn.owner = "ScannedRNN"
        self.output_size = self.rnn.output_size

    def init_carry(self, batch_size: int) -> Carry:
        """Returns the carry before the first step, leaves `[batch_size, ...]`."""
        return self.rnn.init_carry(batch_size)

    def __call__(
        self, carry: Carry | None, inputs: tuple[Inputs, ArrayLike | None]
    ) -> tuple[Carry, jax.Array]:
        """Runs all steps.

        Args:
          carry: the carry before the first step; None means the initial carry.
          inputs: `xs`, inputs `[T, B, input]`, and `resets`, `[T, B]` bool or None.

        Returns:
          The carry after the last step, and the outputs `[T, B, output]`.

        Raises:
          ValueError, TypeError: as for `RNN`.
        """
        xs, resets = inputs
        return self.rnn(xs, carry, resets=resets)
