"""The body in a CT, and the plane that halves it."""

from __future__ import annotations

from dataclasses import dataclass

import cc3d
import numpy as np

from KidneySegLib.geometry import LEFT, RIGHT, AxialGrid

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
# What shows so much of the body without its flanks has its midline about the middle.
WIDE_MM = 280.0
_SEEN_SHARE = 0.5  # of the rows across the body, with both ends in the picture
# A kidney leans outwards downwards, by a fifth in the median of 34, and beside the spine there is
# more bone than at the ribs. Both are added up so that in cuttings of 17 patients with 5, 15, 25
# and 40 mm to either side of the kidney they told the side of 31, 32, 32 and 33 of 34. A flank
# tells more than either, where there is one as near as a kidney's own.
_LEAN_WEIGHT = 4.0
_FLANK_WEIGHT = 3.0
_FLANK_MM = 170.0
_AIR_SHARE = 0.9
_LEAN_LENGTH_MM = 60.0
_BONE_HU = 250.0
_BONE_SPARE_MM2 = 50.0


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
    """The body's mid-sagittal plane, x = x_mm + slope * (z - z_mm), in LPS mm.

    Attributes
    ----------
    seen
        Whether it can be told from the body; False where that is cut off at a side, as in a
        region around one kidney.
    """

    x_mm: float
    slope: float = 0.0
    z_mm: float = 0.0
    seen: bool = True

    def to_the_left_mm(self, points: np.ndarray) -> np.ndarray:
        """How far LPS points, shape (..., 3), lie to the patient's left of the plane."""
        left: np.ndarray = points[..., 0] - self.x_mm - self.slope * (points[..., 2] - self.z_mm)
        return left

    def box_to_the_left_mm(
        self, grid: AxialGrid, where: tuple[slice, slice, slice], first: tuple[int, ...]
    ) -> np.ndarray:
        """The same for the voxels of a box, float32; `where` counts from the voxel `first`.

        Position is an affine function of the index, and so four corners say it all.
        """
        start = np.array([part.start for part in where]) + np.array(first)
        corners = np.vstack([start, start + np.eye(3, dtype=int)])
        at = self.to_the_left_mm(grid.to_physical(corners))
        k, j, i = (
            (np.arange(part.stop - part.start) * (at[axis + 1] - at[0])).astype(np.float32)
            for axis, part in enumerate(where)
        )
        beside: np.ndarray = np.float32(at[0]) + k[:, None, None] + j[:, None] + i
        return beside

    def sides_of_box(
        self, grid: AxialGrid, where: tuple[slice, slice, slice], first: tuple[int, ...]
    ) -> np.ndarray:
        """LEFT or RIGHT for each voxel of a box, uint8; as `box_to_the_left_mm`."""
        on_left = self.box_to_the_left_mm(grid, where, first) > 0
        return np.where(on_left, np.uint8(LEFT), np.uint8(RIGHT))


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

    centres, seen = [], []
    for k, picture in zip(chosen, thin, strict=True):
        centre = _body_centre(picture, air, pixel_mm)
        if centre is not None:
            centres.append((k, centre[0] * steps[0], centre[1] * steps[1]))
            seen.append(centre[2])
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
    at = float(np.median(x - slope * (z - middle)))
    return Midline(at, slope, middle, seen=bool(np.mean(seen) >= 0.5))


def _body_centre(
    picture: np.ndarray, air: float, pixel_mm: tuple[float, float]
) -> tuple[float, float, bool] | None:
    """(row, column) in the middle of the body in one thinned slice, and whether that is seen."""
    wear = (round(_BODY_EROSION_MM / pixel_mm[0]), round(_BODY_EROSION_MM / pixel_mm[1]))
    body = body_mask(picture, air, wear)
    rows = np.flatnonzero(body.any(axis=1))
    if not rows.size:
        return None
    first = body[rows].argmax(axis=1)
    last = body.shape[1] - 1 - body[rows, ::-1].argmax(axis=1)
    width = last - first
    # Rows that reach the edge of the picture on one side only say nothing about the middle.
    wide = width >= width.max() / 2
    inside = (first > 0).astype(int) + (last < body.shape[1] - 1)
    seen = np.mean(inside[wide] == 2) >= _SEEN_SHARE or width.max() * pixel_mm[1] >= WIDE_MM
    whole = wide & (inside != 1)
    if not whole.any():
        whole = wide
    return float(np.median(rows[whole])), float(np.median((first + last)[whole]) / 2), bool(seen)


def is_left(kidney: np.ndarray, first: int, ct: np.ndarray, grid: AxialGrid) -> bool:
    """Whether a kidney is a left one, told without a midline.

    Parameters
    ----------
    kidney
        bool array of shape (slices, rows, columns): some slices of the CT's, with it in each.
    first
        The number of the first of them.
    ct
        Axial array in HU.
    """
    steps = tuple(max(1, round(_BODY_PIXEL_MM / mm)) for mm in grid.spacing_mm)
    if not kidney[:: steps[0], :: steps[1], :: steps[2]].any():  # too thin to be met
        steps = (1, 1, 1)
    thinly = tuple(slice(None, None, step) for step in steps)
    here, picture = kidney[thinly], ct[first : first + len(kidney)][thinly]

    def at(index: np.ndarray) -> np.ndarray:
        return grid.to_physical(index * np.array(steps) + np.array([first, 0, 0]))

    points = at(np.argwhere(here))
    middle = points.mean(axis=0)
    lean = 0.0
    if np.ptp(points[:, 2]) >= _LEAN_LENGTH_MM:
        lean = -float(np.polyfit(points[:, 2], points[:, 0], 1)[0])

    bone = at(np.argwhere((picture > _BONE_HU) & ~here))[:, 0] > middle[0]
    pixel_mm2 = grid.spacing_mm[1] * grid.spacing_mm[2] * steps[1] * steps[2] / len(here)
    left, right = np.array([np.sum(bone), np.sum(~bone)]) * pixel_mm2 + _BONE_SPARE_MM2

    rows = here.any(axis=(0, 2))
    air = np.mean(picture[:, rows] <= air_threshold(ct[:: max(1, len(ct) // 9)]), axis=(0, 1))
    body = np.flatnonzero(air < _AIR_SHARE)
    ends = [(body[0], body[0] > 0), (body[-1], body[-1] < len(air) - 1)] if body.size else []
    flanks = 0.0
    for column, seen in ends:
        away = at(np.array([len(here) / 2, np.flatnonzero(rows).mean(), column]))[0] - middle[0]
        if seen and abs(away) <= _FLANK_MM:
            flanks += np.sign(away)
    return bool(_LEAN_WEIGHT * lean + np.log(right / left) + _FLANK_WEIGHT * flanks > 0)


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
