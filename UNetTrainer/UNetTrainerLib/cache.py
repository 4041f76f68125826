"""Cases on the model's working grid, made once and read memory-mapped.

A cached case is two files: HU as int16 and labels as uint8, both (slices, rows, columns). Its name
holds a digest of the source files' sizes and dates and of the preprocessing, so a change of either
makes a new one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import SimpleITK as sitk

from KidneySegLib.errors import InputError
from KidneySegLib.geometry import grid_difference, to_axial
from KidneySegLib.preprocess import Preprocessing, resample, to_working
from KidneySegLib.reading import read_ct
from KidneySegLib.writing import atomic
from UNetTrainerLib.cases import Case

LAYOUT = 1  # of the cached files; a change makes older ones unused
HU_RANGE = (-1024, 3071)


@dataclass(frozen=True)
class CachedCase:
    """A case whose arrays are opened on demand; ``spacing_mm`` is that of the working grid."""

    case: Case
    hu_file: Path
    labels_file: Path
    spacing_mm: tuple[float, float, float]
    slices: int
    kidney_slices: tuple[int, ...]

    def hu(self) -> np.ndarray:
        """Memory-mapped int16 HU of shape (slices, rows, columns)."""
        return np.load(self.hu_file, mmap_mode="r")

    def labels(self) -> np.ndarray:
        """Memory-mapped uint8 labels of the same shape."""
        return np.load(self.labels_file, mmap_mode="r")


def read_case(case: Case) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """Axial HU and labels of a case, and the spacing in mm (slice, row, column).

    A single slice in gray values is taken as HU from 0 to 255.

    Raises:
        InputError: an unreadable file, different grids, or labels that are not 0, 1, 2.
    """
    if case.pixel_mm is not None:
        image, mask = (_picture(path) for path in (case.image, case.labels))
        if image.shape != mask.shape:
            raise InputError(
                f"{case.labels} has {mask.shape} pixels but its image {image.shape}; pair them."
            )
        hu, labels = image[None], mask[None]
        spacing = (1.0, case.pixel_mm, case.pixel_mm)
    else:
        scan = read_ct(case.image)
        try:
            label_image = sitk.ReadImage(str(case.labels))
        except RuntimeError as error:
            raise InputError(f"{case.labels} cannot be read; copy the case again.") from error
        difference = grid_difference(scan.image, label_image)
        if difference:
            raise InputError(f"{case.labels} does not fit its imaging: {difference}.")
        hu, grid = to_axial(scan.image)
        labels, _ = to_axial(label_image)
        spacing = grid.spacing_mm
    found = np.unique(labels)
    if not np.isin(found, (0, 1, 2)).all():
        raise InputError(f"{case.labels} holds labels {found.tolist()} where 0, 1, 2 are known.")
    return hu, labels, spacing


def _picture(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as picture:
        array = np.asarray(picture)
    return array if array.ndim == 2 else array[..., 0]


def build_cache(
    cases: Sequence[Case],
    folder: Path,
    preprocessing: Preprocessing,
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> list[CachedCase]:
    """Bring every case onto the working grid, skipping those that are there already."""
    folder.mkdir(parents=True, exist_ok=True)
    done = 0
    cached: list[CachedCase] = []
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        for item in pool.map(lambda case: _cache_one(case, folder, preprocessing), cases):
            cached.append(item)
            done += 1
            if progress is not None:
                progress(done, len(cases))
    return cached


def _digest(case: Case, preprocessing: Preprocessing) -> str:
    facts: list[object] = [LAYOUT, case.pixel_mm, preprocessing.to_dict()]
    for path in (case.image, case.labels):
        status = path.stat()
        facts += [str(path.resolve()), status.st_size, status.st_mtime_ns]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _cache_one(case: Case, folder: Path, preprocessing: Preprocessing) -> CachedCase:
    stem = f"{case.source}-{case.name}-{_digest(case, preprocessing)}"
    facts_file = folder / f"{stem}.json"
    hu_file, labels_file = folder / f"{stem}.hu.npy", folder / f"{stem}.labels.npy"
    if not facts_file.is_file():  # written last, so its presence says the others are complete
        hu, labels, spacing_mm = read_case(case)
        working, grid = to_working(hu, spacing_mm, preprocessing)
        top, bottom, left, right = grid.box
        kidney = resample(labels > 0, grid)[:, top:bottom, left:right] >= 0.5
        tumour = resample(labels == 2, grid)[:, top:bottom, left:right] >= 0.5
        merged = kidney.astype(np.uint8) + (kidney & tumour)
        with atomic(hu_file) as temporary, open(temporary, "wb") as file:
            _save(file, np.clip(np.rint(working), *HU_RANGE).astype(np.int16))
        with atomic(labels_file) as temporary, open(temporary, "wb") as file:
            _save(file, merged)
        facts = {
            "spacing_mm": grid.spacing_mm,
            "slices": int(working.shape[0]),
            "kidney_slices": np.flatnonzero(merged.any((1, 2))).tolist(),
        }
        with atomic(facts_file) as temporary:
            Path(temporary).write_text(json.dumps(facts), encoding="utf-8")
    facts = json.loads(facts_file.read_text(encoding="utf-8"))
    slice_mm, row_mm, column_mm = facts["spacing_mm"]
    return CachedCase(
        case,
        hu_file,
        labels_file,
        (slice_mm, row_mm, column_mm),
        facts["slices"],
        tuple(facts["kidney_slices"]),
    )


def _save(file: BinaryIO, array: np.ndarray) -> None:
    np.save(file, array, allow_pickle=False)
