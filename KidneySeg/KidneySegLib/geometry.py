"""Any CT to axial slices and back, exactly.

Inside the engine a volume is an *axial array* of shape (slices, rows, columns): slices run from
head to foot, rows from front to back, columns from the patient's right to the patient's left, as
a radiologist looks at it (the patient's left is on the right edge of the picture). A file may
store its voxels in any of the 48 orders and directions of three axes; the direction cosines say
which. Getting from one to the other only ever permutes and flips axes: nothing is resampled, so
an oblique volume is taken along the axes closest to the patient's, and the way back is exact.

Physical space is that of ITK and DICOM, LPS in mm: x grows to the patient's left, y to the
back, z to the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import SimpleITK as sitk

from KidneySegLib.errors import InputError

# Labels of the patient's kidneys wherever the engine tells them apart.
LEFT = 1
RIGHT = 2
SIDE_NAMES = {LEFT: "left", RIGHT: "right"}

# Rows: the axial axes k, j, i. Their physical axis (2 is z) and the sense in which it runs:
# slices towards the foot (-z), rows towards the back (+y), columns towards the left (+x).
_PHYSICAL_AXIS = (2, 1, 0)
_SENSE = (-1.0, 1.0, 1.0)

# Two assignments of axes whose summed cosines differ by less than this are equally good: 45
# degrees, where rounding must not decide.
_TIE = 1e-6


@dataclass(frozen=True)
class AxialGrid:
    """The grid of a volume as it was stored, and how its axes became axial.

    Attributes
    ----------
    size, spacing, origin, direction
        Of the stored image, in SimpleITK's order (column, row, slice of the file; mm; LPS).
    order
        For each axial axis (slices, rows, columns) the axis of the stored array, counted as
        numpy counts the array of ``sitk.GetArrayFromImage``.
    flips
        For each axial axis whether it runs against the stored one.
    """

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]
    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    @classmethod
    def of(cls, image: sitk.Image) -> AxialGrid:
        """The grid of a 3-D image.

        Raises
        ------
        InputError
            The image is not 3-D.
        """
        if image.GetDimension() != 3:
            raise InputError(
                f"A volume has three dimensions but this image has {image.GetDimension()}; "
                "give a 3-D CT."
            )
        direction = np.asarray(image.GetDirection(), dtype=float).reshape(3, 3)
        axes = _closest_axes(direction)
        flips = tuple(
            bool(sense * direction[physical, axis] < 0)
            for physical, sense, axis in zip(_PHYSICAL_AXIS, _SENSE, axes, strict=True)
        )
        return cls(
            size=_three(image.GetSize()),
            spacing=_three(image.GetSpacing()),
            origin=_three(image.GetOrigin()),
            direction=tuple(image.GetDirection()),
            order=_three(2 - axis for axis in axes),
            flips=_three(flips),
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(slices, rows, columns) of the axial array."""
        return _three(self.size[2 - axis] for axis in self.order)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance in mm between slices, between rows and between columns."""
        return _three(self.spacing[2 - axis] for axis in self.order)

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel in ml (1000 cubic mm)."""
        return float(np.prod(self.spacing)) / 1000.0

    def to_physical(self, index_kji: Any) -> np.ndarray:
        """LPS positions in mm of axial indices.

        Parameters
        ----------
        index_kji
            Array of shape (..., 3) of axial (slice, row, column) indices, whole or not; whole
            numbers are the centres of voxels.

        Returns
        -------
        float64 array of shape (..., 3): x to the left, y to the back, z to the head.
        """
        index = np.asarray(index_kji, dtype=float)
        stored = np.empty(index.shape)  # in SimpleITK's order
        for axial, (axis, flip) in enumerate(zip(self.order, self.flips, strict=True)):
            along = index[..., axial]
            stored[..., 2 - axis] = self.size[2 - axis] - 1 - along if flip else along
        direction = np.asarray(self.direction).reshape(3, 3)
        return np.asarray(self.origin) + (stored * np.asarray(self.spacing)) @ direction.T


def to_axial(image: sitk.Image) -> tuple[np.ndarray, AxialGrid]:
    """A scalar 3-D image as an axial array.

    Returns
    -------
    The array of shape (slices, rows, columns), in the image's own type, and its grid. The array
    is a read-only view of the image's memory, usually not contiguous and with negative strides;
    it keeps that memory alive.

    Raises
    ------
    InputError
        The image is not 3-D.
    """
    grid = AxialGrid.of(image)
    stored = _view(image)
    flip = tuple(slice(None, None, -1) if flip else slice(None) for flip in grid.flips)
    return stored.transpose(grid.order)[flip], grid


def from_axial(
    array: np.ndarray, grid: AxialGrid, box: tuple[slice, slice, slice] | None = None
) -> sitk.Image:
    """An axial array as an image on the stored grid: `to_axial` undone, to the bit.

    The image has the array's type and a copy of its values (``bool`` becomes ``uint8``).

    Parameters
    ----------
    box
        Of the array, all of it that is not 0, where that is known: the rest is not looked at.

    Raises
    ------
    ValueError
        The array does not have the shape of the grid.
    """
    if array.shape != grid.shape:
        raise ValueError(f"The array has shape {array.shape} but its grid {grid.shape}.")
    if array.dtype == np.bool_:
        array = array.view(np.uint8)
    image, voxels = blank_image(grid.size[::-1], array.dtype)
    flip = tuple(slice(None, None, -1) if flip else slice(None) for flip in grid.flips)
    part = ... if box is None else box
    voxels.transpose(grid.order)[flip][part] = array[part]
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    return image


def blank_image(shape: Sequence[int], dtype: Any) -> tuple[sitk.Image, np.ndarray]:
    """A 3-D image of zeros and its voxels as an array to write to, which are the same memory.

    What is put together there needs no copy to become an image.

    Parameters
    ----------
    shape
        (slices, rows, columns) as stored.
    dtype
        numpy's name of an integer or floating-point type that ITK has, too.
    """
    pixel = sitk.GetImageFromArray(np.zeros((1, 1, 1), dtype)).GetPixelID()
    image = sitk.Image([int(extent) for extent in reversed(shape)], pixel)
    return image, np.asarray(_Memory(image, writeable=True))


def grid_difference(
    a: sitk.Image | sitk.ImageFileReader, b: sitk.Image | sitk.ImageFileReader
) -> str | None:
    """What differs between the grids of two images, or None if they are the same.

    A reader that has read a file's header serves as well.

    NIfTI headers hold float32 and a rotation as a quaternion, so the same grid written by two
    programs differs in the last digits. Grids count as the same where no corner of the one lies
    further than a hundredth of a voxel (at least 0.001 mm) from the same corner of the other.

    Returns
    -------
    A text such as ``size 512 x 512 x 40 and 512 x 512 x 41``, naming both values, or None.
    """
    if a.GetSize() != b.GetSize():
        return f"size {_text(a.GetSize())} and {_text(b.GetSize())}"
    corners = np.array(list(np.ndindex(*(2,) * a.GetDimension())))
    corners *= np.asarray(a.GetSize()) - 1
    of_a, of_b = (
        np.asarray(image.GetOrigin())
        + (corners * image.GetSpacing())
        @ np.reshape(image.GetDirection(), (len(image.GetSize()),) * 2).T
        for image in (a, b)
    )
    tolerance_mm = max(1e-3, 0.01 * min(a.GetSpacing()))
    # The corners of a single slice say nothing of its thickness, nor of its normal's direction.
    spacing = np.allclose(a.GetSpacing(), b.GetSpacing(), rtol=1e-3, atol=1e-5)
    direction = np.allclose(a.GetDirection(), b.GetDirection(), rtol=0, atol=1e-3)
    if spacing and direction and np.linalg.norm(of_a - of_b, axis=1).max() <= tolerance_mm:
        return None
    differing = []
    if not np.allclose(a.GetSpacing(), b.GetSpacing(), rtol=1e-5, atol=1e-6):
        differing.append(f"spacing {_text(a.GetSpacing())} mm and {_text(b.GetSpacing())} mm")
    if not np.allclose(a.GetOrigin(), b.GetOrigin(), rtol=0, atol=tolerance_mm):
        differing.append(f"origin {_text(a.GetOrigin())} mm and {_text(b.GetOrigin())} mm")
    if not differing or not np.allclose(a.GetDirection(), b.GetDirection(), rtol=0, atol=1e-5):
        cosines = f"{_text(a.GetDirection(), ' ')} and {_text(b.GetDirection(), ' ')}"
        differing.append(f"direction {cosines}")
    return ", ".join(differing)


def _closest_axes(direction: np.ndarray) -> tuple[int, int, int]:
    """The stored axis (0, 1, 2 as SimpleITK counts) for slices, rows and columns.

    Of the six ways to hand out three axes the one with the largest sum of absolute cosines:
    taking the best axis for each row in turn may hand out one axis twice on strong obliques.
    Equally good ways are told apart by where the axes point, not by how the file counts them,
    so that every order of the same volume gives the same slices.
    """
    candidates: list[tuple[float, tuple[float, ...], tuple[int, int, int]]] = []
    for axes in permutations(range(3)):
        pairs = list(zip(_PHYSICAL_AXIS, _SENSE, axes, strict=True))
        score = float(sum(abs(direction[physical, axis]) for physical, _, axis in pairs))
        towards = [
            np.copysign(1.0, sense * direction[physical, axis]) * direction[:, axis]
            for physical, sense, axis in pairs
        ]
        place = tuple(np.round(np.concatenate(towards), 5) + 0.0)
        candidates.append((score, place, _three(axes)))
    best = max(score for score, _, _ in candidates)
    return max((place, axes) for score, place, axes in candidates if score > best - _TIE)[1]


class _Memory:
    """Lends an image's voxels to numpy and keeps the image alive as long as they are in use."""

    def __init__(self, image: sitk.Image, writeable: bool = False) -> None:
        self._image = image
        # The interface's dictionary is all that is taken; it points into the image's buffer.
        interface = sitk.GetArrayViewFromImage(image).__array_interface__
        address, _ = interface["data"]
        self.__array_interface__ = {**interface, "data": (address, not writeable)}


def _view(image: sitk.Image) -> np.ndarray:
    """The voxels of an image as a read-only array, without a copy."""
    return np.asarray(_Memory(image))


def _three(values: Any) -> Any:
    first, second, third = values
    return first, second, third


def _text(values: Any, separator: str = " x ") -> str:
    return separator.join(f"{value:.7g}" for value in values)


def bounding_box(mask: np.ndarray) -> tuple[slice, slice, slice] | None:
    """The smallest box of a 3-D mask that holds all its voxels, or None where it has none."""
    plane = np.asarray(mask.any(axis=0))
    hits = [
        np.flatnonzero(at) for at in (mask.any(axis=(1, 2)), plane.any(axis=1), plane.any(axis=0))
    ]
    if not hits[0].size:
        return None
    first, second, third = (slice(int(at[0]), int(at[-1]) + 1) for at in hits)
    return first, second, third


def signed_distances_mm(mask: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Euclidean distance of each voxel to the closest surface of a mask, negative inside it.

    After Maurer et al., 2003; of a volume or a slice.
    """
    image = sitk.GetImageFromArray(np.asarray(mask, bool).view(np.uint8))
    image.SetSpacing([float(mm) for mm in reversed(spacing_mm)])
    distances = sitk.SignedMaurerDistanceMap(
        image, insideIsPositive=False, squaredDistance=False, useImageSpacing=True
    )
    array: np.ndarray = sitk.GetArrayFromImage(distances)
    return array
