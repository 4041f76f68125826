"""Cases on the model's working grid, made once and read memory-mapped.

A prepared case is three files in the cache folder: intensities (slices, channels, rows, columns) as
16-bit integers, labels (slices, rows, columns) as uint8, and its facts as JSON, written last. Their
names hold a digest of the source files' places, sizes and dates and of what shapes the arrays, so a
change of any of these prepares the case anew, and a build that was killed goes on where it was.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from filelock import BaseFileLock, FileLock, Timeout

from KidneySegLib.answer import answer
from KidneySegLib.backends.torchbackend import TorchBackend
from KidneySegLib.errors import InputError, KidneySegError, UsageError
from KidneySegLib.geometry import AxialGrid
from KidneySegLib.preprocess import (
    Preprocessing,
    body_box,
    in_view,
    plan,
    resample,
    spacing_in_view,
)
from KidneySegLib.volumes import AIR_HU, header_of
from UNetTrainerLib.cases import Case
from UNetTrainerLib.loading import read_case
from UNetTrainerLib.memory import available_bytes
from UNetTrainerLib.pictures import picture_size

Kind = type[np.int16] | type[np.uint16]

LAYOUT = 4  # of the cached files; a change makes older ones unused
HU_RANGE = (-1024, 3071)
NARROWEST_WINDOW = 16  # intensities are kept as whole numbers, and fewer steps would show

_SHAPING = ("scaling", "pixel_mm", "slice_mm", "crop", "view")
_BUILDING = ".building-"
_LOCK = "lock"
_PIXEL_SPACING_IS_MISSING = (
    "{image} has no pixel spacing; add pixel_spacing_mm to index.csv, or train with --pixel-mm 0."
)


@dataclass(frozen=True)
class CachedCase:
    """A prepared case. It holds no open file, so a thousand of them cost nothing.

    Attributes:
        voxels_file, labels_file: NumPy arrays, see `voxels` and `labels`.
        prior_file: the same for `prior`; None without a finder.
        spacing_mm: (slice, row, column) of the working grid; all three are those of the
            preprocessing's view, here and below.
        shape: (rows, columns).
        labelled_slices: slices that hold any label.
        label_counts: pixels of each label, 0, 1 and 2.
        value_range: smallest and largest stored intensity.
        fill: stored intensity outside the slice: air, or the smallest where values are no HU.
        hu_unit: what one HU is in stored intensities. Where values are no HU, as in pictures
            scaled by their own minimum and maximum, it is 1/400 of their range: what one HU is of
            the usual window.
    """

    case: Case
    voxels_file: Path
    labels_file: Path
    spacing_mm: tuple[float, float, float]
    slices: int
    channels: int
    shape: tuple[int, int]
    labelled_slices: tuple[int, ...]
    label_counts: tuple[int, int, int]
    value_range: tuple[float, float]
    fill: float
    hu_unit: float
    prior_file: Path | None = None

    def voxels(self) -> np.ndarray:
        """Memory-mapped int16 or uint16 of shape (slices, channels, rows, columns).

        HU where the model has a window; else any linear scale of them, since each volume's own
        minimum and maximum become 0 and 1 anyway. The file is opened anew by every call and closed
        with the last view of the array.
        """
        return np.load(self.voxels_file, mmap_mode="r")

    def labels(self) -> np.ndarray:
        """Memory-mapped uint8 of shape (slices, rows, columns): 0, 1 kidney, 2 tumour."""
        return np.load(self.labels_file, mmap_mode="r")

    def prior(self) -> np.ndarray:
        """Memory-mapped uint8 of the labels' shape: what a finder answered, 0..255 for 0..1."""
        assert self.prior_file is not None, "prepared without a finder"
        return np.load(self.prior_file, mmap_mode="r")


def predict_size(cases: Sequence[Case], preprocessing: Preprocessing, channels: int = 1) -> int:
    """Bytes that the prepared cases take at most, from the headers alone.

    How much air around the body will be left out is in no header, so with
    ``preprocessing.crop`` they take less.

    Raises:
        InputError: a header that cannot be read, or a picture without the spacing it needs.
    """
    return sum(_Size.of(case, preprocessing).cached(channels) for case in cases)


def build_cache(
    cases: Sequence[Case],
    folder: Path,
    preprocessing: Preprocessing,
    channels: int = 1,
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
    finder: TorchBackend | None = None,
) -> list[CachedCase]:
    """Bring every case onto the working grid, skipping those that are there already.

    Args:
        folder: may be shared by runs, at the same time too; what other runs have prepared with
            other choices stays.
        channels: of a slice; 1 for CT.
        progress: called with the number of cases that are ready and of all.
        workers: threads; by default one a core, fewer where the largest case would not fit so
            often into the free memory.
        finder: its answer for each case is kept too.

    Returns:
        The prepared cases, in the order of ``cases``.

    Raises:
        UsageError: a window too narrow for whole numbers.
        InputError: a case that cannot be used, or a disk that is too small for all of them, which
            is found out before anything is written.
        KidneySegError: the folder cannot be written to, or the disk is full after all; finished
            cases stay and no half one.
    """
    _check_window(preprocessing)
    homes = [_Home(case, folder, preprocessing, channels, finder) for case in cases]
    cached = [home.known() for home in homes]
    missing = {number for number, item in enumerate(cached) if item is None}
    done = len(cases) - len(missing)
    if progress is not None and done:
        progress(done, len(cases))
    if missing:
        sizes = {number: _Size.of(cases[number], preprocessing) for number in missing}
        _check_room(sum(size.cached(channels) for size in sizes.values()), folder)
        largest = max(size.memory(channels) for size in sizes.values())
        threads = workers or _threads(largest)
        with _scratch(folder) as scratch, ThreadPoolExecutor(threads) as pool:
            # The largest first, so that no thread is left with one while the others are idle.
            order = sorted(missing, key=lambda number: -sizes[number].memory(channels))
            futures = {
                pool.submit(homes[number].prepare, preprocessing, scratch): number
                for number in order
            }
            try:
                for future in as_completed(futures):
                    cached[futures[future]] = future.result()
                    done += 1
                    if progress is not None:
                        progress(done, len(cases))
            finally:
                pool.shutdown(cancel_futures=True)
    return [item for item in cached if item is not None]


@dataclass(frozen=True)
class _Size:
    """Voxels of a case as stored and on the working grid, known from its header."""

    stored: int
    working: int

    @classmethod
    def of(cls, case: Case, preprocessing: Preprocessing) -> _Size:
        shape, spacing_mm = _header(case, preprocessing)
        first, second, third = in_view(np.empty(shape, np.bool_), preprocessing.view).shape
        spacing_mm = spacing_in_view(spacing_mm, preprocessing.view)
        grid = plan((first, second, third), spacing_mm, preprocessing)
        return cls(int(np.prod(shape)), grid.slices * int(np.prod(grid.shape)))

    def cached(self, channels: int) -> int:
        """Bytes on the disk."""
        return self.working * (2 * channels + 1)

    def memory(self, channels: int) -> int:
        """Bytes in memory while the case is prepared: float32 at the worst, labels as masks."""
        return self.stored * (4 * channels + 2) + self.working * (6 * channels + 6)


def _header(
    case: Case, preprocessing: Preprocessing
) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Axial shape and spacing in mm without reading a voxel."""
    if case.is_slice:
        rows, columns = picture_size(case.image)
        if preprocessing.pixel_mm is not None and case.pixel_mm is None:
            raise InputError(_PIXEL_SPACING_IS_MISSING.format(image=case.image))
        pixel_mm = case.pixel_mm or 1.0
        return (1, rows, columns), (1.0, pixel_mm, pixel_mm)
    try:
        header = header_of(case.image)
    except InputError:
        # Axes a little off right angles, which the reader repairs; or it says what is wrong.
        _, labels, spacing_mm = read_case(case)
        slices, rows, columns = labels.shape
        return (slices, rows, columns), spacing_mm
    volume = sitk.Image(1, 1, 1, sitk.sitkUInt8)
    dimensions = header.GetDimension()
    direction = np.reshape(header.GetDirection(), (dimensions, dimensions))
    if dimensions < 3:
        raise InputError(f"{case.image} is a 2-D image; give the whole CT volume.")
    volume.SetDirection(direction[:3, :3].ravel().tolist())
    grid = replace(AxialGrid.of(volume), size=header.GetSize()[:3], spacing=header.GetSpacing()[:3])
    return grid.shape, grid.spacing_mm


def _check_window(preprocessing: Preprocessing) -> None:
    low, high = preprocessing.window_hu
    if preprocessing.scaling == "window" and high - low < NARROWEST_WINDOW:
        raise UsageError(
            f"A window from {low:g} to {high:g} is too narrow for intensities kept as whole "
            "numbers; train with --scaling minmax."
        )


def _check_room(needed: int, folder: Path) -> None:
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise InputError(
            f"The prepared slices need about {_amount(needed)} but {folder} has {_amount(free)} "
            "free; choose another --cache, or a larger --pixel-mm."
        )


def _amount(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _threads(largest: int) -> int:
    """Threads rather than processes: unpacking and resampling run outside the interpreter lock."""
    at_once = available_bytes(torch.device("cpu")) // (largest + 1)
    return max(1, min(os.cpu_count() or 1, at_once))


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder for unfinished files beside the finished ones, gone at the end.

    A process keeps a lock in its own for as long as it lives; folders whose lock is free are what
    killed ones left, and are cleared away.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for other in folder.glob(f"{_BUILDING}*"):
            _clear_if_abandoned(other)
        scratch, lock = _locked_folder(folder)
    except OSError as error:
        raise _not_written(folder, error) from error
    try:
        yield scratch
    finally:
        lock.release()
        shutil.rmtree(scratch, ignore_errors=True)


def _locked_folder(parent: Path) -> tuple[Path, BaseFileLock]:
    while True:
        scratch = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=parent))
        lock = FileLock(scratch / _LOCK)
        lock.acquire()
        if (scratch / _LOCK).exists():
            return scratch, lock
        lock.release()  # somebody cleared it away between its making and its locking


def _clear_if_abandoned(scratch: Path) -> None:
    if not (scratch / _LOCK).exists():  # made this very moment
        return
    try:
        with FileLock(scratch / _LOCK, timeout=0):
            shutil.rmtree(scratch, ignore_errors=True)
    except Timeout:
        return
    shutil.rmtree(scratch, ignore_errors=True)  # Windows keeps a locked file until here


def _not_written(folder: Path, error: OSError) -> KidneySegError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return KidneySegError(
            f"The prepared slices cannot be written to {folder}, the disk is full; free some space "
            "and run again, which goes on from the finished cases, or choose another --cache."
        )
    return KidneySegError(
        f"The prepared slices cannot be written to {folder} ({error.strerror or error}); choose "
        "another --cache."
    )


class _Home:
    """Where the files of one prepared case belong."""

    def __init__(
        self,
        case: Case,
        folder: Path,
        preprocessing: Preprocessing,
        channels: int,
        finder: TorchBackend | None,
    ):
        self.case = case
        self.folder = folder
        self.channels = channels
        self.finder = finder
        readable = re.sub(r"[^\w.-]+", "_", f"{case.source}-{case.name}")[-80:]
        stem = f"{readable}-{_digest(case, preprocessing, channels, finder)}"
        self.voxels_file = folder / f"{stem}.voxels.npy"
        self.labels_file = folder / f"{stem}.labels.npy"
        self.prior_file = folder / f"{stem}.prior.npy" if finder is not None else None
        self.facts_file = folder / f"{stem}.json"

    @property
    def arrays(self) -> list[Path]:
        files = [self.voxels_file, self.labels_file]
        return files if self.prior_file is None else [*files, self.prior_file]

    def known(self) -> CachedCase | None:
        """The case if it is complete: its facts were written last, and the arrays are whole."""
        try:
            facts: dict[str, Any] = json.loads(self.facts_file.read_text(encoding="utf-8"))
            sizes = [path.stat().st_size for path in self.arrays]
            if facts.pop("sizes") != sizes:
                return None
            facts = {k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()}
            return CachedCase(
                case=self.case,
                voxels_file=self.voxels_file,
                labels_file=self.labels_file,
                prior_file=self.prior_file,
                **facts,
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def prepare(self, preprocessing: Preprocessing, scratch: Path) -> CachedCase:
        """Read, resample and write the case."""
        voxels, labels, spacing_mm = read_case(self.case, self.channels)
        if preprocessing.pixel_mm is not None and self.case.is_slice and self.case.pixel_mm is None:
            raise InputError(_PIXEL_SPACING_IS_MISSING.format(image=self.case.image))
        coarse = None
        if self.finder is not None:
            coarse = in_view(answer(voxels[:, 0], spacing_mm, self.finder), preprocessing.view)
        labels = in_view(labels, preprocessing.view)
        spacing_mm = spacing_in_view(spacing_mm, preprocessing.view)
        slices, rows, columns = labels.shape
        grid = plan((slices, rows, columns), spacing_mm, preprocessing)
        working = np.empty((grid.slices, self.channels, *grid.shape), np.float32)
        for channel in range(self.channels):
            working[:, channel] = resample(in_view(voxels[:, channel], preprocessing.view), grid)
        del voxels
        if preprocessing.crop:
            brightest = working[:, 0] if self.channels == 1 else working.max(1)
            top, bottom, left, right = body_box(brightest, grid.spacing_mm)
        else:
            top, bottom, left, right = grid.box
        working = working[..., top:bottom, left:right]
        kidney = resample(labels > 0, grid)[:, top:bottom, left:right] >= 0.5
        tumour = resample(labels == 2, grid)[:, top:bottom, left:right] >= 0.5
        merged = kidney.astype(np.uint8) + (kidney & tumour)
        arrays = [merged]
        if coarse is not None:
            prior = resample(coarse, grid)[:, top:bottom, left:right]
            arrays.append(np.rint(prior).astype(np.uint8))

        stored, step = _stored(working, preprocessing, self.case)
        low, high = int(stored.min()), int(stored.max())
        if preprocessing.scaling == "window":
            fill, hu_unit = AIR_HU, 1.0
        else:
            fill, hu_unit = low, (high - low) / 400
            if not self.case.is_slice:
                hu_unit = min(step, hu_unit)
        cached = CachedCase(
            case=self.case,
            voxels_file=self.voxels_file,
            labels_file=self.labels_file,
            spacing_mm=grid.spacing_mm,
            slices=grid.slices,
            channels=self.channels,
            shape=(bottom - top, right - left),
            labelled_slices=tuple(np.flatnonzero(merged.any((1, 2))).tolist()),
            label_counts=tuple(np.bincount(merged.ravel(), minlength=3).tolist()),
            value_range=(low, high),
            fill=fill,
            hu_unit=hu_unit,
            prior_file=self.prior_file,
        )
        self._write(cached, [stored, *arrays], scratch)
        return cached

    def _write(self, cached: CachedCase, arrays: Sequence[np.ndarray], scratch: Path) -> None:
        """All files under temporary names first, then in place, the facts last."""
        facts = asdict(cached)
        for known in ("case", "voxels_file", "labels_file", "prior_file"):
            del facts[known]
        try:
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                finished = [*self.arrays, self.facts_file]
                unfinished = [Path(folder) / path.name for path in finished]
                facts["sizes"] = [
                    _save(array, path) for array, path in zip(arrays, unfinished, strict=False)
                ]
                unfinished[-1].write_text(json.dumps(facts), encoding="utf-8")
                if self.known() is not None:
                    return  # another run was faster, and may have its files open
                for path, place in zip(unfinished, finished, strict=True):
                    os.replace(path, place)
        except OSError as error:
            raise _not_written(self.folder, error) from error


def _digest(
    case: Case, preprocessing: Preprocessing, channels: int, finder: TorchBackend | None
) -> str:
    """Of everything that shapes the arrays; a window does not, unless it is wider than HU are."""
    shaping = {k: getattr(preprocessing, k) for k in _SHAPING}
    facts: list[object] = [LAYOUT, case.pixel_mm, case.is_slice, channels, shaping]
    if preprocessing.scaling == "window":
        facts.append(_kept_range(preprocessing))
    if finder is not None:
        facts.append(finder.model.digest)
    for path in (case.image, case.labels):
        try:
            status = path.stat()
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}); check it.") from error
        facts += [str(path.resolve()), status.st_size, status.st_mtime_ns]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _kept_range(preprocessing: Preprocessing) -> tuple[float, float]:
    low, high = preprocessing.window_hu
    return min(HU_RANGE[0], low), max(HU_RANGE[1], high)


def _stored(
    working: np.ndarray, preprocessing: Preprocessing, case: Case
) -> tuple[np.ndarray, float]:
    """Intensities as 16-bit integers, and how many of their steps one of the given is.

    With a window they are rounded, in HU. Scaled by minimum and maximum they are kept as they are
    where all are whole numbers, and otherwise spread over 16 bit, which keeps the fractions of
    pictures from 0 to 1 and of resampled slices and cancels in that scaling.

    Raises:
        InputError: a window that no 16-bit integers reach.
    """
    low, high = float(working.min()), float(working.max())
    if preprocessing.scaling == "window":
        bounds = _kept_range(preprocessing)
        low, high = np.clip((low, high), *bounds).tolist()
        kind = _integers(low, high)
        if kind is None:
            raise InputError(
                f"{case.image} has intensities from {low:g} to {high:g} within the window, more "
                "than 16 bit hold; train with --scaling minmax."
            )
        return _whole(working, kind, lambda part: np.clip(part, low, high)), 1.0
    kind = _integers(low, high)
    if kind is not None and all((np.rint(part) == part).all() for part in working):
        return _whole(working, kind, lambda part: part), 1.0
    step = 65535 / (high - low) if high > low else 1.0
    return _whole(working, np.uint16, lambda part: (part - low) * step), step


def _integers(low: float, high: float) -> Kind | None:
    for kind in (np.int16, np.uint16):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return kind
    return None


def _whole(
    working: np.ndarray, kind: Kind, change: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Changed and rounded slice by slice: a volume is never held in float64."""
    out = np.empty(working.shape, kind)
    for number, part in enumerate(working):
        out[number] = np.rint(change(part))
    return out


def _save(array: np.ndarray, path: Path) -> int:
    """Write a NumPy file and return its bytes.

    `numpy.save` would not say why it failed when the disk is full.
    """
    array = np.ascontiguousarray(array)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)
        file.flush()
        os.fsync(file.fileno())
        return file.tell()
