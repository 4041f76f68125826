"""How large the kidneys are, and how well a segmentation agrees with a reference.

Everything is counted on the voxels that are stored; nothing is resampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk

from KidneySegLib.errors import InputError
from KidneySegLib.geometry import (
    SIDE_NAMES,
    AxialGrid,
    bounding_box,
    grid_difference,
    signed_distances_mm,
)
from KidneySegLib.labelmaps import TUMOUR, Labels, check_volume

# The score that was published for the KiTS19 U-Net is smoothed with this.
SLICE_SCORE_SMOOTHING = 1e-4

# Surfaces this close count as the same in the surface Dice.
SURFACE_TOLERANCE_MM = 2.0
# Distances come in single precision: five voxels of 0.4 mm may be a trifle more than 2 mm.
_ROUNDING_MM = 1e-5


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


def evaluate(
    prediction: sitk.Image,
    reference: sitk.Image,
    names: tuple[str, str] = ("prediction", "reference"),
    *,
    distances: bool = False,
) -> dict[str, Any]:
    """Compare two label maps on the same grid.

    Each may hold sides (1 left, 2 right), merged kidneys (one label) or KiTS19's labels (1
    kidney, 2 tumour, which is merged into it); see `labelmaps.labels_kind`. A map that holds label
    1 only is taken as merged, save for a prediction whose label 1 lies on the left of a reference
    that tells sides: then it is a left kidney, whichever way it was meant.

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
        check_volume(image, name)
    difference = grid_difference(prediction, reference)
    if difference:
        raise InputError(
            f"{names[0]} and {names[1]} lie on different grids ({difference}); give two label "
            "maps of the same CT."
        )
    ours, theirs = Labels(prediction, names[0]), Labels(reference, names[1])
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
        masks["tumour"] = (a == TUMOUR, b == TUMOUR)

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
