"""A report in headless Chromium: clicks, keys, values, and no requests.

Needs playwright, and a Chromium of the system.
"""

import shutil
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

import jrnn
from jrnn.cli.main import main
from jrnn.report.charts import Axis, Mark, Series, heat_map, lines, parallel
from jrnn.report.examples import forecast_figure
from jrnn.report.page import Page, grid, table
from tests.report.conftest import FOLDER, SCRIPT

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium; skips the test if it is not installed."""
    sync_api = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("Chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        # Root may run Chromium only without its sandbox; the pages are those of this test.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A page in the browser.

    Attributes:
      page: the page of playwright.
      requests: the addresses of all requests.
      errors: the messages on the console, and uncaught errors.
    """

    def __init__(self, browser, path, width=1200, scheme="light"):
        self.page = browser.new_page(
            viewport={"width": width, "height": 900}, color_scheme=scheme, has_touch=False
        )
        self.page.set_default_timeout(5000)
        self.requests, self.errors = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.address = f"file://{quote(str(path))}"
        self.page.goto(self.address)

    def figure(self, title):
        """Returns the first visible figure with a caption."""
        figures = self.page.locator("figure:visible")
        caption = self.page.locator("figcaption", has_text=title)
        return figures.filter(has=caption).first

    def check(self):
        """Asserts that nothing went wrong, and that the page is not wider than the screen."""
        assert self.errors == [] and self.requests == [self.address]
        assert self.page.evaluate("window.executed") is None
        root = "document.documentElement"
        assert self.page.evaluate(f"{root}.scrollWidth <= {root}.clientWidth")

    def drag(self, box, start, end):
        """Drags across the middle of a box, from one fraction of its width to another."""
        y = box["y"] + box["height"] / 2
        self.page.mouse.move(box["x"] + start * box["width"], y)
        self.page.mouse.down()
        self.page.mouse.move(box["x"] + end * box["width"], y, steps=4)
        self.page.mouse.up()


def x_ticks(figure):
    """Returns the numbers on the x axis of a figure."""
    texts = figure.locator("svg[role=img] g.axis text[text-anchor=middle]").all_text_contents()
    return [float(text.replace(",", "")) for text in texts]


def test_report_of_a_run_works_in_a_browser(browser, in_folder, tmp_path):
    main(["report", FOLDER])
    path = in_folder / FOLDER / "report.html"
    visit = Visit(browser, path)
    page = visit.page
    assert page.locator("h1").text_content() == "Table, LSTM"
    assert SCRIPT in page.locator("body").inner_text()
    loss = visit.figure("Loss")
    before = x_ticks(loss)
    assert before[0] >= 2 and before[-1] == 6

    # Values are shown for the mouse and for the keyboard.
    losses = {m["step"]: m["loss"] for m in jrnn.load(FOLDER).metrics if m["split"] == "validation"}
    svg = loss.locator("svg[role=img]")
    svg.focus()
    page.keyboard.press("End")
    tip = loss.locator(".tip").inner_text()
    assert "training step: 6" in tip
    assert f"validation: {float(f'{losses[6]:.4g}')}" in tip.replace(",", "")
    assert loss.locator("[aria-live]").text_content() == tip
    page.keyboard.press("ArrowLeft")
    assert "training step: 4" in loss.locator(".tip").inner_text()
    box = svg.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 15, box["y"] + 60)
    assert "training step: 6" in loss.locator(".tip").inner_text()

    # Dragging zooms; a double click and a button reset.
    visit.drag(box, 0.6, 0.98)
    assert x_ticks(loss) != before and min(x_ticks(loss)) >= 4
    assert loss.get_by_role("button", name="Reset zoom").is_visible()
    svg.dblclick(position={"x": 200, "y": 60})
    assert x_ticks(loss) == before
    visit.drag(box, 0.6, 0.98)
    loss.get_by_role("button", name="Reset zoom").click()
    assert x_ticks(loss) == before
    page.keyboard.press("+")
    assert x_ticks(loss) != before
    page.keyboard.press("Escape")
    assert x_ticks(loss) == before

    # A click in the legend hides a line; a button changes the axis.
    assert loss.locator("path.series").count() == 2
    loss.get_by_role("button", name="validation").click()
    assert loss.locator("path.series").count() == 1
    line = loss.locator("path.series").get_attribute("d")
    loss.get_by_role("button", name="Use linear axis").click()
    assert loss.locator("path.series").get_attribute("d") != line
    loss.get_by_role("button", name="Use log axis").click()
    assert loss.locator("path.series").get_attribute("d") == line

    # Another example has other gates, which are drawn when they are selected.
    selects = page.locator("select")
    assert selects.count() == 2
    gates = page.locator("section", has=page.locator("h2", has_text="Gates"))
    title = gates.locator("h3:visible").inner_text()
    selects.last.select_option(index=1)
    assert gates.locator("h3:visible").inner_text() != title
    gate = visit.figure("gate f").locator("canvas").first
    assert gate.evaluate("canvas => [canvas.width, canvas.height]") == [16, 3]
    gate.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert visit.figure("gate f").locator(".tip").inner_text().startswith("step 1, unit 0: 0.")

    page.pdf(path=tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    visit.check()
    phone = Visit(browser, path, width=390, scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    assert phone.page.evaluate(background) == "rgb(18, 21, 26)"
    assert phone.page.locator("figure:visible svg[role=img]").first.bounding_box()["width"] > 300
    assert len(phone.page.screenshot(path=tmp_path / "phone.png", full_page=True)) > 20_000
    phone.check()


def test_tables_are_sorted_and_runs_selected(browser, tmp_path):
    page = Page("title")
    rows = [["b", 10.0, None], ["a", 9.0, 2.0], ["c", -100.0, 1.0]]
    axes = [Axis("rate", [1.0, 2.0, 3.0]), Axis("score", [0.1, 0.9, 0.5])]
    days = np.arange("2024-01-01", "2024-03-01", dtype="datetime64[D]")
    values = np.sin(np.arange(60.0))
    many = [Series(f"run {k}", [0, 1], [k, k]) for k in range(10)]
    page.add_section(
        "Section",
        table(["name", "score", "other"], rows, sortable=True),
        page.chart("Parallel", parallel(axes, ["b", "a", "c"], 1)),
        grid(
            forecast_figure(
                page, "Forecast", values, values, x=days, low=values - 1, high=values + 1
            ),
            page.chart("Many", lines("x", "y", many, marks=[Mark("y", 3.0, "baseline")])),
            page.chart("Huge", lines("x", "y", [Series("a", [2**62, 2**62 + 4096], [1e17, 2e17])])),
            page.chart("Log", lines("x", "y", [Series("a", [0, 1], [-1e308, 1e308])], log=True)),
            page.chart("Linear", lines("x", "y", [Series("a", [-1e308, 1], [-1e308, 1e308])])),
            page.chart("Empty", heat_map(np.zeros((3, 0)), "step", "unit")),
            page.chart("Nothing", lines("x", "y", [Series("a", [], [])])),
            page.chart("Last", lines("x", "y", [Series("a", [0, 1], [0, 1])])),
        ),
    )
    path = Path(tmp_path / "page.html")
    path.write_text(page.render(), "utf-8")
    visit = Visit(browser, path)
    names = lambda: visit.page.locator("tbody tr td:first-child").all_text_contents()
    click = lambda name: visit.page.get_by_role("button", name=name, exact=True).click()
    click("score")
    assert names() == ["c", "a", "b"]
    click("score")
    assert names() == ["b", "a", "c"]
    click("other")
    assert names() == ["c", "a", "b"]  # a missing value is last in both orders
    click("other")
    assert names() == ["a", "c", "b"]
    click("name")
    assert names() == ["a", "b", "c"]
    assert visit.page.locator("th[aria-sort]").count() == 1

    figure = visit.figure("Parallel")
    svg = figure.locator("svg[role=img]")
    svg.focus()
    visit.page.keyboard.press("End")
    assert figure.locator(".tip").inner_text().split("\n") == ["c", "rate: 3", "score: 0.5"]
    box = svg.bounding_box()
    x = box["x"] + 34  # the first axis
    visit.page.mouse.move(x, box["y"] + 40)
    visit.page.mouse.down()
    visit.page.mouse.move(x, box["y"] + 120, steps=4)
    visit.page.mouse.up()
    shown = "path => path.getAttribute('visibility') !== 'hidden'"
    paths = figure.locator("path[data-run]")
    visible = {
        paths.nth(k).get_attribute("data-run") for k in range(3) if paths.nth(k).evaluate(shown)
    }
    assert visible == {"2"}  # only the run with rate 3 is at the upper end of the axis
    svg.dblclick(position={"x": 500, "y": 200})
    assert all(paths.nth(k).evaluate(shown) for k in range(3))

    forecast = visit.figure("Forecast")
    forecast.locator("svg[role=img]").focus()
    visit.page.keyboard.press("Home")
    assert forecast.locator(".tip").inner_text().split("\n") == [
        "time: 2024-01-01",
        "true: 0",
        "predicted: 0",
        "interval: -1 to 1",
    ]
    assert forecast.locator("path.band").count() == 1
    assert x_ticks(visit.figure("Last"))  # the charts before it have not stopped the script
    chart = visit.figure("Many")
    box = chart.locator("svg[role=img]").bounding_box()
    visit.page.mouse.move(box["x"] + box["width"] - 16, box["y"] + 20)
    assert chart.locator(".tip").inner_text().startswith("run 9\n")
    visit.check()
