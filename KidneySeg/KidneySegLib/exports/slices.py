"""A label map as pictures, one for each slice, and back.

A picture has one gray byte a pixel, and its value is the label: 0 background, 1 left kidney and so
on, as `slices.json` beside the pictures says; on a screen they are therefore nearly black. Pictures
show whole axial slices of the label map's grid, not resampled: rows from front to back, columns
from the patient's right to the left. They are numbered from 1 at the head.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from PIL import Image, UnidentifiedImageError

from KidneySegLib.errors import InputError, UsageError
from KidneySegLib.geometry import AxialGrid, from_axial, to_axial
from KidneySegLib.opening import ANOTHER_COPY
from KidneySegLib.writing import Segment, whole_folder, write_json

PICTURES = {"png": ".png", "tiff": ".tif"}
INDEX_FILE = "slices.json"
_HOW: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG"},
    "tiff": {"format": "TIFF", "compression": "tiff_adobe_deflate"},
}


def write_slices(
    labels: sitk.Image, folder: Path | str, segments: Sequence[Segment], picture: str = "png"
) -> int:
    """Write every slice of a label map as a picture, and `slices.json` that says what they are.

    Parameters
    ----------
    labels
        3-D uint8.
    folder
        New or empty.
    segments
        What the labels mean.
    picture
        "png" or "tiff"; both are compressed without loss.

    Returns
    -------
    How many pictures there are.

    Raises
    ------
    UsageError
        The folder holds something, or there is no such kind of picture.
    KidneySegError
        The folder cannot be written; nothing has changed then.
    """
    if picture not in PICTURES:
        raise UsageError(f"Slices are written as png or tiff and not as {picture}; choose one.")
    array, grid = to_axial(labels)
    digits = max(3, len(str(len(array))))
    files = [f"slice_{k + 1:0{digits}d}{PICTURES[picture]}" for k in range(len(array))]
    middle = [(extent - 1) / 2 for extent in grid.shape[1:]]
    z_mm = [float(grid.to_physical([k, *middle])[2]) for k in range(len(array))]
    index = {
        "values": {"0": "Background"} | {str(one.label): one.name for one in segments},
        "slices": [
            {"file": file, "z_mm": round(z, 4)} for file, z in zip(files, z_mm, strict=True)
        ],
        "axes": "slices from head to foot, rows from front to back, columns from right to left",
        "grid": {
            "size": grid.size,
            "spacing_mm": grid.spacing,
            "origin_mm_lps": grid.origin,
            "direction": grid.direction,
        },
    }
    with whole_folder(folder) as temporary:
        for file, values in zip(files, array, strict=True):
            Image.fromarray(np.ascontiguousarray(values)).save(temporary / file, **_HOW[picture])
        write_json(index, temporary / INDEX_FILE)
    return len(files)


def read_slices(folder: Path | str) -> sitk.Image:
    """The label map that `write_slices` wrote, on its grid to the bit; pictures may be corrected.

    Raises
    ------
    InputError
        `slices.json` or a picture is missing, damaged or of another size, or in colour.
    """
    folder = Path(folder)
    file = folder / INDEX_FILE
    if not file.is_file():
        raise InputError(f"{folder} holds no {INDEX_FILE}; give a folder that was exported.")
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
        stored = index["grid"]
        empty = sitk.Image([int(extent) for extent in stored["size"]], sitk.sitkUInt8)
        empty.SetSpacing([float(part) for part in stored["spacing_mm"]])
        empty.SetOrigin([float(part) for part in stored["origin_mm_lps"]])
        empty.SetDirection([float(part) for part in stored["direction"]])
        pictures = [folder / Path(one["file"]).name for one in index["slices"]]
    except (ValueError, KeyError, TypeError, RuntimeError, OSError) as error:
        raise InputError(f"{file} is damaged; {ANOTHER_COPY}.") from error
    grid = AxialGrid.of(empty)
    if len(pictures) != grid.shape[0]:
        raise InputError(
            f"{file} names {len(pictures)} slices and its grid has {grid.shape[0]}; {ANOTHER_COPY}."
        )
    labels = np.empty(grid.shape, np.uint8)
    for values, path in zip(labels, pictures, strict=True):
        values[:] = _values(path, (grid.shape[1], grid.shape[2]))
    return from_axial(labels, grid)


def names_in(folder: Path | str) -> list[str]:
    """What `slices.json` calls the labels; none where it does not tell.

    Raises
    ------
    InputError
        It is damaged.
    """
    file = Path(folder) / INDEX_FILE
    try:
        return [
            str(name) for name in json.loads(file.read_text(encoding="utf-8"))["values"].values()
        ]
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise InputError(f"{file} is damaged; {ANOTHER_COPY}.") from error


def _values(path: Path, shape: tuple[int, int]) -> np.ndarray:
    if not path.is_file():
        raise InputError(f"{path} is missing; export the slices again.")
    try:
        with Image.open(path) as picture:
            values, mode = np.asarray(picture), picture.mode
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{path} cannot be read, it is damaged; {ANOTHER_COPY}.") from error
    if mode not in ("L", "P", "1"):
        raise InputError(
            f"{path} has colours or more than 8 bits; save it as 8-bit gray values that are labels."
        )
    if values.shape != shape:
        raise InputError(
            f"{path} has {values.shape[1]} x {values.shape[0]} pixels and its slice "
            f"{shape[1]} x {shape[0]}; save it in its full size."
        )
    return values
