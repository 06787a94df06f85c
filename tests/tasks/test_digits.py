"""Digits, compared with the images of scikit-learn."""

import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jrnn.tasks import Data, Digits
from jrnn.tasks.digits import Order

DATA, LABELS = map(np.asarray, load_digits(return_X_y=True))
IMAGES = DATA.reshape(-1, 8, 8)
ORDERS: tuple[Order, ...] = ("pixel", "row", "permuted")


@pytest.fixture(scope="module")
def loaded() -> dict[str, Data]:
    """The data in every order."""
    return {order: Digits(order=order).load() for order in ORDERS}


def _splits(data: Data):
    return (data.train, data.validation, data.test)


def _to_images(data: Data, xs: np.ndarray) -> np.ndarray:
    assert data.image is not None
    return np.stack([data.image(x) for x in xs])


@pytest.mark.parametrize("order", ORDERS)
def test_image_recovers_every_source_image_once(loaded: dict[str, Data], order: str):
    data = loaded[order]
    images = np.concatenate([_to_images(data, split.xs) for split in _splits(data)])
    np.testing.assert_allclose(images, np.round(images), atol=1e-4)
    labels = np.concatenate([split.ys for split in _splits(data)])
    actual = sorted((label, *row) for label, row in zip(labels, _rows(images), strict=True))
    expected = sorted((label, *row) for label, row in zip(LABELS, _rows(IMAGES), strict=True))
    assert np.array_equal(actual, expected)


def _rows(images: np.ndarray) -> list[list[int]]:
    return np.round(images).astype(int).reshape(-1, 64).tolist()


def test_pixels_are_in_row_major_order(loaded: dict[str, Data]):
    data = loaded["pixel"]
    image = _to_images(data, data.test.xs[:1])[0]
    pixels = [image[row, column] for row in range(8) for column in range(8)]
    order = np.argsort(pixels, kind="stable")
    assert data.test.xs.shape[1:] == (64, 1)
    assert (np.diff(data.test.xs[0, order, 0]) >= 0).all()
    assert np.array_equal(loaded["row"].test.xs.reshape(-1, 64, 1), data.test.xs)


def test_permutation_does_not_depend_on_the_seed(loaded: dict[str, Data]):
    plain, permuted = loaded["pixel"].train.xs[..., 0], loaded["permuted"].train.xs[..., 0]
    assert np.array_equal(np.sort(plain), np.sort(permuted))
    # The columns are equal up to their order, so all examples have the same permutation.
    assert sorted(map(tuple, plain.T.tolist())) == sorted(map(tuple, permuted.T.tolist()))
    assert np.mean(plain == permuted) < 0.6
    other_seed = Digits(order="permuted", seed=7).load()
    assert other_seed.image is not None and loaded["permuted"].image is not None
    x = np.arange(64.0)
    one, other = (image(x).ravel() for image in (other_seed.image, loaded["permuted"].image))
    assert np.array_equal(np.argsort(one), np.argsort(other))


def test_splits_are_stratified(loaded: dict[str, Data]):
    data = loaded["pixel"]
    for split, fraction in zip(_splits(data), (0.7, 0.1, 0.2), strict=True):
        for digit in range(10):
            class_size = np.sum(LABELS == digit)
            assert abs(np.sum(split.ys == digit) - fraction * class_size) <= 1


def test_split_depends_on_seed_and_not_on_order(loaded: dict[str, Data]):
    assert np.array_equal(loaded["row"].train.ys, loaded["permuted"].train.ys)
    other = Digits(seed=1).load()
    assert other.train.ys.shape == loaded["pixel"].train.ys.shape
    assert not np.array_equal(other.train.xs, loaded["pixel"].train.xs)


def test_normalization_uses_the_training_split(loaded: dict[str, Data]):
    data = loaded["pixel"]
    assert abs(data.train.xs.mean(dtype=np.float64)) < 1e-6
    assert abs(data.train.xs.std(dtype=np.float64) - 1) < 1e-6
    for split in (data.validation, data.test):
        assert abs(split.xs.mean(dtype=np.float64)) > 1e-6


def test_outlier_in_test_split_does_not_change_training_split(
    loaded: dict[str, Data], monkeypatch: pytest.MonkeyPatch
):
    images, labels = IMAGES.reshape(-1, 64), LABELS.astype(np.int32)
    target = _rows(_to_images(loaded["pixel"], loaded["pixel"].test.xs[:1]))[0]
    modified = images.copy()
    modified[(images == target).all(axis=1)] += 1e6
    monkeypatch.setattr("jrnn.tasks.digits._load_images", lambda: (modified, labels))
    data = Digits().load()
    assert np.array_equal(data.train.xs, loaded["pixel"].train.xs)
    assert data.test.xs.max() > 1e4


def test_baseline_predicts_most_frequent_training_class(loaded: dict[str, Data]):
    data = loaded["row"]
    counts = [list(data.train.ys).count(digit) for digit in range(10)]
    prediction = counts.index(max(counts))
    expected = sum(int(y) == prediction for y in data.test.ys) / len(data.test.ys)
    assert data.baseline == ("most frequent class", pytest.approx(expected))


def test_missing_scikit_learn_raises_with_install_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'jrnn\[demo\]'"):
        Digits().load()


def test_unknown_order_raises_with_suggestion():
    with pytest.raises(ValueError, match="Digits: order must be one of .* did you mean 'permuted'"):
        Digits(order="permute")  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        ValueError, match="Digits: seed must be an int from 0 to 9223372036854775807, got -1"
    ):
        Digits(seed=-1)
