"""Your own sequences, from an .npz file."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from jrnn import checks
from jrnn.tasks import common, npz
from jrnn.tasks.task import Data, Split, Target, Task

Kind = Literal["classification", "regression", "sequence_classification", "sequence_regression"]

_TARGETS: dict[str, Target] = {
    "classification": "class",
    "regression": "value",
    "sequence_classification": "class_per_step",
    "sequence_regression": "value_per_step",
}


@dataclass(frozen=True)
class Arrays(Task):
    """Sequences of your own: the arrays `xs`, `ys` and perhaps `lengths` of one .npz file.

    `xs` is `[N, T, input]` of real numbers, or `[N, T]` of ints, which are tokens. What `ys` is,
    `kind` says; it is never guessed from shapes::

        classification             [N] ints, labels from 0              accuracy
        regression                 [N] or [N, K] floats                 mean squared error
        sequence_classification    [N, T] ints, a label for each step   accuracy
        sequence_regression        [N, T] or [N, T, K] floats           mean squared error

    `lengths [N]` ints, from 1 to T, are the valid steps of each example. What `xs` and `ys` hold
    beyond them is padding: it may be anything, counts for nothing and comes out as zero.

    The examples are shuffled and split; each is in exactly one part. The size of a vocabulary and
    the number of classes are one more than the largest id in the file; a label for a whole sequence
    lies below N. The baseline is the most
    frequent class of the training part, or the mean of its targets.

    Args:
      path: the .npz file, as `np.savez(path, xs=xs, ys=ys, lengths=lengths)` writes it.
      kind: what there is to predict.
      validation_fraction: share of the examples for validation.
      test_fraction: share of the examples for testing.
      normalize: whether features, and targets that are real, are brought to mean 0 and standard
        deviation 1, by channel, by the valid steps of the training part. The metric is then in
        these units, and `target_scale` leads back to yours.
      seed: of the shuffling.

    Raises:
      FileNotFoundError: there is no such file.
      TypeError: `path` is not a string, or an array has the wrong type of numbers for `kind`.
      ValueError: an option is out of range; the file is no .npz or lacks an array or holds others;
        shapes do not fit each other and `kind`; a valid entry is NaN, infinite or a negative id; a
        length is out of range; or a split would be empty.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = str(pathlib.Path(folder, "mine.npz"))
    ...     np.savez(path, xs=np.ones((20, 5, 3)), ys=np.arange(20) % 2)
    ...     data = Arrays(path, kind="classification").load()
    >>> data.train.xs.shape, data.test.ys.shape, data.output_size
    ((14, 5, 3), (4,), 2)
    """

    path: str
    kind: Kind
    validation_fraction: float = 0.1
    test_fraction: float = 0.2
    normalize: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        common.file_path("Arrays", "path", self.path)
        checks.one_of("Arrays", "kind", self.kind, get_args(Kind))
        common.fractions("Arrays", self.validation_fraction, self.test_fraction)
        common.at_least("Arrays", "seed", self.seed, 0)

    def load(self) -> Data:
        arrays = npz.read(self.path)
        xs = npz.inputs(arrays["xs"])
        examples, steps = xs.shape[:2]
        lengths = npz.sequence_lengths(arrays.get("lengths"), examples, steps)
        valid = np.ones((examples, steps), bool)
        if lengths is not None:
            valid = np.arange(steps) < lengths[:, None]
        parts = self._parts(examples)
        tokens = xs.ndim == 2
        if tokens:
            xs = npz.ids("xs", _blank(xs, valid))
        else:
            xs, _ = self._reals("xs", xs, valid, parts[0])
        ys, output_size, baseline, scale = self._targets(arrays["ys"], valid, parts)
        train, validation, test = (
            Split(xs=xs[part], ys=ys[part], lengths=None if lengths is None else lengths[part])
            for part in parts
        )
        target = _TARGETS[self.kind]
        return Data(
            train=train,
            validation=validation,
            test=test,
            target=target,
            metric="accuracy" if target.startswith("class") else "mse",
            input_size=int(xs.max()) + 1 if tokens else xs.shape[2],
            output_size=output_size,
            baseline=baseline,
            tokens=tokens,
            target_scale=None if scale is None else scale.std,
        )

    def _parts(self, examples: int) -> list[np.ndarray]:
        """The examples of train, validation and test."""
        order = np.random.default_rng(self.seed).permutation(examples)
        fractions = (self.validation_fraction, self.test_fraction)
        pieces = common.split_rows("Arrays", "examples", examples, *fractions, least=1)
        return [order[piece] for piece in pieces]

    def _targets(
        self, ys: np.ndarray, valid: np.ndarray, parts: list[np.ndarray]
    ) -> tuple[np.ndarray, int, tuple[str, float], common.Scale | None]:
        """The targets, their size, what a trivial predictor reaches on them, and their scale."""
        # A length is at least 1, so that every example counts where there is one target for each.
        counted = valid if self.kind.startswith("sequence") else valid[:, 0]
        scale = None
        if self.kind.endswith("classification"):
            ys = npz.labels(ys, self.kind, counted.shape)
            ys = npz.ids("ys", _blank(ys, counted))
            ys = npz.dense(ys) if self.kind == "classification" else ys
            size = int(ys.max()) + 1
        else:
            ys = npz.values(ys, self.kind, counted.shape)
            ys, scale = self._reals("ys", ys, counted, parts[0])
            size = ys.shape[-1]
        train, test = (ys[part][counted[part]] for part in (parts[0], parts[2]))
        if self.kind.endswith("classification"):
            return ys, size, common.most_frequent("most frequent class", train, test), scale
        return ys, size, common.constant_guess(train, test), scale

    def _reals(
        self, name: str, array: np.ndarray, counted: np.ndarray, train: np.ndarray
    ) -> tuple[np.ndarray, common.Scale | None]:
        """Real numbers as float32, zero where they do not count; their scale, if there is one."""
        array = npz.finite(name, _blank(array, counted))
        if not self.normalize:
            return array.astype(np.float32), None
        scale = common.Scale.of(array[train][counted[train]])
        return _blank(scale.normalize(array), counted), scale


def _blank(array: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Zeros where `counted`, which covers the leading axes, is False."""
    cover = counted.reshape(counted.shape + (1,) * (array.ndim - counted.ndim))
    return np.where(cover, array, np.zeros((), array.dtype))
