"""Prepared slices: what they hold, when they are made anew, what a full disk or a kill leaves."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import toys
from PIL import Image

from KidneySegLib.backends.torchbackend import TorchBackend
from KidneySegLib.errors import Cancelled, InputError, KidneySegError, UsageError
from KidneySegLib.phantom import write_cases
from KidneySegLib.preprocess import (
    Preprocessing,
    in_view,
    scale,
    spacing_in_view,
    to_working,
)
from UNetTrainerLib import cache
from UNetTrainerLib.cache import CachedCase, build_cache, predict_size
from UNetTrainerLib.cases import Case, find_cases
from UNetTrainerLib.loading import read_case

PREPROCESSING = Preprocessing(pixel_mm=6.0, slice_mm=8.0, crop=True)
MINMAX = Preprocessing(scaling="minmax")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    folder = tmp_path_factory.mktemp("cases")
    write_cases(folder, 3, seed=5, size=(64, 64, 24))
    return find_cases([folder])


def volume(folder: Path, voxels: np.ndarray, labels: np.ndarray | None = None) -> Case:
    """A case folder with these axial arrays."""
    folder.mkdir(parents=True)
    if labels is None:
        labels = np.zeros(voxels.shape, np.uint8)
        labels[:, 2:4, 2:4] = 1
    for name, array in (("imaging", voxels), ("segmentation", labels)):
        sitk.WriteImage(toys.image_of(array), str(folder / f"{name}.nii.gz"))
    return find_cases([folder.parent])[0]


def picture(folder: Path, pixels: np.ndarray, pixel_mm: float | None = None) -> Case:
    folder.mkdir(exist_ok=True)
    mask = np.zeros(pixels.shape[:2], np.uint8)
    mask[2:5, 2:5], mask[3, 3] = 1, 2
    Image.fromarray(pixels).save(folder / "image.png")
    Image.fromarray(mask).save(folder / "mask.png")
    return Case(
        "one", "one", "s", folder / "image.png", folder / "mask.png", pixel_mm, is_slice=True
    )


def stamps(cached: list[CachedCase]) -> list[int]:
    return [item.voxels_file.stat().st_mtime_ns for item in cached]


def test_prepared_slices_lie_on_the_working_grid_and_keep_the_kidney_volume(
    cases: list[Case], tmp_path: Path
) -> None:
    (cached,) = build_cache(cases[:1], tmp_path, PREPROCESSING)
    labels, voxels = cached.labels(), cached.voxels()
    assert voxels.dtype == np.int16
    assert voxels.shape == (cached.slices, 1, *cached.shape)
    assert labels.shape == (cached.slices, *cached.shape)
    assert cached.spacing_mm[1] == pytest.approx(6.0, rel=0.05)
    given, truth, spacing_mm = read_case(cases[0])
    expected = (truth > 0).sum() * np.prod(spacing_mm)
    assert (labels > 0).sum() * np.prod(cached.spacing_mm) == pytest.approx(expected, rel=0.1)
    assert cached.labelled_slices == tuple(np.flatnonzero((labels > 0).any((1, 2))))
    assert cached.label_counts == tuple(np.bincount(labels.ravel(), minlength=3))
    engine, grid = to_working(given[:, 0], spacing_mm, PREPROCESSING)
    assert cached.spacing_mm == grid.spacing_mm
    assert np.abs(voxels[:, 0] - engine.clip(*cache.HU_RANGE)).max() <= 0.5


@pytest.mark.parametrize("view", ["coronal", "sagittal"])
def test_slices_of_another_view_hold_the_same_kidneys(
    cases: list[Case], tmp_path: Path, view: str
) -> None:
    turned = replace(PREPROCESSING, view=view)
    (cached,) = build_cache(cases[:1], tmp_path, turned)
    given, truth, spacing_mm = read_case(cases[0])
    expected = (truth > 0).sum() * np.prod(spacing_mm)
    assert (cached.labels() > 0).sum() * np.prod(cached.spacing_mm) == pytest.approx(
        expected, rel=0.1
    )
    engine, grid = to_working(in_view(given[:, 0], view), spacing_in_view(spacing_mm, view), turned)
    assert (cached.spacing_mm, cached.slices) == (grid.spacing_mm, grid.slices)
    assert np.abs(cached.voxels()[:, 0] - engine.clip(*cache.HU_RANGE)).max() <= 0.5
    assert predict_size(cases[:1], replace(turned, crop=False)) == pytest.approx(
        3 * np.prod([grid.slices, *grid.shape])
    )


def test_the_cache_is_used_again_until_a_file_or_what_shapes_it_changes(
    cases: list[Case], tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    mine = volume(tmp_path / "data" / "case_00000", toys.toy()[0])
    (first,) = build_cache([mine], folder, PREPROCESSING)
    (again,) = build_cache([mine], folder, replace(PREPROCESSING, window_hu=(0.0, 100.0)))
    assert again == first
    assert stamps([again]) == stamps([first])
    for other in (
        replace(PREPROCESSING, pixel_mm=7.0),
        replace(PREPROCESSING, slice_mm=None),
        replace(PREPROCESSING, crop=False),
        replace(PREPROCESSING, scaling="minmax"),
        replace(PREPROCESSING, window_hu=(-2000.0, 3000.0)),
    ):
        (item,) = build_cache([mine], folder, other)
        assert item.voxels_file != first.voxels_file
    (colour,) = build_cache([mine], folder, PREPROCESSING, channels=3)
    assert colour.voxels().shape[1] == 3
    os.utime(mine.labels, (1, 1))
    (changed,) = build_cache([mine], folder, PREPROCESSING)
    assert changed.voxels_file != first.voxels_file
    assert first.voxels_file.exists(), "another run may still use it"


def test_arrays_that_are_damaged_are_made_anew(cases: list[Case], tmp_path: Path) -> None:
    (first,) = build_cache(cases[:1], tmp_path, PREPROCESSING)
    whole = first.voxels_file.read_bytes()
    first.voxels_file.write_bytes(whole[:-10])
    build_cache(cases[:1], tmp_path, PREPROCESSING)
    assert first.voxels_file.read_bytes() == whole
    next(tmp_path.glob("*.json")).write_text("{")
    assert build_cache(cases[:1], tmp_path, PREPROCESSING) == [first]


def test_every_number_of_threads_prepares_the_same_in_the_same_order(
    cases: list[Case], tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    for workers in (1, 3):
        build_cache(
            cases, tmp_path / str(workers), PREPROCESSING, workers=workers,
            progress=lambda done, total: told.append((done, total)),
        )  # fmt: skip
    assert told == [(1, 3), (2, 3), (3, 3)] * 2
    one, three = (toys.everything_in(tmp_path / name) for name in ("1", "3"))
    assert one == three
    cached = build_cache(cases, tmp_path / "1", PREPROCESSING)
    assert [item.case for item in cached] == cases


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is POSIX")
def test_a_killed_build_goes_on_and_what_it_left_half_done_is_cleared_away(
    cases: list[Case], tmp_path: Path
) -> None:
    script = f"""
import os, signal
from pathlib import Path
from KidneySegLib.preprocess import Preprocessing
from UNetTrainerLib import cache
from UNetTrainerLib.cases import find_cases
save, written = cache._save, []
def killed_while_writing_the_third(array, path):
    written.append(path)
    if len(written) == 5:
        path.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    return save(array, path)
cache._save = killed_while_writing_the_third
cases = find_cases([{str(cases[0].image.parent.parent)!r}])
cache.build_cache(cases, Path({str(tmp_path)!r}), {PREPROCESSING!r}, workers=1)
"""
    killed = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    finished = sorted(tmp_path.glob("*.npy"))
    assert len(finished) == 4
    assert any(path.read_bytes() == b"half" for path in tmp_path.glob(".building-*/*/*.npy"))
    before = [path.stat().st_mtime_ns for path in finished]
    told: list[tuple[int, int]] = []
    cached = build_cache(cases, tmp_path, PREPROCESSING, progress=lambda *n: told.append(n))
    assert told == [(2, 3), (3, 3)]
    assert [path.stat().st_mtime_ns for path in finished] == before
    assert len(list(tmp_path.iterdir())) == 3 * len(cached), "no unfinished file is left"


def test_a_build_does_not_clear_away_what_another_one_is_writing(
    cases: list[Case], tmp_path: Path
) -> None:
    with cache._scratch(tmp_path) as theirs:
        (theirs / "half.npy").write_bytes(b"half")
        build_cache(cases[:1], tmp_path, PREPROCESSING)
        assert (theirs / "half.npy").exists()
    assert not theirs.exists()


def test_a_cancelled_build_keeps_its_finished_cases(cases: list[Case], tmp_path: Path) -> None:
    def cancel(done: int, total: int) -> None:
        raise Cancelled("Cancelled.")

    with pytest.raises(Cancelled):
        build_cache(cases, tmp_path, PREPROCESSING, progress=cancel, workers=1)
    left = list(tmp_path.glob("*.json"))
    assert 1 <= len(left) < 3
    assert not list(tmp_path.glob(".*"))


def test_the_size_is_foretold_from_the_headers_alone(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ct, _ = toys.toy()
    data = tmp_path / "data" / "case_00000"
    data.mkdir(parents=True)
    turned = toys.image_of(ct, order=(2, 0, 1), flips=(True, False, True))
    for name in ("imaging", "segmentation"):
        sitk.WriteImage(turned * (name == "imaging"), str(data / f"{name}.nii.gz"))
    mixed = [*cases, *find_cases([tmp_path / "data"]),
             picture(tmp_path / "p", np.zeros((20, 30, 3), np.uint8), 2.0)]  # fmt: skip
    whole = replace(PREPROCESSING, crop=False)
    for preprocessing, exact in ((whole, True), (PREPROCESSING, False)):
        folder = tmp_path / str(exact)
        with monkeypatch.context() as patch:
            patch.setattr(cache, "read_case", None)
            foretold = predict_size(mixed, preprocessing, channels=3)
        build_cache(mixed, folder, preprocessing, channels=3)
        headers = 128 * 2 * len(mixed)
        written = sum(path.stat().st_size for path in folder.glob("*.npy")) - headers
        assert written == foretold if exact else written < foretold


def test_a_header_that_only_the_reader_repairs_does_not_stop_the_build(
    cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = predict_size(cases[:1], PREPROCESSING)

    def refuse(path: Path) -> None:
        raise InputError(f"{path} has axes that are not at right angles.")

    monkeypatch.setattr(cache, "header_of", refuse)
    assert predict_size(cases[:1], PREPROCESSING) == expected


def test_a_disk_that_is_too_small_is_named_before_anything_is_written(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=12_000_000_000))
    monkeypatch.setattr(cache._Size, "cached", lambda *_: 10_400_000_000)
    with pytest.raises(InputError) as caught:
        build_cache(cases, folder, PREPROCESSING)
    assert str(caught.value) == (
        f"The prepared slices need about 31.2 GB but {folder} has 12.0 GB free; choose another "
        "--cache, or a larger --pixel-mm."
    )
    assert not folder.exists()


def test_only_the_cases_that_are_missing_need_room(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_cache(cases, tmp_path, PREPROCESSING)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    assert len(build_cache(cases, tmp_path, PREPROCESSING)) == 3
    with pytest.raises(InputError, match="free; choose another --cache"):
        build_cache(cases, tmp_path, replace(PREPROCESSING, pixel_mm=5.0))


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    resource = pytest.importorskip("resource", reason="limits of the system are POSIX")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_keeps_the_finished_cases_and_no_half_one(
    cases: list[Case], tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    noise = np.random.default_rng(0).integers(0, 99, (40, 64, 64), dtype=np.int16)
    big = volume(tmp_path / "data" / "case_00000", noise)
    build_cache(cases[:1], folder, PREPROCESSING)
    before = toys.everything_in(folder)
    with (
        files_no_larger_than(100_000),
        pytest.raises(KidneySegError, match="the disk is full; free some space"),
    ):
        build_cache([*cases[:1], big], folder, MINMAX, workers=1)
    assert toys.everything_in(folder) == before


def test_a_folder_that_cannot_be_written_to_is_named(cases: list[Case], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KidneySegError, match=r"file.*; choose another --cache"):
        build_cache(cases, tmp_path / "file", PREPROCESSING)


def test_intensities_from_0_to_1_survive_in_a_cache_of_whole_numbers(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).random((3, 9, 11), np.float32)
    (cached,) = build_cache([volume(tmp_path / "d" / "case_00000", voxels)], tmp_path, MINMAX)
    assert cached.voxels().dtype == np.uint16
    back = scale(cached.voxels()[:, 0].astype(np.float32), MINMAX)
    assert np.abs(back - scale(voxels.copy(), MINMAX)).max() < 1e-5
    assert cached.value_range == (0, 65535)
    assert cached.hu_unit == pytest.approx(65535 / 400)


def test_whole_numbers_are_kept_as_they_are(tmp_path: Path) -> None:
    ct = np.random.default_rng(0).integers(-3024, 3071, (3, 9, 11), dtype=np.int16)
    (cached,) = build_cache([volume(tmp_path / "a" / "case_00000", ct)], tmp_path, MINMAX)
    assert np.array_equal(cached.voxels()[:, 0], ct)
    assert cached.hu_unit == 1
    assert cached.fill == ct.min()
    deep = np.random.default_rng(0).integers(0, 65535, (9, 11), dtype=np.uint16)
    (cached,) = build_cache([picture(tmp_path / "b", deep)], tmp_path, MINMAX)
    assert np.array_equal(cached.voxels()[0, 0], deep)
    assert cached.labels()[0, 3, 3] == 2


def test_colour_pictures_keep_their_channels_through_resampling(tmp_path: Path) -> None:
    colour = np.zeros((40, 60, 3), np.uint8)
    colour[..., 0], colour[..., 1] = 200, 90
    case = picture(tmp_path / "p", colour, pixel_mm=1.0)
    (cached,) = build_cache([case], tmp_path, Preprocessing(pixel_mm=2.0), channels=3)
    assert cached.voxels().shape == (1, 3, 20, 30)
    assert cached.voxels()[0, :, 10, 10].tolist() == [200, 90, 0]


def test_what_shows_in_any_colour_is_not_cropped_away(tmp_path: Path) -> None:
    colour = np.zeros((100, 120, 3), np.uint8)
    colour[30:70, 20:60, 1] = colour[30:70, 60:100, 2] = 200
    case = picture(tmp_path / "p", colour, pixel_mm=1.0)
    (cached,) = build_cache([case], tmp_path, Preprocessing(crop=True), channels=3)
    assert cached.shape == (40 + 2 * 12, 80 + 2 * 12)
    assert cached.labels().shape == (1, *cached.shape)


def test_a_picture_without_spacing_is_not_resampled_by_guess(tmp_path: Path) -> None:
    case = picture(tmp_path / "p", np.zeros((9, 11), np.uint8))
    for ask in (
        lambda: predict_size([case], PREPROCESSING),
        lambda: build_cache([case], tmp_path, PREPROCESSING),
    ):
        with pytest.raises(InputError, match=r"no pixel spacing; add pixel_spacing_mm"):
            ask()
    (cached,) = build_cache([case], tmp_path, Preprocessing())
    assert cached.shape == (9, 11)


def test_a_window_that_whole_numbers_cannot_show_is_refused(
    cases: list[Case], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"window from 0 to 1 is too narrow.*--scaling minmax"):
        build_cache(cases, tmp_path, Preprocessing(window_hu=(0, 1)))


def test_a_prepared_case_travels_to_other_processes_and_holds_no_file_open(
    cases: list[Case], tmp_path: Path
) -> None:
    cached = pickle.loads(pickle.dumps(build_cache(cases, tmp_path, PREPROCESSING)))
    for item in cached:
        assert int(item.voxels()[0].max()) <= item.value_range[1]
        assert item.labels().max() > 0
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(tmp_path) not in maps.read_text()


def test_a_finders_answer_is_kept_beside_the_slices_and_anew_for_another_finder(
    cases: list[Case], tmp_path: Path
) -> None:
    bright = toys.copying_model(tmp_path / "bright", preprocessing=Preprocessing(pixel_mm=6.0))
    finder = TorchBackend(bright, "cpu", "float32")
    (cached,) = build_cache(cases[:1], tmp_path / "cache", PREPROCESSING, finder=finder)
    prior = cached.prior()
    assert prior.dtype == np.uint8 and prior.shape == cached.labels().shape
    hu = cached.voxels()[:, 0]
    believed = prior > 200
    assert believed.any() and np.median(hu[believed]) > toys.LEVEL_HU
    (again,) = build_cache(cases[:1], tmp_path / "cache", PREPROCESSING, finder=finder)
    assert stamps([again]) == stamps([cached])
    dim = toys.copying_model(
        tmp_path / "dim", preprocessing=Preprocessing(pixel_mm=6.0), threshold=0.4
    )
    (other,) = build_cache(
        cases[:1], tmp_path / "cache", PREPROCESSING, finder=TorchBackend(dim, "cpu", "float32")
    )
    assert other.prior_file != cached.prior_file
    (without,) = build_cache(cases[:1], tmp_path / "cache", PREPROCESSING)
    assert without.prior_file is None
