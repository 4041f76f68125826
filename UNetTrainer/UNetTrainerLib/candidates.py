"""What a second look learns from: components that a model found, and many more that it might find.

A model makes few mistakes on the patients it was trained on. So candidates are drawn as well: true
kidneys moved, scaled, cut off and leaking into what touches them, and on the other side pieces that
grow along the borders of liver, spleen, muscle and bowel as false detections do, kidneys' shapes in
other places, and plain lumps. Whatever a candidate came from, what it is follows from how much of
it is kidney.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import cc3d
import numpy as np
from scipy import ndimage

from KidneySegLib.answer import answer
from KidneySegLib.backends.torchbackend import TorchBackend
from KidneySegLib.postprocess import MINIMUM_ML
from KidneySegLib.preprocess import plan, resample
from KidneySegLib.secondlook import Box, SecondLook, places_in, scaled, sections
from UNetTrainerLib.cases import Case
from UNetTrainerLib.loading import read_case

FOUND, NEARLY, TRUTH, DRAWN = "found", "nearly found", "truth", "drawn"

# A candidate is a kidney if at least half of it is kidney and it covers a tenth of one; it is none
# if less than a tenth of it is kidney, nor a tenth of one is covered. What lies between is neither
# and teaches nothing.
MOSTLY = 0.5
HARDLY = 0.1

# Beside its own threshold a model is asked for what it nearly takes for kidney.
LOW_THRESHOLDS = (0.3, 0.1)
LEAST_ML = 5.0  # of a candidate; also of a part of a mask, and less is a speck

# The least kidney in training masks tells how small one may be once there are as many as this.
LEAST_KIDNEYS = 10

_TISSUE_HU = (-30.0, 200.0)
_SEEDS = 4000
_NEAR_MM = 90.0  # around a kidney's middle, where false detections matter most
_TRIES = 8
_MOST_ML = 400.0
_MARGIN_MM = 25.0


class Piece(NamedTuple):
    """A component on the grid of a `Survey`: its box, and a bool mask of the box's shape."""

    box: Box
    mask: np.ndarray


@dataclass(frozen=True)
class Example:
    """A candidate as the network sees it.

    Attributes:
        pictures: uint8 (views, 3, pixels, pixels), 0..255 for 0..1: the CT, the candidate, and all
            that is kidney, which the network is not shown.
        kidney: what it is.
        kind: where it came from, one of `FOUND`, `NEARLY`, `TRUTH`, `DRAWN`.
        case: its name.
    """

    pictures: np.ndarray
    kidney: bool
    kind: str
    case: str


@dataclass(frozen=True)
class Survey:
    """A CT on the coarse grid that a second look is taken on.

    Attributes:
        hu, scaled: float32 (slices, rows, columns), the latter 0..1 as a second look sees it.
        truth: bool, what is kidney.
        found: uint8, the probability that a model gave, 0..255 for 0..1.
        spacing_mm: slice, row and column.
    """

    name: str
    hu: np.ndarray
    scaled: np.ndarray
    truth: np.ndarray
    found: np.ndarray
    spacing_mm: tuple[float, float, float]

    @property
    def voxel_ml(self) -> float:
        return float(np.prod(self.spacing_mm)) / 1000

    @cached_property
    def kidneys(self) -> list[Piece]:
        """The parts of the truth that are no specks."""
        return list(pieces_of(self.truth, LEAST_ML / self.voxel_ml))

    @cached_property
    def seeds(self) -> np.ndarray:
        """Voxels of soft tissue beside the kidneys, (n, 3), the same ones every time."""
        low, high = _TISSUE_HU
        tissue = (self.hu > low) & (self.hu < high) & ~self.truth
        index = np.argwhere(tissue)
        if len(index) > _SEEDS:
            index = index[np.random.default_rng(0).permutation(len(index))[:_SEEDS]]
        return index

    @cached_property
    def seeds_near(self) -> np.ndarray:
        """Those of the seeds around a kidney; all of them where there is none."""
        near = np.zeros(len(self.seeds), bool)
        for box, _ in self.kidneys:
            middle = [(part.start + part.stop - 1) / 2 for part in box]
            apart = (self.seeds - middle) * np.array(self.spacing_mm)
            near |= np.linalg.norm(apart, axis=1) < _NEAR_MM
        return self.seeds[near] if near.any() else self.seeds


def survey(case: Case, look: SecondLook, backend: TorchBackend) -> Survey:
    """Read a CT, have a model answer for it, and bring both onto the coarse grid.

    Raises:
        InputError: the case cannot be used.
    """
    voxels, labels, spacing_mm = read_case(case)
    volume = voxels[:, 0]
    slices, rows, columns = volume.shape
    grid = plan((slices, rows, columns), spacing_mm, look.preprocessing)
    found = resample(answer(volume, spacing_mm, backend), grid)
    hu = resample(volume, grid)
    return Survey(
        name=case.name,
        hu=hu,
        scaled=scaled(hu, look),
        truth=resample(labels > 0, grid) >= 0.5,
        found=np.rint(found).astype(np.uint8),
        spacing_mm=grid.spacing_mm,
    )


def pieces_of(mask: np.ndarray, least: float) -> Iterator[Piece]:
    """The connected components of a mask with at least so many voxels, the largest first."""
    components = cc3d.connected_components(mask, connectivity=18)
    statistics = cc3d.statistics(components, no_slice_conversion=False)
    counts = statistics["voxel_counts"].astype(int)
    counts[0] = 0
    for number in np.argsort(-counts, kind="stable"):
        if counts[number] < max(least, 1):
            return
        box = statistics["bounding_boxes"][number]
        yield Piece(box, components[box] == number)


def smallest_kidney_ml(
    masks: Iterable[tuple[np.ndarray, tuple[float, float, float]]],
) -> float | None:
    """The least volume of a kidney to be believed: half of the smallest whole one in the masks.

    Whole is what neither end of its scan cuts. It is never more than what is believed of a kidney
    anyway, since few patients with large kidneys say nothing of small ones.

    Args:
        masks: of whole volumes, axial (slices, rows, columns), each with its spacing in mm along
            these, in whatever order.

    Returns:
        None where there are fewer than ten kidneys to tell.
    """
    whole_ml = []
    for mask, spacing_mm in masks:
        voxel_ml = float(np.prod(spacing_mm)) / 1000
        for box, piece in pieces_of(np.asarray(mask), LEAST_ML / voxel_ml):
            if box[0].start > 0 and box[0].stop < len(mask):
                whole_ml.append(float(piece.sum()) * voxel_ml)
    if len(whole_ml) < LEAST_KIDNEYS:
        return None
    return round(min(min(whole_ml) / 2, MINIMUM_ML), 1)


def what_it_is(piece: Piece, seen: Survey) -> bool | None:
    """Whether a candidate is a kidney, by overlap; None where it is neither."""
    size = piece.mask.sum()
    inside = (piece.mask & seen.truth[piece.box]).sum() / size
    covers = max((_shared(piece, one) / one.mask.sum() for one in seen.kidneys), default=0.0)
    if inside >= MOSTLY and covers >= HARDLY:
        return True
    if inside < HARDLY and covers < HARDLY:
        return False
    return None


def _shared(one: Piece, other: Piece) -> int:
    """Voxels that two pieces have in common."""
    corners = [
        (max(a.start, b.start), min(a.stop, b.stop))
        for a, b in zip(one.box, other.box, strict=True)
    ]
    if any(low >= high for low, high in corners):
        return 0
    first, second = (
        piece.mask[
            tuple(
                slice(low - part.start, high - part.start)
                for (low, high), part in zip(corners, piece.box, strict=True)
            )
        ]
        for piece in (one, other)
    )
    return int((first & second).sum())


def found_examples(seen: Survey, look: SecondLook, threshold: float) -> Iterator[Example]:
    """What a model found at its own threshold and at lower ones, and the kidneys as they are."""
    for level in (threshold, *(low for low in LOW_THRESHOLDS if low < threshold)):
        kind = FOUND if level == threshold else NEARLY
        for piece in pieces_of(seen.found >= level * 255, LEAST_ML / seen.voxel_ml):
            yield from _example(piece, seen, look, kind)
    for piece in seen.kidneys:
        yield from _example(piece, seen, look, TRUTH)


def drawn_examples(
    seen: Survey, look: SecondLook, kidneys: int, others: int, rng: np.random.Generator
) -> Iterator[Example]:
    """Candidates that a model might find in a CT, about so many of either kind."""
    draws: tuple[tuple[bool, int, Callable[[Survey, np.random.Generator], Piece | None]], ...] = (
        (True, kidneys if seen.kidneys else 0, _changed_kidney),
        (False, others if len(seen.seeds) else 0, _other),
    )
    for kidney, count, draw in draws:
        for _ in range(count):
            for _ in range(_TRIES):
                piece = draw(seen, rng)
                if piece is not None and what_it_is(piece, seen) is kidney:
                    yield from _example(piece, seen, look, DRAWN)
                    break


def _example(piece: Piece, seen: Survey, look: SecondLook, kind: str) -> Iterator[Example]:
    """The candidate as an example, if it is one or the other."""
    kidney = what_it_is(piece, seen)
    if kidney is None:
        return
    component = np.zeros(seen.truth.shape, bool)
    component[piece.box] = piece.mask
    places = places_in(piece.mask).moved([part.start for part in piece.box])
    arrays = (seen.scaled, component, seen.truth)
    pictures = np.stack([sections(a, seen.spacing_mm, places, look) for a in arrays], axis=1)
    yield Example(np.rint(pictures * 255).astype(np.uint8), kidney, kind, seen.name)


def _changed_kidney(seen: Survey, rng: np.random.Generator) -> Piece | None:
    """A kidney moved by some mm and scaled; often cut off, sometimes leaking into a neighbour."""
    kidney = seen.kidneys[int(rng.integers(len(seen.kidneys)))]
    box = _wider(kidney.box, seen, _MARGIN_MM)
    mask = np.zeros([part.stop - part.start for part in box], np.float32)
    inner = tuple(
        slice(small.start - large.start, small.stop - large.start)
        for small, large in zip(kidney.box, box, strict=True)
    )
    mask[inner] = kidney.mask
    scale = rng.uniform(0.75, 1.25) * rng.uniform(0.9, 1.1, 3)
    shift = rng.normal(0, 4, 3) / seen.spacing_mm
    centre = (np.array(mask.shape) - 1) / 2
    offset = centre - (centre + shift) / scale
    moved = ndimage.affine_transform(mask, 1 / scale, offset, order=1) >= 0.5
    if rng.random() < 0.5:
        moved = _cut_off(moved, seen.spacing_mm, rng)
    if rng.random() < 0.25 and moved.any():
        edge = np.argwhere(moved ^ ndimage.binary_erosion(moved))
        seed = edge[int(rng.integers(len(edge)))] + [part.start for part in box]
        leak = _grown(seen, seed, rng.uniform(8, 20, 3), rng.uniform(10, 40))
        if leak is not None:
            whole = np.zeros(seen.truth.shape, bool)
            whole[box] = moved
            whole[leak.box] |= leak.mask
            return next(pieces_of(whole, LEAST_ML / seen.voxel_ml), None)
    return _placed(moved, box, seen)


def _cut_off(
    mask: np.ndarray, spacing_mm: tuple[float, float, float], rng: np.random.Generator
) -> np.ndarray:
    """The part of a mask on one side of a plane, most often an end along the body."""
    index = np.argwhere(mask)
    if not len(index):
        return mask
    normal = np.array([1.0, 0.5, 0.5]) * rng.standard_normal(3)
    along = (index * np.array(spacing_mm)) @ normal
    kept = index[along <= np.quantile(along, rng.uniform(0.35, 0.95))]
    cut = np.zeros_like(mask)
    cut[tuple(kept.T)] = True
    return cut


def _other(seen: Survey, rng: np.random.Generator) -> Piece | None:
    """Something that is no kidney, if the overlap says so too."""
    seeds = seen.seeds_near if rng.random() < 0.5 else seen.seeds
    seed = seeds[int(rng.integers(len(seeds)))]
    kind = rng.random()
    if kind < 0.65:
        return _grown(seen, seed, rng.uniform(15, 60, 3), rng.uniform(8, 40))
    if kind < 0.85 and seen.kidneys:
        return _displaced(seen, seed, rng)
    return _grown(seen, seed, rng.uniform(12, 40, 3), np.inf)


def _grown(
    seen: Survey, seed: np.ndarray, radii_mm: np.ndarray, tolerance_hu: float
) -> Piece | None:
    """What is about as bright as a voxel and hangs together with it, within an ellipsoid."""
    point = tuple(slice(int(at), int(at) + 1) for at in seed)
    box = _wider((point[0], point[1], point[2]), seen, float(radii_mm.max()))
    away = sum(
        ((np.arange(part.start, part.stop) - at) * mm / radius).reshape(shape) ** 2
        for part, at, mm, radius, shape in zip(
            box, seed, seen.spacing_mm, radii_mm, ((-1, 1, 1), (1, -1, 1), (1, 1, -1)), strict=True
        )
    )
    smooth = ndimage.uniform_filter(seen.hu[box], 3)
    inner = tuple(int(at) - part.start for at, part in zip(seed, box, strict=True))
    alike = np.asarray(away < 1) & (np.abs(smooth - smooth[inner]) < tolerance_hu)
    if not alike[inner]:
        return None
    components = cc3d.connected_components(alike, connectivity=6)
    # Rounded, as what networks find is.
    share = ndimage.uniform_filter((components == components[inner]).astype(np.float32), 3)
    return _placed(share >= 0.5, box, seen)


def _displaced(seen: Survey, seed: np.ndarray, rng: np.random.Generator) -> Piece | None:
    """The shape of a kidney with its middle elsewhere."""
    kidney = seen.kidneys[int(rng.integers(len(seen.kidneys)))]
    mask = kidney.mask[:, :, ::-1] if rng.random() < 0.5 else kidney.mask
    first = seed - np.array(mask.shape) // 2
    shape = np.array(seen.truth.shape)
    low, high = np.maximum(first, 0), np.minimum(first + mask.shape, shape)
    inner = tuple(slice(a, b) for a, b in zip(low - first, high - first, strict=True))
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return _placed(mask[inner], (box[0], box[1], box[2]), seen)


def _placed(mask: np.ndarray, box: Box, seen: Survey) -> Piece | None:
    """The largest component of a mask, if its size is one of candidates."""
    best = next(pieces_of(ndimage.binary_fill_holes(mask), LEAST_ML / seen.voxel_ml), None)
    if best is None or best.mask.sum() * seen.voxel_ml > _MOST_ML:
        return None
    first, second, third = (
        slice(part.start + inner.start, part.start + inner.stop)
        for part, inner in zip(box, best.box, strict=True)
    )
    return Piece((first, second, third), best.mask)


def _wider(box: Box, seen: Survey, margin_mm: float) -> Box:
    """A box with a margin, within the CT."""
    first, second, third = (
        slice(
            max(0, part.start - int(np.ceil(margin_mm / mm))),
            min(size, part.stop + int(np.ceil(margin_mm / mm))),
        )
        for part, mm, size in zip(box, seen.spacing_mm, seen.truth.shape, strict=True)
    )
    return first, second, third
