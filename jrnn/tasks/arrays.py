"""Sequences from an .npz file."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from jrnn import checks
from jrnn.tasks import common, labels, npz
from jrnn.tasks.labels import IGNORED_LABEL
from jrnn.tasks.task import Data, DataSpec, Split, Target, Task

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
    class_names: tuple[str, ...] | None
    baseline: tuple[str, float]
    baseline_outputs: tuple[float, ...]
    scaler: common.StandardScaler | None


@dataclass(frozen=True)
class Arrays(Task):
    """Sequences from an .npz file with the arrays `xs`, `ys` and optionally `lengths`.

    `xs` contains features, `[N, T, input]` real numbers, or tokens, `[N, T]` ints. The `kind`
    determines the shape and dtype of `ys`, and the metric::

        classification             [N] labels                      accuracy
        regression                 [N] or [N, K] floats            mean squared error
        sequence_classification    [N, T] labels, of each step     accuracy
        sequence_regression        [N, T] or [N, T, K] floats      mean squared error

    Labels are ints from 0, texts, or one-hot rows `[..., K]`. The classes are the distinct labels
    of the file in ascending order; `Data.class_names` has them as text unless they are 0, 1, ...,
    K - 1. The loss and the metric ignore labels of -100 or of an empty text, and values of NaN.

    `lengths`, `[N]` ints from 1 to T, contains the number of valid steps of each example. Later
    entries of `xs` and `ys` are padding: they may have any value, and are replaced by zeros.

    The examples are shuffled and split into disjoint parts. The size of the vocabulary is one more
    than the largest valid id in the file. The baseline predicts the most frequent class of the
    training split, or the mean of its targets.

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
        arrays; shapes are inconsistent with each other or with `kind`; a valid entry is infinite, a
        negative id or, in `xs`, NaN; a length is out of range; or a split would be empty or have no
        targets.

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
        return self._load(None)

    def load_like(self, spec: DataSpec) -> Data:
        """Loads the arrays in the encoding of other data; see `Task.load_like`."""
        if spec.target != _TARGETS[self.kind]:
            raise ValueError(
                f"Arrays: kind must be that of the run, with target={spec.target!r}, to keep its "
                f"encoding, got {self.kind!r}"
            )
        return self._load(spec)

    def _load(self, like: DataSpec | None) -> Data:
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
            input_size = int(xs.max()) + 1
        else:
            xs, input_scaler = self._to_float("xs", xs, valid, parts[0], like)
            input_size = xs.shape[2]
        if like is not None:
            _check_sizes(like, has_tokens, input_size)
            input_size = like.input_size
        targets = self._make_targets(arrays["ys"], valid, parts, like)
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
            input_size=input_size,
            output_size=targets.output_size,
            baseline=targets.baseline,
            baseline_outputs=targets.baseline_outputs,
            class_names=targets.class_names,
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
        self,
        ys: np.ndarray,
        valid: np.ndarray,
        parts: list[np.ndarray],
        like: DataSpec | None,
    ) -> _Targets:
        # A length is at least 1, so the first step of every example is valid.
        mask = valid if self.kind.startswith("sequence") else valid[:, 0]
        if self.kind.endswith("classification"):
            ys = npz.check_labels(ys, self.kind, mask)
            if like is None:
                ys, names, size = labels.encode(ys, mask)
            else:
                names, size = like.class_names, like.output_size
                ys = labels.encode_like(ys, mask, names, size)
            is_known = mask & (ys != IGNORED_LABEL)
            _check_known(is_known, parts, f"labels other than {IGNORED_LABEL}")
            train, test = (ys[part][is_known[part]] for part in (parts[0], parts[2]))
            baseline = common.most_frequent_baseline("most frequent class", train, test)
            outputs = common.log_frequencies(train, size)
            return _Targets(ys, size, names, baseline, outputs, None)
        ys = npz.check_values(ys, self.kind, mask.shape)
        is_known = mask[..., None] & ~np.isnan(ys)
        _check_known(is_known, parts, "values other than NaN")
        _check_channels(is_known[parts[0]])
        ys, scaler = self._to_float("ys", ys, mask, parts[0], like)
        train, test = (ys[part][mask[part]] for part in (parts[0], parts[2]))
        baseline = common.constant_baseline(train, test)
        return _Targets(ys, ys.shape[-1], None, baseline, common.channel_means(train), scaler)

    def _to_float(
        self,
        name: str,
        array: np.ndarray,
        mask: np.ndarray,
        train: np.ndarray,
        like: DataSpec | None,
    ) -> tuple[np.ndarray, common.StandardScaler | None]:
        """Returns the array as float32, normalized if `normalize`, and its scaler if any.

        Entries where `mask` is False become 0. `train` contains the indices of the training
        examples. If `like` is not None, its scaler is used instead.
        """
        array = npz.to_finite(name, common.zero_padding(array, mask), allow_nan=name == "ys")
        if like is not None:
            scaler = like.input_scaler if name == "xs" else like.target_scaler
        else:
            used = array[train][mask[train]]
            scaler = common.StandardScaler.fit(used) if self.normalize else None
        if scaler is None:
            return array.astype(np.float32), None
        if len(scaler.mean) != array.shape[-1]:
            raise ValueError(
                f"Arrays: {name} must have {len(scaler.mean)} channels, as the run, to keep its "
                f"normalization, got {array.shape[-1]}"
            )
        return common.zero_padding(scaler.transform(array), mask), scaler


def _check_sizes(like: DataSpec, has_tokens: bool, input_size: int) -> None:
    """Raises ValueError unless the inputs have the kind and the size of those of a run."""
    fits = input_size <= like.input_size if has_tokens else input_size == like.input_size
    if has_tokens != like.has_tokens or not fits:
        kind = "ids of tokens below" if like.has_tokens else "features per step, in number"
        raise ValueError(
            f"Arrays: xs must have {kind} {like.input_size}, as the run, to keep its encoding, got "
            f"{'tokens' if has_tokens else 'features'} of size {input_size}"
        )


def _check_known(is_known: np.ndarray, parts: list[np.ndarray], description: str) -> None:
    """Raises ValueError unless each split has targets.

    Args:
      is_known: `[N, ...]` or `[N, ..., K]`, which targets are valid and not to be ignored.
      parts: the indices of the examples of each split.
      description: what the targets must be, for the message.
    """
    for name, part in zip(("training", "validation", "test"), parts, strict=True):
        if not is_known[part].any():
            raise ValueError(
                f"Arrays: ys must have {description} in the {name} split, got none of "
                f"{len(part)} examples; use another seed or fraction, or more targets"
            )


def _check_channels(is_known: np.ndarray) -> None:
    """Raises ValueError unless each channel of `[..., K]` targets for training has a value."""
    columns = is_known.reshape(-1, is_known.shape[-1]).any(axis=0)
    if not columns.all():
        raise ValueError(
            "Arrays: ys must have values other than NaN in each channel of the training split, got "
            f"none in channel {int(columns.argmin())}; remove the channel"
        )
