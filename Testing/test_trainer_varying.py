"""Gray values that change: contrast phases, lesions, noise, and a doubted finder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from preparedcases import KIDNEY_HU, prepared

from UNetTrainerLib.augmentation import AUGMENTATIONS
from UNetTrainerLib.varying import (
    add_lesion,
    change_intensity,
    change_phase,
    change_prior,
    enhanced_hu,
    wash_out,
)


def test_a_doubted_prior_stays_a_probability_and_is_sometimes_missing_or_false() -> None:
    prior = np.zeros((40, 48), np.float32)
    prior[10:25, 12:30] = 1.0
    missing = false = 0
    for seed in range(200):
        doubted = change_prior(prior, np.random.default_rng(seed))
        assert doubted.shape == prior.shape and doubted.dtype == np.float32
        assert doubted.min() >= 0 and doubted.max() <= 1
        missing += not doubted.any()
        false += bool((doubted[:, 34:] > 0.4).any())
    assert 5 < missing < 45
    assert 10 < false < 150
    assert prior[10:25, 12:30].all(), "the given array stays"


def test_a_lesion_grows_out_of_a_kidney_and_leaves_air_bone_and_vessels_alone() -> None:
    labels = np.zeros((64, 64), np.uint8)
    labels[24:40, 24:40] = 1
    hu = np.full((3, 1, 64, 64), -80, np.float32)
    hu[:, :, 24:40, 24:40] = 180
    hu[..., :20, :] = -1000
    hu[..., 44:, :] = 700
    heights = np.array([-3.0, 0.0, 3.0])
    grown = solid = 0
    for seed in range(40):
        changed, truth = add_lesion(hu, labels, heights, (1.0, 1.0), np.random.default_rng(seed))
        assert (changed[..., :20, :] == -1000).all() and (changed[..., 44:, :] == 700).all()
        assert (truth[labels > 0] > 0).all()
        new = (truth > 0) & (labels == 0)
        grown += bool(new.any())
        solid += bool((truth == 2).any())
        assert (changed[1, 0][new] > -60).all()
        assert set(np.unique(truth)) <= {0, 1, 2}
    assert grown > 25 and 5 < solid < 35
    assert (hu[..., 24:40, 24:40] == 180).all(), "the given array stays"


def test_a_changed_phase_leaves_everything_but_the_kidney_alone() -> None:
    kidney = np.zeros((3, 1, 32, 32), bool)
    kidney[:, :, 8:24, 8:24] = True
    hu = np.full((3, 1, 32, 32), 180, np.float32)
    hu[:, :, 16, 16] = -100  # fat within
    changed = change_phase(hu, kidney, np.random.default_rng(3))
    assert np.array_equal(changed[..., :7, :], hu[..., :7, :])
    assert np.array_equal(changed[..., :7], hu[..., :7])
    assert np.abs(changed[..., 10:14, 10:14] - 180).min() > 5
    assert (changed[..., 16, 16] == -100).all()
    assert (hu[..., 10:14, 10:14] == 180).all(), "the given array stays"


@pytest.mark.parametrize("seed", range(5))
def test_what_is_washed_out_has_no_contrast_but_all_its_edges(seed: int) -> None:
    air_fat_muscle, liver, kidney, vessel = [-1000, -100, 0], 110, 180, 200
    hu = np.array([*air_fat_muscle, liver, kidney, vessel, 300, 1000], np.float32)
    plain = wash_out(hu, 210, np.random.default_rng(seed))
    assert plain.dtype == np.float32
    np.testing.assert_allclose(plain[:3], air_fat_muscle, atol=0.01)
    np.testing.assert_allclose(plain[-2:], [300, 1000], atol=0.01)
    assert (np.diff(plain) > 0).all(), "nothing merges that the CT tells apart"
    assert plain[4] - plain[3] < 0.6 * (kidney - liver)
    assert plain[5] < 140


def test_kidneys_as_bright_as_bone_lose_their_contrast_whole(tmp_path: Path) -> None:
    case = prepared(tmp_path)
    noisy = np.random.default_rng(1).normal(260, 15, case.voxels().shape).astype(np.int16)
    np.save(case.voxels_file, noisy)
    enhanced = enhanced_hu(case)
    assert enhanced == pytest.approx(260 + 1.64 * 15, abs=4)
    for seed in range(5):
        plain = wash_out(noisy, enhanced, np.random.default_rng(seed))
        assert plain.mean() < 175
        assert plain.std() < noisy.std(), "no speckles"


def test_the_limit_of_contrast_medium_is_never_below_what_veins_reach(tmp_path: Path) -> None:
    case = prepared(tmp_path)
    assert enhanced_hu(case) == 210 > KIDNEY_HU
    assert enhanced_hu(replace(case, labelled_slices=())) == 210


def test_a_kidney_brought_to_plain_is_as_dark_as_muscle_or_darker() -> None:
    kidney = np.zeros((1, 1, 32, 32), bool)
    kidney[:, :, 8:24, 8:24] = True
    hu = np.full((1, 1, 32, 32), 55, np.float32)
    hu[kidney] = 90
    means = [
        change_phase(hu, kidney, np.random.default_rng(seed), plain=True)[0, 0, 12:20, 12:20].mean()
        for seed in range(20)
    ]
    assert 17 < min(means) < 30
    assert 35 < max(means) < 46


def test_noise_and_offset_count_in_the_units_of_the_case(tmp_path: Path) -> None:
    case = replace(prepared(tmp_path), hu_unit=100.0, fill=0.0)
    how = replace(AUGMENTATIONS["none"], noise_hu=20.0)
    flat = np.zeros((1, 1, 64, 64), np.float32)
    spread = [
        change_intensity(flat.copy(), case, how, False, np.random.default_rng(seed)).std()
        for seed in range(40)
    ]
    assert 0.3 < np.mean(np.array(spread) == 0) < 0.7, "half of the slices get none"
    assert 1000 < max(spread) <= 2100
    how = replace(AUGMENTATIONS["none"], offset_hu=20.0)
    moved = [
        change_intensity(flat.copy(), case, how, False, np.random.default_rng(seed)).mean()
        for seed in range(40)
    ]
    assert -2000 <= min(moved) < -1000 < 1000 < max(moved) <= 2000
