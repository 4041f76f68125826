"""Writing label maps, segmentations and reports: all of a file or nothing."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from KidneySegLib.errors import InputError, KidneySegError, UsageError
from KidneySegLib.geometry import grid_difference
from KidneySegLib.reading import read_labels
from KidneySegLib.writing import (
    LABEL_SUFFIXES,
    MERGED,
    SIDES,
    atomic,
    check_output,
    only_writer,
    whole_folder,
    write_json,
    write_labels,
)


def kidneys() -> sitk.Image:
    labels = np.zeros((6, 24, 32), np.uint8)
    labels[2:4, 8:12, 20:26] = 1
    labels[2:5, 8:12, 5:11] = 2
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing((0.7, 0.8, 3.0))
    image.SetOrigin((-12.3456789, 7.25, 1234.56789))
    cosine, sine = np.cos(0.2), np.sin(0.2)
    image.SetDirection((cosine, -sine, 0, sine, cosine, 0, 0, 0, -1))
    return image


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("suffix", LABEL_SUFFIXES)
def test_a_label_map_comes_back_the_same(tmp_path, suffix):
    path = tmp_path / f"result{suffix}"
    write_labels(kidneys(), path, SIDES)
    back = read_labels(path)
    assert grid_difference(back, kidneys()) is None
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(kidneys()))
    assert everything_in(tmp_path) == [path.name]
    if suffix != ".nii" and suffix != ".nii.gz":  # those hold float32
        assert back.GetOrigin() == kidneys().GetOrigin()


def test_capital_suffixes_are_suffixes(tmp_path):
    write_labels(kidneys(), tmp_path / "CT.NII.GZ")
    assert sitk.GetArrayFromImage(read_labels(tmp_path / "CT.NII.GZ")).max() == 2


def test_label_maps_are_compressed_where_the_format_can(tmp_path):
    for suffix in LABEL_SUFFIXES:
        write_labels(kidneys(), tmp_path / f"x{suffix}", SIDES)
        small = (tmp_path / f"x{suffix}").stat().st_size < 6 * 24 * 32
        assert small == (suffix != ".nii")


@pytest.mark.parametrize("segments", [SIDES, MERGED])
def test_a_segmentation_carries_names_colours_and_terminology(tmp_path, segments):
    write_labels(kidneys(), tmp_path / "x.seg.nrrd", segments)
    image = sitk.ReadImage(str(tmp_path / "x.seg.nrrd"))

    def says(number, key):
        return image.GetMetaData(f"Segment{number}_{key}")

    for number, segment in enumerate(segments):
        assert says(number, "Name") == segment.name
        assert says(number, "ID") == segment.id
        assert int(says(number, "LabelValue")) == segment.label
        assert says(number, "Layer") == "0"
        assert says(number, "Extent") == "0 31 0 23 0 5"
        assert tuple(map(float, says(number, "Color").split())) == segment.color
        assert "~SCT^123037004^Anatomical Structure~SCT^64033007^Kidney~" in says(number, "Tags")
    assert not image.HasMetaDataKey(f"Segment{len(segments)}_ID")
    assert image.GetMetaData("Segmentation_MasterRepresentation") == "Binary labelmap"
    assert [segment.name for segment in (*SIDES, *MERGED)] == [
        "Left kidney",
        "Right kidney",
        "Kidneys",
    ]
    if segments is SIDES:
        assert "~SCT^7771000^Left~" in says(0, "Tags")
        assert "~SCT^24028007^Right~" in says(1, "Tags")


def test_a_segmentation_without_segments_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="labels mean"):
        write_labels(kidneys(), tmp_path / "new" / "x.seg.nrrd")
    assert everything_in(tmp_path) == []


def test_an_empty_segmentation_can_be_written(tmp_path):
    empty = kidneys() * 0
    write_labels(empty, tmp_path / "x.seg.nrrd", SIDES)
    assert sitk.GetArrayFromImage(read_labels(tmp_path / "x.seg.nrrd")).max() == 0


@pytest.mark.parametrize("name", ["x.png", "x", "x.gz", ".nii.gz", "x.nii.gz.txt"])
def test_other_suffixes_are_wrong_usage_that_names_the_right_ones(tmp_path, name):
    for refuse in (check_output, lambda path: write_labels(kidneys(), path, SIDES)):
        with pytest.raises(UsageError, match=r"must end in \.seg\.nrrd or \.nii\.gz or \.nii or "):
            refuse(tmp_path / name)
    assert everything_in(tmp_path) == []


def test_checking_an_output_creates_nothing(tmp_path):
    check_output(tmp_path / "x.nii.gz")
    check_output(tmp_path / "new" / "er" / "x.seg.nrrd")
    check_output(tmp_path / "r.json", (".json",))
    check_output(tmp_path / "folder", None)
    assert everything_in(tmp_path) == []


def test_a_folder_where_a_file_is_meant_is_wrong_usage_and_the_other_way_round(tmp_path):
    (tmp_path / "x.nii.gz").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        check_output(tmp_path / "x.nii.gz")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        check_output(tmp_path / "file", None)


def test_a_file_among_the_parents_is_told(tmp_path):
    (tmp_path / "file").touch()
    for refuse in (check_output, lambda path: write_labels(kidneys(), path)):
        with pytest.raises(KidneySegError, match=r"x\.nii\.gz cannot be written") as caught:
            refuse(tmp_path / "file" / "x.nii.gz")
        assert caught.value.exit_code == 1
    assert everything_in(tmp_path) == ["file"]


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind root"
)
def test_a_folder_without_write_permission_is_told(tmp_path):
    tmp_path.chmod(0o500)
    try:
        for name in ("x.nii.gz", "new/x.nii.gz"):
            with pytest.raises(KidneySegError, match="choose a folder that you may write to"):
                check_output(tmp_path / name)
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc takes no files, not even from root")
def test_a_place_that_takes_no_files_is_told():
    for refuse in (check_output, lambda path: write_labels(kidneys(), path)):
        with pytest.raises(KidneySegError, match=r"/proc/x\.nii\.gz cannot be written"):
            refuse("/proc/x.nii.gz")


# --- All or nothing ---------------------------------------------------------------------------


def test_a_file_appears_only_when_it_is_complete(tmp_path):
    path = tmp_path / "a" / "b" / "x.nii.gz"
    with atomic(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.name.startswith(".") and temporary.name.endswith(".nii.gz")
        temporary.write_text("half")
        assert not path.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert everything_in(tmp_path) == ["a", "a/b", "a/b/x.nii.gz"]


@pytest.mark.parametrize("suffix", LABEL_SUFFIXES)
def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path, suffix):
    path = tmp_path / ("x" * (255 - len(suffix)) + suffix)
    with atomic(path) as temporary:  # writers may nest
        write_labels(kidneys(), temporary, SIDES)
    assert sitk.GetArrayFromImage(read_labels(path)).max() == 2
    with pytest.raises(KidneySegError, match="its name is too long; give a shorter one"):
        write_labels(kidneys(), path.with_name(f"x{path.name}"), SIDES)
    assert everything_in(tmp_path) == [path.name]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_what_was_there(tmp_path, failure):
    path = tmp_path / "x.json"
    path.write_text("old")
    with pytest.raises(failure), atomic(path) as temporary:
        temporary.write_text("new")
        raise failure
    assert path.read_text() == "old"
    assert everything_in(tmp_path) == ["x.json"]


def test_a_failure_takes_the_folders_it_made_along_but_no_others(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(KeyboardInterrupt), atomic(tmp_path / "there/new/er/x.json"):
        raise KeyboardInterrupt
    assert everything_in(tmp_path) == ["there"]
    with pytest.raises(KeyboardInterrupt), atomic(tmp_path / "there/new/er/x.json") as temporary:
        temporary.write_text("mine")
        (tmp_path / "there/new/other.txt").write_text("somebody else's")
        raise KeyboardInterrupt
    assert everything_in(tmp_path) == ["there", "there/new", "there/new/other.txt"]


def test_a_block_that_writes_nothing_fails(tmp_path):
    with pytest.raises(KidneySegError, match="cannot be written"), atomic(tmp_path / "new/x"):
        pass
    assert everything_in(tmp_path) == []


def test_an_existing_file_is_replaced(tmp_path):
    path = tmp_path / "x.nii.gz"
    path.write_text("old")
    write_labels(kidneys(), path)
    assert sitk.GetArrayFromImage(read_labels(path)).max() == 2


@pytest.mark.parametrize("stopped", [False, True])
def test_an_empty_folder_that_is_a_link_is_filled_where_it_is(tmp_path, monkeypatch, stopped):
    """As a mounted disk is, which cannot be replaced with another folder either."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk", target_is_directory=True)
    replace = os.replace

    def full(source, target):
        if stopped and Path(target).name == "b":
            raise OSError(errno.ENOSPC, "full")
        replace(source, target)

    monkeypatch.setattr("os.replace", full)
    with (
        pytest.raises(KidneySegError, match="link cannot be written") if stopped else nullcontext(),
        whole_folder(tmp_path / "link") as temporary,
    ):
        for name in "ab":
            (temporary / name).write_text(name)
    assert sorted(os.listdir(tmp_path / "disk")) == ([] if stopped else ["a", "b"])
    assert sorted(os.listdir(tmp_path)) == ["disk", "link"] and (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_called_that(tmp_path, code):
    with pytest.raises(KidneySegError, match="the disk is full; free some space") as caught:  # noqa: SIM117
        with atomic(tmp_path / "x.json"):
            raise OSError(code, "whatever the system says")
    assert caught.value.exit_code == 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on the size of files")
@pytest.mark.parametrize("name", [f"x{suffix}" for suffix in LABEL_SUFFIXES] + ["x.json"])
def test_a_write_cut_short_is_noticed_and_leaves_nothing(tmp_path, name):
    """ITK does not notice: a limit on the size of files makes its writes come short."""
    code = """
import resource, signal, sys
import numpy as np, SimpleITK as sitk
from KidneySegLib.errors import KidneySegError
from KidneySegLib.writing import SIDES, write_json, write_labels
labels = np.random.default_rng(0).integers(0, 3, (20, 64, 64)).astype(np.uint8)
labels[10:] = 0  # what is lost may be what an unwritten voxel reads as
image = sitk.GetImageFromArray(labels)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    if sys.argv[1].endswith(".json"):
        write_json({"text": "x" * 50_000}, sys.argv[1])
    else:
        write_labels(image, sys.argv[1], SIDES)
except KidneySegError as error:
    print(type(error).__name__, error)
"""
    old = tmp_path / name
    old.write_text("old")
    uncut = 20 * 64 * 64 + 352 if name == "x.nii" else 9_000
    for limit in (uncut - 3, 3_000):
        for path in (old, tmp_path / "new" / name):
            done = subprocess.run(
                [sys.executable, "-c", code, str(path), str(limit)],
                capture_output=True,
                text=True,
                check=True,
            )
            assert done.stdout.startswith(f"KidneySegError {path} cannot be written, the disk ")
            assert done.stderr == ""
            assert everything_in(tmp_path) == [name]
            assert old.read_text() == "old"


def test_a_file_that_reads_back_differently_does_not_count_as_written(tmp_path, monkeypatch):
    write = sitk.WriteImage
    monkeypatch.setattr(sitk, "WriteImage", lambda image, *a, **k: write(image * 0, *a, **k))
    with pytest.raises(KidneySegError, match="cannot be written"):
        write_labels(kidneys(), tmp_path / "x.nrrd")
    assert everything_in(tmp_path) == []


@pytest.mark.parametrize("suffix", LABEL_SUFFIXES)
def test_a_grid_that_nifti_cannot_hold_is_told_apart_from_a_full_disk(tmp_path, suffix):
    labels = kidneys()
    labels.SetSpacing((0.05, 0.05, 0.05))
    labels.SetOrigin((-100000.013, 0.0, 0.0))
    if not suffix.startswith(".nii"):
        write_labels(labels, tmp_path / f"x{suffix}", SIDES)
        return
    with pytest.raises(KidneySegError) as caught, atomic(tmp_path / f"x{suffix}") as temporary:
        write_labels(labels, temporary)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / f'x{suffix}'} cannot hold the grid of the CT, which NIfTI")
    assert said.endswith("give a name that ends in .nrrd or .mha.") and "origin -100000" in said
    assert everything_in(tmp_path) == []


def test_an_error_of_the_reader_is_no_input_error_of_the_user(tmp_path, monkeypatch):
    def truncated(path, labels):
        raise InputError(f"{path} is truncated.")

    monkeypatch.setattr("KidneySegLib.writing.holds", truncated)
    with pytest.raises(KidneySegError) as caught:
        write_labels(kidneys(), tmp_path / "x.nrrd")
    assert caught.value.exit_code == 1


# --- JSON -------------------------------------------------------------------------------------


def test_json_is_readable_by_people_and_programs(tmp_path):
    data = {"input": "Übersicht.nii.gz", "kidneys": {"left": {"volume_ml": 151.25}}, "notes": []}
    write_json(data, tmp_path / "new" / "report.json")
    text = (tmp_path / "new" / "report.json").read_text(encoding="utf-8")
    assert json.loads(text) == data
    assert "Übersicht" in text and text.endswith("}\n") and '\n  "kidneys": {' in text


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json({"dice": float("nan")}, tmp_path / "new" / "report.json")
    assert everything_in(tmp_path) == []


def test_an_error_names_the_file_that_was_asked_for_and_no_temporary_one(tmp_path, monkeypatch):
    wanted = tmp_path / "kidneys.nii.gz"

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("KidneySegLib.writing.os.fsync", full)
    with pytest.raises(KidneySegError) as caught, atomic(wanted) as temporary:
        write_labels(sitk.Image(4, 4, 4, sitk.sitkUInt8), temporary)
    assert str(caught.value).startswith(f"{wanted} cannot be written, the disk is full")
    with pytest.raises(KidneySegError) as caught, atomic(wanted) as temporary:
        write_json({}, temporary)
    assert str(caught.value).startswith(f"{wanted} cannot be written, the disk is full")
    assert not list(tmp_path.iterdir())


def test_what_of_a_name_is_no_utf_8_is_escaped(tmp_path):
    data = {"input": os.fsdecode(b"M\xfcller/Jos\xc3\xa9.nii.gz")}
    write_json(data, tmp_path / "report.json")
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    assert "M\\udcfcller/José" in text and json.loads(text) == data


def test_an_output_whose_name_is_no_utf_8_is_refused(tmp_path):
    """The libraries that write images end the process at such a name."""
    folder = tmp_path / os.fsdecode(b"M\xfcller")
    for refuse in (
        lambda: check_output(folder, None),
        lambda: check_output(folder / "x.nii.gz"),
        lambda: write_labels(kidneys(), folder / "x.nii.gz"),
    ):
        with pytest.raises(UsageError, match="has a name that is not UTF-8; give another one"):
            refuse()
    assert everything_in(tmp_path) == []


# --- One run at a time ------------------------------------------------------------------------


def test_one_run_at_a_time_writes_into_a_folder(tmp_path):
    folder = tmp_path / "new" / "er"
    refused = pytest.raises(UsageError, match="er; wait for its end, or give another folder")
    with only_writer(folder), only_writer(tmp_path / "other"), refused, only_writer(folder):
        pass
    with only_writer(folder):
        (folder / "x").touch()
    assert everything_in(tmp_path) == ["new", "new/er", "new/er/x"]


def test_a_folder_of_a_killed_run_is_free_again(tmp_path):
    code = """
import sys
from pathlib import Path
from KidneySegLib.writing import only_writer
with only_writer(Path(sys.argv[1])):
    print("ready", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(UsageError, match="Another run is writing"), only_writer(tmp_path):
            pass
        process.kill()
    with only_writer(tmp_path):
        pass
    assert everything_in(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="of POSIX")
def test_a_file_system_without_locks_keeps_nobody_out(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    with only_writer(tmp_path), only_writer(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(KidneySegError, match="cannot be written"), only_writer(tmp_path / "file/x"):
        pass
