"""What the labels of a map are called, and how a map gets onto the grid of its CT."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from typing import Literal

import numpy as np
import SimpleITK as sitk

from KidneySegLib.errors import InputError
from KidneySegLib.geometry import AxialGrid, from_axial, grid_difference, to_axial
from KidneySegLib.labelmaps import usual_labels
from KidneySegLib.writing import KIDNEYS, LEFT_KIDNEY, RIGHT_KIDNEY, SIDES, Segment

Meaning = Literal["sides", "kidney", "tumour"]
MEANINGS = ("sides", "kidney", "tumour")

# Two grids share their voxels where no corner is further off than this share of a voxel; the
# float32 header of a NIfTI file shifts the far corner of a large CT by a few hundredths.
_OFF_GRID = 0.1


class Tumour(Segment):
    """A structure that is a neoplasm in a kidney."""

    @property
    def terminology(self) -> str:
        """3D Slicer's terminology entry.

        SNOMED CT: 49755003 morphologically altered structure, 108369006 neoplasm, in 64033007
        kidney.
        """
        return "~".join(
            (
                "Segmentation category and type - DICOM master list",
                "SCT^49755003^Morphologically Altered Structure",
                "SCT^108369006^Neoplasm",
                "^^",
                "Anatomic codes - DICOM master list",
                "SCT^64033007^Kidney",
                "^^",
            )
        )


KIDNEY = replace(KIDNEYS, id="kidney", name="Kidney")
TUMOUR = Tumour(2, "tumour", "Tumour", (0.565, 0.933, 0.565))

# Every structure that can be in a result, by the name that files and objects are given.
STRUCTURES = {one.id: one for one in (*SIDES, KIDNEYS, KIDNEY, TUMOUR)}


def told_by_names(names: Iterable[str]) -> Meaning | None:
    """What labels are that a file gives these names, of `STRUCTURES`; None where they do not tell.

    Parameters
    ----------
    names
        As in `Segment.id` or `Segment.name`.
    """
    ids = {name.lower().replace(" ", "_") for name in names}
    if TUMOUR.id in ids:
        return "tumour"
    return "sides" if ids & {one.id for one in SIDES} else None


def understood(
    labels: sitk.Image,
    name: str = "the label map",
    meaning: Meaning | None = None,
    told: Meaning | None = None,
) -> tuple[sitk.Image, tuple[Segment, ...]]:
    """A label map and what its labels are.

    Parameters
    ----------
    labels
        3-D, whole numbers from 0 to 255.
    name
        What to call it in messages: its file name.
    meaning
        "sides": 1 left kidney, 2 right kidney. "kidney": all labels are kidney and become 1.
        "tumour": 1 kidney, 2 tumour. None tells by where the labels lie, see
        `KidneySegLib.labelmaps.labels_kind`; one label alone is then kidney of either side.
    told
        What the file itself says of them, by the names of its structures; it counts where `meaning`
        is None and the labels are 1 and 2.

    Returns
    -------
    The label map as uint8, and a structure for each label that may be in it.

    Raises
    ------
    InputError
        The labels are none of these, or left and right are swapped.
    """
    usual, kind = usual_labels(labels, name)
    if meaning == "kidney":
        return sitk.Cast(usual != 0, sitk.sitkUInt8), (KIDNEYS,)
    values = {int(value) for value in np.unique(sitk.GetArrayViewFromImage(labels))} - {0}
    said = meaning or (told if values <= {1, 2} else None)
    if said is None and kind == "merged":
        return usual, (KIDNEYS,)
    if meaning is not None and not values <= {1, 2}:
        raise InputError(
            f"{name} has the label {max(values)} where 1 and 2 are meant; leave out --labels."
        )
    if said == "tumour" or (said is None and kind == "tumour"):
        return usual, (KIDNEY, TUMOUR)
    if meaning is None and _swapped(usual):
        raise InputError(
            f"{name} has label 1, the left kidney, on the patient's right and 2 on the left; swap "
            "them, or say what they are with --labels."
        )
    return usual, SIDES


def _swapped(labels: sitk.Image) -> bool:
    """Whether label 1 lies to the right of label 2; LPS x grows to the patient's left."""
    shapes = sitk.LabelShapeStatisticsImageFilter()
    shapes.Execute(labels)
    one, two = LEFT_KIDNEY.label, RIGHT_KIDNEY.label
    if not (shapes.HasLabel(one) and shapes.HasLabel(two)):
        return False
    return bool(shapes.GetCentroid(one)[0] < shapes.GetCentroid(two)[0])


def pasted(
    labels: sitk.Image,
    full: sitk.Image,
    names: tuple[str, str] = ("the label map", "the CT"),
) -> sitk.Image:
    """A label map on the whole grid of its CT.

    The map may cover a part of the CT, as 3D Slicer saves a segmentation, and may store its axes
    in another order or direction; its voxels must be voxels of the CT. Nothing is resampled.

    Parameters
    ----------
    labels
        3-D label map; what it does not cover becomes 0.
    full
        An image on the grid that is wanted; its values do not matter.
    names
        What to call the two in messages: their file names.

    Returns
    -------
    uint8 image with exactly the size, spacing, origin and direction of `full`.

    Raises
    ------
    InputError
        The voxels are not those of the CT, or labels lie beyond it.
    """
    part, grid = to_axial(labels)
    whole = AxialGrid.of(full)
    first = _place(grid, full, whole)
    if first is None:
        raise InputError(
            f"{names[0]} lies on another grid than {names[1]} ({grid_difference(labels, full)}); "
            "give the label map that was drawn on this CT."
        )
    inside = tuple(
        slice(max(0, -start), max(0, min(length, total - start)))
        for start, length, total in zip(first, grid.shape, whole.shape, strict=True)
    )
    there = tuple(
        slice(start + cut.start, start + cut.stop) for start, cut in zip(first, inside, strict=True)
    )
    beyond = np.count_nonzero(part) - np.count_nonzero(part[inside])
    if beyond:
        raise InputError(
            f"{names[0]} has {beyond} labelled {'voxel' if beyond == 1 else 'voxels'} beyond "
            f"{names[1]} ({grid_difference(labels, full)}); give the CT it was drawn on."
        )
    result = np.zeros(whole.shape, np.uint8)
    if all(cut.start < cut.stop for cut in inside):
        result[there] = part[inside]
    return from_axial(result, whole)


def _place(grid: AxialGrid, full: sitk.Image, whole: AxialGrid) -> tuple[int, int, int] | None:
    """Axial index in the whole grid of a part's first voxel; None where voxels do not coincide."""
    last = np.array(grid.shape) - 1
    corners = np.array(list(product((0, 1), repeat=3))) * last
    found = np.empty(corners.shape)
    for at, position in zip(found, grid.to_physical(corners), strict=True):
        stored = full.TransformPhysicalPointToContinuousIndex(position.tolist())
        for axial, (axis, flip) in enumerate(zip(whole.order, whole.flips, strict=True)):
            along = stored[2 - axis]
            at[axial] = whole.size[2 - axis] - 1 - along if flip else along
    first = np.rint(found[0])
    if np.abs(found - first - corners).max() > _OFF_GRID:
        return None
    # The corners of a single slice say nothing of its thickness.
    if not np.allclose(grid.spacing_mm, whole.spacing_mm, rtol=1e-3):
        return None
    return int(first[0]), int(first[1]), int(first[2])
