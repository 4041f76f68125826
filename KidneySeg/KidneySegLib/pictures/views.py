"""Which slices a picture shows, how much of them, and where in the patient that is.

A plane is looked at as a radiologist does: axial from the feet, coronal from the front, both with
the patient's right on the left of the picture; sagittal from the patient's left, with the front
on the left of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import numpy as np
import SimpleITK as sitk

from KidneySegLib.errors import InputError
from KidneySegLib.geometry import AxialGrid, bounding_box, grid_difference, to_axial
from KidneySegLib.midline import air_threshold, body_mask

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = get_args(Plane)
Crop = Literal["body", "kidneys", "whole"]
CROPS: tuple[Crop, ...] = get_args(Crop)

Box = tuple[slice, slice, slice]

# Axes of the axial array (slices, rows, columns) that a plane counts, shows downwards and across.
_AXES: dict[Plane, tuple[int, int, int]] = {
    "axial": (0, 1, 2),
    "coronal": (1, 0, 2),
    "sagittal": (2, 0, 1),
}
_MARGIN_MM = 8.0
_KIDNEY_MARGIN_MM = 25.0
# How far above and below the kidneys coronal and sagittal pictures of a body reach.
_BODY_REACH_MM = 100.0
_BODY_SLICES = 8
# Share of a kidney's largest sagittal area below which a slice is not chosen.
_GRAZING = 0.4
# A direction gets a second letter where it is off an axis by more than 15 degrees.
_SECOND_LETTER = 0.26


class Marks(NamedTuple):
    """Where prediction or reference hold kidney: a box of the axial array, and the voxels in it."""

    box: Box
    inside: np.ndarray

    @classmethod
    def of(cls, prediction: np.ndarray | None, reference: np.ndarray | None) -> Marks | None:
        """The marks of label maps of one shape, or None where there are none."""
        arrays = [array for array in (prediction, reference) if array is not None]
        boxes = [box for array in arrays if (box := bounding_box(array != 0)) is not None]
        if not boxes:
            return None
        first, second, third = (
            slice(min(part.start for part in parts), max(part.stop for part in parts))
            for parts in zip(*boxes, strict=True)
        )
        box = (first, second, third)
        inside = arrays[0][box] != 0
        for array in arrays[1:]:
            inside |= array[box] != 0
        return cls(box, inside)


@dataclass(frozen=True)
class Subject:
    """A CT with what was found in it, as axial arrays of shape (slices, rows, columns).

    Attributes
    ----------
    ct
        Intensities, in HU as a rule.
    grid
        Their place in the patient.
    prediction, reference
        Label maps in which anything but 0 is kidney, or None.
    """

    ct: np.ndarray
    grid: AxialGrid
    prediction: np.ndarray | None
    reference: np.ndarray | None = None

    def __post_init__(self) -> None:
        for array in (self.ct, self.prediction, self.reference):
            if array is not None and array.shape != self.grid.shape:
                raise ValueError(f"An array has shape {array.shape}, the grid {self.grid.shape}.")

    @classmethod
    def of(
        cls,
        ct: sitk.Image,
        prediction: sitk.Image | None,
        reference: sitk.Image | None = None,
        names: Sequence[str] = ("the CT", "the prediction", "the reference"),
    ) -> Subject:
        """A subject of three images, whose memory it shares.

        Raises
        ------
        InputError
            An image is not 3-D, or their grids differ; it is told with `names`.
        """
        arrays = []
        for image, name in zip((prediction, reference), names[1:], strict=True):
            difference = None if image is None else grid_difference(ct, image)
            if difference:
                raise InputError(
                    f"{names[0]} and {name} lie on different grids ({difference}); give a label "
                    "map of this CT."
                )
            arrays.append(None if image is None else to_axial(image)[0])
        voxels, grid = to_axial(ct)
        return cls(voxels, grid, *arrays)

    @cached_property
    def marks(self) -> Marks | None:
        """Where there is kidney in either label map."""
        return Marks.of(self.prediction, self.reference)

    def count(self, plane: Plane) -> int:
        """How many slices there are in a plane."""
        return self.grid.shape[_AXES[plane][0]]

    def crop(self, what: Crop, chosen: Sequence[int] | None = None) -> Box:
        """The box of the axial array that pictures show.

        Parameters
        ----------
        what
            The body at the kidneys, the kidneys with some margin (the body where there are
            none), or everything.
        chosen
            Axial slices whose body to take where pictures show no others.
        """
        shape, spacing = self.grid.shape, self.grid.spacing_mm
        everything = tuple(slice(0, n) for n in shape)
        if what == "whole":
            return _box(everything)
        if what == "kidneys" and self.marks is not None:
            return _widened(self.marks.box, (_KIDNEY_MARGIN_MM,) * 3, spacing, shape)
        height = everything[0]
        if self.marks is not None:
            around = (_BODY_REACH_MM, 0.0, 0.0)
            height = _widened(self.marks.box, around, spacing, shape)[0]
        if chosen is None:
            number = min(_BODY_SLICES, height.stop - height.start)
            chosen = np.linspace(height.start, height.stop - 1, number).astype(int).tolist()
        sampled = list(chosen)[:: max(1, len(chosen) // _BODY_SLICES)]
        air = air_threshold(self.ct[sampled])
        inside = np.zeros(shape[1:], bool)
        for k in sampled:
            inside |= body_mask(self.ct[k], air)
        if self.marks is not None:
            inside[self.marks.box[1:]] |= self.marks.inside.any(axis=0)
        found = bounding_box(inside[np.newaxis]) or everything
        margins = (0.0, _MARGIN_MM, _MARGIN_MM)
        return _widened((height, *found[1:]), margins, spacing, shape)

    def view(self, array: np.ndarray, plane: Plane, number: int, box: Box) -> np.ndarray:
        """The part of a slice that is in the box, shape (rows, columns) of the picture."""
        axes = _AXES[plane]
        at: list[slice | int] = list(box)
        at[axes[0]] = number
        # Axes stay in their order when one is dropped, which is that of the picture.
        return array[tuple(at)]

    def extent_mm(self, plane: Plane, box: Box) -> tuple[float, float]:
        """Height and width in mm of what a plane shows of the box."""
        height, width = (
            (box[axis].stop - box[axis].start) * self.grid.spacing_mm[axis]
            for axis in _AXES[plane][1:]
        )
        return height, width

    def letters(self, plane: Plane) -> tuple[str, str, str, str]:
        """What lies to the left, right, top and bottom of a picture: R, L, A, P, S or I.

        Where the volume is oblique there are two letters, the larger part first.
        """
        start = self.grid.to_physical([0, 0, 0])
        down, across = (self.grid.to_physical(np.eye(3)[axis]) - start for axis in _AXES[plane][1:])
        return _letters(-across), _letters(across), _letters(-down), _letters(down)

    def caption(self, plane: Plane, number: int, box: Box) -> str:
        """Which slice of how many, and where in the patient (as 3D Slicer shows it)."""
        axis = _AXES[plane][0]
        middle = [(part.start + part.stop - 1) / 2 for part in box]
        middle[axis] = number
        # Axis 0, 1, 2 of the axial array runs along z, y, x of the patient.
        mm = float(self.grid.to_physical(middle)[2 - axis])
        side = ("RL", "AP", "IS")[2 - axis][mm >= 0]
        return f"{plane} {number + 1} of {self.count(plane)}   {side} {abs(mm):.1f} mm"


def choose_slices(
    marks: Marks | None, shape: tuple[int, int, int], count: int, plane: Plane = "axial"
) -> list[int]:
    """The slices that show the kidneys best, in order.

    A slice is worth the kidney area on each side of the kidneys' middle, as a share of the
    largest on that side, so that a small kidney counts as much as a large one. Neighbours of a
    chosen slice are passed over, closer ones as the choice gets scarce. Without kidneys the
    slices are spread evenly.

    Parameters
    ----------
    marks
        Where there is kidney, in an axial array of that shape.
    count
        How many slices to choose at most.
    """
    total = shape[_AXES[plane][0]]
    if marks is None:
        count = min(count, total)
        spread = np.linspace(0, total, count, endpoint=False) + total / count / 2
        return [int(k) for k in spread]

    axis = _AXES[plane][0]
    middle = marks.inside.shape[2] // 2
    sides = (marks.inside[..., :middle], marks.inside[..., middle:])
    others = tuple(other for other in range(3) if other != axis)
    if axis == 2:  # each slice lies on one side
        areas = marks.inside.sum(axis=others)
        left = np.arange(len(areas)) < middle
        halves = np.stack([areas * left, areas * ~left])
    else:
        halves = np.stack([side.sum(axis=others) for side in sides])
    shares = halves / np.maximum(halves.max(axis=1, keepdims=True), 1)
    worth = shares.sum(axis=0)

    # Slices that only graze a kidney from its side show nothing of it.
    shown = np.flatnonzero(worth > (_GRAZING if axis == 2 else 0))
    count = min(count, len(shown))
    # Each side's best slice first, unless one slice shows both well.
    chosen = [int(worth.argmax())]
    for share in shares:
        if share.any() and share[chosen].max() < 0.5 and len(chosen) < count:
            chosen.append(int(share.argmax()))
    apart = max(1, len(shown) // (count + 1))
    while len(chosen) < count:
        free = [k for k in shown if min(abs(int(k) - other) for other in chosen) >= apart]
        if free:
            chosen.append(int(max(free, key=lambda k: worth[k])))
        else:
            apart -= 1
    return sorted(k + marks.box[axis].start for k in chosen)


def run_of_slices(
    marks: Marks | None, shape: tuple[int, int, int], plane: Plane, most: int, margin: int = 2
) -> list[int]:
    """The slices from one end of the kidneys to the other, evenly thinned to a number at most.

    Parameters
    ----------
    marks
        Where there is kidney, in an axial array of that shape; without, all slices are meant.
    margin
        Slices before the first and after the last.
    """
    axis = _AXES[plane][0]
    first, last = 0, shape[axis] - 1
    if marks is not None:
        part = marks.box[axis]
        first, last = max(first, part.start - margin), min(last, part.stop - 1 + margin)
    step = -(-(last - first + 1) // most)
    return list(range(first, last + 1, step))


def _letters(towards: np.ndarray) -> str:
    """The letters of a direction in LPS."""
    towards = towards / np.linalg.norm(towards)
    by_size = np.argsort(-np.abs(towards), kind="stable")[:2]
    axes = [axis for n, axis in enumerate(by_size) if not n or abs(towards[axis]) > _SECOND_LETTER]
    return "".join(("RL", "AP", "IS")[axis][int(towards[axis] > 0)] for axis in axes)


def _widened(
    box: Box,
    margins_mm: Sequence[float],
    spacing_mm: Sequence[float],
    shape: Sequence[int],
) -> Box:
    parts = []
    for part, margin_mm, mm, n in zip(box, margins_mm, spacing_mm, shape, strict=True):
        margin = round(margin_mm / mm)
        parts.append(slice(max(0, part.start - margin), min(n, part.stop + margin)))
    return _box(parts)


def _box(parts: Sequence[slice]) -> Box:
    first, second, third = parts
    return first, second, third
