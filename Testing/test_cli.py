"""The command `kidneyseg`: what it writes, what it prints, how it stops."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import toys
from PIL import Image
from toys import everything_in

from KidneySegLib import cli, opening, reading, segment, writing
from KidneySegLib.commands import models as models_command
from KidneySegLib.network import NetworkParameters
from KidneySegLib.phantom import MARK

KIDNEYSEG = Path(__file__).resolve().parent.parent / "KidneySeg"


@pytest.fixture
def run(toy_model, capsys):
    """The command in this process: its exit code, stdout and stderr."""

    def ran(*arguments) -> tuple[int, str, str]:
        given = [str(argument) for argument in arguments]
        if given[0] == "segment" and "--model" not in given:
            given += ["--model", str(toy_model.folder), "--precision", "float32", "--device", "cpu"]
        try:
            code = cli.main(given)
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return ran


def voxels(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_on_windows_files_of_any_name_are_opened(monkeypatch):
    """There the C library takes the UTF-8 of ITK for the code page of the machine."""
    asked: list[tuple[int, str]] = []
    monkeypatch.setattr(cli.locale, "setlocale", lambda *given: asked.append(given))
    cli.main(["models"])
    assert asked == []
    monkeypatch.setattr(cli.sys, "platform", "win32")
    cli.take_any_name()
    assert asked == [(cli.locale.LC_CTYPE, ".UTF8")]


# --- One CT -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["k.nii.gz", "k.nii", "k.nrrd", "k.mha", "K.NII.GZ", "new/er/k.mha"]
)
def test_a_label_map_lies_on_the_grid_of_the_ct(run, tmp_path, toy_ct, toy_sides, name):
    code, out, err = run("segment", toy_ct, "--output", tmp_path / name)
    assert (code, err) == (0, "")
    assert out.startswith("ct: left 1") and out.count("\n") == 1 and " ml, right 1" in out
    written, ct = sitk.ReadImage(str(tmp_path / name)), sitk.ReadImage(str(toy_ct))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), voxels(toy_sides))
    assert written.GetSize() == ct.GetSize() and written.GetSpacing() == ct.GetSpacing()
    np.testing.assert_allclose(written.GetOrigin(), ct.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(written.GetDirection(), ct.GetDirection(), atol=1e-6)
    files = [name for name, content in everything_in(tmp_path).items() if content is not None]
    assert files == [name]


def test_a_segmentation_for_slicer_names_both_kidneys(run, tmp_path, toy_ct):
    assert run("segment", toy_ct, "--output", tmp_path / "k.seg.nrrd")[0] == 0
    image = sitk.ReadImage(str(tmp_path / "k.seg.nrrd"))
    names = [image.GetMetaData(f"Segment{n}_Name") for n in (0, 1)]
    assert names == ["Left kidney", "Right kidney"]


def test_labels_kidney_merges_both(run, tmp_path, toy_ct, toy_kidney):
    run("segment", toy_ct, "--output", tmp_path / "k.nii.gz", "--labels", "kidney")
    np.testing.assert_array_equal(voxels(tmp_path / "k.nii.gz"), voxels(toy_kidney))
    run("segment", toy_ct, "--output", tmp_path / "k.seg.nrrd", "--labels", "kidney")
    image = sitk.ReadImage(str(tmp_path / "k.seg.nrrd"))
    assert image.GetMetaData("Segment0_Name") == "Kidneys"
    assert not image.HasMetaDataKey("Segment1_Name")


def test_the_rarer_choices_reach_the_walk(run, tmp_path, toy_ct, toy_sides):
    out = tmp_path / "k.nrrd"
    code, told, _ = run("segment", toy_ct, "--output", out, "--minimum-ml", "100000")
    assert code == 0 and "no kidney found" in told
    options = ("--minimum-ml", "100000", "--keep-small", "--mirror", "--batch-slices", "4")
    assert run("segment", toy_ct, "--output", out, *options)[0] == 0
    np.testing.assert_array_equal(voxels(out), voxels(toy_sides))
    assert run("segment", toy_ct, "--output", out, "--batch-slices", "0")[0] == 2


def test_report_reference_and_overlay_of_one_run(run, tmp_path, toy_ct, toy_sides, toy_model):
    code, out, err = run(
        "segment", toy_ct, "--output", tmp_path / "k.nii.gz", "--reference", toy_sides,
        "--overlay", tmp_path / "o.png", "--report", tmp_path / "r.json",
    )  # fmt: skip
    assert (code, err) == (0, "") and "Dice 1.000" in out
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["input"] == str(toy_ct)
    assert report["model"] == {"name": toy_model.name, "version": toy_model.version}
    assert (report["device"], report["precision"]) == ("cpu", "float32")
    assert {"read", "predict", "total"} <= set(report["seconds"])
    labels = voxels(toy_sides)
    for side, label in (("left", 1), ("right", 2)):
        ml = (labels == label).sum() * np.prod(toys.SPACING_MM) / 1000
        assert report["kidneys"][side]["volume_ml"] == pytest.approx(ml)
    assert report["dice"] == {"kidney": 1.0, "left": 1.0, "right": 1.0}
    assert report["notes"] == []
    with Image.open(tmp_path / "o.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 100
    assert sorted(everything_in(tmp_path)) == ["k.nii.gz", "o.png", "r.json"]


def test_profile_says_how_long_each_part_took(run, tmp_path, cases):
    options = ("--profile", "--progress", "lines", "--report", tmp_path / "r.json")
    paths = (cases / "case_00001", cases / "case_00002")
    code, out, err = run("segment", *paths, "--output", tmp_path / "out", *options)
    assert code == 0 and all(json.loads(line) for line in out.splitlines())
    table = err.splitlines()[2:]
    found = {line[:10].strip(): float(line[10:].split()[0]) for line in table}
    rooms = ["start", "read", "prepare", "predict", "kidneys", "measure", "write", "whole run"]
    assert list(found) == rooms and table[-1].endswith(" s   100%")
    reports = json.loads((tmp_path / "r.json").read_text())["cases"]
    for room in rooms[1:-1]:
        spent = [report["seconds"][room] for report in reports]
        assert min(spent) > 0 and found[room] == pytest.approx(sum(spent), abs=0.006)
    for report in reports:
        assert list(report["seconds"]) == [*rooms[1:-1], "total"]
        *parts, total = report["seconds"].values()
        assert sum(parts) <= total + 1e-9


def test_a_merged_reference_gives_one_figure(run, tmp_path, toy_ct, toy_kidney):
    run(
        "segment", toy_ct, "--output", tmp_path / "k.nii.gz", "--reference", toy_kidney,
        "--report", tmp_path / "r.json",
    )  # fmt: skip
    assert json.loads((tmp_path / "r.json").read_text())["dice"] == {"kidney": 1.0}


def test_a_ct_without_kidneys_is_no_failure(run, tmp_path):
    ct, _ = toys.toy(())
    sitk.WriteImage(toys.image_of(ct), str(tmp_path / "head.nii.gz"))
    code, out, err = run(
        "segment", tmp_path / "head.nii.gz", "--output", tmp_path / "k.nii.gz",
        "--overlay", tmp_path / "o.png", "--report", tmp_path / "r.json",
    )  # fmt: skip
    assert (code, err) == (0, "") and out == "head: left 0.0 ml, right 0.0 ml (no kidney found)\n"
    assert not voxels(tmp_path / "k.nii.gz").any()
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["notes"] == ["no kidney found"]
    nothing = {"volume_ml": 0.0, "confidence": None}
    assert report["kidneys"] == {"left": nothing, "right": nothing}


def test_warnings_go_to_stderr_and_into_the_report(run, tmp_path):
    ct, _ = toys.toy()
    ct = ct.astype(np.float32)
    ct[0, 0, :2] = np.nan, np.inf
    sitk.WriteImage(toys.image_of(ct), str(tmp_path / "ct.nrrd"))
    code, _, err = run(
        "segment", tmp_path / "ct.nrrd", "--output", tmp_path / "k.nii.gz",
        "--report", tmp_path / "r.json",
    )  # fmt: skip
    assert code == 0
    assert err.startswith("warning: ") and err.count("\n") == 1 and "2 voxels" in err
    (note,) = json.loads((tmp_path / "r.json").read_text())["notes"]
    assert err == f"warning: {note}\n"


def test_values_that_are_not_hu_are_told(run, tmp_path):
    ct, _ = toys.toy()
    sitk.WriteImage(toys.image_of((ct + 1024).astype(np.uint16)), str(tmp_path / "ct.mha"))
    code, _, err = run("segment", tmp_path / "ct.mha", "--output", tmp_path / "k.mha")
    assert code == 0 and err.startswith("warning: ") and "subtract 1024" in err


def test_progress_lines_are_json_that_never_falls(run, tmp_path, toy_ct, toy_kidney):
    code, out, err = run(
        "segment", toy_ct, toy_kidney.parent / "ct.nii.gz", tmp_path / "none.nii.gz",
        "--output", tmp_path / "out", "--progress", "lines",
    )  # fmt: skip
    assert code == 3
    lines = [json.loads(line) for line in out.splitlines()]
    assert all(set(line) == {"progress", "step"} for line in lines)
    shares = [line["progress"] for line in lines]
    assert shares == sorted(shares) and shares[0] == 0.0 and 0.6 < shares[-1] <= 1.0
    assert {line["step"] for line in lines} >= {"read", "predict", "write"}
    assert err.count("error: ") == 1


def test_no_progress_prints_the_result_alone(run, tmp_path, toy_ct):
    for kind in ("none", "bar"):  # a bar is for terminals only
        _, out, err = run("segment", toy_ct, "--output", tmp_path / "k.nii.gz", "--progress", kind)
        assert out.startswith("ct: left") and out.count("\n") == 1 and err == ""


# --- Several CTs and folders ------------------------------------------------------------------


@pytest.fixture
def cases(tmp_path, toy_ct, toy_sides) -> Path:
    """Two case folders in the KiTS19 layout."""
    for name in ("case_00001", "case_00002"):
        case = tmp_path / "data" / name
        case.mkdir(parents=True)
        shutil.copy(toy_ct, case / "imaging.nii.gz")
        shutil.copy(toy_sides, case / "segmentation.nii.gz")
    return tmp_path / "data"


def test_one_bad_input_does_not_stop_the_others(run, tmp_path, cases, toy_sides):
    (cases / "broken.nii.gz").write_text("no image")
    code, out, err = run(
        "segment", cases / "case_00001" / "imaging.nii.gz", cases / "broken.nii.gz",
        cases / "case_00002" / "imaging.nii.gz", "--output", tmp_path / "out",
        "--overlay", tmp_path / "pictures", "--report", tmp_path / "r.json",
    )  # fmt: skip
    assert code == 3
    assert [line.split(":")[0] for line in out.splitlines()] == ["case_00001", "case_00002"]
    lines = err.splitlines()
    assert lines[0].startswith("error: ") and "broken.nii.gz" in lines[0]
    assert lines[1:] == ["1 of 3 inputs failed."]
    written = {f"case_0000{n}_kidneys" for n in (1, 2)}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {f"{n}.nii.gz" for n in written}
    assert {p.name for p in (tmp_path / "pictures").iterdir()} == {f"{n}.png" for n in written}
    for file in (tmp_path / "out").iterdir():
        np.testing.assert_array_equal(voxels(file), voxels(toy_sides))
    reports = json.loads((tmp_path / "r.json").read_text())["cases"]
    assert ["error" in report for report in reports] == [False, True, False]


def test_a_ct_too_large_for_the_memory_does_not_stop_the_others(run, tmp_path, cases, monkeypatch):
    read = reading.read_ct

    def read_ct(path, *arguments, **options):
        if "case_00001" in str(path):
            raise MemoryError("cannot allocate")
        return read(path, *arguments, **options)

    monkeypatch.setattr(reading, "read_ct", read_ct)
    code, out, err = run(
        "segment", cases / "case_00001", cases / "case_00002", "--output", tmp_path / "out"
    )
    assert code == 1 and out.startswith("case_00002: ")
    assert "case_00001: MemoryError: cannot allocate" in err.splitlines()[0]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["case_00002_kidneys.nii.gz"]


def test_several_inputs_are_read_and_written_beside_computing(run, tmp_path, cases, monkeypatch):
    events = {name: threading.Event() for name in ("read", "computing")}
    read, walk, write = reading.read_ct, segment.segment, writing.write_labels

    def read_ct(path, *arguments, **options):
        scan = read(path, *arguments, **options)
        if path.name == "case_00002":
            events["read"].set()
        return scan

    def computing(scan, *arguments, **options):
        if scan.name == "case_00001":
            assert events["read"].wait(30)
        else:
            events["computing"].set()
        return walk(scan, *arguments, **options)

    def write_labels(labels, path, segments):
        if "case_00001" in writing.asked_for(path).name:
            assert events["computing"].wait(30)
        write(labels, path, segments)

    monkeypatch.setattr(reading, "read_ct", read_ct)
    monkeypatch.setattr(segment, "segment", computing)
    monkeypatch.setattr(writing, "write_labels", write_labels)
    code, out, err = run(
        "segment", cases / "case_00001", cases / "case_00002", "--output", tmp_path / "out"
    )
    assert (code, err) == (0, "")
    assert [line.split(":")[0] for line in out.splitlines()] == ["case_00001", "case_00002"]


def test_what_is_said_while_a_file_is_read_is_heard(capfd, monkeypatch):
    """Reading keeps the C++ libraries off standard error, and they share it with us."""

    def speak(options):
        with opening.quiet():
            os.write(2, b"from a library\n")
            print("from us", file=sys.stderr)
        return 0

    stream = os.fdopen(2, "w", closefd=False)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(models_command, "run", speak)
    assert cli.main(["models"]) == 0
    assert sys.stderr is stream
    assert capfd.readouterr().err == "from us\n"


def test_of_a_case_folder_the_reference_that_tells_sides_is_taken(run, tmp_path, cases, toy_sides):
    for number in (1, 2):
        case = cases / f"case_0000{number}"
        merged = sitk.ReadImage(str(toy_sides)) > 0
        sitk.WriteImage(merged, str(case / "segmentation.nii.gz"))
        shutil.copy(toy_sides, case / "sides.nii.gz")
    code, _, _ = run(
        "segment", cases / "case_00001", cases / "case_00002", "--reference", cases,
        "--output", tmp_path / "out", "--report", tmp_path / "r.json",
    )  # fmt: skip
    assert code == 0
    for report in json.loads((tmp_path / "r.json").read_text())["cases"]:
        assert set(report["dice"]) == {"kidney", "left", "right"}


def test_case_folders_are_inputs_and_a_folder_of_cases_the_reference(run, tmp_path, cases):
    code, out, err = run(
        "segment", cases / "case_00001", cases / "case_00002", "--reference", cases,
        "--output", tmp_path / "out", "--report", tmp_path / "r.json",
    )  # fmt: skip
    assert (code, err) == (0, "") and out.count("Dice 1.000") == 2
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["case_00001_kidneys.nii.gz", "case_00002_kidneys.nii.gz"]
    for report in json.loads((tmp_path / "r.json").read_text())["cases"]:
        assert report["dice"]["left"] == 1.0


def test_a_case_folder_is_its_own_reference(run, tmp_path, cases):
    case = cases / "case_00001"
    code, out, _ = run("segment", case, "--output", tmp_path / "k.mha", "--reference", case)
    assert code == 0 and "Dice 1.000" in out


def test_the_same_input_twice_gets_two_results(run, tmp_path, toy_ct):
    assert run("segment", toy_ct, toy_ct, "--output", tmp_path / "out")[0] == 0
    assert len(list((tmp_path / "out").iterdir())) == 2


# --- evaluate, models, phantom ----------------------------------------------------------------


def test_evaluate_compares_sides_and_merged_labels_either_way(run, tmp_path, toy_sides, toy_kidney):
    for pair in ((toy_sides, toy_sides), (toy_kidney, toy_sides)):
        for prediction, reference in (pair, pair[::-1]):
            code, out, err = run("evaluate", prediction, reference, "--report", tmp_path / "r.json")
            assert (code, err) == (0, "") and "1.0000" in out
            scores = json.loads((tmp_path / "r.json").read_text())["dice"]
            assert scores == dict.fromkeys(("kidney", "left", "right"), 1.0)
            assert out.count("told apart by position") == (toy_kidney in pair)


def test_evaluate_refuses_different_grids(run, tmp_path, toy_sides):
    labels = toys.image_of(toys.toy()[1], (2, 1, 0))
    sitk.WriteImage(labels, str(tmp_path / "turned.nii.gz"))
    before = everything_in(tmp_path)
    code, out, err = run(
        "evaluate", tmp_path / "turned.nii.gz", toy_sides, "--report", tmp_path / "r.json"
    )
    assert (code, out) == (3, "") and err.startswith("error: ") and "different grids" in err
    assert err.count("\n") == 1 and everything_in(tmp_path) == before


def test_models_are_listed_with_the_reasons_of_refusals(run, tmp_path, monkeypatch):
    network = NetworkParameters(features=1, depth=1)
    for name in ("mine", "spoilt"):
        toys.copying_model(tmp_path / name, network, card={"licence": "CC0", "description": "Toy."})
    (tmp_path / "spoilt" / "weights.safetensors").unlink()
    monkeypatch.setenv("KIDNEYSEG_MODELS", str(tmp_path))
    code, out, err = run("models")
    assert code == 0 and f"mine 0.1.0\n  {tmp_path / 'mine'}\n  Toy.\n  CC0\n" in out
    assert str(tmp_path / "spoilt") in err and "has no weights" in err
    code, out, err = run("models", "--json")
    found = json.loads(out)
    (mine,) = (model for model in found["models"] if model["name"] == "mine")
    assert (mine["licence"], mine["version"], mine["default"]) == ("CC0", "0.1.0", False)
    assert "spoilt" in found["refused"][0] and (code, err) == (0, "")


def test_phantom_writes_cases_that_segment_reads(run, tmp_path):
    code, out, err = run("phantom", tmp_path / "p", "--cases", 1, "--size", "40x36x4", "--seed", 2)
    assert (code, err) == (0, "") and out == f"1 cases in {tmp_path / 'p'}\n"
    code, _, err = run("segment", tmp_path / "p" / "case_00000", "--output", tmp_path / "k.nii.gz")
    assert (code, err) == (0, "")
    assert voxels(tmp_path / "k.nii.gz").shape == (40, 36, 4)


def test_a_folder_of_generated_cases_is_marked_unless_others_are_in_it(run, tmp_path):
    """A trainer does not take their case_00000 for that of KiTS19 then."""
    run("phantom", tmp_path / "new", "--cases", 1, "--size", "40x36x4", "--seed", 2)
    mark = json.loads((tmp_path / "new" / MARK).read_text())
    assert mark == {"cases": 1, "seed": 2, "size": [40, 36, 4]}
    (tmp_path / "kits" / "case_00007").mkdir(parents=True)
    run("phantom", tmp_path / "kits", "--cases", 1, "--size", "40x36x4")
    assert (tmp_path / "kits" / "case_00000").is_dir()
    assert not (tmp_path / "kits" / MARK).exists()


# --- As a process -----------------------------------------------------------------------------


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}


def test_help_answers_without_importing_anything_heavy():
    code = """
import sys
from KidneySegLib.cli import main
try:
    main(["segment", "--help"])
except SystemExit as stop:
    assert stop.code == 0
heavy = {"torch", "SimpleITK", "numpy", "PIL", "cc3d", "safetensors"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=KIDNEYSEG,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "--output" in done.stdout and "--reference" in done.stdout


def test_the_module_runs_from_its_folder_without_installation(tmp_path, toy_ct, toy_model):
    """Twice: a good input, then one that the C++ libraries complain about."""
    (tmp_path / "text.nrrd").write_text("no image\n" * 50)
    for source, expected in ((toy_ct, 0), (tmp_path / "text.nrrd", 3)):
        done = subprocess.run(
            [
                sys.executable, "-m", "KidneySegLib", "segment", str(source), "--model",
                str(toy_model.folder), "--output", str(tmp_path / "new" / f"{expected}.nii.gz"),
                "--progress", "lines",
            ],
            cwd=KIDNEYSEG, env=environment(), capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == expected, done.stderr
        assert all("progress" in json.loads(line) for line in done.stdout.splitlines())
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("error: " if expected else "ct: left")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["0.nii.gz"]


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """A folder with a CT, and a command that works on it for a long time."""
    folder = tmp_path_factory.mktemp("long")
    network = NetworkParameters(features=32, depth=4)
    model = toys.random_model(tmp_path_factory.mktemp("slow") / "slow", network)
    ct, _ = toys.toy(shape=(300, 128, 128), spacing_mm=(1.0, 2.0, 2.4))
    sitk.WriteImage(toys.image_of(ct), str(folder / "ct.nrrd"))
    return folder, [
        sys.executable, "-m", "KidneySegLib", "segment", str(folder / "ct.nrrd"),
        "--output", str(folder / "new" / "k.nii.gz"), "--report", str(folder / "new" / "r.json"),
        "--model", str(model.folder), "--progress", "lines",
    ]  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_exits_with_130_and_leaves_nothing(long_run, number):
    folder, command = long_run
    before = everything_in(folder)
    with subprocess.Popen(
        command, cwd=KIDNEYSEG, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # Tests that run in the background of a shell inherit that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        for line in process.stdout:
            if json.loads(line)["step"] == "predict":
                process.send_signal(number)
                break
        out, err = process.communicate()
    assert process.returncode == 130
    assert err.startswith("error: Stopped") and err.count("\n") == 1
    assert '"write"' not in out
    assert everything_in(folder) == before


def test_a_reader_that_goes_away_is_no_reason_for_a_traceback(long_run):
    folder, command = long_run
    before = everything_in(folder)
    with subprocess.Popen(
        command, cwd=KIDNEYSEG, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1
    assert everything_in(folder) == before


def test_the_command_works_in_a_thread_and_gives_the_signals_back(tmp_path, toy_ct, toy_model):
    before = signal.getsignal(signal.SIGTERM)
    codes = []
    arguments = ["segment", str(toy_ct), "--model", str(toy_model.folder), "--output"]
    thread = threading.Thread(
        target=lambda: codes.append(cli.main([*arguments, str(tmp_path / "a.mha")]))
    )
    thread.start()
    thread.join()
    codes.append(cli.main([*arguments, str(tmp_path / "b.mha")]))
    assert codes == [0, 0]
    assert signal.getsignal(signal.SIGTERM) is before


# --- What must not happen ---------------------------------------------------------------------


def failing_for(monkeypatch, name: str, error: Exception) -> None:
    """Reading one CT meets an error."""
    read = reading.read_ct

    def read_ct(path, *arguments, **options):
        if name in str(path):
            raise error
        return read(path, *arguments, **options)

    monkeypatch.setattr(reading, "read_ct", read_ct)


def test_an_error_that_nobody_foresaw_does_not_stop_the_others(run, tmp_path, cases, monkeypatch):
    failing_for(monkeypatch, "case_00001", ZeroDivisionError("of all\nthings"))
    inputs = (cases / "case_00001", cases / "case_00002")
    given = (*inputs, "--output", tmp_path / "out", "--report", tmp_path / "r.json")
    code, out, err = run("segment", *given)
    assert code == 1 and out.startswith("case_00002: ")
    assert err.splitlines() == [
        f"error: {cases}/case_00001: ZeroDivisionError: of all things",
        "1 of 2 inputs failed.",
    ]
    reports = json.loads((tmp_path / "r.json").read_text())["cases"]
    assert reports[0]["error"].endswith("ZeroDivisionError: of all\nthings")
    assert "Traceback" in run("segment", *given, "--verbose")[2]


def test_nobody_who_listens_ends_a_run_of_several_inputs(run, tmp_path, cases, monkeypatch):
    failing_for(monkeypatch, "case_00001", BrokenPipeError())
    inputs = (cases / "case_00001", cases / "case_00002")
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # which the command turns away
    code, out, err = run("segment", *inputs, "--output", tmp_path / "out")
    assert (code, out, err) == (1, "", "") and not (tmp_path / "out").exists()


def test_the_reference_of_a_folder_is_for_a_single_input_alone(run, tmp_path, cases, toy_sides):
    references = tmp_path / "references"
    (references / "case_00002").mkdir(parents=True)
    shutil.copy(toy_sides, references / "case_00001.nii.gz")
    shutil.copy(toy_sides, references / "case_00002" / "segmentation.nii.gz")
    other = toys.image_of(np.roll(toys.toy()[1], 3, axis=1))
    sitk.WriteImage(other, str(references / "segmentation.nii.gz"))
    output = ("--output", tmp_path / "out", "--reference", references)
    code, out, _ = run("segment", cases / "case_00001", cases / "case_00002", *output)
    assert code == 0 and out.count("Dice 1.000") == 2
    for case in cases.iterdir():
        (case / "segmentation.nii.gz").unlink()
        case.rename(case.with_name(case.name.replace("case", "other")))
    code, _, err = run("segment", *sorted(cases.iterdir()), *output)
    assert code == 3 and err.count("holds no reference for other_0000") == 2
    alone = (cases / "other_00001", "--output", tmp_path / "k.nii.gz", "--reference", references)
    code, out, _ = run("segment", *alone)
    assert code == 0 and "Dice 0." in out


def test_a_ct_is_not_its_own_reference(run, tmp_path, toy_ct, toy_sides):
    shutil.copy(toy_ct, tmp_path / "ct.nii.gz")
    shutil.copy(toy_sides, tmp_path / "segmentation.nii.gz")
    given = (tmp_path / "ct.nii.gz", "--reference", tmp_path, "--output", tmp_path / "k.mha")
    code, out, _ = run("segment", *given)
    assert code == 0 and "Dice 1.000" in out


def test_a_reference_of_other_labels_is_refused_before_any_computing(
    run, tmp_path, toy_ct, toy_sides, monkeypatch
):
    other = sitk.ChangeLabel(sitk.ReadImage(str(toy_sides)), {2: 3})
    sitk.WriteImage(other, str(tmp_path / "r.nii.gz"))
    monkeypatch.setattr(segment, "segment", None)
    given = (toy_ct, "--output", tmp_path / "k.nii.gz", "--reference", tmp_path / "r.nii.gz")
    code, _, err = run("segment", *given)
    assert code == 3 and f"{tmp_path}/r.nii.gz holds the values 1, 3" in err


def test_a_label_map_for_a_grid_that_nifti_rounds_says_what_to_choose(run, tmp_path):
    ct = toys.image_of(toys.toy()[0])
    ct.SetOrigin((-1e7 - 1 / 3, 0.0, 0.0))
    sitk.WriteImage(ct, str(tmp_path / "ct.nrrd"))
    code, _, err = run("segment", tmp_path / "ct.nrrd", "--output", tmp_path / "k.nii.gz")
    assert code == 1 and "give a name that ends in .nrrd or .mha" in err and "disk" not in err
    assert run("segment", tmp_path / "ct.nrrd", "--output", tmp_path / "k.nrrd")[0] == 0


def test_no_model_is_overwritten(run, tmp_path, toy_ct, toy_model):
    model = tmp_path / "run" / "model"
    shutil.copytree(toy_model.folder, model)
    before = everything_in(tmp_path)
    report = ("--report", model / "model.json", "--model", model)
    code, _, err = run("segment", toy_ct, "--output", tmp_path / "k.nii.gz", *report)
    assert code == 2 and "is an input and is not overwritten" in err
    training = ("--data", tmp_path, "--output", tmp_path / "run")
    for command in (
        ("train", *training, "--init-from", model),
        ("train", *training, "--finder", model),
        ("train-second-look", "--data", tmp_path, "--model", model, "--output", tmp_path / "run"),
        ("train-second-look", "--data", tmp_path, "--model", model, "--output", model),
    ):
        code, _, err = run(*command)
        assert code == 2 and "would be replaced with" in err
    assert everything_in(tmp_path) == before


def test_no_recipe_is_overwritten(run, tmp_path):
    recipe = tmp_path / "results.json"
    recipe.write_text(json.dumps({"stages": [{"name": "only", "epochs": 1}]}))
    before = everything_in(tmp_path)
    code, _, err = run("recipe", recipe, "--data", tmp_path, "--output", tmp_path, "--folds", 2)
    assert code == 2 and "is an input and is not overwritten" in err
    assert everything_in(tmp_path) == before
