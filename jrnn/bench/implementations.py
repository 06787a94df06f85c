"""Cases, which are the computations to time, and their implementations in jrnn and peers."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

NUM_GATES = {"lstm": 4, "gru": 3, "elman": 1}
"""The cells that `jrnn bench` times, and the number of gates of each."""
MODES = {"forward": 1, "forward+backward": 3}
"""FLOPs relative to those of the forward pass, by mode."""


class Unavailable(Exception):
    """A library or engine cannot run a case; the message is the reason given in the results."""


class Shape(NamedTuple):
    """Batch, steps, input and hidden size of one layer."""

    batch: int
    steps: int
    input: int
    hidden: int

    @property
    def text(self) -> str:
        """The shape in the format of `--shapes`: `32x128x32x64`."""
        return "x".join(map(str, self))


@dataclass(frozen=True)
class Case:
    """A computation to time: a cell, a mode and a shape.

    Args:
      cell: name of a cell of jrnn; `flops` is defined only for the keys of `NUM_GATES`.
      mode: a key of `MODES`. `forward+backward` computes the mean of the squared outputs, and its
        gradients with respect to all parameters and the inputs.
      shape: the sizes of the layer.
      sweep: the field of `shape` that increases, if the case belongs to a sweep; otherwise None.
      dtype: dtype of parameters and inputs, "float32" or "bfloat16".
    """

    cell: str
    mode: str
    shape: Shape
    sweep: str | None = None
    dtype: str = "float32"

    @property
    def has_backward(self) -> bool:
        """Whether gradients are computed."""
        return self.mode != "forward"

    @property
    def flops(self) -> int:
        """FLOPs of the matrix products: `2·T·B·(I + H)·G·H`, three times as many with gradients.

        I is the input size, H the hidden size, and G the number of gates.
        """
        batch, steps, inputs, hidden = self.shape
        forward = 2 * steps * batch * (inputs + hidden) * NUM_GATES[self.cell] * hidden
        return MODES[self.mode] * forward

    def inputs(self) -> np.ndarray:
        """Returns normally distributed inputs `[T, B, input]`.

        The array is cached, so it must not be modified.
        """
        batch, steps, inputs, _ = self.shape
        return _sample_inputs((steps, batch, inputs)).astype(jnp.dtype(self.dtype), copy=False)


@functools.lru_cache(maxsize=4)
def _sample_inputs(shape: tuple[int, ...]) -> np.ndarray:
    """Samples the inputs; cached, because sampling large shapes takes seconds."""
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@dataclass(frozen=True)
class Implementation:
    """A case implemented by a library or by an engine of jrnn, compiled and ready to be called.

    Args:
      name: name in tables and results.
      family: `jrnn`, `jax`, `torch` or `onnxruntime`.
      call: runs the case, blocks until the results are ready, and returns the outputs. With
        gradients, it returns a pytree of the loss, the gradients of the parameters, and, as the
        last leaf, the gradient of the inputs.
      time_major: whether inputs and outputs are `[T, B, ...]`, not `[B, T, ...]`.
      compile_seconds: time to trace, lower and compile; None if the library does not compile.
      memory_bytes: size of temporaries and outputs as reported by XLA, without memory allocated by
        custom calls; None if XLA does not compile the program or does not report it.
    """

    name: str
    family: str
    call: Callable[[], Any]
    time_major: bool = True
    compile_seconds: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class JaxModel:
    """A layer of a JAX library.

    Args:
      name: name in tables and results.
      apply: `(params, xs) -> outputs`.
      params: a pytree of arrays; gradients are computed for all of them.
      time_major: whether `xs` and the outputs are `[T, B, ...]`.
    """

    name: str
    apply: Callable[[Any, jax.Array], jax.Array]
    params: Any
    time_major: bool = True


def select_layer(library: str, case: Case, layers: dict[str, Any]) -> Any:
    """Returns the library's layer for the cell of a case.

    Raises:
      Unavailable: the library has no such layer.
    """
    if case.cell not in layers:
        raise Unavailable(f"{library} has no {case.cell}")
    return layers[case.cell]


def compile_model(
    model: JaxModel, case: Case, family: str = "jax", options: dict[str, Any] | None = None
) -> Implementation:
    """Compiles a layer for a case, and measures compile time and memory.

    Args:
      model: the layer.
      case: the case.
      family: the family of the implementation.
      options: options of the XLA compiler; None for its defaults.
    """
    xs = case.inputs()
    xs = jnp.asarray(xs if model.time_major else xs.swapaxes(0, 1))

    def loss(params: Any, xs: jax.Array) -> jax.Array:
        return jnp.mean(model.apply(params, xs) ** 2)

    def outputs(params: Any, xs: jax.Array) -> jax.Array:
        return model.apply(params, xs)

    function = jax.value_and_grad(loss, argnums=(0, 1)) if case.has_backward else outputs
    start = time.perf_counter()
    program = jax.jit(function).lower(model.params, xs).compile(options)
    seconds = time.perf_counter() - start
    memory = program.memory_analysis()
    return Implementation(
        model.name,
        family,
        lambda: jax.block_until_ready(program(model.params, xs)),
        model.time_major,
        seconds,
        memory and memory.temp_size_in_bytes + memory.output_size_in_bytes,
    )
