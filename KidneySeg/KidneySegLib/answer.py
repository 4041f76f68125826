"""A model's answer for an axial volume: everywhere, or closely where its finder found something."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np

from KidneySegLib.predict import TorchBackend, predict
from KidneySegLib.preprocess import (
    WorkingGrid,
    back_to_full,
    resample,
    scale,
    to_working,
)
from KidneySegLib.regions import Box, find_regions, slabs

Tell = Callable[[float], None]
Step = Callable[[str], AbstractContextManager[Tell]]


def _silently(name: str) -> AbstractContextManager[Tell]:
    return nullcontext(lambda share: None)


def answer(
    volume: np.ndarray,
    spacing_mm: tuple[float, float, float],
    backend: TorchBackend,
    step: Step = _silently,
    *,
    cancelled: Callable[[], bool] | None = None,
    batch_slices: int | None = None,
    mirror: bool = False,
) -> np.ndarray:
    """Kidney probability of every voxel of an axial volume.

    A model without a finder looks everywhere. With one, its finder does so on a coarse grid, and
    the model itself looks at the boxes around what that found, on a fine one; beyond them there is
    no kidney.

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
    finder, search = backend.finder, backend.model.search
    first = finder or backend
    with step("prepare"):
        working, grid = to_working(volume, spacing_mm, first.model.preprocessing)
        scale(working, first.model.preprocessing)
    with step("predict" if finder is None else "find") as tell:
        probability = predict(
            working, grid.spacing_mm[0], first, tell, cancelled, batch_slices, mirror
        )
        full = np.zeros(volume.shape, np.uint8)
        _spread(probability, grid, full)
        if finder is None or search is None:
            return full
        boxes = find_regions(probability, grid, search)
        del working, probability
    with step("predict") as tell:
        coarse = [full[box].copy() for box in boxes]
        full[:] = 0
        looks = [(box, False) for box in boxes]
        if search.wide:
            looks += [(slab, True) for slab in slabs(boxes, volume.shape)]
        voxels = sum(volume[where].size for where, _ in looks)
        done = 0
        for where, wide in looks:
            part = volume[where]
            preprocessing = replace(backend.model.preprocessing, crop=wide)
            working, grid = to_working(part, spacing_mm, preprocessing)
            prior = None
            if backend.model.network.prior:
                prior = prior_on(_seen(boxes, coarse, where, volume.shape), grid)
            probability = predict(
                scale(working, preprocessing),
                grid.spacing_mm[0],
                backend,
                _within(tell, done / voxels, part.size / voxels),
                cancelled,
                batch_slices,
                mirror,
                prior,
            )
            if not wide:
                _spread(probability, grid, full[where])
            else:
                other = np.zeros(part.shape, np.uint8)
                _spread(probability, grid, other)
                first = where[0].start
                for box in boxes:
                    if first <= box[0].start < where[0].stop:
                        inside = slice(box[0].start - first, box[0].stop - first)
                        _blend(full[box], other[inside, box[1], box[2]], 0.5)
            done += part.size
        if search.blend:
            for box, known in zip(boxes, coarse, strict=True):
                _blend(full[box], known, search.blend)
    return full


def _blend(answer: np.ndarray, other: np.ndarray, share: float) -> None:
    """A weighted mean of two uint8 arrays, in place of the first, slice by slice."""
    for here, there in zip(answer, other, strict=True):
        mean = (1 - share) * here.astype(np.float32) + share * there
        here[:] = np.rint(mean)


def _within(tell: Tell, before: float, share: float) -> Tell:
    """Tells how much of the whole is done from how much of a part is."""
    return lambda done: tell(before + done * share)


def _seen(
    boxes: list[Box], coarse: list[np.ndarray], where: Box, shape: tuple[int, ...]
) -> np.ndarray:
    """What the finder answered there, within the boxes."""
    whole = np.zeros(shape, np.uint8)
    for box, known in zip(boxes, coarse, strict=True):
        whole[box] = known
    return whole[where]


def prior_on(coarse: np.ndarray, grid: WorkingGrid) -> np.ndarray:
    """A finder's answer, uint8 on an axial grid, as the channel of a network: float32, 0..1."""
    top, bottom, left, right = grid.box
    return resample(coarse, grid)[:, top:bottom, left:right] / np.float32(255)


def _spread(probability: np.ndarray, grid: WorkingGrid, full: np.ndarray) -> None:
    for index, values in back_to_full(probability, grid):
        full[index] = values
