"""Slices, captions, legends and sheets, as Pillow images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from KidneySegLib.pictures.style import Colour, Style, Window

HEADER = 66  # height in pixels of what stands above the slices
INK: Colour = (235, 235, 235)
FAINT: Colour = (165, 165, 165)
NOTICE: Colour = (255, 200, 80)
PAPER: Colour = (16, 16, 18)

_OUTLINE = 2  # pixels of the picture
_SUPERSAMPLING = 3
_SMOOTHING = 0.8  # voxels
_REACH = 4  # voxels that smoothing and interpolation see beyond a mask
_GAP = 6
_LEAST_WIDTH = 480
_LETTER_PX, _CAPTION_PX = 26, 16
# Tiles whose longer side is shorter than this have smaller letters.
_FULL_SIZE_PX = 400
_LEAST_FONT_PX = 10

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_slice(
    ct: np.ndarray,
    prediction: np.ndarray | None,
    reference: np.ndarray | None,
    size: tuple[int, int],
    window: Window,
    style: Style,
) -> Image.Image:
    """One slice with fill and outlines.

    Parameters
    ----------
    ct, prediction, reference
        Shape (rows, columns); in the last two anything but 0 is kidney.
    size
        Width and height of the picture in pixels.
    """
    low, high = window
    shade = np.clip((ct.astype(np.float32) - low) * (255 / (high - low)), 0, 255)
    gray = Image.fromarray(np.round(shade).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    picture = np.repeat(np.asarray(gray, np.float32)[..., None], 3, axis=2)

    mine, my_line = _shape(prediction, size)
    theirs, their_line = _shape(reference, size)
    both = np.minimum(mine, theirs)
    colours = style.colours
    if style.opacity:
        for colour, cover in (
            (colours.reference, theirs - both),
            (colours.prediction, mine - both),
            (colours.both, both),
        ):
            _blend(picture, colour, cover * style.opacity)
    if style.outline:
        shared = np.minimum(my_line, their_line)
        for colour, cover in (
            (colours.reference, their_line),
            (colours.prediction, my_line),
            (colours.both, shared),
        ):
            _blend(picture, colour, cover)
    return Image.fromarray(np.round(picture).astype(np.uint8))


def _blend(picture: np.ndarray, colour: Colour, cover: np.ndarray) -> None:
    """Lay a colour over a picture, shape (rows, columns, 3), in place."""
    rows = cover.any(axis=1)
    picture[rows] += cover[rows][..., None] * (np.array(colour, np.float32) - picture[rows])


def _shape(mask: np.ndarray | None, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """How much of each pixel of the tile a mask covers, and how much its outline does.

    The mask is enlarged smoothly to a multiple of the tile and cut at one half, which gives
    edges between voxels instead of staircases; averaging it down leaves them crisp but not
    jagged. The outline lies half inside and half outside. Both are float32 of shape (height,
    width), 0..1.
    """
    width, height = size
    fill = np.zeros((height, width), np.float32)
    line = np.zeros((height, width), np.float32)
    if mask is None or not mask.any():
        return fill, line
    # Only the pixels of the tile around the mask, with room for smoothing and outline.
    parts, voxels_px = [], []
    for axis, pixels in enumerate((height, width)):
        hits = np.flatnonzero(mask.any(axis=1 - axis))
        voxel_px = pixels / mask.shape[axis]
        first = math.floor((hits[0] - _REACH) * voxel_px) - _OUTLINE
        last = math.ceil((hits[-1] + 1 + _REACH) * voxel_px) + _OUTLINE
        parts.append(slice(max(0, first), min(pixels, last)))
        voxels_px.append(voxel_px)
    rows, columns = parts
    enlarged = Image.fromarray((mask != 0).astype(np.uint8) * 255).resize(
        tuple(_SUPERSAMPLING * (part.stop - part.start) for part in (columns, rows)),
        Image.Resampling.BICUBIC,
        box=(
            columns.start / voxels_px[1],
            rows.start / voxels_px[0],
            columns.stop / voxels_px[1],
            rows.stop / voxels_px[0],
        ),
    )
    radii = tuple(_SMOOTHING * _SUPERSAMPLING * px for px in reversed(voxels_px))
    blurred = enlarged.filter(ImageFilter.GaussianBlur(radii))
    # The middle of a voxel keeps its value: a single voxel must not be smoothed away.
    inside = np.asarray(blurred) >= 128
    inside |= np.asarray(enlarged) > 250
    inside &= np.asarray(enlarged) > 5
    border = _grown(inside) & _grown(~inside)
    for target, cover in ((fill[rows, columns], inside), (line[rows, columns], border)):
        blocks = cover.reshape(target.shape[0], _SUPERSAMPLING, target.shape[1], _SUPERSAMPLING)
        target[:] = blocks.mean(axis=(1, 3))
    return fill, line


def _grown(mask: np.ndarray) -> np.ndarray:
    """A fine mask grown by half the outline's width, as a disc would."""
    radius = _OUTLINE * _SUPERSAMPLING / 2
    reach = int(radius)
    padded = np.pad(mask, reach, mode="edge")
    rows, columns = mask.shape
    grown = np.zeros_like(mask)
    for y in range(-reach, reach + 1):
        for x in range(-reach, reach + 1):
            if y * y + x * x <= radius * radius:
                grown |= padded[reach + y : reach + y + rows, reach + x : reach + x + columns]
    return grown


def letter(tile: Image.Image, sides: Sequence[str], caption: str) -> None:
    """Write at the edges of a tile what lies there, and in its corner which slice it is.

    Parameters
    ----------
    sides
        What lies to the left, right, top and bottom; empty where nothing is to be said.
    """
    draw = ImageDraw.Draw(tile)
    width, height = tile.size
    share = min(1.0, max(width, height) / _FULL_SIZE_PX)
    large, small = (
        ImageFont.load_default(max(_LEAST_FONT_PX, round(px * share)))
        for px in (_LETTER_PX, _CAPTION_PX)
    )
    caption = fitting(caption, small, width - 20)
    above_caption = height - 14 - round(_CAPTION_PX * share) if caption else height - 8
    left, right, top, bottom = sides
    for place, text, font, anchor in (
        ((10, height / 2), left, large, "lm"),
        ((width - 10, height / 2), right, large, "rm"),
        ((width / 2, 8), top, large, "mt"),
        ((width / 2, above_caption), bottom, large, "ms"),
        ((10, height - 8), caption, small, "ls"),
    ):
        draw.text(place, text, INK, font, anchor=anchor, stroke_width=2, stroke_fill=(0, 0, 0))


def legend_of(
    style: Style, prediction: str | None, reference: str | None
) -> list[tuple[str, Colour]]:
    """What the colours stand for; None for what is not drawn."""
    colours = style.colours
    legend = [] if prediction is None else [(prediction, colours.prediction)]
    if reference is not None:
        legend.insert(0, (reference, colours.reference))
    if len(legend) == 2:
        legend.append(("both", colours.both))
    return legend


def draw_sheet(
    rows: Sequence[Sequence[Image.Image]],
    title: str,
    legend: Sequence[tuple[str, Colour]],
    style: Style,
    *,
    remark: str = "",
    window: Window | None = None,
) -> Image.Image:
    """Tiles in rows, below the title and the legend.

    Parameters
    ----------
    remark
        Something to beware of; it stands beside the legend.
    window
        Told beside the legend as width and centre.
    """
    widths = [sum(tile.width + _GAP for tile in row) + _GAP for row in rows]
    heights = [max(tile.height for tile in row) + _GAP for row in rows]
    width = max(*widths, _LEAST_WIDTH)
    sheet = Image.new("RGB", (width, HEADER + sum(heights)), PAPER)
    y = HEADER
    for row, row_width, height in zip(rows, widths, heights, strict=True):
        x = (width - row_width) // 2 + _GAP
        for tile in row:
            sheet.paste(tile, (x, y + (height - _GAP - tile.height) // 2))
            x += tile.width + _GAP
        y += height

    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(20), ImageFont.load_default(15)
    draw.text((12, 20), fitting(title, large, width - 24), INK, large, anchor="lm")
    x, y = 12, 46 if title else HEADER // 2
    for text, colour in legend:
        faint = tuple(
            round(p + style.opacity * (c - p)) for c, p in zip(colour, PAPER, strict=True)
        )
        edge = colour if style.outline else None
        draw.rectangle((x, y - 7, x + 14, y + 7), faint, edge, _OUTLINE)
        draw.text((x + 21, y), text, FAINT, small, anchor="lm")
        x += 21 + round(small.getlength(text)) + 24
    if remark:
        remark = fitting(remark, small, width - x - 12)
        draw.text((x, y), remark, NOTICE, small, anchor="lm")
        x += round(small.getlength(remark)) + 24
    if window is not None:
        low, high = window
        text = f"W {high - low:g}  L {(low + high) / 2:g}"
        if x + small.getlength(text) < width - 12:
            draw.text((width - 12, y), text, FAINT, small, anchor="rm")
    return sheet


def fitting(text: str, font: Font, width: float) -> str:
    """The text, cut short with an ellipsis if it is wider than that."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
