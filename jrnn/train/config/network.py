"""The network of a run: stacked recurrent layers, and a head for the target of the task."""

from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jrnn import checks
from jrnn.cell import Observed, Timed
from jrnn.engines import Engine, choose_engine
from jrnn.fields import OptionFields
from jrnn.layer import Layer
from jrnn.nn import Classifier, SequenceToSequence, StackedRNN
from jrnn.nn.heads import POOLS
from jrnn.tasks.task import DataSpec

MAX_LAYERS = 256
"""Maximum number of layers; each is compiled on its own, which takes about a second."""
EMBEDDING_SIZE = 64
"""Default size of the embedding vectors of tokens."""


@dataclass(frozen=True)
class Network(OptionFields):
    """Options of the network: an embedding for tokens, stacked recurrent layers, and a head.

    Args:
      cell: the cell or layer; the network has `num_layers` of it, each with its own parameters.
      num_layers: number of layers, at most 256.
      bidirectional: whether each layer scans in both directions.
      dropout: dropout rate between layers and before the head, in [0, 1).
      pool: pooling over time for tasks with one target per sequence: "last", "mean" or "max".
      embedding_size: size of the embedding vectors of tokens; None means 64. Only for tasks with
        tokens.
      dtype: dtype of inputs and matrix products: "float32" or "bfloat16"; parameters are float32.
      engine: name of the engine, such as "auto" or "scan"; see `jrnn.unroll`.

    Raises:
      TypeError: `cell` is not a cell or layer.
      ValueError: a number is out of range, or a name is unknown.
    """

    cell: Layer
    num_layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.0
    pool: Literal["last", "mean", "max"] = "last"
    embedding_size: int | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    engine: str = "auto"

    def __post_init__(self) -> None:
        checks.instance("Network", "cell", self.cell, Layer)
        checks.positive_int("Network", "num_layers", self.num_layers)
        checks.int_between("Network", "num_layers", self.num_layers, 1, MAX_LAYERS)
        checks.rate("Network", "dropout", self.dropout)
        checks.one_of("Network", "pool", self.pool, POOLS)
        checks.one_of("Network", "dtype", self.dtype, ("float32", "bfloat16"))
        choose_engine(self.engine, "Network")
        if self.embedding_size is not None:
            checks.positive_int("Network", "embedding_size", self.embedding_size)

    @property
    def causal(self) -> bool:
        """Whether each output depends only on inputs up to its own step."""
        return self.cell.causal and not self.bidirectional

    def description(self) -> str:
        """Returns the options as text, except engine and dropout, which may change on resume."""
        return repr(replace(self, engine="auto", dropout=0.0))

    def build(
        self, data: DataSpec, seed: int, engine: Engine | None = None
    ) -> Classifier | SequenceToSequence:
        """Builds the network for the data of a task, with random parameters.

        Args:
          data: the properties of the data; the kind of target determines the head.
          seed: seed of the parameters and of dropout.
          engine: an engine that replaces `self.engine`.

        Returns:
          A `SequenceToSequence` if the task has a target at each time step, else a `Classifier`.

        Raises:
          ValueError: the options and the task are incompatible.
        """
        if data.causal and not self.causal:
            raise ValueError(
                "Network: this task needs a causal network, since inputs of later steps contain "
                "the target of a step; set bidirectional=False, and use a causal cell, got "
                f"bidirectional={self.bidirectional}, cell={self.cell!r}"
            )
        if self.embedding_size is not None and not data.has_tokens:
            raise ValueError(
                f"Network: embedding_size={self.embedding_size} needs a task with tokens; this one "
                "has real-valued inputs"
            )
        rngs = nnx.Rngs(seed)
        embedding, size = make_input_adapter(self.cell, self.num_layers, data)
        if data.has_tokens:
            size = self.embedding_size or EMBEDDING_SIZE
            # Cells are initialized for inputs of unit variance; the default of flax is smaller.
            embedding_init = nnx.initializers.normal(1.0)
            embedding = nnx.Embed(data.input_size, size, embedding_init=embedding_init, rngs=rngs)
        body = StackedRNN(
            self.cell,
            size,
            self.num_layers,
            rngs=rngs,
            bidirectional=self.bidirectional,
            dropout=self.dropout if self.num_layers > 1 else 0.0,
            engine=engine or self.engine,
            dtype=jnp.dtype(self.dtype),
        )
        options = {"embedding": embedding, "dropout": self.dropout, "rngs": rngs}
        if data.target in ("class_per_step", "value_per_step"):
            return SequenceToSequence(body, data.num_outputs, **options)
        return Classifier(body, data.num_outputs, pool=self.pool, **options)


@dataclass(frozen=True)
class InputAdapter:
    """Makes the inputs of cells for missing values and irregular times from one array.

    The array is that of `jrnn.tasks.forecast.Forecast.input_names` with masks: values, masks and
    intervals of `size` variables each, and the interval between rows.

    Attributes:
      size: number of variables.
      kind: "observed" for `jrnn.Observed`, "timed" for `jrnn.Timed`, or "array".
    """

    size: int
    kind: Literal["observed", "timed", "array"]

    def __call__(self, xs: jax.Array) -> Observed | Timed | jax.Array:
        """Converts inputs `[..., 3 * size + 1]`."""
        size = self.size
        if self.kind == "observed":
            parts = (xs[..., part * size : (part + 1) * size] for part in range(3))
            return Observed(*parts)
        if self.kind == "timed":
            return Timed(xs[..., : 2 * size], xs[..., -1])
        return xs[..., : 3 * size]


def make_input_adapter(
    cell: Layer, num_layers: int, data: DataSpec
) -> tuple[InputAdapter | None, int]:
    """Returns what converts the inputs of a task for a cell, or None, and the size of its inputs.

    Raises:
      ValueError: the cell needs masks of missing values, which the task does not have.
    """
    needs_masks = isinstance(cell.inputs(1, ()), Observed)
    if needs_masks and num_layers > 1:
        raise ValueError(
            "Network: num_layers must be 1 for a cell that reads masks of missing values, which "
            f"other layers do not have, got {num_layers} layers of {checks.describe(cell)}; use "
            "jrnn.stack([GRUD(...), GRU(...)]) as the cell"
        )
    if data.forecast is None or not data.forecast.masks:
        if needs_masks:
            raise ValueError(
                f"Network: the cell {checks.describe(cell)} needs masks of missing values, which "
                "the data do not have; for a table set --task.missing mask, or use another cell"
            )
        return None, data.input_size
    size = data.forecast.num_values
    if needs_masks:
        return InputAdapter(size, "observed"), size
    if Timed in cell.input_types:
        return InputAdapter(size, "timed"), 2 * size
    return InputAdapter(size, "array"), 3 * size
