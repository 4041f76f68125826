"""Prepared cases for the tests of what draws from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from UNetTrainerLib.cache import CachedCase
from UNetTrainerLib.cases import Case

AIR, TISSUE, KIDNEY_HU = -1000, 40, 180


def prepared(
    folder: Path,
    name: str = "a",
    shape: tuple[int, int, int] = (9, 48, 64),
    channels: int = 1,
    labelled: Sequence[int] = (3, 4, 5),
    **facts: Any,
) -> CachedCase:
    """A prepared case of noise with a square kidney that holds a tumour."""
    rng = np.random.default_rng(len(name))
    slices, rows, columns = shape
    labels = np.zeros(shape, np.uint8)
    labels[list(labelled), rows // 4 : rows // 2, columns // 4 : columns // 2] = 1
    labels[list(labelled), rows // 4 + 3 : rows // 4 + 6, columns // 4 + 3 : columns // 4 + 6] = 2
    voxels = rng.integers(TISSUE - 20, TISSUE + 20, (slices, channels, rows, columns))
    voxels = np.where(labels[:, None] > 0, KIDNEY_HU, voxels).astype(np.int16)
    voxels[:, :, 0, 0] = AIR
    for kind, array in (("voxels", voxels), ("labels", labels)):
        np.save(folder / f"{name}.{kind}.npy", array)
    known: dict[str, Any] = {
        "case": Case(name, name, "s", Path(), Path()),
        "spacing_mm": (3.0, 1.6, 1.6),
        "labelled_slices": tuple(labelled),
        "label_counts": tuple(np.bincount(labels.ravel(), minlength=3).tolist()),
        "value_range": (float(voxels.min()), float(voxels.max())),
        "fill": AIR,
        "hu_unit": 1.0,
    }
    files = folder / f"{name}.voxels.npy", folder / f"{name}.labels.npy"
    return CachedCase(
        voxels_file=files[0], labels_file=files[1], slices=slices, channels=channels,
        shape=(rows, columns), **{**known, **facts},
    )  # fmt: skip
