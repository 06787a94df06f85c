"""Classification of handwritten digits, pixel by pixel or row by row."""

from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np

from jrnn import checks
from jrnn.tasks import common
from jrnn.tasks.task import Data, Split, Task

Order = Literal["pixel", "row", "permuted"]

_SIDE = 8
_PERMUTATION_SEED = 64  # constant, so that the permutation does not depend on `Digits.seed`


@dataclass(frozen=True)
class Digits(Task):
    """Classification of handwritten digits: the 1797 images of 8 by 8 pixels in scikit-learn.

    Of each class, about 70% of the images are for training, 10% for validation and 20% for testing.
    Gray values (0 to 16 in scikit-learn) are normalized by the mean and standard deviation of the
    training split. The metric is the accuracy.

    Args:
      order: "pixel", T = 64 steps of one pixel each, in row-major order; "permuted", the same but
        in a fixed random order; or "row", T = 8 steps of 8 pixels each.
      seed: seed of the split.

    Raises:
      ImportError: scikit-learn is not installed.
      ValueError: `order` is not one of the three, or `seed` is not an int from 0 to 2⁶³ - 1.

    >>> data = Digits(order="row").load()
    >>> data.train.xs.shape, data.image(data.train.xs[0]).shape
    ((1259, 8, 8), (8, 8))

    References:
      Alpaydin and Kaynak, 1998, Optical recognition of handwritten digits (the images).
      Le, Jaitly and Hinton, 2015, A simple way to initialize recurrent networks of rectified linear
      units (the orders "pixel" and "permuted", on MNIST).
    """

    order: Order = "pixel"
    seed: int = 0

    def __post_init__(self) -> None:
        checks.one_of("Digits", "order", self.order, get_args(Order))
        checks.int_between("Digits", "seed", self.seed, 0, checks.MAX_SEED)

    def load(self) -> Data:
        images, labels = _load_images()
        permutation = np.arange(_SIDE * _SIDE)
        if self.order == "permuted":
            permutation = np.random.default_rng(_PERMUTATION_SEED).permutation(permutation)
        parts = _stratified_split(labels, np.random.default_rng(self.seed))
        scaler = common.StandardScaler.fit(images[parts[0]].reshape(-1, 1))
        shape = (_SIDE, _SIDE) if self.order == "row" else (_SIDE * _SIDE, 1)
        xs = scaler.transform(images[:, permutation, None]).reshape(-1, *shape)
        train, validation, test = (Split(xs=xs[part], ys=labels[part]) for part in parts)
        return Data(
            train=train,
            validation=validation,
            test=test,
            target="class",
            metric="accuracy",
            input_size=shape[1],
            output_size=10,
            baseline=common.most_frequent_baseline("most frequent class", train.ys, test.ys),
            baseline_outputs=common.log_frequencies(train.ys, 10),
            input_scaler=common.StandardScaler(scaler.mean * shape[1], scaler.std * shape[1]),
            image=partial(_to_image, permutation=permutation, scaler=scaler),
            class_names=tuple("0123456789"),
        )


def _load_images() -> tuple[np.ndarray, np.ndarray]:
    """Returns the flattened images `[N, 64]`, and the labels `[N]` int32."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "Digits: the images are in scikit-learn, which is not installed; run "
            "pip install 'jrnn[demo]'"
        ) from error
    images, labels = load_digits(return_X_y=True)
    return np.asarray(images), np.asarray(labels).astype(np.int32)


def _stratified_split(labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Returns the indices of train, validation and test, with the same fractions of every class."""
    parts: list[list[np.ndarray]] = [[], [], []]
    for label in np.unique(labels):
        indices = rng.permutation(np.flatnonzero(labels == label))
        n_train, n_validation, _ = common.split_sizes(len(indices), validation=0.1, test=0.2)
        pieces = np.split(indices, [n_train, n_train + n_validation])
        for part, piece in zip(parts, pieces, strict=True):
            part.append(piece)
    return tuple(np.sort(np.concatenate(part)) for part in parts)


def _to_image(x: np.ndarray, permutation: np.ndarray, scaler: common.StandardScaler) -> np.ndarray:
    """Returns the image `[8, 8]` of one example, with the original gray values, 0 to 16."""
    pixels = np.empty(_SIDE * _SIDE)
    pixels[permutation] = scaler.invert(np.asarray(x).reshape(-1, 1))[:, 0]
    return pixels.reshape(_SIDE, _SIDE)
