"""A model's answer for an axial volume: everywhere, or closely where its finder found something."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np

from KidneySegLib.backends.base import Backend
from KidneySegLib.predict import predict
from KidneySegLib.preprocess import (
    VIEWS,
    Preprocessing,
    WorkingGrid,
    back_to_full,
    in_view,
    interpolated,
    scale,
    spacing_in_view,
    to_axial_order,
    to_working,
)
from KidneySegLib.regions import Box, find_regions, sweeps

Tell = Callable[[float], None]
Step = Callable[[str], AbstractContextManager[Tell]]
Spacing = tuple[float, float, float]

# Along the body; what is seen in less of it than this is no section of a kidney.
_LEAST_OF_A_VIEW_MM = 40.0


def _silently(name: str) -> AbstractContextManager[Tell]:
    return nullcontext(lambda share: None)


def answer(
    volume: np.ndarray,
    spacing_mm: Spacing,
    backend: Backend,
    step: Step = _silently,
    *,
    cancelled: Callable[[], bool] | None = None,
    batch_slices: int | None = None,
    mirror: bool = False,
) -> np.ndarray:
    """Kidney probability of every voxel of an axial volume.

    A model without a finder looks everywhere. With one, its finder does so on a coarse grid, and
    the model itself looks at the boxes around what that found, on a fine one; beyond them there is
    no kidney. What its views see there, along other axes, is averaged with that.

    Args:
        volume: (slices, rows, columns) in HU.
        step: entered with the name of each step, ``prepare``, ``find`` and ``predict``; gives what
            is told the share of it that is done.
        cancelled, batch_slices, mirror: see `predict`.

    Returns:
        uint8 array of the volume's shape with 0..255 for 0..1.

    Raises:
        Cancelled: ``cancelled()`` became true.
    """

    def ask(look: _Look, tell: Tell, prior: np.ndarray | None = None) -> _Seen:
        probability = predict(
            look.working, look.grid.spacing_mm[0], look.backend, tell, cancelled, batch_slices,
            mirror, prior,
        )  # fmt: skip
        return _Seen(probability, look.grid, look.view, look.where)

    finder, search = backend.finder, backend.model.search
    whole = _everything(volume)
    with step("prepare"):
        look = _Look.at(volume, whole, spacing_mm, finder or backend)
    with step("predict" if finder is None else "find") as tell:
        found = ask(look, tell)
        if finder is None or search is None:
            return found.in_full(volume.shape)
        boxes = find_regions(found.probability, found.grid, search)
    with step("predict") as tell:
        plans = _plans(boxes, volume.shape, spacing_mm, backend, search.wide)
        voxels = sum(volume[where].size for _, where, _ in plans)
        done = 0
        close: list[_Seen] = []
        around: list[_Seen] = []
        for which, where, whole_slices in plans:
            look = _Look.at(volume, where, spacing_mm, which, crop=whole_slices)
            prior = found.within(boxes).on(look) if which.model.network.prior else None
            share = volume[where].size / voxels
            seen = ask(look, _within(tell, done / voxels, share), prior)
            (around if whole_slices else close).append(seen)
            done += volume[where].size
    full = np.zeros(volume.shape, np.uint8)
    for seen in close:
        others = [other for other in around if other.holds(seen.where)]
        mean = seen.mean_with(others, found if search.blend else None, search.blend)
        full[seen.where] = mean.in_full(full[seen.where].shape)
    return full


def _everything(volume: np.ndarray) -> Box:
    first, second, third = (slice(0, length) for length in volume.shape)
    return first, second, third


def _plans(
    boxes: list[Box],
    shape: tuple[int, ...],
    spacing_mm: Spacing,
    backend: Backend,
    wide: bool,
) -> list[tuple[Backend, Box, bool]]:
    """What looks where, and whether at whole slices, the boxes themselves first."""
    plans = [(backend, box, False) for box in boxes]
    views = [*([backend] if wide else []), *backend.views]
    for which in views:
        view = which.model.preprocessing.view
        for where in sweeps(boxes, shape, VIEWS[view][0]):
            long_mm = (where[0].stop - where[0].start) * spacing_mm[0]
            if view == "axial" or long_mm >= _LEAST_OF_A_VIEW_MM:
                plans.append((which, where, True))
    return plans


@dataclass(frozen=True)
class _Look:
    """A part of a volume as a network is shown it.

    Attributes:
        where: the part, as a box of the axial volume.
        working: float32 (slices, rows, columns) of the network's view, scaled.
        grid: of these, in the part.
    """

    backend: Backend
    where: Box
    working: np.ndarray
    grid: WorkingGrid

    @property
    def view(self) -> str:
        return self.backend.model.preprocessing.view

    @classmethod
    def at(
        cls,
        volume: np.ndarray,
        where: Box,
        spacing_mm: Spacing,
        backend: Backend,
        crop: bool = True,
    ) -> _Look:
        """Bring a part onto the working grid; without ``crop`` none of its air is left out."""
        own: Preprocessing = backend.model.preprocessing
        preprocessing = replace(own, crop=own.crop and crop)
        part = in_view(volume[where], own.view)
        working, grid = to_working(part, spacing_in_view(spacing_mm, own.view), preprocessing)
        return cls(backend, where, scale(working, preprocessing), grid)


@dataclass(frozen=True)
class _Seen:
    """What a network answered for a part of a volume.

    Attributes:
        probability: floating point (slices, rows, columns) of its view, on the grid.
        where: the part, as a box of the axial volume.
    """

    probability: np.ndarray
    grid: WorkingGrid
    view: str
    where: Box

    @property
    def centres(self) -> list[np.ndarray]:
        """Of its voxels in the axial volume, along each axis of that."""
        within = dict(zip(VIEWS[self.view], self.grid.centres, strict=True))
        return [within[axis] + part.start for axis, part in enumerate(self.where)]

    def holds(self, box: Box) -> bool:
        return all(
            part.start <= other.start and other.stop <= part.stop
            for part, other in zip(self.where, box, strict=True)
        )

    def at(self, centres: Sequence[np.ndarray]) -> np.ndarray:
        """Its answer at other places of the axial volume, along each axis of that."""
        return interpolated(to_axial_order(self.probability, self.view), self.centres, centres)

    def mean_with(self, others: Sequence[_Seen], found: _Seen | None, blend: float) -> _Seen:
        """The mean of its answer and others', and of that with a finder's, on its own grid."""
        total = self.probability.astype(np.float32)
        for other in others:
            total += other.at(self.centres)
        total /= 1 + len(others)
        if found is not None:
            total *= 1 - blend
            total += blend * found.at(self.centres)
        return replace(self, probability=total)

    def within(self, boxes: Sequence[Box]) -> _Seen:
        """Its answer in some boxes, and nothing beyond them."""
        kept = np.zeros_like(self.probability)
        axial, whole = (to_axial_order(array, self.view) for array in (kept, self.probability))
        for box in boxes:
            inside = np.ix_(
                *(
                    np.flatnonzero((at >= part.start) & (at < part.stop))
                    for at, part in zip(self.centres, box, strict=True)
                )
            )
            axial[inside] = whole[inside]
        return replace(self, probability=kept)

    def on(self, look: _Look) -> np.ndarray:
        """Its answer on the grid of a look, float32."""
        places = _Seen(look.working, look.grid, look.view, look.where).centres
        return in_view(self.at(places), look.view)

    def in_full(self, shape: tuple[int, ...]) -> np.ndarray:
        """uint8, 0..255 for 0..1, on the part's own voxels, of this axial shape."""
        full = np.zeros(shape, np.uint8)
        turned = in_view(full, self.view)
        for index, values in back_to_full(self.probability, self.grid):
            turned[index] = values
        return full


def _within(tell: Tell, before: float, share: float) -> Tell:
    """Tells how much of the whole is done from how much of a part is."""
    return lambda done: tell(before + done * share)
