"""Two kidneys that lie like the halves of a horseshoe kidney, whose bridge was missed.

Kidneys lie along the psoas muscles, which part towards the feet, and so do their lower poles. The
halves of a horseshoe kidney are held together there and come closer instead. Its bridge is thin and
lies in front of the spine, where a network expects no kidney.
"""

from __future__ import annotations

import numpy as np

from KidneySegLib.geometry import LEFT, RIGHT, AxialGrid

# A kidney's slant is how much further out its inner edge lies in its lower third than in its upper
# one, as a share of its length. In none of 17 patients and 20 generated ones do both kidneys slant
# inwards; of eight generated horseshoe kidneys without their bridge all do, by 0.13 to 0.30
# together.
_LEAST_SLANT = 0.1
_EDGE_PERCENT = 3.0
# Points this far apart tell as much as every voxel.
_POINTS_MM = 2.0

Box = tuple[slice, slice, slice]


def slant_inwards(labels: np.ndarray, box: Box, grid: AxialGrid) -> bool:
    """Whether the two kidneys come closer to each other downwards.

    Args:
        labels: axial array with `LEFT` and `RIGHT`, both of which are there.
        box: one that holds them.
    """
    left = _inner_edge_shift(labels, box, grid, LEFT)
    right = -_inner_edge_shift(labels, box, grid, RIGHT)
    return max(left, right) < 0 and left + right <= -_LEAST_SLANT


def _inner_edge_shift(labels: np.ndarray, box: Box, grid: AxialGrid, side: int) -> float:
    """How far the inner edge moves to the patient's left downwards, as a share of the length."""
    steps = [max(1, int(_POINTS_MM / mm)) for mm in grid.spacing_mm]
    thin = tuple(slice(p.start, p.stop, step) for p, step in zip(box, steps, strict=True))
    index = np.argwhere(labels[thin] == side)
    if not len(index):  # too small to be met
        return 0.0
    index = index * steps + [part.start for part in box]
    x, _, z = grid.to_physical(index).T
    low, high = float(z.min()), float(z.max())
    third = (high - low) / 3
    if third == 0:
        return 0.0
    inner = _EDGE_PERCENT if side == LEFT else 100 - _EDGE_PERCENT
    below, above = (
        float(np.percentile(x[part], inner)) for part in (z < low + third, z > high - third)
    )
    return (below - above) / (high - low)
