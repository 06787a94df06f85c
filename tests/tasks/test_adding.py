"""The adding problem, compared with explicit sums."""

import numpy as np
import pytest

from jrnn.tasks import Adding


@pytest.mark.parametrize("length", [2, 3, 7, 40])
def test_target_is_the_sum_of_one_marked_value_in_each_half(length: int):
    data = Adding(length=length, train_size=200, eval_size=50).load()
    for split, size in ((data.train, 200), (data.validation, 50), (data.test, 50)):
        assert split.xs.shape == (size, length, 2)
        for x, y in zip(split.xs, split.ys, strict=True):
            marked = [t for t in range(length) if x[t, 1] == 1]
            assert all(x[t, 1] == 0 for t in range(length) if t not in marked)
            assert len(marked) == 2
            assert marked[0] < length // 2 <= marked[1]
            assert y[0] == pytest.approx(float(x[marked[0], 0]) + float(x[marked[1], 0]), abs=1e-6)


def test_values_are_uniform_and_markers_are_uniform_in_each_half():
    xs = Adding(length=9, train_size=4000, eval_size=1).load().train.xs
    assert 0 <= xs[..., 0].min() and xs[..., 0].max() < 1
    fractions = np.histogram(xs[..., 0], bins=10, range=(0, 1))[0] / xs[..., 0].size
    np.testing.assert_allclose(fractions, 0.1, atol=0.01)
    marked = xs[..., 1].mean(axis=0)
    np.testing.assert_allclose(marked[:4], 1 / 4, atol=0.03)
    np.testing.assert_allclose(marked[4:], 1 / 5, atol=0.03)


def test_splits_have_separate_random_streams():
    data = Adding(length=10, train_size=50, eval_size=50).load()
    assert not np.array_equal(data.train.xs, data.validation.xs)
    assert not np.array_equal(data.validation.xs, data.test.xs)
    longer = Adding(length=10, train_size=60, eval_size=50).load()
    assert np.array_equal(longer.test.xs, data.test.xs)


def test_baseline_predicts_training_mean_and_is_about_one_sixth():
    data = Adding(length=5).load()
    prediction = sum(map(float, data.train.ys[:, 0])) / len(data.train.ys)
    expected = sum((float(y) - prediction) ** 2 for y in data.test.ys[:, 0]) / len(data.test.ys)
    name, value = data.baseline
    assert name == "constant prediction"
    assert value == pytest.approx(expected, rel=1e-5)
    assert value == pytest.approx(1 / 6, rel=0.1)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"length": 1}, "Adding: length must be an int of at least 2, got 1"),
        ({"length": 2.0}, "Adding: length must be an int of at least 2, got 2.0"),
        ({"train_size": 0}, "Adding: train_size must be a positive int, got 0"),
        ({"eval_size": -1}, "Adding: eval_size must be a positive int, got -1"),
        ({"seed": -1}, "Adding: seed must be an int from 0 to 9223372036854775807, got -1"),
        ({"seed": True}, "Adding: seed must be an int from 0 to 9223372036854775807, got True"),
    ],
)
def test_invalid_options_raise(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Adding(**options)
