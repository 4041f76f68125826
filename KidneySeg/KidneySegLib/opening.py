"""Opening files for reading: what can be opened, how it is named, and who is silent meanwhile."""

from __future__ import annotations

import gzip
import os
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import SimpleITK as sitk

from KidneySegLib.errors import InputError

SLAB_VOXELS = 1 << 19  # read at once
ANOTHER_COPY = "copy or export it again"
DAMAGED = "{path} cannot be read, it is damaged or truncated; " + ANOTHER_COPY + "."
# What a clone without `git lfs pull` holds in place of a large file.
LFS_POINTER = (
    "{path} is a pointer of Git LFS and not the file itself; run `git lfs pull` in its repository."
)
_LFS_START = b"version https://git-lfs.github.com/spec/"
# Deflate shrinks to a thousandth at best, so a header that promises more lies.
DEFLATE_AT_BEST = 1040


def open_file(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(
            f"{path} cannot be opened ({error.strerror}); check its permissions."
        ) from error


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file only names the one that Git LFS would have fetched."""
    with open_file(path) as file:
        return file.read(len(_LFS_START)) == _LFS_START


def printable(text: str) -> str:
    """The name of a file or a sentence about it, as text that any file and any screen takes.

    Names may hold bytes that are not UTF-8; backslashes stand in their place.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


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
        named = printable(str(path))
        raise InputError(f"{named} has a name that is not UTF-8; rename it.") from error
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
