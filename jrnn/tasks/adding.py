"""The adding problem: the sum of the two marked numbers of a long sequence."""

from dataclasses import dataclass

import numpy as np

from jrnn import checks
from jrnn.tasks import common
from jrnn.tasks.task import Data, Split, Task


@dataclass(frozen=True)
class Adding(Task):
    """The adding problem: the target is the sum of the two marked numbers of a sequence.

    Channel 0 contains values drawn uniformly from [0, 1). Channel 1 is 1 at the two marked steps,
    one in each half of the sequence, and 0 elsewhere. The metric is the mean squared error. The
    baseline is the prediction of the mean, whose error is about 1/6, the variance of the sum of two
    uniform numbers.

    Args:
      length: T, number of steps of a sequence; the first half has T // 2 steps.
      train_size: number of training examples.
      eval_size: number of validation examples, and of test examples.
      seed: seed of the random generator; each split has its own random stream.

    Raises:
      ValueError: `length` is not an int of at least 2, a size is not a positive int, `seed`
        is not an int from 0 to 2⁶³ - 1, or the examples do not fit in memory.

    >>> data = Adding(length=6, train_size=4, eval_size=2).load()
    >>> data.train.xs.shape, data.train.ys.shape
    ((4, 6, 2), (4, 1))

    References:
      Hochreiter and Schmidhuber, 1997, Long short-term memory.
      Le, Jaitly and Hinton, 2015, A simple way to initialize recurrent networks of rectified linear
      units (the form used here).
    """

    length: int = 100
    train_size: int = 20_000
    eval_size: int = 2_000
    seed: int = 0

    def __post_init__(self) -> None:
        checks.int_at_least("Adding", "length", self.length, 2)
        checks.positive_int("Adding", "train_size", self.train_size)
        checks.positive_int("Adding", "eval_size", self.eval_size)
        checks.int_between("Adding", "seed", self.seed, 0, checks.MAX_SEED)

    def load(self) -> Data:
        common.check_size("Adding", self.train_size + 2 * self.eval_size, self.length, 8)
        sizes = (self.train_size, self.eval_size, self.eval_size)
        rngs = np.random.default_rng(self.seed).spawn(3)
        train, validation, test = map(self._sample, rngs, sizes)
        return Data(
            train=train,
            validation=validation,
            test=test,
            target="value",
            metric="mse",
            input_size=2,
            output_size=1,
            baseline=common.constant_baseline(train.ys, test.ys),
            baseline_outputs=common.channel_means(train.ys),
        )

    def _sample(self, rng: np.random.Generator, size: int) -> Split:
        examples = np.arange(size)
        values = rng.random((size, self.length), np.float32)
        first = rng.integers(0, self.length // 2, size)
        second = rng.integers(self.length // 2, self.length, size)
        markers = np.zeros_like(values)
        markers[examples, first] = markers[examples, second] = 1
        sums = values[examples, first] + values[examples, second]
        return Split(xs=np.stack([values, markers], axis=-1), ys=sums[:, None])
