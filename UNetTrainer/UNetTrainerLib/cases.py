"""Find labelled cases and split them by patient."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from KidneySegLib.errors import InputError
from KidneySegLib.volumes import IMAGING

SEGMENTATION = "segmentation"
PATIENT_COLUMNS = ("patient", "kits19_case", "case")


@dataclass(frozen=True)
class Case:
    """One labelled volume, or one labelled slice.

    Attributes:
        name: unique within its source.
        patient: cases of one patient never part.
        source: name of the data folder it came from.
        image, labels: files; labels hold 0 background, 1 kidney, 2 tumour.
        pixel_mm: pixel spacing of a single slice; None for a volume, whose file says it.
    """

    name: str
    patient: str
    source: str
    image: Path
    labels: Path
    pixel_mm: float | None = None

    @property
    def is_slice(self) -> bool:
        return self.pixel_mm is not None


def find_cases(folders: Iterable[Path | str]) -> list[Case]:
    """Cases of every folder: KiTS19 case folders, or ``images`` and ``masks`` with ``index.csv``.

    Raises:
        InputError: a folder is missing or holds no case, with what was looked for.
    """
    cases: list[Case] = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise InputError(f"There is no folder {folder}; give the folder that holds the cases.")
        found = _slices(folder) if (folder / "images").is_dir() else _volumes(folder)
        if not found:
            raise InputError(
                f"No case was found in {folder}; looked for case folders with {IMAGING[0]} and "
                f"{SEGMENTATION}.nii.gz, and for images/ beside masks/ and index.csv."
            )
        cases += found
    return cases


def _volumes(folder: Path) -> list[Case]:
    cases = []
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        for imaging in IMAGING:
            labels = inner / imaging.replace("imaging", SEGMENTATION)
            if (inner / imaging).is_file() and labels.is_file():
                cases.append(Case(inner.name, inner.name, folder.name, inner / imaging, labels))
                break
    return cases


def _slices(folder: Path) -> list[Case]:
    index = folder / "index.csv"
    if not index.is_file():
        raise InputError(f"{folder} has images/ but no index.csv with name and pixel_spacing_mm.")
    with index.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    cases = []
    for row in rows:
        name = row["name"].removesuffix(".png")
        image, labels = (folder / kind / f"{name}.png" for kind in ("images", "masks"))
        for path in (image, labels):
            if not path.is_file():
                raise InputError(f"{path} is missing though {index} lists it.")
        column = next((c for c in PATIENT_COLUMNS if row.get(c)), None)
        patient = row[column] if column else re.sub(r"_slice.*", "", name)
        cases.append(
            Case(
                name,
                f"{folder.name}/{patient}",
                folder.name,
                image,
                labels,
                float(row["pixel_spacing_mm"]),
            )
        )
    return cases


def folds_by_patient(cases: Sequence[Case], folds: int, seed: int) -> dict[str, int]:
    """Fold of every patient; each source is spread evenly over the folds.

    Raises:
        InputError: fewer patients than folds.
    """
    fold_of: dict[str, int] = {}
    for source in sorted({case.source for case in cases}):
        patients = sorted({case.patient for case in cases if case.source == source})
        first = len(fold_of)
        order = np.random.default_rng(seed).permutation(len(patients))
        for place, patient in enumerate(order):
            fold_of[patients[patient]] = (first + place) % folds
    if len(fold_of) < folds:
        raise InputError(
            f"{len(fold_of)} patients cannot be split into {folds} folds; add cases or use fewer."
        )
    return fold_of
