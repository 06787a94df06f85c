"""The layer that scans in both directions of time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jrnn import checks
from jrnn.cell import Timed
from jrnn.layer import Inputs, Layer, RunCell, SequenceInputs, split_carry, split_key
from jrnn.masking import reverse_resets

MERGES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "concat": lambda a, b: jnp.concatenate([a, b], axis=-1),
    "sum": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "ave": lambda a, b: (a + b) / 2,
}


class BidirectionalParams(NamedTuple):
    """Parameters or carries of both directions."""

    forward: Any
    backward: Any


@dataclass(frozen=True)
class Bidirectional(Layer):
    r"""Two layers over the same sequence, one in each direction of time.

    ::

        ys = merge(unroll(forward, xs), unroll(backward, xs, reverse=True))

    It is not causal: an output depends on the whole sequence. Resets are given for the forward
    direction; the backward direction is reset at the last step of each segment. `Timed` inputs have
    the same time steps in both directions.

    Args:
      forward: the layer that scans forward.
      backward: the layer that scans in reverse; by default `forward`, with separate parameters.
      merge: how the outputs are combined: "concat", "sum", "mul" or "ave".

    Raises:
      TypeError: `forward` or `backward` is not a layer.
      ValueError: `merge` is unknown, `forward` or `backward` is not causal, or, when run,
        `reverse=True`.

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
        for name, layer in zip(("forward", "backward"), self._pair, strict=True):
            if not isinstance(layer, Layer):
                raise TypeError(
                    f"Bidirectional: {name} must be a cell such as jrnn.LSTM(64), or a layer, got "
                    f"{layer!r}"
                )
            if not layer.causal:
                raise ValueError(f"Bidirectional: {name} must be causal, got {layer!r}")
        checks.one_of("Bidirectional", "merge", self.merge, MERGES)

    @property
    def _pair(self) -> tuple[Layer, Any]:
        return self.forward, self.backward

    @property
    def causal(self) -> bool:
        return False

    @property
    def output_directions(self) -> tuple[bool, ...]:
        return (False, True) if self.merge == "concat" else (False,)

    @property
    def input_types(self) -> tuple[type, ...]:
        return (Timed,) if any(Timed in layer.input_types for layer in self._pair) else ()

    @property
    def is_stochastic(self) -> bool:
        return any(layer.is_stochastic for layer in self._pair)

    def init(
        self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32
    ) -> BidirectionalParams:
        pairs = zip(self._pair, jax.random.split(key), strict=True)
        params = BidirectionalParams(*(layer.init(k, input_size, dtype) for layer, k in pairs))
        pairs = zip(self._pair, params, strict=True)
        widths = [layer.output_shape(p, input_size).shape for layer, p in pairs]
        if self.merge != "concat" and widths[0] != widths[1]:
            raise ValueError(
                f"Bidirectional: outputs must have the same size for merge={self.merge!r}, got "
                f"{widths[0]} and {widths[1]}; use merge='concat', or layers of the same size"
            )
        return params

    def init_carry(
        self, params: BidirectionalParams, batch_shape: tuple[int, ...]
    ) -> BidirectionalParams:
        pairs = zip(self._pair, params, strict=True)
        return BidirectionalParams(*(layer.init_carry(p, batch_shape) for layer, p in pairs))

    def inputs(
        self, input_size: int, batch_shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
    ) -> Inputs:
        return self.forward.inputs(input_size, batch_shape, dtype)

    def output_shape(self, params: BidirectionalParams, input_size: int) -> Any:
        pairs = zip(self._pair, params, strict=True)
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
                "unroll: reverse must be False for a bidirectional layer, got True; it scans in "
                "both directions"
            )
        expected = "a Bidirectional must be a tuple with the carries of both directions"
        firsts = split_carry(inputs.carry, 2, expected)
        keys = split_key(inputs.key, 2)
        forward, backward = (
            inputs.replace(xs=_inputs_for(layer, inputs.xs), carry=carry, key=key)
            for layer, carry, key in zip(self._pair, firsts, keys, strict=True)
        )
        forward_layer, backward_layer = self._pair
        last, ys = forward_layer.apply(run, params.forward, forward, path=(*path, "forward"))
        resets = inputs.resets
        if resets is not None:
            resets = reverse_resets(resets, inputs.lengths, inputs.mask)
        backward = backward.replace(resets=resets, reverse=True)
        first, reverse_ys = backward_layer.apply(
            run, params.backward, backward, path=(*path, "backward")
        )
        return BidirectionalParams(last, first), MERGES[self.merge](ys, reverse_ys)


def _inputs_for(layer: Layer, xs: Inputs) -> Inputs:
    """Removes the time steps of `Timed` inputs for a layer that does not accept them."""
    return xs.x if isinstance(xs, Timed) and Timed not in layer.input_types else xs
