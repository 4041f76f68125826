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
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from KidneySegLib.network import margin
from KidneySegLib.preprocess import context_offset, with_context
from UNetTrainerLib.augmentation import AUGMENTATIONS
from UNetTrainerLib.cache import CachedCase
from UNetTrainerLib.moving import Window, displacements, reached, show, warp
from UNetTrainerLib.options import Options
from UNetTrainerLib.varying import (
    add_lesion,
    change_intensity,
    change_phase,
    change_prior,
    enhanced_hu,
    wash_out,
)

Position = tuple[int, int]  # epoch, position in it
Draw = tuple[Tensor, Tensor, Tensor, int]

LONGEST_CASE = 100  # slices; longer cases are not drawn more often
MOST_WORKERS = 8
PREFETCH = 2  # batches that each worker has ready
PLACES_A_CASE = 2000  # pixels of kidney that squares are laid around
ASIDE = 0.2  # of a square's side: how far its centre may be from such a pixel
BORDER_WEIGHT = 10.0  # w0 and sigma of the U-Net paper, section 3
BORDER_SIGMA_PIXELS = 5.0


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
        seen = window if field is None else reached(field, case.shape, mirrored)
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
