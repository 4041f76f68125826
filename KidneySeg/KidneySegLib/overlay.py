"""Pictures of a segmentation on its CT: reference red, prediction blue, both purple.

Pictures are as a radiologist looks at them: axial, from the feet, the patient's right on the
left of the picture, the back below, pixels in their true proportions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from KidneySegLib.geometry import AxialGrid
from KidneySegLib.postprocess import NOTE_NONE, air_threshold, body_mask
from KidneySegLib.writing import atomic

Colour = tuple[int, int, int]

REFERENCE: Colour = (255, 45, 45)
PREDICTION: Colour = (70, 130, 255)
BOTH: Colour = (190, 80, 255)
FILL_OPACITY = 0.3

_TILE_HEIGHT = 480
_TILE_WIDTHS = (240, 960)
_OUTLINE = 2  # pixels of the picture
_SUPERSAMPLING = 3
_SMOOTHING = 0.8  # voxels
_MARGIN_MM = 8.0
_GAP = 6
_HEADER = 66
_LEAST_WIDTH = 480
_INK: Colour = (235, 235, 235)
_FAINT: Colour = (165, 165, 165)
_NOTICE: Colour = (255, 200, 80)
_PAPER: Colour = (16, 16, 18)


def draw_overlay(
    ct: np.ndarray,
    grid: AxialGrid,
    prediction: np.ndarray,
    reference: np.ndarray | None,
    path: Path,
    *,
    title: str = "",
    slices: int = 6,
    window_hu: tuple[float, float] = (-160.0, 240.0),
) -> list[int]:
    """Draw the slices with the largest kidney area, side by side, as a PNG.

    Parameters
    ----------
    ct, prediction, reference
        Axial arrays of shape (slices, rows, columns): HU, and label maps in which anything but 0
        is kidney.
    path
        The PNG to write; it appears only when it is complete.
    title
        Stands above the pictures.
    slices
        How many to draw at most.
    window_hu
        What is drawn black and what white.

    Returns
    -------
    The indices of the slices drawn, from the head on, counted from 0; the picture counts from 1.

    Raises
    ------
    ValueError
        The shapes of the arrays and of the grid differ, or no slices are asked for.
    KidneySegError
        The picture cannot be written.
    """
    for array in (ct, prediction, *(() if reference is None else (reference,))):
        if array.shape != grid.shape:
            raise ValueError(f"An array has shape {array.shape}, the grid {grid.shape}.")
    if slices < 1:
        raise ValueError("At least one slice must be drawn.")
    chosen, found = choose_slices(prediction, reference, slices)
    rows, columns = _crop(ct, grid, prediction, reference, chosen)
    size = _tile_size((rows.stop - rows.start, columns.stop - columns.start), grid.spacing_mm[1:])

    tiles = []
    for k in chosen:
        tile = _draw_slice(
            ct[k, rows, columns],
            prediction[k, rows, columns] != 0,
            None if reference is None else reference[k, rows, columns] != 0,
            size,
            window_hu,
        )
        z_mm = float(grid.to_physical([k, rows.start, columns.start])[2])
        _letter(tile, f"slice {k + 1} of {grid.shape[0]}   z = {z_mm:.1f} mm")
        tiles.append(tile)

    sheet = _sheet(tiles, title, "" if found else NOTE_NONE, reference is not None)
    with atomic(path) as temporary:
        sheet.save(temporary, format="PNG")
    return chosen


def choose_slices(
    prediction: np.ndarray, reference: np.ndarray | None, count: int
) -> tuple[list[int], bool]:
    """The slices that show the kidneys best, in order, and whether there is any kidney.

    A slice is worth the kidney area in each half of the kidneys' width, as a share of the
    largest in that half, so that a small kidney counts as much as a large one. Neighbours of a
    chosen slice are passed over, closer ones as the choice gets scarce. Without kidneys the
    slices are spread evenly.

    Parameters
    ----------
    prediction, reference
        Axial arrays of shape (slices, rows, columns); anything but 0 is kidney.
    count
        How many slices to choose at most.
    """
    total = prediction.shape[0]
    areas = np.zeros((total, prediction.shape[2]))
    for k in range(total):
        mask = prediction[k] != 0
        if reference is not None:
            mask |= reference[k] != 0
        areas[k] = mask.sum(axis=0)
    if not areas.any():
        count = min(count, total)
        spread = np.linspace(0, total, count, endpoint=False) + total / count / 2
        return [int(k) for k in spread], False

    columns = np.flatnonzero(areas.any(axis=0))
    middle = (columns[0] + columns[-1] + 1) // 2
    halves = np.stack([areas[:, :middle].sum(axis=1), areas[:, middle:].sum(axis=1)])
    shares = halves / np.maximum(halves.max(axis=1, keepdims=True), 1)
    worth = shares.sum(axis=0)

    shown = np.flatnonzero(worth)
    count = min(count, len(shown))
    # Each half's best slice first, unless one slice shows both well.
    chosen = [int(worth.argmax())]
    for share in shares:
        if share.any() and share[chosen].max() < 0.5 and len(chosen) < count:
            chosen.append(int(share.argmax()))
    apart = max(1, (int(shown[-1]) - int(shown[0]) + 1) // (count + 1))
    while len(chosen) < count:
        free = [k for k in shown if min(abs(int(k) - other) for other in chosen) >= apart]
        if free:
            chosen.append(int(max(free, key=lambda k: worth[k])))
        else:
            apart -= 1
    return sorted(chosen), True


def _crop(
    ct: np.ndarray,
    grid: AxialGrid,
    prediction: np.ndarray,
    reference: np.ndarray | None,
    chosen: list[int],
) -> tuple[slice, slice]:
    """Rows and columns that hold the body and everything marked in the chosen slices."""
    air = air_threshold(ct[chosen])
    inside = np.zeros(ct.shape[1:], bool)
    for k in chosen:
        inside |= body_mask(ct[k], air)
        inside |= prediction[k] != 0
        if reference is not None:
            inside |= reference[k] != 0
    ranges = []
    for axis in (0, 1):
        hits = np.flatnonzero(inside.any(axis=1 - axis))
        if not hits.size:
            hits = np.arange(inside.shape[axis])
        margin = round(_MARGIN_MM / grid.spacing_mm[1 + axis])
        ranges.append(
            slice(
                max(0, int(hits[0]) - margin), min(inside.shape[axis], int(hits[-1]) + 1 + margin)
            )
        )
    return ranges[0], ranges[1]


def _tile_size(shape: tuple[int, int], spacing_mm: tuple[float, ...]) -> tuple[int, int]:
    """(width, height) of a tile in pixels, in the true proportions of the slice."""
    ratio = shape[1] * spacing_mm[1] / (shape[0] * spacing_mm[0])
    width = _TILE_HEIGHT * ratio
    kept = min(max(width, _TILE_WIDTHS[0]), _TILE_WIDTHS[1])
    return max(1, round(kept)), max(1, round(kept / ratio))


def _draw_slice(
    ct: np.ndarray,
    prediction: np.ndarray,
    reference: np.ndarray | None,
    size: tuple[int, int],
    window_hu: tuple[float, float],
) -> Image.Image:
    """One slice of the CT at the size of the tile, with fill and outlines."""
    low, high = window_hu
    shade = np.clip((ct.astype(np.float32) - low) * (255 / (high - low)), 0, 255)
    gray = Image.fromarray(np.round(shade).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    picture = np.repeat(np.asarray(gray, np.float32)[..., None], 3, axis=2)

    mine, my_line = _shape(prediction, size)
    if reference is None:
        _blend(picture, PREDICTION, mine * FILL_OPACITY)
        _blend(picture, PREDICTION, my_line)
    else:
        theirs, their_line = _shape(reference, size)
        both = np.minimum(mine, theirs)
        for colour, cover in (
            (REFERENCE, theirs - both),
            (PREDICTION, mine - both),
            (BOTH, both),
        ):
            _blend(picture, colour, cover * FILL_OPACITY)
        shared = np.minimum(my_line, their_line)
        for colour, cover in ((REFERENCE, their_line), (PREDICTION, my_line), (BOTH, shared)):
            _blend(picture, colour, cover)
    return Image.fromarray(np.round(picture).astype(np.uint8))


def _blend(picture: np.ndarray, colour: Colour, cover: np.ndarray) -> None:
    """Lay a colour over a picture, shape (rows, columns, 3), in place."""
    picture += cover[..., None] * (np.array(colour, np.float32) - picture)


def _shape(mask: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """How much of each pixel of the tile a mask covers, and how much its outline does.

    The mask is enlarged smoothly to a multiple of the tile and cut at one half, which gives
    edges between voxels instead of staircases; averaging it down leaves them crisp but not
    jagged. The outline lies half inside and half outside. Both are float32 of shape (height,
    width), 0..1.
    """
    width, height = size
    fill = np.zeros((height, width), np.float32)
    line = np.zeros((height, width), np.float32)
    if not mask.any():
        return fill, line
    enlarged = Image.fromarray(mask.astype(np.uint8) * 255).resize(
        (width * _SUPERSAMPLING, height * _SUPERSAMPLING), Image.Resampling.BICUBIC
    )
    voxel_px = (enlarged.width / mask.shape[1], enlarged.height / mask.shape[0])
    blurred = enlarged.filter(ImageFilter.GaussianBlur([_SMOOTHING * px for px in voxel_px]))
    # The middle of a voxel keeps its value: a single voxel must not be smoothed away.
    inside = np.asarray(blurred) >= 128
    inside |= np.asarray(enlarged) > 250
    inside &= np.asarray(enlarged) > 5
    # Whole pixels of the tile around the mask, with room for the outline.
    hits = [np.flatnonzero(inside.any(axis=axis)) // _SUPERSAMPLING for axis in (1, 0)]
    room = _OUTLINE + 1
    part = tuple(slice(max(0, int(at[0]) - room), int(at[-1]) + 1 + room) for at in hits)
    inside = inside[tuple(slice(s.start * _SUPERSAMPLING, s.stop * _SUPERSAMPLING) for s in part)]
    border = _grown(inside) & _grown(~inside)
    for target, cover in ((fill[part], inside), (line[part], border)):
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


def _letter(tile: Image.Image, caption: str) -> None:
    """Write R and L at the sides of a tile, and which slice it is."""
    draw = ImageDraw.Draw(tile)
    width, height = tile.size
    large, small = ImageFont.load_default(26), ImageFont.load_default(16)
    for place, text, font, anchor in (
        ((10, height / 2), "R", large, "lm"),
        ((width - 10, height / 2), "L", large, "rm"),
        ((10, height - 8), caption, small, "ls"),
    ):
        draw.text(place, text, _INK, font, anchor=anchor, stroke_width=2, stroke_fill=(0, 0, 0))


def _sheet(tiles: list[Image.Image], title: str, remark: str, with_reference: bool) -> Image.Image:
    """The tiles in rows of up to three, below the title and the legend."""
    across = 2 if len(tiles) == 4 else min(3, len(tiles))
    down = -(-len(tiles) // across)
    width, height = tiles[0].size
    across_px = max(across * (width + _GAP) + _GAP, _LEAST_WIDTH)
    sheet = Image.new("RGB", (across_px, _HEADER + down * (height + _GAP)), _PAPER)
    first = (across_px - across * (width + _GAP) + _GAP) // 2
    for n, tile in enumerate(tiles):
        row, column = divmod(n, across)
        sheet.paste(tile, (first + column * (width + _GAP), _HEADER + row * (height + _GAP)))

    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(20), ImageFont.load_default(15)
    draw.text((12, 20), _fitting(title, large, across_px - 24), _INK, large, anchor="lm")
    legend = [("prediction", PREDICTION)]
    if with_reference:
        legend = [("reference", REFERENCE), *legend, ("both", BOTH)]
    x, y = 12, 46 if title else _HEADER // 2
    for text, colour in legend:
        swatch = (x, y - 7, x + 14, y + 7)
        faint = tuple(
            round(p + FILL_OPACITY * (c - p)) for c, p in zip(colour, _PAPER, strict=True)
        )
        draw.rectangle(swatch, faint, colour, _OUTLINE)
        draw.text((x + 21, y), text, _FAINT, small, anchor="lm")
        x += 21 + round(small.getlength(text)) + 24
    if remark:
        draw.text((x, y), _fitting(remark, small, across_px - x - 12), _NOTICE, small, anchor="lm")
    return sheet


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text, cut short with an ellipsis if it is wider than that."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
