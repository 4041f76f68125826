"""Which slices make a batch, and how they are varied before the network sees them.

Every draw has random numbers of its own, by seed, epoch and position in the epoch. So it is the
same in any process, in any order and with any number of workers, and a run that was killed goes on
with the very draws it would have made.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Sampler

from KidneySegLib.network import margin
from KidneySegLib.preprocess import context_offset, with_context
from UNetTrainerLib.cache import CachedCase
from UNetTrainerLib.options import Options

Position = tuple[int, int]  # epoch, position in it
Draw = tuple[Tensor, Tensor, Tensor, int]

LONGEST_CASE = 100  # slices; longer cases are not drawn more often
MOST_WORKERS = 8
PREFETCH = 2  # batches that each worker has ready
PLACES_A_CASE = 2000  # pixels of kidney that squares are laid around
ASIDE = 0.2  # of a square's side: how far its centre may be from such a pixel
PRIOR_MISSED, PRIOR_MOVED, PRIOR_DOUBTED, PRIOR_FALSE = 0.1, 0.4, 0.7, 0.3  # shares of the draws
PRIOR_DOUBT = 4.0  # largest standard deviation of the logits of a doubted prior
PRIOR_MOST_PIXELS = 4
# What contrast medium brightens lies between muscle and this, where kidneys are not brighter yet;
# so much further up there is bone.
_ENHANCED_HU, _TO_BONE_HU = 210.0, 65.0
LESION_RADIUS_MM = (5.0, 30.0)
BORDER_WEIGHT = 10.0  # w0 and sigma of the U-Net paper, section 3
BORDER_SIGMA_PIXELS = 5.0


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random changes; the defaults are ``full``, all zero is ``none``.

    Where values are no HU, ``offset_hu`` and ``noise_hu`` count `CachedCase.hu_unit`.

    Attributes:
        rotation_degrees, shear, shift: largest absolute values; the shift is a share of the field.
        zoom: largest factor, also its inverse; covers unknown pixel spacings.
        stretch: rows against columns, largest logarithm of either's factor; a large one covers
            slices of unknown distance, seen from the side.
        mirror: probability of exchanging left and right of the picture. Sides are told apart by
            position after the network, so the kidney label stays right.
        elastic_pixels: standard deviation of smooth displacements.
        gain, offset_hu: relative and absolute change of intensity.
        noise_hu: largest standard deviation of added noise.
        blur: probability of a 3x3 smoothing (other reconstruction kernels).
        floor: probability of a raised lower clip (data stored from 0 HU); only with a window.
        phase: probability of drawing the kidney's own intensity towards another contrast phase;
            only in volumes and with a window.
        plain: probability of taking the contrast medium out of everything, see `wash_out`; only in
            volumes and with a window.
        dark: of those draws, the share whose kidneys come out about as dark as muscle or darker.
        lesion: probability of a cyst or tumour painted onto a kidney; only in volumes and with a
            window.
        lone: probability that a slice stands for its neighbours (single slices as input).
        thicker: probability that neighbours are taken one slice further away.
        field_of_view: probability of a circular field of view that cuts the body.
    """

    rotation_degrees: float = 15.0
    shear: float = 0.1
    shift: float = 0.08
    zoom: float = 1.3
    stretch: float = 0.05
    mirror: float = 0.3
    elastic_pixels: float = 3.0
    gain: float = 0.15
    offset_hu: float = 20.0
    noise_hu: float = 20.0
    blur: float = 0.2
    floor: float = 0.15
    phase: float = 0.35
    plain: float = 0.0
    dark: float = 0.0
    lesion: float = 0.15
    lone: float = 0.1
    thicker: float = 0.2
    field_of_view: float = 0.05

    @property
    def moves(self) -> bool:
        """Whether pixels change their places."""
        moving = (self.rotation_degrees, self.shear, self.shift, self.mirror, self.elastic_pixels)
        return self.zoom > 1 or any(moving)


_STRONG = Augmentation(
    rotation_degrees=25,
    shift=0.15,
    zoom=1.45,
    mirror=0.5,
    gain=0.2,
    offset_hu=25,
    noise_hu=30,
    blur=0.25,
    floor=0.2,
    lesion=0.0,
    lone=0.15,
    thicker=0.3,
    field_of_view=0.1,
)
_PHASES = replace(_STRONG, phase=0.25, plain=0.2)
_PLAIN = replace(_STRONG, phase=0.2, plain=0.25, dark=0.5)

AUGMENTATIONS = {
    "full": Augmentation(),
    "strong": _STRONG,
    "strong-stretched": replace(_STRONG, stretch=0.2),
    "phases": _PHASES,
    "phases-stretched": replace(_PHASES, stretch=0.2),
    "plain": _PLAIN,
    "plain-stretched": replace(_PLAIN, stretch=0.2),
    "light": Augmentation(
        rotation_degrees=8,
        shear=0,
        zoom=1.15,
        elastic_pixels=0,
        noise_hu=10,
        phase=0,
        lesion=0,
        blur=0,
        field_of_view=0,
    ),
    "none": Augmentation(**{one.name: float(one.name == "zoom") for one in fields(Augmentation)}),
}


class Window(NamedTuple):
    """A rectangle of a slice; it may reach beyond the slice."""

    top: int
    left: int
    rows: int
    columns: int


class SliceDataset(Dataset[Draw]):
    """Slices of prepared cases with their neighbours, varied, by (epoch, position).

    With ``options.steps`` a draw takes a case in proportion to ``slices ** 0.6``, so that neither
    a long volume nor many single slices take over, then a slice: with a label with probability
    ``options.foreground``. With ``steps == 0`` an epoch is every slice of the cases once, in an
    order of its own, and as many draws from ``extra`` as their share asks for; its last batch is
    filled up from the beginning.

    Args:
        extra: further cases that take ``options.extra_share`` of the draws (generated CTs).

    Attributes:
        cases: all of them; the number that comes with a draw counts in here.
    """

    def __init__(self, cases: Sequence[CachedCase], extra: Sequence[CachedCase], options: Options):
        self.cases = [*cases, *extra]
        self.options = options
        self.how = AUGMENTATIONS[options.augment]
        self.margin = margin(options.network_parameters)
        # Arrays, not Python objects: reading those would copy them into every worker.
        self._labelled = [np.array(case.labelled_slices, np.int32) for case in self.cases]
        self._places = [_places(case) for case in self.cases] if options.around else []
        self._enhanced = [enhanced_hu(case) for case in self.cases] if self.how.plain else []
        self._shares = _shares(len(cases), self.cases, options.extra_share)
        self._first = np.cumsum([0, *(case.slices for case in cases)])
        self._ordered = len(cases)
        self._order: tuple[int, np.ndarray] | None = None
        self._class_weights = class_weights(self.cases, len(options.labels))

    @property
    def draws(self) -> int:
        """Of an epoch, over all processes; whole batches."""
        batch = self.options.batch_size
        if self.options.steps:
            return self.options.steps * batch
        return -(-self._whole_epoch // batch) * batch

    @property
    def _whole_epoch(self) -> int:
        """Every slice once, and the share of the extra cases."""
        once = int(self._first[-1])
        extra = len(self.cases) > self._ordered
        share = self.options.extra_share if extra else 0.0
        return once + round(once * share / (1 - share))

    def __len__(self) -> int:
        return self.draws

    def __getitem__(self, item: Position) -> Draw:
        """One draw.

        Args:
            item: epoch, and position in it from 0 to `draws`.

        Returns:
            float32 slices ``(input_channels, rows + 2 margin, columns + 2 margin)``, scaled,
            neighbour by neighbour, and a finder's answer last; int64 labels ``(rows, columns)``;
            float32 weights of the same shape, or of shape (0,) unless the loss is ``weighted-ce``;
            and the number of the case in `cases`.
        """
        epoch, position = item
        rng = np.random.default_rng((self.options.seed, 1, epoch, position))
        number, index = self._choose(epoch, position, rng)
        slices, labels = self._cut(number, index, rng, self._place(number, index, rng))
        weights = torch.empty(0)
        if self.options.loss == "weighted-ce":
            weights = torch.from_numpy(border_weights(labels, self._class_weights))
        return slices, torch.from_numpy(labels.astype(np.int64)), weights, number

    def _choose(self, epoch: int, position: int, rng: np.random.Generator) -> tuple[int, int]:
        """Number of a case and one of its slices."""
        if self.options.steps:
            return self._draw(rng, 0)
        place = int(self._order_of(epoch)[position % self._whole_epoch])
        if place >= self._first[-1]:
            return self._draw(rng, self._ordered)
        number = int(np.searchsorted(self._first, place, side="right")) - 1
        return number, place - int(self._first[number])

    def _draw(self, rng: np.random.Generator, first: int) -> tuple[int, int]:
        """A case from number ``first`` on, and one of its slices."""
        shares = np.cumsum(self._shares[first:])
        number = first + int(np.searchsorted(shares, rng.random() * shares[-1], side="right"))
        labelled = self._labelled[number]
        if len(labelled) and rng.random() < self.options.foreground:
            return number, int(labelled[rng.integers(len(labelled))])
        return number, int(rng.integers(self.cases[number].slices))

    def _place(self, number: int, index: int, rng: np.random.Generator) -> np.ndarray | None:
        """Row and column that a square is laid around; None for anywhere.

        It is near a pixel of kidney of this slice, or, where it has none, of the nearest that has.
        """
        if not self.options.around or rng.random() >= self.options.around:
            return None
        places = self._places[number]
        if not len(places):
            return None
        away = np.abs(places[:, 0] - index)
        near = places[away == away.min(), 1:]
        aside = rng.uniform(-ASIDE, ASIDE, 2) * self.options.crop
        return np.asarray(near[rng.integers(len(near))] + aside)

    def _order_of(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            rng = np.random.default_rng((self.options.seed, 2, epoch))
            self._order = epoch, rng.permutation(self._whole_epoch)
        return self._order[1]

    def _cut(
        self, number: int, index: int, rng: np.random.Generator, place: np.ndarray | None
    ) -> tuple[Tensor, np.ndarray]:
        """Scaled slices and uint8 labels of one draw."""
        case, how, options = self.cases[number], self.how, self.options
        neighbours = self._neighbours(case, index, rng)
        window, mirrored = self._window(case, rng, place), self.margin > 0
        field = displacements(window, self.margin, how, rng) if how.moves else None
        seen = window if field is None else _reached(field, case.shape, mirrored)
        stored = case.labels()
        truth = show(stored, np.array([index]), seen, 0, mirrored)[0]
        voxels = show(case.voxels(), neighbours, seen, case.fill, mirrored)
        windowed = options.scaling == "window"
        # Contrast medium changes HU, and only volumes are known to hold some.
        if windowed and not case.case.is_slice:
            voxels = self._change_contrast(voxels, number, stored, (neighbours, seen), rng)
        if windowed and not case.case.is_slice and truth.any() and rng.random() < how.lesion:
            heights_mm = (neighbours - index) * case.spacing_mm[0]
            voxels, truth = add_lesion(voxels, truth, heights_mm, case.spacing_mm[1:], rng)
        if len(options.labels) == 2:
            truth = np.minimum(truth, 1)
        prior = None
        if options.prior:
            prior = show(case.prior(), np.array([index]), seen, 0, mirrored)
            prior = prior.astype(np.float32) / 255
        if field is not None:
            # The prior goes along as one more plane.
            planes = voxels.reshape(-1, *voxels.shape[-2:])
            if prior is not None:
                planes = np.concatenate([planes, prior])
            planes, truth = warp(planes, truth, field, seen)
            voxels, prior = planes[: voxels.shape[0] * voxels.shape[1]], planes[-1:]
        voxels = change_intensity(voxels, case, how, windowed, rng)
        low, high = case.value_range
        if windowed:
            low, high = options.window_low, options.window_high
        slices = torch.from_numpy(voxels.reshape(-1, *voxels.shape[-2:]))
        slices = slices.clamp_(low, high).sub_(low).div_(max(high - low, 1e-6))
        if options.prior and prior is not None:
            doubted = torch.from_numpy(change_prior(prior[0], rng))
            slices = torch.cat([slices, doubted[None]])
        edge = self.margin
        inner = truth[edge : truth.shape[0] - edge, edge : truth.shape[1] - edge]
        return slices, np.ascontiguousarray(inner)

    def _change_contrast(
        self,
        voxels: np.ndarray,
        number: int,
        stored: np.ndarray,
        shown: tuple[np.ndarray, Window],
        rng: np.random.Generator,
    ) -> np.ndarray:
        """The slices in another contrast phase, as often as `Augmentation` says.

        Args:
            number, stored: of the case, and its labels. shown: which slices, and what of them.
        """
        how = self.how

        def kidney() -> np.ndarray:
            seen = show(stored, *shown, 0, self.margin > 0)[:, None] == 1
            return np.broadcast_to(seen, voxels.shape)

        if rng.random() < how.phase:
            voxels = change_phase(voxels, kidney(), rng)
        if how.plain and rng.random() < how.plain:
            voxels = wash_out(voxels, self._enhanced[number], rng)
            if how.dark and rng.random() < how.dark:
                voxels = change_phase(voxels, kidney(), rng, plain=True)
        return voxels

    def _neighbours(self, case: CachedCase, index: int, rng: np.random.Generator) -> np.ndarray:
        count = self.options.context_slices
        if count > 1 and rng.random() < self.how.lone:
            return np.full(count, index)
        offset = context_offset(case.spacing_mm[0], self.options.preprocessing)
        if count > 1 and rng.random() < self.how.thicker:
            offset += 1
        return with_context(case.slices, np.array([index]), count, offset)[0]

    def _window(
        self, case: CachedCase, rng: np.random.Generator, place: np.ndarray | None
    ) -> Window:
        """What the network sees: around a place or the slice's centre, or a crop anywhere in it."""
        size = self.options.training_size
        corner = []
        for axis, (have, want) in enumerate(zip(case.shape, size, strict=True)):
            if place is not None:
                corner.append(round(float(place[axis])) - want // 2)
            elif self.options.crop and have > want:
                corner.append(int(rng.integers(have - want + 1)))
            else:
                corner.append((have - want) // 2 if have > want else -((want - have) // 2))
        edge = self.margin
        return Window(corner[0] - edge, corner[1] - edge, size[0] + 2 * edge, size[1] + 2 * edge)


def _shares(cases: int, everything: Sequence[CachedCase], extra_share: float) -> np.ndarray:
    """Probability of each case to be drawn; those from number ``cases`` on are extra."""
    weight = np.array([min(case.slices, LONGEST_CASE) ** 0.6 for case in everything])
    if 0 < cases < len(everything):
        weight[:cases] *= (1 - extra_share) / weight[:cases].sum()
        weight[cases:] *= extra_share / weight[cases:].sum()
    return np.asarray(weight / weight.sum())


def _places(case: CachedCase) -> np.ndarray:
    """Slice, row and column of pixels of kidney spread over a case: int32 (n, 3)."""
    labels = case.labels()
    found = [np.empty((0, 3), np.int32)]
    few = max(1, PLACES_A_CASE // max(len(case.labelled_slices), 1))
    for index in case.labelled_slices:
        pixels = np.argwhere(np.asarray(labels[index]) > 0)
        some = pixels[np.linspace(0, len(pixels) - 1, min(few, len(pixels))).astype(int)]
        found.append(np.insert(some, 0, index, axis=1).astype(np.int32))
    return np.concatenate(found)


def class_weights(cases: Sequence[CachedCase], classes: int) -> np.ndarray:
    """Weight of each class that balances their frequencies: ``w_c`` of the U-Net paper.

    ``pixels / (classes * pixels of the class)`` over all prepared slices, so that every class
    weighs the same in total and the mean weight of a pixel is 1. A class that no case has weighs 1.
    """
    counts = np.sum([case.label_counts for case in cases], axis=0, dtype=float)
    if classes == 2:
        counts = np.array([counts[0], counts[1] + counts[2]])
    present = counts > 0
    weights = counts.sum() / (present.sum() * np.maximum(counts, 1))
    return np.asarray(np.where(present, weights, 1.0), np.float32)


def border_weights(labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weight of every pixel that balances the classes and pushes near objects apart.

    Ronneberger et al., "U-Net" (arXiv:1505.04597), equation 2: ``w_c + w0 * exp(-(d1 + d2)^2 /
    (2 sigma^2))``, with ``w0 = 10``, ``sigma = 5`` pixels, and ``d1`` and ``d2`` the distances to
    the nearest and the second nearest object. The second part is for the background between
    objects; an object is what hangs together of any label but background.

    Args:
        labels: (rows, columns), 0 for background.
        weights: of each class, see `class_weights`.

    Returns:
        float32 of the same shape.
    """
    result = weights[labels]
    objects, count = ndimage.label(labels > 0, structure=np.ones((3, 3)))
    if count < 2:
        return result
    # Where d1 + d2 exceeds this, the second part is below a ten-thousandth of w0.
    reach = int(np.ceil(BORDER_SIGMA_PIXELS * np.sqrt(2 * np.log(1e4))))
    nearest = np.full((2, *labels.shape), np.inf, np.float32)
    for number, (rows, columns) in enumerate(ndimage.find_objects(objects), start=1):
        near = (
            slice(max(rows.start - reach, 0), rows.stop + reach),
            slice(max(columns.start - reach, 0), columns.stop + reach),
        )
        distance = ndimage.distance_transform_edt(objects[near] != number)
        first, second = nearest[0][near], nearest[1][near]
        np.minimum(second, np.maximum(first, distance), out=second)
        np.minimum(first, distance, out=first)
    pull = np.exp(-(nearest.sum(0) ** 2) / (2 * BORDER_SIGMA_PIXELS**2))
    return np.asarray(result + BORDER_WEIGHT * pull * (labels == 0), np.float32)


def displacements(
    window: Window, edge: int, how: Augmentation, rng: np.random.Generator
) -> np.ndarray:
    """Where each pixel of a window comes from, turned, sheared, zoomed, mirrored and bent.

    Args:
        edge: pixels on each side that a shift does not count as the field.

    Returns:
        float32 ``(2, rows, columns)``: row and column in the slice.
    """
    rows, columns = window.rows, window.columns
    angle = np.deg2rad(rng.uniform(-how.rotation_degrees, how.rotation_degrees))
    zoom = how.zoom ** rng.uniform(-1, 1)
    stretch = np.exp(rng.uniform(-how.stretch, how.stretch)) if how.stretch > 0 else 1.0
    shear = rng.uniform(-how.shear, how.shear)
    flip = -1.0 if rng.random() < how.mirror else 1.0
    down, across = rng.uniform(-how.shift, how.shift, 2) * (rows - 2 * edge, columns - 2 * edge)
    y = np.arange(rows, dtype=np.float32)[:, None] - (rows - 1) / 2
    x = np.arange(columns, dtype=np.float32) - (columns - 1) / 2
    cosine, sine = np.cos(angle), np.sin(angle)
    field = np.empty((2, rows, columns), np.float32)
    field[0] = x * (sine * flip / zoom) + (
        y * (cosine / stretch / zoom) + (window.top + (rows - 1) / 2 + down)
    )
    field[1] = x * (cosine * flip * stretch / zoom) + (
        y * ((shear - sine) / zoom) + (window.left + (columns - 1) / 2 + across)
    )
    if how.elastic_pixels > 0:
        strength = how.elastic_pixels * rng.random()
        coarse = rng.standard_normal((2, 5, 6), np.float32) * np.float32(strength)
        field += _bicubic(5, rows) @ coarse @ _bicubic(6, columns).T
    return field


@lru_cache(maxsize=16)
def _bicubic(few: int, many: int) -> np.ndarray:
    """Weights (many, few) that spread a few values smoothly over many."""
    unit = torch.eye(few).view(few, 1, few, 1)
    spread = functional.interpolate(unit, size=(many, 1), mode="bicubic", align_corners=True)
    return np.ascontiguousarray(spread[:, 0, :, 0].numpy().T)


def _reached(field: np.ndarray, shape: tuple[int, int], mirrored: bool) -> Window:
    """The part of a slice that a field reaches; of what is filled, one pixel is enough."""
    corner, extent = [], []
    for positions, length in zip(field, shape, strict=True):
        low, high = int(np.floor(positions.min())), int(np.ceil(positions.max()))
        if not mirrored:
            low = min(max(low, -1), length)
            high = max(min(high, length), low)
        corner.append(low)
        extent.append(high - low + 1)
    return Window(corner[0], corner[1], extent[0], extent[1])


def show(
    stored: np.ndarray, slices: np.ndarray, window: Window, fill: float, mirrored: bool
) -> np.ndarray:
    """A window of some slices: float32 of intensities, uint8 of labels.

    Args:
        stored: (slices, ..., rows, columns), memory-mapped; nothing but the window is read.
        fill: what is shown beyond the slice, unless it is ``mirrored`` there, as the prediction of
            an unpadded network does: without repeating the outermost pixels.
    """
    top, left, rows, columns = window
    height, width = stored.shape[-2:]
    kind = np.uint8 if stored.dtype == np.uint8 else np.float32
    out = np.full((len(slices), *stored.shape[1:-2], rows, columns), fill, kind)
    r0, r1 = max(top, 0), min(top + rows, height)
    c0, c1 = max(left, 0), min(left + columns, width)
    reflected = mirrored and (r1 - r0, c1 - c0) != (rows, columns)
    inner = (..., slice(r0 - top, r1 - top), slice(c0 - left, c1 - left))
    for number, one in enumerate(slices):
        if number and one == slices[number - 1]:
            out[number] = out[number - 1]
        elif reflected:
            part = stored[one].take(_mirror(top, rows, height), -2)
            out[number] = part.take(_mirror(left, columns, width), -1)
        elif r0 < r1 and c0 < c1:
            out[number][inner] = stored[one][..., r0:r1, c0:c1]
    return out


def _mirror(first: int, count: int, length: int) -> np.ndarray:
    """Indices ``first, first + 1, ...`` reflected into ``0 .. length - 1``, as often as needed."""
    index = np.arange(first, first + count)
    if length == 1:
        return np.zeros_like(index)
    last = length - 1
    return np.asarray(np.abs((index + last) % (2 * last) - last))


def warp(
    voxels: np.ndarray, labels: np.ndarray, field: np.ndarray, window: Window
) -> tuple[np.ndarray, np.ndarray]:
    """Intensities and labels where a field says they come from.

    Args:
        voxels: float32 ``(..., rows, columns)`` of the window; labels: uint8 ``(rows, columns)``.
        field: of positions in the slice, see `displacements`.

    Returns:
        Both with the rows and columns of the field.
    """
    grid = np.empty((1, *field.shape[1:], 2), np.float32)
    for axis, first, length in (
        (1, window.top, window.rows),
        (0, window.left, window.columns),
    ):
        scale = 2 / max(length - 1, 1)
        np.multiply(field[1 - axis], np.float32(scale), out=grid[0, ..., axis])
        grid[..., axis] -= np.float32(first * scale + 1)
    positions = torch.from_numpy(grid)

    def moved(planes: np.ndarray) -> np.ndarray:
        return functional.grid_sample(
            torch.from_numpy(planes)[None], positions, padding_mode="border", align_corners=True
        )[0].numpy()

    values = moved(voxels.reshape(-1, *voxels.shape[-2:]))
    truth = np.zeros(field.shape[1:], np.uint8)
    # Each label is interpolated as a mask of its own and cut at one half: smooth edges.
    for label in range(1, int(labels.max()) + 1):
        truth += moved((labels >= label).astype(np.float32)[None])[0] >= 0.5
    return values.reshape(*voxels.shape[:-2], *field.shape[1:]), truth


def change_phase(
    hu: np.ndarray, kidney: np.ndarray, rng: np.random.Generator, plain: bool = False
) -> np.ndarray:
    """Draw the kidney's intensity towards another contrast phase, plain ones included.

    Only the pixels within the (softened) kidney change, in every neighbouring slice alike: enhanced
    tissue is moved to a random mean and its spread is narrowed or widened.

    Args:
        hu: float32 (slices, channels, rows, columns). kidney: bool of the same shape.
        plain: bring it to what it is before contrast, in any case.
    """
    if not kidney.any():
        return hu
    # Gray values of kidneys before contrast lie near those of muscle: the hard case, drawn often.
    if plain:
        target, spread = rng.uniform(18, 45), rng.uniform(0.2, 0.6)
    elif rng.random() < 0.5:
        target, spread = rng.uniform(25, 50), rng.uniform(0.2, 0.5)
    else:
        target, spread = rng.uniform(25, 240), rng.uniform(0.5, 1.5)
    # All of it happens within the kidneys and the pixel around them.
    rows, columns = (np.flatnonzero(kidney.any(axis)) for axis in ((0, 1, 3), (0, 1, 2)))
    near = (
        ...,
        slice(max(int(rows[0]) - 1, 0), int(rows[-1]) + 2),
        slice(max(int(columns[0]) - 1, 0), int(columns[-1]) + 2),
    )
    part, mask = hu[near], kidney[near].astype(np.float32)
    mean = float(part[mask > 0].mean())
    # Fat and air that partial volume or the sinus brings into the label stay what they are.
    tissue = np.clip((part + 30) / 40, 0, 1)
    changed = target + (part - mean) * np.float32(spread)
    hu = hu.copy()
    hu[near] = part + smoothed(mask, "constant") * tissue * (changed - part)
    return hu


def wash_out(hu: np.ndarray, enhanced: float, rng: np.random.Generator) -> np.ndarray:
    """Take contrast medium out of everything, as far as gray values can tell what it is in.

    Kidneys, liver, vessels and bowel come close to muscle, fat stays as it is, and bone as bright.
    `change_phase` darkens kidneys alone and so leaves an edge exactly where the label has one; here
    edges stay where the CT has them, but low ones.

    Args:
        hu: float32 of any shape.
        enhanced: the HU up to which there is more contrast medium than bone, see `enhanced_hu`.
    """
    muscle = rng.uniform(10, 50)
    left = muscle + rng.uniform(0.05, 0.5) * (enhanced - muscle)
    bone = enhanced + _TO_BONE_HU
    known = (-1e4, muscle, enhanced, bone, 1e4)
    return np.interp(hu, known, (-1e4, muscle, left, bone, 1e4)).astype(np.float32)


def enhanced_hu(case: CachedCase) -> float:
    """How bright the kidneys of a case become with its contrast medium; at least `_ENHANCED_HU`.

    In an arterial phase they are as bright as bone elsewhere, and a fixed limit would leave them
    half with contrast and half without, speckled.
    """
    voxels, labels = case.voxels(), case.labels()
    # Some slices say it; the whole case need not be read.
    labelled = case.labelled_slices[:: max(len(case.labelled_slices) // 8, 1)]
    kidney = [voxels[index][:, labels[index] == 1].ravel() for index in labelled]
    inside = np.concatenate(kidney) if kidney else np.empty(0)
    return max(_ENHANCED_HU, float(np.percentile(inside, 95))) if len(inside) else _ENHANCED_HU


def add_lesion(
    hu: np.ndarray,
    labels: np.ndarray,
    heights_mm: np.ndarray,
    pixel_mm: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """A round cyst or tumour that grows out of a kidney, through all neighbouring slices.

    It leaves air, bone and bright vessels as they are, and belongs to the kidney: a cyst as kidney,
    a tumour as tumour.

    Args:
        hu: float32 (slices, channels, rows, columns). labels: uint8 (rows, columns) of the slice at
            height 0, with some kidney.
        heights_mm: of each slice.

    Returns:
        Both, changed.
    """
    radius = rng.uniform(*LESION_RADIUS_MM)
    kidney = np.argwhere(labels > 0)
    row, column = kidney[rng.integers(len(kidney))]
    angle, away = rng.uniform(0, 2 * np.pi), radius * rng.uniform(0, 0.9)
    height = radius * rng.uniform(-0.8, 0.8)
    y = (np.arange(labels.shape[0]) - row) * pixel_mm[0] - away * np.sin(angle)
    x = (np.arange(labels.shape[1]) - column) * pixel_mm[1] - away * np.cos(angle)
    stretch = rng.uniform(0.8, 1.25)
    distance = np.sqrt((y[:, None] * stretch) ** 2 + (x / stretch) ** 2).astype(np.float32)
    cyst = rng.random() < 0.5
    level = rng.uniform(-5, 25) if cyst else rng.uniform(25, 130)
    texture = 0.0 if cyst else rng.uniform(0, 25)
    coarse = rng.standard_normal((9, 9), np.float32) * np.float32(texture)
    rows, columns = labels.shape
    inside = level + _bicubic(9, rows) @ coarse @ _bicubic(9, columns).T
    hu = hu.copy()
    here = labels
    for plane, mm in zip(hu, heights_mm, strict=True):
        across = np.sqrt(max(radius**2 - (mm - height) ** 2, 0.0))
        if across == 0:
            continue
        soft = np.clip((across - distance) / pixel_mm[0] + 0.5, 0, 1)
        soft *= (plane[0] > -150) & ((plane[0] < 160) | (labels > 0))
        plane += soft * (inside - plane)
        if mm == 0:
            here = np.where(soft >= 0.5, np.uint8(1 if cyst else 2), labels)
    return hu, here


def change_prior(prior: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a finder might have answered for a patient whom it never saw.

    On the cases that it learnt from it is too good to be believed elsewhere: here whole regions are
    doubted, taken for kidney or missed, and sometimes the slice as a whole.

    Args:
        prior: float32 (rows, columns), 0..1.
    """
    if rng.random() < PRIOR_MISSED:
        return np.zeros_like(prior)
    rows, columns = prior.shape
    if rng.random() < PRIOR_MOVED:
        step = rng.integers(-PRIOR_MOST_PIXELS, PRIOR_MOST_PIXELS + 1, 2)
        prior = np.roll(prior, tuple(step.tolist()), (0, 1))
    if rng.random() < PRIOR_DOUBTED:
        certain = np.clip(prior, 0.01, 0.99)
        coarse = rng.standard_normal((8, 8), np.float32) * np.float32(rng.uniform(0, PRIOR_DOUBT))
        field = _bicubic(8, rows) @ coarse @ _bicubic(8, columns).T
        odds = np.log(certain / (1 - certain)) + field + np.float32(rng.uniform(-1.5, 1.5))
        prior = (1 / (1 + np.exp(-odds))).astype(np.float32)
    if rng.random() < PRIOR_FALSE:
        y = (np.arange(rows) - rng.uniform(0, rows)) / rng.uniform(0.04, 0.2) / rows
        x = (np.arange(columns) - rng.uniform(0, columns)) / rng.uniform(0.04, 0.2) / columns
        distance = (y[:, None] ** 2 + x**2).astype(np.float32)
        false = np.float32(rng.uniform(0.4, 1.0)) / (1 + distance**4)
        prior = np.maximum(prior, false)
    return prior


def smoothed(planes: np.ndarray, beyond: str) -> np.ndarray:
    """Mean of 3x3 pixels of the last two axes; ``beyond`` the edge as `numpy.pad` knows it."""
    around = ((0, 0),) * (planes.ndim - 2) + ((1, 1), (1, 1))
    wide = np.pad(planes, around, mode=beyond)  # type: ignore[call-overload]
    down = wide[..., :-2, :] + wide[..., 1:-1, :] + wide[..., 2:, :]
    across = down[..., :-2] + down[..., 1:-1] + down[..., 2:]
    return np.asarray(across * np.float32(1 / 9))


def change_intensity(
    slices: np.ndarray,
    case: CachedCase,
    how: Augmentation,
    windowed: bool,
    rng: np.random.Generator,
) -> np.ndarray:
    """Gain, offset, smoothing, noise, raised floor and field of view of float32 slices.

    Args:
        slices: ``(..., rows, columns)``, stored intensities of the case; may be changed in place.
        windowed: whether they are HU and will be cut to a window.
    """
    unit = case.hu_unit
    if how.gain > 0 or how.offset_hu > 0:
        # A gain is about 0 HU, and about the smallest value where there are no HU.
        about = 0.0 if windowed else case.fill
        gain = rng.uniform(1 - how.gain, 1 + how.gain)
        offset = rng.uniform(-how.offset_hu, how.offset_hu) * unit
        slices *= np.float32(gain)
        slices += np.float32(offset + about * (1 - gain))
    if rng.random() < how.blur:
        slices = smoothed(slices, "edge")
    if how.noise_hu > 0 and rng.random() < 0.5:
        # Of torch, whose random numbers come three times as fast as NumPy's.
        noise = torch.Generator().manual_seed(int(rng.integers(2**63)))
        sigma = rng.uniform(0, how.noise_hu) * unit
        slices += torch.randn(slices.shape, generator=noise).mul_(sigma).numpy()
    if windowed and rng.random() < how.floor:
        np.maximum(slices, np.float32(rng.uniform(-125, 10)), out=slices)
    if rng.random() < how.field_of_view:
        rows, columns = slices.shape[-2:]
        y = np.linspace(-1, 1, rows, dtype=np.float32)[:, None] * (rows / columns)
        x = np.linspace(-1, 1, columns, dtype=np.float32)
        slices[..., x**2 + y**2 > rng.uniform(0.6, 0.9) ** 2] = case.fill
    return slices


class BatchSampler(Sampler[list[Position]]):
    """Batches of (epoch, position) for one of several processes.

    Together the processes see the batches that one process would: of each, process ``rank`` takes
    every ``processes``-th position.
    """

    def __init__(self, dataset: SliceDataset, options: Options, rank: int = 0, processes: int = 1):
        self.batches = dataset.draws // options.batch_size
        self.batch_size = options.batch_size
        self.rank = rank
        self.processes = processes
        self.epoch = 0

    @property
    def sampler(self) -> BatchSampler:
        """Itself: where Lightning looks for what it tells the epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Must be called before an epoch is begun; without it, every epoch is the same."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[Position]]:
        epoch = self.epoch
        for first in range(0, self.batches * self.batch_size, self.batch_size):
            mine = range(first + self.rank, first + self.batch_size, self.processes)
            yield [(epoch, position) for position in mine]

    def __len__(self) -> int:
        return self.batches


def loader(
    dataset: SliceDataset,
    options: Options,
    rank: int = 0,
    processes: int = 1,
    pin_memory: bool = False,
) -> DataLoader[Draw]:
    """Batches of `SliceDataset`, prepared ahead by other processes.

    Args:
        rank, processes: of the training; each has a loader of its own.
        pin_memory: for a training on CUDA.
    """
    workers = options.workers if options.workers >= 0 else _workers(options, processes)
    return DataLoader(
        dataset,
        batch_sampler=BatchSampler(dataset, options, rank, processes),
        num_workers=workers,
        worker_init_fn=_start_worker,
        persistent_workers=workers > 0,
        prefetch_factor=PREFETCH if workers else None,
        pin_memory=pin_memory,
        # Its own, unused: a loader without one draws from the numbers that drop channels.
        generator=torch.Generator(),
    )


def _workers(options: Options, processes: int) -> int:
    """Half of the cores of a training process, and none where it has but one.

    Batches wait in shared memory, of which containers have little (64 MB is usual): no more workers
    than it has room for, since a full one ends the run without a word.
    """
    if sys.platform != "linux":
        return min((os.cpu_count() or 1) // options.devices // 2, MOST_WORKERS)
    workers = min(len(os.sched_getaffinity(0)) // options.devices // 2, MOST_WORKERS)
    rows, columns = options.training_size
    edge = 2 * margin(options.network_parameters)
    channels = options.network_parameters.input_channels
    draw = 4 * channels * (rows + edge) * (columns + edge) + 12 * rows * columns
    batch = draw * options.batch_size // processes
    shared = Path("/dev/shm")
    room = shutil.disk_usage(shared).free // options.devices if shared.is_dir() else 0
    # A batch is in use and a worker has finished PREFETCH of them.
    return max(0, min(workers, (room // batch - 1) // PREFETCH))


def _start_worker(number: int) -> None:
    torch.set_num_threads(1)
