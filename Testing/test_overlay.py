"""Axial contact sheets: which slices, what proportions, what colours, written whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from KidneySegLib.geometry import AxialGrid, to_axial
from KidneySegLib.overlay import BOTH, PREDICTION, REFERENCE, draw_overlay
from KidneySegLib.pictures.views import Marks, choose_slices

SHAPE = (24, 48, 64)


def grid_of(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> AxialGrid:
    image = sitk.Image(*shape[::-1], sitk.sitkUInt8)
    image.SetSpacing(spacing[::-1])
    image.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, -1))
    return to_axial(image)[1]


GRID = grid_of(SHAPE, (5.0, 5.0, 5.0))


def ellipsoid(place: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
    """An ellipsoid in voxels (slice, row, column)."""
    axes = zip(np.ogrid[tuple(slice(n) for n in SHAPE)], place, radii, strict=True)
    return np.asarray(sum(((at - p) / r) ** 2 for at, p, r in axes) < 1)


RIGHT = ellipsoid((12, 30, 20), (8, 5, 5))
LEFT = ellipsoid((10, 30, 44), (8, 5, 5))
BODY = np.broadcast_to(ellipsoid((12, 24, 32), (1e6, 16, 26)), SHAPE)
CT = np.where(BODY, 40, -1000).astype(np.int16)


def pixels_of(path: Path, colour: tuple[int, int, int], tolerance: int = 40) -> np.ndarray:
    """Where a picture has about this colour."""
    array = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return np.abs(array - np.array(colour)).max(axis=2) < tolerance


def tile_of(path: Path) -> np.ndarray:
    """A sheet of one tile without its header."""
    return np.asarray(Image.open(path))[66:]


def chosen(prediction: np.ndarray, reference: np.ndarray | None, count: int) -> list[int]:
    """The axial slices that a sheet shows of these labels."""
    return choose_slices(Marks.of(prediction, reference), prediction.shape, count)


def test_the_slices_show_both_kidneys_are_spread_and_come_in_order() -> None:
    slices = chosen(LEFT | RIGHT, None, 4)
    assert len(slices) == 4 and slices == sorted(set(slices))
    assert min(np.diff(slices)) > 1
    assert LEFT[slices].any() and RIGHT[slices].any()


def test_the_largest_area_is_among_the_slices() -> None:
    assert int(LEFT.sum(axis=(1, 2)).argmax()) in chosen(LEFT, None, 3)


def test_a_small_kidney_far_from_the_large_one_is_shown() -> None:
    small = ellipsoid((21, 30, 18), (2, 2, 2))
    for count in (2, 6):
        slices = chosen(LEFT | small, None, count)
        assert small[slices].any() and LEFT[slices].any()


def test_a_kidney_that_only_the_reference_has_is_shown() -> None:
    slices = chosen(np.zeros(SHAPE, np.uint8), RIGHT * np.uint8(2), 3)
    assert len(slices) == 3 and RIGHT[slices].any(axis=(1, 2)).all()


def test_no_more_slices_are_drawn_than_hold_kidney() -> None:
    thin = np.zeros(SHAPE, bool)
    thin[7:9, 20:30, 20:30] = True
    assert chosen(thin, None, 6) == [7, 8]


def test_without_kidneys_the_slices_are_spread_evenly() -> None:
    assert chosen(np.zeros(SHAPE), None, 6) == [2, 6, 10, 14, 18, 22]
    assert chosen(np.zeros((1, 4, 4)), None, 6) == [0]


def test_reference_is_red_prediction_blue_and_both_purple(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    shifted = np.roll(LEFT | RIGHT, 3, 2)
    drawn = draw_overlay(CT, GRID, shifted, LEFT | RIGHT, path, title="a case", slices=2)
    assert len(drawn) == 2
    for colour in (REFERENCE, PREDICTION, BOTH):
        assert pixels_of(path, colour)[66:].any()
    draw_overlay(CT, GRID, shifted, None, path, slices=1)
    assert pixels_of(path, PREDICTION)[66:].any()
    assert not pixels_of(path, REFERENCE).any() and not pixels_of(path, BOTH).any()


def test_the_patients_left_is_on_the_right_of_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "left.png"
    draw_overlay(CT, GRID, LEFT, None, path, slices=1)
    columns = np.flatnonzero(pixels_of(path, PREDICTION)[66:].any(axis=0))
    assert columns.min() > Image.open(path).width / 2


def test_the_fill_lets_the_ct_through(tmp_path: Path) -> None:
    path = tmp_path / "fill.png"
    gray = 255 * (40 + 160) / 400
    # Reference and prediction overlap in half of their width.
    draw_overlay(CT, GRID, LEFT, np.roll(LEFT, 5, 2), path, slices=1, window_hu=(-160, 240))
    for colour in (REFERENCE, PREDICTION, BOTH):
        expected = tuple(round(gray + 0.3 * (c - gray)) for c in colour)
        assert pixels_of(path, expected, 3).sum() > 500


def test_outlines_are_two_pixels_wide_and_crisp(tmp_path: Path) -> None:
    path = tmp_path / "outline.png"
    box = np.zeros(SHAPE, bool)
    box[5, 16:32, 20:40] = True
    draw_overlay(CT, GRID, box, None, path, slices=1)
    tile = tile_of(path).astype(float)
    height = tile.shape[0]
    row = tile[height // 2]
    share = (row[:, 2] - row[:, 0]) / (PREDICTION[2] - PREDICTION[0])
    # Along a line across: background 0, outline 1, fill 0.3, outline 1, background 0.
    edges = np.flatnonzero(share > 0.65)
    runs = np.split(edges, np.flatnonzero(np.diff(edges) > 1) + 1)
    assert len(runs) == 2 and all(len(run) in (2, 3) for run in runs)
    between = share[runs[0][-1] + 2 : runs[1][0] - 1]
    assert np.allclose(between, 0.3, atol=0.03)
    blurred = np.count_nonzero((share > 0.02) & (share < 0.98) & (np.abs(share - 0.3) > 0.03))
    assert blurred <= 8


def test_a_single_voxel_is_still_seen(tmp_path: Path) -> None:
    path = tmp_path / "voxel.png"
    one = np.zeros(SHAPE, np.uint8)
    one[5, 20, 30] = 1
    draw_overlay(CT, GRID, one, None, path, slices=1)
    assert pixels_of(path, PREDICTION, 90)[66:].any()


@pytest.mark.parametrize("row_mm", [2.0, 5.0, 8.0])
def test_pictures_have_the_proportions_of_the_patient(tmp_path: Path, row_mm: float) -> None:
    path = tmp_path / "ratio.png"
    grid = grid_of(SHAPE, (5.0, row_mm, 5.0))
    box = np.zeros(SHAPE, bool)
    box[5, 20:30, 24:40] = True  # 10 rows, 16 columns
    draw_overlay(CT, grid, box, None, path, slices=1)
    marked = pixels_of(path, PREDICTION, 90)[66:]
    rows, columns = (np.flatnonzero(marked.any(axis=axis)) for axis in (1, 0))
    assert np.ptp(columns) / np.ptp(rows) == pytest.approx(16 * 5 / (10 * row_mm), rel=0.06)


def test_the_picture_is_cropped_to_the_body(tmp_path: Path) -> None:
    path = tmp_path / "crop.png"
    small = np.full(SHAPE, -1000, np.int16)
    small[:, 20:36, 30:46] = 40
    draw_overlay(small, GRID, LEFT & (small > 0), None, path, slices=1)
    bright = tile_of(path)[..., 1] > 90
    assert bright.mean() > 0.5


def test_no_kidney_is_said_and_drawn(tmp_path: Path) -> None:
    without, with_kidney = tmp_path / "none.png", tmp_path / "some.png"
    assert len(draw_overlay(CT, GRID, np.zeros(SHAPE), None, without, slices=2)) == 2
    draw_overlay(CT, GRID, LEFT, None, with_kidney, slices=1)
    notice = (255, 200, 80)
    assert pixels_of(without, notice)[:66].any()
    assert not pixels_of(with_kidney, notice).any()


def test_a_single_slice_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    shape = (1, 48, 64)
    drawn = draw_overlay(CT[:1], grid_of(shape, (5, 5, 5)), LEFT[10:11], LEFT[9:10], path)
    assert drawn == [0] and Image.open(path).format == "PNG"


def test_air_alone_is_drawn_too(tmp_path: Path) -> None:
    path = tmp_path / "air.png"
    assert draw_overlay(
        np.full(SHAPE, -1000, np.int16), GRID, np.zeros(SHAPE), None, path, slices=1
    )
    assert path.is_file()


def test_a_long_title_stays_within_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "title.png"
    draw_overlay(CT, GRID, LEFT, None, path, slices=1, title="a very long title " * 40)
    ink = np.asarray(Image.open(path).convert("L"))[:30] > 100
    assert ink.any() and not ink[:, -8:].any()


def test_nothing_but_the_picture_is_left_in_the_folder(tmp_path: Path) -> None:
    draw_overlay(CT, GRID, LEFT, None, tmp_path / "sheet.png", slices=1)
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_a_failed_drawing_leaves_the_old_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sheet.png"
    path.write_bytes(b"old")

    def fail(self: Image.Image, target: Path, **options: str) -> None:
        Path(target).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        draw_overlay(CT, GRID, LEFT, None, path, slices=1)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_the_arrays_are_left_as_they_are(tmp_path: Path) -> None:
    ct, prediction, reference = CT.copy(), LEFT.astype(np.uint8), RIGHT.astype(np.uint8)
    for array in (ct, prediction, reference):
        array.flags.writeable = False
    draw_overlay(ct, GRID, prediction, reference, tmp_path / "sheet.png", slices=2)
    assert np.array_equal(ct, CT) and np.array_equal(prediction, LEFT)


def test_arrays_of_another_shape_and_no_slices_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    with pytest.raises(ValueError, match="shape"):
        draw_overlay(CT, GRID, LEFT[1:], None, path)
    with pytest.raises(ValueError, match="At least one slice"):
        draw_overlay(CT, GRID, LEFT, None, path, slices=0)
    assert not path.exists()
