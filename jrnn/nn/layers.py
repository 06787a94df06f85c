"""Stacked and bidirectional recurrent layers, with the options of PyTorch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

from jrnn import cells, checks
from jrnn.cell import Carry, Inputs, Timed, WithCellState
from jrnn.engines import Engine, choose_engine, reverse_resets
from jrnn.layer import Layer, check_layer
from jrnn.nn.dropout import Dropout
from jrnn.nn.options import (
    MODULE_HINTS,
    check_dtypes,
    check_input_size,
    check_rngs,
    convert_lists,
)
from jrnn.nn.rnn import RNN, Recurrent, swap_time_and_batch, to_time_major
from jrnn.signatures import SEQUENCE_HINTS, explain_signature
from jrnn.trees import check_structure


class StackedRNN(Recurrent):
    """Stacked layers of any cell, optionally bidirectional.

    Attributes:
      input_size: size of the last axis of the inputs.
      output_size: size of the last axis of the outputs.
      num_layers: number of layers.
      directions: for each direction of a layer, whether it scans in reverse.
      time_major: whether inputs and outputs are `[T, B, ...]` instead of `[B, T, ...]`.
      rnns: an `RNN` for each layer and direction: for each layer the forward direction, then the
        backward one.
      causal: as in `RNN`.
      output_directions: as in `RNN`.
      dropout: the dropout between layers; None for a rate of 0.

    >>> import jax.numpy as jnp, jrnn
    >>> from flax import nnx
    >>> layers = StackedRNN(jrnn.Elman(8), 3, num_layers=2, rngs=nnx.Rngs(0))
    >>> carry, ys = layers(jnp.ones((4, 7, 3)))
    >>> ys.shape, carry.shape
    ((4, 7, 8), (2, 4, 8))
    """

    @explain_signature(MODULE_HINTS)
    def __init__(
        self,
        cell: Layer,
        input_size: int,
        num_layers: int = 1,
        *,
        rngs: nnx.Rngs,
        bidirectional: bool = False,
        dropout: float = 0.0,
        time_major: bool = False,
        engine: Engine | str = "auto",
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
    ):
        """Initializes the parameters of all layers.

        Args:
          cell: any cell, such as `jrnn.Elman(64)`; layers do not share parameters.
          input_size: size of the last axis of the inputs.
          num_layers: number of layers; the inputs of each are the outputs of the layer below.
          rngs: the streams `params` and `dropout` are used.
          bidirectional: whether each layer scans in both directions and concatenates the outputs.
          dropout: dropout rate between layers in training mode.
          time_major: use `[T, B, ...]` instead of `[B, T, ...]` for inputs and outputs.
          engine: as in `jrnn.unroll`.
          dtype: dtype of inputs, products and outputs; None uses that of the inputs.
          param_dtype: dtype of the parameters; the carry has the wider of the two.

        Raises:
          TypeError: `cell` is not a layer, `rngs` is not an `nnx.Rngs`, or `dtype` or
            `param_dtype` is not floating or not enabled in JAX.
          ValueError: `input_size` or `num_layers` is not a positive int, `dropout` is outside
            [0, 1) or is not 0 for a single layer, `rngs` has no stream for it, `num_layers` is
            above 1 for a cell that reads the cell state of the layer below, `bidirectional` is True
            for a layer that is not causal, `engine` is unknown, or `bidirectional` or `time_major`
            is not a bool.
        """
        owner = type(self).__name__
        check_layer(owner, "cell", cell)
        check_rngs(owner, rngs)
        input_size = checks.positive_int(owner, "input_size", input_size)
        num_layers = checks.positive_int(owner, "num_layers", num_layers)
        bidirectional = checks.boolean(owner, "bidirectional", bidirectional)
        time_major = checks.boolean(owner, "time_major", time_major)
        dropout = checks.rate(owner, "dropout", dropout)
        engine = choose_engine(engine, owner)
        check_dtypes(owner, dtype, param_dtype)
        if num_layers > 1 and WithCellState in cell.input_types:
            raise ValueError(
                f"{owner}: cell must not read the cell state of the layer below if num_layers is "
                f"above 1, got "
                f"{checks.describe(cell)}; use jrnn.nn.RNN(jrnn.stack([...]), ...)"
            )
        if dropout and num_layers == 1:
            raise ValueError(
                f"{owner}: dropout must be 0 for a single layer, since it is applied between "
                f"layers, got {dropout}; use nnx.Dropout on the outputs"
            )
        self.input_size = input_size
        self.num_layers = num_layers
        self.directions = (False, True) if bidirectional else (False,)
        self.time_major = time_major
        rnns = []
        for layer in range(num_layers):
            size = input_size if layer == 0 else len(self.directions) * rnns[-1].output_size
            rnns += [
                RNN(
                    cell,
                    size,
                    rngs=rngs,
                    reverse=reverse,
                    time_major=True,
                    engine=engine,
                    dtype=dtype,
                    param_dtype=param_dtype,
                )
                for reverse in self.directions
            ]
        for rnn in rnns:
            rnn.owner = owner
        self.rnns = nnx.List(rnns)
        self.output_size = len(self.directions) * rnns[-1].output_size
        self.causal = not bidirectional and all(rnn.causal for rnn in rnns)
        self.output_directions = self.directions if bidirectional else rnns[-1].output_directions
        last = rnns[-len(self.directions) :]
        self.output_sizes = tuple(size for rnn in last for size in rnn.output_sizes)
        self.dropout = Dropout(dropout, rngs=rngs, owner=owner) if dropout else None

    @property
    def first_cell(self) -> Layer:
        """The cell or layer of the first layer, which reads the inputs."""
        return self.rnns[0].cell

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
        """Runs all layers over all steps.

        As in `lax.scan`, and unlike PyTorch, the carry is the first result.

        Args:
          xs: inputs `[B, T, input]` (`[T, B, input]` if time_major), or a pytree of inputs that the
            cell accepts. A cell that accepts `jrnn.Timed` receives the time intervals in all
            layers.
          carry: the initial carries, leaves `[num_layers·directions, B, ...]`, in the order of
            PyTorch: for each layer the forward direction, then the backward one. By default
            `cell.init_carry`.
          lengths: `[B]` ints, the number of valid steps of each sequence, as in `jrnn.unroll`.
          mask: `[B, T]` bool (`[T, B]` if time_major), True on valid steps, in any pattern.
          resets: `[B, T]` bool (`[T, B]` if time_major), True on the first step of a new segment.
            The forward direction is reset before this step, and the backward direction before the
            last step of the previous segment.
          key: PRNG key for stochastic cells, split over layers and directions; by default as in
            `RNN`.

        Returns:
          The final carries, in the order of the argument `carry`, leaves
          `[num_layers·directions, B, ...]`; and the outputs of the top layer
          `[B, T, directions·output]` (`[T, B, ...]` if time_major).

        Raises:
          ValueError: a shape or a length is wrong, or `rngs` had no stream for the noise of the
            cell.
          TypeError: a dtype or the structure of the carry is wrong.
        """
        owner = type(self).__name__
        given, mask, resets = convert_lists(owner, xs, mask, resets)
        xs = given
        if not self.time_major:
            xs, mask, resets = to_time_major(owner, xs, mask, resets)
        check_input_size(owner, self.first_cell, self.input_size, given)
        if key is not None:
            checks.prng_key(owner, "key", key)
        if carry is not None:
            self._check_carry(carry)
        keys = [None] * len(self.rnns) if key is None else jax.random.split(key, len(self.rnns))
        carries = []

        def run(index: int, inputs: Inputs, resets: Any) -> jax.Array:
            initial = None if carry is None else jax.tree.map(lambda a: a[index], carry)
            final, y = self.rnns[index](
                inputs, initial, lengths=lengths, mask=mask, resets=resets, key=keys[index]
            )
            carries.append(final)
            return y

        ys = self.run_layers(run, xs, lengths=lengths, mask=mask, resets=resets)
        carry = jax.tree.map(lambda *leaves: jnp.stack(leaves), *carries)
        return carry, ys if self.time_major else swap_time_and_batch(ys)

    def init_carry(self, batch_size: int) -> Carry:
        """Returns the carries before the first step, leaves `[num_layers·directions, B, ...]`."""
        carries = [rnn.init_carry(batch_size) for rnn in self.rnns]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *carries)

    def run_layers(
        self,
        run: Callable[[int, Inputs, Any], jax.Array],
        xs: Inputs,
        *,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        resets: ArrayLike | None = None,
    ) -> jax.Array:
        """Calls a function for each layer and direction, and passes its outputs to the next layer.

        Args:
          run: a function `(index, inputs, resets) -> outputs` that runs `self.rnns[index]` over
            time-major inputs. For the backward direction, the resets are those of this direction.
          xs: inputs of the first layer, time-major.
          lengths: as in a call of the module.
          mask: `[T, B]` bool.
          resets: `[T, B]` bool.

        Returns:
          The outputs of the top layer, `[T, B, directions·output]`.
        """
        backward_resets = None if resets is None else reverse_resets(resets, lengths, mask)
        ys = xs
        dt = xs.dt if isinstance(xs, Timed) and Timed in self.first_cell.input_types else None
        for layer in range(self.num_layers):
            if layer > 0 and self.dropout is not None:
                ys = self.dropout(ys)
            if layer > 0 and dt is not None:
                ys = Timed(ys, dt)
            outputs = [
                run(
                    layer * len(self.directions) + direction,
                    ys,
                    backward_resets if reverse else resets,
                )
                for direction, reverse in enumerate(self.directions)
            ]
            ys = jnp.concatenate(outputs, axis=-1)
        return ys

    def _check_carry(self, carry: Carry) -> None:
        """Raises unless the first axis of each leaf has size num_layers·directions.

        The structure is validated here only for a carry without this axis.
        """
        rnn = self.rnns[0]
        for leaf in jax.tree.leaves(carry):
            if jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] != len(self.rnns):
                like = jax.eval_shape(lambda: rnn.cell.init_carry(rnn.params, (1,)))
                source = f"{type(rnn.cell).__name__}.init_carry"
                check_structure(f"{type(self).__name__}: carry", source, carry, like)
                raise ValueError(
                    f"{type(self).__name__}: carry must have leaves of shape "
                    f"(num_layers·directions, batch, ...) = ({len(self.rnns)}, batch, ...), got "
                    f"shape {jnp.shape(leaf)}"
                )


class LSTM(StackedRNN):
    """Stacked layers of `jrnn.LSTM`, like `torch.nn.LSTM`; see `StackedRNN` for calls."""

    @explain_signature(MODULE_HINTS)
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        rngs: nnx.Rngs,
        forget_bias: float = 1.0,
        peepholes: bool = False,
        coupled: bool = False,
        t_max: int | None = None,
        proj_size: int | None = None,
        bias: bool = True,
        bidirectional: bool = False,
        dropout: float = 0.0,
        time_major: bool = False,
        engine: Engine | str = "auto",
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
    ):
        """Initializes the parameters of all layers.

        Args:
          input_size: size of the last axis of the inputs.
          hidden_size: number of units of each layer and direction.
          num_layers: number of layers.
          rngs: the streams `params` and `dropout` are used.
          forget_bias: as in `jrnn.LSTM`.
          peepholes: as in `jrnn.LSTM`.
          coupled: as in `jrnn.LSTM`.
          t_max: as in `jrnn.LSTM`.
          proj_size: as in `jrnn.LSTM`.
          bias: as in `jrnn.LSTM`.
          bidirectional: whether each layer scans in both directions and concatenates the outputs.
          dropout: dropout rate between layers in training mode.
          time_major: use `[T, B, ...]` instead of `[B, T, ...]` for inputs and outputs.
          engine: as in `jrnn.unroll`.
          dtype: dtype of inputs, products and outputs; None uses that of the inputs.
          param_dtype: dtype of the parameters; the carry has the wider of the two.

        Raises:
          TypeError: as in `StackedRNN` and `jrnn.LSTM`.
          ValueError: as in `StackedRNN` and `jrnn.LSTM`.

        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> layers = LSTM(3, 8, num_layers=2, bidirectional=True, rngs=nnx.Rngs(0))
        >>> carry, ys = layers(jnp.ones((4, 7, 3)))
        >>> ys.shape, carry.c.shape
        ((4, 7, 16), (4, 4, 8))
        """
        cell = cells.LSTM(
            hidden_size,
            forget_bias=forget_bias,
            peepholes=peepholes,
            coupled=coupled,
            t_max=t_max,
            proj_size=proj_size,
            bias=bias,
        )
        super().__init__(
            cell,
            input_size,
            num_layers,
            rngs=rngs,
            bidirectional=bidirectional,
            dropout=dropout,
            time_major=time_major,
            engine=engine,
            dtype=dtype,
            param_dtype=param_dtype,
        )


class GRU(StackedRNN):
    """Stacked layers of `jrnn.GRU`, like `torch.nn.GRU`; see `StackedRNN` for calls."""

    @explain_signature(MODULE_HINTS)
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        rngs: nnx.Rngs,
        reset_after: bool = True,
        t_max: int | None = None,
        bias: bool = True,
        bidirectional: bool = False,
        dropout: float = 0.0,
        time_major: bool = False,
        engine: Engine | str = "auto",
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
    ):
        """Initializes the parameters of all layers.

        Args:
          input_size: size of the last axis of the inputs.
          hidden_size: number of units of each layer and direction.
          num_layers: number of layers.
          rngs: the streams `params` and `dropout` are used.
          reset_after: as in `jrnn.GRU`.
          t_max: as in `jrnn.GRU`.
          bias: as in `jrnn.GRU`.
          bidirectional: whether each layer scans in both directions and concatenates the outputs.
          dropout: dropout rate between layers in training mode.
          time_major: use `[T, B, ...]` instead of `[B, T, ...]` for inputs and outputs.
          engine: as in `jrnn.unroll`.
          dtype: dtype of inputs, products and outputs; None uses that of the inputs.
          param_dtype: dtype of the parameters; the carry has the wider of the two.

        Raises:
          TypeError: as in `StackedRNN` and `jrnn.GRU`.
          ValueError: as in `StackedRNN` and `jrnn.GRU`.
        """
        cell = cells.GRU(hidden_size, reset_after=reset_after, t_max=t_max, bias=bias)
        super().__init__(
            cell,
            input_size,
            num_layers,
            rngs=rngs,
            bidirectional=bidirectional,
            dropout=dropout,
            time_major=time_major,
            engine=engine,
            dtype=dtype,
            param_dtype=param_dtype,
        )
