"""The bidirectional layer, which scans a sequence forward and in reverse."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jrnn import checks
from jrnn.cell import Timed
from jrnn.layer import (
    Inputs,
    Layer,
    RunCell,
    SequenceInputs,
    check_layer,
    split_carry,
    split_key,
)
from jrnn.masking import reverse_resets
from jrnn.params import convert_params

MERGES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "concat": lambda a, b: jnp.concatenate([a, b], axis=-1),
    "sum": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "ave": lambda a, b: (a + b) / 2,
}


class BidirectionalParams(NamedTuple):
    """The parameters, or the carries, of both directions."""

    forward: Any
    backward: Any


@dataclass(frozen=True)
class Bidirectional(Layer):
    r"""Two layers over the same sequence, one in each direction of time.

    ::

        ys = merge(unroll(forward, xs), unroll(backward, xs, reverse=True))

    The layer is not causal: an output depends on the whole sequence. The argument `resets` of
    `unroll` marks the first step of each segment. The backward layer is reset at the last step of
    each segment instead, so that both directions have the same segments. With `Timed` inputs, the
    backward layer receives the same `dt` at each step as the forward layer.

    Args:
      forward: the layer that scans forward.
      backward: the layer that scans in reverse; by default the same layer as `forward`, with its
        own parameters.
      merge: how the outputs of the two directions are combined: "concat" along the last axis,
        "sum", "mul" (product) or "ave" (mean).

    Raises:
      TypeError: `forward` or `backward` is not a layer.
      ValueError: `merge` is unknown, or `forward` or `backward` is not causal. `init` raises it if
        the outputs of the two directions have different sizes and `merge` is not "concat", and
        `unroll` raises it for `reverse=True`.

    >>> import jax, jax.numpy as jnp, jrnn
    >>> layer = Bidirectional(jrnn.LSTM(hidden_size=4))
    >>> params = layer.init(jax.random.key(0), input_size=3)
    >>> carry, ys = jrnn.unroll(layer, params, jnp.ones((9, 2, 3)))
    >>> ys.shape
    (9, 2, 8)

    References:
      Schuster and Paliwal, 1997, Bidirectional recurrent neural networks.
    """

    forward: Layer
    backward: Layer | None = None
    merge: Literal["concat", "sum", "mul", "ave"] = "concat"

    def __post_init__(self) -> None:
        if self.backward is None:
            object.__setattr__(self, "backward", self.forward)
        for name, layer in zip(("forward", "backward"), self._directions, strict=True):
            check_layer("Bidirectional", name, layer)
            if not layer.causal:
                raise ValueError(f"Bidirectional: {name} must be causal, got {layer!r}")
        checks.one_of("Bidirectional", "merge", self.merge, MERGES)

    @property
    def _directions(self) -> tuple[Layer, Any]:
        return self.forward, self.backward

    @property
    def causal(self) -> bool:
        return False

    @property
    def output_directions(self) -> tuple[bool, ...]:
        return (False, True) if self.merge == "concat" else (False,)

    def output_sizes(self, params: BidirectionalParams, input_size: int) -> tuple[int, ...]:
        if self.merge != "concat":
            return super().output_sizes(params, input_size)
        pairs = zip(self._directions, params, strict=True)
        return tuple(layer.output_shape(p, input_size).shape[-1] for layer, p in pairs)

    @property
    def input_types(self) -> tuple[type, ...]:
        return (Timed,) if any(Timed in layer.input_types for layer in self._directions) else ()

    @property
    def is_stochastic(self) -> bool:
        return any(layer.is_stochastic for layer in self._directions)

    def init(
        self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32
    ) -> BidirectionalParams:
        pairs = zip(self._directions, jax.random.split(key), strict=True)
        params = BidirectionalParams(*(layer.init(k, input_size, dtype) for layer, k in pairs))
        pairs = zip(self._directions, params, strict=True)
        shapes = [layer.output_shape(p, input_size).shape for layer, p in pairs]
        if self.merge != "concat" and shapes[0] != shapes[1]:
            raise ValueError(
                f"Bidirectional: outputs must have the same size for merge={self.merge!r}, got "
                f"shapes {shapes[0]} and {shapes[1]}; use merge='concat', or layers of one size"
            )
        return params

    def init_carry(
        self, params: BidirectionalParams, batch_shape: tuple[int, ...]
    ) -> BidirectionalParams:
        params = convert_params("Bidirectional.init_carry", self, params)
        pairs = zip(self._directions, params, strict=True)
        return BidirectionalParams(*(layer.init_carry(p, batch_shape) for layer, p in pairs))

    def inputs(
        self, input_size: int, batch_shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
    ) -> Inputs:
        return self.forward.inputs(input_size, batch_shape, dtype)

    def output_shape(self, params: BidirectionalParams, input_size: int) -> Any:
        pairs = zip(self._directions, params, strict=True)
        return jax.eval_shape(
            MERGES[self.merge], *(layer.output_shape(p, input_size) for layer, p in pairs)
        )

    def apply(
        self,
        run: RunCell,
        params: BidirectionalParams,
        inputs: SequenceInputs,
        *,
        path: tuple[str, ...] = (),
    ) -> tuple[BidirectionalParams, Any]:
        if inputs.reverse:
            raise ValueError(
                f"{inputs.owner}: reverse must be False for a bidirectional layer, got True; "
                "remove reverse, since the layer already scans in both directions"
            )
        expected = "a Bidirectional must be a tuple with the carries of both directions"
        init_carries = split_carry(inputs.owner, inputs.carry, 2, expected)
        keys = split_key(inputs.key, 2)
        forward, backward = (
            inputs.replace(xs=_inputs_for(layer, inputs.xs), carry=carry, key=key)
            for layer, carry, key in zip(self._directions, init_carries, keys, strict=True)
        )
        forward_layer, backward_layer = self._directions
        forward_carry, ys = forward_layer.apply(
            run, params.forward, forward, path=(*path, "forward")
        )
        resets = inputs.resets
        if resets is not None:
            resets = reverse_resets(resets, inputs.lengths, inputs.mask)
        backward = backward.replace(resets=resets, reverse=True)
        backward_carry, backward_ys = backward_layer.apply(
            run, params.backward, backward, path=(*path, "backward")
        )
        carry = BidirectionalParams(forward_carry, backward_carry)
        return carry, MERGES[self.merge](ys, backward_ys)


def _inputs_for(layer: Layer, xs: Inputs) -> Inputs:
    """Removes the time steps of `Timed` inputs for a layer that does not accept them."""
    return xs.x if isinstance(xs, Timed) and Timed not in layer.input_types else xs
