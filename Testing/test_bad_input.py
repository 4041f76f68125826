"""What bad input gets: one line that names the file and what to do, and nothing written."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import toys
from toys import everything_in

from KidneySegLib import cli
from KidneySegLib import writing as writing_room
from KidneySegLib.model import CARD_FILE, WEIGHTS_FILE


@pytest.fixture
def here(tmp_path, toy_ct, toy_sides, toy_model, monkeypatch) -> Path:
    """A folder with everything that a good run needs; bad input goes beside it."""
    for file in (toy_ct, toy_sides):
        shutil.copy(file, tmp_path / file.name)
    shutil.copytree(toy_model.folder, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(here, capsys):
    """Run the command, which must fail with this code and one line, and write nothing."""

    def ran(command: str, code: int) -> str:
        given = command.split()
        if given[:1] == ["segment"] and "--model" not in given:
            given += ["--model", "model"]
        if given[:1] == ["segment"] and "--device" not in given:
            given += ["--device", "cpu"]
        before = everything_in(here)
        try:
            got = cli.main(given)
        except SystemExit as stop:
            got = stop.code
        out, err = capsys.readouterr()
        assert everything_in(here) == before
        assert (got, out) == (code, ""), err
        assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")
        assert "Traceback" not in err
        return err

    return ran


def write(array: np.ndarray, name: str, **options) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(array, **options), name)


def truncated(_):
    whole = Path("ct.nii.gz").read_bytes()
    Path("bad.nii.gz").write_bytes(whole[: len(whole) * 2 // 3])


def short_nifti(_):
    whole = gzip.decompress(Path("ct.nii.gz").read_bytes())
    Path("bad.nii.gz").write_bytes(gzip.compress(whole[:9000]))


def dicom(folder: str, uid: str = "1.2.3", keep=range(12)) -> None:
    """A series of axial slices, 5 mm apart."""
    ct, _ = toys.toy()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    Path(folder).mkdir(exist_ok=True)
    for k in keep:
        image = sitk.GetImageFromArray(ct[k])
        image.SetSpacing((7.0, 5.5))
        for key, value in {
            "0008|0008": "ORIGINAL\\PRIMARY\\AXIAL", "0008|0060": "CT",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2", "0008|0018": f"{uid}.{k + 1}",
            "0020|000d": "1.2.9", "0020|000e": uid, "0020|0052": "1.2.8",
            "0020|0013": str(k), "0020|0032": f"-100\\-90\\{-6 * k}",
            "0020|0037": "1\\0\\0\\0\\1\\0", "0028|1052": "0", "0028|1053": "1",
        }.items():  # fmt: skip
            image.SetMetaData(key, value)
        writer.SetFileName(f"{folder}/{uid}_{k}.dcm")
        writer.Execute(image)


def two_series(_):
    dicom("bad", "1.2.3")
    dicom("bad", "1.2.4")


INPUTS = {
    "missing": (lambda _: None, "bad.nii.gz", "does not exist"),
    "text": (lambda _: Path("bad.nii.gz").write_text("not a CT\n" * 99), "bad.nii.gz", "NIfTI"),
    "empty": (lambda _: Path("bad.nrrd").touch(), "bad.nrrd", "empty"),
    "truncated gzip": (truncated, "bad.nii.gz", "truncated"),
    "truncated volume": (short_nifti, "bad.nii.gz", "truncated"),
    "2-D": (lambda _: write(np.eye(9, dtype=np.int16), "bad.nrrd"), "bad.nrrd", "2-D"),
    "picture": (lambda _: write(np.eye(9, dtype=np.uint8), "bad.png"), "bad.png", "2-D"),
    "4-D": (
        lambda _: write(np.ones((3, 4, 5, 6), np.int16), "bad.nii.gz", isVector=False),
        "bad.nii.gz",
        "3 volumes; extract one",
    ),
    "RGB": (
        lambda _: write(np.ones((4, 5, 6, 3), np.uint8), "bad.nrrd", isVector=True),
        "bad.nrrd",
        "colour",
    ),
    "constant": (lambda _: write(np.full((4, 5, 6), -7, np.int16), "bad.mha"), "bad.mha", "-7"),
    "all NaN": (lambda _: write(np.full((4, 5, 6), np.nan), "bad.mha"), "bad.mha", "no voxel"),
    "empty folder": (lambda _: Path("bad").mkdir(), "bad", "DICOM"),
    "case without imaging": (
        lambda _: (Path("bad").mkdir(), shutil.copy("sides.nii.gz", "bad/segmentation.nii.gz")),
        "bad",
        "imaging.nii.gz",
    ),
    "missing slices": (
        lambda _: dicom("bad", keep=[0, 1, 2, 3, 6, 7, 8, 9, 10, 11]),
        "bad",
        "lacks 2 slices",
    ),
    "two series": (two_series, "bad", "--series UID: 1.2.3"),
}  # fmt: skip


@pytest.mark.parametrize("kind", INPUTS)
def test_an_unusable_input_exits_with_3(refused, here, kind):
    make, name, text = INPUTS[kind]
    make(here)
    err = refused(f"segment {name} --output new/k.nii.gz --overlay new/o.png --report r.json", 3)
    assert name in err and text in err


def test_one_of_two_series_can_be_chosen(here, capsys):
    two_series(here)
    arguments = "segment bad --output k.nii.gz --series 1.2.4 --model model"
    assert cli.main(arguments.split()) == 0
    assert capsys.readouterr().err == ""


REFERENCES = {
    "missing": (lambda _: None, "bad.nii.gz", "does not exist"),
    "another grid": (lambda _: write(np.ones((4, 5, 6), np.uint8), "bad.mha"), "bad.mha", "size"),
    "a CT": (lambda _: None, "ct.nii.gz", "no label map"),
    "an empty folder": (lambda _: Path("bad").mkdir(), "bad", "no reference for ct"),
}


@pytest.mark.parametrize("kind", REFERENCES)
def test_an_unusable_reference_exits_with_3(refused, here, kind):
    make, name, text = REFERENCES[kind]
    make(here)
    err = refused(f"segment ct.nii.gz --output new/k.nii.gz --reference {name}", 3)
    assert name in err and text in err


def spoilt_card(**changes):
    card = json.loads(Path("model", CARD_FILE).read_text())
    card.update(changes)
    Path("model", CARD_FILE).write_text(json.dumps(card))


MODELS = {
    "unknown": (lambda: None, "nothing", "kidneyseg models"),
    "no card": (lambda: Path("model", CARD_FILE).unlink(), "model", CARD_FILE),
    "no weights": (lambda: Path("model", WEIGHTS_FILE).unlink(), "model", WEIGHTS_FILE),
    "unknown version": (lambda: spoilt_card(format=99), "model", "format 99"),
    "wrong shape": (
        lambda: spoilt_card(network={"features": 2, "depth": 3}),
        "model",
        "shape",
    ),
    "truncated": (
        lambda: os.truncate(Path("model", WEIGHTS_FILE), 500),
        "model",
        "copy the model folder again",
    ),
    "a file": (lambda: None, "ct.nii.gz", "not a model folder"),
}


@pytest.mark.parametrize("kind", MODELS)
def test_an_unusable_model_exits_with_4(refused, kind):
    make, name, text = MODELS[kind]
    make()
    err = refused(f"segment ct.nii.gz --output new/k.nii.gz --model {name}", 4)
    assert name in err and text in err


USAGE = {
    "no command": ("", "required"),
    "unknown command": ("sement ct.nii.gz", "sement"),
    "no input": ("segment --output k.nii.gz", "INPUT"),
    "no output": ("segment ct.nii.gz", "--output"),
    "unknown option": ("segment ct.nii.gz --output k.nii.gz --quick", "--quick"),
    "labels": ("segment ct.nii.gz --output k.nii.gz --labels both", "both"),
    "progress": ("segment ct.nii.gz --output k.nii.gz --progress dots", "dots"),
    "device": ("segment ct.nii.gz --output k.nii.gz --device gpu", "gpu"),
    "absent device": ("segment ct.nii.gz --output k.nii.gz --device cuda:77", "--device cpu"),
    "precision": ("segment ct.nii.gz --output k.nii.gz --precision int8", "int8"),
    "suffix": ("segment ct.nii.gz --output new/k.dcm", ".seg.nrrd"),
    "a folder as output": ("segment ct.nii.gz --output model", "must end in"),
    "a file as folder": ("segment ct.nii.gz sides.nii.gz --output ct.nii.gz", "is a file"),
    "overlay": ("segment ct.nii.gz --output k.nii.gz --overlay o.jpg", ".png"),
    "report": ("segment ct.nii.gz --output k.nii.gz --report r.txt", ".json"),
    "output is the input": ("segment ct.nii.gz --output ct.nii.gz", "not overwritten"),
    "by another path": ("segment ct.nii.gz --output model/../ct.nii.gz", "not overwritten"),
    "through a link": ("segment link.nii.gz --output ct.nii.gz", "not overwritten"),
    "the reference": (
        "segment ct.nii.gz --output sides.nii.gz --reference sides.nii.gz",
        "not overwritten",
    ),
    "a case's imaging": ("segment case --output case/imaging.nii.gz", "not overwritten"),
    "a case's labels": (
        "segment case --output case/segmentation.nii.gz --reference case",
        "not overwritten",
    ),
    "another input": ("segment ct.nii.gz ct_kidneys.nii.gz --output .", "not overwritten"),
    "one reference for several": (
        "segment ct.nii.gz sides.nii.gz --output new --reference sides.nii.gz",
        "folder",
    ),
    "evaluate one": ("evaluate sides.nii.gz", "REFERENCE"),
    "evaluate's report": ("evaluate sides.nii.gz sides.nii.gz --report new/r.csv", ".json"),
    "phantom's size": ("phantom new --cases 1 --size 512x512", "COLSxROWSxSLICES"),
    "phantom's number": ("phantom new --cases 0", "1 or more"),
    "phantom's seed": ("phantom new --cases 1 --seed -1", "seed"),
    "phantom's tiny size": ("phantom new --cases 1 --size 2x2x2", "too small"),
}


@pytest.mark.parametrize("kind", USAGE)
def test_wrong_usage_exits_with_2(refused, here, kind):
    command, text = USAGE[kind]
    (here / "link.nii.gz").symlink_to(here / "ct.nii.gz")
    (here / "case").mkdir()
    shutil.copy("ct.nii.gz", "case/imaging.nii.gz")
    shutil.copy("sides.nii.gz", "case/segmentation.nii.gz")
    shutil.copy("ct.nii.gz", "ct_kidneys.nii.gz")
    assert text in refused(command, 2)


def test_a_bad_label_map_is_refused_by_evaluate(refused, here):
    (here / "bad.nii.gz").write_bytes(b"\x1f\x8b\x08")
    for pair in ("bad.nii.gz sides.nii.gz", "sides.nii.gz bad.nii.gz"):
        assert "bad.nii.gz" in refused(f"evaluate {pair} --report new/r.json", 3)
    assert "ct.nii.gz" in refused("evaluate ct.nii.gz sides.nii.gz", 3)
    assert "none.nii" in refused("evaluate sides.nii.gz none.nii", 3)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc takes no files, not even from root")
def test_an_output_folder_that_cannot_be_written_is_told_before_any_work(refused):
    for options in (
        "--output /proc/k.nii.gz",
        "--output k.nii.gz --overlay /proc/new/o.png",
        "--output k.nii.gz --report /proc/r.json",
    ):
        # The input is not even looked at.
        err = refused(f"segment none.nii.gz {options}", 1)
        assert "/proc/" in err and "choose a folder" in err


def test_a_file_among_the_folders_of_the_output_is_told(refused):
    assert "ct.nii.gz/k.nii.gz" in refused("segment ct.nii.gz --output ct.nii.gz/k.nii.gz", 1)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_disk_that_fills_up_leaves_the_input_and_no_part_of_an_output(
    refused, monkeypatch, which
):
    written = []

    def sync(number):
        written.append(number)
        if len(written) > which:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing_room.os, "fsync", sync)
    err = refused(
        "segment ct.nii.gz --output new/k.nii.gz --overlay new/o.png --report new/r.json", 1
    )
    assert "the disk is full; free some space" in err


def test_verbose_shows_where_an_error_came_from(here, capsys):
    arguments = "segment none.nii.gz --output k.nii.gz --model model --verbose"
    assert cli.main(arguments.split()) == 3
    err = capsys.readouterr().err
    assert "Traceback" in err and "InputError" in err
    assert err.splitlines()[-1].startswith("error: none.nii.gz does not exist")


def test_an_error_that_nobody_foresaw_is_one_line_too(refused, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("of all things\non two lines")

    monkeypatch.setattr("KidneySegLib.answer.predict", fail)
    err = refused("segment ct.nii.gz --output new/k.nii.gz", 1)
    assert "of all things on two lines" in err and "--verbose" in err


def test_when_every_input_fails_nothing_is_written_and_the_count_is_told(here, capsys):
    Path("text.nii.gz").write_text("no image")
    arguments = "segment none.nii.gz text.nii.gz --output new --model model"
    before = everything_in(here)
    assert cli.main(arguments.split()) == 3
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("error: ") for line in lines] == [True, True, False]
    assert lines[-1] == "2 of 2 inputs failed."
    assert everything_in(here) == before


def test_a_reference_that_is_missing_for_one_input_stops_only_that_one(here, capsys):
    shutil.copy("ct.nii.gz", "other.nii.gz")
    (here / "truth").mkdir()
    shutil.copy("sides.nii.gz", "truth/ct.nii.gz")
    arguments = "segment other.nii.gz ct.nii.gz --output new --reference truth --model model"
    assert cli.main(arguments.split()) == 3
    out, err = capsys.readouterr()
    assert "no reference for other" in err and out.startswith("ct: ") and "Dice 1.000" in out
    assert [p.name for p in Path("new").iterdir()] == ["ct_kidneys.nii.gz"]


def test_the_input_is_the_same_to_the_byte_after_a_good_run(here):
    before = everything_in(here)
    arguments = "segment ct.nii.gz --output new/k.nii.gz --overlay new/o.png --model model"
    assert cli.main(arguments.split()) == 0
    after = everything_in(here)
    assert {name: after[name] for name in before} == before
