"""Image files to volumes: voxels read, counted and placed, before anybody asks what they show.

Voxels arrive in slabs and end as int16 where every value is a whole number (Hounsfield units are),
as float32 otherwise; a whole volume is never held in float64.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from KidneySegLib.errors import Cancelled, InputError
from KidneySegLib.geometry import blank_image
from KidneySegLib.opening import (
    ANOTHER_COPY,
    DAMAGED,
    LFS_POINTER,
    SLAB_VOXELS,
    is_lfs_pointer,
    itk_name,
    open_file,
    quiet,
    unzipped_start,
)
from KidneySegLib.storedvoxels import check_stored, inflated_slabs, stored_in

# Whether to stop.
Asked = Callable[[], bool]

# What a voxel that is not a number is taken for: air, in Hounsfield units.
AIR_HU = -1024

# The imaging of a case folder in the layout of KiTS19.
IMAGING = ("imaging.nii.gz", "imaging.nii", "imaging.nrrd")

# No CT of kidneys is coarser or longer; mostly a wrong unit, and terabytes to plan for.
_COARSEST_MM = 100.0
_LONGEST_MM = 5000.0

# MetaIO and NrrdIO crash where a header claims more dimensions.
_MOST_DIMENSIONS = 10
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


def header_of(path: Path, image_io: str = "") -> sitk.ImageFileReader:
    """A reader that has read the header of a file; voxels of NIfTI are for `nifti` to read.

    Raises
    ------
    InputError
        The file is damaged, of no known format, or its name is not UTF-8.
    """
    name = itk_name(path)
    stored = stored_in(path)
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
                if is_lfs_pointer(path):
                    raise InputError(LFS_POINTER.format(path=path)) from error
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
                slabs = inflated_slabs(path, reader, stored)
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
