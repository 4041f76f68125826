"""To the grid that a network works on, and back to where everything was."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from KidneySegLib.preprocess import (
    Preprocessing,
    WorkingGrid,
    back_to_full,
    body_box,
    context_offset,
    plan,
    resample,
    scale,
    to_working,
    with_context,
)

SHAPE = (23, 61, 75)
SPACING_MM = (1.5, 0.9, 0.8)

WAYS = {
    "as it is": Preprocessing(),
    "larger pixels": Preprocessing(pixel_mm=1.6),
    "smaller pixels": Preprocessing(pixel_mm=0.5),
    "slices in pairs": Preprocessing(slice_mm=3.0),
    "slices in fours": Preprocessing(slice_mm=6.0),
    "cropped": Preprocessing(crop=True),
    "all of it": Preprocessing(pixel_mm=1.3, slice_mm=5.0, crop=True),
}


def whole(probability: np.ndarray, grid: WorkingGrid) -> np.ndarray:
    full = np.zeros(grid.full_shape, np.uint8)
    for index, values in back_to_full(probability, grid):
        full[index] = values
    return full


def patient(centre, radii, air=-1000.0) -> np.ndarray:
    """A body away from the middle, with a soft-edged blob of 300 HU in it."""
    k, j, i = np.indices(SHAPE, dtype=float)
    hu = np.full(SHAPE, air, np.float32)
    hu[((j - 33) / 22) ** 2 + ((i - 40) / 27) ** 2 < 1] = 0.0
    away = np.sqrt(
        sum(((x - c) / r) ** 2 for x, c, r in zip((k, j, i), centre, radii, strict=True))
    )
    return np.maximum(hu, np.where(away < 1.3, 300 * np.clip((1.3 - away) / 0.6, 0, 1), air))


def centroid(values: np.ndarray) -> np.ndarray:
    weights = values.astype(float)
    return np.array([(np.indices(values.shape)[axis] * weights).sum() for axis in range(3)]) / (
        weights.sum()
    )


@pytest.mark.parametrize("air", [-1000.0, -125.0], ids=["full HU", "clipped at -125"])
@pytest.mark.parametrize("way", WAYS)
def test_what_goes_through_comes_back_where_it_was(way, air):
    hu = patient((11.3, 30.0, 48.6), (6.0, 8.0, 7.0), air)
    working, grid = to_working(hu, SPACING_MM, WAYS[way])
    assert working.shape[0] == grid.slices
    back = whole((np.clip(working, 0, 300) / 300).astype(np.float16), grid)
    assert back.shape == SHAPE
    # The body is 0 HU, so that only the blob is left of it.
    np.testing.assert_allclose(centroid(back), centroid(np.clip(hu, 0, 300)), atol=0.1)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_gradient_keeps_its_slope_and_place(way, axis):
    """The maps are linear between centres, so a linear function must come back as it was."""
    ramp = np.indices(SHAPE, dtype=np.float32)[axis] / (SHAPE[axis] - 1)
    preprocessing = Preprocessing(
        pixel_mm=WAYS[way].pixel_mm, slice_mm=WAYS[way].slice_mm, crop=False
    )
    working, grid = to_working(ramp, SPACING_MM, preprocessing)
    back = whole(working, grid) / 255
    edge = 4  # beyond the outermost centres the value of the centre is kept
    inside = tuple(slice(edge, -edge) for _ in SHAPE)
    np.testing.assert_allclose(back[inside], ramp[inside], atol=0.006)


def test_a_last_group_of_fewer_slices_counts_where_it_lies():
    grid = plan((10, 2, 2), (1.0, 1.0, 1.0), Preprocessing(slice_mm=4.0))
    assert (grid.group, grid.slices) == (4, 3)
    back = whole(np.array([0.0, 0.0, 1.0])[:, None, None] * np.ones((1, 2, 2)), grid)[:, 0, 0]
    # The groups' centres are slices 1.5, 5.5 and 8.5.
    np.testing.assert_allclose(back / 255, [0] * 6 + [1 / 6, 0.5, 5 / 6, 1], atol=0.003)


def test_groups_hold_as_many_slices_as_fit_and_never_less_than_one():
    for slice_mm, group in ((0.5, 6), (0.8, 3), (1.0, 3), (1.5, 2), (1.6, 1), (5.0, 1)):
        grid = plan((20, 8, 8), (slice_mm, 1.0, 1.0), Preprocessing(slice_mm=3.0))
        assert grid.group == group
        assert grid.spacing_mm[0] == pytest.approx(slice_mm * group)


def test_every_slice_of_a_group_has_the_same_weight():
    volume = np.arange(7, dtype=np.int16)[:, None, None] * np.ones((1, 3, 3), np.int16)
    grid = plan(volume.shape, (1.0, 1.0, 1.0), Preprocessing(slice_mm=3.0))
    np.testing.assert_allclose(resample(volume, grid)[:, 0, 0], [1.0, 4.0, 6.0])


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 512, 3), (3, 1, 40)])
def test_volumes_as_thin_as_can_be_go_through(shape):
    for preprocessing in WAYS.values():
        working, grid = to_working(np.full(shape, 100, np.int16), (2.0, 1.0, 1.0), preprocessing)
        assert whole(np.ones(working.shape, np.float16), grid).shape == shape


def test_the_crop_holds_the_body_and_leaves_out_air_and_thin_things():
    hu = patient((11, 30, 48), (6, 8, 7))
    hu[:, 58, :] = 200.0  # a table, a pixel thin
    top, bottom, left, right = body_box(hu, SPACING_MM)
    body = hu[0, :58] > -300
    # 12 mm are 13 rows or 15 columns; they begin where the body is 20 mm wide.
    assert top == np.flatnonzero(body.sum(1) * 0.8 > 20)[0] - 13
    assert left == max(0, np.flatnonzero(body.sum(0) * 0.9 > 20)[0] - 15)
    assert (bottom, right) == (61, 75)
    assert body[top:bottom, left:right].sum() == body.sum()
    assert body_box(np.full((2, 9, 9), -1000.0), (1, 1, 1)) == (0, 9, 0, 9)


def test_a_window_clips_and_minmax_takes_the_volumes_own_extremes():
    hu = np.array([[[-1000.0, -125.0, 75.0, 275.0, 3000.0]]], np.float32)
    np.testing.assert_allclose(scale(hu.copy(), Preprocessing())[0, 0], [0, 0, 0.5, 1, 1])
    minmax = Preprocessing(scaling="minmax")
    np.testing.assert_allclose(scale(hu.copy(), minmax)[0, 0], (hu[0, 0] + 1000) / 4000, rtol=1e-6)
    assert np.isfinite(scale(np.full((1, 2, 2), 7, np.float32), minmax)).all()


def test_neighbours_beyond_the_ends_are_the_end_slice():
    index = np.array([0, 1, 4])
    np.testing.assert_array_equal(with_context(5, index, 3, 1), [[0, 0, 1], [0, 1, 2], [3, 4, 4]])
    np.testing.assert_array_equal(with_context(5, index, 1, 3), index[:, None])
    np.testing.assert_array_equal(with_context(5, index[1:2], 5, 2), [[0, 0, 1, 3, 4]])
    np.testing.assert_array_equal(with_context(1, np.array([0]), 3, 4), [[0, 0, 0]])


def test_neighbours_lie_about_the_same_distance_away_whatever_the_slices():
    far = Preprocessing(context_mm=3.0)
    assert [context_offset(mm, far) for mm in (0.5, 1.0, 1.25, 3.0, 10.0)] == [6, 3, 2, 1, 1]


@pytest.mark.parametrize(
    ("full", "small"),
    [
        ((512, 512), (187, 190)),
        ((37, 45), (16, 100)),
        ((100, 71), (333, 71)),
        ((512, 400), (511, 401)),
        ((5, 7), (1, 1)),
        ((1, 3), (4, 9)),
    ],
    ids=str,
)
def test_resizing_is_that_of_torch_which_models_were_trained_with(full, small):
    slices = np.random.default_rng(0).uniform(-1000, 1000, (3, *full)).astype(np.float32)
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(slices)[:, None],
        size=small,
        mode="bilinear",
        align_corners=False,
        antialias=True,
    )[:, 0].numpy()
    grid = WorkingGrid((3, *full), 1, small, (0, small[0], 0, small[1]), (1.0, 1.0, 1.0))
    got = resample(slices, grid)
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() < 1e-5 * 1000


@pytest.mark.parametrize("larger", [True, False], ids=["larger", "smaller"])
def test_only_the_busy_part_of_a_slice_is_brought_back_and_nothing_is_lost(larger):
    shape, full = ((40, 50), (91, 133)) if larger else ((91, 133), (40, 50))
    box = (3, shape[0] - 4, 5, shape[1] - 2)
    grid = WorkingGrid((4, *full), 1, shape, box, (1.0, 1.0, 1.0))
    random = np.random.default_rng(0)
    probability = np.zeros((4, box[1] - box[0], box[3] - box[2]), np.float16)
    probability[1, 7:12, 20:33] = random.random((5, 13))
    probability[1, 25:27, :4] = 1
    probability[2, 0, 0] = 0.003  # below 1/255: nothing of it would be seen
    whole = np.zeros((4, *shape), np.float32)
    whole[:, box[0] : box[1], box[2] : box[3]] = probability
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(whole)[:, None],
        size=full,
        mode="bilinear",
        align_corners=False,
        antialias=True,
    )[:, 0].numpy()
    got = dict(back_to_full(probability, grid))
    assert list(got) == [1]
    assert got[1].dtype == np.uint8 and got[1].max() > 100
    assert np.abs(got[1] - np.rint(wanted[1] * 255)).max() <= 1
    assert (got[1] != np.rint(wanted[1] * 255)).mean() < 0.001
