"""A self-contained HTML page with charts: no request leaves it, and all text is escaped.

Elements are those of `xml.etree`, whose serializer escapes text and attributes. A
Content-Security-Policy allows only the style and the script of the page, by their hashes, so that
text of a run that looks like code is not executed.
"""

import base64
import hashlib
import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from jrnn.messages import escape_controls

Element = ElementTree.Element
Child = Element | str | None
Spec = dict[str, Any]
"""The JSON of a chart; `page.js` draws it."""

MAX_DIGITS = 6
"""Number of significant digits of the values in a chart."""
MAX_TEXT = 500
"""Maximum length of a name in a chart."""


def element(name: str, *children: Child, **attributes: str | None) -> Element:
    """Makes an HTML element.

    Args:
      name: its tag.
      *children: elements and texts, in which unprintable characters are escaped; None is omitted.
      **attributes: attributes; None is omitted, `class_` is "class", and `data_x` is "data-x".

    >>> render(element("p", "1 < 2", class_="muted"))
    '<p class="muted">1 &lt; 2</p>'
    """
    names = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
    result = Element(name, {k: escape_controls(v) for k, v in names.items() if v is not None})
    last: Element | None = None
    for child in children:
        if isinstance(child, Element):
            result.append(child)
            last = child
        elif child is not None:
            text = escape_controls(child)
            if last is None:
                result.text = (result.text or "") + text
            else:
                last.tail = (last.tail or "") + text
    return result


def render(node: Element) -> str:
    """Returns an element as HTML."""
    return ElementTree.tostring(node, encoding="unicode", method="html")


def table(
    columns: list[str],
    rows: list[list[Any]],
    *,
    numeric: set[int] | None = None,
    best: int | None = None,
    sortable: bool = False,
) -> Element:
    """Makes a table that scrolls if it is wider than the page.

    Args:
      columns: the names of the columns.
      rows: the cells of each row: texts, numbers, elements or None. A number is rounded, and has
        its exact value as the attribute `data-value`, by which `page.js` sorts.
      numeric: the indices of columns that are aligned to the right; None means all with numbers.
      best: index of a row in bold, or None.
      sortable: whether a click on the name of a column sorts the rows.
    """
    if numeric is None:
        is_number = lambda cell: isinstance(cell, int | float) and not isinstance(cell, bool)
        numeric = {k for k in range(len(columns)) if any(is_number(row[k]) for row in rows)}
    class_of = lambda k: "number" if k in numeric else "text"
    heads = [element("th", name, class_=class_of(k), scope="col") for k, name in enumerate(columns)]
    body = [
        element(
            "tr",
            *(_make_cell(cell, class_of(k)) for k, cell in enumerate(row)),
            class_="best" if index == best else None,
        )
        for index, row in enumerate(rows)
    ]
    content = element(
        "table",
        element("thead", element("tr", *heads)),
        element("tbody", *body),
        class_="sortable" if sortable else None,
    )
    return element("div", content, class_="scroll")


def _make_cell(value: Any, class_: str) -> Element:
    if isinstance(value, Element | str):
        return element("td", value, class_=class_)
    if value is None:
        return element("td", "\N{EN DASH}", class_=class_, data_value="")
    return element("td", format_number(value), class_=class_, data_value=repr(value))


def format_number(value: float) -> str:
    """Returns a number with four significant digits, or all digits of an int.

    >>> format_number(0.123456), format_number(31234.5), format_number(1259)
    ('0.1235', '31,230', '1,259')
    """
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value) or (value and not 1e-4 <= abs(value) < 1e7):
        return f"{value:.3g}"
    if abs(value) >= 1000:
        return f"{float(f'{value:.4g}'):,.0f}"
    return f"{value:.4g}"


class Page:
    """A page under construction: sections, and the charts in them."""

    def __init__(self, title: str, lead: str = ""):
        """Makes an empty page.

        Args:
          title: the title and the heading.
          lead: a sentence below the heading.
        """
        self._title, self._lead = title, lead
        self._sections: list[tuple[str, list[Element]]] = []
        self._charts: dict[str, Spec] = {}

    def add_section(self, title: str, *content: Child) -> None:
        """Adds a section with a heading, unless all of its content is None."""
        elements = [element("p", c) if isinstance(c, str) else c for c in content if c is not None]
        if elements:
            self._sections.append((title, elements))

    def chart(self, title: str | None, spec: Spec) -> Element:
        """Adds a chart, and returns the figure that shows it.

        Args:
          title: the caption of the figure; None means no caption.
          spec: from a function of `jrnn.report.charts`.
        """
        name = str(len(self._charts))
        self._charts[name] = {"label": title or "", **spec}
        return element(
            "figure",
            None if title is None else element("figcaption", title),
            element("div", class_="chart", data_chart=name),
        )

    def render(self) -> str:
        """Returns the page as HTML."""
        style, script = (_read(name) for name in ("page.css", "page.js"))
        policy = (
            f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
            "img-src data:; base-uri 'none'; form-action 'none'"
        )
        head = element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", **{"http-equiv": "Content-Security-Policy", "content": policy}),
            element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name_="color-scheme", content="light dark"),
            element("meta", name_="referrer", content="no-referrer"),
            element("link", rel="icon", href="data:,"),
            element("title", self._title),
            _raw("style", style),
        )
        links = [
            element("a", title, href=f"#section-{index}")
            for index, (title, _) in enumerate(self._sections)
        ]
        sections = [
            element("section", element("h2", title, id=f"section-{index}"), *content)
            for index, (title, content) in enumerate(self._sections)
        ]
        charts = json.dumps(_to_json(self._charts), allow_nan=False, separators=(",", ":"))
        body = element(
            "body",
            element(
                "header",
                element("h1", self._title),
                element("p", self._lead, class_="muted") if self._lead else None,
                element("nav", *links, aria_label="Sections"),
            ),
            element(
                "noscript",
                element("p", "The charts of this page need JavaScript.", class_="note"),
            ),
            element("main", *sections),
            # `<` could end the element, or begin a comment.
            _raw("script", charts.replace("<", "\\u003c"), id="charts", type="application/json"),
            _raw("script", script),
        )
        return f"<!doctype html>\n{render(element('html', head, body, lang='en'))}\n"


def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text("utf-8")


def _hash(text: str) -> str:
    """Returns the source of a Content-Security-Policy that allows an inline style or script."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _raw(name: str, text: str, **attributes: str) -> Element:
    """Makes a style or script, whose text the serializer does not escape."""
    result = element(name, **attributes)
    result.text = text
    return result


def _to_json(value: Any) -> Any:
    """Converts arrays to lists, and rounds floats; those that are not finite become None."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, float):
        return float(f"{value:.{MAX_DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, str):
        return escape_controls(value)
    if isinstance(value, dict):
        return {key: _to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    return value


def panels(label: str, content: list[tuple[str, list[Child]]]) -> Element | None:
    """Makes panels of which one is shown, selected by its title; None without content.

    Args:
      label: the label of the selection, such as "Example".
      content: the title and the content of each panel.
    """
    if not content:
        return None
    parts = [
        element("div", element("h3", title), *children, class_="panel")
        for title, children in content
    ]
    return element("div", *parts, class_="panels", data_label=label)


def grid(*content: Child, small: bool = False) -> Element | None:
    """Makes a grid of figures, as wide as the page; None if all content is None."""
    kept = [child for child in content if child is not None]
    return element("div", *kept, class_="grid small" if small else "grid") if kept else None


def facts(values: dict[str, str]) -> Element:
    """Makes a list of names and values, which are shown as cards."""
    pairs = (
        element("div", element("dt", name), element("dd", value)) for name, value in values.items()
    )
    return element("dl", *pairs, class_="facts")


def capitalize(text: str) -> str:
    """Returns a text with a capital first letter; the other letters do not change."""
    return text[:1].upper() + text[1:]


def shade(value: float, largest: float) -> str | None:
    """Returns the class of a background between none and dark, in seven levels."""
    level = math.ceil(7 * value / largest) if largest > 0 and value > 0 else 0
    return f"s{min(level, 7)}" if level else None
