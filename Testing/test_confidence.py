"""How far a kidney can be believed."""

from __future__ import annotations

import numpy as np
import pytest

from KidneySegLib.confidence import confidence

SPACING_MM = (3.0, 1.0, 1.0)


def kidney() -> np.ndarray:
    mask = np.zeros((12, 40, 40), bool)
    mask[4:9, 12:28, 14:26] = True
    return mask


def test_a_certain_kidney_is_believed_wholly():
    mask = kidney()
    assert confidence(np.where(mask, 255, 0).astype(np.uint8), mask, SPACING_MM) == 1.0


def test_what_was_not_found_has_no_confidence():
    mask = kidney()
    assert confidence(np.zeros(mask.shape, np.uint8), np.zeros_like(mask), SPACING_MM) is None


def test_it_is_the_dice_that_the_probabilities_lead_one_to_expect():
    """Drawn from the probabilities many times, the truth has this Dice with what was found."""
    rng = np.random.default_rng(0)
    mask = kidney()
    probability = np.where(mask, 190, 0).astype(np.uint8)
    probability[4:9, 12:28, 26:30] = 90  # half believed, and left out
    scores = []
    for _ in range(200):
        truth = rng.random(mask.shape) < probability / 255
        scores.append(2 * (truth & mask).sum() / (truth.sum() + mask.sum()))
    assert confidence(probability, mask, SPACING_MM) == pytest.approx(np.mean(scores), abs=0.005)


def test_what_lies_far_away_does_not_count():
    mask = kidney()
    probability = np.where(mask, 255, 0).astype(np.uint8)
    probability[:, :, 37:] = 120
    assert confidence(probability, mask, SPACING_MM) == 1.0
    probability[:, :, 30:33] = 120
    assert confidence(probability, mask, SPACING_MM) < 1.0


def test_a_part_that_holds_the_kidney_says_the_same():
    mask = kidney()
    rng = np.random.default_rng(1)
    probability = np.where(mask, rng.integers(0, 256, mask.shape), 30).astype(np.uint8)
    part = mask[2:11, 10:, 14:27]
    whole = confidence(probability, mask, SPACING_MM)
    assert confidence(probability, part, SPACING_MM, (2, 10, 14)) == whole
