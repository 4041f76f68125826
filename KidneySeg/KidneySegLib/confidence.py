"""How far a found kidney can be believed, from the network's own probabilities.

The figure is the Dice that the network itself expects between what was found and the truth: with
p the probability of each voxel and M the kidney that was found, ``2 * sum_M p / (|M| + sum p)``,
the second sum over the surroundings of M. It is 1 where every voxel is certain, and falls with
doubtful borders, missed parts that were half believed, and regions that were hardly so.

Part of a kidney may be hardly believed where the rest is sure: `doubtful_lumps` finds it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import cc3d
import numpy as np

from KidneySegLib.geometry import bounding_box, signed_distances_mm

# 18-connected: 6-connected components cut expert masks at oblique thin rims into dozens of
# specks; 26-connected ones add nothing but leaks through corners to whatever touches the kidney.
CONNECTIVITY: Final = 18

_AROUND_MM = 10.0
# Bowel or liver that hangs on a kidney is seen by one view alone, and so the mean of all hardly
# reaches the threshold. Where half of a kidney has 0.9 and more, and 3 ml lie further than 10 mm
# from what is sure, five such lumps of held-out and generated kidneys had a mean of 0.49 to 0.55,
# and two real parts of kidneys 0.61 and 0.71. Where half has less, real parts of a dark kidney look
# alike. No part of a tumour did, neither in 64 single slices of patients with tumours nor in
# generated CTs with one.
_SURE = 0.75
_SURE_KIDNEY = 0.9
_LUMP_MM = 10.0
_LUMP_ML = 3.0
_LUMP_BELIEF = 0.58
# They are looked for in points this far apart, and drawn in every voxel only where there are some.
_POINTS_MM = 2.0


def confidence(
    probability: np.ndarray,
    kidney: np.ndarray,
    spacing_mm: tuple[float, float, float],
    corner: tuple[int, int, int] = (0, 0, 0),
) -> float | None:
    """The expected Dice of one kidney, 0 to 1; None where there is none.

    Args:
        probability: (slices, rows, columns), uint8 with 0..255 for 0..1, floating point or bool.
        kidney: bool array that holds all of the kidney, of the same shape or smaller.
        corner: where its first voxel lies in the probabilities.
    """
    own = bounding_box(kidney)
    if own is None:
        return None
    found = kidney[own]
    box = [slice(part.start + at, part.stop + at) for part, at in zip(own, corner, strict=True)]
    first, second, third = (
        slice(max(0, part.start - round(_AROUND_MM / mm)), part.stop + round(_AROUND_MM / mm))
        for part, mm in zip(box, spacing_mm, strict=True)
    )
    whole, kind = (255, np.int64) if probability.dtype == np.uint8 else (1, np.float64)
    believed = float(probability[first, second, third].sum(dtype=kind)) / whole
    inside = float(probability[tuple(box)].sum(dtype=kind, where=found)) / whole
    return 2 * inside / (float(np.count_nonzero(found)) + believed)


def doubtful_lumps(
    probability: np.ndarray, kidney: np.ndarray, spacing_mm: tuple[float, float, float]
) -> np.ndarray | None:
    """What hangs on an otherwise sure kidney and is hardly believed in; None where nothing does.

    What joins two sure parts of a kidney, as a tumour in its middle does, hangs on neither.

    Args:
        probability: (slices, rows, columns), uint8 with 0..255 for 0..1, floating point or bool.
        kidney: bool array of the same shape that holds all of the kidney.

    Returns:
        bool array of the same shape, a part of the kidney of 3 ml or more.
    """
    whole = 255 if probability.dtype == np.uint8 else 1
    sure = kidney & (probability >= _SURE * whole)
    unsure = int(np.count_nonzero(kidney & ~sure))
    if not _is_lump(unsure, spacing_mm):
        return None
    if np.median(probability[kidney]) < _SURE_KIDNEY * whole:
        return None
    steps = [max(1, round(_POINTS_MM / mm)) for mm in spacing_mm]
    thin = tuple(slice(None, None, step) for step in steps)
    apart_mm = [mm * step for mm, step in zip(spacing_mm, steps, strict=True)]
    if not _is_lump(int(np.count_nonzero(_far(sure[thin], kidney[thin], apart_mm))), apart_mm):
        return None
    found = np.zeros_like(kidney)
    whole_pieces = _pieces(kidney)
    lumps = _pieces(_far(sure, kidney, spacing_mm))
    for number, size in enumerate(_sizes(lumps)):
        if number == 0 or not _is_lump(size, spacing_mm):
            continue
        lump = lumps == number
        if float(probability[lump].mean()) >= _LUMP_BELIEF * whole:
            continue
        # What it holds together is a kidney and crumbs, or two sure parts of one.
        rest = _pieces((whole_pieces == whole_pieces[lump][0]) & ~lump)
        large = np.array([_is_lump(size, spacing_mm) for size in _sizes(np.where(sure, rest, 0))])
        crumbs = np.setdiff1d(rest, [0, *(np.flatnonzero(large[1:]) + 1)])
        if np.count_nonzero(large[1:]) == 1:
            found |= lump | np.isin(rest, crumbs)
    return found if found.any() else None


def _pieces(mask: np.ndarray) -> np.ndarray:
    pieces: np.ndarray = cc3d.connected_components(mask, connectivity=CONNECTIVITY)
    return pieces


def _sizes(pieces: np.ndarray) -> list[int]:
    """Voxels of each piece, of the background first."""
    sizes: list[int] = np.bincount(pieces.ravel()).tolist()
    return sizes


def _is_lump(voxels: int, spacing_mm: Sequence[float]) -> bool:
    return voxels * math.prod(spacing_mm) / 1000 >= _LUMP_ML


def _far(sure: np.ndarray, kidney: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """The voxels of a kidney that lie far from all that is sure."""
    return kidney & (signed_distances_mm(sure, spacing_mm) > _LUMP_MM)
