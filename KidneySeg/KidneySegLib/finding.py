"""Every CT below a folder, or in a list: what a batch works through.

A CT is a NIfTI, NRRD or MetaImage file, a case folder in the layout of KiTS19, or a CT series among
DICOM files. Label maps, scouts, reformats and renderings lie beside CTs in most archives; they are
left out, each with a reason that the user can read.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import SimpleITK as sitk

from KidneySegLib.dicom import Series, dicom_files, find_series, is_dicom_file
from KidneySegLib.errors import InputError, UsageError
from KidneySegLib.opening import printable
from KidneySegLib.reading import case_name, unique_names
from KidneySegLib.volumes import IMAGING, header_of

# The longest first.
CT_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
# Of a case folder; what tells left from right comes first, as generated cases have it.
REFERENCE_NAMES = (
    "sides.nii.gz",
    "segmentation.nii.gz",
    "segmentation.nii",
    "segmentation.nrrd",
)
REFERENCE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".seg.nrrd")
COLUMNS = ("input", "name", "reference", "series")

# A file with one of these words in its name is a label map and no CT.
_LABEL_WORD = re.compile(
    r"(?<![a-z])(annotations?|contours?|gt|label(map)?s?|masks?|predictions?|seg|segmentations?"
    r"|sides|kidneys$)(?![a-z])"
)
# Fewer slices than this are a scout, a bolus timing or a dose report.
FEWEST_SLICES = 5


@dataclass(frozen=True)
class Case:
    """One CT to segment.

    Attributes
    ----------
    name
        Unique in the batch, with `/` between folders; results are called after it.
    source
        The file, case folder or DICOM folder.
    series_uid
        Which series of a DICOM folder; None to let the reader choose.
    files
        The DICOM files of that series, where they are known already.
    reference
        The label map to compare with.
    listed
        Somebody named this CT; others were found and may turn out to be something else.
    """

    name: str
    source: Path
    series_uid: str | None = None
    files: tuple[Path, ...] = ()
    reference: Path | None = None
    listed: bool = False


def files_of(case: Case) -> list[Path]:
    """The files that a CT is read from."""
    if case.files:
        return sorted(case.files)
    imaging = next((case.source / name for name in IMAGING if (case.source / name).is_file()), None)
    if imaging is not None:
        return [imaging]
    return sorted(dicom_files(case.source)) if case.source.is_dir() else [case.source]


@dataclass(frozen=True)
class LeftOut:
    """A file, folder or series that is not taken, and why."""

    what: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}"


# --- Below a folder -----------------------------------------------------------------------------


def find_cases(folder: Path, skip: Sequence[Path] = ()) -> tuple[list[Case], list[LeftOut]]:
    """Every CT below a folder, in the order of their names, and what was left out.

    Parameters
    ----------
    folder
        It and all folders inside it are searched, also behind links; hidden ones are not.
    skip
        Folders that are not entered, such as the one for the results.

    Raises
    ------
    InputError
        There is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give the folder that holds the CTs.")
    cases: list[Case] = []
    left_out: list[LeftOut] = []
    dicom: list[Path] = []
    for parent, names in folders_below(folder, skip, left_out):
        imaging = next((name for name in IMAGING if name in names), None)
        if imaging is not None:
            cases.append(Case(_relative(parent, folder), parent))
            continue
        for name in names:
            path = parent / name
            try:
                if name.lower().endswith(CT_SUFFIXES):
                    reason = _no_ct(path)
                    if reason:
                        left_out.append(LeftOut(str(path), reason))
                    else:
                        cases.append(Case(_relative(path, folder), path))
                elif is_dicom_file(path):
                    dicom.append(path)
            except InputError as error:
                left_out.append(LeftOut(str(path), str(error)))
    cases += _dicom_cases(dicom, folder, left_out)
    cases.sort(key=lambda case: (case.name.casefold(), case.name, str(case.source)))
    return _unique(cases), left_out


def folders_below(
    top: Path, skip: Sequence[Path] = (), left_out: list[LeftOut] | None = None
) -> Iterator[tuple[Path, list[str]]]:
    """A folder and all folders inside it, each once, with the names of its files, in their order.

    Links are followed; what is hidden is passed over.

    Parameters
    ----------
    skip
        Folders that are not entered.
    left_out
        Gets the folders that cannot be opened.
    """

    def unreadable(error: OSError) -> None:
        if left_out is not None:
            left_out.append(LeftOut(str(error.filename), f"cannot be opened ({error.strerror})"))

    avoided = {path.resolve() for path in skip}
    seen = set()
    for parent, folders, names in os.walk(top, followlinks=True, onerror=unreadable):
        here = Path(parent).resolve()
        if here in seen:  # a link that leads back, or a second way to the same folder
            folders.clear()
            continue
        seen.add(here)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and Path(parent, name).resolve() not in avoided
        )
        yield Path(parent), sorted(
            name
            for name in names
            if not name.startswith(".") and Path(parent, name).is_file()
        )  # fmt: skip


def _no_ct(path: Path) -> str:
    """Why a volume file is none of the CTs, judged by its name and header; nothing if it may be."""
    name = path.name.lower()
    if name.endswith((".seg.nrrd", ".seg.nhdr")):
        return "a segmentation"
    if _LABEL_WORD.search(case_name(path).lower()):
        return "a label map by its name"
    try:
        header = header_of(path)
    except InputError:
        return ""  # it is reported with its reason when its turn comes
    if header.GetPixelID() in (sitk.sitkUInt8, sitk.sitkInt8):
        return "8-bit values, as label maps have and CTs do not"
    return ""


def _relative(path: Path, folder: Path) -> str:
    """What to call a file or folder below another: its way there, without the suffix."""
    if path == folder:
        return folder.resolve().name or "ct"
    return (path.parent / case_name(path)).relative_to(folder).as_posix()


def _unique(cases: Sequence[Case]) -> list[Case]:
    """No two names alike, not even on file systems that ignore case."""
    given = [printable(case.name) for case in cases]
    taken = Counter(name.casefold() for name in given)
    seen: set[str] = set()
    named = []
    for case, own in zip(cases, given, strict=True):
        name, number = own, 2
        while name.casefold() in seen or (name != own and name.casefold() in taken):
            name, number = f"{own}_{number}", number + 1
        seen.add(name.casefold())
        named.append(replace(case, name=name))
    return named


# --- DICOM --------------------------------------------------------------------------------------


def _dicom_cases(files: Sequence[Path], folder: Path, left_out: list[LeftOut]) -> list[Case]:
    """The CT series among DICOM files that may make volumes of the abdomen."""
    volumes = [series for group in _by_series(files) for series in group]
    originals = {
        series.study
        for series in volumes
        if series.is_ct and series.is_axial and not series.is_derived and _enough(series)
    }
    taken: list[Series] = []
    for series in volumes:
        reason = _unsuitable(series, series.study in originals)
        if reason:
            left_out.append(LeftOut(f"{series.folder}, series {series}", reason))
        else:
            taken.append(series)
    per_folder = Counter(series.folder for series in taken)
    cases = []
    for series in taken:
        name = _relative(series.folder, folder)
        if per_folder[series.folder] > 1:
            title = re.sub(r"[^\w.+-]+", "_", series.description).strip("_.") or "series"
            name = f"{name}/{title}"
        paths = tuple(one.path for one in series.slices)
        cases.append(Case(name, series.folder, series.uid, paths))
    return cases


def _by_series(files: Sequence[Path]) -> Iterator[list[Series]]:
    """The volumes of each folder; of folders side by side that share a series between them, its
    whole.

    Media for patients hold a long series in several folders. Where two of them hold slices at the
    same places they are copies, or patients whose identifiers an export made the same: each stays
    by itself.
    """
    by_parent: defaultdict[Path, defaultdict[Path, list[Path]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for path in files:
        by_parent[path.parent.parent][path.parent].append(path)
    for folders in by_parent.values():
        wholes: list[Series] = []
        for paths in folders.values():
            for part in find_series(paths)[0]:
                for number, whole in enumerate(wholes):
                    if whole.continues(part):
                        wholes[number] = Series(whole.slices + part.slices)
                        break
                else:
                    wholes.append(part)
        yield wholes


def _enough(series: Series) -> bool:
    return series.count >= FEWEST_SLICES


def _unsuitable(series: Series, has_original: bool) -> str:
    """Why a series is not taken; nothing if it is."""
    if series.is_scout:
        return "a scout"
    if not series.is_ct:
        return "not CT"
    if not _enough(series):
        return f"fewer than {FEWEST_SLICES} slices"
    if not series.is_axial:
        return "not axial"
    if series.is_derived and has_original:
        return "derived from another series of its study"
    return ""


# --- In a list ----------------------------------------------------------------------------------


def read_list(path: Path, reference_column: str = "reference") -> list[Case]:
    """The CTs of a table with the columns input and, if wanted, name, reference and series.

    Parameters
    ----------
    path
        Text in UTF-8, comma or semicolon between the columns, their names in the first line.
        Paths in it may be relative to its folder.
    reference_column
        Which column names the references, if there is one of that name.

    Raises
    ------
    UsageError
        The file is no such table.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not text in UTF-8; save it as CSV in UTF-8.") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be opened ({error.strerror}).") from error
    first = text.partition("\n")[0]
    separator = ";" if first.count(";") > first.count(",") else ","
    lines = csv.reader(text.splitlines(), delimiter=separator)
    header = [name.strip().lower() for name in next(lines, [])]
    if "input" not in header:
        raise UsageError(
            f"{path} has no column 'input'; its first line must name its columns, such as "
            "'input,name,reference'."
        )
    cases, names = [], []
    for row in lines:
        cells = dict(zip(header, (cell.strip() for cell in row), strict=False))
        if not any(cells.values()):
            continue
        if not cells.get("input"):
            raise UsageError(f"{path}, line {lines.line_num}, names no input; give its path.")
        name = cells.get("name", "")
        if name and not _is_name(name):
            raise UsageError(
                f"{path}, line {lines.line_num}: {name!r} is no name for results; use one "
                "without '..' that is not a path from the root."
            )
        reference = cells.get(reference_column.lower(), "")
        names.append(name)
        cases.append(
            Case(
                name="",
                source=_beside(path, cells["input"]),
                series_uid=cells.get("series") or None,
                reference=_beside(path, reference) if reference else None,
                listed=True,
            )
        )
    suggested = unique_names([case.source for case in cases])
    return _unique(
        [
            replace(case, name=PurePosixPath(name or other).as_posix())
            for case, name, other in zip(cases, names, suggested, strict=True)
        ]
    )


def _beside(table: Path, text: str) -> Path:
    return table.parent / Path(text).expanduser()


def _is_name(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return bool(parts) and ".." not in parts and not re.match(r"[/\\]|[A-Za-z]:", name)


# --- References ---------------------------------------------------------------------------------


def with_references(cases: Sequence[Case], folder: Path) -> list[Case]:
    """The cases, each with its reference from a folder, where that holds one.

    For a case `a/ct` that is `a/ct/segmentation.nii.gz` or `a/ct.nii.gz`, or in a folder that
    holds one CT only `a/segmentation.nii.gz`, with the other names and suffixes of references.
    """
    return [
        replace(case, reference=next(iter(found), None)) if case.reference is None else case
        for case, found in zip(cases, references_in(folder, cases), strict=True)
    ]


def references_in(folder: Path, cases: Sequence[Case]) -> list[list[Path]]:
    """For each case what a folder holds that may be its reference; the first is taken."""
    alone = Counter(PurePosixPath(case.name).parent for case in cases)
    return [
        [
            path
            for path in _reference_places(case, folder, alone)
            # Unlike its namesake in pathlib, it takes a name that is too long.
            if os.path.isfile(path) and not _same(path, case.source)
        ]
        for case in cases
    ]


def _reference_places(case: Case, folder: Path, alone: Counter[PurePosixPath]) -> list[Path]:
    # Of a case folder that was given itself, the name is not a part of the way.
    own = [case.source] if case.source.resolve() == folder.resolve() else []
    places = [parent / name for parent in (folder / case.name, *own) for name in REFERENCE_NAMES]
    places += [folder / f"{case.name}{suffix}" for suffix in REFERENCE_SUFFIXES]
    parent = PurePosixPath(case.name).parent
    if alone[parent] == 1:
        places += [folder / parent / name for name in REFERENCE_NAMES]
    return places


def _same(path: Path, other: Path) -> bool:
    return other.exists() and path.samefile(other)
