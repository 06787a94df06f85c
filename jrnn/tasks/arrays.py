"""Sequences from an .npz file."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

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


class _Targets(NamedTuple):
    """The targets of all examples; the other fields are those of `DataSpec`."""

    ys: np.ndarray
    output_size: int
    baseline: tuple[str, float]
    baseline_outputs: tuple[float, ...]
    scaler: common.StandardScaler | None


@dataclass(frozen=True)
class Arrays(Task):
    """Sequences from an .npz file with the arrays `xs`, `ys` and optionally `lengths`.

    `xs` contains features, `[N, T, input]` real numbers, or tokens, `[N, T]` ints. The `kind`
    determines the shape and dtype of `ys`, and the metric::

        classification             [N] ints, labels from 0              accuracy
        regression                 [N] or [N, K] floats                 mean squared error
        sequence_classification    [N, T] ints, a label for each step   accuracy
        sequence_regression        [N, T] or [N, T, K] floats           mean squared error

    `lengths`, `[N]` ints from 1 to T, contains the number of valid steps of each example. Later
    entries of `xs` and `ys` are padding: they may have any value, and are replaced by zeros.

    The examples are shuffled and split into disjoint parts. The size of the vocabulary and the
    number of classes are one more than the largest valid id in the file. Labels of whole sequences
    must be below N. The baseline predicts the most frequent class of the training split, or the
    mean of its targets.

    Args:
      path: path of the .npz file, as written by `np.savez(path, xs=xs, ys=ys, lengths=lengths)`.
      kind: kind of targets; see the table above.
      validation_fraction: fraction of the examples for validation.
      test_fraction: fraction of the examples for testing.
      normalize: whether to normalize features and real-valued targets to mean 0 and standard
        deviation 1 per channel, by the statistics of the valid steps of the training split. The
        metric is then in normalized units; `Data.target_scaler` converts to the units of the file.
      seed: seed of the shuffling.

    Raises:
      FileNotFoundError: the file does not exist.
      TypeError: `path` is not a non-empty string, or an array has the wrong dtype.
      ValueError: an option is out of range; the file is not an .npz file, or has missing or unknown
        arrays; shapes are inconsistent with each other or with `kind`; a valid entry is NaN,
        infinite or a negative id; a length is out of range; or a split would be empty.

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
        common.check_path("Arrays", "path", self.path)
        checks.one_of("Arrays", "kind", self.kind, get_args(Kind))
        common.check_fractions("Arrays", self.validation_fraction, self.test_fraction)
        checks.int_between("Arrays", "seed", self.seed, 0, checks.MAX_SEED)

    def load(self) -> Data:
        arrays = npz.read(self.path)
        xs = npz.check_inputs(arrays["xs"])
        num_examples, steps = xs.shape[:2]
        lengths = npz.check_lengths(arrays.get("lengths"), num_examples, steps)
        valid = np.ones((num_examples, steps), bool)
        if lengths is not None:
            valid = np.arange(steps) < lengths[:, None]
        parts = self._split_indices(num_examples)
        has_tokens, input_scaler = xs.ndim == 2, None
        if has_tokens:
            xs = npz.to_ids("xs", common.zero_padding(xs, valid))
        else:
            xs, input_scaler = self._to_float("xs", xs, valid, parts[0])
        targets = self._make_targets(arrays["ys"], valid, parts)
        train, validation, test = (
            Split(xs[part], targets.ys[part], None if lengths is None else lengths[part])
            for part in parts
        )
        target = _TARGETS[self.kind]
        return Data(
            train=train,
            validation=validation,
            test=test,
            target=target,
            metric="accuracy" if target.startswith("class") else "mse",
            input_size=int(xs.max()) + 1 if has_tokens else xs.shape[2],
            output_size=targets.output_size,
            baseline=targets.baseline,
            baseline_outputs=targets.baseline_outputs,
            has_tokens=has_tokens,
            input_scaler=input_scaler,
            target_scaler=targets.scaler,
        )

    def _split_indices(self, num_examples: int) -> list[np.ndarray]:
        """Returns the indices of the train, validation and test examples."""
        order = np.random.default_rng(self.seed).permutation(num_examples)
        fractions = (self.validation_fraction, self.test_fraction)
        slices = common.split_rows("Arrays", "examples", num_examples, *fractions, min_rows=1)
        return [order[part] for part in slices]

    def _make_targets(
        self, ys: np.ndarray, valid: np.ndarray, parts: list[np.ndarray]
    ) -> "_Targets":
        # A length is at least 1, so the first step of every example is valid.
        mask = valid if self.kind.startswith("sequence") else valid[:, 0]
        scaler = None
        if self.kind.endswith("classification"):
            ys = npz.check_labels(ys, self.kind, mask.shape)
            ys = npz.to_ids("ys", common.zero_padding(ys, mask))
            ys = npz.check_max_label(ys) if self.kind == "classification" else ys
            size = int(ys.max()) + 1
        else:
            ys = npz.check_values(ys, self.kind, mask.shape)
            ys, scaler = self._to_float("ys", ys, mask, parts[0])
            size = ys.shape[-1]
        train, test = (ys[part][mask[part]] for part in (parts[0], parts[2]))
        if self.kind.endswith("classification"):
            baseline = common.most_frequent_baseline("most frequent class", train, test)
            outputs = common.log_frequencies(train, size)
        else:
            baseline = common.constant_baseline(train, test)
            outputs = common.channel_means(train)
        return _Targets(ys, size, baseline, outputs, scaler)

    def _to_float(
        self, name: str, array: np.ndarray, mask: np.ndarray, train: np.ndarray
    ) -> tuple[np.ndarray, common.StandardScaler | None]:
        """Returns the array as float32, normalized if `normalize`, and its scaler if any.

        Entries where `mask` is False become 0. `train` contains the indices of the training
        examples.
        """
        array = npz.to_finite(name, common.zero_padding(array, mask))
        if not self.normalize:
            return array.astype(np.float32), None
        scaler = common.StandardScaler.fit(array[train][mask[train]])
        return common.zero_padding(scaler.transform(array), mask), scaler
