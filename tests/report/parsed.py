"""A page as a browser's parser sees it: what it would load, its pictures, its targets."""

from __future__ import annotations

import re
from html.parser import HTMLParser

LOADED = {"src", "srcset", "poster", "data", "background", "action", "formaction"}
_URL = re.compile(r"url\(\s*['\"]?([^)'\"]+)|@import\s+['\"]?([^;'\"]+)")


class Page(HTMLParser):
    """Elements of a page; `loaded` holds all that a browser would fetch."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr", "source"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.names: list[str] = []
        self.images: list[dict[str, str]] = []
        self.drawings: list[dict[str, str]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.names.append(tag)
        if tag not in self.VOID:
            self._open.append(tag)
        self._take(tag, values)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self._take(tag, {name: value or "" for name, value in attrs})

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self._open[-1:] == ["style"]:
            self._style(data)

    def _take(self, tag: str, values: dict[str, str]) -> None:
        self.loaded += [value for name, value in values.items() if name in LOADED]
        references = [values[name] for name in ("href", "xlink:href") if name in values]
        (self.links if tag == "a" else self.loaded).extend(references)
        self._style(values.get("style", ""))
        self._style(values.get("clip-path", ""))
        self.ids += [values["id"]] if "id" in values else []
        if tag == "img":
            self.images.append(values)
        if tag == "svg":
            self.drawings.append(values)

    def _style(self, text: str) -> None:
        self.loaded += ["".join(match) for match in _URL.findall(text)]
