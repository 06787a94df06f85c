"""The properties of a forecast: its inputs, its targets and the distribution that it predicts.

A network predicts changes from the current value of each target, in units of the standard deviation
of the target on the training rows, so that outputs of 0 are persistence.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from jrnn import checks
from jrnn.tasks import dates
from jrnn.tasks.common import StandardScaler

Distribution = Literal["point", "gaussian", "quantiles"]
DISTRIBUTIONS = ("point", "gaussian", "quantiles")
MAX_HORIZON, MAX_SEASON = 10**5, 10**9
"""Maximum numbers of rows."""
MIN_STD = 1e-4
"""Minimum standard deviation of a Gaussian, in units of that of the training rows."""


@dataclass(frozen=True)
class Forecast:
    """The properties of a forecast, which are saved in the folder of a run.

    The network has `steps` x K targets at each row, for K = `len(targets)`: entry `h * K + k` is
    the change of target k from this row to row h + 1 after it.

    Args:
      targets: names of the K predicted columns.
      columns: names of the input columns of the file, which include the targets.
      horizon: number of rows that are forecast.
      recursive: whether the network predicts one row, and forecasts are inputs for later rows.
      distribution: what the network predicts for each target: a point, mean and standard deviation
        of a Gaussian, or quantiles.
      quantiles: increasing probabilities, which include 0.5; intervals are from the lowest to the
        highest quantile.
      masks: whether the inputs have a mask and intervals for missing values; see `input_names`.
      window: number of rows in an input sequence.
      warmup: number of its first rows without forecasts in evaluations.
      group: name of the column that identifies the series; None for one series.
      date: name of the column of dates, or None.
      date_form: its form; see `jrnn.tasks.dates`.
      spacing: the spacing of its dates.
      calendar: the calendar features.
      seasons: the periods of the seasonal-naive baselines in rows.

    Raises:
      ValueError: the fields contradict each other.
    """

    targets: tuple[str, ...]
    columns: tuple[str, ...]
    horizon: int
    recursive: bool
    distribution: Distribution
    quantiles: tuple[float, ...]
    masks: bool
    window: int
    warmup: int
    group: str | None = None
    date: str | None = None
    date_form: str | None = None
    spacing: dates.Spacing | None = None
    calendar: tuple[dates.Calendar, ...] = ()
    seasons: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        checks.one_of("Forecast", "distribution", self.distribution, DISTRIBUTIONS)
        checks.positive_int("Forecast", "window", self.window)
        check_horizon("Forecast", self.horizon, self.seasons)
        checks.int_between("Forecast", "warmup", self.warmup, 0, self.window - 1)
        check_quantiles("Forecast", self.quantiles)
        if not self.targets or not set(self.targets) <= set(self.columns):
            raise ValueError("Forecast: targets must be some of columns, got other names")
        if (self.date is None) != (self.spacing is None):
            raise ValueError("Forecast: date and spacing must be given together")
        if self.date_form is not None:
            dates.check_form("Forecast", "date_form", self.date_form)

    @property
    def steps(self) -> int:
        """Number of rows ahead that the network predicts at once."""
        return 1 if self.recursive else self.horizon

    @property
    def num_targets(self) -> int:
        """Number of targets of the network at each row, `steps` x K."""
        return self.steps * len(self.targets)

    @property
    def num_outputs(self) -> int:
        """Number of outputs of the network at each row."""
        per_target = {"point": 1, "gaussian": 2, "quantiles": len(self.quantiles)}
        return self.num_targets * per_target[self.distribution]

    @property
    def level(self) -> float:
        """The nominal coverage of the intervals."""
        return round(self.quantiles[-1] - self.quantiles[0], 12)

    @property
    def current(self) -> tuple[int, ...]:
        """The channel of the inputs with the current value of each target."""
        positions = {name: index for index, name in enumerate(self.columns)}
        return tuple(positions[name] for name in self.targets)

    @property
    def num_values(self) -> int:
        """C, the number of columns and calendar features."""
        return len(self.columns) + 2 * len(self.calendar)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the input channels.

        These are the C columns and calendar features. With `masks` there follow for each of them
        the mask, 1 where it is observed, and the time since its previous observation; and the time
        since the previous row. Times are in rows.
        """
        names = (*self.columns, *dates.calendar_names(self.calendar))
        if not self.masks:
            return names
        masks = (f"{name} observed" for name in names)
        intervals = (f"{name} interval" for name in names)
        return (*names, *masks, *intervals, "interval")

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the targets of the network, such as "load+1"."""
        return tuple(f"{name}+{h}" for h in range(1, self.steps + 1) for name in self.targets)

    def target_scaler(self, columns: StandardScaler) -> StandardScaler:
        """Returns the scaler of the changes, from that of the K targets."""
        return StandardScaler((0.0,) * self.num_targets, columns.std * self.steps)


def check_horizon(owner: str, horizon: int, seasons: tuple[int, ...]) -> None:
    """Raises ValueError unless the horizon and the seasons are positive ints below the maxima."""
    checks.positive_int(owner, "horizon", horizon)
    checks.int_between(owner, "horizon", horizon, 1, MAX_HORIZON)
    for season in seasons:
        checks.int_between(owner, "season", season, 1, MAX_SEASON)


def check_quantiles(owner: str, quantiles: tuple[float, ...]) -> None:
    """Raises ValueError unless quantiles increase, are between 0 and 1, and include 0.5."""
    valid = len(quantiles) >= 3 and all(checks.is_number(q) and 0 < q < 1 for q in quantiles)
    if (
        not valid
        or any(b <= a for a, b in zip(quantiles, quantiles[1:], strict=False))
        or 0.5 not in quantiles[1:-1]
    ):
        raise ValueError(
            f"{owner}: quantiles must be at least three increasing numbers between 0 and 1 with "
            "0.5 between the first and the last, such as (0.05, 0.5, 0.95), got "
            f"{checks.describe(quantiles)}"
        )


def split_outputs(forecast: Forecast, outputs: np.ndarray) -> np.ndarray:
    """Returns outputs `[..., num_outputs]` as `[..., P, num_targets]`.

    P is 1 for points; 2 for Gaussians, mean and logit of the standard deviation; and the number of
    quantiles for quantiles.
    """
    return outputs.reshape(*outputs.shape[:-1], -1, forecast.num_targets)


def gaussian(forecast: Forecast, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation of each target, in float64 and normalized units."""
    mean, logit = np.moveaxis(split_outputs(forecast, outputs.astype(np.float64)), -2, 0)
    return mean, np.logaddexp(0, logit) + MIN_STD


def sorted_quantiles(forecast: Forecast, outputs: np.ndarray) -> np.ndarray:
    """Returns predicted quantiles `[..., Q, num_targets]` in increasing order, in float64."""
    return np.sort(split_outputs(forecast, outputs.astype(np.float64)), axis=-2)


def point(forecast: Forecast, outputs: np.ndarray) -> np.ndarray:
    """Returns the mean or median of each target, `[..., num_targets]`, in normalized units."""
    if forecast.distribution == "quantiles":
        median = forecast.quantiles.index(0.5)
        return sorted_quantiles(forecast, outputs)[..., median, :]
    return split_outputs(forecast, outputs.astype(np.float64))[..., 0, :]


def current_values(forecast: Forecast, scaler: StandardScaler, xs: np.ndarray) -> np.ndarray:
    """Returns the current value of each target of the network, in units of the file.

    Args:
      forecast: the forecast.
      scaler: the scaler of the inputs.
      xs: inputs of the network, `[..., input]`.

    Returns:
      `[..., num_targets]` float64.
    """
    values = scaler.invert(xs)[..., list(forecast.current)]
    return np.tile(values, (1,) * (values.ndim - 1) + (forecast.steps,))
