"""One HTML page that holds all it shows: text, tables that sort, plots and pictures.

It opens from a disk without a network. Whatever is put into it as a plain `str` is escaped, for
names and notes come from files; only `Html` stands as it is. A content security policy in the page
backs that up: the browser runs no script but the one below, and loads nothing from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import repeat
from pathlib import Path

from PIL import Image

from KidneySegLib.model import RESEARCH_USE
from KidneySegLib.writing import atomic

JPEG_QUALITY = 80
NO_FIGURE = "-"

# Control characters, halves of code points (names of files that are not UTF-8) and marks that turn
# the direction of what follows: none of them may reach a page from the name of a file.
_UNSPEAKABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Html(str):
    """Markup that stands in a page as it is; any other text is escaped."""

    __slots__ = ()


def html(content: object) -> Html:
    """Anything as markup: `Html` as it is, other text escaped."""
    if isinstance(content, Html):
        return content
    return Html(escape(_UNSPEAKABLE.sub("\ufffd", str(content))))


def tag(element: str, *content: object, **attributes: object) -> Html:
    """An element with escaped content and attributes.

    Parameters
    ----------
    attributes
        `class_` for class, `data_key` for data-key; those that are None are left out.
    """
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    start = f"<{element}{given}>"
    if element in ("img", "meta", "br"):
        return Html(start)
    return Html(f"{start}{join(content)}</{element}>")


def join(parts: Iterable[object], between: str = "") -> Html:
    """Parts one after the other, each escaped unless it is `Html`."""
    return Html(html(between).join(html(part) for part in parts))


def paragraph(*content: object, class_: str | None = None) -> Html:
    return tag("p", *content, class_=class_)


# --- Tables -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes
    ----------
    key
        What a link calls it: `report.html#sort=TABLE.KEY` sorts by it, `...KEY.descending` the
        other way round.
    title
        With the unit, such as `volume (ml)`.
    numeric
        Sorts by number and stands on the right.
    wide
        Holds sentences.
    """

    key: str
    title: str
    numeric: bool = False
    wide: bool = False

    @property
    def _class(self) -> str | None:
        return "number" if self.numeric else "sentence" if self.wide else None


@dataclass(frozen=True)
class Cell:
    """What stands in a table, and by what it sorts: by default its text."""

    content: object
    sort: float | str | None = None


def number(value: float | None, digits: int = 3, sign: bool = False) -> Cell:
    """A figure for a table; what does not exist is a dash and sorts last."""
    if value is None or not math.isfinite(value):
        return Cell(NO_FIGURE, "")
    return Cell(f"{value:{'+' if sign else ''}.{digits}f}", float(value))


def table(
    name: str,
    columns: Sequence[Column],
    rows: Sequence[Sequence[Cell | str]],
    ids: Sequence[str] = (),
) -> Html:
    """A table that sorts when the head of a column is clicked, or by a link.

    Parameters
    ----------
    name
        Unique in the page: letters, digits and `-`.
    ids
        Of the rows, for links to them: unique in the page as well.
    """
    heads = [
        tag(
            "th",
            tag("button", column.title, type="button"),
            scope="col",
            data_key=column.key,
            class_=column._class,
        )
        for column in columns
    ]
    lines = []
    for row, id in zip(rows, ids or repeat(None), strict=bool(ids)):
        cells = []
        for column, cell in zip(columns, row, strict=True):
            if not isinstance(cell, Cell):
                cell = Cell(cell)
            cells.append(
                tag(
                    "td",
                    cell.content,
                    data_sort=cell.sort,
                    class_=column._class,
                )
            )
        lines.append(tag("tr", *cells, id=id))
    body = [tag("thead", tag("tr", *heads)), tag("tbody", *lines)]
    return tag("div", tag("table", *body, class_="sortable", id=name), class_="wide")


def facts(entries: Sequence[tuple[str, object]]) -> Html:
    """Names and what they are, a line each."""
    return tag("dl", *(part for k, v in entries for part in (tag("dt", k), tag("dd", v))))


def tiles(entries: Sequence[tuple[str, str, str]]) -> Html:
    """Large figures side by side: figure, what it is, on how many."""
    return tag(
        "div",
        *(
            tag("div", tag("b", figure), tag("span", what), tag("small", count), class_="tile")
            for figure, what, count in entries
        ),
        class_="tiles",
    )


# --- Pictures -----------------------------------------------------------------------------------


def picture(image: Image.Image, description: str, widest_px: int = 1100) -> Html:
    """A picture inside the page, as JPEG: at most so many pixels wide.

    Parameters
    ----------
    description
        What it shows, for those who cannot see it.
    """
    if image.width > widest_px:
        height = max(1, round(image.height * widest_px / image.width))
        image = image.resize((widest_px, height), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    # Colours at full resolution: outlines are two pixels wide.
    image.convert("RGB").save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return tag(
        "img",
        src=f"data:image/jpeg;base64,{data}",
        alt=description,
        width=image.width,
        height=image.height,
    )


def figure(content: Html, caption: object, id: str | None = None) -> Html:
    """A plot or picture with what it shows below it."""
    return tag("figure", content, tag("figcaption", caption), id=id)


# --- The page -----------------------------------------------------------------------------------


class Page:
    """A page in the making: sections in their order, then `write`.

    Attributes
    ----------
    title
        Of the page, as text.
    """

    def __init__(self, title: str, summary: str) -> None:
        self.title = title
        self._summary = summary
        self._sections: list[tuple[str, str, Html]] = []

    def add(self, id: str, heading: str, *content: object) -> None:
        """A section; `id` is unique in the page: letters, digits and `-`."""
        self._sections.append((id, heading, join(content)))

    def __str__(self) -> str:
        """The whole page."""
        digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode("ascii")
        policy = (
            f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
            f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
        )
        links = [tag("a", heading, href=f"#{id}") for id, heading, _ in self._sections]
        head = (
            tag("meta", charset="utf-8"),
            Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name="color-scheme", content="light dark"),
            tag("title", self.title),
            Html(f"<style>{_STYLE}</style>"),
        )
        body = (
            tag(
                "header",
                tag("h1", self.title),
                paragraph(self._summary),
                paragraph(tag("strong", RESEARCH_USE), class_="research"),
            ),
            tag("nav", *links, aria_label="Sections"),
            tag("main", *(_section(*section) for section in self._sections)),
            tag("footer", paragraph(f"{RESEARCH_USE} Made by KidneySeg.")),
            Html(f"<script>{_SCRIPT}</script>"),
        )
        parts = ("head", head), ("body", body)
        inside = "\n".join(tag(name, *content) for name, content in parts)
        return f'<!DOCTYPE html>\n<html lang="en">\n{inside}\n</html>\n'

    def write(self, path: Path | str) -> None:
        """Write the page, whole or not at all.

        Raises
        ------
        KidneySegError
            It cannot be written; nothing has changed then.
        """
        text = str(self)
        with atomic(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _section(id: str, heading: str, content: Html) -> Html:
    return tag("section", tag("h2", heading), content, id=id)


_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --panel: #f3f4f6; --ink: #16181d;
  --faint: #5b616e; --grid: #d5d8de; --blue: #0072b2; --orange: #b84d00; --green: #00795a;
  --purple: #a3497f; --notice: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181d; --panel: #20242c; --ink: #eceef2;
  --faint: #a5abb8; --grid: #3b414d; --blue: #56b4e9; --orange: #f28e2b; --green: #2cc295;
  --purple: #e29cc6; --notice: #ffc850; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem 1.5rem 3rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; margin: 0.5rem 0 0; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 0.6rem; }
p { max-width: 48rem; margin: 0.5rem 0; }
a { color: var(--blue); }
.research strong, .notice { color: var(--notice); }
.faint, figcaption, small { color: var(--faint); font-size: 0.9rem; }
nav { display: flex; flex-wrap: wrap; gap: 0.3rem 1.2rem; padding: 0.6rem 0;
  border-bottom: 1px solid var(--grid); }
.wide { overflow: auto; max-height: 44rem; }
thead { position: sticky; top: 0; background: var(--paper); }
table { border-collapse: collapse; font-size: 0.92rem; }
th, td { padding: 0.25rem 0.7rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--grid); }
th, th.number { vertical-align: bottom; white-space: normal; line-height: 1.3; }
td { white-space: nowrap; }
td.sentence { white-space: normal; min-width: 20rem; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button::after { content: "\\a0\\2195"; color: var(--faint); }
th[aria-sort="ascending"] button::after { content: "\\a0\\2191"; color: var(--ink); }
th[aria-sort="descending"] button::after { content: "\\a0\\2193"; color: var(--ink); }
th button:focus-visible { outline: 2px solid var(--blue); }
tbody tr:hover { background: var(--panel); }
.tiles { display: flex; flex-wrap: wrap; gap: 0.8rem; margin: 1rem 0; }
.tile { background: var(--panel); border-radius: 0.5rem; padding: 0.7rem 1.1rem; display: flex;
  flex-direction: column; }
.tile b { font-size: 1.5rem; font-variant-numeric: tabular-nums; }
figure { margin: 1.2rem 0; }
figure:target, tr:target { outline: 2px solid var(--blue); outline-offset: 0.4rem; }
figcaption { max-width: 48rem; margin-top: 0.3rem; }
img { max-width: 100%; height: auto; display: block; border-radius: 0.25rem; }
svg { max-width: 100%; height: auto; display: block; stroke-linejoin: round;
  stroke-linecap: butt; }
svg a:hover, svg a:focus { opacity: 0.6; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.85rem; }
summary { cursor: pointer; color: var(--blue); }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr));
  gap: 0 1.2rem; }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: 0.2rem 1.2rem; }
dt { color: var(--faint); }
dd { margin: 0; overflow-wrap: anywhere; }
code { overflow-wrap: anywhere; }
footer { margin-top: 3rem; border-top: 1px solid var(--grid); color: var(--faint); }
@media print { nav { display: none; } .wide { overflow: visible; max-height: none; }
  figure, tr { break-inside: avoid; } }
"""

_SCRIPT = """
"use strict";
const texts = new Intl.Collator("en", { numeric: true });
function order(table, key, direction) {
  const heads = [...table.tHead.rows[0].cells];
  const column = heads.findIndex((head) => head.dataset.key === key);
  if (column < 0) { return; }
  const numeric = heads[column].classList.contains("number");
  const sign = direction === "descending" ? -1 : 1;
  const worth = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent;
  const rows = [...table.tBodies[0].rows];
  rows.sort((one, other) => {
    const a = worth(one), b = worth(other);
    if (a === "" || b === "") { return (a === "") - (b === ""); }
    return sign * (numeric ? Number(a) - Number(b) : texts.compare(a, b));
  });
  table.tBodies[0].append(...rows);
  for (const head of heads) { head.removeAttribute("aria-sort"); }
  heads[column].setAttribute("aria-sort", direction);
}
for (const table of document.querySelectorAll("table.sortable")) {
  for (const head of table.tHead.rows[0].cells) {
    head.querySelector("button").addEventListener("click", () => {
      const again = head.getAttribute("aria-sort") === "ascending";
      order(table, head.dataset.key, again ? "descending" : "ascending");
    });
  }
}
function asked() {
  const [name, key, direction] = location.hash.replace(/^#sort=/, "").split(".");
  const table = document.getElementById(name);
  if (location.hash.startsWith("#sort=") && table) {
    order(table, key, direction === "descending" ? direction : "ascending");
  }
}
addEventListener("hashchange", asked);
asked();
"""
