"""What is timed: a case, and for each library a contender that is ready to be called."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

GATES = {"lstm": 4, "gru": 3, "elman": 1}
DIRECTIONS = {"forward": 1, "forward+backward": 3}  # in units of the flops of the forward pass


class Unavailable(Exception):
    """A contender that cannot take part; the message is the reason that the results name."""


class Shape(NamedTuple):
    """Batch, steps, input and hidden size of one layer."""

    batch: int
    steps: int
    input: int
    hidden: int

    @property
    def text(self) -> str:
        """As `--shapes` takes it: `32x128x32x64`."""
        return "x".join(map(str, self))


@dataclass(frozen=True)
class Case:
    """One thing that all contenders do: a cell at a shape.

    Args:
      cell: a cell of jrnn by its name; only those of `GATES` have `flops`.
      direction: a key of `DIRECTIONS`. With `forward+backward` the loss is the mean of the squared
        outputs, and gradients are taken for all parameters and for the inputs.
      shape: of the layer.
      sweep: the axis of `shape` that grows, if the case is part of a growth curve.
      dtype: of parameters and inputs: "float32" or "bfloat16".
    """

    cell: str
    direction: str
    shape: Shape
    sweep: str | None = None
    dtype: str = "float32"

    @property
    def backward(self) -> bool:
        """Whether gradients are taken."""
        return self.direction != "forward"

    @property
    def flops(self) -> int:
        """Of the matrix products alone: `2·T·B·(I + H)·G·H`, three times that with gradients."""
        batch, steps, inputs, hidden = self.shape
        forward = 2 * steps * batch * (inputs + hidden) * GATES[self.cell] * hidden
        return DIRECTIONS[self.direction] * forward

    def inputs(self) -> np.ndarray:
        """Normal noise `[T, B, input]`, the same for every contender; it must not be changed."""
        batch, steps, inputs, _ = self.shape
        return _noise((steps, batch, inputs)).astype(jnp.dtype(self.dtype), copy=False)


@functools.lru_cache(maxsize=4)
def _noise(shape: tuple[int, ...]) -> np.ndarray:
    """Drawn once for each shape: at the sizes of a GPU that takes seconds."""
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@dataclass(frozen=True)
class Contender:
    """A compiled call, and what is known of it.

    Args:
      name: in tables and results.
      family: `jrnn`, `jax`, `torch` or `onnxruntime`.
      call: runs once, and returns when all is computed: the outputs; with gradients a tree of the
        loss, the parameters' gradients, and last the inputs' gradient.
      time_major: whether inputs and outputs are `[T, B, ...]`, not `[B, T, ...]`.
      compile_seconds: to lower and compile, where there is such a step.
      memory_bytes: temporaries and outputs of the compiled program, where XLA made it. What an
        operation outside of XLA allocates for itself is not in it.
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
      name: in tables and results.
      apply: `(params, xs) -> outputs`.
      params: a tree of arrays, all of which get gradients.
      time_major: the layout of `xs` and the outputs.
    """

    name: str
    apply: Callable[[Any, jax.Array], jax.Array]
    params: Any
    time_major: bool = True


def of_cell(library: str, case: Case, layers: dict[str, Any]) -> Any:
    """The library's layer for the cell of a case.

    Raises:
      Unavailable: the library has none.
    """
    if case.cell not in layers:
        raise Unavailable(f"{library} has no {case.cell}")
    return layers[case.cell]


def compiled(
    model: JaxModel, case: Case, family: str = "jax", options: dict[str, Any] | None = None
) -> Contender:
    """Compiles a layer for a case, and measures that; `options` are those of the compiler."""
    xs = case.inputs()
    xs = jnp.asarray(xs if model.time_major else xs.swapaxes(0, 1))

    def loss(params: Any, xs: jax.Array) -> jax.Array:
        return jnp.mean(model.apply(params, xs) ** 2)

    def outputs(params: Any, xs: jax.Array) -> jax.Array:
        return model.apply(params, xs)

    chosen = jax.value_and_grad(loss, argnums=(0, 1)) if case.backward else outputs
    start = time.perf_counter()
    program = jax.jit(chosen).lower(model.params, xs).compile(options)
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
