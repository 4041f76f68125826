"""Which cases there are, what is in them, and who trains and who validates."""

from __future__ import annotations

import csv
import gzip
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import toys
from PIL import Image

from KidneySegLib.errors import InputError, UsageError
from KidneySegLib.geometry import to_axial
from KidneySegLib.phantom import MARK, write_cases
from UNetTrainerLib.cases import (
    Case,
    Incomplete,
    Split,
    check_extra,
    find_cases,
    find_everything,
    folds_by_patient,
    patient_in,
    split_cases,
    write_split,
)
from UNetTrainerLib.loading import load, read_case
from UNetTrainerLib.pictures import picture_size, read_mask, read_picture

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def volume(folder: Path, name: str = "case_00000") -> Path:
    """A case folder with the toy CT in the axes of KiTS19; labels are merged."""
    case = folder / name
    case.mkdir(parents=True)
    ct, labels = toys.toy(shape=(5, 12, 14))
    for file, array in (("imaging", ct), ("segmentation", (labels > 0).astype(np.uint8))):
        image = toys.image_of(array, order=(2, 1, 0))
        sitk.WriteImage(image, str(case / f"{file}.nii.gz"))
    return case


def gray(seed: int = 0, shape: tuple[int, ...] = (6, 8), kind: Any = np.uint8) -> np.ndarray:
    high = np.iinfo(kind).max
    return np.random.default_rng(seed).integers(0, high, shape, dtype=kind, endpoint=True)


def mask(shape: tuple[int, int] = (6, 8), value: int = 1) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    labels[2:4, 3:6] = value
    return labels


def save(array: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if array.dtype == np.uint16 and array.ndim == 3:
        sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(path))
    elif array.dtype == np.int16:
        sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    else:
        Image.fromarray(array).save(path)
    return path


def pair(folder: Path, name: str, suffix: str = ".png", mask_name: str = "") -> None:
    save(gray(len(list(folder.glob("images/*")))), folder / "images" / f"{name}{suffix}")
    save(mask(), folder / "masks" / (mask_name or f"{name}.png"))


def index(folder: Path, rows: Sequence[dict[str, Any]], delimiter: str = ",") -> None:
    with (folder / "index.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def cases_of(*patients: str, source: str = "a", each: int = 1) -> list[Case]:
    return [
        Case(f"{patient}-{part}", patient, source, Path(f"{patient}-{part}"), Path())
        for patient in patients
        for part in range(each)
    ]


def patients_of(cases: Sequence[Case]) -> set[str]:
    return {case.patient for case in cases}


# Finding


def test_finds_case_folders_and_pictures_and_mixes_them(tmp_path: Path) -> None:
    volumes, slices = tmp_path / "kits", tmp_path / "slices"
    write_cases(volumes, 2, seed=5, size=(32, 32, 10))
    pair(slices, "anna_frame_001")
    pair(slices, "anna_frame_002", ".tif", "anna_frame_002_mask.bmp")
    pair(slices, "bert_frame_001", ".JPG", "bert_frame_001_segmentation.tiff")
    (slices / "images" / "Thumbs.db").write_bytes(b"no picture")
    (slices / "images" / "._anna_frame_001.png").write_bytes(b"no picture")
    cases, incomplete = find_everything([volumes, slices])
    assert not incomplete
    assert [case.is_slice for case in cases] == [False] * 2 + [True] * 3
    assert [case.source for case in cases] == ["kits"] * 2 + ["slices"] * 3
    assert [case.patient for case in cases] == [
        "case_00000", "case_00001", "slices/anna", "slices/anna", "slices/bert",
    ]  # fmt: skip
    assert all(case.pixel_mm is None for case in cases)
    assert cases[3].labels.name == "anna_frame_002_mask.bmp"


@pytest.mark.parametrize("named", ["kits", "kits/data", "kits/data/case_00000"])
def test_the_repository_its_data_folder_and_one_case_of_it_are_all_understood(
    tmp_path: Path, named: str
) -> None:
    volume(tmp_path / "kits" / "data")
    (tmp_path / "kits" / "starter_code").mkdir()
    (case,) = find_cases([tmp_path / named])
    assert (case.name, case.source, case.patient) == ("case_00000", "kits", "case_00000")


def test_nothing_found_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "case_files").mkdir()
    (tmp_path / "some").mkdir()
    with pytest.raises(InputError, match=r"imaging\.nii\.gz and segmentation\.nii\.gz") as said:
        find_everything([tmp_path / "some"])
    assert "images/ and masks/ with .png, .tif" in str(said.value)
    with pytest.raises(InputError, match=r"There is no folder .*nowhere"):
        find_everything([tmp_path / "nowhere"])


def test_what_a_half_downloaded_data_set_lacks_is_told_case_by_case(tmp_path: Path) -> None:
    volume(tmp_path)
    (volume(tmp_path, "case_00001") / "imaging.nii.gz").unlink()
    (volume(tmp_path, "case_00002") / "segmentation.nii.gz").unlink()
    (tmp_path / "case_00003").mkdir()
    (tmp_path / "pictures").mkdir()
    cases, incomplete = find_everything([tmp_path])
    assert [case.name for case in cases] == ["case_00000"]
    told = {one.name: one.sentence for one in incomplete}
    assert list(told) == ["case_00001", "case_00002", "case_00003"]
    assert "no imaging.nii.gz" in told["case_00001"]
    assert "no segmentation.nii.gz" in told["case_00002"]
    assert "neither imaging.nii.gz nor segmentation.nii.gz" in told["case_00003"]
    assert {one.severity for one in incomplete} == {"unusable"}
    with pytest.raises(InputError, match=r"No case is complete: case_00001 has no imaging"):
        (tmp_path / "case_00000" / "imaging.nii.gz").unlink()
        (tmp_path / "case_00000" / "segmentation.nii.gz").unlink()
        (tmp_path / "case_00000").rmdir()
        find_cases([tmp_path])


def test_the_test_cases_of_kits19_have_no_labels_and_stop_nobody(tmp_path: Path) -> None:
    (volume(tmp_path, "case_00210") / "segmentation.nii.gz").unlink()
    _, (incomplete,) = find_everything([tmp_path])
    assert incomplete.severity == "note"
    assert "test case of KiTS19" in incomplete.sentence


def test_a_folder_given_twice_is_refused_also_as_part_of_another(tmp_path: Path) -> None:
    volume(tmp_path / "kits" / "data")
    with pytest.raises(UsageError, match="found twice"):
        find_cases([tmp_path / "kits", tmp_path / "kits" / "data"])


def test_folders_of_one_name_stay_apart(tmp_path: Path) -> None:
    pair(tmp_path / "x" / "scans", "anna_1")
    pair(tmp_path / "y" / "scans", "anna_1")
    first, second = find_cases([tmp_path / "x" / "scans", tmp_path / "y" / "scans"])
    assert (first.source, second.source) == ("x-scans", "y-scans")
    assert first.patient != second.patient


def test_a_mask_without_its_image_and_an_image_without_its_mask_are_named(tmp_path: Path) -> None:
    pair(tmp_path, "a")
    pair(tmp_path, "b")
    pair(tmp_path, "c")
    pair(tmp_path, "d")
    (tmp_path / "masks" / "b.png").unlink()
    (tmp_path / "images" / "c.png").unlink()
    save(mask(), tmp_path / "masks" / "d_mask.png")
    cases, incomplete = find_everything([tmp_path])
    assert [case.name for case in cases] == ["a"]
    told = {one.name: one.sentence for one in incomplete}
    assert "no mask; add masks/b.png" in told["b"]
    assert "mask without an image; add images/c.png" in told["c"]
    assert "d.png and d_mask.png" in told["d"]


def test_two_images_or_two_masks_of_one_name_are_refused(tmp_path: Path) -> None:
    pair(tmp_path, "a")
    pair(tmp_path, "b", mask_name="b_mask.png")
    save(gray(1), tmp_path / "images" / "a.bmp")
    save(mask(), tmp_path / "masks" / "b_mask.tif")
    _, (a, b) = find_everything([tmp_path])
    assert "a.bmp and a.png" in a.sentence
    assert "b_mask.png and b_mask.tif" in b.sentence


@pytest.mark.parametrize(("delimiter", "spacing"), [(",", "0.75"), (";", "0,75")])
def test_the_index_gives_spacing_and_patients(tmp_path: Path, delimiter: str, spacing: str) -> None:
    for name in ("a1", "a2", "a3", "case_00007_slice_1", "unlisted"):
        pair(tmp_path, name)
    index(
        tmp_path,
        [
            {"name": "a1.png", "patient": "anna", "kits19_case": "", "pixel_spacing_mm": spacing},
            {"name": "a2", "patient": "", "kits19_case": "25", "pixel_spacing_mm": ""},
            {"name": "a3", "patient": "", "kits19_case": "", "pixel_spacing_mm": ""},
            {"name": "gone", "patient": "", "kits19_case": "", "pixel_spacing_mm": ""},
            {"name": "case_00007_slice_1", "patient": "", "kits19_case": "7"},
        ],
        delimiter,
    )
    cases, incomplete = find_everything([tmp_path])
    source = tmp_path.name
    assert {case.name: (case.patient, case.pixel_mm) for case in cases} == {
        "a1": (f"{source}/anna", 0.75),
        "a2": ("case_00025", None),
        "a3": (f"{source}/a", None),
        "case_00007_slice_1": ("case_00007", None),
    }
    assert incomplete == [
        Incomplete("gone", source, "is listed in index.csv but not in images/; add it."),
        Incomplete("unlisted", source, "is not listed in index.csv.", "note"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "name, patient, pixel_spacing_mm\na1, anna, 0.75\nb1, anna, 0.75\n",
        "Name;Patient;Pixel_Spacing_mm\na1;anna;0,75\nb1;anna;0,75\n",
        "name\tpatient\tpixel_spacing_mm\na1\tanna\t0.75\nb1\tanna\t0.75\n",
    ],
)
def test_columns_of_the_index_are_known_however_they_were_typed(tmp_path: Path, text: str) -> None:
    for name in ("a1", "b1"):
        pair(tmp_path, name)
    (tmp_path / "index.csv").write_text(text)
    first, second = find_cases([tmp_path])
    assert first.patient == second.patient == f"{tmp_path.name}/anna"
    assert first.pixel_mm == second.pixel_mm == 0.75
    assert not first.guessed and not second.guessed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,pixel_spacing_mm\na,0\n", r"pixel_spacing_mm 0 for a"),
        ("name,pixel_spacing_mm\na,wide\n", r"pixel_spacing_mm wide for a"),
        ("title\na\n", "without a name"),
        ("name\na\na\n", "lists a twice"),
    ],
)
def test_an_index_that_cannot_be_used_is_named(tmp_path: Path, text: str, message: str) -> None:
    pair(tmp_path, "a")
    (tmp_path / "index.csv").write_text(text)
    with pytest.raises(InputError, match=rf"index\.csv.*{message}"):
        find_cases([tmp_path])


def test_an_index_in_another_encoding_says_what_to_save_it_as(tmp_path: Path) -> None:
    pair(tmp_path, "a")
    (tmp_path / "index.csv").write_bytes("name\nä\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"index\.csv is not UTF-8"):
        find_cases([tmp_path])


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("patient07_frame_003", "patient07"),
        ("patient07_view_b_003", "patient07"),
        ("003-subject-2", "subject-2"),
        ("case_00025_slice_0060", "case_00025"),
        ("anna_slice_top", "anna"),
        ("anna_frame_003", "anna"),
        ("anna-004", "anna"),
        ("anna", "anna"),
        ("1_14", "1"),
        ("0001", ""),
        ("frame_12", ""),
        ("slice_3", ""),
        ("showcase_12", "showcase"),
    ],
)
def test_frames_of_one_patient_are_told_from_their_names(name: str, patient: str) -> None:
    assert patient_in(name) == patient


def test_numbered_pictures_without_a_patient_are_all_of_one(tmp_path: Path) -> None:
    for number in range(3):
        pair(tmp_path, f"{number:04d}")
    cases = find_cases([tmp_path])
    assert patients_of(cases) == {f"{tmp_path.name}/unknown"}
    with pytest.raises(InputError, match=r"one patient.*column patient of index\.csv"):
        split_cases(cases, "folds", 2, 0)


# Splitting


def test_no_patient_is_in_two_folds_and_folds_are_even_over_sources() -> None:
    a, b = [f"a{i}" for i in range(16)], [f"b{i}" for i in range(7)]
    cases = [*cases_of(*a, source="a", each=3), *cases_of(*b, source="b", each=3)]
    folds = folds_by_patient(cases, 4, seed=0)
    assert set(folds) == {*a, *b}
    for patients in (a, b):
        counts = np.bincount([folds[patient] for patient in patients], minlength=4)
        assert counts.max() - counts.min() <= 1
    validated = []
    for fold in range(4):
        split = split_cases(cases, "folds", 4, fold)
        assert not patients_of(split.training) & patients_of(split.validation)
        assert len(split.training) + len(split.validation) == len(cases)
        validated += sorted(patients_of(split.validation))
    assert sorted(validated) == sorted([*a, *b])


def test_a_patient_seen_in_volumes_and_in_slices_is_never_split() -> None:
    volumes = cases_of(*(f"case_{i:05d}" for i in range(10)), source="kits")
    slices = cases_of(*(f"case_{i:05d}" for i in range(5, 12)), source="slices", each=4)
    for fold in range(3):
        split = split_cases([*volumes, *slices], "folds", 3, fold)
        assert not patients_of(split.training) & patients_of(split.validation)
    alone, together = (folds_by_patient(c, 3, seed=0) for c in (volumes, [*volumes, *slices]))
    assert alone.items() <= together.items()


def test_no_folds_train_on_all() -> None:
    cases = cases_of("x", "y")
    assert split_cases(cases, "folds", 0, 0) == Split(tuple(cases), ())


def test_too_few_patients_are_refused_with_what_to_do() -> None:
    with pytest.raises(InputError, match=r"one patient only \(x\).*--folds 0"):
        split_cases(cases_of("x", each=3), "folds", 2, 0)
    with pytest.raises(InputError, match=r"2 patients cannot be split into 5.*--folds 2"):
        split_cases(cases_of("x", "y"), "folds", 5, 0)
    with pytest.raises(UsageError, match="no fold 2 of 2"):
        split_cases(cases_of("x", "y"), "folds", 2, 2)


def test_the_published_split_of_kits19_with_case_160_in_training() -> None:
    cases = cases_of(*(f"case_{number:05d}" for number in range(210)))
    split = split_cases(cases, "kits19", 5, 0)
    training = {f"case_{number:05d}" for number in range(161)}
    assert patients_of(split.training) == training
    assert patients_of(split.validation) == {f"case_{number:05d}" for number in range(161, 210)}


def test_the_published_split_needs_published_cases() -> None:
    known = cases_of("case_00001", "case_00200")
    with pytest.raises(InputError, match=r"clinic/anna lacks; use --split folds"):
        split_cases([*known, *cases_of("clinic/anna")], "kits19", 5, 0)
    with pytest.raises(InputError, match=r"case_00210 and case_10001 lack"):
        split_cases([*known, *cases_of("case_00210", "case_10001")], "kits19", 5, 0)
    with pytest.raises(InputError, match="a case from 161 to 209"):
        split_cases(known[:1], "kits19", 5, 0)
    with pytest.raises(InputError, match="a case from 0 to 160"):
        split_cases(known[1:], "kits19", 5, 0)


def test_a_written_split_is_the_same_when_it_is_used_again(tmp_path: Path) -> None:
    cases = cases_of("x", "y", "s/z", each=2)
    first = split_cases(cases, "folds", 3, 1)
    write_split(first, tmp_path / "split.json")
    assert split_cases(cases, str(tmp_path / "split.json"), 5, 4) == first
    assert set(json.loads((tmp_path / "split.json").read_text())) == {"training", "validation"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"training": ["x"], "validation": ["y", "x"]}', "both sides x"),
        ('{"training": ["x"], "validation": []}', "does not place y"),
        ('{"training": ["x"], "validation": ["y", "z"]}', "data do not have them, z"),
        ('{"training": [], "validation": ["x", "y"]}', "nobody to train on"),
        ('{"training": ["x", "y"]}', "must hold the lists training and validation"),
        ('["x", "y"]', "must hold the lists training and validation"),
        ('{"training": [1], "validation": ["y"]}', "must hold the lists"),
        ("training: x", "is no JSON"),
    ],
)
def test_a_split_that_does_not_fit_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"split\.json.*{message}"):
        split_cases(cases_of("x", "y"), str(path), 5, 0)


def test_a_split_that_is_not_there_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="There is no split kits21; give folds, kits19 or"):
        split_cases(cases_of("x", "y"), "kits21", 5, 0)


# Who must not train


def test_generated_cases_are_no_patients_of_kits19(tmp_path: Path) -> None:
    write_cases(tmp_path / "generated", 1, seed=5, size=(32, 32, 10))
    (tmp_path / "generated" / MARK).write_text("{}")
    for folder in ("generated", "generated/case_00000"):
        (case,) = find_cases([tmp_path / folder])
        assert (case.name, case.patient) == ("case_00000", "generated/case_00000")


def test_an_extra_case_of_a_patient_who_validates_is_refused_by_name(tmp_path: Path) -> None:
    volume(tmp_path / "kits", "case_00007")
    volume(tmp_path / "own", "anna")
    pair(tmp_path / "slices", "case_00007_slice_3")
    pair(tmp_path / "slices", "case_00008_slice_3")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "hanna").symlink_to(tmp_path / "own" / "anna")
    kits, own = find_cases([tmp_path / "kits"]), find_cases([tmp_path / "own"])
    slices = find_cases([tmp_path / "slices"])
    with pytest.raises(UsageError, match=r"_slice_3\.png in --extra is of case_00007, who"):
        check_extra(slices, kits)
    with pytest.raises(UsageError, match=r"give its folder with --data, .* rename the case"):
        check_extra(kits, slices)
    with pytest.raises(UsageError, match="is of own/anna, who validates"):
        check_extra(find_cases([tmp_path / "own"]), own)
    with pytest.raises(UsageError, match=r"links/hanna/.* validates"):
        check_extra(find_cases([tmp_path / "links"]), own)
    check_extra(slices[1:], [*kits, *own])


def test_patients_of_two_folders_of_one_name_may_train_and_validate(tmp_path: Path) -> None:
    for place in ("here", "there"):
        volume(tmp_path / place / "own", "anna")
    here, there = (find_cases([tmp_path / place / "own"]) for place in ("here", "there"))
    assert here[0].patient == there[0].patient == "own/anna"  # each was found by itself
    check_extra(here, there)


# Pictures


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        (".png", np.uint8), (".tif", np.uint8), (".bmp", np.uint8),
        (".png", np.uint16), (".tif", np.uint16),
    ],
)  # fmt: skip
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_read_as_stored(
    tmp_path: Path, suffix: str, channels: int, kind: type
) -> None:
    array = gray(3, (6, 8) if channels == 1 else (6, 8, 3), kind)
    path = save(array, tmp_path / f"a{suffix}")
    read = read_picture(path)
    assert read.dtype == kind
    assert np.array_equal(read, array[None] if channels == 1 else array.transpose(2, 0, 1))
    assert picture_size(path) == (6, 8)


def test_signed_tiff_keeps_hounsfield_units(tmp_path: Path) -> None:
    array = gray(1, kind=np.uint16).astype(np.int32) - 32768
    path = save(array.astype(np.int16), tmp_path / "a.tif")
    read = read_picture(path)
    assert read.dtype == np.int16
    assert np.array_equal(read[0], array)


def test_a_jpeg_a_palette_and_transparency_are_colours(tmp_path: Path) -> None:
    colours = np.full((16, 16, 3), (200, 40, 90), np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.jpg")
    assert (
        np.abs(read_picture(tmp_path / "a.jpg").astype(int) - [[[200]], [[40]], [[90]]]).max() < 4
    )
    Image.fromarray(colours).quantize(4).save(tmp_path / "p.png")
    assert (read_picture(tmp_path / "p.png") == [[[200]], [[40]], [[90]]]).all()
    Image.fromarray(colours).convert("RGBA").save(tmp_path / "t.png")
    assert read_picture(tmp_path / "t.png").shape == (3, 16, 16)
    Image.fromarray(gray()).convert("LA").save(tmp_path / "l.png")
    assert np.array_equal(read_picture(tmp_path / "l.png")[0], gray())


@pytest.mark.parametrize("white", [1, 2, 255])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_masks_of_labels_and_of_black_and_white(tmp_path: Path, white: int, mode: str) -> None:
    Image.fromarray(mask(value=white)).convert(mode).save(tmp_path / "m.png")
    assert np.array_equal(read_mask(tmp_path / "m.png"), mask(value=1 if white == 255 else white))


def test_masks_with_one_bit_16_bits_or_a_palette(tmp_path: Path) -> None:
    Image.fromarray(mask() > 0).save(tmp_path / "one.png")
    Image.fromarray(mask().astype(np.uint16) * 65535).save(tmp_path / "deep.tif")
    palette = Image.fromarray(mask(value=2)).convert("P")
    palette.putdata(mask(value=2).ravel().tolist())
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(read_mask(tmp_path / "one.png"), mask())
    assert np.array_equal(read_mask(tmp_path / "deep.tif"), mask())
    assert np.array_equal(read_mask(tmp_path / "palette.png"), mask(value=2))


def test_a_jpeg_mask_is_black_and_white_or_refused(tmp_path: Path) -> None:
    white = np.zeros((32, 32), np.uint8)
    white[5:20, 11:27] = 255  # across the blocks of 8, where JPEG rings
    Image.fromarray(white).save(tmp_path / "white.jpg", quality=60)
    with Image.open(tmp_path / "white.jpg") as picture:
        assert len(np.unique(np.asarray(picture))) > 2
    assert np.array_equal(read_mask(tmp_path / "white.jpg"), white // 255)
    Image.fromarray(white // 128 * 60).save(tmp_path / "labels.jpg", quality=60)
    with pytest.raises(InputError, match=r"labels\.jpg is a JPEG.*save it as PNG"):
        read_mask(tmp_path / "labels.jpg")


def test_other_masks_are_refused_with_their_values(tmp_path: Path) -> None:
    save(mask(value=7), tmp_path / "seven.png")
    with pytest.raises(InputError, match=r"seven\.png holds 0, 7 where 0, 1 and 2"):
        read_mask(tmp_path / "seven.png")
    save(gray(1), tmp_path / "many.png")
    with pytest.raises(InputError, match=r"many\.png holds .* values more"):
        read_mask(tmp_path / "many.png")
    colour = np.stack([mask(value=255), mask(value=0), mask(value=0)], axis=-1)
    save(colour, tmp_path / "red.png")
    with pytest.raises(InputError, match=r"red\.png is a mask in colour"):
        read_mask(tmp_path / "red.png")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about damaged tags
@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".bmp"])
def test_damaged_pictures_are_named_however_they_are_damaged(tmp_path: Path, suffix: str) -> None:
    whole = save(gray(0, (40, 50, 3)), tmp_path / f"whole{suffix}").read_bytes()
    path = tmp_path / f"broken{suffix}"
    rng = np.random.default_rng(0)
    refused = 0
    for attempt in range(60):
        data = bytearray(whole)
        if attempt % 2:
            data = data[: int(rng.integers(0, len(data) - 200))]
        else:
            for place in rng.integers(0, min(len(data), 200), 8):
                data[place] = int(rng.integers(0, 256))
        path.write_bytes(data)
        try:
            read_picture(path)
        except InputError as error:
            assert path.name in str(error)
            refused += 1
    assert refused >= 30  # every truncated one, and some of those with other bytes


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every name is text")
def test_a_picture_whose_name_is_no_utf_8_is_refused_and_does_not_end_the_process(
    tmp_path: Path,
) -> None:
    colours = np.zeros((8, 8, 3), np.uint16)
    sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), str(tmp_path / "a.png"))
    path = (tmp_path / "a.png").rename(tmp_path / os.fsdecode(b"M\xfcller.png"))
    with pytest.raises(InputError, match="not UTF-8; rename it"):
        read_picture(path)


def test_several_pictures_in_a_file_and_fractions_are_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(gray(seed)) for seed in range(3)]
    frames[0].save(tmp_path / "stack.tif", save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match=r"stack\.tif holds 3 pictures"):
        read_picture(tmp_path / "stack.tif")
    Image.fromarray(gray().astype(np.float32) / 7).save(tmp_path / "share.tif")
    with pytest.raises(InputError, match=r"share\.tif does not hold values of 8 or 16 bit"):
        read_picture(tmp_path / "share.tif")
    with pytest.raises(InputError, match=r"gone\.png cannot be opened"):
        read_picture(tmp_path / "gone.png")


def test_a_picture_of_many_gigabytes_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(gray(0, (40, 50)), tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(InputError, match=r"huge\.png is too large"):
        read_picture(path)


# Loading


def test_a_volume_is_read_in_axial_axes_with_hounsfield_units(tmp_path: Path) -> None:
    volume(tmp_path)
    (case,) = find_cases([tmp_path])
    voxels, labels, spacing_mm = read_case(case)
    ct, truth = toys.toy(shape=(5, 12, 14))
    assert np.array_equal(voxels[:, 0], ct)
    assert np.array_equal(labels, truth > 0)
    assert labels.dtype == np.uint8
    assert spacing_mm == pytest.approx(toys.SPACING_MM)
    assert read_case(case, channels=3)[0].shape == (5, 3, 12, 14)


def test_labels_of_another_grid_or_value_are_refused_by_name(tmp_path: Path) -> None:
    path = volume(tmp_path) / "segmentation.nii.gz"
    (case,) = find_cases([tmp_path])
    whole = sitk.ReadImage(str(path))
    moved = sitk.Image(whole)
    moved.SetOrigin((0.0, 0.0, 0.0))
    for image, message in (
        (whole[:-1], "another grid than imaging.nii.gz .size"),
        (moved, "another grid than imaging.nii.gz .origin"),
        (whole * 3, "holds the labels 0, 3 where 0, 1 and 2 are known"),
        (sitk.Cast(whole, sitk.sitkFloat32) * 0.5, "values are not whole"),
    ):
        sitk.WriteImage(image, str(path))
        with pytest.raises(InputError, match=rf"case_00000.segmentation\.nii\.gz.*{message}"):
            load(case)


def test_cysts_of_kits23_are_kidney(tmp_path: Path) -> None:
    path = volume(tmp_path) / "segmentation.nii.gz"
    whole = sitk.ReadImage(str(path))
    masses = sitk.GetArrayFromImage(whole)
    at = np.flatnonzero(masses)
    masses.flat[at[::3]] = 2
    masses.flat[at[1::3]] = 3
    labelled = sitk.GetImageFromArray(masses)
    labelled.CopyInformation(whole)
    sitk.WriteImage(labelled, str(path))
    instances = path.parent / "instances"
    instances.mkdir()
    sitk.WriteImage(whole, str(instances / "cyst_instance-1_annotation-1.nii.gz"))
    (case,) = find_cases([tmp_path])
    loaded = load(case)
    merged = sitk.GetImageFromArray(np.where(masses == 3, 1, masses))
    merged.CopyInformation(whole)
    assert np.array_equal(loaded.labels, to_axial(merged)[0])
    assert loaded.labels.dtype == np.uint8 and 2 in loaded.labels
    assert loaded.warnings[-1] == "label 3 counts as kidney: a cyst, as in KiTS21 and KiTS23."


@pytest.mark.parametrize("file", ["imaging.nii.gz", "segmentation.nii.gz"])
def test_a_truncated_file_is_named(tmp_path: Path, file: str) -> None:
    path = volume(tmp_path) / file
    (case,) = find_cases([tmp_path])
    raw = gzip.decompress(path.read_bytes())
    for data in (path.read_bytes()[:-20], gzip.compress(raw[:-100]), b""):
        path.write_bytes(data)
        with pytest.raises(InputError, match=file):
            read_case(case)


def test_a_picture_is_one_slice_with_its_spacing_if_it_has_one(tmp_path: Path) -> None:
    pair(tmp_path, "a")
    index(tmp_path, [{"name": "a", "pixel_spacing_mm": 0.5}])
    (case,) = find_cases([tmp_path])
    voxels, labels, spacing_mm = read_case(case)
    assert np.array_equal(voxels[0, 0], gray(0))
    assert np.array_equal(labels[0], mask())
    assert spacing_mm == (1.0, 0.5, 0.5)
    (tmp_path / "index.csv").unlink()
    (case,) = find_cases([tmp_path])
    assert read_case(case)[2] == (1.0, 1.0, 1.0)


def test_colour_becomes_gray_only_where_it_is_gray(tmp_path: Path) -> None:
    pair(tmp_path, "a")
    path = tmp_path / "images" / "a.png"
    (case,) = find_cases([tmp_path])
    assert np.array_equal(read_case(case, channels=3)[0][0], np.repeat(gray(0)[None], 3, 0))
    save(np.repeat(gray(0)[..., None], 3, 2), path)
    assert np.array_equal(read_case(case)[0][0, 0], gray(0))
    save(gray(0, (6, 8, 3)), path)
    assert read_case(case, channels=3)[0].shape == (1, 3, 6, 8)
    with pytest.raises(InputError, match=r"a\.png is in colour.*--in-channels 3"):
        read_case(case)


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    pair(tmp_path, "a")
    save(mask((8, 6)), tmp_path / "masks" / "a.png")
    with pytest.raises(InputError, match=r"a\.png has 6 x 8 pixels and its image 8 x 6"):
        read_case(find_cases([tmp_path])[0])


# Real data


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the data of the development machine")
def test_slices_of_kits19_are_read_with_their_spacing() -> None:
    cases = find_cases([SHARED / "kits19_slices"])
    assert (len(cases), len(patients_of(cases))) == (70, 29)
    _, labels, spacing_mm = read_case(cases[0])
    assert labels.max() == 2
    assert 0.4 < spacing_mm[1] < 1.1
