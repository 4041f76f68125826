"""Volumes, overlap and what the labels of a map mean."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage

from KidneySegLib.errors import InputError
from KidneySegLib.geometry import to_axial
from KidneySegLib.labelmaps import labels_kind, usual_labels
from KidneySegLib.measure import (
    dice,
    evaluate,
    iou,
    pair_of,
    precision,
    recall,
    slice_dice,
    slice_score,
    surface_agreement,
    surface_dice,
    surface_distances,
    volume_ml,
    volumes_ml,
)

SHAPE = (30, 50, 80)
SPACING = (5.0, 4.0, 4.0)  # slices, rows, columns


def ellipsoid(place: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
    """An ellipsoid in mm from the middle: x to the left, y to the back, z to the head."""
    k, j, i = np.ogrid[tuple(slice(n) for n in SHAPE)]
    axes = (i * SPACING[2] - 158, j * SPACING[1] - 98, 72.5 - k * SPACING[0])
    return np.asarray(
        sum(((at - p) / r) ** 2 for at, p, r in zip(axes, place, radii, strict=True)) < 1
    )


LEFT = ellipsoid((60, 20, 0), (26, 26, 50))
RIGHT = ellipsoid((-60, 20, -5), (26, 26, 50))
TUMOUR = ellipsoid((-84, 20, 0), (20, 20, 20))  # on the lateral face of the right kidney
EXOPHYTIC = ellipsoid((-103, 20, 0), (22, 22, 22))  # hardly within the right kidney's width
MEDIAL_TUMOUR = ellipsoid((30, 20, 0), (18, 18, 18))  # on the medial face of the left one


def image(*parts: tuple[np.ndarray, int], flip: bool = False) -> sitk.Image:
    """A label map of masks, later ones on top; flipped: stored from left to right."""
    array = np.zeros(SHAPE, np.uint8)
    for mask, label in parts:
        array[mask] = label
    made = sitk.GetImageFromArray(array[:, :, ::-1] if flip else array)
    made.SetSpacing(SPACING[::-1])
    sign = -1 if flip else 1
    made.SetDirection((sign, 0, 0, 0, 1, 0, 0, 0, -1))
    return made


SIDES = image((LEFT, 1), (RIGHT, 2))
MERGED = image((LEFT | RIGHT, 1))


def test_volume_counts_voxels_in_ml() -> None:
    labels, grid = to_axial(SIDES)
    assert volume_ml(labels == 1, grid) == pytest.approx(LEFT.sum() * 80 / 1000)
    volumes = volumes_ml(labels, grid)
    assert set(volumes) == {"kidney", "left", "right"}
    assert volumes["kidney"] == pytest.approx(volumes["left"] + volumes["right"])
    assert set(volumes_ml(labels, grid, sides=False)) == {"kidney"}


def test_dice_and_iou_are_those_of_simpleitk() -> None:
    moved = np.roll(LEFT, (1, 2, -1), (0, 1, 2))
    filter_ = sitk.LabelOverlapMeasuresImageFilter()
    filter_.Execute(image((LEFT, 1)), image((moved, 1)))
    assert dice(LEFT, moved) == pytest.approx(filter_.GetDiceCoefficient(), abs=1e-12)
    assert iou(LEFT, moved) == pytest.approx(filter_.GetJaccardCoefficient(), abs=1e-12)


def test_two_empty_masks_have_no_dice_and_one_empty_mask_has_none_of_it() -> None:
    empty = np.zeros(SHAPE, bool)
    assert dice(empty, empty) is None and iou(empty, empty) is None
    assert dice(empty, LEFT) == 0.0 and iou(LEFT, empty) == 0.0


def test_masks_of_other_shapes_are_not_broadcast() -> None:
    for measure in (dice, iou, slice_score):
        with pytest.raises(ValueError, match="different shapes"):
            measure(LEFT, LEFT[:1])


def test_slice_score_is_the_mean_over_all_slices_with_empty_ones_counted_as_one() -> None:
    a = np.zeros((4, 5, 5), np.uint8)
    b = np.zeros((4, 5, 5), np.uint8)
    a[1, :2, :5] = 2
    b[1, :1, :5] = 1  # Dice 10/15
    b[2, 0, 0] = 1  # missed: almost 0
    expected = (1 + (10 + 1e-4) / (15 + 1e-4) + 1e-4 / (1 + 1e-4) + 1) / 4
    assert slice_score(a, b) == pytest.approx(expected, abs=1e-12)
    assert slice_score(a * 0, b * 0) == 1.0


def test_overlap_is_that_of_simpleitk() -> None:
    """Its false negative error is the share of the second image that the first lacks."""
    for seed in range(3):
        a, b, _ = blobs(seed)
        images = [sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in (a, b)]
        there, back = (sitk.LabelOverlapMeasuresImageFilter() for _ in "ab")
        there.Execute(*images)
        back.Execute(*images[::-1])
        assert dice(a, b) == pytest.approx(there.GetDiceCoefficient(1), abs=1e-14)
        assert iou(a, b) == pytest.approx(there.GetJaccardCoefficient(1), abs=1e-14)
        assert recall(a, b) == pytest.approx(1 - there.GetFalseNegativeError(1), abs=1e-14)
        assert precision(a, b) == pytest.approx(1 - back.GetFalseNegativeError(1), abs=1e-14)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of MONAI's own making
def test_overlap_is_that_of_monai() -> None:
    metrics = pytest.importorskip("monai.metrics")
    for seed in range(3):
        a, b, _ = blobs(seed)
        pair = [torch.from_numpy(mask[None, None]).double() for mask in (a, b)]
        counts = metrics.get_confusion_matrix(*pair)
        for function, expected in (
            (dice, metrics.compute_dice(*pair)),
            (iou, metrics.compute_iou(*pair)),
            (precision, metrics.compute_confusion_matrix_metric("precision", counts)),
            (recall, metrics.compute_confusion_matrix_metric("sensitivity", counts)),
        ):
            assert function(a, b) == pytest.approx(float(expected), abs=1e-6)  # single precision


def test_precision_and_recall_of_empty_masks() -> None:
    nothing = np.zeros_like(LEFT)
    assert (precision(nothing, LEFT), recall(nothing, LEFT)) == (None, 0.0)
    assert (precision(LEFT, nothing), recall(LEFT, nothing)) == (0.0, None)


def test_the_per_slice_score_is_the_mean_over_slices() -> None:
    moved = np.roll(LEFT, 3, 0)
    scores = slice_dice(moved, LEFT)
    assert scores.shape == (SHAPE[0],) and scores[0] == 1.0
    assert slice_score(moved, LEFT) == pytest.approx(scores.mean(), abs=1e-15)
    middle = SHAPE[0] // 2
    assert scores[middle] == pytest.approx(dice(moved[middle], LEFT[middle]), abs=1e-6)


# --- surfaces -----------------------------------------------------------------------------------


def distances_by_scipy(
    a: np.ndarray, b: np.ndarray, spacing_mm: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """The distances of the surface of a to that of b, and of b to a."""
    one, other = (mask & ~ndimage.binary_erosion(mask) for mask in (a, b))
    return (
        ndimage.distance_transform_edt(~other, sampling=spacing_mm)[one],
        ndimage.distance_transform_edt(~one, sampling=spacing_mm)[other],
    )


def blobs(seed: int) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Two shapes, ragged or smooth, on a grid of any shape and spacing; they touch its faces."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 24, 3))
    smooth = rng.uniform(0, 2)
    a, b = (ndimage.gaussian_filter(rng.normal(size=shape), smooth) > 0 for _ in "ab")
    a.flat[0] = b.flat[-1] = True
    return a, b, tuple(rng.uniform(0.4, 5, 3).tolist())


@pytest.mark.parametrize("seed", range(12))
def test_surface_distances_are_those_of_scipys_distance_transform(seed: int) -> None:
    a, b, spacing_mm = blobs(seed)
    there, back = distances_by_scipy(a, b, spacing_mm)
    result = surface_distances(a, b.astype(np.uint8) * 2, spacing_mm)
    assert result is not None
    assert result.mean_mm == pytest.approx(np.concatenate([there, back]).mean(), abs=1e-4)
    expected = max(np.percentile(there, 95), np.percentile(back, 95))
    assert result.hausdorff_95_mm == pytest.approx(expected, abs=1e-4)
    assert surface_distances(b, a, spacing_mm) == pytest.approx(result, abs=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of MONAI's own making
def test_surface_distances_are_those_of_monai() -> None:
    metrics = pytest.importorskip("monai.metrics")
    for seed in range(3):
        a, b, spacing_mm = blobs(seed)
        pair = [torch.from_numpy(mask[None, None]) for mask in (a, b)]
        hausdorff = metrics.compute_hausdorff_distance(
            *pair, include_background=True, percentile=95, spacing=spacing_mm
        )
        mean = metrics.compute_average_surface_distance(
            *pair, include_background=True, symmetric=True, spacing=spacing_mm
        )
        result = surface_distances(a, b, spacing_mm)
        assert result == pytest.approx((float(mean), float(hausdorff)), abs=1e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of MONAI's own making
@pytest.mark.parametrize("tolerance_mm", [0.0, 2.0, 4.0])
def test_surface_dice_is_that_of_monai(tolerance_mm: float) -> None:
    metrics = pytest.importorskip("monai.metrics")
    for seed in range(4):
        a, b, spacing_mm = blobs(seed)
        if seed == 3:
            spacing_mm = (0.4, 0.4, 0.4)  # five of them are the tolerance, but for rounding
        pair = [torch.from_numpy(mask[None, None]) for mask in (a, b)]
        expected = metrics.compute_surface_dice(
            *pair, class_thresholds=[tolerance_mm], include_background=True, spacing=spacing_mm
        )
        assert surface_dice(a, b, spacing_mm, tolerance_mm) == pytest.approx(
            float(expected), abs=1e-7
        )


def test_surface_dice_knows_empty_masks_and_its_tolerance() -> None:
    nothing = np.zeros_like(LEFT)
    assert surface_dice(LEFT, nothing, SPACING) == surface_dice(nothing, LEFT, SPACING) == 0.0
    assert surface_dice(nothing, nothing, SPACING) is None
    plane = np.zeros((20, 9, 9), bool)
    plane[5] = True
    moved = np.roll(plane, 1, 0)
    assert surface_dice(plane, moved, (2.0, 1.0, 1.0)) == 1.0
    assert surface_dice(plane, moved, (2.001, 1.0, 1.0)) == 0.0
    both = surface_agreement(plane, moved, (2.0, 1.0, 1.0))
    assert both.distances == surface_distances(plane, moved, (2.0, 1.0, 1.0)) and both.dice == 1.0


def test_a_shift_is_its_distance_in_mm() -> None:
    plane = np.zeros((20, 9, 9), bool)
    plane[5] = True
    result = surface_distances(plane, np.roll(plane, 3, 0), (2.5, 1.0, 1.0))
    assert result == pytest.approx((7.5, 7.5))
    assert surface_distances(LEFT, LEFT, SPACING) == (0.0, 0.0)


def test_one_far_voxel_moves_the_95_percent_distance_little() -> None:
    stray = LEFT.copy()
    stray[0, 0, 0] = True
    result = surface_distances(stray, LEFT, SPACING)
    assert result is not None and result.hausdorff_95_mm == 0.0 and result.mean_mm > 0


def test_without_a_surface_there_is_no_distance() -> None:
    nothing = np.zeros_like(LEFT)
    for a, b in ((LEFT, nothing), (nothing, LEFT), (nothing, nothing)):
        assert surface_distances(a, b, SPACING) is None
    with pytest.raises(ValueError, match="different shapes"):
        surface_distances(LEFT, LEFT[1:], SPACING)


# --- what labels mean -------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("parts", "kind"),
    [
        ((), "empty"),
        (((LEFT | RIGHT, 1),), "merged"),
        (((LEFT, 1),), "merged"),
        (((LEFT | RIGHT, 255),), "merged"),
        (((LEFT, 1), (RIGHT, 2)), "sides"),
        (((LEFT, 2), (RIGHT, 1)), "sides"),
        (((RIGHT, 2),), "sides"),
        (((LEFT | RIGHT, 1), (TUMOUR, 2)), "tumour"),
        (((LEFT | RIGHT, 1), (MEDIAL_TUMOUR, 2)), "tumour"),
        (((RIGHT, 1), (TUMOUR, 2)), "tumour"),
        (((RIGHT, 1), (EXOPHYTIC, 2)), "tumour"),
        (((LEFT, 1), (MEDIAL_TUMOUR, 2)), "tumour"),
        (((MEDIAL_TUMOUR, 2), (LEFT, 1)), "tumour"),
        (((LEFT | RIGHT, 1), (TUMOUR | MEDIAL_TUMOUR, 2)), "tumour"),
        (((LEFT | RIGHT, 1), (TUMOUR, 2), (MEDIAL_TUMOUR, 3)), "tumour"),
        (((LEFT | RIGHT, 1), (TUMOUR, 3)), "merged"),
        (((RIGHT, 2), (LEFT, 3)), "sides"),
    ],
)
def test_what_labels_mean_follows_from_where_they_lie(
    parts: tuple[tuple[np.ndarray, int], ...], kind: str, flip: bool
) -> None:
    assert labels_kind(image(*parts, flip=flip)) == kind


def test_a_horseshoe_kidney_cut_at_the_midline_has_sides() -> None:
    whole = LEFT | RIGHT | ellipsoid((0, 10, -30), (60, 9, 11))
    on_left = np.broadcast_to(np.arange(SHAPE[2]) * SPACING[2] > 158, SHAPE)
    assert labels_kind(image((whole & on_left, 1), (whole & ~on_left, 2))) == "sides"


def test_a_few_voxels_of_the_wrong_side_do_not_make_a_tumour() -> None:
    patch = RIGHT & ellipsoid((-60, 20, 45), (12, 12, 8))
    assert 0 < patch.sum() < 0.02 * LEFT.sum()
    assert labels_kind(image((LEFT, 1), (RIGHT, 2), (patch, 1))) == "sides"


@pytest.mark.parametrize(
    ("parts", "held"),
    [
        (((LEFT, 2), (RIGHT, 3)), "2, 3"),
        (((LEFT | RIGHT, 2), (TUMOUR, 3)), "2, 3"),
        (((LEFT, 1), (RIGHT, 7)), "1, 7"),
        (((LEFT, 1), (RIGHT, 3)), "1, 3"),
        (((LEFT, 1), (RIGHT, 2), (TUMOUR, 3)), "1, 2, 3"),
    ],
)
def test_labels_of_something_else_are_refused_with_the_file(
    parts: tuple[tuple[np.ndarray, int], ...], held: str
) -> None:
    with pytest.raises(InputError, match=rf"organs\.nii\.gz holds the values {held} .*kidney"):
        labels_kind(image(*parts), "organs.nii.gz")


def test_a_ct_in_place_of_a_label_map_is_refused() -> None:
    noise = np.random.default_rng(0).normal(0, 100, (4, 5, 6)).astype(np.float32)
    with pytest.raises(InputError, match=r"ct\.nii holds the values .*\.\.\. and is no label map"):
        labels_kind(sitk.GetImageFromArray(noise), "ct.nii")
    noise[:] = 0
    noise[1, 2, 3] = np.nan
    with pytest.raises(InputError, match=r"ct\.nii holds the values nan"):
        labels_kind(sitk.GetImageFromArray(noise), "ct.nii")


def test_label_maps_stored_as_floating_point_are_read() -> None:
    assert labels_kind(sitk.Cast(SIDES, sitk.sitkFloat64)) == "sides"


def test_pictures_with_other_dimensions_or_colours_are_refused() -> None:
    with pytest.raises(InputError, match="flat has 2 dimensions"):
        labels_kind(sitk.Image(4, 5, sitk.sitkUInt8), "flat")
    with pytest.raises(InputError, match="rgb holds colours"):
        evaluate(sitk.Image((4, 5, 6), sitk.sitkVectorUInt8, 3), SIDES, ("rgb", "b"))


# --- evaluate ---------------------------------------------------------------------------------


def test_a_perfect_prediction_scores_one_and_is_ready_for_json() -> None:
    result = json.loads(json.dumps(evaluate(SIDES, SIDES)))
    assert result["dice"] == result["iou"] == {"kidney": 1.0, "left": 1.0, "right": 1.0}
    assert result["slice_score"] == 1.0 and result["notes"] == []
    assert set(result["volume_ml"]["prediction"]) == {"kidney", "left", "right"}


def test_each_kidney_is_scored_on_its_own() -> None:
    moved = np.roll(RIGHT, 2, 1)
    result = evaluate(image((LEFT, 1), (moved, 2)), SIDES)
    assert result["dice"]["left"] == 1.0
    assert result["dice"]["right"] == pytest.approx(dice(moved, RIGHT))
    assert result["dice"]["kidney"] == pytest.approx(dice(LEFT | moved, LEFT | RIGHT))
    assert result["iou"]["right"] == pytest.approx(iou(moved, RIGHT))


def test_the_axis_order_of_the_file_changes_nothing() -> None:
    moved = np.roll(RIGHT, 2, 1)
    results = [
        evaluate(image((LEFT, 1), (moved, 2), flip=flip), image((LEFT, 1), (RIGHT, 2), flip=flip))
        for flip in (False, True)
    ]
    assert results[0] == results[1]


def test_slices_of_the_score_are_axial_whatever_the_file_stores_first() -> None:
    moved = image((np.roll(LEFT | RIGHT, 3, 0), 1))
    stored = [sitk.PermuteAxes(i, (2, 1, 0)) for i in (moved, MERGED)]
    expected = slice_score(np.roll(LEFT | RIGHT, 3, 0), LEFT | RIGHT)
    assert evaluate(*stored)["slice_score"] == pytest.approx(expected)


def test_swapped_sides_score_nothing_by_side_and_are_named() -> None:
    swapped = image((LEFT, 2), (RIGHT, 1))
    result = evaluate(swapped, SIDES, ("mine.nii.gz", "theirs.nii.gz"))
    assert result["dice"] == {"kidney": 1.0, "left": 0.0, "right": 0.0}
    assert result["notes"] == ["left and right are swapped in mine.nii.gz"]


def test_distances_are_measured_for_each_kidney_when_asked_for() -> None:
    moved = image((LEFT, 1), (np.roll(RIGHT, 2, 1), 2))
    assert "hausdorff_95_mm" not in evaluate(moved, SIDES)
    for flip in (False, True):
        result = json.loads(
            json.dumps(
                evaluate(
                    image((LEFT, 1), (np.roll(RIGHT, 2, 1), 2), flip=flip),
                    image((LEFT, 1), (RIGHT, 2), flip=flip),
                    distances=True,
                )
            )
        )
        for name, value in (("mean_surface_distance_mm", 0), ("hausdorff_95_mm", 1)):
            right = surface_distances(np.roll(RIGHT, 2, 1), RIGHT, SPACING)
            assert right is not None
            assert result[name]["right"] == pytest.approx(right[value], abs=1e-4)
            assert result[name]["left"] == 0.0
            assert 0 < result[name]["kidney"] < 8.1
    missed = evaluate(image((LEFT, 1)), SIDES, distances=True)
    assert missed["hausdorff_95_mm"]["right"] is None


def test_merged_labels_are_compared_together() -> None:
    for prediction, reference, sided in ((MERGED, SIDES, 1), (SIDES, MERGED, 0)):
        result = evaluate(prediction, reference)
        assert result["dice"] == {"kidney": 1.0}
        volumes = [set(result["volume_ml"][which]) for which in ("prediction", "reference")]
        assert volumes[sided] == {"kidney", "left", "right"}
        assert volumes[1 - sided] == {"kidney"}
        assert len(result["notes"]) == 1 and "does not tell left from right" in result["notes"][0]
    assert evaluate(MERGED, MERGED)["notes"] == []


def test_tumours_are_merged_into_the_kidney() -> None:
    reference = image((LEFT | RIGHT, 1), (TUMOUR, 2))
    whole = LEFT | RIGHT | TUMOUR
    result = evaluate(image((whole, 1)), reference)
    assert result["dice"] == {"kidney": 1.0}
    assert result["volume_ml"]["reference"] == {"kidney": pytest.approx(whole.sum() * 0.08)}
    assert any("tumour" in note for note in result["notes"])


def test_cysts_are_merged_into_the_kidney_as_kits23_labels_them() -> None:
    cyst = MEDIAL_TUMOUR & ~TUMOUR
    reference = image((LEFT | RIGHT, 1), (TUMOUR, 2), (cyst, 3))
    whole = LEFT | RIGHT | TUMOUR | cyst
    result = evaluate(image((whole, 1)), reference, ("ours", "case_00002"))
    assert result["dice"] == {"kidney": 1.0}
    assert result["notes"] == [
        "label 3 (cyst, as in KiTS23) of case_00002 counts as kidney",
        "labels 1 (kidney) and 2 (tumour) of case_00002 were merged",
    ]
    pair = pair_of(image((whole & ~TUMOUR, 1), (TUMOUR, 2)), reference, tumour=True)
    assert np.array_equal(*pair.masks["tumour"]) and pair.masks["tumour"][1].any()


def test_kidneys_numbered_as_among_all_organs_are_told_by_number_and_place() -> None:
    result = evaluate(SIDES, image((RIGHT, 2), (LEFT, 3)), ("ours", "organs"))
    assert result["dice"] == {"kidney": 1.0, "left": 1.0, "right": 1.0}
    assert [note[:31] for note in result["notes"]] == ["labels 2 and 3 of organs were t"]


def test_usual_labels_lie_where_the_map_has_them() -> None:
    for parts, usual in (
        (((RIGHT, 2), (LEFT, 3)), SIDES),
        (((LEFT | RIGHT, 255),), MERGED),
        (((LEFT, 1), (RIGHT, 2)), SIDES),
        ((), image()),
    ):
        labels, _ = usual_labels(image(*parts))
        assert np.array_equal(*map(sitk.GetArrayViewFromImage, (labels, usual)))
        assert labels.GetOrigin() == usual.GetOrigin()


def test_a_prediction_of_the_left_kidney_only_is_told_by_its_place() -> None:
    result = evaluate(image((LEFT, 1)), SIDES)
    assert result["dice"]["left"] == 1.0 and result["dice"]["right"] == 0.0
    right_as_merged = evaluate(image((RIGHT, 1)), SIDES)
    assert set(right_as_merged["dice"]) == {"kidney"}
    right = evaluate(image((RIGHT, 2)), SIDES)
    assert right["dice"]["right"] == 1.0 and right["dice"]["left"] == 0.0


def test_a_side_absent_from_both_is_not_counted() -> None:
    result = evaluate(image((RIGHT, 2)), image((RIGHT, 2)))
    assert result["dice"] == {"kidney": 1.0, "left": None, "right": 1.0}


def test_empty_maps_have_defined_results() -> None:
    empty = image()
    missed = evaluate(empty, SIDES)
    assert missed["dice"] == {"kidney": 0.0, "left": 0.0, "right": 0.0}
    assert missed["notes"] == ["prediction has no kidney"]
    assert missed["volume_ml"]["prediction"] == {"kidney": 0.0, "left": 0.0, "right": 0.0}
    alarm = evaluate(MERGED, empty)
    assert alarm["dice"] == {"kidney": 0.0} and alarm["notes"] == ["reference has no kidney"]
    nothing = evaluate(empty, empty)
    assert nothing["dice"] == {"kidney": None} and nothing["slice_score"] == 1.0


def test_different_grids_are_refused_with_both_files_and_both_values() -> None:
    other = image((LEFT, 1))
    other.SetSpacing((4.0, 4.0, 2.5))
    with pytest.raises(InputError) as caught:
        evaluate(other, SIDES, ("mine.nii.gz", "theirs.nii.gz"))
    message = str(caught.value)
    assert all(part in message for part in ("mine.nii.gz", "theirs.nii.gz", "2.5", "5"))
    assert "\n" not in message
    smaller = SIDES[:, :, 1:]
    with pytest.raises(InputError, match="80 x 50 x 29 and 80 x 50 x 30"):
        evaluate(smaller, SIDES)


def test_the_inputs_are_left_as_they_are() -> None:
    before = sitk.GetArrayFromImage(SIDES)
    evaluate(SIDES, MERGED)
    assert np.array_equal(sitk.GetArrayFromImage(SIDES), before)
