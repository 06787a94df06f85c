"""Arrays: splits, normalization, padding, and errors for invalid files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jrnn.tasks import Arrays, Data, Split
from jrnn.tasks.arrays import Kind
from tests.tasks.compare import all_splits_are_equal

N, T, C = 40, 6, 3
RNG = np.random.default_rng(5)


def _save(folder: Path, **arrays: Any) -> str:
    """Saves arrays in a .npz file, and returns its path."""
    path = folder / "mine.npz"
    np.savez(path, **arrays)
    return str(path)


def _splits(data: Data) -> tuple[Split, Split, Split]:
    return data.train, data.validation, data.test


def _features() -> np.ndarray:
    """Returns random values; the first channel of the first step is the index of the example."""
    xs = RNG.normal(3, 2, (N, T, C))
    xs[:, 0, 0] = np.arange(N)
    return xs


def _indices_of_examples(data: Data) -> list[list[int]]:
    """Returns the indices of the examples in each split of data from `_features`."""
    return [np.round(split.xs[:, 0, 0]).astype(int).tolist() for split in _splits(data)]


def test_every_example_is_in_one_split_with_its_target_and_length(tmp_path: Path):
    xs, ys = _features(), RNG.integers(0, 4, N)
    lengths = RNG.integers(1, T + 1, N)
    path = _save(tmp_path, xs=xs, ys=ys, lengths=lengths)
    data = Arrays(path, "classification", 0.1, 0.25, normalize=False).load()
    parts = _indices_of_examples(data)
    assert [len(part) for part in parts] == [26, 4, 10]
    assert sorted(sum(parts, [])) == list(range(N))
    for part, split in zip(parts, _splits(data), strict=True):
        assert split.lengths is not None and split.lengths.dtype == np.int32
        for row, example in enumerate(part):
            length = lengths[example]
            assert split.ys[row] == ys[example] and split.lengths[row] == length
            np.testing.assert_allclose(split.xs[row, :length], xs[example, :length], rtol=1e-6)
            assert (split.xs[row, length:] == 0).all()
    assert (data.target, data.metric) == ("class", "accuracy")
    assert (data.input_size, data.output_size) == (C, 4)


def test_seed_determines_the_split(tmp_path: Path):
    path = _save(tmp_path, xs=_features(), ys=np.arange(N) % 2)
    parts = [
        _indices_of_examples(Arrays(path, "classification", normalize=False, seed=seed).load())
        for seed in (0, 0, 1)
    ]
    assert parts[0] == parts[1] != parts[2]
    assert parts[0][0] != sorted(parts[0][0])


def test_normalization_uses_valid_training_steps_per_channel(tmp_path: Path):
    xs, ys = _features(), RNG.normal(-5, 3, (N, T, 2))
    lengths = RNG.integers(1, T + 1, N)
    path = _save(tmp_path, xs=xs, ys=ys, lengths=lengths)
    data = Arrays(path, "sequence_regression").load()
    train = _indices_of_examples(Arrays(path, "sequence_regression", normalize=False).load())[0]
    for array, actual in ((xs, data.train.xs), (ys, data.train.ys)):
        for channel in range(array.shape[-1]):
            values = [array[n, t, channel] for n in train for t in range(lengths[n])]
            mean = sum(values) / len(values)
            std = (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5
            for row, n in enumerate(train):
                expected_values = (array[n, : lengths[n], channel] - mean) / std
                np.testing.assert_allclose(
                    actual[row, : lengths[n], channel], expected_values, atol=1e-5
                )
                assert (actual[row, lengths[n] :, channel] == 0).all()
            if array is ys:
                assert data.target_scaler is not None
                assert data.target_scaler.std[channel] == pytest.approx(std)
    assert (data.target, data.metric, data.output_size) == ("value_per_step", "mse", 2)


def test_outlier_in_test_split_does_not_change_training_split(tmp_path: Path):
    xs, ys = _features(), RNG.normal(size=N)
    path = _save(tmp_path, xs=xs, ys=ys)
    test_indices = _indices_of_examples(Arrays(path, "regression", normalize=False).load())[2]
    before = Arrays(path, "regression").load()
    xs[test_indices[0]], ys[test_indices[0]] = 1e9, -1e9
    after = Arrays(_save(tmp_path, xs=xs, ys=ys), "regression").load()
    for one, other in zip(_splits(before)[:2], _splits(after)[:2], strict=True):
        assert np.array_equal(one.xs, other.xs) and np.array_equal(one.ys, other.ys)
    assert after.test.xs.max() > 1e6 and after.test.ys.min() < -1e6


def test_padding_is_ignored(tmp_path: Path):
    xs, lengths = _features(), np.full(N, T - 2)
    reals, labels = RNG.normal(size=(N, T)), RNG.integers(0, 3, (N, T))
    tokens = RNG.integers(0, 7, (N, T))
    cases: list[tuple[Kind, np.ndarray, np.ndarray, float, float]] = [
        ("sequence_regression", xs, reals, np.nan, np.inf),
        ("sequence_classification", xs, labels, 1e300, -1),
        ("sequence_classification", tokens, labels, -1, 99),
    ]
    for kind, x, y, padding_x, padding_y in cases:
        clean = Arrays(_save(tmp_path, xs=x, ys=y, lengths=lengths), kind).load()
        x[:, T - 2 :], y[:, T - 2 :] = padding_x, padding_y
        padded = Arrays(_save(tmp_path, xs=x, ys=y, lengths=lengths), kind).load()
        assert all_splits_are_equal(clean, padded)
        assert (padded.input_size, padded.output_size) == (clean.input_size, clean.output_size)
        assert padded.baseline == clean.baseline
        assert all((split.ys[:, T - 2 :] == 0).all() for split in _splits(padded))


def test_two_dimensional_ints_are_tokens(tmp_path: Path):
    xs = RNG.integers(0, 9, (N, T)).astype(np.uint8)
    xs[0, 0] = 11
    data = Arrays(_save(tmp_path, xs=xs, ys=xs % 4), "sequence_classification").load()
    assert data.has_tokens and (data.input_size, data.output_size) == (12, 4)
    assert data.target == "class_per_step" and data.target_scaler is None
    assert all(np.array_equal(split.xs % 4, split.ys) for split in _splits(data))
    all_xs = np.concatenate([split.xs for split in _splits(data)])
    assert sorted(all_xs.tolist()) == sorted(xs.tolist())


def test_three_dimensional_ints_are_features(tmp_path: Path):
    xs = RNG.integers(0, 255, (N, T, C)).astype(np.uint8)
    data = Arrays(_save(tmp_path, xs=xs, ys=np.arange(N) % 2), "classification").load()
    assert not data.has_tokens and data.input_size == C
    assert abs(data.train.xs.mean()) < 1e-5


@pytest.mark.parametrize("shape", [(N,), (N, 1)])
def test_one_value_per_example_gets_a_channel_axis(tmp_path: Path, shape: tuple[int, ...]):
    xs, ys = _features(), np.arange(N) * 1.0
    path = _save(tmp_path, xs=xs, ys=ys.reshape(shape))
    data = Arrays(path, "regression", normalize=False).load()
    assert data.output_size == 1 and data.target_scaler is None
    for part, split in zip(_indices_of_examples(data), _splits(data), strict=True):
        assert np.array_equal(split.ys, np.array(part, np.float32)[:, None])


def test_constant_channel_becomes_zeros(tmp_path: Path):
    xs = _features()
    xs[..., 1] = 0.1
    data = Arrays(_save(tmp_path, xs=xs, ys=np.full(N, 7.7)), "regression").load()
    for split in _splits(data):
        assert (split.xs[..., 1] == 0).all() and (split.ys == 0).all()
    assert data.target_scaler is not None and data.target_scaler.std == (1.0,)


def test_large_offset_does_not_lose_precision(tmp_path: Path):
    xs = _features()
    plain = Arrays(_save(tmp_path, xs=xs, ys=np.arange(N) % 2), "classification").load()
    shifted = Arrays(_save(tmp_path, xs=xs + 1.7e9, ys=np.arange(N) % 2), "classification").load()
    np.testing.assert_allclose(plain.train.xs, shifted.train.xs, atol=1e-5)


def test_baselines_use_valid_training_targets(tmp_path: Path):
    xs, lengths = _features(), RNG.integers(1, T + 1, N)
    labels = np.where(RNG.random((N, T)) < 0.6, 2, RNG.integers(0, 4, (N, T)))
    data = Arrays(_save(tmp_path, xs=xs, ys=labels, lengths=lengths), "sequence_classification")
    train, test = (_valid_targets(split) for split in _splits(data.load())[::2])
    prediction = max(set(train), key=train.count)
    expected = sum(y == prediction for y in test) / len(test)
    assert data.load().baseline == ("most frequent class", pytest.approx(expected))

    reals = RNG.normal(size=(N, T)) + lengths[:, None]
    data = Arrays(_save(tmp_path, xs=xs, ys=reals, lengths=lengths), "sequence_regression")
    train, test = (_valid_targets(split) for split in _splits(data.load())[::2])
    mean = sum(train) / len(train)
    expected = sum((y - mean) ** 2 for y in test) / len(test)
    assert data.load().baseline == ("constant prediction", pytest.approx(expected, rel=1e-5))


def _valid_targets(split: Split) -> list[float]:
    assert split.lengths is not None
    ys = split.ys.reshape(split.ys.shape[:2]).tolist()
    return [y for row, n in zip(ys, split.lengths, strict=True) for y in row[:n]]


def _with_entry(array: np.ndarray, value: Any, *index: int) -> np.ndarray:
    array = array.copy()
    array[index] = value
    return array


XS, LABELS, REALS = _features(), np.arange(N) % 3, RNG.normal(size=N)
TOKENS = RNG.integers(0, 5, (N, T))
LENGTHS = np.full(N, T)


@pytest.mark.parametrize(
    "kind, arrays, error, message",
    [
        # xs
        ("classification", {"ys": LABELS}, ValueError, "must contain the arrays xs and ys, got ys"),
        ("classification", {"xs": XS}, ValueError, "must contain the arrays xs and ys, got xs"),
        (
            "classification",
            {"x": XS, "ys": LABELS},
            ValueError,
            "must contain the arrays xs and ys, got x, ys",
        ),
        ("classification", {"xs": XS[0, 0], "ys": LABELS}, ValueError, r"xs must have .* \(3,\)"),
        ("classification", {"xs": XS[:, :0], "ys": LABELS}, ValueError, r"got \(40, 0, 3\)"),
        ("classification", {"xs": XS[:0], "ys": LABELS[:0]}, ValueError, r"got \(0, 6, 3\)"),
        ("classification", {"xs": XS[:, :, 0], "ys": LABELS}, TypeError, r"xs\[:, :, None\]"),
        ("classification", {"xs": XS * 1j, "ys": LABELS}, TypeError, "got dtype complex128"),
        ("classification", {"xs": XS.astype(str), "ys": LABELS}, TypeError, "got dtype <U"),
        (
            "classification",
            {"xs": _with_entry(XS, np.nan, 4, 2, 1), "ys": LABELS},
            ValueError,
            r"Arrays: xs must be finite in float32, got nan at xs\[4, 2, 1\]",
        ),
        (
            "classification",
            {"xs": _with_entry(XS, -np.inf, 4, 2, 1), "ys": LABELS},
            ValueError,
            r"got -inf at xs\[4, 2, 1\]",
        ),
        (
            "classification",
            {"xs": _with_entry(XS, 1e39, 4, 2, 1), "ys": LABELS},
            ValueError,
            r"got 1e\+39 at xs\[4, 2, 1\]",
        ),
        (
            "classification",
            {"xs": _with_entry(TOKENS, -2, 3, 1), "ys": LABELS},
            ValueError,
            r"Arrays: xs must contain ids from 0 to 2147483647, got -2 at xs\[3, 1\]",
        ),
        (
            "classification",
            {"xs": _with_entry(TOKENS, 2**31, 3, 1), "ys": LABELS},
            ValueError,
            r"got 2147483648 at xs\[3, 1\]",
        ),
        # lengths
        (
            "classification",
            {"xs": XS, "ys": LABELS, "lengths": _with_entry(LENGTHS, 0, 3)},
            ValueError,
            r"Arrays: lengths must be in 1\.\.T = 1\.\.6, got 0 at example 3",
        ),
        (
            "classification",
            {"xs": XS, "ys": LABELS, "lengths": _with_entry(LENGTHS, T + 1, 5)},
            ValueError,
            "got 7 at example 5",
        ),
        (
            "classification",
            {"xs": XS, "ys": LABELS, "lengths": LENGTHS[1:]},
            ValueError,
            r"lengths must have shape \[N\] = \(40,\), .* got \(39,\)",
        ),
        (
            "classification",
            {"xs": XS, "ys": LABELS, "lengths": LENGTHS * 1.0},
            TypeError,
            "lengths must be ints, got dtype float64",
        ),
        (
            "classification",
            {"xs": XS, "ys": LABELS, "length": LENGTHS},
            ValueError,
            "may only contain the arrays xs, ys, lengths, got 'length'; did you mean 'lengths'",
        ),
        # ys
        (
            "classification",
            {"xs": XS, "ys": REALS},
            TypeError,
            "kind='classification' needs int class labels in ys, got dtype float64",
        ),
        (
            "classification",
            {"xs": XS, "ys": _with_entry(LABELS, -1, 2)},
            ValueError,
            r"ys must contain ids from 0 .* got -1 at ys\[2\]",
        ),
        (
            "classification",
            {"xs": XS, "ys": LABELS[:-1]},
            ValueError,
            r"needs ys of shape \[N\] with N = 40 as in xs, got \(39,\)",
        ),
        ("classification", {"xs": XS, "ys": TOKENS}, ValueError, r"\[N\] .* got \(40, 6\)"),
        (
            "sequence_classification",
            {"xs": XS, "ys": TOKENS[:, 1:]},
            ValueError,
            r"needs ys of shape \[N, T\] with N = 40, T = 6 as in xs, got \(40, 5\)",
        ),
        ("sequence_classification", {"xs": XS, "ys": LABELS}, ValueError, r"got \(40,\)"),
        (
            "sequence_classification",
            {"xs": XS, "ys": TOKENS * 1.0},
            TypeError,
            "use a regression kind",
        ),
        (
            "regression",
            {"xs": XS, "ys": LABELS},
            TypeError,
            "'regression' needs float values in ys, got dtype int64; .* use a classification kind",
        ),
        (
            "regression",
            {"xs": XS, "ys": REALS[:-1]},
            ValueError,
            r"needs ys of shape \[N\] or \[N, K\] with N = 40 as in xs, got \(39,\)",
        ),
        ("regression", {"xs": XS, "ys": XS}, ValueError, r"got \(40, 6, 3\)"),
        ("regression", {"xs": XS, "ys": XS[:, 0, :0]}, ValueError, r"got \(40, 0\)"),
        (
            "regression",
            {"xs": XS, "ys": _with_entry(REALS, np.inf, 7)},
            ValueError,
            r"ys must be finite .* got inf at ys\[7, 0\]",
        ),
        (
            "sequence_regression",
            {"xs": XS, "ys": XS[:, 1:]},
            ValueError,
            r"\[N, T\] or \[N, T, K\] with N = 40, T = 6 as in xs, got \(40, 5, 3\)",
        ),
        ("sequence_regression", {"xs": XS, "ys": REALS}, ValueError, r"got \(40,\)"),
        (
            "sequence_regression",
            {"xs": XS, "ys": XS, "lengths": LENGTHS - 1, "names": LABELS},
            ValueError,
            "may only contain the arrays .*, got 'names'",
        ),
    ],
)
def test_invalid_arrays_raise(
    tmp_path: Path, kind: Any, arrays: dict, error: type[Exception], message: str
):
    with pytest.raises(error, match=message) as exc_info:
        Arrays(_save(tmp_path, **arrays), kind).load()
    assert str(exc_info.value).startswith("Arrays: ")


def test_nan_in_valid_step_raises_despite_nan_padding(tmp_path: Path):
    xs = _with_entry(_with_entry(XS, np.nan, 1, T - 1, 0), np.nan, 9, 0, 2)
    path = _save(tmp_path, xs=xs, ys=LABELS, lengths=LENGTHS - 1)
    with pytest.raises(ValueError, match=r"got nan at xs\[9, 0, 2\]"):
        Arrays(path, "classification").load()


def test_ragged_arrays_raise_and_suggest_padding(tmp_path: Path):
    ragged = np.empty(2, object)
    ragged[:] = [np.zeros(2), np.zeros(3)]
    with pytest.raises(
        ValueError, match="Arrays: xs must be a numeric array, got .* pad them and save"
    ):
        Arrays(_save(tmp_path, xs=ragged, ys=LABELS), "classification").load()


def test_too_few_examples_raise(tmp_path: Path):
    path = _save(tmp_path, xs=XS[:4], ys=LABELS[:4])
    with pytest.raises(
        ValueError, match="Arrays: .* at least 1 examples each, got 3, 0 and 1 of 4; 10 examples"
    ):
        Arrays(path, "classification").load()


def test_missing_or_non_npz_file_raises(tmp_path: Path):
    np.save(tmp_path / "one.npy", XS)
    with pytest.raises(ValueError, match=r"Arrays: .*one.npy' must be an .npz file"):
        Arrays(str(tmp_path / "one.npy"), "classification").load()
    _save(tmp_path, xs=XS, ys=LABELS)
    with pytest.raises(FileNotFoundError, match="Arrays: no file .* did you mean 'mine.npz'"):
        Arrays(str(tmp_path / "mime.npz"), "classification").load()


@pytest.mark.parametrize(
    "save, offset", [(np.savez, 1000), (np.savez_compressed, 56), (np.savez_compressed, 1000)]
)
def test_corrupted_npz_file_raises(tmp_path: Path, save: Any, offset: int):
    path = tmp_path / "mine.npz"
    save(path, xs=XS, ys=LABELS)
    content = path.read_bytes()
    path.write_bytes(content[:offset] + b"\xff" * 60 + content[offset + 60 :])
    with pytest.raises(ValueError, match="Arrays: .* is corrupted"):
        Arrays(str(path), "classification").load()
    path.write_bytes(content[:1000])
    with pytest.raises(ValueError, match="Arrays: .* must be an .npz file, got .* truncated"):
        Arrays(str(path), "classification").load()


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"path": 1}, TypeError, "Arrays: path must be a non-empty string, got 1"),
        (
            {"kind": "classify"},
            ValueError,
            "Arrays: kind must be one of classification, .* got 'classify'",
        ),
        ({"test_fraction": -0.1}, ValueError, "Arrays: test_fraction must be between 0 and 1"),
        ({"validation_fraction": 0.8}, ValueError, "must be below 1, got 0.8"),
        (
            {"seed": -3},
            ValueError,
            "Arrays: seed must be an int from 0 to 9223372036854775807, got -3",
        ),
    ],
)
def test_invalid_options_raise(options: dict[str, Any], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        Arrays(**{"path": "mine.npz", "kind": "regression", **options})
