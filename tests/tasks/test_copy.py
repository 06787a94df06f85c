"""The copy memory problem, compared with the sequence layout of the paper."""

import numpy as np
import pytest

from jrnn.tasks import Copy


def _reference_layout(message: list[int], delay: int, symbols: int):
    """Returns inputs, targets and metric mask, as Arjovsky et al. describe them."""
    blank, delimiter, k = symbols, symbols + 1, len(message)
    xs, ys, metric_mask = [], [], []
    for t in range(delay + 2 * k):
        xs.append(message[t] if t < k else delimiter if t == k + delay - 1 else blank)
        ys.append(message[t - delay - k] if t >= delay + k else blank)
        metric_mask.append(t >= delay + k)
    return xs, ys, metric_mask


@pytest.mark.parametrize("delay, symbols, k", [(1, 2, 1), (7, 3, 4), (30, 8, 10)])
def test_examples_have_the_layout_of_the_paper(delay: int, symbols: int, k: int):
    task = Copy(delay=delay, symbols=symbols, copy_length=k, train_size=20, eval_size=6)
    data = task.load()
    assert (data.input_size, data.output_size) == (symbols + 2, symbols + 1)
    for split, size in ((data.train, 20), (data.validation, 6), (data.test, 6)):
        assert split.metric_mask is not None and len(split.xs) == size
        for x, y, mask in zip(split.xs, split.ys, split.metric_mask, strict=True):
            message = x[:k].tolist()
            assert set(message) <= set(range(symbols))
            expected = _reference_layout(message, delay, symbols)
            assert (x.tolist(), y.tolist(), mask.tolist()) == expected


def test_symbols_are_uniform_at_every_position():
    xs = Copy(delay=1, symbols=4, copy_length=3, train_size=8000, eval_size=1).load().train.xs
    for position in range(3):
        np.testing.assert_allclose(np.bincount(xs[:, position]) / 8000, 1 / 4, atol=0.03)


def test_splits_are_different():
    data = Copy(delay=2, train_size=40, eval_size=40).load()
    assert not np.array_equal(data.train.xs, data.validation.xs)
    assert not np.array_equal(data.validation.xs, data.test.xs)


def test_baseline_predicts_most_frequent_symbol():
    data = Copy(delay=3, symbols=5, copy_length=4, train_size=200, eval_size=300).load()
    counts = [int((data.train.ys[:, -4:] == s).sum()) for s in range(5)]
    prediction = counts.index(max(counts))
    expected = sum(int(y) == prediction for row in data.test.ys for y in row[-4:]) / (300 * 4)
    assert data.baseline == ("most frequent symbol", pytest.approx(expected))
    assert data.baseline[1] == pytest.approx(1 / 5, abs=0.05)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"symbols": 1}, "Copy: symbols must be an int of at least 2, got 1"),
        ({"delay": 0}, "Copy: delay must be a positive int, got 0"),
        ({"copy_length": 0}, "Copy: copy_length must be a positive int, got 0"),
        ({"train_size": 0}, "Copy: train_size must be a positive int, got 0"),
        ({"eval_size": 0}, "Copy: eval_size must be a positive int, got 0"),
        ({"seed": 0.5}, "Copy: seed must be an int from 0 to 9223372036854775807, got 0.5"),
    ],
)
def test_invalid_options_raise(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Copy(**options)
