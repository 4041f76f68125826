"""One case read whole and checked: its voxels and its labels, as axial arrays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from KidneySegLib.errors import InputError
from KidneySegLib.geometry import AxialGrid, grid_difference, to_axial
from KidneySegLib.labelmaps import CYST
from KidneySegLib.reading import read_ct, read_label_values
from UNetTrainerLib.cases import Case
from UNetTrainerLib.pictures import read_mask, read_picture


@dataclass(frozen=True)
class Loaded:
    """A case in memory.

    Attributes:
        voxels: (slices, channels, rows, columns).
        labels: uint8 (slices, rows, columns); 0, 1 kidney, 2 tumour.
        spacing_mm: slice, row and column; all 1 for a picture whose spacing is not known.
        grid: of a volume's file.
        warnings: a sentence for each oddity of the imaging and the labels.
    """

    voxels: np.ndarray
    labels: np.ndarray
    spacing_mm: tuple[float, float, float]
    grid: AxialGrid | None = None
    warnings: tuple[str, ...] = ()


def read_case(
    case: Case, channels: int = 1
) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """Voxels, labels and spacing of a case; see `load`."""
    loaded = load(case, channels)
    return loaded.voxels, loaded.labels, loaded.spacing_mm


def load(case: Case, channels: int = 1) -> Loaded:
    """A case, HU for a volume and values as stored for a picture.

    Args:
        channels: that the network sees. Gray is repeated where it sees several; colours that are
            shades of gray become one.

    Returns:
        Arrays that may be read-only views.

    Raises:
        InputError: a missing, damaged or truncated file, different grids, other labels than 0, 1
            and 2 (in a volume also 3, a cyst), or other channels than asked for.
    """
    return _slice(case, channels) if case.is_slice else _volume(case, channels)


def _volume(case: Case, channels: int) -> Loaded:
    scan = read_ct(case.image)
    label_image = read_label_values(case.labels)
    difference = grid_difference(scan.image, label_image)
    if difference:
        raise InputError(
            f"{case.labels} lies on another grid than {case.image.name} ({difference}); copy both "
            "again, or resample the labels."
        )
    voxels, grid = to_axial(scan.image)
    labels, _ = to_axial(label_image)
    warnings = scan.warnings
    if labels.max() > 2:
        found = np.unique(labels).tolist()
        if found not in ([0, 1, CYST], [0, 1, 2, CYST]):
            raise InputError(
                f"{case.labels} holds the labels {', '.join(map(str, found))} where 0, 1 and 2 are "
                "known; renumber them."
            )
        labels = np.where(labels == CYST, 1, labels).astype(np.uint8)
        warnings += (f"label {CYST} counts as kidney: a cyst, as in KiTS21 and KiTS23.",)
    return Loaded(
        _with_channels(voxels[:, None], channels, case.image),
        labels,
        grid.spacing_mm,
        grid,
        warnings,
    )


def _slice(case: Case, channels: int) -> Loaded:
    picture, labels = read_picture(case.image), read_mask(case.labels)
    rows, columns = picture.shape[1:]
    if labels.shape != (rows, columns):
        raise InputError(
            f"{case.labels} has {labels.shape[1]} x {labels.shape[0]} pixels and its image "
            f"{columns} x {rows}; pair them again."
        )
    pixel_mm = case.pixel_mm or 1.0
    return Loaded(
        _with_channels(picture[None], channels, case.image),
        labels[None],
        (1.0, pixel_mm, pixel_mm),
    )


def _with_channels(voxels: np.ndarray, channels: int, path: Path) -> np.ndarray:
    """(slices, channels, rows, columns) with the channels that were asked for."""
    slices, stored, rows, columns = voxels.shape
    if stored == channels:
        return voxels
    if stored == 1:
        return np.broadcast_to(voxels, (slices, channels, rows, columns))
    if channels == 1 and (voxels == voxels[:, :1]).all():
        return voxels[:, :1]
    raise InputError(
        f"{path} is in colour, which --in-channels {channels} cannot show; train with "
        f"--in-channels {stored}."
    )
