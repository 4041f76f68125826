"""Find labelled cases and split them by patient.

A data folder holds KiTS19 case folders, or ``images`` beside ``masks``, or both.

Who is a patient. Cases of one patient never part, since a patient on both sides of a split flatters
every score. A case folder is a patient of the folder's name. A picture's patient stands in
``index.csv`` (columns ``patient``, ``kits19_case`` or ``case``), or is told from its name by the
first of these rules that applies:

1. a word for patient with its number: ``patient07_frame_003`` is of ``patient07``,
   ``003-subject-2`` of ``subject-2``, ``case_00025_slice_0060`` of ``case_00025``;
2. what stands before ``_slice``: ``anna_slice_top`` is of ``anna``;
3. what is left without a number at the end and a word for frame before it: ``anna_frame_003`` and
   ``anna_004`` are of ``anna``; where nothing is left, as of ``0001`` and ``frame_12``, all such
   pictures of a folder are of one patient;
4. the whole name.

``case_00025`` is one patient wherever it comes from, as a volume or as slices; every other name
counts within its own data folder only, and so does every name of generated cases, whose folder
holds ``phantoms.json``.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from KidneySegLib.errors import InputError, UsageError
from KidneySegLib.phantom import MARK
from KidneySegLib.volumes import IMAGING
from KidneySegLib.writing import write_json

SEGMENTATION = tuple(name.replace("imaging", "segmentation") for name in IMAGING)
PICTURES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
MASK_ENDINGS = ("", "_mask", "_segmentation")
PATIENT_COLUMNS = ("patient", "kits19_case", "case")


UNUSABLE, NOTE = "unusable", "note"

# KiTS19: the training cases with labels, of which the U-Net that was published trained on the
# first 160 and validated from 161 on; 210 to 299 came out as a test set without labels.
KITS19_FIRST_VALIDATING = 161
KITS19_LABELLED = range(210)
KITS19_TEST = range(210, 300)

_KITS19_NAME = re.compile(r"case_(\d{5})")
_PATIENT_WORD = re.compile(
    r"(?:^|(?<=[^a-z]))(?:patient|subject|case|subj|sub|pat)[_\-. ]?\d+", re.IGNORECASE
)
_BEFORE_SLICE = re.compile(r"^(.+?)[_\-. ]slice", re.IGNORECASE)
_FRAME_NUMBER = re.compile(
    r"(?:(?:^|(?<=[^a-z]))(?:frame|image|img|slice|page|plane|z|t)[_\-. ]?)?\d+$", re.IGNORECASE
)


@dataclass(frozen=True)
class Case:
    """One labelled volume, or one labelled slice.

    Attributes:
        name: unique within its source.
        patient: cases of one patient never part; unique over all sources.
        source: name of the data folder it came from.
        image, labels: files; labels hold 0 background, 1 kidney, 2 tumour.
        pixel_mm: pixel spacing of a single slice; None where it is not known, and for a volume,
            whose file says it.
        is_slice: whether it is a picture and no volume.
        guessed: whether the patient of a picture is told from its name alone.
    """

    name: str
    patient: str
    source: str
    image: Path
    labels: Path
    pixel_mm: float | None = None
    is_slice: bool = False
    guessed: bool = False


@dataclass(frozen=True)
class Incomplete:
    """What looks like a case and lacks a part of it; ``severity`` is ``unusable`` or ``note``."""

    name: str
    source: str
    sentence: str
    severity: str = UNUSABLE


@dataclass(frozen=True)
class Split:
    """Who trains and who validates; no patient does both."""

    training: tuple[Case, ...]
    validation: tuple[Case, ...]


def find_cases(folders: Iterable[Path | str]) -> list[Case]:
    """The complete cases of every folder; see `find_everything`.

    Raises:
        InputError: as there, and where no case is complete.
        UsageError: as there.
    """
    cases, incomplete = find_everything(folders)
    if not cases:
        first = incomplete[0]
        raise InputError(f"No case is complete: {first.name} {first.sentence}")
    return cases


def find_everything(folders: Iterable[Path | str]) -> tuple[list[Case], list[Incomplete]]:
    """Cases of every folder, and what lacks a part of one.

    A folder holds case folders (``imaging.nii.gz`` with ``segmentation.nii.gz``), or ``images``
    with ``masks``; it may also be a case folder itself, or hold all that in ``data``, as KiTS19's
    repository does.

    Raises:
        InputError: a folder is missing or holds no case, with what was looked for; an
            ``index.csv`` that cannot be used.
        UsageError: a folder is given twice, also as a part of another one.
    """
    paths = [Path(folder) for folder in folders]
    cases: list[Case] = []
    incomplete: list[Incomplete] = []
    seen: dict[Path, int] = {}
    for place, (folder, source) in enumerate(zip(paths, _source_names(paths), strict=True)):
        if not folder.is_dir():
            raise InputError(f"There is no folder {folder}; give the folder that holds the cases.")
        found, missing = _in_folder(folder, source)
        if not found and not missing and (folder / "data").is_dir():
            found, missing = _in_folder(folder / "data", source)
        if not found and not missing:
            raise InputError(
                f"No case was found in {folder}; looked for case folders with {IMAGING[0]} and "
                f"{SEGMENTATION[0]}, and for images/ and masks/ with {', '.join(PICTURES)}."
            )
        for case in found:
            first = seen.setdefault(case.image.resolve(), place)
            if first != place:
                raise UsageError(
                    f"{case.image} is found twice, in {paths[first]} and in {folder}; give one of "
                    "the two."
                )
        cases += found
        incomplete += missing
    return cases, incomplete


def _named_by(folder: Path) -> Path:
    """The folder that a source is called after: above a single case, and above ``data``."""
    if _is_case(folder):
        folder = folder.parent
    return folder.parent if folder.name == "data" and folder.parent.name else folder


def _is_case(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (*IMAGING, *SEGMENTATION))


def _source_names(folders: Sequence[Path]) -> list[str]:
    """The folders' names; where two share one, with that of the folder they lie in."""
    roots = [_named_by(folder.resolve()) for folder in folders]
    shared = Counter(root.name for root in set(roots))
    names: dict[Path, str] = {}
    for root in roots:
        name = root.name if shared[root.name] == 1 else f"{root.parent.name}-{root.name}"
        taken = set(names.values()) - {names.get(root)}
        names.setdefault(root, f"{name}-{len(names) + 1}" if name in taken else name)
    return [names[root] for root in roots]


def _in_folder(folder: Path, source: str) -> tuple[list[Case], list[Incomplete]]:
    found = [*_volumes(folder, source)]
    if (folder / "images").is_dir() or (folder / "masks").is_dir():
        found += _pictures(folder, source)
    cases = [one for one in found if isinstance(one, Case)]
    return cases, [one for one in found if isinstance(one, Incomplete)]


def _volumes(folder: Path, source: str) -> Iterator[Case | Incomplete]:
    for inner in [folder] if _is_case(folder) else _inside(folder, Path.is_dir):
        real = inner.resolve()
        name, generated = real.name, (real.parent / MARK).is_file()
        imaging, labels = (
            next((inner / file for file in files if os.path.isfile(inner / file)), None)
            for files in (IMAGING, SEGMENTATION)
        )
        if imaging and labels:
            patient = f"{source}/{name}" if generated else _patient_id(source, name)
            yield Case(name, patient, source, imaging, labels)
        elif not labels and _kits19_number(name) in KITS19_TEST:
            sentence = f"is a test case of KiTS19 and has no {SEGMENTATION[0]}."
            yield Incomplete(name, source, sentence, NOTE)
        elif imaging:
            yield Incomplete(name, source, f"has no {SEGMENTATION[0]}; add it.")
        elif labels:
            yield Incomplete(
                name, source, f"has no {IMAGING[0]}; download the imaging, which is kept apart."
            )
        elif name.startswith("case_"):
            yield Incomplete(
                name, source, f"holds neither {IMAGING[0]} nor {SEGMENTATION[0]}; download both."
            )


def _pictures(folder: Path, source: str) -> Iterator[Case | Incomplete]:
    images, ambiguous = _by_stem(folder / "images")
    masks, ambiguous_masks = _by_stem(folder / "masks")
    index = folder / "index.csv"
    rows = _read_index(index) if index.is_file() else None
    used: set[str] = set()
    for stem in sorted({*images, *(rows or ())}):
        masked = [stem + ending for ending in MASK_ENDINGS if stem + ending in masks]
        used |= set(masked)
        if rows is not None and stem not in rows:
            yield Incomplete(stem, source, "is not listed in index.csv.", NOTE)
            continue
        row = {} if rows is None else rows[stem]
        several = ambiguous.get(stem, [])
        if len(masked) > 1 or any(name in ambiguous_masks for name in masked):
            several = [file for n in masked for file in ambiguous_masks.get(n, [masks[n].name])]
        if stem not in images:
            yield Incomplete(stem, source, f"is listed in {index.name} but not in images/; add it.")
        elif several:
            yield Incomplete(stem, source, f"is the name of {listed(several)}; keep one of them.")
        elif not masked:
            yield Incomplete(
                stem, source, f"has no mask; add masks/{stem}.png, all 0 where there is no kidney."
            )
        else:
            told = _patient_of_row(row, source)
            yield Case(
                stem,
                told or _patient_id(source, patient_in(stem)),
                source,
                images[stem],
                masks[masked[0]],
                _pixel_mm(row, index),
                is_slice=True,
                guessed=told is None,
            )
    for stem in sorted(set(masks) - used):
        yield Incomplete(stem, source, f"is a mask without an image; add images/{stem}.png.")


def _by_stem(folder: Path) -> tuple[dict[str, Path], dict[str, list[str]]]:
    """Pictures by their name without suffix, and the files that share one."""
    found: dict[str, Path] = {}
    ambiguous: dict[str, list[str]] = {}
    for path in _inside(folder, Path.is_file) if folder.is_dir() else ():
        if path.suffix.lower() in PICTURES:
            first = found.setdefault(path.stem, path)
            if first is not path:
                ambiguous.setdefault(path.stem, [first.name]).append(path.name)
    return found, ambiguous


def _inside(folder: Path, kind: Callable[[Path], bool]) -> list[Path]:
    try:
        inside = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(
            f"{folder} cannot be opened ({error.strerror}); check its permissions."
        ) from error
    return [path for path in inside if not path.name.startswith(".") and kind(path)]


def _read_index(index: Path) -> dict[str, dict[str, str]]:
    """Rows of ``index.csv`` by picture.

    A byte order mark, semicolons or tabs, and columns in capitals or after a space are understood.
    """
    try:
        text = index.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(
            f"{index} cannot be opened ({error.strerror}); check its permissions."
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{index} is not UTF-8; save it as CSV in UTF-8.") from error
    header = text.split("\n", 1)[0]
    delimiter = next((sign for sign in ",;\t" if sign in header), ",")
    try:
        table = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        table.fieldnames = [column.strip().lower() for column in table.fieldnames or ()]
        lines = list(table)
    except csv.Error as error:
        raise InputError(f"{index} is damaged ({error}); save it as CSV again.") from error
    rows: dict[str, dict[str, str]] = {}
    for row in lines:
        name = (row.get("name") or "").strip()
        if not name:
            raise InputError(f"{index} has a row without a name; add a column name, filled in.")
        suffix = Path(name).suffix
        name = name.removesuffix(suffix) if suffix.lower() in PICTURES else name
        if name in rows:
            raise InputError(f"{index} lists {name} twice; keep one of the rows.")
        rows[name] = {key: (row.get(key) or "").strip() for key in row if key is not None}
    return rows


def _pixel_mm(row: dict[str, str], index: Path) -> float | None:
    text = row.get("pixel_spacing_mm", "")
    if not text:
        return None
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        value = np.nan
    if not 0 < value < np.inf:
        raise InputError(
            f"{index} has the pixel_spacing_mm {text} for {row['name']}; give mm, or nothing where "
            "it is not known."
        )
    return value


def _patient_of_row(row: dict[str, str], source: str) -> str | None:
    column = next((column for column in PATIENT_COLUMNS if row.get(column)), None)
    if column is None:
        return None
    patient = row[column]
    if column == "kits19_case" and patient.isdecimal():
        patient = f"case_{int(patient):05d}"
    return _patient_id(source, patient)


def _patient_id(source: str, patient: str) -> str:
    return patient if _KITS19_NAME.fullmatch(patient) else f"{source}/{patient or 'unknown'}"


def patient_in(name: str) -> str:
    """The patient that a picture's name tells, by the rules at the top of this file."""
    word = _PATIENT_WORD.search(name)
    if word:
        return word[0]
    before = _BEFORE_SLICE.match(name)
    if before:
        return before[1]
    return _FRAME_NUMBER.sub("", name).rstrip("_-. ")


def _kits19_number(name: str) -> int:
    """Of a case or patient; -1 for a name that is none of KiTS19."""
    match = _KITS19_NAME.fullmatch(name)
    return int(match[1]) if match else -1


def split_cases(cases: Sequence[Case], split: str, folds: int, fold: int) -> Split:
    """Who trains and who validates.

    Args:
        split: ``folds``; ``kits19`` for cases 0 to 160 and 161 to 209 (as published but for case
            160, which was dropped for its size and trains here); or a file that `write_split`
            wrote.
        folds: parts for ``folds``; 0 trains on all.
        fold: the part that validates.

    Raises:
        InputError: too few patients, or patients that the split does not place.
        UsageError: ``split`` is none of these, or there is no such fold.
    """
    if split == "kits19":
        return _parted(cases, _kits19_validation(cases))
    if split != "folds":
        return _parted(cases, _validation_in(Path(split), cases))
    if folds == 0:
        return Split(tuple(cases), ())
    if not 0 <= fold < folds:
        raise UsageError(f"There is no fold {fold} of {folds}; give 0 to {folds - 1}.")
    fold_of = folds_by_patient(cases, folds, seed=0)
    return _parted(cases, {patient for patient, number in fold_of.items() if number == fold})


def write_split(split: Split, path: Path | str) -> None:
    """Write the patients of a split as JSON, for `split_cases` to read.

    Raises:
        KidneySegError: it cannot be written; nothing has changed then.
    """
    write_json(
        {
            part: sorted({case.patient for case in cases})
            for part, cases in (("training", split.training), ("validation", split.validation))
        },
        path,
    )


def person(case: Case) -> str:
    """Who a case is of, also beside cases that were found apart from it.

    Sources are told apart only among folders that were found together, so this has their paths.
    """
    if _KITS19_NAME.fullmatch(case.patient):
        return case.patient
    own = case.patient.removeprefix(f"{case.source}/")
    return str(case.image.parent.parent.resolve() / own)


def check_extra(extra: Sequence[Case], validation: Sequence[Case]) -> None:
    """Make sure that nobody who validates trains as an extra case.

    Raises:
        UsageError: somebody does; the first of them, and what to do.
    """
    people = {person(case) for case in validation}
    files = {case.image.resolve() for case in validation}
    for case in extra:
        if person(case) in people or case.image.resolve() in files:
            raise UsageError(
                f"{case.image} in --extra is of {case.patient}, who validates and must not train; "
                "give its folder with --data, where no patient is parted, or rename the case if it "
                "is of somebody else, as a generated one is."
            )


def _parted(cases: Sequence[Case], validating: set[str]) -> Split:
    parts: tuple[list[Case], list[Case]] = ([], [])
    for case in cases:
        parts[case.patient in validating].append(case)
    return Split(tuple(parts[0]), tuple(parts[1]))


def folds_by_patient(cases: Sequence[Case], folds: int, seed: int) -> dict[str, int]:
    """Fold of every patient; each source is spread evenly over the folds.

    A patient of several sources counts with the first of them, by name.

    Raises:
        InputError: fewer patients than folds.
    """
    fold_of: dict[str, int] = {}
    for source in sorted({case.source for case in cases}):
        patients = sorted({case.patient for case in cases if case.source == source} - set(fold_of))
        first = len(fold_of)
        order = np.random.default_rng(seed).permutation(len(patients))
        for place, patient in enumerate(order):
            fold_of[patients[patient]] = (first + place) % folds
    if len(fold_of) == 1:
        raise InputError(
            f"All cases are of one patient ({next(iter(fold_of))}), who cannot be split; add "
            f"patients, {_NAME_THEM}or train on all with --folds 0."
            if any(case.is_slice for case in cases)
            else f"There is one patient only ({next(iter(fold_of))}), who cannot be split; add "
            "patients, or train on all with --folds 0."
        )
    if len(fold_of) < folds:
        raise InputError(
            f"{len(fold_of)} patients cannot be split into {folds} folds; add cases or give "
            f"--folds {len(fold_of)}."
        )
    return fold_of


_NAME_THEM = "name them in a column patient of index.csv, "


def _kits19_validation(cases: Sequence[Case]) -> set[str]:
    others = sorted({c.patient for c in cases if _kits19_number(c.patient) not in KITS19_LABELLED})
    if others:
        raise InputError(
            f"--split kits19 needs KiTS19's numbers 0 to 209, which {listed(others)} "
            f"{'lacks' if len(others) == 1 else 'lack'}; use --split folds."
        )
    patients = {case.patient for case in cases}
    validating = {p for p in patients if _kits19_number(p) >= KITS19_FIRST_VALIDATING}
    if not validating or validating == patients:
        lacking = "161 to 209" if not validating else "0 to 160"
        raise InputError(
            f"--split kits19 needs a case from {lacking}, and there is none; add one or use "
            "--split folds."
        )
    return validating


def read_split(path: Path) -> tuple[set[str], set[str]]:
    """The patients who train and those who validate, as `write_split` wrote them.

    Raises:
        InputError: it holds something else.
        UsageError: there is no such file.
    """
    if not path.is_file():
        raise UsageError(
            f"There is no split {path}; give folds, kits19 or a split.json of an earlier run."
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no JSON; give a split.json of an earlier run.") from error
    parts = [
        data.get(key) if isinstance(data, dict) else None for key in ("training", "validation")
    ]
    if not all(isinstance(p, list) and all(isinstance(name, str) for name in p) for p in parts):
        raise InputError(f"{path} must hold the lists training and validation of patients' names.")
    training, validation = (set(part) for part in parts if part is not None)
    return training, validation


def _validation_in(path: Path, cases: Sequence[Case]) -> set[str]:
    training, validation = read_split(path)
    patients = {case.patient for case in cases}
    for what, names in (
        ("places on both sides", training & validation),
        ("does not place", patients - training - validation),
        ("places, though the data do not have them,", (training | validation) - patients),
    ):
        if names:
            raise InputError(f"{path} {what} {listed(sorted(names))}; correct it.")
    if not training:
        raise InputError(f"{path} leaves nobody to train on; move patients to training.")
    return validation


def listed(names: Sequence[str], most: int = 5) -> str:
    """Names for a sentence: all of a few, the first of many."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else names[0]
