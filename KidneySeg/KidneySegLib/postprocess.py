"""From probabilities to kidneys: components, size and place, holes, left and right.

Left and right are the patient's and follow from physical position: a voxel is on the left when
its x coordinate (LPS, growing to the patient's left) exceeds that of the body's midline at its
height. The order in which a file stores its axes plays no part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cc3d
import numpy as np

from KidneySegLib.confidence import CONNECTIVITY, confidence, doubtful_lumps
from KidneySegLib.geometry import LEFT, RIGHT, SIDE_NAMES, AxialGrid, bounding_box
from KidneySegLib.horseshoe import slant_inwards
from KidneySegLib.midline import Midline, find_midline, is_left

_SPLIT = 3  # a horseshoe kidney, whose voxels are left or right by their own place

NOTE_NONE = "no kidney found"
NOTE_HORSESHOE = (
    "horseshoe kidney: one component across the midline; left and right volumes are its parts on "
    "each side of the midline"
)
NOTE_SIDE = (
    "the picture shows only a part of the body's width: the side of the kidney was told by how it "
    "leans and where flank and spine are; check it"
)
NOTE_SLANT = (
    "both kidneys slant towards each other downwards, as the halves of a horseshoe kidney do; look "
    "for a bridge between them that was missed"
)

# A small adult kidney, scarred or end-stage, still has 30 to 60 ml; the smallest of the 17 training
# volumes has 48 ml. False detections in bowel, spleen, liver or vessels reach 20 ml and more, and
# would become a second kidney where a patient has one. What is left out but half as large as that
# is named in a note, since it may be the kidney of a small child.
MINIMUM_ML = 30.0
# An adult kidney is about 100 mm long. A scan that covers less can only show part of it, and so
# the minimum shrinks in proportion; a component that an end of the scan cuts may be a pole.
_KIDNEY_LENGTH_MM = 100.0
_CUT_FRACTION = 1 / 3
# Where a patient has one kidney, a network half believes in another and finds a lump of some size.
# A component less than twice as large as it needs to be is none below this confidence. Such a lump
# had 0.52, and the found part of a real kidney, in an imitated plain CT, 0.64.
_SURE_SIZE = 2.0
_LEAST_CONFIDENCE = 0.6
# A further component is part of the same kidney where a network missed what joins them: it is
# nearly as large, and either a missed slice or rim of a tumour away, or further along the kidney's
# own axis. In cross-validation on 12 patients, of 26 smaller components all but three specks of
# 1 to 2 ml were bowel, spleen or vessels, the largest a third of its kidney and 6 mm away.
_PART_ML = 1.0
_PART_SHARE = 0.4
_PART_GAP_MM = 10.0
_PART_GAP_SLICES = 2.5
_INTERRUPTED_GAP_MM = 40.0
_INTERRUPTED_ASIDE_MM = 25.0
# Distances between components are measured between points this far apart.
_POINTS_MM = 3.0
# A horseshoe kidney has at least this share of its volume on either side, and within 20 mm of the
# midline an isthmus: a sagittal section smaller than this share of the largest on either side.
_HORSESHOE_SHARE = 0.2
_ISTHMUS_SHARE = 0.6
_ISTHMUS_MM = 20.0
_SECTION_MM = 5.0
# Unless a separate component this large, compared with the part that crosses, is there too.
_RIVAL_SHARE = 0.5
# Holes in a slice are filled up to this area. Expert contours leave the renal sinus open, and
# where parenchyma surrounds it in a slice it is mostly 50 mm2 or more.
_SLICE_HOLE_MM2 = 25.0

# Two lumps on one side of the body are never as far apart along x as this.
_PAIR_DISTANCE_MM = 80.0


@dataclass(frozen=True)
class Kidneys:
    """What was found.

    Attributes
    ----------
    labels
        uint8 axial array of shape (slices, rows, columns): 0 background, 1 left kidney, 2 right.
    box
        Of that array, one that holds every label; empty where there is none.
    notes
        Sentences for the report, such as "one kidney found (left)".
    horseshoe
        Whether one component across the midline was found, whose halves carry the labels.
    """

    labels: np.ndarray
    box: tuple[slice, slice, slice]
    notes: tuple[str, ...]
    horseshoe: bool


@dataclass(frozen=True)
class Candidate:
    """A component that is large enough for a kidney, for whoever takes a second look at it.

    Attributes
    ----------
    box
        The smallest one that holds it, in the axial array.
    mask
        bool array of the box's shape.
    ml
        Its volume.
    """

    box: tuple[slice, slice, slice]
    mask: np.ndarray
    ml: float


def find_kidneys(
    probability: np.ndarray,
    grid: AxialGrid,
    ct: np.ndarray | None = None,
    *,
    threshold: float = 0.5,
    minimum_ml: float = MINIMUM_ML,
    keep_small: bool = False,
    believe: Callable[[Candidate], float] | None = None,
    least_belief: float = 0.5,
) -> Kidneys:
    """Find the kidneys in the probabilities that a network gave.

    On each side of the midline the largest component is the kidney if it is large enough, and
    further components close to it are parts of it; the rest is dropped. Cavities are filled, and
    small holes within a slice; lumps on a sure kidney that are hardly believed in are dropped.

    Parameters
    ----------
    probability
        Axial array of shape (slices, rows, columns): uint8 with 0..255 for 0..1, floating point
        0..1, or a bool mask.
    grid
        Where the array lies in the patient.
    ct
        Axial array of the same shape in HU, from which the body's midline is found. Without it
        the midline is halfway between the two largest components where they can be a pair of
        kidneys, else the middle of the image.
    threshold
        Least probability that counts as kidney.
    minimum_ml
        Least volume of a kidney in a scan that shows it whole; a third of it is enough where an
        end of the scan cuts it, and in scans of less than 100 mm it shrinks in proportion. One of
        less than twice as much must also have a `confidence` of 0.6.
    keep_small
        Keep every component of whatever size and place, and only tell left from right.
    believe
        A second look: how likely a component that is large enough is a kidney, 0..1. Those below
        `least_belief` are dropped, with a note. A horseshoe kidney stays whatever is believed of
        it: there are too few to learn from.

    Raises
    ------
    ValueError
        The shapes of the arrays and of the grid differ.
    """
    for name, array in (("probability", probability), ("ct", ct)):
        if array is not None and array.shape != grid.shape:
            raise ValueError(f"{name} has shape {array.shape}, the grid {grid.shape}.")

    labels = np.zeros(grid.shape, np.uint8)
    box = _foreground_box(probability, threshold)
    if box is None:
        return Kidneys(labels, (slice(0, 0),) * 3, (NOTE_NONE,), False)

    mask = np.ascontiguousarray(_foreground(probability[box], threshold))
    components = cc3d.connected_components(mask, connectivity=CONNECTIVITY)
    del mask
    pieces = _Pieces(components, box, grid)
    if not keep_small:
        pieces.find_unsure(probability, minimum_ml)
        if believe is not None:
            pieces.look_again(believe, least_belief, minimum_ml)
    midline = None if ct is None else find_midline(ct, grid, box[0])
    midline = pieces.settled(midline, minimum_ml, ct)
    pieces.split(midline)

    left_out: list[str] = []
    horseshoe = _horseshoe(pieces, minimum_ml)
    if keep_small:
        owners = pieces.side
    else:
        owners, left_out = _choose(pieces, minimum_ml, horseshoe)

    if horseshoe:
        owners[horseshoe] = _SPLIT
    for side in (_SPLIT, LEFT, RIGHT):
        ids = np.flatnonzero(owners == side)
        if not ids.size:
            continue
        where = pieces.box_of(ids)
        chosen = np.zeros(len(owners), bool)
        chosen[ids] = True
        here = chosen[components[where]]
        if side != _SPLIT and not keep_small:
            lumps = doubtful_lumps(probability[box][where], here, grid.spacing_mm)
            if lumps is not None:
                here &= ~lumps
                ml = np.count_nonzero(lumps) * grid.voxel_volume_ml
                left_out.append(
                    f"a doubtful region of {ml:.0f} ml joined to the {SIDE_NAMES[side]} kidney was "
                    "left out"
                )
        filled = fill_holes(here, grid.spacing_mm)
        target = labels[box][where]  # a view: what is written here is written into `labels`
        filled &= target == 0
        target[filled] = (
            midline.sides_of_box(grid, where, pieces.first)[filled] if side == _SPLIT else side
        )

    # All labels lie in the box: nothing is filled that no label encloses.
    if not midline.seen and labels[box].any():
        left_out.insert(0, NOTE_SIDE)
    notes = (*_notes_on(labels, box, grid, bool(horseshoe)), *left_out)
    return Kidneys(labels, box, notes, bool(horseshoe))


def _foreground_box(probability: np.ndarray, threshold: float) -> tuple[slice, slice, slice] | None:
    """`bounding_box` of the foreground, found slice by slice: no mask of the whole volume."""
    slices = []
    seen = np.zeros(probability.shape[1:], bool)
    for k, plane in enumerate(probability):
        mask = _foreground(plane, threshold)
        if mask.any():
            slices.append(k)
            seen |= mask
    if not slices:
        return None
    box = bounding_box(seen[np.newaxis])
    assert box is not None
    return slice(slices[0], slices[-1] + 1), box[1], box[2]


def _foreground(probability: np.ndarray, threshold: float) -> np.ndarray:
    """Where the probability reaches the threshold, as a bool array."""
    if probability.dtype == np.bool_:
        return probability
    if probability.dtype == np.uint8:
        # Kept in eight bits: the comparison must not make a floating-point copy of the volume.
        return probability >= np.uint8(max(1, min(255, int(np.ceil(threshold * 255)))))
    return probability >= threshold


# --- components -------------------------------------------------------------------------------


class _Pieces:
    """The connected components inside the box of the foreground, by number (0 is background)."""

    def __init__(
        self, components: np.ndarray, box: tuple[slice, slice, slice], grid: AxialGrid
    ) -> None:
        self.components = components
        self.grid = grid
        self.first = tuple(part.start for part in box)
        statistics = cc3d.statistics(components, no_slice_conversion=False)
        self.ml = statistics["voxel_counts"].astype(float) * grid.voxel_volume_ml
        self.ml[0] = 0.0
        self.boxes = statistics["bounding_boxes"]
        self.centres_mm = grid.to_physical(
            np.nan_to_num(np.asarray(statistics["centroids"], float)) + np.array(self.first)
        )
        last = grid.shape[0] - 1
        self.cut = np.array(
            [
                # A box that the foreground fills leaves the background none of its own.
                b is not None
                and (b[0].start + self.first[0] == 0 or b[0].stop - 1 + self.first[0] == last)
                for b in self.boxes
            ]
        )
        self.left_ml = np.zeros_like(self.ml)
        self.side = np.zeros(len(self.ml), np.uint8)
        self.unsure = np.zeros(len(self.ml), bool)
        self.belief = np.ones(len(self.ml))
        self.doubted = np.zeros(len(self.ml), bool)

    def find_unsure(self, probability: np.ndarray, minimum_ml: float) -> None:
        """Find those just large enough for a kidney that the network itself hardly believes in."""
        just = self.large(minimum_ml) & (self.ml < _SURE_SIZE * self.needed(minimum_ml))
        for number in np.flatnonzero(just):
            box = self.box_of(np.array([number]))
            first, second, third = (
                part.start + corner for part, corner in zip(box, self.first, strict=True)
            )
            mask = self.components[box] == number
            belief = confidence(probability, mask, self.grid.spacing_mm, (first, second, third))
            self.unsure[number] = belief is not None and belief < _LEAST_CONFIDENCE

    def look_again(
        self, believe: Callable[[Candidate], float], least_belief: float, minimum_ml: float
    ) -> None:
        """Have a second look taken at every component that is large enough for a kidney."""
        for number in np.flatnonzero(self.large(minimum_ml)):
            box = self.box_of(np.array([number]))
            mask = self.components[box] == number
            first, second, third = (
                slice(part.start + corner, part.stop + corner)
                for part, corner in zip(box, self.first, strict=True)
            )
            found = Candidate((first, second, third), mask, float(self.ml[number]))
            self.belief[number] = believe(found)
        self.doubted = self.belief < least_belief

    def settled(self, midline: Midline | None, minimum_ml: float, ct: np.ndarray | None) -> Midline:
        """The midline in the light of the two largest components, where they may be kidneys.

        A pair of kidneys has its middle between them. Without a midline from the CT that is the
        best there is, short of the middle of the image; with one, it overrules what puts two
        kidneys far apart on the same side (a picture that shows half of the body). Where the CT
        shows no midline, a single kidney itself tells its side.
        """
        settled = midline or Midline(
            float(self.grid.to_physical((np.array(self.grid.shape) - 1) / 2)[0])
        )
        large = self.large(minimum_ml)
        order = [int(n) for n in np.argsort(self.ml)[::-1] if not self.doubted[n]]
        pair = [n for n in order[:2] if large[n]]
        if len(pair) == 2:
            low, high = sorted(settled.to_the_left_mm(self.centres_mm[pair]).tolist())
            across, apart = low < 0 < high, high - low >= _PAIR_DISTANCE_MM
            if (across and midline is None) or (apart and not (across and settled.seen)):
                return replace(settled, x_mm=settled.x_mm + (low + high) / 2, seen=True)
        if pair and ct is not None and not settled.seen:
            return self._beside(pair[0], ct)
        return replace(settled, seen=True)

    def _beside(self, number: int, ct: np.ndarray) -> Midline:
        """A midline on that side of a kidney on which the body's must be."""
        box = self.boxes[number]
        index = np.argwhere(self.components[box] == number)
        index += [part.start + corner for part, corner in zip(box, self.first, strict=True)]
        x_mm = self.grid.to_physical(index)[:, 0]
        first = box[0].start + self.first[0]
        kidney = np.zeros((box[0].stop - box[0].start, *self.grid.shape[1:]), bool)
        kidney[tuple((index - [first, 0, 0]).T)] = True
        on_left = is_left(kidney, first, ct, self.grid)
        return Midline(float(x_mm.min() - 1 if on_left else x_mm.max() + 1), seen=False)

    def split(self, midline: Midline) -> None:
        """Find how much of each component is on the left, and on which side most of it is."""
        left = np.zeros(len(self.ml))
        for k, plane in enumerate(self.components):
            if plane.any():
                where = (slice(k, k + 1), slice(0, plane.shape[0]), slice(0, plane.shape[1]))
                on_left = midline.sides_of_box(self.grid, where, self.first)[0] == LEFT
                left += np.bincount(plane[on_left], minlength=len(left))
        self.left_ml = left * self.grid.voxel_volume_ml
        self.left_ml[0] = 0.0
        self.side = np.where(self.left_ml * 2 > self.ml, LEFT, RIGHT).astype(np.uint8)
        self.side[0] = 0
        self.midline = midline

    def needed(self, minimum_ml: float) -> np.ndarray:
        """The volume in ml from which on each component is believed to be a kidney."""
        return minimum_ml * np.where(self.cut, min(self.covered, _CUT_FRACTION), self.covered)

    def large(self, minimum_ml: float) -> np.ndarray:
        """Which components are large and sure enough for a kidney; the background is none."""
        large: np.ndarray = (self.ml >= self.needed(minimum_ml)) & ~self.unsure
        large[0] = False
        return large

    @property
    def covered(self) -> float:
        """How much of a kidney's length the scan covers, at most 1."""
        return min(1.0, self.grid.shape[0] * self.grid.spacing_mm[0] / _KIDNEY_LENGTH_MM)

    def reach_mm(self, main: int, number: int) -> float:
        """How far from a kidney a part of it may lie: further straight above or below it."""
        x, y, _ = self.centres_mm[number] - self.centres_mm[main]
        if np.hypot(x, y) <= _INTERRUPTED_ASIDE_MM:
            return _INTERRUPTED_GAP_MM
        return max(_PART_GAP_MM, _PART_GAP_SLICES * self.grid.spacing_mm[0])

    def box_of(self, numbers: np.ndarray) -> tuple[slice, slice, slice]:
        """The smallest box, counted from the corner `first`, that holds all these components."""
        boxes = [self.boxes[number] for number in numbers]
        first, second, third = (
            slice(min(b[axis].start for b in boxes), max(b[axis].stop for b in boxes))
            for axis in range(3)
        )
        return first, second, third

    def points_mm(self, number: int) -> np.ndarray:
        """Points about 3 mm apart all over a component, float32 (n, 3), along the axial axes."""
        box = self.boxes[number]
        here = self.components[box] == number
        steps = [max(1, int(_POINTS_MM / mm)) for mm in self.grid.spacing_mm]
        index = np.argwhere(here[:: steps[0], :: steps[1], :: steps[2]]) * steps
        if not index.size:  # too thin to be met
            index = np.argwhere(here)
        index += [part.start for part in box]
        points: np.ndarray = (index * np.array(self.grid.spacing_mm)).astype(np.float32)
        return points

    def is_horseshoe(self, number: int) -> bool:
        """Whether a component has a body on either side and an isthmus between them."""
        left, whole = self.left_ml[number], self.ml[number]
        if min(left, whole - left) < _HORSESHOE_SHARE * whole:
            return False
        # Sagittal sections from right to left, as thick as a whole number of columns: else some
        # would hold one column more than others.
        column_mm = self.grid.spacing_mm[2]
        thick_mm = column_mm * np.ceil(_SECTION_MM / column_mm)
        box = self.boxes[number]
        sections: dict[int, int] = {}
        for k in range(box[0].start, box[0].stop):
            where = (slice(k, k + 1), box[1], box[2])
            beside = self.midline.box_to_the_left_mm(self.grid, where, self.first)
            at = np.floor(beside[self.components[where] == number] / thick_mm)
            for place, count in zip(*np.unique(at, return_counts=True), strict=True):
                sections[int(place)] = sections.get(int(place), 0) + int(count)
        near = int(np.ceil(_ISTHMUS_MM / thick_mm))
        for waist in range(-near, near):
            right = [count for place, count in sections.items() if place < waist]
            left_of = [count for place, count in sections.items() if place > waist]
            if (
                right
                and left_of
                and sections.get(waist, 0) <= _ISTHMUS_SHARE * min(max(right), max(left_of))
            ):
                return True
        return False


def _horseshoe(pieces: _Pieces, minimum_ml: float) -> int:
    """The number of the horseshoe kidney, or 0."""
    large = pieces.large(minimum_ml)
    believed = large & ~pieces.doubted
    order = [int(n) for n in np.argsort(pieces.ml)[::-1] if n > 0]
    one = next((n for n in order if believed[n] or (large[n] and pieces.is_horseshoe(n))), 0)
    if not one:
        return 0
    parts = {LEFT: pieces.left_ml[one], RIGHT: pieces.ml[one] - pieces.left_ml[one]}
    # A separate component of the size of a kidney is the kidney of its side, and this one then
    # crosses because of a tumour.
    rivals = [
        n
        for n in order
        if n != one and believed[n] and pieces.ml[n] > _RIVAL_SHARE * parts[int(pieces.side[n])]
    ]
    return one if not rivals and pieces.is_horseshoe(one) else 0


def _choose(pieces: _Pieces, minimum_ml: float, horseshoe: int) -> tuple[np.ndarray, list[str]]:
    """Which components are kidneys.

    Returns the side that each component belongs to (0: dropped), and notes on what was left out.
    """
    owners = np.zeros(len(pieces.ml), np.uint8)
    believed = pieces.large(minimum_ml) & ~pieces.doubted
    noteworthy = pieces.ml >= pieces.needed(minimum_ml) / 2
    order = [int(n) for n in np.argsort(pieces.ml)[::-1] if n > 0]

    notes = []
    for side in (LEFT, RIGHT):
        mine = [n for n in order if pieces.side[n] == side and n != horseshoe]
        notes += [
            f"a region of {pieces.ml[n]:.0f} ml on the {SIDE_NAMES[side]} was left out: the second "
            f"look took it for something else (probability {pieces.belief[n]:.2f})"
            for n in mine
            if pieces.doubted[n]
        ]
        mine = [n for n in mine if not pieces.doubted[n]]
        main = horseshoe or next((n for n in mine if believed[n]), next(iter(mine), 0))
        if not main:
            continue
        if not believed[main] and main != horseshoe:
            if noteworthy[main]:
                why = "doubtful" if pieces.unsure[main] else "small"
                notes.append(
                    f"a region of {pieces.ml[main]:.0f} ml on the {SIDE_NAMES[side]} is too {why} "
                    "for a kidney and was left out"
                )
            continue
        owners[main] = pieces.side[main]
        body = pieces.points_mm(main)
        share = _PART_SHARE * pieces.covered
        least_ml = max(share * pieces.ml[main], min(_PART_ML, pieces.ml[main] / 10))
        for number in mine:
            part_of_it = pieces.ml[number] >= least_ml
            if number == main or not (part_of_it or noteworthy[number]):
                continue
            part = pieces.points_mm(number)
            gap = _gap_mm(part, body)
            if part_of_it and gap <= pieces.reach_mm(main, number):
                owners[number] = side
                body = np.concatenate([body, part])
            elif noteworthy[number]:
                notes.append(
                    f"a separate region of {pieces.ml[number]:.0f} ml on the "
                    f"{SIDE_NAMES[side]}, {gap:.0f} mm from the kidney, was left out"
                )
    return owners, notes


def _gap_mm(some: np.ndarray, others: np.ndarray) -> float:
    """The least distance between two sets of points, float32 (n, 3), in mm."""
    chunk = max(1, 4_000_000 // len(others))
    squares = (others**2).sum(axis=1)
    least = np.inf
    for start in range(0, len(some), chunk):
        part = some[start : start + chunk]
        distance = (part**2).sum(axis=1)[:, None] + squares - 2 * part @ others.T
        least = min(least, float(distance.min()))
    return float(np.sqrt(max(least, 0.0)))


# --- holes and notes --------------------------------------------------------------------------


def fill_holes(
    mask: np.ndarray,
    spacing_mm: tuple[float, float, float],
    slice_hole_mm2: float = _SLICE_HOLE_MM2,
) -> np.ndarray:
    """Fill cavities that are closed in 3-D, and holes within an axial slice up to a size.

    Parameters
    ----------
    mask
        bool axial array of shape (slices, rows, columns). Everything beyond it is outside.
    spacing_mm
        Distance between slices, rows and columns.
    slice_hole_mm2
        Largest hole in a slice that is filled though it is open to the next slice.

    Returns
    -------
    A new bool array of the same shape.
    """
    # Background is 6-connected where the kidney is 18-connected, or both could pass through the
    # same corner.
    outside = cc3d.connected_components(np.pad(~mask, 1, constant_values=True), connectivity=6)
    filled: np.ndarray = outside[1:-1, 1:-1, 1:-1] != outside[0, 0, 0]

    most = slice_hole_mm2 / (spacing_mm[1] * spacing_mm[2])
    for plane in filled:
        holes = cc3d.connected_components(np.pad(~plane, 1, constant_values=True), connectivity=4)
        counts = np.bincount(holes.ravel())
        small = counts <= most
        small[holes[0, 0]] = False
        small[0] = False
        if small.any():
            plane |= small[holes[1:-1, 1:-1]]
    return filled


def _notes_on(
    labels: np.ndarray, box: tuple[slice, slice, slice], grid: AxialGrid, horseshoe: bool
) -> list[str]:
    """What the report should say about the kidneys that are there, all of them in the box."""
    sides = [side for side in SIDE_NAMES if (labels[box] == side).any()]
    if not sides:
        return [NOTE_NONE]
    notes = []
    if horseshoe:
        notes.append(NOTE_HORSESHOE)
    elif len(sides) == 1:
        notes.append(f"one kidney found ({SIDE_NAMES[sides[0]]})")
    ends = labels[[0, -1]]
    cut = [side for side in sides if (ends == side).any()]
    edges = (labels[:, [0, -1]], labels[:, :, [0, -1]])
    beside = [
        side for side in sides if side not in cut and any((edge == side).any() for edge in edges)
    ]
    pair = len(sides) == 2 and not horseshoe and not cut and not beside
    if pair and slant_inwards(labels, box, grid):
        notes.append(NOTE_SLANT)
    notes += [
        f"{SIDE_NAMES[side]} kidney is cut off by the end of the scan; its volume is incomplete"
        for side in cut
    ]
    notes += [
        f"{SIDE_NAMES[side]} kidney is cut off by the edge of the picture; its volume is incomplete"
        for side in beside
    ]
    return notes
