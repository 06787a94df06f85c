"""A cell of jrnn inside flax's own recurrent modules."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jrnn.cell import Carry, Cell
from jrnn.engines.precision import bind, precision_of
from jrnn.nn.rnn import RNN


class FlaxCell(nnx.RNNCellBase):
    """Lets any cell drive `nnx.RNN` and `nnx.Bidirectional`.

    Masks, resets, noise and engines are features of `jrnn.nn.RNN`. A stochastic cell returns its
    expected value here.

    >>> import jax.numpy as jnp, jrnn
    >>> from flax import nnx
    >>> rnn = nnx.RNN(FlaxCell(jrnn.GRU(8), input_size=3, rngs=nnx.Rngs(0)))
    >>> rnn(jnp.ones((2, 5, 3))).shape
    (2, 5, 8)
    """

    def __init__(
        self,
        cell: Cell,
        input_size: int,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
    ):
        """Draws the parameters.

        Args:
          cell: any cell with vector inputs.
          input_size: last axis of the inputs.
          rngs: source of randomness; its stream `params` is used.
          dtype: of inputs, products and outputs.
          param_dtype: of the parameters; the carry is in the wider of the two.

        Raises:
          TypeError: `cell` is no cell.
        """
        if not isinstance(cell, Cell):
            raise TypeError(
                "FlaxCell: cell must be a single cell such as jrnn.LSTM(64), got "
                f"{cell!r}; run a layer of several cells by jrnn.nn.RNN"
            )
        self.cell = cell
        self.rnn = RNN(cell, input_size, rngs=rngs, dtype=dtype, param_dtype=param_dtype)
        self.rnn.rngs = nnx.data(None)  # nothing is drawn here

    @property
    def num_feature_axes(self) -> int:
        """Inputs have one axis of features."""
        return 1

    def initialize_carry(self, input_shape, rngs=None, carry_init=None) -> Carry:
        """The cell's own initial carry for inputs `[*batch, input]`.

        Args:
          input_shape: shape of one step of the inputs.
          rngs: not needed: a cell's initial carry is a function of its parameters.
          carry_init: must be None, for the same reason.

        Raises:
          ValueError: `carry_init` is given.
        """
        del rngs
        if carry_init is not None:
            raise ValueError(
                "FlaxCell: carry_init must be None, the cell makes its own initial carry; pass "
                "another one as initial_carry to nnx.RNN"
            )
        params = self.rnn.params
        x = jax.ShapeDtypeStruct(input_shape, jnp.dtype(self.rnn.dtype))
        return self.cell.init_carry_like(params, x)

    def __call__(self, carry: Carry, inputs: jax.Array) -> tuple[Carry, jax.Array]:
        """One step: the new carry and the output."""
        x = jnp.asarray(inputs, self.rnn.dtype)
        cell, params = self.cell, self.rnn.params
        return bind(cell, params, precision_of(params, x)).step(carry, x)
