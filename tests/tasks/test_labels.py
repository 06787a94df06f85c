"""Labels as texts, one-hot rows, ints with gaps; ignored labels and NaN targets."""

import numpy as np
import pytest

from jrnn.tasks import Arrays, load
from jrnn.tasks.conversion import encode_targets
from jrnn.tasks.labels import IGNORED_LABEL, encode, find

N, T = 40, 5
RNG = np.random.default_rng(7)
XS = RNG.normal(size=(N, T, 2))
XS[:, 0, 0] = np.arange(N)
IDS = np.arange(N) % 3


def load_arrays(folder, ys, kind="classification", **arrays):
    np.savez(folder / "mine.npz", xs=XS, ys=ys, **arrays)
    return load(Arrays(str(folder / "mine.npz"), kind, normalize=False))


def labels_by_example(data):
    """Returns the label ids in the order of the examples in the file."""
    splits = (data.train, data.validation, data.test)
    rows = np.concatenate([split.xs[:, 0, 0] for split in splits])
    return np.concatenate([split.ys for split in splits])[np.argsort(rows)]


@pytest.mark.parametrize(
    ("ys", "names"),
    [
        (IDS, None),
        (IDS + 1, ("1", "2", "3")),
        (np.array([2, 30, 400])[IDS], ("2", "30", "400")),
        (np.array(["ant", "bee", "cat"])[IDS], ("ant", "bee", "cat")),
        (np.eye(3)[IDS], None),
        (np.eye(3, dtype=bool)[IDS], None),
    ],
    ids=["from 0", "from 1", "gaps", "texts", "one-hot", "one-hot bools"],
)
def test_labels_become_ids_from_0_with_names(ys, names, tmp_path):
    data = load_arrays(tmp_path, ys)
    np.testing.assert_array_equal(labels_by_example(data), IDS)
    assert (data.output_size, data.class_names) == (3, names)
    np.testing.assert_array_equal(encode_targets(data.spec, ys, XS.shape), IDS)


def test_one_hot_rows_keep_classes_without_examples(tmp_path):
    data = load_arrays(tmp_path, np.eye(5)[IDS])
    assert (data.output_size, data.class_names) == (5, None)


@pytest.mark.parametrize("as_text", [False, True])
def test_ignored_labels_are_not_a_class(as_text, tmp_path):
    is_ignored = np.arange(N) % 4 == 1
    names = np.array(["ant", "bee", "cat"])[IDS]
    ys = np.where(is_ignored, "", names) if as_text else np.where(is_ignored, -100, IDS)
    data = load_arrays(tmp_path, ys)
    expected = np.where(is_ignored, IGNORED_LABEL, IDS)
    np.testing.assert_array_equal(labels_by_example(data), expected)
    assert data.output_size == 3
    np.testing.assert_array_equal(encode_targets(data.spec, ys, XS.shape), expected)
    # The baseline is the most frequent class among the labels that are not ignored.
    train, test = (split.ys[split.ys >= 0].tolist() for split in (data.train, data.test))
    best = max(range(3), key=train.count)
    assert data.baseline[1] == pytest.approx(test.count(best) / len(test))


def test_ignored_labels_per_step_and_padding(tmp_path):
    ys = RNG.integers(0, 3, (N, T))
    ys[:, 0] = -100
    lengths = np.full(N, T - 1)
    ys[:, -1] = -7  # padding
    data = load_arrays(tmp_path, ys, "sequence_classification", lengths=lengths)
    assert (data.train.ys[:, 0] == IGNORED_LABEL).all() and (data.train.ys[:, -1] == 0).all()
    assert data.output_size == 3


@pytest.mark.parametrize("kind", ["ints", "unsigned", "gaps", "texts", "bools", "one-hot"])
def test_padded_labels_are_read_as_in_training(kind, tmp_path):
    """The labels of padding may have any value, also in an evaluation and in fine-tuning."""
    ids = RNG.integers(0, 2 if kind == "bools" else 3, (N, T))
    lengths = RNG.integers(1, T, N)
    padding = np.arange(T) >= lengths[:, None]
    ys = {
        "ints": np.where(padding, -7, ids),
        "unsigned": np.where(padding, 99, np.array([2, 30, 200])[ids]).astype(np.uint8),
        "gaps": np.where(padding, 99, np.array([2, 30, 400])[ids]),
        "texts": np.where(padding, "none", np.array(["ant", "bee", "cat"])[ids]),
        "bools": ids == 1,
        "one-hot": np.where(padding[..., None], 0, np.eye(3)[ids]),
    }[kind]
    data = load_arrays(tmp_path, ys, "sequence_classification", lengths=lengths)
    encoded = encode_targets(data.spec, ys, XS.shape, lengths)
    np.testing.assert_array_equal(encoded, np.where(padding, 0, ids))
    task = Arrays(str(tmp_path / "mine.npz"), "sequence_classification", normalize=False)
    again = load(task, data.spec)
    np.testing.assert_array_equal(labels_by_example(again), np.where(padding, 0, ids))


def test_nan_targets_are_left_out_of_all_statistics(tmp_path):
    ys = RNG.normal(5, 3, (N, T, 2))
    ys[RNG.random(ys.shape) < 0.3] = np.nan
    np.savez(tmp_path / "mine.npz", xs=XS, ys=ys)
    task = Arrays(str(tmp_path / "mine.npz"), "sequence_regression")
    data = load(task)
    raw = load(Arrays(task.path, task.kind, normalize=False))
    for channel in range(2):
        known = [y for y in raw.train.ys[..., channel].ravel().tolist() if y == y]
        mean = sum(known) / len(known)
        std = (sum((y - mean) ** 2 for y in known) / len(known)) ** 0.5
        assert data.target_scaler.mean[channel] == pytest.approx(mean, rel=1e-6)
        assert data.target_scaler.std[channel] == pytest.approx(std, rel=1e-6)
    np.testing.assert_array_equal(np.isnan(data.train.ys), np.isnan(raw.train.ys))
    squares = [y**2 for y in data.test.ys.ravel().tolist() if y == y]
    assert data.baseline[1] == pytest.approx(sum(squares) / len(squares), rel=1e-4)


@pytest.mark.parametrize(
    ("ys", "kind", "message"),
    [
        (np.where(IDS == 0, -1, IDS), "classification", "or -100 for labels to ignore, got -1"),
        (np.full(N, -100), "classification", "labels other than -100 in the training split"),
        (np.full(N, ""), "classification", "labels other than -100 in the training split"),
        (np.full((N, 1), np.nan), "regression", "values other than NaN in the training split"),
        (
            np.stack([np.arange(N) * 1.0, np.full(N, np.nan)], 1),
            "regression",
            "each channel of the training split, got none in channel 1",
        ),
        (np.eye(3)[IDS] * 0.5, "classification", r"ys of shape \[N\] with N = 40"),
    ],
)
def test_invalid_targets_raise(ys, kind, message, tmp_path):
    with pytest.raises(ValueError, match=f"Arrays: .*{message}"):
        load_arrays(tmp_path, ys, kind)


def test_unknown_label_of_other_data_raises(tmp_path):
    data = load_arrays(tmp_path, np.array(["ant", "bee", "cat"])[IDS])
    with pytest.raises(ValueError, match="must be classes of the run, .* got 'dog'"):
        encode_targets(data.spec, np.full(N, "dog"), XS.shape)
    for label in (3, -1):
        ys = np.where(np.arange(N) == 5, label, IDS)
        with pytest.raises(ValueError, match=rf"in 0..2, .* or -100, got {label}$"):
            encode_targets(data.spec, ys, XS.shape)


@pytest.mark.parametrize(
    ("ys", "padding"),
    [
        (np.array(["ant", "bee", "cat"])[RNG.integers(0, 3, (N, T))], "fly"),
        (RNG.integers(0, 3, (N, T)), -7),
        (RNG.integers(1, 4, (N, T)).astype(np.uint8), 255),
        (np.eye(3)[RNG.integers(0, 3, (N, T))], 0.5),
    ],
    ids=["texts", "ints", "unsigned", "one-hot"],
)
def test_labels_on_padding_may_have_any_values(ys, padding, tmp_path):
    lengths = np.full(N, T - 2)
    ys = ys.copy()
    ys[:, T - 2 :] = padding
    data = load_arrays(tmp_path, ys, "sequence_classification", lengths=lengths)
    expected = labels_by_example(data)
    actual = encode_targets(data.spec, ys, XS.shape, lengths)
    np.testing.assert_array_equal(actual, expected)
    task = Arrays(str(tmp_path / "mine.npz"), "sequence_classification", normalize=False)
    np.testing.assert_array_equal(labels_by_example(task.load_like(data.spec)), expected)


def test_text_of_a_number_is_not_ignored(tmp_path):
    ys = np.array(["-100", "5", ""])[IDS]
    data = load_arrays(tmp_path, ys)
    assert data.class_names == ("-100", "5")
    np.testing.assert_array_equal(encode_targets(data.spec, ys, XS.shape), labels_by_example(data))


def test_names_of_classes_are_part_of_the_fingerprint(tmp_path):
    names = np.array(["ant", "bee", "cat", "dog"])
    first, second, again = (load_arrays(tmp_path, names[IDS + k]).fingerprint for k in (0, 1, 0))
    assert first == again != second


def test_ints_are_ids_unless_the_names_are_numbers():
    np.testing.assert_array_equal(find(np.array([1, 0, -100]), ("a", "b")), [1, 0, -100])
    np.testing.assert_array_equal(find(np.array([7, 3, -100]), ("3", "7")), [1, 0, -100])
    encoded = encode(np.array([7, 3, 7]), np.ones(3, bool))
    assert encoded.ids.tolist() == [1, 0, 1] and encoded.names == ("3", "7")
