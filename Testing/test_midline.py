"""The plane that halves the body, and what must not move it."""

from __future__ import annotations

import numpy as np
import pytest
from patients import Patient

from KidneySegLib.midline import find_midline, is_left


@pytest.mark.parametrize("what", ["table", "arm", "blanket", "clipped", "cut", "gas"])
def test_the_midline_is_not_misled(what: str) -> None:
    patient = Patient(shape=(20, 70, 110), spacing_mm=(8.0, 3.0, 3.0))
    ct, x, y = patient.ct, patient.x, patient.y
    if what == "table":
        ct[(y > 90) & (y < 99) & (x > -40)] = 100
    elif what == "arm":  # beside the body, touching it
        ct[((x - 146) / 22) ** 2 + (y / 30) ** 2 < 1] = 40
    elif what == "blanket":
        ct[(y < -60) & (y > -72) & (x > 0)] = -50
    elif what == "clipped":
        fat = np.random.default_rng(1).normal(-95, 20, ct.shape)
        skin = ((x / 126) ** 2 + (y / 86) ** 2 > 1) & (ct > -300) & (x < 60)
        liver = ((x + 60) / 45) ** 2 + (y / 60) ** 2 < 1
        ct[:] = np.clip(np.where(ct > -300, fat, -1000), -125, 275)
        ct[skin | liver] = 60
    elif what == "cut":  # the picture ends within the body on the left
        ct = ct[:, :, :85]
    elif what == "gas":
        ct[((x - 70) / 50) ** 2 + ((y + 40) / 30) ** 2 < 1] = -950
    midline = find_midline(ct, Patient(ct.shape, (8.0, 3.0, 3.0)).grid)
    assert midline is not None
    middle_mm = patient.grid.to_physical([10, 35, 54.5])[0]
    assert midline.x_mm == pytest.approx(middle_mm, abs=12)


@pytest.mark.parametrize("what", ["a sheet in tissue", "specks in air"])
def test_a_kidney_tells_its_side_however_thin_it_is_and_whatever_is_around_it(what: str) -> None:
    """Thinned to 3 mm nothing is left of a sheet, and with specks no column is mostly body."""
    kidney = np.zeros((12, 60, 84), bool)
    if what == "specks in air":
        k = np.arange(12)
        kidney[k, 9 + 3 * k, 30 + k] = True
    else:
        kidney[:, 10:50, 40] = True
    spine = np.zeros_like(kidney)
    spine[:, 0:4, 60:80] = True  # to the left of it
    ct = np.where(spine, 700, 30 if what == "a sheet in tissue" else -1000)
    grid = Patient(kidney.shape, (1.0, 1.0, 1.0)).grid
    assert not is_left(kidney, 0, ct, grid)
    assert is_left(kidney, 0, np.roll(ct, -60, axis=2), grid)  # now to the right
