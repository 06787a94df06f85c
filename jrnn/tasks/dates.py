"""Dates of the rows of a table: parsing, the spacing of a series, and calendar features."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Literal, NamedTuple

import numpy as np

from jrnn import checks

FORMATS = (
    "%d.%m.%Y %H:%M:%S",
    "%d.%m.%Y %H:%M",
    "%d.%m.%Y",
    "%d/%m/%Y %H:%M:%S",
    "%d/%m/%Y %H:%M",
    "%d/%m/%Y",
    "%m/%d/%Y %H:%M:%S",
    "%m/%d/%Y %H:%M",
    "%m/%d/%Y",
    "%Y/%m/%d %H:%M:%S",
    "%Y/%m/%d %H:%M",
    "%Y/%m/%d",
    "%Y-%m",
)
"""Forms of dates that are recognized besides ISO 8601, as for `datetime.strptime`."""
ISO = "iso"
"""The name of ISO 8601 among the forms of dates."""
_FORM = re.compile(r"(%[YmdHMSfybBjzp]|[ .,:/T_Z-])+")
MAX_FORM = 60
"""Maximum length of a form of dates, in characters."""

DAY = 86_400_000_000
"""Microseconds of a day."""
MAX_GAPS = 0.1
"""Maximum fraction of rows after a gap in a series of equal spacing; else it is irregular."""

Calendar = Literal["day", "week", "year"]
"""The period of a calendar feature."""
PERIODS: dict[Calendar, float] = {"day": DAY, "week": 7 * DAY, "year": 365.2425 * DAY}
Unit = Literal["microseconds", "business_days", "months", "irregular"]


@dataclass(frozen=True)
class Spacing:
    """The time between consecutive rows of a series.

    Args:
      unit: "microseconds"; "business_days", Monday to Friday; "months"; or "irregular", for rows
        without equal spacing.
      count: number of units between two rows; for "irregular" the median in microseconds.
    """

    unit: Unit
    count: int

    def __post_init__(self) -> None:
        checks.one_of("Spacing", "unit", self.unit, Unit.__args__)
        checks.int_between("Spacing", "count", self.count, 1, 10_000 * 366 * DAY)

    @classmethod
    def find(cls, dates: np.ndarray) -> "Spacing":
        """Finds the spacing of increasing dates `[rows]` of dtype datetime64[us]."""
        if len(dates) < 2:
            return cls("microseconds", DAY)
        if months := _find_months(dates):
            return cls("months", months)
        differences = np.diff(dates).astype(np.int64)
        values, counts = np.unique(differences, return_counts=True)
        step = int(values[counts.argmax()])
        if step == DAY and not (differences % DAY).any():
            days = dates.astype("datetime64[D]")
            if (differences == 3 * DAY).any() and np.is_busday(days).all():
                return cls("business_days", 1)
        if not (differences % step).any() and (differences != step).mean() <= MAX_GAPS:
            return cls("microseconds", step)
        return cls("irregular", max(1, int(np.median(differences))))

    def describe(self) -> str:
        """Returns the spacing as text, such as "1:00:00" for an hour."""
        if self.unit in ("microseconds", "irregular"):
            return str(timedelta(microseconds=self.count))
        return f"{self.count} {self.unit.replace('_', ' ')}"

    def positions(self, dates: np.ndarray) -> np.ndarray | None:
        """Returns the number of steps from the first date to each; None if one is between steps."""
        if self.unit == "irregular":
            return np.arange(len(dates))
        if self.unit == "business_days":
            days = dates.astype("datetime64[D]")
            if not np.is_busday(days).all() or ((dates - days) != (dates - days)[0]).any():
                return None
            return np.busday_count(days[0], days)
        if self.unit == "months":
            if len(dates) > 1 and _find_months(dates) is None:
                return None
            steps = dates.astype("datetime64[M]").astype(np.int64)
        else:
            steps = dates.astype(np.int64)
        steps = steps - steps[0]
        return None if (steps % self.count).any() else steps // self.count

    def intervals(self, dates: np.ndarray) -> np.ndarray:
        """Returns the time since the previous row, `[rows]`; 1 is one step, also for the first."""
        if self.unit != "irregular":
            return np.ones(len(dates))
        differences = np.diff(dates).astype(np.int64) / self.count
        return np.concatenate([[1.0], differences])

    def dates_from(self, first: np.datetime64, steps: np.ndarray, anchor: int = 1) -> np.ndarray:
        """Returns the dates that are `steps` (ints) after `first`, as datetime64[us].

        Args:
          first: the first date.
          steps: numbers of steps.
          anchor: for months, the day of the month; shorter months end before it.

        Raises:
          ValueError: a date is after the year 9999.
        """
        last = int(steps.max(initial=0)) * self.count
        limit = np.datetime64("9999-12-01", "us")
        per_unit = {"months": 31 * DAY, "business_days": 2 * DAY}.get(self.unit, 1)
        if last * per_unit > int((limit - first).astype(np.int64)):
            raise ValueError("Table: dates of forecasts must be before the year 10000")
        if self.unit == "business_days":
            day = first.astype("datetime64[D]")
            return np.busday_offset(day, steps, roll="backward") + (first - day)
        if self.unit != "months":
            return first + (steps * self.count).astype("timedelta64[us]")
        months = first.astype("datetime64[M]") + steps * self.count
        starts = months.astype("datetime64[D]")
        length = ((months + 1).astype("datetime64[D]") - starts).astype(np.int64)
        days = starts + (np.minimum(anchor, length) - 1)
        return days.astype("datetime64[us]") + (first - first.astype("datetime64[D]"))

    @property
    def seasons(self) -> tuple[int, ...]:
        """The usual periods in rows: a day and a week, a week and a year, or a year."""
        if self.unit == "business_days":
            return (5,)
        if self.unit == "months":
            return (12 // self.count,) if self.count in (1, 2, 3, 4, 6) else ()
        if self.unit == "irregular":
            return ()
        if self.count < DAY:
            return (DAY // self.count, 7 * DAY // self.count) if DAY % self.count == 0 else ()
        return {DAY: (7, 365), 7 * DAY: (52,)}.get(self.count, ())


def _find_months(dates: np.ndarray) -> int | None:
    """Returns the number of months between rows; None if rows are not at equal days of months.

    Rows at the last day of each month are also accepted, as are shorter months that end before the
    day.
    """
    months = dates.astype("datetime64[M]")
    index = months.astype(np.int64)
    if len(dates) < 2 or (np.diff(index) < 1).any():
        return None
    days = dates.astype("datetime64[D]")
    if ((dates - days) != (dates - days)[0]).any():
        return None
    day, length = _days_and_lengths(dates)
    if (day != np.minimum(day.max(), length)).any():
        return None
    return int(np.gcd.reduce(np.diff(index)))


def day_of_month(dates: np.ndarray) -> int:
    """Returns the day of the month of equally spaced months, which end before it if shorter.

    It is 31 if there are several dates and each is the last day of its month, such as June 30 and
    September 30.
    """
    day, length = _days_and_lengths(dates)
    return 31 if len(dates) > 1 and (day == length).all() else int(day.max())


def _days_and_lengths(dates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the day of the month of each date, from 1, and the number of days of the month."""
    months = dates.astype("datetime64[M]")
    starts = months.astype("datetime64[D]")
    day = (dates.astype("datetime64[D]") - starts).astype(np.int64) + 1
    return day, ((months + 1).astype("datetime64[D]") - starts).astype(np.int64)


class Dates(NamedTuple):
    """The parsed dates of a column.

    Attributes:
      values: `[rows]` datetime64[us]; in UTC if the dates have offsets from UTC.
      form: `ISO`, or the form for `datetime.strptime`.
    """

    values: np.ndarray
    form: str


def check_form(owner: str, name: str, form: str) -> None:
    """Raises ValueError unless `form` is `ISO` or contains only directives of dates."""
    if form != ISO and (len(form) > MAX_FORM or not _FORM.fullmatch(form)):
        raise ValueError(
            f"{owner}: {name} must be {ISO!r} or consist of directives such as '%d.%m.%Y %H:%M', "
            f"got {checks.shorten(repr(form))}"
        )


def is_date(cell: str) -> bool:
    """Returns whether a cell is a date in one of the known forms, and not a number."""
    try:
        float(cell)
    except ValueError:
        return any(_parse_one(cell, form) is not None for form in (ISO, *FORMATS))
    return False


def parse(cells: Sequence[str], form: str | None) -> Dates | int:
    """Parses dates.

    Args:
      cells: the text of each row.
      form: `ISO`, or the form of the dates; None finds one that fits all rows. Of several forms
        that fit, such as day before month and month before day, it is one in which the dates
        increase.

    Returns:
      The dates, or the index of the first row that is not a date.
    """
    cells = [cell.strip() for cell in cells]
    failed, parsed = 0, list[Dates]()
    for candidate in (ISO, *FORMATS) if form is None else (form,):
        values = _parse(cells, candidate)
        if isinstance(values, int):
            failed = max(failed, values)
        else:
            parsed.append(Dates(values, candidate))
    if not parsed:
        return failed
    increasing = [each for each in parsed if (np.diff(each.values).astype(np.int64) > 0).all()]
    return (increasing or parsed)[0]


def _parse(cells: Sequence[str], form: str) -> np.ndarray | int:
    """Returns the dates in one form, or the index of the first cell that has another form."""
    values: list[datetime] = []
    for index, cell in enumerate(cells):
        value = _parse_one(cell, form)
        if value is None or (values and (value.tzinfo is None) != (values[0].tzinfo is None)):
            return index
        values.append(value)
    if values and values[0].tzinfo is not None:
        for index, value in enumerate(values):
            try:
                values[index] = value.astimezone(UTC).replace(tzinfo=None)
            except OverflowError:  # before the year 1
                return index
    return np.array(values, "datetime64[us]")


def _parse_one(cell: str, form: str) -> datetime | None:
    try:
        return datetime.fromisoformat(cell) if form == ISO else datetime.strptime(cell, form)
    except (ValueError, OverflowError):
        return None


def write(dates: np.ndarray, form: str, example: str) -> list[str]:
    """Returns dates as text, in the form of the cells of a file.

    Args:
      dates: datetime64[us], as in `Dates`.
      form: the form, as in `Dates`.
      example: a cell of the file, whose separator, precision and offset from UTC are used.
    """
    example = example.strip()
    zone: tzinfo | None = None
    like = _parse_one(example, form)
    if like is not None:
        zone = like.tzinfo
    values = [value.item() for value in dates.astype("datetime64[us]")]
    if zone is not None:
        values = [value.replace(tzinfo=UTC).astimezone(zone) for value in values]
    if form != ISO:
        return [value.strftime(form) for value in values]
    midnight = timedelta(0)
    has_time = len(example) > 10 or any(
        timedelta(hours=v.hour, minutes=v.minute, seconds=v.second) != midnight for v in values
    )
    if not has_time:
        return [value.date().isoformat() for value in values]
    separator = example[10] if len(example) > 10 and not example[10].isdigit() else " "
    clock = re.split(r"[+Z]|(?<=\d)-", example[11:])[0]
    precise = "." in clock or any(value.microsecond for value in values)
    fits_minutes = clock.count(":") == 1 and not any(value.second for value in values)
    timespec = "microseconds" if precise else "minutes" if fits_minutes else "seconds"
    texts = [value.isoformat(separator, timespec) for value in values]
    return [text.removesuffix("+00:00") + "Z" if example.endswith("Z") else text for text in texts]


def find_calendar(dates: np.ndarray, spacing: Spacing) -> tuple[Calendar, ...]:
    """Returns the periods that are longer than two rows, and that the dates cover at least twice.

    A weekly period needs rows on different days of the week, a daily one rows at different times.
    """
    covered = int((dates[-1] - dates[0]).astype(np.int64)) if len(dates) else 0
    step = {"months": 30 * DAY, "business_days": DAY}.get(spacing.unit, spacing.count)
    return tuple(
        name
        for name, period in PERIODS.items()
        if 2 * period <= covered and step <= period / 2 and _varies(dates, name)
    )


def _varies(dates: np.ndarray, name: Calendar) -> bool:
    phases = calendar_features(dates, (name,))
    return bool((phases.max(axis=0) - phases.min(axis=0)).max() > 1e-6)


def calendar_features(dates: np.ndarray, periods: Sequence[Calendar]) -> np.ndarray:
    """Returns sine and cosine of the phase of each period, `[rows, 2 * periods]`.

    The phase of a day is the time of the day; that of a week begins on Monday; that of a year is
    the part of the calendar year that has passed.
    """
    features = []
    for name in periods:
        if name == "year":
            starts = dates.astype("datetime64[Y]")
            length = ((starts + 1).astype("datetime64[us]") - starts).astype(np.int64)
            phase = (dates - starts).astype(np.int64) / length
        else:
            monday = np.datetime64("1970-01-05", "us")
            period = int(PERIODS[name])
            phase = ((dates - monday).astype(np.int64) % period) / period
        features += [np.sin(2 * np.pi * phase), np.cos(2 * np.pi * phase)]
    return np.stack(features, axis=-1) if features else np.zeros((len(dates), 0))


def calendar_names(periods: Sequence[Calendar]) -> tuple[str, ...]:
    """Returns the names of the calendar features, such as "day (sine)"."""
    return tuple(f"{name} ({wave})" for name in periods for wave in ("sine", "cosine"))
