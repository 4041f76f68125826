"""The trainer: cases, splits, cache, batches, losses, and one small run from end to end."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image

from KidneySegLib.errors import Cancelled, InputError, UsageError
from KidneySegLib.geometry import to_axial
from KidneySegLib.model import load_model
from KidneySegLib.phantom import write_cases
from KidneySegLib.preprocess import Preprocessing
from KidneySegLib.segment import segment
from UNetTrainerLib.cache import build_cache, read_case
from UNetTrainerLib.cases import Case, find_cases, folds_by_patient
from UNetTrainerLib.losses import generalized_dice, generalized_dice_ce
from UNetTrainerLib.sampling import AUGMENTATIONS, Sampler, augment, centred, change_phase
from UNetTrainerLib.train import HISTORY, Options, averaged, split, train

PREPROCESSING = Preprocessing(pixel_mm=6.0, slice_mm=8.0, crop=True)


@pytest.fixture(scope="module")
def case_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cases")
    write_cases(folder, 3, seed=5, size=(64, 64, 24))
    return folder


@pytest.fixture
def slice_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "slices"
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    rows = []
    for number, patient in enumerate((1, 1, 2)):
        name = f"case_0000{patient}_slice_{number}"
        picture = rng.integers(0, 255, (48, 64), dtype=np.uint8)
        mask = np.zeros((48, 64), np.uint8)
        mask[10:20, 10:20], mask[14:18, 14:18] = 1, 2
        Image.fromarray(picture).save(folder / "images" / f"{name}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{name}.png")
        rows.append({"name": name, "kits19_case": patient, "pixel_spacing_mm": 3.0})
    with (folder / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def test_finds_case_folders_and_single_slices_of_the_same_patient(
    case_folders: Path, slice_folder: Path
) -> None:
    cases = find_cases([case_folders, slice_folder])
    assert [case.is_slice for case in cases] == [False] * 3 + [True] * 3
    assert cases[0].name == "case_00000"
    assert cases[3].patient == cases[4].patient != cases[5].patient
    assert cases[3].pixel_mm == 3.0


def test_a_half_downloaded_case_is_not_a_case(case_folders: Path, tmp_path: Path) -> None:
    (tmp_path / "case_00000").mkdir()
    (tmp_path / "case_00000" / "segmentation.nii.gz").write_bytes(b"")
    with pytest.raises(InputError, match=r"looked for case folders with imaging\.nii\.gz"):
        find_cases([tmp_path])


def test_a_missing_mask_is_named(slice_folder: Path) -> None:
    gone = next((slice_folder / "masks").glob("*.png"))
    gone.unlink()
    with pytest.raises(InputError, match=gone.name):
        find_cases([slice_folder])


def test_no_patient_is_in_two_folds_and_folds_are_even() -> None:
    cases = [
        Case(f"{patient}-{part}", str(patient), source, Path(), Path())
        for patient, source in [*((i, "a") for i in range(16)), *((i, "b") for i in range(16, 23))]
        for part in range(3)
    ]
    folds = folds_by_patient(cases, 4, seed=0)
    assert set(folds) == {str(i) for i in range(23)}
    for patients in (range(16), range(16, 23)):
        counts = np.bincount([folds[str(i)] for i in patients], minlength=4)
        assert counts.max() - counts.min() <= 1
    options = Options(data=("x",), output="y", folds=4, fold=2)
    training, validation = split(cases, options)
    assert not {c.patient for c in training} & {c.patient for c in validation}
    assert {c.patient for c in validation} == {p for p, fold in folds.items() if fold == 2}


def test_one_patient_cannot_be_split() -> None:
    with pytest.raises(InputError, match="1 patients cannot be split into 2 folds"):
        folds_by_patient([Case("a", "a", "s", Path(), Path())], 2, seed=0)


def test_cached_slices_lie_on_the_working_grid_and_keep_the_kidney_volume(
    case_folders: Path, tmp_path: Path
) -> None:
    case = find_cases([case_folders])[0]
    (cached,) = build_cache([case], tmp_path, PREPROCESSING)
    labels = cached.labels()
    assert labels.shape == cached.hu().shape
    assert cached.hu().dtype == np.int16
    assert cached.spacing_mm[1] == pytest.approx(6.0, rel=0.05)
    _, truth, spacing_mm = read_case(case)
    expected = (truth > 0).sum() * np.prod(spacing_mm)
    assert (labels > 0).sum() * np.prod(cached.spacing_mm) == pytest.approx(expected, rel=0.1)
    assert cached.kidney_slices == tuple(np.flatnonzero((labels > 0).any((1, 2))))


def test_the_cache_is_reused_until_a_file_changes(case_folders: Path, tmp_path: Path) -> None:
    case = find_cases([case_folders])[0]
    (first,) = build_cache([case], tmp_path, PREPROCESSING)
    stamp = first.hu_file.stat().st_mtime_ns
    (again,) = build_cache([case], tmp_path, PREPROCESSING)
    assert again.hu_file == first.hu_file
    assert again.hu_file.stat().st_mtime_ns == stamp
    (other,) = build_cache([case], tmp_path, replace(PREPROCESSING, pixel_mm=7.0))
    assert other.hu_file != first.hu_file


def test_labels_of_another_grid_or_value_are_refused_by_name(
    case_folders: Path, tmp_path: Path
) -> None:
    source = case_folders / "case_00000"
    bad = tmp_path / "case_00009"
    bad.mkdir()
    (bad / "imaging.nii.gz").write_bytes((source / "imaging.nii.gz").read_bytes())
    labels = sitk.ReadImage(str(source / "segmentation.nii.gz"))
    sitk.WriteImage(labels[:-1], str(bad / "segmentation.nii.gz"))
    with pytest.raises(InputError, match=r"case_00009.*does not fit its imaging: size"):
        read_case(find_cases([tmp_path])[0])
    sitk.WriteImage(labels * 3, str(bad / "segmentation.nii.gz"))
    with pytest.raises(InputError, match="where 0, 1, 2 are known"):
        read_case(find_cases([tmp_path])[0])


def test_generalized_dice_equals_the_papers_formula() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 2, 7, 5, generator=generator)
    labels = (torch.rand(3, 7, 5, generator=generator) < 0.2).long()
    p = np.exp(logits.numpy())
    p /= p.sum(1, keepdims=True)
    r = np.stack([labels.numpy() == 0, labels.numpy() == 1], 1).astype(float)
    w = 1 / r.sum((0, 2, 3)) ** 2
    expected = 1 - 2 * (w * (r * p).sum((0, 2, 3))).sum() / (w * (r + p).sum((0, 2, 3))).sum()
    assert generalized_dice(logits, labels).item() == pytest.approx(expected, abs=1e-6)


def test_a_false_detection_costs_where_the_batch_has_no_kidney() -> None:
    labels = torch.zeros(2, 8, 8, dtype=torch.long)
    silent = torch.stack([torch.full((2, 8, 8), 5.0), torch.full((2, 8, 8), -5.0)], 1)
    noisy = silent.clone()
    noisy[:, :, 2:6, 2:6] *= -1
    for loss in (generalized_dice, generalized_dice_ce):
        assert loss(silent, labels) < 0.01 < loss(noisy, labels)


def test_batches_repeat_for_a_seed_and_hold_kidneys(case_folders: Path, tmp_path: Path) -> None:
    cached = build_cache(find_cases([case_folders]), tmp_path, PREPROCESSING)

    def first(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        sampler = Sampler(cached, [], PREPROCESSING, 3, (64, 80), 6, seed, AUGMENTATIONS["full"])
        return next(iter(sampler.batches(1)))

    slices, labels = first(0)
    assert slices.shape == (6, 3, 64, 80)
    assert labels.shape == (6, 64, 80)
    assert 0 <= slices.min() <= slices.max() <= 1
    assert (labels > 0).any()
    assert torch.equal(slices, first(0)[0])
    assert not torch.equal(slices, first(1)[0])


def test_extra_cases_take_their_share_of_the_draws(case_folders: Path, tmp_path: Path) -> None:
    cached = build_cache(find_cases([case_folders]), tmp_path, PREPROCESSING)
    sampler = Sampler(
        cached[:2], cached[2:], PREPROCESSING, 1, (32, 32), 1, 0, AUGMENTATIONS["none"], 0.25
    )
    assert sampler.weight[2] == pytest.approx(0.25)
    assert sampler.weight.sum() == pytest.approx(1)


def test_image_and_label_move_together() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(8, 1, 64, 80, dtype=torch.uint8)
    labels[:, :, 20:40, 15:35] = 1
    labels[:, :, 25:30, 20:30] = 2
    hu = labels.float() * 500
    how = replace(AUGMENTATIONS["full"], phase=0, gain=0, offset_hu=0, noise_hu=0, blur=0,
                  floor=0, field_of_view=0)  # fmt: skip
    moved, truth = augment(hu, labels, how, generator)
    assert not torch.equal(truth, labels[:, 0].long())
    agree = ((moved[:, 0] > 250) == (truth > 0)).float().mean()
    assert agree > 0.99
    assert ((moved[:, 0] > 750) == (truth > 1)).float().mean() > 0.99


def test_without_augmentation_slices_stay_as_they_are() -> None:
    hu = torch.randn(2, 3, 16, 32) * 100
    labels = torch.zeros(2, 3, 16, 32, dtype=torch.uint8)
    labels[:, 1, 4:8, 4:8] = 1
    same, truth = augment(hu.clone(), labels, AUGMENTATIONS["none"], torch.Generator())
    assert torch.equal(same, hu)
    assert torch.equal(truth, labels[:, 1].long())


def test_a_changed_phase_leaves_everything_but_the_kidney_alone() -> None:
    labels = torch.zeros(4, 1, 32, 32, dtype=torch.uint8)
    labels[:, :, 8:24, 8:24] = 1
    hu = torch.full((4, 1, 32, 32), 180.0)
    changed = change_phase(hu, labels, 1.0, torch.Generator().manual_seed(3))
    assert torch.equal(changed[..., :6, :], hu[..., :6, :])
    assert (changed[:, :, 12:20, 12:20] - 180).abs().min() > 5


def test_crops_and_pads_around_the_centre() -> None:
    plane = np.arange(20).reshape(4, 5)
    assert centred(plane, (2, 3), -1).tolist() == [[6, 7, 8], [11, 12, 13]]
    padded = centred(plane, (6, 5), -1)
    assert padded[1:5].tolist() == plane.tolist()
    assert (padded[[0, 5]] == -1).all()


def test_averaged_weights_follow_first_and_settle_later() -> None:
    update = averaged(0.99)
    assert update(torch.tensor(0.0), torch.tensor(1.0), 0).item() == pytest.approx(0.9)
    late = update(torch.tensor(0.0), torch.tensor(1.0), 10_000).item()
    assert late == pytest.approx(0.01)


def test_trains_a_model_that_segments(case_folders: Path, tmp_path: Path) -> None:
    options = Options(
        data=(str(case_folders),), output=str(tmp_path / "run"), name="tiny", epochs=3, steps=12,
        batch_size=4, features=4, depth=3, context_slices=3, rows=64, columns=80, pixel_mm=6.0,
        slice_mm=8.0, folds=3, fold=1, loss="generalized-dice-ce", precision="float32",
        device="cpu",
    )  # fmt: skip
    lines: list[str] = []
    model = train(options, report=lines.append)

    rows = list(csv.DictReader((tmp_path / "run" / "history.csv").open()))
    assert list(rows[0]) == list(HISTORY)
    assert len(rows) == 3
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert (tmp_path / "run" / "curves.png").read_bytes()[:4] == b"\x89PNG"
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert len(scores["dice_per_case"]) == 1

    assert model.name == "tiny"
    assert model.card["training"]["patients"] == {case_folders.name: 2}
    held_out = next(iter(scores["dice_per_case"]))
    result = segment(case_folders / held_out, model, device="cpu", precision="float32")
    array, _ = to_axial(result.labels)
    assert array.shape == to_axial(result.scan.image)[0].shape


def test_a_cancelled_run_leaves_no_model_and_bad_data_no_folder(
    case_folders: Path, tmp_path: Path
) -> None:
    def options(data: Path) -> Options:
        return Options(
            data=(str(data),), output=str(tmp_path / "run"), features=4, depth=3, folds=0
        )

    with pytest.raises(InputError, match="nothing"):
        train(options(tmp_path / "nothing"), report=lambda _: None)
    assert not (tmp_path / "run").exists()
    with pytest.raises(Cancelled):
        train(options(case_folders), report=lambda _: None, cancelled=lambda: True)
    assert not (tmp_path / "run" / "model").exists()


def test_a_killed_run_resumes_to_the_same_losses_as_an_unbroken_one(
    case_folders: Path, tmp_path: Path
) -> None:
    def options(name: str, **choice: Any) -> Options:
        return Options(
            data=(str(case_folders),), output=str(tmp_path / name), name="m", epochs=4, steps=3,
            batch_size=2, features=4, depth=3, context_slices=1, rows=64, columns=80, pixel_mm=6.0,
            slice_mm=8.0, folds=3, precision="float32", device="cpu", cache=str(tmp_path / "c"),
            **choice,
        )  # fmt: skip

    train(options("whole"), report=lambda _: None)
    asked = iter(range(100))
    with pytest.raises(Cancelled):  # in the middle of the third epoch
        train(options("broken"), report=lambda _: None, cancelled=lambda: next(asked) >= 7)
    train(options("broken", resume=True), report=lambda _: None)

    histories = [
        list(csv.DictReader((tmp_path / name / "history.csv").open()))
        for name in ("whole", "broken")
    ]
    assert len(histories[0]) == len(histories[1]) == 4
    for one, other in zip(*histories, strict=True):
        for column in ("lr", "train_loss", "valid_loss", "valid_dice_case"):
            assert float(one[column]) == pytest.approx(float(other[column]), abs=1e-6)
    weights = [load_model(tmp_path / name / "model") for name in ("whole", "broken")]
    for one, other in zip(*(m.load_network().state_dict().values() for m in weights), strict=True):
        assert torch.allclose(one.float(), other.float(), atol=1e-6)

    with pytest.raises(UsageError, match="trained with other lr"):
        train(options("broken", resume=True, lr=1e-4), report=lambda _: None)
    with pytest.raises(InputError, match="to resume from"):
        train(options("nothing", resume=True), report=lambda _: None)
    (tmp_path / "broken" / "checkpoint.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match="damaged"):
        train(options("broken", resume=True), report=lambda _: None)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"epochs": 0}, "--epochs"),
        ({"folds": 1}, "--folds 1"),
        ({"extra_share": 1.0}, "--extra-share"),
        ({"lr": 0.0}, "--lr"),
        ({"rows": 100}, "multiples of 16"),
        ({"context_slices": 2}, "odd"),
    ],
)
def test_choices_that_cannot_work_are_named(choice: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options(data=("a",), output="b", **choice)  # type: ignore[arg-type]
