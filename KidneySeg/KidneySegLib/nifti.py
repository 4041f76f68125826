"""NIfTI files, read here rather than by ITK.

ITK fills what a truncated file lacks with arbitrary values without a word, and needs the whole
volume in float64 where the file stores that or a scale slope.
"""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import SimpleITK as sitk

from KidneySegLib.errors import InputError
from KidneySegLib.geometry import grid_difference
from KidneySegLib.opening import (
    ANOTHER_COPY,
    DEFLATE_AT_BEST,
    SLAB_VOXELS,
    complete_gzip,
    open_file,
)
from KidneySegLib.volumes import (
    NOT_STRAIGHT,
    SHEAR_DEGREES,
    STRAIGHTENED,
    Asked,
    Volume,
    check_shape,
    collect,
    header_of,
    placed_as_read,
    shear_degrees,
)

_HEADER_BYTES = 348
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
    order = next((o for o in "<>" if start[:4] == struct.pack(o + "i", _HEADER_BYTES)), None)
    if order is None or len(start) < _HEADER_BYTES:
        raise InputError(f"{path} has a damaged NIfTI header; {ANOTHER_COPY}.")

    def field_at(offset: int, code: str) -> tuple:
        return struct.unpack_from(order + code, start, offset)

    dims = field_at(40, "8h")
    (kind,) = field_at(70, "h")
    spacing = field_at(80, "3f")
    offset, slope, intercept = field_at(108, "3f")
    sform = np.array(field_at(280, "12f")).reshape(3, 4)
    if (
        not 1 <= dims[0] <= 7
        or any(extent < 1 for extent in dims[1 : dims[0] + 1])
        or not 0 <= offset < np.inf
    ):
        raise InputError(f"{path} has a damaged NIfTI header; {ANOTHER_COPY}.")
    if kind not in _NIFTI_TYPES:
        known = {32: "complex numbers", 1792: "complex numbers", 128: "colours", 2304: "colours"}
        what = known.get(kind, f"values of a type that is not supported (code {kind})")
        raise InputError(f"{path} holds {what} and is no CT; give a CT of one value a voxel.")
    # ITK takes 1 mm without a word, and every volume in ml would be wrong.
    if not np.isfinite(spacing[: dims[0]]).all() or 0 in spacing[: dims[0]]:
        raise InputError(f"{path} has no usable voxel spacing; {ANOTHER_COPY}.")
    if slope == 0 or not np.isfinite([slope, intercept]).all():
        slope, intercept = 1.0, 0.0  # the standard: no scaling
    return _NiftiHeader(
        size=tuple(dims[1 : dims[0] + 1]),
        type=np.dtype(order + _NIFTI_TYPES[kind]),
        offset=max(_HEADER_BYTES, int(offset)),  # as nifticlib takes what lies within the header
        slope=slope,
        intercept=intercept,
        sform=sform,
    )


@dataclass(frozen=True)
class _OpenNifti:
    header: _NiftiHeader
    reader: sitk.ImageFileReader  # that has read the header, too
    slabs: Iterator[np.ndarray]  # (slices, rows, columns), the values that are meant
    warnings: list[str]


@contextmanager
def _opened(path: Path) -> Iterator[_OpenNifti]:
    with open_file(path) as file:
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream = gzip.GzipFile(fileobj=file) if zipped else file
        with complete_gzip(path):
            start = stream.read(_HEADER_BYTES)
        header = _nifti_header(start, path)
        warnings = []
        try:
            reader = header_of(path, "NiftiImageIO")
        except InputError as refused:
            off = shear_degrees(header.sform[:, :3])
            if str(refused) != NOT_STRAIGHT.format(path=path) or not off <= SHEAR_DEGREES:
                raise
            reader = _straightened(path)
            warnings.append(STRAIGHTENED.format(path=path, degrees=off))
        check_shape(path, reader)
        needed = header.offset + int(np.prod(header.size, dtype=object)) * header.type.itemsize
        if needed > os.fstat(file.fileno()).st_size * (DEFLATE_AT_BEST if zipped else 1):
            raise InputError(
                f"{path} is truncated (its header promises {needed} bytes); {ANOTHER_COPY}."
            )
        with complete_gzip(path):
            yield _OpenNifti(header, reader, _nifti_slabs(stream, header, path), warnings)


def read_nifti(path: Path, cancelled: Asked | None = None) -> Volume:
    with _opened(path) as file:
        voxels = collect(file.header.size[2::-1], file.slabs, cancelled)
        volume = placed_as_read(voxels, file.reader, path)
    volume.warnings += file.warnings
    volume.rescaled = file.header.intercept != 0
    return volume


def holds_nifti(path: Path, image: sitk.Image) -> bool:
    """Whether a file holds the voxels and the grid of a 3-D image; a few slices at a time.

    Raises
    ------
    InputError
        The file is damaged.
    """
    meant = sitk.GetArrayViewFromImage(image)
    with _opened(path) as file:
        if grid_difference(file.reader, image) is not None:
            return False
        at, same = 0, True
        for slab in file.slabs:
            same = same and np.array_equal(slab, meant[at : at + len(slab)])
            at += len(slab)
    return same


def _nifti_slabs(
    stream: BinaryIO | gzip.GzipFile, header: _NiftiHeader, path: Path
) -> Iterator[np.ndarray]:
    columns, rows, slices = header.size[:3]
    step = max(1, SLAB_VOXELS // (columns * rows))
    stream.seek(header.offset)
    for first in range(0, slices, step):
        number = min(step, slices - first)
        wanted = number * rows * columns * header.type.itemsize
        data = stream.read(wanted)
        if len(data) < wanted:
            raise InputError(
                f"{path} is truncated (it ends before slice {first + number} of {slices}); "
                f"{ANOTHER_COPY}."
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
        return header_of(path, "NiftiImageIO")
    finally:
        if before is None:
            del os.environ[switch]
        else:
            os.environ[switch] = before
