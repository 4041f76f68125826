"""Masks as run lengths, as in the Kaggle ultrasound nerve segmentation competition, and back.

A table has the columns ``img`` and ``pixels`` and one row for each axial slice, numbered from 1 at
the head. ``pixels`` holds pairs of numbers, the first pixel of a run and its length; pixels are
counted from 1, down the first column, then down the next. It is empty for a slice without any.
(https://www.kaggle.com/c/ultrasound-nerve-segmentation, page Evaluation.)
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from KidneySegLib.errors import InputError
from KidneySegLib.exports.labels import STRUCTURES
from KidneySegLib.geometry import AxialGrid, from_axial, to_axial
from KidneySegLib.opening import ANOTHER_COPY
from KidneySegLib.writing import Segment, atomic, whole_folder

COLUMNS = ("img", "pixels")
SUFFIX = ".csv"


def encode(mask: np.ndarray) -> str:
    """Run lengths of the pixels that are not 0.

    Parameters
    ----------
    mask
        Array of shape (rows, columns).

    >>> encode(np.array([[0, 1], [1, 1], [1, 0]]))
    '2 4'
    """
    inside = np.pad(np.asarray(mask).ravel(order="F") != 0, 1).astype(np.int8)
    edges = np.flatnonzero(np.diff(inside)).reshape(-1, 2)  # first pixel, and first one behind
    return " ".join(f"{first + 1} {behind - first}" for first, behind in edges.tolist())


def decode(text: str, shape: tuple[int, int]) -> np.ndarray:
    """The mask of run lengths, bool of shape (rows, columns).

    Raises
    ------
    ValueError
        The text is not made of pairs of whole numbers, or a run leaves the picture or meets
        another one.
    """
    numbers = [int(word) for word in text.split()]
    if len(numbers) % 2:
        raise ValueError("a run has no length")
    mask = np.zeros(shape[0] * shape[1], bool)
    for first, length in zip(numbers[::2], numbers[1::2], strict=True):
        if first < 1 or length < 1 or first - 1 + length > mask.size:
            raise ValueError(f"the run {first} {length} leaves a picture of {mask.size} pixels")
        run = mask[first - 1 : first - 1 + length]
        if run.any():
            raise ValueError(f"the run {first} {length} meets another one")
        run[:] = True
    return mask.reshape(shape, order="F")


def write_run_lengths(labels: sitk.Image, path: Path | str) -> None:
    """Write all labels of a map together as one table.

    Raises
    ------
    KidneySegError
        The file cannot be written; nothing has changed then.
    """
    array, _ = to_axial(labels)
    with atomic(path) as temporary, temporary.open("w", newline="", encoding="ascii") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows((k + 1, encode(mask)) for k, mask in enumerate(array))


def write_run_length_folder(
    labels: sitk.Image, folder: Path | str, segments: Sequence[Segment]
) -> list[str]:
    """Write a table for each structure, called after it, such as `left_kidney.csv`.

    Parameters
    ----------
    folder
        New or empty.

    Returns
    -------
    The names of the files.

    Raises
    ------
    UsageError
        The folder holds something.
    KidneySegError
        The folder cannot be written; nothing has changed then.
    """
    files = [one.id + SUFFIX for one in segments]
    with whole_folder(folder) as temporary:
        for file, one in zip(files, segments, strict=True):
            write_run_lengths(labels == one.label, temporary / file)
    return files


def read_run_lengths(path: Path | str, like: sitk.Image) -> sitk.Image:
    """The label map that was written, exactly.

    Parameters
    ----------
    path
        A table, whose mask becomes label 1; or a folder of `write_run_length_folder`, whose
        structures get their labels (1 left kidney, 2 right kidney; 1 kidney, 2 tumour).
    like
        An image on the grid of the label map, such as its CT.

    Raises
    ------
    InputError
        There is no such table, it is damaged, or made of other slices.
    """
    path = Path(path)
    grid = AxialGrid.of(like)
    if not path.is_dir():
        return from_axial(_read_table(path, grid), grid)
    tables = {file: STRUCTURES.get(file.stem) for file in sorted(path.glob(f"*{SUFFIX}"))}
    known = [(file, one) for file, one in tables.items() if one is not None]
    if not known:
        raise InputError(
            f"{path} holds none of {', '.join(name + SUFFIX for name in STRUCTURES)}; give a "
            "folder that was exported."
        )
    labels = np.zeros(grid.shape, np.uint8)
    for file, one in known:
        mask = _read_table(file, grid)
        if labels[mask].any():
            raise InputError(f"{file} overlaps another table of {path}; export them again.")
        labels[mask] = one.label
    return from_axial(labels, grid)


def tables_in(folder: Path | str) -> list[str]:
    """The structures that have a table in a folder, as their tables are called."""
    return [file.stem for file in sorted(Path(folder).glob(f"*{SUFFIX}"))]


def _read_table(path: Path, grid: AxialGrid) -> np.ndarray:
    """The mask of a table as a bool axial array."""
    slices, *shape = grid.shape
    mask = np.zeros(grid.shape, bool)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise InputError(f"{path} cannot be opened ({error.strerror}); check the path.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a table of run lengths; {ANOTHER_COPY}.") from error
    # Nothing in such a table needs quotes, but programs that save it again may add some.
    rows = [tuple(line.replace('"', "").strip().split(",")) for line in lines if line.strip()]
    if not rows or rows[0] != COLUMNS:
        raise InputError(f"{path} has no columns img and pixels; give a table of run lengths.")
    del rows[0]
    if [row[0] for row in rows] != [str(k + 1) for k in range(slices)]:
        raise InputError(
            f"{path} has {len(rows)} rows, which are not the slices 1 to {slices} of the CT; give "
            "the CT it was exported for."
        )
    for k, (_, *runs) in enumerate(rows):
        try:
            mask[k] = decode(" ".join(runs), (shape[0], shape[1]))
        except ValueError as error:
            raise InputError(
                f"{path}: slice {k + 1} cannot be read ({error}); give the CT it was exported for, "
                "or export it again."
            ) from error
    return mask
