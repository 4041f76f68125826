"""Networks that look at coronal and sagittal slices, alone and beside one for axial slices."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import toys

from KidneySegLib.answer import answer as answer_of
from KidneySegLib.backends.torchbackend import TorchBackend
from KidneySegLib.errors import ModelError
from KidneySegLib.geometry import to_axial
from KidneySegLib.model import FORMAT_WITH_VIEWS, load_model
from KidneySegLib.modelsaving import save_model
from KidneySegLib.network import NetworkParameters
from KidneySegLib.preprocess import (
    VIEWS,
    Preprocessing,
    in_view,
    interpolated,
    spacing_in_view,
    to_axial_order,
    to_working,
)
from KidneySegLib.regions import Search, sweeps
from KidneySegLib.segment import segment

COARSE = Preprocessing(pixel_mm=3.0, slice_mm=5.0, crop=True)
OTHERS = ("coronal", "sagittal")


@pytest.fixture
def three_views(tmp_path):
    """A model that looks closely, along three axes, where a coarse one sees something bright."""
    views = tuple(
        toys.copying_model(
            tmp_path / view, preprocessing=Preprocessing(pixel_mm=2.0, slice_mm=3.0, view=view)
        )
        for view in OTHERS
    )
    return toys.copying_model(
        tmp_path / "three",
        preprocessing=Preprocessing(pixel_mm=1.5, slice_mm=3.0),
        finder=toys.copying_model(tmp_path / "coarse", preprocessing=COARSE),
        search=Search(wide=True),
        views=views,
    )


@pytest.mark.parametrize("view", VIEWS)
def test_what_is_seen_in_a_view_is_the_same_volume_with_other_axes(view):
    volume = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    seen = in_view(volume, view)
    assert np.shares_memory(seen, volume)
    assert (to_axial_order(seen, view) == volume).all()
    mm = spacing_in_view((2.0, 3.0, 4.0), view)
    assert seen.shape == tuple(int(one) for one in mm), "each spacing goes with its axis"


def test_the_patient_stands_upright_in_every_view():
    volume = np.zeros((5, 6, 7))
    volume[0] = 1.0  # the head end
    assert in_view(volume, "coronal")[:, 0].all() and in_view(volume, "sagittal")[:, 0].all()
    volume[:] = 0
    volume[..., 6] = 1.0  # the patient's left
    assert in_view(volume, "coronal")[..., 6].all() and in_view(volume, "sagittal")[6].all()


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("crop", [False, True])
def test_a_network_finds_in_any_view_what_it_finds_in_axial_slices(view, crop, tmp_path):
    ct, labels = toys.toy()
    model = toys.copying_model(tmp_path / view, preprocessing=Preprocessing(view=view, crop=crop))
    result = segment(toys.image_of(ct), TorchBackend(model, "cpu", "float32"))
    assert (sitk.GetArrayFromImage(result.labels) == labels).all()


@pytest.mark.parametrize("view", VIEWS)
def test_the_centres_of_a_working_grid_are_where_its_voxels_came_from(view):
    shape = (21, 40, 50)
    places = np.indices(shape).astype(np.float32)
    preprocessing = Preprocessing(pixel_mm=2.0, slice_mm=4.0, view=view)
    spacing_mm = spacing_in_view((1.5, 0.8, 0.8), view)
    for axis in range(3):
        working, grid = to_working(in_view(places[axis], view), spacing_mm, preprocessing)
        along = list(VIEWS[view]).index(axis)
        seen = np.moveaxis(working, along, 0).reshape(working.shape[along], -1)
        inner = slice(2, -2)  # at the ends fewer voxels are averaged
        assert seen.mean(1)[inner] == pytest.approx(grid.centres[along][inner], abs=0.1)


def test_a_model_with_views_is_one_folder_that_moves_as_a_whole(three_views, tmp_path):
    moved = tmp_path / "moved"
    three_views.folder.rename(moved)
    loaded = load_model(moved)
    assert [view.preprocessing.view for view in loaded.views] == list(OTHERS)
    assert json.loads((moved / "model.json").read_text())["format"] == FORMAT_WITH_VIEWS
    assert replace(loaded, views=()).digest != loaded.digest
    (moved / "views" / "coronal" / "weights.safetensors").unlink()
    with pytest.raises(ModelError, match="coronal"):
        load_model(moved)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"views": ["coronal", "coronal"]}, "each of them once"),
        ({"views": ["oblique"]}, "oblique"),
        ({"views": ["coronal"], "format": 1}, "no finder"),
    ],
)
def test_views_that_cannot_work_are_refused_with_the_file(three_views, wrong, text):
    path = three_views.folder / "model.json"
    card = {**json.loads(path.read_text()), **wrong}
    if card["format"] == 1:
        del card["search"]
    path.write_text(json.dumps(card))
    with pytest.raises(ModelError, match=rf"model\.json.*{text}"):
        load_model(three_views.folder)


def test_three_views_find_the_kidneys_that_one_finds(three_views):
    ct, labels = toys.toy(shape=(42, 74, 90), spacing_mm=(3.0, 2.75, 3.5))
    image = toys.image_of(ct, spacing_mm=(3.0, 2.75, 3.5))
    result = segment(image, TorchBackend(three_views, "cpu", "float32"))
    found = sitk.GetArrayFromImage(result.labels)
    for side in (1, 2):
        both = np.count_nonzero((found == side) & (labels == side))
        assert (
            2 * both / (np.count_nonzero(found == side) + np.count_nonzero(labels == side)) > 0.97
        )


def answering(monkeypatch, values):
    """Let each network answer one value everywhere, by its view and whether it looks closely."""
    asked = []

    def answered(working, slice_spacing_mm, backend, *others):
        view = backend.model.preprocessing.view
        key = view if view != "axial" or backend.model.finder is None else "close"
        if key == "close" and "close" in asked and asked.count("close") >= 2:
            key = "wide"
        asked.append(key)
        return np.full(working.shape, values.get(key, 0.0), np.float16)

    monkeypatch.setattr("KidneySegLib.answer.predict", answered)
    return asked


def test_every_look_at_a_kidney_counts_the_same(three_views, toy_ct, monkeypatch):
    volume, grid = to_axial(sitk.ReadImage(str(toy_ct)))
    backend = TorchBackend(three_views, "cpu", "float32")
    regions = [
        (slice(0, 21), slice(5, 30), slice(2, 20)),
        (slice(0, 21), slice(5, 30), slice(25, 43)),
    ]
    monkeypatch.setattr("KidneySegLib.answer.find_regions", lambda *_: regions)
    asked = answering(monkeypatch, {"close": 0.8, "wide": 0.4, "coronal": 0.2, "sagittal": 0.6})
    full = answer_of(volume, grid.spacing_mm, backend)
    assert sorted(asked) == [
        "axial", "close", "close", "coronal", "sagittal", "sagittal", "wide",
    ]  # fmt: skip
    for region in regions:
        assert full[region] == pytest.approx(255 * 0.5, abs=1)
        full[region] = 0
    assert not full.any(), "nothing beyond the boxes"


def test_a_scan_too_short_for_a_section_of_a_kidney_is_seen_in_axial_slices_only(
    three_views, monkeypatch
):
    volume = toys.toy()[0][8:14]  # 36 mm
    backend = TorchBackend(three_views, "cpu", "float32")
    regions = [(slice(0, 6), slice(5, 30), slice(2, 20))]
    monkeypatch.setattr("KidneySegLib.answer.find_regions", lambda *_: regions)
    asked = answering(monkeypatch, {"close": 0.8})
    answer_of(volume, toys.SPACING_MM, backend)
    assert asked == ["axial", "close", "close"]
    answer_of(np.concatenate([volume, volume]), toys.SPACING_MM, backend)
    assert "coronal" not in asked, "the box is what counts, not the scan"


def test_whole_slices_across_an_axis_are_those_that_a_box_lies_in():
    left, right = (
        (slice(2, 9), slice(5, 9), slice(5, 9)),
        (slice(7, 12), slice(7, 15), slice(50, 60)),
    )
    shape = (40, 80, 90)
    everywhere = slice(0, 80), slice(0, 90)
    assert sweeps([left, right], shape, 0) == [(slice(2, 12), *everywhere)]
    assert sweeps([left, right], shape, 1) == [(slice(2, 12), slice(5, 15), everywhere[1])]
    assert sorted(sweeps([left, right], shape, 2), key=lambda box: box[2].start) == [
        (slice(2, 12), everywhere[0], slice(5, 9)),
        (slice(2, 12), everywhere[0], slice(50, 60)),
    ]


def test_a_linear_function_comes_through_interpolation_unchanged():
    have = [np.array([0.0, 2.0, 5.0]), np.array([1.0, 2.0]), np.array([3.0])]
    values = have[0][:, None, None] * 2 - have[1][:, None] * 3 + have[2]
    want = [np.array([1.0, 4.0, 9.0]), np.array([1.25]), np.array([0.0, 3.0])]
    inside = np.clip(want[0], 0, 5)
    expected = inside[:, None, None] * 2 - want[1][:, None] * 3 + np.array([3.0, 3.0])
    assert interpolated(values, have, want) == pytest.approx(expected)


def test_places_that_are_less_than_half_a_voxel_apart_are_interpolated_between():
    """As the pixels of 2 mm are, in which a coronal network sees slices of 5 mm."""
    have = np.arange(10) * 0.4 - 0.3
    want = np.array([0.0, 1.0, 2.0, 9.0])
    assert interpolated(have, [have], [want]) == pytest.approx([0.0, 1.0, 2.0, 3.3], abs=1e-6)


def test_a_folder_in_half_precision_is_half_as_large_and_answers_alike(tmp_path):
    network = NetworkParameters(features=4, depth=3)
    full = toys.random_model(tmp_path / "full", network)
    half = save_model(
        replace(full, half_weights=True), full.load_network().state_dict(), tmp_path / "half"
    )
    sizes = [(one.folder / "weights.safetensors").stat().st_size for one in (full, half)]
    assert sizes[1] < 0.65 * sizes[0]
    loaded = load_model(half.folder)
    assert loaded.half_weights
    again = save_model(loaded, loaded.load_network().state_dict(), tmp_path / "again")
    assert again.digest == loaded.digest, "nothing is lost twice"
    slices = np.random.default_rng(0).random((2, 1, 32, 32), dtype=np.float32)
    one, other = (TorchBackend(model, "cpu", "float32")(slices) for model in (full, loaded))
    assert np.abs(one - other).max() < 0.01
    assert (one != other).any()
