"""Where a model with a finder looks, and that it finds there what it would find anywhere."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import toys

from KidneySegLib.answer import answer as answer_of
from KidneySegLib.backends.torchbackend import TorchBackend
from KidneySegLib.errors import Cancelled, ModelError
from KidneySegLib.geometry import to_axial
from KidneySegLib.model import FORMAT_WITH_FINDER, load_model
from KidneySegLib.predict import predict
from KidneySegLib.preprocess import Preprocessing, WorkingGrid
from KidneySegLib.regions import Search, find_regions, slabs
from KidneySegLib.segment import segment

GRID = WorkingGrid((40, 200, 200), 2, (100, 100), (10, 90, 20, 100), (5.0, 2.0, 2.0))
COARSE = Preprocessing(pixel_mm=3.0, slice_mm=5.0, crop=True)


def answer(*blobs: tuple[slice, slice, slice]) -> np.ndarray:
    probability = np.zeros((20, 80, 80), np.float16)
    for blob in blobs:
        probability[blob] = 0.9
    return probability


BLOB = (slice(5, 9), slice(30, 40), slice(10, 20))
FAR = (slice(12, 16), slice(30, 41), slice(60, 70))


def test_a_box_lies_around_what_was_found_in_the_volumes_own_voxels():
    boxes = find_regions(answer(BLOB), GRID, Search(margin_mm=0))
    assert boxes == [(slice(10, 18), slice(80, 100), slice(60, 80))]


def test_the_margin_counts_in_mm_and_ends_at_the_volume():
    near_the_end = (slice(0, 4), slice(0, 10), slice(0, 10))
    (box,) = find_regions(answer(near_the_end), GRID, Search(margin_mm=25))
    assert box == (slice(0, 18), slice(0, 65), slice(15, 85))


def test_the_larger_find_comes_first_and_small_ones_are_passed_over():
    speck = (slice(0, 1), slice(70, 73), slice(5, 8))
    boxes = find_regions(answer(BLOB, FAR, speck), GRID, Search(margin_mm=0, least_ml=1.0))
    assert [box[0] for box in boxes] == [slice(24, 32), slice(10, 18)]
    assert len(find_regions(answer(BLOB, FAR), GRID, Search(margin_mm=0, most=1))) == 1


def test_boxes_that_overlap_become_one():
    beside = (slice(5, 9), slice(30, 40), slice(24, 30))
    (box,) = find_regions(answer(BLOB, beside), GRID, Search(margin_mm=10, least_ml=0))
    assert box == (slice(6, 22), slice(70, 110), slice(50, 110))


def test_what_a_finder_never_took_for_kidney_has_no_box():
    assert find_regions(answer(), GRID, Search()) == []


def test_a_scan_of_few_slices_needs_less_of_a_kidney():
    thin = replace(GRID, full_shape=(2, 200, 200))
    probability = answer()[:1]
    probability[0, 30:40, 10:20] = 0.9  # 2 ml
    assert find_regions(probability, thin, Search(margin_mm=0, least_ml=10.0))
    assert not find_regions(answer(BLOB), GRID, Search(margin_mm=0, least_ml=10.0))


@pytest.mark.parametrize(
    "wrong", [{"threshold": 0}, {"threshold": 1}, {"least_ml": -1}, {"margin_mm": math.nan}]
)
def test_a_search_that_cannot_work_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Search(**wrong)


@pytest.fixture
def two_steps(tmp_path):
    """A model that looks closely where a coarse one sees something bright."""
    finder = toys.copying_model(tmp_path / "coarse", preprocessing=COARSE)
    return toys.copying_model(
        tmp_path / "fine",
        preprocessing=Preprocessing(pixel_mm=1.5, slice_mm=3.0),
        finder=finder,
        search=Search(),
    )


def test_a_model_with_a_finder_is_one_folder_that_moves_as_a_whole(two_steps, tmp_path):
    moved = tmp_path / "moved"
    two_steps.folder.rename(moved)
    loaded = load_model(moved)
    assert loaded.finder is not None and loaded.finder.preprocessing == COARSE
    assert loaded.search == Search()
    assert json.loads((moved / "model.json").read_text())["format"] == FORMAT_WITH_FINDER
    assert loaded.finder.load_network() is not None


def test_a_model_whose_finder_is_gone_is_refused_with_its_name(two_steps):
    (two_steps.folder / "finder" / "model.json").unlink()
    with pytest.raises(ModelError, match="finder"):
        load_model(two_steps.folder)


@pytest.mark.parametrize("entry", [{"threshold": 2.0}, {"nonsense": 1}, "nothing"])
def test_a_search_that_is_not_usable_is_refused_with_the_file(two_steps, entry):
    path = two_steps.folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "search": entry}))
    with pytest.raises(ModelError, match=r"model\.json"):
        load_model(two_steps.folder)


def test_looking_closely_finds_what_looking_everywhere_finds(two_steps, toy_ct, tmp_path):
    everywhere = toys.copying_model(tmp_path / "everywhere", preprocessing=two_steps.preprocessing)
    one, other = (
        sitk.GetArrayFromImage(segment(toy_ct, TorchBackend(model, "cpu", "float32")).labels)
        for model in (two_steps, everywhere)
    )
    assert set(np.unique(one)) == {0, 1, 2}
    agreement = 2 * ((one == other) & (one > 0)).sum() / ((one > 0).sum() + (other > 0).sum())
    assert agreement > 0.99


def test_a_ct_where_the_finder_finds_nothing_has_no_kidney(two_steps):
    ct, _ = toys.toy(())
    result = segment(toys.image_of(ct), TorchBackend(two_steps, "cpu", "float32"))
    assert result.report["notes"] == ["no kidney found"]
    assert not sitk.GetArrayFromImage(result.labels).any()


def test_progress_of_two_steps_never_falls_and_each_can_be_cancelled(two_steps, toy_ct):
    backend = TorchBackend(two_steps, "cpu", "float32")
    told: list[tuple[float, str]] = []
    segment(toy_ct, backend, progress=lambda share, step: told.append((share, step)))
    shares = [share for share, _ in told]
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1.0)
    steps = list(dict.fromkeys(step for _, step in told))
    assert steps == ["read", "prepare", "find", "predict", "kidneys", "measure"]
    for stop in ("find", "predict"):
        at: list[str] = []
        with pytest.raises(Cancelled):
            segment(
                toy_ct,
                backend,
                progress=lambda _, step, at=at: at.append(step),
                cancelled=lambda at=at, stop=stop: bool(at) and at[-1] == stop,
            )
        assert at[-1] == stop


def test_the_mean_of_finder_and_network_counts_in_the_boxes(two_steps, toy_ct):
    volume, grid = to_axial(sitk.ReadImage(str(toy_ct)))
    sharp = TorchBackend(two_steps, "cpu", "float32")
    alone = answer_of(volume, grid.spacing_mm, sharp)
    coarse = answer_of(volume, grid.spacing_mm, sharp.finder)
    half = TorchBackend(replace(two_steps, search=Search(blend=0.5)), "cpu", "float32")
    both = answer_of(volume, grid.spacing_mm, half)
    inside = both > 0
    mean = (alone.astype(float) + coarse) / 2
    assert inside.any()
    # It is taken on the fine grid, so that coarse pixels are rounded elsewhere.
    off = {name: np.abs(one[inside] - mean[inside]).mean() for name, one in (
        ("both", both), ("alone", alone), ("coarse", coarse)
    )}  # fmt: skip
    assert 2 * off["both"] < min(off["alone"], off["coarse"]), off


def test_slabs_hold_the_whole_slices_of_boxes_at_the_same_height():
    low, high = (slice(2, 9), slice(5, 9), slice(5, 9)), (slice(7, 12), slice(5, 9), slice(50, 60))
    far = (slice(30, 35), slice(5, 9), slice(5, 9))
    everywhere = (slice(0, 80), slice(0, 90))
    assert slabs([low, high, far], (40, 80, 90)) == [
        (slice(2, 12), *everywhere),
        (slice(30, 35), *everywhere),
    ]


def test_the_wide_look_is_averaged_with_the_close_one_within_the_boxes(
    two_steps, toy_ct, monkeypatch
):
    volume, grid = to_axial(sitk.ReadImage(str(toy_ct)))
    backend = TorchBackend(replace(two_steps, search=Search(wide=True)), "cpu", "float32")
    plain = TorchBackend(two_steps, "cpu", "float32")
    boxes = answer_of(volume, grid.spacing_mm, plain) > 0
    widths = []

    def answered(working, spacing_mm, asked, *others):
        if asked is not backend.model and asked is not backend:
            return predict(working, spacing_mm, asked, *others)
        widths.append(working.shape[2])
        close = len(widths) <= 2
        return np.full(working.shape, 0.8 if close else 0.4, np.float16)

    monkeypatch.setattr("KidneySegLib.answer.predict", answered)
    both = answer_of(volume, grid.spacing_mm, backend)
    assert len(widths) == 3 and widths[2] > max(widths[:2]), "two boxes, then whole slices"
    inside = both[boxes]
    assert np.median(inside) == pytest.approx(0.6 * 255, abs=1)
    assert both.max() <= round(0.8 * 255)
