"""Dates of tables: forms, spacing, missing rows, calendar features, and later dates."""

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from jrnn.tasks import Table, dates

START = datetime(2024, 1, 30, 22)


def _times(texts):
    return np.array(texts, "datetime64[us]")


def _table(folder: Path, cells, **options) -> Table:
    path = folder / "dated.csv"
    rows = "".join(f"{cell},{index}\n" for index, cell in enumerate(cells))
    path.write_text("when,level\n" + rows)
    return Table(str(path), **{"window": 4, **options})


@pytest.mark.parametrize(
    ("form", "example", "later"),
    [
        ("%Y-%m-%d %H:%M:%S", "2024-01-30 22:00:00", "2024-01-31 21:00:00"),
        ("%Y-%m-%dT%H:%M", "2024-01-30T22:00", "2024-01-31T21:00"),
        ("%Y-%m-%dT%H:%M:%SZ", "2024-01-30T22:00:00Z", "2024-01-31T21:00:00Z"),
        ("%Y-%m-%d %H:%M:%S+02:00", "2024-01-30 22:00:00+02:00", "2024-01-31 21:00:00+02:00"),
        ("%d.%m.%Y %H:%M", "30.01.2024 22:00", "31.01.2024 21:00"),
        ("%m/%d/%Y %H:%M", "01/30/2024 22:00", "01/31/2024 21:00"),
    ],
)
def test_dates_are_found_and_continued_in_their_form(form, example, later, tmp_path):
    cells = [(START + timedelta(hours=row)).strftime(form) for row in range(60)]
    assert cells[0] == example
    task = _table(tmp_path, cells[:24], horizon=36, validation_fraction=0.2, test_fraction=0.2)
    with pytest.raises(ValueError, match="rows are enough"):
        task.load()
    task = _table(tmp_path, cells[:24], horizon=1)
    data = task.load()
    assert data.input_names == ("level",) and data.forecast is not None
    assert data.forecast.seasons == ()  # the series has fewer than two days
    context = task.read_context(task.path, data.spec)
    assert context.dates == [[cells[24]]]
    assert dates.write(_times(["2024-01-31T21"]), data.forecast.date_form or "", example) in (
        [later],
        [later.replace("21:00:00+02:00", "23:00:00+02:00")],  # values are in UTC
    )


HOUR, WEEK = 3600 * 10**6, 7 * dates.DAY
SPACINGS = {
    "hours": ("2024-01-01T00 2024-01-01T01 2024-01-01T02", HOUR, "2024-01-01T04", (24, 168)),
    "business_days": ("2024-01-04 2024-01-05 2024-01-08 2024-01-09", 1, "2024-01-11", (5,)),
    "months": ("2023-11-30 2023-12-31 2024-01-31", 1, "2024-03-31", (12,)),
    "quarters": ("2024-01-15 2024-04-15 2024-07-15", 3, "2025-01-15", (4,)),
    "weeks": ("2024-01-01 2024-01-08 2024-01-15", WEEK, "2024-01-29", (52,)),
    "irregular": ("2024-01-01 2024-01-02 2024-01-07 2024-02-01", 5 * dates.DAY, "2024-02-11", ()),
}
UNITS = {"hours": "microseconds", "weeks": "microseconds", "quarters": "months"}


@pytest.mark.parametrize("name", SPACINGS)
def test_spacing_is_found_and_continued(name):
    texts, count, later, seasons = SPACINGS[name]
    times = _times(texts.split())
    spacing = dates.Spacing.find(times)
    assert (spacing.unit, spacing.count) == (UNITS.get(name, name), count)
    assert spacing.seasons == seasons
    anchor = int(times.astype("datetime64[D]").astype(str)[-1][-2:])
    assert spacing.dates_from(times[-1], np.array([2]), anchor)[0] == np.datetime64(later)
    np.testing.assert_array_equal(spacing.positions(times), np.arange(len(times)))


def test_shorter_months_do_not_change_the_day():
    spacing = dates.Spacing("months", 1)
    later = spacing.dates_from(np.datetime64("2024-02-29", "us"), np.array([1, 2]), 31)
    assert later.astype("datetime64[D]").astype(str).tolist() == ["2024-03-31", "2024-04-30"]


@pytest.mark.parametrize(
    ("texts", "later"),
    [
        ("2023-06-30 2023-09-30", "2023-12-31 2024-03-31"),
        ("2023-02-28 2023-04-30 2023-06-30", "2023-08-31 2023-10-31"),
        ("2023-01-30 2023-02-28 2023-03-30", "2023-04-30 2023-05-30"),
    ],
)
def test_ends_of_months_are_continued(texts, later):
    times = _times(texts.split())
    spacing = dates.Spacing.find(times)
    found = spacing.dates_from(times[-1], np.array([1, 2]), dates.day_of_month(times))
    np.testing.assert_array_equal(found, _times(later.split()))


def test_series_with_one_monthly_row_is_too_short(tmp_path):
    lines = [f"{2000 + k // 12}-{k % 12 + 1:02d}-01,a,{k % 7}" for k in range(60)]
    (tmp_path / "rows.csv").write_text("\n".join(["when,name,level", *lines, ""]))
    task = Table(str(tmp_path / "rows.csv"), window=4, group="name")
    spec = task.load().spec
    (tmp_path / "rows.csv").write_text("\n".join(["when,name,level", *lines, "2001-01-01,b,1", ""]))
    with pytest.raises(ValueError, match="at least 3 rows of 'b' for a forecast, got 1"):
        task.read_context(task.path, spec)


def test_dates_after_the_year_9999_raise():
    for spacing in (dates.Spacing("months", 1000), dates.Spacing("microseconds", 10**17)):
        with pytest.raises(ValueError, match="before the year 10000"):
            spacing.dates_from(np.datetime64("2024-02-29", "us"), np.array([10**5]))


def test_missing_rows_are_refused_or_added(tmp_path):
    cells = [(START + timedelta(hours=row)).isoformat() for row in range(60)]
    kept = cells[:20] + cells[22:]
    with pytest.raises(
        ValueError, match="got 2 missing rows in column 'when', the first before line 22 .*fill"
    ):
        _table(tmp_path, kept).load()
    data = _table(tmp_path, kept, missing="fill", stride=1).load()
    assert data.input_scaler is not None
    levels = data.input_scaler.invert(data.train.xs[18])[:, 0]
    np.testing.assert_allclose(levels, [18, 19, 19, 19], rtol=1e-5)
    # The targets of rows 19 and 20 are missing.
    np.testing.assert_array_equal(np.isnan(data.train.ys[15:20, -1, 0]), [0, 1, 1, 0, 0])


def test_irregular_dates_give_intervals(tmp_path):
    hours = np.cumsum(np.random.default_rng(0).integers(1, 50, 60))
    cells = [(START + timedelta(hours=int(hour))).isoformat() for hour in hours]
    data = _table(tmp_path, cells, missing="mask", calendar=False, stride=1).load()
    median = np.median(np.diff(hours))
    np.testing.assert_allclose(data.train.xs[5, :, -1], np.diff(hours)[4:8] / median, rtol=1e-6)


def test_invalid_dates_raise_with_line(tmp_path):
    cells = [(START + timedelta(hours=row)).isoformat() for row in range(40)]
    replaced = lambda cell: cells[:5] + [cell] + cells[6:]
    for row, message in {
        "soon": "line 7, column 'when' must be a date, got 'soon'",
        cells[4]: "must increase from row to row, got .* at line 7, column 'when'",
        "2024-01-31T03:10:00": "must be equally spaced, .* --task.missing mask to show",
    }.items():
        with pytest.raises(ValueError, match=message):
            _table(tmp_path, replaced(row)).load()


def test_other_files_must_have_the_spacing_of_the_training_data(tmp_path):
    cells = [(START + timedelta(hours=row)).isoformat() for row in range(40)]
    task = _table(tmp_path, cells)
    spec = task.load().spec
    for last, message in {
        "2024-02-01T13:10:00": "spacing of the training data, 1:00:00, got .* at line 41",
        "9000-01-01T00:00:00": "mostly without gaps, got .* the most before line 41, column 'when'",
    }.items():
        _table(tmp_path, [*cells[:39], last])
        with pytest.raises(ValueError, match=message):
            task.read_context(task.path, spec)


def test_calendar_features_are_the_phases_of_periods():
    times = _times(["2024-01-01T06", "2024-01-04T12", "2023-07-02T12"])
    features = dates.calendar_features(times, ("day", "week", "year"))
    week = 2 * np.pi * 3.5 / 7
    np.testing.assert_allclose(features[0, :2], [1, 0], atol=1e-12)  # a quarter of a day
    np.testing.assert_allclose(features[1, 2:4], [np.sin(week), np.cos(week)], atol=1e-12)
    np.testing.assert_allclose(features[2, 4:], [0, -1], atol=1e-9)  # half of 2023


def test_calendar_features_are_those_that_vary_and_repeat():
    hourly = np.datetime64("2024-01-01", "us") + np.arange(24 * 30) * np.timedelta64(1, "h")
    assert dates.find_calendar(hourly, dates.Spacing.find(hourly)) == ("day", "week")
    daily = np.datetime64("2020-01-01", "us") + np.arange(800) * np.timedelta64(1, "D")
    assert dates.find_calendar(daily, dates.Spacing.find(daily)) == ("week", "year")
    weekly = daily[::7]
    assert dates.find_calendar(weekly, dates.Spacing.find(weekly)) == ("year",)
    assert dates.find_calendar(daily[:1], dates.Spacing.find(daily[:1])) == ()
