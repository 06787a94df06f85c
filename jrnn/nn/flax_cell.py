"""An adapter that makes a cell of jrnn a cell of flax."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jrnn import checks
from jrnn.cell import Carry, Cell
from jrnn.engines.precision import bind, infer_precision
from jrnn.nn.options import MODULE_HINTS, check_dtypes, check_rngs
from jrnn.nn.rnn import RNN
from jrnn.signatures import explain_signature


class FlaxCell(nnx.RNNCellBase):
    """Makes any cell usable in `nnx.RNN` and `nnx.Bidirectional`.

    Masks, resets, noise and engines are only available in `jrnn.nn.RNN`. In this class a stochastic
    cell returns its expected value.

    >>> import jax.numpy as jnp, jrnn
    >>> from flax import nnx
    >>> rnn = nnx.RNN(FlaxCell(jrnn.GRU(8), input_size=3, rngs=nnx.Rngs(0)))
    >>> rnn(jnp.ones((2, 5, 3))).shape
    (2, 5, 8)
    """

    @explain_signature(MODULE_HINTS)
    def __init__(
        self,
        cell: Cell,
        input_size: int,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
    ):
        """Initializes the parameters.

        Args:
          cell: any cell with vector inputs.
          input_size: size of the last axis of the inputs.
          rngs: the stream `params` is used.
          dtype: dtype of inputs, products and outputs.
          param_dtype: dtype of the parameters; the carry has the wider of the two.

        Raises:
          TypeError: `cell` is not a `Cell`, `rngs` is not an `nnx.Rngs`, or a dtype is not
            floating or not enabled in JAX.
          ValueError: `input_size` is not a positive int.
        """
        if not isinstance(cell, Cell):
            raise TypeError(
                "FlaxCell: cell must be a single cell such as jrnn.LSTM(64), got "
                f"{checks.describe(cell)}; for a layer of several cells use jrnn.nn.RNN"
            )
        check_rngs("FlaxCell", rngs)
        check_dtypes("FlaxCell", dtype, param_dtype)
        self.cell = cell
        self.rnn = RNN(cell, input_size, rngs=rngs, dtype=dtype, param_dtype=param_dtype)
        self.rnn.rngs = nnx.data(None)  # no noise is sampled

    @property
    def num_feature_axes(self) -> int:
        """The number of feature axes of the inputs, which is 1."""
        return 1

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Any = None
    ) -> Carry:
        """Returns the initial carry of the cell for inputs `[*batch, input]`.

        Args:
          input_shape: shape of the inputs of one step, `(*batch, input)`.
          rngs: not used, because the initial carry is a function of the parameters.
          carry_init: must be None, for the same reason.

        Returns:
          The carry, leaves `[*batch, ...]`.

        Raises:
          ValueError: `carry_init` is not None.
        """
        del rngs
        if carry_init is not None:
            raise ValueError(
                "FlaxCell: carry_init must be None, since the cell defines its initial carry, got "
                f"{checks.describe(carry_init)}; pass another carry as initial_carry to nnx.RNN"
            )
        params = self.rnn.params
        x = jax.ShapeDtypeStruct(input_shape, jnp.dtype(self.rnn.dtype))
        return self.cell.init_carry_like(params, x)

    def __call__(self, carry: Carry, inputs: jax.Array) -> tuple[Carry, jax.Array]:
        """Takes one step.

        Args:
          carry: leaves `[*batch, ...]`.
          inputs: `[*batch, input]`.

        Returns:
          The new carry, and the output `[*batch, output]`.

        Raises:
          ValueError: the last axis of `inputs` is not of size `input_size`.
        """
        x = jnp.asarray(inputs, self.rnn.dtype)
        checks.last_axis("FlaxCell", "inputs", x, self.rnn.input_size, "input_size")
        cell, params = self.cell, self.rnn.params
        return bind(cell, params, infer_precision(params, x)).step(carry, x)
