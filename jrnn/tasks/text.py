"""Character-level language modeling."""

from dataclasses import dataclass

import numpy as np

from jrnn import checks
from jrnn.tasks import common
from jrnn.tasks.conversion import UNKNOWN as UNKNOWN
from jrnn.tasks.conversion import encode_text
from jrnn.tasks.task import Data, DataSpec, RawExamples, Split, Task


@dataclass(frozen=True)
class Text(Task):
    """Character-level language modeling: predicts the next character of a text at every step.

    The text is split into consecutive parts: train, validation and test. Each part is split into
    windows of T = `window` characters that do not overlap; the targets are the inputs shifted by
    one. Remaining characters at the end of a part are dropped. The vocabulary contains the sorted
    characters of the training split, and U+FFFD as the last one for all unknown characters. The
    metric is the cross-entropy in bits per character; the baseline is a unigram model of the
    training split with add-one smoothing.

    Args:
      path: path of a UTF-8 file; None means the help topics of Python (`pydoc_data.topics`, about
        465,000 characters of English, which differ slightly between versions of Python).
      window: T, number of characters of an example.
      validation_fraction: fraction of the text for validation.
      test_fraction: fraction of the text for testing.

    Raises:
      FileNotFoundError: the file does not exist.
      TypeError: `path` is neither None nor a non-empty string.
      ValueError: `window` is not a positive int, a fraction is out of range, the file is not UTF-8
        or larger than 2 GiB, or a part of the text is too short for one window.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "abba.txt")
    ...     _ = path.write_text("abba" * 25)
    ...     data = Text(str(path), window=4).load()
    >>> data.vocabulary, data.train.xs[0].tolist(), data.train.ys[0].tolist()
    (('a', 'b', '�'), [0, 1, 1, 0], [1, 1, 0, 0])
    """

    path: str | None = None
    window: int = 128
    validation_fraction: float = 0.1
    test_fraction: float = 0.1

    def __post_init__(self) -> None:
        if self.path is not None:
            common.check_path("Text", "path", self.path)
        checks.positive_int("Text", "window", self.window)
        common.check_fractions("Text", self.validation_fraction, self.test_fraction)

    def load(self) -> Data:
        return self._load(None)

    def load_like(self, spec: DataSpec) -> Data:
        """Loads the text with another vocabulary; see `Task.load_like`."""
        if spec.vocabulary is None:
            raise ValueError("Text: other data must be a text to use their vocabulary, got another")
        return self._load(spec.vocabulary)

    def _load(self, vocabulary: tuple[str, ...] | None) -> Data:
        text = _python_help_topics() if self.path is None else common.read_text("Text", self.path)
        parts = common.split_rows(
            "Text",
            "characters",
            len(text),
            self.validation_fraction,
            self.test_fraction,
            min_rows=self.window + 1,
        )
        if vocabulary is None:
            vocabulary = (*sorted(set(text[parts[0]]) - {UNKNOWN}), UNKNOWN)
        ids = encode_text(text, vocabulary)
        train, validation, test = (_split_into_windows(ids[part], self.window) for part in parts)
        bits = common.unigram_cross_entropy(ids[parts[0]], test.ys, len(vocabulary))
        return Data(
            train=train,
            validation=validation,
            test=test,
            target="class_per_step",
            metric="bits_per_character",
            causal=True,
            contiguous=True,
            input_size=len(vocabulary),
            output_size=len(vocabulary),
            baseline=("unigram model", bits),
            baseline_outputs=common.log_frequencies(ids[parts[0]], len(vocabulary), smoothing=1),
            has_tokens=True,
            vocabulary=vocabulary,
        )

    def read(self, path: str, spec: DataSpec) -> RawExamples:
        """Reads a text as windows, of which the last one may be shorter; see `Task.read`."""
        ids = encode_text(common.read_text("data", path), spec.vocabulary or ())
        if len(ids) < 2:
            raise ValueError(f"data: {path!r} must have at least two characters, got {len(ids)}")
        return _pad_windows(ids, self.window)


def _pad_windows(ids: np.ndarray, window: int) -> RawExamples:
    """Splits all ids into windows, of which the last one may be padded."""
    count = -(-(len(ids) - 1) // window)
    padded = np.zeros(count * window + 1, ids.dtype)
    padded[: len(ids)] = ids
    xs, ys = (part.reshape(count, window) for part in (padded[:-1], padded[1:]))
    lengths = np.minimum(len(ids) - 1 - np.arange(count) * window, window)
    return RawExamples(xs, ys, lengths)


def _python_help_topics() -> str:
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def _split_into_windows(ids: np.ndarray, window: int) -> Split:
    count = (len(ids) - 1) // window
    used = ids[: count * window + 1]
    return Split(xs=used[:-1].reshape(count, window), ys=used[1:].reshape(count, window))
