"""Draws the extension's icons and the thumbnail of its sample CT.

    PYTHONPATH=KidneySeg python Resources/draw_icons.py

Seen as a radiologist sees them: the right kidney on the left of the picture, in the colours that
the two segments have.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from KidneySegLib.geometry import to_axial
from KidneySegLib.phantom import generate
from KidneySegLib.writing import LEFT_KIDNEY, RIGHT_KIDNEY

ROOT = Path(__file__).resolve().parent.parent
ICON = ROOT / "KidneySeg.png"
MODULE_ICON = ROOT / "KidneySeg/Resources/Icons/KidneySeg.png"
THUMBNAIL = ROOT / "KidneySeg/Resources/Icons/KidneySegGeneratedCT.png"

SIZE = 128
_FINER = 8  # drawn at so many times the size, then averaged
_OUTLINE = 0.045
_TILT_DEGREES = 13.0  # the upper poles lie closer together


def icon(size: int = SIZE) -> Image.Image:
    """Two kidneys on transparent ground, in a square of so many pixels."""
    fine = size * _FINER
    at = (np.arange(fine) + 0.5) / fine * 2 - 1
    x, y = np.meshgrid(at, at)
    picture = np.zeros((fine, fine, 4))
    for segment, side in ((RIGHT_KIDNEY, -1), (LEFT_KIDNEY, 1)):
        color = np.array(segment.color)
        lateral = side * x
        ureter = _ureter(lateral, y)
        _paint(picture, ureter < _OUTLINE, color * 0.35)
        _paint(picture, ureter < 0.0, color * 0.8)
        kidney = _kidney(lateral, y)
        _paint(picture, kidney < _OUTLINE, color * 0.35)
        light = np.clip(1.12 - 0.30 * np.hypot(lateral - 0.60, y + 0.35), 0.80, 1.12)[..., None]
        _paint(picture, kidney < 0.0, np.minimum(color * light, 1.0))
    # Averaged with their opacity, or the transparent ground would darken the edge.
    picture[..., :3] *= picture[..., 3:]
    coarse = picture.reshape(size, _FINER, size, _FINER, 4).mean((1, 3))
    opacity = coarse[..., 3:]
    coarse[..., :3] /= np.where(opacity > 0, opacity, 1.0)
    return Image.fromarray(np.rint(coarse * 255).astype(np.uint8), "RGBA")


def _paint(picture: np.ndarray, where: np.ndarray, color: np.ndarray) -> None:
    picture[where, :3] = np.broadcast_to(color, (*where.shape, 3))[where]
    picture[where, 3] = 1.0


def _kidney(lateral: np.ndarray, y: np.ndarray) -> np.ndarray:
    """About the distance from a kidney's surface, negative inside; half the icon is 1."""
    angle = np.radians(_TILT_DEGREES)
    u, v = lateral - 0.53, y + 0.17
    u, v = np.cos(angle) * u - np.sin(angle) * v, np.sin(angle) * u + np.cos(angle) * v
    bean = np.hypot((u + 0.22 * v * v - 0.02) / 0.36, v / 0.74) - 1.0
    hilum = 1.0 - np.hypot((u + 0.47) / 0.25, (v - 0.05) / 0.24)
    return _smooth_max(bean * 0.36, hilum * 0.25, 0.12)


def _ureter(lateral: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The same for its ureter, from the hilum down towards the middle."""
    down = np.clip((y + 0.12) / 1.04, 0.0, 1.0)
    middle = 0.33 - 0.21 * np.sqrt(down)
    outside = np.maximum(-0.12 - y, y - 0.92)
    return np.maximum(np.abs(lateral - middle) - 0.05, outside)


def _smooth_max(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """The larger of two with a rounded edge between them."""
    mixed = np.clip(0.5 + 0.5 * (a - b) / width, 0.0, 1.0)
    return b + (a - b) * mixed + width * mixed * (1.0 - mixed)


def thumbnail(width: int = 260, height: int = 280) -> Image.Image:
    """A coronal slice of a generated CT with its two kidneys."""
    phantom = generate(1, (192, 192, 120), phase="portal", tumour=False, cyst=False)
    ct, grid = to_axial(phantom.image)
    sides, _ = to_axial(phantom.sides)
    row = int(np.argmax((sides > 0).sum((0, 2))))
    hu = ct[:, row].astype(float)
    gray = np.clip((hu + 160.0) / 400.0, 0.0, 1.0)
    picture = np.repeat(gray[..., None], 3, axis=2)
    for segment in (LEFT_KIDNEY, RIGHT_KIDNEY):
        here = sides[:, row] == segment.label
        picture[here] = 0.45 * picture[here] + 0.55 * np.array(segment.color)
    slice_mm, _, column_mm = grid.spacing_mm
    pixels = Image.fromarray(np.rint(picture * 255).astype(np.uint8))
    scale = min(width / (pixels.width * column_mm), height / (pixels.height * slice_mm))
    pixels = pixels.resize(
        (round(pixels.width * column_mm * scale), round(pixels.height * slice_mm * scale)),
        Image.Resampling.LANCZOS,
    )
    framed = Image.new("RGB", (width, height))
    framed.paste(pixels, ((width - pixels.width) // 2, (height - pixels.height) // 2))
    return framed


if __name__ == "__main__":
    MODULE_ICON.parent.mkdir(parents=True, exist_ok=True)
    for file, picture in ((ICON, icon()), (MODULE_ICON, icon()), (THUMBNAIL, thumbnail())):
        picture.save(file, optimize=True)
        print(f"{file.relative_to(ROOT)} {picture.width}x{picture.height}")
