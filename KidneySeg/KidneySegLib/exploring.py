"""What a set of labelled cases is like: sizes, volumes, brightness and, guessed, contrast phases.

Facts come from arrays, so that they can be asked of a file, of a case of the trainer and of what
3D Slicer has in its scene alike. `data_page` makes one HTML page of many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from KidneySegLib.geometry import bounding_box, signed_distances_mm

KIDNEY, TUMOUR = 1, 2

# Distances from the outline of the labels in mm. Voxels closer than the first hold a part of their
# neighbours; surroundings begin past the blur and end before liver, spleen and spine prevail.
EDGE_MM = 2.0
AROUND_MM = (2.0, 12.0)
_CLOSING_MM = 12.0  # across the renal hilum
_PIXEL_MM = 1.5  # of smaller pixels some are passed over: nothing here needs them all
_FEWEST_VOXELS = 30
_PARENCHYMA_HU = 40.0  # fat and urine of the renal sinus are darker

UNENHANCED = "unenhanced"
CORTICOMEDULLARY = "corticomedullary"
NEPHROGRAPHIC = "nephrographic"
EXCRETORY = "excretory-like"
UNKNOWN = "not guessed"
PHASES = (UNENHANCED, CORTICOMEDULLARY, NEPHROGRAPHIC, EXCRETORY, UNKNOWN)

# The rules of `guess_phase`: a limit, and how far to either side of it an answer is uncertain.
UNENHANCED_HU = (65.0, 15.0)
URINE_HU, URINE_FACTOR = 300.0, 1.6
URINE_ML = (0.3, 0.2)
UNEVENNESS = (0.33, 0.07)


class Spread(NamedTuple):
    """Median and quartiles of intensities."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Brightness:
    """Intensities of the kidneys of one case, in HU where the case is in HU.

    Attributes
    ----------
    kidney
        Label 1 without its outermost `EDGE_MM`, both kidneys together.
    around
        What lies `AROUND_MM` outside of all labels: fat, mostly.
    unevenness
        How far bright and dark parts of the kidneys lie apart: the 90th less the 10th percentile,
        as a share of the median, of their inner voxels above 40 HU after a mean over 3x3 pixels
        of about 1.5 mm. None where there are too few.
    tumour
        Label 2, or None.
    urine_ml
        Volume that is, after the same mean, brighter than `urine_hu` in the kidneys and in their
        hilum.
    brightest
        Of all voxels of the case: below `urine_hu`, urine cannot show.
    """

    kidney: Spread
    around: Spread | None
    unevenness: float | None
    tumour: Spread | None
    urine_ml: float
    brightest: float

    @property
    def urine_hu(self) -> float:
        """What only urine with contrast medium exceeds: 300 HU, and 1.6 times the kidneys' own."""
        return _urine_hu(self.kidney)


class Phase(NamedTuple):
    """A guess of the contrast phase.

    Attributes
    ----------
    name
        One of `PHASES`.
    sure
        False where a figure lies so close to a limit that the other answer is as good.
    why
        The figures it follows from.
    """

    name: str
    sure: bool
    why: str

    def __str__(self) -> str:
        return self.name if self.sure else f"{self.name}?"


@dataclass(frozen=True)
class CaseFacts:
    """Of one labelled case.

    Attributes
    ----------
    shape
        Slices, rows and columns.
    spacing_mm
        Between slices, rows and columns.
    kidney_slices
        Slices with any label.
    kidney_ml, tumour_ml
        Of labels 1 and 2 together, and of label 2; for a single slice volumes mean nothing.
    brightness
        None where no label is large enough.
    phase
        Of contrast, guessed.
    oddities
        Sentences about what does not fit, whose subject is the case.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    kidney_slices: int
    kidney_ml: float
    tumour_ml: float
    brightness: Brightness | None
    phase: Phase
    oddities: tuple[str, ...] = field(default=())

    @property
    def kidney_share(self) -> float:
        """Share of slices with kidney."""
        return self.kidney_slices / self.shape[0]


def case_facts(
    ct: np.ndarray,
    labels: np.ndarray,
    spacing_mm: tuple[float, float, float],
    *,
    is_hu: bool = True,
    oddities: Sequence[str] = (),
) -> CaseFacts:
    """Look at one case.

    Parameters
    ----------
    ct, labels
        Axial arrays of shape (slices, rows, columns): intensities, and 0 background, 1 kidney,
        2 tumour.
    spacing_mm
        Distance between slices, rows and columns.
    is_hu
        Whether the intensities are Hounsfield units; of others no phase is guessed.
    oddities
        Sentences to add to those that are found here.

    Raises
    ------
    ValueError
        The arrays differ in shape.
    """
    if ct.shape != labels.shape:
        raise ValueError(f"The CT has shape {ct.shape}, its labels {labels.shape}.")
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    box = bounding_box(labels != 0)
    seen = None if box is None else brightness(ct, labels, spacing_mm)
    slices, rows, columns = ct.shape
    inside = labels if box is None else labels[box]
    return CaseFacts(
        shape=(slices, rows, columns),
        spacing_mm=spacing_mm,
        kidney_slices=0 if box is None else int((inside != 0).any(axis=(1, 2)).sum()),
        kidney_ml=int(np.count_nonzero(inside)) * voxel_ml,
        tumour_ml=int(np.count_nonzero(inside == TUMOUR)) * voxel_ml,
        brightness=seen,
        phase=guess_phase(seen if is_hu else None),
        oddities=(*oddities, *_oddities(ct.shape, box, seen if is_hu else None)),
    )


def _oddities(
    shape: tuple[int, ...], box: tuple[slice, slice, slice] | None, seen: Brightness | None
) -> list[str]:
    found = []
    if seen is not None and not 0 <= seen.kidney.median <= 350:
        found.append(
            f"has kidneys of {seen.kidney.median:.0f} HU, as no kidney has: do the labels lie "
            "where the kidneys are, and are the values HU?"
        )
    if seen is not None and seen.around is not None and seen.around.median > seen.kidney.median:
        found.append(
            f"has kidneys darker ({seen.kidney.median:.0f} HU) than what is around them "
            f"({seen.around.median:.0f} HU): do the labels lie where the kidneys are?"
        )
    if box is not None and shape[0] > 1:
        ends = [
            end
            for end, touched in (("first", box[0].start == 0), ("last", box[0].stop == shape[0]))
            if touched
        ]
        if ends:
            found.append(
                f"has kidney in its {' and '.join(ends)} slice, so that its volume is incomplete."
            )
    return found


def brightness(
    ct: np.ndarray, labels: np.ndarray, spacing_mm: tuple[float, float, float]
) -> Brightness | None:
    """Intensities of the kidneys and of what is around them.

    Parameters are those of `case_facts`.

    Returns
    -------
    None where there is next to no label 1.
    """
    box = bounding_box(labels != 0)
    if box is None:
        return None
    reach_mm = max(AROUND_MM[1], _CLOSING_MM) + 1
    parts, steps = [], []
    for axis, (part, mm) in enumerate(zip(box, spacing_mm, strict=True)):
        room = 0 if axis == 0 else round(reach_mm / mm)
        step = 1 if axis == 0 else max(1, round(_PIXEL_MM / mm))
        parts.append(slice(max(0, part.start - room), part.stop + room, step))
        steps.append(step)
    near = labels[tuple(parts)]
    values = ct[tuple(parts)].astype(np.float32)
    pixel_mm = tuple(mm * step for mm, step in zip(spacing_mm, steps, strict=True))
    outside_mm = _distance_mm(near != 0, pixel_mm)

    kidney = near == KIDNEY
    inner = kidney & (outside_mm <= -EDGE_MM)
    if np.count_nonzero(inner) < _FEWEST_VOXELS:
        inner = kidney
    if np.count_nonzero(inner) < _FEWEST_VOXELS:
        return None
    around = (outside_mm >= AROUND_MM[0]) & (outside_mm <= AROUND_MM[1])
    # Closing across the hilum: grown by some mm and shrunk by as much.
    closed = _distance_mm(outside_mm <= _CLOSING_MM, pixel_mm) <= -_CLOSING_MM
    spread = _spread(values[inner])
    assert spread is not None
    means = _means(values)
    urine = (means > _urine_hu(spread)) & ((near != 0) | closed)
    return Brightness(
        kidney=spread,
        around=_spread(values[around]),
        unevenness=_unevenness(means[inner]),
        tumour=_spread(values[near == TUMOUR]),
        urine_ml=int(np.count_nonzero(urine)) * float(np.prod(pixel_mm)) / 1000,
        brightest=float(ct.max()),
    )


def _urine_hu(kidney: Spread) -> float:
    return max(URINE_HU, URINE_FACTOR * kidney.median)


def _distance_mm(mask: np.ndarray, spacing_mm: tuple[float, ...]) -> np.ndarray:
    """Distance of each voxel from the surface of a mask in its own slice: negative inside.

    In the slice, for slices may be thicker than a cortex.
    """
    distance = np.full(mask.shape, np.inf, np.float32)
    for k, plane in enumerate(mask):
        if plane.any():
            distance[k] = signed_distances_mm(plane, spacing_mm[1:])
    return distance


def _spread(values: np.ndarray) -> Spread | None:
    if values.size < _FEWEST_VOXELS:
        return None
    return Spread(*(float(value) for value in np.percentile(values, (25, 50, 75))))


def _means(values: np.ndarray) -> np.ndarray:
    """Each pixel's mean with its eight neighbours in the slice, against the noise."""
    means: np.ndarray = sitk.GetArrayFromImage(
        sitk.BoxMean(sitk.GetImageFromArray(values), (1, 1, 0))
    )
    return means


def _unevenness(means: np.ndarray) -> float | None:
    parenchyma = means[means > _PARENCHYMA_HU]
    if parenchyma.size < _FEWEST_VOXELS:
        return None
    low, median, high = np.percentile(parenchyma, (10, 50, 90))
    return float((high - low) / median)


def guess_phase(seen: Brightness | None) -> Phase:
    """Guess the contrast phase by four rules, of which the first that applies counts.

    1. The kidneys' median lies below 65 HU: unenhanced (parenchyma has 30 to 50 HU without
       contrast medium).
    2. More than 0.3 ml in the kidneys or their hilum exceed 300 HU and 1.6 times the kidneys'
       median: urine with contrast medium, excretory-like.
    3. `Brightness.unevenness` exceeds 0.33: bright cortex beside dark medulla, corticomedullary.
    4. Otherwise: nephrographic.

    A figure within 15 HU, 0.2 ml and 0.07 of the limit of a rule that was asked leaves the guess
    uncertain; so does a CT with no voxel brighter than rule 2 asks for, as where values were
    clipped. Noise adds to unevenness, and so do many small cysts. What marks the phases: Yuh and
    Cohan, AJR 173 (1999) 747; the limits are this project's.
    """
    if seen is None:
        return Phase(UNKNOWN, True, "no kidney, or no HU")
    median = seen.kidney.median
    limit, margin = UNENHANCED_HU
    sure = abs(median - limit) > margin
    if median < limit:
        return Phase(UNENHANCED, sure, f"kidneys of {median:.0f} HU")
    why = f"kidneys of {median:.0f} HU"
    limit, margin = URINE_ML
    sure = sure and abs(seen.urine_ml - limit) > margin
    if seen.urine_ml > limit:
        return Phase(EXCRETORY, sure, f"{why}, {seen.urine_ml:.1f} ml above {seen.urine_hu:.0f} HU")
    if seen.brightest <= seen.urine_hu:
        sure = False
        why += f", nothing kept above {seen.brightest:.0f} HU"
    if seen.unevenness is None:
        return Phase(UNKNOWN, True, f"{why}, too small to tell cortex from medulla")
    limit, margin = UNEVENNESS
    sure = sure and abs(seen.unevenness - limit) > margin
    name = CORTICOMEDULLARY if seen.unevenness > limit else NEPHROGRAPHIC
    return Phase(name, sure, f"{why}, uneven by {seen.unevenness:.2f}")
