"""Kidneys from probabilities: which components, which side, which holes, which notes."""

from __future__ import annotations

import tracemalloc
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import toys
from patients import Patient

from KidneySegLib.geometry import LEFT, RIGHT, from_axial, to_axial
from KidneySegLib.midline import find_midline
from KidneySegLib.postprocess import (
    NOTE_HORSESHOE,
    NOTE_NONE,
    NOTE_SIDE,
    NOTE_SLANT,
    Kidneys,
    fill_holes,
    find_kidneys,
)

SHARED_CASES = Path(__file__).resolve().parents[2] / "shared" / "data" / "cases"
CUT = "{} kidney is cut off by the end of the scan; its volume is incomplete"


def test_two_kidneys_become_left_and_right_without_a_note() -> None:
    patient = Patient()
    left, right = patient.left(), patient.right()
    found = find_kidneys(patient.mask, patient.grid, patient.ct)
    assert found.labels.dtype == np.uint8
    assert np.array_equal(found.labels == LEFT, left)
    assert np.array_equal(found.labels == RIGHT, right)
    assert found.notes == () and not found.horseshoe


@pytest.mark.parametrize("with_ct", [True, False])
def test_left_and_right_follow_physical_x_and_not_the_array_index(with_ct: bool) -> None:
    patient = Patient((18, 30, 42), (10.0, 8.0, 8.0))
    left, right = patient.left(), patient.right()
    truth = from_axial(left * np.uint8(LEFT) + right * np.uint8(RIGHT), patient.grid)
    ct = from_axial(patient.ct, patient.grid)
    tried = 0
    for order, flips in product(permutations(range(3)), product((False, True), repeat=3)):
        stored, stored_ct = (
            sitk.Flip(sitk.PermuteAxes(image, order), flips, False) for image in (truth, ct)
        )
        axial, grid = to_axial(stored)
        seen = to_axial(stored_ct)[0] if with_ct else None
        labels = from_axial(find_kidneys(axial > 0, grid, seen).labels, grid)
        assert np.array_equal(
            sitk.GetArrayViewFromImage(labels), sitk.GetArrayViewFromImage(stored)
        ), (order, flips)
        tried += 1
    assert tried == 48


@pytest.mark.parametrize("degrees", [-12, 12])
def test_an_oblique_volume_keeps_its_sides(degrees: float) -> None:
    patient = Patient()
    left, right = patient.left(), patient.right()
    images = [from_axial(a, patient.grid) for a in (left.astype(np.uint8), patient.ct)]
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]])
    for image in images:
        turned = turn @ np.array(image.GetDirection()).reshape(3, 3)
        image.SetDirection(turned.ravel().tolist())
    _, grid = to_axial(images[0])
    found = find_kidneys(patient.mask, grid, to_axial(images[1])[0])
    assert np.array_equal(found.labels == LEFT, left)
    assert np.array_equal(found.labels == RIGHT, right)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, bool])
def test_every_form_of_probability_is_cut_at_the_threshold(dtype: type) -> None:
    patient = Patient()
    left = patient.left()
    probability = np.where(left, 0.6, 0.1)
    if dtype is np.uint8:
        given = np.round(probability * 255).astype(np.uint8)
    elif dtype is bool:
        given = left
    else:
        given = probability.astype(dtype)
    assert np.array_equal(find_kidneys(given, patient.grid).labels > 0, left)
    if dtype is not bool:
        strict = find_kidneys(given, patient.grid, threshold=0.7)
        assert not strict.labels.any()


def test_a_threshold_of_one_half_takes_128_of_255_and_not_127() -> None:
    patient = Patient()
    left = patient.left()
    assert find_kidneys(left * np.uint8(128), patient.grid).labels.any()
    assert not find_kidneys(left * np.uint8(127), patient.grid).labels.any()


def test_read_only_views_with_negative_strides_are_taken_as_they_are() -> None:
    patient = Patient()
    left, right = patient.left(), patient.right()
    probability = np.ascontiguousarray((patient.mask * np.uint8(255)).T[::-1]).T[..., ::-1]
    probability.flags.writeable = False
    labels = find_kidneys(probability, patient.grid, patient.ct[:]).labels
    assert np.array_equal(labels, left * LEFT + right * RIGHT)


# --- how many ---------------------------------------------------------------------------------


def test_nothing_is_no_kidney() -> None:
    patient = Patient()
    found = find_kidneys(patient.mask, patient.grid, patient.ct)
    assert found.notes == (NOTE_NONE,) == ("no kidney found",)
    assert found.labels.shape == patient.grid.shape and not found.labels.any()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("with_ct", [True, False])
def test_one_kidney_is_reported_with_its_side(side: str, with_ct: bool) -> None:
    patient = Patient()
    getattr(patient, side)()
    found = find_kidneys(patient.mask, patient.grid, patient.ct if with_ct else None)
    assert found.notes == (f"one kidney found ({side})",)
    assert set(np.unique(found.labels)) == {0, LEFT if side == "left" else RIGHT}


def test_a_lump_too_small_for_a_kidney_is_none() -> None:
    patient = Patient()
    patient.add((60, 25, 0), (14, 14, 14))  # 11 ml
    assert find_kidneys(patient.mask, patient.grid, patient.ct).notes == (NOTE_NONE,)
    assert find_kidneys(patient.mask, patient.grid, patient.ct, minimum_ml=8).notes == (
        "one kidney found (left)",
    )


def test_a_false_detection_of_20_ml_is_no_second_kidney_but_is_named() -> None:
    patient = Patient()
    left = patient.left()
    patient.add((-60, 25, 0), (17, 17, 17))  # 21 ml
    found = find_kidneys(patient.mask, patient.grid, patient.ct)
    assert np.array_equal(found.labels > 0, left)
    assert found.notes[0] == "one kidney found (left)"
    assert found.notes[1].startswith("a region of 2")
    assert found.notes[1].endswith("ml on the right is too small for a kidney and was left out")


def half_believed(
    patient: Patient, place: tuple[float, float, float], radius_mm: float, inside: float
) -> np.ndarray:
    """Probabilities of a lump, and of its surroundings, which are believed nearly as much."""
    lump = patient.at(place, (radius_mm,) * 3)
    around = patient.at(place, (radius_mm + 8,) * 3)
    return np.where(lump, inside, np.where(around & (inside < 0.9), 0.45, 0.0))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize(
    ("radius_mm", "inside", "kept"), [(20, 0.6, False), (20, 0.95, True), (30, 0.6, True)]
)
def test_where_a_patient_has_one_kidney_a_half_believed_lump_is_no_second(
    radius_mm: float, inside: float, kept: bool, dtype: type
) -> None:
    patient = Patient()
    left = patient.left()
    lump = half_believed(patient, (-60, 25, 0), radius_mm, inside)  # 34 or 113 ml
    probability = np.where(left, 0.95, lump)
    stored = np.rint(probability * 255) if dtype is np.uint8 else probability
    found = find_kidneys(stored.astype(dtype), patient.grid, patient.ct)
    assert (found.labels == RIGHT).any() == kept
    if not kept:
        assert np.array_equal(found.labels > 0, left)
        assert found.notes[0] == "one kidney found (left)"
        assert found.notes[1].startswith("a region of 3")
        assert found.notes[1].endswith("on the right is too doubtful for a kidney and was left out")


def with_a_lump(sure: float, radius_mm: float) -> tuple[Patient, np.ndarray, np.ndarray]:
    """A right kidney of some certainty on which bowel hangs, its probability, and the bowel."""
    patient = Patient(shape=(48, 60, 84))
    right = patient.right()
    bowel = patient.add((-60, 25, -55 - radius_mm), (radius_mm,) * 3) & ~right
    probability = np.zeros(patient.mask.shape, np.float32)
    probability[right], probability[bowel] = sure, 0.55
    return patient, probability, bowel


def test_bowel_that_hangs_on_a_sure_kidney_and_is_hardly_believed_is_dropped() -> None:
    patient, probability, bowel = with_a_lump(0.97, 20)
    found = find_kidneys(probability, patient.grid, patient.ct)
    kept = (found.labels == RIGHT) & bowel
    # What lies within 10 mm of the kidney may be its own doubtful rim.
    assert 0 < kept.sum() < bowel.sum() / 2
    assert (found.labels == RIGHT)[probability > 0.9].all()
    left_out = (bowel & ~kept).sum() * patient.grid.voxel_volume_ml
    note = f"a doubtful region of {left_out:.0f} ml joined to the right kidney was left out"
    assert found.notes == ("one kidney found (right)", note)
    given = (probability * 255).astype(np.uint8)
    assert np.array_equal(find_kidneys(given, patient.grid, patient.ct).labels, found.labels)


def test_what_hangs_on_a_sure_kidney_and_is_rather_believed_stays() -> None:
    """As parts of a pole beside a cyst are, by more than one view."""
    patient, probability, bowel = with_a_lump(0.97, 20)
    probability[bowel] = 0.65
    found = find_kidneys(probability, patient.grid, patient.ct)
    assert (found.labels == RIGHT)[bowel].all()


def test_a_crumb_that_only_a_dropped_lump_joins_to_the_kidney_goes_with_it() -> None:
    patient, probability, bowel = with_a_lump(0.97, 30)
    probability[patient.at((-60, 25, -105), (6, 6, 6))] = 0.9
    labels = find_kidneys(probability, patient.grid, patient.ct).labels
    beyond = bowel & (patient.z < -75)
    assert not labels[beyond].any()


def test_a_doubtful_tumour_in_the_middle_of_a_sure_kidney_stays() -> None:
    patient = Patient()
    right = patient.add((-60, 25, 0), (25, 25, 80))
    probability = np.where(right, 0.97, 0).astype(np.float32)
    probability[right & (np.abs(patient.z) < 20)] = 0.6
    found = find_kidneys(probability, patient.grid, patient.ct)
    assert np.array_equal(found.labels == RIGHT, right)


def test_a_small_doubtful_end_of_a_sure_kidney_stays() -> None:
    patient, probability, bowel = with_a_lump(0.97, 10)
    found = find_kidneys(probability, patient.grid, patient.ct)
    assert (found.labels == RIGHT)[bowel].all()


def test_the_doubtful_end_of_a_kidney_that_is_nowhere_sure_stays() -> None:
    """In a plain CT much of a kidney is as doubtful as that."""
    patient, probability, bowel = with_a_lump(0.8, 20)
    found = find_kidneys(probability, patient.grid, patient.ct)
    assert (found.labels == RIGHT)[bowel].all()


def test_keep_small_keeps_a_doubtful_lump_too() -> None:
    patient, probability, bowel = with_a_lump(0.97, 20)
    found = find_kidneys(probability, patient.grid, patient.ct, keep_small=True)
    assert (found.labels == RIGHT)[bowel].all()


def test_a_small_kidney_is_not_lost_to_a_larger_half_believed_lump() -> None:
    patient = Patient()
    kidney = patient.add((60, 25, 0), (20, 20, 20))
    lump = half_believed(patient, (60, -45, 0), 21, 0.55)
    found = find_kidneys(np.where(kidney, 0.97, lump), patient.grid, patient.ct)
    assert np.array_equal(found.labels == LEFT, kidney)
    assert any("was left out" in note for note in found.notes)


def test_keep_small_keeps_everything_on_its_side() -> None:
    patient = Patient()
    patient.left()
    patient.add((-60, 25, 0), (10, 10, 10))
    patient.add((90, -20, 60), (8, 8, 8))
    found = find_kidneys(patient.mask, patient.grid, patient.ct, keep_small=True)
    assert np.array_equal(found.labels > 0, patient.mask)
    assert np.array_equal(found.labels == LEFT, patient.mask & (patient.x > 0))


def test_a_false_detection_in_the_spleen_does_not_make_the_left_kidney_a_right_one() -> None:
    patient = Patient()
    left = patient.left()
    spleen = patient.add((95, 10, 75), (18, 22, 12))
    found = find_kidneys(patient.mask, patient.grid, patient.ct)
    assert np.array_equal(found.labels == LEFT, left)
    assert not found.labels[spleen].any()
    assert found.notes[0] == "one kidney found (left)"
    assert "was left out" in found.notes[1] and "on the left" in found.notes[1]
    without_ct = find_kidneys(patient.mask, patient.grid)
    assert np.array_equal(without_ct.labels == LEFT, left)


def test_a_part_cut_off_by_a_missed_slice_stays_with_its_kidney_and_a_far_one_goes() -> None:
    patient = Patient()
    left, right = patient.left(), patient.right()
    gap = slice(20, 21)
    patient.mask[gap] = False
    far = patient.add((100, -50, 60), (12, 12, 12))
    found = find_kidneys(patient.mask, patient.grid, patient.ct)
    kept = patient.mask & ~far
    assert np.array_equal(found.labels == LEFT, left & kept)
    assert np.array_equal(found.labels == RIGHT, right & kept)


def test_a_kidney_interrupted_over_several_slices_stays_whole() -> None:
    patient = Patient()
    left = patient.left()
    patient.right()
    patient.mask[16:21] &= ~left[16:21]  # 25 mm of it were not seen
    kept = patient.mask & left
    found = find_kidneys(patient.mask, patient.grid, patient.ct)
    assert np.array_equal(found.labels == LEFT, kept)


def test_bowel_a_third_of_the_kidneys_size_and_6_mm_below_it_is_dropped() -> None:
    patient = Patient()
    left, right = patient.left(), patient.right()
    bowel = patient.add((40, 5, -72), (20, 20, 22))
    assert 0.2 < bowel.sum() / left.sum() < 0.35
    found = find_kidneys(patient.mask, patient.grid, patient.ct)
    assert np.array_equal(found.labels == LEFT, left)
    assert np.array_equal(found.labels == RIGHT, right)


def test_specks_beside_a_kidney_are_dropped() -> None:
    patient = Patient()
    left = patient.left()
    speck = patient.add((92, 25, 0), (4.5, 4.5, 5.5))
    assert speck.any()
    labels = find_kidneys(patient.mask, patient.grid, patient.ct).labels
    assert np.array_equal(labels > 0, left)


# --- the midline ------------------------------------------------------------------------------


def test_a_patient_away_from_the_middle_of_the_image_keeps_both_sides() -> None:
    patient = Patient(shape=(36, 60, 130), middle_x_mm=100)
    left, right = patient.left(), patient.right()
    for ct in (patient.ct, None):
        labels = find_kidneys(patient.mask, patient.grid, ct).labels
        assert np.array_equal(labels == LEFT, left)
        assert np.array_equal(labels == RIGHT, right)


def test_one_kidney_of_a_patient_far_from_the_middle_is_told_by_the_body() -> None:
    patient = Patient(shape=(36, 60, 130), middle_x_mm=100)
    patient.right()
    found = find_kidneys(patient.mask, patient.grid, patient.ct)
    assert found.notes == ("one kidney found (right)",)


def test_the_midline_follows_a_tilted_patient() -> None:
    patient = Patient(shape=(40, 60, 110), tilt=-0.35)
    # Near the midline, high and low: an upright midline would swap them.
    high = patient.add((19, 25, 75), (18, 25, 24))
    low = patient.add((-19, 25, -75), (18, 25, 24))
    axial_x_mm = patient.x - 0.35 * patient.z
    assert axial_x_mm[high].mean() < 0 < axial_x_mm[low].mean()
    midline = find_midline(patient.ct, patient.grid)
    assert midline is not None and midline.slope == pytest.approx(-0.35, abs=0.03)
    labels = find_kidneys(patient.mask, patient.grid, patient.ct).labels
    assert np.array_equal(labels == LEFT, high)
    assert np.array_equal(labels == RIGHT, low)


def test_without_a_body_in_the_ct_the_kidneys_tell_their_sides() -> None:
    patient = Patient()
    left, right = patient.left(), patient.right()
    assert find_midline(np.full_like(patient.ct, -1000), patient.grid) is None
    labels = find_kidneys(patient.mask, patient.grid, np.full_like(patient.ct, -1000)).labels
    assert np.array_equal(labels, left * LEFT + right * RIGHT)


def test_a_picture_of_half_the_body_does_not_put_both_kidneys_on_one_side() -> None:
    patient = Patient()
    left, right = patient.left(), patient.right()
    patient.ct[patient.x < 20] = -1000
    midline = find_midline(patient.ct, patient.grid)
    assert (
        midline is not None and midline.to_the_left_mm(patient.grid.to_physical([18, 36, 56])) < 0
    )
    labels = find_kidneys(patient.mask, patient.grid, patient.ct).labels
    assert np.array_equal(labels, left * LEFT + right * RIGHT)


# --- a part of the body's width -----------------------------------------------------------------


def cut_out(patient: Patient, low_mm: float, high_mm: float) -> Kidneys:
    """What is found where only the columns of this part of the body are shown."""
    x = patient.x[0, 0]
    shown = (slice(None), slice(None), (x >= low_mm) & (x <= high_mm))
    mask, ct = (np.ascontiguousarray(array[shown]) for array in (patient.mask, patient.ct))
    return find_kidneys(mask, Patient(ct.shape, patient.grid.spacing_mm).grid, ct)


@pytest.mark.parametrize("side", [LEFT, RIGHT])
@pytest.mark.parametrize("shown", [(25, 105), (0, 105), (-5, 200), (-30, 200)], ids=str)
def test_a_kidney_alone_in_a_narrow_picture_tells_its_side(
    side: int, shown: tuple[float, float]
) -> None:
    """The middle of the picture, even of the body in it, may lie on either side of the kidney."""
    out = 1 if side == LEFT else -1
    patient = Patient()
    patient.ct[patient.at((0, 55, 0), (22, 22, 1000))] = 400
    patient.add((out * 55, 25, 25), (25, 25, 32))
    patient.add((out * 65, 25, -25), (25, 25, 32))
    found = cut_out(patient, *sorted((out * shown[0], out * shown[1])))
    assert set(np.unique(found.labels)) == {0, side}
    assert NOTE_SIDE in found.notes
    whole = find_kidneys(patient.mask, patient.grid, patient.ct)
    assert NOTE_SIDE not in whole.notes and (whole.labels[patient.mask] == side).all()


def test_a_pair_of_kidneys_in_a_narrow_picture_has_its_middle_between_them() -> None:
    patient = Patient()
    patient.left()
    patient.right()
    for low, high in ((-95, 95), (-90, 125)):
        found = cut_out(patient, low, high)
        assert (found.labels == LEFT).sum() > 1000 and (found.labels == RIGHT).sum() > 1000
        assert found.notes == ()


# --- across the midline -----------------------------------------------------------------------


@pytest.mark.parametrize("column_mm", [2.0, 4.0, 6.0])
def test_a_horseshoe_kidney_is_reported_and_split_at_the_midline(column_mm: float) -> None:
    patient = Patient(shape=(36, 50, round(340 / column_mm)), spacing_mm=(5.0, 4.0, column_mm))
    patient.left()
    patient.add((-60, 25, 0), (25, 25, 50))
    patient.add((0, 10, -35), (60, 10, 11))
    found = find_kidneys(patient.mask, patient.grid, patient.ct)
    assert found.horseshoe
    assert found.notes == (NOTE_HORSESHOE,)
    assert np.array_equal(found.labels > 0, fill_holes(patient.mask, patient.grid.spacing_mm))
    assert (found.labels[(patient.x > 8) & patient.mask] == LEFT).all()
    assert (found.labels[(patient.x < -8) & patient.mask] == RIGHT).all()


def test_a_horseshoe_kidney_is_one_too_where_every_component_is_kept() -> None:
    patient = Patient()
    patient.left()
    patient.add((-60, 25, 0), (25, 25, 50))
    patient.add((0, 10, -35), (60, 10, 11))
    whole = find_kidneys(patient.mask, patient.grid, patient.ct)
    crumb = patient.add((-100, -40, 60), (8, 8, 8))
    kept = find_kidneys(patient.mask, patient.grid, patient.ct, keep_small=True)
    assert kept.horseshoe and kept.notes == (NOTE_HORSESHOE,)
    assert np.array_equal(np.where(crumb, 0, kept.labels), whole.labels)
    assert (kept.labels[crumb] == RIGHT).all()


def test_a_tumour_across_the_midline_is_no_horseshoe_beside_another_kidney() -> None:
    patient = Patient()
    right = patient.right()
    patient.left()
    patient.add((5, 0, 10), (38, 38, 38))
    assert (right & patient.at((5, 0, 10), (38, 38, 38))).sum() == 0
    found = find_kidneys(patient.mask, patient.grid, patient.ct)
    assert not found.horseshoe and found.notes == ()
    assert np.array_equal(found.labels == RIGHT, right)
    assert (found.labels[patient.mask & ~right] == LEFT).all()


def test_a_tumour_with_a_neck_is_no_horseshoe_beside_another_kidney() -> None:
    patient = Patient()
    patient.left()
    patient.add((30, 12, 5), (16, 9, 9))
    patient.add((-8, 0, 10), (30, 30, 30))
    alone = find_kidneys(patient.mask, patient.grid, patient.ct)
    assert alone.horseshoe
    right = patient.add((-80, 40, -10), (25, 25, 50))
    found = find_kidneys(patient.mask, patient.grid, patient.ct)
    assert not found.horseshoe and found.notes == ()
    assert np.array_equal(found.labels == RIGHT, right)


@pytest.mark.parametrize("column_mm", [2.0, 3.0, 4.0, 7.0])
def test_a_single_kidney_with_a_tumour_across_the_midline_is_no_horseshoe(
    column_mm: float,
) -> None:
    patient = Patient(shape=(36, 50, round(340 / column_mm)), spacing_mm=(5.0, 4.0, column_mm))
    patient.left()
    patient.add((10, 10, 0), (50, 45, 45))
    found = find_kidneys(patient.mask, patient.grid, patient.ct)
    assert not found.horseshoe
    assert found.notes == ("one kidney found (left)",)


@pytest.mark.parametrize("leaning", [1.0, -1.0])
def test_kidneys_that_come_closer_downwards_may_be_a_horseshoe_whose_bridge_was_missed(
    leaning: float,
) -> None:
    patient = Patient()
    for side in (1, -1):
        for z in range(-45, 46, 5):
            patient.add((side * (60 + leaning * 0.25 * z), 25, z), (18, 18, 8))
    notes = find_kidneys(patient.mask, patient.grid, patient.ct).notes
    assert notes == ((NOTE_SLANT,) if leaning > 0 else ())


def test_a_patient_who_leans_to_one_side_has_no_horseshoe_kidney() -> None:
    patient = Patient(tilt=-0.3)
    patient.left(), patient.right()
    assert find_kidneys(patient.mask, patient.grid, patient.ct).notes == ()


def test_kidneys_of_which_the_scan_shows_a_part_do_not_tell_how_they_slant() -> None:
    patient = Patient(shape=(14, 60, 84))
    for side in (1, -1):
        for z in range(-45, 46, 5):
            patient.add((side * (60 + 0.25 * z), 25, z), (18, 18, 8))
    notes = find_kidneys(patient.mask, patient.grid, patient.ct).notes
    assert notes == (CUT.format("left"), CUT.format("right"))


def test_a_bit_across_the_midline_is_no_horseshoe() -> None:
    patient = Patient()
    left = patient.left()
    patient.add((20, 15, 0), (32, 10, 10))
    found = find_kidneys(patient.mask, patient.grid, patient.ct)
    assert not found.horseshoe and left.any()
    assert np.array_equal(found.labels == LEFT, patient.mask)


# --- short scans ------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", ["first", "last"])
def test_a_kidney_at_the_end_of_the_scan_is_said_to_be_cut_off(ends: str) -> None:
    patient = Patient()
    patient.left()
    patient.right()
    part = slice(None, 20) if ends == "last" else slice(18, None)
    shape = patient.mask[part].shape
    grid = Patient(shape=shape).grid
    notes = find_kidneys(patient.mask[part], grid, patient.ct[part]).notes
    assert notes == (CUT.format("left"), CUT.format("right"))


def test_the_pole_of_a_kidney_at_the_end_of_a_long_scan_is_kept() -> None:
    patient = Patient()
    pole = patient.add((60, 25, 95), (20, 20, 20))  # less than half of it, and under 15 ml
    assert 5 < pole.sum() * patient.grid.voxel_volume_ml < 15
    found = find_kidneys(patient.mask, patient.grid, patient.ct)
    assert np.array_equal(found.labels == LEFT, pole)
    assert found.notes == ("one kidney found (left)", CUT.format("left"))


def test_a_single_slice_holds_kidneys_but_no_specks() -> None:
    patient = Patient(shape=(1, 60, 84))
    left, right = patient.left(), patient.right()
    patient.add((0, -50, 0), (6, 6, 6))
    found = find_kidneys(patient.mask, patient.grid, patient.ct)
    assert np.array_equal(found.labels, left * LEFT + right * RIGHT)
    assert found.notes == (CUT.format("left"), CUT.format("right"))


def test_a_scan_of_a_few_slices_holds_kidneys() -> None:
    patient = Patient(shape=(3, 60, 84), spacing_mm=(3.0, 4.0, 4.0))
    left, right = patient.left(), patient.right()
    assert left.sum() * patient.grid.voxel_volume_ml < 20
    labels = find_kidneys(patient.mask, patient.grid, patient.ct).labels
    assert np.array_equal(labels, left * LEFT + right * RIGHT)


# --- holes ------------------------------------------------------------------------------------


def test_a_foreground_that_fills_its_box_is_taken_as_it_is() -> None:
    """What an untrained network may answer: nothing of the box is left for the background."""
    patient = Patient()
    block = np.zeros_like(patient.mask)
    block[10:20, 30:40, 50:60] = True
    found = find_kidneys(block, patient.grid, patient.ct)
    assert np.array_equal(found.labels > 0, block)


def test_a_closed_cavity_is_filled_and_an_open_sinus_is_not() -> None:
    patient = Patient()
    left, right = patient.left(), patient.right()
    cavity = patient.at((60, 25, 0), (10, 10, 15))
    sinus = (np.abs(patient.y - 25) < 6) & (np.abs(patient.z + 10) < 10) & (patient.x > -60)
    sinus &= right
    labels = find_kidneys(patient.mask & ~cavity & ~sinus, patient.grid, patient.ct).labels
    assert np.array_equal(labels == LEFT, left)
    assert np.array_equal(labels == RIGHT, right & ~sinus)


def test_a_tunnel_through_the_slices_is_filled_only_where_it_is_narrow() -> None:
    mask = np.zeros((9, 30, 30), bool)
    mask[1:-1, 2:28, 2:28] = True
    whole = mask.copy()
    mask[:, 5, 5] = False  # 4 mm2 in a slice
    mask[:, 15:21, 15:21] = False  # 144 mm2
    filled = fill_holes(mask, (5.0, 2.0, 2.0))
    whole[:, 15:21, 15:21] = False
    assert np.array_equal(filled, whole)


def test_a_cavity_is_closed_by_voxels_that_meet_at_edges() -> None:
    mask = np.zeros((5, 5, 5), bool)
    mask[[1, 3, 2, 2, 2, 2], [2, 2, 1, 3, 2, 2], [2, 2, 2, 2, 1, 3]] = True
    filled = fill_holes(mask, (9.0, 9.0, 9.0))
    assert filled[2, 2, 2] and filled.sum() == 7


def test_a_dent_in_a_tiny_mask_is_no_hole() -> None:
    mask = np.ones((1, 4, 4), bool)
    mask[0, 0, :2] = False
    assert np.array_equal(fill_holes(mask, (1.0, 0.3, 0.3)), mask)


def test_what_lies_inside_a_closed_shell_becomes_part_of_it() -> None:
    patient = Patient()
    shell = patient.at((60, 25, 0), (40, 40, 50)) & ~patient.at((60, 25, 0), (30, 30, 40))
    inner = patient.at((60, 25, 0), (8, 8, 10))
    patient.mask |= shell | inner
    labels = find_kidneys(patient.mask, patient.grid, patient.ct).labels
    assert np.array_equal(labels == LEFT, patient.at((60, 25, 0), (40, 40, 50)))


# --- contract ---------------------------------------------------------------------------------


def test_arrays_of_another_shape_are_refused() -> None:
    patient = Patient()
    with pytest.raises(ValueError, match="probability has shape"):
        find_kidneys(patient.mask[1:], patient.grid)
    with pytest.raises(ValueError, match="ct has shape"):
        find_kidneys(patient.mask, patient.grid, patient.ct[1:])


@pytest.mark.skipif(not SHARED_CASES.is_dir(), reason="no real cases in ../shared")
@pytest.mark.parametrize("case", sorted(path.name for path in SHARED_CASES.glob("case_*")))
@pytest.mark.parametrize("with_ct", [True, False])
def test_real_references_get_the_sides_of_their_experts(case: str, with_ct: bool) -> None:
    folder = SHARED_CASES / case
    kidneys, grid = to_axial(sitk.ReadImage(str(folder / "segmentation.nii.gz")))
    sides, _ = to_axial(sitk.ReadImage(str(folder / "sides.nii.gz")))
    ct = to_axial(sitk.ReadImage(str(folder / "imaging.nii.gz")))[0] if with_ct else None
    labels = find_kidneys(kidneys > 0, grid, ct).labels
    assert np.array_equal(labels[sides > 0], sides[sides > 0])
    filled = np.count_nonzero(labels[sides == 0])
    assert filled < 0.01 * np.count_nonzero(sides)


# --- Memory -----------------------------------------------------------------------------------


def test_no_mask_of_the_whole_volume_is_made():
    patient = Patient((60, 140, 200))
    patient.left()
    probability = np.where(patient.mask, 255, 0).astype(np.uint8)
    tracemalloc.start()
    found = find_kidneys(probability, patient.grid)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    inside = np.zeros(found.labels.shape, bool)
    inside[found.box] = True
    assert inside.sum() < inside.size / 10 and not found.labels[~inside].any()
    assert peak < 1.2 * probability.size  # the labels, and what the kidney itself needs


@pytest.mark.parametrize("part", [np.s_[:, :, :34], np.s_[:, 20:]], ids=["left", "front"])
def test_a_kidney_that_the_edge_of_the_picture_cuts_off_is_told(part):
    """As where a picture was cropped to the kidneys, and somewhat too closely."""
    ct, axial = toys.toy()
    labels, grid = to_axial(toys.image_of(np.ascontiguousarray(axial[part])))
    notes = find_kidneys(labels > 0, grid, ct[part]).notes
    note = "left kidney is cut off by the edge of the picture; its volume is incomplete"
    assert note in notes
    whole, grid = to_axial(toys.image_of(axial))
    assert not [one for one in find_kidneys(whole > 0, grid, ct).notes if "cut off" in one]
