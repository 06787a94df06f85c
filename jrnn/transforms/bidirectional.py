"""A cell in each direction of time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jrnn import checks
from jrnn.cell import Carry, Cell, Gates, Inputs, Params, Timed
from jrnn.transforms.wrapper import keys_for

MERGES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "concat": lambda a, b: jnp.concatenate([a, b], axis=-1),
    "sum": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "ave": lambda a, b: (a + b) / 2,
}


class BidirectionalParams(NamedTuple):
    """Parameters, or carries, of both halves."""

    forward: Any
    backward: Any


@dataclass(frozen=True)
class Bidirectional(Cell):
    r"""Two cells over the same sequence, one in each direction of time.

    ::

        ys = merge(unroll(forward, xs), unroll(backward, xs, reverse=True))

    It has no step: an output needs the whole sequence. Lengths and resets are those of the forward
    half; the backward half starts anew at the last step of each segment. Each input keeps its own
    `Timed` time in both directions.

    Args:
      forward: the cell that goes with time.
      backward: the cell that goes against it; by default like `forward`, with weights of its own.
      merge: "concat", "sum", "mul" or "ave" of the two outputs.

    Raises:
      TypeError: one of the two is no cell.
      ValueError: unknown `merge`; a half is bidirectional itself; or, when run, `reverse=True`.

    >>> import jax, jax.numpy as jnp, jrnn
    >>> cell = Bidirectional(jrnn.LSTM(hidden_size=4))
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, ys = jrnn.unroll(cell, params, jnp.ones((9, 2, 3)))
    >>> ys.shape
    (9, 2, 8)

    References:
      Schuster and Paliwal, 1997, Bidirectional recurrent neural networks.
    """

    forward: Cell
    backward: Cell | None = None
    merge: Literal["concat", "sum", "mul", "ave"] = "concat"
    stepwise = False
    pointwise = False

    def __post_init__(self) -> None:
        if self.backward is None:
            object.__setattr__(self, "backward", self.forward)
        for name, cell in zip(("forward", "backward"), self._halves, strict=True):
            if not isinstance(cell, Cell):
                raise TypeError(
                    f"Bidirectional: {name} must be a cell such as jrnn.LSTM(64), got {cell!r}"
                )
            if not cell.stepwise:
                raise ValueError(f"Bidirectional: {name} goes in both directions itself: {cell!r}")
        checks.one_of("Bidirectional", "merge", self.merge, MERGES)

    @property
    def _halves(self) -> tuple[Cell, Any]:
        return self.forward, self.backward

    @property
    def hidden_size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.forward.hidden_size

    @property
    def directions(self) -> tuple[bool, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return (False, True) if self.merge == "concat" else (False,)

    @property
    def takes_time(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return any(cell.takes_time for cell in self._halves)

    @property
    def reverse_only(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return any(cell.reverse_only for cell in self._halves)

    def init(
        self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32
    ) -> BidirectionalParams:
        pairs = zip(self._halves, jax.random.split(key), strict=True)
        params = BidirectionalParams(*(cell.init(k, input_size, dtype) for cell, k in pairs))
        widths = [c.output(p, input_size).shape for c, p in zip(self._halves, params, strict=True)]
        if self.merge != "concat" and widths[0] != widths[1]:
            raise ValueError(
                f"Bidirectional: merge={self.merge!r} needs outputs of one size, got {widths[0]} "
                f"and {widths[1]}; use merge='concat', or cells of one size"
            )
        return params

    def init_carry(
        self, params: BidirectionalParams, batch_shape: tuple[int, ...]
    ) -> BidirectionalParams:
        pairs = zip(self._halves, params, strict=True)
        return BidirectionalParams(*(cell.init_carry(p, batch_shape) for cell, p in pairs))

    def inputs(
        self, input_size: int, batch_shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
    ) -> Inputs:
        return self.forward.inputs(input_size, batch_shape, dtype)

    def output(self, params: BidirectionalParams, input_size: int) -> Any:
        pairs = zip(self._halves, params, strict=True)
        return jax.eval_shape(
            MERGES[self.merge], *(cell.output(p, input_size) for cell, p in pairs)
        )

    def sequence(  # pyright: ignore[reportIncompatibleVariableOverride]
        self,
        run: Any,
        params: BidirectionalParams,
        xs: Inputs,
        carry: BidirectionalParams | None,
        key: jax.Array | None,
    ) -> tuple[BidirectionalParams, jax.Array]:
        carry = BidirectionalParams(None, None) if carry is None else carry
        keys = keys_for(key, 2)
        inputs = [_given(cell, xs) for cell in self._halves]
        ahead, ys = run(self.forward, params.forward, inputs[0], carry.forward, keys[0])
        back, others = run(
            self.backward, params.backward, inputs[1], carry.backward, keys[1], backwards=True
        )
        return BidirectionalParams(ahead, back), MERGES[self.merge](ys, others)

    def project(self, params: Params, x: Inputs) -> NoReturn:
        raise _no_step()

    def recur(self, params: Params, carry: Carry) -> NoReturn:
        raise _no_step()

    def update(self, params: Params, carry: Carry, z: Gates, u: Gates) -> NoReturn:
        raise _no_step()


def _given(cell: Cell, xs: Inputs) -> Inputs:
    """Inputs without their times for a cell that takes none."""
    return xs.x if isinstance(xs, Timed) and not cell.takes_time else xs


def _no_step() -> TypeError:
    return TypeError(
        "Bidirectional has no single step, as an output needs the whole sequence; run it by "
        "jrnn.unroll, in a Stack, or in jrnn.nn.RNN"
    )
