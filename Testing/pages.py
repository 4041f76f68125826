"""What the tests of HTML pages share: a reader that notices what is wrong, and Chromium."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

_VOID = {"meta", "img", "br", "link", "input", "hr"}


class Reader(HTMLParser):
    """A page taken apart: text by table cell, links, identifiers."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []  # whatever a browser would fetch, or follow on a click
        self.handlers: list[str] = []  # attributes that would run a script
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.words: list[str] = []
        self.rows: dict[str, list[list[str]]] = {}
        self._table = ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in _VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
                self.loads.append(value or "")
            elif name.startswith("on"):
                self.handlers.append(name)
            elif name == "style":
                self.loads += re.findall(r"url\(([^)]*)\)", value or "")
        if tag == "table":
            self._table = dict(attrs).get("id") or ""
            self.rows[self._table] = []
        elif tag == "tr" and self._table:
            self.rows[self._table].append([])
        elif tag in ("td", "th") and self._table:
            self.rows[self._table][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()
        if tag == "table":
            self._table = ""

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)
            return
        if self.open[-1:] == ["style"]:
            self.styles.append(data)
            return
        self.words.append(data)
        if self._table and {"td", "th"} & set(self.open):
            self.rows[self._table][-1][-1] += data

    @property
    def words_shown(self) -> str:
        return " ".join(" ".join(self.words).split())

    def column(self, table: str, head: str) -> list[str]:
        heads, *rows = self.rows[table]
        return [row[heads.index(head)] for row in rows]


def read_page(text: str) -> Reader:
    """A page that is whole, loads nothing and runs no script but its own."""
    page = Reader(text)
    assert len(page.ids) == len(set(page.ids)), "an id is there twice"
    for target in page.loads:
        assert target.startswith(("#", "data:image/")), f"loads {target[:80]}"
        if target.startswith("#"):
            assert target[1:] in page.ids, f"{target} leads nowhere"
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)", "".join(page.styles), re.IGNORECASE)
    assert not page.handlers and len(page.scripts) == 1
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy and "default-src 'none'" in policy[1] and f"'sha256-{digest}'" in policy[1]
    return page


def chromium() -> str:
    """Chromium's program; the test is skipped, with the reason, where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        path = shutil.which(name)
        if path:
            return path
    pytest.skip("no Chromium on the PATH")


def browse(url: str, folder: Path, *options: str) -> str:
    """What headless Chromium prints about a page."""
    flags = (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--no-first-run", "--hide-scrollbars",
        f"--user-data-dir={folder}",
    )  # fmt: skip
    done = subprocess.run(
        [chromium(), *flags, *options, url],
        capture_output=True, text=True, encoding="utf-8", timeout=600, check=True,
    )  # fmt: skip
    return done.stdout
