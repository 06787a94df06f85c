"""How a run goes through its data: in training, and when it is evaluated."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jrnn.cell import Carry
from jrnn.tasks.task import Data, Split
from jrnn.train.data import Examples, Reader
from jrnn.train.experiment import Experiment
from jrnn.train.objective import Objective
from jrnn.train.step import Evaluation, Forward, Weights, apply_whole, evaluation
from jrnn.train.tbptt import Windows, stateful_evaluation, streams


def evaluator(graphdef: nnx.GraphDef, experiment: Experiment, data: Data) -> Evaluation:
    """How the networks of a run are evaluated: with the carry handed over if it is in training."""
    objective, rows = Objective.of(data), experiment.batch_size
    if experiment.tbptt is None:
        return evaluation(graphdef, objective, rows)
    return stateful_evaluation(graphdef, objective, data, experiment.tbptt.window(data).k1, rows)


class Course(NamedTuple):
    """How a run goes through its training split.

    Attributes:
      split: the split, cut into windows if it is trained by windows.
      reader: from a seed to what each step takes of it.
      forward: how the network runs through a batch.
      first_carry: from the structure of a network and its weights to the carry that is handed over
        at first; empty where none is.
    """

    split: Split
    reader: Callable[[int], Reader]
    forward: Forward
    first_carry: Callable[[nnx.GraphDef, Weights], Carry]

    @classmethod
    def of(cls, experiment: Experiment, data: Data) -> "Course":
        """The course of an experiment."""
        rows = experiment.batch_size
        if experiment.tbptt is None:
            size = len(data.train.xs)
            reader = lambda seed: Examples(size, rows, seed)
            return cls(data.train, reader, apply_whole, lambda graphdef, weights: ())
        window = experiment.tbptt.window(data)
        split = streams(data, data.train, window.k1, rows, whole=False)
        parts = experiment.accumulate

        def first_carry(graphdef: nnx.GraphDef, weights: Weights) -> Carry:
            carry = window.first_carry(graphdef, weights, split, rows // parts)
            return carry if parts == 1 else jax.tree.map(lambda a: jnp.stack([a] * parts), carry)

        return cls(split, lambda seed: Windows(window, split, rows, seed), window.run, first_carry)
