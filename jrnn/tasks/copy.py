"""The copy memory problem: repeat a few symbols in order after a long delay."""

from dataclasses import dataclass

import numpy as np

from jrnn import checks
from jrnn.tasks import common
from jrnn.tasks.task import Data, Split, Task


@dataclass(frozen=True)
class Copy(Task):
    """The copy memory problem: the target is the first symbols of the input, after a delay.

    An example has K symbols to copy, a delay of D steps, and K steps for the copy, D + 2·K steps in
    total. The S symbols have the ids 0 to S - 1; blank has the id S, and the delimiter S + 1::

        input    K symbols | blank D - 1 times, delimiter | blank K times
        target             blank D + K times              | the K symbols

    The loss includes every step. The metric is the accuracy at the last K steps only
    (`metric_mask`), since all other targets are blank. The baseline always predicts the most
    frequent symbol; its accuracy is about 1/S.

    Args:
      delay: D, number of steps between the symbols and their copy; the last one is the delimiter.
      symbols: S, number of different symbols.
      copy_length: K, number of symbols to copy.
      train_size: number of training examples.
      eval_size: number of validation examples, and of test examples.
      seed: seed of the random generator; each split has its own random stream.

    Raises:
      ValueError: `symbols` is not an int of at least 2, another size is not a positive int, `seed`
        is not an int from 0 to 2⁶³ - 1, or the examples do not fit in memory.

    >>> data = Copy(delay=3, symbols=2, copy_length=2, train_size=8, eval_size=8, seed=1).load()
    >>> data.train.xs[0].tolist(), data.train.ys[0].tolist()
    ([0, 1, 2, 2, 3, 2, 2], [2, 2, 2, 2, 2, 0, 1])

    References:
      Hochreiter and Schmidhuber, 1997, Long short-term memory.
      Arjovsky, Shah and Bengio, 2016, Unitary evolution recurrent neural networks (the form used
      here, with 8 symbols and a copy length of 10).
    """

    delay: int = 100
    symbols: int = 8
    copy_length: int = 10
    train_size: int = 20_000
    eval_size: int = 2_000
    seed: int = 0

    def __post_init__(self) -> None:
        checks.int_at_least("Copy", "symbols", self.symbols, 2)
        for name in ("delay", "copy_length", "train_size", "eval_size"):
            checks.positive_int("Copy", name, getattr(self, name))
        checks.int_between("Copy", "seed", self.seed, 0, checks.MAX_SEED)

    def load(self) -> Data:
        length = self.delay + 2 * self.copy_length
        common.check_size("Copy", self.train_size + 2 * self.eval_size, length, 9)
        sizes = (self.train_size, self.eval_size, self.eval_size)
        rngs = np.random.default_rng(self.seed).spawn(3)
        train, validation, test = map(self._sample, rngs, sizes)
        copied = slice(-self.copy_length, None)
        return Data(
            train=train,
            validation=validation,
            test=test,
            target="class_per_step",
            metric="accuracy",
            input_size=self.symbols + 2,
            output_size=self.symbols + 1,
            baseline=common.most_frequent_baseline(
                "most frequent symbol", train.ys[:, copied], test.ys[:, copied]
            ),
            baseline_outputs=common.log_frequencies(train.ys[:, copied], self.symbols + 1),
            has_tokens=True,
        )

    def _sample(self, rng: np.random.Generator, size: int) -> Split:
        blank, delimiter = self.symbols, self.symbols + 1
        symbols = rng.integers(0, self.symbols, (size, self.copy_length), np.int32)
        xs = np.full((size, self.delay + 2 * self.copy_length), blank, np.int32)
        ys = xs.copy()
        metric_mask = np.zeros(xs.shape, bool)
        xs[:, : self.copy_length] = symbols
        xs[:, -self.copy_length - 1] = delimiter
        ys[:, -self.copy_length :] = symbols
        metric_mask[:, -self.copy_length :] = True
        return Split(xs=xs, ys=ys, metric_mask=metric_mask)
