"""How large the kidneys are, and how well a segmentation agrees with a reference.

Everything is counted on the voxels that are stored; nothing is resampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import cc3d
import numpy as np
import SimpleITK as sitk

from KidneySegLib.errors import InputError
from KidneySegLib.geometry import AxialGrid, grid_difference, to_axial
from KidneySegLib.postprocess import LEFT, RIGHT, SIDE_NAMES, bounding_box

LabelsKind = Literal["sides", "merged", "tumour", "empty"]

# The score that was published for the KiTS19 U-Net is smoothed with this.
SLICE_SCORE_SMOOTHING = 1e-4

# Labels 1 and 2 are two sides when a sagittal cut separates them save for this share of either.
# Where the two touch, label 2 may be a tumour on the medial or lateral face of a kidney, and
# only a cut as clean as that through the isthmus of a horseshoe kidney counts.
_STRAY_SHARE = 0.02
_STRAY_SHARE_TOUCHING = 0.005
# They touch when components that hold both hold more than this share of either: a few voxels of
# the wrong side on a kidney are an error of segmentation and no tumour.
_TOUCHING_SHARE = 0.02
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


class SurfaceDistances(NamedTuple):
    """How far two surfaces lie apart, in mm."""

    mean_mm: float
    hausdorff_95_mm: float


def surface_distances(
    a: np.ndarray, b: np.ndarray, spacing_mm: Sequence[float]
) -> SurfaceDistances | None:
    """Mean surface distance and 95 % Hausdorff distance of two masks of equal shape.

    The surface of a mask is every voxel of it with a face neighbour outside (or outside the
    array); its distance is that from its centre to the closest centre of the other surface. The
    mean is the average symmetric surface distance, over the voxels of both surfaces together
    (Heimann et al., IEEE TMI 28 (2009) 1251). The 95 % Hausdorff distance is the larger of the
    95th percentiles of the two directed sets of distances (Huttenlocher et al., IEEE TPAMI 15
    (1993) 850; Taha and Hanbury, BMC Medical Imaging 15 (2015) 29), interpolated linearly.

    Parameters
    ----------
    a, b
        Arrays of three dimensions; anything but 0 is inside.
    spacing_mm
        Distance between voxels along each axis of the arrays, in mm.

    Returns
    -------
    None where one of the masks is empty: there is no surface to measure to.
    """
    _same_shape(a, b)
    box_a, box_b = bounding_box(a != 0), bounding_box(b != 0)
    if box_a is None or box_b is None:
        return None
    box = _union(box_a, box_b)
    surfaces = [_surface(array[box] != 0) for array in (a, b)]
    a_to_b = _distances_mm(surfaces[1], spacing_mm)[surfaces[0]]
    b_to_a = _distances_mm(surfaces[0], spacing_mm)[surfaces[1]]
    mean = (a_to_b.sum(dtype=float) + b_to_a.sum(dtype=float)) / (a_to_b.size + b_to_a.size)
    return SurfaceDistances(
        float(mean), float(max(np.percentile(a_to_b, 95), np.percentile(b_to_a, 95)))
    )


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
    _same_shape(prediction, reference)
    scores = []
    for one, other in zip(prediction, reference, strict=True):
        both, total = _overlap(one, other)
        scores.append((2 * both + smoothing) / (total + smoothing))
    return float(np.mean(scores))


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

    Raises
    ------
    InputError
        The image is not a scalar 3-D one, or its values are none of these labels.
    """
    return _Labels(image, name).kind


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

    notes = []
    for labels in (ours, theirs):
        if labels.kind == "empty":
            notes.append(f"{labels.name} has no kidney")
        elif labels.kind == "tumour":
            notes.append(f"labels 1 (kidney) and 2 (tumour) of {labels.name} were merged")
        elif labels.swapped:
            notes.append(f"left and right are swapped in {labels.name}")
    if our_sides != their_sides and "empty" not in (ours.kind, theirs.kind):
        blind = theirs if our_sides else ours
        notes.append(f"{blind.name} does not tell left from right; only both together are compared")

    box = _union(ours.box, theirs.box)
    a, b = ours.array[box], theirs.array[box]
    pairs = {"kidney": (a > 0, b > 0)}
    if our_sides and theirs.kind == "sides":
        pairs |= {name: (a == side, b == side) for side, name in SIDE_NAMES.items()}
    result = {
        "dice": {key: dice(*pair) for key, pair in pairs.items()},
        "iou": {key: iou(*pair) for key, pair in pairs.items()},
        "volume_ml": {
            "prediction": volumes_ml(a, ours.grid, sides=our_sides),
            "reference": volumes_ml(b, theirs.grid, sides=their_sides),
        },
        "slice_score": slice_score(ours.array, theirs.array),
        "notes": notes,
    }
    if distances:
        spacing_mm = ours.grid.spacing_mm
        apart = {key: surface_distances(*pair, spacing_mm) for key, pair in pairs.items()}
        result["mean_surface_distance_mm"] = {
            key: None if both is None else both.mean_mm for key, both in apart.items()
        }
        result["hausdorff_95_mm"] = {
            key: None if both is None else both.hausdorff_95_mm for key, both in apart.items()
        }
    return result


class _Labels:
    """A label map as a uint8 axial array, and what its labels mean."""

    def __init__(self, image: sitk.Image, name: str) -> None:
        _check_volume(image, name)
        self.name = name
        stored, self.grid = to_axial(image)
        self.array = np.zeros(self.grid.shape, np.uint8)
        self.box = bounding_box(stored != 0) or (slice(0, 0), slice(0, 0), slice(0, 0))
        values = stored[self.box]
        self.values = [float(value) for value in np.unique(values)]
        self.values = [value for value in self.values if value != 0]
        if set(self.values) <= {1.0, 2.0}:
            self.array[self.box] = values
        elif len(self.values) == 1 and np.isfinite(self.values[0]):  # such as 255
            self.array[self.box] = values != 0
        else:
            held = ", ".join(f"{value:g}" for value in self.values[:5])
            more = ", ..." if len(self.values) > 5 else ""
            raise InputError(
                f"{name} holds the values {held}{more} and is no label map of kidneys; give one "
                "with 1 (kidney, or left kidney) and 2 (tumour, or right kidney)."
            )
        self.swapped = False
        self.kind = self._kind()

    def _kind(self) -> LabelsKind:
        if not self.values:
            return "empty"
        if self.values == [float(RIGHT)]:
            return "sides"
        if len(self.values) == 1:
            return "merged"
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
        crop = np.ascontiguousarray(self.array[self.box])
        components = cc3d.connected_components(crop > 0, connectivity=18)
        counts = [np.bincount(components[crop == side]) for side in (LEFT, RIGHT)]
        least = min(len(count) for count in counts)
        shared = np.minimum(counts[0][:least], counts[1][:least]).sum()
        return bool(shared > _TOUCHING_SHARE * min(count.sum() for count in counts))

    def x_mm(self, label: int) -> np.ndarray:
        """Sorted x positions (LPS) of voxels of a label, at most about `_SAMPLE` of them."""
        crop = self.array[self.box]
        flat = np.flatnonzero(crop == label)
        flat = flat[:: max(1, len(flat) // _SAMPLE)]
        index = np.stack(np.unravel_index(flat, crop.shape), axis=1)
        first = [part.start for part in self.box]
        return np.sort(self.grid.to_physical(index + first)[:, 0])

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


def _distances_mm(surface: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Each voxel's Euclidean distance to the closest voxel of a surface (Maurer et al., 2003)."""
    image = sitk.GetImageFromArray(surface.view(np.uint8))
    image.SetSpacing([float(mm) for mm in reversed(spacing_mm)])
    distances = sitk.SignedMaurerDistanceMap(
        image, insideIsPositive=False, squaredDistance=False, useImageSpacing=True
    )
    # Inside is negative: voxels of the surface that are surrounded by such voxels.
    return np.maximum(sitk.GetArrayViewFromImage(distances), 0)


def _same_shape(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape:
        raise ValueError(f"The masks have different shapes, {a.shape} and {b.shape}.")


def _union(
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
