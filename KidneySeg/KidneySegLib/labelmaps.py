"""What the labels of a map of kidneys mean, told by their values and by where they lie."""

from __future__ import annotations

from typing import Literal

import cc3d
import numpy as np
import SimpleITK as sitk

from KidneySegLib.errors import InputError
from KidneySegLib.geometry import (
    LEFT,
    RIGHT,
    SIDE_NAMES,
    bounding_box,
    from_axial,
    to_axial,
)
from KidneySegLib.midline import WIDE_MM
from KidneySegLib.postprocess import find_kidneys

LabelsKind = Literal["sides", "merged", "tumour", "empty"]

# Of KiTS19's labels, and what KiTS21 and KiTS23 added to them.
TUMOUR = 2
CYST = 3
# The right and the left kidney among the organs of TotalSegmentator, BTCV and AMOS.
_RIGHT_ORGAN, _LEFT_ORGAN = 2, 3

# Labels 1 and 2 are two sides when a sagittal cut separates them save for this share of either.
# Where the two touch, label 2 may be a tumour on the medial or lateral face of a kidney, and
# only a cut as clean as that through the isthmus of a horseshoe kidney counts.
_STRAY_SHARE = 0.02
_STRAY_SHARE_TOUCHING = 0.005
# They touch when components that hold both hold more than this share of either: a few voxels of
# the wrong side on a kidney are an error of segmentation and no tumour.
_TOUCHING_SHARE = 0.02
# What lies to either side of the middle are two kidneys where the one has this share of the other.
_PAIR_SHARE = 0.25
# Positions are judged on this many voxels of a label, evenly taken.
_SAMPLE = 100_000


def labels_kind(image: sitk.Image, name: str = "the label map") -> LabelsKind:
    """What the labels of a map mean, decided by where they lie in the patient.

    - "empty": no label.
    - "merged": one label for all kidney. A map of sides of which only the left kidney exists,
      label 1, cannot be told from it.
    - "sides": 1 is one side and 2 the other, as a sagittal cut separates them: in components of
      their own or through the isthmus of a horseshoe kidney. Which of them is on the left is not
      asked, so that a map with its sides swapped is one of sides. Label 2 alone is a right
      kidney.
    - "tumour": 1 is kidney and 2 is tumour in it, as in KiTS19.

    KiTS23's cysts, label 3, are kidney. 2 and 3 alone are a right and a left kidney if that is
    where they lie, as TotalSegmentator, BTCV and AMOS number them.

    Raises
    ------
    InputError
        The image is not a scalar 3-D one, or its values are none of these labels.
    """
    return Labels(image, name).kind


def usual_labels(image: sitk.Image, name: str = "the label map") -> tuple[sitk.Image, LabelsKind]:
    """A map as uint8 with the labels that `labels_kind` tells, 1 and 2 alone, and what they mean.

    Raises
    ------
    InputError
        As of `labels_kind`.
    """
    labels = Labels(image, name)
    first, second, third = (slice(0, size) for size in labels.grid.shape)
    return from_axial(labels.part((first, second, third)), labels.grid), labels.kind


class Labels:
    """The labelled box of a map as a uint8 axial array, and what its labels mean."""

    def __init__(self, image: sitk.Image, name: str) -> None:
        check_volume(image, name)
        self.name = name
        stored, self.grid = to_axial(image)
        self.box = bounding_box(stored != 0) or (slice(0, 0), slice(0, 0), slice(0, 0))
        values = stored[self.box]
        self.values = [float(value) for value in np.unique(values) if value != 0]
        self.notes: list[str] = []
        self.swapped = False
        if set(self.values) <= {1.0, 2.0}:
            self.crop = values.astype(np.uint8, order="C")
            self.kind = self._kind()
        elif len(self.values) == 1 and np.isfinite(self.values[0]):  # such as 255
            self.crop = np.ascontiguousarray(values != 0).view(np.uint8)
            self.kind = "merged"
        elif not (self._take_organs(values) or self._take_cysts(values)):
            held = ", ".join(f"{value:g}" for value in self.values[:5])
            more = ", ..." if len(self.values) > 5 else ""
            raise InputError(
                f"{name} holds the values {held}{more} and is no label map of kidneys; give one "
                "with 1 (kidney, or left kidney) and 2 (tumour, or right kidney)."
            )

    def _take_organs(self, values: np.ndarray) -> bool:
        """Take 2 for the right kidney and 3 for the left; whether they lie so."""
        if self.values != [_RIGHT_ORGAN, _LEFT_ORGAN]:
            return False
        self.crop = np.zeros(values.shape, np.uint8)
        self.crop[values == _RIGHT_ORGAN] = RIGHT
        self.crop[values == _LEFT_ORGAN] = LEFT
        self.kind = self._kind()
        self.notes = [
            f"labels {_RIGHT_ORGAN} and {_LEFT_ORGAN} of {self.name} were taken for the right and "
            "the left kidney, as TotalSegmentator, BTCV and AMOS number them"
        ]
        return self.kind == "sides" and not self.swapped

    def _take_cysts(self, values: np.ndarray) -> bool:
        """Take 3 for cysts, and so for kidney; whether it can be one, and the labels no sides."""
        if self.values not in ([1.0, CYST], [1.0, TUMOUR, CYST]):
            return False
        tumours = TUMOUR in self.values
        self.crop = np.where(values == CYST, 0 if tumours else 2, values).astype(np.uint8)
        sides = self._kind() == "sides"
        self.crop[values == CYST] = 1
        self.kind = "tumour" if tumours else "merged"
        self.notes = [f"label {CYST} (cyst, as in KiTS23) of {self.name} counts as kidney"]
        return not sides

    def _kind(self) -> LabelsKind:
        has_left, has_right = (bool((self.crop == side).any()) for side in (LEFT, RIGHT))
        if not has_right:
            return "merged" if has_left else "empty"
        if not has_left:
            return "sides"
        left, right = self.x_mm(LEFT), self.x_mm(RIGHT)
        # How well the best cut separates the two: the distance of Kolmogorov and Smirnov.
        at = np.sort(np.concatenate([left, right]))
        lower_left = np.searchsorted(left, at, side="right") / len(left)
        lower_right = np.searchsorted(right, at, side="right") / len(right)
        ahead = lower_right - lower_left
        stray = 1 - float(np.abs(ahead).max())
        if stray > (_STRAY_SHARE_TOUCHING if self._touching() else _STRAY_SHARE):
            return "tumour"
        self.swapped = bool(-ahead.min() > ahead.max())
        return "sides"

    def _touching(self) -> bool:
        """Whether labels 1 and 2 are more than marginally parts of the same components."""
        components = cc3d.connected_components(self.crop > 0, connectivity=18)
        counts = [np.bincount(components[self.crop == side]) for side in (LEFT, RIGHT)]
        least = min(len(count) for count in counts)
        shared = np.minimum(counts[0][:least], counts[1][:least]).sum()
        return bool(shared > _TOUCHING_SHARE * min(count.sum() for count in counts))

    def x_mm(self, label: int) -> np.ndarray:
        """Sorted x positions (LPS) of voxels of a label, at most about `_SAMPLE` of them."""
        flat = np.flatnonzero(self.crop == label)
        flat = flat[:: max(1, len(flat) // _SAMPLE)]
        index = np.stack(np.unravel_index(flat, self.crop.shape), axis=1)
        first = [part.start for part in self.box]
        return np.sort(self.grid.to_physical(index + first)[:, 0])

    def part(self, box: tuple[slice, slice, slice]) -> np.ndarray:
        """A box of the map, which holds the labelled one."""
        array = np.zeros([at.stop - at.start for at in box], np.uint8)
        array[self._within(box)] = self.crop
        return array

    def sides_by_place(self, box: tuple[slice, slice, slice]) -> np.ndarray | None:
        """`part`, with 1 for what lies on the left and 2 for what lies on the right.

        None where nobody can tell: a kidney alone in a picture of a part of the body's width may
        lie anywhere in it.
        """
        mask = np.zeros(self.grid.shape, bool)
        mask[self.box] = self.crop > 0
        sides: np.ndarray = find_kidneys(mask, self.grid, keep_small=True).labels[box]
        sides[~mask[box]] = 0  # holes, which were filled
        fewer, more = sorted(int(np.count_nonzero(sides == side)) for side in SIDE_NAMES)
        wide = self.grid.shape[2] * self.grid.spacing_mm[2] >= WIDE_MM
        return sides if wide or fewer >= _PAIR_SHARE * more else None

    def _within(self, box: tuple[slice, slice, slice]) -> tuple[slice, ...]:
        """Where the labelled box lies in a larger one."""
        if not self.crop.size:
            return (slice(0, 0),) * 3
        return tuple(
            slice(at.start - whole.start, at.stop - whole.start)
            for at, whole in zip(self.box, box, strict=True)
        )

    def is_left_of(self, sides: Labels) -> bool:
        """Whether this map of label 1 only shows what `sides` would call a left kidney."""
        if self.values != [float(LEFT)] or sides.kind != "sides" or sides.swapped:
            return False
        right = sides.x_mm(RIGHT)
        left = sides.x_mm(LEFT)
        cut = (left.mean() + right.mean()) / 2 if left.size else right.max()
        return bool(np.mean(self.x_mm(LEFT) < cut) <= _STRAY_SHARE)


def check_volume(image: sitk.Image, name: str) -> None:
    """Raise InputError unless the image is 3-D with one number a voxel."""
    if image.GetDimension() != 3:
        raise InputError(
            f"{name} has {image.GetDimension()} dimensions; give a label map of a volume, which "
            "has three."
        )
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(f"{name} holds colours or vectors; give a label map with one channel.")
