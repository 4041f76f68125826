"""Windows of slices, and pixels that change their places: image and label stay together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from UNetTrainerLib.augmentation import AUGMENTATIONS
from UNetTrainerLib.moving import Window, displacements, reached, show, warp

AIR = -1000


def test_a_border_wider_than_the_slice_is_mirrored_again_and_again() -> None:
    plane = np.arange(12, dtype=np.uint8).reshape(1, 3, 4)
    window = Window(-8, -9, 19, 21)
    expected = np.pad(plane, ((0, 0), (8, 8), (9, 8)), mode="reflect")
    assert np.array_equal(show(plane, np.array([0]), window, 0, mirrored=True), expected)


def disc(rows: int, columns: int) -> np.ndarray:
    y, x = np.mgrid[:rows, :columns]
    labels = ((y - 22) ** 2 + (x - 24) ** 2 < 14**2).astype(np.uint8)
    labels[(y - 20) ** 2 + (x - 26) ** 2 < 5**2] = 2
    return labels


def test_image_and_label_move_together() -> None:
    labels = disc(48, 64)
    window = Window(0, 0, 48, 64)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        field = displacements(window, 0, AUGMENTATIONS["full"], rng)
        seen = reached(field, (48, 64), mirrored=False)
        image = show(labels[None].astype(np.int16) * 500, np.array([0]), seen, 0, False)
        truth = show(labels[None], np.array([0]), seen, 0, False)[0]
        image, truth = warp(image, truth, field, seen)
        assert not np.array_equal(truth, labels)
        assert ((image[0] > 250) == (truth > 0)).mean() > 0.995
        assert ((image[0] > 750) == (truth > 1)).mean() > 0.995


def test_a_turned_slice_is_turned_about_its_centre_by_the_angle_in_pixels() -> None:
    class Fixed:
        """A quarter turn and nothing else, on pixels that are not square in number."""

        def uniform(self, low: float, high: float, size: int | None = None) -> Any:
            return high if size is None else np.zeros(size)

        def random(self) -> float:
            return 0.99

    how = replace(AUGMENTATIONS["none"], rotation_degrees=90.0)
    plane = np.arange(5 * 7, dtype=np.int16).reshape(1, 5, 7)
    window = Window(0, 0, 5, 7)
    field = displacements(window, 0, how, Fixed())  # type: ignore[arg-type]
    seen = reached(field, (5, 7), mirrored=False)
    image, _ = warp(
        show(plane, np.array([0]), seen, -1, False), np.zeros((seen.rows, seen.columns), np.uint8),
        field, seen,
    )  # fmt: skip
    assert np.allclose(image[0, :, 1:6], np.rot90(plane[0, :, 1:6]), atol=1e-3)


def test_what_lies_beyond_the_slice_is_air_and_never_kidney() -> None:
    how = replace(AUGMENTATIONS["none"], shift=0.5)
    plane = np.full((1, 16, 16), 100, np.int16)
    labels = np.ones((1, 16, 16), np.uint8)
    window = Window(-4, -4, 24, 24)
    for seed in range(6):
        field = displacements(window, 0, how, np.random.default_rng(seed))
        seen = reached(field, (16, 16), mirrored=False)
        image, truth = warp(
            show(plane, np.array([0]), seen, AIR, False),
            show(labels, np.array([0]), seen, 0, False)[0], field, seen,
        )  # fmt: skip
        inside = (field >= 0).all(0) & (field <= 15).all(0)
        outside = ((field <= -1) | (field >= 16)).any(0)
        assert (image[0][inside] > 99.9).all()
        assert np.allclose(image[0][outside], AIR)
        assert truth[inside].all()
        assert not truth[outside].any()
