"""Plots as drawings inside a page: matplotlib's SVG with the page's own colours.

A plot is drawn with stand-ins for the colours, which the page then chooses: dark on light or light
on dark, as the reader's system has it. Blue, orange, green and purple keep apart for colour-blind
readers (after Okabe and Ito, 2008), and no plot tells by colour alone.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from KidneySegLib.errors import UsageError
from KidneySegLib.htmlpage import Html, html

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# No plot uses these for anything else.
INK, FAINT, GRID = "#010101", "#020202", "#030303"
BLUE, ORANGE, GREEN, PURPLE = "#040404", "#050505", "#060606", "#070707"
_COLOURS = {
    INK: "ink",
    FAINT: "faint",
    GRID: "grid",
    BLUE: "blue",
    ORANGE: "orange",
    GREEN: "green",
    PURPLE: "purple",
}
# Colours with the marker that says the same.
SERIES = ((BLUE, "o"), (ORANGE, "^"), (GREEN, "s"), (PURPLE, "D"))

WIDTH_INCHES = 7.6
DOTS_AN_INCH = 96  # as CSS counts


def check_matplotlib() -> None:
    """Make sure, before any work, that plots can be drawn.

    Raises
    ------
    UsageError
        matplotlib is missing.
    """
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise UsageError(
            "The plots need matplotlib, which Python does not find here; run `pip install "
            "matplotlib`, then start again."
        )


def plot(
    name: str,
    title: str,
    draw: Callable[..., None],
    *,
    panels: int = 1,
    height_inches: float = 3.4,
    hints: Mapping[str, str] | None = None,
) -> Html:
    """A drawing for a page.

    Parameters
    ----------
    name
        Unique in the page: letters, digits and `-`.
    title
        What it shows, for those who cannot see it.
    draw
        Is called with the axes of each panel and fills them.
    hints
        For each link that `draw` gave to a mark (`set_url`), what to show when the pointer is on
        it.
    """
    check_matplotlib()
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context(_style(name)):
        sheet = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
        axes = sheet.subplots(1, panels, squeeze=False)[0]
        for one in axes:
            one.spines[["top", "right"]].set_visible(False)
            one.grid(alpha=1.0, linewidth=0.6)
            one.set_axisbelow(True)
        draw(*axes)
        file = io.StringIO()
        FigureCanvasSVG(sheet).print_svg(file)
    return _inline(file.getvalue(), name, title, hints or {})


def _style(name: str) -> dict[Any, Any]:
    return {
        "svg.fonttype": "none",
        "text.parse_math": False,  # names may hold a $
        "svg.hashsalt": name,
        "font.family": ["sans-serif"],
        "font.size": 10,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": FAINT,
        "axes.facecolor": "none",
        "axes.titlecolor": INK,
        "figure.facecolor": "none",
        "savefig.facecolor": "none",
        "savefig.edgecolor": "none",
        "xtick.color": FAINT,
        "ytick.color": FAINT,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "grid.color": GRID,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "patch.edgecolor": FAINT,
        "axes.unicode_minus": True,
    }


def _inline(drawing: str, name: str, title: str, hints: Mapping[str, str]) -> Html:
    """The SVG without what belongs to a file of its own, its names unique in the page."""
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>\s*", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r"<style type=\"text/css\">.*?</style>\s*", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r"<!--.*?-->\s*", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', drawing)
    drawing = drawing.replace("url(#", f"url(#{name}-")
    drawing = re.sub(r'(<use\b[^>]*?)xlink:href="#', rf'\g<1>href="#{name}-', drawing)
    drawing = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, 'DejaVu Sans', sans-serif", drawing)
    for stand_in, colour in _COLOURS.items():
        drawing = drawing.replace(stand_in, f"var(--{colour})")

    def hinted(match: re.Match[str]) -> str:
        hint = hints.get(match[1])
        return f'<a href="{match[1]}">' + (f"<title>{html(hint)}</title>" if hint else "")

    drawing = re.sub(r'<a xlink:href="([^"]*)"[^>]*>', hinted, drawing)
    width, height = re.findall(r'(?:width|height)="([\d.]+)pt"', drawing)[:2]
    box = re.search(r'viewBox="[^"]+"', drawing)
    assert box is not None
    pixels = (round(float(points) * DOTS_AN_INCH / 72) for points in (width, height))
    start = '<svg role="group" aria-label="{}" width="{}" height="{}" {}>'.format(
        html(title), *pixels, box[0]
    )
    return Html(start + drawing[drawing.index(">") + 1 :].rstrip())


def link_marks(axes: Axes, x: float, y: float, link: str, colour: str, marker: str = "o") -> None:
    """A mark at (x, y) of a plot that leads somewhere in the page."""
    axes.plot([x], [y], marker, color=colour, markersize=6, url=link, linestyle="none")


def short(name: str, most: int = 28) -> str:
    """A name that fits beside an axis: a long one without its middle."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}...{name[2 - most // 2 :]}"
