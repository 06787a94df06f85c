"""Table: windows, compared with an explicit loop, and errors for invalid files."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jrnn.tasks import Split, Table, csv_file, series
from jrnn.tasks.conversion import decode_truth

HEADER = "date,load,wind,price"


def _columns(rows: int) -> dict[str, list[float]]:
    rng = np.random.default_rng(2)
    return {
        "load": [round(float(v), 3) for v in rng.normal(50, 5, rows)],
        "wind": [round(float(v), 3) for v in rng.normal(-3, 0.1, rows)],
        "price": [0.1] * rows,
    }


def _write(folder: Path, columns: dict[str, list[float]]) -> str:
    lines = [HEADER]
    for row in range(len(columns["load"])):
        lines.append(f"2024-{row},{columns['load'][row]},{columns['wind'][row]},0.1")
    path = folder / "grid.csv"
    path.write_text("\n".join(lines) + "\n\n", "utf-8")
    return str(path)


def _write_text(folder: Path, text: str) -> str:
    path = folder / "grid.csv"
    path.write_bytes(text.encode("utf-8"))
    return str(path)


def _mean_std(values: list[float]) -> tuple[float, float]:
    """Returns the mean and the standard deviation, which is replaced by 1 for equal values."""
    if len(set(values)) == 1:
        return values[0], 1.0
    mean = sum(values) / len(values)
    return mean, (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5


@pytest.mark.parametrize(
    "window, horizon, warmup, stride", [(1, 1, 0, 1), (5, 1, 2, 1), (4, 3, 0, 2), (6, 2, 5, 9)]
)
def test_windows_match_a_loop_within_each_split(
    tmp_path: Path, window: int, horizon: int, warmup: int, stride: int
):
    """Every forecast of validation and test is scored once, with `warmup` rows before it."""
    columns = _columns(100)
    names, targets = ("wind", "load", "price"), ("load", "wind")
    task = Table(_write(tmp_path, columns), names, targets, window, horizon, 0.15, 0.2, stride)
    data = replace(task, warmup=warmup, exclude=("date",)).load()
    scales = {name: _mean_std(columns[name][:65]) for name in names}
    for split, (begin, end) in zip(
        (data.train, data.validation, data.test), ((0, 65), (65, 80), (80, 100)), strict=True
    ):
        scored = []
        for xs, ys, mask in zip(split.xs, split.ys, split.metric_mask, strict=True):
            start = _find_row(columns, scales, names, xs[0])
            rows = range(start, start + window)
            expected = [[_normalize(columns, scales, name, r) for name in names] for r in rows]
            np.testing.assert_allclose(xs, expected, atol=1e-5)
            for t, row in enumerate(rows):
                np.testing.assert_allclose(
                    ys[t],
                    [
                        _normalize(columns, scales, name, row + 1 + h)
                        - _normalize(columns, scales, name, row)
                        for h in range(horizon)
                        for name in targets
                    ],
                    atol=1e-5,
                )
                assert row + horizon < end and (t >= warmup or not mask[t])
                scored += [row] if mask[t] else []
        if begin == 0:
            assert len(split.xs) == len(range(0, 65 - horizon - window + 1, stride))
        else:
            assert sorted(scored) == list(range(begin - 1, end - horizon))
    assert data.target_scaler is not None
    expected = [scales[name][1] for name in targets] * horizon
    np.testing.assert_allclose(data.target_scaler.std, expected)
    assert (data.input_size, data.output_size) == (3, 2 * horizon)


def _find_row(columns: dict, scales: dict, names: tuple, x: np.ndarray) -> int:
    """Returns the row of the file whose normalized values are nearest to `x`."""
    rows = range(len(columns["load"]))
    distances = [
        sum(abs(_normalize(columns, scales, name, r) - v) for name, v in zip(names, x, strict=True))
        for r in rows
    ]
    return int(np.argmin(distances))


def _normalize(columns: dict, scales: dict, name: str, row: int) -> float:
    mean, std = scales[name]
    return (columns[name][row] - mean) / std


def test_test_rows_do_not_affect_other_splits(tmp_path: Path):
    columns = _columns(100)
    before = Table(_write(tmp_path, columns), ("load", "wind"), window=3).load()
    columns["load"][85:] = [1e9] * 15
    after = Table(_write(tmp_path, columns), ("load", "wind"), window=3).load()
    for part in ("train", "validation"):
        one, other = getattr(before, part), getattr(after, part)
        assert isinstance(one, Split)
        assert np.array_equal(one.xs, other.xs) and np.array_equal(one.ys, other.ys)
    assert after.test.xs.max() > 1e6


def test_all_columns_are_inputs_and_targets_by_default(tmp_path: Path):
    path = _write_text(tmp_path, "\ufeffb, a\r\n" + "".join(f"{i},{-i}\r\n" for i in range(40)))
    data = Table(path, window=2).load()
    assert (data.input_size, data.output_size) == (2, 2)
    np.testing.assert_allclose(data.train.xs[..., 0], -data.train.xs[..., 1], atol=1e-6)
    assert (np.diff(data.train.xs[0, :, 0]) > 0).all()
    single = Table(path, columns=("a",), window=2).load()
    assert (single.input_size, single.output_size) == (1, 1)
    assert (single.train.ys[0, :, 0] < 0).all()


def test_targets_are_inputs_too(tmp_path: Path):
    path = _write(tmp_path, _columns(60))
    data = Table(path, ("wind",), ("load",), window=2).load()
    assert (data.input_names, data.output_size) == (("wind", "load"), 1)
    other = Table(path, ("wind", "load"), ("load",), window=2).load()
    assert np.array_equal(data.test.ys, other.test.ys)
    left_out = Table(path, exclude=("date", "wind", "price"), window=2).load()
    assert left_out.input_names == ("load",)


def test_constant_column_becomes_zeros_with_scale_one(tmp_path: Path):
    data = Table(_write(tmp_path, _columns(60)), ("price", "load"), window=2).load()
    assert (data.train.xs[..., 0] == 0).all() and (data.train.xs[..., 1] != 0).any()
    assert data.target_scaler is not None and data.target_scaler.std[0] == 1.0


def test_baselines_match_loops(tmp_path: Path):
    columns = _columns(100)
    task = Table(_write(tmp_path, columns), (), ("load",), window=5, horizon=4, season=3)
    data = replace(task, exclude=("date",)).load()
    load, (_, std) = columns["load"], _mean_std(columns["load"][:70])
    persistence, seasonal = [], []
    for row in range(84, 96):
        for h in range(1, 5):
            last = row + h - 3 if h <= 3 else row + h - 6
            persistence.append(((load[row + h] - load[row]) / std) ** 2)
            seasonal.append(((load[row + h] - load[last]) / std) ** 2)
    expected = {"persistence": np.mean(persistence), "seasonal naive, 3 rows": np.mean(seasonal)}
    assert data.baselines is not None
    outputs, mask = data.baselines("test"), data.test.metric_mask
    for name, value in expected.items():
        errors = np.square(outputs[name] - data.test.ys)[mask]
        assert errors.mean() == pytest.approx(value, rel=1e-4)
    best = min(expected, key=lambda name: expected[name])
    assert data.baseline == (best, pytest.approx(expected[best], rel=1e-4))


def test_too_few_rows_raises_with_required_number(tmp_path: Path):
    task = Table(_write(tmp_path, _columns(13)), ("load",), window=8, horizon=2, exclude=("date",))
    with pytest.raises(
        ValueError, match="at least 10, 2 and 2 rows, got 9, 2 and 2 of 13; 16 rows are enough"
    ):
        task.load()
    _write(tmp_path, _columns(16))
    assert len(task.load().test.xs) == 1
    with pytest.raises(ValueError, match="got 0, 0 and 0 of 0"):
        Table(_write_text(tmp_path, "a,b\n"), window=8).load()


@pytest.mark.parametrize(
    "text, message",
    [
        ("a,b\n1,2\n3,x\n", "Table: line 3, column 'b' must be a finite number, got 'x'"),
        ("a,b\n1,2\n\n3,4\n", "must have 2 cells, .* got 0 at line 3"),
        ("a,b\n1,2\n,4\n", "line 3, column 'a' must be a finite number, got an empty cell"),
        ("a,b\n1,2\n3, \n", "line 3, column 'b' .* got an empty cell"),
        ("a,b\nnan,2\n", "line 2, column 'a' must be a finite number, got 'nan'"),
        ("a,b\n1,-inf\n", "line 2, column 'b' must be a finite number, got '-inf'"),
        ('"a","b"\n"1\n",2\nx,3\n', "line 4, column 'a'"),
        ("a,b\n1,2,3\n", "must have 2 cells, .* got 3 at line 2"),
        (
            "a,b,a\n1,2,3\n",
            "the first line of .* must name each column once, got 'a' more than once",
        ),
        ("a,,b\n1,2,3\n", "every column must have a name, got none for column 2"),
        ("1,2\n3,4\n", "must contain the column names, got the values 1, 2"),
        ("\n1,2\n", "must contain the column names, got an empty line; add a header line"),
        ("a;b\n1;2\n", "separated by a comma, got the first line 'a;b' .* --task.separator ';'"),
        ("a\tb\n1\t2\n", r"if a tab separates them, set --task.separator \$'.t'"),
        ("a,b\n1,2,\n3,4,\n", "must have 2 cells, as many as the header, got 3 at line 2"),
        ("a,b,\n1,2,\n3,4,\n", "got ',' at the end of every line of .*; remove it there"),
        ('a,b\n1,2\n3,"4\n5,6\n', "got a quote at line 3 that is not closed; close it"),
        ("a\n1\n2020_01\n", "line 3, column 'a' must be a finite number, got '2020_01'"),
        (
            "a\n1\n9.96921e36\n",
            r"line 3, column 'a' must be a number of magnitude at most 1.8e.19, got '9.96921e36'; "
            "if it stands for a missing value, leave the cell empty",
        ),
        ("a\n1e200\n1e200\n", "line 2, column 'a' must be a number of magnitude .* got '1e200'"),
        ('a,b\n1,"2,5"\n', "got '2,5'; if commas are decimal marks, set --task.decimal ,"),
        ("a,b\n1,2,3,4\n", "got 4 at line 2 .*; if commas are decimal marks, separate the cells"),
        ("", "must have a header line of column names, and rows, got an empty"),
        ("\n\n", "must have a header line of column names, and rows, got an empty"),
    ],
)
def test_invalid_files_raise_with_line_and_column(tmp_path: Path, text: str, message: str):
    with pytest.raises(ValueError, match=message):
        Table(_write_text(tmp_path, text), window=2).load()


def test_unused_columns_are_not_parsed(tmp_path: Path):
    text = "day,a\n" + "".join(f"day {i},{i}\n" for i in range(40))
    assert Table(_write_text(tmp_path, text), columns=("a",), window=2).load().input_size == 1
    assert Table(_write_text(tmp_path, text), exclude=("day",), window=2).load().input_size == 1
    with pytest.raises(ValueError, match="line 2, column 'day' .* --task.exclude day; .*group day"):
        Table(_write_text(tmp_path, text), window=2).load()


def test_table_of_many_columns_is_read_in_linear_time(tmp_path: Path):
    names = [f"c{number}" for number in range(50_000)]
    rows = "\n".join(",".join(["1"] * len(names)) for _ in range(2))
    (tmp_path / "wide.csv").write_text(",".join(names) + "\n" + rows)
    start = time.process_time()
    file = csv_file.read(str(tmp_path / "wide.csv"))
    assert csv_file.parse_columns(file, "columns", file.header).shape == (2, len(names))
    columns = series.find_columns(file, file.header, (), file.header[::-1], None, None, None)
    assert columns.inputs == file.header
    assert time.process_time() - start < 10  # a quadratic algorithm takes minutes
    with pytest.raises(ValueError, match="columns must be one of c0, .*, got 'd'") as error:
        csv_file.parse_columns(file, "columns", ("d",))
    assert len(str(error.value)) < 1000


def test_too_large_csv_cell_raises_with_line_number(tmp_path: Path):
    with pytest.raises(ValueError, match="Table: .* must be CSV, got an error at line 2"):
        Table(_write_text(tmp_path, "a\n" + "1" * 200_000 + "\n")).load()


def test_unknown_columns_raise_with_suggestion(tmp_path: Path):
    path = _write(tmp_path, _columns(60))
    with pytest.raises(
        ValueError, match="Table: columns must be one of .*, got 'wint'; did you mean 'wind'"
    ):
        Table(path, columns=("wint",)).load()
    with pytest.raises(ValueError, match="Table: targets must be one of date, load, wind, price"):
        Table(path, columns=("wind",), targets=("x",)).load()
    with pytest.raises(ValueError, match="columns must not name a column of exclude, got 'wind'"):
        Table(path, columns=("wind",), exclude=("wind",)).load()
    with pytest.raises(ValueError, match="inputs must be targets for recursive=True.* got price"):
        Table(path, targets=("load", "wind"), exclude=("date",), recursive=True).load()


def test_missing_and_non_utf8_files_raise(tmp_path: Path):
    _write(tmp_path, _columns(10))
    with pytest.raises(FileNotFoundError, match="Table: no file .* did you mean 'grid.csv'"):
        Table(str(tmp_path / "grit.csv")).load()
    (tmp_path / "grid.csv").write_bytes(b"a\n1\n\xff\n")
    with pytest.raises(ValueError, match="Table: .* 0xff at byte offset 4"):
        Table(str(tmp_path / "grid.csv")).load()


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"path": None}, TypeError, "Table: path must be a non-empty string, got None"),
        ({"columns": "ab"}, TypeError, "Table: columns must be a tuple of strings .* got 'ab'"),
        ({"columns": ["a"]}, TypeError, r"Table: columns must be a tuple .* got \['a'\]"),
        ({"targets": (1,)}, TypeError, r"Table: targets must be a tuple .* got \(1,\)"),
        ({"columns": ("a", "a")}, ValueError, "must name each column once, got 'a' more than once"),
        ({"window": 0}, ValueError, "Table: window must be a positive int, got 0"),
        ({"horizon": 0}, ValueError, "Table: horizon must be a positive int, got 0"),
        ({"stride": 0}, ValueError, "Table: stride must be a positive int, got 0"),
        ({"horizon": 10**6}, ValueError, "Table: horizon must be an int from 1 to 100000"),
        ({"warmup": 64}, ValueError, "Table: warmup must be an int from 0 to 63, got 64"),
        ({"season": 0}, ValueError, "Table: season must be an int from 1"),
        ({"missing": "drop"}, ValueError, "missing must be one of refuse, fill, mask, got 'drop'"),
        ({"distribution": "normal"}, ValueError, "must be one of point, gaussian, quantiles"),
        ({"quantiles": (0.5, 0.9)}, ValueError, "quantiles must be at least three increasing"),
        ({"quantiles": (0.5, 0.7, 0.9)}, ValueError, "with 0.5 between the first and the last"),
        ({"separator": ";;"}, ValueError, "separator must be one character"),
        ({"decimal": ","}, ValueError, "separator must differ from decimal"),
        ({"date_form": "%d %s"}, ValueError, "date_form must be 'iso' or consist of directives"),
        ({"date_form": "%99999999Y"}, ValueError, "date_form must be 'iso' or consist of"),
        (
            {"recursive": True, "distribution": "gaussian"},
            ValueError,
            "distribution must be 'point' for recursive=True",
        ),
        ({"test_fraction": 1.0}, ValueError, "Table: test_fraction must be between 0 and 1"),
        ({"validation_fraction": 0.9}, ValueError, "must be below 1"),
    ],
)
def test_invalid_options_raise(options: dict[str, Any], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        Table(**{"path": "grid.csv", **options})


def test_decimal_commas_are_read(tmp_path: Path):
    columns = _columns(60)
    commas = "a;b\n" + "".join(
        f"{load};{wind}\n".replace(".", ",")
        for load, wind in zip(columns["load"], columns["wind"], strict=True)
    )
    points = commas.replace(",", ".").replace(";", ",")
    other = Table(_write_text(tmp_path, points), window=2).load()
    options = {"separator": ";", "decimal": ",", "window": 2}
    data = Table(_write_text(tmp_path, commas), **options).load()
    assert np.array_equal(data.train.xs, other.train.xs)
    with pytest.raises(ValueError, match="line 2, column 'a' .* set --task.decimal ,"):
        Table(_write_text(tmp_path, commas), separator=";", window=2).load()
    with pytest.raises(ValueError, match="got '1.000'; if points are decimal marks, remove"):
        Table(_write_text(tmp_path, "a;b\n1.000;2\n"), **options).load()


def test_missing_values_are_filled_and_not_scored(tmp_path: Path):
    rows = ["", "1", "2", "NA", "n/a", "5", *map(str, range(6, 40))]
    path = _write_text(tmp_path, "a\n" + "\n".join(rows) + "\n")
    with pytest.raises(
        ValueError, match="line 2, .* an empty cell; train with --task.missing fill"
    ):
        Table(path, window=3).load()
    data = Table(path, window=3, horizon=2, missing="fill", stride=1).load()
    mean = np.mean([1, 2, *range(5, 28)])
    filled = [mean, 1, 2, 2, 2, 5, 6]
    assert data.input_scaler is not None and data.target_scaler is not None
    xs = data.input_scaler.invert(data.train.xs)[..., 0]
    np.testing.assert_allclose(xs[:5], [filled[row : row + 3] for row in range(5)], rtol=1e-5)
    changes = data.target_scaler.invert(data.train.ys[1])
    np.testing.assert_allclose(changes, [[1, np.nan], [np.nan, np.nan], [np.nan, 3]], rtol=1e-5)


def test_masks_and_intervals_are_those_of_grud(tmp_path: Path):
    """Compares with the recursion for delta in the paper of GRU-D."""
    rng = np.random.default_rng(0)
    cells = [
        [f"{v:.3f}" if rng.random() < 0.6 else "" for v in rng.normal(size=2)] for _ in range(40)
    ]
    text = "a,b\n" + "".join(",".join(row) + "\n" for row in cells)
    data = Table(_write_text(tmp_path, text), window=20, missing="mask").load()
    mask = np.array([[bool(cell) for cell in row] for row in cells])
    delta = np.zeros((40, 2))
    for t in range(1, 40):
        delta[t] = 1 + np.where(mask[t - 1], 0, delta[t - 1])
    xs = data.train.xs[3]
    np.testing.assert_array_equal(xs[:, 2:4], mask[3:23])
    np.testing.assert_allclose(xs[:, 4:6], delta[3:23])
    np.testing.assert_array_equal(xs[:, 6], 1)
    assert data.input_names == tuple("a b".split()) + tuple(
        f"{name} {kind}" for kind in ("observed", "interval") for name in "ab"
    ) + ("interval",)


def test_series_of_a_group_are_separate(tmp_path: Path):
    """Windows, targets and baselines do not cross series, whose rows alternate."""
    text = "name,a\n" + "".join(f"x,{row}\ny,{1000 + 2 * row}\n" for row in range(60))
    data = Table(_write_text(tmp_path, text), group="name", window=4, horizon=3, stride=1).load()
    assert data.input_scaler is not None and data.target_scaler is not None
    for split in (data.train, data.validation, data.test):
        xs = data.input_scaler.invert(split.xs)[..., 0]
        slope = np.where(xs[:, :1] < 500, 1, 2)  # [N, 1]
        np.testing.assert_allclose(xs, xs[:, :1] + slope * np.arange(4), atol=1e-3)
        changes = data.target_scaler.invert(split.ys)
        expected = np.broadcast_to(slope[..., None] * np.arange(1, 4), changes.shape)
        np.testing.assert_allclose(changes, expected, atol=1e-3)
        assert {1, 2} == set(slope.ravel())


def test_truth_in_original_units_is_the_series_itself(tmp_path):
    path = tmp_path / "index.csv"
    path.write_text("level\n" + "".join(f"{row}\n" for row in range(200)))
    data = Table(str(path), window=8, horizon=3).load()
    truth = decode_truth(data, data.test.ys, data.test.xs)
    assert data.input_scaler is not None
    current = data.input_scaler.invert(data.test.xs)[..., 0]
    for ahead in range(3):
        np.testing.assert_allclose(truth[..., ahead], current + ahead + 1, rtol=1e-6)


def test_hourly_series_with_weekly_periods_has_two_seasonal_baselines(tmp_path: Path):
    lines = ["date,load"]
    start = np.datetime64("2024-01-01T00")
    for hour in range(24 * 7 * 3):
        lines.append(f"{start + hour},{hour % 24 + (40 if hour // 24 % 7 > 4 else 0)}")
    path = tmp_path / "load.csv"
    path.write_text("\n".join(lines))
    data = Table(str(path), window=24, horizon=3).load()
    assert data.forecast is not None and data.forecast.seasons == (24, 168)
    # The series repeats exactly each week.
    assert data.baseline == ("seasonal naive, 168 rows", 0.0)
    assert data.baselines is not None
    assert set(data.baselines("validation")) == {
        "persistence",
        "seasonal naive, 24 rows",
        "seasonal naive, 168 rows",
    }
    path.write_text("\n".join(lines[: 24 * 7 * 2]))  # one row less than two weeks
    data = Table(str(path), window=24, horizon=3).load()
    assert data.forecast is not None and data.forecast.seasons == (24,)


@pytest.mark.parametrize("recursive", [False, True])
def test_each_part_must_have_a_forecast_of_the_whole_horizon(recursive, tmp_path):
    path = _write_text(tmp_path, "level\n" + "".join(f"{row}\n" for row in range(60)))
    options = {"window": 6, "recursive": recursive}
    with pytest.raises(ValueError, match="train, validation and test must have at least"):
        Table(path, horizon=10, **options).load()
    task = Table(path, horizon=9, **options)
    for split in ("validation", "test"):
        assert len(task.find_origins(task.load().spec, split, 1).truth) == 1


@pytest.mark.parametrize("count", [1, 2, 5, 50])
def test_origins_are_shared_by_series(count, tmp_path):
    """There are never more than asked for, and series with fewer rows leave theirs to others."""
    lines = [f"{name},{row}" for name, rows in (("a", 30), ("b", 90)) for row in range(rows)]
    path = _write_text(tmp_path, "\n".join(["name,level", *lines, ""]))
    task = Table(path, group="name", window=4, horizon=2, test_fraction=0.2)
    origins = task.find_origins(task.load().spec, "test", count)
    sizes = {"a": 30 // 5 - 1, "b": 90 // 5 - 1}
    names = origins.context.names
    assert len(names) == len(origins.truth) == min(count, sum(sizes.values()))
    assert [names.count(name) for name in sizes] == {1: [0, 1], 2: [1, 1], 5: [2, 3], 50: [5, 17]}[
        count
    ]
