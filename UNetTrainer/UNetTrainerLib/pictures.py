"""Pictures and masks of single slices: PNG, TIFF, JPEG and BMP."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import Image

from KidneySegLib.errors import InputError
from KidneySegLib.opening import (
    ANOTHER_COPY,
    LFS_POINTER,
    is_lfs_pointer,
    itk_name,
    open_file,
    quiet,
)

_GRAY_ONCE_CONVERTED = {"1": "L", "LA": "L"}
_COLOUR = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")

# What Pillow raises for damaged files, besides its own kinds of OSError.
_PILLOWS = (
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, struct.error,
)  # fmt: skip

# Below, a mask stored as JPEG may hold 1 or 2 that the compression changed; above it is white.
_WHITE = 128


def picture_size(path: Path) -> tuple[int, int]:
    """Rows and columns, from the header alone.

    Raises:
        InputError: it is no picture.
    """
    with _opened(path, pixels=False) as (picture, _):
        return picture.height, picture.width


def read_picture(path: Path) -> np.ndarray:
    """A picture as (channels, rows, columns): one channel or three, uint8, uint16 or int16.

    A palette becomes colours, and transparency is dropped.

    Raises:
        InputError: it is no picture, is damaged or truncated, or holds several pictures or
            fractions.
    """
    with _opened(path) as (picture, deep):
        if deep:
            array = _colours_of_16_bit(path)
        elif picture.mode in _COLOUR:
            array = np.asarray(picture.convert("RGB"))
        else:
            array = _gray(picture, path)
    return np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


def read_mask(path: Path) -> np.ndarray:
    """Labels as uint8 (rows, columns): 0 background, 1 kidney, 2 tumour.

    A mask in black and white, 0 and 255 or 65535, becomes 0 and 1. A palette counts by its
    indices. Colours must be shades of gray.

    Raises:
        InputError: as `read_picture`, and for other values, named.
    """
    with _opened(path) as (picture, _):
        lossy = picture.format == "JPEG"
        indexed = picture.mode in ("P", "1")
        if indexed:
            array = np.asarray(picture).astype(np.uint8)
    if not indexed:
        channels = read_picture(path)
        if (channels != channels[0]).any():
            raise InputError(
                f"{path} is a mask in colour; save one gray value a label: 0 background, 1 kidney, "
                "2 tumour."
            )
        array = channels[0]
    if lossy:
        if 0 < array.max() < _WHITE:
            raise InputError(
                f"{path} is a JPEG, whose compression changes labels of 1 and 2; save it as PNG."
            )
        return (array >= _WHITE).astype(np.uint8)
    found = np.unique(array)
    for white in (255, 65535):
        if found[-1] == white and np.isin(found, (0, white)).all():
            return (array == white).astype(np.uint8)
    if not np.isin(found, (0, 1, 2)).all():
        raise InputError(
            f"{path} holds {_values(found)} where 0, 1 and 2, or black and white, are "
            "known; renumber it."
        )
    return array.astype(np.uint8)


def _values(found: np.ndarray, most: int = 6) -> str:
    text = ", ".join(str(value) for value in found[:most].tolist())
    return f"{text} and {len(found) - most} values more" if len(found) > most else text


@contextmanager
def _opened(path: Path, pixels: bool = True) -> Iterator[tuple[Image.Image, bool]]:
    """A picture, with its pixels read or from its header alone.

    The flag tells of colours of 16 bit, of which Pillow keeps 8.
    """
    with open_file(path) as file, ExitStack() as stack:
        try:
            picture = stack.enter_context(Image.open(file))
            frames = getattr(picture, "n_frames", 1)
            large = picture.width * picture.height > (Image.MAX_IMAGE_PIXELS or np.inf)
            deep = picture.mode.startswith("RGB") and any(
                ";16" in str(tile[3]) for tile in getattr(picture, "tile", ())
            )
            if pixels and frames == 1 and not large:
                picture.load()
        except Image.DecompressionBombError:
            frames, large, deep = 1, True, False
        except _PILLOWS as error:
            if is_lfs_pointer(path):
                raise InputError(LFS_POINTER.format(path=path)) from error
            raise InputError(
                f"{path} cannot be read as a picture, it is damaged or truncated; {ANOTHER_COPY}."
            ) from error
        if large:
            raise InputError(f"{path} is too large for a slice; {ANOTHER_COPY}.")
        if frames > 1:
            raise InputError(f"{path} holds {frames} pictures; save each as a file of its own.")
        yield picture, deep


def _gray(picture: Image.Image, path: Path) -> np.ndarray:
    array = np.asarray(picture.convert(_GRAY_ONCE_CONVERTED.get(picture.mode, picture.mode)))
    for kind in (np.uint8, np.uint16, np.int16):
        if array.dtype == kind:
            return array
    if (np.rint(array) == array).all():
        for kind in (np.uint16, np.int16):
            limits = np.iinfo(kind)
            if limits.min <= array.min() and array.max() <= limits.max:
                return array.astype(kind)
    raise InputError(f"{path} does not hold values of 8 or 16 bit; save it with 16 bit.")


def _colours_of_16_bit(path: Path) -> np.ndarray:
    with quiet():
        try:
            array = sitk.GetArrayFromImage(sitk.ReadImage(itk_name(path)))
        except RuntimeError as error:
            raise InputError(f"{path} cannot be read, it is damaged; {ANOTHER_COPY}.") from error
    return array.reshape(*array.shape[-3:])[..., :3]
