"""Where to look closely: boxes around what a coarse network takes for kidney.

The finder of a model sees the whole CT in few, large pixels; the model's own network then sees
these boxes alone, in small ones. A box only has to hold the kidney: it is laid with a margin, and a
wrong one costs time but no truth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import cc3d
import numpy as np

from KidneySegLib.preprocess import WorkingGrid

Box = tuple[slice, slice, slice]

# A kidney fills this length of the body; a scan that covers less shows less of it.
_KIDNEY_LENGTH_MM = 100.0


@dataclass(frozen=True)
class Search:
    """How boxes are laid; stored as ``search`` in a model's ``model.json``.

    Attributes:
        threshold: the finder's probability from which on a pixel may be kidney.
        least_ml: smaller components are passed over, in proportion where a scan covers less than
            the length of a kidney.
        margin_mm: of a box on every side of its component.
        most: at most so many components, the largest.
        wide: the network also sees the whole slices that a box lies in, and the mean of both
            answers counts within the box. A box cut short of the liver or the spine is sometimes
            misread, and so is a whole slice, but seldom in the same place.
        blend: share of the finder's own answer in the mean with that of the network.
    """

    threshold: float = 0.3
    least_ml: float = 3.0
    margin_mm: float = 25.0
    most: int = 6
    wide: bool = False
    blend: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold must lie between 0 and 1, not {self.threshold!r}")
        if not isinstance(self.wide, bool):
            raise ValueError(f"wide must be true or false, not {self.wide!r}")
        if not 0 <= self.blend < 1:
            raise ValueError(f"blend must be at least 0 and below 1, not {self.blend!r}")
        for name in ("least_ml", "margin_mm"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be 0 or more, not {value!r}")
        if not isinstance(self.most, int) or isinstance(self.most, bool) or self.most < 1:
            raise ValueError(f"most must be a whole number from 1 on, not {self.most!r}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Search:
        """Read the entry of a model; raises ValueError naming what is not known."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"unknown entry {', '.join(unknown)} of search")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def find_regions(probability: np.ndarray, grid: WorkingGrid, search: Search) -> list[Box]:
    """Boxes of an axial volume in which there may be kidneys, from the largest find down.

    Boxes that overlap become one.

    Args:
        probability: the finder's answer, (slices, rows, columns) of its cropped working grid.

    Returns:
        (slices, rows, columns) of each box in the axial volume that the grid was made from.
    """
    components = cc3d.connected_components(probability >= search.threshold, connectivity=26)
    statistics = cc3d.statistics(components, no_slice_conversion=False)
    ml = statistics["voxel_counts"].astype(float) * (math.prod(grid.spacing_mm) / 1000)
    ml[0] = 0.0
    covered = min(1.0, grid.slices * grid.spacing_mm[0] / _KIDNEY_LENGTH_MM)
    found = [int(n) for n in np.argsort(ml)[::-1][: search.most] if n > 0]
    boxes = [
        _in_full(statistics["bounding_boxes"][number], grid, search.margin_mm)
        for number in found
        if ml[number] >= search.least_ml * covered
    ]
    return merged(boxes)


def slabs(boxes: list[Box], shape: tuple[int, ...]) -> list[Box]:
    """The whole slices that boxes lie in, those of boxes at the same height as one."""
    return merged([(box[0], slice(0, shape[1]), slice(0, shape[2])) for box in boxes])


def sweeps(boxes: list[Box], shape: tuple[int, ...], axis: int) -> list[Box]:
    """Where slices across an axis are looked at: whole ones of the slabs, as far as boxes reach.

    Across the first axis these are the slabs themselves.
    """
    found = []
    for slab in slabs(boxes, shape):
        spans = [
            (slice(0, 1), slice(0, 1), box[axis]) for box in boxes if _overlap(box, slab)
        ]  # as boxes, to be joined like these
        for *_, span in merged(spans):
            first, second, third = (
                span if axis == number else part for number, part in enumerate(slab)
            )
            found.append((first, second, third))
    return found


def _in_full(box: Box, grid: WorkingGrid, margin_mm: float) -> Box:
    """A box of the working grid, with a margin, as one of the axial volume."""
    corners = (0, grid.box[0], grid.box[2])
    whole = (grid.slices, *grid.shape)
    scales = (
        float(grid.group),
        grid.full_shape[1] / grid.shape[0],
        grid.full_shape[2] / grid.shape[1],
    )
    spans = []
    for axis in range(3):
        aside = margin_mm / grid.spacing_mm[axis]
        first = max(0.0, box[axis].start + corners[axis] - aside)
        last = min(float(whole[axis]), box[axis].stop + corners[axis] + aside)
        stop = min(grid.full_shape[axis], math.ceil(last * scales[axis]))
        spans.append(slice(math.floor(first * scales[axis]), stop))
    return spans[0], spans[1], spans[2]


def merged(boxes: list[Box]) -> list[Box]:
    """The same with every two that overlap joined, until none do."""
    done: list[Box] = []
    for box in boxes:
        overlapping = [other for other in done if _overlap(box, other)]
        while overlapping:
            box = _joined([box, *overlapping])
            done = [other for other in done if other not in overlapping]
            overlapping = [other for other in done if _overlap(box, other)]
        done.append(box)
    return done


def _overlap(one: Box, other: Box) -> bool:
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(one, other, strict=True))


def _joined(boxes: list[Box]) -> Box:
    first, second, third = (
        slice(min(part.start for part in parts), max(part.stop for part in parts))
        for parts in zip(*boxes, strict=True)
    )
    return first, second, third
