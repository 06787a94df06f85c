"""Table: windows, compared with an explicit loop, and errors for invalid files."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jrnn.tasks import Split, Table, csv_file

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


@pytest.mark.parametrize("window, horizon, stride", [(1, 1, 1), (5, 1, 1), (4, 3, 2), (6, 2, 9)])
def test_windows_match_a_loop_within_each_split(
    tmp_path: Path, window: int, horizon: int, stride: int
):
    columns = _columns(100)
    names, targets = ("wind", "load", "price"), ("load", "wind")
    path = _write(tmp_path, columns)
    data = Table(path, names, targets, window, horizon, 0.15, 0.2, stride).load()
    scales = {name: _mean_std(columns[name][:65]) for name in names}
    bounds = ((0, 65, stride), (65, 80, window), (80, 100, window))
    for split, (begin, end, step) in zip(
        (data.train, data.validation, data.test), bounds, strict=True
    ):
        xs, ys, start = [], [], begin
        while start + window - 1 + horizon < end:
            rows = range(start, start + window)
            xs.append([[_normalize(columns, scales, name, r) for name in names] for r in rows])
            ys.append(
                [[_normalize(columns, scales, name, r + horizon) for name in targets] for r in rows]
            )
            start += step
        assert len(xs) > 0
        np.testing.assert_allclose(split.xs, xs, atol=1e-5)
        np.testing.assert_allclose(split.ys, ys, atol=1e-5)
    assert data.target_scaler is not None
    np.testing.assert_allclose(data.target_scaler.std, [scales[name][1] for name in targets])
    assert (data.input_size, data.output_size) == (3, 2)


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
    assert (np.diff(single.train.ys[0, :, 0]) < 0).all()


def test_targets_may_differ_from_inputs(tmp_path: Path):
    data = Table(_write(tmp_path, _columns(60)), ("wind",), ("load",), window=2).load()
    assert (data.input_size, data.output_size) == (1, 1)
    two_inputs = Table(_write(tmp_path, _columns(60)), ("wind", "load"), ("load",), window=2).load()
    assert np.array_equal(data.test.ys, two_inputs.test.ys)


def test_constant_column_becomes_zeros_with_scale_one(tmp_path: Path):
    data = Table(_write(tmp_path, _columns(60)), ("price",), window=2).load()
    assert (data.train.xs == 0).all()
    assert data.target_scaler is not None and data.target_scaler.std == (1.0,)


@pytest.mark.parametrize("horizon", [1, 4])
def test_baseline_is_persistence(tmp_path: Path, horizon: int):
    columns = _columns(100)
    data = Table(_write(tmp_path, columns), ("load",), window=5, horizon=horizon).load()
    _, std = _mean_std(columns["load"][:70])
    test = columns["load"][85:]
    windows = (15 - horizon) // 5
    errors = [((test[r + horizon] - test[r]) / std) ** 2 for r in range(windows * 5)]
    assert data.baseline == ("persistence", pytest.approx(sum(errors) / len(errors), rel=1e-4))


def test_too_few_rows_raises_with_required_number(tmp_path: Path):
    task = Table(_write(tmp_path, _columns(50)), ("load",), window=8, horizon=2)
    with pytest.raises(
        ValueError, match="Table: .* at least 10 rows each, got 34, 8 and 8 of 50; 67 rows are"
    ):
        task.load()
    _write(tmp_path, _columns(67))
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
        ("1,2\n3,4\n", "must contain the column names, got the numbers 1, 2"),
        ("\n1,2\n", "must contain the column names, got an empty line; add a header line"),
        ("a;b\n1;2\n", "must be separated by commas, got the first line 'a;b'"),
        ("a\tb\n1\t2\n", "must be separated by commas"),
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
    with pytest.raises(ValueError, match="line 2, column 'day' .* remove the column"):
        Table(_write_text(tmp_path, text), window=2).load()


def test_table_of_many_columns_is_read_in_linear_time(tmp_path: Path):
    names = [f"c{number}" for number in range(50_000)]
    rows = "\n".join(",".join(["1"] * len(names)) for _ in range(2))
    (tmp_path / "wide.csv").write_text(",".join(names) + "\n" + rows)
    start = time.process_time()
    file = csv_file.read(str(tmp_path / "wide.csv"))
    assert csv_file.parse_columns(file, "columns", file.header).shape == (2, len(names))
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
        ({"test_fraction": 1.0}, ValueError, "Table: test_fraction must be between 0 and 1"),
        ({"validation_fraction": 0.9}, ValueError, "must be below 1"),
    ],
)
def test_invalid_options_raise(options: dict[str, Any], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        Table(**{"path": "grid.csv", **options})
