"""The stack, which composes layers sequentially."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jrnn.cell import Cell, Timed, WithCellState
from jrnn.layer import (
    Carry,
    Inputs,
    Layer,
    Params,
    RunCell,
    SequenceInputs,
    check_layer,
    split_carry,
    split_key,
)
from jrnn.params import convert_params


@dataclass(frozen=True)
class Stack(Layer):
    r"""A sequence of layers: each layer receives the outputs of the layer below.

    ::

        ys_1 = layer_1(xs),   ys_2 = layer_2(ys_1),   ...   ys = ys_n

    Each layer runs over the whole sequence before the next one starts. `engine="auto"` selects an
    engine for each cell. A cell that accepts `WithCellState` inputs, such as
    `jrnn.DepthGatedLSTM`, also receives the cell state of the layer below. If the inputs are
    `Timed`, all layers that accept time steps, such as `jrnn.CfC`, receive them.

    The parameters and the carry are tuples with one entry for each layer.

    Args:
      layers: the layers in order, from input to output: cells, transformed cells, and layers such
        as `Bidirectional`.

    Raises:
      TypeError: an entry of `layers` is not a layer.
      ValueError: `layers` is not a non-empty sequence, or an entry after the first does not accept
        an array as input.
        `unroll` raises it if a cell accepts `WithCellState` and the layer below has no cell state.

    >>> import jax, jax.numpy as jnp, jrnn
    >>> network = Stack([jrnn.LSTM(hidden_size=4), jrnn.GRU(hidden_size=5)])
    >>> params = network.init(jax.random.key(0), input_size=3)
    >>> (first, second), ys = jrnn.unroll(network, params, jnp.ones((9, 2, 3)))
    >>> first.c.shape, second.shape, ys.shape
    ((2, 4), (2, 5), (9, 2, 5))

    References:
      Graves, Mohamed and Hinton, 2013, Speech recognition with deep recurrent neural networks.
    """

    layers: Sequence[Layer]

    def __post_init__(self) -> None:
        if not isinstance(self.layers, Sequence) or not self.layers:
            raise ValueError(
                f"Stack: layers must be a non-empty list of cells or layers, got {self.layers!r}"
            )
        for n, layer in enumerate(self.layers):
            check_layer("Stack", f"layers[{n}]", layer)
        for n, layer in enumerate(self.layers[1:], 1):
            inputs = jax.eval_shape(lambda layer=layer: layer.inputs(1, ()))
            if not isinstance(inputs, jax.ShapeDtypeStruct):
                raise ValueError(
                    f"Stack: layers[{n}] must accept one array, got {layer!r}, which accepts "
                    f"{type(inputs).__name__}; use it as the first layer"
                )
        object.__setattr__(self, "layers", tuple(self.layers))

    @property
    def causal(self) -> bool:
        return all(layer.causal for layer in self.layers)

    @property
    def output_directions(self) -> tuple[bool, ...]:
        return self.layers[-1].output_directions

    def output_sizes(self, params: Params, input_size: int) -> tuple[int, ...]:
        size = input_size
        for layer, p in zip(self.layers[:-1], params[:-1], strict=True):
            size = layer.output_shape(p, size).shape[-1]
        return self.layers[-1].output_sizes(params[-1], size)

    @property
    def input_types(self) -> tuple[type, ...]:
        timed = any(Timed in layer.input_types for layer in self.layers)
        below = WithCellState in self.layers[0].input_types
        return (Timed,) * timed + (WithCellState,) * below

    @property
    def is_stochastic(self) -> bool:
        return any(layer.is_stochastic for layer in self.layers)

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> Params:
        params, size = [], input_size
        for k, layer in zip(jax.random.split(key, len(self.layers)), self.layers, strict=True):
            params.append(layer.init(k, size, dtype))
            size = layer.output_shape(params[-1], size).shape[-1]
        return tuple(params)

    def output_shape(self, params: Params, input_size: int) -> Any:
        size, y = input_size, None
        for layer, p in zip(self.layers, params, strict=True):
            y = layer.output_shape(p, size)
            size = y.shape[-1]
        return y

    def init_carry(self, params: Params, batch_shape: tuple[int, ...]) -> Carry:
        params = convert_params("Stack.init_carry", self, params)
        pairs = zip(self.layers, params, strict=True)
        return tuple(layer.init_carry(p, batch_shape) for layer, p in pairs)

    def inputs(
        self, input_size: int, batch_shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
    ) -> Inputs:
        return self.layers[0].inputs(input_size, batch_shape, dtype)

    def apply(
        self,
        run: RunCell,
        params: Params,
        inputs: SequenceInputs,
        *,
        path: tuple[str, ...] = (),
    ) -> tuple[Carry, Any]:
        count = len(self.layers)
        expected = f"a Stack must be a tuple with one carry for each of its {count} layers"
        init_carries = split_carry(inputs.owner, inputs.carry, count, expected)
        xs: Any = inputs.xs
        dt: Any = None
        if isinstance(xs, Timed) and Timed in self.input_types:
            xs, dt = xs.x, xs.dt
        carries = []
        for n, key in enumerate(split_key(inputs.key, count)):
            layer, layer_path = self.layers[n], (*path, str(n))
            x = _add_time_steps(xs, dt) if Timed in layer.input_types else xs
            layer_inputs = inputs.replace(xs=x, carry=init_carries[n], key=key)
            if n + 1 < count and WithCellState in self.layers[n + 1].input_types:
                carry, xs = _run_with_cell_states(run, layer, params[n], layer_inputs, layer_path)
            else:
                carry, xs = layer.apply(run, params[n], layer_inputs, path=layer_path)
            carries.append(carry)
        return tuple(carries), xs


def _add_time_steps(xs: Any, dt: Any) -> Inputs:
    """Returns the inputs as `Timed`, or unchanged if there are no time steps."""
    return xs if dt is None else Timed(xs, dt)


def _run_with_cell_states(
    run: RunCell, layer: Layer, params: Params, inputs: SequenceInputs, path: tuple[str, ...]
) -> tuple[Carry, WithCellState]:
    """Runs a cell, and returns its outputs with its cell states as inputs of the next layer."""
    carry = jax.eval_shape(lambda p: layer.init_carry(p, ()), params)
    if not isinstance(layer, Cell) or "c" not in getattr(carry, "_fields", ()):
        raise ValueError(
            "Stack: the layer below a cell that accepts WithCellState must have a cell state c, "
            f"got {layer!r}; use a cell such as jrnn.LSTM instead"
        )
    final, (ys, carries) = run(layer, params, inputs, path=path, return_carries=True)
    return final, WithCellState(ys, carries.c)
