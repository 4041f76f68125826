"""Where MetaImage and NRRD files keep their voxels, held against what their headers promise.

ITK believes the header: it takes the memory first, and leaves what a damaged file lacks as it is.
"""

from __future__ import annotations

import math
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import SimpleITK as sitk

from KidneySegLib.errors import InputError
from KidneySegLib.opening import DAMAGED, DEFLATE_AT_BEST, SLAB_VOXELS, open_file

# Where a header ends at the latest; that of a segmentation tells much of each segment.
_HEADER_BYTES = 1 << 20


class Stored(NamedTuple):
    """What the header of a MetaImage or NRRD file tells of its voxels."""

    dimensions: int | None = None
    coding: str = ""  # raw, zlib (of a MetaImage), gzip (of NRRD); else what follows is of no use
    file: Path = Path()
    start: int = 0  # the first byte that may be a voxel's
    length: int = 0  # bytes from there on that may be
    big_endian: bool = False  # of a MetaImage


def stored_in(path: Path) -> Stored:
    """Nothing of it for other formats."""
    with open_file(path) as file:
        if path.suffix.lower() in (".mha", ".mhd"):
            return _stored_in_meta(path, file)
        return _stored_in_nrrd(path, file) if file.read(4) == b"NRRD" else Stored()


def _stored_in_meta(path: Path, file: BinaryIO) -> Stored:
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
        return Stored(dimensions)
    length = where.stat().st_size - start
    if not zipped:
        return Stored(dimensions, "raw", where, start, length)
    length = min(_whole(fields.get("CompressedDataSize", "")) or length, length)
    order = is_true("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "F"))
    return Stored(dimensions, "zlib", where, start, length, order)


def _stored_in_nrrd(path: Path, file: BinaryIO) -> Stored:
    start = file.read(_HEADER_BYTES)
    header = re.split(rb"\r?\n\r?\n", start, maxsplit=1)[0]
    fields = {
        name.replace(b" ", b"").lower(): value.decode(errors="replace").lower()
        for name, value in re.findall(rb"(?m)^([\w ]+):(?!=) *(\S*)", header)
    }
    dimensions = _whole(fields[b"dimension"]) if b"dimension" in fields else None
    if b"datafile" in fields or len(header) == len(start):
        return Stored(dimensions)
    length = path.stat().st_size - len(header)
    return Stored(dimensions, fields.get(b"encoding", ""), path, len(header), length)


def _whole(text: str) -> int:
    """The whole number that a text begins with, 0 where there is none."""
    found = re.match(r"[0-9]{1,18}(?!\S)", text)
    return int(found[0]) if found else 0


def check_stored(path: Path, header: sitk.ImageFileReader) -> Stored:
    """What is told of the voxels; refused if a MetaImage or NRRD has fewer than it promises.

    ITK would take the memory for them first.
    """
    stored = stored_in(path)
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


def inflated_slabs(
    path: Path, reader: sitk.ImageFileReader, stored: Stored
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
