"""The network of a run: layers of a cell, and the head that a task's target asks for."""

from dataclasses import dataclass, replace
from typing import Literal

import jax.numpy as jnp
from flax import nnx

from jrnn import checks
from jrnn.engines import Engine, choose_engine
from jrnn.layer import Layer
from jrnn.nn import Classifier, SequenceToSequence, StackedRNN
from jrnn.nn.heads import POOLS
from jrnn.tasks.task import Data

EMBEDDING_SIZE = 64


@dataclass(frozen=True)
class Network:
    """Layers of one cell, from the inputs of a task to its outputs.

    Args:
      cell: the cell, or layer, the same in every layer.
      num_layers: number of layers.
      bidirectional: run each layer in both directions.
      dropout: rate between layers and before the head.
      pool: for one output a sequence, what is read: "last", "mean" or "max".
      embedding_size: width of the embedding of tokens; None means 64. Only for tasks with tokens.
      dtype: of inputs and products: "float32" or "bfloat16"; parameters are float32.
      engine: name of the engine.

    Raises:
      ValueError: a number out of range or an unknown name.
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
        checks.positive_int("Network", "num_layers", self.num_layers)
        checks.rate("Network", "dropout", self.dropout)
        checks.one_of("Network", "pool", self.pool, POOLS)
        checks.one_of("Network", "dtype", self.dtype, ("float32", "bfloat16"))
        choose_engine(self.engine)
        if self.embedding_size is not None:
            checks.positive_int("Network", "embedding_size", self.embedding_size)

    @property
    def causal(self) -> bool:
        """Whether an output depends on the inputs up to its own step alone."""
        return self.cell.causal and not self.bidirectional

    def description(self) -> str:
        """Its options, but for what a run may go on without: the engine, and rates of dropout."""
        return repr(replace(self, engine="auto", dropout=0.0))

    def build(
        self, data: Data, seed: int, engine: Engine | None = None
    ) -> Classifier | SequenceToSequence:
        """Draws the network for a task's data.

        Args:
          data: the loaded task; its target chooses the head.
          seed: of the parameters and of dropout.
          engine: what runs the cells in place of `engine` of the options.

        Raises:
          ValueError: an option does not fit the task.
        """
        if data.causal and not self.causal:
            raise ValueError(
                "Network: this task needs a causal network, since later inputs are what it has to "
                "predict; set bidirectional=False, and use a causal cell, got "
                f"bidirectional={self.bidirectional}, cell={self.cell!r}"
            )
        if self.embedding_size is not None and not data.tokens:
            raise ValueError(
                f"Network: embedding_size={self.embedding_size} needs a task with tokens; this one "
                "has real-valued inputs"
            )
        rngs = nnx.Rngs(seed)
        embedding, size = None, data.input_size
        if data.tokens:
            size = self.embedding_size or EMBEDDING_SIZE
            # Of unit variance, as the input weights of cells expect; flax's default is smaller.
            unit = nnx.initializers.normal(1.0)
            embedding = nnx.Embed(data.input_size, size, embedding_init=unit, rngs=rngs)
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
        head = {"embedding": embedding, "dropout": self.dropout, "rngs": rngs}
        if data.target in ("class_per_step", "value_per_step"):
            return SequenceToSequence(body, data.output_size, **head)
        return Classifier(body, data.output_size, pool=self.pool, **head)
