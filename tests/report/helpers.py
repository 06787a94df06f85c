"""Reads what is in a page, independently of the code that wrote it."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "input", "img"}


class ParsedPage(HTMLParser):
    """The elements of a page.

    Attributes:
      elements: the name and the attributes of each element.
      texts: for each text, the names of the elements around it, and the text.
      is_open: the names of the elements that are open.
    """

    def __init__(self, html):
        super().__init__()
        self.elements, self.texts, self.is_open = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.is_open.append(tag)

    def handle_endtag(self, tag):
        assert self.is_open.pop() == tag

    def handle_data(self, data):
        self.texts.append((tuple(self.is_open), data))

    def text(self):
        """Returns the visible text."""
        hidden = {"script", "style", "title"}
        return "\n".join(t for path, t in self.texts if not hidden & {*path})

    def sources(self, tag):
        """Returns the contents of all elements of a kind."""
        return [text for path, text in self.texts if path[-1:] == (tag,)]

    def chart_list(self):
        """Returns all charts of the page."""
        return [*json.loads(self.sources("script")[0]).values()]

    def charts(self):
        """Returns the charts of the page by their titles; a later one replaces an earlier one."""
        return {spec["label"]: spec for spec in self.chart_list()}


def assert_self_contained(html):
    """Asserts that a page has only its own style and script, and can make no request."""
    page = ParsedPage(html)
    assert page.is_open == []
    names = {tag for tag, _ in page.elements}
    assert not names & {"img", "iframe", "object", "embed", "form", "base", "audio", "video"}
    attributes = [(key, value) for _, each in page.elements for key, value in each.items()]
    assert not any(
        key.startswith("on") or key in ("src", "style", "srcset") for key, _ in attributes
    )
    assert all(v.startswith(("#", "data:,")) for k, v in attributes if k in ("href", "xlink:href"))
    (policy,) = [a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a]
    data, script = page.sources("script")
    (style,) = page.sources("style")
    for kind, source in (("script-src", script), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy
    assert "<" not in data and "@import" not in style and not re.search(r"url\(", style)
    assert "fetch(" not in script and "XMLHttp" not in script and "innerHTML" not in script
    return page
