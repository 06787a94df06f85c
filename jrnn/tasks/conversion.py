"""Conversion between data in the units of the user and the arrays of a network."""

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from jrnn import checks
from jrnn.tasks import common, labels
from jrnn.tasks import forecast as forecasts
from jrnn.tasks.task import DataSpec

UNKNOWN = "\N{REPLACEMENT CHARACTER}"
"""The entry of the vocabulary for characters that do not occur in the training split."""


class Predictions(NamedTuple):
    """Predictions for N examples, in the units and classes of the user.

    Attributes:
      outputs: outputs of the network, `[N, K]`, or `[N, T, K]` for targets at each step: logits for
        classes, normalized values otherwise. Zeros on padding.
      lengths: `[N]` ints, the number of valid steps of each example.
      classes: `[N]` or `[N, T]` ints, the most probable class; None for values.
      labels: the names of these classes, texts of the same shape; None if classes have no names.
      probabilities: `[N, K]` or `[N, T, K]`, the probability of each class; None for values.
      values: `[N, K]` or `[N, T, K]`, in the original units of the targets; None for classes. For a
        forecast K is steps times targets, as in `jrnn.tasks.forecast`.
      low: the lower ends of the intervals of a forecast, like `values`; None if it has none.
      high: the upper ends.
    """

    outputs: np.ndarray
    lengths: np.ndarray
    classes: np.ndarray | None = None
    labels: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    values: np.ndarray | None = None
    low: np.ndarray | None = None
    high: np.ndarray | None = None


def encode_text(text: str, vocabulary: Sequence[str]) -> np.ndarray:
    """Returns the id of each character as int32; unknown characters have the id of `UNKNOWN`."""
    index = {character: i for i, character in enumerate(vocabulary)}
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    distinct, inverse = np.unique(codes, return_inverse=True)
    ids = [index.get(chr(code), index.get(UNKNOWN, -1)) for code in distinct]
    return np.array(ids, np.int32)[inverse]


def encode_inputs(spec: DataSpec, xs: Any, lengths: Any | None) -> tuple[np.ndarray, np.ndarray]:
    """Converts inputs of a user to the inputs of a network.

    Args:
      spec: the properties of the training data.
      xs: an array `[N, T, input]` in the units of the user, tokens `[N, T]`, or a list of N
        examples: arrays `[T_n, input]` or `[T_n]`, or texts if there is a vocabulary.
      lengths: `[N]` ints, the number of valid steps; None means T, or T_n for a list.

    Returns:
      The inputs, `[N, T, input]` float32 or `[N, T]` int32 with zeros on padding, and `[N]` int32,
      the lengths.

    Raises:
      ValueError: a shape is wrong, a length is out of range, a valid entry is not finite, or a
        token is out of range.
      TypeError: the inputs are not numbers, tokens or texts.
    """
    if isinstance(xs, str):
        xs = [xs]
    if isinstance(xs, list | tuple):
        if lengths is not None:
            raise ValueError("predict: lengths must be None for a list of examples, got lengths")
        xs, lengths = _stack(spec, xs)
    xs = np.asarray(xs)
    _check_inputs(spec, xs)
    lengths = _check_lengths(xs, lengths)
    valid = np.arange(xs.shape[1]) < lengths[:, None]
    if spec.has_tokens:
        _require((xs >= 0) & (xs < spec.input_size), valid, xs, f"be in 0..{spec.input_size - 1}")
        return np.where(valid, xs, 0).astype(np.int32), lengths
    _require(np.isfinite(xs), valid[..., None], xs, "be finite")
    xs = np.where(valid[..., None], xs, 0)
    if spec.input_scaler is not None:
        xs = spec.input_scaler.transform(xs)
    xs = np.where(valid[..., None], xs, 0).astype(np.float32)
    _require(np.isfinite(xs), valid[..., None], xs, "be finite in float32 after normalization")
    return xs, lengths


def encode_targets(
    spec: DataSpec, ys: Any, shape: tuple[int, ...], lengths: np.ndarray | None = None
) -> np.ndarray:
    """Converts targets of a user to the targets of a network.

    Args:
      spec: the properties of the training data.
      ys: classes as ints, bools, names or one-hot rows, `[N]` or `[N, T]`; or values in original
        units, `[N]`, `[N, K]`, `[N, T]` or `[N, T, K]`. Labels of -100 and values of NaN are not
        scored.
      shape: the shape of the inputs, `(N, T, ...)`.
      lengths: `[N]` ints, the number of valid steps of each example; targets at later steps may
        have any values. None means T.

    Returns:
      `[N]` or `[N, T]` int32, or `[N, K]` or `[N, T, K]` float32.

    Raises:
      ValueError: the shape is wrong, or a class is unknown.
      TypeError: the dtype is wrong.
    """
    ys = np.asarray(ys)
    leading = shape[:2] if spec.per_step else shape[:1]
    if spec.has_classes:
        mask = np.ones(leading, bool)
        if spec.per_step and lengths is not None:
            mask = np.arange(shape[1]) < lengths[:, None]
        return labels.encode_like(ys, mask, spec.class_names, spec.output_size)
    if ys.dtype.kind not in "biuf":
        raise TypeError(f"data: ys must be real numbers, got dtype {ys.dtype}")
    if ys.shape == leading and spec.output_size == 1:
        ys = ys[..., None]
    if ys.shape != (*leading, spec.output_size):
        raise ValueError(f"data: ys must have shape {(*leading, spec.output_size)}, got {ys.shape}")
    return ys.astype(np.float32) if spec.target_scaler is None else spec.target_scaler.transform(ys)


def decode_outputs(
    spec: DataSpec,
    outputs: np.ndarray,
    lengths: np.ndarray,
    xs: np.ndarray,
    half_widths: np.ndarray | None = None,
) -> Predictions:
    """Converts the outputs of a network to the units and classes of the user.

    Args:
      spec: the properties of the training data.
      outputs: `[N, K]`, or `[N, T, K]` for targets at each step.
      lengths: `[N]` ints, the number of valid steps of each example.
      xs: the inputs of the network, whose current values a forecast begins with.
      half_widths: half of the width of the intervals of a point forecast, `[K]` in original units;
        None for no intervals.
    """
    if spec.forecast is not None:
        values, low, high = decode_forecast(spec, outputs, xs, half_widths)
        low, high = (
            None if ends is None else _zero_padding(spec, ends, lengths) for ends in (low, high)
        )
        values = _zero_padding(spec, values, lengths)
        return Predictions(outputs, lengths, values=values, low=low, high=high)
    if not spec.has_classes:
        values = _zero_padding(spec, spec.invert_targets(outputs), lengths)
        return Predictions(outputs, lengths, values=values)
    probabilities = np.exp(log_softmax(outputs))
    classes = outputs.argmax(axis=-1)
    names = spec.class_names or spec.vocabulary
    return Predictions(
        outputs,
        lengths,
        classes=_zero_padding(spec, classes, lengths),
        labels=None if names is None else np.array(names)[classes],
        probabilities=_zero_padding(spec, probabilities, lengths),
    )


def decode_forecast(
    spec: DataSpec, outputs: np.ndarray, xs: np.ndarray, half_widths: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Returns forecasts in original units, and the ends of their intervals.

    Args:
      spec: the properties of the training data.
      outputs: outputs of the network, `[..., num_outputs]`.
      xs: its inputs, `[..., input]`.
      half_widths: as in `decode_outputs`.

    Returns:
      Points, lower and upper ends, `[..., steps * K]`; the ends are None for points without
      `half_widths`.

    Raises:
      ValueError: the data are no forecast.
    """
    forecast = spec.forecast
    if forecast is None or spec.input_scaler is None or spec.target_scaler is None:
        raise ValueError("data: the task must be a forecast, got another one")
    current = forecasts.current_values(forecast, spec.input_scaler, xs)
    scale = np.asarray(spec.target_scaler.std)
    points = current + forecasts.point(forecast, outputs) * scale
    if forecast.distribution == "point":
        if half_widths is None:
            return points, None, None
        return points, points - half_widths, points + half_widths
    if forecast.distribution == "gaussian":
        mean, std = forecasts.gaussian(forecast, outputs)
        ends = [NormalDist().inv_cdf(q) for q in (forecast.quantiles[0], forecast.quantiles[-1])]
        low, high = (mean + end * std for end in ends)
    else:
        quantiles = forecasts.sorted_quantiles(forecast, outputs)
        low, high = quantiles[..., 0, :], quantiles[..., -1, :]
    return points, current + low * scale, current + high * scale


def decode_truth(spec: DataSpec, ys: np.ndarray, xs: np.ndarray) -> np.ndarray:
    """Returns real-valued targets in original units.

    Args:
      spec: the properties of the training data.
      ys: the targets of the network, `[..., K]`.
      xs: the inputs of the network, `[..., input]`, whose current values a forecast begins with.
    """
    values = spec.invert_targets(ys)
    if spec.forecast is None or spec.input_scaler is None:
        return values
    return forecasts.current_values(spec.forecast, spec.input_scaler, xs) + values


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Returns the log-probabilities of classes on the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _zero_padding(spec: DataSpec, array: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Sets the steps of padding to zero, if there is an axis of steps."""
    if not spec.per_step:
        return array
    return common.zero_padding(array, np.arange(array.shape[1]) < lengths[:, None])


def _stack(spec: DataSpec, examples: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Returns examples of different lengths as one array with zeros on padding, and the lengths."""
    if not examples:
        raise ValueError("predict: xs must have at least one example, got an empty list")
    if isinstance(examples[0], str):
        if spec.vocabulary is None:
            raise TypeError(
                "predict: xs must be numbers, got texts; only the run of a text task reads texts"
            )
        vocabulary = spec.vocabulary
        examples = [encode_text(text, vocabulary) for text in examples]
    arrays = [np.asarray(example) for example in examples]
    axes = 1 if spec.has_tokens else 2
    for number, array in enumerate(arrays):
        if array.ndim != axes or array.shape[1:] != arrays[0].shape[1:]:
            expected = "[T] of tokens" if spec.has_tokens else f"[T, {spec.input_size}]"
            raise ValueError(
                f"predict: example {number} must have shape {expected}, got {array.shape}"
                f"{_name_inputs(spec)}"
            )
    lengths = np.array([len(array) for array in arrays])
    stacked = np.zeros((len(arrays), lengths.max(), *arrays[0].shape[1:]), np.result_type(*arrays))
    for row, array in zip(stacked, arrays, strict=True):
        row[: len(array)] = array
    return stacked, lengths


def _name_inputs(spec: DataSpec) -> str:
    """Returns the names of the inputs for a message, such as "; the inputs are load, temp"."""
    if spec.input_names is None:
        return ""
    return f"; the inputs are {checks.shorten(', '.join(spec.input_names))}"


def _check_inputs(spec: DataSpec, xs: np.ndarray) -> None:
    if spec.has_tokens:
        if xs.dtype.kind not in "iu" or xs.ndim != 2:
            raise ValueError(
                f"predict: xs must be int tokens of shape [N, T], got {xs.dtype} of shape "
                f"{xs.shape}"
            )
        return
    if xs.dtype.kind not in "biuf":
        raise TypeError(f"predict: xs must contain real numbers, got dtype {xs.dtype}")
    if xs.ndim < 3 or (xs.ndim == 3 and xs.shape[2] != spec.input_size):
        hint = "; for one example pass xs[None]" if xs.ndim == 2 else ""
        raise ValueError(
            f"predict: xs must have shape [N, T, {spec.input_size}], got {xs.shape}"
            f"{_name_inputs(spec)}{hint}"
        )


def _check_lengths(xs: np.ndarray, lengths: Any | None) -> np.ndarray:
    count, steps = xs.shape[:2]
    if lengths is None:
        return np.full(count, steps, np.int32)
    lengths = np.asarray(lengths)
    if lengths.shape != (count,) or lengths.dtype.kind not in "iu":
        raise ValueError(
            f"predict: lengths must be ints of shape ({count},), got {lengths.dtype} of shape "
            f"{lengths.shape}"
        )
    if count and (lengths.min() < 0 or lengths.max() > steps):
        raise ValueError(
            f"predict: lengths must be in 0..T = 0..{steps}, got values from {lengths.min()} to "
            f"{lengths.max()}"
        )
    return lengths.astype(np.int32)


def _require(ok: np.ndarray, valid: np.ndarray, xs: np.ndarray, requirement: str) -> None:
    """Raises ValueError with the first valid entry that is not ok."""
    bad = ~ok & valid
    if bad.any():
        index = checks.first_index(bad)
        where = zip(("example", "step", "channel"), index, strict=False)
        raise ValueError(
            f"predict: valid entries of xs must {requirement}, got {xs[index]} at "
            f"{', '.join(f'{axis} {k}' for axis, k in where)}"
        )
