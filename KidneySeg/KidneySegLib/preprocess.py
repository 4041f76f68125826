"""From axial HU slices to what the network sees, and its answer back onto the CT's own slices.

The network works on a *working grid*: slices thinned to about ``slice_mm``, pixels of about
``pixel_mm``, cropped to the body. Both directions are separable linear maps between voxel centres,
so what goes through unchanged comes back where it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np

BODY_HU = -300
CLIPPED_AIR_HU = 4
BODY_MARGIN_MM = 12.0
SLICES_AT_ONCE = 16
_PIXELS_AT_ONCE = 32
_BLOCK = 64
_ROUNDS_TO_ZERO = 0.49
SCALINGS = ("window", "minmax")
# Axes (slice, row, column) of the axial volume that are those of what a view shows. In every view
# the patient stands upright: rows go from head to foot, or from front to back in the axial one.
VIEWS = {"axial": (0, 1, 2), "coronal": (1, 0, 2), "sagittal": (2, 0, 1)}

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class Preprocessing:
    """How a CT is made ready for a network; stored as ``preprocessing`` in ``model.json``.

    Attributes:
        window_hu: intensities below and above are clipped.
        scaling: ``window`` maps ``window_hu`` to 0..1; ``minmax`` maps each volume's own minimum
            and maximum to 0..1 and clips nothing (the KiTS19 system).
        pixel_mm: pixel size of the working grid; None keeps the pixels of the CT.
        slice_mm: slices thinner than half of this are averaged in groups up to it; None keeps
            every slice.
        context_mm: distance of the neighbouring slices of a 2.5-D network.
        crop: leave out the air around the body.
        view: which slices are cut, ``axial``, ``coronal`` or ``sagittal`` ones; "slice", "row" and
            "column" are those of the view in everything about a working grid.
    """

    window_hu: tuple[float, float] = (-125.0, 275.0)
    scaling: str = "window"
    pixel_mm: float | None = None
    slice_mm: float | None = None
    context_mm: float = 3.0
    crop: bool = False
    view: str = "axial"

    def __post_init__(self) -> None:
        low, high = self.window_hu
        if not low < high or not math.isfinite(high - low):
            raise ValueError(f"window_hu must be a lower and a higher figure, not {low}, {high}")
        if self.scaling not in SCALINGS:
            raise ValueError(f"scaling must be one of {SCALINGS}, not {self.scaling!r}")
        for name in ("pixel_mm", "slice_mm", "context_mm"):
            value = getattr(self, name)
            if value is None and name != "context_mm":
                continue
            if not isinstance(value, int | float) or not 0 < value < 100:
                raise ValueError(f"{name} must be between 0 and 100 mm, not {value!r}")
        if not isinstance(self.crop, bool):
            raise ValueError(f"crop must be true or false, not {self.crop!r}")
        if self.view not in VIEWS:
            raise ValueError(f"view must be one of {tuple(VIEWS)}, not {self.view!r}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Read the entry of a model; raises ValueError naming what is not known."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"unknown preprocessing {', '.join(unknown)}")
        window = tuple(float(v) for v in values.get("window_hu", cls.window_hu))
        if len(window) != 2:
            raise ValueError("window_hu must be two figures")
        return cls(**{**values, "window_hu": window})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def in_view(volume: np.ndarray, view: str) -> np.ndarray:
    """An axial volume as (slices, rows, columns) of a view; the same memory, other axes."""
    return volume.transpose(VIEWS[view])


def to_axial_order(array: np.ndarray, view: str) -> np.ndarray:
    """What `in_view` gave, in the axes of the axial volume again."""
    return array.transpose(np.argsort(VIEWS[view]))


def spacing_in_view(spacing_mm: Spacing, view: str) -> Spacing:
    """(slice, row, column) of an axial volume as those of a view."""
    first, second, third = (spacing_mm[axis] for axis in VIEWS[view])
    return first, second, third


@dataclass(frozen=True)
class WorkingGrid:
    """Where a working volume lies in the volume it was made from, an axial one or a view of it.

    Attributes:
        full_shape: (slices, rows, columns) of that volume.
        group: slices averaged into one working slice (1: none).
        shape: (rows, columns) of the resampled slice before cropping.
        box: (top, bottom, left, right) of the crop within ``shape``.
        spacing_mm: (slice, row, column) of the working volume.
    """

    full_shape: tuple[int, int, int]
    group: int
    shape: tuple[int, int]
    box: tuple[int, int, int, int]
    spacing_mm: tuple[float, float, float]

    @property
    def slices(self) -> int:
        return -(-self.full_shape[0] // self.group)

    @property
    def centres(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the working voxels, as indices of the volume: of slices, cropped rows and columns."""
        starts = np.arange(0, self.full_shape[0], self.group)
        # The last group may be shorter, and its centre nearer.
        stops = np.minimum(starts + self.group, self.full_shape[0])
        top, bottom, left, right = self.box
        rows, columns = (
            (np.arange(first, last) + 0.5) * (full / pixels) - 0.5
            for first, last, full, pixels in (
                (top, bottom, self.full_shape[1], self.shape[0]),
                (left, right, self.full_shape[2], self.shape[1]),
            )
        )
        return (starts + stops - 1) / 2, rows, columns


@lru_cache(maxsize=32)
def resizing(full: int, pixels: int) -> np.ndarray:
    """The share of each of ``full`` pixels in each of ``pixels`` that cover the same length.

    Linear between the centres of pixels, averaged when shrinking: the triangle filter of Pillow
    and of torch's ``interpolate`` with ``antialias``.

    Returns:
        float32 (pixels, full), rows that sum to 1; not to be written to.
    """
    # In float32 like torch's: with weights computed more finely, a model would see other figures
    # than those it was trained on, if only in the fifth digit.
    scale = np.float32(full) / np.float32(pixels)
    reach = max(scale, np.float32(1))
    centres = scale * (np.arange(pixels, dtype=np.float32) + np.float32(0.5))[:, None]
    places = np.arange(full, dtype=np.float32)
    apart = np.abs(places - centres + np.float32(0.5)) * (np.float32(1) / reach)
    shares = np.maximum(1 - apart, 0)
    shares /= shares.sum(1, keepdims=True)
    shares.flags.writeable = False
    return shares


def _resize(slices: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Float32 (N, rows, columns) to (N, *shape), by `resizing` along each axis."""
    for axis in (2, 1):
        if slices.shape[axis] != shape[axis - 1]:
            slices = _along(slices, axis, resizing(slices.shape[axis], shape[axis - 1]))
    return slices


def _along(slices: np.ndarray, axis: int, shares: np.ndarray) -> np.ndarray:
    """Resize rows or columns, a few at a time: far from its diagonal the matrix is zero."""
    number, rows, columns = slices.shape
    pixels = len(shares)
    out = np.empty((number, pixels, columns) if axis == 1 else (number, rows, pixels), np.float32)
    for start in range(0, pixels, _PIXELS_AT_ONCE):
        part = shares[start : start + _PIXELS_AT_ONCE]
        stop = start + len(part)
        first, last = _span(part, 0)
        part = part[:, first:last]
        if axis == 1:
            np.matmul(part, slices[:, first:last], out=out[:, start:stop])
        else:
            flat = slices.reshape(number * rows, columns)
            out.reshape(number * rows, pixels)[:, start:stop] = flat[:, first:last] @ part.T
    return out


def _span(mask: np.ndarray, axis: int) -> tuple[int, int]:
    """First and one past the last along the other axis of a matrix where anything is there."""
    index = np.flatnonzero(mask.any(axis))
    return int(index[0]), int(index[-1]) + 1


def plan(
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    preprocessing: Preprocessing,
) -> WorkingGrid:
    """The working grid of an axial volume, not cropped yet."""
    slice_mm, row_mm, column_mm = spacing_mm
    group = 1
    if preprocessing.slice_mm is not None:
        group = max(1, int(preprocessing.slice_mm / slice_mm + 1e-3))
    rows, columns = shape[1:]
    if preprocessing.pixel_mm is not None:
        rows = max(1, round(rows * row_mm / preprocessing.pixel_mm))
        columns = max(1, round(columns * column_mm / preprocessing.pixel_mm))
    return WorkingGrid(
        full_shape=shape,
        group=group,
        shape=(rows, columns),
        box=(0, rows, 0, columns),
        spacing_mm=(
            slice_mm * group,
            row_mm * shape[1] / rows,
            column_mm * shape[2] / columns,
        ),
    )


def resample(volume: np.ndarray, grid: WorkingGrid) -> np.ndarray:
    """An axial volume on the uncropped working grid, float32, a few slices at a time.

    Args:
        volume: (slices, rows, columns) of any real type; labels may be given as 0 and 1.

    Returns:
        float32 array of shape (grid.slices, *grid.shape).
    """
    out = np.empty((grid.slices, *grid.shape), np.float32)
    step = max(1, SLICES_AT_ONCE // grid.group)
    for start in range(0, grid.slices, step):
        stop = min(start + step, grid.slices)
        part = _in_order(volume[start * grid.group : stop * grid.group])
        # Averaged first: both are linear, and so there is less to resize.
        out[start:stop] = _resize(_group_mean(part, grid.group), grid.shape)
    return out


def _in_order(slices: np.ndarray) -> np.ndarray:
    """The same with a slice's pixels side by side in memory.

    Many CTs are stored the other way round, KiTS19's for one. Copied in blocks that fit into the
    processor's cache, that takes a third to a seventh of the time.
    """
    if slices.flags.c_contiguous:
        return slices
    out = np.empty(slices.shape, slices.dtype)
    for top in range(0, slices.shape[1], _BLOCK):
        for left in range(0, slices.shape[2], _BLOCK):
            block = np.s_[:, top : top + _BLOCK, left : left + _BLOCK]
            out[block] = slices[block]
    return out


def _group_mean(slices: np.ndarray, group: int) -> np.ndarray:
    """Float32 means of groups of slices, the last of which may be smaller."""
    mean = np.array(slices[::group], np.float32, order="C")
    if group == 1:
        return mean
    for offset in range(1, group):
        others = slices[offset::group]
        mean[: len(others)] += others
    mean /= group
    left = len(slices) % group
    if left:
        mean[-1] *= group / left
    return mean


def body_box(working: np.ndarray, spacing_mm: tuple[float, float, float]) -> tuple[int, ...]:
    """(top, bottom, left, right) of the box that holds the body in every working slice.

    Rows and columns count as body where the body is at least 20 mm wide in some slice, which
    leaves out thin tables and lines. Where air was clipped away (volumes stored from -125 or from 0
    HU) the body is what rises above the clip. A volume of nothing but air is kept whole.
    """
    threshold = max(BODY_HU, float(working.min()) + CLIPPED_AIR_HU)
    _, row_mm, column_mm = spacing_mm
    rows = np.zeros(working.shape[1], bool)
    columns = np.zeros(working.shape[2], bool)
    for hu in working:
        body = hu > threshold
        rows |= body.sum(1) * column_mm > 20
        columns |= body.sum(0) * row_mm > 20
    if not rows.any() or not columns.any():
        return 0, working.shape[1], 0, working.shape[2]
    box: list[int] = []
    for inside, mm in ((rows, row_mm), (columns, column_mm)):
        margin = round(BODY_MARGIN_MM / mm)
        index = np.flatnonzero(inside)
        box += [max(0, int(index[0]) - margin), min(len(inside), int(index[-1]) + 1 + margin)]
    return tuple(box)


def to_working(
    volume: np.ndarray,
    spacing_mm: tuple[float, float, float],
    preprocessing: Preprocessing,
) -> tuple[np.ndarray, WorkingGrid]:
    """An axial HU volume on its working grid.

    Returns:
        float32 HU array of shape (slices, rows, columns), not scaled yet, and its grid.
    """
    grid = plan(_shape(volume), spacing_mm, preprocessing)
    working = resample(volume, grid)
    if preprocessing.crop:
        top, bottom, left, right = body_box(working, grid.spacing_mm)
        grid = WorkingGrid(
            grid.full_shape, grid.group, grid.shape, (top, bottom, left, right), grid.spacing_mm
        )
        working = np.ascontiguousarray(working[:, top:bottom, left:right])
    return working, grid


def _shape(volume: np.ndarray) -> tuple[int, int, int]:
    slices, rows, columns = volume.shape
    return slices, rows, columns


def scale(working: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """HU to what the network was trained on, in place; see `Preprocessing.scaling`."""
    if preprocessing.scaling == "minmax":
        low, high = float(working.min()), float(working.max())
    else:
        low, high = preprocessing.window_hu
        np.clip(working, low, high, out=working)
    working -= low
    working /= max(high - low, 1e-6)
    return working


def context_offset(slice_spacing_mm: float, preprocessing: Preprocessing) -> int:
    """How many working slices away a neighbour of a 2.5-D network lies, at least one."""
    return max(1, round(preprocessing.context_mm / slice_spacing_mm))


def with_context(slices: int, index: np.ndarray, context_slices: int, offset: int) -> np.ndarray:
    """Slice numbers that make the channels of each ``index``: (N,) to (N, context_slices).

    Beyond the first and last slice the end slice is repeated.
    """
    steps = (np.arange(context_slices) - context_slices // 2) * offset
    return np.clip(index[:, None] + steps, 0, slices - 1)


def back_to_full(probability: np.ndarray, grid: WorkingGrid) -> Iterator[tuple[int, np.ndarray]]:
    """Working probabilities on the axial grid, slice by slice, only where there is anything.

    Args:
        probability: (slices, rows, columns) of the cropped working grid, float16 or float32.

    Yields:
        ``(slice, uint8 array (rows, columns))`` with 255 for certainty, for the axial slices
        whose probability reaches 1/255 somewhere. Slices that are not yielded are zero.
    """
    top, bottom, left, right = grid.box
    rows = resizing(grid.shape[0], grid.full_shape[1])[:, top:bottom]
    columns = resizing(grid.shape[1], grid.full_shape[2])[:, left:right]
    busy = probability.reshape(len(probability), -1).max(1) >= 1 / 255
    below, above, weight = _between(grid.centres[0], np.arange(grid.full_shape[0]))
    for index in range(grid.full_shape[0]):
        low, high, share = int(below[index]), int(above[index]), float(weight[index])
        if not (busy[low] or (busy[high] and share > 0)):
            continue
        part = probability[low].astype(np.float32)
        if share > 0:
            part = (1 - share) * part + share * probability[high]
        full = np.zeros(grid.full_shape[1:], np.uint8)
        # Only around what does not come out as 0 anyway: a kidney is a small part of a slice.
        there = part >= _ROUNDS_TO_ZERO / 255
        if there.any():
            seen = slice(*_span(there, 1)), slice(*_span(there, 0))
            down = slice(*_span(rows[:, seen[0]], 1))
            across = slice(*_span(columns[:, seen[1]], 1))
            near = (_near(rows[down]), _near(columns[across]))
            larger = rows[down, near[0]] @ part[near] @ columns[across, near[1]].T
            full[down, across] = np.rint(larger * 255)
        yield index, full


def _near(shares: np.ndarray) -> slice:
    """The pixels that have a share in any of these."""
    return slice(*_span(shares, 0))


def interpolated(
    array: np.ndarray, have: Sequence[np.ndarray], want: Sequence[np.ndarray]
) -> np.ndarray:
    """An array at other places of the same axes, float32: linear, beyond its ends the end's value.

    Args:
        have: where its voxels are, ascending, for each axis.
        want: where values are wanted.
    """
    for axis, (there, here) in enumerate(zip(have, want, strict=True)):
        below, above, weight = _between(there, here)
        share = weight.astype(np.float32).reshape([-1] + [1] * (array.ndim - 1 - axis))
        low = array.take(below, axis).astype(np.float32)
        array = low + share * (array.take(above, axis) - low)
    return array


def _between(centres: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, ...]:
    """The two centres around each position, and the share of the second in the value there."""
    below = np.clip(np.searchsorted(centres, positions, side="right") - 1, 0, None)
    above = np.minimum(below + 1, len(centres) - 1)
    apart = np.where(above > below, centres[above] - centres[below], 1)
    return below, above, np.clip((positions - centres[below]) / apart, 0, 1)
