"""The network of a run: stacked recurrent layers, and a head for the target of the task."""

from dataclasses import dataclass, replace
from typing import Literal

import jax.numpy as jnp
from flax import nnx

from jrnn import checks
from jrnn.engines import Engine, choose_engine
from jrnn.layer import Layer
from jrnn.nn import Classifier, SequenceToSequence, StackedRNN
from jrnn.nn.heads import POOLS
from jrnn.tasks.task import DataSpec

MAX_LAYERS = 256
"""Maximum number of layers; each is compiled on its own, which takes about a second."""
EMBEDDING_SIZE = 64
"""Default size of the embedding vectors of tokens."""


@dataclass(frozen=True)
class Network(checks.ConvertsFields):
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
        embedding, size = None, data.input_size
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
            return SequenceToSequence(body, data.output_size, **options)
        return Classifier(body, data.output_size, pool=self.pool, **options)
