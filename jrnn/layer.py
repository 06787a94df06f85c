"""The base class of layers, which map sequences to sequences. Every cell is also a layer."""

import abc
import contextlib
import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jrnn import checks
from jrnn.fields import OptionFields
from jrnn.signatures import explain_signature
from jrnn.trees import lengths_hint

Params = Any
Carry = Any
Inputs = Any

_HINTS = {
    "activation": "a cell with this option is jrnn.Elman",
    "batch_first": "jrnn.unroll takes inputs (time, batch, input), and the modules of jrnn.nn take "
    "(batch, time, input)",
    "bidirectional": "use jrnn.bidirectional(cell), or jrnn.nn.LSTM(..., bidirectional=True)",
    "device": "use jax.default_device or jax.device_put",
    "dropout": "use jrnn.transforms.dropout(cell, x=0.1), or jrnn.nn.LSTM(..., dropout=0.1)",
    "dtype": "pass it to init",
    "go_backwards": "pass reverse=True to jrnn.unroll",
    "input_size": "pass it to init, as in cell.init(key, input_size)",
    "num_layers": "use jrnn.stack([...]), or a module such as jrnn.nn.LSTM(3, 8, num_layers=2, "
    "rngs=nnx.Rngs(0))",
    "param_dtype": "pass it to init, as dtype",
    "recurrent_dropout": "use jrnn.transforms.weight_drop or jrnn.transforms.dropout",
    "return_sequences": "jrnn.unroll returns the outputs of all steps",
    "return_state": "jrnn.unroll returns the carry as its first result",
    "rngs": "pass a key to init, or use a module such as jrnn.nn.LSTM(3, 8, rngs=nnx.Rngs(0))",
}
"""Arguments of PyTorch, Keras and flax that cells and layers lack, and what to do instead."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("xs", "carry", "lengths", "mask", "resets", "key"),
    meta_fields=("reverse", "owner"),
)
@dataclass(frozen=True)
class SequenceInputs:
    """A batch of sequences, and the arguments of `unroll` that apply to it.

    Attributes:
      xs: inputs `[T, B, input]`, or a pytree of leaves `[T, B, ...]`.
      carry: the initial carry, which is the carry before the first step in scan order, leaves
        `[B, ...]`; None means `init_carry`.
      lengths: `[B]` ints, the number of valid steps of each sequence, or None.
      mask: `[T, B]` bool, True on valid steps, in any pattern, or None.
      resets: `[T, B]` bool, True where the carry is replaced before the step, or None.
      key: a PRNG key for stochastic layers; None means deterministic.
      reverse: whether to scan from the last valid step to the first.
      owner: the function that the user called, for error messages.
    """

    xs: Inputs
    carry: Carry | None = None
    lengths: Any = None
    mask: Any = None
    resets: Any = None
    key: jax.Array | None = None
    reverse: bool = False
    owner: str = "unroll"

    def __post_init__(self) -> None:
        # Lists of numbers are converted here, so that all other functions receive arrays.
        if isinstance(self.xs, list | tuple):
            object.__setattr__(self, "xs", convert_nested_list(self.owner, self.xs))
        for name in ("lengths", "mask", "resets"):
            value = getattr(self, name)
            if isinstance(value, list | tuple):
                array = jnp.asarray(convert_nested_list(self.owner, value, name))
                object.__setattr__(self, name, array)
        reverse = checks.boolean(self.owner, "reverse", self.reverse)
        object.__setattr__(self, "reverse", reverse)

    def replace(self, **changes: Any) -> "SequenceInputs":
        """Returns a copy with some fields changed."""
        return dataclasses.replace(self, **changes)


class RunCell(Protocol):
    """A function that runs one cell over a batch of sequences, as `unroll` does.

    `Layer.apply` calls it for each cell of the layer.
    """

    def __call__(
        self,
        cell: Any,
        params: Params,
        inputs: SequenceInputs,
        *,
        path: tuple[str, ...] = (),
        return_carries: bool = False,
    ) -> tuple[Carry, Any]:
        """Runs a cell.

        Args:
          cell: a `jrnn.Cell`.
          params: its parameters.
          inputs: the sequences.
          path: the position of the cell in the outermost layer, such as ("0", "forward") for the
            forward direction of the first layer of a stack.
          return_carries: whether to return the pair (outputs, carries after each step) in place of
            the outputs.

        Returns:
          The final carry, which a layer may return but must not read, and the outputs.
        """
        ...


class Layer(OptionFields, abc.ABC):
    """A map from sequences to sequences, with parameters and a carry.

    Subclasses are frozen dataclasses of hyper-parameters: hashable, printable, picklable. A
    `jrnn.Cell` is a layer; `jrnn.stack` and `jrnn.bidirectional` combine layers.

    The arguments of `init` are validated before the `init` of a subclass runs. NumPy scalars in the
    fields are converted to Python numbers and bools before `__post_init__` runs.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "init" in vars(cls):
            cls.init = _validate_init_args(cls.init)
        for name in ("init", "init_carry", "inputs"):
            register_for_export(*_returned_types(vars(cls).get(name)))

    argument_hints: ClassVar[Mapping[str, str]] = _HINTS

    @property
    @abc.abstractmethod
    def causal(self) -> bool:
        """Whether each output depends only on the inputs up to its own step."""

    @property
    def output_directions(self) -> tuple[bool, ...]:
        """For each part of the outputs' last axis, whether a reverse scan computes it.

        `(False, True)` for the concatenated outputs of a bidirectional layer.
        """
        return (False,)

    def output_sizes(self, params: Params, input_size: int) -> tuple[int, ...]:
        """Returns the size of each part of the outputs' last axis; by default the sizes are equal.

        The parts are those of `output_directions`.

        Args:
          params: the parameters, or their shapes and dtypes.
          input_size: the size of the last axis of the inputs.
        """
        count = len(self.output_directions)
        return (self.output_shape(params, input_size).shape[-1] // count,) * count

    @property
    def input_types(self) -> tuple[type, ...]:
        """Input types that the layer accepts besides arrays, such as `jrnn.Timed`."""
        return ()

    @property
    @abc.abstractmethod
    def is_stochastic(self) -> bool:
        """Whether the layer draws noise when a key is passed."""

    @abc.abstractmethod
    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> Params:
        """Draws the parameters, for inputs with a last axis of `input_size`.

        Raises:
          TypeError: `key` is not a PRNG key, or `dtype` is not real floating or not enabled in JAX.
          ValueError: `input_size` is not a positive int.
        """

    @abc.abstractmethod
    def init_carry(self, params: Params, batch_shape: tuple[int, ...]) -> Carry:
        """Returns the initial carry, leaves `[*batch_shape, ...]`.

        Real floating leaves have the dtype of `params`. Complex leaves are complex64, or complex128
        with float64 parameters.
        """

    @abc.abstractmethod
    def inputs(
        self, input_size: int, batch_shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
    ) -> Inputs:
        """Returns zeros as the input of one step: `[*batch_shape, input]` or a pytree of arrays."""

    @abc.abstractmethod
    def output_shape(self, params: Params, input_size: int) -> Any:
        """Returns shape and dtype of the output of one step, without batch axes.

        Args:
          params: the parameters, or their shapes and dtypes.
          input_size: the size of the last axis of the inputs.

        Returns:
          A `jax.ShapeDtypeStruct`, or a pytree of them.
        """

    @abc.abstractmethod
    def apply(
        self,
        run: RunCell,
        params: Params,
        inputs: SequenceInputs,
        *,
        path: tuple[str, ...] = (),
    ) -> tuple[Carry, Any]:
        """Runs the layer over a batch of sequences.

        A cell calls `run`; another layer calls `apply` of the layers that it contains.

        Args:
          run: the function that runs one cell; it must not be called inside `jax.jit`, `jax.vmap`
            or `lax.scan`.
          params: the parameters of this layer.
          inputs: the sequences.
          path: the position of this layer in the outermost layer; inner layers receive
            `(*path, name)`.

        Returns:
          The final carry in scan order, and the outputs `[T, B, ...]` in the order of time.
        """


def check_layer(owner: str, name: str, value: Any, kind: type[Layer] = Layer) -> None:
    """Raises unless the value is an instance of `kind`, which is `Layer` or `Cell`.

    Args:
      owner: the class or function that the user called.
      name: the argument.
      value: its value.
      kind: the expected base class.

    Raises:
      TypeError: the value is not an instance of `kind`.
    """
    if isinstance(value, kind):
        return
    remedy = ""
    if isinstance(value, type) and issubclass(value, Layer):
        remedy = f"; create an instance, such as {value.__name__}(64)"
    elif isinstance(checks.as_python(value), int):
        remedy = f"; the first argument is a cell, as in {owner}(jrnn.LSTM(64), ...)"
    raise TypeError(
        f"{owner}: {name} must be a cell such as jrnn.LSTM(64)"
        f"{', or a layer' if kind is Layer else ''}, got {checks.describe(value)}{remedy}"
    )


def convert_nested_list(owner: str, xs: Any, name: str = "xs") -> Any:
    """Returns nested lists or tuples of numbers as one array, and any other inputs unchanged.

    Args:
      owner: the function that the user called, for error messages.
      xs: the inputs or masks.
      name: the name of the argument.

    Raises:
      ValueError: the lists are not of equal lengths.
    """
    entry = xs
    while type(entry) in (list, tuple) and entry:
        entry = entry[0]
    if entry is xs or not isinstance(entry, bool | int | float | np.generic):
        return xs
    try:
        array = np.asarray(xs)
    except ValueError as error:
        raise ValueError(
            f"{owner}: {name} must be one array, got nested lists of unequal lengths; pad the "
            "sequences to one length, and pass lengths"
        ) from error
    return jnp.asarray(array)


def split_carry(
    owner: str, carry: Carry | None, count: int, expected: str
) -> tuple[Carry | None, ...]:
    """Splits the initial carry of a layer into those of its inner layers.

    Args:
      owner: the beginning of the error message.
      carry: a tuple or list of `count` carries, or None, for which each result is None.
      count: the number of inner layers.
      expected: the expected structure in words, for the error message.

    Raises:
      TypeError: `carry` is not a tuple or list of `count` entries.
    """
    if carry is None:
        return (None,) * count
    if not isinstance(carry, tuple | list) or len(carry) != count:
        raise TypeError(
            f"{owner}: carry of {expected}, got {checks.describe(carry)}{lengths_hint(carry)}"
        )
    return tuple(carry)


def split_key(key: jax.Array | None, count: int) -> list[jax.Array | None]:
    """Splits a key into `count` keys; for the key None, each result is None."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def _validate_init_args(init: Callable[..., Params]) -> Callable[..., Params]:
    """Returns a function that validates the arguments of `init` and then calls it."""

    @explain_signature()
    @functools.wraps(init)
    def validated_init(
        self: Layer, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32
    ) -> Params:
        owner = f"{type(self).__name__}.init"
        checks.prng_key(owner, "key", key)
        input_size = checks.positive_int(owner, "input_size", input_size)
        return init(self, key, input_size, checks.float_dtype(owner, dtype))

    return validated_init


def register_for_export(*types: Any) -> None:
    """Registers NamedTuples of parameters, carries and inputs for serialization by `jax.export`.

    `Layer.__init_subclass__` passes the annotated return types of `init`, `init_carry` and
    `inputs`. Types that are not NamedTuples are ignored.
    """
    for cls in types:
        is_namedtuple = isinstance(cls, type) and issubclass(cls, tuple) and "_fields" in vars(cls)
        if is_namedtuple and cls not in _EXPORTED:
            _EXPORTED.add(cls)
            # A notebook may define a class again; the name then remains registered for the first.
            with contextlib.suppress(ValueError):
                jax.export.register_namedtuple_serialization(
                    cls, serialized_name=f"{cls.__module__}.{cls.__qualname__}"
                )


_EXPORTED: set[type] = set()
"""The NamedTuples that are registered."""


def _returned_types(function: Any) -> tuple[Any, ...]:
    """Returns the annotated return type of a function in a tuple; for a union, all its members."""
    function = inspect.unwrap(function) if callable(function) else function
    annotation = getattr(function, "__annotations__", {}).get("return")
    return typing.get_args(annotation) or (annotation,)
