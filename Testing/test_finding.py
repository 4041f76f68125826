"""What counts as a CT below a folder or in a list, and what does not."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from test_reading import CORONAL, ROOT, write_series

from KidneySegLib.errors import InputError, UsageError
from KidneySegLib.finding import Case, find_cases, read_list, with_references
from KidneySegLib.reading import read_ct

SLICES = np.arange(8 * 6 * 7).reshape(8, 6, 7).astype(np.uint16)


def volume(path: Path, kind: type = np.int16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray((np.arange(4 * 5 * 6).reshape(4, 5, 6) - 60).astype(kind))
    sitk.WriteImage(image, str(path))
    return path


def names(folder: Path, **options) -> list[str]:
    return [case.name for case in find_cases(folder, **options)[0]]


def reasons(folder: Path) -> list[str]:
    return sorted(one.reason for one in find_cases(folder)[1])


# --- Files ------------------------------------------------------------------------------------


def test_every_kind_of_volume_is_found_at_any_depth(tmp_path):
    for name in ("a.nii.gz", "b/b.nii", "b/c/d.nrrd", "b/c/e.mha", "f.mhd"):
        volume(tmp_path / name)
    shutil.copy(tmp_path / "a.nii.gz", tmp_path / "G.NII.GZ")  # ITK writes no such name
    (tmp_path / "notes.txt").write_text("no CT")
    (tmp_path / "table.csv").write_text("a,b")
    assert names(tmp_path) == ["a", "b/b", "b/c/d", "b/c/e", "f", "G"]


def test_a_case_folder_is_one_ct_whatever_else_it_holds(tmp_path):
    for name in ("imaging", "segmentation", "sides", "aorta"):
        volume(tmp_path / "case_00001" / f"{name}.nii.gz")
    volume(tmp_path / "case_00002" / "segmentation.nii.gz")  # half-downloaded
    (case,) = find_cases(tmp_path)[0]
    assert (case.name, case.source) == ("case_00001", tmp_path / "case_00001")
    assert names(tmp_path / "case_00001") == ["case_00001"]


@pytest.mark.parametrize(
    "name",
    [
        "segmentation.nii.gz", "ct_seg.nii.gz", "labels.nrrd", "LabelMap.nii", "ct-mask.mha",
        "patient 1 GT.nii.gz", "ct_kidneys.nii.gz", "sides.nii.gz",
    ],
)  # fmt: skip
def test_a_label_map_is_no_ct_by_its_name(tmp_path, name):
    volume(tmp_path / name)
    assert names(tmp_path) == [] and reasons(tmp_path) == ["a label map by its name"]


@pytest.mark.parametrize("name", ["kidney_001.nii.gz", "segal.nii.gz", "Kidneys2019.nii.gz"])
def test_a_ct_may_have_the_kidney_in_its_name(tmp_path, name):
    volume(tmp_path / name)
    assert len(names(tmp_path)) == 1


def test_a_segmentation_of_slicer_and_8_bit_values_are_no_ct(tmp_path):
    volume(tmp_path / "ct_001.seg.nrrd")
    volume(tmp_path / "liver.nii.gz", np.uint8)
    assert reasons(tmp_path) == [
        "8-bit values, as label maps have and CTs do not",
        "a segmentation",
    ]


def test_a_damaged_file_is_left_for_its_turn(tmp_path):
    (tmp_path / "broken.nii.gz").write_text("no image")
    assert names(tmp_path) == ["broken"]


def test_hidden_files_and_the_results_are_passed_over(tmp_path):
    for name in (".hidden.nii.gz", ".git/a.nii.gz", "out/deep/b.nii.gz", "c.nii.gz"):
        volume(tmp_path / name)
    assert names(tmp_path, skip=[tmp_path / "out"]) == ["c"]


def test_names_are_unique_on_file_systems_that_ignore_case(tmp_path):
    for name in ("ct.nii.gz", "ct.nrrd", "ct_2.nrrd"):
        volume(tmp_path / name)
    assert names(tmp_path) == ["ct", "ct_3", "ct_2"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every name is text")
def test_a_ct_whose_name_is_no_utf_8_is_found_under_a_name_that_is(tmp_path):
    case = tmp_path / os.fsdecode(b"M\xfcller")
    case.mkdir()
    (case / "imaging.nii.gz").touch()
    (found,) = find_cases(tmp_path)[0]
    assert (found.name, found.source) == ("M\\udcfcller", case)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_a_folder_behind_a_link_is_searched_once(tmp_path):
    volume(tmp_path / "data" / "a.nii.gz")
    (tmp_path / "data" / "back").symlink_to(tmp_path / "data")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "data")
    assert names(tmp_path / "in") == ["link/a"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_a_folder_that_may_not_be_read_is_told(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    assert "cannot be opened" in reasons(tmp_path)[0]


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(InputError, match="is no folder"):
        find_cases(tmp_path / "none")


# --- DICOM ------------------------------------------------------------------------------------


def test_each_ct_series_of_a_study_is_taken(tmp_path):
    study = tmp_path / "patient" / "study"
    write_series(study, SLICES, ROOT + "1", description="Portal venous 3.0")
    write_series(study, SLICES + 5, ROOT + "2", description="Arterial/early")
    write_series(tmp_path / "other", SLICES, ROOT + "3", suffix="")
    cases, left_out = find_cases(tmp_path)
    assert [case.name for case in cases] == [
        "other", "patient/study/Arterial_early", "patient/study/Portal_venous_3.0",
    ]  # fmt: skip
    assert left_out == []
    for case, first in zip(cases, (0, 5, 0), strict=True):
        assert len(case.files) == 8
        read = read_ct(case.source, case.series_uid, case.files)
        assert sitk.GetArrayFromImage(read.image).min() == first


def test_scouts_reformats_and_other_modalities_are_left_out_with_reasons(tmp_path):
    write_series(tmp_path / "ct", SLICES, ROOT + "1")
    write_series(
        tmp_path / "scout", SLICES[:1], ROOT + "2", image_type="ORIGINAL\\PRIMARY\\LOCALIZER"
    )
    write_series(tmp_path / "mr", SLICES, ROOT + "3", modality="MR")
    write_series(tmp_path / "timing", SLICES[:3], ROOT + "4")
    write_series(tmp_path / "coronal", SLICES, ROOT + "5", directions=CORONAL, step=(0.0, 3.0, 0.0))
    write_series(tmp_path / "mip", SLICES, ROOT + "6", image_type="DERIVED\\SECONDARY\\MIP")
    assert names(tmp_path) == ["ct"]
    assert reasons(tmp_path) == [
        "a scout", "derived from another series of its study", "fewer than 5 slices", "not CT",
        "not axial",
    ]  # fmt: skip


def test_a_derived_series_is_taken_where_there_is_no_original(tmp_path):
    write_series(tmp_path, SLICES, image_type="DERIVED\\PRIMARY\\AXIAL")
    assert len(names(tmp_path)) == 1


def test_a_series_in_several_folders_is_one_ct(tmp_path):
    write_series(tmp_path / "CD" / "D1", SLICES, keep=range(5))
    write_series(tmp_path / "CD" / "D2", SLICES, keep=range(5, 8))
    (case,) = find_cases(tmp_path)[0]
    assert len(case.files) == 8
    assert read_ct(case.source, case.series_uid, case.files).image.GetSize() == (7, 6, 8)


def test_patients_whose_identifiers_were_made_alike_stay_apart(tmp_path):
    write_series(tmp_path / "anna", SLICES)
    write_series(tmp_path / "bert", SLICES + 9)
    cases = find_cases(tmp_path)[0]
    assert [case.name for case in cases] == ["anna", "bert"]
    assert [len(case.files) for case in cases] == [8, 8]


# --- Lists ------------------------------------------------------------------------------------


def table(tmp_path: Path, text: str, encoding: str = "utf-8") -> Path:
    path = tmp_path / "list.csv"
    path.write_text(text, encoding=encoding)
    return path


def test_a_list_names_inputs_references_and_results(tmp_path):
    path = table(
        tmp_path,
        "input,name,reference,series\n"
        "a/ct.nii.gz,first,a/seg.nii.gz,\n"
        f"{tmp_path}/b/ct.nii.gz,,,1.2.3\n"
        "\n"
        '"c, d/ct.nii.gz",deep/er,,\n',
    )
    cases = read_list(path)
    assert [case.name for case in cases] == ["first", "b", "deep/er"]
    assert cases[0].source == tmp_path / "a/ct.nii.gz"
    assert cases[0].reference == tmp_path / "a/seg.nii.gz"
    assert cases[1].source == tmp_path / "b/ct.nii.gz" and cases[1].series_uid == "1.2.3"
    assert cases[2].source == tmp_path / "c, d/ct.nii.gz" and cases[2].reference is None
    assert all(case.listed for case in cases)


def test_a_list_from_a_german_spreadsheet_is_read(tmp_path):
    path = table(tmp_path, "Input;Name\r\nct.nii.gz;Müller\r\n", "utf-8-sig")
    (case,) = read_list(path)
    assert (case.name, case.source) == ("Müller", tmp_path / "ct.nii.gz")


def test_another_column_can_name_the_references(tmp_path):
    path = table(tmp_path, "input,Reader_2\nct.nii.gz,r2.nii.gz\n")
    assert read_list(path)[0].reference is None
    assert read_list(path, "reader_2")[0].reference == tmp_path / "r2.nii.gz"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file\nct.nii.gz\n", "has no column 'input'"),
        ("", "has no column 'input'"),
        ("input,name\n,first\n", "line 2, names no input"),
        ("name,input\nfirst,ct.nii.gz\nsecond\n", "line 3, names no input"),
        ("input,name\nct.nii.gz,../up\n", "is no name for results"),
        ("input,name\nct.nii.gz,/root\n", "is no name for results"),
        ("input,name\nct.nii.gz,C:\\x\n", "is no name for results"),
    ],
)
def test_a_table_that_is_no_list_is_refused(tmp_path, text, message):
    with pytest.raises(UsageError, match=message):
        read_list(table(tmp_path, text))


def test_a_list_in_another_encoding_is_refused(tmp_path):
    with pytest.raises(UsageError, match="UTF-8"):
        read_list(table(tmp_path, "input\nMüller.nii.gz\n", "latin-1"))


# --- References -------------------------------------------------------------------------------


def test_references_are_found_by_the_name_of_the_case(tmp_path):
    inputs, references = tmp_path / "in", tmp_path / "ref"
    for name in ("a/ct.nii.gz", "b.nii.gz", "c/imaging.nii.gz", "d.nii.gz", "e/one.nii.gz",
                 "e/two.nii.gz", "f/ct.nii.gz"):  # fmt: skip
        volume(inputs / name)
    for name in ("a/ct.nrrd", "b.seg.nrrd", "c/segmentation.nii.gz", "e/segmentation.nii.gz",
                 "f/sides.nii.gz"):  # fmt: skip
        volume(references / name)
    found = {
        case.name: case.reference and case.reference.relative_to(references).as_posix()
        for case in with_references(find_cases(inputs)[0], references)
    }
    assert found == {
        "a/ct": "a/ct.nrrd",
        "b": "b.seg.nrrd",
        "c": "c/segmentation.nii.gz",
        "d": None,
        "e/one": None,  # of two CTs, the folder's reference could be either's
        "e/two": None,
        "f/ct": "f/sides.nii.gz",
    }


def test_the_input_may_hold_the_references(tmp_path):
    volume(tmp_path / "case_00001" / "imaging.nii.gz")
    volume(tmp_path / "case_00001" / "segmentation.nii.gz")
    volume(tmp_path / "ct.nii.gz")
    cases = with_references(find_cases(tmp_path)[0], tmp_path)
    expected = tmp_path / "case_00001" / "segmentation.nii.gz"
    assert [case.reference for case in cases] == [expected, None]
    case = tmp_path / "case_00001"
    assert with_references(find_cases(case)[0], case)[0].reference == expected


def test_a_reference_that_tells_left_from_right_comes_first(tmp_path, toy_ct, toy_sides):
    case = tmp_path / "case"
    case.mkdir()
    shutil.copy(toy_ct, case / "imaging.nii.gz")
    for name in ("segmentation.nii.gz", "sides.nii.gz"):
        shutil.copy(toy_sides, case / name)
    (found,) = with_references(find_cases(tmp_path)[0], tmp_path)
    assert found.reference == case / "sides.nii.gz"


def test_a_ct_with_the_longest_of_names_has_no_reference_and_that_is_no_error(tmp_path):
    case = Case("x" * 250, tmp_path / "ct.nii.gz")
    assert with_references([case], tmp_path) == [case]
