"""Windows of slices, and pixels that change their places in them: turned, stretched, bent."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from UNetTrainerLib.augmentation import Augmentation


class Window(NamedTuple):
    """A rectangle of a slice; it may reach beyond the slice."""

    top: int
    left: int
    rows: int
    columns: int


def displacements(
    window: Window, edge: int, how: Augmentation, rng: np.random.Generator
) -> np.ndarray:
    """Where each pixel of a window comes from, turned, sheared, zoomed, mirrored and bent.

    Args:
        edge: pixels on each side that a shift does not count as the field.

    Returns:
        float32 ``(2, rows, columns)``: row and column in the slice.
    """
    rows, columns = window.rows, window.columns
    angle = np.deg2rad(rng.uniform(-how.rotation_degrees, how.rotation_degrees))
    zoom = how.zoom ** rng.uniform(-1, 1)
    stretch = np.exp(rng.uniform(-how.stretch, how.stretch)) if how.stretch > 0 else 1.0
    shear = rng.uniform(-how.shear, how.shear)
    flip = -1.0 if rng.random() < how.mirror else 1.0
    down, across = rng.uniform(-how.shift, how.shift, 2) * (rows - 2 * edge, columns - 2 * edge)
    y = np.arange(rows, dtype=np.float32)[:, None] - (rows - 1) / 2
    x = np.arange(columns, dtype=np.float32) - (columns - 1) / 2
    cosine, sine = np.cos(angle), np.sin(angle)
    field = np.empty((2, rows, columns), np.float32)
    field[0] = x * (sine * flip / zoom) + (
        y * (cosine / stretch / zoom) + (window.top + (rows - 1) / 2 + down)
    )
    field[1] = x * (cosine * flip * stretch / zoom) + (
        y * ((shear - sine) / zoom) + (window.left + (columns - 1) / 2 + across)
    )
    if how.elastic_pixels > 0:
        strength = how.elastic_pixels * rng.random()
        coarse = rng.standard_normal((2, 5, 6), np.float32) * np.float32(strength)
        field += bicubic(5, rows) @ coarse @ bicubic(6, columns).T
    return field


@lru_cache(maxsize=16)
def bicubic(few: int, many: int) -> np.ndarray:
    """Weights (many, few) that spread a few values smoothly over many."""
    unit = torch.eye(few).view(few, 1, few, 1)
    spread = functional.interpolate(unit, size=(many, 1), mode="bicubic", align_corners=True)
    return np.ascontiguousarray(spread[:, 0, :, 0].numpy().T)


def reached(field: np.ndarray, shape: tuple[int, int], mirrored: bool) -> Window:
    """The part of a slice that a field reaches; of what is filled, one pixel is enough."""
    corner, extent = [], []
    for positions, length in zip(field, shape, strict=True):
        low, high = int(np.floor(positions.min())), int(np.ceil(positions.max()))
        if not mirrored:
            low = min(max(low, -1), length)
            high = max(min(high, length), low)
        corner.append(low)
        extent.append(high - low + 1)
    return Window(corner[0], corner[1], extent[0], extent[1])


def show(
    stored: np.ndarray, slices: np.ndarray, window: Window, fill: float, mirrored: bool
) -> np.ndarray:
    """A window of some slices: float32 of intensities, uint8 of labels.

    Args:
        stored: (slices, ..., rows, columns), memory-mapped; nothing but the window is read.
        fill: what is shown beyond the slice, unless it is ``mirrored`` there, as the prediction of
            an unpadded network does: without repeating the outermost pixels.
    """
    top, left, rows, columns = window
    height, width = stored.shape[-2:]
    kind = np.uint8 if stored.dtype == np.uint8 else np.float32
    out = np.full((len(slices), *stored.shape[1:-2], rows, columns), fill, kind)
    r0, r1 = max(top, 0), min(top + rows, height)
    c0, c1 = max(left, 0), min(left + columns, width)
    reflected = mirrored and (r1 - r0, c1 - c0) != (rows, columns)
    inner = (..., slice(r0 - top, r1 - top), slice(c0 - left, c1 - left))
    for number, one in enumerate(slices):
        if number and one == slices[number - 1]:
            out[number] = out[number - 1]
        elif reflected:
            part = stored[one].take(_mirror(top, rows, height), -2)
            out[number] = part.take(_mirror(left, columns, width), -1)
        elif r0 < r1 and c0 < c1:
            out[number][inner] = stored[one][..., r0:r1, c0:c1]
    return out


def _mirror(first: int, count: int, length: int) -> np.ndarray:
    """Indices ``first, first + 1, ...`` reflected into ``0 .. length - 1``, as often as needed."""
    index = np.arange(first, first + count)
    if length == 1:
        return np.zeros_like(index)
    last = length - 1
    return np.asarray(np.abs((index + last) % (2 * last) - last))


def warp(
    voxels: np.ndarray, labels: np.ndarray, field: np.ndarray, window: Window
) -> tuple[np.ndarray, np.ndarray]:
    """Intensities and labels where a field says they come from.

    Args:
        voxels: float32 ``(..., rows, columns)`` of the window; labels: uint8 ``(rows, columns)``.
        field: of positions in the slice, see `displacements`.

    Returns:
        Both with the rows and columns of the field.
    """
    grid = np.empty((1, *field.shape[1:], 2), np.float32)
    for axis, first, length in (
        (1, window.top, window.rows),
        (0, window.left, window.columns),
    ):
        scale = 2 / max(length - 1, 1)
        np.multiply(field[1 - axis], np.float32(scale), out=grid[0, ..., axis])
        grid[..., axis] -= np.float32(first * scale + 1)
    positions = torch.from_numpy(grid)

    def moved(planes: np.ndarray) -> np.ndarray:
        return functional.grid_sample(
            torch.from_numpy(planes)[None], positions, padding_mode="border", align_corners=True
        )[0].numpy()

    values = moved(voxels.reshape(-1, *voxels.shape[-2:]))
    truth = np.zeros(field.shape[1:], np.uint8)
    # Each label is interpolated as a mask of its own and cut at one half: smooth edges.
    for label in range(1, int(labels.max()) + 1):
        truth += moved((labels >= label).astype(np.float32)[None])[0] >= 0.5
    return values.reshape(*voxels.shape[:-2], *field.shape[1:]), truth
