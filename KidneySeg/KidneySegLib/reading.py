"""CTs and label maps from whatever holds them: NIfTI, NRRD, MetaImage, DICOM folders, ...

`read_ct` gives a 3-D scalar image of finite values, or an `InputError` that says what is wrong
with which file and what to do. What is merely odd (not a number, not Hounsfield units, a tilted
gantry) is read as it is and reported in `Scan.warnings`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from KidneySegLib.dicom import is_dicom_folder, read_dicom
from KidneySegLib.errors import InputError
from KidneySegLib.geometry import grid_difference
from KidneySegLib.nifti import holds_nifti, read_nifti
from KidneySegLib.opening import ANOTHER_COPY, DAMAGED, itk_name, open_file, quiet, unzipped_start
from KidneySegLib.storedvoxels import check_stored
from KidneySegLib.volumes import (
    IMAGING,
    Asked,
    Volume,
    check_grid,
    check_shape,
    collect,
    header_of,
    number_in,
    placed_as_read,
    read_with_itk,
    slabs_of,
    tag_of,
)

# The longest first: `.seg.nrrd` is a `.nrrd` too.
SUFFIXES = (
    ".seg.nrrd", ".nii.gz", ".img.gz", ".hdr.gz", ".gipl.gz", ".nii", ".nrrd", ".nhdr", ".mha",
    ".mhd", ".hdr", ".img", ".gipl", ".dcm", ".ima", ".vtk", ".mnc", ".tif", ".tiff",
)  # fmt: skip


@dataclass(frozen=True)
class Scan:
    """A CT as it was read.

    Attributes
    ----------
    image
        3-D, one value a voxel, int16 where all values are whole numbers, else float32; finite.
    path
        The file or folder it was asked for.
    name
        What to call it: the file's name without its suffix, or the folder's name.
    warnings
        One sentence for each oddity that may make a result wrong.
    """

    image: sitk.Image
    path: Path
    name: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelMap:
    """A label map as it was read: 3-D uint8, and the file it was asked for."""

    image: sitk.Image
    path: Path


def read_ct(
    path: Path | str,
    series_uid: str | None = None,
    files: Sequence[Path] | None = None,
    *,
    cancelled: Asked | None = None,
) -> Scan:
    """Read a CT.

    Parameters
    ----------
    path
        A file that SimpleITK reads, a DICOM folder (folders inside it included), or a case
        folder with an `imaging.nii.gz`, `imaging.nii` or `imaging.nrrd`.
    series_uid
        Of a DICOM folder, the SeriesInstanceUID to read. By default the series of axial CT
        slices with the most slices is read, unless several might be meant.
    files
        Of a DICOM folder, the files to look at; by default all of them.
    cancelled
        Asked every few slices; true stops the reading.

    Raises
    ------
    Cancelled
        ``cancelled()`` became true.
    InputError
        There is no such file, it is damaged, it is not a 3-D scalar volume, or the DICOM
        folder has no series to choose, several, or one with missing slices.
    """
    path = Path(path)
    if files or is_dicom_folder(path):
        volume = read_dicom(path, series_uid, files, cancelled)
    else:
        source = _file_of(path)
        if series_uid is not None:
            raise InputError(
                f"{path} is not a DICOM folder and has no series to choose; leave out --series."
            )
        volume = _read_file(source, cancelled)
    return _as_ct(volume, path)


def check_ct(image: sitk.Image, name: str = "image") -> Scan:
    """A CT that is in memory already, in HU, looked at as `read_ct` looks at a file.

    The image itself is not changed.

    Parameters
    ----------
    name
        What to call it in messages.

    Raises
    ------
    InputError
        It is not a 3-D scalar volume, or every voxel is the same.
    """
    path = Path(name)
    check_shape(path, image)
    size = image.GetSize()
    stored = sitk.GetArrayViewFromImage(image).reshape(size[2::-1])
    return _as_ct(placed_as_read(collect(stored.shape, slabs_of(stored)), image, path), path)


def _as_ct(volume: Volume, path: Path) -> Scan:
    if volume.modality not in ("", "CT"):
        raise InputError(f"{path} is {volume.modality} and not CT; give a CT.")
    if not volume.low < volume.high:
        what = f"every voxel is {volume.low:g}" if volume.low == volume.high else "no voxel has one"
        raise InputError(f"{path} has no two voxels of different value ({what}); give a CT.")
    warnings = [*volume.warnings, *oddities(path, volume)]
    return Scan(image=volume.image, path=path, name=case_name(path), warnings=tuple(warnings))


def read_labels(path: Path | str) -> sitk.Image:
    """Read a label map as a 3-D uint8 image.

    Values may be stored as any type as long as they are whole numbers from 0 to 255. In a
    `.seg.nrrd` of 3D Slicer whose segments are a left and a right kidney, by name or
    terminology, left becomes 1 and right 2, whatever their values in the file; overlapping
    segments in several layers are numbered in their order otherwise, the later one on top.

    Raises
    ------
    InputError
        There is no such file, it is damaged, it is not 3-D or holds other values.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the label map's file (.nii.gz, .nrrd, ...).")
    if path.name.lower().endswith(".seg.nrrd"):
        return _read_seg_nrrd(_file_of(path))
    return read_label_values(path)


def tells_sides(path: Path | str) -> bool:
    """Whether a file is a `.seg.nrrd` with a left and a right kidney, which may be empty.

    Raises
    ------
    InputError
        It is damaged.
    """
    path = Path(path)
    if not path.name.lower().endswith(".seg.nrrd"):
        return False
    return _both_sides(_stored_segments(header_of(_file_of(path)), 1))


def read_label_values(path: Path | str) -> sitk.Image:
    """Like `read_labels`, but with the values that the file holds, whatever they stand for."""
    source = _file_of(Path(path))
    return _as_labels(_read_file(source), source)


def holds(path: Path | str, image: sitk.Image) -> bool:
    """Whether a file that was written holds a 3-D image, to the last voxel, on its grid.

    Raises
    ------
    InputError
        The file is damaged.
    """
    source = _file_of(Path(path))
    if source.name.lower().endswith((".nii.gz", ".nii")):
        return holds_nifti(source, image)
    reader = header_of(source)
    if grid_difference(reader, image) is not None:
        return False
    with quiet():
        try:
            back = reader.Execute()
        except RuntimeError as error:
            raise InputError(DAMAGED.format(path=path)) from error
    pairs = zip(
        *(slabs_of(sitk.GetArrayViewFromImage(each)) for each in (back, image)), strict=True
    )
    return all(np.array_equal(found, meant) for found, meant in pairs)


def case_name(path: Path | str) -> str:
    """What to call an input: a file's name without its suffix, a folder's name."""
    path = Path(path)
    name = path.name or path.resolve().name
    if path.is_dir():
        return name
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def unique_names(paths: Sequence[Path | str]) -> list[str]:
    """A name for each input, no two alike (not even on file systems that ignore case).

    Inputs that share a name, as KiTS19's `imaging.nii.gz` do, take their folder's; those that
    still share one are numbered from the second on.
    """
    names = [case_name(path) for path in paths]
    folded = [name.casefold() for name in names]
    names = [
        Path(path).resolve().parent.name or name if folded.count(name.casefold()) > 1 else name
        for path, name in zip(paths, names, strict=True)
    ]
    taken = {name.casefold() for name in names}
    seen: set[str] = set()
    unique = []
    for name in names:
        candidate, number = name, 2
        while candidate.casefold() in seen or (candidate != name and candidate.casefold() in taken):
            candidate, number = f"{name}_{number}", number + 1
        seen.add(candidate.casefold())
        unique.append(candidate)
    return unique


def _file_of(path: Path) -> Path:
    """The file to read for an input that is not a DICOM folder."""
    itk_name(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path.")
    source = path
    if path.is_dir():
        source = next((path / name for name in IMAGING if (path / name).is_file()), path)
        if source is path:
            others = sorted(p.name for p in path.iterdir() if p.name.lower().endswith(SUFFIXES))
            found = f", only {', '.join(others[:3])}" if others else ""
            raise InputError(
                f"{path} holds neither {', '.join(IMAGING)} nor a DICOM series{found}; "
                "give the CT's file or its DICOM folder."
            )
    if not source.is_file():
        raise InputError(f"{path} is not a regular file; give the CT's file or its DICOM folder.")
    with open_file(source) as stream:
        if not stream.read(1):
            raise InputError(f"{source} is empty; {ANOTHER_COPY}.")
    return source


def _read_file(path: Path, cancelled: Asked | None = None) -> Volume:
    with open_file(path) as file:
        start = file.read(352)
        if start[:2] == b"\x1f\x8b" and path.name.lower().endswith(".gz"):
            start = unzipped_start(path)
    if start[344:348] == b"n+1\0":
        return read_nifti(path, cancelled)
    if start[4:8] == b"n+2\0":
        raise InputError(f"{path} is NIfTI-2, which is not supported; save it as NIfTI-1.")
    if path.name.lower().endswith((".nii.gz", ".nii")):
        if start[:2] == b"\x1f\x8b":
            raise InputError(f"{path} is compressed; rename it to end in .nii.gz.")
        if start[344:348] != b"ni1\0":
            raise InputError(
                f"{path} is called NIfTI but is none (no NIfTI header); {ANOTHER_COPY}."
            )
    return read_with_itk(path, cancelled)


def oddities(name: Path | str, volume: Volume) -> list[str]:
    """A sentence for each sign that the values are not Hounsfield units.

    Any CT of a body has air or at least fat in it, both below zero; a soft-tissue window
    clipped below zero is Hounsfield units all the same. Values are never changed.
    """
    warnings = []
    if volume.not_finite:
        number = volume.not_finite
        unit = "voxel that is" if number == 1 else "voxels that are"
        warnings.append(f"{name} has {number} {unit} not a number (NaN or infinite): taken as air.")
    low, high = volume.low, volume.high
    span = f"{low:g} to {high:g}"
    if low >= -20 and high <= 20:
        warnings.append(
            f"{name} has values from {span}, which look normalised and are not Hounsfield units: "
            "the result may be wrong; use the original CT."
        )
    elif low >= 0 and high <= 255 and not volume.rescaled:
        warnings.append(
            f"{name} has 8-bit gray values ({span}) and not Hounsfield units: the result may be "
            "wrong; use the original CT."
        )
    elif low >= 0 and not volume.rescaled:
        warnings.append(
            f"{name} has no negative value ({span}) and so probably no Hounsfield units: the "
            "result may be wrong; subtract 1024, or export it again with its rescale intercept."
        )
    return warnings


def _as_labels(volume: Volume, path: Path) -> sitk.Image:
    """uint8 labels, or the reason why they are none."""
    if volume.not_finite or volume.image.GetPixelID() != sitk.sitkInt16:
        raise InputError(f"{path} is no label map, its values are not whole; give a label map.")
    if volume.low < 0 or volume.high > 255:
        raise InputError(
            f"{path} is no label map, its values go from {volume.low:g} to {volume.high:g} and "
            "labels from 0 to 255; give a label map."
        )
    return sitk.Cast(volume.image, sitk.sitkUInt8)


@dataclass(frozen=True)
class _StoredSegment:
    name: str
    value: int
    layer: int
    side: int  # 1 left, 2 right, 0 neither


def _stored_segments(reader: sitk.ImageFileReader, layers: int) -> list[_StoredSegment]:
    segments: list[_StoredSegment] = []
    while reader.HasMetaDataKey(f"Segment{len(segments)}_ID"):
        key = f"Segment{len(segments)}_"
        said = {
            name: tag_of(reader, key + name)
            for name in ("ID", "Name", "Tags", "LabelValue", "Layer")
        }
        words = said["Name"].lower().replace("_", " ").split()
        tags = said["Tags"]
        side = 0
        if "kidney" in words or "SCT^64033007^" in tags:
            # SNOMED CT 7771000 is left, 24028007 is right.
            side = (
                1 if "left" in words or "SCT^7771000^" in tags
                else 2 if "right" in words or "SCT^24028007^" in tags
                else 0
            )  # fmt: skip
        # Slicer of old tells neither: each segment has a layer to itself, of zeros and ones.
        value = int(number_in(said["LabelValue"] or "1"))
        own_layer = len(segments) if layers > 1 else 0
        layer = int(number_in(said["Layer"] or str(own_layer)))
        segments.append(_StoredSegment(said["Name"] or said["ID"], value, layer, side))
    return segments


def _both_sides(segments: Sequence[_StoredSegment]) -> bool:
    return {1, 2} <= {segment.side for segment in segments}


def _read_seg_nrrd(path: Path) -> sitk.Image:
    reader = header_of(path)
    # A layer is a component of every voxel; in the oldest files a volume of a fourth dimension.
    components = reader.GetNumberOfComponents()
    layers = components * int(np.prod(reader.GetSize()[3:], dtype=object))
    segments = _stored_segments(reader, layers)
    both_sides = _both_sides(segments)
    if layers == 1 and not both_sides:
        return read_label_values(path)
    if not segments:
        raise InputError(f"{path} does not say which segments it holds; save it in Slicer again.")
    # With a left and a right kidney in the file, whatever else it holds is neither.
    labelled = [
        (segment.side if both_sides else number, segment)
        for number, segment in enumerate(segments, start=1)
        if segment.side or not both_sides
    ]
    stored_as = [(segment.layer, segment.value) for segment in segments]
    for _, segment in labelled:
        alone = stored_as.count((segment.layer, segment.value)) == 1
        if segment.value == 0 or not 0 <= segment.layer < layers or not alone:
            raise InputError(
                f"{path} does not say which voxels belong to the segment {segment.name!r}; save it "
                "in Slicer again."
            )
    check_grid(path, reader)
    check_stored(path, reader)
    with quiet():
        try:
            image = reader.Execute()
        except RuntimeError as error:
            raise InputError(DAMAGED.format(path=path)) from error
    stored = sitk.GetArrayViewFromImage(image).reshape(-1, *image.GetSize()[2::-1], components)
    labels = np.zeros(stored.shape[1:4], np.int16)
    for label, segment in labelled:
        volume, component = divmod(segment.layer, components)
        labels[stored[volume, ..., component] == segment.value] = label
    return _as_labels(placed_as_read(collect(labels.shape, slabs_of(labels)), image, path), path)
