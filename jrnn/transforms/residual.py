"""Residual and highway connections around a cell, and linear projection of its output."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jax.typing import DTypeLike

from jrnn import checks, initializers
from jrnn.broadcasting import add
from jrnn.cell import Inputs, Params
from jrnn.transforms.wrapper import Wrapper, input_array


@dataclass(frozen=True)
class Residual(Wrapper):
    r"""A residual connection: adds the input to the output.

    ::

        s', y~ = cell(s, x)
        y = y~ + x

    If the input is a NamedTuple such as `Timed`, its field `x` is added.

    Args:
      cell: a cell whose output has the size of its input.

    Raises:
      TypeError: `cell` is not a `Cell`.
      ValueError: `init` raises it if input and output have different sizes.

    >>> import jax, jax.numpy as jnp, jrnn
    >>> cell = Residual(jrnn.LSTM(hidden_size=4))
    >>> params = cell.init(jax.random.key(0), input_size=4)
    >>> cell.step(params, cell.init_carry(params, ()), jnp.ones(4))[1].shape
    (4,)

    References:
      He et al., 2016, Deep residual learning for image recognition.
      Wu et al., 2016, Google's neural machine translation system (between LSTM layers).
    """

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> Params:
        params = self.cell.init(key, input_size, dtype)
        _check_output_size(self, params, input_size)
        return params

    def transform_input(self, params: Params, x: Inputs, noise: Any) -> tuple[Inputs, Any]:
        return x, input_array(x)

    def transform_output(self, params: Params, y: Any, extra: jax.Array) -> Any:
        return y + extra


class HighwayParams(NamedTuple):
    """The parameters of the inner cell, and the weights of the gate."""

    cell: Params
    w_t: jax.Array  # [input, input]
    b_t: jax.Array  # [input]


@dataclass(frozen=True)
class Highway(Wrapper):
    r"""A highway connection: a gate interpolates between the output and the input.

    ::

        t = sigmoid(W_t x + b_t)
        s', y~ = cell(s, x)
        y = t * y~ + (1 - t) * x

    If the input is a NamedTuple such as `Timed`, x in these equations is its field `x`.

    Args:
      cell: a cell whose output has the size of its input.
      bias: initial value of b_t; a negative value gives the input more weight than y~.

    Raises:
      TypeError: `cell` is not a `Cell`.
      ValueError: `bias` is not a finite number. `init` raises it if input and output have different
        sizes.

    >>> import jax, jax.numpy as jnp, jrnn
    >>> cell = Highway(jrnn.LSTM(hidden_size=4))
    >>> params = cell.init(jax.random.key(0), input_size=4)
    >>> cell.step(params, cell.init_carry(params, ()), jnp.ones(4))[1].shape
    (4,)

    References:
      Srivastava, Greff and Schmidhuber, 2015, Highway networks.
    """

    bias: float = -1.0
    has_own_params = True

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.finite_number(self.owner, "bias", self.bias)

    def init(
        self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32
    ) -> HighwayParams:
        key_cell, key_t = jax.random.split(key)
        inner = self.cell.init(key_cell, input_size, dtype)
        _check_output_size(self, inner, input_size)
        return HighwayParams(
            cell=inner,
            w_t=initializers.input_weights(key_t, input_size, input_size, 1, dtype),
            b_t=jnp.full((input_size,), self.bias, dtype),
        )

    def transform_input(self, params: HighwayParams, x: Inputs, noise: Any) -> tuple[Inputs, Any]:
        array = input_array(x)
        return x, (sigmoid(add(array @ params.w_t, params.b_t)), array)

    def transform_output(self, params: HighwayParams, y: Any, extra: Any) -> Any:
        t, x = extra
        return t * y + (1 - t) * x


class ProjectionParams(NamedTuple):
    """The parameters of the inner cell, and the weights of the projection."""

    cell: Params
    w_y: jax.Array  # [output of the inner cell, size]


@dataclass(frozen=True)
class Projection(Wrapper):
    r"""Projects the output linearly to another size.

    ::

        s', y~ = cell(s, x)
        y = W_y y~

    The carry does not change. To project the recurrent state of an LSTM, use the option `proj_size`
    of `jrnn.LSTM`.

    Args:
      cell: the inner cell.
      size: size of the projected output.

    Raises:
      TypeError: `cell` is not a `Cell`.
      ValueError: `size` is not a positive int.

    >>> import jax, jax.numpy as jnp, jrnn
    >>> cell = Projection(jrnn.LSTM(hidden_size=8), size=2)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> cell.step(params, cell.init_carry(params, ()), jnp.ones(3))[1].shape
    (2,)
    """

    size: int
    has_own_params = True

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive_int(self.owner, "size", self.size)

    def init(
        self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32
    ) -> ProjectionParams:
        key_cell, key_y = jax.random.split(key)
        inner = self.cell.init(key_cell, input_size, dtype)
        output_size = self.cell.output_shape(inner, input_size).shape[-1]
        weights = initializers.input_weights(key_y, output_size, self.size, 1, dtype)
        return ProjectionParams(inner, weights)

    def transform_output(self, params: ProjectionParams, y: Any, extra: Any) -> Any:
        return y @ params.w_y


def _check_output_size(transform: Wrapper, params: Params, input_size: int) -> None:
    """Raises ValueError unless the inner cell has outputs of size `input_size`."""
    size = transform.cell.output_shape(params, input_size).shape[-1]
    if size != input_size:
        raise ValueError(
            f"{transform.owner}: cell must have outputs of size input_size={input_size}, got size "
            f"{size}; set hidden_size={input_size}, or use projection(cell, size={input_size})"
        )
