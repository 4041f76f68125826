"""Label maps, segmentations and reports to disk: all of a file or nothing.

Whatever is written goes to a temporary name beside its place first and is moved there once it
is complete, so that a full disk, a crash or Ctrl-C leaves what was there before. ITK does not
notice when a disk is full, so an image is read back and compared before it counts as written.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import SimpleITK as sitk

from KidneySegLib.errors import InputError, KidneySegError, UsageError
from KidneySegLib.geometry import grid_difference
from KidneySegLib.opening import quiet
from KidneySegLib.reading import holds
from KidneySegLib.volumes import header_of

# What a label map may be written as; the longest first, `.seg.nrrd` is a `.nrrd` too.
LABEL_SUFFIXES = (".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".mha")

# Whose headers round a grid.
_NIFTI = (".nii.gz", ".nii")

# Below this much room a failed write is put down to a full disk.
_FULL_BYTES = 1 << 20

# Temporary names in use and what they stand for. Writers may nest, to let several files appear
# together; a message names the file that somebody asked for.
_STANDS_FOR: dict[Path, Path] = {}


@dataclass(frozen=True)
class Segment:
    """One structure of a label map, as 3D Slicer shows it.

    Attributes
    ----------
    label
        Its value in the label map.
    id
        Stable identifier within the segmentation, for programs.
    name
        For people.
    color
        Red, green and blue from 0 to 1.
    side
        SNOMED CT code and meaning of its laterality, or None.
    """

    label: int
    id: str
    name: str
    color: tuple[float, float, float]
    side: tuple[str, str] | None = None

    @property
    def terminology(self) -> str:
        """3D Slicer's terminology entry.

        Its parts are context, category, type, modifier, then the same of the anatomic region
        (empty); each code is scheme, value and meaning. SNOMED CT: 123037004 anatomical
        structure, 64033007 kidney, 7771000 left, 24028007 right.
        """
        modifier = f"SCT^{self.side[0]}^{self.side[1]}" if self.side else "^^"
        return "~".join(
            (
                "Segmentation category and type - DICOM master list",
                "SCT^123037004^Anatomical Structure",
                "SCT^64033007^Kidney",
                modifier,
                "Anatomic codes - DICOM master list",
                "^^",
                "^^",
            )
        )


# Orange and blue that colour-blind people tell apart too (Okabe and Ito, 2008); merged kidneys
# have the colour that the DICOM master list recommends for a kidney.
LEFT_KIDNEY = Segment(
    1, "left_kidney", "Left kidney", (0.902, 0.624, 0.0), ("7771000", "Left")
)  # fmt: skip
RIGHT_KIDNEY = Segment(
    2, "right_kidney", "Right kidney", (0.337, 0.706, 0.914), ("24028007", "Right")
)  # fmt: skip
KIDNEYS = Segment(1, "kidneys", "Kidneys", (0.725, 0.4, 0.325))

# The segments of the two kinds of label map: `--labels sides` and `--labels kidney`.
SIDES = (LEFT_KIDNEY, RIGHT_KIDNEY)
MERGED = (KIDNEYS,)


def write_labels(
    labels: sitk.Image, path: Path | str, segments: Sequence[Segment] | None = None
) -> None:
    """Write a label map, or with `.seg.nrrd` a segmentation of 3D Slicer.

    Parameters
    ----------
    labels
        3-D uint8.
    path
        Ends in one of `LABEL_SUFFIXES`; its folder is made if there is none.
    segments
        What the labels mean; needed for `.seg.nrrd`, not written to the other formats.

    Raises
    ------
    UsageError
        Another suffix, or a name that is not UTF-8.
    KidneySegError
        The folder cannot be written to, the disk is full or the format cannot hold the grid;
        nothing has changed then.
    """
    path = Path(path)
    _check_name(path)
    suffix = _label_suffix(path)
    if suffix == ".seg.nrrd":
        if not segments:
            raise ValueError("A .seg.nrrd needs to know what its labels mean.")
        labels = _as_slicer_segmentation(labels, segments)
    with atomic(path) as temporary:
        with quiet():
            try:
                sitk.WriteImage(labels, str(temporary), useCompression=suffix != ".nii")
            except RuntimeError as error:
                raise _not_written(path) from error
        _compare(labels, temporary, path)


def write_json(data: Any, path: Path | str) -> None:
    """Write data as indented JSON; what of a name is no UTF-8 is escaped.

    Raises
    ------
    KidneySegError
        The folder cannot be written to or the disk is full; nothing has changed then.
    ValueError
        A number is NaN or infinite, which JSON has no word for.
    """
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def check_output(path: Path | str, suffixes: Sequence[str] | None = LABEL_SUFFIXES) -> None:
    """Make sure, before any work, that a file can be written; nothing is created.

    Parameters
    ----------
    suffixes
        What the name may end in; None for a folder, which need not exist yet.

    Raises
    ------
    UsageError
        The name ends in something else, is not UTF-8, or is that of a folder (of a file where a
        folder is asked for).
    KidneySegError
        Its folder cannot be written to, or the name is too long.
    """
    path = Path(path)
    _check_name(path)
    try:
        if suffixes is None:
            if path.exists() and not path.is_dir():
                raise UsageError(f"{path} is a file; give a folder for the output.")
            parent = path
        else:
            _suffix(path, suffixes)
            if path.is_dir():
                raise UsageError(f"{path} is a folder; give the name of a file for the output.")
            parent = path.parent
        while not parent.exists() and parent != parent.parent:
            parent = parent.parent
        # Permission bits do not tell of read-only disks and network shares: only a try does.
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise _failed(path, error) from error


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """A temporary name for a file that replaces `path` when the block ends without an error.

    The name is short and hidden, with the same folder and suffix (in small letters: ITK writes no
    `.NII.GZ`). On any error, Ctrl-C included, the temporary file and the folders made for it are
    gone again and what was at `path` is untouched.

    Raises
    ------
    KidneySegError
        In place of an `OSError`, such as a full disk, a folder without write permission.
    """
    path = Path(path)
    made: list[Path] = []
    name = path.name.lower()
    ending = next((one for one in LABEL_SUFFIXES if name.endswith(one)), path.suffix.lower())
    temporary = path.with_name(f".{secrets.token_hex(4)}{ending}")
    done = False
    _STANDS_FOR[temporary] = path
    try:
        _make_folders(path.parent, made)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # a network share reports that it is full here at the latest
        os.replace(temporary, path)
        done = True
    except OSError as error:
        raise _failed(path, error) from error
    finally:
        del _STANDS_FOR[temporary]
        if not done:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            for folder in reversed(made):
                with suppress(OSError):  # not empty: somebody else uses it by now
                    folder.rmdir()


@contextmanager
def whole_folder(path: Path | str) -> Iterator[Path]:
    """A temporary folder that becomes `path`, new or empty, when the block ends without an error.

    On any error, Ctrl-C included, it is gone again, with the folders made for it. An empty folder
    stays the one it is, since it may be a link, a mounted disk or in a place where nothing else
    may be written: the temporary one lies in it, and what it holds is moved up.

    Raises
    ------
    UsageError
        `path` is a file, or a folder that holds something.
    KidneySegError
        In place of an `OSError`, such as a full disk, a folder without write permission.
    """
    path = Path(path) if Path(path).name else Path(path).resolve()  # such as "."
    check_output(path, None)
    there = path.is_dir()
    if there and any(path.iterdir()):
        raise UsageError(f"{path} is not empty; give a new folder for the output.")
    made: list[Path] = []
    moved: list[Path] = []
    temporary = (path if there else path.parent) / f".{secrets.token_hex(4)}"
    done = False
    _STANDS_FOR[temporary] = path
    try:
        _make_folders(path.parent, made)
        temporary.mkdir()
        yield temporary
        if there:
            for file in sorted(temporary.iterdir()):
                moved.append(path / file.name)
                os.replace(file, moved[-1])
            temporary.rmdir()
        else:
            os.replace(temporary, path)
        done = True
    except OSError as error:
        raise _failed(path, error) from error
    finally:
        del _STANDS_FOR[temporary]
        if not done:
            shutil.rmtree(temporary, ignore_errors=True)
            for file in moved:
                with suppress(OSError):
                    file.unlink(missing_ok=True)
            for folder in reversed(made):
                with suppress(OSError):  # not empty: somebody else uses it by now
                    folder.rmdir()


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Let one run at a time write into a folder, which is made where there is none.

    The system takes the lock back when the process ends, in whatever way. On a file system
    without locks nobody is kept out.

    Raises
    ------
    UsageError
        Another run is writing there.
    KidneySegError
        It cannot be written to.
    """
    made: list[Path] = []
    path = folder / ".kidneyseg.lock"
    try:
        _make_folders(folder, made)
        file = path.open("ab")
    except OSError as error:
        raise _failed(folder, error) from error
    # One that another run has just removed keeps nobody out.
    if not _locked(file) or not os.fstat(file.fileno()).st_nlink:
        file.close()
        raise UsageError(
            f"Another run is writing into {folder}; wait for its end, or give another folder for "
            "the output."
        )
    try:
        yield
    finally:
        if sys.platform == "win32":
            file.close()  # open files cannot be removed there
            with suppress(OSError):
                path.unlink()
        else:
            with suppress(OSError):
                path.unlink()
            file.close()
        for one in reversed(made):
            with suppress(OSError):  # not empty, as it should be
                one.rmdir()


def _locked(file: BinaryIO) -> bool:
    """Whether no other process has locked this file; ours has then, where that can be done."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def _make_folders(folder: Path, made: list[Path]) -> None:
    """Make a folder and its parents; those that were missing go to `made`, outermost first."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for one in reversed(missing):
        with suppress(FileExistsError):  # another run was faster
            one.mkdir()
            made.append(one)


def _check_name(path: Path) -> None:
    """Refuse a name that the C++ libraries cannot take, before they end the process."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{path} has a name that is not UTF-8; give another one.") from error


def _suffix(path: Path, suffixes: Sequence[str]) -> str:
    name = path.name.lower()
    for suffix in suffixes:
        if name.endswith(suffix) and len(name) > len(suffix):
            return suffix
    raise UsageError(f"{path} must end in {' or '.join(suffixes)}; choose such a name.")


def _label_suffix(path: Path) -> str:
    return _suffix(path, LABEL_SUFFIXES)


def asked_for(path: Path) -> Path:
    """What somebody named, of a path that may be a temporary name of `atomic`."""
    while path in _STANDS_FOR:
        path = _STANDS_FOR[path]
    if path.parent in _STANDS_FOR:
        path = _STANDS_FOR[path.parent] / path.name
    return path


def _failed(path: Path, error: OSError) -> KidneySegError:
    path = asked_for(path)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return KidneySegError(
            f"{path} cannot be written, the disk is full; free some space and run again."
        )
    if error.errno == errno.ENAMETOOLONG:
        return KidneySegError(
            f"{path} cannot be written, its name is too long; give a shorter one."
        )
    reason = error.strerror or str(error)
    return KidneySegError(
        f"{path} cannot be written ({reason}); choose a folder that you may write to."
    )


def _not_written(path: Path) -> KidneySegError:
    """For a failure that ITK gives no reason for."""
    path = asked_for(path)
    folder = path.parent
    full = folder.exists() and shutil.disk_usage(folder).free < _FULL_BYTES
    reason = "the disk is full" if full else "the disk may be full or not writable"
    return KidneySegError(f"{path} cannot be written, {reason}; free some space and run again.")


def _compare(labels: sitk.Image, written: Path, path: Path) -> None:
    """Read a written label map back: it must be what was meant, to the last voxel."""
    try:
        if holds(written, labels):
            return
        difference = grid_difference(header_of(written), labels)
    except InputError as error:
        raise _not_written(path) from error
    if difference is None or not written.name.endswith(_NIFTI):
        raise _not_written(path)
    raise KidneySegError(
        f"{asked_for(path)} cannot hold the grid of the CT, which NIfTI rounds ({difference}); "
        "give a name that ends in .nrrd or .mha."
    )


def _as_slicer_segmentation(labels: sitk.Image, segments: Sequence[Segment]) -> sitk.Image:
    """The label map with the header fields by which 3D Slicer knows a segmentation.

    The fields are those of Slicer's own segmentation files: one layer, since kidneys do not
    overlap, and the CT's grid as the reference geometry, which Slicer keeps when somebody edits
    the segmentation and saves it again.
    """
    image = sitk.Image(labels)
    last = [extent - 1 for extent in image.GetSize()]
    fields = {
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_ConversionParameters": f"Reference image geometry|{_geometry(labels)}|&",
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    for number, segment in enumerate(segments):
        for key, value in {
            "ID": segment.id,
            "Name": segment.name,
            "NameAutoGenerated": "0",
            "Color": " ".join(f"{part:g}" for part in segment.color),
            "ColorAutoGenerated": "0",
            "LabelValue": str(segment.label),
            "Layer": "0",
            "Extent": f"0 {last[0]} 0 {last[1]} 0 {last[2]}",
            "Tags": f"TerminologyEntry:{segment.terminology}|",
        }.items():
            fields[f"Segment{number}_{key}"] = value
    for key, value in fields.items():
        image.SetMetaData(key, value)
    return image


def _geometry(image: sitk.Image) -> str:
    """A grid as 3D Slicer writes it: the matrix from (i, j, k) to RAS mm by rows, the extent."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    matrix[:3, 3] = image.GetOrigin()
    matrix[:2] *= -1.0  # from LPS to RAS
    extent = [bound for size in image.GetSize() for bound in (0, size - 1)]
    return "".join(f"{number};" for number in [*matrix.ravel().tolist(), *extent])
