"""How far a found kidney can be believed, from the network's own probabilities.

The figure is the Dice that the network itself expects between what was found and the truth: with
p the probability of each voxel and M the kidney that was found, ``2 * sum_M p / (|M| + sum p)``,
the second sum over the surroundings of M. It is 1 where every voxel is certain, and falls with
doubtful borders, missed parts that were half believed, and regions that were hardly so.
"""

from __future__ import annotations

import numpy as np

from KidneySegLib.geometry import bounding_box

_AROUND_MM = 10.0


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
