"""The model that ships, on generated CTs it never saw and, where they are, on real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from KidneySegLib.backends.torchbackend import TorchBackend
from KidneySegLib.geometry import to_axial
from KidneySegLib.measure import dice
from KidneySegLib.model import WEIGHTS_FILE
from KidneySegLib.modelplaces import DEFAULT_MODEL, find_model, resources_folder
from KidneySegLib.network import count_parameters
from KidneySegLib.phantom import generate
from KidneySegLib.segment import segment

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no real CTs on this machine")


@pytest.fixture(scope="module")
def backend() -> TorchBackend:
    return TorchBackend(find_model(), "cpu", "float32")


def test_it_ships_with_its_card_and_is_small_enough_to_clone(backend: TorchBackend) -> None:
    folder = resources_folder() / DEFAULT_MODEL
    assert backend.model.folder == folder
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 20e6
    assert (folder / WEIGHTS_FILE).is_file()
    card = backend.model.card
    assert "Research use only" in card["licence"]
    assert set(card["training"]["patients"]) and card["training"]["minutes"] > 0
    text = (folder / "README.md").read_text(encoding="utf-8")
    for word in ("BTCV", "3D-IRCADb", "KiTS19", "Research use only"):
        assert word in text
    assert f"{count_parameters(backend.network):,} parameters" in text
    views = [view.preprocessing.view for view in backend.model.views]
    assert views == ["coronal", "sagittal"] and backend.model.finder is not None


@pytest.mark.parametrize(("seed", "phase"), [(71, "portal"), (72, "plain"), (73, "arterial")])
def test_it_finds_both_kidneys_of_a_generated_ct(
    backend: TorchBackend, seed: int, phase: str
) -> None:
    phantom = generate(seed, (160, 160, 40), phase=phase)
    result = segment(phantom.image, backend, reference=phantom.sides)
    assert result.report["dice"]["kidney"] > 0.85, result.report
    assert min(result.report["dice"].values()) > 0.8


@pytest.mark.parametrize("region", ["chest", "head"])
def test_it_finds_nothing_where_there_is_no_kidney(backend: TorchBackend, region: str) -> None:
    phantom = generate(81, (128, 128, 30), region=region, kidneys="none")
    result = segment(phantom.image, backend)
    assert "no kidney found" in result.report["notes"]
    assert not sitk.GetArrayViewFromImage(result.labels).any()


@needs_shared
def test_sides_are_right_on_a_whole_trunk_of_3_mm(backend: TorchBackend) -> None:
    folder = SHARED / "totalsegmentator_example"
    result = segment(folder / "example_ct_sm.nii.gz", backend)
    labels, _ = to_axial(result.labels)
    truth, _ = to_axial(sitk.ReadImage(str(folder / "example_seg.nii.gz")))
    for side, label in ((1, 3), (2, 2)):  # left is 3 there and right 2
        value = dice(labels == side, truth == label)
        assert value is not None and value > 0.8


@needs_shared
def test_a_dicom_folder_without_kidneys_has_none(backend: TorchBackend) -> None:
    result = segment(SHARED / "totalsegmentator_example" / "dicom", backend)
    assert "no kidney found" in result.report["notes"]


@needs_shared
def test_a_whole_abdomen_of_full_hu_comes_back_on_its_own_grid(backend: TorchBackend) -> None:
    case = SHARED / "cases" / "case_20001"
    result = segment(case, backend, reference=case / "sides.nii.gz")
    ct = sitk.ReadImage(str(case / "imaging.nii.gz"))
    assert result.labels.GetSize() == ct.GetSize()
    assert result.labels.GetDirection() == ct.GetDirection()
    assert set(np.unique(sitk.GetArrayViewFromImage(result.labels))) == {0, 1, 2}
    assert result.report["dice"]["kidney"] > 0.9
