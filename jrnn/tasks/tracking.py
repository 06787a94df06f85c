"""State tracking: the product of a sequence of permutations, at each step."""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from jrnn import checks
from jrnn.tasks import common
from jrnn.tasks.task import Data, Split, Task

MAX_DEGREE = 6
"""Maximum number of permuted elements; there are 720 permutations of 6 elements."""


@dataclass(frozen=True)
class Tracking(Task):
    """State tracking: the target at each step is the product of all permutations so far.

    Inputs and targets are ids of permutations in lexicographic order; 0 is the identity. The
    product p * q applies q first::

        target_0 = input_0,   target_t = input_t * target_{t-1}

    Degree 2 is parity: 1 is the swap, and the target is whether the number of swaps is odd. Degree
    3 is the symmetric group S3, which is not commutative; S5 is not solvable. The loss includes
    every step. The metric is the accuracy at the last step only (`metric_mask`), whose target
    depends on all inputs. Random predictions have an accuracy of 1 / degree!.

    Args:
      degree: number of elements that are permuted, from 2 to 6.
      length: T, number of steps of a training or validation sequence.
      test_length: number of steps of a test sequence, to measure length generalization; None means
        `length`.
      train_size: number of training examples.
      eval_size: number of validation examples, and of test examples.
      seed: seed of the random generator; each split has its own random stream.

    Raises:
      ValueError: `degree` is not an int from 2 to 6, a length or size is not a positive int, `seed`
        is not an int from 0 to 2⁶³ - 1, or the examples do not fit in memory.

    >>> data = Tracking(degree=2, length=6, train_size=4, eval_size=2).load()
    >>> data.train.xs[0].tolist(), data.train.ys[0].tolist()
    ([1, 1, 0, 0, 1, 1], [1, 0, 0, 0, 1, 0])

    References:
      Barrington, 1989, Bounded-width polynomial-size branching programs recognize exactly those
        languages in NC1 (products in non-solvable groups).
      Merrill, Petty and Sabharwal, 2024, The illusion of state in state-space models (the task).
    """

    degree: int = 3
    length: int = 32
    test_length: int | None = None
    train_size: int = 20_000
    eval_size: int = 2_000
    seed: int = 0

    def __post_init__(self) -> None:
        checks.int_at_least("Tracking", "degree", self.degree, 2)
        if self.degree > MAX_DEGREE:
            raise ValueError(
                f"Tracking: degree must be at most {MAX_DEGREE}, which has "
                f"{math.factorial(MAX_DEGREE)} permutations, got {self.degree}"
            )
        for name in ("length", "train_size", "eval_size"):
            checks.positive_int("Tracking", name, getattr(self, name))
        if self.test_length is not None:
            checks.positive_int("Tracking", "test_length", self.test_length)
        checks.int_between("Tracking", "seed", self.seed, 0, checks.MAX_SEED)

    def load(self) -> Data:
        common.check_size("Tracking", self.train_size + self.eval_size, self.length, 9)
        common.check_size("Tracking", self.eval_size, self.test_length or self.length, 9)
        rngs = np.random.default_rng(self.seed).spawn(3)
        train = self._sample(rngs[0], self.train_size, self.length)
        validation = self._sample(rngs[1], self.eval_size, self.length)
        test = self._sample(rngs[2], self.eval_size, self.test_length or self.length)
        size = math.factorial(self.degree)
        return Data(
            train=train,
            validation=validation,
            test=test,
            target="class_per_step",
            metric="accuracy",
            input_size=size,
            output_size=size,
            baseline=common.most_frequent_baseline(
                "most frequent class", train.ys[:, -1], test.ys[:, -1]
            ),
            baseline_outputs=common.log_frequencies(train.ys[:, -1], size),
            has_tokens=True,
        )

    def _sample(self, rng: np.random.Generator, size: int, length: int) -> Split:
        products = _product_table(self.degree)
        xs = rng.integers(0, len(products), (size, length), np.int32)
        ys = xs.copy()
        for t in range(1, length):
            ys[:, t] = products[xs[:, t], ys[:, t - 1]]
        metric_mask = np.zeros(xs.shape, bool)
        metric_mask[:, -1] = True
        return Split(xs=xs, ys=ys, metric_mask=metric_mask)


def _product_table(degree: int) -> np.ndarray:
    """Returns the ids of all products; entry `[i, j]` is that of permutation i * permutation j."""
    permutations = list(itertools.permutations(range(degree)))
    ids = {permutation: id for id, permutation in enumerate(permutations)}
    compose = lambda p, q: tuple(p[k] for k in q)
    return np.array([[ids[compose(p, q)] for q in permutations] for p in permutations], np.int32)
