"""Text: windows, vocabulary and errors."""

import math
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest

from jrnn.tasks import Data, Text

UNKNOWN = "\ufffd"


def _write(folder: Path, text: str) -> str:
    path = folder / "story.txt"
    path.write_bytes(text.encode("utf-8"))
    return str(path)


def _decode(data: Data, ids: np.ndarray) -> str:
    assert data.vocabulary is not None
    return "".join(data.vocabulary[i] for i in ids.ravel())


def _random_text(size: int) -> str:
    return "".join(np.random.default_rng(1).choice(list("abcdé 𝄞\n"), size))


@pytest.mark.parametrize("window", [1, 7, 20])
def test_windows_concatenate_to_text_and_targets_are_shifted_by_one(tmp_path: Path, window: int):
    text = _random_text(503)
    data = Text(_write(tmp_path, text), window, 0.1, 0.2).load()
    start = 0
    for split, size in ((data.train, 352), (data.validation, 50), (data.test, 101)):
        part = text[start : start + size]
        start += size
        assert split.xs.shape == ((size - 1) // window, window)
        assert _decode(data, split.xs) == part[: split.xs.size]
        assert _decode(data, split.ys) == part[1 : 1 + split.xs.size]
    assert start == len(text)


def test_default_text_is_python_help_topics_sorted_by_name():
    data = Text(window=100).load()
    text = "\n".join(topics[name] for name in sorted(topics))
    assert _decode(data, data.train.xs) == text[: data.train.xs.size]
    assert data.train.xs.size > 300_000
    assert 3 < data.baseline[1] < 7


def test_line_endings_are_preserved_and_byte_order_mark_is_removed(tmp_path: Path):
    data = Text(_write(tmp_path, "\ufeff" + "a\r\n" * 40), window=3).load()
    assert _decode(data, data.train.xs[:2]) == "a\r\na\r\n"
    assert data.vocabulary == ("\n", "\r", "a", UNKNOWN)


def test_characters_unseen_in_training_become_unknown(tmp_path: Path):
    text = "ab" * 40 + "xbab" + "abyxa" + UNKNOWN + "b" * 10
    data = Text(_write(tmp_path, text), window=3, validation_fraction=0.1, test_fraction=0.1).load()
    assert data.vocabulary == ("a", "b", UNKNOWN)
    assert data.input_size == data.output_size == 3
    decoded = _decode(data, data.validation.xs) + _decode(data, data.test.xs)
    assert UNKNOWN in decoded
    assert not set(decoded) - {"a", "b", UNKNOWN}


def test_vocabulary_uses_the_training_split_only(tmp_path: Path):
    head, tail = "abc" * 40, "cab" * 10
    plain = Text(_write(tmp_path, head + tail), window=4).load()
    modified = Text(_write(tmp_path, head + "zab" * 10), window=4).load()
    assert plain.vocabulary == modified.vocabulary
    assert np.array_equal(plain.train.xs, modified.train.xs)


def test_replacement_character_in_training_text_occurs_once_in_vocabulary(tmp_path: Path):
    data = Text(_write(tmp_path, UNKNOWN * 100), window=4).load()
    assert data.vocabulary == (UNKNOWN,)
    assert (data.train.xs == 0).all()


def test_baseline_is_smoothed_unigram_cross_entropy_in_bits(tmp_path: Path):
    text = _random_text(300)[:-2] + "XY"
    data = Text(_write(tmp_path, text), window=5, validation_fraction=0.1, test_fraction=0.2).load()
    assert data.vocabulary is not None
    counts = Counter(text[:210])
    bits = 0.0
    for character in _decode(data, data.test.ys):
        bits -= math.log2((counts[character] + 1) / (210 + len(data.vocabulary)))
    assert data.baseline == ("unigram model", pytest.approx(bits / data.test.ys.size))


def test_missing_file_raises_with_suggestion(tmp_path: Path):
    _write(tmp_path, "a" * 100)
    with pytest.raises(FileNotFoundError, match=r"Text: no file .*stroy.txt.*mean 'story.txt'"):
        Text(str(tmp_path / "stroy.txt")).load()
    (tmp_path / "README.TXT").write_text("a")
    with pytest.raises(FileNotFoundError, match="did you mean 'README.TXT'"):
        Text(str(tmp_path / "readm.txt")).load()
    with pytest.raises(FileNotFoundError, match=r"Text: path must be a file, got the folder"):
        Text(str(tmp_path)).load()
    with pytest.raises(FileNotFoundError, match=r"folder .*nowhere does not exist"):
        Text(str(tmp_path / "nowhere" / "story.txt")).load()


def test_other_encodings_raise_with_offset_of_the_invalid_byte(tmp_path: Path):
    path = tmp_path / "latin.txt"
    path.write_bytes("üüé".encode() + "é".encode("latin-1") + b"abc")
    with pytest.raises(ValueError, match=r"Text: .*UTF-8.* 0xe9 at byte offset 6"):
        Text(str(path)).load()


@pytest.mark.parametrize("validation, test", [(0.1, 0.1), (0.3, 0.05), (0.45, 0.5)])
def test_short_text_raises_and_suggested_length_is_enough(
    tmp_path: Path, validation: float, test: float
):
    path = _write(tmp_path, "a" * 30)
    task = Text(path, 9, validation, test)
    with pytest.raises(ValueError, match="Text: .* at least 10 characters each") as exc_info:
        task.load()
    suggested = int(str(exc_info.value).split(" characters are enough")[0].split()[-1])
    _write(tmp_path, "a" * suggested)
    data = task.load()
    assert min(len(split.xs) for split in (data.train, data.validation, data.test)) == 1
    _write(tmp_path, "a" * int(suggested * 0.8))
    with pytest.raises(ValueError, match="are enough"):
        task.load()


def test_empty_text_raises(tmp_path: Path):
    with pytest.raises(ValueError, match="got 0, 0 and 0 of 0"):
        Text(_write(tmp_path, "")).load()


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"window": 0}, ValueError, "Text: window must be a positive int, got 0"),
        ({"path": 3}, TypeError, "Text: path must be a non-empty string, got 3"),
        ({"path": ""}, TypeError, "Text: path must be a non-empty string, got ''"),
        ({"test_fraction": 0}, ValueError, "Text: test_fraction must be between 0 and 1, got 0"),
        ({"validation_fraction": 1.5}, ValueError, "Text: validation_fraction .* got 1.5"),
        ({"test_fraction": "a"}, ValueError, "Text: test_fraction .* got 'a'"),
        (
            {"validation_fraction": 0.5, "test_fraction": 0.5},
            ValueError,
            r"must be below 1, got 0.5 \+ 0.5",
        ),
    ],
)
def test_invalid_options_raise(options: dict, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        Text(**options)
