"""A report's page as a browser would split it."""

from __future__ import annotations

import json
from html.parser import HTMLParser


class Parsed(HTMLParser):
    """Texts, tags, table rows and scripts of a page, as a browser would split them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.rows: list[str] = []
        self._text: list[str] = []
        self._inside: list[str] = []
        self._in_row = False
        self.feed(page)
        self.text = " ".join(" ".join(self._text).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag == "tr":
            self.rows.append("")
            self._in_row = True

    def handle_endtag(self, tag: str) -> None:
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()
        self._in_row = self._in_row and tag != "tr"

    def handle_data(self, data: str) -> None:
        data = data.replace("\u2060", "").replace("\u00a0", " ")
        if self._inside:
            if self._inside[-1] == "script":
                attrs, text = self.scripts[-1]
                self.scripts[-1] = (attrs, text + data)
            return
        self._text.append(data)
        if self._in_row:
            self.rows[-1] = f"{self.rows[-1]} {' '.join(data.split())}".strip()

    def json(self, id: str) -> object:
        (text,) = [text for attrs, text in self.scripts if attrs.get("id") == id]
        return json.loads(text)

    def row(self, start: str) -> str:
        (row,) = [row for row in self.rows if row.startswith(start)]
        return row
