"""The batch: what it writes, how it goes on after a stop, and that no CT stops the others."""

from __future__ import annotations

import csv
import errno
import gzip
import os
import shutil
import signal
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import slicerhost
import toys
from test_reading import ROOT, write_series

from KidneySegLib import batch, bundle, dicom, reading, segment
from KidneySegLib import writing as writing_room
from KidneySegLib.backends import choosing
from KidneySegLib.errors import InputError, KidneySegError
from KidneySegLib.network import NetworkParameters
from KidneySegLib.reading import read_ct
from KidneySegLib.writing import MERGED, SIDES

KIDNEYSEG = Path(__file__).resolve().parent.parent / "KidneySeg"
SCRIPT = KIDNEYSEG / "Scripts" / "segment_batch.py"
# Only a test that fails waits so long.
PATIENCE_S = 30


@pytest.fixture
def run(tmp_path, toy_model, capsys):
    """The batch over `in` into `out`: its exit code, stdout and stderr."""

    def ran(*arguments) -> tuple[int, str, str]:
        given = [str(argument) for argument in arguments]
        for flag, value in (
            ("--input", tmp_path / "in"), ("--output", tmp_path / "out"),
            ("--model", toy_model.folder), ("--device", "cpu"), ("--precision", "float32"),
        ):  # fmt: skip
            if flag not in given:
                given += [flag, str(value)]
        try:
            code = batch.main(given)
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return ran


@pytest.fixture
def cts(tmp_path, toy_ct, toy_sides) -> Path:
    """Two CTs, one of them a case folder with its reference."""
    folder = tmp_path / "in"
    case = folder / "case_00001"
    case.mkdir(parents=True)
    shutil.copy(toy_ct, case / "imaging.nii.gz")
    shutil.copy(toy_sides, case / "segmentation.nii.gz")
    (folder / "deep").mkdir()
    shutil.copy(toy_ct, folder / "deep" / "ct.nii.gz")
    return folder


def rows(out: Path) -> dict[str, dict[str, str]]:
    with (out / "results.csv").open(encoding="utf-8", newline="") as file:
        return {row["case"]: row for row in csv.DictReader(file)}


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def voxels(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


# --- What it writes ---------------------------------------------------------------------------


def test_every_ct_gets_a_segmentation_and_a_row(run, tmp_path, cts, toy_sides):
    before = toys.everything_in(cts)
    code, out, err = run()
    assert (code, err) == (0, "")
    assert files(tmp_path / "out") == [
        "case_00001_kidneys.seg.nrrd", "deep/ct_kidneys.seg.nrrd", "results.csv",
    ]  # fmt: skip
    for name in files(tmp_path / "out")[:2]:
        np.testing.assert_array_equal(voxels(tmp_path / "out" / name), voxels(toy_sides))
        image = sitk.ReadImage(str(tmp_path / "out" / name))
        assert [image.GetMetaData(f"Segment{n}_ID") for n in (0, 1)] == [s.id for s in SIDES]
    found = rows(tmp_path / "out")
    assert list(found) == ["case_00001", "deep/ct"]
    labels = voxels(toy_sides)
    for row in found.values():
        for side, label in (("left", 1), ("right", 2)):
            ml = np.count_nonzero(labels == label) * np.prod(toys.SPACING_MM) / 1000
            assert float(row[f"{side}_ml"]) == pytest.approx(ml, abs=0.005)
        assert float(row["kidneys_ml"]) == pytest.approx(
            float(row["left_ml"]) + float(row["right_ml"]), abs=0.011
        )
        assert float(row["seconds"]) > 0 and row["model"] == "toy 0.1.0"
        assert row["error"] == row["dice"] == ""
    assert toys.everything_in(cts) == before
    lines = out.splitlines()
    assert "[1/2] case_00001: left 1" in lines[-2] and " s left)" in lines[-2]
    assert "[2/2] deep/ct: left 1" in lines[-1] and "left)" not in lines[-1]


def test_the_labels_are_those_of_the_one_walk(run, tmp_path, cts, toy_model):
    run()
    result = segment.segment(cts / "deep" / "ct.nii.gz", toy_model, device="cpu")
    written = sitk.ReadImage(str(tmp_path / "out/deep/ct_kidneys.seg.nrrd"))
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(result.labels)
    )


def test_dice_stands_where_there_is_a_reference(run, tmp_path, cts):
    code, out, _ = run("--reference", cts)
    assert code == 0 and out.count("Dice 1.000") == 1
    found = rows(tmp_path / "out")
    assert [found["case_00001"][f"dice{side}"] for side in ("", "_left", "_right")] == [
        "1.0000"
    ] * 3
    assert found["deep/ct"]["dice"] == ""


def test_one_segment_for_both_kidneys(run, tmp_path, cts, toy_kidney):
    assert run("--labels", "kidney")[0] == 0
    image = sitk.ReadImage(str(tmp_path / "out/deep/ct_kidneys.seg.nrrd"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), voxels(toy_kidney))
    assert image.GetMetaData("Segment0_ID") == MERGED[0].id and not image.HasMetaDataKey(
        "Segment1_ID"
    )


def test_a_list_is_worked_through_in_its_order(run, tmp_path, cts):
    table = tmp_path / "list.csv"
    table.write_text(
        "input,name,reference\n"
        "in/deep/ct.nii.gz,zoe,in/case_00001/segmentation.nii.gz\n"
        "in/none.nii.gz,nobody,\n"
        "in/case_00001,adam,\n"
    )
    code, _, err = run("--input", table)
    assert code == 1 and err == (
        f"1 of 3 CTs failed; see the column error in {tmp_path / 'out/results.csv'}.\n"
    )
    found = rows(tmp_path / "out")
    assert list(found) == ["zoe", "nobody", "adam"]
    assert found["zoe"]["dice"] == "1.0000" and found["adam"]["dice"] == ""
    assert found["nobody"]["error"] == f"{tmp_path}/in/none.nii.gz does not exist; check the path."


def test_each_series_of_a_dicom_study_is_segmented(run, tmp_path):
    ct, _ = toys.toy(shape=(12, 24, 28))
    for number in ("1", "2"):
        write_series(
            tmp_path / "in" / "study", ct, ROOT + number, description=f"phase {number}",
            step=(0.0, 0.0, -6.0),
        )  # fmt: skip
    assert run()[0] == 0
    found = rows(tmp_path / "out")
    assert list(found) == ["study/phase_1", "study/phase_2"]
    assert [row["series"] for row in found.values()] == [ROOT + "1", ROOT + "2"]
    assert (tmp_path / "out/study/phase_2_kidneys.seg.nrrd").is_file()


def test_a_label_map_under_another_name_is_left_out_and_no_failure(run, tmp_path, cts, toy_sides):
    labels = sitk.Cast(sitk.ReadImage(str(toy_sides)), sitk.sitkInt16)
    sitk.WriteImage(labels, str(cts / "organs.nii.gz"))
    for _ in range(2):
        code, out, _ = run()
        assert code == 0
    assert rows(tmp_path / "out")["organs"]["notes"] == "left out: a label map and no CT"
    assert "3 of them done already" in out


def test_list_shows_what_would_be_done_and_writes_nothing(run, tmp_path, cts):
    code, out, err = run("--list")
    assert (code, err) == (0, "") and not (tmp_path / "out").exists()
    assert out.splitlines()[-2:] == [
        f"case_00001: {cts / 'case_00001'}", f"deep/ct: {cts / 'deep/ct.nii.gz'}",
    ]  # fmt: skip


def test_names_that_the_terminal_cannot_show_do_no_harm(tmp_path, cts, toy_model):
    (cts / "deep").rename(cts / "Jiří Ω")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--input", str(cts), "--output", str(tmp_path / "o u t Ω"),
         "--list"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "Ji\\u0159\\xed \\u03a9/ct" in done.stdout


# --- Going on ---------------------------------------------------------------------------------


def test_finished_cts_are_skipped(run, tmp_path, cts):
    run()
    before = {
        name: (tmp_path / "out" / name).stat().st_mtime_ns for name in files(tmp_path / "out")
    }
    table = (tmp_path / "out/results.csv").read_text()
    code, out, err = run()
    assert (code, err) == (0, "") and "2 CTs, 2 of them done already" in out and "[" not in out
    assert (tmp_path / "out/results.csv").read_text() == table
    for name in files(tmp_path / "out")[:2]:
        assert (tmp_path / "out" / name).stat().st_mtime_ns == before[name]


def test_nothing_heavy_is_loaded_when_all_is_done(run, cts, monkeypatch):
    run()
    monkeypatch.setattr(choosing, "open_backend", None)
    assert run()[0] == 0


def redone(out: str) -> list[str]:
    return [line.split("] ")[1].split(":")[0] for line in out.splitlines() if line.startswith("[")]


def test_what_lacks_its_result_is_redone(run, tmp_path, cts):
    run()
    (tmp_path / "out/deep/ct_kidneys.seg.nrrd").unlink()
    _, out, _ = run()
    assert redone(out) == ["deep/ct"] and "[2/2] deep/ct" in out
    assert (tmp_path / "out/deep/ct_kidneys.seg.nrrd").is_file()


def test_what_lacks_its_row_is_redone(run, tmp_path, cts):
    """As a crash between a result and the table leaves it."""
    run()
    table = tmp_path / "out/results.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:2]))
    assert redone(run()[1]) == ["deep/ct"]


def test_a_changed_ct_is_redone_and_a_moved_one_is_not(run, tmp_path, cts):
    run()
    ct = sitk.ReadImage(str(cts / "deep/ct.nii.gz"))
    sitk.WriteImage(ct + 0, str(cts / "deep/ct.nii.gz"))
    os.utime(cts / "deep/ct.nii.gz", (1e9, 1e9))
    assert redone(run()[1]) == ["deep/ct"]
    cts.rename(tmp_path / "elsewhere")
    assert redone(run("--input", tmp_path / "elsewhere")[1]) == []


def test_results_inside_the_input_change_nothing(run, cts):
    out = cts / "case_00001" / "out"
    assert run("--input", cts / "case_00001", "--output", out)[0] == 0
    assert redone(run("--input", cts / "case_00001", "--output", out)[1]) == []


@pytest.mark.parametrize(
    "change", [("--labels", "kidney"), ("--keep-small",), ("--mirror",), ("--reference", "in")]
)
def test_other_options_redo_what_they_concern(run, tmp_path, cts, change):
    run()
    change = [str(tmp_path / word) if word == "in" else word for word in change]
    expected = ["case_00001"] if "--reference" in change else ["case_00001", "deep/ct"]
    assert redone(run(*change)[1]) == expected


def test_another_model_of_the_same_name_redoes_all(run, tmp_path, cts, toy_model):
    other = tmp_path / "models" / "toy"
    shutil.copytree(toy_model.folder, other)
    run("--model", other)
    card = other / "model.json"
    card.write_text(card.read_text().replace('"threshold": 0.5', '"threshold": 0.6'))
    assert len(redone(run("--model", other)[1])) == 2


def test_results_of_other_inputs_stay_in_the_table(run, tmp_path, cts):
    run("--input", cts / "deep")
    run("--input", cts / "case_00001")
    assert list(rows(tmp_path / "out")) == ["case_00001", "ct"]


# --- When something goes wrong ----------------------------------------------------------------


def test_a_bad_ct_does_not_stop_the_others_and_is_tried_again(run, tmp_path, cts, toy_ct):
    bad = cts / "case_00000.nii.gz"
    bad.write_text("no image")
    code, out, err = run()
    assert code == 1 and err.startswith("1 of 3 CTs failed")
    assert "[1/3] case_00000: error: " in out and redone(out)[1:] == ["case_00001", "deep/ct"]
    row = rows(tmp_path / "out")["case_00000"]
    assert "is called NIfTI but is none" in row["error"] and row["left_ml"] == ""
    assert "case_00000_kidneys.seg.nrrd" not in files(tmp_path / "out")
    assert redone(run()[1]) == ["case_00000"]
    shutil.copy(toy_ct, bad)
    code, out, err = run()
    assert (code, err, redone(out)) == (0, "", ["case_00000"])
    assert rows(tmp_path / "out")["case_00000"]["error"] == ""


@pytest.mark.parametrize("error", [MemoryError("too large"), ValueError("a defect")])
def test_whatever_happens_to_one_ct_the_others_are_segmented(
    run, tmp_path, cts, monkeypatch, error
):
    def walk(scan, *arguments, **options):
        if scan.name == "case_00001":
            raise error
        return segment.Result(**vars(real(scan, *arguments, **options)))

    real = segment.segment
    monkeypatch.setattr(segment, "segment", walk)
    assert run()[0] == 1
    found = rows(tmp_path / "out")
    assert found["case_00001"]["error"].endswith(f"{type(error).__name__}: {error}")
    assert found["deep/ct"]["error"] == ""


def test_a_reference_of_another_grid_fails_its_case_with_a_sentence(run, tmp_path, cts):
    small = toys.image_of(toys.toy(shape=(5, 6, 7))[1])
    sitk.WriteImage(small, str(cts / "case_00001" / "segmentation.nii.gz"))
    assert run("--reference", cts)[0] == 1
    assert "lies on another grid" in rows(tmp_path / "out")["case_00001"]["error"]


def test_a_reference_of_other_labels_fails_its_case_before_it_is_computed(
    run, tmp_path, cts, monkeypatch
):
    walk, computed = segment.segment, []

    def counted(scan, *arguments, **options):
        computed.append(scan.name)
        return walk(scan, *arguments, **options)

    monkeypatch.setattr(segment, "segment", counted)
    labels = sitk.ReadImage(str(cts / "case_00001" / "segmentation.nii.gz"))
    other = sitk.ChangeLabel(labels, {2: 3})
    sitk.WriteImage(other, str(cts / "case_00001" / "segmentation.nii.gz"))
    assert run("--reference", cts)[0] == 1
    found = rows(tmp_path / "out")
    assert "holds the values 1, 3" in found["case_00001"]["error"] and computed == ["ct"]
    assert not found["deep/ct"]["error"]


def test_a_listed_dicom_folder_with_a_file_that_cannot_be_opened_fails_alone(
    run, tmp_path, cts, monkeypatch
):
    known = dicom.is_dicom_file

    def is_dicom_file(path):
        if path.name == "a.dcm":
            raise InputError(f"{path} cannot be opened; check its permissions.")
        return known(path)

    write_series(tmp_path / "study", toys.toy(shape=(12, 24, 28))[0])
    (tmp_path / "study" / "a.dcm").touch()
    (tmp_path / "list.csv").write_text("input\nstudy\nin/deep/ct.nii.gz\n")
    monkeypatch.setattr(dicom, "is_dicom_file", is_dicom_file)
    code, _, err = run("--input", tmp_path / "list.csv")
    assert code == 1 and err.startswith("1 of 2 CTs failed")
    found = rows(tmp_path / "out")
    assert "a.dcm cannot be opened" in found["study"]["error"] and not found["ct"]["error"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every name is text")
def test_a_ct_whose_name_is_no_utf_8_gets_its_row_and_the_others_are_segmented(run, tmp_path, cts):
    (cts / "case_00001").rename(cts / os.fsdecode(b"M\xfcller"))
    for _ in range(2):
        code, out, err = run()
        assert code == 1 and err.startswith("1 of 2 CTs failed")
        assert "M\\udcfcller: error: " in out
        found = rows(tmp_path / "out")
        assert list(found) == ["deep/ct", "M\\udcfcller"] and not found["deep/ct"]["error"]
        assert "is not UTF-8" in found["M\\udcfcller"]["error"]
    assert len((tmp_path / "out/results.csv").read_text(encoding="utf-8").splitlines()) == 3


def test_a_second_run_into_the_same_folder_is_refused_and_loses_no_row(
    run, tmp_path, cts, monkeypatch
):
    walk, said = segment.segment, []

    def meanwhile(scan, *arguments, **options):
        if not said:
            said.append(None)
            said.append(run("--input", cts / "deep"))
        return walk(scan, *arguments, **options)

    monkeypatch.setattr(segment, "segment", meanwhile)
    assert run()[0] == 0
    code, _, err = said[1]
    assert code == 2 and err.startswith("error: Another run is writing into ")
    assert list(rows(tmp_path / "out")) == ["case_00001", "deep/ct"]
    assert run("--input", cts / "deep")[0] == 0
    assert list(rows(tmp_path / "out")) == ["ct", "case_00001", "deep/ct"]


def test_a_name_too_long_for_its_result_is_an_error_of_its_case(run, tmp_path, cts, toy_ct):
    long = cts / ("x" * 245 + ".nii")  # more than 255 characters with what is added to it
    long.write_bytes(gzip.decompress(toy_ct.read_bytes()))
    assert run("--reference", cts)[0] == 1
    found = rows(tmp_path / "out")
    assert "its name is too long" in found["x" * 245]["error"]
    assert not found["case_00001"]["error"] and not found["deep/ct"]["error"]


def test_a_result_that_cannot_be_written_is_an_error_of_its_case(run, tmp_path, cts):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "deep").write_text("a file where a folder is needed")
    assert run()[0] == 1
    found = rows(tmp_path / "out")
    assert "cannot be written" in found["deep/ct"]["error"] and found["case_00001"]["error"] == ""


def test_a_disk_that_is_full_for_a_while_fails_the_ct_that_met_it(run, tmp_path, cts, monkeypatch):
    write = writing_room.write_labels

    def write_labels(labels, path, segments):
        write(labels, path, segments)
        if "case_00001" in writing_room.asked_for(path).name:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing_room, "write_labels", write_labels)
    assert run()[0] == 1
    found = rows(tmp_path / "out")
    assert "the disk is full" in found["case_00001"]["error"] and not found["deep/ct"]["error"]
    assert found["case_00001"]["left_ml"] == "" and float(found["case_00001"]["seconds"]) > 0
    assert files(tmp_path / "out") == ["deep/ct_kidneys.seg.nrrd", "results.csv"]


def test_a_defect_in_reading_fails_its_ct_alone(run, tmp_path, cts, monkeypatch):
    read = reading.read_ct

    def read_ct(path, *arguments, **options):
        if "case_00001" in str(path):
            raise MemoryError("too large")
        return read(path, *arguments, **options)

    monkeypatch.setattr(reading, "read_ct", read_ct)
    assert run()[0] == 1
    found = rows(tmp_path / "out")
    assert list(found) == ["case_00001", "deep/ct"] and not found["deep/ct"]["error"]
    assert found["case_00001"]["error"].endswith("MemoryError: too large")


def test_the_next_ct_is_read_and_the_last_one_written_while_one_is_computed(
    run, tmp_path, cts, toy_ct, monkeypatch
):
    shutil.copy(toy_ct, cts / "last.nii.gz")
    events = {name: threading.Event() for name in ("read", "written", "computing")}
    read, walk, write = reading.read_ct, segment.segment, writing_room.write_labels

    def read_ct(path, *arguments, **options):
        scan = read(path, *arguments, **options)
        if path.name == "last.nii.gz":
            events["read"].set()
        return scan

    def second(scan, *arguments, **options):
        if scan.name == "ct":
            events["computing"].set()
            assert events["read"].wait(PATIENCE_S) and events["written"].wait(PATIENCE_S)
        return walk(scan, *arguments, **options)

    def write_labels(labels, path, segments):
        if "case_00001" in writing_room.asked_for(path).name:
            assert events["computing"].wait(PATIENCE_S)
        write(labels, path, segments)
        events["written"].set()

    monkeypatch.setattr(reading, "read_ct", read_ct)
    monkeypatch.setattr(segment, "segment", second)
    monkeypatch.setattr(writing_room, "write_labels", write_labels)
    assert run()[0] == 0
    assert list(rows(tmp_path / "out")) == ["case_00001", "deep/ct", "last"]


def test_a_table_that_somebody_has_open_does_not_stop_the_batch(run, tmp_path, cts, monkeypatch):
    """As Excel locks it on Windows."""
    write, tries = batch.Table.write, []

    def locked(table, first=()):
        tries.append(table)
        if len(tries) < 3:
            raise KidneySegError("results.csv cannot be written (Permission denied).")
        write(table, first)

    monkeypatch.setattr(batch.Table, "write", locked)
    code, _, err = run()
    assert code == 0 and err.count("warning: results.csv cannot be written") == 1
    assert len(rows(tmp_path / "out")) == 2


def test_the_walk_is_made_ready_once_for_all_cts(run, cts, monkeypatch):
    made = []
    real = choosing.open_backend

    def counted(*arguments):
        made.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(choosing, "open_backend", counted)
    run()
    assert len(made) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--input", "none"), 3, "none does not exist"),
        (("--input", "empty"), 3, "holds no CT"),
        (("--input", "table.csv"), 2, "has no column 'input'"),
        (("--reference", "reader_3"), 2, "reader_3 is neither a folder nor a column"),
        (("--model", "none"), 4, "There is no model 'none'"),
        (("--device", "gpu"), 2, "gpu"),
        (("--labels", "both"), 2, "invalid choice"),
        (("--output", "table.csv"), 2, "is a file"),
    ],
)
def test_a_batch_that_cannot_begin_says_why_in_one_line(
    run, tmp_path, cts, monkeypatch, arguments, code, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").write_text("file\na\n")
    got, _, err = run(*arguments)
    assert got == code and err.startswith("error: ") and err.count("\n") == 1 and message in err


def test_a_table_of_somebody_else_is_not_overwritten(run, tmp_path, cts):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/results.csv").write_text("mine,yours\n1,2\n")
    code, _, err = run()
    assert code == 2 and "is not overwritten" in err
    assert (tmp_path / "out/results.csv").read_text() == "mine,yours\n1,2\n"


def test_no_input_is_overwritten(run, tmp_path, cts, toy_sides):
    reference = tmp_path / "out" / "deep" / "ct_kidneys.seg.nrrd"
    reference.parent.mkdir(parents=True)
    shutil.copy(toy_sides, reference)
    table = tmp_path / "list.csv"
    table.write_text(f"input,name,reference\nin/deep/ct.nii.gz,deep/ct,{reference}\n")
    before = reference.read_bytes()
    code, _, err = run("--input", table)
    assert code == 2 and "is an input and is not overwritten" in err
    assert reference.read_bytes() == before


def test_a_missing_package_is_named_with_what_to_do(run, cts, monkeypatch):
    def missing(*arguments):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(choosing, "open_backend", missing)
    code, _, err = run()
    assert code == 1 and "The Python package torch is missing" in err and "press Segment" in err


# --- Stopping ---------------------------------------------------------------------------------


def test_a_stopped_batch_keeps_what_is_finished_and_goes_on(run, tmp_path, cts, monkeypatch):
    real = segment.segment

    def walk(scan, *arguments, **options):
        if scan.name == "ct":
            raise KeyboardInterrupt
        return real(scan, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(segment, "segment", walk)
        code, _, err = run()
    assert (code, err) == (130, "error: Stopped; run the same line again to go on.\n")
    assert files(tmp_path / "out") == ["case_00001_kidneys.seg.nrrd", "results.csv"]
    code, out, _ = run()
    assert code == 0 and redone(out) == ["deep/ct"]


def test_a_stop_lets_the_result_that_is_being_written_become_whole(run, tmp_path, cts, monkeypatch):
    writing, stopped = threading.Event(), threading.Event()
    write, walk = writing_room.write_labels, segment.segment

    def write_labels(*arguments):
        writing.set()
        assert stopped.wait(PATIENCE_S)
        write(*arguments)

    def stopping(scan, *arguments, **options):
        if scan.name == "ct":
            assert writing.wait(PATIENCE_S)
            stopped.set()
            raise KeyboardInterrupt
        return walk(scan, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(writing_room, "write_labels", write_labels)
        patch.setattr(segment, "segment", stopping)
        assert run()[0] == 130
    assert files(tmp_path / "out") == ["case_00001_kidneys.seg.nrrd", "results.csv"]
    assert list(rows(tmp_path / "out")) == ["case_00001"]
    assert redone(run()[1]) == ["deep/ct"]


def test_signals_are_given_back(run, cts):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_batch_goes_on_where_it_was(run, tmp_path, toy_ct, number):
    model = toys.random_model(tmp_path / "slow", NetworkParameters(features=8, depth=4))
    (tmp_path / "in").mkdir()
    for name in "abc":
        shutil.copy(toy_ct, tmp_path / "in" / f"{name}.nii.gz")
    command = [
        sys.executable, str(SCRIPT), "--input", str(tmp_path / "in"), "--device", "cpu",
        "--output", str(tmp_path / "out"), "--model", str(model.folder),
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # Slicer takes Python's own handler of Ctrl-C away.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        for line in process.stdout:
            if line.startswith("[1/3]"):
                process.send_signal(number)
                break
        _, said = process.communicate()
    assert process.returncode == (-number if number == signal.SIGKILL else 130), said
    finished = rows(tmp_path / "out")
    assert 1 <= len(finished) < 3
    code, out, err = run("--model", model.folder, "--precision", "auto")
    assert (code, err) == (0, "")
    assert f"{len(finished)} of them done already" in out
    assert redone(out) == sorted(set("abc") - set(finished))
    assert len(rows(tmp_path / "out")) == 3


# --- The script in Slicer ---------------------------------------------------------------------


def as_slicer_runs_it(monkeypatch, *arguments) -> int:
    """Slicer executes the text in its main module; only SystemExit ends the application."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as stop:
        exec(SCRIPT.read_text("ascii"), {"__name__": "__main__", "__file__": str(SCRIPT)})
    return stop.value.code


def test_every_way_out_of_the_script_ends_slicer(monkeypatch, tmp_path, cts, toy_model, capsys):
    out, model = tmp_path / "out", toy_model.folder
    given = ("--input", cts, "--output", out, "--model", model, "--device", "cpu")
    assert as_slicer_runs_it(monkeypatch, *given) == 0
    assert as_slicer_runs_it(monkeypatch, "--output", out) == 2
    assert as_slicer_runs_it(monkeypatch, "--input", tmp_path / "none", "--output", out) == 3
    assert as_slicer_runs_it(monkeypatch, "--help") == 0
    monkeypatch.setitem(sys.modules, "KidneySegLib.batch", None)  # a broken installation
    assert as_slicer_runs_it(monkeypatch, *given) == 1


# Slicer reads these itself before a script sees its arguments.
SLICERS_OWN = {
    "-c", "-h", "--additional-module-path", "--additional-module-paths", "--help", "--testing",
    "--ignore-rest", "--modules-to-ignore", "--no-main-window", "--no-splash", "--program-path",
    "--python-code", "--python-script", "--settings-path", "--temporary-path", "--version",
    "--attach-process", "--exit-after-startup", "--qt-testing", "--application-information",
}  # fmt: skip


def test_no_option_is_one_that_slicer_keeps_for_itself():
    ours = {word for action in batch.parser()._actions for word in action.option_strings}
    assert ours & SLICERS_OWN == {"-h", "--help"}


def loaded(slicer: types.ModuleType, path: Path) -> tuple[object, object]:
    slicer.mrmlScene.Clear(False)
    slicer.util.loadScene(str(path))
    (volume,) = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
    (segmentation,) = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    return volume, segmentation


def check_bundle(slicer: types.ModuleType, path: Path, ct: Path, sides: Path) -> None:
    from KidneySegLib.scene import labels_image, volume_image

    def same(image: sitk.Image, other: sitk.Image) -> None:
        # Slicer turns the axes of a left-handed volume when it reads one.
        one, two = (sitk.DICOMOrient(each, "LPS") for each in (image, other))
        np.testing.assert_array_equal(*map(sitk.GetArrayFromImage, (one, two)))
        np.testing.assert_allclose(one.GetOrigin(), two.GetOrigin(), atol=1e-3)
        np.testing.assert_allclose(one.GetSpacing(), two.GetSpacing(), atol=1e-5)

    volume, segmentation = loaded(slicer, path)
    same(volume_image(volume), read_ct(ct).image)
    same(labels_image(segmentation, volume), sitk.ReadImage(str(sides)))
    segments = segmentation.GetSegmentation()
    assert [segments.GetSegment(one.id).GetName() for one in SIDES] == [one.name for one in SIDES]
    assert segmentation.GetNodeReference("referenceImageGeometryRef") is volume


def test_a_bundle_holds_ct_and_kidneys_voxel_for_voxel(
    slicer_scene, run, tmp_path, cts, toy_ct, toy_sides
):
    slicer_scene.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", "of the user")
    code, _, err = run("--mrb")
    assert (code, err) == (0, "")
    assert files(tmp_path / "out") == [
        "case_00001_kidneys.mrb", "case_00001_kidneys.seg.nrrd", "deep/ct_kidneys.mrb",
        "deep/ct_kidneys.seg.nrrd", "results.csv",
    ]  # fmt: skip
    assert slicer_scene.mrmlScene.GetNumberOfNodesByClass("vtkMRMLDisplayableNode") == 0
    check_bundle(slicer_scene, tmp_path / "out/deep/ct_kidneys.mrb", toy_ct, toy_sides)
    volume, segmentation = loaded(slicer_scene, tmp_path / "out/case_00001_kidneys.mrb")
    assert (volume.GetName(), segmentation.GetName()) == ("case_00001", "case_00001 kidneys")
    assert slicerhost.errors == []


def test_a_bundle_opens_at_the_kidneys(slicer_scene, run, tmp_path, cts, toy_sides):
    run("--mrb")
    volume, _ = loaded(slicer_scene, tmp_path / "out/deep/ct_kidneys.mrb")
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(sitk.ReadImage(str(toy_sides)) > 0)
    x, y, z = shape.GetCentroid(1)
    for axis, name, orientation, at in (
        (2, "Red", "Axial", z), (0, "Yellow", "Sagittal", -x), (1, "Green", "Coronal", -y),
    ):  # fmt: skip
        view = slicer_scene.mrmlScene.GetSingletonNode(name, "vtkMRMLSliceNode")
        assert view.GetOrientation() == orientation
        assert view.GetSliceToRAS().GetElement(axis, 3) == pytest.approx(at, abs=1e-3)
        shown = slicer_scene.mrmlScene.GetSingletonNode(name, "vtkMRMLSliceCompositeNode")
        assert shown.GetBackgroundVolumeID() == volume.GetID()
        assert max(view.GetFieldOfView()[:2]) > 200  # the toy is 260 mm wide


def test_a_bundle_asked_for_later_is_made_for_all(slicer_scene, run, tmp_path, cts):
    run()
    assert len(redone(run("--mrb")[1])) == 2
    assert redone(run("--mrb")[1]) == []
    (tmp_path / "out/deep/ct_kidneys.mrb").unlink()
    assert redone(run("--mrb")[1]) == ["deep/ct"]


def test_a_bundle_that_fails_leaves_no_segmentation_behind(
    slicer_scene, run, tmp_path, cts, monkeypatch
):
    monkeypatch.setattr(bundle, "_save", lambda slicer, file, path: None)
    assert run("--mrb")[0] == 1
    assert files(tmp_path / "out") == ["results.csv"]
    for row in rows(tmp_path / "out").values():
        assert "_kidneys.mrb cannot be written" in row["error"] and "/." not in row["error"]


def test_the_script_writes_bundles_in_plain_python(
    slicer_scene, tmp_path, cts, toy_model, toy_ct, toy_sides
):
    """With slicer-core, where nobody has started a scene."""
    shutil.rmtree(cts / "case_00001")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--input", str(cts), "--output", str(tmp_path / "out"),
         "--model", str(toy_model.folder), "--device", "cpu", "--mrb"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    check_bundle(slicer_scene, tmp_path / "out/deep/ct_kidneys.mrb", toy_ct, toy_sides)


def test_a_bundle_without_slicer_is_refused_before_any_work(run, tmp_path, cts, monkeypatch):
    monkeypatch.setitem(sys.modules, "slicer", None)
    code, out, err = run("--mrb")
    assert code == 2 and "install the Python package slicer-core" in err and "[" not in out
    monkeypatch.setitem(sys.modules, "slicer", types.ModuleType("slicer"))
    monkeypatch.setitem(sys.modules, "slicer.util", types.ModuleType("slicer.util"))
    assert "Another Python package is called slicer" in run("--mrb")[2]
    assert not (tmp_path / "out").exists()


def test_durations_are_told_as_people_tell_them():
    assert [batch._duration(s) for s in (4.4, 65, 3600, 7384)] == [
        "4 s", "1 min 05 s", "1 h 00 min", "2 h 03 min",
    ]  # fmt: skip
