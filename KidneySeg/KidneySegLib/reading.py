"""CTs and label maps from whatever holds them: NIfTI, NRRD, MetaImage, DICOM folders, ...

`read_ct` gives a 3-D scalar image of finite values, or an `InputError` that says what is wrong
with which file and what to do. What is merely odd (not a number, not Hounsfield units, a tilted
gantry) is read as it is and reported in `Scan.warnings`.

The voxels of single-file NIfTI are read here rather than by ITK, which fills what a truncated
file lacks with arbitrary values without a word, and which needs the whole volume in float64
where the file stores that or a scale slope. They arrive in slabs and end as int16 where every
value is a whole number (Hounsfield units are), as float32 otherwise.
"""

from __future__ import annotations

import gzip
import os
import re
import struct
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import SimpleITK as sitk

from KidneySegLib.errors import InputError

# What a voxel that is not a number is taken for: air, in Hounsfield units.
AIR_HU = -1024

# The longest first: `.seg.nrrd` is a `.nrrd` too.
SUFFIXES = (
    ".seg.nrrd", ".nii.gz", ".img.gz", ".hdr.gz", ".gipl.gz", ".nii", ".nrrd", ".nhdr", ".mha",
    ".mhd", ".hdr", ".img", ".gipl", ".dcm", ".ima", ".vtk", ".mnc", ".tif", ".tiff",
)  # fmt: skip

# The imaging of a case folder in the layout of KiTS19.
IMAGING = ("imaging.nii.gz", "imaging.nii", "imaging.nrrd")

_SLAB_VOXELS = 1 << 19
_AXIAL_COSINE = 0.85  # the normal of axial slices lies within about 30 degrees of the body axis
_PLAUSIBLE_SHARE = 0.75  # a series with this share of the largest one's slices may be the one meant
_ANOTHER_COPY = "copy or export it again"

# Axes off right angles: up to the first, rounding of a header's float32 matrix, left as it is;
# up to the second, the residue of a registration, straightened. Beyond, slices would lie
# elsewhere than the header says.
_ROUNDING_DEGREES = 0.02
_SHEAR_DEGREES = 1.0
_NOT_STRAIGHT = (
    "{path} has axes that are not at right angles; resample it to a straight grid (in 3D Slicer: "
    "Resample Scalar/Vector/DWI Volume) and give the result."
)
_STRAIGHTENED = (
    "{path} has axes that are {degrees:.2f} degrees off right angles: the closest straight grid "
    "is used."
)


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


class _Voxels(NamedTuple):
    """int16 or float32 values with what was seen on the way."""

    array: np.ndarray  # slices, rows, columns as stored
    not_finite: int  # voxels that were NaN or infinite and now are AIR_HU
    low: float  # of the finite ones; infinity if there is none
    high: float  # minus infinity if there is none


@dataclass
class _Volume:
    """Voxels as read, before anybody asked whether they are a CT or labels."""

    image: sitk.Image
    not_finite: int
    low: float  # of the finite voxels
    high: float
    rescaled: bool = False  # the file says how its values become HU
    modality: str = ""
    warnings: list[str] = field(default_factory=list)


def read_ct(path: Path | str, series_uid: str | None = None) -> Scan:
    """Read a CT.

    Parameters
    ----------
    path
        A file that SimpleITK reads, a DICOM folder (folders inside it included), or a case
        folder with an `imaging.nii.gz`, `imaging.nii` or `imaging.nrrd`.
    series_uid
        Of a DICOM folder, the SeriesInstanceUID to read. By default the series of axial CT
        slices with the most slices is read, unless several might be meant.

    Raises
    ------
    InputError
        There is no such file, it is damaged, it is not a 3-D scalar volume, or the DICOM
        folder has no series to choose, several, or one with missing slices.
    """
    path = Path(path)
    if _is_dicom_folder(path):
        volume = _read_dicom(path, series_uid)
    else:
        source = _file_of(path)
        if series_uid is not None:
            raise InputError(
                f"{path} is not a DICOM folder and has no series to choose; leave out --series."
            )
        volume = _read_file(source)
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
    _check_shape(path, image)
    size = image.GetSize()
    stored = sitk.GetArrayViewFromImage(image).reshape(size[2::-1])
    return _as_ct(_placed_as_read(_collect(stored.shape, _slabs(stored)), image, path), path)


def _as_ct(volume: _Volume, path: Path) -> Scan:
    if volume.modality not in ("", "CT"):
        raise InputError(f"{path} is {volume.modality} and not CT; give a CT.")
    if not volume.low < volume.high:
        what = f"every voxel is {volume.low:g}" if volume.low == volume.high else "no voxel has one"
        raise InputError(f"{path} has no two voxels of different value ({what}); give a CT.")
    warnings = [*volume.warnings, *_oddities(path, volume)]
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


def read_label_values(path: Path | str) -> sitk.Image:
    """Like `read_labels`, but with the values that the file holds, whatever they stand for."""
    source = _file_of(Path(path))
    return _as_labels(_read_file(source), source)


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


# --- What kind of input -----------------------------------------------------------------------


def _file_of(path: Path) -> Path:
    """The file to read for an input that is not a DICOM folder."""
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
    with _open(source) as stream:
        if not stream.read(1):
            raise InputError(f"{source} is empty; {_ANOTHER_COPY}.")
    return source


def _is_dicom_folder(path: Path) -> bool:
    if not path.is_dir() or any((path / name).is_file() for name in IMAGING):
        return False
    return any(True for _ in _dicom_files(path))


def _dicom_files(folder: Path) -> Iterator[Path]:
    """Every DICOM file in a folder and the folders inside it, whatever it is called."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.startswith(".") or name.upper() == "DICOMDIR":
                continue
            file = Path(parent, name)
            with _open(file) as stream:
                start = stream.read(132)
            # Old files may lack the preamble; they begin with a tag of group 0002 or 0008.
            if start[128:] == b"DICM" or (
                file.suffix.lower() in (".dcm", ".ima", "") and start[:2] in (b"\2\0", b"\x08\0")
            ):
                yield file


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(
            f"{path} cannot be opened ({error.strerror}); check its permissions."
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the C++ libraries off standard error: they print there, past any handler."""
    warned = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        kept = os.dup(2)
    except OSError:  # no standard error at all, as under pythonw
        kept = -1
    if kept >= 0:
        if sys.stderr is not None:
            sys.stderr.flush()
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 2)
        os.close(sink)
    try:
        yield
    finally:
        if kept >= 0:
            os.dup2(kept, 2)
            os.close(kept)
        sitk.ProcessObject.SetGlobalWarningDisplay(warned)


# --- Files ------------------------------------------------------------------------------------


def _read_file(path: Path) -> _Volume:
    with _open(path) as file:
        start = file.read(352)
        if start[:2] == b"\x1f\x8b" and path.name.lower().endswith(".gz"):
            start = _unzipped_start(path)
    if start[344:348] == b"n+1\0":
        return _read_nifti(path)
    if start[4:8] == b"n+2\0":
        raise InputError(f"{path} is NIfTI-2, which is not supported; save it as NIfTI-1.")
    if path.name.lower().endswith((".nii.gz", ".nii")):
        if start[:2] == b"\x1f\x8b":
            raise InputError(f"{path} is compressed; rename it to end in .nii.gz.")
        if start[344:348] != b"ni1\0":
            raise InputError(
                f"{path} is called NIfTI but is none (no NIfTI header); {_ANOTHER_COPY}."
            )
    return _read_with_itk(path)


def _unzipped_start(path: Path) -> bytes:
    with _open(path) as file, gzip.GzipFile(fileobj=file) as stream, _complete(path):
        return stream.read(352)


@contextmanager
def _complete(path: Path) -> Iterator[None]:
    """Turn the errors of a damaged gzip stream into the sentence for the user."""
    try:
        yield
    except EOFError as error:
        raise InputError(f"{path} is truncated (the gzip data end early); {_ANOTHER_COPY}.") from (
            error
        )
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is damaged (bad gzip data); {_ANOTHER_COPY}.") from error


def _information(path: Path, image_io: str = "") -> sitk.ImageFileReader:
    """A reader that has read the header of a file."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    if image_io:
        reader.SetImageIO(image_io)
    with quiet():
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            if "orthonormal" in str(error):
                raise InputError(_NOT_STRAIGHT.format(path=path)) from error
            if "Unable to determine ImageIO" in str(error):
                raise InputError(
                    f"{path} is not an image in a known format; give a NIfTI, NRRD, MetaImage or "
                    "DICOM file."
                ) from error
            raise InputError(f"{path} cannot be read, it is damaged; {_ANOTHER_COPY}.") from error
    return reader


def _check_shape(path: Path, header: sitk.ImageFileReader | sitk.Image) -> None:
    """Refuse what is not a 3-D scalar volume on a sane grid.

    A fourth dimension of one is no dimension: many converters write it.
    """
    size = header.GetSize()
    if "complex" in sitk.GetPixelIDValueAsString(header.GetPixelIDValue()):
        raise InputError(f"{path} holds complex numbers and is no CT; give a CT.")
    if isinstance(header, sitk.Image):
        number = header.GetNumberOfComponentsPerPixel()
    else:
        number = header.GetNumberOfComponents()
    if number != 1:
        what = "a colour picture" if number in (3, 4) else "a vector image"
        raise InputError(
            f"{path} is {what} ({number} values a voxel) and not a CT; give the CT it was made of."
        )
    if len(size) < 3:
        raise InputError(
            f"{path} is a 2-D image of {size[0]} x {size[1]}; give the whole CT volume."
        )
    if any(extent > 1 for extent in size[3:]):
        number = int(np.prod(size[3:]))
        raise InputError(
            f"{path} is a {len(size)}-D image of {number} volumes; extract one of them (such as "
            "the one of the phase you want) into a file of its own and give that."
        )
    grid = np.array([*header.GetSpacing(), *header.GetOrigin(), *header.GetDirection()])
    if not np.isfinite(grid).all() or min(header.GetSpacing()) <= 0:
        raise InputError(f"{path} has no usable voxel spacing or position; {_ANOTHER_COPY}.")


def _read_with_itk(path: Path) -> _Volume:
    reader = _information(path)
    _check_shape(path, reader)
    with quiet():
        try:
            voxels = _itk_voxels(reader)
        except RuntimeError as error:
            raise InputError(
                f"{path} cannot be read, it is damaged or truncated; {_ANOTHER_COPY}."
            ) from error
    volume = _placed_as_read(voxels, reader, path)
    if reader.HasMetaDataKey("0008|0060"):
        volume.modality = _tag(reader, "0008|0060")
        volume.rescaled = _number(_tag(reader, "0028|1052")) != 0
        if reader.GetSize()[2] == 1:
            volume.warnings.append(
                f"{path} is a single DICOM slice: give its folder to read the whole series."
            )
    return volume


def _itk_voxels(reader: sitk.ImageFileReader) -> _Voxels:
    """The voxels of a file, in parts where its format allows that.

    Raises
    ------
    RuntimeError
        ITK found the file damaged.
    """
    size = reader.GetSize()
    if reader.CanStreamRead() and len(size) == 3:
        return _collect(size[::-1], _streamed(reader))
    image = reader.Execute()
    stored = sitk.GetArrayViewFromImage(image).reshape(size[2::-1])
    return _collect(stored.shape, _slabs(stored))


def _streamed(reader: sitk.ImageFileReader) -> Iterator[np.ndarray]:
    """The slabs of a file that can be read in parts, each (slices, rows, columns) as stored."""
    columns, rows, slices = reader.GetSize()
    step = max(1, _SLAB_VOXELS // (columns * rows))
    for first in range(0, slices, step):
        reader.SetExtractIndex((0, 0, first))
        reader.SetExtractSize((columns, rows, min(step, slices - first)))
        yield sitk.GetArrayFromImage(reader.Execute())
    reader.SetExtractIndex(())
    reader.SetExtractSize(())


def _slabs(array: np.ndarray) -> Iterator[np.ndarray]:
    step = max(1, _SLAB_VOXELS // (array.shape[1] * array.shape[2]))
    for first in range(0, array.shape[0], step):
        yield array[first : first + step]


def _collect(shape: Sequence[int], slabs: Iterable[np.ndarray]) -> _Voxels:
    """Slabs of any type put together as int16, or float32 once a value does not fit that."""
    array: np.ndarray = np.empty(shape, dtype=np.int16)
    not_finite, low, high = 0, np.inf, -np.inf
    at = 0
    for slab in slabs:
        if slab.dtype.kind == "f":
            with np.errstate(over="ignore"):
                slab = slab.astype(np.float32, copy=False)
            finite = np.isfinite(slab)
            bad = slab.size - int(np.count_nonzero(finite))
            if bad:
                not_finite += bad
                slab = np.where(finite, slab, np.float32(AIR_HU))
                slab_low = float(slab.min(where=finite, initial=np.inf))
                slab_high = float(slab.max(where=finite, initial=-np.inf))
            else:
                slab_low, slab_high = float(slab.min()), float(slab.max())
            whole = bool((np.rint(slab) == slab).all())
        else:
            slab_low, slab_high, whole = float(slab.min()), float(slab.max()), True
        low, high = min(low, slab_low), max(high, slab_high)
        fits = whole and (slab_low > slab_high or (slab_low >= -32768 and slab_high <= 32767))
        if array.dtype == np.int16 and not fits:
            wider = np.empty(shape, dtype=np.float32)
            wider[:at] = array[:at]
            array = wider
        array[at : at + len(slab)] = slab
        at += len(slab)
    return _Voxels(array, not_finite, low, high)


def _placed_as_read(
    voxels: _Voxels, header: sitk.ImageFileReader | sitk.Image, path: Path
) -> _Volume:
    """The voxels on the grid of their header; dimensions past the third are dropped."""
    number = len(header.GetSize())
    direction = np.asarray(header.GetDirection()).reshape(number, number)[:3, :3]
    return _placed(voxels, header.GetSpacing()[:3], header.GetOrigin()[:3], direction, path)


def _placed(
    voxels: _Voxels,
    spacing: Sequence[float],
    origin: Sequence[float],
    direction: np.ndarray,
    path: Path | str,
) -> _Volume:
    """The voxels on this grid, which must be straight."""
    warnings = []
    off = _shear_degrees(direction)
    if not off <= _SHEAR_DEGREES:
        raise InputError(_NOT_STRAIGHT.format(path=path))
    if off > _ROUNDING_DEGREES:
        # The closest rotation: the polar decomposition's orthonormal factor.
        left, _, right = np.linalg.svd(direction)
        direction = left @ right
        warnings.append(_STRAIGHTENED.format(path=path, degrees=off))
    image = sitk.GetImageFromArray(voxels.array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction.ravel().tolist())
    return _Volume(image, voxels.not_finite, voxels.low, voxels.high, warnings=warnings)


def _shear_degrees(axes: np.ndarray) -> float:
    """How far the worst pair of three column vectors is off a right angle; NaN without a length."""
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = axes / np.linalg.norm(axes, axis=0)
    cosines = np.abs((unit.T @ unit)[np.triu_indices(3, 1)])
    return float(np.degrees(np.arcsin(np.minimum(1.0, cosines)).max()))


# --- NIfTI ------------------------------------------------------------------------------------
# Header fields and codes: the NIfTI-1 standard, nifti1.h.

_NIFTI_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8",
    256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip


@dataclass(frozen=True)
class _NiftiHeader:
    size: tuple[int, ...]
    type: np.dtype
    offset: int
    slope: float
    intercept: float
    sform: np.ndarray  # (3, 4), RAS mm


def _nifti_header(start: bytes, path: Path) -> _NiftiHeader:
    order = next((o for o in "<>" if start[:4] == struct.pack(o + "i", 348)), None)
    if order is None or len(start) < 348:
        raise InputError(f"{path} has a damaged NIfTI header; {_ANOTHER_COPY}.")

    def field_at(offset: int, code: str) -> tuple:
        return struct.unpack_from(order + code, start, offset)

    dims = field_at(40, "8h")
    (kind,) = field_at(70, "h")
    spacing = field_at(80, "3f")
    offset, slope, intercept = field_at(108, "3f")
    sform = np.array(field_at(280, "12f")).reshape(3, 4)
    if not 1 <= dims[0] <= 7 or any(extent < 1 for extent in dims[1 : dims[0] + 1]):
        raise InputError(f"{path} has a damaged NIfTI header; {_ANOTHER_COPY}.")
    if kind not in _NIFTI_TYPES:
        known = {32: "complex numbers", 1792: "complex numbers", 128: "colours", 2304: "colours"}
        what = known.get(kind, f"values of a type that is not supported (code {kind})")
        raise InputError(f"{path} holds {what} and is no CT; give a CT of one value a voxel.")
    # ITK takes 1 mm without a word, and every volume in ml would be wrong.
    if not np.isfinite(spacing[: dims[0]]).all() or 0 in spacing[: dims[0]]:
        raise InputError(f"{path} has no usable voxel spacing; {_ANOTHER_COPY}.")
    if slope == 0 or not np.isfinite([slope, intercept]).all():
        slope, intercept = 1.0, 0.0  # the standard: no scaling
    return _NiftiHeader(
        size=tuple(dims[1 : dims[0] + 1]),
        type=np.dtype(order + _NIFTI_TYPES[kind]),
        offset=int(offset),
        slope=slope,
        intercept=intercept,
        sform=sform,
    )


def _read_nifti(path: Path) -> _Volume:
    with _open(path) as file:
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream = gzip.GzipFile(fileobj=file) if zipped else file
        with _complete(path):
            start = stream.read(348)
        header = _nifti_header(start, path)
        warnings = []
        try:
            reader = _information(path, "NiftiImageIO")
        except InputError as refused:
            off = _shear_degrees(header.sform[:, :3])
            if str(refused) != _NOT_STRAIGHT.format(path=path) or not off <= _SHEAR_DEGREES:
                raise
            reader = _straightened(path)
            warnings.append(_STRAIGHTENED.format(path=path, degrees=off))
        _check_shape(path, reader)
        needed = header.offset + int(np.prod(header.size, dtype=object)) * header.type.itemsize
        # Deflate shrinks to a thousandth at best, so a header that promises more lies.
        if needed > os.fstat(file.fileno()).st_size * (1040 if zipped else 1):
            raise InputError(
                f"{path} is truncated (its header promises {needed} bytes); {_ANOTHER_COPY}."
            )
        with _complete(path):
            voxels = _collect(header.size[2::-1], _nifti_slabs(stream, header, path))
    volume = _placed_as_read(voxels, reader, path)
    volume.warnings += warnings
    volume.rescaled = header.intercept != 0
    return volume


def _nifti_slabs(
    stream: BinaryIO | gzip.GzipFile, header: _NiftiHeader, path: Path
) -> Iterator[np.ndarray]:
    columns, rows, slices = header.size[:3]
    step = max(1, _SLAB_VOXELS // (columns * rows))
    stream.seek(header.offset)
    for first in range(0, slices, step):
        number = min(step, slices - first)
        wanted = number * rows * columns * header.type.itemsize
        data = stream.read(wanted)
        if len(data) < wanted:
            raise InputError(
                f"{path} is truncated (it ends before slice {first + number} of {slices}); "
                f"{_ANOTHER_COPY}."
            )
        slab = np.frombuffer(data, dtype=header.type).reshape(number, rows, columns)
        if (header.slope, header.intercept) != (1.0, 0.0):
            slab = slab * np.float64(header.slope) + header.intercept
        yield slab
    while stream.read(1 << 20):  # to the end, where gzip keeps its check sum
        pass


def _straightened(path: Path) -> sitk.ImageFileReader:
    """The header read with ITK's own repair of matrices that are not orthonormal."""
    switch = "ITK_NIFTI_SFORM_PERMISSIVE"
    before = os.environ.get(switch)
    os.environ[switch] = "1"
    try:
        return _information(path, "NiftiImageIO")
    finally:
        if before is None:
            del os.environ[switch]
        else:
            os.environ[switch] = before


# --- DICOM ------------------------------------------------------------------------------------
# Tags by group and element: DICOM PS3.6. Slices are put in order by Image Position (Patient)
# along the normal of Image Orientation (Patient), PS3.3 C.7.6.2.1.1; never by number or name.


@dataclass(frozen=True)
class _Slice:
    path: Path
    uid: str
    description: str
    modality: str
    scout: bool
    acquisition: int
    number: int
    rescaled: bool
    placed: bool
    size: tuple[int, int, int]
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
class _Series:
    slices: tuple[_Slice, ...]

    @property
    def uid(self) -> str:
        return self.slices[0].uid

    @property
    def count(self) -> int:
        """Slices at different places (a multi-frame file has all of them)."""
        places = {round(s.position, 2) for s in self.slices}
        return max(len(places), *(s.size[2] for s in self.slices), 1)

    @property
    def is_ct(self) -> bool:
        return self.slices[0].modality == "CT" and not self.slices[0].scout

    @property
    def is_axial(self) -> bool:
        return bool(abs(self.slices[0].normal[2]) >= _AXIAL_COSINE)

    def __str__(self) -> str:
        first = self.slices[0]
        kind = "scout" if first.scout else first.modality
        plane = "" if self.is_axial or first.scout else "not axial, "
        text = f"{first.description}, " if first.description else ""
        unit = "slice" if self.count == 1 else "slices"
        return f"{self.uid} ({text}{kind}, {plane}{self.count} {unit})"


def _tag(reader: sitk.ImageFileReader, key: str) -> str:
    return reader.GetMetaData(key).strip("\0 ") if reader.HasMetaDataKey(key) else ""


def _number(text: str) -> float:
    """The number in a text field, 0 where there is none."""
    try:
        number = float(text)
    except ValueError:
        return 0.0
    return number if np.isfinite(number) else 0.0


def _dicom_slice(path: Path) -> _Slice | None:
    """The header of a DICOM image, None for other DICOM (reports, plans, ...) and damaged files."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    if reader.GetNumberOfComponents() != 1 or reader.GetDimension() != 3:
        return None
    columns, rows, frames = reader.GetSize()
    return _Slice(
        path=path,
        uid=_tag(reader, "0020|000e"),
        description=_tag(reader, "0008|103e"),
        modality=_tag(reader, "0008|0060"),
        scout="LOCALIZER" in _tag(reader, "0008|0008").upper().split("\\"),
        acquisition=int(_number(_tag(reader, "0020|0012"))),
        number=int(_number(_tag(reader, "0020|0013"))),
        rescaled=_number(_tag(reader, "0028|1052")) != 0,
        placed=frames > 1 or reader.HasMetaDataKey("0020|0032"),
        size=(columns, rows, frames),
        spacing=reader.GetSpacing(),
        origin=reader.GetOrigin(),
        direction=reader.GetDirection(),
    )


def _find_series(folder: Path) -> tuple[list[_Series], list[Path]]:
    """The volumes in a DICOM folder, the one with the most slices first; the files of no image.

    A series may hold slices that make no volume together (a scout, reformatted planes): it is
    taken apart, and only its largest part counts.
    """
    parts: list[list[_Slice]] = []
    others = []
    with quiet():
        found = [(path, _dicom_slice(path)) for path in _dicom_files(folder)]
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
    volumes = [_Series(tuple(part)) for part in parts]
    volumes.sort(key=lambda series: (not series.is_ct, -series.count, series.uid))
    largest: dict[str, _Series] = {}
    for series in volumes:
        largest.setdefault(series.uid, series)
    return list(largest.values()), others


def _check_damaged(series: _Series, others: list[Path]) -> None:
    """Refuse a series if one of the files that are no image would be one of its slices."""
    of_series = re.compile(re.escape(series.uid.encode()) + rb"(?![0-9.])")
    for path in others:
        with _open(path) as file:
            data = file.read()
        # Pixel Data (7FE0,0010), which GDCM could not read to its end.
        if b"\xe0\x7f\x10\0" in data and of_series.search(data):
            raise InputError(
                f"{path} cannot be read, it is damaged or truncated; export the series again."
            )


def _choose_series(folder: Path, uid: str | None) -> tuple[_Series, list[str]]:
    """The series to read and what to tell the user about the choice."""
    found, others = _find_series(folder)
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


def _read_dicom(folder: Path, uid: str | None) -> _Volume:
    series, warnings = _choose_series(folder, uid)
    first = series.slices[0]
    if first.size[2] > 1:  # an enhanced (multi-frame) file is a volume by itself
        volume = _read_with_itk(first.path)
        volume.warnings[:0] = warnings
        return volume
    if not all(s.placed for s in series.slices):
        raise InputError(
            f"{folder}: the slices of series {series} do not say where they lie (no Image "
            "Position); export the original CT series from the scanner or archive."
        )
    slices = _in_order(series, folder, warnings)
    positions = np.array([s.position for s in slices])
    distance_mm = first.spacing[2]
    if len(slices) > 1:
        distance_mm = _slice_distance_mm(positions, folder, warnings)
        _tell_tilt(slices, folder, warnings)
    columns, rows, _ = first.size
    shape = (len(slices), rows, columns)
    with quiet():
        voxels = _collect(shape, (_dicom_pixels(s) for s in slices))
    spacing = (*first.spacing[:2], distance_mm)
    direction = np.asarray(first.direction).reshape(3, 3)
    volume = _placed(voxels, spacing, slices[0].origin, direction, folder)
    volume.rescaled, volume.modality = first.rescaled, first.modality
    volume.warnings += warnings
    return volume


def _in_order(series: _Series, folder: Path, warnings: list[str]) -> list[_Slice]:
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
    usual = float(np.median(steps))
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


def _tell_tilt(slices: list[_Slice], folder: Path, warnings: list[str]) -> None:
    """Warn where slices are shifted against each other, as a tilted gantry makes them."""
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
    reader.SetFileName(str(one.path))
    try:
        return sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        raise InputError(
            f"{one.path} cannot be read, it is damaged or truncated; export the series again."
        ) from error


# --- Sense of the values ----------------------------------------------------------------------


def _oddities(path: Path, volume: _Volume) -> list[str]:
    """A sentence for each sign that the values are not Hounsfield units.

    Any CT of a body has air or at least fat in it, both below zero; a soft-tissue window
    clipped below zero is Hounsfield units all the same. Values are never changed.
    """
    warnings = []
    if volume.not_finite:
        number = volume.not_finite
        unit = "voxel that is" if number == 1 else "voxels that are"
        warnings.append(f"{path} has {number} {unit} not a number (NaN or infinite): taken as air.")
    low, high = volume.low, volume.high
    span = f"{low:g} to {high:g}"
    if low >= -20 and high <= 20:
        warnings.append(
            f"{path} has values from {span}, which look normalised and are not Hounsfield units: "
            "the result may be wrong; use the original CT."
        )
    elif low >= 0 and high <= 255 and not volume.rescaled:
        warnings.append(
            f"{path} has 8-bit gray values ({span}) and not Hounsfield units: the result may be "
            "wrong; use the original CT."
        )
    elif low >= 0 and not volume.rescaled:
        warnings.append(
            f"{path} has no negative value ({span}) and so probably no Hounsfield units: the "
            "result may be wrong; subtract 1024, or export it again with its rescale intercept."
        )
    return warnings


# --- Labels -----------------------------------------------------------------------------------


def _as_labels(volume: _Volume, path: Path) -> sitk.Image:
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
    value: int
    layer: int
    side: int  # 1 left, 2 right, 0 neither


def _stored_segments(reader: sitk.ImageFileReader) -> list[_StoredSegment]:
    segments: list[_StoredSegment] = []
    while reader.HasMetaDataKey(f"Segment{len(segments)}_ID"):
        key = f"Segment{len(segments)}_"
        said = {name: _tag(reader, key + name) for name in ("Name", "Tags", "LabelValue", "Layer")}
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
        value, layer = int(_number(said["LabelValue"])), int(_number(said["Layer"]))
        segments.append(_StoredSegment(value, layer, side))
    return segments


def _read_seg_nrrd(path: Path) -> sitk.Image:
    reader = _information(path)
    segments = _stored_segments(reader)
    layers = reader.GetNumberOfComponents()
    both_sides = {1, 2} <= {segment.side for segment in segments}
    if layers == 1 and not both_sides:
        return read_label_values(path)
    if not segments:
        raise InputError(f"{path} does not say which segments it holds; save it in Slicer again.")
    if layers == 1:
        _check_shape(path, reader)
    with quiet():
        try:
            image = reader.Execute()
        except RuntimeError as error:
            raise InputError(
                f"{path} cannot be read, it is damaged or truncated; {_ANOTHER_COPY}."
            ) from error
    stored = sitk.GetArrayViewFromImage(image)
    if stored.ndim == 3:
        stored = stored[..., np.newaxis]
    labels = np.zeros(stored.shape[:3], dtype=np.uint8)
    for number, segment in enumerate(segments, start=1):
        # With a left and a right kidney in the file, whatever else it holds is neither.
        label = segment.side if both_sides else number
        if label and segment.layer < layers:
            labels[stored[..., segment.layer] == segment.value] = label
    result = sitk.GetImageFromArray(labels)
    result.CopyInformation(image)
    return result
