"""DICOM folders: which series is the CT, its slices in order, and what is wrong with them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from KidneySegLib.errors import InputError
from KidneySegLib.opening import itk_name, open_file, quiet
from KidneySegLib.volumes import (
    IMAGING,
    Asked,
    Volume,
    collect,
    number_in,
    placed_image,
    read_with_itk,
    slice_thickness_mm,
    tag_of,
)

_AXIAL_COSINE = 0.85  # the normal of axial slices lies within about 30 degrees of the body axis
_LISTED = 5
_ASIDE_MM = 1.0  # from one slice to the next, beside what they mostly move
_PLAUSIBLE_SHARE = 0.75  # a series with this share of the largest one's slices may be the one meant


def is_dicom_folder(path: Path) -> bool:
    if not path.is_dir() or any((path / name).is_file() for name in IMAGING):
        return False
    return any(True for _ in dicom_files(path))


def dicom_files(folder: Path) -> Iterator[Path]:
    """Every DICOM file in a folder and the folders inside it, whatever it is called."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = Path(parent, name)
            if file.exists() and is_dicom_file(file):  # and no link to nowhere
                yield file


def is_dicom_file(path: Path) -> bool:
    """Whether it is one, by its first bytes.

    Raises
    ------
    InputError
        It is and has a name with which it cannot be read, or it cannot be opened.
    """
    if path.name.startswith(".") or path.name.upper() == "DICOMDIR":
        return False
    with open_file(path) as stream:
        start = stream.read(132)
    # Old files may lack the preamble; they begin with a tag of group 0002 or 0008.
    found = start[128:] == b"DICM" or (
        path.suffix.lower() in (".dcm", ".ima", "") and start[:2] in (b"\2\0", b"\x08\0")
    )
    if found:
        itk_name(path)
    return found


@dataclass(frozen=True)
class _Slice:
    path: Path
    uid: str
    study: tuple[str, str]  # patient and StudyInstanceUID
    description: str
    modality: str
    scout: bool
    derived: bool  # computed from other images, such as a reformat or a rendering
    acquisition: int
    number: int
    rescaled: bool
    placed: bool
    size: tuple[int, int, int]
    thickness_mm: float  # 0 where it is not told
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]

    @property
    def normal(self) -> np.ndarray:
        return np.asarray(self.direction).reshape(3, 3)[:, 2]

    @property
    def position(self) -> float:
        """Where along its normal the slice lies, in mm."""
        return float(np.dot(self.normal, self.origin))

    def fits(self, other: _Slice) -> bool:
        """Whether two slices can be of the same volume."""
        return (
            self.size[:2] == other.size[:2]
            and np.allclose(self.spacing[:2], other.spacing[:2], rtol=1e-3)
            and np.allclose(self.direction, other.direction, atol=2e-3)
        )


@dataclass(frozen=True)
class Series:
    """The slices of a series that make one volume."""

    slices: tuple[_Slice, ...]

    @property
    def uid(self) -> str:
        return self.slices[0].uid

    @property
    def count(self) -> int:
        """Slices at different places (a multi-frame file has all of them)."""
        return max(len(self._places), *(s.size[2] for s in self.slices), 1)

    @property
    def folder(self) -> Path:
        return self.slices[0].path.parent

    @property
    def description(self) -> str:
        return self.slices[0].description

    @property
    def study(self) -> tuple[str, str]:
        """Identifiers of the patient and the study."""
        return self.slices[0].study

    @property
    def is_ct(self) -> bool:
        return self.slices[0].modality == "CT" and not self.is_scout

    @property
    def is_scout(self) -> bool:
        return self.slices[0].scout

    @property
    def is_derived(self) -> bool:
        return self.slices[0].derived

    @property
    def is_axial(self) -> bool:
        return bool(abs(self.slices[0].normal[2]) >= _AXIAL_COSINE)

    def continues(self, other: Series) -> bool:
        """Whether two are parts of one series, with no slice at the same place."""
        first, second = self.slices[0], other.slices[0]
        return (
            (first.uid, first.study, first.scout) == (second.uid, second.study, second.scout)
            and first.size[2] == second.size[2] == 1
            and first.fits(second)
            and not self._places & other._places
        )

    @property
    def _places(self) -> set[float]:
        return {round(s.position, 2) for s in self.slices}

    def __str__(self) -> str:
        first = self.slices[0]
        kind = "scout" if first.scout else first.modality
        plane = "" if self.is_axial or first.scout else "not axial, "
        text = f"{first.description}, " if first.description else ""
        unit = "slice" if self.count == 1 else "slices"
        return f"{self.uid} ({text}{kind}, {plane}{self.count} {unit})"


def _dicom_slice(path: Path) -> _Slice | None:
    """The header of a DICOM image, None for other DICOM (reports, plans, ...) and damaged files."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(itk_name(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    if reader.GetNumberOfComponents() != 1 or reader.GetDimension() != 3:
        return None
    columns, rows, frames = reader.GetSize()
    kind = tag_of(reader, "0008|0008").upper().split("\\")
    return _Slice(
        path=path,
        uid=tag_of(reader, "0020|000e"),
        study=(tag_of(reader, "0010|0020"), tag_of(reader, "0020|000d")),
        description=tag_of(reader, "0008|103e"),
        modality=tag_of(reader, "0008|0060"),
        scout="LOCALIZER" in kind,
        derived="DERIVED" in kind[:1],
        acquisition=int(number_in(tag_of(reader, "0020|0012"))),
        number=int(number_in(tag_of(reader, "0020|0013"))),
        rescaled=number_in(tag_of(reader, "0028|1052")) != 0,
        placed=frames > 1 or reader.HasMetaDataKey("0020|0032"),
        size=(columns, rows, frames),
        thickness_mm=slice_thickness_mm(reader),
        spacing=reader.GetSpacing(),
        origin=reader.GetOrigin(),
        direction=reader.GetDirection(),
    )


def find_series(files: Iterable[Path]) -> tuple[list[Series], list[Path]]:
    """The volumes in DICOM files, the one with the most slices first; the files of no image.

    A series may hold slices that make no volume together (a scout, reformatted planes): it is
    taken apart, and only its largest part counts.
    """
    parts: list[list[_Slice]] = []
    others = []
    with quiet():
        found = [(path, _dicom_slice(path)) for path in files]
    for path, one in found:
        if one is None:
            others.append(path)
            continue
        for part in parts:
            if part[0].uid == one.uid and part[0].scout == one.scout and part[0].fits(one):
                part.append(one)
                break
        else:
            parts.append([one])
    volumes = [Series(tuple(part)) for part in parts]
    volumes.sort(key=lambda series: (not series.is_ct, -series.count, series.uid))
    largest: dict[str, Series] = {}
    for series in volumes:
        largest.setdefault(series.uid, series)
    return list(largest.values()), others


def _check_damaged(series: Series, others: list[Path]) -> None:
    """Refuse a series if one of the files that are no image would be one of its slices."""
    of_series = re.compile(re.escape(series.uid.encode()) + rb"(?![0-9.])")
    for path in others:
        with open_file(path) as file:
            data = file.read()
        # Pixel Data (7FE0,0010), which GDCM could not read to its end.
        if b"\xe0\x7f\x10\0" in data and of_series.search(data):
            raise InputError(
                f"{path} cannot be read, it is damaged or truncated; export the series again."
            )


def _choose_series(
    folder: Path, uid: str | None, files: Iterable[Path]
) -> tuple[Series, list[str]]:
    """The series to read and what to tell the user about the choice."""
    found, others = find_series(files)
    if not found:
        raise InputError(
            f"{folder} holds DICOM files but none of them is an image; give the folder of the CT."
        )
    listed = "; ".join(map(str, found))
    if uid is not None:
        chosen = next((series for series in found if series.uid == uid), None)
        if chosen is None:
            raise InputError(f"{folder} has no series {uid}; choose one with --series: {listed}.")
        if chosen.slices[0].modality != "CT":
            raise InputError(f"{folder}: series {chosen} is not CT; choose another: {listed}.")
        _check_damaged(chosen, others)
        return chosen, []
    candidates = [series for series in found if series.is_ct and series.is_axial]
    if not candidates:
        raise InputError(
            f"{folder} has no series of axial CT slices; give the folder of a CT, or choose a CT "
            f"series with --series UID: {listed}."
        )
    chosen = candidates[0]
    equals = [s for s in candidates if s.count >= _PLAUSIBLE_SHARE * chosen.count]
    if len(equals) > 1:
        raise InputError(
            f"{folder} has several series of axial CT slices; choose one with --series UID: "
            f"{'; '.join(map(str, equals))}."
        )
    _check_damaged(chosen, others)
    if len(candidates) > 1:
        rest = "; ".join(map(str, candidates[1:]))
        return chosen, [
            f"{folder} has several series of axial CT slices: {chosen} is read, the one with the "
            f"most; another is read with --series UID: {rest}."
        ]
    return chosen, []


def read_dicom(
    folder: Path,
    uid: str | None,
    files: Iterable[Path] | None = None,
    cancelled: Asked | None = None,
) -> Volume:
    """The CT in a folder, or in those of its files that are named."""
    series, warnings = _choose_series(folder, uid, dicom_files(folder) if files is None else files)
    first = series.slices[0]
    _check_frames(series, folder)
    if first.size[2] > 1:
        volume = read_with_itk(first.path, cancelled)
        volume.warnings[:0] = warnings
        return volume
    if not all(s.placed for s in series.slices):
        raise InputError(
            f"{folder}: the slices of series {series} do not say where they lie (no Image "
            "Position); export the original CT series from the scanner or archive."
        )
    slices = _in_order(series, folder, warnings)
    if len(slices) > 1:
        positions = np.array([s.position for s in slices])
        distance_mm = _slice_distance_mm(positions, folder, warnings)
        _tell_shift(slices, folder, warnings)
    else:
        distance_mm = slices[0].thickness_mm or first.spacing[2]
        warnings.append(
            f"{folder} holds a single DICOM slice, taken to be {distance_mm:g} mm thick: give "
            "the folder of the whole series."
        )
    columns, rows, _ = first.size
    shape = (len(slices), rows, columns)
    with quiet():
        voxels = collect(shape, (_dicom_pixels(s) for s in slices), cancelled)
    spacing = (*first.spacing[:2], distance_mm)
    direction = np.asarray(first.direction).reshape(3, 3)
    volume = placed_image(voxels, spacing, slices[0].origin, direction, folder)
    volume.rescaled, volume.modality = first.rescaled, first.modality
    volume.files = tuple(s.path for s in slices)
    volume.warnings += warnings
    return volume


def _check_frames(series: Series, folder: Path) -> None:
    """Refuse a multi-frame (enhanced) file beside others: it is a volume by itself."""
    volumes = [s for s in series.slices if s.size[2] > 1]
    singles = len(series.slices) - len(volumes)
    if not volumes or len(series.slices) == 1:
        return
    parts = [f"{len(volumes)} multi-frame {'file' if len(volumes) == 1 else 'files'}"]
    parts += [f"{singles} {'file' if singles == 1 else 'files'} of one slice"] if singles else []
    listed = [f"{s.path} ({s.size[2]} slices)" for s in volumes[:_LISTED]]
    listed += ["..."] if len(volumes) > _LISTED else []
    choice = "one of these files, or a folder with only the others" if singles else "one of them"
    raise InputError(
        f"{folder}: series {series.uid} is in {' and '.join(parts)}, which are no volume together; "
        f"give {choice}: {'; '.join(listed)}."
    )


def _in_order(series: Series, folder: Path, warnings: list[str]) -> list[_Slice]:
    """The slices along their normal, one for each place."""
    # Where a place is taken twice (a file copied, a second phase), the first acquisition counts.
    ranked = sorted(series.slices, key=lambda s: (s.acquisition, s.number, s.path.name))
    by_place: dict[float, _Slice] = {}
    for one in ranked:
        by_place.setdefault(round(one.position, 2), one)
    surplus = len(ranked) - len(by_place)
    if surplus:
        warnings.append(
            f"{folder} has {surplus} {'slice' if surplus == 1 else 'slices'} at a place that "
            "another slice already has: the first acquisition of each place is used."
        )
    return sorted(by_place.values(), key=lambda s: s.position)


def _slice_distance_mm(positions: np.ndarray, folder: Path, warnings: list[str]) -> float:
    """The distance between slices, provided that there is one.

    Raises
    ------
    InputError
        Slices are missing or lie at changing distances.
    """
    steps = np.diff(positions)
    # The lower median: of two steps the larger one is the gap.
    usual = float(np.sort(steps)[(len(steps) - 1) // 2])
    gaps = np.flatnonzero(steps > 1.5 * usual)
    if 0 < len(gaps) <= max(1, len(steps) // 5):
        missing = int(np.rint(steps[gaps] / usual - 1).sum())
        where = ", ".join(f"{positions[g]:.1f} and {positions[g + 1]:.1f} mm" for g in gaps[:3])
        more = f" and in {len(gaps) - 3} more places" if len(gaps) > 3 else ""
        raise InputError(
            f"{folder} lacks {missing} {'slice' if missing == 1 else 'slices'} between positions "
            f"{where}{more} ({len(positions)} slices, {usual:g} mm apart); export the whole "
            "series again."
        )
    mean = float((positions[-1] - positions[0]) / (len(positions) - 1))
    off = np.abs(positions - (positions[0] + mean * np.arange(len(positions)))).max()
    if off > 0.5 * mean:
        raise InputError(
            f"{folder} has slices at changing distances ({steps.min():g} to {steps.max():g} mm); "
            "give a series of equally spaced slices."
        )
    if off > 0.05 * mean:
        warnings.append(
            f"{folder} has slices at slightly changing distances ({steps.min():g} to "
            f"{steps.max():g} mm): {mean:g} mm is used throughout."
        )
    return mean


def _tell_shift(slices: list[_Slice], folder: Path, warnings: list[str]) -> None:
    """Warn where slices are shifted against each other, at a step or by a tilted gantry."""
    steps = np.diff([s.origin for s in slices], axis=0)
    thick = np.diff([s.position for s in slices])[:, np.newaxis]
    aside = steps - np.median(steps / thick, axis=0) * thick
    most_mm = float(np.linalg.norm(aside, axis=1).max())
    if most_mm > _ASIDE_MM:
        warnings.append(
            f"{folder} has a step of {most_mm:.0f} mm to the side between two slices: each is "
            "segmented and measured as it is, but those beyond the step lie beside the place that "
            "their header tells."
        )
        return
    way = np.subtract(slices[-1].origin, slices[0].origin)
    cosine = abs(np.dot(way, slices[0].normal)) / np.linalg.norm(way)
    tilt = float(np.degrees(np.arccos(min(1.0, cosine))))
    if tilt > 1.0:
        warnings.append(
            f"{folder} was taken with the gantry tilted by {tilt:.1f} degrees: every slice is "
            "segmented and measured as it is, but the volume looks sheared in 3D."
        )


def _dicom_pixels(one: _Slice) -> np.ndarray:
    """One slice as (1, rows, columns), rescaled by the slope and intercept in its header."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(itk_name(one.path))
    try:
        return sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        raise InputError(
            f"{one.path} cannot be read, it is damaged or truncated; export the series again."
        ) from error
