"""How large the kidneys are, and how well a segmentation agrees with a reference.

Everything is counted on the voxels that are stored; nothing is resampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import cc3d
import numpy as np
import SimpleITK as sitk

from KidneySegLib.errors import InputError
from KidneySegLib.geometry import (
    LEFT,
    RIGHT,
    SIDE_NAMES,
    AxialGrid,
    bounding_box,
    from_axial,
    grid_difference,
    signed_distances_mm,
    to_axial,
)
from KidneySegLib.midline import WIDE_MM
from KidneySegLib.postprocess import find_kidneys

LabelsKind = Literal["sides", "merged", "tumour", "empty"]

# The score that was published for the KiTS19 U-Net is smoothed with this.
SLICE_SCORE_SMOOTHING = 1e-4

# Surfaces this close count as the same in the surface Dice.
SURFACE_TOLERANCE_MM = 2.0
# Distances come in single precision: five voxels of 0.4 mm may be a trifle more than 2 mm.
_ROUNDING_MM = 1e-5

# Of KiTS19's labels, and what KiTS21 and KiTS23 added to them.
_TUMOUR = 2
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


def volume_ml(mask: np.ndarray, grid: AxialGrid) -> float:
    """Volume in ml of the voxels that are not 0, in an array of any order on that grid."""
    return int(np.count_nonzero(mask)) * grid.voxel_volume_ml


def volumes_ml(labels: np.ndarray, grid: AxialGrid, *, sides: bool = True) -> dict[str, float]:
    """Volumes in ml of a label map: "kidney" for all of it, and "left" and "right".

    Parameters
    ----------
    labels
        Array of shape (slices, rows, columns), 0 background, 1 left, 2 right; where `sides` is
        False anything but 0 is kidney and only "kidney" is given.
    """
    volumes = {"kidney": volume_ml(labels, grid)}
    if sides:
        volumes |= {name: volume_ml(labels == side, grid) for side, name in SIDE_NAMES.items()}
    return volumes


def dice(a: np.ndarray, b: np.ndarray) -> float | None:
    """Dice coefficient 2 |A and B| / (|A| + |B|) of two masks of equal shape.

    Dice, Ecology 26 (1945) 297. None when both are empty: there is nothing to agree on.
    """
    both, total = _overlap(a, b)
    return 2 * both / total if total else None


def iou(a: np.ndarray, b: np.ndarray) -> float | None:
    """Intersection over union |A and B| / |A or B| of two masks of equal shape (Jaccard).

    None when both are empty.
    """
    both, total = _overlap(a, b)
    return both / (total - both) if total else None


def precision(prediction: np.ndarray, reference: np.ndarray) -> float | None:
    """Share of the prediction's voxels that are in the reference, |A and B| / |A|.

    Taha and Hanbury, BMC Medical Imaging 15 (2015) 29. None when the prediction is empty.
    """
    both, _ = _overlap(prediction, reference)
    predicted = int(np.count_nonzero(prediction))
    return both / predicted if predicted else None


def recall(prediction: np.ndarray, reference: np.ndarray) -> float | None:
    """Share of the reference's voxels that are in the prediction, |A and B| / |B|.

    Also called sensitivity; source as for `precision`. None when the reference is empty.
    """
    return precision(reference, prediction)


class SurfaceDistances(NamedTuple):
    """How far two surfaces lie apart, in mm."""

    mean_mm: float
    hausdorff_95_mm: float


class SurfaceAgreement(NamedTuple):
    """How well two surfaces agree; None where that is not defined."""

    distances: SurfaceDistances | None
    dice: float | None


def surface_agreement(
    a: np.ndarray,
    b: np.ndarray,
    spacing_mm: Sequence[float],
    tolerance_mm: float = SURFACE_TOLERANCE_MM,
) -> SurfaceAgreement:
    """Surface distances and surface Dice of two masks of equal shape, measured in one go.

    The surface of a mask is every voxel of it with a face neighbour outside (or outside the
    array); its distance is that from its centre to the closest centre of the other surface.

    - The mean is the average symmetric surface distance, over the voxels of both surfaces
      together (Heimann et al., IEEE TMI 28 (2009) 1251).
    - The 95 % Hausdorff distance is the larger of the 95th percentiles of the two directed sets
      of distances (Huttenlocher et al., IEEE TPAMI 15 (1993) 850; Taha and Hanbury, BMC Medical
      Imaging 15 (2015) 29), interpolated linearly.
    - The surface Dice is the share of the voxels of both surfaces that lie within a tolerance of
      the other surface (Nikolov et al., J Med Internet Res 23 (2021) e26151, who count areas
      where voxels are counted here).

    Parameters
    ----------
    a, b
        Arrays of three dimensions; anything but 0 is inside.
    spacing_mm
        Distance between voxels along each axis of the arrays, in mm.
    tolerance_mm
        Of the surface Dice.

    Returns
    -------
    Where one mask is empty there is no distance, and the surface Dice is 0; where both are,
    neither is defined.
    """
    _same_shape(a, b)
    box_a, box_b = bounding_box(a != 0), bounding_box(b != 0)
    if box_a is None or box_b is None:
        return SurfaceAgreement(None, 0.0 if box_a or box_b else None)
    box = union_box(box_a, box_b)
    surfaces = [_surface(array[box] != 0) for array in (a, b)]
    # Negative are voxels of a surface that are surrounded by such voxels.
    a_to_b, b_to_a = (
        np.maximum(signed_distances_mm(surfaces[to], spacing_mm)[surfaces[1 - to]], 0)
        for to in (1, 0)
    )
    number = a_to_b.size + b_to_a.size
    mean = (a_to_b.sum(dtype=float) + b_to_a.sum(dtype=float)) / number
    largest = max(np.percentile(a_to_b, 95), np.percentile(b_to_a, 95))
    limit_mm = tolerance_mm + _ROUNDING_MM
    close = sum(int(np.count_nonzero(far <= limit_mm)) for far in (a_to_b, b_to_a))
    return SurfaceAgreement(SurfaceDistances(float(mean), float(largest)), close / number)


def surface_distances(
    a: np.ndarray, b: np.ndarray, spacing_mm: Sequence[float]
) -> SurfaceDistances | None:
    """Mean surface distance and 95 % Hausdorff distance; see `surface_agreement`.

    Returns
    -------
    None where one of the masks is empty: there is no surface to measure to.
    """
    return surface_agreement(a, b, spacing_mm).distances


def surface_dice(
    a: np.ndarray,
    b: np.ndarray,
    spacing_mm: Sequence[float],
    tolerance_mm: float = SURFACE_TOLERANCE_MM,
) -> float | None:
    """Surface Dice at a tolerance; see `surface_agreement`. None when both masks are empty."""
    return surface_agreement(a, b, spacing_mm, tolerance_mm).dice


def slice_score(
    prediction: np.ndarray, reference: np.ndarray, smoothing: float = SLICE_SCORE_SMOOTHING
) -> float:
    """The score published for the KiTS19 U-Net: the mean over all slices of each slice's Dice.

    A slice's Dice is (2 |A and B| + s) / (|A| + |B| + s) with s = 1e-4, so that a slice that is
    empty in both counts as 1; it therefore exceeds the Dice of the volume in most scans.

    Parameters
    ----------
    prediction, reference
        Axial arrays of shape (slices, rows, columns); anything but 0 is kidney.
    """
    return float(np.mean(slice_dice(prediction, reference, smoothing)))


def slice_dice(
    prediction: np.ndarray, reference: np.ndarray, smoothing: float = SLICE_SCORE_SMOOTHING
) -> np.ndarray:
    """The smoothed Dice of every slice, whose mean is the `slice_score`.

    Returns
    -------
    float64 array of shape (slices,).
    """
    _same_shape(prediction, reference)
    overlaps = np.array(
        [_overlap(one, other) for one, other in zip(prediction, reference, strict=True)], float
    ).reshape(-1, 2)
    scores: np.ndarray = (2 * overlaps[:, 0] + smoothing) / (overlaps[:, 1] + smoothing)
    return scores


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
    return _Labels(image, name).kind


def usual_labels(image: sitk.Image, name: str = "the label map") -> tuple[sitk.Image, LabelsKind]:
    """A map as uint8 with the labels that `labels_kind` tells, 1 and 2 alone, and what they mean.

    Raises
    ------
    InputError
        As of `labels_kind`.
    """
    labels = _Labels(image, name)
    first, second, third = (slice(0, size) for size in labels.grid.shape)
    return from_axial(labels.part((first, second, third)), labels.grid), labels.kind


def evaluate(
    prediction: sitk.Image,
    reference: sitk.Image,
    names: tuple[str, str] = ("prediction", "reference"),
    *,
    distances: bool = False,
) -> dict[str, Any]:
    """Compare two label maps on the same grid.

    Each may hold sides (1 left, 2 right), merged kidneys (one label) or KiTS19's labels (1
    kidney, 2 tumour, which is merged into it); see `labels_kind`. A map that holds label 1 only
    is taken as merged, save for a prediction whose label 1 lies on the left of a reference that
    tells sides: then it is a left kidney, whichever way it was meant.

    Parameters
    ----------
    names
        What to call the two in messages: their file names.
    distances
        Also measure `surface_distances`, which takes a second or two.

    Returns
    -------
    JSON-ready: "dice" and "iou" with "kidney" and, where both tell sides, "left" and "right"
    (None where both are empty); "volume_ml" with "prediction" and "reference", each with
    "kidney" and, where it tells sides, "left" and "right"; "slice_score"; "notes". With
    `distances` also "mean_surface_distance_mm" and "hausdorff_95_mm", with the same keys as
    "dice" (None where one is empty).

    Raises
    ------
    InputError
        The grids differ, an image is not 3-D, or labels are not understood.
    """
    pair = pair_of(prediction, reference, names)
    result = {
        "dice": {key: dice(*masks) for key, masks in pair.masks.items()},
        "iou": {key: iou(*masks) for key, masks in pair.masks.items()},
        "volume_ml": pair.volumes_ml,
        "slice_score": float(pair.slice_dice.mean()),
        "notes": list(pair.notes),
    }
    if distances:
        spacing_mm = pair.grid.spacing_mm
        apart = {key: surface_distances(*masks, spacing_mm) for key, masks in pair.masks.items()}
        result["mean_surface_distance_mm"] = {
            key: None if both is None else both.mean_mm for key, both in apart.items()
        }
        result["hausdorff_95_mm"] = {
            key: None if both is None else both.hausdorff_95_mm for key, both in apart.items()
        }
    return result


@dataclass(frozen=True)
class Pair:
    """Two label maps of the same CT, as masks of what both tell.

    Attributes
    ----------
    masks
        For "kidney" and, where both tell sides, "left" and "right", where both mark a tumour,
        "tumour": the prediction's and the reference's mask, bool arrays of the shape of `box`.
    grid
        The grid of both.
    box
        Of the axial array, the smallest that holds every label of both; outside is background.
    volumes_ml
        For "prediction" and "reference" the volumes of what each tells, in ml.
    slice_dice
        Smoothed Dice of every axial slice, float64 of shape (slices,); see `slice_dice`.
    notes
        Sentences on what the labels were taken for.
    """

    masks: dict[str, tuple[np.ndarray, np.ndarray]]
    grid: AxialGrid
    box: tuple[slice, slice, slice]
    volumes_ml: dict[str, dict[str, float]]
    slice_dice: np.ndarray
    notes: tuple[str, ...]


def pair_of(
    prediction: sitk.Image,
    reference: sitk.Image,
    names: tuple[str, str] = ("prediction", "reference"),
    *,
    by_place: bool = False,
    tumour: bool = False,
) -> Pair:
    """Read two label maps against each other, as `evaluate` and `evaluation` do.

    Parameters
    ----------
    names
        What to call the two in messages.
    by_place
        Tell left from right by position in a map that does not tell them, where that can be told.
    tumour
        Also give the tumours, where both maps mark them.

    Raises
    ------
    InputError
        The grids differ, an image is not 3-D, or labels are not understood.
    """
    for image, name in zip((prediction, reference), names, strict=True):
        _check_volume(image, name)
    difference = grid_difference(prediction, reference)
    if difference:
        raise InputError(
            f"{names[0]} and {names[1]} lie on different grids ({difference}); give two label "
            "maps of the same CT."
        )
    ours, theirs = _Labels(prediction, names[0]), _Labels(reference, names[1])
    our_sides = ours.kind in ("sides", "empty") or ours.is_left_of(theirs)
    their_sides = theirs.kind in ("sides", "empty")
    tumours = tumour and ours.kind == theirs.kind == "tumour"

    notes = []
    for labels in (ours, theirs):
        notes += labels.notes
        if labels.kind == "empty":
            notes.append(f"{labels.name} has no kidney")
        elif labels.kind == "tumour" and not tumours:
            notes.append(f"labels 1 (kidney) and 2 (tumour) of {labels.name} were merged")
        elif labels.swapped:
            notes.append(f"left and right are swapped in {labels.name}")

    box = union_box(ours.box, theirs.box)
    a, b = ours.part(box), theirs.part(box)
    masks = {"kidney": (a > 0, b > 0)}
    if by_place:
        a_sides = a if our_sides else ours.sides_by_place(box)
        b_sides = b if their_sides else theirs.sides_by_place(box)
        if a_sides is None or b_sides is None:
            unknown = [
                labels.name
                for labels, sides in ((ours, a_sides), (theirs, b_sides))
                if sides is None
            ]
            notes.append(
                "the picture is too narrow to tell the side of the kidney in "
                f"{' and '.join(unknown)} by its position; left and right are not compared"
            )
        else:
            blind = [
                labels.name
                for labels, tells in ((ours, our_sides), (theirs, their_sides))
                if not tells
            ]
            if blind:
                notes.append(f"left and right were told apart by position in {' and '.join(blind)}")
            masks |= {name: (a_sides == side, b_sides == side) for side, name in SIDE_NAMES.items()}
    else:
        if our_sides != their_sides and "empty" not in (ours.kind, theirs.kind):
            name = (theirs if our_sides else ours).name
            notes.append(f"{name} does not tell left from right; only both together are compared")
        if our_sides and theirs.kind == "sides":
            masks |= {name: (a == side, b == side) for side, name in SIDE_NAMES.items()}
    if tumours:
        masks["tumour"] = (a == _TUMOUR, b == _TUMOUR)

    scores = np.ones(ours.grid.shape[0])  # a slice that is empty in both counts as 1
    scores[box[0]] = slice_dice(*masks["kidney"])
    return Pair(
        masks=masks,
        grid=ours.grid,
        box=box,
        volumes_ml={
            "prediction": volumes_ml(a, ours.grid, sides=our_sides),
            "reference": volumes_ml(b, theirs.grid, sides=their_sides),
        },
        slice_dice=scores,
        notes=tuple(notes),
    )


class _Labels:
    """The labelled box of a map as a uint8 axial array, and what its labels mean."""

    def __init__(self, image: sitk.Image, name: str) -> None:
        _check_volume(image, name)
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
        elif not (self._is_of_organs(values) or self._has_cysts(values)):
            held = ", ".join(f"{value:g}" for value in self.values[:5])
            more = ", ..." if len(self.values) > 5 else ""
            raise InputError(
                f"{name} holds the values {held}{more} and is no label map of kidneys; give one "
                "with 1 (kidney, or left kidney) and 2 (tumour, or right kidney)."
            )

    def _is_of_organs(self, values: np.ndarray) -> bool:
        """Take 2 for the right kidney and 3 for the left, if they lie so."""
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

    def _has_cysts(self, values: np.ndarray) -> bool:
        """Take 3 for cysts, and so for kidney, unless 1 and 2 are sides."""
        if self.values not in ([1.0, CYST], [1.0, _TUMOUR, CYST]):
            return False
        self.crop = np.where(values == CYST, 0, values).astype(np.uint8, order="C")
        self.kind = self._kind()
        self.crop[values == CYST] = 1
        self.notes = [f"label {CYST} (cyst, as in KiTS23) of {self.name} counts as kidney"]
        return self.kind != "sides"

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

    def is_left_of(self, sides: _Labels) -> bool:
        """Whether this map of label 1 only shows what `sides` would call a left kidney."""
        if self.values != [float(LEFT)] or sides.kind != "sides" or sides.swapped:
            return False
        right = sides.x_mm(RIGHT)
        left = sides.x_mm(LEFT)
        cut = (left.mean() + right.mean()) / 2 if left.size else right.max()
        return bool(np.mean(self.x_mm(LEFT) < cut) <= _STRAY_SHARE)


def _check_volume(image: sitk.Image, name: str) -> None:
    """Raise InputError unless the image is 3-D with one number a voxel."""
    if image.GetDimension() != 3:
        raise InputError(
            f"{name} has {image.GetDimension()} dimensions; give a label map of a volume, which "
            "has three."
        )
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(f"{name} holds colours or vectors; give a label map with one channel.")


def _overlap(a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
    """|A and B| and |A| + |B|."""
    _same_shape(a, b)
    a, b = a != 0, b != 0
    return int(np.count_nonzero(a & b)), int(np.count_nonzero(a)) + int(np.count_nonzero(b))


def _surface(mask: np.ndarray) -> np.ndarray:
    """The voxels of a mask with a face neighbour outside of it or of the array."""
    padded = np.pad(mask, 1)
    inside = mask.copy()
    for axis in range(mask.ndim):
        for first in (0, 2):
            part = [slice(1, -1)] * mask.ndim
            part[axis] = slice(first, first + mask.shape[axis])
            inside &= padded[tuple(part)]
    return mask & ~inside


def _same_shape(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape:
        raise ValueError(f"The masks have different shapes, {a.shape} and {b.shape}.")


def union_box(
    a: tuple[slice, slice, slice], b: tuple[slice, slice, slice]
) -> tuple[slice, slice, slice]:
    """The smallest box around two boxes, of which an empty one counts for nothing."""
    if not a[0].stop or not b[0].stop:
        return a if a[0].stop else b
    first, second, third = (
        slice(min(one.start, other.start), max(one.stop, other.stop))
        for one, other in zip(a, b, strict=True)
    )
    return first, second, third
