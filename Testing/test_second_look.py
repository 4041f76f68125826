"""The second look: what it sees, what it changes, how a model keeps it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import toys
from safetensors.torch import load_file, save_file

from KidneySegLib import batch, cli
from KidneySegLib.errors import ModelError
from KidneySegLib.geometry import LEFT, RIGHT, AxialGrid, to_axial
from KidneySegLib.looknetwork import LookNetwork, mirrored
from KidneySegLib.model import CARD_FILE, SECOND_LOOK_FILE, Model, load_model
from KidneySegLib.modelsaving import save_model
from KidneySegLib.postprocess import NOTE_HORSESHOE, Candidate, find_kidneys
from KidneySegLib.secondlook import (
    VIEWS,
    Look,
    Places,
    SecondLook,
    component_views,
    places_in,
    sections,
)
from KidneySegLib.segment import segment

SMALL = SecondLook(pixels=16, pixel_mm=10.0, features=2)


def convinced(parameters: SecondLook, probability: float) -> dict[str, torch.Tensor]:
    """Weights that give every component this probability."""
    state = LookNetwork(parameters).state_dict()
    for name in [key for key in state if key.startswith("head.")]:
        state[name] = torch.zeros_like(state[name])
    last = [key for key in state if key.endswith("bias")][-1]
    state[last] = torch.tensor([0.0, float(np.log(probability / (1 - probability)))])
    return state


@pytest.fixture
def looking(tmp_path: Path) -> Model:
    """The toy's model, with a second look that takes nothing for a kidney."""
    model = toys.copying_model(tmp_path / "toy")
    return with_look(model, tmp_path / "looking", 0.12)


def with_look(model: Model, folder: Path, probability: float, **fields: Any) -> Model:
    return save_model(
        replace(model, second_look=SMALL, **fields),
        model.load_network().state_dict(),
        folder,
        second_look=convinced(SMALL, probability),
    )


# --- what it sees -----------------------------------------------------------------------------


def test_sections_are_what_an_independent_interpolation_gives() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    rng = np.random.default_rng(0)
    array = ndimage.gaussian_filter(rng.random((20, 25, 30)), 1).astype(np.float32)
    spacing_mm = (4.0, 3.0, 2.5)
    places = Places((6.3, 9.0, 12.9), (9.4, 12.2, 14.7))
    parameters = SecondLook(pixels=16, pixel_mm=2.0)
    found = sections(array, spacing_mm, places, parameters)
    steps = (np.arange(16) - 7.5) * 2.0
    k, j, i = (at + steps / mm for at, mm in zip(places.middle, spacing_mm, strict=True))
    one = np.ones(16)
    expected = [
        *(np.meshgrid([at], j, i, indexing="ij") for at in places.slices),
        np.meshgrid(k, places.middle[1] * one[:1], i, indexing="ij"),
        np.meshgrid(k, j, places.middle[2] * one[:1], indexing="ij"),
    ]
    for view, at in zip(found, expected, strict=True):
        inside = np.all([(x >= 0) & (x <= n - 1) for x, n in zip(at, array.shape, strict=True)], 0)
        truth = ndimage.map_coordinates(array, at, order=1).reshape(16, 16)
        assert inside.sum() > 100
        np.testing.assert_allclose(
            view[inside.reshape(16, 16)], truth[inside.reshape(16, 16)], atol=1e-5
        )


def test_what_lies_beyond_the_scan_is_empty() -> None:
    array = np.ones((4, 6, 6), np.float32)
    views = sections(array, (10.0, 10.0, 10.0), places_in(array), SMALL)
    assert views.shape == (VIEWS, 16, 16)
    assert views[0].sum() == 36 and views[3].sum() == views[4].sum() == 24


def test_the_sections_of_an_ellipsoid_lie_in_its_middle_and_show_it_in_mm() -> None:
    ct, labels = toys.toy(("left",))
    box = (slice(0, 21), slice(0, 37), slice(0, 45))
    parameters = SecondLook(pixels=64, pixel_mm=2.5)
    views = component_views(ct, toys.SPACING_MM, box, labels == 1, parameters)
    assert views.shape == (VIEWS, 2, 64, 64)
    area_mm2 = views[:, 1].sum((1, 2)) * 2.5**2
    # Radii of 48, 26 and 30 mm along slices, rows and columns.
    expected = np.pi * np.array([26 * 30, 48 * 30, 48 * 26])
    np.testing.assert_allclose(area_mm2[[1, 3, 4]], expected, rtol=0.12)
    assert np.all(area_mm2[[0, 2]] < area_mm2[1])
    centre = np.stack(np.meshgrid(np.arange(64), np.arange(64), indexing="ij")) - 31.5
    for view in views[[1, 3, 4], 1]:
        assert np.abs((centre * view).sum((1, 2)) / view.sum()).max() < 1.5
    # The kidney is 200 HU of the window from -125 to 275.
    assert abs(np.median(views[1, 0][views[1, 1] > 0.99]) - 325 / 400) < 0.01


def test_a_mirrored_patient_gives_mirrored_sections() -> None:
    ct, labels = toys.toy()
    whole = (slice(0, 21), slice(0, 37), slice(0, 45))
    views, other = (
        component_views(a, toys.SPACING_MM, whole, m == 1, SecondLook())
        for a, m in ((ct, labels), (ct[:, :, ::-1], labels[:, :, ::-1]))
    )
    # Not to the last digit: pixels of 7 mm are cut into those of 2.5 mm from the other side.
    assert np.abs(mirrored(torch.from_numpy(views)).numpy() - other).mean() < 0.01
    assert np.abs(views - other).mean() > 0.05


def test_a_component_larger_than_what_is_shown_is_looked_at_all_the_same() -> None:
    mask = np.ones((200, 40, 40), bool)
    volume = np.full((200, 40, 40), 100, np.int16)
    box = (slice(0, 200), slice(0, 40), slice(0, 40))
    views = component_views(volume, (3.0, 9.0, 9.0), box, mask, SecondLook(pixels=16))
    assert views[:, 1].min() == 1.0


# --- what it changes --------------------------------------------------------------------------


def grid_of(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> AxialGrid:
    image = sitk.Image(*shape[::-1], sitk.sitkUInt8)
    image.SetSpacing(spacing_mm[::-1])
    image.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, -1))
    return to_axial(image)[1]


@pytest.fixture
def lumps() -> tuple[np.ndarray, AxialGrid]:
    """A larger and a smaller lump on the left (columns above 20), one on the right, a speck."""
    mask = np.zeros((30, 30, 40), bool)
    mask[2:14, 5:17, 26:38] = True
    mask[18:28, 18:26, 28:36] = True
    mask[10:20, 10:20, 3:11] = True
    mask[1:3, 1:3, 1:3] = True
    return mask, grid_of(mask.shape, (5.0, 5.0, 5.0))


def test_what_is_doubted_is_left_out_with_a_note_and_the_next_one_is_the_kidney(lumps) -> None:
    mask, grid = lumps
    asked: list[Candidate] = []

    def believe(candidate: Candidate) -> float:
        asked.append(candidate)
        return 0.12 if candidate.ml > 150 else 0.9

    found = find_kidneys(mask, grid, believe=believe, least_belief=0.25)
    left, right = np.zeros((2, *mask.shape), bool)
    left[18:28, 18:26, 28:36] = True
    right[10:20, 10:20, 3:11] = True
    assert np.array_equal(found.labels == LEFT, left)
    assert np.array_equal(found.labels == RIGHT, right)
    assert found.notes == (
        "a region of 216 ml on the left was left out: the second look took it for something else "
        "(probability 0.12)",
    )
    assert sorted(round(one.ml) for one in asked) == [80, 100, 216]
    for one in asked:
        assert mask[one.box].shape == one.mask.shape and np.array_equal(mask[one.box], one.mask)


def test_who_keeps_everything_is_not_asked_for_a_belief(lumps) -> None:
    mask, grid = lumps

    def believe(candidate: Candidate) -> float:
        raise AssertionError

    assert (find_kidneys(mask, grid, keep_small=True, believe=believe).labels > 0).sum() == (
        mask.sum()
    )


def test_a_belief_in_everything_changes_nothing(lumps) -> None:
    mask, grid = lumps
    without = find_kidneys(mask, grid)
    found = find_kidneys(mask, grid, believe=lambda candidate: 0.5, least_belief=0.5)
    assert np.array_equal(found.labels, without.labels) and found.notes == without.notes


def test_a_horseshoe_kidney_stays_whatever_is_believed_of_it() -> None:
    mask = np.zeros((24, 30, 40), bool)
    mask[2:22, 10:20, 5:15] = mask[2:22, 10:20, 25:35] = True
    mask[16:19, 12:16, 15:25] = True
    grid = grid_of(mask.shape, (5.0, 5.0, 5.0))
    found = find_kidneys(mask, grid, believe=lambda candidate: 0.0)
    assert found.horseshoe and (found.labels > 0).sum() == mask.sum()
    assert found.notes == (NOTE_HORSESHOE,)  # and not that it was left out


def test_segmenting_leaves_out_what_the_second_look_doubts_unless_told_not_to(looking) -> None:
    ct, labels = toys.toy()
    image = toys.image_of(ct)
    doubted = segment(image, looking, device="cpu")
    assert not sitk.GetArrayViewFromImage(doubted.labels).any()
    assert sum("second look" in note for note in doubted.report["notes"]) == 2
    assert [round(one["probability"], 4) for one in doubted.report["second_look"]] == [0.12] * 2
    kept = segment(image, looking, device="cpu", second_look=False)
    np.testing.assert_array_equal(sitk.GetArrayViewFromImage(kept.labels) > 0, labels > 0)
    assert "second_look" not in kept.report


def test_a_scan_too_short_for_a_whole_kidney_is_not_looked_at_again(looking) -> None:
    ct, labels = toys.toy()
    middle = len(ct) // 2
    slices = slice(middle, middle + 1)
    found = segment(toys.image_of(ct[slices]), looking, device="cpu")
    assert labels[slices].any()
    np.testing.assert_array_equal(sitk.GetArrayViewFromImage(found.labels) > 0, labels[slices] > 0)
    assert "second_look" not in found.report


def test_what_is_believed_passes_a_second_look_unchanged(looking, tmp_path) -> None:
    ct, labels = toys.toy()
    model = with_look(looking, tmp_path / "sure", 0.9)
    found = segment(toys.image_of(ct), model, device="cpu")
    np.testing.assert_array_equal(sitk.GetArrayViewFromImage(found.labels) > 0, labels > 0)
    assert found.report["notes"] == []


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_the_look_is_taken_at_the_component_itself(looking, monkeypatch, order) -> None:
    seen = []

    def look(self: Look, volume, spacing_mm, box, mask) -> float:
        seen.append((volume[box][mask], volume[box][~mask], spacing_mm))
        return 1.0

    monkeypatch.setattr(Look, "__call__", look)
    ct, labels = toys.toy()
    segment(toys.image_of(ct, order), looking, device="cpu")
    assert len(seen) == 2
    assert sum(inside.size for inside, _, _ in seen) == (labels > 0).sum()
    for inside, outside, spacing_mm in seen:
        assert np.all(inside == toys.KIDNEY) and not np.any(outside == toys.KIDNEY)
        assert spacing_mm == toys.SPACING_MM


def test_the_command_line_switches_it_off(looking, toy_ct, tmp_path) -> None:
    counts = []
    for flags in ([], ["--no-second-look"]):
        output = tmp_path / "labels.nii.gz"
        line = ["segment", toy_ct, "--output", output, "--model", looking.folder, *flags]
        assert cli.main([str(word) for word in [*line, "--progress", "none"]]) == 0
        counts.append(int((sitk.GetArrayFromImage(sitk.ReadImage(str(output))) > 0).sum()))
    assert counts[0] == 0 < counts[1]


def test_a_batch_begins_anew_where_the_second_look_is_another_one(looking, tmp_path) -> None:
    line = ["--input", str(tmp_path), "--output", str(tmp_path)]
    settings = [
        batch._settings(looking, batch.parser().parse_args([*line, *flags]))
        for flags in ([], ["--no-second-look"])
    ]
    save_file(convinced(SMALL, 0.7), looking.folder / SECOND_LOOK_FILE)
    settings.append(batch._settings(looking, batch.parser().parse_args(line)))
    assert settings[0] != settings[1] and settings[0] != settings[2]


def test_the_smallest_believable_kidney_is_the_models_unless_said_otherwise(tmp_path) -> None:
    ct, _ = toys.toy()
    model = toys.copying_model(tmp_path / "toy", smallest_kidney_ml=400.0)
    assert load_model(tmp_path / "toy").smallest_kidney_ml == 400.0
    image = toys.image_of(ct)
    for choice, found in (({}, False), ({"minimum_ml": 30.0}, True)):
        labels = sitk.GetArrayFromImage(segment(image, model, device="cpu", **choice).labels)
        assert labels.any() == found


# --- how a model keeps it ---------------------------------------------------------------------


def test_what_is_saved_comes_back_and_saving_it_again_copies_the_weights(looking, tmp_path) -> None:
    loaded = load_model(looking.folder)
    assert loaded == looking and loaded.second_look == SMALL
    again = save_model(loaded, loaded.load_network().state_dict(), tmp_path / "again")
    first, second = (load_file(m.folder / SECOND_LOOK_FILE) for m in (looking, again))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not loaded.load_second_look().training


def test_the_digest_tells_second_looks_apart(looking, tmp_path) -> None:
    digests = {
        looking.digest,
        replace(looking, second_look=None).digest,
        replace(looking, second_look=replace(SMALL, threshold=0.1)).digest,
        with_look(looking, tmp_path / "other", 0.3).digest,
    }
    assert len(digests) == 4


ENTRIES = {
    "a later entry": ({"colour": 1}, "unknown entry colour"),
    "no pixels": ({"pixels": 0}, "pixels"),
    "a number in text": ({"features": "16"}, "features"),
    "a threshold of one": ({"threshold": 1}, "threshold"),
    "a window upside down": ({"window_hu": [5, 1]}, "window_hu"),
    "a window of one": ({"window_hu": [5]}, "window_hu"),
    "a pixel without size": ({"pixel_mm": 0}, "pixel_mm"),
}


@pytest.mark.parametrize("change", ENTRIES.values(), ids=list(ENTRIES))
def test_an_entry_that_cannot_be_used_is_refused_with_the_reason(looking, change) -> None:
    entry, reason = change
    card = json.loads((looking.folder / CARD_FILE).read_text())
    card["second_look"] |= entry
    (looking.folder / CARD_FILE).write_text(json.dumps(card))
    with pytest.raises(ModelError, match=reason):
        load_model(looking.folder)


@pytest.mark.parametrize("value", [-1, "small", 1e999])
def test_a_smallest_kidney_that_is_none_is_refused(looking, value) -> None:
    card = json.loads((looking.folder / CARD_FILE).read_text())
    (looking.folder / CARD_FILE).write_text(json.dumps({**card, "smallest_kidney_ml": value}))
    with pytest.raises(ModelError, match=r"model\.json is not usable"):
        load_model(looking.folder)


def test_a_folder_without_the_weights_of_its_second_look_is_refused(looking) -> None:
    (looking.folder / SECOND_LOOK_FILE).unlink()
    with pytest.raises(ModelError, match=r"has no second_look\.safetensors"):
        load_model(looking.folder)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda state: state.pop("head.0.weight"), "lacks head.0.weight"),
        (lambda state: state.update({"head.3.bias": torch.zeros(3)}), "with shape"),
        (lambda state: state["head.3.bias"].fill_(float("nan")), "not finite"),
        (lambda state: state.update({"more": torch.zeros(1)}), "has no place for"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_a_ct_is_segmented(looking, spoil, reason):
    state = load_file(looking.folder / SECOND_LOOK_FILE)
    spoil(state)
    save_file(state, looking.folder / SECOND_LOOK_FILE)
    with pytest.raises(ModelError, match=reason):
        segment(toys.image_of(toys.toy()[0]), looking, device="cpu")


def test_a_pickle_in_place_of_the_weights_is_not_opened(looking) -> None:
    torch.save(convinced(SMALL, 0.5), looking.folder / SECOND_LOOK_FILE)
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        looking.load_second_look()


def test_the_usual_network_takes_less_than_half_a_megabyte() -> None:
    network = LookNetwork(SecondLook())
    assert sum(value.nbytes for value in network.state_dict().values()) < 500_000
