"""What is wrong with the data is found, named and told in one table before training."""

from __future__ import annotations

import gzip
import json
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import toys
from PIL import Image

from KidneySegLib.errors import Cancelled, InputError
from UNetTrainerLib import check as checking
from UNetTrainerLib.cases import Case, find_cases, find_everything
from UNetTrainerLib.check import Checked, Finding, check, table, usable_cases

SHAPE = (7, 12, 14)


def volume(
    folder: Path,
    name: str = "case_00000",
    ct: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    **how: Any,
) -> Path:
    """A case folder in the axes of KiTS19 with noise and a kidney in its middle slices."""
    case = folder / name
    case.mkdir(parents=True)
    if ct is None:
        rng = np.random.default_rng(int(name[-5:]) if name[-5:].isdecimal() else 7)
        ct = rng.integers(-1000, 1000, SHAPE, dtype=np.int16)
    if labels is None:
        labels = np.zeros(ct.shape, np.uint8)
        labels[2:5, 4:8, 5:9] = 1
    for file, array in (("imaging", ct), ("segmentation", labels)):
        image = toys.image_of(array, **{"order": (2, 1, 0), **how})
        sitk.WriteImage(image, str(case / f"{file}.nii.gz"))
    return case


def picture(folder: Path, name: str, seed: int = 0, label: int = 1, colours: int = 1) -> None:
    rng = np.random.default_rng(seed)
    shape = (6, 8) if colours == 1 else (6, 8, colours)
    mask = np.zeros((6, 8), np.uint8)
    mask[2:4, 2:4] = label
    for kind, array in (("images", rng.integers(0, 256, shape, np.uint8)), ("masks", mask)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / kind / f"{name}.png")


def looked_at(*folders: Path, **how: Any) -> Checked:
    cases, incomplete = find_everything(folders)
    return check(cases, incomplete, **how)


def of(checked: Checked, name: str) -> list[Finding]:
    return [one for one in checked.findings if one.name == name]


def only(checked: Checked) -> Finding:
    (finding,) = checked.findings
    return finding


def test_good_data_have_no_findings_and_a_summary(tmp_path: Path) -> None:
    for number in range(3):
        volume(tmp_path / "kits", f"case_{number:05d}")
    checked = looked_at(tmp_path / "kits", workers=2)
    assert checked.findings == ()
    assert checked.labels == {1}
    assert usable_cases(checked) == list(checked.cases) == checked.usable
    text = table(checked)
    assert text.startswith("Nothing is wrong")
    assert (
        "3 of 3 cases usable: 3 volumes, 0 pictures, 3 patients, 21 slices (43% with kidney)"
        in (text)
    )


@pytest.mark.parametrize("file", ["imaging.nii.gz", "segmentation.nii.gz"])
def test_a_truncated_file_is_unusable_however_it_was_truncated(tmp_path: Path, file: str) -> None:
    whole = (volume(tmp_path, "case_00000") / file).read_bytes()
    raw = gzip.decompress(whole)
    for number, data in enumerate((whole[:-30], gzip.compress(raw[:-500]), whole[:10], b""), 1):
        (volume(tmp_path, f"case_{number:05d}") / file).write_bytes(data)
    checked = looked_at(tmp_path)
    assert [one.name for one in checked.unusable] == [f"case_{n:05d}" for n in range(1, 5)]
    assert all(one.sentence.startswith(file) for one in checked.unusable)
    assert [case.name for case in checked.usable] == ["case_00000"]


def _moved(image: sitk.Image) -> sitk.Image:
    moved = sitk.Image(image)
    moved.SetOrigin([position + 50 for position in image.GetOrigin()])
    return moved


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda image: image[:-1], r"has 6 x 12 x 14 voxels and imaging\.nii\.gz 7 x 12 x 14"),
        (_moved, r"lies on another grid than imaging\.nii\.gz \(origin"),
        (lambda image: image * 5, "holds the labels 0, 5 where 0, 1 and 2 are known"),
        (lambda image: sitk.Cast(image, sitk.sitkFloat32) * 0.5, "its values are not whole"),
        (lambda image: image * 0, "holds no label at all"),
    ],
)
def test_labels_that_do_not_fit_are_unusable(tmp_path: Path, change: Any, sentence: str) -> None:
    path = volume(tmp_path) / "segmentation.nii.gz"
    sitk.WriteImage(change(sitk.ReadImage(str(path))), str(path))
    finding = only(looked_at(tmp_path))
    assert finding.severity == "unusable"
    assert re.match(rf"segmentation\.nii\.gz.*{sentence}", finding.sentence)


def test_a_grid_that_does_not_fit_is_found_without_reading_the_voxels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = volume(tmp_path) / "segmentation.nii.gz"
    sitk.WriteImage(sitk.ReadImage(str(path))[:-1], str(path))
    monkeypatch.setattr(checking, "load", None)
    assert only(looked_at(tmp_path)).severity == "unusable"


def test_pictures_that_do_not_fit_are_unusable(tmp_path: Path) -> None:
    for name in "abcd":
        picture(tmp_path, f"{name}_1")
    (tmp_path / "index.csv").write_text("name\na_1\nb_1\nc_1\nd_1\n")
    Image.new("L", (9, 6)).save(tmp_path / "masks" / "a_1.png")
    (tmp_path / "images" / "b_1.png").write_bytes(b"no picture")
    Image.new("L", (8, 6), 9).save(tmp_path / "masks" / "c_1.png")
    picture(tmp_path, "d_1", colours=3)
    found = {one.name: one.sentence for one in looked_at(tmp_path).unusable}
    assert "a_1.png has 9 x 6 pixels and a_1.png 8 x 6" in found["a_1"]
    assert "b_1.png cannot be read as a picture" in found["b_1"]
    assert "c_1.png holds 9 where" in found["c_1"]
    assert "--in-channels 3" in found["d_1"]
    assert "d_1" not in {one.name for one in looked_at(tmp_path, channels=3).unusable}


def test_repeated_slices_are_noted_with_those_that_lack_their_labels(tmp_path: Path) -> None:
    ct = np.random.default_rng(0).integers(-1000, 1000, SHAPE, dtype=np.int16)
    ct[4], ct[6] = ct[3], ct[2]  # the first has the labels of its twin, the second has none
    volume(tmp_path, ct=ct)
    checked = looked_at(tmp_path)
    assert only(checked).severity == "note"
    assert "again at 4 and 6 (from the head, counted from 0), 1 of them with other" in (
        only(checked).sentence
    )
    facts = checked.facts[checked.cases[0]]
    assert (facts.repeats, facts.mislabelled) == ((4, 6), (6,))
    assert len(usable_cases(checked)) == 1


def test_empty_slices_repeat_nothing(tmp_path: Path) -> None:
    ct = np.random.default_rng(0).integers(-1000, 1000, SHAPE, dtype=np.int16)
    ct[:2], ct[5:] = -1024, -1024
    volume(tmp_path, ct=ct)
    assert looked_at(tmp_path).findings == ()


def test_another_size_spacing_or_order_of_axes_is_noted_and_used(tmp_path: Path) -> None:
    for number in range(4):
        volume(tmp_path, f"case_{number:05d}")
    wide = np.random.default_rng(9).integers(-1000, 1000, (7, 12, 20), dtype=np.int16)
    volume(tmp_path, "case_00160", ct=wide)
    volume(tmp_path, "case_00161", spacing_mm=(6.0, 0.55, 0.7))
    volume(tmp_path, "case_00162", spacing_mm=(60.0, 5.5, 7.0))
    volume(tmp_path, "case_00163", order=(0, 1, 2))
    checked = looked_at(tmp_path)
    assert {one.severity for one in checked.findings} == {"note"}
    assert len(usable_cases(checked)) == 8
    (size,), (pixel,), (slices,), (axes,) = (of(checked, f"case_00{n}") for n in range(160, 164))
    assert size.sentence == "has slices of 20 x 12, where 14 x 12 is usual."
    assert "pixels 0.7 mm apart, far from the usual 7 mm" in pixel.sentence
    assert "slices 60 mm apart, far from the usual 6 mm" in slices.sentence
    assert "axes in another order" in axes.sentence


def test_sizes_are_not_odd_where_none_is_usual(tmp_path: Path) -> None:
    for number, columns in enumerate((14, 14, 16, 18)):
        ct = np.random.default_rng(number).integers(-999, 999, (7, 12, columns), dtype=np.int16)
        volume(tmp_path, f"case_{number:05d}", ct=ct)
    assert looked_at(tmp_path).findings == ()


def test_a_tumour_without_a_kidney_and_imaging_that_is_not_hu_are_noted(tmp_path: Path) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:4, 3:5, 3:5] = 2
    gray = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.int16)
    volume(tmp_path, ct=gray, labels=labels)
    hu, tumour = (one.sentence for one in looked_at(tmp_path).findings)
    assert "imaging.nii.gz has 8-bit gray values" in hu
    assert "tumour (label 2) without a kidney" in tumour


def test_one_patient_in_volumes_and_slices_is_noted(tmp_path: Path) -> None:
    volume(tmp_path / "kits", "case_00025")
    picture(tmp_path / "slices", "x")
    (tmp_path / "slices" / "index.csv").write_text("name,kits19_case\nx,25\n")
    finding = only(looked_at(tmp_path / "kits", tmp_path / "slices"))
    assert (finding.name, finding.severity) == ("x", "note")
    assert "case_00025, who is in kits too: taken as one patient" in finding.sentence


def test_an_extra_case_of_a_patient_is_said_to_keep_them_from_validating(tmp_path: Path) -> None:
    volume(tmp_path / "kits", "case_00025")
    picture(tmp_path / "slices", "x")
    (tmp_path / "slices" / "index.csv").write_text("name,kits19_case\nx,25\n")
    cases, extra = (find_cases([tmp_path / name]) for name in ("kits", "slices"))
    finding = only(check([*cases, *extra], extra=extra))
    assert finding.sentence == (
        "is of case_00025, who is in kits too: must not validate, since this case trains."
    )


def test_the_same_imaging_under_two_patients_is_noted(tmp_path: Path) -> None:
    ct = np.random.default_rng(0).integers(-1000, 1000, SHAPE, dtype=np.int16)
    volume(tmp_path, "case_00001", ct=ct)
    volume(tmp_path, "case_00002", ct=ct)
    finding = only(looked_at(tmp_path))
    assert finding.name == "case_00002"
    assert "shows the same as case_00001" in finding.sentence


def test_patients_told_from_file_names_are_said_so_once(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / "us", f"anna_frame_{number}", seed=number)
    checked = looked_at(tmp_path / "us")
    assert "(anna from anna_frame_0.png)" in only(checked).sentence
    assert "us " in table(checked)


def test_patients_that_an_index_leaves_out_are_said_to_be_told_from_file_names(
    tmp_path: Path,
) -> None:
    for number, name in enumerate(("a_1", "b_1", "c_1")):
        picture(tmp_path / "us", name, seed=number)
    index = tmp_path / "us" / "index.csv"
    index.write_text("name,patient_id\na_1,anna\nb_1,anna\nc_1,carl\n")
    sentence = only(looked_at(tmp_path / "us")).sentence
    assert "names no patient for 3 of 3 pictures" in sentence and "(a from a_1.png)" in sentence
    index.write_text("name,patient\na_1,anna\nb_1,anna\nc_1,\n")
    sentence = only(looked_at(tmp_path / "us")).sentence
    assert "names no patient for 1 of 3 pictures" in sentence and "(c from c_1.png)" in sentence
    index.write_text("name,patient\na_1,anna\nb_1,anna\nc_1,carl\n")
    assert not looked_at(tmp_path / "us").findings


def test_what_git_lfs_left_unfetched_says_how_to_fetch_it(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (volume(tmp_path, "case_00001") / "imaging.nii.gz").write_text(pointer)
    picture(tmp_path, "a_1")
    (tmp_path / "images" / "a_1.png").write_text(pointer)
    for name, file in (("case_00001", "imaging.nii.gz"), ("a_1", "a_1.png")):
        (finding,) = of(looked_at(tmp_path), name)
        assert finding.severity == "unusable"
        assert finding.sentence.startswith(f"{file} is a pointer of Git LFS")
        assert "git lfs pull" in finding.sentence


def test_missing_parts_are_in_the_table_and_alike_ones_share_a_row(tmp_path: Path) -> None:
    for number in range(8):
        volume(tmp_path, f"case_{number:05d}")
    for number in range(1, 7):
        (tmp_path / f"case_{number:05d}" / "imaging.nii.gz").unlink()
    (tmp_path / "case_00007" / "segmentation.nii.gz").unlink()
    (tmp_path / "case_00007").rename(tmp_path / "case_00210")
    checked = looked_at(tmp_path)
    text = table(checked)
    lines = text.splitlines()
    assert lines[0].split() == ["case", "what", "what", "happens"]
    assert lines[1].startswith("case_00001 and 5 more  has no imaging.nii.gz")
    assert lines[1].endswith("unusable")
    assert "case_00006" in text
    (left_out,) = (line for line in lines if line.startswith("case_00210"))
    assert left_out.endswith("left out")
    assert len({line.rindex("  ") for line in (lines[0], lines[1], left_out)}) == 1
    assert max(map(len, lines)) <= 100
    assert "1 of 7 cases usable" in text


def test_unusable_cases_stop_unless_they_are_skipped(tmp_path: Path) -> None:
    for number in range(2):
        volume(tmp_path, f"case_{number:05d}")
    (tmp_path / "case_00001" / "imaging.nii.gz").write_bytes(b"")
    checked = looked_at(tmp_path)
    with pytest.raises(InputError, match=r"1 of 2 cases cannot be used \(case_00001\).*--skip-bad"):
        usable_cases(checked)
    assert [case.name for case in usable_cases(checked, skip_bad=True)] == ["case_00000"]
    (tmp_path / "case_00000" / "imaging.nii.gz").write_bytes(b"")
    with pytest.raises(InputError, match="No case can be used"):
        usable_cases(looked_at(tmp_path), skip_bad=True)


def test_classes_that_no_label_holds_are_refused(tmp_path: Path) -> None:
    picture(tmp_path, "a_1")
    with pytest.raises(InputError, match=r"No mask holds label 2 \(tumour\).*--classes kidney\."):
        usable_cases(looked_at(tmp_path), classes="kidney-tumour")
    picture(tmp_path, "b_1", seed=1, label=2)
    assert len(usable_cases(looked_at(tmp_path), classes="kidney-tumour")) == 2
    picture(tmp_path, "a_1", label=2)
    with pytest.raises(InputError, match=r"No mask holds label 1 \(kidney\)"):
        usable_cases(looked_at(tmp_path), classes="kidney-tumour")
    for name in ("a_1", "b_1"):
        picture(tmp_path, name, label=0)
    with pytest.raises(InputError, match="No mask holds a kidney"):
        usable_cases(looked_at(tmp_path))


# Memory of earlier checks


def test_unchanged_cases_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        volume(tmp_path / "kits", f"case_{number:05d}")
    (tmp_path / "kits" / "case_00001" / "imaging.nii.gz").write_bytes(b"x")
    memory = tmp_path / "checked.json"
    first = looked_at(tmp_path / "kits", remembered=memory)
    assert (first.remembered, len(first.usable)) == (0, 2)

    read: list[str] = []
    load = checking.load

    def watched(case: Case, channels: int) -> Any:
        read.append(case.name)
        return load(case, channels)

    monkeypatch.setattr(checking, "load", watched)
    again = looked_at(tmp_path / "kits", remembered=memory)
    assert (again.findings, again.facts) == (first.findings, first.facts)
    assert again.remembered == 2
    assert read == []  # the bad one is refused by its header

    path = tmp_path / "kits" / "case_00002" / "segmentation.nii.gz"
    path.write_bytes(path.read_bytes()[:-20])
    changed = looked_at(tmp_path / "kits", remembered=memory)
    assert read == ["case_00002"]
    assert [one.name for one in changed.unusable] == ["case_00001", "case_00002"]


def test_a_file_changed_within_its_size_is_read_again(tmp_path: Path) -> None:
    path = volume(tmp_path / "kits") / "segmentation.nii.gz"
    memory = tmp_path / "checked.json"
    looked_at(tmp_path / "kits", remembered=memory)
    data = bytearray(path.read_bytes())
    data[-6] ^= 0xFF  # the check sum
    status = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert len(looked_at(tmp_path / "kits", remembered=memory).unusable) == 1


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b'{"layout": 1}',
        b'{"layout": 1, "cases": []}',
        b'{"layout": 999, "cases": {}}',
    ],
)
def test_a_damaged_memory_is_ignored_and_replaced(tmp_path: Path, damaged: bytes) -> None:
    volume(tmp_path / "kits")
    memory = tmp_path / "checked.json"
    memory.write_bytes(damaged)
    assert looked_at(tmp_path / "kits", remembered=memory).remembered == 0
    assert looked_at(tmp_path / "kits", remembered=memory).remembered == 1


def test_what_is_remembered_of_a_case_may_be_damaged_too(tmp_path: Path) -> None:
    volume(tmp_path / "kits")
    memory = tmp_path / "checked.json"
    looked_at(tmp_path / "kits", remembered=memory)
    whole = json.loads(memory.read_text())
    (key,) = whole["cases"]
    for facts in ({}, None, {**whole["cases"][key]["facts"], "labels": 3}):
        whole["cases"][key]["facts"] = facts
        memory.write_text(json.dumps(whole))
        assert looked_at(tmp_path / "kits", remembered=memory).remembered == 0


def test_pictures_are_looked_at_again_for_other_channels(tmp_path: Path) -> None:
    picture(tmp_path / "p", "a_1", colours=3)
    memory = tmp_path / "checked.json"
    assert len(looked_at(tmp_path / "p", channels=3, remembered=memory).usable) == 1
    assert len(looked_at(tmp_path / "p", channels=1, remembered=memory).usable) == 0


# Running it


def test_progress_counts_every_case_once_whatever_becomes_of_it(tmp_path: Path) -> None:
    for number in range(4):
        volume(tmp_path, f"case_{number:05d}")
    (tmp_path / "case_00001" / "imaging.nii.gz").write_bytes(b"")
    (tmp_path / "case_00002" / "segmentation.nii.gz").write_bytes(
        (tmp_path / "case_00002" / "segmentation.nii.gz").read_bytes()[:-9]
    )
    told: list[tuple[int, int, str]] = []
    looked_at(tmp_path, workers=2, progress=lambda *what: told.append(what))
    assert [(done, total) for done, total, _ in told] == [(n, 4) for n in range(1, 5)]
    assert sorted(name for _, _, name in told) == [f"case_{n:05d}" for n in range(4)]


def test_a_cancelled_check_stops_and_keeps_what_it_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(9):
        volume(tmp_path / "kits", f"case_{number:05d}")
    memory = tmp_path / "checked.json"
    read: list[str] = []
    load = checking.load

    def watched(case: Case, channels: int) -> Any:
        read.append(case.name)
        time.sleep(0.02)
        return load(case, channels)

    monkeypatch.setattr(checking, "load", watched)

    def cancel(done: int, total: int, name: str) -> None:
        if done == 3:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        looked_at(tmp_path / "kits", workers=1, remembered=memory, progress=cancel)
    assert len(read) < 9
    assert looked_at(tmp_path / "kits", remembered=memory).remembered == 3
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


def test_no_more_cases_are_in_memory_than_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(8):
        volume(tmp_path, f"case_{number:05d}")
    lock, at_once, most = threading.Lock(), 0, 0
    read = checking._read

    def counted(case: Case, channels: int) -> Any:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        try:
            return read(case, channels)
        finally:
            with lock:
                at_once -= 1

    monkeypatch.setattr(checking, "_read", counted)
    assert len(check(find_cases([tmp_path]), workers=2).usable) == 8
    assert most <= 2


def test_reading_in_threads_leaves_standard_error_as_it_was(tmp_path: Path) -> None:
    for number in range(12):
        volume(tmp_path, f"case_{number:05d}")
    before = os.fstat(2)
    for _ in range(4):
        looked_at(tmp_path, workers=4)
    after = os.fstat(2)
    assert (after.st_dev, after.st_ino) == (before.st_dev, before.st_ino)


def test_a_disk_that_fails_while_reading_makes_the_case_unusable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume(tmp_path)

    def fails(case: Case, channels: int) -> Any:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checking, "load", fails)
    assert "cannot be read (Input/output error)" in only(looked_at(tmp_path)).sentence


def test_nothing_is_written_beside_the_data(tmp_path: Path) -> None:
    volume(tmp_path)
    before = toys.everything_in(tmp_path)
    looked_at(tmp_path)
    assert toys.everything_in(tmp_path) == before


# Real data

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the data of the development machine")
def test_masks_of_kits19_without_their_imaging_are_all_missed() -> None:
    cases, incomplete = find_everything([SHARED / "kits19_masks"])
    assert not cases
    checked = check(cases, incomplete)
    assert len(checked.unusable) == 5
    assert "case_00160" in table(checked)
    with pytest.raises(InputError, match="No case can be used"):
        usable_cases(checked, skip_bad=True)
