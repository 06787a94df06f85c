"""State tracking, compared with positions that are permuted step by step."""

import itertools

import numpy as np
import pytest

from jrnn.tasks import Tracking


@pytest.mark.parametrize("degree", [2, 3, 4])
def test_targets_are_products_of_permutations(degree: int):
    data = Tracking(degree, length=11, test_length=15, train_size=20, eval_size=9).load()
    permutations = list(itertools.permutations(range(degree)))
    assert data.input_size == data.output_size == len(permutations)
    splits = (data.train, data.validation, data.test)
    for x, y in (pair for split in splits for pair in zip(split.xs, split.ys, strict=True)):
        positions = list(range(degree))  # element k is at positions[k]
        for input_id, target_id in zip(x.tolist(), y.tolist(), strict=True):
            positions = [permutations[input_id][position] for position in positions]
            assert permutations[target_id] == tuple(positions)


def test_degree_two_is_parity():
    data = Tracking(2, length=13, train_size=50, eval_size=4).load()
    np.testing.assert_array_equal(data.train.ys, np.cumsum(data.train.xs, axis=1) % 2)


def test_degree_three_is_not_commutative():
    products = {}
    data = Tracking(3, length=2, train_size=500, eval_size=4).load()
    for (first, second), (_, y) in zip(data.train.xs.tolist(), data.train.ys.tolist(), strict=True):
        products[first, second] = y
    assert any(products[a, b] != products[b, a] for a, b in itertools.combinations(range(6), 2))


def test_test_split_has_test_length_and_metric_uses_only_the_last_step():
    data = Tracking(3, length=5, test_length=9, train_size=20, eval_size=6).load()
    for split, length in ((data.train, 5), (data.validation, 5), (data.test, 9)):
        assert split.xs.shape[1] == length and split.metric_mask is not None
        assert split.metric_mask[:, -1].all() and split.metric_mask.sum() == len(split.xs)


def test_splits_are_different():
    data = Tracking(3, length=6, train_size=40, eval_size=40).load()
    assert not np.array_equal(data.train.xs, data.validation.xs)
    assert not np.array_equal(data.validation.xs, data.test.xs)


def test_baseline_predicts_most_frequent_permutation_at_last_step():
    data = Tracking(3, length=6, train_size=3000, eval_size=3000).load()
    assert data.baseline == ("most frequent class", pytest.approx(1 / 6, abs=0.03))
    prediction = np.bincount(data.train.ys[:, -1]).argmax()
    assert data.baseline[1] == np.mean(data.test.ys[:, -1] == prediction)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"degree": 1}, "Tracking: degree must be an int of at least 2, got 1"),
        ({"degree": 7}, "Tracking: degree must be at most 6, which has 720 permutations, got 7"),
        ({"length": 0}, "Tracking: length must be a positive int, got 0"),
        ({"test_length": 0}, "Tracking: test_length must be a positive int, got 0"),
        ({"train_size": 0}, "Tracking: train_size must be a positive int, got 0"),
        ({"eval_size": 0}, "Tracking: eval_size must be a positive int, got 0"),
        ({"seed": -1}, "Tracking: seed must be an int from 0 to 9223372036854775807, got -1"),
    ],
)
def test_invalid_options_raise(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Tracking(**options)
