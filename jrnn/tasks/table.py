"""Forecasting of time series from a CSV file."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from jrnn import checks
from jrnn.tasks import common, csv_file, dates
from jrnn.tasks import series as series_files
from jrnn.tasks import windows as windows_of
from jrnn.tasks.common import StandardScaler
from jrnn.tasks.forecast import DISTRIBUTIONS, Forecast, check_horizon, check_quantiles
from jrnn.tasks.series import Columns, Series, SeriesFile
from jrnn.tasks.task import Context, Data, DataSpec, Origins, RawExamples, Split, Task

MISSING = ("refuse", "fill", "mask")
SPLITS = ("train", "validation", "test")
MIN_SEASONS = 2
"""Minimum number of periods in a series with a seasonal-naive baseline that was not asked for."""


@dataclass(frozen=True)
class Table(Task):
    r"""Forecasting: predicts the next rows of columns of a time series, at every row.

    The first line of the file contains the names of the columns, and its rows are in temporal
    order. At each row a network predicts the targets in each of the next `horizon` rows, as changes
    from the current row. Outputs of 0 are persistence, the forecast that nothing changes.

    The rows are split into consecutive parts: train, validation and test. Forecasts of training
    windows are for rows of the training part. The forecasts that are scored are for rows of the
    validation or test part; each is made once, after at least `warmup` rows of its window, which
    may be rows of an earlier part. All statistics are computed on the training part.

    Columns are normalized by mean and standard deviation. The metric is the mean squared error in
    normalized units. The baselines are persistence and, if the dates have usual periods or
    `season` is given, seasonal-naive forecasts: the value one period before.

    A column of dates, by default the first column whose cells are dates, is no input; it gives
    calendar features, the dates of forecasts, and the rows that are missing. Numbers above 1.8e19
    are refused, since their squares leave float32.

    Args:
      path: path of the CSV file, in UTF-8.
      columns: names of the input columns; empty means all columns but dates, `group` and `exclude`.
        The targets are always inputs.
      targets: names of the columns to predict; empty means `columns`.
      window: T, number of rows of an input sequence.
      horizon: number of rows to predict.
      validation_fraction: fraction of the rows for validation.
      test_fraction: fraction of the rows for testing.
      stride: number of rows between the starts of consecutive training windows; None means 1, or
        more if the windows would take more than 256 MiB.
      exclude: names of columns that are not used.
      group: name of a column that identifies several series in the file; windows are within a
        series. None means one series.
      date: name of the column of dates; None finds it by its cells.
      date_form: "iso", or the form of the dates as for `datetime.strptime`, such as "%d/%m/%Y";
        None finds it.
      calendar: whether the time of the day, the day of the week and the day of the year are inputs,
        each only if it varies and the dates cover two such periods.
      separator: the character between cells.
      decimal: the decimal mark, "." or ",".
      missing: what to do about empty cells and dates without a row: "refuse"; "fill", which uses
        the last value before them; or "mask", which also adds masks and intervals to the inputs, as
        `GRUD` needs them. Missing targets are not in the loss or the metric.
      recursive: whether the network predicts only the next row, and later rows are predicted from
        its predictions, instead of all rows at once.
      distribution: "point"; "gaussian", which learns mean and standard deviation; or "quantiles".
      quantiles: increasing probabilities with 0.5; forecasts have intervals from the lowest to the
        highest one. For points their half-widths are a quantile of the absolute errors on the
        validation part, for each row ahead (split conformal prediction).
      season: period of the seasonal-naive baseline in rows; None uses the usual ones for the dates,
        of which the series must have two: a day and a week, or for daily dates a week and a year,
        or for weekly and monthly dates a year.
      warmup: number of rows of a window before the first forecast that is scored; None means half
        of the window.

    Raises:
      FileNotFoundError: the file does not exist.
      TypeError: `path` is not a non-empty string, or names are not tuples of strings.
      ValueError: an option is out of range, the file is not CSV in UTF-8 with a header, a column
        does not exist or is named twice, a cell of a used column is not a finite number of
        magnitude at most 1.8e19, values are missing, dates do not increase, or there are too few
        rows.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "rising.csv")
    ...     _ = path.write_text("level\n" + "".join(f"{row}\n" for row in range(100)))
    ...     data = Table(str(path), window=4, horizon=2).load()
    >>> data.train.xs.shape, data.train.ys.shape
    ((65, 4, 1), (65, 4, 2))
    >>> bool(np.allclose(data.test.ys * data.target_scaler.std, [1, 2]))
    True
    """

    path: str
    columns: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    window: int = 64
    horizon: int = 1
    validation_fraction: float = 0.15
    test_fraction: float = 0.15
    stride: int | None = None
    exclude: tuple[str, ...] = ()
    group: str | None = None
    date: str | None = None
    date_form: str | None = None
    calendar: bool = True
    separator: str = ","
    decimal: Literal[".", ","] = "."
    missing: Literal["refuse", "fill", "mask"] = "refuse"
    recursive: bool = False
    distribution: Literal["point", "gaussian", "quantiles"] = "point"
    quantiles: tuple[float, ...] = (0.05, 0.25, 0.5, 0.75, 0.95)
    season: int | None = None
    warmup: int | None = None

    def __post_init__(self) -> None:
        common.check_path("Table", "path", self.path)
        for name in ("columns", "targets", "exclude"):
            _check_names(name, getattr(self, name))
        checks.positive_int("Table", "window", self.window)
        check_horizon("Table", self.horizon, () if self.season is None else (self.season,))
        if self.stride is not None:
            checks.positive_int("Table", "stride", self.stride)
        if self.warmup is not None:
            checks.int_between("Table", "warmup", self.warmup, 0, self.window - 1)
        common.check_fractions("Table", self.validation_fraction, self.test_fraction)
        for name in ("group", "date"):
            if getattr(self, name) is not None:
                checks.instance("Table", name, getattr(self, name), str)
        for name in ("calendar", "recursive"):
            checks.boolean("Table", name, getattr(self, name))
        _check_separator(self.separator, self.decimal)
        if self.date_form is not None:
            checks.instance("Table", "date_form", self.date_form, str)
            dates.check_form("Table", "date_form", self.date_form)
        checks.one_of("Table", "missing", self.missing, MISSING)
        checks.one_of("Table", "distribution", self.distribution, DISTRIBUTIONS)
        check_quantiles("Table", self.quantiles)
        if self.recursive and self.distribution != "point":
            raise ValueError(
                "Table: distribution must be 'point' for recursive=True, since the distribution of "
                f"one row does not give that of later rows, got {self.distribution!r}; set "
                "recursive=False"
            )

    def load(self) -> Data:
        return self._load(None)

    def load_like(self, spec: DataSpec) -> Data:
        """Loads the table with the normalization and inputs of other data; see `Task.load_like`."""
        return self._load(spec)

    def _load(self, like: DataSpec | None) -> Data:
        file = csv_file.read(self.path, separator=self.separator)
        columns = series_files.find_columns(
            file, self.columns, self.exclude, self.targets, self.group, self.date, self.date_form
        )
        if self.recursive and (extra := set(columns.inputs) - set(columns.targets)):
            raise ValueError(
                "Table: all inputs must be targets for recursive=True, since later rows are "
                f"predicted from predictions, got {', '.join(sorted(extra))[:200]}; add them to "
                "--task.targets, leave them out with --task.exclude, or set recursive=False"
            )
        old = None if like is None else _saved(like)[0]
        if old is not None:
            common.check_same_names("Table", "columns", columns.inputs, old.columns)
            common.check_same_names("Table", "targets", columns.targets, old.targets)
        read = series_files.read(
            file,
            columns,
            decimal=self.decimal,
            missing=self.missing,
            spacing=None if old is None or columns.date is None else old.spacing,
        )
        forecast = self._make_forecast(columns, read, old)
        parts = [self._split(forecast, series) for series in read.series]
        train = np.concatenate(
            [s.values[part[0]] for s, part in zip(read.series, parts, strict=True)]
        )
        scaler = _fit(columns.inputs, train)
        _check_targets_vary(columns, train)
        if like is not None:
            common.check_same_names("Table", "inputs", forecast.input_names, like.input_names)
            scaler = _scaler_of_columns(like)
        return self._make_data(forecast, read.series, parts, scaler)

    def read(self, path: str, spec: DataSpec) -> RawExamples:
        """Reads other rows for an evaluation; see `Task.read`.

        The forecasts that are scored are those after the first `warmup` rows.
        """
        if not path.lower().endswith(".csv"):
            return super().read(path, spec)
        forecast, scaler, target_scaler = _saved(spec)
        series = self._read_series(path, forecast).series
        for each in series:
            _check_rows(path, each, forecast.window + forecast.steps, "an evaluation")
        windows = [windows_of.evaluation_windows(forecast, 1, len(each.values)) for each in series]
        initial = np.asarray(scaler.mean)[: len(forecast.columns)]
        examples = windows_of.make_examples(forecast, series, windows, initial, seasonal=True)
        baselines = {
            name: target_scaler.transform(outputs)
            for name, outputs in _name_baselines(examples).items()
        }
        return RawExamples(
            examples.xs, examples.ys, metric_mask=examples.metric_mask, baselines=baselines
        )

    def read_context(self, path: str, spec: DataSpec) -> Context:
        """Reads the last `window` rows of each series; see `Task.read_context`."""
        forecast, scaler, _ = _saved(spec)
        read = self._read_series(path, forecast)
        initial = np.asarray(scaler.mean)[: len(forecast.columns)]
        xs, texts, features = [], [], []
        for series in read.series:
            _check_rows(path, series, forecast.warmup + 1, "a forecast")
            xs.append(windows_of.make_inputs(forecast, series, initial)[-forecast.window :])
            if series.dates is None or forecast.spacing is None:
                features.append(np.zeros((forecast.horizon, 0)))
                continue
            later = _later_dates(series.dates, forecast.spacing, forecast.horizon)
            texts.append(dates.write(later, forecast.date_form or dates.ISO, series.example))
            features.append(dates.calendar_features(later, forecast.calendar))
        names = [series.name for series in read.series]
        return Context(xs, names, texts if forecast.date is not None else None, features)

    def find_origins(self, spec: DataSpec, split: str, count: int) -> Origins:
        """Returns origins of forecasts; see `Task.find_origins`.

        Each series has about the same number of them.
        """
        checks.one_of("backtest", "split", split, SPLITS)
        checks.positive_int("backtest", "the number of origins", count)
        forecast, scaler, _ = _saved(spec)
        read = self._read_series(self.path, forecast)
        initial = np.asarray(scaler.mean)[: len(forecast.columns)]
        current, horizon = list(forecast.current), forecast.horizon
        xs, names, features, truth = [], [], [], []
        trivial: dict[str, list[np.ndarray]] = {}
        parts = [self._split(forecast, each)[SPLITS.index(split)] for each in read.series]
        possible = [
            np.arange(max(part.start - 1, forecast.warmup), part.stop - horizon) for part in parts
        ]
        numbers = _share(count, [len(rows) for rows in possible])
        for series, rows, number in zip(read.series, possible, numbers, strict=True):
            inputs = windows_of.make_inputs(forecast, series, initial)
            rows = rows[np.linspace(0, len(rows) - 1, number).round().astype(int)]
            values = inputs[:, current]
            made = {windows_of.PERSISTENCE: np.repeat(values[rows, None], horizon, axis=1)}
            for season in forecast.seasons:
                seasonal = windows_of.seasonal_forecast(values, season, horizon)
                made[seasonal_name(season)] = seasonal[rows]
            for name, each in made.items():
                trivial.setdefault(name, []).append(each)
            for row in rows:
                xs.append(inputs[max(0, row + 1 - forecast.window) : row + 1])
                names.append(series.name)
                features.append(
                    inputs[row + 1 : row + 1 + horizon, len(forecast.columns) : forecast.num_values]
                )
                truth.append(series.values[row + 1 : row + 1 + horizon, current])
        if not xs:
            raise ValueError(
                f"backtest: the {split} part must have at least {horizon} rows, got fewer; train "
                "with a shorter horizon or on more rows"
            )
        baselines = {name: np.concatenate(each) for name, each in trivial.items()}
        return Origins(Context(xs, names, None, features), np.stack(truth), baselines)

    def _read_series(self, path: str, forecast: Forecast) -> SeriesFile:
        """Reads a file with the columns and the spacing of the training data."""
        columns = Columns(
            forecast.columns, forecast.targets, forecast.date, forecast.date_form, forecast.group
        )
        with csv_file.in_saved_format():
            file = csv_file.read(path, separator=self.separator)
            special = [name for name in (forecast.date, forecast.group) if name is not None]
            needed = [*special, *forecast.columns]
            if lacking := [name for name in needed if name not in file.header]:
                raise ValueError(
                    f"Table: {path!r} must have the columns of the training data, "
                    f"{checks.shorten(', '.join(needed))}, got none named {lacking[0]!r}"
                )
            if not file.rows:
                raise ValueError(f"Table: {path!r} must have rows, got only a header line")
            return series_files.read(
                file,
                columns,
                decimal=self.decimal,
                missing=self.missing,
                spacing=forecast.spacing,
            )

    def _make_forecast(self, columns: Columns, read: SeriesFile, like: Forecast | None) -> Forecast:
        """Returns the properties of the forecast, with the calendar of `like` if it is given."""
        calendar: tuple[dates.Calendar, ...] = ()
        longest = max(read.series, key=lambda each: len(each.values), default=None)
        if self.calendar and longest is not None and longest.dates is not None and read.spacing:
            if like is None:
                calendar = dates.find_calendar(longest.dates, read.spacing)
            else:
                calendar = like.calendar
        rows = 0 if longest is None else len(longest.values)
        if self.season is not None:
            seasons = (self.season,) if self.season < rows else ()
        else:
            usual = () if read.spacing is None else read.spacing.seasons
            seasons = tuple(season for season in usual if MIN_SEASONS * season <= rows)
        return Forecast(
            targets=columns.targets,
            columns=columns.inputs,
            horizon=self.horizon,
            recursive=self.recursive,
            distribution=self.distribution,
            quantiles=self.quantiles,
            masks=self.missing == "mask",
            window=self.window,
            warmup=self.window // 2 if self.warmup is None else self.warmup,
            group=columns.group,
            date=columns.date,
            date_form=read.date_form,
            spacing=read.spacing,
            calendar=calendar,
            seasons=seasons,
        )

    def _split(self, forecast: Forecast, series: Series) -> tuple[slice, slice, slice]:
        """Returns the rows of train, validation and test of a series."""
        rows = f"rows of {series.name!r}" if series.name else "rows"
        return common.split_rows(
            "Table",
            rows,
            len(series.values),
            self.validation_fraction,
            self.test_fraction,
            min_rows=forecast.horizon,  # also of recursive forecasts, whose origins are in a part
            min_train=forecast.window + forecast.steps,
        )

    def _make_data(
        self,
        forecast: Forecast,
        series: list[Series],
        parts: list[tuple[slice, slice, slice]],
        columns: StandardScaler,
    ) -> Data:
        others = len(forecast.input_names) - len(columns.mean)
        input_scaler = StandardScaler(columns.mean + (0.0,) * others, columns.std + (1.0,) * others)
        targets = StandardScaler(
            tuple(columns.mean[index] for index in forecast.current),
            tuple(columns.std[index] for index in forecast.current),
        )
        target_scaler = forecast.target_scaler(targets)
        stride = self.stride or _default_stride(forecast, parts)
        initial = np.asarray(columns.mean)

        def examples(split: int, seasonal: bool) -> windows_of.Examples:
            windows = [
                windows_of.training_windows(forecast, part[0].stop, stride)
                if split == 0
                else windows_of.evaluation_windows(forecast, part[split].start, part[split].stop)
                for part in parts
            ]
            return windows_of.make_examples(
                forecast, series, windows, initial, (input_scaler, target_scaler), seasonal=seasonal
            )

        def baselines(name: str) -> dict[str, np.ndarray]:
            return _name_baselines(examples(SPLITS.index(name), seasonal=True))

        train, validation, test = (examples(index, seasonal=index == 2) for index in range(3))
        for name, made in zip(SPLITS, (train, validation, test), strict=True):
            _check_targets(name, made)
        splits = {
            name: Split(made.xs, made.ys, metric_mask=made.metric_mask)
            for name, made in zip(SPLITS, (train, validation, test), strict=True)
        }
        errors = {
            name: _masked_error(outputs, test) for name, outputs in _name_baselines(test).items()
        }
        return Data(
            train=splits["train"],
            validation=splits["validation"],
            test=splits["test"],
            target="value_per_step",
            metric="mse",
            input_size=len(forecast.input_names),
            output_size=forecast.num_targets,
            causal=True,
            baseline=min(errors.items(), key=lambda item: item[1]),
            input_names=forecast.input_names,
            target_names=forecast.output_names,
            input_scaler=input_scaler,
            target_scaler=target_scaler,
            forecast=forecast,
            baselines=baselines,
        )


def seasonal_name(season: int) -> str:
    """Returns the name of the seasonal-naive baseline with its period in rows."""
    return f"{windows_of.SEASONAL}, {season} rows"


def _name_baselines(examples: windows_of.Examples) -> dict[str, np.ndarray]:
    """Returns the outputs of the baselines by name, in the units of the examples."""
    found = {windows_of.PERSISTENCE: np.zeros_like(examples.ys)}
    return found | {seasonal_name(season): each for season, each in examples.seasonal.items()}


def _masked_error(outputs: np.ndarray, examples: windows_of.Examples) -> float:
    """Returns the mean squared error of the scored targets that are not missing."""
    squares = np.square(outputs.astype(np.float64) - examples.ys)[examples.metric_mask]
    return float(np.nanmean(squares))


def _check_targets(name: str, examples: windows_of.Examples) -> None:
    if not np.isfinite(examples.ys[examples.metric_mask]).any():
        raise ValueError(
            f"Table: the {name} part must have at least one row with targets that are not missing, "
            "got none; use more rows, or other fractions"
        )


def _default_stride(forecast: Forecast, parts: list[tuple[slice, slice, slice]]) -> int:
    """Returns the smallest stride for which the training windows take at most `MAX_BYTES`."""
    size = 4 * forecast.window * (len(forecast.input_names) + forecast.num_targets)
    rows = sum(part[0].stop - part[0].start for part in parts)
    return max(1, -(-rows * size // windows_of.MAX_BYTES))


def _fit(names: tuple[str, ...], train: np.ndarray) -> StandardScaler:
    """Returns the scaler of the columns on the training rows; checks that each has values."""
    for name, column in zip(names, train.T, strict=True):
        if np.isnan(column).all():
            raise ValueError(
                f"Table: column {name!r} must have values in the training part, got none; leave it "
                f"out with --task.exclude {name}"
            )
    return StandardScaler.fit(train)


def _check_targets_vary(columns: Columns, train: np.ndarray) -> None:
    """Raises ValueError if all targets are constant in the training rows."""
    values = train[:, [columns.inputs.index(name) for name in columns.targets]]
    spread = np.nanmax(values, axis=0) - np.nanmin(values, axis=0)
    if not spread.any():
        raise ValueError(
            "Table: at least one target must vary in the training part, got "
            f"{checks.shorten(', '.join(columns.targets))} with the same value in all rows; set "
            "other --task.targets, or use more rows"
        )


def _saved(spec: DataSpec) -> tuple[Forecast, StandardScaler, StandardScaler]:
    """Returns the forecast and the scalers of inputs and targets of a run."""
    if spec.forecast is None or spec.input_scaler is None or spec.target_scaler is None:
        raise ValueError("Table: the data of the run must be a forecast; train the run again")
    return spec.forecast, spec.input_scaler, spec.target_scaler


def _scaler_of_columns(spec: DataSpec) -> StandardScaler:
    """Returns the scaler of the columns of a run, without those of calendar and masks."""
    forecast, scaler, _ = _saved(spec)
    size = len(forecast.columns)
    return StandardScaler(scaler.mean[:size], scaler.std[:size])


def _check_rows(path: str, series: Series, needed: int, purpose: str) -> None:
    if len(series.values) < needed:
        name = f" of {series.name!r}" if series.name else ""
        raise ValueError(
            f"Table: {path!r} must have at least {needed} rows{name} for {purpose}, got "
            f"{len(series.values)}; use a longer file"
        )


def _later_dates(times: np.ndarray, spacing: dates.Spacing, count: int) -> np.ndarray:
    """Returns the dates of the `count` rows after the last date."""
    return spacing.dates_from(times[-1], np.arange(1, count + 1), dates.day_of_month(times))


def _share(count: int, sizes: list[int]) -> list[int]:
    """Returns how many of `count` items each series gets: about equally many, at most its size."""
    numbers = [0] * len(sizes)
    for place, index in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__)):
        numbers[index] = min(sizes[index], count // (len(sizes) - place))
        count -= numbers[index]
    return numbers


def _check_names(name: str, value: object) -> None:
    if not isinstance(value, tuple) or not all(isinstance(each, str) for each in value):
        raise TypeError(f"Table: {name} must be a tuple of strings such as ('a',), got {value!r}")
    csv_file.check_unique(f"Table: {name}", value)


def _check_separator(separator: object, decimal: object) -> None:
    checks.one_of("Table", "decimal", decimal, (".", ","))
    if not isinstance(separator, str) or len(separator) != 1 or separator in '"\r\n ':
        raise ValueError(
            "Table: separator must be one character such as ';', and not a quote or a space, got "
            f"{checks.describe(separator)}"
        )
    if separator == decimal:
        raise ValueError(
            f"Table: separator must differ from decimal, got {separator!r} for both; set "
            "--task.separator ';'"
        )
