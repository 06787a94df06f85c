"""Cases, and contenders: implementations of a case by a library, ready to be called."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

GATES = {"lstm": 4, "gru": 3, "elman": 1}
DIRECTIONS = {"forward": 1, "forward+backward": 3}  # FLOPs relative to the forward pass


class Unavailable(Exception):
    """A library or engine cannot run a case; the message is the reason in the results."""


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
    """A computation that contenders are timed on: a cell at a shape.

    Args:
      cell: name of a cell of jrnn; `flops` is defined only for the keys of `GATES`.
      direction: a key of `DIRECTIONS`. For `forward+backward` the loss is the mean of the squared
        outputs, with gradients of all parameters and of the inputs.
      shape: the sizes of the layer.
      sweep: the axis of `shape` that grows, if the case is part of a growth curve.
      dtype: dtype of parameters and inputs, "float32" or "bfloat16".
    """

    cell: str
    direction: str
    shape: Shape
    sweep: str | None = None
    dtype: str = "float32"

    @property
    def backward(self) -> bool:
        """Whether gradients are computed."""
        return self.direction != "forward"

    @property
    def flops(self) -> int:
        """FLOPs of the matrix products: `2·T·B·(I + H)·G·H`, three times that with gradients."""
        batch, steps, inputs, hidden = self.shape
        forward = 2 * steps * batch * (inputs + hidden) * GATES[self.cell] * hidden
        return DIRECTIONS[self.direction] * forward

    def inputs(self) -> np.ndarray:
        """Normal noise `[T, B, input]`, shared by all contenders; do not modify it."""
        batch, steps, inputs, _ = self.shape
        return _noise((steps, batch, inputs)).astype(jnp.dtype(self.dtype), copy=False)


@functools.lru_cache(maxsize=4)
def _noise(shape: tuple[int, ...]) -> np.ndarray:
    """Cached, because large shapes take seconds to draw."""
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@dataclass(frozen=True)
class Contender:
    """An implementation of a case by a library or engine, ready to be called.

    Args:
      name: name in tables and results.
      family: `jrnn`, `jax`, `torch` or `onnxruntime`.
      call: runs once, blocks until ready, and returns the outputs; with gradients, a tree of the
        loss, the gradients of the parameters, and last the gradient of the inputs.
      time_major: whether inputs and outputs are `[T, B, ...]`, not `[B, T, ...]`.
      compile_seconds: time to lower and compile; None if there is no such step.
      memory_bytes: temporaries and outputs of a program compiled by XLA, without the memory that
        custom calls allocate; None for other programs.
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
      params: a tree of arrays, all differentiated.
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
) -> Contender:
    """Compiles a layer for a case with options of the compiler, and measures time and memory."""
    xs = case.inputs()
    xs = jnp.asarray(xs if model.time_major else xs.swapaxes(0, 1))

    def loss(params: Any, xs: jax.Array) -> jax.Array:
        return jnp.mean(model.apply(params, xs) ** 2)

    def outputs(params: Any, xs: jax.Array) -> jax.Array:
        return model.apply(params, xs)

    function = jax.value_and_grad(loss, argnums=(0, 1)) if case.backward else outputs
    start = time.perf_counter()
    program = jax.jit(function).lower(model.params, xs).compile(options)
    seconds = time.perf_counter() - start
    memory = program.memory_analysis()
    return Contender(
        model.name,
        family,
        lambda: jax.block_until_ready(program(model.params, xs)),
        model.time_major,
        seconds,
        memory and memory.temp_size_in_bytes + memory.output_size_in_bytes,
    )
