"""State tracking: against things that are really moved about."""

import itertools

import numpy as np
import pytest

from jrnn.tasks import Tracking


@pytest.mark.parametrize("degree", [2, 3, 4])
def test_targets_say_how_the_things_lie(degree: int):
    data = Tracking(degree, length=11, test_length=15, train_size=20, eval_size=9).load()
    orders = list(itertools.permutations(range(degree)))
    assert data.input_size == data.output_size == len(orders)
    splits = (data.train, data.validation, data.test)
    for x, y in (pair for split in splits for pair in zip(split.xs, split.ys, strict=True)):
        lying = list(range(degree))  # thing k lies at place lying[k]
        for step, seen in zip(x.tolist(), y.tolist(), strict=True):
            lying = [orders[step][place] for place in lying]
            assert orders[seen] == tuple(lying)


def test_degree_two_is_parity():
    data = Tracking(2, length=13, train_size=50, eval_size=4).load()
    np.testing.assert_array_equal(data.train.ys, np.cumsum(data.train.xs, axis=1) % 2)


def test_order_of_the_inputs_counts_from_degree_three():
    found = {}
    data = Tracking(3, length=2, train_size=500, eval_size=4).load()
    for (first, second), (_, y) in zip(data.train.xs.tolist(), data.train.ys.tolist(), strict=True):
        found[first, second] = y
    assert any(found[a, b] != found[b, a] for a, b in itertools.combinations(range(6), 2))


def test_test_sequences_may_be_longer_and_the_last_step_is_scored():
    data = Tracking(3, length=5, test_length=9, train_size=20, eval_size=6).load()
    for split, length in ((data.train, 5), (data.validation, 5), (data.test, 9)):
        assert split.xs.shape[1] == length and split.scored is not None
        assert split.scored[:, -1].all() and split.scored.sum() == len(split.xs)


def test_parts_are_drawn_apart():
    data = Tracking(3, length=6, train_size=40, eval_size=40).load()
    assert not np.array_equal(data.train.xs, data.validation.xs)
    assert not np.array_equal(data.validation.xs, data.test.xs)


def test_baseline_is_one_guess_at_the_last_step():
    data = Tracking(3, length=6, train_size=3000, eval_size=3000).load()
    assert data.baseline == ("constant guess", pytest.approx(1 / 6, abs=0.03))
    guess = np.bincount(data.train.ys[:, -1]).argmax()
    assert data.baseline[1] == np.mean(data.test.ys[:, -1] == guess)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"degree": 1}, "Tracking: degree must be an int of at least 2, got 1"),
        ({"degree": 7}, "Tracking: degree must be at most 6, with its 720 permutations, got 7"),
        ({"length": 0}, "Tracking: length must be a positive int, got 0"),
        ({"test_length": 0}, "Tracking: test_length must be a positive int, got 0"),
        ({"train_size": 0}, "Tracking: train_size must be a positive int, got 0"),
        ({"eval_size": 0}, "Tracking: eval_size must be a positive int, got 0"),
        ({"seed": -1}, "Tracking: seed must be an int of at least 0, got -1"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Tracking(**options)
