"""Recurrent modules for flax linen."""

import jax
from flax import linen
from jax.typing import ArrayLike

from jrnn.cell import Carry, Inputs
from jrnn.engines import Engine, unroll
from jrnn.layer import Layer


class ScannedRNN(linen.Module):
    """A recurrent layer with the call `(carry, (xs, resets)) -> (carry, ys)`, time-major.

    `jrnn.nn.ScannedRNN` describes the time of `resets`.

    Attributes:
      cell: any cell, or a layer such as `jrnn.stack([...])`.
      engine: as in `jrnn.unroll`.

    >>> import jax.numpy as jnp, jrnn
    >>> rnn = ScannedRNN(jrnn.GRU(8))
    >>> inputs = jnp.ones((5, 2, 3)), jnp.zeros((5, 2), bool)
    >>> variables = rnn.init(jax.random.key(0), None, inputs)
    >>> carry = rnn.apply(variables, 2, method=rnn.init_carry)
    >>> carry, ys = rnn.apply(variables, carry, inputs)
    >>> ys.shape
    (5, 2, 8)
    """

    cell: Layer
    engine: Engine | str = "auto"

    @linen.compact
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
          ValueError, TypeError: as for `jrnn.unroll`.
        """
        xs, resets = inputs
        size = jax.tree.leaves(xs)[0].shape[-1]
        params = self.param("cell", lambda key: self.cell.init(key, size))
        return unroll(self.cell, params, xs, carry, resets=resets, engine=self.engine)

    def init_carry(self, batch_size: int) -> Carry:
        """Returns the carry before the first step, leaves `[batch_size, ...]`."""
        params = self.get_variable("params", "cell")
        return self.cell.init_carry(params, (batch_size,))
