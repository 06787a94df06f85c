"""The contract of a layer: what reads a whole sequence. A cell is the simplest layer."""

import abc
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

Params = Any
Carry = Any
Inputs = Any


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("xs", "carry", "lengths", "mask", "resets", "key"),
    meta_fields=("reverse",),
)
@dataclass(frozen=True)
class SequenceInputs:
    """A batch of sequences and how to read it: what `jrnn.unroll` and its relatives all take.

    Attributes:
      xs: inputs `[T, B, input]`, or a pytree of leaves `[T, B, ...]`.
      carry: the first carry, leaves `[B, ...]`; None means the layer's own.
      lengths: `[B]` ints, the number of valid steps of each sequence, or None.
      mask: `[T, B]` bool, True on valid steps, in any pattern, or None.
      resets: `[T, B]` bool, True where the carry is replaced before the step, or None.
      key: randomness for layers that draw noise; None means deterministic.
      reverse: whether to scan from the last valid step to the first.
    """

    xs: Inputs
    carry: Carry | None = None
    lengths: Any = None
    mask: Any = None
    resets: Any = None
    key: jax.Array | None = None
    reverse: bool = False

    def __post_init__(self) -> None:
        # Nested lists become arrays here, once, for every function.
        for name in ("lengths", "mask", "resets"):
            value = getattr(self, name)
            if isinstance(value, list | tuple):
                object.__setattr__(self, name, jnp.asarray(value))

    def replace(self, **changes: Any) -> "SequenceInputs":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


RunLayer = Callable[..., tuple[Carry, Any]]
"""`run(layer, params, inputs, name="", return_carries=False) -> (carry, ys)`."""


class Layer(abc.ABC):
    """What maps a sequence of inputs to a sequence of outputs, with parameters and a carry.

    Subclasses are frozen dataclasses of hyper-parameters: hashable, printable, picklable. A
    `jrnn.Cell` is a layer; `jrnn.stack` and `jrnn.bidirectional` make layers of layers.
    """

    @property
    @abc.abstractmethod
    def causal(self) -> bool:
        """Whether an output depends on the inputs up to its own step alone."""

    @property
    def output_directions(self) -> tuple[bool, ...]:
        """For each equal part of the output's last axis, whether it is scanned in reverse."""
        return (False,)

    @property
    @abc.abstractmethod
    def is_stochastic(self) -> bool:
        """Whether the layer draws noise when it is given a key."""

    @abc.abstractmethod
    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> Params:
        """Draws the parameters, for inputs with a last axis of `input_size`."""

    @abc.abstractmethod
    def init_carry(self, params: Params, batch_shape: tuple[int, ...]) -> Carry:
        """The carry before the first step: leaves `[*batch_shape, ...]`, dtype of `params`."""

    @abc.abstractmethod
    def inputs(
        self, input_size: int, batch_shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
    ) -> Inputs:
        """Zeros in the shape of one input, `[*batch_shape, input]` unless the layer differs."""

    @abc.abstractmethod
    def output_shape(self, params: Params, input_size: int) -> Any:
        """The output of one step without batch axes, as `jax.eval_shape` returns it."""

    @abc.abstractmethod
    def apply(self, run: RunLayer, params: Params, inputs: SequenceInputs) -> tuple[Carry, Any]:
        """Runs over a batch of sequences.

        Args:
          run: `run(layer, params, inputs, name=..., return_carries=...)` runs a layer that this one
            is made of, as `jrnn.unroll` would, on the engine of the whole. With `return_carries`
            the outputs are pairs of the output and the carry after each step.
          params: the parameters of this layer.
          inputs: the sequences.

        Returns:
          The last carry in scan order, and the outputs `[T, B, ...]` in the order of time.
        """


def child_layers(layer: Any) -> list[Layer]:
    """The layers among the fields of a layer, and in tuples of them."""
    found = []
    for field in dataclasses.fields(layer):
        value = getattr(layer, field.name)
        values = value if isinstance(value, tuple) else (value,)
        found += [item for item in values if isinstance(item, Layer)]
    return found


def split_key(key: jax.Array | None, count: int) -> list[jax.Array | None]:
    """`count` keys from one; `count` Nones from None."""
    return [None] * count if key is None else list(jax.random.split(key, count))
