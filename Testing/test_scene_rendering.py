"""The red and blue comparison as Slicer's own views draw it, pixel by pixel.

With KIDNEYSEG_PICTURES set to a folder, the pictures are left there to be looked at.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import slicerhost
import slicerviews
from PIL import Image

from KidneySegLib.phantom import generate

if slicerhost.why_not():
    pytest.skip(slicerhost.why_not(), allow_module_level=True)
slicer = slicerhost.boot()

from KidneySegLib import scene, scenecomparison  # noqa: E402

WINDOW_HU, LEVEL_HU = 400, 40  # of soft tissue
SIZE = (480, 400)
WIDTH_MM = 260  # both kidneys
SHIFT = (-4, 4)  # columns to the patient's right, rows to the back


@pytest.fixture(scope="module")
def phantom():
    """A generated CT, its sides, and the same sides a little aside as the reference."""
    if slicerviews.why_not():
        pytest.skip(slicerviews.why_not())
    made = generate(3, (128, 128, 32), phase="portal", tumour=False, cyst=False)
    # The file's axes are slices, rows and columns, which numpy counts the other way round.
    moved = np.roll(sitk.GetArrayFromImage(made.sides), SHIFT, (0, 1))
    reference = sitk.GetImageFromArray(moved)
    reference.CopyInformation(made.sides)
    return made, reference


class Shown:
    """The CT with prediction and reference in the scene, and an axial view of it."""

    def __init__(self, phantom):
        made, reference = phantom
        self.images = {"prediction": made.sides, "reference": reference}
        self.volume = slicerhost.add_volume(made.image)
        display = self.volume.GetDisplayNode()
        display.SetAutoWindowLevel(False)
        display.SetWindowLevel(WINDOW_HU, LEVEL_HU)
        self.prediction = scene.place_labels(made.sides, self.volume)
        self.reference = scene.place_labels(reference, self.volume)
        self.view = slicerviews.AxialView(self.volume, SIZE)
        centre = np.argwhere(sitk.GetArrayFromImage(made.sides) > 0).mean(axis=0)[::-1]
        index = [round(float(value)) for value in centre]
        self.slice = index[0]  # the file's first axis runs to the feet
        self.middle = self.ras(index)

    def ras(self, index):
        lps = self.images["prediction"].TransformIndexToPhysicalPoint([int(i) for i in index])
        return np.multiply(lps, (-1, -1, 1)).tolist()

    def picture(self, name=""):
        picture = self.view.show(self.middle, WIDTH_MM)
        save(picture, name)
        return picture

    def in_view(self, row, column):
        place = self.view.place(self.ras((self.slice, row, column)))
        return 0 <= place[0] < SIZE[1] and 0 <= place[1] < SIZE[0]

    def where(self):
        """For every region of the slice, the pixels that show the middles of its voxels.

        Voxels with a neighbour of another region are left out: outlines run there.
        """
        masks = [
            sitk.GetArrayFromImage(image)[:, :, self.slice] > 0 for image in self.images.values()
        ]
        region = masks[0] + 2 * masks[1]  # 0 none, 1 prediction, 2 reference, 3 both
        same = np.ones_like(region, bool)
        for steps in np.ndindex(3, 3):
            same &= np.roll(region, np.subtract(steps, 1), (0, 1)) == region
        return {
            name: [
                self.view.place(self.ras((self.slice, row, column)))
                for column, row in np.argwhere((region == number) & same)
                if self.in_view(row, column)
            ]
            for number, name in enumerate(("none", "prediction", "reference", "both"))
        }


@pytest.fixture
def shown(slicer_scene, phantom):
    shown = Shown(phantom)
    yield shown
    shown.view.close()
    assert slicerhost.errors == []


def save(picture, name):
    folder = os.environ.get("KIDNEYSEG_PICTURES")
    if folder and name:
        Image.fromarray(picture).save(Path(folder) / f"{name}.png")


def at(picture, places):
    """The colours at these pixels, as float."""
    assert places
    rows, columns = np.array(places).T
    return picture[rows, columns].astype(float)


def gray(colours):
    return np.ptp(colours, axis=1).max() <= 1


def test_the_left_kidney_is_on_the_viewers_right_and_the_front_on_top(shown):
    picture = shown.picture("sides")
    places = {}
    for label, segment_id in ((1, "left_kidney"), (2, "right_kidney")):
        labels = sitk.GetArrayFromImage(shown.images["prediction"])[:, :, shown.slice]
        column, row = np.argwhere(labels == label).mean(axis=0)
        places[segment_id] = shown.view.place(shown.ras((shown.slice, row, column)))
    assert places["left_kidney"][1] > SIZE[0] / 2 > places["right_kidney"][1]
    front, back = (
        shown.view.place(np.add(shown.middle, (0, anterior_mm, 0)))[0] for anterior_mm in (50, -50)
    )
    assert front < back  # the rows of a picture count from the top
    # And what is drawn there has the colours of the segments.
    orange, blue = (at(picture, [places[side]])[0] for side in ("left_kidney", "right_kidney"))
    assert orange[0] > orange[2] + 50 and blue[2] > blue[0] + 50


def test_the_ct_shows_with_the_window_of_soft_tissue(shown):
    for node in (shown.prediction, shown.reference):
        node.GetDisplayNode().SetVisibility(False)
    picture = shown.picture("ct")
    hu = sitk.GetArrayFromImage(scene.volume_image(shown.volume))
    expected, drawn = [], []
    for column in range(28, 100, 6):
        index = (shown.slice, 70, column)
        expected.append(hu[index[2], index[1], index[0]])
        drawn.append(at(picture, [shown.view.place(shown.ras(index))])[0])
    low = LEVEL_HU - WINDOW_HU / 2
    levels = np.clip((np.array(expected) - low) / WINDOW_HU, 0, 1) * 255
    assert gray(np.array(drawn))
    assert np.median(np.abs(np.array(drawn)[:, 0] - levels)) < 12


def test_red_is_where_only_the_reference_is_and_blue_where_only_the_prediction_is(shown):
    for node in (shown.prediction, shown.reference):
        node.GetDisplayNode().SetVisibility(False)
    plain = shown.picture()
    opacity = 0.5
    scenecomparison.show_comparison(shown.prediction, shown.reference, fill_opacity=opacity)
    picture = shown.picture("comparison")
    where = shown.where()
    red, blue = (
        255 * np.array(color)
        for color in (scenecomparison.REFERENCE_COLOR, scenecomparison.PREDICTION_COLOR)
    )
    ct = {name: at(plain, places) for name, places in where.items()}
    colours = {name: at(picture, places) for name, places in where.items()}

    def over(color, below):
        return opacity * color + (1 - opacity) * below

    np.testing.assert_allclose(colours["none"], ct["none"], atol=1)
    np.testing.assert_allclose(colours["reference"], over(red, ct["reference"]), atol=3)
    np.testing.assert_allclose(colours["prediction"], over(blue, ct["prediction"]), atol=3)
    both = [over(red, over(blue, ct["both"])), over(blue, over(red, ct["both"]))]
    off = [np.abs(colours["both"] - expected).max() for expected in both]
    assert min(off) < 4


def test_outlines_alone_leave_the_inside_to_the_ct(shown):
    for node in (shown.prediction, shown.reference):
        node.GetDisplayNode().SetVisibility(False)
    plain = shown.picture()
    scenecomparison.show_comparison(shown.prediction, shown.reference, fill_opacity=0.0)
    picture = shown.picture("outlines").astype(float)
    for places in shown.where().values():
        np.testing.assert_allclose(at(picture, places), at(plain, places), atol=1)
    for color in (scenecomparison.REFERENCE_COLOR, scenecomparison.PREDICTION_COLOR):
        pure = np.abs(picture - 255 * np.array(color)).max(axis=2) < 3
        assert pure.sum() > 200


def test_without_outline_there_is_only_the_fill(shown):
    scenecomparison.show_comparison(
        shown.prediction, shown.reference, outline=False, fill_opacity=0.3
    )
    picture = shown.picture("fill").astype(float)
    for color in (scenecomparison.REFERENCE_COLOR, scenecomparison.PREDICTION_COLOR):
        assert not (np.abs(picture - 255 * np.array(color)).max(axis=2) < 3).any()


def test_hiding_the_comparison_draws_what_was_drawn_before_to_the_pixel(shown):
    before = shown.picture()
    scenecomparison.show_comparison(shown.prediction, shown.reference)
    during = shown.picture()
    scenecomparison.hide_comparison(shown.prediction, shown.reference)
    assert (during != before).any()
    np.testing.assert_array_equal(shown.picture(), before)


def test_both_kidneys_are_seen_from_the_front_with_the_left_one_on_the_right(shown):
    view = slicerviews.FrontView()
    try:
        nothing = view.show()
        assert np.ptp(nothing.astype(int), axis=1).max() <= 1  # one colour a row: the background
        scene.show_surfaces(shown.prediction, True)
        picture = view.show().astype(int)
        save(picture.astype(np.uint8), "surfaces")
        kidneys = (picture != nothing).any(axis=2)
        orange = np.argwhere(kidneys & (picture[..., 0] > picture[..., 2] + 60))
        blue = np.argwhere(kidneys & (picture[..., 2] > picture[..., 0] + 60))
        assert min(len(orange), len(blue)) > 1000
        assert orange[:, 1].min() > blue[:, 1].max()
        scene.show_surfaces(shown.reference, True)
        scenecomparison.show_comparison(shown.prediction, shown.reference)
        picture = view.show().astype(int)
        save(picture.astype(np.uint8), "surfaces-comparison")
        assert (picture[..., 0] > picture[..., 2] + 40).sum() > 200  # red
        assert (picture[..., 2] > picture[..., 0] + 100).sum() > 5000  # blue
        scenecomparison.hide_comparison(shown.prediction, shown.reference)
        scene.show_surfaces(shown.prediction, False)
        scene.show_surfaces(shown.reference, False)
        np.testing.assert_array_equal(view.show(), nothing)
    finally:
        view.close()
