"""The body in a CT, and the plane that halves it."""

from __future__ import annotations

from dataclasses import dataclass

import cc3d
import numpy as np

from KidneySegLib.geometry import AxialGrid

# The body is what is brighter than this; where values are no HU, than the darkest by this share
# of their range. It is looked at in pixels of 3 mm, worn off by 6 mm.
_BODY_HU = -300.0
_NOT_HU_STEP = 0.02
_BODY_PIXEL_MM = 3.0
_BODY_EROSION_MM = 6.0
# The midline is fitted to at most so many slices, as a slanting line where they cover enough to
# tell a slant, and never as one steeper than about 22 degrees.
_MIDLINE_SLICES = 25
_MIDLINE_SLOPE_MM = 60.0
_MIDLINE_STEEPEST = 0.4


def body_mask(
    ct_slice: np.ndarray, air_hu: float = _BODY_HU, wear: tuple[int, int] = (0, 0)
) -> np.ndarray:
    """The body in an axial slice: the largest piece above `air_hu`, what it encloses included.

    Parameters
    ----------
    ct_slice
        Shape (rows, columns).
    air_hu
        What separates the body from air; see `air_threshold`.
    wear
        Pixels to wear off along rows and columns before pieces are told apart, which separates
        arms, blankets and the table from the body.

    Returns
    -------
    bool array of shape (rows, columns), all False where nothing is above.
    """
    outside = cc3d.connected_components(
        np.pad(ct_slice <= air_hu, 1, constant_values=True), connectivity=4
    )
    tissue = _eroded(outside[1:-1, 1:-1] != outside[0, 0], wear)
    pieces = cc3d.connected_components(tissue, connectivity=8)
    counts = np.bincount(pieces.ravel())
    counts[0] = 0
    return np.asarray((pieces == counts.argmax()) & tissue)


def air_threshold(ct: np.ndarray) -> float:
    """The intensity that separates the body from air in (a sample of) a CT.

    -300 HU, or, where nothing is as dark as that because the values were clipped or are not HU,
    just above the darkest.
    """
    low, high = (float(value) for value in np.percentile(ct, (5, 95)))
    return _BODY_HU if low < _BODY_HU else low + _NOT_HU_STEP * (high - low)


@dataclass(frozen=True)
class Midline:
    """The body's mid-sagittal plane, x = x_mm + slope * (z - z_mm), in LPS mm."""

    x_mm: float
    slope: float = 0.0
    z_mm: float = 0.0

    def to_the_left_mm(self, points: np.ndarray) -> np.ndarray:
        """How far LPS points, shape (..., 3), lie to the patient's left of the plane."""
        left: np.ndarray = points[..., 0] - self.x_mm - self.slope * (points[..., 2] - self.z_mm)
        return left


def find_midline(ct: np.ndarray, grid: AxialGrid, slices: slice | None = None) -> Midline | None:
    """The body's midline over some axial slices of a CT.

    In each of a few slices, thinned to pixels of about 3 mm, it is the median over the rows of
    the middle of the body, so that neither an arm at one side nor a table below decides; over
    the slices a straight line is fitted by the median of slopes (Theil-Sen), so that single
    slices do not decide either and a tilted patient is followed.

    Parameters
    ----------
    ct
        Axial array of shape (slices, rows, columns) in HU.
    slices
        The range of slices to look at, by default all.

    Returns
    -------
    None where no body is seen.
    """
    span = slices or slice(0, grid.shape[0])
    count = min(_MIDLINE_SLICES, span.stop - span.start)
    chosen = np.unique(np.linspace(span.start, span.stop - 1, count).round().astype(int))
    steps = tuple(max(1, round(_BODY_PIXEL_MM / mm)) for mm in grid.spacing_mm[1:])
    thin = np.stack([ct[k, :: steps[0], :: steps[1]] for k in chosen])
    air = air_threshold(thin)
    pixel_mm = (steps[0] * grid.spacing_mm[1], steps[1] * grid.spacing_mm[2])

    centres = []
    for k, picture in zip(chosen, thin, strict=True):
        centre = _body_centre(picture, air, pixel_mm)
        if centre is not None:
            centres.append((k, centre[0] * steps[0], centre[1] * steps[1]))
    if not centres:
        return None
    points = grid.to_physical(np.array(centres, float))
    x, z = points[:, 0], points[:, 2]
    slope = 0.0
    if np.ptp(z) >= _MIDLINE_SLOPE_MM:
        first, second = np.triu_indices(len(z), 1)
        apart = np.abs(z[first] - z[second]) >= _MIDLINE_SLOPE_MM / 4
        first, second = first[apart], second[apart]
        slope = float(np.median((x[first] - x[second]) / (z[first] - z[second])))
        slope = float(np.clip(slope, -_MIDLINE_STEEPEST, _MIDLINE_STEEPEST))
    middle = float(z.mean())
    return Midline(float(np.median(x - slope * (z - middle))), slope, middle)


def _body_centre(
    picture: np.ndarray, air: float, pixel_mm: tuple[float, float]
) -> tuple[float, float] | None:
    """(row, column) in the middle of the body in one thinned slice."""
    wear = (round(_BODY_EROSION_MM / pixel_mm[0]), round(_BODY_EROSION_MM / pixel_mm[1]))
    body = body_mask(picture, air, wear)
    rows = np.flatnonzero(body.any(axis=1))
    if not rows.size:
        return None
    first = body[rows].argmax(axis=1)
    last = body.shape[1] - 1 - body[rows, ::-1].argmax(axis=1)
    width = last - first
    # Rows that reach the edge of the picture on one side only say nothing about the middle.
    whole = (width >= width.max() / 2) & ((first > 0) == (last < body.shape[1] - 1))
    if not whole.any():
        whole = width >= width.max() / 2
    return float(np.median(rows[whole])), float(np.median((first + last)[whole]) / 2)


def _eroded(mask: np.ndarray, steps: tuple[int, ...]) -> np.ndarray:
    """A 2-D mask worn off by `steps` pixels along rows and columns; the picture's edge holds."""
    for axis, count in enumerate(steps):
        for _ in range(count):
            padded = np.pad(
                mask, [(1, 1) if axis == a else (0, 0) for a in (0, 1)], constant_values=True
            )
            mask = (
                (padded[2:] & mask & padded[:-2])
                if axis == 0
                else (padded[:, 2:] & mask & padded[:, :-2])
            )
    return mask
