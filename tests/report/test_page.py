"""The page and the charts of a report, without a run."""

import base64
import json

import numpy as np

from jrnn.report.charts import (
    Axis,
    Band,
    Mark,
    Series,
    decimate,
    heat_map,
    image,
    lines,
    parallel,
)
from jrnn.report.examples import forecast_figure
from jrnn.report.page import Page, element, format_number, grid, panels, render, shade, table
from tests.report.helpers import assert_self_contained

HOSTILE = "</script><script>alert(1)</script><!-- \"'& \x1b[31m \u202e \ud800"
"""Text that ends elements, is code, controls a terminal, reverses text, or is not UTF-8."""


def test_text_everywhere_on_a_page_is_shown_and_not_executed():
    page = Page(HOSTILE, HOSTILE)
    spec = lines(HOSTILE, HOSTILE, [Series(HOSTILE, [0], [1.0])], marks=[Mark("y", 1.0, HOSTILE)])
    page.add_section(
        HOSTILE,
        HOSTILE,
        table([HOSTILE], [[HOSTILE]], sortable=True),
        element("mark", HOSTILE, title=HOSTILE, class_=HOSTILE),
        page.chart(HOSTILE, spec),
        panels(HOSTILE, [(HOSTILE, [HOSTILE])]),
    )
    html = page.render()
    parsed = assert_self_contained(html)
    html.encode("utf-8")
    shown = HOSTILE.replace("\x1b", r"\x1b").replace("\u202e", r"\u202e")
    shown = shown.replace("\ud800", r"\ud800")
    assert parsed.text().count(shown) >= 7
    (chart,) = parsed.charts().values()
    assert chart["series"][0]["name"] == shown and chart["marks"][0]["name"] == shown
    assert sum(tag == "script" for tag, _ in parsed.elements) == 2


def test_charts_have_null_for_values_that_are_not_finite():
    page = Page("title")
    y = np.array([1.23456789, np.nan, np.inf, -2])
    page.add_section("section", page.chart("chart", lines("x", "y", [Series("a", range(4), y)])))
    (series,) = assert_self_contained(page.render()).charts()["chart"]["series"]
    assert series["x"] == [0, 1, 2, 3] and series["y"] == [1.23457, None, None, -2]


def test_a_section_without_content_is_left_out():
    page = Page("title")
    page.add_section("empty", None, grid(None), panels("Example", []))
    assert "empty" not in page.render()


def test_long_lines_keep_their_extremes():
    rng = np.random.default_rng(0)
    y = rng.normal(size=100_000)
    y[[77_777, 33_333]] = 50, -50
    y[5] = np.nan
    kept = decimate(np.arange(len(y)), y, 500)
    assert len(kept) <= 500 and {0, 33_333, 77_777, 99_999} <= {*kept.tolist()}
    assert (np.diff(kept) > 0).all()
    np.testing.assert_array_equal(decimate(np.arange(500), y[:500], 500), np.arange(500))


def test_a_log_axis_needs_a_positive_value():
    series = lambda y: [Series("a", [0, 1], y)]
    assert lines("x", "y", series([0.0, 2.0]), log=True)["y"]["log"] is True
    assert "log" not in lines("x", "y", series([0.0, -1.0]), log=True)["y"]


def test_forecasts_have_dates_and_intervals():
    page = Page("title")
    days = np.array(["2024-02-28", "2024-02-29", "2024-03-01"], "datetime64[D]")
    truth, values = np.array([1.0, 2.0, np.nan]), np.array([1.5, 2.5, 3.5])
    figure = forecast_figure(
        page,
        "load",
        truth,
        values,
        x=days,
        low=values - 1,
        high=values + 1,
        interval="90% interval",
    )
    page.add_section("Forecasts", figure)
    chart = assert_self_contained(page.render()).charts()["load"]
    milliseconds = [1709078400000 + k * 86_400_000 for k in range(3)]
    assert chart["x"]["type"] == "time" and chart["series"][0]["x"] == milliseconds
    assert [s["y"] for s in chart["series"]] == [[1, 2, None], [1.5, 2.5, 3.5]]
    (band,) = chart["bands"]
    assert band["x"] == milliseconds and band["name"] == "90% interval"
    assert (band["low"], band["high"]) == ([0.5, 1.5, 2.5], [2.5, 3.5, 4.5])


def test_band_is_drawn_for_numbers_as_well():
    spec = lines("x", "y", [], bands=[Band("b", [0, 1], [0, 0], [1, 1])])
    assert spec["bands"][0]["x"] == [0, 1] and spec["x"]["type"] == "linear"


def decode_levels(spec):
    levels = np.frombuffer(base64.b64decode(spec["data"]), np.uint8).reshape(spec["shape"])
    return spec["low"] + levels / 255 * (spec["high"] - spec["low"])


def test_heat_maps_keep_their_values_to_256_levels():
    values = np.random.default_rng(0).uniform(-1, 3, (5, 7))
    spec = heat_map(values, "step", "unit")
    assert spec["map"] == "diverging" and spec["low"] == -spec["high"] == -values.max()
    np.testing.assert_allclose(decode_levels(spec), values, atol=spec["high"] / 255)
    spec = heat_map(np.abs(values), "step", "unit", low=0, high=4)
    assert spec["map"] == "viridis"
    np.testing.assert_allclose(decode_levels(spec), np.abs(values), atol=4 / 510)
    constant = heat_map(np.full((2, 2), np.nan), "step", "unit")
    assert decode_levels(constant).tolist() == [[0, 0], [0, 0]]
    np.testing.assert_allclose(decode_levels(image(np.eye(3), "name")), np.eye(3))


def test_parallel_coordinates_have_axes_of_numbers_and_names():
    axes = [
        Axis("rate", [1e-4, 1e-1, None]),
        Axis("cell", ["gru", "lstm", "gru"]),
        Axis("n", [1, 2, 3]),
    ]
    spec = parallel(axes, ["a", "b", "c"], 1)
    assert [axis.get("log") for axis in spec["axes"]] == [True, None, False]
    assert spec["axes"][1]["names"] == ["gru", "lstm"] and spec["axes"][1]["values"] == [0, 1, 0]
    assert json.dumps(spec["axes"][0]["values"]) == "[0.0001, 0.1, null]"


def test_numbers_of_tables_are_rounded_and_sorted_by_their_exact_values():
    html = render(table(["name", "score"], [["a", 0.123456], ["b", None], ["c", 1234567]], best=0))
    assert 'data-value="0.123456">0.1235<' in html and ">1,234,567<" in html
    assert 'data-value="">\N{EN DASH}<' in html and '<tr class="best"><td class="text">a<' in html
    assert [format_number(v) for v in (0.0, 1.5e-7, 123456.0, float("nan"))] == [
        "0",
        "1.5e-07",
        "123,500",
        "nan",
    ]


def test_shades_grow_with_values():
    assert [shade(v, 7.0) for v in (0, 0.01, 3.5, 7)] == [None, "s1", "s4", "s7"]
    assert shade(0, 0) is None and shade(9, 7) == "s7"
