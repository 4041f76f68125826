"""Image files to volumes: voxels read, counted and placed, before anybody asks what they show.

Voxels arrive in slabs and end as int16 where every value is a whole number (Hounsfield units are),
as float32 otherwise; a whole volume is never held in float64.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import SimpleITK as sitk

from KidneySegLib.errors import Cancelled, InputError
from KidneySegLib.geometry import blank_image

# Whether to stop.
Asked = Callable[[], bool]

# What a voxel that is not a number is taken for: air, in Hounsfield units.
AIR_HU = -1024

# The imaging of a case folder in the layout of KiTS19.
IMAGING = ("imaging.nii.gz", "imaging.nii", "imaging.nrrd")
SLAB_VOXELS = 1 << 19
ANOTHER_COPY = "copy or export it again"
DAMAGED = "{path} cannot be read, it is damaged or truncated; " + ANOTHER_COPY + "."

# No CT of kidneys is coarser or longer; mostly a wrong unit, and terabytes to plan for.
_COARSEST_MM = 100.0
_LONGEST_MM = 5000.0

# Deflate shrinks to a thousandth at best, so a header that promises more lies.
DEFLATE_AT_BEST = 1040
# MetaIO and NrrdIO crash where a header claims more dimensions.
_MOST_DIMENSIONS = 10
# Where a header ends at the latest; that of a segmentation tells much of each segment.
_HEADER_BYTES = 1 << 20
# Formats that ITK does not know by a suffix in capitals.
_IMAGE_IO = {".mha": "MetaImageIO", ".mhd": "MetaImageIO", ".gipl": "GiplImageIO"}
_NIFTI = (".nii", ".nii.gz")

# Axes off right angles: up to the first, rounding of a header's float32 matrix, left as it is;
# up to the second, the residue of a registration, straightened. Beyond, slices would lie
# elsewhere than the header says.
_ROUNDING_DEGREES = 0.02
SHEAR_DEGREES = 1.0
NOT_STRAIGHT = (
    "{path} has axes that are not at right angles; resample it to a straight grid (in 3D Slicer: "
    "Resample Scalar/Vector/DWI Volume) and give the result."
)
STRAIGHTENED = (
    "{path} has axes that are {degrees:.2f} degrees off right angles: the closest straight grid "
    "is used."
)


class _Voxels(NamedTuple):
    """int16 or float32 values with what was seen on the way."""

    image: sitk.Image  # on no grid yet
    not_finite: int  # voxels that were NaN or infinite and now are AIR_HU
    low: float  # of the finite ones; infinity if there is none
    high: float  # minus infinity if there is none


@dataclass
class Volume:
    """Voxels as read, before anybody asked whether they are a CT or labels."""

    image: sitk.Image
    not_finite: int
    low: float  # of the finite voxels
    high: float
    rescaled: bool = False  # the file says how its values become HU
    modality: str = ""
    warnings: list[str] = field(default_factory=list)
    files: tuple[Path, ...] = ()  # the DICOM file of each stored slice, in their order


def open_file(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(
            f"{path} cannot be opened ({error.strerror}); check its permissions."
        ) from error


def itk_name(path: Path) -> str:
    """A path for the C++ libraries, which end the process at a name that is not UTF-8.

    Raises
    ------
    InputError
        It is not.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        printable = os.fsencode(path).decode(errors="backslashreplace")
        raise InputError(f"{printable} has a name that is not UTF-8; rename it.") from error
    return str(path)


class _Quiet:
    """Standard error, which all threads share: silent from the first of them in to the last out."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._kept = -1
        self._warned = False

    def enter(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside > 1:
                return
            self._warned = sitk.ProcessObject.GetGlobalWarningDisplay()
            sitk.ProcessObject.SetGlobalWarningDisplay(False)
            try:
                self._kept = os.dup(2)
            except OSError:  # no standard error at all, as under pythonw
                self._kept = -1
                return
            if sys.stderr is not None:
                sys.stderr.flush()
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, 2)
            os.close(sink)

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside:
                return
            if self._kept >= 0:
                os.dup2(self._kept, 2)
                os.close(self._kept)
            sitk.ProcessObject.SetGlobalWarningDisplay(self._warned)


_QUIET = _Quiet()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the C++ libraries off standard error: they print there, past any handler."""
    _QUIET.enter()
    try:
        yield
    finally:
        _QUIET.leave()


def unzipped_start(path: Path) -> bytes:
    with open_file(path) as file, gzip.GzipFile(fileobj=file) as stream, complete_gzip(path):
        return stream.read(352)


@contextmanager
def complete_gzip(path: Path) -> Iterator[None]:
    """Turn the errors of a damaged gzip stream into the sentence for the user."""
    try:
        yield
    except EOFError as error:
        raise InputError(f"{path} is truncated (the gzip data end early); {ANOTHER_COPY}.") from (
            error
        )
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is damaged (bad gzip data); {ANOTHER_COPY}.") from error


def header_of(path: Path, image_io: str = "") -> sitk.ImageFileReader:
    """A reader that has read the header of a file; voxels of NIfTI are for `nifti` to read.

    Raises
    ------
    InputError
        The file is damaged, of no known format, or its name is not UTF-8.
    """
    name = itk_name(path)
    stored = _stored(path)
    if stored.dimensions is not None and not 1 <= stored.dimensions <= _MOST_DIMENSIONS:
        raise InputError(
            f"{path} has a damaged header, its number of dimensions is not from 1 to "
            f"{_MOST_DIMENSIONS}; {ANOTHER_COPY}."
        )
    if path.suffix != path.suffix.lower():
        image_io = image_io or _IMAGE_IO.get(path.suffix.lower(), "")
    reader = sitk.ImageFileReader()
    if image_io:
        reader.SetImageIO(image_io)
    with _name_for_nifticlib(path, name) as known, quiet():
        reader.SetFileName(known)
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            if "orthonormal" in str(error):
                raise InputError(NOT_STRAIGHT.format(path=path)) from error
            if "Unable to determine ImageIO" in str(error):
                raise InputError(
                    f"{path} is not an image in a known format; give a NIfTI, NRRD, MetaImage or "
                    "DICOM file."
                ) from error
            raise InputError(f"{path} cannot be read, it is damaged; {ANOTHER_COPY}.") from error
    return reader


@contextmanager
def _name_for_nifticlib(path: Path, name: str) -> Iterator[str]:
    """The name of a file; of NIfTI in mixed case (`ct.Nii`), which nifticlib does not take, that
    of a copy of its header.
    """
    if not name.lower().endswith(_NIFTI) or name.endswith((*_NIFTI, *map(str.upper, _NIFTI))):
        yield name
        return
    with open_file(path) as file:
        start = file.read(348)
    if start[:2] == b"\x1f\x8b":
        start = unzipped_start(path)[:348]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "header.nii")
        copy.write_bytes(start + bytes(4))  # no extensions follow
        yield str(copy)


class _Stored(NamedTuple):
    """What the header of a MetaImage or NRRD file tells of its voxels."""

    dimensions: int | None = None
    coding: str = ""  # raw, zlib (of a MetaImage), gzip (of NRRD); else what follows is of no use
    file: Path = Path()
    start: int = 0  # the first byte that may be a voxel's
    length: int = 0  # bytes from there on that may be
    big_endian: bool = False  # of a MetaImage


def _stored(path: Path) -> _Stored:
    """Nothing of it for other formats."""
    with open_file(path) as file:
        if path.suffix.lower() in (".mha", ".mhd"):
            return _stored_in_meta(path, file)
        return _stored_in_nrrd(path, file) if file.read(4) == b"NRRD" else _Stored()


def _stored_in_meta(path: Path, file: BinaryIO) -> _Stored:
    fields: dict[str, str] = {}
    while "ElementDataFile" not in fields and file.tell() < _HEADER_BYTES:
        line = file.readline(_HEADER_BYTES).decode(errors="surrogateescape")
        if not line:
            break
        name, value = (*re.split("[=:]", line, maxsplit=1), "")[:2]
        fields[name.strip()] = value.strip()
    dimensions = _whole(fields["NDims"]) if "NDims" in fields else None

    def is_true(name: str, default: str) -> bool:
        return fields.get(name, default).startswith(("T", "t", "1"))

    zipped = is_true("CompressedData", "F")
    start = _whole(fields.get("HeaderSize", ""))  # 0 also for -1, at the end of the file
    data = fields.get("ElementDataFile", "")
    if data.lower() == "local":
        where, start = path, start or file.tell()
    else:
        where = path.parent / data
        if not os.path.isfile(where):  # as MetaIO looks for it
            where, zipped = Path(f"{where}.gz"), True
    if not os.path.isfile(where) or not is_true("BinaryData", "T"):
        return _Stored(dimensions)
    length = where.stat().st_size - start
    if not zipped:
        return _Stored(dimensions, "raw", where, start, length)
    length = min(_whole(fields.get("CompressedDataSize", "")) or length, length)
    order = is_true("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "F"))
    return _Stored(dimensions, "zlib", where, start, length, order)


def _stored_in_nrrd(path: Path, file: BinaryIO) -> _Stored:
    start = file.read(_HEADER_BYTES)
    header = re.split(rb"\r?\n\r?\n", start, maxsplit=1)[0]
    fields = {
        name.replace(b" ", b"").lower(): value.decode(errors="replace").lower()
        for name, value in re.findall(rb"(?m)^([\w ]+):(?!=) *(\S*)", header)
    }
    dimensions = _whole(fields[b"dimension"]) if b"dimension" in fields else None
    if b"datafile" in fields or len(header) == len(start):
        return _Stored(dimensions)
    length = path.stat().st_size - len(header)
    return _Stored(dimensions, fields.get(b"encoding", ""), path, len(header), length)


def _whole(text: str) -> int:
    """The whole number that a text begins with, 0 where there is none."""
    found = re.match(r"[0-9]{1,18}(?!\S)", text)
    return int(found[0]) if found else 0


def check_stored(path: Path, header: sitk.ImageFileReader) -> _Stored:
    """What is told of the voxels; refused if a MetaImage or NRRD has fewer than it promises.

    ITK would take the memory for them first.
    """
    stored = _stored(path)
    number = int(np.prod(header.GetSize(), dtype=object)) * header.GetNumberOfComponents()
    at_best = {"raw": 1, "zlib": DEFLATE_AT_BEST, "gzip": DEFLATE_AT_BEST}.get(stored.coding)
    if at_best and number * _value_type(header).itemsize > at_best * stored.length:
        raise InputError(DAMAGED.format(path=path))
    return stored


def _value_type(header: sitk.ImageFileReader) -> np.dtype:
    """The type of a value, such as that of `vector of 16-bit unsigned integer`."""
    text = sitk.GetPixelIDValueAsString(header.GetPixelIDValue())
    kind = "f" if "float" in text else "u" if "unsigned" in text else "i"
    return np.dtype(f"{kind}{int(text.partition('-bit')[0].split()[-1]) // 8}")


def check_shape(path: Path, header: sitk.ImageFileReader | sitk.Image) -> None:
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
    if any(extent > 1 for extent in size[3:]):
        number = int(np.prod(size[3:]))
        raise InputError(
            f"{path} is a {len(size)}-D image of {number} volumes; extract one of them (such as "
            "the one of the phase you want) into a file of its own and give that."
        )
    check_grid(path, header)


def check_grid(path: Path, header: sitk.ImageFileReader | sitk.Image) -> None:
    """Refuse what has no three dimensions, no voxels or no place."""
    size = header.GetSize()
    if len(size) < 3:
        raise InputError(
            f"{path} is a {len(size)}-D image of {' x '.join(map(str, size))}; give the whole CT "
            "volume."
        )
    if min(size) < 1:
        raise InputError(DAMAGED.format(path=path))
    grid = np.array([*header.GetSpacing(), *header.GetOrigin(), *header.GetDirection()])
    if not np.isfinite(grid).all() or min(header.GetSpacing()) <= 0:
        raise InputError(f"{path} has no usable voxel spacing or position; {ANOTHER_COPY}.")


def read_with_itk(path: Path, cancelled: Asked | None = None) -> Volume:
    reader = header_of(path)
    check_shape(path, reader)
    stored = check_stored(path, reader)
    with quiet():
        try:
            if stored.coding == "zlib":
                slabs = _inflated_slabs(path, reader, stored)
                voxels = collect(reader.GetSize()[2::-1], slabs, cancelled)
            else:
                voxels = _itk_voxels(reader, cancelled)
        except (RuntimeError, zlib.error) as error:
            raise InputError(DAMAGED.format(path=path)) from error
    volume = placed_as_read(voxels, reader, path)
    if reader.HasMetaDataKey("0008|0060"):
        volume.modality = tag_of(reader, "0008|0060")
        volume.rescaled = number_in(tag_of(reader, "0028|1052")) != 0
        if reader.GetSize()[2] == 1:
            spacing = reader.GetSpacing()
            spacing = (*spacing[:2], slice_thickness_mm(reader) or spacing[2])
            check_extent(path, reader.GetSize(), spacing)
            volume.image.SetSpacing(spacing)
            volume.warnings.append(
                f"{path} is a single DICOM slice: give its folder to read the whole series."
            )
    return volume


def _itk_voxels(reader: sitk.ImageFileReader, cancelled: Asked | None) -> _Voxels:
    """The voxels of a file, in parts where its format allows that.

    Raises
    ------
    RuntimeError
        ITK found the file damaged.
    """
    size = reader.GetSize()
    if reader.CanStreamRead() and len(size) == 3:
        return collect(size[::-1], _streamed(reader), cancelled)
    image = reader.Execute()
    if image.GetDimension() == 3 and image.GetPixelID() == sitk.sitkInt16:
        stored = sitk.GetArrayViewFromImage(image)
        for key in image.GetMetaDataKeys():
            image.EraseMetaData(key)
        return _Voxels(image, 0, float(stored.min()), float(stored.max()))
    stored = sitk.GetArrayViewFromImage(image).reshape(size[2::-1])
    return collect(stored.shape, slabs_of(stored))


def _streamed(reader: sitk.ImageFileReader) -> Iterator[np.ndarray]:
    """The slabs of a file that can be read in parts, each (slices, rows, columns) as stored."""
    columns, rows, slices = reader.GetSize()
    step = max(1, SLAB_VOXELS // (columns * rows))
    for first in range(0, slices, step):
        reader.SetExtractIndex((0, 0, first))
        reader.SetExtractSize((columns, rows, min(step, slices - first)))
        yield sitk.GetArrayFromImage(reader.Execute())
    reader.SetExtractIndex(())
    reader.SetExtractSize(())


def _inflated_slabs(
    path: Path, reader: sitk.ImageFileReader, stored: _Stored
) -> Iterator[np.ndarray]:
    """The slabs of a compressed MetaImage, each (slices, rows, columns).

    ITK leaves what a damaged one lacks as it is, without a word.

    Raises
    ------
    InputError, zlib.error
        It is damaged: it ends early, goes on too long, or its check sum is another one.
    """
    columns, rows, slices = reader.GetSize()[:3]
    values = _value_type(reader).newbyteorder(">" if stored.big_endian else "<")
    stream = zlib.decompressobj(wbits=47)  # zlib or gzip, as MetaIO takes them
    left = stored.length

    def inflated(wanted: int) -> bytes:
        nonlocal left
        parts = []
        while wanted and not stream.eof:
            data = stream.unconsumed_tail
            if not data:
                data = file.read(min(1 << 18, left))
                left -= len(data)
            parts.append(stream.decompress(data, wanted))
            if not data and not parts[-1]:
                break
            wanted -= len(parts[-1])
        return b"".join(parts)

    step = max(1, SLAB_VOXELS // (columns * rows))
    with open_file(stored.file) as file:
        file.seek(stored.start)
        for first in range(0, slices, step):
            shape = (min(step, slices - first), rows, columns)
            wanted = math.prod(shape) * values.itemsize
            data = inflated(wanted)
            if len(data) < wanted:
                raise InputError(DAMAGED.format(path=path))
            yield np.frombuffer(data, values).reshape(shape)
        if inflated(1) or not stream.eof:
            raise InputError(DAMAGED.format(path=path))


def slabs_of(array: np.ndarray) -> Iterator[np.ndarray]:
    step = max(1, SLAB_VOXELS // (array.shape[1] * array.shape[2]))
    for first in range(0, array.shape[0], step):
        yield array[first : first + step]


def collect(
    shape: Sequence[int], slabs: Iterable[np.ndarray], cancelled: Asked | None = None
) -> _Voxels:
    """Slabs of any type put together as int16, or float32 once a value does not fit that.

    Raises
    ------
    Cancelled
        ``cancelled()``, which is asked before each slab, became true.
    """
    image, array = blank_image(shape, np.int16)
    not_finite, low, high = 0, np.inf, -np.inf
    at = 0
    for slab in slabs:
        if cancelled is not None and cancelled():
            raise Cancelled("Cancelled; nothing was written.")
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
            image, wider = blank_image(shape, np.float32)
            wider[:at] = array[:at]
            array = wider
        array[at : at + len(slab)] = slab
        at += len(slab)
    return _Voxels(image, not_finite, low, high)


def placed_as_read(
    voxels: _Voxels, header: sitk.ImageFileReader | sitk.Image, path: Path
) -> Volume:
    """The voxels on the grid of their header; dimensions past the third are dropped."""
    number = len(header.GetSize())
    direction = np.asarray(header.GetDirection()).reshape(number, number)[:3, :3]
    return placed_image(voxels, header.GetSpacing()[:3], header.GetOrigin()[:3], direction, path)


def placed_image(
    voxels: _Voxels,
    spacing: Sequence[float],
    origin: Sequence[float],
    direction: np.ndarray,
    path: Path | str,
) -> Volume:
    """The voxels on this grid, which must be straight and no larger than a body."""
    check_extent(path, voxels.image.GetSize(), spacing)
    warnings = []
    off = shear_degrees(direction)
    if not off <= SHEAR_DEGREES:
        raise InputError(NOT_STRAIGHT.format(path=path))
    if off > _ROUNDING_DEGREES:
        # The closest rotation: the polar decomposition's orthonormal factor.
        left, _, right = np.linalg.svd(direction)
        direction = left @ right
        warnings.append(STRAIGHTENED.format(path=path, degrees=off))
    image = voxels.image
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction.ravel().tolist())
    return Volume(image, voxels.not_finite, voxels.low, voxels.high, warnings=warnings)


def check_extent(path: Path | str, size: Sequence[int], spacing: Sequence[float]) -> None:
    """Refuse a volume whose voxels or whole are far too large for a CT of kidneys."""
    if any(
        mm > _COARSEST_MM or number * mm > _LONGEST_MM
        for number, mm in zip(size[:3], spacing[:3], strict=True)
    ):
        raise InputError(
            f"{path} has {' x '.join(map(str, size[:3]))} voxels of "
            f"{' x '.join(f'{mm:g}' for mm in spacing[:3])} mm, which is too large for a CT of "
            "kidneys; correct its voxel spacing or the unit of that."
        )


def shear_degrees(axes: np.ndarray) -> float:
    """How far the worst pair of three column vectors is off a right angle; NaN without a length."""
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = axes / np.linalg.norm(axes, axis=0)
    cosines = np.abs((unit.T @ unit)[np.triu_indices(3, 1)])
    return float(np.degrees(np.arcsin(np.minimum(1.0, cosines)).max()))


def tag_of(reader: sitk.ImageFileReader, key: str) -> str:
    return reader.GetMetaData(key).strip("\0 ") if reader.HasMetaDataKey(key) else ""


def slice_thickness_mm(reader: sitk.ImageFileReader) -> float:
    """SliceThickness (0018,0050) of a DICOM file; 0 where it is not told."""
    return max(0.0, number_in(tag_of(reader, "0018|0050")))


def number_in(text: str) -> float:
    """The number in a text field, 0 where there is none."""
    try:
        number = float(text)
    except ValueError:
        return 0.0
    return number if np.isfinite(number) else 0.0
